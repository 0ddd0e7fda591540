/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cuda_ops_product.c - matrix products on the GPU against sums in double and the
 * CPU backend's: cuBLASLt's plans of every kind and our own for few tokens. Skipped without a GPU.
 */
#include "kernels/cpu/inner.h"
#include "kernels/cuda/gemm_lt.h"
#include "kernels/cuda/skinny.h"
#include "kernels/cuda/skinny_wgmma.h"
#include "tests/kernels/cuda_ops.h"

struct product { /* y[t, n] = x_scale[t] w_scale[n] sum_k x[t, k] w[n, k], values widened */
    uint32_t t, n, k;
    const float *x, *w, *x_scale, *w_scale;
};

static double exact(const struct product *p, uint32_t t, uint32_t n)
{
    const float *x = p->x + (size_t)t * p->k, *w = p->w + (size_t)n * p->k;
    double sum = 0;

    for (uint32_t k = 0; k < p->k; k++)
        sum += (double)x[k] * (double)w[k];
    return sum * (p->x_scale != NULL ? (double)p->x_scale[t] : 1) *
           (p->w_scale != NULL ? (double)p->w_scale[n] : 1);
}

/* Norm of the error over norm of the result, and no single number far off: an element's error is at
 * most its own rounding and K roundings of the sum's size. */
static void check_product(const struct product *p, const float *y, double tolerance,
                          double rounding, const char *what)
{
    double *want = malloc((size_t)p->t * p->n * sizeof(*want));
    double top = 0;

    for (uint32_t t = 0; t < p->t; t++)
        for (uint32_t n = 0; n < p->n; n++) {
            want[(size_t)t * p->n + n] = exact(p, t, n);
            top = fmax(top, fabs(want[(size_t)t * p->n + n]));
        }
    const double far = distance(y, want, (size_t)p->t * p->n);
    if (!(far <= tolerance))
        fail_msg("%s T %u N %u K %u: %g is over %g", what, p->t, p->n, p->k, far, tolerance);
    for (size_t i = 0; i < (size_t)p->t * p->n; i++)
        if (!(fabs((double)y[i] - want[i]) <= rounding * fabs(want[i]) + tolerance * top))
            fail_msg("%s T %u N %u K %u: number %zu is %g, not %g", what, p->t, p->n, p->k, i,
                     (double)y[i], want[i]);
    free(want);
}

static float *values_of(const uint8_t *code, size_t n)
{
    float *x = malloc(n * sizeof(*x));

    for (size_t i = 0; i < n; i++)
        x[i] = e4m3_value(code[i]);
    return x;
}

/* Random factors for 16 rows and 128 columns of w, multiplied into its values; the factors. */
static float *random_blocks(float *w_wide, uint32_t n, uint32_t k)
{
    const uint32_t rows = (n + 15) / 16, cols = (k + 127) / 128;
    float *block = random_scales(rows * cols);

    for (size_t i = 0; i < (size_t)n * k; i++)
        w_wide[i] *= block[i / k / 16 * cols + i % k / 128];
    return block;
}

/* ---- cuBLASLt ---------------------------------------------------------------------------------*/
static struct ll_gemm gemm;
static uint32_t level; /* compute capability that the code was made for: 80, 89, 90 */

static void run_gemm(const struct ll_gemm_args *args)
{
    struct ll_text error = {""};

    if (ll_gemm_run(&gemm, args, 0, &error) < 0)
        fail_msg("%s", error.s);
    cuda_ok(cudaDeviceSynchronize(), "gemm");
}

