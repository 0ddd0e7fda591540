/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/team.h"
#include "base/assert.h"
#include "base/clock.h"
#include "kernels/cpu/memory.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

#define ITEM_BITS 20
#define ITEM_MASK ((1ull << ITEM_BITS) - 1)

/* Idle workers look this long for a new step before they sleep: longer than the gap that a step
 * loop leaves between two steps, far shorter than anybody's think time. */
#define SPIN_NS (30 * LL_NS_PER_US)
/* At a barrier: turns of the loop (about 40 ns each) before giving the processor away, in case
 * the one who holds the last item waits for it. */
#define SPIN_TURNS 500

static uint32_t items_of(uint64_t state)
{
    return (uint32_t)(state >> ITEM_BITS & ITEM_MASK);
}
static uint32_t next_of(uint64_t state)
{
    return (uint32_t)(state & ITEM_MASK);
}

static void publish(struct ll_team *team, uint32_t n_items)
{
    /* Relaxed: only the one who ends a stage writes here, and the previous value was its own or
     * came to it through n_done. */
    uint64_t stage =
        (atomic_load_explicit(&team->state, memory_order_relaxed) >> 2 * ITEM_BITS) + 1;

    LL_ASSERT(n_items >= 1 && n_items <= LL_TEAM_ITEMS_MAX);
    atomic_store_explicit(&team->n_done, 0, memory_order_relaxed); /* ordered by the next store */
    /* Release, pairs with the acquire in run_one(): who takes an item sees what next() and the
     * stage before it wrote. */
    atomic_store_explicit(&team->state, stage << 2 * ITEM_BITS | (uint64_t)n_items << ITEM_BITS,
                          memory_order_release);
}

/* After a step's end: is there another one? Else the team may sleep. */
static bool finish_step(struct ll_team *team)
{
    pthread_mutex_lock(&team->lock);
    bool has_more = --team->n_queued > 0;
    if (!has_more)
        /* Relaxed: the lock orders it; spinning workers may see it late. */
        atomic_store_explicit(&team->is_busy, false, memory_order_relaxed);
    pthread_mutex_unlock(&team->lock);
    return has_more;
}

static void start_next_stage(struct ll_team *team, uint32_t worker)
{
    for (;;) {
        uint32_t n_items = team->work.next(team->work.context, worker);
        if (n_items > 0) {
            publish(team, n_items);
            return;
        }
        if (!finish_step(team))
            return;
    }
}

/* Takes one item and runs it; false when there is none to take. */
static bool run_one(struct ll_team *team, uint32_t worker)
{
    /* Relaxed: the exchange below checks it. */
    uint64_t state = atomic_load_explicit(&team->state, memory_order_relaxed);

    do {
        if (next_of(state) >= items_of(state))
            return false;
        /* Acquire, pairs with the release in publish(); through the chain of exchanges, which are
         * read-modify-writes of the same word, every taker synchronises with the publisher. */
    } while (!atomic_compare_exchange_weak_explicit(&team->state, &state, state + 1,
                                                    memory_order_acquire, memory_order_relaxed));

    team->work.item(team->work.context, worker, next_of(state));

    /* Release: my item's writes are seen by the one who ends the stage; acquire: if that is me, I
     * see all the others'. Pairs with itself in the other workers. */
    uint32_t n_done = atomic_fetch_add_explicit(&team->n_done, 1, memory_order_acq_rel) + 1;
    if (n_done == items_of(state))
        start_next_stage(team, worker);
    return true;
}

/* Waits in the condition until there is a step; false: the team closes. */
static bool sleep_until_busy(struct ll_team *team)
{
    pthread_mutex_lock(&team->lock);
    team->n_sleeping++;
    while (!team->is_stopping && !atomic_load_explicit(&team->is_busy, memory_order_relaxed))
        pthread_cond_wait(&team->wake, &team->lock);
    team->n_sleeping--;
    bool goes_on = !team->is_stopping;
    pthread_mutex_unlock(&team->lock);
    return goes_on;
}

