/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/bench_cpu.c - tokens a second of the CPU backend beside what the machine allows.
 *
 * In the same run, with the same number of threads: how fast memory is read (a buffer of the size
 * of the model's weights, so that a small model is held against the cache it lives in) and how
 * many fp32 multiply-adds a second there are. The floor of a style is
 *   decode    the larger of (bytes of weights) / bandwidth and operations / limit
 *   prefill   operations / limit
 * and the table says which share of that floor's rate was reached. The best of several rounds
 * counts: the machine may be shared.
 *
 * --cpu-time counts this process's CPU time and runs one thread only: figures from a machine that
 * others load, too.
 *
 * Usage: bench_cpu [--json] [--rounds N] [--cpu-time] */
#include "base/clock.h"
#include "tests/kernels/demo.h"

#include <pthread.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { THREADS_MAX = 2 };

static int n_rounds = 3;
static bool is_json, is_cpu_time, has_printed;

/* ---- the machine --------------------------------------------------------------------------------
 */
struct probe {
    const char *base;
    size_t bytes;
    double seconds;
    uint64_t sum;
};

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t read_all(const char *base, size_t bytes)
{
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;

    for (size_t i = 0; i + 128 <= bytes; i += 128) {
        const __m256i *p = (const __m256i *)(base + i);
        s0 = _mm256_xor_si256(s0, _mm256_load_si256(p));
        s1 = _mm256_xor_si256(s1, _mm256_load_si256(p + 1));
        s2 = _mm256_xor_si256(s2, _mm256_load_si256(p + 2));
        s3 = _mm256_xor_si256(s3, _mm256_load_si256(p + 3));
    }
    s0 = _mm256_xor_si256(_mm256_xor_si256(s0, s1), _mm256_xor_si256(s2, s3));
    return (uint64_t)_mm256_extract_epi64(s0, 0) ^ (uint64_t)_mm256_extract_epi64(s0, 3);
}

__attribute__((target("avx2,fma"))) static float multiply_add(uint64_t turns)
{
    const __m256 a = _mm256_set1_ps(0.999999f), b = _mm256_set1_ps(1e-6f);
    __m256 s[12];

    for (int i = 0; i < 12; i++)
        s[i] = _mm256_set1_ps((float)i);
    for (uint64_t t = 0; t < turns; t++) {
        /* Twelve chains: latency 4, two a cycle. */
        s[0] = _mm256_fmadd_ps(s[0], a, b), s[1] = _mm256_fmadd_ps(s[1], a, b);
        s[2] = _mm256_fmadd_ps(s[2], a, b), s[3] = _mm256_fmadd_ps(s[3], a, b);
        s[4] = _mm256_fmadd_ps(s[4], a, b), s[5] = _mm256_fmadd_ps(s[5], a, b);
        s[6] = _mm256_fmadd_ps(s[6], a, b), s[7] = _mm256_fmadd_ps(s[7], a, b);
        s[8] = _mm256_fmadd_ps(s[8], a, b), s[9] = _mm256_fmadd_ps(s[9], a, b);
        s[10] = _mm256_fmadd_ps(s[10], a, b), s[11] = _mm256_fmadd_ps(s[11], a, b);
    }
    for (int i = 1; i < 12; i++)
        s[0] = _mm256_add_ps(s[0], s[i]);
    return _mm_cvtss_f32(_mm256_castps256_ps128(s[0]));
}
enum { FLOP_A_TURN = 12 * 8 * 2 };
#else
static uint64_t read_all(const char *base, size_t bytes)
{
    uint64_t sum = 0;

    for (size_t i = 0; i + 8 <= bytes; i += 8)
        sum ^= *(const uint64_t *)(base + i);
    return sum;
}

static float multiply_add(uint64_t turns)
{
    float s[8] = {0, 1, 2, 3, 4, 5, 6, 7};

    for (uint64_t t = 0; t < turns; t++)
        for (int i = 0; i < 8; i++)
            s[i] = __builtin_fmaf(s[i], 0.999999f, 1e-6f);
    return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}
enum { FLOP_A_TURN = 8 * 2 };
#endif

static uint64_t clock_ns(void)
{
    struct timespec t;

    clock_gettime(is_cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * LL_NS_PER_S + (uint64_t)t.tv_nsec;
}

static double seconds_since(uint64_t start_ns)
{
    return (double)(clock_ns() - start_ns) * 1e-9;
}

static void *probe_read(void *argument)
{
    struct probe *p = argument;
    const int n_passes = (int)((256u << 20) / p->bytes) + 1;

    p->sum = read_all(p->base, p->bytes);
    uint64_t start = clock_ns();
    for (int i = 0; i < n_passes; i++)
        p->sum += read_all(p->base, p->bytes);
    p->seconds = seconds_since(start) / n_passes;
    return NULL;
}

static void *probe_flop(void *argument)
{
    struct probe *p = argument;
    const uint64_t turns = 4000000;
    uint64_t start = clock_ns();

    p->sum = multiply_add(turns) > 0;
    p->seconds = seconds_since(start) / (double)turns;
    return NULL;
}

/* Sum over threads of amount / seconds; the best round. */
static double measure(void *(*probe)(void *), const char *base, size_t bytes, double amount,
                      int n_threads)
{
    double best = 0;

    for (int round = 0; round < n_rounds; round++) {
        struct probe p[THREADS_MAX];
        pthread_t thread[THREADS_MAX];
        double rate = 0;
        for (int i = 0; i < n_threads; i++) {
            size_t part = bytes / (size_t)n_threads & ~(size_t)127;
            p[i] = (struct probe){.base = base + (size_t)i * part, .bytes = part};
            pthread_create(&thread[i], NULL, probe, &p[i]);
        }
        for (int i = 0; i < n_threads; i++) {
            pthread_join(thread[i], NULL);
            rate += amount / n_threads / p[i].seconds;
        }
        best = rate > best ? rate : best;
    }
    return best;
}

/* ---- the backend --------------------------------------------------------------------------------
 */
struct model {
    const char *name;
    struct ll_model_shape shape;
    bool is_dummy, is_fp8;
    uint32_t prefill, context, n_decodes; /* tokens: sized so that a round takes about a second */
};

static double linear_params(const struct ll_model_shape *s)
{
    double attend = (double)s->n_embd * s->head_dim * (2.0 * s->n_heads + 2.0 * s->n_kv_heads);
    return s->n_layers * (attend + 3.0 * s->n_embd * s->n_ff);
}

static double head_params(const struct ll_model_shape *s)
{
    return (double)s->n_vocab * s->n_embd;
}

static double attend_flop(const struct ll_model_shape *s, double context)
{
    return 4.0 * s->n_layers * s->n_heads * s->head_dim * context;
}

static void start_rows(struct ll_device *device, uint32_t n_rows, uint32_t n_prompt,
                       uint32_t n_vocab)
{
    uint32_t *prompt = malloc(n_prompt * sizeof(*prompt)), page[64];

    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t i = 0; i < n_prompt; i++)
            prompt[i] = (i * 37 + r * 11 + 5) % n_vocab;
        for (uint32_t i = 0; i < 16; i++)
            page[i] = r * 16 + i;
        struct ll_slot_init init = {.slot = r,
                                    .n_prompt = n_prompt,
                                    .n_hist = n_prompt,
                                    .hist = prompt,
                                    .s = demo_greedy()};
        struct ll_pages_set pages = {.slot = r, .n = 16, .page = page};
        struct ll_row row = {
            .slot = r, .n_tokens = n_prompt, .token = prompt, .flags = LL_ROW_SAMPLE};
        struct ll_batch batch = {.n_inits = 1,
                                 .n_pages_sets = 1,
                                 .n_rows = 1,
                                 .inits = &init,
                                 .pages = &pages,
                                 .rows = &row};
        demo_run(device, &batch);
    }
    free(prompt);
}

