/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/backend.c - struct ll_backend for the CPU: memory, tickets, copies. The model is in
 * forward.c, loading in backend_weights.c. */
#include "base/clock.h"
#include "base/log.h"
#include "kernels/cpu/batch.h"
#include "kernels/cpu/attend.h"
#include "kernels/cpu/backend_impl.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/rope.h"
#include "ll/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What a poll may work before the step loop gets a turn for its intake. */
#define SLICE_NS   (50 * LL_NS_PER_US)
#define COPY_PAGES 4u /* pages one call of copied() moves */
/* A step in which nothing moves: said once, then an error (B6). Only time in which the loop
 * itself was seen awake counts, at most so much between two polls. */
#define STALL_WARN_NS  (1 * LL_NS_PER_S)
#define STALL_ERROR_NS (5 * LL_NS_PER_S)
#define STALL_PART_NS  (100 * LL_NS_PER_MS)

/* ---- open ---------------------------------------------------------------------------------------
 */
static int check_shape(const struct ll_model_shape *s, struct ll_text *error)
{
    if (s->n_layers == 0 || s->n_embd == 0 || s->n_heads == 0 || s->n_kv_heads == 0 ||
        s->head_dim == 0 || s->n_ff == 0 || s->n_vocab == 0)
        return ll_cpu_fail(error, LL_E_INVAL, "the model's shape has a zero in it");
    if (s->n_heads % s->n_kv_heads != 0)
        return ll_cpu_fail(error, LL_E_INVAL, "%u KV heads do not divide %u heads", s->n_kv_heads,
                           s->n_heads);
    if (s->head_dim % 2 != 0)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED, "head_dim %u is odd", s->head_dim);
    if (s->rope != LL_ROPE_PLAIN && s->rope != LL_ROPE_LLAMA3)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED, "rope type %d is not known", (int)s->rope);
    return 0;
}

static int check_options(const struct ll_backend_options *o, struct ll_text *error)
{
    if (o->struct_bytes != sizeof(*o))
        return ll_cpu_fail(error, LL_E_ABI, "options of %u bytes, these are %zu", o->struct_bytes,
                           sizeof(*o));
    if (o->dtype != LL_DTYPE_F32 && o->dtype != LL_DTYPE_BF16)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "the cpu backend computes in float32 or bfloat16");
    if (o->kv_dtype != 0 && o->kv_dtype != LL_DTYPE_F32 && o->kv_dtype != LL_DTYPE_BF16 &&
        o->kv_dtype != LL_DTYPE_E4M3)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "the cpu backend keeps its KV pages in float32, bfloat16 or fp8 (e4m3)");
    if (o->tensor_parallel > 1 && o->has_dummy_weights)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "dummy weights are for one rank; set tensor parallelism to 1");
    if (o->n_slots == 0 || o->n_tokens_max == 0 || o->n_rows_max == 0 || o->pages_per_seq == 0 ||
        o->n_weights == 0 || o->n_weights > 2 || o->n_threads > LL_TEAM_THREADS_MAX)
        return ll_cpu_fail(error, LL_E_INVAL,
                           "slots, tokens, rows and pages must be at least 1, weight sets 1 or 2, "
                           "threads at most %u",
                           LL_TEAM_THREADS_MAX);
    return 0;
}

/* extra: "isa=portable|avx2|avx512", "weights=fp8" (of dummy ones), or both with a comma. */
static int read_extra(struct ll_device *d, const char *extra, struct ll_text *error)
{
    char isa[16] = "";

    while (extra != NULL && extra[0] != '\0') {
        int n = (int)strcspn(extra, ",");
        if (strncmp(extra, "isa=", 4) == 0 && n > 4 && n - 4 < (int)sizeof(isa))
            snprintf(isa, sizeof(isa), "%.*s", n - 4, extra + 4);
        else if (n == 11 && strncmp(extra, "weights=fp8", 11) == 0)
            d->is_fp8_dummy = true;
        else
            return ll_cpu_fail(error, LL_E_INVAL,
                               "\"%.80s\": the cpu backend knows isa=portable, avx2, avx512 and "
                               "weights=fp8",
                               extra);
        extra += n + (extra[n] == ',');
    }
    d->inner = ll_cpu_inner_find(isa[0] != '\0' ? isa : NULL);
    if (d->inner == NULL)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED,
                           "isa=%s: this processor cannot (isa=portable, avx2, avx512)", isa);
    return 0;
}

