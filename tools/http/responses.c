/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/responses.c - the body of /v1/responses, rewritten as one of /v1/chat/completions. */
#include "tools/http/responses.h"

#include "base/bits.h"

#include <stdlib.h>

static int fail_memory(struct api_error *error)
{
    return api_fail(error, 503, NULL, "no memory for the request");
}

static bool is_given(const json_t *value)
{
    return value != NULL && !json_is_null(value);
}

static bool is_text(const json_t *value, const char *wanted)
{
    const char *text = json_string_value(value);

    return text != NULL && strcmp(text, wanted) == 0;
}

void responses_free(struct response *response)
{
    if (response == NULL)
        return;
    buffer_free(&response->echo);
    buffer_free(&response->text);
    buffer_free(&response->scores);
    buffer_free(&response->items);
    free(response);
}

/* ---- what cannot be done ----------------------------------------------------------------------*/

static int check_refused(const json_t *root, struct api_error *error)
{
    static const struct {
        const char *key, *what;
    } refused[] = {
        {"previous_response_id", "is not supported: this server keeps no responses; send the whole "
                                 "conversation as `input`"},
        {"conversation", "is not supported: this server keeps no conversations; send the whole "
                         "conversation as `input`"},
        {"store", "true is not supported: this server keeps no responses; leave it out or send "
                  "false"},
        {"background", "true is not supported: wait for the answer, or stream it"},
        {"prompt", "is not supported: this server keeps no prompt templates; send `input`"},
        {"context_management", "is not supported: shorten `input` yourself"},
        {"prompt_logprobs", "belongs to /v1/chat/completions and /v1/completions"},
        {"return_token_ids", "belongs to /v1/chat/completions and /v1/completions"},
        {"echo", "belongs to /v1/completions"},
        {"messages", "belongs to /v1/chat/completions: send `input`"},
    };

    for (size_t i = 0; i < LL_COUNT(refused); i++) {
        const json_t *value = json_object_get(root, refused[i].key);
        if (is_given(value) && !json_is_false(value))
            return api_fail(error, 400, refused[i].key, "`%s` %s", refused[i].key, refused[i].what);
    }
    const json_t *n = json_object_get(root, "n");
    if (is_given(n) && json_integer_value(n) != 1)
        return api_fail(error, 400, "n", "`n` belongs to /v1/chat/completions: a response is one");
    const json_t *cut = json_object_get(root, "truncation");
    if (is_given(cut) && !is_text(cut, "disabled"))
        return api_fail(error, 400, "truncation",
                        "`truncation` other than \"disabled\" is not supported: shorten `input` "
                        "yourself");
    const json_t *format = json_object_get(json_object_get(root, "text"), "format");
    if (is_given(format) && !is_text(json_object_get(format, "type"), "text"))
        return api_fail(error, 400, "text.format",
                        "`text.format` other than {\"type\": \"text\"} is not supported yet: "
                        "describe the JSON in the input and check it");
    return 0;
}

/* ---- input ------------------------------------------------------------------------------------*/

/* Parts as chat knows them; a string as it is. NULL with *error. */
static json_t *read_content(const json_t *content, const char *what, struct api_error *error)
{
    static const char *const texts[] = {"input_text", "output_text", "text"};

    if (json_is_string(content))
        return json_copy((json_t *)(uintptr_t)content);
    json_t *parts = json_array();
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i), *type = json_object_get(part, "type");
        const json_t *text = json_object_get(part, "text");
        bool is_known = false;
        for (size_t k = 0; k < LL_COUNT(texts); k++)
            is_known = is_known || is_text(type, texts[k]);
        if (!is_known || !json_is_string(text)) {
            json_decref(parts);
            api_fail(error, 400, "input",
                     "a part of %s must be {\"type\": \"input_text\" or \"output_text\", "
                     "\"text\": ...}: this model reads text only",
                     what);
            return NULL;
        }
        json_array_append_new(parts, json_pack("{s:s,s:O}", "type", "text", "text", text));
    }
    if (!json_is_array(content)) {
        json_decref(parts);
        api_fail(error, 400, "input", "%s must be a string or an array of parts", what);
        return NULL;
    }
    return parts;
}

static int add_message(json_t *messages, const json_t *item, struct api_error *error)
{
    const json_t *role = json_object_get(item, "role");

    if (!json_is_string(role))
        return api_fail(error, 400, "input", "a message of `input` needs a `role`");
    json_t *content = read_content(json_object_get(item, "content"), "a message's content", error);
    if (content == NULL)
        return -1;
    return json_array_append_new(messages, json_pack("{s:O,s:o}", "role", role, "content", content))
               ? fail_memory(error)
               : 0;
}

static int add_call(json_t *messages, const json_t *item, struct api_error *error)
{
    const json_t *name = json_object_get(item, "name");
    const json_t *arguments = json_object_get(item, "arguments");

    if (!json_is_string(name) || !json_is_string(arguments))
        return api_fail(error, 400, "input",
                        "a function_call of `input` needs a `name` and `arguments`, both strings");
    json_t *message =
        json_pack("{s:s,s:[{s:s,s:{s:O,s:O}}]}", "role", "assistant", "tool_calls", "type",
                  "function", "function", "name", name, "arguments", arguments);
    return json_array_append_new(messages, message) ? fail_memory(error) : 0;
}

static int add_result(json_t *messages, const json_t *item, struct api_error *error)
{
    json_t *output = read_content(json_object_get(item, "output"), "a call's output", error);

    if (output == NULL)
        return -1;
    return json_array_append_new(messages,
                                 json_pack("{s:s,s:o}", "role", "tool", "content", output))
               ? fail_memory(error)
               : 0;
}

