/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_scheduler.c - plan and apply alone: no device, no clock, sequences made by
 * hand. A step's result is made up: each sampled id is NEXT_ID. */
#include "tests/runtime/rig.h"
#include "runtime/scheduler_impl.h"

#define N_SEQS  40u
#define CONTEXT 1024u
#define NEXT_ID 100u
#define ROWS    16u
#define DEPTH   2u

struct fixture {
    struct ll_seq_pool pool;
    struct ll_kv kv;
    struct ll_outlet outlet;
    struct ll_mailbox to_control;
    struct ll_stats stats;
    struct ll_scheduler scheduler;
    struct rig_client client;
    struct ll_domain domain;
    struct ll_plan plan[DEPTH + 1]; /* one to look at beside those in flight */
    uint32_t n_planned, n_applied;
    struct ll_row_out out[ROWS];
    struct ll_ext ext[8192];
    struct ll_yield yields[ROWS];
    uint64_t now_ns;
    uint32_t n_arrived;
};
static struct fixture f; /* large */

static void make(uint32_t n_pages, uint32_t n_tokens_max, uint32_t log2_events)
{
    struct ll_scheduler_limits limits = {.n_rows_max = ROWS,
                                         .n_tokens_max = n_tokens_max,
                                         .n_slots = ROWS,
                                         .context_max = CONTEXT,
                                         .stall_ns = LL_NS_PER_S,
                                         .has_prefix_cache = true};

    memset(&f, 0, sizeof(f));
    f.now_ns = 1000;
    assert_int_equal(ll_seq_pool_init(&f.pool, N_SEQS, CONTEXT), 0);
    assert_int_equal(ll_kv_init(&f.kv, n_pages, 8, 1), 0);
    ll_outlet_init(&f.outlet, &f.pool, &f.stats, &f.to_control);
    rig_make_client(&f.client, 0, &f.domain, N_SEQS, log2_events, 16);
    ll_outlet_attach(&f.outlet, &f.client.a);
    assert_int_equal(ll_scheduler_init(&f.scheduler, &limits, &f.pool, &f.kv, &f.outlet, &f.stats),
                     0);
    for (uint32_t i = 0; i <= DEPTH; i++)
        f.plan[i].row = calloc(ROWS, sizeof(*f.plan[i].row)),
        f.plan[i].copy = calloc(LL_PLAN_COPIES_MAX, sizeof(*f.plan[i].copy));
}

static void check(void)
{
    ll_seq_check(&f.pool);
    ll_scheduler_check(&f.scheduler);
}

static int teardown(void **state)
{
    (void)state;
    check();
    for (uint32_t i = 0; i <= DEPTH; i++)
        free(f.plan[i].row), free(f.plan[i].copy);
    ll_scheduler_free(&f.scheduler);
    ll_kv_free(&f.kv);
    ll_seq_pool_free(&f.pool);
    rig_free_client(&f.client);
    return 0;
}

/* A sequence as intake leaves it. */
static struct ll_seq *arrive(uint32_t n_prompt, uint32_t max_tokens)
{
    struct ll_seq *seq = ll_seq_take(&f.pool, 0);
    struct ll_shadow *shadow = &f.client.a.shadow[seq->index];

    assert_true(ll_outlet_reserve(&f.outlet, &f.client.a, 1));
    seq->slot = seq->index;
    seq->n_prompt = seq->n_tokens = seq->n_copied = n_prompt;
    seq->max_tokens = max_tokens;
    f.n_arrived++;
    for (uint32_t i = 0; i < n_prompt; i++) /* no two prompts begin alike */
        seq->token[i] = i + f.n_arrived * 10000;
    *shadow = (struct ll_shadow){.phase = LL_SHADOW_ACCEPTED, .sequence = seq->index};
    f.client.a.n_open++;
    f.client.a.n_seqs++;
    ll_waiting_enter(&f.outlet.waiting, seq, seq->n_choices, f.now_ns);
    ll_outlet_phase(&f.outlet, seq, LL_PHASE_ACCEPTED, f.now_ns);
    ll_seq_move(&f.pool, seq, LL_SEQ_WAITING);
    return seq;
}

static void cancel(struct ll_seq *seq)
{
    seq->is_cancelled = true;
    ll_seq_mark(&f.pool, seq);
}

