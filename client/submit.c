/* SPDX-License-Identifier: Apache-2.0 */
#include "client/handle.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "shm/wait.h"

#include <string.h>

#define GEN_MASK 0xffffffu

/* ---- what can be checked here ---------------------------------------------------------------*/

/* low <= value <= high; false for NaN. */
static bool is_within(float value, float low, float high)
{
    return value >= low && value <= high;
}

#define REFUSE(...) return LL_ERR(LL_E_INVAL, __VA_ARGS__)

static int check_sampling(const struct ll_request *r)
{
    if (!is_within(r->temperature, 0, 2))
        REFUSE("temperature: %g, must be 0 .. 2", (double)r->temperature);
    if (!is_within(r->top_p, 0, 1) || r->top_p == 0)
        REFUSE("top_p: %g, must be above 0 and at most 1", (double)r->top_p);
    if (!is_within(r->min_p, 0, 1))
        REFUSE("min_p: %g, must be 0 .. 1", (double)r->min_p);
    if (!is_within(r->repetition_penalty, 0, 10) || r->repetition_penalty == 0)
        REFUSE("repetition_penalty: %g, must be above 0 and at most 10",
               (double)r->repetition_penalty);
    if (!is_within(r->frequency_penalty, -2, 2))
        REFUSE("frequency_penalty: %g, must be -2 .. 2", (double)r->frequency_penalty);
    if (!is_within(r->presence_penalty, -2, 2))
        REFUSE("presence_penalty: %g, must be -2 .. 2", (double)r->presence_penalty);
    return 0;
}

static int check_lists(const struct ll_client *client, const struct ll_request *r)
{
    uint32_t n_vocab = client->facts.n_vocab;

    if (r->n_stop > LL_STOP_MAX)
        REFUSE("n_stop: %u, must be 0 .. %u", r->n_stop, LL_STOP_MAX);
    if (r->n_stop > 0 && r->stop == NULL)
        REFUSE("stop: NULL although n_stop is %u", r->n_stop);
    for (uint32_t i = 0; i < r->n_stop; i++)
        if (r->stop[i] >= n_vocab)
            REFUSE("stop[%u]: id %u, must be below n_vocab %u", i, r->stop[i], n_vocab);
    if (r->n_bias > LL_BIAS_MAX)
        REFUSE("n_bias: %u, must be 0 .. %u", r->n_bias, LL_BIAS_MAX);
    if (r->n_bias > 0 && r->bias == NULL)
        REFUSE("bias: NULL although n_bias is %u", r->n_bias);
    for (uint32_t i = 0; i < r->n_bias; i++) {
        if (r->bias[i].id >= n_vocab)
            REFUSE("bias[%u].id: %u, must be below n_vocab %u", i, r->bias[i].id, n_vocab);
        if (!is_within(r->bias[i].bias, -100, 100))
            REFUSE("bias[%u].bias: %g, must be -100 .. 100", i, (double)r->bias[i].bias);
    }
    if ((r->grammar == NULL) != (r->grammar_bytes == 0))
        REFUSE("grammar_bytes: %u with grammar %s", r->grammar_bytes,
               r->grammar == NULL ? "NULL" : "set");
    return 0;
}

static int check_prompt(const struct ll_client *client, const struct ll_request *r)
{
    const struct ll_client_info *facts = &client->facts;
    uint32_t bad = 0;

    if (r->prompt == NULL || r->n_prompt == 0)
        REFUSE("n_prompt: 0, a prompt has at least one id");
    if (r->n_prompt > facts->n_prompt_max)
        return LL_ERR(LL_E_TOO_LONG, "n_prompt: %u ids, this runtime takes at most %u: shorten it",
                      r->n_prompt, facts->n_prompt_max);
    if (r->max_tokens > facts->context_max ||
        r->n_prompt + (uint64_t)r->max_tokens > facts->context_max)
        return LL_ERR(LL_E_TOO_LONG,
                      "n_prompt %u + max_tokens %u exceed the context of %u tokens: shorten one",
                      r->n_prompt, r->max_tokens, facts->context_max);
    /* Without a branch in the loop, so that it becomes vector code: prompts can have 128 K ids. */
    for (uint32_t i = 0; i < r->n_prompt; i++)
        bad |= (uint32_t)(r->prompt[i] >= facts->n_vocab);
    for (uint32_t i = 0; bad != 0; i++)
        if (r->prompt[i] >= facts->n_vocab)
            REFUSE("prompt[%u]: id %u, must be below n_vocab %u", i, r->prompt[i], facts->n_vocab);
    return 0;
}