static int add_item(json_t *messages, const json_t *item, struct api_error *error)
{
    const json_t *type = json_object_get(item, "type");

    if (is_text(type, "message") || (type == NULL && json_object_get(item, "role") != NULL))
        return add_message(messages, item, error);
    if (is_text(type, "function_call"))
        return add_call(messages, item, error);
    if (is_text(type, "function_call_output"))
        return add_result(messages, item, error);
    if (is_text(type, "reasoning"))
        return 0; /* other models' thoughts, which no model is shown again */
    return api_fail(error, 400, "input",
                    "an item of `input` has the type \"%.60s\": this server knows message, "
                    "function_call and function_call_output",
                    json_is_string(type) ? json_string_value(type) : "(none)");
}

static int read_input(json_t *root, struct api_error *error)
{
    const json_t *input = json_object_get(root, "input");
    const json_t *instructions = json_object_get(root, "instructions");
    json_t *messages = json_array();
    int rc = 0;

    if (messages == NULL)
        return fail_memory(error);
    if (is_given(instructions) && !json_is_string(instructions))
        rc = api_fail(error, 400, "instructions", "`instructions` must be a string");
    else if (is_given(instructions))
        json_array_append_new(messages,
                              json_pack("{s:s,s:O}", "role", "system", "content", instructions));
    if (rc == 0 && json_is_string(input))
        json_array_append_new(messages, json_pack("{s:s,s:O}", "role", "user", "content", input));
    else if (rc == 0 && (!json_is_array(input) || json_array_size(input) == 0))
        rc = api_fail(error, 400, "input", "`input` must be a string or an array of items");
    for (size_t i = 0; i < json_array_size(input) && rc == 0; i++)
        rc = add_item(messages, json_array_get(input, i), error);
    if (rc < 0) {
        json_decref(messages);
        return rc;
    }
    return json_object_set_new(root, "messages", messages) < 0 ? fail_memory(error) : 0;
}

/* ---- tools and the rest -----------------------------------------------------------------------*/

/* Flat here, nested in chat. */
static int read_tools(json_t *root, struct api_error *error)
{
    const json_t *tools = json_object_get(root, "tools");

    if (!is_given(tools))
        return 0;
    if (!json_is_array(tools))
        return api_fail(error, 400, "tools", "`tools` must be an array");
    if (json_array_size(tools) == 0) /* here clients send it for "none" */
        return json_object_del(root, "tools");
    json_t *nested = json_array();
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        json_t *function = json_copy((json_t *)(uintptr_t)tool);
        if (!is_text(json_object_get(tool, "type"), "function")) {
            json_decref(function);
            json_decref(nested);
            return api_fail(error, 400, "tools",
                            "`tools` must hold {\"type\": \"function\", \"name\": ...}: this "
                            "server has no tools of its own");
        }
        json_object_del(function, "type");
        json_array_append_new(nested,
                              json_pack("{s:s,s:o}", "type", "function", "function", function));
    }
    return json_object_set_new(root, "tools", nested) < 0 ? fail_memory(error) : 0;
}

/* Keeps what the response repeats, before anything is rewritten. */
static void keep_echo(const json_t *root, struct buffer *echo)
{
    static const struct {
        const char *key, *otherwise;
    } keys[] = {{"instructions", "null"},
                {"max_output_tokens", "null"},
                {"metadata", "{}"},
                {"parallel_tool_calls", "true"},
                {"tool_choice", "\"auto\""},
                {"tools", "[]"},
                {"user", "null"}};

    for (size_t i = 0; i < LL_COUNT(keys); i++) {
        const json_t *value = json_object_get(root, keys[i].key);
        char *text = is_given(value) ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
        buffer_printf(echo, ",\"%s\":", keys[i].key);
        buffer_text(echo, text != NULL ? text : keys[i].otherwise);
        echo->has_failed = echo->has_failed || (is_given(value) && text == NULL);
        free(text);
    }
    buffer_text(echo, ",\"background\":false,\"previous_response_id\":null,\"reasoning\":{"
                      "\"effort\":null,\"summary\":null},\"service_tier\":\"default\",\"store\":"
                      "false,\"text\":{\"format\":{\"type\":\"text\"}},\"truncation\":"
                      "\"disabled\"");
}

static int read_limits(json_t *root, struct response *out, struct api_error *error)
{
    json_t *most = json_object_get(root, "max_output_tokens");
    const json_t *include = json_object_get(root, "include");

    if (is_given(most) && (!json_is_integer(most) || json_integer_value(most) < 1))
        return api_fail(error, 400, "max_output_tokens",
                        "`max_output_tokens` must be a whole number from 1 on");
    if (is_given(most))
        json_object_set(root, "max_completion_tokens", most);
    for (size_t i = 0; i < json_array_size(include); i++)
        out->wants_logprobs = out->wants_logprobs ||
                              is_text(json_array_get(include, i), "message.output_text.logprobs");
    if (json_integer_value(json_object_get(root, "top_logprobs")) > 0)
        out->wants_logprobs = true;
    return json_object_set_new(root, "logprobs", json_boolean(out->wants_logprobs)) < 0
               ? fail_memory(error)
               : 0;
}

int responses_read(json_t *root, struct response *out, struct api_error *error)
{
    if (check_refused(root, error) < 0)
        return -1;
    keep_echo(root, &out->echo);
    if (out->echo.has_failed)
        return fail_memory(error);
    if (read_input(root, error) < 0 || read_tools(root, error) < 0)
        return -1;
    return read_limits(root, out, error);
}
