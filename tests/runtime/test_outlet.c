/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_outlet.c - credits O1..O4, events, the one terminal event, ledger, wakes. */
#include "tests/runtime/desk.h"

static struct desk desk; /* large */

/* A running sequence of client 0, slot 0. */
static struct ll_seq *start(uint32_t n_sequences, uint32_t log2_events)
{
    desk_open(&desk, n_sequences, false);
    if (log2_events != 10) {
        assert_true(ll_intake_detach(&desk.intake, &desk.client[0].a, true) ||
                    (desk_turn(&desk), ll_intake_detach(&desk.intake, &desk.client[0].a, true)));
        close(desk.client[0].a.wake_fd);
        desk_attach(&desk, 0, log2_events, 32);
    }
    desk_submit(&desk, 0, 0, 10);
    desk_turn(&desk);
    struct ll_seq *seq = desk_seq(&desk, 0, 0);
    desk_run(&desk, seq);
    return seq;
}

static struct ll_yield yield_of(const struct ll_seq *seq, uint32_t n_tokens, uint32_t n_booked)
{
    struct ll_yield yield = {.seq = seq->index,
                             .n_tokens = n_tokens,
                             .index = seq->n_tokens - seq->n_prompt,
                             .n_booked = n_booked};

    for (uint32_t k = 0; k < n_tokens; k++) {
        yield.token[k] = 500 + k;
        yield.logprob[k] = -0.5f * (float)(k + 1);
    }
    return yield;
}

/* Books, yields n tokens and publishes. false: no credit. */
static bool step(struct ll_seq *seq, uint32_t n_tokens)
{
    uint32_t n = ll_outlet_row_events(seq, n_tokens, 0);
    struct ll_ext top[LL_ROW_TOKENS_MAX * LL_TOP_MAX];

    for (uint32_t i = 0; i < LL_COUNT(top); i++)
        top[i] = (struct ll_ext){i, -(float)i};
    if (!ll_outlet_book(&desk.outlet, seq, n, desk.now_ns))
        return false;
    struct ll_yield yield = yield_of(seq, n_tokens, n);
    yield.top = top;
    seq->n_tokens += n_tokens;
    ll_outlet_publish(&desk.outlet, &yield, 1, desk.now_ns);
    desk_check(&desk);
    return true;
}

static void row_events_counts_what_a_row_may_write(void **state)
{
    (void)state;
    struct ll_seq seq = {.n_top = 0};

    assert_int_equal(ll_outlet_row_events(&seq, 1, 0), 1);
    assert_int_equal(ll_outlet_row_events(&seq, 0, 0), 0);
    assert_int_equal(ll_outlet_row_events(&seq, 0, 10), 1);
    assert_int_equal(ll_outlet_row_events(&seq, 1, 11), 3);
    seq.n_top = 5;
    assert_int_equal(ll_outlet_row_events(&seq, 3, 0), 6);
    seq.n_top = 6;
    assert_int_equal(ll_outlet_row_events(&seq, 3, 0), 9);
    seq.n_prompt_top = 20;
    assert_int_equal(ll_outlet_row_events(&seq, 1, 3), 3 + 1 + 12);
}

static void rows_that_score_are_cut_to_fit(void **state)
{
    (void)state;

    for (uint32_t top = 0; top <= LL_TOP_MAX; top++)
        for (uint32_t prompt_top = 0; prompt_top <= LL_TOP_MAX; prompt_top++)
            for (uint32_t sampled = 0; sampled <= LL_ROW_TOKENS_MAX; sampled++) {
                struct ll_seq seq = {.n_top = (uint8_t)top, .n_prompt_top = (uint8_t)prompt_top};
                uint32_t n = ll_outlet_scored_max(&seq, sampled);
                assert_true(n >= 1);
                assert_true(ll_outlet_row_events(&seq, sampled, n) <= LL_OUTLET_ROW_EVENTS_MAX);
                assert_true(ll_outlet_row_events(&seq, sampled, n + 1) > LL_OUTLET_ROW_EVENTS_MAX);
            }
}

