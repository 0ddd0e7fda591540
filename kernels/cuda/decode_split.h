/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/decode_split.h - how decode attention cuts a row into work items: for the host,
 * which counts them, and for the kernel, which finds them.
 *
 * It depends on the row's length and the model alone, never on the batch: so neither do a row's
 * bits. */
#ifndef KERNELS_CUDA_DECODE_SPLIT_H
#define KERNELS_CUDA_DECODE_SPLIT_H

#include <stdint.h>

#ifdef __CUDACC__
#define LL_CUDA_BOTH __host__ __device__
#else
#define LL_CUDA_BOTH
#endif

/* Warps of a CTA that merge, each its own part of the numbers. */
#define LL_CUDA_DECODE_MERGERS 2u
/* Cached tokens of the smallest item. */
#ifndef LL_CUDA_SPLIT_MIN
#define LL_CUDA_SPLIT_MIN 512u
#endif

/* Cached tokens an item covers: a power of two, a multiple of a page. A row has at most 32 items a
 * KV head (more where heads are few), which one CTA merges. */
LL_CUDA_BOTH static inline uint32_t ll_cuda_split(uint32_t n_kv, uint32_t n_kv_heads)
{
    const uint32_t n_max = n_kv_heads >= 8 ? 32 : n_kv_heads >= 4 ? 64 : 128;
    uint32_t split = LL_CUDA_SPLIT_MIN;

    while ((uint64_t)split * n_max < n_kv)
        split *= 2;
    return split;
}

LL_CUDA_BOTH static inline uint32_t ll_cuda_n_items(uint32_t n_kv, uint32_t n_kv_heads)
{
    return (n_kv - 1) / ll_cuda_split(n_kv, n_kv_heads) + 1;
}

/* Floats of partial results of one item and KV head: [G][D] outputs, [MERGERS][G] of {maximum, sum}
 * (a copy a warp). */
LL_CUDA_BOTH static inline uint32_t ll_cuda_partial_floats(uint32_t n_group, uint32_t head_dim)
{
    return n_group * (head_dim + 2 * LL_CUDA_DECODE_MERGERS);
}

#endif
