/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/llring/messages.h"

#include "base/err.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MESSAGES_MAX 4096

/* The one call in "tool_calls"; its arguments are a string in OpenAI's form, an object in others.
 */
static int read_tool_call(const json_t *calls, struct ll_chat_message *out, char **owned)
{
    const json_t *function = json_object_get(json_array_get(calls, 0), "function");
    const json_t *arguments;

    if (!json_is_array(calls) || json_array_size(calls) != 1)
        return LL_ERR(LL_E_INVAL, "\"tool_calls\" must hold one call: the format has no more");
    if (function == NULL)
        function = json_array_get(calls, 0);
    out->tool_name = json_string_value(json_object_get(function, "name"));
    arguments = json_object_get(function, "arguments");
    if (out->tool_name == NULL || (!json_is_string(arguments) && !json_is_object(arguments)))
        return LL_ERR(LL_E_INVAL, "a tool call needs \"name\" and \"arguments\"");
    if (json_is_string(arguments)) {
        out->tool_arguments = json_string_value(arguments);
        out->n_tool_arguments = json_string_length(arguments);
        return 0;
    }
    *owned = json_dumps(arguments, 0);
    if (*owned == NULL)
        return LL_ERR(-ENOMEM, "no memory for a tool call");
    out->tool_arguments = *owned;
    out->n_tool_arguments = strlen(*owned);
    return 0;
}

static int read_message(const json_t *message, struct ll_chat_message *out, char **owned)
{
    const json_t *content = json_object_get(message, "content");
    const json_t *calls = json_object_get(message, "tool_calls");

    *out = (struct ll_chat_message){.role = json_string_value(json_object_get(message, "role"))};
    if (out->role == NULL)
        return LL_ERR(LL_E_INVAL, "a message needs a \"role\"");
    if (content != NULL && !json_is_string(content) && !json_is_null(content))
        return LL_ERR(LL_E_INVAL, "\"content\" of a message must be a string");
    out->content = json_string_value(content);
    out->n_content = json_string_length(content);
    if (json_array_size(calls) > 0)
        return read_tool_call(calls, out, owned);
    if (out->content == NULL)
        return LL_ERR(LL_E_INVAL, "a message needs \"content\"");
    return 0;
}

static int render(const struct ll_chat *chat, char **text_out)
{
    int64_t n_bytes = ll_chat_render(chat, NULL, 0);
    char *text = n_bytes >= 0 ? calloc((size_t)n_bytes + 1, 1) : NULL;

    if (n_bytes < 0)
        return (int)n_bytes;
    if (text == NULL)
        return LL_ERR(-ENOMEM, "no memory for a prompt of %lld bytes", (long long)n_bytes);
    ll_chat_render(chat, text, (size_t)n_bytes);
    *text_out = text;
    return 0;
}

int messages_encode(struct connection *connection, const json_t *messages, const json_t *tools,
                    const char *system, uint32_t **ids, uint32_t *n, char **text_out)
{
    size_t n_messages = json_array_size(messages), n_before = 0;
    const char *first_role =
        json_string_value(json_object_get(json_array_get(messages, 0), "role"));
    struct ll_chat chat = {.struct_bytes = sizeof(chat),
                           .format = ll_chat_format_find(connection->info.chat_format)};
    char *tools_json = NULL;
    int rc = 0;

    if (!json_is_array(messages) || n_messages == 0 || n_messages > MESSAGES_MAX)
        return LL_ERR(LL_E_INVAL, "\"messages\" must be an array of 1 to %d messages",
                      MESSAGES_MAX);
    struct ll_chat_message *list = calloc(n_messages + 1, sizeof(*list));
    char **owned = calloc(n_messages + 1, sizeof(*owned));
    if (list == NULL || owned == NULL)
        rc = LL_ERR(-ENOMEM, "no memory for %zu messages", n_messages);
    if (rc == 0 && system != NULL && first_role != NULL && strcmp(first_role, "system") != 0)
        list[n_before++] = (struct ll_chat_message){
            .role = "system", .content = system, .n_content = strlen(system)};
    for (size_t i = 0; i < n_messages && rc == 0; i++)
        rc = read_message(json_array_get(messages, i), &list[n_before + i], &owned[i]);
    if (rc == 0 && json_array_size(tools) > 0) {
        tools_json = json_dumps(tools, JSON_COMPACT);
        if (tools_json == NULL)
            rc = LL_ERR(-ENOMEM, "no memory for the tools");
    }
    if (rc == 0) {
        chat.messages = list;
        chat.n_messages = (uint32_t)(n_before + n_messages);
        chat.tools_json = tools_json;
        chat.n_tools_json = tools_json != NULL ? strlen(tools_json) : 0;
        rc = connection_encode_chat(connection, &chat, ids, n);
    }
    if (rc == 0 && text_out != NULL)
        rc = render(&chat, text_out);
    for (size_t i = 0; owned != NULL && i < n_messages; i++)
        free(owned[i]);
    free(owned);
    free(list);
    free(tools_json);
    return rc;
}
