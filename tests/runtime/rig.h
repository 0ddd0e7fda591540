/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/rig.h - an engine on the fake backend with clients in the same process and thread.
 *
 * The rig owns the clock (a turn takes turn_ns), plays the control thread's part through the
 * mailboxes and the clients' part on the shared structures, and checks every event against
 * kernels/fake/fake.h. After rig_close() ledger, pages, slots and credits have been checked. */
#ifndef TESTS_RUNTIME_RIG_H
#define TESTS_RUNTIME_RIG_H

#include "tests/harness.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/rng.h"
#include "kernels/fake/fake.h"
#include "ll/client.h"
#include "runtime/engine.h"
#include "shm/wait.h"

#include <sys/eventfd.h>
#include <unistd.h>

#define RIG_CLIENTS_MAX 8u
#define RIG_UNUSED      __attribute__((unused))

struct rig_config {
    const char *extra; /* of the fake backend; NULL: "polls=2" */
    uint32_t eos_permille;
    uint32_t n_pages; /* 0: 1024 */
    uint32_t n_host_pages;
    uint32_t n_device_slots; /* 0: 64 */
    uint32_t n_rows_max;     /* 0: n_device_slots */
    uint32_t n_tokens_max;   /* 0: 512 */
    uint32_t n_sequences;    /* 0: all slots of all clients, and 8 */
    uint32_t context_max;    /* 0: 1024 */
    uint32_t n_clients;      /* 0: 1 */
    uint32_t n_slots;        /* of a client; 0: 32 */
    uint32_t log2_events;    /* 0: 12 */
    uint64_t stall_ns;       /* 0: 30 s */
    uint64_t step_timeout_ns;
    uint64_t turn_ns; /* 0: 10 us */
    bool checks;      /* ll_engine_check() after every turn */
    bool always_swaps;
    bool has_no_cache;  /* without a prefix cache */
    uint32_t n_weights; /* 0: 1 */
    uint64_t tick_ns;   /* each look at the clock takes so long */
};

/* A choice of a request for more than one. */
struct rig_choice {
    uint64_t context;
    uint32_t n_got, n_top_got, last_id;
    uint32_t reason; /* 0: open */
};

struct rig_spec {
    uint32_t n_prompt, max_tokens, min_tokens;
    uint32_t flags;
    uint8_t n_top, n_prompt_top;
    uint64_t seed, deadline_ns;
    uint64_t shared_seed; /* the first n_shared ids of the prompt come from it */
    uint32_t n_shared;
    uint64_t salt;
    int8_t priority;
    uint32_t tenant;
    uint32_t n; /* choices; 0: 1 */
};

struct rig_request {
    bool is_open;
    uint32_t gen;
    struct rig_spec spec;
    uint32_t *prompt, *expected; /* [context_max] */
    uint32_t n_expected;
    uint32_t weights; /* that it runs on, from its first token on */
    uint64_t context; /* of what has been read */
    uint32_t n_got;   /* of all choices */
    uint32_t n_top_got, n_scored, n_prompt_top_got;
    struct ll_sampling sampling;
    struct rig_choice choice[LL_CHOICES_MAX]; /* with spec.n > 1 */
    uint64_t submit_ns, first_ns;
    /* the end */
    uint8_t type; /* LL_EV_FINISH, LL_EV_ERROR */
    uint32_t reason;
    int32_t code;
    uint32_t n_cached;
};

struct rig_client {
    struct ll_attachment a;
    struct ll_req *slot;
    struct ll_req_hot *hot;
    uint8_t *arena;
    uint32_t arena_stride; /* bytes of arena a slot has */
    struct ll_event *event;
    struct ll_event_reader reader;
    struct rig_request *request; /* [n_slots] */
    uint32_t n_open;
    bool is_gone;
};

