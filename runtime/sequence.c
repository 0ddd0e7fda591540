/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/sequence.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/err.h"
#include "runtime/kv.h"
#include "runtime/memory.h"

#include <string.h>

static bool is_queued(const struct ll_seq *seq)
{
    return seq->state == LL_SEQ_INTAKE || seq->state == LL_SEQ_WAITING;
}

/* Who comes into its state, or goes. */
static void count(struct ll_seq_pool *pool, const struct ll_seq *seq, bool comes)
{
    uint32_t place = (uint32_t)(seq->priority + 128);
    uint64_t bit = 1ull << place % 64;

    if (is_queued(seq))
        pool->n_waiting[seq->domain_id] += comes ? 1 : UINT32_MAX;
    if (seq->state != LL_SEQ_RUNNING)
        return;
    pool->n_at_priority[place] += comes ? 1 : UINT32_MAX;
    if (pool->n_at_priority[place] > 0)
        pool->priorities[place / 64] |= bit;
    else
        pool->priorities[place / 64] &= ~bit;
}

static void unlink_seq(struct ll_seq_pool *pool, struct ll_seq *seq)
{
    struct ll_seq_list *list = &pool->list[seq->state];

    if (seq->prev != LL_NONE)
        pool->seq[seq->prev].next = seq->next;
    else
        list->first = seq->next;
    if (seq->next != LL_NONE)
        pool->seq[seq->next].prev = seq->prev;
    else
        list->last = seq->prev;
    list->n--;
    count(pool, seq, false);
}

static void link_last(struct ll_seq_pool *pool, struct ll_seq *seq)
{
    struct ll_seq_list *list = &pool->list[seq->state];

    seq->prev = list->last;
    seq->next = LL_NONE;
    if (list->last != LL_NONE)
        pool->seq[list->last].next = seq->index;
    else
        list->first = seq->index;
    list->last = seq->index;
    list->n++;
    count(pool, seq, true);
}

static void link_first(struct ll_seq_pool *pool, struct ll_seq *seq)
{
    struct ll_seq_list *list = &pool->list[seq->state];

    seq->prev = LL_NONE;
    seq->next = list->first;
    if (list->first != LL_NONE)
        pool->seq[list->first].prev = seq->index;
    else
        list->last = seq->index;
    list->first = seq->index;
    list->n++;
    count(pool, seq, true);
}

int ll_seq_pool_init(struct ll_seq_pool *pool, uint32_t n, uint32_t context_max)
{
    if (n == 0 || n == LL_NONE || context_max == 0)
        return LL_ERR(-EINVAL, "a pool of %u sequences of %u tokens", n, context_max);

    /* Whole cache lines each: neighbours never share one. */
    uint32_t token_capacity = (uint32_t)ll_align_up(context_max, 16);
    uint32_t page_capacity = ll_kv_pages_for(context_max);
    uint64_t token_bytes = (uint64_t)token_capacity * sizeof(uint32_t);
    uint64_t page_bytes = ll_align_up((uint64_t)page_capacity * sizeof(uint32_t), LL_LINE_BYTES);
    uint64_t bias_bytes = LL_BIAS_MAX * sizeof(struct ll_bias);
    uint64_t member_bytes = LL_CHOICES_MAX * sizeof(uint32_t);
    uint64_t head_bytes = ll_align_up((uint64_t)n * sizeof(struct ll_seq), 4096);
    uint64_t total_bytes;

    if (!ll_checked_mul(n, token_bytes + 2 * page_bytes + bias_bytes + member_bytes,
                        &total_bytes) ||
        !ll_checked_add(total_bytes, head_bytes, &total_bytes))
        return LL_ERR(-ENOMEM, "%u sequences of %u tokens do not fit an address space", n,
                      context_max);
    /* Where it is not touched, the first request to get so far pays for the page faults. */
    char *memory = ll_memory_make_sparse(total_bytes);
    if (memory == NULL)
        return LL_ERR(-ENOMEM, "%u sequences of %u tokens need %llu bytes", n, context_max,
                      (unsigned long long)total_bytes);

    *pool = (struct ll_seq_pool){
        .seq = (struct ll_seq *)memory,
        .n = n,
        .token_capacity = context_max,
        .page_capacity = page_capacity,
        .memory = memory,
        .memory_bytes = total_bytes,
    };
    pool->marked = (struct ll_seq_list){.first = LL_NONE, .last = LL_NONE};
    for (int state = 0; state <= LL_SEQ_ENDING; state++)
        pool->list[state] = (struct ll_seq_list){.first = LL_NONE, .last = LL_NONE};
    char *at = memory + head_bytes;
    for (uint32_t i = 0; i < n; i++) {
        struct ll_seq *seq = &pool->seq[i];
        seq->index = i;
        seq->device_slot = seq->account = seq->line = LL_NONE;
        seq->token = (uint32_t *)at;
        at += token_bytes;
        seq->page = (uint32_t *)at;
        at += page_bytes;
        seq->page_epoch = (uint32_t *)at;
        at += page_bytes;
        seq->bias = (struct ll_bias *)at;
        at += bias_bytes;
        seq->member = (uint32_t *)at;
        at += member_bytes;
        link_first(pool, seq);
    }
    return 0;
}

