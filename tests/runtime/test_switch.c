/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_switch.c - other weights take over while the engine serves (engine_switch.c,
 * scheduler.h P8). The fake device answers by other rules then and refuses a page of other weights
 * (kernels/fake, F3); the rig knows by an event's time which rules a request must have had from its
 * first token to its last. */
#include "tests/runtime/rig.h"

static struct rig rig; /* large */
static struct ll_weights_switch order;
static int answered;     /* 1: no answer yet */
static uint32_t n_asked; /* weights are numbered by their seals, switched to or not */

static void open_rig(const struct rig_config *config)
{
    struct rig_config c = *config;

    c.n_weights = 2;
    c.tick_ns = 1;
    c.checks = true;
    rig_open(&rig, &c);
    answered = 0;
    n_asked = 0;
}

/* As the reload's thread and the control thread do. */
static void ask(uint64_t wait_ns, bool cuts)
{
    struct ll_text error;
    uint32_t other = 1 - rig.engine.weights;

    assert_int_equal(rig.backend->begin(rig.device, other, &error), 0);
    assert_int_equal(rig.backend->seal(rig.device, other, &error), 0);
    order = (struct ll_weights_switch){
        .weights = other,
        .epoch = rig.info->weights_epoch + 1,
        .wait_ns = wait_ns,
        .cuts = cuts,
        .model = {.name = "next", .temperature = 0.25f, .top_p = 0.5f, .top_k = 7},
    };
    answered = 1;
    n_asked++;
    rig_mail(&rig, LL_MAIL_SWITCH, &order, 0);
}

/* A turn, the control thread's look at its mail, everybody reads. */
static void turn(void)
{
    struct ll_mail mail;
    bool was_quiet = rig.engine.n_submitted == rig.engine.n_polled;
    uint64_t begin_ns = rig.now_ns;

    assert_true(rig_turn(&rig) >= 0);
    while (ll_mailbox_take(&rig.to_control, &mail)) {
        if (mail.type != LL_MAIL_SWITCHED)
            continue;
        assert_true(was_quiet || mail.value != 0); /* B9: the old set may be overwritten now */
        assert_int_equal(answered, 1);
        assert_ptr_equal(mail.attachment, &order);
        answered = (int)(int64_t)mail.value;
        if (answered == 0) {
            assert_true(rig.n_switches < LL_COUNT(rig.switches));
            rig.switches[rig.n_switches++] = (struct rig_switch){begin_ns, n_asked};
        }
    }
    for (uint32_t i = 0; i < rig.c.n_clients; i++)
        rig_read(&rig, i, UINT32_MAX);
}

static void turns(uint32_t n)
{
    while (n-- > 0)
        turn();
}

static void finish(uint32_t n_max)
{
    while (rig_n_open(&rig) > 0 || answered == 1 || !ll_engine_is_idle(&rig.engine)) {
        if (n_max-- == 0)
            fail_msg("%u requests do not end", rig_n_open(&rig));
        turn();
    }
}

static int submit(uint32_t n_prompt, uint32_t max_tokens, uint64_t seed)
{
    struct rig_spec spec = {.n_prompt = n_prompt, .max_tokens = max_tokens, .seed = seed};

    return rig_submit(&rig, 0, &spec);
}

static struct rig_request *request(int slot)
{
    return &rig.client[0].request[slot];
}

/* ---- whose weights ----------------------------------------------------------------------------*/

static void what_runs_ends_on_the_old_weights_and_who_waits_gets_the_new(void **state)
{
    (void)state;
    open_rig(&(struct rig_config){0});
    for (uint32_t i = 0; i < 8; i++)
        submit(30 + i, 50, i);
    turns(40);
    ask(LL_NS_PER_S, false);
    turns(2);
    for (uint32_t i = 0; i < 8; i++)
        submit(30 + i, 50, i); /* the same again */
    turns(20);
    assert_int_equal(answered, 1);
    assert_int_equal(rig.info->weights_epoch, 0);
    finish(2000);
    assert_int_equal(answered, 0);
    for (int i = 0; i < 16; i++) {
        assert_int_equal(request(i)->weights, i >= 8);
        assert_int_equal(request(i)->n_got, 50);
    }
    assert_int_not_equal(request(0)->expected[0], request(8)->expected[0]);
    assert_int_equal(rig.engine.weights, 1);
    assert_int_equal(rig.info->weights_epoch, 1);
    assert_string_equal(rig.info->name, "next");
    assert_true(rig.info->temperature > 0.2f && rig.info->temperature < 0.3f);
    assert_int_equal(rig.info->top_k, 7);
    assert_int_equal(atomic_load(&rig.info->model_seq), 2);
    assert_true(order.waited_ns > 0 && order.n_left == 0);
    rig_close(&rig);
}

