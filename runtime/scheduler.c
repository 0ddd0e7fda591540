/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/scheduler.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "ll/client.h"

#include <stdlib.h>

/* Waiting sequences looked at for marks and deadlines a plan, and starved ones passed over at
 * admission: bounds, so that thousands waiting do not cost a step its time. */
#define SCAN_MAX 128u
#define PASS_MAX 64u

/* A running reader without credit for so long may be preempted for those who wait: longer than any
 * hiccup of a reader that is alive. */
#define SLOW_NS (50 * LL_NS_PER_MS)

/* One call of plan(). */
struct planning {
    struct ll_scheduler *s;
    uint64_t now_ns;
    struct ll_plan *out;
    uint32_t n_coming; /* pages that will be free once steps in flight are polled */
};

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
    };
    if (scheduler->limits.stall_ns == 0)
        scheduler->limits.stall_ns = 30 * LL_NS_PER_S;
    scheduler->free_slot = malloc(limits->n_slots * sizeof(*scheduler->free_slot));
    if (scheduler->free_slot == NULL)
        return LL_ERR(-ENOMEM, "out of memory for %u device slots", limits->n_slots);
    for (uint32_t i = 0; i < limits->n_slots; i++)
        scheduler->free_slot[i] = limits->n_slots - 1 - i;
    return 0;
}

void ll_scheduler_free(struct ll_scheduler *scheduler)
{
    free(scheduler->free_slot);
    *scheduler = (struct ll_scheduler){0};
}

/* ---- ends and preemption ----------------------------------------------------------------------*/

/* Tokens a sequence can have at most. */
static uint32_t tokens_max(const struct ll_scheduler *s, const struct ll_seq *seq)
{
    return (uint32_t)ll_min_u64((uint64_t)seq->n_prompt + seq->max_tokens, s->limits.context_max);
}

/* Tokens whose pages must be there when KV is written up to position n (Q4). */
static uint64_t tokens_booked(const struct ll_scheduler *s, const struct ll_seq *seq, uint32_t n)
{
    return ll_min_u64((uint64_t)n + LL_ROW_TOKENS_MAX, tokens_max(s, seq));
}

/* P5: the caller knows that nothing is in flight. */
static void release(struct ll_scheduler *s, struct ll_seq *seq)
{
    LL_ASSERT(seq->n_in_flight == 0);
    ll_kv_release(s->kv, seq);
    if (seq->device_slot != LL_NONE) {
        LL_ASSERT(s->n_free_slots < s->limits.n_slots);
        s->free_slot[s->n_free_slots++] = seq->device_slot;
        seq->device_slot = LL_NONE;
    }
    seq->is_preempted = false;
}

static void end_seq(struct ll_scheduler *s, struct ll_seq *seq, enum ll_end end, int32_t code)
{
    seq->end = end;
    seq->end_code = code;
    ll_seq_move(s->pool, seq, LL_SEQ_ENDING);
    if (seq->n_in_flight == 0)
        release(s, seq);
}

/* Ends a waiting or running sequence that was marked or whose time is over. */
static bool end_if_due(struct ll_scheduler *s, struct ll_seq *seq, uint64_t now_ns)
{
    if (seq->is_lost)
        end_seq(s, seq, LL_END_LOST, 0);
    else if (seq->is_cancelled)
        end_seq(s, seq, LL_END_CANCELLED, 0);
    else if (seq->is_stopped)
        end_seq(s, seq, LL_END_STOP, 0);
    else if (seq->deadline_ns != 0 && now_ns >= seq->deadline_ns)
        end_seq(s, seq, LL_END_EXPIRED, LL_E_DEADLINE);
    else
        return false;
    return true;
}

/* Back to WAITING: everything is computed again from the tokens, which are host truth. */
static void requeue(struct ll_scheduler *s, struct ll_seq *seq)
{
    bool is_slow = seq->is_slow;

    release(s, seq);
    seq->is_slow = false;
    seq->needs_init = false;
    seq->pos_lo = seq->pos_hi = 0;
    if (is_slow)
        ll_seq_move(s->pool, seq, LL_SEQ_WAITING);
    else
        ll_seq_move_front(s->pool, seq, LL_SEQ_WAITING);
}

/* Its rows in flight still count: their tokens are kept and need not be computed again. */
static void preempt(struct planning *p, struct ll_seq *seq, bool is_slow)
{
    ll_stat_add(&p->s->stats->preemptions, 1);
    seq->is_slow = is_slow;
    if (seq->n_in_flight == 0) {
        requeue(p->s, seq);
    } else {
        seq->is_preempted = true;
        p->n_coming += seq->n_pages;
    }
}

