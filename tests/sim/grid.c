/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/grid.c - Z6, seen from the device: with a grid, how a position comes about depends on
 * its request alone.
 *
 * Each row is held against the grid when it is submitted. Each page knows whether rows of whole
 * cells wrote all of it; only such a page may come from the prefix cache or from another choice,
 * whichever ways it went, through host memory too. */
#include "tests/sim/sim.h"

static const struct ll_seq *sequence_of(const struct sim_world *w, uint32_t slot)
{
    const struct ll_seq_pool *pool = &w->engine.pool;

    for (uint32_t i = 0; i < pool->n; i++)
        if (pool->seq[i].device_slot == slot)
            return &pool->seq[i];
    sim_fail(w, "device slot %u is nobody's", slot);
}

static void check_row(const struct sim_world *w, const struct ll_seq *seq, const struct ll_row *row)
{
    const uint32_t end = row->pos + row->n_tokens, n_grid = w->k.n_grid;

    if (row->pos >= seq->n_prompt) {
        SIM_CHECK(w, row->n_tokens == 1, "%u sampled tokens in a row at %u", row->n_tokens,
                  row->pos);
        return;
    }
    SIM_CHECK(w, end <= seq->n_prompt, "a row of prompt and of sampled tokens: %u to %u of %u",
              row->pos, end, seq->n_prompt);
    if ((seq->flags & LL_REQ_PROMPT_LOGPROBS) != 0)
        SIM_CHECK(w, end == seq->n_prompt || row->pos % row->n_tokens == 0,
                  "scored positions %u to %u are no cell", row->pos, end);
    else
        SIM_CHECK(w, row->pos % n_grid == 0 && end == ll_min_u64(row->pos + n_grid, seq->n_prompt),
                  "positions %u to %u of %u are no cell of %u", row->pos, end, seq->n_prompt,
                  n_grid);
}

void sim_grid_submit(void *context, const struct ll_batch *batch)
{
    struct sim_world *w = context;

    for (uint32_t i = 0; i < batch->n_rows; i++) {
        const struct ll_row *row = &batch->rows[i];
        const struct ll_seq *seq = sequence_of(w, row->slot);
        const bool is_whole =
            row->n_tokens == w->k.n_grid && (seq->flags & LL_REQ_PROMPT_LOGPROBS) == 0;
        check_row(w, seq, row);
        for (uint32_t p = 0; p < seq->n_attached; p++)
            SIM_CHECK(w, w->device.cell[seq->page[p]],
                      "page %u of a sequence is shared, but not of a whole cell", p);
        for (uint32_t at = row->pos; at < row->pos + row->n_tokens; at++)
            w->device.cell[seq->page[at / LL_PAGE_TOKENS]] = is_whole;
    }
}

void sim_grid_copy(void *context, const struct ll_copy *copy)
{
    struct sim_world *w = context;

    if (copy->kind == LL_COPY_D2H)
        w->device.host_cell[copy->dst] = w->device.cell[copy->src];
    else
        w->device.cell[copy->dst] = w->device.host_cell[copy->src];
}
