/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/fake/fake.h - the right answers of the fake backend, for tests.
 *
 * The fake model: with ids t[0 .. p] in the cache, the id that takes position p + 1 is a keyed hash
 * of all of them, the seed, the choice and p + 1. So any lost, doubled, foreign or stale token in a
 * KV page changes every later id, and a test can know the right ones without running anything.
 *
 *   context(p) = sum over i <= p of mix(t[i], i)                    (what the pages are read for)
 *   draw       = mix(context(p) ^ key(seed, choice, weights), p + 1)
 *   id         = draw mod V; with eos_permille = e, an end id in e of 1000 draws;
 *                an end id before min_tokens becomes the next higher id that is none,
 *                if there is one
 * Temperature, top-k, top-p, min-p, penalties, bias and adapters are ignored. */
#ifndef KERNELS_FAKE_FAKE_H
#define KERNELS_FAKE_FAKE_H

#include "kernels/backend.h"

struct ll_fake_rules {
    uint32_t n_vocab;
    uint32_t eos_permille;
    uint32_t weights; /* 0: those of the start; 1, 2 ...: of the first, second seal after it */
};

/* One token's share of a context. */
uint64_t ll_fake_mix(uint32_t id, uint32_t position);

/* The id for `position` after a context; n_sampled: output ids before it. */
uint32_t ll_fake_sample(const struct ll_fake_rules *rules, uint64_t context, uint64_t seed,
                        uint32_t choice, uint32_t position, const struct ll_sampling *sampling,
                        uint32_t n_sampled);

/* Pseudo logprob of an id after a context, in (-16, 0). */
float ll_fake_logprob(uint64_t context, uint32_t id);

/* The k-th best pair (k from 0) after a context; logprobs fall with k. */
struct ll_ext ll_fake_top(const struct ll_fake_rules *rules, uint64_t context, uint32_t k);

/* What a request yields: writes at most n_max ids, ends after an end id, returns how many. */
uint32_t ll_fake_continue(const struct ll_fake_rules *rules, const uint32_t *prompt,
                          uint32_t n_prompt, uint64_t seed, uint32_t choice,
                          const struct ll_sampling *sampling, uint32_t n_max, uint32_t *out);

/* context(p) of a list of ids, p = n_ids - 1. */
uint64_t ll_fake_context(const uint32_t *ids, uint32_t n_ids);

#endif
