/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine_impl.h"

#include "base/assert.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "shm/wait.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define BEAT_NS    LL_NS_PER_MS         /* heartbeat; clients worry after 5 s */
#define MAIL_NS    (20 * LL_NS_PER_US)  /* the mailbox's tail is a foreign cache line */
#define GAUGES_NS  (10 * LL_NS_PER_MS)  /* what takes a walk over the clients */
#define REPLAN_NS  (200 * LL_NS_PER_US) /* a reader that frees credits rings no bell */
#define LEAD_NS    (20 * LL_NS_PER_US)  /* submit a step at least so long before it is needed */
#define SLEEP_MS   90                   /* G5, and 10 ms for the kernel to wake us */
#define LOOK_NS    (100 * LL_NS_PER_MS) /* counts for a look at a step that is not done, at most */
#define NAP_MS     1                    /* sleep while something is open: credits, deadlines */
#define EVENTS_MAX 64

/* ---- open, close ------------------------------------------------------------------------------*/

static int check_options(const struct ll_engine_options *o)
{
    if (o->backend == NULL || o->device == NULL || o->info == NULL || o->stat == NULL ||
        o->from_control == NULL || o->to_control == NULL)
        return LL_ERR(-EINVAL, "the engine needs a device, INFO, STAT and two mailboxes");
    if (o->backend->abi != LL_BACKEND_ABI)
        return LL_ERR(LL_E_ABI, "backend %s speaks seam version %u, this runtime %u",
                      o->backend->name, o->backend->abi, LL_BACKEND_ABI);
    if (o->limits.n_slots > o->n_sequences)
        return LL_ERR(-EINVAL, "%u device slots for %u sequences", o->limits.n_slots,
                      o->n_sequences);
    return 0;
}

int ll_engine_open(struct ll_engine *engine, const struct ll_engine_options *options)
{
    int rc = check_options(options);

    if (rc < 0)
        return rc;
    memset(engine, 0, sizeof(*engine));
    engine->epoll_fd = -1;
    engine->options = *options;
    struct ll_engine_options *o = &engine->options;
    if (o->spin_ns == 0)
        o->spin_ns = 200 * LL_NS_PER_US;
    if (o->limits.copy_ns == 0 && o->caps.n_pages > 0) /* 10 GB/s, until copies were seen */
        o->limits.copy_ns = o->caps.kv_bytes / o->caps.n_pages / 10;
    if (o->step_timeout_ns == 0)
        o->step_timeout_ns = 5 * LL_NS_PER_S;
    if (o->gate.n_pages_total == 0)
        o->gate.n_pages_total = o->caps.n_pages;
    /* Choices run as device slots and pages come free, but each is a sequence from the start. */
    o->gate.n_max = (uint32_t)ll_min_u64(o->gate.n_max, o->n_sequences);
    engine->depth = (uint32_t)ll_min_u64(ll_max_u64(o->caps.depth, 1), LL_ENGINE_DEPTH_MAX);
    engine->stats = &o->stat->v;

    rc = ll_seq_pool_init(&engine->pool, o->n_sequences, o->limits.context_max);
    if (rc < 0)
        goto fail;
    rc = ll_kv_init(&engine->kv, o->caps.n_pages, o->caps.n_host_pages, o->seed);
    if (rc < 0)
        goto fail;
    ll_outlet_init(&engine->outlet, &engine->pool, engine->stats, o->to_control);
    engine->outlet.clock =
        (struct ll_debt_clock){.now = o->clock, .spent = o->clock, .context = o->clock_context};
    ll_intake_init(&engine->intake, &engine->pool, &engine->outlet, engine->stats, &o->gate);
    if (o->n_waiting_max != 0)
        engine->outlet.waiting.n_max = o->n_waiting_max;
    engine->intake.crashes = o->crashes;
    if (o->tokens_waiting_max != 0)
        engine->outlet.waiting.tokens_max = o->tokens_waiting_max;
    if (o->waiting_share != 0)
        engine->intake.waiting_share = o->waiting_share;
    rc = ll_scheduler_init(&engine->scheduler, &o->limits, &engine->pool, &engine->kv,
                           &engine->outlet, engine->stats);
    if (rc < 0)
        goto fail;
    engine->scheduler.weights_epoch = o->info->weights_epoch;
    rc = ll_batch_maker_init(&engine->maker, o->limits.n_rows_max);
    if (rc < 0)
        goto fail;
    engine->yields = calloc(o->limits.n_rows_max, sizeof(*engine->yields));
    for (uint32_t i = 0; i < LL_ENGINE_DEPTH_MAX; i++) {
        struct ll_plan *plan = &engine->step[i].plan;
        plan->row = calloc(o->limits.n_rows_max, sizeof(*plan->row));
        plan->copy = calloc(LL_PLAN_COPIES_MAX, sizeof(*plan->copy));
        if (plan->row == NULL || plan->copy == NULL || engine->yields == NULL) {
            rc = LL_ERR(-ENOMEM, "out of memory for plans of %u rows", o->limits.n_rows_max);
            goto fail;
        }
    }
    engine->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (engine->epoll_fd < 0) {
        rc = LL_ERRNO("epoll_create1");
        goto fail;
    }
    if (o->control_fd >= 0 && (rc = ll_engine_add_to_epoll(engine, o->control_fd)) < 0)
        goto fail;
    ll_stat_set(&engine->stats->pages_total, engine->kv.n_pages);
    ll_stat_set(&engine->stats->pages_free, engine->kv.n_free);
    ll_stat_set(&engine->stats->host_pages_total, engine->kv.n_host_pages);
    ll_stat_set(&engine->stats->host_pages_free, engine->kv.n_host_free);
    ll_stat_set(&engine->stats->sequences_total, engine->pool.n);
    ll_stat_set(&engine->stats->sequences_free, engine->pool.n);
    return 0;

fail:
    ll_engine_close(engine);
    return rc;
}

