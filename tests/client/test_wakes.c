/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_wakes.c - the client's own way to sleep against a writer on another processor:
 * no wake-up is lost, neither in ll_client_wait() nor in ll_client_arm().
 *
 * What can be lost is lost within 100 ns: between the last look of the spinning client and the
 * moment its wait_word can be seen. So both sides take try i at its time on the processors' common
 * clock, and the writer's delay differs from try to try: its events fall into every part of the way
 * to sleep, thousands of times. Each try has a client of its own, made by hand on private memory,
 * 64 in a batch: no third thread takes a processor away, and nobody waits for the other in between.
 * (Where the turns of a whole runtime decide when an event comes, as in test_liveness.c, that
 * window is met too seldom to notice a missing look or a weaker fence.) */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/rng.h"
#include "client/handle.h"
#include "shm/wait.h"

#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define N_TRIES     64u
#define LOG2_EVENTS 3u
#define PATIENCE_NS (50 * LL_NS_PER_MS) /* of one wait: what a lost wake-up costs */

struct trial {
    /* what is shared with the runtime */
    struct ll_req_hot hot;
    struct ll_event event[1u << LOG2_EVENTS];
    struct ll_req req;
    struct ll_rsp_head rsp_head;
    struct ll_rst rst;
    /* the writer's */
    struct ll_event_writer writer __attribute__((aligned(128)));
    int runtime_end, far_socket;
    bool was_asleep;
    uint64_t writer_late_ns, told_ns;
    /* the client's */
    struct ll_client client __attribute__((aligned(128)));
    struct ll_client_slot slot;
    struct ll_event queue[LL_CLIENT_QUEUE_EVENTS];
    uint16_t ready[1];
    uint64_t n_lost_before, client_late_ns, end_ns;
    int result;
} __attribute__((aligned(4096)));

static struct trial trial[N_TRIES];
static struct ll_info_region info;
static uint32_t guard = LL_CLIENT_GUARD;

static bool arms; /* ll_client_arm() instead of ll_client_wait() */
static uint64_t step_ns, delay_max_ns;
static _Atomic uint64_t batch __attribute__((aligned(128)));
static _Atomic uint64_t is_there __attribute__((aligned(128)));
static _Atomic uint64_t start_ns __attribute__((aligned(128)));
static _Atomic uint64_t batch_done __attribute__((aligned(128)));
static _Atomic bool should_stop __attribute__((aligned(128)));

static void make_trial(struct trial *t)
{
    struct epoll_event event = {.events = EPOLLIN};
    int pair[2];

    memset((void *)t, 0, sizeof(*t));
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), 0);
    t->far_socket = pair[1];
    t->slot = (struct ll_client_slot){.id = 1 << 10, .gen = 1, .n_choices = 1, .queue = t->queue};
    t->client = (struct ll_client){
        .socket_fd = pair[0],
        .kick_fd = -1,
        .epoll_fd = epoll_create1(0),
        .n_slots = 1,
        .info = &info,
        .hot = &t->hot,
        .slots = (uint8_t *)&t->req,
        .req_slot_bytes = sizeof(t->req),
        .rsp_head = &t->rsp_head,
        .rst = (const uint8_t *)&t->rst,
        .rst_bytes = sizeof(t->rst),
        .guard = &guard,
        .slot = &t->slot,
        .queues = t->queue,
        .n_open = 1,
        .ready = t->ready,
        .n_ready_max = 1,
    };
    assert_int_equal(ll_wait_make_wake(&t->client.wake_fd, &t->runtime_end), 0);
    assert_int_equal(epoll_ctl(t->client.epoll_fd, EPOLL_CTL_ADD, t->client.wake_fd, &event), 0);
    ll_event_reader_init(&t->client.events, t->event, LOG2_EVENTS, &t->hot.cons_pos, 0);
    ll_event_writer_init(&t->writer, t->event, LOG2_EVENTS, &t->hot.cons_pos, 0);
}

static void free_trial(struct trial *t)
{
    close(t->client.socket_fd);
    close(t->client.wake_fd);
    close(t->client.epoll_fd);
    close(t->far_socket);
    close(t->runtime_end);
}

/* The n-th processor we may run on. */
static void pin(int n)
{
    cpu_set_t allowed, one;

    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
        return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && n-- == 0)
            CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
}

static void fall_asleep(struct trial *t)
{
    struct ll_output out[4];

    t->n_lost_before = t->client.n_lost_wakes;
    t->result =
        arms ? ll_client_arm(&t->client) : ll_client_wait(&t->client, out, 4, (int64_t)PATIENCE_NS);
    t->end_ns = ll_now_ns();
}

/* As the runtime's step does it. */
static void write_event(struct trial *t)
{
    struct ll_event event = {.type = LL_EV_TOKEN, .n = 1, .gen = 1};

    ll_event_write(&t->writer, &event);
    ll_wait_fence();
    t->was_asleep = ll_wait_claim(&t->hot);
    if (t->was_asleep && !arms)
        ll_wait_wake(t->runtime_end);
    t->told_ns = ll_now_ns();
}

