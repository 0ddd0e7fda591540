/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/cost.h"

#include "base/bits.h"

#include <math.h>
#include <string.h>

/* Of a step's length: what noise to expect, and how much of a w may drift from step to step. */
#define NOISE 0.05
#define DRIFT 0.002
/* Before the first step nothing is known of the w's; the units below are such that none of them is
 * much more than a step takes. */
#define START 4.0
/* An error beyond so many deviations counts as so many: a hiccup is not a slower device. */
#define OUTLIER 3.0
#define TRUSTED 32u /* steps until predictions say what an outlier is */

static const double unit[LL_COST_TERMS] = {1, 1.0 / 1024, 1.0 / 64, 1.0 / 65536, 1.0 / (1 << 20)};

void ll_cost_init(struct ll_cost *cost)
{
    *cost = (struct ll_cost){.lead = 1};
}

static void terms_of(const struct ll_work *work, double x[LL_COST_TERMS])
{
    x[0] = unit[0];
    x[1] = work->n_prefill * unit[1];
    x[2] = work->n_decode * unit[2];
    x[3] = (double)work->n_context * unit[3];
    x[4] = (double)work->n_pairs * unit[4];
}

static double predict(const struct ll_cost *cost, const struct ll_work *work)
{
    double x[LL_COST_TERMS], sum = 0;

    terms_of(work, x);
    for (uint32_t i = 0; i < LL_COST_TERMS; i++)
        sum += cost->w[i] * x[i];
    return sum;
}

uint64_t ll_cost_predict(const struct ll_cost *cost, const struct ll_work *work)
{
    return (uint64_t)predict(cost, work);
}

uint64_t ll_cost_soonest(const struct ll_cost *cost, const struct ll_work *work)
{
    return (uint64_t)(cost->lead * predict(cost, work));
}

uint32_t ll_cost_fit(const struct ll_cost *cost, const struct ll_work *work, uint32_t pos,
                     uint32_t n_max, uint64_t budget_ns)
{
    uint32_t low = 0, high = n_max;

    while (low < high) { /* the time grows with n: halve */
        uint32_t n = low + (high - low + 1) / 2;
        struct ll_work with = *work;
        ll_work_add(&with, pos, n);
        if (predict(cost, &with) <= (double)budget_ns)
            low = n;
        else
            high = n - 1;
    }
    return low;
}

uint64_t ll_cost_prefill(const struct ll_cost *cost, uint32_t n_tokens)
{
    struct ll_work work = {0};

    if (n_tokens > 1)
        ll_work_add(&work, 0, n_tokens);
    return (uint64_t)(predict(cost, &work) - cost->w[0] * unit[0]); /* the step comes anyway */
}

uint64_t ll_cost_copy(const struct ll_cost *cost, uint32_t n_pages)
{
    return (uint64_t)(cost->copy_ns * n_pages);
}

void ll_cost_learn_copy(struct ll_cost *cost, uint32_t n_pages, uint64_t took_ns)
{
    if (n_pages > 0)
        cost->copy_ns += ((double)took_ns / n_pages - cost->copy_ns) / 4;
}

static void learn_lead(struct ll_cost *cost, double share)
{
    share = fmin(share, 1);
    if (cost->n_learnt < TRUSTED) /* it was the prediction */
        return;
    if (share < cost->lead)
        cost->lead = share;
    else
        cost->lead += (share - cost->lead) / 64;
}

void ll_cost_learn(struct ll_cost *cost, const struct ll_work *work, uint64_t step_ns)
{
    double x[LL_COST_TERMS], px[LL_COST_TERMS], expected = 0;
    double step = (double)ll_max_u64(step_ns, 1), predicted = predict(cost, work);

    if (cost->n_learnt == 0)
        for (uint32_t i = 0; i < LL_COST_TERMS; i++)
            cost->p[i][i] = START * step * START * step;
    else if (predicted > 0)
        learn_lead(cost, step / predicted);
    terms_of(work, x);
    for (uint32_t i = 0; i < LL_COST_TERMS; i++) {
        /* What a step is made of may have drifted; the rest stays as well known as it was. */
        double drift = x[i] > 0 ? DRIFT * cost->w[i] : 0;
        cost->p[i][i] += drift * drift;
        expected += cost->v[i] * x[i];
    }
    double noise = NOISE * (cost->n_learnt++ < TRUSTED ? step : fmax(predicted, 1));
    double s = noise * noise;
    for (uint32_t i = 0; i < LL_COST_TERMS; i++) {
        px[i] = 0;
        for (uint32_t k = 0; k < LL_COST_TERMS; k++)
            px[i] += cost->p[i][k] * x[k];
        s += x[i] * px[i];
    }
    double most = OUTLIER * sqrt(s), error = fmax(fmin(step - expected, most), -most);
    for (uint32_t i = 0; i < LL_COST_TERMS; i++) {
        cost->v[i] += px[i] / s * error;
        cost->w[i] = fmax(cost->v[i], 0);
        for (uint32_t k = 0; k < LL_COST_TERMS; k++)
            cost->p[i][k] -= px[i] * px[k] / s;
    }
    for (uint32_t i = 0; i < LL_COST_TERMS; i++) /* rounding must not make it negative */
        cost->p[i][i] = fmax(cost->p[i][i], 1);
}