static void with_nothing_running_it_is_at_once(void **state)
{
    (void)state;
    open_rig(&(struct rig_config){0});
    for (uint32_t i = 1; i <= 5; i++) { /* there and back */
        ask(0, false);
        turns(2);
        assert_int_equal(answered, 0);
        assert_int_equal(rig.engine.weights, i % 2);
        int slot = submit(100, 10, i);
        finish(500);
        assert_int_equal(request(slot)->weights, i);
    }
    rig_close(&rig);
}

static void a_preempted_request_comes_back_on_the_weights_it_began_with(void **state)
{
    (void)state;
    /* Eight that want six pages each; there are 20. */
    open_rig(&(struct rig_config){.n_pages = 20});
    for (uint32_t i = 0; i < 8; i++)
        submit(100, 250, i);
    turns(200);
    ask(LL_NS_PER_S, false);
    int late = submit(100, 20, 99);
    finish(20000);
    assert_int_equal(answered, 0);
    assert_true(RIG_STAT(&rig, preemptions) > 0);
    uint32_t n_old = 0;
    for (int i = 0; i < 8; i++)
        n_old += request(i)->weights == 0;
    assert_true(n_old > 2); /* more than fit at once */
    assert_int_equal(request(late)->weights, 1);
    rig_close(&rig);
}

static void a_swapped_request_too(void **state)
{
    (void)state;
    open_rig(&(struct rig_config){.n_pages = 20, .n_host_pages = 60, .always_swaps = true});
    for (uint32_t i = 0; i < 8; i++)
        submit(100, 250, i);
    turns(200);
    ask(LL_NS_PER_S, false);
    int late = submit(100, 20, 99);
    finish(20000);
    assert_true(RIG_STAT(&rig, preemptions_swapped) > 0);
    assert_int_equal(request(late)->weights, 1);
    rig_close(&rig);
}

static void choices_stay_together(void **state)
{
    (void)state;
    /* Six choices in two device slots: some have not started when the others have. */
    open_rig(&(struct rig_config){.n_device_slots = 2});
    struct rig_spec spec = {.n_prompt = 100, .max_tokens = 30, .seed = 5, .n = 6};
    int first = rig_submit(&rig, 0, &spec);
    turns(15);
    ask(LL_NS_PER_S, false);
    int second = rig_submit(&rig, 0, &spec);
    finish(5000);
    assert_int_equal(answered, 0);
    assert_int_equal(request(first)->weights, 0);
    assert_int_equal(request(second)->weights, 1);
    assert_int_equal(request(first)->n_got, 180);
    assert_int_equal(request(second)->n_got, 180);
    rig_close(&rig);
}

/* ---- the prefix cache -------------------------------------------------------------------------*/

static void no_cached_page_crosses_over(void **state)
{
    (void)state;
    open_rig(&(struct rig_config){0});
    int a = submit(400, 10, 1);
    finish(500);
    int b = submit(400, 10, 1);
    finish(500);
    assert_int_equal(request(b)->n_cached, 384);
    ask(LL_NS_PER_S, false);
    turns(3);
    a = submit(400, 10, 1);
    finish(500);
    assert_int_equal(request(a)->weights, 1);
    assert_int_equal(request(a)->n_cached, 0);
    b = submit(400, 10, 1);
    finish(500);
    assert_int_equal(request(b)->n_cached, 384); /* the new ones' own */
    ask(LL_NS_PER_S, false);                     /* and back to the first set, with other weights */
    turns(3);
    a = submit(400, 10, 1);
    finish(500);
    assert_int_equal(request(a)->weights, 2);
    assert_int_equal(request(a)->n_cached, 0);
    rig_close(&rig);
}

/* A look-up takes several turns for a long prompt: what it has found by then is given back. */
static void a_half_looked_up_prompt_begins_anew(void **state)
{
    (void)state;
    bool was_half = false;

    open_rig(&(struct rig_config){.context_max = 20000, .n_pages = 1024, .n_tokens_max = 4096});
    for (uint32_t n_turns = 0; n_turns < 8; n_turns++) {
        submit(19000, 3, 1); /* 296 pages, of which a turn looks up some 80 */
        finish(1000);
        int slot = submit(19000, 3, 1);
        turns(n_turns);
        was_half |= rig.engine.scheduler.matching != LL_NONE;
        ask(LL_NS_PER_S, false);
        finish(2000);
        assert_int_equal(answered, 0);
        assert_int_equal(request(slot)->n_got, 3);
    }
    assert_true(was_half);
    rig_close(&rig);
}

