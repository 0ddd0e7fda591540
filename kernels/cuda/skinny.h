/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/skinny.h - launcher of the matrix product for few tokens (skinny.cu). */
#ifndef KERNELS_CUDA_SKINNY_H
#define KERNELS_CUDA_SKINNY_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LL_SKINNY_TOKENS_MAX 8u

#ifdef __cplusplus
extern "C" {
#endif

struct ll_skinny_args {
    void *y;              /* [T, N] bf16, or fp32 when is_f32 */
    const void *x;        /* [T, K] bf16; is_gated: [T, 2K] gate then up */
    const void *w;        /* [N, K] e4m3 or bf16 */
    const float *w_scale; /* [N], e4m3 only */
    const float *w_block; /* [ceil(N / 16)][K / 128] on top of it, e4m3 only; NULL: none */
    float *partial;       /* ll_cuda_skinny_partial_bytes() */
    uint32_t *arrived;    /* [ceil(N / 64)], zero between calls */
    uint32_t n_tokens, n, k;
    bool is_fp8, is_gated, is_f32; /* f32 (the head): bf16 weights only, not gated */
};

/* T <= 8, N a multiple of 16, K of 128. */
bool ll_cuda_skinny_fits(const struct ll_skinny_args *args);
size_t ll_cuda_skinny_partial_bytes(uint32_t n, uint32_t k);
/* Enqueues; a graph may capture it. -EINVAL where it does not fit, -EIO. */
int ll_cuda_skinny(const struct ll_skinny_args *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