static void tokens_and_their_tops_arrive_in_order(void **state)
{
    (void)state;
    struct ll_seq *seq = start(4, 10);

    seq->n_top = 7;
    desk.now_ns += 5000;
    assert_true(step(seq, 2));
    for (uint32_t k = 0; k < 2; k++) {
        struct ll_event event = desk_read(&desk, 0);
        assert_int_equal(event.type, LL_EV_TOKEN);
        assert_int_equal(event.n, 1);
        assert_int_equal(event.index, k);
        assert_int_equal(event.slot, 0);
        assert_int_equal(event.gen, 1);
        assert_int_equal(event.t_ns, desk.now_ns);
        assert_int_equal(event.u.token.id, 500 + k);
        assert_true(event.u.token.logprob == -0.5f * (float)(k + 1));
        event = desk_read(&desk, 0);
        assert_int_equal(event.type, LL_EV_TOP);
        assert_int_equal(event.n, 5);
        assert_int_equal(event.flags, 0);
        assert_int_equal(event.u.top[4].id, 7 * k + 4);
        event = desk_read(&desk, 0);
        assert_int_equal(event.n, 2);
        assert_int_equal(event.index, k);
        assert_int_equal(event.flags, LL_EV_LAST);
        assert_int_equal(event.u.top[1].id, 7 * k + 6);
    }
    assert_false(desk_has_event(&desk, 0));
    assert_int_equal(seq->n_written, 6);
    assert_int_equal(DESK_STAT(&desk, events_written), 6);
    assert_int_equal(DESK_STAT(&desk, output_tokens), 2);
    desk_end(&desk, seq, LL_END_LENGTH);
    desk_publish_ends(&desk);
    desk_close(&desk);
}

static void prompt_logprobs_come_ten_an_event_with_their_tops(void **state)
{
    (void)state;
    struct ll_seq *seq = start(4, 10);
    struct ll_ext scored[13 * 7];

    seq->n_prompt_top = 6;
    for (uint32_t i = 0; i < LL_COUNT(scored); i++)
        scored[i] = (struct ll_ext){i, -(float)i};
    uint32_t n = ll_outlet_row_events(seq, 1, 13);
    assert_int_equal(n, 1 + 2 + 26);
    assert_true(ll_outlet_book(&desk.outlet, seq, n, desk.now_ns));
    struct ll_yield yield = yield_of(seq, 1, n);
    yield.n_scored = 13;
    yield.first_scored = 1;
    yield.scored = scored;
    seq->n_tokens++;
    ll_outlet_publish(&desk.outlet, &yield, 1, desk.now_ns);

    struct ll_event event = desk_read(&desk, 0);
    assert_int_equal(event.type, LL_EV_PROMPT);
    assert_int_equal(event.index, 1);
    assert_int_equal(event.n, 10);
    assert_true(event.u.prompt[9] == -63.0f);
    event = desk_read(&desk, 0);
    assert_int_equal(event.index, 11);
    assert_int_equal(event.n, 3);
    assert_true(event.u.prompt[0] == -70.0f);
    for (uint32_t k = 0; k < 13; k++) {
        event = desk_read(&desk, 0);
        assert_int_equal(event.type, LL_EV_PROMPT_TOP);
        assert_int_equal(event.index, 1 + k);
        assert_int_equal(event.n, 5);
        assert_int_equal(event.flags, 0);
        assert_int_equal(event.u.top[0].id, 7 * k + 1);
        event = desk_read(&desk, 0);
        assert_int_equal(event.n, 1);
        assert_int_equal(event.flags, LL_EV_LAST);
        assert_int_equal(event.u.top[0].id, 7 * k + 6);
    }
    assert_int_equal(desk_read(&desk, 0).type, LL_EV_TOKEN);
    desk_end(&desk, seq, LL_END_LENGTH);
    desk_publish_ends(&desk);
    desk_close(&desk);
}

