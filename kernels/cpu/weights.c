/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/weights.h"
#include "base/bits.h"
#include "base/rng.h"
#include "kernels/cpu/memory.h"
#include "base/numbers.h"
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

static struct name name_of(enum ll_tensor_role role, uint32_t layer, uint32_t place)
{
    static const char *const parts[LL_CPU_PARTS] = {"", " (scale)", " (scale of the cache)"};
    const char *part = parts[place];
    struct name name;

    if (role == LL_TENSOR_EMBED || role == LL_TENSOR_FINAL_NORM || role == LL_TENSOR_HEAD)
        snprintf(name.s, sizeof(name.s), "%s%s", role_names[role], part);
    else
        snprintf(name.s, sizeof(name.s), "layers.%u.%s%s", layer, role_names[role], part);
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

static bool is_linear(enum ll_tensor_role role)
{
    return role != LL_TENSOR_EMBED && !is_vector(role);
}

/* Places of a role's parts. */
enum { WEIGHT, SCALE, KV_SCALE };

static uint32_t place_of(const struct ll_tensor *tensor)
{
    return tensor->part == LL_PART_SCALE      ? SCALE
           : tensor->part == LL_PART_KV_SCALE ? KV_SCALE
                                              : WEIGHT;
}

static struct ll_cpu_tensor *tensor_at(const struct ll_cpu_weights *weights,
                                       enum ll_tensor_role role, uint32_t layer, uint32_t place)
{
    return &weights->tensor[(layer * LL_TENSOR_ROLES + role) * LL_CPU_PARTS + place];
}

static size_t n_entries(const struct ll_cpu_weights *weights)
{
    return LL_CPU_PARTS * (size_t)LL_TENSOR_ROLES *
           (weights->shape.n_layers > 0 ? weights->shape.n_layers : 1);
}

/* Roles that the set has; for the ones without a layer, layer is 0. */
static bool has_tensor(const struct ll_cpu_weights *weights, enum ll_tensor_role role,
                       uint32_t layer)
{
    const struct ll_model_shape *shape = &weights->shape;

    if (weights->is_follower && (!is_linear(role) || role == LL_TENSOR_HEAD))
        return false;
    if (role == LL_TENSOR_HEAD && shape->is_tied)
        return false;
    return is_per_layer(role) ? layer < shape->n_layers : layer == 0;
}

int ll_cpu_weights_open(struct ll_cpu_weights *weights, const struct ll_model_shape *shape,
                        enum ll_dtype compute, int numa_node, struct ll_text *error)
{
    *weights = (struct ll_cpu_weights){.shape = *shape, .compute = compute, .numa_node = numa_node};
    weights->tensor = calloc(n_entries(weights), sizeof(*weights->tensor));
    if (weights->tensor == NULL)
        return ll_cpu_fail(error, -ENOMEM, "no memory for a table of %u layers", shape->n_layers);
    return 0;
}

void ll_cpu_weights_close(struct ll_cpu_weights *weights)
{
    if (weights->tensor == NULL)
        return;
    for (size_t i = 0; i < n_entries(weights); i++) {
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

    if (tensor->dtype == LL_DTYPE_E4M3 && !is_linear(tensor->role))
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "%s: FP8 (e4m3) is for linear layers, not for this one", name);
    shape_of(&weights->shape, tensor->role, &rows, &cols);
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

    if (!is_linear(tensor->role) || tensor->dtype == LL_DTYPE_E4M3)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "%s: scales are BF16, F16 or F32 numbers of linear layers", name);
    shape_of(&weights->shape, tensor->role, &out, &in);
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
    const uint32_t place = place_of(tensor);

