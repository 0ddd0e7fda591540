/* SPDX-License-Identifier: Apache-2.0 */
#include "client/handle.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "shm/wait.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Empty polls between two looks at the clock: a look costs as much as a few of them. */
#define POLLS_A_LOOK 8u

/* ---- from the ring into the queues ------------------------------------------------------------*/

static bool is_terminal(const struct ll_event *event)
{
    return event->type == LL_EV_FINISH || event->type == LL_EV_ERROR;
}

static void list_slot(struct ll_client *client, uint32_t index)
{
    struct ll_client_slot *slot = &client->slot[index];

    if (slot->is_listed || slot->is_held)
        return;
    slot->is_listed = true;
    client->ready[client->ready_tail++ % client->n_ready_max] = (uint16_t)index;
}

/* Puts a copy behind the slot's queue and the slot on the ready list. */
static void enqueue(struct ll_client *client, uint32_t index, const struct ll_event *event)
{
    struct ll_client_slot *slot = &client->slot[index];

    memcpy(&slot->queue[slot->tail++ % LL_CLIENT_QUEUE_EVENTS], event, sizeof(*event));
    if (is_terminal(event))
        slot->is_ended = true;
    list_slot(client, index);
}

/* What a sound runtime can send for this slot; NULL, or what is wrong with it. */
static const char *fault(const struct ll_client_slot *slot, const struct ll_event *event)
{
    static const uint8_t n_max[] = {[LL_EV_BURST] = 10,
                                    [LL_EV_TOP] = 5,
                                    [LL_EV_PROMPT] = 10,
                                    [LL_EV_PROMPT_TOP] = 5,
                                    [LL_EV_ERROR] = 0};

    if (event->type < LL_EV_TOKEN || event->type > LL_EV_ERROR)
        return "an event of unknown type";
    if (n_max[event->type] != 0 && (event->n == 0 || event->n > n_max[event->type]))
        return "an event with too many or no entries";
    if (event->choice >= slot->n_choices)
        return "an event of a choice the request does not have";
    if (event->type == LL_EV_ERROR && event->u.error.code >= 0)
        return "an error without a code";
    if (slot->tail - slot->head >= LL_CLIENT_QUEUE_EVENTS - 1)
        return "more events than the request's window";
    return NULL;
}

static void take_event(struct ll_client *client, const struct ll_event *event)
{
    const char *what;

    if (event->slot >= client->n_slots) {
        ll_client_fail(client, LL_E_PROTOCOL, "the runtime sent an event for slot %u of %u",
                       event->slot, client->n_slots);
        return;
    }
    struct ll_client_slot *slot = &client->slot[event->slot];
    /* Relaxed twice: this thread writes them. */
    if (atomic_load_explicit(&slot->id, memory_order_relaxed) == 0 || slot->is_ended ||
        (uint16_t)atomic_load_explicit(&slot->gen, memory_order_relaxed) != event->gen) {
        client->n_stale++;
        return;
    }
    what = fault(slot, event);
    if (what != NULL) {
        ll_client_fail(client, LL_E_PROTOCOL, "the runtime sent %s (type %u, n %u, choice %u)",
                       what, event->type, event->n, event->choice);
        return;
    }
    enqueue(client, event->slot, event);
}

void ll_client_drain(struct ll_client *client)
{
    struct ll_event event;

    /* Bounded: a runtime that writes as fast as we read must not keep us here. */
    for (uint32_t i = 0; i <= client->events.mask; i++) {
        /* Relaxed: only this thread sets it. */
        if (atomic_load_explicit(&client->broken, memory_order_relaxed) != 0 ||
            !ll_event_read(&client->events, &event))
            return;
        take_event(client, &event);
    }
}

void ll_client_fail(struct ll_client *client, int code, const char *format, ...)
{
    va_list arguments;

    /* Relaxed: only the owner's thread sets it; cancel reads it as a hint. */
    if (atomic_load_explicit(&client->broken, memory_order_relaxed) != 0)
        return;
    va_start(arguments, format);
    vsnprintf(client->broken_text, sizeof(client->broken_text), format, arguments);
    va_end(arguments);
    atomic_store_explicit(&client->broken, code, memory_order_release);

    for (uint32_t i = 0; i < client->n_slots; i++) {
        const struct ll_client_slot *slot = &client->slot[i];
        if (atomic_load_explicit(&slot->id, memory_order_relaxed) == 0 || slot->is_ended)
            continue;
        struct ll_event event = {.type = LL_EV_ERROR, .t_ns = ll_now_ns(), .u.error.code = code};
        enqueue(client, i, &event); /* H4 keeps one entry */
    }
}

