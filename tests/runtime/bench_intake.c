/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/bench_intake.c - what one turn of intake costs: nothing to do at 1, 64 and 256
 * clients, with a shared bell and with one a client; a request taken (256-byte slot copied and
 * checked, prompt of 16 ids); an event written. One thread, clients and runtime in one: no cache
 * line moves, so these are the costs of the work alone. --json prints one object. */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"
#include "runtime/intake.h"
#include "runtime/outlet.h"

#include <sys/mman.h>

#define CLIENTS_MAX 256u
#define SLOTS       32u
#define LOG2_EVENTS 12u

struct bench_client {
    struct ll_attachment a;
    struct ll_req slot[SLOTS];
    struct ll_req_hot hot;
    struct ll_rsp_head rsp_head;
    struct ll_rst rst[SLOTS];
    struct ll_shadow shadow[SLOTS];
    uint8_t arena[4096];
    struct ll_event event[1u << LOG2_EVENTS];
    struct ll_event_reader reader;
    struct ll_bell own_bell; /* the client's view */
    _Alignas(64) uint8_t own_memory[32 * 64 + 1024];
    uint32_t gen;
};

static struct {
    struct ll_seq_pool pool;
    struct ll_stats stats;
    struct ll_mailbox to_control;
    struct ll_outlet outlet;
    struct ll_intake intake;
    struct ll_domain shared, own[CLIENTS_MAX];
    struct ll_bell bell;
    struct bench_client *client;
    uint8_t *bell_memory;
} b;

static void open_bench(uint32_t n_clients, bool is_isolated)
{
    const struct ll_gate_limits limits = {.n_vocab = 128256,
                                          .context_max = 8192,
                                          .n_prompt_max = 8191,
                                          .n_pages_total = 100000,
                                          .n_max = 1,
                                          .n_top_max = 20};

    memset(&b, 0, sizeof(b));
    size_t n_bytes = n_clients * sizeof(*b.client);
    b.client = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    b.bell_memory =
        mmap(NULL, ll_bell_bytes(14), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b.client == MAP_FAILED || b.bell_memory == MAP_FAILED ||
        ll_seq_pool_init(&b.pool, 64, 8192) < 0)
        exit(1);
    ll_outlet_init(&b.outlet, &b.pool, &b.stats, &b.to_control);
    ll_intake_init(&b.intake, &b.pool, &b.outlet, &b.stats, &limits);
    ll_bell_init(&b.bell, b.bell_memory, 14, 0);
    ll_bell_reader_init(&b.shared.bell, &b.bell);
    for (uint32_t i = 0; i < n_clients; i++) {
        struct bench_client *c = &b.client[i];
        /* Staggered as the control thread does it: equal page offsets would share one L1 set. */
        ll_bell_init(&c->own_bell, c->own_memory + i % 32 * 64, 6, 0);
        ll_bell_reader_init(&b.own[i].bell, &c->own_bell);
        c->a = (struct ll_attachment){.id = i,
                                      .incarnation = 1,
                                      .domain = is_isolated ? &b.own[i] : &b.shared,
                                      .slot = c->slot,
                                      .hot = &c->hot,
                                      .arena = c->arena,
                                      .arena_bytes = sizeof(c->arena),
                                      .n_slots = SLOTS,
                                      .rsp_head = &c->rsp_head,
                                      .rst = c->rst,
                                      .shadow = c->shadow};
        ll_event_writer_init(&c->a.events, c->event, LOG2_EVENTS, &c->hot.cons_pos, 0);
        ll_event_reader_init(&c->reader, c->event, LOG2_EVENTS, &c->hot.cons_pos, 0);
        ll_intake_attach(&b.intake, &c->a);
    }
    ll_intake_poll(&b.intake, 1);
}

static void close_bench(uint32_t n_clients)
{
    ll_seq_pool_free(&b.pool);
    munmap(b.client, n_clients * sizeof(*b.client));
    munmap(b.bell_memory, ll_bell_bytes(14));
}

static int by_value(const void *left, const void *right)
{
    double l = *(const double *)left, r = *(const double *)right;

    return (l > r) - (l < r);
}

/* Median of many short runs, so that what else the machine does is left out. */
static double idle_ns(uint32_t n_clients, bool is_isolated)
{
    double runs[101];

    open_bench(n_clients, is_isolated);
    for (size_t i = 0; i < LL_COUNT(runs); i++) {
        uint64_t start_ns = ll_now_ns();
        for (uint32_t k = 0; k < 1000; k++)
            ll_intake_poll(&b.intake, 2); /* before the next sweep */
        runs[i] = (double)(ll_now_ns() - start_ns) / 1000;
    }
    close_bench(n_clients);
    qsort(runs, LL_COUNT(runs), sizeof(runs[0]), by_value);
    return runs[LL_COUNT(runs) / 2];
}

