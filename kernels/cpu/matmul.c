/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/matmul.h"
#include "base/bits.h"

struct ll_cpu_cut ll_cpu_cut(uint32_t n_rows, uint32_t n_tokens, uint32_t n_items_min)
{
    struct ll_cpu_cut cut = {.n_rows = n_rows, .n_tokens = n_tokens};

    cut.n_tok_items = (uint32_t)ll_div_ceil(n_tokens, LL_CPU_ITEM_TOKENS);
    cut.item_tokens = (uint32_t)ll_div_ceil(n_tokens, cut.n_tok_items);
    /* As many rows as the item's output has room for, fewer where items would be too few. */
    uint32_t rows_max = LL_CPU_ITEM_OUT / cut.item_tokens / LL_CPU_ITEM_ROWS * LL_CPU_ITEM_ROWS;
    if (cut.item_tokens > LL_CPU_FEW_TOKENS) /* 96 rows x 1024 x 2 B stay in L2 for the tokens */
        rows_max = rows_max < 2 * LL_CPU_ITEM_ROWS ? rows_max : 2 * LL_CPU_ITEM_ROWS;
    uint32_t n_wanted = (uint32_t)ll_div_ceil(n_items_min, cut.n_tok_items);
    uint32_t rows = (uint32_t)ll_div_ceil(n_rows, n_wanted);
    rows = (uint32_t)ll_div_ceil(rows, LL_CPU_ITEM_ROWS) * LL_CPU_ITEM_ROWS;
    cut.item_rows = rows < rows_max ? rows : rows_max;
    cut.n_row_items = (uint32_t)ll_div_ceil(n_rows, cut.item_rows);
    return cut;
}

struct ll_cpu_block ll_cpu_cut_block(const struct ll_cpu_cut *cut, uint32_t item)
{
    /* Rows first: neighbours in time share the tokens, which are the larger part in prefill. */
    struct ll_cpu_block block = {
        .row = item % cut->n_row_items * cut->item_rows,
        .token = item / cut->n_row_items * cut->item_tokens,
    };

    block.n_rows = (uint32_t)ll_min_u64(cut->item_rows, cut->n_rows - block.row);
    block.n_tokens = (uint32_t)ll_min_u64(cut->item_tokens, cut->n_tokens - block.token);
    return block;
}

void ll_cpu_matmul(const struct ll_cpu_inner *inner, float *y, const struct ll_cpu_matrix *w,
                   const float *x, size_t ld_x, const struct ll_cpu_block *block)
{
    const size_t ld_y = ll_align_up(block->n_rows, 16);
    const struct ll_cpu_rows rows = {
        .data = (const char *)w->data + (size_t)block->row * w->stride * ll_cpu_form_bytes(w->form),
        .form = w->form,
        .ld = w->stride,
        .scale = w->scale != NULL ? w->scale + (size_t)block->row * w->n_scales : NULL,
        .n_scales = w->n_scales,
    };

    for (uint32_t t = 0; t < block->n_tokens; t++)
        for (size_t r = block->n_rows; r < ld_y; r++)
            y[t * ld_y + r] = 0;
    inner->dots(y, ld_y, &rows, x + block->token * ld_x, ld_x, block->n_rows, block->n_tokens,
                w->stride);
}