/* ---- from the queues to the application -------------------------------------------------------*/

static void compose_error(struct ll_output *out, const struct ll_event *event)
{
    const char *text = event->u.error.text;
    size_t n = strnlen(text, sizeof(event->u.error.text));

    out->u.error.code = event->u.error.code;
    out->u.error.retry_ms = event->u.error.retry_ms;
    if (n == 0) {
        text = ll_error_advice(event->u.error.code);
        n = strlen(text);
    }
    if (n > sizeof(out->u.error.text) - 1)
        n = sizeof(out->u.error.text) - 1;
    memcpy(out->u.error.text, text, n);
    memset(out->u.error.text + n, 0, sizeof(out->u.error.text) - n);
}

/* Fills *out from the event at the queue's head; true when the event is used up (a BURST gives one
 * output an id). */
static bool compose(struct ll_client_slot *slot, const struct ll_event *event,
                    struct ll_output *out)
{
    uint32_t n = event->n;

    memset(out, 0, offsetof(struct ll_output, u.error.text));
    out->id = atomic_load_explicit(&slot->id, memory_order_relaxed);
    out->tag = slot->tag;
    out->choice = event->choice;
    out->index = event->index;
    out->t_ns = event->t_ns;
    out->last = (event->flags & LL_EV_LAST) != 0;
    switch (event->type) {
    case LL_EV_TOKEN:
        out->type = LL_OUTPUT_TOKEN;
        out->u.token.id = event->u.token.id;
        out->u.token.logprob = event->u.token.logprob;
        return true;
    case LL_EV_BURST:
        out->type = LL_OUTPUT_TOKEN;
        out->index = event->index + slot->burst_at;
        out->u.token.id = event->u.burst[slot->burst_at];
        out->u.token.logprob = __builtin_nanf("");
        slot->burst_at = slot->burst_at + 1 == n ? 0 : slot->burst_at + 1;
        return slot->burst_at == 0;
    case LL_EV_TOP:
    case LL_EV_PROMPT_TOP:
        out->type = event->type == LL_EV_TOP ? LL_OUTPUT_TOP : LL_OUTPUT_PROMPT_TOP;
        out->n = n;
        for (uint32_t i = 0; i < n; i++)
            out->u.top[i] = (struct ll_top_pair){event->u.top[i].id, event->u.top[i].logprob};
        return true;
    case LL_EV_PROMPT:
        out->type = LL_OUTPUT_PROMPT;
        out->n = n;
        memcpy(out->u.prompt_logprob, event->u.prompt, n * sizeof(float));
        return true;
    case LL_EV_CHOICE:
        out->type = LL_OUTPUT_CHOICE;
        out->u.choice_end.reason = event->u.choice_end.reason;
        out->u.choice_end.stop_id = event->u.choice_end.stop_id;
        out->u.choice_end.n_out = event->u.choice_end.n_out;
        return true;
    case LL_EV_FINISH:
        out->type = LL_OUTPUT_FINISH;
        out->u.finish.reason = event->u.finish.reason;
        out->u.finish.stop_id = event->u.finish.stop_id;
        out->u.finish.n_prompt = event->u.finish.n_prompt;
        out->u.finish.n_cached = event->u.finish.n_cached;
        out->u.finish.n_out = event->u.finish.n_out;
        out->u.finish.reserved = 0;
        out->u.finish.ttft_ns = event->u.finish.ttft_us * LL_NS_PER_US;
        out->u.finish.total_ns = event->u.finish.total_ns;
        return true;
    default: /* ERROR: take_event() lets no other type in */
        out->type = LL_OUTPUT_ERROR;
        compose_error(out, event);
        return true;
    }
}

static void free_slot(struct ll_client *client, uint32_t index)
{
    struct ll_client_slot *slot = &client->slot[index];

    /* Relaxed: the runtime goes by its own generation; this only spares its sweeps a look. */
    atomic_store_explicit(&ll_client_req(client, index)->state,
                          atomic_load_explicit(&slot->gen, memory_order_relaxed) << 8 |
                              LL_SLOT_FREE,
                          memory_order_relaxed);
    /* Relaxed: a cancel that still sees the id asks for a generation that is over. */
    atomic_store_explicit(&slot->id, 0, memory_order_relaxed);
    client->free_map[index / 64] |= 1ull << (index % 64);
    client->n_open--;
}

