/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/scheduler_impl.h - what the scheduler's files share: scheduler.c (passes, apply, check),
 * scheduler_row.c (rows and chunks), scheduler_admit.c (who starts, cached prefixes),
 * scheduler_choices.c (requests of several choices), scheduler_end.c (ends, preemption, pages),
 * scheduler_swap.c (pages to the host and back). */
#ifndef RUNTIME_SCHEDULER_IMPL_H
#define RUNTIME_SCHEDULER_IMPL_H

#include "runtime/scheduler.h"

/* Bounds of one call, so that no queue, prefix or end costs a step its 30 us. */
#define LL_SCHED_ENDS_MAX    32u /* marked or expired sequences ended */
#define LL_SCHED_PASS_MAX    64u /* starved ones set aside at admission */
#define LL_SCHED_PARKED_MAX  16u /* of those set aside, asked again whether they have credit */
#define LL_SCHED_LOOKUPS_MAX 64u /* pages looked up in the prefix cache (16 KiB of prompt) */
#define LL_SCHED_SHARES_MAX                                                                        \
    256u                          /* pages taken from another choice, or copied prompts of a page  \
                                   */
#define LL_SCHED_PUBLISH_MAX 48u  /* pages put into it; the rest follows with the next rows */
#define LL_SCHED_RELEASE_MAX 512u /* pages given back by sequences that ended */
#define LL_SCHED_EVICT_MAX   64u  /* idle pages made free ahead of need */
#define LL_SCHED_STARTS_MAX  8u   /* waiting ones started */

/* A prompt's chunk leaves at least so much to the prompts behind it, if they want it. */
#define LL_SCHED_CHUNK_MIN LL_PAGE_TOKENS

/* One call of plan() or prepare(). */
struct ll_planning {
    struct ll_scheduler *s;
    uint64_t now_ns;
    struct ll_plan *out; /* NULL in prepare() */
    uint32_t n_coming;   /* pages that will be available once steps in flight are polled */
    uint32_t n_lookups;  /* left of LL_SCHED_LOOKUPS_MAX */
    uint32_t n_shares;   /* left of LL_SCHED_SHARES_MAX */
    uint32_t n_starts;   /* left of LL_SCHED_STARTS_MAX */
    uint32_t n_evict;    /* left of LL_SCHED_EVICT_MAX */
    uint32_t n_short;    /* running ones without a page for their row: s->short_of_pages[] */
};

/* ---- scheduler_row.c --------------------------------------------------------------------------*/

/* Tokens a sequence can have at most. */
static inline uint32_t ll_sched_tokens_max(const struct ll_scheduler *s, const struct ll_seq *seq)
{
    uint64_t n_wanted = (uint64_t)seq->n_prompt + seq->max_tokens;

    return (uint32_t)(n_wanted < s->limits.context_max ? n_wanted : s->limits.context_max);
}
/* Tokens whose pages must be there when KV is written up to position n (Q4). */
static inline uint64_t ll_sched_tokens_booked(const struct ll_scheduler *s,
                                              const struct ll_seq *seq, uint32_t n)
{
    uint64_t n_ahead = (uint64_t)n + LL_ROW_TOKENS_MAX, n_max = ll_sched_tokens_max(s, seq);

    return n_ahead < n_max ? n_ahead : n_max;
}
/* More to compute than the one token of a decode row. */
static inline bool ll_sched_is_prefilling(const struct ll_seq *seq)
{
    return seq->pos_hi + 1 < seq->n_tokens;
}

/* Tokens of a cell of the grid (P9) for this sequence: the scored ones of a row are bounded by
 * their events, so that a scored prompt's cells are a power of two that always fits. */
uint32_t ll_sched_cell(const struct ll_scheduler *s, const struct ll_seq *seq);
/* Full pages among the first n tokens that others may have: with a grid, whole cells of a prompt.
 */
static inline uint32_t ll_sched_pages_shared(const struct ll_scheduler *s, const struct ll_seq *seq,
                                             uint32_t n)
{
    const uint32_t n_grid = s->limits.n_grid;

    if (n_grid == 0)
        return n / LL_PAGE_TOKENS;
    if ((seq->flags & LL_REQ_PROMPT_LOGPROBS) != 0)
        return 0;
    n = n < seq->n_prompt ? n : seq->n_prompt;
    return (n - n % n_grid) / LL_PAGE_TOKENS;
}

/* On, off the list of those with prompt to compute; leaving twice does nothing. */
void ll_sched_join_prefill(struct ll_scheduler *s, struct ll_seq *seq);
void ll_sched_leave_prefill(struct ll_scheduler *s, struct ll_seq *seq);
/* Of n_tokens for prefill in a step: what is left for seq by those that go before it once its
 * account was charged n_more. */
uint32_t ll_sched_left_by_others(const struct ll_scheduler *s, const struct ll_seq *seq,
                                 uint32_t n_more, uint32_t n_tokens);

