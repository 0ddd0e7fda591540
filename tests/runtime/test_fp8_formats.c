/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_fp8_formats.c - every form of FP8 checkpoint, made of the demo model, read,
 * loaded and run on the CPU backend; held against a double reference of the numbers that codes and
 * scales stand for. Then each way in which such a directory can be wrong. */
#include "tests/runtime/fp8_maker.h"
#include "tests/runtime/reference.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "runtime/fp8.h"
#include "runtime/loader.h"

#include <errno.h>

enum { N_PROMPT = 12 };

static struct fp8_demo demo;
static const struct fp8_spoil right;

/* ---- the forms --------------------------------------------------------------------------------*/

#define ARGS(STRATEGY, DYNAMIC, MORE)                                                              \
    "{\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true, \"strategy\": \"" STRATEGY        \
    "\", \"dynamic\": " DYNAMIC MORE ", \"observer\": null, \"observer_kwargs\": {}}"
#define COMPRESSED(WEIGHTS, INPUTS, MORE)                                                          \
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"float-quantized\", "                 \
    "\"quantization_status\": \"compressed\", \"ignore\": [\"lm_head\"], "                         \
    "\"global_compression_ratio\": 1.5, \"sparsity_config\": {}, " MORE                            \
    "\"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], \"weights\": " WEIGHTS           \
    ", \"input_activations\": " INPUTS ", \"output_activations\": null}}}"

static bool is_inner_mlp(enum ll_tensor_role role, uint32_t layer)
{
    return role >= LL_TENSOR_GATE && role <= LL_TENSOR_DOWN && layer > 0 && layer < 5;
}

static bool is_not_layer_0(enum ll_tensor_role role, uint32_t layer)
{
    (void)role;
    return layer != 0;
}

static bool is_not_o_of_1_and_2(enum ll_tensor_role role, uint32_t layer)
{
    return role != LL_TENSOR_O || layer < 1 || layer > 2;
}

static enum fp8_kind attention_by_tensor(enum ll_tensor_role role)
{
    return role < LL_TENSOR_GATE ? FP8_TENSOR : FP8_CHANNEL;
}