void ll_engine_close(struct ll_engine *engine)
{
    if (engine->epoll_fd >= 0)
        close(engine->epoll_fd);
    for (uint32_t i = 0; i < LL_ENGINE_DEPTH_MAX; i++)
        free(engine->step[i].plan.row), free(engine->step[i].plan.copy);
    free(engine->yields);
    ll_batch_maker_free(&engine->maker);
    ll_scheduler_free(&engine->scheduler);
    ll_kv_free(&engine->kv);
    ll_seq_pool_free(&engine->pool);
    memset(engine, 0, sizeof(*engine));
    engine->epoll_fd = -1;
}

/* ---- figures ----------------------------------------------------------------------------------*/

static void beat(struct ll_engine *engine, uint64_t now_ns)
{
    if (now_ns < engine->next_beat_ns)
        return;
    engine->next_beat_ns = now_ns + BEAT_NS;
    /* Relaxed: the time is all it says. */
    atomic_store_explicit(&engine->options.info->heartbeat_ns, now_ns, memory_order_relaxed);
    if (now_ns < engine->next_gauges_ns)
        return;
    engine->next_gauges_ns = now_ns + GAUGES_NS;
    int64_t n_reserved = 0;
    for (uint32_t i = 0; i < engine->intake.n_clients; i++) {
        struct ll_attachment *client = engine->intake.client[engine->intake.id[i]];
        n_reserved += client->credits_reserved;
        if (client->wants_watch)
            client->wants_watch = !ll_engine_watch(engine, client, true);
    }
    ll_stat_set(&engine->stats->credits_reserved, (uint64_t)n_reserved);
}

static void move_mean(uint64_t *mean, uint64_t value)
{
    *mean += (uint64_t)(((int64_t)value - (int64_t)*mean) / 8);
}

/* ---- the seven calls --------------------------------------------------------------------------*/

/* G4. */
static int fail(struct ll_engine *engine, const char *what, int code, const char *text)
{
    struct ll_mail mail = {.type = LL_MAIL_FAILED, .value = (uint64_t)(int64_t)LL_E_BACKEND};

    ll_error("%s: %s (%s); all requests fail", what, text, ll_error_name(code));
    ll_stat_add(&engine->stats->backend_errors, 1);
    if (engine->options.crashes != NULL)
        ll_crashes_record(engine->options.crashes);
    ll_scheduler_fail_all(&engine->scheduler, LL_E_BACKEND);
    ll_outlet_fail_all(&engine->outlet, LL_E_BACKEND, ll_engine_clock_ns(engine));
    atomic_store_explicit(&engine->options.info->rt_reason, (uint32_t)-LL_E_BACKEND,
                          memory_order_relaxed);
    /* Release, pairs with the acquire of clients: the reason before the state. Before the wake, so
     * that whoever it wakes sees that no more will come. */
    atomic_store_explicit(&engine->options.info->rt_state, LL_RT_DEAD, memory_order_release);
    ll_outlet_wake(&engine->outlet);
    engine->failed = LL_E_BACKEND;
    /* The box empties as the control thread reads; without it nobody waits for this mail. */
    for (int i = 0; !ll_mailbox_send(engine->options.to_control, &mail) && i < 1000; i++) {
        ll_engine_notify_control(engine);
        usleep(1000);
    }
    ll_engine_notify_control(engine);
    return engine->failed;
}

