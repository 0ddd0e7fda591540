/* SPDX-License-Identifier: Apache-2.0 */
/* One thread reads ahead of the backend: while it takes the pieces of one staging buffer, the next
 * is filled.
 *
 *   L1  the plan is sorted by file and offset, so each file is read once, front to back; bytes that
 *       several ranks want are read once and fed to each
 *   L2  a staging buffer is filled again only when the ticket of every piece fed from it is done
 *   L3  a file must be what ll_checkpoint_open() saw, before its first read and after its last:
 *       same size, same modification time
 * No mapping: a file cut off while it is read is a short read here, not a SIGBUS. */
#include "runtime/loader.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "runtime/jsonfile.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STAGING_BYTES   ((size_t)8 << 20)
#define STAGING_BUFFERS 3u    /* one being read, one being taken, one waiting */
#define TICKETS_MAX     1024u /* pieces of one buffer in flight; more wait for those before */
#define SPANS_MAX       1024u /* of one tensor, over all ranks */
#define FED_STALL_NS    (60 * LL_NS_PER_S)

struct piece { /* bytes of a file that go to one rank */
    const struct ll_checkpoint_tensor *tensor;
    uint32_t rank;
    uint64_t begin, end;    /* in the file */
    uint64_t tensor_offset; /* of begin in the tensor */
};

struct staging {
    char *bytes;
    uint64_t ticket[TICKETS_MAX];
    uint32_t n_tickets;
};

struct load {
    const struct ll_backend *backend;
    struct ll_device *device;
    uint32_t weights;
    const struct ll_checkpoint *checkpoint;
    struct piece *piece; /* sorted by file, begin */
    uint32_t n_pieces, capacity;
    struct staging staging[STAGING_BUFFERS];
    char *staging_memory;
    ll_load_callback *callback;
    void *context;
    struct ll_load_progress progress;
    uint64_t start_ns;
};

/* The backend's own words, under the code it gave. */
static int backend_error(const struct load *load, int rc, const char *what, const char *tensor,
                         const struct ll_text *error)
{
    return LL_ERR(rc, "%s backend: %s%s%s: %.300s", load->backend->name, what,
                  tensor[0] != '\0' ? " " : "", tensor, error->s);
}

/* ---- the plan ---------------------------------------------------------------------------------*/

static int add_piece(struct load *load, const struct ll_checkpoint_tensor *tensor,
                     const struct ll_span *span)
{
    if (!ll_span_fits(span->offset, span->size_bytes, tensor->tensor.size_bytes))
        return LL_ERR(LL_E_BACKEND, "%s backend: wants bytes outside tensor %s",
                      load->backend->name, tensor->name);
    if (span->size_bytes == 0)
        return 0;
    if (load->n_pieces == load->capacity) {
        uint32_t wanted = load->capacity == 0 ? 1024 : load->capacity * 2;
        struct piece *grown = realloc(load->piece, wanted * sizeof(*grown));
        if (grown == NULL)
            return LL_ERR(-ENOMEM, "no memory for a plan of %u pieces", wanted);
        load->piece = grown;
        load->capacity = wanted;
    }
    load->piece[load->n_pieces++] =
        (struct piece){.tensor = tensor,
                       .rank = span->rank,
                       .begin = tensor->offset + span->offset,
                       .end = tensor->offset + span->offset + span->size_bytes,
                       .tensor_offset = span->offset};
    return 0;
}

