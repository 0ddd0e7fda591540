/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/scheduler_choices.c - requests of several choices: each is a sequence of its own, with
 * its own pages, slot and end; only the prompt is computed once.
 *
 * One choice, the primary, computes it; the others are held back until its last prompt row was
 * polled. Then they wait in the queue like anybody else and, when they start, take the prompt's
 * full pages from a choice that runs, or what the prefix cache has of them, so that at most 64
 * tokens are left to compute. Who finds neither (all others have ended or are preempted, the cache
 * is off or has lost it) computes the prompt again.
 *
 * A primary that is stopped before the prompt is there hands its part to the next choice. */
#include "runtime/scheduler_impl.h"

#include "base/assert.h"
#include "base/bits.h"

#include <string.h>

/* ---- what others have -------------------------------------------------------------------------*/

bool ll_sched_copy_prompt(struct ll_planning *p, struct ll_seq *seq)
{
    const struct ll_seq *leader = ll_seq_leader(p->s->pool, seq);

    if (leader == seq)
        return true;
    for (; seq->n_copied < seq->n_prompt; p->n_shares--) {
        uint32_t n = (uint32_t)ll_min_u64(seq->n_prompt - seq->n_copied, LL_PAGE_TOKENS);
        if (p->n_shares == 0)
            return false;
        /* A leader is FREE last, its prompt stays until then (Q6). */
        memcpy(seq->token + seq->n_copied, leader->token + seq->n_copied, n * sizeof(uint32_t));
        seq->n_copied += n;
    }
    return true;
}

/* A choice that has the first n_pages pages: of polled rows, and not on their way. NULL: none. */
static struct ll_seq *find_donor(const struct ll_scheduler *s, struct ll_seq *leader,
                                 const struct ll_seq *seq, uint32_t n_pages)
{
    for (uint32_t i = 0; i < leader->n_choices; i++) {
        uint32_t c = (leader->donor + i) % leader->n_choices;
        struct ll_seq *other = ll_seq_member(s->pool, leader, c);
        if (other == NULL || other == seq || other->state != LL_SEQ_RUNNING ||
            ll_sched_is_copying(other) || ll_sched_pages_shared(s, other, other->n_done) < n_pages)
            continue;
        leader->donor = c; /* mostly the next one's too */
        return other;
    }
    return NULL;
}

bool ll_sched_take_pages(struct ll_planning *p, struct ll_seq *seq, bool with_chain)
{
    struct ll_scheduler *s = p->s;
    uint32_t n_full = ll_sched_pages_shared(s, seq, seq->n_prompt - 1);

    /* Prompt logprobs come from computing the prompt. */
    if (seq->n_pages >= n_full || (seq->flags & LL_REQ_PROMPT_LOGPROBS) != 0)
        return true;
    struct ll_seq *donor = find_donor(s, ll_seq_leader(s->pool, seq), seq, n_full);
    if (donor == NULL || (with_chain && donor->n_chained != n_full))
        return true;
    for (; seq->n_pages < n_full; p->n_shares--) {
        if (p->n_shares == 0)
            return false;
        ll_kv_share(s->kv, donor, seq->n_pages);
        ll_kv_attach(s->kv, seq, donor->page[seq->n_pages]);
        s->matching = seq->index;
    }
    if (donor->n_chained == n_full) {
        seq->chain = donor->chain;
        seq->n_chained = n_full;
    }
    return true;
}

/* ---- who waits for the prompt -----------------------------------------------------------------*/

static void release(struct ll_scheduler *s, struct ll_seq *seq)
{
    seq->is_held = false;
    ll_queue_push(&s->queue, seq, false);
}

void ll_sched_release_held(struct ll_scheduler *s, const struct ll_seq *seq)
{
    struct ll_seq *leader = ll_seq_leader(s->pool, seq);

    if (leader->primary != seq->index || seq->n_done < seq->n_prompt)
        return;
    leader->primary = LL_NONE;
    for (uint32_t c = 0; c < leader->n_choices; c++) {
        struct ll_seq *other = ll_seq_member(s->pool, leader, c);
        if (other != NULL && other->is_held)
            release(s, other);
    }
}

/* The primary has ended before the prompt was computed. */
static void hand_over(struct ll_scheduler *s, struct ll_seq *leader, const struct ll_seq *primary)
{
    leader->primary = LL_NONE;
    for (uint32_t c = 0; c < leader->n_choices; c++) {
        struct ll_seq *other = ll_seq_member(s->pool, leader, c);
        if (other == NULL || !other->is_held)
            continue;
        /* The prompt's logprobs too, from where they were told. */
        other->flags = primary->flags;
        other->n_prompt_top = primary->n_prompt_top;
        other->n_scored = primary->n_scored;
        leader->primary = other->index;
        release(s, other);
        return;
    }
}

/* ---- ends -------------------------------------------------------------------------------------*/

void ll_sched_end_choice(struct ll_scheduler *s, struct ll_seq *seq)
{
    struct ll_seq *leader = ll_seq_leader(s->pool, seq);
    bool is_alone = seq->end == LL_END_STOP || seq->end == LL_END_LENGTH;

    if (leader->request_end != LL_END_NONE)
        return; /* all are marked */
    if (is_alone) {
        if (leader->primary == seq->index)
            hand_over(s, leader, seq);
        if (leader->is_lost || leader->is_cancelled)
            ll_seq_mark_request(s->pool, leader); /* it may have borne the mark */
        return;
    }
    leader->request_end = seq->end;
    leader->request_code = seq->end_code;
    leader->primary = LL_NONE;
    /* Not at once: 128 ends are too many for a step, and callers may be walking a list. */
    for (uint32_t c = 0; c < leader->n_choices; c++) {
        struct ll_seq *other = ll_seq_member(s->pool, leader, c);
        if (other != NULL && (other->state == LL_SEQ_WAITING || other->state == LL_SEQ_RUNNING))
            ll_seq_mark(s->pool, other);
    }
}
