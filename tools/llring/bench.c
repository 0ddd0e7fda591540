/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/bench.c - `llring bench`: N requests over the ring, at a rate or a concurrency, and
 * what their users would have seen.
 *
 * Times are taken here, when the token reaches the application: first token from submit, gaps
 * between tokens of one request. Prompts are random ids, so no prefix is shared. */
#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/hist.h"
#include "base/rng.h"
#include "tools/llring/commands.h"
#include "tools/llring/connection.h"
#include "tools/llring/terminal.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#define OUTPUTS_A_POLL 256
#define SLOTS_MIN      16
#define SLOTS_MAX      1024

struct bench_options {
    struct connection_options connection;
    uint32_t n_requests, n_prompt, n_output, n_parallel;
    float rate;
    uint64_t seed;
    bool json;
};

#define AT(field) .offset = offsetof(struct bench_options, field)
static const struct option options[] = {
    {.name = "requests",
     .letter = 'r',
     .kind = OPTION_U32,
     AT(n_requests),
     .argument = "N",
     .min = 1,
     .max = 10000000,
     .help = "how many (default 100)"},
    {.name = "prompt-tokens",
     .kind = OPTION_U32,
     AT(n_prompt),
     .argument = "N",
     .min = 1,
     .max = 1 << 20,
     .help = "length of each prompt (default 128)"},
    {.name = "output-tokens",
     .kind = OPTION_U32,
     AT(n_output),
     .argument = "N",
     .min = 1,
     .max = 1 << 20,
     .help = "length of each answer (default 64)"},
    {.name = "concurrency",
     .letter = 'c',
     .kind = OPTION_U32,
     AT(n_parallel),
     .argument = "N",
     .min = 1,
     .max = SLOTS_MAX,
     .help = "requests in flight at most (default 16)"},
    {.name = "rate",
     .kind = OPTION_F32,
     AT(rate),
     .argument = "R",
     .min = 0.001,
     .max = 1e6,
     .help = "arrivals a second, at random times (default: as fast as\n--concurrency allows)"},
    {.name = "seed",
     .kind = OPTION_U64,
     AT(seed),
     .argument = "N",
     .help = "of prompts and arrival times (default 1)"},
    {.name = "json", .kind = OPTION_FLAG, AT(json), .help = "one JSON object instead of a table"},
    {.name = NULL},
};

struct running {
    uint64_t id; /* 0: free */
    uint64_t due_ns, last_ns;
    uint32_t n_tokens;
};

struct bench {
    const struct bench_options *options;
    struct connection *connection;
    struct running *running; /* [n_parallel]; its index is the request's tag */
    uint32_t *prompt;
    uint64_t rng;
    uint32_t n_sent, n_done, n_failed, n_running;
    uint64_t n_tokens, start_ns, next_ns;
    struct ll_hist ttft, gap, total;
    int first_error;
    char first_text[96];
};

/* Exponential gaps: arrivals that know nothing of one another. */
static void plan_arrival(struct bench *bench)
{
    if (bench->options->rate <= 0)
        return;
    double u = (double)ll_unit_f32((uint32_t)(ll_splitmix64(&bench->rng) >> 32));
    bench->next_ns += (uint64_t)(-log(u) / (double)bench->options->rate * 1e9);
}

/* Random ids without specials, which could end a sequence or steer a real model oddly. */
static void make_prompt(struct bench *bench)
{
    const struct connection *connection = bench->connection;

    for (uint32_t i = 0; i < bench->options->n_prompt; i++) {
        uint32_t id = 0;
        for (int turn = 0; turn < 64; turn++) {
            id = (uint32_t)(ll_splitmix64(&bench->rng) % connection->info.n_vocab);
            if (connection->tokenizer == NULL ||
                (ll_tokenizer_bytes(connection->tokenizer, id, &(size_t){0}) != NULL &&
                 !ll_tokenizer_is_special(connection->tokenizer, id)))
                break;
        }
        bench->prompt[i] = id;
    }
}

/* 1 sent, 0 no room, negative: the bench cannot go on. */
static int send_one(struct bench *bench, uint64_t now_ns)
{
    const struct bench_options *o = bench->options;
    struct ll_request request = LL_REQUEST_INIT;
    uint32_t slot = 0;

    while (slot < o->n_parallel && bench->running[slot].id != 0)
        slot++;
    if (slot == o->n_parallel)
        return 0;
    make_prompt(bench);
    request.flags = LL_REQUEST_IGNORE_EOS;
    request.tag = slot;
    request.prompt = bench->prompt;
    request.n_prompt = o->n_prompt;
    request.max_tokens = o->n_output;
    struct running *running = &bench->running[slot];
    int rc = ll_client_submit(bench->connection->client, &request, &running->id);
    if (rc == LL_E_AGAIN)
        return 0;
    if (rc < 0)
        return rc;
    /* With a rate, a request that had to wait here for room is late since it was due. */
    running->due_ns = o->rate > 0 ? bench->next_ns : now_ns;
    running->n_tokens = 0;
    bench->n_sent++;
    bench->n_running++;
    plan_arrival(bench);
    return 1;
}

