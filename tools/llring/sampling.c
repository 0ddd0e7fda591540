/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/llring/sampling.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/rng.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AT(field)  .offset = offsetof(struct sampling, field)
#define HAS(field) .given = offsetof(struct sampling, field)

const struct option sampling_options[] = {
    {.name = "max-tokens",
     .letter = 'n',
     .kind = OPTION_U32,
     AT(max_tokens),
     HAS(has_max_tokens),
     .argument = "N",
     .help = "end after N tokens; 0: as many as the context holds"},
    {.name = "min-tokens",
     .kind = OPTION_U32,
     AT(min_tokens),
     .argument = "N",
     .help = "no end before N tokens"},
    {.name = "temperature",
     .letter = 't',
     .kind = OPTION_F32,
     AT(temperature),
     HAS(has_temperature),
     .argument = "T",
     .min = 0,
     .max = 2,
     .help = "0 takes the likeliest token (default: the model's)"},
    {.name = "greedy", .kind = OPTION_FLAG, AT(greedy), .help = "the same as --temperature 0"},
    {.name = "top-p",
     .kind = OPTION_F32,
     AT(top_p),
     HAS(has_top_p),
     .argument = "P",
     .min = 1e-6,
     .max = 1,
     .help = "only the likeliest tokens that make up P (default: the model's)"},
    {.name = "top-k",
     .kind = OPTION_U32,
     AT(top_k),
     HAS(has_top_k),
     .argument = "K",
     .help = "only the K likeliest tokens; 0: off (default: the model's)"},
    {.name = "min-p",
     .kind = OPTION_F32,
     AT(min_p),
     HAS(has_min_p),
     .argument = "P",
     .min = 0,
     .max = 1,
     .help = "only tokens at least P times as likely as the likeliest"},
    {.name = "repetition-penalty",
     .kind = OPTION_F32,
     AT(repetition_penalty),
     HAS(has_repetition),
     .argument = "R",
     .min = 0.01,
     .max = 10,
     .help = "divides what was said before; 1: off"},
    {.name = "frequency-penalty",
     .kind = OPTION_F32,
     AT(frequency_penalty),
     .argument = "F",
     .min = -2,
     .max = 2,
     .help = "minus F for each time a token was output"},
    {.name = "presence-penalty",
     .kind = OPTION_F32,
     AT(presence_penalty),
     .argument = "F",
     .min = -2,
     .max = 2,
     .help = "minus F for a token that was output"},
    {.name = "seed",
     .kind = OPTION_U64,
     AT(seed),
     HAS(has_seed),
     .argument = "N",
     .help = "same seed, same text (default: a new one each time)"},
    {.name = "stop",
     .kind = OPTION_TEXTS,
     AT(stop),
     .argument = "TEXT",
     .help = "end before this text; may be given several times"},
    {.name = "ignore-eos",
     .kind = OPTION_FLAG,
     AT(ignore_eos),
     .help = "go on past the model's end-of-text token"},
    {.name = NULL},
};

static uint64_t fresh_seed(void)
{
    static uint64_t state;

    if (state == 0)
        state = ll_now_ns() ^ (uint64_t)getpid() << 40;
    return ll_splitmix64(&state);
}

