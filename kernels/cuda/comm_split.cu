/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/comm_split.cu - larger sums over ranks in two shots over peer pointers.
 *
 *   1  every rank pushes its delta of token t to rank t % N
 *   2  that rank adds in rank order, keeps x[t], norms, and pushes the finished row (bf16, or e4m3
 *      and its scale) to all others
 *   3  they take it from their inbox
 *
 * A block does 1 for all its rows, then 2, then 3: pushes of 1 wait for nobody, those of 2 for 1
 * alone, so with all blocks resident nobody waits in a ring. A rank pushes call k after hearing, in
 * the calls before it, from every rank that has read what lies there (C2): each rank owns tokens of
 * every layer's sum (T >= N), and a buffer that the last, perhaps short, sum of a step used is not
 * touched by the next step's first. Bits as in the other forms. Bound: the link. */
#include "kernels/cuda/comm_peer.cuh"

/* A finished row: into this rank's out, and into the others' inboxes. */
template <int RANKS> struct put_and_push {
    const ll_comm_norm &a;
    const ll_comm_peer &p;
    size_t first;    /* vector of the row in out */
    size_t at_bytes; /* of the row in an inbox */
    uint32_t row, n_vecs;

    __device__ unsigned char *place(uint32_t d) const
    {
        return (unsigned char *)p.rows_in[(p.rank + d) % RANKS] + at_bytes;
    }
    __device__ void wide(uint32_t i, const uint4 &v) const
    {
        ((uint4 *)a.out[0])[first + i] = v;
#pragma unroll
        for (uint32_t d = 1; d < RANKS; d++)
            push((uint4 *)place(d) + i, v);
    }
    __device__ void narrow(uint32_t i, const uint2 &v) const
    {
        ((uint2 *)a.out[0])[first + i] = v;
#pragma unroll
        for (uint32_t d = 1; d < RANKS; d++)
            asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"((uint2 *)place(d) + i),
                         "r"(v.x), "r"(v.y)
                         : "memory");
    }
    __device__ void scale(float s) const
    {
        a.scale[0][row] = s;
#pragma unroll
        for (uint32_t d = 1; d < RANKS; d++)
            *(volatile float *)(place(d) + (size_t)n_vecs * 16) = s;
    }
};

/* Takes row from this rank's inbox; rank r sent it. */
__device__ static inline void take_row(const ll_comm_norm &a, const ll_comm_peer &p,
                                       unsigned char *from, uint32_t row, uint32_t n_vecs,
                                       uint32_t r)
{
    if (a.scale[0] == nullptr) {
        for (uint32_t i = threadIdx.x; i < n_vecs; i += blockDim.x)
            ((uint4 *)a.out[0])[(size_t)row * n_vecs + i] =
                take((uint4 *)from + i, peek((uint4 *)from + i), p, r);
        return;
    }
    for (uint32_t i = threadIdx.x; i < n_vecs; i += blockDim.x) {
        uint2 *at = (uint2 *)from + i, v;
        watch wait = {};
        for (;;) {
            asm volatile("ld.volatile.global.v2.u32 {%0, %1}, [%2];"
                         : "=r"(v.x), "=r"(v.y)
                         : "l"(at)
                         : "memory");
            if (v.x != LL_COMM_EMPTY && v.y != LL_COMM_EMPTY)
                break;
            wait.turn(p, r, LL_COMM_SUM);
        }
        *at = make_uint2(LL_COMM_EMPTY, LL_COMM_EMPTY);
        ((uint2 *)a.out[0])[(size_t)row * n_vecs + i] = v;
    }
    if (threadIdx.x == 0) { /* a scale is above 0, so no empty word */
        volatile uint32_t *at = (uint32_t *)(from + (size_t)n_vecs * 16);
        watch wait = {};
        uint32_t bits;
        while ((bits = *at) == LL_COMM_EMPTY)
            wait.turn(p, r, LL_COMM_SUM);
        *at = LL_COMM_EMPTY;
        a.scale[0][row] = __uint_as_float(bits);
    }
}

