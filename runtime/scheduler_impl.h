/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/scheduler_impl.h - what the scheduler's files share: scheduler.c (rows, apply, check),
 * scheduler_admit.c (who starts, cached prefixes), scheduler_end.c (ends, preemption, pages). */
#ifndef RUNTIME_SCHEDULER_IMPL_H
#define RUNTIME_SCHEDULER_IMPL_H

#include "runtime/scheduler.h"

/* Bounds of one call, so that no queue, prefix or end costs a step its 30 us. */
#define LL_SCHED_SCAN_MAX    128u /* waiting sequences looked at for marks and deadlines */
#define LL_SCHED_PASS_MAX    64u  /* starved ones passed over at admission */
#define LL_SCHED_LOOKUPS_MAX 64u  /* pages looked up in the prefix cache (16 KiB of prompt) */
#define LL_SCHED_PUBLISH_MAX 48u  /* pages put into it; the rest follows with the next rows */
#define LL_SCHED_RELEASE_MAX 512u /* pages given back by sequences that ended */
#define LL_SCHED_EVICT_MAX   16u  /* idle pages made free ahead of need */

/* One call of plan() or prepare(). */
struct ll_planning {
    struct ll_scheduler *s;
    uint64_t now_ns;
    struct ll_plan *out; /* NULL in prepare() */
    uint32_t n_coming;   /* pages that will be available once steps in flight are polled */
    uint32_t n_lookups;  /* left of LL_SCHED_LOOKUPS_MAX */
};

/* ---- scheduler.c ------------------------------------------------------------------------------*/

/* Tokens a sequence can have at most. */
uint32_t ll_sched_tokens_max(const struct ll_scheduler *s, const struct ll_seq *seq);
/* Tokens whose pages must be there when KV is written up to position n (Q4). */
uint64_t ll_sched_tokens_booked(const struct ll_scheduler *s, const struct ll_seq *seq, uint32_t n);

/* On, off the list of those with prompt to compute; leaving twice does nothing. */
void ll_sched_join_prefill(struct ll_scheduler *s, struct ll_seq *seq);
void ll_sched_leave_prefill(struct ll_scheduler *s, struct ll_seq *seq);

/* ---- scheduler_admit.c ------------------------------------------------------------------------*/

/* Starts what waits, in order, while slots, pages and look-ups last and n_tokens of prompts are not
 * yet on their way. */
void ll_sched_admit(struct ll_planning *p, uint32_t n_tokens);
/* The sequence in WAITING that holds cached pages, if any, gives them back. */
void ll_sched_unmatch(struct ll_scheduler *s);
/* A row was computed: full pages go into the prefix cache. */
void ll_sched_publish(struct ll_scheduler *s, struct ll_seq *seq);

/* ---- scheduler_end.c --------------------------------------------------------------------------*/

/* P5: nothing is in flight. The slot is given back at once, pages within the call's bound: a
 * sequence in ENDING keeps the rest until the next one. */
void ll_sched_release(struct ll_scheduler *s, struct ll_seq *seq);
void ll_sched_end(struct ll_scheduler *s, struct ll_seq *seq, enum ll_end end, int32_t code);
/* Ends a waiting or running sequence that was marked or whose time is over. */
bool ll_sched_end_if_due(struct ll_scheduler *s, struct ll_seq *seq, uint64_t now_ns);
/* Back to WAITING. */
void ll_sched_requeue(struct ll_scheduler *s, struct ll_seq *seq);
/* Its rows in flight still count: their tokens are kept and need not be computed again. */
void ll_sched_preempt(struct ll_planning *p, struct ll_seq *seq, bool is_slow);
bool ll_sched_is_slow(const struct ll_seq *seq, uint64_t now_ns);
/* The running sequence whose reader has been without credit longest, if that is long. */
struct ll_seq *ll_sched_slowest(struct ll_planning *p);
/* Are n more pages available? Else somebody is preempted, or pages are on their way already; false:
 * not in this step. */
bool ll_sched_make_room(struct ll_planning *p, struct ll_seq *seq, uint32_t n);

#endif
