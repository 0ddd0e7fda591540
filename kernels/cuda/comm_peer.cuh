/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/comm_peer.cuh - a word to a peer, a word from one, and the limit of waiting. */
#ifndef KERNELS_CUDA_COMM_PEER_CUH
#define KERNELS_CUDA_COMM_PEER_CUH

#include "kernels/cuda/comm.cuh"

__device__ static inline void push(uint4 *to, const uint4 &v)
{
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
}

__device__ static inline uint4 peek(const uint4 *from)
{
    uint4 v;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

__device__ static inline bool has_come(const uint4 &v)
{
    return v.x != LL_COMM_EMPTY && v.y != LL_COMM_EMPTY && v.z != LL_COMM_EMPTY &&
           v.w != LL_COMM_EMPTY;
}

/* Counts turns of a wait; past the limit says who waits for whom and ends the kernel. */
struct watch {
    uint32_t n;
    uint64_t from_ns;

    __device__ void turn(const ll_comm_peer &p, uint32_t whom, uint32_t what)
    {
        if (++n % 256 != 0)
            return;
        if (from_ns == 0) {
            from_ns = now_ns();
            return;
        }
        if (now_ns() - from_ns < p.wait_ns)
            return;
        p.late->rank = p.rank;
        p.late->peer = whom;
        p.late->what = what;
        __threadfence_system(); /* the host reads them when it reads 1 */
        *(volatile uint32_t *)&p.late->is_set = 1;
        __threadfence_system();
        __trap();
    }
};

/* Until rank r's word is at from; it is empty again then. */
__device__ static inline uint4 take(uint4 *from, uint4 v, const ll_comm_peer &p, uint32_t r)
{
    watch wait = {};

    while (!has_come(v)) {
        wait.turn(p, r, LL_COMM_SUM);
        v = peek(from);
    }
    *from = make_uint4(LL_COMM_EMPTY, LL_COMM_EMPTY, LL_COMM_EMPTY, LL_COMM_EMPTY);
    return v;
}

/* The token that row i of a sum is of. */
__device__ static inline uint32_t token_of(const ll_comm_norm &a, uint32_t row)
{
    if (a.rows == nullptr)
        return row;
    const uint32_t t = a.rows[row].token;
    return t == LL_CUDA_NONE ? 0 : t;
}

/* sum: of all ranks' words of one place, rank 0 first. mine: this rank's own; from: where rank 0's
 * comes into its inbox. */
template <int RANKS>
__device__ static inline void sum_ranks(float (&sum)[8], const uint4 &mine, uint4 *from,
                                        const ll_comm_peer &p)
{
    uint4 come[RANKS];
#pragma unroll
    for (uint32_t r = 0; r < RANKS; r++) /* all on the way before the first is waited for */
        come[r] = r == p.rank ? never_empty(mine) : peek(from + r * p.inbox_vecs);
#pragma unroll
    for (uint32_t r = 0; r < RANKS; r++)
        if (r != p.rank)
            come[r] = take(from + r * p.inbox_vecs, come[r], p, r);
    unpack(come[0], sum);
#pragma unroll
    for (uint32_t r = 1; r < RANKS; r++)
        add(sum, come[r]);
}

/* What both forms ask of their arguments, but for room in the inboxes. */
static inline bool is_peer_norm(const ll_comm_norm *a, const ll_comm_peer *p, uint32_t buffer)
{
    return a->n_embd != 0 && a->n_embd % 8 == 0 && a->n_embd / 8 <= 2048 && a->n_parts == 1 &&
           buffer < LL_COMM_BUFFERS && p->n_blocks_max != 0;
}

/* No more than are resident at once, since a block waits for those of other ranks. */
static inline uint32_t peer_blocks(const ll_comm_norm *a, const ll_comm_peer *p)
{
    return a->n_rows < p->n_blocks_max ? a->n_rows : p->n_blocks_max;
}

/* CALL<n_ranks>(...); -EINVAL where no kernel was made for so many. */
#define LL_COMM_BY_RANKS(n_ranks, CALL, ...)                                                       \
    ((n_ranks) == 2   ? CALL<2>(__VA_ARGS__)                                                       \
     : (n_ranks) == 4 ? CALL<4>(__VA_ARGS__)                                                       \
     : (n_ranks) == 8 ? CALL<8>(__VA_ARGS__)                                                       \
                      : -EINVAL)

#endif