void ll_seq_pool_free(struct ll_seq_pool *pool)
{
    ll_memory_free(pool->memory, pool->memory_bytes);
    *pool = (struct ll_seq_pool){0};
}

struct ll_seq *ll_seq_take(struct ll_seq_pool *pool, uint32_t domain_id)
{
    LL_ASSERT(domain_id < LL_ATTACHMENTS_MAX);
    /* The one freed last: its arrays are the likeliest to be in a cache. */
    uint32_t index = pool->list[LL_SEQ_FREE].last;

    if (index == LL_NONE)
        return NULL;
    struct ll_seq *seq = &pool->seq[index];
    unlink_seq(pool, seq);
    *seq = (struct ll_seq){
        .index = index,
        .state = LL_SEQ_INTAKE,
        .domain_id = domain_id,
        .token = seq->token,
        .page = seq->page,
        .page_epoch = seq->page_epoch,
        .bias = seq->bias,
        .member = seq->member,
        .leader = index,
        .n_choices = 1,
        .n_members = 1,
        .n_untold = 1,
        .primary = LL_NONE,
        .device_slot = LL_NONE,
        .account = LL_NONE,
        .line = LL_NONE,
        .stop_id = LL_NONE,
    };
    link_last(pool, seq);
    return seq;
}

/* Everything about it but what is its own and what is the request's. */
static struct ll_seq *make_member(struct ll_seq_pool *pool, const struct ll_seq *leader, uint32_t c)
{
    struct ll_seq *seq = ll_seq_take(pool, leader->domain_id), own;

    LL_ASSERT(seq != NULL);
    own = *seq;
    memcpy(seq, leader, offsetof(struct ll_seq, member));
    seq->index = own.index;
    seq->prev = own.prev;
    seq->next = own.next;
    seq->token = own.token;
    seq->page = own.page;
    seq->page_epoch = own.page_epoch;
    seq->bias = own.bias;
    seq->choice = c;
    seq->flags &= ~(uint32_t)LL_REQ_PROMPT_LOGPROBS;
    seq->n_prompt_top = 0;
    return seq;
}

void ll_seq_fork(struct ll_seq_pool *pool, struct ll_seq *leader, uint32_t n)
{
    LL_ASSERT(leader->state == LL_SEQ_INTAKE && leader->n_members == 1 && n <= LL_CHOICES_MAX);
    if (n == 1)
        return;
    leader->n_choices = leader->n_members = leader->n_untold = n;
    leader->primary = leader->index;
    leader->member[0] = leader->index;
    for (uint32_t c = 1; c < n; c++)
        leader->member[c] = make_member(pool, leader, c)->index;
}