void sampling_apply(const struct sampling *sampling, const struct ll_client_info *info,
                    uint32_t max_tokens_default, struct ll_request *request)
{
    request->max_tokens = sampling->has_max_tokens ? sampling->max_tokens : max_tokens_default;
    /* A default must not be refused where the prompt leaves less room than it. */
    if (!sampling->has_max_tokens && request->n_prompt < info->context_max)
        request->max_tokens =
            (uint32_t)ll_min_u64(request->max_tokens, info->context_max - request->n_prompt);
    request->min_tokens = sampling->min_tokens;
    request->n = sampling->n;
    request->temperature = sampling->has_temperature ? sampling->temperature : info->temperature;
    if (sampling->greedy)
        request->temperature = 0;
    request->top_p = sampling->has_top_p ? sampling->top_p : info->top_p;
    request->top_k = sampling->has_top_k ? sampling->top_k : info->top_k;
    request->min_p = sampling->has_min_p ? sampling->min_p : info->min_p;
    request->repetition_penalty =
        sampling->has_repetition ? sampling->repetition_penalty : info->repetition_penalty;
    request->frequency_penalty = sampling->frequency_penalty;
    request->presence_penalty = sampling->presence_penalty;
    request->seed = sampling->has_seed ? sampling->seed : fresh_seed();
    if (sampling->ignore_eos)
        request->flags |= LL_REQUEST_IGNORE_EOS;
    request->bias = sampling->bias;
    request->n_bias = sampling->n_bias;
    request->stop = sampling->stop_ids;
    request->n_stop = sampling->n_stop_ids;
}

/* ---- from JSON ------------------------------------------------------------------------------*/

static int read_u32(const char *key, const json_t *value, uint32_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) > UINT32_MAX)
        return LL_ERR(LL_E_INVAL, "\"%s\" must be a whole number from 0", key);
    *out = (uint32_t)json_integer_value(value);
    return 0;
}

static int read_f32(const char *key, const json_t *value, float *out)
{
    if (!json_is_number(value) || !isfinite(json_number_value(value)))
        return LL_ERR(LL_E_INVAL, "\"%s\" must be a number", key);
    *out = (float)json_number_value(value);
    return 0;
}

static int read_stop(const json_t *value, struct option_texts *stop)
{
    stop->n = 0;
    if (json_is_string(value)) {
        stop->text[stop->n++] = json_string_value(value);
        return 0;
    }
    if (!json_is_array(value) || json_array_size(value) > OPTION_TEXTS_MAX)
        return LL_ERR(LL_E_INVAL, "\"stop\" must be a string or at most %d strings",
                      OPTION_TEXTS_MAX);
    for (size_t i = 0; i < json_array_size(value); i++) {
        const char *text = json_string_value(json_array_get(value, i));
        if (text == NULL)
            return LL_ERR(LL_E_INVAL, "\"stop\" must hold strings only");
        stop->text[stop->n++] = text;
    }
    return 0;
}

static int read_stop_ids(const json_t *value, struct sampling *sampling)
{
    size_t n = json_array_size(value);

    if (!json_is_array(value) || n > LL_COUNT(sampling->stop_ids))
        return LL_ERR(LL_E_INVAL, "\"stop_token_ids\" must be an array of at most %zu ids",
                      LL_COUNT(sampling->stop_ids));
    for (size_t i = 0; i < n; i++) {
        int rc = read_u32("stop_token_ids", json_array_get(value, i), &sampling->stop_ids[i]);
        if (rc < 0)
            return rc;
    }
    sampling->n_stop_ids = (uint32_t)n;
    return 0;
}

static int read_bias(const json_t *value, struct sampling *sampling)
{
    const char *key;
    json_t *number;

    if (!json_is_object(value))
        return LL_ERR(LL_E_INVAL, "\"logit_bias\" must be an object of id: bias");
    free(sampling->bias);
    sampling->n_bias = 0;
    sampling->bias = calloc(json_object_size(value) + 1, sizeof(*sampling->bias));
    if (sampling->bias == NULL)
        return LL_ERR(-ENOMEM, "no memory for \"logit_bias\"");
    json_object_foreach((json_t *)(uintptr_t)value, key, number)
    {
        struct ll_logit_bias *entry = &sampling->bias[sampling->n_bias];
        char *end;
        unsigned long id = strtoul(key, &end, 10);
        if (end == key || *end != '\0' || id > UINT32_MAX)
            return LL_ERR(LL_E_INVAL, "\"logit_bias\": \"%s\" is no token id", key);
        int rc = read_f32("logit_bias", number, &entry->bias);
        if (rc < 0)
            return rc;
        entry->id = (uint32_t)id;
        sampling->n_bias++;
    }
    return 0;
}

