/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/llring/check_case.h"

#include "base/err.h"
#include "tools/llring/answer.h"
#include "tools/llring/messages.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TOP_MAX 20

/* ids of array key into a new array; the caller frees it. */
static int read_ids(const json_t *item, const char *key, uint32_t **ids, uint32_t *n)
{
    const json_t *array = json_object_get(item, key);
    size_t count = json_array_size(array);

    if (!json_is_array(array) || count == 0 || count > UINT32_MAX)
        return LL_ERR(LL_E_INVAL, "the golden file's case has no \"%s\"", key);
    *ids = calloc(count, sizeof(**ids));
    if (*ids == NULL)
        return LL_ERR(-ENOMEM, "no memory for %zu ids", count);
    for (size_t i = 0; i < count; i++)
        (*ids)[i] = (uint32_t)json_integer_value(json_array_get(array, i));
    *n = (uint32_t)count;
    return 0;
}

/* Keeps the larger of *largest and |a - b|; a number that is not finite differs without end. */
static void keep_largest(double *largest, const json_t *expected, float got)
{
    double diff = fabs(json_number_value(expected) - (double)got);

    if (!isfinite(diff))
        diff = INFINITY;
    if (diff > *largest)
        *largest = diff;
}

static int compare_prompt(struct connection *connection, const json_t *item,
                          const uint32_t *expected, uint32_t n_expected, struct check_result *out)
{
    const char *text = json_string_value(json_object_get(item, "prompt"));
    uint32_t *ids = NULL, n = 0;
    char *rendered = NULL;
    int rc = messages_encode(connection, json_object_get(item, "messages"),
                             json_object_get(item, "tools"), NULL, &ids, &n, &rendered);

    if (rc == 0) {
        out->is_prompt_equal = n == n_expected && memcmp(ids, expected, n * sizeof(*ids)) == 0;
        out->is_text_equal = text == NULL || strcmp(text, rendered) == 0;
    }
    free(ids);
    free(rendered);
    return rc;
}

/* Of the file's ids from `first` on: how many came, until one differs. */
static uint32_t compare_greedy(const struct answer *answer, const json_t *item,
                               const uint32_t *expected, uint32_t n_expected, uint32_t first,
                               struct check_result *out)
{
    const struct answer_choice *choice = &answer->choice[0];
    const json_t *logprobs = json_object_get(item, "greedy_logprobs");

    for (uint32_t i = first; i < n_expected; i++) {
        uint32_t got = i - first < choice->n_tokens ? choice->token[i - first].id : UINT32_MAX;
        if (got != expected[i]) {
            if (out->expected_id == UINT32_MAX) {
                out->expected_id = expected[i];
                out->got_id = got;
            }
            return i - first;
        }
        out->n_tokens_equal++;
        keep_largest(&out->greedy_diff, json_array_get(logprobs, i),
                     choice->token[i - first].logprob);
    }
    return n_expected - first;
}

/* After a difference: what follows the file's own ids, as often as it takes. So a token that is
 * nearly as likely as the file's counts once, and not for all that come after it. */
static int compare_rest(struct connection *connection, const json_t *item, const uint32_t *prompt,
                        uint32_t n_prompt, const uint32_t *expected, uint32_t n_expected,
                        uint32_t n_seen, struct check_result *out)
{
    uint32_t *ids = malloc(((size_t)n_prompt + n_expected) * sizeof(*ids));
    struct option_texts no_stop = {0};
    int rc = ids != NULL ? 0 : LL_ERR(-ENOMEM, "no memory for %u ids", n_prompt + n_expected);

    if (rc == 0) {
        memcpy(ids, prompt, n_prompt * sizeof(*ids));
        memcpy(ids + n_prompt, expected, n_expected * sizeof(*ids));
    }
    for (uint32_t first = n_seen + 1; rc == 0 && first < n_expected;) {
        struct ll_request request = LL_REQUEST_INIT;
        struct answer answer = {0};
        request.prompt = ids;
        request.n_prompt = n_prompt + first;
        request.max_tokens = n_expected - first;
        rc = answer_start(&answer, connection, &request, &no_stop);
        if (rc == 0 && (rc = answer_wait(&answer, NULL)) < 0)
            rc = LL_ERR(rc, "%s", answer.error_text);
        if (rc == 0)
            first += compare_greedy(&answer, item, expected, n_expected, first, out) + 1;
        answer_free(&answer);
    }
    free(ids);
    return rc;
}

