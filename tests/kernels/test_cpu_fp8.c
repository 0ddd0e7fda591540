/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cpu_fp8.c - FP8 weights on the CPU backend: a small model whose linears are
 * e4m3 with scales of each kind against the same model in the BF16 numbers they stand for. */
#include "base/bits.h"
#include "base/numbers.h"
#include "base/rng.h"
#include "ll/client.h"
#include "tests/kernels/demo.h"

#include <math.h>

enum { N_PROMPT = 70, N_TOP = 20, N_SCORES = N_PROMPT - 1 + N_TOP };
enum kind { PER_TENSOR, PER_ROW, PER_BLOCK, KINDS };

/* Awkward on purpose: 288 = 128 + 128 + 32 columns, K and V of 96 rows are less than a block. */
static struct ll_model_shape shape = {.n_layers = 2,
                                      .n_embd = 288,
                                      .n_heads = 6,
                                      .n_kv_heads = 2,
                                      .head_dim = 48,
                                      .n_ff = 200,
                                      .n_vocab = 333,
                                      .context_max = 128,
                                      .rope = LL_ROPE_PLAIN,
                                      .rms_eps = 1e-5f,
                                      .rope_theta = 1e4};

/* Heads and widths that two and four ranks can have parts of, also where blocks share scales. */
static const struct ll_model_shape wide_shape = {.n_layers = 2,
                                                 .n_embd = 256,
                                                 .n_heads = 4,
                                                 .n_kv_heads = 2,
                                                 .head_dim = 128,
                                                 .n_ff = 512,
                                                 .n_vocab = 333,
                                                 .context_max = 128,
                                                 .rope = LL_ROPE_PLAIN,
                                                 .rms_eps = 1e-5f,
                                                 .rope_theta = 1e4};

static uint32_t n_ranks = 1;
static const struct ll_backend *backend;

static struct ll_device *open_device(enum ll_dtype dtype, uint32_t n_threads, const char *extra,
                                     bool is_dummy)
{
    struct ll_text error = {""};
    struct ll_backend_caps caps;
    struct ll_device *device = NULL;
    struct ll_backend_options options = {.struct_bytes = sizeof(options),
                                         .n_slots = 1,
                                         .n_pages = 2,
                                         .n_tokens_max = 128,
                                         .n_rows_max = 1,
                                         .pages_per_seq = 2,
                                         .n_weights = 1,
                                         .dtype = dtype,
                                         .n_threads = n_threads,
                                         .tensor_parallel = n_ranks,
                                         .numa_node = -1,
                                         .has_dummy_weights = is_dummy,
                                         .seed = 11,
                                         .extra = extra};

    if (backend->open(&device, &options, &shape, &caps, &error) < 0)
        fail_msg("open: %s", error.s);
    return device;
}

/* The log probabilities of a fixed prompt and the top 20 after it. */
static void score(struct ll_device *device, float *out)
{
    uint32_t prompt[N_PROMPT];
    struct ll_pages_set pages = {0, 0, 2, (const uint32_t[]){0, 1}};
    struct ll_slot_init init = {
        .n_prompt = N_PROMPT, .n_hist = N_PROMPT, .hist = prompt, .s = demo_greedy()};
    struct ll_row row = {.n_tokens = N_PROMPT,
                         .token = prompt,
                         .flags = LL_ROW_SAMPLE | LL_ROW_PROMPT_LOGPROBS,
                         .n_top = N_TOP};

    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = i * 37 % shape.n_vocab;
    struct ll_result r = demo_run(device, &(struct ll_batch){.n_inits = 1,
                                                             .n_pages_sets = 1,
                                                             .n_rows = 1,
                                                             .inits = &init,
                                                             .pages = &pages,
                                                             .rows = &row});
    assert_int_equal(r.rows[0].status, LL_ROW_OK);
    assert_int_equal(r.rows[0].n_ext, N_SCORES);
    for (uint32_t i = 0; i < N_SCORES; i++)
        out[i] = r.ext[r.rows[0].ext + i].logprob;
}

/* ---- the model: numbers by place, so that nothing need be kept ----------------------------------
 */
static bool is_linear(int role)
{
    return role != LL_TENSOR_EMBED && role != LL_TENSOR_ATTN_NORM && role != LL_TENSOR_FFN_NORM &&
           role != LL_TENSOR_FINAL_NORM;
}

