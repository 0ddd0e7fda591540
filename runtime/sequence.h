/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/sequence.h - one sequence of tokens on its way: who asked, what for, how far it is.
 *
 * A fixed pool, made at start: token and page arrays included. A request for n choices is n
 * sequences. The first of them, its leader, holds what belongs to the request and outlives the
 * others; a request for one choice is its own leader. All fields belong to the step thread.
 *
 *   Q1  FREE -> INTAKE (prompt being copied) -> WAITING -> RUNNING -> ENDING -> FREE
 *       WAITING, RUNNING -> ENDING for any end; RUNNING -> WAITING by preemption;
 *       ENDING -> FREE by the outlet, once ll_seq_is_done(): it is told, no row is in flight and
 *       the scheduler has taken pages and device slot back
 *   Q2  token[0 .. n_prompt) is the prompt, token[n_prompt .. n_tokens) what was sampled and polled
 *   Q3  pos_lo <= pos_hi: tokens whose KV is certainly / at most there after all submitted steps.
 *       Without speculation they are equal
 *   Q4  pages cover pos_hi + LL_ROW_TOKENS_MAX tokens (or n_prompt + max_tokens, if that is less)
 *       when a row is submitted; in WAITING there are none but what the prefix cache had for it
 *   Q5  exactly one terminal event an accepted request, when the last of its choices was told:
 *       is_told goes false -> true once, and n_untold of the leader falls
 *   Q6  a leader is FREE after all its members; member[c] is choice c's sequence until that is FREE
 *   Q7  choices wait (is_held) while one of them, `primary`, computes the prompt, then take its
 * full pages. A choice ends alone by STOP and LENGTH; any other end is the whole request's */
#ifndef RUNTIME_SEQUENCE_H
#define RUNTIME_SEQUENCE_H

#include "base/bits.h"
#include "kernels/backend.h"
#include "runtime/prefix.h"
#include "shm/wire.h"

#include <stdbool.h>

#define LL_NONE UINT32_MAX

enum ll_seq_state {
    LL_SEQ_FREE = 0,
    LL_SEQ_INTAKE,
    LL_SEQ_WAITING,
    LL_SEQ_RUNNING,
    LL_SEQ_ENDING,
};

/* Where a preempted sequence's pages are (scheduler_swap.c). */
enum ll_swap { LL_SWAP_NONE = 0, LL_SWAP_OUT, LL_SWAP_HELD, LL_SWAP_IN };

/* How a request ends; the first of them wins. Each is a column of the ledger. */
enum ll_end {
    LL_END_NONE = 0,
    LL_END_STOP,      /* finished: eos, stop id, or the client's STOP */
    LL_END_LENGTH,    /* finished */
    LL_END_CANCELLED, /* cancelled */
    LL_END_EXPIRED,   /* expired: ERROR LL_E_DEADLINE */
    LL_END_STALLED,   /* stalled: ERROR LL_E_STALLED */
    LL_END_FAILED,    /* failed: ERROR, code in end_code */
    LL_END_LOST,      /* lost: the client is gone, nobody to tell */
};

/* What every step reads and writes of a running sequence lies in the first three cache lines: 256
 * of them a step are 48 KiB, and a line not at hand costs as much as all else that is done to it.
 */
struct ll_seq {
    _Alignas(LL_LINE_BYTES) uint32_t index; /* in the pool */
    enum ll_seq_state state;
    uint32_t prev, next; /* list of its state, LL_NONE at the ends */

    /* who asked */
    uint16_t client, slot;
    uint32_t gen, choice;
    uint32_t leader; /* of its request; itself: it is the leader */

    /* what for: gate-checked copies; more below */
    uint32_t n_prompt, max_tokens;
    uint32_t flags; /* LL_REQ_* */

