/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/skinny_wgmma.h - launcher of the product for up to 256 tokens on sm_90a. */
#ifndef KERNELS_CUDA_SKINNY_WGMMA_H
#define KERNELS_CUDA_SKINNY_WGMMA_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LL_SKINNY_WGMMA_TOKENS_MAX 256u

#ifdef __cplusplus
extern "C" {
#endif

struct ll_skinny_wgmma_args {
    void *y;              /* [T, N] bf16 */
    const void *x;        /* [T, K] e4m3, or bf16 */
    const void *w;        /* [N, K] of the same type */
    const float *x_scale; /* [T] and [N], e4m3 only */
    const float *w_scale;
    float *partial;    /* ll_cuda_skinny_wgmma_room() */
    uint32_t *arrived; /* likewise; zero between calls */
    uint32_t n_tokens, n, k;
    bool is_fp8;
};

/* Whether this device and this code have it: T <= 256, N a multiple of 16, K of 128. */
bool ll_cuda_skinny_wgmma_fits(const struct ll_skinny_wgmma_args *args);
/* Bytes of partial sums and counters for any T up to n_tokens. */
void ll_cuda_skinny_wgmma_room(uint32_t n, uint32_t k, bool is_fp8, uint32_t n_tokens,
                               size_t *partial_bytes, size_t *n_arrived);
/* Enqueues; a graph may capture it. -EINVAL where it does not fit, -EIO. */
int ll_cuda_skinny_wgmma(const struct ll_skinny_wgmma_args *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
