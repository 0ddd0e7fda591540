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
    if (limits->n_grid > ll_scheduler_grid(limits->n_tokens_max, limits->n_rows_max) ||
        limits->n_grid % LL_PAGE_TOKENS != 0)
        return LL_ERR(-EINVAL, "a grid of %u tokens does not fit steps of %u", limits->n_grid,
                      limits->n_tokens_max);
    *scheduler = (struct ll_scheduler){
        .limits = *limits,
        .pool = pool,
        .kv = kv,
        .outlet = outlet,
        .stats = stats,
        .n_free_slots = limits->n_slots,
        .matching = LL_NONE,
        .parked = {.first = LL_NONE, .last = LL_NONE},
    };
    ll_cost_init(&scheduler->cost);
    scheduler->cost.copy_ns = (double)limits->copy_ns;
    scheduler->n_chunk_tokens = limits->n_tokens_max;
    if (scheduler->limits.stall_ns == 0)
        scheduler->limits.stall_ns = 30 * LL_NS_PER_S;
    scheduler->free_slot = malloc(limits->n_slots * sizeof(*scheduler->free_slot));
    scheduler->prefill = malloc(limits->n_slots * sizeof(*scheduler->prefill));
    scheduler->copying = malloc(limits->n_slots * sizeof(*scheduler->copying));
    scheduler->short_of_pages = malloc(limits->n_slots * sizeof(*scheduler->short_of_pages));
    if (scheduler->free_slot == NULL || scheduler->prefill == NULL ||
        scheduler->short_of_pages == NULL || scheduler->copying == NULL) {
        ll_scheduler_free(scheduler);
        return LL_ERR(-ENOMEM, "out of memory for %u device slots", limits->n_slots);
    }
    int rc = ll_queue_init(&scheduler->queue, pool);
    if (rc == 0)
        rc = ll_heap_init(&scheduler->deadlines, pool->n);
    if (rc < 0) {
        ll_scheduler_free(scheduler);
        return rc;
    }
    for (uint32_t i = 0; i < limits->n_slots; i++)
        scheduler->free_slot[i] = limits->n_slots - 1 - i;
    return 0;
}

void ll_scheduler_free(struct ll_scheduler *scheduler)
{
    free(scheduler->free_slot);
    free(scheduler->prefill);
    free(scheduler->short_of_pages);
    free(scheduler->copying);
    ll_queue_free(&scheduler->queue);
    ll_heap_free(&scheduler->deadlines);
    *scheduler = (struct ll_scheduler){0};
}

/* ---- plan -------------------------------------------------------------------------------------*/

/* Ends what was marked and what has expired. How many it looked at. */
static uint32_t end_due(struct ll_planning *p)
{
    struct ll_scheduler *s = p->s;
    struct ll_seq_pool *pool = s->pool;
    uint32_t n = 0, i;

    for (; n < LL_SCHED_ENDS_MAX && (i = pool->marked.first) != LL_NONE; n++)
        if (!ll_sched_end_if_due(s, &pool->seq[i], p->now_ns))
            ll_seq_unmark(pool, &pool->seq[i]);
    for (; n < LL_SCHED_ENDS_MAX && (i = ll_heap_first(&s->deadlines)) != LL_NONE; n++)
        if (!ll_sched_end_if_due(s, &pool->seq[i], p->now_ns))
            break;
    return n;
}

/* Takes back what ended ones hold; counts pages that come back when steps in flight are polled. */
static void look_at_ending(struct ll_planning *p)
{
    struct ll_scheduler *s = p->s;
    struct ll_seq_pool *pool = s->pool;

    for (uint32_t i = pool->list[LL_SEQ_ENDING].first; i != LL_NONE; i = pool->seq[i].next) {
        struct ll_seq *seq = &pool->seq[i];
        if (seq->n_in_flight == 0 && !ll_sched_is_copying(seq))
            ll_sched_release(s, seq); /* what the last call's bound has left */
        p->n_coming += seq->n_pages;
    }
    if (s->n_preempting == 0)
        return;
    for (uint32_t i = pool->list[LL_SEQ_RUNNING].first; i != LL_NONE; i = pool->seq[i].next)
        if (pool->seq[i].is_preempted)
            p->n_coming += pool->seq[i].n_pages;
}

