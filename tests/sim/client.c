/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/client.c - what a client does between two turns: submits, cancels, stops, reads,
 * sleeps, dies. Submit is libllclient's, word for word, with places to be killed at. */
#include "tests/sim/sim.h"

#include "shm/wait.h"

#include <string.h>

/* Where a submit can end for ever; each but the last leaves the runtime something half done. */
enum kill_point {
    KILL_NOWHERE = 0,
    KILL_AFTER_ARENA,
    KILL_AFTER_SLOT,
    KILL_AFTER_STATE,
    KILL_AFTER_WORD, /* between the two CASes of a push */
    KILL_AFTER_PUSH,
    KILL_POINTS,
};

void sim_kill(struct sim_world *w, struct sim_client *client)
{
    client->place = SIM_DEAD;
    client->notice_step = w->step + sim_draw(w, 20);
    w->n.deaths++;
    w->has_lost_some = true;
}

/* ---- the bell ---------------------------------------------------------------------------------*/

/* The first half of a push: the word is in, tail_hint is not moved. */
static void push_half(struct ll_bell *bell, uint32_t payload)
{
    uint64_t tail = atomic_load_explicit(&bell->head->tail_hint, memory_order_acquire);
    uint64_t lap = tail >> bell->log2_words, expected = lap << 32;
    _Atomic uint64_t *word = &bell->head->word[tail & ((1ull << bell->log2_words) - 1)];

    atomic_compare_exchange_strong_explicit(word, &expected, lap << 32 | 1ull << 31 | payload,
                                            memory_order_release, memory_order_relaxed);
}

void sim_ring(struct sim_world *w, struct sim_client *client, enum ll_op op, uint32_t slot)
{
    uint32_t payload = ll_word_pack(op, client->id, client->incarnation, slot);

    if (client->kill_point == KILL_AFTER_WORD) {
        push_half(&client->domain->bell, payload);
        sim_kill(w, client);
        return;
    }
    if (!ll_bell_push(&client->domain->bell, payload))
        client->sweeps = true;
    if (client->kill_point == KILL_AFTER_PUSH) {
        sim_kill(w, client);
        return;
    }
    /* Release, as in client/submit.c; pairs with the acquire in intake's sweep. */
    atomic_fetch_add_explicit(&client->hot->n_submitted, 1, memory_order_release);
    ll_wait_kick(w->info, client->a.kick_fd);
}

/* ---- submit -----------------------------------------------------------------------------------*/

static void draw_prompt(struct sim_world *w, struct sim_request *r, uint32_t n_shared,
                        uint32_t prefix)
{
    uint64_t random = ll_splitmix64(&w->random), shared = 77 * (w->seed + prefix);

    for (uint32_t i = 0; i < r->sent.n_prompt; i++)
        r->prompt[i] =
            (uint32_t)(ll_splitmix64(i < n_shared ? &shared : &random) >> 32) % w->k.n_vocab;
}

/* As the gate makes it. */
static void add_end(struct ll_sampling *s, uint32_t id)
{
    for (uint32_t i = 0; i < s->n_end; i++)
        if (s->end[i] == id)
            return;
    s->end[s->n_end++] = id;
}

static void draw_length(struct sim_world *w, struct sim_request *r)
{
    const struct sim_knobs *k = &w->k;
    struct ll_req *q = &r->sent;
    uint32_t n_room = (uint32_t)ll_min_u64(k->context_max, (uint64_t)k->n_pages * LL_PAGE_TOKENS);

    q->n_prompt = 1 + sim_draw(w, (uint32_t)ll_min_u64(k->n_prompt_max, n_room - 1));
    r->max_tokens = 1 + sim_draw(w, (uint32_t)ll_min_u64(k->n_output_max, n_room - q->n_prompt));
    q->max_tokens = r->max_tokens;
    if (sim_draw(w, 16) == 0) {
        q->max_tokens = 0; /* as much as there is */
        r->max_tokens = n_room - q->n_prompt;
    }
    q->min_tokens = sim_draw(w, 4) == 0 ? sim_draw(w, r->max_tokens + 1) : 0;
}

