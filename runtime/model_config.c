/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model_config.h"

#include "base/bits.h"
#include "base/err.h"
#include "ll/client.h"
#include "runtime/jsonfile.h"
#include "runtime/quantization.h"
#include "runtime/sha256.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* config.json is about 1 KiB; tokenizer_config.json lists added tokens and may hold a template. */
#define CONFIG_BYTES_MAX           (1u << 20)
#define TOKENIZER_CONFIG_BYTES_MAX (16u << 20)
#define TEMPLATE_BYTES_MAX         (1u << 20)

#define CONTEXT_MAX (1u << 24)

/* The path of a file of the directory, and how errors name a field of it. */
struct place {
    char path[sizeof(((struct ll_checkpoint *)0)->directory) + 32];
    char where[256];
};

static void set_place(struct place *place, const struct ll_checkpoint *checkpoint, const char *name)
{
    snprintf(place->path, sizeof(place->path), "%s/%s", checkpoint->directory, name);
    snprintf(place->where, sizeof(place->where), "%s: ", ll_path_tail(place->path));
}

/* ---- config.json ------------------------------------------------------------------------------*/

static int check_architecture(const json_t *config, const char *where)
{
    char shown[LL_SHOWN_BYTES];
    const json_t *list = json_object_get(config, "architectures");
    const char *name = json_string_value(json_array_get(list, 0)), *text = NULL;

    if (name == NULL || json_array_size(list) != 1)
        return LL_ERR(LL_E_INVAL, "%sarchitectures must be a list of one name", where);
    if (strcmp(name, "LlamaForCausalLM") != 0)
        return LL_ERR(LL_E_UNSUPPORTED,
                      "%sarchitectures is \"%s\"; only \"LlamaForCausalLM\" can be served", where,
                      ll_shown(shown, name));

    static const char *const biases[] = {"attention_bias", "mlp_bias"};
    for (size_t i = 0; i < LL_COUNT(biases); i++) {
        bool has_bias = false;
        int rc = ll_jsonfile_bool(&has_bias, config, where, biases[i]);
        if (rc < 0)
            return rc;
        if (has_bias)
            return LL_ERR(LL_E_UNSUPPORTED, "%s%s is true; linears with a bias are not supported",
                          where, biases[i]);
    }

    int rc = ll_jsonfile_string(&text, config, where, "hidden_act");
    if (rc < 0)
        return rc;
    if (rc == 1 && strcmp(text, "silu") != 0)
        return LL_ERR(LL_E_UNSUPPORTED, "%shidden_act is \"%s\"; only \"silu\" is supported", where,
                      ll_shown(shown, text));
    return 0;
}

/* The declared type is checked for sense only: what counts is the dtype of each tensor. */
static int check_declared_dtype(const json_t *config, const char *where)
{
    static const char *const keys[] = {"torch_dtype", "dtype"}; /* transformers 4, 5 */
    static const char *const names[] = {"bfloat16", "float16", "float32"};
    char shown[LL_SHOWN_BYTES];

    for (size_t i = 0; i < LL_COUNT(keys); i++) {
        const char *text = NULL;
        bool is_known = false;
        int rc = ll_jsonfile_string(&text, config, where, keys[i]);
        if (rc < 0)
            return rc;
        if (rc == 0)
            continue;
        for (size_t k = 0; k < LL_COUNT(names); k++)
            is_known |= strcmp(text, names[k]) == 0;
        if (!is_known)
            return LL_ERR(LL_E_UNSUPPORTED, "%s%s is \"%s\"; supported: bfloat16, float16, float32",
                          where, keys[i], ll_shown(shown, text));
    }
    return 0;
}

