/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/kv.h"
#include "base/bits.h"
#include "base/numbers.h"

#include <string.h>

void ll_cpu_kv_init(struct ll_cpu_kv *kv, const struct ll_model_shape *shape, enum ll_cpu_form form)
{
    *kv = (struct ll_cpu_kv){
        .n_kv_heads = shape->n_kv_heads,
        .head_dim = shape->head_dim,
        .d16 = (uint32_t)ll_align_up(shape->head_dim, 16),
        .form = form,
    };
    kv->head_bytes = (size_t)LL_PAGE_TOKENS * kv->d16 * ll_cpu_form_bytes(form);
    kv->page_bytes = kv->head_bytes * 2 * shape->n_kv_heads * shape->n_layers;
}

void ll_cpu_kv_put(const struct ll_cpu_kv *kv, char *rows, uint32_t token, const float *x,
                   float scale)
{
    char *row = rows + (size_t)token * kv->d16 * ll_cpu_form_bytes(kv->form);

    /* The pad is written too: a page may come from a swap or a poisoned test. */
    if (kv->form == LL_FORM_F32) {
        memcpy(row, x, kv->head_dim * sizeof(float));
        memset(row + kv->head_dim * sizeof(float), 0, (kv->d16 - kv->head_dim) * sizeof(float));
        return;
    }
    if (kv->form == LL_FORM_E4M3) {
        for (uint32_t i = 0; i < kv->d16; i++)
            row[i] = i < kv->head_dim ? (char)ll_e4m3_from_f32(x[i] / scale) : 0;
        return;
    }
    uint16_t *out = (uint16_t *)row;
    for (uint32_t i = 0; i < kv->d16; i++)
        out[i] = i < kv->head_dim ? ll_bf16_from_f32(x[i]) : 0;
}
