/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/rope.cuh - the rotation itself, the same bits wherever it is done: rope_append.cu
 * for a step with prompts, attend_decode.cu for one of decode rows alone.
 *
 *   (a, b) = (x[i], x[i + D/2]):  x[i] = a cos - b sin,  x[i + D/2] = b cos + a sin
 *
 * Half-split order (HF), cos and sin of pos * inv_freq[i] from a table made in double precision on
 * the host. Products and sums in fp32 in a fixed order. */
#ifndef KERNELS_CUDA_ROPE_CUH
#define KERNELS_CUDA_ROPE_CUH

#include "kernels/cuda/common.cuh"

__device__ static inline void rotate(float &a, float &b, float cosine, float sine)
{
    const float x = __fmaf_rn(a, cosine, -__fmul_rn(b, sine));

    b = __fmaf_rn(b, cosine, __fmul_rn(a, sine));
    a = x;
}

/* What an e4m3 page holds of x: as the CPU backend, a quotient and not a product. */
__device__ static inline uint32_t cached_e4m3(float x, float scale)
{
    return __nv_cvt_float_to_fp8(__fdiv_rn(x, scale), __NV_SATFINITE, __NV_E4M3);
}

#endif
