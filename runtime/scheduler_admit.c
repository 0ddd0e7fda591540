/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/scheduler_admit.c - who starts: the queue, slots, pages, and what the prefix cache has of
 * a prompt.
 *
 * Looking a prompt up takes time that grows with it, so a call does a bounded piece and the next
 * one goes on: at most one sequence in WAITING holds cached pages meanwhile, the one to start next.
 * It has no claim on them: a running sequence that lacks a page takes them back. */
#include "runtime/scheduler_impl.h"

#include "base/assert.h"
#include "base/bits.h"
#include "ll/client.h"

/* Pages whose entries are on their way while one is put in. */
#define PUBLISH_AHEAD 4u

/* ---- the prefix cache -------------------------------------------------------------------------*/

static bool may_look_up(const struct ll_scheduler *s, const struct ll_seq *seq)
{
    /* Prompt logprobs come from computing the prompt. */
    return s->limits.has_prefix_cache &&
           (seq->flags & (LL_REQ_NO_CACHE | LL_REQ_PROMPT_LOGPROBS)) == 0;
}

static void begin_chain(const struct ll_scheduler *s, struct ll_seq *seq)
{
    const struct ll_prefix_root root = {
        .weights_epoch = s->weights_epoch,
        .domain = seq->domain,
        .salt = {seq->salt[0], seq->salt[1]},
        .adapter = seq->adapter,
        .adapter_generation = seq->adapter_generation,
    };

    seq->chain = ll_prefix_begin(&s->kv->index, &root);
}

void ll_sched_unmatch(struct ll_scheduler *s)
{
    if (s->matching == LL_NONE)
        return;
    struct ll_seq *seq = &s->pool->seq[s->matching];
    s->matching = LL_NONE;
    LL_ASSERT(seq->state == LL_SEQ_WAITING);
    ll_kv_release(s->kv, seq);
    seq->n_chained = 0;
}

/* Attaches the next page that the cache has, or pages of a whole cell of the grid; false: it has
 * not all of them. What another one publishes meanwhile is found by the next try. */
static bool attach_next(struct ll_planning *p, struct ll_seq *seq, uint32_t n)
{
    struct ll_scheduler *s = p->s;
    uint32_t page[LL_SCHED_GRID_MAX / LL_PAGE_TOKENS];
    struct ll_chain chain = seq->chain;

    for (uint32_t i = 0; i < n; i++) {
        const uint32_t *ids = seq->token + (seq->n_pages + i) * LL_PAGE_TOKENS;
        p->n_lookups--;
        chain = ll_prefix_step(&s->kv->index, chain, ids);
        page[i] = ll_prefix_find(&s->kv->index, chain, ids);
        if (page[i] == LL_NONE)
            return false;
    }
    for (uint32_t i = 0; i < n; i++)
        ll_kv_attach(s->kv, seq, page[i]);
    s->matching = seq->index;
    seq->chain = chain;
    seq->n_chained += n;
    return true;
}

/* Attaches the cached pages of what a waiting sequence has to compute, and those that another
 * choice of its request has; the last token is always computed, since its logits are wanted. false:
 * the call's look-ups or shares are used up. */
static bool match(struct ll_planning *p, struct ll_seq *seq)
{
    struct ll_scheduler *s = p->s;
    const uint32_t n_max = ll_sched_pages_shared(s, seq, seq->n_tokens - 1);
    const uint32_t n_cell = s->limits.n_grid == 0 ? 1 : s->limits.n_grid / LL_PAGE_TOKENS;

    if (s->matching != seq->index)
        ll_sched_unmatch(s); /* who was first before has no claim any more */
    if (seq->n_choices > 1 && (!ll_sched_copy_prompt(p, seq) || !ll_sched_take_pages(p, seq, true)))
        return false;
    bool may = may_look_up(s, seq) && seq->n_chained == seq->n_pages;
    if (may && seq->n_chained == 0)
        begin_chain(s, seq);
    while (may && seq->n_pages < n_max) {
        if (p->n_lookups < n_cell)
            return false;
        may = attach_next(p, seq, n_cell);
    }
    return seq->n_choices == 1 || ll_sched_take_pages(p, seq, false);
}

