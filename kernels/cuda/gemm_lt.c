/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/gemm_lt.h"

#include "kernels/cuda/ops.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKSPACE_BYTES (64u << 20)
#define CANDIDATES      8
#define FIXED_ROWS      256u /* T that a plan for every T is chosen for */

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

static bool is_fp8(const struct ll_gemm_args *args)
{
    return args->kind == LL_GEMM_FP8 || args->kind == LL_GEMM_FP8_TENSOR;
}

static uint32_t rows_computed(const struct ll_gemm_args *args)
{
    return is_fp8(args) ? (args->t + 15) / 16 * 16 : args->t;
}

static uint32_t row_elements(const struct ll_gemm_args *args)
{
    return args->ld != 0 ? args->ld : args->n;
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
    const cudaDataType in = is_fp8(args) ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
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
        (s = cublasLtMatrixLayoutCreate(&p->d, out, args->n, t, row_elements(args))) !=
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
    if (gemm->is_fixed) {
        const uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE;
        cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                             &none, sizeof(none));
    }
    s = cublasLtMatmulAlgoGetHeuristic(gemm->handle, p->desc, p->a, p->b, p->d, p->d, preference,
                                       n_max, out, &n);
    cublasLtMatmulPreferenceDestroy(preference);
    if (s != CUBLAS_STATUS_SUCCESS || n == 0) {
        snprintf(error->s, sizeof(error->s), "cuBLASLt has no %s product for T %u, N %u, K %u",
                 is_fp8(args) ? "FP8" : "BF16", args->t, args->n, args->k);
        return -EIO;
    }
    return n;
}

/* T as plans are kept by. */
static uint32_t plan_rows(const struct ll_gemm *gemm, const struct ll_gemm_args *args)
{
    return gemm->is_fixed ? FIXED_ROWS : rows_computed(args);
}

static struct ll_gemm_plan *find_plan(struct ll_gemm *gemm, const struct ll_gemm_args *args)
{
    const uint32_t t = plan_rows(gemm, args);

    for (uint32_t i = 0; i < gemm->n_plans; i++) {
        struct ll_gemm_plan *plan = &gemm->plan[i];
        if (plan->kind == args->kind && plan->t == t && plan->n == args->n && plan->k == args->k &&
            plan->ld == row_elements(args))
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
        *plan = (struct ll_gemm_plan){.kind = args->kind,
                                      .t = plan_rows(gemm, args),
                                      .n = args->n,
                                      .k = args->k,
                                      .ld = row_elements(args)};
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

static int kernel_failed(struct ll_text *error, const char *what)
{
    snprintf(error->s, sizeof(error->s), "CUDA: %s: %s", what,
             cudaGetErrorString(cudaGetLastError()));
    return -EIO;
}

/* Widens as many rows of w as scratch holds, multiplies, goes on. */
static int run_widened(struct ll_gemm *gemm, const struct ll_gemm_args *args, cudaStream_t stream,
                       struct ll_text *error)
{
    const uint32_t fit = (uint32_t)(args->scratch_bytes / ((size_t)args->k * 2) / 16 * 16);

    if (fit == 0) {
        snprintf(error->s, sizeof(error->s), "no room to widen 16 rows of %u", args->k);
        return -EINVAL;
    }
    for (uint32_t first = 0; first < args->n; first += fit) {
        const uint32_t n = args->n - first < fit ? args->n - first : fit;
        const struct ll_gemm_args piece = {.kind = LL_GEMM_BF16,
                                           .y = (uint16_t *)args->y + first,
                                           .x = args->x,
                                           .w = args->scratch,
                                           .t = args->t,
                                           .n = n,
                                           .k = args->k,
                                           .ld = row_elements(args)};
        const float *block = args->w_block;
        if (block != NULL)
            block += (size_t)first / 16 * ((args->k + 127) / 128);
        if (ll_cuda_widen(args->scratch, (const unsigned char *)args->w + (size_t)first * args->k,
                          args->w_scale + first, block, n, args->k, stream) < 0)
            return kernel_failed(error, "widen");
        int rc = ll_gemm_run(gemm, &piece, stream, error);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The heuristic's first choice for these arguments, or for FIXED_ROWS in their place. */
static int choose(struct ll_gemm *gemm, const struct ll_gemm_args *args, cublasLtMatmulAlgo_t *algo,
                  struct ll_text *error)
{
    cublasLtMatmulHeuristicResult_t result;
    struct ll_gemm_args like = *args;
    struct problem p;

    like.t = plan_rows(gemm, args);
    int rc = problem_make(&p, &like, error);
    if (rc < 0)
        return rc;
    rc = candidates(gemm, &p, &like, &result, 1, error);
    problem_free(&p);
    *algo = result.algo;
    return rc < 0 ? rc : 0;
}

int ll_gemm_run(struct ll_gemm *gemm, const struct ll_gemm_args *args, cudaStream_t stream,
                struct ll_text *error)
{
    if (args->kind == LL_GEMM_W8A16)
        return run_widened(gemm, args, stream, error);
    struct problem p;
    int rc = problem_make(&p, args, error);

    if (rc < 0)
        return rc;
    struct ll_gemm_plan *plan = find_plan(gemm, args);
    if (plan == NULL) {
        cublasLtMatmulAlgo_t algo;
        rc = choose(gemm, args, &algo, error);
        if (rc < 0)
            goto free_problem;
        plan = add_plan(gemm, args);
        if (plan == NULL) {
            snprintf(error->s, sizeof(error->s), "more than %d GEMM shapes", LL_GEMM_PLANS_MAX);
            rc = -ENOSPC;
            goto free_problem;
        }
        plan->algo = algo;
    }
    cublasStatus_t s = run(gemm, &p, args, &plan->algo, stream);
    rc = s == CUBLAS_STATUS_SUCCESS ? 0 : fail(error, "matmul", s);
    if (rc == 0 && args->kind == LL_GEMM_FP8_TENSOR &&
        ll_cuda_scale(args->y, args->x_scale, args->w_scale, args->t, args->n, stream) < 0)
        rc = kernel_failed(error, "scale");
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

    if ((plan != NULL && plan->is_tuned) || args->kind == LL_GEMM_W8A16 || gemm->is_fixed)
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
