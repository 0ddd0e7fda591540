/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_intake.c - from doorbell to WAITING: N1..N4, refusals, marks, sweeps, repair,
 * quarantine, and what hostile or dying clients can do to it. */
#include "tests/runtime/desk.h"

#include <math.h>

static struct desk desk; /* large */

/* Ends everything that is open, so that desk_close() finds the desk clean. */
static void clear(void)
{
    for (uint32_t i = 0; i < desk.pool.n; i++) {
        struct ll_seq *seq = &desk.pool.seq[i];
        if (seq->state == LL_SEQ_WAITING || seq->state == LL_SEQ_RUNNING)
            desk_end(&desk, seq, LL_END_CANCELLED);
    }
    desk_publish_ends(&desk);
    desk_close(&desk);
}

static void a_request_is_copied_whole_and_waits(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    struct ll_req *req = desk_fill(&desk, 1, 3, 100);
    struct ll_bias *bias = (struct ll_bias *)(void *)&desk.client[1].arena[4096];
    bias[0] = (struct ll_bias){7, 1.5f};
    bias[1] = (struct ll_bias){999, -100.0f};
    req->bias_off = 4096, req->n_bias = 2, req->seed = 99, req->temperature = 0.5f;
    desk_publish(&desk, 1, 3);
    assert_int_equal(desk_turn(&desk), 0); /* no doorbell, no sweep due */
    desk_word(&desk, 1, LL_OP_SUBMIT, 3);
    assert_true(desk_turn(&desk) > 0);

    struct ll_seq *seq = desk_seq(&desk, 1, 3);
    assert_int_equal(seq->state, LL_SEQ_WAITING);
    assert_int_equal(seq->client, 1);
    assert_int_equal(seq->slot, 3);
    assert_int_equal(seq->gen, 1);
    assert_int_equal(seq->tag, 103);
    assert_int_equal(seq->n_prompt, 100);
    assert_int_equal(seq->n_tokens, 100);
    assert_int_equal(seq->max_tokens, 50);
    assert_int_equal(seq->seed, 99);
    assert_int_equal(seq->t_seen_ns, desk.now_ns);
    for (uint32_t k = 0; k < 100; k++)
        assert_int_equal(seq->token[k], (k * 7 + 3) % DESK_VOCAB);
    assert_memory_equal(seq->bias, bias, sizeof(*bias) * 2);
    assert_int_equal(atomic_load(&desk.client[1].rst[3].state), 1u << 8 | LL_PHASE_ACCEPTED);
    memset(desk.client[1].arena, 0xff, 8192); /* the client's again: the copy stays */
    assert_int_equal(seq->token[99], 99 * 7 + 3);
    assert_int_equal(desk.outlet.waiting.n_tokens, 100);
    assert_int_equal(DESK_STAT(&desk, requests_accepted), 1);
    assert_int_equal(DESK_STAT(&desk, prompt_tokens), 100);
    clear();
}

static void a_long_prompt_takes_64_kib_a_turn(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    desk_submit(&desk, 0, 0, 50000); /* 200,000 bytes: 4 turns */
    desk_submit(&desk, 1, 0, 10);    /* behind it */
    for (uint32_t turn = 1; turn <= 3; turn++) {
        desk_turn(&desk);
        struct ll_seq *seq = desk_seq(&desk, 0, 0);
        assert_int_equal(seq->state, LL_SEQ_INTAKE);
        assert_int_equal(seq->n_copied, turn * LL_INTAKE_BYTES_TURN / 4);
        assert_int_equal(desk_seq(&desk, 1, 0)->state, LL_SEQ_INTAKE);
        assert_false(ll_intake_is_quiet(&desk.intake));
    }
    desk_turn(&desk);
    assert_int_equal(desk_seq(&desk, 0, 0)->state, LL_SEQ_WAITING);
    assert_int_equal(desk_seq(&desk, 1, 0)->state, LL_SEQ_WAITING);
    for (uint32_t k = 0; k < 50000; k++)
        assert_int_equal(desk_seq(&desk, 0, 0)->token[k], k * 7 % DESK_VOCAB);
    assert_true(ll_intake_is_quiet(&desk.intake));
    clear();
}

