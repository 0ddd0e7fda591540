/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/weights.h"
#include "base/bits.h"
#include "base/rng.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/numbers.h"
#include "ll/client.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static const char *const dtype_names[] = {"?", "F32", "BF16", "F16", "F8_E4M3"};

struct name {
    char s[64];
};

static struct name name_of(enum ll_tensor_role role, uint32_t layer)
{
    struct name name;

    if (role == LL_TENSOR_EMBED || role == LL_TENSOR_FINAL_NORM || role == LL_TENSOR_HEAD)
        snprintf(name.s, sizeof(name.s), "%s", role_names[role]);
    else
        snprintf(name.s, sizeof(name.s), "layers.%u.%s", layer, role_names[role]);
    return name;
}

static bool is_per_layer(enum ll_tensor_role role)
{
    return role != LL_TENSOR_EMBED && role != LL_TENSOR_FINAL_NORM && role != LL_TENSOR_HEAD;
}

static bool is_vector(enum ll_tensor_role role)
{
    return role == LL_TENSOR_ATTN_NORM || role == LL_TENSOR_FFN_NORM ||
           role == LL_TENSOR_FINAL_NORM;
}

static void shape_of(const struct ll_model_shape *shape, enum ll_tensor_role role, uint32_t *rows,
                     uint32_t *cols)
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

/* Roles that the model has; for the ones without a layer, layer is 0. */
static bool has_tensor(const struct ll_model_shape *shape, enum ll_tensor_role role, uint32_t layer)
{
    if (role == LL_TENSOR_HEAD && shape->is_tied)
        return false;
    return is_per_layer(role) ? layer < shape->n_layers : layer == 0;
}

int ll_cpu_weights_open(struct ll_cpu_weights *weights, const struct ll_model_shape *shape,
                        enum ll_dtype compute, int numa_node, struct ll_text *error)
{
    uint32_t n_layers = shape->n_layers > 0 ? shape->n_layers : 1;

    *weights = (struct ll_cpu_weights){.shape = *shape, .compute = compute, .numa_node = numa_node};
    weights->tensor = calloc((size_t)n_layers * LL_TENSOR_ROLES, sizeof(*weights->tensor));
    if (weights->tensor == NULL)
        return ll_cpu_fail(error, -ENOMEM, "no memory for a table of %u layers", n_layers);
    return 0;
}

void ll_cpu_weights_close(struct ll_cpu_weights *weights)
{
    uint32_t n_layers = weights->shape.n_layers > 0 ? weights->shape.n_layers : 1;

    if (weights->tensor == NULL)
        return;
    for (size_t i = 0; i < (size_t)n_layers * LL_TENSOR_ROLES; i++) {
        struct ll_cpu_tensor *t = &weights->tensor[i];
        ll_cpu_unmap(t->data, t->data_bytes);
        free(t->got);
        free(t->split);
    }
    free(weights->tensor);
    weights->tensor = NULL;
}

int ll_cpu_weights_want(const struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                        struct ll_span *spans, uint32_t n_max, struct ll_text *error)
{
    const struct ll_model_shape *shape = &weights->shape;
    uint32_t rows, cols;

    if ((unsigned)tensor->role >= LL_TENSOR_ROLES)
        return ll_cpu_fail(error, LL_E_INVAL, "tensor role %d does not exist", (int)tensor->role);
    struct name name = name_of(tensor->role, tensor->layer);
    if (is_per_layer(tensor->role) ? tensor->layer >= shape->n_layers : tensor->layer != 0)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: the model has %u layers", name.s,
                           shape->n_layers);
    if (tensor->part == LL_PART_KV_SCALE)
        return 0; /* pages hold BF16 or F32 here: nothing to scale */
    if (tensor->part != LL_PART_WEIGHT || tensor->dtype == LL_DTYPE_E4M3)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "%s: the cpu backend takes BF16, F16 and F32 weights, not FP8 (e4m3) "
                           "with scales; use the checkpoint in BF16",
                           name.s);
    if (tensor->dtype != LL_DTYPE_BF16 && tensor->dtype != LL_DTYPE_F16 &&
        tensor->dtype != LL_DTYPE_F32)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED, "%s: dtype %d is not BF16, F16 or F32", name.s,
                           (int)tensor->dtype);
    if (!has_tensor(shape, tensor->role, tensor->layer))
        return 0;
    shape_of(shape, tensor->role, &rows, &cols);
    if (tensor->rows != rows || tensor->cols != cols)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: is [%u, %u], the model's shape needs [%u, %u]",
                           name.s, tensor->rows, tensor->cols, rows, cols);
    uint64_t size = (uint64_t)rows * cols * ll_dtype_bytes(tensor->dtype);
    if (tensor->size_bytes != size)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: %llu bytes, [%u, %u] of %s are %llu", name.s,
                           (unsigned long long)tensor->size_bytes, rows, cols,
                           dtype_names[tensor->dtype], (unsigned long long)size);
    if (n_max < 1)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: room for no span", name.s);
    spans[0] = (struct ll_span){.offset = 0, .size_bytes = size, .rank = 0};
    return 1;
}