void ll_seq_unfork(struct ll_seq_pool *pool, struct ll_seq *leader)
{
    for (uint32_t c = 1; c < leader->n_choices; c++)
        ll_seq_move(pool, &pool->seq[leader->member[c]], LL_SEQ_FREE);
    leader->n_choices = leader->n_untold = 1;
    leader->primary = LL_NONE;
}

/* What a state demands of what comes into it. */
static void assert_may_enter(const struct ll_seq *seq, enum ll_seq_state state)
{
    LL_ASSERT(seq->state != LL_SEQ_FREE);
    switch (state) {
    case LL_SEQ_FREE: /* from INTAKE when refused, from ENDING when done */
        LL_ASSERT(seq->n_booked == 0 && seq->account == LL_NONE && seq->line == LL_NONE);
        LL_ASSERT(seq->state != LL_SEQ_ENDING || ll_seq_is_done(seq));
        LL_ASSERT(seq->leader != seq->index || seq->n_members == 1); /* Q6 */
        /* fall through */
    case LL_SEQ_WAITING:
        LL_ASSERT(seq->n_in_flight == 0);
        LL_ASSERT(seq->n_pages == 0);
        LL_ASSERT(seq->device_slot == LL_NONE);
        break;
    case LL_SEQ_RUNNING:
        LL_ASSERT(seq->state == LL_SEQ_WAITING);
        break;
    case LL_SEQ_ENDING:
        LL_ASSERT(seq->end != LL_END_NONE);
        break;
    case LL_SEQ_INTAKE:
        LL_ASSERT(!"ll_seq_take() is the way into INTAKE");
    }
}

void ll_seq_move(struct ll_seq_pool *pool, struct ll_seq *seq, enum ll_seq_state state)
{
    assert_may_enter(seq, state);
    if (state == LL_SEQ_ENDING || state == LL_SEQ_FREE)
        ll_seq_unmark(pool, seq);
    if (state == LL_SEQ_FREE && seq->leader != seq->index) {
        struct ll_seq *leader = ll_seq_leader(pool, seq);
        leader->member[seq->choice] = LL_NONE;
        leader->n_members--;
    }
    unlink_seq(pool, seq);
    seq->state = state;
    link_last(pool, seq);
}

void ll_seq_move_front(struct ll_seq_pool *pool, struct ll_seq *seq, enum ll_seq_state state)
{
    assert_may_enter(seq, state);
    unlink_seq(pool, seq);
    seq->state = state;
    link_first(pool, seq);
}

void ll_seq_mark(struct ll_seq_pool *pool, struct ll_seq *seq)
{
    if (seq->is_marked)
        return;
    LL_ASSERT(seq->state == LL_SEQ_WAITING || seq->state == LL_SEQ_RUNNING);
    seq->is_marked = true;
    seq->mark_prev = pool->marked.last;
    seq->mark_next = LL_NONE;
    if (pool->marked.last != LL_NONE)
        pool->seq[pool->marked.last].mark_next = seq->index;
    else
        pool->marked.first = seq->index;
    pool->marked.last = seq->index;
    pool->marked.n++;
}

void ll_seq_unmark(struct ll_seq_pool *pool, struct ll_seq *seq)
{
    if (!seq->is_marked)
        return;
    seq->is_marked = false;
    if (seq->mark_prev != LL_NONE)
        pool->seq[seq->mark_prev].mark_next = seq->mark_next;
    else
        pool->marked.first = seq->mark_next;
    if (seq->mark_next != LL_NONE)
        pool->seq[seq->mark_next].mark_prev = seq->mark_prev;
    else
        pool->marked.last = seq->mark_prev;
    pool->marked.n--;
}

void ll_seq_mark_request(struct ll_seq_pool *pool, struct ll_seq *leader)
{
    for (uint32_t c = 0; c < leader->n_choices; c++) {
        struct ll_seq *seq = ll_seq_member(pool, leader, c);
        if (seq == NULL || (seq->state != LL_SEQ_WAITING && seq->state != LL_SEQ_RUNNING))
            continue;
        ll_seq_mark(pool, seq);
        return;
    }
}

