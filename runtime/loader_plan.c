/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/loader_plan.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/err.h"
#include "ll/client.h"
#include "runtime/reader.h"
#include "runtime/tensor_names.h"

#include <stdlib.h>

#define SPANS_MAX 1024u /* of one tensor, over all ranks */

/* Room for one more element; NULL when there is none. */
static void *grow(void **list, uint32_t n, uint32_t *n_max, size_t size)
{
    if (n == *n_max) {
        uint32_t wanted = *n_max == 0 ? 1024 : *n_max * 2;
        void *grown = realloc(*list, wanted * size);
        if (grown == NULL)
            return NULL;
        *list = grown;
        *n_max = wanted;
    }
    return (char *)*list + n * size;
}

static int no_memory(void)
{
    return LL_ERR(-ENOMEM, "no memory for the plan of a load");
}

/* ---- what is wanted ---------------------------------------------------------------------------*/

/* want(), its spans at the end of plan->span; gives their number. */
static int ask(struct ll_load_plan *plan, const struct ll_backend *backend,
               struct ll_device *device, const struct ll_tensor *tensor, const char *name)
{
    struct ll_text error = {""};

    if (plan->n_spans_max - plan->n_spans < SPANS_MAX) {
        uint32_t wanted = plan->n_spans_max * 2 + SPANS_MAX;
        struct ll_span *grown = realloc(plan->span, wanted * sizeof(*grown));
        if (grown == NULL)
            return no_memory();
        plan->span = grown;
        plan->n_spans_max = wanted;
    }
    struct ll_span *spans = plan->span + plan->n_spans;
    int n = backend->want(device, tensor, spans, SPANS_MAX, &error);
    if (n < 0)
        return LL_ERR(n, "%s backend: cannot use tensor %s: %.300s", backend->name, name, error.s);
    for (int i = 0; i < n; i++)
        if (!ll_span_fits(spans[i].offset, spans[i].size_bytes, tensor->size_bytes))
            return LL_ERR(LL_E_BACKEND, "%s backend: wants bytes outside tensor %s", backend->name,
                          name);
    return n;
}

static int add_piece(struct ll_load_plan *plan, const struct ll_checkpoint_tensor *tensor,
                     const struct ll_span *span, struct ll_load_quantised *quantised)
{
    struct ll_load_piece *piece;

    if (span->size_bytes == 0)
        return 0;
    piece = grow((void **)&plan->piece, plan->n_pieces, &plan->n_pieces_max, sizeof(*piece));
    if (piece == NULL)
        return no_memory();
    *piece = (struct ll_load_piece){.tensor = tensor,
                                    .quantised = quantised,
                                    .rank = span->rank,
                                    .begin = tensor->offset + span->offset,
                                    .end = tensor->offset + span->offset + span->size_bytes,
                                    .tensor_offset = span->offset};
    plan->n_pieces++;
    return 0;
}

static int plan_plain(struct ll_load_plan *plan, const struct ll_backend *backend,
                      struct ll_device *device, const struct ll_checkpoint_tensor *tensor)
{
    int n = ask(plan, backend, device, &tensor->tensor, tensor->name), rc = n < 0 ? n : 0;

    for (int i = 0; i < n && rc == 0; i++)
        rc = add_piece(plan, tensor, &plan->span[plan->n_spans + (uint32_t)i], NULL);
    return rc;
}

/* The tensor in e4m3, and its scales; the file's bytes are one piece (P3). */
static int plan_quantised(struct ll_load_plan *plan, const struct ll_backend *backend,
                          struct ll_device *device, const struct ll_checkpoint_tensor *tensor)
{
    struct ll_load_quantised *q = &plan->quantised[plan->n_quantised];
    const struct ll_tensor *from = &tensor->tensor;

    q->weight = *from;
    q->weight.dtype = LL_DTYPE_E4M3;
    q->weight.size_bytes = (uint64_t)from->rows * from->cols;
    q->scale = (struct ll_tensor){.role = from->role,
                                  .part = LL_PART_SCALE,
                                  .layer = from->layer,
                                  .dtype = LL_DTYPE_BF16,
                                  .rows = from->rows,
                                  .cols = 1,
                                  .size_bytes = 2ull * from->rows};
    q->first_span = plan->n_spans;
    int n = ask(plan, backend, device, &q->weight, tensor->name);
    if (n <= 0)
        return n;
    plan->n_spans += q->n_weight_spans = (uint32_t)n;
    n = ask(plan, backend, device, &q->scale, tensor->name);
    if (n < 0)
        return n;
    plan->n_spans += q->n_scale_spans = (uint32_t)n;
    plan->n_quantised++;
    return add_piece(plan, tensor, &(struct ll_span){.size_bytes = from->size_bytes}, q);
}

bool ll_load_is_quantised(const struct ll_tensor *tensor)
{
    return tensor->part == LL_PART_WEIGHT && ll_tensor_is_linear(tensor->role) &&
           tensor->dtype != LL_DTYPE_E4M3;
}