static int read_dims(struct ll_model_shape *shape, const json_t *config, const char *where)
{
    const struct {
        const char *key;
        uint32_t *out, min, max;
        bool is_optional;
    } dims[] = {
        {"num_hidden_layers", &shape->n_layers, 1, 1024, false},
        {"hidden_size", &shape->n_embd, 1, 1u << 17, false},
        {"num_attention_heads", &shape->n_heads, 1, 1024, false},
        {"num_key_value_heads", &shape->n_kv_heads, 1, 1024, true},
        {"head_dim", &shape->head_dim, 2, 1024, true},
        {"intermediate_size", &shape->n_ff, 1, 1u << 20, false},
        {"vocab_size", &shape->n_vocab, 1, 1u << 22, false},
        {"max_position_embeddings", &shape->context_max, 1, CONTEXT_MAX, false},
    };

    for (size_t i = 0; i < LL_COUNT(dims); i++) {
        int rc = ll_jsonfile_u32(dims[i].out, config, where, dims[i].key, dims[i].min, dims[i].max);
        if (rc == 0 && !dims[i].is_optional)
            rc = ll_jsonfile_required(rc, where, dims[i].key);
        if (rc < 0)
            return rc;
    }
    if (shape->n_kv_heads == 0)
        shape->n_kv_heads = shape->n_heads;
    if (shape->n_heads % shape->n_kv_heads != 0)
        return LL_ERR(LL_E_INVAL, "%snum_key_value_heads %u does not divide num_attention_heads %u",
                      where, shape->n_kv_heads, shape->n_heads);
    if (shape->head_dim == 0) {
        if (shape->n_embd % shape->n_heads != 0)
            return LL_ERR(LL_E_INVAL,
                          "%shead_dim is missing and num_attention_heads %u does not divide "
                          "hidden_size %u",
                          where, shape->n_heads, shape->n_embd);
        shape->head_dim = shape->n_embd / shape->n_heads;
    }
    if (shape->head_dim % 2 != 0 || shape->head_dim > 1024)
        return LL_ERR(LL_E_INVAL, "%shead_dim is %u, must be even and at most 1024", where,
                      shape->head_dim);

    double eps = 0;
    int rc = ll_jsonfile_required(ll_jsonfile_f64(&eps, config, where, "rms_norm_eps", 1e-12, 0.1),
                                  where, "rms_norm_eps");
    if (rc < 0)
        return rc;
    shape->rms_eps = (float)eps;
    rc = ll_jsonfile_bool(&shape->is_tied, config, where, "tie_word_embeddings");
    return rc < 0 ? rc : 0;
}

static int read_llama3_rope(struct ll_model_shape *shape, const json_t *rope, const char *where)
{
    const struct {
        const char *key;
        double *out, min, max;
    } reals[] = {
        {"factor", &shape->rope_factor, 1, 1e6},
        {"low_freq_factor", &shape->rope_low_freq, 1e-6, 1e6},
        {"high_freq_factor", &shape->rope_high_freq, 1e-6, 1e6},
    };

    for (size_t i = 0; i < LL_COUNT(reals); i++) {
        int rc = ll_jsonfile_required(
            ll_jsonfile_f64(reals[i].out, rope, where, reals[i].key, reals[i].min, reals[i].max),
            where, reals[i].key);
        if (rc < 0)
            return rc;
    }
    if (shape->rope_high_freq <= shape->rope_low_freq)
        return LL_ERR(LL_E_INVAL, "%shigh_freq_factor %g must be above low_freq_factor %g", where,
                      shape->rope_high_freq, shape->rope_low_freq);
    return ll_jsonfile_required(ll_jsonfile_u32(&shape->rope_original_context, rope, where,
                                                "original_max_position_embeddings", 1, CONTEXT_MAX),
                                where, "original_max_position_embeddings");
}