static void check_bf16(uint32_t T, uint32_t N, uint32_t K, bool is_f32)
{
    uint16_t *x = random_bf16s((size_t)T * K, 1), *w = random_bf16s((size_t)N * K, 0.1f);
    float *x_wide = widened(x, (size_t)T * K), *w_wide = widened(w, (size_t)N * K), *y;
    const size_t n_out = (size_t)T * N;
    void *out = dev_new(n_out * (is_f32 ? 4 : 2));

    run_gemm(&(struct ll_gemm_args){.kind = is_f32 ? LL_GEMM_BF16_F32 : LL_GEMM_BF16,
                                    .y = out,
                                    .x = dev_copy(x, (size_t)T * K * 2),
                                    .w = dev_copy(w, (size_t)N * K * 2),
                                    .t = T,
                                    .n = N,
                                    .k = K});
    y = is_f32 ? dev_get(out, n_out * 4) : get_bf16s(out, n_out);
    const struct product p = {.t = T, .n = N, .k = K, .x = x_wide, .w = w_wide};
    check_product(&p, y, is_f32 ? 1e-5 : 4e-3, is_f32 ? 1e-4 : 0x1p-8, is_f32 ? "f32" : "bf16");
    if (!is_f32 && K % 16 == 0) { /* what the CPU backend computes, rounded alike */
        float *cpu = malloc(n_out * sizeof(*cpu));
        double *cpu_wide = malloc(n_out * sizeof(*cpu_wide));
        const struct ll_cpu_rows rows = {.data = w, .form = LL_FORM_BF16, .ld = K};
        ll_cpu_inner_find(NULL)->dots(cpu, N, &rows, x_wide, K, N, T, K);
        for (size_t i = 0; i < n_out; i++)
            cpu_wide[i] = (double)ll_round_bf16(cpu[i]);
        assert_within(distance(y, cpu_wide, n_out), 4e-3, "against the CPU's");
        free(cpu);
        free(cpu_wide);
    }
    dev_end();
    free(x);
    free(w);
    free(x_wide);
    free(w_wide);
    free(y);
}

static void bf16_products_are_within_4e_3_of_double(void **state)
{
    (void)state;
    for (uint32_t t = 1; t <= (is_quick() ? 3u : 33u); t++)
        check_bf16(t, 96, 272, t % 2 == 0);
    check_bf16(64, 1040, 512, false);
    check_bf16(131, 48, 2064, false);
    if (!is_quick())
        check_bf16(1025, 256, 4096, false);
    check_bf16(5, 4104, 256, true);
}

static void check_fp8(uint32_t T, uint32_t N, uint32_t K, bool is_tensor_wide)
{
    const uint32_t T16 = (T + 15) / 16 * 16; /* rows computed */
    uint8_t *x = random_e4m3s((size_t)T16 * K), *w = random_e4m3s((size_t)N * K);
    float *x_wide = values_of(x, (size_t)T16 * K), *w_wide = values_of(w, (size_t)N * K);
    float *sx = random_scales(T16), *sw = random_scales(N);

    for (uint32_t k = 0; k < K && T > 1; k++) /* a row of zeros */
        x[K + k] = 0, x_wide[K + k] = 0;
    void *out = dev_new((size_t)T16 * N * 2);
    run_gemm(&(struct ll_gemm_args){.kind = is_tensor_wide ? LL_GEMM_FP8_TENSOR : LL_GEMM_FP8,
                                    .y = out,
                                    .x = dev_copy(x, (size_t)T16 * K),
                                    .w = dev_copy(w, (size_t)N * K),
                                    .x_scale = dev_copy(sx, T16 * 4),
                                    .w_scale = dev_copy(sw, N * 4),
                                    .t = T,
                                    .n = N,
                                    .k = K});
    float *y = get_bf16s(out, (size_t)T * N);
    const struct product p = {
        .t = T, .n = N, .k = K, .x = x_wide, .w = w_wide, .x_scale = sx, .w_scale = sw};
    check_product(&p, y, 4e-3, 0x1p-7, is_tensor_wide ? "e4m3, one scale" : "e4m3");
    dev_end();
    free(x);
    free(w);
    free(x_wide);
    free(w_wide);
    free(sx);
    free(sw);
    free(y);
}

static void e4m3_products_with_vectors_of_scales_are_within_4e_3_of_double(void **state)
{
    (void)state;
    if (level < 90)
        skip();
    for (uint32_t t = 1; t <= (is_quick() ? 2u : 33u); t++)
        check_fp8(t, 96, 272, false);
    check_fp8(64, 1040, 512, false);
    check_fp8(257, 128, is_quick() ? 512 : 14336, false);
}