/* The first position's logprob is null: nothing comes before it. */
static void compare_prompt_logprobs(const struct answer *answer, const json_t *item,
                                    struct check_result *out)
{
    const json_t *logprobs = json_object_get(item, "prompt_logprobs");

    for (size_t i = 1; i < json_array_size(logprobs); i++)
        keep_largest(&out->prompt_diff, json_array_get(logprobs, i),
                     i < answer->n_prompt_logprobs ? answer->prompt_logprob[i] : NAN);
}

/* By rank: two ids of nearly equal logprob may change places without being wrong. */
static void compare_top(const struct answer *answer, const json_t *item, struct check_result *out)
{
    const struct answer_choice *choice = &answer->choice[0];
    const json_t *ids = json_object_get(item, "top_ids");
    const json_t *logprobs = json_object_get(item, "top_logprobs");
    uint32_t n_got = choice->n_tokens > 0 ? choice->token[0].n_top : 0;

    for (size_t i = 0; i < json_array_size(ids) && i < TOP_MAX; i++) {
        const struct ll_top_pair *pair =
            i < n_got ? &choice->top[choice->token[0].first_top + i] : NULL;
        out->n_top++;
        out->n_top_equal +=
            pair != NULL && pair->id == (uint32_t)json_integer_value(json_array_get(ids, i));
        keep_largest(&out->top_diff, json_array_get(logprobs, i),
                     pair != NULL ? pair->logprob : NAN);
    }
}

int check_case(struct connection *connection, const json_t *item, struct check_result *out)
{
    struct ll_request request = LL_REQUEST_INIT;
    struct option_texts no_stop = {0};
    struct answer answer = {0};
    uint32_t *prompt = NULL, *greedy = NULL, n_greedy = 0;

    *out =
        (struct check_result){.has_failed = true, .expected_id = UINT32_MAX, .got_id = UINT32_MAX};
    int rc = read_ids(item, "prompt_ids", &prompt, &request.n_prompt);
    if (rc == 0)
        rc = read_ids(item, "greedy_ids", &greedy, &n_greedy);
    if (rc == 0)
        rc = compare_prompt(connection, item, prompt, request.n_prompt, out);
    if (rc == 0) {
        out->n_tokens = n_greedy;
        request.prompt = prompt;
        request.max_tokens = n_greedy;
        request.n_top = TOP_MAX;
        request.flags = LL_REQUEST_PROMPT_LOGPROBS;
        rc = answer_start(&answer, connection, &request, &no_stop);
    }
    if (rc == 0) {
        rc = answer_wait(&answer, NULL);
        if (rc < 0)
            rc = LL_ERR(rc, "%s", answer.error_text);
    }
    if (rc == 0) {
        uint32_t n_seen = compare_greedy(&answer, item, greedy, n_greedy, 0, out);
        compare_prompt_logprobs(&answer, item, out);
        compare_top(&answer, item, out);
        rc =
            compare_rest(connection, item, prompt, request.n_prompt, greedy, n_greedy, n_seen, out);
        out->has_failed = rc < 0;
    }
    answer_free(&answer);
    free(prompt);
    free(greedy);
    return rc;
}

void check_add(struct check_sums *sums, const struct check_result *result)
{
    sums->n_cases++;
    sums->n_failed += result->has_failed;
    sums->n_texts_equal += result->is_text_equal;
    sums->n_prompts_equal += result->is_prompt_equal;
    sums->n_cases_equal += !result->has_failed && result->n_tokens_equal == result->n_tokens;
    sums->n_tokens += result->n_tokens;
    sums->n_tokens_equal += result->n_tokens_equal;
    sums->n_top += result->n_top;
    sums->n_top_equal += result->n_top_equal;
    sums->greedy_diff = fmax(sums->greedy_diff, result->greedy_diff);
    sums->prompt_diff = fmax(sums->prompt_diff, result->prompt_diff);
    sums->top_diff = fmax(sums->top_diff, result->top_diff);
}

void check_print(size_t index, const struct check_result *result)
{
    printf("case %2zu: ", index);
    if (result->has_failed) {
        printf("failed\n");
        return;
    }
    printf("prompt %s, greedy %u/%u", result->is_prompt_equal ? "equal" : "DIFFERS",
           result->n_tokens_equal, result->n_tokens);
    if (result->n_tokens_equal < result->n_tokens)
        printf(" (then %u instead of %u)", result->got_id, result->expected_id);
    printf(", logprobs within %.2g, %.2g of the prompt, %.2g of the top 20\n", result->greedy_diff,
           result->prompt_diff, result->top_diff);
}
