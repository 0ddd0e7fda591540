/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/backend_impl.h - entries of struct ll_backend (kernels/backend.h has what they do)
 * that are not in backend.c: those that load weights, in backend_weights.c. */
#ifndef KERNELS_CPU_BACKEND_IMPL_H
#define KERNELS_CPU_BACKEND_IMPL_H

#include "kernels/backend.h"

int ll_cpu_want(struct ll_device *d, const struct ll_tensor *tensor, struct ll_span *spans,
                uint32_t n_max, struct ll_text *error);
int ll_cpu_pin(struct ll_device *d, void *base, size_t size_bytes, struct ll_text *error);
void *ll_cpu_place(struct ll_device *d, uint32_t weights, const struct ll_tensor *tensor,
                   uint32_t rank, uint64_t offset, size_t n_bytes);
int ll_cpu_feed(struct ll_device *d, uint32_t weights, const struct ll_tensor *tensor,
                uint32_t rank, uint64_t offset, const void *data, size_t n_bytes, uint64_t *ticket,
                struct ll_text *error);
int ll_cpu_fed(struct ll_device *d, uint64_t ticket, struct ll_text *error);
int ll_cpu_begin(struct ll_device *d, uint32_t weights, struct ll_text *error);
int ll_cpu_seal(struct ll_device *d, uint32_t weights, struct ll_text *error);

#endif