/* Tokens a second of n_rows sequences decoding together, two steps in flight. */
static double decode_rate(struct ll_device *device, const struct model *m, uint32_t n_rows)
{
    const struct ll_backend *backend = ll_backend_cpu();
    struct ll_text error;
    struct ll_row rows[16];
    int64_t ticket[2];

    start_rows(device, n_rows, m->context, m->shape.n_vocab);
    uint64_t start = clock_ns();
    for (uint32_t i = 0; i <= m->n_decodes; i++) {
        for (uint32_t r = 0; r < n_rows && i < m->n_decodes; r++)
            rows[r] = (struct ll_row){
                .slot = r, .pos = m->context + i, .n_tokens = 1, .flags = LL_ROW_SAMPLE};
        if (i < m->n_decodes)
            ticket[i % 2] =
                backend->submit(device, &(struct ll_batch){.n_rows = n_rows, .rows = rows}, &error);
        struct ll_result r;
        while (i > 0 && backend->poll(device, ticket[(i - 1) % 2], &r, &error) == 0)
            ;
    }
    return n_rows * m->n_decodes / seconds_since(start);
}

static double prefill_rate(struct ll_device *device, const struct model *m)
{
    uint64_t start = clock_ns();

    start_rows(device, 1, m->prefill, m->shape.n_vocab);
    return m->prefill / seconds_since(start);
}

static void print_row(const char *model, const char *style, int n_threads, double rate,
                      double floor_rate, const char *bound, double bandwidth, double flop)
{
    if (is_json)
        printf(
            "%s  {\"model\": \"%s\", \"style\": \"%s\", \"threads\": %d, \"tokens_per_s\": %.1f, "
            "\"limit_tokens_per_s\": %.1f, \"limit\": \"%s\", \"read_GBps\": %.2f, "
            "\"fp32_GFLOPps\": %.1f}",
            has_printed ? ",\n" : "", model, style, n_threads, rate, floor_rate, bound,
            bandwidth * 1e-9, flop * 1e-9);
    else
        printf("| %s | %s | %d | %.0f | %.0f (%s) | %.0f %% |\n", model, style, n_threads, rate,
               floor_rate, bound, 100 * rate / floor_rate);
    has_printed = true;
}

