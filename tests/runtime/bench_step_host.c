/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/bench_step_host.c - what a step costs the host: intake, plan, batch, submit, apply,
 * outlet at 256 running sequences, on the fake backend without a step time.
 *
 *     bench_step_host [--json] [--steps N]
 *
 * Three loads: decode only; requests that come and go with prompts of 512; the same and a prompt of
 * 100,000 tokens again and again. The wait for the device is not counted, the backend's submit is
 * (and shown alone); the clients' own work is not. Goal: <= 30 us at most; on a
 * machine shared with others the maximum shows the others. */
#include "tests/runtime/rig.h"
#include "tests/runtime/count_alloc.h"

#define N_RUNNING 256u
#define N_CLIENTS 4u
#define N_LONG    100000u

static struct rig rig; /* large */
static struct ll_backend timed;
static uint64_t submit_ns, n_submits;

static int64_t timed_submit(struct ll_device *device, const struct ll_batch *batch,
                            struct ll_text *error)
{
    uint64_t begin_ns = ll_now_ns();
    int64_t ticket = ll_backend_fake()->submit(device, batch, error);

    submit_ns += ll_now_ns() - begin_ns;
    n_submits++;
    return ticket;
}

static uint64_t real_clock(void *context)
{
    (void)context;
    return ll_now_ns();
}

struct load {
    const char *name;
    uint32_t n_prompt, max_tokens; /* of those that keep the batch full */
    uint32_t n_long;               /* of one more at a time; 0: none */
};

struct outcome {
    double p50_us, p99_us, p999_us, max_us, submit_us, rows;
    uint64_t n_steps, n_requests, n_allocations;
};

static void keep_full(const struct load *load, uint64_t *seed)
{
    for (uint32_t i = 0; i < N_CLIENTS; i++)
        while (rig.client[i].n_open < N_RUNNING / N_CLIENTS) {
            struct rig_spec spec = {.n_prompt = load->n_prompt,
                                    /* Not all at once when one generation ends. */
                                    .max_tokens = load->max_tokens / 2 +
                                                  (uint32_t)(*seed % (load->max_tokens / 2 + 1)),
                                    .flags = LL_REQ_IGNORE_EOS,
                                    .seed = (*seed)++};
            rig_submit(&rig, i, &spec);
        }
}

/* One long prompt is always on its way; it yields a token and ends. */
static void keep_long(const struct load *load, int *slot)
{
    static struct rig_spec spec = {.max_tokens = 1, .flags = LL_REQ_IGNORE_EOS, .seed = 1};

    spec.n_prompt = load->n_long;
    if (*slot < 0 || !rig.client[N_CLIENTS].request[*slot].is_open)
        *slot = rig_submit(&rig, N_CLIENTS, &spec);
}

static struct outcome measure(const struct load *load, uint64_t n_steps)
{
    uint64_t seed = 1;
    int slot = -1;

    rig_open(&rig, &(struct rig_config){.extra = "verify=0",
                                        .n_pages = 20000,
                                        .n_device_slots = N_RUNNING + 1,
                                        .n_tokens_max = 2048,
                                        .context_max = load->n_long + 4096,
                                        .n_clients = N_CLIENTS + 1,
                                        .n_slots = 2 * N_RUNNING / N_CLIENTS,
                                        .log2_events = 14});
    timed = *ll_backend_fake();
    timed.submit = timed_submit;
    rig.engine.options.backend = &timed;
    rig.engine.options.clock = real_clock;

    keep_full(load, &seed);
    while (rig.engine.pool.list[LL_SEQ_RUNNING].n < N_RUNNING || RIG_STAT(&rig, steps) < 200) {
        ll_engine_turn(&rig.engine);
        for (uint32_t i = 0; i < N_CLIENTS; i++)
            rig_read(&rig, i, UINT32_MAX);
        keep_full(load, &seed);
    }
    struct ll_stats *v = &rig.stat->v;
    memset(&v->host_ns, 0, sizeof(v->host_ns));
    memset(&v->batch_rows, 0, sizeof(v->batch_rows));
    submit_ns = n_submits = 0;
    uint64_t first_step = RIG_STAT(&rig, steps), n_before = n_allocations, seed_before = seed;

    while (RIG_STAT(&rig, steps) - first_step < n_steps) {
        ll_engine_turn(&rig.engine);
        for (uint32_t i = 0; i <= N_CLIENTS; i++)
            rig_read(&rig, i, UINT32_MAX);
        keep_full(load, &seed);
        if (load->n_long > 0)
            keep_long(load, &slot);
    }
    uint64_t n_rows = ll_stat_get(&v->batch_rows.sum),
             n_batches = ll_stat_get(&v->batch_rows.count);
    struct outcome out = {
        .p50_us = ll_hist_quantile(&v->host_ns, 0.5) / 1e3,
        .p99_us = ll_hist_quantile(&v->host_ns, 0.99) / 1e3,
        .p999_us = ll_hist_quantile(&v->host_ns, 0.999) / 1e3,
        .max_us = (double)ll_stat_get(&v->host_ns.max) / 1e3,
        .submit_us = (double)submit_ns / (double)n_submits / 1e3,
        .rows = (double)n_rows / (double)n_batches,
        .n_steps = n_steps,
        .n_requests = seed - seed_before,
        .n_allocations = n_allocations - n_before,
    };
    rig_free(&rig);
    return out;
}

int main(int argc, char **argv)
{
    static const struct load loads[] = {
        {"decode", 64, 3000, 0},
        {"arrivals", 512, 200, 0},
        {"arrivals and 100k prompts", 512, 200, N_LONG},
    };
    bool is_json = false;
    uint64_t n_steps = 4000;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            is_json = true;
        } else if (strcmp(argv[i], "--steps") == 0 && i + 1 < argc && atoll(argv[i + 1]) > 0) {
            n_steps = (uint64_t)atoll(argv[++i]);
        } else {
            fprintf(stderr, "usage: bench_step_host [--json] [--steps N], N above 0\n");
            return 2;
        }
    }
    if (!is_json)
        printf("host work per step, %u sequences, %llu steps each; us\n"
               "%-26s %6s %7s %7s %7s %8s %8s %9s %6s\n",
               N_RUNNING, (unsigned long long)n_steps, "load", "rows", "p50", "p99", "p99.9", "max",
               "submit", "requests", "alloc");
    for (size_t i = 0; i < LL_COUNT(loads); i++) {
        struct outcome o = measure(&loads[i], n_steps);
        if (is_json)
            printf("%s{\"load\":\"%s\",\"rows\":%.1f,\"p50_us\":%.2f,\"p99_us\":%.2f,"
                   "\"p999_us\":%.2f,\"max_us\":%.2f,\"submit_us\":%.2f,\"steps\":%llu,"
                   "\"requests\":%llu,\"allocations\":%llu}%s\n",
                   i == 0 ? "[" : " ", loads[i].name, o.rows, o.p50_us, o.p99_us, o.p999_us,
                   o.max_us, o.submit_us, (unsigned long long)o.n_steps,
                   (unsigned long long)o.n_requests, (unsigned long long)o.n_allocations,
                   i + 1 == LL_COUNT(loads) ? "]" : ",");
        else
            printf("%-26s %6.1f %7.1f %7.1f %7.1f %8.1f %8.1f %9llu %6llu\n", loads[i].name, o.rows,
                   o.p50_us, o.p99_us, o.p999_us, o.max_us, o.submit_us,
                   (unsigned long long)o.n_requests, (unsigned long long)o.n_allocations);
        fflush(stdout);
    }
    return 0;
}