void ll_sched_publish(struct ll_scheduler *s, struct ll_seq *seq)
{
    uint32_t n_full = ll_sched_pages_shared(s, seq, seq->n_done);

    if (seq->n_chained >= n_full || !s->limits.has_prefix_cache ||
        (seq->flags & LL_REQ_NO_CACHE) != 0)
        return;
    if (seq->n_chained == 0)
        begin_chain(s, seq);
    uint32_t n = (uint32_t)ll_min_u64(n_full - seq->n_chained, s->n_publish_left);
    s->n_publish_left -= n;
    for (uint32_t i = 0; i < ll_min_u64(n, PUBLISH_AHEAD); i++)
        ll_kv_fetch(s->kv, seq, seq->n_chained + i);
    /* The chain runs one page ahead of the index, whose lines come meanwhile. */
    struct ll_chain before = seq->chain;
    for (uint32_t i = seq->n_chained, end = i + n; i <= end; i++) {
        struct ll_chain chain = before;
        if (i < end) {
            if (i + PUBLISH_AHEAD < end)
                ll_kv_fetch(s->kv, seq, i + PUBLISH_AHEAD);
            chain = ll_prefix_step(&s->kv->index, before, seq->token + i * LL_PAGE_TOKENS);
            ll_prefix_fetch_chain(&s->kv->index, chain);
        }
        if (i > seq->n_chained)
            ll_kv_publish(s->kv, seq, i - 1, before);
        before = chain;
    }
    seq->n_chained += n;
    seq->chain = before;
}

/* ---- in and out of the queue ------------------------------------------------------------------*/

void ll_sched_adopt(struct ll_scheduler *s)
{
    struct ll_seq_pool *pool = s->pool;
    uint32_t first = LL_NONE;

    /* Intake adds at the end; whoever was here before stands before all of them. */
    for (uint32_t i = pool->list[LL_SEQ_WAITING].last;
         i != LL_NONE && pool->seq[i].account == LL_NONE; i = pool->seq[i].prev)
        first = i;
    for (uint32_t i = first; i != LL_NONE; i = pool->seq[i].next) {
        struct ll_seq *seq = &pool->seq[i];
        ll_queue_open(&s->queue, seq);
        if (!seq->is_held)
            ll_queue_push(&s->queue, seq, false);
        if (seq->deadline_ns != 0)
            ll_heap_set(&s->deadlines, i, (struct ll_heap_key){seq->deadline_ns, i});
    }
}

/* Beside the queue: a list through the links that the queue does not use then. */
static void park(struct ll_scheduler *s, struct ll_seq *seq)
{
    struct ll_seq *all = s->pool->seq;

    seq->is_parked = true;
    seq->q_left = s->parked.last;
    seq->q_right = LL_NONE;
    if (s->parked.last != LL_NONE)
        all[s->parked.last].q_right = seq->index;
    else
        s->parked.first = seq->index;
    s->parked.last = seq->index;
    s->parked.n++;
}

static void unpark(struct ll_scheduler *s, struct ll_seq *seq)
{
    struct ll_seq *all = s->pool->seq;

    seq->is_parked = false;
    s->n_withheld -= seq->is_withheld;
    seq->is_withheld = false;
    if (seq->q_left != LL_NONE)
        all[seq->q_left].q_right = seq->q_right;
    else
        s->parked.first = seq->q_right;
    if (seq->q_right != LL_NONE)
        all[seq->q_right].q_left = seq->q_left;
    else
        s->parked.last = seq->q_left;
    s->parked.n--;
}

void ll_sched_dequeue(struct ll_scheduler *s, struct ll_seq *seq)
{
    if (seq->is_parked)
        unpark(s, seq);
    else if (seq->line != LL_NONE)
        ll_queue_remove(&s->queue, seq, false);
}