static const struct ll_plan *plan(void)
{
    struct ll_plan *out = &f.plan[f.n_planned % (DEPTH + 1)];

    f.now_ns += 1000;
    ll_scheduler_plan(&f.scheduler, f.now_ns, out);
    check();
    if (out->n_rows > 0)
        f.n_planned++;
    return out;
}

/* The oldest step comes back; where end_id is true, with id 7 (an end id) for that sequence. */
static uint32_t apply_with(const struct ll_seq *ended)
{
    const struct ll_plan *p = &f.plan[f.n_applied++ % (DEPTH + 1)];
    struct ll_result result = {.rows = f.out, .ext = f.ext, .n_rows = p->n_rows};

    for (uint32_t i = 0; i < p->n_rows; i++) {
        const struct ll_seq *seq = &f.pool.seq[p->row[i].seq];
        f.out[i] = (struct ll_row_out){.slot = seq->device_slot};
        if (p->row[i].flags & LL_ROW_SAMPLE) {
            f.out[i].n_tokens = 1;
            f.out[i].token[0] = seq == ended ? 7 : NEXT_ID;
        }
    }
    uint32_t n = ll_scheduler_apply(&f.scheduler, p, &result, f.now_ns, f.yields);
    assert_int_equal(n, p->n_rows);
    ll_outlet_publish(&f.outlet, f.yields, n, f.now_ns);
    check();
    return n;
}

static uint32_t apply(void)
{
    return apply_with(NULL);
}

/* Runs whatever there is until nothing is left to do. */
static void run_all(void)
{
    for (int i = 0; i < 2000; i++) {
        if (plan()->n_rows > 0)
            apply();
        atomic_store(&f.client.hot->cons_pos, f.client.a.events.prod);
        for (uint32_t k = 0; k < N_SEQS; k++)
            atomic_store(&f.client.slot[k].taken, f.pool.seq[k].n_written);
    }
}

static const struct ll_plan_row *row_for(const struct ll_plan *p, const struct ll_seq *seq)
{
    for (uint32_t i = 0; i < p->n_rows; i++)
        if (p->row[i].seq == seq->index)
            return &p->row[i];
    return NULL;
}

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

/* ---- pages run out ----------------------------------------------------------------------------*/

/* Two sequences of 56 tokens and one page each, on 3 pages: both want a second one at once. */
static void make_two(struct ll_seq **a, struct ll_seq **b)
{
    make(3, 1000, 10);
    *a = arrive(54, 150);
    *b = arrive(54, 150);
    plan(); /* a alone: b must leave it a page */
    apply();
    plan();
    apply();
    assert_int_equal((*a)->state, LL_SEQ_RUNNING);
    assert_int_equal((*b)->state, LL_SEQ_RUNNING);
}

static void the_one_admitted_last_gives_way_to_the_front_of_the_queue(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two(&a, &b);
    struct ll_seq *c = arrive(54, 5);
    for (int i = 0; i < 100 && b->state == LL_SEQ_RUNNING; i++)
        if (plan()->n_rows > 0)
            apply();
    assert_int_equal(b->state, LL_SEQ_WAITING);
    assert_ptr_equal(ll_queue_first(&f.scheduler.queue), b);
    assert_int_equal(c->state, LL_SEQ_WAITING);
    assert_int_equal(b->n_pages, 0);
    assert_int_equal(ll_stat_get(&f.stats.preemptions), 1);
    assert_true(b->n_tokens > 54); /* what it sampled is not lost */
    uint32_t n_sampled = b->n_tokens;
    cancel(a);
    const struct ll_plan *p = plan();
    assert_int_equal(row_for(p, b)->pos, 0);
    assert_int_equal(row_for(p, b)->n_tokens, n_sampled);
    assert_true(b->needs_init);
    apply();
    assert_int_equal(b->n_tokens, n_sampled + 1);
}

static void a_victim_with_a_row_in_flight_keeps_its_token(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two(&a, &b);
    for (int i = 0; i < 100 && !b->is_preempted; i++) { /* always one step ahead */
        if (f.n_planned - f.n_applied == DEPTH)
            apply();
        plan();
    }
    uint32_t n_tokens = b->n_tokens;
    assert_int_equal(b->state, LL_SEQ_RUNNING);
    assert_int_equal(b->n_in_flight, 1);
    assert_true(b->n_pages > 0); /* P5 */
    while (f.n_planned - f.n_applied > 0)
        apply();
    assert_int_equal(b->state, LL_SEQ_WAITING);
    assert_int_equal(b->n_tokens, n_tokens + 1);
    assert_int_equal(b->n_pages, 0);
}

