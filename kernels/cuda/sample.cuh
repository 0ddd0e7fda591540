/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/sample.cuh - the sampler's shared vocabulary: the order of ids, mass, noise.
 *
 * Both samplers (sample.cu, sample_cluster.cu) make every number that decides by these functions,
 * so that they choose the same id bit for bit.
 *
 *   order   larger value first, lower id first on ties; both zeros are equal
 *   prefix  what a filter keeps: all ids above a key and those at it up to an id
 *   mass    in units of 2^-40 of the largest: 2^17 ids of at most 2^40 fit 64 bits, and sums in
 *           integers do not depend on their order */
#ifndef KERNELS_CUDA_SAMPLE_CUH
#define KERNELS_CUDA_SAMPLE_CUH

#include "kernels/cuda/common.cuh"

struct best_id {
    float value;
    uint32_t id;
};

__device__ static inline bool is_better(float a, uint32_t ia, float b, uint32_t ib)
{
    return a > b || (a == b && ia < ib);
}

__device__ static inline best_id warp_best(best_id mine)
{
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        const float v = __shfl_xor_sync(~0u, mine.value, d);
        const uint32_t id = __shfl_xor_sync(~0u, mine.id, d);
        if (is_better(v, id, mine.value, mine.id))
            mine = {v, id};
    }
    return mine;
}

/* Larger float, larger key; both zeros have the same: they are equal, and the lower id is first. */
__device__ static inline uint32_t key_of(float x)
{
    const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f)); /* -0 + 0 is +0 */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ static inline float value_of(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

struct prefix {
    uint32_t key, last_id;
};

__device__ static inline bool is_in(const prefix &p, uint32_t key, uint32_t id)
{
    return key > p.key || (key == p.key && id <= p.last_id);
}

/* Step 4 of the sampler: an id that was seen before, as its penalty word says. */
__device__ static inline float penalised(float x, uint32_t word, const ll_cuda_slot &slot)
{
    const uint32_t count = word & 0x7fffu;

    if (word == 0)
        return x;
    x = x > 0.0f ? __fdiv_rn(x, slot.repetition) : __fmul_rn(x, slot.repetition);
    return x - __fmaf_rn(slot.frequency, (float)count, count > 0 ? slot.presence : 0.0f);
}

__device__ static inline unsigned long long mass_of(float y, float top)
{
    return (unsigned long long)(exp2f(__fsub_rn(y, top) * 1.4426950408889634f) * 0x1p40f);
}

__device__ static inline uint64_t mass_target(float top_p, uint64_t total)
{
    const uint64_t target = (uint64_t)ceil((double)top_p * (double)total);

    return target > 0 ? target : 1;
}

/* Gumbel noise added to y; bits from Philox. */
__device__ static inline float noisy(float y, uint32_t bits)
{
    const float u = ((float)(bits >> 9) + 0.5f) * 0x1p-23f;

    return __fsub_rn(y, logf(-logf(u)));
}

/* One more output of this id: its word of ll_cuda_tables.penalty. */
__device__ static inline void count_id(uint16_t *word)
{
    const uint32_t count = *word & 0x7fffu;
    *word = (uint16_t)(0x8000u | (count < 0x7fffu ? count + 1 : count));
}

#endif
