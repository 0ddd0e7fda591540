/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_waiting.c - who may wait, who is told to come again and when. */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/clock.h"
#include "ll/client.h"
#include "runtime/waiting.h"

#define N_SEQS 600u

static struct ll_waiting waiting;
static struct ll_seq_pool pool;
static uint64_t now_ns;
static struct ll_seq *line[10000]; /* who waits, in the order in which they came */
static uint32_t n_left, n_come;

static int setup(void **state)
{
    (void)state;
    now_ns = LL_NS_PER_S;
    n_left = n_come = 0;
    ll_waiting_init(&waiting, 100, UINT64_MAX);
    return ll_seq_pool_init(&pool, N_SEQS, 64);
}

static int teardown(void **state)
{
    (void)state;
    ll_waiting_check(&waiting, &pool);
    ll_seq_pool_free(&pool);
    return 0;
}

static struct ll_seq *come(uint64_t tenant, uint32_t n_prompt, uint32_t max_tokens)
{
    struct ll_seq *seq = ll_seq_take(&pool, 0);

    assert_non_null(seq);
    seq->tenant_key = tenant;
    seq->n_prompt = n_prompt;
    seq->max_tokens = max_tokens;
    return seq;
}

/* A request of ten prompt tokens, five to answer: enters, or is refused and forgotten. */
static bool enter(uint64_t tenant, struct ll_refusal *why)
{
    struct ll_seq *seq = come(tenant, 10, 5);
    bool may = ll_waiting_may_enter(&waiting, seq, 1, now_ns, why);

    if (may) {
        ll_waiting_enter(&waiting, seq, 1, now_ns);
        assert_true(n_come < LL_COUNT(line));
        line[n_come++] = seq;
    } else {
        ll_seq_move(&pool, seq, LL_SEQ_FREE);
    }
    return may;
}

/* The first in line starts, its place is free; whose it was. */
static uint64_t start_one(void)
{
    assert_true(n_left < n_come);
    struct ll_seq *seq = line[n_left++];
    uint64_t tenant = seq->tenant_key;

    ll_waiting_leave(&waiting, seq, now_ns, true);
    ll_waiting_leave(&waiting, seq, now_ns, true); /* nothing the second time */
    ll_seq_move(&pool, seq, LL_SEQ_FREE);
    return tenant;
}

static void one_tenant_alone_gets_eight_of_nine_places(void **state)
{
    (void)state;
    struct ll_refusal why;
    uint32_t n = 0;

    while (enter(1, &why))
        n++;
    assert_int_equal(n, 89);
    assert_int_equal(why.code, LL_E_BUSY);
    assert_int_equal(why.retry_ms, 100); /* nobody has started: a guess */
    assert_string_equal(why.text, "requests waiting: too many");
    assert_true(enter(2, &why)); /* another one finds room */
}

static void crowds_come_to_equal_parts(void **state)
{
    (void)state;
    struct ll_refusal why;
    uint32_t n[5] = {0};

    while (enter(0, &why)) /* first come, most of the places */
        n[0]++;
    for (uint32_t turn = 0; turn < 400; turn++) { /* each asks for as much as it can get */
        n[start_one()]--;
        for (uint32_t k = 0; k < 5; k++)
            while (enter((turn + k) % 5, &why))
                n[(turn + k) % 5]++;
    }
    for (uint32_t k = 0; k < 5; k++)
        assert_in_range(n[k], 16, 24);
}

static void tokens_are_bounded_too_but_a_lone_request_may_be_longer(void **state)
{
    (void)state;
    struct ll_refusal why;

    waiting.tokens_max = 100;
    struct ll_seq *big = come(1, 500, 5);
    assert_true(ll_waiting_may_enter(&waiting, big, 1, now_ns, &why));
    ll_waiting_enter(&waiting, big, 1, now_ns);
    assert_false(enter(2, &why));
    assert_string_equal(why.text, "tokens waiting: too many");
    ll_waiting_leave(&waiting, big, now_ns, false);
    for (uint32_t i = 0; i < 8; i++)
        assert_true(enter(1, &why));
    assert_int_equal(waiting.n_tokens, 80);
    struct ll_seq *other = come(2, 21, 5);
    assert_false(ll_waiting_may_enter(&waiting, other, 1, now_ns, &why));
    other->n_prompt = 20;
    assert_true(ll_waiting_may_enter(&waiting, other, 1, now_ns, &why));
}

