/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/bench_ops.c - time of single CUDA operations at the 8B's shapes.
 *
 *   bench_ops [--json] [--products]    (products for up to 256 tokens alone)
 *
 * Each line: us, GB/s or TFLOP/s, and the share of a limit measured in the same run: reading
 * memory, or a large product of that type through cuBLASLt. A graph of several launches, over
 * weights and caches that take turns through far more than the L2 holds, is replayed; median of 30
 * replays. */
#include "base/clock.h"
#include "kernels/cuda/gemm_lt.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/skinny.h"
#include "kernels/cuda/skinny_wgmma.h"
#include "tests/kernels/gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { E = 4096, H = 32, K = 8, D = 128, F = 14336, V = 128256, LAUNCHES = 8, REPLAYS = 30 };
#define POOL_BYTES (4ull << 30)

typedef int (*launch_fn)(const void *args, uint32_t turn, cudaStream_t stream);

static cudaStream_t stream;
static unsigned char *pool; /* weights and pages: random bytes of modest numbers */
static double read_gb_s, bf16_tflops, fp8_tflops;
static int is_json;
static struct ll_gemm gemm;
static struct ll_text error;

static void check(cudaError_t s, const char *what)
{
    if (s != cudaSuccess) {
        fprintf(stderr, "bench_ops: %s: %s\n", what, cudaGetErrorString(s));
        exit(1);
    }
}

static void *device(size_t n_bytes, int byte)
{
    void *p;

    check(cudaMalloc(&p, n_bytes), "memory");
    check(cudaMemset(p, byte, n_bytes), "memory");
    return p;
}

static void *upload(const void *host, size_t n_bytes)
{
    void *p = device(n_bytes, 0);

    check(cudaMemcpy(p, host, n_bytes, cudaMemcpyHostToDevice), "copy");
    return p;
}

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Median time of one launch in us; 0 where it does not launch. */
static double time_launches(launch_fn launch, const void *args, uint32_t n)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t from, to;
    float ms[REPLAYS];
    int rc = 0;

    if (launch(args, 0, stream) < 0) /* outside a capture: plans are made here */
        return 0;
    check(cudaStreamSynchronize(stream), "launch");
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (uint32_t i = 0; i < n; i++)
        rc |= launch(args, i, stream);
    check(cudaStreamEndCapture(stream, &graph), "capture");
    if (rc < 0)
        return 0;
    check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    check(cudaEventCreate(&from), "event");
    check(cudaEventCreate(&to), "event");
    for (int i = -3; i < REPLAYS; i++) {
        check(cudaEventRecord(from, stream), "record");
        check(cudaGraphLaunch(exec, stream), "graph");
        check(cudaEventRecord(to, stream), "record");
        check(cudaEventSynchronize(to), "run");
        if (i >= 0)
            check(cudaEventElapsedTime(&ms[i], from, to), "time");
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    qsort(ms, REPLAYS, sizeof(ms[0]), compare);
    return (double)ms[REPLAYS / 2] * 1e3 / n;
}

static void report(const char *name, double us, double bytes, double flops, double limit_tflops)
{
    const double gb_s = us > 0 ? bytes / us / 1e3 : 0, tflops = us > 0 ? flops / us / 1e6 : 0;

    if (is_json)
        printf(
            "{\"op\": \"%s\", \"us\": %.2f, \"gb_s\": %.0f, \"of_read\": %.3f, \"tflops\": %.1f, "
            "\"of_product\": %.3f}\n",
            name, us, gb_s, gb_s / read_gb_s, tflops, limit_tflops > 0 ? tflops / limit_tflops : 0);
    else if (limit_tflops > 0)
        printf("%-44s %9.2f us %7.1f TFLOP/s %5.1f %%\n", name, us, tflops,
               100 * tflops / limit_tflops);
    else if (bytes > 0)
        printf("%-44s %9.2f us %7.0f GB/s    %5.1f %%\n", name, us, gb_s, 100 * gb_s / read_gb_s);
    else
        printf("%-44s %9.2f us\n", name, us);
}

