/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/http/metrics.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>

/* Relaxed throughout: figures, a moment old. */
static uint64_t get(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static uint64_t sum_at(const struct server *server, size_t offset)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < server->options.n_threads; i++)
        sum += get((const _Atomic uint64_t *)(const void *)((const char *)&server->loop[i].figures +
                                                            offset));
    return sum;
}
#define SUM(server, field) sum_at(server, offsetof(struct loop_figures, field))

static void counter(struct buffer *out, const char *name, uint64_t value)
{
    buffer_printf(out, "# TYPE %s counter\n%s %llu\n", name, name, (unsigned long long)value);
}

static void gauge(struct buffer *out, const char *name, double value)
{
    buffer_printf(out, "# TYPE %s gauge\n%s %.9g\n", name, name, value);
}

/* ---- histograms -------------------------------------------------------------------------------*/

/* One histogram over all loops, with the given upper bounds in units of 1 / scale. A fine bucket
 * counts below a bound when it begins below it: 3 % off at most. */
static void histogram(struct buffer *out, const char *name, const char *labels,
                      const struct server *server, size_t offset, double scale, const double *bound,
                      size_t n_bounds)
{
    uint64_t count = 0, total = 0, below = 0;
    uint32_t at = 0;

    buffer_printf(out, "# TYPE %s histogram\n", name);
    for (size_t b = 0; b < n_bounds; b++) {
        for (; at < LL_HIST_BUCKETS && (double)ll_hist_bucket_low(at) < bound[b] * scale; at++)
            for (uint32_t i = 0; i < server->options.n_threads; i++) {
                const char *base = (const char *)&server->loop[i].figures + offset;
                below += get(&((const struct ll_hist *)(const void *)base)->bucket[at]);
            }
        buffer_printf(out, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, labels,
                      labels[0] != '\0' ? "," : "", bound[b], (unsigned long long)below);
    }
    for (uint32_t i = 0; i < server->options.n_threads; i++) {
        const char *base = (const char *)&server->loop[i].figures + offset;
        count += get(&((const struct ll_hist *)(const void *)base)->count);
        total += get(&((const struct ll_hist *)(const void *)base)->sum);
    }
    if (count < below) /* counted between the two readings */
        count = below;
    buffer_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, labels,
                  labels[0] != '\0' ? "," : "", (unsigned long long)count);
    buffer_printf(out, "%s_sum%s%s%s %.9g\n%s_count%s%s%s %llu\n", name,
                  labels[0] != '\0' ? "{" : "", labels, labels[0] != '\0' ? "}" : "",
                  (double)total / scale, name, labels[0] != '\0' ? "{" : "", labels,
                  labels[0] != '\0' ? "}" : "", (unsigned long long)count);
}

/* Seconds; finer than vLLM's where llring lives. */
static const double fine[] = {.0001, .0002, .0005, .001, .002, .003, .004, .005,
                              .0075, .01,   .015,  .02,  .03,  .05,  .1,   .2,
                              .5,    1,     2,     5,    10,   30,   60};
static const double lengths[] = {1,   2,    5,    10,   20,    50,    100,   200,
                                 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};
#define HISTOGRAM(out, name, labels, server, field, scale, bounds)                                 \
    histogram(out, name, labels, server, offsetof(struct loop_figures, field), scale, bounds,      \
              sizeof(bounds) / sizeof(bounds[0]))

/* ---- the runtime ------------------------------------------------------------------------------*/

#define STATS_MAX 256
static int read_stats(const struct loop *loop, struct ll_stat *stats)
{
    int n = loop->link != NULL ? ll_client_stats(loop->link->client, stats, STATS_MAX) : 0;

    return n > STATS_MAX ? STATS_MAX : n;
}

static uint64_t stat_value(const struct ll_stat *stats, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (strcmp(stats[i].name, name) == 0)
            return stats[i].value;
    return 0;
}

