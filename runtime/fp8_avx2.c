/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/fp8_avx2.c - the loops of fp8_rows.h with AVX2. Called only after fp8.c has asked the
 * processor. */
#if defined(__x86_64__)
#define LL_FP8_QUANTIZE ll_fp8_quantize_avx2
#include "runtime/fp8_rows.h"
#endif
