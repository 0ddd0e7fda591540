/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/reader.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "runtime/jsonfile.h"
#include "runtime/uring.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define THREADS      8u
#define EIO_TRIES    2u  /* after the first */
#define SAMPLES      64u /* places of a file asked for residency */
#define CACHED_SHARE 0.9 /* of a file's places: then it is read through the cache */
#define CPUS_MANY    4   /* from here on several threads copy cached files */
#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000u
#endif

struct file {
    int fd;
    uint32_t align; /* of direct reads; 0: through the page cache */
    bool is_cached; /* was in the page cache before */
};

struct queue { /* of reads, first in first out */
    struct ll_read *first, **last;
};

struct ll_reader {
    struct ll_reader_options options;
    enum ll_reader_way way;
    struct file *file;
    struct ll_uring *uring;
    uint32_t n_in_flight;
    char text[160];

    pthread_mutex_t lock; /* todo, done, is_ending */
    pthread_cond_t has_todo, has_done;
    struct queue todo, done;
    bool is_ending;
    pthread_t thread[THREADS];
    uint32_t n_threads;
};

static void push(struct queue *queue, struct ll_read *read)
{
    read->next = NULL;
    *queue->last = read;
    queue->last = &read->next;
}

static struct ll_read *pop(struct queue *queue)
{
    struct ll_read *read = queue->first;

    if (read != NULL && (queue->first = read->next) == NULL)
        queue->last = &queue->first;
    return read;
}

static const char *name_of(const struct ll_reader *reader, uint32_t file)
{
    return ll_path_tail(reader->options.files[file].path);
}

/* ---- files ------------------------------------------------------------------------------------*/

static int check_file(const struct ll_reader *reader, uint32_t i)
{
    const struct ll_checkpoint_file *file = &reader->options.files[i];
    struct stat st;

    if (fstat(reader->file[i].fd, &st) < 0)
        return LL_ERRNO("%s: fstat", name_of(reader, i));
    if ((uint64_t)st.st_size != file->size_bytes)
        return LL_ERR(
            LL_E_INVAL, "%s: changed while loading: %lld bytes now, %llu when its header was read",
            name_of(reader, i), (long long)st.st_size, (unsigned long long)file->size_bytes);
    if ((uint64_t)st.st_mtim.tv_sec * LL_NS_PER_S + (uint64_t)st.st_mtim.tv_nsec != file->mtime_ns)
        return LL_ERR(LL_E_INVAL, "%s: changed while loading: it was written to",
                      name_of(reader, i));
    return 0;
}

int ll_reader_check(const struct ll_reader *reader)
{
    for (uint32_t i = 0; i < reader->options.n_files; i++) {
        int rc = check_file(reader, i);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* O_NONBLOCK, so that something else under the file's name cannot hold us up; then without it,
 * since io_uring would give EAGAIN instead of waiting for the disk. */
static int open_file(const char *path, int flags)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags);

    if (fd >= 0 && fcntl(fd, F_SETFL, O_RDONLY | flags) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Share of a file's sampled places that lie in the page cache. */
static double cached_share(int fd, uint64_t size_bytes)
{
    uint32_t n_cached = 0;
    struct statfs fs;

    for (uint32_t i = 0; i < SAMPLES; i++) {
        char byte;
        struct iovec at = {&byte, 1};
        uint64_t place = size_bytes / SAMPLES * i;
        ssize_t n = preadv2(fd, &at, 1, (off_t)place, RWF_NOWAIT);
        if (n < 0 && errno == EOPNOTSUPP) /* a file system of memory is its own cache */
            return fstatfs(fd, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)
                       ? 1
                       : 0;
        n_cached += n == 1;
    }
    return (double)n_cached / SAMPLES;
}

/* The alignment that direct reads of a file need; 0: there are none. */
static uint32_t direct_align(int fd)
{
    struct statx st = {0};

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) < 0 || !(st.stx_mask & STATX_DIOALIGN))
        return LL_READER_ALIGN;
    /* The two fields behind stx_mnt_id, which glibc 2.36 does not name. */
    uint32_t offset_align, mem_align;
    memcpy(&mem_align, (char *)&st + 0x98, sizeof(mem_align));
    memcpy(&offset_align, (char *)&st + 0x9c, sizeof(offset_align));
    uint32_t align = offset_align > mem_align ? offset_align : mem_align;
    return align > 0 && align <= LL_READER_ALIGN ? LL_READER_ALIGN : 0;
}

