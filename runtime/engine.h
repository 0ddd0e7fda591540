/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/engine.h - the step loop: the one thread that owns sequences, pages, credits and device.
 *
 * A turn is seven calls in this order: intake_poll, scheduler_plan, batch_build, submit, poll,
 * scheduler_apply, outlet_publish (and scheduler_prepare, a piece of the next plan, after the
 * first). A turn never waits: with nothing to plan or to poll it falls
 * through, so the loop keeps looking at the bells while a step runs. Up to caps.depth steps are in
 * flight: n+1 is submitted before n is read, as late as the predicted end of n allows, so that an
 * arrival does not wait a whole extra step.
 *
 * Who does what: the caller opens and seals the device, makes the INFO and STAT regions and the two
 * mailboxes, opens the engine, starts a thread that calls ll_engine_run() and, when that has
 * returned, closes the engine, then the device.
 *
 *   G1  after ll_engine_open() the engine allocates nothing
 *   G2  time comes from options.clock alone, so a test or a simulation may own it
 *   G3  an attachment is used from ATTACH until DETACHED is sent, its kick_fd in this epoll set
 *   G4  after a device error everybody is told once, INFO says DEAD, FAILED is mailed, the loop
 * ends G5  INFO.heartbeat_ns is never older than 100 ms while the loop lives */
#ifndef RUNTIME_ENGINE_H
#define RUNTIME_ENGINE_H

#include "runtime/batch.h"
#include "runtime/intake.h"
#include "runtime/kv.h"
#include "runtime/mailbox.h"
#include "runtime/outlet.h"
#include "runtime/scheduler.h"
#include "runtime/sequence.h"
#include "shm/stat.h"

#define LL_ENGINE_DEPTH_MAX 2u

/* What INFO says of a model that a switch changes (wire.h). */
struct ll_served_model {
    char name[128];
    float temperature, top_p, min_p, repetition_penalty;
    uint32_t top_k;
};

/* Another set of weights, sealed, is to take over (engine_switch.c). From its mail on nobody new
 * starts; what runs ends on the weights it began with; then, with nothing on the device, the sets
 * change places and who waited starts. All that clients see is that wait.
 *   after wait_ns   LL_E_TIMEOUT: some still run, and everybody goes on on the old weights; with
 *                   cuts they end instead, LL_E_DRAINING, and the sets change
 *   a drain begins  LL_E_DRAINING: who waits is served by the old weights */
struct ll_weights_switch {
    uint32_t weights; /* set */
    uint64_t epoch;   /* never used before: no cached page of another epoch is found */
    uint64_t wait_ns;
    bool cuts;
    struct ll_served_model model;
    /* the answer, beside the mail's value */
    uint32_t n_left; /* sequences: that were cut, or for which it was given up */
    uint64_t waited_ns;
};

typedef uint64_t ll_engine_clock(void *context);

struct ll_engine_options {
    const struct ll_backend *backend;
    struct ll_device *device;          /* opened and sealed; the caller's */
    struct ll_backend_caps caps;       /* as open filled it */
    uint32_t n_sequences;              /* pool: running and waiting together */
    uint32_t n_waiting_max;            /* requests; 0: n_sequences */
    uint64_t tokens_waiting_max;       /* 0: no limit */
    uint32_t waiting_share;            /* percent, intake.h N5; 0: 50 */
    struct ll_scheduler_limits limits; /* stall_ns 0: 30 s */
    struct ll_gate_limits gate;        /* n_pages_total 0: caps.n_pages */
    struct ll_info_region
        *info; /* the loop writes heartbeat, rt_sleeping, rt_state from READY on */
    struct ll_stat_region *stat; /* the loop writes all but the control group */
    struct ll_mailbox *from_control, *to_control;
    int control_fd; /* eventfd the control thread writes after it mailed: ends a sleep; -1: none */
    int notify_fd;  /* eventfd the loop writes after it mailed the control thread; -1: none */
    uint64_t spin_ns;         /* idle so long before sleeping; 0: 200 us; UINT64_MAX: never sleep */
    uint64_t step_timeout_ns; /* a step longer than this is a dead device; 0: 5 s */
    uint64_t seed;            /* of the prefix cache's hash: drawn by the runtime, fixed in tests */
    struct ll_crashes *crashes; /* NULL: none; G4: what is open is written down first */
    bool yields;                /* one or two CPUs: sched_yield() between empty polls */
    ll_engine_clock *clock;     /* NULL: ll_now_ns() */
    void *clock_context;
};

