/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cpu/sample.h - from a row of logits to a token: the sampler of backend.h, step by step.
 *
 *   S1  a draw depends on the logits, the slot's settings and counts, and the position of the new
 *       token; not on the row's place, the batch or the thread
 *   S2  probability mass is counted in integers (2^-40 of the largest), so sums have no order
 *   S3  nothing is sorted: filters select (expected O(V)), Gumbel noise is drawn only for ids that
 *       could still win */
#ifndef KERNELS_CPU_SAMPLE_H
#define KERNELS_CPU_SAMPLE_H

#include "kernels/backend.h"
#include "kernels/cpu/inner.h"

#define LL_CPU_BIAS_MAX 1024u

struct ll_cpu_logits { /* raw, of one position */
    const float *x;    /* [n16], pads -inf */
    uint32_t n_vocab, n16;
    float top;
    double log_sum; /* log of the sum of e^x */
};

struct ll_cpu_settings { /* of a slot, from its init */
    struct ll_sampling s;
    uint64_t seed;
    uint32_t choice, n_prompt, n_bias;
    bool has_penalties;
    struct ll_bias *bias; /* [LL_CPU_BIAS_MAX] */
    uint32_t *count;      /* [V] with penalties: LL_CPU_IN_PROMPT | times sampled */
};

#define LL_CPU_IN_PROMPT (1u << 31)

struct ll_cpu_scratch { /* of one worker */
    float *x, *e;       /* [n16] */
    uint64_t *key;      /* [V] */
};

/* Finds top and log_sum; false where the row holds a NaN (or an infinity, which makes one). */
bool ll_cpu_logits_measure(const struct ll_cpu_inner *inner, struct ll_cpu_logits *logits);

static inline float ll_cpu_logprob(const struct ll_cpu_logits *logits, uint32_t id)
{
    return (float)((double)logits->x[id] - logits->log_sum);
}

/* The n most likely ids, best first, ties to the lower id; n <= LL_EXT_TOP_MAX and <= V. */
void ll_cpu_top(const struct ll_cpu_logits *logits, uint32_t n, struct ll_ext *out);

/* Token for `position`, by steps 2 to 10 of backend.h. */
uint32_t ll_cpu_sample(const struct ll_cpu_inner *inner, const struct ll_cpu_logits *logits,
                       const struct ll_cpu_settings *settings, uint32_t position,
                       const struct ll_cpu_scratch *scratch);

#endif
