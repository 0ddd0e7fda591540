/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/encode.c - text to ids: special tokens, pieces, merges.
 *
 * A piece that is in the vocabulary is its token; else its bytes are merged, always the pair of
 * lowest rank, the leftmost of equals. Short pieces (nearly all) scan an array on the stack, long
 * ones use a heap: n log n whatever the text. */
#include "client/text/tokenizer.h"

#include "base/assert.h"
#include "base/err.h"
#include "client/text/split.h"
#include "client/text/utf8.h"

#include <stdlib.h>
#include <string.h>

#define SHORT_BYTES                                                                                \
    64 /* measured in bench_tokenizer: where scanning and the heap cost the same                   \
        */
#define NO_RANK UINT32_MAX

struct output {
    uint32_t *ids;
    size_t n_max;
    int64_t n;
};

static inline void put(struct output *out, uint32_t id)
{
    if ((size_t)out->n < out->n_max)
        out->ids[out->n] = id;
    out->n++;
}

/* The token with exactly these bytes. */
static uint32_t find_piece(const struct ll_tokenizer *t, const char *bytes, size_t n_bytes)
{
    uint32_t tag = ll_image_hash(bytes, n_bytes), mask = t->piece_mask;

    for (uint32_t i = tag & mask;; i = (i + 1) & mask) {
        struct ll_image_piece slot = t->pieces[i];
        if (slot.id == LL_IMAGE_NO_ID)
            return LL_IMAGE_NO_ID;
        if (slot.tag != tag)
            continue;
        uint32_t n;
        const char *text = ll_tokenizer_text(t, slot.id, &n);
        if (n == n_bytes && memcmp(text, bytes, n) == 0)
            return slot.id;
    }
}

static uint32_t find_rank(const struct ll_tokenizer *t, uint32_t left, uint32_t right)
{
    uint64_t pair = ll_image_pair(left, right);

    for (uint32_t i = ll_image_pair_hash(pair) & t->merge_mask;; i = (i + 1) & t->merge_mask) {
        uint64_t slot = t->merges[i];
        if (slot == 0)
            return NO_RANK;
        if (slot >> 24 == pair >> 24)
            return (uint32_t)(slot & 0xffffff) - 1;
    }
}

