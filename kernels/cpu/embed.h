/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/embed.h - the row of the embedding that belongs to a token. */
#ifndef KERNELS_CPU_EMBED_H
#define KERNELS_CPU_EMBED_H

#include "kernels/cpu/weights.h"

/* x [E] = table[token], widened exactly; token < table->rows. */
void ll_cpu_embed(float *x, const struct ll_cpu_matrix *table, uint32_t token);

#endif
