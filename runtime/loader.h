/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/loader.h - moves a checkpoint's bytes into a backend: want, read, feed, seal.
 *
 * What the backend wants of each tensor is planned and sorted by file and offset before the first
 * read (loader_plan.h); many reads are in flight into staging buffers (reader.h) while the backend
 * takes the pieces of those that are full. With quantize_fp8 linears that are not FP8 become it on
 * the way, row by row (fp8.h): the backend is asked for, and fed, e4m3 and scales.
 * With a checksum each chunk is hashed by a second thread before the backend gets it
 * (loader_hash.h). The staging memory that pin() was given is the loader's and gone when
 * ll_loader_run() returns; the seal, or after a failure another pin(), has ended that. */
#ifndef RUNTIME_LOADER_H
#define RUNTIME_LOADER_H

#include "runtime/reader.h"

struct ll_load_progress {
    uint64_t bytes_done, bytes_total;
    uint64_t elapsed_ns;
};

/* Called between buffers; a non-zero return stops the load with -ECANCELED. */
typedef int ll_load_callback(void *context, const struct ll_load_progress *progress);

struct ll_load_options {
    bool quantize_fp8;
    int numa_node;                         /* of the staging memory; -1: any */
    const char *checksum;                  /* NULL: none; "print", or what it must be (32 digits) */
    enum ll_reader_way way;                /* LL_READER_AUTO but in tests and benches */
    const struct ll_reader_faults *faults; /* NULL but in tests */
    ll_load_callback *callback;            /* NULL: none */
    void *context;
    uint64_t *seal_ns; /* NULL, or where to say how long sealing took */
};

/* Reads every wanted byte of checkpoint into weight set `weights` and seals it. The error text
 * names file, tensor and offset. options NULL: as if zero, any node. */
int ll_loader_run(const struct ll_backend *backend, struct ll_device *device, uint32_t weights,
                  const struct ll_checkpoint *checkpoint, const struct ll_load_options *options);

#endif
