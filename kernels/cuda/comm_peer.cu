/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/comm_peer.cu - a model's parts on several GPUs: one-shot sums over peer pointers.
 *
 * Each rank pushes its rows into the inboxes of all others (16-byte stores, no flag: see comm.h),
 * then takes every rank's word as it comes, adds in rank order and goes on as the lockstep form
 * does. A block pushes all its rows before it waits for the first, and all blocks are resident at
 * once, so ranks cannot wait for each other in a ring. Bound: latency of one NVLink store, then
 * (N - 1) T E 2 bytes over the link. A word of 32 bits arrives whole; the four of a vector are
 * looked at one by one. */
#include "kernels/cuda/comm_peer.cuh"

template <int RANKS, int THREADS, int VECS>
__global__ void __launch_bounds__(THREADS)
    peer_norm_kernel(const ll_comm_norm a, const ll_comm_peer p, uint32_t buffer, uint32_t n_vecs)
{
    if (p.has_early_next)
        pdl_release();
    bf16x8 w[VECS];
#pragma unroll
    for (int k = 0; k < VECS; k++)
        if (threadIdx.x + k * THREADS < n_vecs)
            w[k] = ((const bf16x8 *)a.weight)[threadIdx.x + k * THREADS];
    pdl_wait();
    const uint4 *mine = (const uint4 *)a.delta[0];
    const size_t box = (size_t)buffer * RANKS * p.inbox_vecs;

    for (uint32_t row = blockIdx.x; row < a.n_rows; row += gridDim.x) {
        const uint32_t t = token_of(a, row);
#pragma unroll
        for (int k = 0; k < VECS; k++) {
            const uint32_t i = threadIdx.x + k * THREADS;
            if (i >= n_vecs)
                continue;
            const uint4 v = never_empty(mine[(size_t)t * n_vecs + i]);
#pragma unroll
            for (uint32_t d = 1; d < RANKS; d++) { /* not all ranks to the same one first */
                const uint32_t to = (p.rank + d) % RANKS;
                push((uint4 *)p.inbox[to] + box + p.rank * p.inbox_vecs + (size_t)row * n_vecs + i,
                     v);
            }
        }
    }
    uint32_t turn = 0;
    for (uint32_t row = blockIdx.x; row < a.n_rows; row += gridDim.x) {
        const uint32_t t = token_of(a, row);
        float v[VECS][8];
#pragma unroll
        for (int k = 0; k < VECS; k++) {
            const uint32_t i = threadIdx.x + k * THREADS;
            if (i >= n_vecs)
                continue;
            const size_t at = (size_t)t * n_vecs + i;
            uint4 *from = (uint4 *)p.inbox[p.rank] + box + (size_t)row * n_vecs + i;
            sum_ranks<RANKS>(v[k], mine[at], from, p);
            const bf16x8 x = new_x(v[k], (const bf16x8 *)a.x[0] + at, a.sets_x);
            if (a.rows == nullptr)
                ((bf16x8 *)a.x[0])[at] = x;
        }
        finish_row<THREADS, VECS>(a, v, w, n_vecs, turn++, put_parts{a, (size_t)row * n_vecs, row});
    }
}

__global__ void clear_kernel(uint4 *inbox, size_t n_vecs)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n_vecs;
         i += (size_t)gridDim.x * blockDim.x)
        inbox[i] = make_uint4(LL_COMM_EMPTY, LL_COMM_EMPTY, LL_COMM_EMPTY, LL_COMM_EMPTY);
}

/* Steps alternate between two rows of words; the tag is the step's number + 1, so nothing is ever
 * cleared. Rank 0 runs at most one step ahead: a step's sums need all ranks. */
__global__ void __launch_bounds__(256)
    ids_kernel(const ll_comm_peer p, const uint32_t *step, uint32_t *token_id, uint32_t n_tokens)
{
    pdl_wait();
    const uint64_t tag = (uint64_t)(*step + 1) << 32;
    const size_t row = (size_t)(*step % 2) * p.n_ids_max;

    for (uint32_t i = blockIdx.x * 256 + threadIdx.x; i < n_tokens; i += gridDim.x * 256) {
        if (p.rank == 0) {
            const uint64_t word = tag | token_id[i];
            for (uint32_t r = 1; r < p.n_ranks; r++)
                *(volatile uint64_t *)(p.ids[r] + row + i) = word;
            continue;
        }
        const volatile uint64_t *from = p.ids[p.rank] + row + i;
        watch wait = {};
        uint64_t word;
        while (((word = *from) & ~0xffffffffull) != tag)
            wait.turn(p, 0, LL_COMM_IDS);
        token_id[i] = (uint32_t)word;
    }
}