/* The path of 8.9: the tensor cores see no scale, a kernel applies both vectors. */
static void e4m3_products_without_vectors_give_the_same(void **state)
{
    (void)state;
    if (level < 89)
        skip();
    for (uint32_t t = 1; t <= (is_quick() ? 2u : 18u); t++)
        check_fp8(t, 96, 272, true);
    check_fp8(257, 1040, 512, true);
    check_fp8(64, 128, is_quick() ? 512 : 14336, true);
}

static float *copy_blocks(const float *block, uint32_t n, uint32_t k)
{
    return block != NULL ? dev_copy(block, (size_t)((n + 15) / 16) * ((k + 127) / 128) * 4) : NULL;
}

/* The path of 8.0, and of block scales: weights are widened in pieces, products are bf16. So is the
 * reference's weight, a scaled number rounded to bf16: against the exact one an outlier's rounding
 * alone can be more than a small sum. */
static void check_widened(uint32_t T, uint32_t N, uint32_t K, size_t scratch_bytes, bool has_blocks)
{
    uint16_t *x = random_bf16s((size_t)T * K, 1);
    uint8_t *w = random_e4m3s((size_t)N * K);
    float *x_wide = widened(x, (size_t)T * K), *w_wide = values_of(w, (size_t)N * K);
    float *sw = random_scales(N), *block = has_blocks ? random_blocks(w_wide, N, K) : NULL;
    void *out = dev_new((size_t)T * N * 2);

    run_gemm(&(struct ll_gemm_args){.kind = LL_GEMM_W8A16,
                                    .y = out,
                                    .x = dev_copy(x, (size_t)T * K * 2),
                                    .w = dev_copy(w, (size_t)N * K),
                                    .w_scale = dev_copy(sw, N * 4),
                                    .w_block = copy_blocks(block, N, K),
                                    .scratch = dev_new(scratch_bytes),
                                    .scratch_bytes = scratch_bytes,
                                    .t = T,
                                    .n = N,
                                    .k = K});
    float *y = get_bf16s(out, (size_t)T * N);
    for (size_t i = 0; i < (size_t)N * K; i++)
        w_wide[i] = ll_round_bf16(w_wide[i] * sw[i / K]);
    const struct product p = {.t = T, .n = N, .k = K, .x = x_wide, .w = w_wide};
    check_product(&p, y, 4e-3, 0x1p-7, has_blocks ? "e4m3 with blocks widened" : "e4m3 widened");
    dev_end();
    free(block);
    free(x);
    free(w);
    free(x_wide);
    free(w_wide);
    free(sw);
    free(y);
}

static void widened_e4m3_weights_give_the_same_whole_and_in_pieces(void **state)
{
    (void)state;
    for (int has_blocks = 0; has_blocks < 2; has_blocks++) {
        check_widened(9, 96, 272, 1 << 20, has_blocks);
        check_widened(33, 208, 512, 64 * 512 * 2, has_blocks); /* 64 rows at once, 16 at last */
        check_widened(130, 1040, 1024, 256 * 1024 * 2, has_blocks);
    }
}

static void measuring_plans_changes_no_result(void **state)
{
    enum { T = 16, N = 256, K = 512 };
    uint16_t *x = random_bf16s(T * K, 1), *w = random_bf16s(N * K, 0.1f);
    struct ll_text error = {""};
    void *out = dev_new(T * N * 2);
    const struct ll_gemm_args args = {.kind = LL_GEMM_BF16,
                                      .y = out,
                                      .x = dev_copy(x, T * K * 2),
                                      .w = dev_copy(w, N * K * 2),
                                      .t = T,
                                      .n = N,
                                      .k = K};

    (void)state;
    assert_int_equal(ll_gemm_tune(&gemm, &args, 0, &error), 0);
    dev_poison(out, T * N * 2);
    run_gemm(&args);
    float *y = get_bf16s(out, T * N), *x_wide = widened(x, T * K), *w_wide = widened(w, N * K);
    const struct product p = {.t = T, .n = N, .k = K, .x = x_wide, .w = w_wide};
    check_product(&p, y, 4e-3, 0x1p-8, "tuned");
    dev_end();
    free(x);
    free(w);
    free(y);
    free(x_wide);
    free(w_wide);
}

/* ---- our own ----------------------------------------------------------------------------------*/
struct skinny_case {
    uint32_t n, k;
    bool is_fp8, is_gated, is_f32, has_blocks;
};

