/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/weights_impl.h"

#include <stdio.h>

static const char *const role_names[LL_TENSOR_ROLES] = {
    [LL_TENSOR_EMBED] = "embed_tokens",
    [LL_TENSOR_ATTN_NORM] = "input_layernorm",
    [LL_TENSOR_Q] = "self_attn.q_proj",
    [LL_TENSOR_K] = "self_attn.k_proj",
    [LL_TENSOR_V] = "self_attn.v_proj",
    [LL_TENSOR_O] = "self_attn.o_proj",
    [LL_TENSOR_FFN_NORM] = "post_attention_layernorm",
    [LL_TENSOR_GATE] = "mlp.gate_proj",
    [LL_TENSOR_UP] = "mlp.up_proj",
    [LL_TENSOR_DOWN] = "mlp.down_proj",
    [LL_TENSOR_FINAL_NORM] = "norm",
    [LL_TENSOR_HEAD] = "lm_head",
};

const char *const ll_cpu_dtype_names[] = {"?", "F32", "BF16", "F16", "F8_E4M3"};

struct ll_cpu_name ll_cpu_tensor_name(enum ll_tensor_role role, uint32_t layer, uint32_t place)
{
    static const char *const parts[LL_CPU_PARTS] = {"", " (scale)", " (scale of the cache)"};
    const char *part = parts[place];
    struct ll_cpu_name name;

    if (role == LL_TENSOR_EMBED || role == LL_TENSOR_FINAL_NORM || role == LL_TENSOR_HEAD)
        snprintf(name.s, sizeof(name.s), "%s%s", role_names[role], part);
    else
        snprintf(name.s, sizeof(name.s), "layers.%u.%s%s", layer, role_names[role], part);
    return name;
}

void ll_cpu_tensor_shape(const struct ll_model_shape *shape, enum ll_tensor_role role,
                         uint32_t *rows, uint32_t *cols)
{
    uint32_t q = shape->n_heads * shape->head_dim, kv = shape->n_kv_heads * shape->head_dim;

    *cols = shape->n_embd;
    switch (role) {
    case LL_TENSOR_EMBED:
    case LL_TENSOR_HEAD:
        *rows = shape->n_vocab;
        return;
    case LL_TENSOR_Q:
        *rows = q;
        return;
    case LL_TENSOR_K:
    case LL_TENSOR_V:
        *rows = kv;
        return;
    case LL_TENSOR_O:
        *rows = shape->n_embd;
        *cols = q;
        return;
    case LL_TENSOR_GATE:
    case LL_TENSOR_UP:
        *rows = shape->n_ff;
        return;
    case LL_TENSOR_DOWN:
        *rows = shape->n_embd;
        *cols = shape->n_ff;
        return;
    default:
        *rows = 1;
        return;
    }
}

bool ll_cpu_has_tensor(const struct ll_cpu_weights *weights, enum ll_tensor_role role,
                       uint32_t layer)
{
    const struct ll_model_shape *shape = &weights->shape;

    if (weights->is_follower && (!ll_cpu_is_linear(role) || role == LL_TENSOR_HEAD))
        return false;
    if (role == LL_TENSOR_HEAD && shape->is_tied)
        return false;
    return ll_cpu_is_per_layer(role) ? layer < shape->n_layers : layer == 0;
}

int ll_cpu_weights_open(struct ll_cpu_weights *weights, const struct ll_model_shape *shape,
                        enum ll_dtype compute, int numa_node, struct ll_text *error)
{
    *weights = (struct ll_cpu_weights){.shape = *shape, .compute = compute, .numa_node = numa_node};
    weights->tensor = calloc(ll_cpu_n_entries(weights), sizeof(*weights->tensor));
    if (weights->tensor == NULL)
        return ll_cpu_fail(error, -ENOMEM, "no memory for a table of %u layers", shape->n_layers);
    return 0;
}

void ll_cpu_weights_close(struct ll_cpu_weights *weights)
{
    if (weights->tensor == NULL)
        return;
    for (size_t i = 0; i < ll_cpu_n_entries(weights); i++) {
        struct ll_cpu_tensor *t = &weights->tensor[i];
        ll_cpu_unmap(t->data, t->data_bytes);
        free(t->scale);
        free(t->got);
        free(t->split);
    }
    free(weights->tensor);
    free(weights->kv_scale);
    weights->tensor = NULL;
    weights->kv_scale = NULL;
}

/* The dims and type that a tensor may have. */
static int check_weight(const struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                        const char *name, struct ll_text *error)
{
    uint32_t rows, cols;

    if (tensor->dtype == LL_DTYPE_E4M3 && !ll_cpu_is_linear(tensor->role))
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "%s: FP8 (e4m3) is for linear layers, not for this one", name);
    ll_cpu_tensor_shape(&weights->shape, tensor->role, &rows, &cols);
    if (tensor->rows != rows || tensor->cols != cols)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: is [%u, %u], the model's shape needs [%u, %u]",
                           name, tensor->rows, tensor->cols, rows, cols);
    return 0;
}

