/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/read.c - every event is held against what the fake model must say, every end against
 * what could have caused it (Z2). */
#include "tests/sim/sim.h"

#include <string.h>

/* What an event is about, for messages. */
#define ABOUT     "client %u slot %u gen %u: "
#define OF(cl, r) (cl)->id, (uint32_t)((r) - (cl)->request), (r)->gen

static bool is_end_id(const struct ll_sampling *s, uint32_t id)
{
    for (uint32_t i = 0; i < s->n_end; i++)
        if (s->end[i] == id)
            return true;
    return false;
}

static struct sim_choice *choice_of(struct sim_world *w, const struct sim_client *client,
                                    struct sim_request *r, const struct ll_event *e)
{
    SIM_CHECK(w, e->choice < r->sent.n && e->choice < SIM_CHOICES_MAX, ABOUT "choice %u of %u",
              OF(client, r), e->choice, r->sent.n);
    return &r->choice[e->choice];
}

static void take_token(struct sim_world *w, const struct sim_client *client, struct sim_request *r,
                       const struct ll_event *e)
{
    struct sim_choice *c = choice_of(w, client, r, e);
    uint32_t position = r->sent.n_prompt + c->n_got;

    SIM_CHECK(w, r->refusal == 0, ABOUT "a token, where %s is due", OF(client, r),
              ll_error_name(r->refusal));
    SIM_CHECK(w, !c->has_ended && c->n_got < r->max_tokens, ABOUT "token %u after the end",
              OF(client, r), e->index);
    SIM_CHECK(w, e->index == c->n_got, ABOUT "token %u, %u is next", OF(client, r), e->index,
              c->n_got);
    SIM_CHECK(w, c->n_top_got == (c->n_got == 0 ? 0 : r->sent.n_top),
              ABOUT "%u top logprobs of token %u", OF(client, r), c->n_top_got, c->n_got);
    if (c->n_got > 0) {
        SIM_CHECK(w, !is_end_id(&r->sampling, c->last_id), ABOUT "a token after the end id %u",
                  OF(client, r), c->last_id);
        c->context += ll_fake_mix(c->last_id, position - 1);
    }
    uint32_t id = ll_fake_sample(&w->rules, c->context, r->sent.seed, e->choice, position,
                                 &r->sampling, c->n_got);
    SIM_CHECK(w, e->u.token.id == id, ABOUT "choice %u token %u is %u, %u is right", OF(client, r),
              e->choice, e->index, e->u.token.id, id);
    SIM_CHECK(w, e->u.token.logprob == ll_fake_logprob(c->context, id),
              ABOUT "token %u has a wrong logprob", OF(client, r), e->index);
    c->last_id = id;
    c->n_got++;
    c->n_top_got = 0;
    w->n.tokens++;
}

static void take_top(struct sim_world *w, const struct sim_client *client, struct sim_request *r,
                     const struct ll_event *e)
{
    struct sim_choice *c = choice_of(w, client, r, e);

    SIM_CHECK(w, c->n_got > 0 && e->index == c->n_got - 1, ABOUT "tops of token %u after %u",
              OF(client, r), e->index, c->n_got);
    for (uint32_t i = 0; i < e->n; i++) {
        struct ll_ext pair = ll_fake_top(&w->rules, c->context, c->n_top_got++);
        SIM_CHECK(w, e->u.top[i].id == pair.id && e->u.top[i].logprob == pair.logprob,
                  ABOUT "top %u of token %u is wrong", OF(client, r), c->n_top_got - 1, e->index);
    }
    SIM_CHECK(w,
              c->n_top_got <= r->sent.n_top &&
                  ((e->flags & LL_EV_LAST) != 0) == (c->n_top_got == r->sent.n_top),
              ABOUT "%u tops of %u, flags %u", OF(client, r), c->n_top_got, r->sent.n_top,
              e->flags);
}

