/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/intake.h - from doorbell to WAITING: the only reader of client-written memory.
 *
 * A turn takes at most 32 doorbells a bell and copies at most 64 KiB of prompt; a longer prompt goes
 * on in the next turn, so a 128K prompt never costs a step its time. Every 10 ms (1 ms for domains
 * whose bell is not believed) it compares each client's n_submitted with the doorbells it saw and
 * scans the slots where they differ. */
#ifndef RUNTIME_INTAKE_H
#define RUNTIME_INTAKE_H

#include "runtime/attachment.h"
#include "runtime/gate.h"
#include "runtime/outlet.h"
#include "runtime/sequence.h"
#include "shm/stat.h"

#define LL_INTAKE_BYTES_TURN 65536u

struct ll_intake {
    struct ll_attachment *client[LL_ATTACHMENTS_MAX]; /* by id; NULL: none */
    struct ll_domain *domain[LL_ATTACHMENTS_MAX];     /* shared bells to poll; NULL: none */
    uint32_t n_clients;
    struct ll_seq_pool *pool;
    struct ll_outlet *outlet;
    struct ll_stats *stats;
    struct ll_gate_limits limits;
    uint32_t n_waiting_max;  /* requests */
    uint64_t tokens_waiting_max;
    bool is_draining;
    uint64_t next_sweep_ns;
};

void ll_intake_init(struct ll_intake *intake, struct ll_seq_pool *pool, struct ll_outlet *outlet,
                    struct ll_stats *stats, const struct ll_gate_limits *limits);

/* One turn; returns the work done (words, slots, copied pieces), 0: nothing to do. New requests end
 * in state WAITING; cancels and stops set the sequence's marks. */
uint32_t ll_intake_poll(struct ll_intake *intake, uint64_t now_ns);

/* Is there nothing to see on any bell? For the look between arming and sleeping. */
bool ll_intake_is_quiet(const struct ll_intake *intake);

void ll_intake_attach(struct ll_intake *intake, struct ll_attachment *attachment);
/* LL_MAIL_DETACH came: the client's sequences end as LOST (has_died, the mail's value) or CANCELLED
 * (it said BYE); true once everything is freed and the quarantine (A3) is over, so that DETACHED
 * may be sent. Call again until then, each turn of the loop; has_died counts the first time. */
bool ll_intake_detach(struct ll_intake *intake, struct ll_attachment *attachment, bool has_died);
void ll_intake_sweep(struct ll_intake *intake, struct ll_attachment *attachment, uint64_t now_ns);

/* Shadows, lists and reservations agree; aborts on a fault. */
void ll_intake_check(const struct ll_intake *intake);

#endif
