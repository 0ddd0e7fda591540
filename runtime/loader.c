/* SPDX-License-Identifier: Apache-2.0 */
/* One thread keeps reads in flight and hands what has come to the backend.
 *
 *   L1  a buffer is FREE, READING a chunk, HASHING it (with a checksum only), or COPYING: its
 *       pieces are fed and it is filled again only when the ticket of each of them is done
 *   L2  chunks are started in the plan's order and come in any
 *   L3  a file must be what ll_checkpoint_open() saw, before its first read and after its last:
 *       same size, same modification time
 *   L4  it waits for a completion, or sleeps between questions for a ticket: it never spins
 *   L5  a chunk that the backend would only copy is read to where it will lie, and fed from there
 *
 * No mapping of files: one cut off while it is read is a short read here, not a SIGBUS. */
#include "runtime/loader.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "runtime/fp8.h"
#include "runtime/jsonfile.h"
#include "runtime/loader_hash.h"
#include "runtime/loader_plan.h"

#include <numaif.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>

#define BUFFER_BYTES ((size_t)8 << 20)
#define BUFFERS_MAX  16u   /* 128 MiB: a millisecond of 128 GB/s, and what copies wait for */
#define TICKETS_MAX  1024u /* pieces of one buffer in flight; more wait for those before */
#define FED_STALL_NS (60 * LL_NS_PER_S)
#define FED_SLEEP_NS 20000

enum buffer_state { BUFFER_FREE, BUFFER_READING, BUFFER_HASHING, BUFFER_COPYING };

struct buffer {
    struct ll_read read;
    enum buffer_state state;
    const struct ll_load_chunk *chunk;
    char *staging; /* its part; the chunk may be read straight into its place instead */
    uint64_t ticket[TICKETS_MAX];
    uint32_t n_tickets;
};

struct load {
    const struct ll_backend *backend;
    struct ll_device *device;
    uint32_t weights;
    const struct ll_checkpoint *checkpoint;
    struct ll_load_options options;
    struct ll_load_plan plan;
    struct ll_reader *reader;
    struct ll_load_hash *hash; /* NULL: no checksum */
    struct buffer *buffer;
    uint32_t n_buffers, n_used; /* made; the reader has a use for */
    void *staging;
    size_t staging_bytes;
    uint32_t n_started, n_reading, n_hashing, n_copying; /* chunks */
    struct ll_load_progress progress;
    uint64_t start_ns, fed_ns;
};

/* The backend's own words, under the code it gave. */
static int backend_error(const struct load *load, int rc, const char *what, const char *tensor,
                         const struct ll_text *error)
{
    return LL_ERR(rc, "%s backend: %s%s%s: %.300s", load->backend->name, what,
                  tensor[0] != '\0' ? " " : "", tensor, error->s);
}

/* ---- staging ----------------------------------------------------------------------------------*/

static void *map_staging(size_t size_bytes, int numa_node)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS, protection = PROT_READ | PROT_WRITE;
    void *base = mmap(NULL, size_bytes, protection, flags | MAP_HUGETLB, -1, 0);

    if (base == MAP_FAILED) { /* none set aside, the usual case: the kernel may still give some */
        base = mmap(NULL, size_bytes, protection, flags, -1, 0);
        if (base == MAP_FAILED)
            return NULL;
        madvise(base, size_bytes, MADV_HUGEPAGE);
    }
    madvise(base, size_bytes,
            MADV_DONTFORK); /* the child that makes the tokenizer needs none of it */
    if (numa_node >= 0 && numa_node < 64) {
        unsigned long mask = 1ul << numa_node;
        mbind(base, size_bytes, MPOL_PREFERRED, &mask, 8 * sizeof(mask) + 1, 0); /* a wish */
    }
    return base;
}

