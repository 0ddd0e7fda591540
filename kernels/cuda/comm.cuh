/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/comm.cuh - a row from its sum on, the same in all forms, so that they give the same
 * bits: one block a row, thread i has the 16-byte vectors i, i + THREADS. */
#ifndef KERNELS_CUDA_COMM_CUH
#define KERNELS_CUDA_COMM_CUH

#include "kernels/cuda/comm.h"
#include "kernels/cuda/common.cuh"

/* What is never sent: see comm.h. */
__device__ static inline uint4 never_empty(uint4 v)
{
    v.x = v.x == LL_COMM_EMPTY ? 0 : v.x;
    v.y = v.y == LL_COMM_EMPTY ? 0 : v.y;
    v.z = v.z == LL_COMM_EMPTY ? 0 : v.z;
    v.w = v.w == LL_COMM_EMPTY ? 0 : v.w;
    return v;
}

__device__ static inline void unpack(const uint4 &v, float (&f)[8])
{
    unpack(*reinterpret_cast<const bf16x8 *>(&v), f);
}

/* sum += v. */
__device__ static inline void add(float (&sum)[8], const uint4 &v)
{
    float f[8];
    unpack(v, f);
#pragma unroll
    for (int j = 0; j < 8; j++)
        sum[j] += f[j];
}

/* sum: of the ranks; becomes the new x, rounded. The vector to store. */
__device__ static inline bf16x8 new_x(float (&sum)[8], const bf16x8 *x, bool sets_x)
{
    if (!sets_x) {
        float f[8];
        unpack(*x, f);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum[j] = f[j] + sum[j];
    }
    const bf16x8 v = pack(sum);
    unpack(v, sum);
    return v;
}

/* The norm of a row whose new x is v, to all of n_parts places. */
template <int THREADS, int VECS>
__device__ static inline void finish_row(const ll_comm_norm &a, uint32_t row, float (&v)[VECS][8],
                                         const bf16x8 (&w)[VECS], uint32_t n_vecs)
{
    float sum_sq = 0.0f, amax = 0.0f;

#pragma unroll
    for (int k = 0; k < VECS; k++)
        if (threadIdx.x + k * THREADS < n_vecs)
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum_sq += v[k][j] * v[k][j];
    const float norm = rsqrtf(block_sum<THREADS>(sum_sq) / (float)(n_vecs * 8) + a.eps);

#pragma unroll
    for (int k = 0; k < VECS; k++) {
        const uint32_t i = threadIdx.x + k * THREADS;
        if (i >= n_vecs)
            continue;
        float f[8];
        unpack(w[k], f);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            v[k][j] = __bfloat162float(
                __float2bfloat16_rn(__bfloat162float(__float2bfloat16_rn(v[k][j] * norm)) * f[j]));
            amax = fmaxf(amax, fabsf(v[k][j]));
        }
        if (a.scale[0] == nullptr)
            for (uint32_t p = 0; p < a.n_parts; p++)
                ((bf16x8 *)a.out[p])[(size_t)row * n_vecs + i] = pack(v[k]);
    }
    if (a.scale[0] == nullptr)
        return;

    const float s = fmaxf(fminf(block_max<THREADS>(amax), a.bound) / 448.0f, 1e-12f),
                inverse = 1.0f / s;
    if (threadIdx.x < a.n_parts)
        a.scale[threadIdx.x][row] = s;
#pragma unroll
    for (int k = 0; k < VECS; k++) {
        const uint32_t i = threadIdx.x + k * THREADS;
        if (i < n_vecs)
            for (uint32_t p = 0; p < a.n_parts; p++)
                ((uint2 *)a.out[p])[(size_t)row * n_vecs + i] = e4m3x8(v[k], inverse);
    }
}

/* Threads and vectors a thread for a row of n_vecs <= 2048. */
#define LL_COMM_BY_WIDTH(n_vecs, CALL)                                                             \
    do {                                                                                           \
        if ((n_vecs) <= 256)                                                                       \
            CALL(256, 1);                                                                          \
        else if ((n_vecs) <= 512)                                                                  \
            CALL(512, 1);                                                                          \
        else if ((n_vecs) <= 1024)                                                                 \
            CALL(1024, 1);                                                                         \
        else                                                                                       \
            CALL(1024, 2);                                                                         \
    } while (0)

#endif
