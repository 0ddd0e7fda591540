/* SPDX-License-Identifier: Apache-2.0 */
/* shm/events.c - the rules stand in events.h. One writer thread, one reader thread at a time. */
#include "shm/events.h"

#include "base/assert.h"
#include "base/err.h"
#include "ll/client.h"

#include <string.h>

#define PUBLISH_EVERY 64u /* one line transfer back to the runtime per 64 that came */
#define BODY_OFFSET   offsetof(struct ll_event, type)
#define BODY_BYTES    (sizeof(struct ll_event) - BODY_OFFSET)

static uint32_t seq_of(uint64_t position)
{
    return (uint32_t)(position + 1);
}

void ll_event_writer_init(struct ll_event_writer *writer, struct ll_event *event,
                          uint32_t log2_events, const _Atomic uint64_t *cons_shared, uint64_t start)
{
    uint64_t n = 1ull << log2_events;

    LL_ASSERT(log2_events < 31);
    /* Every slot must say "not yet": a zeroed ring does for start 0, since position 2^32 - 1, whose
     * seq is 0, comes only after each slot was written. Relaxed: not handed over yet. */
    for (uint64_t i = 0; start != 0 && i < n; i++)
        atomic_store_explicit(&event[(start + i) & (n - 1)].seq, seq_of(start + i - n),
                              memory_order_relaxed);
    *writer = (struct ll_event_writer){.event = event,
                                       .cons_shared = cons_shared,
                                       .prod = start,
                                       .cons = start,
                                       .mask = (uint32_t)(n - 1)};
}

void ll_event_reader_init(struct ll_event_reader *reader, const struct ll_event *event,
                          uint32_t log2_events, _Atomic uint64_t *cons_shared, uint64_t start)
{
    LL_ASSERT(log2_events < 31);
    *reader = (struct ll_event_reader){.event = event,
                                       .cons_shared = cons_shared,
                                       .pos = start,
                                       .published = start,
                                       .mask = (uint32_t)((1ull << log2_events) - 1)};
    /* Relaxed: nothing was read yet that the writer could overwrite. */
    atomic_store_explicit(cons_shared, start, memory_order_relaxed);
}

int64_t ll_event_writer_room(struct ll_event_writer *writer, uint32_t wanted)
{
    uint64_t n = (uint64_t)writer->mask + 1;

    if (writer->is_broken)
        return LL_ERR(LL_E_PROTOCOL, "the client's read position was out of range before");
    if (n - (writer->prod - writer->cons) < wanted) {
        /* Acquire, pairs with the release in ll_event_publish: the reader's copies of the events
         * it has passed are done before we write over them. Read once (W2). */
        uint64_t cons = atomic_load_explicit(writer->cons_shared, memory_order_acquire);
        /* prod - writer->cons <= n always, so one unsigned comparison says both halves of E3:
         * not before the last value seen, not past prod. */
        if (cons - writer->cons > writer->prod - writer->cons) {
            writer->is_broken = true;
            return LL_ERR(LL_E_PROTOCOL, "read position %llu outside %llu .. %llu",
                          (unsigned long long)cons, (unsigned long long)writer->cons,
                          (unsigned long long)writer->prod);
        }
        writer->cons = cons;
    }
    return (int64_t)(n - (writer->prod - writer->cons));
}

void ll_event_write(struct ll_event_writer *writer, const struct ll_event *event)
{
    struct ll_event *slot = &writer->event[writer->prod & writer->mask];

    if (writer->is_broken)
        return;
    LL_ASSERT(writer->prod - writer->cons <= writer->mask); /* room was seen */
    memcpy((char *)slot + BODY_OFFSET, (const char *)event + BODY_OFFSET, BODY_BYTES);
    /* Release, pairs with the acquire of seq in ll_event_read: body first, then seq. Without it
     * the reader may copy the body of a lap ago. */
    atomic_store_explicit(&slot->seq, seq_of(writer->prod), memory_order_release);
    writer->prod++;
}

bool ll_event_ready(const struct ll_event_reader *reader)
{
    const struct ll_event *slot = &reader->event[reader->pos & reader->mask];

    /* Acquire, pairs with the release of seq in ll_event_write. Equality, not order: the slot holds
     * this lap's seq or the last one's, and 32 bits wrap. */
    return atomic_load_explicit(&slot->seq, memory_order_acquire) == seq_of(reader->pos);
}

bool ll_event_read(struct ll_event_reader *reader, struct ll_event *out)
{
    const struct ll_event *slot = &reader->event[reader->pos & reader->mask];

    if (!ll_event_ready(reader))
        return false;
    /* Relaxed: out is private. */
    atomic_store_explicit(&out->seq, seq_of(reader->pos), memory_order_relaxed);
    memcpy((char *)out + BODY_OFFSET, (const char *)slot + BODY_OFFSET, BODY_BYTES);
    reader->pos++;
    if (reader->pos - reader->published >= PUBLISH_EVERY)
        ll_event_publish(reader);
    return true;
}

void ll_event_publish(struct ll_event_reader *reader)
{
    if (reader->published == reader->pos)
        return; /* the line stays where the runtime has it */
    /* Release, pairs with the acquire in ll_event_writer_room: our copies are done before the
     * runtime may write over them. */
    atomic_store_explicit(reader->cons_shared, reader->pos, memory_order_release);
    reader->published = reader->pos;
}