static struct ll_tensor tensor_of(int role, uint32_t layer, enum ll_dtype dtype)
{
    const uint32_t e = shape.n_embd, q = shape.n_heads * shape.head_dim,
                   kv = shape.n_kv_heads * shape.head_dim, f = shape.n_ff, v = shape.n_vocab;
    const uint32_t size[LL_TENSOR_ROLES][2] = {{v, e}, {1, e}, {q, e}, {kv, e}, {kv, e}, {e, q},
                                               {1, e}, {f, e}, {f, e}, {e, f},  {1, e},  {v, e}};

    return (struct ll_tensor){.role = (enum ll_tensor_role)role,
                              .layer = layer,
                              .dtype = dtype,
                              .rows = size[role][0],
                              .cols = size[role][1],
                              .size_bytes =
                                  (uint64_t)size[role][0] * size[role][1] * ll_dtype_bytes(dtype)};
}

static struct ll_tensor scale_of(int role, uint32_t layer, enum kind kind, enum ll_dtype dtype)
{
    struct ll_tensor t = tensor_of(role, layer, dtype);

    t.part = LL_PART_SCALE;
    t.cols = kind == PER_BLOCK ? (uint32_t)ll_div_ceil(t.cols, 128) : 1;
    t.rows = kind == PER_BLOCK ? (uint32_t)ll_div_ceil(t.rows, 128) : kind == PER_ROW ? t.rows : 1;
    t.size_bytes = (uint64_t)t.rows * t.cols * ll_dtype_bytes(dtype);
    return t;
}

static uint64_t hash_of(const struct ll_tensor *t, uint64_t i)
{
    uint64_t state = i * 31 + (uint64_t)t->role * 7 + (uint64_t)t->layer * 1000003;

    return ll_splitmix64(&state);
}

static uint8_t code_of(const struct ll_tensor *t, uint64_t i)
{
    uint8_t code = (uint8_t)hash_of(t, i);

    return (code & 0x7f) == 0x7f ? 0 : code;
}

/* A power of two: the product with a code is a bf16 number. Different at neighbouring places. */
static float scale_at(const struct ll_tensor *t, uint64_t i)
{
    return ldexpf(1, -12 + (int)(hash_of(t, i + 77) % 5));
}

static float weight_at(const struct ll_tensor *t, enum kind kind, uint64_t i)
{
    const struct ll_tensor s = scale_of(t->role, t->layer, kind, LL_DTYPE_F32);
    uint64_t row = i / t->cols, col = i % t->cols;
    uint64_t at = kind == PER_TENSOR ? 0 : kind == PER_ROW ? row : row / 128 * s.cols + col / 128;

    return ll_f32_from_e4m3(code_of(t, i)) * scale_at(t, at);
}

static void put_16(uint8_t *to, float x, enum ll_dtype dtype)
{
    uint32_t bits = ll_f32_bits(x);
    uint16_t half = ll_bf16_from_f32(x);

    if (dtype == LL_DTYPE_F16) /* normal numbers only here */
        half = (uint16_t)((bits >> 16 & 0x8000u) | (((bits >> 23 & 0xffu) - 112u) << 10) |
                          (bits >> 13 & 0x3ffu));
    memcpy(to, &half, 2);
}

static uint8_t *bytes_of(const struct ll_tensor *t, enum kind kind)
{
    uint8_t *bytes = malloc(t->size_bytes);

    for (uint64_t i = 0; i < (uint64_t)t->rows * t->cols; i++) {
        float x = t->part == LL_PART_SCALE ? scale_at(t, i)
                  : is_linear(t->role)     ? weight_at(t, kind, i)
                  : t->rows == 1           ? 1.0f
                                           : (float)(int)(hash_of(t, i) % 255) / 128 - 1;
        if (t->dtype == LL_DTYPE_E4M3)
            bytes[i] = code_of(t, i);
        else if (t->dtype == LL_DTYPE_F32)
            memcpy(bytes + 4 * i, &x, 4);
        else
            put_16(bytes + 2 * i, x, t->dtype);
    }
    return bytes;
}

static void feed(struct ll_device *device, const struct ll_tensor *t, enum kind kind, bool is_split)
{
    struct ll_text error = {""};
    struct ll_span span[8];
    uint64_t ticket;
    uint8_t *bytes = bytes_of(t, kind);
    int n_spans = backend->want(device, t, span, 8, &error);

    if (n_spans < 1)
        fail_msg("want: %s", error.s);
    for (int k = n_spans; k-- > 0;) { /* backwards, and pieces of odd sizes where they are split */
        const uint64_t size = span[k].size_bytes, piece = is_split ? (size / 5) | 1 : size;
        for (uint64_t i = ll_div_ceil(size, piece); i-- > 0;) {
            uint64_t at = span[k].offset + i * piece;
            if (backend->feed(device, 0, t, span[k].rank, at, bytes + at,
                              ll_min_u64(piece, size - i * piece), &ticket, &error) < 0)
                fail_msg("feed: %s", error.s);
        }
    }
    free(bytes);
}

