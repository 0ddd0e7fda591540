/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cuda_ops.c - the CUDA operations without products and attention, each against
 * its formula in double and the CPU backend's function. Skipped where there is no GPU. */
#include "kernels/cpu/inner.h"
#include "kernels/cpu/rope.h"
#include "tests/kernels/cuda_ops.h"

static const struct ll_cpu_inner *cpu;

/* ---- embedding ------------------------------------------------------------------------------*/
static void an_embedding_row_is_copied_and_padding_is_zero(void **state)
{
    static const uint32_t widths[] = {8, 64, 1032, 4096};
    enum { T = 37, V = 101 };

    (void)state;
    for (size_t w = 0; w < 4; w++) {
        const uint32_t n_embd = widths[w];
        uint16_t *table = random_bf16s((size_t)V * n_embd, 1);
        uint32_t id[T], slot[T];
        for (uint32_t t = 0; t < T; t++) {
            id[t] = (uint32_t)ll_splitmix64(&random_state) % V;
            slot[t] = t % 5 == 3 ? LL_CUDA_NONE : t;
        }
        id[0] = V - 1;
        id[1] = 0;
        id[2] = V; /* outside: as padding */
        void *out = dev_new((size_t)T * n_embd * 2);
        launched_ok(ll_cuda_embed(out, dev_copy(table, (size_t)V * n_embd * 2),
                                  dev_copy(id, sizeof(id)), dev_copy(slot, sizeof(slot)), T, n_embd,
                                  V, 0),
                    "embed");
        uint16_t *got = dev_get(out, (size_t)T * n_embd * 2);
        for (uint32_t t = 0; t < T; t++)
            for (uint32_t e = 0; e < n_embd; e++) {
                bool is_used = slot[t] != LL_CUDA_NONE && id[t] < V;
                assert_int_equal(got[t * n_embd + e], is_used ? table[id[t] * n_embd + e] : 0);
            }
        free(got);
        free(table);
        dev_end();
    }
    assert_int_equal(ll_cuda_embed(NULL, NULL, NULL, NULL, 1, 12, 1, 0), -EINVAL);
}

/* ---- RMS norm ---------------------------------------------------------------------------------*/
struct norm_case {
    uint32_t n_rows, n_embd;
    bool has_delta, has_rows;
};

/* Two roundings to bf16, each 2^-8 at most: a third of that on the average of many numbers, of
 * which only the large ones count, every 97th. */
static double rounded_twice(size_t n)
{
    return n / 97 < 500 ? 0x1p-7 : 4e-3;
}

/* What quantising a row of values must give: its scale, and codes that round value / scale, or the
 * largest for what lies past the bound. */
static void check_quantized(const uint8_t *code, float scale, const float *value, uint32_t n,
                            float bound, const char *what)
{
    float top = 0;

    for (uint32_t e = 0; e < n; e++)
        top = fmaxf(top, fabsf(value[e]));
    top = fminf(top, bound);
    assert_within(fabs((double)scale - fmax((double)top / 448, 1e-12)), 1e-6 * (double)scale, what);
    for (uint32_t e = 0; e < n; e++)
        check_e4m3(code[e], (double)value[e] / (double)scale, what);
}