static int send_due(struct bench *bench)
{
    int rc = 1;

    while (rc == 1 && bench->n_sent < bench->options->n_requests) {
        uint64_t now_ns = ll_now_ns();
        if (bench->options->rate > 0 && bench->next_ns > now_ns)
            return 0;
        rc = send_one(bench, now_ns);
    }
    return rc < 0 ? rc : 0;
}

static void end_one(struct bench *bench, struct running *running)
{
    running->id = 0;
    bench->n_running--;
    bench->n_done++;
}

static void take(struct bench *bench, const struct ll_output *output, uint64_t now_ns)
{
    struct running *running =
        output->tag < bench->options->n_parallel ? &bench->running[output->tag] : NULL;

    if (running == NULL || running->id != output->id)
        return;
    if (output->type == LL_OUTPUT_TOKEN) {
        if (running->n_tokens == 0)
            ll_hist_add(&bench->ttft, now_ns - running->due_ns);
        else
            ll_hist_add(&bench->gap, now_ns - running->last_ns);
        running->last_ns = now_ns;
        running->n_tokens++;
        bench->n_tokens++;
    } else if (output->type == LL_OUTPUT_FINISH) {
        ll_hist_add(&bench->total, now_ns - running->due_ns);
        end_one(bench, running);
    } else if (output->type == LL_OUTPUT_ERROR) {
        if (bench->first_error == 0) {
            bench->first_error = output->u.error.code;
            snprintf(bench->first_text, sizeof(bench->first_text), "%s", output->u.error.text);
        }
        bench->n_failed++;
        end_one(bench, running);
    }
}

/* How long may be waited for outputs: until the next arrival, a tenth of a second at most. */
static int64_t wait_ns(const struct bench *bench)
{
    uint64_t now_ns = ll_now_ns();
    bool waits_for_arrival = bench->options->rate > 0 &&
                             bench->n_sent < bench->options->n_requests &&
                             bench->n_running < bench->options->n_parallel;

    if (!waits_for_arrival)
        return 100 * (int64_t)LL_NS_PER_MS;
    if (bench->next_ns <= now_ns)
        return 0;
    return (int64_t)ll_min_u64(bench->next_ns - now_ns, 100 * LL_NS_PER_MS);
}

static int run_bench(struct bench *bench)
{
    struct ll_output output[OUTPUTS_A_POLL];

    while (bench->n_done < bench->options->n_requests && interrupts_count() == 0) {
        int rc = send_due(bench);
        if (rc < 0)
            return rc;
        int n = ll_client_wait(bench->connection->client, output, OUTPUTS_A_POLL, wait_ns(bench));
        if (n < 0 && n != -EINTR)
            return n;
        uint64_t now_ns = ll_now_ns();
        for (int i = 0; i < n; i++)
            take(bench, &output[i], now_ns);
        terminal_progress("%u of %u done, %u failed", bench->n_done, bench->options->n_requests,
                          bench->n_failed);
    }
    terminal_progress_done();
    return 0;
}

/* ---- results ----------------------------------------------------------------------------------*/

static const double quantiles[] = {0.5, 0.9, 0.99, 0.999};

static void print_row(const char *name, const struct ll_hist *hist)
{
    printf("%-12s", name);
    for (size_t i = 0; i < LL_COUNT(quantiles); i++)
        printf(" %10.3f", (double)ll_hist_quantile(hist, quantiles[i]) / 1e6);
    printf(" %10.3f\n", (double)atomic_load(&hist->max) / 1e6);
}

static json_t *hist_json(const struct ll_hist *hist)
{
    return json_pack(
        "{s:f, s:f, s:f, s:f, s:f, s:I}", "p50", (double)ll_hist_quantile(hist, 0.5) / 1e6, "p90",
        (double)ll_hist_quantile(hist, 0.9) / 1e6, "p99",
        (double)ll_hist_quantile(hist, 0.99) / 1e6, "p999",
        (double)ll_hist_quantile(hist, 0.999) / 1e6, "max", (double)atomic_load(&hist->max) / 1e6,
        "count", (json_int_t)atomic_load(&hist->count));
}

