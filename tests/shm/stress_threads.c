/* SPDX-License-Identifier: Apache-2.0 */
/* tests/shm/stress_threads.c - rings, events and sleeping together, as threads (T5).
 *
 * ThreadSanitizer is blind between processes, so runtime and clients are threads of this one; in
 * the tsan build it must stay silent. LL_STRESS_SECONDS, default 5.
 *
 * Each client submits numbered requests through the shared bell and gets 1 .. 8 events for each
 * through its own small event ring, which it now and then leaves unread until it is full. Both
 * sides sleep for real, with a timeout of one second: a timeout that finds work is a lost wake-up.
 * What must hold: every request is answered once, in order, its body and its events whole. */
#include "tests/harness.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/rng.h"
#include "shm/bell.h"
#include "shm/events.h"
#include "shm/wait.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define N_CLIENTS   3u
#define N_SLOTS     16u
#define LOG2_WORDS  7u /* 2 x 3 x 16, rounded up */
#define LOG2_EVENTS 6u
#define SLEEP_MS    1000

struct client {
    struct ll_req slot[N_SLOTS];
    struct ll_req_hot hot;
    struct ll_event ring[1u << LOG2_EVENTS];
    int kick_fd, wake_client_fd, wake_runtime_fd;
    /* runtime */
    struct ll_event_writer writer;
    uint32_t gen[N_SLOTS];
    struct {
        uint64_t tag;
        uint32_t slot, n_left, index;
    } queue[N_SLOTS]; /* requests taken and not yet answered */
    uint64_t n_taken, n_answered;
    /* client */
    struct ll_event_reader reader;
    struct ll_bell bell;
    uint32_t id;
    uint64_t n_sent, n_done, n_events, n_sleeps;
    pthread_t thread;
} __attribute__((aligned(128)));

static struct client client[N_CLIENTS];
static struct ll_info_region info;
static char bell_memory[sizeof(struct ll_bell_head) + (8 << LOG2_WORDS)]
    __attribute__((aligned(4096)));
static struct ll_bell_reader bell_reader;
static _Atomic bool should_stop, runtime_should_stop;
static _Atomic uint64_t n_lost_wakes;
static uint64_t n_runtime_sleeps;

static uint32_t events_of(uint64_t tag)
{
    return 1 + (uint32_t)(tag * 2654435761u >> 7) % 8;
}

/* ---- the runtime thread */

static void take(uint32_t word)
{
    uint32_t id = ll_word_client(word), at = ll_word_slot(word);

    LL_ASSERT(id < N_CLIENTS && at < N_SLOTS && ll_word_op(word) == LL_OP_SUBMIT);
    struct client *c = &client[id];
    /* Relaxed, where runtime/intake.c has acquire: so the bell's own order is on trial here. */
    uint32_t state = atomic_load_explicit(&c->slot[at].state, memory_order_relaxed);
    c->gen[at] = ll_gen_next(c->gen[at]);
    LL_ASSERT(state == (c->gen[at] << 8 | LL_SLOT_SUBMITTED));
    LL_ASSERT(c->slot[at].tag == c->n_taken);
    for (uint32_t i = 0; i < LL_STOP_MAX; i++)
        LL_ASSERT(c->slot[at].stop[i] == (uint32_t)c->n_taken * 31 + i);
    LL_ASSERT(c->n_taken - c->n_answered < N_SLOTS);
    c->queue[c->n_taken % N_SLOTS].tag = c->n_taken;
    c->queue[c->n_taken % N_SLOTS].slot = at;
    c->queue[c->n_taken % N_SLOTS].index = 0;
    c->queue[c->n_taken % N_SLOTS].n_left = events_of(c->n_taken);
    c->n_taken++;
}

/* Answers as far as there is room. */
static uint32_t answer(struct client *c)
{
    uint32_t n = 0;

    while (c->n_answered != c->n_taken && ll_event_writer_room(&c->writer, 1) > 0) {
        uint64_t at = c->n_answered % N_SLOTS, tag = c->queue[at].tag;
        struct ll_event event = {.type = --c->queue[at].n_left == 0 ? LL_EV_FINISH : LL_EV_TOKEN,
                                 .slot = (uint16_t)c->queue[at].slot,
                                 .index = c->queue[at].index++,
                                 .t_ns = tag};
        for (uint32_t i = 0; i < 10; i++)
            event.u.burst[i] = (uint32_t)tag * 7 + event.index + i;
        ll_event_write(&c->writer, &event);
        c->n_answered += event.type == LL_EV_FINISH;
        n++;
    }
    return n;
}

