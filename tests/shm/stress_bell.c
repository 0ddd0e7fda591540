/* SPDX-License-Identifier: Apache-2.0 */
/* tests/shm/stress_bell.c - producer processes killed and stopped in mid-push (T6, T8).
 *
 *   stress_bell                  LL_STRESS_SECONDS, default 10
 *   stress_bell --no-quarantine  the mutant: ids are reused at once; must fail
 *
 * One supervisor forks a consumer and the producers. It sends SIGKILL and SIGSTOP at random times
 * 0 .. 400 us apart, reaps, and posts a death notice. The consumer does what runtime/intake.c does:
 * after a notice it waits for the quarantine (pop answered 0, or N positions), then frees the id,
 * which a new process gets with incarnation + 1. Bodies of 256 bytes lie in the producer's own
 * slots and carry a number, random words and a checksum. What must hold, for every incarnation:
 *   torn        each body that arrives has its checksum
 *   order       numbers arrive as 0, 1, 2, ...: none twice, none early, none skipped
 *   lost        at the end of quarantine all pushes that returned have come, and at most one more
 *   stale       no word of an earlier incarnation comes after its quarantine
 *   refused     no push fails: the ring holds 2 words a slot
 *   stall       no second passes without a word
 * Second phase: 31 of 32 producers are stopped wherever they are; the last goes on (T8). */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/rng.h"
#include "shm/bell.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PRODUCERS_MAX 32u
#define N_SLOTS       16u
#define LOG2_WORDS    10u /* 2 x 32 x 16 */
#define BODY_WORDS    28u

struct slot {
    _Atomic uint32_t state; /* gen << 8 | LL_SLOT_SUBMITTED */
    uint32_t pad;
    uint64_t number;
    uint64_t random[BODY_WORDS];
    uint64_t check;
    uint64_t pad1;
};
static_assert(sizeof(struct slot) == 256, "a request slot");

enum id_state { ID_FREE, ID_LIVE, ID_DEAD };

struct client {
    struct slot slot[N_SLOTS];
    _Atomic uint64_t n_rung; /* pushes that returned; producer writes */
    uint64_t pad0[7];
    _Atomic uint32_t done[N_SLOTS]; /* gen taken; consumer writes */
    _Atomic uint64_t n_came;        /* of this incarnation; consumer writes */
    uint64_t pad1[7];
    _Atomic uint32_t state; /* supervisor: LIVE, DEAD; consumer: FREE */
    _Atomic uint32_t incarnation;
};

struct shared {
    _Atomic uint32_t should_stop, consumer_should_stop;
    _Atomic uint64_t n_words, n_torn, n_order, n_lost, n_stale, n_refused, n_stalls, n_quarantines;
    _Atomic uint64_t n_stray, gap_max_ns;
    struct client client[PRODUCERS_MAX];
    struct ll_bell_head bell __attribute__((aligned(4096)));
};

static struct shared *shared;
static struct ll_bell bell;
static struct ll_bell_reader reader; /* the consumer's */
static uint32_t n_producers;
static bool has_quarantine = true;

static uint64_t checksum(const struct slot *slot)
{
    uint64_t sum = slot->number * 0x9e3779b97f4a7c15ull + 1;

    for (uint32_t i = 0; i < BODY_WORDS; i++)
        sum = (sum ^ slot->random[i]) * 0xbf58476d1ce4e5b9ull + (sum >> 31);
    return sum;
}

/* ---- a producer */

static uint32_t load(const _Atomic uint32_t *word)
{
    /* Acquire, pairs with the other side's release of the same word. */
    return atomic_load_explicit(word, memory_order_acquire);
}