static int make_staging(struct load *load)
{
    struct ll_text error = {""};

    load->n_buffers =
        (uint32_t)ll_min_u64(BUFFERS_MAX, ll_div_ceil(load->plan.bytes_total, BUFFER_BYTES) + 1);
    load->staging_bytes = load->n_buffers * BUFFER_BYTES;
    load->staging = map_staging(load->staging_bytes, load->options.numa_node);
    load->buffer = calloc(load->n_buffers, sizeof(*load->buffer));
    if (load->staging == NULL || load->buffer == NULL)
        return LL_ERR(-ENOMEM, "no memory for %u staging buffers of %zu bytes", load->n_buffers,
                      BUFFER_BYTES);
    for (uint32_t i = 0; i < load->n_buffers; i++)
        load->buffer[i].staging = (char *)load->staging + i * BUFFER_BYTES;
    if (load->backend->pin != NULL &&
        load->backend->pin(load->device, load->staging, load->staging_bytes, &error) < 0)
        ll_warn("weights load more slowly: the %s backend could not pin the staging buffers: %s",
                load->backend->name, error.s);
    return 0;
}

/* L1: asks for the buffer's tickets, the last one first; 1 when none are left. */
static int ask_tickets(struct load *load, struct buffer *buffer)
{
    while (buffer->n_tickets > 0) {
        struct ll_text error = {""};
        int rc = load->backend->fed(load->device, buffer->ticket[buffer->n_tickets - 1], &error);
        if (rc < 0)
            return backend_error(load, rc, "taking weights failed", "", &error);
        if (rc == 0)
            return 0;
        buffer->n_tickets--;
        load->fed_ns = ll_now_ns();
    }
    return 1;
}

static int sleep_for_tickets(struct load *load)
{
    if (ll_now_ns() > load->fed_ns + FED_STALL_NS)
        return LL_ERR(LL_E_BACKEND, "%s backend: took no weights for 60 s", load->backend->name);
    nanosleep(&(struct timespec){.tv_nsec = FED_SLEEP_NS}, NULL); /* L4 */
    return 0;
}

/* Waits until the backend is done with the buffer. */
static int drain_buffer(struct load *load, struct buffer *buffer)
{
    int rc;

    load->fed_ns = ll_now_ns();
    while ((rc = ask_tickets(load, buffer)) == 0) {
        rc = sleep_for_tickets(load);
        if (rc < 0)
            return rc;
    }
    return rc < 0 ? rc : 0;
}

/* ---- feeding ----------------------------------------------------------------------------------*/

static int feed(struct load *load, struct buffer *buffer, const struct ll_tensor *tensor,
                const char *name, uint32_t rank, uint64_t offset, const void *data, size_t n_bytes)
{
    struct ll_text error = {""};
    uint64_t ticket = 0;
    int rc = buffer->n_tickets == TICKETS_MAX ? drain_buffer(load, buffer) : 0;

    if (rc == 0)
        rc = load->backend->feed(load->device, load->weights, tensor, rank, offset, data, n_bytes,
                                 &ticket, &error);
    else
        return rc;
    if (rc < 0)
        return backend_error(load, rc, "does not take tensor", name, &error);
    buffer->ticket[buffer->n_tickets++] = ticket;
    return 0;
}

/* What of a tensor's bytes [from, to) ranks want; data is that of from. */
static int feed_spans(struct load *load, struct buffer *buffer, const struct ll_tensor *tensor,
                      const char *name, const struct ll_span *span, uint32_t n_spans, uint64_t from,
                      uint64_t to, const char *data)
{
    int rc = 0;

    for (uint32_t i = 0; i < n_spans && rc == 0; i++) {
        uint64_t begin = ll_max_u64(from, span[i].offset);
        uint64_t end = ll_min_u64(to, span[i].offset + span[i].size_bytes);
        if (begin < end)
            rc = feed(load, buffer, tensor, name, span[i].rank, begin, data + (begin - from),
                      end - begin);
    }
    return rc;
}

