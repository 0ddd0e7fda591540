/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cpu_ops.c - each operation of the CPU backend against double precision over
 * awkward shapes, and each instruction set against the portable code bit by bit. */
#include "kernels/cpu/attend.h"
#include "kernels/cpu/embed.h"
#include "kernels/cpu/inner.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/rope.h"
#include "base/bits.h"
#include "tests/kernels/random.h"

#define F32_TOLERANCE 1e-5 /* relative, of the whole vector: fp32 operations */

static const struct ll_cpu_inner *inners[3]; /* [0] is the portable one */
static int n_inners;

static void *random_form(size_t n, enum ll_cpu_form form)
{
    void *data = aligned_alloc(64, (n * ll_cpu_form_bytes(form) + 127) & ~(size_t)63);

    for (size_t i = 0; i < n; i++) {
        float x = random_skewed(i);
        if (form == LL_FORM_F32)
            ((float *)data)[i] = x;
        else if (form == LL_FORM_BF16)
            ((uint16_t *)data)[i] = ll_bf16_from_f32(x);
        else
            ((uint8_t *)data)[i] = ll_e4m3_from_f32(x * 4);
    }
    return data;
}

static double number_of(const void *data, size_t i, enum ll_cpu_form form)
{
    if (form == LL_FORM_E4M3)
        return (double)ll_f32_from_e4m3(((const uint8_t *)data)[i]);
    return form == LL_FORM_F32 ? (double)((const float *)data)[i]
                               : (double)ll_f32_from_bf16(((const uint16_t *)data)[i]);
}

/* ---- products -----------------------------------------------------------------------------------
 */
/* n_scales: 0, 1, or more: one each 128 columns. */
static void check_dots(uint32_t n_rows, uint32_t n_tokens, uint32_t k16, enum ll_cpu_form form,
                       uint32_t n_scales)
{
    const size_t n_out = (size_t)n_rows * n_tokens, ld_w = k16 + 32, ld_x = k16 + 16;
    n_scales = n_scales > 1 ? (uint32_t)ll_div_ceil(k16, LL_CPU_SCALE_COLS) : n_scales;
    void *data = random_form(n_rows * ld_w, form);
    float *x = random_form(n_tokens * ld_x, LL_FORM_F32), *out[3];
    float *scale = n_scales > 0 ? random_form((size_t)n_rows * n_scales, LL_FORM_F32) : NULL;
    double *want = malloc(n_out * sizeof(*want));
    double worst_sum = 0;

    for (uint32_t m = 0; m < n_tokens; m++) {
        for (uint32_t r = 0; r < n_rows; r++) {
            double sum = 0, sizes = 0;
            for (uint32_t k = 0; k < k16; k++) {
                double y = number_of(data, r * ld_w + k, form) * (double)x[m * ld_x + k];
                if (scale != NULL)
                    y *= (double)scale[r * n_scales + (n_scales > 1 ? k / LL_CPU_SCALE_COLS : 0)] /
                         (double)LL_CPU_E4M3_UNIT;
                sum += y;
                sizes += fabs(y);
            }
            want[m * n_rows + r] = sum;
            worst_sum = sizes > worst_sum ? sizes : worst_sum;
        }
    }
    struct ll_cpu_rows w = {data, form, ld_w, scale, n_scales};
    for (int i = 0; i < n_inners; i++) {
        out[i] = poisoned(n_out);
        inners[i]->dots(out[i], n_rows, &w, x, ld_x, n_rows, n_tokens, k16);
        check_guard(out[i], n_out);
        if (n_out >= 16) /* fewer sums may all have cancelled to almost nothing */
            assert_within(distance(out[i], want, n_out), F32_TOLERANCE, inners[i]->name);
        for (size_t j = 0; j < n_out; j++) /* no single one is far off either */
            assert_within(fabs((double)out[i][j] - want[j]), 1e-6 * worst_sum, inners[i]->name);
        assert_same_bits(out[i], out[0], n_out, inners[i]->name);
    }
    /* Any one row and token alone gives the same bits. */
    for (int i = 0; i < n_inners; i++) {
        uint32_t r = (uint32_t)ll_splitmix64(&random_state) % n_rows;
        uint32_t m = (uint32_t)ll_splitmix64(&random_state) % n_tokens;
        float *one = poisoned(1);
        w.data = (char *)data + r * ld_w * ll_cpu_form_bytes(form);
        w.scale = scale != NULL ? scale + (size_t)r * n_scales : NULL;
        inners[i]->dots(one, 1, &w, x + m * ld_x, ld_x, 1, 1, k16);
        check_guard(one, 1);
        assert_same_bits(one, out[0] + (size_t)m * n_rows + r, 1, "alone");
        free(one);
    }
    for (int i = 0; i < n_inners; i++)
        free(out[i]);
    free(data);
    free(x);
    free(scale);
    free(want);
}

