/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/gemm_lt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKSPACE_BYTES (64u << 20)
#define CANDIDATES      8

static int fail(struct ll_text *error, const char *what, cublasStatus_t status)
{
    snprintf(error->s, sizeof(error->s), "cuBLASLt: %s: status %d", what, (int)status);
    return -EIO;
}

int ll_gemm_open(struct ll_gemm *gemm, struct ll_text *error)
{
    memset(gemm, 0, sizeof(*gemm));
    gemm->plan = calloc(LL_GEMM_PLANS_MAX, sizeof(*gemm->plan));
    if (gemm->plan == NULL)
        return -ENOMEM;
    cublasStatus_t status = cublasLtCreate(&gemm->handle);
    if (status != CUBLAS_STATUS_SUCCESS)
        return fail(error, "create", status);
    gemm->workspace_bytes = WORKSPACE_BYTES;
    if (cudaMalloc(&gemm->workspace, gemm->workspace_bytes) != cudaSuccess) {
        snprintf(error->s, sizeof(error->s), "no device memory for a %u MiB GEMM workspace",
                 WORKSPACE_BYTES >> 20);
        return -ENOMEM;
    }
    /* Split-K kernels keep their counters here. */
    cudaMemset(gemm->workspace, 0, gemm->workspace_bytes);
    return 0;
}

void ll_gemm_close(struct ll_gemm *gemm)
{
    if (gemm->workspace != NULL)
        cudaFree(gemm->workspace);
    if (gemm->handle != NULL)
        cublasLtDestroy(gemm->handle);
    free(gemm->plan);
    memset(gemm, 0, sizeof(*gemm));
}

/* Everything cuBLASLt wants to know of one product. */
struct problem {
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
};

static void problem_free(struct problem *p)
{
    if (p->desc != NULL)
        cublasLtMatmulDescDestroy(p->desc);
    if (p->a != NULL)
        cublasLtMatrixLayoutDestroy(p->a);
    if (p->b != NULL)
        cublasLtMatrixLayoutDestroy(p->b);
    if (p->d != NULL)
        cublasLtMatrixLayoutDestroy(p->d);
}

static uint32_t rows_computed(const struct ll_gemm_args *args)
{
    return args->kind == LL_GEMM_FP8 ? (args->t + 15) / 16 * 16 : args->t;
}

static cublasStatus_t set_scales(cublasLtMatmulDesc_t desc, const struct ll_gemm_args *args)
{
    const cublasLtMatmulMatrixScale_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    cublasStatus_t s;

    if ((s = cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode,
                                            sizeof(mode))) != CUBLAS_STATUS_SUCCESS ||
        (s = cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode,
                                            sizeof(mode))) != CUBLAS_STATUS_SUCCESS ||
        (s = cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                                            &args->w_scale, sizeof(args->w_scale))) !=
            CUBLAS_STATUS_SUCCESS)
        return s;
    return cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
                                          &args->x_scale, sizeof(args->x_scale));
}

static int problem_make(struct problem *p, const struct ll_gemm_args *args, struct ll_text *error)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cudaDataType in = args->kind == LL_GEMM_FP8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    const cudaDataType out = args->kind == LL_GEMM_BF16_F32 ? CUDA_R_32F : CUDA_R_16BF;
    const uint32_t t = rows_computed(args);
    cublasStatus_t s;

    memset(p, 0, sizeof(*p));
    if ((s = cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F)) !=
            CUBLAS_STATUS_SUCCESS ||
        (s = cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                            sizeof(transposed))) != CUBLAS_STATUS_SUCCESS ||
        (args->kind == LL_GEMM_FP8 && (s = set_scales(p->desc, args)) != CUBLAS_STATUS_SUCCESS) ||
        (s = cublasLtMatrixLayoutCreate(&p->a, in, args->k, args->n, args->k)) !=
            CUBLAS_STATUS_SUCCESS ||
        (s = cublasLtMatrixLayoutCreate(&p->b, in, args->k, t, args->k)) != CUBLAS_STATUS_SUCCESS ||
        (s = cublasLtMatrixLayoutCreate(&p->d, out, args->n, t, args->n)) !=
            CUBLAS_STATUS_SUCCESS) {
        problem_free(p);
        return fail(error, "descriptor", s);
    }
    return 0;
}

static int candidates(struct ll_gemm *gemm, const struct problem *p,
                      const struct ll_gemm_args *args, cublasLtMatmulHeuristicResult_t *out,
                      int n_max, struct ll_text *error)
{
    cublasLtMatmulPreference_t preference;
    int n = 0;
    cublasStatus_t s = cublasLtMatmulPreferenceCreate(&preference);

    if (s != CUBLAS_STATUS_SUCCESS)
        return fail(error, "preference", s);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &gemm->workspace_bytes, sizeof(gemm->workspace_bytes));
    s = cublasLtMatmulAlgoGetHeuristic(gemm->handle, p->desc, p->a, p->b, p->d, p->d, preference,
                                       n_max, out, &n);
    cublasLtMatmulPreferenceDestroy(preference);
    if (s != CUBLAS_STATUS_SUCCESS || n == 0) {
        snprintf(error->s, sizeof(error->s), "cuBLASLt has no %s product for T %u, N %u, K %u",
                 args->kind == LL_GEMM_FP8 ? "FP8" : "BF16", args->t, args->n, args->k);
        return -EIO;
    }
    return n;
}