static void a_turn_takes_16_words(void **state)
{
    (void)state;
    desk_open(&desk, 80, false);
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t slot = 0; slot < 20; slot++)
            desk_submit(&desk, i, slot, 4);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, doorbells), 16);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, doorbells), 32);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, doorbells), 40);
    assert_int_equal(desk.pool.list[LL_SEQ_WAITING].n, 40);
    /* in the order they came */
    uint32_t index = desk.pool.list[LL_SEQ_WAITING].first;
    for (uint32_t n = 0; n < 40; n++, index = desk.pool.seq[index].next)
        assert_int_equal(desk.pool.seq[index].tag, 100 * (n / 20) + n % 20);
    clear();
}

static void what_the_gate_refuses_is_told_and_forgotten(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    struct ll_req *req = desk_fill(&desk, 0, 0, 10);
    req->temperature = NAN;
    desk_publish(&desk, 0, 0);
    desk_word(&desk, 0, LL_OP_SUBMIT, 0);
    desk_turn(&desk);
    desk_expect_error(&desk, 0, 0, LL_E_INVAL, "temperature: 0 to 2");

    desk_fill(&desk, 0, 0, 30000);
    ((uint32_t *)(void *)desk.client[0].arena)[29999] = DESK_VOCAB; /* in the second piece */
    desk_publish(&desk, 0, 0);
    desk_word(&desk, 0, LL_OP_SUBMIT, 0);
    desk_turn(&desk);
    assert_false(desk_has_event(&desk, 0));
    desk_turn(&desk);
    desk_expect_error(&desk, 0, 0, LL_E_INVAL, "prompt[29999]: below 1000");

    req = desk_fill(&desk, 0, 0, 10);
    req->n_bias = 1, req->bias_off = 4096;
    *(struct ll_bias *)(void *)&desk.client[0].arena[4096] = (struct ll_bias){3, INFINITY};
    desk_publish(&desk, 0, 0);
    desk_word(&desk, 0, LL_OP_SUBMIT, 0);
    desk_turn(&desk);
    desk_expect_error(&desk, 0, 0, LL_E_INVAL, "bias[0]: -100 to 100");

    req = desk_fill(&desk, 0, 0, 10);
    req->prompt_off = DESK_ARENA - 36;
    desk_publish(&desk, 0, 0);
    desk_word(&desk, 0, LL_OP_SUBMIT, 0);
    desk_turn(&desk);
    desk_expect_error(&desk, 0, 0, LL_E_INVAL, "prompt: not in the arena");

    assert_int_equal(DESK_STAT(&desk, requests_submitted), 4);
    assert_int_equal(DESK_STAT(&desk, requests_rejected), 4);
    assert_int_equal(desk.pool.list[LL_SEQ_FREE].n, 8);
    assert_int_equal(desk.outlet.waiting.n_tokens, 0);
    desk_submit(&desk, 0, 0, 10); /* the slot is good as new */
    desk_turn(&desk);
    assert_int_equal(desk_seq(&desk, 0, 0)->state, LL_SEQ_WAITING);
    clear();
}

static void a_full_queue_answers_busy_with_a_time(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    desk.outlet.waiting.n_max = 2;
    for (uint32_t slot = 0; slot < 3; slot++)
        desk_submit(&desk, 0, slot, 10);
    desk_turn(&desk);
    struct ll_event event = desk_read(&desk, 0);
    assert_int_equal(event.u.error.code, LL_E_BUSY);
    assert_int_equal(event.slot, 2);
    assert_true(event.u.error.retry_ms >= 100 && event.u.error.retry_ms <= 10000);
    assert_string_equal(event.u.error.text, "requests waiting: too many");

    desk.outlet.waiting.n_max = 8;
    desk.outlet.waiting.tokens_max = 100;
    desk_submit(&desk, 1, 0, 81); /* 20 wait already */
    desk_submit(&desk, 1, 1, 80);
    desk_turn(&desk);
    desk_expect_error(&desk, 1, 0, LL_E_BUSY, "tokens waiting: too many");
    assert_int_equal(desk_seq(&desk, 1, 1)->state, LL_SEQ_WAITING);
    clear();

    desk_open(&desk, 2, false); /* the pool itself is the limit */
    for (uint32_t slot = 0; slot < 3; slot++)
        desk_submit(&desk, 0, slot, 10);
    desk_turn(&desk);
    desk_expect_error(&desk, 0, 2, LL_E_BUSY, NULL);
    clear();

    desk_open(&desk, 2, false); /* alone, a request of any length is taken */
    desk.outlet.waiting.tokens_max = 100;
    desk_submit(&desk, 0, 0, 500);
    desk_turn(&desk);
    assert_int_equal(desk_seq(&desk, 0, 0)->state, LL_SEQ_WAITING);
    clear();
}

