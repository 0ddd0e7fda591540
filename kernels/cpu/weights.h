/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/weights.h - a weight set: what is wanted, how it lies in memory, what has come.
 *
 *   W1  a matrix is [out][in], row-major, as in the file; a row is padded with zeros to a multiple
 *       of 16 numbers, so inner loops have no tails
 *   W2  BF16 stays BF16. F16 and F32 become what is computed in: F32 with dtype float32 (exact),
 *       BF16 with bfloat16 (rounded). Norm vectors are always widened to F32
 *   W3  bytes come in any order and any split, also through the middle of a number; seal knows
 *       each range that has not come and names it
 *   W4  the head of a tied model is its embedding: not wanted, not stored
 *   W5  linears may be e4m3, each matrix with a scale of its own: for all of it, for each row, or
 *       for blocks of 128 x 128. They stay e4m3 (W8A16: weights are widened in the inner loops,
 *       activations are not narrowed, so their scales are not wanted). seal spreads the scales to
 *       one a row, or one a row and 128 columns. A NaN among weights or scales is refused
 *   W6  with KV pages in e4m3 the cache's scales of K and V are wanted: one for all heads or one a
 *       head; 1 where none come */
#ifndef KERNELS_CPU_WEIGHTS_H
#define KERNELS_CPU_WEIGHTS_H

#include "kernels/backend.h"
#include "kernels/cpu/inner.h"

struct ll_cpu_matrix {
    const void *data;
    enum ll_cpu_form form;
    uint32_t rows, cols;
    uint32_t stride;    /* numbers from row to row: cols up to a multiple of 16 */
    const float *scale; /* e4m3: as in struct ll_cpu_rows */
    uint32_t n_scales;
};

struct ll_cpu_range { /* bytes of the file's tensor, [begin, end) */
    uint64_t begin, end;
};

struct ll_cpu_split { /* a number of the file of which only some bytes have come */
    uint64_t index;
    uint8_t bytes[4], mask;
};

struct ll_cpu_tensor { /* a weight, or its scales as they came */
    struct ll_cpu_matrix m;
    void *data;   /* m.data, writable */
    float *scale; /* m.scale, writable; from malloc */
    size_t data_bytes;
    enum ll_dtype dtype;      /* of the file; 0 before the first piece */
    struct ll_cpu_range *got; /* sorted, apart from each other */
    struct ll_cpu_split *split;
    uint32_t n_got, n_got_max, n_split, n_split_max;
};

#define LL_CPU_PARTS 3u /* weight, its scales, the cache's scales */

struct ll_cpu_weights {
    struct ll_model_shape shape;
    enum ll_dtype compute; /* F32 or BF16 */
    int numa_node;
    bool is_sealed;
    bool is_follower;             /* has linears only (ranks.h, T4) */
    bool has_fp8_kv;              /* W6 */
    float *kv_scale;              /* [L][K, V][kv head], made by seal; NULL: all 1 */
    struct ll_cpu_tensor *tensor; /* [max(L, 1)][LL_TENSOR_ROLES][LL_CPU_PARTS]; layer 0 holds
                                     those without */
};

/* -ENOMEM. A set opened or not (zeroed) may be closed. */
int ll_cpu_weights_open(struct ll_cpu_weights *weights, const struct ll_model_shape *shape,
                        enum ll_dtype compute, int numa_node, struct ll_text *error);
void ll_cpu_weights_close(struct ll_cpu_weights *weights);

/* As ll_backend.begin, want, feed, seal. After a seal the first piece, too, opens the set again,
 * empty; its memory is used again where it fits. */
void ll_cpu_weights_begin(struct ll_cpu_weights *weights);
int ll_cpu_weights_want(const struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                        struct ll_span *spans, uint32_t n_max, struct ll_text *error);
int ll_cpu_weights_feed(struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                        uint64_t offset, const void *data, size_t n_bytes, struct ll_text *error);
/* As ll_backend.place. */
void *ll_cpu_weights_place(struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                           uint64_t offset, size_t n_bytes);
int ll_cpu_weights_seal(struct ll_cpu_weights *weights, struct ll_text *error);

/* Gives a set that has none as much memory as another one has, touched, so that a later load finds
 * it. -ENOMEM. */
int ll_cpu_weights_reserve(struct ll_cpu_weights *weights, const struct ll_cpu_weights *like,
                           struct ll_text *error);

/* Fills the set with random numbers, none of them zero, that depend on nothing but seed and
 * shape, scaled so that activations stay near 1; with is_fp8 the linears are e4m3. -ENOMEM. */
int ll_cpu_weights_dummy(struct ll_cpu_weights *weights, uint64_t seed, bool is_fp8,
                         struct ll_text *error);

/* Bytes that a set of BF16 files takes. */
uint64_t ll_cpu_weights_bytes(const struct ll_model_shape *shape);

static inline const struct ll_cpu_matrix *ll_cpu_weight(const struct ll_cpu_weights *weights,
                                                        uint32_t layer, enum ll_tensor_role role)
{
    if (role == LL_TENSOR_HEAD && weights->shape.is_tied)
        role = LL_TENSOR_EMBED;
    return &weights->tensor[(layer * LL_TENSOR_ROLES + role) * LL_CPU_PARTS].m;
}

/* What the cache's keys (side 0) or values (1) are divided by before they are stored in e4m3. */
static inline float ll_cpu_kv_scale(const struct ll_cpu_weights *weights, uint32_t layer,
                                    uint32_t side, uint32_t kv_head)
{
    if (weights->kv_scale == NULL)
        return 1;
    return weights->kv_scale[(layer * 2 + side) * weights->shape.n_kv_heads + kv_head];
}

#endif
