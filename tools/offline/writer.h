/* SPDX-License-Identifier: Apache-2.0 */
/* tools/offline/writer.h - one .safetensors file whose tensors are known before the first byte.
 *
 *   W1  the header is written first; the file has its full size from then on, so a full disk shows
 *       at once, where the file system can promise space
 *   W2  tensors lie in order of falling alignment, without holes; bytes of a tensor may come in any
 *       order
 *   W3  the file is complete only when ll_writer_close() says so */
#ifndef TOOLS_OFFLINE_WRITER_H
#define TOOLS_OFFLINE_WRITER_H

#include "kernels/backend.h"

struct writer_tensor {
    char name[160];
    enum ll_dtype dtype;
    uint32_t rows, cols; /* rows 0: a vector */
    uint64_t size_bytes;
    uint64_t offset; /* in the file; set by writer_open */
};

struct writer {
    int fd;
    char path[1200];
    uint64_t size_bytes;
};

/* Sorts the tensors, gives them their places and writes the header. path must not exist. */
int writer_open(struct writer *writer, const char *path, struct writer_tensor *tensors, uint32_t n);
/* Bytes [at, at + n) of a tensor. */
int writer_put(struct writer *writer, const struct writer_tensor *tensor, uint64_t at,
               const void *bytes, size_t n);
/* Everything is on the disk when this gives 0. Closes in any case. */
int writer_close(struct writer *writer);

#endif