/* Scales of all tensors that are quantised, in one piece of memory. */
static int make_scales(struct ll_load_plan *plan)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < plan->n_quantised; i++)
        n += plan->quantised[i].weight.rows;
    if (n == 0)
        return 0;
    plan->scales = malloc(n * sizeof(*plan->scales));
    if (plan->scales == NULL)
        return no_memory();
    n = 0;
    for (uint32_t i = 0; i < plan->n_quantised; i++) {
        plan->quantised[i].scales = plan->scales + n;
        n += plan->quantised[i].weight.rows;
    }
    return 0;
}

static int compare_pieces(const void *a, const void *b)
{
    const struct ll_load_piece *x = a, *y = b;

    if (x->tensor->file != y->tensor->file)
        return x->tensor->file < y->tensor->file ? -1 : 1;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

/* ---- chunks -----------------------------------------------------------------------------------*/

static int add_chunk(struct ll_load_plan *plan, uint32_t first, uint64_t begin, uint64_t end)
{
    struct ll_load_chunk *chunk =
        grow((void **)&plan->chunk, plan->n_chunks, &plan->n_chunks_max, sizeof(*chunk));

    LL_ASSERT(end > begin);
    if (chunk == NULL)
        return no_memory();
    *chunk = (struct ll_load_chunk){
        .file = plan->piece[first].tensor->file, .first_piece = first, .begin = begin, .end = end};
    plan->n_chunks++;
    plan->bytes_total += end - begin;
    return 0;
}

/* P3: as many rows at a time as fit, wherever the first one begins in its block. */
static int cut_quantised(struct ll_load_plan *plan, uint32_t i, size_t buffer_bytes)
{
    const struct ll_load_piece *piece = &plan->piece[i];
    const uint64_t row = piece->tensor->tensor.size_bytes / piece->tensor->tensor.rows;
    const uint64_t n_rows = (buffer_bytes - 2 * LL_READER_ALIGN) / row;
    int rc = 0;

    if (n_rows == 0)
        return LL_ERR(LL_E_UNSUPPORTED,
                      "tensor %s: a row of %llu bytes is too long to be quantised",
                      piece->tensor->name, (unsigned long long)row);
    for (uint64_t at = piece->begin; at < piece->end && rc == 0; at += n_rows * row)
        rc = add_chunk(plan, i, at, ll_min_u64(at + n_rows * row, piece->end));
    return rc;
}

/* P2. Pieces [first, stop) lie in one file. */
static int cut_plain(struct ll_load_plan *plan, uint32_t first, uint32_t stop, size_t buffer_bytes)
{
    uint64_t done = 0; /* bytes before this one have their chunk */
    int rc = 0;

    while (first < stop && rc == 0) {
        uint64_t begin = ll_max_u64(done, plan->piece[first].begin), end = begin;
        /* A direct read begins at the block of its first byte. */
        uint64_t most = (begin & ~(uint64_t)(LL_READER_ALIGN - 1)) + buffer_bytes;
        for (uint32_t i = first; i < stop && plan->piece[i].begin <= end; i++)
            end = ll_max_u64(end, plan->piece[i].end);
        end = ll_min_u64(end, most);
        rc = add_chunk(plan, first, begin, end);
        done = end;
        while (first < stop && plan->piece[first].end <= done)
            first++;
    }
    return rc;
}

static int cut_chunks(struct ll_load_plan *plan, size_t buffer_bytes)
{
    int rc = 0;

    for (uint32_t first = 0, stop; first < plan->n_pieces && rc == 0; first = stop) {
        stop = first + 1;
        if (plan->piece[first].quantised != NULL) {
            rc = cut_quantised(plan, first, buffer_bytes);
            continue;
        }
        while (stop < plan->n_pieces && plan->piece[stop].quantised == NULL &&
               plan->piece[stop].tensor->file == plan->piece[first].tensor->file)
            stop++;
        rc = cut_plain(plan, first, stop, buffer_bytes);
    }
    return rc;
}

int ll_load_plan_make(struct ll_load_plan *plan, const struct ll_backend *backend,
                      struct ll_device *device, const struct ll_checkpoint *checkpoint,
                      bool quantize_fp8, size_t buffer_bytes)
{
    int rc = 0;

    *plan = (struct ll_load_plan){0};
    plan->quantised = calloc(checkpoint->n_tensors, sizeof(*plan->quantised));
    if (plan->quantised == NULL)
        return no_memory();
    for (uint32_t i = 0; i < checkpoint->n_tensors && rc == 0; i++) {
        const struct ll_checkpoint_tensor *tensor = &checkpoint->tensor[i];
        rc = quantize_fp8 && ll_load_is_quantised(&tensor->tensor)
                 ? plan_quantised(plan, backend, device, tensor)
                 : plan_plain(plan, backend, device, tensor);
    }
    if (rc == 0)
        rc = make_scales(plan);
    if (rc == 0 && plan->n_pieces > 0)
        qsort(plan->piece, plan->n_pieces, sizeof(*plan->piece), compare_pieces);
    if (rc == 0)
        rc = cut_chunks(plan, buffer_bytes);
    if (rc < 0)
        ll_load_plan_free(plan);
    return rc;
}

void ll_load_plan_free(struct ll_load_plan *plan)
{
    free(plan->piece);
    free(plan->chunk);
    free(plan->quantised);
    free(plan->span);
    free(plan->scales);
    *plan = (struct ll_load_plan){0};
}