/* The chunk's rows become e4m3 where they lie: half or a quarter of the bytes, from the front. */
static int feed_quantised(struct load *load, struct buffer *buffer,
                          const struct ll_load_piece *piece)
{
    const struct ll_load_chunk *chunk = buffer->chunk;
    const struct ll_tensor *from = &piece->tensor->tensor;
    const struct ll_load_quantised *q = piece->quantised;
    const uint64_t row_bytes = from->size_bytes / from->rows;
    const uint32_t first_row = (uint32_t)((chunk->begin - piece->begin) / row_bytes),
                   n_rows = (uint32_t)((chunk->end - chunk->begin) / row_bytes);
    char *data = buffer->read.buffer;

    if (buffer->read.first != data) /* a file may put numbers at odd addresses */
        memmove(data, buffer->read.first, chunk->end - chunk->begin);
    uint32_t bad = ll_fp8_quantize((uint8_t *)data, q->scales + first_row, data, from->dtype,
                                   n_rows, from->cols);
    if (bad < n_rows)
        return LL_ERR(
            LL_E_INVAL,
            "%s: tensor \"%s\": row %u holds a NaN or an infinity and cannot be quantised",
            ll_path_tail(load->checkpoint->file[chunk->file].path), piece->tensor->name,
            first_row + bad);
    int rc =
        feed_spans(load, buffer, &q->weight, piece->tensor->name, load->plan.span + q->first_span,
                   q->n_weight_spans, (uint64_t)first_row * from->cols,
                   (uint64_t)(first_row + n_rows) * from->cols, data);
    if (rc < 0)
        return rc;
    return feed_spans(load, buffer, &q->scale, piece->tensor->name,
                      load->plan.span + q->first_span + q->n_weight_spans, q->n_scale_spans,
                      2ull * first_row, 2ull * (first_row + n_rows),
                      (const char *)(q->scales + first_row));
}

static int feed_chunk(struct load *load, struct buffer *buffer)
{
    const struct ll_load_chunk *chunk = buffer->chunk;
    const struct ll_load_piece *piece = &load->plan.piece[chunk->first_piece],
                               *end = load->plan.piece + load->plan.n_pieces;
    int rc = 0;

    if (piece->quantised != NULL)
        return feed_quantised(load, buffer, piece);
    for (;
         piece < end && piece->tensor->file == chunk->file && piece->begin < chunk->end && rc == 0;
         piece++) {
        uint64_t from = ll_max_u64(piece->begin, chunk->begin);
        uint64_t to = ll_min_u64(piece->end, chunk->end);
        if (from < to && piece->quantised == NULL)
            rc = feed(load, buffer, &piece->tensor->tensor, piece->tensor->name, piece->rank,
                      piece->tensor_offset + (from - piece->begin),
                      buffer->read.first + (from - chunk->begin), to - from);
    }
    return rc;
}

/* ---- the loop ---------------------------------------------------------------------------------*/

static int report(struct load *load)
{
    load->progress.elapsed_ns = ll_now_ns() - load->start_ns;
    if (load->options.callback != NULL &&
        load->options.callback(load->options.context, &load->progress) != 0)
        return LL_ERR(-ECANCELED, "loading was stopped after %llu of %llu bytes",
                      (unsigned long long)load->progress.bytes_done,
                      (unsigned long long)load->progress.bytes_total);
    return 0;
}

/* Where the backend would copy the chunk, if it would only copy it; NULL: it goes through staging.
 */
static char *place_of(const struct load *load, const struct ll_load_chunk *chunk)
{
    const struct ll_load_piece *piece = &load->plan.piece[chunk->first_piece], *next = piece + 1;
    const bool is_shared = next < load->plan.piece + load->plan.n_pieces &&
                           next->tensor->file == chunk->file && next->begin < chunk->end;

    if (load->backend->place == NULL || !ll_reader_is_free(load->reader, chunk->file) ||
        piece->quantised != NULL || is_shared || piece->begin > chunk->begin ||
        piece->end < chunk->end)
        return NULL;
    return load->backend->place(load->device, load->weights, &piece->tensor->tensor, piece->rank,
                                piece->tensor_offset + (chunk->begin - piece->begin),
                                chunk->end - chunk->begin);
}

