/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/swiglu.cu - the gated activation, and quantisation of a GEMM's input rows.
 *
 *   out[t,f] = silu(g[t,f]) * u[t,f],  gate_up[t] = [g (F) | u (F)],  silu(x) = x / (1 + exp(-x))
 *   quantised: e4m3(y / s[t]), s[t] = min(max_f |y|, bound) / 448
 *
 * Memory bound: 6 bytes an element (5 quantised). Reference: kernels/cpu. */
#include "kernels/cuda/common.cuh"

static constexpr int THREADS = 256;
static constexpr int WIDE = 512; /* of a block that has a whole row */

/* One value row: silu(gate) * up, or a plain bf16 row. */
template <bool GATED>
__device__ static inline void load_row(const bf16x8 *row, uint32_t i, uint32_t n_vecs,
                                       float (&y)[8])
{
    unpack(row[i], y);
    if constexpr (GATED) {
        float u[8];
        unpack(row[n_vecs + i], u);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float silu = y[j] / (1.0f + __expf(-y[j]));
            y[j] = __bfloat162float(
                __float2bfloat16_rn(__bfloat162float(__float2bfloat16_rn(silu)) * u[j]));
        }
    }
}

/* VECS: 16-byte vectors a thread keeps in registers, so that the row is read once; 0: a row too
 * wide for that is read twice. */
template <bool GATED, int VECS>
__global__ void __launch_bounds__(WIDE)
    quantize_kernel(uint2 *__restrict__ out, float *__restrict__ scale,
                    const bf16x8 *__restrict__ in, uint32_t n_vecs, float bound)
{
    pdl_release();
    pdl_wait();
    const bf16x8 *row = in + (size_t)blockIdx.x * n_vecs * (GATED ? 2 : 1);
    float kept[VECS > 0 ? VECS : 1][8], amax = 0.0f;

    if constexpr (VECS > 0) {
#pragma unroll
        for (int k = 0; k < VECS; k++) {
            const uint32_t i = threadIdx.x + k * WIDE;
            if (i < n_vecs) {
                load_row<GATED>(row, i, n_vecs, kept[k]);
#pragma unroll
                for (int j = 0; j < 8; j++)
                    amax = fmaxf(amax, fabsf(kept[k][j]));
            }
        }
    } else {
        for (uint32_t i = threadIdx.x; i < n_vecs; i += WIDE) {
            load_row<GATED>(row, i, n_vecs, kept[0]);
#pragma unroll
            for (int j = 0; j < 8; j++)
                amax = fmaxf(amax, fabsf(kept[0][j]));
        }
    }
    const float s = fmaxf(fminf(block_max<WIDE>(amax), bound) / 448.0f, 1e-12f), inverse = 1.0f / s;
    if (threadIdx.x == 0)
        scale[blockIdx.x] = s;
    if constexpr (VECS > 0) {
#pragma unroll
        for (int k = 0; k < VECS; k++) {
            const uint32_t i = threadIdx.x + k * WIDE;
            if (i < n_vecs)
                out[(size_t)blockIdx.x * n_vecs + i] = e4m3x8(kept[k], inverse);
        }
    } else {
        for (uint32_t i = threadIdx.x; i < n_vecs; i += WIDE) {
            load_row<GATED>(row, i, n_vecs, kept[0]);
            out[(size_t)blockIdx.x * n_vecs + i] = e4m3x8(kept[0], inverse);
        }
    }
}

template <bool GATED>
static int quantize(void *out, float *scale, const void *in, uint32_t n_tokens, uint32_t n_vecs,
                    float bound, cudaStream_t stream)
{
    const uint32_t per_thread = (n_vecs + WIDE - 1) / WIDE;
#define LAUNCH(n)                                                                                  \
    return launch_chained(quantize_kernel<GATED, n>, n_tokens, WIDE, 0, stream, (uint2 *)out,      \
                          scale, (const bf16x8 *)in, n_vecs, bound)
    if (per_thread <= 1)
        LAUNCH(1);
    else if (per_thread <= 2)
        LAUNCH(2);
    else if (per_thread <= 4)
        LAUNCH(4);
    else if (per_thread <= 8)
        LAUNCH(8);
    else
        LAUNCH(0);
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
        float y[8];
        load_row<true>(row, i, n_vecs, y);
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
