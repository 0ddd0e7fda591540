/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_choices.c - requests for several choices: one prefill, shared pages, an end of
 * their own each, one terminal event. The rig holds each choice's tokens against the fake model. */
#include "tests/runtime/rig.h"
#include "runtime/scheduler_impl.h"

static struct rig rig;

static void open_rig(const struct rig_config *config)
{
    struct rig_config c = *config;

    c.checks = true;
    rig_open(&rig, &c);
}

static const struct rig_request *request(int slot)
{
    return &rig.client[0].request[slot];
}

/* Turns until the sequences hold n device slots, with everybody reading. */
static void turn_until_running(uint32_t n)
{
    for (int i = 0; rig.engine.pool.list[LL_SEQ_RUNNING].n != n; i++) {
        assert_true(i < 10000 && rig_turn(&rig) >= 0);
        rig_read(&rig, 0, UINT32_MAX);
    }
}

static void turns(int n)
{
    for (int i = 0; i < n; i++) {
        assert_true(rig_turn(&rig) >= 0);
        rig_read(&rig, 0, UINT32_MAX);
    }
}

static struct ll_seq *sequence(int slot, uint32_t choice)
{
    const struct ll_shadow *shadow = &rig.client[0].a.shadow[slot];

    assert_true(shadow->phase != LL_SHADOW_IDLE);
    return ll_seq_member(&rig.engine.pool, &rig.engine.pool.seq[shadow->sequence], choice);
}

/* ---- the prompt -------------------------------------------------------------------------------*/

static void prompt_is_computed_once(bool has_cache, uint32_t flags)
{
    const struct rig_config config = {.has_no_cache = !has_cache};
    const struct rig_spec spec = {
        .n_prompt = 300, .max_tokens = 40, .min_tokens = 40, .n = 8, .seed = 5, .flags = flags};

    open_rig(&config);
    int slot = rig_submit(&rig, 0, &spec);
    rig_finish(&rig, 10000);
    assert_int_equal(request(slot)->n_got, 8 * 40);
    assert_int_equal(request(slot)->reason, LL_FINISH_LENGTH);
    assert_int_equal(request(slot)->n_cached, 0); /* nothing was there before */
    assert_int_equal(RIG_STAT(&rig, prompt_tokens), 300);
    /* 4 full pages; the 44 tokens behind them are each choice's own */
    assert_int_equal(RIG_STAT(&rig, prompt_tokens_shared), 7 * 256);
    assert_int_equal(RIG_STAT(&rig, prompt_tokens_cached), 0);
    assert_int_equal(RIG_STAT(&rig, prefill_tokens), 300 + 7 * 44);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 1);
    rig_close(&rig);
}

static void the_prompt_is_computed_once_with_and_without_the_cache(void **state)
{
    (void)state;
    prompt_is_computed_once(true, 0);
    prompt_is_computed_once(false, 0);
    prompt_is_computed_once(true, LL_REQ_NO_CACHE);
}

static void the_pages_of_the_prompt_are_the_same(void **state)
{
    (void)state;
    const struct rig_config config = {.has_no_cache = true};
    const struct rig_spec spec = {.n_prompt = 129, .max_tokens = 200, .min_tokens = 200, .n = 3};

    open_rig(&config);
    int slot = rig_submit(&rig, 0, &spec);
    turn_until_running(3);
    const struct ll_seq *first = sequence(slot, 0);
    for (uint32_t c = 1; c < 3; c++) {
        const struct ll_seq *seq = sequence(slot, c);
        assert_memory_equal(seq->page, first->page, 2 * sizeof(*seq->page));
        assert_int_not_equal(seq->page[2], first->page[2]);
        assert_int_equal(rig.engine.kv.page[seq->page[0]].refs, 3);
    }
    rig_finish(&rig, 10000);
    rig_close(&rig);
}

static void a_prompt_of_whole_pages_leaves_the_last_to_each(void **state)
{
    (void)state;
    const struct rig_config config = {0};
    const struct rig_spec spec = {.n_prompt = 128, .max_tokens = 2, .n = 4, .min_tokens = 2};

    open_rig(&config);
    rig_submit(&rig, 0, &spec);
    rig_finish(&rig, 10000);
    assert_int_equal(RIG_STAT(&rig, prompt_tokens_shared), 3 * 64);
    rig_close(&rig);
}