/* Logprobs of prompt tokens come once and in order, those of a row before its tops. */
static void take_prompt(struct sim_world *w, const struct sim_client *client, struct sim_request *r,
                        const struct ll_event *e)
{
    SIM_CHECK(w, (r->sent.flags & LL_REQ_PROMPT_LOGPROBS) != 0, ABOUT "prompt logprobs unasked",
              OF(client, r));
    for (uint32_t i = 0; i < e->n; i++) {
        SIM_CHECK(w, e->index + i == r->n_scored + 1 && r->n_scored + 1 < r->sent.n_prompt,
                  ABOUT "logprob of prompt token %u after %u", OF(client, r), e->index + i,
                  r->n_scored);
        r->scored_context += ll_fake_mix(r->prompt[r->n_scored], r->n_scored);
        r->n_scored++;
        SIM_CHECK(w, e->u.prompt[i] == ll_fake_logprob(r->scored_context, r->prompt[r->n_scored]),
                  ABOUT "logprob of prompt token %u is wrong", OF(client, r), r->n_scored);
    }
}

static void take_prompt_top(struct sim_world *w, const struct sim_client *client,
                            struct sim_request *r, const struct ll_event *e)
{
    uint32_t stride = r->sent.n_prompt_top;

    SIM_CHECK(w, stride > 0, ABOUT "prompt tops unasked", OF(client, r));
    for (uint32_t i = 0; i < e->n; i++) {
        uint32_t position = r->n_prompt_top_got / stride + 1;
        SIM_CHECK(w, e->index == position && position <= r->n_scored,
                  ABOUT "tops of prompt token %u, %u is next", OF(client, r), e->index, position);
        uint64_t context = ll_fake_context(r->prompt, position);
        SIM_CHECK(
            w, e->u.top[i].id == ll_fake_top(&w->rules, context, r->n_prompt_top_got % stride).id,
            ABOUT "a top of prompt token %u is wrong", OF(client, r), position);
        r->n_prompt_top_got++;
    }
}

/* ---- ends -------------------------------------------------------------------------------------*/

static void check_whole(struct sim_world *w, const struct sim_client *client,
                        const struct sim_request *r, const struct sim_choice *c)
{
    SIM_CHECK(w, c->n_top_got == (c->n_got == 0 ? 0 : r->sent.n_top),
              ABOUT "ends with %u tops of its last token", OF(client, r), c->n_top_got);
    if ((r->sent.flags & LL_REQ_PROMPT_LOGPROBS) && c->n_got > 0)
        SIM_CHECK(w,
                  r->n_scored == r->sent.n_prompt - 1 &&
                      r->n_prompt_top_got == r->n_scored * r->sent.n_prompt_top,
                  ABOUT "ends with %u of %u prompt logprobs", OF(client, r), r->n_scored,
                  r->sent.n_prompt - 1);
}

static void check_reason(struct sim_world *w, const struct sim_client *client,
                         const struct sim_request *r, const struct sim_choice *c, uint32_t reason,
                         uint32_t stop_id)
{
    bool at_end_id = c->n_got > 0 && is_end_id(&r->sampling, c->last_id);

    check_whole(w, client, r, c);
    if (reason == LL_FINISH_LENGTH) {
        SIM_CHECK(w, c->n_got == r->max_tokens && !at_end_id, ABOUT "length after %u of %u tokens",
                  OF(client, r), c->n_got, r->max_tokens);
    } else if (reason == LL_FINISH_STOP && stop_id != UINT32_MAX) {
        SIM_CHECK(w, at_end_id && c->last_id == stop_id && c->n_got > 0,
                  ABOUT "stop at id %u after id %u", OF(client, r), stop_id, c->last_id);
    } else if (reason == LL_FINISH_STOP) {
        SIM_CHECK(w, c->is_stopped && !at_end_id, ABOUT "stop that nobody asked for",
                  OF(client, r));
    } else {
        SIM_CHECK(w, reason == LL_FINISH_CANCELLED && r->is_cancelled && !at_end_id,
                  ABOUT "reason %u, cancelled %d", OF(client, r), reason, r->is_cancelled);
    }
}

static void take_choice_end(struct sim_world *w, const struct sim_client *client,
                            struct sim_request *r, const struct ll_event *e)
{
    struct sim_choice *c = choice_of(w, client, r, e);