static void each_end_is_told_once_in_its_own_words(void **state)
{
    (void)state;
    static const struct {
        enum ll_end end;
        uint8_t type; /* 0: nothing */
        int32_t code; /* reason or error */
        size_t column;
    } cases[] = {
#define COLUMN(name) offsetof(struct ll_stats, name)
        {LL_END_STOP, LL_EV_FINISH, LL_FINISH_STOP, COLUMN(requests_finished)},
        {LL_END_LENGTH, LL_EV_FINISH, LL_FINISH_LENGTH, COLUMN(requests_finished)},
        {LL_END_CANCELLED, LL_EV_FINISH, LL_FINISH_CANCELLED, COLUMN(requests_cancelled)},
        {LL_END_EXPIRED, LL_EV_ERROR, LL_E_DEADLINE, COLUMN(requests_expired)},
        {LL_END_STALLED, LL_EV_ERROR, LL_E_STALLED, COLUMN(requests_stalled)},
        {LL_END_FAILED, LL_EV_ERROR, LL_E_BACKEND, COLUMN(requests_failed)},
        {LL_END_LOST, 0, 0, COLUMN(requests_lost)},
    };

    for (size_t i = 0; i < LL_COUNT(cases); i++) {
        struct ll_seq *seq = start(4, 10);
        desk.now_ns += 3000000;
        assert_true(step(seq, 1));
        desk_read(&desk, 0);
        seq->stop_id = 77;
        seq->end_code = LL_E_BACKEND;
        seq->n_cached = 5;
        seq->n_in_flight = 1; /* told at once, free only when its row is back */
        desk_end(&desk, seq, cases[i].end);
        desk_publish_ends(&desk);
        desk_publish_ends(&desk);
        if (cases[i].type != 0) {
            struct ll_event event = desk_read(&desk, 0);
            assert_int_equal(event.type, cases[i].type);
            assert_int_equal(event.type == LL_EV_FINISH ? (int32_t)event.u.finish.reason
                                                        : event.u.error.code,
                             cases[i].code);
            if (event.type == LL_EV_FINISH) {
                assert_int_equal(event.u.finish.n_prompt, 10);
                assert_int_equal(event.u.finish.n_out, 1);
                assert_int_equal(event.u.finish.n_cached, 5);
                assert_int_equal(event.u.finish.ttft_us, 3000);
                assert_int_equal(event.u.finish.total_ns, 3000000);
                assert_int_equal(event.u.finish.stop_id,
                                 cases[i].end == LL_END_STOP ? 77 : UINT32_MAX);
            } else {
                assert_true(event.u.error.text[0] != 0);
            }
            assert_int_equal(atomic_load(&desk.client[0].rst[0].state), 1u << 8 | LL_PHASE_DONE);
            assert_int_equal(desk.client[0].rst[0].n_out, 1);
        }
        assert_false(desk_has_event(&desk, 0));
        const char *stats = (const char *)&desk.stats;
        assert_int_equal(
            ll_stat_get((const _Atomic uint64_t *)(const void *)(stats + cases[i].column)), 1);
        assert_int_equal(seq->state, LL_SEQ_ENDING);
        assert_int_equal(desk.client[0].a.credits_reserved, 0);
        seq->n_in_flight = 0;
        desk_publish_ends(&desk);
        assert_int_equal(seq->state, LL_SEQ_FREE);
        desk_close(&desk);
    }
}

static void a_call_tells_32_ends_and_the_next_goes_on(void **state)
{
    (void)state;
    desk_open(&desk, 50, false);
    for (uint32_t i = 0; i < 40; i++)
        desk_submit(&desk, i / 20, i % 20, 4);
    for (uint32_t turn = 0; turn < 4; turn++)
        desk_turn(&desk);
    for (uint32_t i = 0; i < 40; i++)
        desk_end(&desk, desk_seq(&desk, i / 20, i % 20), LL_END_LENGTH);
    desk_publish_ends(&desk);
    assert_int_equal(DESK_STAT(&desk, requests_finished), 32);
    assert_int_equal(desk.pool.list[LL_SEQ_ENDING].n, 8);
    desk_publish_ends(&desk);
    assert_int_equal(DESK_STAT(&desk, requests_finished), 40);
    assert_int_equal(desk.pool.list[LL_SEQ_FREE].n, 50);
    desk_close(&desk);
}

static void the_window_holds_256_events_not_taken(void **state)
{
    (void)state;
    struct ll_seq *seq = start(4, 10);
    struct desk_client *c = &desk.client[0];

    seq->max_tokens = 10000;
    for (uint32_t i = 0; i < LL_WINDOW_EVENTS; i++) {
        assert_true(step(seq, 1));
        desk_read(&desk, 0); /* read from the ring, not taken by the application */
    }
    desk.now_ns += 77;
    assert_false(step(seq, 1));
    assert_int_equal(seq->starved_ns, desk.now_ns);
    desk.now_ns += 77;
    assert_false(step(seq, 1));
    assert_int_equal(seq->starved_ns, desk.now_ns - 77); /* since the first time */
    atomic_store(&c->slot[0].taken, 1);
    assert_true(step(seq, 1));
    assert_int_equal(seq->starved_ns, 0);
    assert_false(step(seq, 1));
    atomic_store(&c->slot[0].taken, 257);
    for (uint32_t i = 0; i < LL_WINDOW_EVENTS; i++)
        assert_true(step(seq, 1));
    assert_false(step(seq, 1));
    desk_end(&desk, seq, LL_END_LENGTH); /* its reservation stands beside the window */
    desk_publish_ends(&desk);
    desk_close(&desk);
}