/* The turn's part of the pool for something of n_bytes. */
static unsigned char *turn_part(uint32_t turn, size_t n_bytes)
{
    const size_t step = (n_bytes + 4095) / 4096 * 4096, n = POOL_BYTES / step;

    return pool + (n > 0 ? turn % n : 0) * step;
}

/* ---- limits
 * -------------------------------------------------------------------------------------*/
static int launch_read(const void *args, uint32_t turn, cudaStream_t s)
{
    (void)turn;
    return ll_test_gpu_read(pool, POOL_BYTES, (uint32_t *)(uintptr_t)args, s);
}

static int launch_gemm(const void *args, uint32_t turn, cudaStream_t s)
{
    struct ll_gemm_args a = *(const struct ll_gemm_args *)args;
    const size_t n_bytes = (size_t)a.n * a.k * (a.kind == LL_GEMM_FP8 ? 1 : 2);

    a.w = turn_part(turn, n_bytes);
    return ll_gemm_run(&gemm, &a, s, &error);
}

static int launch_nothing(const void *args, uint32_t turn, cudaStream_t s)
{
    (void)args;
    (void)turn;
    return ll_test_gpu_nothing(s);
}

/* ---- operations
 * -----------------------------------------------------------------------------------*/
struct buffers {
    void *x, *y, *wide, *norm;
    float *scale, *w_scale, *partial;
    uint32_t *arrived, *ids;
} b;

static double time_gemm(enum ll_gemm_kind kind, uint32_t t, uint32_t n, uint32_t k)
{
    const struct ll_gemm_args args = {.kind = kind,
                                      .y = b.wide,
                                      .x = b.x,
                                      .w = pool,
                                      .x_scale = b.scale,
                                      .w_scale = b.w_scale,
                                      .t = t,
                                      .n = n,
                                      .k = k};

    if (ll_gemm_tune(&gemm, &args, stream, &error) < 0)
        return 0;
    return time_launches(launch_gemm, &args, LAUNCHES);
}

static const struct {
    const char *name;
    uint32_t n, k;
    bool is_gated;
} products[] = {{"qkv", (H + 2 * K) * D, E, false},
                {"o", E, H *D, false},
                {"gate-up", 2 * F, E, false},
                {"down", E, F, true}};

static void bench_cublas(void)
{
    static const uint32_t few[] = {1, 8, 16, 64, 256}, many[] = {1024, 4096};
    char name[64];

    for (int fp8 = 0; fp8 < 2; fp8++)
        for (size_t p = 0; p < 4; p++) {
            const double bytes = (double)products[p].n * products[p].k * (fp8 ? 1 : 2);
            for (size_t i = 0; i < 5; i++) {
                double us = time_gemm(fp8 ? LL_GEMM_FP8 : LL_GEMM_BF16, few[i], products[p].n,
                                      products[p].k);
                snprintf(name, sizeof(name), "cuBLASLt %s %s, %u tokens", fp8 ? "e4m3" : "bf16",
                         products[p].name, few[i]);
                report(name, us, bytes, 0, 0);
            }
            for (size_t i = 0; i < 2; i++) {
                double us = time_gemm(fp8 ? LL_GEMM_FP8 : LL_GEMM_BF16, many[i], products[p].n,
                                      products[p].k);
                snprintf(name, sizeof(name), "cuBLASLt %s %s, %u tokens", fp8 ? "e4m3" : "bf16",
                         products[p].name, many[i]);
                report(name, us, 0, 2.0 * many[i] * products[p].n * products[p].k,
                       fp8 ? fp8_tflops : bf16_tflops);
            }
        }
}

