/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/tensor_names.h"

#include "base/bits.h"

#include <stdio.h>
#include <string.h>

#define LAYER_PREFIX "model.layers."

/* Modules by role; "model.layers.N." in front of those with is_layer. */
static const struct {
    const char *name;
    bool is_layer;
} modules[LL_TENSOR_ROLES] = {
    [LL_TENSOR_EMBED] = {"model.embed_tokens", false},
    [LL_TENSOR_ATTN_NORM] = {"input_layernorm", true},
    [LL_TENSOR_Q] = {"self_attn.q_proj", true},
    [LL_TENSOR_K] = {"self_attn.k_proj", true},
    [LL_TENSOR_V] = {"self_attn.v_proj", true},
    [LL_TENSOR_O] = {"self_attn.o_proj", true},
    [LL_TENSOR_FFN_NORM] = {"post_attention_layernorm", true},
    [LL_TENSOR_GATE] = {"mlp.gate_proj", true},
    [LL_TENSOR_UP] = {"mlp.up_proj", true},
    [LL_TENSOR_DOWN] = {"mlp.down_proj", true},
    [LL_TENSOR_FINAL_NORM] = {"model.norm", false},
    [LL_TENSOR_HEAD] = {"lm_head", false},
};

/* Leaves of a linear's module. */
static const struct {
    const char *name;
    enum ll_tensor_part part;
    bool is_inverse_named;
} leaves[] = {
    {"weight", LL_PART_WEIGHT, false},
    {"weight_scale", LL_PART_SCALE, false},
    {"weight_scale_inv", LL_PART_SCALE, true},
    {"input_scale", LL_PART_INPUT_SCALE, false},
};

/* The KV cache's scales, behind "model.layers.N.": by who wrote the checkpoint. */
static const struct {
    const char *name;
    enum ll_tensor_role role;
    bool is_both;
} kv_scales[] = {
    {"self_attn.k_scale", LL_TENSOR_K, false}, /* compressed-tensors, AutoFP8 */
    {"self_attn.v_scale", LL_TENSOR_V, false},
    {"self_attn.kv_scale", LL_TENSOR_K, true},        /* AutoFP8, the first version */
    {"self_attn.k_proj.k_scale", LL_TENSOR_K, false}, /* modelopt */
    {"self_attn.v_proj.v_scale", LL_TENSOR_V, false},
    {"self_attn.k_proj.output_scale", LL_TENSOR_K, false}, /* compressed-tensors, old */
    {"self_attn.v_proj.output_scale", LL_TENSOR_V, false},
};

/* Tables of old converters; zero points of symmetric quantisation, which are zero. */
static const char *const unused[] = {".rotary_emb.inv_freq", ".weight_zero_point",
                                     ".input_zero_point"};

bool ll_tensor_is_per_layer(enum ll_tensor_role role)
{
    return modules[role].is_layer;
}

bool ll_tensor_is_vector(enum ll_tensor_role role)
{
    return role == LL_TENSOR_ATTN_NORM || role == LL_TENSOR_FFN_NORM ||
           role == LL_TENSOR_FINAL_NORM;
}

bool ll_tensor_is_linear(enum ll_tensor_role role)
{
    return modules[role].is_layer && !ll_tensor_is_vector(role);
}

void ll_tensor_module(char out[LL_TENSOR_NAME_BYTES], enum ll_tensor_role role, uint32_t layer)
{
    if (modules[role].is_layer)
        snprintf(out, LL_TENSOR_NAME_BYTES, LAYER_PREFIX "%u.%s", layer, modules[role].name);
    else
        snprintf(out, LL_TENSOR_NAME_BYTES, "%s", modules[role].name);
}

void ll_tensor_weight(char out[LL_TENSOR_NAME_BYTES], enum ll_tensor_role role, uint32_t layer)
{
    ll_tensor_module(out, role, layer);
    strcat(out, ".weight");
}

