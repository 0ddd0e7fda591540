/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/attend.h - grouped-query attention over paged keys and values.
 *
 *   out[t, h] = sum over j <= pos(t) of softmax_j(q[t, h] . k[j] / sqrt(D)) * v[j]
 *
 * Softmax runs over blocks of 64 keys (a page) in order of position, with a running maximum, all
 * in fp32. The result of one token and head depends on its own position, query, keys and values
 * alone: not on the chunk it came in, its neighbours in the batch, or where its pages lie. */
#ifndef KERNELS_CPU_ATTEND_H
#define KERNELS_CPU_ATTEND_H

#include "kernels/cpu/kv.h"

struct ll_cpu_attend {
    const struct ll_cpu_inner *inner;
    const struct ll_cpu_kv *kv;
    const uint32_t *page; /* page table of the sequence */
    uint32_t layer, kv_head;
    uint32_t group;              /* query heads of this KV head */
    uint32_t n_tokens, position; /* tokens at position, position + 1, ... */
    const float *q;              /* [n_tokens][ld_q], heads of D; the group's first head */
    float *out;                  /* [n_tokens][ld_out], the same place */
    size_t ld_q, ld_out;
    float k_scale, v_scale; /* of e4m3 pages: what was divided by */
    bool is_bf16;           /* round the result */
    float *scratch;         /* ll_cpu_attend_scratch(d16, group * n_tokens) floats */
};

size_t ll_cpu_attend_scratch(uint32_t d16, uint32_t n_queries);

void ll_cpu_attend(const struct ll_cpu_attend *a);

#endif
