/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/scheduler_impl.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "ll/client.h"

#include <stdlib.h>

int ll_scheduler_init(struct ll_scheduler *scheduler, const struct ll_scheduler_limits *limits,
                      struct ll_seq_pool *pool, struct ll_kv *kv, struct ll_outlet *outlet,
                      struct ll_stats *stats)
{
    if (limits->n_rows_max == 0 || limits->n_tokens_max == 0 || limits->n_slots == 0)
        return LL_ERR(-EINVAL, "rows, tokens and slots of a step must not be 0");
    *scheduler = (struct ll_scheduler){
        .limits = *limits,
        .pool = pool,
        .kv = kv,
        .outlet = outlet,
        .stats = stats,
        .n_free_slots = limits->n_slots,
        .matching = LL_NONE,
    };
    if (scheduler->limits.stall_ns == 0)
        scheduler->limits.stall_ns = 30 * LL_NS_PER_S;
    scheduler->free_slot = malloc(limits->n_slots * sizeof(*scheduler->free_slot));
    scheduler->prefill = malloc(limits->n_slots * sizeof(*scheduler->prefill));
    if (scheduler->free_slot == NULL || scheduler->prefill == NULL) {
        ll_scheduler_free(scheduler);
        return LL_ERR(-ENOMEM, "out of memory for %u device slots", limits->n_slots);
    }
    for (uint32_t i = 0; i < limits->n_slots; i++)
        scheduler->free_slot[i] = limits->n_slots - 1 - i;
    return 0;
}

void ll_scheduler_free(struct ll_scheduler *scheduler)
{
    free(scheduler->free_slot);
    free(scheduler->prefill);
    *scheduler = (struct ll_scheduler){0};
}

uint32_t ll_sched_tokens_max(const struct ll_scheduler *s, const struct ll_seq *seq)
{
    return (uint32_t)ll_min_u64((uint64_t)seq->n_prompt + seq->max_tokens, s->limits.context_max);
}

uint64_t ll_sched_tokens_booked(const struct ll_scheduler *s, const struct ll_seq *seq, uint32_t n)
{
    return ll_min_u64((uint64_t)n + LL_ROW_TOKENS_MAX, ll_sched_tokens_max(s, seq));
}

/* ---- prefill ----------------------------------------------------------------------------------*/

/* More to compute than the one token of a decode row. */
static bool is_prefilling(const struct ll_seq *seq)
{
    return seq->pos_hi + 1 < seq->n_tokens;
}

void ll_sched_join_prefill(struct ll_scheduler *s, struct ll_seq *seq)
{
    if (!is_prefilling(seq))
        return;
    LL_ASSERT(!seq->is_prefill && s->n_prefill < s->limits.n_slots);
    seq->is_prefill = true;
    s->prefill[s->n_prefill++] = seq->index;
}

void ll_sched_leave_prefill(struct ll_scheduler *s, struct ll_seq *seq)
{
    uint32_t i = 0;

    if (!seq->is_prefill)
        return;
    seq->is_prefill = false;
    while (s->prefill[i] != seq->index)
        i++;
    s->n_prefill--;
    for (; i < s->n_prefill; i++)
        s->prefill[i] = s->prefill[i + 1];
}

/* Prompt tokens that running sequences have still to compute, at most `enough`. */
static uint32_t backlog(const struct ll_scheduler *s, uint32_t enough)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < s->n_prefill && n < enough; i++) {
        const struct ll_seq *seq = &s->pool->seq[s->prefill[i]];
        n += seq->n_tokens - seq->pos_hi;
    }
    return (uint32_t)ll_min_u64(n, enough);
}

/* ---- rows -------------------------------------------------------------------------------------*/

static bool is_full(const struct ll_planning *p)
{
    return p->out->n_rows == p->s->limits.n_rows_max ||
           p->out->n_tokens == p->s->limits.n_tokens_max;
}