    if ((unsigned)tensor->role >= LL_TENSOR_ROLES)
        return ll_cpu_fail(error, LL_E_INVAL, "tensor role %d does not exist", (int)tensor->role);
    struct name name = name_of(tensor->role, tensor->layer, place);
    if (is_per_layer(tensor->role) ? tensor->layer >= shape->n_layers : tensor->layer != 0)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: the model has %u layers", name.s,
                           shape->n_layers);
    if (tensor->part == LL_PART_INPUT_SCALE || (place == KV_SCALE && !weights->has_fp8_kv))
        return 0; /* activations stay as they are, pages hold BF16 or F32: nothing to scale */
    if (tensor->dtype < LL_DTYPE_F32 || tensor->dtype > LL_DTYPE_E4M3)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED, "%s: dtype %d is not BF16, F16, F32 or F8_E4M3",
                           name.s, (int)tensor->dtype);
    if (!has_tensor(weights, tensor->role, tensor->layer))
        return 0;
    int rc = place == SCALE      ? check_scale(weights, tensor, name.s, error)
             : place == KV_SCALE ? check_kv_scale(weights, tensor, name.s, error)
                                 : check_weight(weights, tensor, name.s, error);
    if (rc < 0)
        return rc;
    uint64_t size = (uint64_t)tensor->rows * tensor->cols * ll_dtype_bytes(tensor->dtype);
    if (tensor->size_bytes != size)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: %llu bytes, [%u, %u] of %s are %llu", name.s,
                           (unsigned long long)tensor->size_bytes, tensor->rows, tensor->cols,
                           dtype_names[tensor->dtype], (unsigned long long)size);
    if (n_max < 1)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: room for no span", name.s);
    spans[0] = (struct ll_span){.offset = 0, .size_bytes = size, .rank = 0};
    return 1;
}

static enum ll_cpu_form form_of(const struct ll_cpu_weights *weights,
                                const struct ll_tensor *tensor)
{
    if (tensor->dtype == LL_DTYPE_E4M3)
        return LL_FORM_E4M3;
    if (place_of(tensor) != WEIGHT || is_vector(tensor->role))
        return LL_FORM_F32;
    return tensor->dtype == LL_DTYPE_BF16 || weights->compute == LL_DTYPE_BF16 ? LL_FORM_BF16
                                                                               : LL_FORM_F32;
}

