/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/world.c - a runtime, its device and its clients; one step of them; a whole seed. */
#include "tests/sim/sim.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Turns of the liveness phase: many times what the slowest seed needs. */
#define CALM_STEPS_MAX 1000000u

static uint64_t clock_of(void *context)
{
    return ((struct sim_world *)context)->now_ns;
}

static uint64_t step_ns(void *context, const struct ll_batch *batch)
{
    const struct sim_knobs *k = &((struct sim_world *)context)->k;
    uint64_t n_tokens = 0;

    for (uint32_t i = 0; k->token_ns != 0 && i < batch->n_rows; i++)
        n_tokens += batch->rows[i].n_tokens;
    return k->step_ns + k->token_ns * n_tokens;
}

/* ---- open, close ------------------------------------------------------------------------------*/

static struct ll_engine_options engine_options(struct sim_world *w)
{
    const struct sim_knobs *k = &w->k;

    return (struct ll_engine_options){
        .backend = sim_device_backend(),
        .device = (struct ll_device *)(void *)&w->device,
        .n_sequences = k->n_sequences,
        .n_waiting_max = k->n_waiting_max,
        .tokens_waiting_max = k->tokens_waiting_max,
        .limits = {.n_rows_max = k->n_rows_max,
                   .n_tokens_max = k->n_tokens_max,
                   .n_slots = k->n_device_slots,
                   .context_max = k->context_max,
                   .stall_ns = k->stall_ns,
                   .has_prefix_cache = k->has_prefix_cache,
                   .is_deterministic = k->always_swaps,
                   .n_grid = k->n_grid,
                   .max_itl_ns = k->max_itl_ns},
        .gate = {.n_vocab = k->n_vocab,
                 .context_max = k->context_max,
                 .n_prompt_max = k->context_max - 1,
                 .n_max = k->n_choices_max,
                 .n_top_max = LL_TOP_MAX,
                 .n_eos = 1,
                 .eos = {1}},
        .info = w->info,
        .stat = w->stat,
        .from_control = &w->to_step,
        .to_control = &w->to_control,
        .control_fd = -1,
        .notify_fd = -1,
        .step_timeout_ns = k->step_timeout_ns,
        .seed = w->seed,
        .clock = clock_of,
        .clock_context = w,
    };
}

/* Device and engine; negative: neither is open. */
static int open_engine(struct sim_world *w)
{
    const struct sim_knobs *k = &w->k;
    char extra[80];

    snprintf(extra, sizeof(extra), "eos_permille=%u,depth=%u", k->eos_permille, k->depth);
    struct ll_model_shape shape = {.n_vocab = k->n_vocab, .context_max = k->context_max};
    struct ll_backend_options bo = {
        .struct_bytes = sizeof(bo),
        .n_slots = k->n_device_slots,
        .n_pages = k->n_pages,
        .n_host_pages = k->n_host_pages,
        .n_tokens_max = k->n_tokens_max,
        .n_rows_max = k->n_rows_max,
        .pages_per_seq = ll_kv_pages_for(k->context_max),
        .n_weights = 1,
        .extra = extra,
    };
    struct ll_engine_options eo = engine_options(w);

    w->device = (struct sim_device){
        .now_ns = &w->now_ns, .step_ns = step_ns, .context = w, .copy_ns = k->copy_ns};
    if (k->n_grid != 0) {
        w->device.on_submit = sim_grid_submit;
        w->device.on_copy = sim_grid_copy;
    }
    int rc = sim_device_open(&w->device, &bo, &shape, &eo.caps);
    if (rc < 0)
        return rc;
    rc = ll_engine_open(&w->engine, &eo);
    if (rc < 0)
        sim_device_close(&w->device);
    return rc;
}

static void close_engine(struct sim_world *w)
{
    ll_engine_close(&w->engine);
    sim_device_close(&w->device);
}

static void *zeroed(size_t n_bytes)
{
    void *memory = aligned_alloc(64, ll_align_up(n_bytes, 64));

    if (memory == NULL)
        abort();
    return memset(memory, 0, n_bytes);
}

