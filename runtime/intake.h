/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/intake.h - from doorbell to WAITING: the only reader of client-written memory.
 *
 * A turn takes at most 16 doorbells a bell and copies at most 64 KiB of prompt; a longer prompt
 * goes on in the next turn, so a 128K prompt never costs a step its time. Every 10 ms (1 ms for
 * domains whose bell is not believed) it compares each client's n_submitted with the doorbells it
 * saw and scans the slots where they differ, and those of one more client in turn.
 *
 *   N1  the word is a hint, the slot is the truth: whatever the op, the slot's state, cancel_gen
 * and stop_choice are looked at, each once N2  a generation is taken at most once: shadow.gen moves
 * forward by one, and only with a reservation for its terminal event N3  work a turn is bounded,
 * whatever clients do: 16 words a bell, 64 KiB copied, 2,048 slots scanned, 256 choices made N4  a
 * client that sends 1,000 malformed words or slots in a second is fenced N5  a domain alone may
 * fill the queue, in requests and in tokens, but for what its tenants leave each other (waiting.h).
 * Among others it may have as much of it as is free: one that asks without end gets half, two a
 * third each, and there is always room for who has nothing waiting (other shares than 50 %:
 * likewise) */
#ifndef RUNTIME_INTAKE_H
#define RUNTIME_INTAKE_H

#include "runtime/attachment.h"
#include "runtime/crashes.h"
#include "runtime/gate.h"
#include "runtime/outlet.h"
#include "runtime/sequence.h"
#include "shm/stat.h"

#define LL_INTAKE_BYTES_TURN    65536u
#define LL_INTAKE_WORDS_TURN    16u
#define LL_INTAKE_SLOTS_TURN    2048u
#define LL_INTAKE_CHOICES_TURN  256u /* sequences made for requests of several choices */
#define LL_INTAKE_SWEEP_NS      10000000ull
#define LL_INTAKE_SWEEP_FAST_NS 1000000ull /* domains whose bell is not believed */
#define LL_INTAKE_SHARE         50u        /* percent; N5 */
#define LL_INTAKE_MALFORMED_MAX 1000u      /* a second */

struct ll_intake {
    struct ll_attachment *client[LL_ATTACHMENTS_MAX]; /* by id; NULL: none */
    uint16_t id[LL_ATTACHMENTS_MAX];                  /* of those there are, dense */
    uint32_t n_clients;
    struct ll_domain *domain[LL_ATTACHMENTS_MAX]; /* bells to poll, dense */
    uint32_t n_domains;
    struct ll_seq_pool *pool;
    struct ll_outlet *outlet;
    struct ll_stats *stats;
    struct ll_gate_limits limits;
    uint32_t waiting_share; /* percent, 1 .. 100; N5 */
    bool is_draining;
    const struct ll_crashes *crashes; /* NULL: none */

    /* The sweep goes through id[] with a cursor, so that many clients take many turns. */
    uint32_t sweep_at;  /* n_clients: none under way */
    bool is_full_sweep; /* of all clients, else of those whose bell is not believed */
    uint32_t n_full_sweeps;
    uint64_t next_sweep_ns, next_fast_ns;
    uint32_t n_choices_left; /* that this turn may still make */
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
/* A SWEEP came: this client's slots are looked at in the next sweep, which begins with the next
 * turn and keeps to its bound (N3), however many ask. */
void ll_intake_sweep(struct ll_intake *intake, struct ll_attachment *attachment);

/* Shadows, lists and reservations agree; aborts on a fault. */
void ll_intake_check(const struct ll_intake *intake);

#endif