/* Gives the tensor its memory. */
static int make_room(const struct ll_cpu_weights *weights, struct ll_cpu_tensor *t,
                     const struct ll_tensor *tensor, struct ll_text *error)
{
    t->m.form = form_of(weights, tensor); /* W2 */
    t->m.rows = tensor->rows;
    t->m.cols = tensor->cols;
    t->m.stride = place_of(tensor) != WEIGHT ? tensor->cols
                                             : (uint32_t)ll_align_up(tensor->cols, 16); /* W1 */
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
    t->m.scale = NULL;
    t->m.n_scales = 0;
    t->dtype = tensor->dtype;
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

    if (dtype == LL_DTYPE_E4M3)
        return ll_f32_from_e4m3(bytes[0]);
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
    else if (t->m.form == LL_FORM_F32)
        ((float *)t->data)[at] = value;
    else
        ((uint8_t *)t->data)[at] = ll_e4m3_from_f32(value);
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
                         (t->dtype == LL_DTYPE_F32 && t->m.form == LL_FORM_F32) ||
                         (t->dtype == LL_DTYPE_E4M3 && t->m.form == LL_FORM_E4M3);

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

/* Place of the first NaN among e4m3 numbers; n: none. */
static size_t find_nan(const uint8_t *bytes, size_t n)
{
    size_t i = 0;

    for (; i + 64 <= n; i += 64) { /* without a branch inside: 16 at a time */
        uint8_t found = 0;
        for (size_t k = 0; k < 64; k++)
            found |= (uint8_t)((bytes[i + k] & 0x7f) == 0x7f);
        if (found != 0)
            break;
    }
    while (i < n && (bytes[i] & 0x7f) != 0x7f)
        i++;
    return i;
}

void ll_cpu_weights_begin(struct ll_cpu_weights *weights)
{
    weights->is_sealed = false;
    for (size_t i = 0; i < n_entries(weights); i++) {
        weights->tensor[i].n_got = weights->tensor[i].n_split = 0;
        weights->tensor[i].dtype = 0;
    }
}

int ll_cpu_weights_feed(struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                        uint64_t offset, const void *data, size_t n_bytes, struct ll_text *error)
{
    struct ll_span span;
    int rc = ll_cpu_weights_want(weights, tensor, &span, 1, error);

    if (rc < 0)
        return rc;
    struct name name = name_of(tensor->role, tensor->layer, place_of(tensor));
    if (rc == 0)
        return ll_cpu_fail(error, LL_E_INVAL, "%s was fed but is not wanted", name.s);
    if (!ll_span_fits(offset, n_bytes, span.size_bytes))
        return ll_cpu_fail(error, LL_E_INVAL, "%s: bytes %llu + %zu lie past its end at %llu",
                           name.s, (unsigned long long)offset, n_bytes,
                           (unsigned long long)span.size_bytes);
    if (n_bytes == 0)
        return 0;
    if (weights->is_sealed) /* a reload into this set */
        ll_cpu_weights_begin(weights);

    struct ll_cpu_tensor *t = tensor_at(weights, tensor->role, tensor->layer, place_of(tensor));
    if (t->dtype == 0)
        rc = make_room(weights, t, tensor, error);
    else if (t->dtype != tensor->dtype || t->m.rows != tensor->rows || t->m.cols != tensor->cols)
        rc = ll_cpu_fail(error, LL_E_INVAL, "%s came as %s [%u, %u] and as %s [%u, %u]", name.s,
                         dtype_names[t->dtype], t->m.rows, t->m.cols, dtype_names[tensor->dtype],
                         tensor->rows, tensor->cols);
    if (rc < 0)
        return rc;
    size_t nan = t->dtype == LL_DTYPE_E4M3 ? find_nan(data, n_bytes) : n_bytes;
    if (nan < n_bytes)
        return ll_cpu_fail(error, LL_E_INVAL, "%s: number %llu is a NaN: the file is damaged",
                           name.s, (unsigned long long)(offset + nan));

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

/* ---- seal ---------------------------------------------------------------------------------------
 */
/* What of a tensor has not come, in words; false: nothing is missing. */
static bool say_missing(const struct ll_cpu_tensor *t, const char *name, struct ll_text *out)
{
    uint64_t size = (uint64_t)t->m.rows * t->m.cols * ll_dtype_bytes(t->dtype);

    if (t->n_got == 1 && t->got[0].begin == 0 && t->got[0].end == size)
        return false;
    if (t->n_got == 0) {
        ll_cpu_fail(out, 0, "%s has not come", name);
        return true;
    }
    uint64_t begin = t->got[0].begin > 0 ? 0 : t->got[0].end;
    uint64_t end = t->got[0].begin > 0 ? t->got[0].begin : t->n_got > 1 ? t->got[1].begin : size;
    ll_cpu_fail(out, 0, "%s lacks bytes %llu to %llu of %llu", name, (unsigned long long)begin,
                (unsigned long long)end, (unsigned long long)size);
    return true;
}

/* The scales as products want them: a row's, or its blocks' (W5). */
static int spread_scales(struct ll_cpu_tensor *t, const struct ll_cpu_tensor *from,
                         const char *name, struct ll_text *error)
{
    const uint32_t n_blocks = (uint32_t)ll_div_ceil(t->m.cols, LL_CPU_SCALE_COLS);
    const bool is_block = from->m.rows > 1 && from->m.rows < t->m.rows;
    const uint32_t n = from->m.cols > 1 || is_block ? n_blocks : 1;
    const float *in = from->data;

    for (size_t i = 0; i < (size_t)from->m.rows * from->m.cols; i++)
        if (!(in[i] >= 0 && in[i] <= 1e30f))
            return ll_cpu_fail(error, LL_E_INVAL,
                               "%s: number %zu is %g: a scale is 0 or more and finite", name, i,
                               (double)in[i]);
    free(t->scale);
    t->scale = malloc((size_t)t->m.rows * n * sizeof(*t->scale));
    if (t->scale == NULL)
        return ll_cpu_fail(error, -ENOMEM, "%s: no memory for %u x %u numbers", name, t->m.rows, n);
    for (uint32_t r = 0; r < t->m.rows; r++) {
        uint32_t row = from->m.rows == 1           ? 0
                       : from->m.rows == t->m.rows ? r
                                                   : r / LL_CPU_SCALE_COLS;
        for (uint32_t i = 0; i < n; i++)
            t->scale[(size_t)r * n + i] =
                in[(size_t)row * from->m.cols + (from->m.cols > 1 ? i : 0)] * LL_CPU_E4M3_UNIT;
    }
    t->m.scale = t->scale;
    t->m.n_scales = n;
    return 0;
}

/* All tensors there? *missing names the first that is not. */
static uint32_t count_missing(const struct ll_cpu_weights *weights, struct ll_text *missing)
{
    uint32_t n = 0;

    for (uint32_t layer = 0; layer < weights->shape.n_layers; layer++)
        for (int role = 0; role < LL_TENSOR_ROLES; role++)
            for (uint32_t place = 0; place < LL_CPU_PARTS && has_tensor(weights, role, layer);
                 place++) {
                const struct ll_cpu_tensor *t = tensor_at(weights, role, layer, place);
                struct ll_text text;
                if (t->n_got == 0 &&
                    (place == KV_SCALE ||
                     (place == SCALE &&
                      tensor_at(weights, role, layer, WEIGHT)->dtype != LL_DTYPE_E4M3)))
                    continue;
                if (say_missing(t, name_of(role, layer, place).s, &text) && n++ == 0)
                    *missing = text; /* the first is named, the rest counted */
            }
    return n;
}

/* W6. */
static int spread_kv_scales(struct ll_cpu_weights *weights, struct ll_text *error)
{
    const uint32_t n_heads = weights->shape.n_kv_heads;

    free(weights->kv_scale);
    weights->kv_scale = malloc((size_t)weights->shape.n_layers * 2 * n_heads * sizeof(float));
    if (weights->kv_scale == NULL)
        return ll_cpu_fail(error, -ENOMEM, "no memory for the cache's scales");
    for (uint32_t layer = 0; layer < weights->shape.n_layers; layer++)
        for (uint32_t i = 0; i < 2 * n_heads; i++) {
            const int role = i < n_heads ? LL_TENSOR_K : LL_TENSOR_V;
            const struct ll_cpu_tensor *t = tensor_at(weights, role, layer, KV_SCALE);
            float scale =
                t->n_got == 0 ? 1 : ((const float *)t->data)[t->m.rows == 1 ? 0 : i % n_heads];
            if (!(scale > 0 && scale <= 1e30f))
                return ll_cpu_fail(error, LL_E_INVAL, "%s is %g: it must be above 0 and finite",
                                   name_of(role, layer, KV_SCALE).s, (double)scale);
            weights->kv_scale[layer * 2 * n_heads + i] = scale;
        }
    return 0;
}

int ll_cpu_weights_seal(struct ll_cpu_weights *weights, struct ll_text *error)
{
    struct ll_text missing = {""};
    uint32_t n_missing = count_missing(weights, &missing);

    if (n_missing > 1)
        return ll_cpu_fail(error, LL_E_INVAL,
                           "the checkpoint is not complete: %.200s, and %u more tensors", missing.s,
                           n_missing - 1);
    if (n_missing == 1)
        return ll_cpu_fail(error, LL_E_INVAL, "the checkpoint is not complete: %.200s", missing.s);
    for (uint32_t layer = 0; layer < weights->shape.n_layers; layer++)
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            struct ll_cpu_tensor *t = tensor_at(weights, role, layer, WEIGHT);
            const struct ll_cpu_tensor *scale = tensor_at(weights, role, layer, SCALE);
            struct name name = name_of(role, layer, SCALE);
            if (scale->n_got == 0)
                continue;
            if (t->dtype != LL_DTYPE_E4M3)
                return ll_cpu_fail(error, LL_E_INVAL, "%s came, but the weight is not FP8 (e4m3)",
                                   name.s);
            int rc = spread_scales(t, scale, name.s, error);
            if (rc < 0)
                return rc;
        }
    int rc = weights->has_fp8_kv ? spread_kv_scales(weights, error) : 0;
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < n_entries(weights); i++) { /* scales as they came: not needed any more */
        if (i % LL_CPU_PARTS == WEIGHT)
            continue;
        ll_cpu_unmap(weights->tensor[i].data, weights->tensor[i].data_bytes);
        weights->tensor[i].data = NULL;
    }
    weights->is_sealed = true;
    return 0;
}

