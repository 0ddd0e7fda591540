/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/test_cpu_sample.c - the sampler against backend.h's ten steps written out naively
 * in double (sort, add up, draw), and its draws against the exact probabilities (chi-square). */
#include "kernels/cpu/sample.h"
#include "base/bits.h"
#include "tests/kernels/random.h"

enum { V_MAX = 5000, N16_MAX = 5008 };

struct fixture {
    struct ll_cpu_logits logits;
    struct ll_cpu_settings settings;
    struct ll_cpu_scratch scratch;
    struct ll_bias bias[LL_CPU_BIAS_MAX];
    uint32_t count[V_MAX];
    float x[N16_MAX];
};

static const struct ll_cpu_inner *inner;

static struct fixture *open_fixture(uint32_t n_vocab)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->logits.x = f->x;
    f->logits.n_vocab = n_vocab;
    f->logits.n16 = (uint32_t)ll_align_up(n_vocab, 16);
    f->settings = (struct ll_cpu_settings){
        .s = {.temperature = 1, .top_p = 1, .repetition = 1}, .bias = f->bias, .count = f->count};
    f->scratch = (struct ll_cpu_scratch){
        .x = poisoned(N16_MAX), .e = poisoned(N16_MAX), .key = malloc(V_MAX * sizeof(uint64_t))};
    return f;
}

static void close_fixture(struct fixture *f)
{
    check_guard(f->scratch.x, N16_MAX);
    check_guard(f->scratch.e, N16_MAX);
    free(f->scratch.x);
    free(f->scratch.e);
    free(f->scratch.key);
    free(f);
}

/* step > 0: logits are multiples of it, so that many are equal. */
static void set_logits(struct fixture *f, float width, float step)
{
    for (uint32_t v = 0; v < f->logits.n16; v++) {
        float x = width * random_unit();
        f->x[v] = v >= f->logits.n_vocab ? -INFINITY : step > 0 ? step * rintf(x / step) : x;
    }
    assert_true(ll_cpu_logits_measure(inner, &f->logits));
}

static uint32_t sample(struct fixture *f, uint32_t position)
{
    return ll_cpu_sample(inner, &f->logits, &f->settings, position, &f->scratch);
}

/* ---- the ten steps, naively
 * ---------------------------------------------------------------------- */
struct naive {
    double y[V_MAX]; /* adjusted and divided by the temperature, the largest at 0 */
    double p[V_MAX]; /* renormalised over those kept; 0 for the others */
    bool is_kept[V_MAX];
    uint32_t order[V_MAX];
    bool is_on_edge; /* a threshold so near that fp32 may fall on the other side */
};

static const struct naive *sorting;