/* How many of n_max prompt tokens from position pos on this plan has time for: all where nobody
 * decodes, at least LL_SCHED_CHUNK_MIN else. */
uint32_t ll_sched_chunk_in_time(const struct ll_planning *p, uint32_t pos, uint32_t n_max);

/* Rows of running sequences that have one token to compute; then chunks of prompts. */
void ll_sched_run_decode(struct ll_planning *p);
void ll_sched_run_prefill(struct ll_planning *p);

/* ---- scheduler_admit.c ------------------------------------------------------------------------*/

/* Newcomers get their place in the queue. */
void ll_sched_adopt(struct ll_scheduler *s);
/* Starts what waits, in order, while slots, pages and look-ups last and prompts that go before
 * leave something of n_tokens. */
void ll_sched_admit(struct ll_planning *p, uint32_t n_tokens);
/* Out of the queue or from beside it. */
void ll_sched_dequeue(struct ll_scheduler *s, struct ll_seq *seq);
/* The sequence in WAITING that holds cached pages, if any, gives them back. */
void ll_sched_unmatch(struct ll_scheduler *s);
/* A row was computed: full pages go into the prefix cache. */
void ll_sched_publish(struct ll_scheduler *s, struct ll_seq *seq);

/* ---- scheduler_choices.c ----------------------------------------------------------------------*/

/* Prompt ids from the request's leader; false: the call's shares are used up, go on in the next
 * one. */
bool ll_sched_copy_prompt(struct ll_planning *p, struct ll_seq *seq);
/* Full pages of the prompt that another choice has; with_chain: only if it knows their place in the
 * prefix cache too, which spares the look-ups. false: likewise. */
bool ll_sched_take_pages(struct ll_planning *p, struct ll_seq *seq, bool with_chain);
/* A row of it was polled: is the prompt there for the choices that wait for it? */
void ll_sched_release_held(struct ll_scheduler *s, const struct ll_seq *seq);
/* It has ended: by itself, or with its request; then the others end with the next plans. */
void ll_sched_end_choice(struct ll_scheduler *s, struct ll_seq *seq);

/* ---- scheduler_swap.c -------------------------------------------------------------------------*/

/* A sequence that is preempted: its pages go to the host, where that is the better way; false: it
 * is not. */
bool ll_sched_swap_out(struct ll_planning *p, struct ll_seq *seq);
/* A sequence that starts with pages in host memory: those come back that the cache did not have. */
void ll_sched_swap_in(struct ll_scheduler *s, struct ll_seq *seq);
/* It ends: host pages are given back, now or when what is under way is done. */
void ll_sched_end_copies(struct ll_scheduler *s, struct ll_seq *seq);
/* Lists what is to be copied. */
void ll_sched_list_copies(struct ll_planning *p);
/* Has a row of its request been planned? Then it ends on the weights it began with (P8). */
static inline bool ll_sched_has_begun(const struct ll_scheduler *s, const struct ll_seq *seq)
{
    return seq->t_run_ns != 0 || ll_seq_leader(s->pool, seq)->has_run;
}
/* May its pages not be given back nor its rows planned? */
static inline bool ll_sched_is_copying(const struct ll_seq *seq)
{
    return seq->swap == LL_SWAP_OUT || seq->swap == LL_SWAP_IN;
}

/* ---- scheduler_end.c --------------------------------------------------------------------------*/

/* P5: nothing is in flight or being copied. The slot is given back at once, pages within the call's
 * bound: a sequence in ENDING keeps the rest until the next one. */
void ll_sched_release(struct ll_scheduler *s, struct ll_seq *seq);
void ll_sched_end(struct ll_scheduler *s, struct ll_seq *seq, enum ll_end end, int32_t code);
/* Ends a waiting or running sequence that was marked or whose time is over. */
bool ll_sched_end_if_due(struct ll_scheduler *s, struct ll_seq *seq, uint64_t now_ns);
/* Without credit for too long: ends it. */
bool ll_sched_end_if_stalled(struct ll_planning *p, struct ll_seq *seq);
/* Back to WAITING: in its place, or (is_slow) behind all others. */
void ll_sched_requeue(struct ll_scheduler *s, struct ll_seq *seq);
/* A running sequence gives way. Rows in flight still count: their tokens are kept. */
void ll_sched_preempt(struct ll_planning *p, struct ll_seq *seq);
/* Who gives way for one of this priority, which may be among them; NULL: nobody. */
struct ll_seq *ll_sched_victim(struct ll_planning *p, int8_t priority);
/* The running sequence whose reader has been without credit longest, if that is long; NULL. */
struct ll_seq *ll_sched_slowest(struct ll_planning *p);
/* Is a page there for seq? Else somebody is preempted, or pages are on their way already; false:
 * not in this step. */
bool ll_sched_make_room(struct ll_planning *p, struct ll_seq *seq);

#endif
