/* SPDX-License-Identifier: Apache-2.0 */
#define LL_FP8_QUANTIZE ll_fp8_quantize_plain
#include "runtime/fp8_rows.h"

uint32_t ll_fp8_quantize(uint8_t *out, uint16_t *scale, const void *in, enum ll_dtype dtype,
                         uint32_t n_rows, uint32_t n_cols)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return ll_fp8_quantize_avx2(out, scale, in, dtype, n_rows, n_cols);
#endif
    return ll_fp8_quantize_plain(out, scale, in, dtype, n_rows, n_cols);
}
