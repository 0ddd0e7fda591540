/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/outlet.h - from what a step yielded to events in the clients' rings; credits; the ledger.
 *
 *   O1  a request accepted has a terminal event reserved in its client's ring from then on, and one
 *       for each choice not yet told where it has more than one
 *   O2  a row is planned only if its client's ring has room - reserved >= its most events, and the
 *       request's own window has too; plan books them, publish gives the rest back
 *   O3  so publish never finds a ring full
 *   O4  a client whose indices lie is fenced: nothing more is written, its sequences end as LOST
 *   O5  waking a domain's clients costs the step thread at most 0.5 % of its time, 10 ms at once;
 *       those of one that exceeds that are woken late (debt.h) */
#ifndef RUNTIME_OUTLET_H
#define RUNTIME_OUTLET_H

#include "runtime/attachment.h"
#include "runtime/gate.h"
#include "runtime/mailbox.h"
#include "runtime/sequence.h"
#include "runtime/waiting.h"
#include "shm/stat.h"

struct ll_outlet {
    struct ll_attachment *client[LL_ATTACHMENTS_MAX]; /* by id; NULL: none */
    uint32_t n_ids;                                   /* one more than the largest id there was */
    struct ll_seq_pool *pool;
    struct ll_stats *stats;
    struct ll_mailbox *to_control;
    /* of the step being published: what goes to the statistics at once, not row by row */
    uint64_t gap_ns, n_gaps, n_output, n_events;
    uint32_t n_starved;                   /* requests with starved_ns set */
    struct ll_waiting waiting;            /* requests taken that never ran yet */
    struct ll_debt_clock clock;           /* times the wakes */
    uint32_t touched[LL_ATTACHMENTS_MAX]; /* clients written to and not looked at yet, each once */
    uint32_t n_touched;
};

/* Most events one row may book, so that a row with prompt logprobs always fits a window. */
#define LL_OUTLET_ROW_EVENTS_MAX 64u

void ll_outlet_init(struct ll_outlet *outlet, struct ll_seq_pool *pool, struct ll_stats *stats,
                    struct ll_mailbox *to_control);

/* By intake: a client comes and goes. */
void ll_outlet_attach(struct ll_outlet *outlet, struct ll_attachment *client);
void ll_outlet_detach(struct ll_outlet *outlet, struct ll_attachment *client);

/* The most choices that a request of this client can have: a terminal event and one each fit its
 * ring beside the terminal events of its other slots and a row. >= 1. */
uint32_t ll_outlet_choices_max(const struct ll_attachment *client);
/* A request of n choices begins to wait; does not any more: has_started, or it has ended. */
void ll_outlet_enter_queue(struct ll_outlet *outlet, struct ll_seq *leader, uint32_t n_choices,
                           uint64_t now_ns);
void ll_outlet_leave_queue(struct ll_outlet *outlet, struct ll_seq *leader, uint64_t now_ns,
                           bool has_started);

/* Can one more request of n choices be promised a terminal event, and where n > 1 one a choice?
 * Reserves them. Of more than one choice only if the other slots' can be promised too, and a row.
 */
bool ll_outlet_reserve(struct ll_outlet *outlet, struct ll_attachment *client, uint32_t n);
/* Only the terminal event is wanted now. */
void ll_outlet_unreserve_choices(struct ll_attachment *client, uint32_t n);
/* ACCEPTED (intake, before WAITING) / RUNNING (scheduler, each time it starts to run) into the
 * client-visible slot state; ledger and queue_ns. */
void ll_outlet_phase(struct ll_outlet *outlet, struct ll_seq *seq, enum ll_slot_phase phase,
                     uint64_t now_ns);

/* A request refused at the gate: ERROR event, slot DONE, ledger. The request has a reservation. */
void ll_outlet_refuse(struct ll_outlet *outlet, struct ll_attachment *client, uint32_t slot,
                      uint32_t gen, uint64_t now_ns, const struct ll_refusal *why);