static int launch_skinny(const void *args, uint32_t turn, cudaStream_t s)
{
    struct ll_skinny_args a = *(const struct ll_skinny_args *)args;

    a.w = turn_part(turn, (size_t)a.n * a.k * (a.is_fp8 ? 1 : 2));
    return ll_cuda_skinny(&a, s);
}

static void bench_skinny(void)
{
    static const uint32_t few[] = {1, 4, 8};
    char name[64];

    for (int fp8 = 0; fp8 < 2; fp8++)
        for (size_t p = 0; p < 5; p++)
            for (size_t i = 0; i < 3; i++) {
                const bool is_head = p == 4;
                const uint32_t n = is_head ? V : products[p].n, k = is_head ? E : products[p].k;
                if (is_head && fp8)
                    continue;
                const struct ll_skinny_args args = {.y = b.wide,
                                                    .x = b.x,
                                                    .w_scale = b.w_scale,
                                                    .partial = b.partial,
                                                    .arrived = b.arrived,
                                                    .n_tokens = few[i],
                                                    .n = n,
                                                    .k = k,
                                                    .is_fp8 = fp8,
                                                    .is_gated = !is_head && products[p].is_gated,
                                                    .is_f32 = is_head};
                snprintf(name, sizeof(name), "our %s %s, %u tokens", fp8 ? "e4m3" : "bf16",
                         is_head ? "head" : products[p].name, few[i]);
                report(name, time_launches(launch_skinny, &args, LAUNCHES),
                       (double)n * k * (fp8 ? 1 : 2), 0, 0);
            }
}

static int launch_wide(const void *args, uint32_t turn, cudaStream_t s)
{
    struct ll_skinny_wgmma_args a = *(const struct ll_skinny_wgmma_args *)args;

    a.w = turn_part(turn, (size_t)a.n * a.k * (a.is_fp8 ? 1 : 2));
    return ll_cuda_skinny_wgmma(&a, s);
}

/* Our own by warpgroups beside cuBLASLt's best plan, the 8B's and the 70B's matrices. */
static void bench_wide(void)
{
    static const uint32_t counts[] = {8, 16, 32, 64, 128, 256};
    static const struct {
        const char *name;
        uint32_t n, k;
    } shapes[] = {{"8B qkv", 6144, 4096},       {"8B o", 4096, 4096},
                  {"8B gate-up", 28672, 4096},  {"8B down", 4096, 14336},
                  {"70B qkv", 10240, 8192},     {"70B o", 8192, 8192},
                  {"70B gate-up", 57344, 8192}, {"70B down", 8192, 28672}};
    char name[64];

    for (int fp8 = 1; fp8 >= 0; fp8--)
        for (size_t p = 0; p < (fp8 ? 8 : 4); p++)
            for (size_t i = 0; i < 6; i++) {
                const uint32_t t = counts[i], n = shapes[p].n, k = shapes[p].k;
                const double bytes = (double)n * k * (fp8 ? 1 : 2);
                const char *type = fp8 ? "e4m3" : "bf16";
                const struct ll_skinny_wgmma_args args = {.y = b.wide,
                                                          .x = b.x,
                                                          .x_scale = b.scale,
                                                          .w_scale = b.w_scale,
                                                          .partial = b.partial,
                                                          .arrived = b.arrived,
                                                          .n_tokens = t,
                                                          .n = n,
                                                          .k = k,
                                                          .is_fp8 = fp8};
                if (!ll_cuda_skinny_wgmma_fits(&args))
                    continue;
                snprintf(name, sizeof(name), "wgmma %s %s, %u tokens", type, shapes[p].name, t);
                report(name, time_launches(launch_wide, &args, LAUNCHES), bytes, 0, 0);
                snprintf(name, sizeof(name), "cuBLASLt %s %s, %u tokens", type, shapes[p].name, t);
                report(name, time_gemm(fp8 ? LL_GEMM_FP8 : LL_GEMM_BF16, t, n, k), bytes, 0, 0);
            }
}

struct rows {
    uint32_t t, n;
};

