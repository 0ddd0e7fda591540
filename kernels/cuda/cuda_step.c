/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/cuda_step.c - a batch into its mapped area, one graph launch, results by polling.
 *
 * submit costs the copies of a few kilobytes into mapped memory and one cudaGraphLaunch; poll costs
 * a load of a mapped word. What is rare (penalty tables, biases of a new slot, more page entries
 * than an area holds) goes by small asynchronous copies on the same stream, in order. */
#include "kernels/cuda/tp.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/log.h"
#include "ll/client.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* Steps finished. Acquire, pairs with the system-scope release store in step.cu: the rows and
 * logprobs of the step are in mapped memory when its number is. */
static uint32_t steps_done(const struct ll_device *d)
{
    return __atomic_load_n(&d->done->step, __ATOMIC_ACQUIRE);
}

static void set_slot(struct ll_cuda_slot *out, const struct ll_slot_init *in)
{
    *out = (struct ll_cuda_slot){
        .last_token = in->n_hist > 0 ? in->hist[in->n_hist - 1] : 0,
        .n_prompt = in->n_prompt,
        .choice = in->choice,
        .n_bias = in->n_bias,
        .seed = in->seed,
        .temperature = in->s.temperature,
        .top_p = in->s.top_p,
        .min_p = in->s.min_p,
        .repetition = in->s.repetition,
        .frequency = in->s.frequency,
        .presence = in->s.presence,
        .top_k = in->s.top_k,
        .min_tokens = in->s.min_tokens,
        .n_end = in->s.n_end,
        .has_penalty = in->s.repetition != 1.0f || in->s.frequency != 0 || in->s.presence != 0,
    };
    memcpy(out->end, in->s.end, sizeof(out->end));
}

/* Penalty counts and biases of a new slot: built in pinned staging, copied in stream order. */
static int send_slot_tables(struct ll_device *d, const struct ll_slot_init *in, bool has_penalty,
                            uint32_t area, struct ll_text *error)
{
    const uint32_t n_vocab = d->n_vocab_all;
    cudaError_t s = cudaEventSynchronize(d->slot_copied[area]);

    if (s == cudaSuccess && has_penalty) {
        uint16_t *count = (uint16_t *)d->slot_staging[area];
        memset(count, 0, n_vocab * sizeof(*count));
        for (uint32_t i = 0; i < in->n_hist; i++) {
            uint16_t *word = &count[in->hist[i]];
            *word |= 0x8000u;
            if (i >= in->n_prompt && (*word & 0x7fffu) < 0x7fffu)
                ++*word;
        }
        s = cudaMemcpyAsync(d->tables.penalty + (size_t)in->slot * n_vocab, count,
                            n_vocab * sizeof(*count), cudaMemcpyHostToDevice, d->stream);
    }
    if (s == cudaSuccess && in->n_bias > 0) {
        void *bias = d->slot_staging[area] + ll_align_up(n_vocab * sizeof(uint16_t), 16);
        memcpy(bias, in->bias, in->n_bias * sizeof(*in->bias));
        s = cudaMemcpyAsync(d->tables.bias + (size_t)in->slot * LL_CUDA_BIAS_MAX, bias,
                            in->n_bias * sizeof(*in->bias), cudaMemcpyHostToDevice, d->stream);
    }
    if (s == cudaSuccess)
        s = cudaEventRecord(d->slot_copied[area], d->stream);
    return s == cudaSuccess ? 0 : ll_cuda_fail(error, "slot tables", s);
}

