/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/cuda_graph.c - one forward pass, and its capture as a graph a bucket.
 *
 * A graph is fixed by (token bucket, logit bucket, tile bucket, has decode rows, weight set): what
 * a batch holds beyond that comes through the device tables. Padding costs arithmetic, never bytes
 * of weights. Reads in the order of the model; compare kernels/cpu's forward pass. */
#include "kernels/cuda/tp.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>

/* 1, 2, 4, 8, 16..256 by 8, 320, 384, then four an octave: a prompt pays for at most a quarter more
 * tokens than it has. */
uint32_t ll_cuda_token_bucket(uint32_t n)
{
    if (n <= 2)
        return n;
    if (n <= 4)
        return 4;
    if (n <= 256)
        return (n + 7) / 8 * 8;
    uint32_t step = 64;
    while (n > 8 * step)
        step *= 2;
    return (n + step - 1) / step * step;
}

/* As many as tokens while those are few (every decode row samples); else a power of four, so that a
 * long prefill does not pay for logits nobody reads. */
uint32_t ll_cuda_logit_bucket(uint32_t n_logits, uint32_t n_tokens_bucket)
{
    uint32_t bucket = 1;

    if (n_logits == 0)
        return 0;
    while (bucket < n_logits)
        bucket *= 4;
    return bucket < n_tokens_bucket     ? bucket
           : n_logits > n_tokens_bucket ? bucket
                                        : n_tokens_bucket;
}

/* Few tokens: our own product, which takes bf16 activations whatever the weights are. On bf16
 * weights cuBLASLt's is the faster one from a few tokens on (kernels/README.md). */
#define BF16_SKINNY_MAX 2u

static bool is_skinny(const struct ll_device *d, const struct ll_cuda_linear *l, uint32_t t)
{
    const struct ll_skinny_args args = {.n_tokens = t, .n = l->rows, .k = l->cols};

    return d->has_skinny && (l->dtype == LL_DTYPE_E4M3 || t <= BF16_SKINNY_MAX) &&
           ll_cuda_skinny_fits(&args);
}

/* The most tokens for which our product by warpgroups is faster than cuBLASLt's, as measured on an
 * H200 (kernels/README.md): more where K is long; on bf16 weights only where they are small. */
static uint32_t wgmma_tokens(const struct ll_cuda_linear *l)
{
    if (l->block != NULL)
        return 0;
    if (l->dtype != LL_DTYPE_E4M3)
        return l->rows <= 4096 && l->cols <= 4096 ? 32 : 0;
    return l->cols >= l->rows ? 128 : 64;
}

static enum ll_gemm_kind kind_of(const struct ll_device *d, const struct ll_cuda_linear *l)
{
    if (l->dtype != LL_DTYPE_E4M3)
        return LL_GEMM_BF16;
    if (l->block != NULL)
        return LL_GEMM_W8A16;
    return d->level >= 90 ? LL_GEMM_FP8 : d->level >= 89 ? LL_GEMM_FP8_TENSOR : LL_GEMM_W8A16;
}

static int skinny(struct ll_device *d, const struct ll_cuda_linear *l, void *y, const void *x,
                  bool is_gated, uint32_t t, struct ll_text *error)
{
    const struct ll_skinny_args args = {
        .y = y,
        .x = x,
        .w = l->w,
        .w_scale = l->scale,
        .w_block = l->block,
        .partial = d->skinny_partial,
        .arrived = d->skinny_arrived,
        .n_tokens = t,
        .n = l->rows,
        .k = l->cols,
        .is_fp8 = l->dtype == LL_DTYPE_E4M3,
        .is_gated = is_gated,
    };

    return ll_cuda_op(error, "skinny product", ll_cuda_skinny(&args, d->stream));
}

/* Weights with block scales are widened to 16 bits for more tokens, which moves five times their
 * bytes: reading them up to three times is less (bench_blocks). */
#define BLOCK_PASSES_MAX 3u

static int skinny_passes(struct ll_device *d, const struct ll_cuda_linear *l, void *y,
                         const void *x, uint32_t t, struct ll_text *error)
{
    int rc = 0;

    for (uint32_t at = 0; at < t && rc == 0; at += LL_SKINNY_TOKENS_MAX)
        rc = skinny(d, l, (uint16_t *)y + (size_t)at * l->rows,
                    (const uint16_t *)x + (size_t)at * l->cols, false,
                    t - at < LL_SKINNY_TOKENS_MAX ? t - at : LL_SKINNY_TOKENS_MAX, error);
    return rc;
}

