/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/fake/fake.c - a backend without a model: it keeps ids in KV pages and hashes what it
 * reads back through the page table (the rules: fake.h).
 *
 * A batch is copied at submit and executed when it is due, in poll, so everything that a real
 * device would read later is read later here too. What the seam forbids (a row without pages, two
 * rows of one slot, an unknown page, a run-ahead row at the wrong position, a history that is not
 * what was fed) is a sticky error that names the row.
 *
 *   F1  a slot's context sum is never remembered across steps: by default every sampled id re-reads
 *       all its pages; with verify=0 the sums of full pages are kept and two of them, in turn, are
 *       read again each time
 *   F3  weights are a number: a set sealed after the start is another model (fake.h), and a row
 * that reads a page which another one wrote is an error F2  results of ticket n lie in buffer n mod
 * 2 until n + 2 is submitted
 *
 * options->extra: "key=value,..."
 *   vocab=N         instead of the shape's
 *   depth=1|2       batches in flight (2)
 *   step_us=N       a step takes at least so long (0) ...
 *   token_ns=N      ... plus this a token (0)
 *   polls=N         a step is done at the N-th poll at the earliest (1), for runs without a clock
 *   eos_permille=N  how often an end id is drawn (0)
 *   fail_at=N       polling ticket N answers a sticky error
 *   hang_at=N       ticket N is never done; error after hang_ms (5000)
 *   fail_on=ID      a batch that computes this id answers a sticky error
 *   abort_on=ID     a batch that computes this id ends the process, as a fault in a driver would
 *   nan_at=N        the first row of batch N has status LL_ROW_NAN
 *   verify=0|1      see F1 (1) */
#include "kernels/fake/fake_impl.h"

