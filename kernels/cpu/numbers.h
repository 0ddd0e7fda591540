/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/numbers.h - single numbers between the 16-bit formats and fp32.
 *
 * Widening is exact. Narrowing to bf16 rounds to nearest, ties to even, and keeps a NaN a NaN. */
#ifndef KERNELS_CPU_NUMBERS_H
#define KERNELS_CPU_NUMBERS_H

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

static inline float ll_f32_from_f16(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, exponent = (x >> 10) & 31u,
             fraction = x & 0x3ffu;

    if (exponent == 31)
        return ll_f32_from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) { /* zero and subnormals: fraction x 2^-24, exact in fp32 */
        float value = (float)fraction * 0x1p-24f;
        return sign != 0 ? -value : value;
    }
    return ll_f32_from_bits(sign | (exponent + 112u) << 23 | fraction << 13);
}

#endif