static struct ll_gemm_args linear_args(const struct ll_device *d, const struct ll_cuda_linear *l,
                                       void *y, const void *x, const float *x_scale, uint32_t t)
{
    return (struct ll_gemm_args){
        .kind = kind_of(d, l),
        .y = y,
        .x = x,
        .w = l->w,
        .x_scale = x_scale,
        .w_scale = l->scale,
        .w_block = l->block,
        .scratch = d->widened,
        .scratch_bytes = LL_CUDA_WIDENED,
        .t = t,
        .n = l->rows,
        .k = l->cols,
    };
}

static int linear(struct ll_device *d, const struct ll_cuda_linear *l, void *y, const void *x,
                  const float *x_scale, uint32_t t, struct ll_text *error)
{
    if (is_skinny(d, l, t))
        return skinny(d, l, y, x, false, t, error);
    if (l->block != NULL && t <= BLOCK_PASSES_MAX * LL_SKINNY_TOKENS_MAX &&
        is_skinny(d, l, LL_SKINNY_TOKENS_MAX))
        return skinny_passes(d, l, y, x, t, error);
    const struct ll_skinny_wgmma_args few = {
        .y = y,
        .x = x,
        .w = l->w,
        .x_scale = x_scale,
        .w_scale = l->scale,
        .partial = d->skinny_partial,
        .arrived = d->skinny_arrived,
        .n_tokens = t,
        .n = l->rows,
        .k = l->cols,
        .is_fp8 = l->dtype == LL_DTYPE_E4M3,
    };
    if (d->has_wgmma && t <= wgmma_tokens(l) && ll_cuda_skinny_wgmma_fits(&few))
        return ll_cuda_op(error, "product of few tokens", ll_cuda_skinny_wgmma(&few, d->stream));
    const struct ll_gemm_args args = linear_args(d, l, y, x, x_scale, t);
    return ll_gemm_run(&d->gemm, &args, d->stream, error);
}

/* Where the row scales of l's input go; NULL: it takes bf16. */
static float *scale_for(const struct ll_device *d, const struct ll_cuda_linear *l, uint32_t t,
                        float *scale)
{
    const enum ll_gemm_kind kind = kind_of(d, l);

    return (kind == LL_GEMM_FP8 || kind == LL_GEMM_FP8_TENSOR) && !is_skinny(d, l, t) ? scale
                                                                                      : NULL;
}

static int attention(struct ll_device *d, uint32_t layer, const struct ll_cuda_weights *weights,
                     const struct ll_cuda_size *size, struct ll_text *error)
{
    const uint32_t t = size->n_tokens, n_tiles = size->n_tiles;
    const struct ll_model_shape *s = &d->shape;
    const struct ll_cuda_layer *w = &weights->layer[layer];
    const struct ll_cuda_attend_args args = {
        .tables = &d->tables,
        .qkv = d->qkv,
        .out = d->attn,
        .kv = (unsigned char *)d->kv + (size_t)layer * d->n_pages * d->page_bytes,
        .is_kv_fp8 = d->is_kv_fp8,
        .kv_scale = ll_cuda_kv_scale_of(d, weights, layer),
        .rope = d->rope,
        .partial = d->partial,
        .arrived = d->arrived,
        .n_heads = s->n_heads,
        .n_kv_heads = s->n_kv_heads,
        .head_dim = s->head_dim,
        .n_tokens = t,
        .n_rows_max = d->options.n_rows_max,
        .n_tiles = n_tiles,
        .n_blocks = d->n_sm * 2,
        .scale = 1.0f / sqrtf((float)s->head_dim),
        .is_rotated = n_tiles > 0,
    };
    int rc = args.is_rotated ? ll_cuda_rope_append(&args, d->stream) : 0;

    if (rc == 0 && size->has_decode)
        rc = ll_cuda_attend_decode(&args, d->stream);
    if (rc == 0 && n_tiles > 0)
        rc = ll_cuda_attend_prefill(&args, d->stream);
    const bool is_quantized = scale_for(d, &w->o, t, d->act_scale) != NULL;
    if (rc == 0 && is_quantized)
        rc = ll_cuda_quantize(d->act, d->act_scale, d->attn, t, w->o.cols, d->activation_max,
                              d->stream);
    if (rc < 0)
        return ll_cuda_op(error, "attention", rc);
    return linear(d, &w->o, d->delta, is_quantized ? d->act : d->attn, d->act_scale, t, error);
}