static void *run_worker(void *argument)
{
    struct ll_team_seat *seat = argument;
    struct ll_team *team = seat->team;
    uint64_t idle_since_ns = 0;
    uint32_t n_turns = 0;

    if (seat->cpu >= 0) { /* a wish: a CPU taken away since is no reason to stop */
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((unsigned)seat->cpu, &set);
        (void)pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
    }
    pthread_setname_np(pthread_self(), "ll-cpu");
    for (;;) {
        if (run_one(team, seat->worker)) {
            idle_since_ns = 0;
            n_turns = 0;
            continue;
        }
        /* Relaxed: a stale value costs a turn; the sleeping path looks again under the lock. */
        if (atomic_load_explicit(&team->is_busy, memory_order_relaxed)) {
            idle_since_ns = 0;
            if (++n_turns % SPIN_TURNS == 0)
                sched_yield();
            ll_cpu_relax();
            continue;
        }
        uint64_t now_ns = ll_now_ns();
        if (idle_since_ns == 0)
            idle_since_ns = now_ns;
        if (now_ns - idle_since_ns < SPIN_NS) {
            ll_cpu_relax();
            continue;
        }
        if (!sleep_until_busy(team))
            return NULL;
        idle_since_ns = 0;
    }
}

int ll_team_open(struct ll_team *team, const struct ll_team_work *work, uint32_t n_threads,
                 const int *cpus, struct ll_text *error)
{
    *team = (struct ll_team){.work = *work, .n_threads = 1};
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->wake, NULL);
    for (uint32_t i = 1; i < n_threads; i++) {
        team->seat[i] = (struct ll_team_seat){team, i, cpus != NULL ? cpus[i] : -1};
        int rc = pthread_create(&team->thread[i], NULL, run_worker, &team->seat[i]);
        if (rc != 0) {
            ll_team_close(team);
            return ll_cpu_fail(error, -rc, "worker thread %u of %u: %s; lower the thread count", i,
                               n_threads, strerror(rc));
        }
        team->n_threads = i + 1;
    }
    return 0;
}

void ll_team_close(struct ll_team *team)
{
    pthread_mutex_lock(&team->lock);
    team->is_stopping = true;
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    for (uint32_t i = 1; i < team->n_threads; i++)
        pthread_join(team->thread[i], NULL);
    pthread_cond_destroy(&team->wake);
    pthread_mutex_destroy(&team->lock);
}

void ll_team_push(struct ll_team *team)
{
    bool is_first = false;

    pthread_mutex_lock(&team->lock);
    if (team->n_queued++ == 0) {
        is_first = true;
        atomic_store_explicit(&team->is_busy, true, memory_order_relaxed); /* the lock orders it */
        if (team->n_sleeping > 0)
            pthread_cond_broadcast(&team->wake);
    }
    pthread_mutex_unlock(&team->lock);
    if (is_first) /* nobody else runs: the stage chain is ours to start (T2) */
        start_next_stage(team, 0);
}

void ll_team_work(struct ll_team *team, uint64_t slice_ns)
{
    uint64_t end_ns = ll_now_ns() + slice_ns;

    uint32_t n_turns = 0;

    /* Relaxed: only a hint that a step is in flight; run_one() decides. */
    while (atomic_load_explicit(&team->is_busy, memory_order_relaxed)) {
        if (run_one(team, 0))
            n_turns = 0;
        else if (++n_turns % SPIN_TURNS == 0)
            sched_yield(); /* as the others do: the last item's owner may want this CPU */
        else
            ll_cpu_relax();
        if (ll_now_ns() >= end_ns)
            return;
    }
}

uint64_t ll_team_progress(struct ll_team *team)
{
    return atomic_load_explicit(&team->state, memory_order_relaxed); /* compared, never followed */
}
