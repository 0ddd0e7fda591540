/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/quantization.h"

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "runtime/jsonfile.h"

#include <regex.h>
#include <stdlib.h>
#include <string.h>

#define GROUPS_MAX  8u
#define ENTRIES_MAX 16384u /* names in a list: 126 layers of 7 linears, twice over */
#define PATTERN_MAX 256u
#define BLOCK       128

/* How an entry of a list is meant. All forms also name a module in full, or have "re:<regex>". */
enum list_style {
    STYLE_CLASS,  /* compressed-tensors: a class ("Linear") */
    STYLE_PREFIX, /* fbgemm, fp8: also a parent, "model.layers.0" */
    STYLE_GLOB,   /* modelopt: '*', or a parent */
};

struct group {
    const json_t *targets; /* NULL: every linear */
    struct ll_quant_scheme scheme;
};

struct ll_quantization {
    char name[32];
    json_t *document; /* what the lists point into */
    enum list_style style;
    const json_t *ignore; /* NULL: none */
    struct group group[GROUPS_MAX];
    uint32_t n_groups;
    float activation_bound;
    bool has_kv_scales;
};

/* ---- lists of modules -------------------------------------------------------------------------*/

/* A list of names; NULL where it is absent. */
static int read_list(const json_t **out, const json_t *object, const char *where, const char *key)
{
    const json_t *value = json_object_get(object, key), *entry;
    size_t i;

    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_array(value) || json_array_size(value) > ENTRIES_MAX)
        return LL_ERR(LL_E_INVAL, "%s%s must be a list of at most %u names", where, key,
                      ENTRIES_MAX);
    json_array_foreach(value, i, entry)
    {
        if (!json_is_string(entry))
            return LL_ERR(LL_E_INVAL, "%s%s[%zu] must be a string", where, key, i);
    }
    *out = value;
    return 1;
}

/* A pattern of Python's re as a POSIX one. Only what needs no back references and no counting,
 * which could take for ever; false: cannot be judged. */
static bool translate_pattern(char out[2 * PATTERN_MAX], const char *pattern)
{
    size_t n = 0;

    if (strlen(pattern) >= PATTERN_MAX || strpbrk(pattern, "{}") != NULL)
        return false;
    out[n++] = '^'; /* re.match() looks at the beginning */
    for (const char *at = pattern; *at != '\0'; at++) {
        if (at[0] == '\\' && at[1] == 'd') {
            memcpy(out + n, "[0-9]", 5);
            n += 5;
            at++;
        } else if (at[0] == '\\' && (at[1] == '\0' || (at[1] >= '0' && at[1] <= '9'))) {
            return false;
        } else if (at[0] == '\\') {
            out[n++] = *at++;
            out[n++] = *at;
        } else if (at[0] == '(' && at[1] == '?') {
            if (at[2] != ':')
                return false;
            out[n++] = '(';
            at += 2;
        } else {
            out[n++] = *at;
        }
        if (n + 6 > 2 * PATTERN_MAX)
            return false;
    }
    out[n] = '\0';
    return true;
}

static enum ll_quant_verdict match_pattern(const char *pattern, const char *module)
{
    char posix[2 * PATTERN_MAX];
    regex_t compiled;

    if (!translate_pattern(posix, pattern) ||
        regcomp(&compiled, posix, REG_EXTENDED | REG_NOSUB) != 0)
        return LL_QUANT_UNKNOWN;
    int rc = regexec(&compiled, module, 0, NULL, 0);
    regfree(&compiled);
    return rc == 0 ? LL_QUANT_YES : LL_QUANT_NO;
}

/* '*' stands for any run of characters. Never looks back further than the last '*'. */
static bool match_glob(const char *glob, const char *module)
{
    const char *star = NULL, *from = NULL;

    while (*module != '\0') {
        if (*glob == '*') {
            star = ++glob;
            from = module;
        } else if (*glob == *module || *glob == '?') {
            glob++;
            module++;
        } else if (star != NULL) {
            glob = star;
            module = ++from;
        } else {
            return false;
        }
    }
    while (*glob == '*')
        glob++;
    return *glob == '\0';
}

static bool is_parent(const char *name, const char *module)
{
    size_t n = strlen(name);

    return n > 0 && strncmp(name, module, n) == 0 && module[n] == '.';
}