static void rows_in_flight_count_in_the_window(void **state)
{
    (void)state;
    struct ll_seq *seq = start(4, 10);

    for (uint32_t i = 0; i < 4; i++)
        assert_true(ll_outlet_book(&desk.outlet, seq, 64, desk.now_ns));
    assert_false(ll_outlet_book(&desk.outlet, seq, 1, desk.now_ns));
    assert_int_equal(desk.client[0].a.credits_reserved, 257);
    struct ll_yield yield = yield_of(seq, 0, 64); /* yielded nothing: the credits come back */
    ll_outlet_publish(&desk.outlet, &yield, 1, desk.now_ns);
    assert_true(ll_outlet_book(&desk.outlet, seq, 64, desk.now_ns));
    assert_int_equal(seq->n_booked, 256);
    for (uint32_t i = 0; i < 4; i++)
        ll_outlet_publish(&desk.outlet, &yield, 1, desk.now_ns);
    assert_int_equal(desk.client[0].a.credits_reserved, 1);
    desk_end(&desk, seq, LL_END_LENGTH);
    desk_publish_ends(&desk);
    desk_close(&desk);
}

static void a_full_ring_starves_rows_but_not_the_ends(void **state)
{
    (void)state;
    struct ll_seq *seq = start(8, 4); /* 16 events */

    desk_submit(&desk, 0, 1, 5);
    desk_turn(&desk); /* two terminal events are reserved: 14 are left */
    for (uint32_t i = 0; i < 14; i++)
        assert_true(step(seq, 1));
    assert_false(step(seq, 1));
    assert_false(ll_outlet_reserve(&desk.outlet, &desk.client[0].a, 1));
    struct ll_seq *second = desk_seq(&desk, 0, 1);
    desk_run(&desk, second);
    desk_end(&desk, seq, LL_END_LENGTH);
    desk_end(&desk, second, LL_END_CANCELLED);
    desk_publish_ends(&desk);
    for (uint32_t i = 0; i < 14; i++)
        assert_int_equal(desk_read(&desk, 0).type, LL_EV_TOKEN);
    assert_int_equal(desk_read(&desk, 0).type, LL_EV_FINISH);
    assert_int_equal(desk_read(&desk, 0).type, LL_EV_FINISH);
    assert_false(desk_has_event(&desk, 0));
    desk_close(&desk);
}

static void expect_fence(struct ll_seq *seq)
{
    struct ll_mail mail;

    assert_true(desk.client[0].a.is_fenced);
    assert_true(seq->is_lost);
    assert_true(ll_mailbox_take(&desk.to_control, &mail));
    assert_int_equal(mail.type, LL_MAIL_FENCED);
    assert_ptr_equal(mail.attachment, &desk.client[0].a);
    assert_int_equal((int64_t)mail.value, LL_E_PROTOCOL);
    assert_false(ll_mailbox_take(&desk.to_control, &mail));
    assert_int_equal(DESK_STAT(&desk, clients_fenced), 1);
    uint64_t n_before = DESK_STAT(&desk, events_written);
    desk_apply_marks(&desk);
    desk_publish_ends(&desk);
    assert_int_equal(DESK_STAT(&desk, events_written), n_before);
    assert_int_equal(DESK_STAT(&desk, requests_lost), 1);
}

static void indices_that_lie_fence_the_client(void **state)
{
    (void)state;
    static const uint64_t lies[] = {1, 17, UINT64_MAX, 1ull << 63};

    for (size_t i = 0; i < LL_COUNT(lies); i++) { /* events read: more than were written */
        struct ll_seq *seq = start(4, 4);
        atomic_store(&desk.client[0].hot.cons_pos, lies[i]);
        for (uint32_t k = 0; k < 15; k++) /* looked at only when the ring seems full */
            assert_true(step(seq, 1));
        atomic_store(&desk.client[0].hot.cons_pos, lies[i] == 1 ? 16 : lies[i]);
        assert_false(step(seq, 1));
        expect_fence(seq);
        desk_close(&desk);
    }
    static const uint32_t takes[] = {257, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < LL_COUNT(takes); i++) { /* taken: more than were written */
        struct ll_seq *seq = start(4, 10);
        for (uint32_t k = 0; k < LL_WINDOW_EVENTS; k++)
            assert_true(step(seq, 1));
        atomic_store(&desk.client[0].slot[0].taken, takes[i]);
        assert_false(step(seq, 1));
        expect_fence(seq);
        desk_close(&desk);
    }
}