static void check_norm(struct norm_case c)
{
    const uint32_t n_tokens = c.has_rows ? c.n_rows * 2 : c.n_rows, E = c.n_embd;
    const size_t n = (size_t)n_tokens * E, n_out = (size_t)c.n_rows * E;
    const float eps = 1e-5f, bound = c.has_rows ? 0.75f : INFINITY; /* some of a row is larger */
    uint16_t *x = random_bf16s(n, 2), *delta = random_bf16s(n, 1), *weight = random_bf16s(E, 0.5f);
    struct ll_cuda_logit *rows = calloc(c.n_rows, sizeof(*rows));

    for (uint32_t e = 0; e < E && n_tokens > 1; e++) /* a row of zeros */
        x[E + e] = delta[E + e] = 0;
    for (uint32_t r = 0; r < c.n_rows; r++)
        rows[r].token = r == 2 ? LL_CUDA_NONE : c.n_rows * 2 - 1 - r;
    void *x_device = dev_copy(x, n * 2), *delta_device = dev_copy(delta, n * 2);
    void *weight_device = dev_copy(weight, (size_t)E * 2), *out = dev_new(n_out * 2);
    void *rows_device = dev_copy(rows, c.n_rows * sizeof(*rows));
    launched_ok(ll_cuda_rmsnorm(out, NULL, x_device, c.has_delta ? delta_device : NULL,
                                weight_device, c.has_rows ? rows_device : NULL, c.n_rows, E, eps,
                                INFINITY, 0),
                "rmsnorm");

    float *got = get_bf16s(out, n_out), *x_after = get_bf16s(x_device, n), *w = widened(weight, E);
    float *sum = malloc(n * sizeof(*sum));
    double *wanted = malloc(n_out * sizeof(*wanted));
    for (size_t i = 0; i < n; i++) {
        float a = ll_f32_from_bf16(x[i]), d = c.has_delta ? ll_f32_from_bf16(delta[i]) : 0;
        sum[i] = ll_round_bf16(a + d);
        /* The sum is kept, but not where rows are gathered. */
        assert_true(x_after[i] == (c.has_rows ? a : sum[i]));
    }
    float *from_cpu = poisoned(E + 16);
    for (uint32_t r = 0; r < c.n_rows; r++) {
        const uint32_t t = !c.has_rows ? r : rows[r].token == LL_CUDA_NONE ? 0 : rows[r].token;
        const float *v = sum + (size_t)t * E, *mine = got + (size_t)r * E;
        double square = 0, *want = wanted + (size_t)r * E;
        for (uint32_t e = 0; e < E; e++)
            square += (double)v[e] * (double)v[e];
        for (uint32_t e = 0; e < E; e++)
            want[e] = (double)v[e] / sqrt(square / E + (double)eps) * (double)w[e];
        if (E % 16 != 0)
            continue;
        /* The CPU's: the same roundings, another order of the sum. */
        cpu->rmsnorm(from_cpu, v, w, E, E, eps, true);
        for (uint32_t e = 0; e < E; e++) /* two roundings, each may fall the other way */
            assert_within(fabs((double)mine[e] - (double)from_cpu[e]),
                          0x1p-6 * fabs((double)from_cpu[e]), "rmsnorm against the CPU's");
    }

    assert_within(distance(got, wanted, n_out), rounded_twice(n_out), "rmsnorm");

    /* Quantised: of the same values. */
    if (c.has_delta) /* x holds the sum now */
        cuda_ok(cudaMemcpy(x_device, x, n * 2, cudaMemcpyHostToDevice), "x");
    void *code = dev_new(n_out), *scale = dev_new(c.n_rows * sizeof(float));
    launched_ok(ll_cuda_rmsnorm(code, scale, x_device, c.has_delta ? delta_device : NULL,
                                weight_device, c.has_rows ? rows_device : NULL, c.n_rows, E, eps,
                                bound, 0),
                "rmsnorm e4m3");
    uint8_t *codes = dev_get(code, n_out);
    float *scales = dev_get(scale, c.n_rows * sizeof(float));
    for (uint32_t r = 0; r < c.n_rows; r++)
        check_quantized(codes + (size_t)r * E, scales[r], got + (size_t)r * E, E, bound,
                        "rmsnorm e4m3");
    dev_end();
    free(x);
    free(delta);
    free(weight);
    free(rows);
    free(got);
    free(x_after);
    free(w);
    free(sum);
    free(wanted);
    free(from_cpu);
    free(codes);
    free(scales);
}

static void rmsnorm_adds_norms_and_quantises(void **state)
{
    static const uint32_t widths[] = {8, 96, 2048, 2056, 3072, 4096, 8192, 8200, 16384};

    (void)state;
    for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++)
        for (int form = 0; form < 4; form++) {
            if (is_quick() && widths[w] > 2056)
                continue;
            check_norm((struct norm_case){form % 2 ? 5 : 33, widths[w], form & 1, form >> 1});
        }
    check_norm((struct norm_case){1, 4096, true, false});
    assert_int_equal(
        ll_cuda_rmsnorm(NULL, NULL, NULL, NULL, NULL, NULL, 1, 16392, 1e-5f, INFINITY, 0), -EINVAL);
    assert_int_equal(ll_cuda_rmsnorm(NULL, NULL, NULL, NULL, NULL, NULL, 1, 20, 1e-5f, INFINITY, 0),
                     -EINVAL);
}