    /* how far; more below */
    uint32_t n_tokens; /* Q2 */
    uint32_t pos_lo, pos_hi;
    uint32_t n_done;      /* tokens whose KV polled steps have made: <= pos_lo */
    uint32_t n_in_flight; /* rows submitted and not polled */

    /* second line */
    uint32_t *token; /* [token_capacity], the pool's */
    uint32_t n_pages;
    uint32_t n_chained;    /* pages in chain: looked up or published */
    uint32_t n_attached;   /* pages that the prefix cache had when it started */
    uint32_t n_pages_sent; /* page table entries the device has */
    uint32_t device_slot;  /* LL_NONE: none */
    uint32_t account;      /* LL_NONE: the scheduler has not seen it yet, or it has ended */
    /* of the request, in its leader: credits, in events; more below */
    uint32_t n_written; /* terminal one excluded */
    uint32_t n_taken;   /* last `taken` known; n_written - n_taken <= LL_WINDOW_EVENTS + choices */
    uint32_t n_booked;  /* promised by rows in flight */
    uint8_t n_top, n_prompt_top;
    int8_t priority;
    uint8_t swap;        /* enum ll_swap */
    uint64_t starved_ns; /* of the request: since when no choice had credit; 0: one has */
    bool needs_init;     /* device slot to be (re)built by the next batch */
    bool is_prefill;     /* on the scheduler's list of those with prompt to compute */
    bool is_preempted;   /* RUNNING, but no more rows: WAITING once n_in_flight is 0 and nothing
                          * is being copied */
    bool is_slow;        /* with is_preempted: to the end of WAITING, its reader sleeps */
    bool is_victim;      /* was preempted and has not caught up yet */
    bool is_parked;    /* WAITING, out of the queue for want of credit; linked by q_left, q_right */
    bool is_told;      /* Q5 */
    uint8_t n_choices; /* of the request */

    /* third line, as far as the first few end ids */
    uint64_t t_last_ns;
    struct ll_sampling sampling; /* end[] holds eos (unless ignored) and the stop ids */

    /* what for */
    uint64_t tag;
    uint32_t tenant, adapter, adapter_generation;
    uint64_t salt[2];
    uint64_t domain;      /* who its client is, for the prefix cache: ll_domain.cache_key */
    uint32_t domain_id;   /* and for the queue: ll_domain.id */
    uint64_t deadline_ns; /* 0: none */
    uint64_t tenant_key;  /* whose account (queue.h): client, incarnation and tenant */
    uint64_t seed;
    struct ll_bias *bias; /* [LL_BIAS_MAX], the pool's; of a request, its leader's */
    uint32_t n_bias;
    uint32_t prompt_off; /* intake: bytes into the arena */
    uint32_t bias_off;
    struct ll_chain request_hash; /* crashes.h; {0, 0}: not accepted yet, or nobody asked */

    /* how far */
    uint32_t n_copied;           /* prompt ids here so far: of a leader by intake, else from it */
    uint32_t n_scored;           /* prompt positions whose logprobs were reported */
    uint32_t *page;              /* [page_capacity], the pool's */
    uint32_t *page_epoch;        /* [page_capacity], beside page: kv.h K3 */
    struct ll_chain chain;       /* of the first n_chained full pages */
    uint32_t n_swapped;          /* tokens whose KV is in host pages */
    uint32_t n_host, host_first; /* host pages, a chain (kv.h) */
    uint32_t n_copies, n_issued; /* page copies to be made, listed in plans */
    uint32_t copy_at;            /* host page of the next one */
    uint64_t copy_batch;         /* that the last one listed is in */

    /* its place in the order of service: queue.c's and the scheduler's */
    uint32_t line;  /* LL_NONE: not in the queue */
    uint64_t order; /* of arrival */
    uint32_t q_left, q_right, q_up, q_rank;

    bool is_held;     /* WAITING, out of the queue: Q7 */
    bool is_withheld; /* parked, but because the weights are about to change (scheduler.h P8) */