/* Takes what is there; how many of a client's slots [from, to) were told that it is too much. */
static uint32_t count_busy(uint32_t client, uint32_t from, uint32_t to, uint32_t n_prompt)
{
    uint32_t n_busy = 0;

    for (uint32_t slot = from; slot < to; slot++)
        desk_submit(&desk, client, slot, n_prompt);
    desk_turn(&desk);
    while (desk_has_event(&desk, client)) {
        struct ll_event event = desk_read(&desk, client);
        assert_int_equal(event.u.error.code, LL_E_BUSY);
        assert_true(event.u.error.retry_ms >= 100);
        n_busy++;
    }
    return n_busy;
}

static void a_domain_leaves_room_for_others(void **state)
{
    (void)state;
    desk_open(&desk, 16, true);
    desk.outlet.waiting.n_max = 12;
    assert_int_equal(desk.intake.n_domains, DESK_CLIENTS);
    assert_int_equal(count_busy(0, 0, 12, 10), 6); /* half */
    assert_int_equal(count_busy(1, 0, 12, 10), 9); /* half of what was left */
    assert_int_equal(count_busy(1, 3, 6, 10), 3);
    assert_int_equal(count_busy(2, 0, 1, 10), 0); /* and there is room */
    assert_int_equal(count_busy(2, 1, 4, 10), 2);
    assert_int_equal(count_busy(0, 6, 8, 10), 2); /* not for who has more than is free */
    clear();

    desk_open(&desk, 16, true); /* tokens */
    desk.outlet.waiting.tokens_max = 1000;
    assert_int_equal(count_busy(0, 0, 9, 100), 4);
    assert_int_equal(count_busy(1, 0, 1, 500), 0); /* has nothing waiting */
    assert_int_equal(count_busy(1, 1, 2, 1), 1);
    clear();

    desk_open(&desk, 16, true); /* another share: 80 % of 10 */
    desk.outlet.waiting.n_max = 10;
    desk.intake.waiting_share = 80;
    assert_int_equal(count_busy(0, 0, 10, 10), 2);
    desk.intake.waiting_share = 100;
    assert_int_equal(count_busy(0, 8, 12, 10), 3); /* a place for another tenant of it */
    clear();

    desk_open(&desk, 16, true); /* a small one is no reason to refuse the first */
    desk.outlet.waiting.n_max = 10;
    desk.intake.waiting_share = 5;
    assert_int_equal(count_busy(0, 0, 3, 10), 2);
    assert_int_equal(count_busy(1, 0, 3, 10), 2);
    clear();

    desk_open(&desk, 16, false); /* one domain has it all */
    desk.outlet.waiting.n_max = 12;
    assert_int_equal(count_busy(0, 0, 14, 10), 3); /* but for a place for another tenant */
    clear();
}

static void a_drain_refuses_new_requests(void **state)
{
    (void)state;
    desk_open(&desk, 8, false); /* also those of who has nothing open */
    desk.intake.is_draining = true;
    desk_submit(&desk, 0, 0, 10);
    desk_turn(&desk);
    desk_expect_error(&desk, 0, 0, LL_E_DRAINING, NULL);
    clear();
    desk_open(&desk, 8, false);
    desk_submit(&desk, 0, 0, 10);
    desk_turn(&desk);
    desk.intake.is_draining = true;
    desk_submit(&desk, 0, 1, 10);
    desk_turn(&desk);
    desk_expect_error(&desk, 0, 1, LL_E_DRAINING, "the runtime is stopping");
    assert_int_equal(desk_seq(&desk, 0, 0)->state, LL_SEQ_WAITING);
    clear();
}