static void print_results(const struct bench *bench, double seconds)
{
    const struct bench_options *o = bench->options;
    const struct ll_client_info *info = &bench->connection->info;
    uint32_t n_good = bench->n_done - bench->n_failed;
    double output_rate = (double)bench->n_tokens / seconds;
    double total_rate = output_rate + (double)n_good * o->n_prompt / seconds;

    if (o->json) {
        json_t *object = json_pack(
            "{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o}",
            "model", info->model, "backend", info->backend, "dtype", info->dtype, "requests",
            (int)bench->n_done, "failed", (int)bench->n_failed, "prompt_tokens", (int)o->n_prompt,
            "output_tokens", (int)o->n_output, "concurrency", (int)o->n_parallel, "rate",
            (double)o->rate, "seconds", seconds, "requests_per_s", n_good / seconds,
            "output_tokens_per_s", output_rate, "total_tokens_per_s", total_rate, "ttft_ms",
            hist_json(&bench->ttft), "token_gap_ms", hist_json(&bench->gap), "request_ms",
            hist_json(&bench->total));
        json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
        putchar('\n');
        json_decref(object);
        return;
    }
    printf("%s (%s, %s): %u requests of %u + %u tokens, ", info->model, info->backend, info->dtype,
           bench->n_done, o->n_prompt, o->n_output);
    if (o->rate > 0)
        printf("%g a second, ", (double)o->rate);
    printf("at most %u in flight\n%u failed, %.2f s, %.2f requests/s, %.1f output tokens/s, "
           "%.1f tokens/s with prompts\n\n",
           o->n_parallel, bench->n_failed, seconds, n_good / seconds, output_rate, total_rate);
    printf("%-12s %10s %10s %10s %10s %10s\n", "ms", "p50", "p90", "p99", "p99.9", "max");
    print_row("first token", &bench->ttft);
    print_row("token gap", &bench->gap);
    print_row("request", &bench->total);
}

static int measure(struct bench *bench)
{
    const struct bench_options *o = bench->options;

    bench->running = calloc(o->n_parallel, sizeof(*bench->running));
    bench->prompt = calloc(o->n_prompt, sizeof(*bench->prompt));
    if (bench->running == NULL || bench->prompt == NULL)
        return terminal_fail("no memory for %u requests", o->n_parallel);
    bench->rng = o->seed;
    bench->start_ns = bench->next_ns = ll_now_ns();
    plan_arrival(bench);
    int rc = run_bench(bench);
    double seconds = (double)(ll_now_ns() - bench->start_ns) / 1e9;
    if (rc < 0)
        return terminal_fail_code(rc, NULL);
    print_results(bench, seconds);
    if (interrupts_count() > 0)
        return 128 + interrupts_last();
    if (bench->n_failed > 0) {
        terminal_fail("%u of %u requests failed; the first:", bench->n_failed, bench->n_done);
        return terminal_fail_code(bench->first_error, bench->first_text);
    }
    return EXIT_OK;
}

static int run(const struct command *command, int argc, char **argv)
{
    struct bench_options o = {
        .n_requests = 100, .n_prompt = 128, .n_output = 64, .n_parallel = 16, .seed = 1};
    struct connection connection;
    int n_operands;
    int rc = options_parse(command, argc, argv, &o, &n_operands);

    if (rc != OPTIONS_GO_ON)
        return rc;
    interrupts_catch();
    rc = connection_open(&connection, &o.connection,
                         o.n_parallel < SLOTS_MIN ? SLOTS_MIN : o.n_parallel);
    if (rc != EXIT_OK)
        return rc;
    struct bench *bench = calloc(1, sizeof(*bench));
    if (bench == NULL) {
        rc = terminal_fail("no memory");
    } else {
        bench->options = &o;
        bench->connection = &connection;
        rc = measure(bench);
        free(bench->running);
        free(bench->prompt);
        free(bench);
    }
    connection_close(&connection);
    return rc;
}

const struct command command_bench = {
    .name = "bench",
    .summary = "measure a running runtime",
    .operands = "",
    .groups = {{"Options", options, 0}, CONNECTION_GROUP(struct bench_options, connection)},
    .details = "Greedy answers of full length to random prompts. Times in ms as the application\n"
               "sees them: first token since submit (with --rate: since the request was due),\n"
               "gap between tokens, whole request.\n\n"
               "  llring bench --requests 200 --concurrency 16\n"
               "  llring bench --rate 20 --prompt-tokens 512 --json\n",
    .n_operands_max = 0,
    .run = run,
};
