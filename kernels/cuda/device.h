/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/device.h - the CUDA backend's own state, shared by its host files only.
 *
 *   cuda_backend.c  open, close, memory plan      cuda_weights.c  want, feed, seal, dummy weights
 *   cuda_graph.c    one forward pass as a graph   cuda_step.c     submit, poll, page copies
 *   tp.c            a model in parts: N of these  cuda_sets.c     weights loaded beside steps (B9)
 *   cuda_kv_scale.c the scales of an e4m3 cache
 *
 * Everything is made at open but weights (at their first want) and graphs (common buckets at seal,
 * others at first use). The step thread touches only mapped host memory and launches graphs. */
#ifndef KERNELS_CUDA_DEVICE_H
#define KERNELS_CUDA_DEVICE_H

#include "kernels/cuda/gemm_lt.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/skinny.h"
#include "kernels/cuda/skinny_wgmma.h"

#include <cuda_runtime_api.h>

#define LL_CUDA_GRAPHS_MAX 256
#define LL_CUDA_COPIES_MAX 64
#define LL_CUDA_STAGING    (16u << 20)
#define LL_CUDA_WIDENED    (128u << 20)

#define LL_CUDA_BLOCK      128u /* columns of a block scale */
#define LL_CUDA_BLOCK_ROWS 16u

/* A linear layer's weight [out][in], bf16 or e4m3 with scales (cuda_scales.c). */
struct ll_cuda_linear {
    void *w;
    float *scale; /* device, [rows]; NULL: bf16 */
    float *block; /* device, [ceil(rows / 16)][ceil(cols / 128)] on top of scale; NULL: none */
    float *scale_host, *block_host;
    uint32_t rows, cols;
    enum ll_dtype dtype;
};

struct ll_cuda_layer {
    struct ll_cuda_linear qkv, o, gate_up, down;
    void *attn_norm, *ffn_norm;
};

struct ll_cuda_weights {
    struct ll_cuda_layer *layer;
    void *embed, *final_norm, *head; /* head: embed when tied; rows padded to 8 */
    float *kv_scale, *kv_scale_host; /* cuda_kv_scale.c; NULL: all 1 */
    uint64_t n_fed, n_due;
    _Atomic bool is_sealed; /* the thread that loads writes it, the step thread looks */
};

struct ll_cuda_size { /* of a step, padded to its buckets: what fixes its graph */
    uint32_t n_tokens, n_logits, n_tiles, weights;
    bool has_decode;
};

struct ll_cuda_graph {
    struct ll_cuda_size size;
    cudaGraphExec_t exec;
};

struct ll_cuda_flight { /* host view of a batch in flight */
    int64_t ticket;
    uint64_t submit_ns;
    uint32_t n_rows;
    bool is_late_logged;
};

struct ll_device { /* a whole model's, or of one part of it (tp.h) */
    struct ll_backend_options options;
    struct ll_model_shape shape; /* of this part */
    struct ll_cuda_tp *tp;       /* all parts; NULL: there is one */
    uint32_t rank;               /* of this part */
    int gpu;
    bool is_led;          /* rank 0's stream, tables and graphs run this part too (lockstep) */
    uint32_t n_vocab_all; /* ids of the whole model; shape.n_vocab are this part's */
    uint32_t n_pages, n_host_pages, n_sm;
    uint32_t level; /* 80, 89, 90: ll_cuda_level() */
    uint32_t n_vocab_padded;
    bool is_fp8_dummy; /* extra "weights=fp8" */
    bool is_kv_fp8;
    float activation_max; /* INFINITY: no bound */
    size_t page_bytes;    /* one page of one layer, K and V */
    struct ll_cuda_weights weights[2];
    struct ll_gemm gemm;
    cudaStream_t stream, copy_stream, load_stream;

    /* mapped host memory and its device address */
    unsigned char *areas, *areas_device;
    unsigned char *results, *results_device;
    struct ll_cuda_done *done, *done_device;
    struct ll_cuda_layout layout;

    /* device memory */
    struct ll_cuda_tables tables;
    void *kv;               /* [L][n_pages][2][K][64][D] */
    unsigned char *kv_host; /* pinned: [n_host_pages][L][2][K][64][D] */
    float *rope;
    void *x, *h, *qkv, *attn, *delta, *gate_up, *act, *gathered;
    float *h_scale, *act_scale, *logits, *partial;
    float *logits_all; /* rank 0: of all parts [R, V]; logits itself where there is one */
    uint32_t *arrived;
    float *skinny_partial;
    uint32_t *skinny_arrived;
    bool has_skinny;        /* off for comparison: extra "skinny=0" */
    bool has_wgmma;         /* likewise */
    bool has_graphs;        /* off for comparison and tools: extra "graph=0" */
    void *widened;          /* e4m3 weights as bf16, a piece at a time: 8.0, block scales */
    unsigned char *convert; /* staging of a conversion */
    void *pinned;           /* the loader's staging, until seal */
    uint64_t weights_bytes;

    /* penalties and biases of new slots: pinned staging, copied on the stream */
    unsigned char *slot_staging[LL_CUDA_AREAS];
    cudaEvent_t slot_copied[LL_CUDA_AREAS];

    struct ll_cuda_graph graph[LL_CUDA_GRAPHS_MAX];
    uint32_t n_graphs;

    int64_t n_submitted, n_done;
    struct ll_cuda_flight flight[2];
    uint64_t next_check_ns;
    int sticky;

    cudaEvent_t copy_event[LL_CUDA_COPIES_MAX], batch_event;
    int64_t n_copies;

