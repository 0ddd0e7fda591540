/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/weights_feed.c - bytes of tensors come in, in any order and any split (weights.h W3).
 */
#include "kernels/cpu/weights_impl.h"

#include "base/numbers.h"

static enum ll_cpu_form form_of(const struct ll_cpu_weights *weights,
                                const struct ll_tensor *tensor)
{
    if (tensor->dtype == LL_DTYPE_E4M3)
        return LL_FORM_E4M3;
    if (ll_cpu_place_of(tensor) != LL_CPU_WEIGHT || ll_cpu_is_vector(tensor->role))
        return LL_FORM_F32;
    return tensor->dtype == LL_DTYPE_BF16 || weights->compute == LL_DTYPE_BF16 ? LL_FORM_BF16
                                                                               : LL_FORM_F32;
}

int ll_cpu_tensor_make_room(const struct ll_cpu_weights *weights, struct ll_cpu_tensor *t,
                            const struct ll_tensor *tensor, struct ll_text *error)
{
    t->m.form = form_of(weights, tensor); /* W2 */
    t->m.rows = tensor->rows;
    t->m.cols = tensor->cols;
    t->m.stride = ll_cpu_place_of(tensor) != LL_CPU_WEIGHT
                      ? tensor->cols
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

void ll_cpu_tensor_put(struct ll_cpu_tensor *t, uint64_t index, float value)
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
        ll_cpu_tensor_put(t, index, widen(split->bytes, t->dtype));
        *split = t->split[--t->n_split];
    }
    return 0;
}

/* Numbers stay as the file has them. */
static bool is_copy(const struct ll_cpu_tensor *t)
{
    return (t->dtype == LL_DTYPE_BF16 && t->m.form == LL_FORM_BF16) ||
           (t->dtype == LL_DTYPE_F32 && t->m.form == LL_FORM_F32) ||
           (t->dtype == LL_DTYPE_E4M3 && t->m.form == LL_FORM_E4M3);
}

/* Whole numbers [index, index + n). */
static void put_numbers(struct ll_cpu_tensor *t, uint64_t index, const uint8_t *bytes, uint64_t n)
{
    const uint32_t width = ll_dtype_bytes(t->dtype);

    if (!is_copy(t)) {
        for (uint64_t i = 0; i < n; i++)
            ll_cpu_tensor_put(t, index + i, widen(bytes + i * width, t->dtype));
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
    for (size_t i = 0; i < ll_cpu_n_entries(weights); i++) {
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
    struct ll_cpu_name name =
        ll_cpu_tensor_name(tensor->role, tensor->layer, ll_cpu_place_of(tensor));
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

    struct ll_cpu_tensor *t =
        ll_cpu_tensor_at(weights, tensor->role, tensor->layer, ll_cpu_place_of(tensor));
    if (t->dtype == 0)
        rc = ll_cpu_tensor_make_room(weights, t, tensor, error);
    else if (t->dtype != tensor->dtype || t->m.rows != tensor->rows || t->m.cols != tensor->cols)
        rc = ll_cpu_fail(error, LL_E_INVAL, "%s came as %s [%u, %u] and as %s [%u, %u]", name.s,
                         ll_cpu_dtype_names[t->dtype], t->m.rows, t->m.cols,
                         ll_cpu_dtype_names[tensor->dtype], tensor->rows, tensor->cols);
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
    if (rc == 0 && bytes == (uint8_t *)t->data + offset)
        return 0;                     /* they were put there: ll_cpu_weights_place() */
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

void *ll_cpu_weights_place(struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                           uint64_t offset, size_t n_bytes)
{
    const uint32_t width = ll_dtype_bytes(tensor->dtype);
    struct ll_text error; /* feed finds the same and says it */
    struct ll_span span;

    if (ll_cpu_weights_want(weights, tensor, &span, 1, &error) != 1 ||
        !ll_span_fits(offset, n_bytes, span.size_bytes) || offset % width != 0 ||
        n_bytes % width != 0)
        return NULL; /* halves of a number: feed puts them together */
    if (weights->is_sealed)
        ll_cpu_weights_begin(weights);
    struct ll_cpu_tensor *t =
        ll_cpu_tensor_at(weights, tensor->role, tensor->layer, ll_cpu_place_of(tensor));
    if (t->dtype == 0 && ll_cpu_tensor_make_room(weights, t, tensor, &error) < 0)
        return NULL;
    if (t->dtype != tensor->dtype || t->m.rows != tensor->rows || t->m.cols != tensor->cols ||
        !is_copy(t) || t->m.stride != t->m.cols)
        return NULL; /* padded rows, or numbers of another type here */
    return (uint8_t *)t->data + offset;
}