/* Turns to O_DIRECT where a first read of the file shows that it works. */
static void try_direct(struct ll_reader *reader, uint32_t i)
{
    struct file *file = &reader->file[i];
    uint32_t align = direct_align(file->fd);
    int fd = align == 0 ? -1 : open_file(reader->options.files[i].path, O_DIRECT);

    if (fd < 0)
        return;
    if (pread(fd, reader->options.staging, LL_READER_ALIGN, 0) < 0) {
        close(fd);
        return;
    }
    close(file->fd);
    file->fd = fd;
    file->align = align;
}

static int open_files(struct ll_reader *reader, bool *is_mostly_cached)
{
    const struct ll_reader_options *o = &reader->options;
    uint64_t total = 0, cached = 0;

    reader->file = calloc(o->n_files, sizeof(*reader->file));
    if (reader->file == NULL)
        return LL_ERR(-ENOMEM, "no memory for %u files", o->n_files);
    for (uint32_t i = 0; i < o->n_files; i++)
        reader->file[i].fd = -1;
    for (uint32_t i = 0; i < o->n_files; i++) {
        struct file *file = &reader->file[i];
        file->fd = open_file(o->files[i].path, 0);
        if (file->fd < 0)
            return LL_ERRNO("%s", name_of(reader, i));
        int rc = check_file(reader, i);
        if (rc < 0)
            return rc;
        file->is_cached = cached_share(file->fd, o->files[i].size_bytes) >= CACHED_SHARE;
        if (!file->is_cached)
            try_direct(reader, i);
        if (file->align == 0)
            posix_fadvise(file->fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* a hint: more read-ahead */
        rc = check_file(reader, i); /* the same one by its second name */
        if (rc < 0)
            return rc;
        total += o->files[i].size_bytes;
        cached += file->is_cached ? o->files[i].size_bytes : 0;
    }
    *is_mostly_cached = cached > total / 2;
    return 0;
}

/* ---- one read ---------------------------------------------------------------------------------*/

static void prepare(const struct ll_reader *reader, struct ll_read *read)
{
    const uint32_t align = reader->file[read->file].align;
    const uint64_t size = reader->options.files[read->file].size_bytes;

    read->begin = align != 0 ? read->offset & ~(uint64_t)(align - 1) : read->offset;
    read->end = read->offset + read->n_bytes;
    if (align != 0)
        read->end = ll_min_u64(ll_align_up(read->end, align), size);
    read->first = read->buffer + (read->offset - read->begin);
    read->done = read->n_failed = 0;
    read->error = 0;
    LL_ASSERT(read->end - read->begin <= reader->options.buffer_bytes && read->n_bytes > 0);
}

/* What to ask for next. Direct reads keep their alignment and end short at the end of the file. */
static uint32_t next_length(const struct ll_reader *reader, const struct ll_read *read)
{
    const uint32_t align = reader->file[read->file].align;
    uint64_t left = read->end - read->begin - read->done;

    return (uint32_t)(align != 0 ? ll_align_up(left, align) : left);
}

static void fail_read(const struct ll_reader *reader, struct ll_read *read, int code,
                      const char *what)
{
    read->error = code;
    snprintf(read->error_text, sizeof(read->error_text), "byte %llu: %s",
             (unsigned long long)(read->begin + read->done), what);
    (void)reader;
}

/* R1: takes a result into account; true: the read is done or has failed. */
static bool settle(const struct ll_reader *reader, struct ll_read *read, int64_t result)
{
    const struct ll_reader_faults *faults = reader->options.faults;
    const uint32_t align = reader->file[read->file].align;
    const uint64_t before = read->done;

    if (faults != NULL)
        result = faults->result(faults->context, read->file, read->begin + read->done,
                                next_length(reader, read), result);
    if (result == -EINTR || result == -EAGAIN)
        return false;
    if (result == -EIO && read->n_failed < EIO_TRIES) {
        read->n_failed++;
        return false;
    }
    if (result < 0) {
        fail_read(reader, read, (int)result, strerror((int)-result));
        return true;
    }
    read->done = ll_min_u64(read->done + (uint64_t)result, read->end - read->begin);
    if (read->begin + read->done >= read->end)
        return true;
    if (align != 0)
        read->done = read->done & ~(uint64_t)(align - 1);
    if (result == 0)
        fail_read(reader, read, LL_E_INVAL, "the file ends here: it was cut off while loading");
    else if (read->done == before && ++read->n_failed > EIO_TRIES)
        fail_read(reader, read, -EIO, "reads come to nothing");
    return read->error != 0;
}

/* The whole of it, by this thread. */
static void read_now(const struct ll_reader *reader, struct ll_read *read)
{
    const struct file *file = &reader->file[read->file];
    bool is_settled = false;

    while (!is_settled) {
        ssize_t n = pread(file->fd, read->buffer + read->done, next_length(reader, read),
                          (off_t)(read->begin + read->done));
        is_settled = settle(reader, read, n < 0 ? -errno : n);
    }
    if (file->align == 0 && !file->is_cached) /* it was not in the cache before us either */
        posix_fadvise(file->fd, (off_t)read->begin, (off_t)(read->end - read->begin),
                      POSIX_FADV_DONTNEED);
}

/* ---- threads ----------------------------------------------------------------------------------*/

static void *work(void *context)
{
    struct ll_reader *reader = context;
    struct ll_read *read;

    pthread_mutex_lock(&reader->lock);
    while (!reader->is_ending) {
        read = pop(&reader->todo);
        if (read == NULL) {
            pthread_cond_wait(&reader->has_todo, &reader->lock);
            continue;
        }
        pthread_mutex_unlock(&reader->lock);
        read_now(reader, read);
        pthread_mutex_lock(&reader->lock);
        push(&reader->done, read);
        pthread_cond_signal(&reader->has_done);
    }
    pthread_mutex_unlock(&reader->lock);
    return NULL;
}

static int open_threads(struct ll_reader *reader)
{
    for (uint32_t i = 0; i < THREADS; i++) {
        int rc = pthread_create(&reader->thread[i], NULL, work, reader);
        if (rc != 0 && i == 0)
            return ll_err_set_errno(rc, "a thread that reads");
        if (rc != 0)
            break;
        reader->n_threads++;
    }
    return 0;
}

/* ---- open -------------------------------------------------------------------------------------*/

static bool has_many_cpus(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) >= CPUS_MANY;
}

