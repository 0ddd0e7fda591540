/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/tp.h"

#include "base/bits.h"
#include "ll/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int ll_cuda_tp_gpu(const struct ll_cuda_tp *tp, uint32_t rank)
{
    return tp->form == LL_TP_PEER ? (int)rank : 0;
}

uint32_t ll_cuda_tp_tables(const struct ll_device *d)
{
    return d->tp != NULL && d->tp->form == LL_TP_PEER ? d->tp->n_parts : 1;
}

/* ---- between the products ---------------------------------------------------------------------*/
int ll_cuda_tp_post(struct ll_device *d, const struct ll_cuda_size *size, struct ll_text *error)
{
    if (d->tp == NULL || d->tp->form != LL_TP_PEER)
        return 0;
    cudaSetDevice(d->gpu);
    return ll_tp_peer_post(d->tp, size, error);
}

int ll_cuda_tp_settle(struct ll_device *d, struct ll_text *error)
{
    return d->tp == NULL || d->tp->form != LL_TP_PEER ? 0 : ll_tp_peer_settle(d->tp, error);
}

int ll_cuda_tp_health(struct ll_device *d, struct ll_text *error)
{
    return d->tp == NULL || d->tp->form != LL_TP_PEER ? 0 : ll_tp_peer_health(d->tp, error);
}

uint32_t ll_cuda_tp_led(const struct ll_device *d)
{
    return d->tp->form == LL_TP_LOCKSTEP ? d->tp->n_parts : 1;
}

struct ll_device *ll_cuda_tp_part(struct ll_device *d, uint32_t i)
{
    return i == 0 ? d : d->tp->part[i];
}

int ll_cuda_tp_embed(struct ll_device *d, uint32_t n_tokens, uint32_t n_logits, uint32_t weights,
                     struct ll_text *error)
{
    int rc = 0;

    if (d->tp->form == LL_TP_PEER &&
        (rc = ll_tp_peer_begin(d->tp, d, n_tokens, n_logits, error)) < 0)
        return rc;
    for (uint32_t i = 0; i < ll_cuda_tp_led(d) && rc == 0; i++) {
        struct ll_device *part = ll_cuda_tp_part(d, i);
        rc = ll_comm_embed(part->delta, part->weights[weights].embed, part->tables.token_id,
                           part->tables.token_slot, n_tokens, part->shape.n_embd,
                           part->rank * part->n_vocab_padded, part->shape.n_vocab, part->stream);
    }
    return ll_cuda_op(error, "embedding", rc);
}

int ll_cuda_tp_norm(struct ll_device *d, struct ll_comm_norm *args, struct ll_text *error)
{
    args->n_embd = d->shape.n_embd;
    args->eps = d->shape.rms_eps;
    args->bound = d->activation_max;
    args->n_parts = ll_cuda_tp_led(d);
    if (d->tp->form == LL_TP_PEER)
        return ll_tp_peer_norm(d->tp, d, args, error);
    args->n_ranks = d->tp->n_parts;
    for (uint32_t r = args->n_parts; r < args->n_ranks; r++) /* shard */
        args->delta[r] = args->delta[0];
    return ll_cuda_op(error, "sum over ranks", ll_comm_norm_lockstep(args, d->stream));
}

int ll_cuda_tp_logits(struct ll_device *d, uint32_t n_logits, struct ll_text *error)
{
    const uint32_t stride = (uint32_t)ll_align_up(d->n_vocab_all, 8);
    const float *from[LL_CUDA_RANKS_MAX];
    int rc;

    for (uint32_t r = 0; r < d->tp->n_parts; r++)
        from[r] = r < d->tp->n_held ? d->tp->part[r]->logits : d->logits;
    if (d->tp->form == LL_TP_PEER)
        rc = ll_comm_logits_peer(&d->tp->peer->end[d->rank], d->tp->part[0]->logits_all, d->logits,
                                 n_logits, d->n_vocab_padded, d->n_vocab_all, stride, d->stream);
    else
        rc = ll_comm_logits_lockstep(d->logits_all, from, d->tp->n_parts, n_logits,
                                     d->n_vocab_padded, d->n_vocab_all, stride, d->stream);
    return ll_cuda_op(error, "logits", rc);
}

/* ---- open, close ------------------------------------------------------------------------------*/
static void tp_free(struct ll_cuda_tp *tp)
{
    ll_tp_peer_close(tp);
    /* Rank 0 last: led parts use its stream. */
    for (uint32_t r = tp->n_held; r-- > 0;)
        ll_cuda_part_close(tp->part[r]);
    for (int i = 0; i < 2; i++)
        cudaFreeHost(tp->bounce[i]);
    free(tp);
}

