/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/fp8_rows.h - the loops of fp8.c, compiled twice (fp8.c, fp8_avx2.c), each time under the
 * name LL_FP8_QUANTIZE. Loops without branches over short pieces: the compiler makes vectors of
 * them, and the same bits whatever their width. */
#include "base/numbers.h"
#include "runtime/fp8.h"

#include <math.h>

#define PIECE 256u /* numbers widened at a time: 1 KiB of fp32 stays in the L1 cache */

static inline void widen_piece(float *restrict to, const void *restrict in, enum ll_dtype dtype,
                               size_t at, uint32_t n)
{
    const uint16_t *half = (const uint16_t *)in + at;
    const float *full = (const float *)in + at;

    if (dtype == LL_DTYPE_BF16)
        for (uint32_t i = 0; i < n; i++)
            to[i] = ll_f32_from_bf16(half[i]);
    else if (dtype == LL_DTYPE_F16)
        for (uint32_t i = 0; i < n; i++)
            to[i] = ll_f32_from_f16(half[i]);
    else
        for (uint32_t i = 0; i < n; i++)
            to[i] = full[i];
}

/* Sizes as integers: in fp32 they are in the same order, NaNs above infinity above the rest. */
static inline uint32_t largest_size(const float *restrict x, uint32_t n)
{
    int32_t most = 0;

    for (uint32_t i = 0; i < n; i++) {
        int32_t size = (int32_t)(ll_f32_bits(x[i]) & 0x7fffffffu);
        most = size > most ? size : most;
    }
    return (uint32_t)most;
}

static inline uint16_t scale_of(float largest)
{
    uint32_t bits = ll_f32_bits(largest / LL_E4M3_MAX);

    if (largest == 0)
        return 0x3f80;      /* 1 */
    if (bits < 0x0d800000u) /* 2^-100: the reciprocal stays far from the end of the range */
        return 0x0d80;
    return (uint16_t)((bits + 0xffffu) >> 16);
}

uint32_t LL_FP8_QUANTIZE(uint8_t *restrict out, uint16_t *restrict scale, const void *restrict in,
                         enum ll_dtype dtype, uint32_t n_rows, uint32_t n_cols)
{
    float piece[PIECE];

    for (uint32_t r = 0; r < n_rows; r++) {
        const size_t row = (size_t)r * n_cols;
        uint32_t most = 0;
        for (uint32_t c = 0; c < n_cols; c += PIECE) {
            uint32_t n = n_cols - c < PIECE ? n_cols - c : PIECE;
            widen_piece(piece, in, dtype, row + c, n);
            uint32_t size = largest_size(piece, n);
            most = size > most ? size : most;
        }
        if (most >= 0x7f800000u)
            return r;
        scale[r] = scale_of(ll_f32_from_bits(most));
        const float by = ll_f32_from_bf16(scale[r]);
        for (uint32_t c = 0; c < n_cols; c += PIECE) {
            uint32_t n = n_cols - c < PIECE ? n_cols - c : PIECE;
            widen_piece(piece, in, dtype, row + c, n);
            for (uint32_t i = 0; i < n; i++)
                out[row + c + i] = ll_e4m3_from_f32(piece[i] / by);
        }
    }
    return n_rows;
}