static int check_request(const struct ll_client *client, const struct ll_request *r)
{
    const struct ll_client_info *facts = &client->facts;
    int rc;

    if (r->struct_bytes < sizeof(*r))
        REFUSE("struct_bytes: %u, must be %zu: start from LL_REQUEST_INIT", r->struct_bytes,
               sizeof(*r));
    for (size_t i = sizeof(*r); i < r->struct_bytes; i++)
        if (((const uint8_t *)r)[i] != 0)
            return LL_ERR(LL_E_UNSUPPORTED,
                          "the request has fields this library does not know: install a newer one");
    if ((r->flags & ~LL_REQ_FLAGS_ALL) != 0)
        REFUSE("flags: %#x, known are %#x", r->flags, LL_REQ_FLAGS_ALL);
    if (r->reserved != 0)
        REFUSE("reserved: %u, must be 0", r->reserved);
    rc = check_prompt(client, r);
    if (rc < 0)
        return rc;
    if (r->max_tokens != 0 && r->min_tokens > r->max_tokens)
        REFUSE("min_tokens: %u, must be 0 .. max_tokens %u", r->min_tokens, r->max_tokens);
    if (r->min_tokens > facts->context_max - r->n_prompt)
        REFUSE("min_tokens: %u, only %u tokens fit behind the prompt", r->min_tokens,
               facts->context_max - r->n_prompt);
    if (r->n < 1 || r->n > facts->n_max)
        REFUSE("n: %u, must be 1 .. %u", r->n, facts->n_max);
    if (r->n_top > facts->n_top_max)
        REFUSE("n_top: %u, must be 0 .. %u", r->n_top, facts->n_top_max);
    if (r->n_prompt_top > facts->n_top_max)
        REFUSE("n_prompt_top: %u, must be 0 .. %u", r->n_prompt_top, facts->n_top_max);
    if (r->n_prompt_top > 0 && (r->flags & LL_REQUEST_PROMPT_LOGPROBS) == 0)
        REFUSE("n_prompt_top: %u needs the flag LL_REQUEST_PROMPT_LOGPROBS", r->n_prompt_top);
    if (r->priority < -128 || r->priority > 127)
        REFUSE("priority: %d, must be -128 .. 127", r->priority);
    if (r->adapter > LL_ADAPTERS_MAX)
        REFUSE("adapter: %u, take one from ll_client_adapter()", r->adapter);
    rc = check_sampling(r);
    if (rc == 0)
        rc = check_lists(client, r);
    return rc;
}

/* ---- into shared memory ---------------------------------------------------------------------*/

/* Every field of the slot but those cancel and stop write later; plain stores, published by state.
 */
static void write_slot(struct ll_req *req, const struct ll_request *r, uint8_t *arena,
                       uint32_t offset)
{
    uint32_t bias_at = (uint32_t)ll_align_up(r->n_prompt * 4ull, 8);
    uint32_t grammar_at = (uint32_t)ll_align_up(bias_at + r->n_bias * 8ull, 8);

    memcpy(arena + offset, r->prompt, r->n_prompt * sizeof(uint32_t));
    if (r->n_bias > 0)
        memcpy(arena + offset + bias_at, r->bias, r->n_bias * sizeof(struct ll_logit_bias));
    if (r->grammar_bytes > 0)
        memcpy(arena + offset + grammar_at, r->grammar, r->grammar_bytes);

    req->tag = r->tag;
    req->prompt_off = offset;
    req->n_prompt = r->n_prompt;
    req->max_tokens = r->max_tokens;
    req->min_tokens = r->min_tokens;
    req->deadline_ns = r->deadline_ns;
    req->seed = r->seed;
    req->flags = r->flags;
    req->n = (uint16_t)r->n;
    req->priority = (int8_t)r->priority;
    req->n_top = (uint8_t)r->n_top;
    req->n_prompt_top = (uint8_t)r->n_prompt_top;
    req->temperature = r->temperature;
    req->top_p = r->top_p;
    req->min_p = r->min_p;
    req->repetition = r->repetition_penalty;
    req->frequency = r->frequency_penalty;
    req->presence = r->presence_penalty;
    req->top_k = r->top_k;
    req->n_stop = r->n_stop;
    for (uint32_t i = 0; i < LL_STOP_MAX; i++)
        req->stop[i] = i < r->n_stop ? r->stop[i] : 0;
    req->bias_off = r->n_bias > 0 ? offset + bias_at : 0;
    req->n_bias = r->n_bias;
    req->grammar_off = r->grammar_bytes > 0 ? offset + grammar_at : 0;
    req->grammar_bytes = r->grammar_bytes;
    req->adapter = r->adapter;
    req->tenant = r->tenant;
    req->salt[0] = r->salt[0];
    req->salt[1] = r->salt[1];
    req->draft_max = r->draft_max;
}