/* Has its reader room for what its first row yields? */
static bool has_credit(struct ll_planning *p, struct ll_seq *seq)
{
    uint32_t n_scored = 0;

    /* As much as the row will want: with less it would start, starve, give way as a slow reader,
     * and be given credit anew for ever, never to end as stalled. */
    if (seq->flags & LL_REQ_PROMPT_LOGPROBS)
        n_scored =
            (uint32_t)ll_min_u64(seq->n_prompt - 1 - seq->n_scored, ll_outlet_scored_max(seq, 1));
    uint32_t n_events = ll_outlet_row_events(seq, 1, n_scored);
    if (!ll_outlet_book(p->s->outlet, seq, n_events, p->now_ns))
        return false;
    ll_outlet_unbook(p->s->outlet, seq, n_events);
    return true;
}

/* Its reader is behind: others must not wait for that. It keeps its number of arrival. */
static void set_aside(struct ll_planning *p, struct ll_seq *seq)
{
    if (ll_sched_end_if_stalled(p, seq))
        return;
    if (p->s->matching == seq->index)
        ll_sched_unmatch(p->s);
    ll_sched_dequeue(p->s, seq);
    park(p->s, seq);
}

/* Before the weights change: it keeps its number of arrival and waits beside the queue (P8). */
static void withhold(struct ll_scheduler *s, struct ll_seq *seq)
{
    if (s->matching == seq->index)
        ll_sched_unmatch(s);
    ll_sched_dequeue(s, seq);
    park(s, seq);
    seq->is_withheld = true;
    s->n_withheld++;
}

/* The weights have changed, or do not: all go back, before anybody starts, so that the queue's
 * order is what counts. */
static void take_back_withheld(struct ll_scheduler *s)
{
    uint32_t n_left = LL_SCHED_PASS_MAX;

    for (uint32_t n = s->parked.n; n > 0 && s->n_withheld > 0 && n_left > 0; n--, n_left--) {
        struct ll_seq *seq = &s->pool->seq[s->parked.first];
        bool is_withheld = seq->is_withheld;
        unpark(s, seq);
        if (is_withheld)
            ll_queue_push(&s->queue, seq, seq->is_victim);
        else
            park(s, seq);
    }
}

static void look_at_parked(struct ll_planning *p)
{
    struct ll_scheduler *s = p->s;

    for (uint32_t n = ll_min_u64(s->parked.n, LL_SCHED_PARKED_MAX); n > 0; n--) {
        struct ll_seq *seq = &s->pool->seq[s->parked.first];
        if (ll_sched_end_if_due(s, seq, p->now_ns))
            continue;
        if (seq->is_withheld) {
            unpark(s, seq);
            withhold(s, seq);
            continue;
        }
        bool has = has_credit(p, seq);
        if (!has && ll_sched_end_if_stalled(p, seq))
            continue;
        unpark(s, seq);
        if (has)
            ll_queue_push(&s->queue, seq, seq->is_victim);
        else
            park(s, seq);
    }
}

/* ---- admission --------------------------------------------------------------------------------*/

/* May a waiting sequence that wants n_pages more start? Slots and pages only. */
static bool has_room_for(const struct ll_planning *p, uint32_t n_pages)
{
    const struct ll_scheduler *s = p->s;
    /* A page for each that runs: they will want one before long; more where some had to give way
     * lately, so that who comes back does not at once go again. */
    uint64_t n_kept = s->pool->list[LL_SEQ_RUNNING].n;

    if (n_kept > 0)
        n_kept += s->n_reserve;
    return s->n_free_slots > 0 && ll_kv_available(s->kv) >= n_pages + n_kept;
}

/* Room by preemption: of a reader that sleeps, or of somebody of lower priority. false: there is
 * none, or not yet. */
static bool make_room_for(struct ll_planning *p, const struct ll_seq *seq, uint32_t n_pages)
{
    struct ll_seq *slow = ll_sched_slowest(p);

    if (slow != NULL)
        ll_sched_preempt(p, slow);
    while (!has_room_for(p, n_pages) && p->n_coming == 0 && seq->priority < INT8_MAX) {
        struct ll_seq *victim = ll_sched_victim(p, (int8_t)(seq->priority + 1));
        if (victim == NULL)
            break;
        ll_sched_preempt(p, victim);
    }
    return has_room_for(p, n_pages);
}

/* Idle pages become free in pieces, so that a long prompt does not take the index apart in one
 * call; false: the next one goes on. */
