/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_engine.c - the step loop on the fake backend: every token of every stream is
 * checked by the rig, whatever happens around it. Long random runs are in stress_engine.c. */
#include "tests/runtime/engine_fixture.h"

static void one_request_yields_the_expected_ids(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.checks = true});
    submit_many(1, 100, 40);
    rig_finish(&rig, 1000);
    assert_int_equal(rig.client[0].request[0].reason, LL_FINISH_LENGTH);
    assert_int_equal(rig.client[0].request[0].n_got, 40);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 1);
    assert_int_equal(RIG_STAT(&rig, output_tokens), 40);
    /* One prefill, then one token a step; nothing is submitted past the last. */
    assert_int_equal(RIG_STAT(&rig, steps), 40);
    rig_close(&rig);
}

static void one_token_of_one_token_is_enough(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.checks = true});
    struct rig_spec spec = {.n_prompt = 1, .max_tokens = 1, .seed = 3};
    rig_submit(&rig, 0, &spec);
    rig_finish(&rig, 100);
    assert_int_equal(RIG_STAT(&rig, steps), 1);
    rig_close(&rig);
}

static void a_request_may_fill_the_whole_context(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.context_max = 200, .checks = true});
    struct rig_spec spec = {.n_prompt = 150, .max_tokens = 50, .seed = 3};
    rig_submit(&rig, 0, &spec);
    rig_finish(&rig, 1000);
    assert_int_equal(rig.client[0].request[0].n_got, 50);
    rig_close(&rig);
}

static void many_sequences_at_once_yield_what_each_yields_alone(void **state)
{
    (void)state;
    static const uint32_t counts[] = {32, 256};
    for (size_t i = 0; i < LL_COUNT(counts); i++) {
        rig_open(&rig, &(struct rig_config){.n_clients = 4,
                                            .n_slots = 64,
                                            .n_device_slots = 256,
                                            .n_pages = 2048,
                                            .n_tokens_max = 2048});
        submit_many(counts[i], 60, 50);
        rig_finish(&rig, 20000);
        assert_int_equal(RIG_STAT(&rig, requests_finished), counts[i]);
        rig_close(&rig);
    }
}

static void two_steps_are_in_flight(void **state)
{
    (void)state;
    uint64_t most = 0;

    rig_open(&rig, &(struct rig_config){.extra = "polls=5"});
    submit_many(3, 60, 50);
    for (int i = 0; i < 200; i++) {
        rig_turn(&rig);
        most = ll_max_u64(most, rig.engine.n_submitted - rig.engine.n_polled);
    }
    assert_int_equal(most, 2);
    rig_finish(&rig, 2000);
    rig_close(&rig);
}

static void a_backend_of_depth_one_works_too(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.extra = "depth=1,polls=3", .checks = true});
    submit_many(8, 60, 30);
    rig_finish(&rig, 2000);
    rig_close(&rig);
}

static void end_ids_end_a_stream_while_the_next_row_is_in_flight(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.eos_permille = 100, .checks = true});
    for (uint32_t i = 0; i < 32; i++) {
        struct rig_spec spec = {.n_prompt = 20, .max_tokens = 200, .seed = i, .min_tokens = i % 9};
        if (i % 8 == 7)
            spec.flags = LL_REQ_IGNORE_EOS;
        rig_submit(&rig, 0, &spec);
    }
    rig_finish(&rig, 5000);
    uint32_t n_stopped = 0;
    for (uint32_t i = 0; i < 32; i++)
        n_stopped += rig.client[0].request[i].reason == LL_FINISH_STOP;
    assert_true(n_stopped >= 20);
    for (uint32_t i = 7; i < 32; i += 8)
        assert_int_equal(rig.client[0].request[i].reason, LL_FINISH_LENGTH);
    rig_close(&rig);
}

static void a_tiny_page_pool_preempts_and_loses_no_token(void **state)
{
    (void)state;
    /* 256 sequences of 3 to 4 pages each want some 900; there are 40. */
    rig_open(&rig, &(struct rig_config){.n_clients = 4,
                                        .n_slots = 64,
                                        .n_device_slots = 256,
                                        .n_pages = 40,
                                        .context_max = 512,
                                        .n_tokens_max = 1024});
    submit_many(256, 60, 100);
    rig_finish(&rig, 100000);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 256);
    assert_true(RIG_STAT(&rig, preemptions) > 10);
    rig_close(&rig);
}

static void a_tiny_token_budget_cuts_prompts(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.n_tokens_max = 5, .n_rows_max = 5, .checks = true});
    submit_many(8, 60, 10);
    rig_finish(&rig, 20000);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 8);
    assert_true(RIG_STAT(&rig, steps) > 8 * 60 / 5);
    rig_close(&rig);
}