/* ---- SwiGLU and quantisation ------------------------------------------------------------------*/
static void check_swiglu(uint32_t n_tokens, uint32_t F)
{
    const size_t n = (size_t)n_tokens * F;
    const float bound = n_tokens > 1 ? 2.0f : INFINITY;
    uint16_t *in = random_bf16s(2 * n, 3);
    float *both = widened(in, 2 * n);
    void *in_device = dev_copy(in, 2 * n * 2), *out = dev_new(n * 2);
    void *code = dev_new(n), *scale = dev_new(n_tokens * sizeof(float));
    double *want = malloc(n * sizeof(*want));

    launched_ok(ll_cuda_swiglu(out, NULL, in_device, n_tokens, F, INFINITY, 0), "swiglu");
    launched_ok(ll_cuda_swiglu(code, scale, in_device, n_tokens, F, bound, 0), "swiglu e4m3");
    float *got = get_bf16s(out, n), *from_cpu = poisoned(F + 16);
    uint8_t *codes = dev_get(code, n);
    float *scales = dev_get(scale, n_tokens * sizeof(float));
    for (uint32_t t = 0; t < n_tokens; t++) {
        const float *g = both + (size_t)t * 2 * F, *u = g + F, *mine = got + (size_t)t * F;
        for (uint32_t f = 0; f < F; f++)
            want[(size_t)t * F + f] = (double)g[f] / (1 + exp(-(double)g[f])) * (double)u[f];
        check_quantized(codes + (size_t)t * F, scales[t], mine, F, bound, "swiglu e4m3");
        if (F % 16 != 0)
            continue;
        cpu->swiglu(from_cpu, g, u, F, true);
        for (uint32_t f = 0; f < F; f++) /* two roundings, each may fall the other way */
            assert_within(fabs((double)mine[f] - (double)from_cpu[f]),
                          0x1p-6 * fabs((double)from_cpu[f]) + 1e-30, "swiglu against the CPU's");
    }
    assert_within(distance(got, want, n), rounded_twice(n), "swiglu");
    dev_end();
    free(in);
    free(both);
    free(want);
    free(got);
    free(from_cpu);
    free(codes);
    free(scales);
}

static void swiglu_gates_and_quantises(void **state)
{
    (void)state;
    check_swiglu(1, 8);
    check_swiglu(3, 2056);
    check_swiglu(64, 1376);
    check_swiglu(5, is_quick() ? 280 : 9000);
    check_swiglu(5, is_quick() ? 288 : 16000);
    check_swiglu(5, is_quick() ? 296 : 26000);
    check_swiglu(2, is_quick() ? 272 : 14336);
    check_swiglu(1, is_quick() ? 280 : 28672);
    check_swiglu(2, 53248); /* too wide for registers */
    assert_int_equal(ll_cuda_swiglu(NULL, NULL, NULL, 1, 12, INFINITY, 0), -EINVAL);
}

static void a_row_is_quantised_by_its_largest(void **state)
{
    enum { T = 9, N = 4104 };
    uint16_t *x = random_bf16s((size_t)T * N, 5);

    (void)state;
    for (uint32_t i = 0; i < N; i++) {
        x[i] = 0;                                                          /* nothing at all */
        x[N + i] = ll_bf16_from_f32(i == 7 ? 448.0f : 0.01f);              /* subnormal codes */
        x[2 * N + i] = ll_bf16_from_f32(ldexpf(1.0f, (int)(i % 60) - 30)); /* all sizes */
    }
    void *code = dev_new((size_t)T * N), *scale = dev_new(T * sizeof(float));
    void *in = dev_copy(x, (size_t)T * N * 2);
    float *value = widened(x, (size_t)T * N);
    for (int is_bounded = 0; is_bounded < 2; is_bounded++) {
        const float bound = is_bounded ? 3.0f : INFINITY;
        launched_ok(ll_cuda_quantize(code, scale, in, T, N, bound, 0), "quantize");
        uint8_t *codes = dev_get(code, (size_t)T * N);
        float *scales = dev_get(scale, T * sizeof(float));
        for (uint32_t t = 0; t < T; t++)
            check_quantized(codes + t * N, scales[t], value + t * N, N, bound, "quantize");
        for (uint32_t i = 0; i < N; i++)
            assert_int_equal(codes[i], 0);
        free(codes);
        free(scales);
    }
    dev_end();
    free(x);
    free(value);
}

