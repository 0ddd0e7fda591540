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

enum { R_TIMES_M_MAX = TILE_ROWS * TILE_TOKENS > LONE_ROWS ? TILE_ROWS *TILE_TOKENS : LONE_ROWS };

LL_TILE vf load_form(const void *base, size_t at, enum ll_cpu_form form)
{
    if (form == LL_FORM_E4M3)
        return vf_load_e4m3((const uint8_t *)base + at);
    return form == LL_FORM_BF16 ? vf_load_bf16((const uint16_t *)base + at)
                                : vf_load((const float *)base + at);
}

/* Lanes of part p of the 16 numbers from at on. */
LL_TILE vf load_lanes(const void *base, size_t at, int p, enum ll_cpu_form form)
{
    if (form == LL_FORM_E4M3)
        return vf_load_e4m3((const uint8_t *)base + at + p * LL_LANES);
    return form == LL_FORM_BF16 ? vf_load_half((const uint16_t *)base + at, p)
                                : vf_load((const float *)base + at + p * LL_LANES);
}

LL_TILE void prefetch(const void *base, size_t at, enum ll_cpu_form form)
{
    __builtin_prefetch((const char *)base + at * ll_cpu_form_bytes(form), 0, 3);
}

enum { X_STRIDE = LL_CPU_K_BLOCK + 16 }; /* of packed tokens */

/* Sums of R rows x M tokens over one block of K, still as lanes: part [R][M][LL_PARTS]. All 16
 * lanes in one pass, or in LL_PARTS passes with fewer accumulators each: the same sums. */
LL_TILE void sum_tile(vf *part, const void *w, enum ll_cpu_form form, size_t ld_w, const float *x,
                      uint32_t k16, const int R, const int M)
{
    const int n_at_once = M == 1 ? LL_PARTS : 1;

    LL_UNROLL
    for (int pass = 0; pass < LL_PARTS; pass += n_at_once) {
        vf sum[R_TIMES_M_MAX][LL_PARTS];
        LL_UNROLL
        for (int i = 0; i < R * M; i++) {
            LL_UNROLL
            for (int p = 0; p < n_at_once; p++)
                sum[i][p] = vf_set1(0.0f);
        }
        for (size_t k = 0; k < k16; k += 16) {
            LL_UNROLL
            for (int p = 0; p < n_at_once; p++) {
                vf row[LONE_ROWS];
                LL_UNROLL
                for (int r = 0; r < R; r++) {
                    row[r] = load_lanes(w, (size_t)r * ld_w + k, pass + p, form);
                    /* The same place of the rows that come next: a tile's rows are too many short
                     * streams for the processor to guess. */
                    if (p == 0 && pass == 0)
                        prefetch(w, ((size_t)r + R) * ld_w + k, form);
                }
                LL_UNROLL
                for (int m = 0; m < M; m++) {
                    vf token = vf_load(x + m * X_STRIDE + k + (pass + p) * LL_LANES);
                    LL_UNROLL
                    for (int r = 0; r < R; r++)
                        sum[r * M + m][p] = vf_fma(row[r], token, sum[r * M + m][p]);
                }
            }
        }
        LL_UNROLL
        for (int i = 0; i < R * M; i++) {
            LL_UNROLL
            for (int p = 0; p < n_at_once; p++)
                part[i * LL_PARTS + pass + p] = sum[i][p];
        }
    }
}

/* One function a tile, none inlined into another: each gets the registers to itself. */
typedef void sum_fn(vf *part, const void *w, size_t ld_w, const float *x, uint32_t k16);

#define SUM_FN(NAME, FORM, R, M)                                                                   \
    static __attribute__((noinline)) void NAME(vf *part, const void *w, size_t ld_w,               \
                                               const float *x, uint32_t k16)                       \
    {                                                                                              \
        sum_tile(part, w, FORM, ld_w, x, k16, R, M);                                               \
    }