static void a_product_is_within_fp32_of_double_and_the_same_in_every_table(void **state)
{
    static const uint32_t rows[] = {1, 2, 3, 4, 5, 7, 8, 9, 47, 49, 97};
    static const uint32_t lengths[] = {16, 48, 112, 1008, 1024, 1040, 2064};

    (void)state;
    for (size_t r = 0; r < LL_COUNT(rows); r++)
        for (uint32_t m = 1; m <= 14; m++) {
            check_dots(rows[r], m, lengths[(r + m) % LL_COUNT(lengths)], (r + m) / 2 % 2, 0);
            check_dots(rows[r], m, lengths[(r + m + 3) % LL_COUNT(lengths)], LL_FORM_E4M3,
                       1 + (r + m) / 2 % 2);
        }
    for (size_t k = 0; k < LL_COUNT(lengths); k++) {
        check_dots(11, 1, lengths[k], LL_FORM_BF16, 0);
        check_dots(11, 3, lengths[k], LL_FORM_F32, 0);
        check_dots(7, 48, lengths[k], LL_FORM_BF16, 0);
        check_dots(11, 1, lengths[k], LL_FORM_E4M3, 1);
        check_dots(13, 48, lengths[k], LL_FORM_E4M3, 2);
    }
}

/* Each of the 254 numbers, also the subnormal ones, is the one the format means. */
static void every_e4m3_weight_is_read_as_what_it_is(void **state)
{
    (void)state;
    for (int i = 0; i < n_inners; i++)
        for (int code = 0; code < 256; code++) {
            uint8_t row[16] = {0};
            float x[16] = {0}, out, scale = LL_CPU_E4M3_UNIT;
            if ((code & 0x7f) == 0x7f)
                continue;
            row[code % 16] = (uint8_t)code;
            x[code % 16] = 1;
            inners[i]->dots(&out, 1, &(struct ll_cpu_rows){row, LL_FORM_E4M3, 16, &scale, 1}, x, 16,
                            1, 1, 16);
            assert_true(out == ll_f32_from_e4m3((uint8_t)code));
        }
}

