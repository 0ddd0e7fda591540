/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/simd.h - one vector vocabulary in three widths, same bits from each.
 *
 * Every reduction of this backend is defined on 16 lanes: lane l takes the elements l, l + 16,
 * l + 32, ... in order, each with one fused multiply-add, and the lanes are then added as a fixed
 * tree: first pairs, (l, l + 8) for fp32 and (2l, 2l + 1) for bf16 numbers, then of those eight
 * sums i and i + 4, i and i + 2, i and i + 1. A vector here has LL_LANES of the 16: all of them
 * with AVX-512, half with AVX2 (two vectors), all, as an array, in portable C. So no result depends
 * on the width, and tests compare the three bitwise.
 *
 * With AVX2 the two halves are the even and the odd bf16 numbers of 32 bytes, because these widen
 * with one shift or one mask; what they are multiplied with is put in the same order first
 * (vf_pack). That is why bf16 pairs are neighbours.
 *
 * This file is included by inner_body.h alone, which inner.c, inner_avx2.c and inner_avx512.c
 * compile with their own flags. */
#ifndef KERNELS_CPU_SIMD_H
#define KERNELS_CPU_SIMD_H

#include "base/numbers.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define LL_LANES 16
typedef __m512 vf;

static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
/* 2^-8 of 16 e4m3 numbers: sign and the other 7 bits, moved to where f16 has sign and the low bits
 * of its exponent. Subnormals come out right, a NaN does not. */
static inline vf vf_load_e4m3(const uint8_t *p)
{
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
    wide = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16((short)0xbfff));
    return _mm512_cvtph_ps(wide);
}
static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
static inline vf vf_zero_below(vf y, vf x, vf low)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ), y);
}
static inline vf vf_times_pow2(vf y, vf t)
{
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), n));
}
static inline vf vf_round_bf16(vf x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    up = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32((int)0xffff0000u)));
}
static inline __m128 vf_fold4(__m256 x)
{
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}
static inline __m256 vf_fold8(const vf *x, bool is_pairs)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);

    if (!is_pairs)
        return _mm256_add_ps(_mm512_castps512_ps256(x[0]), _mm512_extractf32x8_ps(x[0], 1));
    vf pair = _mm512_add_ps(x[0], _mm512_permute_ps(x[0], 0xb1)); /* with its neighbour */
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(even, pair));
}
/* Part 0, the only one, of 16 bf16 numbers. */
static inline vf vf_load_half(const uint16_t *p, int part)
{
    (void)part;
    return vf_load_bf16(p);
}
static inline void vf_pack(float *to, const float *from, bool is_pairs)
{
    (void)is_pairs;
    vf_store(to, vf_load(from));
}

#elif defined(__AVX2__)
#include <immintrin.h>
#define LL_LANES 8
typedef __m256 vf;

static inline vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}
static inline vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
/* 2^-8 of 8 e4m3 numbers, as with AVX-512. */
static inline vf vf_load_e4m3(const uint8_t *p)
{
    __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)p));
    wide = _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16((short)0xbfff));
    return _mm256_cvtph_ps(wide);
}
static inline vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
static inline vf vf_zero_below(vf y, vf x, vf low)
{
    return _mm256_and_ps(y, _mm256_cmp_ps(x, low, _CMP_NLT_UQ));
}
static inline vf vf_times_pow2(vf y, vf t)
{
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), n));
}
static inline vf vf_round_bf16(vf x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    up = _mm256_blendv_epi8(up, quiet, _mm256_castps_si256(nan));
    return _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32((int)0xffff0000u)));
}
static inline __m128 vf_fold4(__m256 x)
{
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}
static inline __m256 vf_fold8(const vf *x, bool is_pairs)
{
    (void)is_pairs; /* the halves already lie so: natural or even and odd */
    return _mm256_add_ps(x[0], x[1]);
}
/* The even (part 0) or the odd ones of 16 bf16 numbers. Two shifts and no mask: a tile of 3 x 4
 * sums, 3 rows and a token fill the 16 registers. */
static inline vf vf_load_half(const uint16_t *p, int part)
{
    __m256i both = _mm256_loadu_si256((const __m256i *)p);

    both = part == 0 ? both : _mm256_srli_epi32(both, 16);
    return _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
}
/* 16 numbers in the order in which vf_load_half() gives its own. */
static inline void vf_pack(float *to, const float *from, bool is_pairs)
{
    vf a = vf_load(from), b = vf_load(from + 8);

    if (is_pairs) {
        __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
        __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
        a = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
        b = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8));
    }
    vf_store(to, a);
    vf_store(to + 8, b);
}

