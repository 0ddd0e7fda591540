/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/queue.h - who starts next of those that wait: priority, then fairness, then deadline and
 * arrival.
 *
 * A lower priority number goes first, always. Among equals the tenant that has been served least
 * goes first: a client, or one of the groups it says it serves (ll_request.tenant). Each has an
 * account of the tokens computed for it; who offers a hundred times as much waits a hundred times
 * as long. An account whose queue was empty is lifted to where the others are: not to ask is not to
 * save up. Within a tenant's line the earliest deadline goes first, then the earliest arrival.
 * Preempted ones have a line of their own a priority, before all tenants': they keep their place.
 *
 * A line is a leftist heap through the sequences, the lines are a heap with keys that may be behind
 * their accounts (these only grow) and are put right when they come up: no operation is slower than
 * the logarithm of what waits.
 *
 *   U1  a sequence is in one line at most, and then it is WAITING
 *   U2  a line exists while it has sequences; its key is at most what its account says
 *   U3  an account exists while a sequence is open (n_open), and after that until its place is
 *       wanted */
#ifndef RUNTIME_QUEUE_H
#define RUNTIME_QUEUE_H

#include "runtime/heap.h"
#include "runtime/sequence.h"

/* What a sampled token counts for, a computed prompt token being 1: it costs a share of the
 * weights' way through memory, which a prompt token does not. */
#define LL_QUEUE_TOKEN_COST 2u

struct ll_account {
    uint64_t key;    /* client and tenant */
    uint64_t served; /* tokens */
    uint32_t n_open, n_waiting;
    uint32_t next;         /* in its bucket */
    uint32_t newer, older; /* among those with n_open 0 */
};

struct ll_line {
    uint32_t account; /* LL_NONE: of preempted ones */
    int8_t priority;
    uint32_t first; /* root of the leftist heap */
    uint32_t n;
    uint64_t turn; /* equals take turns */
    uint32_t next; /* in its bucket; next free one */
};

struct ll_queue {
    struct ll_seq_pool *pool;
    uint32_t n; /* sequences in lines */
    uint64_t n_arrived, n_turns;
    uint64_t virtual_time; /* what the account served last had been served */

    uint32_t n_accounts, account_mask;
    struct ll_account *account; /* [n_accounts] */
    uint32_t *account_bucket;
    uint32_t n_used;         /* accounts ever taken: the others are fresh */
    uint32_t newest, oldest; /* accounts with n_open 0 */

    uint32_t line_mask;
    struct ll_line *line; /* [pool->n] */
    uint32_t *line_bucket;
    uint32_t free_line;
    struct ll_heap order; /* of lines */
};

int ll_queue_init(struct ll_queue *queue, struct ll_seq_pool *pool);
void ll_queue_free(struct ll_queue *queue);

/* A sequence was accepted: it gets its number of arrival and its account. */
void ll_queue_open(struct ll_queue *queue, struct ll_seq *seq);
/* It has ended. */
void ll_queue_close(struct ll_queue *queue, struct ll_seq *seq);
/* It goes behind all that have arrived by now. */
void ll_queue_age(struct ll_queue *queue, struct ll_seq *seq);
/* Tokens are computed for it. */
static inline void ll_queue_charge(struct ll_queue *queue, const struct ll_seq *seq,
                                   uint64_t n_tokens)
{
    queue->account[seq->account].served += n_tokens;
}

/* Into its line; is_preempted: into that of the preempted ones. */
void ll_queue_push(struct ll_queue *queue, struct ll_seq *seq, bool is_preempted);
/* Who starts next, or NULL. It stays in. */
struct ll_seq *ll_queue_first(struct ll_queue *queue);
/* Out of its line; is_served: it starts, so its line's turn is over. */
void ll_queue_remove(struct ll_queue *queue, struct ll_seq *seq, bool is_served);

/* Place of a sequence with an account in the order of service, for what is not in a line: smaller
 * goes first. The same rules, but for deadlines. n_more: as if its account were charged so much. */
struct ll_heap_key ll_queue_rank(const struct ll_queue *queue, const struct ll_seq *seq,
                                 bool is_preempted, uint64_t n_more);

/* U1..U3; aborts on a fault. */
void ll_queue_check(const struct ll_queue *queue);

#endif
