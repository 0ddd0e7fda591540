/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/http/fields.h"

#include "base/bits.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define JSON_DEPTH_MAX 64

int api_fail(struct api_error *error, int status, const char *param, const char *format, ...)
{
    va_list list;

    *error = (struct api_error){.status = status};
    if (param != NULL)
        snprintf(error->param, sizeof(error->param), "%s", param);
    va_start(list, format);
    vsnprintf(error->message, sizeof(error->message), format, list);
    va_end(list);
    return -1;
}

int api_fail_code(struct api_error *error, int code, const char *param)
{
    return api_fail(error, ll_error_http_status(code), param, "%s", ll_error_text());
}

/* ---- the document -----------------------------------------------------------------------------*/

static bool is_too_deep(const char *text, size_t n)
{
    uint32_t depth = 0;
    bool in_string = false;

    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > JSON_DEPTH_MAX)
                return true;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return false;
}

json_t *body_parse(const char *text, size_t n, struct api_error *error)
{
    json_error_t at;

    if (n == 0) {
        api_fail(error, 400, NULL, "the body is empty: send a JSON object");
        return NULL;
    }
    if (is_too_deep(text, n)) {
        api_fail(error, 400, NULL, "the JSON body is nested more than %d levels deep",
                 JSON_DEPTH_MAX);
        return NULL;
    }
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &at);
    if (root == NULL) {
        /* jansson quotes what it stumbled over; the place alone tells nothing about a prompt. */
        char *near = strstr(at.text, " near '");
        if (near != NULL)
            *near = '\0';
        api_fail(error, 400, NULL, "the body is no valid JSON: %s at line %d, column %d", at.text,
                 at.line, at.column);
        return NULL;
    }
    if (!json_is_object(root)) {
        json_decref(root);
        api_fail(error, 400, NULL, "the body must be a JSON object");
        return NULL;
    }
    return root;
}

/* ---- single fields ----------------------------------------------------------------------------*/

struct reader {
    const json_t *root;
    struct api_error *error;
    bool has_failed; /* the first failure stands */
};

static void fail(struct reader *r, const char *key, const char *what)
{
    if (!r->has_failed)
        api_fail(r->error, 400, key, "`%s` %s", key, what);
    r->has_failed = true;
}

/* F1: null is absent. */
static const json_t *get(const struct reader *r, const char *key)
{
    const json_t *value = json_object_get(r->root, key);

    return json_is_null(value) ? NULL : value;
}

static bool read_bool(struct reader *r, const char *key, bool fallback)
{
    const json_t *value = get(r, key);

    if (value == NULL)
        return fallback;
    if (!json_is_boolean(value))
        fail(r, key, "must be true or false");
    return json_is_true(value);
}

static int64_t read_int(struct reader *r, const char *key, int64_t min, int64_t max,
                        int64_t fallback)
{
    const json_t *value = get(r, key);
    char what[96];

    if (value == NULL)
        return fallback;
    if (json_is_integer(value) && json_integer_value(value) >= min &&
        json_integer_value(value) <= max)
        return json_integer_value(value);
    snprintf(what, sizeof(what), "must be a whole number from %lld to %lld", (long long)min,
             (long long)max);
    fail(r, key, what);
    return fallback;
}

/* min < value <= max where is_open, else min <= value <= max. */
static float read_float(struct reader *r, const char *key, float min, float max, bool is_open,
                        float fallback)
{
    const json_t *value = get(r, key);
    char what[96];

    if (value == NULL)
        return fallback;
    float number = (float)json_number_value(value);
    if (json_is_number(value) && isfinite(number) && number <= max &&
        (is_open ? number > min : number >= min))
        return number;
    snprintf(what, sizeof(what), "must be a number from %g to %g%s", (double)min, (double)max,
             is_open ? ", the first excluded" : "");
    fail(r, key, what);
    return fallback;
}