static void bench_model(const struct model *m, int n_threads)
{
    const struct ll_model_shape *s = &m->shape;
    struct ll_backend_options options = {.n_threads = (uint32_t)n_threads,
                                         .n_slots = 16,
                                         .n_pages = 256,
                                         .pages_per_seq = 16,
                                         .dtype = LL_DTYPE_BF16,
                                         .has_dummy_weights = m->is_dummy,
                                         .extra = m->is_fp8 ? "weights=fp8" : NULL};
    struct ll_backend_caps caps;
    struct ll_device *device = demo_open(s, options, &caps);
    /* The embedding is read a row at a time; tied, it is the head. */
    const double bytes = (m->is_fp8 ? 1 : 2) * linear_params(s) + 2 * head_params(s);
    const size_t buffer_bytes = (size_t)bytes & ~(size_t)4095;
    char *buffer = aligned_alloc(4096, buffer_bytes);

    memset(buffer, 1, buffer_bytes);
    const double bandwidth =
        measure(probe_read, buffer, buffer_bytes, (double)buffer_bytes, n_threads);
    const double flop = measure(probe_flop, buffer, 0, (double)FLOP_A_TURN * n_threads, n_threads);
    free(buffer);

    for (uint32_t n_rows = 1; n_rows <= 16; n_rows *= 16) {
        double best = 0;
        for (int round = 0; round < n_rounds; round++) {
            double rate = decode_rate(device, m, n_rows);
            best = rate > best ? rate : best;
        }
        double per_token =
            2 * (linear_params(s) + head_params(s)) + attend_flop(s, m->context + m->n_decodes / 2);
        double by_memory = n_rows * bandwidth / bytes, by_flop = flop / per_token;
        print_row(m->name, n_rows == 1 ? "decode, batch 1" : "decode, batch 16", n_threads, best,
                  by_memory < by_flop ? by_memory : by_flop, by_memory < by_flop ? "read" : "FLOP",
                  bandwidth, flop);
    }
    double best = 0;
    for (int round = 0; round < n_rounds; round++) {
        double rate = prefill_rate(device, m);
        best = rate > best ? rate : best;
    }
    double per_token = 2 * linear_params(s) + attend_flop(s, m->prefill / 2.0);
    print_row(m->name, m->is_dummy ? "prefill 64" : "prefill 512", n_threads, best,
              flop / per_token, "FLOP", bandwidth, flop);
    if (!is_json)
        printf("| | %s: read %.1f GB/s, %.0f GFLOP/s | | | | |\n", caps.device, bandwidth * 1e-9,
               flop * 1e-9);
    ll_backend_cpu()->close(device);
}

int main(int argc, char **argv)
{
    struct model demo = {.name = "demo 5.8 M", .prefill = 512, .context = 128, .n_decodes = 100};
    /* One of the shape in kind of Llama 3.2 1B, three layers: too large for any cache. */
    const struct model wide = {.name = "random 0.25 G",
                               .is_dummy = true,
                               .prefill = 64,
                               .context = 8,
                               .n_decodes = 8,
                               .shape = {.n_layers = 3,
                                         .n_embd = 2048,
                                         .n_heads = 32,
                                         .n_kv_heads = 8,
                                         .head_dim = 64,
                                         .n_ff = 8192,
                                         .n_vocab = 32000,
                                         .context_max = 2048,
                                         .is_tied = true,
                                         .rms_eps = 1e-5f,
                                         .rope_theta = 500000}};

    struct model wide_fp8 = wide;
    wide_fp8.name = "the same, FP8";
    wide_fp8.is_fp8 = true;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            is_json = true;
        else if (strcmp(argv[i], "--cpu-time") == 0)
            is_cpu_time = true;
        else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc && atoi(argv[i + 1]) > 0)
            n_rounds = atoi(argv[++i]);
        else {
            fprintf(stderr, "usage: %s [--json] [--rounds N] [--cpu-time]\n", argv[0]);
            return 2;
        }
    }
    printf(is_json ? "[\n"
                   : "| model (bf16 arithmetic) | style | threads | tokens/s | limit | reached |\n"
                     "|---|---|---|---|---|---|\n");
    for (int n_threads = 1; n_threads <= (is_cpu_time ? 1 : THREADS_MAX); n_threads++) {
        if (demo_shape(&demo.shape))
            bench_model(&demo, n_threads);
        bench_model(&wide, n_threads);
        bench_model(&wide_fp8, n_threads);
    }
    if (is_json)
        printf("\n]\n");
    return 0;
}