static bool is_slow(const struct ll_seq *seq, uint64_t now_ns)
{
    return seq->starved_ns != 0 && now_ns - seq->starved_ns >= SLOW_NS;
}

/* The running sequence whose reader has been without credit longest, if that is long. */
static struct ll_seq *slowest(struct planning *p)
{
    struct ll_seq_pool *pool = p->s->pool;
    struct ll_seq *found = NULL;

    for (uint32_t i = pool->list[LL_SEQ_RUNNING].first; i != LL_NONE; i = pool->seq[i].next) {
        struct ll_seq *seq = &pool->seq[i];
        if (!seq->is_preempted && is_slow(seq, p->now_ns) &&
            (found == NULL || seq->starved_ns < found->starved_ns))
            found = seq;
    }
    return found;
}

/* Who gives way for a running sequence without a page. None of them has a row in this plan: a slow
 * reader got no credit for one, and decode rows are listed in the order of admission, so those
 * admitted after seq come later. */
static struct ll_seq *pick_victim(struct planning *p, struct ll_seq *seq)
{
    struct ll_seq_pool *pool = p->s->pool;
    struct ll_seq *victim = slowest(p);

    if (victim != NULL)
        return victim;
    for (uint32_t i = pool->list[LL_SEQ_RUNNING].last; i != seq->index; i = pool->seq[i].prev)
        if (!pool->seq[i].is_preempted)
            return &pool->seq[i];
    return seq;
}

/* Are n more pages free? Else somebody is preempted, or pages are on their way already; false: not
 * in this step. */
static bool make_room(struct planning *p, struct ll_seq *seq, uint32_t n)
{
    struct ll_kv *kv = p->s->kv;

    while (kv->n_free < n) {
        uint32_t n_missing = n - kv->n_free;
        if (p->n_coming >= n_missing) {
            p->n_coming -= n_missing; /* meant for this one */
            return false;
        }
        struct ll_seq *victim = pick_victim(p, seq);
        if (victim == seq && seq->n_pages + kv->n_free == kv->n_pages) {
            /* All pages are its own: the gate let through what can never fit. */
            end_seq(p->s, seq, LL_END_FAILED, LL_E_NEVER_FITS);
            return false;
        }
        preempt(p, victim, is_slow(victim, p->now_ns));
        if (victim == seq)
            return false;
    }
    return true;
}

/* ---- rows -------------------------------------------------------------------------------------*/

static bool is_full(const struct planning *p)
{
    return p->out->n_rows == p->s->limits.n_rows_max ||
           p->out->n_tokens == p->s->limits.n_tokens_max;
}

/* The next row of a sequence, as far as it can be told without pages and credits. */
static struct ll_plan_row next_row(const struct planning *p, const struct ll_seq *seq)
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
static bool book(struct planning *p, struct ll_seq *seq, const struct ll_plan_row *row)
{
    if (row->n_booked == 0 || ll_outlet_book(p->s->outlet, seq, row->n_booked, p->now_ns))
        return true;
    if (p->now_ns - seq->starved_ns >= p->s->limits.stall_ns)
        end_seq(p->s, seq, LL_END_STALLED, LL_E_STALLED);
    return false;
}

/* The plan counts as submitted. */
static void add_row(struct planning *p, struct ll_seq *seq, const struct ll_plan_row *row)
{
    p->out->row[p->out->n_rows++] = *row;
    p->out->n_tokens += row->n_tokens;
    seq->pos_lo = seq->pos_hi = row->pos + row->n_tokens;
    seq->n_in_flight++;
    LL_ASSERT(seq->n_pages >= ll_kv_pages_for(tokens_booked(p->s, seq, seq->pos_hi)));
}

/* A row for a running sequence whose turn it is. */
static void run_seq(struct planning *p, struct ll_seq *seq)
{
    struct ll_kv *kv = p->s->kv;
    struct ll_plan_row row = next_row(p, seq);
    uint64_t n_tokens = tokens_booked(p->s, seq, row.pos + row.n_tokens);
    uint32_t n_pages = ll_kv_pages_for(n_tokens);

    /* Credits first: who cannot run anyway must not push others out. */
    if (!book(p, seq, &row))
        return;
    if (n_pages > seq->n_pages && !make_room(p, seq, n_pages - seq->n_pages)) {
        ll_outlet_unbook(p->s->outlet, seq, row.n_booked);
        return;
    }
    bool has_grown = ll_kv_grow(kv, seq, n_tokens);
    LL_ASSERT(has_grown);
    add_row(p, seq, &row);
}

