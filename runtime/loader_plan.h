/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/loader_plan.h - what to read in which order, known before the first read.
 *
 *   P1  pieces are sorted by file and offset; bytes that several ranks want are read once
 *   P2  a chunk is a run of wanted bytes without a gap, of at most one buffer (with the widening of
 *       direct reads); chunks do not overlap and follow the files front to back
 *   P3  a tensor that is to be quantised is one piece, whole; its chunks end with a row */
#ifndef RUNTIME_LOADER_PLAN_H
#define RUNTIME_LOADER_PLAN_H

#include "runtime/checkpoint.h"

struct ll_load_quantised {                              /* a tensor that becomes FP8 on the way */
    struct ll_tensor weight, scale;                     /* as the backend gets them */
    uint32_t first_span, n_weight_spans, n_scale_spans; /* of plan.span: what the ranks want */
    uint16_t *scales;                                   /* [rows] bf16, filled chunk by chunk */
};

struct ll_load_piece { /* bytes of a file that go to one rank */
    const struct ll_checkpoint_tensor *tensor;
    struct ll_load_quantised *quantised; /* NULL: as they are */
    uint32_t rank;
    uint64_t begin, end;    /* in the file */
    uint64_t tensor_offset; /* of begin in the tensor */
};

struct ll_load_chunk {          /* one read */
    uint32_t file, first_piece; /* pieces from there on, while they begin before end */
    uint64_t begin, end;
};

struct ll_load_plan {
    struct ll_load_piece *piece;
    struct ll_load_chunk *chunk;
    struct ll_load_quantised *quantised; /* [linears] */
    struct ll_span *span;
    uint16_t *scales;
    uint32_t n_pieces, n_pieces_max, n_chunks, n_chunks_max, n_quantised, n_spans, n_spans_max;
    uint64_t bytes_total; /* of all chunks */
};

/* Asks the backend for every tensor. On success the caller frees the plan. */
int ll_load_plan_make(struct ll_load_plan *plan, const struct ll_backend *backend,
                      struct ll_device *device, const struct ll_checkpoint *checkpoint,
                      bool quantize_fp8, size_t buffer_bytes);
/* Does --quantization fp8 change this tensor? */
bool ll_load_is_quantised(const struct ll_tensor *tensor);
void ll_load_plan_free(struct ll_load_plan *plan);

#endif