/* Gives the tensor its memory. */
static int make_room(const struct ll_cpu_weights *weights, struct ll_cpu_tensor *t,
                     enum ll_tensor_role role, enum ll_dtype dtype, struct ll_text *error)
{
    bool is_bf16 = dtype == LL_DTYPE_BF16 || weights->compute == LL_DTYPE_BF16;

    t->m.form = is_bf16 && !is_vector(role) ? LL_FORM_BF16 : LL_FORM_F32; /* W2 */
    shape_of(&weights->shape, role, &t->m.rows, &t->m.cols);
    t->m.stride = (uint32_t)ll_align_up(t->m.cols, 16);
    size_t bytes = (size_t)t->m.rows * t->m.stride * ll_cpu_form_bytes(t->m.form);
    if (t->data != NULL && t->data_bytes != bytes) { /* reload in another dtype */
        ll_cpu_unmap(t->data, t->data_bytes);
        t->data = NULL;
    }
    if (t->data == NULL)
        t->data = ll_cpu_map(bytes, weights->numa_node);
    if (t->data == NULL)
        return ll_cpu_fail(error, -ENOMEM, "no memory for a weight of %zu MiB", bytes >> 20);
    t->data_bytes = bytes;
    t->m.data = t->data;
    t->dtype = dtype;
    return 0;
}

/* ---- what has come (W3) ------------------------------------------------------------------------
 */
/* Adds [begin, end) and merges it with what it touches. */
static int note_range(struct ll_cpu_tensor *t, uint64_t begin, uint64_t end)
{
    uint32_t at = 0;

    while (at < t->n_got && t->got[at].end < begin)
        at++;
    uint32_t last = at;
    for (; last < t->n_got && t->got[last].begin <= end; last++) {
        begin = ll_min_u64(begin, t->got[last].begin);
        end = ll_max_u64(end, t->got[last].end);
    }
    if (last == at && t->n_got == t->n_got_max) {
        uint32_t n_max = t->n_got_max * 2 + 8;
        struct ll_cpu_range *grown = realloc(t->got, n_max * sizeof(*grown));
        if (grown == NULL)
            return -ENOMEM;
        t->got = grown;
        t->n_got_max = n_max;
    }
    memmove(t->got + at + 1, t->got + last, (t->n_got - last) * sizeof(*t->got));
    t->n_got = t->n_got - (last - at) + 1;
    t->got[at] = (struct ll_cpu_range){begin, end};
    return 0;
}

static float widen(const uint8_t *bytes, enum ll_dtype dtype)
{
    uint16_t half;
    float full;

    memcpy(&half, bytes, sizeof(half));
    if (dtype == LL_DTYPE_BF16)
        return ll_f32_from_bf16(half);
    if (dtype == LL_DTYPE_F16)
        return ll_f32_from_f16(half);
    memcpy(&full, bytes, sizeof(full));
    return full;
}

static void put_number(struct ll_cpu_tensor *t, uint64_t index, float value)
{
    size_t at = (size_t)(index / t->m.cols) * t->m.stride + (size_t)(index % t->m.cols);

    if (t->m.form == LL_FORM_BF16)
        ((uint16_t *)t->data)[at] = ll_bf16_from_f32(value);
    else
        ((float *)t->data)[at] = value;
}

