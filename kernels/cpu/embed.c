/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/embed.h"
#include "base/numbers.h"

#include <string.h>

void ll_cpu_embed(float *x, const struct ll_cpu_matrix *table, uint32_t token)
{
    size_t at = (size_t)token * table->stride;

    if (table->form == LL_FORM_F32) {
        memcpy(x, (const float *)table->data + at, table->cols * sizeof(float));
        return;
    }
    const uint16_t *row = (const uint16_t *)table->data + at;
    for (uint32_t i = 0; i < table->cols; i++)
        x[i] = ll_f32_from_bf16(row[i]);
}
