/* SPDX-License-Identifier: Apache-2.0 */
/* shm/events.h - the event ring: the runtime writes, one client reads.
 *
 *   E1  event p is valid once events[p mod M].seq == (uint32_t)(p + 1); seq is stored last
 *   E2  the writer never overwrites what the reader has not passed: prod - cons_pos <= M. It keeps
 *       a private copy of cons_pos and reloads it only when that says full
 *   E3  a cons_pos outside [prod - M, prod] or one that runs backwards is the client's fault:
 *       LL_E_PROTOCOL, and the caller fences the client
 *   E4  the reader copies 64 bytes out, then moves on; it stores cons_pos every 64 events and
 *       before it sleeps */
#ifndef SHM_EVENTS_H
#define SHM_EVENTS_H

#include "shm/wire.h"

#include <stdbool.h>

struct ll_event_writer {
    struct ll_event *event;              /* shared, [2^log2_events] */
    const _Atomic uint64_t *cons_shared; /* in REQ */
    uint64_t prod;
    uint64_t cons; /* last sound value seen */
    uint32_t mask;
    bool is_broken; /* E3 happened: nothing is written any more */
};

struct ll_event_reader {
    const struct ll_event *event;
    _Atomic uint64_t *cons_shared;
    uint64_t pos;
    uint64_t published; /* last value stored to cons_shared */
    uint32_t mask;
};

/* start: first position, 0 but in tests of the wrap. */
void ll_event_writer_init(struct ll_event_writer *writer, struct ll_event *event,
                          uint32_t log2_events, const _Atomic uint64_t *cons_shared,
                          uint64_t start);
void ll_event_reader_init(struct ll_event_reader *reader, const struct ll_event *event,
                          uint32_t log2_events, _Atomic uint64_t *cons_shared, uint64_t start);

/* Events that fit now; reloads cons_pos when fewer than wanted are known to. LL_E_PROTOCOL: E3. */
int64_t ll_event_writer_room(struct ll_event_writer *writer, uint32_t wanted);

/* Writes one event; everything of *event but seq is copied. The caller has seen room for it. */
void ll_event_write(struct ll_event_writer *writer, const struct ll_event *event);

/* The same in two halves, for who makes thousands a step: the next event's place, to be filled in
 * but for seq (the reader has passed it, E2), NULL where nothing is written any more; then it is
 * made valid. The caller has seen room for it. */
static inline struct ll_event *ll_event_begin(struct ll_event_writer *writer)
{
    return writer->is_broken ? NULL : &writer->event[writer->prod & writer->mask];
}

static inline void ll_event_commit(struct ll_event_writer *writer)
{
    struct ll_event *slot = &writer->event[writer->prod & writer->mask];

    writer->prod++;
    /* Release, pairs with the acquire of seq in ll_event_read: body first, then seq. Without it
     * the reader may copy the body of a lap ago. */
    atomic_store_explicit(&slot->seq, (uint32_t)writer->prod, memory_order_release);
}

/* Copies the next event out; false when there is none. */
bool ll_event_read(struct ll_event_reader *reader, struct ll_event *out);

/* Is there one? For the check between arming and sleeping. */
bool ll_event_ready(const struct ll_event_reader *reader);

/* Stores cons_pos now. */
void ll_event_publish(struct ll_event_reader *reader);

#endif