/* ---- the passes of a plan ---------------------------------------------------------------------*/

/* Ends what is due, counts pages that come back when steps in flight are polled. */
static void look_at_ending_and_running(struct planning *p)
{
    struct ll_scheduler *s = p->s;
    struct ll_seq_pool *pool = s->pool;

    for (uint32_t i = pool->list[LL_SEQ_RUNNING].first, next; i != LL_NONE; i = next) {
        struct ll_seq *seq = &pool->seq[i];
        next = seq->next;
        if (!end_if_due(s, seq, p->now_ns) && seq->is_preempted)
            p->n_coming += seq->n_pages;
    }
    for (uint32_t i = pool->list[LL_SEQ_ENDING].first; i != LL_NONE; i = pool->seq[i].next) {
        struct ll_seq *seq = &pool->seq[i];
        if (seq->n_in_flight == 0)
            release(s, seq); /* who was moved to ENDING by somebody else holds them still */
        else
            p->n_coming += seq->n_pages;
    }
}

/* A piece of the pool a plan; a short queue is seen whole each time. */
static void look_at_waiting(struct planning *p)
{
    struct ll_scheduler *s = p->s;
    uint32_t n = (uint32_t)ll_min_u64(s->pool->n, SCAN_MAX);

    for (; n > 0 && s->pool->list[LL_SEQ_WAITING].n > 0; n--) {
        struct ll_seq *seq = &s->pool->seq[s->next_scan];
        s->next_scan = s->next_scan + 1 == s->pool->n ? 0 : s->next_scan + 1;
        if (seq->state == LL_SEQ_WAITING)
            end_if_due(s, seq, p->now_ns);
    }
}

