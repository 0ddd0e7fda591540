/* SPDX-License-Identifier: Apache-2.0 */
/* Llama 3.1's and 3.2's chat format: what their Jinja templates print, byte for byte.
 *
 *   begin_of_text
 *   H(system)  [Environment: ipython] dates [tools] system content  eot      always there
 *   H(user)    [tools] content  eot
 *   H(assistant) content | {"name": ..., "parameters": {...}}  eot
 *   H(ipython) tool result as a JSON string  eot
 *   H(assistant)                                              unless LL_CHAT_NO_GENERATION
 *
 * H(r) = start_header r end_header, two line feeds. 3.2 differs in the date only: today instead of
 * a constant. The templates' built-in tools are not offered.
 *
 * Where the templates print nonsense this refuses: tools when the first message after the system
 * one is not the user's (they would present an assistant's words as the user's), a key twice in a
 * JSON object (Python keeps the last). And one difference of text: numbers in tools and tool
 * arguments keep the text they came with, where Python prints its own (1e2 as 100.0). */
#include "client/text/chat.h"

#include "base/bits.h"
#include "base/err.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define TOOLS_INTRO_SYSTEM                                                                         \
    "You have access to the following functions. To call a function, please respond with JSON "    \
    "for a function call."
#define TOOLS_INTRO_USER                                                                           \
    "Given the following functions, please respond with a JSON for a function call with its "      \
    "proper arguments that best answers the given prompt.\n\n"
#define TOOLS_FORMAT                                                                               \
    "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name " \
    "and its value}.Do not use variables.\n\n"

enum role { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL };

static int find_role(enum role *out, const struct ll_chat_message *message, uint32_t index)
{
    static const struct {
        const char *name;
        enum role role;
    } roles[] = {
        {"system", ROLE_SYSTEM},       {"developer", ROLE_SYSTEM}, {"user", ROLE_USER},
        {"assistant", ROLE_ASSISTANT}, {"tool", ROLE_TOOL},        {"ipython", ROLE_TOOL},
    };

    for (size_t i = 0; i < LL_COUNT(roles); i++)
        if (message->role != NULL && strcmp(message->role, roles[i].name) == 0) {
            *out = roles[i].role;
            if (message->tool_name != NULL && *out != ROLE_ASSISTANT)
                return LL_ERR(LL_E_INVAL,
                              "messages[%u]: a tool call in a message of role \"%s\"; only "
                              "\"assistant\" calls tools",
                              index, message->role);
            return 0;
        }
    return LL_ERR(LL_E_INVAL,
                  "messages[%u]: role must be system, developer, user, assistant, tool or ipython",
                  index);
}

static void put_header(struct ll_chat_writer *writer, const char *role)
{
    ll_chat_put_marker(writer, LL_MARK_START_HEADER);
    ll_sink_puts(&writer->text, role);
    ll_chat_put_marker(writer, LL_MARK_END_HEADER);
    ll_sink_puts(&writer->text, "\n\n");
}

static void put_trimmed(struct ll_chat_writer *writer, const struct ll_chat_message *message)
{
    const char *text = message->content;
    size_t n_bytes = text != NULL ? message->n_content : 0;

    if (n_bytes == 0)
        return;
    ll_chat_trim(&text, &n_bytes);
    ll_sink_put(&writer->text, text, n_bytes);
}

/* Each tool as JSON with an indent of 4, an empty line after it. */
static int put_tools(struct ll_chat_writer *writer, const struct ll_chat *chat)
{
    struct ll_json json;
    const char *span;
    size_t n_span;
    enum ll_json_token token;

    ll_sink_puts(&writer->text, TOOLS_FORMAT);
    ll_json_init(&json, chat->tools_json, chat->n_tools_json, 0);
    if (ll_json_next(&json) != LL_JSON_ARRAY)
        return ll_json_fail(&json, "tools", "expected an array");
    while ((token = ll_json_skip(&json, &span, &n_span)) > LL_JSON_END &&
           token != LL_JSON_ARRAY_END) {
        int rc = ll_json_print(&writer->text, span, n_span, 4, "tools");
        if (rc < 0)
            return rc;
        ll_sink_puts(&writer->text, "\n\n");
    }
    return token == LL_JSON_ARRAY_END ? 0 : ll_json_fail(&json, "tools", NULL);
}

/* ---- the system block -------------------------------------------------------------------------*/

