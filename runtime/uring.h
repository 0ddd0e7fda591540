/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/uring.h - an io_uring that does nothing but read a fixed set of files.
 *
 *   U1  one thread makes it, starts reads and takes what is done (SINGLE_ISSUER where known)
 *   U2  after open it is restricted to reads of the registered files: not even its owner can use
 *       it for more
 *   U3  memory given to a read belongs to the kernel until its result is taken, or close returns
 * Weights only; nothing of a client is ever registered here (rule R5). */
#ifndef RUNTIME_URING_H
#define RUNTIME_URING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ll_uring; /* opaque */

struct ll_uring_result {
    uint64_t tag;
    int64_t n; /* bytes read, or -errno */
};

/* A ring for depth reads of files fds[n_fds] into [base, base + n_bytes), which is registered where
 * the limit on locked memory allows: *has_buffers says so. -EPERM, -ENOSYS, ...: no io_uring here.
 */
int ll_uring_open(struct ll_uring **out, uint32_t depth, const int *fds, uint32_t n_fds, void *base,
                  size_t n_bytes, bool *has_buffers);
/* Waits for the reads in flight. NULL is accepted. */
void ll_uring_close(struct ll_uring *uring);

/* Queues a read of fds[file]; at most depth may be in flight. */
void ll_uring_read(struct ll_uring *uring, uint32_t file, void *to, uint32_t n_bytes,
                   uint64_t offset, uint64_t tag);
/* Submits what is queued, waits for a result if is_waiting, and takes one: 1, 0 when there is
 * none, or an error of the ring itself. */
int ll_uring_take(struct ll_uring *uring, struct ll_uring_result *out, bool is_waiting);

#endif
