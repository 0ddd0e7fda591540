/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/http/prompt.h"

#include "base/bits.h"

#include <errno.h>
#include <stdlib.h>

#define MESSAGES_MAX 8192

static int fail_memory(struct api_error *error)
{
    return api_fail(error, 503, NULL, "no memory for the request");
}

/* ---- chat -------------------------------------------------------------------------------------*/

struct messages {
    struct ll_chat_message *list;
    uint32_t n, n_max;
    char **owned; /* texts made here, [n_owned] */
    uint32_t n_owned, n_owned_max;
};

static void messages_free(struct messages *messages)
{
    for (uint32_t i = 0; i < messages->n_owned; i++)
        free(messages->owned[i]);
    free(messages->owned);
    free(messages->list);
}

static int own(struct messages *messages, char *text, struct api_error *error)
{
    if (text == NULL)
        return fail_memory(error);
    if (messages->n_owned == messages->n_owned_max) {
        uint32_t wanted = messages->n_owned_max * 2 + 16;
        char **larger = realloc(messages->owned, wanted * sizeof(*larger));
        if (larger == NULL) {
            free(text);
            return fail_memory(error);
        }
        messages->owned = larger;
        messages->n_owned_max = wanted;
    }
    messages->owned[messages->n_owned++] = text;
    return 0;
}

static int add_message(struct messages *messages, const struct ll_chat_message *message,
                       struct api_error *error)
{
    if (messages->n == MESSAGES_MAX)
        return api_fail(error, 400, "messages", "`messages` may hold %d messages at most",
                        MESSAGES_MAX);
    if (messages->n == messages->n_max) {
        uint32_t wanted = messages->n_max * 2 + 16;
        struct ll_chat_message *larger = realloc(messages->list, wanted * sizeof(*larger));
        if (larger == NULL)
            return fail_memory(error);
        messages->list = larger;
        messages->n_max = wanted;
    }
    messages->list[messages->n++] = *message;
    return 0;
}

/* Text parts, joined by line ends. */
static int join_parts(struct messages *messages, const json_t *parts,
                      struct ll_chat_message *message, struct api_error *error)
{
    struct buffer text = {0};

    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *value = json_is_string(part) ? part : json_object_get(part, "text");
        bool is_text = json_is_string(part) || (type != NULL && strcmp(type, "text") == 0);
        if (!is_text || !json_is_string(value)) {
            buffer_free(&text);
            return api_fail(error, 400, "messages",
                            "a message's content part must be {\"type\": \"text\", \"text\": ...}: "
                            "this model reads text only");
        }
        if (i > 0)
            buffer_put(&text, "\n", 1);
        buffer_put(&text, json_string_value(value), json_string_length(value));
    }
    message->n_content = text.n;
    buffer_put(&text, "", 1);
    message->content = text.data;
    if (text.has_failed) {
        buffer_free(&text);
        return fail_memory(error);
    }
    return own(messages, text.data, error);
}

/* Each call becomes a message of its own: the format knows one call a message. The arguments are a
 * string in OpenAI's form, an object in others. */
static int add_calls(struct messages *messages, const json_t *calls, struct api_error *error)
{
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *function = json_object_get(json_array_get(calls, i), "function");
        const json_t *arguments = json_object_get(function, "arguments");
        struct ll_chat_message message = {.role = "assistant"};
        message.tool_name = json_string_value(json_object_get(function, "name"));
        if (message.tool_name == NULL || (!json_is_string(arguments) && !json_is_object(arguments)))
            return api_fail(error, 400, "messages",
                            "a tool call of a message needs function.name and function.arguments");
        message.tool_arguments = json_string_value(arguments);
        message.n_tool_arguments = json_string_length(arguments);
        if (json_is_object(arguments)) {
            char *text = json_dumps(arguments, JSON_REAL_PRECISION(15));
            if (own(messages, text, error) < 0)
                return -1;
            message.tool_arguments = text;
            message.n_tool_arguments = strlen(text);
        } else if (message.n_tool_arguments == 0) {
            message.tool_arguments = "{}";
            message.n_tool_arguments = 2;
        }
        if (add_message(messages, &message, error) < 0)
            return -1;
    }
    return 0;
}