static int feed_forward(struct ll_device *d, const struct ll_cuda_layer *w, uint32_t t,
                        struct ll_text *error)
{
    int rc = linear(d, &w->gate_up, d->gate_up, d->h, d->h_scale, t, error);

    if (rc < 0)
        return rc;
    if (is_skinny(d, &w->down, t))
        return skinny(d, &w->down, d->delta, d->gate_up, true, t, error);
    rc = ll_cuda_swiglu(d->act, scale_for(d, &w->down, t, d->act_scale), d->gate_up, t,
                        d->shape.n_ff, d->activation_max, d->stream);
    if (rc < 0)
        return ll_cuda_op(error, "swiglu", rc);
    return linear(d, &w->down, d->delta, d->act, d->act_scale, t, error);
}

/* x += delta; h = norm(x), quantised if the next linear wants it. */
static int norm(struct ll_device *d, const void *delta, const void *weight,
                const struct ll_cuda_linear *next, uint32_t t, struct ll_text *error)
{
    int rc = ll_cuda_rmsnorm(d->h, scale_for(d, next, t, d->h_scale), d->x, delta, weight, NULL, t,
                             d->shape.n_embd, d->shape.rms_eps, d->activation_max, d->stream);

    return ll_cuda_op(error, "rmsnorm", rc);
}

static int sample(struct ll_device *d, uint32_t n_logits, struct ll_text *error)
{
    const struct ll_cuda_sample_args args = {
        .tables = &d->tables,
        .logits = d->logits_all,
        .rows = (struct ll_row_out *)(d->results_device + d->layout.out_rows),
        .ext = (struct ll_ext *)(d->results_device + d->layout.out_ext),
        .n_rows_max = d->options.n_rows_max,
        .n_ext_max = d->layout.n_ext_max,
        .n_logits = n_logits,
        .n_vocab = d->n_vocab_all,
    };

    return ll_cuda_op(error, "sample", ll_cuda_sample(&args, d->stream));
}

static struct ll_gemm_args head_args(const struct ll_device *d, const struct ll_cuda_weights *w,
                                     uint32_t n_logits)
{
    return (struct ll_gemm_args){
        .kind = LL_GEMM_BF16_F32,
        .y = d->logits,
        .x = d->gathered,
        .w = w->head,
        .t = n_logits,
        .n = d->n_vocab_padded,
        .k = d->shape.n_embd,
    };
}

/* logits = head * gathered. */
static int head_product(struct ll_device *d, const struct ll_cuda_weights *w, uint32_t n_logits,
                        struct ll_text *error)
{
    const struct ll_gemm_args head = head_args(d, w, n_logits);
    const struct ll_skinny_args few = {
        .y = d->logits,
        .x = d->gathered,
        .w = w->head,
        .partial = d->skinny_partial,
        .arrived = d->skinny_arrived,
        .n_tokens = n_logits,
        .n = d->n_vocab_padded,
        .k = d->shape.n_embd,
        .is_f32 = true,
    };
    if (d->has_skinny && ll_cuda_skinny_fits(&few))
        return ll_cuda_op(error, "head", ll_cuda_skinny(&few, d->stream));
    return ll_gemm_run(&d->gemm, &head, d->stream, error);
}

static int head_and_sample(struct ll_device *d, const struct ll_cuda_weights *w, uint32_t n_logits,
                           struct ll_text *error)
{
    int rc = ll_cuda_rmsnorm(d->gathered, NULL, d->x, d->delta, w->final_norm, d->tables.logits,
                             n_logits, d->shape.n_embd, d->shape.rms_eps, INFINITY, d->stream);
    if (rc < 0)
        return ll_cuda_op(error, "final norm", rc);
    rc = head_product(d, w, n_logits, error);
    return rc < 0 ? rc : sample(d, n_logits, error);
}

