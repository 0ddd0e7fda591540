/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/bench_sched.c - host work of a step at 256 running and 1,000 waiting requests: each
 * call of the loop apart, at its worst.
 *
 *     bench_sched [--json] [--steps N] [--replays K] [--polls N] [--load NAME]
 *                 [--device fake|none]
 *
 * A load is played K times from the same seed and is the same each time (a hash over all events
 * must agree), so the least of K times of a step is that step without the interruptions of the
 * machine; p50, p99 and max are over the steps. "raw" is the longest single time seen,
 * interruptions and all. The fake device's own submit and poll are left out, as are the clients,
 * who share the thread: their lines are near, the device's memory is in the way.
 *
 *   critical  plan + batch + apply + outlet of a step: what a device may wait for. What the outlet
 *             does in turns between (ends of what was cancelled meanwhile) is in the next two
 *   host      everything the loop did for a step, all its turns: also intake, prepare, wake, rest
 *   turn      the longest turn of a step: so late may an arrival or a result be seen
 *
 * Goal: critical <= 30 us as a maximum; no allocation once the engine is open. */
#include "tests/runtime/bench_sched.h"
#include "tests/runtime/count_alloc.h"

#define N_RUNNING 256u
#define N_OPEN    (N_RUNNING + 1000u)
#define N_PAGES   28672u /* KV of an 8B in FP8 on an H200: 120 GB of 4 MiB a page */
#define N_LONG    131000u

static const struct load loads[] = {
    {.name = "decode",
     .n_clients = 8,
     .n_open = N_OPEN,
     .n_prompt = 1024,
     .max_low = 12000,
     .max_high = 12000,
     .n_pages = 2 * N_PAGES,
     .n_warm = 300},
    {.name = "arrivals",
     .n_clients = 8,
     .n_open = N_OPEN,
     .n_prompt = 512,
     .max_low = 100,
     .max_high = 200,
     .n_pages = 2 * N_PAGES,
     .n_warm = 300},
    {.name = "128k-prompt",
     .n_clients = 8,
     .n_open = N_OPEN,
     .n_prompt = 512,
     .max_low = 100,
     .max_high = 200,
     .n_long = N_LONG,
     .n_pages = 3 * N_PAGES,
     .n_warm = 300},
    {.name = "full-cache",
     .n_clients = 8,
     .n_open = N_OPEN,
     .n_prompt = 2048,
     .n_shared = 1536,
     .max_low = 100,
     .max_high = 200,
     .n_pages = 10000,
     .n_warm = 1500},
    {.name = "128k+full-cache",
     .n_clients = 8,
     .n_open = N_OPEN,
     .n_prompt = 512,
     .n_shared = 128,
     .max_low = 100,
     .max_high = 200,
     .n_long = N_LONG,
     .n_pages = 10000,
     .n_warm = 1500},
    {.name = "cancels",
     .n_clients = 8,
     .n_open = N_OPEN,
     .n_prompt = 512,
     .max_low = 100,
     .max_high = 200,
     .n_pages = N_PAGES,
     .n_warm = 300,
     .n_cancel = 4,
     .cancel_every = 1,
     .n_burst = 400,
     .burst_every = 50},
    {.name = "all-at-once",
     .n_clients = 8,
     .n_open = N_OPEN,
     .n_prompt = 8,
     .max_low = 100,
     .max_high = 100,
     .n_pages = N_PAGES,
     .n_warm = 300},
    {.name = "flood",
     .n_clients = 8,
     .n_open = N_OPEN,
     .n_flood = 1032,
     .n_prompt = 512,
     .max_low = 100,
     .max_high = 200,
     .n_pages = N_PAGES,
     .n_warm = 300},
    {.name = "many-tenants",
     .n_clients = 8,
     .n_open = N_OPEN,
     .n_tenants = 1000,
     .n_prompt = 512,
     .max_low = 100,
     .max_high = 200,
     .n_pages = N_PAGES,
     .n_warm = 300},
};