static void draw_sampling(struct sim_world *w, struct sim_request *r)
{
    struct ll_req *q = &r->sent;

    q->temperature = (float)sim_draw(w, 3);
    q->top_p = sim_draw(w, 2) ? 1.0f : 0.5f;
    q->min_p = sim_draw(w, 8) == 0 ? 1.0f : 0.0f;
    q->repetition = 1.0f;
    q->frequency = sim_draw(w, 8) == 0 ? -2.0f : 0.0f;
    q->presence = sim_draw(w, 8) == 0 ? 2.0f : 0.0f;
    q->top_k = sim_draw(w, 4) == 0 ? sim_draw(w, 100) : 0;
    q->n_stop = sim_draw(w, 4) == 0 ? sim_draw(w, 4) : 0;
    for (uint32_t i = 0; i < q->n_stop; i++)
        q->stop[i] = sim_draw(w, w->k.n_vocab);
    q->n_bias = sim_draw(w, 16) == 0 ? sim_draw(w, SIM_BIAS_MAX + 1) : 0;
    for (uint32_t i = 0; i < q->n_bias; i++)
        r->bias[i] = (struct ll_bias){.id = sim_draw(w, w->k.n_vocab), .bias = -100.0f};

    struct ll_sampling *s = &r->sampling;
    *s = (struct ll_sampling){.min_tokens = q->min_tokens};
    if (!(q->flags & LL_REQ_IGNORE_EOS))
        add_end(s, 1);
    for (uint32_t i = 0; i < q->n_stop; i++)
        add_end(s, q->stop[i]);
}

void sim_draw_request(struct sim_world *w, struct sim_client *client, struct sim_request *r)
{
    const struct sim_knobs *k = &w->k;
    struct ll_req *q = &r->sent;
    uint32_t index = (uint32_t)(r - client->request), *prompt = r->prompt;
    uint32_t gen = ll_gen_next(r->gen);

    *r = (struct sim_request){.is_open = true, .gen = gen, .prompt = prompt};
    r->submit_ns = w->now_ns;
    draw_length(w, r);
    q->tag = ll_splitmix64(&w->random);
    q->seed = ll_splitmix64(&w->random);
    q->n =
        (uint16_t)(k->n_choices_max > 1 && sim_draw(w, 2) ? 1 + sim_draw(w, k->n_choices_max) : 1);
    q->flags = sim_draw(w, 8) == 0 ? LL_REQ_IGNORE_EOS : 0;
    if (sim_draw(w, 8) == 0)
        q->flags |= LL_REQ_NO_CACHE;
    if (k->has_logprobs && sim_draw(w, 2)) {
        q->n_top = (uint8_t)sim_draw(w, LL_TOP_MAX + 1);
        if (sim_draw(w, 2)) {
            q->flags |= LL_REQ_PROMPT_LOGPROBS;
            q->n_prompt_top = (uint8_t)sim_draw(w, LL_TOP_MAX + 1);
        }
    }
    if (k->has_deadlines && sim_draw(w, 2))
        q->deadline_ns = w->now_ns + sim_draw(w, 400) * k->turn_ns;
    if (k->has_priorities)
        q->priority = (int8_t)((int)sim_draw(w, 256) - 128);
    q->tenant = sim_draw(w, 3);
    q->salt[sim_draw(w, 2)] = sim_draw(w, 8) == 0;
    draw_sampling(w, r);
    draw_prompt(w, r, k->n_prefixes > 0 ? sim_draw(w, q->n_prompt + 1) : 0,
                k->n_prefixes > 0 ? sim_draw(w, k->n_prefixes) : 0);
    q->prompt_off = index * client->arena_stride;
    q->bias_off = q->prompt_off + k->context_max * 4;
}