void sim_world_open(struct sim_world *w)
{
    const struct sim_knobs *k = &w->k;
    /* Words for all, rounded up: twice the slots of a domain's clients. */
    uint32_t n_clients = (uint32_t)ll_div_ceil(k->n_clients, k->n_domains);
    uint32_t log2_words =
        ll_log2_floor(ll_pow2_ceil(ll_max_u64(2ull * n_clients * k->n_slots, 32)));

    w->info = zeroed(LL_INFO_BYTES);
    w->stat = zeroed(sizeof(*w->stat));
    memset(&w->to_step, 0, offsetof(struct ll_mailbox, mail));
    memset(&w->to_control, 0, offsetof(struct ll_mailbox, mail));
    ll_stat_init(w->stat, w->now_ns);
    int rc = open_engine(w);
    SIM_CHECK(w, rc >= 0, "the engine does not open: %s", ll_err_text());
    for (uint32_t i = 0; i < k->n_domains; i++) {
        struct sim_domain *domain = &w->domain[i];
        *domain = (struct sim_domain){.d.id = i, .d.cache_key = i + 1};
        domain->d.region.base = zeroed(ll_bell_bytes(log2_words));
        /* Near the wrap of the lap, now and then. */
        ll_bell_init(&domain->bell, domain->d.region.base, log2_words,
                     SIM_ONE_OF(w, 0, UINT32_MAX - 1));
        ll_bell_reader_init(&domain->d.bell, &domain->bell);
    }
    for (uint32_t i = 0; i < SIM_CLIENTS_MAX; i++) {
        /* Incarnations have 10 bits on the wire. */
        w->client[i] = (struct sim_client){.id = i, .incarnation = sim_draw(w, 2) * 1020};
        w->client[i].return_step = i < k->n_clients ? w->step : UINT64_MAX;
    }
    w->is_open = true;
    w->is_failed = w->is_draining = w->has_idle = w->has_lost_some = false;
    w->n_then = w->n;
}

void sim_world_close(struct sim_world *w)
{
    w->n.preemptions += ll_stat_get(&w->stat->v.preemptions);
    w->n.shared += ll_stat_get(&w->stat->v.prompt_tokens_shared);
    w->n.swapped += ll_stat_get(&w->stat->v.preemptions_swapped);
    close_engine(w);
    for (uint32_t i = 0; i < w->k.n_clients; i++)
        if (w->client[i].place != SIM_OUT)
            sim_forget_client(&w->client[i]);
    for (uint32_t i = 0; i < w->k.n_domains; i++)
        free(w->domain[i].d.region.base);
    free(w->info);
    free(w->stat);
    w->is_open = false;
}

void sim_refused_starts(struct sim_world *w)
{
    w->info = zeroed(LL_INFO_BYTES);
    w->stat = zeroed(sizeof(*w->stat));
    for (uint64_t n = 1;; n++) {
        int64_t n_live = sim_n_live;
        sim_refuse_at = n;
        int rc = open_engine(w);
        bool was_refused = sim_refuse_at == 0;
        sim_refuse_at = 0;
        if (rc >= 0)
            close_engine(w);
        SIM_CHECK(w, was_refused == (rc < 0), "allocation %llu at start: refused %d, answer %d",
                  (unsigned long long)n, was_refused, rc);
        SIM_CHECK(w, sim_n_live == n_live, "allocation %llu refused at start: %lld are lost",
                  (unsigned long long)n, (long long)(sim_n_live - n_live));
        if (!was_refused)
            break;
    }
    free(w->info);
    free(w->stat);
}

uint32_t sim_n_open(const struct sim_world *w)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < w->k.n_clients; i++)
        if (w->client[i].place == SIM_ATTACHED)
            n += w->client[i].n_open;
    return n;
}

/* ---- faults of the world ----------------------------------------------------------------------*/

static void draw_faults(struct sim_world *w)
{
    const struct sim_knobs *k = &w->k;

    if (sim_chance(w, k->jump_chance)) {
        w->now_ns += SIM_ONE_OF(w, 1, 20, 300, 70000) * LL_NS_PER_MS;
        w->last_jump_ns = w->now_ns;
        w->n.jumps++;
    }
    if (sim_chance(w, k->nan_chance))
        w->device.is_nan_due = true;
    if (sim_chance(w, k->device_chance) && w->device.fault == SIM_FAULT_NONE)
        w->device.fault =
            (enum sim_fault)SIM_ONE_OF(w, SIM_FAULT_SUBMIT, SIM_FAULT_POLL, SIM_FAULT_HANG);
    if (sim_chance(w, k->drain_chance) && !w->is_draining) {
        w->is_draining = true;
        sim_mail(w, LL_MAIL_DRAIN, NULL,
                 sim_draw(w, 2) ? w->now_ns + sim_draw(w, 5000) * k->turn_ns : 0);
    }
}

/* R11: the device has failed. Everybody whose request was seen has been told, once. */
static void check_told(struct sim_world *w)
{
    for (uint32_t i = 0; i < w->k.n_clients; i++) {
        struct sim_client *client = &w->client[i];
        if (client->place != SIM_ATTACHED || client->kind == SIM_HOSTILE)
            continue;
        sim_client_read(w, client, UINT32_MAX);
        for (uint32_t s = 0; s < client->a.n_slots; s++) {
            const struct sim_request *r = &client->request[s];
            SIM_CHECK(w, !r->is_open || client->a.shadow[s].gen != r->gen,
                      "client %u slot %u was not told that the device has failed", i, s);
        }
    }
}