/* ---- how long others wait ---------------------------------------------------------------------*/

static void at_the_bound_it_is_given_up_and_nobody_is_disturbed(void **state)
{
    (void)state;
    open_rig(&(struct rig_config){0});
    submit(30, 900, 1);
    submit(30, 900, 2);
    turns(20);
    uint64_t begin_ns = rig.now_ns;
    ask(2 * LL_NS_PER_MS, false);
    turns(2);
    int late = submit(30, 20, 3);
    while (answered == 1)
        turn();
    assert_int_equal(answered, LL_E_TIMEOUT);
    assert_int_equal(order.n_left, 2);
    assert_true(rig.now_ns - begin_ns <= 2 * LL_NS_PER_MS + 4 * rig.c.turn_ns);
    finish(5000);
    assert_int_equal(request(late)->weights, 0);
    assert_true(request(late)->first_ns <= begin_ns + 3 * LL_NS_PER_MS);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 3);
    assert_int_equal(rig.info->weights_epoch, 0);
    ask(LL_NS_PER_S, false); /* and again, with nobody there */
    finish(10);
    assert_int_equal(answered, 0);
    rig_close(&rig);
}

static void or_what_still_runs_is_cut_off(void **state)
{
    (void)state;
    open_rig(&(struct rig_config){.n_pages = 30});
    for (uint32_t i = 0; i < 6; i++) /* with some preempted, which have begun, too */
        submit(100, 600, i);
    turns(400);
    ask(2 * LL_NS_PER_MS, true);
    int late = submit(30, 20, 3);
    finish(5000);
    assert_int_equal(answered, 0);
    assert_int_equal(request(late)->weights, 1);
    assert_int_equal(request(late)->n_got, 20);
    uint32_t n_cut = 0;
    for (int i = 0; i < 6; i++)
        n_cut += request(i)->type == LL_EV_ERROR && request(i)->code == LL_E_DRAINING;
    assert_int_equal(n_cut, order.n_left);
    assert_true(n_cut > 0);
    assert_int_equal(RIG_STAT(&rig, requests_failed), n_cut);
    rig_close(&rig);
}

static void deadlines_and_cancels_count_while_they_wait(void **state)
{
    (void)state;
    open_rig(&(struct rig_config){0});
    submit(30, 900, 1);
    turns(20);
    ask(20 * LL_NS_PER_MS, false);
    turns(2);
    struct rig_spec spec = {
        .n_prompt = 30, .max_tokens = 20, .seed = 3, .deadline_ns = rig.now_ns + LL_NS_PER_MS};
    int expiring = rig_submit(&rig, 0, &spec);
    int cancelled = submit(30, 20, 4);
    turns(50);
    rig_cancel(&rig, 0, (uint32_t)cancelled);
    turns(60);
    assert_int_equal(answered, 1);
    assert_int_equal(request(expiring)->code, LL_E_DEADLINE);
    assert_false(request(cancelled)->is_open);
    assert_int_equal(request(cancelled)->reason, LL_FINISH_CANCELLED);
    finish(5000);
    assert_int_equal(RIG_STAT(&rig, requests_expired), 1);
    assert_int_equal(RIG_STAT(&rig, requests_cancelled), 1);
    rig_close(&rig);
}

static void wait_in_line(uint32_t n_more_turns)
{
    open_rig(&(struct rig_config){.n_slots = 400, .n_device_slots = 1, .n_pages = 4096});
    submit(30, 100 + n_more_turns, 1);
    turns(20);
    ask(LL_NS_PER_S, false);
    turns(2);
    for (uint32_t i = 0; i < 300; i++) { /* the most urgent ones come last */
        struct rig_spec spec = {
            .n_prompt = 10, .max_tokens = 1, .seed = i, .priority = (int8_t)(i < 290 ? 5 : 1)};
        assert_true(rig_submit(&rig, 0, &spec) >= 0);
        if (i % 10 == 0)
            turn();
    }
    finish(20000);
    assert_int_equal(answered, 0);
    uint64_t last_urgent_ns = 0, first_other_ns = UINT64_MAX;
    for (int i = 1; i <= 300; i++)
        if (request(i)->spec.priority == 1)
            last_urgent_ns = ll_max_u64(last_urgent_ns, request(i)->first_ns);
        else
            first_other_ns = ll_min_u64(first_other_ns, request(i)->first_ns);
    assert_true(last_urgent_ns <= first_other_ns);
    rig_close(&rig);
}