template <int RANKS, int THREADS, int VECS>
__global__ void __launch_bounds__(THREADS)
    split_norm_kernel(const ll_comm_norm a, const ll_comm_peer p, uint32_t buffer, uint32_t n_vecs)
{
    bf16x8 w[VECS];
#pragma unroll
    for (int k = 0; k < VECS; k++)
        if (threadIdx.x + k * THREADS < n_vecs)
            w[k] = ((const bf16x8 *)a.weight)[threadIdx.x + k * THREADS];
    pdl_wait();
    const bool has_rows = a.rows != nullptr;
    const uint4 *mine = (const uint4 *)a.delta[0];
    const size_t box = (size_t)buffer * RANKS * p.inbox_vecs;
    const size_t rows_box = (size_t)buffer * p.rows_bytes, stride = (size_t)n_vecs * 16 + 16;

    for (uint32_t row = blockIdx.x; row < a.n_rows; row += gridDim.x) {
        const uint32_t t = token_of(a, row), owner = t % RANKS, slot = has_rows ? row : t / RANKS;
        if (owner == p.rank)
            continue;
        for (uint32_t i = threadIdx.x; i < n_vecs; i += THREADS)
            push((uint4 *)p.inbox[owner] + box + p.rank * p.inbox_vecs + (size_t)slot * n_vecs + i,
                 never_empty(mine[(size_t)t * n_vecs + i]));
    }

    const uint32_t n_own = has_rows            ? a.n_rows
                           : a.n_rows > p.rank ? (a.n_rows - p.rank + RANKS - 1) / RANKS
                                               : 0;
    uint32_t turn = 0;
    for (uint32_t own = blockIdx.x; own < n_own; own += gridDim.x) {
        const uint32_t row = has_rows ? own : own * RANKS + p.rank, t = token_of(a, row);
        if (t % RANKS != p.rank)
            continue;
        float v[VECS][8];
#pragma unroll
        for (int k = 0; k < VECS; k++) {
            const uint32_t i = threadIdx.x + k * THREADS;
            if (i >= n_vecs)
                continue;
            const size_t at = (size_t)t * n_vecs + i;
            uint4 *from = (uint4 *)p.inbox[p.rank] + box + (size_t)own * n_vecs + i;
            sum_ranks<RANKS>(v[k], mine[at], from, p);
            const bf16x8 x = new_x(v[k], (const bf16x8 *)a.x[0] + at, a.sets_x);
            if (!has_rows)
                ((bf16x8 *)a.x[0])[at] = x;
        }
        finish_row<THREADS, VECS>(
            a, v, w, n_vecs, turn++,
            put_and_push<RANKS>{a, p, (size_t)row * n_vecs, rows_box + row * stride, row, n_vecs});
    }

    for (uint32_t row = blockIdx.x; row < a.n_rows; row += gridDim.x) {
        const uint32_t owner = token_of(a, row) % RANKS;
        if (owner != p.rank)
            take_row(a, p, (unsigned char *)p.rows_in[p.rank] + rows_box + row * stride, row,
                     n_vecs, owner);
    }
}

template <int RANKS>
static int launch_norm(const ll_comm_norm *a, const ll_comm_peer *p, uint32_t buffer,
                       cudaStream_t stream)
{
    const uint32_t n_vecs = a->n_embd / 8;

#define LAUNCH(threads, vecs)                                                                      \
    return launch_chained(split_norm_kernel<RANKS, threads, vecs>, peer_blocks(a, p), threads, 0,  \
                          stream, *a, *p, buffer, n_vecs)
    LL_COMM_BY_WIDTH(n_vecs, LAUNCH);
#undef LAUNCH
}

extern "C" bool ll_comm_norm_split_fits(const struct ll_comm_peer *peer, uint32_t n_rows,
                                        uint32_t n_last, uint32_t n_embd)
{
    const uint64_t n_vecs = n_embd / 8, n_most = n_rows > n_last ? n_rows : n_last;

    return n_rows >= peer->n_ranks && n_most * (n_vecs * 16 + 16) <= peer->rows_bytes &&
           (n_rows + peer->n_ranks - 1) / peer->n_ranks * n_vecs <= peer->inbox_vecs &&
           n_last * n_vecs <= peer->inbox_vecs;
}

extern "C" int ll_comm_norm_split(const struct ll_comm_norm *args, const struct ll_comm_peer *peer,
                                  uint32_t buffer, cudaStream_t stream)
{
    const uint32_t n_layer = args->rows != nullptr ? peer->n_ranks : args->n_rows;
    const uint32_t n_last = args->rows != nullptr ? args->n_rows : 0;

    if (!is_peer_norm(args, peer, buffer) ||
        !ll_comm_norm_split_fits(peer, n_layer, n_last, args->n_embd))
        return -EINVAL;
    if (args->n_rows == 0)
        return 0;
    return LL_COMM_BY_RANKS(peer->n_ranks, launch_norm, args, peer, buffer, stream);
}