static int compare_pieces(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;

    if (x->tensor->file != y->tensor->file)
        return x->tensor->file < y->tensor->file ? -1 : 1;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

static int make_plan(struct load *load)
{
    struct ll_span *spans = calloc(SPANS_MAX, sizeof(*spans));
    int rc = 0;

    if (spans == NULL)
        return LL_ERR(-ENOMEM, "no memory for the plan");
    for (uint32_t i = 0; i < load->checkpoint->n_tensors && rc == 0; i++) {
        const struct ll_checkpoint_tensor *tensor = &load->checkpoint->tensor[i];
        struct ll_text error = {""};
        int n = load->backend->want(load->device, &tensor->tensor, spans, SPANS_MAX, &error);
        if (n < 0)
            rc = backend_error(load, n, "cannot use tensor", tensor->name, &error);
        for (int k = 0; k < n && rc == 0; k++)
            rc = add_piece(load, tensor, &spans[k]);
    }
    free(spans);
    if (rc < 0)
        return rc;
    if (load->n_pieces > 0)
        qsort(load->piece, load->n_pieces, sizeof(*load->piece), compare_pieces);

    const struct piece *before = NULL;
    uint64_t covered = 0;
    for (uint32_t i = 0; i < load->n_pieces; i++) {
        const struct piece *piece = &load->piece[i];
        if (before == NULL || before->tensor->file != piece->tensor->file)
            covered = 0;
        uint64_t begin = ll_max_u64(covered, piece->begin);
        if (piece->end > begin)
            load->progress.bytes_total += piece->end - begin;
        covered = ll_max_u64(covered, piece->end);
        before = piece;
    }
    return 0;
}

/* ---- staging ----------------------------------------------------------------------------------*/

static int make_staging(struct load *load)
{
    struct ll_text error = {""};

    /* 4 KiB aligned, which is all that direct reads and page pinning ask for. */
    if (posix_memalign((void **)&load->staging_memory, 4096, STAGING_BUFFERS * STAGING_BYTES) != 0)
        return LL_ERR(-ENOMEM, "no memory for %u staging buffers of %zu bytes", STAGING_BUFFERS,
                      STAGING_BYTES);
    for (uint32_t i = 0; i < STAGING_BUFFERS; i++)
        load->staging[i].bytes = load->staging_memory + i * STAGING_BYTES;
    if (load->backend->pin != NULL &&
        load->backend->pin(load->device, load->staging_memory, STAGING_BUFFERS * STAGING_BYTES,
                           &error) < 0)
        ll_warn("weights load more slowly: the %s backend could not pin the staging buffers: %s",
                load->backend->name, error.s);
    return 0;
}

/* L2: waits until the backend is done with every piece of the buffer. */
static int drain_staging(struct load *load, struct staging *staging)
{
    uint64_t stall_ns = ll_now_ns() + FED_STALL_NS;

    while (staging->n_tickets > 0) {
        struct ll_text error = {""};
        int rc = load->backend->fed(load->device, staging->ticket[staging->n_tickets - 1], &error);
        if (rc < 0)
            return backend_error(load, rc, "taking weights failed", "", &error);
        if (rc > 0) {
            staging->n_tickets--;
            stall_ns = ll_now_ns() + FED_STALL_NS;
            continue;
        }
        if (ll_now_ns() > stall_ns)
            return LL_ERR(LL_E_BACKEND, "%s backend: took no weights for 60 s",
                          load->backend->name);
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    return 0;
}

static int feed_piece(struct load *load, struct staging *staging, const struct piece *piece,
                      uint64_t begin, uint64_t end, uint64_t chunk_begin)
{
    struct ll_text error = {""};
    uint64_t ticket = 0;

    if (staging->n_tickets == TICKETS_MAX) {
        int rc = drain_staging(load, staging);
        if (rc < 0)
            return rc;
    }
    int rc =
        load->backend->feed(load->device, load->weights, &piece->tensor->tensor, piece->rank,
                            piece->tensor_offset + (begin - piece->begin),
                            staging->bytes + (begin - chunk_begin), end - begin, &ticket, &error);
    if (rc < 0)
        return backend_error(load, rc, "does not take tensor", piece->tensor->name, &error);
    staging->ticket[staging->n_tickets++] = ticket;
    return 0;
}

/* ---- reading ----------------------------------------------------------------------------------*/

/* L3. */
static int check_unchanged(int fd, const struct ll_checkpoint_file *file)
{
    const char *path = ll_path_tail(file->path);
    struct stat st;

    if (fstat(fd, &st) < 0)
        return LL_ERRNO("%s: fstat", path);
    if ((uint64_t)st.st_size != file->size_bytes)
        return LL_ERR(LL_E_INVAL,
                      "%s: changed while loading: %lld bytes now, %llu when its header was read",
                      path, (long long)st.st_size, (unsigned long long)file->size_bytes);
    if ((uint64_t)st.st_mtim.tv_sec * LL_NS_PER_S + (uint64_t)st.st_mtim.tv_nsec != file->mtime_ns)
        return LL_ERR(LL_E_INVAL, "%s: changed while loading: it was written to", path);
    return 0;
}

static int read_chunk(int fd, const struct ll_checkpoint_file *file, const char *tensor,
                      char *bytes, uint64_t begin, uint64_t end)
{
    for (uint64_t at = begin; at < end;) {
        ssize_t n = pread(fd, bytes + (at - begin), end - at, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return LL_ERRNO("%s: tensor \"%s\": read at byte %llu", ll_path_tail(file->path),
                            tensor, (unsigned long long)at);
        if (n == 0)
            return LL_ERR(LL_E_INVAL,
                          "%s: tensor \"%s\": the file ends before byte %llu: it was cut "
                          "off while loading",
                          ll_path_tail(file->path), tensor, (unsigned long long)at);
        at += (uint64_t)n;
    }
    return 0;
}

static int report(struct load *load)
{
    load->progress.elapsed_ns = ll_now_ns() - load->start_ns;
    if (load->callback != NULL && load->callback(load->context, &load->progress) != 0)
        return LL_ERR(-ECANCELED, "loading was stopped after %llu of %llu bytes",
                      (unsigned long long)load->progress.bytes_done,
                      (unsigned long long)load->progress.bytes_total);
    return 0;
}

/* End of the chunk that starts at begin: as far as pieces follow each other without a gap, at most
 * one buffer. */
static uint64_t chunk_end(const struct load *load, uint32_t first, uint32_t stop, uint64_t begin)
{
    uint64_t end = begin;

    for (uint32_t i = first; i < stop && load->piece[i].begin <= end; i++)
        end = ll_max_u64(end, load->piece[i].end);
    return ll_min_u64(end, begin + STAGING_BYTES);
}

/* Pieces [first, stop) are those of one open file. */
static int load_pieces(struct load *load, int fd, uint32_t first, uint32_t stop)
{
    const struct ll_checkpoint_file *file =
        &load->checkpoint->file[load->piece[first].tensor->file];
    uint64_t done = 0; /* bytes of the file before this one are fed */

    for (uint32_t turn = 0; first < stop; turn++) {
        struct staging *staging = &load->staging[turn % STAGING_BUFFERS];
        uint64_t begin = ll_max_u64(done, load->piece[first].begin);
        uint64_t end = chunk_end(load, first, stop, begin);

        LL_ASSERT(end > begin);
        int rc = drain_staging(load, staging);
        if (rc == 0)
            rc = read_chunk(fd, file, load->piece[first].tensor->name, staging->bytes, begin, end);
        for (uint32_t i = first; i < stop && load->piece[i].begin < end && rc == 0; i++) {
            const struct piece *piece = &load->piece[i];
            uint64_t from = ll_max_u64(piece->begin, begin), to = ll_min_u64(piece->end, end);
            if (from < to)
                rc = feed_piece(load, staging, piece, from, to, begin);
        }
        if (rc < 0)
            return rc;
        load->progress.bytes_done += end - begin;
        done = end;
        while (first < stop && load->piece[first].end <= done)
            first++;
        rc = report(load);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int load_file(struct load *load, uint32_t first, uint32_t stop)
{
    const struct ll_checkpoint_file *file =
        &load->checkpoint->file[load->piece[first].tensor->file];
    int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return LL_ERRNO("%s", ll_path_tail(file->path));
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* a hint: twice the read-ahead */
    int rc = check_unchanged(fd, file);
    if (rc == 0)
        rc = load_pieces(load, fd, first, stop);
    if (rc == 0)
        rc = check_unchanged(fd, file);
    close(fd);
    return rc;
}

static int load_all(struct load *load)
{
    int rc = report(load);

    for (uint32_t first = 0, stop; first < load->n_pieces && rc == 0; first = stop) {
        for (stop = first; stop < load->n_pieces &&
                           load->piece[stop].tensor->file == load->piece[first].tensor->file;)
            stop++;
        rc = load_file(load, first, stop);
    }
    /* Also after an error: the backend may still be copying out of the buffers. The first error is
     * the one to tell. */
    char first_text[LL_ERR_TEXT_BYTES];
    snprintf(first_text, sizeof(first_text), "%s", ll_err_text());
    for (uint32_t i = 0; i < STAGING_BUFFERS; i++) {
        int drained = drain_staging(load, &load->staging[i]);
        if (rc < 0)
            ll_err_set(rc, "%s", first_text);
        else
            rc = drained;
    }
    return rc;
}

int ll_loader_run(const struct ll_backend *backend, struct ll_device *device, uint32_t weights,
                  const struct ll_checkpoint *checkpoint, ll_load_callback *callback, void *context)
{
    struct ll_text error = {""};
    struct load *load = calloc(1, sizeof(*load));

    if (load == NULL)
        return LL_ERR(-ENOMEM, "no memory to load weights");
    *load = (struct load){.backend = backend,
                          .device = device,
                          .weights = weights,
                          .checkpoint = checkpoint,
                          .callback = callback,
                          .context = context,
                          .start_ns = ll_now_ns()};
    int rc = make_plan(load);
    if (rc == 0)
        rc = make_staging(load);
    if (rc == 0)
        rc = load_all(load);
    if (rc == 0) {
        rc = backend->seal(device, weights, &error);
        if (rc < 0)
            backend_error(load, rc, "sealing the weights failed", "", &error);
    }
    free(load->staging_memory);
    free(load->piece);
    free(load);
    return rc;
}
