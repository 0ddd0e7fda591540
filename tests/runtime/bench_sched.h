/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/bench_sched.h - the engine that bench_sched measures, with its clients: all in one
 * thread, on a clock of its own, everything drawn from one seed, so that a run can be had again.
 *
 * The engine's source is compiled in here with its calls under a stopwatch each: what is measured
 * is the very turn that llringd makes. Clients are plainer than rig.h's: they check nothing but
 * that each request ends, and hash what they see. */
#ifndef TESTS_RUNTIME_BENCH_SCHED_H
#define TESTS_RUNTIME_BENCH_SCHED_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/rng.h"
#include "kernels/fake/fake.h"
#include "ll/client.h"
#include "runtime/engine.h"
#include "shm/wait.h"

#include <sys/eventfd.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

/* ---- stopwatches ------------------------------------------------------------------------------*/

#define NONE_ROWS_MAX 256u

enum call { INTAKE, PREPARE, PLAN, BATCH, APPLY, OUTLET, WAKE, DEVICE, N_CALLS };

static const char *const call_name[N_CALLS] = {"intake", "prepare", "plan", "batch",
                                               "apply",  "outlet",  "wake", "device"};

static uint64_t lap[N_CALLS]; /* ticks of this turn */
static uint64_t n_laps;       /* readings of the clock in this turn, in pairs */

static inline uint64_t ticks(void)
{
#if defined(__x86_64__)
    unsigned cpu;

    return __rdtscp(&cpu); /* waits for what came before */
#else
    return ll_now_ns();
#endif
}

#define TIMED(call, expression)                                                                    \
    do {                                                                                           \
        uint64_t begin = ticks();                                                                  \
        expression;                                                                                \
        lap[call] += ticks() - begin;                                                              \
        n_laps++;                                                                                  \
    } while (0)

static uint32_t timed_intake(struct ll_intake *intake, uint64_t now_ns)
{
    uint32_t n;

    TIMED(INTAKE, n = ll_intake_poll(intake, now_ns));
    return n;
}

static uint32_t timed_prepare(struct ll_scheduler *s, uint64_t now_ns)
{
    uint32_t n;

    TIMED(PREPARE, n = ll_scheduler_prepare(s, now_ns));
    return n;
}

static void timed_plan(struct ll_scheduler *s, uint64_t now_ns, struct ll_plan *out)
{
    TIMED(PLAN, ll_scheduler_plan(s, now_ns, out));
}

static void timed_batch(struct ll_batch_maker *maker, const struct ll_plan *plan,
                        struct ll_seq_pool *pool, uint32_t weights, struct ll_batch *out)
{
    TIMED(BATCH, ll_batch_build(maker, plan, pool, weights, out));
}

static uint32_t timed_apply(struct ll_scheduler *s, const struct ll_plan *plan,
                            const struct ll_result *result, uint64_t now_ns,
                            struct ll_yield *yields)
{
    uint32_t n;

    TIMED(APPLY, n = ll_scheduler_apply(s, plan, result, now_ns, yields));
    return n;
}

static void timed_outlet(struct ll_outlet *outlet, const struct ll_yield *yields, uint32_t n,
                         uint64_t now_ns)
{
    TIMED(OUTLET, ll_outlet_publish(outlet, yields, n, now_ns));
}

static void timed_wake(struct ll_outlet *outlet)
{
    TIMED(WAKE, ll_outlet_wake(outlet));
}

/* ---- a device that computes nothing
 * ------------------------------------------------------------*/

/* The fake device reads its pages, megabytes a step, on the very core whose caches the loop lives
 * in; one on a card does not. This one (--device none) keeps the rows and makes ids up. */
static struct {
    struct ll_row row[2][NONE_ROWS_MAX];
    struct ll_row_out out[2][NONE_ROWS_MAX];
    uint32_t n_rows[2], n_polls, n_polls_wanted;
    int64_t n_submitted, n_done;
} none;

static int64_t none_submit(const struct ll_batch *batch)
{
    int64_t ticket = ++none.n_submitted;

    none.n_rows[ticket % 2] = batch->n_rows;
    memcpy(none.row[ticket % 2], batch->rows, batch->n_rows * sizeof(*batch->rows));
    return ticket;
}

static int none_poll(int64_t ticket, struct ll_result *out)
{
    uint32_t n = none.n_rows[ticket % 2];

    if (++none.n_polls < none.n_polls_wanted)
        return 0;
    none.n_polls = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct ll_row *row = &none.row[ticket % 2][i];
        struct ll_row_out *r = &none.out[ticket % 2][i];
        r->slot = row->slot;
        r->status = LL_ROW_OK;
        r->n_tokens = (row->flags & LL_ROW_SAMPLE) != 0;
        r->token[0] = 2 + (row->slot * 31 + row->pos * 7) % 4000;
        r->logprob[0] = -1;
        r->ext = r->n_ext = 0;
    }
    *out = (struct ll_result){.rows = none.out[ticket % 2], .n_rows = n};
    return 1;
}