int ll_cpu_weights_reserve(struct ll_cpu_weights *weights, const struct ll_cpu_weights *like,
                           struct ll_text *error)
{
    for (size_t i = 0; i < n_entries(weights); i++) {
        struct ll_cpu_tensor *t = &weights->tensor[i];
        const size_t bytes = like->tensor[i].data_bytes;
        if (i % LL_CPU_PARTS != WEIGHT || t->data != NULL || bytes == 0)
            continue;
        t->data = ll_cpu_map(bytes, weights->numa_node);
        if (t->data == NULL)
            return ll_cpu_fail(error, -ENOMEM,
                               "no memory for a second set of weights: %zu MiB of one of them",
                               bytes >> 20);
        t->data_bytes = bytes;
        ll_cpu_touch(t->data, bytes);
    }
    return 0;
}

static int dummy_tensor(struct ll_cpu_weights *weights, enum ll_tensor_role role, uint32_t layer,
                        uint64_t seed, bool is_fp8, struct ll_text *error)
{
    struct ll_tensor tensor = {.role = role, .layer = layer, .dtype = LL_DTYPE_BF16};
    struct ll_cpu_tensor *t = tensor_at(weights, role, layer, WEIGHT);
    uint64_t state = seed ^ ((uint64_t)layer * LL_TENSOR_ROLES + (uint64_t)role) << 40, bits = 0;

    shape_of(&weights->shape, role, &tensor.rows, &tensor.cols);
    if (is_fp8)
        tensor.dtype = LL_DTYPE_E4M3;
    int rc = make_room(weights, t, &tensor, error);
    if (rc < 0)
        return rc;
    /* Uniform of variance 1 / in keeps a product's output near 1; norms lie around 1. */
    const float half_width = is_vector(role) ? 0.1f : sqrtf(3.0f / (float)t->m.cols);
    const float middle = is_vector(role) ? 1.0f : 0.0f;
    const uint64_t n = (uint64_t)t->m.rows * t->m.cols;
    for (uint64_t i = 0; i < n; i++) {
        if (i % 4 == 0)
            bits = ll_splitmix64(&state);
        /* An odd number of 2^-16: never zero, and it stays one as bf16, or as e4m3 of a range
         * of 448. */
        float u = (float)(2 * (int32_t)(bits & 0xffff) - 0xffff) * 0x1p-16f;
        put_number(t, i, is_fp8 ? u * LL_E4M3_MAX : middle + half_width * u);
        bits >>= 16;
    }
    if (!is_fp8)
        return 0;
    t->scale = malloc(t->m.rows * sizeof(*t->scale));
    if (t->scale == NULL)
        return ll_cpu_fail(error, -ENOMEM, "no memory for %u scales", t->m.rows);
    for (uint32_t r = 0; r < t->m.rows; r++)
        t->scale[r] = half_width / LL_E4M3_MAX * LL_CPU_E4M3_UNIT;
    t->m.scale = t->scale;
    t->m.n_scales = 1;
    return 0;
}

int ll_cpu_weights_dummy(struct ll_cpu_weights *weights, uint64_t seed, bool is_fp8,
                         struct ll_text *error)
{
    for (uint32_t layer = 0; layer < weights->shape.n_layers; layer++)
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            if (!has_tensor(weights, role, layer))
                continue;
            int rc = dummy_tensor(weights, role, layer, seed,
                                  is_fp8 && is_linear(role) && role != LL_TENSOR_HEAD, error);
            if (rc < 0)
                return rc;
        }
    weights->is_sealed = true;
    return 0;
}

uint64_t ll_cpu_weights_bytes(const struct ll_model_shape *shape)
{
    const struct ll_cpu_weights all = {.shape = *shape};
    uint64_t total = 0;

    for (uint32_t layer = 0; layer < shape->n_layers; layer++) {
        for (int role = 0; role < LL_TENSOR_ROLES; role++) {
            uint32_t rows, cols;
            if (!has_tensor(&all, role, layer))
                continue;
            shape_of(shape, role, &rows, &cols);
            total += (uint64_t)rows * ll_align_up(cols, 16) * (is_vector(role) ? 4 : 2);
        }
    }
    return total;
}