    SIM_CHECK(w, r->sent.n > 1 && !c->has_ended, ABOUT "choice %u ends again", OF(client, r),
              e->choice);
    SIM_CHECK(w, e->u.choice_end.n_out == c->n_got, ABOUT "choice %u: %u tokens, said %u",
              OF(client, r), e->choice, c->n_got, e->u.choice_end.n_out);
    check_reason(w, client, r, c, e->u.choice_end.reason, e->u.choice_end.stop_id);
    c->has_ended = true;
    w->n.choices++;
}

static uint32_t n_got(const struct sim_request *r)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < r->sent.n && i < SIM_CHOICES_MAX; i++)
        n += r->choice[i].n_got;
    return n;
}

static void take_finish(struct sim_world *w, const struct sim_client *client, struct sim_request *r,
                        const struct ll_event *e)
{
    uint32_t n_out = n_got(r),
             n_cacheable = (r->sent.n_prompt - 1) / LL_PAGE_TOKENS * LL_PAGE_TOKENS;

    /* Who cancels or stops while the prompt is being copied may be quicker than its check. */
    SIM_CHECK(w,
              r->refusal == 0 || (n_got(r) == 0 && e->u.finish.reason != LL_FINISH_LENGTH &&
                                  e->u.finish.stop_id == UINT32_MAX),
              ABOUT "finished, where %s is due", OF(client, r), ll_error_name(r->refusal));
    SIM_CHECK(w, e->u.finish.n_out == n_out && e->u.finish.n_prompt == r->sent.n_prompt,
              ABOUT "%u prompt and %u output tokens, said %u and %u", OF(client, r),
              r->sent.n_prompt, n_out, e->u.finish.n_prompt, e->u.finish.n_out);
    SIM_CHECK(w,
              e->u.finish.n_cached <= n_cacheable &&
                  (e->u.finish.n_cached == 0 || !(r->sent.flags & LL_REQ_NO_CACHE)) &&
                  sim_may_be_cached(w, client, r, e->u.finish.n_cached),
              ABOUT "%u of %u prompt tokens from the cache", OF(client, r), e->u.finish.n_cached,
              r->sent.n_prompt);
    SIM_CHECK(w, e->u.finish.total_ns <= w->now_ns - r->submit_ns, ABOUT "took %llu ns",
              OF(client, r), (unsigned long long)e->u.finish.total_ns);
    if (r->sent.n == 1)
        check_reason(w, client, r, &r->choice[0], e->u.finish.reason, e->u.finish.stop_id);
    else if (e->u.finish.reason == LL_FINISH_CANCELLED)
        SIM_CHECK(w, r->is_cancelled, ABOUT "cancelled by nobody", OF(client, r));
    else
        for (uint32_t i = 0; i < r->sent.n; i++)
            SIM_CHECK(w, r->choice[i].has_ended, ABOUT "choice %u never ended", OF(client, r), i);
    w->n.cached += e->u.finish.n_cached;
    if (e->u.finish.reason == LL_FINISH_CANCELLED)
        w->n.cancelled++;
    else
        w->n.finished++;
}

/* May this client be told that it reads too slowly? */
static bool may_stall(const struct sim_world *w, const struct sim_client *client)
{
    uint32_t n_ring = 1u << w->k.log2_events;

    /* A ring that its own requests fill between two reads, or a clock that jumped. */
    return client->kind == SIM_STALLED ||
           n_ring < 4 * client->a.n_slots * w->k.n_choices_max + 128 ||
           w->now_ns - w->last_jump_ns <= w->k.stall_ns + 100 * LL_NS_PER_MS;
}

static bool may_be_busy(const struct sim_world *w, const struct sim_request *r)
{
    const struct sim_knobs *k = &w->k;

    return k->n_waiting_max != 0 || k->tokens_waiting_max != 0 || r->sent.deadline_ns != 0 ||
           k->n_sequences < 2 * k->n_clients * k->n_slots * k->n_choices_max;
}

