/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/backend_weights.c - struct ll_backend for the CPU: weights into the parts of its
 * ranks. All of it is done when the call returns, so every ticket is. */
#include "kernels/cpu/backend_impl.h"

#include "base/bits.h"
#include "kernels/cpu/batch.h"
#include "kernels/cpu/memory.h"
#include "ll/client.h"

/* A rank asks for the rows that it has something of; feed takes its columns out of them. */
int ll_cpu_want(struct ll_device *d, const struct ll_tensor *tensor, struct ll_span *spans,
                uint32_t n_max, struct ll_text *error)
{
    const struct ll_cpu_weights whole = {
        .shape = d->model, .compute = d->options.dtype, .has_fp8_kv = d->kv.form == LL_FORM_E4M3};
    int n = ll_cpu_weights_want(&whole, tensor, spans, n_max, error);

    if (n <= 0 || d->n_ranks == 1)
        return n;
    const uint64_t row_bytes = (uint64_t)tensor->cols * ll_dtype_bytes(tensor->dtype);
    n = 0;
    for (uint32_t rank = 0; rank < d->n_ranks; rank++) {
        struct ll_cpu_slice slice;
        int rc = ll_cpu_rank_slice(&d->model, d->n_ranks, tensor, rank, &slice, error);
        if (rc < 0)
            return rc;
        if (slice.n_rows == 0)
            continue;
        if ((uint32_t)n == n_max)
            return ll_cpu_fail(error, LL_E_INVAL, "room for %u spans only", n_max);
        spans[n++] = (struct ll_span){
            .offset = slice.row * row_bytes, .size_bytes = slice.n_rows * row_bytes, .rank = rank};
    }
    return n;
}

int ll_cpu_pin(struct ll_device *d, void *base, size_t size_bytes, struct ll_text *error)
{
    (void)d, (void)base, (void)size_bytes, (void)error;
    return 0; /* feed copies with the processor: nothing to pin for */
}

/* Bytes [offset, offset + n_bytes) of whole rows, of which the rank has some columns: row by row.
 */
static int feed_columns(struct ll_cpu_weights *weights, const struct ll_tensor *tensor,
                        const struct ll_cpu_slice *slice, uint64_t offset, const char *data,
                        size_t n_bytes, struct ll_text *error)
{
    const struct ll_tensor part = ll_cpu_rank_tensor(tensor, slice);
    const uint64_t size = ll_dtype_bytes(tensor->dtype), row_bytes = tensor->cols * size;
    const uint64_t end = offset + n_bytes;
    int rc = 0;

    for (uint64_t row = offset / row_bytes; row * row_bytes < end && rc == 0; row++) {
        uint64_t first = row * row_bytes + slice->col * size; /* of the rank's, in the tensor */
        uint64_t from = ll_max_u64(offset, first);
        uint64_t to = ll_min_u64(end, first + slice->n_cols * size);
        if (from < to)
            rc = ll_cpu_weights_feed(weights, &part,
                                     (row - slice->row) * slice->n_cols * size + (from - first),
                                     data + (from - offset), to - from, error);
    }
    return rc;
}

void *ll_cpu_place(struct ll_device *d, uint32_t weights, const struct ll_tensor *tensor,
                   uint32_t rank, uint64_t offset, size_t n_bytes)
{
    if (weights >= d->options.n_weights || rank != 0 || d->n_ranks != 1)
        return NULL; /* ranks have slices */
    return ll_cpu_weights_place(&d->weights[weights][0], tensor, offset, n_bytes);
}

int ll_cpu_feed(struct ll_device *d, uint32_t weights, const struct ll_tensor *tensor,
                uint32_t rank, uint64_t offset, const void *data, size_t n_bytes, uint64_t *ticket,
                struct ll_text *error)
{
    struct ll_cpu_slice slice;

    if (weights >= d->options.n_weights || rank >= d->n_ranks)
        return ll_cpu_fail(error, LL_E_INVAL, "weight set %u, rank %u: there are %u and %u",
                           weights, rank, d->options.n_weights, d->n_ranks);
    *ticket = 1;
    struct ll_cpu_weights *to = &d->weights[weights][rank];
    if (d->n_ranks == 1)
        return ll_cpu_weights_feed(to, tensor, offset, data, n_bytes, error);
    int rc = ll_cpu_rank_slice(&d->model, d->n_ranks, tensor, rank, &slice, error);
    if (rc < 0)
        return rc;
    const uint64_t row_bytes = (uint64_t)tensor->cols * ll_dtype_bytes(tensor->dtype);
    if (offset < slice.row * row_bytes ||
        !ll_span_fits(offset - slice.row * row_bytes, n_bytes, slice.n_rows * row_bytes))
        return ll_cpu_fail(error, LL_E_INVAL, "rank %u has no bytes %llu + %zu of this tensor",
                           rank, (unsigned long long)offset, n_bytes);
    return feed_columns(to, tensor, &slice, offset, data, n_bytes, error);
}

int ll_cpu_fed(struct ll_device *d, uint64_t ticket, struct ll_text *error)
{
    (void)d, (void)ticket, (void)error;
    return 1;
}

/* A set holds what its last load left: the first piece, or this, opens it again. */
int ll_cpu_begin(struct ll_device *d, uint32_t weights, struct ll_text *error)
{
    if (weights >= d->options.n_weights)
        return ll_cpu_fail(error, LL_E_INVAL, "weight set %u of %u", weights, d->options.n_weights);
    for (uint32_t rank = 0; rank < d->n_ranks; rank++)
        ll_cpu_weights_begin(&d->weights[weights][rank]);
    return 0;
}

int ll_cpu_seal(struct ll_device *d, uint32_t weights, struct ll_text *error)
{
    if (weights >= d->options.n_weights)
        return ll_cpu_fail(error, LL_E_INVAL, "weight set %u of %u", weights, d->options.n_weights);
    if (d->options.has_dummy_weights)
        return 0; /* made by open */
    int rc = 0;
    for (uint32_t rank = 0; rank < d->n_ranks && rc == 0; rank++)
        rc = ll_cpu_weights_seal(&d->weights[weights][rank], error);
    /* The other set's memory is taken now, not when it is wanted: with none left the start fails,
     * not a reload. */
    for (uint32_t rank = 0;
         weights == 0 && d->options.n_weights > 1 && rank < d->n_ranks && rc == 0; rank++)
        rc = ll_cpu_weights_reserve(&d->weights[1][rank], &d->weights[0][rank], error);
    return rc;
}
