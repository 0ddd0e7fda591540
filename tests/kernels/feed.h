/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/feed.h - a tensor into a backend, as it is or in 8 bits. */
#ifndef TESTS_KERNELS_FEED_H
#define TESTS_KERNELS_FEED_H

#include "base/bits.h"
#include "base/numbers.h"
#include "kernels/backend.h"

#include <math.h>
#include <stdlib.h>

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
        rc = to->feed(device, 0, t, 0, at, (const unsigned char *)data + at, n_bytes, &ticket,
                      error);
        while (rc >= 0 && (rc = to->fed(device, ticket, error)) == 0)
            ;
    }
    return rc < 0 ? rc : 0;
}

/* A linear layer's bf16 matrix as a checkpoint of 8-bit weights has it: codes, then a scale a row.
 */
static inline int feed_e4m3(const struct ll_backend *to, struct ll_device *device,
                            struct ll_tensor t, const uint16_t *x, struct ll_text *error)
{
    uint8_t *code = malloc((size_t)t.rows * t.cols);
    float *scale = malloc(t.rows * sizeof(*scale));

    for (uint32_t r = 0; r < t.rows; r++) {
        float top = 0;
        for (uint32_t c = 0; c < t.cols; c++)
            top = fmaxf(top, fabsf(ll_f32_from_bf16(x[(size_t)r * t.cols + c])));
        scale[r] = top > 0 ? top / 448 : 1;
        for (uint32_t c = 0; c < t.cols; c++)
            code[(size_t)r * t.cols + c] =
                ll_e4m3_from_f32(ll_f32_from_bf16(x[(size_t)r * t.cols + c]) / scale[r]);
    }
    t.dtype = LL_DTYPE_E4M3;
    t.size_bytes = (uint64_t)t.rows * t.cols;
    int rc = feed_tensor(to, device, &t, code, error);
    t.part = LL_PART_SCALE;
    t.dtype = LL_DTYPE_F32;
    t.cols = 1;
    t.size_bytes = t.rows * sizeof(float);
    if (rc == 0)
        rc = feed_tensor(to, device, &t, scale, error);
    free(code);
    free(scale);
    return rc;
}

#endif
