/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/scheduler_row.c - the rows of a plan: a token each for those that decode, then chunks of
 * prompts for what is left of the step. */
#include "runtime/scheduler_impl.h"

#include "base/assert.h"
#include "base/bits.h"

/* ---- one row ----------------------------------------------------------------------------------*/

/* A row with prompt logprobs: what it scores fits its events, and the last prompt token, which has
 * no target, ends it only where it is sampled from; else a row of its own follows. */
static void cut_scored(const struct ll_seq *seq, struct ll_plan_row *row)
{
    uint32_t n_scorable = seq->n_prompt - 1; /* tokens 1 .. n_prompt - 1 have a logprob */

    if ((seq->flags & LL_REQ_PROMPT_LOGPROBS) == 0 || row->pos >= n_scorable)
        return;
    if (row->pos < seq->n_scored) {
        /* Computed again after a preemption, but reported already. */
        if (seq->n_scored < n_scorable)
            row->n_tokens = (uint32_t)ll_min_u64(row->n_tokens, seq->n_scored - row->pos);
        return;
    }
    uint32_t n_left = n_scorable - row->pos;
    bool samples = seq->n_tokens == seq->n_prompt;
    row->flags |= LL_ROW_PROMPT_LOGPROBS;
    row->n_tokens = (uint32_t)ll_min_u64(row->n_tokens, ll_outlet_scored_max(seq, 1));
    row->n_tokens = (uint32_t)ll_min_u64(row->n_tokens, n_left + (samples ? 1 : 0));
    row->n_scored = (uint32_t)ll_min_u64(row->n_tokens, n_left);
}

uint32_t ll_sched_cell(const struct ll_scheduler *s, const struct ll_seq *seq)
{
    const uint32_t n_grid = s->limits.n_grid;
    uint32_t n_scored = LL_PAGE_TOKENS;

    if ((seq->flags & LL_REQ_PROMPT_LOGPROBS) == 0)
        return n_grid;
    while (n_scored > ll_outlet_scored_max(seq, 1))
        n_scored /= 2;
    return n_scored;
}

/* Tokens that the next row of a sequence with prompt to compute has, if they all fit. */
static uint32_t row_tokens(const struct ll_scheduler *s, const struct ll_seq *seq)
{
    uint32_t n_left = seq->n_tokens - seq->pos_hi;

    if (s->limits.n_grid == 0)
        return n_left;
    if (seq->pos_hi >= seq->n_prompt)
        return 1; /* P9: computed again as it was the first time */
    uint32_t n_cell = ll_sched_cell(s, seq);
    return (uint32_t)ll_min_u64(seq->n_prompt - seq->pos_hi, n_cell - seq->pos_hi % n_cell);
}

/* Fills in the next row of the plan: that of seq with at most n_max tokens, as far as it can be
 * told without pages and credits. In place: 32 bytes written in pieces and copied at once wait for
 * each other in the store buffer, which was half of what a row took. */
static struct ll_plan_row *next_row(struct ll_planning *p, const struct ll_seq *seq, uint32_t n_max)
{
    struct ll_plan_row *row = &p->out->row[p->out->n_rows];

    row->seq = seq->index;
    row->pos = seq->pos_hi;
    row->n_scored = 0;
    row->is_from_device =
        row->pos == seq->n_tokens; /* the host does not know the id yet: run ahead */
    if (row->is_from_device) {
        row->n_tokens = 1;
        row->flags = LL_ROW_SAMPLE;
    } else {
        LL_ASSERT(row->pos < seq->n_tokens);
        row->n_tokens = (uint32_t)ll_min_u64(row_tokens(p->s, seq), n_max);
        row->flags = 0;
        cut_scored(seq, row);
        if (row->pos + row->n_tokens == seq->n_tokens)
            row->flags |= LL_ROW_SAMPLE;
    }
    row->n_booked = ll_outlet_row_events(seq, (row->flags & LL_ROW_SAMPLE) != 0, row->n_scored);
    return row;
}

static bool is_full(const struct ll_planning *p)
{
    return p->out->n_rows == p->s->limits.n_rows_max ||
           p->out->n_tokens == p->s->limits.n_tokens_max;
}

