/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/inner_body.h - the inner loops, written once; compiled three times by inner.c,
 * inner_avx2.c and inner_avx512.c, each of which names its table LL_INNER_TABLE first.
 *
 * The tiles: R rows x M tokens are summed at once, each in accumulators of its own, so that
 * enough independent multiply-adds are in flight (latency 4, two a cycle: 8 at least) and each
 * loaded vector is used M or R times. Registers bound the tile: 3 x 4 accumulators of the 16
 * registers of AVX2 (one half of the lanes at a time), 4 x 6 of the 32 of AVX-512. */
#include "kernels/cpu/inner.h"
#include "kernels/cpu/simd.h"

#ifdef __clang__
#define LL_UNROLL _Pragma("unroll")
#else
#define LL_UNROLL _Pragma("GCC unroll 16")
#endif
#define LL_TILE static inline __attribute__((always_inline))

#if LL_LANES == 16 && defined(__AVX512F__)
enum { TILE_ROWS = 4, TILE_TOKENS = 6, LONE_ROWS = 8, MIX_QUERIES = 8 };
#elif defined(__AVX2__)
enum { TILE_ROWS = 3, TILE_TOKENS = 4, LONE_ROWS = 4, MIX_QUERIES = 4 };
#else
enum { TILE_ROWS = 1, TILE_TOKENS = 1, LONE_ROWS = 1, MIX_QUERIES = 1 };
#endif

LL_TILE vf load_form(const void *base, size_t at, enum ll_cpu_form form)
{
    return form == LL_FORM_BF16 ? vf_load_bf16((const uint16_t *)base + at)
                                : vf_load((const float *)base + at);
}

/* R rows x M tokens over one block of K. In one pass with all 16 lanes at once, or in LL_PARTS
 * passes with fewer accumulators each: the same sums either way. */
LL_TILE void dots_tile(float *out, size_t ld_out, const void *w, enum ll_cpu_form form, size_t ld_w,
                       const float *x, size_t ld_x, uint32_t k16, bool is_first, const int R,
                       const int M, const bool is_one_pass)
{
    vf sum[TILE_ROWS * TILE_TOKENS + LONE_ROWS][LL_PARTS];
    const int n_at_once = is_one_pass ? LL_PARTS : 1;

    LL_UNROLL
    for (int pass = 0; pass < LL_PARTS; pass += n_at_once) {
        LL_UNROLL
        for (int i = 0; i < R * M; i++) {
            LL_UNROLL
            for (int p = 0; p < n_at_once; p++)
                sum[i][pass + p] = vf_set1(0.0f);
        }
        for (uint32_t k = 0; k < k16; k += 16) {
            LL_UNROLL
            for (int p = pass; p < pass + n_at_once; p++) {
                vf row[TILE_ROWS + LONE_ROWS];
                LL_UNROLL
                for (int r = 0; r < R; r++)
                    row[r] = load_form(w, (size_t)r * ld_w + k + (size_t)p * LL_LANES, form);
                LL_UNROLL
                for (int m = 0; m < M; m++) {
                    vf token = vf_load(x + (size_t)m * ld_x + k + p * LL_LANES);
                    LL_UNROLL
                    for (int r = 0; r < R; r++)
                        sum[r * M + m][p] = vf_fma(row[r], token, sum[r * M + m][p]);
                }
            }
        }
    }
    LL_UNROLL
    for (int r = 0; r < R; r++) {
        LL_UNROLL
        for (int m = 0; m < M; m++) {
            float *to = out + (size_t)m * ld_out + r;
            float s = vf_sum16(sum[r * M + m]);
            *to = is_first ? s : *to + s;
        }
    }
}

struct block { /* one block of K of a dots call */
    float *out;
    size_t ld_out, ld_w, ld_x;
    const char *w;
    const float *x;
    uint32_t k16;
    bool is_first;
};

/* n_rows rows and M tokens, M fixed at compile time. */
LL_TILE void dots_rows(const struct block *b, uint32_t row, uint32_t n_rows, uint32_t token,
                       enum ll_cpu_form form, const int M)
{
    const int R = M == 1 ? LONE_ROWS : TILE_ROWS;
    const size_t row_bytes = b->ld_w * ll_cpu_form_bytes(form);
    const float *x = b->x + token * b->ld_x;
    float *out = b->out + token * b->ld_out;
    uint32_t end = row + n_rows;

