/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/cuda_scales.c - the scales of e4m3 weights: gathered on the host, uploaded at seal.
 *
 *   C1  w = code * scale[row] * block[row / 16][k / 128]. A part of a merged matrix with one scale,
 *       or one a row, fills `scale`; one with 128 x 128 blocks fills `block`; what is not filled
 *       is 1, so parts of both kinds can stand in one matrix
 *   C2  `block` is there only where some part has blocks. A checkpoint's blocks begin at its part's
 *       row 0, which in a merged matrix may be no multiple of 128: so each is spread to groups of
 *       16 rows, the rows that one warp multiplies (skinny.cu), and parts begin at multiples of 16.
 *       4 bytes for 2048 of weights
 *   C3  a scale is 0 or more and finite */
#include "kernels/cuda/cuda_scales.h"

#include "base/bits.h"
#include "base/numbers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool is_block(const struct ll_cuda_part *part, const struct ll_tensor *tensor)
{
    return tensor->rows == ll_div_ceil(part->rows, LL_CUDA_BLOCK) &&
           tensor->cols == ll_div_ceil(part->cols, LL_CUDA_BLOCK) &&
           (tensor->rows > 1 || tensor->cols > 1);
}

static size_t n_blocks(const struct ll_cuda_linear *l)
{
    return (size_t)ll_div_ceil(l->rows, LL_CUDA_BLOCK_ROWS) * ll_div_ceil(l->cols, LL_CUDA_BLOCK);
}

const char *ll_cuda_scale_want(const struct ll_cuda_part *part, const struct ll_tensor *tensor,
                               bool *has_blocks)
{
    *has_blocks = is_block(part, tensor);
    if (tensor->dtype == LL_DTYPE_E4M3)
        return "a scale is a BF16, F16 or F32 number";
    if (*has_blocks)
        return part->first_row % LL_CUDA_BLOCK_ROWS == 0
                   ? NULL
                   : "block scales need projections of a multiple of 16 rows";
    if (tensor->cols == 1 && (tensor->rows == 1 || tensor->rows == part->rows))
        return NULL;
    return "scales are one number, one a row, or one for 128 x 128 weights";
}

void ll_cuda_scale_reset(struct ll_cuda_linear *l)
{
    for (size_t i = 0; l->block_host != NULL && i < n_blocks(l); i++)
        l->block_host[i] = 1;
}

int ll_cuda_scale_room(struct ll_cuda_linear *l)
{
    if (l->block_host != NULL)
        return 0;
    l->block_host = malloc(n_blocks(l) * sizeof(float));
    if (l->block_host == NULL)
        return -ENOMEM;
    ll_cuda_scale_reset(l);
    if (cudaMalloc((void **)&l->block, n_blocks(l) * sizeof(float)) == cudaSuccess)
        return 0;
    l->block = NULL;
    return -ENOMEM;
}

float ll_cuda_scale_value(const void *data, enum ll_dtype dtype, size_t i)
{
    uint16_t half;
    float full;

    if (dtype == LL_DTYPE_F32) {
        memcpy(&full, (const unsigned char *)data + i * sizeof(full), sizeof(full));
        return full;
    }
    memcpy(&half, (const unsigned char *)data + i * sizeof(half), sizeof(half));
    return dtype == LL_DTYPE_BF16 ? ll_f32_from_bf16(half) : ll_f32_from_f16(half);
}

/* Number `at` of a part's blocks goes to its groups of rows. */
static void put_block(struct ll_cuda_part *part, uint64_t at, float value)
{
    struct ll_cuda_linear *l = part->linear;
    const uint32_t per_row = (uint32_t)ll_div_ceil(l->cols, LL_CUDA_BLOCK);
    const uint32_t begin = (uint32_t)(at / per_row) * LL_CUDA_BLOCK;
    const uint32_t end = (uint32_t)ll_min_u64(begin + LL_CUDA_BLOCK, part->rows);

    for (uint32_t row = begin; row < end; row += LL_CUDA_BLOCK_ROWS)
        l->block_host[(size_t)(part->first_row + row) / LL_CUDA_BLOCK_ROWS * per_row +
                      at % per_row] = value;
}

const char *ll_cuda_scale_feed(struct ll_cuda_part *part, const struct ll_tensor *tensor,
                               uint64_t offset, const void *data, size_t n_bytes)
{
    struct ll_cuda_linear *l = part->linear;
    const uint32_t size = ll_dtype_bytes(tensor->dtype);
    const uint64_t first = offset / size;
    const bool has_blocks = is_block(part, tensor), is_one = tensor->rows == 1 && !has_blocks;

    if (offset % size != 0 || n_bytes % size != 0)
        return "a piece splits a scale";
    for (uint32_t r = 0; r < part->rows && has_blocks; r++)
        l->scale_host[part->first_row + r] = 1;
    for (size_t i = 0; i < n_bytes / size; i++) {
        const float value = ll_cuda_scale_value(data, tensor->dtype, i);
        if (!(value >= 0 && value <= 1e30f))
            return "a scale is negative, not finite or not a number"; /* C3 */
        if (has_blocks)
            put_block(part, first + i, value);
        for (uint32_t r = 0; r < part->rows && is_one; r++)
            l->scale_host[part->first_row + r] = value;
        if (!has_blocks && !is_one)
            l->scale_host[part->first_row + first + i] = value;
    }
    return NULL;
}

int ll_cuda_scale_upload(struct ll_cuda_linear *l)
{
    cudaError_t s = cudaSuccess;

    if (l->scale_host != NULL)
        s = cudaMemcpy(l->scale, l->scale_host, l->rows * sizeof(float), cudaMemcpyHostToDevice);
    if (s == cudaSuccess && l->block_host != NULL)
        s = cudaMemcpy(l->block, l->block_host, n_blocks(l) * sizeof(float),
                       cudaMemcpyHostToDevice);
    return s == cudaSuccess ? 0 : -EIO;
}

void ll_cuda_scale_free(struct ll_cuda_linear *l)
{
    cudaFree(l->scale);
    cudaFree(l->block);
    free(l->scale_host);
    free(l->block_host);
}