static enum ll_quant_verdict match_entry(enum list_style style, const char *entry,
                                         const char *module)
{
    if (strcmp(entry, module) == 0)
        return LL_QUANT_YES;
    if (strncmp(entry, "re:", 3) == 0)
        return match_pattern(entry + 3, module);
    if (style == STYLE_CLASS)
        return strcmp(entry, "Linear") == 0 ? LL_QUANT_YES : LL_QUANT_NO;
    if (style == STYLE_GLOB && match_glob(entry, module))
        return LL_QUANT_YES;
    return is_parent(entry, module) ? LL_QUANT_YES : LL_QUANT_NO;
}

static enum ll_quant_verdict match_list(enum list_style style, const json_t *list,
                                        const char *module)
{
    enum ll_quant_verdict verdict = LL_QUANT_NO;
    const json_t *entry;
    size_t i;

    json_array_foreach(list, i, entry)
    {
        enum ll_quant_verdict one = match_entry(style, json_string_value(entry), module);
        if (one == LL_QUANT_YES)
            return one;
        if (one == LL_QUANT_UNKNOWN)
            verdict = one;
    }
    return verdict;
}

enum ll_quant_verdict ll_quantization_of(const struct ll_quantization *quantization,
                                         const char *module, struct ll_quant_scheme *scheme)
{
    enum ll_quant_verdict ignored = match_list(quantization->style, quantization->ignore, module);
    enum ll_quant_verdict best = LL_QUANT_NO;

    *scheme = quantization->group[0].scheme;
    if (ignored == LL_QUANT_YES)
        return LL_QUANT_NO;
    for (uint32_t i = 0; i < quantization->n_groups && best != LL_QUANT_YES; i++) {
        const struct group *group = &quantization->group[i];
        enum ll_quant_verdict one = group->targets == NULL
                                        ? LL_QUANT_YES
                                        : match_list(quantization->style, group->targets, module);
        if (one != LL_QUANT_NO)
            *scheme = group->scheme;
        best = one != LL_QUANT_NO ? one : best;
    }
    return best == LL_QUANT_YES && ignored == LL_QUANT_UNKNOWN ? LL_QUANT_UNKNOWN : best;
}

const char *ll_quantization_name(const struct ll_quantization *quantization)
{
    return quantization->name;
}

float ll_quantization_activation_bound(const struct ll_quantization *quantization)
{
    return quantization->activation_bound;
}

bool ll_quantization_has_kv_scales(const struct ll_quantization *quantization)
{
    return quantization->has_kv_scales;
}

/* ---- compressed-tensors -----------------------------------------------------------------------*/

/* A field that must hold one of these words, if it is there: its place in the list; -1 absent. */
static int read_word(int *out, const json_t *object, const char *where, const char *key,
                     const char *const *words, uint32_t n_words)
{
    char shown[LL_SHOWN_BYTES];
    const char *text = NULL;
    int rc = ll_jsonfile_string(&text, object, where, key);

    *out = -1;
    for (uint32_t i = 0; i < n_words && rc == 1; i++)
        if (strcmp(text, words[i]) == 0) {
            *out = (int)i;
            return 1;
        }
    if (rc == 1)
        return LL_ERR(
            LL_E_UNSUPPORTED,
            "%s%s is \"%s\"; only FP8 (e4m3) checkpoints of the usual forms are read; use "
            "another quantisation of this model, or its BF16 weights",
            where, key, ll_shown(shown, text));
    return rc;
}

/* {"num_bits": 8, "type": "float", "symmetric": true, ...}: the numbers are e4m3. */
static int check_fp8_args(const json_t *args, const char *where)
{
    static const char *const floats[] = {"float"};
    uint32_t bits = 0;
    bool is_symmetric = true;
    int type;
    int rc = ll_jsonfile_required(ll_jsonfile_u32(&bits, args, where, "num_bits", 1, 64), where,
                                  "num_bits");

    if (rc == 0)
        rc = ll_jsonfile_required(read_word(&type, args, where, "type", floats, 1), where, "type");
    if (rc == 0)
        rc = ll_jsonfile_bool(&is_symmetric, args, where, "symmetric");
    if (rc < 0)
        return rc;
    if (bits != 8 || !is_symmetric)
        return LL_ERR(LL_E_UNSUPPORTED,
                      "%snum_bits is %u, symmetric %s; only symmetric FP8 (8 bits) is read", where,
                      bits, is_symmetric ? "true" : "false");
    return 0;
}

