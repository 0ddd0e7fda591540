/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/queue.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

/* Lines put right a call of first(): beyond that the one on top is taken as it is. */
#define REORDER_MAX 64u

#define SERVED_BITS 56u /* of a key; 7e16 tokens are for ever */

/* ---- init -------------------------------------------------------------------------------------*/

int ll_queue_init(struct ll_queue *queue, struct ll_seq_pool *pool)
{
    /* As many again for tenants that have nothing open: their accounts are remembered a while. */
    uint32_t n_accounts = 2 * pool->n;
    uint32_t n_account_buckets = (uint32_t)ll_pow2_ceil(2ull * n_accounts);
    uint32_t n_line_buckets = (uint32_t)ll_pow2_ceil(2ull * pool->n);

    *queue = (struct ll_queue){
        .pool = pool,
        .n_accounts = n_accounts,
        .account_mask = n_account_buckets - 1,
        .newest = LL_NONE,
        .oldest = LL_NONE,
        .line_mask = n_line_buckets - 1,
    };
    queue->account = calloc(n_accounts, sizeof(*queue->account));
    queue->account_bucket = malloc(n_account_buckets * sizeof(*queue->account_bucket));
    queue->line = calloc(pool->n, sizeof(*queue->line));
    queue->line_bucket = malloc(n_line_buckets * sizeof(*queue->line_bucket));
    if (queue->account == NULL || queue->account_bucket == NULL || queue->line == NULL ||
        queue->line_bucket == NULL || ll_heap_init(&queue->order, pool->n) < 0) {
        ll_queue_free(queue);
        return LL_ERR(-ENOMEM, "out of memory for a queue of %u", pool->n);
    }
    memset(queue->account_bucket, 0xff, n_account_buckets * sizeof(*queue->account_bucket));
    memset(queue->line_bucket, 0xff, n_line_buckets * sizeof(*queue->line_bucket));
    for (uint32_t i = 0; i < pool->n; i++)
        queue->line[i].next = i + 1 < pool->n ? i + 1 : LL_NONE;
    return 0;
}

void ll_queue_free(struct ll_queue *queue)
{
    free(queue->account);
    free(queue->account_bucket);
    free(queue->line);
    free(queue->line_bucket);
    ll_heap_free(&queue->order);
    *queue = (struct ll_queue){0};
}

static uint32_t scatter(uint64_t key)
{
    return (uint32_t)((key * 0x9e3779b97f4a7c15ull) >> 32);
}

/* ---- accounts ---------------------------------------------------------------------------------*/

static uint32_t *account_bucket(struct ll_queue *queue, uint64_t key)
{
    return &queue->account_bucket[scatter(key) & queue->account_mask];
}

static void leave_unused(struct ll_queue *queue, uint32_t index)
{
    struct ll_account *account = &queue->account[index];

    if (account->newer != LL_NONE)
        queue->account[account->newer].older = account->older;
    else
        queue->newest = account->older;
    if (account->older != LL_NONE)
        queue->account[account->older].newer = account->newer;
    else
        queue->oldest = account->newer;
}

static void join_unused(struct ll_queue *queue, uint32_t index)
{
    struct ll_account *account = &queue->account[index];

    account->newer = LL_NONE;
    account->older = queue->newest;
    if (queue->newest != LL_NONE)
        queue->account[queue->newest].newer = index;
    else
        queue->oldest = index;
    queue->newest = index;
}

/* A fresh account, or that of the tenant not heard of longest. */
static uint32_t new_account(struct ll_queue *queue, uint64_t key)
{
    uint32_t index = queue->n_used;

    if (index < queue->n_accounts) {
        queue->n_used++;
    } else {
        index = queue->oldest;
        LL_ASSERT(index != LL_NONE); /* more accounts than sequences that could be open */
        leave_unused(queue, index);
        uint32_t *at = account_bucket(queue, queue->account[index].key);
        while (*at != index)
            at = &queue->account[*at].next;
        *at = queue->account[index].next;
    }
    uint32_t *bucket = account_bucket(queue, key);
    queue->account[index] =
        (struct ll_account){.key = key, .served = queue->virtual_time, .next = *bucket};
    *bucket = index;
    return index;
}

void ll_queue_open(struct ll_queue *queue, struct ll_seq *seq)
{
    uint32_t index = *account_bucket(queue, seq->tenant_key);

    while (index != LL_NONE && queue->account[index].key != seq->tenant_key)
        index = queue->account[index].next;
    if (index == LL_NONE)
        index = new_account(queue, seq->tenant_key);
    else if (queue->account[index].n_open == 0)
        leave_unused(queue, index);
    queue->account[index].n_open++;
    seq->account = index;
    seq->order = ++queue->n_arrived;
}

void ll_queue_close(struct ll_queue *queue, struct ll_seq *seq)
{
    struct ll_account *account = &queue->account[seq->account];

    LL_ASSERT(account->n_open > 0 && seq->line == LL_NONE);
    if (--account->n_open == 0)
        join_unused(queue, seq->account);
    seq->account = LL_NONE;
}

