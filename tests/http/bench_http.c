/* SPDX-License-Identifier: Apache-2.0 */
/* tests/http/bench_http.c - what the proxy adds to the rings, and what it carries.
 *
 *     bench_http [--streams 1000] [--seconds 10] [--rounds 300] [--threads 2] [--json]
 *
 * Starts a runtime on the fake device, whose tokens are known and whose steps have a pace, and a
 * proxy before it. Both are asked for the same, over HTTP and by libllclient, in turn:
 *
 *   one stream   first token: from the call that sends a request of one token to its first byte (or
 *                output) in hand. Later tokens: from the runtime's writing of the token to its
 *                arrival. The proxy's client cannot see the runtime's clock, so a request of the
 *                bench's own runs beside the stream: both have their tokens in the same steps.
 *   many streams each with a token a step of 1/60 s. Every piece of text is compared with what the
 *                fake device must say at this place, so a lost, doubled, foreign or reordered token
 *                shows. The gap between two tokens of a stream is taken at this end of the socket.
 */
#include "tests/http/support_stream.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STEP_US     16667
#define ONE_STEP_US 2000
#define ONE_TOKENS  64
#define WARM_TOKENS 10 /* of each of many streams: while the others still begin */
#define SAMPLES_MAX 100000
#define STREAMS_MAX 4096

static struct options {
    uint32_t n_streams, n_seconds, n_rounds, n_threads;
    bool is_json;
} options = {.n_streams = 1000, .n_seconds = 10, .n_rounds = 300, .n_threads = 2};

struct load {
    struct ll_hist gap;
    uint64_t n_tokens, n_wrong, n_lost;
    double cpu_s, wall_s;
    uint64_t idle_kib, peak_kib, after_kib;
};

static struct ll_test_runtime runtime;
static struct test_proxy proxy;

void die(const char *what)
{
    fprintf(stderr, "bench_http: %s: %s\n", what, ll_error_text());
    test_proxy_stop(&proxy);
    ll_test_runtime_stop(&runtime);
    exit(1);
}

static void start(uint32_t step_us)
{
    char step[16], threads[16];
    const char *const runtime_arguments[] = {
        STREAM_RUNTIME, "--max-num-seqs", "4096", "--max-model-len", "8192", "--max-waiting",
        "4096",         "--log-level",    "warn", "--fake-step-us",  step,   NULL};
    const char *const proxy_arguments[] = {"--threads",         threads, "--slots", "1024",
                                           "--max-connections", "16384", NULL};

    snprintf(step, sizeof(step), "%u", step_us);
    snprintf(threads, sizeof(threads), "%u", options.n_threads);
    if (ll_test_runtime_start(&runtime, runtime_arguments) != 0)
        exit(1);
    if (test_proxy_start(&proxy, &runtime, proxy_arguments) != 0)
        die("no proxy");
}

static void stop(void)
{
    if (test_proxy_stop(&proxy) != 0 || ll_test_runtime_stop(&runtime) != 0)
        fprintf(stderr, "bench_http: a program did not end well\n");
}

static struct ll_client *attach(uint32_t n_slots)
{
    const struct ll_client_options wish = {
        .struct_bytes = sizeof(wish), .n_slots = n_slots, .socket = runtime.socket};
    struct ll_client *client;

    if (ll_client_open(&client, &wish) < 0)
        die("attach");
    return client;
}

/* ---- one stream -------------------------------------------------------------------------------*/

/* All of them: a histogram's buckets are 3 % wide, and the step is most of the time to a token. */
struct samples {
    uint64_t ns[SAMPLES_MAX];
    uint32_t n;
};

struct one {
    struct samples first[2], later[2]; /* 0 direct, 1 proxy */
};