/* The next row of a sequence, as far as it can be told without pages and credits. */
static struct ll_plan_row next_row(const struct ll_planning *p, const struct ll_seq *seq)
{
    uint32_t pos = seq->pos_hi, n_left = p->s->limits.n_tokens_max - p->out->n_tokens;
    struct ll_plan_row row = {.seq = seq->index, .pos = pos};

    if (pos == seq->n_tokens) { /* the host does not know the id yet: run ahead */
        row.is_from_device = true;
        row.n_tokens = 1;
        row.flags = LL_ROW_SAMPLE;
    } else {
        LL_ASSERT(pos < seq->n_tokens);
        row.n_tokens = (uint32_t)ll_min_u64(seq->n_tokens - pos, n_left);
        uint32_t n_scorable = seq->n_prompt - 1; /* tokens 1 .. n_prompt - 1 have a logprob */
        if ((seq->flags & LL_REQ_PROMPT_LOGPROBS) && pos < n_scorable) {
            if (pos < seq->n_scored) {
                /* Computed again after a preemption, but reported already. */
                row.n_tokens = (uint32_t)ll_min_u64(row.n_tokens, seq->n_scored - pos);
            } else {
                /* The last prompt token has no target; it ends the row only where it is sampled
                 * from, else a row of its own follows. */
                bool samples = seq->n_tokens == seq->n_prompt;
                uint32_t n_max = ll_outlet_scored_max(seq, 1);
                row.flags |= LL_ROW_PROMPT_LOGPROBS;
                row.n_tokens = (uint32_t)ll_min_u64(row.n_tokens, n_max);
                row.n_tokens =
                    (uint32_t)ll_min_u64(row.n_tokens, n_scorable + (samples ? 1 : 0) - pos);
                row.n_scored = (uint32_t)ll_min_u64(row.n_tokens, n_scorable - pos);
            }
        }
        if (pos + row.n_tokens == seq->n_tokens)
            row.flags |= LL_ROW_SAMPLE;
    }
    row.n_booked = ll_outlet_row_events(seq, (row.flags & LL_ROW_SAMPLE) != 0, row.n_scored);
    return row;
}

/* Credits for a row (O2); false: none, and the sequence has ended if that lasts too long. */
static bool book(struct ll_planning *p, struct ll_seq *seq, const struct ll_plan_row *row)
{
    if (row->n_booked == 0 || ll_outlet_book(p->s->outlet, seq, row->n_booked, p->now_ns))
        return true;
    if (p->now_ns - seq->starved_ns >= p->s->limits.stall_ns)
        ll_sched_end(p->s, seq, LL_END_STALLED, LL_E_STALLED);
    return false;
}

/* The plan counts as submitted. */
static void add_row(struct ll_planning *p, struct ll_seq *seq, const struct ll_plan_row *row)
{
    p->out->row[p->out->n_rows++] = *row;
    p->out->n_tokens += row->n_tokens;
    seq->pos_lo = seq->pos_hi = row->pos + row->n_tokens;
    seq->n_in_flight++;
    LL_ASSERT(seq->n_pages >= ll_kv_pages_for(ll_sched_tokens_booked(p->s, seq, seq->pos_hi)));
    LL_ASSERT(ll_kv_may_write(p->s->kv, seq, row->pos, seq->pos_hi)); /* P7 */
    if (seq->is_prefill && !is_prefilling(seq))
        ll_sched_leave_prefill(p->s, seq);
}

/* A row for a running sequence whose turn it is. */
static void run_seq(struct ll_planning *p, struct ll_seq *seq)
{
    struct ll_kv *kv = p->s->kv;
    struct ll_plan_row row = next_row(p, seq);
    uint64_t n_tokens = ll_sched_tokens_booked(p->s, seq, row.pos + row.n_tokens);
    uint32_t n_pages = ll_kv_pages_for(n_tokens);

    /* Credits first: who cannot run anyway must not push others out. */
    if (!book(p, seq, &row))
        return;
    if (n_pages > seq->n_pages && !ll_sched_make_room(p, seq, n_pages - seq->n_pages)) {
        ll_outlet_unbook(p->s->outlet, seq, row.n_booked);
        return;
    }
    bool has_grown = ll_kv_grow(kv, seq, n_tokens);
    LL_ASSERT(has_grown);
    add_row(p, seq, &row);
}

