/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cpu/sample.h"
#include "base/rng.h"
#include "base/numbers.h"

#include <math.h>
#include <string.h>

bool ll_cpu_logits_measure(const struct ll_cpu_inner *inner, struct ll_cpu_logits *logits)
{
    logits->top = inner->max(logits->x, logits->n16);
    double sum = inner->exp_sum(NULL, logits->x, logits->top, 1.0f, logits->n16);
    logits->log_sum = (double)logits->top + log(sum);
    return sum >= 1.0 && isfinite(logits->log_sum); /* the largest adds 1; a NaN fails both */
}

void ll_cpu_top(const struct ll_cpu_logits *logits, uint32_t n, struct ll_ext *out)
{
    uint32_t n_held = 0;

    for (uint32_t v = 0; v < logits->n_vocab && n > 0; v++) {
        const float x = logits->x[v];
        /* Ids rise, so an equal one that came first stays ahead. */
        if (n_held == n && !(x > logits->x[out[n - 1].id]))
            continue;
        uint32_t at = n_held < n ? n_held++ : n - 1;
        for (; at > 0 && x > logits->x[out[at - 1].id]; at--)
            out[at] = out[at - 1];
        out[at].id = v;
    }
    for (uint32_t i = 0; i < n_held; i++)
        out[i].logprob = ll_cpu_logprob(logits, out[i].id);
}

/* Steps 2 to 5: gives the row to sample from, the raw one where nothing changes it. */
static const float *adjusted(const struct ll_cpu_logits *logits, const struct ll_cpu_settings *c,
                             uint32_t position, float *x)
{
    const struct ll_sampling *s = &c->s;
    const bool bars_end = s->n_end > 0 && position - c->n_prompt < s->min_tokens;

    if (!bars_end && c->n_bias == 0 && !c->has_penalties)
        return logits->x;
    memcpy(x, logits->x, logits->n16 * sizeof(*x));
    for (uint32_t i = 0; bars_end && i < s->n_end; i++)
        x[s->end[i]] = -INFINITY;
    for (uint32_t i = 0; i < c->n_bias; i++)
        x[c->bias[i].id] += c->bias[i].bias;
    for (uint32_t v = 0; c->has_penalties && v < logits->n_vocab; v++) {
        if (c->count[v] == 0)
            continue;
        float n = (float)(c->count[v] & ~LL_CPU_IN_PROMPT);
        x[v] = x[v] > 0 ? x[v] / s->repetition : x[v] * s->repetition;
        x[v] -= s->frequency * n + s->presence * (n > 0 ? 1.0f : 0.0f);
    }
    return x;
}

/* ---- the order of ids: falling x, rising id, as one rising integer ------------------------------
 */
static uint64_t key_of(float x, uint32_t id)
{
    uint32_t bits = ll_f32_bits(x + 0.0f); /* -0 and 0 are equal */
    uint32_t rising = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;

    return (uint64_t)~rising << 32 | id;
}

static uint32_t id_of(uint64_t key)
{
    return (uint32_t)key;
}

/* Puts a key taken at random in its place among key[lo, hi): smaller ones before, larger after.
 * Gives the place. Randomness keeps every input at O(n) expected and changes no result. */
static uint32_t partition(uint64_t *key, uint32_t lo, uint32_t hi, uint64_t *random)
{
    uint32_t pick = lo + (uint32_t)(ll_splitmix64(random) % (hi - lo)), place = lo;
    uint64_t pivot = key[pick];

    key[pick] = key[hi - 1];
    for (uint32_t i = lo; i < hi - 1; i++) {
        uint64_t k = key[i];
        key[i] = key[place];
        key[place] = k;
        place += k < pivot;
    }
    key[hi - 1] = key[place];
    key[place] = pivot;
    return place;
}

/* Moves the k smallest of n keys to the front. */
static void select_count(uint64_t *key, uint32_t n, uint32_t k)
{
    uint64_t random = n;
    uint32_t lo = 0, hi = n;

    while (hi - lo > 1) {
        uint32_t place = partition(key, lo, hi, &random);
        if (place == k || place + 1 == k)
            return;
        if (place < k)
            lo = place + 1;
        else
            hi = place;
    }
}

/* S2: 2^-40 steps of the largest weight; 2^17 ids of at most 2^40 stay far below 2^64. */
static uint64_t mass_of(float e)
{
    return (uint64_t)((double)e * 0x1p40);
}