/* Memory of n items of size bytes that close gives back; NULL when there is none. */
static void *take(struct ll_device *d, uint64_t n, size_t size)
{
    uint64_t bytes;

    if (!ll_checked_mul(n, size, &bytes) || d->n_mappings == LL_COUNT(d->mapping))
        return NULL;
    void *base = ll_cpu_map(bytes, d->options.numa_node);
    if (base != NULL) {
        d->mapping[d->n_mappings].base = base;
        d->mapping[d->n_mappings++].size_bytes = bytes;
    }
    return base;
}

static int open_activations(struct ll_device *d)
{
    const struct ll_model_shape *s = &d->shape;
    const uint64_t n_tokens = d->options.n_tokens_max;
    /* The norm of the logits' rows uses the same buffer. */
    const uint64_t n_normed = ll_max_u64(n_tokens, LL_CPU_LOGITS);

    d->ld_x = ll_align_up(s->n_embd, 16);
    d->ld_q = d->ld_a = ll_align_up(s->n_heads * s->head_dim, 16);
    d->ld_kv = ll_align_up(s->n_kv_heads * s->head_dim, 16);
    d->ld_h = ll_align_up(s->n_ff, 16);
    d->ld_logits = ll_align_up(s->n_vocab, 16);
    d->x = take(d, n_tokens, d->ld_x * sizeof(float));
    d->normed = take(d, n_normed, d->ld_x * sizeof(float));
    d->q = take(d, n_tokens, d->ld_q * sizeof(float));
    d->k = take(d, n_tokens, d->ld_kv * sizeof(float));
    d->v = take(d, n_tokens, d->ld_kv * sizeof(float));
    d->a = take(d, n_tokens, d->ld_a * sizeof(float));
    d->h = take(d, n_tokens, d->ld_h * sizeof(float));
    d->cosine = take(d, n_tokens, s->head_dim / 2 * sizeof(float));
    d->sine = take(d, n_tokens, s->head_dim / 2 * sizeof(float));
    d->logits = take(d, LL_CPU_LOGITS, d->ld_logits * sizeof(float));
    d->frequency = take(d, s->head_dim / 2, sizeof(double));
    return d->x && d->normed && d->q && d->k && d->v && d->a && d->h && d->cosine && d->sine &&
                   d->logits && d->frequency
               ? 0
               : -ENOMEM;
}

static int open_steps(struct ll_device *d)
{
    const struct ll_backend_options *o = &d->options;
    const uint64_t pages = (uint64_t)o->n_rows_max * o->pages_per_seq;

    d->n_ext_max =
        o->n_tokens_max * (1 + LL_EXT_TOP_MAX) + o->n_rows_max * LL_ROW_TOKENS_MAX * LL_EXT_TOP_MAX;
    for (uint32_t i = 0; i < LL_CPU_DEPTH; i++) {
        struct ll_cpu_step *step = &d->step[i];
        step->row = take(d, o->n_rows_max, sizeof(*step->row));
        step->token = take(d, o->n_tokens_max, sizeof(*step->token));
        step->position = take(d, o->n_tokens_max, sizeof(*step->position));
        step->row_of = take(d, o->n_tokens_max, sizeof(*step->row_of));
        step->page = take(d, pages, sizeof(*step->page));
        step->span = take(d, o->n_tokens_max, sizeof(*step->span));
        step->job = take(d, o->n_tokens_max, sizeof(*step->job));
        step->logits_token = take(d, o->n_tokens_max, sizeof(*step->logits_token));
        step->out = take(d, o->n_rows_max, sizeof(*step->out));
        step->ext = take(d, d->n_ext_max, sizeof(*step->ext));
        if (!step->row || !step->token || !step->position || !step->row_of || !step->page ||
            !step->span || !step->job || !step->logits_token || !step->out || !step->ext)
            return -ENOMEM;
    }
    return 0;
}