static uint32_t begin(struct ll_planning *p)
{
    /* A plan may be waited for and prepare() is called more often: it does the most of these. */
    uint32_t share = p->out != NULL ? 4 : 1;

    p->n_lookups = LL_SCHED_LOOKUPS_MAX / share;
    p->n_evict = LL_SCHED_EVICT_MAX / share;
    p->n_shares = LL_SCHED_SHARES_MAX / share;
    p->n_starts = LL_SCHED_STARTS_MAX / share;
    p->s->n_release_left = LL_SCHED_RELEASE_MAX / share;
    ll_sched_adopt(p->s);
    uint32_t n_ended = end_due(p);
    look_at_ending(p);
    return n_ended;
}

uint32_t ll_scheduler_prepare(struct ll_scheduler *scheduler, uint64_t now_ns)
{
    struct ll_planning p = {.s = scheduler, .now_ns = now_ns};
    const struct ll_seq_list *list = scheduler->pool->list;
    uint32_t n_tokens = scheduler->limits.n_tokens_max;
    uint32_t work = ll_kv_evict(scheduler->kv, scheduler->limits.n_slots, LL_SCHED_EVICT_MAX / 4);

    work += begin(&p);
    uint32_t n_before = list[LL_SEQ_WAITING].n;
    if (n_before == 0 || scheduler->n_free_slots == 0)
        return work;
    n_tokens -= (uint32_t)ll_min_u64(n_tokens, list[LL_SEQ_RUNNING].n - scheduler->n_prefill);
    ll_sched_admit(&p, (uint32_t)ll_min_u64(n_tokens, scheduler->n_chunk_tokens));
    return work + (list[LL_SEQ_WAITING].n != n_before) + LL_SCHED_LOOKUPS_MAX - p.n_lookups +
           LL_SCHED_SHARES_MAX - p.n_shares + LL_SCHED_EVICT_MAX - p.n_evict;
}

void ll_scheduler_plan(struct ll_scheduler *scheduler, uint64_t now_ns, struct ll_plan *out)
{
    struct ll_planning p = {.s = scheduler, .now_ns = now_ns, .out = out};

    out->n_rows = out->n_tokens = 0;
    out->work = (struct ll_work){0};
    out->n_copies = 0;
    scheduler->n_reserve -= (scheduler->n_reserve + 63) / 64; /* forgotten within some 100 steps */
    begin(&p);
    ll_sched_run_decode(&p);
    uint32_t n_decode = out->n_tokens, n_left = scheduler->limits.n_tokens_max - n_decode;
    if (scheduler->limits.max_itl_ns != 0)
        scheduler->n_chunk_tokens = ll_sched_chunk_in_time(&p, 0, n_left);
    /* Also where decode has taken all: somebody of a higher priority may push one out. */
    ll_sched_admit(&p, (uint32_t)ll_max_u64(ll_min_u64(n_left, scheduler->n_chunk_tokens), 1));
    ll_sched_run_prefill(&p);
    ll_sched_list_copies(&p);
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
        if (seq->n_in_flight == 0 && !ll_sched_is_copying(seq))
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
    if (seq->n_choices > 1)
        ll_sched_release_held(s, seq);
    yield->top = result->ext + out->ext;
    if (row->n_scored > 0) {
        yield->scored = yield->top + out->n_tokens * seq->n_top;
        yield->n_scored = row->n_scored;
        yield->first_scored = row->pos + 1;
        seq->n_scored += row->n_scored;
    }
    take_tokens(s, seq, out, yield);
    if (seq->is_preempted && seq->state == LL_SEQ_RUNNING && seq->n_in_flight == 0 &&
        !ll_sched_is_copying(seq))
        ll_sched_requeue(s, seq);
}