static bool runtime_has_work(void)
{
    if (!ll_bell_is_empty(&bell_reader))
        return true;
    for (uint32_t i = 0; i < N_CLIENTS; i++)
        if (client[i].n_answered != client[i].n_taken &&
            ll_event_writer_room(&client[i].writer, 1) > 0)
            return true;
    return false;
}

static void *run_runtime(void *argument)
{
    struct pollfd fds[N_CLIENTS];
    uint32_t n_idle = 0, word;

    (void)argument;
    for (uint32_t i = 0; i < N_CLIENTS; i++)
        fds[i] = (struct pollfd){.fd = client[i].kick_fd, .events = POLLIN};
    while (!atomic_load_explicit(&runtime_should_stop, memory_order_acquire)) {
        uint32_t n = 0;
        for (; n < 32 && ll_bell_pop(&bell_reader, &word) == 1; n++)
            take(word);
        for (uint32_t i = 0; i < N_CLIENTS; i++)
            n += answer(&client[i]);
        if (n > 0) {
            n_idle = 0;
            ll_wait_fence(); /* one for all */
            for (uint32_t i = 0; i < N_CLIENTS; i++)
                if (ll_wait_claim(&client[i].hot))
                    ll_wait_wake(client[i].wake_runtime_fd);
            continue;
        }
        bool is_blocked = false; /* a full ring gives no kick when it drains: look again soon */
        for (uint32_t i = 0; i < N_CLIENTS; i++)
            is_blocked |= client[i].n_answered != client[i].n_taken;
        if (is_blocked || n_idle++ < 50) {
            sched_yield();
            continue;
        }
        n_idle = 0;
        ll_wait_runtime_arm(&info);
        if (!runtime_has_work()) {
            n_runtime_sleeps++;
            if (poll(fds, N_CLIENTS, SLEEP_MS) == 0 && runtime_has_work())
                atomic_fetch_add(&n_lost_wakes, 1);
        }
        ll_wait_runtime_disarm(&info);
        for (uint32_t i = 0; i < N_CLIENTS; i++)
            if (fds[i].revents != 0)
                ll_wait_drain(fds[i].fd);
    }
    return NULL;
}

/* ---- a client thread */

static void submit(struct client *c, uint32_t at)
{
    struct ll_req *slot = &c->slot[at];
    uint32_t gen = atomic_load_explicit(&slot->state, memory_order_relaxed) >> 8;

    slot->tag = c->n_sent;
    for (uint32_t i = 0; i < LL_STOP_MAX; i++)
        slot->stop[i] = (uint32_t)c->n_sent * 31 + i;
    atomic_store_explicit(&slot->state, ll_gen_next(gen) << 8 | LL_SLOT_SUBMITTED,
                          memory_order_relaxed);
    c->n_sent++;
    LL_ASSERT(ll_bell_push(&c->bell, ll_word_pack(LL_OP_SUBMIT, c->id, 0, at)));
    ll_wait_kick(&info, c->kick_fd);
}

static void sleep_for_events(struct client *c)
{
    struct pollfd fd = {.fd = c->wake_client_fd, .events = POLLIN};

    ll_event_publish(&c->reader);
    ll_wait_arm(&c->hot);
    if (!ll_event_ready(&c->reader)) {
        c->n_sleeps++;
        if (poll(&fd, 1, SLEEP_MS) == 0 && ll_event_ready(&c->reader))
            atomic_fetch_add(&n_lost_wakes, 1);
    }
    ll_wait_disarm(&c->hot);
    if (fd.revents != 0)
        ll_wait_drain(fd.fd);
}

