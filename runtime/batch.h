/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/batch.h - a plan put into the backend's words: inits, page table deltas, rows.
 *
 * All arrays are made at start for the largest plan. The batch points into the sequence pool, which
 * is sound because submit copies its arguments (backend.h B1).
 *
 *   T1  a sequence is named in inits once, before its first row after it got its device slot
 *   T2  the device's page table equals seq->page[0 .. n_pages_sent) after the batch */
#ifndef RUNTIME_BATCH_H
#define RUNTIME_BATCH_H

#include "runtime/scheduler.h"

struct ll_batch_maker {
    struct ll_slot_init *init;  /* [n_rows_max] */
    struct ll_pages_set *pages; /* [n_rows_max] */
    struct ll_row *row;         /* [n_rows_max] */
    uint32_t n_rows_max;
};

int ll_batch_maker_init(struct ll_batch_maker *maker, uint32_t n_rows_max);
void ll_batch_maker_free(struct ll_batch_maker *maker);

/* Fills *out; valid until the next call. Notes in the sequences what the device knows from now on,
 * so the batch must be submitted. */
void ll_batch_build(struct ll_batch_maker *maker, const struct ll_plan *plan,
                    struct ll_seq_pool *pool, uint32_t weights, struct ll_batch *out);

#endif