/* A whole matrix through the items of every cut, columns that are no multiple of 16. */
static void a_cut_matrix_gives_what_the_whole_one_does(void **state)
{
    static const uint32_t shapes[][3] = {/* rows, columns, tokens */
                                         {1, 1, 1},      {1, 17, 2},    {48, 31, 1},
                                         {49, 64, 47},   {97, 100, 48}, {200, 33, 49},
                                         {131, 257, 97}, {2311, 16, 1}};

    (void)state;
    for (size_t s = 0; s < LL_COUNT(shapes); s++) {
        const uint32_t n_rows = shapes[s][0], n_cols = shapes[s][1], n_tokens = shapes[s][2];
        const uint32_t stride = (uint32_t)ll_align_up(n_cols, 16);
        const size_t ld_y = ll_align_up(n_rows, 16);
        uint16_t *w = calloc((size_t)n_rows * stride, sizeof(*w));
        float *x = calloc((size_t)n_tokens * stride, sizeof(*x));
        for (size_t i = 0; i < (size_t)n_rows * stride; i++)
            w[i] = i % stride < n_cols ? ll_bf16_from_f32(random_skewed(i)) : 0;
        for (size_t i = 0; i < (size_t)n_tokens * stride; i++)
            x[i] = i % stride < n_cols ? random_skewed(i) : 0;
        const struct ll_cpu_matrix m = {w, LL_FORM_BF16, n_rows, n_cols, stride, NULL, 0};
        float *want = poisoned(n_tokens * ld_y), *first = poisoned(n_tokens * ld_y);

        for (uint32_t n_wanted = 1; n_wanted < 20; n_wanted += 9) {
            struct ll_cpu_cut cut = ll_cpu_cut(n_rows, n_tokens, n_wanted);
            for (size_t i = 0; i < n_tokens * ld_y; i++)
                want[i] = NAN;
            for (uint32_t item = 0; item < ll_cpu_cut_items(&cut); item++) {
                struct ll_cpu_block b = ll_cpu_cut_block(&cut, item);
                size_t n16 = ll_align_up(b.n_rows, 16);
                float *y = poisoned(LL_CPU_ITEM_OUT);
                assert_true(n16 * b.n_tokens <= LL_CPU_ITEM_OUT);
                ll_cpu_matmul(inners[n_inners - 1], y, &m, x, stride, &b);
                check_guard(y, LL_CPU_ITEM_OUT);
                for (uint32_t t = 0; t < b.n_tokens; t++)
                    for (uint32_t r = 0; r < n16; r++) {
                        float *to = &want[(b.token + t) * ld_y + b.row + r];
                        assert_true(isnan(*to)); /* each is made once */
                        *to = y[t * n16 + r];
                        if (r >= b.n_rows)
                            assert_true(*to == 0.0f);
                    }
                free(y);
            }
            if (n_wanted == 1)
                memcpy(first, want, n_tokens * ld_y * sizeof(float));
            assert_same_bits(want, first, n_tokens * ld_y, "cut");
        }
        for (uint32_t t = 0; t < n_tokens; t++)
            for (uint32_t r = 0; r < n_rows; r++) {
                double sum = 0, sizes = 0;
                for (uint32_t k = 0; k < n_cols; k++) {
                    double y = (double)ll_f32_from_bf16(w[(size_t)r * stride + k]) *
                               (double)x[(size_t)t * stride + k];
                    sum += y;
                    sizes += fabs(y);
                }
                assert_within(fabs(sum - (double)want[t * ld_y + r]), 1e-6 * sizes + 1e-30,
                              "matrix");
            }
        free(w);
        free(x);
        free(want);
        free(first);
    }
}

/* ---- token-wise
 * ----------------------------------------------------------------------------------- */
static void rmsnorm_and_swiglu_are_within_fp32_of_double(void **state)
{
    static const uint32_t sizes[] = {1, 2, 17, 64, 251, 256, 4096, 5000};

    (void)state;
    for (size_t s = 0; s < LL_COUNT(sizes); s++) {
        const uint32_t n = sizes[s], n16 = (uint32_t)ll_align_up(n, 16);
        float *x = calloc(n16, sizeof(*x)), *w = calloc(n16, sizeof(*w)), *out[3][4];
        double *norm = calloc(n16, sizeof(*norm)), *glu = calloc(n16, sizeof(*glu));
        double mean = 0;
        for (uint32_t i = 0; i < n; i++) {
            x[i] = random_skewed(i);
            w[i] = 2 * random_unit();
            mean += (double)x[i] * (double)x[i] / n;
        }
        for (uint32_t i = 0; i < n; i++) {
            norm[i] = (double)x[i] / sqrt(mean + 1e-5) * (double)w[i];
            glu[i] = (double)x[i] / (1 + exp(-(double)x[i])) * (double)w[i];
        }
        for (int i = 0; i < n_inners; i++) {
            for (int j = 0; j < 4; j++)
                out[i][j] = poisoned(n16);
            for (int is_bf16 = 0; is_bf16 < 2; is_bf16++) {
                inners[i]->rmsnorm(out[i][is_bf16], x, w, n, n16, 1e-5f, is_bf16);
                inners[i]->swiglu(out[i][2 + is_bf16], x, w, n16, is_bf16);
            }
            for (int j = 0; j < 4; j++) {
                check_guard(out[i][j], n16);
                assert_same_bits(out[i][j], out[0][j], n16, inners[i]->name);
                double error = distance(out[i][j], j < 2 ? norm : glu, n);
                /* Roundings of 2^-8: many numbers average them, one may have three at once, and far
                 * below zero the gate's exponential makes more of its own. */
                double bf16_tolerance = n < 64 ? 4e-2 : 8e-3;
                assert_within(error, j % 2 == 0 ? F32_TOLERANCE : bf16_tolerance, inners[i]->name);
            }
            /* With bf16 every number is one. */
            for (uint32_t e = 0; e < n16; e++)
                for (int j = 1; j < 4; j += 2)
                    assert_int_equal(ll_f32_bits(out[i][j][e]) & 0xffff, 0);
        }
        for (int i = 0; i < n_inners; i++)
            for (int j = 0; j < 4; j++)
                free(out[i][j]);
        free(x);
        free(w);
        free(norm);
        free(glu);
    }
}

