/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/swiglu.cu - the gated activation, and quantisation of a GEMM's input rows.
 *
 *   out[t,f] = silu(g[t,f]) * u[t,f],  gate_up[t] = [g (F) | u (F)],  silu(x) = x / (1 + exp(-x))
 *   quantised: e4m3(y / s[t]), s[t] = min(max_f |y|, bound) / 448
 *
 * Memory bound: 6 bytes an element (5 quantised). Reference: kernels/cpu. */
#include "kernels/cuda/common.cuh"

static constexpr int THREADS = 256;

/* silu(gate) * up, each rounded to bf16 as it is made. */
__device__ static inline void gate(float (&y)[8], const float (&up)[8])
{
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float silu = __fdividef(y[j], 1.0f + __expf(-y[j]));
        y[j] = __bfloat162float(
            __float2bfloat16_rn(__bfloat162float(__float2bfloat16_rn(silu)) * up[j]));
    }
}

/* One block a row, which it keeps in registers: VECS vectors of 8 a thread, all loads in flight at
 * once. Gated values are bf16, so they are kept as such. */
template <bool GATED, int WIDE, int VECS>
__global__ void __launch_bounds__(WIDE)
    quantize_kernel(uint2 *__restrict__ out, float *__restrict__ scale,
                    const bf16x8 *__restrict__ in, uint32_t n_vecs, float bound)
{
    pdl_release();
    pdl_wait();
    const bf16x8 *row = in + (size_t)blockIdx.x * n_vecs * (GATED ? 2 : 1);
    bf16x8 kept[VECS], up[GATED ? VECS : 1];
    float amax = 0.0f;

#pragma unroll
    for (int k = 0; k < VECS; k++) {
        const uint32_t i = threadIdx.x + k * WIDE;
        kept[k] = bf16x8{};
        if (i < n_vecs)
            kept[k] = row[i];
        if constexpr (GATED) {
            up[k] = bf16x8{};
            if (i < n_vecs)
                up[k] = row[n_vecs + i];
        }
    }
#pragma unroll
    for (int k = 0; k < VECS; k++) {
        float y[8];
        unpack(kept[k], y);
        if constexpr (GATED) {
            float u[8];
            unpack(up[k], u);
            gate(y, u);
            kept[k] = pack(y);
        }
#pragma unroll
        for (int j = 0; j < 8; j++)
            amax = fmaxf(amax, fabsf(y[j]));
    }
    const float s = e4m3_scale(block_max<WIDE>(amax), bound), inverse = 1.0f / s;
    if (threadIdx.x == 0)
        scale[blockIdx.x] = s;
#pragma unroll
    for (int k = 0; k < VECS; k++) {
        const uint32_t i = threadIdx.x + k * WIDE;
        float y[8];
        unpack(kept[k], y);
        if (i < n_vecs)
            out[(size_t)blockIdx.x * n_vecs + i] = e4m3x8(y, inverse);
    }
}

/* A row too wide for that is read twice. */
template <bool GATED>
__global__ void __launch_bounds__(1024)
    quantize_wide_kernel(uint2 *__restrict__ out, float *__restrict__ scale,
                         const bf16x8 *__restrict__ in, uint32_t n_vecs, float bound)
{
    pdl_release();
    pdl_wait();
    const bf16x8 *row = in + (size_t)blockIdx.x * n_vecs * (GATED ? 2 : 1);
    float y[8], u[8], amax = 0.0f, inverse = 0.0f;

    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = threadIdx.x; i < n_vecs; i += 1024) {
            unpack(row[i], y);
            if constexpr (GATED) {
                unpack(row[n_vecs + i], u);
                gate(y, u);
            }
            if (pass == 1)
                out[(size_t)blockIdx.x * n_vecs + i] = e4m3x8(y, inverse);
#pragma unroll
            for (int j = 0; j < 8; j++)
                amax = fmaxf(amax, fabsf(y[j]));
        }
        if (pass == 1)
            break;
        const float s = e4m3_scale(block_max<1024>(amax), bound);
        inverse = 1.0f / s;
        if (threadIdx.x == 0)
            scale[blockIdx.x] = s;
    }
}

template <bool GATED>
static int quantize(void *out, float *scale, const void *in, uint32_t n_tokens, uint32_t n_vecs,
                    float bound, cudaStream_t stream)
{
#define LAUNCH(kernel, threads)                                                                    \
    return launch_chained(kernel, n_tokens, threads, 0, stream, (uint2 *)out, scale,               \
                          (const bf16x8 *)in, n_vecs, bound)
    if (n_vecs <= 256)
        LAUNCH((quantize_kernel<GATED, 256, 1>), 256);
    if (n_vecs <= 512)
        LAUNCH((quantize_kernel<GATED, 512, 1>), 512);
    if (n_vecs <= 1024)
        LAUNCH((quantize_kernel<GATED, 1024, 1>), 1024);
    if (n_vecs <= 1792) /* the 8B's 14336 */
        LAUNCH((quantize_kernel<GATED, 896, 2>), 896);
    if (n_vecs <= 2048)
        LAUNCH((quantize_kernel<GATED, 1024, 2>), 1024);
    if (n_vecs <= 3584)
        LAUNCH((quantize_kernel<GATED, 896, 4>), 896);
    LAUNCH((quantize_wide_kernel<GATED>), 1024);
#undef LAUNCH
}

__global__ void __launch_bounds__(THREADS)
    swiglu_kernel(bf16x8 *__restrict__ out, const bf16x8 *__restrict__ in, uint32_t n_vecs)
{
    pdl_release();
    pdl_wait();
    const bf16x8 *row = in + (size_t)blockIdx.y * n_vecs * 2;
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;

    if (i < n_vecs) {
        float y[8], up[8];
        unpack(row[i], y);
        unpack(row[n_vecs + i], up);
        gate(y, up);
        out[(size_t)blockIdx.y * n_vecs + i] = pack(y);
    }
}

extern "C" int ll_cuda_swiglu(void *out, float *scale, const void *gate_up, uint32_t n_tokens,
                              uint32_t n_ff, float bound, cudaStream_t stream)
{
    const uint32_t n_vecs = n_ff / 8;

    if (n_ff == 0 || n_ff % 8 != 0)
        return -EINVAL;
    if (n_tokens == 0)
        return 0;
    if (scale != nullptr)
        return quantize<true>(out, scale, gate_up, n_tokens, n_vecs, bound, stream);
    return launch_chained(swiglu_kernel, dim3((n_vecs + THREADS - 1) / THREADS, n_tokens), THREADS,
                          0, stream, (bf16x8 *)out, (const bf16x8 *)gate_up, n_vecs);
}

extern "C" int ll_cuda_quantize(void *out, float *scale, const void *x, uint32_t n_tokens,
                                uint32_t n, float bound, cudaStream_t stream)
{
    if (n == 0 || n % 8 != 0)
        return -EINVAL;
    if (n_tokens == 0)
        return 0;
    return quantize<false>(out, scale, x, n_tokens, n / 8, bound, stream);
}
