/* SPDX-License-Identifier: Apache-2.0 */
#include "client/handle.h"

#include "base/bits.h"

#define ALIGN 64u /* no line holds parts of two requests */

/* Has the runtime copied this block's bytes, or is its request over? */
static bool is_copied(const struct ll_client *client, const struct ll_client_block *block)
{
    const struct ll_client_slot *slot = &client->slot[block->slot];

    /* Relaxed twice: only this thread writes them. */
    if (atomic_load_explicit(&slot->gen, memory_order_relaxed) != block->gen ||
        atomic_load_explicit(&slot->id, memory_order_relaxed) == 0)
        return true; /* the slot is free or used again: the request has ended */
    /* Acquire, pairs with the release of rst.state in ll_outlet_phase() and _refuse(): the runtime
     * has read our bytes before we write over them. */
    uint32_t state =
        atomic_load_explicit(&ll_client_rst(client, block->slot)->state, memory_order_acquire);
    return state >> 8 == block->gen && (state & 0xff) >= LL_PHASE_ACCEPTED;
}

int64_t ll_client_arena_take(struct ll_client *client, uint64_t n_bytes, uint32_t slot,
                             uint32_t gen)
{
    struct ll_client_arena *arena = &client->arena;
    uint64_t need = ll_align_up(n_bytes, ALIGN);

    while (arena->first != arena->next) {
        const struct ll_client_block *oldest = &arena->block[arena->first & (arena->n_blocks - 1)];
        if (!is_copied(client, oldest))
            break;
        arena->head = oldest->end;
        arena->first++;
    }
    if (arena->first == arena->next)
        arena->head = arena->tail = 0; /* empty: the whole arena in one piece */
    if (need > arena->n_bytes || arena->next - arena->first == arena->n_blocks)
        return -1;

    uint64_t start = arena->tail, to_end = arena->n_bytes - start % arena->n_bytes;
    if (to_end < need)
        start += to_end; /* a piece does not wrap: the rest is given up until this block goes */
    if (start + need - arena->head > arena->n_bytes)
        return -1;
    arena->tail = start + need;
    arena->block[arena->next++ & (arena->n_blocks - 1)] =
        (struct ll_client_block){.end = arena->tail, .slot = slot, .gen = gen};
    return (int64_t)(start % arena->n_bytes);
}
