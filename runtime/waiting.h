/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/waiting.h - the places to wait: how many, whose, and who is told to come again later.
 *
 * A request takes a place, one for each of its choices, when intake takes it and leaves them when
 * it first runs or ends. Places are bounded in number and in prompt tokens. So that a tenant who
 * asks for a hundred times as much cannot have them all, one may take another place only while it
 * holds less than SHARE times what is free: alone it gets 8 of 9 places, k of them get equal parts,
 * a newcomer always finds some.
 *
 * Who is refused learns when to ask again: once half of what its tenant has waiting will have
 * started, at the pace of late. So a crowd neither hammers at the door nor leaves the queue empty.
 * A request that will miss its deadline by that pace is refused at once, unless waiting is a small
 * part of its time: it would take the others' and be dropped half way. What is foreseen errs on the
 * slow side: the pace is that of starts or of good ends, whichever is slower (where many expire in
 * the middle of their work others start fast, and none ends), and an answer is as long as it may
 * be, or as the longest of late.
 *
 *   A1  n and n_tokens are those of the leaders with has_place; tenants' parts add up to them
 *   A2  with no place taken a request of any size may enter: else it could never be served */
#ifndef RUNTIME_WAITING_H
#define RUNTIME_WAITING_H

#include "runtime/gate.h"
#include "runtime/queue.h"
#include "runtime/sequence.h"

/* Tenants whose keys fall into the same of these count as one. */
#define LL_WAITING_TENANTS 4096u

struct ll_waiting {
    uint32_t n_max;      /* a request counts for each of its choices */
    uint64_t tokens_max; /* of their prompts */
    uint32_t n;
    uint64_t n_tokens;
    uint64_t work; /* as accounts are charged (queue.h): prompts, and answers as foreseen */
    struct ll_waiting_tenant {
        uint32_t n;
        uint64_t n_tokens, work;
    } tenant[LL_WAITING_TENANTS];
    uint32_t n_tenants; /* that have somebody waiting */

    /* The pace: means of late. */
    struct ll_pace {
        uint64_t since_ns; /* somebody waits since then, or the last one was then */
        uint32_t n;        /* how many the mean is over, up to a bound; 0: nothing is known */
        double mean_ns, mean_work; /* of a sample: time, and what was done in it */
        double slow; /* the most ns a unit of work that the means came to, forgotten slowly */
    } starts, ends;
    struct ll_pace prompt, token; /* running: a prompt token computed, a token sampled */
    uint32_t n_out, n_ended;      /* about the most tokens a request of late has had */
};

void ll_waiting_init(struct ll_waiting *waiting, uint32_t n_max, uint64_t tokens_max);

/* May the request of leader seq, which the gate let pass, wait? false: *why says what to answer. */
bool ll_waiting_may_enter(const struct ll_waiting *waiting, const struct ll_seq *seq,
                          uint32_t n_choices, uint64_t now_ns, struct ll_refusal *why);
void ll_waiting_enter(struct ll_waiting *waiting, struct ll_seq *seq, uint32_t n_choices,
                      uint64_t now_ns);
/* It runs for the first time (has_started), or has ended. Nothing where it has no place. */
void ll_waiting_leave(struct ll_waiting *waiting, struct ll_seq *seq, uint64_t now_ns,
                      bool has_started);
/* One that runs has its first token; a token came so long after the one before; one has ended as it
 * was asked to. */
void ll_waiting_learn_first(struct ll_waiting *waiting, uint64_t took_ns, uint32_t n_computed);
void ll_waiting_learn_gap(struct ll_waiting *waiting, uint64_t gap_ns);
void ll_waiting_learn_end(struct ll_waiting *waiting, const struct ll_seq *seq, uint64_t now_ns);

/* What to answer the tenant whose key that is: LL_E_BUSY, when to ask again, and why. */
struct ll_refusal ll_waiting_busy(const struct ll_waiting *waiting, uint64_t key, const char *text);

/* A1; aborts on a fault. */
void ll_waiting_check(const struct ll_waiting *waiting, const struct ll_seq_pool *pool);

#endif
