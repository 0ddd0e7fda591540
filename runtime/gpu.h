/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/gpu.h - the GPU's own figures into STAT: utilisation, memory, power, temperature.
 *
 * Asked of the driver's management library (libnvidia-ml.so.1, opened at run time) once a second by
 * the control thread. Where there is no such library, or it does not know the GPU, the figures are
 * absent from STAT and nobody is told off. */
#ifndef RUNTIME_GPU_H
#define RUNTIME_GPU_H

#include "runtime/control.h"
#include "shm/stat.h"

struct ll_gpu; /* opaque */

/* Before clients can connect. pci: bus id ("0000:3b:00.0"), "": no GPU. 0 with *out NULL where no
 * figures are to be had; -errno when the timer cannot be made. */
int ll_gpu_open(struct ll_gpu **out, struct ll_control *control, struct ll_stat_region *stat,
                const char *pci);
/* From the control thread, before the control is destroyed. NULL is accepted. */
void ll_gpu_close(struct ll_gpu *gpu);

#endif
