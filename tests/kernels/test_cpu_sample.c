/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cpu_sample.c - the sampler against backend.h's ten steps written out naively
 * in double (sort, add up, draw), and its draws against the exact probabilities (chi-square). */
#include "tests/kernels/sampler.h"

static uint32_t sample(struct fixture *f, uint32_t position)
{
    return ll_cpu_sample(inner, &f->logits, &f->settings, position, &f->scratch);
}

/* ---- tests
 * ---------------------------------------------------------------------------------------- */
/* Every filter, penalty and tie: the sampler's token is the one that sorting everything and
 * drawing for every id gives. */
static void each_token_is_the_naive_sampler_s(void **state)
{
    static const uint32_t vocabs[] = {1, 2, 17, 64, 257, 4999};
    struct naive *n = malloc(sizeof(*n));
    uint32_t n_checked = 0, n_edges = 0;

    (void)state;
    for (int round = 0; round < 3000; round++) {
        struct fixture *f = open_fixture(vocabs[(size_t)round % LL_COUNT(vocabs)]);
        set_logits(f, round % 7 == 0 ? 0.5f : 8, round % 3 == 0 ? 0.25f : 0);
        random_settings(f);
        uint32_t position = 10 + (uint32_t)round % 3;
        uint32_t token = sample(f, position);

        apply_naively(f, position, n);
        double best = -INFINITY, second = -INFINITY;
        uint32_t want = 0;
        for (uint32_t v = 0; v < f->logits.n_vocab; v++) {
            double score = n->is_kept[v] ? n->y[v] + noise(f, v, position) : -INFINITY;
            if (score > best) {
                second = best;
                best = score;
                want = v;
            } else if (score > second)
                second = score;
        }
        /* fp32 may see two scores or a threshold the other way round when they are this near. */
        if (n->is_on_edge || fabs(best - second) < 1e-4)
            n_edges++;
        else if (isfinite(best)) {
            assert_int_equal(token, want);
            n_checked++;
        }
        close_fixture(f);
    }
    assert_true(n_checked > 2500);
    free(n);
}

static void temperature_0_takes_the_largest_and_the_lower_id_of_equals(void **state)
{
    struct naive *n = malloc(sizeof(*n));

    (void)state;
    for (int round = 0; round < 500; round++) {
        struct fixture *f = open_fixture(round % 2 == 0 ? 61 : 4096);
        set_logits(f, 3, 0.5f);
        random_settings(f);
        f->settings.s.temperature = 0;
        f->settings.has_penalties = false; /* whose fp32 rounding breaks ties */
        uint32_t token = sample(f, 10);
        apply_naively(f, 10, n);
        assert_int_equal(token, n->order[0]);
        close_fixture(f);
    }
    free(n);
}

static void draws_follow_the_exact_probabilities_for_every_combination_of_filters(void **state)
{
    enum { DRAWS = 100000, V = 61 };
    struct naive *n = malloc(sizeof(*n));

    (void)state;
    for (uint32_t combination = 0; combination < 16; combination++) {
        struct fixture *f = open_fixture(V);
        uint32_t seen[V] = {0}, freedom;
        set_logits(f, 3, 0);
        f->settings.s.temperature = (combination & 8) != 0 ? 0.7f : 1.0f;
        f->settings.s.top_k = (combination & 1) != 0 ? 20 : 0;
        f->settings.s.top_p = (combination & 2) != 0 ? 0.8f : 1.0f;
        f->settings.s.min_p = (combination & 4) != 0 ? 0.02f : 0.0f;
        f->settings.seed = ll_splitmix64(&random_state);
        apply_naively(f, 0, n);
        for (uint32_t i = 0; i < DRAWS; i++) {
            if (i % 1000 == 0)
                f->settings.seed++; /* both ways to a new draw: position and seed */
            uint32_t token = sample(f, i % 1000);
            if (!n->is_kept[token] && !n->is_on_edge)
                fail_msg("combination %u drew %u, which a filter removes", combination, token);
            seen[token]++;
        }
        double statistic = chi_square(n->p, seen, V, DRAWS, &freedom);
        /* Mean f, deviation sqrt(2 f): six deviations and a bit are past 1e-7. */
        if (!(statistic < freedom + 6 * sqrt(2.0 * freedom) + 12))
            fail_msg("combination %u: chi-square %.1f with %u degrees of freedom", combination,
                     statistic, freedom);
        close_fixture(f);
    }
    free(n);
}