static void pages_that_are_coming_cost_no_second_victim(void **state)
{
    (void)state;
    make(5, 1000, 10);
    struct ll_seq *a = arrive(54, 200), *b = arrive(54, 200);
    plan();
    apply();
    struct ll_seq *c = arrive(56, 200);
    c->priority = 1; /* goes before b would give way itself */
    plan();          /* a page each, two are free */
    apply();
    plan(); /* c takes one for its 57th token */
    plan(); /* a takes the other for its 57th, b finds none */
    /* c gives way, but has rows in flight: b waits for its pages, nobody else goes. */
    assert_true(c->is_preempted);
    assert_int_equal(b->n_pages, 1);
    assert_int_equal(a->n_pages, 2);
    apply();
    assert_int_equal(c->state, LL_SEQ_RUNNING);
    apply();
    assert_int_equal(c->state, LL_SEQ_WAITING);
    assert_non_null(row_for(plan(), b));
    assert_int_equal(b->n_pages, 2);
    assert_int_equal(a->state, LL_SEQ_RUNNING);
    assert_int_equal(ll_stat_get(&f.stats.preemptions), 1);
}

static void what_the_gate_let_through_wrongly_fails_alone(void **state)
{
    (void)state;
    make(2, 1000, 10);
    struct ll_seq *never = arrive(200, 10);
    struct ll_seq *grows = arrive(60, 200);
    plan();
    assert_int_equal(never->end, LL_END_FAILED);
    assert_int_equal(never->end_code, LL_E_NEVER_FITS);
    for (int i = 0; i < 100 && grows->end == LL_END_NONE; i++) {
        if (f.n_planned > f.n_applied)
            apply();
        plan();
    }
    assert_int_equal(grows->end_code, LL_E_NEVER_FITS);
    /* With n tokens known, n - 1 are in pages, and those of a whole row must be there too. */
    assert_int_equal(grows->n_tokens, 2 * 64 - LL_ROW_TOKENS_MAX + 1);
}

/* A device that takes 1 ms a step, 10 us a prompt token and 20 us a decode row. */
static void learn_a_device(void)
{
    for (uint32_t i = 0; i < 200; i++) {
        struct ll_work work = {.n_prefill = i % 3 == 0 ? 50 * (i % 40) : 0, .n_decode = i % 16};
        ll_cost_learn(&f.scheduler.cost, &work,
                      1000000 + 10000ull * work.n_prefill + 20000ull * work.n_decode);
    }
}

/* ---- swap -------------------------------------------------------------------------------------*/

/* As make_two(), with swap whatever it costs. */
/* A running one gives way before others; the pool counts those that run. */
static void lower(struct ll_seq *seq)
{
    assert_int_equal(seq->priority, 0);
    seq->priority = 1;
    f.pool.n_at_priority[128 + 0]--;
    f.pool.n_at_priority[128 + 1]++;
    f.pool.priorities[2] = (f.pool.n_at_priority[128] > 0) | 2;
}

static void make_two_that_swap(struct ll_seq **a, struct ll_seq **b)
{
    make_two(a, b);
    f.scheduler.limits.is_deterministic = true;
}

/* Plans and applies until a sequence is in this state. */
static void run_until(const struct ll_seq *seq, enum ll_seq_state state, enum ll_swap swap)
{
    for (int i = 0; i < 300 && !(seq->state == state && seq->swap == swap); i++) {
        while (f.n_planned > f.n_applied)
            apply();
        plan();
    }
    assert_int_equal(seq->state, state);
    assert_int_equal(seq->swap, swap);
}

