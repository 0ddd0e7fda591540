/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/bench_ops_comm.c - sums over GPUs, with the norm that follows them, against NCCL in
 * the same run.
 *
 *   bench_ops_comm [--gpus N] [--width E] [--json]
 *
 * Each figure: a graph of 60 operations on every GPU, launched together, time / 60, the least of 7.
 *   one      sum + residual + norm + e4m3 by the peer kernel, in one shot
 *   two      the same in two shots
 *   sum      NCCL's all-reduce alone (NVLink multicast off)
 *   apart    NCCL's all-reduce, then the residual, norm and e4m3 kernel of one GPU
 *   norm     that kernel alone: one less norm is what a sum adds to a step
 * Needs two GPUs that reach each other; 77 without. */
#include "base/clock.h"
#include "kernels/cuda/nccl.h"
#include "tests/kernels/comm_world.h"

#include <getopt.h>
#include <math.h>
#include <pthread.h>

enum { N_OPS = 60, N_RUNS = 7 };
enum form { FUSED, SPLIT, SUM, APART, NORM, N_FORMS };

static struct comm_world w;
static struct ll_nccl nccl;
static uint32_t width = 8192;
static void *delta[LL_CUDA_RANKS_MAX], *x[LL_CUDA_RANKS_MAX], *out[LL_CUDA_RANKS_MAX];
static void *weight[LL_CUDA_RANKS_MAX], *scale[LL_CUDA_RANKS_MAX];

static int enqueue(enum form form, uint32_t r, uint32_t n_rows, uint32_t k)
{
    struct ll_text error;
    struct ll_comm_norm args = {.n_parts = 1,
                                .n_ranks = 1,
                                .delta = {delta[r]},
                                .x = {x[r]},
                                .out = {out[r]},
                                .scale = {scale[r]},
                                .weight = weight[r],
                                .n_rows = n_rows,
                                .n_embd = width,
                                .eps = 1e-5f,
                                .bound = INFINITY,
                                .sets_x = true};
    int rc = 0;

    if (form == FUSED)
        return ll_comm_norm_peer(&args, &w.end[r], k == 0 ? 2 : k % 2, w.stream[r]);
    if (form == SPLIT)
        return ll_comm_norm_split(&args, &w.end[r], k == 0 ? 2 : k % 2, w.stream[r]);
    if (form == SUM || form == APART)
        rc = ll_nccl_sum(&nccl, r, delta[r], (size_t)n_rows * width, w.stream[r], &error);
    if (rc == 0 && form != SUM)
        rc = ll_comm_norm_lockstep(&args, w.stream[r]);
    return rc;
}

struct capture { /* a thread a rank: NCCL wants its ranks side by side */
    enum form form;
    uint32_t r, n_rows;
    cudaGraphExec_t exec;
};

static void *capture_main(void *argument)
{
    struct capture *c = argument;
    cudaGraph_t graph;

    comm_use(&w, c->r);
    comm_ok(cudaStreamBeginCapture(w.stream[c->r], cudaStreamCaptureModeThreadLocal), "capture");
    for (uint32_t k = 0; k < N_OPS; k++)
        if (enqueue(c->form, c->r, c->n_rows, k) != 0)
            comm_ok(cudaErrorUnknown, "operation");
    comm_ok(cudaStreamEndCapture(w.stream[c->r], &graph), "capture");
    comm_ok(cudaGraphInstantiate(&c->exec, graph, 0), "graph");
    cudaGraphDestroy(graph);
    return NULL;
}

