/* SPDX-License-Identifier: Apache-2.0 */
/* tests/shm/bench_ring.c - what a request and an event cost, next to what else one could do.
 *
 *   bench_ring [--json] [--seconds S]     S per measurement, default 1; about 14 of them
 *
 * Client and runtime are processes pinned to the first and the last processor we may use; both
 * poll. One-way times are differences of the processors' common time stamp counter, whose own
 * cost is printed. "Submit" begins before the 256 bytes are written and ends when the doorbell is
 * popped; "event" begins before its 64 bytes are written and ends when they have been copied out;
 * the round trip holds both and the copy and check of the request. */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/clock.h"
#include "shm/bell.h"
#include "shm/events.h"
#include "shm/wait.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define N_SAMPLES_MAX 2000000u
#define N_PRODUCERS   4u
#define N_SLOTS       64u
#define LOG2_WORDS    9u
#define LOG2_EVENTS   14u
#define N_BODY        30u
#define N_RINGS_MAX   256u

struct body { /* 256 bytes */
    uint64_t tick;
    uint64_t word[N_BODY];
    uint64_t sum;
};

struct producer {
    struct body slot[N_SLOTS];
    _Atomic uint32_t gen_taken[N_SLOTS] __attribute__((aligned(128)));
} __attribute__((aligned(4096)));

static struct shared {
    _Atomic uint64_t ping __attribute__((aligned(128)));
    _Atomic uint64_t pong __attribute__((aligned(128)));
    _Atomic uint32_t should_stop __attribute__((aligned(128)));
    _Atomic uint64_t n_bad, n_done;
    struct ll_req_hot hot __attribute__((aligned(128)));
    struct producer producer[N_PRODUCERS];
    struct ll_event event[1u << LOG2_EVENTS] __attribute__((aligned(4096)));
    char bell[sizeof(struct ll_bell_head) + (8 << LOG2_WORDS)] __attribute__((aligned(4096)));
    struct ll_info_region info;
} * shared;

static double ns_per_tick, seconds = 1;
static int cpu_client, cpu_runtime;
static bool is_json, is_first = true;

static uint64_t tick(void)
{
#if defined(__x86_64__)
    unsigned aux;
    return __builtin_ia32_rdtscp(&aux);
#else
    return ll_now_ns();
#endif
}

static void calibrate(void)
{
    uint64_t ns = ll_now_ns(), ticks = tick();

    usleep(50000);
    ns_per_tick = (double)(ll_now_ns() - ns) / (double)(tick() - ticks);
}

static void pin(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof(set), &set);
}

/* ---- results */

struct samples {
    uint32_t *tick;
    uint32_t n;
};

static struct samples samples[3];

