/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_queue.c - the order of service: priority, fairness, deadline, arrival; and the
 * heap below it. */
#include "tests/harness.h"

#include "base/rng.h"
#include "runtime/queue.h"

#define N 200u

static struct ll_seq_pool pool;
static struct ll_queue queue;

static int setup(void **state)
{
    *state = NULL;
    return ll_seq_pool_init(&pool, N, 64) < 0 || ll_queue_init(&queue, &pool) < 0;
}

static int teardown(void **state)
{
    (void)state;
    ll_queue_check(&queue);
    ll_queue_free(&queue);
    ll_seq_pool_free(&pool);
    return 0;
}

static struct ll_seq *arrive(uint64_t tenant, int8_t priority, uint64_t deadline_ns)
{
    struct ll_seq *seq = ll_seq_take(&pool, 0);

    seq->tenant_key = tenant;
    seq->priority = priority;
    seq->deadline_ns = deadline_ns;
    ll_seq_move(&pool, seq, LL_SEQ_WAITING);
    ll_queue_open(&queue, seq);
    ll_queue_push(&queue, seq, false);
    ll_queue_check(&queue);
    return seq;
}

/* Who is first starts, at a cost. */
static struct ll_seq *serve(uint64_t cost)
{
    struct ll_seq *seq = ll_queue_first(&queue);

    ll_queue_remove(&queue, seq, true);
    ll_queue_charge(&queue, seq, cost);
    ll_queue_check(&queue);
    return seq;
}

static void among_equals_the_first_to_come_is_first(void **state)
{
    (void)state;
    struct ll_seq *seq[N];

    for (uint32_t i = 0; i < N; i++)
        seq[i] = arrive(1, 0, 0);
    for (uint32_t i = 0; i < N; i++)
        assert_ptr_equal(serve(10), seq[i]);
    assert_null(ll_queue_first(&queue));
}

static void a_lower_priority_number_is_served_before_all_others(void **state)
{
    (void)state;
    struct ll_seq *late = arrive(1, 127, 0), *normal = arrive(2, 0, 1),
                  *urgent = arrive(3, -128, 0), *high = arrive(3, -1, 0);

    ll_queue_charge(&queue, urgent, 1000000); /* whatever its tenant has had */
    assert_ptr_equal(serve(1), urgent);
    assert_ptr_equal(serve(1), high);
    assert_ptr_equal(serve(1), normal);
    assert_ptr_equal(serve(1), late);
}

static void within_a_tenant_the_earliest_deadline_is_first(void **state)
{
    (void)state;
    struct ll_seq *none = arrive(1, 0, 0), *later = arrive(1, 0, 300), *soon = arrive(1, 0, 100),
                  *also = arrive(1, 0, 100);

    assert_ptr_equal(serve(1), soon);
    assert_ptr_equal(serve(1), also);
    assert_ptr_equal(serve(1), later);
    assert_ptr_equal(serve(1), none);
}

static void tenants_are_served_alike_however_much_one_asks(void **state)
{
    (void)state;
    uint64_t served[4] = {0};
    uint32_t n_waiting[4] = {0};

    for (int round = 0; round < 400; round++) {
        for (uint64_t t = 1; t < 4; t++)
            for (; n_waiting[t] < 3; n_waiting[t]++)
                arrive(t, 0, 0);
        while (pool.list[LL_SEQ_FREE].n > 10) /* tenant 0 asks all the time */
            arrive(0, 0, 0);
        /* Its requests are larger, too: turns alone would not do. */
        uint64_t cost =
            (10 + (uint64_t)round % 7) * (ll_queue_first(&queue)->tenant_key == 0 ? 5 : 1);
        struct ll_seq *seq = serve(cost);
        served[seq->tenant_key] += cost;
        n_waiting[seq->tenant_key]--;
        ll_queue_close(&queue, seq);
        ll_seq_move(&pool, seq, LL_SEQ_RUNNING);
        seq->end = LL_END_STOP;
        seq->is_told = true;
        ll_seq_move(&pool, seq, LL_SEQ_ENDING);
        ll_seq_move(&pool, seq, LL_SEQ_FREE);
    }
    for (uint64_t t = 1; t < 4; t++)
        assert_in_range(served[t], served[0] - 100, served[0] + 100);
}

static void who_did_not_ask_has_not_saved_up(void **state)
{
    (void)state;
    struct ll_seq *old = arrive(1, 0, 0); /* long ago */
    serve(1);
    for (int i = 0; i < 20; i++)
        arrive(2, 0, 0);
    for (int i = 0; i < 10; i++)
        serve(1000);
    for (int i = 0; i < 20; i++)
        arrive(1, 0, 0);
    /* From now on turn by turn. */
    uint32_t n_first = 0;
    for (int i = 0; i < 10; i++)
        n_first += serve(1000)->tenant_key == 1;
    assert_in_range(n_first, 4, 6);
    assert_int_equal(old->line, LL_NONE);
}

static void preempted_ones_go_before_newcomers_of_their_priority(void **state)
{
    (void)state;
    struct ll_seq *a = arrive(1, 0, 0), *b = arrive(1, 0, 0);
    serve(100000);
    serve(100000);
    struct ll_seq *fresh = arrive(2, 0, 0), *urgent = arrive(2, -1, 0);
    ll_queue_push(&queue, b, true);
    ll_queue_push(&queue, a, true);
    ll_queue_check(&queue);
    assert_ptr_equal(serve(0), urgent);
    assert_ptr_equal(serve(0), a); /* and in their old order */
    assert_ptr_equal(serve(0), b);
    assert_ptr_equal(serve(0), fresh);
}

