/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/desk.h - intake and outlet alone, with the test as scheduler, control thread and
 * clients at once. Shared memory is private memory here. desk_close() checks the invariants. */
#ifndef TESTS_RUNTIME_DESK_H
#define TESTS_RUNTIME_DESK_H

#include "tests/harness.h"

#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"
#include "runtime/intake.h"
#include "runtime/outlet.h"
#include "shm/wait.h"

#include <sys/eventfd.h>
#include <unistd.h>

#define DESK_CLIENTS 3u
#define DESK_VOCAB   1000u
#define DESK_CONTEXT 70000u
#define DESK_ARENA   (1u << 20)
#define DESK_UNUSED  __attribute__((unused))

struct desk_client {
    struct ll_attachment a;
    struct ll_req slot[32];
    struct ll_req_hot hot;
    _Alignas(8) uint8_t arena[DESK_ARENA];
    struct ll_rsp_head rsp_head;
    struct ll_rst rst[32];
    struct ll_shadow shadow[32];
    struct ll_event event[1024];
    struct ll_event_reader reader;
    uint32_t gen[32];
};

struct desk {
    struct ll_seq_pool pool;
    struct ll_stats stats;
    struct ll_mailbox to_control;
    struct ll_outlet outlet;
    struct ll_intake intake;
    struct ll_domain domain[DESK_CLIENTS]; /* [0] is shared by all, unless isolated */
    struct ll_bell bell[DESK_CLIENTS];     /* the clients' view */
    _Alignas(64) uint8_t bell_memory[DESK_CLIENTS][8192];
    struct desk_client client[DESK_CLIENTS];
    uint64_t now_ns;
    bool is_isolated;
};

static const struct ll_gate_limits desk_limits = {
    .n_vocab = DESK_VOCAB,
    .context_max = DESK_CONTEXT,
    .n_prompt_max = DESK_CONTEXT - 1,
    .n_pages_total = 100000,
    .n_max = LL_CHOICES_MAX,
    .n_top_max = 20,
};

/* An attachment as control makes it; with 2^log2_events events and n_slots slots. */
static DESK_UNUSED void desk_attach(struct desk *d, uint32_t i, uint32_t log2_events,
                                    uint32_t n_slots)
{
    struct desk_client *c = &d->client[i];
    uint32_t incarnation = c->a.incarnation + 1;

    memset(c, 0, sizeof(*c));
    c->a = (struct ll_attachment){
        .id = i,
        .incarnation = incarnation,
        .domain = &d->domain[d->is_isolated ? i : 0],
        .kick_fd = -1,
        .wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
        .slot = c->slot,
        .hot = &c->hot,
        .arena = c->arena,
        .arena_bytes = DESK_ARENA,
        .n_slots = n_slots,
        .rsp_head = &c->rsp_head,
        .rst = c->rst,
        .shadow = c->shadow,
    };
    ll_event_writer_init(&c->a.events, c->event, log2_events, &c->hot.cons_pos, 0);
    ll_event_reader_init(&c->reader, c->event, log2_events, &c->hot.cons_pos, 0);
    ll_intake_attach(&d->intake, &c->a);
}

static DESK_UNUSED void desk_open(struct desk *d, uint32_t n_sequences, bool is_isolated)
{
    memset(d, 0, sizeof(*d));
    d->now_ns = 1000000000;
    d->is_isolated = is_isolated;
    assert_int_equal(ll_seq_pool_init(&d->pool, n_sequences, DESK_CONTEXT), 0);
    ll_outlet_init(&d->outlet, &d->pool, &d->stats, &d->to_control);
    ll_intake_init(&d->intake, &d->pool, &d->outlet, &d->stats, &desk_limits);
    for (uint32_t i = 0; i < DESK_CLIENTS; i++) {
        assert_true(ll_bell_bytes(8) <= sizeof(d->bell_memory[i]));
        ll_bell_init(&d->bell[i], d->bell_memory[i], 8, 0);
        ll_bell_reader_init(&d->domain[i].bell, &d->bell[i]);
        d->domain[i].id = i;
    }
    for (uint32_t i = 0; i < DESK_CLIENTS; i++)
        desk_attach(d, i, 10, 32);
    ll_intake_poll(&d->intake, d->now_ns); /* the sweep that is due at start */
}

static DESK_UNUSED void desk_check(const struct desk *d)
{
    ll_seq_check(&d->pool);
    ll_outlet_check(&d->outlet);
    ll_intake_check(&d->intake);
}

static DESK_UNUSED void desk_close(struct desk *d)
{
    desk_check(d);
    for (uint32_t i = 0; i < DESK_CLIENTS; i++)
        close(d->client[i].a.wake_fd);
    ll_seq_pool_free(&d->pool);
}

/* ---- the clients -----------------------------------------------------------------------------*/

static DESK_UNUSED void desk_word(struct desk *d, uint32_t i, enum ll_op op, uint32_t slot)
{
    struct desk_client *c = &d->client[i];

    assert_true(ll_bell_push(&d->bell[d->is_isolated ? i : 0],
                             ll_word_pack(op, i, c->a.incarnation, slot)));
}