static int read_rope(struct ll_model_shape *shape, const json_t *config, const char *where)
{
    char inner[320], shown[LL_SHOWN_BYTES];
    const json_t *rope = NULL;
    const char *type = NULL, *key = "rope_parameters"; /* transformers 5 */

    shape->rope_theta = 10000.0; /* what Llama means by its absence */
    int rc = ll_jsonfile_f64(&shape->rope_theta, config, where, "rope_theta", 1.0, 1e12);
    if (rc < 0)
        return rc;
    rc = ll_jsonfile_object(&rope, config, where, key);
    if (rc == 0) {
        key = "rope_scaling";
        rc = ll_jsonfile_object(&rope, config, where, key);
    }
    if (rc <= 0)
        return rc; /* no scaling */

    snprintf(inner, sizeof(inner), "%s%s.", where, key);
    rc = ll_jsonfile_f64(&shape->rope_theta, rope, inner, "rope_theta", 1.0, 1e12);
    if (rc < 0)
        return rc;
    rc = ll_jsonfile_string(&type, rope, inner, "rope_type");
    if (rc == 0)
        rc = ll_jsonfile_string(&type, rope, inner, "type"); /* before transformers 4.43 */
    if (rc < 0)
        return rc;
    if (type == NULL)
        return LL_ERR(LL_E_INVAL, "%srope_type is missing", inner);
    if (strcmp(type, "default") == 0)
        return 0;
    if (strcmp(type, "llama3") != 0)
        return LL_ERR(LL_E_UNSUPPORTED,
                      "%srope_type is \"%s\"; only \"llama3\" and \"default\" are supported", inner,
                      ll_shown(shown, type));
    shape->rope = LL_ROPE_LLAMA3;
    return read_llama3_rope(shape, rope, inner);
}

/* eos_token_id: an id, a list of ids, or nothing. Leaves *out alone when it is absent. */
static int read_end_ids(struct ll_checkpoint *out, const json_t *object, const char *where)
{
    const json_t *value = json_object_get(object, "eos_token_id");
    uint32_t n_max = (uint32_t)LL_COUNT(out->eos), last = out->shape.n_vocab - 1;

    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_array(value)) {
        int rc = ll_jsonfile_u32(&out->eos[0], object, where, "eos_token_id", 0, last);
        if (rc == 1)
            out->n_eos = 1;
        return rc < 0 ? rc : 0;
    }
    if (json_array_size(value) > n_max)
        return LL_ERR(LL_E_INVAL, "%seos_token_id lists %zu ids, at most %u are supported", where,
                      json_array_size(value), n_max);
    for (uint32_t i = 0; i < json_array_size(value); i++) {
        const json_t *id = json_array_get(value, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > last)
            return LL_ERR(LL_E_INVAL, "%seos_token_id[%u] must be an integer 0 .. %u", where, i,
                          last);
        out->eos[i] = (uint32_t)json_integer_value(id);
    }
    out->n_eos = (uint32_t)json_array_size(value);
    return 0;
}

static int read_config(struct ll_checkpoint *out, const json_t *config, const char *where)
{
    int rc = check_architecture(config, where);

    if (rc == 0)
        rc = ll_quantization_read(&out->quantization_config, config, where);
    if (rc == 0)
        rc = check_declared_dtype(config, where);
    if (rc == 0)
        rc = read_dims(&out->shape, config, where);
    if (rc == 0)
        rc = read_rope(&out->shape, config, where);
    if (rc == 0)
        rc = ll_jsonfile_u32(&out->bos, config, where, "bos_token_id", 0, out->shape.n_vocab - 1);
    if (rc >= 0)
        rc = read_end_ids(out, config, where);
    return rc;
}

/* ---- generation_config.json -------------------------------------------------------------------*/

static int read_generation(struct ll_checkpoint *out, const json_t *config, const char *where)
{
    double temperature = 1, top_p = 1, min_p = 0, repetition = 1;
    const json_t *top_k = json_object_get(config, "top_k");
    const struct {
        const char *key;
        double *out, min, max;
    } reals[] = {
        {"temperature", &temperature, 0, 2},
        {"top_p", &top_p, 1e-6, 1},
        {"min_p", &min_p, 0, 1},
        {"repetition_penalty", &repetition, 1e-6, 10},
    };

    for (size_t i = 0; i < LL_COUNT(reals); i++) {
        int rc =
            ll_jsonfile_f64(reals[i].out, config, where, reals[i].key, reals[i].min, reals[i].max);
        if (rc < 0)
            return rc;
    }
    /* -1 is another way to write "off". */
    if (!json_is_integer(top_k) || json_integer_value(top_k) != -1) {
        int rc = ll_jsonfile_u32(&out->top_k, config, where, "top_k", 0, INT32_MAX);
        if (rc < 0)
            return rc;
    }
    out->temperature = (float)temperature;
    out->top_p = (float)top_p;
    out->min_p = (float)min_p;
    out->repetition_penalty = (float)repetition;
    int rc = ll_jsonfile_u32(&out->bos, config, where, "bos_token_id", 0, out->shape.n_vocab - 1);
    return rc < 0 ? rc : read_end_ids(out, config, where);
}

