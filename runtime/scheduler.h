/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/scheduler.h - who runs in the next step: pure, no I/O, no clock, no device.
 *
 * plan() moves sequences between WAITING and RUNNING, takes pages and credits, and lists the rows
 * of the next batch; apply() takes what a step returned and lists what to tell the clients. First
 * come first served, decode before prefill, prefill in chunks under the token budget. A plan counts
 * as submitted: positions and rows in flight move at once, so the caller must submit it. prepare()
 * does ahead of a plan what a plan would do, a bounded piece a call, while the device works.
 *
 * Waiting sequences start in order when pages for all they have to compute are there, and one page
 * more for each running sequence, so that a newcomer does not at once push somebody out. Pages that
 * the prefix cache has for the beginning of a prompt are taken from there; full pages go into it
 * once the step that made them has been polled, prompts and generated text alike. Where a
 * running sequence finds no page, one is preempted by recompute: a reader that has been without
 * credit for a while first, else the sequence admitted last. It goes to the front of WAITING (a
 * slow reader to the end) and what it has sampled becomes part of what is recomputed.
 *
 *   P1  every row's pages are booked before it is listed (kv.h), every row's events too (outlet.h)
 *   P2  a sequence has at most one row a batch
 *   P3  a RUNNING sequence holds a device slot; a WAITING one holds nothing, but for one that may
 *       hold pages of the prefix cache until a running one wants them
 *   P4  while anything runs or waits, and credits and pages allow, a plan is not empty
 *   P5  pages and slot of a sequence are given back only when no row of it is in flight
 *   P6  no row is submitted past the last token that can be needed (max_tokens, context)
 *   P7  a row writes only pages that its sequence owns (kv.h K1)
 *   P8  a request runs on one set of weights from its first row to its last, and finds no cached
 *       page that another set has computed. Before a change nobody new starts (P4 does not hold
 *       for them), what has begun ends, and then the weights change with nothing on the device
 *   P9  with a grid of G tokens a row of a prompt is exactly the positions [k G, (k + 1) G), or as
 *       far as the prompt goes; what was sampled is computed a token a row, also when it is
 *       computed again; and the prefix cache holds whole cells of prompts, nothing else. So how a
 *       position's KV and logits come about depends on its request alone, whatever else runs, on a
 *       device whose bits depend on the rows that a position is computed with. A prompt that is
 *       scored has a finer grid of its own, as its events allow, and shares no pages */
#ifndef RUNTIME_SCHEDULER_H
#define RUNTIME_SCHEDULER_H

#include "runtime/cost.h"
#include "runtime/kv.h"
#include "runtime/outlet.h"
#include "runtime/queue.h"
#include "runtime/sequence.h"

#define LL_SCHED_GRID_MAX 256u

struct ll_scheduler_limits {
    uint32_t n_rows_max;   /* --max-num-seqs */
    uint32_t n_tokens_max; /* --max-num-batched-tokens */
    uint32_t n_slots;      /* device slots */
    uint32_t context_max;
    uint64_t stall_ns; /* a reader without credit so long ends as stalled; 30 s */
    bool has_prefix_cache;
    bool is_deterministic; /* swap wherever host pages are free: never compute twice */
    uint32_t n_grid;       /* G of P9: ll_scheduler_grid(); 0: chunks as there is room and time */
    uint64_t copy_ns;      /* first guess of what the copy of a page takes; 0: nothing */
    uint64_t max_itl_ns;   /* a step with decode rows takes no more prompt than fits; 0: no limit */
};

struct ll_plan_row {
    uint32_t seq;
    uint32_t pos, n_tokens;
    uint16_t flags;      /* LL_ROW_* */
    bool is_from_device; /* the id is what the device sampled last */
    uint32_t n_booked;   /* events */
    uint32_t n_scored;   /* prompt tokens it scores: pos + 1 .. pos + n_scored */
};

struct ll_plan {
    struct ll_plan_row *row; /* [n_rows_max] */
    uint32_t n_rows, n_tokens;
    struct ll_work work;  /* what it costs */
    struct ll_copy *copy; /* [LL_PLAN_COPIES_MAX] to be begun after the rows were submitted */
    uint32_t n_copies;
    uint64_t
        copy_batch; /* with n_copies > 0: what ll_scheduler_copied() is told once all are done */
};

/* Page copies a plan: a few microseconds each for the thread that begins them. */
#define LL_PLAN_COPIES_MAX   16u
#define LL_PLAN_COPY_BATCHES 8u /* under way at once */

