/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/faulty.c - what buggy and hostile clients do.
 *
 * A buggy one sends requests with one thing wrong and knows the code they must be refused with, a
 * line of the table below each. A hostile one stores anything anywhere it can write. */
#include "tests/sim/sim.h"

#include <math.h>
#include <string.h>

/* ---- one thing wrong --------------------------------------------------------------------------*/
struct spoiling {
    int32_t code;
    void (*apply)(struct sim_world *w, struct sim_client *client, struct sim_request *r);
};

#define SPOIL(name, statement)                                                                     \
    static void name(struct sim_world *w, struct sim_client *client, struct sim_request *r)        \
    {                                                                                              \
        struct ll_req *q = &r->sent;                                                               \
        (void)w, (void)client, (void)q;                                                            \
        statement;                                                                                 \
    }

SPOIL(pad_0, q->pad0[sim_draw(w, 3)] = 1)
SPOIL(pad_1, q->pad1 = 1)
SPOIL(pad_2, q->pad2[sim_draw(w, 5)] = 1)
SPOIL(pad_3, q->pad3[sim_draw(w, 11)] = 1)
SPOIL(unknown_flag, q->flags |= LL_REQ_FLAGS_ALL + 1u)
SPOIL(taken_at_start, q->taken = 1)
SPOIL(no_choice, q->n = 0)
SPOIL(too_many_choices, q->n = LL_CHOICES_MAX + 1)
SPOIL(a_draft, q->draft_max = 1)
SPOIL(an_adapter, q->adapter = 1)
SPOIL(a_grammar, q->grammar_bytes = 4)
SPOIL(cold, q->temperature = -0.001f)
SPOIL(hot, q->temperature = 2.001f)
SPOIL(temperature_nan, q->temperature = NAN)
SPOIL(top_p_zero, q->top_p = 0.0f)
SPOIL(top_p_high, q->top_p = 1.001f)
SPOIL(top_p_nan, q->top_p = NAN)
SPOIL(min_p_low, q->min_p = -0.001f)
SPOIL(min_p_high, q->min_p = INFINITY)
SPOIL(repetition_zero, q->repetition = 0.0f)
SPOIL(repetition_high, q->repetition = 10.01f)
SPOIL(frequency_low, q->frequency = -2.001f)
SPOIL(frequency_nan, q->frequency = NAN)
SPOIL(presence_high, q->presence = 2.001f)
SPOIL(presence_low, q->presence = -INFINITY)
SPOIL(many_tops, q->n_top = LL_TOP_MAX + 1)
SPOIL(many_prompt_tops, (q->flags |= LL_REQ_PROMPT_LOGPROBS, q->n_prompt_top = LL_TOP_MAX + 1))
SPOIL(prompt_tops_without_flag,
      (q->flags &= ~(uint32_t)LL_REQ_PROMPT_LOGPROBS, q->n_prompt_top = 1))
SPOIL(many_stops, q->n_stop = LL_STOP_MAX + 1)
SPOIL(stop_id, (q->n_stop = 1, q->stop[0] = w->k.n_vocab))
SPOIL(prompt_askew, q->prompt_off += 2)
SPOIL(prompt_outside, q->prompt_off = client->a.arena_bytes)
SPOIL(prompt_past_end, q->prompt_off = client->a.arena_bytes - q->n_prompt * 4 + 4)
SPOIL(prompt_wraps, q->prompt_off = UINT32_MAX - 3)
SPOIL(many_biases, q->n_bias = LL_BIAS_MAX + 1)
SPOIL(bias_askew, (q->n_bias = 1, q->bias_off += 1))
SPOIL(bias_outside, (q->n_bias = 1, q->bias_off = client->a.arena_bytes - 4))
SPOIL(bias_id, (q->n_bias = 2, r->bias[1] = (struct ll_bias){w->k.n_vocab, 0.0f}))
SPOIL(bias_high, (q->n_bias = 1, r->bias[0] = (struct ll_bias){0, 100.1f}))
SPOIL(bias_nan, (q->n_bias = 1, r->bias[0] = (struct ll_bias){0, NAN}))
SPOIL(no_prompt, q->n_prompt = 0)
SPOIL(prompt_of_context, q->n_prompt = w->k.context_max)
SPOIL(huge_prompt, q->n_prompt = UINT32_MAX)
SPOIL(past_context, q->max_tokens = w->k.context_max - q->n_prompt + 1)
SPOIL(huge_output, q->max_tokens = UINT32_MAX)
SPOIL(min_above_max, (q->max_tokens = r->max_tokens, q->min_tokens = r->max_tokens + 1))
SPOIL(prompt_id, r->prompt[sim_draw(w, q->n_prompt)] = w->k.n_vocab)
SPOIL(last_prompt_id, r->prompt[q->n_prompt - 1] = UINT32_MAX)