#define LL_OUTLET_TOPS    5u  /* an event */
#define LL_OUTLET_PROMPTS 10u /* logprobs of prompt tokens an event */

/* Most events a row may yield: for the plan's booking. */
static inline uint32_t ll_outlet_row_events(const struct ll_seq *seq, uint32_t n_sampled,
                                            uint32_t n_scored)
{
    uint32_t a_token = 1 + (uint32_t)ll_div_ceil(seq->n_top, LL_OUTLET_TOPS);

    if (n_scored == 0)
        return n_sampled * a_token;
    uint32_t a_score = (uint32_t)ll_div_ceil(seq->n_prompt_top, LL_OUTLET_TOPS);
    return n_sampled * a_token + (uint32_t)ll_div_ceil(n_scored, LL_OUTLET_PROMPTS) +
           n_scored * a_score;
}

/* How many prompt tokens a row may score so that row_events(seq, n_sampled, that) is at most
 * LL_OUTLET_ROW_EVENTS_MAX: the plan cuts rows of a LL_REQ_PROMPT_LOGPROBS sequence to it. >= 1. */
uint32_t ll_outlet_scored_max(const struct ll_seq *seq, uint32_t n_sampled);
/* The next one after a look at what the client has read. */
bool ll_outlet_book_anew(struct ll_outlet *outlet, struct ll_seq *seq, uint32_t events,
                         uint64_t now_ns);
/* O2: books `events` for a row; false: no credit now (starved_ns of the request is set at the first
 * such time and cleared by the next success of any of its choices). */
static inline bool ll_outlet_book(struct ll_outlet *outlet, struct ll_seq *seq, uint32_t events,
                                  uint64_t now_ns)
{
    struct ll_attachment *client = outlet->client[seq->client];
    struct ll_seq *leader = ll_seq_leader(outlet->pool, seq);
    uint64_t used = client->events.prod - client->events.cons + (uint64_t)client->credits_reserved;

    /* Mostly what was known before is enough. */
    if (client->is_fenced || leader->starved_ns != 0 ||
        used + events > client->events.mask + 1ull ||
        leader->n_written + leader->n_booked - leader->n_taken + events > LL_WINDOW_EVENTS)
        return ll_outlet_book_anew(outlet, seq, events, now_ns);
    leader->n_booked += events;
    client->credits_reserved += events;
    return true;
}
/* A request is over: it does not count as starved any more. */
void ll_outlet_unstarve(struct ll_outlet *outlet, struct ll_seq *leader);
/* Takes a booking back: the row did not come about. */
void ll_outlet_unbook(struct ll_outlet *outlet, struct ll_seq *seq, uint32_t events);

/* Writes what a step yielded (n may be 0), gives back n_booked of each yield, then writes the
 * terminal events of sequences in ENDING that are not yet told (at most 32 a call), and moves to
 * FREE those told with n_in_flight 0, no pages and no device slot: the scheduler takes these back
 * before. Called once a turn of the loop, also when no step was polled. */
void ll_outlet_publish(struct ll_outlet *outlet, const struct ll_yield *yields, uint32_t n,
                       uint64_t now_ns);
/* After the next step is submitted: fence once, wake who sleeps, at most 8 here, the rest by mail.
 */
void ll_outlet_wake(struct ll_outlet *outlet);

/* O4: nothing is written to or read from this client any more; its sequences are marked is_lost;
 * control is told by mail. */
void ll_outlet_fence(struct ll_outlet *outlet, struct ll_attachment *client, int32_t code);

/* Everybody is told once (R11): running and waiting sequences end as FAILED with code. */
void ll_outlet_fail_all(struct ll_outlet *outlet, int32_t code, uint64_t now_ns);

/* Ledger and reservations; aborts on a fault. */
void ll_outlet_check(const struct ll_outlet *outlet);

#endif