/* Free buffers start on the next chunks (L2), copied ones become free; gives how many moved on. */
static int move_buffers(struct load *load)
{
    int n_moved = 0;

    for (uint32_t i = 0; i < load->n_used; i++) {
        struct buffer *buffer = &load->buffer[i];
        if (buffer->state == BUFFER_COPYING) {
            int rc = ask_tickets(load, buffer);
            if (rc < 0)
                return rc;
            if (rc == 0)
                continue;
            buffer->state = BUFFER_FREE;
            load->n_copying--;
            n_moved++;
        }
        if (buffer->state == BUFFER_FREE && load->n_started < load->plan.n_chunks) {
            buffer->chunk = &load->plan.chunk[load->n_started++];
            buffer->read.file = buffer->chunk->file;
            buffer->read.offset = buffer->chunk->begin;
            buffer->read.n_bytes = buffer->chunk->end - buffer->chunk->begin;
            buffer->read.buffer = place_of(load, buffer->chunk);
            if (buffer->read.buffer == NULL)
                buffer->read.buffer = buffer->staging;
            buffer->state = BUFFER_READING;
            load->n_reading++;
            n_moved++;
            ll_reader_start(load->reader, &buffer->read);
        }
    }
    return n_moved;
}

/* The chunk's pieces go to the backend. */
static int hand_over(struct load *load, struct buffer *buffer)
{
    buffer->state = BUFFER_COPYING;
    load->n_copying++;
    load->fed_ns = ll_now_ns();
    int rc = feed_chunk(load, buffer);
    if (rc < 0)
        return rc;
    load->progress.bytes_done += buffer->chunk->end - buffer->chunk->begin;
    return report(load);
}

/* A read has come back. */
static int finish_read(struct load *load, struct ll_read *read)
{
    struct buffer *buffer = (struct buffer *)((char *)read - offsetof(struct buffer, read));
    const struct ll_load_chunk *chunk = buffer->chunk;

    load->n_reading--;
    if (read->error < 0)
        return LL_ERR(read->error, "%s: tensor \"%s\": %s",
                      ll_path_tail(load->checkpoint->file[chunk->file].path),
                      load->plan.piece[chunk->first_piece].tensor->name, read->error_text);
    if (load->hash == NULL)
        return hand_over(load, buffer);
    buffer->state = BUFFER_HASHING;
    load->n_hashing++;
    ll_load_hash_add(load->hash, (uint32_t)(chunk - load->plan.chunk), read->first,
                     chunk->end - chunk->begin);
    return 0;
}

/* A chunk that is hashed goes on; 1 when there was one. */
static int finish_hash(struct load *load, bool is_waiting)
{
    int64_t i = ll_load_hash_take(load->hash, is_waiting);

    for (uint32_t k = 0; k < load->n_used && i >= 0; k++) {
        struct buffer *buffer = &load->buffer[k];
        if (buffer->state != BUFFER_HASHING || buffer->chunk != &load->plan.chunk[i])
            continue;
        load->n_hashing--;
        int rc = hand_over(load, buffer);
        return rc < 0 ? rc : 1;
    }
    return 0;
}

/* Waits for what comes next, if nothing has moved: a read, a hashed chunk, a ticket. */
static int wait_for_more(struct load *load, bool has_moved)
{
    const bool is_hashing = load->hash != NULL && ll_load_hash_is_busy(load->hash);
    /* With copies under way and more to read a ticket may come first: look at both. */
    const bool is_waiting = load->n_reading > 0 && !is_hashing &&
                            (load->n_copying == 0 || load->n_started == load->plan.n_chunks);
    int rc;
    struct ll_read *read = ll_reader_take(load->reader, is_waiting, &rc);

    if (rc < 0)
        return rc;
    if (read != NULL)
        return finish_read(load, read);
    if (is_hashing && (rc = finish_hash(load, !has_moved)) != 0)
        return rc < 0 ? rc : 0;
    return !has_moved && load->n_copying > 0 ? sleep_for_tickets(load) : 0;
}

static int load_chunks(struct load *load)
{
    int rc = report(load);

    load->fed_ns = ll_now_ns();
    while (rc == 0) {
        int n_moved = move_buffers(load);
        if (n_moved < 0 || load->n_reading + load->n_hashing + load->n_copying == 0)
            return n_moved < 0 ? n_moved : 0;
        rc = wait_for_more(load, n_moved > 0);
    }
    return rc;
}

