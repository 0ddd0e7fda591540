/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/ranks.h"

#include "base/bits.h"
#include "ll/client.h"

#include <stdio.h>
#include <string.h>

#define SCALE_BLOCK 128u /* rows and columns that share a block scale */

int ll_cuda_ranks_check(const struct ll_model_shape *shape, uint32_t n_ranks, struct ll_text *error)
{
    const uint32_t n_kv = shape->n_kv_heads, larger = n_kv > n_ranks ? n_kv : n_ranks,
                   smaller = n_kv > n_ranks ? n_ranks : n_kv;

    if (n_ranks == 0 || n_ranks > LL_CUDA_RANKS_MAX || (n_ranks & (n_ranks - 1)) != 0) {
        snprintf(error->s, sizeof(error->s),
                 "CUDA: %u ranks: --tensor-parallel-size takes 1, 2, 4 or %u", n_ranks,
                 LL_CUDA_RANKS_MAX);
        return LL_E_UNSUPPORTED;
    }
    if (n_ranks == 1)
        return 0;
    if (shape->n_heads % n_ranks != 0 || larger % smaller != 0 || shape->n_ff % n_ranks != 0 ||
        shape->n_ff / n_ranks % 16 != 0 ||
        (n_ranks - 1) * ll_cuda_rank_vocab(shape, n_ranks) >= shape->n_vocab) {
        snprintf(error->s, sizeof(error->s),
                 "CUDA: %u ranks do not divide %u heads, %u KV heads, a feed-forward of %u (in "
                 "multiples of 16) and %u ids: take a smaller --tensor-parallel-size",
                 n_ranks, shape->n_heads, n_kv, shape->n_ff, shape->n_vocab);
        return LL_E_UNSUPPORTED;
    }
    return 0;
}

uint32_t ll_cuda_rank_vocab(const struct ll_model_shape *shape, uint32_t n_ranks)
{
    return n_ranks == 1 ? (uint32_t)ll_align_up(shape->n_vocab, 8)
                        : (uint32_t)ll_align_up(ll_div_ceil(shape->n_vocab, n_ranks), 16);
}

struct ll_model_shape ll_cuda_rank_shape(const struct ll_model_shape *shape, uint32_t n_ranks,
                                         uint32_t rank)
{
    struct ll_model_shape part = *shape;
    const uint32_t n_vocab = ll_cuda_rank_vocab(shape, n_ranks);

    part.n_heads = shape->n_heads / n_ranks;
    part.n_kv_heads = shape->n_kv_heads >= n_ranks ? shape->n_kv_heads / n_ranks : 1;
    part.n_ff = shape->n_ff / n_ranks;
    if (n_ranks > 1)
        part.n_vocab = (uint32_t)ll_min_u64(n_vocab, shape->n_vocab - rank * n_vocab);
    return part;
}

/* Rows of the weight. */
static void cut_rows(const struct ll_model_shape *shape, const struct ll_model_shape *part,
                     uint32_t n_ranks, enum ll_tensor_role role, uint32_t rank, uint32_t *row,
                     uint32_t *n_rows)
{
    *row = 0;
    switch (role) {
    case LL_TENSOR_Q:
        *n_rows = part->n_heads * shape->head_dim;
        *row = rank * *n_rows;
        return;
    case LL_TENSOR_K: /* T2 */
    case LL_TENSOR_V:
        *n_rows = part->n_kv_heads * shape->head_dim;
        *row = (uint32_t)((uint64_t)rank * shape->n_kv_heads / n_ranks) * shape->head_dim;
        return;
    case LL_TENSOR_GATE:
    case LL_TENSOR_UP:
        *n_rows = part->n_ff;
        *row = rank * *n_rows;
        return;
    case LL_TENSOR_O: /* T3: its rows are everybody's */
    case LL_TENSOR_DOWN:
        *n_rows = shape->n_embd;
        return;
    case LL_TENSOR_EMBED: /* T4 */
    case LL_TENSOR_HEAD:
        *n_rows = part->n_vocab;
        *row = rank * ll_cuda_rank_vocab(shape, n_ranks);
        return;
    case LL_TENSOR_ATTN_NORM:
    case LL_TENSOR_FFN_NORM:
    case LL_TENSOR_FINAL_NORM:
    case LL_TENSOR_ROLES:
        break;
    }
    *n_rows = 1;
}

/* Columns of o and down; all of the others'. */
static void cut_cols(const struct ll_model_shape *shape, const struct ll_model_shape *part,
                     enum ll_tensor_role role, uint32_t rank, uint32_t *col, uint32_t *n_cols)
{
    *n_cols = role == LL_TENSOR_O      ? part->n_heads * shape->head_dim
              : role == LL_TENSOR_DOWN ? part->n_ff
                                       : shape->n_embd;
    *col = role == LL_TENSOR_O || role == LL_TENSOR_DOWN ? rank * *n_cols : 0;
}

/* T5: the same run in units of blocks. False: ranks would share one. */
static bool to_blocks(uint32_t whole, uint32_t *at, uint32_t *n)
{
    const bool is_all = *at == 0 && *n == whole;

    if (!is_all && (*at % SCALE_BLOCK != 0 || *n % SCALE_BLOCK != 0))
        return false;
    *at /= SCALE_BLOCK;
    *n = (uint32_t)ll_div_ceil(*n, SCALE_BLOCK);
    return true;
}

