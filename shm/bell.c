/* SPDX-License-Identifier: Apache-2.0 */
/* shm/bell.c - the rules stand in bell.h. tests/shm/test_bell_explorer.c includes this file and
 * walks every interleaving of push_once() and ll_bell_pop(), one atomic operation a step. */
#include "shm/bell.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/err.h"
#include "ll/client.h"

#define LOG2_WORDS_MIN 5u
#define LOG2_WORDS_MAX 20u
#define FULL_BIT       (1ull << 31)
#define PAYLOAD_MASK   (FULL_BIT - 1)

/* Looks at a full ring before giving up: 64 x pause is about 3 us, a consumer that is running has
 * emptied a word by then. */
#define BEHIND_TRIES 64u
/* Lost races before giving up. Each means that another producer advanced, so only a peer that
 * scribbles on tail or words can use them up. */
#define AGAIN_TRIES 4096u

/* B3; the explorer plants the fault "help past FULL of this lap only" here. */
#ifndef BELL_MUST_HELP
#define BELL_MUST_HELP(ahead) ((ahead) > 0)
#endif

/* The 32-bit lap wraps by falling off the top. */
static uint64_t word_empty(uint64_t lap)
{
    return lap << 32;
}

/* How many half laps a word is ahead of EMPTY(lap): 0 it is that, 1 FULL(lap), 2 EMPTY(lap + 1);
 * negative: still an earlier lap. A signed difference of 33 bits, so right across the wrap. */
static int64_t word_ahead(uint64_t word, uint64_t lap)
{
    return (int64_t)(((word >> 31) - 2 * lap) << 31) >> 31;
}

size_t ll_bell_bytes(uint32_t log2_words)
{
    LL_ASSERT(log2_words >= LOG2_WORDS_MIN && log2_words <= LOG2_WORDS_MAX);
    return sizeof(struct ll_bell_head) + (sizeof(uint64_t) << log2_words);
}

void ll_bell_init(struct ll_bell *out, void *memory, uint32_t log2_words, uint32_t start_lap)
{
    struct ll_bell_head *head = memory;

    LL_ASSERT(log2_words >= LOG2_WORDS_MIN && log2_words <= LOG2_WORDS_MAX);
    LL_ASSERT((uintptr_t)memory % LL_LINE_BYTES == 0);
    head->magic = LL_BELL_MAGIC;
    head->log2_words = log2_words;
    /* Relaxed: nobody else has the memory yet; the socket message that hands it over orders. */
    for (uint64_t i = 0; i < 1ull << log2_words; i++)
        atomic_store_explicit(&head->word[i], word_empty(start_lap), memory_order_relaxed);
    atomic_store_explicit(&head->ring_gen, 0, memory_order_relaxed);
    atomic_store_explicit(&head->tail_hint, (uint64_t)start_lap << log2_words,
                          memory_order_relaxed);
    *out = (struct ll_bell){.head = head, .log2_words = log2_words};
}

int ll_bell_attach(struct ll_bell *out, void *memory, size_t size_bytes, uint32_t log2_words)
{
    struct ll_bell_head *head = memory;

    if (log2_words < LOG2_WORDS_MIN || log2_words > LOG2_WORDS_MAX)
        return LL_ERR(LL_E_PROTOCOL, "request ring of 2^%u words: must be 2^%u .. 2^%u", log2_words,
                      LOG2_WORDS_MIN, LOG2_WORDS_MAX);
    if ((uintptr_t)memory % LL_LINE_BYTES != 0 || size_bytes < ll_bell_bytes(log2_words))
        return LL_ERR(LL_E_PROTOCOL, "%zu bytes cannot hold a request ring of 2^%u words",
                      size_bytes, log2_words);
    if (head->magic != LL_BELL_MAGIC || head->log2_words != log2_words)
        return LL_ERR(LL_E_PROTOCOL, "the request ring's head does not say 2^%u words", log2_words);
    *out = (struct ll_bell){.head = head, .log2_words = log2_words};
    return 0;
}

enum push_result {
    PUSHED,
    AGAIN,  /* somebody else was quicker, or we helped */
    BEHIND, /* the word still holds an earlier lap: full, or damaged */
};

/* One attempt; nothing is carried from one to the next, so dying anywhere in here costs at most
 * the own doorbell. */
static enum push_result push_once(struct ll_bell_head *head, uint32_t log2_words, uint32_t payload)
{
    /* Acquire, pairs with the release of tail_hint by whoever moved it there (below, or
     * ll_bell_repair): we then see the words below t as he did. Without it the relaxed load of the
     * word might be a lap old, and a ring with room would look full. */
    uint64_t t = atomic_load_explicit(&head->tail_hint, memory_order_acquire);
    uint64_t lap = t >> log2_words;
    _Atomic uint64_t *word = &head->word[t & ((1ull << log2_words) - 1)];
    /* Relaxed: only its lap is used, and the CAS below decides. Words only go up, so a value that
     * is old errs towards BEHIND, never towards helping too early. */
    uint64_t seen = atomic_load_explicit(word, memory_order_relaxed);
    int64_t ahead = word_ahead(seen, lap);