static bool has_no_device;

static int64_t timed_submit(struct ll_device *device, const struct ll_batch *batch,
                            struct ll_text *error)
{
    int64_t ticket;

    TIMED(DEVICE, ticket = has_no_device ? none_submit(batch)
                                         : ll_backend_fake()->submit(device, batch, error));
    return ticket;
}

static int timed_poll(struct ll_device *device, int64_t ticket, struct ll_result *out,
                      struct ll_text *error)
{
    int rc;

    TIMED(DEVICE, rc = has_no_device ? none_poll(ticket, out)
                                     : ll_backend_fake()->poll(device, ticket, out, error));
    return rc;
}

#define ll_intake_poll       timed_intake
#define ll_scheduler_prepare timed_prepare
#define ll_scheduler_plan    timed_plan
#define ll_batch_build       timed_batch
#define ll_scheduler_apply   timed_apply
#define ll_outlet_publish    timed_outlet
#define ll_outlet_wake       timed_wake
#include "runtime/engine.c"
#undef ll_intake_poll
#undef ll_scheduler_prepare
#undef ll_scheduler_plan
#undef ll_batch_build
#undef ll_scheduler_apply
#undef ll_outlet_publish
#undef ll_outlet_wake

/* ---- loads ------------------------------------------------------------------------------------*/

#define CLIENTS_MAX 9u
#define VOCAB       5000u
#define CONTEXT_MAX (131072u + 128)
#define TURN_NS     (10 * LL_NS_PER_US)

struct load {
    const char *name;
    uint32_t n_clients, n_open;  /* requests open, over all clients: running and waiting */
    uint32_t n_flood;            /* of them the first client's; 0: its share */
    uint32_t n_tenants;          /* of each client */
    uint32_t n_prompt, n_shared; /* the first n_shared ids are one of 16 beginnings */
    uint32_t max_low, max_high;  /* tokens to generate, drawn between */
    uint32_t n_long;             /* prompt of one request more that is always there; 0: none */
    uint32_t n_pages, n_warm;    /* steps before the measured ones */
    uint32_t n_cancel, cancel_every, n_burst, burst_every; /* in steps */
};

struct request {
    uint32_t gen;
    bool is_open;
};

struct client {
    struct ll_attachment a;
    struct ll_req *slot;
    struct ll_req_hot *hot;
    uint8_t *arena;
    uint32_t stride; /* bytes of arena a slot has */
    struct ll_event *event;
    struct ll_event_reader reader;
    struct request *request;
    uint32_t n_open, n_wanted, next_slot;
    uint64_t arena_bytes, event_bytes;
};

struct world {
    const struct load *load;
    struct ll_engine engine;
    struct ll_backend backend;
    struct ll_device *device;
    struct ll_info_region *info;
    struct ll_stat_region *stat;
    struct ll_mailbox to_step, to_control;
    struct ll_domain domain;
    struct ll_bell bell;
    struct client client[CLIENTS_MAX];
    uint32_t n_clients;
    uint64_t now_ns, random, hash;
    uint64_t n_cancels, n_longs;
};

static uint64_t world_clock(void *context)
{
    return ((const struct world *)context)->now_ns;
}

static void *zeroed(size_t n_bytes)
{
    size_t rounded = ll_align_up(n_bytes, LL_LINE_BYTES);
    void *memory = aligned_alloc(LL_LINE_BYTES, rounded);

    if (memory == NULL) {
        fprintf(stderr, "out of memory: %zu bytes\n", rounded);
        exit(1);
    }
    memset(memory, 0, rounded);
    return memory;
}