static const struct fp8_form forms[] = {
    {.name = "compressed-tensors, static, with scales of the cache",
     .quantization =
         COMPRESSED(ARGS("tensor", "false", ""), ARGS("tensor", "false", ""),
                    "\"kv_cache_scheme\": " ARGS("tensor", "false", ", \"group_size\": null") ", "),
     .kind = FP8_TENSOR,
     .scale_dtype = LL_DTYPE_BF16,
     .scale_leaf = "weight_scale",
     .one_shape = "[1]",
     .has_input_scales = true,
     .k_scale = "self_attn.k_scale",
     .v_scale = "self_attn.v_scale"},
    {.name = "compressed-tensors, dynamic",
     .quantization = COMPRESSED(ARGS("channel", "false", ""), ARGS("token", "true", ""),
                                "\"kv_cache_scheme\": null, "),
     .kind = FP8_CHANNEL,
     .scale_dtype = LL_DTYPE_BF16,
     .scale_leaf = "weight_scale"},
    {.name = "compressed-tensors, block",
     .quantization = COMPRESSED(ARGS("block", "false", ", \"block_structure\": [128, 128]"),
                                ARGS("group", "true", ", \"group_size\": 128"), ""),
     .kind = FP8_BLOCK,
     .scale_dtype = LL_DTYPE_BF16,
     .scale_leaf = "weight_scale"},
    {.name = "compressed-tensors, groups by pattern, attention and the rest each its own way",
     .quantization =
         "{\"quant_method\": \"compressed-tensors\", \"format\": \"naive-quantized\", "
         "\"ignore\": [\"lm_head\", \"re:.*layers\\\\.0\\\\..*\"], \"config_groups\": {"
         "\"a\": {\"targets\": [\"re:.*self_attn\\\\.(?:q|k|v|o)_proj$\"], \"weights\": " ARGS(
             "tensor", "false", "") "}, \"b\": {\"targets\": "
                                    "[\"re:model.layers.\\\\d+.mlp.*\"], \"weights\": " ARGS(
                                        "channel", "false", "") "}}}",
     .kind_of = attention_by_tensor,
     .is_fp8 = is_not_layer_0,
     .scale_dtype = LL_DTYPE_F32,
     .scale_leaf = "weight_scale",
     .one_shape = "[1,1]",
     .has_flat_channels = true},
    {.name = "fbgemm_fp8",
     .quantization =
         "{\"quant_method\": \"fbgemm_fp8\", \"activation_scale_ub\": 1200.0, "
         "\"modules_to_not_convert\": [\"lm_head\", \"model.layers.0\", \"model.layers.5.mlp."
         "gate_proj\", \"model.layers.5.mlp.up_proj\", \"model.layers.5.mlp.down_proj\", "
         "\"model.layers.1.self_attn\", \"model.layers.2.self_attn\", \"model.layers.3.self_attn\","
         "\"model.layers.4.self_attn\", \"model.layers.5.self_attn\"]}",
     .kind = FP8_CHANNEL,
     .scale_dtype = LL_DTYPE_F32,
     .scale_leaf = "weight_scale",
     .is_fp8 = is_inner_mlp},
    {.name = "modelopt, hf_quant_config.json",
     .hf_quant_config =
         "{\"producer\": {\"name\": \"modelopt\", \"version\": \"0.19\"}, \"quantization\": "
         "{\"quant_algo\": \"FP8\", \"kv_cache_quant_algo\": \"FP8\", \"exclude_modules\": "
         "[\"lm_head\"]}}",
     .kind = FP8_TENSOR,
     .scale_dtype = LL_DTYPE_F32,
     .scale_leaf = "weight_scale",
     .one_shape = "[]",
     .has_input_scales = true,
     .k_scale = "self_attn.k_proj.k_scale",
     .v_scale = "self_attn.v_proj.v_scale"},
    {.name = "modelopt, config.json, globs, per channel",
     .quantization =
         "{\"quant_method\": \"modelopt\", \"quant_algo\": \"FP8_PER_CHANNEL_PER_TOKEN\", "
         "\"ignore\": [\"lm_head\", \"model.layers.1.self_attn.o*\", \"*.2.*.o_p?oj\"]}",
     .kind = FP8_CHANNEL,
     .scale_dtype = LL_DTYPE_F32,
     .scale_leaf = "weight_scale",
     .has_flat_channels = true,
     .is_fp8 = is_not_o_of_1_and_2},
    {.name = "fp8, static (AutoFP8), one scale for keys and values",
     .quantization = "{\"quant_method\": \"fp8\", \"activation_scheme\": \"static\", "
                     "\"ignored_layers\": [\"lm_head\"], \"kv_cache_scheme\": \"static\"}",
     .kind = FP8_TENSOR,
     .scale_dtype = LL_DTYPE_F32,
     .scale_leaf = "weight_scale",
     .one_shape = "[]",
     .has_input_scales = true,
     .k_scale = "self_attn.kv_scale"},
    {.name = "fp8, dynamic (AutoFP8), old name of the cache's scales",
     .quantization = "{\"quant_method\": \"fp8\", \"activation_scheme\": \"dynamic\"}",
     .kind = FP8_TENSOR,
     .scale_dtype = LL_DTYPE_F32,
     .scale_leaf = "weight_scale",
     .one_shape = "[1]",
     .k_scale = "self_attn.k_proj.output_scale",
     .v_scale = "self_attn.v_proj.output_scale"},
    {.name = "fp8, blocks (DeepSeek)",
     .quantization = "{\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", \"activation_scheme\": "
                     "\"dynamic\", \"weight_block_size\": [128, 128]}",
     .kind = FP8_BLOCK,
     .scale_dtype = LL_DTYPE_F32,
     .scale_leaf = "weight_scale_inv"},
};
enum { STATIC = 0, DYNAMIC = 1, BLOCKS = 2, FBGEMM = 4, MODELOPT = 5, AUTOFP8 = 7, DEEPSEEK = 9 };