/* A sequence for each choice, and a ring for their ends beside the other slots' and a row. */
static bool can_ever_fit(const struct sim_world *w, const struct sim_client *client, uint32_t n)
{
    uint32_t n_ring = 1u << w->k.log2_events, n_others = client->a.n_slots;

    return n == 1 || (n <= w->k.n_sequences && n + n_others + LL_OUTLET_ROW_EVENTS_MAX <= n_ring);
}

static void begin_oracle(struct sim_request *r)
{
    r->scored_context = 0;
    for (uint32_t c = 0; c < r->sent.n && c < SIM_CHOICES_MAX; c++)
        r->choice[c] = (struct sim_choice){.context = ll_fake_context(r->prompt, r->sent.n_prompt)};
}

/* Does the kill happen here? */
static bool dies(struct sim_world *w, struct sim_client *client, enum kill_point here)
{
    if (client->kill_point != (uint32_t)here)
        return false;
    sim_kill(w, client);
    return true;
}

static void send_request(struct sim_world *w, struct sim_client *client, struct sim_request *r)
{
    uint32_t index = (uint32_t)(r - client->request);
    struct ll_req *slot = &client->slot[index];
    uint8_t *arena = client->arena + (size_t)index * client->arena_stride;

    client->n_open++;
    w->n.submitted++;
    sim_note_prompt(w, client, r);
    memcpy(arena, r->prompt, ll_min_u64(r->sent.n_prompt, w->k.context_max) * sizeof(uint32_t));
    memcpy(arena + w->k.context_max * 4, r->bias, sizeof(r->bias));
    if (dies(w, client, KILL_AFTER_ARENA))
        return;
    /* All but the state: the slot is this client's until it says SUBMITTED. */
    memcpy((char *)slot + sizeof(slot->state), (char *)&r->sent + sizeof(slot->state),
           sizeof(*slot) - sizeof(slot->state));
    if (dies(w, client, KILL_AFTER_SLOT))
        return;
    /* Release, as in client/submit.c; pairs with the acquire in intake. */
    atomic_store_explicit(&slot->state, r->gen << 8 | LL_SLOT_SUBMITTED, memory_order_release);
    if (dies(w, client, KILL_AFTER_STATE))
        return;
    sim_ring(w, client, LL_OP_SUBMIT, index);
}

static struct sim_request *free_request(struct sim_client *client)
{
    for (uint32_t i = 0; i < client->a.n_slots; i++)
        if (!client->request[i].is_open)
            return &client->request[i];
    return NULL;
}

static void submit(struct sim_world *w, struct sim_client *client)
{
    struct sim_request *r = free_request(client);

    if (r == NULL)
        return;
    sim_draw_request(w, client, r);
    begin_oracle(r);
    if (!can_ever_fit(w, client, r->sent.n))
        r->refusal = LL_E_NEVER_FITS;
    else if (client->kind == SIM_BUGGY && sim_draw(w, 2))
        sim_spoil_request(w, client, r);
    if (client->kind == SIM_DYING && sim_chance(w, 40 * w->k.death_chance))
        client->kill_point = 1 + sim_draw(w, KILL_POINTS - 1);
    send_request(w, client, r);
}

void sim_client_probe(struct sim_world *w, struct sim_client *client)
{
    struct sim_request *r = free_request(client);

    SIM_CHECK(w, r != NULL, "client %u has no free slot at rest", client->id);
    sim_draw_request(w, client, r);
    r->sent.deadline_ns = 0;
    if (!can_ever_fit(w, client, r->sent.n))
        r->sent.n = 1;
    begin_oracle(r);
    send_request(w, client, r);
}

/* ---- the rest ---------------------------------------------------------------------------------*/

static void cancel(struct sim_world *w, struct sim_client *client, uint32_t slot)
{
    struct sim_request *r = &client->request[slot];

    r->is_cancelled = true;
    atomic_store_explicit(&client->slot[slot].cancel_gen, r->gen, memory_order_relaxed);
    sim_ring(w, client, LL_OP_CANCEL, slot);
}