/* A request, seen from its leader. */
static void check_request(const struct ll_seq_pool *pool, const struct ll_seq *leader)
{
    uint32_t n_members = 0, n_untold = 0, n_open = 0, n_marked = 0;
    bool is_over = leader->request_end != LL_END_NONE;

    for (uint32_t c = 0; c < leader->n_choices; c++) {
        const struct ll_seq *seq = ll_seq_member(pool, leader, c);
        if (seq == NULL)
            continue;
        LL_ASSERT(seq->leader == leader->index && seq->choice == c); /* Q6 */
        LL_ASSERT(seq->state != LL_SEQ_FREE && seq->n_choices == leader->n_choices);
        LL_ASSERT((seq->state == LL_SEQ_INTAKE) == (leader->state == LL_SEQ_INTAKE));
        bool is_open = seq->state == LL_SEQ_WAITING || seq->state == LL_SEQ_RUNNING;
        n_members++;
        n_untold += !seq->is_told;
        n_open += is_open;
        n_marked += seq->is_marked;
        /* Q7: who is held waits for somebody. */
        LL_ASSERT(!seq->is_held || seq->state == LL_SEQ_WAITING);
        LL_ASSERT(!seq->is_held || is_over || leader->primary != LL_NONE);
        LL_ASSERT(!is_over || seq->is_marked || !is_open);
    }
    LL_ASSERT(n_members == leader->n_members && n_untold == leader->n_untold);
    /* Whoever sets one of these tells the scheduler. */
    LL_ASSERT(n_open == 0 || n_marked > 0 || !(leader->is_lost || leader->is_cancelled));
    if (leader->primary == LL_NONE || leader->state == LL_SEQ_INTAKE || n_open == 0)
        return;
    const struct ll_seq *primary = &pool->seq[leader->primary];
    LL_ASSERT(primary->leader == leader->index && !primary->is_held);
    LL_ASSERT(primary->state == LL_SEQ_WAITING || primary->state == LL_SEQ_RUNNING);
}

static void check_one(const struct ll_seq_pool *pool, const struct ll_seq *seq)
{
    LL_ASSERT(seq->n_tokens <= pool->token_capacity);
    LL_ASSERT(seq->n_pages <= pool->page_capacity);
    LL_ASSERT(seq->n_pages_sent <= seq->n_pages);
    LL_ASSERT((seq->swap == LL_SWAP_NONE) == (seq->n_host == 0));
    LL_ASSERT(seq->n_done <= seq->pos_lo && seq->pos_lo <= seq->pos_hi);
    /* Whoever sets one of these tells the scheduler. */
    if (seq->state == LL_SEQ_WAITING || seq->state == LL_SEQ_RUNNING)
        LL_ASSERT(seq->is_marked || !seq->is_stopped);
    if (seq->state != LL_SEQ_FREE && seq->leader == seq->index)
        check_request(pool, seq);
    switch (seq->state) {
    case LL_SEQ_FREE:
        LL_ASSERT(seq->n_in_flight == 0 && seq->n_booked == 0);
        LL_ASSERT(seq->n_pages == 0 && seq->device_slot == LL_NONE);
        break;
    case LL_SEQ_INTAKE:
        LL_ASSERT(seq->n_copied <= seq->n_prompt && seq->n_pages == 0);
        break;
    case LL_SEQ_WAITING:
        LL_ASSERT(seq->n_prompt > 0 && seq->n_tokens >= seq->n_prompt);
        LL_ASSERT(seq->n_pages * LL_PAGE_TOKENS < seq->n_tokens && seq->device_slot == LL_NONE);
        LL_ASSERT(seq->n_in_flight == 0 && seq->pos_hi == 0);
        LL_ASSERT(seq->n_booked == 0 || seq->n_choices > 1);
        LL_ASSERT(seq->end == LL_END_NONE && !seq->is_told && !seq->is_preempted);
        LL_ASSERT(seq->n_chained <= seq->n_pages || seq->n_pages == 0);
        LL_ASSERT(seq->swap == LL_SWAP_NONE || seq->swap == LL_SWAP_HELD);
        break;
    case LL_SEQ_RUNNING:
        LL_ASSERT(seq->n_chained <= seq->n_pages);
        LL_ASSERT(seq->n_prompt > 0 && seq->n_tokens >= seq->n_prompt);
        LL_ASSERT(seq->device_slot != LL_NONE);
        LL_ASSERT(seq->end == LL_END_NONE && !seq->is_told);
        /* Run-ahead: each row in flight can have one id that the host does not know yet. */
        LL_ASSERT(seq->pos_hi <= seq->n_tokens + seq->n_in_flight * LL_ROW_TOKENS_MAX);
        LL_ASSERT(!seq->is_preempted || seq->n_in_flight > 0 || seq->swap == LL_SWAP_OUT);
        LL_ASSERT(seq->swap == LL_SWAP_NONE || seq->swap == LL_SWAP_IN || seq->is_preempted);
        break;
    case LL_SEQ_ENDING:
        LL_ASSERT(seq->end != LL_END_NONE);
        break;
    }
}