static _Noreturn void run_producer(uint32_t id)
{
    struct client *client = &shared->client[id];
    uint32_t incarnation = load(&client->incarnation), slot_at = 0;
    uint64_t seed = ll_now_ns() ^ (uint64_t)id << 32;

    for (uint64_t number = 0; load(&shared->should_stop) == 0;) {
        slot_at = (slot_at + 1) % N_SLOTS;
        struct slot *slot = &client->slot[slot_at];
        uint32_t gen = load(&slot->state) >> 8;
        if (load(&client->done[slot_at]) != gen) { /* not taken yet */
            sched_yield();
            continue;
        }
        slot->number = number++;
        for (uint32_t i = 0; i < BODY_WORDS; i++)
            slot->random[i] = ll_splitmix64(&seed);
        slot->check = checksum(slot);
        atomic_store_explicit(&slot->state, ll_gen_next(gen) << 8 | LL_SLOT_SUBMITTED,
                              memory_order_release);
        if (!ll_bell_push(&bell, ll_word_pack(LL_OP_SUBMIT, id, incarnation, slot_at)))
            atomic_fetch_add(&shared->n_refused, 1);
        atomic_store_explicit(&client->n_rung, number, memory_order_release);
    }
    _exit(0);
}

/* ---- the consumer */

struct shadow {
    uint32_t gen[N_SLOTS];
    uint64_t next_number;
    uint64_t notice_position, notice_n_empty;
    bool is_dying;
};

static struct shadow shadow[PRODUCERS_MAX];