static void adding_and_storing_round_where_told_and_keep_nan(void **state)
{
    (void)state;
    for (int i = 0; i < n_inners; i++) {
        for (int is_bf16 = 0; is_bf16 < 2; is_bf16++) {
            float x[32], y[32], z[32];
            for (uint32_t e = 0; e < 32; e++) {
                x[e] = z[e] = random_skewed(e);
                y[e] = random_skewed(e + 7);
            }
            y[3] = ll_f32_from_bits(0x7fffffffu); /* rounding may not wrap it into a number */
            y[4] = INFINITY;
            inners[i]->add(x, y, 32, is_bf16);
            for (uint32_t e = 0; e < 32; e++) {
                float sum = is_bf16 ? ll_round_bf16(z[e] + ll_round_bf16(y[e])) : z[e] + y[e];
                assert_true(isnan(sum) ? isnan(x[e]) : x[e] == sum);
            }
            assert_true(isnan(x[3]));
            inners[i]->store(z, y, 32, is_bf16);
            for (uint32_t e = 0; e < 32; e++) {
                float want = is_bf16 ? ll_round_bf16(y[e]) : y[e];
                assert_true(isnan(want) ? isnan(z[e]) : z[e] == want);
            }
        }
    }
}

/* Nearest, ties to even: against the definition, over all neighbours of ties. */
static void bf16_rounding_is_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 200000; i++) {
        uint32_t bits = (uint32_t)ll_splitmix64(&random_state) & 0x7effffffu; /* no overflow */
        bits = i % 3 == 0 ? (bits & 0xffff0000u) | 0x8000u : bits;
        float x = ll_f32_from_bits(bits);
        float low = ll_f32_from_bits(bits & 0xffff0000u);
        float high = ll_f32_from_bits((bits & 0xffff0000u) + 0x10000u);
        double to_low = (double)x - (double)low, to_high = (double)high - (double)x;
        bool is_low_even = (bits & 0x10000u) == 0;
        float want = to_low < to_high || (to_low == to_high && is_low_even) ? low : high;
        assert_int_equal(ll_f32_bits(ll_round_bf16(x)), ll_f32_bits(want));
    }
}

static void half_floats_widen_exactly(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        int exponent = (int)(h >> 10 & 31), sign = (h & 0x8000) != 0 ? -1 : 1;
        double fraction = h & 1023;
        float x = ll_f32_from_f16((uint16_t)h);
        if (exponent == 31)
            assert_true(fraction > 0 ? isnan(x) : x == sign * INFINITY);
        else if (exponent == 0)
            assert_true((double)x == sign * ldexp(fraction, -24));
        else
            assert_true((double)x == sign * ldexp(1024 + fraction, exponent - 25));
    }
}