/* ---- the passes of a plan ---------------------------------------------------------------------*/

/* Ends what is due, counts pages that come back when steps in flight are polled. */
static void look_at_ending_and_running(struct ll_planning *p)
{
    struct ll_scheduler *s = p->s;
    struct ll_seq_pool *pool = s->pool;

    for (uint32_t i = pool->list[LL_SEQ_RUNNING].first, next; i != LL_NONE; i = next) {
        struct ll_seq *seq = &pool->seq[i];
        next = seq->next;
        if (!ll_sched_end_if_due(s, seq, p->now_ns) && seq->is_preempted)
            p->n_coming += seq->n_pages;
    }
    for (uint32_t i = pool->list[LL_SEQ_ENDING].first; i != LL_NONE; i = pool->seq[i].next) {
        struct ll_seq *seq = &pool->seq[i];
        if (seq->n_in_flight == 0)
            ll_sched_release(s,
                             seq); /* who was moved to ENDING by somebody else holds them still */
        else
            p->n_coming += seq->n_pages;
    }
}

/* A piece of the pool a plan; a short queue is seen whole each time. */
static void look_at_waiting(struct ll_planning *p)
{
    struct ll_scheduler *s = p->s;
    uint32_t n = (uint32_t)ll_min_u64(s->pool->n, LL_SCHED_SCAN_MAX);

    for (; n > 0 && s->pool->list[LL_SEQ_WAITING].n > 0; n--) {
        struct ll_seq *seq = &s->pool->seq[s->next_scan];
        s->next_scan = s->next_scan + 1 == s->pool->n ? 0 : s->next_scan + 1;
        if (seq->state == LL_SEQ_WAITING)
            ll_sched_end_if_due(s, seq, p->now_ns);
    }
}

/* Rows of running sequences that have one token to compute. */
static void run_decode(struct ll_planning *p)
{
    struct ll_seq_pool *pool = p->s->pool;

    for (uint32_t i = pool->list[LL_SEQ_RUNNING].first, next; i != LL_NONE && !is_full(p);
         i = next) {
        struct ll_seq *seq = &pool->seq[i];
        next = seq->next;
        if (seq->is_preempted || seq->is_prefill ||
            seq->pos_hi + 1 > ll_sched_tokens_max(p->s, seq) - 1)
            continue; /* P6: the last token is on its way */
        /* A victim leaves the list, and next may be one. */
        uint32_t n_before = pool->list[LL_SEQ_RUNNING].n;
        run_seq(p, seq);
        if (pool->list[LL_SEQ_RUNNING].n == n_before)
            continue;
        if (seq->state == LL_SEQ_RUNNING)
            next = seq->next;
        else if (next != LL_NONE && pool->seq[next].state != LL_SEQ_RUNNING)
            break; /* both are gone: the rest waits for the next plan */
    }
}

/* Chunks of prompts, for what decode has left of the budget. */
static void run_prefill(struct ll_planning *p)
{
    struct ll_scheduler *s = p->s;

    for (uint32_t i = 0; i < s->n_prefill && !is_full(p);) {
        uint32_t index = s->prefill[i];
        if (!s->pool->seq[index].is_preempted)
            run_seq(p, &s->pool->seq[index]);
        if (i < s->n_prefill && s->prefill[i] == index)
            i++; /* else it is done, or has ended */
    }
}

static void begin(struct ll_planning *p)
{
    p->n_lookups = LL_SCHED_LOOKUPS_MAX;
    p->s->n_release_left = LL_SCHED_RELEASE_MAX;
}