static void nobody_starts_before_the_prompt_is_there(void **state)
{
    (void)state;
    const struct rig_config config = {.n_tokens_max = 64};
    const struct rig_spec spec = {.n_prompt = 500, .max_tokens = 30, .min_tokens = 30, .n = 4};

    open_rig(&config);
    int slot = rig_submit(&rig, 0, &spec);
    turn_until_running(1);
    while (sequence(slot, 0)->n_done < 500) {
        assert_int_equal(rig.engine.pool.list[LL_SEQ_RUNNING].n, 1);
        assert_int_equal(rig.engine.pool.list[LL_SEQ_WAITING].n, 3);
        turns(1);
    }
    rig_finish(&rig, 10000);
    rig_close(&rig);
}

/* Biases and random stream, as the device is told. */
static void each_choice_is_set_up_with_its_number_and_the_biases_of_the_request(void **state)
{
    (void)state;
    struct ll_plan_row row = {.n_tokens = 1};
    const struct ll_plan plan = {.row = &row, .n_rows = 1, .n_tokens = 1};
    struct ll_batch_maker maker;
    struct ll_seq_pool pool;
    struct ll_batch batch;

    assert_int_equal(ll_seq_pool_init(&pool, 4, 100), 0);
    assert_int_equal(ll_batch_maker_init(&maker, 1), 0);
    struct ll_seq *leader = ll_seq_take(&pool, 0);
    leader->n_prompt = 1;
    leader->n_bias = 2;
    leader->seed = 9;
    ll_seq_fork(&pool, leader, 3);
    for (uint32_t c = 0; c < 3; c++) {
        struct ll_seq *seq = ll_seq_member(&pool, leader, c);
        seq->device_slot = c;
        seq->needs_init = true;
        row.seq = seq->index;
        ll_batch_build(&maker, &plan, &pool, 0, &batch);
        assert_int_equal(batch.n_inits, 1);
        assert_int_equal(batch.inits[0].choice, c);
        assert_int_equal(batch.inits[0].seed, 9);
        assert_int_equal(batch.inits[0].n_bias, 2);
        assert_ptr_equal(batch.inits[0].bias, leader->bias);
    }
    ll_batch_maker_free(&maker);
    ll_seq_pool_free(&pool);
}

/* ---- ends -------------------------------------------------------------------------------------*/

static void a_choice_that_is_stopped_gives_its_pages_back_and_the_others_go_on(void **state)
{
    (void)state;
    const struct rig_config config = {.has_no_cache = true};
    const struct rig_spec spec = {.n_prompt = 70, .max_tokens = 300, .min_tokens = 300, .n = 4};

    open_rig(&config);
    int slot = rig_submit(&rig, 0, &spec);
    turn_until_running(4);
    turns(500); /* 2 and more pages each */
    uint32_t n_before = ll_kv_available(&rig.engine.kv), n_own = sequence(slot, 2)->n_pages - 1;
    rig_stop_choice(&rig, 0, (uint32_t)slot, 2);
    turns(4);
    assert_int_equal(request(slot)->choice[2].reason, LL_FINISH_STOP);
    assert_true(request(slot)->is_open && request(slot)->choice[1].reason == 0);
    assert_true(n_own >= 2 && ll_kv_available(&rig.engine.kv) >= n_before + n_own - 3);
    assert_null(sequence(slot, 2));
    rig_finish(&rig, 100000);
    assert_int_equal(request(slot)->choice[0].n_got, 300);
    assert_int_equal(request(slot)->reason, LL_FINISH_LENGTH);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 1);
    rig_close(&rig);
}

static void the_first_choice_may_end_before_the_others(void **state)
{
    (void)state;
    const struct rig_config config = {0};
    const struct rig_spec spec = {.n_prompt = 70, .max_tokens = 100, .min_tokens = 100, .n = 3};

    open_rig(&config);
    int slot = rig_submit(&rig, 0, &spec);
    turn_until_running(3);
    rig_stop_choice(&rig, 0, (uint32_t)slot, 0);
    rig_finish(&rig, 10000);
    assert_int_equal(request(slot)->choice[0].reason, LL_FINISH_STOP);
    assert_int_equal(request(slot)->reason, LL_FINISH_STOP); /* that of choice 0 */
    assert_int_equal(request(slot)->choice[2].n_got, 100);
    rig_close(&rig);
}

