/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_engine_faults.c - turns of the engine when clients die or lie, the device
 * fails, the engine drains. */
#include "tests/runtime/engine_fixture.h"

static bool control_got(enum ll_mail_type type, struct ll_mail *mail)
{
    while (ll_mailbox_take(&rig.to_control, mail))
        if (mail->type == type)
            return true;
    return false;
}

static void a_client_that_dies_is_forgotten_and_others_go_on(void **state)
{
    (void)state;
    struct ll_mail mail;

    rig_open(&rig, &(struct rig_config){.n_clients = 2, .checks = true});
    submit_many(20, 60, 100);
    for (int i = 0; i < 30; i++)
        rig_turn(&rig);
    rig.client[0].is_gone = true;
    rig_mail(&rig, LL_MAIL_DETACH, &rig.client[0].a, 1);
    int n_turns = 0;
    while (!control_got(LL_MAIL_DETACHED, &mail)) {
        rig_turn(&rig);
        assert_true(++n_turns < 50);
    }
    assert_ptr_equal(mail.attachment, &rig.client[0].a);
    assert_int_equal(RIG_STAT(&rig, requests_lost), 10);
    rig_finish(&rig, 5000);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 10);
    rig_close(&rig);
}

/* Whose wait queues cost too much is put off, and let go, later. */
static void a_domain_in_debt_is_watched_and_unwatched_later(void **state)
{
    (void)state;
    const struct ll_debt debt = {.ns = 20 * LL_NS_PER_MS, .is_timed = true};
    struct ll_mail mail;

    rig_open(&rig, &(struct rig_config){.n_clients = 2});
    struct ll_attachment *client = &rig.client[0].a;
    rig.domain.step_debt = debt;
    rig.domain.step_debt.at_ns = rig.now_ns;
    for (int i = 0; i < 50; i++)
        rig_turn(&rig);
    assert_true(!client->is_watched && client->wants_watch);
    submit_many(2, 10, 10);
    rig_finish(&rig, 5000); /* served all the same */
    rig.now_ns += 3 * LL_NS_PER_S;
    rig_turn(&rig);
    assert_true(client->is_watched && !client->wants_watch);

    rig.domain.step_debt = debt;
    rig.domain.step_debt.at_ns = rig.now_ns;
    rig_mail(&rig, LL_MAIL_DETACH, client, 0);
    for (int i = 0; i < 50; i++)
        rig_turn(&rig);
    assert_false(control_got(LL_MAIL_DETACHED, &mail));
    assert_true(client->is_watched);
    rig.now_ns += 3 * LL_NS_PER_S;
    rig_turn(&rig);
    assert_true(control_got(LL_MAIL_DETACHED, &mail));
    assert_false(client->is_watched);
    rig_close(&rig);
}

static void a_client_that_says_bye_is_cancelled(void **state)
{
    (void)state;
    struct ll_mail mail;

    rig_open(&rig, &(struct rig_config){.n_device_slots = 2});
    submit_many(10, 60, 100);
    for (int i = 0; i < 30; i++)
        rig_turn(&rig);
    rig_mail(&rig, LL_MAIL_DETACH, &rig.client[0].a, 0);
    for (int i = 0; i < 50; i++)
        rig_turn(&rig);
    assert_true(control_got(LL_MAIL_DETACHED, &mail));
    assert_int_equal(RIG_STAT(&rig, requests_cancelled), 10);
    rig_close(&rig);
}

static void a_client_whose_indices_lie_is_fenced(void **state)
{
    (void)state;
    struct ll_mail mail;

    rig_open(&rig, &(struct rig_config){.n_clients = 2, .log2_events = 6});
    submit_many(2, 60, 100);
    for (int i = 0; i < 10; i++)
        rig_turn(&rig);
    atomic_store(&rig.client[0].hot->cons_pos, 1u << 30);
    rig.client[0].is_gone = true;
    for (int i = 0; i < 300; i++) {
        rig_turn(&rig);
        rig_read(&rig, 1, UINT32_MAX);
    }
    assert_true(control_got(LL_MAIL_FENCED, &mail));
    assert_ptr_equal(mail.attachment, &rig.client[0].a);
    rig_mail(&rig, LL_MAIL_DETACH, &rig.client[0].a, 1);
    rig_finish(&rig, 5000);
    for (int i = 0; i < 50; i++)
        rig_turn(&rig);
    assert_true(control_got(LL_MAIL_DETACHED, &mail));
    assert_int_equal(RIG_STAT(&rig, requests_lost), 1);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 1);
    rig_close(&rig);
}