void ll_queue_age(struct ll_queue *queue, struct ll_seq *seq)
{
    seq->order = ++queue->n_arrived;
}

/* ---- lines: leftist heaps through the sequences -----------------------------------------------*/

static bool is_before(const struct ll_seq *a, const struct ll_seq *b)
{
    /* Without a deadline: after all that have one; 0 - 1 is the largest. */
    uint64_t da = a->deadline_ns - 1, db = b->deadline_ns - 1;

    return da != db ? da < db : a->order < b->order;
}

static uint32_t rank_of(const struct ll_queue *queue, uint32_t node)
{
    return node == LL_NONE ? 0 : queue->pool->seq[node].q_rank;
}

/* Sets rank and order of the children; true: the rank has changed. */
static bool settle(struct ll_queue *queue, struct ll_seq *seq)
{
    uint32_t before = seq->q_rank;

    if (rank_of(queue, seq->q_left) < rank_of(queue, seq->q_right)) {
        uint32_t left = seq->q_left;
        seq->q_left = seq->q_right;
        seq->q_right = left;
    }
    seq->q_rank = rank_of(queue, seq->q_right) + 1;
    return seq->q_rank != before;
}

/* Goes down right children only, of which there are log n: that is what leftist heaps are. */
static uint32_t merge(struct ll_queue *queue, uint32_t a, uint32_t b)
{
    struct ll_seq *seq = queue->pool->seq;

    if (a == LL_NONE)
        return b;
    if (b == LL_NONE)
        return a;
    if (is_before(&seq[b], &seq[a])) {
        uint32_t other = a;
        a = b;
        b = other;
    }
    seq[a].q_right = merge(queue, seq[a].q_right, b);
    seq[seq[a].q_right].q_up = a;
    settle(queue, &seq[a]);
    return a;
}

static void set_first(struct ll_queue *queue, struct ll_line *line, uint32_t first)
{
    line->first = first;
    if (first != LL_NONE)
        queue->pool->seq[first].q_up = LL_NONE;
}

static void add_to_line(struct ll_queue *queue, struct ll_line *line, struct ll_seq *seq)
{
    seq->q_left = seq->q_right = seq->q_up = LL_NONE;
    seq->q_rank = 1;
    set_first(queue, line, merge(queue, line->first, seq->index));
    line->n++;
}

static void take_from_line(struct ll_queue *queue, struct ll_line *line, struct ll_seq *seq)
{
    uint32_t rest = merge(queue, seq->q_left, seq->q_right), up = seq->q_up;

    line->n--;
    if (up == LL_NONE) {
        set_first(queue, line, rest);
        return;
    }
    struct ll_seq *parent = &queue->pool->seq[up];
    if (parent->q_left == seq->index)
        parent->q_left = rest;
    else
        parent->q_right = rest;
    if (rest != LL_NONE)
        queue->pool->seq[rest].q_up = up;
    /* Ranks above may fall; where one does not, none further up does. */
    while (settle(queue, parent) && parent->q_up != LL_NONE)
        parent = &queue->pool->seq[parent->q_up];
}

/* ---- the order of lines -----------------------------------------------------------------------*/

static uint64_t key_of(int8_t priority, uint64_t served)
{
    uint64_t most = (1ull << SERVED_BITS) - 1;

    return (uint64_t)(priority + 128) << SERVED_BITS | ll_min_u64(served, most);
}

static struct ll_heap_key line_key(const struct ll_queue *queue, const struct ll_line *line)
{
    /* 0: before all tenants, each of which begins with 1. */
    uint64_t served = line->account == LL_NONE ? 0 : queue->account[line->account].served + 1;

    return (struct ll_heap_key){key_of(line->priority, served), line->turn};
}

struct ll_heap_key ll_queue_rank(const struct ll_queue *queue, const struct ll_seq *seq,
                                 bool is_preempted, uint64_t n_more)
{
    uint64_t served = is_preempted ? 0 : queue->account[seq->account].served + n_more + 1;

    return (struct ll_heap_key){key_of(seq->priority, served), seq->order};
}

static uint32_t *line_bucket(struct ll_queue *queue, uint32_t account, int8_t priority)
{
    uint64_t key = (uint64_t)account << 8 | (uint8_t)priority;

    return &queue->line_bucket[scatter(key) & queue->line_mask];
}

static uint32_t find_line(struct ll_queue *queue, uint32_t account, int8_t priority)
{
    uint32_t *bucket = line_bucket(queue, account, priority), index = *bucket;

    while (index != LL_NONE &&
           (queue->line[index].account != account || queue->line[index].priority != priority))
        index = queue->line[index].next;
    if (index != LL_NONE)
        return index;
    index = queue->free_line;
    LL_ASSERT(index != LL_NONE); /* as many as sequences */
    queue->free_line = queue->line[index].next;
    queue->line[index] = (struct ll_line){.account = account,
                                          .priority = priority,
                                          .first = LL_NONE,
                                          .turn = ++queue->n_turns,
                                          .next = *bucket};
    *bucket = index;
    return index;
}

