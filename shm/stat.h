/* SPDX-License-Identifier: Apache-2.0 */
/* shm/stat.h - the STAT region: every figure the runtime publishes, by name.
 *
 * The step thread is the one writer of all but LL_STAT_CONTROL, LL_STAT_RELOAD and LL_STAT_GPU;
 * stores are relaxed, readers may be a moment old. /metrics, `llring status`, `llring top` and the
 * tests read only this. The region describes itself: a reader walks the entry table and needs no
 * knowledge of this list, so old readers survive new names.
 *
 * Start: ready_ns is from the first instruction to READY; of it start_open_ns (configuration, model
 * directory), start_device_ns (device opened, KV pages made), load_ns (weights, of which
 * start_seal_ns is what the device does once it has them all: products measured, graphs captured),
 * start_tokenizer_ns (what is still waited for) and start_engine_ns.
 *
 * Ledger (checked at idle after every test):
 *   submitted = rejected + accepted
 *   accepted  = finished + cancelled + expired + stalled + failed + lost + running + waiting */
#ifndef SHM_STAT_H
#define SHM_STAT_H

#include "base/hist.h"
#include "shm/wire.h"

/* X(name): counters count up for ever; gauges are the present value. */
#define LL_STAT_COUNTERS(X)                                                                        \
    X(requests_submitted)                                                                          \
    X(requests_rejected)                                                                           \
    X(requests_accepted)                                                                           \
    X(requests_finished)                                                                           \
    X(requests_cancelled)                                                                          \
    X(requests_expired)                                                                            \
    X(requests_stalled)                                                                            \
    X(requests_failed)                                                                             \
    X(requests_lost)                                                                               \
    X(prompt_tokens)                                                                               \
    X(prompt_tokens_cached)                                                                        \
    X(prompt_tokens_shared)                                                                        \
    X(prefill_tokens)                                                                              \
    X(output_tokens)                                                                               \
    X(events_written)                                                                              \
    X(steps)                                                                                       \
    X(steps_idle_polls)                                                                            \
    X(preemptions)                                                                                 \
    X(preemptions_swapped)                                                                         \
    X(doorbells)                                                                                   \
    X(doorbells_bad)                                                                               \
    X(sweeps)                                                                                      \
    X(sweeps_found)                                                                                \
    X(bell_repairs)                                                                                \
    X(clients_fenced)                                                                              \
    X(wakes_sent)                                                                                  \
    X(sleeps)                                                                                      \
    X(allocations_after_ready)                                                                     \
    X(backend_errors)

/* Written by the control thread. */
#define LL_STAT_CONTROL(X)                                                                         \
    X(attaches)                                                                                    \
    X(attaches_refused)                                                                            \
    X(detaches)                                                                                    \
    X(clients_died)                                                                                \
    X(reloads)                                                                                     \
    X(reloads_failed)

/* Of a reload, written by the control thread, but by the thread that reads weights from its order
 * to its result. reload_state: enum ll_reload_state (runtime/reload.h). */
#define LL_STAT_RELOAD(X)                                                                          \
    X(weights_set)                                                                                 \
    X(reload_state)                                                                                \
    X(reload_bytes_done)                                                                           \
    X(reload_bytes_total)

/* Of the GPU, written by the control thread; in the table only where the driver's library tells. */
#define LL_STAT_GPU(X)                                                                             \
    X(gpu_utilization_percent)                                                                     \
    X(gpu_memory_used_bytes)                                                                       \
    X(gpu_memory_total_bytes)                                                                      \
    X(gpu_power_mw)                                                                                \
    X(gpu_temperature_celsius)