static void who_waited_starts_in_the_queue_s_order(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 12; i++) /* the list of those that wait turns round meanwhile */
        wait_in_line(i);
}

static void a_drain_ends_it_and_serves_who_waits(void **state)
{
    (void)state;
    open_rig(&(struct rig_config){0});
    submit(30, 300, 1);
    turns(20);
    ask(LL_NS_PER_S, false);
    int late = submit(30, 20, 2);
    turns(5);
    rig_mail(&rig, LL_MAIL_DRAIN, NULL, rig.now_ns + LL_NS_PER_S);
    finish(2000);
    assert_int_equal(answered, LL_E_DRAINING);
    assert_int_equal(request(late)->weights, 0);
    assert_int_equal(request(late)->n_got, 20);
    ask(LL_NS_PER_S, false); /* refused at once */
    finish(10);
    assert_int_equal(answered, LL_E_DRAINING);
    rig_close(&rig);
}

/* ---- whatever comes ---------------------------------------------------------------------------*/

static struct rig_spec any_request(uint64_t *random)
{
    struct rig_spec spec = {.n_prompt = 1 + (uint32_t)(ll_splitmix64(random) % 300),
                            .max_tokens = 1 + (uint32_t)(ll_splitmix64(random) % 60),
                            .seed = ll_splitmix64(random),
                            .shared_seed = 7,
                            .priority = (int8_t)(ll_splitmix64(random) % 3)};

    spec.n_shared = (uint32_t)(ll_splitmix64(random) % (spec.n_prompt + 1));
    if (ll_splitmix64(random) % 4 == 0)
        spec.n = 2 + (uint32_t)(ll_splitmix64(random) % 4);
    if (ll_splitmix64(random) % 5 == 0)
        spec.deadline_ns = rig.now_ns + ll_splitmix64(random) % (3 * LL_NS_PER_MS);
    return spec;
}

static void any_mixture_keeps_its_promises(void **state)
{
    uint32_t n_switched = 0, n_given_up = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        uint64_t random = seed, asked_ns = 0, wait_ns = 0;
        open_rig(&(struct rig_config){.n_clients = 2,
                                      .n_pages = seed % 2 ? 60 : 200,
                                      .n_host_pages = seed % 3 ? 0 : 50,
                                      .n_device_slots = 12,
                                      .eos_permille = 5});
        for (uint32_t i = 0; i < 4000; i++) {
            struct rig_spec spec = any_request(&random);
            if (ll_splitmix64(&random) % 8 == 0)
                rig_submit(&rig, i % 2, &spec);
            if (ll_splitmix64(&random) % 40 == 0)
                rig_cancel(&rig, 0, (uint32_t)(ll_splitmix64(&random) % rig.c.n_slots));
            if (answered != 1 && ll_splitmix64(&random) % 100 == 0 && rig.n_switches < 60) {
                wait_ns = ll_splitmix64(&random) % (4 * LL_NS_PER_MS);
                ask(wait_ns, ll_splitmix64(&random) % 2);
                asked_ns = rig.now_ns;
            }
            int before = answered;
            turn();
            if (before != 1)
                continue;
            /* The bound, the turns that read the mail, and the steps that were in flight. */
            assert_true(rig.now_ns - asked_ns <= wait_ns + 20 * rig.c.turn_ns);
            n_switched += answered == 0;
            n_given_up += answered == LL_E_TIMEOUT;
        }
        finish(20000);
        rig_close(&rig);
    }
    printf("%u switched, %u given up\n", n_switched, n_given_up);
    assert_true(n_switched > 50 && n_given_up > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_runs_ends_on_the_old_weights_and_who_waits_gets_the_new),
        cmocka_unit_test(with_nothing_running_it_is_at_once),
        cmocka_unit_test(a_preempted_request_comes_back_on_the_weights_it_began_with),
        cmocka_unit_test(a_swapped_request_too),
        cmocka_unit_test(choices_stay_together),
        cmocka_unit_test(no_cached_page_crosses_over),
        cmocka_unit_test(a_half_looked_up_prompt_begins_anew),
        cmocka_unit_test(at_the_bound_it_is_given_up_and_nobody_is_disturbed),
        cmocka_unit_test(or_what_still_runs_is_cut_off),
        cmocka_unit_test(deadlines_and_cancels_count_while_they_wait),
        cmocka_unit_test(who_waited_starts_in_the_queue_s_order),
        cmocka_unit_test(a_drain_ends_it_and_serves_who_waits),
        cmocka_unit_test(any_mixture_keeps_its_promises),
    };

    return cmocka_run_group_tests_name("runtime/switch", tests, NULL, NULL);
}