/* The next choice computes the prompt, and gives the rest of its logprobs. */
static void a_first_choice_stopped_in_its_prompt_hands_the_prompt_over(void **state)
{
    (void)state;
    const struct rig_config config = {.n_tokens_max = 64};
    const struct rig_spec spec = {.n_prompt = 500,
                                  .max_tokens = 20,
                                  .min_tokens = 20,
                                  .n = 4,
                                  .flags = LL_REQ_PROMPT_LOGPROBS,
                                  .n_prompt_top = 2};

    open_rig(&config);
    int slot = rig_submit(&rig, 0, &spec);
    turn_until_running(1);
    turns(10);
    rig_stop_choice(&rig, 0, (uint32_t)slot, 0);
    rig_finish(&rig, 10000);
    assert_int_equal(request(slot)->choice[0].n_got, 0);
    assert_int_equal(request(slot)->choice[0].reason, LL_FINISH_STOP);
    for (uint32_t c = 1; c < 4; c++)
        assert_int_equal(request(slot)->choice[c].n_got, 20);
    assert_int_equal(request(slot)->n_scored, 499); /* each once */
    assert_int_equal(RIG_STAT(&rig, prompt_tokens_shared), 2 * 448);
    rig_close(&rig);
}

static void all_stopped_before_the_start_is_a_finished_request(void **state)
{
    (void)state;
    const struct rig_config config = {0};
    const struct rig_spec spec = {.n_prompt = 70, .max_tokens = 100, .n = 40};

    open_rig(&config);
    int slot = rig_submit(&rig, 0, &spec);
    for (uint32_t c = 0; c < 40; c++) /* marks in two words */
        rig_stop_choice(&rig, 0, (uint32_t)slot, c);
    rig_finish(&rig, 10000);
    assert_int_equal(request(slot)->n_got, 0);
    assert_int_equal(request(slot)->reason, LL_FINISH_STOP);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 1);
    rig_close(&rig);
}

static void cancel_ends_all_choices_wherever_they_are(void **state)
{
    (void)state;
    /* 3 of 8 run, the others wait; the first has ended. */
    const struct rig_config config = {.n_device_slots = 3};
    const struct rig_spec spec = {.n_prompt = 200, .max_tokens = 400, .min_tokens = 400, .n = 8};

    open_rig(&config);
    int slot = rig_submit(&rig, 0, &spec);
    turn_until_running(3);
    rig_stop_choice(&rig, 0, (uint32_t)slot, 0);
    turns(20);
    rig_cancel(&rig, 0, (uint32_t)slot);
    rig_finish(&rig, 100);
    assert_int_equal(request(slot)->reason, LL_FINISH_CANCELLED);
    assert_int_equal(request(slot)->choice[0].reason, LL_FINISH_STOP);
    assert_int_equal(request(slot)->choice[1].reason, 0);
    assert_int_equal(RIG_STAT(&rig, requests_cancelled), 1);
    rig_close(&rig);
}

/* One choice bears the mark of a cancel until the next plan; it may end before that. */
static void a_cancel_outlives_the_choice_that_bears_its_mark(void **state)
{
    (void)state;
    const struct rig_config config = {0};
    const struct rig_spec spec = {.n_prompt = 70, .max_tokens = 400, .min_tokens = 400, .n = 3};

    open_rig(&config);
    int slot = rig_submit(&rig, 0, &spec);
    turn_until_running(3);
    struct ll_seq *leader = sequence(slot, 0);
    leader->is_cancelled = true;
    ll_seq_mark_request(&rig.engine.pool, leader);
    assert_true(leader->is_marked);
    ll_sched_end(&rig.engine.scheduler, leader, LL_END_STOP, 0);
    assert_true(sequence(slot, 1)->is_marked);
    rig_finish(&rig, 100);
    assert_int_equal(request(slot)->choice[0].reason, LL_FINISH_STOP);
    assert_int_equal(request(slot)->reason, LL_FINISH_CANCELLED);
    rig_close(&rig);
}

static void a_deadline_ends_all_choices_with_one_error(void **state)
{
    (void)state;
    const struct rig_config config = {.n_device_slots = 3};
    struct rig_spec spec = {.n_prompt = 200, .max_tokens = 800, .min_tokens = 800, .n = 8};

    open_rig(&config);
    spec.deadline_ns = rig.now_ns + 5 * LL_NS_PER_MS;
    int slot = rig_submit(&rig, 0, &spec);
    rig_finish(&rig, 100000);
    assert_int_equal(request(slot)->type, LL_EV_ERROR);
    assert_int_equal(request(slot)->code, LL_E_DEADLINE);
    assert_int_equal(RIG_STAT(&rig, requests_expired), 1);
    rig_close(&rig);
}