struct rig {
    struct rig_config c;
    struct ll_engine engine;
    const struct ll_backend *backend;
    struct ll_device *device;
    struct ll_fake_rules rules;
    struct ll_info_region *info;
    struct ll_stat_region *stat;
    struct ll_mailbox to_step, to_control;
    struct ll_domain domain;
    struct ll_bell bell; /* the clients' view */
    struct rig_client client[RIG_CLIENTS_MAX];
    uint64_t now_ns;
    uint64_t n_events;
    struct rig_switch { /* when which weights took over: from a turn on */
        uint64_t at_ns;
        uint32_t weights;
    } switches[64];
    uint32_t n_switches;
};

static uint64_t rig_clock(void *context)
{
    struct rig *rig = context;

    rig->now_ns += rig->c.tick_ns;
    return rig->now_ns;
}

static inline uint32_t rig_or(uint32_t value, uint32_t fallback)
{
    return value != 0 ? value : fallback;
}

/* An attachment made as the control thread makes it, but of private memory. */
static void rig_make_client(struct rig_client *client, uint32_t id, struct ll_domain *domain,
                            uint32_t n_slots, uint32_t log2_events, uint32_t context_max)
{
    client->arena_stride = context_max * 4;
    client->slot = calloc(n_slots, sizeof(*client->slot));
    client->hot = aligned_alloc(64, sizeof(*client->hot));
    memset(client->hot, 0, sizeof(*client->hot));
    client->arena = calloc(n_slots, client->arena_stride);
    client->event = aligned_alloc(64, sizeof(*client->event) << log2_events);
    memset(client->event, 0, sizeof(*client->event) << log2_events);
    client->request = calloc(n_slots, sizeof(*client->request));
    for (uint32_t i = 0; i < n_slots; i++) {
        client->request[i].prompt = calloc(context_max, sizeof(uint32_t));
        client->request[i].expected = calloc(context_max, sizeof(uint32_t));
    }
    client->a = (struct ll_attachment){
        .id = id,
        .incarnation = 1,
        .domain = domain,
        .socket_fd = -1,
        .pid_fd = -1,
        .kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
        .wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
        .slot = client->slot,
        .hot = client->hot,
        .arena = client->arena,
        .arena_bytes = n_slots * client->arena_stride,
        .n_slots = n_slots,
        .rsp_head = calloc(1, sizeof(struct ll_rsp_head)),
        .rst = calloc(n_slots, sizeof(struct ll_rst)),
        .shadow = calloc(n_slots, sizeof(struct ll_shadow)),
    };
    ll_event_writer_init(&client->a.events, client->event, log2_events, &client->hot->cons_pos, 0);
    ll_event_reader_init(&client->reader, client->event, log2_events, &client->hot->cons_pos, 0);
}

static void rig_free_client(struct rig_client *client)
{
    for (uint32_t i = 0; i < client->a.n_slots; i++) {
        free(client->request[i].prompt);
        free(client->request[i].expected);
    }
    free(client->slot);
    free(client->hot);
    free(client->arena);
    free(client->event);
    free(client->request);
    free(client->a.rsp_head);
    free(client->a.rst);
    free(client->a.shadow);
    close(client->a.kick_fd);
    close(client->a.wake_fd);
}

static void rig_mail(struct rig *rig, enum ll_mail_type type, void *attachment, uint64_t value)
{
    struct ll_mail mail = {type, attachment, value};

    assert_true(ll_mailbox_send(&rig->to_step, &mail));
}