static void fetch_ahead(const struct ll_scheduler *s, const struct ll_plan *plan, uint32_t i)
{
    if (i + LL_SEQ_AHEAD < plan->n_rows)
        ll_seq_prefetch(&s->pool->seq[plan->row[i + LL_SEQ_AHEAD].seq]);
    if (i + LL_SEQ_AHEAD / 2 < plan->n_rows) { /* by now its lines have come */
        const struct ll_plan_row *row = &plan->row[i + LL_SEQ_AHEAD / 2];
        const struct ll_seq *seq = &s->pool->seq[row->seq];
        __builtin_prefetch(seq->token + seq->n_tokens, 1);
        if ((row->pos + row->n_tokens) / LL_PAGE_TOKENS > seq->n_chained &&
            seq->n_chained < seq->n_pages) /* it is going to be published */
            ll_kv_fetch(s->kv, seq, seq->n_chained);
    }
}

uint32_t ll_scheduler_apply(struct ll_scheduler *scheduler, const struct ll_plan *plan,
                            const struct ll_result *result, uint64_t now_ns,
                            struct ll_yield *yields)
{
    (void)now_ns; /* a cost model will fit step times here */
    LL_ASSERT(result->n_rows == plan->n_rows);
    scheduler->n_release_left = LL_SCHED_RELEASE_MAX / 4;
    scheduler->n_publish_left = LL_SCHED_PUBLISH_MAX;
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        fetch_ahead(scheduler, plan, i);
        apply_row(scheduler, &plan->row[i], result, &result->rows[i], &yields[i]);
    }
    return plan->n_rows;
}

void ll_scheduler_fail_all(struct ll_scheduler *scheduler, int32_t code)
{
    struct ll_seq_pool *pool = scheduler->pool;

    scheduler->n_release_left = UINT32_MAX;
    while (pool->list[LL_SEQ_WAITING].first != LL_NONE)
        ll_sched_end(scheduler, &pool->seq[pool->list[LL_SEQ_WAITING].first], LL_END_FAILED, code);
    while (pool->list[LL_SEQ_RUNNING].first != LL_NONE)
        ll_sched_end(scheduler, &pool->seq[pool->list[LL_SEQ_RUNNING].first], LL_END_FAILED, code);
}

/* ---- another set of weights (P8) --------------------------------------------------------------*/

void ll_scheduler_withhold(struct ll_scheduler *scheduler)
{
    scheduler->withholds = true;
}

uint32_t ll_scheduler_n_begun(const struct ll_scheduler *scheduler)
{
    const struct ll_seq_pool *pool = scheduler->pool;
    uint32_t n = pool->list[LL_SEQ_RUNNING].n;

    for (uint32_t i = pool->list[LL_SEQ_WAITING].first; i != LL_NONE; i = pool->seq[i].next)
        n += ll_sched_has_begun(scheduler, &pool->seq[i]);
    return n;
}

void ll_scheduler_cut(struct ll_scheduler *scheduler, int32_t code)
{
    struct ll_seq_pool *pool = scheduler->pool;

    scheduler->n_release_left = UINT32_MAX;
    while (pool->list[LL_SEQ_RUNNING].first != LL_NONE)
        ll_sched_end(scheduler, &pool->seq[pool->list[LL_SEQ_RUNNING].first], LL_END_FAILED, code);
    for (uint32_t i = pool->list[LL_SEQ_WAITING].first, next; i != LL_NONE; i = next) {
        next = pool->seq[i].next;
        if (ll_sched_has_begun(scheduler, &pool->seq[i]))
            ll_sched_end(scheduler, &pool->seq[i], LL_END_FAILED, code);
    }
}

void ll_scheduler_switch(struct ll_scheduler *scheduler, uint64_t weights_epoch)
{
    LL_ASSERT(ll_scheduler_n_begun(scheduler) == 0);
    ll_sched_unmatch(scheduler); /* found by the old root */
    scheduler->weights_epoch = weights_epoch;
    scheduler->withholds = false;
}

void ll_scheduler_resume(struct ll_scheduler *scheduler)
{
    scheduler->withholds = false;
}

