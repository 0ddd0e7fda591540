/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_scheduler.c - order and budgets, ends, credits, scored prompts. */
#include "tests/runtime/scheduler_fixture.h"

/* ---- order and budget -------------------------------------------------------------------------*/

static void a_prompt_is_cut_to_the_budget_and_sampled_at_its_end(void **state)
{
    (void)state;
    make(100, 64, 10);
    struct ll_seq *seq = arrive(150, 10);
    static const uint32_t expected[] = {64, 64, 22};

    for (uint32_t i = 0; i < 3; i++) {
        const struct ll_plan *p = plan();
        assert_int_equal(p->n_rows, 1);
        assert_int_equal(p->row[0].n_tokens, expected[i]);
        assert_int_equal(p->row[0].pos, i * 64);
        assert_int_equal((p->row[0].flags & LL_ROW_SAMPLE) != 0, i == 2);
        assert_int_equal(apply(), 1);
    }
    assert_int_equal(seq->n_tokens, 151);
}

static void decode_comes_before_prefill(void **state)
{
    (void)state;
    make(100, 64, 10);
    struct ll_seq *a = arrive(10, 10), *b = arrive(10, 10);
    plan();
    apply();
    struct ll_seq *c = arrive(200, 10);
    const struct ll_plan *p = plan();
    assert_int_equal(p->n_rows, 3);
    assert_int_equal(row_for(p, a)->n_tokens, 1);
    assert_int_equal(row_for(p, b)->n_tokens, 1);
    assert_int_equal(row_for(p, c)->n_tokens, 62); /* what the budget has left */
    assert_int_equal(p->n_tokens, 64);
}

static void first_come_is_first_served_and_nobody_overtakes(void **state)
{
    (void)state;
    make(10, 1000, 10);
    struct ll_seq *a = arrive(300, 10); /* 5 pages */
    struct ll_seq *b = arrive(400, 10); /* 7: do not fit beside a */
    struct ll_seq *c = arrive(10, 10);  /* would fit */
    const struct ll_plan *p = plan();
    assert_int_equal(p->n_rows, 1);
    assert_non_null(row_for(p, a));
    assert_ptr_equal(ll_queue_first(&f.scheduler.queue), b);
    assert_int_equal(c->state, LL_SEQ_WAITING);
    /* Once a has gone both come, in order. */
    cancel(a);
    apply();
    p = plan();
    assert_non_null(row_for(p, b));
    assert_int_equal(p->row[0].seq, b->index);
}

static void a_newcomer_leaves_a_page_to_each_that_runs(void **state)
{
    (void)state;
    make(4, 1000, 10);
    arrive(50, 50); /* 1 page now, 2 soon */
    plan();
    apply();
    struct ll_seq *b = arrive(150, 10); /* 3 pages: are free, but then none would be left */
    plan();
    assert_int_equal(b->state, LL_SEQ_WAITING);
    apply();
}

static void run_ahead_names_no_id_and_stops_before_the_last_token(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *seq = arrive(10, 3);
    const struct ll_plan *p = plan(); /* samples token 10 */
    assert_false(p->row[0].is_from_device);
    p = plan(); /* runs token 10, samples 11 */
    assert_int_equal(p->n_rows, 1);
    assert_true(p->row[0].is_from_device);
    assert_int_equal(p->row[0].pos, 10);
    assert_int_equal(p->row[0].n_tokens, 1);
    apply();
    p = plan(); /* runs 11, samples 12, the last */
    assert_int_equal(p->row[0].pos, 11);
    apply();
    assert_int_equal(plan()->n_rows, 0); /* P6 */
    apply();
    assert_int_equal(seq->state, LL_SEQ_FREE);
    assert_int_equal(ll_stat_get(&f.stats.requests_finished), 1);
}

static void the_context_bounds_a_sequence_too(void **state)
{
    (void)state;
    make(100, 2000, 10);
    struct ll_seq *seq = arrive(CONTEXT - 2, 500);
    plan();
    plan();
    assert_int_equal(plan()->n_rows, 0);
    apply();
    apply();
    assert_int_equal(seq->state, LL_SEQ_FREE);
    assert_int_equal(ll_stat_get(&f.stats.output_tokens), 2);
}

/* ---- ends while rows are in flight ------------------------------------------------------------*/

