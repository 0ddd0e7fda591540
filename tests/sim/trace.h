/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/trace.h - plays a workload on the runtime, with the step times of a real device.
 *
 * The runtime is the simulator's: real intake, gate, scheduler, KV, outlet, on a virtual clock, the
 * fake backend behind it. How long a step takes is a model of Llama 3.1 8B in FP8 on one H200: what
 * the memory and the arithmetic units must at least do, at rates that are planned with, not peak.
 *
 * Goodput is what is delivered within the window (the second half of the load's time, so that
 * neither the empty machine at the start nor the cut at the end counts) of requests that then end
 * as asked, before their deadline; after the load's time nobody sends any more and all that was
 * accepted ends. It is compared with what the device delivers in such a window when everything
 * arrives at once, nobody is refused and there is no time budget.
 *
 * A workload is a text file, a request a line, '#' begins a comment:
 *   arrival_us class tenant priority n_prompt prefix n_shared n_output deadline_ms
 * class is a word; prompts with the same prefix number > 0 begin with the same n_shared ids;
 * deadline_ms counts from the arrival, 0: none. */
#ifndef TESTS_SIM_TRACE_H
#define TESTS_SIM_TRACE_H

#include "tests/sim/sim.h"

#define TRACE_TENANTS_MAX 16u
#define TRACE_CLASSES_MAX 8u
#define TRACE_WAITING_ALL (TRACE_TENANTS_MAX * 512u) /* what all clients' slots hold */

/* ---- the device's time ------------------------------------------------------------------------*/
/* 8B: 6.98 G parameters in FP8, a BF16 head of 1.05 GB; KV in FP8, 2 x 32 layers x 8 heads x 128.
 */
#define TRACE_WEIGHT_BYTES 8.03e9
#define TRACE_KV_BYTES     65536.0  /* a token */
#define TRACE_BYTES_S      4.3e12   /* of 4.8 TB/s */
#define TRACE_TOKEN_FLOP   13.96e9  /* 2 x 6.98 G */
#define TRACE_FLOP_S       1.4e15   /* FP8, planned */
#define TRACE_PAIR_FLOP    524288.0 /* attention of a token to one before it: 4 x 32 x 4096 */
#define TRACE_PAIR_FLOP_S  6.0e14   /* BF16, planned */
#define TRACE_FIXED_NS     150000u  /* launch, sampling, drain: what 2.0 ms is above the floor */

struct trace_request {
    uint64_t arrival_ns, deadline_ns; /* deadline 0: none */
    uint32_t class_id, tenant, prefix, n_shared, n_prompt, n_output;
    int32_t priority;
    uint64_t seed;
    /* what became of it */
    uint64_t submit_ns, first_ns, last_ns, end_ns;
    uint32_t n_got, n_cached;
    uint32_t n_in_window;        /* of n_got */
    uint32_t n_prompt_in_window; /* all of the prompt, where the first token is */
    int32_t code;                /* 0: finished */
    uint32_t next;               /* of those that come again at the same time */
    bool is_sent, has_ended;
    uint32_t n_busy;
};

struct trace_load {
    struct trace_request *request;
    uint32_t n, capacity;
    uint64_t end_ns; /* of the arrivals; the window is the second half */
    char class_name[TRACE_CLASSES_MAX][16];
    uint32_t n_classes, n_tenants;
    bool is_cut;
};

struct trace_setup {
    uint32_t n_rows_max, n_tokens_max, n_pages, context_max, n_waiting_max;
    uint64_t tokens_waiting_max;
    bool has_prefix_cache;
    uint64_t max_itl_ns; /* time budget of a step; 0: none */
};

/* Gaps between tokens of a class, in ns. */
struct trace_gaps {
    uint64_t *ns;
    size_t n, capacity;
};

struct trace_result {
    struct trace_gaps gaps[TRACE_CLASSES_MAX];
    double seconds;                        /* virtual, until all had ended */
    uint64_t tokens_by[TRACE_TENANTS_MAX]; /* goodput of each tenant, in tokens */
    uint64_t n_good_prompt;                /* prompt tokens computed for it */
    uint64_t n_tokens, n_prompt, n_ended;  /* within the window, whatever became of them */
    uint64_t n_steps, n_preemptions, busy_ns;
};

/* trace_load.c. mix: mixed, shared, fair; requests_s arrivals a second, Poisson, for `seconds`. */
bool trace_is_mix(const char *mix);
void trace_generate(struct trace_load *load, const char *mix, double requests_s, double seconds,
                    uint64_t seed);
void trace_again(struct trace_load *load);                 /* forgets what became of the requests */
int trace_read(struct trace_load *load, const char *path); /* prints what is wrong, -1 */
void trace_write(const struct trace_load *load);           /* to standard output */
void trace_free(struct trace_load *load);

/* trace_run.c. Nobody sends after load->end_ns when load->is_cut; ends when all that was sent has.
 */
void trace_run(struct trace_load *load, const struct trace_setup *setup,
               struct trace_result *result);

#endif
