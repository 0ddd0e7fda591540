/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/sample_cluster.h - the two samplers behind ll_cuda_sample(); they choose the same
 * ids bit for bit, and logprobs that differ in the last bits. */
#ifndef KERNELS_CUDA_SAMPLE_CLUSTER_H
#define KERNELS_CUDA_SAMPLE_CLUSTER_H

#include "kernels/cuda/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One block a row: any GPU, any vocabulary. Overwrites logits of rows with a bias. */
int ll_cuda_sample_plain(const struct ll_cuda_sample_args *args, cudaStream_t stream);

/* A cluster of blocks a row: 9.0, and a vocabulary whose eighth fits a block's shared memory. */
bool ll_cuda_sample_cluster_fits(uint32_t n_vocab);
int ll_cuda_sample_cluster(const struct ll_cuda_sample_args *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