static void pages_come_back_only_when_the_last_row_is_polled(void **state)
{
    (void)state;
    make(20, 1000, 10);
    struct ll_seq *seq = arrive(10, 50);
    seq->sampling.n_end = 1;
    seq->sampling.end[0] = 7;
    plan();
    plan();
    apply_with(seq); /* the first token ends it; the run-ahead row is on its way */
    assert_int_equal(seq->state, LL_SEQ_ENDING);
    assert_true(seq->is_told);
    assert_int_equal(seq->n_tokens, 11);
    assert_true(seq->n_pages > 0 && f.kv.n_free < 20);
    assert_int_not_equal(seq->device_slot, LL_NONE);
    assert_int_equal(plan()->n_rows, 0);
    apply();
    assert_int_equal(seq->state, LL_SEQ_FREE);
    assert_int_equal(f.kv.n_free, 20);
    assert_int_equal(ll_stat_get(&f.stats.output_tokens), 1); /* the row after the end is ignored */
    assert_int_equal(f.client.a.credits_reserved, 0);
}

static void marks_end_waiting_and_running_sequences(void **state)
{
    (void)state;
    make(20, 1000, 10);
    struct ll_seq *running[4], *waits[4];
    for (int i = 0; i < 4; i++) {
        running[i] = arrive(10, 50);
        running[i]->deadline_ns = i == 3 ? f.now_ns + 1500 : 0;
    }
    plan();
    apply();
    for (int i = 0; i < 4; i++) {
        waits[i] = arrive(10, 50);
        waits[i]->deadline_ns = i == 3 ? f.now_ns + 500 : 0;
    }
    struct ll_seq **sets[] = {running, waits};
    for (int i = 0; i < 2; i++) {
        sets[i][0]->is_lost = true;
        sets[i][1]->is_cancelled = true;
        sets[i][2]->is_stopped = true;
        for (int k = 0; k < 3; k++)
            ll_seq_mark(&f.pool, sets[i][k]);
    }
    assert_int_equal(plan()->n_rows, 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(sets[i][0]->end, LL_END_LOST);
        assert_int_equal(sets[i][1]->end, LL_END_CANCELLED);
        assert_int_equal(sets[i][2]->end, LL_END_STOP);
        assert_int_equal(sets[i][3]->end, LL_END_EXPIRED);
    }
    assert_int_equal(f.kv.n_free, 20);
    ll_outlet_publish(&f.outlet, NULL, 0, f.now_ns);
    assert_int_equal(f.pool.list[LL_SEQ_FREE].n, N_SEQS);
}

static void a_mark_deep_in_a_long_queue_is_found(void **state)
{
    (void)state;
    make(2, 1000, 10);
    arrive(50, 70);
    plan();
    struct ll_seq *last = NULL;
    for (int i = 0; i < 30; i++)
        last = arrive(50, 50);
    cancel(last);
    plan();
    assert_int_equal(last->end, LL_END_CANCELLED);
    apply();
}

/* ---- credits ----------------------------------------------------------------------------------*/

static void without_credit_there_is_no_row_and_in_the_end_a_stall(void **state)
{
    (void)state;
    make(20, 1000, 4); /* a ring of 16 events */
    struct ll_seq *seq = arrive(10, 500);
    for (int i = 0; i < 15; i++) { /* one event is the terminal one's */
        assert_int_equal(plan()->n_rows, 1);
        apply();
    }
    assert_int_equal(plan()->n_rows, 0);
    assert_true(seq->starved_ns != 0);
    f.now_ns += LL_NS_PER_S / 2;
    assert_int_equal(plan()->n_rows, 0);
    assert_int_equal(seq->state, LL_SEQ_RUNNING);
    /* Its client reads two events: two more rows, and the stall begins anew. */
    atomic_store(&f.client.hot->cons_pos, 2);
    assert_int_equal(plan()->n_rows, 1);
    apply();
    assert_int_equal(plan()->n_rows, 1);
    apply();
    f.now_ns += LL_NS_PER_S - 3000;
    plan();
    assert_int_equal(seq->state, LL_SEQ_RUNNING);
    f.now_ns += LL_NS_PER_S + 3000;
    plan();
    assert_int_equal(seq->end, LL_END_STALLED);
    ll_outlet_publish(&f.outlet, NULL, 0, f.now_ns);
    assert_int_equal(ll_stat_get(&f.stats.requests_stalled), 1);
}