static const struct spoiling spoilings[] = {
    {LL_E_INVAL, pad_0},
    {LL_E_INVAL, pad_1},
    {LL_E_INVAL, pad_2},
    {LL_E_INVAL, pad_3},
    {LL_E_INVAL, unknown_flag},
    {LL_E_INVAL, taken_at_start},
    {LL_E_INVAL, no_choice},
    {LL_E_INVAL, too_many_choices},
    {LL_E_UNSUPPORTED, a_draft},
    {LL_E_UNSUPPORTED, an_adapter},
    {LL_E_UNSUPPORTED, a_grammar},
    {LL_E_INVAL, cold},
    {LL_E_INVAL, hot},
    {LL_E_INVAL, temperature_nan},
    {LL_E_INVAL, top_p_zero},
    {LL_E_INVAL, top_p_high},
    {LL_E_INVAL, top_p_nan},
    {LL_E_INVAL, min_p_low},
    {LL_E_INVAL, min_p_high},
    {LL_E_INVAL, repetition_zero},
    {LL_E_INVAL, repetition_high},
    {LL_E_INVAL, frequency_low},
    {LL_E_INVAL, frequency_nan},
    {LL_E_INVAL, presence_high},
    {LL_E_INVAL, presence_low},
    {LL_E_INVAL, many_tops},
    {LL_E_INVAL, many_prompt_tops},
    {LL_E_INVAL, prompt_tops_without_flag},
    {LL_E_INVAL, many_stops},
    {LL_E_INVAL, stop_id},
    {LL_E_INVAL, prompt_askew},
    {LL_E_INVAL, prompt_outside},
    {LL_E_INVAL, prompt_past_end},
    {LL_E_INVAL, prompt_wraps},
    {LL_E_INVAL, many_biases},
    {LL_E_INVAL, bias_askew},
    {LL_E_INVAL, bias_outside},
    {LL_E_INVAL, bias_id},
    {LL_E_INVAL, bias_high},
    {LL_E_INVAL, bias_nan},
    {LL_E_INVAL, no_prompt},
    {LL_E_TOO_LONG, prompt_of_context},
    {LL_E_TOO_LONG, huge_prompt},
    {LL_E_TOO_LONG, past_context},
    {LL_E_TOO_LONG, huge_output},
    {LL_E_INVAL, min_above_max},
    {LL_E_INVAL, prompt_id},
    {LL_E_INVAL, last_prompt_id},
};

void sim_spoil_request(struct sim_world *w, struct sim_client *client, struct sim_request *r)
{
    const struct spoiling *s = &spoilings[sim_draw(w, LL_COUNT(spoilings))];
    uint64_t n_pool = (uint64_t)w->k.n_pages * LL_PAGE_TOKENS;

    /* The context would let it pass, the pages never. */
    if (n_pool < w->k.context_max && sim_draw(w, 8) == 0) {
        r->sent.max_tokens = (uint32_t)n_pool - r->sent.n_prompt + 1;
        r->refusal = LL_E_NEVER_FITS;
        return;
    }
    s->apply(w, client, r);
    r->refusal = s->code;
}

/* Rings for what is not there, cancels and stops what is over; all of it must mean nothing. */
void sim_buggy_act(struct sim_world *w, struct sim_client *client)
{
    uint32_t slot = sim_draw(w, client->a.n_slots);
    struct sim_request *r = &client->request[slot];

    if (sim_draw(w, 64) != 0)
        return;
    switch (sim_draw(w, 4)) {
    case 0: /* a doorbell for a slot that says nothing new */
        sim_ring(w, client, LL_OP_SUBMIT, slot);
        break;
    case 1: /* a cancel of the request before this one */
        if (r->gen > 1)
            atomic_store_explicit(&client->slot[slot].cancel_gen, r->gen - 1, memory_order_relaxed);
        sim_ring(w, client, LL_OP_CANCEL, slot);
        break;
    case 2: /* the same cancel twice */
        if (!r->is_open || !r->is_cancelled)
            break;
        sim_ring(w, client, LL_OP_CANCEL, slot);
        sim_ring(w, client, LL_OP_CANCEL, slot);
        break;
    case 3: /* a stop word without a stop */
        sim_ring(w, client, LL_OP_STOP, slot);
        break;
    }
}

/* ---- anything anywhere ------------------------------------------------------------------------*/

static void scribble(struct sim_world *w, void *memory, size_t n_bytes)
{
    _Atomic uint32_t *word = memory;

    for (uint32_t n = 1 + sim_draw(w, 4); n > 0; n--)
        atomic_store_explicit(&word[sim_draw(w, (uint32_t)(n_bytes / 4))],
                              (uint32_t)ll_splitmix64(&w->random), memory_order_relaxed);
}