/* What the CPU backend makes of the same codes and scales; y [T, N]. */
static void check_e4m3_against_cpu(const struct product *p, const uint8_t *code, const float *block,
                                   const float *y, const char *what)
{
    const uint32_t cols = (p->k + 127) / 128, n_scales = block != NULL ? cols : 1;
    const size_t n_out = (size_t)p->t * p->n;
    float *scale = malloc((size_t)p->n * n_scales * sizeof(*scale));
    float *cpu = malloc(n_out * sizeof(*cpu));
    double *want = malloc(n_out * sizeof(*want));

    for (uint32_t r = 0; r < p->n; r++)
        for (uint32_t c = 0; c < n_scales; c++)
            scale[r * n_scales + c] =
                p->w_scale[r] * (block != NULL ? block[r / 16 * cols + c] : 1) * LL_CPU_E4M3_UNIT;
    const struct ll_cpu_rows rows = {
        .data = code, .form = LL_FORM_E4M3, .ld = p->k, .scale = scale, .n_scales = n_scales};
    ll_cpu_inner_find(NULL)->dots(cpu, p->n, &rows, p->x, p->k, p->n, p->t, p->k);
    for (size_t i = 0; i < n_out; i++)
        want[i] = (double)ll_round_bf16(cpu[i]);
    const double far = distance(y, want, n_out);
    if (!(far <= 4e-3))
        fail_msg("%s N %u K %u: %g from the CPU's", what, p->n, p->k, far);
    free(scale);
    free(cpu);
    free(want);
}

/* All of T 1 .. 8 with one set of inputs: right, written throughout, the same bits for a token
 * alone as among others, and in each of many repeats. */
static void check_skinny(struct skinny_case c)
{
    const uint32_t T = LL_SKINNY_TOKENS_MAX, N = c.n, K = c.k, width = c.is_gated ? 2 * K : K;
    const size_t out_size = c.is_f32 ? 4 : 2, n_w = (size_t)N * K, row_bytes = (size_t)N * out_size;
    uint16_t *x = random_bf16s((size_t)T * width, c.is_gated ? 2 : 1), *w16 = NULL;
    uint8_t *w8 = NULL;
    float *w_wide, *sw = random_scales(N), *x_wide = malloc((size_t)T * K * sizeof(float));
    char what[64];

    snprintf(what, sizeof(what), "skinny %s%s%s%s", c.is_fp8 ? "e4m3" : "bf16",
             c.has_blocks ? " blocks" : "", c.is_gated ? " gated" : "", c.is_f32 ? " to f32" : "");
    if (c.is_fp8)
        w_wide = values_of(w8 = random_e4m3s(n_w), n_w);
    else
        w_wide = widened(w16 = random_bf16s(n_w, 0.1f), n_w);
    float *block = c.has_blocks ? random_blocks(w_wide, N, K) : NULL;
    for (uint32_t t = 0; t < T; t++)
        for (uint32_t k = 0; k < K; k++) {
            const uint16_t *row = x + (size_t)t * width;
            float v = ll_f32_from_bf16(row[k]);
            if (c.is_gated)
                v = ll_round_bf16(ll_round_bf16(v / (1 + expf(-v))) * ll_f32_from_bf16(row[K + k]));
            x_wide[(size_t)t * K + k] = v;
        }
    const size_t partial_bytes = ll_cuda_skinny_partial_bytes(N, K);
    void *x_device = dev_copy(x, (size_t)T * width * 2), *out = dev_new(T * row_bytes);
    uint32_t *arrived = dev_zero((N / 64 + 1) * 4);
    struct ll_skinny_args args = {.y = out,
                                  .w = c.is_fp8 ? dev_copy(w8, n_w) : dev_copy(w16, n_w * 2),
                                  .w_scale = c.is_fp8 ? dev_copy(sw, N * 4) : NULL,
                                  .w_block = copy_blocks(block, N, K),
                                  .partial = dev_new(partial_bytes),
                                  .arrived = arrived,
                                  .n = N,
                                  .k = K,
                                  .is_fp8 = c.is_fp8,
                                  .is_gated = c.is_gated,
                                  .is_f32 = c.is_f32};
    unsigned char *all = NULL;
    for (uint32_t t = T; t >= 1; t--) {
        const struct product p = {
            .t = t, .n = N, .k = K, .x = x_wide, .w = w_wide, .w_scale = c.is_fp8 ? sw : NULL};
        args.x = x_device;
        args.n_tokens = t;
        dev_poison(out, T * row_bytes);
        launched_ok(ll_cuda_skinny(&args, 0), what);
        unsigned char *got = dev_get(out, T * row_bytes);
        if (t == T) {
            float *y = c.is_f32 ? dev_get(out, (size_t)T * N * 4) : get_bf16s(out, (size_t)T * N);
            /* expf here and __expf there may round a gate the other way. */
            check_product(&p, y, c.is_f32 ? 1e-5 : 4e-3, c.is_f32 ? 1e-4 : 0x1p-7, what);
            if (c.is_fp8)
                check_e4m3_against_cpu(&p, w8, block, y, what);
            all = got;
            free(y);
            continue;
        }
        assert_memory_equal(got, all, t * row_bytes);
        for (size_t i = t * row_bytes; i < T * row_bytes; i++)
            if (got[i] != 0xff)
                fail_msg("%s: row %zu of %u was written", what, i / row_bytes, t);
        free(got);
    }
    for (uint32_t t = 0; t < T; t++) { /* every row alone */
        args.x = (const uint16_t *)x_device + (size_t)t * width;
        args.n_tokens = 1;
        launched_ok(ll_cuda_skinny(&args, 0), what);
        unsigned char *got = dev_get(out, row_bytes);
        assert_memory_equal(got, all + t * row_bytes, row_bytes);
        free(got);
    }
    args.x = x_device;
    args.n_tokens = T;
    for (int i = 0; i < (is_quick() ? 3 : 100); i++) {
        dev_poison(out, T * row_bytes);
        launched_ok(ll_cuda_skinny(&args, 0), what);
        unsigned char *got = dev_get(out, T * row_bytes);
        assert_memory_equal(got, all, T * row_bytes);
        free(got);
    }
    uint32_t *left = dev_get(arrived, (N / 64 + 1) * 4); /* ready for the next call */
    for (uint32_t i = 0; i < N / 64 + 1; i++)
        assert_int_equal(left[i], 0);
    free(left);
    free(all);
    free(block);
    free(x);
    free(w8);
    free(w16);
    free(w_wide);
    free(x_wide);
    free(sw);
    dev_end();
}