/* The row that next_row() made is part of the plan, which counts as submitted. */
static void add_row(struct ll_planning *p, struct ll_seq *seq, const struct ll_plan_row *row)
{
    struct ll_scheduler *s = p->s;

    p->out->n_rows++;
    p->out->n_tokens += row->n_tokens;
    ll_work_add(&p->out->work, row->pos, row->n_tokens);
    seq->pos_lo = seq->pos_hi = row->pos + row->n_tokens;
    seq->n_in_flight++;
    if (row->flags & LL_ROW_SAMPLE)
        ll_queue_charge(&s->queue, seq, LL_QUEUE_TOKEN_COST);
    LL_ASSERT((uint64_t)seq->n_pages * LL_PAGE_TOKENS >=
              ll_sched_tokens_booked(s, seq, seq->pos_hi));
    /* P7 without a look at the pages, of which each is a cache line far away: those behind what was
     * found or published are its own. ll_scheduler_check() looks. */
    LL_ASSERT(row->pos >= ll_max_u64(seq->n_attached, seq->n_chained) * LL_PAGE_TOKENS);
    LL_DEBUG_ASSERT(ll_kv_may_write(s->kv, seq, row->pos, seq->pos_hi));
    if (seq->is_prefill && !ll_sched_is_prefilling(seq)) {
        ll_sched_leave_prefill(s, seq);
        seq->is_victim = false;
    }
}

/* ---- decode -----------------------------------------------------------------------------------*/

enum outcome { DONE, SHORT_OF_PAGES };

static enum outcome run_one(struct ll_planning *p, struct ll_seq *seq)
{
    struct ll_scheduler *s = p->s;
    const struct ll_plan_row *row = next_row(p, seq, 1);
    uint64_t n_tokens = ll_sched_tokens_booked(s, seq, row->pos + row->n_tokens);

    /* Credits first: who cannot run anyway must not push others out. */
    if (!ll_outlet_book(s->outlet, seq, row->n_booked, p->now_ns)) {
        ll_sched_end_if_stalled(p, seq);
        return DONE;
    }
    if ((uint64_t)seq->n_pages * LL_PAGE_TOKENS < n_tokens && !ll_kv_grow(s->kv, seq, n_tokens)) {
        ll_outlet_unbook(s->outlet, seq, row->n_booked);
        return SHORT_OF_PAGES;
    }
    add_row(p, seq, row);
    return DONE;
}

/* The links lead from one cache line to the next, so the next but a few are found elsewhere: the
 * plan's memory still holds the rows of two steps ago, mostly those of now and in this order. */
static void fetch_ahead(const struct ll_planning *p)
{
    uint32_t place = p->out->n_rows + LL_SEQ_AHEAD;

    if (place < p->s->limits.n_rows_max)
        ll_seq_prefetch(&p->s->pool->seq[p->out->row[place].seq]);
}

void ll_sched_run_decode(struct ll_planning *p)
{
    struct ll_scheduler *s = p->s;
    struct ll_seq_pool *pool = s->pool;

    for (uint32_t i = pool->list[LL_SEQ_RUNNING].first, next; i != LL_NONE && !is_full(p);
         i = next) {
        struct ll_seq *seq = &pool->seq[i];
        next = seq->next;
        fetch_ahead(p);
        if (seq->is_preempted || seq->is_prefill || ll_sched_is_copying(seq) ||
            seq->pos_hi + 1 > ll_sched_tokens_max(s, seq) - 1)
            continue; /* P6: the last token is on its way */
        if (run_one(p, seq) == SHORT_OF_PAGES)
            s->short_of_pages[p->n_short++] = i;
    }
    for (uint32_t k = 0; k < p->n_short && !is_full(p); k++) {
        struct ll_seq *seq = &pool->seq[s->short_of_pages[k]];
        /* It may have given way itself meanwhile. */
        if (seq->state == LL_SEQ_RUNNING && !seq->is_preempted && ll_sched_make_room(p, seq)) {
            enum outcome outcome = run_one(p, seq);
            LL_ASSERT(outcome == DONE); /* a decode row wants one page at most */
        }
    }
}

/* ---- prefill ----------------------------------------------------------------------------------*/