/* ---- what they compute ------------------------------------------------------------------------*/

static enum ll_dtype kv_dtype; /* of the devices that load() makes; 0: as they compute */

static struct ll_device *load(const struct ll_checkpoint *checkpoint, bool quantize_fp8,
                              uint32_t n_ranks)
{
    const struct ll_load_options how = {.quantize_fp8 = quantize_fp8, .numa_node = -1};
    struct ll_text error = {""};
    struct ll_backend_caps caps;
    struct ll_device *device = NULL;
    struct ll_backend_options options = {.struct_bytes = sizeof(options),
                                         .n_slots = 1,
                                         .n_pages = 1,
                                         .n_tokens_max = N_PROMPT,
                                         .n_rows_max = 1,
                                         .pages_per_seq = 1,
                                         .n_weights = 1,
                                         .tensor_parallel = n_ranks,
                                         .kv_dtype = kv_dtype,
                                         .dtype = LL_DTYPE_F32,
                                         .numa_node = -1};

    if (ll_backend_cpu()->open(&device, &options, &checkpoint->shape, &caps, &error) < 0)
        fail_msg("open: %s", error.s);
    if (ll_loader_run(ll_backend_cpu(), device, 0, checkpoint, &how) < 0)
        fail_msg("load: %s", ll_err_text());
    return device;
}

/* The log probability of each next id, and the 20 best after the last. */
static double worst_difference(struct ll_device *device, const double *want, const uint32_t *ids)
{
    const struct ll_backend *cpu = ll_backend_cpu();
    struct ll_pages_set pages = {0, 0, 1, (const uint32_t[]){0}};
    struct ll_slot_init init = {
        .n_prompt = N_PROMPT, .n_hist = N_PROMPT, .hist = ids, .s = {.top_p = 1, .repetition = 1}};
    struct ll_row row = {.n_tokens = N_PROMPT,
                         .token = ids,
                         .flags = LL_ROW_SAMPLE | LL_ROW_PROMPT_LOGPROBS,
                         .n_top = 20};
    struct ll_batch batch = {.n_inits = 1,
                             .n_pages_sets = 1,
                             .n_rows = 1,
                             .inits = &init,
                             .pages = &pages,
                             .rows = &row};
    struct ll_text error = {""};
    struct ll_result result;
    double worst = 0;
    int rc = 0;

    int64_t ticket = cpu->submit(device, &batch, &error);
    assert_true(ticket > 0);
    while (rc == 0)
        rc = cpu->poll(device, ticket, &result, &error);
    assert_int_equal(rc, 1);
    assert_int_equal(result.rows[0].n_ext, 20 + N_PROMPT - 1);
    const struct ll_ext *ext = result.ext + result.rows[0].ext;
    for (int i = 0; i < 20; i++)
        worst = fmax(worst, fabs((double)ext[i].logprob -
                                 want[(size_t)(N_PROMPT - 1) * demo.shape.n_vocab + ext[i].id]));
    for (int t = 0; t + 1 < N_PROMPT; t++)
        worst = fmax(worst, fabs((double)ext[20 + t].logprob -
                                 want[(size_t)t * demo.shape.n_vocab + ids[t + 1]]));
    return worst;
}

static const float *const no_scale[2];

static const uint32_t ids[N_PROMPT] = {4096, 72, 309, 11, 900, 41, 7, 2222, 1500, 64, 3, 1024};

