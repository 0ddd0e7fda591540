/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/attend_step.cuh - a warp's part of decode attention: what it copies, and the two
 * products on it.
 *
 * A granule is 32 (bf16, D 128) or 64 cached tokens of one KV head; its K and its V are a slot each
 * of a ring that one warp alone fills and reads: waiting is cp.async.wait_group and __syncwarp.
 * Rows are 16-byte chunks, swizzled so that ldmatrix meets no bank conflict.
 *
 * mma m16n8k16 with the cache as A: M = 16 tokens (scores) or 16 dims (output), N = 8 heads of the
 * group, so that 8 heads waste nothing. Lane g = lane / 4, t = lane % 4:
 *   scores  s[.][0..3] = token g: heads 2t, 2t + 1; token g + 8: the same
 *   output  o[.][0..3] = row g: heads 2t, 2t + 1; row g + 8: the same
 * and so maxima, sums and factors of heads 2t, 2t + 1 live in lane t of every g.
 *
 * e4m3: two bytes become two f16 by one instruction, in registers. K: a lane's four bytes of a row
 * are two pairs of k, whose order is free because Q's fragment has the same. V: a transposed 16-bit
 * matrix brings two dims of two tokens; one byte permutation makes them two tokens of dim 2g (row
 * g) and of dim 2g + 1 (row g + 8). */
#ifndef KERNELS_CUDA_ATTEND_STEP_CUH
#define KERNELS_CUDA_ATTEND_STEP_CUH

#include "kernels/cuda/rope.cuh"

#include <cuda_fp16.h>

static constexpr float LOG2_E = 1.4426950408889634f;

template <int D, bool FP8> struct granule {
    static constexpr int ROW = D * (FP8 ? 1 : 2);
    static constexpr int SLOT = ROW * 64 < 8192 ? ROW * 64 : 8192; /* K or V */
    static constexpr int TOKENS = SLOT / ROW, TILES = TOKENS / 16, CHUNKS = ROW / 16;
};

/* A row's chunk c lies at chunk c ^ swizzle: any 8 rows' chunks c meet 32 different banks. */
template <int ROW> __device__ static inline uint32_t swizzle(uint32_t row)
{
    return ROW >= 128 ? row & 7 : row / 2 & 3;
}

/* Starts the copy of a slot to shared address `to`; rows from n_valid on become zero. A lane copies
 * every 32nd chunk: its place in a row and the row's low bits are its own, the rest constants. */
template <int D, bool FP8>
__device__ static inline void load_slot(uint32_t to, const unsigned char *from, uint32_t n_valid)
{
    using G = granule<D, FP8>;
    constexpr uint32_t ROWS = 32 / G::CHUNKS; /* a turn */
    const uint32_t lane = threadIdx.x % 32, row = lane / G::CHUNKS;
    const uint32_t chunk = (lane % G::CHUNKS) ^ swizzle<G::ROW>(row);

    from += lane * 16;
    to += row * G::ROW;
    if (n_valid >= G::TOKENS) {
#pragma unroll
        for (uint32_t i = 0; i < G::SLOT / 512; i++)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                             to + i * 512 + (chunk ^ swizzle<G::ROW>(i * ROWS)) * 16),
                         "l"(from + i * 512));
    } else {
#pragma unroll 1
        for (uint32_t i = 0; i < G::SLOT / 512; i++)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                             to + i * 512 + (chunk ^ swizzle<G::ROW>(i * ROWS)) * 16),
                         "l"(from + i * 512), "r"(i * ROWS + row < n_valid ? 16 : 0));
    }
}

/* The common ones take pointers; here shared addresses are numbers. */
__device__ static inline void ldmatrix4_at(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}
__device__ static inline void ldmatrix4_trans_at(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

/* c[16x8] += a[16x16] * b[16x8], f16 in, fp32 out. */
__device__ static inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                      uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <bool F16> __device__ static inline uint32_t pack_16(float low, float high)
{
    if constexpr (F16) {
        const __half2 v = __floats2half2_rn(low, high);
        return *reinterpret_cast<const uint32_t *>(&v);
    } else {
        return pack_bf16(low, high);
    }
}

/* Four e4m3 codes: the lower two and the upper two as f16. */
__device__ static inline void widen4(uint32_t codes, uint32_t &low, uint32_t &high)
{
#if __CUDA_ARCH__ >= 890
    asm("{\n\t.reg .b16 l, h;\n\tmov.b32 {l, h}, %2;\n\tcvt.rn.f16x2.e4m3x2 %0, l;\n\t"
        "cvt.rn.f16x2.e4m3x2 %1, h;\n\t}"
        : "=r"(low), "=r"(high)
        : "r"(codes));
#else
    const __half2_raw l = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)codes, __NV_E4M3);
    const __half2_raw h =
        __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(codes >> 16), __NV_E4M3);
    low = (uint32_t)l.x | (uint32_t)l.y << 16;
    high = (uint32_t)h.x | (uint32_t)h.y << 16;