static void a_fenced_client_gets_no_credit(void **state)
{
    (void)state;
    struct ll_seq *seq = start(4, 10);

    assert_true(step(seq, 1));
    ll_outlet_fence(&desk.outlet, &desk.client[0].a, LL_E_PROTOCOL);
    assert_false(ll_outlet_reserve(&desk.outlet, &desk.client[0].a, 1));
    assert_false(ll_outlet_book(&desk.outlet, seq, 1, desk.now_ns));
    expect_fence(seq);
    desk_close(&desk);
}

static void a_backend_failure_tells_everybody_once(void **state)
{
    (void)state;
    struct ll_seq *seq = start(8, 10);

    desk_submit(&desk, 0, 1, 5);     /* waits */
    desk_submit(&desk, 1, 0, 60000); /* still being copied */
    desk_turn(&desk);
    seq->n_in_flight = 2;
    ll_outlet_fail_all(&desk.outlet, LL_E_BACKEND, desk.now_ns);
    ll_outlet_fail_all(&desk.outlet, LL_E_BACKEND, desk.now_ns);
    desk_expect_error(&desk, 0, 0, LL_E_BACKEND, "the device failed");
    desk_expect_error(&desk, 0, 1, LL_E_BACKEND, NULL);
    desk_expect_error(&desk, 1, 0, LL_E_BACKEND, NULL);
    assert_false(desk_has_event(&desk, 0) || desk_has_event(&desk, 1));
    assert_int_equal(DESK_STAT(&desk, requests_failed), 3);
    desk_close(&desk);
}

