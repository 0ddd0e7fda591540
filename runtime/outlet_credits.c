/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/outlet_credits.c - who may be promised events: room in a client's ring, and a request's
 * own window (outlet.h O1, O2). A request's figures are its leader's. */
#include "runtime/outlet.h"

#include "base/assert.h"
#include "base/bits.h"
#include "ll/client.h"

/* Room in the client's ring that nobody has been promised; negative: none, or the client lies. */
static int64_t free_credits(struct ll_outlet *outlet, struct ll_attachment *client, uint32_t wanted)
{
    if (client->is_fenced)
        return -1;
    uint64_t total = (uint64_t)client->credits_reserved + wanted;
    int64_t room = ll_event_writer_room(&client->events, (uint32_t)ll_min_u64(total, UINT32_MAX));
    if (room < 0) {
        ll_outlet_fence(outlet, client, (int32_t)room);
        return -1;
    }
    return room - client->credits_reserved;
}

uint32_t ll_outlet_choices_max(const struct ll_attachment *client)
{
    uint64_t others = client->n_slots + LL_OUTLET_ROW_EVENTS_MAX, ring = client->events.mask + 1ull;

    return ring <= others ? 1 : (uint32_t)ll_min_u64(ring - others, LL_CHOICES_MAX);
}

bool ll_outlet_reserve(struct ll_outlet *outlet, struct ll_attachment *client, uint32_t n)
{
    uint32_t n_events = n > 1 ? 1 + n : 1, n_left = 0;

    if (n > 1) /* else rows might never find room again */
        n_left = client->n_slots - client->n_open - 1 + LL_OUTLET_ROW_EVENTS_MAX;
    if (free_credits(outlet, client, n_events + n_left) < (int64_t)(n_events + n_left))
        return false;
    client->credits_reserved += n_events;
    return true;
}

void ll_outlet_unreserve_choices(struct ll_attachment *client, uint32_t n)
{
    if (n > 1)
        client->credits_reserved -= n;
}

/* Events of this request that may still be written before its reader takes some. seq leads it. */
static uint32_t window_left(struct ll_outlet *outlet, struct ll_attachment *client,
                            struct ll_seq *seq, uint32_t wanted)
{
    uint32_t used = seq->n_written + seq->n_booked - seq->n_taken;

    if (used + wanted <= LL_WINDOW_EVENTS)
        return LL_WINDOW_EVENTS - used;
    /* Relaxed: a count, nothing is read because of it. */
    uint32_t taken = atomic_load_explicit(&client->slot[seq->slot].taken, memory_order_relaxed);
    if (taken - seq->n_taken > seq->n_written - seq->n_taken) { /* more than we ever wrote */
        ll_outlet_fence(outlet, client, LL_E_PROTOCOL);
        return 0;
    }
    seq->n_taken = taken;
    used = seq->n_written + seq->n_booked - taken;
    return used < LL_WINDOW_EVENTS ? LL_WINDOW_EVENTS - used : 0;
}

uint32_t ll_outlet_scored_max(const struct ll_seq *seq, uint32_t n_sampled)
{
    /* 8 sampled tokens with 20 tops are 40 events, so at least one scored token (5) always fits. */
    static_assert(LL_ROW_TOKENS_MAX * (1 + LL_TOP_MAX / LL_OUTLET_TOPS) + 1 +
                          LL_TOP_MAX / LL_OUTLET_TOPS <=
                      LL_OUTLET_ROW_EVENTS_MAX,
                  "one scored token fits beside a full row");
    uint32_t n = 1;

    while (ll_outlet_row_events(seq, n_sampled, n + 1) <= LL_OUTLET_ROW_EVENTS_MAX)
        n++;
    return n;
}

void ll_outlet_unstarve(struct ll_outlet *outlet, struct ll_seq *seq)
{
    outlet->n_starved -= seq->starved_ns != 0;
    seq->starved_ns = 0;
}

bool ll_outlet_book_anew(struct ll_outlet *outlet, struct ll_seq *seq, uint32_t events,
                         uint64_t now_ns)
{
    struct ll_attachment *client = outlet->client[seq->client];
    struct ll_seq *leader = ll_seq_leader(outlet->pool, seq);

    if (free_credits(outlet, client, events) < (int64_t)events ||
        window_left(outlet, client, leader, events) < events) {
        if (leader->starved_ns == 0) {
            leader->starved_ns = now_ns;
            outlet->n_starved++;
        }
        return false;
    }
    ll_outlet_unstarve(outlet, leader);
    leader->n_booked += events;
    client->credits_reserved += events;
    return true;
}

void ll_outlet_unbook(struct ll_outlet *outlet, struct ll_seq *seq, uint32_t events)
{
    struct ll_seq *leader = ll_seq_leader(outlet->pool, seq);

    LL_ASSERT(events <= leader->n_booked);
    leader->n_booked -= events;
    outlet->client[seq->client]->credits_reserved -= events;
}
