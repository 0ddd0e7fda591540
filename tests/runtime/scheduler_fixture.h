/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/scheduler_fixture.h - plan and apply alone: no device, no clock, sequences made by
 * hand. A step's result is made up: each sampled id is NEXT_ID. For the test_scheduler*.c. */
#ifndef TESTS_RUNTIME_SCHEDULER_FIXTURE_H
#define TESTS_RUNTIME_SCHEDULER_FIXTURE_H

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

static inline void make(uint32_t n_pages, uint32_t n_tokens_max, uint32_t log2_events)
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

static inline void check(void)
{
    ll_seq_check(&f.pool);
    ll_scheduler_check(&f.scheduler);
}

static inline int teardown(void **state)
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
static inline struct ll_seq *arrive(uint32_t n_prompt, uint32_t max_tokens)
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

static inline void cancel(struct ll_seq *seq)
{
    seq->is_cancelled = true;
    ll_seq_mark(&f.pool, seq);
}

static inline const struct ll_plan *plan(void)
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
static inline uint32_t apply_with(const struct ll_seq *ended)
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

static inline uint32_t apply(void)
{
    return apply_with(NULL);
}

/* Runs whatever there is until nothing is left to do. */
static inline void run_all(void)
{
    for (int i = 0; i < 2000; i++) {
        if (plan()->n_rows > 0)
            apply();
        atomic_store(&f.client.hot->cons_pos, f.client.a.events.prod);
        for (uint32_t k = 0; k < N_SEQS; k++)
            atomic_store(&f.client.slot[k].taken, f.pool.seq[k].n_written);
    }
}

static inline const struct ll_plan_row *row_for(const struct ll_plan *p, const struct ll_seq *seq)
{
    for (uint32_t i = 0; i < p->n_rows; i++)
        if (p->row[i].seq == seq->index)
            return &p->row[i];
    return NULL;
}

/* Two sequences of 56 tokens and one page each, on 3 pages: both want a second one at once. */
static inline void make_two(struct ll_seq **a, struct ll_seq **b)
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

/* A device that takes 1 ms a step, 10 us a prompt token and 20 us a decode row. */
static inline void learn_a_device(void)
{
    for (uint32_t i = 0; i < 200; i++) {
        struct ll_work work = {.n_prefill = i % 3 == 0 ? 50 * (i % 40) : 0, .n_decode = i % 16};
        ll_cost_learn(&f.scheduler.cost, &work,
                      1000000 + 10000ull * work.n_prefill + 20000ull * work.n_decode);
    }
}

/* A running one gives way before others; the pool counts those that run. */
static inline void lower(struct ll_seq *seq)
{
    assert_int_equal(seq->priority, 0);
    seq->priority = 1;
    f.pool.n_at_priority[128 + 0]--;
    f.pool.n_at_priority[128 + 1]++;
    f.pool.priorities[2] = (f.pool.n_at_priority[128] > 0) | 2;
}

/* Plans and applies until a sequence is in this state. */
static inline void run_until(const struct ll_seq *seq, enum ll_seq_state state, enum ll_swap swap)
{
    for (int i = 0; i < 300 && !(seq->state == state && seq->swap == swap); i++) {
        while (f.n_planned > f.n_applied)
            apply();
        plan();
    }
    assert_int_equal(seq->state, state);
    assert_int_equal(seq->swap, swap);
}

/* One more with the prompt of another. */
static inline struct ll_seq *arrive_like(const struct ll_seq *other, uint32_t n_prompt,
                                         uint32_t max_tokens)
{
    struct ll_seq *seq = arrive(n_prompt, max_tokens);

    memcpy(seq->token, other->token, ll_min_u64(n_prompt, other->n_tokens) * sizeof(uint32_t));
    return seq;
}

#endif