/* ---- hf_quant_config.json ---------------------------------------------------------------------*/

static int read_modelopt(struct ll_checkpoint *out, const json_t *config, const char *where)
{
    if (out->quantization_config != NULL)
        return 0; /* newer exports say it in config.json, too */
    return ll_quantization_read_modelopt(&out->quantization_config, config, where);
}

/* ---- tokenizer_config.json, chat_template.jinja -----------------------------------------------*/

/* The template's text: a string, or the one called "default" in a list of {name, template}. */
static const char *find_template(const json_t *config)
{
    const json_t *value = json_object_get(config, "chat_template"), *entry;
    size_t i;

    if (json_is_string(value))
        return json_string_value(value);
    json_array_foreach(value, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name != NULL && strcmp(name, "default") == 0)
            return json_string_value(json_object_get(entry, "template"));
    }
    return NULL;
}

static int read_tokenizer_config(struct ll_checkpoint *out, const json_t *config, const char *where)
{
    const char *format = NULL, *template = find_template(config);
    int rc = ll_jsonfile_string(&format, config, where, "chat_format");

    if (rc < 0)
        return rc;
    if (format != NULL && strlen(format) >= sizeof(out->chat_format))
        return LL_ERR(LL_E_INVAL, "%schat_format is longer than %zu bytes", where,
                      sizeof(out->chat_format) - 1);
    if (format != NULL)
        snprintf(out->chat_format, sizeof(out->chat_format), "%s", format);
    if (template != NULL)
        ll_sha256_hex(out->template_sha256, template, strlen(template));
    return 0;
}

/* A template in a file of its own wins over the one in tokenizer_config.json. */
static int read_template_file(struct ll_checkpoint *out)
{
    struct place place;
    char *text;
    size_t n_text;

    set_place(&place, out, "chat_template.jinja");
    int rc = ll_file_read(&text, &n_text, place.path, TEMPLATE_BYTES_MAX);
    if (rc < 0)
        return rc == -ENOENT ? 0 : rc;
    ll_sha256_hex(out->template_sha256, text, n_text);
    free(text);
    return 0;
}

/* ---- all of them ------------------------------------------------------------------------------*/

typedef int reader(struct ll_checkpoint *out, const json_t *json, const char *where);

static int read_file(struct ll_checkpoint *out, const char *name, size_t max_bytes, reader *read,
                     bool is_optional)
{
    struct place place;
    json_t *json;

    set_place(&place, out, name);
    int rc = ll_jsonfile_read(&json, place.path, max_bytes);
    if (rc < 0)
        return rc == -ENOENT && is_optional ? 0 : rc;
    rc = read(out, json, place.where);
    json_decref(json);
    return rc;
}

static bool has_file(const struct ll_checkpoint *checkpoint, const char *name)
{
    struct place place;

    set_place(&place, checkpoint, name);
    return access(place.path, R_OK) == 0;
}

int ll_model_config_read(struct ll_checkpoint *out)
{
    out->bos = UINT32_MAX;
    out->temperature = out->top_p = out->repetition_penalty = 1.0f;

    int rc = read_file(out, "config.json", CONFIG_BYTES_MAX, read_config, false);
    if (rc == -ENOENT)
        return ll_err_prefix(rc, "not a model directory");
    if (rc == 0)
        rc = read_file(out, "hf_quant_config.json", CONFIG_BYTES_MAX, read_modelopt, true);
    if (rc == 0)
        rc = read_file(out, "generation_config.json", CONFIG_BYTES_MAX, read_generation, true);
    if (rc == 0)
        rc = read_file(out, "tokenizer_config.json", TOKENIZER_CONFIG_BYTES_MAX,
                       read_tokenizer_config, true);
    if (rc == 0)
        rc = read_template_file(out);
    out->has_tokenizer_json = has_file(out, "tokenizer.json");
    out->has_tokenizer_model = has_file(out, "tokenizer.model");
    return rc;
}
