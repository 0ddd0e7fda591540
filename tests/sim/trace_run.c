/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/trace_run.c - one runtime on a virtual clock, a client a tenant, requests as they
 * arrive. A client whose slots are all taken keeps the request until one is free; a request that is
 * told BUSY comes again when it was told to, until its deadline has passed. */
#include "tests/sim/trace.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define N_VOCAB     32000u
#define N_SLOTS     512u
#define LOG2_EVENTS 17u /* 512 slots x 256 events */
#define START_NS    LL_NS_PER_S
#define QUANTUM_NS  (20 * LL_NS_PER_US)
#define RETRIES_MAX 1000u
#define WHEEL_MS    16384u /* more than the longest that anybody is told to wait */

struct tenant {
    struct ll_attachment a;
    struct ll_req *slot;
    struct ll_req_hot *hot;
    uint8_t *arena;
    struct ll_event *event;
    struct ll_event_reader reader;
    uint32_t request[N_SLOTS]; /* index of what is in a slot; LL_NONE: free */
    uint32_t gen[N_SLOTS];
    uint32_t *queue; /* requests that arrived and are not sent, in order */
    uint32_t queue_first, queue_last;
};

struct player {
    struct trace_load *load;
    struct trace_result *result;
    uint64_t now_ns;
    uint32_t stride; /* bytes of arena a slot has */
    uint32_t n_open, n_ended, next;
    struct ll_engine engine;
    struct sim_device device;
    struct ll_info_region *info;
    struct ll_stat_region *stat;
    struct ll_mailbox to_step, to_control;
    struct ll_domain domain;
    struct ll_bell bell;
    struct tenant tenant[TRACE_TENANTS_MAX];
    /* Requests told BUSY, each to be sent again at its own time: lists by millisecond. */
    uint32_t wheel[WHEEL_MS];
    uint64_t wheel_ms;
};

static struct player player; /* large */

static uint64_t clock_of(void *context)
{
    return ((struct player *)context)->now_ns;
}

/* ---- the device's time ------------------------------------------------------------------------*/

/* The weights are read once, or computed with for so long that reading hides behind it; the KV is
 * read by every row; attention of prompt chunks is arithmetic. */
static uint64_t step_ns(void *context, const struct ll_batch *batch)
{
    double kv_tokens = 0, pairs = 0, n_tokens = 0;

    for (uint32_t i = 0; i < batch->n_rows; i++) {
        const struct ll_row *row = &batch->rows[i];
        n_tokens += row->n_tokens;
        kv_tokens += row->pos + row->n_tokens;
        if (row->n_tokens > 1)
            pairs += (double)row->n_tokens * (row->pos + row->n_tokens / 2.0);
    }
    double weights_s = TRACE_WEIGHT_BYTES / TRACE_BYTES_S;
    double linear_s = n_tokens * TRACE_TOKEN_FLOP / TRACE_FLOP_S;
    double s = linear_s > weights_s ? linear_s : weights_s;
    s += kv_tokens * TRACE_KV_BYTES / TRACE_BYTES_S;
    s += pairs * TRACE_PAIR_FLOP / TRACE_PAIR_FLOP_S;
    uint64_t ns = TRACE_FIXED_NS + (uint64_t)(s * 1e9);
    ((struct player *)context)->result->busy_ns += ns;
    return ns;
}

/* ---- open, close ------------------------------------------------------------------------------*/

static void *zeroed(size_t n_bytes)
{
    void *memory = aligned_alloc(4096, ll_align_up(n_bytes, 4096));

    if (memory == NULL) {
        fprintf(stderr, "trace: out of memory\n");
        exit(1);
    }
    return memset(memory, 0, n_bytes);
}