static void a_victim_goes_to_the_host_and_comes_back_without_computing(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two_that_swap(&a, &b);
    f.scheduler.limits.has_prefix_cache = false;
    lower(b); /* the one to give way */
    for (int i = 0; i < 100 && b->swap == LL_SWAP_NONE; i++) {
        while (f.n_planned > f.n_applied)
            apply();
        plan();
    }
    /* The plan lists the copy of b's page; the page is b's until it is done. */
    const struct ll_plan *p = &f.plan[(f.n_planned - 1) % (DEPTH + 1)];
    assert_int_equal(b->swap, LL_SWAP_OUT);
    assert_int_equal(p->n_copies, 1);
    assert_int_equal(p->copy[0].kind, LL_COPY_D2H);
    assert_int_equal(p->copy[0].src, b->page[0]);
    uint32_t host_page = p->copy[0].dst, n_tokens = b->n_tokens + b->n_in_flight, n_kv = b->pos_hi;
    uint64_t batch = p->copy_batch;
    assert_int_equal(f.kv.n_host_free, 7);
    while (f.n_planned > f.n_applied)
        apply();
    assert_int_equal(b->state, LL_SEQ_RUNNING); /* still being copied */
    assert_int_equal(b->n_pages, 1);
    ll_scheduler_copied(&f.scheduler, batch);
    check();
    assert_int_equal(b->state, LL_SEQ_WAITING);
    assert_int_equal(b->swap, LL_SWAP_HELD);
    assert_int_equal(b->n_pages, 0);
    assert_int_equal(b->n_tokens, n_tokens); /* what was in flight counts */

    cancel(a);
    p = plan(); /* b comes back: nothing to run before its pages are there */
    assert_int_equal(p->n_rows, 0);
    assert_int_equal(p->n_copies, 1);
    assert_int_equal(p->copy[0].kind, LL_COPY_H2D);
    assert_int_equal(p->copy[0].src, host_page);
    assert_int_equal(p->copy[0].dst, b->page[0]);
    batch = p->copy_batch;
    assert_int_equal(b->state, LL_SEQ_RUNNING);
    assert_int_equal(plan()->n_rows, 0);
    ll_scheduler_copied(&f.scheduler, batch);
    check();
    assert_int_equal(f.kv.n_host_free, 8);
    p = plan();
    assert_int_equal(row_for(p, b)->pos, n_kv); /* goes on where it was */
    assert_int_equal(row_for(p, b)->n_tokens, 1);
    assert_true(b->needs_init);
    assert_int_equal(ll_stat_get(&f.stats.preemptions_swapped), 1);
    apply();
}

static void what_ends_while_it_is_copied_keeps_its_pages_until_then(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two_that_swap(&a, &b);
    lower(b);
    run_until(b, LL_SEQ_RUNNING, LL_SWAP_OUT);
    cancel(b);
    while (f.n_planned > f.n_applied)
        apply();
    plan();
    assert_int_equal(b->state, LL_SEQ_ENDING);
    assert_true(b->n_pages > 0 && b->n_host > 0);
    ll_outlet_publish(&f.outlet, NULL, 0, f.now_ns);
    assert_true(b->is_told); /* its client does not wait for that */
    assert_int_equal(b->state, LL_SEQ_ENDING);
    ll_scheduler_copied(&f.scheduler, 1);
    assert_int_equal(b->n_pages, 0);
    ll_outlet_publish(&f.outlet, NULL, 0, f.now_ns);
    assert_int_equal(b->state, LL_SEQ_FREE);
    assert_int_equal(f.kv.n_host_free, 8);
    while (f.n_planned > f.n_applied)
        apply();
}

static void what_waits_on_the_host_gives_its_pages_back_at_its_end(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two_that_swap(&a, &b);
    lower(b);
    run_until(b, LL_SEQ_RUNNING, LL_SWAP_OUT);
    while (f.n_planned > f.n_applied)
        apply();
    ll_scheduler_copied(&f.scheduler, 1);
    assert_int_equal(b->swap, LL_SWAP_HELD);
    cancel(b);
    plan();
    assert_int_equal(f.kv.n_host_free, 8);
    assert_int_equal(b->end, LL_END_CANCELLED);
    apply();
}

static void without_host_pages_a_victim_is_computed_again(void **state)
{
    (void)state;
    struct ll_seq *a, *b;
    make_two_that_swap(&a, &b);
    lower(b);
    struct ll_seq *other = &f.pool.seq[N_SEQS - 1];
    assert_true(ll_kv_host_take(&f.kv, other, 8)); /* all are in use */
    other->swap = LL_SWAP_HELD;
    run_until(b, LL_SEQ_WAITING, LL_SWAP_NONE);
    assert_int_equal(ll_stat_get(&f.stats.preemptions), 1);
    ll_kv_host_drop(&f.kv, other, 8);
    other->swap = LL_SWAP_NONE;
    apply();
}