static void check_skinny_shapes(bool is_fp8, bool is_gated, bool is_f32, bool has_blocks)
{
    static const uint32_t shapes[][2] = {{16, 128},   {48, 384},   {64, 1024}, {80, 1152},
                                         {1040, 640}, {528, 4096}, {96, 8320}, {4096, 14336}};

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]) - (is_quick() ? 3 : 0); i++)
        check_skinny(
            (struct skinny_case){shapes[i][0], shapes[i][1], is_fp8, is_gated, is_f32, has_blocks});
}

static void our_e4m3_product_is_right_and_each_row_alone(void **state)
{
    (void)state;
    check_skinny_shapes(true, false, false, false);
}

static void our_gated_product_is_right_and_each_row_alone(void **state)
{
    (void)state;
    check_skinny_shapes(true, true, false, false);
    check_skinny_shapes(false, true, false, false);
}

static void our_product_with_block_scales_is_right_and_each_row_alone(void **state)
{
    (void)state;
    check_skinny_shapes(true, false, false, true);
    check_skinny_shapes(true, true, false, true);
}

static void our_bf16_product_is_right_and_each_row_alone(void **state)
{
    (void)state;
    check_skinny_shapes(false, false, false, false);
    check_skinny_shapes(false, false, true, false);
}

/* ---- our own by warpgroups, up to 256 tokens
 * ----------------------------------------------------*/
struct wide_case {
    uint32_t n, k, n_tokens; /* n_tokens: the most */
    bool is_fp8;
    struct ll_skinny_wgmma_args args;
    size_t n_arrived;
};

