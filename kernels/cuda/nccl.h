/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/nccl.h - NCCL, opened at run time, for messages too large for the peer kernels.
 *
 * NVLink multicast (NVLS) is never used: open sets NCCL_NVLS_ENABLE=0 before the library is there
 * and refuses where the environment says otherwise. */
#ifndef KERNELS_CUDA_NCCL_H
#define KERNELS_CUDA_NCCL_H

#include "kernels/cuda/ranks.h"

#include <cuda_runtime_api.h>

struct ll_nccl {
    void *module;
    uint32_t n_ranks;
    void *comm[LL_CUDA_RANKS_MAX];
};

/* gpu: [n_ranks] device of each. LL_E_UNSUPPORTED without the library, LL_E_INVAL for that
 * environment, -EIO. */
int ll_nccl_open(struct ll_nccl *nccl, uint32_t n_ranks, const int *gpu, struct ll_text *error);
void ll_nccl_close(struct ll_nccl *nccl);
/* data: n numbers of bf16, summed up over ranks in place; all ranks call it, each on a thread of
 * its own. A graph may capture it. */
int ll_nccl_sum(const struct ll_nccl *nccl, uint32_t rank, void *data, size_t n,
                cudaStream_t stream, struct ll_text *error);

#endif