static bool make_free(struct ll_planning *p, uint32_t n_pages)
{
    struct ll_kv *kv = p->s->kv;

    p->n_evict -= ll_kv_evict(kv, n_pages, p->n_evict);
    return kv->n_free >= n_pages;
}

static void start(struct ll_planning *p, struct ll_seq *seq, uint64_t n_tokens)
{
    struct ll_scheduler *s = p->s;
    struct ll_seq *leader = ll_seq_leader(s->pool, seq);
    uint32_t n_cached = seq->n_pages * LL_PAGE_TOKENS;

    if (s->matching == seq->index)
        s->matching = LL_NONE;
    ll_queue_remove(&s->queue, seq, true);
    if (seq->t_run_ns == 0) { /* not after a preemption */
        if (!leader->has_run)
            leader->n_cached = n_cached;
        ll_stat_add(leader->has_run ? &s->stats->prompt_tokens_shared
                                    : &s->stats->prompt_tokens_cached,
                    n_cached);
        ll_queue_charge(&s->queue, seq, seq->n_prompt - n_cached);
    }
    seq->n_attached = seq->n_pages;
    seq->n_done = seq->pos_lo = seq->pos_hi = n_cached;
    bool has_grown = ll_kv_grow(s->kv, seq, n_tokens);
    LL_ASSERT(has_grown);
    if (seq->swap == LL_SWAP_HELD)
        ll_sched_swap_in(s, seq);
    seq->device_slot = s->free_slot[--s->n_free_slots];
    seq->needs_init = true;
    ll_seq_move(s->pool, seq, LL_SEQ_RUNNING);
    ll_sched_join_prefill(s, seq);
    ll_outlet_phase(s->outlet, seq, LL_PHASE_RUNNING, p->now_ns);
}

/* Tries to start the first in the queue; false: nobody starts now. */
static bool admit_first(struct ll_planning *p, struct ll_seq *seq, uint32_t n_tokens)
{
    struct ll_scheduler *s = p->s;

    if (!match(p, seq))
        return false;
    uint32_t n_left = seq->n_tokens - seq->n_pages * LL_PAGE_TOKENS;
    if (seq->swap == LL_SWAP_HELD)
        n_left = (uint32_t)ll_min_u64(n_left, seq->n_tokens - seq->n_swapped);
    if (ll_sched_left_by_others(s, seq, seq->t_run_ns == 0 ? n_left : 0, n_tokens) == 0)
        return false;
    /* All it has to compute, so that two long prompts never starve each other half way. */
    uint64_t n_booked = ll_sched_tokens_booked(s, seq, seq->n_tokens);
    uint32_t n_pages = ll_kv_pages_for(n_booked);
    if (n_pages > s->kv->n_pages) {
        ll_sched_end(s, seq, LL_END_FAILED, LL_E_NEVER_FITS);
        return true;
    }
    n_pages -= seq->n_pages;
    if (!has_room_for(p, n_pages) && !make_room_for(p, seq, n_pages))
        return false;
    if (!make_free(p, n_pages))
        return false;
    start(p, seq, n_booked);
    return true;
}

void ll_sched_admit(struct ll_planning *p, uint32_t n_tokens)
{
    struct ll_scheduler *s = p->s;
    struct ll_seq *seq;
    uint32_t n_passed = 0;

    look_at_parked(p);
    if (s->n_withheld > 0 && !s->withholds) {
        take_back_withheld(s);
        if (s->n_withheld > 0)
            return;
    }
    while (n_tokens > 0 && n_passed < LL_SCHED_PASS_MAX && p->n_starts > 0 &&
           (seq = ll_queue_first(&s->queue)) != NULL) {
        if (ll_sched_end_if_due(s, seq, p->now_ns))
            continue;
        if (s->withholds && !ll_sched_has_begun(s, seq)) {
            withhold(s, seq);
            n_passed++;
        } else if (!has_credit(p, seq)) {
            set_aside(p, seq);
            n_passed++;
        } else if (!admit_first(p, seq, n_tokens)) {
            return;
        } else {
            p->n_starts--;
        }
    }
}