static void cancel_and_stop_set_marks(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    desk_submit(&desk, 0, 0, 10);
    desk_submit(&desk, 0, 1, 10);
    desk_turn(&desk);
    atomic_store(&desk.client[0].slot[0].cancel_gen, 2);     /* another generation's */
    atomic_store(&desk.client[0].slot[1].stop_choice[0], 2); /* another choice's */
    desk_word(&desk, 0, LL_OP_CANCEL, 0);
    desk_word(&desk, 0, LL_OP_STOP, 1);
    desk_turn(&desk);
    assert_false(desk_seq(&desk, 0, 0)->is_cancelled);
    assert_false(desk_seq(&desk, 0, 1)->is_stopped);
    atomic_store(&desk.client[0].slot[0].cancel_gen, 1);
    atomic_store(&desk.client[0].slot[1].stop_choice[0], 1);
    desk_word(&desk, 0, LL_OP_CANCEL, 0);
    desk_word(&desk, 0, LL_OP_STOP, 1);
    desk_turn(&desk);
    assert_true(desk_seq(&desk, 0, 0)->is_cancelled);
    assert_true(desk_seq(&desk, 0, 1)->is_stopped);
    desk_apply_marks(&desk);
    desk_publish_ends(&desk);
    assert_int_equal(desk_read(&desk, 0).u.finish.reason, LL_FINISH_CANCELLED);
    assert_int_equal(desk_read(&desk, 0).u.finish.reason, LL_FINISH_STOP);
    desk_word(&desk, 0, LL_OP_CANCEL, 0); /* too late: dropped */
    desk_turn(&desk);
    assert_false(desk_has_event(&desk, 0));
    clear();
}

static void a_cancel_while_the_prompt_is_copied_ends_it(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    desk_submit(&desk, 0, 0, 60000);
    desk_turn(&desk);
    assert_int_equal(desk_seq(&desk, 0, 0)->state, LL_SEQ_INTAKE);
    atomic_store(&desk.client[0].slot[0].cancel_gen, 1);
    desk_word(&desk, 0, LL_OP_CANCEL, 0);
    desk_turn(&desk);
    desk_publish_ends(&desk);
    struct ll_event event = desk_read(&desk, 0);
    assert_int_equal(event.type, LL_EV_FINISH);
    assert_int_equal(event.u.finish.reason, LL_FINISH_CANCELLED);
    assert_int_equal(event.u.finish.n_out, 0);
    assert_int_equal(DESK_STAT(&desk, requests_accepted), 1);
    assert_int_equal(DESK_STAT(&desk, requests_cancelled), 1);
    assert_int_equal(desk.outlet.waiting.n_tokens, 0);
    clear();
}

static void a_cancel_that_comes_with_the_request_counts(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    struct ll_req *req = desk_fill(&desk, 0, 0, 10);
    atomic_store(&req->cancel_gen, 1);
    desk_publish(&desk, 0, 0);
    desk_word(&desk, 0, LL_OP_CANCEL, 0); /* the submit's word is lost: the slot is the truth */
    desk_turn(&desk);
    desk_publish_ends(&desk);
    assert_int_equal(desk_read(&desk, 0).u.finish.reason, LL_FINISH_CANCELLED);
    clear();
}

static void a_sweep_finds_what_no_word_announced(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    desk_fill(&desk, 2, 5, 10);
    desk_publish(&desk, 2, 5);
    uint64_t sweeps = DESK_STAT(&desk, sweeps);
    for (int i = 0; i < 100; i++)
        desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, sweeps), sweeps); /* 0.1 ms later: not yet */
    desk.now_ns += LL_INTAKE_SWEEP_NS;
    desk_turn(&desk);
    /* One client differed and is scanned, and one whose turn it was. */
    assert_int_equal(DESK_STAT(&desk, sweeps), sweeps + 2);
    assert_int_equal(DESK_STAT(&desk, sweeps_found), 1);
    assert_int_equal(desk_seq(&desk, 2, 5)->state, LL_SEQ_WAITING);

    /* a cancel whose word is lost is found too, and asked for it comes at once */
    atomic_store(&desk.client[2].slot[5].cancel_gen, 1);
    desk_count(&desk, 2);
    ll_intake_sweep(&desk.intake, &desk.client[2].a);
    desk_turn(&desk);
    assert_true(desk_seq(&desk, 2, 5)->is_cancelled);
    sweeps = DESK_STAT(&desk, sweeps);
    desk.now_ns += LL_INTAKE_SWEEP_NS;
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, sweeps), sweeps + 1); /* counts agree again */
    clear();
}