/* Fields that are one number each: where they go and which bool says that they were given. */
struct number_field {
    const char *key;
    bool is_float;
    size_t offset, given;
};
static const struct number_field number_fields[] = {
    {"max_tokens", false, offsetof(struct sampling, max_tokens),
     offsetof(struct sampling, has_max_tokens)},
    {"max_completion_tokens", false, offsetof(struct sampling, max_tokens),
     offsetof(struct sampling, has_max_tokens)},
    {"min_tokens", false, offsetof(struct sampling, min_tokens), 0},
    {"n", false, offsetof(struct sampling, n), 0},
    {"top_k", false, offsetof(struct sampling, top_k), offsetof(struct sampling, has_top_k)},
    {"temperature", true, offsetof(struct sampling, temperature),
     offsetof(struct sampling, has_temperature)},
    {"top_p", true, offsetof(struct sampling, top_p), offsetof(struct sampling, has_top_p)},
    {"min_p", true, offsetof(struct sampling, min_p), offsetof(struct sampling, has_min_p)},
    {"repetition_penalty", true, offsetof(struct sampling, repetition_penalty),
     offsetof(struct sampling, has_repetition)},
    {"frequency_penalty", true, offsetof(struct sampling, frequency_penalty), 0},
    {"presence_penalty", true, offsetof(struct sampling, presence_penalty), 0},
};
static const char *const other_fields[] = {"seed", "stop", "stop_token_ids", "logit_bias",
                                           "ignore_eos"};

bool sampling_knows(const char *key)
{
    for (size_t i = 0; i < LL_COUNT(number_fields); i++)
        if (strcmp(key, number_fields[i].key) == 0)
            return true;
    for (size_t i = 0; i < LL_COUNT(other_fields); i++)
        if (strcmp(key, other_fields[i]) == 0)
            return true;
    return false;
}

int sampling_from_json(struct sampling *sampling, const json_t *object)
{
    char *base = (char *)sampling;
    const json_t *value;
    int rc = 0;

    for (size_t i = 0; i < LL_COUNT(number_fields) && rc == 0; i++) {
        const struct number_field *field = &number_fields[i];
        value = json_object_get(object, field->key);
        if (value == NULL || json_is_null(value))
            continue;
        if (field->is_float)
            rc = read_f32(field->key, value, (float *)(void *)(base + field->offset));
        else
            rc = read_u32(field->key, value, (uint32_t *)(void *)(base + field->offset));
        if (rc == 0 && field->given != 0)
            *(bool *)(base + field->given) = true;
    }
    value = json_object_get(object, "seed");
    if (rc == 0 && value != NULL && !json_is_null(value)) {
        if (!json_is_integer(value))
            return LL_ERR(LL_E_INVAL, "\"seed\" must be a whole number");
        sampling->seed = (uint64_t)json_integer_value(value);
        sampling->has_seed = true;
    }
    value = json_object_get(object, "stop");
    if (rc == 0 && value != NULL && !json_is_null(value))
        rc = read_stop(value, &sampling->stop);
    value = json_object_get(object, "stop_token_ids");
    if (rc == 0 && value != NULL && !json_is_null(value))
        rc = read_stop_ids(value, sampling);
    value = json_object_get(object, "logit_bias");
    if (rc == 0 && value != NULL && !json_is_null(value))
        rc = read_bias(value, sampling);
    value = json_object_get(object, "ignore_eos");
    if (rc == 0 && value != NULL && !json_is_null(value)) {
        if (!json_is_boolean(value))
            return LL_ERR(LL_E_INVAL, "\"ignore_eos\" must be true or false");
        sampling->ignore_eos = json_is_true(value);
    }
    return rc;
}

void sampling_free(struct sampling *sampling)
{
    free(sampling->bias);
    sampling->bias = NULL;
    sampling->n_bias = 0;
}
