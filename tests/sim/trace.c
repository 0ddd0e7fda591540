/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/trace.c - plays a workload and prints what its users would have seen (trace.h).
 *
 *   trace FILE                        a workload file
 *   trace --mix mixed --load 0.8      128 to 8K-token prompts at 80 % of what the device can do
 *   trace --mix mixed --load 10       ten times as much
 *   trace --mix fair --load 20        one tenant of eight offers 100 times what the others do
 *   trace --mix shared                a system prompt of 2,048 tokens before each question
 *   trace --check                     these four against what is promised: status 1 when missed
 *   --max-itl-ms N plays without a time budget and then, the same arrivals, with one of N;
 *   --deadline-ms N gives each request so long from its arrival; --write prints the workload
 *   instead of playing it; --seconds, --seed; --max-num-seqs, --max-num-batched-tokens,
 *   --no-prefix-caching: as llringd has them
 *
 * What the device can do is measured first (trace.h). Exit status 1: a request was accepted and
 * then dropped, which is what an end by its deadline is, too. */
#include "tests/sim/trace.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* For the calibration, whose requests all arrive at once: more of them than any mix can be served
 * within its seconds. */
#define FLOOD_S           400.0
#define CALIBRATE_SECONDS 40.0

struct options {
    const char *file, *mix;
    double load, seconds;
    uint64_t seed, deadline_ns;
    bool writes, checks;
    struct trace_setup setup;
};