static RIG_UNUSED void rig_open(struct rig *rig, const struct rig_config *config)
{
    struct rig_config *c = &rig->c;
    struct ll_text error;
    char extra[256];

    memset(rig, 0, sizeof(*rig));
    *c = *config;
    c->n_pages = rig_or(c->n_pages, 1024);
    c->n_device_slots = rig_or(c->n_device_slots, 64);
    c->n_rows_max = rig_or(c->n_rows_max, c->n_device_slots);
    c->n_tokens_max = rig_or(c->n_tokens_max, 512);
    c->context_max = rig_or(c->context_max, 1024);
    c->n_clients = rig_or(c->n_clients, 1);
    c->n_slots = rig_or(c->n_slots, 32);
    c->log2_events = rig_or(c->log2_events, 12);
    c->n_sequences = rig_or(c->n_sequences, c->n_clients * c->n_slots + 8);
    c->n_sequences = c->n_sequences > c->n_device_slots ? c->n_sequences : c->n_device_slots;
    c->turn_ns = c->turn_ns != 0 ? c->turn_ns : 10000;
    rig->now_ns = 1000000000;
    rig->rules = (struct ll_fake_rules){.n_vocab = 5000, .eos_permille = c->eos_permille};
    snprintf(extra, sizeof(extra), "eos_permille=%u,%s", c->eos_permille,
             c->extra != NULL ? c->extra : "polls=2");

    struct ll_model_shape shape = {.n_vocab = rig->rules.n_vocab, .context_max = c->context_max};
    struct ll_backend_options bo = {
        .struct_bytes = sizeof(bo),
        .n_slots = c->n_device_slots,
        .n_pages = c->n_pages,
        .n_host_pages = c->n_host_pages,
        .n_tokens_max = c->n_tokens_max,
        .n_rows_max = c->n_rows_max,
        .pages_per_seq = ll_kv_pages_for(c->context_max),
        .n_weights = rig_or(c->n_weights, 1),
        .extra = extra,
    };
    struct ll_engine_options eo = {
        .backend = ll_backend_fake(),
        .n_sequences = c->n_sequences,
        .limits = {.n_rows_max = c->n_rows_max,
                   .n_tokens_max = c->n_tokens_max,
                   .n_slots = c->n_device_slots,
                   .context_max = c->context_max,
                   .stall_ns = c->stall_ns,
                   .is_deterministic = c->always_swaps,
                   .has_prefix_cache = !c->has_no_cache},
        .gate = {.n_vocab = rig->rules.n_vocab,
                 .context_max = c->context_max,
                 .n_prompt_max = c->context_max - 1,
                 .n_max = LL_CHOICES_MAX,
                 .n_top_max = LL_TOP_MAX,
                 .n_eos = 1,
                 .eos = {1}},
        .from_control = &rig->to_step,
        .to_control = &rig->to_control,
        .control_fd = -1,
        .notify_fd = -1,
        .step_timeout_ns = c->step_timeout_ns,
        .clock = rig_clock,
        .clock_context = rig,
    };
    rig->backend = eo.backend;
    int rc = rig->backend->open(&rig->device, &bo, &shape, &eo.caps, &error);
    if (rc < 0)
        fail_msg("%s", error.s);
    rig->info = calloc(1, LL_INFO_BYTES);
    rig->stat = calloc(1, sizeof(*rig->stat));
    ll_stat_init(rig->stat, rig->now_ns);
    eo.device = rig->device;
    eo.info = rig->info;
    eo.stat = rig->stat;
    if (ll_engine_open(&rig->engine, &eo) < 0)
        fail_msg("%s", ll_err_text());

    uint32_t log2_words =
        ll_log2_floor(ll_pow2_ceil(ll_max_u64(2ull * c->n_clients * c->n_slots, 32)));
    size_t bell_bytes = ll_align_up(ll_bell_bytes(log2_words), 64);
    rig->domain.region.base = aligned_alloc(64, bell_bytes);
    memset(rig->domain.region.base, 0, bell_bytes);
    ll_bell_init(&rig->bell, rig->domain.region.base, log2_words, 0);
    ll_bell_reader_init(&rig->domain.bell, &rig->bell);
    for (uint32_t i = 0; i < c->n_clients; i++) {
        rig_make_client(&rig->client[i], i, &rig->domain, c->n_slots, c->log2_events,
                        c->context_max);
        rig_mail(rig, LL_MAIL_ATTACH, &rig->client[i].a, 0);
    }
}

/* ---- the clients' side ------------------------------------------------------------------------*/

static RIG_UNUSED void rig_ring(struct rig *rig, struct rig_client *client, enum ll_op op,
                                uint32_t slot)
{
    uint32_t payload = ll_word_pack(op, client->a.id, client->a.incarnation, slot);

    assert_true(ll_bell_push(&rig->bell, payload));
    atomic_fetch_add_explicit(&client->hot->n_submitted, 1, memory_order_release);
}

