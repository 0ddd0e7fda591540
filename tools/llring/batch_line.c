/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/llring/batch_line.h"

#include "base/bits.h"
#include "base/err.h"
#include "tools/llring/messages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int read_ids(struct batch_line *line, const json_t *array)
{
    size_t n = json_array_size(array);

    if (!json_is_array(array) || n > UINT32_MAX)
        return LL_ERR(LL_E_INVAL, "\"prompt_ids\" must be an array of token ids");
    line->ids = calloc(n + 1, sizeof(*line->ids));
    if (line->ids == NULL)
        return LL_ERR(-ENOMEM, "no memory for %zu ids", n);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(array, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > UINT32_MAX)
            return LL_ERR(LL_E_INVAL, "\"prompt_ids\": entry %zu is no token id", i);
        line->ids[i] = (uint32_t)json_integer_value(id);
    }
    line->n_ids = (uint32_t)n;
    return 0;
}

static int read_prompt(struct batch_line *line, struct connection *connection, const char *system)
{
    const json_t *prompt = json_object_get(line->object, "prompt");
    const json_t *messages = json_object_get(line->object, "messages");
    const json_t *ids = json_object_get(line->object, "prompt_ids");

    if ((prompt != NULL) + (messages != NULL) + (ids != NULL) != 1)
        return LL_ERR(LL_E_INVAL,
                      "a line needs one of \"prompt\", \"messages\" and \"prompt_ids\"");
    if (ids != NULL)
        return read_ids(line, ids);
    if (connection->tokenizer == NULL)
        return LL_ERR(LL_E_UNSUPPORTED, "the model has no tokenizer: give \"prompt_ids\"");
    if (messages != NULL)
        return messages_encode(connection, messages, json_object_get(line->object, "tools"), system,
                               &line->ids, &line->n_ids, NULL);
    if (!json_is_string(prompt))
        return LL_ERR(LL_E_INVAL, "\"prompt\" must be a string");
    return connection_encode(connection, json_string_value(prompt), json_string_length(prompt),
                             LL_ENCODE_BOS, &line->ids, &line->n_ids);
}

/* A misspelt field would silently change what is asked, so it is refused. */
static int check_keys(const json_t *object)
{
    static const char *const known[] = {"id",    "prompt",   "messages", "prompt_ids",
                                        "tools", "logprobs", "model"};
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        bool is_known = sampling_knows(key);
        for (size_t i = 0; i < LL_COUNT(known) && !is_known; i++)
            is_known = strcmp(key, known[i]) == 0;
        if (!is_known)
            return LL_ERR(LL_E_INVAL, "unknown field \"%s\"", key);
    }
    return 0;
}

static int read_object(struct batch_line *line, struct connection *connection, const char *system)
{
    const json_t *id = json_object_get(line->object, "id");
    const json_t *logprobs = json_object_get(line->object, "logprobs");

    if (id != NULL && !json_is_string(id) && !json_is_number(id))
        return LL_ERR(LL_E_INVAL, "\"id\" must be a string or a number");
    if (id != NULL) {
        json_decref(line->id);
        line->id = json_incref((json_t *)(uintptr_t)id);
    }
    if (logprobs != NULL && !json_is_null(logprobs)) {
        if (!json_is_integer(logprobs) || json_integer_value(logprobs) < 0 ||
            json_integer_value(logprobs) > 20)
            return LL_ERR(LL_E_INVAL, "\"logprobs\" must be a number from 0 to 20");
        line->has_logprobs = true;
        line->n_top = (uint32_t)json_integer_value(logprobs);
    }
    int rc = check_keys(line->object);
    if (rc == 0)
        rc = sampling_from_json(&line->sampling, line->object);
    return rc < 0 ? rc : read_prompt(line, connection, system);
}

int batch_line_read(struct batch_line *out, struct connection *connection, const char *text,
                    size_t n_bytes, uint64_t number, const struct sampling *sampling,
                    const char *system)
{
    json_error_t error;

    *out = (struct batch_line){.number = number, .sampling = *sampling};
    out->id = json_integer((json_int_t)number);
    out->object = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (out->object == NULL)
        return LL_ERR(LL_E_INVAL, "not JSON: %s (column %d)", error.text, error.column);
    if (!json_is_object(out->object))
        return LL_ERR(LL_E_INVAL, "a line must be one JSON object");
    return read_object(out, connection, system);
}

void batch_line_free(struct batch_line *line)
{
    sampling_free(&line->sampling);
    free(line->ids);
    json_decref(line->id);
    json_decref(line->object);
    *line = (struct batch_line){0};
}