static void a_forged_word_does_not_hide_a_lost_one(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    desk_turn(&desk);
    desk_fill(&desk, 2, 5, 10);
    desk_publish(&desk, 2, 5);            /* its word is lost ... */
    desk_word(&desk, 2, LL_OP_SUBMIT, 4); /* ... and a peer has sent one in its name */
    for (uint32_t i = 0; i < DESK_CLIENTS; i++) {
        desk.now_ns += LL_INTAKE_SWEEP_NS;
        desk_turn(&desk);
    }
    assert_int_equal(desk_seq(&desk, 2, 5)->state, LL_SEQ_WAITING);
    clear();
}

static void a_repaired_bell_loses_no_request(void **state)
{
    (void)state;
    desk_open(&desk, 80, false);
    desk_turn(&desk);
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t slot = 0; slot < 5; slot++)
            desk_submit(&desk, round, slot, 4);
        for (uint32_t word = 0; word < 256; word++) /* somebody of the domain scribbles */
            atomic_store(&desk.bell[0].head->word[word], 0x123456789abcdef0ull * (word + 1));
        assert_false(ll_intake_is_quiet(&desk.intake));
        for (int i = 0; i < 3; i++)
            desk_turn(&desk);
        assert_int_equal(DESK_STAT(&desk, bell_repairs), round + 1);
        assert_int_equal(desk.pool.list[LL_SEQ_WAITING].n, 5 * (round + 1));
    }
    /* Not believed any more: served by the 1 ms sweep, words are not looked at. */
    assert_true(desk.domain[0].is_swept_only);
    uint64_t doorbells = DESK_STAT(&desk, doorbells);
    desk_submit(&desk, 0, 20, 4);
    assert_false(ll_intake_is_quiet(&desk.intake));
    desk.now_ns += LL_INTAKE_SWEEP_FAST_NS;
    desk_turn(&desk);
    assert_int_equal(desk_seq(&desk, 0, 20)->state, LL_SEQ_WAITING);
    assert_int_equal(DESK_STAT(&desk, doorbells), doorbells);
    assert_true(ll_intake_is_quiet(&desk.intake));
    clear();
}

static void stale_doubled_and_foreign_words_change_nothing(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    desk_submit(&desk, 0, 0, 10);
    desk_word(&desk, 0, LL_OP_SUBMIT, 0);
    desk_turn(&desk);
    desk_word(&desk, 0, LL_OP_SUBMIT, 0); /* doubled */
    desk_word(&desk, 0, LL_OP_SUBMIT, 9); /* of a free slot */
    desk_fill(&desk, 0, 1, 10);
    desk_publish(&desk, 0, 1); /* there, but announced by a word of another incarnation only */
    assert_true(ll_bell_push(&desk.bell[0], ll_word_pack(LL_OP_SUBMIT, 0, 77, 1)));  /* stale */
    assert_true(ll_bell_push(&desk.bell[0], ll_word_pack(LL_OP_SUBMIT, 500, 1, 1))); /* nobody */
    assert_true(ll_bell_push(&desk.bell[0], ll_word_pack(LL_OP_SUBMIT, 0, 1, 1000)));
    assert_true(
        ll_bell_push(&desk.bell[0], ll_word_pack(LL_OP_SUBMIT, 0, 1, desk.client[0].a.n_slots)));
    assert_true(ll_bell_push(&desk.bell[0], ll_word_pack(3, 0, 1, 1))); /* no such op */
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, requests_submitted), 1);
    assert_int_equal(DESK_STAT(&desk, doorbells_bad), 6);
    assert_int_equal(desk.client[0].a.n_malformed, 3); /* no such slot twice, no such op */
    assert_int_equal(desk.pool.list[LL_SEQ_WAITING].n, 1);
    clear();

    desk_open(&desk, 8, true); /* isolated: a word in a foreign bell is nobody's */
    desk_fill(&desk, 1, 0, 10);
    desk_publish(&desk, 1, 0);
    assert_true(ll_bell_push(&desk.bell[0], ll_word_pack(LL_OP_SUBMIT, 1, 1, 0)));
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, requests_submitted), 0);
    assert_int_equal(DESK_STAT(&desk, doorbells_bad), 1);
    desk_word(&desk, 1, LL_OP_SUBMIT, 0);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, requests_accepted), 1);
    clear();
}