/* ---- RoPE and the KV pages --------------------------------------------------------------------*/
struct rope_case {
    uint32_t n_heads, n_kv_heads, head_dim;
    bool is_fp8, has_scales;
};

static size_t page_row(const struct rope_case *c, uint32_t page, uint32_t which, uint32_t head,
                       uint32_t token)
{
    return (((size_t)page * 2 + which) * c->n_kv_heads + head) * LL_PAGE_TOKENS + token;
}

static void check_stored(const unsigned char *kv, size_t at, bool is_fp8, double want, double size)
{
    if (is_fp8)
        check_e4m3(kv[at], want, "an e4m3 page");
    else
        assert_within(fabs((double)ll_f32_from_bf16(((const uint16_t *)kv)[at]) - want),
                      0x1p-8 * fabs(want) + 1e-6 * size, "a bf16 page");
}

/* Query heads as the CPU backend turns them: the same up to a rounding to bf16. */
static void check_rope_against_cpu(const struct rope_case *c, const float *in, const float *out,
                                   const float *angle)
{
    const uint32_t half = c->head_dim / 2;
    float head[128], cosine[64], sine[64];

    for (uint32_t i = 0; i < half; i++) {
        cosine[i] = angle[2 * i];
        sine[i] = angle[2 * i + 1];
    }
    for (uint32_t h = 0; h < c->n_heads; h++) {
        memcpy(head, in + h * c->head_dim, c->head_dim * sizeof(*head));
        ll_cpu_rope_turn(head, cosine, sine, half, true);
        for (uint32_t d = 0; d < c->head_dim; d++) {
            const double size = fabs((double)in[h * c->head_dim + d % half]) +
                                fabs((double)in[h * c->head_dim + half + d % half]);
            assert_within(fabs((double)out[h * c->head_dim + d] - (double)head[d]),
                          0x1p-7 * fabs((double)head[d]) + 1e-6 * size, "q against the CPU's");
        }
    }
}

