/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/ranks.h - tensor parallelism: which part of the model a rank has.
 *
 * A rank is a struct ll_device whose shape is its part of the model's. Rank r of R has
 *   T1  of Q, gate and up the r-th of R equal runs of rows: whole heads of Q
 *   T2  of K and V the heads that its query heads attend to; where R is larger than their number,
 *       ranks share a head, and each has it and its pages for itself
 *   T3  of o and down the columns that belong to its rows of Q or of gate and up
 *   T4  of embedding and head the r-th run of rows, each padded to the same number; norms whole
 *   T5  of scales for rows, or for blocks of 128, those of its rows and columns
 * The loader hands over each tensor once, whole; feed cuts a piece for all ranks. */
#ifndef KERNELS_CUDA_RANKS_H
#define KERNELS_CUDA_RANKS_H

#include "kernels/backend.h"

#define LL_CUDA_RANKS_MAX 8u

/* Can this model be cut into so many parts? */
int ll_cuda_ranks_check(const struct ll_model_shape *shape, uint32_t n_ranks,
                        struct ll_text *error);

/* Rows of embedding and head that every rank has room for; rank r's begin at r times that. */
uint32_t ll_cuda_rank_vocab(const struct ll_model_shape *shape, uint32_t n_ranks);

/* The shape of one rank's part: fewer heads, less feed-forward, its rows of the vocabulary. */
struct ll_model_shape ll_cuda_rank_shape(const struct ll_model_shape *shape, uint32_t n_ranks,
                                         uint32_t rank);

struct ll_cuda_slice { /* of a tensor's rows and columns */
    uint32_t row, n_rows, col, n_cols;
};

/* LL_E_UNSUPPORTED: blocks of scales that ranks would have to share. */
int ll_cuda_rank_slice(const struct ll_model_shape *shape, uint32_t n_ranks,
                       const struct ll_tensor *tensor, uint32_t rank, struct ll_cuda_slice *out,
                       struct ll_text *error);

/* Has this weight the rows and columns that the configuration gives it? */
bool ll_cuda_rank_is_whole(const struct ll_model_shape *shape, const struct ll_tensor *tensor);

/* The tensor as the rank sees it. */
struct ll_tensor ll_cuda_rank_tensor(const struct ll_tensor *tensor,
                                     const struct ll_cuda_slice *slice);

/* The bytes of a piece [offset, offset + n_bytes) of the whole tensor that lie in the slice, in
 * order, are bytes [*at, *at + result) of the rank's tensor; the first is data[*first]. *is_run:
 * they lie side by side in data. to: NULL, or they are gathered there. */
size_t ll_cuda_rank_cut(const struct ll_tensor *tensor, const struct ll_cuda_slice *slice,
                        uint64_t offset, const void *data, size_t n_bytes, uint64_t *at, void *to,
                        size_t *first, bool *is_run);

#endif