/* --quantization fp8 of the BF16 demo model. */
static void a_model_quantised_while_it_loads_computes_what_its_codes_mean(void **state)
{
    double *want = malloc((size_t)N_PROMPT * demo.shape.n_vocab * sizeof(*want));
    struct ll_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));
    double *w[LL_TENSOR_ROLES][16] = {{NULL}};

    (void)state;
    for (int role = 0; role < LL_TENSOR_ROLES; role++)
        for (uint32_t layer = 0; layer < 16 && demo.w[role][layer] != NULL; layer++) {
            uint32_t rows, cols;
            ll_tensor_dims(&demo.shape, role, &rows, &cols);
            const size_t n = (size_t)rows * cols;
            uint8_t *codes = malloc(n);
            uint16_t *scale = malloc(rows * sizeof(*scale));
            w[role][layer] = malloc(n * sizeof(double));
            assert_int_equal(
                ll_fp8_quantize(codes, scale, demo.w[role][layer], LL_DTYPE_F32, rows, cols), rows);
            for (size_t i = 0; i < n; i++)
                w[role][layer][i] = ll_tensor_is_linear(role)
                                        ? (double)ll_f32_from_e4m3(codes[i]) *
                                              (double)ll_f32_from_bf16(scale[i / cols])
                                        : (double)demo.w[role][layer][i];
            free(codes);
            free(scale);
        }
    assert_int_equal(ll_checkpoint_open(checkpoint, ll_test_source("tools/demo-model")), 0);
    reference_run(want, &demo.shape, w, ids, N_PROMPT, no_scale);
    for (uint32_t n_ranks = 1; n_ranks <= 4; n_ranks *= 2) { /* four share the two KV heads */
        struct ll_device *device = load(checkpoint, true, n_ranks);
        assert_true(worst_difference(device, want, ids) < 1e-3);
        ll_backend_cpu()->close(device);
    }
    struct ll_device *device = load(checkpoint, false, 1); /* without the option: another model */
    assert_true(worst_difference(device, want, ids) > 1e-3);
    ll_backend_cpu()->close(device);
    ll_checkpoint_close(checkpoint);
    for (int role = 0; role < LL_TENSOR_ROLES; role++)
        for (int layer = 0; layer < 16; layer++)
            free(w[role][layer]);
    free(want);
    free(checkpoint);
}

static void every_form_computes_what_its_numbers_mean(void **state)
{
    double *want = malloc((size_t)N_PROMPT * demo.shape.n_vocab * sizeof(*want));
    struct ll_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));

    (void)state;
    for (size_t i = 0; i < LL_COUNT(forms); i++) {
        struct fp8_made made;
        fp8_make(&made, &demo, &forms[i], &right);
        memset(checkpoint, 0, sizeof(*checkpoint));
        if (ll_checkpoint_open(checkpoint, made.directory) < 0)
            fail_msg("%s: %s", forms[i].name, ll_err_text());
        assert_int_equal(checkpoint->dtype, LL_DTYPE_E4M3);
        assert_true(checkpoint->has_kv_scales == (forms[i].k_scale != NULL));
        assert_true(checkpoint->activation_bound == (i == FBGEMM ? 1200.0f : 0.0f));
        reference_run(want, &demo.shape, made.w, ids, N_PROMPT, no_scale);
        /* Blocks of 128 rows are more than a rank's one KV head of 64. */
        for (uint32_t n_ranks = 1; n_ranks <= (forms[i].kind == FP8_BLOCK ? 1 : 4); n_ranks *= 2) {
            struct ll_device *device = load(checkpoint, false, n_ranks);
            double worst = worst_difference(device, want, ids);
            printf("%s, ranks %u: worst difference of a log probability %.1e\n", forms[i].name,
                   n_ranks, worst);
            assert_true(worst < 1e-3);
            ll_backend_cpu()->close(device);
        }
        ll_checkpoint_close(checkpoint);
        fp8_made_free(&made);
    }
    free(want);
    free(checkpoint);
}