static void a_reader_that_sleeps_stalls_once_for_all_choices(void **state)
{
    (void)state;
    const struct rig_config config = {.stall_ns = 10 * LL_NS_PER_MS};
    const struct rig_spec spec = {.n_prompt = 20, .max_tokens = 400, .min_tokens = 400, .n = 8};

    open_rig(&config);
    int slot = rig_submit(&rig, 0, &spec);
    for (int i = 0; i < 3000; i++)
        rig_turn(&rig);
    rig_read(&rig, 0, UINT32_MAX);
    assert_false(request(slot)->is_open);
    assert_int_equal(request(slot)->code, LL_E_STALLED);
    assert_true(request(slot)->n_got <= LL_WINDOW_EVENTS);
    assert_int_equal(RIG_STAT(&rig, requests_stalled), 1);
    rig_close(&rig);
}

static void a_client_that_dies_takes_all_choices_along(void **state)
{
    (void)state;
    const struct rig_config config = {.n_device_slots = 3};
    const struct rig_spec spec = {.n_prompt = 200, .max_tokens = 400, .n = 8};

    open_rig(&config);
    rig_submit(&rig, 0, &spec);
    turn_until_running(3);
    rig.client[0].is_gone = true;
    rig_mail(&rig, LL_MAIL_DETACH, &rig.client[0].a, 1);
    for (int i = 0; i < 100; i++)
        rig_turn(&rig);
    assert_int_equal(RIG_STAT(&rig, requests_lost), 1);
    rig_close(&rig);
}

/* ---- limits -----------------------------------------------------------------------------------*/

static void more_choices_than_device_slots_take_turns(void **state)
{
    (void)state;
    const struct rig_config config = {.n_device_slots = 3, .n_sequences = 200};
    const struct rig_spec spec = {.n_prompt = 130, .max_tokens = 10, .n = LL_CHOICES_MAX};

    open_rig(&config);
    int slot = rig_submit(&rig, 0, &spec);
    rig_finish(&rig, 100000);
    assert_int_equal(request(slot)->n_got, LL_CHOICES_MAX * 10);
    /* The cache keeps the prompt for those that start when the first have ended. */
    assert_int_equal(RIG_STAT(&rig, prompt_tokens_shared), (LL_CHOICES_MAX - 1) * 128);
    rig_close(&rig);
}

static void few_pages_preempt_choices_one_by_one(void **state)
{
    (void)state;
    for (int swaps = 0; swaps < 2; swaps++) {
        const struct rig_config config = {.n_pages = 8,
                                          .n_host_pages = swaps ? 40 : 0,
                                          .always_swaps = swaps,
                                          .has_no_cache = true};
        const struct rig_spec spec = {
            .n_prompt = 130, .max_tokens = 300, .min_tokens = 300, .n = 6, .seed = 9};

        open_rig(&config);
        int slot = rig_submit(&rig, 0, &spec);
        rig_finish(&rig, 100000);
        assert_int_equal(request(slot)->n_got, 6 * 300);
        assert_true(RIG_STAT(&rig, preemptions) > 0);
        assert_int_equal(RIG_STAT(&rig, preemptions_swapped) > 0, swaps);
        rig_close(&rig);
    }
}

static void what_can_never_fit_is_refused(void **state)
{
    (void)state;
    const struct rig_config config = {
        .n_device_slots = 4, .n_sequences = 10, .n_slots = 4, .log2_events = 7};
    struct rig_spec spec = {.n_prompt = 10, .max_tokens = 10, .n = 11};

    open_rig(&config); /* 10 sequences; 128 events */
    int slot = rig_submit(&rig, 0, &spec);
    rig_finish(&rig, 100);
    assert_int_equal(request(slot)->code, LL_E_NEVER_FITS);
    spec.n = 10;
    slot = rig_submit(&rig, 0, &spec);
    rig_finish(&rig, 10000);
    assert_int_equal(request(slot)->n_got, 100);
    assert_int_equal(RIG_STAT(&rig, requests_rejected), 1);
    rig_close(&rig);

    /* 128 events - 64 of a row - 4 slots */
    const struct rig_config small = {
        .n_device_slots = 4, .n_sequences = 100, .n_slots = 4, .log2_events = 7};
    open_rig(&small);
    spec.n = 61;
    slot = rig_submit(&rig, 0, &spec);
    rig_finish(&rig, 100);
    assert_int_equal(request(slot)->code, LL_E_NEVER_FITS);
    spec.n = 60;
    slot = rig_submit(&rig, 0, &spec);
    rig_finish(&rig, 100000);
    assert_int_equal(request(slot)->n_got, 600);
    rig_close(&rig);
}

