/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/cuda_kv_scale.c - a checkpoint's scales of what the e4m3 cache stores.
 *
 * A page holds x / scale; attention multiplies scores by K's scale and its output by V's. One
 * number a layer or one a KV head, for K and for V; a layer without has 1, as has a cache in bf16,
 * for which the scales of a checkpoint are not wanted at all. Kept on the host as they come, put on
 * the device at seal: [L][k, v][K]. */
#include "kernels/cuda/device.h"

#include "ll/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int refuse(struct ll_text *error, const struct ll_tensor *tensor, const char *why)
{
    snprintf(error->s, sizeof(error->s), "layer %u scale of cached %s: %s", tensor->layer,
             tensor->role == LL_TENSOR_K ? "keys" : "values", why);
    return LL_E_UNSUPPORTED;
}

/* First of this tensor's KV heads in the table. */
static float *place(const struct ll_device *d, const struct ll_cuda_weights *w,
                    const struct ll_tensor *tensor)
{
    const size_t side = tensor->role == LL_TENSOR_V;

    return w->kv_scale_host + (tensor->layer * 2 + side) * d->shape.n_kv_heads;
}

int ll_cuda_kv_scale_want(struct ll_device *d, const struct ll_tensor *tensor,
                          struct ll_span *spans, struct ll_text *error)
{
    const size_t n = (size_t)d->shape.n_layers * 2 * d->shape.n_kv_heads;

    if (!d->is_kv_fp8)
        return 0;
    if ((tensor->role != LL_TENSOR_K && tensor->role != LL_TENSOR_V) ||
        tensor->layer >= d->shape.n_layers || tensor->dtype == LL_DTYPE_E4M3 || tensor->cols != 1 ||
        (tensor->rows != 1 && tensor->rows != d->shape.n_kv_heads) ||
        tensor->size_bytes != (uint64_t)tensor->rows * ll_dtype_bytes(tensor->dtype))
        return refuse(error, tensor, "one number, or one a KV head, of K and of V is served");
    for (uint32_t set = 0; set < d->options.n_weights; set++) {
        struct ll_cuda_weights *w = &d->weights[set];
        if (d->has_served && set != d->loading) /* S2 */
            continue;
        if (d->has_served && w->kv_scale_host == NULL)
            return ll_cuda_set_lacks(error, "scales of the cache");
        if (w->kv_scale_host == NULL) {
            w->kv_scale_host = malloc(n * sizeof(float));
            if (w->kv_scale_host == NULL)
                return ll_cuda_no_memory(error, "scales of the cache");
            for (size_t i = 0; i < n; i++)
                w->kv_scale_host[i] = 1.0f;
        }
        w->n_due += set == d->loading ? tensor->size_bytes : 0;
    }
    spans[0] = (struct ll_span){0, tensor->size_bytes, 0};
    return 1;
}

int ll_cuda_kv_scale_feed(struct ll_device *d, struct ll_cuda_weights *w,
                          const struct ll_tensor *tensor, uint64_t offset, const void *data,
                          size_t n_bytes, struct ll_text *error)
{
    const uint32_t size = ll_dtype_bytes(tensor->dtype);
    float *to = place(d, w, tensor);

    if (offset % size != 0 || n_bytes % size != 0)
        return refuse(error, tensor, "a piece splits a scale");
    for (size_t i = 0; i < n_bytes / size; i++) {
        const float value = ll_cuda_scale_value(data, tensor->dtype, i);
        if (!(value > 0.0f && value <= 1e30f))
            return refuse(error, tensor, "must be above 0 and finite");
        if (tensor->rows == 1)
            for (uint32_t head = 0; head < d->shape.n_kv_heads; head++)
                to[head] = value;
        else
            to[offset / size + i] = value;
    }
    return 0;
}

int ll_cuda_kv_scale_seal(struct ll_device *d, struct ll_cuda_weights *w, struct ll_text *error)
{
    const size_t bytes = (size_t)d->shape.n_layers * 2 * d->shape.n_kv_heads * sizeof(float);
    cudaError_t s = cudaSuccess;

    if (w->kv_scale_host == NULL)
        return 0;
    if (w->kv_scale == NULL)
        s = cudaMalloc((void **)&w->kv_scale, bytes);
    if (s == cudaSuccess)
        s = cudaMemcpy(w->kv_scale, w->kv_scale_host, bytes, cudaMemcpyHostToDevice);
    return s == cudaSuccess ? 0 : ll_cuda_fail(error, "scales of the cache", s);
}

const float *ll_cuda_kv_scale_of(const struct ll_device *d, const struct ll_cuda_weights *w,
                                 uint32_t layer)
{
    return w->kv_scale != NULL ? w->kv_scale + (size_t)layer * 2 * d->shape.n_kv_heads : NULL;
}