/* ---- check ------------------------------------------------------------------------------------*/
void ll_scheduler_check(const struct ll_scheduler *scheduler)
{
    const struct ll_seq_pool *pool = scheduler->pool;
    uint32_t n_used = 0, n_prefill = 0, n_preempting = 0, n_parked = 0, n_copying = 0;
    uint32_t n_withheld = 0;

    for (uint32_t i = 0; i < pool->n; i++) {
        const struct ll_seq *seq = &pool->seq[i];
        n_used += seq->device_slot != LL_NONE;
        if (seq->device_slot != LL_NONE)
            LL_ASSERT(seq->device_slot < scheduler->limits.n_slots);
        if (seq->state == LL_SEQ_WAITING)
            LL_ASSERT(seq->n_pages == 0 || scheduler->matching == i); /* P3 */
        LL_ASSERT(!seq->is_prefill ||
                  (seq->state == LL_SEQ_RUNNING && ll_sched_is_prefilling(seq)));
        n_prefill += seq->is_prefill;
        n_preempting += seq->is_preempted;
        n_parked += seq->is_parked;
        n_withheld += seq->is_withheld;
        LL_ASSERT(!seq->is_withheld || (seq->is_parked && !ll_sched_has_begun(scheduler, seq)));
        n_copying += ll_sched_is_copying(seq);
        LL_ASSERT(!seq->is_parked || (seq->state == LL_SEQ_WAITING && seq->line == LL_NONE));
        bool is_open = seq->state == LL_SEQ_RUNNING || seq->state == LL_SEQ_WAITING;
        bool is_new = seq->state == LL_SEQ_WAITING && seq->account == LL_NONE; /* not adopted */
        LL_ASSERT(is_new || is_open == (seq->account != LL_NONE));
        LL_ASSERT(is_new || seq->state != LL_SEQ_WAITING ||
                  seq->is_parked + seq->is_held + (seq->line != LL_NONE) == 1);
        LL_ASSERT(is_new ||
                  ll_heap_has(&scheduler->deadlines, i) == (is_open && seq->deadline_ns != 0));
        if (seq->state != LL_SEQ_RUNNING)
            continue;
        LL_ASSERT(seq->is_prefill == ll_sched_is_prefilling(seq));
        if (seq->n_in_flight > 0) /* P7 */
            LL_ASSERT(ll_kv_may_write(scheduler->kv, seq, seq->n_done, seq->pos_hi));
        LL_ASSERT(seq->device_slot != LL_NONE); /* P3 */
        LL_ASSERT(seq->n_pages >=
                  ll_kv_pages_for(ll_sched_tokens_booked(scheduler, seq, seq->pos_hi))); /* Q4 */
        LL_ASSERT(seq->pos_hi < ll_sched_tokens_max(scheduler, seq));                    /* P6 */
        if (scheduler->limits.n_grid != 0 && seq->pos_hi < seq->n_prompt)
            LL_ASSERT(seq->pos_hi % ll_sched_cell(scheduler, seq) == 0); /* P9 */
        LL_ASSERT(seq->n_tokens < ll_sched_tokens_max(scheduler, seq));
    }
    LL_ASSERT(n_prefill == scheduler->n_prefill && n_preempting == scheduler->n_preempting);
    LL_ASSERT(n_withheld == scheduler->n_withheld);
    LL_ASSERT(n_parked == scheduler->parked.n && n_copying == scheduler->n_copying);
    LL_ASSERT(scheduler->n_copy_batches - scheduler->n_copy_batches_done <= LL_PLAN_COPY_BATCHES);
    LL_ASSERT(scheduler->matching == LL_NONE ||
              pool->seq[scheduler->matching].state == LL_SEQ_WAITING ||
              pool->seq[scheduler->matching].state == LL_SEQ_ENDING); /* ended by the outlet */
    LL_ASSERT(n_used + scheduler->n_free_slots == scheduler->limits.n_slots);
    ll_kv_check(scheduler->kv, pool);
    ll_queue_check(&scheduler->queue);
    ll_heap_check(&scheduler->deadlines);
}