static int open_slots(struct ll_device *d)
{
    const struct ll_backend_options *o = &d->options;
    const uint64_t n_settings = 2ull * o->n_slots, n_vocab = d->shape.n_vocab;

    d->slot = take(d, o->n_slots, sizeof(*d->slot));
    d->page_table = take(d, (uint64_t)o->n_slots * o->pages_per_seq, sizeof(*d->page_table));
    struct ll_bias *bias = take(d, n_settings * LL_CPU_BIAS_MAX, sizeof(*bias));
    uint32_t *count = take(d, n_settings * n_vocab, sizeof(*count));
    if (!d->slot || !d->page_table || !bias || !count)
        return -ENOMEM;
    memset(d->page_table, 0xff, /* LL_CPU_PAGE_UNSET */
           (size_t)o->n_slots * o->pages_per_seq * sizeof(*d->page_table));
    for (uint64_t i = 0; i < n_settings; i++) {
        struct ll_cpu_settings *settings = &d->slot[i / 2].settings[i % 2];
        settings->bias = bias + i * LL_CPU_BIAS_MAX;
        settings->count = count + i * n_vocab;
    }
    return 0;
}

static int open_workers(struct ll_device *d)
{
    const uint32_t n_threads = d->options.n_threads > 0 ? d->options.n_threads : 1;
    const uint32_t group = d->shape.n_heads / d->shape.n_kv_heads;
    const uint32_t n_queries = group > LL_CPU_QUERIES ? group : LL_CPU_QUERIES;

    d->options.n_threads = n_threads;
    d->worker = take(d, n_threads, sizeof(*d->worker));
    /* A mapping a kind, not a worker: their number is bounded. Parts start on pages of their own.
     */
    const size_t block = ll_align_up(LL_CPU_ITEM_OUT * sizeof(float), 4096);
    const size_t attend =
        ll_align_up(ll_cpu_attend_scratch(d->kv.d16, n_queries) * sizeof(float), 4096);
    const size_t row = ll_align_up(d->ld_logits * sizeof(float), 4096);
    const size_t total = 2 * block + attend + 2 * row + 2 * row;
    char *base = take(d, n_threads, total);
    if (d->worker == NULL || base == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < n_threads; i++, base += total) {
        struct ll_cpu_worker *w = &d->worker[i];
        w->block[0] = (float *)base;
        w->block[1] = (float *)(base + block);
        w->attend = (float *)(base + 2 * block);
        w->sample.x = (float *)(base + 2 * block + attend);
        w->sample.e = (float *)(base + 2 * block + attend + row);
        w->sample.key = (uint64_t *)(base + 2 * block + attend + 2 * row);
    }
    return 0;
}

/* How many pages: asked for, else what the bytes hold, else a share of the machine's memory, and
 * never more than all slots at full length can use. */
static int open_pages(struct ll_device *d, struct ll_text *error)
{
    const struct ll_backend_options *o = &d->options;
    const uint64_t useful = (uint64_t)o->n_slots * o->pages_per_seq;
    uint64_t n_pages = o->n_pages, bytes = o->kv_bytes;

    if (n_pages == 0 && bytes == 0) {
        double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
        double share = memory * (o->memory_fraction > 0 ? (double)o->memory_fraction : 0.5) -
                       (double)(ll_cpu_weights_bytes(&d->shape) * o->n_weights);
        bytes = share > 0 ? (uint64_t)share : 0;
    }
    if (n_pages == 0)
        n_pages = ll_min_u64(bytes / d->kv.page_bytes, useful);
    if (n_pages == 0 || n_pages >= LL_CPU_PAGE_UNSET)
        return ll_cpu_fail(error, -ENOMEM,
                           "no room for KV pages of %zu KiB beside %llu MiB of weights; give the "
                           "cache more memory",
                           d->kv.page_bytes >> 10,
                           (unsigned long long)ll_cpu_weights_bytes(&d->shape) >> 20);
    d->kv.n_pages = (uint32_t)n_pages;
    d->kv.base = take(d, n_pages, d->kv.page_bytes);
    d->n_host_pages = o->n_host_pages;
    d->host_pages = take(d, o->n_host_pages, d->kv.page_bytes);
    d->n_copies_max = (uint32_t)ll_min_u64(n_pages + o->n_host_pages, 1u << 16);
    struct ll_copy *copy = take(d, (uint64_t)LL_CPU_COPIES_MAX * d->n_copies_max, sizeof(*copy));
    if (d->kv.base == NULL || d->host_pages == NULL || copy == NULL)
        return ll_cpu_fail(error, -ENOMEM, "no memory for %llu KV pages of %zu KiB",
                           (unsigned long long)(n_pages + o->n_host_pages), d->kv.page_bytes >> 10);
    for (uint32_t i = 0; i < LL_CPU_COPIES_MAX; i++)
        d->copies[i].copy = copy + (size_t)i * d->n_copies_max;
    return 0;
}

