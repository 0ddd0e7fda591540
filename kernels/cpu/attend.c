/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/attend.h"
#include "base/numbers.h"

#include <math.h>
#include <string.h>

size_t ll_cpu_attend_scratch(uint32_t d16, uint32_t n_queries)
{
    /* query and sum [Q][D16], weights [Q][64], top, sum and factor [Q] */
    return (size_t)n_queries * (2 * d16 + LL_CPU_KEYS + 3);
}

void ll_cpu_attend(const struct ll_cpu_attend *a)
{
    const struct ll_cpu_kv *kv = a->kv;
    const uint32_t d16 = kv->d16, n_dim = kv->head_dim, group = a->group;
    const uint32_t n_queries = a->n_tokens * group; /* token by token, the group's heads within */
    const float scale = 1.0f / sqrtf((float)n_dim);
    float *query = a->scratch, *mixed = query + (size_t)n_queries * d16;
    float *weight = mixed + (size_t)n_queries * d16, *top = weight + n_queries * LL_CPU_KEYS;
    float *sum = top + n_queries, *factor = sum + n_queries;
    const uint32_t last = a->position + a->n_tokens - 1;
    const bool is_fp8 = kv->form == LL_FORM_E4M3;
    const float k_unit = a->k_scale * LL_CPU_E4M3_UNIT, v_unit = a->v_scale * LL_CPU_E4M3_UNIT;

    memset(query, 0, 2 * (size_t)n_queries * d16 * sizeof(float));
    for (uint32_t i = 0; i < n_queries; i++) {
        memcpy(query + (size_t)i * d16, a->q + i / group * a->ld_q + i % group * n_dim,
               n_dim * sizeof(float));
        top[i] = -INFINITY;
        sum[i] = 0;
    }

    for (uint32_t block = 0; block <= last / LL_CPU_KEYS; block++) {
        const uint32_t page = a->page[block], first_key = block * LL_CPU_KEYS;
        const void *k = ll_cpu_kv_at(kv, page, a->layer, LL_CPU_KEY, a->kv_head);
        const void *v = ll_cpu_kv_at(kv, page, a->layer, LL_CPU_VALUE, a->kv_head);
        const uint32_t n_keys =
            last + 1 - first_key < LL_CPU_KEYS ? last + 1 - first_key : LL_CPU_KEYS;
        /* Tokens before this block's first key see none of it. */
        const uint32_t from = first_key > a->position ? first_key - a->position : 0;
        /* Tokens before `full` see only some of it: the causal edge. */
        uint32_t full =
            first_key + n_keys - 1 > a->position ? first_key + n_keys - 1 - a->position : 0;

        /* Rows of the same scale: none to the next one's. */
        const struct ll_cpu_rows keys = {
            .data = k, .form = kv->form, .ld = d16, .scale = is_fp8 ? &k_unit : NULL};
        a->inner->dots(weight + (size_t)from * group * LL_CPU_KEYS, LL_CPU_KEYS, &keys,
                       query + (size_t)from * group * d16, d16, n_keys,
                       (a->n_tokens - from) * group, d16);
        for (uint32_t i = from * group; i < n_queries; i++) {
            uint32_t n_seen = a->position + i / group + 1 - first_key;
            factor[i] =
                a->inner->softmax(weight + (size_t)i * LL_CPU_KEYS,
                                  n_seen < n_keys ? n_seen : n_keys, scale, &top[i], &sum[i]);
        }
        /* Each token mixes exactly the values it sees: a zero weight times a later token's
         * infinity would be a NaN. From `full` on all see the same ones: one call. */
        for (uint32_t t = from; t < a->n_tokens;) {
            uint32_t n = t < full ? 1 : a->n_tokens - t, i = t * group;
            uint32_t n_seen = a->position + t + 1 - first_key;
            a->inner->mix(mixed + (size_t)i * d16, d16, factor + i,
                          weight + (size_t)i * LL_CPU_KEYS, v, kv->form, d16, n * group,
                          n_seen < n_keys ? n_seen : n_keys, d16);
            t += n;
        }
    }

    for (uint32_t i = 0; i < n_queries; i++) {
        float *out = a->out + i / group * a->ld_out + i % group * n_dim;
        for (uint32_t d = 0; d < n_dim; d++) {
            float x = mixed[(size_t)i * d16 + d] / sum[i];
            x = is_fp8 ? x * v_unit : x;
            out[d] = a->is_bf16 ? ll_round_bf16(x) : x;
        }
    }
}
