/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/batch.h"
#include "kernels/cpu/memory.h"
#include "ll/client.h"

#include <string.h>

static int check_init(const struct ll_device *d, const struct ll_slot_init *init, uint32_t i,
                      struct ll_text *error)
{
    const uint32_t n_vocab = d->shape.n_vocab;

    if (init->slot >= d->options.n_slots)
        return ll_cpu_fail(error, LL_E_INVAL, "init %u: slot %u, there are %u", i, init->slot,
                           d->options.n_slots);
    if (init->adapter != 0)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED, "init %u: the cpu backend has no adapters", i);
    if (init->n_bias > LL_CPU_BIAS_MAX || init->s.n_end > LL_END_IDS_MAX ||
        init->n_prompt > init->n_hist)
        return ll_cpu_fail(error, LL_E_INVAL,
                           "init %u: %u biases, %u end ids or a prompt of %u in a history of %u "
                           "are too many",
                           i, init->n_bias, init->s.n_end, init->n_prompt, init->n_hist);
    for (uint32_t b = 0; b < init->n_bias; b++)
        if (init->bias[b].id >= n_vocab)
            return ll_cpu_fail(error, LL_E_INVAL, "init %u: bias for id %u of %u", i,
                               init->bias[b].id, n_vocab);
    for (uint32_t e = 0; e < init->s.n_end; e++)
        if (init->s.end[e] >= n_vocab)
            return ll_cpu_fail(error, LL_E_INVAL, "init %u: end id %u of %u", i, init->s.end[e],
                               n_vocab);
    for (uint32_t h = 0; h < init->n_hist; h++)
        if (init->hist[h] >= n_vocab)
            return ll_cpu_fail(error, LL_E_INVAL, "init %u: id %u of %u in the history", i,
                               init->hist[h], n_vocab);
    return 0;
}

static int check_row(const struct ll_device *d, const struct ll_row *row, uint32_t i, bool has_last,
                     struct ll_text *error)
{
    const bool samples = (row->flags & LL_ROW_SAMPLE) != 0;
    const bool verifies = (row->flags & LL_ROW_VERIFY) != 0;
    const bool scores = (row->flags & LL_ROW_PROMPT_LOGPROBS) != 0;
    const uint64_t room = (uint64_t)d->options.pages_per_seq * LL_PAGE_TOKENS;

    if (row->n_tokens == 0 || row->n_tokens > d->options.n_tokens_max)
        return ll_cpu_fail(error, LL_E_INVAL, "row %u: %u tokens", i, row->n_tokens);
    if ((uint64_t)row->pos + row->n_tokens > room)
        return ll_cpu_fail(error, LL_E_INVAL,
                           "row %u: position %u and %u tokens, a sequence has %llu", i, row->pos,
                           row->n_tokens, (unsigned long long)room);
    if ((row->flags & LL_ROW_LATE_MASK) != 0)
        return ll_cpu_fail(error, LL_E_UNSUPPORTED, "row %u: the cpu backend has no late masks", i);
    if (row->n_top > LL_EXT_TOP_MAX || row->n_prompt_top > LL_EXT_TOP_MAX ||
        row->n_top > d->shape.n_vocab || row->n_prompt_top > d->shape.n_vocab)
        return ll_cpu_fail(error, LL_E_INVAL, "row %u: more than %u top ids", i, LL_EXT_TOP_MAX);
    if (verifies && (!samples || scores || row->n_tokens > LL_ROW_TOKENS_MAX))
        return ll_cpu_fail(error, LL_E_INVAL,
                           "row %u: drafts need SAMPLE, no prompt logprobs, at most %u tokens", i,
                           LL_ROW_TOKENS_MAX);
    if (row->token == NULL && (row->n_tokens != 1 || (scores && !samples) || !has_last))
        return ll_cpu_fail(error, LL_E_INVAL,
                           "row %u: runs ahead with %u tokens, or before slot %u has sampled", i,
                           row->n_tokens, row->slot);
    uint32_t n_ids = row->token == NULL ? 0 : row->n_tokens + (scores && !samples);
    for (uint32_t t = 0; t < n_ids; t++)
        if (row->token[t] >= d->shape.n_vocab)
            return ll_cpu_fail(error, LL_E_INVAL, "row %u: id %u of %u", i, row->token[t],
                               d->shape.n_vocab);
    return 0;
}