void ll_sched_join_prefill(struct ll_scheduler *s, struct ll_seq *seq)
{
    if (!ll_sched_is_prefilling(seq))
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

static uint32_t tokens_left(const struct ll_seq *seq)
{
    return seq->n_tokens - seq->pos_hi;
}

/* A long prompt takes half of what is left at most while another wants some of it, so that a short
 * one is not behind all of it. */
static uint32_t chunk_max(const struct ll_seq *seq, uint32_t n_left)
{
    uint32_t half = (uint32_t)ll_max_u64(n_left / 2, LL_SCHED_CHUNK_MIN);

    return (uint32_t)ll_min_u64(ll_min_u64(tokens_left(seq), half), n_left);
}

/* Order among prompts: preempted ones first, then as in the queue. n_more: tokens that its account
 * is about to be charged. */
static struct ll_heap_key prefill_key(const struct ll_scheduler *s, const struct ll_seq *seq,
                                      uint32_t n_more)
{
    return ll_queue_rank(&s->queue, seq, seq->is_victim, n_more);
}

static bool is_before(struct ll_heap_key a, struct ll_heap_key b)
{
    return a.hi != b.hi ? a.hi < b.hi : a.lo < b.lo;
}

uint32_t ll_sched_left_by_others(const struct ll_scheduler *s, const struct ll_seq *seq,
                                 uint32_t n_more, uint32_t n_tokens)
{
    struct ll_heap_key key = prefill_key(s, seq, n_more);

    for (uint32_t i = 0; i < s->n_prefill && n_tokens > 0; i++) {
        const struct ll_seq *other = &s->pool->seq[s->prefill[i]];
        if (is_before(prefill_key(s, other, 0), key))
            n_tokens -= chunk_max(other, n_tokens);
    }
    return n_tokens;
}

/* Insertion sort: few, and nearly in order since the last time. */
static void sort_prefill(struct ll_scheduler *s)
{
    for (uint32_t i = 1; i < s->n_prefill; i++) {
        uint32_t index = s->prefill[i], k = i;
        struct ll_heap_key key = prefill_key(s, &s->pool->seq[index], 0);
        for (; k > 0; k--) {
            if (!is_before(key, prefill_key(s, &s->pool->seq[s->prefill[k - 1]], 0)))
                break;
            s->prefill[k] = s->prefill[k - 1];
        }
        s->prefill[k] = index;
    }
}

static void run_chunk(struct ll_planning *p, struct ll_seq *seq, uint32_t n_max)
{
    const struct ll_plan_row *row = next_row(p, seq, n_max);

    if (row->n_booked > 0 && !ll_outlet_book(p->s->outlet, seq, row->n_booked, p->now_ns)) {
        ll_sched_end_if_stalled(p, seq);
        return;
    }
    add_row(p, seq, row);
}

uint32_t ll_sched_chunk_in_time(const struct ll_planning *p, uint32_t pos, uint32_t n_max)
{
    const struct ll_scheduler *s = p->s;
    const struct ll_work *work = &p->out->work;

    if (s->limits.max_itl_ns == 0 || work->n_decode == 0)
        return n_max;
    uint32_t n = ll_cost_fit(&s->cost, work, pos, n_max, s->limits.max_itl_ns);
    if (n < n_max && n > LL_PAGE_TOKENS)
        n -= (pos + n) % LL_PAGE_TOKENS; /* whole pages: they can be shared */
    /* What is over a page's worth has been had by another prompt's chunk. */
    uint32_t n_least = work->n_prefill < LL_SCHED_CHUNK_MIN ? LL_SCHED_CHUNK_MIN : 0;
    return (uint32_t)ll_min_u64(ll_max_u64(n, n_least), n_max);
}

/* Of n_left tokens that a step has time for: what a row of seq may have while others want n_wanted
 * as well. 0: its cell, which is not cut, does not fit; the first of a step always does. */
static uint32_t row_max(const struct ll_planning *p, const struct ll_seq *seq, uint32_t n_left,
                        uint64_t n_wanted)
{
    const struct ll_scheduler *s = p->s;

    if (s->limits.n_grid == 0)
        return (uint32_t)ll_max_u64(chunk_max(seq, n_left),
                                    n_left > n_wanted ? n_left - n_wanted : 0);
    uint32_t n_cell = row_tokens(s, seq);
    uint32_t n_room =
        p->out->work.n_prefill == 0 ? s->limits.n_tokens_max - p->out->n_tokens : n_left;
    return n_cell <= n_room ? n_cell : 0;
}

void ll_sched_run_prefill(struct ll_planning *p)
{
    struct ll_scheduler *s = p->s;
    uint64_t n_wanted = 0;

    if (s->n_prefill == 0 || is_full(p))
        return;
    for (uint32_t i = 0; i < s->n_prefill; i++)
        n_wanted += tokens_left(&s->pool->seq[s->prefill[i]]);
    if (n_wanted > ll_min_u64(s->limits.n_tokens_max - p->out->n_tokens, s->n_chunk_tokens))
        sort_prefill(s);
    for (uint32_t i = 0; i < s->n_prefill && !is_full(p);) {
        uint32_t index = s->prefill[i];
        struct ll_seq *seq = &s->pool->seq[index];
        uint32_t n_left =
            ll_sched_chunk_in_time(p, seq->pos_hi, s->limits.n_tokens_max - p->out->n_tokens);
        if (n_left == 0)
            return;
        n_wanted -= tokens_left(seq); /* now: by those behind it */
        if (!seq->is_preempted && !ll_sched_is_copying(seq)) {
            uint32_t n_max = row_max(p, seq, n_left, n_wanted);
            if (n_max == 0)
                return; /* and nobody passes it */
            run_chunk(p, seq, n_max);
        }
        if (i < s->n_prefill && s->prefill[i] == index)
            i++; /* else it is done, or has ended */
    }
}