static void stop(struct sim_world *w, struct sim_client *client, uint32_t slot)
{
    struct sim_request *r = &client->request[slot];
    uint32_t c = r->sent.n > 0 ? sim_draw(w, r->sent.n) : 0;

    if (c >= SIM_CHOICES_MAX)
        return;
    r->choice[c].is_stopped = true;
    atomic_fetch_or_explicit(&client->slot[slot].stop_choice[c / 32], 1u << c % 32,
                             memory_order_relaxed);
    sim_ring(w, client, LL_OP_STOP, slot);
}

/* Once a slot says ACCEPTED its arena is the client's again: it puts something else there. */
static void reuse_arena(struct sim_client *client)
{
    for (uint32_t i = 0; i < client->a.n_slots; i++) {
        struct sim_request *r = &client->request[i];
        if (!r->is_open || r->is_accepted)
            continue;
        /* Acquire, pairs with the runtime's release of the phase. */
        uint32_t state = atomic_load_explicit(&client->a.rst[i].state, memory_order_acquire);
        if (state >> 8 != r->gen || (state & 0xffu) < LL_PHASE_ACCEPTED)
            continue;
        r->is_accepted = true;
        memset(client->arena + (size_t)i * client->arena_stride, 0xee, client->arena_stride);
    }
}

/* The application consumes what it has hoarded. */
static void take_hoard(struct sim_client *client)
{
    for (uint32_t i = 0; i < client->a.n_slots; i++) {
        struct sim_request *r = &client->request[i];
        atomic_fetch_add_explicit(&client->slot[i].taken, r->n_untaken, memory_order_relaxed);
        r->n_untaken = 0;
    }
}

/* Declares itself asleep, looks again, sleeps; the runtime sets wait_word back to wake it. */
static void sleep_if_empty(struct sim_client *client)
{
    ll_event_publish(&client->reader);
    ll_wait_arm(client->hot);
    if (ll_event_ready(&client->reader))
        ll_wait_disarm(client->hot);
    else
        client->is_asleep = true;
}

/* true: still asleep. */
static bool sleeps_on(struct sim_world *w, struct sim_client *client)
{
    if (!client->is_asleep)
        return false;
    if (atomic_load_explicit(&client->hot->wait_word, memory_order_relaxed) != 0)
        return true;
    ll_wait_drain(client->a.wake_fd);
    client->is_asleep = false;
    w->n.wakes++;
    return false;
}

void sim_client_act(struct sim_world *w, struct sim_client *client)
{
    const struct sim_knobs *k = &w->k;

    if (client->kind == SIM_HOSTILE) {
        sim_hostile_act(w, client);
        return;
    }
    if (sleeps_on(w, client))
        return;
    uint64_t bits = ll_splitmix64(&w->random);
    bool reads = client->is_calm || (bits >> 56) < client->read_chance;
    if (!w->is_calm) {
        if ((bits & 255) < k->submit_chance && w->step >= client->busy_until)
            submit(w, client);
        uint32_t slot = (uint32_t)(bits >> 8 & 0xffff) % client->a.n_slots;
        bool is_open = client->place == SIM_ATTACHED && client->request[slot].is_open;
        if (is_open && (bits >> 24 & 255) < k->cancel_chance)
            cancel(w, client, slot);
        else if (is_open && (bits >> 32 & 255) < k->stop_chance)
            stop(w, client, slot);
        if (client->kind == SIM_BUGGY && client->place == SIM_ATTACHED)
            sim_buggy_act(w, client);
    }
    if (client->place != SIM_ATTACHED)
        return; /* killed just now */
    if (client->n_open > 0)
        reuse_arena(client);
    if (client->is_hoarder && client->is_calm)
        take_hoard(client);
    if (reads && client->n_open > 0) {
        sim_client_read(w, client, UINT32_MAX);
        if (client->n_open > 0 && (bits >> 40 & 15) == 0)
            sleep_if_empty(client);
    }
}