static void a_draw_depends_on_seed_choice_and_position(void **state)
{
    struct fixture *f = open_fixture(257);
    uint32_t n_other[3] = {0};

    (void)state;
    set_logits(f, 0.1f, 0);
    for (uint32_t i = 0; i < 200; i++) {
        f->settings.seed = i;
        f->settings.choice = 1;
        uint32_t token = sample(f, 50);
        assert_int_equal(sample(f, 50), token);
        n_other[0] += sample(f, 51) != token;
        f->settings.choice = 2;
        n_other[1] += sample(f, 50) != token;
        f->settings.choice = 1;
        f->settings.seed = i + 1000;
        n_other[2] += sample(f, 50) != token;
    }
    for (int i = 0; i < 3; i++)
        assert_true(n_other[i] > 180);
    close_fixture(f);
}

static void logprobs_and_the_top_list_are_of_the_raw_logits(void **state)
{
    (void)state;
    for (int round = 0; round < 100; round++) {
        struct fixture *f = open_fixture(round % 2 == 0 ? 23 : 4999);
        struct ll_ext top[LL_EXT_TOP_MAX + 1];
        double largest = -INFINITY, sum = 0;
        set_logits(f, 20, round % 3 == 0 ? 0.5f : 0);
        for (uint32_t v = 0; v < f->logits.n_vocab; v++)
            largest = fmax(largest, (double)f->x[v]);
        for (uint32_t v = 0; v < f->logits.n_vocab; v++)
            sum += exp((double)f->x[v] - largest);
        top[LL_EXT_TOP_MAX].id = 0xdead;
        ll_cpu_top(&f->logits, LL_EXT_TOP_MAX, top);
        assert_int_equal(top[LL_EXT_TOP_MAX].id, 0xdead);
        for (uint32_t i = 0; i < LL_EXT_TOP_MAX; i++) {
            double want = (double)f->x[top[i].id] - largest - log(sum);
            assert_within(fabs((double)top[i].logprob - want), 1e-5, "logprob");
            assert_true(top[i].logprob == ll_cpu_logprob(&f->logits, top[i].id));
            uint32_t n_before = 0; /* ids that must stand before it */
            for (uint32_t v = 0; v < f->logits.n_vocab; v++)
                n_before +=
                    f->x[v] > f->x[top[i].id] || (f->x[v] == f->x[top[i].id] && v < top[i].id);
            assert_int_equal(n_before, i);
        }
        close_fixture(f);
    }
}

static void a_nan_or_an_infinity_among_the_logits_is_seen(void **state)
{
    struct fixture *f = open_fixture(4999);

    (void)state;
    for (uint32_t v = 0; v < 4999; v += 17) {
        set_logits(f, 5, 0);
        f->x[v] = v % 2 == 0 ? NAN : INFINITY;
        assert_false(ll_cpu_logits_measure(inner, &f->logits));
    }
    set_logits(f, 5, 0);
    f->x[3] = -INFINITY; /* a model may rule an id out */
    assert_true(ll_cpu_logits_measure(inner, &f->logits));
    close_fixture(f);
}

static void a_row_with_every_id_barred_still_gives_an_id(void **state)
{
    struct fixture *f = open_fixture(2);

    (void)state;
    set_logits(f, 1, 0);
    f->settings.s.n_end = 2;
    f->settings.s.end[1] = 1;
    f->settings.s.min_tokens = 1;
    for (int t = 0; t < 2; t++) {
        f->settings.s.temperature = (float)t;
        assert_true(sample(f, 0) < 2);
    }
    close_fixture(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_token_is_the_naive_sampler_s),
        cmocka_unit_test(temperature_0_takes_the_largest_and_the_lower_id_of_equals),
        cmocka_unit_test(draws_follow_the_exact_probabilities_for_every_combination_of_filters),
        cmocka_unit_test(a_draw_depends_on_seed_choice_and_position),
        cmocka_unit_test(logprobs_and_the_top_list_are_of_the_raw_logits),
        cmocka_unit_test(a_nan_or_an_infinity_among_the_logits_is_seen),
        cmocka_unit_test(a_row_with_every_id_barred_still_gives_an_id),
    };

    random_state = ll_test_seed();
    inner = ll_cpu_inner_find(NULL);
    return cmocka_run_group_tests_name("kernels/cpu sampler", tests, NULL, NULL);
}