    /* the thread that loads weights, beside the step thread (cuda_sets.c) */
    uint32_t loading; /* set */
    bool has_served;  /* a set was sealed: S2 holds */
    cudaEvent_t feed_event[LL_CUDA_COPIES_MAX];
    int64_t n_feeds;
};

/* Records "<what>: <CUDA's words>" and returns -EIO (or -ENOMEM for an allocation). */
int ll_cuda_fail(struct ll_text *error, const char *what, cudaError_t status);
/* What a launcher of ops.h or comm.h gave back: 0, or a negative code whose reason is recorded. */
int ll_cuda_op(struct ll_text *error, const char *what, int rc);
/* Host memory ran out: records it, -ENOMEM. */
int ll_cuda_no_memory(struct ll_text *error, const char *what);
cudaError_t ll_cuda_zeroed(void **out, size_t size_bytes);

/* Words of options.extra: "key=value" is there; the number of "device=N", 0 without. */
bool ll_cuda_has_extra(const struct ll_backend_options *options, const char *key_value);
int ll_cuda_first_gpu(const struct ll_backend_options *options);

/* cuda_backend.c: one part, all but its KV pages; then those. shape is the part's, tp and rank are
 * NULL and 0 for a model in one piece. On failure nothing is left. */
int ll_cuda_part_open(struct ll_device **out, const struct ll_backend_options *options,
                      const struct ll_model_shape *shape, struct ll_cuda_tp *tp, uint32_t rank,
                      struct ll_backend_caps *caps, struct ll_text *error);
/* Pages that there is memory for when n_sharing parts like this one share the GPU. */
int ll_cuda_plan_pages(struct ll_device *d, uint32_t n_sharing, uint32_t *n_pages,
                       struct ll_text *error);
int ll_cuda_make_kv(struct ll_device *d, uint32_t n_pages, struct ll_text *error);
void ll_cuda_part_close(struct ll_device *d);
/* Memory, summed up over parts. */
void ll_cuda_add_caps(const struct ll_device *d, struct ll_backend_caps *caps);

/* cuda_weights.c */
int ll_cuda_want(struct ll_device *d, const struct ll_tensor *tensor, struct ll_span *spans,
                 uint32_t n_max, struct ll_text *error);
int ll_cuda_pin(struct ll_device *d, void *base, size_t size_bytes, struct ll_text *error);
int ll_cuda_feed(struct ll_device *d, uint32_t weights, const struct ll_tensor *tensor,
                 uint32_t rank, uint64_t offset, const void *data, size_t n_bytes, uint64_t *ticket,
                 struct ll_text *error);
int ll_cuda_fed(struct ll_device *d, uint64_t ticket, struct ll_text *error);
int ll_cuda_seal(struct ll_device *d, uint32_t weights, struct ll_text *error);
/* The loader's memory is its own again. */
void ll_cuda_unpin(struct ll_device *d);
int ll_cuda_weights_dummy(struct ll_device *d, uint32_t weights, struct ll_text *error);
void ll_cuda_weights_free(struct ll_device *d);

/* cuda_sets.c: ll_backend.begin, of one part. */
int ll_cuda_begin(struct ll_device *d, uint32_t weights, struct ll_text *error);
/* S3: the refusal; what: "block scales". */
int ll_cuda_set_lacks(struct ll_text *error, const char *what);

/* cuda_scales.c: number i of a scale tensor's data. */
float ll_cuda_scale_value(const void *data, enum ll_dtype dtype, size_t i);

/* cuda_kv_scale.c: as want, feed, seal, for LL_PART_KV_SCALE. */
int ll_cuda_kv_scale_want(struct ll_device *d, const struct ll_tensor *tensor,
                          struct ll_span *spans, struct ll_text *error);
int ll_cuda_kv_scale_feed(struct ll_device *d, struct ll_cuda_weights *w,
                          const struct ll_tensor *tensor, uint64_t offset, const void *data,
                          size_t n_bytes, struct ll_text *error);
int ll_cuda_kv_scale_seal(struct ll_device *d, struct ll_cuda_weights *w, struct ll_text *error);
/* Of one layer, on the device: [k, v][K]; NULL: all 1. */
const float *ll_cuda_kv_scale_of(const struct ll_device *d, const struct ll_cuda_weights *w,
                                 uint32_t layer);

/* cuda_graph.c */
uint32_t ll_cuda_token_bucket(uint32_t n_tokens);
uint32_t ll_cuda_logit_bucket(uint32_t n_logits, uint32_t n_tokens_bucket);
/* The graph of a step of this size, captured at first use. */
int ll_cuda_graph_get(struct ll_device *d, const struct ll_cuda_size *size, cudaGraphExec_t *out,
                      struct ll_text *error);
/* Launches such a step on the device's stream: its graph, or with "graph=0" kernel by kernel. */
int ll_cuda_launch(struct ll_device *d, const struct ll_cuda_size *size, struct ll_text *error);
int ll_cuda_tune(struct ll_device *d, uint32_t weights, struct ll_text *error);

/* cuda_step.c */
int64_t ll_cuda_submit(struct ll_device *d, const struct ll_batch *batch, struct ll_text *error);
int ll_cuda_poll(struct ll_device *d, int64_t ticket, struct ll_result *out, struct ll_text *error);
int64_t ll_cuda_copy(struct ll_device *d, const struct ll_copy *list, uint32_t n,
                     struct ll_text *error);
int ll_cuda_copied(struct ll_device *d, int64_t ticket, struct ll_text *error);

#ifdef LL_CUDA_FAULTS /* tests/kernels/cuda_fault.c: the test build's way to break the device */
int ll_cuda_fault(struct ll_device *d);
#endif

#endif
