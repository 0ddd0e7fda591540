/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/outlet_impl.h - what the outlet's files share: outlet.c (clients, phases, tokens, wakes),
 * outlet_end.c (terminal events), outlet_credits.c (who may be given how many). */
#ifndef RUNTIME_OUTLET_IMPL_H
#define RUNTIME_OUTLET_IMPL_H

#include "base/assert.h"
#include "runtime/outlet.h"

static inline void ll_outlet_touch(struct ll_outlet *outlet, struct ll_attachment *client)
{
    if (!client->is_touched) {
        client->is_touched = true;
        outlet->touched[outlet->n_touched++] = client->id;
    }
}

/* Writes one event; O3 says that it fits. */
static inline void ll_outlet_write(struct ll_outlet *outlet, struct ll_attachment *client,
                                   const struct ll_event *event)
{
    LL_ASSERT(client->events.prod - client->events.cons <= client->events.mask);
    ll_event_write(&client->events, event);
    ll_stat_add(&outlet->stats->events_written, 1);
    ll_outlet_touch(outlet, client);
}

/* Stores the client-visible state of a slot. */
static inline void ll_outlet_store_phase(struct ll_attachment *client, uint32_t slot, uint32_t gen,
                                         enum ll_slot_phase phase)
{
    /* Release, pairs with the client's acquire of ll_rst.state: with ACCEPTED our copy of the arena
     * is complete, with DONE the figures beside it are final. */
    atomic_store_explicit(&client->rst[slot].state, gen << 8 | (uint32_t)phase,
                          memory_order_release);
}

static inline struct ll_event ll_outlet_event(const struct ll_seq *seq, enum ll_event_type type,
                                              uint32_t index, uint64_t now_ns)
{
    return (struct ll_event){
        .type = (uint8_t)type,
        .choice = (uint8_t)seq->choice,
        .slot = (uint16_t)seq->slot,
        .gen = (uint16_t)seq->gen,
        .index = index,
        .t_ns = now_ns,
    };
}

/* outlet_end.c: a sequence is in ENDING; its client has not been told. */
void ll_outlet_tell(struct ll_outlet *outlet, struct ll_seq *seq, uint64_t now_ns);

#endif
