/* SPDX-License-Identifier: Apache-2.0 */
/* shm/bell.h - the request ring: many producer processes, one consumer, one CAS a push.
 *
 * A position p counts up for ever; it lies in word[p mod N] with lap L = p / N. A word is
 * EMPTY(L) = L << 32 or FULL(L) = L << 32 | 1 << 31 | payload. The word names a slot in the
 * producer's own memory, so claim and commit are one instruction and a killed producer leaves
 * nothing half done.
 *
 *   B1  tail_hint <= first EMPTY position: it may lag, it never leads
 *   B2  so there are no holes: EMPTY at the consumer's head means all pushed earlier is consumed
 *   B3  a producer that finds the word of tail FULL of this lap, or already of a later lap, helps:
 *       it CASes tail forward and tries again. (Helping past FULL only is not enough: a killed
 *       producer may have filled a word that the consumer has emptied since; tests/shm/
 *       test_bell_explorer.c shows the stuck state.)
 *   B4  the doorbell is a hint, the slot is the truth: a lost word costs a sweep, never a request
 *
 * The lap is 32 bits and wraps; N >= 2 x the slots of the domain, so honest producers never fill
 * it. Every reader of a word compares by equality or by 33-bit signed difference of word >> 31. */
#ifndef SHM_BELL_H
#define SHM_BELL_H

#include "shm/wire.h"

#include <stdbool.h>

struct ll_bell {
    struct ll_bell_head *head; /* shared */
    uint32_t log2_words;       /* private copy: the shared one is never trusted again */
};

/* Bytes a bell of 2^log2_words words needs; log2_words in 5 .. 20. */
size_t ll_bell_bytes(uint32_t log2_words);

/* Makes an empty ring whose first lap is start_lap (tests start near 2^32). */
void ll_bell_init(struct ll_bell *out, void *memory, uint32_t log2_words, uint32_t start_lap);

/* Client side: a view of a mapped ring, checked. LL_E_PROTOCOL. */
int ll_bell_attach(struct ll_bell *out, void *memory, size_t size_bytes, uint32_t log2_words);

/* Rings. payload from ll_word_pack(). false: the ring is full or damaged after 64 retries; the
 * caller's slot already says SUBMITTED, so it asks for a sweep on the socket. Any thread, any
 * process; async-signal-safe. */
bool ll_bell_push(struct ll_bell *bell, uint32_t payload);

/* The consumer: one thread of one process. */
struct ll_bell_reader {
    struct ll_bell bell;
    uint64_t head;       /* private position, lap and index in one */
    uint32_t n_repairs;
};

/* By the ring's maker, before anybody pushes: the head is where tail_hint stands then. */
void ll_bell_reader_init(struct ll_bell_reader *reader, const struct ll_bell *bell);

/* 1 and *payload: a word; 0: empty; LL_E_PROTOCOL: the word at head is neither EMPTY nor FULL of
 * its lap (somebody scribbled): call ll_bell_repair() and sweep the domain. */
int ll_bell_pop(struct ll_bell_reader *reader, uint32_t *payload);

/* Is there nothing to pop? For the look between declaring oneself asleep and sleeping. */
static inline bool ll_bell_is_empty(const struct ll_bell_reader *reader)
{
    uint64_t mask = (1ull << reader->bell.log2_words) - 1;
    uint64_t lap = reader->head >> reader->bell.log2_words; /* the 32-bit lap wraps by the shift */
    /* Acquire, pairs with the release of the CAS in ll_bell_push, as in ll_bell_pop. */
    uint64_t word =
        atomic_load_explicit(&reader->bell.head->word[reader->head & mask], memory_order_acquire);

    return word == lap << 32;
}

/* tail_hint := head. Safe at any time (B1), and the cure for a tail that somebody moved past a hole:
 * without it the words behind the hole would wait for a sweep for ever. Call it when a sweep finds
 * what no doorbell brought. */
void ll_bell_rewind(struct ll_bell_reader *reader);

/* Refills the whole ring EMPTY a lap further on, ring_gen + 1. Words on the way are lost (B4). */
void ll_bell_repair(struct ll_bell_reader *reader);

/* Positions consumed so far: a dead client's id is free again (quarantine) once pop has answered 0
 * or this has advanced by N since the death notice. */
static inline uint64_t ll_bell_position(const struct ll_bell_reader *reader)
{
    return reader->head;
}

#endif
