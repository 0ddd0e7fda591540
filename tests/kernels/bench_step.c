/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/bench_step.c - time of a whole step through the seam, on random weights.
 *
 *   bench_step [--shape 1b|3b|8b|70b|405b] [--weights bf16|fp8] [--kv bf16|fp8] [--batch N]
 *              [--context N] [--prefill N] [--steps N] [--tp N [--shard-only]] [--extra OPTIONS]
 *              [--json]
 *
 * Decode: N rows at the given context, two steps in flight, ids fed back on the device; ms a step
 * is the median of the time between results. Prefill: one row of N tokens in chunks of the token
 * limit. Floor: bytes of weights and KV a step over the read bandwidth that tools/dev/gpu-test
 * measures. With --tp: of one of N parts; --shard-only runs that part alone, on one GPU. */
#include "base/clock.h"
#include "kernels/backend.h"

#include <dlfcn.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct named_shape {
    const char *name;
    struct ll_model_shape shape;
};

#define LLAMA(l, e, h, k, d, f, tied, factor)                                                      \
    {                                                                                              \
        .n_layers = l, .n_embd = e, .n_heads = h, .n_kv_heads = k, .head_dim = d, .n_ff = f,       \
        .n_vocab = 128256, .context_max = 131072, .is_tied = tied, .rope = LL_ROPE_LLAMA3,         \
        .rms_eps = 1e-5f, .rope_theta = 500000.0, .rope_factor = factor, .rope_low_freq = 1.0,     \
        .rope_high_freq = 4.0, .rope_original_context = 8192                                       \
    }

static const struct named_shape shapes[] = {
    {"1b", LLAMA(16, 2048, 32, 8, 64, 8192, true, 32.0)},
    {"3b", LLAMA(28, 3072, 24, 8, 128, 8192, true, 32.0)},
    {"8b", LLAMA(32, 4096, 32, 8, 128, 14336, false, 8.0)},
    {"70b", LLAMA(80, 8192, 64, 8, 128, 28672, false, 8.0)},
    {"405b", LLAMA(126, 16384, 128, 8, 128, 53248, false, 8.0)},
};

struct settings {
    struct ll_model_shape shape;
    const char *shape_name, *weights, *kv, *extra;
    uint32_t batch, context, prefill, n_steps, n_tokens_max, tp;
    float temperature;
    int is_json, is_shard;
};

