/* SPDX-License-Identifier: Apache-2.0 */
#include "client/text/toolnames.h"

#include "client/text/json.h"

static int add_name(struct ll_tool_names *out, const struct ll_json *json)
{
    char name[LL_TOOL_NAME_MAX + 1];
    size_t n = ll_json_string(json, name, LL_TOOL_NAME_MAX);

    if (n == 0 || n > LL_TOOL_NAME_MAX || memchr(name, '\0', n) != NULL)
        return ll_json_fail(json, "tools", "a name must have 1 .. 256 bytes, none of them zero");
    if (++out->n > LL_TOOLS_MAX)
        return ll_json_fail(json, "tools", "more than 4096 tools");
    name[n] = '\0';
    return ll_bytes_append(&out->text, name, n + 1);
}

/* The members of a tool, or of its "function": adds the name found there. */
static int read_tool(struct ll_tool_names *out, struct ll_json *json, uint32_t depth)
{
    enum ll_json_token token;
    int rc = 0;

    while (rc == 0 && (token = ll_json_next(json)) == LL_JSON_KEY) {
        bool is_function = depth == 0 && ll_json_is(json, "function");
        /* {"type": "code_interpreter"} has no name of its own. */
        bool is_type = depth == 0 && ll_json_is(json, "type");
        bool is_name = ll_json_is(json, "name");
        if (!is_function && !is_name && !is_type) {
            ll_json_skip(json, NULL, NULL);
            continue;
        }
        token = ll_json_next(json);
        if (is_function && token == LL_JSON_OBJECT)
            rc = read_tool(out, json, depth + 1);
        else if (is_type && token == LL_JSON_STRING)
            rc = ll_json_is(json, LL_TOOL_CODE) ? add_name(out, json) : 0;
        else if (is_name && token == LL_JSON_STRING)
            rc = add_name(out, json);
        else
            rc = ll_json_fail(json, "tools",
                              is_function ? "function must be an object" : "must be a string");
    }
    if (rc == 0 && token != LL_JSON_OBJECT_END)
        rc = ll_json_fail(json, "tools", NULL);
    return rc;
}

int ll_tool_names_read(struct ll_tool_names *out, const char *text, size_t n_bytes)
{
    struct ll_json json;
    enum ll_json_token token;
    int rc = ll_json_check(text, n_bytes, 0, LL_JSON_UNIQUE, "tools");

    if (rc < 0)
        return rc;
    ll_json_init(&json, text, n_bytes, 0);
    if (ll_json_next(&json) != LL_JSON_ARRAY)
        return ll_json_fail(&json, "tools", "expected an array");
    while ((token = ll_json_next(&json)) == LL_JSON_OBJECT) {
        uint32_t n_before = out->n;
        rc = read_tool(out, &json, 0);
        if (rc == 0 && out->n == n_before)
            rc = ll_json_fail(&json, "tools", "a tool without a name");
        if (rc < 0)
            return rc;
    }
    return token == LL_JSON_ARRAY_END ? 0 : ll_json_fail(&json, "tools", "expected an object");
}

void ll_tool_names_free(struct ll_tool_names *names)
{
    free(names->text.at);
    *names = (struct ll_tool_names){0};
}

bool ll_tool_names_has(const struct ll_tool_names *names, const char *name, size_t n_bytes)
{
    const char *at = names->text.at, *end = at + names->text.n;

    for (; at < end; at += strlen(at) + 1)
        if (strlen(at) == n_bytes && memcmp(at, name, n_bytes) == 0)
            return true;
    return false;
}