/* Is this the time to plan? With a step under way: as late as its predicted end allows, so that who
 * arrives meanwhile is in the next one. */
static bool may_plan(struct ll_engine *engine, uint64_t now_ns)
{
    if (ll_engine_in_flight(engine) == engine->depth)
        return false;
    if (!engine->is_dirty && now_ns < engine->next_plan_ns)
        return false;
    if (ll_engine_in_flight(engine) == 0)
        return true;
    const struct ll_engine_step *running = &engine->step[engine->n_polled % LL_ENGINE_DEPTH_MAX];
    uint64_t lead_ns = LEAD_NS + 2 * engine->host_mean_ns + 2 * engine->poll_mean_ns;
    return now_ns + lead_ns >=
           running->start_ns + ll_cost_soonest(&engine->scheduler.cost, &running->plan.work);
}

/* Begins page copies, oldest first; those the backend has no room for wait. Negative: failed. */
static int begin_copies(struct ll_engine *engine)
{
    const struct ll_engine_options *o = &engine->options;
    struct ll_text error = {""};

    for (uint64_t i = engine->n_copied; i < engine->n_copies; i++) {
        struct ll_engine_copy *c = &engine->copy[i % LL_PLAN_COPY_BATCHES];
        if (c->ticket != 0)
            continue;
        int64_t ticket = o->backend->copy(o->device, c->copy, c->n, &error);
        if (ticket == LL_E_AGAIN)
            return 0;
        if (ticket < 0)
            return fail(engine, "page copy", (int)ticket, error.s);
        c->ticket = ticket;
        c->after = engine->n_submitted;
    }
    return 0;
}

static int take_copies(struct ll_engine *engine, const struct ll_plan *plan)
{
    struct ll_engine_copy *c = &engine->copy[engine->n_copies % LL_PLAN_COPY_BATCHES];

    if (plan->n_copies == 0)
        return 0;
    LL_ASSERT(engine->n_copies - engine->n_copied < LL_PLAN_COPY_BATCHES);
    *c = (struct ll_engine_copy){.n = plan->n_copies, .batch = plan->copy_batch};
    memcpy(c->copy, plan->copy, plan->n_copies * sizeof(c->copy[0]));
    engine->n_copies++;
    return begin_copies(engine);
}

/* Looks at the oldest copies; 1: some are done. Negative: failed. */
static int poll_copies(struct ll_engine *engine, uint64_t now_ns)
{
    const struct ll_engine_options *o = &engine->options;
    struct ll_engine_copy *c = &engine->copy[engine->n_copied % LL_PLAN_COPY_BATCHES];
    struct ll_text error = {""};

    int rc = begin_copies(engine);
    if (rc < 0 || c->ticket == 0)
        return rc;
    if (c->start_ns == 0 && engine->n_polled >= c->after)
        c->start_ns = now_ns;
    rc = o->backend->copied(o->device, c->ticket, &error);
    if (rc < 0)
        return fail(engine, "page copy", rc, error.s);
    if (rc == 0)
        return 0;
    if (c->start_ns != 0) /* else it is known too late how long it took */
        ll_cost_learn_copy(&engine->scheduler.cost, c->n, ll_engine_clock_ns(engine) - c->start_ns);
    ll_scheduler_copied(&engine->scheduler, c->batch);
    engine->n_copied++;
    engine->is_dirty = true;
    return 1;
}

/* scheduler_plan, batch_build, submit. Rows submitted, or a negative code. */
static int plan_and_submit(struct ll_engine *engine, uint64_t now_ns)
{
    struct ll_engine_step *step = &engine->step[engine->n_submitted % LL_ENGINE_DEPTH_MAX];
    struct ll_batch batch;
    struct ll_text error = {""};
    const struct ll_seq_list *list = engine->pool.list;

    ll_scheduler_plan(&engine->scheduler, now_ns, &step->plan);
    engine->is_dirty = false;
    engine->next_plan_ns = UINT64_MAX;
    if (list[LL_SEQ_WAITING].n + list[LL_SEQ_RUNNING].n + list[LL_SEQ_ENDING].n > 0)
        engine->next_plan_ns = now_ns + REPLAN_NS;
    ll_stat_set(&engine->stats->pages_free, ll_kv_available(&engine->kv));
    ll_stat_set(&engine->stats->pages_cached, engine->kv.n_idle);
    ll_stat_set(&engine->stats->host_pages_free, engine->kv.n_host_free);
    if (step->plan.n_rows == 0)
        return take_copies(engine, &step->plan);

    ll_batch_build(&engine->maker, &step->plan, &engine->pool, engine->weights, &batch);
    step->ticket = engine->options.backend->submit(engine->options.device, &batch, &error);
    if (step->ticket < 0)
        return fail(engine, "submit", (int)step->ticket, error.s);
    step->start_ns = ll_engine_in_flight(engine) == 0 ? ll_engine_clock_ns(engine) : 0;
    step->waited_ns = 0;
    engine->n_submitted++;
    engine->is_dirty = true; /* the step after it may be planned */
    ll_hist_add(&engine->stats->batch_rows, step->plan.n_rows);
    ll_hist_add(&engine->stats->batch_tokens, step->plan.n_tokens);
    int rc = take_copies(engine, &step->plan);
    return rc < 0 ? rc : (int)step->plan.n_rows;
}