#endif
}

/* An 8 x 8 matrix of 16-bit numbers, a row a lane group, transposed. */
__device__ static inline uint32_t transposed(uint32_t x)
{
    uint32_t y;

    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

/* Two bf16 numbers of a B fragment: as they are, or as f16, which ends at 65504. */
template <bool FP8> __device__ static inline uint32_t fragment_pair(float low, float high)
{
    if constexpr (FP8) {
        low = fminf(fmaxf(low, -65504.0f), 65504.0f);
        high = fminf(fmaxf(high, -65504.0f), 65504.0f);
    }
    return pack_16<FP8>(low, high);
}

__device__ static inline float2 unpack_bf16(uint32_t pair)
{
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

/* Q of the group's heads as B fragments (f16 beside e4m3 pages); heads past the group are zero.
 * Pair i of step c is dims first(c, i), first(c, i) + 1: e4m3 takes 4 consecutive ones, as a row's
 * bytes come. angle: of the row's position, [D / 2][cos, sin]; NULL: Q is rotated. */
template <int D, bool FP8, int NT>
__device__ static inline void load_heads(uint32_t (&q)[NT][D / 16][2], const bf16 *row,
                                         uint32_t n_group, const float2 *angle)
{
    const uint32_t lane = threadIdx.x % 32, t = lane % 4;

#pragma unroll
    for (int c = 0; c < D / 32; c++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t d = c * 16 + (FP8 ? t * 4 + i * 2 : t * 2 + i * 8);
            float4 cs = make_float4(1.0f, 0.0f, 1.0f, 0.0f); /* of dims d, d + 1 */
            if (angle != nullptr)
                cs = __ldg((const float4 *)(angle + d));
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const uint32_t head = n * 8 + lane / 4;
                float2 x = make_float2(0.0f, 0.0f), y = x;
                if (head < n_group) {
                    x = unpack_bf16(*(const uint32_t *)(row + head * D + d));
                    y = unpack_bf16(*(const uint32_t *)(row + head * D + D / 2 + d));
                }
                if (angle != nullptr) {
                    rotate(x.x, y.x, cs.x, cs.y);
                    rotate(x.y, y.y, cs.z, cs.w);
                    x = unpack_bf16(pack_bf16(x.x, x.y)); /* as rope_append stores it */
                    y = unpack_bf16(pack_bf16(y.x, y.y));
                }
                q[n][c][i] = fragment_pair<FP8>(x.x, x.y);
                q[n][c + D / 32][i] = fragment_pair<FP8>(y.x, y.y);
            }
        }
}

/* A whole warp puts one row (K where angle is not NULL, else V) of the newest token into its page.
 */
template <int D, bool FP8>
__device__ static inline void append_row(unsigned char *to, const bf16 *from, const float2 *angle,
                                         float scale)
{
    for (uint32_t d = threadIdx.x % 32; d < D / 2; d += 32) {
        float x = __bfloat162float(from[d]), y = __bfloat162float(from[D / 2 + d]);
        if (angle != nullptr) {
            const float2 cs = __ldg(angle + d);
            rotate(x, y, cs.x, cs.y);
        }
        if constexpr (FP8) {
            to[d] = (unsigned char)cached_e4m3(x, scale);
            to[D / 2 + d] = (unsigned char)cached_e4m3(y, scale);
        } else {
            ((bf16 *)to)[d] = __float2bfloat16_rn(x);
            ((bf16 *)to)[D / 2 + d] = __float2bfloat16_rn(y);
        }
    }
    __syncwarp(); /* before the copy of the slot reads it */
}

/* s += K Q of one granule; k: the shared address of its slot. */
template <int D, bool FP8, int NT>
__device__ static inline void granule_scores(float (&s)[granule<D, FP8>::TILES][NT][4],
                                             const uint32_t (&q)[NT][D / 16][2], uint32_t k)
{
    using G = granule<D, FP8>;
    const uint32_t lane = threadIdx.x % 32, row = lane % 16;
    const uint32_t chunk = (lane / 16) ^ swizzle<G::ROW>(row);

    k += row * G::ROW;
#pragma unroll
    for (int c = 0; c < G::CHUNKS / 2; c++)
#pragma unroll
        for (int tile = 0; tile < G::TILES; tile++) {
            uint32_t r[4]; /* tokens 0-7, 8-15 of chunk 2c; of chunk 2c + 1 */
            ldmatrix4_at(r, k + tile * 16 * G::ROW + (chunk ^ (2 * c)) * 16);
            if constexpr (FP8) {
                uint32_t a[2][4];
                widen4(r[0], a[0][0], a[0][2]);
                widen4(r[1], a[0][1], a[0][3]);
                widen4(r[2], a[1][0], a[1][2]);
                widen4(r[3], a[1][1], a[1][3]);
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    mma_f16(s[tile][n], a[0], q[n][2 * c][0], q[n][2 * c][1]);
                    mma_f16(s[tile][n], a[1], q[n][2 * c + 1][0], q[n][2 * c + 1][1]);
                }
            } else {
#pragma unroll
                for (int n = 0; n < NT; n++)
                    mma_bf16(s[tile][n], r, q[n][c][0], q[n][c][1]);
            }
        }
}