static void free_device(struct ll_device *d)
{
    for (uint32_t i = 0; i < 2 * LL_CPU_RANKS_MAX; i++)
        ll_cpu_weights_close(&d->weights[0][0] + i);
    for (uint32_t i = 0; i < d->n_mappings; i++)
        ll_cpu_unmap(d->mapping[i].base, d->mapping[i].size_bytes);
    free(d);
}

static int open_parts(struct ll_device *d, struct ll_text *error)
{
    const struct ll_backend_options *o = &d->options;
    int rc = open_pages(d, error);

    const struct ll_model_shape rank_shape = ll_cpu_rank_shape(&d->model, d->n_ranks);
    for (uint32_t i = 0; i < o->n_weights * d->n_ranks && rc == 0; i++) {
        struct ll_cpu_weights *weights = &d->weights[i / d->n_ranks][i % d->n_ranks];
        rc = ll_cpu_weights_open(weights, &rank_shape, o->dtype, o->numa_node, error);
        weights->is_follower = i % d->n_ranks != 0;
        weights->has_fp8_kv = d->kv.form == LL_FORM_E4M3;
    }
    if (rc < 0)
        return rc;
    if (open_activations(d) < 0 || open_steps(d) < 0 || open_slots(d) < 0 || open_workers(d) < 0)
        return ll_cpu_fail(error, -ENOMEM,
                           "no memory for %u slots and steps of %u tokens; lower them", o->n_slots,
                           o->n_tokens_max);
    ll_cpu_rope_frequencies(d->frequency, &d->shape);
    for (uint32_t i = 0; o->has_dummy_weights && i < o->n_weights && rc == 0; i++)
        rc = ll_cpu_weights_dummy(&d->weights[i][0], o->seed, d->is_fp8_dummy, error);
    return rc;
}

static enum ll_cpu_form form_of_pages(enum ll_dtype dtype)
{
    return dtype == LL_DTYPE_F32    ? LL_FORM_F32
           : dtype == LL_DTYPE_E4M3 ? LL_FORM_E4M3
                                    : LL_FORM_BF16;
}

static int cpu_open(struct ll_device **out, const struct ll_backend_options *options,
                    const struct ll_model_shape *shape, struct ll_backend_caps *caps,
                    struct ll_text *error)
{
    int rc = check_options(options, error);

    if (rc == 0)
        rc = check_shape(shape, error);
    if (rc == 0 && options->tensor_parallel > 1)
        rc = ll_cpu_ranks_check(shape, options->tensor_parallel, error);
    if (rc < 0)
        return rc;
    struct ll_device *d = aligned_alloc(alignof(struct ll_device), sizeof(*d));
    if (d == NULL)
        return ll_cpu_fail(error, -ENOMEM, "no memory for the device");
    memset(d, 0, sizeof(*d));
    d->options = *options;
    d->options.cpus = NULL; /* the caller's; used below only */
    d->options.extra = NULL;
    d->shape = d->model = *shape;
    d->n_ranks = options->tensor_parallel > 0 ? options->tensor_parallel : 1;
    d->shape.n_kv_heads = d->n_ranks * ll_cpu_rank_shape(shape, d->n_ranks).n_kv_heads;
    d->is_bf16 = options->dtype == LL_DTYPE_BF16;
    enum ll_dtype kv_dtype = options->kv_dtype != 0 ? options->kv_dtype : options->dtype;
    ll_cpu_kv_init(&d->kv, &d->shape, form_of_pages(kv_dtype));
    rc = read_extra(d, options->extra, error);
    if (rc == 0)
        rc = open_parts(d, error);
    if (rc == 0)
        rc = ll_team_open(&d->team,
                          &(struct ll_team_work){d, ll_cpu_forward_next, ll_cpu_forward_item},
                          d->options.n_threads, options->cpus, error);
    if (rc < 0) {
        free_device(d);
        return rc;
    }