static int launch_norm(const void *args, uint32_t turn, cudaStream_t s)
{
    const struct rows *r = args;
    (void)turn;
    return ll_cuda_rmsnorm(b.y, b.scale, b.x, b.wide, b.norm, NULL, r->t, r->n, 1e-5f, INFINITY, s);
}

static int launch_swiglu(const void *args, uint32_t turn, cudaStream_t s)
{
    const struct rows *r = args;
    (void)turn;
    return ll_cuda_swiglu(b.y, b.scale, b.wide, r->t, r->n, INFINITY, s);
}

static int launch_quantize(const void *args, uint32_t turn, cudaStream_t s)
{
    const struct rows *r = args;
    (void)turn;
    return ll_cuda_quantize(b.y, b.scale, b.x, r->t, r->n, INFINITY, s);
}

static int launch_embed(const void *args, uint32_t turn, cudaStream_t s)
{
    const struct rows *r = args;
    (void)turn;
    return ll_cuda_embed(b.y, pool, b.ids, b.ids, r->t, r->n, V, s);
}

static void bench_rows(void)
{
    static const uint32_t counts[] = {1, 64, 4096};
    static const struct {
        const char *name;
        launch_fn launch;
        uint32_t n;
        double bytes;
    } ops[] = {{"embed", launch_embed, E, 4},
               {"add, norm, quantise", launch_norm, E, 7},
               {"swiglu, quantise", launch_swiglu, F, 5},
               {"quantise", launch_quantize, E, 3}};
    char name[64];

    for (size_t o = 0; o < 4; o++)
        for (size_t i = 0; i < 3; i++) {
            const struct rows r = {counts[i], ops[o].n};
            snprintf(name, sizeof(name), "%s, %u tokens", ops[o].name, counts[i]);
            report(name, time_launches(ops[o].launch, &r, LAUNCHES),
                   ops[o].bytes * counts[i] * ops[o].n, 0, 0);
        }
}

/* ---- attention and sampling -------------------------------------------------------------------*/
static int launch_rope(const void *args, uint32_t turn, cudaStream_t s)
{
    (void)turn;
    return ll_cuda_rope_append(args, s);
}

static int launch_decode(const void *args, uint32_t turn, cudaStream_t s)
{
    struct ll_cuda_attend_args a = *(const struct ll_cuda_attend_args *)args;

    a.kv = pool + (turn % 2) * (POOL_BYTES / 2);
    return ll_cuda_attend_decode(&a, s);
}

static int launch_prefill(const void *args, uint32_t turn, cudaStream_t s)
{
    (void)turn;
    return ll_cuda_attend_prefill(args, s);
}

static uint32_t length_of(uint32_t row, uint32_t n_rows, uint32_t n_kv, uint32_t n_long)
{
    return n_long > 0 && row == n_rows / 2 ? n_long : n_kv;
}

/* n_rows sequences of n_kv tokens (the middle one of n_long, if that is not 0), or one chunk of
 * n_chunk new tokens at the end of one. */