static void make_client(struct world *w, uint32_t id, uint32_t n_slots, uint32_t n_prompt_max)
{
    struct client *c = &w->client[id];
    uint32_t log2_events = 14;

    memset(c, 0, sizeof(*c));
    c->stride = (uint32_t)ll_align_up(n_prompt_max * sizeof(uint32_t), LL_LINE_BYTES);
    c->slot = zeroed(n_slots * sizeof(*c->slot));
    c->hot = zeroed(sizeof(*c->hot));
    c->arena = zeroed((size_t)n_slots * c->stride);
    c->event = zeroed(sizeof(*c->event) << log2_events);
    c->request = zeroed(n_slots * sizeof(*c->request));
    c->a = (struct ll_attachment){
        .id = id,
        .incarnation = 1,
        .domain = &w->domain,
        .socket_fd = -1,
        .pid_fd = -1,
        .kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
        .wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
        .slot = c->slot,
        .hot = c->hot,
        .arena = c->arena,
        .arena_bytes = n_slots * c->stride,
        .n_slots = n_slots,
        .rsp_head = zeroed(sizeof(struct ll_rsp_head)),
        .rst = zeroed(n_slots * sizeof(struct ll_rst)),
        .shadow = zeroed(n_slots * sizeof(struct ll_shadow)),
    };
    ll_event_writer_init(&c->a.events, c->event, log2_events, &c->hot->cons_pos, 0);
    ll_event_reader_init(&c->reader, c->event, log2_events, &c->hot->cons_pos, 0);
    struct ll_mail mail = {LL_MAIL_ATTACH, &c->a, 0};
    ll_mailbox_send(&w->to_step, &mail);
}

static void free_client(struct client *c)
{
    close(c->a.kick_fd);
    close(c->a.wake_fd);
    free(c->slot);
    free(c->hot);
    free(c->arena);
    free(c->event);
    free(c->request);
    free(c->a.rsp_head);
    free(c->a.rst);
    free(c->a.shadow);
}

static void open_engine(struct world *w, uint32_t n_running, uint32_t n_polls)
{
    char extra[64];
    struct ll_text error;
    struct ll_model_shape shape = {.n_vocab = VOCAB, .context_max = CONTEXT_MAX};
    struct ll_backend_options bo = {
        .struct_bytes = sizeof(bo),
        .n_slots = n_running,
        .n_pages = w->load->n_pages,
        .n_tokens_max = 2048,
        .n_rows_max = n_running,
        .pages_per_seq = ll_kv_pages_for(CONTEXT_MAX),
        .n_weights = 1,
        .extra = extra,
    };
    struct ll_engine_options eo = {
        .backend = &w->backend,
        .n_sequences = w->load->n_open + 144, /* told ones may have rows in flight */
        .limits = {.n_rows_max = n_running,
                   .n_tokens_max = bo.n_tokens_max,
                   .n_slots = n_running,
                   .context_max = CONTEXT_MAX,
                   .has_prefix_cache = true},
        .gate = {.n_vocab = VOCAB,
                 .context_max = CONTEXT_MAX,
                 .n_prompt_max = CONTEXT_MAX - 1,
                 .n_max = 1,
                 .n_top_max = LL_TOP_MAX,
                 .n_eos = 1,
                 .eos = {1}},
        .from_control = &w->to_step,
        .to_control = &w->to_control,
        .control_fd = -1,
        .notify_fd = -1,
        .clock = world_clock,
        .clock_context = w,
    };
    snprintf(extra, sizeof(extra), "verify=0,polls=%u", n_polls);
    memset(&none, 0, sizeof(none));
    none.n_polls_wanted = n_polls;
    w->backend = *ll_backend_fake();
    w->backend.submit = timed_submit;
    w->backend.poll = timed_poll;
    if (w->backend.open(&w->device, &bo, &shape, &eo.caps, &error) < 0) {
        fprintf(stderr, "%s\n", error.s);
        exit(1);
    }
    w->info = zeroed(LL_INFO_BYTES);
    w->stat = zeroed(sizeof(*w->stat));
    ll_stat_init(w->stat, w->now_ns);
    eo.device = w->device;
    eo.info = w->info;
    eo.stat = w->stat;
    if (ll_engine_open(&w->engine, &eo) < 0) {
        fprintf(stderr, "%s\n", ll_err_text());
        exit(1);
    }
}

static void world_open(struct world *w, const struct load *load, uint32_t n_running,
                       uint32_t n_polls)
{
    const uint32_t log2_words = 13;

    memset(w, 0, sizeof(*w));
    w->load = load;
    w->now_ns = LL_NS_PER_S;
    w->random = 42;
    open_engine(w, n_running, n_polls);
    w->domain.region.base = zeroed(ll_bell_bytes(log2_words));
    ll_bell_init(&w->bell, w->domain.region.base, log2_words, 0);
    ll_bell_reader_init(&w->domain.bell, &w->bell);
    uint32_t n_share = load->n_open / load->n_clients;
    for (uint32_t i = 0; i < load->n_clients; i++) {
        uint32_t n_rest = load->n_flood == 0 ? n_share
                          : i == 0           ? load->n_flood
                                   : (load->n_open - load->n_flood) / (load->n_clients - 1);
        make_client(w, i, n_rest + 8, load->n_prompt);
        w->client[i].n_wanted = n_rest;
    }
    w->n_clients = load->n_clients;
    if (load->n_long > 0)
        make_client(w, w->n_clients++, 16, load->n_long);
}