static void read_stops(struct reader *r, struct params *out)
{
    const json_t *value = get(r, "stop");
    size_t n = json_is_array(value) ? json_array_size(value) : 1;

    if (value == NULL)
        return;
    if (n > FIELD_STOPS_MAX) {
        fail(r, "stop", "may hold 16 strings at most");
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *stop = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_string(stop) || json_string_length(stop) == 0 ||
            json_string_length(stop) > LL_STOP_BYTES_MAX) {
            fail(r, "stop", "must be a string or an array of strings of 1 to 1024 bytes");
            return;
        }
        out->stop[i] = json_string_value(stop);
        out->n_stop_bytes[i] = json_string_length(stop);
    }
    out->n_stops = (uint32_t)n;
}

static void read_stop_ids(struct reader *r, const struct link *link, struct params *out)
{
    const json_t *value = get(r, "stop_token_ids");
    size_t n = json_array_size(value);

    if (value == NULL)
        return;
    if (!json_is_array(value) || n > LL_COUNT(out->stop_id)) {
        fail(r, "stop_token_ids", "must be an array of at most 8 token ids");
        return;
    }
    for (size_t i = 0; i < n; i++) {
        json_int_t id = json_integer_value(json_array_get(value, i));
        if (!json_is_integer(json_array_get(value, i)) || id < 0 || id >= link->info.n_vocab) {
            fail(r, "stop_token_ids", "holds something that is no token id of this model");
            return;
        }
        out->stop_id[i] = (uint32_t)id;
    }
    out->n_stop_ids = (uint32_t)n;
}

static void read_bias(struct reader *r, const struct link *link, struct params *out)
{
    const json_t *value = get(r, "logit_bias");
    const char *key;
    json_t *number;

    if (value == NULL)
        return;
    if (!json_is_object(value) || json_object_size(value) > 1024) {
        fail(r, "logit_bias", "must be an object of at most 1024 \"token id\": bias");
        return;
    }
    out->bias = calloc(json_object_size(value) + 1, sizeof(*out->bias));
    if (out->bias == NULL) {
        fail(r, "logit_bias", "needs more memory than there is");
        return;
    }
    json_object_foreach((json_t *)(uintptr_t)value, key, number)
    {
        size_t n = strlen(key);
        unsigned long id = strtoul(key, NULL, 10);
        if (n == 0 || n > 9 || strspn(key, "0123456789") != n || id >= link->info.n_vocab) {
            fail(r, "logit_bias", "has a key that is no token id of this model");
            return;
        }
        double bias = json_number_value(number);
        if (!json_is_number(number) || !(bias >= -100 && bias <= 100)) {
            fail(r, "logit_bias", "must hold numbers from -100 to 100");
            return;
        }
        out->bias[out->n_bias++] = (struct ll_logit_bias){(uint32_t)id, (float)bias};
    }
}

/* ---- what cannot be done ----------------------------------------------------------------------*/

static bool is_set(const json_t *value)
{
    return value != NULL && !json_is_null(value) && !json_is_false(value) &&
           !(json_is_array(value) && json_array_size(value) == 0) &&
           !(json_is_object(value) && json_object_size(value) == 0);
}

/* Whatever asks for a form of the output, in the words of this server's relatives too. An empty
 * object is a schema that every JSON text meets, but prose does not. */
static void refuse_forms(struct reader *r)
{
    static const char *const forms[] = {"structured_outputs", "structural_tag", "grammar",
                                        "json_schema",        "regex",          "ebnf",
                                        "allowed_token_ids",  "format"};
    static const char guided[] = "guided_";
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)r->root, key, value)
    {
        bool is_form = strncmp(key, guided, sizeof(guided) - 1) == 0;
        for (size_t i = 0; i < LL_COUNT(forms); i++)
            is_form = is_form || strcmp(key, forms[i]) == 0;
        if (is_form && !json_is_null(value) && !json_is_false(value))
            fail(r, key,
                 "is not supported yet: describe the form in the prompt and check the answer, or "
                 "use logit_bias with token ids");
    }
}