struct ll_scheduler {
    struct ll_scheduler_limits limits;
    struct ll_seq_pool *pool;
    struct ll_kv *kv;
    struct ll_outlet *outlet;
    struct ll_stats *stats;
    uint32_t *free_slot; /* stack of device slots */
    uint32_t n_free_slots;
    struct ll_cost cost; /* an input: who runs the steps lets it learn from them */
    struct ll_queue queue;
    struct ll_heap deadlines;  /* of waiting and running sequences, by their number */
    struct ll_seq_list parked; /* WAITING, out of the queue until their readers give credit */
    uint32_t n_preempting;     /* RUNNING with is_preempted */
    uint32_t n_reserve; /* pages kept free beside one a running sequence; see has_room_for() */
    uint32_t *copying;  /* [n_slots] whose pages are copied, in order */
    uint32_t n_copying;
    uint64_t n_copy_batches, n_copy_batches_done;
    uint32_t *short_of_pages; /* [n_slots] of this plan */
    uint32_t *prefill; /* [n_slots] running ones with more than a token to compute, in order */
    uint32_t n_prefill;
    uint32_t n_chunk_tokens; /* prompt tokens the last plan with decode rows had time for */
    uint32_t matching;       /* the one in WAITING that holds cached pages; LL_NONE: none */
    uint64_t weights_epoch;  /* part of the prefix cache's root */
    bool withholds;          /* P8: who has not begun does not start */
    uint32_t n_withheld;     /* of the parked ones */
    uint32_t n_release_left, n_publish_left; /* of this call's bounds */
};

/* The grid for such steps: a chunk fits whatever decodes beside it. 256 tokens: less and a prompt
 * alone reads all weights too often (a GPU's balance is at some 160), more and the cache, which
 * holds whole cells, misses more. 0: not even a page fits. */
static inline uint32_t ll_scheduler_grid(uint32_t n_tokens_max, uint32_t n_rows_max)
{
    uint32_t n_room = n_tokens_max > n_rows_max ? n_tokens_max - n_rows_max : 0;

    return n_room < LL_SCHED_GRID_MAX ? n_room - n_room % LL_PAGE_TOKENS : LL_SCHED_GRID_MAX;
}

int ll_scheduler_init(struct ll_scheduler *scheduler, const struct ll_scheduler_limits *limits,
                      struct ll_seq_pool *pool, struct ll_kv *kv, struct ll_outlet *outlet,
                      struct ll_stats *stats);
void ll_scheduler_free(struct ll_scheduler *scheduler);

/* Does a bounded piece of what the next plan would do: starts who waits, looks prompts up, empties
 * idle pages. Call it while a step runs. Work done, 0: nothing to do now. */
uint32_t ll_scheduler_prepare(struct ll_scheduler *scheduler, uint64_t now_ns);

/* Next step; n_rows 0: nothing can run. Also ends what was cancelled, stopped, expired, stalled. */
void ll_scheduler_plan(struct ll_scheduler *scheduler, uint64_t now_ns, struct ll_plan *out);

/* Takes a polled step: the plan it came from and its rows; fills yields[plan->n_rows], returns how
 * many. Ends sequences (eos, stop ids, max_tokens, NaN). */
uint32_t ll_scheduler_apply(struct ll_scheduler *scheduler, const struct ll_plan *plan,
                            const struct ll_result *result, uint64_t now_ns,
                            struct ll_yield *yields);

/* The copies of a plan are done; batches come in order, from 1. */
void ll_scheduler_copied(struct ll_scheduler *scheduler, uint64_t batch);

/* Ends all that waits or runs as FAILED with code: the grace of a drain is over. */
void ll_scheduler_fail_all(struct ll_scheduler *scheduler, int32_t code);

/* A change of weights (P8), in this order: withhold(); plan and apply until n_begun() is 0 and no
 * step is in flight, or cut() what is left, which ends as FAILED with code; then switch() to
 * another epoch. resume() instead of switch(): as if nothing had been. */
void ll_scheduler_withhold(struct ll_scheduler *scheduler);
/* Sequences that have begun and not ended: a walk over all that wait. */
uint32_t ll_scheduler_n_begun(const struct ll_scheduler *scheduler);
void ll_scheduler_cut(struct ll_scheduler *scheduler, int32_t code);
void ll_scheduler_switch(struct ll_scheduler *scheduler, uint64_t weights_epoch);
void ll_scheduler_resume(struct ll_scheduler *scheduler);

/* P3, P6, Q4 and kv; aborts on a fault. */
void ll_scheduler_check(const struct ll_scheduler *scheduler);

#endif
