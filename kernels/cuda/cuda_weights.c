/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/cuda_weights.c - a checkpoint's tensors into device memory.
 *
 * Q, K, V become one matrix, gate and up another: rows one after the other, so a source tensor is a
 * contiguous block of its merged matrix and pieces go straight to their place. BF16 and e4m3 are
 * copied as they are; F16 and F32 are rounded to BF16 on the device. Scales: cuda_scales.c. */
#include "kernels/cuda/cuda_scales.h"

#include "base/bits.h"
#include "ll/client.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const role_names[] = {"embed_tokens",
                                         "input_layernorm",
                                         "q_proj",
                                         "k_proj",
                                         "v_proj",
                                         "o_proj",
                                         "post_attention_layernorm",
                                         "gate_proj",
                                         "up_proj",
                                         "down_proj",
                                         "norm",
                                         "lm_head"};

/* Where a tensor goes: its merged matrix and first row, or a plain bf16 array. */
struct place {
    struct ll_cuda_linear *linear;
    uint32_t first_row;
    void **array;
    uint32_t rows, cols; /* of the tensor itself */
    uint32_t array_rows; /* allocated, for the padded vocabulary */
};

static struct place find_place(struct ll_device *d, struct ll_cuda_weights *w,
                               const struct ll_tensor *tensor)
{
    const struct ll_model_shape *s = &d->shape;
    const uint32_t q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    struct ll_cuda_layer *layer = &w->layer[tensor->layer < s->n_layers ? tensor->layer : 0];

    switch (tensor->role) {
    case LL_TENSOR_EMBED:
        return (struct place){.array = &w->embed,
                              .rows = s->n_vocab,
                              .cols = s->n_embd,
                              .array_rows = d->n_vocab_padded};
    case LL_TENSOR_HEAD:
        return (struct place){.array = &w->head,
                              .rows = s->n_vocab,
                              .cols = s->n_embd,
                              .array_rows = d->n_vocab_padded};
    case LL_TENSOR_FINAL_NORM:
        return (struct place){
            .array = &w->final_norm, .rows = 1, .cols = s->n_embd, .array_rows = 1};
    case LL_TENSOR_ATTN_NORM:
        return (struct place){
            .array = &layer->attn_norm, .rows = 1, .cols = s->n_embd, .array_rows = 1};
    case LL_TENSOR_FFN_NORM:
        return (struct place){
            .array = &layer->ffn_norm, .rows = 1, .cols = s->n_embd, .array_rows = 1};
    case LL_TENSOR_Q:
        return (struct place){.linear = &layer->qkv, .rows = q, .cols = s->n_embd};
    case LL_TENSOR_K:
        return (struct place){.linear = &layer->qkv, q, .rows = kv, .cols = s->n_embd};
    case LL_TENSOR_V:
        return (struct place){.linear = &layer->qkv, q + kv, .rows = kv, .cols = s->n_embd};
    case LL_TENSOR_O:
        return (struct place){.linear = &layer->o, .rows = s->n_embd, .cols = q};
    case LL_TENSOR_GATE:
        return (struct place){.linear = &layer->gate_up, .rows = s->n_ff, .cols = s->n_embd};
    case LL_TENSOR_UP:
        return (struct place){
            .linear = &layer->gate_up, s->n_ff, .rows = s->n_ff, .cols = s->n_embd};
    case LL_TENSOR_DOWN:
        return (struct place){.linear = &layer->down, .rows = s->n_embd, .cols = s->n_ff};
    case LL_TENSOR_ROLES:
        break;
    }
    return (struct place){0};
}

static int refuse(struct ll_text *error, const struct ll_tensor *tensor, const char *why)
{
    snprintf(error->s, sizeof(error->s), "layer %u %s: %s", tensor->layer,
             tensor->role < LL_TENSOR_ROLES ? role_names[tensor->role] : "?", why);
    return LL_E_UNSUPPORTED;
}

static int device_alloc(struct ll_device *d, void **out, size_t size_bytes, struct ll_text *error)
{
    cudaError_t s = cudaMalloc(out, size_bytes);

    if (s != cudaSuccess) {
        *out = NULL;
        return ll_cuda_fail(error, "weights", s);
    }
    d->weights_bytes += size_bytes;
    return 0;
}