    if (ahead == 0) {
        uint64_t expected = word_empty(lap);
        /* Release on success, pairs with the acquire of the word in ll_bell_pop: the slot and the
         * arena are seen with the doorbell. Without it Arm may show the consumer an old slot.
         * Relaxed on failure: nothing of what was read is used. */
        if (!atomic_compare_exchange_strong_explicit(word, &expected,
                                                     word_empty(lap) | FULL_BIT | payload,
                                                     memory_order_release, memory_order_relaxed))
            return AGAIN;
    } else if (!BELL_MUST_HELP(ahead)) {
        return BEHIND;
    }
    /* Our own step forward, or help for one who died or sleeps before his. Release, pairs with the
     * acquire of tail_hint above. The result does not matter: on failure another has moved it. */
    atomic_compare_exchange_strong_explicit(&head->tail_hint, &t, t + 1, memory_order_release,
                                            memory_order_relaxed);
    return ahead == 0 ? PUSHED : AGAIN;
}

bool ll_bell_push(struct ll_bell *bell, uint32_t payload)
{
    uint32_t n_again = 0, n_behind = 0;

    while (n_again < AGAIN_TRIES && n_behind < BEHIND_TRIES) {
        switch (push_once(bell->head, bell->log2_words, payload & PAYLOAD_MASK)) {
        case PUSHED:
            return true;
        case AGAIN:
            n_again++;
            break;
        case BEHIND:
            n_behind++;
            ll_cpu_relax();
            break;
        }
    }
    return false;
}

void ll_bell_reader_init(struct ll_bell_reader *reader, const struct ll_bell *bell)
{
    /* Relaxed: called by the maker of the ring, before or while nobody else pushes. A client that
     * scribbles here already gets its ring repaired at the first pop. */
    *reader = (struct ll_bell_reader){
        .bell = *bell,
        .head = atomic_load_explicit(&bell->head->tail_hint, memory_order_relaxed),
    };
}

int ll_bell_pop(struct ll_bell_reader *reader, uint32_t *payload)
{
    struct ll_bell_head *head = reader->bell.head;
    uint32_t log2_words = reader->bell.log2_words;
    uint64_t lap = reader->head >> log2_words;
    _Atomic uint64_t *word = &head->word[reader->head & ((1ull << log2_words) - 1)];
    /* Acquire, pairs with the release of the CAS in push_once: the slot is seen with the word. */
    uint64_t seen = atomic_load_explicit(word, memory_order_acquire);

    if (seen == word_empty(lap))
        return 0;
    if (word_ahead(seen, lap) != 1)
        return LL_ERR(LL_E_PROTOCOL, "request ring: word %#llx at position %#llx",
                      (unsigned long long)seen, (unsigned long long)reader->head);
    /* Release: our read of the word stays before its reuse. The partner is the CAS of push_once
     * one lap on; what it may then overwrite (this word) we hold as a copy already. */
    atomic_store_explicit(word, word_empty(lap + 1), memory_order_release);
    reader->head++;
    *payload = (uint32_t)(seen & PAYLOAD_MASK);
    return 1;
}

void ll_bell_rewind(struct ll_bell_reader *reader)
{
    /* Release, pairs with the acquire of tail_hint in push_once: the words below head are seen as
     * consumed, so they are helped past. */
    atomic_store_explicit(&reader->bell.head->tail_hint, reader->head, memory_order_release);
}

void ll_bell_repair(struct ll_bell_reader *reader)
{
    struct ll_bell_head *head = reader->bell.head;
    uint32_t log2_words = reader->bell.log2_words;
    /* Two laps on: a producer in mid-push expects EMPTY of this lap or the next, so its CAS on a
     * refilled word fails and it starts again from the new tail. */
    uint64_t lap = (reader->head >> log2_words) + 2;

    /* Relaxed words, published by tail_hint: a producer that meets one early only helps (it is
     * ahead of his lap), which moves tail towards where we are about to put it. */
    for (uint64_t i = 0; i < 1ull << log2_words; i++)
        atomic_store_explicit(&head->word[i], word_empty(lap), memory_order_relaxed);
    /* Relaxed: one writer, and a figure for people only. */
    atomic_store_explicit(&head->ring_gen,
                          atomic_load_explicit(&head->ring_gen, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    reader->head = lap << log2_words;
    /* Whoever attaches next checks these; plain, since they change from damage to what they were.
     */
    head->magic = LL_BELL_MAGIC;
    head->log2_words = log2_words;
    /* Release, pairs with the acquire of tail_hint in push_once: words first, then tail. Low
     * compared with what helpers made of it meanwhile is safe (B1). */
    atomic_store_explicit(&head->tail_hint, reader->head, memory_order_release);
    reader->n_repairs++;
}