static int fail(const char *what, long long rc, const struct ll_text *error)
{
    fprintf(stderr, "bench_step: %s: %lld %s\n", what, rc, error->s);
    return 1;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static const struct ll_backend *open_backend(void)
{
    void *module = dlopen(LL_BUILD_DIR "/llring-cuda.so", RTLD_NOW | RTLD_LOCAL);

    if (module == NULL) {
        fprintf(stderr, "bench_step: %s\n", dlerror());
        return NULL;
    }
    const struct ll_backend *(*get)(void);
    *(void **)&get = dlsym(module, "ll_backend_cuda");
    return get != NULL ? get() : NULL;
}

/* Bytes a decode step must read on a GPU: every weight once, every cached token once. */
static double floor_bytes(const struct settings *s)
{
    const struct ll_model_shape *m = &s->shape;
    const double q = (double)m->n_heads * m->head_dim, kv = (double)m->n_kv_heads * m->head_dim;
    const double linear =
        m->n_layers * (2.0 * q * m->n_embd + 2.0 * kv * m->n_embd + 3.0 * m->n_ff * m->n_embd);
    const double weight = strcmp(s->weights, "fp8") == 0 ? 1 : 2;
    const double cache = strcmp(s->kv, "fp8") == 0 ? 1 : 2;

    const double n_kv_held = m->n_kv_heads >= s->tp ? 1.0 / s->tp : 1.0 / m->n_kv_heads;

    return (linear * weight + (double)m->n_vocab * m->n_embd * 2) / s->tp +
           (double)s->batch * s->context * m->n_layers * 2 * kv * cache * n_kv_held;
}

static int wait_for(const struct ll_backend *b, struct ll_device *d, int64_t ticket,
                    struct ll_result *out, struct ll_text *error)
{
    int rc;

    do
        rc = b->poll(d, ticket, out, error);
    while (rc == 0);
    return rc;
}

/* Computes the context of every row from random ids, a chunk of n_tokens_max at a time, so that the
 * pages hold what a prompt leaves there. */
static int fill_context(const struct ll_backend *b, struct ll_device *d, const struct settings *s,
                        const struct ll_slot_init *inits, const struct ll_pages_set *sets,
                        struct ll_text *error)
{
    uint32_t *ids = calloc(s->context, sizeof(*ids));
    struct ll_result result;
    int rc = 0;

    for (uint32_t row = 0; row < s->batch && rc >= 0; row++) {
        for (uint32_t i = 0; i < s->context; i++)
            ids[i] = ((i + row * 7919u) * 2654435761u) % s->shape.n_vocab;
        for (uint32_t at = 0; at < s->context && rc >= 0; at += s->n_tokens_max) {
            const uint32_t n =
                s->context - at < s->n_tokens_max ? s->context - at : s->n_tokens_max;
            const struct ll_row r = {.slot = row, .pos = at, .n_tokens = n, .token = ids + at};
            const struct ll_batch batch = {.n_inits = at == 0,
                                           .n_pages_sets = at == 0,
                                           .n_rows = 1,
                                           .inits = &inits[row],
                                           .pages = &sets[row],
                                           .rows = &r};
            int64_t ticket = b->submit(d, &batch, error);
            rc = ticket < 0 ? (int)ticket : wait_for(b, d, ticket, &result, error);
        }
    }
    free(ids);
    return rc;
}

static int decode(const struct ll_backend *b, struct ll_device *d, const struct settings *s)
{
    const uint32_t per_seq = (s->context + s->n_steps + 16) / LL_PAGE_TOKENS + 2;
    struct ll_slot_init *inits = calloc(s->batch, sizeof(*inits));
    struct ll_pages_set *sets = calloc(s->batch, sizeof(*sets));
    struct ll_row *rows = calloc(s->batch, sizeof(*rows));
    uint32_t *pages = calloc((size_t)s->batch * per_seq, sizeof(*pages));
    double *gap_ms = calloc(s->n_steps, sizeof(*gap_ms)),
           *host_us = calloc(s->n_steps, sizeof(*host_us));
    double *device_ms = calloc(s->n_steps, sizeof(*device_ms));
    uint32_t first_id = 17;
    struct ll_text error = {""};
    struct ll_result result;
    int rc = 1;

    for (uint32_t i = 0; i < s->batch; i++) {
        for (uint32_t p = 0; p < per_seq; p++)
            pages[(size_t)i * per_seq + p] = i * per_seq + p;
        inits[i] = (struct ll_slot_init){
            .slot = i,
            .n_prompt = s->context,
            .n_hist = 1,
            .hist = &first_id,
            .seed = i,
            .s = {.top_p = 1, .repetition = 1, .temperature = s->temperature}};
        sets[i] = (struct ll_pages_set){i, 0, per_seq, pages + (size_t)i * per_seq};
        rows[i] = (struct ll_row){.slot = i,
                                  .pos = s->context,
                                  .n_tokens = 1,
                                  .token = &first_id,
                                  .flags = LL_ROW_SAMPLE};
    }
    struct ll_batch batch = {.n_inits = s->batch,
                             .n_pages_sets = s->batch,
                             .n_rows = s->batch,
                             .inits = inits,
                             .pages = sets,
                             .rows = rows};
    if ((rc = fill_context(b, d, s, inits, sets, &error)) < 0) {
        rc = fail("context", rc, &error);
        goto free_all;
    }
    int64_t ticket = b->submit(d, &batch, &error);
    if (ticket < 0) {
        rc = fail("submit", ticket, &error);
        goto free_all;
    }
    batch.n_inits = batch.n_pages_sets = 0;
    uint64_t last_ns = 0;
    for (uint32_t step = 0; step < s->n_steps; step++) {
        for (uint32_t i = 0; i < s->batch; i++) {
            rows[i].pos++;
            rows[i].token = NULL;
        }
        uint64_t from_ns = ll_now_ns();
        int64_t next = b->submit(d, &batch, &error);
        host_us[step] = (double)(ll_now_ns() - from_ns) / 1e3;
        if (next < 0) {
            rc = fail("submit", next, &error);
            goto free_all;
        }
        if ((rc = wait_for(b, d, ticket, &result, &error)) < 0) {
            rc = fail("poll", rc, &error);
            goto free_all;
        }
        uint64_t now_ns = ll_now_ns();
        gap_ms[step] = last_ns != 0 ? (double)(now_ns - last_ns) / 1e6 : 0;
        device_ms[step] = (double)result.device_ns / 1e6;
        if (result.rows[0].status != LL_ROW_OK) {
            fprintf(stderr, "bench_step: step %u row 0 is not finite\n", step);
            rc = 1;
            goto free_all;
        }
        last_ns = now_ns;
        ticket = next;
    }
    wait_for(b, d, ticket, &result, &error);
    const uint32_t skip = s->n_steps / 4, n = s->n_steps - skip;
    qsort(gap_ms + skip, n, sizeof(double), compare);
    qsort(host_us + skip, n, sizeof(double), compare);
    qsort(device_ms + skip, n, sizeof(double), compare);
    const double median = gap_ms[skip + n / 2], bytes = floor_bytes(s);
    printf(
        s->is_json
            ? "{\"shape\": \"%s\", \"tp\": %u, \"weights\": \"%s\", \"kv\": \"%s\", \"batch\": %u, "
              "\"context\": %u, "
              "\"step_ms\": %.4f, \"step_ms_p99\": %.4f, \"device_ms\": %.4f, \"submit_us\": %.1f, "
              "\"submit_us_p99\": %.1f, \"read_gb_s\": %.0f}\n"
            : "%-4s tp %u weights %-4s kv %-4s batch %3u context %6u: %8.3f ms (p99 %.3f, device "
              "%.3f), "
              "submit %.1f us (p99 %.1f), %.0f GB/s\n",
        s->shape_name, s->tp, s->weights, s->kv, s->batch, s->context, median,
        gap_ms[skip + n * 99 / 100], device_ms[skip + n / 2], host_us[skip + n / 2],
        host_us[skip + n * 99 / 100], bytes / median / 1e6);
    rc = 0;
free_all:
    free(inits);
    free(sets);
    free(rows);
    free(pages);
    free(gap_ms);
    free(host_us);
    free(device_ms);
    return rc;
}

static int prefill(const struct ll_backend *b, struct ll_device *d, const struct settings *s)
{
    const uint32_t n_pages = s->prefill / LL_PAGE_TOKENS + 2;
    uint32_t *ids = calloc(s->prefill + 1, sizeof(*ids)), *pages = calloc(n_pages, sizeof(*pages));
    struct ll_text error = {""};
    struct ll_result result;
    double best_ms = 1e30;
    int rc = 0;

    for (uint32_t i = 0; i < s->prefill; i++)
        ids[i] = (i * 2654435761u) % s->shape.n_vocab;
    for (uint32_t i = 0; i < n_pages; i++)
        pages[i] = i;
    for (uint32_t run = 0; run < 4 && rc == 0; run++) {
        const struct ll_slot_init init = {.slot = 0,
                                          .n_prompt = s->prefill,
                                          .n_hist = s->prefill,
                                          .hist = ids,
                                          .s = {.top_p = 1, .repetition = 1}};
        const struct ll_pages_set set = {0, 0, n_pages, pages};
        uint64_t from_ns = ll_now_ns();
        int64_t last = 0;
        for (uint32_t at = 0; at < s->prefill && rc == 0; at += s->n_tokens_max) {
            const uint32_t n =
                s->prefill - at < s->n_tokens_max ? s->prefill - at : s->n_tokens_max;
            const struct ll_row row = {.slot = 0,
                                       .pos = at,
                                       .n_tokens = n,
                                       .token = ids + at,
                                       .flags = at + n == s->prefill ? LL_ROW_SAMPLE : 0};
            const struct ll_batch batch = {.n_inits = at == 0,
                                           .n_pages_sets = at == 0,
                                           .n_rows = 1,
                                           .inits = &init,
                                           .pages = &set,
                                           .rows = &row};
            int64_t ticket;
            while ((ticket = b->submit(d, &batch, &error)) == -1001)
                wait_for(b, d, last, &result, &error);
            if (ticket < 0)
                rc = fail("submit", ticket, &error);
            if (last > 0 && rc == 0 && wait_for(b, d, last, &result, &error) < 0)
                rc = fail("poll", -1, &error);
            last = ticket;
        }
        if (rc == 0 && wait_for(b, d, last, &result, &error) < 0)
            rc = fail("poll", -1, &error);
        double ms = (double)(ll_now_ns() - from_ns) / 1e6;
        if (run > 0 && ms < best_ms)
            best_ms = ms;
    }
    if (rc == 0 && s->is_json)
        printf("{\"shape\": \"%s\", \"tp\": %u, \"weights\": \"%s\", \"kv\": \"%s\", "
               "\"prefill\": %u, \"chunk\": %u, \"ms\": %.3f, \"tok_s\": %.0f}\n",
               s->shape_name, s->tp, s->weights, s->kv, s->prefill, s->n_tokens_max, best_ms,
               s->prefill / best_ms * 1e3);
    else if (rc == 0)
        printf("%-4s tp %u weights %-4s kv %-4s prefill %6u: %8.3f ms, %.0f tok/s\n", s->shape_name,
               s->tp, s->weights, s->kv, s->prefill, best_ms, s->prefill / best_ms * 1e3);
    free(ids);
    free(pages);
    return rc;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"shape", 1, 0, 's'},       {"weights", 1, 0, 'w'},
                                            {"kv", 1, 0, 'k'},          {"batch", 1, 0, 'b'},
                                            {"context", 1, 0, 'c'},     {"prefill", 1, 0, 'p'},
                                            {"steps", 1, 0, 'n'},       {"tokens", 1, 0, 't'},
                                            {"temperature", 1, 0, 'T'}, {"extra", 1, 0, 'x'},
                                            {"json", 0, 0, 'j'},        {"tp", 1, 0, 'P'},
                                            {"shard-only", 0, 0, 'S'},  {0}};
    struct settings s = {.shape_name = "1b",
                         .weights = "bf16",
                         .kv = "bf16",
                         .batch = 1,
                         .context = 1024,
                         .n_steps = 120,
                         .n_tokens_max = 8192,
                         .tp = 1};

    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (c) {
        case 's':
            s.shape_name = optarg;
            break;
        case 'w':
            s.weights = optarg;
            break;
        case 'k':
            s.kv = optarg;
            break;
        case 'b':
            s.batch = (uint32_t)atoi(optarg);
            break;
        case 'c':
            s.context = (uint32_t)atoi(optarg);
            break;
        case 'p':
            s.prefill = (uint32_t)atoi(optarg);
            break;
        case 'n':
            s.n_steps = (uint32_t)atoi(optarg);
            break;
        case 't':
            s.n_tokens_max = (uint32_t)atoi(optarg);
            break;
        case 'T':
            s.temperature = (float)atof(optarg);
            break;
        case 'x':
            s.extra = optarg;
            break;
        case 'j':
            s.is_json = 1;
            break;
        case 'P':
            s.tp = (uint32_t)atoi(optarg);
            break;
        case 'S':
            s.is_shard = 1;
            break;
        default:
            return 2;
        }
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        if (strcmp(shapes[i].name, s.shape_name) == 0)
            s.shape = shapes[i].shape;
    if (s.shape.n_layers == 0 || s.batch == 0 || s.n_steps < 8 || s.tp == 0) {
        fprintf(stderr, "bench_step: --shape 1b|3b|8b|70b|405b, --batch >= 1, --steps >= 8\n");
        return 2;
    }
    const struct ll_backend *b = open_backend();
    if (b == NULL)
        return 77;
    const uint32_t longest =
        s.context + s.n_steps + 64 > s.prefill ? s.context + s.n_steps + 64 : s.prefill;
    const uint32_t per_seq = longest / LL_PAGE_TOKENS + 4;
    char extra[128];
    snprintf(extra, sizeof(extra), "%s,%s,%s", strcmp(s.weights, "fp8") == 0 ? "weights=fp8" : "",
             s.is_shard ? "tp=shard" : "", s.extra != NULL ? s.extra : "");
    const struct ll_backend_options o = {.struct_bytes = sizeof(o),
                                         .n_slots = s.batch,
                                         .n_pages = per_seq * s.batch + 8,
                                         .n_tokens_max = s.n_tokens_max,
                                         .n_rows_max = s.batch < 16 ? 16 : s.batch,
                                         .pages_per_seq = per_seq,
                                         .tensor_parallel = s.tp,
                                         .n_weights = 1,
                                         .dtype = LL_DTYPE_BF16,
                                         .kv_dtype = strcmp(s.kv, "fp8") == 0 ? LL_DTYPE_E4M3
                                                                              : LL_DTYPE_BF16,
                                         .numa_node = -1,
                                         .has_dummy_weights = true,
                                         .seed = 1,
                                         .extra = extra};
    struct ll_backend_caps caps;
    struct ll_device *d;
    struct ll_text error = {""};
    uint64_t from_ns = ll_now_ns();
    int rc = b->open(&d, &o, &s.shape, &caps, &error);
    if (rc < 0)
        return fail("open", rc, &error);
    if ((rc = b->seal(d, 0, &error)) < 0) {
        b->close(d);
        return fail("seal", rc, &error);
    }
    fprintf(stderr, "%s, ready in %.1f s\n", caps.device, (double)(ll_now_ns() - from_ns) / 1e9);
    rc = s.prefill > 0 ? prefill(b, d, &s) : decode(b, d, &s);
    b->close(d);
    return rc;
}