/* The next step's logits cannot come before this step's were read: its sums need rank 0. */
__global__ void __launch_bounds__(256)
    peer_logits_kernel(const ll_comm_peer p, float *to, const float *__restrict__ from,
                       uint32_t n_part, uint32_t n_all, uint32_t stride)
{
    pdl_wait();
    const uint32_t first = p.rank * n_part, n = min(n_part, n_all - first);

    for (uint32_t v = blockIdx.x * 256 + threadIdx.x; v < n; v += gridDim.x * 256)
        to[(size_t)blockIdx.y * stride + first + v] = from[(size_t)blockIdx.y * n_part + v];
    if (p.rank > 0) {
        __threadfence_system(); /* the logits before the count */
        __syncthreads();
        if (threadIdx.x == 0)
            atomicAdd_system(p.logits_arrived, 1);
        return;
    }
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
        const uint32_t due = (p.n_ranks - 1) * gridDim.x * gridDim.y;
        volatile uint32_t *arrived = p.logits_arrived;
        watch wait = {};
        while (*arrived != due)
            wait.turn(p, 1, LL_COMM_LOGITS);
        __threadfence_system(); /* the count before what the next kernel reads */
        *arrived = 0;
    }
}

template <int RANKS>
static int launch_norm(const ll_comm_norm *a, const ll_comm_peer *p, uint32_t buffer,
                       cudaStream_t stream)
{
    const uint32_t n_vecs = a->n_embd / 8;

#define LAUNCH(threads, vecs)                                                                      \
    return launch_chained(peer_norm_kernel<RANKS, threads, vecs>, peer_blocks(a, p), threads, 0,   \
                          stream, *a, *p, buffer, n_vecs)
    LL_COMM_BY_WIDTH(n_vecs, LAUNCH);
#undef LAUNCH
}

extern "C" bool ll_comm_norm_peer_fits(const struct ll_comm_peer *peer, uint32_t n_rows,
                                       uint32_t n_embd)
{
    return (uint64_t)n_rows * n_embd / 8 <= peer->one_shot_vecs;
}

extern "C" int ll_comm_norm_peer(const struct ll_comm_norm *args, const struct ll_comm_peer *peer,
                                 uint32_t buffer, cudaStream_t stream)
{
    if (!is_peer_norm(args, peer, buffer) ||
        !ll_comm_norm_peer_fits(peer, args->n_rows, args->n_embd))
        return -EINVAL;
    if (args->n_rows == 0)
        return 0;
    return LL_COMM_BY_RANKS(peer->n_ranks, launch_norm, args, peer, buffer, stream);
}

extern "C" int ll_comm_inbox_clear(void *inbox, size_t bytes, cudaStream_t stream)
{
    clear_kernel<<<264, 256, 0, stream>>>((uint4 *)inbox, bytes / 16);
    return launched();
}

extern "C" int ll_comm_ids(const struct ll_comm_peer *peer, const uint32_t *step,
                           uint32_t *token_id, uint32_t n_tokens, cudaStream_t stream)
{
    if (n_tokens > peer->n_ids_max)
        return -EINVAL;
    if (n_tokens == 0)
        return 0;
    uint32_t n_blocks = (n_tokens + 255) / 256;
    if (n_blocks > peer->n_blocks_max)
        n_blocks = peer->n_blocks_max;
    return launch_chained(ids_kernel, n_blocks, 256, 0, stream, *peer, step, token_id, n_tokens);
}

extern "C" int ll_comm_logits_peer(const struct ll_comm_peer *peer, float *to, const float *from,
                                   uint32_t n_rows, uint32_t n_part, uint32_t n_all,
                                   uint32_t stride, cudaStream_t stream)
{
    if (n_all > peer->n_ranks * n_part || n_all <= (peer->n_ranks - 1) * n_part || stride < n_all ||
        n_rows > 65535)
        return -EINVAL;
    if (n_rows == 0)
        return 0;
    return launch_chained(peer_logits_kernel, dim3((n_part + 2047) / 2048, n_rows), 256, 0, stream,
                          *peer, to, from, n_part, n_all, stride);
}