static void a_request_without_room_for_its_choices_is_told_busy(void **state)
{
    (void)state;
    const struct rig_config config = {.n_device_slots = 4, .n_sequences = 10};
    const struct rig_spec spec = {.n_prompt = 10, .max_tokens = 50, .min_tokens = 50, .n = 6};

    open_rig(&config);
    int first = rig_submit(&rig, 0, &spec), second = rig_submit(&rig, 0, &spec);
    rig_finish(&rig, 10000);
    assert_int_equal(request(first)->n_got, 300);
    assert_int_equal(request(second)->code, LL_E_BUSY);
    rig_close(&rig);
}

/* Terminal events and a row of all fit, however many choices are asked for at once. */
static void a_small_ring_takes_many_choices_in_turn(void **state)
{
    (void)state;
    const struct rig_config config = {
        .n_device_slots = 8, .n_sequences = 400, .n_slots = 8, .log2_events = 7};
    const struct rig_spec spec = {
        .n_prompt = 10, .max_tokens = 20, .min_tokens = 20, .n = 30, .n_top = 20};

    open_rig(&config);
    for (int i = 0; i < 8; i++)
        assert_true(rig_submit(&rig, 0, &spec) >= 0);
    rig_finish(&rig, 1000000);
    for (int i = 0; i < 8; i++)
        assert_int_equal(request(i)->n_got, 600);
    rig_close(&rig);
}

static void a_tenant_pays_for_all_its_choices(void **state)
{
    (void)state;
    const struct rig_config config = {.n_device_slots = 64};
    struct rig_spec spec = {.n_prompt = 100, .max_tokens = 50, .min_tokens = 50, .n = 10};

    open_rig(&config);
    rig_submit(&rig, 0, &spec);
    spec.n = 1, spec.tenant = 7;
    rig_submit(&rig, 0, &spec);
    turn_until_running(11);
    rig_finish(&rig, 10000);
    const struct ll_queue *queue = &rig.engine.scheduler.queue;
    assert_int_equal(queue->n_used, 2);
    uint64_t many = queue->account[0].served, one = queue->account[1].served;
    assert_int_equal(one, 100 + 50 * LL_QUEUE_TOKEN_COST);
    assert_int_equal(many, 100 + 9 * 36 + 10 * 50 * LL_QUEUE_TOKEN_COST);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_prompt_is_computed_once_with_and_without_the_cache),
        cmocka_unit_test(the_pages_of_the_prompt_are_the_same),
        cmocka_unit_test(a_prompt_of_whole_pages_leaves_the_last_to_each),
        cmocka_unit_test(nobody_starts_before_the_prompt_is_there),
        cmocka_unit_test(each_choice_is_set_up_with_its_number_and_the_biases_of_the_request),
        cmocka_unit_test(a_choice_that_is_stopped_gives_its_pages_back_and_the_others_go_on),
        cmocka_unit_test(the_first_choice_may_end_before_the_others),
        cmocka_unit_test(a_first_choice_stopped_in_its_prompt_hands_the_prompt_over),
        cmocka_unit_test(all_stopped_before_the_start_is_a_finished_request),
        cmocka_unit_test(cancel_ends_all_choices_wherever_they_are),
        cmocka_unit_test(a_cancel_outlives_the_choice_that_bears_its_mark),
        cmocka_unit_test(a_deadline_ends_all_choices_with_one_error),
        cmocka_unit_test(a_reader_that_sleeps_stalls_once_for_all_choices),
        cmocka_unit_test(a_client_that_dies_takes_all_choices_along),
        cmocka_unit_test(more_choices_than_device_slots_take_turns),
        cmocka_unit_test(few_pages_preempt_choices_one_by_one),
        cmocka_unit_test(what_can_never_fit_is_refused),
        cmocka_unit_test(a_request_without_room_for_its_choices_is_told_busy),
        cmocka_unit_test(a_small_ring_takes_many_choices_in_turn),
        cmocka_unit_test(a_tenant_pays_for_all_its_choices),
    };
    return cmocka_run_group_tests_name("runtime/choices", tests, NULL, NULL);
}