static int by_falling_y(const void *a, const void *b)
{
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;

    if (sorting->y[i] != sorting->y[j])
        return sorting->y[i] > sorting->y[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

static bool is_near(double a, double b)
{
    return fabs(a - b) < 1e-5 * fabs(b);
}

static void apply_naively(const struct fixture *f, uint32_t position, struct naive *n)
{
    const struct ll_cpu_settings *c = &f->settings;
    const struct ll_sampling *s = &c->s;
    const uint32_t n_vocab = f->logits.n_vocab;
    double top = -INFINITY, sum = 0;

    n->is_on_edge = false;
    for (uint32_t v = 0; v < n_vocab; v++)
        n->y[v] = (double)f->x[v];
    for (uint32_t i = 0; i < s->n_end && position - c->n_prompt < s->min_tokens; i++)
        n->y[s->end[i]] = -INFINITY;
    for (uint32_t i = 0; i < c->n_bias; i++)
        n->y[c->bias[i].id] += (double)c->bias[i].bias;
    for (uint32_t v = 0; v < n_vocab; v++) {
        double times = c->has_penalties ? c->count[v] & ~LL_CPU_IN_PROMPT : 0;
        if (c->has_penalties && c->count[v] != 0)
            n->y[v] =
                n->y[v] > 0 ? n->y[v] / (double)s->repetition : n->y[v] * (double)s->repetition;
        n->y[v] -= (double)s->frequency * times + (double)s->presence * (times > 0);
        top = n->y[v] > top ? n->y[v] : top;
        n->order[v] = v;
    }
    for (uint32_t v = 0; v < n_vocab; v++) {
        n->y[v] = (n->y[v] - top) / (s->temperature > 0 ? (double)s->temperature : 1);
        sum += exp(n->y[v]);
    }
    sorting = n;
    qsort(n->order, n_vocab, sizeof(n->order[0]), by_falling_y);

    uint32_t n_left = 0;
    double left = 0, seen = 0;
    for (uint32_t i = 0; i < n_vocab; i++) { /* min_p keeps a prefix of the order, so does top_k */
        double p = exp(n->y[n->order[i]]);
        n->is_on_edge |= s->min_p > 0 && is_near(p, (double)s->min_p);
        if (p < (double)s->min_p || (s->top_k > 0 && n_left == s->top_k))
            break;
        n_left++;
        left += p;
    }
    for (uint32_t v = 0; v < n_vocab; v++) {
        n->is_kept[v] = false;
        n->p[v] = 0;
    }
    for (uint32_t i = 0; i < n_left; i++) {
        uint32_t v = n->order[i];
        if (s->top_p < 1 && seen >= (double)s->top_p * left && i > 0)
            break;
        n->is_kept[v] = true;
        n->p[v] = exp(n->y[v]);
        seen += n->p[v];
        n->is_on_edge |= s->top_p < 1 && is_near(seen, (double)s->top_p * left);
    }
    for (uint32_t v = 0; v < n_vocab; v++)
        n->p[v] /= seen;
}

static double noise(const struct fixture *f, uint32_t v, uint32_t position)
{
    const uint32_t counter[4] = {v / 4, position, f->settings.choice, 0};
    uint32_t bits[4];

    ll_philox4x32(f->settings.seed, counter, bits);
    return -log(-log((double)ll_unit_f32(bits[v % 4])));
}

/* ---- tests
 * ---------------------------------------------------------------------------------------- */
static void random_settings(struct fixture *f)
{
    struct ll_sampling *s = &f->settings.s;
    const uint64_t r = ll_splitmix64(&random_state);
    const uint32_t n_vocab = f->logits.n_vocab;

    *s = (struct ll_sampling){
        .temperature = 0.3f + (float)(r & 7) * 0.3f, .top_p = 1, .repetition = 1};
    s->top_k = (r >> 3 & 1) != 0 ? 1 + (uint32_t)(r >> 8) % 60 : 0;
    s->top_p = (r >> 4 & 1) != 0 ? 0.05f + 0.94f * fabsf(random_unit()) : 1;
    s->min_p = (r >> 5 & 1) != 0 ? 0.3f * fabsf(random_unit()) : 0;
    s->n_end = (uint32_t)(r >> 16) % 4;
    s->min_tokens = (uint32_t)(r >> 20) % 3;
    for (uint32_t i = 0; i < s->n_end; i++)
        s->end[i] = (uint32_t)ll_splitmix64(&random_state) % n_vocab;
    f->settings.n_bias = (r >> 6 & 1) != 0 ? 5 : 0;
    for (uint32_t i = 0; i < f->settings.n_bias; i++)
        f->bias[i] =
            (struct ll_bias){(uint32_t)ll_splitmix64(&random_state) % n_vocab, 4 * random_unit()};
    f->settings.has_penalties = (r >> 7 & 1) != 0;
    if (f->settings.has_penalties) {
        s->repetition = 1 + 0.5f * fabsf(random_unit());
        s->frequency = 0.3f * random_unit();
        s->presence = 0.3f * random_unit();
    }
    for (uint32_t v = 0; v < n_vocab; v++) {
        uint64_t b = ll_splitmix64(&random_state);
        f->count[v] = (b & 7) == 0 ? LL_CPU_IN_PROMPT : 0;
        f->count[v] |= (b >> 3 & 7) == 0 ? (uint32_t)(b >> 8) % 4 : 0;
    }
    f->settings.seed = ll_splitmix64(&random_state);
    f->settings.choice = (uint32_t)(r >> 24) % 3;
    f->settings.n_prompt = 10;
}

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

static double chi_square(const double *p, const uint32_t *seen, uint32_t n, double n_draws,
                         uint32_t *freedom)
{
    double sum = 0, rare_p = 0, rare_seen = 0;

    *freedom = 0;
    for (uint32_t v = 0; v < n; v++) {
        if (p[v] * n_draws < 8) { /* too rare for the statistic: together */
            rare_p += p[v];
            rare_seen += seen[v];
            continue;
        }
        sum += (seen[v] - p[v] * n_draws) * (seen[v] - p[v] * n_draws) / (p[v] * n_draws);
        ++*freedom;
    }
    if (rare_p * n_draws >= 8) {
        sum += (rare_seen - rare_p * n_draws) * (rare_seen - rare_p * n_draws) / (rare_p * n_draws);
        ++*freedom;
    }
    *freedom -= *freedom > 0;
    return sum;
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
