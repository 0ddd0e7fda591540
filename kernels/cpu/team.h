/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/team.h - the threads that carry a step: stages of items, and a barrier between.
 *
 * A step is a chain of stages; a stage is a number of items that may run in any order on any
 * thread. Worker 0 is the step thread, which works inside ll_team_work() for a slice at a time;
 * the others are threads of the team. Whoever finishes the last item of a stage prepares the next
 * one (next()), so the chain goes on while the step thread is busy elsewhere.
 *
 *   T1  an item is run by exactly one worker: it belongs to whoever moved `state` past it
 *   T2  the last of a stage's items to finish starts the next stage, and nobody else does; so
 *       next() never runs twice at once, and sees all that the stage's items wrote
 *   T3  without a step in flight the team's threads sleep: no CPU time */
#ifndef KERNELS_CPU_TEAM_H
#define KERNELS_CPU_TEAM_H

#include "base/bits.h"
#include "kernels/backend.h"

#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>

#define LL_TEAM_THREADS_MAX 256u
#define LL_TEAM_ITEMS_MAX   ((1u << 20) - 1) /* items a stage: 20 bits of state */

struct ll_team_work {
    void *context;
    /* Items of the next stage (1 .. LL_TEAM_ITEMS_MAX), or 0: the step that ran is over and its
     * results are out. After a 0 the next call begins the next step. */
    uint32_t (*next)(void *context, uint32_t worker);
    void (*item)(void *context, uint32_t worker, uint32_t item);
};

struct ll_team {
    struct ll_team_work work;
    uint32_t n_threads; /* the step thread included */
    pthread_t thread[LL_TEAM_THREADS_MAX];
    struct ll_team_seat {
        struct ll_team *team;
        uint32_t worker;
        int cpu; /* -1: anywhere */
    } seat[LL_TEAM_THREADS_MAX];

    /* stage number 24 | items 20 | next item 20. Items left: next item < items. */
    alignas(2 * LL_LINE_BYTES) _Atomic uint64_t state;
    alignas(2 * LL_LINE_BYTES) _Atomic uint32_t n_done; /* items of this stage that finished */
    alignas(2 * LL_LINE_BYTES) _Atomic bool is_busy;    /* steps queued or running; under lock to
                                                           change */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    uint32_t n_queued;   /* steps pushed and not over; under lock */
    uint32_t n_sleeping; /* under lock */
    bool is_stopping;    /* under lock */
};

/* cpus [n_threads] or NULL; cpus[0] is the step thread's own business. -EAGAIN, -ENOMEM. */
int ll_team_open(struct ll_team *team, const struct ll_team_work *work, uint32_t n_threads,
                 const int *cpus, struct ll_text *error);
/* Ends the threads once the items they run are done; queued steps stay undone. */
void ll_team_close(struct ll_team *team);

/* One more step is ready to begin. Step thread. */
void ll_team_push(struct ll_team *team);

/* Works on items for about slice_ns, or less where no step is left. Step thread. */
void ll_team_work(struct ll_team *team, uint64_t slice_ns);

/* Changes whenever a stage begins or an item is taken: for noticing that nothing moves. */
uint64_t ll_team_progress(struct ll_team *team);

#endif