/* is_fp8: codes and scales of scale_dtype; else the numbers that they stand for. */
static struct ll_device *make(enum ll_dtype compute, enum kind kind, bool is_fp8, bool is_split,
                              enum ll_dtype scale_dtype)
{
    struct ll_device *device = open_device(compute, 1, NULL, false);
    struct ll_text error = {""};

    for (uint32_t layer = 0; layer < shape.n_layers; layer++)
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            bool is_global = role == LL_TENSOR_EMBED || role >= LL_TENSOR_FINAL_NORM;
            struct ll_tensor w =
                tensor_of(role, layer, is_fp8 && is_linear(role) ? LL_DTYPE_E4M3 : LL_DTYPE_BF16);
            struct ll_tensor s = scale_of(role, layer, kind, scale_dtype);
            if (is_global && layer > 0)
                continue;
            if (is_split && w.dtype == LL_DTYPE_E4M3) /* scales first, too */
                feed(device, &s, kind, true);
            feed(device, &w, kind, is_split);
            if (!is_split && w.dtype == LL_DTYPE_E4M3)
                feed(device, &s, kind, false);
        }
    if (backend->seal(device, 0, &error) < 0)
        fail_msg("seal: %s", error.s);
    return device;
}

static void fp8_weights_give_what_the_numbers_they_stand_for_do(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++)
        for (int i = 0; i < 2; i++) {
            enum ll_dtype compute = i == 0 ? LL_DTYPE_F32 : LL_DTYPE_BF16;
            struct ll_device *fp8 = make(compute, kind, true, false, LL_DTYPE_F32);
            struct ll_device *bf16 = make(compute, kind, false, false, LL_DTYPE_F32);
            float a[N_SCORES], b[N_SCORES], worst = 0;
            score(fp8, a);
            score(bf16, b);
            for (int k = 0; k < N_SCORES; k++)
                worst = fmaxf(worst, fabsf(a[k] - b[k]));
            assert_true(worst < (i == 0 ? 1e-3f : 0.5f));
            backend->close(fp8);
            backend->close(bf16);
        }
}

static void order_split_and_type_of_the_scales_change_no_bit(void **state)
{
    static const enum ll_dtype dtypes[] = {LL_DTYPE_F32, LL_DTYPE_BF16, LL_DTYPE_F16};
    float first[N_SCORES], other[N_SCORES];

    (void)state;
    for (int kind = 0; kind < KINDS; kind++)
        for (int i = 0; i < 6; i++) {
            struct ll_device *device = make(LL_DTYPE_F32, kind, true, i % 2, dtypes[i / 2]);
            score(device, i == 0 ? first : other);
            if (i > 0)
                assert_memory_equal(other, first, sizeof(first));
            backend->close(device);
        }
}

static void threads_and_instruction_sets_change_no_bit(void **state)
{
    static const char *const extras[] = {"weights=fp8", "isa=portable,weights=fp8",
                                         "weights=fp8,isa=avx2"};
    float first[N_SCORES], other[N_SCORES];

    (void)state;
    for (uint32_t i = 0; i < LL_COUNT(extras); i++) {
        if (i == 2 && !__builtin_cpu_supports("avx2"))
            continue;
        struct ll_device *device = open_device(LL_DTYPE_BF16, 1 + i % 2, extras[i], true);
        score(device, i == 0 ? first : other);
        if (i > 0)
            assert_memory_equal(other, first, sizeof(first));
        backend->close(device);
    }
    struct ll_device *device = open_device(LL_DTYPE_BF16, 1, NULL, true); /* and FP8 it was */
    score(device, other);
    assert_memory_not_equal(other, first, sizeof(first));
    backend->close(device);
}