static void take_failure(struct sim_world *w, int rc)
{
    struct ll_text text = {""};
    struct ll_result result;

    if (w->device.failed == 0 && w->device.fault == SIM_FAULT_NONE) {
        w->device.fake->poll(w->device.inner, 0, &result, &text);
        sim_fail(w, "the engine gives up (%s): %s", ll_error_name(rc), text.s);
    }
    sim_control(w);
    SIM_CHECK(w, w->is_failed, "the engine has failed, the control thread does not know");
    SIM_CHECK(w, ll_engine_turn(&w->engine) < 0, "the engine serves again after it failed");
    check_told(w);
    w->n.failures++;
}

static void restart(struct sim_world *w)
{
    sim_world_close(w);
    w->n.restarts++;
    sim_world_open(w);
}

/* ---- a step -----------------------------------------------------------------------------------*/

void sim_step(struct sim_world *w)
{
    const struct sim_knobs *k = &w->k;

    w->step++;
    if (!k->is_quiet && !w->is_calm)
        draw_faults(w);
    sim_control(w);
    for (uint32_t i = 0; i < k->n_clients; i++)
        if (w->client[i].place == SIM_ATTACHED)
            sim_client_act(w, &w->client[i]);
    w->now_ns += k->turn_ns;

    uint64_t n_allocations = sim_n_allocations;
    int work = ll_engine_turn(&w->engine);
    SIM_CHECK(w, sim_n_allocations == n_allocations, "a turn allocates memory");
    sim_hash(w, (uint64_t)(int64_t)work);
    if (work < 0) {
        take_failure(w, work);
        restart(w);
        return;
    }
    ll_engine_check(&w->engine);
    if (w->is_draining && ll_engine_is_idle(&w->engine) && w->has_idle && sim_n_open(w) == 0)
        restart(w);
}

/* ---- liveness (Z4) ----------------------------------------------------------------------------*/

static void calm_down(struct sim_world *w)
{
    w->is_calm = true;
    w->device.is_nan_due = false;
    if (w->device.fault != SIM_FAULT_HANG)
        w->device.fault = SIM_FAULT_NONE; /* a step that hangs stays hanging */
    for (uint32_t i = 0; i < w->k.n_clients; i++) {
        struct sim_client *client = &w->client[i];
        client->kill_point = 0;
        if (client->place == SIM_ATTACHED && client->kind == SIM_HOSTILE)
            sim_detach(w, client, true);
    }
}

/* Who was stalled reads again, one after the other in an order that is drawn. */
static void release_some(struct sim_world *w)
{
    struct sim_client *client = &w->client[sim_draw(w, w->k.n_clients)];

    client->is_calm = true;
}

static bool is_at_rest(const struct sim_world *w)
{
    for (uint32_t i = 0; i < w->k.n_clients; i++) {
        const struct sim_client *client = &w->client[i];
        if (client->place == SIM_DEAD || client->place == SIM_LEAVING ||
            (client->place == SIM_ATTACHED && (client->n_open > 0 || !client->is_calm)))
            return false;
    }
    return ll_engine_is_idle(&w->engine);
}

/* Steps until nothing is open. Time runs faster while nothing happens: stalls take a while. */
static void settle(struct sim_world *w)
{
    const struct ll_stats *s = &w->stat->v;
    const uint64_t patience_ns =
        2 * w->k.stall_ns + w->k.step_timeout_ns + 200 * LL_NS_PER_MS + 100 * w->k.step_ns;
    uint64_t then = 0, since_ns = w->now_ns, turn_ns = w->k.turn_ns;

    for (uint32_t i = 0; !is_at_rest(w); i++) {
        SIM_CHECK(w, i < CALM_STEPS_MAX, "%u requests are open after %u calm steps", sim_n_open(w),
                  i);
        if (sim_draw(w, 8) == 0)
            release_some(w);
        w->now_ns += turn_ns - w->k.turn_ns;
        sim_step(w);
        s = &w->stat->v; /* another after a restart */
        uint64_t now = ll_stat_get(&s->steps) + ll_stat_get(&s->events_written) +
                       ll_stat_get(&s->clients_attached) + w->n.restarts;
        if (now != then) {
            since_ns = w->now_ns;
            turn_ns = w->k.turn_ns;
        } else {
            turn_ns = ll_min_u64(turn_ns + turn_ns / 4 + 1, LL_NS_PER_MS);
        }
        then = now;
        SIM_CHECK(w, w->now_ns - since_ns <= patience_ns,
                  "nothing has happened for %llu ms; %u requests are open, the engine %s",
                  (unsigned long long)((w->now_ns - since_ns) / LL_NS_PER_MS), sim_n_open(w),
                  ll_engine_is_idle(&w->engine) ? "is idle" : "holds some");
    }
}