static void bench_attention(const char *name, uint32_t n_rows, uint32_t n_kv, uint32_t n_long,
                            uint32_t n_chunk, bool is_fp8)
{
    const uint32_t longest = n_long > n_kv ? n_long : n_kv;
    const uint32_t per_seq = (longest + LL_PAGE_TOKENS - 1) / LL_PAGE_TOKENS;
    const uint32_t n_tokens = n_chunk > 0 ? n_chunk : n_rows, per_tile = LL_CUDA_TILE_TOKENS(H / K);
    uint32_t *table = calloc((size_t)n_rows * per_seq, 4), *slot = malloc(n_tokens * 4),
             *pos = malloc(n_tokens * 4);
    struct ll_cuda_decode *decode = calloc(n_rows, sizeof(*decode));
    struct ll_cuda_tile *tiles = calloc(n_tokens / per_tile + 1, sizeof(*tiles));
    struct ll_cuda_counts counts = {0};
    uint32_t n_pages = 0, n_cached = 0;

    for (uint32_t r = 0; r < n_rows; r++)
        n_pages += (length_of(r, n_rows, n_kv, n_long) - 1) / LL_PAGE_TOKENS + 1;
    for (uint32_t r = 0, next = 0; r < n_rows; r++) {
        const uint32_t own = (length_of(r, n_rows, n_kv, n_long) - 1) / LL_PAGE_TOKENS + 1;
        for (uint32_t p = 0; p < own; p++)
            table[r * per_seq + p] = (uint32_t)((uint64_t)next++ * 7919 % n_pages);
    }
    for (uint32_t t = 0; t < n_tokens; t++) {
        slot[t] = n_chunk > 0 ? 0 : t;
        pos[t] = n_chunk > 0 ? n_kv - n_chunk + t : n_kv - 1;
    }
    for (uint32_t r = 0; r < n_rows && n_chunk == 0; r++) {
        const uint32_t n = length_of(r, n_rows, n_kv, n_long);
        decode[counts.n_decode++] = (struct ll_cuda_decode){r, r, n, counts.n_decode_items};
        counts.n_decode_items += ll_cuda_n_items(n, K);
        n_cached += n;
    }
    for (uint32_t i = 0; i < n_chunk; i += per_tile)
        tiles[counts.n_tiles++] = (struct ll_cuda_tile){
            i, 0, n_kv - n_chunk + i, n_chunk - i < per_tile ? n_chunk - i : per_tile};
    const struct ll_cuda_tables tables = {
        .counts = upload(&counts, sizeof(counts)),
        .decode = upload(decode, n_rows * sizeof(*decode)),
        .tiles = upload(tiles, (n_tokens / per_tile + 1) * sizeof(*tiles)),
        .token_slot = upload(slot, n_tokens * 4),
        .token_pos = upload(pos, n_tokens * 4),
        .page_table = upload(table, (size_t)n_rows * per_seq * 4),
        .pages_per_seq = per_seq};
    struct cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, 0), "device");
    const struct ll_cuda_attend_args args = {
        .tables = &tables,
        .qkv = device((size_t)n_tokens * (H + 2 * K) * D * 2, 0x3c),
        .out = device((size_t)n_tokens * H * D * 2, 0),
        .kv = pool,
        .is_kv_fp8 = is_fp8,
        .rope = device((size_t)longest * D * 4, 0x3c),
        .partial = device(
            (size_t)(counts.n_decode_items + 1) * K * ll_cuda_partial_floats(H / K, D) * 4, 0),
        .arrived = device((size_t)n_rows * K * LL_CUDA_DECODE_MERGERS * 4, 0),
        .n_heads = H,
        .n_kv_heads = K,
        .head_dim = D,
        .n_tokens = n_tokens,
        .n_rows_max = n_rows,
        .n_tiles = counts.n_tiles,
        .n_blocks = (uint32_t)p.multiProcessorCount * 2,
        .scale = 1.0f / sqrtf(D),
        .is_rotated = true};
    const double bytes = 4.0 * n_cached * K * D / (is_fp8 ? 2 : 1);
    const double seen =
        n_chunk > 0 ? (double)n_chunk * (n_kv - n_chunk) + 0.5 * n_chunk * n_chunk : 0;
    if (n_chunk > 0)
        report(name, time_launches(launch_prefill, &args, 2), 0, 4.0 * seen * H * D, bf16_tflops);
    else
        report(name, time_launches(launch_decode, &args, LAUNCHES), bytes, 0, 0);
    if (n_chunk == 0 && n_kv == 1024 && !is_fp8) {
        char text[64];
        snprintf(text, sizeof(text), "rope and append, %u tokens", n_rows);
        report(text, time_launches(launch_rope, &args, LAUNCHES),
               (double)n_rows * (H + 2 * K) * D * 4, 0, 0);
    }
    void *const parts[] = {tables.counts,     tables.decode,     tables.tiles, tables.token_slot,
                           tables.token_pos,  tables.page_table, args.qkv,     args.out,
                           (void *)args.rope, args.partial,      args.arrived};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        cudaFree(parts[i]);
    free(table);
    free(slot);
    free(pos);
    free(decode);
    free(tiles);
}