/* Every kind of weights and scales, cut for ranks; four of them share the two KV heads. */
static void ranks_give_what_one_does(void **state)
{
    const struct ll_model_shape kept = shape;

    (void)state;
    shape = wide_shape;
    for (int kind = -1; kind < KINDS; kind++) { /* -1: BF16 */
        float one[N_SCORES], many[N_SCORES];
        for (n_ranks = 1; n_ranks <= 4; n_ranks *= 2) {
            float worst = 0;
            for (int is_split = 0; is_split < 2; is_split++) {
                struct ll_device *device = make(LL_DTYPE_F32, kind < 0 ? PER_TENSOR : kind,
                                                kind >= 0, is_split, LL_DTYPE_F32);
                float *out = n_ranks == 1 ? one : many;
                float before[N_SCORES];
                memcpy(before, out, sizeof(before));
                score(device, out);
                if (is_split)
                    assert_memory_equal(before, out, sizeof(before));
                backend->close(device);
            }
            for (int i = 0; i < N_SCORES && n_ranks > 1; i++)
                worst = fmaxf(worst, fabsf(one[i] - many[i]));
            assert_true(worst < 1e-3f);
        }
    }
    n_ranks = 1;
    shape = kept;
}

static void ranks_that_do_not_divide_are_refused(void **state)
{
    const struct ll_model_shape kept = shape;
    struct ll_text error = {""};
    struct ll_span span[8];
    struct ll_backend_caps caps;
    struct ll_device *device = NULL;
    struct ll_backend_options options = {.struct_bytes = sizeof(options),
                                         .n_slots = 1,
                                         .n_pages = 2,
                                         .n_tokens_max = 8,
                                         .n_rows_max = 1,
                                         .pages_per_seq = 2,
                                         .n_weights = 1,
                                         .dtype = LL_DTYPE_F32,
                                         .numa_node = -1};
    static const struct {
        uint32_t n_ranks;
        const char *words;
    } bad[] = {{4, "do not divide 6 heads"}, {16, "at most 8"}, {2, "multiples of 16"}};

    (void)state;
    for (size_t i = 0; i < LL_COUNT(bad); i++) { /* 6 heads, 2 KV heads, a width of 200 */
        options.tensor_parallel = bad[i].n_ranks;
        assert_int_equal(backend->open(&device, &options, &shape, &caps, &error), LL_E_UNSUPPORTED);
        if (strstr(error.s, bad[i].words) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", error.s, bad[i].words);
    }
    /* Blocks of 128 rows that two ranks would have to share. */
    shape = wide_shape;
    shape.head_dim = 64;
    n_ranks = 2;
    device = open_device(LL_DTYPE_F32, 1, NULL, false);
    struct ll_tensor s = scale_of(LL_TENSOR_K, 0, PER_BLOCK, LL_DTYPE_F32);
    assert_int_equal(backend->want(device, &s, span, 8, &error), LL_E_UNSUPPORTED);
    assert_non_null(strstr(error.s, "share a scale"));
    struct ll_tensor w = tensor_of(LL_TENSOR_GATE, 0, LL_DTYPE_BF16); /* only a rank's own bytes */
    uint64_t ticket;
    uint8_t bytes[4] = {0};
    assert_int_equal(backend->feed(device, 0, &w, 1, 0, bytes, 4, &ticket, &error), LL_E_INVAL);
    backend->close(device);
    n_ranks = 1;
    shape = kept;
}

/* ---- what is refused --------------------------------------------------------------------------*/

static void assert_seal_says(struct ll_device *device, const char *words)
{
    struct ll_text error = {""};

    assert_int_equal(backend->seal(device, 0, &error), LL_E_INVAL);
    if (strstr(error.s, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error.s, words);
}

static void bad_scales_are_named_at_seal(void **state)
{
    static const struct {
        float value;
        const char *words;
    } bad[] = {{NAN, "is nan"}, {INFINITY, "is inf"}, {-1, "is -1"}};
    struct ll_text error = {""};
    uint64_t ticket;

    (void)state;
    for (size_t i = 0; i < LL_COUNT(bad); i++) {
        struct ll_device *device = make(LL_DTYPE_F32, PER_ROW, true, false, LL_DTYPE_F32);
        struct ll_device *late = open_device(LL_DTYPE_F32, 1, NULL, false);
        struct ll_tensor s = scale_of(LL_TENSOR_UP, 1, PER_ROW, LL_DTYPE_F32);
        /* A piece after the seal opens the set anew: all of it must come again. */
        assert_int_equal(backend->feed(device, 0, &s, 0, 20, &bad[i].value, 4, &ticket, &error), 0);
        assert_seal_says(device, "not complete");
        for (uint32_t layer = 0; layer < shape.n_layers; layer++)
            for (int role = 0; role < LL_TENSOR_ROLES; role++) {
                struct ll_tensor w =
                    tensor_of(role, layer, is_linear(role) ? LL_DTYPE_E4M3 : LL_DTYPE_BF16);
                struct ll_tensor t = scale_of(role, layer, PER_ROW, LL_DTYPE_F32);
                if ((role == LL_TENSOR_EMBED || role >= LL_TENSOR_FINAL_NORM) && layer > 0)
                    continue;
                feed(late, &w, PER_ROW, false);
                if (is_linear(role))
                    feed(late, &t, PER_ROW, false);
            }
        assert_int_equal(backend->feed(late, 0, &s, 0, 20, &bad[i].value, 4, &ticket, &error), 0);
        assert_seal_says(late, bad[i].words);
        assert_seal_says(late, "layers.1.mlp.up_proj (scale): number 5");
        backend->close(late);
        backend->close(device);
    }
}

static void a_weight_without_its_scale_and_a_scale_without_its_weight_are_named(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct ll_device *device = open_device(LL_DTYPE_F32, 1, NULL, false);
        for (uint32_t layer = 0; layer < shape.n_layers; layer++)
            for (int role = 0; role < LL_TENSOR_ROLES; role++) {
                bool is_fp8 = role == LL_TENSOR_O && layer == 1 && i == 0;
                struct ll_tensor w = tensor_of(role, layer, is_fp8 ? LL_DTYPE_E4M3 : LL_DTYPE_BF16);
                struct ll_tensor s = scale_of(role, layer, PER_TENSOR, LL_DTYPE_F32);
                if ((role == LL_TENSOR_EMBED || role >= LL_TENSOR_FINAL_NORM) && layer > 0)
                    continue;
                feed(device, &w, PER_TENSOR, false);
                if (i == 1 && role == LL_TENSOR_V && layer == 0)
                    feed(device, &s, PER_TENSOR, false);
            }
        assert_seal_says(device, i == 0 ? "layers.1.self_attn.o_proj (scale) has not come"
                                        : "layers.0.self_attn.v_proj (scale) came, but");
        backend->close(device);
    }
}

static void a_nan_code_and_scales_of_another_shape_are_refused(void **state)
{
    struct ll_device *device = open_device(LL_DTYPE_F32, 1, NULL, false);
    struct ll_tensor t = tensor_of(LL_TENSOR_DOWN, 1, LL_DTYPE_E4M3);
    struct ll_text error = {""};
    struct ll_span span;
    uint64_t ticket;
    uint8_t bytes[200] = {0};

    (void)state;
    for (size_t at = 0; at < sizeof(bytes); at += 33) { /* in vectors and in the tail */
        bytes[at] = at % 2 == 0 ? 0x7f : 0xff;
        char words[64];
        snprintf(words, sizeof(words), "layers.1.mlp.down_proj: number %zu is a NaN", 1000 + at);
        assert_int_equal(
            backend->feed(device, 0, &t, 0, 1000, bytes, sizeof(bytes), &ticket, &error),
            LL_E_INVAL);
        assert_non_null(strstr(error.s, words));
        bytes[at] = 0x7e;
    }
    struct ll_tensor s = scale_of(LL_TENSOR_DOWN, 1, PER_BLOCK, LL_DTYPE_F32);
    s.rows++;
    s.size_bytes = s.rows * s.cols * 4ull;
    assert_int_equal(backend->want(device, &s, &span, 1, &error), LL_E_UNSUPPORTED);
    assert_non_null(strstr(error.s, "[1, 1], [288, 1] or [3, 2]"));
    t = tensor_of(LL_TENSOR_EMBED, 0, LL_DTYPE_E4M3);
    assert_int_equal(backend->want(device, &t, &span, 1, &error), LL_E_UNSUPPORTED);
    assert_non_null(strstr(error.s, "embed_tokens"));
    s = scale_of(LL_TENSOR_K, 0, PER_TENSOR, LL_DTYPE_F32);
    s.part = LL_PART_INPUT_SCALE; /* activations are not narrowed here */
    assert_int_equal(backend->want(device, &s, &span, 1, &error), 0);
    backend->close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp8_weights_give_what_the_numbers_they_stand_for_do),
        cmocka_unit_test(order_split_and_type_of_the_scales_change_no_bit),
        cmocka_unit_test(threads_and_instruction_sets_change_no_bit),
        cmocka_unit_test(ranks_give_what_one_does),
        cmocka_unit_test(ranks_that_do_not_divide_are_refused),
        cmocka_unit_test(bad_scales_are_named_at_seal),
        cmocka_unit_test(a_weight_without_its_scale_and_a_scale_without_its_weight_are_named),
        cmocka_unit_test(a_nan_code_and_scales_of_another_shape_are_refused),
    };

    backend = ll_backend_cpu();
    return cmocka_run_group_tests_name("kernels/cpu FP8", tests, NULL, NULL);
}
