/* SPDX-License-Identifier: Apache-2.0 */
/* tests/shm/stress_wait.c - does anybody fall asleep for ever? (T4)
 *
 *   stress_wait             both directions, LL_STRESS_SECONDS, default 6: 0 lost
 *   stress_wait --no-fence  the mutant: the same without ll_wait_fence(); exit 1 when it lost any
 *
 * Two threads: one declares itself asleep and looks once more, the other writes and looks who
 * sleeps. A wake-up is lost when the first saw nothing and the second nobody. Nobody really sleeps:
 * a try is over in 100 ns, has its own memory (256 in a batch, compared afterwards) and a time slot
 * on the processors' common clock, so that both sides fall on each other; a delay that differs from
 * try to try sweeps the overlap of their store buffers. */
#include "tests/harness.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/rng.h"
#include "shm/bell.h"
#include "shm/events.h"
#include "shm/wait.h"

#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define N_TRIES    256u
#define LOG2_WORDS 5u

enum direction { CLIENT_SLEEPS, RUNTIME_SLEEPS };

struct trial {
    struct ll_req_hot hot;
    struct ll_event event[2];
    char bell_memory[sizeof(struct ll_bell_head) + (8 << LOG2_WORDS)];
    struct ll_info_region info;
    struct ll_event_writer writer;
    struct ll_event_reader reader;
    struct ll_bell bell;
    struct ll_bell_reader bell_reader;
    int kick_fd;
    bool saw_nothing, woke; /* results, one of each side */
} __attribute__((aligned(256)));

static struct trial trial[N_TRIES];
static enum direction direction;
static bool has_fence;
static _Atomic uint64_t batch __attribute__((aligned(128)));      /* writer: prepared */
static _Atomic uint64_t start_tick __attribute__((aligned(128))); /* writer: both are running */
static _Atomic uint64_t is_there __attribute__((aligned(128)));   /* sleeper: on a processor */
static _Atomic uint64_t batch_done __attribute__((aligned(128)));
static _Atomic bool should_stop __attribute__((aligned(128)));

static uint64_t tick(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    return ll_now_ns();
#endif
}

/* The sleeper: armed, then one more look. */
static bool sees_nothing(struct trial *t)
{
    if (direction == CLIENT_SLEEPS) {
        if (has_fence)
            ll_wait_arm(&t->hot);
        else
            atomic_store_explicit(&t->hot.wait_word, 1, memory_order_relaxed);
        return !ll_event_ready(&t->reader);
    }
    if (has_fence)
        ll_wait_runtime_arm(&t->info);
    else
        atomic_store_explicit(&t->info.rt_sleeping, 1, memory_order_relaxed);
    return ll_bell_is_empty(&t->bell_reader);
}

/* The writer: would it wake the sleeper? */
static bool write_and_look(struct trial *t)
{
    uint64_t count;

    if (direction == CLIENT_SLEEPS) {
        struct ll_event event = {.type = LL_EV_TOKEN};
        ll_event_write(&t->writer, &event);
        if (has_fence)
            ll_wait_fence();
        return ll_wait_claim(&t->hot);
    }
    LL_ASSERT(ll_bell_push(&t->bell, 1));
    if (!has_fence)
        return atomic_load_explicit(&t->info.rt_sleeping, memory_order_relaxed) != 0;
    ll_wait_kick(&t->info, t->kick_fd);
    return read(t->kick_fd, &count, sizeof(count)) == sizeof(count);
}

/* One side's part of a batch: try i at its time, give or take 100 ticks. */
static void run_batch(bool is_sleeper, uint64_t *seed)
{
    uint64_t at, step = direction == CLIENT_SLEEPS ? 1000 : 3000; /* the kick is a system call */

    while ((at = atomic_load_explicit(&start_tick, memory_order_relaxed)) == 0)
        continue;
    for (uint32_t i = 0; i < N_TRIES; i++) {
        uint64_t when = at + i * step + ll_splitmix64(seed) % 100;
        while ((int64_t)(tick() - when) < 0)
            continue;
        if (is_sleeper)
            trial[i].saw_nothing = sees_nothing(&trial[i]);
        else
            trial[i].woke = write_and_look(&trial[i]);
    }
}