static DESK_UNUSED void desk_count(struct desk *d, uint32_t i)
{
    atomic_fetch_add_explicit(&d->client[i].hot.n_submitted, 1, memory_order_release);
}

/* A request in the slot, not yet SUBMITTED. */
static DESK_UNUSED struct ll_req *desk_fill(struct desk *d, uint32_t i, uint32_t slot,
                                            uint32_t n_prompt)
{
    struct desk_client *c = &d->client[i];
    struct ll_req *req = &c->slot[slot];
    uint32_t *prompt = (uint32_t *)(void *)c->arena;

    memset((char *)req + 4, 0, sizeof(*req) - 4);
    for (uint32_t k = 0; k < n_prompt; k++)
        prompt[k] = (k * 7 + slot) % DESK_VOCAB;
    req->tag = 100 * i + slot;
    req->n_prompt = n_prompt;
    req->max_tokens = 50;
    req->n = 1;
    req->top_p = req->repetition = 1.0f;
    return req;
}

/* SUBMITTED, without a doorbell. */
static DESK_UNUSED void desk_publish(struct desk *d, uint32_t i, uint32_t slot)
{
    struct desk_client *c = &d->client[i];

    c->gen[slot] = c->gen[slot] == 0xffffff ? 1 : c->gen[slot] + 1;
    atomic_store_explicit(&c->slot[slot].state, c->gen[slot] << 8 | LL_SLOT_SUBMITTED,
                          memory_order_release);
    desk_count(d, i);
}

static DESK_UNUSED void desk_submit(struct desk *d, uint32_t i, uint32_t slot, uint32_t n_prompt)
{
    desk_fill(d, i, slot, n_prompt);
    desk_publish(d, i, slot);
    desk_word(d, i, LL_OP_SUBMIT, slot);
}

/* The next event, which must be there. */
static DESK_UNUSED struct ll_event desk_read(struct desk *d, uint32_t i)
{
    struct ll_event event;

    if (!ll_event_read(&d->client[i].reader, &event))
        fail_msg("client %u: no event", i);
    ll_event_publish(&d->client[i].reader);
    return event;
}

static DESK_UNUSED bool desk_has_event(struct desk *d, uint32_t i)
{
    return ll_event_ready(&d->client[i].reader);
}

static DESK_UNUSED void desk_expect_error(struct desk *d, uint32_t i, uint32_t slot, int32_t code,
                                          const char *text)
{
    struct ll_event event = desk_read(d, i);

    assert_int_equal(event.type, LL_EV_ERROR);
    assert_int_equal(event.slot, slot);
    assert_int_equal(event.gen, d->client[i].gen[slot] & 0xffff);
    assert_int_equal(event.u.error.code, code);
    if (text != NULL)
        assert_string_equal(event.u.error.text, text);
    assert_int_equal(atomic_load(&d->client[i].rst[slot].state),
                     d->client[i].gen[slot] << 8 | LL_PHASE_DONE);
}

/* ---- the scheduler ---------------------------------------------------------------------------*/

static DESK_UNUSED struct ll_seq *desk_seq(struct desk *d, uint32_t i, uint32_t slot)
{
    const struct ll_shadow *shadow = &d->client[i].shadow[slot];

    assert_true(shadow->phase != LL_SHADOW_IDLE);
    return &d->pool.seq[shadow->sequence];
}

static DESK_UNUSED uint32_t desk_turn(struct desk *d)
{
    d->now_ns += 1000;
    uint32_t work = ll_intake_poll(&d->intake, d->now_ns);
    desk_check(d);
    return work;
}

static DESK_UNUSED void desk_run(struct desk *d, struct ll_seq *seq)
{
    assert_int_equal(seq->state, LL_SEQ_WAITING);
    seq->device_slot = seq->index;
    ll_seq_move(&d->pool, seq, LL_SEQ_RUNNING);
    ll_outlet_phase(&d->outlet, seq, LL_PHASE_RUNNING, d->now_ns);
}

static DESK_UNUSED void desk_end(struct desk *d, struct ll_seq *seq, enum ll_end end)
{
    seq->end = end;
    seq->device_slot = LL_NONE;
    ll_seq_move(&d->pool, seq, LL_SEQ_ENDING);
}

/* What the plan does with marks. */
static DESK_UNUSED void desk_apply_marks(struct desk *d)
{
    for (uint32_t i = 0; i < d->pool.n; i++) {
        struct ll_seq *seq = &d->pool.seq[i];
        if (seq->state != LL_SEQ_WAITING && seq->state != LL_SEQ_RUNNING)
            continue;
        if (seq->is_lost || seq->is_cancelled || seq->is_stopped)
            desk_end(d, seq,
                     seq->is_lost        ? LL_END_LOST
                     : seq->is_cancelled ? LL_END_CANCELLED
                                         : LL_END_STOP);
    }
}

static DESK_UNUSED void desk_publish_ends(struct desk *d)
{
    ll_outlet_publish(&d->outlet, NULL, 0, d->now_ns);
    desk_check(d);
}

#define DESK_STAT(d, name) ll_stat_get(&(d)->stats.name)

#endif