static void take_error(struct sim_world *w, struct sim_client *client, struct sim_request *r,
                       const struct ll_event *e)
{
    int32_t code = e->u.error.code;
    bool is_right = false;

    if (code == LL_E_BUSY) {
        is_right = may_be_busy(w, r) && e->u.error.retry_ms >= 1 && r->n_events == 0;
        client->busy_until = w->step + sim_draw(w, 60);
        w->n.busy++;
    } else if (code == LL_E_DRAINING) {
        is_right = w->is_draining;
    } else if (r->refusal != 0) {
        is_right = code == r->refusal && r->n_events == 0;
        w->n.refused++;
    } else if (code == LL_E_DEADLINE) {
        is_right = r->sent.deadline_ns != 0 && w->now_ns >= r->sent.deadline_ns;
        w->n.expired++;
    } else if (code == LL_E_STALLED) {
        is_right = may_stall(w, client);
        w->n.stalled++;
    } else if (code == LL_E_BACKEND) {
        /* A row's NaN, or the device has failed. */
        is_right = w->device.n_nan > w->n.failed - w->n_then.failed || w->device.failed != 0 ||
                   w->device.fault != SIM_FAULT_NONE;
        w->n.failed++;
    }
    SIM_CHECK(w, is_right, ABOUT "ended as %s (\"%s\"), %s is due", OF(client, r),
              ll_error_name(code), e->u.error.text,
              r->refusal != 0 ? ll_error_name(r->refusal) : "no error");
}

static void close_request(struct sim_world *w, struct sim_client *client, struct sim_request *r,
                          const struct ll_event *e)
{
    const struct ll_rst *rst = &client->a.rst[r - client->request];

    if (e->type == LL_EV_FINISH)
        take_finish(w, client, r, e);
    else
        take_error(w, client, r, e);
    SIM_CHECK(
        w, atomic_load_explicit(&rst->state, memory_order_acquire) == (r->gen << 8 | LL_PHASE_DONE),
        ABOUT "has ended, but its slot does not say DONE", OF(client, r));
    r->is_open = false;
    client->n_open--;
}

static void take_event(struct sim_world *w, struct sim_client *client, const struct ll_event *e)
{
    SIM_CHECK(w, e->slot < client->a.n_slots, "client %u: an event for slot %u", client->id,
              e->slot);
    struct sim_request *r = &client->request[e->slot];
    SIM_CHECK(w, r->is_open && e->gen == (uint16_t)r->gen, ABOUT "event type %u of gen %u, open %d",
              OF(client, r), e->type, e->gen, r->is_open);
    SIM_CHECK(w, e->t_ns <= w->now_ns && e->t_ns >= client->last_event_ns,
              ABOUT "an event from %lld ns ago, the one before is newer", OF(client, r),
              (long long)(w->now_ns - e->t_ns));
    client->last_event_ns = e->t_ns;
    switch (e->type) {
    case LL_EV_TOKEN:
        take_token(w, client, r, e);
        break;
    case LL_EV_TOP:
        take_top(w, client, r, e);
        break;
    case LL_EV_PROMPT:
        take_prompt(w, client, r, e);
        break;
    case LL_EV_PROMPT_TOP:
        take_prompt_top(w, client, r, e);
        break;
    case LL_EV_CHOICE:
        take_choice_end(w, client, r, e);
        break;
    case LL_EV_FINISH:
    case LL_EV_ERROR:
        close_request(w, client, r, e);
        return;
    default:
        sim_fail(w, ABOUT "event type %u", OF(client, r), e->type);
    }
    r->n_events++;
    if (client->is_hoarder && !client->is_calm) {
        r->n_untaken++;
        return;
    }
    atomic_fetch_add_explicit(&client->slot[e->slot].taken, 1, memory_order_relaxed);
}

void sim_client_read(struct sim_world *w, struct sim_client *client, uint32_t n_max)
{
    struct ll_event event;

    for (uint32_t i = 0; i < n_max && ll_event_read(&client->reader, &event); i++) {
        uint64_t body[2];
        memcpy(body, &event.u, sizeof(body));
        sim_hash(w, (uint64_t)event.type << 56 ^ (uint64_t)event.slot << 40 ^
                        (uint64_t)event.gen << 24 ^ event.index ^ event.t_ns << 20);
        sim_hash(w, body[0] ^ body[1] << 1);
        w->n.events++;
        if (client->kind != SIM_HOSTILE)
            take_event(w, client, &event);
    }
    ll_event_publish(&client->reader);
}