static _Noreturn void usage(const char *what)
{
    fprintf(stderr,
            "%s%susage: trace FILE | --mix mixed|shared|fair | --check\n  [--load X] [--seconds N] "
            "[--seed N] [--deadline-ms N] [--write] [--max-itl-ms N]\n  [--max-num-seqs N] "
            "[--max-num-batched-tokens N] [--no-prefix-caching]\n",
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
        else if (strcmp(a, "--deadline-ms") == 0)
            o.deadline_ns = (uint64_t)(number(argc, argv, ++i) * 1e6);
        else if (strcmp(a, "--check") == 0)
            o.checks = true;
        else if (strcmp(a, "--no-prefix-caching") == 0)
            o.setup.has_prefix_cache = false;
        else if (strcmp(a, "--write") == 0)
            o.writes = true;
        else if (a[0] != '-' && o.file == NULL)
            o.file = a;
        else
            usage(a);
    }
    if ((o.file != NULL) + (o.mix != NULL) + o.checks != 1)
        usage("");
    if (o.mix != NULL && !trace_is_mix(o.mix))
        usage(o.mix);
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

/* p99 of the gaps between tokens over their median. */
static double print_class(const struct trace_load *load, struct trace_result *result, uint32_t id)
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
    return p50 > 0 ? p99 / p50 : 0;
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

/* What the device can do: requests, output tokens, output and prompt tokens. */
struct capacity {
    double requests_s, tokens_s, work_s;
};

/* What a play came to. */
struct verdict {
    double gap_ratio; /* of the class with the largest */
    double goodput;   /* of what the device can do; 0 for a workload file */
    double work;      /* the same, prompt tokens counted, too */
    double jain;
    double cached;  /* of shared prompt tokens */
    uint32_t n_bad; /* accepted and then dropped */
};

static void print_totals(const struct trace_load *load, const struct trace_result *result,
                         const struct capacity *capacity, struct verdict *verdict)
{
    uint64_t n_tokens = 0, n_prompt = 0, n_cached = 0, n_shared = 0, n_busy = 0;
    uint32_t n_expired = 0, n_dropped = 0, n_refused = 0, n_outside = 0;

    for (uint32_t i = 0; i < load->n; i++) {
        const struct trace_request *r = &load->request[i];
        n_busy += r->n_busy;
        n_outside += !r->has_ended;
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
    double window_s = (double)load->end_ns * 0.5e-9, tokens_s = (double)n_tokens / window_s;
    double work_s = tokens_s + (double)result->n_good_prompt / window_s;
    if (capacity != NULL) {
        verdict->goodput = tokens_s / capacity->tokens_s;
        verdict->work = work_s / capacity->work_s;
    }
    printf("goodput %.0f output tokens/s, with their prompts %.0f", tokens_s, work_s);
    if (capacity != NULL)
        printf(" (%.1f %%, %.1f %% of what the device can do)", 100 * verdict->goodput,
               100 * verdict->work);
    printf("; accepted and then dropped: expired %u, failed %u; never accepted %u + %u at the end, "
           "told to wait %llu times\n",
           n_expired, n_dropped, n_refused, n_outside, (unsigned long long)n_busy);
    printf("from the cache: %.1f %% of prompt tokens", n_prompt ? 100.0 * n_cached / n_prompt : 0);
    if (n_shared > 0)
        printf(", %.1f %% of shared ones", 100.0 * n_cached / n_shared);
    if (load->n_tenants > 1) {
        printf("; Jain index of %u tenants %.4f, goodput of each:", load->n_tenants,
               jain(result, load->n_tenants));
        for (uint32_t i = 0; i < load->n_tenants; i++)
            printf(" %llu", (unsigned long long)result->tokens_by[i]);
    }
    printf("\n%llu steps in %.1f s, device busy %.0f %%, %llu preemptions\n",
           (unsigned long long)result->n_steps, result->seconds,
           100e-9 * (double)result->busy_ns / result->seconds,
           (unsigned long long)result->n_preemptions);
    verdict->jain = jain(result, load->n_tenants);
    verdict->cached = n_shared > 0 ? (double)n_cached / n_shared : 0;
    verdict->n_bad = n_expired + n_dropped;
}

/* Plays a workload from its beginning. */
static struct verdict play(struct trace_load *load, const struct trace_setup *setup,
                           const struct capacity *capacity)
{
    struct verdict verdict = {0};
    struct trace_result result;

    trace_again(load);
    trace_run(load, setup, &result);
    if (setup->max_itl_ns != 0)
        printf("time budget %.1f ms\n", (double)setup->max_itl_ns * 1e-6);
    else
        printf("no time budget\n");
    printf("%-8s %8s %26s  %9s %s\n", "", "", "time to first token [ms]", "", "token gap [ms]");
    printf("%-8s %8s %8s %8s %8s  %9s %7s %7s %7s %7s %6s\n", "class", "finished", "p50", "p99",
           "max", "tokens", "p50", "p90", "p99", "max", "99/50");
    for (uint32_t i = 0; i < load->n_classes; i++)
        verdict.gap_ratio = fmax(verdict.gap_ratio, print_class(load, &result, i));
    print_totals(load, &result, capacity, &verdict);
    fflush(stdout);
    for (uint32_t i = 0; i < TRACE_CLASSES_MAX; i++)
        free(result.gaps[i].ns);
    return verdict;
}

/* What the device delivers with no limit but its own: everything arrives at once and may wait. */
static struct capacity calibrate(const struct options *o, const char *mix)
{
    struct trace_setup setup = o->setup;
    struct trace_load load;
    struct trace_result result;
    double window_s = CALIBRATE_SECONDS / 2;

    trace_generate(&load, mix, FLOOD_S, CALIBRATE_SECONDS, o->seed + 1000);
    for (uint32_t i = 0; i < load.n; i++)
        load.request[i].arrival_ns = 0;
    load.is_cut = true;
    setup.max_itl_ns = 0;
    setup.n_waiting_max = TRACE_WAITING_ALL;
    trace_run(&load, &setup, &result);
    for (uint32_t i = 0; i < TRACE_CLASSES_MAX; i++)
        free(result.gaps[i].ns);
    trace_free(&load);
    return (struct capacity){(double)result.n_ended / window_s, (double)result.n_tokens / window_s,
                             (double)(result.n_tokens + result.n_prompt) / window_s};
}

/* Requests of a mix arrive at `share` of what the device can do. */
static void offer(struct trace_load *load, const struct options *o, const char *mix,
                  const struct capacity *capacity, double share)
{
    double arrive_s = share * capacity->requests_s;

    trace_generate(load, mix, arrive_s, o->seconds, o->seed);
    load->is_cut = share >= 1; /* else the end would not come */
    for (uint32_t i = 0; o->deadline_ns != 0 && i < load->n; i++)
        load->request[i].deadline_ns = load->request[i].arrival_ns + o->deadline_ns;
    fprintf(o->writes ? stderr : stdout,
            "%s: the device can do %.1f requests/s, %.0f output tokens/s; %.1f requests/s arrive "
            "(%.0f %%) for %.0f s\n",
            mix, capacity->requests_s, capacity->tokens_s, arrive_s, 100 * share, o->seconds);
}

/* ---- what is promised -------------------------------------------------------------------------*/

#define CHECK_ITL_MS      5.0
#define CHECK_DEADLINE_MS 20000.0

static int promise(bool is_kept, const char *what, double value)
{
    printf("%s %s: %.4f\n\n", is_kept ? "kept  " : "MISSED", what, value);
    return is_kept ? 0 : 1;
}

static int check(struct options o)
{
    const uint64_t itl_ns = (uint64_t)(CHECK_ITL_MS * 1e6);
    struct trace_load load;
    struct verdict v;
    int n_missed = 0;

    struct capacity mixed = calibrate(&o, "mixed");
    offer(&load, &o, "mixed", &mixed, 0.8);
    play(&load, &o.setup, &mixed);
    o.setup.max_itl_ns = itl_ns;
    v = play(&load, &o.setup, &mixed);
    n_missed +=
        promise(v.gap_ratio <= 1.3 && v.n_bad == 0, "p99 of token gaps / p50 <= 1.3", v.gap_ratio);
    trace_free(&load);

    o.seconds = 40;
    for (int i = 0; i < 4; i++) { /* without deadlines and with, without a time budget and with */
        o.deadline_ns = i < 2 ? 0 : (uint64_t)(CHECK_DEADLINE_MS * 1e6);
        o.setup.max_itl_ns = i % 2 == 0 ? 0 : itl_ns;
        offer(&load, &o, "mixed", &mixed, 10);
        v = play(&load, &o.setup, &mixed);
        if (o.deadline_ns == 0)
            n_missed += promise(v.goodput >= 0.95, "overload: goodput >= 0.95", v.goodput);
        else /* shorter requests make their deadline: output tokens alone are no measure */
            n_missed += promise(v.work >= 0.95, "overload, deadlines: goodput >= 0.95", v.work);
        n_missed += promise(v.n_bad == 0, "overload: accepted and then dropped 0", v.n_bad);
        trace_free(&load);
    }
    o.deadline_ns = 0;

    o.seconds = 30; /* 140,000 requests, most of which come again and again */
    struct capacity fair = calibrate(&o, "fair");
    offer(&load, &o, "fair", &fair, 20);
    v = play(&load, &o.setup, &fair);
    n_missed += promise(v.jain >= 0.99, "Jain index >= 0.99", v.jain);
    trace_free(&load);

    struct capacity shared = calibrate(&o, "shared");
    offer(&load, &o, "shared", &shared, 0.8);
    v = play(&load, &o.setup, &shared);
    n_missed += promise(v.cached >= 0.95, "of the shared prompt from the cache >= 0.95", v.cached);
    trace_free(&load);
    return n_missed > 0;
}

int main(int argc, char **argv)
{
    struct options o = parse(argc, argv);
    struct trace_load load;
    struct capacity measured;
    const struct capacity *capacity = NULL;
    uint32_t n_bad = 0;

    if (o.checks)
        return check(o);
    if (o.file == NULL) {
        measured = calibrate(&o, o.mix);
        offer(&load, &o, o.mix, &measured, o.load);
        capacity = &measured;
    } else if (trace_read(&load, o.file) < 0) {
        return 1;
    }
    if (o.writes) {
        trace_write(&load);
        trace_free(&load);
        return 0;
    }
    if (o.setup.max_itl_ns != 0) {
        struct trace_setup setup = o.setup;
        setup.max_itl_ns = 0;
        n_bad += play(&load, &setup, capacity).n_bad;
    }
    n_bad += play(&load, &o.setup, capacity).n_bad;
    trace_free(&load);
    return n_bad > 0;
}