static void an_account_is_forgotten_only_when_its_place_is_wanted(void **state)
{
    (void)state;
    for (uint64_t t = 0; t < 5ull * N; t++) {
        struct ll_seq *seq = arrive(t, 0, 0);
        serve(0);
        ll_queue_close(&queue, seq);
        ll_seq_move(&pool, seq, LL_SEQ_RUNNING);
        seq->end = LL_END_STOP;
        seq->is_told = true;
        ll_seq_move(&pool, seq, LL_SEQ_ENDING);
        ll_seq_move(&pool, seq, LL_SEQ_FREE);
        ll_queue_check(&queue);
    }
    assert_int_equal(queue.n_used, 2 * N);
}

/* The rules, in the plainest way: the first of a list. */
static struct ll_seq *plain_first(struct ll_seq **list, uint32_t n)
{
    struct ll_seq *best = NULL;

    for (uint32_t i = 0; i < n; i++) {
        struct ll_seq *a = list[i];
        if (a->line == LL_NONE)
            continue;
        if (best == NULL) {
            best = a;
            continue;
        }
        uint64_t sa = queue.account[a->account].served, sb = queue.account[best->account].served;
        uint64_t da = a->deadline_ns == 0 ? UINT64_MAX : a->deadline_ns,
                 db = best->deadline_ns == 0 ? UINT64_MAX : best->deadline_ns;
        bool wins = a->priority != best->priority ? a->priority < best->priority
                    : sa != sb                    ? sa < sb
                    : a->account != best->account
                        ? queue.line[a->line].turn < queue.line[best->line].turn
                    : da != db ? da < db
                               : a->order < best->order;
        if (wins)
            best = a;
    }
    return best;
}

static void random_queues_agree_with_a_plain_list(void **state)
{
    (void)state;
    uint64_t random = ll_test_seed();
    struct ll_seq *list[N];
    uint32_t n = 0;

    for (int round = 0; round < 20000; round++) {
        uint64_t r = ll_splitmix64(&random);
        uint32_t pick = n > 0 ? (uint32_t)(r >> 32) % n : 0;
        if (n < N && r % 8 < 4) {
            list[n++] = arrive(r >> 8 & 7, (int8_t)(r >> 16 & 1), (r >> 20 & 3) * (r >> 24 & 15));
        } else if (n > 0 && r % 8 == 4) { /* somebody leaves from the middle */
            if (list[pick]->line != LL_NONE)
                ll_queue_remove(&queue, list[pick], false);
        } else if (n > 0 && r % 8 == 5) {
            ll_queue_charge(&queue, list[pick], r >> 40 & 63);
        } else {
            struct ll_seq *expected = plain_first(list, n);
            assert_ptr_equal(ll_queue_first(&queue), expected);
            if (expected != NULL)
                serve(r >> 50 & 31);
        }
        for (uint32_t i = 0; i < n; i++) { /* those out of it end now and then */
            struct ll_seq *seq = list[i];
            if (seq->line != LL_NONE || round % 16 != 0)
                continue;
            ll_queue_close(&queue, seq);
            seq->end = LL_END_STOP;
            seq->is_told = true;
            ll_seq_move(&pool, seq, LL_SEQ_ENDING);
            ll_seq_move(&pool, seq, LL_SEQ_FREE);
            list[i--] = list[--n];
        }
        ll_queue_check(&queue);
    }
}

static void a_heap_agrees_with_a_plain_list(void **state)
{
    (void)state;
    struct ll_heap heap;
    uint64_t random = ll_test_seed();

    assert_int_equal(ll_heap_init(&heap, N), 0);
    assert_int_equal(ll_heap_first(&heap), UINT32_MAX);
    for (int round = 0; round < 30000; round++) {
        uint64_t r = ll_splitmix64(&random);
        uint32_t item = r % N, first = UINT32_MAX;
        if (r >> 20 & 1)
            ll_heap_set(&heap, item, (struct ll_heap_key){r >> 40 & 15, r >> 44 & 1023});
        else
            ll_heap_remove(&heap, item);
        ll_heap_check(&heap);
        for (uint32_t i = 0; i < N; i++) {
            if (!ll_heap_has(&heap, i))
                continue;
            if (first == UINT32_MAX || heap.key[i].hi < heap.key[first].hi ||
                (heap.key[i].hi == heap.key[first].hi && heap.key[i].lo < heap.key[first].lo))
                first = i;
        }
        uint32_t found = ll_heap_first(&heap);
        assert_int_equal(found == UINT32_MAX, first == UINT32_MAX);
        if (found != UINT32_MAX)
            assert_true(heap.key[found].hi == heap.key[first].hi &&
                        heap.key[found].lo == heap.key[first].lo);
    }
    ll_heap_free(&heap);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(among_equals_the_first_to_come_is_first),
        TEST(a_lower_priority_number_is_served_before_all_others),
        TEST(within_a_tenant_the_earliest_deadline_is_first),
        TEST(tenants_are_served_alike_however_much_one_asks),
        TEST(who_did_not_ask_has_not_saved_up),
        TEST(preempted_ones_go_before_newcomers_of_their_priority),
        TEST(an_account_is_forgotten_only_when_its_place_is_wanted),
        TEST(random_queues_agree_with_a_plain_list),
        cmocka_unit_test(a_heap_agrees_with_a_plain_list),
    };
    return cmocka_run_group_tests_name("runtime/queue", tests, NULL, NULL);
}