/* W5: [1, 1], [out, 1] or [ceil(out / 128), ceil(in / 128)]. */
static int check_scale(const struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                       const char *name, struct ll_text *error)
{
    uint32_t out, in;

    if (!ll_cpu_is_linear(tensor->role) || tensor->dtype == LL_DTYPE_E4M3)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "%s: scales are BF16, F16 or F32 numbers of linear layers", name);
    ll_cpu_tensor_shape(&weights->shape, tensor->role, &out, &in);
    uint32_t rows = (uint32_t)ll_div_ceil(out, LL_CPU_SCALE_COLS),
             cols = (uint32_t)ll_div_ceil(in, LL_CPU_SCALE_COLS);
    if ((tensor->cols == 1 && (tensor->rows == 1 || tensor->rows == out)) ||
        (tensor->rows == rows && tensor->cols == cols))
        return 0;
    return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                       "%s: is [%u, %u]; scales can be [1, 1], [%u, 1] or [%u, %u] here", name,
                       tensor->rows, tensor->cols, out, rows, cols);
}

/* W6: [1, 1] or [kv heads, 1]. */
static int check_kv_scale(const struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                          const char *name, struct ll_text *error)
{
    if ((tensor->role == LL_TENSOR_K || tensor->role == LL_TENSOR_V) &&
        tensor->dtype != LL_DTYPE_E4M3 && tensor->cols == 1 &&
        (tensor->rows == 1 || tensor->rows == weights->shape.n_kv_heads))
        return 0;
    return ll_cpu_fail(
        error, LL_E_UNSUPPORTED,
        "%s: is [%u, %u]; the cache's scales are 1 or %u (KV heads) numbers of K and V", name,
        tensor->rows, tensor->cols, weights->shape.n_kv_heads);
}

int ll_cpu_weights_want(const struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                        struct ll_span *spans, uint32_t n_max, struct ll_text *error)
{
    const struct ll_model_shape *shape = &weights->shape;
    const uint32_t place = ll_cpu_place_of(tensor);

    if ((unsigned)tensor->role >= LL_TENSOR_ROLES)
        return ll_cpu_fail(error, LL_E_INVAL, "tensor role %d does not exist", (int)tensor->role);
    struct ll_cpu_name name = ll_cpu_tensor_name(tensor->role, tensor->layer, place);
    if (ll_cpu_is_per_layer(tensor->role) ? tensor->layer >= shape->n_layers : tensor->layer != 0)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: the model has %u layers", name.s,
                           shape->n_layers);
    if (tensor->part == LL_PART_INPUT_SCALE || (place == LL_CPU_KV_SCALE && !weights->has_fp8_kv))
        return 0; /* activations stay as they are, pages hold BF16 or F32: nothing to scale */
    if (tensor->dtype < LL_DTYPE_F32 || tensor->dtype > LL_DTYPE_E4M3)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED, "%s: dtype %d is not BF16, F16, F32 or F8_E4M3",
                           name.s, (int)tensor->dtype);
    if (!ll_cpu_has_tensor(weights, tensor->role, tensor->layer))
        return 0;
    int rc = place == LL_CPU_SCALE      ? check_scale(weights, tensor, name.s, error)
             : place == LL_CPU_KV_SCALE ? check_kv_scale(weights, tensor, name.s, error)
                                        : check_weight(weights, tensor, name.s, error);
    if (rc < 0)
        return rc;
    uint64_t size = (uint64_t)tensor->rows * tensor->cols * ll_dtype_bytes(tensor->dtype);
    if (tensor->size_bytes != size)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: %llu bytes, [%u, %u] of %s are %llu", name.s,
                           (unsigned long long)tensor->size_bytes, tensor->rows, tensor->cols,
                           ll_cpu_dtype_names[tensor->dtype], (unsigned long long)size);
    if (n_max < 1)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: room for no span", name.s);
    spans[0] = (struct ll_span){.offset = 0, .size_bytes = size, .rank = 0};
    return 1;
}

uint64_t ll_cpu_weights_bytes(const struct ll_model_shape *shape)
{
    const struct ll_cpu_weights all = {.shape = *shape};
    uint64_t total = 0;

    for (uint32_t layer = 0; layer < shape->n_layers; layer++) {
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            uint32_t rows, cols;
            if (!ll_cpu_has_tensor(&all, role, layer))
                continue;
            ll_cpu_tensor_shape(shape, role, &rows, &cols);
            total += (uint64_t)rows * ll_align_up(cols, 16) * (ll_cpu_is_vector(role) ? 4 : 2);
        }
    }
    return total;
}
