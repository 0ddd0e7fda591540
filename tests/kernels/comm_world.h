/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/comm_world.h - ranks and the connections between them, without a model: as streams
 * of one GPU, or one a GPU. */
#ifndef TESTS_KERNELS_COMM_WORLD_H
#define TESTS_KERNELS_COMM_WORLD_H

#include "kernels/cuda/comm.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct comm_world {
    uint32_t n;
    bool is_real; /* a GPU a rank */
    cudaStream_t stream[LL_CUDA_RANKS_MAX];
    struct ll_comm_peer end[LL_CUDA_RANKS_MAX];
    struct ll_comm_late *late;
};

static inline void comm_ok(cudaError_t s, const char *what)
{
    if (s == cudaSuccess)
        return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(s));
    exit(1);
}

static inline void comm_use(const struct comm_world *w, uint32_t rank)
{
    comm_ok(cudaSetDevice(w->is_real ? (int)rank : 0), "device");
}

static inline void *comm_new(const struct comm_world *w, uint32_t rank, size_t bytes)
{
    void *p;

    comm_use(w, rank);
    comm_ok(cudaMalloc(&p, bytes > 0 ? bytes : 16), "cudaMalloc");
    comm_ok(cudaMemset(p, 0xff, bytes), "cudaMemset");
    comm_ok(cudaDeviceSynchronize(), "cudaMemset"); /* the ranks' streams do not wait for it */
    return p;
}

/* Fewer GPUs than n, or GPUs that do not reach each other: false. */
static inline bool comm_has_gpus(uint32_t n)
{
    int n_gpus = 0, can = 0;

    if (cudaGetDeviceCount(&n_gpus) != cudaSuccess || n_gpus < (int)n)
        return false;
    for (int a = 0; a < (int)n; a++)
        for (int b = 0; b < (int)n; b++)
            if (a != b && (cudaDeviceCanAccessPeer(&can, a, b) != cudaSuccess || !can))
                return false;
    return true;
}

static inline void comm_open(struct comm_world *w, uint32_t n, bool is_real, size_t inbox_bytes,
                             uint64_t wait_ns)
{
    const uint32_t n_ids = 4096;
    void *late;
    int n_sm = 0;

    memset(w, 0, sizeof(*w));
    w->n = n;
    w->is_real = is_real;
    comm_ok(cudaHostAlloc((void **)&w->late, 4096, cudaHostAllocMapped | cudaHostAllocPortable),
            "mapped memory");
    memset(w->late, 0, 4096);
    comm_ok(cudaHostGetDevicePointer(&late, w->late, 0), "mapped memory");
    comm_ok(cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, 0), "SMs");
    for (uint32_t r = 0; r < n; r++) {
        const size_t bytes = LL_COMM_BUFFERS * n * inbox_bytes;
        comm_use(w, r);
        for (uint32_t o = 0; o < n && is_real; o++)
            if (o != r) {
                cudaError_t s = cudaDeviceEnablePeerAccess((int)o, 0);
                if (s == cudaErrorPeerAccessAlreadyEnabled)
                    cudaGetLastError();
                else
                    comm_ok(s, "peer access");
            }
        comm_ok(cudaStreamCreateWithFlags(&w->stream[r], cudaStreamNonBlocking), "stream");
        const size_t rows_bytes = n * inbox_bytes * 2;
        void *rows_in = comm_new(w, r, LL_COMM_BUFFERS * rows_bytes);
        void *inbox = comm_new(w, r, bytes), *ids = comm_new(w, r, n_ids * 2 * 8),
             *arrived = comm_new(w, r, 16);
        comm_ok(cudaMemset(ids, 0, n_ids * 2 * 8), "ids");
        comm_ok(cudaMemset(arrived, 0, 16), "arrived");
        if (ll_comm_inbox_clear(inbox, bytes, w->stream[r]) < 0 ||
            ll_comm_inbox_clear(rows_in, LL_COMM_BUFFERS * rows_bytes, w->stream[r]) < 0)
            comm_ok(cudaGetLastError(), "clear");
        comm_ok(cudaDeviceSynchronize(), "clear");
        for (uint32_t o = 0; o < n; o++) {
            w->end[o].inbox[r] = inbox;
            w->end[o].rows_in[r] = rows_in;
            w->end[o].ids[r] = ids;
            if (r == 0)
                w->end[o].logits_arrived = arrived;
        }
        w->end[r].rank = r;
        w->end[r].n_ranks = n;
        /* Streams of one GPU share its SMs: all ranks' blocks must have a place at once. */
        w->end[r].n_blocks_max = (uint32_t)n_sm / (is_real ? 1 : n);
        w->end[r].has_early_next = is_real;
        w->end[r].one_shot_vecs = w->end[r].inbox_vecs = inbox_bytes / 16;
        w->end[r].rows_bytes = rows_bytes;
        w->end[r].n_ids_max = n_ids;
        w->end[r].late = (struct ll_comm_late *)late + r;
        w->end[r].wait_ns = wait_ns;
    }
}

static inline void comm_wait(const struct comm_world *w)
{
    for (uint32_t r = 0; r < w->n; r++) {
        comm_use(w, r);
        comm_ok(cudaStreamSynchronize(w->stream[r]), "step");
    }
}

static inline void comm_close(struct comm_world *w)
{
    for (uint32_t r = 0; r < w->n; r++) {
        comm_use(w, r);
        cudaStreamDestroy(w->stream[r]);
        cudaFree(w->end[0].inbox[r]);
        cudaFree(w->end[0].rows_in[r]);
        cudaFree(w->end[0].ids[r]);
    }
    cudaFree(w->end[0].logits_arrived);
    cudaFreeHost(w->late);
    comm_use(w, 0);
}

#endif
