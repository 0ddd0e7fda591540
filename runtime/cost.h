/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/cost.h - how long a step takes, learnt from the steps there were.
 *
 *   time = w0 + w1 prefill tokens + w2 decode rows + w3 context tokens read + w4 prefill pairs
 *
 * Weights are read once a step (w0), prefill computes (w1, and w4 for attention, whose pairs of
 * tokens grow with the square), decode samples (w2) and reads its context (w3). Each step measured
 * corrects the w's by a Kalman filter on relative errors: they drift with what the device really
 * does, an outlier moves them little, and nothing has to be known at start. All w's are >= 0, so
 * more work never seems to take less time.
 *
 * No clock: a step's length is an input, a prediction is an input of the plan. */
#ifndef RUNTIME_COST_H
#define RUNTIME_COST_H

#include <stdbool.h>
#include <stdint.h>

#define LL_COST_TERMS 5u

struct ll_work {
    uint32_t n_prefill; /* tokens of rows with more than one */
    uint32_t n_decode;  /* rows of one token */
    uint64_t n_context; /* tokens whose KV the rows read: the sum of their positions */
    uint64_t n_pairs;   /* of prefill rows: tokens times the tokens each attends to */
};

struct ll_cost {
    double w[LL_COST_TERMS]; /* ns a unit of a term: what is used */
    double v[LL_COST_TERMS]; /* the filter's; w without what is negative */
    double p[LL_COST_TERMS][LL_COST_TERMS];
    double lead; /* steps take at least this share of what is predicted: down at once, up slowly */
    uint64_t n_learnt;
    double copy_ns; /* a page between device and host */
};

void ll_cost_init(struct ll_cost *cost);

/* A row of n_tokens from position pos on joins a step. */
static inline void ll_work_add(struct ll_work *work, uint32_t pos, uint32_t n_tokens)
{
    work->n_context += pos;
    if (n_tokens == 1) {
        work->n_decode++;
        return;
    }
    work->n_prefill += n_tokens;
    work->n_pairs += (uint64_t)n_tokens * pos + (uint64_t)n_tokens * n_tokens / 2;
}

/* 0 before anything was learnt. */
uint64_t ll_cost_predict(const struct ll_cost *cost, const struct ll_work *work);
/* When to be ready for the end of such a step: not later than it, most likely. */
uint64_t ll_cost_soonest(const struct ll_cost *cost, const struct ll_work *work);
/* Most tokens that a row from position pos on may add to a step so that it takes at most
 * budget_ns, from 0 to n_max. */
uint32_t ll_cost_fit(const struct ll_cost *cost, const struct ll_work *work, uint32_t pos,
                     uint32_t n_max, uint64_t budget_ns);

/* What it takes to compute the first n_tokens of a sequence beside other work. */
uint64_t ll_cost_prefill(const struct ll_cost *cost, uint32_t n_tokens);
/* What it takes to copy pages. */
uint64_t ll_cost_copy(const struct ll_cost *cost, uint32_t n_pages);
void ll_cost_learn_copy(struct ll_cost *cost, uint32_t n_pages, uint64_t took_ns);

void ll_cost_learn(struct ll_cost *cost, const struct ll_work *work, uint64_t step_ns);

#endif
