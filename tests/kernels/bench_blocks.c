/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/bench_blocks.c - products on e4m3 weights with 128 x 128 scales, an 8B's matrices:
 * our own product against the same without block scales, passes of 8 tokens against widened
 * weights.
 *
 * us a product, median; weights rotate over 2 GB, so none are in the L2. bench_blocks [--json] */
#include "base/clock.h"
#include "kernels/cuda/gemm_lt.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/skinny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { E = 4096, F = 14336, TOKENS_MAX = 2048, LAUNCHES = 8, REPEATS = 15 };
#define POOL_BYTES (2ull << 30)

static cudaStream_t stream;
static unsigned char *pool;
static void *x, *y, *scratch;
static float *scale, *block, *partial;
static uint32_t *arrived;
static struct ll_gemm gemm;

enum way { PLAIN, BLOCKS, WIDENED, WAYS };
static const char *const way_names[] = {"own, a scale a row", "own, blocks", "widened, blocks"};

static void *device(size_t n_bytes)
{
    void *p = NULL;

    if (cudaMalloc(&p, n_bytes) != cudaSuccess || cudaMemset(p, 0, n_bytes) != cudaSuccess) {
        fprintf(stderr, "bench_blocks: no %zu bytes of device memory\n", n_bytes);
        exit(1);
    }
    return p;
}

static int launch(enum way way, uint32_t t, uint32_t n, uint32_t k, uint32_t turn)
{
    const size_t step = ((size_t)n * k + 4095) / 4096 * 4096;
    const unsigned char *w = pool + turn % (POOL_BYTES / step) * step;
    struct ll_text error;
    int rc = 0;

    if (way == WIDENED)
        return ll_gemm_run(&gemm,
                           &(struct ll_gemm_args){.kind = LL_GEMM_W8A16,
                                                  .y = y,
                                                  .x = x,
                                                  .w = w,
                                                  .w_scale = scale,
                                                  .w_block = block,
                                                  .scratch = scratch,
                                                  .scratch_bytes = 128u << 20,
                                                  .t = t,
                                                  .n = n,
                                                  .k = k},
                           stream, &error);
    for (uint32_t at = 0; at < t && rc == 0; at += LL_SKINNY_TOKENS_MAX)
        rc = ll_cuda_skinny(&(struct ll_skinny_args){.y = (uint16_t *)y + (size_t)at * n,
                                                     .x = (uint16_t *)x + (size_t)at * k,
                                                     .w = w,
                                                     .w_scale = scale,
                                                     .w_block = way == BLOCKS ? block : NULL,
                                                     .partial = partial,
                                                     .arrived = arrived,
                                                     .n_tokens = t - at < LL_SKINNY_TOKENS_MAX
                                                                     ? t - at
                                                                     : LL_SKINNY_TOKENS_MAX,
                                                     .n = n,
                                                     .k = k,
                                                     .is_fp8 = true},
                            stream);
    return rc;
}

static int compare(const void *a, const void *b)
{
    const float ms = *(const float *)a, other = *(const float *)b;

    return (ms > other) - (ms < other);
}

/* Median of replays of one graph of LAUNCHES products; 0 where one does not launch. */
static float time_us(enum way way, uint32_t t, uint32_t n, uint32_t k)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t from, to;
    float ms[REPEATS];
    int rc = launch(way, t, n, k, 0); /* outside a capture: plans are made here */

    if (rc < 0 || cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess)
        return 0;
    for (uint32_t turn = 0; turn < LAUNCHES; turn++)
        rc |= launch(way, t, n, k, turn);
    if (cudaStreamEndCapture(stream, &graph) != cudaSuccess || rc < 0 ||
        cudaGraphInstantiate(&exec, graph, 0) != cudaSuccess)
        return 0;
    cudaEventCreate(&from);
    cudaEventCreate(&to);
    for (int i = -2; i < REPEATS; i++) { /* the first only warm */
        cudaEventRecord(from, stream);
        cudaGraphLaunch(exec, stream);
        cudaEventRecord(to, stream);
        if (cudaEventSynchronize(to) != cudaSuccess)
            return 0;
        if (i >= 0)
            cudaEventElapsedTime(&ms[i], from, to);
    }
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    qsort(ms, REPEATS, sizeof(ms[0]), compare);
    return ms[REPEATS / 2] * 1e3f / LAUNCHES;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        uint32_t n, k;
    } products[] = {{"qkv", E + 2048, E}, {"o", E, E}, {"gate-up", 2 * F, E}, {"down", E, F}};
    static const uint32_t counts[] = {1, 8, 16, 24, 32, 48, 64, 256, TOKENS_MAX};
    const int is_json = argc > 1 && strcmp(argv[1], "--json") == 0;
    struct ll_text error;
    int n_devices = 0;

    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        printf("no GPU\n");
        return 77;
    }
    cudaStreamCreate(&stream);
    if (ll_gemm_open(&gemm, &error) < 0) {
        fprintf(stderr, "bench_blocks: %s\n", error.s);
        return 1;
    }
    pool = device(POOL_BYTES);
    x = device((size_t)TOKENS_MAX * F * 2);
    y = device((size_t)TOKENS_MAX * 2 * F * 2);
    scratch = device(128u << 20);
    scale = device(2 * F * 4);
    block = device((size_t)2 * F / 16 * (F / 128) * 4);
    partial = device((size_t)256 << 20);
    arrived = device((2 * F / 64 + 1) * 4);
    ll_cuda_random_e4m3(pool, POOL_BYTES, 1, stream);
    ll_cuda_random_bf16(x, (uint64_t)TOKENS_MAX * F, 0.5f, 2, stream);
    ll_cuda_fill_f32(scale, 0.01f, 2 * F, stream);
    ll_cuda_fill_f32(block, 0.5f, (uint64_t)2 * F / 16 * (F / 128), stream);
    for (size_t p = 0; p < sizeof(products) / sizeof(products[0]); p++)
        for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
            if (!is_json)
                printf("%-8s %5u tokens:", products[p].name, counts[c]);
            for (enum way way = PLAIN; way < WAYS; way++) {
                if (way != WIDENED && counts[c] > 64)
                    continue;
                const float us = time_us(way, counts[c], products[p].n, products[p].k);
                if (is_json)
                    printf("{\"op\": \"%s, %s, %u tokens\", \"us\": %.2f}\n", products[p].name,
                           way_names[way], counts[c], (double)us);
                else
                    printf("  %s %8.1f us", way_names[way], (double)us);
            }
            if (!is_json)
                printf("\n");
        }
    ll_gemm_close(&gemm);
    return 0;
}