static void add(struct samples *samples, uint64_t ns)
{
    if (samples->n < SAMPLES_MAX)
        samples->ns[samples->n++] = ns;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static double quantile_us(struct samples *samples, double q)
{
    qsort(samples->ns, samples->n, sizeof(samples->ns[0]), compare);
    return samples->n > 0 ? (double)samples->ns[(uint32_t)(q * (samples->n - 1))] / 1e3 : 0;
}

static int wait_outputs(struct ll_client *client, struct ll_output *out, int n_max)
{
    int n = ll_client_wait(client, out, n_max, 10 * (int64_t)LL_NS_PER_S);

    if (n <= 0)
        die("the runtime gives nothing");
    return n;
}

static void first_token(struct one *one, struct ll_client *client, struct stream *stream)
{
    struct ll_output out[4];

    for (uint32_t i = 0; i < options.n_rounds; i++) {
        stream_expect(stream, i + 1, 1);
        uint64_t start_ns = ll_now_ns();
        stream_submit(client, stream, i + 1);
        wait_outputs(client, out, 1);
        add(&one->first[0], ll_now_ns() - start_ns);
        while (ll_client_n_open(client) > 0)
            wait_outputs(client, out, 4);

        stream_expect(stream, i + 1, 1);
        start_ns = ll_now_ns();
        stream_post(stream, i + 1);
        while (stream_receive(stream, NULL, 0) == 0 && !stream->has_ended)
            ;
        add(&one->first[1], ll_now_ns() - start_ns);
        while (!stream->has_ended)
            stream_receive(stream, NULL, 0);
        if (stream->n_got != 1 || stream->n_wrong > 0)
            die("a wrong token");
    }
}

/* Tokens of the direct request, as they are written: they name the time of each step. */
struct steps {
    uint64_t t_ns[4 * ONE_TOKENS];
    uint32_t n;
};

static void take_steps(struct steps *steps, struct ll_client *client)
{
    struct ll_output out[64];
    int n = ll_client_poll(client, out, 64);

    for (int i = 0; i < n; i++)
        if (out[i].type == LL_OUTPUT_TOKEN && steps->n < LL_COUNT(steps->t_ns))
            steps->t_ns[steps->n++] = out[i].t_ns;
}

/* Since the last step before now. */
static uint64_t since_step(const struct steps *steps, uint64_t now_ns)
{
    uint64_t best = UINT64_MAX;

    for (uint32_t i = 0; i < steps->n; i++)
        if (steps->t_ns[i] <= now_ns)
            best = now_ns - steps->t_ns[i];
    return best;
}

static void later_tokens(struct one *one, struct ll_client *client, struct stream *stream)
{
    static struct stream beside;
    struct ll_output out[64];

    for (uint32_t i = 0; i < options.n_rounds / 30 + 1; i++) {
        struct steps steps = {.n = 0};
        stream_expect(&beside, 77, 4 * ONE_TOKENS - 1);
        stream_submit(client, &beside, 77);
        while (steps.n < 4) /* it runs: every later step has a token of it */
            take_steps(&steps, client);
        stream_expect(stream, i + 1, ONE_TOKENS);
        stream_post(stream, i + 1);
        while (!stream->has_ended) {
            uint32_t before = stream->n_got, n = stream_receive(stream, NULL, 0);
            uint64_t now_ns = ll_now_ns();
            take_steps(&steps, client);
            if (n > 0 && before > 0 && before + n < ONE_TOKENS)
                add(&one->later[1], since_step(&steps, now_ns));
        }
        if (stream->n_got != ONE_TOKENS || stream->n_wrong > 0)
            die("a wrong token");
        ll_client_cancel(client, beside.id);
        while (ll_client_n_open(client) > 0)
            wait_outputs(client, out, 64);
        stream_expect(&beside, 78, ONE_TOKENS);
        stream_submit(client, &beside, 78);
        while (ll_client_n_open(client) > 0) {
            int n = wait_outputs(client, out, 1);
            uint64_t now_ns = ll_now_ns();
            if (n == 1 && out[0].type == LL_OUTPUT_TOKEN && out[0].index > 0)
                add(&one->later[0], now_ns - out[0].t_ns);
        }
    }
    free(beside.wanted);
}

static void run_one(struct one *one)
{
    struct stream stream = {.buffer = malloc(STREAM_BYTES)};

    start(ONE_STEP_US);
    struct ll_client *client = attach(16);
    stream.fd = test_proxy_connect(&proxy);
    if (stream.fd < 0 || stream.buffer == NULL)
        die("connection");
    first_token(one, client, &stream);
    later_tokens(one, client, &stream);
    close(stream.fd);
    free(stream.buffer);
    free(stream.wanted);
    ll_client_close(client);
    stop();
}

/* ---- many streams -----------------------------------------------------------------------------*/

static void sum_up(struct load *load, const struct stream *streams)
{
    for (uint32_t i = 0; i < options.n_streams; i++) {
        load->n_tokens += streams[i].n_got;
        load->n_wrong += streams[i].n_wrong;
        load->n_lost += streams[i].n_wanted - ll_min_u64(streams[i].n_wanted, streams[i].n_got);
    }
}

static void many_http(struct load *load, struct stream *streams, uint32_t n_tokens)
{
    struct epoll_event events[256], event = {.events = EPOLLIN};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    uint32_t n_open = options.n_streams;

    load->idle_kib = test_memory_kib(proxy.pid, "VmRSS");
    for (uint32_t i = 0; i < options.n_streams; i++) {
        stream_expect(&streams[i], i + 1, n_tokens);
        streams[i].fd = test_proxy_connect(&proxy);
        event.data.ptr = &streams[i];
        if (streams[i].fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, streams[i].fd, &event) < 0)
            die("connection");
    }
    double cpu_s = test_cpu_seconds(proxy.pid);
    uint64_t start_ns = ll_now_ns();
    for (uint32_t i = 0; i < options.n_streams; i++)
        stream_post(&streams[i], i + 1);
    while (n_open > 0) {
        int n = epoll_wait(epoll, events, LL_COUNT(events), 10000);
        if (n <= 0)
            die("nothing came for 10 s");
        for (int i = 0; i < n; i++) {
            struct stream *stream = events[i].data.ptr;
            stream_receive(stream, &load->gap, MSG_DONTWAIT);
            if (!stream->has_ended)
                continue;
            epoll_ctl(epoll, EPOLL_CTL_DEL, stream->fd, NULL);
            n_open--;
        }
    }
    load->wall_s = (double)(ll_now_ns() - start_ns) / 1e9;
    load->cpu_s = test_cpu_seconds(proxy.pid) - cpu_s;
    load->peak_kib = test_memory_kib(proxy.pid, "VmHWM");
    for (uint32_t i = 0; i < options.n_streams; i++)
        close(streams[i].fd);
    usleep(100000);
    load->after_kib = test_memory_kib(proxy.pid, "VmRSS");
    close(epoll);
    sum_up(load, streams);
}