/* Rows of running sequences: those with one token to compute, or those with more. */
static void run_running(struct planning *p, bool is_decode)
{
    struct ll_seq_pool *pool = p->s->pool;

    for (uint32_t i = pool->list[LL_SEQ_RUNNING].first, next; i != LL_NONE && !is_full(p);
         i = next) {
        struct ll_seq *seq = &pool->seq[i];
        next = seq->next;
        if (seq->is_preempted || seq->pos_hi + 1 > tokens_max(p->s, seq) - 1)
            continue; /* P6: the last token is on its way */
        if ((seq->pos_hi + 1 >= seq->n_tokens) != is_decode)
            continue;
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

/* May this waiting sequence start? Slots and pages only. */
static bool has_room_for(const struct planning *p, uint32_t n_pages)
{
    const struct ll_scheduler *s = p->s;
    /* A page for each that runs: they will want one before long. */
    uint32_t n_kept = s->pool->list[LL_SEQ_RUNNING].n;

    return s->n_free_slots > 0 && s->kv->n_free >= (uint64_t)n_pages + n_kept;
}

static void start_seq(struct planning *p, struct ll_seq *seq, const struct ll_plan_row *row,
                      uint64_t n_tokens)
{
    struct ll_scheduler *s = p->s;

    bool has_grown = ll_kv_grow(s->kv, seq, n_tokens);
    LL_ASSERT(has_grown);
    seq->device_slot = s->free_slot[--s->n_free_slots];
    seq->needs_init = true;
    ll_seq_move(s->pool, seq, LL_SEQ_RUNNING);
    ll_outlet_phase(s->outlet, seq, LL_PHASE_RUNNING, p->now_ns);
    add_row(p, seq, row);
}

static void start_waiting(struct planning *p)
{
    struct ll_scheduler *s = p->s;
    struct ll_seq_list *list = &s->pool->list[LL_SEQ_WAITING];
    uint32_t n_passed = 0;

    while (list->first != LL_NONE && !is_full(p) && n_passed < PASS_MAX) {
        struct ll_seq *seq = &s->pool->seq[list->first];
        if (end_if_due(s, seq, p->now_ns))
            continue;
        /* All it has to compute, so that two long prompts never starve each other half way. */
        uint64_t n_tokens = tokens_booked(s, seq, seq->n_tokens);
        uint32_t n_pages = ll_kv_pages_for(n_tokens);
        if (n_pages > s->kv->n_pages) {
            end_seq(s, seq, LL_END_FAILED, LL_E_NEVER_FITS);
            continue;
        }
        struct ll_plan_row row = next_row(p, seq);
        if (!book(p, seq, &row)) {
            /* Its reader is behind: others must not wait for that. */
            if (seq->state == LL_SEQ_WAITING)
                ll_seq_move(s->pool, seq, LL_SEQ_WAITING);
            n_passed++;
            continue;
        }
        struct ll_seq *slow;
        if (!has_room_for(p, n_pages) && (slow = slowest(p)) != NULL)
            preempt(p, slow, true);
        if (!has_room_for(p, n_pages)) {
            ll_outlet_unbook(s->outlet, seq, row.n_booked);
            return;
        }
        start_seq(p, seq, &row, n_tokens);
    }
}

void ll_scheduler_plan(struct ll_scheduler *scheduler, uint64_t now_ns, struct ll_plan *out)
{
    struct planning p = {.s = scheduler, .now_ns = now_ns, .out = out};

    out->n_rows = out->n_tokens = 0;
    look_at_ending_and_running(&p);
    look_at_waiting(&p);
    run_running(&p, true);
    uint32_t n_decode = out->n_tokens;
    run_running(&p, false);
    start_waiting(&p);
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
    uint32_t n_max = tokens_max(s, seq);

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
            end_seq(s, seq, LL_END_STOP, 0);
            return;
        }
        if (seq->n_tokens == n_max) {
            end_seq(s, seq, LL_END_LENGTH, 0);
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
            release(s, seq);
        return;
    }
    LL_ASSERT(seq->state == LL_SEQ_RUNNING);
    if (out->status != LL_ROW_OK) {
        end_seq(s, seq, LL_END_FAILED, LL_E_BACKEND);
        return;
    }
    yield->top = result->ext + out->ext;
    yield->scored = yield->top + out->n_tokens * seq->n_top;
    yield->n_scored = row->n_scored;
    yield->first_scored = row->pos + 1;
    seq->n_scored += row->n_scored;
    take_tokens(s, seq, out, yield);
    if (seq->is_preempted && seq->state == LL_SEQ_RUNNING && seq->n_in_flight == 0)
        requeue(s, seq);
}

uint32_t ll_scheduler_apply(struct ll_scheduler *scheduler, const struct ll_plan *plan,
                            const struct ll_result *result, uint64_t now_ns,
                            struct ll_yield *yields)
{
    (void)now_ns; /* a cost model will fit step times here */
    LL_ASSERT(result->n_rows == plan->n_rows);
    for (uint32_t i = 0; i < plan->n_rows; i++)
        apply_row(scheduler, &plan->row[i], result, &result->rows[i], &yields[i]);
    return plan->n_rows;
}

void ll_scheduler_fail_all(struct ll_scheduler *scheduler, int32_t code)
{
    struct ll_seq_pool *pool = scheduler->pool;

    while (pool->list[LL_SEQ_WAITING].first != LL_NONE)
        end_seq(scheduler, &pool->seq[pool->list[LL_SEQ_WAITING].first], LL_END_FAILED, code);
    while (pool->list[LL_SEQ_RUNNING].first != LL_NONE)
        end_seq(scheduler, &pool->seq[pool->list[LL_SEQ_RUNNING].first], LL_END_FAILED, code);
}

/* ---- check ------------------------------------------------------------------------------------*/
void ll_scheduler_check(const struct ll_scheduler *scheduler)
{
    const struct ll_seq_pool *pool = scheduler->pool;
    uint32_t n_used = 0;

    for (uint32_t i = 0; i < pool->n; i++) {
        const struct ll_seq *seq = &pool->seq[i];
        n_used += seq->device_slot != LL_NONE;
        if (seq->device_slot != LL_NONE)
            LL_ASSERT(seq->device_slot < scheduler->limits.n_slots);
        if (seq->state != LL_SEQ_RUNNING)
            continue;
        LL_ASSERT(seq->device_slot != LL_NONE); /* P3 */
        LL_ASSERT(seq->n_pages >=
                  ll_kv_pages_for(tokens_booked(scheduler, seq, seq->pos_hi))); /* Q4 */
        LL_ASSERT(seq->pos_hi < tokens_max(scheduler, seq));                    /* P6 */
        LL_ASSERT(seq->n_tokens < tokens_max(scheduler, seq));
    }
    LL_ASSERT(n_used + scheduler->n_free_slots == scheduler->limits.n_slots);
    ll_kv_check(scheduler->kv, pool);
}