static void prepare(void)
{
    for (uint32_t i = 0; i < N_TRIES; i++) {
        struct trial *t = &trial[i];
        memset((void *)&t->hot, 0, sizeof(t->hot));
        memset((void *)t->event, 0, sizeof(t->event));
        atomic_store_explicit(&t->info.rt_sleeping, 0, memory_order_relaxed);
        ll_event_writer_init(&t->writer, t->event, 1, &t->hot.cons_pos, 0);
        ll_event_reader_init(&t->reader, t->event, 1, &t->hot.cons_pos, 0);
        ll_bell_init(&t->bell, t->bell_memory, LOG2_WORDS, 0);
        ll_bell_reader_init(&t->bell_reader, &t->bell);
    }
}

static cpu_set_t allowed;

/* The n-th processor we may run on, so that the two sides never share one. */
static void pin(int n)
{
    cpu_set_t one;

    CPU_ZERO(&one);
    if (CPU_COUNT(&allowed) < 2)
        return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && n-- == 0)
            CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
}

static void *run_sleeper(void *argument)
{
    uint64_t seed = *(uint64_t *)argument;

    pin(1);

    for (uint64_t n = 1;; n++) {
        /* Acquire, pairs with the release below: prepare() is done. */
        while (atomic_load_explicit(&batch, memory_order_acquire) != n) {
            if (atomic_load_explicit(&should_stop, memory_order_acquire))
                return NULL;
            sched_yield();
        }
        atomic_store_explicit(&is_there, n, memory_order_relaxed);
        run_batch(true, &seed);
        atomic_store_explicit(&batch_done, n, memory_order_release);
    }
}

static uint64_t run(enum direction which, bool with_fence, double seconds)
{
    static const char *const names[] = {"client sleeps", "runtime sleeps"};
    uint64_t n_lost = 0, n_slept = 0, n = 0, n_woke = 0, start_ns = ll_now_ns();
    uint64_t seed = ll_test_seed(), seed_sleeper = seed + 1;
    pthread_t sleeper;

    direction = which;
    has_fence = with_fence;
    atomic_store(&batch, 0);
    atomic_store(&batch_done, 0);
    atomic_store(&is_there, 0);
    atomic_store(&should_stop, false);
    pthread_create(&sleeper, NULL, run_sleeper, &seed_sleeper);
    while ((double)(ll_now_ns() - start_ns) < seconds * 1e9) {
        prepare();
        atomic_store_explicit(&start_tick, 0, memory_order_relaxed);
        atomic_store_explicit(&batch, ++n, memory_order_release);
        while (atomic_load_explicit(&is_there, memory_order_relaxed) != n)
            sched_yield();
        atomic_store_explicit(&start_tick, tick() + 1000, memory_order_relaxed);
        run_batch(false, &seed);
        while (atomic_load_explicit(&batch_done, memory_order_acquire) != n)
            sched_yield();
        for (uint32_t i = 0; i < N_TRIES; i++) {
            n_slept += trial[i].saw_nothing;
            n_woke += trial[i].woke;
            n_lost += trial[i].saw_nothing && !trial[i].woke;
        }
    }
    atomic_store(&should_stop, true);
    pthread_join(sleeper, NULL);
    printf("%s, %s: %llu tries, %llu saw nothing, %llu were woken, %llu wake-ups lost\n",
           names[which], with_fence ? "with fences" : "NO fence", (unsigned long long)n * N_TRIES,
           (unsigned long long)n_slept, (unsigned long long)n_woke, (unsigned long long)n_lost);
    return n_lost;
}

int main(int argc, char **argv)
{
    double seconds = ll_test_seconds(6);
    bool is_mutant = argc > 1 && strcmp(argv[1], "--no-fence") == 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
        return 1;
    pin(0);
    for (uint32_t i = 0; i < N_TRIES; i++)
        trial[i].kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (!is_mutant) /* beside the result: how often the faulty protocol fails right here */
        run(CLIENT_SLEEPS, false, seconds / 6);
    uint64_t n_lost = run(CLIENT_SLEEPS, !is_mutant, seconds * 5 / 12);
    n_lost += run(RUNTIME_SLEEPS, !is_mutant, seconds * 5 / 12);
    return n_lost == 0 ? 0 : 1;
}