static void the_model_says_whether_to_copy_or_to_compute(void **state)
{
    (void)state;
    for (int round = 0; round < 2; round++) {
        struct ll_seq *a, *b;
        make_two(&a, &b);
        lower(b);
        learn_a_device(); /* 57 tokens: 0.57 ms */
        f.scheduler.cost.copy_ns = round == 0 ? 200000 : 400000;
        for (int i = 0; i < 100 && ll_stat_get(&f.stats.preemptions) == 0; i++) {
            while (f.n_planned > f.n_applied)
                apply();
            plan();
        }
        assert_int_equal(ll_stat_get(&f.stats.preemptions), 1);
        assert_int_equal(ll_stat_get(&f.stats.preemptions_swapped), round == 0);
        while (f.n_planned > f.n_applied)
            apply();
        if (round == 0)
            teardown(NULL);
    }
}

static void the_cache_spares_copies_back(void **state)
{
    (void)state;
    make(7, 1000, 10);
    f.scheduler.limits.is_deterministic = true;
    struct ll_seq *a = arrive(150, 200), *b = arrive(140, 200);
    b->priority = 1;
    plan();
    apply();
    plan(); /* b, 4 pages are free */
    apply();
    run_until(b, LL_SEQ_RUNNING, LL_SWAP_OUT);
    uint32_t n_copies = 0;
    for (uint64_t batch = 1; b->state == LL_SEQ_RUNNING; batch++) {
        while (f.n_planned > f.n_applied)
            apply();
        ll_scheduler_copied(&f.scheduler, batch);
    }
    uint32_t n_host = b->n_host;
    cancel(a);
    const struct ll_plan *p = plan();
    n_copies = p->n_copies;
    assert_int_equal(b->n_attached + n_copies, n_host);
    assert_true(b->n_attached >= 1);
    assert_int_equal(b->pos_hi, b->n_swapped);
    ll_scheduler_copied(&f.scheduler, f.scheduler.n_copy_batches);
    assert_int_equal(row_for(plan(), b)->n_tokens, 1);
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

/* ---- the prefix cache -------------------------------------------------------------------------*/

/* One more with the prompt of another. */
static struct ll_seq *arrive_like(const struct ll_seq *other, uint32_t n_prompt,
                                  uint32_t max_tokens)
{
    struct ll_seq *seq = arrive(n_prompt, max_tokens);

    memcpy(seq->token, other->token, ll_min_u64(n_prompt, other->n_tokens) * sizeof(uint32_t));
    return seq;
}

static void a_prompt_seen_before_is_computed_from_its_last_page(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(200, 1);
    plan();
    struct ll_seq *b = arrive_like(a, 200, 1);
    apply(); /* a has ended, its three full pages are known */
    assert_int_equal(a->state, LL_SEQ_FREE);
    assert_int_equal(f.kv.n_idle, 3);
    const struct ll_plan *p = plan();
    assert_int_equal(p->n_rows, 1);
    assert_int_equal(p->row[0].pos, 192);
    assert_int_equal(p->row[0].n_tokens, 8);
    assert_int_equal(b->n_cached, 192);
    assert_int_equal(ll_stat_get(&f.stats.prompt_tokens_cached), 192);
    apply();
    assert_int_equal(f.kv.n_idle, 3);
}

static void the_last_token_of_a_prompt_is_always_computed(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(192, 1);
    plan();
    struct ll_seq *b = arrive_like(a, 192, 1);
    apply();
    assert_int_equal(plan()->row[0].n_tokens, 64);
    assert_int_equal(b->n_cached, 128); /* floor(191 / 64) pages */
    apply();
}

static void running_sequences_share_pages_and_never_write_them(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(130, 100);
    plan();
    apply();
    struct ll_seq *b = arrive_like(a, 130, 100);
    plan();
    assert_int_equal(b->page[0], a->page[0]);
    assert_int_equal(b->page[1], a->page[1]);
    assert_int_not_equal(b->page[2], a->page[2]);
    assert_int_equal(f.kv.page[a->page[0]].refs, 2);
    assert_false(ll_kv_may_write(&f.kv, a, 64, 65));
    assert_true(ll_kv_may_write(&f.kv, a, 130, 131));
    apply();
    run_all();
    assert_int_equal(f.pool.list[LL_SEQ_FREE].n, N_SEQS);
    assert_int_equal(ll_kv_available(&f.kv), 100);
}

static void generated_text_is_found_too(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(100, 100);
    uint32_t tokens[200];
    memcpy(tokens, a->token, sizeof(uint32_t) * 100);
    run_all();
    for (int i = 100; i < 200; i++)
        tokens[i] = NEXT_ID; /* what apply() samples */
    struct ll_seq *b = arrive(200, 1);
    memcpy(b->token, tokens, sizeof(tokens));
    plan();
    assert_int_equal(b->n_cached, 192);
    apply();
}

static void no_cache_neither_uses_nor_fills(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(200, 1);
    a->flags = LL_REQ_NO_CACHE;
    plan();
    struct ll_seq *b = arrive_like(a, 200, 1);
    apply();
    assert_int_equal(f.kv.n_idle, 0);
    plan();
    assert_int_equal(b->n_cached, 0);
    struct ll_seq *c = arrive_like(b, 200, 1);
    c->flags = LL_REQ_NO_CACHE;
    apply();
    assert_int_equal(f.kv.n_idle, 3);
    plan();
    assert_int_equal(c->n_cached, 0);
    apply();
}

static void prompt_logprobs_are_computed_whatever_is_cached(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(200, 1);
    plan();
    struct ll_seq *b = arrive_like(a, 200, 1);
    b->flags = LL_REQ_PROMPT_LOGPROBS;
    apply();
    assert_int_equal(plan()->row[0].n_scored, 199);
    apply();
}

static void who_may_not_share_finds_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < 7; i++) {
        make(100, 1000, 10);
        struct ll_seq *a = arrive(200, 1);
        plan();
        struct ll_seq *b = arrive_like(a, 200, 1);
        apply();
        uint64_t *const fields[] = {&b->salt[0], &b->salt[1], &b->domain,
                                    &f.scheduler.weights_epoch};
        if (i < 4)
            ++*fields[i];
        else if (i == 4)
            b->adapter = 1;
        else if (i == 5)
            b->adapter_generation = 1;
        plan();
        assert_int_equal(b->n_cached, i == 6 ? 192 : 0); /* the last round changes nothing */
        apply();
        if (i < 6)
            teardown(NULL);
    }
}

