/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/attend.cuh - what the two attention kernels share: where a page row lies, how a tile
 * of 64 cached tokens comes into shared memory, and the two matrix products on it.
 *
 * Page layout of one layer: [page][k = 0, v = 1][kv head][64 tokens][D], so K and V of a (page,
 * head) are one contiguous block each. In shared memory rows are bf16, 16-byte chunks XORed by row
 * & 7: ldmatrix then meets no bank conflict. e4m3 pages are widened on the way in.
 *
 * mma m16n8k16 fragments: M = 16 query rows (heads of a group, or (token, head) pairs), N = 8
 * cached tokens (scores) or 8 dims (output). */
#ifndef KERNELS_CUDA_ATTEND_CUH
#define KERNELS_CUDA_ATTEND_CUH

#include "kernels/cuda/common.cuh"

static constexpr int TILE = (int)LL_PAGE_TOKENS; /* cached tokens a tile: one page */
static constexpr int ATTEND_THREADS = 128;
static constexpr float LOG2E = 1.4426950408889634f;

template <bool FP8>
__device__ static inline unsigned char *kv_row(unsigned char *kv, uint32_t page, uint32_t which,
                                               uint32_t head, uint32_t token, uint32_t n_kv_heads,
                                               uint32_t head_dim)
{
    const size_t row = (((size_t)page * 2 + which) * n_kv_heads + head) * LL_PAGE_TOKENS + token;
    return kv + row * head_dim * (FP8 ? 1 : 2);
}

/* Of an e4m3 cache; i: head of K, or n_kv_heads + head of V. */
template <bool FP8>
__device__ static inline float scale_of(const float *__restrict__ kv_scale, uint32_t i)
{
    return FP8 && kv_scale != nullptr ? kv_scale[i] : 1.0f;
}

static constexpr int STAGES = 3; /* tiles in shared memory: two on the way while one is worked on */

/* Shared memory of one CTA: STAGES raw {K, V}; FP8: one wide {K, V} more. */
template <int D, bool FP8> struct attend_smem {
    static constexpr int RAW = TILE * D * (FP8 ? 1 : 2);
    static constexpr int WIDE = TILE * D * 2;
    static constexpr int BYTES = 2 * STAGES * RAW + (FP8 ? 2 * WIDE : 0);
};

/* Starts the copy of one page's K and V (rows from n_valid on become zero) into a stage. */
template <int D, bool FP8>
__device__ static inline void load_tile(unsigned char *stage, const unsigned char *k,
                                        const unsigned char *v, uint32_t n_valid)
{
    constexpr int ROW = D * (FP8 ? 1 : 2), CHUNKS = ROW / 16;
#pragma unroll
    for (int c = threadIdx.x; c < TILE * CHUNKS; c += ATTEND_THREADS) {
        const int row = c / CHUNKS, chunk = c % CHUNKS;
        const bool valid = row < (int)n_valid;
        const int to = row * ROW + (FP8 ? chunk : chunk ^ (row & 7)) * 16;
        copy16_async(stage + to, k + c * 16, valid);
        copy16_async(stage + attend_smem<D, FP8>::RAW + to, v + c * 16, valid);
    }
}

/* e4m3 tile -> swizzled bf16 tile. */
template <int D>
__device__ static inline void widen_tile(unsigned char *wide, const unsigned char *raw)
{
    for (int c = threadIdx.x; c < TILE * D / 8; c += ATTEND_THREADS) {
        const int row = c / (D / 8), chunk = c % (D / 8);
        const uint2 q = *(const uint2 *)(raw + c * 8);
        float f[8];
#pragma unroll
        for (int h = 0; h < 4; h++) {
            const uint32_t word = h < 2 ? q.x : q.y;
            const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(
                (__nv_fp8x2_storage_t)(word >> (16 * (h & 1))), __NV_E4M3);
            const float2 p = __half22float2(*reinterpret_cast<const __half2 *>(&pair));
            f[2 * h] = p.x;
            f[2 * h + 1] = p.y;
        }
        *(bf16x8 *)(wide + row * D * 2 + (chunk ^ (row & 7)) * 16) = pack(f);
    }
}

/* s[n][.] += Q (16 x D, in registers) times K rows [row0, row0 + 8 N) of a swizzled tile, N even.
 */
template <int D, int N>
__device__ static inline void scores(float (&s)[N][4], const uint32_t (&q)[D / 16][4],
                                     const unsigned char *k, int row0)
{
    const int lane = threadIdx.x % 32, part = lane / 8;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        const int row = row0 + n * 8 + (part / 2) * 8 + lane % 8;
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            uint32_t b[4];
            const int chunk = step * 2 + part % 2;
            ldmatrix4(b, k + row * D * 2 + (chunk ^ (row & 7)) * 16);
            mma_bf16(s[n], q[step], b[0], b[1]);
            mma_bf16(s[n + 1], q[step], b[2], b[3]);
        }
    }
}

/* o += P (16 x 16, fragment p) times V rows [row0, row0 + 16). */
template <int D>
__device__ static inline void accumulate(float (&o)[D / 8][4], const uint32_t (&p)[4],
                                         const unsigned char *v, int row0)
{
    const int lane = threadIdx.x % 32, part = lane / 8;
    const int row = row0 + (part % 2) * 8 + lane % 8;
#pragma unroll
    for (int d = 0; d < D / 8; d += 2) {
        uint32_t b[4];
        const int chunk = d + part / 2;
        ldmatrix4_trans(b, v + row * D * 2 + (chunk ^ (row & 7)) * 16);
        mma_bf16(o[d], p, b[0], b[1]);
        mma_bf16(o[d + 1], p, b[2], b[3]);
    }
}

/* Online softmax over N score tiles (already masked with -inf, in units of log2): updates running
 * max m and sum l of rows lane/4 and lane/4 + 8, rescales o, turns s into probabilities. */
template <int D, int N>
__device__ static inline void softmax_step(float (&s)[N][4], float (&o)[D / 8][4], float (&m)[2],
                                           float (&l)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = -INFINITY;
#pragma unroll
        for (int n = 0; n < N; n++)
            top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const float m_new = fmaxf(m[r], top);
        /* A row that has seen nothing yet keeps m = -inf: exp2(-inf - 0) = 0, no NaN. */
        const float base = m_new == -INFINITY ? 0.0f : m_new;
        const float keep = exp2f(m[r] - base);
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++) {
            s[n][2 * r] = exp2f(s[n][2 * r] - base);
            s[n][2 * r + 1] = exp2f(s[n][2 * r + 1] - base);
            sum += s[n][2 * r] + s[n][2 * r + 1];
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        l[r] = l[r] * keep + sum;
        m[r] = m_new;
#pragma unroll
        for (int d = 0; d < D / 8; d++) {
            o[d][2 * r] *= keep;
            o[d][2 * r + 1] *= keep;
        }
    }
}

/* Score tiles 2i, 2i + 1 as the A fragment of 16 tokens. */
template <int N>
__device__ static inline void probability(uint32_t (&p)[4], const float (&s)[N][4], int i)
{
    p[0] = pack_bf16(s[2 * i][0], s[2 * i][1]);
    p[1] = pack_bf16(s[2 * i][2], s[2 * i][3]);
    p[2] = pack_bf16(s[2 * i + 1][0], s[2 * i + 1][1]);
    p[3] = pack_bf16(s[2 * i + 1][2], s[2 * i + 1][3]);
}

#endif
