/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/inner_avx512.c - the inner loops with AVX-512 (F, BW, DQ, VL). Called only after
 * inner.c has asked the processor.
 *
 * avx512bf16's vdpbf16ps is left alone on purpose: it flushes subnormals and adds pairs in an
 * order of its own, so its bits differ from the other tables'; decode is bound by memory anyway. */
#if defined(__x86_64__)
#define LL_INNER_TABLE ll_cpu_inner_avx512
#define LL_INNER_NAME  "AVX-512"
#include "kernels/cpu/inner_body.h"
#endif