/* [128, 128], or "128x128" in old files. */
static int check_block(const json_t *args, const char *where, const char *key)
{
    const json_t *value = json_object_get(args, key);

    if (json_is_string(value) && strcmp(json_string_value(value), "128x128") == 0)
        return 0;
    if (json_array_size(value) == 2 && json_integer_value(json_array_get(value, 0)) == BLOCK &&
        json_integer_value(json_array_get(value, 1)) == BLOCK)
        return 0;
    return LL_ERR(LL_E_UNSUPPORTED, "%s%s must be [128, 128]", where, key);
}

static int read_weights_args(struct group *group, const json_t *object, const char *where)
{
    static const char *const strategies[] = {
        [LL_QUANT_TENSOR] = "tensor", [LL_QUANT_CHANNEL] = "channel", [LL_QUANT_BLOCK] = "block"};
    char inner[320];
    const json_t *args = NULL;
    bool is_dynamic = false;
    int strategy, rc = ll_jsonfile_required(ll_jsonfile_object(&args, object, where, "weights"),
                                            where, "weights");

    if (rc < 0)
        return rc;
    snprintf(inner, sizeof(inner), "%sweights.", where);
    rc = check_fp8_args(args, inner);
    if (rc == 0)
        rc = ll_jsonfile_required(
            read_word(&strategy, args, inner, "strategy", strategies, LL_COUNT(strategies)), inner,
            "strategy");
    if (rc == 0)
        rc = ll_jsonfile_bool(&is_dynamic, args, inner, "dynamic");
    if (rc < 0)
        return rc;
    if (is_dynamic)
        return LL_ERR(LL_E_UNSUPPORTED, "%sdynamic is true; weights have stored scales", inner);
    group->scheme.kind = (enum ll_quant_kind)strategy;
    return strategy == LL_QUANT_BLOCK ? check_block(args, inner, "block_structure") : 0;
}

static int read_activation_args(struct group *group, const json_t *object, const char *where)
{
    static const char *const strategies[] = {"tensor", "token", "group"};
    char inner[320];
    const json_t *args = NULL;
    bool is_dynamic = false;
    int strategy, rc = ll_jsonfile_object(&args, object, where, "input_activations");

    if (rc <= 0)
        return rc; /* none: the weights alone are FP8 */
    snprintf(inner, sizeof(inner), "%sinput_activations.", where);
    rc = check_fp8_args(args, inner);
    if (rc == 0)
        rc = read_word(&strategy, args, inner, "strategy", strategies, LL_COUNT(strategies));
    if (rc >= 0)
        rc = ll_jsonfile_bool(&is_dynamic, args, inner, "dynamic");
    if (rc < 0)
        return rc;
    if (!is_dynamic && strategy > 0)
        return LL_ERR(LL_E_UNSUPPORTED,
                      "%sstrategy is \"%s\" and not dynamic; stored scales of "
                      "activations are one a tensor",
                      inner, strategies[strategy]);
    group->scheme.is_static = !is_dynamic;
    return 0;
}

static int read_group(struct ll_quantization *out, const json_t *object, const char *where)
{
    static const char *const formats[] = {"float-quantized", "naive-quantized"};
    struct group *group = &out->group[out->n_groups];
    const json_t *outputs = json_object_get(object, "output_activations");
    int format, rc = ll_jsonfile_required(read_list(&group->targets, object, where, "targets"),
                                          where, "targets");

    if (rc == 0)
        rc = read_word(&format, object, where, "format", formats, LL_COUNT(formats));
    if (rc >= 0)
        rc = read_weights_args(group, object, where);
    if (rc == 0)
        rc = read_activation_args(group, object, where);
    if (rc < 0)
        return rc;
    if (outputs != NULL && !json_is_null(outputs))
        return LL_ERR(LL_E_UNSUPPORTED, "%soutput_activations: quantised outputs are not supported",
                      where);
    out->n_groups++;
    return 0;
}