static void a_nan_empties_the_cache(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(200, 1);
    plan();
    struct ll_seq *b = arrive_like(a, 200, 1), *c = arrive_like(a, 200, 1);
    apply();
    c->flags = LL_REQ_NO_CACHE;
    const struct ll_plan *p = plan();
    assert_int_equal(b->n_cached, 192);
    struct ll_result result = {.rows = f.out, .ext = f.ext, .n_rows = p->n_rows};
    for (uint32_t i = 0; i < p->n_rows; i++)
        f.out[i] = (struct ll_row_out){.slot = f.pool.seq[p->row[i].seq].device_slot,
                                       .status = LL_ROW_NAN};
    f.n_applied++;
    ll_scheduler_apply(&f.scheduler, p, &result, f.now_ns, f.yields);
    ll_outlet_publish(&f.outlet, f.yields, p->n_rows, f.now_ns);
    struct ll_seq *d = arrive_like(b, 200, 1);
    plan();
    assert_int_equal(d->n_cached, 0);
    apply();
}

static void idle_pages_go_the_longest_unused_first(void **state)
{
    (void)state;
    make(6, 1000, 10);
    struct ll_seq *a = arrive(130, 1);
    uint32_t prompt[130];
    memcpy(prompt, a->token, sizeof(prompt));
    plan();
    apply();
    arrive(130, 1);
    plan();
    apply();
    assert_int_equal(f.kv.n_idle, 4);
    struct ll_seq *c = arrive(200, 1); /* 4 pages: two are free, two idle ones go */
    plan();
    apply();
    assert_int_equal(c->state, LL_SEQ_FREE);
    struct ll_seq *again = arrive(130, 1);
    memcpy(again->token, prompt, sizeof(prompt));
    plan();
    assert_int_equal(again->n_cached, 0); /* a's went, the other's are there */
    apply();
}

