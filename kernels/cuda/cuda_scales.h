/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/cuda_scales.h - see cuda_scales.c. */
#ifndef KERNELS_CUDA_CUDA_SCALES_H
#define KERNELS_CUDA_CUDA_SCALES_H

#include "kernels/cuda/device.h"

struct ll_cuda_part { /* rows [first_row, first_row + rows) of a merged matrix: one tensor's */
    struct ll_cuda_linear *linear;
    uint32_t first_row, rows, cols;
};

/* NULL, or why this form of scales cannot be used. */
const char *ll_cuda_scale_want(const struct ll_cuda_part *part, const struct ll_tensor *tensor,
                               bool *has_blocks);
/* Memory for block scales, once. -ENOMEM. */
int ll_cuda_scale_room(struct ll_cuda_linear *linear);
/* A load begins: blocks are 1 where none come. */
void ll_cuda_scale_reset(struct ll_cuda_linear *linear);
/* NULL, or what is wrong with the piece. */
const char *ll_cuda_scale_feed(struct ll_cuda_part *part, const struct ll_tensor *tensor,
                               uint64_t offset, const void *data, size_t n_bytes);
int ll_cuda_scale_upload(struct ll_cuda_linear *linear); /* -EIO */
void ll_cuda_scale_free(struct ll_cuda_linear *linear);

#endif