static void write_runtime(struct buffer *out, const struct ll_stat *stats, int n)
{
    static const char *const gauges[] = {"_running", "_waiting", "_attached", "_total",
                                         "_free",    "_cached",  "_reserved", "weights_bytes",
                                         "load_ns",  "ready_ns"};

    for (int i = 0; i < n; i++) {
        const struct ll_stat *stat = &stats[i];
        size_t n_name = strlen(stat->name);
        bool is_gauge = strncmp(stat->name, "gpu_", 4) == 0;
        if (stat->is_histogram) {
            buffer_printf(out,
                          "# TYPE ll_%s summary\nll_%s{quantile=\"0.5\"} %llu\n"
                          "ll_%s{quantile=\"0.9\"} %llu\nll_%s{quantile=\"0.99\"} %llu\n"
                          "ll_%s_count %llu\n",
                          stat->name, stat->name, (unsigned long long)stat->p50, stat->name,
                          (unsigned long long)stat->p90, stat->name, (unsigned long long)stat->p99,
                          stat->name, (unsigned long long)stat->value);
            continue;
        }
        for (size_t k = 0; k < sizeof(gauges) / sizeof(gauges[0]); k++) {
            size_t n_end = strlen(gauges[k]);
            is_gauge = is_gauge ||
                       (n_name >= n_end && strcmp(stat->name + n_name - n_end, gauges[k]) == 0);
        }
        is_gauge = is_gauge && strcmp(stat->name, "prompt_tokens_cached") != 0;
        buffer_printf(out, "# TYPE ll_%s%s %s\nll_%s%s %llu\n", stat->name,
                      is_gauge ? "" : "_total", is_gauge ? "gauge" : "counter", stat->name,
                      is_gauge ? "" : "_total", (unsigned long long)stat->value);
    }
}

/* ---- vLLM's names -----------------------------------------------------------------------------*/

