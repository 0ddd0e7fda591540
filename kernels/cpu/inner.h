/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/inner.h - the inner loops, chosen once at open by what the processor can do.
 *
 * All three tables give the same bits (simd.h says why), so the choice is about speed alone.
 *   I1  every length called n16 is a multiple of 16; buffers are padded, pads hold zeros unless a
 *       function says otherwise
 *   I2  what is computed for one row and one token does not depend on which others are computed
 *       in the same call
 * Dims: R rows (out features), M tokens, K reduced length, D head_dim padded to 16. */
#ifndef KERNELS_CPU_INNER_H
#define KERNELS_CPU_INNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How numbers lie in memory: weights and KV pages. Activations are always fp32. An e4m3 number is
 * taken for 2^-8 of its value, because it then widens by way of f16; its scale makes up for it
 * (struct ll_cpu_rows). It must not be a NaN. */
enum ll_cpu_form { LL_FORM_BF16 = 0, LL_FORM_F32 = 1, LL_FORM_E4M3 = 2 };
#define LL_CPU_E4M3_UNIT 256.0f

static inline size_t ll_cpu_form_bytes(enum ll_cpu_form form)
{
    return form == LL_FORM_F32 ? 4 : form == LL_FORM_BF16 ? 2 : 1;
}

/* K is summed in blocks of this many, block sums added in order: a block of a few tokens stays in
 * the L1 cache (4 tokens x 1024 x 4 B = 16 KiB). Part of the definition: it fixes the bits. */
#define LL_CPU_K_BLOCK 1024u

/* Columns that share a scale where a row has several. A block of K is then one of these. */
#define LL_CPU_SCALE_COLS 128u

/* Past this many tokens they go round the rows, not the rows round them: what lies in L1 is then
 * a block of tokens while the rows come from L2. */
#define LL_CPU_FEW_TOKENS 8u

/* Keys of one softmax block: those of a page. Part of the definition. */
#define LL_CPU_KEYS 64u

struct ll_cpu_rows { /* rows of numbers, as a product takes them */
    const void *data;
    enum ll_cpu_form form;
    size_t ld;          /* numbers from row to row */
    const float *scale; /* e4m3: [row][n_scales], each LL_CPU_E4M3_UNIT times the weights' */
    uint32_t n_scales;  /* of a row: 1, or one for each LL_CPU_SCALE_COLS columns; 0: scale[0] for
                           all rows */
};

struct ll_cpu_inner {
    const char *name; /* "AVX-512" */

    /* out[m * ld_out + r] = sum over k of w[r][k] * x[m * ld_x + k]; with scales, that of its
     * columns times the sum of each block of K */
    void (*dots)(float *out, size_t ld_out, const struct ll_cpu_rows *w, const float *x,
                 size_t ld_x, uint32_t n_rows, uint32_t n_tokens, uint32_t k16);

    /* One softmax block of one query. p [64]: scores of the first n_keys on entry, on return the
     * weights e^(score * scale - *top), zeros after n_keys. *top and *sum (start: -inf, 0) move
     * on; gives the factor for what was accumulated before. */
    float (*softmax)(float *p, uint32_t n_keys, float scale, float *top, float *sum);

    /* (e4m3 values count 2^-8 of what they are)
     * o[q * ld_o + d] = o * factor[q] + sum over j of p[q * 64 + j] * v[j * ld_v + d] */
    void (*mix)(float *o, size_t ld_o, const float *factor, const float *p, const void *v,
                enum ll_cpu_form form, size_t ld_v, uint32_t n_queries, uint32_t n_keys,
                uint32_t d16);

    /* out = round(round(x * rsqrt(mean of n x^2 + eps)) * weight); round only with is_bf16 */
    void (*rmsnorm)(float *out, const float *x, const float *weight, uint32_t n, uint32_t n16,
                    float eps, bool is_bf16);
    /* out = round(gate * sigmoid(gate) * up), gate and up rounded first */
    void (*swiglu)(float *out, const float *gate, const float *up, uint32_t n16, bool is_bf16);
    /* x = round(x + round(y)) */
    void (*add)(float *x, const float *y, uint32_t n16, bool is_bf16);
    /* out = round(x) */
    void (*store)(float *out, const float *x, uint32_t n16, bool is_bf16);

    /* Largest of x; -inf for none. NaNs may be skipped. */
    float (*max)(const float *x, uint32_t n16);
    /* out = e^((x - top) / divisor) unless NULL; gives the sum, a NaN where x has one. */
    double (*exp_sum)(float *out, const float *x, float top, float divisor, uint32_t n16);
};

extern const struct ll_cpu_inner ll_cpu_inner_portable;
#if defined(__x86_64__)
extern const struct ll_cpu_inner ll_cpu_inner_avx2;
extern const struct ll_cpu_inner ll_cpu_inner_avx512;
#endif

/* By name ("portable", "avx2", "avx512"), or the best for NULL; NULL where this processor or the
 * system cannot run it or no such name exists. */
const struct ll_cpu_inner *ll_cpu_inner_find(const char *name);

#endif