static double thread_cpu_s(void)
{
    struct timespec used;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

static void many_direct(struct load *load, struct stream *streams, uint32_t n_tokens)
{
    struct ll_client *client[STREAMS_MAX / 1024 + 1];
    struct ll_output out[256];
    uint32_t n_clients = (options.n_streams + 1023) / 1024, n_open = options.n_streams;

    for (uint32_t i = 0; i < n_clients; i++)
        client[i] = attach(1024);
    for (uint32_t i = 0; i < options.n_streams; i++)
        stream_expect(&streams[i], i + 1, n_tokens);
    double cpu_s = thread_cpu_s();
    uint64_t start_ns = ll_now_ns();
    for (uint32_t i = 0; i < options.n_streams; i++)
        stream_submit(client[i / 1024], &streams[i], i + 1);
    while (n_open > 0) {
        for (uint32_t i = 0; i < n_clients; i++) {
            int n = n_clients == 1 ? wait_outputs(client[0], out, LL_COUNT(out))
                                   : ll_client_wait(client[i], out, LL_COUNT(out), 1000000);
            uint64_t now_ns = ll_now_ns();
            for (int k = 0; k < n; k++) {
                struct stream *stream = (struct stream *)(uintptr_t)out[k].tag;
                if (out[k].type == LL_OUTPUT_TOKEN)
                    stream_take(stream, &load->gap, out[k].u.token.id, now_ns);
                else
                    n_open--;
            }
        }
    }
    load->wall_s = (double)(ll_now_ns() - start_ns) / 1e9;
    load->cpu_s = thread_cpu_s() - cpu_s;
    for (uint32_t i = 0; i < n_clients; i++)
        ll_client_close(client[i]);
    sum_up(load, streams);
}

static void run_many(struct load load[2])
{
    uint32_t n_tokens = (uint32_t)((uint64_t)options.n_seconds * 1000000 / STEP_US);
    struct stream *streams = calloc(options.n_streams, sizeof(*streams));
    char *buffers = malloc((size_t)options.n_streams * STREAM_BYTES);

    if (streams == NULL || buffers == NULL)
        die("memory");
    for (uint32_t i = 0; i < options.n_streams; i++) {
        streams[i].buffer = buffers + (size_t)i * STREAM_BYTES;
        streams[i].n_warm = WARM_TOKENS;
    }
    start(STEP_US);
    many_direct(&load[0], streams, n_tokens);
    many_http(&load[1], streams, n_tokens);
    stop();
    for (uint32_t i = 0; i < options.n_streams; i++)
        free(streams[i].wanted);
    free(streams);
    free(buffers);
}

/* ---- the table --------------------------------------------------------------------------------*/

static double us(const struct ll_hist *hist, double q)
{
    return (double)ll_hist_quantile(hist, q) / 1e3;
}

static void print_latency(const char *name, struct samples samples[2])
{
    for (int i = 0; i < 3; i++) {
        double q = i == 0   ? 0.5
                   : i == 1 ? 0.9
                            : 0.99,
               direct = quantile_us(&samples[0], q), http = quantile_us(&samples[1], q);
        if (options.is_json)
            printf("  \"%s_p%d_us\": {\"direct\": %.1f, \"proxy\": %.1f, \"added\": %.1f},\n", name,
                   (int)(q * 100 + .5), direct, http, http - direct);
        else
            printf("%-22s p%-2d %12.1f %12.1f %12.1f us\n", name, (int)(q * 100 + .5), direct, http,
                   http - direct);
    }
}

static void print_load(const struct load load[2])
{
    const struct {
        const char *name;
        double direct, http;
    } rows[] = {
        {"tokens_per_s", (double)load[0].n_tokens / load[0].wall_s,
         (double)load[1].n_tokens / load[1].wall_s},
        {"tokens_wrong", (double)load[0].n_wrong, (double)load[1].n_wrong},
        {"tokens_lost", (double)load[0].n_lost, (double)load[1].n_lost},
        {"gap_p50_steps", us(&load[0].gap, .5) / STEP_US, us(&load[1].gap, .5) / STEP_US},
        {"gap_p99_steps", us(&load[0].gap, .99) / STEP_US, us(&load[1].gap, .99) / STEP_US},
        {"gap_p999_steps", us(&load[0].gap, .999) / STEP_US, us(&load[1].gap, .999) / STEP_US},
        {"cpu_s_per_mtoken", load[0].cpu_s * 1e6 / (double)load[0].n_tokens,
         load[1].cpu_s * 1e6 / (double)load[1].n_tokens},
        {"cores", load[0].cpu_s / load[0].wall_s, load[1].cpu_s / load[1].wall_s},
    };

    for (size_t i = 0; i < LL_COUNT(rows); i++)
        if (options.is_json)
            printf("  \"%s\": {\"direct\": %.3f, \"proxy\": %.3f},\n", rows[i].name, rows[i].direct,
                   rows[i].http);
        else
            printf("%-26s %12.3f %12.3f\n", rows[i].name, rows[i].direct, rows[i].http);
    if (options.is_json)
        printf("  \"proxy_rss_mib\": {\"idle\": %.1f, \"peak\": %.1f, \"after\": %.1f}\n}\n",
               (double)load[1].idle_kib / 1024, (double)load[1].peak_kib / 1024,
               (double)load[1].after_kib / 1024);
    else
        printf("proxy's memory: %.1f MiB idle, %.1f at most, %.1f after\n",
               (double)load[1].idle_kib / 1024, (double)load[1].peak_kib / 1024,
               (double)load[1].after_kib / 1024);
}

static void read_options(int argc, char **argv)
{
    const struct {
        const char *name;
        uint32_t *value, max;
    } numbers[] = {{"--streams", &options.n_streams, STREAMS_MAX},
                   {"--seconds", &options.n_seconds, 120},
                   {"--rounds", &options.n_rounds, 100000},
                   {"--threads", &options.n_threads, 16}};

    for (int i = 1; i < argc; i++) {
        bool is_known = strcmp(argv[i], "--json") == 0;
        options.is_json |= is_known;
        for (size_t k = 0; k < LL_COUNT(numbers) && !is_known; k++)
            if (strcmp(argv[i], numbers[k].name) == 0 && i + 1 < argc) {
                long value = atol(argv[++i]);
                is_known = value >= 1 && value <= (long)numbers[k].max;
                *numbers[k].value = (uint32_t)value;
            }
        if (!is_known) {
            fprintf(stderr,
                    "usage: bench_http [--streams 1..%d] [--seconds 1..120] [--rounds N] "
                    "[--threads 1..16] [--json]\n",
                    STREAMS_MAX);
            exit(2);
        }
    }
}

int main(int argc, char **argv)
{
    static struct one one;
    static struct load load[2];

    read_options(argc, argv);
    stream_begin();
    run_one(&one);
    run_many(load);
    if (options.is_json)
        printf("{\n");
    else
        printf("%-26s %12s %12s %12s\n", "one stream", "direct", "proxy", "added");
    print_latency("first_token", one.first);
    print_latency("later_token", one.later);
    if (!options.is_json)
        printf("%u streams, a step of %d us for %u s\n", options.n_streams, STEP_US,
               options.n_seconds);
    print_load(load);
    return load[1].n_wrong + load[1].n_lost + load[0].n_wrong + load[0].n_lost > 0;
}