/* One side's part of a batch: try i at its time. */
static void run_batch(bool is_writer, uint64_t *rng)
{
    uint64_t at;

    while ((at = atomic_load_explicit(&start_ns, memory_order_relaxed)) == 0)
        continue;
    for (uint32_t i = 0; i < N_TRIES; i++) {
        uint64_t when = at + i * step_ns + (is_writer ? ll_splitmix64(rng) % delay_max_ns : 0);
        uint64_t now_ns;
        while ((int64_t)((now_ns = ll_now_ns()) - when) < 0)
            continue;
        if (is_writer) {
            trial[i].writer_late_ns = now_ns - when;
            write_event(&trial[i]);
        } else {
            trial[i].client_late_ns = now_ns - when;
            fall_asleep(&trial[i]);
        }
    }
}

static void *run_client(void *argument)
{
    (void)argument;
    pin(1);
    for (uint64_t n = 1;; n++) {
        /* Acquire, pairs with the release of run_tries(): the last batch was looked at. */
        while (atomic_load_explicit(&batch, memory_order_acquire) != n) {
            if (atomic_load_explicit(&should_stop, memory_order_acquire))
                return NULL;
            sched_yield();
        }
        atomic_store_explicit(&is_there, n, memory_order_relaxed);
        run_batch(false, NULL);
        atomic_store_explicit(&batch_done, n, memory_order_release);
    }
}

struct figures {
    uint64_t n_tries, n_met, n_slept, n_lost;
};

/* Was the wake-up lost? Armed: "sleep" was the answer, and nobody would have woken it. Else: it
 * slept to the end beside an event that had been written, and told of, long before. */
static bool was_lost(const struct trial *t)
{
    if (arms)
        return t->result == 0 && !t->was_asleep;
    return t->client.n_lost_wakes != t->n_lost_before && t->end_ns > t->told_ns + PATIENCE_NS / 2;
}

/* Until both sides were on time in n_wanted tries; a machine that is busy elsewhere may not get
 * there in time. */
static void run_tries(uint64_t n_wanted, struct figures *out)
{
    uint64_t rng = ll_test_seed(), end_ns = ll_now_ns() + 20 * LL_NS_PER_S, n = 0;
    struct ll_output left[4];
    pthread_t thread;

    *out = (struct figures){0};
    atomic_store(&batch, 0);
    atomic_store(&batch_done, 0);
    atomic_store(&is_there, 0);
    atomic_store(&should_stop, false);
    pthread_create(&thread, NULL, run_client, NULL);
    pin(0);
    while (out->n_met < n_wanted && ll_now_ns() < end_ns) {
        for (uint32_t i = 0; i < N_TRIES; i++) {
            while (ll_client_poll(&trial[i].client, left, 4) > 0)
                continue;
            ll_event_publish(&trial[i].client.events);
            if (ll_event_writer_room(&trial[i].writer, 2) < 2)
                abort();
        }
        atomic_store_explicit(&info.heartbeat_ns, ll_now_ns(), memory_order_relaxed);
        atomic_store_explicit(&start_ns, 0, memory_order_relaxed);
        atomic_store_explicit(&batch, ++n, memory_order_release);
        while (atomic_load_explicit(&is_there, memory_order_relaxed) != n)
            sched_yield();
        atomic_store_explicit(&start_ns, ll_now_ns() + 1000, memory_order_relaxed);
        run_batch(true, &rng);
        while (atomic_load_explicit(&batch_done, memory_order_acquire) != n)
            sched_yield();
        for (uint32_t i = 0; i < N_TRIES; i++) {
            out->n_lost += was_lost(&trial[i]);
            if (trial[i].writer_late_ns > 500 || trial[i].client_late_ns > 500)
                continue;
            out->n_met++;
            out->n_slept += trial[i].was_asleep;
        }
    }
    atomic_store(&should_stop, true);
    pthread_join(thread, NULL);
    out->n_tries = n * N_TRIES;
    printf("%s: %llu tries, %llu of them on time, asleep in %llu of these, %llu wake-ups lost\n",
           arms ? "ll_client_arm" : "ll_client_wait", (unsigned long long)out->n_tries,
           (unsigned long long)out->n_met, (unsigned long long)out->n_slept,
           (unsigned long long)out->n_lost);
}

static void check(uint64_t n_wanted)
{
    cpu_set_t allowed;
    struct figures figures;

    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < 2)
        skip(); /* nothing happens at the same time */
    for (uint32_t i = 0; i < N_TRIES; i++)
        make_trial(&trial[i]);
    run_tries(n_wanted, &figures);
    pthread_setaffinity_np(pthread_self(), sizeof(allowed), &allowed);
    for (uint32_t i = 0; i < N_TRIES; i++)
        free_trial(&trial[i]);
    assert_int_equal(figures.n_lost, 0);
    if (figures.n_met < n_wanted)
        return;
    /* Both outcomes came often: the delays cover the way to sleep. */
    assert_true(figures.n_slept > n_wanted / 50);
    assert_true(figures.n_slept < n_wanted - n_wanted / 50);
}

static void no_event_is_slept_through(void **state)
{
    (void)state;
    arms = false;
    step_ns = 60000;     /* a sleep and a wake-up, mostly */
    delay_max_ns = 5000; /* it spins 64 turns, some 2 us, before it looks at the clock */
    check(4000);
}

static void no_event_is_armed_past(void **state)
{
    (void)state;
    arms = true;
    step_ns = 2000;
    delay_max_ns = 300;
    check(10000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_event_is_slept_through),
        cmocka_unit_test(no_event_is_armed_past),
    };
    return cmocka_run_group_tests_name("client/wakes", tests, NULL, NULL);
}