void ll_chat_llama3_date(enum ll_chat_format format, char out[LL_CHAT_DATE_BYTES])
{
    static const char months[12][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                       "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    time_t now = time(NULL);
    struct tm today;

    /* Local time, as strftime_now() of the template; the constant also where there is no clock. */
    if (format != LL_CHAT_LLAMA3_2 || localtime_r(&now, &today) == NULL)
        snprintf(out, LL_CHAT_DATE_BYTES, "26 Jul 2024");
    else
        snprintf(out, LL_CHAT_DATE_BYTES, "%02d %s %d", today.tm_mday, months[today.tm_mon],
                 today.tm_year + 1900);
}

/* system: the conversation's own system message; NULL: none. */
static int put_system(struct ll_chat_writer *writer, const struct ll_chat *chat,
                      const struct ll_chat_message *system)
{
    put_header(writer, "system");
    if (chat->tools_json != NULL)
        ll_sink_puts(&writer->text, "Environment: ipython\n");
    ll_sink_puts(&writer->text, "Cutting Knowledge Date: December 2023\nToday Date: ");
    ll_sink_puts(&writer->text, chat->date);
    ll_sink_puts(&writer->text, "\n\n");
    if (chat->tools_json != NULL && (chat->flags & LL_CHAT_TOOLS_IN_SYSTEM)) {
        ll_sink_puts(&writer->text, TOOLS_INTRO_SYSTEM);
        int rc = put_tools(writer, chat);
        if (rc < 0)
            return rc;
    }
    if (system != NULL)
        put_trimmed(writer, system);
    ll_chat_put_marker(writer, LL_MARK_EOT);
    return 0;
}

/* ---- the other messages -----------------------------------------------------------------------*/

static int put_user_with_tools(struct ll_chat_writer *writer, const struct ll_chat *chat,
                               const struct ll_chat_message *user)
{
    put_header(writer, "user");
    ll_sink_puts(&writer->text, TOOLS_INTRO_USER);
    int rc = put_tools(writer, chat);
    if (rc < 0)
        return rc;
    put_trimmed(writer, user);
    ll_chat_put_marker(writer, LL_MARK_EOT);
    return 0;
}

/* An assistant's tool call; what it said beside it is dropped, as the templates do. */
static int put_call(struct ll_chat_writer *writer, const struct ll_chat_message *message,
                    uint32_t index)
{
    const char *arguments = message->tool_arguments;
    size_t n_arguments = arguments != NULL ? message->n_tool_arguments : 0;
    struct ll_json json;
    char what[48];

    if (n_arguments == 0) { /* how some clients write "none" */
        arguments = "{}";
        n_arguments = 2;
    }
    snprintf(what, sizeof(what), "messages[%u]: tool arguments", index);
    int rc = ll_json_check(arguments, n_arguments, 0, LL_JSON_UNIQUE, what);
    if (rc < 0)
        return rc;
    ll_json_init(&json, arguments, n_arguments, 0);
    if (ll_json_next(&json) != LL_JSON_OBJECT)
        return ll_json_fail(&json, what, "expected an object");

    put_header(writer, "assistant");
    ll_sink_puts(&writer->text, "{\"name\": \"");
    ll_sink_puts(&writer->text, message->tool_name); /* not escaped: the templates do not either */
    ll_sink_puts(&writer->text, "\", \"parameters\": ");
    rc = ll_json_print(&writer->text, arguments, n_arguments, 0, what);
    ll_sink_puts(&writer->text, "}");
    ll_chat_put_marker(writer, LL_MARK_EOT);
    return rc;
}

static int put_message(struct ll_chat_writer *writer, const struct ll_chat_message *message,
                       uint32_t index)
{
    static const char *const names[] = {[ROLE_SYSTEM] = "system",
                                        [ROLE_USER] = "user",
                                        [ROLE_ASSISTANT] = "assistant",
                                        [ROLE_TOOL] = "ipython"};
    enum role role;
    int rc = find_role(&role, message, index);

    if (rc < 0)
        return rc;
    if (message->tool_name != NULL)
        return put_call(writer, message, index);
    put_header(writer, names[role]);
    if (role == ROLE_TOOL) /* a string "is iterable", so the templates print it as JSON */
        ll_json_quote(&writer->text, message->content != NULL ? message->content : "",
                      message->content != NULL ? message->n_content : 0);
    else
        put_trimmed(writer, message);
    ll_chat_put_marker(writer, LL_MARK_EOT);
    return 0;
}

int ll_chat_llama3_write(struct ll_chat_writer *writer, const struct ll_chat *chat)
{
    const struct ll_chat_message *system = NULL;
    enum role role;
    uint32_t next = 0;

    if (chat->n_messages == 0 || chat->messages == NULL)
        return LL_ERR(LL_E_INVAL, "messages: there is none; a chat needs at least one");
    int rc = find_role(&role, &chat->messages[0], 0);
    if (rc < 0)
        return rc;
    if (role == ROLE_SYSTEM)
        system = &chat->messages[next++];
    if (chat->tools_json != NULL) {
        rc = ll_json_check(chat->tools_json, chat->n_tools_json, 0, LL_JSON_UNIQUE, "tools");
        if (rc < 0)
            return rc;
    }

    ll_chat_put_marker(writer, LL_MARK_BEGIN_OF_TEXT);
    rc = put_system(writer, chat, system);
    if (rc == 0 && chat->tools_json != NULL && !(chat->flags & LL_CHAT_TOOLS_IN_SYSTEM)) {
        if (next < chat->n_messages)
            rc = find_role(&role, &chat->messages[next], next);
        if (rc < 0)
            return rc;
        if (next == chat->n_messages || role != ROLE_USER)
            return LL_ERR(LL_E_INVAL,
                          "messages[%u]: tools stand in the first user message, but there is none "
                          "here",
                          next);
        rc = put_user_with_tools(writer, chat, &chat->messages[next]);
        next++;
    }
    for (; next < chat->n_messages && rc == 0; next++)
        rc = put_message(writer, &chat->messages[next], next);
    if (rc == 0 && !(chat->flags & LL_CHAT_NO_GENERATION))
        put_header(writer, "assistant");
    return rc;
}