/* Keeps bytes of a number that a piece's edge cuts; stores the number when it is whole. */
static int put_split(struct ll_cpu_tensor *t, uint64_t index, uint32_t first, const uint8_t *bytes,
                     uint32_t n)
{
    const uint32_t width = ll_dtype_bytes(t->dtype);
    uint32_t i = 0;

    while (i < t->n_split && t->split[i].index != index)
        i++;
    if (i == t->n_split) {
        if (t->n_split == t->n_split_max) {
            uint32_t n_max = t->n_split_max * 2 + 8;
            struct ll_cpu_split *grown = realloc(t->split, n_max * sizeof(*grown));
            if (grown == NULL)
                return -ENOMEM;
            t->split = grown;
            t->n_split_max = n_max;
        }
        t->split[t->n_split++] = (struct ll_cpu_split){.index = index};
    }
    struct ll_cpu_split *split = &t->split[i];
    for (uint32_t b = 0; b < n; b++) {
        split->bytes[first + b] = bytes[b];
        split->mask |= (uint8_t)(1u << (first + b));
    }
    if (split->mask == (1u << width) - 1) {
        put_number(t, index, widen(split->bytes, t->dtype));
        *split = t->split[--t->n_split];
    }
    return 0;
}

/* Whole numbers [index, index + n). */
static void put_numbers(struct ll_cpu_tensor *t, uint64_t index, const uint8_t *bytes, uint64_t n)
{
    const uint32_t width = ll_dtype_bytes(t->dtype);
    const bool is_copy = (t->dtype == LL_DTYPE_BF16 && t->m.form == LL_FORM_BF16) ||
                         (t->dtype == LL_DTYPE_F32 && t->m.form == LL_FORM_F32);

    if (!is_copy) {
        for (uint64_t i = 0; i < n; i++)
            put_number(t, index + i, widen(bytes + i * width, t->dtype));
        return;
    }
    while (n > 0) { /* row by row: the rows here are padded */
        uint64_t row = index / t->m.cols, col = index % t->m.cols;
        uint64_t run = ll_min_u64(n, t->m.cols - col);
        memcpy((uint8_t *)t->data + (row * t->m.stride + col) * width, bytes, run * width);
        index += run;
        bytes += run * width;
        n -= run;
    }
}

int ll_cpu_weights_feed(struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                        uint64_t offset, const void *data, size_t n_bytes, struct ll_text *error)
{
    struct ll_span span;
    int rc = ll_cpu_weights_want(weights, tensor, &span, 1, error);

    if (rc < 0)
        return rc;
    struct name name = name_of(tensor->role, tensor->layer);
    if (rc == 0)
        return ll_cpu_fail(error, LL_E_INVAL, "%s was fed but is not wanted", name.s);
    if (!ll_span_fits(offset, n_bytes, span.size_bytes))
        return ll_cpu_fail(error, LL_E_INVAL, "%s: bytes %llu + %zu lie past its end at %llu",
                           name.s, (unsigned long long)offset, n_bytes,
                           (unsigned long long)span.size_bytes);
    if (n_bytes == 0)
        return 0;
    if (weights->is_sealed) { /* a reload into this set: what it held counts no more */
        weights->is_sealed = false;
        for (size_t i = 0; i < (size_t)weights->shape.n_layers * LL_TENSOR_ROLES; i++) {
            weights->tensor[i].n_got = weights->tensor[i].n_split = 0;
            weights->tensor[i].dtype = 0;
        }
    }

    struct ll_cpu_tensor *t = &weights->tensor[tensor->layer * LL_TENSOR_ROLES + tensor->role];
    if (t->dtype == 0)
        rc = make_room(weights, t, tensor->role, tensor->dtype, error);
    else if (t->dtype != tensor->dtype)
        rc = ll_cpu_fail(error, LL_E_INVAL, "%s came as %s and as %s", name.s,
                         dtype_names[t->dtype], dtype_names[tensor->dtype]);
    if (rc < 0)
        return rc;

    const uint32_t width = ll_dtype_bytes(t->dtype);
    const uint8_t *bytes = data;
    uint64_t at = offset, end = offset + n_bytes;
    rc = note_range(t, offset, end);
    if (rc == 0 && at % width != 0) { /* the tail of a number that another piece begins */
        uint32_t n = (uint32_t)ll_min_u64(width - at % width, end - at);
        rc = put_split(t, at / width, (uint32_t)(at % width), bytes, n);
        at += n;
        bytes += n;
    }
    if (rc == 0 && end > at) {
        uint64_t n = (end - at) / width;
        put_numbers(t, at / width, bytes, n);
        at += n * width;
        bytes += n * width;
        if (end > at)
            rc = put_split(t, at / width, 0, bytes, (uint32_t)(end - at));
    }
    if (rc < 0)
        return ll_cpu_fail(error, rc, "%s: no memory to note what has come", name.s);
    return 0;
}

