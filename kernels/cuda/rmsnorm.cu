/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/rmsnorm.cu - residual add, RMS norm, and (FP8 models) per-token quantisation.
 *
 *   x[t,e] += delta[t,e]                                  (bf16, when delta is given)
 *   y[t,e]  = bf16(x[t,e] * rsqrt(mean_e x^2 + eps)) * weight[e]
 *   out     = bf16(y), or e4m3(y / s[t]) with s[t] = min(max_e |y|, bound) / 448
 *
 * Sums in fp32, fixed order. Memory bound: x and delta read, x and out written; one block a token
 * keeps the row in registers (E <= 16384). Reference: kernels/cpu. */
#include "kernels/cuda/common.cuh"

static constexpr int THREADS = 256;
static constexpr int VECS_MAX = 8; /* 8 x 256 x 8 = 16384 elements a row */

/* IS_FEW: of a few rows, one waits for its loads, so all are in flight before the first is used; of
 * many, more rows at once are worth more than that. The bits are the same. */
template <int VECS, bool IS_FEW>
__global__ void __launch_bounds__(THREADS)
    rmsnorm_kernel(void *__restrict__ out, float *__restrict__ scale, bf16x8 *__restrict__ x,
                   const bf16x8 *__restrict__ delta, const bf16x8 *__restrict__ weight,
                   const ll_cuda_logit *__restrict__ rows, uint32_t n_vecs, float eps, float bound)
{
    pdl_release();
    /* Weights belong to no kernel of the step: they come while the one before drains; but where a
     * row is so wide that registers would not do. */
    constexpr bool IS_EARLY = VECS <= 4;
    bf16x8 w_own[IS_EARLY ? VECS : 1];
    if constexpr (IS_EARLY)
#pragma unroll
        for (int k = 0; k < VECS; k++)
            if (threadIdx.x + k * THREADS < n_vecs)
                w_own[k] = weight[threadIdx.x + k * THREADS];
    pdl_wait();
    uint32_t t = blockIdx.x;
    if (rows != nullptr)
        t = rows[blockIdx.x].token == LL_CUDA_NONE ? 0 : rows[blockIdx.x].token;
    float v[VECS][8];
    float sum_sq = 0.0f;
    bf16x8 of_x[IS_FEW ? VECS : 1], of_delta[IS_FEW ? VECS : 1];

    if constexpr (IS_FEW) {
#pragma unroll
        for (int k = 0; k < VECS; k++) {
            const uint32_t i = threadIdx.x + k * THREADS;
            if (i < n_vecs) {
                of_x[k] = x[(size_t)t * n_vecs + i];
                if (delta != nullptr)
                    of_delta[k] = delta[(size_t)t * n_vecs + i];
            }
        }
    }
#pragma unroll
    for (int k = 0; k < VECS; k++) {
        const uint32_t i = threadIdx.x + k * THREADS;
        if (i < n_vecs) {
            unpack(IS_FEW ? of_x[IS_FEW ? k : 0] : x[(size_t)t * n_vecs + i], v[k]);
            if (delta != nullptr) {
                float d[8];
                unpack(IS_FEW ? of_delta[IS_FEW ? k : 0] : delta[(size_t)t * n_vecs + i], d);
#pragma unroll
                for (int j = 0; j < 8; j++)
                    v[k][j] += d[j];
                const bf16x8 sum = pack(v[k]);
                /* With a gather, several rows may share a token: only the plain form writes x. */
                if (rows == nullptr)
                    x[(size_t)t * n_vecs + i] = sum;
                unpack(sum, v[k]);
            }
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum_sq += v[k][j] * v[k][j];
        }
    }
    const float norm = rsqrtf(block_sum<THREADS>(sum_sq) / (float)(n_vecs * 8) + eps);

    float amax = 0.0f;
#pragma unroll
    for (int k = 0; k < VECS; k++) {
        const uint32_t i = threadIdx.x + k * THREADS;
        if (i < n_vecs) {
            float w[8];
            unpack(IS_EARLY ? w_own[IS_EARLY ? k : 0] : weight[i], w);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                v[k][j] = __bfloat162float(__float2bfloat16_rn(
                    __bfloat162float(__float2bfloat16_rn(v[k][j] * norm)) * w[j]));
                amax = fmaxf(amax, fabsf(v[k][j]));
            }
            if (scale == nullptr)
                ((bf16x8 *)out)[(size_t)blockIdx.x * n_vecs + i] = pack(v[k]);
        }
    }
    if (scale == nullptr)
        return;

    const float s = e4m3_scale(block_max<THREADS>(amax), bound), inverse = 1.0f / s;
    if (threadIdx.x == 0)
        scale[blockIdx.x] = s;
#pragma unroll
    for (int k = 0; k < VECS; k++) {
        const uint32_t i = threadIdx.x + k * THREADS;
        if (i < n_vecs) {
            ((uint2 *)out)[(size_t)blockIdx.x * n_vecs + i] = e4m3x8(v[k], inverse);
        }
    }
}

extern "C" int ll_cuda_rmsnorm(void *out, float *scale, void *x, const void *delta,
                               const void *weight, const struct ll_cuda_logit *rows,
                               uint32_t n_rows, uint32_t n_embd, float eps, float bound,
                               cudaStream_t stream)
{
    const uint32_t n_vecs = n_embd / 8, per_thread = (n_vecs + THREADS - 1) / THREADS;

    if (n_embd == 0 || n_embd % 8 != 0 || per_thread > VECS_MAX)
        return -EINVAL;
    if (n_rows == 0)
        return 0;
#define LAUNCH(n, is_few)                                                                          \
    return launch_chained(rmsnorm_kernel<n, is_few>, n_rows, THREADS, 0, stream, out, scale,       \
                          (bf16x8 *)x, (const bf16x8 *)delta, (const bf16x8 *)weight, rows,        \
                          n_vecs, eps, bound)
    const bool is_few = n_rows <= 256;
    if (per_thread <= 1)
        LAUNCH(1, true);
    if (per_thread <= 2 && is_few)
        LAUNCH(2, true);
    if (per_thread <= 2)
        LAUNCH(2, false);
    if (per_thread <= 4 && is_few)
        LAUNCH(4, true);
    if (per_thread <= 4)
        LAUNCH(4, false);
    LAUNCH(8, false);
#undef LAUNCH
}
