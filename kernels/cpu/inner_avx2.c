/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/inner_avx2.c - the inner loops with AVX2 and FMA. Called only after inner.c has
 * asked the processor. */
#if defined(__x86_64__)
#define LL_INNER_TABLE ll_cpu_inner_avx2
#define LL_INNER_NAME  "AVX2"
#include "kernels/cpu/inner_body.h"
#endif