static void exponentials_are_within_two_ulp_and_zero_far_below(void **state)
{
    (void)state;
    for (int i = 0; i < n_inners; i++) {
        for (int round = 0; round < 200; round++) {
            float x[2048], e[2048];
            for (int j = 0; j < 2048; j++)
                x[j] = -95 * fabsf(random_unit());
            x[0] = 0;
            x[1] = -INFINITY;
            x[2] = -100;
            double sum = inners[i]->exp_sum(e, x, 0, 1, 2048), check = 0;
            for (int j = 0; j < 2048; j++) {
                double y = x[j] < -87.0f ? 0 : exp((double)x[j]);
                assert_within(fabs((double)e[j] - y), y * 0x1p-22, "exp");
                check += y;
            }
            assert_within(fabs(sum - check), 1e-6 * check, "sum of exp");
        }
    }
}

static void a_nan_or_infinity_makes_the_sum_one(void **state)
{
    (void)state;
    for (int i = 0; i < n_inners; i++) {
        for (uint32_t at = 0; at < 64; at++) {
            float x[64] = {0};
            x[at] = NAN;
            assert_true(isnan(inners[i]->exp_sum(NULL, x, inners[i]->max(x, 64), 1, 64)));
            x[at] = INFINITY;
            assert_true(isnan(inners[i]->exp_sum(NULL, x, inners[i]->max(x, 64), 1, 64)));
            x[at] = 7;
            assert_true(inners[i]->max(x, 64) == 7.0f);
        }
    }
}

/* ---- rope ---------------------------------------------------------------------------------------
 */
static void rope_frequencies_are_the_published_ones(void **state)
{
    static const struct {
        uint32_t head_dim, i;
        double factor, want;
    } golden[] = {
        {128, 0, 8, 1},
        {128, 1, 8, 0.814617234},
        {128, 28, 8, 0.00321144599},
        {128, 29, 8, 0.00216657076},
        {128, 35, 8, 9.55621235e-05},
        {128, 63, 8, 3.06892599e-07},
        {64, 14, 32, 0.00321144599},
        {64, 15, 32, 0.00129054793},
        {64, 17, 32, 9.7082878e-05},
        {64, 31, 32, 9.41830673e-08},
    };

    (void)state;
    for (size_t g = 0; g < LL_COUNT(golden); g++) {
        double frequency[64];
        struct ll_model_shape shape = {.head_dim = golden[g].head_dim,
                                       .rope = LL_ROPE_LLAMA3,
                                       .rope_theta = 500000,
                                       .rope_factor = golden[g].factor,
                                       .rope_low_freq = 1,
                                       .rope_high_freq = 4,
                                       .rope_original_context = 8192};
        ll_cpu_rope_frequencies(frequency, &shape);
        assert_within(fabs(frequency[golden[g].i] / golden[g].want - 1), 1e-8, "llama3");
        shape.rope = LL_ROPE_PLAIN;
        ll_cpu_rope_frequencies(frequency, &shape);
        double plain = pow(500000, -2.0 * golden[g].i / golden[g].head_dim);
        assert_within(fabs(frequency[golden[g].i] / plain - 1), 1e-12, "plain");
    }
}

static void rope_turns_pairs_half_a_head_apart(void **state)
{
    enum { HALF = 32 };
    const double frequency[HALF] = {1, 0.5, 0.001};
    float head[2 * HALF], before[2 * HALF], c[HALF], s[HALF];

    (void)state;
    for (uint32_t position = 0; position < 131072; position = position * 3 + 1) {
        for (int i = 0; i < 2 * HALF; i++)
            head[i] = before[i] = random_unit();
        ll_cpu_rope_angles(c, s, frequency, HALF, position);
        ll_cpu_rope_turn(head, c, s, HALF, false);
        for (int i = 0; i < HALF; i++) {
            double a = position * frequency[i], x = (double)before[i], y = (double)before[i + HALF];
            assert_within(fabs((double)head[i] - (x * cos(a) - y * sin(a))), 1e-6, "low");
            assert_within(fabs((double)head[i + HALF] - (y * cos(a) + x * sin(a))), 1e-6, "high");
        }
    }
}