static int make_linear(struct ll_device *d, struct ll_cuda_linear *l, uint32_t rows, uint32_t cols,
                       enum ll_dtype dtype, struct ll_text *error)
{
    l->rows = rows;
    l->cols = cols;
    l->dtype = dtype;
    int rc = device_alloc(d, &l->w, (size_t)rows * cols * ll_dtype_bytes(dtype), error);
    if (rc < 0 || dtype != LL_DTYPE_E4M3)
        return rc;
    l->scale_host = calloc(rows, sizeof(float));
    if (l->scale_host == NULL)
        return ll_cuda_no_memory(error, "scales of weights");
    return device_alloc(d, (void **)&l->scale, rows * sizeof(float), error);
}

static uint32_t merged_rows(const struct ll_device *d, const struct ll_tensor *tensor)
{
    const struct ll_model_shape *s = &d->shape;

    switch (tensor->role) {
    case LL_TENSOR_Q:
    case LL_TENSOR_K:
    case LL_TENSOR_V:
        return (s->n_heads + 2 * s->n_kv_heads) * s->head_dim;
    case LL_TENSOR_GATE:
    case LL_TENSOR_UP:
        return 2 * s->n_ff;
    default:
        return s->n_embd;
    }
}

static struct ll_cuda_part part_of(const struct place *p)
{
    return (struct ll_cuda_part){p->linear, p->first_row, p->rows, p->cols};
}

static int want_scale(struct ll_device *d, const struct place *p, const struct ll_tensor *tensor,
                      struct ll_text *error)
{
    const struct ll_cuda_part part = part_of(p);
    bool has_blocks;

    if (p->linear == NULL || p->linear->dtype != LL_DTYPE_E4M3)
        return refuse(error, tensor, "a scale without an FP8 weight before it");
    const char *why = ll_cuda_scale_want(&part, tensor, &has_blocks);
    if (why != NULL)
        return refuse(error, tensor, why);
    if (!has_blocks)
        return 0;
    if (d->has_served && p->linear->block_host == NULL)
        return ll_cuda_set_lacks(error, "block scales");
    int rc = ll_cuda_scale_room(p->linear);
    if (rc == 0 && d->widened == NULL) /* many tokens are multiplied by widened weights */
        rc = cudaMalloc(&d->widened, LL_CUDA_WIDENED) == cudaSuccess ? 0 : -ENOMEM;
    return rc < 0 ? ll_cuda_fail(error, "block scales", cudaErrorMemoryAllocation) : 0;
}

int ll_cuda_want(struct ll_device *d, const struct ll_tensor *tensor, struct ll_span *spans,
                 uint32_t n_max, struct ll_text *error)
{
    /* The first load allocates for both sets alike, later ones look at their own (S1, S2). */
    const uint32_t first = d->has_served ? d->loading : 0;
    const uint32_t end = d->has_served ? d->loading + 1 : d->options.n_weights;

    if (n_max < 1)
        return -EINVAL;
    if (tensor->role == LL_TENSOR_HEAD && d->shape.is_tied)
        return 0;
    if (tensor->part == LL_PART_INPUT_SCALE)
        return 0; /* activations are scaled per token */
    if (tensor->part == LL_PART_KV_SCALE)
        return ll_cuda_kv_scale_want(d, tensor, spans, error);
    for (uint32_t set = first; set < end; set++) {
        struct ll_cuda_weights *w = &d->weights[set];
        const struct place p = find_place(d, w, tensor);
        if (tensor->part == LL_PART_SCALE) {
            int rc = want_scale(d, &p, tensor, error);
            if (rc < 0)
                return rc;
            w->n_due += set == d->loading ? tensor->size_bytes : 0;
            continue;
        }
        if (p.rows != tensor->rows || p.cols != tensor->cols)
            return refuse(error, tensor, "shape differs from the configuration's");
        const bool is_fp8 = tensor->dtype == LL_DTYPE_E4M3;
        if (p.array != NULL) {
            if (is_fp8)
                return refuse(error, tensor, "FP8 is served for linear layers only");
            size_t bytes = (size_t)p.array_rows * p.cols * 2;
            if (*p.array == NULL) {
                int rc = device_alloc(d, p.array, bytes, error);
                if (rc < 0)
                    return rc;
                /* Padded vocabulary rows; on the stream that the tensor's pieces will come by. */
                cudaMemsetAsync(*p.array, 0, bytes, d->load_stream);
            }
        } else {
            enum ll_dtype kept = is_fp8 ? LL_DTYPE_E4M3 : LL_DTYPE_BF16;
            if (p.linear->w == NULL) {
                int rc = make_linear(d, p.linear, merged_rows(d, tensor), p.cols, kept, error);
                if (rc < 0)
                    return rc;
            }
            if (p.linear->dtype != kept && d->has_served)
                return ll_cuda_set_lacks(error, is_fp8 ? "FP8 weights" : "16-bit weights");
            if (p.linear->dtype != kept)
                return refuse(error, tensor, "FP8 and 16-bit parts in one merged matrix");
        }
        w->n_due += set == d->loading ? tensor->size_bytes : 0;
    }
    spans[0] = (struct ll_span){0, tensor->size_bytes, 0};
    return 1;
}