#define LL_STAT_GAUGES(X)                                                                          \
    X(requests_running)                                                                            \
    X(requests_waiting)                                                                            \
    X(tokens_waiting)                                                                              \
    X(clients_attached)                                                                            \
    X(pages_total)                                                                                 \
    X(pages_free)                                                                                  \
    X(pages_cached)                                                                                \
    X(host_pages_total)                                                                            \
    X(host_pages_free)                                                                             \
    X(sequences_total)                                                                             \
    X(sequences_free)                                                                              \
    X(credits_reserved)                                                                            \
    X(crashes_recent)                                                                              \
    X(requests_quarantined)                                                                        \
    X(weights_bytes)                                                                               \
    X(start_open_ns)                                                                               \
    X(start_device_ns)                                                                             \
    X(load_ns)                                                                                     \
    X(start_seal_ns)                                                                               \
    X(start_tokenizer_ns)                                                                          \
    X(start_engine_ns)                                                                             \
    X(ready_ns)

#define LL_STAT_HISTS(X)                                                                           \
    X(queue_ns)                                                                                    \
    X(ttft_ns)                                                                                     \
    X(token_gap_ns)                                                                                \
    X(request_total_ns)                                                                            \
    X(step_ns)                                                                                     \
    X(host_ns)                                                                                     \
    X(batch_rows)                                                                                  \
    X(batch_tokens)                                                                                \
    X(prompt_length)                                                                               \
    X(output_length)

enum ll_stat_kind { LL_STAT_COUNTER = 1, LL_STAT_GAUGE = 2, LL_STAT_HIST = 3 };

struct ll_stat_entry {
    char name[48];
    uint32_t kind;   /* enum ll_stat_kind */
    uint32_t offset; /* of the u64 or the struct ll_hist, from the region's start */
    uint32_t reserved[2];
};

#define X(name) _Atomic uint64_t name;
#define H(name) struct ll_hist name;
struct ll_stats {
    LL_STAT_COUNTERS(X)
    LL_STAT_GAUGES(X)
    /* Lines of their own: another thread writes these. */
    uint64_t pad0[16];
    LL_STAT_CONTROL(X)
    LL_STAT_RELOAD(X)
    LL_STAT_GPU(X)
    uint64_t pad1[16];
    LL_STAT_HISTS(H)
};
#undef X
#undef H

#define X(name) +1
enum {
    LL_STAT_N_GPU = 0 LL_STAT_GPU(X),
    LL_STAT_N = LL_STAT_N_GPU LL_STAT_COUNTERS(X) LL_STAT_GAUGES(X) LL_STAT_CONTROL(X)
        LL_STAT_RELOAD(X) LL_STAT_HISTS(X)
};
#undef X

struct ll_stat_region {
    uint64_t magic; /* LL_STAT_MAGIC */
    uint32_t n_entries, entry_bytes;
    uint32_t off_entries, size_bytes;
    uint32_t hist_sub_bits, hist_buckets;
    uint64_t start_ns; /* CLOCK_MONOTONIC at start */
    uint64_t reserved[2];
    struct ll_stat_entry entry[LL_STAT_N];
    struct ll_stats v;
};

/* Fills head and entry table of a zeroed region; the GPU's figures stay out of the table. */
void ll_stat_init(struct ll_stat_region *region, uint64_t now_ns);

/* Takes the GPU's figures into the table; before anybody maps the region. */
void ll_stat_show_gpu(struct ll_stat_region *region);

/* One writer: a relaxed load and store, no locked instruction. */
static inline void ll_stat_add(_Atomic uint64_t *word, uint64_t by)
{
    ll_hist_bump(word, by);
}
static inline void ll_stat_set(_Atomic uint64_t *word, uint64_t value)
{
    /* Relaxed: figures are not used to publish anything. */
    atomic_store_explicit(word, value, memory_order_relaxed);
}
static inline uint64_t ll_stat_get(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

/* Does a mapped region of size_bytes describe itself soundly (offsets inside, names ended)?
 * 0 or LL_E_PROTOCOL. Readers call it once before walking the table. */
int ll_stat_check(const struct ll_stat_region *region, uint64_t size_bytes);

#endif
