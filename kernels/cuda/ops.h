/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/ops.h - the launchers, one an op: each checks shapes, enqueues on stream, neither
 * allocates nor synchronises, so that a graph may capture it. 0, -EINVAL or -EIO.
 *
 * Dims: T tokens of the step (padded to its bucket), E width, H heads, K KV heads, D head_dim,
 * F n_ff, V vocabulary, R logit rows. All matrices row-major bf16 unless said. */
#ifndef KERNELS_CUDA_OPS_H
#define KERNELS_CUDA_OPS_H

#include "kernels/cuda/decode_split.h"
#include "kernels/cuda/state.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The device's fixed tables of the running step. All pointers are device memory. */
struct ll_cuda_tables {
    struct ll_cuda_counts *counts;
    uint32_t *step;                              /* the device's own step counter */
    uint64_t *begin_ns;                          /* globaltimer at the step's start */
    uint32_t *token_id, *token_pos, *token_slot; /* [n_tokens_max] */
    struct ll_cuda_logit *logits;                /* [n_logits_max] */
    struct ll_cuda_decode *decode;               /* [n_rows_max] */
    struct ll_cuda_tile *tiles;                  /* [n_tiles_max] */
    struct ll_cuda_slot *slots;                  /* [n_slots] */
    uint32_t *page_table;                        /* [n_slots][pages_per_seq] */
    uint32_t pages_per_seq;
    uint16_t *penalty;    /* [n_slots][V]: bit 15 seen, bits 0..14 output count; NULL none */
    struct ll_bias *bias; /* [n_slots][LL_CUDA_BIAS_MAX] */
};

/* Copies area step % AREAS into the tables, applies inits and page sets; resolves ids that the
 * device sampled last. areas: device address of the mapped ring. n_tokens: the bucket. */
int ll_cuda_step_begin(const struct ll_cuda_tables *tables, const unsigned char *areas,
                       const struct ll_cuda_layout *layout, uint32_t n_tokens, uint32_t n_logits,
                       cudaStream_t stream);
/* Publishes: results are written; stores its time and number to *done (mapped), counts up. */
int ll_cuda_step_end(const struct ll_cuda_tables *tables, struct ll_cuda_done *done,
                     cudaStream_t stream);

/* out[t] = table[id[t]]; padding tokens give zeros. */
int ll_cuda_embed(void *out, const void *table, const uint32_t *token_id, const uint32_t *slot,
                  uint32_t n_tokens, uint32_t n_embd, uint32_t n_vocab, cudaStream_t stream);

/* x += delta (NULL: none), then out = rmsnorm(x) * weight in bf16, or quantised: out e4m3 and
 * scale[t] = min(amax, bound) / 448 (floor 1e-12) when scale is not NULL; larger numbers saturate.
 * bound: INFINITY, none. rows: NULL, or the tokens to take. */
int ll_cuda_rmsnorm(void *out, float *scale, void *x, const void *delta, const void *weight,
                    const struct ll_cuda_logit *rows, uint32_t n_rows, uint32_t n_embd, float eps,
                    float bound, cudaStream_t stream);
/* out = e4m3(x / scale[t]), scale[t] = min(amax, bound) / 448. */
int ll_cuda_quantize(void *out, float *scale, const void *x, uint32_t n_tokens, uint32_t n,
                     float bound, cudaStream_t stream);
/* out = silu(gate) * up of gate_up [T, 2F]; quantised when scale is not NULL. */
int ll_cuda_swiglu(void *out, float *scale, const void *gate_up, uint32_t n_tokens, uint32_t n_ff,
                   float bound, cudaStream_t stream);

struct ll_cuda_attend_args {
    const struct ll_cuda_tables *tables;
    void *qkv; /* [T, (H + 2K) D]; rope_append rotates Q in place */
    void *out; /* [T, H D] */
    void *kv;  /* this layer's pages: [page][k, v][K][64][D] */
    bool is_kv_fp8;
    const float *kv_scale; /* [k, v][K]: what an e4m3 page's numbers are multiplied by; NULL: 1 */
    const float *rope;     /* [context_max][D / 2][cos, sin] */
    float *partial;        /* decode: [items][K][ll_cuda_partial_floats] */
    uint32_t *arrived;     /* decode: [rows][K][LL_CUDA_DECODE_MERGERS], zero between steps */
    uint32_t n_heads, n_kv_heads, head_dim;
    uint32_t n_tokens, n_rows_max, n_tiles, n_blocks;
    float scale;     /* 1 / sqrt(D) */
    bool is_rotated; /* decode: rope_append ran before; else qkv is as the product left it, and
                      * attend_decode rotates, and puts the new tokens into their pages */
};
int ll_cuda_rope_append(const struct ll_cuda_attend_args *args, cudaStream_t stream);
int ll_cuda_attend_decode(const struct ll_cuda_attend_args *args, cudaStream_t stream);
int ll_cuda_attend_prefill(const struct ll_cuda_attend_args *args, cudaStream_t stream);
/* The same on 9.0, where the one above hands over to it. */
int ll_cuda_attend_prefill_sm90(const struct ll_cuda_attend_args *args, cudaStream_t stream);

/* Samples and scores R rows of fp32 logits [R, V] (overwritten); results to mapped memory. */
struct ll_cuda_sample_args {
    const struct ll_cuda_tables *tables;
    float *logits;
    struct ll_row_out *rows; /* mapped ring: [AREAS][n_rows_max] */
    struct ll_ext *ext;      /* mapped ring: [AREAS][n_ext_max] */
    uint32_t n_rows_max, n_ext_max;
    uint32_t n_logits, n_vocab;
};
int ll_cuda_sample(const struct ll_cuda_sample_args *args, cudaStream_t stream);

/* The capability that this code runs as, 80, 89 or 90: the least of the device's and of what the
 * kernels were compiled for (a build for 8.0 runs on a 9.0 as its compiler made it). 0: no device.
 */
uint32_t ll_cuda_level(void);

/* y[t, n] *= x_scale[t] * w_scale[n], bf16. */
int ll_cuda_scale(void *y, const float *x_scale, const float *w_scale, uint32_t n_tokens,
                  uint32_t n, cudaStream_t stream);
/* out[r, k] = bf16(w[r, k] * scale[r]), w e4m3; k a multiple of 8. block: NULL, or [r / 16][k /
 * 128] to multiply by as well. */
int ll_cuda_widen(void *out, const void *w, const float *scale, const float *block, uint32_t n_rows,
                  uint32_t k, cudaStream_t stream);

/* Weights: element-wise conversion and random values (never zero), for load and --load-format
 * dummy. n elements. */
int ll_cuda_convert_bf16(void *out, const void *in, enum ll_dtype from, uint64_t n,
                         cudaStream_t stream);
int ll_cuda_random_bf16(void *out, uint64_t n, float spread, uint64_t seed, cudaStream_t stream);
int ll_cuda_random_e4m3(void *out, uint64_t n, uint64_t seed, cudaStream_t stream);
int ll_cuda_fill_f32(float *out, float value, uint64_t n, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