/* Checks a set and writes it to the table. */
static int take_pages(struct ll_device *d, const struct ll_pages_set *set, uint32_t i,
                      struct ll_text *error)
{
    if (set->slot >= d->options.n_slots || (uint64_t)set->first + set->n > d->options.pages_per_seq)
        return ll_cpu_fail(error, LL_E_INVAL, "pages %u: slot %u, entries %u + %u of %u", i,
                           set->slot, set->first, set->n, d->options.pages_per_seq);
    uint32_t *to = d->page_table + (size_t)set->slot * d->options.pages_per_seq + set->first;
    for (uint32_t p = 0; p < set->n; p++) {
        if (set->page[p] >= d->kv.n_pages)
            return ll_cpu_fail(error, LL_E_INVAL, "pages %u: page %u of %u", i, set->page[p],
                               d->kv.n_pages);
        to[p] = set->page[p];
    }
    return 0;
}

static int check_batch(struct ll_device *d, const struct ll_batch *batch, struct ll_text *error)
{
    const uint64_t mark = ++d->n_checks; /* for seeing that a slot is named in this batch */
    uint64_t n_tokens = 0, n_ext = 0;

    if (batch->weights >= d->options.n_weights || !d->weights[batch->weights][0].is_sealed)
        return ll_cpu_fail(error, LL_E_INVAL, "weight set %u is not sealed", batch->weights);
    if (batch->n_rows > d->options.n_rows_max)
        return ll_cpu_fail(error, LL_E_INVAL, "%u rows, at most %u", batch->n_rows,
                           d->options.n_rows_max);
    for (uint32_t i = 0; i < batch->n_inits; i++) {
        int rc = check_init(d, &batch->inits[i], i, error);
        if (rc < 0)
            return rc;
        d->slot[batch->inits[i].slot].init_mark = mark;
    }
    for (uint32_t i = 0; i < batch->n_pages_sets; i++) {
        int rc = take_pages(d, &batch->pages[i], i, error);
        if (rc < 0)
            return rc;
    }
    for (uint32_t i = 0; i < batch->n_rows; i++) {
        const struct ll_row *row = &batch->rows[i];
        if (row->slot >= d->options.n_slots)
            return ll_cpu_fail(error, LL_E_INVAL, "row %u: slot %u of %u", i, row->slot,
                               d->options.n_slots);
        struct ll_cpu_slot *slot = &d->slot[row->slot];
        bool is_fresh = slot->init_mark == mark;
        if (!slot->is_set && !is_fresh)
            return ll_cpu_fail(error, LL_E_INVAL, "row %u: slot %u was never set up", i, row->slot);
        if (slot->row_mark == mark)
            return ll_cpu_fail(error, LL_E_INVAL, "row %u: slot %u has a row already", i,
                               row->slot);
        slot->row_mark = mark;
        int rc = check_row(d, row, i, slot->has_sampled && !is_fresh, error);
        if (rc < 0)
            return rc;
        const uint32_t *table = d->page_table + (size_t)row->slot * d->options.pages_per_seq;
        for (uint32_t p = 0; p <= (row->pos + row->n_tokens - 1) / LL_PAGE_TOKENS; p++)
            if (table[p] == LL_CPU_PAGE_UNSET)
                return ll_cpu_fail(error, LL_E_INVAL, "row %u: slot %u has no page for position %u",
                                   i, row->slot, p * LL_PAGE_TOKENS);
        n_tokens += row->n_tokens;
        n_ext += (uint64_t)row->n_top * ((row->flags & LL_ROW_VERIFY) != 0 ? row->n_tokens : 1);
        if ((row->flags & LL_ROW_PROMPT_LOGPROBS) != 0)
            n_ext += (uint64_t)row->n_tokens * (1u + row->n_prompt_top);
    }
    if (n_tokens > d->options.n_tokens_max)
        return ll_cpu_fail(error, LL_E_INVAL, "%llu tokens, at most %u",
                           (unsigned long long)n_tokens, d->options.n_tokens_max);
    if (n_ext > d->n_ext_max)
        return ll_cpu_fail(error, LL_E_INVAL, "%llu logprob pairs, at most %u",
                           (unsigned long long)n_ext, d->n_ext_max);
    return 0;
}

static void take_init(struct ll_device *d, const struct ll_slot_init *init)
{
    struct ll_cpu_slot *slot = &d->slot[init->slot];
    struct ll_cpu_settings *to = &slot->settings[slot->settings_now ^= 1]; /* D3 */

    to->s = init->s;
    if (!(to->s.repetition > 0)) /* 0 divides by nothing: off, as 1 is */
        to->s.repetition = 1;
    to->seed = init->seed;
    to->choice = init->choice;
    to->n_prompt = init->n_prompt;
    to->n_bias = init->n_bias;
    if (init->n_bias > 0)
        memcpy(to->bias, init->bias, init->n_bias * sizeof(*to->bias));
    to->has_penalties =
        to->s.repetition != 1.0f || to->s.frequency != 0.0f || to->s.presence != 0.0f;
    if (to->has_penalties) { /* B2: counts come from the history */
        memset(to->count, 0, d->shape.n_vocab * sizeof(*to->count));
        for (uint32_t h = 0; h < init->n_prompt; h++)
            to->count[init->hist[h]] = LL_CPU_IN_PROMPT;
        for (uint32_t h = init->n_prompt; h < init->n_hist; h++)
            to->count[init->hist[h]]++;
    }
    slot->is_set = true;
    slot->has_sampled = false;
}