#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- options ----------------------------------------------------------------------------------*/
static int fail(struct ll_text *error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static int fail(struct ll_text *error, int code, const char *format, ...)
{
    va_list list;

    va_start(list, format);
    vsnprintf(error->s, sizeof(error->s), format, list);
    va_end(list);
    return code;
}

static int parse_extra(struct ll_fake_settings *out, const char *extra, struct ll_text *error)
{
    const struct {
        const char *name;
        uint64_t *value, max;
    } keys[] = {
        {"vocab", &out->vocab, 1u << 30},
        {"depth", &out->depth, LL_FAKE_DEPTH_MAX},
        {"step_us", &out->step_us, 60000000},
        {"token_ns", &out->token_ns, 1000000000},
        {"polls", &out->polls, 1u << 30},
        {"eos_permille", &out->eos_permille, 1000},
        {"fail_at", &out->fail_at, INT64_MAX},
        {"hang_at", &out->hang_at, INT64_MAX},
        {"hang_ms", &out->hang_ms, 1000000},
        {"nan_at", &out->nan_at, INT64_MAX},
        {"verify", &out->verify, 1},
        {"fail_on", &out->fail_on, UINT32_MAX},
        {"abort_on", &out->abort_on, UINT32_MAX},
    };

    while (extra != NULL && *extra != 0) {
        size_t n_name = strcspn(extra, "=,");
        size_t i = 0;
        char *end;

        while (i < LL_COUNT(keys) &&
               (strlen(keys[i].name) != n_name || memcmp(keys[i].name, extra, n_name) != 0))
            i++;
        if (i == LL_COUNT(keys) || extra[n_name] != '=')
            return fail(error, LL_E_INVAL,
                        "fake: unknown option \"%.*s\"; known: vocab, depth, step_us, token_ns, "
                        "polls, eos_permille, fail_at, hang_at, hang_ms, nan_at, verify, fail_on, "
                        "abort_on, each =N",
                        (int)strcspn(extra, ","), extra);
        errno = 0;
        *keys[i].value = strtoull(extra + n_name + 1, &end, 10);
        if (errno != 0 || end == extra + n_name + 1 || extra[n_name + 1] == '-' ||
            (*end != 0 && *end != ',') || *keys[i].value > keys[i].max)
            return fail(error, LL_E_INVAL, "fake: %s wants a number from 0 to %llu, not \"%.*s\"",
                        keys[i].name, (unsigned long long)keys[i].max,
                        (int)strcspn(extra + n_name + 1, ","), extra + n_name + 1);
        extra = *end == ',' ? end + 1 : end;
    }
    return 0;
}

/* ---- open, close ------------------------------------------------------------------------------*/
static void fake_close(struct ll_device *device)
{
    if (device == NULL)
        return;
    for (uint32_t i = 0; i < LL_FAKE_DEPTH_MAX; i++) {
        struct ll_fake_batch *batch = &device->batch[i];
        free(batch->init);
        free(batch->hist_context);
        free(batch->set);
        free(batch->set_page);
        free(batch->row);
        free(batch->token);
        free(batch->out);
        free(batch->ext);
    }
    free(device->page);
    free(device->host_page);
    free(device->page_generation);
    free(device->host_generation);
    free(device->table);
    free(device->page_sum);
    free(device->slot);
    free(device->has_row);
    free(device);
}

static bool make_batch(struct ll_fake_batch *batch, const struct ll_backend_options *o)
{
    size_t n_slots = o->n_slots, n_rows = o->n_rows_max, n_tokens = o->n_tokens_max;

    batch->init = calloc(n_slots, sizeof(*batch->init));
    batch->hist_context = calloc(n_slots, sizeof(*batch->hist_context));
    batch->set = calloc(n_slots, sizeof(*batch->set));
    batch->set_page = calloc(n_slots * o->pages_per_seq, sizeof(*batch->set_page));
    batch->row = calloc(n_rows, sizeof(*batch->row));
    batch->token = calloc(n_tokens + n_rows, sizeof(*batch->token));
    batch->out = calloc(n_rows, sizeof(*batch->out));
    batch->ext =
        calloc(n_tokens * (1 + LL_EXT_TOP_MAX) + n_rows * LL_EXT_TOP_MAX, sizeof(*batch->ext));
    return batch->init != NULL && batch->hist_context != NULL && batch->set != NULL &&
           batch->set_page != NULL && batch->row != NULL && batch->token != NULL &&
           batch->out != NULL && batch->ext != NULL;
}

static int fake_open(struct ll_device **out, const struct ll_backend_options *options,
                     const struct ll_model_shape *shape, struct ll_backend_caps *caps,
                     struct ll_text *error)
{
    struct ll_fake_settings settings = {.depth = 2,
                                        .polls = 1,
                                        .hang_ms = 5000,
                                        .verify = 1,
                                        .fail_on = UINT64_MAX,
                                        .abort_on = UINT64_MAX};
    const size_t page_bytes = LL_PAGE_TOKENS * sizeof(uint32_t);

    settings.vocab = shape->n_vocab;
    int rc = parse_extra(&settings, options->extra, error);
    if (rc < 0)
        return rc;
    if (options->n_slots == 0 || options->n_rows_max == 0 || options->n_tokens_max == 0 ||
        options->pages_per_seq == 0)
        return fail(error, LL_E_INVAL,
                    "fake: n_slots, n_rows_max, n_tokens_max and pages_per_seq must not be 0");
    if (settings.vocab < 2)
        return fail(error, LL_E_INVAL, "fake: vocab is %llu; it must be at least 2",
                    (unsigned long long)settings.vocab);
    if (settings.depth == 0)
        return fail(error, LL_E_INVAL, "fake: depth is 1 or 2");

    struct ll_device *device = calloc(1, sizeof(*device));
    if (device == NULL)
        return fail(error, -ENOMEM, "fake: out of memory");
    device->options = *options;
    device->options.extra = NULL; /* the caller's memory */
    device->options.cpus = NULL;
    device->settings = settings;
    device->rules.n_vocab = (uint32_t)settings.vocab;
    device->rules.eos_permille = (uint32_t)settings.eos_permille;

    struct ll_backend_caps *c = &device->caps;
    c->depth = (uint32_t)settings.depth;
    c->n_ranks = 1;
    c->n_pages = options->n_pages != 0 ? options->n_pages : 4096;
    if (options->n_pages == 0 && options->kv_bytes != 0)
        c->n_pages = (uint32_t)ll_min_u64(options->kv_bytes / page_bytes, 1u << 24);
    c->n_host_pages = options->n_host_pages;
    c->kv_bytes = c->n_pages * page_bytes;
    c->host_kv_bytes = c->n_host_pages * page_bytes;
    snprintf(c->device, sizeof(c->device), "no model, %u pages", c->n_pages);

    size_t n_entries = (size_t)options->n_slots * options->pages_per_seq;
    device->page = calloc(c->n_pages, page_bytes);
    device->host_page = calloc(c->n_host_pages + 1, page_bytes);
    device->page_generation = calloc(c->n_pages, sizeof(uint32_t));
    device->host_generation = calloc(c->n_host_pages + 1, sizeof(uint32_t));
    device->table = malloc(n_entries * sizeof(*device->table));
    device->page_sum = calloc(n_entries, sizeof(*device->page_sum));
    device->slot = calloc(options->n_slots, sizeof(*device->slot));
    device->has_row = calloc(options->n_slots, sizeof(*device->has_row));
    if (device->page_generation == NULL || device->host_generation == NULL || c->n_pages == 0 ||
        device->page == NULL || device->host_page == NULL || device->table == NULL ||
        device->page_sum == NULL || device->slot == NULL || device->has_row == NULL ||
        !make_batch(&device->batch[0], options) || !make_batch(&device->batch[1], options)) {
        const uint32_t n_pages = c->n_pages; /* c lies in the device */
        fake_close(device);
        return fail(error, -ENOMEM, "fake: out of memory for %u pages and %u slots", n_pages,
                    options->n_slots);
    }
    memset(device->table, 0xff, n_entries * sizeof(*device->table));
    *caps = *c;
    *out = device;
    return 0;
}

/* ---- weights: a number (F3) -------------------------------------------------------------------*/
static int fake_begin(struct ll_device *device, uint32_t weights, struct ll_text *error)
{
    if (weights >= ll_max_u64(device->options.n_weights, 1))
        return fail(error, LL_E_INVAL, "fake: there is no weight set %u", weights);
    return 0;
}

static int fake_want(struct ll_device *device, const struct ll_tensor *tensor,
                     struct ll_span *spans, uint32_t n_max, struct ll_text *error)
{
    (void)device, (void)tensor, (void)spans, (void)n_max, (void)error;
    return 0;
}

static int fake_pin(struct ll_device *device, void *base, size_t size_bytes, struct ll_text *error)
{
    (void)device, (void)base, (void)size_bytes, (void)error;
    return 0;
}

static int fake_feed(struct ll_device *device, uint32_t weights, const struct ll_tensor *tensor,
                     uint32_t rank, uint64_t offset, const void *data, size_t n_bytes,
                     uint64_t *ticket, struct ll_text *error)
{
    (void)device, (void)weights, (void)tensor, (void)rank, (void)offset, (void)data, (void)n_bytes;
    *ticket = 0;
    return fail(error, LL_E_INVAL, "fake: takes no weights (want answered 0)");
}

static int fake_fed(struct ll_device *device, uint64_t ticket, struct ll_text *error)
{
    (void)device, (void)ticket, (void)error;
    return 1;
}

static int fake_seal(struct ll_device *device, uint32_t weights, struct ll_text *error)
{
    if (weights >= ll_max_u64(device->options.n_weights, 1))
        return fail(error, LL_E_INVAL, "fake: there is no weight set %u", weights);
    if (weights != 0 || device->n_generations > 0)
        device->generation[weights] = ++device->n_generations;
    return 0;
}

/* ---- submit: check and copy -------------------------------------------------------------------*/
/* Ids that a row carries: a scoring row without a sample has one more, a target. */
static uint32_t ids_of(const struct ll_row *row)
{
    bool has_target = (row->flags & LL_ROW_PROMPT_LOGPROBS) && !(row->flags & LL_ROW_SAMPLE);

    return row->token == NULL ? 0 : row->n_tokens + has_target;
}

static int check_row(struct ll_device *device, const struct ll_row *row, uint32_t index,
                     struct ll_text *error)
{
    const uint32_t capacity = device->options.pages_per_seq * LL_PAGE_TOKENS;

    if (row->slot >= device->options.n_slots || device->has_row[row->slot])
        return ll_fake_fail(device, error, LL_E_INVAL, "fake: row %u: slot %u is %s", index,
                            row->slot,
                            row->slot >= device->options.n_slots ? "out of range" : "named twice");
    if (row->flags & (LL_ROW_VERIFY | LL_ROW_LATE_MASK))
        return ll_fake_fail(device, error, LL_E_UNSUPPORTED,
                            "fake: row %u: no speculation and no late masks here", index);
    if (row->n_tokens == 0 || row->pos >= capacity || row->n_tokens > capacity - row->pos)
        return ll_fake_fail(device, error, LL_E_INVAL,
                            "fake: row %u: %u tokens at %u do not lie in 1 .. %u", index,
                            row->n_tokens, row->pos, capacity);
    if (row->token == NULL && (row->n_tokens != 1 || !(row->flags & LL_ROW_SAMPLE)))
        return ll_fake_fail(device, error, LL_E_INVAL,
                            "fake: row %u: a run-ahead row samples after one token", index);
    for (uint32_t i = 0; i < ids_of(row); i++)
        if (row->token[i] >= device->rules.n_vocab)
            return ll_fake_fail(device, error, LL_E_INVAL,
                                "fake: row %u: id %u at %u is not below %u", index, row->token[i],
                                row->pos + i, device->rules.n_vocab);
    if (row->n_top > LL_EXT_TOP_MAX || row->n_prompt_top > LL_EXT_TOP_MAX)
        return ll_fake_fail(device, error, LL_E_INVAL, "fake: row %u: more than %u top logprobs",
                            index, LL_EXT_TOP_MAX);
    return 0;
}

static int check_batch(struct ll_device *device, const struct ll_batch *in, struct ll_text *error)
{
    const struct ll_backend_options *o = &device->options;
    uint64_t n_tokens = 0, n_set_pages = 0;

    if (in->n_rows > o->n_rows_max || in->n_inits > o->n_slots || in->n_pages_sets > o->n_slots ||
        in->weights >= ll_max_u64(o->n_weights, 1))
        return ll_fake_fail(device, error, LL_E_INVAL,
                            "fake: batch of %u rows, %u inits, %u page sets, weights %u: too large",
                            in->n_rows, in->n_inits, in->n_pages_sets, in->weights);
    for (uint32_t i = 0; i < in->n_inits; i++)
        if (in->inits[i].slot >= o->n_slots || in->inits[i].s.n_end > LL_END_IDS_MAX)
            return ll_fake_fail(device, error, LL_E_INVAL, "fake: init %u: slot or end ids", i);
    for (uint32_t i = 0; i < in->n_pages_sets; i++) {
        const struct ll_pages_set *set = &in->pages[i];
        n_set_pages += set->n;
        if (set->slot >= o->n_slots || !ll_span_fits(set->first, set->n, o->pages_per_seq) ||
            n_set_pages > (uint64_t)o->n_slots * o->pages_per_seq)
            return ll_fake_fail(device, error, LL_E_INVAL,
                                "fake: page set %u: slot %u, entries %u + %u", i, set->slot,
                                set->first, set->n);
        for (uint32_t k = 0; k < set->n; k++)
            if (set->page[k] >= device->caps.n_pages)
                return ll_fake_fail(device, error, LL_E_INVAL, "fake: page set %u: page %u of %u",
                                    i, set->page[k], device->caps.n_pages);
    }
    memset(device->has_row, 0, o->n_slots * sizeof(*device->has_row));
    for (uint32_t i = 0; i < in->n_rows; i++) {
        int rc = check_row(device, &in->rows[i], i, error);
        if (rc < 0)
            return rc;
        device->has_row[in->rows[i].slot] = true;
        n_tokens += in->rows[i].n_tokens;
    }
    if (n_tokens > o->n_tokens_max)
        return ll_fake_fail(device, error, LL_E_INVAL, "fake: %llu tokens in a batch, %u allowed",
                            (unsigned long long)n_tokens, o->n_tokens_max);
    return 0;
}

static void copy_batch(struct ll_fake_batch *out, const struct ll_batch *in)
{
    uint32_t n_pages = 0, n_ids = 0;

    out->n_inits = in->n_inits;
    out->n_sets = in->n_pages_sets;
    out->n_rows = in->n_rows;
    out->n_tokens = 0;
    for (uint32_t i = 0; i < in->n_inits; i++) {
        out->init[i] = in->inits[i];
        out->hist_context[i] = ll_fake_context(in->inits[i].hist, in->inits[i].n_hist);
        out->init[i].hist = NULL;
        out->init[i].bias = NULL;
    }
    for (uint32_t i = 0; i < in->n_pages_sets; i++) {
        out->set[i] = in->pages[i];
        out->set[i].page = out->set_page + n_pages;
        memcpy(out->set_page + n_pages, in->pages[i].page, in->pages[i].n * sizeof(uint32_t));
        n_pages += in->pages[i].n;
    }
    for (uint32_t i = 0; i < in->n_rows; i++) {
        uint32_t n = ids_of(&in->rows[i]);
        out->row[i] = in->rows[i];
        out->n_tokens += in->rows[i].n_tokens;
        if (n == 0)
            continue;
        out->row[i].token = out->token + n_ids;
        memcpy(out->token + n_ids, in->rows[i].token, n * sizeof(uint32_t));
        n_ids += n;
    }
}

static bool computes(const struct ll_batch *in, uint64_t id)
{
    for (uint32_t i = 0; i < in->n_rows; i++)
        for (uint32_t k = 0; in->rows[i].token != NULL && k < in->rows[i].n_tokens; k++)
            if (in->rows[i].token[k] == id)
                return true;
    return false;
}

static int64_t fake_submit(struct ll_device *device, const struct ll_batch *in,
                           struct ll_text *error)
{
    const struct ll_fake_settings *s = &device->settings;

    if (device->failed != 0) {
        *error = device->failed_text;
        return device->failed;
    }
    if (device->n_submitted - device->n_done >= (int64_t)device->caps.depth)
        return fail(error, LL_E_AGAIN, "fake: %u batches are in flight", device->caps.depth);
    int rc = check_batch(device, in, error);
    if (rc < 0)
        return rc;

    if (s->abort_on != UINT64_MAX && computes(in, s->abort_on))
        abort();
    if (s->fail_on != UINT64_MAX && computes(in, s->fail_on))
        return ll_fake_fail(device, error, LL_E_BACKEND, "fake: id %llu fails, as asked for",
                            (unsigned long long)s->fail_on);

    int64_t ticket = ++device->n_submitted;
    struct ll_fake_batch *batch = &device->batch[ticket % LL_FAKE_DEPTH_MAX];
    copy_batch(batch, in);
    batch->generation = device->generation[in->weights];
    batch->ticket = ticket;
    batch->n_polls = 0;
    batch->done_ns = 0;
    if (s->step_us != 0 || s->token_ns != 0 || (uint64_t)ticket == s->hang_at) {
        /* A device runs one batch after the other. */
        uint64_t begin_ns = ll_max_u64(ll_now_ns(), device->last_done_ns);
        batch->done_ns = begin_ns + s->step_us * LL_NS_PER_US + s->token_ns * batch->n_tokens;
        if ((uint64_t)ticket == s->hang_at)
            batch->done_ns = begin_ns + s->hang_ms * LL_NS_PER_MS;
        device->last_done_ns = batch->done_ns;
    }
    return ticket;
}

/* ---- poll ------------------------------------------------------------------------------------*/
static int fake_poll(struct ll_device *device, int64_t ticket, struct ll_result *out,
                     struct ll_text *error)
{
    const struct ll_fake_settings *s = &device->settings;

    if (device->failed != 0) {
        *error = device->failed_text;
        return device->failed;
    }
    if (ticket != device->n_done + 1 || ticket > device->n_submitted)
        return ll_fake_fail(device, error, LL_E_INVAL, "fake: polled ticket %lld, %lld is next",
                            (long long)ticket, (long long)device->n_done + 1);
    struct ll_fake_batch *batch = &device->batch[ticket % LL_FAKE_DEPTH_MAX];
    if (++batch->n_polls < s->polls || (batch->done_ns != 0 && ll_now_ns() < batch->done_ns))
        return 0;
    if ((uint64_t)ticket == s->hang_at)
        return ll_fake_fail(device, error, LL_E_BACKEND, "fake: step %lld hangs, as asked for",
                            (long long)ticket);
    if ((uint64_t)ticket == s->fail_at)
        return ll_fake_fail(device, error, LL_E_BACKEND, "fake: step %lld fails, as asked for",
                            (long long)ticket);
    ll_fake_apply_inits(device, batch);
    batch->n_ext = 0;
    for (uint32_t i = 0; i < batch->n_rows; i++) {
        int rc = ll_fake_run_row(device, batch, i);
        if (rc < 0) {
            *error = device->failed_text;
            return rc;
        }
    }
    device->n_done = ticket;
    ll_fake_run_copies(device);
    *out = (struct ll_result){
        .rows = batch->out,
        .ext = batch->ext,
        .n_rows = batch->n_rows,
        .device_ns = s->step_us * LL_NS_PER_US + s->token_ns * batch->n_tokens,
    };
    return 1;
}

/* ---- page copies ------------------------------------------------------------------------------*/
static int64_t fake_copy(struct ll_device *device, const struct ll_copy *list, uint32_t n,
                         struct ll_text *error)
{
    if (n > LL_FAKE_COPIES_MAX - (uint64_t)(device->n_copies - device->n_copied))
        return fail(error, LL_E_AGAIN, "fake: more than %u page copies wait", LL_FAKE_COPIES_MAX);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t on_device = list[i].kind == LL_COPY_D2H ? list[i].src : list[i].dst;
        uint32_t on_host = list[i].kind == LL_COPY_D2H ? list[i].dst : list[i].src;
        if ((list[i].kind != LL_COPY_D2H && list[i].kind != LL_COPY_H2D) ||
            on_device >= device->caps.n_pages || on_host >= device->caps.n_host_pages)
            return fail(error, LL_E_INVAL, "fake: page copy %u: kind or page out of range", i);
    }
    for (uint32_t i = 0; i < n; i++) {
        device->copy[device->n_copies % LL_FAKE_COPIES_MAX] = list[i];
        device->copy_after[device->n_copies % LL_FAKE_COPIES_MAX] = device->n_submitted;
        device->n_copies++;
    }
    ll_fake_run_copies(device);
    return device->n_copies;
}

static int fake_copied(struct ll_device *device, int64_t ticket, struct ll_text *error)
{
    (void)error;
    return device->n_copied >= ticket;
}

const struct ll_backend *ll_backend_fake(void)
{
    static const struct ll_backend backend = {
        .abi = LL_BACKEND_ABI,
        .name = "fake",
        .open = fake_open,
        .close = fake_close,
        .begin = fake_begin,
        .want = fake_want,
        .pin = fake_pin,
        .feed = fake_feed,
        .fed = fake_fed,
        .seal = fake_seal,
        .submit = fake_submit,
        .poll = fake_poll,
        .late_mask = NULL,
        .copy = fake_copy,
        .copied = fake_copied,
    };

    return &backend;
}