void ll_cuda_unpin(struct ll_device *d)
{
    if (d->pinned != NULL)
        cudaHostUnregister(d->pinned);
    d->pinned = NULL;
}

int ll_cuda_pin(struct ll_device *d, void *base, size_t size_bytes, struct ll_text *error)
{
    ll_cuda_unpin(d);
    if (size_bytes == 0)
        return 0;
    cudaError_t s = cudaHostRegister(base, size_bytes, cudaHostRegisterPortable);

    if (s != cudaSuccess)
        return ll_cuda_fail(error, "pin staging", s);
    d->pinned = base;
    return 0;
}

int ll_cuda_feed(struct ll_device *d, uint32_t weights, const struct ll_tensor *tensor,
                 uint32_t rank, uint64_t offset, const void *data, size_t n_bytes, uint64_t *ticket,
                 struct ll_text *error)
{
    struct ll_cuda_weights *w = &d->weights[weights];
    const struct place p = find_place(d, w, tensor);
    (void)rank;

    *ticket = 0;
    if (!ll_span_fits(offset, n_bytes, tensor->size_bytes))
        return refuse(error, tensor, "a piece beyond the tensor's end");
    w->n_fed += n_bytes;
    if (tensor->part == LL_PART_SCALE) {
        struct ll_cuda_part part = part_of(&p);
        const char *why = ll_cuda_scale_feed(&part, tensor, offset, data, n_bytes);
        return why != NULL ? refuse(error, tensor, why) : 0;
    }
    if (tensor->part == LL_PART_KV_SCALE)
        return ll_cuda_kv_scale_feed(d, w, tensor, offset, data, n_bytes, error);

    unsigned char *base = p.array != NULL ? *p.array : p.linear->w;
    const uint32_t from_size = ll_dtype_bytes(tensor->dtype);
    const uint32_t to_size = p.array != NULL ? 2 : ll_dtype_bytes(p.linear->dtype);
    base += (size_t)p.first_row * p.cols * to_size;
    cudaError_t s;
    if (tensor->dtype == LL_DTYPE_BF16 || tensor->dtype == LL_DTYPE_E4M3) {
        s = cudaMemcpyAsync(base + offset, data, n_bytes, cudaMemcpyHostToDevice, d->load_stream);
    } else {
        if (offset % from_size != 0 || n_bytes % from_size != 0)
            return refuse(error, tensor, "a piece splits an element");
        s = cudaSuccess;
        for (size_t done = 0; done < n_bytes && s == cudaSuccess; done += LL_CUDA_STAGING) {
            size_t n = n_bytes - done < LL_CUDA_STAGING ? n_bytes - done : LL_CUDA_STAGING;
            s = cudaMemcpyAsync(d->convert, (const unsigned char *)data + done, n,
                                cudaMemcpyHostToDevice, d->load_stream);
            if (s == cudaSuccess &&
                ll_cuda_convert_bf16(base + (offset + done) / from_size * 2, d->convert,
                                     tensor->dtype, n / from_size, d->load_stream) < 0)
                s = cudaGetLastError();
        }
    }
    if (s == cudaSuccess)
        s = cudaEventRecord(d->feed_event[d->n_feeds % LL_CUDA_COPIES_MAX], d->load_stream);
    if (s != cudaSuccess)
        return ll_cuda_fail(error, "feed", s);
    *ticket = (uint64_t)++d->n_feeds;
    return 0;
}

int ll_cuda_fed(struct ll_device *d, uint64_t ticket, struct ll_text *error)
{
    if (ticket == 0)
        return 1;
    if (ticket > (uint64_t)d->n_feeds) {
        snprintf(error->s, sizeof(error->s), "no piece has ticket %llu",
                 (unsigned long long)ticket);
        return LL_E_INVAL;
    }
    /* As of page copies (cuda_step.c): an event recorded anew answers for a later piece. */
    cudaError_t s = cudaEventQuery(d->feed_event[(ticket - 1) % LL_CUDA_COPIES_MAX]);
    if (s == cudaSuccess)
        return 1;
    return s == cudaErrorNotReady ? 0 : ll_cuda_fail(error, "feed", s);
}