static void world_close(struct world *w)
{
    ll_engine_close(&w->engine);
    w->backend.close(w->device);
    for (uint32_t i = 0; i < w->n_clients; i++)
        free_client(&w->client[i]);
    free(w->domain.region.base);
    free(w->info);
    free(w->stat);
}

/* ---- clients ----------------------------------------------------------------------------------*/

static void ring(struct world *w, struct client *c, enum ll_op op, uint32_t slot)
{
    if (!ll_bell_push(&w->bell, ll_word_pack(op, c->a.id, c->a.incarnation, slot))) {
        fprintf(stderr, "the bell is full\n");
        exit(1);
    }
    atomic_fetch_add_explicit(&c->hot->n_submitted, 1, memory_order_release);
}

static uint64_t draw(struct world *w, uint64_t n)
{
    return ll_splitmix64(&w->random) % n;
}

static void submit(struct world *w, struct client *c, uint32_t n_prompt, uint32_t max_tokens,
                   uint32_t tenant)
{
    uint32_t i = c->next_slot;

    while (c->request[i].is_open)
        i = (i + 1) % c->a.n_slots;
    c->next_slot = (i + 1) % c->a.n_slots;
    struct request *r = &c->request[i];
    struct ll_req *req = &c->slot[i];
    uint32_t *prompt = (uint32_t *)(void *)(c->arena + (size_t)i * c->stride);
    uint64_t seed = ll_splitmix64(&w->random), shared = seed % 16;

    for (uint32_t k = 0; k < n_prompt; k++)
        prompt[k] = (uint32_t)(ll_splitmix64(k < w->load->n_shared ? &shared : &seed) % VOCAB);
    r->gen++;
    r->is_open = true;
    req->tag = i;
    req->prompt_off = i * c->stride;
    req->n_prompt = n_prompt;
    req->max_tokens = max_tokens;
    req->seed = seed;
    req->flags = LL_REQ_IGNORE_EOS;
    req->n = 1;
    req->tenant = tenant;
    req->temperature = req->top_p = req->repetition = 1.0f;
    atomic_store_explicit(&req->taken, 0, memory_order_relaxed);
    atomic_store_explicit(&req->state, r->gen << 8 | LL_SLOT_SUBMITTED, memory_order_release);
    c->n_open++;
    ring(w, c, LL_OP_SUBMIT, i);
}

/* Everybody has open what it wants to have open. */
static void keep_open(struct world *w)
{
    const struct load *load = w->load;

    for (uint32_t i = 0; i < load->n_clients; i++) {
        struct client *c = &w->client[i];
        while (c->n_open < c->n_wanted)
            submit(w, c, load->n_prompt,
                   load->max_low + (uint32_t)draw(w, load->max_high - load->max_low + 1),
                   (uint32_t)draw(w, ll_max_u64(load->n_tenants, 1)));
    }
    /* Each long one is another tenant's: else the first would be all it may have for a while. */
    if (load->n_long > 0 && w->client[load->n_clients].n_open == 0)
        submit(w, &w->client[load->n_clients], load->n_long, 2, (uint32_t)++w->n_longs);
}

static void cancel_some(struct world *w, uint32_t n)
{
    for (; n > 0; n--) {
        struct client *c = &w->client[draw(w, w->load->n_clients)];
        uint32_t i = (uint32_t)draw(w, c->a.n_slots);
        if (!c->request[i].is_open)
            continue;
        atomic_store_explicit(&c->slot[i].cancel_gen, c->request[i].gen, memory_order_relaxed);
        ring(w, c, LL_OP_CANCEL, i);
        w->n_cancels++;
    }
}

static void mix(struct world *w, uint64_t word)
{
    w->hash = (w->hash ^ word) * 0x9e3779b97f4a7c15ull;
    w->hash ^= w->hash >> 29;
}

static void read_all(struct world *w)
{
    struct ll_event e;

    for (uint32_t i = 0; i < w->n_clients; i++) {
        struct client *c = &w->client[i];
        while (ll_event_read(&c->reader, &e)) {
            mix(w, (uint64_t)e.type << 56 ^ (uint64_t)i << 48 ^ (uint64_t)e.slot << 32 ^ e.index);
            mix(w, e.type == LL_EV_TOKEN ? e.u.token.id : w->now_ns);
            if (e.type == LL_EV_FINISH || e.type == LL_EV_ERROR) {
                c->request[e.slot].is_open = false;
                c->n_open--;
            } else {
                atomic_fetch_add_explicit(&c->slot[e.slot].taken, 1, memory_order_relaxed);
            }
        }
        ll_event_publish(&c->reader);
    }
}

#define WORLD_STAT(w, name) ll_stat_get(&(w)->stat->v.name)

#endif
