/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/heap.h"

#include "base/assert.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

#define NOT_IN UINT32_MAX

int ll_heap_init(struct ll_heap *heap, uint32_t n_items)
{
    *heap = (struct ll_heap){.n_items = n_items};
    heap->item = malloc(n_items * sizeof(*heap->item));
    heap->place = malloc(n_items * sizeof(*heap->place));
    heap->key = calloc(n_items, sizeof(*heap->key));
    if (heap->item == NULL || heap->place == NULL || heap->key == NULL) {
        ll_heap_free(heap);
        return LL_ERR(-ENOMEM, "out of memory for a heap of %u", n_items);
    }
    memset(heap->item, 0xff, n_items * sizeof(*heap->item));
    memset(heap->place, 0xff, n_items * sizeof(*heap->place));
    return 0;
}

void ll_heap_free(struct ll_heap *heap)
{
    free(heap->item);
    free(heap->place);
    free(heap->key);
    *heap = (struct ll_heap){0};
}

static bool is_less(const struct ll_heap *heap, uint32_t a, uint32_t b)
{
    const struct ll_heap_key *ka = &heap->key[a], *kb = &heap->key[b];

    return ka->hi != kb->hi ? ka->hi < kb->hi : ka->lo < kb->lo;
}

static void put(struct ll_heap *heap, uint32_t place, uint32_t item)
{
    heap->item[place] = item;
    heap->place[item] = place;
}

static void sift_up(struct ll_heap *heap, uint32_t place, uint32_t item)
{
    while (place > 0 && is_less(heap, item, heap->item[(place - 1) / 2])) {
        put(heap, place, heap->item[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    put(heap, place, item);
}

static void sift_down(struct ll_heap *heap, uint32_t place, uint32_t item)
{
    for (uint32_t child; (child = 2 * place + 1) < heap->n; place = child) {
        if (child + 1 < heap->n && is_less(heap, heap->item[child + 1], heap->item[child]))
            child++;
        if (!is_less(heap, heap->item[child], item))
            break;
        put(heap, place, heap->item[child]);
    }
    put(heap, place, item);
}

void ll_heap_set(struct ll_heap *heap, uint32_t item, struct ll_heap_key key)
{
    LL_ASSERT(item < heap->n_items);
    heap->key[item] = key;
    if (!ll_heap_has(heap, item))
        heap->place[item] = heap->n++;
    sift_up(heap, heap->place[item], item);
    sift_down(heap, heap->place[item], item);
}

void ll_heap_remove(struct ll_heap *heap, uint32_t item)
{
    uint32_t place = heap->place[item];

    if (place == NOT_IN)
        return;
    heap->place[item] = NOT_IN;
    uint32_t last = heap->item[--heap->n];
    if (last == item)
        return;
    sift_up(heap, place, last);
    sift_down(heap, heap->place[last], last);
}

void ll_heap_check(const struct ll_heap *heap)
{
    uint32_t n_in = 0;

    for (uint32_t i = 0; i < heap->n; i++) {
        LL_ASSERT(heap->item[i] < heap->n_items && heap->place[heap->item[i]] == i);
        LL_ASSERT(i == 0 || !is_less(heap, heap->item[i], heap->item[(i - 1) / 2]));
    }
    for (uint32_t i = 0; i < heap->n_items; i++)
        n_in += heap->place[i] != NOT_IN;
    LL_ASSERT(n_in == heap->n);
}
