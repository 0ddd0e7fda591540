/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/scheduler_end.c - how sequences end or give way, and what they give back. */
#include "runtime/scheduler_impl.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"

/* A running reader without credit for so long may be preempted for those who wait: longer than any
 * hiccup of a reader that is alive. */
#define SLOW_NS (50 * LL_NS_PER_MS)

/* ---- ends -------------------------------------------------------------------------------------*/

static void give_slot_back(struct ll_scheduler *s, struct ll_seq *seq)
{
    if (seq->device_slot == LL_NONE)
        return;
    LL_ASSERT(s->n_free_slots < s->limits.n_slots);
    s->free_slot[s->n_free_slots++] = seq->device_slot;
    seq->device_slot = LL_NONE;
}

static void set_preempted(struct ll_scheduler *s, struct ll_seq *seq, bool is_preempted)
{
    s->n_preempting += (uint32_t)is_preempted - (uint32_t)seq->is_preempted;
    seq->is_preempted = is_preempted;
}

void ll_sched_release(struct ll_scheduler *s, struct ll_seq *seq)
{
    uint32_t n_before = seq->n_pages;

    LL_ASSERT(seq->state == LL_SEQ_ENDING && seq->n_in_flight == 0 && !ll_sched_is_copying(seq));
    give_slot_back(s, seq);
    ll_kv_release_some(s->kv, seq, s->n_release_left);
    s->n_release_left -= n_before - seq->n_pages;
}

void ll_sched_end(struct ll_scheduler *s, struct ll_seq *seq, enum ll_end end, int32_t code)
{
    ll_sched_dequeue(s, seq);
    seq->is_held = false;
    if (s->matching == seq->index)
        s->matching = LL_NONE;
    ll_sched_leave_prefill(s, seq);
    ll_heap_remove(&s->deadlines, seq->index);
    if (seq->account != LL_NONE)
        ll_queue_close(&s->queue, seq);
    set_preempted(s, seq, false);
    seq->end = end;
    seq->end_code = code;
    ll_seq_move(s->pool, seq, LL_SEQ_ENDING);
    ll_sched_end_copies(s, seq);
    if (seq->n_in_flight == 0 && !ll_sched_is_copying(seq))
        ll_sched_release(s, seq);
    if (seq->n_choices > 1)
        ll_sched_end_choice(s, seq);
}

bool ll_sched_end_if_due(struct ll_scheduler *s, struct ll_seq *seq, uint64_t now_ns)
{
    const struct ll_seq *leader = ll_seq_leader(s->pool, seq);

    if (leader->request_end != LL_END_NONE)
        ll_sched_end(s, seq, leader->request_end, leader->request_code);
    else if (leader->is_lost)
        ll_sched_end(s, seq, LL_END_LOST, 0);
    else if (leader->is_cancelled)
        ll_sched_end(s, seq, LL_END_CANCELLED, 0);
    else if (seq->is_stopped)
        ll_sched_end(s, seq, LL_END_STOP, 0);
    else if (seq->deadline_ns != 0 && now_ns >= seq->deadline_ns)
        ll_sched_end(s, seq, LL_END_EXPIRED, LL_E_DEADLINE);
    else
        return false;
    return true;
}

bool ll_sched_end_if_stalled(struct ll_planning *p, struct ll_seq *seq)
{
    uint64_t starved_ns = ll_seq_leader(p->s->pool, seq)->starved_ns;

    if (starved_ns == 0 || p->now_ns - starved_ns < p->s->limits.stall_ns)
        return false;
    ll_sched_end(p->s, seq, LL_END_STALLED, LL_E_STALLED);
    return true;
}

/* ---- preemption -------------------------------------------------------------------------------*/

/* Everything is computed again from the tokens, which are host truth, but for what the prefix
 * cache still has then, or what has gone to the host. */
void ll_sched_requeue(struct ll_scheduler *s, struct ll_seq *seq)
{
    LL_ASSERT(seq->n_in_flight == 0 && !ll_sched_is_copying(seq));
    LL_ASSERT(seq->swap == LL_SWAP_NONE || seq->n_swapped == seq->n_done);
    ll_sched_leave_prefill(s, seq);
    give_slot_back(s, seq);
    ll_kv_release(s->kv, seq);
    set_preempted(s, seq, false);
    seq->needs_init = false;
    seq->n_chained = seq->n_attached = 0;
    seq->n_done = seq->pos_lo = seq->pos_hi = 0;
    ll_seq_move_front(s->pool, seq, LL_SEQ_WAITING); /* adopt() looks for newcomers at the end */
    seq->is_victim = !seq->is_slow;
    if (seq->is_slow)
        ll_queue_age(&s->queue, seq);
    ll_queue_push(&s->queue, seq, seq->is_victim);
    seq->is_slow = false;
}