/* For M tokens: a tile of rows, and a single row for what is left over. */
#define SUM_FNS(M, ROWS)                                                                           \
    SUM_FN(bf16_tile_##M, LL_FORM_BF16, ROWS, M)                                                   \
    SUM_FN(bf16_row_##M, LL_FORM_BF16, 1, M)                                                       \
    SUM_FN(f32_tile_##M, LL_FORM_F32, ROWS, M)                                                     \
    SUM_FN(f32_row_##M, LL_FORM_F32, 1, M)                                                         \
    SUM_FN(e4m3_tile_##M, LL_FORM_E4M3, ROWS, M)                                                   \
    SUM_FN(e4m3_row_##M, LL_FORM_E4M3, 1, M)
#define SUM_ENTRY(M)                                                                               \
    {                                                                                              \
        {bf16_tile_##M, bf16_row_##M}, {f32_tile_##M, f32_row_##M},                                \
        {                                                                                          \
            e4m3_tile_##M, e4m3_row_##M                                                            \
        }                                                                                          \
    }

SUM_FNS(1, LONE_ROWS)
#if defined(__AVX2__)
SUM_FNS(2, TILE_ROWS)
SUM_FNS(3, TILE_ROWS)
SUM_FNS(4, TILE_ROWS)
#endif
#if defined(__AVX512F__)
SUM_FNS(5, TILE_ROWS)
SUM_FNS(6, TILE_ROWS)
#endif

/* [tokens - 1][form][tile or row] */
static sum_fn *const sum_fns[TILE_TOKENS][3][2] = {
    SUM_ENTRY(1),
#if defined(__AVX2__)
    SUM_ENTRY(2), SUM_ENTRY(3), SUM_ENTRY(4),
#endif
#if defined(__AVX512F__)
    SUM_ENTRY(5), SUM_ENTRY(6),
#endif
};

struct block { /* one block of K of a dots call */
    float *out;
    size_t ld_out, ld_w;
    const char *w;
    enum ll_cpu_form form;
    const float *scale; /* of the block, first row; NULL: none */
    size_t ld_scale;
    uint32_t k16;
    bool is_first;
};

static void add_parts(const struct block *b, float *out, const float *scale, uint32_t n_rows,
                      uint32_t n_tokens, const vf *part)
{
    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t m = 0; m < n_tokens; m++, part += LL_PARTS) {
            float *to = out + m * b->ld_out + r;
            float sum = vf_sum16(part, b->form == LL_FORM_BF16);
            if (scale != NULL)
                sum *= scale[r * b->ld_scale];
            *to = b->is_first ? sum : *to + sum;
        }
    }
}

/* Rows from row on x the packed tokens x; out is the first token's. */
static void dots_rows(const struct block *b, float *out, uint32_t row, uint32_t n_rows,
                      const float *x, uint32_t n_tokens)
{
    const uint32_t n_tile = n_tokens == 1 ? LONE_ROWS : TILE_ROWS, end = row + n_rows;
    const size_t row_bytes = b->ld_w * ll_cpu_form_bytes(b->form);
    sum_fn *const *fn = sum_fns[n_tokens - 1][b->form];
    vf part[R_TIMES_M_MAX * LL_PARTS];

    while (row < end) {
        uint32_t n = end - row >= n_tile ? n_tile : 1;
        fn[n == n_tile ? 0 : 1](part, b->w + row * row_bytes, b->ld_w, x, b->k16);
        add_parts(b, out + row, b->scale != NULL ? b->scale + row * b->ld_scale : NULL, n, n_tokens,
                  part);
        row += n;
    }
}

/* Tokens in groups as even as can be: 5 are 3 and 2, not 4 and 1. */
static uint32_t group_size(uint32_t n_tokens)
{
    uint32_t n_groups = (n_tokens + TILE_TOKENS - 1) / TILE_TOKENS;

    return (n_tokens + n_groups - 1) / n_groups;
}

/* A block of K of n tokens, in the order of the weights' lanes and at a stride that is no power
 * of two, so that a tile's tokens do not fight for the same places of the cache. */
static void pack_tokens(float *to, const float *x, size_t ld_x, uint32_t n, uint32_t k16,
                        enum ll_cpu_form form)
{
    for (uint32_t m = 0; m < n; m++)
        for (uint32_t k = 0; k < k16; k += 16)
            vf_pack(to + m * X_STRIDE + k, x + m * ld_x + k, form == LL_FORM_BF16);
}

static void dots_block(const struct block *b, uint32_t n_rows, const float *x, size_t ld_x,
                       uint32_t n_tokens)
{
    _Alignas(64) float packed[LL_CPU_FEW_TOKENS * X_STRIDE];
    uint32_t n_group = group_size(n_tokens);

    if (n_tokens > LL_CPU_FEW_TOKENS) { /* tokens go round the rows, which come from L2 */
        for (uint32_t m = 0; m < n_tokens; m += n_group) {
            uint32_t n = n_tokens - m < n_group ? n_tokens - m : n_group;
            pack_tokens(packed, x + m * ld_x, ld_x, n, b->k16, b->form);
            dots_rows(b, b->out + m * b->ld_out, 0, n_rows, packed, n);
        }
        return;
    }
    /* A tile of rows at a time meets every token: the rows come once, from memory. */
    uint32_t n_at_once = n_tokens <= n_group ? n_rows : TILE_ROWS;
    pack_tokens(packed, x, ld_x, n_tokens, b->k16, b->form);
    for (uint32_t row = 0; row < n_rows; row += n_at_once) {
        uint32_t n_now = n_rows - row < n_at_once ? n_rows - row : n_at_once;
        for (uint32_t m = 0; m < n_tokens; m += n_group) {
            uint32_t n = n_tokens - m < n_group ? n_tokens - m : n_group;
            dots_rows(b, b->out + m * b->ld_out, row, n_now, packed + m * X_STRIDE, n);
        }
    }
}

static void dots(float *out, size_t ld_out, const struct ll_cpu_rows *w, const float *x,
                 size_t ld_x, uint32_t n_rows, uint32_t n_tokens, uint32_t k16)
{
    const bool has_scales = w->scale != NULL && w->n_scales > 1;
    const uint32_t n_block = has_scales ? LL_CPU_SCALE_COLS : LL_CPU_K_BLOCK;

    for (uint32_t k = 0; k < k16; k += n_block) {
        const struct block b = {
            .out = out,
            .ld_out = ld_out,
            .ld_w = w->ld,
            .w = (const char *)w->data + k * ll_cpu_form_bytes(w->form),
            .form = w->form,
            .scale = has_scales ? w->scale + k / LL_CPU_SCALE_COLS : w->scale,
            .ld_scale = w->n_scales,
            .k16 = k16 - k < n_block ? k16 - k : n_block,
            .is_first = k == 0,
        };
        dots_block(&b, n_rows, x + k, ld_x, n_tokens);
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
    *sum = *sum * factor[0] + vf_sum16(total, false);
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
    else if (form == LL_FORM_E4M3)
        mix_form(o, ld_o, factor, p, v, LL_FORM_E4M3, ld_v, n_queries, n_keys, d16);
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
    const vf scale = vf_set1(1.0f / sqrtf(vf_sum16(sum, false) / (float)n + eps));
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
        total += (double)vf_sum16(sum, false);
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