/* Parts, then pages: as many for each as the one with the least memory has. */
static int open_parts(struct ll_cuda_tp *tp, const struct ll_backend_options *options,
                      struct ll_backend_caps *caps, struct ll_text *error)
{
    uint32_t least = UINT32_MAX, n_pages;
    int rc;

    for (uint32_t r = 0; r < tp->n_held; r++) {
        const struct ll_model_shape shape = ll_cuda_rank_shape(&tp->whole, tp->n_parts, r);
        rc = ll_cuda_part_open(&tp->part[r], options, &shape, tp, r, caps, error);
        if (rc < 0)
            return rc;
    }
    for (uint32_t r = 0; r < tp->n_held; r++) {
        cudaSetDevice(tp->part[r]->gpu);
        rc = ll_cuda_plan_pages(tp->part[r], tp->form == LL_TP_LOCKSTEP ? tp->n_held : 1, &n_pages,
                                error);
        if (rc < 0)
            return rc;
        least = n_pages < least ? n_pages : least;
    }
    for (uint32_t r = 0; r < tp->n_held; r++) {
        cudaSetDevice(tp->part[r]->gpu);
        rc = ll_cuda_make_kv(tp->part[r], least, error);
        if (rc < 0)
            return rc;
        cudaError_t done = cudaDeviceSynchronize();
        if (done != cudaSuccess)
            return ll_cuda_fail(error, "open", done);
        ll_cuda_add_caps(tp->part[r], caps);
    }
    cudaError_t s = cudaSuccess;
    for (int i = 0; i < 2 && s == cudaSuccess; i++)
        s = cudaHostAlloc((void **)&tp->bounce[i], LL_TP_BOUNCE, cudaHostAllocPortable);
    if (s != cudaSuccess)
        return ll_cuda_fail(error, "host memory", s);
    rc = tp->form == LL_TP_PEER ? ll_tp_peer_open(tp, error) : 0;
    cudaSetDevice(tp->part[0]->gpu);
    return rc;
}

int ll_cuda_tp_open(struct ll_device **out, const struct ll_backend_options *options,
                    const struct ll_model_shape *shape, struct ll_backend_caps *caps,
                    struct ll_text *error)
{
    const bool is_lockstep = ll_cuda_has_extra(options, "tp=lockstep");
    const bool is_shard = ll_cuda_has_extra(options, "tp=shard");
    int rc = ll_cuda_ranks_check(shape, options->tensor_parallel, error);

    if (rc < 0)
        return rc;
    if (!is_lockstep && !is_shard) {
        rc = ll_tp_peer_check(options->tensor_parallel, ll_cuda_first_gpu(options), error);
        if (rc < 0)
            return rc;
    }
    if (is_shard && !options->has_dummy_weights) {
        snprintf(error->s, sizeof(error->s),
                 "CUDA: one rank's shard alone computes nonsense: it is for measurements with "
                 "--load-format dummy");
        return LL_E_INVAL;
    }
    struct ll_cuda_tp *tp = calloc(1, sizeof(*tp));
    if (tp == NULL)
        return ll_cuda_no_memory(error, "a model in parts");
    tp->form = is_lockstep ? LL_TP_LOCKSTEP : is_shard ? LL_TP_SHARD : LL_TP_PEER;
    tp->n_parts = options->tensor_parallel;
    tp->n_held = is_shard ? 1 : tp->n_parts;
    tp->whole = *shape;
    rc = open_parts(tp, options, caps, error);
    if (rc < 0) {
        tp_free(tp);
        return rc;
    }
    caps->n_ranks = tp->n_parts;
    if (tp->form == LL_TP_PEER) {
        char name[sizeof(caps->device)];
        memcpy(name, caps->device, sizeof(name));
        snprintf(caps->device, sizeof(caps->device), "%u x %.50s", tp->n_parts, name);
    }
    *out = tp->part[0];
    return 0;
}

void ll_cuda_tp_close(struct ll_device *d)
{
    if (d != NULL && d->tp != NULL)
        tp_free(d->tp);
    else
        ll_cuda_part_close(d);
}