/* An e4m3 cache with the scales of the checkpoint: too small ones, so that much of what is stored
 * saturates, and nothing else gives the same. */
static void an_fp8_cache_uses_the_stored_scales(void **state)
{
    static const int with_scales[] = {STATIC, MODELOPT, AUTOFP8, STATIC};
    float kept[2][16];
    double *want = malloc((size_t)N_PROMPT * demo.shape.n_vocab * sizeof(*want));
    struct ll_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));

    (void)state;
    memcpy(kept, fp8_kv_scale, sizeof(kept));
    for (size_t i = 0; i < LL_COUNT(with_scales); i++) {
        struct fp8_form head_form = forms[STATIC];
        head_form.has_head_scales = true; /* the last turn: each KV head has its own */
        const bool is_by_head = i == LL_COUNT(with_scales) - 1;
        const struct fp8_form *form = is_by_head ? &head_form : &forms[with_scales[i]];
        for (int h = 0; h < 16; h++) {
            fp8_kv_scale[0][h] = is_by_head && h == 1 ? 0x1p-7f : 0x1p-9f; /* 0.875 at most */
            fp8_kv_scale[1][h] = is_by_head && h == 1 ? 0x1p-12f : 0x1p-13f;
        }
        const float *const scale[2] = {fp8_kv_scale[0], fp8_kv_scale[form->v_scale != NULL]};
        struct fp8_made made;
        fp8_make(&made, &demo, form, &right);
        assert_int_equal(ll_checkpoint_open(checkpoint, made.directory), 0);
        for (uint32_t n_ranks = 1; n_ranks <= 4; n_ranks *= 2) {
            kv_dtype = LL_DTYPE_E4M3;
            struct ll_device *device = load(checkpoint, false, n_ranks);
            reference_run(want, &demo.shape, made.w, ids, N_PROMPT, scale);
            double worst = worst_difference(device, want, ids);
            reference_run(want, &demo.shape, made.w, ids, N_PROMPT, no_scale);
            double other = worst_difference(device, want, ids);
            printf("%s, ranks %u, e4m3 cache: %.1e, without scales %.1e\n", form->name, n_ranks,
                   worst, other);
            assert_true(worst < 0.1 && other > 0.5);
            ll_backend_cpu()->close(device);
        }
        ll_checkpoint_close(checkpoint);
        fp8_made_free(&made);
    }
    kv_dtype = 0;
    memcpy(fp8_kv_scale, kept, sizeof(kept));
    free(want);
    free(checkpoint);
}

/* The scales of keys and values are found under all their names, each where it belongs. */
static void scales_of_the_cache_are_listed_for_keys_and_values(void **state)
{
    static const struct fp8_spoil spoils[] = {
        {.tensor = NULL}, {.tensor = "model.layers.3.self_attn.v_scale", .rename = ""}};
    struct ll_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));

    (void)state;
    for (size_t i = 0; i < LL_COUNT(forms) + 1; i++) {
        const bool is_spoilt = i == LL_COUNT(forms); /* one is missing: the other one's counts */
        const struct fp8_form *form = &forms[is_spoilt ? STATIC : i];
        struct fp8_made made;
        uint32_t n[2] = {0}, n_same = 0;
        fp8_make(&made, &demo, form, &spoils[is_spoilt]);
        memset(checkpoint, 0, sizeof(*checkpoint));
        assert_int_equal(ll_checkpoint_open(checkpoint, made.directory), 0);
        for (uint32_t k = 0; k < checkpoint->n_tensors; k++) {
            const struct ll_checkpoint_tensor *t = &checkpoint->tensor[k];
            if (t->tensor.part != LL_PART_KV_SCALE)
                continue;
            n[t->tensor.role == LL_TENSOR_V]++;
            for (uint32_t j = 0; j < k; j++)
                n_same += checkpoint->tensor[j].offset == t->offset;
        }
        assert_int_equal(n[0], form->k_scale != NULL ? demo.shape.n_layers : 0);
        assert_int_equal(n[1], n[0]);
        assert_int_equal(n_same, is_spoilt ? 1 : form->v_scale != NULL ? 0 : n[0]);
        ll_checkpoint_close(checkpoint);
        fp8_made_free(&made);
    }
    free(checkpoint);
}