static void write_alias(struct buffer *out, const struct loop *loop, const struct ll_stat *stats,
                        int n)
{
    static const double ttft[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
    static const double itl[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                 .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
    static const double e2e[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
    const struct server *server = loop->server;
    struct buffer labels = {0};
    double total = (double)stat_value(stats, n, "pages_total");
    double unused =
        (double)(stat_value(stats, n, "pages_free") + stat_value(stats, n, "pages_cached"));

    buffer_text(&labels, "model_name=");
    buffer_json_text(&labels, server->options.served_names.n > 0
                                  ? server->options.served_names.text[0]
                                  : (loop->link != NULL ? loop->link->info.model : ""));
    buffer_put(&labels, ",engine=\"0\"", 12);
    if (labels.has_failed)
        return;
    const struct {
        const char *name, *type;
        double value;
    } simple[] = {
        {"num_requests_running", "gauge", (double)stat_value(stats, n, "requests_running")},
        {"num_requests_waiting", "gauge", (double)stat_value(stats, n, "requests_waiting")},
        {"kv_cache_usage_perc", "gauge", total > 0 ? 1 - unused / total : 0},
        {"num_preemptions_total", "counter", (double)stat_value(stats, n, "preemptions")},
        {"prompt_tokens_total", "counter", (double)stat_value(stats, n, "prompt_tokens")},
        {"generation_tokens_total", "counter", (double)stat_value(stats, n, "output_tokens")},
        {"prefix_cache_queries_total", "counter", (double)stat_value(stats, n, "prompt_tokens")},
        {"prefix_cache_hits_total", "counter",
         (double)stat_value(stats, n, "prompt_tokens_cached")},
    };
    for (size_t i = 0; i < sizeof(simple) / sizeof(simple[0]); i++)
        buffer_printf(out, "# TYPE vllm:%s %s\nvllm:%s{%s} %.17g\n", simple[i].name, simple[i].type,
                      simple[i].name, labels.data, simple[i].value);
    buffer_printf(out, "# TYPE vllm:request_success_total counter\n");
    const struct {
        const char *reason;
        uint64_t value;
    } ends[] = {{"stop", SUM(server, finished_stop) + SUM(server, finished_tools)},
                {"length", SUM(server, finished_length)},
                {"abort", SUM(server, finished_abort) + SUM(server, gone)}};
    for (size_t i = 0; i < 3; i++)
        buffer_printf(out, "vllm:request_success_total{%s,finished_reason=\"%s\"} %llu\n",
                      labels.data, ends[i].reason, (unsigned long long)ends[i].value);
    HISTOGRAM(out, "vllm:time_to_first_token_seconds", labels.data, server, ttft_ns, 1e9, ttft);
    HISTOGRAM(out, "vllm:inter_token_latency_seconds", labels.data, server, gap_ns, 1e9, itl);
    HISTOGRAM(out, "vllm:request_time_per_output_token_seconds", labels.data, server, gap_ns, 1e9,
              itl);
    HISTOGRAM(out, "vllm:e2e_request_latency_seconds", labels.data, server, total_ns, 1e9, e2e);
    HISTOGRAM(out, "vllm:request_prompt_tokens", labels.data, server, prompt_length, 1, lengths);
    HISTOGRAM(out, "vllm:request_generation_tokens", labels.data, server, output_length, 1,
              lengths);
    buffer_free(&labels);
}

void metrics_write(struct buffer *out, const struct loop *loop)
{
    const struct server *server = loop->server;
    struct ll_stat stats[STATS_MAX];
    int n = read_stats(loop, stats);
    uint64_t n_conns = 0;

    for (uint32_t i = 0; i < server->options.n_threads; i++)
        n_conns += __atomic_load_n(&server->loop[i].n_conns, __ATOMIC_RELAXED);
    gauge(out, "ll_http_up", loop->link != NULL && loop->link_code == 0);
    gauge(out, "ll_http_connections", (double)n_conns);
    counter(out, "ll_http_connections_total", SUM(server, connections));
    counter(out, "ll_http_connections_refused_total", SUM(server, connections_refused));
    buffer_text(out, "# TYPE ll_http_replies_total counter\n");
    for (uint32_t i = 2; i < STATUS_CLASSES; i++)
        buffer_printf(out, "ll_http_replies_total{status=\"%uxx\"} %llu\n", i,
                      (unsigned long long)sum_at(server, offsetof(struct loop_figures, requests) +
                                                             i * sizeof(uint64_t)));
    counter(out, "ll_http_streams_total", SUM(server, streams));
    counter(out, "ll_http_clients_gone_total", SUM(server, gone));
    counter(out, "ll_http_prompt_tokens_total", SUM(server, prompt_tokens));
    counter(out, "ll_http_cached_tokens_total", SUM(server, cached_tokens));
    counter(out, "ll_http_output_tokens_total", SUM(server, output_tokens));
    HISTOGRAM(out, "ll_http_first_token_seconds", "", server, ttft_ns, 1e9, fine);
    HISTOGRAM(out, "ll_http_token_gap_seconds", "", server, gap_ns, 1e9, fine);
    HISTOGRAM(out, "ll_http_request_seconds", "", server, total_ns, 1e9, fine);
    HISTOGRAM(out, "ll_http_prompt_length_tokens", "", server, prompt_length, 1, lengths);
    HISTOGRAM(out, "ll_http_output_length_tokens", "", server, output_length, 1, lengths);
    write_runtime(out, stats, n);
    if (server->options.metrics_alias != NULL)
        write_alias(out, loop, stats, n);
}

/* ---- the log ----------------------------------------------------------------------------------*/

void metrics_log(const struct server *server)
{
    static uint64_t last_prompt, last_output; /* loop 0's thread only */
    const struct loop *loop = &server->loop[0];
    struct ll_stat stats[STATS_MAX] = {{0}}; /* gcc cannot see through read_stats() */
    int n = read_stats(loop, stats);
    uint64_t prompt = stat_value(stats, n, "prompt_tokens");
    uint64_t output = stat_value(stats, n, "output_tokens");
    uint64_t running = stat_value(stats, n, "requests_running");
    uint64_t total = stat_value(stats, n, "pages_total");
    uint64_t cached = stat_value(stats, n, "prompt_tokens_cached");

    if (n == 0 || (output == last_output && prompt == last_prompt && running == 0))
        return;
    if (output >= last_output && prompt >= last_prompt) /* else the runtime is a new one */
        ll_info("prompt %.1f tokens/s, output %.1f tokens/s, running %llu, waiting %llu, KV used "
                "%.1f %%, prefix hits %.1f %%",
                (double)(prompt - last_prompt) / 10, (double)(output - last_output) / 10,
                (unsigned long long)running,
                (unsigned long long)stat_value(stats, n, "requests_waiting"),
                total > 0 ? 100 - 100 * (double)stat_value(stats, n, "pages_free") / (double)total
                          : 0.0,
                prompt > 0 ? 100 * (double)cached / (double)prompt : 0.0);
    last_prompt = prompt;
    last_output = output;
}