/* ---- weights ----------------------------------------------------------------------------------*/
int ll_cuda_tp_want(struct ll_device *d, const struct ll_tensor *tensor, struct ll_span *spans,
                    uint32_t n_max, struct ll_text *error)
{
    struct ll_cuda_tp *tp = d->tp;
    int wanted = 0;

    if (tp == NULL)
        return ll_cuda_want(d, tensor, spans, n_max, error);
    if (tensor->layer >= tp->whole.n_layers) {
        snprintf(error->s, sizeof(error->s), "a tensor of layer %u, of %u", tensor->layer,
                 tp->whole.n_layers);
        return LL_E_INVAL;
    }
    for (uint32_t r = 0; r < tp->n_held; r++) {
        struct ll_cuda_slice slice;
        int rc = ll_cuda_rank_slice(&tp->whole, tp->n_parts, tensor, r, &slice, error);
        if (rc < 0)
            return rc;
        if (!ll_span_fits(slice.row, slice.n_rows, tensor->rows) ||
            !ll_span_fits(slice.col, slice.n_cols, tensor->cols) ||
            (tensor->part == LL_PART_WEIGHT && !ll_cuda_rank_is_whole(&tp->whole, tensor))) {
            snprintf(error->s, sizeof(error->s),
                     "layer %u role %d: shape %u x %u differs from the configuration's",
                     tensor->layer, (int)tensor->role, tensor->rows, tensor->cols);
            return LL_E_UNSUPPORTED;
        }
        const struct ll_tensor part = ll_cuda_rank_tensor(tensor, &slice);
        cudaSetDevice(tp->part[r]->gpu);
        rc = ll_cuda_want(tp->part[r], &part, spans, n_max, error);
        if (rc < 0)
            return rc;
        wanted |= rc;
    }
    cudaSetDevice(d->gpu);
    spans[0] = (struct ll_span){0, tensor->size_bytes, 0};
    return wanted;
}

/* Columns [of a strip of rows] gathered on the host: its feed. */
static int feed_gathered(struct ll_cuda_tp *tp, uint32_t weights, uint32_t r,
                         const struct ll_tensor *tensor, const struct ll_cuda_slice *slice,
                         uint64_t offset, const unsigned char *data, size_t n_bytes,
                         uint64_t *ticket, struct ll_text *error)
{
    const struct ll_tensor part = ll_cuda_rank_tensor(tensor, slice);

    for (size_t done = 0; done < n_bytes;) {
        const size_t n = ll_min_u64(n_bytes - done, LL_TP_BOUNCE);
        const uint32_t half = tp->next_bounce++ % 2;
        uint64_t at;
        size_t first;
        bool is_run;
        int rc = 1;
        while (tp->bounce_part[half] != NULL &&
               (rc = ll_cuda_fed(tp->bounce_part[half], tp->bounce_ticket[half], error)) == 0)
            ll_cpu_relax();
        if (rc < 0)
            return rc;
        const size_t n_cut = ll_cuda_rank_cut(tensor, slice, offset + done, data + done, n, &at,
                                              tp->bounce[half], &first, &is_run);
        tp->bounce_part[half] = NULL;
        if (n_cut > 0) {
            rc = ll_cuda_feed(tp->part[r], weights, &part, 0, at, tp->bounce[half], n_cut, ticket,
                              error);
            if (rc < 0)
                return rc;
            tp->bounce_part[half] = tp->part[r];
            tp->bounce_ticket[half] = *ticket;
        }
        done += n;
    }
    return 0;
}

static int64_t new_ticket(struct ll_cuda_tp_tickets *tickets, const int64_t *each)
{
    memcpy(tickets->of[tickets->n % LL_TP_TICKETS], each, sizeof(tickets->of[0]));
    return ++tickets->n;
}

int ll_cuda_tp_begin(struct ll_device *d, uint32_t weights, struct ll_text *error)
{
    struct ll_cuda_tp *tp = d->tp;
    int rc = tp == NULL ? ll_cuda_begin(d, weights, error) : 0;

    for (uint32_t r = 0; tp != NULL && r < tp->n_held && rc == 0; r++)
        rc = ll_cuda_begin(tp->part[r], weights, error);
    cudaSetDevice(d->gpu);
    if (tp != NULL) /* what a load that was given up has left is done: its loader waited */
        tp->bounce_part[0] = tp->bounce_part[1] = NULL;
    return rc;
}