/* The device fails in one way or another: everybody is told once, then nothing works. */
static void expect_failure(const struct rig_config *config)
{
    struct ll_mail mail;
    int rc = 0;

    rig_open(&rig, config);
    submit_many(20, 60, 100);
    for (int i = 0; i < 2000 && rc >= 0; i++) {
        rc = rig_turn(&rig);
        rig_read(&rig, 0, UINT32_MAX);
    }
    assert_int_equal(rc, LL_E_BACKEND);
    assert_int_equal(ll_engine_turn(&rig.engine), LL_E_BACKEND);
    rig_read(&rig, 0, UINT32_MAX);
    assert_int_equal(rig.client[0].n_open, 0);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(rig.client[0].request[i].code, LL_E_BACKEND);
    assert_int_equal(RIG_STAT(&rig, requests_failed), 20);
    assert_int_equal(RIG_STAT(&rig, backend_errors), 1);
    assert_int_equal(rig.info->rt_state, LL_RT_DEAD); /* G4 */
    assert_int_equal(rig.info->rt_reason, -LL_E_BACKEND);
    assert_true(control_got(LL_MAIL_FAILED, &mail));
    assert_int_equal((int64_t)mail.value, LL_E_BACKEND);
    assert_false(control_got(LL_MAIL_FAILED, &mail));
    rig_free(&rig);
}

static void a_failing_step_tells_everybody_once(void **state)
{
    (void)state;
    expect_failure(&(struct rig_config){.extra = "polls=2,fail_at=7", .n_device_slots = 8});
}

static void a_step_that_never_ends_is_a_failure(void **state)
{
    (void)state;
    expect_failure(&(struct rig_config){
        .extra = "hang_at=7", .n_device_slots = 8, .step_timeout_ns = 3 * LL_NS_PER_MS});
}

/* The same as if the process had been stopped (SIGSTOP) in the middle of a step. */
static void time_in_which_nobody_polls_is_no_fault_of_the_device(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.extra = "polls=3", .checks = true});
    submit_many(4, 60, 20);
    for (int i = 0; i < 12; i++) {
        rig_turn(&rig);
        rig.now_ns += 6 * LL_NS_PER_S;
    }
    assert_int_equal(RIG_STAT(&rig, requests_failed), 0);
    rig_finish(&rig, 100000);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 4);
    rig_close(&rig);
}

static void a_nan_fails_its_request_and_no_other(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.extra = "polls=2,nan_at=5", .checks = true});
    submit_many(10, 60, 20);
    rig_finish(&rig, 2000);
    assert_int_equal(RIG_STAT(&rig, requests_failed), 1);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 9);
    rig_close(&rig);
}

static void a_drain_finishes_what_was_accepted_and_refuses_the_rest(void **state)
{
    (void)state;
    struct ll_mail mail;

    rig_open(&rig, &(struct rig_config){.n_device_slots = 4, .checks = true});
    submit_many(10, 60, 30);
    for (int i = 0; i < 10; i++)
        rig_turn(&rig);
    rig_mail(&rig, LL_MAIL_DRAIN, NULL, rig.now_ns + 10 * LL_NS_PER_S);
    for (int i = 0; i < 5; i++)
        rig_turn(&rig);
    assert_false(control_got(LL_MAIL_IDLE, &mail));
    struct rig_spec late = {.n_prompt = 10, .max_tokens = 10, .seed = 99};
    int slot = rig_submit(&rig, 0, &late);
    rig_finish(&rig, 2000);
    rig_turn(&rig);
    assert_int_equal(rig.client[0].request[slot].code, LL_E_DRAINING);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 10);
    assert_true(control_got(LL_MAIL_IDLE, &mail));
    assert_false(control_got(LL_MAIL_IDLE, &mail));
    rig_close(&rig);
}

/* No step under way is not idle: somebody waits for its reader. */
static void a_drain_is_not_over_while_a_reader_is_behind(void **state)
{
    (void)state;
    struct ll_mail mail;

    rig_open(&rig, &(struct rig_config){.checks = true});
    struct rig_spec spec = {.n_prompt = 30, .max_tokens = 900, .seed = 1};
    rig_submit(&rig, 0, &spec);
    for (int i = 0; i < 3000; i++)
        rig_turn(&rig);
    assert_int_equal(rig.engine.n_submitted, rig.engine.n_polled);
    rig_mail(&rig, LL_MAIL_DRAIN, NULL, rig.now_ns + 100 * LL_NS_PER_S);
    for (int i = 0; i < 100; i++)
        rig_turn(&rig);
    assert_false(control_got(LL_MAIL_IDLE, &mail));
    rig_finish(&rig, 10000);
    rig_turn(&rig);
    assert_int_equal(rig.client[0].request[0].n_got, 900);
    assert_true(control_got(LL_MAIL_IDLE, &mail));
    rig_close(&rig);
}