static void idle_pages_become_free_in_pieces_for_a_long_prompt(void **state)
{
    (void)state;
    make(80, 4000, 12);
    f.scheduler.limits.context_max = CONTEXT;
    for (uint32_t i = 0; i < 5; i++) {
        struct ll_seq *a = arrive(1000, 1);
        while (a->state != LL_SEQ_FREE)
            if (plan()->n_rows > 0)
                apply();
    }
    uint32_t n_free = f.kv.n_free, n_wanted = ll_kv_pages_for(1001);
    assert_int_equal(f.kv.n_idle, 75);
    struct ll_seq *b = arrive(1000, 1);
    struct ll_planning p = {.s = &f.scheduler, .now_ns = f.now_ns, .n_starts = 1};
    ll_sched_adopt(&f.scheduler);
    for (uint32_t i = 1; n_free + 4 * i < n_wanted; i++) {
        p.n_lookups = p.n_evict = 4;
        ll_sched_admit(&p, 1000);
        assert_int_equal(f.kv.n_free, n_free + 4 * i);
        assert_int_equal(b->state, LL_SEQ_WAITING);
        check();
    }
    p.n_lookups = p.n_evict = 4;
    ll_sched_admit(&p, 1000);
    assert_int_equal(b->state, LL_SEQ_RUNNING);
    plan();
    apply();
}

static void a_call_starts_as_many_as_its_bound_and_the_next_goes_on(void **state)
{
    (void)state;
    make(100, 1000, 10);
    for (uint32_t i = 0; i < 3; i++)
        arrive(10, 5);
    struct ll_planning p = {.s = &f.scheduler, .now_ns = f.now_ns, .n_starts = 2, .n_lookups = 9};
    ll_sched_adopt(&f.scheduler);
    ll_sched_admit(&p, 1000);
    assert_int_equal(f.pool.list[LL_SEQ_RUNNING].n, 2);
    p.n_starts = 2;
    ll_sched_admit(&p, 1000);
    assert_int_equal(f.pool.list[LL_SEQ_RUNNING].n, 3);
    plan();
    apply();
}

static void what_was_cancelled_or_is_due_ends_while_the_device_works(void **state)
{
    (void)state;
    make(100, 1000, 10);
    struct ll_seq *a = arrive(10, 50), *b = arrive(10, 50);
    b->deadline_ns = f.now_ns + 50000;
    plan();
    cancel(a);
    assert_true(ll_scheduler_prepare(&f.scheduler, f.now_ns) > 0);
    assert_int_equal(a->state, LL_SEQ_ENDING);
    assert_int_equal(b->state, LL_SEQ_RUNNING);
    assert_true(ll_scheduler_prepare(&f.scheduler, b->deadline_ns) > 0);
    assert_int_equal(b->state, LL_SEQ_ENDING);
    apply();
}

static void a_long_prompt_is_looked_up_in_pieces(void **state)
{
    (void)state;
    make(200, 4000, 12);
    f.scheduler.limits.context_max = CONTEXT;
    struct ll_seq *a = arrive(1000, 1);
    uint32_t prompt[1000];
    memcpy(prompt, a->token, sizeof(prompt));
    while (a->state != LL_SEQ_FREE)
        if (plan()->n_rows > 0)
            apply();
    assert_int_equal(f.kv.n_idle, 15);
    /* With a bound of a few look-ups a call, nothing starts before all of them are made. */
    struct ll_seq *b = arrive(1000, 1);
    memcpy(b->token, prompt, sizeof(prompt));
    struct ll_planning p = {.s = &f.scheduler, .now_ns = f.now_ns, .n_starts = 1};
    ll_sched_adopt(&f.scheduler);
    for (uint32_t i = 1; i <= 3; i++) {
        p.n_lookups = 4;
        ll_sched_admit(&p, 1000);
        assert_int_equal(b->n_pages, 4 * i);
        assert_int_equal(b->state, LL_SEQ_WAITING);
        check();
    }
    p.n_lookups = 4;
    ll_sched_admit(&p, 1000);
    assert_int_equal(b->n_pages, 16);
    assert_int_equal(b->n_cached, 960);
    plan();
    apply();
}