/* The sweep that comes every 10 ms: all counts read, nothing found. */
static double sweep_ns(uint32_t n_clients)
{
    double runs[101];
    uint64_t now_ns = 2;

    open_bench(n_clients, false);
    for (size_t i = 0; i < LL_COUNT(runs); i++) {
        uint64_t start_ns = ll_now_ns();
        for (uint32_t k = 0; k < 100; k++) {
            now_ns += LL_INTAKE_SWEEP_NS;
            ll_intake_poll(&b.intake, now_ns);
        }
        runs[i] = (double)(ll_now_ns() - start_ns) / 100;
    }
    close_bench(n_clients);
    qsort(runs, LL_COUNT(runs), sizeof(runs[0]), by_value);
    return runs[LL_COUNT(runs) / 2];
}

/* A submit's word popped, its slot copied and checked, prompt copied, WAITING; then its end told
 * and read. *event_ns: a token event booked and written. */
static double request_ns(double *event_ns)
{
    double runs[101], events[101];

    open_bench(1, false);
    struct bench_client *c = &b.client[0];
    for (size_t i = 0; i < LL_COUNT(runs); i++) {
        uint64_t spent_ns = 0, spent_events_ns = 0;
        for (uint32_t round = 0; round < 10; round++) {
            c->gen++;
            for (uint32_t s = 0; s < SLOTS; s++) {
                struct ll_req *req = &c->slot[s];
                req->n_prompt = 16, req->max_tokens = 100, req->n = 1;
                req->top_p = req->repetition = 1.0f;
                atomic_store_explicit(&req->taken, 0, memory_order_relaxed);
                atomic_store_explicit(&req->state, c->gen << 8 | LL_SLOT_SUBMITTED,
                                      memory_order_release);
                ll_bell_push(&b.bell, ll_word_pack(LL_OP_SUBMIT, 0, 1, s));
            }
            uint64_t start_ns = ll_now_ns();
            for (uint32_t s = 0; s < SLOTS; s += LL_INTAKE_WORDS_TURN)
                ll_intake_poll(&b.intake, 2);
            spent_ns += ll_now_ns() - start_ns;
            if (b.pool.list[LL_SEQ_WAITING].n != SLOTS)
                exit(1);

            struct ll_yield yields[SLOTS];
            uint32_t n = 0;
            start_ns = ll_now_ns();
            for (uint32_t s = b.pool.list[LL_SEQ_WAITING].first; s != LL_NONE;
                 s = b.pool.seq[s].next) {
                struct ll_seq *seq = &b.pool.seq[s];
                ll_outlet_book(&b.outlet, seq, 1, 2);
                yields[n++] =
                    (struct ll_yield){.seq = s, .n_tokens = 1, .token = {7}, .n_booked = 1};
            }
            ll_outlet_publish(&b.outlet, yields, n, 2);
            spent_events_ns += ll_now_ns() - start_ns;

            while (b.pool.list[LL_SEQ_WAITING].first != LL_NONE) {
                struct ll_seq *seq = &b.pool.seq[b.pool.list[LL_SEQ_WAITING].first];
                seq->end = LL_END_LENGTH;
                ll_seq_move(&b.pool, seq, LL_SEQ_ENDING);
            }
            ll_outlet_publish(&b.outlet, NULL, 0, 2);
            struct ll_event event;
            while (ll_event_read(&c->reader, &event))
                ;
            ll_event_publish(&c->reader);
        }
        runs[i] = (double)spent_ns / (10 * SLOTS);
        events[i] = (double)spent_events_ns / (10 * SLOTS);
    }
    close_bench(1);
    qsort(runs, LL_COUNT(runs), sizeof(runs[0]), by_value);
    qsort(events, LL_COUNT(events), sizeof(events[0]), by_value);
    *event_ns = events[LL_COUNT(events) / 2];
    return runs[LL_COUNT(runs) / 2];
}

int main(int argc, char **argv)
{
    static const uint32_t counts[] = {1, 64, CLIENTS_MAX};
    bool is_json = argc > 1 && strcmp(argv[1], "--json") == 0;
    double shared[3], isolated[3], sweep[3], event_ns;

    for (size_t i = 0; i < LL_COUNT(counts); i++) {
        shared[i] = idle_ns(counts[i], false);
        isolated[i] = idle_ns(counts[i], true);
        sweep[i] = sweep_ns(counts[i]);
    }
    double take_ns = request_ns(&event_ns);
    if (is_json) {
        printf("{\"request_ns\":%.1f,\"event_ns\":%.1f", take_ns, event_ns);
        for (size_t i = 0; i < LL_COUNT(counts); i++)
            printf(",\"idle_%u_ns\":%.1f,\"idle_isolated_%u_ns\":%.1f,\"sweep_%u_ns\":%.1f",
                   counts[i], shared[i], counts[i], isolated[i], counts[i], sweep[i]);
        printf("}\n");
        return 0;
    }
    printf(
        "clients   idle turn, one bell   a bell each   turn with the 10 ms sweep   [ns, median]\n");
    for (size_t i = 0; i < LL_COUNT(counts); i++)
        printf("%7u   %19.1f   %11.1f   %25.1f\n", counts[i], shared[i], isolated[i], sweep[i]);
    printf("a request taken, 16 ids: %.1f ns; a token event booked and written: %.1f ns\n", take_ns,
           event_ns);
    return 0;
}