static double measure(enum form form, uint32_t n_rows)
{
    struct capture c[LL_CUDA_RANKS_MAX];
    pthread_t thread[LL_CUDA_RANKS_MAX];
    double best = INFINITY;

    if ((form == FUSED && !ll_comm_norm_peer_fits(&w.end[0], n_rows, width)) ||
        (form == SPLIT && !ll_comm_norm_split_fits(&w.end[0], n_rows, 1, width)))
        return -1; /* does not fit */
    for (uint32_t r = 0; r < w.n; r++) {
        c[r] = (struct capture){.form = form, .r = r, .n_rows = n_rows};
        pthread_create(&thread[r], NULL, capture_main, &c[r]);
    }
    for (uint32_t r = 0; r < w.n; r++)
        pthread_join(thread[r], NULL);
    for (int run = 0; run < N_RUNS; run++) {
        const uint64_t from_ns = ll_now_ns();
        for (uint32_t r = 0; r < w.n; r++) {
            comm_use(&w, r);
            comm_ok(cudaGraphLaunch(c[r].exec, w.stream[r]), "launch");
        }
        comm_wait(&w);
        const double us = (double)(ll_now_ns() - from_ns) / 1e3 / N_OPS;
        if (run > 0 && us < best)
            best = us;
    }
    for (uint32_t r = 0; r < w.n; r++)
        cudaGraphExecDestroy(c[r].exec);
    return best;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"gpus", 1, 0, 'g'}, {"width", 1, 0, 'w'}, {"json", 0, 0, 'j'}, {0}};
    const size_t most = 64u << 20;
    uint32_t n = 2;
    bool is_json = false;

    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (o) {
        case 'g':
            n = (uint32_t)atoi(optarg);
            break;
        case 'w':
            width = (uint32_t)atoi(optarg);
            break;
        case 'j':
            is_json = true;
            break;
        default:
            return 2;
        }
    if ((n != 2 && n != 4 && n != 8) || width < 2048 || width > 16384 || width % 2048 != 0) {
        fprintf(stderr, "bench_ops_comm: --gpus 2, 4 or 8, --width 2048 .. 16384 by 2048\n");
        return 2;
    }
    if (!comm_has_gpus(n)) {
        printf("skipped: no %u GPUs that reach each other\n", n);
        return 77;
    }
    struct ll_text error;
    int gpu[LL_CUDA_RANKS_MAX];
    comm_open(&w, n, true, n == 2 ? most : 8u << 20, 2000000000ull);
    for (uint32_t r = 0; r < n; r++) {
        gpu[r] = (int)r;
        delta[r] = comm_new(&w, r, most);
        x[r] = comm_new(&w, r, most);
        out[r] = comm_new(&w, r, most);
        weight[r] = comm_new(&w, r, width * 2);
        scale[r] = comm_new(&w, r, most / width);
        comm_ok(cudaMemset(delta[r], 0, most), "delta");
        comm_ok(cudaMemset(weight[r], 0x3f, width * 2), "weight");
        comm_ok(cudaDeviceSynchronize(), "memory");
    }
    if (ll_nccl_open(&nccl, n, gpu, &error) < 0) {
        fprintf(stderr, "bench_ops_comm: %s\n", error.s);
        return 1;
    }
    comm_use(&w, 0);
    struct cudaDeviceProp p;
    comm_ok(cudaGetDeviceProperties(&p, 0), "device");
    if (!is_json)
        printf("%u x %s, width %u, us an operation\n%10s %8s %8s %8s %8s %8s\n", n, p.name, width,
               "bytes", "one", "two", "sum", "apart", "norm");
    for (size_t bytes = 8192; bytes <= most; bytes *= 2) {
        const uint32_t n_rows = (uint32_t)(bytes / 2 / width);
        double us[N_FORMS];
        if (n_rows == 0)
            continue;
        for (int f = 0; f < N_FORMS; f++)
            us[f] = measure((enum form)f, n_rows);
        if (is_json)
            printf("{\"gpus\": %u, \"width\": %u, \"bytes\": %zu, \"one_us\": %.2f, "
                   "\"two_us\": %.2f, \"nccl_sum_us\": %.2f, \"nccl_norm_us\": %.2f, "
                   "\"norm_us\": %.2f}\n",
                   n, width, bytes, us[FUSED], us[SPLIT], us[SUM], us[APART], us[NORM]);
        else
            printf("%10zu %8.2f %8.2f %8.2f %8.2f %8.2f\n", bytes, us[FUSED], us[SPLIT], us[SUM],
                   us[APART], us[NORM]);
    }
    ll_nccl_close(&nccl);
    comm_close(&w);
    return 0;
}