    *caps = (struct ll_backend_caps){
        .depth = LL_CPU_DEPTH,
        .n_ranks = d->n_ranks,
        .n_pages = d->kv.n_pages,
        .n_host_pages = d->n_host_pages,
        .weights_bytes = ll_cpu_weights_bytes(shape),
        .kv_bytes = (uint64_t)d->kv.n_pages * d->kv.page_bytes,
        .host_kv_bytes = (uint64_t)d->n_host_pages * d->kv.page_bytes,
        .poll_works = true,
    };
    snprintf(caps->device, sizeof(caps->device), "%u thread%s, %s", d->options.n_threads,
             d->options.n_threads == 1 ? "" : "s", d->inner->name);
    *out = d;
    return 0;
}

static void cpu_close(struct ll_device *d)
{
    if (d == NULL)
        return;
    /* Acquire, pairs with the release in forward.c's end_step(). */
    while (atomic_load_explicit(&d->done, memory_order_acquire) < d->submitted && d->sticky == 0)
        ll_team_work(&d->team, SLICE_NS);
    ll_team_close(&d->team);
    free_device(d);
}

/* ---- steps --------------------------------------------------------------------------------------
 */
static int64_t cpu_submit(struct ll_device *d, const struct ll_batch *batch, struct ll_text *error)
{
    if (d->sticky < 0)
        return ll_cpu_fail(error, d->sticky, "the device has failed; close it");
    if (d->submitted - d->polled >= LL_CPU_DEPTH)
        return ll_cpu_fail(error, LL_E_AGAIN, "%u batches are in flight", LL_CPU_DEPTH);
    if (batch->n_rows == 0)
        return ll_cpu_fail(error, LL_E_INVAL, "a batch without rows");
    int rc = ll_cpu_batch_take(d, batch, error);
    if (rc < 0)
        return rc;
    d->submitted++;
    ll_team_push(&d->team);
    return d->submitted;
}

/* B6: says and then fails when nothing moves although somebody polls. */
static int watch(struct ll_device *d, struct ll_text *error)
{
    uint64_t now_ns = ll_now_ns(), progress = ll_team_progress(&d->team);

    if (progress != d->seen_progress || d->last_poll_ns == 0) {
        d->seen_progress = progress;
        d->stalled_ns = 0;
        d->has_warned = false;
    } else {
        d->stalled_ns += ll_min_u64(now_ns - d->last_poll_ns, STALL_PART_NS);
    }
    d->last_poll_ns = now_ns;
    if (d->stalled_ns > STALL_ERROR_NS) {
        d->sticky = LL_E_BACKEND;
        return ll_cpu_fail(error, d->sticky, "a step has not moved for 5 s");
    }
    if (d->stalled_ns > STALL_WARN_NS && !d->has_warned) {
        d->has_warned = true;
        ll_warn("cpu: a step has not moved for 1 s; are there fewer CPUs than threads (%u)?",
                d->options.n_threads);
    }
    return 0;
}

