/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/uring.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define IOVEC_MAX ((size_t)1 << 30) /* the kernel's limit on one registered buffer */
#define IOVECS    4u

struct ll_uring {
    struct io_uring ring;
    struct iovec buffer[IOVECS];
    uint32_t n_buffers; /* 0: not registered */
    uint32_t n_in_flight, depth;
};

/* The best flags that this kernel knows: one owner whose waits run the completions (6.1), then
 * none. */
static int open_ring(struct io_uring *ring, uint32_t depth)
{
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG, 0};
    int rc = -EINVAL;

    for (size_t i = 0; i < LL_COUNT(flags) && rc == -EINVAL; i++) {
        struct io_uring_params params = {.flags = flags[i] | IORING_SETUP_R_DISABLED};
        rc = io_uring_queue_init_params(depth, ring, &params);
    }
    return rc;
}

/* U2. */
static int restrict_ring(struct io_uring *ring)
{
    struct io_uring_restriction r[3] = {
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READ},
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READ_FIXED},
        {.opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED, .sqe_flags = IOSQE_FIXED_FILE},
    };
    /* liburing 2.3 declares functions for these two and does not export them. */
    if (syscall(__NR_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, r,
                LL_COUNT(r)) < 0 ||
        syscall(__NR_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
        return -errno;
    return 0;
}

static bool register_buffers(struct ll_uring *uring, char *base, size_t n_bytes)
{
    uint32_t n = 0;

    for (size_t at = 0; at < n_bytes; at += IOVEC_MAX) {
        if (n == IOVECS)
            return false;
        uring->buffer[n].iov_base = base + at;
        uring->buffer[n++].iov_len = ll_min_u64(IOVEC_MAX, n_bytes - at);
    }
    int rc = io_uring_register_buffers(&uring->ring, uring->buffer, n);
    if (rc < 0)
        ll_debug("io_uring: buffers of %zu bytes are not registered: %s", n_bytes, strerror(-rc));
    else
        uring->n_buffers = n;
    return rc >= 0;
}

int ll_uring_open(struct ll_uring **out, uint32_t depth, const int *fds, uint32_t n_fds, void *base,
                  size_t n_bytes, bool *has_buffers)
{
    struct ll_uring *uring = calloc(1, sizeof(*uring));

    if (uring == NULL)
        return LL_ERR(-ENOMEM, "no memory for an io_uring");
    uring->depth = depth;
    int rc = open_ring(&uring->ring, depth);
    if (rc < 0) {
        free(uring);
        return ll_err_set_errno(-rc, "io_uring_setup");
    }
    rc = io_uring_register_files(&uring->ring, fds, n_fds);
    if (rc >= 0) {
        *has_buffers = register_buffers(uring, base, n_bytes);
        rc = restrict_ring(&uring->ring);
    }
    if (rc < 0) {
        io_uring_queue_exit(&uring->ring);
        free(uring);
        return ll_err_set_errno(-rc, "io_uring_register");
    }
    *out = uring;
    return 0;
}

void ll_uring_close(struct ll_uring *uring)
{
    struct ll_uring_result result;

    if (uring == NULL)
        return;
    while (uring->n_in_flight > 0 && ll_uring_take(uring, &result, true) >= 0)
        ;
    io_uring_queue_exit(&uring->ring);
    free(uring);
}

void ll_uring_read(struct ll_uring *uring, uint32_t file, void *to, uint32_t n_bytes,
                   uint64_t offset, uint64_t tag)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    uint32_t i = 0;

    LL_ASSERT(sqe != NULL && uring->n_in_flight < uring->depth);
    while (i < uring->n_buffers &&
           !((char *)to >= (char *)uring->buffer[i].iov_base &&
             (char *)to + n_bytes <= (char *)uring->buffer[i].iov_base + uring->buffer[i].iov_len))
        i++;
    if (i < uring->n_buffers)
        io_uring_prep_read_fixed(sqe, (int)file, to, n_bytes, offset, (int)i);
    else
        io_uring_prep_read(sqe, (int)file, to, n_bytes, offset);
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, tag);
    uring->n_in_flight++;
}

int ll_uring_take(struct ll_uring *uring, struct ll_uring_result *out, bool is_waiting)
{
    struct io_uring_cqe *cqe = NULL;
    int rc;

    if (uring->n_in_flight == 0)
        return 0;
    do
        rc = io_uring_submit_and_wait(&uring->ring, is_waiting ? 1 : 0);
    while (rc == -EINTR);
    if (rc < 0 && rc != -EAGAIN && rc != -EBUSY)
        return ll_err_set_errno(-rc, "io_uring_enter");
    rc = io_uring_peek_cqe(&uring->ring, &cqe);
    if (rc == -EAGAIN)
        return 0;
    if (rc < 0)
        return ll_err_set_errno(-rc, "io_uring");
    *out = (struct ll_uring_result){.tag = io_uring_cqe_get_data64(cqe), .n = cqe->res};
    io_uring_cqe_seen(&uring->ring, cqe);
    uring->n_in_flight--;
    return 1;
}
