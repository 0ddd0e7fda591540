/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/heap.h - a binary heap of item numbers below a fixed bound, each with a key of its own;
 * any item can be taken out or get another key in log n steps. Made at start, never grows. */
#ifndef RUNTIME_HEAP_H
#define RUNTIME_HEAP_H

#include <stdbool.h>
#include <stdint.h>

struct ll_heap_key {
    uint64_t hi, lo; /* smaller comes first; hi, then lo */
};

struct ll_heap {
    uint32_t n, n_items;
    uint32_t *item;          /* [n_items] heap order; item[0] is first */
    uint32_t *place;         /* [n_items] of an item in item[]; UINT32_MAX: not in */
    struct ll_heap_key *key; /* [n_items] by item */
};

int ll_heap_init(struct ll_heap *heap, uint32_t n_items);
void ll_heap_free(struct ll_heap *heap);

static inline bool ll_heap_has(const struct ll_heap *heap, uint32_t item)
{
    return heap->place[item] != UINT32_MAX;
}

/* The first item; UINT32_MAX: none. */
static inline uint32_t ll_heap_first(const struct ll_heap *heap)
{
    return heap->n > 0 ? heap->item[0] : UINT32_MAX;
}

/* Puts an item in, or gives one that is in another key. */
void ll_heap_set(struct ll_heap *heap, uint32_t item, struct ll_heap_key key);
/* Takes an item out; nothing where it is not in. */
void ll_heap_remove(struct ll_heap *heap, uint32_t item);

/* Order and places; aborts on a fault. */
void ll_heap_check(const struct ll_heap *heap);

#endif
