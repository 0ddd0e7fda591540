/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/trace.c - plays a workload and prints what its users would have seen (trace.h).
 *
 *   trace FILE                        a workload file
 *   trace --mix mixed --load 0.8      128 to 8K-token prompts at 80 % of what the device can do
 *   trace --mix mixed --load 10       ten times as much
 *   trace --mix fair                  one tenant of eight offers 100 times what the others do
 *   trace --mix shared                a system prompt of 2,048 tokens before each question
 *   --write prints the workload instead of playing it; --seconds, --seed, and the limits as
 *   llringd has them: --max-num-seqs, --max-num-batched-tokens, --max-itl-ms,
 *   --no-prefix-caching
 *
 * What the device can do is measured first: the same mix, far too much of it. Exit status 1: a
 * request was accepted and then dropped. */
#include "tests/sim/trace.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* More than any mix can be served: requests a second, for the calibration. */
#define FLOOD_S           400.0
#define CALIBRATE_SECONDS 40.0

struct options {
    const char *file, *mix;
    double load, seconds;
    uint64_t seed;
    bool writes;
    struct trace_setup setup;
};

static _Noreturn void usage(const char *what)
{
    fprintf(stderr,
            "%s%susage: trace FILE | --mix mixed|shared|fair [--load X] [--seconds N] [--seed N] "
            "[--write]\n  [--max-num-seqs N] [--max-num-batched-tokens N] [--max-itl-ms N] "
            "[--no-prefix-caching]\n",
            what, what[0] ? "\n" : "");
    exit(2);
}

static double number(int argc, char **argv, int i)
{
    char *end;

    if (i >= argc)
        usage("trace: the last option wants a number");
    errno = 0;
    double value = strtod(argv[i], &end);
    if (errno != 0 || *end != 0 || end == argv[i] || !(value > 0 && value < 1e9))
        usage("trace: an option wants a number above 0");
    return value;
}

static struct options parse(int argc, char **argv)
{
    struct options o = {
        .load = 0.8,
        .seconds = 60,
        .seed = 1,
        /* 1.96 M tokens of FP8 KV fit beside the weights. */
        .setup = {.n_rows_max = 256,
                  .n_tokens_max = 2048,
                  .n_pages = 30000,
                  .context_max = 16384,
                  .n_waiting_max = 1024,
                  .has_prefix_cache = true},
    };

    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--mix") == 0 && i + 1 < argc)
            o.mix = argv[++i];
        else if (strcmp(a, "--load") == 0)
            o.load = number(argc, argv, ++i);
        else if (strcmp(a, "--seconds") == 0)
            o.seconds = number(argc, argv, ++i);
        else if (strcmp(a, "--seed") == 0)
            o.seed = (uint64_t)number(argc, argv, ++i);
        else if (strcmp(a, "--max-num-seqs") == 0)
            o.setup.n_rows_max = (uint32_t)number(argc, argv, ++i);
        else if (strcmp(a, "--max-num-batched-tokens") == 0)
            o.setup.n_tokens_max = (uint32_t)number(argc, argv, ++i);
        else if (strcmp(a, "--max-itl-ms") == 0)
            o.setup.max_itl_ns = (uint64_t)(number(argc, argv, ++i) * 1e6);
        else if (strcmp(a, "--no-prefix-caching") == 0)
            o.setup.has_prefix_cache = false;
        else if (strcmp(a, "--write") == 0)
            o.writes = true;
        else if (a[0] != '-' && o.file == NULL)
            o.file = a;
        else
            usage(a);
    }
    if ((o.file == NULL) == (o.mix == NULL) || (o.mix != NULL && !trace_is_mix(o.mix)))
        usage("");
    return o;
}

/* ---- figures ----------------------------------------------------------------------------------*/

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static double ms_at(const uint64_t *sorted, size_t n, double q)
{
    size_t at = (size_t)(q * (double)n);

    return n == 0 ? 0 : (double)sorted[at < n ? at : n - 1] * 1e-6;
}

static void print_class(const struct trace_load *load, struct trace_result *result, uint32_t id)
{
    struct trace_gaps *gaps = &result->gaps[id];
    uint64_t *ttft = calloc(load->n + 1, sizeof(*ttft));
    uint32_t n = 0, n_ended = 0;

    if (ttft == NULL)
        abort();
    for (uint32_t i = 0; i < load->n; i++) {
        const struct trace_request *r = &load->request[i];
        if (r->class_id != id)
            continue;
        n_ended += r->has_ended && r->code == 0;
        if (r->n_got > 0)
            ttft[n++] = r->first_ns - r->arrival_ns;
    }
    qsort(ttft, n, sizeof(*ttft), compare);
    qsort(gaps->ns, gaps->n, sizeof(*gaps->ns), compare);
    double p50 = ms_at(gaps->ns, gaps->n, 0.5), p99 = ms_at(gaps->ns, gaps->n, 0.99);
    printf("%-8s %8u %8.1f %8.1f %8.1f  %9zu %7.2f %7.2f %7.2f %7.2f %6.2f\n", load->class_name[id],
           n_ended, ms_at(ttft, n, 0.5), ms_at(ttft, n, 0.99), ms_at(ttft, n, 1.0), gaps->n, p50,
           ms_at(gaps->ns, gaps->n, 0.9), p99, ms_at(gaps->ns, gaps->n, 1.0),
           p50 > 0 ? p99 / p50 : 0);
    free(ttft);
}

