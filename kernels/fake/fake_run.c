/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/fake/fake_run.c - what a step of the fake device does when it is due: rows, samples,
 * scores, page copies. */
#include "kernels/fake/fake_impl.h"

#include "base/bits.h"
#include "ll/client.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int ll_fake_fail(struct ll_device *device, struct ll_text *error, int code, const char *format, ...)
{
    va_list list;

    va_start(list, format);
    vsnprintf(device->failed_text.s, sizeof(device->failed_text.s), format, list);
    va_end(list);
    device->failed = code;
    if (error != NULL)
        *error = device->failed_text;
    return code;
}

static uint64_t sum_page(const struct ll_device *device, uint32_t page, uint32_t entry,
                         uint32_t n_tokens)
{
    const uint32_t *cell = device->page + (size_t)page * LL_PAGE_TOKENS;
    uint64_t sum = 0;

    for (uint32_t i = 0; i < n_tokens; i++)
        sum += ll_fake_mix(cell[i], entry * LL_PAGE_TOKENS + i);
    return sum;
}

/* Sum over positions [0, n_tokens) of a slot, read through its page table (F1). */
static uint64_t read_context(struct ll_device *device, uint32_t slot_index, uint32_t n_tokens)
{
    struct ll_fake_slot *slot = &device->slot[slot_index];
    const uint32_t *table = ll_fake_table(device, slot_index);
    uint64_t *kept = device->page_sum + (size_t)slot_index * device->options.pages_per_seq;
    uint32_t n_full = n_tokens / LL_PAGE_TOKENS, rest = n_tokens % LL_PAGE_TOKENS;
    uint64_t sum = rest != 0 ? sum_page(device, table[n_full], n_full, rest) : 0;

    if (device->settings.verify) {
        for (uint32_t i = 0; i < n_full; i++)
            sum += sum_page(device, table[i], i, LL_PAGE_TOKENS);
        return sum;
    }
    for (; slot->n_summed < n_full; slot->n_summed++)
        kept[slot->n_summed] =
            sum_page(device, table[slot->n_summed], slot->n_summed, LL_PAGE_TOKENS);
    for (uint32_t k = 0; k < 2 && n_full > 0; k++) {
        slot->next_read = (slot->next_read + 1) % n_full;
        kept[slot->next_read] =
            sum_page(device, table[slot->next_read], slot->next_read, LL_PAGE_TOKENS);
    }
    for (uint32_t i = 0; i < n_full; i++)
        sum += kept[i];
    return sum;
}

void ll_fake_apply_inits(struct ll_device *device, const struct ll_fake_batch *batch)
{
    for (uint32_t i = 0; i < batch->n_inits; i++) {
        const struct ll_slot_init *init = &batch->init[i];
        device->slot[init->slot] = (struct ll_fake_slot){
            .is_used = true,
            .n_prompt = init->n_prompt,
            .choice = init->choice,
            .seed = init->seed,
            .sampling = init->s,
            .n_hist = init->n_hist,
            .hist_context = batch->hist_context[i],
        };
        memset(ll_fake_table(device, init->slot), 0xff,
               device->options.pages_per_seq * sizeof(uint32_t));
    }
    for (uint32_t i = 0; i < batch->n_sets; i++) {
        const struct ll_pages_set *set = &batch->set[i];
        struct ll_fake_slot *slot = &device->slot[set->slot];
        memcpy(ll_fake_table(device, set->slot) + set->first, set->page, set->n * sizeof(uint32_t));
        slot->n_summed = (uint32_t)ll_min_u64(slot->n_summed, set->first);
        slot->next_read = 0;
    }
}

static void put_ext(struct ll_fake_batch *batch, struct ll_row_out *out, struct ll_ext pair)
{
    batch->ext[batch->n_ext++] = pair;
    out->n_ext++;
}

static void sample_row(struct ll_device *device, struct ll_fake_batch *batch,
                       const struct ll_row *row, struct ll_row_out *out, uint64_t context)
{
    struct ll_fake_slot *slot = &device->slot[row->slot];
    struct ll_fake_rules rules = device->rules;
    uint32_t position = row->pos + row->n_tokens;

    rules.weights = batch->generation;
    out->n_tokens = 1;
    out->token[0] = ll_fake_sample(&rules, context, slot->seed, slot->choice, position,
                                   &slot->sampling, position - slot->n_prompt);
    out->logprob[0] = ll_fake_logprob(context, out->token[0]);
    slot->last_id = out->token[0];
    slot->last_position = position;
    slot->has_last = true;
    for (uint32_t k = 0; k < row->n_top; k++)
        put_ext(batch, out, ll_fake_top(&device->rules, context, k));
}

/* F3. A page is of the weights that wrote its first token: the others are checked against it. */
static int check_generations(struct ll_device *device, const struct ll_fake_batch *batch,
                             uint32_t index)
{
    const struct ll_row *row = &batch->row[index];
    const uint32_t *table = ll_fake_table(device, row->slot);
    uint32_t first_own = (uint32_t)ll_div_ceil(row->pos, LL_PAGE_TOKENS),
             end = (uint32_t)ll_div_ceil(row->pos + row->n_tokens, LL_PAGE_TOKENS);

    for (uint32_t i = first_own; i < end; i++)
        device->page_generation[table[i]] = batch->generation;
    for (uint32_t i = 0; i < first_own; i++)
        if (table[i] != LL_FAKE_NO_PAGE && device->page_generation[table[i]] != batch->generation)
            return ll_fake_fail(device, NULL, LL_E_INVAL,
                                "fake: row %u: slot %u reads a page for positions from %u that "
                                "weights %u wrote, not %u",
                                index, row->slot, i * LL_PAGE_TOKENS,
                                device->page_generation[table[i]], batch->generation);
    return 0;
}