static void a_starved_newcomer_lets_others_pass(void **state)
{
    (void)state;
    make(20, 1000, 4);
    struct rig_client other;
    rig_make_client(&other, 1, &f.domain, N_SEQS, 4, 16);
    ll_outlet_attach(&f.outlet, &other.a);
    struct ll_seq *starved = arrive(10, 50), *passes = arrive(10, 50);
    starved->client = 1;
    other.a.shadow[starved->slot] = f.client.a.shadow[starved->slot];
    other.a.credits_reserved = 16; /* all promised */
    const struct ll_plan *p = plan();
    assert_null(row_for(p, starved));
    assert_non_null(row_for(p, passes));
    assert_int_equal(starved->state, LL_SEQ_WAITING);
    other.a.credits_reserved = 1;
    apply();
    p = plan();
    assert_non_null(row_for(p, starved));
    apply();
    cancel(starved);
    cancel(passes);
    plan();
    starved->client = 0;
    rig_free_client(&other);
}

static void who_has_no_credit_pushes_nobody_out(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two(&a, &b);
    f.client.a.credits_reserved += 1u << 10; /* nobody has credit */
    for (int i = 0; i < 10; i++)
        assert_int_equal(plan()->n_rows, 0);
    assert_int_equal(ll_stat_get(&f.stats.preemptions), 0);
    f.client.a.credits_reserved -= 1u << 10;
}

/* ---- prompt logprobs --------------------------------------------------------------------------*/

static void each_prompt_token_is_scored_once_in_bounded_rows(void **state)
{
    (void)state;
    make(100, 1000, 12);
    struct ll_seq *seq = arrive(300, 10);
    seq->flags = LL_REQ_PROMPT_LOGPROBS;
    seq->n_prompt_top = 20;
    uint32_t n_scored = 0;
    while (seq->n_tokens == 300) {
        const struct ll_plan *p = plan();
        const struct ll_plan_row *row = &p->row[0];
        assert_int_equal(p->n_rows, 1);
        assert_true(row->n_booked <= LL_OUTLET_ROW_EVENTS_MAX);
        bool samples = (row->flags & LL_ROW_SAMPLE) != 0;
        assert_int_equal(row->n_scored, row->n_tokens - samples);
        n_scored += row->n_scored;
        apply();
        assert_int_equal(f.yields[0].first_scored, row->pos + 1);
        f.client.reader.pos += 1000; /* read everything */
        atomic_store(&f.client.hot->cons_pos, f.client.a.events.prod);
        atomic_store(&f.client.slot[seq->slot].taken, seq->n_written);
    }
    assert_int_equal(n_scored, 299);
}

static void after_a_preemption_only_the_rest_is_scored(void **state)
{
    (void)state;
    make(100, 200, 12);
    struct ll_seq *seq = arrive(300, 10);
    seq->flags = LL_REQ_PROMPT_LOGPROBS;
    plan();
    apply();
    assert_int_equal(seq->n_scored, 200);
    /* Preempted in the middle of its prompt, as by a lack of pages. */
    ll_sched_requeue(&f.scheduler, seq);

    f.scheduler.limits.n_tokens_max = 1000;
    const struct ll_plan_row *row = &plan()->row[0];
    assert_int_equal(row->n_tokens, 200);
    assert_int_equal(row->flags, 0);
    assert_int_equal(row->n_booked, 0);
    apply();
    row = &plan()->row[0];
    assert_int_equal(row->pos, 200);
    assert_int_equal(row->n_tokens, 100);
    assert_int_equal(row->n_scored, 99);
    assert_int_equal(row->flags, LL_ROW_PROMPT_LOGPROBS | LL_ROW_SAMPLE);
    apply();
    assert_int_equal(seq->n_scored, 299);
}

static void a_prompt_recomputed_behind_its_output_is_scored_without_its_last_token(void **state)
{
    (void)state;
    make(100, 1000, 12);
    struct ll_seq *seq = arrive(50, 100);
    seq->flags = LL_REQ_PROMPT_LOGPROBS;
    /* As if it had been preempted with outputs before its scores were reported. */
    seq->token[50] = seq->token[51] = NEXT_ID;
    seq->n_tokens = 52;
    const struct ll_plan_row *row = &plan()->row[0];
    assert_int_equal(row->n_tokens, 49); /* its last target is prompt token 49 */
    assert_int_equal(row->n_scored, 49);
    assert_int_equal(row->flags, LL_ROW_PROMPT_LOGPROBS);
    apply();
    row = &plan()->row[0];
    assert_int_equal(row->pos, 49);
    assert_int_equal(row->n_tokens, 3);
    assert_int_equal(row->flags, LL_ROW_SAMPLE);
    apply();
}