static void bump(_Atomic uint64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static void take(uint32_t word)
{
    uint32_t id = ll_word_client(word), at = ll_word_slot(word);

    if (id >= n_producers || at >= N_SLOTS || ll_word_op(word) != LL_OP_SUBMIT) {
        bump(&shared->n_stray);
        return;
    }
    struct client *client = &shared->client[id];
    struct shadow *s = &shadow[id];
    if ((load(&client->incarnation) & 0x3ffu) != ll_word_incarnation(word)) {
        bump(&shared->n_stale);
        return;
    }
    uint32_t state = load(&client->slot[at].state);
    struct slot copy;
    memcpy((void *)&copy, (const void *)&client->slot[at], sizeof(copy));
    if (state != (ll_gen_next(s->gen[at]) << 8 | LL_SLOT_SUBMITTED) ||
        copy.number != s->next_number)
        bump(&shared->n_order);
    if (copy.check != checksum(&copy))
        bump(&shared->n_torn);
    s->gen[at] = state >> 8;
    s->next_number = copy.number + 1;
    atomic_store_explicit(&client->n_came, s->next_number, memory_order_relaxed);
    atomic_store_explicit(&client->done[at], state >> 8, memory_order_release);
    bump(&shared->n_words);
}

/* The quarantine of bell.h is over: nothing this incarnation rang can come any more. */
static void free_id(uint32_t id)
{
    struct client *client = &shared->client[id];
    struct shadow *s = &shadow[id];
    uint64_t n_rung = atomic_load(&client->n_rung);

    if (s->next_number < n_rung || s->next_number > n_rung + 1)
        bump(&shared->n_lost);
    for (uint32_t i = 0; i < N_SLOTS; i++) {
        s->gen[i] = load(&client->slot[i].state) >> 8;
        atomic_store_explicit(&client->done[i], s->gen[i], memory_order_relaxed);
    }
    s->next_number = 0;
    s->is_dying = false;
    atomic_store_explicit(&client->n_rung, 0, memory_order_relaxed);
    atomic_store_explicit(&client->n_came, 0, memory_order_relaxed);
    atomic_fetch_add(&client->incarnation, 1);
    /* Release, pairs with the acquire in the supervisor: the next process sees free slots. */
    atomic_store_explicit(&client->state, ID_FREE, memory_order_release);
    bump(&shared->n_quarantines);
}

static _Noreturn void run_consumer(void)
{
    uint64_t n_empty = 0, last_ns = ll_now_ns(), idle_ns = 0;
    uint32_t word;

    for (;;) {
        /* Notices first, then the ring: a notice read here precedes the pops that end it. */
        bool should_stop = load(&shared->consumer_should_stop) != 0;
        for (uint32_t id = 0; id < n_producers; id++) {
            struct shadow *s = &shadow[id];
            if (!s->is_dying && load(&shared->client[id].state) == ID_DEAD) {
                s->is_dying = true;
                s->notice_position = ll_bell_position(&reader);
                s->notice_n_empty = n_empty;
            }
            if (s->is_dying && (!has_quarantine || n_empty != s->notice_n_empty ||
                                ll_bell_position(&reader) - s->notice_position >= 1u << LOG2_WORDS))
                free_id(id);
        }
        int rc = 1, n = 0;
        for (; n < 32 && (rc = ll_bell_pop(&reader, &word)) > 0; n++)
            take(word);
        n_empty += rc == 0;
        if (rc < 0)
            bump(&shared->n_stray);
        if (rc <= 0 && should_stop)
            _exit(0);
        if (n == 0)
            sched_yield(); /* there are more processes than processors */

        /* A stall is a second of our own polling without a word; being descheduled is none. */
        uint64_t now_ns = ll_now_ns();
        idle_ns = n > 0 ? 0 : idle_ns + ll_min_u64(now_ns - last_ns, 5 * LL_NS_PER_MS);
        last_ns = now_ns;
        if (idle_ns > atomic_load_explicit(&shared->gap_max_ns, memory_order_relaxed))
            atomic_store_explicit(&shared->gap_max_ns, idle_ns, memory_order_relaxed);
        if (idle_ns > LL_NS_PER_S) {
            bump(&shared->n_stalls);
            idle_ns = 0;
        }
    }
}

/* ---- the supervisor */

static pid_t producer_pid[PRODUCERS_MAX], consumer_pid;
static uint64_t n_kills, n_stops;

static pid_t start(uint32_t id, bool is_consumer)
{
    pid_t parent = getpid(), pid = fork();

    if (pid < 0) {
        perror("fork");
        exit(1);
    }
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    if (is_consumer)
        run_consumer();
    run_producer(id);
}

static void begin(uint32_t n)
{
    n_producers = n;
    memset((void *)shared, 0, sizeof(*shared));
    memset(shadow, 0, sizeof(shadow));
    ll_bell_init(&bell, &shared->bell, LOG2_WORDS, UINT32_MAX - 1);
    ll_bell_reader_init(&reader, &bell); /* before anybody pushes */
    consumer_pid = start(0, true);
    for (uint32_t id = 0; id < n; id++) {
        atomic_store(&shared->client[id].state, ID_LIVE);
        producer_pid[id] = start(id, false);
    }
}

/* Lets all finish; then nothing may be missing. */
static bool end(const char *what, double seconds)
{
    int status = 0;

    atomic_store(&shared->should_stop, 1);
    for (uint32_t id = 0; id < n_producers; id++) {
        if (producer_pid[id] <= 0)
            continue;
        kill(producer_pid[id], SIGCONT);
        waitpid(producer_pid[id], NULL, 0);
    }
    atomic_store(&shared->consumer_should_stop, 1);
    waitpid(consumer_pid, &status, 0);
    for (uint32_t id = 0; id < n_producers; id++) {
        struct client *client = &shared->client[id];
        if (atomic_load(&client->state) == ID_LIVE &&
            atomic_load(&client->n_rung) != atomic_load(&client->n_came))
            bump(&shared->n_lost);
    }
    printf("%s: %.1f s, %llu words (%.2f M/s), %llu kills, %llu stops, %llu quarantines, longest "
           "gap %.1f ms\n  torn %llu, order %llu, lost %llu, stale %llu, refused %llu, stray %llu, "
           "stalls %llu\n",
           what, seconds, (unsigned long long)shared->n_words,
           (double)shared->n_words / seconds / 1e6, (unsigned long long)n_kills,
           (unsigned long long)n_stops, (unsigned long long)shared->n_quarantines,
           (double)shared->gap_max_ns / 1e6, (unsigned long long)shared->n_torn,
           (unsigned long long)shared->n_order, (unsigned long long)shared->n_lost,
           (unsigned long long)shared->n_stale, (unsigned long long)shared->n_refused,
           (unsigned long long)shared->n_stray, (unsigned long long)shared->n_stalls);
    return status == 0 && shared->n_words > 0 &&
           shared->n_torn + shared->n_order + shared->n_lost + shared->n_stale + shared->n_refused +
                   shared->n_stray + shared->n_stalls ==
               0;
}

static void reap_and_respawn(void)
{
    for (uint32_t id = 0; id < n_producers; id++) {
        if (producer_pid[id] > 0 && waitpid(producer_pid[id], NULL, WNOHANG) > 0) {
            producer_pid[id] = 0;
            /* Release: the notice comes after everything the process did. */
            atomic_store_explicit(&shared->client[id].state, ID_DEAD, memory_order_release);
        }
        if (producer_pid[id] == 0 && load(&shared->client[id].state) == ID_FREE) {
            atomic_store(&shared->client[id].state, ID_LIVE);
            producer_pid[id] = start(id, false);
        }
    }
}

static bool kill_at_random(double seconds)
{
    uint64_t seed = ll_test_seed(), end_ns = ll_now_ns() + (uint64_t)(seconds * 1e9);
    uint64_t stopped_until_ns[PRODUCERS_MAX] = {0};

    begin(6);
    while (ll_now_ns() < end_ns) {
        struct timespec pause = {.tv_nsec = (long)(ll_splitmix64(&seed) % 400000)};
        nanosleep(&pause, NULL);
        uint64_t random = ll_splitmix64(&seed), now_ns = ll_now_ns();
        uint32_t id = (uint32_t)(random % n_producers);
        for (uint32_t i = 0; i < n_producers; i++) {
            if (stopped_until_ns[i] != 0 && now_ns > stopped_until_ns[i]) {
                stopped_until_ns[i] = 0;
                if (producer_pid[i] > 0)
                    kill(producer_pid[i], SIGCONT);
            }
        }
        if (producer_pid[id] > 0 && random >> 32 & 1) { /* one in two: let the others run on */
            if ((random >> 40) % 6 == 0) {
                kill(producer_pid[id], SIGSTOP);
                stopped_until_ns[id] = now_ns + (random >> 44) % (3 * LL_NS_PER_MS);
                n_stops++;
            } else {
                kill(producer_pid[id], SIGKILL);
                stopped_until_ns[id] = 0;
                n_kills++;
            }
        }
        reap_and_respawn();
    }
    return end("random kills, 6 producers", seconds) && n_kills > 0 && n_stops > 0;
}

static uint64_t n_came(uint32_t id)
{
    return atomic_load_explicit(&shared->client[id].n_came, memory_order_relaxed);
}

static bool stop_all_but_one(double seconds)
{
    uint64_t seed = ll_test_seed() + 1, start_ns = ll_now_ns();
    bool is_good = true;

    n_kills = n_stops = 0;
    begin(PRODUCERS_MAX);
    while ((double)(ll_now_ns() - start_ns) < seconds * 1e9) {
        uint32_t survivor = (uint32_t)(ll_splitmix64(&seed) % n_producers);
        struct timespec pause = {.tv_nsec = (long)(ll_splitmix64(&seed) % 20000000)};

        nanosleep(&pause, NULL);
        for (uint32_t id = 0; id < n_producers; id++)
            if (id != survivor) {
                kill(producer_pid[id], SIGSTOP);
                n_stops++;
            }
        uint64_t before = n_came(survivor), since_ns = ll_now_ns();
        while (n_came(survivor) - before < 1000 && ll_now_ns() - since_ns < 20 * LL_NS_PER_S)
            usleep(200);
        if (n_came(survivor) - before < 1000) {
            printf("with 31 of 32 stopped, producer %u got %llu words through in 20 s\n", survivor,
                   (unsigned long long)(n_came(survivor) - before));
            is_good = false;
        }
        for (uint32_t id = 0; id < n_producers; id++)
            kill(producer_pid[id], SIGCONT);
    }
    return end("31 of 32 stopped", (double)(ll_now_ns() - start_ns) / 1e9) && is_good;
}

int main(int argc, char **argv)
{
    double seconds = ll_test_seconds(10);

    has_quarantine = !(argc > 1 && strcmp(argv[1], "--no-quarantine") == 0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    shared = mmap(NULL, sizeof(*shared) + (sizeof(uint64_t) << LOG2_WORDS), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    bool is_good = kill_at_random(seconds * 0.8);
    is_good &= stop_all_but_one(seconds * 0.2);
    return is_good ? 0 : 1;
}