/* Scores the row's own positions: the target of position p is the id at p + 1. */
static void score_row(struct ll_device *device, struct ll_fake_batch *batch,
                      const struct ll_row *row, struct ll_row_out *out)
{
    const uint32_t *table = ll_fake_table(device, row->slot);
    uint64_t context = read_context(device, row->slot, row->pos);
    uint32_t n_scored = row->n_tokens - ((row->flags & LL_ROW_SAMPLE) != 0);

    for (uint32_t i = 0; i < n_scored; i++) {
        uint32_t at = row->pos + i;
        uint32_t page = table[at / LL_PAGE_TOKENS];
        context +=
            ll_fake_mix(device->page[(size_t)page * LL_PAGE_TOKENS + at % LL_PAGE_TOKENS], at);
        struct ll_ext pair = {row->token[i + 1], ll_fake_logprob(context, row->token[i + 1])};
        put_ext(batch, out, pair);
        for (uint32_t k = 0; k < row->n_prompt_top; k++)
            put_ext(batch, out, ll_fake_top(&device->rules, context, k));
    }
}

int ll_fake_run_row(struct ll_device *device, struct ll_fake_batch *batch, uint32_t index)
{
    const struct ll_row *row = &batch->row[index];
    struct ll_row_out *out = &batch->out[index];
    struct ll_fake_slot *slot = &device->slot[row->slot];
    const uint32_t *table = ll_fake_table(device, row->slot);
    uint32_t n_after = row->pos + row->n_tokens;

    *out = (struct ll_row_out){.slot = row->slot, .ext = batch->n_ext};
    if (!slot->is_used)
        return ll_fake_fail(device, NULL, LL_E_INVAL, "fake: row %u: slot %u was never made", index,
                            row->slot);
    for (uint32_t i = row->pos / LL_PAGE_TOKENS; i <= (n_after - 1) / LL_PAGE_TOKENS; i++)
        if (table[i] == LL_FAKE_NO_PAGE)
            return ll_fake_fail(device, NULL, LL_E_INVAL,
                                "fake: row %u: slot %u has no page for positions from %u", index,
                                row->slot, i * LL_PAGE_TOKENS);
    if (row->token == NULL && (!slot->has_last || slot->last_position != row->pos))
        return ll_fake_fail(device, NULL, LL_E_INVAL,
                            "fake: row %u: run-ahead at %u, but slot %u sampled for %u", index,
                            row->pos, row->slot, slot->last_position);
    if (check_generations(device, batch, index) < 0)
        return device->failed;
    for (uint32_t i = 0; i < row->n_tokens; i++) {
        uint32_t at = row->pos + i;
        device->page[(size_t)table[at / LL_PAGE_TOKENS] * LL_PAGE_TOKENS + at % LL_PAGE_TOKENS] =
            row->token == NULL ? slot->last_id : row->token[i];
    }
    /* A page written again must be summed again (verify=0). */
    slot->n_summed = (uint32_t)ll_min_u64(slot->n_summed, row->pos / LL_PAGE_TOKENS);

    if (row->flags & LL_ROW_SAMPLE) {
        for (uint32_t i = 0; i * LL_PAGE_TOKENS < n_after; i++)
            if (table[i] == LL_FAKE_NO_PAGE)
                return ll_fake_fail(device, NULL, LL_E_INVAL,
                                    "fake: row %u: slot %u attends to %u, where it has no page",
                                    index, row->slot, i * LL_PAGE_TOKENS);
        uint64_t context = read_context(device, row->slot, n_after);
        if (slot->n_hist != 0 && n_after != slot->n_hist)
            return ll_fake_fail(device, NULL, LL_E_INVAL,
                                "fake: row %u: slot %u samples after %u ids, its history has %u",
                                index, row->slot, n_after, slot->n_hist);
        if (slot->n_hist != 0 && context != slot->hist_context)
            return ll_fake_fail(device, NULL, LL_E_INVAL,
                                "fake: row %u: the pages of slot %u do not hold its history", index,
                                row->slot);
        slot->n_hist = 0;
        sample_row(device, batch, row, out, context);
    }
    if (row->flags & LL_ROW_PROMPT_LOGPROBS)
        score_row(device, batch, row, out);
    if ((uint64_t)batch->ticket == device->settings.nan_at && index == 0)
        out->status = LL_ROW_NAN;
    return 0;
}

void ll_fake_run_copies(struct ll_device *device)
{
    const size_t n = LL_PAGE_TOKENS;

    while (device->n_copied < device->n_copies &&
           device->copy_after[device->n_copied % LL_FAKE_COPIES_MAX] <= device->n_done) {
        const struct ll_copy *copy = &device->copy[device->n_copied % LL_FAKE_COPIES_MAX];
        if (copy->kind == LL_COPY_D2H) {
            memcpy(device->host_page + copy->dst * n, device->page + copy->src * n, n * 4);
            device->host_generation[copy->dst] = device->page_generation[copy->src];
        } else {
            memcpy(device->page + copy->dst * n, device->host_page + copy->src * n, n * 4);
            device->page_generation[copy->dst] = device->host_generation[copy->src];
        }
        device->n_copied++;
    }
}
