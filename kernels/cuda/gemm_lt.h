/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/gemm_lt.h - matrix products through cuBLASLt, plans chosen once and kept.
 *
 *   y[T, N] = x[T, K] w[N, K]^T, row-major; bf16 x bf16, or e4m3 x e4m3 with one fp32 scale a token
 *   and one a weight row: y = sx[t] * sw[n] * sum_k x w
 *     LL_GEMM_FP8         9.0: cuBLASLt applies both vectors (outer-vector scaling)
 *     LL_GEMM_FP8_TENSOR  8.9: it knows no vectors; a kernel applies them to its bf16 result
 *     LL_GEMM_W8A16       8.0: no 8-bit products; bf16 x e4m3, weights widened in pieces of
 *                         scratch; weights with block scales on any GPU
 *
 * Row-major y is column-major y^T = w x^T, so cuBLASLt's A is w (transposed), its B is x. The FP8
 * form takes T in multiples of 16: rows past T are computed and never read, so x and y have room
 * for T rounded up to 16. A plan is looked up by (kind, T, N, K); new ones come from the heuristic,
 * or by measuring its candidates (tune). With is_fixed one plan, without split sums, serves every
 * T, so that a row's bits do not depend on the others. Capturable: no allocation, no
 * synchronisation in _run. */
#ifndef KERNELS_CUDA_GEMM_LT_H
#define KERNELS_CUDA_GEMM_LT_H

#include "kernels/backend.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#define LL_GEMM_PLANS_MAX 1024

enum ll_gemm_kind {
    LL_GEMM_BF16 = 0,
    LL_GEMM_BF16_F32 = 1,
    LL_GEMM_FP8 = 2,
    LL_GEMM_FP8_TENSOR = 3,
    LL_GEMM_W8A16 = 4,
};

struct ll_gemm_plan {
    enum ll_gemm_kind kind;
    uint32_t t, n, k, ld; /* ld: elements from a row of y to the next */
    cublasLtMatmulAlgo_t algo;
    bool is_tuned;
};

struct ll_gemm {
    cublasLtHandle_t handle;
    void *workspace;
    size_t workspace_bytes;
    struct ll_gemm_plan *plan; /* [LL_GEMM_PLANS_MAX] */
    uint32_t n_plans;
    bool is_fixed; /* set after open, before the first product */
};

struct ll_gemm_args {
    enum ll_gemm_kind kind;
    void *y;
    const void *x, *w;
    const float *x_scale, *w_scale; /* FP8; W8A16: w_scale alone */
    const float *w_block;           /* W8A16: NULL, or a scale for 16 rows and 128 of K as well */
    void *scratch;                  /* W8A16: room for at least 16 widened rows */
    size_t scratch_bytes;
    uint32_t t, n, k;
    uint32_t ld; /* 0: n */
};

int ll_gemm_open(struct ll_gemm *gemm, struct ll_text *error);
void ll_gemm_close(struct ll_gemm *gemm);
int ll_gemm_run(struct ll_gemm *gemm, const struct ll_gemm_args *args, cudaStream_t stream,
                struct ll_text *error);
/* Times the heuristic's candidates on args (y is overwritten) and keeps the fastest. Synchronises;
 * not while capturing. */
int ll_gemm_tune(struct ll_gemm *gemm, const struct ll_gemm_args *args, cudaStream_t stream,
                 struct ll_text *error);

#endif
