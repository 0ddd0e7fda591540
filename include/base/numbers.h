/* SPDX-License-Identifier: Apache-2.0 */
/* base/numbers.h - single numbers between fp32 and the formats of 16 and 8 bits.
 *
 * Widening is exact. Narrowing rounds to nearest, ties to even, and keeps a NaN a NaN.
 * e4m3 is the OCP format without infinities ("e4m3fn"): sign, 4 bits of exponent (bias 7), 3 of
 * fraction; largest 448, smallest 2^-9, NaN 0x7f and 0xff. Narrowing saturates at 448. */
#ifndef BASE_NUMBERS_H
#define BASE_NUMBERS_H

#include <stdint.h>
#include <string.h>

static inline uint32_t ll_f32_bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static inline float ll_f32_from_bits(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof(x));
    return x;
}

static inline float ll_f32_from_bf16(uint16_t x)
{
    return ll_f32_from_bits((uint32_t)x << 16);
}

static inline uint16_t ll_bf16_from_f32(float x)
{
    uint32_t bits = ll_f32_bits(x);

    if ((bits & 0x7fffffffu) > 0x7f800000u) /* NaN: adding below could wrap it into a number */
        return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float ll_round_bf16(float x)
{
    return ll_f32_from_bf16(ll_bf16_from_f32(x));
}

/* Without branches, so that a loop over it becomes vectors. */
static inline float ll_f32_from_f16(uint16_t x)
{
    uint32_t size = (uint32_t)(x & 0x7fffu) << 13, sign = (uint32_t)(x & 0x8000u) << 16;
    uint32_t is_special = 0u - (uint32_t)((x & 0x7c00u) == 0x7c00u);
    /* Exponents lie 112 apart. Exact, and it makes normal numbers of subnormal ones. */
    uint32_t bits = ll_f32_bits(ll_f32_from_bits(size) * 0x1p112f);

    return ll_f32_from_bits(sign | bits | (is_special & (0x7f800000u | size)));
}

#define LL_E4M3_MAX 448.0f

static inline float ll_f32_from_e4m3(uint8_t x)
{
    uint32_t sign = (uint32_t)(x & 0x80u) << 24, exponent = (x >> 3) & 15u, fraction = x & 7u;

    if ((x & 0x7fu) == 0x7fu)
        return ll_f32_from_bits(sign | 0x7fc00000u);
    if (exponent == 0) { /* zero and subnormals */
        float value = (float)fraction * 0x1p-9f;
        return sign != 0 ? -value : value;
    }
    return ll_f32_from_bits(sign | (exponent + 120u) << 23 | fraction << 20);
}

/* Without branches, so that a loop over it becomes vectors. */
static inline uint8_t ll_e4m3_from_f32(float x)
{
    uint32_t bits = ll_f32_bits(x), sign = bits >> 24 & 0x80u, size = bits & 0x7fffffffu;
    /* 2^-6 and more: round the fraction to 3 bits, a carry goes into the exponent. */
    uint32_t normal = ((size + 0x7ffffu + (size >> 20 & 1u)) >> 20) - (120u << 3);
    /* Below: 2^14 + x is rounded to a multiple of 2^-9, which its low bits then count. */
    uint32_t small = ll_f32_bits(ll_f32_from_bits(size) + 0x1p14f) - ll_f32_bits(0x1p14f);
    uint32_t is_small = 0u - (uint32_t)(size < 0x3c800000u);  /* 2^-6 */
    uint32_t is_large = 0u - (uint32_t)(size >= 0x43e00000u); /* 448 */
    uint32_t is_nan = (uint32_t)(size > 0x7f800000u);
    uint32_t q =
        (is_small & small) | (~is_small & ~is_large & normal) | (is_large & 0x7eu) | is_nan;

    return (uint8_t)(sign | q);
}

#endif
