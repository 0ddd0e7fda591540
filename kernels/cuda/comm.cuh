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

/* Where a finished row goes: the same place in every part held here. */
struct put_parts {
    const ll_comm_norm &a;
    size_t first; /* vector of the row */
    uint32_t row;

    __device__ void wide(uint32_t i, const uint4 &v) const
    {
        for (uint32_t p = 0; p < a.n_parts; p++)
            ((uint4 *)a.out[p])[first + i] = v;
    }
    __device__ void narrow(uint32_t i, const uint2 &v) const
    {
        for (uint32_t p = 0; p < a.n_parts; p++)
            ((uint2 *)a.out[p])[first + i] = v;
    }
    __device__ void scale(float s) const
    {
        for (uint32_t p = 0; p < a.n_parts; p++)
            a.scale[p][row] = s;
    }
};

/* Over a block, one barrier each: part is not the one of the call before, so nobody still reads it.
 * Fixed order: the same bits. */
template <int THREADS> __device__ static inline float sum_over(float x, float *part)
{
    const uint32_t lane = threadIdx.x % 32;
    x = warp_sum(x);
    if (lane == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(lane < THREADS / 32 ? part[lane] : 0.0f);
}

template <int THREADS> __device__ static inline float max_over(float x, float *part)
{
    const uint32_t lane = threadIdx.x % 32;
    x = warp_max(x);
    if (lane == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_max(lane < THREADS / 32 ? part[lane] : 0.0f);
}

/* The norm of a row whose new x is v, to put. turn: counts a block's rows. Finished rows, too, may
 * be sent: nothing is empty. */
template <int THREADS, int VECS, class Put>
__device__ static inline void finish_row(const ll_comm_norm &a, float (&v)[VECS][8],
                                         const bf16x8 (&w)[VECS], uint32_t n_vecs, uint32_t turn,
                                         const Put &put)
{
    __shared__ float part[2][2][32];
    float sum_sq = 0.0f, amax = 0.0f;

#pragma unroll
    for (int k = 0; k < VECS; k++)
        if (threadIdx.x + k * THREADS < n_vecs)
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum_sq += v[k][j] * v[k][j];
    const float norm =
        rsqrtf(sum_over<THREADS>(sum_sq, part[turn % 2][0]) / (float)(n_vecs * 8) + a.eps);

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
        if (a.scale[0] == nullptr) {
            const bf16x8 packed = pack(v[k]);
            put.wide(i, never_empty(*reinterpret_cast<const uint4 *>(&packed)));
        }
    }
    if (a.scale[0] == nullptr)
        return;

    const float s = e4m3_scale(max_over<THREADS>(amax, part[turn % 2][1]), a.bound),
                inverse = 1.0f / s;
    if (threadIdx.x == 0)
        put.scale(s);
#pragma unroll
    for (int k = 0; k < VECS; k++) {
        const uint32_t i = threadIdx.x + k * THREADS;
        if (i < n_vecs) {
            uint2 q = e4m3x8(v[k], inverse);
            q.x = q.x == LL_COMM_EMPTY ? 0 : q.x; /* e4m3 of +0, -0, +0, -0 */
            q.y = q.y == LL_COMM_EMPTY ? 0 : q.y;
            put.narrow(i, q);
        }
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
            CALL(512, 2);                                                                          \
        else                                                                                       \
            CALL(1024, 2);                                                                         \
    } while (0)

#endif