static void add(struct samples *s, uint64_t ticks)
{
    if (s->n < N_SAMPLES_MAX)
        s->tick[s->n++] = (uint32_t)ll_min_u64(ticks, UINT32_MAX);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static double quantile(const struct samples *s, double q)
{
    return s->n == 0 ? 0 : s->tick[(uint32_t)(q * (s->n - 1))] * ns_per_tick;
}

static void report(const char *key, const char *what, struct samples *s)
{
    qsort(s->tick, s->n, sizeof(*s->tick), by_value);
    if (is_json)
        printf("%s\n  \"%s\": {\"p50_ns\": %.0f, \"p99_ns\": %.0f, \"p999_ns\": %.0f, \"n\": %u}",
               is_first ? "" : ",", key, quantile(s, 0.5), quantile(s, 0.99), quantile(s, 0.999),
               s->n);
    else
        printf("%-46s %9.0f %9.0f %9.0f ns   %u\n", what, quantile(s, 0.5), quantile(s, 0.99),
               quantile(s, 0.999), s->n);
    is_first = false;
    s->n = 0;
}

static void report_value(const char *key, const char *what, double value, const char *unit)
{
    if (is_json)
        printf("%s\n  \"%s\": %.3f", is_first ? "" : ",", key, value);
    else
        printf("%-46s %9.2f %s\n", what, value, unit);
    is_first = false;
}

/* ---- two processes */

static pid_t start(void (*function)(int), int argument, int cpu)
{
    pid_t parent = getpid(), pid = fork();

    if (pid < 0) {
        perror("fork");
        exit(1);
    }
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    if (cpu >= 0)
        pin(cpu);
    function(argument);
    _exit(0);
}

static void stop(pid_t pid)
{
    atomic_store(&shared->should_stop, 1);
    waitpid(pid, NULL, 0);
    atomic_store(&shared->should_stop, 0);
}

static bool should_stop(void)
{
    return atomic_load_explicit(&shared->should_stop, memory_order_relaxed) != 0;
}

static bool is_over(uint64_t start_ns)
{
    return (double)(ll_now_ns() - start_ns) > seconds * 1e9;
}

/* The same without a look at the other clock. */
static bool is_over_at(uint64_t now_tick, uint64_t start_tick)
{
    return (double)(now_tick - start_tick) * ns_per_tick > seconds * 1e9;
}

static void fill(struct body *body, uint64_t number)
{
    uint64_t sum = number;

    for (uint32_t i = 0; i < N_BODY; i++)
        sum += body->word[i] = number * 31 + i;
    body->sum = sum;
}

static bool check(const struct body *copy)
{
    uint64_t sum = (copy->word[0]) / 31;

    for (uint32_t i = 0; i < N_BODY; i++)
        sum += copy->word[i];
    return copy->sum == sum;
}

/* ---- a flag each way: the floor */

static void answer_flag(int unused)
{
    (void)unused;
    for (uint64_t n = 1; !should_stop(); n++) {
        while (atomic_load_explicit(&shared->ping, memory_order_acquire) != n)
            if (should_stop())
                return;
        atomic_store_explicit(&shared->pong, n, memory_order_release);
    }
}

static void measure_flag(void)
{
    pid_t pid = start(answer_flag, 0, cpu_runtime);
    uint64_t start_tick = tick(), t0 = start_tick;

    for (uint64_t n = 1; !is_over_at(t0, start_tick); n++) {
        t0 = tick();
        atomic_store_explicit(&shared->ping, n, memory_order_release);
        while (atomic_load_explicit(&shared->pong, memory_order_acquire) != n)
            continue;
        add(&samples[0], tick() - t0);
    }
    stop(pid);
    report("flag_round_trip", "raw flag, round trip", &samples[0]);
}

/* ---- the ring */

static struct ll_bell bell;
static struct ll_bell_reader bell_reader;
static struct ll_event_writer writer;
static struct ll_event_reader reader;

static void make_rings(void)
{
    memset((void *)shared->event, 0, sizeof(shared->event));
    memset((void *)&shared->hot, 0, sizeof(shared->hot));
    ll_bell_init(&bell, shared->bell, LOG2_WORDS, 0);
    ll_bell_reader_init(&bell_reader, &bell);
    ll_event_writer_init(&writer, shared->event, LOG2_EVENTS, &shared->hot.cons_pos, 0);
    ll_event_reader_init(&reader, shared->event, LOG2_EVENTS, &shared->hot.cons_pos, 0);
}

static void answer_ring(int has_clock)
{
    uint32_t word;

    while (!should_stop()) {
        if (ll_bell_pop(&bell_reader, &word) != 1)
            continue;
        uint64_t seen = has_clock ? tick() : 0;
        struct body copy = shared->producer[0].slot[ll_word_slot(word)];
        struct ll_event event = {.type = LL_EV_TOKEN, .u.finish.total_ns = seen};
        event.u.finish.n_out = check(&copy);
        if (ll_event_writer_room(&writer, 1) <= 0)
            continue;
        event.t_ns = has_clock ? tick() : 0;
        ll_event_write(&writer, &event);
        ll_wait_fence();
        ll_wait_claim(&shared->hot);
    }
}

/* Once with clock readings in the runtime, for the parts; once without, for the whole. */
static void exchange(bool has_clock)
{
    struct ll_event event;

    make_rings();
    pid_t pid = start(answer_ring, has_clock, cpu_runtime);
    uint64_t start_tick = tick(), t0 = start_tick;
    for (uint64_t n = 1; !is_over_at(t0, start_tick); n++) {
        uint32_t at = (uint32_t)(n % N_SLOTS);
        t0 = tick();
        fill(&shared->producer[0].slot[at], n);
        ll_bell_push(&bell, ll_word_pack(LL_OP_SUBMIT, 0, 0, at));
        ll_wait_kick(&shared->info, -1);
        while (!ll_event_read(&reader, &event))
            continue;
        uint64_t t3 = tick();
        if (event.u.finish.n_out != 1)
            atomic_fetch_add(&shared->n_bad, 1);
        if (has_clock) {
            add(&samples[0], event.u.finish.total_ns - t0);
            add(&samples[1], t3 - event.t_ns);
        } else {
            add(&samples[2], t3 - t0);
        }
    }
    stop(pid);
}

static void measure_ring(void)
{
    exchange(true);
    report("submit_to_seen", "submit 256 B -> seen", &samples[0]);
    report("event_to_seen", "event 64 B -> seen", &samples[1]);
    exchange(false);
    report("round_trip", "round trip, 256 B copied and checked", &samples[2]);
}

/* ---- sockets, blocking */

static int server_fd;

static void answer_socket(int unused)
{
    (void)unused;
    struct body body;
    char reply[64] = {0};

    while (recv(server_fd, &body, sizeof(body), MSG_WAITALL) == sizeof(body)) {
        reply[0] = check(&body);
        if (send(server_fd, reply, sizeof(reply), MSG_NOSIGNAL) < 0)
            return;
    }
}

static void measure_socket(const char *key, const char *what, int client_fd)
{
    uint64_t start_ns = ll_now_ns();
    struct body body;
    char reply[64];
    pid_t pid = start(answer_socket, 0, cpu_runtime);

    close(server_fd);
    for (uint64_t n = 1; !is_over(start_ns); n++) {
        uint64_t t0 = tick();
        fill(&body, n);
        if (send(client_fd, &body, sizeof(body), MSG_NOSIGNAL) != sizeof(body) ||
            recv(client_fd, reply, sizeof(reply), MSG_WAITALL) != sizeof(reply) || reply[0] != 1) {
            atomic_fetch_add(&shared->n_bad, 1);
            break;
        }
        add(&samples[0], tick() - t0);
    }
    shutdown(client_fd, SHUT_RDWR); /* the child has this end, too */
    close(client_fd);
    stop(pid);
    report(key, what, &samples[0]);
}

static void measure_sockets(void)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0) {
        server_fd = pair[1];
        measure_socket("unix_round_trip", "Unix SEQPACKET, round trip", pair[0]);
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    int client_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0 &&
        listen(listener, 1) == 0 &&
        getsockname(listener, (struct sockaddr *)&address, &length) == 0 &&
        connect(client_fd, (struct sockaddr *)&address, length) == 0) {
        server_fd = accept(listener, NULL, NULL);
        setsockopt(client_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        setsockopt(server_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        measure_socket("tcp_round_trip", "TCP loopback, NODELAY, round trip", client_fd);
    }
    close(listener);
}

/* ---- many producers, one consumer */

static void produce(int id)
{
    struct producer *me = &shared->producer[id];
    uint32_t gen[N_SLOTS] = {0};

    for (uint64_t n = 1, full = 0; !should_stop(); n++) {
        uint32_t at = (uint32_t)(n % N_SLOTS);
        /* Acquire, pairs with the consumer's release: it has copied the last body. */
        while (atomic_load_explicit(&me->gen_taken[at], memory_order_acquire) != gen[at]) {
            if (should_stop())
                return;
            if (++full % 64 == 0)
                sched_yield(); /* more processes than processors */
        }
        gen[at]++;
        fill(&me->slot[at], n);
        if (!ll_bell_push(&bell, ll_word_pack(LL_OP_SUBMIT, (uint32_t)id, 0, at)))
            atomic_fetch_add(&shared->n_bad, 1);
    }
}

static void measure_throughput(void)
{
    pid_t pid[N_PRODUCERS];
    uint64_t n = 0, n_bad = 0, idle = 0;
    uint32_t word;

    make_rings();
    memset((void *)shared->producer, 0, sizeof(shared->producer));
    for (uint32_t i = 0; i < N_PRODUCERS; i++)
        pid[i] = start(produce, (int)i, -1);
    uint64_t start_ns = ll_now_ns();
    while (n % 1024 != 0 || !is_over(start_ns)) {
        if (ll_bell_pop(&bell_reader, &word) != 1) {
            if (++idle % 64 == 0) {
                sched_yield();
                if (is_over(start_ns))
                    break;
            }
            continue;
        }
        struct producer *from = &shared->producer[ll_word_client(word) % N_PRODUCERS];
        uint32_t at = ll_word_slot(word) % N_SLOTS;
        struct body copy = from->slot[at];
        n_bad += !check(&copy);
        atomic_store_explicit(&from->gen_taken[at],
                              atomic_load_explicit(&from->gen_taken[at], memory_order_relaxed) + 1,
                              memory_order_release);
        n++;
    }
    double took = (double)(ll_now_ns() - start_ns) / 1e9;
    for (uint32_t i = 0; i < N_PRODUCERS; i++)
        kill(pid[i], SIGKILL);
    for (uint32_t i = 0; i < N_PRODUCERS; i++)
        waitpid(pid[i], NULL, 0);
    atomic_fetch_add(&shared->n_bad, n_bad);
    report_value("requests_per_second_m", "requests, 4 producers, 256 B copied and checked",
                 (double)n / took / 1e6, "M/s");
}

/* ---- polling */

static void measure_polls(void)
{
    static const uint32_t counts[] = {1, 64, 256};
    static struct ll_bell_reader ring[N_RINGS_MAX];
    /* As the runtime lays them out: a region each, the hot lines staggered by client id. */
    const size_t stride = 16384;
    char *memory =
        mmap(NULL, N_RINGS_MAX * stride, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct ll_req_hot *hot[N_RINGS_MAX];

    if (memory == MAP_FAILED)
        return;
    for (uint32_t i = 0; i < N_RINGS_MAX; i++) {
        struct ll_bell one;
        char *region = memory + i * stride;
        hot[i] = (struct ll_req_hot *)(region + (i % 32) * 64);
        ll_bell_init(&one, region + 4096 + (i % 32) * 64, 6, 0);
        ll_bell_reader_init(&ring[i], &one);
    }
    for (size_t k = 0; k < LL_COUNT(counts); k++) {
        char key[64], what[64];
        uint32_t word, n_found = 0;
        uint64_t start_ns = ll_now_ns();
        while ((double)(ll_now_ns() - start_ns) < seconds * 0.2e9) {
            uint64_t t0 = tick();
            for (uint32_t i = 0; i < counts[k]; i++)
                n_found += ll_bell_pop(&ring[i], &word) != 0;
            add(&samples[0], tick() - t0);
            t0 = tick();
            for (uint32_t i = 0; i < counts[k]; i++)
                n_found += atomic_load_explicit(&hot[i]->n_submitted, memory_order_acquire) != 0;
            add(&samples[1], tick() - t0);
            t0 = tick();
            ll_wait_fence();
            for (uint32_t i = 0; i < counts[k]; i++)
                n_found += ll_wait_claim(hot[i]);
            add(&samples[2], tick() - t0);
        }
        atomic_fetch_add(&shared->n_bad, n_found);
        snprintf(key, sizeof(key), "poll_%u", counts[k]);
        snprintf(what, sizeof(what), "one poll of %u rings", counts[k]);
        report(key, what, &samples[0]);
        snprintf(key, sizeof(key), "sweep_%u", counts[k]);
        snprintf(what, sizeof(what), "one look at n_submitted of %u clients", counts[k]);
        report(key, what, &samples[1]);
        snprintf(key, sizeof(key), "claim_%u", counts[k]);
        snprintf(what, sizeof(what), "fence, and who of %u clients sleeps", counts[k]);
        report(key, what, &samples[2]);
    }
    munmap(memory, N_RINGS_MAX * stride);
}

/* ---- events in a stream */

/* n_relax: how long it looks away when there is nothing. */
static void drain_events(int n_relax)
{
    struct ll_event event;
    uint64_t n = 0;

    while (!should_stop()) {
        while (ll_event_read(&reader, &event))
            if (event.t_ns != n++)
                atomic_fetch_add(&shared->n_bad, 1);
        for (int i = 0; i < n_relax; i++)
            ll_cpu_relax();
    }
}

static void stream_events(const char *key, const char *what, int n_relax)
{
    struct ll_event event = {.type = LL_EV_TOKEN};
    uint64_t n = 0;

    make_rings();
    pid_t pid = start(drain_events, n_relax, cpu_runtime);
    uint64_t start_ns = ll_now_ns();
    while (n % 65536 != 0 || !is_over(start_ns)) {
        if (ll_event_writer_room(&writer, 1) <= 0) {
            if (is_over(start_ns))
                break;
            continue;
        }
        event.t_ns = n++;
        ll_event_write(&writer, &event);
    }
    double ns = (double)(ll_now_ns() - start_ns);
    stop(pid);
    report_value(key, what, ns / (double)n, "ns");
}

static void measure_events(void)
{
    struct ll_event event = {.type = LL_EV_TOKEN}, out;
    uint64_t n = 0, start_ns;
    double write_ns = 0;

    stream_events("event_stream_spinning_ns", "an event streamed, reader at the writer's heels", 0);
    stream_events("event_stream_ns", "an event streamed, reader looks each 4 us", 100);

    /* The runtime's own share: one process, a step's 256 events, one fence. */
    make_rings();
    for (start_ns = ll_now_ns(); !is_over(start_ns); n += 256) {
        uint64_t t0 = tick();
        for (uint32_t i = 0; i < 256; i++)
            if (ll_event_writer_room(&writer, 1) > 0)
                ll_event_write(&writer, &event);
        ll_wait_fence();
        write_ns += (double)(tick() - t0) * ns_per_tick;
        while (ll_event_read(&reader, &out))
            continue;
        ll_event_publish(&reader);
    }
    report_value("event_write_ns", "an event written, 256 a step, with the fence",
                 write_ns / (double)n, "ns");
}

int main(int argc, char **argv)
{
    cpu_set_t set;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            is_json = true;
        } else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc && atof(argv[i + 1]) > 0) {
            seconds = atof(argv[++i]);
        } else {
            fprintf(stderr, "usage: bench_ring [--json] [--seconds S]\n");
            return 2;
        }
    }
    if (sched_getaffinity(0, sizeof(set), &set) != 0 || CPU_COUNT(&set) < 2) {
        fprintf(stderr, "bench_ring needs two processors: both sides poll\n");
        return LL_SKIPPED;
    }
    cpu_client = -1;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &set))
            continue;
        if (cpu_client < 0)
            cpu_client = cpu;
        cpu_runtime = cpu;
    }
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (shared == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    for (int i = 0; i < 3; i++)
        if ((samples[i].tick = malloc(N_SAMPLES_MAX * sizeof(uint32_t))) == NULL)
            return 1;
    setvbuf(stdout, NULL, _IOFBF, 1 << 16); /* children never flush it: they _exit */
    calibrate();
    pin(cpu_client);
    if (is_json)
        printf("{\"bench\": \"ring\", \"cpu_client\": %d, \"cpu_runtime\": %d,", cpu_client,
               cpu_runtime);
    else
        printf("client on processor %d, runtime on %d%22s %9s %9s %9s      n\n", cpu_client,
               cpu_runtime, "", "p50", "p99", "p99.9");
    for (uint32_t i = 0; i < 100000; i++) {
        uint64_t t0 = tick();
        add(&samples[0], tick() - t0);
    }
    report("clock", "(reading the clock, inside each figure)", &samples[0]);
    measure_flag();
    measure_ring();
    measure_sockets();
    measure_throughput();
    measure_polls();
    measure_events();
    if (is_json)
        printf(",\n  \"bad\": %llu\n}\n", (unsigned long long)shared->n_bad);
    else if (shared->n_bad != 0)
        printf("%llu answers were wrong\n", (unsigned long long)shared->n_bad);
    return shared->n_bad == 0 ? 0 : 1;
}