/* Moves the shortest prefix (by key) with a mass >= need to the front and gives its length. */
static uint32_t select_mass(uint64_t *key, uint32_t n, const float *e, uint64_t need)
{
    uint64_t random = n;
    uint32_t lo = 0, hi = n;

    while (hi - lo > 1) {
        uint32_t place = partition(key, lo, hi, &random);
        uint64_t before = 0;
        for (uint32_t i = lo; i < place; i++)
            before += mass_of(e[id_of(key[i])]);
        uint64_t with = before + mass_of(e[id_of(key[place])]);
        if (before >= need) {
            hi = place;
        } else if (with >= need) {
            return place + 1;
        } else {
            need -= with;
            lo = place + 1;
        }
    }
    return lo < n ? lo + 1 : n;
}

/* ---- step 10 ----------------------------------------------------------------------------------
 */
static float gumbel(uint32_t bits)
{
    return (float)-log(-log((double)ll_unit_f32(bits)));
}

struct draw {
    const float *x;
    float top, temperature;
    uint64_t seed;
    uint32_t position, choice;
    float gumbel_max; /* no noise is larger */
    uint32_t block;   /* of four ids whose noise lies in bits */
    uint32_t bits[4];
    uint32_t best_id;
    float best;
};

static void consider(struct draw *d, uint32_t id)
{
    float y = (d->x[id] - d->top) / d->temperature;

    if (y + d->gumbel_max < d->best) /* S3 */
        return;
    if (id / 4 != d->block) {
        const uint32_t counter[4] = {id / 4, d->position, d->choice, 0};
        ll_philox4x32(d->seed, counter, d->bits);
        d->block = id / 4;
    }
    float score = y + gumbel(d->bits[id % 4]);
    if (score > d->best || (score == d->best && id < d->best_id)) {
        d->best = score;
        d->best_id = id;
    }
}

static uint32_t first_equal(const float *x, uint32_t n, float value)
{
    for (uint32_t v = 0; v < n; v++)
        if (x[v] == value)
            return v;
    return 0; /* only where all are barred */
}

uint32_t ll_cpu_sample(const struct ll_cpu_inner *inner, const struct ll_cpu_logits *logits,
                       const struct ll_cpu_settings *settings, uint32_t position,
                       const struct ll_cpu_scratch *scratch)
{
    const struct ll_sampling *s = &settings->s;
    const uint32_t n_vocab = logits->n_vocab;
    const float *x = adjusted(logits, settings, position, scratch->x);
    const float top = x == logits->x ? logits->top : inner->max(x, logits->n16);
    const uint32_t top_id = first_equal(x, n_vocab, top);
    float *e = scratch->e;

    if (!(s->temperature > 0) || top == -INFINITY)
        return top_id;

    struct draw d = {
        .x = x,
        .top = top,
        .temperature = s->temperature,
        .seed = settings->seed,
        .position = position,
        .choice = settings->choice,
        .gumbel_max = gumbel(UINT32_MAX),
        .block = UINT32_MAX,
        .best = -INFINITY,
    };
    const bool has_top_k = s->top_k > 0 && s->top_k < n_vocab, has_top_p = s->top_p < 1.0f;

    inner->exp_sum(e, x, top, s->temperature, logits->n16);
    consider(&d, top_id); /* every filter keeps it, and its score rules most others out */
    if (!has_top_k && !has_top_p) {
        for (uint32_t v = 0; v < n_vocab; v++)
            if (e[v] >= s->min_p && e[v] > 0)
                consider(&d, v);
        return d.best_id;
    }

    /* Ids of weight 0 (e^-87 of the best) could never be drawn; they are out from the start. */
    uint64_t *key = scratch->key;
    uint32_t n = 0;
    for (uint32_t v = 0; v < n_vocab; v++)
        if (e[v] >= s->min_p && e[v] > 0)
            key[n++] = key_of(x[v], v);
    if (has_top_k && s->top_k < n) {
        select_count(key, n, s->top_k);
        n = s->top_k;
    }
    if (has_top_p) {
        uint64_t total = 0;
        for (uint32_t i = 0; i < n; i++)
            total += mass_of(e[id_of(key[i])]);
        double need = ceil((double)s->top_p * (double)total);
        n = select_mass(key, n, e, need > 1 ? (uint64_t)need : 1);
    }
    for (uint32_t i = 0; i < n; i++)
        consider(&d, id_of(key[i]));
    return d.best_id;
}
