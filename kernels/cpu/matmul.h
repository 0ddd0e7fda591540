/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/matmul.h - products with weight matrices, cut into items.
 *
 *   y[t, r] = sum over k of w[r, k] * x[t, k]      T tokens, R rows (out features), K
 *
 * Each y has its own fixed order of summation (inner.h), so the cut changes no bit. Decode is
 * bound by reading w: an item takes all tokens and some rows, so w is read once. Prefill is bound
 * by arithmetic: an item is a block of rows that stays in L2 while a block of tokens passes. */
#ifndef KERNELS_CPU_MATMUL_H
#define KERNELS_CPU_MATMUL_H

#include "kernels/cpu/weights.h"

/* Rows of an item: a multiple of 48, so that tiles of 3, 4 and 8 rows and vectors of 16 fit. */
#define LL_CPU_ITEM_ROWS 48u
/* Tokens of an item: a multiple of the tiles' 4 and 6. */
#define LL_CPU_ITEM_TOKENS 48u
#define LL_CPU_ITEM_OUT    (LL_CPU_ITEM_ROWS * LL_CPU_ITEM_TOKENS) /* numbers an item makes */

struct ll_cpu_cut {
    uint32_t n_rows, n_tokens;         /* all of them */
    uint32_t item_rows, item_tokens;   /* of one item */
    uint32_t n_row_items, n_tok_items; /* items = the product */
};

struct ll_cpu_block { /* what one item computes */
    uint32_t row, n_rows, token, n_tokens;
};

/* n_items_min: items worth having, for balance between threads. */
struct ll_cpu_cut ll_cpu_cut(uint32_t n_rows, uint32_t n_tokens, uint32_t n_items_min);

static inline uint32_t ll_cpu_cut_items(const struct ll_cpu_cut *cut)
{
    return cut->n_row_items * cut->n_tok_items;
}

struct ll_cpu_block ll_cpu_cut_block(const struct ll_cpu_cut *cut, uint32_t item);

/* y [n_tokens][n_rows up to 16]: the block of w x. x is the step's [T][ld_x], pads zero; y's pads
 * become zero. At most LL_CPU_ITEM_OUT numbers. */
void ll_cpu_matmul(const struct ll_cpu_inner *inner, float *y, const struct ll_cpu_matrix *w,
                   const float *x, size_t ld_x, const struct ll_cpu_block *block);

#endif