/* Submits in a free slot and rings; the slot, or -1 when all are in use. */
static RIG_UNUSED int rig_submit(struct rig *rig, uint32_t c, const struct rig_spec *spec)
{
    struct rig_client *client = &rig->client[c];
    uint32_t i = 0;
    uint64_t random = spec->seed ^ 0x5151, shared = spec->shared_seed;

    while (i < client->a.n_slots && client->request[i].is_open)
        i++;
    if (i == client->a.n_slots)
        return -1;
    struct rig_request *r = &client->request[i];
    uint32_t *prompt = r->prompt, *expected = r->expected, gen = r->gen + 1;
    *r = (struct rig_request){
        .is_open = true,
        .gen = gen,
        .spec = *spec,
        .prompt = prompt,
        .expected = expected,
        .submit_ns = rig->now_ns,
    };
    for (uint32_t k = 0; k < spec->n_prompt; k++)
        prompt[k] =
            (uint32_t)(ll_splitmix64(k < spec->n_shared ? &shared : &random) % rig->rules.n_vocab);
    struct ll_sampling sampling = {.min_tokens = spec->min_tokens};
    if (!(spec->flags & LL_REQ_IGNORE_EOS)) {
        sampling.n_end = 1;
        sampling.end[0] = 1;
    }
    r->sampling = sampling;
    r->n_expected = ll_fake_continue(&rig->rules, prompt, spec->n_prompt, spec->seed, 0, &sampling,
                                     spec->max_tokens, expected);
    r->context = ll_fake_context(prompt, spec->n_prompt);
    for (uint32_t k = 0; k < spec->n; k++)
        r->choice[k] = (struct rig_choice){.context = r->context};

    struct ll_req *req = &client->slot[i];
    memcpy(client->arena + i * client->arena_stride, prompt, spec->n_prompt * sizeof(uint32_t));
    req->tag = i;
    req->prompt_off = i * client->arena_stride;
    req->n_prompt = spec->n_prompt;
    req->max_tokens = spec->max_tokens;
    req->min_tokens = spec->min_tokens;
    req->deadline_ns = spec->deadline_ns;
    req->seed = spec->seed;
    req->flags = spec->flags;
    req->n = (uint16_t)rig_or(spec->n, 1);
    req->n_top = spec->n_top;
    req->n_prompt_top = spec->n_prompt_top;
    req->salt[0] = spec->salt;
    req->priority = spec->priority;
    req->tenant = spec->tenant;
    req->temperature = 1.0f;
    req->top_p = 1.0f;
    req->repetition = 1.0f;
    atomic_store_explicit(&req->taken, 0, memory_order_relaxed);
    for (uint32_t k = 0; k < 4; k++)
        atomic_store_explicit(&req->stop_choice[k], 0, memory_order_relaxed);
    atomic_store_explicit(&req->state, r->gen << 8 | LL_SLOT_SUBMITTED, memory_order_release);
    client->n_open++;
    rig_ring(rig, client, LL_OP_SUBMIT, i);
    return (int)i;
}

static RIG_UNUSED void rig_cancel(struct rig *rig, uint32_t c, uint32_t slot)
{
    struct rig_client *client = &rig->client[c];

    atomic_store_explicit(&client->slot[slot].cancel_gen, client->request[slot].gen,
                          memory_order_relaxed);
    rig_ring(rig, client, LL_OP_CANCEL, slot);
}

static RIG_UNUSED void rig_stop_choice(struct rig *rig, uint32_t c, uint32_t slot, uint32_t choice)
{
    struct rig_client *client = &rig->client[c];

    atomic_fetch_or_explicit(&client->slot[slot].stop_choice[choice / 32], 1u << choice % 32,
                             memory_order_relaxed);
    rig_ring(rig, client, LL_OP_STOP, slot);
}

static RIG_UNUSED void rig_stop(struct rig *rig, uint32_t c, uint32_t slot)
{
    rig_stop_choice(rig, c, slot, 0);
}