static int open_uring(struct ll_reader *reader)
{
    const struct ll_reader_options *o = &reader->options;
    bool has_buffers = false;
    int *fds = calloc(o->n_files, sizeof(*fds));

    if (fds == NULL)
        return LL_ERR(-ENOMEM, "no memory for %u files", o->n_files);
    for (uint32_t i = 0; i < o->n_files; i++)
        fds[i] = reader->file[i].fd;
    bool wants_buffers = reader->way != LL_READER_URING;
    int rc = ll_uring_open(&reader->uring, o->depth, fds, o->n_files, o->staging,
                           wants_buffers ? o->staging_bytes : 0, &has_buffers);
    free(fds);
    if (rc == 0)
        reader->way = has_buffers ? LL_READER_FIXED : LL_READER_URING;
    return rc;
}

static int choose_way(struct ll_reader *reader, bool is_mostly_cached)
{
    reader->way = reader->options.way;
    if (reader->way == LL_READER_AUTO)
        reader->way = !is_mostly_cached ? LL_READER_FIXED
                      : has_many_cpus() ? LL_READER_THREADS
                                        : LL_READER_PLAIN;
    if (reader->way <= LL_READER_URING && open_uring(reader) < 0) {
        ll_info("weights: io_uring cannot be used (%s); %u threads read instead", ll_err_text(),
                THREADS);
        reader->way = LL_READER_THREADS;
    }
    return reader->way == LL_READER_THREADS ? open_threads(reader) : 0;
}

static void describe(struct ll_reader *reader)
{
    static const char *const names[] = {
        [LL_READER_FIXED] = "io_uring, registered buffers",
        [LL_READER_URING] = "io_uring, buffers not registered (locked memory is limited)",
        [LL_READER_THREADS] = "8 threads",
        [LL_READER_PLAIN] = "plain reads",
    };
    uint32_t n_direct = 0, n_cached = 0;

    for (uint32_t i = 0; i < reader->options.n_files; i++) {
        n_direct += reader->file[i].align != 0;
        n_cached += reader->file[i].is_cached;
    }
    snprintf(reader->text, sizeof(reader->text),
             "%s; of %u files %u past the page cache, %u from it", names[reader->way],
             reader->options.n_files, n_direct, n_cached);
}

