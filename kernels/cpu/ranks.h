/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/ranks.h - tensor parallelism: which part of a tensor a rank has.
 *
 * Here all ranks run in lockstep in one process, each with weights of its own, so that slicing is
 * proven where there is no GPU. Rank r of R has
 *   T1  of Q, gate and up the r-th of R equal runs of rows: whole heads of Q
 *   T2  of K and V the heads that its query heads attend to; where R is larger than their number,
 *       ranks share a head, and each has it and its pages for itself
 *   T3  of o and down the columns that belong to its rows of Q or of gate and up; the ranks'
 * products are added in fp32, rank 0 first T4  rank 0 alone has embedding, norms and head T5  of
 * scales for rows, or for blocks, those of its rows and columns */
#ifndef KERNELS_CPU_RANKS_H
#define KERNELS_CPU_RANKS_H

#include "kernels/backend.h"

#define LL_CPU_RANKS_MAX 8u

/* Can this model be cut into so many parts? */
int ll_cpu_ranks_check(const struct ll_model_shape *shape, uint32_t n_ranks, struct ll_text *error);

/* The shape that one rank's weights have. */
struct ll_model_shape ll_cpu_rank_shape(const struct ll_model_shape *shape, uint32_t n_ranks);

struct ll_cpu_slice { /* of a tensor's rows and columns; n_rows 0: nothing */
    uint32_t row, n_rows, col, n_cols;
};

/* LL_E_UNSUPPORTED: blocks of scales that ranks would have to share. */
int ll_cpu_rank_slice(const struct ll_model_shape *shape, uint32_t n_ranks,
                      const struct ll_tensor *tensor, uint32_t rank, struct ll_cpu_slice *out,
                      struct ll_text *error);

/* The tensor as the rank sees it. */
struct ll_tensor ll_cpu_rank_tensor(const struct ll_tensor *tensor,
                                    const struct ll_cpu_slice *slice);

#endif