    /* the end of the choice */
    enum ll_end end;
    int32_t end_code; /* LL_E_*, with FAILED */
    uint32_t stop_id; /* LL_NONE: none */
    /* Marks set by intake and outlet, with ll_seq_mark(); the next plan moves those WAITING and
     * RUNNING to ENDING with end LOST, CANCELLED or STOP, the first of these that is set. */
    bool is_stopped; /* op STOP of this choice */
    bool is_marked;  /* on the pool's list of those with marks to be looked at */
    uint32_t mark_prev, mark_next;

    uint64_t t_seen_ns, t_run_ns; /* outlet sets the last, and t_last_ns */

    /* ---- of the request: in its leader only --------------------------------------------------*/

    uint32_t *member;      /* [LL_CHOICES_MAX], the pool's: Q6. Unused with one choice */
    uint32_t n_members;    /* not FREE, itself included */
    uint32_t n_untold;     /* choices */
    uint32_t primary;      /* Q7: a sequence; LL_NONE: nobody waits for the prompt */
    uint32_t donor;        /* choice whose pages were taken last */
    uint32_t stop_seen[4]; /* as ll_req.stop_choice */
    bool is_lost;          /* marks of the request: its client is gone */
    bool is_cancelled;     /* op CANCEL */
    bool has_run;          /* a choice has */
    bool has_place;        /* among those that wait (waiting.h), with */
    uint8_t place_n;       /* so many choices */
    uint32_t place_work;   /* and what they were foreseen to cost, in tokens */

    enum ll_end request_end; /* NONE: as its choices end; else all that are open are marked */
    int32_t request_code;    /* LL_E_*, with FAILED */
    uint32_t n_cached;       /* prompt tokens from the prefix cache */
    uint64_t n_out;          /* tokens of choices that were told */
    uint64_t t_first_ns;     /* token of any choice; outlet sets it */
    uint64_t t_final_ns;     /* token of a choice that was told */
};

static_assert(offsetof(struct ll_seq, token) == LL_LINE_BYTES &&
                  offsetof(struct ll_seq, t_last_ns) == 2 * LL_LINE_BYTES &&
                  offsetof(struct ll_seq, sampling.end[4]) < 3 * LL_LINE_BYTES,
              "what a step touches lies in three lines");

/* Fetches those lines of a sequence whose turn comes LL_SEQ_AHEAD rows later. */
#define LL_SEQ_AHEAD 8u
static inline void ll_seq_prefetch(const struct ll_seq *seq)
{
    __builtin_prefetch(&seq->index, 1);
    __builtin_prefetch(&seq->token, 1);
    __builtin_prefetch(&seq->t_last_ns, 1);
}

struct ll_seq_list {
    uint32_t first, last, n;
};

struct ll_seq_pool {
    struct ll_seq *seq; /* [n] */
    uint32_t n;
    uint32_t token_capacity, page_capacity;
    struct ll_seq_list list[LL_SEQ_ENDING + 1]; /* by state */
    struct ll_seq_list marked;                  /* by mark_prev, mark_next */
    uint32_t n_at_priority[256];                /* RUNNING, by priority + 128 */
    uint64_t priorities[4];                     /* bit set: there are such */
    uint32_t n_waiting[LL_ATTACHMENTS_MAX];     /* INTAKE and WAITING, by domain_id */
    void *memory;                               /* token, page and bias arrays: one mapping */
    size_t memory_bytes;
};

/* Makes n sequences, each with room for context_max tokens. */
int ll_seq_pool_init(struct ll_seq_pool *pool, uint32_t n, uint32_t context_max);
void ll_seq_pool_free(struct ll_seq_pool *pool);

static inline struct ll_seq *ll_seq_leader(const struct ll_seq_pool *pool, const struct ll_seq *seq)
{
    return &pool->seq[seq->leader];
}