#else
#define LL_LANES 16
typedef struct {
    float f[LL_LANES];
} vf;

/* One lane at a time: x stands for the lane of the expression. */
#define LL_EACH_LANE(expression)                                                                   \
    vf out;                                                                                        \
    for (int l = 0; l < LL_LANES; l++)                                                             \
        out.f[l] = (expression);                                                                   \
    return out

static inline vf vf_set1(float x)
{
    LL_EACH_LANE(x);
}
static inline vf vf_load(const float *p)
{
    LL_EACH_LANE(p[l]);
}
static inline void vf_store(float *p, vf x)
{
    for (int l = 0; l < LL_LANES; l++)
        p[l] = x.f[l];
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    LL_EACH_LANE(ll_f32_from_bf16(p[l]));
}
static inline vf vf_load_e4m3(const uint8_t *p)
{
    LL_EACH_LANE(ll_f32_from_e4m3(p[l]) * 0x1p-8f);
}
static inline vf vf_add(vf a, vf b)
{
    LL_EACH_LANE(a.f[l] + b.f[l]);
}
static inline vf vf_sub(vf a, vf b)
{
    LL_EACH_LANE(a.f[l] - b.f[l]);
}
static inline vf vf_mul(vf a, vf b)
{
    LL_EACH_LANE(a.f[l] * b.f[l]);
}
static inline vf vf_div(vf a, vf b)
{
    LL_EACH_LANE(a.f[l] / b.f[l]);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    LL_EACH_LANE(fmaf(a.f[l], b.f[l], c.f[l]));
}
/* The second operand where one is a NaN, as the instructions do. */
static inline vf vf_max(vf a, vf b)
{
    LL_EACH_LANE(a.f[l] > b.f[l] ? a.f[l] : b.f[l]);
}
static inline vf vf_min(vf a, vf b)
{
    LL_EACH_LANE(a.f[l] < b.f[l] ? a.f[l] : b.f[l]);
}
static inline vf vf_zero_below(vf y, vf x, vf low)
{
    LL_EACH_LANE(x.f[l] < low.f[l] ? 0.0f : y.f[l]);
}
static inline vf vf_times_pow2(vf y, vf t)
{
    LL_EACH_LANE(ll_f32_from_bits(ll_f32_bits(y.f[l]) + (ll_f32_bits(t.f[l]) << 23)));
}
static inline vf vf_round_bf16(vf x)
{
    LL_EACH_LANE(ll_round_bf16(x.f[l]));
}
static inline vf vf_load_half(const uint16_t *p, int part)
{
    (void)part;
    return vf_load_bf16(p);
}
static inline void vf_pack(float *to, const float *from, bool is_pairs)
{
    (void)is_pairs;
    vf_store(to, vf_load(from));
}
#undef LL_EACH_LANE
#endif

/* Vectors that make up the 16 lanes. */
#define LL_PARTS (16 / LL_LANES)

/* The fixed tree over 16 lanes; is_pairs where bf16 numbers were summed. */
#if defined(__AVX2__)
static inline float vf_sum16(const vf *x, bool is_pairs)
{
    __m128 r = vf_fold4(vf_fold8(x, is_pairs));

    r = _mm_add_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_add_ss(r, _mm_movehdup_ps(r)));
}
#else
static inline float vf_sum16(const vf *x, bool is_pairs)
{
    const float *lane = x[0].f;
    float r[8];

    for (int l = 0; l < 8; l++)
        r[l] = is_pairs ? lane[2 * l] + lane[2 * l + 1] : lane[l] + lane[l + 8];
    for (int l = 0; l < 4; l++)
        r[l] += r[l + 4];
    return (r[0] + r[2]) + (r[1] + r[3]);
}
#endif

/* e^x to about 1 ulp for x in [-87, 88]; 0 below, a NaN stays. Range reduction by a power of two
 * and a polynomial of degree 6 (the coefficients of the Cephes library's expf). */
static inline vf vf_exp(vf x)
{
    const vf magic = vf_set1(12582912.0f); /* 1.5 x 2^23: its low bits hold the integer part */
    vf c = vf_min(vf_set1(88.0f), vf_max(vf_set1(-87.0f), x));
    vf t = vf_fma(c, vf_set1(1.44269504088896341f), magic);
    vf n = vf_sub(t, magic);
    vf r = vf_fma(n, vf_set1(-0.693359375f), c);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_fma(vf_mul(r, r), p, vf_add(r, vf_set1(1.0f)));
    return vf_zero_below(vf_times_pow2(p, t), x, vf_set1(-87.0f));
}

#endif
