/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_body.c - the body of a request: the first byte picks the API, the rest is JSON.
 * What is accepted lies within its ranges; what is refused says why in words. */
#include "tests/fuzz/fuzz.h"

#include "tools/http/responses.h"

#include <math.h>

#define N_VOCAB 4106u

static void check_params(const struct params *params, enum api api)
{
    FUZZ_CHECK(params->n >= 1 && params->n <= 128);
    FUZZ_CHECK(params->temperature >= 0 && params->temperature <= 2);
    FUZZ_CHECK(params->top_p > 0 && params->top_p <= 1);
    FUZZ_CHECK(params->min_p >= 0 && params->min_p <= 1);
    FUZZ_CHECK(params->repetition_penalty > 0 && params->repetition_penalty <= 10);
    FUZZ_CHECK(fabsf(params->frequency_penalty) <= 2 && fabsf(params->presence_penalty) <= 2);
    FUZZ_CHECK(params->priority >= -128 && params->priority <= 127);
    FUZZ_CHECK(params->n_top <= 20 && params->n_prompt_top <= 20);
    FUZZ_CHECK(params->n_stops <= FIELD_STOPS_MAX && params->n_stop_ids <= 8);
    for (uint32_t i = 0; i < params->n_stops; i++)
        FUZZ_CHECK(params->n_stop_bytes[i] >= 1 && params->n_stop_bytes[i] <= LL_STOP_BYTES_MAX);
    for (uint32_t i = 0; i < params->n_stop_ids; i++)
        FUZZ_CHECK(params->stop_id[i] < N_VOCAB);
    for (uint32_t i = 0; i < params->n_bias; i++)
        FUZZ_CHECK(params->bias[i].id < N_VOCAB && fabsf(params->bias[i].bias) <= 100);
    FUZZ_CHECK(!params->uses_tools || params->tools != NULL);
    FUZZ_CHECK(params->max_tokens == 0 || params->min_tokens <= params->max_tokens);
    FUZZ_CHECK(params->max_tokens > 0 || !params->has_max_tokens || params->echo);
    FUZZ_CHECK(api == API_COMPLETIONS || !params->echo);
    FUZZ_CHECK(!params->is_stream || !params->has_prompt_logprobs);
}

static void check_error(const struct api_error *error)
{
    FUZZ_CHECK(error->status >= 400 && error->status <= 503 && error->message[0] != '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_data)
{
    static const struct link_model model = {.temperature = 1, .top_p = 1, .repetition_penalty = 1};
    static const struct link link = {
        .model = &model,
        .info = {.n_vocab = N_VOCAB, .context_max = 8192, .n_max = 128, .n_top_max = 20}};
    struct api_error error = {0};
    struct params params;

    if (n_data == 0)
        return -1;
    enum api api = (enum api)(data[0] % 3);
    json_t *root = body_parse((const char *)data + 1, n_data - 1, &error);
    if (root == NULL) {
        check_error(&error);
        return 0;
    }
    struct response *response = calloc(1, sizeof(*response));
    FUZZ_CHECK(response != NULL);
    int rc = api == API_RESPONSES ? responses_read(root, response, &error) : 0;
    if (rc == 0 && api == API_RESPONSES) {
        json_t *messages = json_object_get(root, "messages");
        FUZZ_CHECK(json_is_array(messages));
        FUZZ_CHECK(!response->echo.has_failed && response->echo.n > 0);
    }
    if (rc == 0)
        rc = fields_read(root, api, &link, &params, &error);
    if (rc == 0) {
        check_params(&params, api);
        params_free(&params);
    } else {
        check_error(&error);
    }
    responses_free(response);
    json_decref(root);
    return 0;
}