/* A request of the right generation with anything in it, or with a valid body that changes later.
 */
static void submit_garbage(struct sim_world *w, struct sim_client *client, uint32_t index)
{
    struct ll_req *slot = &client->slot[index];
    struct sim_request *r = &client->request[index];
    uint32_t state = atomic_load_explicit(&slot->state, memory_order_relaxed);

    r->gen = state >> 8;
    if (sim_draw(w, 2)) {
        sim_draw_request(w, client, r);
        memcpy((char *)slot + sizeof(slot->state), (char *)&r->sent + sizeof(slot->state),
               sizeof(*slot) - sizeof(slot->state));
        memcpy(client->arena + (size_t)index * client->arena_stride, r->prompt,
               r->sent.n_prompt * sizeof(uint32_t));
    } else {
        scribble(w, slot, sizeof(*slot));
    }
    uint32_t gen = sim_draw(w, 8) == 0 ? sim_draw(w, 1u << 24) : ll_gen_next(r->gen);
    atomic_store_explicit(&slot->state, gen << 8 | (sim_draw(w, 16) == 0 ? 7u : 1u),
                          memory_order_release);
    sim_ring(w, client, LL_OP_SUBMIT, index);
}

/* A well-formed word about somebody else: the slot is the truth, so it must change nothing. */
static void forge_word(struct sim_world *w, struct sim_client *client)
{
    const struct sim_client *other = &w->client[sim_draw(w, w->k.n_clients)];
    uint32_t payload = ll_word_pack((enum ll_op)sim_draw(w, 3), other->id,
                                    other->incarnation - sim_draw(w, 2), sim_draw(w, w->k.n_slots));

    ll_bell_push(&client->domain->bell, payload);
}

static void scribble_bell(struct sim_world *w, struct sim_client *client)
{
    struct ll_bell_head *head = client->domain->bell.head;
    uint32_t mask = (1u << client->domain->bell.log2_words) - 1;

    switch (sim_draw(w, 4)) {
    case 0:
        atomic_store_explicit(&head->tail_hint, ll_splitmix64(&w->random), memory_order_relaxed);
        break;
    case 1:
        atomic_fetch_add_explicit(&head->tail_hint, 1 + sim_draw(w, mask), memory_order_relaxed);
        break;
    case 2:
        atomic_store_explicit(&head->word[sim_draw(w, mask + 1)], ll_splitmix64(&w->random),
                              memory_order_relaxed);
        break;
    case 3: /* an old lap again: what was consumed looks as if it never came */
        atomic_fetch_sub_explicit(&head->word[sim_draw(w, mask + 1)], 1ull << 32,
                                  memory_order_relaxed);
        break;
    }
}

static void lie_about_reading(struct sim_world *w, struct sim_client *client)
{
    uint64_t prod = client->a.events.prod;

    atomic_store_explicit(&client->hot->cons_pos,
                          sim_draw(w, 2) ? ll_splitmix64(&w->random)
                                         : prod + sim_draw(w, 3) - sim_draw(w, 3),
                          memory_order_relaxed);
}

void sim_hostile_act(struct sim_world *w, struct sim_client *client)
{
    uint32_t slot = sim_draw(w, client->a.n_slots);

    switch (sim_draw(w, 40)) {
    case 0:
        if (sim_draw(w, 40) == 0) /* it is fenced by that */
            lie_about_reading(w, client);
        break;
    case 1:
        scribble(w, &client->hot->n_submitted, sizeof(uint64_t));
        break;
    case 2:
        scribble(w, &client->hot->wait_word, sizeof(uint32_t));
        break;
    case 3:
        scribble(w, &client->slot[slot], sizeof(struct ll_req));
        break;
    case 4:
        scribble(w, client->arena, client->a.arena_bytes);
        break;
    case 5:
        if (sim_draw(w, 40) == 0)
            scribble(w, &client->slot[slot].taken, sizeof(uint32_t));
        break;
    case 6:
        forge_word(w, client);
        break;
    case 7:
        if (sim_draw(w, 20) == 0)
            scribble_bell(w, client);
        break;
    case 8:
    case 9:
    case 10:
    case 11:
        submit_garbage(w, client, slot);
        break;
    case 12:
        sim_ring(w, client, (enum ll_op)sim_draw(w, 4), sim_draw(w, 1024));
        break;
    case 13:
        ll_bell_push(&client->domain->bell, (uint32_t)ll_splitmix64(&w->random));
        break;
    default:
        sim_client_read(w, client, sim_draw(w, 8));
        break;
    }
}