/* ---- attention
 * ----------------------------------------------------------------------------------- */
struct sequence { /* one layer, all KV heads, every position's key, value and query */
    struct ll_cpu_kv kv;
    uint32_t page[8], n_tokens, n_heads;
    float *q, *k, *v; /* [n_tokens][heads * D] */
};

enum { PAGES = 8 };

#define K_SCALE 0.03125f /* of e4m3 pages */
#define V_SCALE 4.0f

static void open_sequence(struct sequence *s, uint32_t n_dim, uint32_t n_kv_heads, uint32_t group,
                          uint32_t n_tokens, enum ll_cpu_form form, bool is_reversed)
{
    const struct ll_model_shape shape = {
        .head_dim = n_dim, .n_kv_heads = n_kv_heads, .n_heads = n_kv_heads * group, .n_layers = 2};

    ll_cpu_kv_init(&s->kv, &shape, form);
    s->kv.n_pages = PAGES;
    s->kv.base = aligned_alloc(4096, (PAGES * s->kv.page_bytes + 4095) & ~(size_t)4095);
    memset(s->kv.base, 0xff, PAGES * s->kv.page_bytes); /* NaN in both forms */
    s->n_tokens = n_tokens;
    s->n_heads = shape.n_heads;
    for (uint32_t i = 0; i < PAGES; i++)
        s->page[i] = is_reversed ? PAGES - 1 - i : i;
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t h = 0; h < n_kv_heads; h++) {
            size_t at = ((size_t)t * n_kv_heads + h) * n_dim;
            uint32_t page = s->page[t / 64];
            ll_cpu_kv_put(&s->kv, ll_cpu_kv_at(&s->kv, page, 1, LL_CPU_KEY, h), t % 64, s->k + at,
                          K_SCALE);
            ll_cpu_kv_put(&s->kv, ll_cpu_kv_at(&s->kv, page, 1, LL_CPU_VALUE, h), t % 64, s->v + at,
                          V_SCALE);
        }
}

/* Tokens [from, from + n) of all heads into out [n][H * D]. */
static void run_sequence(const struct sequence *s, const struct ll_cpu_inner *inner, uint32_t from,
                         uint32_t n, float *out)
{
    const uint32_t group = s->n_heads / s->kv.n_kv_heads, n_dim = s->kv.head_dim;
    const size_t ld = (size_t)s->n_heads * n_dim;
    size_t n_scratch = ll_cpu_attend_scratch(s->kv.d16, group * n);
    float *scratch = poisoned(n_scratch);

    for (uint32_t h = 0; h < s->kv.n_kv_heads; h++) {
        struct ll_cpu_attend a = {.inner = inner,
                                  .kv = &s->kv,
                                  .page = s->page,
                                  .layer = 1,
                                  .kv_head = h,
                                  .group = group,
                                  .n_tokens = n,
                                  .position = from,
                                  .q = s->q + from * ld + (size_t)h * group * n_dim,
                                  .out = out + (size_t)h * group * n_dim,
                                  .ld_q = ld,
                                  .ld_out = ld,
                                  .k_scale = K_SCALE,
                                  .v_scale = V_SCALE,
                                  .scratch = scratch};
        ll_cpu_attend(&a);
        check_guard(scratch, n_scratch);
    }
    free(scratch);
}