static int launch_sample(const void *args, uint32_t turn, cudaStream_t s)
{
    struct ll_cuda_sample_args a = *(const struct ll_cuda_sample_args *)args;

    a.logits = (float *)turn_part(turn, (size_t)a.n_logits * V * 4);
    return ll_cuda_sample(&a, s);
}

static void bench_sample(uint32_t n, bool is_greedy)
{
    struct ll_cuda_logit *logits = calloc(n, sizeof(*logits));
    struct ll_cuda_slot *slots = calloc(n, sizeof(*slots));
    const uint32_t step = 0;
    char name[64];

    for (uint32_t i = 0; i < n; i++) {
        logits[i] = (struct ll_cuda_logit){.slot = i, .row = i, .pos = 9, .target = LL_CUDA_NONE};
        slots[i] = (struct ll_cuda_slot){.seed = i,
                                         .temperature = is_greedy ? 0 : 0.8f,
                                         .top_p = is_greedy ? 1 : 0.95f,
                                         .top_k = is_greedy ? 0 : 50,
                                         .repetition = 1};
    }
    const struct ll_cuda_tables tables = {.step = upload(&step, 4),
                                          .logits = upload(logits, n * sizeof(*logits)),
                                          .slots = upload(slots, n * sizeof(*slots)),
                                          .bias = device(LL_CUDA_BIAS_MAX * 8, 0)};
    const struct ll_cuda_sample_args args = {
        .tables = &tables,
        .rows = device(sizeof(struct ll_row_out) * n * LL_CUDA_AREAS, 0),
        .ext = device(64, 0),
        .n_rows_max = n,
        .n_logits = n,
        .n_vocab = V};
    snprintf(name, sizeof(name), "sample %u rows, %s", n,
             is_greedy ? "greedy" : "top-k 50, top-p 0.95");
    report(name, time_launches(launch_sample, &args, LAUNCHES), (double)n * V * 4, 0, 0);
    free(logits);
    free(slots);
}

/* Graphs of one and of nine empty kernels, launched one after the other without waiting: what lies
 * between graphs, beyond what lies between kernels, is the hardware's own. */
static void bench_idle(void)
{
    double us[2];

    for (int nine = 0; nine < 2; nine++) {
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
        for (int i = 0; i < (nine ? 9 : 1); i++)
            ll_test_gpu_nothing(stream);
        check(cudaStreamEndCapture(stream, &graph), "capture");
        check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
        uint64_t from = 0;
        for (int i = -100; i < 2000; i++) {
            if (i == 0) {
                check(cudaStreamSynchronize(stream), "graphs");
                from = ll_now_ns();
            }
            check(cudaGraphLaunch(exec, stream), "graph");
        }
        check(cudaStreamSynchronize(stream), "graphs");
        us[nine] = (double)(ll_now_ns() - from) / 1e3 / 2000;
        cudaGraphExecDestroy(exec);
        cudaGraphDestroy(graph);
    }
    report("empty kernel inside a graph", (us[1] - us[0]) / 8, 0, 0, 0);
    report("graph of one empty kernel after another", us[0], 0, 0, 0);
}