/* Runs args with t tokens from row first on; host copies of t_max rows, those past t untouched. */
static unsigned char *run_wide(const struct wide_case *c, uint32_t first, uint32_t t)
{
    struct ll_skinny_wgmma_args a = c->args;
    const size_t row_bytes = (size_t)c->n * 2, all = (c->n_tokens + 1) * row_bytes;

    a.x = (const unsigned char *)a.x + (size_t)first * c->k * (c->is_fp8 ? 1 : 2);
    a.x_scale = c->is_fp8 ? a.x_scale + first : NULL;
    a.n_tokens = t;
    dev_poison(a.y, all);
    launched_ok(ll_cuda_skinny_wgmma(&a, 0), "by warpgroups");
    unsigned char *got = dev_get(a.y, all);
    for (size_t i = t * row_bytes; i < all; i++)
        if (got[i] != 0xff)
            fail_msg("T %u N %u K %u: row %zu was written", t, c->n, c->k, i / row_bytes);
    return got;
}

/* Right for the most tokens; the same bits for every smaller number, for every row alone and in
 * every repeat; the counters are zero again. */
static void check_wide(uint32_t N, uint32_t K, uint32_t T, bool is_fp8)
{
    struct wide_case c = {.n = N, .k = K, .n_tokens = T, .is_fp8 = is_fp8};
    const size_t n_x = (size_t)T * K, n_w = (size_t)N * K, row_bytes = (size_t)N * 2;
    uint8_t *x8 = NULL, *w8 = NULL;
    uint16_t *x16 = NULL, *w16 = NULL;
    float *x_wide, *w_wide, *sx = random_scales(T), *sw = random_scales(N);
    size_t partial_bytes;

    ll_cuda_skinny_wgmma_room(N, K, is_fp8, T, &partial_bytes, &c.n_arrived);
    if (is_fp8) {
        x8 = random_e4m3s(n_x);
        memset(x8 + (T > 1 ? K : 0), 0, T > 1 ? K : 0); /* a row of zeros */
        x_wide = values_of(x8, n_x);
        w_wide = values_of(w8 = random_e4m3s(n_w), n_w);
    } else {
        x_wide = widened(x16 = random_bf16s(n_x, 1), n_x);
        w_wide = widened(w16 = random_bf16s(n_w, 0.1f), n_w);
    }
    c.args = (struct ll_skinny_wgmma_args){
        .y = dev_new((T + 1) * row_bytes),
        .x = is_fp8 ? dev_copy(x8, n_x) : dev_copy(x16, n_x * 2),
        .w = is_fp8 ? dev_copy(w8, n_w) : dev_copy(w16, n_w * 2),
        .x_scale = dev_copy(sx, T * 4),
        .w_scale = dev_copy(sw, N * 4),
        .partial = dev_new(partial_bytes),
        .arrived = dev_zero(c.n_arrived * 4),
        .n = N,
        .k = K,
        .is_fp8 = is_fp8,
    };
    unsigned char *all = run_wide(&c, 0, T);
    float *y = widened((const uint16_t *)(const void *)all, (size_t)T * N);
    const struct product p = {.t = T,
                              .n = N,
                              .k = K,
                              .x = x_wide,
                              .w = w_wide,
                              .x_scale = is_fp8 ? sx : NULL,
                              .w_scale = is_fp8 ? sw : NULL};
    check_product(&p, y, 4e-3, is_fp8 ? 0x1p-7 : 0x1p-8, "by warpgroups");
    for (uint32_t t = 1; t < T; t += is_quick() ? 15 : 1) {
        unsigned char *got = run_wide(&c, 0, t);
        if (memcmp(got, all, t * row_bytes) != 0)
            fail_msg("N %u K %u: %u tokens give other bits than %u", N, K, t, T);
        free(got);
    }
    for (uint32_t t = 0; t < T; t += is_quick() ? 15 : 1) {
        unsigned char *got = run_wide(&c, t, 1);
        if (memcmp(got, all + t * row_bytes, row_bytes) != 0)
            fail_msg("N %u K %u: row %u alone has other bits than among %u", N, K, t, T);
        free(got);
    }
    for (int i = 0; i < (is_quick() ? 3 : 100); i++) {
        unsigned char *got = run_wide(&c, 0, T);
        assert_memory_equal(got, all, T * row_bytes);
        free(got);
    }
    uint32_t *left = dev_get(c.args.arrived, c.n_arrived * 4);
    for (size_t i = 0; i < c.n_arrived; i++)
        assert_int_equal(left[i], 0);
    free(left);
    free(all);
    free(y);
    free(x8);
    free(w8);
    free(x16);
    free(w16);
    free(x_wide);
    free(w_wide);
    free(sx);
    free(sw);
    dev_end();
}