/* Page copies under way (scheduler_swap.c). */
struct ll_engine_copy {
    struct ll_copy copy[LL_PLAN_COPIES_MAX];
    uint32_t n;
    uint64_t batch;
    int64_t ticket;    /* 0: the backend could not take it yet */
    uint64_t after;    /* steps submitted before it: it cannot begin before these are done */
    uint64_t start_ns; /* 0: not yet */
};

/* A step on the device. */
struct ll_engine_step {
    struct ll_plan plan;
    int64_t ticket;
    uint64_t
        start_ns; /* when the device could begin: at submit, or at the end of the step before */
    uint64_t waited_ns; /* of that, what poll was seen to say "not yet" for */
};

struct ll_engine {
    struct ll_engine_options options;
    struct ll_seq_pool pool;
    struct ll_kv kv;
    struct ll_outlet outlet;
    struct ll_intake intake;
    struct ll_scheduler scheduler;
    struct ll_batch_maker maker;
    struct ll_stats *stats;

    struct ll_engine_step step[LL_ENGINE_DEPTH_MAX]; /* ring; the oldest is step[n_polled % 2] */
    uint64_t n_submitted, n_polled;
    uint32_t depth;
    struct ll_engine_copy copy[LL_PLAN_COPY_BATCHES]; /* ring; the oldest is n_copied % BATCHES */
    uint64_t n_copies, n_copied;
    struct ll_yield *yields; /* [n_rows_max] */

    struct ll_engine_leaving {
        struct ll_attachment *client;
        bool has_died, is_gone; /* is_gone: DETACHED did not fit the mailbox yet */
    } leaving[LL_ATTACHMENTS_MAX];
    uint32_t n_leaving;

    /* when to plan */
    bool is_dirty;         /* something changed since the last plan */
    uint64_t next_plan_ns; /* plan again then, dirty or not: credits, deadlines */
    uint64_t host_mean_ns, poll_mean_ns;
    uint64_t host_ns;   /* host work since the last step was applied */
    uint64_t looked_ns; /* when poll last said "not yet" */

    uint64_t now_ns; /* of the last turn's begin */
    uint64_t next_beat_ns, next_mail_ns, next_gauges_ns;
    uint64_t drain_deadline_ns;
    uint32_t weights;                    /* set that steps run on */
    struct ll_weights_switch *switching; /* NULL: none */
    uint64_t switch_since_ns;
    bool is_switch_over; /* the answer did not fit the mailbox yet: switch_result */
    int switch_result;
    uint64_t n_notified; /* to_control's tail when the control thread was last notified */
    bool is_draining, is_idle_told, is_stopping;
    int failed; /* sticky code, 0: none */
    int epoll_fd;
};

/* Makes everything. *engine is large and may be static; it must not move afterwards. -ENOMEM, ...
 */
int ll_engine_open(struct ll_engine *engine, const struct ll_engine_options *options);
/* After the loop has ended. */
void ll_engine_close(struct ll_engine *engine);

/* The loop: until LL_MAIL_STOP (0; what is open ends as failed, LL_E_DRAINING) or a device error
 * (LL_E_BACKEND, G4). */
int ll_engine_run(struct ll_engine *engine);

/* One turn without waiting, for tests and simulations: work done, 0: nothing to do now, negative:
 * failed (G4). */
int ll_engine_turn(struct ll_engine *engine);

/* No request open, no step in flight. */
bool ll_engine_is_idle(const struct ll_engine *engine);

/* Invariants of every module; aborts on a fault. Debug builds run it after each step. */
void ll_engine_check(const struct ll_engine *engine);

#endif