    for (; row + (uint32_t)R <= end; row += (uint32_t)R)
        dots_tile(out + row, b->ld_out, b->w + row * row_bytes, form, b->ld_w, x, b->ld_x, b->k16,
                  b->is_first, R, M, M == 1);
    for (; row < end; row++)
        dots_tile(out + row, b->ld_out, b->w + row * row_bytes, form, b->ld_w, x, b->ld_x, b->k16,
                  b->is_first, 1, M, M == 1);
}

LL_TILE void dots_part(const struct block *b, uint32_t row, uint32_t n_rows, uint32_t token,
                       uint32_t n_tokens, enum ll_cpu_form form)
{
    switch (n_tokens) {
    case 1:
        dots_rows(b, row, n_rows, token, form, 1);
        break;
#if defined(__AVX2__)
    case 2:
        dots_rows(b, row, n_rows, token, form, 2);
        break;
    case 3:
        dots_rows(b, row, n_rows, token, form, 3);
        break;
    case 4:
        dots_rows(b, row, n_rows, token, form, 4);
        break;
#endif
#if defined(__AVX512F__)
    case 5:
        dots_rows(b, row, n_rows, token, form, 5);
        break;
    case 6:
        dots_rows(b, row, n_rows, token, form, 6);
        break;
#endif
    default:
        break;
    }
}

/* Tokens in groups as even as can be: 5 are 3 and 2, not 4 and 1. */
LL_TILE void dots_tokens(const struct block *b, uint32_t row, uint32_t n_rows, uint32_t n_tokens,
                         enum ll_cpu_form form)
{
    uint32_t n_groups = (n_tokens + TILE_TOKENS - 1) / TILE_TOKENS;

    for (uint32_t g = 0, token = 0; g < n_groups; g++) {
        uint32_t n = (n_tokens - token + (n_groups - g) - 1) / (n_groups - g);
        dots_part(b, row, n_rows, token, n, form);
        token += n;
    }
}

LL_TILE void dots_form(struct block *b, uint32_t n_rows, uint32_t n_tokens, enum ll_cpu_form form)
{
    if (n_tokens > 1 &&
        n_tokens <= LL_CPU_FEW_TOKENS) { /* a few rows in L1, every token past them */
        for (uint32_t row = 0; row < n_rows; row += TILE_ROWS) {
            uint32_t n = n_rows - row < TILE_ROWS ? n_rows - row : TILE_ROWS;
            dots_tokens(b, row, n, n_tokens, form);
        }
    } else {
        dots_tokens(b, 0, n_rows, n_tokens, form);
    }
}

static void dots(float *out, size_t ld_out, const void *w, enum ll_cpu_form form, size_t ld_w,
                 const float *x, size_t ld_x, uint32_t n_rows, uint32_t n_tokens, uint32_t k16)
{
    for (uint32_t k = 0; k < k16; k += LL_CPU_K_BLOCK) {
        struct block b = {
            .out = out,
            .ld_out = ld_out,
            .ld_w = ld_w,
            .ld_x = ld_x,
            .w = (const char *)w + k * ll_cpu_form_bytes(form),
            .x = x + k,
            .k16 = k16 - k < LL_CPU_K_BLOCK ? k16 - k : LL_CPU_K_BLOCK,
            .is_first = k == 0,
        };
        if (form == LL_FORM_BF16)
            dots_form(&b, n_rows, n_tokens, LL_FORM_BF16);
        else
            dots_form(&b, n_rows, n_tokens, LL_FORM_F32);
    }
}

static float max_of(const float *x, uint32_t n16)
{
    vf top[LL_PARTS];
    float lane[16], best = -INFINITY;

    for (int p = 0; p < LL_PARTS; p++)
        top[p] = vf_set1(-INFINITY);
    for (uint32_t i = 0; i < n16; i += 16)
        for (int p = 0; p < LL_PARTS; p++)
            top[p] = vf_max(vf_load(x + i + p * LL_LANES), top[p]);
    for (int p = 0; p < LL_PARTS; p++)
        vf_store(lane + p * LL_LANES, top[p]);
    for (int l = 0; l < 16; l++)
        best = lane[l] > best ? lane[l] : best;
    return best;
}