enum figure { CRITICAL = N_CALLS, HOST, TURN, N_FIGURES };

static const char *const figure_name[] = {
    [CRITICAL] = "critical", [HOST] = "host", [TURN] = "turn"};

struct options {
    bool is_json;
    uint32_t n_steps, n_replays, n_polls;
    const char *load;
};

struct outcome {
    uint64_t *least[N_FIGURES]; /* [n_steps] ticks */
    uint64_t raw[N_FIGURES];
    uint64_t hash, n_allocations;
    uint64_t n_rows, n_tokens, n_taken, n_ended, n_cached, n_events, n_indexed;
};

static struct world world; /* large */
static double ns_a_tick;
static uint64_t clock_ticks; /* a pair of readings */

static void calibrate(void)
{
    uint64_t begin_ns = ll_now_ns(), begin = ticks(), end_ns;

    do
        end_ns = ll_now_ns();
    while (end_ns - begin_ns < 20 * LL_NS_PER_MS);
    ns_a_tick = (double)(end_ns - begin_ns) / (double)(ticks() - begin);
    clock_ticks = UINT64_MAX;
    for (int i = 0; i < 1000; i++) {
        uint64_t a = ticks(), b = ticks();
        clock_ticks = ll_min_u64(clock_ticks, b - a);
    }
}

/* One turn; adds what it took to figures of the step. true: a step ended. */
static bool turn(struct world *w, uint64_t *figure)
{
    uint64_t n_steps = WORLD_STAT(w, steps), all;

    memset(lap, 0, sizeof(lap));
    n_laps = 0;
    uint64_t begin = ticks();
    int rc = ll_engine_turn(&w->engine);
    all = ticks() - begin;
    if (rc < 0) {
        fprintf(stderr, "the engine failed: %d\n", rc);
        exit(1);
    }
    all -= lap[DEVICE];
    all -= ll_min_u64(all, (2 * n_laps + 1) * clock_ticks);
    w->now_ns += TURN_NS;
    for (uint32_t i = 0; i < N_CALLS; i++)
        figure[i] += lap[i] - ll_min_u64(lap[i], clock_ticks);
    figure[HOST] += all;
    figure[TURN] = ll_max_u64(figure[TURN], all);
    bool has_stepped = WORLD_STAT(w, steps) != n_steps;
    for (uint32_t i = PLAN; i <= OUTLET; i++)
        if (i != OUTLET || has_stepped)
            figure[CRITICAL] += lap[i] - ll_min_u64(lap[i], clock_ticks);
    return has_stepped;
}

static void between_turns(struct world *w, bool has_stepped, uint64_t step)
{
    const struct load *load = w->load;

    read_all(w);
    keep_open(w);
    if (!has_stepped)
        return;
    if (load->n_cancel > 0 && step % load->cancel_every == 0)
        cancel_some(w, load->n_cancel);
    if (load->n_burst > 0 && step % load->burst_every == 0)
        cancel_some(w, load->n_burst);
}