static int cpu_poll(struct ll_device *d, int64_t ticket, struct ll_result *out,
                    struct ll_text *error)
{
    if (d->sticky < 0)
        return ll_cpu_fail(error, d->sticky, "the device has failed; close it");
    if (ticket != d->polled + 1 || ticket > d->submitted)
        return ll_cpu_fail(error, LL_E_INVAL, "ticket %lld; the next one to poll is %lld of %lld",
                           (long long)ticket, (long long)d->polled + 1, (long long)d->submitted);
    /* Acquire, pairs with the release in forward.c's end_step(): the results are there. */
    if (atomic_load_explicit(&d->done, memory_order_acquire) < ticket) {
        ll_team_work(&d->team, SLICE_NS);
        if (atomic_load_explicit(&d->done, memory_order_acquire) < ticket)
            return watch(d, error);
    }
    d->last_poll_ns = 0;
    d->polled = ticket;
    const struct ll_cpu_step *step = &d->step[ticket % LL_CPU_DEPTH];
    if (step->failed != NULL) {
        d->sticky = LL_E_BACKEND;
        return ll_cpu_fail(error, d->sticky, "%s", step->failed);
    }
    *out = (struct ll_result){
        .rows = step->out,
        .ext = step->ext,
        .n_rows = step->n_rows,
        .device_ns = step->end_ns - step->start_ns,
    };
    return 1;
}

/* ---- copies ------------------------------------------------------------------------------------
 */
static int64_t cpu_copy(struct ll_device *d, const struct ll_copy *list, uint32_t n,
                        struct ll_text *error)
{
    if (n > d->n_copies_max || d->copy_submitted - d->copy_done >= LL_CPU_COPIES_MAX)
        return ll_cpu_fail(error, LL_E_AGAIN, "%u copies are waiting; ask copied() first",
                           LL_CPU_COPIES_MAX);
    for (uint32_t i = 0; i < n; i++) {
        bool is_out = list[i].kind == LL_COPY_D2H;
        uint32_t device = is_out ? list[i].src : list[i].dst;
        uint32_t host = is_out ? list[i].dst : list[i].src;
        if ((!is_out && list[i].kind != LL_COPY_H2D) || device >= d->kv.n_pages ||
            host >= d->n_host_pages)
            return ll_cpu_fail(error, LL_E_INVAL, "copy %u: kind %u, pages %u of %u and %u of %u",
                               i, list[i].kind, device, d->kv.n_pages, host, d->n_host_pages);
    }
    struct ll_cpu_copy_list *to = &d->copies[++d->copy_submitted % LL_CPU_COPIES_MAX];
    to->after = d->submitted;
    to->n = n;
    to->n_copied = 0;
    memcpy(to->copy, list, n * sizeof(*list));
    return d->copy_submitted;
}

/* The step thread moves the pages itself, some a call, once B3 allows it. */
static int cpu_copied(struct ll_device *d, int64_t ticket, struct ll_text *error)
{
    if (ticket < 1 || ticket > d->copy_submitted)
        return ll_cpu_fail(error, LL_E_INVAL, "copy ticket %lld of %lld", (long long)ticket,
                           (long long)d->copy_submitted);
    for (uint32_t budget = COPY_PAGES; d->copy_done < ticket;) {
        struct ll_cpu_copy_list *list = &d->copies[(d->copy_done + 1) % LL_CPU_COPIES_MAX];
        /* Acquire, pairs with the release in end_step(): the pages are written. */
        if (atomic_load_explicit(&d->done, memory_order_acquire) < list->after)
            return 0;
        for (; list->n_copied < list->n; list->n_copied++) {
            const struct ll_copy *c = &list->copy[list->n_copied];
            const size_t bytes = d->kv.page_bytes;
            if (budget-- == 0)
                return 0;
            if (c->kind == LL_COPY_D2H)
                memcpy(d->host_pages + c->dst * bytes, d->kv.base + c->src * bytes, bytes);
            else
                memcpy(d->kv.base + c->dst * bytes, d->host_pages + c->src * bytes, bytes);
        }
        d->copy_done++;
    }
    return 1;
}

const struct ll_backend *ll_backend_cpu(void)
{
    static const struct ll_backend backend = {
        .abi = LL_BACKEND_ABI,
        .name = "cpu",
        .open = cpu_open,
        .close = cpu_close,
        .begin = ll_cpu_begin,
        .want = ll_cpu_want,
        .pin = ll_cpu_pin,
        .feed = ll_cpu_feed,
        .place = ll_cpu_place,
        .fed = ll_cpu_fed,
        .seal = ll_cpu_seal,
        .submit = cpu_submit,
        .poll = cpu_poll,
        .late_mask = NULL,
        .copy = cpu_copy,
        .copied = cpu_copied,
    };
    return &backend;
}