static void generations_move_by_one_and_skip_zero(void **state)
{
    (void)state;
    struct desk_client *c = &desk.client[0];
    static const uint32_t wrong[] = {0, 2, 5, 0xffffff};

    desk_open(&desk, 8, false);
    for (size_t i = 0; i < LL_COUNT(wrong); i++) {
        desk_fill(&desk, 0, 0, 10);
        atomic_store(&c->slot[0].state, wrong[i] << 8 | LL_SLOT_SUBMITTED);
        desk_word(&desk, 0, LL_OP_SUBMIT, 0);
        desk_turn(&desk);
        assert_int_equal(DESK_STAT(&desk, requests_submitted), 0);
    }
    atomic_store(&c->slot[0].state, 1u << 8 | 7u); /* no such state */
    desk_word(&desk, 0, LL_OP_SUBMIT, 0);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, requests_submitted), 0);

    c->shadow[0].gen = c->gen[0] = 0xfffffe; /* near the wrap */
    for (int i = 0; i < 3; i++) {
        desk_submit(&desk, 0, 0, 10);
        desk_turn(&desk);
        desk_end(&desk, desk_seq(&desk, 0, 0), LL_END_LENGTH);
        desk_publish_ends(&desk);
        assert_int_equal(desk_read(&desk, 0).gen, c->gen[0] & 0xffff);
    }
    assert_int_equal(c->gen[0], 2);
    assert_int_equal(DESK_STAT(&desk, requests_finished), 3);

    /* a new request in a slot whose old one still runs */
    desk_submit(&desk, 0, 0, 10);
    desk_turn(&desk);
    desk_submit(&desk, 0, 0, 10);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, requests_submitted), 4);
    assert_int_equal(desk_seq(&desk, 0, 0)->gen, 3);
    clear();
}

static void a_thousand_malformed_words_a_second_fence_the_client(void **state)
{
    (void)state;
    struct ll_mail mail;

    desk_open(&desk, 8, false);
    desk_submit(&desk, 0, 0, 10);
    desk_submit(&desk, 1, 0, 10);
    desk_turn(&desk);
    for (uint32_t n = 0; n < 999; n++) {
        assert_true(ll_bell_push(&desk.bell[0], ll_word_pack(LL_OP_SUBMIT, 0, 1, 900)));
        if (n % LL_INTAKE_WORDS_TURN == LL_INTAKE_WORDS_TURN - 1)
            desk_turn(&desk);
    }
    desk_turn(&desk);
    assert_false(desk.client[0].a.is_fenced);
    desk.now_ns += LL_NS_PER_S; /* a second later the count begins anew */
    for (uint32_t n = 0; n < 999; n++) {
        assert_true(ll_bell_push(&desk.bell[0], ll_word_pack(LL_OP_SUBMIT, 0, 1, 900)));
        if (n % LL_INTAKE_WORDS_TURN == LL_INTAKE_WORDS_TURN - 1)
            desk_turn(&desk);
    }
    desk_turn(&desk);
    assert_false(desk.client[0].a.is_fenced);
    assert_true(ll_bell_push(&desk.bell[0], ll_word_pack(LL_OP_SUBMIT, 0, 1, 900)));
    desk_turn(&desk);
    assert_true(desk.client[0].a.is_fenced);
    assert_true(ll_mailbox_take(&desk.to_control, &mail) && mail.type == LL_MAIL_FENCED);
    assert_true(desk_seq(&desk, 0, 0)->is_lost);
    desk_submit(&desk, 0, 1, 10); /* nothing of it is read any more */
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, requests_submitted), 2);
    assert_false(desk_seq(&desk, 1, 0)->is_lost); /* its neighbour goes on */
    desk_apply_marks(&desk);
    desk_publish_ends(&desk);
    assert_false(desk_has_event(&desk, 0));
    clear();
}