static void play(const struct load *load, const struct options *o, struct outcome *out,
                 bool is_first)
{
    struct world *w = &world;
    uint64_t figure[N_FIGURES] = {0};
    uint32_t n_turns = 0;

    world_open(w, load, N_RUNNING, o->n_polls);
    uint64_t allocations_before = n_allocations;
    const struct ll_seq_list *list = w->engine.pool.list;
    for (uint64_t step = 0; list[LL_SEQ_RUNNING].n < N_RUNNING - 1 || step < load->n_warm;) {
        bool has_stepped = turn(w, figure);
        step += has_stepped;
        between_turns(w, has_stepped, step);
        if (++n_turns > 1000000) {
            fprintf(stderr, "%s: %u run of %u\n", load->name, list[LL_SEQ_RUNNING].n, N_RUNNING);
            exit(1);
        }
    }
    const struct ll_stats *v = &w->stat->v;
    out->n_rows = ll_stat_get(&v->batch_rows.sum);
    out->n_tokens = ll_stat_get(&v->batch_tokens.sum);
    out->n_taken = WORLD_STAT(w, requests_accepted);
    out->n_ended = WORLD_STAT(w, requests_finished) + WORLD_STAT(w, requests_cancelled);
    out->n_cached = WORLD_STAT(w, prompt_tokens_cached);
    out->n_events = WORLD_STAT(w, events_written);
    memset(figure, 0, sizeof(figure));
    for (uint32_t step = 0; step < o->n_steps;) {
        bool has_stepped = turn(w, figure);
        between_turns(w, has_stepped, step);
        if (!has_stepped)
            continue;
        for (uint32_t i = 0; i < N_FIGURES; i++) {
            out->raw[i] = ll_max_u64(out->raw[i], figure[i]);
            out->least[i][step] = is_first ? figure[i] : ll_min_u64(out->least[i][step], figure[i]);
        }
        memset(figure, 0, sizeof(figure));
        step++;
    }
    out->n_allocations += n_allocations - allocations_before;
    out->n_rows = ll_stat_get(&v->batch_rows.sum) - out->n_rows;
    out->n_tokens = ll_stat_get(&v->batch_tokens.sum) - out->n_tokens;
    out->n_taken = WORLD_STAT(w, requests_accepted) - out->n_taken;
    out->n_ended =
        WORLD_STAT(w, requests_finished) + WORLD_STAT(w, requests_cancelled) - out->n_ended;
    out->n_cached = WORLD_STAT(w, prompt_tokens_cached) - out->n_cached;
    out->n_events = WORLD_STAT(w, events_written) - out->n_events;
    out->n_indexed = w->engine.kv.index.n_indexed;
    ll_engine_check(&w->engine);
    if (!is_first && w->hash != out->hash) {
        fprintf(stderr, "%s: a replay went another way\n", load->name);
        exit(1);
    }
    out->hash = w->hash;
    world_close(w);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static double at(const uint64_t *sorted, uint32_t n, double q)
{
    return (double)sorted[(uint32_t)(q * (n - 1) + 0.5)] * ns_a_tick / 1e3;
}

static void print_text(const struct load *load, const struct options *o, const struct outcome *out)
{
    double n = o->n_steps;

    printf("%-16s %5.1f rows, %6.1f tokens, %4.2f requests taken, %4.2f ended, %5.1f events, "
           "%6.1f cached tokens a step; %llu pages in the index; %llu allocations\n",
           load->name, (double)out->n_rows / n, (double)out->n_tokens / n, (double)out->n_taken / n,
           (double)out->n_ended / n, (double)out->n_events / n, (double)out->n_cached / n,
           (unsigned long long)out->n_indexed, (unsigned long long)out->n_allocations);
    for (uint32_t k = 0; k < N_FIGURES; k++) {
        uint32_t i = k < 3 ? CRITICAL + k : k - 3;
        printf("  %-9s %8.2f %8.2f %8.2f %8.2f %10.2f\n",
               i < N_CALLS ? call_name[i] : figure_name[i], at(out->least[i], o->n_steps, 0.5),
               at(out->least[i], o->n_steps, 0.99), at(out->least[i], o->n_steps, 0.999),
               at(out->least[i], o->n_steps, 1), (double)out->raw[i] * ns_a_tick / 1e3);
    }
}

static void print_json(const struct load *load, const struct options *o, const struct outcome *out,
                       bool is_first)
{
    printf("%s{\"load\":\"%s\",\"steps\":%u,\"replays\":%u,\"rows\":%llu,\"tokens\":%llu,"
           "\"taken\":%llu,\"ended\":%llu,\"events\":%llu,\"cached\":%llu,\"allocations\":%llu",
           is_first ? "[" : ",\n ", load->name, o->n_steps, o->n_replays,
           (unsigned long long)out->n_rows, (unsigned long long)out->n_tokens,
           (unsigned long long)out->n_taken, (unsigned long long)out->n_ended,
           (unsigned long long)out->n_events, (unsigned long long)out->n_cached,
           (unsigned long long)out->n_allocations);
    for (uint32_t i = 0; i < N_FIGURES; i++)
        printf(",\"%s_us\":{\"p50\":%.3f,\"p99\":%.3f,\"max\":%.3f,\"raw\":%.3f}",
               i < N_CALLS ? call_name[i] : figure_name[i], at(out->least[i], o->n_steps, 0.5),
               at(out->least[i], o->n_steps, 0.99), at(out->least[i], o->n_steps, 1),
               (double)out->raw[i] * ns_a_tick / 1e3);
    printf("}");
}

static void measure(const struct load *load, const struct options *o, bool is_first)
{
    struct outcome out = {0};

    for (uint32_t i = 0; i < N_FIGURES; i++)
        out.least[i] = calloc(o->n_steps, sizeof(uint64_t));
    for (uint32_t i = 0; i < o->n_replays; i++)
        play(load, o, &out, i == 0);
    for (uint32_t i = 0; i < N_FIGURES; i++)
        qsort(out.least[i], o->n_steps, sizeof(uint64_t), compare);
    if (o->is_json)
        print_json(load, o, &out, is_first);
    else
        print_text(load, o, &out);
    fflush(stdout);
    for (uint32_t i = 0; i < N_FIGURES; i++)
        free(out.least[i]);
}

static bool read_options(int argc, char **argv, struct options *o)
{
    for (int i = 1; i < argc; i++) {
        bool has_value = i + 1 < argc;
        uint32_t *number = strcmp(argv[i], "--steps") == 0     ? &o->n_steps
                           : strcmp(argv[i], "--replays") == 0 ? &o->n_replays
                           : strcmp(argv[i], "--polls") == 0   ? &o->n_polls
                                                               : NULL;
        if (strcmp(argv[i], "--json") == 0)
            o->is_json = true;
        else if (number != NULL && has_value && atoi(argv[i + 1]) > 0)
            *number = (uint32_t)atoi(argv[++i]);
        else if (strcmp(argv[i], "--device") == 0 && has_value && strcmp(argv[i + 1], "none") == 0)
            has_no_device = argv[++i] != NULL;
        else if (strcmp(argv[i], "--device") == 0 && has_value && strcmp(argv[i + 1], "fake") == 0)
            i++;
        else if (strcmp(argv[i], "--load") == 0 && has_value)
            o->load = argv[++i];
        else
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct options o = {.n_steps = 1000, .n_replays = 10, .n_polls = 4};
    bool is_first = true;

    if (!read_options(argc, argv, &o)) {
        fprintf(stderr, "usage: bench_sched [--json] [--steps N] [--replays N] [--polls N] "
                        "[--load NAME] [--device fake|none], numbers above 0\n");
        return 2;
    }
    calibrate();
    if (!o.is_json)
        printf("host work per step, %u running, %u waiting; %u steps, least of %u replays of each; "
               "us\n(reading the clock twice: %.0f ns, taken off)\n  %-9s %8s %8s %8s %8s %10s\n",
               N_RUNNING, N_OPEN - N_RUNNING, o.n_steps, o.n_replays,
               (double)clock_ticks * ns_a_tick, "", "p50", "p99", "p99.9", "max", "raw max");
    for (size_t i = 0; i < LL_COUNT(loads); i++) {
        if (o.load != NULL && strcmp(o.load, loads[i].name) != 0)
            continue;
        measure(&loads[i], &o, is_first);
        is_first = false;
    }
    if (is_first) {
        fprintf(stderr, "no such load: %s\n", o.load);
        return 2;
    }
    if (o.is_json)
        printf("]\n");
    return 0;
}