static struct ll_gemm_plan *find_plan(struct ll_gemm *gemm, const struct ll_gemm_args *args)
{
    const uint32_t t = rows_computed(args);

    for (uint32_t i = 0; i < gemm->n_plans; i++) {
        struct ll_gemm_plan *plan = &gemm->plan[i];
        if (plan->kind == args->kind && plan->t == t && plan->n == args->n && plan->k == args->k)
            return plan;
    }
    return NULL;
}

static struct ll_gemm_plan *add_plan(struct ll_gemm *gemm, const struct ll_gemm_args *args)
{
    struct ll_gemm_plan *plan = find_plan(gemm, args);

    if (plan == NULL && gemm->n_plans < LL_GEMM_PLANS_MAX)
        plan = &gemm->plan[gemm->n_plans++];
    if (plan != NULL)
        *plan = (struct ll_gemm_plan){
            .kind = args->kind, .t = rows_computed(args), .n = args->n, .k = args->k};
    return plan;
}

static cublasStatus_t run(struct ll_gemm *gemm, const struct problem *p,
                          const struct ll_gemm_args *args, const cublasLtMatmulAlgo_t *algo,
                          cudaStream_t stream)
{
    const float one = 1.0f, zero = 0.0f;

    return cublasLtMatmul(gemm->handle, p->desc, &one, args->w, p->a, args->x, p->b, &zero, args->y,
                          p->d, args->y, p->d, algo, gemm->workspace, gemm->workspace_bytes,
                          stream);
}

int ll_gemm_run(struct ll_gemm *gemm, const struct ll_gemm_args *args, cudaStream_t stream,
                struct ll_text *error)
{
    struct problem p;
    int rc = problem_make(&p, args, error);

    if (rc < 0)
        return rc;
    struct ll_gemm_plan *plan = find_plan(gemm, args);
    if (plan == NULL) {
        cublasLtMatmulHeuristicResult_t result;
        rc = candidates(gemm, &p, args, &result, 1, error);
        if (rc < 0)
            goto free_problem;
        plan = add_plan(gemm, args);
        if (plan == NULL) {
            snprintf(error->s, sizeof(error->s), "more than %d GEMM shapes", LL_GEMM_PLANS_MAX);
            rc = -ENOSPC;
            goto free_problem;
        }
        plan->algo = result.algo;
    }
    cublasStatus_t s = run(gemm, &p, args, &plan->algo, stream);
    rc = s == CUBLAS_STATUS_SUCCESS ? 0 : fail(error, "matmul", s);
free_problem:
    problem_free(&p);
    return rc;
}

static float time_algo(struct ll_gemm *gemm, const struct problem *p,
                       const struct ll_gemm_args *args, const cublasLtMatmulAlgo_t *algo,
                       cudaStream_t stream)
{
    enum { WARM = 2, RUNS = 8 };
    cudaEvent_t from, to;
    float ms = 0.0f;

    cudaEventCreate(&from);
    cudaEventCreate(&to);
    bool is_good = true;
    for (int i = 0; i < WARM + RUNS && is_good; i++) {
        if (i == WARM)
            cudaEventRecord(from, stream);
        is_good = run(gemm, p, args, algo, stream) == CUBLAS_STATUS_SUCCESS;
    }
    cudaEventRecord(to, stream);
    if (cudaEventSynchronize(to) != cudaSuccess || !is_good)
        ms = 1e30f;
    else
        cudaEventElapsedTime(&ms, from, to);
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    return ms;
}

int ll_gemm_tune(struct ll_gemm *gemm, const struct ll_gemm_args *args, cudaStream_t stream,
                 struct ll_text *error)
{
    cublasLtMatmulHeuristicResult_t result[CANDIDATES];
    struct problem p;
    struct ll_gemm_plan *plan = find_plan(gemm, args);

    if (plan != NULL && plan->is_tuned)
        return 0;
    int rc = problem_make(&p, args, error);
    if (rc < 0)
        return rc;
    int n = candidates(gemm, &p, args, result, CANDIDATES, error);
    if (n < 0) {
        problem_free(&p);
        return n;
    }
    int best = 0;
    float best_ms = 1e30f;
    for (int i = 0; i < n; i++) {
        float ms = time_algo(gemm, &p, args, &result[i].algo, stream);
        if (ms < best_ms) {
            best_ms = ms;
            best = i;
        }
    }
    problem_free(&p);
    plan = add_plan(gemm, args);
    if (plan == NULL) {
        snprintf(error->s, sizeof(error->s), "more than %d GEMM shapes", LL_GEMM_PLANS_MAX);
        return -ENOSPC;
    }
    plan->algo = result[best].algo;
    plan->is_tuned = true;
    return 0;
}