/* (sum x)^2 / (n sum x^2): 1 where all got the same. */
static double jain(const struct trace_result *result, uint32_t n)
{
    double sum = 0, squares = 0;

    for (uint32_t i = 0; i < n; i++) {
        double x = (double)result->tokens_by[i];
        sum += x;
        squares += x * x;
    }
    return squares > 0 ? sum * sum / (n * squares) : 0;
}

/* How many were accepted and then dropped. */
static uint32_t print_totals(const struct trace_load *load, const struct trace_result *result)
{
    uint64_t n_tokens = 0, n_prompt = 0, n_cached = 0, n_shared = 0, n_busy = 0;
    uint32_t n_expired = 0, n_dropped = 0, n_refused = 0, n_open = 0;

    for (uint32_t i = 0; i < load->n; i++) {
        const struct trace_request *r = &load->request[i];
        n_busy += r->n_busy;
        n_open += !r->has_ended;
        if (!r->has_ended)
            continue;
        if (r->code == LL_E_DEADLINE)
            n_expired++;
        else if (r->code == LL_E_BUSY)
            n_refused++;
        else if (r->code != 0)
            n_dropped++;
        else {
            n_prompt += r->n_prompt;
            n_shared += r->n_shared;
            n_cached += r->n_cached;
        }
    }
    for (uint32_t i = 0; i < load->n_tenants; i++)
        n_tokens += result->tokens_by[i];
    double window_s = (double)load->end_ns * 1e-9;
    printf("goodput %.0f output tokens/s; expired %u, accepted and then dropped %u, given up %u, "
           "told to wait %llu times, open at the end %u\n",
           (double)n_tokens / (window_s > 0 ? window_s : 1), n_expired, n_dropped, n_refused,
           (unsigned long long)n_busy, n_open);
    printf("from the cache: %.1f %% of prompt tokens", n_prompt ? 100.0 * n_cached / n_prompt : 0);
    if (n_shared > 0)
        printf(", %.1f %% of shared ones", 100.0 * n_cached / n_shared);
    if (load->n_tenants > 1) {
        printf("; Jain index of %u tenants %.4f, output tokens of each:", load->n_tenants,
               jain(result, load->n_tenants));
        for (uint32_t i = 0; i < load->n_tenants; i++)
            printf(" %llu", (unsigned long long)result->tokens_by[i]);
    }
    printf("\n%llu steps in %.1f s, device busy %.0f %%, %llu preemptions\n",
           (unsigned long long)result->n_steps, result->seconds,
           100e-9 * (double)result->busy_ns / result->seconds,
           (unsigned long long)result->n_preemptions);
    return n_dropped;
}

static void free_result(struct trace_result *result)
{
    for (uint32_t i = 0; i < TRACE_CLASSES_MAX; i++)
        free(result->gaps[i].ns);
}

struct capacity {
    double requests_s, tokens_s;
};

/* What the device ends a second when there is always more than enough. The first half fills it. */
static struct capacity calibrate(const struct options *o)
{
    struct trace_load load;
    struct trace_result result;
    uint64_t from_ns = (uint64_t)(CALIBRATE_SECONDS / 2 * 1e9), n_tokens = 0;
    uint32_t n = 0;

    trace_generate(&load, o->mix, FLOOD_S, CALIBRATE_SECONDS, o->seed + 1000);
    trace_run(&load, &o->setup, true, &result);
    for (uint32_t i = 0; i < load.n; i++) {
        const struct trace_request *r = &load.request[i];
        if (!r->has_ended || r->code != 0 || r->end_ns < from_ns)
            continue;
        n++;
        n_tokens += r->n_got;
    }
    free_result(&result);
    trace_free(&load);
    return (struct capacity){n / (CALIBRATE_SECONDS / 2),
                             (double)n_tokens / (CALIBRATE_SECONDS / 2)};
}

int main(int argc, char **argv)
{
    struct options o = parse(argc, argv);
    struct trace_load load;
    struct trace_result result;

    if (o.file != NULL) {
        if (trace_read(&load, o.file) < 0)
            return 1;
    } else {
        struct capacity capacity = calibrate(&o);
        double arrive_s = o.load * capacity.requests_s;
        trace_generate(&load, o.mix, arrive_s, o.seconds, o.seed);
        fprintf(o.writes ? stderr : stdout,
                "%s: the device can do %.1f requests/s, %.0f output tokens/s; %.1f requests/s "
                "arrive (%.0f %%) for %.0f s\n",
                o.mix, capacity.requests_s, capacity.tokens_s, arrive_s, 100 * o.load, o.seconds);
        fflush(stdout);
    }
    if (o.writes) {
        trace_write(&load);
        trace_free(&load);
        return 0;
    }
    /* Beyond what can be served the end would not come. */
    trace_run(&load, &o.setup, o.file == NULL && o.load >= 1, &result);
    printf("%-8s %8s %26s  %9s %s\n", "", "", "time to first token [ms]", "", "token gap [ms]");
    printf("%-8s %8s %8s %8s %8s  %9s %7s %7s %7s %7s %6s\n", "class", "finished", "p50", "p99",
           "max", "tokens", "p50", "p90", "p99", "max", "99/50");
    for (uint32_t i = 0; i < load.n_classes; i++)
        print_class(&load, &result, i);
    uint32_t n_dropped = print_totals(&load, &result);
    free_result(&result);
    trace_free(&load);
    return n_dropped > 0;
}