static void open_engine(struct player *p, const struct trace_setup *setup)
{
    struct ll_model_shape shape = {.n_vocab = N_VOCAB, .context_max = setup->context_max};
    struct ll_backend_options bo = {
        .struct_bytes = sizeof(bo),
        .n_slots = setup->n_rows_max,
        .n_pages = setup->n_pages,
        .n_tokens_max = setup->n_tokens_max,
        .n_rows_max = setup->n_rows_max,
        .pages_per_seq = ll_kv_pages_for(setup->context_max),
        .n_weights = 1,
        .extra = "verify=0",
    };
    struct ll_engine_options eo = {
        .backend = sim_device_backend(),
        .device = (struct ll_device *)(void *)&p->device,
        .n_sequences = setup->n_rows_max + setup->n_waiting_max,
        .n_waiting_max = setup->n_waiting_max,
        .tokens_waiting_max = setup->tokens_waiting_max,
        .limits = {.n_rows_max = setup->n_rows_max,
                   .n_tokens_max = setup->n_tokens_max,
                   .n_slots = setup->n_rows_max,
                   .context_max = setup->context_max,
                   .has_prefix_cache = setup->has_prefix_cache,
                   .max_itl_ns = setup->max_itl_ns},
        .gate = {.n_vocab = N_VOCAB,
                 .context_max = setup->context_max,
                 .n_prompt_max = setup->context_max - 1,
                 .n_max = 1},
        .info = p->info,
        .stat = p->stat,
        .from_control = &p->to_step,
        .to_control = &p->to_control,
        .control_fd = -1,
        .notify_fd = -1,
        .seed = 1,
        .clock = clock_of,
        .clock_context = p,
    };

    p->device = (struct sim_device){.now_ns = &p->now_ns, .step_ns = step_ns, .context = p};
    if (sim_device_open(&p->device, &bo, &shape, &eo.caps) < 0 ||
        ll_engine_open(&p->engine, &eo) < 0) {
        fprintf(stderr, "trace: the engine does not open: %s\n", ll_err_text());
        exit(1);
    }
}

static void open_tenant(struct player *p, uint32_t id)
{
    struct tenant *t = &p->tenant[id];

    *t = (struct tenant){
        .slot = zeroed(N_SLOTS * sizeof(struct ll_req)),
        .hot = zeroed(sizeof(struct ll_req_hot)),
        .arena = zeroed((size_t)N_SLOTS * p->stride),
        .event = zeroed(sizeof(struct ll_event) << LOG2_EVENTS),
        .queue = zeroed((p->load->n + 1) * sizeof(uint32_t)),
    };
    memset(t->request, 0xff, sizeof(t->request));
    t->a = (struct ll_attachment){
        .id = id,
        .incarnation = 1,
        .domain = &p->domain,
        .socket_fd = -1,
        .pid_fd = -1,
        .kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
        .wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
        .slot = t->slot,
        .hot = t->hot,
        .arena = t->arena,
        .arena_bytes = N_SLOTS * p->stride,
        .n_slots = N_SLOTS,
        .rsp_head = zeroed(sizeof(struct ll_rsp_head)),
        .rst = zeroed(N_SLOTS * sizeof(struct ll_rst)),
        .shadow = zeroed(N_SLOTS * sizeof(struct ll_shadow)),
    };
    ll_event_writer_init(&t->a.events, t->event, LOG2_EVENTS, &t->hot->cons_pos, 0);
    ll_event_reader_init(&t->reader, t->event, LOG2_EVENTS, &t->hot->cons_pos, 0);
    struct ll_mail mail = {LL_MAIL_ATTACH, &t->a, 0};
    ll_mailbox_send(&p->to_step, &mail);
}

static void open_player(struct player *p, struct trace_load *load, const struct trace_setup *setup,
                        struct trace_result *result)
{
    uint32_t log2_words = ll_log2_floor(ll_pow2_ceil(2ull * N_SLOTS * load->n_tenants));

    memset(p, 0, sizeof(*p));
    memset(p->wheel, 0xff, sizeof(p->wheel));
    p->load = load;
    p->result = result;
    p->now_ns = START_NS;
    p->stride = setup->context_max * 4;
    p->info = zeroed(LL_INFO_BYTES);
    p->stat = zeroed(sizeof(*p->stat));
    ll_stat_init(p->stat, p->now_ns);
    open_engine(p, setup);
    p->domain.cache_key = 1;
    p->domain.region.base = zeroed(ll_bell_bytes(log2_words));
    ll_bell_init(&p->bell, p->domain.region.base, log2_words, 0);
    ll_bell_reader_init(&p->domain.bell, &p->bell);
    for (uint32_t i = 0; i < load->n_tenants; i++)
        open_tenant(p, i);
}