static int cut_scale(const struct ll_model_shape *shape, uint32_t n_ranks,
                     const struct ll_tensor *tensor, struct ll_cuda_slice *out,
                     struct ll_text *error)
{
    uint32_t at, rows, cols;

    cut_rows(shape, shape, 1, tensor->role, 0, &at, &rows);
    cut_cols(shape, shape, tensor->role, 0, &at, &cols);
    const bool is_block = tensor->cols > 1 || (tensor->rows > 1 && tensor->rows < rows);
    if (is_block &&
        (!to_blocks(rows, &out->row, &out->n_rows) || !to_blocks(cols, &out->col, &out->n_cols))) {
        snprintf(error->s, sizeof(error->s),
                 "CUDA: %u ranks: their rows or columns are no multiples of %u, which share a "
                 "scale: take a smaller --tensor-parallel-size",
                 n_ranks, SCALE_BLOCK);
        return LL_E_UNSUPPORTED;
    }
    if (!is_block) {
        out->col = 0;
        out->n_cols = 1;
    }
    if (tensor->rows == 1) { /* one for all */
        out->row = 0;
        out->n_rows = 1;
    }
    return 0;
}

int ll_cuda_rank_slice(const struct ll_model_shape *shape, uint32_t n_ranks,
                       const struct ll_tensor *tensor, uint32_t rank, struct ll_cuda_slice *out,
                       struct ll_text *error)
{
    const struct ll_model_shape part = ll_cuda_rank_shape(shape, n_ranks, rank);

    cut_rows(shape, &part, n_ranks, tensor->role, rank, &out->row, &out->n_rows);
    cut_cols(shape, &part, tensor->role, rank, &out->col, &out->n_cols);
    switch (tensor->part) {
    case LL_PART_WEIGHT:
        return 0;
    case LL_PART_SCALE:
        return cut_scale(shape, n_ranks, tensor, out, error);
    case LL_PART_KV_SCALE: /* of heads, as T2 */
        out->row = tensor->rows == 1 ? 0 : out->row / shape->head_dim;
        out->n_rows = tensor->rows == 1 ? 1 : out->n_rows / shape->head_dim;
        out->col = 0;
        out->n_cols = 1;
        return 0;
    case LL_PART_INPUT_SCALE:
        break;
    }
    *out = (struct ll_cuda_slice){0, tensor->rows, 0, tensor->cols};
    return 0;
}

bool ll_cuda_rank_is_whole(const struct ll_model_shape *shape, const struct ll_tensor *tensor)
{
    uint32_t at, rows, cols;

    cut_rows(shape, shape, 1, tensor->role, 0, &at, &rows);
    cut_cols(shape, shape, tensor->role, 0, &at, &cols);
    return tensor->rows == rows && tensor->cols == cols;
}

struct ll_tensor ll_cuda_rank_tensor(const struct ll_tensor *tensor,
                                     const struct ll_cuda_slice *slice)
{
    struct ll_tensor part = *tensor;

    part.rows = slice->n_rows;
    part.cols = slice->n_cols;
    part.size_bytes = (uint64_t)part.rows * part.cols * ll_dtype_bytes(part.dtype);
    return part;
}

size_t ll_cuda_rank_cut(const struct ll_tensor *tensor, const struct ll_cuda_slice *slice,
                        uint64_t offset, const void *data, size_t n_bytes, uint64_t *at, void *to,
                        size_t *first, bool *is_run)
{
    const uint64_t size = ll_dtype_bytes(tensor->dtype), row_bytes = tensor->cols * size;
    const uint64_t col = slice->col * size, width = slice->n_cols * size;
    const uint64_t end = offset + n_bytes;
    size_t n = 0;
    uint64_t last_end = 0;

    *is_run = true;
    if (width == row_bytes) { /* whole rows: one run */
        const uint64_t from = ll_max_u64(offset, slice->row * row_bytes);
        const uint64_t upto = ll_min_u64(end, (slice->row + (uint64_t)slice->n_rows) * row_bytes);
        if (from >= upto)
            return 0;
        *at = from - slice->row * row_bytes;
        *first = (size_t)(from - offset);
        if (to != NULL)
            memcpy(to, (const unsigned char *)data + *first, (size_t)(upto - from));
        return (size_t)(upto - from);
    }
    for (uint64_t row = ll_max_u64(offset / row_bytes, slice->row);
         row < slice->row + (uint64_t)slice->n_rows && row * row_bytes < end; row++) {
        const uint64_t from = ll_max_u64(offset, row * row_bytes + col);
        const uint64_t upto = ll_min_u64(end, row * row_bytes + col + width);
        if (from >= upto)
            continue;
        if (n == 0) {
            *at = (row - slice->row) * width + (from - row * row_bytes - col);
            *first = (size_t)(from - offset);
        } else if (from != last_end) {
            *is_run = false;
        }
        if (to != NULL)
            memcpy((unsigned char *)to + n, (const unsigned char *)data + (from - offset),
                   (size_t)(upto - from));
        n += (size_t)(upto - from);
        last_end = upto;
    }
    return n;
}