static uint64_t wakes_of(uint32_t i)
{
    uint64_t n = 0;

    return read(desk.client[i].a.wake_fd, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

static void only_sleepers_that_got_events_are_woken(void **state)
{
    (void)state;
    struct ll_seq *seq = start(4, 10);

    ll_wait_arm(&desk.client[0].hot);
    ll_wait_arm(&desk.client[1].hot); /* sleeps, but nothing comes for it */
    assert_true(step(seq, 1));
    assert_true(step(seq, 1));
    ll_outlet_wake(&desk.outlet);
    assert_int_equal(wakes_of(0), 1);
    assert_int_equal(wakes_of(1), 0);
    assert_int_equal(DESK_STAT(&desk, wakes_sent), 1);
    assert_true(step(seq, 1)); /* awake now: nothing to send */
    ll_outlet_wake(&desk.outlet);
    assert_int_equal(wakes_of(0), 0);
    assert_int_equal(atomic_load(&desk.client[0].rsp_head.prod_pos), 3);
    desk_end(&desk, seq, LL_END_LENGTH);
    desk_publish_ends(&desk);
    desk_close(&desk);
}

/* Clocks by which everything that is timed takes slow_ns, and spent_ns of the CPU. */
static uint64_t slow_now_ns, slow_ns, spent_now_ns, spent_ns;

static uint64_t slow_clock(void *context)
{
    (void)context;
    return slow_now_ns += slow_ns;
}

static uint64_t spent_clock(void *context)
{
    (void)context;
    return spent_now_ns += spent_ns;
}

static void wake_after_a_step(uint32_t i, struct ll_seq *seq)
{
    ll_wait_arm(&desk.client[i].hot);
    assert_true(step(seq, 1));
    ll_outlet_wake(&desk.outlet);
}

static void a_domain_whose_wakes_are_slow_is_woken_late_and_no_other(void **state)
{
    (void)state;
    desk_open(&desk, 4, true);
    slow_now_ns = desk.now_ns;
    slow_ns = 0;
    desk.outlet.clock = (struct ll_debt_clock){.now = slow_clock, .spent = spent_clock};
    desk_submit(&desk, 0, 0, 4);
    desk_submit(&desk, 1, 0, 4);
    desk_turn(&desk);
    struct ll_seq *slow = desk_seq(&desk, 0, 0), *other = desk_seq(&desk, 1, 0);
    slow->max_tokens = other->max_tokens = 100;
    desk_run(&desk, slow);
    desk_run(&desk, other);

    slow_ns = 8 * LL_NS_PER_MS; /* the CPU was somebody else's: no fault of the client's */
    spent_ns = 0;
    for (int i = 0; i < 5; i++) {
        wake_after_a_step(0, slow);
        assert_int_equal(wakes_of(0), 1);
    }
    spent_ns = slow_ns; /* now and then that may happen to anybody */
    wake_after_a_step(0, slow);
    assert_int_equal(wakes_of(0), 1);
    wake_after_a_step(0, slow);
    assert_int_equal(wakes_of(0), 1);
    slow_ns = spent_ns = 0;
    wake_after_a_step(0, slow); /* 16 ms of debt */
    wake_after_a_step(0, slow);
    assert_int_equal(wakes_of(0), 0);
    wake_after_a_step(1, other);
    assert_int_equal(wakes_of(1), 1);
    assert_int_equal(desk.outlet.n_touched, 1);
    slow_now_ns += 2 * LL_NS_PER_S; /* pays off 10 ms: no new event is needed for the wake */
    ll_outlet_wake(&desk.outlet);
    assert_int_equal(wakes_of(0), 1);
    assert_int_equal(desk.outlet.n_touched, 0);
    desk_end(&desk, slow, LL_END_LENGTH);
    desk_end(&desk, other, LL_END_LENGTH);
    desk_publish_ends(&desk);
    desk_close(&desk);
}

static void gauges_and_phases_follow_a_request(void **state)
{
    (void)state;
    struct ll_seq *seq = start(4, 10);

    desk_publish_ends(&desk);
    assert_int_equal(DESK_STAT(&desk, requests_running), 1);
    assert_int_equal(DESK_STAT(&desk, requests_waiting), 0);
    assert_int_equal(DESK_STAT(&desk, tokens_waiting), 0);
    assert_int_equal(DESK_STAT(&desk, sequences_free), 3);
    assert_int_equal(atomic_load(&desk.client[0].rst[0].state), 1u << 8 | LL_PHASE_RUNNING);
    assert_int_equal(ll_stat_get(&desk.stats.queue_ns.count), 1);
    seq->device_slot = LL_NONE;
    ll_seq_move(&desk.pool, seq, LL_SEQ_WAITING); /* preempted and back: queued once */
    desk_run(&desk, seq);
    assert_int_equal(ll_stat_get(&desk.stats.queue_ns.count), 1);
    assert_true(step(seq, 1));
    assert_true(step(seq, 1));
    assert_int_equal(ll_stat_get(&desk.stats.ttft_ns.count), 1);
    assert_int_equal(ll_stat_get(&desk.stats.token_gap_ns.count), 1);
    desk_end(&desk, seq, LL_END_LENGTH);
    desk_publish_ends(&desk);
    assert_int_equal(ll_stat_get(&desk.stats.output_length.max), 2);
    assert_int_equal(ll_stat_get(&desk.stats.prompt_length.max), 10);
    assert_int_equal(DESK_STAT(&desk, requests_running), 0);
    desk_close(&desk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_events_counts_what_a_row_may_write),
        cmocka_unit_test(rows_that_score_are_cut_to_fit),
        cmocka_unit_test(tokens_and_their_tops_arrive_in_order),
        cmocka_unit_test(prompt_logprobs_come_ten_an_event_with_their_tops),
        cmocka_unit_test(each_end_is_told_once_in_its_own_words),
        cmocka_unit_test(a_call_tells_32_ends_and_the_next_goes_on),
        cmocka_unit_test(the_window_holds_256_events_not_taken),
        cmocka_unit_test(rows_in_flight_count_in_the_window),
        cmocka_unit_test(a_full_ring_starves_rows_but_not_the_ends),
        cmocka_unit_test(indices_that_lie_fence_the_client),
        cmocka_unit_test(a_fenced_client_gets_no_credit),
        cmocka_unit_test(a_backend_failure_tells_everybody_once),
        cmocka_unit_test(only_sleepers_that_got_events_are_woken),
        cmocka_unit_test(a_domain_whose_wakes_are_slow_is_woken_late_and_no_other),
        cmocka_unit_test(gauges_and_phases_follow_a_request),
    };
    return cmocka_run_group_tests_name("runtime/outlet", tests, NULL, NULL);
}
