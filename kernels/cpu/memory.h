/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/memory.h - the backend's memory: zeroed mappings, reserved at open.
 *
 * Address space is taken at open and never grown; the system hands out real pages at first touch,
 * so a pool sized for the worst case costs what is used. Large mappings ask for huge pages. */
#ifndef KERNELS_CPU_MEMORY_H
#define KERNELS_CPU_MEMORY_H

#include "kernels/backend.h"

/* Zero bytes, 64-byte aligned (page aligned in truth); on numa_node where that is >= 0, as a
 * preference. NULL when the system refuses; 0 bytes give a valid pointer too. */
void *ll_cpu_map(size_t size_bytes, int numa_node);
/* NULL is accepted; size as given to ll_cpu_map. */
void ll_cpu_unmap(void *base, size_t size_bytes);

/* Makes the system give real pages for a mapping now. */
void ll_cpu_touch(void *base, size_t size_bytes);

/* Writes the text and gives code back. */
int ll_cpu_fail(struct ll_text *error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
