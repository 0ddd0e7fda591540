/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/scheduler_swap.c - a preempted sequence's pages go to host memory and come back.
 *
 * Copies are listed in plans, a bounded number each, and run beside the steps (backend.h B3). The
 * plan that lists a copy comes after every row that writes the page, and no later row names it
 * until the copy is done: its sequence has no rows meanwhile.
 *
 *   NONE -> OUT (RUNNING, preempted; device pages held until all copies are done)
 *   OUT -> HELD (WAITING; host pages only)
 *   HELD -> IN (RUNNING; device pages taken, no rows until all copies are done) -> NONE
 *
 * Whatever part of the text the prefix cache still has when the sequence starts again is taken from
 * there, the rest is copied. */
#include "runtime/scheduler_impl.h"

#include "base/assert.h"
#include "base/bits.h"

/* ---- the list of those whose copies are under way ---------------------------------------------*/

static void begin_copies(struct ll_scheduler *s, struct ll_seq *seq, enum ll_swap swap,
                         uint32_t n_copies)
{
    LL_ASSERT(s->n_copying < s->limits.n_slots);
    seq->swap = swap;
    seq->n_copies = n_copies;
    seq->n_issued = 0;
    seq->copy_at = seq->host_first;
    s->copying[s->n_copying++] = seq->index;
}

static void leave(struct ll_scheduler *s, uint32_t place)
{
    s->n_copying--;
    for (uint32_t i = place; i < s->n_copying; i++)
        s->copying[i] = s->copying[i + 1];
}

/* All copies of a sequence are done, or none was begun. */
static void finish(struct ll_scheduler *s, struct ll_seq *seq)
{
    bool is_out = seq->swap == LL_SWAP_OUT;

    seq->swap = is_out && seq->state != LL_SEQ_ENDING ? LL_SWAP_HELD : LL_SWAP_NONE;
    if (seq->swap == LL_SWAP_NONE)
        ll_kv_host_drop(s->kv, seq, seq->n_host);
    if (seq->n_in_flight > 0)
        return;
    if (seq->state == LL_SEQ_ENDING)
        ll_sched_release(s, seq);
    else if (is_out)
        ll_sched_requeue(s, seq);
}

static bool is_through(const struct ll_scheduler *s, const struct ll_seq *seq)
{
    return seq->n_issued == seq->n_copies &&
           (seq->n_issued == 0 || seq->copy_batch <= s->n_copy_batches_done);
}

static void finish_all(struct ll_scheduler *s)
{
    for (uint32_t i = 0; i < s->n_copying;) {
        struct ll_seq *seq = &s->pool->seq[s->copying[i]];
        if (!is_through(s, seq)) {
            i++;
            continue;
        }
        leave(s, i);
        finish(s, seq);
    }
}

void ll_scheduler_copied(struct ll_scheduler *scheduler, uint64_t batch)
{
    LL_ASSERT(batch == scheduler->n_copy_batches_done + 1 && batch <= scheduler->n_copy_batches);
    scheduler->n_copy_batches_done = batch;
    scheduler->n_release_left = LL_SCHED_RELEASE_MAX;
    finish_all(scheduler);
}

/* ---- out and in -------------------------------------------------------------------------------*/

bool ll_sched_swap_out(struct ll_planning *p, struct ll_seq *seq)
{
    struct ll_scheduler *s = p->s;
    uint32_t n_pages = ll_kv_pages_for(seq->pos_hi);

    if (n_pages == 0 || seq->swap != LL_SWAP_NONE)
        return false;
    if (!s->limits.is_deterministic &&
        ll_cost_copy(&s->cost, 2 * n_pages) >= ll_cost_prefill(&s->cost, seq->pos_hi))
        return false;
    if (!ll_kv_host_take(s->kv, seq, n_pages))
        return false;
    seq->n_swapped = seq->pos_hi;
    begin_copies(s, seq, LL_SWAP_OUT, n_pages);
    ll_stat_add(&s->stats->preemptions_swapped, 1);
    return true;
}

void ll_sched_swap_in(struct ll_scheduler *s, struct ll_seq *seq)
{
    LL_ASSERT(seq->swap == LL_SWAP_HELD && seq->n_host == ll_kv_pages_for(seq->n_swapped));
    if (seq->n_attached * LL_PAGE_TOKENS >= seq->n_swapped) {
        /* The prefix cache has had all of it. */
        seq->swap = LL_SWAP_NONE;
        ll_kv_host_drop(s->kv, seq, seq->n_host);
        return;
    }
    ll_kv_host_drop(s->kv, seq, seq->n_attached);
    seq->n_done = seq->pos_lo = seq->pos_hi = seq->n_swapped;
    begin_copies(s, seq, LL_SWAP_IN, seq->n_host);
}

void ll_sched_end_copies(struct ll_scheduler *s, struct ll_seq *seq)
{
    if (seq->swap == LL_SWAP_HELD) {
        seq->swap = LL_SWAP_NONE;
        ll_kv_host_drop(s->kv, seq, seq->n_host);
    }
    if (seq->swap == LL_SWAP_NONE)
        return;
    seq->n_copies = seq->n_issued; /* no more of them; those under way must end first */
    if (!is_through(s, seq))
        return;
    uint32_t i = 0;
    while (s->copying[i] != seq->index)
        i++;
    leave(s, i);
    seq->swap = LL_SWAP_NONE;
    ll_kv_host_drop(s->kv, seq, seq->n_host);
}

void ll_sched_list_copies(struct ll_planning *p)
{
    struct ll_scheduler *s = p->s;
    struct ll_plan *out = p->out;

    if (s->n_copy_batches - s->n_copy_batches_done == LL_PLAN_COPY_BATCHES)
        return;
    uint64_t batch = s->n_copy_batches + 1;
    for (uint32_t i = 0; i < s->n_copying && out->n_copies < LL_PLAN_COPIES_MAX; i++) {
        struct ll_seq *seq = &s->pool->seq[s->copying[i]];
        bool is_out = seq->swap == LL_SWAP_OUT;
        while (seq->n_issued < seq->n_copies && out->n_copies < LL_PLAN_COPIES_MAX) {
            uint32_t page = seq->page[(is_out ? 0 : seq->n_attached) + seq->n_issued];
            struct ll_copy *copy = &out->copy[out->n_copies++];
            *copy = is_out ? (struct ll_copy){seq->copy_at, page, LL_COPY_D2H}
                           : (struct ll_copy){page, seq->copy_at, LL_COPY_H2D};
            seq->copy_at = s->kv->host_next[seq->copy_at];
            seq->copy_batch = batch;
            seq->n_issued++;
        }
    }
    if (out->n_copies > 0)
        s->n_copy_batches = out->copy_batch = batch;
}