uint32_t ll_scheduler_prepare(struct ll_scheduler *scheduler, uint64_t now_ns)
{
    struct ll_planning p = {.s = scheduler, .now_ns = now_ns};
    const struct ll_seq_list *list = scheduler->pool->list;
    uint32_t n_tokens = scheduler->limits.n_tokens_max, n_before = list[LL_SEQ_WAITING].n;

    begin(&p);
    uint32_t work = ll_kv_evict(scheduler->kv, scheduler->limits.n_slots, LL_SCHED_EVICT_MAX);
    n_tokens -= (uint32_t)ll_min_u64(n_tokens, list[LL_SEQ_RUNNING].n);
    n_tokens -= backlog(scheduler, n_tokens);
    if (n_before > 0)
        ll_sched_admit(&p, n_tokens);
    /* A slow reader that gives way makes the list longer. */
    work += list[LL_SEQ_WAITING].n != n_before;
    return work + LL_SCHED_LOOKUPS_MAX - p.n_lookups;
}

void ll_scheduler_plan(struct ll_scheduler *scheduler, uint64_t now_ns, struct ll_plan *out)
{
    struct ll_planning p = {.s = scheduler, .now_ns = now_ns, .out = out};

    out->n_rows = out->n_tokens = 0;
    begin(&p);
    look_at_ending_and_running(&p);
    look_at_waiting(&p);
    run_decode(&p);
    uint32_t n_decode = out->n_tokens, n_left = scheduler->limits.n_tokens_max - n_decode;
    if (out->n_rows < scheduler->limits.n_rows_max)
        ll_sched_admit(&p, n_left - backlog(scheduler, n_left));
    run_prefill(&p);
    ll_stat_add(&scheduler->stats->prefill_tokens, out->n_tokens - n_decode);
}

/* ---- apply ------------------------------------------------------------------------------------*/

static bool is_end_id(const struct ll_sampling *sampling, uint32_t id)
{
    for (uint32_t i = 0; i < sampling->n_end; i++)
        if (sampling->end[i] == id)
            return true;
    return false;
}

/* Takes sampled ids until one ends the sequence. */
static void take_tokens(struct ll_scheduler *s, struct ll_seq *seq, const struct ll_row_out *out,
                        struct ll_yield *yield)
{
    uint32_t n_max = ll_sched_tokens_max(s, seq);

    yield->index = seq->n_tokens - seq->n_prompt;
    for (uint32_t k = 0; k < out->n_tokens; k++) {
        uint32_t id = out->token[k];
        LL_ASSERT(seq->n_tokens < n_max); /* P6 */
        seq->token[seq->n_tokens++] = id;
        yield->token[k] = id;
        yield->logprob[k] = out->logprob[k];
        yield->n_tokens++;
        if (is_end_id(&seq->sampling, id)) {
            seq->stop_id = id;
            ll_sched_end(s, seq, LL_END_STOP, 0);
            return;
        }
        if (seq->n_tokens == n_max) {
            ll_sched_end(s, seq, LL_END_LENGTH, 0);
            return;
        }
    }
}

static void apply_row(struct ll_scheduler *s, const struct ll_plan_row *row,
                      const struct ll_result *result, const struct ll_row_out *out,
                      struct ll_yield *yield)
{
    struct ll_seq *seq = &s->pool->seq[row->seq];

    LL_ASSERT(out->slot == seq->device_slot && seq->n_in_flight > 0);
    LL_ASSERT(out->n_tokens <= LL_ROW_TOKENS_MAX);
    /* Field by field: the arrays behind need no clearing, 256 times a step. */
    yield->seq = row->seq;
    yield->n_booked = row->n_booked;
    yield->n_tokens = yield->n_scored = 0;
    seq->n_in_flight--;
    if (seq->state == LL_SEQ_ENDING) { /* it ended while this row was under way */
        if (seq->n_in_flight == 0)
            ll_sched_release(s, seq);
        return;
    }
    LL_ASSERT(seq->state == LL_SEQ_RUNNING);
    if (out->status != LL_ROW_OK) {
        /* Where a NaN comes from nobody knows: what pages hold may be behind it. */
        ll_prefix_forget_all(&s->kv->index);
        ll_sched_end(s, seq, LL_END_FAILED, LL_E_BACKEND);
        return;
    }
    seq->n_done = row->pos + row->n_tokens;
    ll_sched_publish(s, seq);
    yield->top = result->ext + out->ext;
    yield->scored = yield->top + out->n_tokens * seq->n_top;
    yield->n_scored = row->n_scored;
    yield->first_scored = row->pos + 1;
    seq->n_scored += row->n_scored;
    take_tokens(s, seq, out, yield);
    if (seq->is_preempted && seq->state == LL_SEQ_RUNNING && seq->n_in_flight == 0)
        ll_sched_requeue(s, seq);
}

