/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/waiting.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define SHARE 8u
/* Means are over so many: fewer, and the door would open each time that a few small ones happened
 * to come together. */
#define MEAN_OVER    128u
#define SAMPLE_MAX   (10.0 * LL_NS_PER_S) /* a stopped machine is no pace */
#define RETRY_MIN_MS 5u
#define RETRY_MAX_MS 10000u
#define RETRY_MS     100u /* nothing has started yet: nobody knows */
/* The slowest pace is forgotten over so many: it must not follow each change of what is served, for
 * what is let in by it is served only when all that waits has been, and so it would swing. */
#define FORGET_OVER 2048.0
/* A deadline must leave so much more than what is foreseen: others arrive, requests differ. */
#define MARGIN 1.5
/* Where waiting takes less than such a part of what is left, it may try: its time is short for what
 * it asks, but the machine is not crowded, and most answers are shorter than they may be. */
#define CROWD 8.0

void ll_waiting_init(struct ll_waiting *waiting, uint32_t n_max, uint64_t tokens_max)
{
    memset(waiting, 0, sizeof(*waiting));
    waiting->n_max = n_max;
    waiting->tokens_max = tokens_max;
}

static uint32_t tenant_of(uint64_t key)
{
    static_assert(LL_WAITING_TENANTS == 1u << 12, "12 bits");
    return (uint32_t)((key * 0x9e3779b97f4a7c15ull) >> 52);
}

/* A sample: what `work` took. */
static void learn(struct ll_pace *pace, double ns, double work)
{
    pace->n += pace->n < MEAN_OVER;
    pace->mean_ns += (fmin(ns, SAMPLE_MAX) - pace->mean_ns) / pace->n;
    pace->mean_work += (work - pace->mean_work) / pace->n;
    pace->slow -= pace->slow / FORGET_OVER;
    if (pace->n == MEAN_OVER)
        pace->slow = fmax(pace->slow, pace->mean_ns / pace->mean_work);
}

static void count(struct ll_pace *pace, uint64_t now_ns, double work)
{
    learn(pace, now_ns > pace->since_ns ? (double)(now_ns - pace->since_ns) : 0, work);
    pace->since_ns = now_ns;
}

/* ns a unit of work; 0: not known. */
static double pace_of(const struct ll_pace *pace)
{
    return pace->n > 0 ? pace->mean_ns / pace->mean_work : 0;
}

static double slowest(const struct ll_pace *pace)
{
    return fmax(pace_of(pace), pace->slow);
}

/* What is done until a tenant that has so much before it has its turn: all that wait take turns. */
static double work_until(const struct ll_waiting *waiting, uint64_t work)
{
    return fmin((double)waiting->work, (double)work * waiting->n_tenants);
}

/* An answer is as long as it may be, or as the longest of late. */
static uint32_t n_out_of(const struct ll_waiting *waiting, const struct ll_seq *seq)
{
    if (waiting->n_ended < MEAN_OVER)
        return seq->max_tokens;
    return (uint32_t)ll_min_u64(seq->max_tokens, waiting->n_out);
}

static uint64_t work_of(const struct ll_waiting *waiting, const struct ll_seq *seq, uint32_t n)
{
    return seq->n_prompt + (uint64_t)LL_QUEUE_TOKEN_COST * n * n_out_of(waiting, seq);
}

static uint32_t retry_ms(const struct ll_waiting *waiting, uint64_t key)
{
    uint64_t half = waiting->tenant[tenant_of(key)].work / 2;

    if (waiting->starts.n == 0)
        return RETRY_MS;
    double ms = work_until(waiting, half) * pace_of(&waiting->starts) / LL_NS_PER_MS;
    return (uint32_t)fmin(fmax(ms, RETRY_MIN_MS), RETRY_MAX_MS);
}

struct ll_refusal ll_waiting_busy(const struct ll_waiting *waiting, uint64_t key, const char *text)
{
    struct ll_refusal why = {.code = LL_E_BUSY, .retry_ms = retry_ms(waiting, key)};

    snprintf(why.text, sizeof(why.text), "%s", text);
    return why;
}

/* Will it have ended by its deadline? */
static bool can_make_it(const struct ll_waiting *waiting, const struct ll_seq *seq, uint32_t n,
                        uint64_t now_ns)
{
    if (seq->deadline_ns <= now_ns) /* none, or it expires at once */
        return true;
    double left_ns = (double)(seq->deadline_ns - now_ns);
    uint64_t before = waiting->tenant[tenant_of(seq->tenant_key)].work;
    double wait_ns = work_until(waiting, before + work_of(waiting, seq, n)) *
                     fmax(slowest(&waiting->starts), slowest(&waiting->ends));
    double run_ns = seq->n_prompt * slowest(&waiting->prompt) +
                    n_out_of(waiting, seq) * slowest(&waiting->token);
    return MARGIN * (wait_ns + run_ns) < left_ns || CROWD * wait_ns < left_ns;
}