static void without_room_for_an_answer_a_request_waits_in_its_slot(void **state)
{
    (void)state;
    desk_open(&desk, 40, false);
    assert_false(ll_intake_detach(&desk.intake, &desk.client[0].a, true));
    desk_turn(&desk);
    assert_true(ll_intake_detach(&desk.intake, &desk.client[0].a, true));
    close(desk.client[0].a.wake_fd);
    desk_attach(&desk, 0, 4, 32); /* 16 events for 32 slots */
    memset(desk.client[0].gen, 0, sizeof(desk.client[0].gen));
    for (uint32_t slot = 0; slot < 20; slot++)
        desk_submit(&desk, 0, slot, 4);
    desk_turn(&desk);
    assert_int_equal(desk.client[0].a.n_open, 16);
    assert_int_equal(DESK_STAT(&desk, requests_submitted), 16);
    for (uint32_t slot = 0; slot < 16; slot++)
        desk_end(&desk, desk_seq(&desk, 0, slot), LL_END_LENGTH);
    desk_publish_ends(&desk);
    for (uint32_t slot = 0; slot < 16; slot++)
        desk_read(&desk, 0);
    desk.now_ns += LL_INTAKE_SWEEP_NS;
    desk_turn(&desk);
    assert_int_equal(desk.client[0].a.n_open, 4);
    assert_int_equal(DESK_STAT(&desk, requests_accepted), 20);
    clear();
}

static void a_dead_client_is_gone_once_all_is_free_and_its_words_are_read(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    struct ll_attachment *a = &desk.client[0].a;
    desk_submit(&desk, 0, 0, 10);
    desk_submit(&desk, 0, 1, 60000);
    desk_turn(&desk);
    struct ll_seq *seq = desk_seq(&desk, 0, 0);
    desk_run(&desk, seq);
    for (uint32_t n = 0; n < 20; n++) /* more than a turn: no "empty" answer */
        desk_word(&desk, 0, LL_OP_SUBMIT, 2);
    desk_fill(&desk, 0, 2, 4);
    desk_publish(&desk, 0, 2);

    assert_false(ll_intake_detach(&desk.intake, a, true));
    assert_true(seq->is_lost);
    seq->n_in_flight = 1;
    desk_apply_marks(&desk);
    desk_publish_ends(&desk);
    assert_false(desk_has_event(&desk, 0)); /* nobody is there to be told */
    assert_int_equal(DESK_STAT(&desk, requests_lost), 2);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, requests_submitted), 2); /* not taken any more */
    seq->n_in_flight = 0;
    desk_publish_ends(&desk);
    assert_int_equal(a->n_seqs, 0);
    assert_false(ll_intake_detach(&desk.intake, a, true)); /* words of it may still be there */
    desk_turn(&desk);
    assert_true(ll_intake_detach(&desk.intake, a, true));
    assert_null(desk.intake.client[0]);
    assert_int_equal(DESK_STAT(&desk, clients_attached), 2);

    close(a->wake_fd);
    desk_attach(&desk, 0, 10, 32); /* the next one with this id */
    memset(desk.client[0].gen, 0, sizeof(desk.client[0].gen));
    assert_true(ll_bell_push(&desk.bell[0], ll_word_pack(LL_OP_SUBMIT, 0, 1, 0))); /* a late word */
    desk_submit(&desk, 0, 0, 10);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, requests_submitted), 3);
    clear();
}

static void quarantine_ends_too_when_the_bell_went_round(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    desk_word(&desk, 1, LL_OP_SUBMIT, 0);
    assert_false(ll_intake_detach(&desk.intake, &desk.client[0].a, true));
    for (uint32_t turn = 0; turn < 16; turn++) { /* never empty: 16 a turn, 16 new ones a turn */
        assert_false(ll_intake_detach(&desk.intake, &desk.client[0].a, true));
        for (uint32_t n = 0; n < 16; n++)
            desk_word(&desk, 1, LL_OP_SUBMIT, n);
        desk_turn(&desk);
    }
    assert_true(ll_intake_detach(&desk.intake, &desk.client[0].a, true));
    clear();
}