/* The first token: events before the turn of a switch are of the weights before. */
static void rig_find_weights(struct rig *rig, struct rig_request *r, const struct ll_event *e)
{
    struct ll_fake_rules rules = rig->rules;

    r->weights = 0;
    for (uint32_t i = 0; i < rig->n_switches && rig->switches[i].at_ns <= e->t_ns; i++)
        r->weights = rig->switches[i].weights;
    if (r->weights == 0)
        return;
    rules.weights = r->weights;
    r->n_expected = ll_fake_continue(&rules, r->prompt, r->spec.n_prompt, r->spec.seed, 0,
                                     &r->sampling, r->spec.max_tokens, r->expected);
}

static void rig_check_token(struct rig *rig, struct rig_request *r, const struct ll_event *e)
{
    assert_int_equal(r->n_top_got,
                     r->n_got == 0 ? 0 : r->spec.n_top); /* the last one's are all there */
    assert_int_equal(e->index, r->n_got);
    assert_true(r->n_got < r->n_expected);
    assert_int_equal(e->u.token.id, r->expected[r->n_got]);
    assert_true(e->u.token.logprob == ll_fake_logprob(r->context, e->u.token.id));
    if (r->n_got == 0)
        r->first_ns = e->t_ns;
    r->n_got++;
    r->n_top_got = 0;
    (void)rig;
}

static void rig_check_top(struct rig *rig, struct rig_request *r, const struct ll_event *e)
{
    assert_int_equal(e->index, r->n_got - 1);
    for (uint32_t k = 0; k < e->n; k++) {
        struct ll_ext pair = ll_fake_top(&rig->rules, r->context, r->n_top_got++);
        assert_int_equal(e->u.top[k].id, pair.id);
        assert_true(e->u.top[k].logprob == pair.logprob);
    }
    assert_true(r->n_top_got <= r->spec.n_top);
    assert_int_equal((e->flags & LL_EV_LAST) != 0, r->n_top_got == r->spec.n_top);
}

static void rig_check_prompt(struct rig_request *r, const struct ll_event *e)
{
    for (uint32_t k = 0; k < e->n; k++) {
        assert_int_equal(e->index + k, r->n_scored + 1);
        uint64_t context = ll_fake_context(r->prompt, r->n_scored + 1);
        assert_true(e->u.prompt[k] == ll_fake_logprob(context, r->prompt[r->n_scored + 1]));
        r->n_scored++;
    }
}

static void rig_check_prompt_top(struct rig *rig, struct rig_request *r, const struct ll_event *e)
{
    uint32_t stride = r->spec.n_prompt_top;

    for (uint32_t k = 0; k < e->n; k++) {
        uint32_t position = r->n_prompt_top_got / stride + 1;
        uint64_t context = ll_fake_context(r->prompt, position);
        assert_int_equal(e->index, position);
        assert_int_equal(e->u.top[k].id,
                         ll_fake_top(&rig->rules, context, r->n_prompt_top_got % stride).id);
        r->n_prompt_top_got++;
    }
}

/* A token, its tops, or the end of a choice, where there are several. */
static void rig_check_choice(struct rig *rig, struct rig_request *r, const struct ll_event *e)
{
    struct rig_choice *c = &r->choice[e->choice];

    assert_true(e->choice < r->spec.n);
    assert_int_equal(c->reason, 0);
    if (e->type == LL_EV_CHOICE) {
        assert_int_equal(e->u.choice_end.n_out, c->n_got);
        c->reason = e->u.choice_end.reason;
        if (c->reason == LL_FINISH_LENGTH)
            assert_int_equal(c->n_got, r->spec.max_tokens);
        return;
    }
    if (e->type == LL_EV_TOP) {
        assert_int_equal(e->index, c->n_got - 1);
        for (uint32_t k = 0; k < e->n; k++)
            assert_int_equal(e->u.top[k].id,
                             ll_fake_top(&rig->rules, c->context, c->n_top_got++).id);
        return;
    }
    struct ll_fake_rules rules = rig->rules;
    uint32_t position = r->spec.n_prompt + c->n_got;
    rules.weights = r->weights;
    assert_int_equal(e->index, c->n_got);
    assert_int_equal(c->n_top_got, c->n_got == 0 ? 0 : r->spec.n_top);
    c->n_top_got = 0;
    if (c->n_got > 0)
        c->context += ll_fake_mix(c->last_id, position - 1);
    uint32_t id = ll_fake_sample(&rules, c->context, r->spec.seed, e->choice, position,
                                 &r->sampling, c->n_got);
    assert_int_equal(e->u.token.id, id);
    if (r->n_got == 0)
        r->first_ns = e->t_ns;
    c->last_id = id;
    c->n_got++;
    r->n_got++;
}

