/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/weights.cu - element-wise work of loading: widen, narrow, random values. */
#include "kernels/cuda/common.cuh"

#include <cuda_fp16.h>

static constexpr int THREADS = 256;
static constexpr int BLOCKS = 2112;

__device__ static inline float uniform(uint64_t seed, uint64_t i)
{
    uint32_t bits[4];
    philox(seed, (uint32_t)(i >> 2), (uint32_t)(i >> 34), 0, 0, bits);
    const uint32_t word = bits[i & 3];
    /* (-1, 1) without 0: a benchmark on zeros measures something else. */
    return ((float)(word >> 8) + 0.5f) * 0x1p-23f - 1.0f;
}

__global__ void __launch_bounds__(THREADS)
    random_bf16(bf16 *out, uint64_t n, float spread, uint64_t seed)
{
    for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; i < n;
         i += (uint64_t)gridDim.x * THREADS)
        out[i] = __float2bfloat16_rn(uniform(seed, i) * spread);
}

__global__ void __launch_bounds__(THREADS)
    random_e4m3(unsigned char *out, uint64_t n, uint64_t seed)
{
    for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; i < n;
         i += (uint64_t)gridDim.x * THREADS)
        out[i] = __nv_cvt_float_to_fp8(uniform(seed, i) * 240.0f, __NV_SATFINITE, __NV_E4M3);
}

__global__ void __launch_bounds__(THREADS) convert_f32(bf16 *out, const float *in, uint64_t n)
{
    for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; i < n;
         i += (uint64_t)gridDim.x * THREADS)
        out[i] = __float2bfloat16_rn(in[i]);
}

__global__ void __launch_bounds__(THREADS) convert_f16(bf16 *out, const __half *in, uint64_t n)
{
    for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; i < n;
         i += (uint64_t)gridDim.x * THREADS)
        out[i] = __float2bfloat16_rn(__half2float(in[i]));
}

__global__ void __launch_bounds__(THREADS) fill_f32(float *out, float value, uint64_t n)
{
    for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; i < n;
         i += (uint64_t)gridDim.x * THREADS)
        out[i] = value;
}

static inline int blocks(uint64_t n)
{
    const uint64_t wanted = (n + THREADS - 1) / THREADS;
    return (int)(wanted < BLOCKS ? wanted : BLOCKS);
}

extern "C" int ll_cuda_convert_bf16(void *out, const void *in, enum ll_dtype from, uint64_t n,
                                    cudaStream_t stream)
{
    if (n == 0)
        return 0;
    if (from == LL_DTYPE_F32)
        convert_f32<<<blocks(n), THREADS, 0, stream>>>((bf16 *)out, (const float *)in, n);
    else if (from == LL_DTYPE_F16)
        convert_f16<<<blocks(n), THREADS, 0, stream>>>((bf16 *)out, (const __half *)in, n);
    else
        return -EINVAL;
    return launched();
}

extern "C" int ll_cuda_random_bf16(void *out, uint64_t n, float spread, uint64_t seed,
                                   cudaStream_t stream)
{
    if (n == 0)
        return 0;
    random_bf16<<<blocks(n), THREADS, 0, stream>>>((bf16 *)out, n, spread, seed);
    return launched();
}

extern "C" int ll_cuda_random_e4m3(void *out, uint64_t n, uint64_t seed, cudaStream_t stream)
{
    if (n == 0)
        return 0;
    random_e4m3<<<blocks(n), THREADS, 0, stream>>>((unsigned char *)out, n, seed);
    return launched();
}

extern "C" int ll_cuda_fill_f32(float *out, float value, uint64_t n, cudaStream_t stream)
{
    if (n == 0)
        return 0;
    fill_f32<<<blocks(n), THREADS, 0, stream>>>(out, value, n);
    return launched();
}
