/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/batch.h - a batch becomes a step: checked, copied, laid out. */
#ifndef KERNELS_CPU_BATCH_H
#define KERNELS_CPU_BATCH_H

#include "kernels/cpu/device.h"

/* Fills the step of the next ticket from the batch and moves the slots and page tables (D2). On
 * an error (LL_E_INVAL, LL_E_UNSUPPORTED; the text names row and field) page
 * tables may have changed, but no slot, and nothing runs. */
int ll_cpu_batch_take(struct ll_device *device, const struct ll_batch *batch,
                      struct ll_text *error);

#endif
