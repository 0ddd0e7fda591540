/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/feed.h - a tensor into a backend, as it is or in 8 bits. */
#ifndef TESTS_KERNELS_FEED_H
#define TESTS_KERNELS_FEED_H

#include "base/bits.h"
#include "base/numbers.h"
#include "kernels/backend.h"

#include <math.h>
#include <stdlib.h>

static uint32_t feed_set; /* of weights */

/* All of it, in three pieces. 0 or a negative code. */
static inline int feed_tensor(const struct ll_backend *to, struct ll_device *device,
                              const struct ll_tensor *t, const void *data, struct ll_text *error)
{
    const uint64_t piece = t->size_bytes < 64 ? t->size_bytes : ((t->size_bytes / 3) | 3) + 1;
    struct ll_span span;
    uint64_t ticket;
    int rc = to->want(device, t, &span, 1, error);

    for (uint64_t at = 0; at < t->size_bytes && rc >= 0; at += piece) {
        const uint64_t n_bytes = ll_min_u64(piece, t->size_bytes - at);
        rc = to->feed(device, feed_set, t, 0, at, (const unsigned char *)data + at, n_bytes,
                      &ticket, error);
        while (rc >= 0 && (rc = to->fed(device, ticket, error)) == 0)
            ;
    }
    return rc < 0 ? rc : 0;
}

enum feed_as { FEED_BF16 = 0, FEED_E4M3 = 1, FEED_E4M3_BLOCKS = 2 };

/* A linear layer's bf16 matrix as a checkpoint of 8-bit weights has it: codes, then a scale a row,
 * or one for 128 x 128. Those of blocks are up to 8 times what they need be, each another, so that
 * one at a wrong place shows. */
static inline int feed_e4m3(const struct ll_backend *to, struct ll_device *device,
                            struct ll_tensor t, const uint16_t *x, enum feed_as as,
                            struct ll_text *error)
{
    const uint32_t height = as == FEED_E4M3_BLOCKS ? 128 : 1,
                   width = as == FEED_E4M3_BLOCKS ? 128 : t.cols;
    const uint32_t rows = (t.rows + height - 1) / height, cols = (t.cols + width - 1) / width;
    uint8_t *code = malloc((size_t)t.rows * t.cols);
    float *scale = calloc((size_t)rows * cols, sizeof(*scale));

    for (uint32_t r = 0; r < t.rows; r++)
        for (uint32_t c = 0; c < t.cols; c++) {
            float *s = &scale[r / height * cols + c / width];
            *s = fmaxf(*s, fabsf(ll_f32_from_bf16(x[(size_t)r * t.cols + c])) / 448);
        }
    for (uint32_t i = 0; i < rows * cols; i++) {
        scale[i] = scale[i] > 0 ? scale[i] : 1;
        if (as == FEED_E4M3_BLOCKS)
            scale[i] *= (float)(1u << (i * 2654435761u >> 30));
    }
    for (uint32_t r = 0; r < t.rows; r++)
        for (uint32_t c = 0; c < t.cols; c++)
            code[(size_t)r * t.cols + c] = ll_e4m3_from_f32(
                ll_f32_from_bf16(x[(size_t)r * t.cols + c]) / scale[r / height * cols + c / width]);
    t.dtype = LL_DTYPE_E4M3;
    t.size_bytes = (uint64_t)t.rows * t.cols;
    int rc = feed_tensor(to, device, &t, code, error);
    t.part = LL_PART_SCALE;
    t.dtype = LL_DTYPE_F32;
    t.rows = rows;
    t.cols = cols;
    t.size_bytes = (uint64_t)rows * cols * sizeof(float);
    if (rc == 0)
        rc = feed_tensor(to, device, &t, scale, error);
    free(code);
    free(scale);
    return rc;
}

#endif
