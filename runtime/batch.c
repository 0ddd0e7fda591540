/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/batch.h"

#include "base/assert.h"
#include "base/err.h"

#include <stdlib.h>

int ll_batch_maker_init(struct ll_batch_maker *maker, uint32_t n_rows_max)
{
    *maker = (struct ll_batch_maker){.n_rows_max = n_rows_max};
    maker->init = calloc(n_rows_max, sizeof(*maker->init));
    maker->pages = calloc(n_rows_max, sizeof(*maker->pages));
    maker->row = calloc(n_rows_max, sizeof(*maker->row));
    if (maker->init == NULL || maker->pages == NULL || maker->row == NULL) {
        ll_batch_maker_free(maker);
        return LL_ERR(-ENOMEM, "out of memory for batches of %u rows", n_rows_max);
    }
    return 0;
}

void ll_batch_maker_free(struct ll_batch_maker *maker)
{
    free(maker->init);
    free(maker->pages);
    free(maker->row);
    *maker = (struct ll_batch_maker){0};
}

static struct ll_slot_init init_of(const struct ll_seq_pool *pool, const struct ll_seq *seq)
{
    return (struct ll_slot_init){
        .slot = seq->device_slot,
        .adapter = seq->adapter,
        .choice = seq->choice,
        .n_prompt = seq->n_prompt,
        .n_hist = seq->n_tokens,
        .hist = seq->token,
        .seed = seq->seed,
        .s = seq->sampling,
        .bias = ll_seq_leader(pool, seq)->bias,
        .n_bias = seq->n_bias,
    };
}

static struct ll_row row_of(const struct ll_seq *seq, const struct ll_plan_row *plan)
{
    struct ll_row row = {
        .slot = seq->device_slot,
        .pos = plan->pos,
        .n_tokens = plan->n_tokens,
        .token = plan->is_from_device ? NULL : seq->token + plan->pos,
        .flags = plan->flags,
    };

    if (plan->flags & LL_ROW_SAMPLE)
        row.n_top = seq->n_top;
    if (plan->flags & LL_ROW_PROMPT_LOGPROBS)
        row.n_prompt_top = seq->n_prompt_top;
    return row;
}

void ll_batch_build(struct ll_batch_maker *maker, const struct ll_plan *plan,
                    struct ll_seq_pool *pool, uint32_t weights, struct ll_batch *out)
{
    LL_ASSERT(plan->n_rows <= maker->n_rows_max);
    *out = (struct ll_batch){
        .weights = weights,
        .n_rows = plan->n_rows,
        .inits = maker->init,
        .pages = maker->pages,
        .rows = maker->row,
    };
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        struct ll_seq *seq = &pool->seq[plan->row[i].seq];

        if (i + LL_SEQ_AHEAD < plan->n_rows)
            ll_seq_prefetch(&pool->seq[plan->row[i + LL_SEQ_AHEAD].seq]);
        LL_ASSERT(seq->device_slot != LL_NONE);
        if (seq->needs_init) { /* T1 */
            LL_ASSERT(seq->n_pages_sent == 0);
            maker->init[out->n_inits++] = init_of(pool, seq);
            seq->needs_init = false;
        }
        if (seq->n_pages_sent < seq->n_pages) { /* T2 */
            maker->pages[out->n_pages_sets++] = (struct ll_pages_set){
                .slot = seq->device_slot,
                .first = seq->n_pages_sent,
                .n = seq->n_pages - seq->n_pages_sent,
                .page = seq->page + seq->n_pages_sent,
            };
            seq->n_pages_sent = seq->n_pages;
        }
        maker->row[i] = row_of(seq, &plan->row[i]);
    }
}