int main(int argc, char **argv)
{
    bool is_products = false;
    for (int i = 1; i < argc; i++) {
        is_json |= strcmp(argv[i], "--json") == 0;
        is_products |= strcmp(argv[i], "--products") == 0;
    }
    int n_devices = 0;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        printf("no GPU\n");
        return 77;
    }
    struct cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, 0), "device");
    check(cudaStreamCreate(&stream), "stream");
    if (ll_gemm_open(&gemm, &error) < 0) {
        fprintf(stderr, "bench_ops: %s\n", error.s);
        return 1;
    }
    pool = device(POOL_BYTES, 0);
    if (ll_cuda_random_bf16(pool, POOL_BYTES / 2, 0.5f, 1, stream) < 0)
        return 1;
    b.x = device((size_t)4096 * F * 2, 0);
    b.y = device((size_t)4096 * F * 2, 0);
    b.wide = device((size_t)8192 * 2 * F * 2, 0);
    b.norm = device(E * 2, 0x3c);
    b.scale = device(8192 * 4, 0x3c);
    b.w_scale = device(V * 4, 0x3c);
    b.partial = device((size_t)256 << 20, 0);
    b.arrived = device((V / 64 + 1) * 4, 0);
    b.ids = device(8192 * 4, 0);
    ll_cuda_random_bf16(b.x, (uint64_t)4096 * F, 0.5f, 2, stream);
    ll_cuda_random_bf16(b.wide, (uint64_t)8192 * 2 * F, 0.5f, 3, stream);
    check(cudaStreamSynchronize(stream), "random");

    read_gb_s = POOL_BYTES / time_launches(launch_read, b.ids, 2) / 1e3;
    bf16_tflops = 2.0 * 8192 * F * 2 * E / time_gemm(LL_GEMM_BF16, 8192, 2 * F, E) / 1e6;
    const double fp8_us = time_gemm(LL_GEMM_FP8, 8192, 2 * F, E);
    fp8_tflops = fp8_us > 0 ? 2.0 * 8192 * F * 2 * E / fp8_us / 1e6 : 0;
    printf(is_json ? "{\"device\": \"%s\", \"read_gb_s\": %.0f, \"bf16_tflops\": %.0f, "
                     "\"fp8_tflops\": %.0f}\n"
                   : "%s: reads %.0f GB/s, products bf16 %.0f, e4m3 %.0f TFLOP/s\n",
           p.name, read_gb_s, bf16_tflops, fp8_tflops);

    if (is_products) {
        bench_wide();
        ll_gemm_close(&gemm);
        return 0;
    }
    bench_idle();
    report("empty kernel, the same in a stream", time_launches(launch_nothing, NULL, 64), 0, 0, 0);
    bench_rows();
    bench_skinny();
    bench_wide();
    bench_cublas();
    bench_attention("decode attention, 1 x 1024", 1, 1024, 0, 0, false);
    bench_attention("decode attention, 1 x 131072", 1, 131072, 0, 0, false);
    bench_attention("decode attention, 8 x 1024", 8, 1024, 0, 0, false);
    bench_attention("decode attention, 64 x 1024", 64, 1024, 0, 0, false);
    bench_attention("decode attention, 32 x 4096", 32, 4096, 0, 0, false);
    bench_attention("decode attention, 63 x 1024 and 131072", 64, 1024, 131072, 0, false);
    bench_attention("decode attention, e4m3, 1 x 1024", 1, 1024, 0, 0, true);
    bench_attention("decode attention, e4m3, 1 x 131072", 1, 131072, 0, 0, true);
    bench_attention("decode attention, e4m3, 64 x 1024", 64, 1024, 0, 0, true);
    bench_attention("decode attention, e4m3, 256 x 1024", 256, 1024, 0, 0, true);
    bench_attention("decode attention, e4m3, 32 x 4096", 32, 4096, 0, 0, true);
    bench_attention("prefill attention, 4096", 1, 4096, 0, 4096, false);
    bench_attention("prefill attention, 4096 at the end of 16384", 1, 16384, 0, 4096, false);
    bench_attention("prefill attention, e4m3, 4096", 1, 4096, 0, 4096, true);
    bench_sample(1, true);
    bench_sample(64, true);
    bench_sample(1, false);
    bench_sample(128, false);
    ll_gemm_close(&gemm);
    return 0;
}
