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
 * counts up to a bound when it begins there or below: 3 % off at most, small numbers exact. */
static void histogram(struct buffer *out, const char *name, const char *labels,
                      const struct server *server, size_t offset, double scale, const double *bound,
                      size_t n_bounds)
{
    uint64_t count = 0, total = 0, below = 0;
    uint32_t at = 0;

    buffer_printf(out, "# TYPE %s histogram\n", name);
    for (size_t b = 0; b < n_bounds; b++) {
        for (; at < LL_HIST_BUCKETS && (double)ll_hist_bucket_low(at) <= bound[b] * scale; at++)
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

/* ---- runtimes ---------------------------------------------------------------------------------*/

struct figures {
    struct ll_stat stat[STATS_MAX];
    int n; /* 0: not attached */
};

/* [server.n_runtimes], the caller's to free; NULL: no memory. */
static struct figures *read_figures(const struct loop *loop)
{
    uint32_t n = loop->server->n_runtimes;
    struct figures *figures = calloc(n, sizeof(*figures));

    for (uint32_t r = 0; figures != NULL && r < n; r++) {
        struct link *link = loop->at[r].link;
        if (link != NULL)
            figures[r].n = ll_client_stats(link->client, figures[r].stat, STATS_MAX);
        if (figures[r].n > STATS_MAX)
            figures[r].n = STATS_MAX;
    }
    return figures;
}

static const struct ll_stat *find_stat(const struct figures *figures, const char *name)
{
    for (int i = 0; i < figures->n; i++)
        if (strcmp(figures->stat[i].name, name) == 0)
            return &figures->stat[i];
    return NULL;
}

static uint64_t stat_value(const struct figures *figures, const char *name)
{
    const struct ll_stat *stat = find_stat(figures, name);

    return stat != NULL ? stat->value : 0;
}

/* `runtime="..."` where there are several; else nothing. */
static void put_label(struct buffer *out, const struct server *server, uint32_t r)
{
    if (server->n_runtimes < 2)
        return;
    buffer_text(out, "runtime=");
    buffer_json_text(out, server->runtime[r].name);
}

static void put_sample(struct buffer *out, const struct server *server, uint32_t r,
                       const char *name, const char *suffix, const char *label, uint64_t value)
{
    bool has_label = label[0] != '\0';

    buffer_printf(out, "ll_%s%s", name, suffix);
    if (has_label || server->n_runtimes > 1) {
        buffer_text(out, "{");
        put_label(out, server, r);
        buffer_text(out, has_label && server->n_runtimes > 1 ? "," : "");
        buffer_text(out, label);
        buffer_text(out, "}");
    }
    buffer_printf(out, " %llu\n", (unsigned long long)value);
}

static bool is_gauge(const char *name)
{
    static const char *const ends[] = {"_running", "_waiting",     "_attached",     "_total",
                                       "_free",    "_cached",      "_reserved",     "_recent",
                                       "load_ns",  "_quarantined", "weights_bytes", "ready_ns"};
    size_t n_name = strlen(name);

    if (strcmp(name, "prompt_tokens_cached") == 0)
        return false;
    if (strncmp(name, "gpu_", 4) == 0 ||
        strncmp(name, "start_", 6) == 0 ||  /* states, and spans of one start */
        strncmp(name, "reload_", 7) == 0 || /* of the one under way */
        strcmp(name, "weights_set") == 0)
        return true;
    for (size_t k = 0; k < sizeof(ends) / sizeof(ends[0]); k++) {
        size_t n_end = strlen(ends[k]);
        if (n_name >= n_end && strcmp(name + n_name - n_end, ends[k]) == 0)
            return true;
    }
    return false;
}

static void put_stat(struct buffer *out, const struct server *server, uint32_t r,
                     const struct ll_stat *stat)
{
    if (!stat->is_histogram) {
        put_sample(out, server, r, stat->name, is_gauge(stat->name) ? "" : "_total", "",
                   stat->value);
        return;
    }
    put_sample(out, server, r, stat->name, "", "quantile=\"0.5\"", stat->p50);
    put_sample(out, server, r, stat->name, "", "quantile=\"0.9\"", stat->p90);
    put_sample(out, server, r, stat->name, "", "quantile=\"0.99\"", stat->p99);
    put_sample(out, server, r, stat->name, "_sum", "", stat->sum);
    put_sample(out, server, r, stat->name, "_count", "", stat->value);
}

/* Every figure once, with a sample for each runtime that tells it. */
static void write_runtimes(struct buffer *out, const struct server *server,
                           const struct figures *figures)
{
    const struct figures *first = figures;

    while (first < figures + server->n_runtimes - 1 && first->n == 0)
        first++;
    for (int i = 0; i < first->n; i++) {
        const struct ll_stat *stat = &first->stat[i];
        buffer_printf(out, "# TYPE ll_%s%s %s\n", stat->name,
                      stat->is_histogram || is_gauge(stat->name) ? "" : "_total",
                      stat->is_histogram     ? "summary"
                      : is_gauge(stat->name) ? "gauge"
                                             : "counter");
        for (uint32_t r = 0; r < server->n_runtimes; r++) {
            const struct ll_stat *of = find_stat(&figures[r], stat->name);
            if (of != NULL)
                put_stat(out, server, r, of);
        }
    }
}

/* How each runtime stands with this proxy. */
static void write_attachments(struct buffer *out, const struct loop *loop)
{
    const struct server *server = loop->server;

    if (server->n_runtimes < 2)
        return;
    buffer_text(out, "# TYPE ll_http_runtime_up gauge\n");
    for (uint32_t r = 0; r < server->n_runtimes; r++)
        put_sample(out, server, r, "http_runtime_up", "", "",
                   loop->at[r].link != NULL && loop->at[r].code == 0);
    buffer_text(out, "# TYPE ll_http_runtime_requests gauge\n");
    for (uint32_t r = 0; r < server->n_runtimes; r++)
        put_sample(out, server, r, "http_runtime_requests", "", "",
                   atomic_load_explicit(&server->runtime[r].n_open, memory_order_relaxed));
}

/* ---- vLLM's names -----------------------------------------------------------------------------*/

static const struct {
    const char *name, *type, *stat; /* stat NULL: the share of the KV pages in use */
} engine_figures[] = {
    {"num_requests_running", "gauge", "requests_running"},
    {"num_requests_waiting", "gauge", "requests_waiting"},
    {"kv_cache_usage_perc", "gauge", NULL},
    {"gpu_cache_usage_perc", "gauge", NULL}, /* its old name, as the next two */
    {"gpu_prefix_cache_queries_total", "counter", "prompt_tokens"},
    {"gpu_prefix_cache_hits_total", "counter", "prompt_tokens_cached"},
    {"num_preemptions_total", "counter", "preemptions"},
    {"prompt_tokens_total", "counter", "prompt_tokens"},
    {"generation_tokens_total", "counter", "output_tokens"},
    {"prefix_cache_queries_total", "counter", "prompt_tokens"},
    {"prefix_cache_hits_total", "counter", "prompt_tokens_cached"},
};

/* What the runtime itself counts, an engine each. */
static void write_engine(struct buffer *out, const char *labels, uint32_t r,
                         const struct figures *figures, size_t i)
{
    double total = (double)stat_value(figures, "pages_total");
    double unused =
        (double)(stat_value(figures, "pages_free") + stat_value(figures, "pages_cached"));
    const double used = total > 0 ? 1 - unused / total : 0;
    double value =
        engine_figures[i].stat != NULL ? (double)stat_value(figures, engine_figures[i].stat) : used;

    if (r == 0)
        buffer_printf(out, "# TYPE vllm:%s %s\n", engine_figures[i].name, engine_figures[i].type);
    buffer_printf(out, "vllm:%s{%s,engine=\"%u\"} %.17g\n", engine_figures[i].name, labels, r,
                  value);
}

/* The runtime tells no more of its histogram than count and sum; a mean is what panels draw of it.
 */
static void write_queue_time(struct buffer *out, const char *labels, uint32_t r,
                             const struct figures *figures)
{
    static const char name[] = "vllm:request_queue_time_seconds";
    const struct ll_stat *stat = find_stat(figures, "queue_ns");
    unsigned long long count = stat != NULL ? stat->value : 0;
    double sum = stat != NULL ? (double)stat->sum / 1e9 : 0;

    if (r == 0)
        buffer_printf(out, "# TYPE %s histogram\n", name);
    buffer_printf(out, "%s_bucket{%s,engine=\"%u\",le=\"+Inf\"} %llu\n", name, labels, r, count);
    buffer_printf(out, "%s_sum{%s,engine=\"%u\"} %.9g\n", name, labels, r, sum);
    buffer_printf(out, "%s_count{%s,engine=\"%u\"} %llu\n", name, labels, r, count);
}

static void write_alias(struct buffer *out, const struct loop *loop, const struct figures *figures)
{
    static const double ttft[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
    static const double itl[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                 .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
    static const double e2e[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
    static const double choices[] = {1, 2, 5, 10, 20, 50, 100};
    const struct server *server = loop->server;
    struct buffer labels = {0};

    buffer_text(&labels, "model_name=");
    buffer_json_text(&labels, server->options.served_names.n > 0
                                  ? server->options.served_names.text[0]
                                  : (loop->link != NULL ? link_model(loop->link)->name : ""));
    buffer_put(&labels, "", 1);
    for (size_t i = 0; !labels.has_failed && i < sizeof(engine_figures) / sizeof(engine_figures[0]);
         i++)
        for (uint32_t r = 0; r < server->n_runtimes; r++)
            write_engine(out, labels.data, r, &figures[r], i);
    for (uint32_t r = 0; !labels.has_failed && r < server->n_runtimes; r++)
        write_queue_time(out, labels.data, r, &figures[r]);
    labels.n -= labels.n > 0;                 /* its NUL */
    buffer_put(&labels, ",engine=\"0\"", 12); /* ours, whichever runtime did the work */
    if (labels.has_failed) {
        buffer_free(&labels);
        return;
    }
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
    HISTOGRAM(out, "vllm:time_per_output_token_seconds", labels.data, server, gap_ns, 1e9, itl);
    HISTOGRAM(out, "vllm:request_time_per_output_token_seconds", labels.data, server, per_token_ns,
              1e9, itl);
    HISTOGRAM(out, "vllm:e2e_request_latency_seconds", labels.data, server, total_ns, 1e9, e2e);
    HISTOGRAM(out, "vllm:request_prompt_tokens", labels.data, server, prompt_length, 1, lengths);
    HISTOGRAM(out, "vllm:request_generation_tokens", labels.data, server, output_length, 1,
              lengths);
    HISTOGRAM(out, "vllm:request_max_num_generation_tokens", labels.data, server, output_length, 1,
              lengths);
    HISTOGRAM(out, "vllm:request_params_max_tokens", labels.data, server, max_tokens, 1, lengths);
    HISTOGRAM(out, "vllm:request_params_n", labels.data, server, n_choices, 1, choices);
    HISTOGRAM(out, "vllm:request_prefill_time_seconds", labels.data, server, prefill_ns, 1e9, e2e);
    HISTOGRAM(out, "vllm:request_decode_time_seconds", labels.data, server, decode_ns, 1e9, e2e);
    buffer_free(&labels);
}

void metrics_write(struct buffer *out, const struct loop *loop)
{
    const struct server *server = loop->server;
    struct figures *figures = read_figures(loop);

    gauge(out, "ll_http_up", loop->link != NULL && loop->link_code == 0);
    write_attachments(out, loop);
    gauge(out, "ll_http_connections", (double)server_n_conns(server));
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
    HISTOGRAM(out, "ll_http_decode_seconds", "", server, decode_ns, 1e9, fine);
    HISTOGRAM(out, "ll_http_time_per_token_seconds", "", server, per_token_ns, 1e9, fine);
    HISTOGRAM(out, "ll_http_prompt_length_tokens", "", server, prompt_length, 1, lengths);
    HISTOGRAM(out, "ll_http_output_length_tokens", "", server, output_length, 1, lengths);
    if (figures == NULL) {
        out->has_failed = true;
        return;
    }
    write_runtimes(out, server, figures);
    if (server->options.metrics_alias != NULL)
        write_alias(out, loop, figures);
    free(figures);
}

/* ---- the log ----------------------------------------------------------------------------------*/

static uint64_t sum_stat(const struct server *server, const struct figures *figures,
                         const char *name)
{
    uint64_t sum = 0;

    for (uint32_t r = 0; r < server->n_runtimes; r++)
        sum += stat_value(&figures[r], name);
    return sum;
}

static void log_line(const struct server *server, const struct figures *figures)
{
    static uint64_t last_prompt, last_output; /* loop 0's thread only */
    uint64_t prompt = sum_stat(server, figures, "prompt_tokens");
    uint64_t output = sum_stat(server, figures, "output_tokens");
    uint64_t running = sum_stat(server, figures, "requests_running");
    uint64_t total = sum_stat(server, figures, "pages_total");
    uint64_t cached = sum_stat(server, figures, "prompt_tokens_cached");
    uint64_t unused =
        sum_stat(server, figures, "pages_free") + sum_stat(server, figures, "pages_cached");

    if (total == 0 || (output == last_output && prompt == last_prompt && running == 0))
        return;
    if (output >= last_output && prompt >= last_prompt) /* else a runtime is a new one */
        ll_info("prompt %.1f tokens/s, output %.1f tokens/s, running %llu, waiting %llu, KV used "
                "%.1f %%, prefix hits %.1f %%",
                (double)(prompt - last_prompt) / 10, (double)(output - last_output) / 10,
                (unsigned long long)running,
                (unsigned long long)sum_stat(server, figures, "requests_waiting"),
                100 - 100 * (double)unused / (double)total,
                prompt > 0 ? 100 * (double)cached / (double)prompt : 0.0);
    last_prompt = prompt;
    last_output = output;
}

void metrics_log(const struct server *server)
{
    struct figures *figures = read_figures(&server->loop[0]);

    if (figures != NULL)
        log_line(server, figures);
    free(figures);
}