static int fill_inits(struct ll_device *d, const struct ll_batch *batch, unsigned char *area,
                      uint32_t index, struct ll_text *error)
{
    struct ll_cuda_init *inits = (struct ll_cuda_init *)(area + d->layout.inits);

    for (uint32_t i = 0; i < batch->n_inits; i++) {
        inits[i].slot = batch->inits[i].slot;
        set_slot(&inits[i].value, &batch->inits[i]);
        bool has_penalty = inits[i].value.has_penalty != 0;
        if (has_penalty || batch->inits[i].n_bias > 0) {
            int rc = send_slot_tables(d, &batch->inits[i], has_penalty, index, error);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

static int fill_pages(struct ll_device *d, const struct ll_batch *batch, unsigned char *area,
                      struct ll_cuda_counts *counts, struct ll_text *error)
{
    struct ll_cuda_pages *sets = (struct ll_cuda_pages *)(area + d->layout.sets);
    uint32_t *ids = (uint32_t *)(area + d->layout.page_ids);
    uint32_t n_ids = 0;

    for (uint32_t i = 0; i < batch->n_pages_sets; i++) {
        const struct ll_pages_set *set = &batch->pages[i];
        if (counts->n_page_sets < d->layout.n_sets_max &&
            set->n <= d->layout.n_page_ids_max - n_ids) {
            sets[counts->n_page_sets++] =
                (struct ll_cuda_pages){set->slot, set->first, set->n, n_ids};
            memcpy(ids + n_ids, set->page, set->n * sizeof(*ids));
            n_ids += set->n;
            continue;
        }
        /* More than an area holds (many long sequences come back at once): a copy of its own, to
         * each part. From pageable memory it is staged before the call returns. */
        int rc = ll_cuda_tp_settle(d, error);
        if (rc < 0)
            return rc;
        for (uint32_t part = 0; part < ll_cuda_tp_tables(d); part++) {
            struct ll_device *to = d->tp != NULL ? d->tp->part[part] : d;
            uint32_t *row =
                to->tables.page_table + (size_t)set->slot * to->tables.pages_per_seq + set->first;
            cudaError_t s = cudaMemcpyAsync(row, set->page, set->n * sizeof(*row),
                                            cudaMemcpyHostToDevice, to->stream);
            if (s != cudaSuccess)
                return ll_cuda_fail(error, "page table", s);
        }
    }
    return 0;
}

struct cursor { /* where the next row's entries go */
    uint32_t token, logit, ext, decode_items;
};

static void fill_tokens(struct ll_device *d, const struct ll_row *row, unsigned char *area,
                        uint32_t first)
{
    uint32_t *id = (uint32_t *)(area + d->layout.token_id) + first;
    uint32_t *pos = (uint32_t *)(area + d->layout.token_pos) + first;
    uint32_t *slot = (uint32_t *)(area + d->layout.token_slot) + first;

    for (uint32_t i = 0; i < row->n_tokens; i++) {
        id[i] = row->token != NULL ? row->token[i] : LL_CUDA_NONE;
        pos[i] = row->pos + i;
        slot[i] = row->slot;
    }
}

/* Scores of the prompt positions, then the sample, of one row. */
static void fill_logits(struct ll_device *d, const struct ll_row *row, uint32_t index,
                        unsigned char *area, struct cursor *at, struct ll_row_out *out)
{
    struct ll_cuda_logit *logits = (struct ll_cuda_logit *)(area + d->layout.logits);
    const bool is_sampled = row->flags & LL_ROW_SAMPLE;

    *out = (struct ll_row_out){.slot = row->slot, .ext = at->ext};
    const uint32_t sample_ext = at->ext;
    if (is_sampled)
        at->ext += row->n_top;
    if (row->flags & LL_ROW_PROMPT_LOGPROBS) {
        const uint32_t n = row->n_tokens - is_sampled;
        for (uint32_t i = 0; i < n; i++) {
            logits[at->logit++] = (struct ll_cuda_logit){
                .token = at->token + i,
                .slot = row->slot,
                .row = index,
                .pos = row->pos + i + 1,
                .target = row->token[i + 1],
                .ext = at->ext,
                .n_top = row->n_prompt_top,
            };
            at->ext += 1u + row->n_prompt_top;
        }
    }
    if (is_sampled)
        logits[at->logit++] = (struct ll_cuda_logit){
            .token = at->token + row->n_tokens - 1,
            .slot = row->slot,
            .row = index,
            .pos = row->pos + row->n_tokens,
            .target = LL_CUDA_NONE,
            .ext = sample_ext,
            .n_top = row->n_top,
        };
    out->n_ext = at->ext - out->ext;
}

static void fill_attention(struct ll_device *d, const struct ll_row *row, unsigned char *area,
                           struct cursor *at, struct ll_cuda_counts *counts)
{
    if (row->n_tokens == 1) {
        struct ll_cuda_decode *decode = (struct ll_cuda_decode *)(area + d->layout.decode);
        decode[counts->n_decode++] =
            (struct ll_cuda_decode){at->token, row->slot, row->pos + 1, at->decode_items};
        at->decode_items += ll_cuda_n_items(row->pos + 1, d->shape.n_kv_heads);
        return;
    }
    struct ll_cuda_tile *tiles = (struct ll_cuda_tile *)(area + d->layout.tiles);
    const uint32_t n_group = d->shape.n_heads / d->shape.n_kv_heads;
    const uint32_t per_tile = LL_CUDA_TILE_TOKENS(n_group);
    for (uint32_t i = 0; i < row->n_tokens; i += per_tile) {
        uint32_t n = row->n_tokens - i < per_tile ? row->n_tokens - i : per_tile;
        tiles[counts->n_tiles++] = (struct ll_cuda_tile){at->token + i, row->slot, row->pos + i, n};
    }
}

/* What a batch needs of the fixed tables; refused whole when it is too much. */
static int check_size(const struct ll_device *d, const struct ll_batch *batch,
                      struct ll_text *error)
{
    uint64_t n_tokens = 0, n_logits = 0, n_ext = 0, n_items = 0;

    if (batch->weights >= d->options.n_weights || !d->weights[batch->weights].is_sealed) {
        snprintf(error->s, sizeof(error->s), "weight set %u is not sealed", batch->weights);
        return LL_E_INVAL;
    }

    for (uint32_t i = 0; i < batch->n_rows; i++) {
        const struct ll_row *row = &batch->rows[i];
        const bool is_sampled = row->flags & LL_ROW_SAMPLE;
        n_tokens += row->n_tokens;
        if (row->n_tokens == 1)
            n_items += ll_cuda_n_items(row->pos + 1, d->shape.n_kv_heads);
        if (is_sampled) {
            n_logits++;
            n_ext += row->n_top;
        }
        if (row->flags & LL_ROW_PROMPT_LOGPROBS) {
            n_logits += row->n_tokens - is_sampled;
            n_ext += (uint64_t)(row->n_tokens - is_sampled) * (1u + row->n_prompt_top);
        }
        if (row->flags & (LL_ROW_VERIFY | LL_ROW_LATE_MASK) || row->n_tokens == 0) {
            snprintf(error->s, sizeof(error->s), "row %u: flags %#x, %u tokens: not served", i,
                     row->flags, row->n_tokens);
            return LL_E_UNSUPPORTED;
        }
    }
    if (batch->n_rows == 0 || batch->n_rows > d->layout.n_rows_max ||
        batch->n_inits > d->layout.n_rows_max || n_tokens > d->layout.n_tokens_max ||
        n_logits > d->layout.n_logits_max || n_ext > d->layout.n_ext_max ||
        n_items > d->layout.n_items_max) {
        snprintf(error->s, sizeof(error->s),
                 "batch of %u rows, %llu tokens, %llu logit rows exceeds %u, %u, %u", batch->n_rows,
                 (unsigned long long)n_tokens, (unsigned long long)n_logits, d->layout.n_rows_max,
                 d->layout.n_tokens_max, d->layout.n_logits_max);
        return LL_E_INVAL;
    }
    return 0;
}

/* Tiles that the graph is made for. On 9.0 the prefill kernel's blocks take tiles while there are
 * any: there it is no more than the size of its grid, which the tokens t of the bucket decide (a
 * row has two at least), so graphs do not multiply. */
static uint32_t tile_bucket(const struct ll_device *d, uint32_t t, uint32_t n_tiles)
{
    if (d->level >= 90)
        return n_tiles == 0 ? 0 : (t + 1) / 2;
    return n_tiles == 0 ? 0 : (uint32_t)ll_pow2_ceil(n_tiles < 8 ? 8 : n_tiles);
}

/* One graph launch: a system call of its own to the device, after all stores to the area: mapped
 * memory is coherent and the driver's doorbell write orders them. */
static int launch(struct ll_device *d, const struct ll_cuda_size *size, struct ll_text *error)
{
#ifdef LL_CUDA_FAULTS
    if (ll_cuda_fault(d) < 0)
        return ll_cuda_fail(error, "fault", cudaGetLastError());
#endif
    int rc = ll_cuda_tp_post(d, size, error);

    return rc < 0 ? rc : ll_cuda_launch(d, size, error);
}

int64_t ll_cuda_submit(struct ll_device *d, const struct ll_batch *batch, struct ll_text *error)
{
    if (d->sticky < 0) {
        snprintf(error->s, sizeof(error->s),
                 "CUDA: the device failed in an earlier step: start again");
        return d->sticky;
    }
    if (d->n_submitted - d->n_done >= 2)
        return LL_E_AGAIN;
    int rc = check_size(d, batch, error);
    if (rc < 0)
        return rc;

    const uint32_t index = (uint32_t)(d->n_submitted % LL_CUDA_AREAS);
    unsigned char *area = d->areas + index * d->layout.bytes;
    struct ll_row_out *out = (struct ll_row_out *)(d->results + d->layout.out_rows) +
                             (size_t)index * d->options.n_rows_max;
    struct ll_cuda_counts counts = {
        .n_inits = batch->n_inits, .n_rows = batch->n_rows, .step = (uint32_t)d->n_submitted};
    struct cursor at = {0};

    if ((rc = fill_inits(d, batch, area, index, error)) < 0 ||
        (rc = fill_pages(d, batch, area, &counts, error)) < 0)
        return d->sticky = rc;
    for (uint32_t i = 0; i < batch->n_rows; i++) {
        const struct ll_row *row = &batch->rows[i];
        fill_tokens(d, row, area, at.token);
        fill_logits(d, row, i, area, &at, &out[i]);
        fill_attention(d, row, area, &at, &counts);
        at.token += row->n_tokens;
    }
    counts.n_tokens = at.token;
    counts.n_logits = at.logit;
    counts.n_decode_items = at.decode_items;
    *(struct ll_cuda_counts *)area = counts;

    const uint32_t t = ll_cuda_token_bucket(at.token);
    const struct ll_cuda_size size = {
        .n_tokens = t,
        .n_logits = ll_cuda_logit_bucket(at.logit, t),
        .n_tiles = tile_bucket(d, t, counts.n_tiles),
        .weights = batch->weights,
        .has_decode = counts.n_decode > 0,
    };
    rc = launch(d, &size, error);
    if (rc < 0)
        return d->sticky = rc;
    struct ll_cuda_flight *flight = &d->flight[d->n_submitted % 2];
    *flight = (struct ll_cuda_flight){d->n_submitted + 1, ll_now_ns(), batch->n_rows, false};
    return ++d->n_submitted;
}

/* Not done yet: is the device still well? Asked at most once a millisecond. */
static int check_health(struct ll_device *d, struct ll_cuda_flight *flight, struct ll_text *error)
{
    const uint64_t now_ns = ll_now_ns();

    if (now_ns < d->next_check_ns)
        return 0;
    d->next_check_ns = now_ns + LL_NS_PER_MS;
    int rc = ll_cuda_tp_health(d, error);
    if (rc < 0)
        return d->sticky = rc;
    cudaError_t s = cudaStreamQuery(d->stream);
    if (s != cudaSuccess && s != cudaErrorNotReady)
        return d->sticky = ll_cuda_fail(error, "step", s);
    const uint64_t age_ns = now_ns - flight->submit_ns;
    if (age_ns > LL_NS_PER_S && !flight->is_late_logged) {
        flight->is_late_logged = true;
        ll_warn("cuda: step %lld has run for 1 s", (long long)flight->ticket);
    }
    if (age_ns > 5 * LL_NS_PER_S) {
        snprintf(
            error->s, sizeof(error->s),
            "CUDA: step %lld has not ended within 5 s: the GPU hangs; the kernel's log (Xid) says "
            "why",
            (long long)flight->ticket);
        return d->sticky = LL_E_BACKEND;
    }
    return 0;
}

int ll_cuda_poll(struct ll_device *d, int64_t ticket, struct ll_result *out, struct ll_text *error)
{
    if (d->sticky < 0) {
        snprintf(error->s, sizeof(error->s),
                 "CUDA: the device failed in an earlier step: start again");
        return d->sticky;
    }
    if (ticket <= 0 || ticket > d->n_submitted) {
        snprintf(error->s, sizeof(error->s), "no batch has ticket %lld", (long long)ticket);
        return LL_E_INVAL;
    }
    const uint32_t index = (uint32_t)((ticket - 1) % LL_CUDA_AREAS);
    struct ll_cuda_flight *flight = &d->flight[(ticket - 1) % 2];
    /* Steps are counted modulo 2^32 on the device. */
    if ((int32_t)(steps_done(d) - (uint32_t)ticket) < 0)
        return check_health(d, flight, error);
    if (ticket > d->n_done)
        d->n_done = ticket;
    *out = (struct ll_result){
        .rows = (const struct ll_row_out *)(d->results + d->layout.out_rows) +
                (size_t)index * d->options.n_rows_max,
        .ext = (const struct ll_ext *)(d->results + d->layout.out_ext) +
               (size_t)index * d->layout.n_ext_max,
        .n_rows = flight->n_rows,
        .device_ns = d->done->device_ns[index],
    };
    return 1;
}

/* A page lies in every layer's pool: one strided copy gathers (or scatters) them. */
int64_t ll_cuda_copy(struct ll_device *d, const struct ll_copy *list, uint32_t n,
                     struct ll_text *error)
{
    const size_t page = d->page_bytes, pitch = d->n_pages * page;
    const uint32_t n_layers = d->shape.n_layers;
    cudaError_t s = cudaEventRecord(d->batch_event, d->stream);

    /* B3: after the last batch submitted so far. */
    if (s == cudaSuccess)
        s = cudaStreamWaitEvent(d->copy_stream, d->batch_event, 0);
    for (uint32_t i = 0; i < n && s == cudaSuccess; i++) {
        const bool is_out = list[i].kind == LL_COPY_D2H;
        const uint32_t device_page = is_out ? list[i].src : list[i].dst;
        const uint32_t host_page = is_out ? list[i].dst : list[i].src;
        if (device_page >= d->n_pages || host_page >= d->n_host_pages) {
            snprintf(error->s, sizeof(error->s), "page copy %u: no page %u or %u", i, list[i].dst,
                     list[i].src);
            return LL_E_INVAL;
        }
        unsigned char *on_device = (unsigned char *)d->kv + device_page * page;
        unsigned char *on_host = d->kv_host + (size_t)host_page * n_layers * page;
        s = is_out ? cudaMemcpy2DAsync(on_host, page, on_device, pitch, page, n_layers,
                                       cudaMemcpyDeviceToHost, d->copy_stream)
                   : cudaMemcpy2DAsync(on_device, pitch, on_host, page, page, n_layers,
                                       cudaMemcpyHostToDevice, d->copy_stream);
    }
    if (s == cudaSuccess)
        s = cudaEventRecord(d->copy_event[d->n_copies % LL_CUDA_COPIES_MAX], d->copy_stream);
    return s == cudaSuccess ? ++d->n_copies : ll_cuda_fail(error, "page copy", s);
}

int ll_cuda_copied(struct ll_device *d, int64_t ticket, struct ll_text *error)
{
    if (ticket <= 0 || ticket > d->n_copies) {
        snprintf(error->s, sizeof(error->s), "no page copy has ticket %lld", (long long)ticket);
        return LL_E_INVAL;
    }
    /* Copies end in order: an event that was recorded anew answers for a later one, never earlier.
     */
    cudaError_t s = cudaEventQuery(d->copy_event[(ticket - 1) % LL_CUDA_COPIES_MAX]);
    if (s == cudaSuccess)
        return 1;
    return s == cudaErrorNotReady ? 0 : ll_cuda_fail(error, "page copy", s);
}