static int read_message(struct messages *messages, const json_t *json, struct api_error *error)
{
    const json_t *content = json_object_get(json, "content");
    const json_t *calls = json_object_get(json, "tool_calls");
    struct ll_chat_message message = {.role = json_string_value(json_object_get(json, "role"))};

    if (message.role == NULL)
        return api_fail(error, 400, "messages", "each message must be an object with a `role`");
    if (strcmp(message.role, "function") == 0)
        message.role = "tool";
    if (json_array_size(calls) > 0) {
        if (strcmp(message.role, "assistant") != 0)
            return api_fail(error, 400, "messages", "only an assistant's message has tool_calls");
        return add_calls(messages, calls, error);
    }
    message.content = "";
    if (json_is_string(content)) {
        message.content = json_string_value(content);
        message.n_content = json_string_length(content);
    } else if (json_is_array(content)) {
        if (join_parts(messages, content, &message, error) < 0)
            return -1;
    } else if (content != NULL && !json_is_null(content)) {
        return api_fail(error, 400, "messages",
                        "a message's `content` must be a string or an array of text parts");
    }
    return add_message(messages, &message, error);
}

static int read_kwargs(const json_t *root, struct ll_chat *chat, struct api_error *error)
{
    const json_t *kwargs = json_object_get(root, "chat_template_kwargs");
    const json_t *date = json_object_get(kwargs, "date_string");
    const json_t *generation = json_object_get(root, "add_generation_prompt");

    if (kwargs != NULL && !json_is_null(kwargs) && !json_is_object(kwargs))
        return api_fail(error, 400, "chat_template_kwargs",
                        "`chat_template_kwargs` must be an object");
    if (date != NULL && !json_is_string(date))
        return api_fail(error, 400, "chat_template_kwargs", "`date_string` must be a string");
    if (json_is_false(json_object_get(kwargs, "tools_in_user_message")))
        chat->flags |= LL_CHAT_TOOLS_IN_SYSTEM;
    if (json_is_false(generation))
        chat->flags |= LL_CHAT_NO_GENERATION;
    chat->date = json_string_value(date);
    return 0;
}

static int encode_chat(const struct ll_chat *chat, const struct link *link, struct prompt *out,
                       struct api_error *error)
{
    int64_t n = ll_chat_encode(link->tokenizer, chat, NULL, 0);
    uint32_t *ids = n >= 0 ? calloc((size_t)n + 1, sizeof(*ids)) : NULL;

    if (n < 0)
        return api_fail_code(error, (int)n, "messages");
    if (ids == NULL)
        return fail_memory(error);
    int64_t again = ll_chat_encode(link->tokenizer, chat, ids, (size_t)n);
    if (again != n) {
        free(ids);
        return api_fail(error, 500, NULL, "the prompt could not be encoded");
    }
    *out = (struct prompt){.ids = ids, .n = (uint32_t)n};
    return 0;
}

int prompt_from_chat(const json_t *root, const json_t *tools, const struct link *link,
                     struct prompt *out, struct api_error *error)
{
    const json_t *list = json_object_get(root, "messages");
    struct ll_chat chat = {.struct_bytes = sizeof(chat), .format = link->chat_format};
    struct messages messages = {0};
    char *tools_json = NULL;
    int rc = 0;

    if (link->tokenizer == NULL || link->chat_format == LL_CHAT_NONE)
        return api_fail(error, 400, NULL,
                        "model %s has no chat format: use /v1/completions, or name one at the "
                        "runtime with --chat-template",
                        link_model(link)->name);
    if (!json_is_array(list) || json_array_size(list) == 0)
        return api_fail(error, 400, "messages", "`messages` must be an array of messages");
    for (size_t i = 0; i < json_array_size(list) && rc == 0; i++)
        rc = read_message(&messages, json_array_get(list, i), error);
    if (rc == 0)
        rc = read_kwargs(root, &chat, error);
    if (rc == 0 && tools != NULL) {
        tools_json = json_dumps(tools, JSON_COMPACT | JSON_REAL_PRECISION(15));
        if (tools_json == NULL)
            rc = fail_memory(error);
    }
    if (rc == 0) {
        chat.messages = messages.list;
        chat.n_messages = messages.n;
        chat.tools_json = tools_json;
        chat.n_tools_json = tools_json != NULL ? strlen(tools_json) : 0;
        rc = encode_chat(&chat, link, out, error);
    }
    free(tools_json);
    messages_free(&messages);
    return rc;
}

