/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/check_case.h - one golden case: asked, compared, added up. */
#ifndef TOOLS_LLRING_CHECK_CASE_H
#define TOOLS_LLRING_CHECK_CASE_H

#include "tools/llring/connection.h"

#include <jansson.h>

struct check_result {
    bool has_failed; /* refused, or ended with an error: nothing below the prompt is valid */
    bool is_text_equal, is_prompt_equal;
    uint32_t n_tokens, n_tokens_equal; /* greedy ones, each after the file's own before it */
    uint32_t expected_id, got_id;      /* at the first that differs */
    uint32_t n_top, n_top_equal;       /* ids of the next token's top list, by rank */
    double greedy_diff, prompt_diff, top_diff; /* largest absolute difference of logprobs */
};

struct check_sums {
    uint32_t n_cases, n_failed, n_texts_equal, n_prompts_equal, n_cases_equal;
    uint32_t n_tokens, n_tokens_equal, n_top, n_top_equal;
    double greedy_diff, prompt_diff, top_diff;
};

/* item: {"messages", "tools", "prompt", "prompt_ids", "prompt_logprobs", "top_ids",
 * "top_logprobs", "greedy_ids", "greedy_logprobs"}. 0, or a negative code with ll_error_text();
 * *out is valid in either case. */
int check_case(struct connection *connection, const json_t *item, struct check_result *out);

void check_add(struct check_sums *sums, const struct check_result *result);
void check_print(size_t index, const struct check_result *result);

#endif