static void prompt_logprobs_come_once_also_after_a_preemption(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.n_pages = 14, .n_tokens_max = 200, .checks = true});
    for (uint32_t i = 0; i < 6; i++) {
        struct rig_spec spec = {.n_prompt = 190,
                                .max_tokens = 90,
                                .seed = i,
                                .flags = LL_REQ_PROMPT_LOGPROBS,
                                .n_prompt_top = (uint8_t)(i % 3 * 10),
                                .n_top = (uint8_t)(i * 4)};
        rig_submit(&rig, 0, &spec);
    }
    rig_finish(&rig, 40000);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 6);
    assert_true(RIG_STAT(&rig, preemptions) > 0);
    rig_close(&rig);
}

static void a_small_event_ring_only_slows_its_streams(void **state)
{
    (void)state;
    /* 32 requests with 20 tops are 32 x 5 events a step; the ring holds 64. */
    rig_open(&rig, &(struct rig_config){.log2_events = 6, .checks = true});
    for (uint32_t i = 0; i < 32; i++) {
        struct rig_spec spec = {.n_prompt = 30, .max_tokens = 20, .seed = i, .n_top = 20};
        rig_submit(&rig, 0, &spec);
    }
    while (rig_n_open(&rig) > 0) {
        assert_true(rig_turn(&rig) >= 0);
        rig_read(&rig, 0, 3);
        assert_true(rig.now_ns < 60 * LL_NS_PER_S);
    }
    rig_finish(&rig, 100);
    assert_int_equal(RIG_STAT(&rig, requests_finished), 32);
    rig_close(&rig);
}

static void a_reader_that_stops_stalls_alone(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.n_clients = 2, .stall_ns = 100 * LL_NS_PER_MS});
    struct rig_spec slow = {.n_prompt = 30, .max_tokens = 900, .seed = 1};
    struct rig_spec quick = {.n_prompt = 30, .max_tokens = 900, .seed = 2};
    rig_submit(&rig, 0, &slow);
    rig_submit(&rig, 1, &quick);
    while (rig.client[1].n_open > 0) {
        rig_turn(&rig);
        rig_read(&rig, 1, UINT32_MAX);
        assert_true(rig.now_ns < 60 * LL_NS_PER_S);
    }
    assert_int_equal(rig.client[1].request[0].n_got, 900);
    while (RIG_STAT(&rig, requests_stalled) == 0) {
        rig_turn(&rig);
        assert_true(rig.now_ns < 60 * LL_NS_PER_S);
    }
    assert_int_equal(rig_read(&rig, 0, UINT32_MAX), LL_WINDOW_EVENTS + 1);
    assert_int_equal(rig.client[0].request[0].code, LL_E_STALLED);
    rig_finish(&rig, 100);
    rig_close(&rig);
}

static void a_reader_that_comes_back_gets_the_rest(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.checks = true});
    struct rig_spec spec = {.n_prompt = 30, .max_tokens = 900, .seed = 1};
    rig_submit(&rig, 0, &spec);
    for (int i = 0; i < 5000; i++)
        rig_turn(&rig);
    rig_finish(&rig, 10000);
    assert_int_equal(rig.client[0].request[0].n_got, 900);
    rig_close(&rig);
}

static void a_slow_reader_gives_its_pages_to_who_waits(void **state)
{
    (void)state;
    /* The slow one holds 6 of 8 pages; the other needs 4. */
    rig_open(&rig, &(struct rig_config){.n_clients = 2, .n_pages = 10, .context_max = 600});
    struct rig_spec slow = {.n_prompt = 100, .max_tokens = 450, .seed = 1};
    struct rig_spec other = {.n_prompt = 200, .max_tokens = 20, .seed = 2};
    rig_submit(&rig, 0, &slow);
    for (int i = 0; i < 2000; i++)
        rig_turn(&rig);
    rig_submit(&rig, 1, &other);
    while (rig.client[1].n_open > 0) {
        rig_turn(&rig);
        rig_read(&rig, 1, UINT32_MAX);
        assert_true(rig.now_ns < 5 * LL_NS_PER_S); /* long before it would stall */
    }
    assert_true(RIG_STAT(&rig, preemptions) >= 1);
    rig_finish(&rig, 10000);
    assert_int_equal(rig.client[0].request[0].n_got, 450);
    rig_close(&rig);
}