static void a_drain_past_its_time_fails_the_rest(void **state)
{
    (void)state;
    struct ll_mail mail;

    rig_open(&rig, &(struct rig_config){.n_device_slots = 4, .checks = true});
    submit_many(10, 60, 500);
    for (int i = 0; i < 10; i++)
        rig_turn(&rig);
    rig_mail(&rig, LL_MAIL_DRAIN, NULL, rig.now_ns + LL_NS_PER_MS);
    rig_finish(&rig, 2000);
    rig_turn(&rig);
    assert_int_equal(RIG_STAT(&rig, requests_failed), 10);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(rig.client[0].request[i].code, LL_E_DRAINING);
    assert_true(control_got(LL_MAIL_IDLE, &mail));
    rig_close(&rig);
}

static void what_can_never_fit_is_refused(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.n_pages = 4, .checks = true});
    struct rig_spec large = {.n_prompt = 200, .max_tokens = 100, .seed = 1};
    struct rig_spec exact = {.n_prompt = 148, .max_tokens = 100, .seed = 1};
    int a = rig_submit(&rig, 0, &large);
    int b = rig_submit(&rig, 0, &exact); /* 148 + 100 + 8 = 4 x 64 */
    rig_finish(&rig, 2000);
    assert_int_equal(rig.client[0].request[a].code, LL_E_NEVER_FITS);
    assert_int_equal(rig.client[0].request[b].n_got, 100);
    rig_close(&rig);
}

static void an_arrival_waits_for_the_running_step_only(void **state)
{
    (void)state;
    /* A step takes 100 turns of 10 us. Planned early, the step after it would be full already when
     * somebody arrives in its middle, and the first token would come 2.5 steps later. */
    rig_open(&rig, &(struct rig_config){.extra = "polls=100"});
    struct rig_spec steady = {.n_prompt = 30, .max_tokens = 400, .seed = 1};
    struct rig_spec arrival = {.n_prompt = 1, .max_tokens = 1, .seed = 2};
    rig_submit(&rig, 0, &steady);
    uint64_t worst_ns = 0;
    for (int round = 0; round < 20; round++) {
        uint64_t n_steps = RIG_STAT(&rig, steps);
        while (RIG_STAT(&rig, steps) < n_steps + 4)
            rig_turn(&rig);
        for (int i = 0; i < 50; i++)
            rig_turn(&rig);
        int slot = rig_submit(&rig, 0, &arrival);
        while (rig.client[0].request[slot].is_open) {
            rig_turn(&rig);
            rig_read(&rig, 0, UINT32_MAX);
        }
        const struct rig_request *r = &rig.client[0].request[slot];
        if (round > 2) /* the engine has seen some steps by then */
            worst_ns = ll_max_u64(worst_ns, r->first_ns - r->submit_ns);
    }
    assert_true(worst_ns <= 1700000); /* 1.5 steps and a little */
    rig_finish(&rig, 100000);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_client_that_dies_is_forgotten_and_others_go_on),
        cmocka_unit_test(a_domain_in_debt_is_watched_and_unwatched_later),
        cmocka_unit_test(a_client_that_says_bye_is_cancelled),
        cmocka_unit_test(a_client_whose_indices_lie_is_fenced),
        cmocka_unit_test(a_failing_step_tells_everybody_once),
        cmocka_unit_test(a_step_that_never_ends_is_a_failure),
        cmocka_unit_test(time_in_which_nobody_polls_is_no_fault_of_the_device),
        cmocka_unit_test(a_nan_fails_its_request_and_no_other),
        cmocka_unit_test(a_drain_finishes_what_was_accepted_and_refuses_the_rest),
        cmocka_unit_test(a_drain_is_not_over_while_a_reader_is_behind),
        cmocka_unit_test(a_drain_past_its_time_fails_the_rest),
        cmocka_unit_test(what_can_never_fit_is_refused),
        cmocka_unit_test(an_arrival_waits_for_the_running_step_only),
    };
    return cmocka_run_group_tests_name("runtime/engine faults", tests, NULL, NULL);
}