static void refuse_constraints(struct reader *r, enum api api)
{
    static const struct {
        const char *key, *what;
    } refused[] = {
        {"bad_words", "is not supported: use logit_bias with their token ids and -100"},
        {"logprob_token_ids", "is not supported: use top_logprobs"},
        {"logits_processors", "is not supported: use logit_bias"},
        {"use_beam_search", "is not supported: use n"},
        {"functions", "is the old form of `tools`: use `tools`"},
        {"function_call", "is the old form of `tool_choice`: use `tools` and `tool_choice`"},
        {"suffix", "is not supported: this model cannot fill in the middle"},
        {"audio", "is not supported: this model reads and writes text only"},
        {"web_search_options", "is not supported: this server searches nothing"},
        {"prediction", "is not supported"},
        {"chat_template", "is not taken from requests: the operator names it at the runtime"},
        {"documents", "is not supported: put them into a message"},
        {"continue_final_message", "is not supported: use /v1/completions with the whole prompt"},
        {"kv_transfer_params", "is not supported"},
        {"prompt_embeds", "is not supported: send text or token ids"},
    };

    for (size_t i = 0; i < LL_COUNT(refused); i++) {
        const json_t *value = get(r, refused[i].key);
        if (is_set(value) && !(json_is_string(value) && json_string_length(value) == 0))
            fail(r, refused[i].key, refused[i].what);
    }
    refuse_forms(r);
    const json_t *format = get(r, "response_format");
    const char *type = json_string_value(json_object_get(format, "type"));
    if (format != NULL && (type == NULL || strcmp(type, "text") != 0))
        fail(
            r, "response_format",
            "other than {\"type\": \"text\"} is not supported yet: describe the JSON in the prompt "
            "and check it");
    const json_t *penalty = get(r, "length_penalty");
    if (penalty != NULL && json_number_value(penalty) != 1.0)
        fail(r, "length_penalty", "belongs to beam search, which is not supported");
    const json_t *modalities = get(r, "modalities");
    for (size_t i = 0; i < json_array_size(modalities); i++) {
        const char *modality = json_string_value(json_array_get(modalities, i));
        if (modality == NULL || strcmp(modality, "text") != 0)
            fail(r, "modalities", "other than \"text\" are not supported");
    }
    if (api == API_COMPLETIONS && is_set(get(r, "tools")))
        fail(r, "tools", "belongs to /v1/chat/completions");
}

/* ---- groups -----------------------------------------------------------------------------------*/

static void read_sampling(struct reader *r, const struct link *link, struct params *out)
{
    const struct link_model *model = link_model(link);

    out->n = (uint32_t)read_int(r, "n", 1, 128, 1);
    out->temperature = read_float(r, "temperature", 0, 2, false, model->temperature);
    out->top_p = read_float(r, "top_p", 0, 1, true, model->top_p);
    out->min_p = read_float(r, "min_p", 0, 1, false, model->min_p);
    int64_t top_k = read_int(r, "top_k", -1, UINT32_MAX, model->top_k);
    out->top_k = top_k < 0 ? 0 : (uint32_t)top_k;
    out->repetition_penalty =
        read_float(r, "repetition_penalty", 0, 10, true, model->repetition_penalty);
    out->frequency_penalty = read_float(r, "frequency_penalty", -2, 2, false, 0);
    out->presence_penalty = read_float(r, "presence_penalty", -2, 2, false, 0);
    int64_t seed = read_int(r, "seed", INT64_MIN, INT64_MAX, -1);
    out->has_seed = seed != -1;
    out->seed = (uint64_t)seed;
    out->min_tokens = (uint32_t)read_int(r, "min_tokens", 0, UINT32_MAX, 0);
    out->ignores_eos = read_bool(r, "ignore_eos", false);
    out->keeps_special = !read_bool(r, "skip_special_tokens", true);
    out->includes_stop = read_bool(r, "include_stop_str_in_output", false);
    out->priority = (int32_t)read_int(r, "priority", -128, 127, 0);
    read_stops(r, out);
    read_stop_ids(r, link, out);
    read_bias(r, link, out);
    if (out->n > 1 && out->temperature == 0)
        fail(r, "n", "must be 1 where temperature is 0: every choice would be the same");
    if (out->n > link->info.n_max)
        fail(r, "n", "is more than this runtime takes: give it more --max-num-seqs");
    if (read_int(r, "best_of", 1, 128, out->n) != out->n)
        fail(r, "best_of", "other than n is not supported: ask for n and choose yourself");
}