static void check_rope(struct rope_case c)
{
    enum { T = 21, SLOTS = 3, PER_SEQ = 5, CONTEXT = PER_SEQ * LL_PAGE_TOKENS };
    const uint32_t half = c.head_dim / 2, H = c.n_heads, K = c.n_kv_heads, D = c.head_dim;
    const uint32_t width = (H + 2 * K) * D, n_pages = SLOTS * PER_SEQ + 2;
    const size_t n = (size_t)T * width, element = c.is_fp8 ? 1 : 2;
    const size_t kv_bytes = (size_t)n_pages * 2 * K * LL_PAGE_TOKENS * D * element;
    uint32_t slot[T], pos[T], table[SLOTS * PER_SEQ];
    uint16_t *qkv = random_bf16s(n, 1);
    float scale[2 * 16]; /* [k, v][K] */
    for (uint32_t i = 0; i < 2 * K; i++)
        scale[i] = c.has_scales ? 0.02f + 0.01f * (float)i : 1.0f;
    float *rope = malloc((size_t)CONTEXT * D * sizeof(*rope));

    for (uint32_t p = 0; p < CONTEXT; p++)
        for (uint32_t i = 0; i < half; i++) {
            double angle = p * pow(5e5, -2.0 * i / D);
            rope[(p * half + i) * 2] = (float)cos(angle);
            rope[(p * half + i) * 2 + 1] = (float)sin(angle);
        }
    for (uint32_t i = 0; i < SLOTS * PER_SEQ; i++)
        table[i] = (i * 7 + 3) % (SLOTS * PER_SEQ); /* a permutation; the last pages are free */
    for (uint32_t t = 0; t < T; t++) {
        slot[t] = t % 7 == 6 ? LL_CUDA_NONE : t % SLOTS;
        pos[t] = (t * 53 + 62) % CONTEXT;
    }
    struct ll_cuda_tables tables = {.token_slot = dev_copy(slot, sizeof(slot)),
                                    .token_pos = dev_copy(pos, sizeof(pos)),
                                    .page_table = dev_copy(table, sizeof(table)),
                                    .pages_per_seq = PER_SEQ};
    void *kv_device = dev_new(kv_bytes), *qkv_device = dev_copy(qkv, n * 2);
    const struct ll_cuda_attend_args args = {.tables = &tables,
                                             .qkv = qkv_device,
                                             .kv = kv_device,
                                             .is_kv_fp8 = c.is_fp8,
                                             .kv_scale =
                                                 c.has_scales ? dev_copy(scale, 2 * K * 4) : NULL,
                                             .rope = dev_copy(rope, (size_t)CONTEXT * D * 4),
                                             .n_heads = H,
                                             .n_kv_heads = K,
                                             .head_dim = D,
                                             .n_tokens = T};
    launched_ok(ll_cuda_rope_append(&args, 0), "rope_append");

    float *after = get_bf16s(qkv_device, n), *before = widened(qkv, n);
    unsigned char *kv = dev_get(kv_device, kv_bytes);
    bool *is_written = calloc(kv_bytes, 1);
    for (uint32_t t = 0; t < T; t++) {
        const float *in = before + (size_t)t * width, *out = after + (size_t)t * width;
        const float *angle = rope + (size_t)pos[t] * D;
        if (slot[t] == LL_CUDA_NONE) {
            assert_memory_equal(in, out, width * sizeof(float));
            continue;
        }
        const uint32_t page = table[slot[t] * PER_SEQ + pos[t] / LL_PAGE_TOKENS];
        for (uint32_t head = 0; head < H + K; head++)
            for (uint32_t i = 0; i < half; i++) {
                const float *x = in + head * D;
                double a = (double)x[i], b = (double)x[half + i];
                double cosine = (double)angle[2 * i], sine = (double)angle[2 * i + 1];
                double want[2] = {a * cosine - b * sine, b * cosine + a * sine};
                for (uint32_t j = 0; j < 2; j++) {
                    const uint32_t d = i + j * half;
                    const double size = fabs(a) + fabs(b);
                    if (head < H) {
                        assert_within(fabs((double)out[head * D + d] - want[j]),
                                      0x1p-8 * fabs(want[j]) + 1e-6 * size, "q");
                        continue;
                    }
                    size_t row = page_row(&c, page, 0, head - H, pos[t] % LL_PAGE_TOKENS);
                    check_stored(kv, row * D + d, c.is_fp8, want[j] / (double)scale[head - H],
                                 size);
                    memset(is_written + (row * D + d) * element, 1, element);
                }
            }
        for (uint32_t head = 0; head < K; head++)
            for (uint32_t d = 0; d < D; d++) {
                size_t row = page_row(&c, page, 1, head, pos[t] % LL_PAGE_TOKENS);
                check_stored(kv, row * D + d, c.is_fp8,
                             (double)in[(H + K + head) * D + d] / (double)scale[K + head], 0);
                memset(is_written + (row * D + d) * element, 1, element);
            }
        check_rope_against_cpu(&c, in, out, angle);
        /* K and V of the step's own rows stay as they were. */
        assert_memory_equal(in + H * D, out + H * D, 2 * K * D * sizeof(float));
    }
    for (size_t i = 0; i < kv_bytes; i++)
        if (!is_written[i] && kv[i] != 0xff)
            fail_msg("byte %zu of the pages was written", i);
    dev_end();
    free(qkv);
    free(rope);
    free(after);
    free(before);
    free(kv);
    free(is_written);
}

static void rope_turns_q_and_k_and_puts_k_and_v_into_their_pages(void **state)
{
    (void)state;
    for (int fp8 = 0; fp8 < 2; fp8++) {
        check_rope((struct rope_case){4, 4, 64, fp8, false});
        check_rope((struct rope_case){6, 2, 128, fp8, fp8});
        check_rope((struct rope_case){32, 8, 64, fp8, fp8});
        check_rope((struct rope_case){16, 1, 128, fp8, false});
    }
}

