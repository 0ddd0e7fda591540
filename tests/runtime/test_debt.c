/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_debt.c - calls that a client makes slow: timed, owed, paid off. */
#include "tests/harness.h"

#include "base/clock.h"
#include "runtime/debt.h"

/* Clocks that only the test moves. */
static uint64_t now_ns, spent_ns;

static uint64_t get(void *which)
{
    return *(uint64_t *)which;
}

static uint64_t get_spent(void *which)
{
    (void)which;
    return spent_ns;
}

static const struct ll_debt_clock test_clock = {.now = get, .spent = get_spent, .context = &now_ns};

static void call(struct ll_debt *debt, uint64_t took_ns, uint64_t took_cpu_ns)
{
    struct ll_debt_call c = ll_debt_begin(debt, &test_clock);

    now_ns += took_ns;
    spent_ns += took_cpu_ns;
    ll_debt_end(debt, &test_clock, &c);
}

static void honest_calls_owe_nothing(void **state)
{
    (void)state;
    struct ll_debt debt = {0};

    for (int i = 0; i < 100000; i++)
        call(&debt, 24 * LL_NS_PER_US, 24 * LL_NS_PER_US);
    assert_false(ll_debt_is_due(&debt, &test_clock));
    assert_int_equal(debt.ns, 0);
}

static void waiting_for_the_cpu_is_nobodys_debt(void **state)
{
    (void)state;
    struct ll_debt debt = {0};

    for (int i = 0; i < 1000; i++)
        call(&debt, 20 * LL_NS_PER_MS, 2 * LL_NS_PER_US);
    assert_true(debt.is_timed);
    assert_int_equal(debt.ns, 0);
}

static void more_than_ten_ms_wait_until_time_has_paid_them_off(void **state)
{
    (void)state;
    struct ll_debt debt = {0};

    call(&debt, 8 * LL_NS_PER_MS, 8 * LL_NS_PER_MS); /* the first is not known to be the client's */
    call(&debt, 8 * LL_NS_PER_MS, 8 * LL_NS_PER_MS);
    assert_false(ll_debt_is_due(&debt, &test_clock));
    call(&debt, 8 * LL_NS_PER_MS, 8 * LL_NS_PER_MS);
    assert_true(ll_debt_is_due(&debt, &test_clock));
    for (int i = 0; i < 1000; i++) { /* 16 ms: 1.2 s pay off 6 of them, however often one looks */
        now_ns += LL_NS_PER_MS;
        assert_true(ll_debt_is_due(&debt, &test_clock));
    }
    now_ns += LL_NS_PER_S / 4;
    assert_false(ll_debt_is_due(&debt, &test_clock));
    now_ns += 100 * LL_NS_PER_S;
    assert_false(ll_debt_is_due(&debt, &test_clock));
    assert_int_equal(debt.ns, 0);
}

/* Over a long time a thread loses 0.5 % to a domain that is as slow as it can be. */
static void it_costs_half_a_percent(void **state)
{
    (void)state;
    struct ll_debt debt = {0};
    uint64_t lost_ns = 0, start_ns = now_ns;

    while (now_ns - start_ns < 1000 * LL_NS_PER_S) {
        if (!ll_debt_is_due(&debt, &test_clock)) {
            call(&debt, 16 * LL_NS_PER_MS, 16 * LL_NS_PER_MS);
            lost_ns += 16 * LL_NS_PER_MS;
        }
        now_ns += LL_NS_PER_MS;
    }
    assert_true(lost_ns <= 5 * LL_NS_PER_S + 100 * LL_NS_PER_MS);
    assert_true(lost_ns >= 4 * LL_NS_PER_S); /* or nobody is woken at all */
}

static void the_systems_clocks_do_too(void **state)
{
    (void)state;
    const struct ll_debt_clock system = {0};
    struct ll_debt debt = {.is_timed = true};
    struct ll_debt_call c = ll_debt_begin(&debt, &system);
    uint64_t end_ns = ll_now_ns() + 100 * LL_NS_PER_MS;

    while (ll_now_ns() < end_ns)
        ;
    ll_debt_end(&debt, &system, &c);
    assert_true(debt.ns > LL_NS_PER_MS); /* all 100 where nobody else wants the CPU */
    assert_true(debt.ns < 10 * LL_NS_PER_S);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(honest_calls_owe_nothing),
        cmocka_unit_test(waiting_for_the_cpu_is_nobodys_debt),
        cmocka_unit_test(more_than_ten_ms_wait_until_time_has_paid_them_off),
        cmocka_unit_test(it_costs_half_a_percent),
        cmocka_unit_test(the_systems_clocks_do_too),
    };
    return cmocka_run_group_tests_name("runtime/debt", tests, NULL, NULL);
}