static uint64_t arena_need(const struct ll_request *r)
{
    return ll_align_up(ll_align_up(r->n_prompt * 4ull, 8) + r->n_bias * 8ull, 8) + r->grammar_bytes;
}

/* Rings the bell for a slot whose words are already stored. */
static void ring(struct ll_client *client, enum ll_op op, uint32_t slot)
{
    uint32_t word = ll_word_pack(op, client->client_id, client->incarnation, slot);

    /* Release, pairs with the acquire in the intake's sweep: a runtime that sees the new count sees
     * the slot. A read-modify-write, because cancels come from other threads. */
    atomic_fetch_add_explicit(&client->hot->n_submitted, 1, memory_order_release);
    if (!ll_bell_push(&client->bell, word))
        ll_client_sweep(client);
    ll_wait_kick(client->info, client->kick_fd);
}

static int find_slot(const struct ll_client *client)
{
    for (uint32_t i = 0; i < LL_SLOTS_MAX / 64; i++)
        if (client->free_map[i] != 0)
            return (int)(i * 64) + __builtin_ctzll(client->free_map[i]);
    return -1;
}

/* Is it worth queueing anything? Costs a look at lines the runtime writes, so only when nothing is
 * in flight or something was wrong before; who waits for outputs looks anyway. */
static int check_alive(struct ll_client *client)
{
    ll_client_check_peer(client);
    int rc = ll_client_check(client);
    if (rc < 0)
        return rc;
    /* Acquire, pairs with the control thread's release: a hint, the runtime refuses by itself. */
    if (atomic_load_explicit(&client->info->rt_state, memory_order_acquire) == LL_RT_DRAINING)
        return LL_ERR(LL_E_DRAINING, "the runtime is stopping and takes no new requests");
    if (client->n_open > 0 && !client->is_hung)
        return 0;
    uint64_t silence_ns = ll_client_silence_ns(client, ll_now_ns());
    client->is_hung = silence_ns > LL_CLIENT_HANG_NS;
    if (!client->is_hung)
        return 0;
    ll_client_probe(client); /* it may be dead rather than hung */
    rc = ll_client_check(client);
    if (rc < 0)
        return rc;
    return LL_ERR(LL_E_TIMEOUT, "the runtime has shown no sign of life for %llu s",
                  (unsigned long long)(silence_ns / LL_NS_PER_S));
}

