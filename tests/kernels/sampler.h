/* SPDX-License-Identifier: Apache-2.0 */
/* tests/kernels/sampler.h - backend.h's ten steps written out naively in double (sort, add up,
 * draw), with random settings and a chi-square: what the samplers of all backends are held to.
 *
 * A fixture carries logits and settings in the CPU backend's form. */
#ifndef TESTS_KERNELS_SAMPLER_H
#define TESTS_KERNELS_SAMPLER_H

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

static inline struct fixture *open_fixture(uint32_t n_vocab)
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

static inline void close_fixture(struct fixture *f)
{
    check_guard(f->scratch.x, N16_MAX);
    check_guard(f->scratch.e, N16_MAX);
    free(f->scratch.x);
    free(f->scratch.e);
    free(f->scratch.key);
    free(f);
}

/* step > 0: logits are multiples of it, so that many are equal. */
static inline void set_logits(struct fixture *f, float width, float step)
{
    for (uint32_t v = 0; v < f->logits.n16; v++) {
        float x = width * random_unit();
        f->x[v] = v >= f->logits.n_vocab ? -INFINITY : step > 0 ? step * rintf(x / step) : x;
    }
    assert_true(ll_cpu_logits_measure(inner, &f->logits));
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

static inline int by_falling_y(const void *a, const void *b)
{
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;

    if (sorting->y[i] != sorting->y[j])
        return sorting->y[i] > sorting->y[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

static inline bool is_near(double a, double b)
{
    return fabs(a - b) < 1e-5 * fabs(b);
}

static inline void apply_naively(const struct fixture *f, uint32_t position, struct naive *n)
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

static inline double noise(const struct fixture *f, uint32_t v, uint32_t position)
{
    const uint32_t counter[4] = {v / 4, position, f->settings.choice, 0};
    uint32_t bits[4];

    ll_philox4x32(f->settings.seed, counter, bits);
    return -log(-log((double)ll_unit_f32(bits[v % 4])));
}

static inline void random_settings(struct fixture *f)
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

static inline double chi_square(const double *p, const uint32_t *seen, uint32_t n, double n_draws,
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

#endif