bool ll_waiting_may_enter(const struct ll_waiting *waiting, const struct ll_seq *seq,
                          uint32_t n_choices, uint64_t now_ns, struct ll_refusal *why)
{
    const struct ll_waiting_tenant *tenant = &waiting->tenant[tenant_of(seq->tenant_key)];
    uint64_t n_free = waiting->n_max - ll_min_u64(waiting->n, waiting->n_max);
    uint64_t tokens_free = waiting->tokens_max - ll_min_u64(waiting->n_tokens, waiting->tokens_max);
    const char *text = NULL;

    if (waiting->n == 0) /* A2 */
        return true;
    if (n_free < n_choices || tenant->n / SHARE >= n_free)
        text = "requests waiting: too many";
    else if (tokens_free < seq->n_prompt || tenant->n_tokens / SHARE >= tokens_free)
        text = "tokens waiting: too many";
    else if (!can_make_it(waiting, seq, n_choices, now_ns))
        text = "deadline_ns: too many wait";
    if (text == NULL)
        return true;
    *why = ll_waiting_busy(waiting, seq->tenant_key, text);
    return false;
}

void ll_waiting_enter(struct ll_waiting *waiting, struct ll_seq *seq, uint32_t n_choices,
                      uint64_t now_ns)
{
    struct ll_waiting_tenant *tenant = &waiting->tenant[tenant_of(seq->tenant_key)];

    LL_ASSERT(!seq->has_place && n_choices >= 1 && n_choices <= LL_CHOICES_MAX);
    seq->has_place = true;
    seq->place_work = (uint32_t)ll_min_u64(work_of(waiting, seq, n_choices), UINT32_MAX);
    seq->place_n = (uint8_t)n_choices;
    if (waiting->n == 0)
        waiting->starts.since_ns = waiting->ends.since_ns = now_ns;
    waiting->n_tokens += seq->n_prompt;
    waiting->work += seq->place_work;
    tenant->work += seq->place_work;
    waiting->n += n_choices;
    waiting->n_tenants += tenant->n == 0;
    tenant->n += n_choices;
    tenant->n_tokens += seq->n_prompt;
}

void ll_waiting_leave(struct ll_waiting *waiting, struct ll_seq *seq, uint64_t now_ns,
                      bool has_started)
{
    struct ll_waiting_tenant *tenant = &waiting->tenant[tenant_of(seq->tenant_key)];

    if (!seq->has_place)
        return;
    seq->has_place = false;
    waiting->n -= seq->place_n;
    waiting->n_tokens -= seq->n_prompt;
    waiting->work -= seq->place_work;
    tenant->work -= seq->place_work;
    tenant->n -= seq->place_n;
    waiting->n_tenants -= tenant->n == 0;
    tenant->n_tokens -= seq->n_prompt;
    LL_ASSERT(tenant->n > 0 || tenant->n_tokens == 0);
    if (has_started)
        count(&waiting->starts, now_ns, seq->place_work);
}

void ll_waiting_learn_first(struct ll_waiting *waiting, uint64_t took_ns, uint32_t n_computed)
{
    learn(&waiting->prompt, (double)took_ns, (double)ll_max_u64(n_computed, 1));
}

void ll_waiting_learn_gap(struct ll_waiting *waiting, uint64_t gap_ns)
{
    learn(&waiting->token, (double)gap_ns, 1);
}

void ll_waiting_learn_end(struct ll_waiting *waiting, const struct ll_seq *seq, uint64_t now_ns)
{
    uint64_t n_out = seq->n_out / ll_max_u64(seq->place_n, 1); /* of a choice, about */

    if (waiting->n > 0)
        count(&waiting->ends, now_ns, seq->place_work);
    waiting->n_ended += waiting->n_ended < MEAN_OVER;
    /* The longest, forgotten within some hundreds of shorter ones. */
    waiting->n_out -= waiting->n_out / 256;
    waiting->n_out = (uint32_t)ll_max_u64(waiting->n_out, n_out);
}

void ll_waiting_check(const struct ll_waiting *waiting, const struct ll_seq_pool *pool)
{
    uint64_t n = 0, n_tokens = 0, n_of_tenants = 0, tokens_of_tenants = 0, n_tenants = 0;
    uint64_t is_seen[LL_WAITING_TENANTS / 64] = {0};

    /* Not all 4,096 tenants each time, only those that somebody waits for: n_tenants tells whether
     * others have a part as well. */
    for (uint32_t i = 0; i < pool->n; i++) {
        const struct ll_seq *seq = &pool->seq[i];
        if (!seq->has_place)
            continue;
        LL_ASSERT(seq->state != LL_SEQ_FREE && seq->leader == i && !seq->has_run);
        n += seq->place_n;
        n_tokens += seq->n_prompt;
        uint32_t place = tenant_of(seq->tenant_key);
        if ((is_seen[place / 64] >> place % 64 & 1) != 0)
            continue;
        is_seen[place / 64] |= 1ull << place % 64;
        LL_ASSERT(waiting->tenant[place].n > 0);
        n_of_tenants += waiting->tenant[place].n;
        tokens_of_tenants += waiting->tenant[place].n_tokens;
        n_tenants++;
    }
    LL_ASSERT(n == waiting->n && n_tokens == waiting->n_tokens);
    LL_ASSERT(n == n_of_tenants && n_tokens == tokens_of_tenants);
    LL_ASSERT(n_tenants == waiting->n_tenants);
}