/* Of a request with several choices: none of them has had credit. */
static bool is_slow(const struct ll_planning *p, const struct ll_seq *seq)
{
    uint64_t starved_ns = ll_seq_leader(p->s->pool, seq)->starved_ns;

    return starved_ns != 0 && p->now_ns - starved_ns >= SLOW_NS;
}

void ll_sched_preempt(struct ll_planning *p, struct ll_seq *seq)
{
    struct ll_scheduler *s = p->s;

    ll_stat_add(&s->stats->preemptions, 1);
    s->n_reserve =
        (uint32_t)ll_min_u64(s->n_reserve + s->pool->list[LL_SEQ_RUNNING].n, s->kv->n_pages / 8);
    seq->is_slow = is_slow(p, seq);
    if (!ll_sched_swap_out(p, seq) && seq->n_in_flight == 0) {
        ll_sched_requeue(s, seq);
    } else {
        set_preempted(s, seq, true);
        p->n_coming += seq->n_pages;
    }
}

static bool may_give_way(const struct ll_seq *seq)
{
    return !seq->is_preempted && !ll_sched_is_copying(seq);
}

struct ll_seq *ll_sched_slowest(struct ll_planning *p)
{
    struct ll_seq_pool *pool = p->s->pool;
    struct ll_seq *found = NULL;
    uint64_t since_ns = UINT64_MAX;

    if (p->s->outlet->n_starved == 0)
        return NULL;
    for (uint32_t i = pool->list[LL_SEQ_RUNNING].first; i != LL_NONE; i = pool->seq[i].next) {
        struct ll_seq *seq = &pool->seq[i];
        uint64_t starved_ns = ll_seq_leader(pool, seq)->starved_ns;
        if (starved_ns < since_ns && may_give_way(seq) && is_slow(p, seq)) {
            found = seq;
            since_ns = starved_ns;
        }
    }
    return found;
}

/* Work that is lost when a sequence gives way: tokens of which nobody else holds the pages. */
static uint32_t loss_of(const struct ll_seq *seq)
{
    return seq->pos_hi - seq->n_attached * LL_PAGE_TOKENS;
}

/* Of two, does a give way rather than b? The lower priority, the smaller loss, the later arrival.
 */
static bool yields_before(const struct ll_seq *a, const struct ll_seq *b)
{
    if (a->priority != b->priority)
        return a->priority > b->priority;
    uint32_t loss_a = loss_of(a), loss_b = loss_of(b);
    return loss_a != loss_b ? loss_a < loss_b : a->order > b->order;
}

struct ll_seq *ll_sched_victim(struct ll_planning *p, int8_t priority)
{
    struct ll_seq_pool *pool = p->s->pool;
    struct ll_seq *victim = ll_sched_slowest(p);

    if (victim != NULL || !ll_seq_runs_at(pool, priority))
        return victim;
    for (uint32_t i = pool->list[LL_SEQ_RUNNING].first; i != LL_NONE; i = pool->seq[i].next) {
        struct ll_seq *seq = &pool->seq[i];
        if (may_give_way(seq) && seq->priority >= priority &&
            (victim == NULL || yields_before(seq, victim)))
            victim = seq;
    }
    return victim;
}

bool ll_sched_make_room(struct ll_planning *p, struct ll_seq *seq)
{
    struct ll_kv *kv = p->s->kv;

    if (ll_kv_available(kv) == 0)
        ll_sched_unmatch(p->s); /* who waits has no claim on pages that others need */
    while (ll_kv_available(kv) == 0) {
        if (p->n_coming > 0) {
            p->n_coming--; /* meant for this one */
            return false;
        }
        struct ll_seq *victim = ll_sched_victim(p, seq->priority);
        LL_ASSERT(victim != NULL); /* seq is one itself */
        if (victim == seq && seq->n_pages == kv->n_pages) {
            /* All pages are its own: the gate let through what can never fit. */
            ll_sched_end(p->s, seq, LL_END_FAILED, LL_E_NEVER_FITS);
            return false;
        }
        ll_sched_preempt(p, victim);
        if (victim == seq)
            return false;
    }
    return true;
}
