/* SPDX-License-Identifier: Apache-2.0 */
/* tests/http/test_balance.c - which runtime gets a request: the rules B1 - B3 of balance.h. */
#include "tools/http/balance.h"
#include "tests/harness.h"

#define N 5

static void make(struct balance_place place[N])
{
    for (uint32_t i = 0; i < N; i++)
        place[i] = (struct balance_place){
            .is_usable = true, .load = 10, .key = (i + 1) * 0x9e3779b97f4a7c15ull};
}

static void the_least_loaded_takes_what_has_no_page(void **state)
{
    (void)state;
    struct balance_place place[N];

    make(place);
    place[3].load = 9;
    for (uint32_t turn = 0; turn < 20; turn++)
        assert_int_equal(balance_choose(place, N, 0, turn), 3);
    place[3].is_usable = false;
    place[1].load = 2;
    assert_int_equal(balance_choose(place, N, 0, 0), 1);
}

static void equals_take_turns(void **state)
{
    (void)state;
    struct balance_place place[N];
    uint32_t n_given[N] = {0};

    make(place);
    for (uint32_t turn = 0; turn < 100 * N; turn++)
        n_given[balance_choose(place, N, 0, turn)]++;
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(n_given[i], 100);
}

static void none_usable_is_none(void **state)
{
    (void)state;
    struct balance_place place[N];

    make(place);
    for (uint32_t i = 0; i < N; i++)
        place[i].is_usable = false;
    assert_int_equal(balance_choose(place, N, 0, 1), BALANCE_NONE);
    assert_int_equal(balance_choose(place, N, 77, 1), BALANCE_NONE);
}

static void a_page_stays_with_its_runtime_until_that_is_much_busier(void **state)
{
    (void)state;
    struct balance_place place[N];

    make(place);
    for (uint64_t page = 1; page < 500; page++) {
        uint32_t home = balance_choose(place, N, page, 0);
        for (uint32_t turn = 0; turn < N; turn++)
            assert_int_equal(balance_choose(place, N, page, turn), home);
        place[home].load = 10 + 10 / 4 + 4;
        assert_int_equal(balance_choose(place, N, page, 3), home);
        place[home].load++;
        assert_int_not_equal(balance_choose(place, N, page, 3), home);
        place[home].load = 10;
    }
}

static void pages_spread_and_only_those_of_one_that_goes_move(void **state)
{
    (void)state;
    struct balance_place place[N];
    uint32_t n_given[N] = {0}, n_moved = 0;

    make(place);
    for (uint64_t page = 1; page <= 10000; page++) {
        uint32_t home = balance_choose(place, N, page, 0);
        n_given[home]++;
        place[2].is_usable = false;
        uint32_t other = balance_choose(place, N, page, 0);
        place[2].is_usable = true;
        n_moved += other != home;
        assert_true(home == 2 ? other != 2 : other == home);
    }
    assert_int_equal(n_moved, n_given[2]);
    for (uint32_t i = 0; i < N; i++)
        assert_in_range(n_given[i], 1800, 2200); /* 5 sigma of a fair draw */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_loaded_takes_what_has_no_page),
        cmocka_unit_test(equals_take_turns),
        cmocka_unit_test(none_usable_is_none),
        cmocka_unit_test(a_page_stays_with_its_runtime_until_that_is_much_busier),
        cmocka_unit_test(pages_spread_and_only_those_of_one_that_goes_move),
    };

    return cmocka_run_group_tests_name("http/balance", tests, NULL, NULL);
}