int ll_cpu_weights_seal(struct ll_cpu_weights *weights, struct ll_text *error)
{
    struct ll_text missing = {""};
    uint32_t n_missing = 0;

    for (uint32_t layer = 0; layer < weights->shape.n_layers; layer++) {
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            if (!has_tensor(&weights->shape, role, layer))
                continue;
            const struct ll_cpu_tensor *t = &weights->tensor[layer * LL_TENSOR_ROLES + role];
            uint64_t size = (uint64_t)t->m.rows * t->m.cols * ll_dtype_bytes(t->dtype);
            if (t->n_got == 1 && t->got[0].begin == 0 && t->got[0].end == size)
                continue;
            if (n_missing++ > 0)
                continue; /* the first is named, the rest counted */
            struct name name = name_of(role, layer);
            if (t->n_got == 0) {
                ll_cpu_fail(&missing, 0, "%s has not come", name.s);
            } else {
                uint64_t begin = t->got[0].begin > 0 ? 0 : t->got[0].end;
                uint64_t end = t->got[0].begin > 0 ? t->got[0].begin
                               : t->n_got > 1      ? t->got[1].begin
                                                   : size;
                ll_cpu_fail(&missing, 0, "%s lacks bytes %llu to %llu of %llu", name.s,
                            (unsigned long long)begin, (unsigned long long)end,
                            (unsigned long long)size);
            }
        }
    }
    if (n_missing > 1)
        return ll_cpu_fail(error, LL_E_INVAL,
                           "the checkpoint is not complete: %.200s, and %u more tensors", missing.s,
                           n_missing - 1);
    if (n_missing == 1)
        return ll_cpu_fail(error, LL_E_INVAL, "the checkpoint is not complete: %.200s", missing.s);
    weights->is_sealed = true;
    return 0;
}

int ll_cpu_weights_dummy(struct ll_cpu_weights *weights, uint64_t seed, struct ll_text *error)
{
    for (uint32_t layer = 0; layer < weights->shape.n_layers; layer++) {
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            if (!has_tensor(&weights->shape, role, layer))
                continue;
            struct ll_cpu_tensor *t = &weights->tensor[layer * LL_TENSOR_ROLES + role];
            int rc = make_room(weights, t, role, LL_DTYPE_BF16, error);
            if (rc < 0)
                return rc;
            /* Uniform of variance 1 / in keeps a product's output near 1; norms lie around 1. */
            const float half_width = is_vector(role) ? 0.1f : sqrtf(3.0f / (float)t->m.cols);
            const float middle = is_vector(role) ? 1.0f : 0.0f;
            uint64_t state = seed ^ ((uint64_t)layer * LL_TENSOR_ROLES + (uint64_t)role) << 40;
            uint64_t n = (uint64_t)t->m.rows * t->m.cols, bits = 0;
            for (uint64_t i = 0; i < n; i++) {
                if (i % 4 == 0)
                    bits = ll_splitmix64(&state);
                /* An odd number of 2^-16: never zero, and it stays one as bf16. */
                float u = (float)(2 * (int32_t)(bits & 0xffff) - 0xffff) * 0x1p-16f;
                put_number(t, i, middle + half_width * u);
                bits >>= 16;
            }
        }
    }
    weights->is_sealed = true;
    return 0;
}

uint64_t ll_cpu_weights_bytes(const struct ll_model_shape *shape)
{
    uint64_t total = 0;

    for (uint32_t layer = 0; layer < shape->n_layers; layer++) {
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            uint32_t rows, cols;
            if (!has_tensor(shape, role, layer))
                continue;
            shape_of(shape, role, &rows, &cols);
            total += (uint64_t)rows * ll_align_up(cols, 16) * (is_vector(role) ? 4 : 2);
        }
    }
    return total;
}