static int check_checksum(const struct load *load)
{
    char found[LL_LOAD_HASH_BYTES];

    if (load->hash == NULL)
        return 0;
    ll_load_hash_text(load->hash, found);
    ll_info("weights: checksum %s", found);
    if (strcmp(load->options.checksum, "print") != 0 &&
        strcasecmp(load->options.checksum, found) != 0)
        return LL_ERR(
            LL_E_INVAL,
            "%s: the weights have the checksum %s, not %.40s: they are damaged, or others",
            ll_path_tail(load->checkpoint->directory), found, load->options.checksum);
    return 0;
}

static int read_all(struct load *load)
{
    struct ll_reader_options options = {.files = load->checkpoint->file,
                                        .n_files = load->checkpoint->n_files,
                                        .staging = load->staging,
                                        .staging_bytes = load->staging_bytes,
                                        .buffer_bytes = BUFFER_BYTES,
                                        .depth = load->n_buffers,
                                        .way = load->options.way,
                                        .faults = load->options.faults};
    int rc = ll_reader_open(&load->reader, &options);

    if (rc < 0)
        return rc;
    ll_info("weights: %.2f GB by %s", (double)load->plan.bytes_total / 1e9,
            ll_reader_describe(load->reader));
    load->n_used = ll_reader_depth(load->reader);
    if (load->options.checksum != NULL)
        rc = ll_load_hash_open(&load->hash, load->n_used);
    if (rc == 0)
        rc = load_chunks(load);
    if (rc == 0)
        rc = ll_reader_check(load->reader);
    if (rc == 0)
        rc = check_checksum(load);

    /* Also after an error: reads and copies may still use the buffers. The first error is the one
     * to tell. */
    char first_text[LL_ERR_TEXT_BYTES];
    snprintf(first_text, sizeof(first_text), "%s", ll_err_text());
    ll_reader_close(load->reader);
    ll_load_hash_close(load->hash);
    for (uint32_t i = 0; i < load->n_buffers; i++) {
        int drained = drain_buffer(load, &load->buffer[i]);
        if (rc < 0)
            ll_err_set(rc, "%s", first_text);
        else
            rc = drained;
    }
    return rc;
}

int ll_loader_run(const struct ll_backend *backend, struct ll_device *device, uint32_t weights,
                  const struct ll_checkpoint *checkpoint, const struct ll_load_options *options)
{
    struct ll_text error = {""};
    struct load *load = calloc(1, sizeof(*load));

    if (load == NULL)
        return LL_ERR(-ENOMEM, "no memory to load weights");
    *load = (struct load){.backend = backend,
                          .device = device,
                          .weights = weights,
                          .checkpoint = checkpoint,
                          .options = {.numa_node = -1},
                          .start_ns = ll_now_ns()};
    if (options != NULL)
        load->options = *options;
    int rc = backend->begin != NULL ? backend->begin(device, weights, &error) : 0;
    if (rc < 0)
        backend_error(load, rc, "does not begin a load", "", &error);
    else
        rc = ll_load_plan_make(&load->plan, backend, device, checkpoint, load->options.quantize_fp8,
                               BUFFER_BYTES);
    load->progress.bytes_total = load->plan.bytes_total;
    if (rc == 0)
        rc = make_staging(load);
    if (rc == 0)
        rc = read_all(load);
    if (rc == 0) {
        const uint64_t seal_ns = ll_now_ns();
        rc = backend->seal(device, weights, &error);
        if (load->options.seal_ns != NULL)
            *load->options.seal_ns = ll_now_ns() - seal_ns;
        if (rc < 0)
            backend_error(load, rc, "sealing the weights failed", "", &error);
    }
    if (rc < 0 && load->staging != NULL && backend->pin != NULL)
        backend->pin(device, NULL, 0, &error); /* no seal has ended it */
    if (load->staging != NULL)
        munmap(load->staging, load->staging_bytes);
    ll_load_plan_free(&load->plan);
    free(load->buffer);
    free(load);
    return rc;
}