static float softmax(float *p, uint32_t n_keys, float scale, float *top, float *sum)
{
    vf total[LL_PARTS];
    float factor[16] = {0};

    for (uint32_t j = 0; j < n_keys; j++)
        p[j] *= scale;
    for (uint32_t j = n_keys; j < LL_CPU_KEYS; j++)
        p[j] = -INFINITY;
    float block_top = max_of(p, LL_CPU_KEYS);
    float new_top = block_top > *top ? block_top : *top;

    for (int l = 0; l < 16; l++)
        factor[l] = *top - new_top;
    for (int i = 0; i < LL_PARTS; i++) {
        total[i] = vf_set1(0.0f);
        vf_store(factor + i * LL_LANES, vf_exp(vf_load(factor + i * LL_LANES)));
    }
    for (uint32_t j = 0; j < LL_CPU_KEYS; j += 16) {
        for (int i = 0; i < LL_PARTS; i++) {
            float *at = p + j + i * LL_LANES;
            vf e = vf_exp(vf_sub(vf_load(at), vf_set1(new_top)));
            vf_store(at, e);
            total[i] = vf_add(total[i], e);
        }
    }
    *sum = *sum * factor[0] + vf_sum16(total);
    *top = new_top;
    return factor[0];
}

/* Q queries, the 16 values from d on. */
LL_TILE void mix_tile(float *o, size_t ld_o, const float *factor, const float *p, const void *v,
                      enum ll_cpu_form form, size_t ld_v, uint32_t n_keys, const int Q)
{
    vf sum[MIX_QUERIES][LL_PARTS];

    LL_UNROLL
    for (int q = 0; q < Q; q++) {
        LL_UNROLL
        for (int i = 0; i < LL_PARTS; i++)
            sum[q][i] = vf_mul(vf_load(o + (size_t)q * ld_o + i * LL_LANES), vf_set1(factor[q]));
    }
    for (uint32_t j = 0; j < n_keys; j++) {
        vf value[LL_PARTS];
        LL_UNROLL
        for (int i = 0; i < LL_PARTS; i++)
            value[i] = load_form(v, j * ld_v + (size_t)i * LL_LANES, form);
        LL_UNROLL
        for (int q = 0; q < Q; q++) {
            vf weight = vf_set1(p[(size_t)q * LL_CPU_KEYS + j]);
            LL_UNROLL
            for (int i = 0; i < LL_PARTS; i++)
                sum[q][i] = vf_fma(weight, value[i], sum[q][i]);
        }
    }
    LL_UNROLL
    for (int q = 0; q < Q; q++) {
        LL_UNROLL
        for (int i = 0; i < LL_PARTS; i++)
            vf_store(o + (size_t)q * ld_o + i * LL_LANES, sum[q][i]);
    }
}

LL_TILE void mix_form(float *o, size_t ld_o, const float *factor, const float *p, const char *v,
                      enum ll_cpu_form form, size_t ld_v, uint32_t n_queries, uint32_t n_keys,
                      uint32_t d16)
{
    for (uint32_t d = 0; d < d16; d += 16) {
        const char *at = v + d * ll_cpu_form_bytes(form);
        uint32_t q = 0;
        for (; q + MIX_QUERIES <= n_queries; q += MIX_QUERIES)
            mix_tile(o + q * ld_o + d, ld_o, factor + q, p + q * LL_CPU_KEYS, at, form, ld_v,
                     n_keys, MIX_QUERIES);
#if defined(__AVX2__)
        for (; q + 2 <= n_queries; q += 2)
            mix_tile(o + q * ld_o + d, ld_o, factor + q, p + q * LL_CPU_KEYS, at, form, ld_v,
                     n_keys, 2);
#endif
        for (; q < n_queries; q++)
            mix_tile(o + q * ld_o + d, ld_o, factor + q, p + q * LL_CPU_KEYS, at, form, ld_v,
                     n_keys, 1);
    }
}

