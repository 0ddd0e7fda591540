/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/weights_seal.c - all has come: what is missing, scales as products want them
 * (weights.h W5, W6); room for a second set; random weights. */
#include "kernels/cpu/weights_impl.h"

#include "base/numbers.h"
#include "base/rng.h"

#include <math.h>

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
            for (uint32_t place = 0;
                 place < LL_CPU_PARTS && ll_cpu_has_tensor(weights, role, layer); place++) {
                const struct ll_cpu_tensor *t = ll_cpu_tensor_at(weights, role, layer, place);
                struct ll_text text;
                if (t->n_got == 0 &&
                    (place == LL_CPU_KV_SCALE ||
                     (place == LL_CPU_SCALE &&
                      ll_cpu_tensor_at(weights, role, layer, LL_CPU_WEIGHT)->dtype !=
                          LL_DTYPE_E4M3)))
                    continue;
                if (say_missing(t, ll_cpu_tensor_name(role, layer, place).s, &text) && n++ == 0)
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
            const struct ll_cpu_tensor *t = ll_cpu_tensor_at(weights, role, layer, LL_CPU_KV_SCALE);
            float scale =
                t->n_got == 0 ? 1 : ((const float *)t->data)[t->m.rows == 1 ? 0 : i % n_heads];
            if (!(scale > 0 && scale <= 1e30f))
                return ll_cpu_fail(error, LL_E_INVAL, "%s is %g: it must be above 0 and finite",
                                   ll_cpu_tensor_name(role, layer, LL_CPU_KV_SCALE).s,
                                   (double)scale);
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
            struct ll_cpu_tensor *t = ll_cpu_tensor_at(weights, role, layer, LL_CPU_WEIGHT);
            const struct ll_cpu_tensor *scale =
                ll_cpu_tensor_at(weights, role, layer, LL_CPU_SCALE);
            struct ll_cpu_name name = ll_cpu_tensor_name(role, layer, LL_CPU_SCALE);
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
    for (size_t i = 0; i < ll_cpu_n_entries(weights);
         i++) { /* scales as they came: not needed any more */
        if (i % LL_CPU_PARTS == LL_CPU_WEIGHT)
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
    for (size_t i = 0; i < ll_cpu_n_entries(weights); i++) {
        struct ll_cpu_tensor *t = &weights->tensor[i];
        const size_t bytes = like->tensor[i].data_bytes;
        if (i % LL_CPU_PARTS != LL_CPU_WEIGHT || t->data != NULL || bytes == 0)
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
    struct ll_cpu_tensor *t = ll_cpu_tensor_at(weights, role, layer, LL_CPU_WEIGHT);
    uint64_t state = seed ^ ((uint64_t)layer * LL_TENSOR_ROLES + (uint64_t)role) << 40, bits = 0;

    ll_cpu_tensor_shape(&weights->shape, role, &tensor.rows, &tensor.cols);
    if (is_fp8)
        tensor.dtype = LL_DTYPE_E4M3;
    int rc = ll_cpu_tensor_make_room(weights, t, &tensor, error);
    if (rc < 0)
        return rc;
    /* Uniform of variance 1 / in keeps a product's output near 1; norms lie around 1. */
    const float half_width = ll_cpu_is_vector(role) ? 0.1f : sqrtf(3.0f / (float)t->m.cols);
    const float middle = ll_cpu_is_vector(role) ? 1.0f : 0.0f;
    const uint64_t n = (uint64_t)t->m.rows * t->m.cols;
    for (uint64_t i = 0; i < n; i++) {
        if (i % 4 == 0)
            bits = ll_splitmix64(&state);
        /* An odd number of 2^-16: never zero, and it stays one as bf16, or as e4m3 of a range
         * of 448. */
        float u = (float)(2 * (int32_t)(bits & 0xffff) - 0xffff) * 0x1p-16f;
        ll_cpu_tensor_put(t, i, is_fp8 ? u * LL_E4M3_MAX : middle + half_width * u);
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
            if (!ll_cpu_has_tensor(weights, role, layer))
                continue;
            int rc =
                dummy_tensor(weights, role, layer, seed,
                             is_fp8 && ll_cpu_is_linear(role) && role != LL_TENSOR_HEAD, error);
            if (rc < 0)
                return rc;
        }
    weights->is_sealed = true;
    return 0;
}