/* At most n_max outputs of one slot. */
static int take_slot(struct ll_client *client, uint32_t index, struct ll_output *out, int n_max)
{
    struct ll_client_slot *slot = &client->slot[index];
    uint32_t n_before = slot->n_taken;
    int n = 0;

    while (n < n_max && slot->head != slot->tail) {
        const struct ll_event *event = &slot->queue[slot->head % LL_CLIENT_QUEUE_EVENTS];
        if (!compose(slot, event, &out[n++]))
            continue;
        slot->head++;
        slot->n_taken++;
        if (is_terminal(event)) {
            free_slot(client, index);
            return n;
        }
    }
    if (slot->n_taken != n_before)
        /* Relaxed: a credit, it publishes nothing; the events were copied long ago. */
        atomic_store_explicit(&ll_client_req(client, index)->taken, slot->n_taken,
                              memory_order_relaxed);
    return n;
}

int ll_client_take(struct ll_client *client, struct ll_output *out, int n_max)
{
    int n = 0;

    while (n < n_max && client->ready_head != client->ready_tail) {
        uint32_t index = client->ready[client->ready_head % client->n_ready_max];
        struct ll_client_slot *slot = &client->slot[index];
        if (!slot->is_held)
            n += take_slot(client, index, out + n, n_max - n);
        if (!slot->is_held && slot->head != slot->tail)
            break; /* out is full; this slot stays first */
        slot->is_listed = false;
        client->ready_head++;
    }
    return n;
}

bool ll_client_has_output(const struct ll_client *client)
{
    return client->ready_head != client->ready_tail;
}

uint32_t ll_client_n_open(const struct ll_client *client)
{
    return client->n_open;
}

/* ---- poll -------------------------------------------------------------------------------------*/

/* An event loop woke up: it may have been an event, a message, or the runtime's end. */
static void wake_up(struct ll_client *client)
{
    client->is_armed = false;
    ll_wait_disarm(client->hot);
    ll_wait_drain(client->wake_fd);
    ll_client_drain(client);
    if (!ll_client_has_output(client))
        ll_client_probe(client);
}

/* Nothing came: is the runtime still there? No system call while its heart beats. */
static void look_around(struct ll_client *client)
{
    ll_client_check_peer(client);
    if (++client->n_empty % POLLS_A_LOOK != 0)
        return;
    uint64_t now_ns = ll_now_ns();
    if (ll_client_is_silent(client, now_ns))
        ll_client_probe(client);
}

int ll_client_poll(struct ll_client *client, struct ll_output *out, int n_max)
{
    if (ll_client_is_forked(client))
        return ll_client_check(client);
    if (out == NULL || n_max < 1)
        return LL_ERR(LL_E_INVAL, "n_max: %d, must be at least 1, with room in out", n_max);
    if (client->is_armed)
        wake_up(client);
    ll_client_drain(client);
    int n = ll_client_take(client, out, n_max);
    if (n > 0) {
        client->n_empty = 0;
        return n;
    }
    look_around(client);
    n = ll_client_take(client, out, n_max); /* what ll_client_fail() may have put there */
    return n > 0 ? n : ll_client_check(client);
}

int ll_client_poll_request(struct ll_client *client, uint64_t id, struct ll_output *out, int n_max)
{
    uint32_t index = (uint32_t)(id & 0x3ff);

    if (ll_client_is_forked(client))
        return ll_client_check(client);
    if (out == NULL || n_max < 1)
        return LL_ERR(LL_E_INVAL, "n_max: %d, must be at least 1, with room in out", n_max);
    if (client->is_armed)
        wake_up(client);
    for (int attempt = 0; attempt < 2; attempt++) {
        ll_client_drain(client);
        /* Relaxed: this thread writes it. */
        if (id == 0 || index >= client->n_slots ||
            atomic_load_explicit(&client->slot[index].id, memory_order_relaxed) != id)
            break; /* it has ended */
        int n = take_slot(client, index, out, n_max);
        if (n > 0)
            return n;
        if (attempt == 0)
            look_around(client);
    }
    return ll_client_check(client);
}

int ll_client_hold(struct ll_client *client, uint64_t id, int is_held)
{
    uint32_t index = (uint32_t)(id & 0x3ff);

    if (ll_client_is_forked(client))
        return ll_client_check(client);
    /* Relaxed: this thread writes it. */
    if (id == 0 || index >= client->n_slots ||
        atomic_load_explicit(&client->slot[index].id, memory_order_relaxed) != id)
        return 0; /* it has ended */
    struct ll_client_slot *slot = &client->slot[index];
    slot->is_held = is_held != 0;
    if (slot->head != slot->tail)
        list_slot(client, index);
    return 0;
}