/* The same of a model in parts: between the products of all that this stream runs, their sums. */
static int norm_parts(struct ll_device *d, enum ll_tp_place place, uint32_t layer, uint32_t n_rows,
                      uint32_t weights, struct ll_text *error)
{
    struct ll_comm_norm args = {.n_rows = n_rows};

    for (uint32_t p = 0; p < ll_cuda_tp_led(d); p++) {
        struct ll_device *part = ll_cuda_tp_part(d, p);
        const struct ll_cuda_weights *w = &part->weights[weights];
        const struct ll_cuda_layer *l = &w->layer[layer];
        const bool is_attn = place == LL_TP_FIRST || place == LL_TP_ATTN;
        const bool is_last = place == LL_TP_LAST;
        args.delta[p] = part->delta;
        args.x[p] = part->x;
        args.out[p] = is_last ? part->gathered : part->h;
        args.scale[p] =
            is_last ? NULL
                    : scale_for(part, is_attn ? &l->qkv : &l->gate_up, n_rows, part->h_scale);
        args.weight = is_last ? w->final_norm : is_attn ? l->attn_norm : l->ffn_norm;
        args.rows = is_last ? part->tables.logits : NULL;
    }
    args.sets_x = place == LL_TP_FIRST;
    return ll_cuda_tp_norm(d, &args, error);
}

static int forward_parts(struct ll_device *d, const struct ll_cuda_size *size,
                         struct ll_text *error)
{
    const uint32_t t = size->n_tokens, n_logits = size->n_logits, weights = size->weights;
    const uint32_t n_layers = d->shape.n_layers, n = ll_cuda_tp_led(d);
    int rc = ll_cuda_step_begin(&d->tables, d->areas_device, &d->layout, t, n_logits, d->stream);

    if (rc < 0)
        return ll_cuda_op(error, "step begin", rc);
    rc = ll_cuda_tp_embed(d, t, n_logits, weights, error);
    for (uint32_t i = 0; i < n_layers && rc == 0; i++) {
        rc = norm_parts(d, i == 0 ? LL_TP_FIRST : LL_TP_ATTN, i, t, weights, error);
        for (uint32_t p = 0; p < n && rc == 0; p++) {
            struct ll_device *part = ll_cuda_tp_part(d, p);
            const struct ll_cuda_weights *w = &part->weights[weights];
            rc = linear(part, &w->layer[i].qkv, part->qkv, part->h, part->h_scale, t, error);
            if (rc == 0)
                rc = attention(part, i, w, size, error);
        }
        if (rc == 0)
            rc = norm_parts(d, LL_TP_FFN, i, t, weights, error);
        for (uint32_t p = 0; p < n && rc == 0; p++) {
            struct ll_device *part = ll_cuda_tp_part(d, p);
            rc = feed_forward(part, &part->weights[weights].layer[i], t, error);
        }
    }
    if (rc == 0 && n_logits > 0) {
        rc = norm_parts(d, LL_TP_LAST, 0, n_logits, weights, error);
        for (uint32_t p = 0; p < n && rc == 0; p++) {
            struct ll_device *part = ll_cuda_tp_part(d, p);
            rc = head_product(part, &part->weights[weights], n_logits, error);
        }
        if (rc == 0)
            rc = ll_cuda_tp_logits(d, n_logits, error);
        if (rc == 0 && d->rank == 0)
            rc = sample(d, n_logits, error);
    }
    return rc < 0 ? rc
                  : ll_cuda_op(error, "step end",
                               ll_cuda_step_end(&d->tables, d->done_device, d->stream));
}

static int forward(struct ll_device *d, const struct ll_cuda_size *size, struct ll_text *error)
{
    const struct ll_cuda_weights *w = &d->weights[size->weights];
    const uint32_t n_tokens = size->n_tokens, n_logits = size->n_logits;
    const uint32_t n_layers = d->shape.n_layers;
    if (d->tp != NULL)
        return forward_parts(d, size, error);
    int rc =
        ll_cuda_step_begin(&d->tables, d->areas_device, &d->layout, n_tokens, n_logits, d->stream);

    if (rc == 0)
        rc = ll_cuda_embed(d->x, w->embed, d->tables.token_id, d->tables.token_slot, n_tokens,
                           d->shape.n_embd, d->shape.n_vocab, d->stream);
    if (rc < 0)
        return ll_cuda_op(error, "step begin", rc);
    rc = norm(d, NULL, w->layer[0].attn_norm, &w->layer[0].qkv, n_tokens, error);
    for (uint32_t i = 0; i < n_layers && rc == 0; i++) {
        const struct ll_cuda_layer *layer = &w->layer[i];
        rc = linear(d, &layer->qkv, d->qkv, d->h, d->h_scale, n_tokens, error);
        if (rc == 0)
            rc = attention(d, i, w, size, error);
        if (rc == 0)
            rc = norm(d, d->delta, layer->ffn_norm, &layer->gate_up, n_tokens, error);
        if (rc == 0)
            rc = feed_forward(d, layer, n_tokens, error);
        if (rc == 0 && i + 1 < n_layers)
            rc = norm(d, d->delta, layer[1].attn_norm, &layer[1].qkv, n_tokens, error);
    }
    if (rc == 0 && n_logits > 0)
        rc = head_and_sample(d, w, n_logits, error);
    return rc < 0 ? rc
                  : ll_cuda_op(error, "step end",
                               ll_cuda_step_end(&d->tables, d->done_device, d->stream));
}

