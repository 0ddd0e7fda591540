/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/ranks.h"
#include "base/bits.h"
#include "kernels/cpu/inner.h"
#include "kernels/cpu/memory.h"
#include "ll/client.h"

static uint32_t kv_heads_of_rank(const struct ll_model_shape *shape, uint32_t n_ranks)
{
    return shape->n_kv_heads >= n_ranks ? shape->n_kv_heads / n_ranks : 1;
}

int ll_cpu_ranks_check(const struct ll_model_shape *shape, uint32_t n_ranks, struct ll_text *error)
{
    const uint32_t n_kv = shape->n_kv_heads, larger = n_kv > n_ranks ? n_kv : n_ranks,
                   smaller = n_kv > n_ranks ? n_ranks : n_kv;

    if (n_ranks > LL_CPU_RANKS_MAX)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED, "%u ranks; the cpu backend runs at most %u",
                           n_ranks, LL_CPU_RANKS_MAX);
    if (shape->n_heads % n_ranks != 0 || larger % smaller != 0 || shape->n_ff % n_ranks != 0)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "%u ranks do not divide %u heads, %u KV heads and a width of %u",
                           n_ranks, shape->n_heads, n_kv, shape->n_ff);
    /* Inner loops take 16 numbers at a time: a rank's outputs and inputs begin at such a place. */
    if (n_ranks > 1 && (shape->n_heads / n_ranks * shape->head_dim % 16 != 0 ||
                        kv_heads_of_rank(shape, n_ranks) * shape->head_dim % 16 != 0 ||
                        shape->n_ff / n_ranks % 16 != 0))
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "%u ranks: their parts of heads and feed-forward are no multiples of 16",
                           n_ranks);
    return 0;
}

struct ll_model_shape ll_cpu_rank_shape(const struct ll_model_shape *shape, uint32_t n_ranks)
{
    struct ll_model_shape rank = *shape;

    rank.n_heads = shape->n_heads / n_ranks;
    rank.n_kv_heads = kv_heads_of_rank(shape, n_ranks);
    rank.n_ff = shape->n_ff / n_ranks;
    return rank;
}

/* Rows of the weight, before scales. */
static void cut_rows(const struct ll_model_shape *shape, uint32_t n_ranks, enum ll_tensor_role role,
                     uint32_t rank, uint32_t *row, uint32_t *n_rows)
{
    const uint32_t n_kv = kv_heads_of_rank(shape, n_ranks);

    switch (role) {
    case LL_TENSOR_Q:
        *n_rows = shape->n_heads / n_ranks * shape->head_dim;
        *row = rank * *n_rows;
        return;
    case LL_TENSOR_K: /* T2 */
    case LL_TENSOR_V:
        *n_rows = n_kv * shape->head_dim;
        *row = (uint32_t)((uint64_t)rank * shape->n_kv_heads / n_ranks) * shape->head_dim;
        return;
    case LL_TENSOR_GATE:
    case LL_TENSOR_UP:
        *n_rows = shape->n_ff / n_ranks;
        *row = rank * *n_rows;
        return;
    case LL_TENSOR_O: /* T3: its rows are everybody's */
    case LL_TENSOR_DOWN:
        *n_rows = shape->n_embd;
        *row = 0;
        return;
    default: /* T4 */
        *row = 0;
        *n_rows = rank == 0 ? UINT32_MAX : 0;
        return;
    }
}

/* Columns of o and down; all of the others'. */
static void cut_cols(const struct ll_model_shape *shape, uint32_t n_ranks, enum ll_tensor_role role,
                     uint32_t rank, uint32_t *col, uint32_t *n_cols)
{
    *n_cols = role == LL_TENSOR_O      ? shape->n_heads / n_ranks * shape->head_dim
              : role == LL_TENSOR_DOWN ? shape->n_ff / n_ranks
                                       : shape->n_embd;
    *col = role == LL_TENSOR_O || role == LL_TENSOR_DOWN ? rank * *n_cols : 0;
}

/* T5: the same run in units of blocks. False: ranks would share one. */
static bool to_blocks(uint32_t whole, uint32_t *at, uint32_t *n)
{
    bool is_all = *at == 0 && *n == whole;

    if (!is_all && (*at % LL_CPU_SCALE_COLS != 0 || *n % LL_CPU_SCALE_COLS != 0))
        return false;
    *at /= LL_CPU_SCALE_COLS;
    *n = (uint32_t)ll_div_ceil(*n, LL_CPU_SCALE_COLS);
    return true;
}

/* Rows and columns of the whole weight. */
static void whole_dims(const struct ll_model_shape *shape, enum ll_tensor_role role, uint32_t *rows,
                       uint32_t *cols)
{
    uint32_t at;

    cut_rows(shape, 1, role, 0, &at, rows);
    cut_cols(shape, 1, role, 0, &at, cols);
}

int ll_cpu_rank_slice(const struct ll_model_shape *shape, uint32_t n_ranks,
                      const struct ll_tensor *tensor, uint32_t rank, struct ll_cpu_slice *out,
                      struct ll_text *error)
{
    uint32_t rows, cols;

    cut_rows(shape, n_ranks, tensor->role, rank, &out->row, &out->n_rows);
    cut_cols(shape, n_ranks, tensor->role, rank, &out->col, &out->n_cols);
    if (out->n_rows == UINT32_MAX || out->n_rows == 0 || n_ranks == 1) {
        out->row = out->col = 0;
        out->n_rows = out->n_rows == 0 ? 0 : tensor->rows;
        out->n_cols = tensor->cols;
        return 0;
    }
    if (tensor->part == LL_PART_KV_SCALE) { /* of heads, as T2 */
        out->row /= shape->head_dim;
        out->n_rows /= shape->head_dim;
        out->n_cols = 1;
    }
    if (tensor->part == LL_PART_KV_SCALE && tensor->rows == 1) {
        out->row = 0;
        out->n_rows = 1;
    }
    if (tensor->part != LL_PART_SCALE)
        return 0;
    whole_dims(shape, tensor->role, &rows, &cols);
    bool is_block = tensor->cols > 1 || (tensor->rows > 1 && tensor->rows < rows);
    if (is_block &&
        (!to_blocks(rows, &out->row, &out->n_rows) || !to_blocks(cols, &out->col, &out->n_cols)))
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "%u ranks: their rows or columns are no multiples of %u, which share a "
                           "scale",
                           n_ranks, LL_CPU_SCALE_COLS);
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

struct ll_tensor ll_cpu_rank_tensor(const struct ll_tensor *tensor,
                                    const struct ll_cpu_slice *slice)
{
    struct ll_tensor rank = *tensor;

    rank.rows = slice->n_rows;
    rank.cols = slice->n_cols;
    rank.size_bytes = (uint64_t)rank.rows * rank.cols * ll_dtype_bytes(rank.dtype);
    return rank;
}
