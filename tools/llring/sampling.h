/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/sampling.h - how tokens are picked: one struct for the command line and for JSON.
 *
 * What is not given comes from the model (what the runtime publishes), so that `llring chat` on a
 * fresh model samples as its makers meant. */
#ifndef TOOLS_LLRING_SAMPLING_H
#define TOOLS_LLRING_SAMPLING_H

#include "tools/llring/connection.h"

#include <jansson.h>

struct sampling {
    uint32_t max_tokens; /* 0: as many as fit */
    uint32_t min_tokens;
    uint32_t n;
    float temperature, top_p, min_p;
    uint32_t top_k;
    float repetition_penalty, frequency_penalty, presence_penalty;
    uint64_t seed;
    bool has_max_tokens, has_temperature, has_top_p, has_min_p, has_top_k, has_repetition, has_seed;
    bool greedy, ignore_eos;
    struct option_texts stop;   /* strings */
    struct ll_logit_bias *bias; /* [n_bias], from JSON only; sampling_free() */
    uint32_t n_bias;
    uint32_t stop_ids[8], n_stop_ids; /* from JSON only */
};
#define SAMPLING_INIT                                                                              \
    {                                                                                              \
        .n = 1                                                                                     \
    }

extern const struct option sampling_options[];
#define SAMPLING_GROUP(type, member)                                                               \
    {                                                                                              \
        "Sampling", sampling_options, offsetof(type, member)                                       \
    }

/* Fills the sampling fields of request; what was not given comes from info, the output's length
 * from max_tokens_default. The seed differs from call to call unless it was given. */
void sampling_apply(const struct sampling *sampling, const struct ll_client_info *info,
                    uint32_t max_tokens_default, struct ll_request *request);

/* Reads the OpenAI names of the fields from a JSON object over what is there: max_tokens,
 * temperature, top_p, top_k, min_p, seed, n, stop, ... 0, or LL_E_INVAL with the field named.
 * Stop strings point into object. */
int sampling_from_json(struct sampling *sampling, const json_t *object);
/* Is key one of the fields that sampling_from_json() reads? */
bool sampling_knows(const char *key);
void sampling_free(struct sampling *sampling);

#endif