/* What the runtime counted is what the clients saw. */
static void check_ledger(struct sim_world *w)
{
    const struct ll_stats *s = &w->stat->v;
    const struct sim_counts *n = &w->n, *then = &w->n_then;

#define SAME(column, seen)                                                                         \
    SIM_CHECK(w, ll_stat_get(&s->column) == (seen), #column " is %llu, clients saw %llu",          \
              (unsigned long long)ll_stat_get(&s->column), (unsigned long long)(seen))
    SAME(requests_submitted,
         ll_stat_get(&s->requests_rejected) + ll_stat_get(&s->requests_accepted));
    SAME(requests_accepted,
         ll_stat_get(&s->requests_finished) + ll_stat_get(&s->requests_cancelled) +
             ll_stat_get(&s->requests_expired) + ll_stat_get(&s->requests_stalled) +
             ll_stat_get(&s->requests_failed) + ll_stat_get(&s->requests_lost));
    if (w->has_lost_some)
        return;
    SAME(requests_submitted, n->submitted - then->submitted);
    SAME(requests_finished, n->finished - then->finished);
    SAME(requests_cancelled, n->cancelled - then->cancelled);
    SAME(requests_expired, n->expired - then->expired);
    SAME(requests_stalled, n->stalled - then->stalled);
    SAME(output_tokens, n->tokens - then->tokens);
    SAME(events_written, n->events - then->events);
#undef SAME
}

static void check_rest(struct sim_world *w)
{
    const struct ll_engine *engine = &w->engine;

    ll_engine_check(engine);
    SIM_CHECK(w, engine->scheduler.n_free_slots == w->k.n_device_slots,
              "%u of %u device slots are free at rest", engine->scheduler.n_free_slots,
              w->k.n_device_slots);
    for (uint32_t i = 0; i < w->k.n_clients; i++)
        if (w->client[i].place == SIM_ATTACHED)
            SIM_CHECK(w, w->client[i].a.credits_reserved == 0, "client %u holds credits at rest",
                      i);
    check_ledger(w);
}

static void live(struct sim_world *w)
{
    calm_down(w);
    settle(w);
    check_rest(w);
    /* The service still works, for each slot of each client that there can be. */
    for (uint32_t i = 0; i < w->k.n_clients; i++) {
        struct sim_client *client = &w->client[i];
        if (client->place == SIM_OUT)
            sim_attach(w, client, SIM_HONEST);
        client->is_calm = true;
        for (uint32_t s = 0; s < w->k.n_slots; s++)
            sim_client_probe(w, client);
    }
    settle(w);
    check_rest(w);
    for (uint32_t i = 0; i < w->k.n_clients; i++)
        if (w->client[i].place == SIM_ATTACHED)
            sim_detach(w, &w->client[i], sim_draw(w, 2));
    settle(w);
    sim_control(w);
    SIM_CHECK(w, w->engine.intake.n_clients == 0, "%u clients are left",
              w->engine.intake.n_clients);
}

/* ---- a seed -----------------------------------------------------------------------------------*/

void sim_run(struct sim_world *w, uint64_t seed, uint64_t n_steps, int quiet)
{
    memset(w, 0, offsetof(struct sim_world, engine));
    w->n = w->n_then = (struct sim_counts){0};
    w->is_calm = false;
    w->last_jump_ns = 0;
    if (w->n_seen > 0)
        memset(w->seen, 0, sizeof(w->seen));
    w->n_seen = 0;
    w->seed = seed;
    w->random = seed * 0x9e3779b97f4a7c15ull + 1;
    w->now_ns = LL_NS_PER_S + sim_draw(w, 1u << 30);
    sim_draw_knobs(w, quiet);
    w->rules = (struct ll_fake_rules){.n_vocab = w->k.n_vocab, .eos_permille = w->k.eos_permille};
    if (sim_draw(w, 32) == 0)
        sim_refused_starts(w);
    sim_world_open(w);
    while (w->step < n_steps)
        sim_step(w);
    live(w);
    sim_hash(w, w->n.tokens);
    sim_hash(w, w->n.finished << 32 ^ w->n.failed << 16 ^ w->n.refused);
    sim_hash(w, w->now_ns);
    sim_world_close(w);
}
