/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/outlet.h - from what a step yielded to events in the clients' rings; credits; the ledger.
 *
 *   O1  a request accepted has a terminal event reserved in its client's ring from then on
 *   O2  a row is planned only if its client's ring has room - reserved >= its most events, and the
 *       request's own window has too; plan books them, publish gives the rest back
 *   O3  so publish never finds a ring full
 *   O4  a client whose indices lie is fenced: nothing more is written, its sequences end as LOST */
#ifndef RUNTIME_OUTLET_H
#define RUNTIME_OUTLET_H

#include "runtime/attachment.h"
#include "runtime/gate.h"
#include "runtime/mailbox.h"
#include "runtime/sequence.h"
#include "shm/stat.h"

struct ll_outlet {
    struct ll_attachment *client[LL_ATTACHMENTS_MAX]; /* by id; NULL: none */
    struct ll_seq_pool *pool;
    struct ll_stats *stats;
    struct ll_mailbox *to_control;
    uint32_t touched[LL_ATTACHMENTS_MAX]; /* clients written to this step */
    uint32_t n_touched;
};

void ll_outlet_init(struct ll_outlet *outlet, struct ll_seq_pool *pool, struct ll_stats *stats,
                    struct ll_mailbox *to_control);

/* Can one more request be promised a terminal event? Reserves it. */
bool ll_outlet_reserve(struct ll_outlet *outlet, struct ll_attachment *client);
/* ACCEPTED / RUNNING into the client-visible slot state. */
void ll_outlet_phase(struct ll_outlet *outlet, const struct ll_seq *seq, enum ll_slot_phase phase);

/* A request refused at the gate: ERROR event, slot DONE, ledger. The request has a reservation. */
void ll_outlet_refuse(struct ll_outlet *outlet, struct ll_attachment *client, uint32_t slot,
                      uint32_t gen, uint64_t now_ns, const struct ll_refusal *why);

/* Most events a row may yield: for the plan's booking. */
uint32_t ll_outlet_row_events(const struct ll_seq *seq, uint32_t n_sampled, uint32_t n_scored);
/* O2: books `events` for a row; false: no credit now (seq->starved_ns is set). */
bool ll_outlet_book(struct ll_outlet *outlet, struct ll_seq *seq, uint32_t events,
                    uint64_t now_ns);

/* Writes what a step yielded, then the terminal events of all sequences in ENDING that are not yet
 * told; frees those with nothing in flight. */
void ll_outlet_publish(struct ll_outlet *outlet, const struct ll_yield *yields, uint32_t n,
                       uint64_t now_ns);
/* After the next step is submitted: fence once, wake who sleeps, at most 8 here, the rest by mail. */
void ll_outlet_wake(struct ll_outlet *outlet);

/* Everybody is told once (R11): running and waiting sequences end as FAILED with code. */
void ll_outlet_fail_all(struct ll_outlet *outlet, int32_t code, uint64_t now_ns);

/* Ledger and reservations; aborts on a fault. */
void ll_outlet_check(const struct ll_outlet *outlet);

#endif