static void *run_client(void *argument)
{
    struct client *c = argument;
    uint64_t seed = ll_now_ns() + c->id;
    uint32_t free_map = (1u << N_SLOTS) - 1, index = 0, n_idle = 0;

    for (;;) {
        bool is_over = atomic_load_explicit(&should_stop, memory_order_acquire);
        if (is_over && c->n_done == c->n_sent)
            return NULL;
        uint64_t random = ll_splitmix64(&seed);
        for (uint32_t n = random % 5; n > 0 && free_map != 0 && !is_over; n--) {
            uint32_t at = (uint32_t)__builtin_ctz(free_map);
            free_map &= ~(1u << at);
            submit(c, at);
        }
        if (random >> 8 & 1)
            continue; /* reads later: the ring fills up */
        if ((ll_now_ns() >> 20) % 8 == 0)
            usleep(random >> 16 & 1023); /* all at once: the runtime falls asleep */

        struct ll_event event;
        bool has_read = false;
        while (ll_event_read(&c->reader, &event)) {
            has_read = true;
            c->n_events++;
            LL_ASSERT(event.t_ns == c->n_done && event.index == index++);
            for (uint32_t i = 0; i < 10; i++)
                LL_ASSERT(event.u.burst[i] == (uint32_t)event.t_ns * 7 + event.index + i);
            if (event.type == LL_EV_FINISH) {
                LL_ASSERT(index == events_of(c->n_done));
                free_map |= 1u << event.slot;
                index = 0;
                c->n_done++;
            }
        }
        if (has_read)
            n_idle = 0;
        else if (c->n_done != c->n_sent && n_idle++ > (random >> 40) % 20) {
            sleep_for_events(c);
            n_idle = 0;
        }
    }
}

int main(void)
{
    double seconds = ll_test_seconds(5);
    struct ll_bell bell;
    pthread_t runtime;
    uint64_t n_done = 0, n_events = 0, n_sleeps = 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    ll_bell_init(&bell, bell_memory, LOG2_WORDS, UINT32_MAX - 1);
    ll_bell_reader_init(&bell_reader, &bell);
    for (uint32_t i = 0; i < N_CLIENTS; i++) {
        struct client *c = &client[i];
        uint64_t start = (1ull << 32) - 1000; /* seq wraps on the way */
        c->id = i;
        c->bell = bell;
        c->kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (ll_wait_make_wake(&c->wake_client_fd, &c->wake_runtime_fd) < 0)
            return 1;
        for (uint32_t k = 0; k < N_SLOTS; k++) { /* generations wrap, too */
            c->gen[k] = 0xffffff - 10;
            atomic_store(&c->slot[k].state, c->gen[k] << 8);
        }
        ll_event_writer_init(&c->writer, c->ring, LOG2_EVENTS, &c->hot.cons_pos, start);
        ll_event_reader_init(&c->reader, c->ring, LOG2_EVENTS, &c->hot.cons_pos, start);
    }
    pthread_create(&runtime, NULL, run_runtime, NULL);
    for (uint32_t i = 0; i < N_CLIENTS; i++)
        pthread_create(&client[i].thread, NULL, run_client, &client[i]);
    usleep((useconds_t)(seconds * 1e6));
    atomic_store(&should_stop, true);
    for (uint32_t i = 0; i < N_CLIENTS; i++) {
        pthread_join(client[i].thread, NULL);
        n_done += client[i].n_done;
        n_events += client[i].n_events;
        n_sleeps += client[i].n_sleeps;
    }
    atomic_store(&runtime_should_stop, true);
    ll_wait_wake(client[0].kick_fd);
    pthread_join(runtime, NULL);
    printf("%llu requests, %llu events, clients slept %llu times, the runtime %llu; %llu wake-ups "
           "lost\n",
           (unsigned long long)n_done, (unsigned long long)n_events, (unsigned long long)n_sleeps,
           (unsigned long long)n_runtime_sleeps, (unsigned long long)n_lost_wakes);
    for (uint32_t i = 0; i < N_CLIENTS; i++)
        LL_ASSERT(client[i].n_taken == client[i].n_sent &&
                  client[i].n_answered == client[i].n_sent);
    return n_lost_wakes == 0 && n_done > 0 && n_sleeps > 0 ? 0 : 1;
}