static void a_bye_cancels_and_the_last_of_a_domain_takes_its_bell_along(void **state)
{
    (void)state;
    desk_open(&desk, 8, true);
    desk_submit(&desk, 2, 0, 10);
    desk_turn(&desk);
    assert_false(ll_intake_detach(&desk.intake, &desk.client[2].a, false));
    assert_true(desk_seq(&desk, 2, 0)->is_cancelled);
    desk_apply_marks(&desk);
    desk_publish_ends(&desk);
    desk_turn(&desk);
    assert_true(ll_intake_detach(&desk.intake, &desk.client[2].a, false));
    assert_int_equal(DESK_STAT(&desk, requests_cancelled), 1);
    assert_int_equal(desk.intake.n_domains, 2);
    clear();
}

static void a_sweep_scans_2048_slots_a_turn(void **state)
{
    (void)state;
    desk_open(&desk, 8, false);
    for (uint32_t i = 0; i < DESK_CLIENTS; i++) { /* as many slots as a client can have */
        struct ll_attachment *a = &desk.client[i].a;
        a->n_slots = LL_SLOTS_MAX;
        a->slot = calloc(LL_SLOTS_MAX, sizeof(*a->slot));
        a->shadow = calloc(LL_SLOTS_MAX, sizeof(*a->shadow));
        desk_count(&desk, i); /* the counts differ, nothing is there */
    }
    uint64_t sweeps = DESK_STAT(&desk, sweeps);
    desk.now_ns += LL_INTAKE_SWEEP_NS;
    assert_int_equal(desk_turn(&desk), 0);
    assert_int_equal(DESK_STAT(&desk, sweeps), sweeps + 2);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, sweeps), sweeps + 3);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, sweeps), sweeps + 3);
    /* Nor do a thousand wishes in one turn cost more. */
    for (uint32_t i = 0; i < 1000; i++)
        ll_intake_sweep(&desk.intake, &desk.client[i % DESK_CLIENTS].a);
    assert_int_equal(DESK_STAT(&desk, sweeps), sweeps + 3);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, sweeps), sweeps + 5);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, sweeps), sweeps + 6);
    desk_turn(&desk);
    assert_int_equal(DESK_STAT(&desk, sweeps), sweeps + 6);
    assert_int_equal(DESK_STAT(&desk, sweeps_found), 0);
    for (uint32_t i = 0; i < DESK_CLIENTS; i++) {
        free(desk.client[i].a.slot);
        free(desk.client[i].a.shadow);
        desk.client[i].a.shadow = desk.client[i].shadow;
        desk.client[i].a.n_slots = 32;
    }
    clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_is_copied_whole_and_waits),
        cmocka_unit_test(a_long_prompt_takes_64_kib_a_turn),
        cmocka_unit_test(a_turn_takes_16_words),
        cmocka_unit_test(what_the_gate_refuses_is_told_and_forgotten),
        cmocka_unit_test(a_full_queue_answers_busy_with_a_time),
        cmocka_unit_test(a_domain_leaves_room_for_others),
        cmocka_unit_test(a_drain_refuses_new_requests),
        cmocka_unit_test(cancel_and_stop_set_marks),
        cmocka_unit_test(a_cancel_while_the_prompt_is_copied_ends_it),
        cmocka_unit_test(a_cancel_that_comes_with_the_request_counts),
        cmocka_unit_test(a_sweep_finds_what_no_word_announced),
        cmocka_unit_test(a_forged_word_does_not_hide_a_lost_one),
        cmocka_unit_test(a_repaired_bell_loses_no_request),
        cmocka_unit_test(stale_doubled_and_foreign_words_change_nothing),
        cmocka_unit_test(generations_move_by_one_and_skip_zero),
        cmocka_unit_test(a_thousand_malformed_words_a_second_fence_the_client),
        cmocka_unit_test(without_room_for_an_answer_a_request_waits_in_its_slot),
        cmocka_unit_test(a_dead_client_is_gone_once_all_is_free_and_its_words_are_read),
        cmocka_unit_test(quarantine_ends_too_when_the_bell_went_round),
        cmocka_unit_test(a_bye_cancels_and_the_last_of_a_domain_takes_its_bell_along),
        cmocka_unit_test(a_sweep_scans_2048_slots_a_turn),
    };
    return cmocka_run_group_tests_name("runtime/intake", tests, NULL, NULL);
}