static void drop_line(struct ll_queue *queue, uint32_t index)
{
    struct ll_line *line = &queue->line[index];
    uint32_t *at = line_bucket(queue, line->account, line->priority);

    ll_heap_remove(&queue->order, index);
    while (*at != index)
        at = &queue->line[*at].next;
    *at = line->next;
    line->next = queue->free_line;
    queue->free_line = index;
}

void ll_queue_push(struct ll_queue *queue, struct ll_seq *seq, bool is_preempted)
{
    struct ll_account *account = &queue->account[seq->account];

    LL_ASSERT(seq->line == LL_NONE && seq->state == LL_SEQ_WAITING); /* U1 */
    if (account->n_waiting++ == 0 && !is_preempted && account->served < queue->virtual_time)
        account->served = queue->virtual_time;
    uint32_t index = find_line(queue, is_preempted ? LL_NONE : seq->account, seq->priority);
    struct ll_line *line = &queue->line[index];
    add_to_line(queue, line, seq);
    seq->line = index;
    if (line->n == 1)
        ll_heap_set(&queue->order, index, line_key(queue, line));
    queue->n++;
}

struct ll_seq *ll_queue_first(struct ll_queue *queue)
{
    for (uint32_t i = 0; i < REORDER_MAX; i++) {
        uint32_t index = ll_heap_first(&queue->order);
        if (index == LL_NONE)
            return NULL;
        struct ll_heap_key now = line_key(queue, &queue->line[index]);
        const struct ll_heap_key *was = &queue->order.key[index];
        if (now.hi == was->hi && now.lo == was->lo)
            break;
        ll_heap_set(&queue->order, index, now); /* keys only grow: who is right on top is first */
    }
    return &queue->pool->seq[queue->line[ll_heap_first(&queue->order)].first];
}

void ll_queue_remove(struct ll_queue *queue, struct ll_seq *seq, bool is_served)
{
    uint32_t index = seq->line;
    struct ll_line *line = &queue->line[index];
    struct ll_account *account = &queue->account[seq->account];

    LL_ASSERT(index != LL_NONE && line->n > 0 && account->n_waiting > 0);
    take_from_line(queue, line, seq);
    seq->line = LL_NONE;
    account->n_waiting--;
    queue->n--;
    if (is_served) {
        line->turn = ++queue->n_turns;
        if (line->account != LL_NONE)
            queue->virtual_time = ll_max_u64(queue->virtual_time, account->served);
    }
    if (line->n == 0)
        drop_line(queue, index);
}

/* ---- check ------------------------------------------------------------------------------------*/

/* A line's sequences, depth first by the links up. */
static uint32_t check_line(const struct ll_queue *queue, uint32_t index)
{
    const struct ll_seq *seq = queue->pool->seq;
    const struct ll_line *line = &queue->line[index];
    uint32_t n = 0, before = LL_NONE, at = line->first;

    LL_ASSERT(at != LL_NONE && seq[at].q_up == LL_NONE);
    while (at != LL_NONE) {
        uint32_t next = seq[at].q_up;
        if (before == seq[at].q_up) { /* from above */
            LL_ASSERT(++n <= line->n && seq[at].line == index);
            LL_ASSERT(seq[at].state == LL_SEQ_WAITING); /* U1 */
            LL_ASSERT(seq[at].priority == line->priority);
            LL_ASSERT(line->account == LL_NONE || line->account == seq[at].account);
            LL_ASSERT(rank_of(queue, seq[at].q_left) >= rank_of(queue, seq[at].q_right));
            LL_ASSERT(seq[at].q_rank == rank_of(queue, seq[at].q_right) + 1);
            LL_ASSERT(next == LL_NONE || !is_before(&seq[at], &seq[next]));
            if (seq[at].q_left != LL_NONE)
                next = seq[at].q_left; /* a right child alone has a smaller rank: there is none */
        } else if (before == seq[at].q_left && seq[at].q_right != LL_NONE) {
            next = seq[at].q_right;
        }
        before = at;
        at = next;
    }
    return n;
}

void ll_queue_check(const struct ll_queue *queue)
{
    uint32_t n = 0, n_open = 0, n_waiting = 0, n_in_lines = 0;

    ll_heap_check(&queue->order);
    for (uint32_t i = 0; i < queue->order.n; i++) {
        uint32_t index = queue->order.item[i];
        struct ll_heap_key key = line_key(queue, &queue->line[index]);
        LL_ASSERT(queue->order.key[index].hi <= key.hi); /* U2 */
        LL_ASSERT(check_line(queue, index) == queue->line[index].n);
        n += queue->line[index].n;
    }
    LL_ASSERT(n == queue->n);
    for (uint32_t i = 0; i < queue->n_used; i++) {
        n_open += queue->account[i].n_open;
        n_waiting += queue->account[i].n_waiting;
        LL_ASSERT(queue->account[i].n_waiting <= queue->account[i].n_open);
    }
    for (uint32_t i = 0; i < queue->pool->n; i++) {
        const struct ll_seq *seq = &queue->pool->seq[i];
        n_in_lines += seq->line != LL_NONE;
        n_open -= seq->account != LL_NONE;
    }
    LL_ASSERT(n_waiting == n && n_in_lines == n && n_open == 0); /* U3 */
}