/* poll, scheduler_apply; the number of yields, 0: not yet, or a negative code. *now_ns moves to
 * when the step was seen to be done. */
static int poll_and_apply(struct ll_engine *engine, uint64_t *now_ns)
{
    const struct ll_engine_options *o = &engine->options;
    struct ll_engine_step *step = &engine->step[engine->n_polled % LL_ENGINE_DEPTH_MAX];
    struct ll_result result;
    struct ll_text error = {""};

    int rc = o->backend->poll(o->device, step->ticket, &result, &error);
    if (rc < 0)
        return fail(engine, "poll", rc, error.s);
    uint64_t done_ns = ll_engine_clock_ns(engine);
    if (o->caps.poll_works)
        move_mean(&engine->poll_mean_ns, done_ns - *now_ns);
    *now_ns = done_ns;
    if (rc == 0) {
        ll_stat_add(&engine->stats->steps_idle_polls, 1);
        /* Time in which nobody looked is no fault of the device: SIGSTOP, a debugger, a machine
         * with more to do than CPUs. */
        uint64_t since_ns = ll_max_u64(step->start_ns, engine->looked_ns);
        step->waited_ns += ll_min_u64(done_ns - since_ns, LOOK_NS);
        engine->looked_ns = done_ns;
        if (step->waited_ns > o->step_timeout_ns)
            return fail(engine, "poll", LL_E_TIMEOUT, "the step does not end");
        return 0;
    }
    uint64_t step_ns = done_ns - step->start_ns;
    ll_cost_learn(&engine->scheduler.cost, &step->plan.work, step_ns);
    ll_hist_add(&engine->stats->step_ns, step_ns);
    ll_stat_add(&engine->stats->steps, 1);
    engine->n_polled++;
    if (ll_engine_in_flight(engine) > 0)
        engine->step[engine->n_polled % LL_ENGINE_DEPTH_MAX].start_ns = done_ns;

    engine->is_dirty = true;
    return (int)ll_scheduler_apply(&engine->scheduler, &step->plan, &result, done_ns,
                                   engine->yields);
}

/* What a turn does beside the seven calls, when its time has come. */
static uint32_t look_after(struct ll_engine *engine, uint64_t now_ns)
{
    uint32_t work = 0;

    beat(engine, now_ns);
    if (now_ns >= engine->next_mail_ns) {
        engine->next_mail_ns = now_ns + MAIL_NS;
        work = ll_engine_read_mail(engine);
    }
    if (engine->n_leaving > 0)
        ll_engine_go_on_detaching(engine);
    if (engine->is_draining)
        ll_engine_go_on_draining(engine, now_ns);
    if (engine->switching != NULL)
        ll_engine_go_on_switching(engine, now_ns);
    return work;
}

/* A step was applied: the host work it took ends here. */
static void count_host_work(struct ll_engine *engine)
{
    ll_hist_add(&engine->stats->host_ns, engine->host_ns);
    move_mean(&engine->host_mean_ns, engine->host_ns);
    engine->host_ns = 0;
#ifdef LL_DEBUG
    ll_engine_check(engine);
#endif
}