/* ---- raw prompts ------------------------------------------------------------------------------*/

int prompt_from_text(const char *text, size_t n_text, bool adds_special, const struct link *link,
                     struct prompt *out, struct api_error *error)
{
    uint32_t flags = LL_ENCODE_SPECIAL | (adds_special ? LL_ENCODE_BOS : 0);

    if (link->tokenizer == NULL)
        return api_fail(error, 400, "prompt",
                        "model %s has no tokenizer: send token ids instead of text",
                        link_model(link)->name);
    size_t n_max = n_text + 1;
    uint32_t *ids = calloc(n_max, sizeof(*ids));
    if (ids == NULL)
        return fail_memory(error);
    int64_t n = ll_encode(link->tokenizer, text, n_text, flags, ids, n_max);
    if (n < 0 || (uint64_t)n > n_max) {
        free(ids);
        return api_fail(error, 500, "prompt", "the prompt could not be encoded");
    }
    *out = (struct prompt){.ids = ids, .n = (uint32_t)n, .text = text, .n_text = n_text};
    return 0;
}

static int prompt_from_ids(const json_t *list, const struct link *link, struct prompt *out,
                           struct api_error *error)
{
    size_t n = json_array_size(list);
    uint32_t *ids = calloc(n + 1, sizeof(*ids));

    if (ids == NULL)
        return fail_memory(error);
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(list, i);
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id >= link->info.n_vocab) {
            free(ids);
            return api_fail(error, 400, "prompt",
                            "`prompt` holds something at %zu that is no token id of this model "
                            "(0 to %u)",
                            i, link->info.n_vocab - 1);
        }
        ids[i] = (uint32_t)id;
    }
    *out = (struct prompt){.ids = ids, .n = (uint32_t)n};
    return 0;
}

static int prompt_from_value(const json_t *value, bool adds_special, const struct link *link,
                             struct prompt *out, struct api_error *error)
{
    int rc;

    if (json_is_string(value))
        rc = prompt_from_text(json_string_value(value), json_string_length(value), adds_special,
                              link, out, error);
    else if (json_is_array(value))
        rc = prompt_from_ids(value, link, out, error);
    else
        rc = api_fail(error, 400, "prompt",
                      "`prompt` must be a string, an array of token ids, or an array of these");
    if (rc == 0 && out->n == 0) {
        free(out->ids);
        rc = api_fail(error, 400, "prompt", "`prompt` is empty: it must have one token at least");
    }
    return rc;
}

int prompts_from_field(const json_t *root, bool adds_special, const struct link *link,
                       struct prompt **out, uint32_t *n_out, struct api_error *error)
{
    const json_t *value = json_object_get(root, "prompt");
    const json_t *first = json_array_get(value, 0);
    bool is_batch = json_is_array(value) && !json_is_integer(first);
    size_t n = is_batch ? json_array_size(value) : 1;

    if (n == 0 || n > PROMPTS_MAX)
        return api_fail(error, 400, "prompt", "`prompt` must hold 1 to %d prompts", PROMPTS_MAX);
    struct prompt *prompts = calloc(n, sizeof(*prompts));
    if (prompts == NULL)
        return fail_memory(error);
    for (size_t i = 0; i < n; i++)
        if (prompt_from_value(is_batch ? json_array_get(value, i) : value, adds_special, link,
                              &prompts[i], error) < 0) {
            prompts_free(prompts, (uint32_t)i);
            return -1;
        }
    *out = prompts;
    *n_out = (uint32_t)n;
    return 0;
}

void free_prompt(struct prompt *prompt)
{
    free(prompt->ids);
    *prompt = (struct prompt){0};
}

void prompts_free(struct prompt *prompts, uint32_t n)
{
    for (uint32_t i = 0; prompts != NULL && i < n; i++)
        free_prompt(&prompts[i]);
    free(prompts);
}
