/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/kv.h - where keys and values lie.
 *
 * A page holds 64 tokens of one sequence, all layers: [layer][K, V][kv head][64 tokens][D16], in
 * BF16, F32 or e4m3, D16 = head_dim up to a multiple of 16 (pads zero). The page is contiguous, so
 * a swap is one copy; the 64 keys of one head are, so attention streams them. */
#ifndef KERNELS_CPU_KV_H
#define KERNELS_CPU_KV_H

#include "kernels/backend.h"
#include "kernels/cpu/inner.h"

struct ll_cpu_kv {
    char *base;
    uint32_t n_pages, n_kv_heads, head_dim, d16;
    enum ll_cpu_form form;
    size_t head_bytes; /* 64 tokens of one head */
    size_t page_bytes;
};

void ll_cpu_kv_init(struct ll_cpu_kv *kv, const struct ll_model_shape *shape,
                    enum ll_cpu_form form);

enum ll_cpu_kv_side { LL_CPU_KEY = 0, LL_CPU_VALUE = 1 };

/* The 64 rows of D16 numbers of one head in one page. */
static inline char *ll_cpu_kv_at(const struct ll_cpu_kv *kv, uint32_t page, uint32_t layer,
                                 enum ll_cpu_kv_side side, uint32_t kv_head)
{
    size_t head = ((size_t)layer * 2 + side) * kv->n_kv_heads + kv_head;
    return kv->base + page * kv->page_bytes + head * kv->head_bytes;
}

/* Writes x [D] as token 0 .. 63 of those rows, rounded to the page's form; for e4m3 divided by
 * scale first, and what is then larger than 448 is stored as that. */
void ll_cpu_kv_put(const struct ll_cpu_kv *kv, char *rows, uint32_t token, const float *x,
                   float scale);

#endif