static void read_rest(struct reader *r, struct params *out)
{
    const json_t *options = get(r, "stream_options");
    const json_t *salt = get(r, "cache_salt"), *side = get(r, "truncation_side");

    out->is_stream = read_bool(r, "stream", false);
    if (options != NULL && !out->is_stream)
        fail(r, "stream_options", "is only for requests with \"stream\": true");
    if (options != NULL) {
        struct reader inner = {.root = options, .error = r->error};
        if (!json_is_object(options))
            fail(r, "stream_options", "must be an object");
        out->includes_usage = read_bool(&inner, "include_usage", false);
        out->continuous_usage = read_bool(&inner, "continuous_usage_stats", false);
        r->has_failed = r->has_failed || inner.has_failed;
    }
    int64_t n_prompt_top = read_int(r, "prompt_logprobs", 0, 20, -1);
    out->has_prompt_logprobs = n_prompt_top >= 0;
    out->n_prompt_top = n_prompt_top > 0 ? (uint32_t)n_prompt_top : 0;
    if (out->has_prompt_logprobs && out->is_stream)
        fail(r, "prompt_logprobs", "cannot be streamed: leave \"stream\" out");
    if (salt != NULL &&
        (!json_is_string(salt) || json_string_length(salt) == 0 || json_string_length(salt) > 128))
        fail(r, "cache_salt", "must be a string of 1 to 128 bytes");
    out->cache_salt = json_string_value(salt);
    out->truncate = read_int(r, "truncate_prompt_tokens", -1, UINT32_MAX, 0);
    if (out->truncate == 0 && get(r, "truncate_prompt_tokens") != NULL)
        fail(r, "truncate_prompt_tokens", "must be -1 (what fits) or a number from 1 on");
    if (side != NULL) {
        const char *text = json_string_value(side);
        out->truncates_right = text != NULL && strcmp(text, "right") == 0;
        if (text == NULL || (!out->truncates_right && strcmp(text, "left") != 0))
            fail(r, "truncation_side", "must be \"left\" or \"right\"");
    }
    out->tokens_as_ids = read_bool(r, "return_tokens_as_token_ids", false);
    out->returns_ids = read_bool(r, "return_token_ids", false);
}

static void read_tool_choice(struct reader *r, struct params *out)
{
    const json_t *choice = get(r, "tool_choice");
    const char *word = json_string_value(choice);

    out->uses_tools = out->tools != NULL;
    if (choice == NULL)
        return;
    if (word != NULL && strcmp(word, "none") == 0) {
        out->uses_tools = false;
        return;
    }
    if (word != NULL && strcmp(word, "auto") == 0)
        return;
    if ((word != NULL && strcmp(word, "required") == 0) || json_is_object(choice))
        fail(r, "tool_choice",
             "\"required\" and named tools need constrained decoding, which is not supported yet: "
             "use \"auto\" and ask for the call in the prompt");
    else
        fail(r, "tool_choice", "must be \"auto\" or \"none\"");
}