/* Names the first thing a model cannot run without. */
static const char *missing(const struct ll_device *d, const struct ll_cuda_weights *w,
                           uint32_t *layer)
{
    *layer = 0;
    if (w->embed == NULL)
        return "embed_tokens";
    if (w->final_norm == NULL)
        return "norm";
    if (w->head == NULL)
        return "lm_head";
    for (uint32_t i = 0; i < d->shape.n_layers; i++) {
        const struct ll_cuda_layer *l = &w->layer[i];
        *layer = i;
        if (l->attn_norm == NULL || l->ffn_norm == NULL)
            return "a norm";
        if (l->qkv.w == NULL || l->o.w == NULL)
            return "an attention projection";
        if (l->gate_up.w == NULL || l->down.w == NULL)
            return "an mlp projection";
    }
    return NULL;
}

static int upload_scales(struct ll_device *d, struct ll_cuda_weights *w, struct ll_text *error)
{
    for (uint32_t i = 0; i < d->shape.n_layers; i++)
        if (ll_cuda_scale_upload(&w->layer[i].qkv) < 0 ||
            ll_cuda_scale_upload(&w->layer[i].o) < 0 ||
            ll_cuda_scale_upload(&w->layer[i].gate_up) < 0 ||
            ll_cuda_scale_upload(&w->layer[i].down) < 0)
            return ll_cuda_fail(error, "scales", cudaGetLastError());
    return ll_cuda_kv_scale_seal(d, w, error);
}

/* Warm: the decode buckets people hit first, so no request pays for a capture. */
static int warm(struct ll_device *d, uint32_t weights, struct ll_text *error)
{
    int rc = 0;

    for (uint32_t t = 1; t <= 64 && !d->is_led && t <= d->options.n_rows_max && rc == 0;
         t = t < 8 ? t * 2 : t + 8) {
        cudaGraphExec_t graph;
        uint32_t bucket = ll_cuda_token_bucket(t);
        const struct ll_cuda_size size = {.n_tokens = bucket,
                                          .n_logits = ll_cuda_logit_bucket(t, bucket),
                                          .weights = weights,
                                          .has_decode = true};
        rc = ll_cuda_graph_get(d, &size, &graph, error);
    }
    return rc;
}

/* All that must be there before a set is loaded beside steps: both sets' (S1, S2). */
static int seal_first(struct ll_device *d, uint32_t weights, struct ll_text *error)
{
    int rc = ll_cuda_tune(d, weights, error);

    for (uint32_t set = 0; set < d->options.n_weights && rc == 0; set++) {
        if (set != weights)
            rc = upload_scales(d, &d->weights[set], error);
        if (rc == 0)
            rc = warm(d, set, error);
        if (rc == 0 && d->options.has_dummy_weights)
            d->weights[set].is_sealed = true;
    }
    d->has_served = rc == 0;
    return rc;
}

int ll_cuda_seal(struct ll_device *d, uint32_t weights, struct ll_text *error)
{
    struct ll_cuda_weights *w = &d->weights[weights];
    uint32_t layer;

    if (weights >= d->options.n_weights)
        return -EINVAL;
    for (uint32_t set = 0; set < d->options.n_weights && !d->has_served; set++) {
        if (d->options.has_dummy_weights && d->weights[set].embed == NULL) {
            int rc = ll_cuda_weights_dummy(d, set, error);
            if (rc < 0)
                return rc;
        }
        if (d->shape.is_tied)
            d->weights[set].head = d->weights[set].embed;
    }
    const char *name = missing(d, w, &layer);
    if (name != NULL || w->n_fed < w->n_due) {
        snprintf(error->s, sizeof(error->s),
                 "weights incomplete: %s%s (layer %u), %llu of %llu bytes",
                 name != NULL ? name : "some bytes", name != NULL ? " is missing" : "", layer,
                 (unsigned long long)w->n_fed, (unsigned long long)w->n_due);
        return LL_E_INVAL;
    }
    cudaError_t s = d->has_served ? cudaStreamSynchronize(d->load_stream) : cudaDeviceSynchronize();
    if (s != cudaSuccess)
        return ll_cuda_fail(error, "load", s);
    ll_cuda_unpin(d);
    int rc = upload_scales(d, w, error);
    if (rc == 0 && !d->has_served)
        rc = seal_first(d, weights, error);
    w->is_sealed = rc == 0;
    return rc;
}