/* ---- weights ----------------------------------------------------------------------------------*/
static void widening_and_narrowing_round_to_nearest_even(void **state)
{
    enum { N = 70001 };
    float *wide = malloc(N * sizeof(*wide));
    uint16_t *half = malloc(N * sizeof(*half));

    (void)state;
    for (uint32_t i = 0; i < N; i++) {
        half[i] = (uint16_t)i;                                       /* every f16 there is */
        wide[i] = i % 3 == 0 ? ll_f32_from_bits((i << 16) | 0x8000u) /* ties */
                             : 1e3f * random_skewed(i);
        if (isnan(wide[i]))
            wide[i] = 1;
    }
    void *from_f32 = dev_new(N * 2), *from_f16 = dev_new(N * 2);
    launched_ok(ll_cuda_convert_bf16(from_f32, dev_copy(wide, N * 4), LL_DTYPE_F32, N, 0), "f32");
    launched_ok(ll_cuda_convert_bf16(from_f16, dev_copy(half, N * 2), LL_DTYPE_F16, N, 0), "f16");
    uint16_t *a = dev_get(from_f32, N * 2), *b = dev_get(from_f16, N * 2);
    for (uint32_t i = 0; i < N; i++) {
        float x = ll_f32_from_f16(half[i]);
        assert_int_equal(a[i], ll_bf16_from_f32(wide[i]));
        if (isnan(x))
            assert_true(isnan(ll_f32_from_bf16(b[i])));
        else
            assert_int_equal(b[i], ll_bf16_from_f32(x));
    }
    assert_int_equal(ll_cuda_convert_bf16(NULL, NULL, LL_DTYPE_E4M3, 1, 0), -EINVAL);
    dev_end();
    free(wide);
    free(half);
    free(a);
    free(b);
}

static void random_weights_are_never_zero_spread_evenly_and_follow_the_seed(void **state)
{
    enum { N = 1000003 };
    void *a = dev_new(N * 2), *b = dev_new(N * 2), *c = dev_new(N), *other = dev_new(N * 2);

    (void)state;
    launched_ok(ll_cuda_random_bf16(a, N, 0.25f, 11, 0), "random");
    launched_ok(ll_cuda_random_bf16(b, N, 0.25f, 11, 0), "random");
    launched_ok(ll_cuda_random_bf16(other, N, 0.25f, 12, 0), "random");
    launched_ok(ll_cuda_random_e4m3(c, N, 11, 0), "random e4m3");
    float *x = get_bf16s(a, N), *y = get_bf16s(b, N), *z = get_bf16s(other, N);
    uint8_t *code = dev_get(c, N);
    double mean = 0, square = 0, product = 0, mean8 = 0;
    uint32_t n_zero8 = 0;
    for (uint32_t i = 0; i < N; i++) {
        assert_true(x[i] == y[i] && x[i] != 0 && fabsf(x[i]) <= 0.25f);
        mean += (double)x[i] / N;
        square += (double)x[i] * (double)x[i] / N;
        product += (double)x[i] * (double)z[i] / N;
        assert_true((code[i] & 0x7f) <= 0x7e);
        n_zero8 += (code[i] & 0x7f) == 0;
        mean8 += (double)e4m3_value(code[i]) / N;
    }
    /* Uniform: variance a third of the square of the spread; a million draws. */
    assert_within(fabs(mean), 1e-3, "mean");
    assert_within(fabs(square - 0.0625 / 3), 2e-4, "variance");
    assert_within(fabs(product), 1e-4, "another seed's");
    assert_within(fabs(mean8), 1, "mean of e4m3");
    assert_true(n_zero8 < N / 10000);
    dev_end();
    free(x);
    free(y);
    free(z);
    free(code);
}

static void filling_fills(void **state)
{
    enum { N = 1025 };
    float *out = dev_new(N * sizeof(float));

    (void)state;
    launched_ok(ll_cuda_fill_f32(out, 0.75f, N, 0), "fill");
    float *x = dev_get(out, N * sizeof(float));
    for (uint32_t i = 0; i < N; i++)
        assert_true(x[i] == 0.75f);
    dev_end();
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_embedding_row_is_copied_and_padding_is_zero),
        cmocka_unit_test(rmsnorm_adds_norms_and_quantises),
        cmocka_unit_test(swiglu_gates_and_quantises),
        cmocka_unit_test(a_row_is_quantised_by_its_largest),
        cmocka_unit_test(rope_turns_q_and_k_and_puts_k_and_v_into_their_pages),
        cmocka_unit_test(widening_and_narrowing_round_to_nearest_even),
        cmocka_unit_test(random_weights_are_never_zero_spread_evenly_and_follow_the_seed),
        cmocka_unit_test(filling_fills),
    };
    int rc = cuda_tests_begin();

    cpu = ll_cpu_inner_find(NULL);
    return rc != 0 ? rc : cmocka_run_group_tests_name("kernels/cuda ops", tests, NULL, NULL);
}