static void mix(float *o, size_t ld_o, const float *factor, const float *p, const void *v,
                enum ll_cpu_form form, size_t ld_v, uint32_t n_queries, uint32_t n_keys,
                uint32_t d16)
{
    if (form == LL_FORM_BF16)
        mix_form(o, ld_o, factor, p, v, LL_FORM_BF16, ld_v, n_queries, n_keys, d16);
    else
        mix_form(o, ld_o, factor, p, v, LL_FORM_F32, ld_v, n_queries, n_keys, d16);
}

LL_TILE vf round_if(vf x, bool is_bf16)
{
    return is_bf16 ? vf_round_bf16(x) : x;
}

static void rmsnorm(float *out, const float *x, const float *weight, uint32_t n, uint32_t n16,
                    float eps, bool is_bf16)
{
    vf sum[LL_PARTS];

    for (int p = 0; p < LL_PARTS; p++)
        sum[p] = vf_set1(0.0f);
    for (uint32_t i = 0; i < n16; i += 16) {
        for (int p = 0; p < LL_PARTS; p++) {
            vf a = vf_load(x + i + p * LL_LANES);
            sum[p] = vf_fma(a, a, sum[p]);
        }
    }
    const vf scale = vf_set1(1.0f / sqrtf(vf_sum16(sum) / (float)n + eps));
    for (uint32_t i = 0; i < n16; i += LL_LANES) {
        vf y = round_if(vf_mul(vf_load(x + i), scale), is_bf16);
        vf_store(out + i, round_if(vf_mul(y, vf_load(weight + i)), is_bf16));
    }
}

static void swiglu(float *out, const float *gate, const float *up, uint32_t n16, bool is_bf16)
{
    const vf one = vf_set1(1.0f), zero = vf_set1(0.0f);

    for (uint32_t i = 0; i < n16; i += LL_LANES) {
        vf g = round_if(vf_load(gate + i), is_bf16), u = round_if(vf_load(up + i), is_bf16);
        vf silu = vf_div(g, vf_add(one, vf_exp(vf_sub(zero, g))));
        vf_store(out + i, round_if(vf_mul(silu, u), is_bf16));
    }
}

static void add(float *x, const float *y, uint32_t n16, bool is_bf16)
{
    for (uint32_t i = 0; i < n16; i += LL_LANES) {
        vf sum = vf_add(vf_load(x + i), round_if(vf_load(y + i), is_bf16));
        vf_store(x + i, round_if(sum, is_bf16));
    }
}

static void store(float *out, const float *x, uint32_t n16, bool is_bf16)
{
    for (uint32_t i = 0; i < n16; i += LL_LANES)
        vf_store(out + i, round_if(vf_load(x + i), is_bf16));
}

/* Sums of 1024 in fp32 lanes, those in double: enough for 10^5 terms, and no wider vectors. */
static double exp_sum(float *out, const float *x, float top, float divisor, uint32_t n16)
{
    const vf low = vf_set1(top), by = vf_set1(divisor);
    double total = 0;

    for (uint32_t i = 0; i < n16; i += 1024) {
        vf sum[LL_PARTS];
        for (int p = 0; p < LL_PARTS; p++)
            sum[p] = vf_set1(0.0f);
        for (uint32_t j = i; j < n16 && j < i + 1024; j += 16) {
            for (int p = 0; p < LL_PARTS; p++) {
                vf e = vf_exp(vf_div(vf_sub(vf_load(x + j + p * LL_LANES), low), by));
                if (out != NULL)
                    vf_store(out + j + p * LL_LANES, e);
                sum[p] = vf_add(sum[p], e);
            }
        }
        total += (double)vf_sum16(sum);
    }
    return total;
}

const struct ll_cpu_inner LL_INNER_TABLE = {
    .name = LL_INNER_NAME,
    .dots = dots,
    .softmax = softmax,
    .mix = mix,
    .rmsnorm = rmsnorm,
    .swiglu = swiglu,
    .add = add,
    .store = store,
    .max = max_of,
    .exp_sum = exp_sum,
};