static void rig_check_finish(struct rig_request *r, const struct ll_event *e)
{
    r->reason = e->u.finish.reason;
    assert_int_equal(e->u.finish.n_out, r->n_got);
    assert_int_equal(e->u.finish.n_prompt, r->spec.n_prompt);
    r->n_cached = e->u.finish.n_cached;
    assert_true(r->n_cached <= (r->spec.n_prompt - 1) / LL_PAGE_TOKENS * LL_PAGE_TOKENS);
    if (r->spec.n > 1) {
        for (uint32_t c = 0; c < r->spec.n && r->reason != LL_FINISH_CANCELLED; c++)
            assert_int_not_equal(r->choice[c].reason, 0);
        return;
    }
    if (r->reason == LL_FINISH_CANCELLED || e->u.finish.stop_id == UINT32_MAX) {
        if (r->reason == LL_FINISH_LENGTH)
            assert_int_equal(r->n_got, r->spec.max_tokens);
        return;
    }
    assert_int_equal(r->reason, LL_FINISH_STOP);
    assert_int_equal(r->n_got, r->n_expected);
    assert_int_equal(e->u.finish.stop_id, r->expected[r->n_got - 1]);
}

static void rig_take_event(struct rig *rig, struct rig_client *client, const struct ll_event *e)
{
    assert_true(e->slot < client->a.n_slots);
    struct rig_request *r = &client->request[e->slot];
    assert_true(r->is_open);
    assert_int_equal(e->gen, (uint16_t)r->gen);
    rig->n_events++;
    /* The context of a token is what came before it; its tops follow it. */
    if (e->type == LL_EV_TOKEN && r->n_got > 0 && r->spec.n <= 1)
        r->context += ll_fake_mix(r->expected[r->n_got - 1], r->spec.n_prompt + r->n_got - 1);
    switch (e->type) {
    case LL_EV_CHOICE:
        assert_true(r->spec.n > 1);
        rig_check_choice(rig, r, e);
        break;
    case LL_EV_TOKEN:
        if (r->n_got == 0)
            rig_find_weights(rig, r, e);
        if (r->spec.n > 1)
            rig_check_choice(rig, r, e);
        else
            rig_check_token(rig, r, e);
        break;
    case LL_EV_TOP:
        if (r->spec.n > 1)
            rig_check_choice(rig, r, e);
        else
            rig_check_top(rig, r, e);
        break;
    case LL_EV_PROMPT:
        rig_check_prompt(r, e);
        break;
    case LL_EV_PROMPT_TOP:
        rig_check_prompt_top(rig, r, e);
        break;
    case LL_EV_FINISH:
        rig_check_finish(r, e);
        break;
    case LL_EV_ERROR:
        r->code = e->u.error.code;
        break;
    default:
        fail_msg("event type %u", e->type);
    }
    if (e->type == LL_EV_FINISH || e->type == LL_EV_ERROR) {
        r->type = e->type;
        r->is_open = false;
        client->n_open--;
        bool has_all = r->reason == LL_FINISH_LENGTH || r->reason == LL_FINISH_STOP;
        if ((r->spec.flags & LL_REQ_PROMPT_LOGPROBS) && has_all && r->n_got > 0) {
            assert_int_equal(r->n_scored, r->spec.n_prompt - 1);
            assert_int_equal(r->n_prompt_top_got, r->n_scored * r->spec.n_prompt_top);
        }
    } else {
        atomic_fetch_add_explicit(&client->slot[e->slot].taken, 1, memory_order_relaxed);
    }
}