static void swapped_requests_yield_what_they_would_have_yielded(void **state)
{
    (void)state;
    /* Room for three of eight: all of them come and go. The rig knows what each must yield. */
    rig_open(&rig, &(struct rig_config){.n_pages = 20,
                                        .n_host_pages = 60,
                                        .always_swaps = true,
                                        .has_no_cache = true,
                                        .context_max = 600,
                                        .checks = true});
    for (uint32_t i = 0; i < 8; i++) {
        struct rig_spec spec = {.n_prompt = 150 + i,
                                .max_tokens = 250,
                                .flags = LL_REQ_IGNORE_EOS,
                                .seed = i + 1,
                                .n_top = i % 3};
        rig_submit(&rig, 0, &spec);
    }
    rig_finish(&rig, 60000);
    assert_true(RIG_STAT(&rig, preemptions_swapped) >= 3);
    assert_int_equal(RIG_STAT(&rig, preemptions), RIG_STAT(&rig, preemptions_swapped));
    /* Nothing was computed twice. */
    assert_int_equal(RIG_STAT(&rig, prefill_tokens), RIG_STAT(&rig, prompt_tokens));
    rig_close(&rig);
}

static void cancel_stop_and_deadline_end_a_request(void **state)
{
    (void)state;
    rig_open(&rig, &(struct rig_config){.n_device_slots = 2, .checks = true});
    struct rig_spec spec = {.n_prompt = 30, .max_tokens = 900, .seed = 1};
    int cancelled = rig_submit(&rig, 0, &spec);
    spec.seed = 2;
    int stopped = rig_submit(&rig, 0, &spec);
    for (int i = 0; i < 20; i++)
        rig_turn(&rig); /* they run before somebody comes who is in a hurry */
    spec.seed = 3;
    spec.deadline_ns = rig.now_ns + 5 * LL_NS_PER_MS;
    int expired_waiting = rig_submit(&rig, 0, &spec); /* no device slot for it */
    spec.seed = 4;
    int expired_running = rig_submit(&rig, 0, &spec);
    struct rig_request *r = rig.client[0].request;
    for (int i = 0; i < 100; i++) {
        rig_turn(&rig);
        rig_read(&rig, 0, UINT32_MAX);
    }
    assert_true(r[cancelled].n_got > 0 && r[stopped].n_got > 0);
    assert_int_equal(r[expired_waiting].n_got, 0);
    rig_cancel(&rig, 0, (uint32_t)cancelled);
    rig_stop(&rig, 0, (uint32_t)stopped);
    rig_finish(&rig, 2000);
    assert_int_equal(r[cancelled].reason, LL_FINISH_CANCELLED);
    assert_int_equal(r[stopped].reason, LL_FINISH_STOP);
    assert_int_equal(r[expired_waiting].code, LL_E_DEADLINE);
    assert_int_equal(r[expired_running].code, LL_E_DEADLINE);
    assert_int_equal(RIG_STAT(&rig, requests_expired), 2);
    rig_close(&rig);
}

static void cancels_at_random_moments_leave_nothing_behind(void **state)
{
    (void)state;
    uint64_t random = ll_test_seed();

    rig_open(&rig, &(struct rig_config){.n_pages = 30, .n_tokens_max = 128, .checks = true});
    for (int round = 0; round < 600; round++) {
        uint64_t r = ll_splitmix64(&random);
        struct rig_spec spec = {
            .n_prompt = 1 + r % 150, .max_tokens = 1 + r / 256 % 100, .seed = r};
        rig_submit(&rig, 0, &spec);
        uint32_t slot = (uint32_t)(r >> 20) % 32;
        if (rig.client[0].request[slot].is_open)
            rig_cancel(&rig, 0, slot);
        for (uint32_t i = 0; i < (r >> 40) % 8; i++)
            rig_turn(&rig);
        rig_read(&rig, 0, UINT32_MAX);
    }
    rig_finish(&rig, 20000);
    assert_true(RIG_STAT(&rig, requests_cancelled) > 50);
    rig_close(&rig);
}

/* ---- the loop itself, in a thread, on the real clock ------------------------------------------*/

static uint64_t real_clock(void *context)
{
    (void)context;
    return ll_now_ns();
}

static void *run_engine(void *result)
{
    *(int *)result = ll_engine_run(&rig.engine);
    return NULL;
}

static void wait_for(uint32_t n_finished)
{
    for (int i = 0; i < 5000 && RIG_STAT(&rig, requests_finished) < n_finished; i++)
        usleep(1000);
    assert_int_equal(RIG_STAT(&rig, requests_finished), n_finished);
}

/* Waits for the heart to beat; when it did. */
static uint64_t next_beat(void)
{
    uint64_t before_ns = atomic_load(&rig.info->heartbeat_ns), beat_ns = before_ns;

    for (int i = 0; i < 5000 && beat_ns == before_ns; i++) {
        usleep(1000);
        beat_ns = atomic_load(&rig.info->heartbeat_ns);
    }
    assert_true(beat_ns > before_ns);
    return beat_ns;
}

