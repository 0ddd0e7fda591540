/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/sim.h - the whole runtime but its threads, in one thread, from one seed.
 *
 * Real: intake, gate, scheduler, KV, outlet, ledger, the engine's turn. Played: the clock, the
 * device (the fake backend in the simulation's time), the control thread, the clients. A step of
 * the simulation is one turn of the engine and what everybody else does until the next.
 *
 *   Z1  everything is drawn from the seed: the same seed gives the same trace hash
 *   Z2  the clients know what must come back (kernels/fake/fake.h) and check every event
 *   Z3  whatever hostile clients do, others are served right and nobody is fenced but them
 *   Z4  once faults stop, every request of a living client ends within a bound, and another one
 *       after it; then everything has been given back and the ledger adds up
 *   Z5  the engine allocates nothing while it runs; opened without memory it fails and leaks
 * nothing
 *   Z6  with a grid of chunks, positions are computed as their request alone says (scheduler.h P9)
 *
 * A broken promise ends the program with the seed and the step: sim_fail(). */
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include "base/bits.h"
#include "base/clock.h"
#include "base/rng.h"
#include "kernels/fake/fake.h"
#include "ll/client.h"
#include "runtime/engine.h"

#define SIM_CLIENTS_MAX 6u
#define SIM_DOMAINS_MAX 3u
#define SIM_CHOICES_MAX 9u
#define SIM_BIAS_MAX    8u
#define SIM_SEEN_MAX    (1u << 15)

/* ---- what is drawn once a seed ----------------------------------------------------------------*/
struct sim_knobs {
    bool is_quiet; /* no faults, honest clients */
    /* limits */
    uint32_t n_vocab, eos_permille;
    uint32_t n_pages, n_host_pages, context_max;
    uint32_t n_device_slots, n_rows_max, n_tokens_max, n_sequences, depth;
    uint32_t n_waiting_max;
    uint64_t tokens_waiting_max;
    uint32_t n_clients, n_domains, n_slots, log2_events;
    uint64_t stall_ns, step_timeout_ns;
    /* time */
    uint64_t turn_ns, step_ns, token_ns, copy_ns, max_itl_ns;
    /* load */
    uint32_t n_prompt_max, n_output_max, n_prefixes, n_choices_max;
    bool has_prefix_cache, always_swaps;
    uint32_t n_grid; /* 0: none */
    bool has_logprobs, has_deadlines, has_priorities;
    uint32_t submit_chance, cancel_chance, stop_chance; /* of 256, a client and step */
    /* faults, chances of 65536 a step */
    uint32_t jump_chance, death_chance, bye_chance, nan_chance, device_chance, drain_chance;
};

/* ---- the device -------------------------------------------------------------------------------*/
enum sim_fault { SIM_FAULT_NONE, SIM_FAULT_SUBMIT, SIM_FAULT_POLL, SIM_FAULT_HANG };

struct sim_device {
    const struct ll_backend *fake;
    struct ll_device *inner;
    const uint64_t *now_ns; /* the world's */
    /* Length of a step. */
    uint64_t (*step_ns)(void *context, const struct ll_batch *batch);
    /* Told of each batch before the device has it, and of each page copy; NULL: nobody is. */
    void (*on_submit)(void *context, const struct ll_batch *batch);
    void (*on_copy)(void *context, const struct ll_copy *copy);
    void *context;
    uint64_t copy_ns; /* of a page */

    enum sim_fault fault; /* hits the next call it can */
    bool is_nan_due;      /* the next result has a NaN in its first row */
    uint32_t n_nan;
    int failed; /* sticky */

    int64_t n_submitted;
    struct sim_flight {
        uint64_t done_ns;
    } flight[LL_ENGINE_DEPTH_MAX];
    uint64_t last_done_ns;
    struct ll_row_out *row; /* a copy, to be changed */
    uint32_t n_rows_max;

    uint8_t *cell; /* [n_pages]: 1, written by rows of whole cells; grid.c */
    uint8_t *host_cell;
    struct ll_copy *copy; /* ring of what was not forwarded yet */
    uint64_t *copy_due_ns;
    uint64_t n_copies, n_forwarded;
    uint64_t last_copy_ns;
};

/* Opens the fake backend inside; *device is given to the engine as its struct ll_device. */
int sim_device_open(struct sim_device *device, const struct ll_backend_options *options,
                    const struct ll_model_shape *shape, struct ll_backend_caps *caps);
void sim_device_close(struct sim_device *device);
const struct ll_backend *sim_device_backend(void);

/* grid.c: Z6; the device's on_submit and on_copy, context the world */
void sim_grid_submit(void *context, const struct ll_batch *batch);
void sim_grid_copy(void *context, const struct ll_copy *copy);

/* ---- clients ----------------------------------------------------------------------------------*/
enum sim_kind {
    SIM_HONEST,
    SIM_BUGGY,   /* sends what is to be refused, rings for nothing, cancels what is over */
    SIM_DYING,   /* is killed anywhere, in mid-submit too */
    SIM_STALLED, /* does not read for long, or drips */
    SIM_HOSTILE, /* scribbles over all it can write */
    SIM_KINDS,
};

enum sim_place {
    SIM_OUT,      /* not attached */
    SIM_ATTACHED, /* alive */
    SIM_DEAD,     /* killed; the control thread has not noticed */
    SIM_LEAVING,  /* DETACH was mailed, DETACHED did not come yet */
};

struct sim_choice {
    uint32_t n_got, n_top_got;
    uint64_t context; /* of the prompt and all it got but the last */
    uint32_t last_id;
    bool has_ended, is_stopped;
};

struct sim_request {
    bool is_open;
    bool is_cancelled, is_accepted;
    uint32_t gen;
    uint32_t *prompt; /* [context_max] */
    struct ll_req sent;
    struct ll_bias bias[SIM_BIAS_MAX];
    struct ll_sampling sampling;
    uint32_t max_tokens; /* resolved */
    int32_t refusal;     /* the code it must be refused with; 0: none */
    uint64_t submit_ns;
    uint32_t n_scored, n_prompt_top_got;
    uint64_t scored_context;
    uint32_t n_events, n_untaken; /* untaken: read, but the application has not consumed them */
    struct sim_choice choice[SIM_CHOICES_MAX];
};

struct sim_client {
    enum sim_place place;
    enum sim_kind kind;
    uint32_t id, incarnation;
    struct sim_domain *domain;
    struct ll_attachment a;
    struct ll_req *slot;
    struct ll_req_hot *hot;
    uint8_t *arena;
    uint32_t arena_stride;
    struct ll_event *event;
    struct ll_event_reader reader;
    struct sim_request *request; /* [n_slots] */
    uint32_t n_open;
    uint32_t read_chance; /* of 256 */
    bool is_asleep, is_calm;
    bool is_hoarder; /* drains the ring, but consumes nothing until it is calm */
    bool sweeps;     /* asks the control thread for a sweep: its bell did not take a word */
    uint64_t last_event_ns;
    uint64_t notice_step; /* of its death */
    uint64_t return_step; /* comes back then */
    uint64_t busy_until;  /* told BUSY: no submit before this step */
    uint32_t kill_point;  /* of its next submit; 0: none */
};

struct sim_domain {
    struct ll_domain d;
    struct ll_bell bell; /* the clients' view */
    bool has_hostile;    /* has or had one: what it sent nobody knows */
};

/* ---- the world --------------------------------------------------------------------------------*/
struct sim_counts {
    uint64_t submitted, finished, cancelled, expired, stalled, failed, refused, busy;
    uint64_t choices, shared, tokens, events, deaths, fenced, failures, restarts, jumps,
        preemptions, swapped, cached;
    uint64_t wakes;
};

struct sim_world {
    uint64_t seed, random, hash;
    uint64_t step; /* since the seed began */
    uint64_t now_ns, epoch_ns;
    struct sim_knobs k;
    struct ll_fake_rules rules;
    struct ll_engine engine;
    bool is_open;
    struct sim_device device;
    struct ll_info_region *info;
    struct ll_stat_region *stat;
    struct ll_mailbox to_step, to_control;
    struct sim_domain domain[SIM_DOMAINS_MAX];
    struct sim_client client[SIM_CLIENTS_MAX];
    bool is_calm;     /* the liveness phase */
    bool is_draining; /* told so */
    bool is_failed;   /* the engine has failed; a restart follows */
    bool has_idle;    /* IDLE came */
    bool has_lost_some;
    uint64_t last_jump_ns;
    struct sim_counts n;         /* over the whole seed */
    struct sim_counts n_then;    /* at the last restart */
    uint64_t seen[SIM_SEEN_MAX]; /* keys of prompt prefixes that may be in the cache; 0: free */
    uint32_t n_seen;
};

static inline uint32_t sim_draw(struct sim_world *w, uint32_t n)
{
    return (uint32_t)(ll_splitmix64(&w->random) >> 33) % n;
}

static inline bool sim_chance(struct sim_world *w, uint32_t of_65536)
{
    return of_65536 > 0 && sim_draw(w, 65536) < of_65536;
}

static inline uint32_t sim_one_of(struct sim_world *w, const uint32_t *list, size_t n)
{
    return list[sim_draw(w, (uint32_t)n)];
}
#define SIM_ONE_OF(w, ...)                                                                         \
    sim_one_of((w), (const uint32_t[]){__VA_ARGS__},                                               \
               sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static inline void sim_hash(struct sim_world *w, uint64_t value)
{
    w->hash = (w->hash ^ value) * 0x9e3779b97f4a7c15ull;
    w->hash ^= w->hash >> 29;
}

/* Says what is broken, how to see it again, and ends the program (exit status 1). */
_Noreturn void sim_fail(const struct sim_world *w, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
#define SIM_CHECK(w, condition, ...)                                                               \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0))                                                     \
            sim_fail((w), __VA_ARGS__);                                                            \
    } while (0)

/* One seed: n_steps steps, then the liveness phase; the trace hash is in w->hash. */
void sim_run(struct sim_world *w, uint64_t seed, uint64_t n_steps, int quiet);

/* world.c */
void sim_world_open(struct sim_world *w);
void sim_world_close(struct sim_world *w);
void sim_step(struct sim_world *w);
uint32_t sim_n_open(const struct sim_world *w);

/* knobs.c */
void sim_draw_knobs(struct sim_world *w, int quiet); /* quiet 1: yes, 0: no, -1: drawn */

/* control.c: the control thread's part */
void sim_attach(struct sim_world *w, struct sim_client *client, enum sim_kind kind);
void sim_detach(struct sim_world *w, struct sim_client *client, bool has_died);
void sim_control(struct sim_world *w);
void sim_forget_client(struct sim_client *client); /* frees its memory */
void sim_mail(struct sim_world *w, enum ll_mail_type type, void *attachment, uint64_t value);

/* client.c: what a client does between two turns; read.c: what it thinks of events */
void sim_client_act(struct sim_world *w, struct sim_client *client);
void sim_client_probe(struct sim_world *w, struct sim_client *client); /* one plain request */
void sim_client_read(struct sim_world *w, struct sim_client *client, uint32_t n_max);
void sim_kill(struct sim_world *w, struct sim_client *client);
void sim_ring(struct sim_world *w, struct sim_client *client, enum ll_op op, uint32_t slot);
/* Everything about a valid request but where it lies. */
void sim_draw_request(struct sim_world *w, struct sim_client *client, struct sim_request *r);
/* cached.c: whose prefixes a request may find in the cache */
void sim_note_prompt(struct sim_world *w, const struct sim_client *client,
                     const struct sim_request *r);
bool sim_may_be_cached(const struct sim_world *w, const struct sim_client *client,
                       const struct sim_request *r, uint32_t n_cached);
/* faulty.c: makes a valid request one that must be refused, sets r->refusal; hostile deeds */
void sim_spoil_request(struct sim_world *w, struct sim_client *client, struct sim_request *r);
void sim_hostile_act(struct sim_world *w, struct sim_client *client);
void sim_buggy_act(struct sim_world *w, struct sim_client *client);

/* memory.c: allocations are counted, and refused on demand */
extern uint64_t sim_n_allocations;
extern int64_t sim_n_live;
extern uint64_t sim_refuse_at; /* the n-th from now answers "no memory"; 0: none */
/* Z5: opens the world's engine with each allocation refused in turn. */
void sim_refused_starts(struct sim_world *w);

#endif
