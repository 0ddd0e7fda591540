/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/reader.h - reads pieces of files into staging memory, many at a time, by the best way
 * that this machine allows.
 *
 * The ways, tried in this order; which one it is, and why not a better one, is in the log:
 *   fixed     io_uring, registered files and buffers
 *   uring     io_uring, registered files (the limit on locked memory is too small for buffers)
 *   threads   eight threads with pread (no io_uring: an old kernel, a sysctl, seccomp); also for
 *             files in the page cache, where several cores copy
 *   plain     one thread, pread (few CPUs and files in the page cache)
 * Each file is read past the page cache (O_DIRECT) unless most of it lies there, or the file
 * system cannot. Residency is asked of some places of the file with preadv2(RWF_NOWAIT): that reads
 * what is there and starts nothing.
 *
 *   R1  a read is done when all of its bytes are there: short ones are resumed, EINTR and EAGAIN
 *       repeated, EIO twice
 *   R2  with O_DIRECT offset and length are widened to the alignment that the file asks for; the
 *       buffer has room for it, and first says where the bytes wanted begin
 *   R3  a file must be what was seen at open: ll_reader_check() compares size and time */
#ifndef RUNTIME_READER_H
#define RUNTIME_READER_H

#include "runtime/checkpoint.h"

#define LL_READER_ALIGN 4096u /* of buffers, and of direct reads where the kernel does not say */

enum ll_reader_way {
    LL_READER_AUTO,
    LL_READER_FIXED,
    LL_READER_URING,
    LL_READER_THREADS,
    LL_READER_PLAIN,
};

struct ll_read {
    /* given */
    uint32_t file;
    uint64_t offset, n_bytes; /* wanted; widened they fit the buffer (R2) */
    char *buffer;             /* in the staging memory, aligned to LL_READER_ALIGN; anywhere with
                                 ll_reader_is_free() */
    /* the reader's */
    char *first;         /* where byte `offset` is when the read is done */
    uint64_t begin, end; /* widened, cut at the end of the file */
    uint64_t done;       /* bytes from begin on that are there */
    uint32_t n_failed;   /* EIOs so far */
    int error;           /* 0 or negative; the text is error_text */
    char error_text[160];
    struct ll_read *next;
};

/* For tests: what comes of each single read may be made worse. result: bytes or -errno. */
struct ll_reader_faults {
    int64_t (*result)(void *context, uint32_t file, uint64_t offset, uint64_t n_bytes,
                      int64_t result);
    void *context;
};

struct ll_reader_options {
    const struct ll_checkpoint_file *files;
    uint32_t n_files;
    void *staging;
    size_t staging_bytes, buffer_bytes; /* one read uses at most buffer_bytes */
    uint32_t depth;                     /* reads in flight at most */
    enum ll_reader_way way;
    const struct ll_reader_faults *faults; /* NULL: none */
};

struct ll_reader; /* opaque */

/* Opens the files and finds the way. *out only on success. */
int ll_reader_open(struct ll_reader **out, const struct ll_reader_options *options);
/* Waits for reads in flight. NULL is accepted. */
void ll_reader_close(struct ll_reader *reader);

/* Starts a read; it is the reader's until ll_reader_take() gives it back. */
void ll_reader_start(struct ll_reader *reader, struct ll_read *read);
/* A read that is done, or failed (read->error); NULL: none, or with is_waiting none in flight.
 * A negative *rc: the reader itself has failed. */
struct ll_read *ll_reader_take(struct ll_reader *reader, bool is_waiting, int *rc);

/* R3: every file is still what it was. */
int ll_reader_check(const struct ll_reader *reader);

/* May a read of this file go to memory other than staging? Not past the page cache, which wants
 * alignment, nor where buffers are registered. */
bool ll_reader_is_free(const struct ll_reader *reader, uint32_t file);
enum ll_reader_way ll_reader_way(const struct ll_reader *reader);
/* Reads that are worth having in flight: options.depth, but two where one thread does each of them
 * when it is taken, since more buffers only leave the processor's cache. */
uint32_t ll_reader_depth(const struct ll_reader *reader);
/* "io_uring, registered buffers; 4 of 4 files past the page cache" */
const char *ll_reader_describe(const struct ll_reader *reader);

#endif