/* ---- the time budget --------------------------------------------------------------------------*/

static void chunks_keep_steps_that_decode_within_the_limit(void **state)
{
    (void)state;
    make(100, 1000, 10);
    f.scheduler.limits.max_itl_ns = 3 * LL_NS_PER_MS;
    learn_a_device();
    struct ll_seq *a = arrive(900, 100);
    const struct ll_plan *p = plan(); /* nobody decodes: as much as tokens allow */
    assert_int_equal(row_for(p, a)->n_tokens, 900);
    apply();
    struct ll_seq *b = arrive(900, 100);
    p = plan();
    uint32_t n = row_for(p, b)->n_tokens;
    assert_non_null(row_for(p, a));
    assert_int_equal(n, 192); /* (3 - 1.02) ms / 10 us, whole pages */
    assert_true(ll_cost_predict(&f.scheduler.cost, &p->work) <= 3 * LL_NS_PER_MS);
    apply();
    f.scheduler.limits.max_itl_ns = 0;
    assert_int_equal(row_for(plan(), b)->n_tokens, 900 - n);
    apply();
}

static void a_prompt_goes_on_whatever_the_limit(void **state)
{
    (void)state;
    make(100, 1000, 10);
    f.scheduler.limits.max_itl_ns = 1; /* no step is that short */
    learn_a_device();
    struct ll_seq *a = arrive(10, 400);
    plan();
    apply();
    struct ll_seq *b = arrive(200, 10), *c = arrive(200, 10);
    const struct ll_plan *p = plan();
    assert_non_null(row_for(p, a));
    assert_int_equal(row_for(p, b)->n_tokens, LL_SCHED_CHUNK_MIN);
    assert_null(row_for(p, c));
    apply();
    run_all();
    assert_int_equal(f.pool.list[LL_SEQ_FREE].n, N_SEQS);
}

/* ---- purity -----------------------------------------------------------------------------------*/

static void the_same_state_gives_the_same_plan(void **state)
{
    (void)state;
    uint64_t hash[2] = {0, 0};

    for (int run = 0; run < 2; run++) {
        uint64_t random = 42;
        make(12, 100, 10);
        for (int i = 0; i < 200; i++) {
            uint64_t r = ll_splitmix64(&random);
            if (r % 4 == 0 && f.pool.list[LL_SEQ_FREE].n > 0)
                arrive(1 + r / 8 % 150, 1 + r / 4096 % 100);
            const struct ll_plan *p = plan();
            for (uint32_t k = 0; k < p->n_rows; k++)
                hash[run] = hash[run] * 31 + p->row[k].seq * 7 + p->row[k].pos + p->row[k].n_tokens;
            if (f.n_planned > f.n_applied)
                apply();
            atomic_store(&f.client.hot->cons_pos, f.client.a.events.prod);
            for (uint32_t k = 0; k < N_SEQS; k++)
                atomic_store(&f.client.slot[k].taken, f.pool.seq[k].n_written);
        }
        if (run == 0)
            teardown(NULL);
    }
    assert_true(hash[0] == hash[1]);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_prompt_is_cut_to_the_budget_and_sampled_at_its_end),
        TEST(decode_comes_before_prefill),
        TEST(first_come_is_first_served_and_nobody_overtakes),
        TEST(a_newcomer_leaves_a_page_to_each_that_runs),
        TEST(run_ahead_names_no_id_and_stops_before_the_last_token),
        TEST(the_context_bounds_a_sequence_too),
        TEST(pages_come_back_only_when_the_last_row_is_polled),
        TEST(marks_end_waiting_and_running_sequences),
        TEST(a_mark_deep_in_a_long_queue_is_found),
        TEST(without_credit_there_is_no_row_and_in_the_end_a_stall),
        TEST(a_starved_newcomer_lets_others_pass),
        TEST(who_has_no_credit_pushes_nobody_out),
        TEST(each_prompt_token_is_scored_once_in_bounded_rows),
        TEST(after_a_preemption_only_the_rest_is_scored),
        TEST(a_prompt_recomputed_behind_its_output_is_scored_without_its_last_token),
        TEST(chunks_keep_steps_that_decode_within_the_limit),
        TEST(a_prompt_goes_on_whatever_the_limit),
        TEST(the_same_state_gives_the_same_plan),
    };
    return cmocka_run_group_tests_name("runtime/scheduler", tests, NULL, NULL);
}