void ll_seq_check(const struct ll_seq_pool *pool)
{
    uint32_t n_total = 0, n_marked = 0;

    for (uint32_t i = pool->marked.first; i != LL_NONE; i = pool->seq[i].mark_next) {
        LL_ASSERT(pool->seq[i].is_marked && ++n_marked <= pool->marked.n);
        LL_ASSERT(pool->seq[i].state == LL_SEQ_WAITING || pool->seq[i].state == LL_SEQ_RUNNING);
    }
    LL_ASSERT(n_marked == pool->marked.n);
    for (int state = 0; state <= LL_SEQ_ENDING; state++) {
        const struct ll_seq_list *list = &pool->list[state];
        uint32_t n = 0, before = LL_NONE;
        for (uint32_t i = list->first; i != LL_NONE; i = pool->seq[i].next) {
            const struct ll_seq *seq = &pool->seq[i];
            LL_ASSERT(i < pool->n && seq->index == i);
            LL_ASSERT((int)seq->state == state);
            LL_ASSERT(seq->prev == before);
            LL_ASSERT(++n <= list->n);
            check_one(pool, seq);
            before = i;
        }
        LL_ASSERT(n == list->n && list->last == before);
        n_total += n;
    }
    LL_ASSERT(n_total == pool->n);
    uint32_t n_waiting[LL_ATTACHMENTS_MAX] = {0};
    for (uint32_t i = 0; i < pool->n; i++)
        n_waiting[pool->seq[i].domain_id] += is_queued(&pool->seq[i]);
    LL_ASSERT(memcmp(n_waiting, pool->n_waiting, sizeof(n_waiting)) == 0);
    uint32_t n_at[LL_COUNT(pool->n_at_priority)] = {0};
    for (uint32_t i = pool->list[LL_SEQ_RUNNING].first; i != LL_NONE; i = pool->seq[i].next)
        n_at[pool->seq[i].priority + 128]++;
    LL_ASSERT(memcmp(n_at, pool->n_at_priority, sizeof(n_at)) == 0);
    for (uint32_t word = 0; word < LL_COUNT(pool->priorities); word++)
        for (uint64_t left = pool->priorities[word]; left != 0; left &= left - 1) {
            uint32_t place = word * 64 + (uint32_t)__builtin_ctzll(left);
            LL_ASSERT(n_at[place] > 0);
            n_at[place] = 0;
        }
    static const uint32_t none[LL_COUNT(n_at)];
    LL_ASSERT(memcmp(n_at, none, sizeof(n_at)) == 0); /* no bit is missing */
}