/* ---- what is refused --------------------------------------------------------------------------*/

#define UP "model.layers.2.mlp.up_proj"
#define V  "model.layers.4.self_attn.v_proj"

static const struct bad {
    int form;
    struct fp8_spoil spoil;
    int code;
    const char *word1, *word2;
} bad[] = {
    /* scales: missing, of another shape, of another type, too many */
    {DYNAMIC,
     {.tensor = UP ".weight_scale", .rename = ""},
     LL_E_INVAL,
     UP ".weight_scale",
     "missing"},
    {DEEPSEEK,
     {.tensor = UP ".weight_scale_inv", .rename = ""},
     LL_E_INVAL,
     UP ".weight_scale_inv",
     "missing"},
    {STATIC, {.tensor = V ".input_scale", .rename = ""}, LL_E_INVAL, V ".input_scale", "missing"},
    {DYNAMIC,
     {.tensor = UP ".weight_scale", .shape = "[767,1]"},
     LL_E_INVAL,
     "shape is [767, 1]",
     "[768, 1]"},
    {DYNAMIC,
     {.tensor = UP ".weight_scale", .shape = "[1]"},
     LL_E_INVAL,
     "shape is [1, 1]",
     UP ".weight_scale"},
    {STATIC, {.tensor = UP ".weight_scale", .shape = "[768,1]"}, LL_E_INVAL, "[768, 1]", "[1, 1]"},
    {BLOCKS, {.tensor = UP ".weight_scale", .shape = "[2,6]"}, LL_E_INVAL, "[2, 6]", "[6, 2]"},
    {BLOCKS,
     {.tensor = UP ".weight_scale", .shape = "[6,2,1]"},
     LL_E_INVAL,
     UP ".weight_scale",
     "[6, 2, 1]"},
    {STATIC,
     {.tensor = UP ".input_scale", .shape = "[2]"},
     LL_E_INVAL,
     UP ".input_scale",
     "one number"},
    {STATIC, {.tensor = UP ".weight_scale", .shape = "[0]"}, LL_E_INVAL, UP ".weight_scale", "[0]"},
    {DYNAMIC,
     {.tensor = UP ".weight_scale", .dtype = "F8_E4M3"},
     LL_E_UNSUPPORTED,
     UP ".weight_scale",
     "F8_E4M3"},
    {STATIC,
     {.tensor = UP ".input_scale", .rename = UP ".weight_scale_inv"},
     LL_E_INVAL,
     UP ".weight_scale",
     "the same scale"},
    {STATIC,
     {.tensor = "model.layers.4.self_attn.k_scale", .shape = "[3]"},
     LL_E_INVAL,
     "layers.4.self_attn.k_scale",
     "must be 1 or 2"},
    {FBGEMM,
     {.tensor = UP ".weight_scale", .rename = V ".weight_scale"},
     LL_E_INVAL,
     "missing",
     UP ".weight_scale"},
    /* weights: of another type or shape, not as the configuration says */
    {DYNAMIC, {.tensor = UP ".weight", .dtype = "BF16"}, LL_E_INVAL, UP ".weight", "not F8_E4M3"},
    {DYNAMIC,
     {.tensor = UP ".weight", .dtype = "F8_E5M2"},
     LL_E_UNSUPPORTED,
     UP ".weight",
     "F8_E5M2"},
    {FBGEMM,
     {.tensor = V ".weight", .dtype = "F8_E4M3"},
     LL_E_INVAL,
     V ".weight",
     "leaves \"" V "\" alone"},
    {DYNAMIC,
     {.tensor = UP ".weight", .shape = "[256,768]"},
     LL_E_INVAL,
     UP ".weight",
     "[256, 768]"},
    {DYNAMIC,
     {.tensor = "model.layers.2.input_layernorm.weight", .dtype = "F8_E4M3"},
     LL_E_UNSUPPORTED,
     "input_layernorm",
     "F8_E4M3"},
    {DYNAMIC, {.tensor = UP ".weight", .rename = ""}, LL_E_INVAL, UP ".weight", "missing"},
    {DYNAMIC,
     {.tensor = UP ".weight", .rename = UP ".weight_packed"},
     LL_E_INVAL,
     UP ".weight_packed",
     "no part"},
    {DYNAMIC,
     {.from = "\"quantization_config\"", .to = "\"other\""},
     LL_E_INVAL,
     "F8_E4M3",
     "quantization_config"},
    {FBGEMM,
     {.from = "\"model.layers.0\"", .to = "\"model.layers.9\""},
     LL_E_INVAL,
     "model.layers.0.self_attn.q_proj",
     "not F8_E4M3"},
    {FBGEMM,
     {.from = "\"model.layers.5.mlp.up_proj\"", .to = "\"model.layers.5.mlp.up\""},
     LL_E_INVAL,
     "model.layers.5.mlp.up_proj",
     "not F8_E4M3"},
    /* the configuration itself */
    {DYNAMIC, {.from = "compressed-tensors", .to = "awq"}, LL_E_UNSUPPORTED, "quant_method", "awq"},
    {DYNAMIC,
     {.from = "\"quant_method\"", .to = "\"method\""},
     LL_E_INVAL,
     "quantization_config.quant_method",
     "missing"},
    {DYNAMIC,
     {.from = "float-quantized", .to = "pack-quantized"},
     LL_E_UNSUPPORTED,
     "quantization_config.format",
     "pack-quantized"},
    {DYNAMIC,
     {.from = "\"compressed\"", .to = "\"initialized\""},
     LL_E_UNSUPPORTED,
     "quantization_status",
     "initialized"},
    {DYNAMIC,
     {.from = "\"num_bits\": 8", .to = "\"num_bits\": 4"},
     LL_E_UNSUPPORTED,
     "group_0.weights.num_bits",
     "4"},
    {DYNAMIC,
     {.from = "\"float\"", .to = "\"int\""},
     LL_E_UNSUPPORTED,
     "group_0.weights.type",
     "int"},
    {DYNAMIC,
     {.from = "\"symmetric\": true", .to = "\"symmetric\": false"},
     LL_E_UNSUPPORTED,
     "group_0.weights",
     "symmetric false"},
    {DYNAMIC,
     {.from = "\"channel\"", .to = "\"group\""},
     LL_E_UNSUPPORTED,
     "weights.strategy",
     "group"},
    {DYNAMIC, {.from = "\"Linear\"", .to = "7"}, LL_E_INVAL, "targets[0]", "string"},
    {DYNAMIC, {.from = "\"lm_head\"", .to = "null"}, LL_E_INVAL, "ignore[0]", "string"},
    {DYNAMIC,
     {.from = "\"output_activations\": null", .to = "\"output_activations\": {}"},
     LL_E_UNSUPPORTED,
     "output_activations",
     "group_0"},
    {DYNAMIC,
     {.from = "\"sparsity_config\": {}", .to = "\"sparsity_config\": {\"format\": \"24\"}"},
     LL_E_UNSUPPORTED,
     "sparsity_config",
     "sparse"},
    {DYNAMIC,
     {.from = "\"config_groups\": {", .to = "\"config_groups\": {}, \"x\": {"},
     LL_E_INVAL,
     "config_groups",
     "1 .. 8"},
    {BLOCKS,
     {.from = "[128, 128]", .to = "[64, 128]"},
     LL_E_UNSUPPORTED,
     "block_structure",
     "[128, 128]"},
    {DEEPSEEK,
     {.from = "[128, 128]", .to = "[1, 128]"},
     LL_E_UNSUPPORTED,
     "weight_block_size",
     "[128, 128]"},
    {DEEPSEEK,
     {.from = "\"dynamic\"", .to = "\"static\""},
     LL_E_UNSUPPORTED,
     "activation_scheme",
     "static"},
    {AUTOFP8,
     {.from = "\"activation_scheme\": \"static\"", .to = "\"activation_scheme\": 1"},
     LL_E_INVAL,
     "activation_scheme",
     "string"},
    {FBGEMM, {.from = "1200.0", .to = "-1"}, LL_E_INVAL, "activation_scale_ub", "-1"},
};