static void add_job(struct ll_cpu_step *step, const struct ll_cpu_job *job, uint32_t first_token)
{
    struct ll_cpu_job *to = &step->job[step->n_jobs++];

    *to = *job;
    to->first_logits = step->n_logits;
    for (uint32_t i = 0; i < job->n_logits; i++)
        step->logits_token[step->n_logits++] = first_token + i;
}

/* Lays out what is to be sampled and scored, and where its pairs go: samples first. */
static void take_jobs(struct ll_cpu_step *step, const struct ll_row *row, uint32_t index)
{
    const struct ll_cpu_row *to = &step->row[index];
    const bool samples = (row->flags & LL_ROW_SAMPLE) != 0;
    struct ll_row_out *out = &step->out[index];

    *out = (struct ll_row_out){.slot = row->slot, .ext = step->n_ext};
    if (samples) {
        uint32_t n = (row->flags & LL_ROW_VERIFY) != 0 ? row->n_tokens : 1;
        struct ll_cpu_job job = {
            .row = index, .n_logits = n, .ext = step->n_ext, .is_sampling = true};
        add_job(step, &job, to->first_token + row->n_tokens - n);
        step->n_ext += n * row->n_top;
    }
    if ((row->flags & LL_ROW_PROMPT_LOGPROBS) == 0)
        return;
    for (uint32_t t = 0; t < row->n_tokens - samples; t++) {
        struct ll_cpu_job job = {
            .row = index, .n_logits = 1, .ext = step->n_ext, .target = row->token[t + 1]};
        add_job(step, &job, to->first_token + t);
        step->n_ext += 1u + row->n_prompt_top;
        out->n_ext += 1u + row->n_prompt_top;
    }
}

static void take_row(struct ll_device *d, struct ll_cpu_step *step, const struct ll_row *row)
{
    const uint32_t group = d->shape.n_heads / d->shape.n_kv_heads, index = step->n_rows++;
    const uint32_t span_tokens = group < LL_CPU_QUERIES ? LL_CPU_QUERIES / group : 1;
    struct ll_cpu_slot *slot = &d->slot[row->slot];
    struct ll_cpu_row *to = &step->row[index];

    *to = (struct ll_cpu_row){
        .slot = row->slot,
        .position = row->pos,
        .n_tokens = row->n_tokens,
        .first_token = step->n_tokens,
        .first_page = step->n_pages,
        .flags = row->flags,
        .n_top = row->n_top,
        .n_prompt_top = row->n_prompt_top,
        .takes_last = row->token == NULL,
        .settings = &slot->settings[slot->settings_now],
    };
    for (uint32_t t = 0; t < row->n_tokens; t++) {
        if (row->token != NULL)
            step->token[step->n_tokens + t] = row->token[t];
        step->row_of[step->n_tokens + t] = index;
    }
    /* The position may have moved on by what rows in flight sample. */
    uint64_t end = (uint64_t)row->pos + row->n_tokens + LL_CPU_DEPTH * LL_ROW_TOKENS_MAX;
    to->n_pages = (uint32_t)ll_min_u64(ll_div_ceil(end, LL_PAGE_TOKENS), d->options.pages_per_seq);
    memcpy(step->page + step->n_pages, d->page_table + (size_t)row->slot * d->options.pages_per_seq,
           to->n_pages * sizeof(*step->page));
    for (uint32_t t = 0; t < row->n_tokens; t += span_tokens)
        step->span[step->n_spans++] =
            (struct ll_cpu_span){index, t, (uint32_t)ll_min_u64(span_tokens, row->n_tokens - t)};
    take_jobs(step, row, index);
    step->n_tokens += row->n_tokens;
    step->n_pages += to->n_pages;
    slot->has_sampled |= (row->flags & LL_ROW_SAMPLE) != 0;
}

int ll_cpu_batch_take(struct ll_device *d, const struct ll_batch *batch, struct ll_text *error)
{
    struct ll_cpu_step *step = &d->step[(d->submitted + 1) % LL_CPU_DEPTH];
    int rc = check_batch(d, batch, error);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < batch->n_inits; i++)
        take_init(d, &batch->inits[i]);
    step->weights = d->weights[batch->weights];
    step->n_rows = step->n_tokens = step->n_pages = step->n_spans = 0;
    step->n_jobs = step->n_logits = step->n_ext = 0;
    for (uint32_t i = 0; i < batch->n_rows; i++)
        take_row(d, step, &batch->rows[i]);
    return 0;
}