static int read_groups(struct ll_quantization *out, const json_t *config, const char *where)
{
    char inner[256], shown[LL_SHOWN_BYTES];
    const char *name;
    json_t *object, *groups = json_object_get(config, "config_groups");

    if (!json_is_object(groups) || json_object_size(groups) == 0 ||
        json_object_size(groups) > GROUPS_MAX)
        return LL_ERR(LL_E_INVAL, "%sconfig_groups must be an object with 1 .. %u groups", where,
                      GROUPS_MAX);
    json_object_foreach(groups, name, object)
    {
        snprintf(inner, sizeof(inner), "%sconfig_groups.%.32s.", where, ll_shown(shown, name));
        if (!json_is_object(object))
            return LL_ERR(LL_E_INVAL, "%smust be an object", inner);
        int rc = read_group(out, object, inner);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* null, or FP8 with one scale a tensor or one a head. */
static int read_kv_args(struct ll_quantization *out, const json_t *config, const char *where)
{
    static const char *const strategies[] = {"tensor", "attn_head"};
    char inner[320];
    const json_t *args = NULL;
    bool is_dynamic = false;
    int strategy, rc = ll_jsonfile_object(&args, config, where, "kv_cache_scheme");

    if (rc <= 0)
        return rc;
    snprintf(inner, sizeof(inner), "%skv_cache_scheme.", where);
    rc = check_fp8_args(args, inner);
    if (rc == 0)
        rc = read_word(&strategy, args, inner, "strategy", strategies, LL_COUNT(strategies));
    if (rc >= 0)
        rc = ll_jsonfile_bool(&is_dynamic, args, inner, "dynamic");
    out->has_kv_scales = rc >= 0 && !is_dynamic;
    return rc < 0 ? rc : 0;
}

/* Sparse or rotated weights beside the quantisation: absent, empty or "dense". */
static int check_no_more(const json_t *config, const char *where)
{
    static const char *const keys[] = {"sparsity_config", "transform_config"};
    const json_t *object = NULL;
    const char *format = NULL;

    for (size_t i = 0; i < LL_COUNT(keys); i++) {
        int rc = ll_jsonfile_object(&object, config, where, keys[i]);
        if (rc == 1 && json_object_size(object) > 0) {
            rc = ll_jsonfile_string(&format, object, where, "format");
            if (rc >= 0 && (rc == 0 || strcmp(format, "dense") != 0))
                rc = LL_ERR(LL_E_UNSUPPORTED, "%s%s: sparse or transformed weights are not read",
                            where, keys[i]);
        }
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int read_compressed(struct ll_quantization *out, const json_t *config, const char *where)
{
    static const char *const formats[] = {"float-quantized", "naive-quantized"};
    static const char *const states[] = {"compressed", "frozen"};
    int word, rc = read_word(&word, config, where, "format", formats, LL_COUNT(formats));

    out->style = STYLE_CLASS;
    if (rc >= 0)
        rc = read_word(&word, config, where, "quantization_status", states, LL_COUNT(states));
    if (rc >= 0)
        rc = check_no_more(config, where);
    if (rc >= 0)
        rc = read_list(&out->ignore, config, where, "ignore");
    if (rc >= 0)
        rc = read_kv_args(out, config, where);
    return rc < 0 ? rc : read_groups(out, config, where);
}

/* ---- the others -------------------------------------------------------------------------------*/

static int read_fbgemm(struct ll_quantization *out, const json_t *config, const char *where)
{
    double bound = 0;
    int rc = ll_jsonfile_f64(&bound, config, where, "activation_scale_ub", 1e-6, 1e30);

    out->style = STYLE_PREFIX;
    out->activation_bound = (float)bound;
    out->group[out->n_groups++].scheme.kind = LL_QUANT_CHANNEL;
    if (rc >= 0)
        rc = read_list(&out->ignore, config, where, "modules_to_not_convert");
    return rc < 0 ? rc : 0;
}

/* AutoFP8, or DeepSeek's blocks. */
static int read_fp8(struct ll_quantization *out, const json_t *config, const char *where)
{
    static const char *const schemes[] = {"static", "dynamic"}, *const formats[] = {"e4m3"};
    const json_t *block = json_object_get(config, "weight_block_size");
    struct ll_quant_scheme *scheme = &out->group[out->n_groups++].scheme;
    int word,
        rc = ll_jsonfile_required(read_word(&word, config, where, "activation_scheme", schemes, 2),
                                  where, "activation_scheme");

    out->style = STYLE_PREFIX;
    scheme->is_static = rc == 0 && word == 0;
    if (rc == 0 && block != NULL && !json_is_null(block)) {
        rc = check_block(config, where, "weight_block_size");
        scheme->kind = LL_QUANT_BLOCK;
        if (rc == 0 && scheme->is_static)
            rc = LL_ERR(LL_E_UNSUPPORTED,
                        "%sactivation_scheme is \"static\" with "
                        "weight_block_size; blocks go with \"dynamic\"",
                        where);
    }
    if (rc == 0)
        rc = read_word(&word, config, where, "fmt", formats, 1);
    if (rc >= 0)
        rc = read_word(&word, config, where, "kv_cache_scheme", schemes, 1);
    if (rc >= 0) {
        out->has_kv_scales = word == 0;
        rc = read_list(&out->ignore, config, where, "ignored_layers");
    }
    if (rc == 0)
        rc = read_list(&out->ignore, config, where, "modules_to_not_convert");
    return rc < 0 ? rc : 0;
}

/* The fields of hf_quant_config.json's "quantization", or of quantization_config with quant_method
 * "modelopt": the same under other names. */
static int read_modelopt(struct ll_quantization *out, const json_t *config, const char *where)
{
    static const char *const algorithms[] = {"FP8", "FP8_PER_CHANNEL_PER_TOKEN"};
    static const char *const kv[] = {"FP8"};
    struct ll_quant_scheme *scheme = &out->group[out->n_groups++].scheme;
    int algorithm, word;
    int rc = ll_jsonfile_required(read_word(&algorithm, config, where, "quant_algo", algorithms, 2),
                                  where, "quant_algo");

    out->style = STYLE_GLOB;
    if (rc == 0) {
        scheme->kind = algorithm == 0 ? LL_QUANT_TENSOR : LL_QUANT_CHANNEL;
        scheme->is_static = algorithm == 0;
        rc = read_word(&word, config, where, "kv_cache_quant_algo", kv, 1);
    }
    if (rc == 1)
        out->has_kv_scales = true;
    else if (rc == 0)
        rc = read_kv_args(out, config, where);
    if (rc >= 0)
        rc = read_list(&out->ignore, config, where, "exclude_modules");
    if (rc == 0)
        rc = read_list(&out->ignore, config, where, "ignore");
    return rc < 0 ? rc : 0;
}

/* ---- which of them ----------------------------------------------------------------------------*/

typedef int reader(struct ll_quantization *out, const json_t *config, const char *where);

static int read_as(struct ll_quantization **out, const json_t *config, const char *where,
                   const char *name, reader *read)
{
    struct ll_quantization *made = calloc(1, sizeof(*made));

    if (made == NULL)
        return LL_ERR(-ENOMEM, "%sno memory", where);
    snprintf(made->name, sizeof(made->name), "%s", name);
    made->document = json_incref((json_t *)config);
    int rc = read(made, config, where);
    if (rc < 0) {
        ll_quantization_free(made);
        return rc;
    }
    *out = made;
    return 0;
}

static int read_method(struct ll_quantization **out, const json_t *object, const char *where)
{
    static const struct {
        const char *name;
        reader *read;
    } methods[] = {
        {"compressed-tensors", read_compressed},
        {"fbgemm_fp8", read_fbgemm},
        {"modelopt", read_modelopt},
        {"fp8", read_fp8},
    };
    char shown[LL_SHOWN_BYTES];
    const char *method = NULL;
    int rc = ll_jsonfile_required(ll_jsonfile_string(&method, object, where, "quant_method"), where,
                                  "quant_method");

    if (rc < 0)
        return rc;
    for (size_t i = 0; i < LL_COUNT(methods); i++)
        if (strcmp(method, methods[i].name) == 0)
            return read_as(out, object, where, method, methods[i].read);
    return LL_ERR(LL_E_UNSUPPORTED,
                  "%squant_method is \"%s\"; compressed-tensors, fbgemm_fp8, modelopt and fp8 are "
                  "read (all FP8): use such a quantisation of this model, or its BF16 weights",
                  where, ll_shown(shown, method));
}

int ll_quantization_read(struct ll_quantization **out, const json_t *config, const char *where)
{
    static const char *const keys[] = {"quantization_config", "compression_config"};
    char inner[320];

    *out = NULL;
    for (size_t i = 0; i < LL_COUNT(keys); i++) {
        const json_t *object = NULL;
        int rc = ll_jsonfile_object(&object, config, where, keys[i]);
        if (rc < 0)
            return rc;
        if (rc == 0)
            continue;
        snprintf(inner, sizeof(inner), "%s%s.", where, keys[i]);
        return read_method(out, object, inner);
    }
    return 0;
}

int ll_quantization_read_modelopt(struct ll_quantization **out, const json_t *config,
                                  const char *where)
{
    char inner[320];
    const json_t *object = NULL;
    int rc = ll_jsonfile_required(ll_jsonfile_object(&object, config, where, "quantization"), where,
                                  "quantization");

    *out = NULL;
    if (rc < 0)
        return rc;
    snprintf(inner, sizeof(inner), "%squantization.", where);
    return read_as(out, object, inner, "modelopt", read_modelopt);
}

void ll_quantization_free(struct ll_quantization *quantization)
{
    if (quantization == NULL)
        return;
    json_decref(quantization->document);
    free(quantization);
}