static void check_wide_shapes(bool is_fp8)
{
    if (level < 90)
        skip();
    check_wide(16, 128, 256, is_fp8);   /* one block of K, most rows beyond the end */
    check_wide(144, 384, 256, is_fp8);  /* two tiles */
    check_wide(1040, 640, 256, is_fp8); /* a range a block */
    check_wide(272, 14336, 33, is_fp8); /* many ranges a tile */
    if (!is_quick()) {
        check_wide(6144, 1024, 65, is_fp8); /* ranges begin and end inside tiles */
        check_wide(18960, 384, 17, is_fp8); /* whole tiles inside a range */
        check_wide(4096, 4096, 16, is_fp8);
    }
}

static void our_e4m3_product_by_warpgroups_is_right_and_each_row_alone(void **state)
{
    (void)state;
    check_wide_shapes(true);
}

static void our_bf16_product_by_warpgroups_is_right_and_each_row_alone(void **state)
{
    (void)state;
    check_wide_shapes(false);
}

static void shapes_that_do_not_fit_are_refused(void **state)
{
    const struct ll_skinny_args bad[] = {{.n_tokens = 9, .n = 64, .k = 128, .is_fp8 = true},
                                         {.n_tokens = 1, .n = 72, .k = 128, .is_fp8 = true},
                                         {.n_tokens = 1, .n = 64, .k = 192, .is_fp8 = true}};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        assert_false(ll_cuda_skinny_fits(&bad[i]));
        assert_int_equal(ll_cuda_skinny(&bad[i], 0), -EINVAL);
    }
    const struct ll_skinny_wgmma_args wide[] = {
        {.n_tokens = 257, .n = 64, .k = 128, .is_fp8 = true},
        {.n_tokens = 9, .n = 72, .k = 128, .is_fp8 = true},
        {.n_tokens = 9, .n = 64, .k = 192, .is_fp8 = true},
        {.n_tokens = 9, .n = 64, .k = 64}};
    for (size_t i = 0; i < 4; i++) {
        assert_false(ll_cuda_skinny_wgmma_fits(&wide[i]));
        assert_int_equal(ll_cuda_skinny_wgmma(&wide[i], 0), -EINVAL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_products_are_within_4e_3_of_double),
        cmocka_unit_test(e4m3_products_with_vectors_of_scales_are_within_4e_3_of_double),
        cmocka_unit_test(e4m3_products_without_vectors_give_the_same),
        cmocka_unit_test(widened_e4m3_weights_give_the_same_whole_and_in_pieces),
        cmocka_unit_test(measuring_plans_changes_no_result),
        cmocka_unit_test(our_e4m3_product_is_right_and_each_row_alone),
        cmocka_unit_test(our_gated_product_is_right_and_each_row_alone),
        cmocka_unit_test(our_product_with_block_scales_is_right_and_each_row_alone),
        cmocka_unit_test(our_bf16_product_is_right_and_each_row_alone),
        cmocka_unit_test(our_e4m3_product_by_warpgroups_is_right_and_each_row_alone),
        cmocka_unit_test(our_bf16_product_by_warpgroups_is_right_and_each_row_alone),
        cmocka_unit_test(shapes_that_do_not_fit_are_refused),
    };
    struct ll_text error = {""};
    int rc = cuda_tests_begin();

    if (rc != 0)
        return rc;
    level = ll_cuda_level();
    if (ll_gemm_open(&gemm, &error) < 0) {
        printf("cuBLASLt: %s\n", error.s);
        return 1;
    }
    if (getenv("LL_TEST_FILTER") != NULL) /* tools/dev/gpu-test: our own products alone */
        cmocka_set_test_filter(getenv("LL_TEST_FILTER"));
    rc = cmocka_run_group_tests_name("kernels/cuda products", tests, NULL, NULL);
    ll_gemm_close(&gemm);
    return rc;
}