/* o += V^T P of one granule; v: the shared address of its slot. */
template <int D, bool FP8, int NT>
__device__ static inline void granule_values(float (&o)[D / 16][NT][4],
                                             const uint32_t (&p)[granule<D, FP8>::TILES][NT][2],
                                             uint32_t v)
{
    using G = granule<D, FP8>;
    const uint32_t lane = threadIdx.x % 32;
    /* e4m3: tokens 0-7, 8-15 of chunk 2c; of 2c + 1. bf16: chunks 2c, 2c + 1 of tokens 0-7; of
     * tokens 8-15. */
    const uint32_t row = FP8 ? lane % 16 : lane / 16 * 8 + lane % 8;
    const uint32_t chunk = (FP8 ? lane / 16 : lane / 8 % 2) ^ swizzle<G::ROW>(row);

    v += row * G::ROW;
#pragma unroll
    for (int tile = 0; tile < G::TILES; tile++)
#pragma unroll
        for (int c = 0; c < G::CHUNKS / 2; c++) {
            uint32_t r[4];
            ldmatrix4_trans_at(r, v + tile * 16 * G::ROW + (chunk ^ (2 * c)) * 16);
            if constexpr (FP8) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint32_t a[4];
                    widen4(__byte_perm(r[2 * half], 0, 0x3120), a[0], a[1]);
                    widen4(__byte_perm(r[2 * half + 1], 0, 0x3120), a[2], a[3]);
#pragma unroll
                    for (int n = 0; n < NT; n++)
                        mma_f16(o[2 * c + half][n], a, p[tile][n][0], p[tile][n][1]);
                }
            } else {
#pragma unroll
                for (int n = 0; n < NT; n++)
                    mma_bf16(o[c][n], r, p[tile][n][0], p[tile][n][1]);
            }
        }
}

/* A warp's running state of one work item: maximum (of raw scores), this lane's part of the sum,
 * output. */
template <int D, int NT> struct attend_state {
    float m[NT][2], l[NT][2], o[D / 16][NT][4];
};

template <int D, int NT> __device__ static inline void clear(attend_state<D, NT> &a)
{
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            a.m[n][h] = -INFINITY;
            a.l[n][h] = 0.0f;
        }
#pragma unroll
    for (int d = 0; d < D / 16; d++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a.o[d][n][i] = 0.0f;
}

/* Scores of a granule of n_valid >= 1 tokens become probabilities, as B fragments; the state moves
 * to the new maxima. unit: raw score -> power of two. */
template <int D, bool FP8, int NT>
__device__ static inline void
granule_softmax(uint32_t (&p)[granule<D, FP8>::TILES][NT][2], attend_state<D, NT> &a,
                float (&s)[granule<D, FP8>::TILES][NT][4], uint32_t n_valid, float unit)
{
    using G = granule<D, FP8>;
    const uint32_t lane = threadIdx.x % 32;

    if (n_valid < G::TOKENS)
#pragma unroll
        for (int tile = 0; tile < G::TILES; tile++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (tile * 16 + lane / 4 + i / 2 * 8 >= n_valid)
                        s[tile][n][i] = -INFINITY;

    float top[NT][2];
    bool has_grown = false;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = a.m[n][h];
#pragma unroll
            for (int tile = 0; tile < G::TILES; tile++)
                x = fmaxf(x, fmaxf(s[tile][n][h], s[tile][n][2 + h]));
            x = fmaxf(x, __shfl_xor_sync(~0u, x, 4));
            x = fmaxf(x, __shfl_xor_sync(~0u, x, 8));
            x = fmaxf(x, __shfl_xor_sync(~0u, x, 16));
            top[n][h] = x;
            has_grown |= x > a.m[n][h];
        }
    if (__any_sync(~0u, has_grown)) /* otherwise all factors are 1 */
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float keep = exp2_fast((a.m[n][h] - top[n][h]) * unit);
                a.m[n][h] = top[n][h];
                a.l[n][h] *= keep;
#pragma unroll
                for (int d = 0; d < D / 16; d++) {
                    a.o[d][n][h] *= keep;
                    a.o[d][n][2 + h] *= keep;
                }
            }
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const float base[2] = {top[n][0] * unit, top[n][1] * unit};
#pragma unroll
        for (int tile = 0; tile < G::TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[tile][n][i] = exp2_fast(fmaf(s[tile][n][i], unit, -base[i % 2]));
                a.l[n][i % 2] += s[tile][n][i];
            }
            p[tile][n][0] = transposed(pack_16<FP8>(s[tile][n][0], s[tile][n][1]));
            p[tile][n][1] = transposed(pack_16<FP8>(s[tile][n][2], s[tile][n][3]));
        }
    }
}

#endif
