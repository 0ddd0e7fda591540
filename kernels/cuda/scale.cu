/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/scale.cu - what goes around a product on e4m3 weights that cuBLASLt cannot scale.
 *
 *   scale: y[t, n] = bf16(y[t, n] * x_scale[t] * w_scale[n]), after an 8.9 product without scales
 *   widen: out[r, k] = bf16(w[r, k] * scale[r] * block[r / 16, k / 128]), before a bf16 product:
 *          on 8.0, and of weights with block scales everywhere
 *
 * Memory bound: 4 bytes an element of y; 3 of w. Reference: tests/kernels/test_cuda_ops_product.c.
 */
#include "kernels/cuda/common.cuh"

static constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS)
    scale_kernel(bf16x8 *__restrict__ y, const float *__restrict__ x_scale,
                 const float *__restrict__ w_scale, uint32_t n_vecs)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n_vecs)
        return;
    const float sx = x_scale[blockIdx.y];
    float f[8];
    unpack(y[(size_t)blockIdx.y * n_vecs + i], f);
#pragma unroll
    for (int j = 0; j < 8; j++)
        f[j] *= sx * w_scale[i * 8 + j];
    y[(size_t)blockIdx.y * n_vecs + i] = pack(f);
}

__global__ void __launch_bounds__(THREADS)
    widen_kernel(bf16x8 *__restrict__ out, const uint2 *__restrict__ w,
                 const float *__restrict__ scale, const float *__restrict__ block, uint32_t n_vecs)
{
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x, row = blockIdx.y;
    if (i >= n_vecs)
        return;
    const uint2 q = w[(size_t)row * n_vecs + i];
    float s = scale[row];
    if (block != nullptr) /* 16 vectors are 128 columns */
        s *= block[row / 16 * ((n_vecs + 15) / 16) + i / 16];
    float f[8];
#pragma unroll
    for (int h = 0; h < 4; h++) {
        const uint32_t word = h < 2 ? q.x : q.y;
        const __half2_raw pair =
            __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(word >> (16 * (h & 1))), __NV_E4M3);
        const float2 p = __half22float2(*reinterpret_cast<const __half2 *>(&pair));
        f[2 * h] = p.x * s;
        f[2 * h + 1] = p.y * s;
    }
    out[(size_t)row * n_vecs + i] = pack(f);
}

extern "C" int ll_cuda_scale(void *y, const float *x_scale, const float *w_scale, uint32_t n_tokens,
                             uint32_t n, cudaStream_t stream)
{
    const uint32_t n_vecs = n / 8;

    if (n == 0 || n % 8 != 0 || n_tokens > 65535)
        return -EINVAL;
    if (n_tokens == 0)
        return 0;
    scale_kernel<<<dim3((n_vecs + THREADS - 1) / THREADS, n_tokens), THREADS, 0, stream>>>(
        (bf16x8 *)y, x_scale, w_scale, n_vecs);
    return launched();
}

extern "C" int ll_cuda_widen(void *out, const void *w, const float *scale, const float *block,
                             uint32_t n_rows, uint32_t k, cudaStream_t stream)
{
    const uint32_t n_vecs = k / 8;

    if (k == 0 || k % 8 != 0 || n_rows > 65535)
        return -EINVAL;
    if (n_rows == 0)
        return 0;
    widen_kernel<<<dim3((n_vecs + THREADS - 1) / THREADS, n_rows), THREADS, 0, stream>>>(
        (bf16x8 *)out, (const uint2 *)w, scale, block, n_vecs);
    return launched();
}

extern "C" uint32_t ll_cuda_level(void)
{
    static uint32_t known; /* of all GPUs of a process, which are of one kind; set at open */
    int device = 0, major = 0, minor = 0;
    cudaFuncAttributes made = {};

    if (known != 0)
        return known;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
        cudaFuncGetAttributes(&made, scale_kernel) != cudaSuccess)
        return 0;
    const int own = major * 10 + minor, level = own < made.ptxVersion ? own : made.ptxVersion;
    return known = level >= 90 ? 90 : level >= 89 ? 89 : level >= 80 ? 80 : 0;
}