int ll_cuda_tp_feed(struct ll_device *d, uint32_t weights, const struct ll_tensor *tensor,
                    uint32_t rank, uint64_t offset, const void *data, size_t n_bytes,
                    uint64_t *ticket, struct ll_text *error)
{
    struct ll_cuda_tp *tp = d->tp;
    int64_t each[LL_CUDA_RANKS_MAX] = {0};

    if (tp == NULL)
        return ll_cuda_feed(d, weights, tensor, rank, offset, data, n_bytes, ticket, error);
    *ticket = 0;
    if (!ll_span_fits(offset, n_bytes, tensor->size_bytes)) {
        snprintf(error->s, sizeof(error->s), "a piece beyond its tensor's end");
        return LL_E_INVAL;
    }
    for (uint32_t r = 0; r < tp->n_held; r++) {
        struct ll_cuda_slice slice;
        uint64_t at = 0, one = 0;
        size_t first = 0;
        bool is_run;
        int rc = ll_cuda_rank_slice(&tp->whole, tp->n_parts, tensor, r, &slice, error);
        if (rc < 0)
            return rc;
        cudaSetDevice(tp->part[r]->gpu);
        const size_t n =
            ll_cuda_rank_cut(tensor, &slice, offset, data, n_bytes, &at, NULL, &first, &is_run);
        if (n == 0)
            continue;
        if (is_run) {
            const struct ll_tensor part = ll_cuda_rank_tensor(tensor, &slice);
            rc = ll_cuda_feed(tp->part[r], weights, &part, 0, at,
                              (const unsigned char *)data + first, n, &one, error);
        } else {
            rc = feed_gathered(tp, weights, r, tensor, &slice, offset, data, n_bytes, &one, error);
            one = 0; /* data was read: the piece is free */
        }
        if (rc < 0)
            return rc;
        each[r] = (int64_t)one;
    }
    cudaSetDevice(d->gpu);
    *ticket = (uint64_t)new_ticket(&tp->feeds, each);
    return 0;
}

/* A ticket whose entry was taken again answers for a later one: never too early. */
static int is_done(struct ll_cuda_tp *tp, const struct ll_cuda_tp_tickets *tickets, int64_t ticket,
                   struct ll_text *error)
{
    if (ticket <= 0 || ticket > tickets->n) {
        snprintf(error->s, sizeof(error->s), "no copy has ticket %lld", (long long)ticket);
        return LL_E_INVAL;
    }
    for (uint32_t r = 0; r < tp->n_held; r++) {
        const int64_t one = tickets->of[(ticket - 1) % LL_TP_TICKETS][r];
        int rc = one == 0                 ? 1
                 : tickets == &tp->copies ? ll_cuda_copied(tp->part[r], one, error)
                                          : ll_cuda_fed(tp->part[r], (uint64_t)one, error);
        if (rc <= 0)
            return rc;
    }
    return 1;
}

int ll_cuda_tp_fed(struct ll_device *d, uint64_t ticket, struct ll_text *error)
{
    return d->tp == NULL ? ll_cuda_fed(d, ticket, error)
                         : is_done(d->tp, &d->tp->feeds, (int64_t)ticket, error);
}

int ll_cuda_tp_seal(struct ll_device *d, uint32_t weights, struct ll_text *error)
{
    struct ll_cuda_tp *tp = d->tp;
    int rc = 0;

    if (tp == NULL)
        return ll_cuda_seal(d, weights, error);
    /* Rank 0 last: its graphs run the others' weights. */
    for (uint32_t r = tp->n_held; r-- > 0 && rc == 0;) {
        cudaSetDevice(tp->part[r]->gpu);
        rc = ll_cuda_seal(tp->part[r], weights, error);
    }
    cudaSetDevice(d->gpu);
    return rc;
}

/* ---- page copies ------------------------------------------------------------------------------*/
int64_t ll_cuda_tp_copy(struct ll_device *d, const struct ll_copy *list, uint32_t n,
                        struct ll_text *error)
{
    struct ll_cuda_tp *tp = d->tp;
    int64_t each[LL_CUDA_RANKS_MAX] = {0};

    if (tp == NULL)
        return ll_cuda_copy(d, list, n, error);
    int rc = ll_cuda_tp_settle(d, error); /* B3 */
    if (rc < 0)
        return rc;
    for (uint32_t r = 0; r < tp->n_held; r++) {
        cudaSetDevice(tp->part[r]->gpu);
        each[r] = ll_cuda_copy(tp->part[r], list, n, error);
        if (each[r] < 0)
            return each[r];
    }
    cudaSetDevice(d->gpu);
    return new_ticket(&tp->copies, each);
}

int ll_cuda_tp_copied(struct ll_device *d, int64_t ticket, struct ll_text *error)
{
    return d->tp == NULL ? ll_cuda_copied(d, ticket, error)
                         : is_done(d->tp, &d->tp->copies, ticket, error);
}