/* Reads and checks at most n events of a client; how many there were. */
static RIG_UNUSED uint32_t rig_read(struct rig *rig, uint32_t c, uint32_t n)
{
    struct rig_client *client = &rig->client[c];
    struct ll_event event;
    uint32_t i = 0;

    for (; i < n && ll_event_read(&client->reader, &event); i++)
        rig_take_event(rig, client, &event);
    ll_event_publish(&client->reader);
    return i;
}

/* ---- time -------------------------------------------------------------------------------------*/

static RIG_UNUSED int rig_turn(struct rig *rig)
{
    rig->now_ns += rig->c.turn_ns;
    int rc = ll_engine_turn(&rig->engine);
    if (rig->c.checks && rc >= 0)
        ll_engine_check(&rig->engine);
    return rc;
}

static RIG_UNUSED uint32_t rig_n_open(const struct rig *rig)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < rig->c.n_clients; i++)
        n += rig->client[i].is_gone ? 0 : rig->client[i].n_open;
    return n;
}

/* Turns with everybody reading until all requests have ended; fails the test after n_max turns. */
static RIG_UNUSED void rig_finish(struct rig *rig, uint32_t n_max)
{
    while (rig_n_open(rig) > 0) {
        if (n_max-- == 0)
            fail_msg("%u requests do not end", rig_n_open(rig));
        assert_true(rig_turn(rig) >= 0);
        for (uint32_t i = 0; i < rig->c.n_clients; i++)
            if (!rig->client[i].is_gone)
                rig_read(rig, i, UINT32_MAX);
    }
    for (int i = 0; i < 20 && !ll_engine_is_idle(&rig->engine); i++)
        rig_turn(rig); /* rows in flight of what has ended */
}

static RIG_UNUSED uint64_t rig_stat(const struct rig *rig, size_t offset)
{
    return ll_stat_get((const _Atomic uint64_t *)((const char *)&rig->stat->v + offset));
}
#define RIG_STAT(rig, name) rig_stat((rig), offsetof(struct ll_stats, name))

/* Everything is given back and every request is in one column. */
static RIG_UNUSED void rig_check_idle(struct rig *rig)
{
    assert_true(ll_engine_is_idle(&rig->engine));
    ll_engine_check(&rig->engine);
    assert_int_equal(ll_kv_available(&rig->engine.kv), rig->engine.kv.n_pages);
    assert_int_equal(rig->engine.kv.n_host_free, rig->engine.kv.n_host_pages);
    assert_int_equal(rig->engine.scheduler.n_free_slots, rig->c.n_device_slots);
    assert_int_equal(RIG_STAT(rig, requests_submitted),
                     RIG_STAT(rig, requests_rejected) + RIG_STAT(rig, requests_accepted));
    assert_int_equal(RIG_STAT(rig, requests_accepted),
                     RIG_STAT(rig, requests_finished) + RIG_STAT(rig, requests_cancelled) +
                         RIG_STAT(rig, requests_expired) + RIG_STAT(rig, requests_stalled) +
                         RIG_STAT(rig, requests_failed) + RIG_STAT(rig, requests_lost));
    for (uint32_t i = 0; i < rig->c.n_clients; i++) {
        assert_int_equal(rig->client[i].a.credits_reserved, 0);
        assert_int_equal(rig->client[i].a.n_seqs, 0);
    }
}

static RIG_UNUSED void rig_free(struct rig *rig)
{
    ll_engine_close(&rig->engine);
    rig->backend->close(rig->device);
    for (uint32_t i = 0; i < rig->c.n_clients; i++)
        rig_free_client(&rig->client[i]);
    free(rig->domain.region.base);
    free(rig->info);
    free(rig->stat);
}

static RIG_UNUSED void rig_close(struct rig *rig)
{
    rig_check_idle(rig);
    rig_free(rig);
}

#endif
