/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_prefix.c - the index of the prefix cache alone: chains, hits, H1. */
#include "tests/harness.h"

#include "base/rng.h"
#include "runtime/prefix.h"

#define N_PAGES 50u
#define NONE    UINT32_MAX

static struct ll_prefix index_of_pages;
static uint32_t ids[N_PAGES][LL_PAGE_TOKENS];

static int setup(void **state)
{
    uint64_t random = 7;

    *state = &index_of_pages;
    for (uint32_t i = 0; i < N_PAGES; i++)
        for (uint32_t k = 0; k < LL_PAGE_TOKENS; k++)
            ids[i][k] = (uint32_t)(ll_splitmix64(&random) % 1000);
    return ll_prefix_init(&index_of_pages, N_PAGES, 1);
}

static int teardown(void **state)
{
    ll_prefix_check(*state);
    ll_prefix_free(*state);
    return 0;
}

static bool is_equal(struct ll_chain a, struct ll_chain b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

static void a_page_is_found_by_its_whole_prefix(void **state)
{
    struct ll_prefix *p = *state;
    struct ll_prefix_root root = {.domain = 1000};
    struct ll_chain c0 = ll_prefix_begin(p, &root), c1 = ll_prefix_step(p, c0, ids[0]),
                    c2 = ll_prefix_step(p, c1, ids[1]);

    assert_true(ll_prefix_add(p, 10, c1, ids[0]));
    assert_true(ll_prefix_add(p, 20, c2, ids[1]));
    assert_int_equal(ll_prefix_find(p, c1, ids[0]), 10);
    assert_int_equal(ll_prefix_find(p, c2, ids[1]), 20);
    /* The same ids elsewhere are another prefix. */
    assert_int_equal(ll_prefix_find(p, ll_prefix_step(p, c0, ids[1]), ids[1]), NONE);
    assert_int_equal(ll_prefix_find(p, ll_prefix_step(p, c2, ids[1]), ids[1]), NONE);
    ll_prefix_remove(p, 10);
    assert_false(ll_prefix_has(p, 10));
    assert_int_equal(ll_prefix_find(p, c1, ids[0]), NONE);
    assert_int_equal(ll_prefix_find(p, c2, ids[1]), 20);
}

static void ids_are_compared_and_not_only_hashes(void **state)
{
    struct ll_prefix *p = *state;
    struct ll_chain chain = {1, 2};

    assert_true(ll_prefix_add(p, 3, chain, ids[0]));
    assert_int_equal(ll_prefix_find(p, chain, ids[0]), 3);
    for (uint32_t k = 0; k < LL_PAGE_TOKENS; k++) {
        uint32_t other[LL_PAGE_TOKENS];
        memcpy(other, ids[0], sizeof(other));
        other[k]++;
        assert_int_equal(ll_prefix_find(p, chain, other), NONE);
    }
    /* A hash has one page (H1). */
    assert_false(ll_prefix_add(p, 4, chain, ids[1]));
    assert_false(ll_prefix_has(p, 4));
}

static void every_part_of_the_root_separates(void **state)
{
    struct ll_prefix *p = *state;
    struct ll_prefix_root root = {1, 2, {3, 4}, 5, 6};
    struct ll_prefix_root roots[] = {{9, 2, {3, 4}, 5, 6}, {1, 9, {3, 4}, 5, 6},
                                     {1, 2, {9, 4}, 5, 6}, {1, 2, {3, 9}, 5, 6},
                                     {1, 2, {3, 4}, 9, 6}, {1, 2, {3, 4}, 5, 9}};
    struct ll_chain chain = ll_prefix_begin(p, &root);

    assert_true(is_equal(chain, ll_prefix_begin(p, &root)));
    for (size_t i = 0; i < sizeof(roots) / sizeof(roots[0]); i++)
        assert_false(is_equal(chain, ll_prefix_begin(p, &roots[i])));
    ll_prefix_forget_all(p);
    assert_false(is_equal(chain, ll_prefix_begin(p, &root)));
}

static void the_secret_decides_the_hash(void **state)
{
    struct ll_prefix *p = *state, other;
    struct ll_prefix_root root = {.domain = 1000};

    assert_int_equal(ll_prefix_init(&other, N_PAGES, 2), 0);
    assert_false(is_equal(ll_prefix_begin(p, &root), ll_prefix_begin(&other, &root)));
    assert_false(is_equal(ll_prefix_step(p, (struct ll_chain){0}, ids[0]),
                          ll_prefix_step(&other, (struct ll_chain){0}, ids[0])));
    ll_prefix_free(&other);
}

static void each_id_changes_the_chain(void **state)
{
    struct ll_prefix *p = *state;
    struct ll_chain chain = ll_prefix_step(p, (struct ll_chain){5, 6}, ids[0]);

    for (uint32_t k = 0; k < LL_PAGE_TOKENS; k++) {
        uint32_t other[LL_PAGE_TOKENS];
        memcpy(other, ids[0], sizeof(other));
        other[k] ^= 1;
        assert_false(is_equal(chain, ll_prefix_step(p, (struct ll_chain){5, 6}, other)));
    }
    assert_false(is_equal(chain, ll_prefix_step(p, (struct ll_chain){4, 6}, ids[0])));
    assert_false(is_equal(chain, ll_prefix_step(p, (struct ll_chain){5, 7}, ids[0])));
}

static void random_adds_and_removes_agree_with_a_plain_list(void **state)
{
    struct ll_prefix *p = *state;
    uint64_t random = ll_test_seed();
    struct {
        bool is_in;
        struct ll_chain chain;
    } list[N_PAGES] = {0};

    for (int round = 0; round < 20000; round++) {
        uint64_t r = ll_splitmix64(&random);
        uint32_t page = r % N_PAGES;
        if (list[page].is_in) {
            ll_prefix_remove(p, page);
            list[page].is_in = false;
        } else { /* few chains, so that buckets and hashes collide */
            struct ll_chain chain = {r >> 8 & 31, r >> 16 & 1};
            bool is_taken = false;
            for (uint32_t i = 0; i < N_PAGES; i++)
                is_taken |= list[i].is_in && is_equal(list[i].chain, chain);
            assert_int_equal(ll_prefix_add(p, page, chain, ids[page]), !is_taken);
            list[page].is_in = !is_taken;
            list[page].chain = chain;
        }
        ll_prefix_check(p);
        for (uint32_t i = 0; i < N_PAGES; i++) {
            assert_int_equal(ll_prefix_has(p, i), list[i].is_in);
            if (list[i].is_in)
                assert_int_equal(ll_prefix_find(p, list[i].chain, ids[i]), i);
        }
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_page_is_found_by_its_whole_prefix),
        TEST(ids_are_compared_and_not_only_hashes),
        TEST(every_part_of_the_root_separates),
        TEST(the_secret_decides_the_hash),
        TEST(each_id_changes_the_chain),
        TEST(random_adds_and_removes_agree_with_a_plain_list),
    };
    return cmocka_run_group_tests_name("runtime/prefix", tests, NULL, NULL);
}