/* ---- short pieces -------------------------------------------------------------------------*/
static int64_t merge_short(const struct ll_tokenizer *t, const char *piece, uint32_t n,
                           uint64_t *n_steps, uint32_t *ids, size_t n_max)
{
    uint32_t id[SHORT_BYTES], rank[SHORT_BYTES]; /* rank[i]: of the pair (i, i + 1) */

    for (uint32_t i = 0; i < n; i++)
        id[i] = t->byte_id[(uint8_t)piece[i]];
    for (uint32_t i = 0; i + 1 < n; i++)
        rank[i] = find_rank(t, id[i], id[i + 1]);
    while (n > 1) {
        uint32_t best = 0;
        for (uint32_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        *n_steps += n;
        if (rank[best] == NO_RANK)
            break;
        id[best] = t->merged[rank[best]];
        n--;
        memmove(id + best + 1, id + best + 2, (n - best - 1) * sizeof(*id));
        memmove(rank + best, rank + best + 1, (n - best - 1) * sizeof(*rank));
        if (best + 1 < n)
            rank[best] = find_rank(t, id[best], id[best + 1]);
        if (best > 0)
            rank[best - 1] = find_rank(t, id[best - 1], id[best]);
    }
    for (uint32_t i = 0; i < n && i < n_max; i++)
        ids[i] = id[i];
    return n;
}

/* ---- long pieces --------------------------------------------------------------------------*/
/* A symbol: a run of bytes merged so far, named by the place of its first byte. */
struct symbol {
    uint32_t id, rank; /* rank: of the pair with the next symbol; NO_RANK: none */
    uint32_t prev, next;
};

#define NO_PLACE UINT32_MAX

/* Min-heap of rank << 32 | place, so that of equal ranks the leftmost comes first; four children a
 * node, since half the levels are half the cache misses. Entries whose symbol's rank has changed
 * since are stale and dropped when they come up: a pair only ever grows, so it never gets an old
 * rank back while the old entry still means something else. */
struct heap {
    uint64_t *entry;
    uint32_t n;
    uint64_t n_steps;
};

static void sift_down(struct heap *heap, uint32_t at)
{
    uint64_t *entry = heap->entry, moving = entry[at];

    for (;;) {
        uint32_t first = 4 * at + 1, end = first + 4 < heap->n ? first + 4 : heap->n, least = first;
        if (first >= heap->n)
            break;
        for (uint32_t i = first + 1; i < end; i++)
            least = entry[i] < entry[least] ? i : least;
        heap->n_steps++;
        if (entry[least] >= moving)
            break;
        entry[at] = entry[least];
        at = least;
    }
    entry[at] = moving;
}

static void heap_push(struct heap *heap, uint32_t rank, uint32_t place)
{
    uint64_t moving = (uint64_t)rank << 32 | place;
    uint32_t at = heap->n++;

    while (at > 0 && heap->entry[(at - 1) / 4] > moving) {
        heap->entry[at] = heap->entry[(at - 1) / 4];
        at = (at - 1) / 4;
        heap->n_steps++;
    }
    heap->entry[at] = moving;
}

static uint64_t heap_pop(struct heap *heap)
{
    uint64_t top = heap->entry[0];

    heap->entry[0] = heap->entry[--heap->n];
    if (heap->n > 0)
        sift_down(heap, 0);
    return top;
}

static void rank_pair(const struct ll_tokenizer *t, struct symbol *symbol, struct heap *heap,
                      uint32_t place)
{
    struct symbol *left = &symbol[place];

    left->rank = left->next == NO_PLACE ? NO_RANK : find_rank(t, left->id, symbol[left->next].id);
    if (left->rank != NO_RANK)
        heap_push(heap, left->rank, place);
}

static int64_t merge_long(const struct ll_tokenizer *t, const char *piece, uint32_t n, void *block,
                          uint64_t *n_steps, uint32_t *ids, size_t n_max)
{
    /* Each merge takes at least one entry and adds at most two: never more than 2 n. */
    struct symbol *symbol = block;
    struct heap heap = {.entry = (uint64_t *)(symbol + n)};

    for (uint32_t i = 0; i < n; i++)
        symbol[i] = (struct symbol){t->byte_id[(uint8_t)piece[i]], NO_RANK, i - 1, i + 1};
    symbol[n - 1].next = NO_PLACE;
    for (uint32_t i = 0; i + 1 < n; i++) {
        symbol[i].rank = find_rank(t, symbol[i].id, symbol[i + 1].id);
        if (symbol[i].rank != NO_RANK)
            heap.entry[heap.n++] = (uint64_t)symbol[i].rank << 32 | i;
    }
    for (uint32_t i = heap.n / 4 + 1; i-- > 0 && heap.n > 0;)
        sift_down(&heap, i);

    while (heap.n > 0) {
        uint64_t top = heap_pop(&heap);
        uint32_t place = (uint32_t)top;
        struct symbol *left = &symbol[place];
        if (left->rank != top >> 32)
            continue;
        struct symbol *right = &symbol[left->next];
        left->id = t->merged[left->rank];
        left->next = right->next;
        right->rank = NO_RANK; /* swallowed: its entries are stale */
        if (left->next != NO_PLACE)
            symbol[left->next].prev = place;
        rank_pair(t, symbol, &heap, place);
        if (left->prev != NO_PLACE)
            rank_pair(t, symbol, &heap, left->prev);
    }
    *n_steps += heap.n_steps + n;

    int64_t n_ids = 0;
    for (uint32_t at = 0; at != NO_PLACE; at = symbol[at].next, n_ids++)
        if ((size_t)n_ids < n_max)
            ids[n_ids] = symbol[at].id;
    return n_ids;
}

int64_t ll_merge_piece(const struct ll_tokenizer *t, const char *piece, size_t n_bytes,
                       struct ll_merge_scratch *scratch, uint32_t *ids, size_t n_max)
{
    if (n_bytes <= SHORT_BYTES)
        return merge_short(t, piece, (uint32_t)n_bytes, &scratch->n_steps, ids, n_max);
    if (n_bytes >= UINT32_MAX / 2)
        return LL_ERR(-ENOMEM, "a run of %zu bytes without a break is too long", n_bytes);
    size_t wanted = n_bytes * (sizeof(struct symbol) + 2 * sizeof(uint64_t));
    if (scratch->n_bytes < wanted) {
        free(scratch->block); /* what it holds is not needed any more */
        scratch->n_bytes = 0;
        scratch->block = malloc(wanted);
        if (scratch->block == NULL)
            return LL_ERRNO("encoding a run of %zu bytes", n_bytes);
        scratch->n_bytes = wanted;
    }
    return merge_long(t, piece, (uint32_t)n_bytes, scratch->block, &scratch->n_steps, ids, n_max);
}

/* ---- text ---------------------------------------------------------------------------------*/
static int encode_plain(const struct ll_tokenizer *t, const char *text, size_t n_bytes,
                        struct ll_merge_scratch *scratch, struct output *out)
{
    for (size_t at = 0; at < n_bytes;) {
        size_t n = ll_split_piece(text + at, n_bytes - at);
        const char *piece = text + at;
        at += n;
        if (n == 1) {
            put(out, t->byte_id[(uint8_t)piece[0]]);
            continue;
        }
        if (t->takes_whole_piece && n <= t->piece_bytes_max) {
            uint32_t id = find_piece(t, piece, n);
            if (id != LL_IMAGE_NO_ID) {
                put(out, id);
                continue;
            }
        }
        size_t room = (size_t)out->n < out->n_max ? out->n_max - (size_t)out->n : 0;
        int64_t n_ids =
            ll_merge_piece(t, piece, n, scratch, room > 0 ? out->ids + out->n : NULL, room);
        if (n_ids < 0)
            return (int)n_ids;
        out->n += n_ids;
    }
    return 0;
}

/* The next special token at or after `at`; n_bytes when there is none. */
static size_t next_special(const struct ll_tokenizer *t, const char *text, size_t n_bytes,
                           size_t at, uint32_t *id, size_t *n_matched)
{
    for (; at < n_bytes; at++) {
        uint8_t byte = (uint8_t)text[at];
        if ((t->special_first[byte / 64] >> byte % 64 & 1) == 0)
            continue;
        *id = ll_tokenizer_match_special(t, text + at, n_bytes - at, n_matched);
        if (*id != LL_IMAGE_NO_ID)
            return at;
    }
    return n_bytes;
}

int64_t ll_encode(const struct ll_tokenizer *tokenizer, const char *text, size_t n_bytes,
                  uint32_t flags, uint32_t *ids, size_t n_max)
{
    struct output out = {.ids = ids, .n_max = n_max};
    struct ll_merge_scratch scratch = {0};
    int rc = 0;

    if ((flags & LL_ENCODE_BOS) != 0 && tokenizer->bos != LL_IMAGE_NO_ID)
        put(&out, tokenizer->bos);
    for (size_t at = 0; at < n_bytes && rc == 0;) {
        uint32_t id = LL_IMAGE_NO_ID;
        size_t n_matched = 0, end = n_bytes;
        if ((flags & LL_ENCODE_SPECIAL) != 0)
            end = next_special(tokenizer, text, n_bytes, at, &id, &n_matched);
        rc = encode_plain(tokenizer, text + at, end - at, &scratch, &out);
        if (end < n_bytes)
            put(&out, id);
        at = end + n_matched;
    }
    free(scratch.block);
    return rc < 0 ? rc : out.n;
}