int ll_engine_turn(struct ll_engine *engine)
{
    if (engine->failed != 0)
        return engine->failed;
    uint64_t now_ns = ll_engine_clock_ns(engine);
    engine->now_ns = now_ns;
    uint32_t work = look_after(engine, now_ns);

    uint32_t n_seen = ll_intake_poll(&engine->intake, now_ns);
    if (engine->n_copied < engine->n_copies) {
        int rc = poll_copies(engine, now_ns);
        if (rc < 0)
            return rc;
        n_seen += (uint32_t)rc;
    }
    uint32_t n_prepared = ll_scheduler_prepare(&engine->scheduler, now_ns);
    if (n_seen > 0 || n_prepared > 0)
        engine->is_dirty = true;
    bool plans = may_plan(engine, now_ns);
    int n_rows = plans ? plan_and_submit(engine, now_ns) : 0;
    if (n_rows < 0)
        return n_rows;
    /* After the submit, so that the device does not wait for our system calls. */
    ll_outlet_wake(&engine->outlet);
    uint64_t poll_ns = now_ns;
    if (n_seen > 0 || n_prepared > 0 || plans) {
        poll_ns = ll_engine_clock_ns(engine);
        engine->host_ns += poll_ns - now_ns;
    }

    int n_yields = ll_engine_in_flight(engine) > 0 ? poll_and_apply(engine, &poll_ns) : 0;
    if (n_yields < 0)
        return n_yields;
    if (n_yields > 0 || plans || engine->pool.list[LL_SEQ_ENDING].n > 0)
        ll_outlet_publish(&engine->outlet, engine->yields, (uint32_t)n_yields, poll_ns);
    if (ll_engine_in_flight(engine) > 0) /* else the next turn submits first */
        ll_outlet_wake(&engine->outlet);
    if (n_yields > 0) {
        engine->host_ns += ll_engine_clock_ns(engine) - poll_ns;
        count_host_work(engine);
    }
    ll_engine_notify_control(engine);
    return (int)(work + n_seen + n_prepared) + n_rows + n_yields;
}

/* ---- the loop ---------------------------------------------------------------------------------*/

static bool is_anything_open(const struct ll_engine *engine)
{
    return engine->pool.list[LL_SEQ_FREE].n != engine->pool.n || engine->n_leaving > 0;
}

static bool has_mail(const struct ll_mailbox *box)
{
    /* Acquire, pairs with the release of tail in ll_mailbox_send; head is this thread's own. */
    return atomic_load_explicit(&box->tail, memory_order_acquire) !=
           atomic_load_explicit(&box->head, memory_order_relaxed);
}

/* Sleeps until somebody kicks or the time is over; true: somebody did. */
static bool sleep_some(struct ll_engine *engine)
{
    struct epoll_event events[EVENTS_MAX];
    int n = 0;

    ll_wait_runtime_arm(engine->options.info);
    /* What came before the flag could be seen is seen here (wait.h). */
    bool is_quiet = ll_intake_is_quiet(&engine->intake) && !has_mail(engine->options.from_control);
    if (is_quiet) {
        ll_stat_add(&engine->stats->sleeps, 1);
        n = epoll_wait(engine->epoll_fd, events, EVENTS_MAX,
                       is_anything_open(engine) ? NAP_MS : SLEEP_MS);
    }
    ll_wait_runtime_disarm(engine->options.info);
    engine->next_mail_ns = 0;
    return !is_quiet || n > 0;
}

int ll_engine_run(struct ll_engine *engine)
{
    uint64_t idle_ns = 0; /* since when nothing happens; 0: something does */

    while (!engine->is_stopping) {
        int work = ll_engine_turn(engine);
        if (work < 0)
            return work;
        if (work > 0 || ll_engine_in_flight(engine) > 0 || engine->n_copied < engine->n_copies) {
            idle_ns = 0;
            if (work > 0 || engine->options.caps.poll_works)
                continue;
        } else if (idle_ns == 0) {
            idle_ns = engine->now_ns;
        }
        if (idle_ns != 0 && engine->now_ns - idle_ns >= engine->options.spin_ns) {
            if (sleep_some(engine))
                idle_ns = 0;
        } else if (engine->options.yields) {
            sched_yield();
        } else {
            ll_cpu_relax();
        }
    }
    ll_scheduler_fail_all(&engine->scheduler, LL_E_DRAINING);
    ll_outlet_fail_all(&engine->outlet, LL_E_DRAINING, ll_engine_clock_ns(engine));
    ll_outlet_wake(&engine->outlet);
    ll_engine_notify_control(engine);
    return 0;
}

bool ll_engine_is_idle(const struct ll_engine *engine)
{
    return engine->pool.list[LL_SEQ_FREE].n == engine->pool.n && ll_engine_in_flight(engine) == 0;
}

void ll_engine_check(const struct ll_engine *engine)
{
    LL_ASSERT(ll_engine_in_flight(engine) <= engine->depth);
    ll_seq_check(&engine->pool);
    ll_scheduler_check(&engine->scheduler);
    ll_outlet_check(&engine->outlet);
    ll_intake_check(&engine->intake);
}