static void close_player(struct player *p)
{
    ll_engine_close(&p->engine);
    sim_device_close(&p->device);
    for (uint32_t i = 0; i < p->load->n_tenants; i++) {
        struct tenant *t = &p->tenant[i];
        free(t->slot);
        free(t->hot);
        free(t->arena);
        free(t->event);
        free(t->queue);
        free(t->a.rsp_head);
        free(t->a.rst);
        free(t->a.shadow);
        close(t->a.kick_fd);
        close(t->a.wake_fd);
    }
    free(p->domain.region.base);
    free(p->info);
    free(p->stat);
}

/* ---- clients ----------------------------------------------------------------------------------*/

static void write_prompt(const struct trace_request *r, uint32_t *ids)
{
    uint64_t own = r->seed * 0x9e3779b97f4a7c15ull, shared = r->prefix * 0xbf58476d1ce4e5b9ull;

    for (uint32_t i = 0; i < r->n_prompt; i++)
        ids[i] = (uint32_t)(ll_splitmix64(i < r->n_shared ? &shared : &own) >> 32) % N_VOCAB;
}

static void send_request(struct player *p, struct tenant *t, uint32_t slot, uint32_t index)
{
    struct trace_request *r = &p->load->request[index];
    struct ll_req *q = &t->slot[slot];

    t->request[slot] = index;
    t->gen[slot] = ll_gen_next(t->gen[slot]);
    r->is_sent = true;
    p->n_open++;
    r->submit_ns = p->now_ns - START_NS;
    write_prompt(r, (uint32_t *)(void *)(t->arena + (size_t)slot * p->stride));
    q->prompt_off = slot * p->stride;
    q->n_prompt = r->n_prompt;
    q->max_tokens = r->n_output;
    q->deadline_ns = r->deadline_ns == 0 ? 0 : r->deadline_ns + START_NS;
    q->seed = r->seed;
    q->n = 1;
    q->priority = (int8_t)r->priority;
    q->temperature = q->top_p = q->repetition = 1.0f;
    atomic_store_explicit(&q->taken, 0, memory_order_relaxed);
    atomic_store_explicit(&q->state, t->gen[slot] << 8 | LL_SLOT_SUBMITTED, memory_order_release);
    ll_bell_push(&p->bell, ll_word_pack(LL_OP_SUBMIT, t->a.id, t->a.incarnation, slot));
    atomic_fetch_add_explicit(&t->hot->n_submitted, 1, memory_order_release);
}

static void push(struct player *p, uint32_t index)
{
    struct tenant *t = &p->tenant[p->load->request[index].tenant];

    t->queue[t->queue_last++ % (p->load->n + 1)] = index;
}

/* Who was told to wait and has. */
static void come_again(struct player *p)
{
    for (; p->wheel_ms < (p->now_ns - START_NS) / LL_NS_PER_MS; p->wheel_ms++) {
        uint32_t *first = &p->wheel[p->wheel_ms % WHEEL_MS], index = *first;
        *first = LL_NONE;
        for (; index != LL_NONE; index = p->load->request[index].next)
            push(p, index);
    }
}

/* The first of a tenant's queue whose user is still there, out of it; LL_NONE: there is none. */
static uint32_t pop(struct player *p, struct tenant *t)
{
    while (t->queue_first != t->queue_last) {
        uint32_t index = t->queue[t->queue_first++ % (p->load->n + 1)];
        struct trace_request *r = &p->load->request[index];
        if (r->deadline_ns == 0 || r->deadline_ns + START_NS > p->now_ns)
            return index;
        r->code = LL_E_BUSY;
        r->has_ended = true;
        p->n_ended++;
    }
    return LL_NONE;
}

/* What has arrived joins its tenant's queue; a queue's head goes where a slot is free. */
static void send_some(struct player *p)
{
    const struct trace_load *load = p->load;

    if (load->is_cut && p->now_ns - START_NS >= load->end_ns)
        return;
    come_again(p);
    for (; p->next < load->n && load->request[p->next].arrival_ns + START_NS <= p->now_ns;
         p->next++)
        push(p, p->next);
    for (uint32_t i = 0; i < load->n_tenants; i++) {
        struct tenant *t = &p->tenant[i];
        uint32_t index;
        for (uint32_t s = 0; s < N_SLOTS && t->queue_first != t->queue_last; s++)
            if (t->request[s] == LL_NONE && (index = pop(p, t)) != LL_NONE)
                send_request(p, t, s, index);
    }
}