static void a_tenant_leaves_tokens_for_others_too(void **state)
{
    (void)state;
    struct ll_refusal why;
    uint32_t n = 0;

    waiting.tokens_max = 100;
    while (enter(1, &why))
        n++;
    assert_int_equal(n, 9);
    assert_string_equal(why.text, "tokens waiting: too many");
    assert_true(enter(2, &why));
}

static void the_hint_is_when_half_of_what_waits_has_started(void **state)
{
    (void)state;
    struct ll_refusal why;

    for (uint32_t i = 0; i < 200; i++) { /* one starts each 20 ms */
        while (enter(1, &why))
            ;
        now_ns += 20 * LL_NS_PER_MS;
        start_one();
    }
    while (enter(1, &why))
        ;
    assert_in_range(why.retry_ms, 44 * 20, 45 * 20 + 1); /* 89 wait */
    /* With another tenant's waiting as well, only every second start is one's own. */
    uint32_t n = 89, ms = why.retry_ms;
    for (uint32_t i = 0; i < 47; i++) {
        now_ns += 20 * LL_NS_PER_MS;
        n -= start_one() == 1;
    }
    assert_int_equal(n, 42);
    while (enter(2, &why) || enter(1, &why))
        ;
    assert_in_range(why.retry_ms, ms - 80, ms + 160); /* 44 to 52 are its own */
}

static void a_deadline_that_will_be_missed_is_refused_while_others_wait(void **state)
{
    (void)state;
    struct ll_refusal why;

    for (uint32_t i = 0; i < 300; i++) { /* one each 20 ms; a prompt takes 10 ms, a token 1 ms */
        struct ll_seq *seq = come(1, 10, 5);
        ll_waiting_enter(&waiting, seq, 1, now_ns);
        now_ns += 20 * LL_NS_PER_MS;
        ll_waiting_leave(&waiting, seq, now_ns, true);
        ll_waiting_learn_first(&waiting, 10 * LL_NS_PER_MS, 10);
        ll_waiting_learn_gap(&waiting, LL_NS_PER_MS);
        seq->n_out = 5;
        ll_waiting_learn_end(&waiting, seq, now_ns);
        ll_seq_move(&pool, seq, LL_SEQ_FREE);
    }
    struct ll_seq *seq = come(1, 10, 5);
    seq->deadline_ns = now_ns + LL_NS_PER_MS;
    assert_true(
        ll_waiting_may_enter(&waiting, seq, 1, now_ns, &why)); /* nobody waits: it may try */
    for (uint32_t i = 0; i < 50; i++)
        assert_true(enter(1, &why));
    /* 51 starts and 15 ms, half as much again: 1.55 s. */
    seq->deadline_ns = now_ns + 1400 * LL_NS_PER_MS;
    assert_false(ll_waiting_may_enter(&waiting, seq, 1, now_ns, &why));
    assert_int_equal(why.code, LL_E_BUSY);
    assert_in_range(why.retry_ms, 480, 520);
    assert_string_equal(why.text, "deadline_ns: too many wait");
    seq->deadline_ns = now_ns + 1700 * LL_NS_PER_MS;
    assert_true(ll_waiting_may_enter(&waiting, seq, 1, now_ns, &why));
    seq->deadline_ns = 0;
    assert_true(ll_waiting_may_enter(&waiting, seq, 1, now_ns, &why));
    /* An answer may be long, but none of late was: it counts as those. */
    seq->max_tokens = 1000000;
    seq->deadline_ns = now_ns + 1700 * LL_NS_PER_MS;
    assert_true(ll_waiting_may_enter(&waiting, seq, 1, now_ns, &why));
    /* A clock that goes back, or stands still for an hour, is no pace. */
    now_ns -= LL_NS_PER_S / 2;
    start_one();
    now_ns += 3600 * LL_NS_PER_S;
    start_one();
    assert_true(waiting.starts.mean_ns < 200 * LL_NS_PER_MS);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(one_tenant_alone_gets_eight_of_nine_places),
        TEST(crowds_come_to_equal_parts),
        TEST(tokens_are_bounded_too_but_a_lone_request_may_be_longer),
        TEST(a_tenant_leaves_tokens_for_others_too),
        TEST(the_hint_is_when_half_of_what_waits_has_started),
        TEST(a_deadline_that_will_be_missed_is_refused_while_others_wait),
    };
    return cmocka_run_group_tests_name("runtime/waiting", tests, NULL, NULL);
}