int ll_reader_open(struct ll_reader **out, const struct ll_reader_options *options)
{
    struct ll_reader *reader = calloc(1, sizeof(*reader));
    bool is_mostly_cached = false;

    if (reader == NULL)
        return LL_ERR(-ENOMEM, "no memory for a reader");
    reader->options = *options;
    reader->todo.last = &reader->todo.first;
    reader->done.last = &reader->done.first;
    pthread_mutex_init(&reader->lock, NULL);
    pthread_cond_init(&reader->has_todo, NULL);
    pthread_cond_init(&reader->has_done, NULL);
    int rc = open_files(reader, &is_mostly_cached);
    if (rc == 0)
        rc = choose_way(reader, is_mostly_cached);
    if (rc < 0) {
        ll_reader_close(reader);
        return rc;
    }
    describe(reader);
    *out = reader;
    return 0;
}

void ll_reader_close(struct ll_reader *reader)
{
    if (reader == NULL)
        return;
    pthread_mutex_lock(&reader->lock);
    reader->is_ending = true;
    pthread_cond_broadcast(&reader->has_todo);
    pthread_mutex_unlock(&reader->lock);
    for (uint32_t i = 0; i < reader->n_threads; i++)
        pthread_join(reader->thread[i], NULL);
    ll_uring_close(reader->uring);
    for (uint32_t i = 0; reader->file != NULL && i < reader->options.n_files; i++)
        if (reader->file[i].fd >= 0)
            close(reader->file[i].fd);
    pthread_cond_destroy(&reader->has_todo);
    pthread_cond_destroy(&reader->has_done);
    pthread_mutex_destroy(&reader->lock);
    free(reader->file);
    free(reader);
}

/* ---- start and take ---------------------------------------------------------------------------*/

static void submit(struct ll_reader *reader, struct ll_read *read)
{
    ll_uring_read(reader->uring, read->file, read->buffer + read->done, next_length(reader, read),
                  read->begin + read->done, (uint64_t)(uintptr_t)read);
}

void ll_reader_start(struct ll_reader *reader, struct ll_read *read)
{
    LL_ASSERT(reader->n_in_flight < reader->options.depth);
    prepare(reader, read);
    reader->n_in_flight++;
    if (reader->uring != NULL) {
        submit(reader, read);
    } else {
        pthread_mutex_lock(&reader->lock);
        push(&reader->todo, read);
        pthread_cond_signal(&reader->has_todo);
        pthread_mutex_unlock(&reader->lock);
    }
}

static struct ll_read *take_uring(struct ll_reader *reader, bool is_waiting, int *rc)
{
    struct ll_uring_result result;

    while ((*rc = ll_uring_take(reader->uring, &result, is_waiting)) == 1) {
        struct ll_read *read = (struct ll_read *)(uintptr_t)result.tag;
        *rc = 0;
        if (settle(reader, read, result.n))
            return read;
        submit(reader, read);
    }
    return NULL;
}

struct ll_read *ll_reader_take(struct ll_reader *reader, bool is_waiting, int *rc)
{
    struct ll_read *read;

    *rc = 0;
    if (reader->n_in_flight == 0)
        return NULL;
    if (reader->uring != NULL) {
        read = take_uring(reader, is_waiting, rc);
    } else if (reader->n_threads == 0) {
        read = pop(&reader->todo);
        if (read != NULL)
            read_now(reader, read);
    } else {
        pthread_mutex_lock(&reader->lock);
        while ((read = pop(&reader->done)) == NULL && is_waiting)
            pthread_cond_wait(&reader->has_done, &reader->lock);
        pthread_mutex_unlock(&reader->lock);
    }
    reader->n_in_flight -= read != NULL;
    return read;
}

bool ll_reader_is_free(const struct ll_reader *reader, uint32_t file)
{
    return reader->uring == NULL && reader->file[file].align == 0;
}

enum ll_reader_way ll_reader_way(const struct ll_reader *reader)
{
    return reader->way;
}

uint32_t ll_reader_depth(const struct ll_reader *reader)
{
    return reader->way == LL_READER_PLAIN ? (uint32_t)ll_min_u64(2, reader->options.depth)
                                          : reader->options.depth;
}

const char *ll_reader_describe(const struct ll_reader *reader)
{
    return reader->text;
}