static void add_gap(struct trace_gaps *gaps, uint64_t ns)
{
    if (gaps->n == gaps->capacity) {
        gaps->capacity = gaps->capacity * 2 + 4096;
        gaps->ns = realloc(gaps->ns, gaps->capacity * sizeof(*gaps->ns));
        if (gaps->ns == NULL)
            abort();
    }
    gaps->ns[gaps->n++] = ns;
}

static bool is_in_window(const struct player *p, uint64_t t_ns)
{
    return t_ns >= p->load->end_ns / 2 && t_ns < p->load->end_ns;
}

static void end_request(struct player *p, struct trace_request *r, const struct ll_event *e)
{
    if (e->type == LL_EV_ERROR && e->u.error.code == LL_E_BUSY && ++r->n_busy < RETRIES_MAX) {
        uint64_t ms = (p->now_ns - START_NS) / LL_NS_PER_MS + 1 + e->u.error.retry_ms;
        r->next = p->wheel[ms % WHEEL_MS];
        p->wheel[ms % WHEEL_MS] = (uint32_t)(r - p->load->request);
        return;
    }
    r->has_ended = true;
    r->end_ns = e->t_ns - START_NS;
    p->n_ended++;
    if (e->type == LL_EV_ERROR) {
        r->code = e->u.error.code;
        return;
    }
    r->n_cached = e->u.finish.n_cached;
    p->result->tokens_by[r->tenant] += r->n_in_window;
    p->result->n_good_prompt += r->n_prompt_in_window;
    p->result->n_ended += is_in_window(p, r->end_ns);
}

static void take_event(struct player *p, struct tenant *t, const struct ll_event *e)
{
    struct trace_request *r = &p->load->request[t->request[e->slot]];
    uint64_t t_ns = e->t_ns - START_NS;

    if (e->type == LL_EV_TOKEN) {
        r->n_in_window += is_in_window(p, t_ns);
        p->result->n_tokens += is_in_window(p, t_ns);
        if (r->n_got++ == 0) {
            r->first_ns = t_ns;
            r->n_prompt_in_window = is_in_window(p, t_ns) ? r->n_prompt : 0;
            p->result->n_prompt += r->n_prompt_in_window;
        } else {
            add_gap(&p->result->gaps[r->class_id], t_ns - r->last_ns);
        }
        r->last_ns = t_ns;
        atomic_fetch_add_explicit(&t->slot[e->slot].taken, 1, memory_order_relaxed);
        return;
    }
    t->request[e->slot] = LL_NONE;
    p->n_open--;
    end_request(p, r, e);
}

static void read_some(struct player *p)
{
    struct ll_event event;

    for (uint32_t i = 0; i < p->load->n_tenants; i++) {
        struct tenant *t = &p->tenant[i];
        if (!ll_event_ready(&t->reader))
            continue;
        while (ll_event_read(&t->reader, &event))
            take_event(p, t, &event);
        ll_event_publish(&t->reader);
    }
}

void trace_run(struct trace_load *load, const struct trace_setup *setup,
               struct trace_result *result)
{
    struct player *p = &player;

    *result = (struct trace_result){0};
    open_player(p, load, setup, result);
    while (p->n_open > 0 ||
           (p->n_ended < load->n && !(load->is_cut && p->now_ns - START_NS >= load->end_ns))) {
        send_some(p);
        p->now_ns += QUANTUM_NS;
        if (ll_engine_turn(&p->engine) < 0) {
            fprintf(stderr, "trace: the engine gives up\n");
            exit(1);
        }
        read_some(p);
    }
    result->seconds = (double)(p->now_ns - START_NS) * 1e-9;
    result->n_steps = ll_stat_get(&p->stat->v.steps);
    result->n_preemptions = ll_stat_get(&p->stat->v.preemptions);
    close_player(p);
}
