/* SPDX-License-Identifier: Apache-2.0 */
/* tests/runtime/test_cost.c - the cost model against devices whose law is known. */
#include "tests/harness.h"

#include "base/bits.h"
#include "base/rng.h"
#include "runtime/cost.h"

static uint64_t random_state;

static uint32_t draw(uint32_t n)
{
    return (uint32_t)((ll_splitmix64(&random_state) >> 33) % n);
}

/* A step as a busy server has them: many decode rows, now and then a chunk of a prompt. */
static struct ll_work draw_work(void)
{
    struct ll_work work = {0};
    uint32_t n_rows = 1 + draw(200);

    for (uint32_t i = 0; i < n_rows; i++)
        ll_work_add(&work, 1 + draw(4000), 1);
    if (draw(2) == 0)
        ll_work_add(&work, draw(8000), 2 + draw(2000));
    return work;
}

/* Roughly an 8B on a large GPU, in ns. */
static double law(const struct ll_work *work)
{
    return 1.9e6 + 10500.0 * work->n_prefill + 6000.0 * work->n_decode +
           15.0 * (double)work->n_context + 0.6 * (double)work->n_pairs;
}

static double error_of(const struct ll_cost *cost, const struct ll_work *work, double true_ns)
{
    return (double)ll_cost_predict(cost, work) / true_ns - 1;
}

static void learn(struct ll_cost *cost, uint32_t n, double factor, double noise)
{
    for (uint32_t i = 0; i < n; i++) {
        struct ll_work work = draw_work();
        double jitter = 1 + noise * ((double)draw(2001) / 1000 - 1);
        ll_cost_learn(cost, &work, (uint64_t)(law(&work) * factor * jitter));
    }
}

static double worst(const struct ll_cost *cost, double factor)
{
    double worst = 0;

    for (int i = 0; i < 200; i++) {
        struct ll_work work = draw_work();
        double e = error_of(cost, &work, law(&work) * factor);
        worst = e > worst ? e : -e > worst ? -e : worst;
    }
    return worst;
}

static void a_linear_law_is_learnt_within_a_hundred_steps(void **state)
{
    (void)state;
    struct ll_cost cost;

    random_state = ll_test_seed();
    ll_cost_init(&cost);
    assert_int_equal(ll_cost_predict(&cost, &(struct ll_work){.n_prefill = 100}), 0);
    learn(&cost, 100, 1, 0.02);
    assert_true(worst(&cost, 1) < 0.1);
    learn(&cost, 1000, 1, 0.02);
    assert_true(worst(&cost, 1) < 0.05);
}

static void a_device_that_slows_down_is_followed(void **state)
{
    (void)state;
    struct ll_cost cost;

    random_state = ll_test_seed();
    ll_cost_init(&cost);
    learn(&cost, 1000, 1, 0.02);
    learn(&cost, 1500, 1.5, 0.02);
    assert_true(worst(&cost, 1.5) < 0.1);
}

static void a_hiccup_moves_little(void **state)
{
    (void)state;
    struct ll_cost cost;
    struct ll_work work;

    random_state = ll_test_seed();
    ll_cost_init(&cost);
    learn(&cost, 1000, 1, 0.02);
    work = draw_work();
    ll_cost_learn(&cost, &work, (uint64_t)(law(&work) * 50));
    assert_true(worst(&cost, 1) < 0.1);
}

static void more_work_never_seems_to_take_less(void **state)
{
    (void)state;
    struct ll_cost cost;

    random_state = ll_test_seed();
    for (int round = 0; round < 50; round++) {
        ll_cost_init(&cost);
        for (int i = 0; i < 200; i++) { /* whatever it is told */
            struct ll_work work = draw_work();
            ll_cost_learn(&cost, &work, draw(2) ? draw(1000000000) : draw(1000));
        }
        struct ll_work a = draw_work(), b = a;
        ll_work_add(&b, draw(1000), 1 + draw(1000));
        assert_true(ll_cost_predict(&cost, &b) >= ll_cost_predict(&cost, &a));
        for (uint32_t i = 0; i < LL_COST_TERMS; i++)
            assert_true(cost.w[i] >= 0 && cost.w[i] < 1e15);
    }
}

static void a_chunk_fits_the_budget_as_tightly_as_tokens_allow(void **state)
{
    (void)state;
    struct ll_cost cost;

    random_state = ll_test_seed();
    ll_cost_init(&cost);
    learn(&cost, 1000, 1, 0.01);
    for (int i = 0; i < 100; i++) {
        struct ll_work work = draw_work(), with, more;
        uint64_t budget_ns = ll_cost_predict(&cost, &work) + draw(20000000);
        uint32_t pos = draw(10000), n = ll_cost_fit(&cost, &work, pos, 3000, budget_ns);
        with = more = work;
        if (n > 0)
            ll_work_add(&with, pos, n);
        ll_work_add(&more, pos, n + 1);
        assert_true(ll_cost_predict(&cost, &with) <= budget_ns);
        assert_true(n == 3000 || ll_cost_predict(&cost, &more) + 1 >= budget_ns);
    }
    struct ll_work work = draw_work();
    assert_int_equal(ll_cost_fit(&cost, &work, 0, 3000, 0), 0);
    ll_cost_init(&cost); /* knows nothing: no reason to hold back */
    assert_int_equal(ll_cost_fit(&cost, &work, 0, 3000, 1), 3000);
}

static void the_soonest_end_is_seldom_too_late(void **state)
{
    (void)state;
    struct ll_cost cost;
    uint32_t n_late = 0;

    random_state = ll_test_seed();
    ll_cost_init(&cost);
    learn(&cost, 500, 1, 0.03);
    for (int i = 0; i < 1000; i++) {
        struct ll_work work = draw_work();
        double jitter = 1 + 0.03 * ((double)draw(2001) / 1000 - 1);
        double step = law(&work) * jitter;
        n_late += (double)ll_cost_soonest(&cost, &work) > step;
        assert_true((double)ll_cost_soonest(&cost, &work) > 0.8 * step);
        ll_cost_learn(&cost, &work, (uint64_t)step);
    }
    assert_true(n_late < 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_linear_law_is_learnt_within_a_hundred_steps),
        cmocka_unit_test(a_device_that_slows_down_is_followed),
        cmocka_unit_test(a_hiccup_moves_little),
        cmocka_unit_test(more_work_never_seems_to_take_less),
        cmocka_unit_test(a_chunk_fits_the_budget_as_tightly_as_tokens_allow),
        cmocka_unit_test(the_soonest_end_is_seldom_too_late),
    };
    return cmocka_run_group_tests_name("runtime/cost", tests, NULL, NULL);
}