static void the_loop_sleeps_when_idle_and_wakes_when_kicked(void **state)
{
    (void)state;
    pthread_t thread;
    int result = 1;

    rig_open(&rig, &(struct rig_config){.extra = "step_us=50"});
    rig.engine.options.clock = real_clock;
    rig.engine.options.yields = true;
    rig.now_ns = ll_now_ns();
    assert_int_equal(pthread_create(&thread, NULL, run_engine, &result), 0);
    for (uint32_t round = 1; round <= 3; round++) {
        uint64_t n_sleeps = RIG_STAT(&rig, sleeps);
        for (int i = 0; i < 3000 && RIG_STAT(&rig, sleeps) == n_sleeps; i++)
            usleep(1000);
        assert_true(RIG_STAT(&rig, sleeps) > n_sleeps);
        /* G5: the heart beats in sleep. The shortest of some gaps, for machines with more to do. */
        uint64_t beat_ns = next_beat(), shortest_ns = UINT64_MAX;
        for (int i = 0; i < 20 && shortest_ns > 200 * LL_NS_PER_MS; i++) {
            uint64_t next_ns = next_beat();
            shortest_ns = ll_min_u64(shortest_ns, next_ns - beat_ns);
            beat_ns = next_ns;
        }
        assert_true(shortest_ns < 200 * LL_NS_PER_MS);
        struct rig_spec spec = {.n_prompt = 20, .max_tokens = 10, .seed = round};
        rig_submit(&rig, 0, &spec);
        ll_wait_kick(rig.info, rig.client[0].a.kick_fd);
        wait_for(round);
        rig_read(&rig, 0, UINT32_MAX);
        assert_int_equal(rig.client[0].n_open, 0);
        ll_wait_wake(rig.client[0].a.kick_fd); /* a kick that was not needed */
    }
    rig_mail(&rig, LL_MAIL_STOP, NULL, 0);
    assert_int_equal(pthread_join(thread, NULL), 0); /* after 100 ms at most: nobody kicked */
    assert_int_equal(result, 0);
    /* Nobody reads a kick: that would walk whatever its client has hung on it. */
    uint64_t n_kicks = 0;
    assert_int_equal(read(rig.client[0].a.kick_fd, &n_kicks, sizeof(n_kicks)), sizeof(n_kicks));
    assert_true(n_kicks >= 3);
    rig_close(&rig);
}

static void stopping_in_the_middle_tells_everybody(void **state)
{
    (void)state;
    pthread_t thread;
    int result = 1;

    rig_open(&rig, &(struct rig_config){.extra = "step_us=500"});
    rig.engine.options.clock = real_clock;
    rig.engine.options.yields = true;
    submit_many(8, 60, 900);
    assert_int_equal(pthread_create(&thread, NULL, run_engine, &result), 0);
    for (int i = 0; i < 5000 && RIG_STAT(&rig, steps) < 5; i++)
        usleep(1000);
    rig_mail(&rig, LL_MAIL_STOP, NULL, 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(result, 0);
    rig_read(&rig, 0, UINT32_MAX);
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(rig.client[0].request[i].code, LL_E_DRAINING);
    rig_free(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_request_yields_the_expected_ids),
        cmocka_unit_test(one_token_of_one_token_is_enough),
        cmocka_unit_test(a_request_may_fill_the_whole_context),
        cmocka_unit_test(many_sequences_at_once_yield_what_each_yields_alone),
        cmocka_unit_test(two_steps_are_in_flight),
        cmocka_unit_test(a_backend_of_depth_one_works_too),
        cmocka_unit_test(end_ids_end_a_stream_while_the_next_row_is_in_flight),
        cmocka_unit_test(a_tiny_page_pool_preempts_and_loses_no_token),
        cmocka_unit_test(a_tiny_token_budget_cuts_prompts),
        cmocka_unit_test(prompt_logprobs_come_once_also_after_a_preemption),
        cmocka_unit_test(a_small_event_ring_only_slows_its_streams),
        cmocka_unit_test(a_reader_that_stops_stalls_alone),
        cmocka_unit_test(a_reader_that_comes_back_gets_the_rest),
        cmocka_unit_test(a_slow_reader_gives_its_pages_to_who_waits),
        cmocka_unit_test(swapped_requests_yield_what_they_would_have_yielded),
        cmocka_unit_test(cancel_stop_and_deadline_end_a_request),
        cmocka_unit_test(cancels_at_random_moments_leave_nothing_behind),
        cmocka_unit_test(the_loop_sleeps_when_idle_and_wakes_when_kicked),
        cmocka_unit_test(stopping_in_the_middle_tells_everybody),
    };
    return cmocka_run_group_tests_name("runtime/engine", tests, NULL, NULL);
}