uint32_t ll_scheduler_apply(struct ll_scheduler *scheduler, const struct ll_plan *plan,
                            const struct ll_result *result, uint64_t now_ns,
                            struct ll_yield *yields)
{
    (void)now_ns; /* a cost model will fit step times here */
    LL_ASSERT(result->n_rows == plan->n_rows);
    scheduler->n_release_left = LL_SCHED_RELEASE_MAX;
    scheduler->n_publish_left = LL_SCHED_PUBLISH_MAX;
    for (uint32_t i = 0; i < plan->n_rows; i++)
        apply_row(scheduler, &plan->row[i], result, &result->rows[i], &yields[i]);
    return plan->n_rows;
}

void ll_scheduler_fail_all(struct ll_scheduler *scheduler, int32_t code)
{
    struct ll_seq_pool *pool = scheduler->pool;

    scheduler->n_release_left = LL_SCHED_RELEASE_MAX;
    while (pool->list[LL_SEQ_WAITING].first != LL_NONE)
        ll_sched_end(scheduler, &pool->seq[pool->list[LL_SEQ_WAITING].first], LL_END_FAILED, code);
    while (pool->list[LL_SEQ_RUNNING].first != LL_NONE)
        ll_sched_end(scheduler, &pool->seq[pool->list[LL_SEQ_RUNNING].first], LL_END_FAILED, code);
}

/* ---- check ------------------------------------------------------------------------------------*/
void ll_scheduler_check(const struct ll_scheduler *scheduler)
{
    const struct ll_seq_pool *pool = scheduler->pool;
    uint32_t n_used = 0, n_prefill = 0;

    for (uint32_t i = 0; i < pool->n; i++) {
        const struct ll_seq *seq = &pool->seq[i];
        n_used += seq->device_slot != LL_NONE;
        if (seq->device_slot != LL_NONE)
            LL_ASSERT(seq->device_slot < scheduler->limits.n_slots);
        if (seq->state == LL_SEQ_WAITING)
            LL_ASSERT(seq->n_pages == 0 || scheduler->matching == i); /* P3 */
        LL_ASSERT(!seq->is_prefill || (seq->state == LL_SEQ_RUNNING && is_prefilling(seq)));
        n_prefill += seq->is_prefill;
        if (seq->state != LL_SEQ_RUNNING)
            continue;
        LL_ASSERT(seq->is_prefill == is_prefilling(seq));
        LL_ASSERT(seq->device_slot != LL_NONE); /* P3 */
        LL_ASSERT(seq->n_pages >=
                  ll_kv_pages_for(ll_sched_tokens_booked(scheduler, seq, seq->pos_hi))); /* Q4 */
        LL_ASSERT(seq->pos_hi < ll_sched_tokens_max(scheduler, seq));                    /* P6 */
        LL_ASSERT(seq->n_tokens < ll_sched_tokens_max(scheduler, seq));
    }
    LL_ASSERT(n_prefill == scheduler->n_prefill);
    LL_ASSERT(scheduler->matching == LL_NONE ||
              pool->seq[scheduler->matching].state == LL_SEQ_WAITING ||
              pool->seq[scheduler->matching].state == LL_SEQ_ENDING); /* ended by the outlet */
    LL_ASSERT(n_used + scheduler->n_free_slots == scheduler->limits.n_slots);
    ll_kv_check(scheduler->kv, pool);
}
