/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/loader.h - moves a checkpoint's bytes into a backend: want, read, feed, seal.
 *
 * Plain reads into staging buffers; what the backend wants of each tensor is planned and sorted by
 * file and offset before the first read. The staging memory that pin() was given is the loader's: it
 * is gone when ll_loader_run() returns, so a backend forgets its pins in seal or close. */
#ifndef RUNTIME_LOADER_H
#define RUNTIME_LOADER_H

#include "runtime/checkpoint.h"

struct ll_load_progress {
    uint64_t bytes_done, bytes_total;
    uint64_t elapsed_ns;
};

/* Called now and then from the loader's thread; a non-zero answer stops the load (-ECANCELED). */
typedef int ll_load_callback(void *context, const struct ll_load_progress *progress);

/* Loads weight set `weights` and seals it. Missing or extra tensors, truncated or changed files are
 * refused with their names. */
int ll_loader_run(const struct ll_backend *backend, struct ll_device *device, uint32_t weights,
                  const struct ll_checkpoint *checkpoint, ll_load_callback *callback,
                  void *context);

#endif