static void what_is_wrong_is_named_in_less_than_a_second(void **state)
{
    struct ll_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));

    (void)state;
    for (size_t i = 0; i < LL_COUNT(bad); i++) {
        struct fp8_made made;
        fp8_make(&made, &demo, &forms[bad[i].form], &bad[i].spoil);
        uint64_t start_ns = ll_now_ns();
        int rc = ll_checkpoint_open(checkpoint, made.directory);
        assert_true(ll_now_ns() - start_ns < LL_NS_PER_S);
        if (rc != bad[i].code)
            fail_msg("case %zu: answered %d, not %d: %s", i, rc, bad[i].code,
                     rc < 0 ? ll_err_text() : "opened");
        if (strstr(ll_err_text(), bad[i].word1) == NULL ||
            strstr(ll_err_text(), bad[i].word2) == NULL)
            fail_msg("case %zu: \"%s\" does not name \"%s\" and \"%s\"", i, ll_err_text(),
                     bad[i].word1, bad[i].word2);
        assert_null(checkpoint->tensor);
        assert_null(checkpoint->quantization_config);
        fp8_made_free(&made);
    }
    free(checkpoint);
}

/* A pattern that is too hard to judge safely (it could take for ever) is not judged: the tensors
 * say what they are. */
static void patterns_of_any_malice_end_soon(void **state)
{
    static const char *const patterns[] = {
        "re:(a*)*\\\\1(((((x{1,255}){1,255}){1,255}){1,255}){1,255})*", "re:(?=.*lm_head).*",
        "re:(((((((((((.*)*)*)*)*)*)*)*)*)*)*)*zzz", "re:[", "re:*"};
    struct ll_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));

    (void)state;
    for (size_t i = 0; i < LL_COUNT(patterns); i++) {
        struct fp8_made made;
        char to[256];
        snprintf(to, sizeof(to), "[\"%s\"]", patterns[i]);
        fp8_make(&made, &demo, &forms[DYNAMIC],
                 &(struct fp8_spoil){.from = "[\"lm_head\"]", .to = to});
        uint64_t start_ns = ll_now_ns();
        if (ll_checkpoint_open(checkpoint, made.directory) < 0)
            fail_msg("%s: %s", patterns[i], ll_err_text());
        assert_true(ll_now_ns() - start_ns < LL_NS_PER_S);
        ll_checkpoint_close(checkpoint);
        fp8_made_free(&made);
    }
    free(checkpoint);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_quantised_while_it_loads_computes_what_its_codes_mean),
        cmocka_unit_test(every_form_computes_what_its_numbers_mean),
        cmocka_unit_test(an_fp8_cache_uses_the_stored_scales),
        cmocka_unit_test(scales_of_the_cache_are_listed_for_keys_and_values),
        cmocka_unit_test(what_is_wrong_is_named_in_less_than_a_second),
        cmocka_unit_test(patterns_of_any_malice_end_soon),
    };

    ll_log_set_level(LL_LOG_WARN);
    fp8_demo_open(&demo);
    int rc = cmocka_run_group_tests_name("runtime/FP8 formats", tests, NULL, NULL);
    fp8_demo_close(&demo);
    return rc;
}
