/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/scheduler_end.c - how sequences end or give way, and what they give back. */
#include "runtime/scheduler_impl.h"

#include "base/assert.h"
#include "base/clock.h"
#include "ll/client.h"

/* A running reader without credit for so long may be preempted for those who wait: longer than any
 * hiccup of a reader that is alive. */
#define SLOW_NS (50 * LL_NS_PER_MS)

static void give_slot_back(struct ll_scheduler *s, struct ll_seq *seq)
{
    if (seq->device_slot == LL_NONE)
        return;
    LL_ASSERT(s->n_free_slots < s->limits.n_slots);
    s->free_slot[s->n_free_slots++] = seq->device_slot;
    seq->device_slot = LL_NONE;
}

void ll_sched_release(struct ll_scheduler *s, struct ll_seq *seq)
{
    uint32_t n_before = seq->n_pages;

    LL_ASSERT(seq->state == LL_SEQ_ENDING && seq->n_in_flight == 0);
    give_slot_back(s, seq);
    ll_kv_release_some(s->kv, seq, s->n_release_left);
    s->n_release_left -= n_before - seq->n_pages;
}

void ll_sched_end(struct ll_scheduler *s, struct ll_seq *seq, enum ll_end end, int32_t code)
{
    if (s->matching == seq->index)
        s->matching = LL_NONE;
    ll_sched_leave_prefill(s, seq);
    seq->end = end;
    seq->end_code = code;
    seq->is_preempted = false;
    ll_seq_move(s->pool, seq, LL_SEQ_ENDING);
    if (seq->n_in_flight == 0)
        ll_sched_release(s, seq);
}

bool ll_sched_end_if_due(struct ll_scheduler *s, struct ll_seq *seq, uint64_t now_ns)
{
    if (seq->is_lost)
        ll_sched_end(s, seq, LL_END_LOST, 0);
    else if (seq->is_cancelled)
        ll_sched_end(s, seq, LL_END_CANCELLED, 0);
    else if (seq->is_stopped)
        ll_sched_end(s, seq, LL_END_STOP, 0);
    else if (seq->deadline_ns != 0 && now_ns >= seq->deadline_ns)
        ll_sched_end(s, seq, LL_END_EXPIRED, LL_E_DEADLINE);
    else
        return false;
    return true;
}

/* Everything is computed again from the tokens, which are host truth, but for what the prefix
 * cache still has then. */
void ll_sched_requeue(struct ll_scheduler *s, struct ll_seq *seq)
{
    bool is_slow = seq->is_slow;

    LL_ASSERT(seq->n_in_flight == 0);
    ll_sched_leave_prefill(s, seq);
    give_slot_back(s, seq);
    ll_kv_release(s->kv, seq);
    seq->is_preempted = false;
    seq->is_slow = false;
    seq->needs_init = false;
    seq->n_chained = 0;
    seq->n_done = seq->pos_lo = seq->pos_hi = 0;
    if (is_slow)
        ll_seq_move(s->pool, seq, LL_SEQ_WAITING);
    else
        ll_seq_move_front(s->pool, seq, LL_SEQ_WAITING);
}

void ll_sched_preempt(struct ll_planning *p, struct ll_seq *seq, bool is_slow)
{
    ll_stat_add(&p->s->stats->preemptions, 1);
    seq->is_slow = is_slow;
    if (seq->n_in_flight == 0) {
        ll_sched_requeue(p->s, seq);
    } else {
        seq->is_preempted = true;
        p->n_coming += seq->n_pages;
    }
}

bool ll_sched_is_slow(const struct ll_seq *seq, uint64_t now_ns)
{
    return seq->starved_ns != 0 && now_ns - seq->starved_ns >= SLOW_NS;
}

struct ll_seq *ll_sched_slowest(struct ll_planning *p)
{
    struct ll_seq_pool *pool = p->s->pool;
    struct ll_seq *found = NULL;

    for (uint32_t i = pool->list[LL_SEQ_RUNNING].first; i != LL_NONE; i = pool->seq[i].next) {
        struct ll_seq *seq = &pool->seq[i];
        if (!seq->is_preempted && ll_sched_is_slow(seq, p->now_ns) &&
            (found == NULL || seq->starved_ns < found->starved_ns))
            found = seq;
    }
    return found;
}

/* Who gives way for a running sequence without a page. None of them has a row in this plan: a slow
 * reader got no credit for one, and decode rows are listed in the order of admission, so those
 * admitted after seq come later. */
static struct ll_seq *pick_victim(struct ll_planning *p, struct ll_seq *seq)
{
    struct ll_seq_pool *pool = p->s->pool;
    struct ll_seq *victim = ll_sched_slowest(p);

    if (victim != NULL)
        return victim;
    for (uint32_t i = pool->list[LL_SEQ_RUNNING].last; i != seq->index; i = pool->seq[i].prev)
        if (!pool->seq[i].is_preempted)
            return &pool->seq[i];
    return seq;
}

bool ll_sched_make_room(struct ll_planning *p, struct ll_seq *seq, uint32_t n)
{
    struct ll_kv *kv = p->s->kv;

    if (ll_kv_available(kv) < n)
        ll_sched_unmatch(p->s); /* who waits has no claim on pages that others need */
    while (ll_kv_available(kv) < n) {
        uint32_t n_missing = n - ll_kv_available(kv);
        if (p->n_coming >= n_missing) {
            p->n_coming -= n_missing; /* meant for this one */
            return false;
        }
        struct ll_seq *victim = pick_victim(p, seq);
        if (victim == seq && seq->n_pages + ll_kv_available(kv) == kv->n_pages) {
            /* All pages are its own: the gate let through what can never fit. */
            ll_sched_end(p->s, seq, LL_END_FAILED, LL_E_NEVER_FITS);
            return false;
        }
        ll_sched_preempt(p, victim, ll_sched_is_slow(victim, p->now_ns));
        if (victim == seq)
            return false;
    }
    return true;
}