int ll_client_submit(struct ll_client *client, const struct ll_request *request, uint64_t *id_out)
{
    int rc = ll_client_check(client);

    if (rc == 0)
        rc = check_alive(client);
    if (rc == 0)
        rc = check_request(client, request);
    if (rc < 0)
        return rc;
    uint64_t need = arena_need(request);
    if (need > client->arena.n_bytes)
        return LL_ERR(
            LL_E_INVAL,
            "n_prompt: prompt, biases and grammar take %llu bytes, the arena has %u: open "
            "the client with a larger arena_bytes",
            (unsigned long long)need, client->arena.n_bytes);
    int index = find_slot(client);
    if (index < 0)
        return LL_ERR(LL_E_AGAIN, "all %u slots are in use: read outputs, then submit again",
                      client->n_slots);

    struct ll_client_slot *slot = &client->slot[index];
    /* Relaxed: only this thread writes it. */
    uint32_t gen = (atomic_load_explicit(&slot->gen, memory_order_relaxed) + 1) & GEN_MASK;
    gen += gen == 0;
    int64_t offset = ll_client_arena_take(client, need, (uint32_t)index, gen);
    if (offset < 0)
        return LL_ERR(LL_E_AGAIN,
                      "the arena is full of prompts the runtime has not taken yet: read outputs, "
                      "then submit again");

    uint64_t id = ++client->serial << 10 | (uint64_t)index;
    struct ll_req *req = ll_client_req(client, (uint32_t)index);
    client->free_map[index / 64] &= ~(1ull << (index % 64));
    client->n_open++;
    slot->tag = request->tag;
    slot->n_choices = request->n;
    slot->head = slot->tail = slot->n_taken = slot->burst_at = 0;
    slot->is_ended = false;
    slot->is_held = false;

    write_slot(req, request, client->arena.base, (uint32_t)offset);
    /* Relaxed: published by state below, as the plain stores are. */
    atomic_store_explicit(&req->taken, 0, memory_order_relaxed);
    for (int i = 0; i < 4; i++)
        atomic_store_explicit(&req->stop_choice[i], 0, memory_order_relaxed);
    atomic_store_explicit(&req->cancel_gen, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->gen, gen, memory_order_relaxed);
    /* Release, pairs with the acquire of id in ll_client_cancel(): who sees the id sees the gen and
     * the cleared cancel_gen. */
    atomic_store_explicit(&slot->id, id, memory_order_release);
    /* Release, pairs with the acquire of state in the intake: the body before SUBMITTED. */
    atomic_store_explicit(&req->state, gen << 8 | LL_SLOT_SUBMITTED, memory_order_release);
    ring(client, LL_OP_SUBMIT, (uint32_t)index);
    if (id_out != NULL)
        *id_out = id;
    return 0;
}

/* ---- cancel and stop --------------------------------------------------------------------------*/

int ll_client_cancel(struct ll_client *client, uint64_t id)
{
    int rc = ll_client_check(client);
    uint32_t index = (uint32_t)(id & 0x3ff);

    if (rc < 0)
        return rc;
    if (id == 0 || index >= client->n_slots)
        return 0;
    struct ll_client_slot *slot = &client->slot[index];
    struct ll_req *req = ll_client_req(client, index);

    /* Acquire: read before the id below, so that a cancel of a later request of this slot, stored
     * in between, makes the exchange fail instead of being overwritten. */
    uint32_t seen = atomic_load_explicit(&req->cancel_gen, memory_order_acquire);
    for (;;) {
        /* Acquire, pairs with the release in ll_client_submit(). */
        if (atomic_load_explicit(&slot->id, memory_order_acquire) != id)
            return 0; /* ended */
        uint32_t gen = atomic_load_explicit(&slot->gen, memory_order_relaxed);
        if (seen == gen)
            return 0; /* asked for already */
        /* If the owner reuses the slot right here, an old generation is stored: matches nothing.
         * Release, pairs with the acquire in the intake. */
        if (atomic_compare_exchange_weak_explicit(&req->cancel_gen, &seen, gen,
                                                  memory_order_release, memory_order_acquire))
            break;
    }
    ring(client, LL_OP_CANCEL, index);
    return 0;
}

int ll_client_stop(struct ll_client *client, uint64_t id, uint32_t choice)
{
    int rc = ll_client_check(client);
    uint32_t index = (uint32_t)(id & 0x3ff);

    if (rc < 0)
        return rc;
    /* Relaxed: this thread owns the slots. */
    if (id == 0 || index >= client->n_slots ||
        atomic_load_explicit(&client->slot[index].id, memory_order_relaxed) != id ||
        client->slot[index].is_ended)
        return 0;
    if (choice >= client->slot[index].n_choices)
        return LL_ERR(LL_E_INVAL, "choice: %u, the request has %u", choice,
                      client->slot[index].n_choices);
    struct ll_req *req = ll_client_req(client, index);
    /* Release, pairs with the acquire in the intake, which reads it after the word or in a sweep.
     */
    uint32_t before = atomic_fetch_or_explicit(&req->stop_choice[choice / 32], 1u << choice % 32,
                                               memory_order_release);
    if ((before & 1u << choice % 32) == 0)
        ring(client, LL_OP_STOP, index);
    return 0;
}