static void a_waiting_sequence_gives_cached_pages_up_to_running_ones(void **state)
{
    (void)state;
    make(5, 1000, 10);
    struct ll_seq *a = arrive(130, 1);
    uint32_t prompt[130];
    memcpy(prompt, a->token, sizeof(prompt));
    plan();
    apply();
    struct ll_seq *b = arrive(120, 200);
    plan();
    struct ll_seq *c = arrive(250, 1); /* two cached pages and two that are not there */
    memcpy(c->token, prompt, sizeof(prompt));
    apply();
    plan();
    assert_int_equal(c->n_pages, 2);
    assert_int_equal(c->state, LL_SEQ_WAITING);
    for (int i = 0; i < 150 && c->n_pages > 0; i++) {
        apply();
        plan();
        atomic_store(&f.client.hot->cons_pos, f.client.a.events.prod);
        for (uint32_t k = 0; k < N_SEQS; k++)
            atomic_store(&f.client.slot[k].taken, f.pool.seq[k].n_written);
    }
    assert_int_equal(c->n_pages, 0);
    assert_true(b->n_pages > 3);
    assert_int_equal(ll_stat_get(&f.stats.preemptions), 0);
    apply();
}

static void who_overtakes_finds_no_pages_kept_back(void **state)
{
    (void)state;
    make(3, 1000, 10);
    struct ll_seq *a = arrive(130, 1);
    uint32_t prompt[130];
    memcpy(prompt, a->token, sizeof(prompt));
    plan();
    apply();
    assert_int_equal(f.kv.n_idle, 2);
    struct ll_seq *runs = arrive(20, 60);
    plan();
    struct ll_seq *b = arrive(130, 1); /* holds what is cached and waits for one more page */
    memcpy(b->token, prompt, sizeof(prompt));
    plan();
    assert_int_equal(b->n_pages, 2);
    struct ll_seq *c = arrive(150, 1); /* wants all pages, and goes first */
    c->flags = LL_REQ_NO_CACHE;
    c->priority = -1;
    cancel(runs);
    for (int i = 0; i < 5 && c->state != LL_SEQ_RUNNING; i++) {
        while (f.n_planned > f.n_applied)
            apply();
        plan();
    }
    assert_int_equal(c->state, LL_SEQ_RUNNING);
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
        TEST(the_one_admitted_last_gives_way_to_the_front_of_the_queue),
        TEST(a_victim_with_a_row_in_flight_keeps_its_token),
        TEST(pages_that_are_coming_cost_no_second_victim),
        TEST(what_the_gate_let_through_wrongly_fails_alone),
        TEST(a_victim_goes_to_the_host_and_comes_back_without_computing),
        TEST(what_ends_while_it_is_copied_keeps_its_pages_until_then),
        TEST(what_waits_on_the_host_gives_its_pages_back_at_its_end),
        TEST(without_host_pages_a_victim_is_computed_again),
        TEST(the_model_says_whether_to_copy_or_to_compute),
        TEST(the_cache_spares_copies_back),
        TEST(without_credit_there_is_no_row_and_in_the_end_a_stall),
        TEST(a_starved_newcomer_lets_others_pass),
        TEST(who_has_no_credit_pushes_nobody_out),
        TEST(each_prompt_token_is_scored_once_in_bounded_rows),
        TEST(after_a_preemption_only_the_rest_is_scored),
        TEST(a_prompt_recomputed_behind_its_output_is_scored_without_its_last_token),
        TEST(chunks_keep_steps_that_decode_within_the_limit),
        TEST(a_prompt_goes_on_whatever_the_limit),
        TEST(a_prompt_seen_before_is_computed_from_its_last_page),
        TEST(the_last_token_of_a_prompt_is_always_computed),
        TEST(running_sequences_share_pages_and_never_write_them),
        TEST(generated_text_is_found_too),
        TEST(no_cache_neither_uses_nor_fills),
        TEST(prompt_logprobs_are_computed_whatever_is_cached),
        TEST(who_may_not_share_finds_nothing),
        TEST(a_nan_empties_the_cache),
        TEST(idle_pages_go_the_longest_unused_first),
        TEST(idle_pages_become_free_in_pieces_for_a_long_prompt),
        TEST(a_call_starts_as_many_as_its_bound_and_the_next_goes_on),
        TEST(what_was_cancelled_or_is_due_ends_while_the_device_works),
        TEST(a_long_prompt_is_looked_up_in_pieces),
        TEST(a_waiting_sequence_gives_cached_pages_up_to_running_ones),
        TEST(who_overtakes_finds_no_pages_kept_back),
        TEST(the_same_state_gives_the_same_plan),
    };
    return cmocka_run_group_tests_name("runtime/scheduler", tests, NULL, NULL);
}