static void attend_in_double(const struct sequence *s, uint32_t t, double *out)
{
    const uint32_t group = s->n_heads / s->kv.n_kv_heads, n_dim = s->kv.head_dim;

    for (uint32_t h = 0; h < s->n_heads; h++) {
        const float *q = s->q + ((size_t)t * s->n_heads + h) * n_dim;
        double weight[PAGES * 64], top = -INFINITY, sum = 0;
        for (uint32_t j = 0; j <= t; j++) {
            size_t at = ((size_t)j * s->kv.n_kv_heads + h / group) * n_dim;
            weight[j] = 0;
            for (uint32_t d = 0; d < n_dim; d++)
                weight[j] += (double)q[d] * (double)s->k[at + d] / sqrt(n_dim);
            top = weight[j] > top ? weight[j] : top;
        }
        for (uint32_t d = 0; d < n_dim; d++)
            out[h * n_dim + d] = 0;
        for (uint32_t j = 0; j <= t; j++) {
            size_t at = ((size_t)j * s->kv.n_kv_heads + h / group) * n_dim;
            double w = exp(weight[j] - top);
            sum += w;
            for (uint32_t d = 0; d < n_dim; d++)
                out[h * n_dim + d] += w * (double)s->v[at + d];
        }
        for (uint32_t d = 0; d < n_dim; d++)
            out[h * n_dim + d] /= sum;
    }
}

static void check_attend(uint32_t n_dim, uint32_t n_kv_heads, uint32_t group, enum ll_cpu_form form)
{
    enum { N = 200 };
    const size_t ld = (size_t)n_kv_heads * group * n_dim, ld_kv = (size_t)n_kv_heads * n_dim;
    float *q = malloc(N * ld * sizeof(*q)), *k = malloc(N * ld_kv * sizeof(*k));
    float *v = malloc(N * ld_kv * sizeof(*v)), *whole = poisoned(N * ld), *part = poisoned(N * ld);
    double *want = malloc(ld * sizeof(*want));
    struct sequence s = {.q = q, .k = k, .v = v}, moved = s;

    for (size_t i = 0; i < N * ld; i++)
        q[i] = 2 * random_unit();
    for (size_t i = 0; i < N * ld_kv; i++) {
        k[i] = ll_round_bf16(2 * random_unit()); /* so that the forms hold them exactly */
        v[i] = ll_round_bf16(random_skewed(i));
        if (form == LL_FORM_E4M3) {
            k[i] = ll_f32_from_e4m3(ll_e4m3_from_f32(k[i] / K_SCALE)) * K_SCALE;
            v[i] = ll_f32_from_e4m3(ll_e4m3_from_f32(v[i] / V_SCALE)) * V_SCALE;
        }
    }
    open_sequence(&s, n_dim, n_kv_heads, group, N, form, false);
    open_sequence(&moved, n_dim, n_kv_heads, group, N, form, true);

    run_sequence(&s, inners[n_inners - 1], 0, N, whole);
    check_guard(whole, N * ld);
    static const uint32_t positions[] = {0, 1, 15, 16, 62, 63, 64, 65, 126, 127, 128, 191, 199};
    for (size_t p = 0; p < LL_COUNT(positions); p++) {
        uint32_t t = positions[p];
        attend_in_double(&s, t, want);
        assert_within(distance(whole + t * ld, want, ld), F32_TOLERANCE, "attention");
        for (int i = 0; i < n_inners; i++) { /* alone, in each table, in other pages: same bits */
            run_sequence(&s, inners[i], t, 1, part);
            assert_same_bits(part, whole + t * ld, ld, inners[i]->name);
            run_sequence(&moved, inners[i], t, 1, part);
            assert_same_bits(part, whole + t * ld, ld, "pages moved");
        }
    }
    for (uint32_t from = 0, n = 1; from < N; from += n, n = n * 2 + 1) { /* in chunks: same bits */
        n = n < N - from ? n : N - from;
        run_sequence(&s, inners[n_inners - 1], from, n, part);
        assert_same_bits(part, whole + from * ld, n * ld, "chunk");
    }
    free(s.kv.base);
    free(moved.kv.base);
    free(q);
    free(k);
    free(v);
    free(whole);
    free(part);
    free(want);
}

static void attention_is_within_fp32_of_double_and_depends_on_nothing_else(void **state)
{
    static const uint32_t dims[] = {64, 128, 16, 34}, groups[] = {1, 2, 3, 4, 8};

    (void)state;
    for (size_t g = 0; g < LL_COUNT(groups); g++)
        for (size_t d = 0; d < LL_COUNT(dims); d++)
            check_attend(dims[d], 1 + (g + d) % 2, groups[g], (g + d) % 3);
}