static bool is_same(const struct ll_cuda_size *a, const struct ll_cuda_size *b)
{
    return a->n_tokens == b->n_tokens && a->n_logits == b->n_logits && a->n_tiles == b->n_tiles &&
           a->has_decode == b->has_decode && a->weights == b->weights;
}

int ll_cuda_graph_get(struct ll_device *d, const struct ll_cuda_size *size, cudaGraphExec_t *out,
                      struct ll_text *error)
{
    for (uint32_t i = 0; i < d->n_graphs; i++)
        if (is_same(&d->graph[i].size, size)) {
            *out = d->graph[i].exec;
            return 0;
        }
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaError_t s = cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal);
    if (s != cudaSuccess)
        return ll_cuda_fail(error, "begin capture", s);
    int rc = forward(d, size, error);
    s = cudaStreamEndCapture(d->stream, &graph);
    if (rc < 0)
        return rc;
    if (s != cudaSuccess)
        return ll_cuda_fail(error, "end capture", s);
    s = cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    if (s != cudaSuccess)
        return ll_cuda_fail(error, "graph instantiate", s);
    cudaGraphUpload(exec, d->stream);

    /* Full: the oldest makes room (its memory is small; buckets in use come back). */
    if (d->n_graphs == LL_CUDA_GRAPHS_MAX) {
        cudaStreamSynchronize(d->stream);
        cudaGraphExecDestroy(d->graph[0].exec);
        for (uint32_t i = 1; i < d->n_graphs; i++)
            d->graph[i - 1] = d->graph[i];
        d->n_graphs--;
    }
    d->graph[d->n_graphs++] = (struct ll_cuda_graph){*size, exec};
    *out = exec;
    return 0;
}

int ll_cuda_launch(struct ll_device *d, const struct ll_cuda_size *size, struct ll_text *error)
{
    cudaGraphExec_t graph;

    if (!d->has_graphs)
        return forward(d, size, error);
    int rc = ll_cuda_graph_get(d, size, &graph, error);
    if (rc < 0)
        return rc;
    cudaError_t s = cudaGraphLaunch(graph, d->stream);
    return s == cudaSuccess ? 0 : ll_cuda_fail(error, "graph launch", s);
}

/* Measures GEMM candidates for the decode buckets and the largest prefill one. */
int ll_cuda_tune(struct ll_device *d, uint32_t weights, struct ll_text *error)
{
    static const uint32_t buckets[] = {1,   2,   4,   8,    16,   32,   64,
                                       128, 256, 512, 1024, 2048, 4096, 8192};
    const struct ll_cuda_weights *w = &d->weights[weights];
    const struct ll_cuda_layer *layer = &w->layer[d->shape.n_layers / 2];
    const struct ll_cuda_linear *linears[] = {&layer->qkv, &layer->o, &layer->gate_up,
                                              &layer->down};
    void *const outputs[] = {d->qkv, d->delta, d->gate_up, d->delta};
    void *const inputs[] = {d->h, d->act, d->h, d->act};
    int rc = 0;

    for (uint32_t b = 0; b < sizeof(buckets) / sizeof(buckets[0]) && rc == 0; b++) {
        if (buckets[b] > d->options.n_tokens_max)
            break;
        for (uint32_t i = 0; i < 4 && rc == 0; i++) {
            const struct ll_gemm_args args =
                linear_args(d, linears[i], outputs[i], inputs[i], i % 2 ? d->act_scale : d->h_scale,
                            buckets[b]);
            rc = ll_gemm_tune(&d->gemm, &args, d->stream, error);
        }
        if (rc == 0 && buckets[b] <= 256 && buckets[b] <= d->layout.n_logits_max) {
            const struct ll_gemm_args head = head_args(d, w, buckets[b]);
            rc = ll_gemm_tune(&d->gemm, &head, d->stream, error);
        }
    }
    return rc;
}