void ll_tensor_dims(const struct ll_model_shape *shape, enum ll_tensor_role role, uint32_t *rows,
                    uint32_t *cols)
{
    const uint32_t q = shape->n_heads * shape->head_dim, kv = shape->n_kv_heads * shape->head_dim,
                   e = shape->n_embd, f = shape->n_ff, v = shape->n_vocab;
    const uint32_t dims[LL_TENSOR_ROLES][2] = {
        [LL_TENSOR_EMBED] = {v, e},    [LL_TENSOR_ATTN_NORM] = {1, e},  [LL_TENSOR_Q] = {q, e},
        [LL_TENSOR_K] = {kv, e},       [LL_TENSOR_V] = {kv, e},         [LL_TENSOR_O] = {e, q},
        [LL_TENSOR_FFN_NORM] = {1, e}, [LL_TENSOR_GATE] = {f, e},       [LL_TENSOR_UP] = {f, e},
        [LL_TENSOR_DOWN] = {e, f},     [LL_TENSOR_FINAL_NORM] = {1, e}, [LL_TENSOR_HEAD] = {v, e},
    };

    *rows = dims[role][0];
    *cols = dims[role][1];
}

/* "model.layers.12." in front of name: the layer and what follows. False: not so, or no such layer.
 * A number has one spelling. */
static bool split_layer(const char *name, uint32_t n_layers, uint32_t *layer, const char **rest)
{
    const char *digits = name + strlen(LAYER_PREFIX), *at = digits;
    uint64_t n = 0;

    for (; *at >= '0' && *at <= '9' && n < UINT32_MAX; at++)
        n = n * 10 + (uint64_t)(*at - '0');
    if (at == digits || *at != '.' || (*digits == '0' && at > digits + 1) || n >= n_layers)
        return false;
    *layer = (uint32_t)n;
    *rest = at + 1;
    return true;
}

static bool find_leaf(struct ll_tensor_id *out, const char *leaf)
{
    for (size_t i = 0; i < LL_COUNT(leaves); i++)
        if (strcmp(leaf, leaves[i].name) == 0) {
            out->part = leaves[i].part;
            out->is_inverse_named = leaves[i].is_inverse_named;
            return out->part == LL_PART_WEIGHT || ll_tensor_is_linear(out->role) ||
                   out->role == LL_TENSOR_HEAD;
        }
    return false;
}

enum ll_tensor_found ll_tensor_find(struct ll_tensor_id *out, const char *name, uint32_t n_layers)
{
    const char *rest = name;
    const bool is_layer = strncmp(name, LAYER_PREFIX, strlen(LAYER_PREFIX)) == 0;

    *out = (struct ll_tensor_id){0};
    for (size_t i = 0; i < LL_COUNT(unused); i++)
        if (strlen(name) >= strlen(unused[i]) &&
            strcmp(name + strlen(name) - strlen(unused[i]), unused[i]) == 0)
            return LL_TENSOR_UNUSED;
    if (is_layer && !split_layer(name, n_layers, &out->layer, &rest))
        return LL_TENSOR_UNKNOWN;
    for (size_t i = 0; i < LL_COUNT(kv_scales) && is_layer; i++)
        if (strcmp(rest, kv_scales[i].name) == 0) {
            out->role = kv_scales[i].role;
            out->part = LL_PART_KV_SCALE;
            out->is_both = kv_scales[i].is_both;
            return LL_TENSOR_FOUND;
        }
    for (uint32_t role = 0; role < LL_TENSOR_ROLES; role++) {
        const size_t n = strlen(modules[role].name);
        if (modules[role].is_layer != is_layer || strncmp(rest, modules[role].name, n) != 0 ||
            rest[n] != '.')
            continue;
        out->role = (enum ll_tensor_role)role;
        return find_leaf(out, rest + n + 1) ? LL_TENSOR_FOUND : LL_TENSOR_UNKNOWN;
    }
    return LL_TENSOR_UNKNOWN;
}