/* What a token may not see must not touch it, not even as a NaN times zero. */
static void later_keys_and_values_do_not_reach_a_token(void **state)
{
    enum { D = 64, N = 100 };
    float q[N * D], k[N * D], v[N * D], clean[N * D], dirty[N * D];
    struct sequence s = {.q = q, .k = k, .v = v};

    (void)state;
    for (int i = 0; i < N * D; i++) {
        q[i] = random_unit();
        k[i] = random_unit();
        v[i] = random_unit();
    }
    open_sequence(&s, D, 1, 1, N, LL_FORM_F32, false);
    run_sequence(&s, inners[n_inners - 1], 0, N, clean);
    for (int i = 80 * D; i < N * D; i++)
        v[i] = k[i] = i % 2 == 0 ? NAN : INFINITY;
    free(s.kv.base);
    open_sequence(&s, D, 1, 1, N, LL_FORM_F32, false);
    run_sequence(&s, inners[n_inners - 1], 0, N, dirty);
    assert_same_bits(dirty, clean, 80 * D, "token before the NaN");
    assert_true(isnan(dirty[80 * D]));
    free(s.kv.base);
}

static void an_embedding_row_is_widened_exactly(void **state)
{
    enum { V = 5, E = 19, STRIDE = 32 };
    uint16_t half[V * STRIDE];
    float full[V * STRIDE], *out = poisoned(E);

    (void)state;
    for (int i = 0; i < V * STRIDE; i++) {
        half[i] = ll_bf16_from_f32(random_unit());
        full[i] = random_unit();
    }
    const struct ll_cpu_matrix a = {half, LL_FORM_BF16, V, E, STRIDE, NULL, 0},
                               b = {full, LL_FORM_F32, V, E, STRIDE, NULL, 0};
    for (uint32_t t = 0; t < V; t++) {
        ll_cpu_embed(out, &a, t);
        for (int i = 0; i < E; i++)
            assert_true(out[i] == ll_f32_from_bf16(half[t * STRIDE + i]));
        ll_cpu_embed(out, &b, t);
        for (int i = 0; i < E; i++)
            assert_true(out[i] == full[t * STRIDE + i]);
        check_guard(out, E);
    }
    free(out);
}

int main(void)
{
    static const char *const names[] = {"portable", "avx2", "avx512"};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_product_is_within_fp32_of_double_and_the_same_in_every_table),
        cmocka_unit_test(every_e4m3_weight_is_read_as_what_it_is),
        cmocka_unit_test(a_cut_matrix_gives_what_the_whole_one_does),
        cmocka_unit_test(rmsnorm_and_swiglu_are_within_fp32_of_double),
        cmocka_unit_test(adding_and_storing_round_where_told_and_keep_nan),
        cmocka_unit_test(bf16_rounding_is_to_nearest_even),
        cmocka_unit_test(half_floats_widen_exactly),
        cmocka_unit_test(exponentials_are_within_two_ulp_and_zero_far_below),
        cmocka_unit_test(a_nan_or_infinity_makes_the_sum_one),
        cmocka_unit_test(rope_frequencies_are_the_published_ones),
        cmocka_unit_test(rope_turns_pairs_half_a_head_apart),
        cmocka_unit_test(attention_is_within_fp32_of_double_and_depends_on_nothing_else),
        cmocka_unit_test(later_keys_and_values_do_not_reach_a_token),
        cmocka_unit_test(an_embedding_row_is_widened_exactly),
    };

    random_state = ll_test_seed();
    for (size_t i = 0; i < LL_COUNT(names); i++) {
        const struct ll_cpu_inner *inner = ll_cpu_inner_find(names[i]);
        if (inner != NULL)
            inners[n_inners++] = inner;
        else
            printf("%s: not on this processor\n", names[i]);
    }
    return cmocka_run_group_tests_name("kernels/cpu operations", tests, NULL, NULL);
}