/* Holds nothing any more and everybody has been told: may go ENDING -> FREE. */
static inline bool ll_seq_is_done(const struct ll_seq *seq)
{
    return seq->is_told && seq->n_in_flight == 0 && seq->n_pages == 0 &&
           seq->device_slot == LL_NONE && seq->swap == LL_SWAP_NONE &&
           (seq->n_members == 1 || seq->leader != seq->index); /* Q6 */
}

/* Choice c's sequence; NULL: it is FREE again, or there is no such choice. */
static inline struct ll_seq *ll_seq_member(const struct ll_seq_pool *pool,
                                           const struct ll_seq *leader, uint32_t c)
{
    uint32_t index = c >= leader->n_choices   ? LL_NONE
                     : leader->n_choices == 1 ? leader->index
                                              : leader->member[c];

    return index == LL_NONE ? NULL : &pool->seq[index];
}

/* A FREE sequence, cleared and moved to INTAKE for a client of this domain; NULL: all in use. */
struct ll_seq *ll_seq_take(struct ll_seq_pool *pool, uint32_t domain_id);
/* Makes a sequence of INTAKE the leader of n choices; as many less one are FREE. The others, in
 * INTAKE too, are copies but for the prompt; only the first gives the prompt's logprobs. */
void ll_seq_fork(struct ll_seq_pool *pool, struct ll_seq *leader, uint32_t n);
/* Takes that back: only the leader is left, with one choice. */
void ll_seq_unfork(struct ll_seq_pool *pool, struct ll_seq *leader);
/* Moves a sequence to the end (or the front) of a state's list, its own included. Who moves to
 * ENDING has set `end`; who moves to WAITING or FREE has given back pages and device slot. */
void ll_seq_move(struct ll_seq_pool *pool, struct ll_seq *seq, enum ll_seq_state state);
void ll_seq_move_front(struct ll_seq_pool *pool, struct ll_seq *seq, enum ll_seq_state state);

/* Does a sequence of this priority or of a lower one (a larger number) run? */
static inline bool ll_seq_runs_at(const struct ll_seq_pool *pool, int32_t priority)
{
    uint32_t place = (uint32_t)(priority + 128), word = place / 64;
    uint64_t found = place < 256 ? pool->priorities[word] >> place % 64 : 0;

    while (found == 0 && ++word < LL_COUNT(pool->priorities))
        found = pool->priorities[word];
    return found != 0;
}

/* A mark was set: the next plan looks at the sequence. Nothing where it is on the list already. */
void ll_seq_mark(struct ll_seq_pool *pool, struct ll_seq *seq);
void ll_seq_unmark(struct ll_seq_pool *pool, struct ll_seq *seq);
/* A mark of the request was set: the same for one of its choices that waits or runs. */
void ll_seq_mark_request(struct ll_seq_pool *pool, struct ll_seq *leader);

/* Q1..Q3, Q6, Q7 and the lists, whole pool; aborts on a fault. Debug builds run it after each step.
 */
void ll_seq_check(const struct ll_seq_pool *pool);

/* What a polled step yields for one sequence, in order; apply fills, outlet writes. */
struct ll_yield {
    uint32_t seq;
    uint32_t n_tokens; /* sampled ids kept (cut at the end id, max_tokens) */
    uint32_t index;    /* place of the first in the choice */
    uint32_t token[LL_ROW_TOKENS_MAX];
    float logprob[LL_ROW_TOKENS_MAX];
    const struct ll_ext *top; /* [n_tokens * n_top], best first within a token */
    uint32_t n_scored;        /* prompt tokens whose logprobs this row gives */
    uint32_t first_scored;    /* place of the first of them in the prompt: 1 in a first row, for the
                               * token at 0 has no logprob */
    const struct ll_ext *scored; /* [n_scored * (1 + n_prompt_top)]; not behind top where tokens
                                  * were cut off */
    uint32_t n_booked;           /* credits to give back, as booked for this row */
};

#endif
