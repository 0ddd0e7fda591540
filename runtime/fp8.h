/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/fp8.h - rows of weights into e4m3 with a scale a row: what `--quantization fp8` and
 * `llring quantize` do, the same way.
 *
 *   scale = (largest size in the row) / 448, rounded up to a bf16 number; 1 for a row of zeros
 *   q     = x / scale in fp32, rounded to the nearest e4m3
 * Rounded up, so that nothing saturates; a bf16 number, so that every reader of the checkpoint,
 * whatever type it keeps scales in, multiplies by the same one. */
#ifndef RUNTIME_FP8_H
#define RUNTIME_FP8_H

#include "kernels/backend.h"

/* n_rows rows of n_cols numbers of dtype BF16, F16 or F32, one after the other. out: as many e4m3,
 * scale: [n_rows] bf16. Gives the number of a row that holds a NaN or an infinity, n_rows when
 * none does; what comes behind such a row is not written. out may be the same memory as in: no
 * number is written before it, and what lies up to it, is read. */
uint32_t ll_fp8_quantize(uint8_t *out, uint16_t *scale, const void *in, enum ll_dtype dtype,
                         uint32_t n_rows, uint32_t n_cols);

/* The two that it chooses between, for tests: the same bits. */
uint32_t ll_fp8_quantize_plain(uint8_t *out, uint16_t *scale, const void *in, enum ll_dtype dtype,
                               uint32_t n_rows, uint32_t n_cols);
#if defined(__x86_64__)
uint32_t ll_fp8_quantize_avx2(uint8_t *out, uint16_t *scale, const void *in, enum ll_dtype dtype,
                              uint32_t n_rows, uint32_t n_cols);
#endif

#endif