static int dummy_linear(struct ll_device *d, struct ll_cuda_linear *l, uint32_t rows, uint32_t cols,
                        uint64_t *seed, struct ll_text *error)
{
    const uint64_t n = (uint64_t)rows * cols;
    int rc = make_linear(d, l, rows, cols, d->is_fp8_dummy ? LL_DTYPE_E4M3 : LL_DTYPE_BF16, error);

    if (rc < 0)
        return rc;
    /* Uniform of variance 1 / cols keeps activations near 1. */
    float spread = 1.7320508f;
    for (uint32_t k = cols; k > 1; k /= 4)
        spread *= 0.5f;
    if (l->dtype == LL_DTYPE_BF16)
        return ll_cuda_op(error, "random weights",
                          ll_cuda_random_bf16(l->w, n, spread, ++*seed, d->stream));
    for (uint32_t i = 0; i < rows; i++)
        l->scale_host[i] = spread / 240.0f;
    return ll_cuda_op(error, "random weights", ll_cuda_random_e4m3(l->w, n, ++*seed, d->stream));
}

static int dummy_array(struct ll_device *d, void **array, uint64_t n, uint64_t *seed,
                       struct ll_text *error)
{
    int rc = device_alloc(d, array, n * 2, error);

    return rc < 0 ? rc
                  : ll_cuda_op(error, "random weights",
                               ll_cuda_random_bf16(*array, n, 0.5f, ++*seed, d->stream));
}

int ll_cuda_weights_dummy(struct ll_device *d, uint32_t weights, struct ll_text *error)
{
    const struct ll_model_shape *s = &d->shape;
    struct ll_cuda_weights *w = &d->weights[weights];
    const uint32_t q = s->n_heads * s->head_dim;
    uint64_t seed = d->options.seed;
    int rc = dummy_array(d, &w->embed, (uint64_t)d->n_vocab_padded * s->n_embd, &seed, error);

    if (rc == 0)
        rc = dummy_array(d, &w->final_norm, s->n_embd, &seed, error);
    if (rc == 0 && !s->is_tied)
        rc = dummy_array(d, &w->head, (uint64_t)d->n_vocab_padded * s->n_embd, &seed, error);
    for (uint32_t i = 0; i < s->n_layers && rc == 0; i++) {
        struct ll_cuda_layer *l = &w->layer[i];
        const uint32_t qkv_rows = q + 2 * s->n_kv_heads * s->head_dim;
        if ((rc = dummy_array(d, &l->attn_norm, s->n_embd, &seed, error)) == 0 &&
            (rc = dummy_array(d, &l->ffn_norm, s->n_embd, &seed, error)) == 0 &&
            (rc = dummy_linear(d, &l->qkv, qkv_rows, s->n_embd, &seed, error)) == 0 &&
            (rc = dummy_linear(d, &l->o, s->n_embd, q, &seed, error)) == 0 &&
            (rc = dummy_linear(d, &l->gate_up, 2 * s->n_ff, s->n_embd, &seed, error)) == 0)
            rc = dummy_linear(d, &l->down, s->n_embd, s->n_ff, &seed, error);
    }
    return rc;
}

static void free_linear(struct ll_cuda_linear *l)
{
    cudaFree(l->w);
    ll_cuda_scale_free(l);
}

void ll_cuda_weights_free(struct ll_device *d)
{
    for (uint32_t set = 0; set < 2; set++) {
        struct ll_cuda_weights *w = &d->weights[set];
        for (uint32_t i = 0; w->layer != NULL && i < d->shape.n_layers; i++) {
            cudaFree(w->layer[i].attn_norm);
            cudaFree(w->layer[i].ffn_norm);
            free_linear(&w->layer[i].qkv);
            free_linear(&w->layer[i].o);
            free_linear(&w->layer[i].gate_up);
            free_linear(&w->layer[i].down);
        }
        if (w->head != w->embed)
            cudaFree(w->head);
        cudaFree(w->embed);
        cudaFree(w->final_norm);
        cudaFree(w->kv_scale);
        free(w->kv_scale_host);
        free(w->layer);
    }
}