static void read_tools(struct reader *r, struct params *out)
{
    out->tools = get(r, "tools");
    if (out->tools != NULL && (!json_is_array(out->tools) || json_array_size(out->tools) == 0 ||
                               json_array_size(out->tools) > 512)) {
        fail(r, "tools", "must be an array of 1 to 512 tools; leave it out for none");
        return;
    }
    for (size_t i = 0; i < json_array_size(out->tools); i++) {
        const json_t *tool = json_array_get(out->tools, i);
        const char *type = json_string_value(json_object_get(tool, "type"));
        const json_t *name = json_object_get(json_object_get(tool, "function"), "name");
        if (type == NULL || strcmp(type, "function") != 0 || !json_is_string(name) ||
            json_string_length(name) == 0) {
            fail(r, "tools", "must hold {\"type\": \"function\", \"function\": {\"name\": ...}}");
            return;
        }
        if (json_is_true(json_object_get(json_object_get(tool, "function"), "strict"))) {
            fail(r, "tools",
                 "with \"strict\": true need constrained decoding, which is not supported yet: "
                 "leave it out and check the arguments");
            return;
        }
    }
    read_tool_choice(r, out);
    out->one_call = !read_bool(r, "parallel_tool_calls", true);
}

static void read_chat(struct reader *r, struct params *out)
{
    const char *key =
        get(r, "max_completion_tokens") != NULL ? "max_completion_tokens" : "max_tokens";

    out->has_max_tokens = get(r, key) != NULL;
    out->max_tokens = (uint32_t)read_int(r, key, 1, UINT32_MAX, 0);
    out->has_logprobs = read_bool(r, "logprobs", false);
    out->n_top = (uint32_t)read_int(r, "top_logprobs", 0, 20, 0);
    if (out->n_top > 0 && !out->has_logprobs)
        fail(r, "top_logprobs", "needs \"logprobs\": true");
    if (read_bool(r, "echo", false))
        fail(r, "echo", "belongs to /v1/completions");
    if (read_bool(r, "add_special_tokens", false))
        fail(r, "add_special_tokens",
             "true would begin the text twice: the chat's format has its own begin");
    read_tools(r, out);
}

static void read_completion(struct reader *r, struct params *out)
{
    out->echo = read_bool(r, "echo", false);
    out->has_max_tokens = true;
    out->max_tokens = (uint32_t)read_int(r, "max_tokens", out->echo ? 0 : 1, UINT32_MAX, 16);
    int64_t n_top = read_int(r, "logprobs", 0, 20, -1);
    out->has_logprobs = n_top >= 0;
    out->n_top = n_top > 0 ? (uint32_t)n_top : 0;
    out->adds_special = read_bool(r, "add_special_tokens", true);
    if (out->echo && out->is_stream && out->has_logprobs)
        fail(r, "echo", "with logprobs cannot be streamed: leave \"stream\" out");
}

int fields_read(const json_t *root, enum api api, const struct link *link, struct params *out,
                struct api_error *error)
{
    struct reader r = {.root = root, .error = error};

    *out = (struct params){0};
    refuse_constraints(&r, api);
    read_sampling(&r, link, out);
    read_rest(&r, out);
    if (api != API_COMPLETIONS)
        read_chat(&r, out);
    else
        read_completion(&r, out);
    if (out->n_stops > 0 && link->tokenizer == NULL)
        fail(&r, "stop", "needs a tokenizer, which this model has not: use stop_token_ids");
    if (out->n_top > link->info.n_top_max || out->n_prompt_top > link->info.n_top_max)
        fail(&r, "logprobs", "asks for more than the runtime's --max-logprobs");
    if (out->max_tokens > 0 && out->min_tokens > out->max_tokens)
        fail(&r, "min_tokens", "must not be more than max_tokens");
    if (r.has_failed)
        params_free(out);
    return r.has_failed ? -1 : 0;
}

void params_free(struct params *params)
{
    free(params->bias);
    params->bias = NULL;
    params->n_bias = 0;
}
