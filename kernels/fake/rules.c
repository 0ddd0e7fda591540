/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/fake/fake.h"

/* The finaliser of splitmix64: every bit of x reaches every bit of the result. */
static uint64_t scramble(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

uint64_t ll_fake_mix(uint32_t id, uint32_t position)
{
    return scramble(((uint64_t)position << 32 | id) + 0x9e3779b97f4a7c15ull);
}

static bool is_end(const struct ll_sampling *sampling, uint32_t id)
{
    for (uint32_t i = 0; i < sampling->n_end; i++)
        if (sampling->end[i] == id)
            return true;
    return false;
}

uint32_t ll_fake_sample(const struct ll_fake_rules *rules, uint64_t context, uint64_t seed,
                        uint32_t choice, uint32_t position, const struct ll_sampling *sampling,
                        uint32_t n_sampled)
{
    uint64_t key = scramble(seed + 0x632be59bd9b4e019ull * (choice + 1ull)) ^
                   0xc2b2ae3d27d4eb4full * rules->weights;
    uint64_t draw = scramble((context ^ key) + 0x9e3779b97f4a7c15ull * position);
    bool may_end = n_sampled >= sampling->min_tokens;
    uint32_t id = (uint32_t)(draw % rules->n_vocab);

    /* Another slice of the draw, so that ending and the id are independent. */
    if (may_end && sampling->n_end > 0 && (draw >> 40) % 1000 < rules->eos_permille)
        return sampling->end[(draw >> 20) % sampling->n_end];
    /* At most n_end steps, then one is found, unless every id ends: then an end id it is. */
    for (uint32_t i = 0; i < sampling->n_end && !may_end && is_end(sampling, id); i++)
        id = (id + 1) % rules->n_vocab;
    return id;
}

float ll_fake_logprob(uint64_t context, uint32_t id)
{
    /* 20 bits, so that the value is exact in a float. */
    uint32_t bits = (uint32_t)(scramble(context + id) >> 44);

    return -((float)bits + 1.0f) * 0x1p-16f;
}

struct ll_ext ll_fake_top(const struct ll_fake_rules *rules, uint64_t context, uint32_t k)
{
    struct ll_ext pair = {
        .id = (uint32_t)((scramble(context ^ 0xd1b54a32d192ed03ull) + k) % rules->n_vocab),
        .logprob = -0.25f * (float)(k + 1),
    };

    return pair;
}

uint64_t ll_fake_context(const uint32_t *ids, uint32_t n_ids)
{
    uint64_t context = 0;

    for (uint32_t i = 0; i < n_ids; i++)
        context += ll_fake_mix(ids[i], i);
    return context;
}

uint32_t ll_fake_continue(const struct ll_fake_rules *rules, const uint32_t *prompt,
                          uint32_t n_prompt, uint64_t seed, uint32_t choice,
                          const struct ll_sampling *sampling, uint32_t n_max, uint32_t *out)
{
    uint64_t context = ll_fake_context(prompt, n_prompt);

    for (uint32_t n = 0; n < n_max; n++) {
        uint32_t position = n_prompt + n;
        out[n] = ll_fake_sample(rules, context, seed, choice, position, sampling, n);
        context += ll_fake_mix(out[n], position);
        if (is_end(sampling, out[n]))
            return n + 1;
    }
    return n_max;
}
