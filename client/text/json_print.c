/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/json_print.c - JSON in Python's json.dumps form, and the sink it goes to. */
#include "client/text/json.h"

#include <stdio.h>
#include <string.h>

void ll_sink_put(struct ll_sink *sink, const char *bytes, size_t n_bytes)
{
    if (sink->n < sink->capacity) {
        size_t room = sink->capacity - sink->n;
        memcpy(sink->bytes + sink->n, bytes, n_bytes < room ? n_bytes : room);
    }
    sink->n += n_bytes;
}

void ll_sink_puts(struct ll_sink *sink, const char *text)
{
    ll_sink_put(sink, text, strlen(text));
}

/* The escape json.dumps uses for c; NULL: c stands for itself. buffer holds \u00xx. */
static const char *escape_of(char c, char buffer[8])
{
    switch (c) {
    case '"':
        return "\\\"";
    case '\\':
        return "\\\\";
    case '\b':
        return "\\b";
    case '\f':
        return "\\f";
    case '\n':
        return "\\n";
    case '\r':
        return "\\r";
    case '\t':
        return "\\t";
    default:
        if ((unsigned char)c >= 0x20)
            return NULL;
        snprintf(buffer, 8, "\\u%04x", (unsigned)(unsigned char)c);
        return buffer;
    }
}

/* Escapes what stands between quotes. */
static void put_escaped(struct ll_sink *sink, const char *text, size_t n_bytes)
{
    size_t from = 0;
    char buffer[8];

    for (size_t i = 0; i < n_bytes; i++) {
        const char *escape = escape_of(text[i], buffer);
        if (escape == NULL)
            continue;
        ll_sink_put(sink, text + from, i - from);
        ll_sink_puts(sink, escape);
        from = i + 1;
    }
    ll_sink_put(sink, text + from, n_bytes - from);
}

void ll_json_quote(struct ll_sink *sink, const char *text, size_t n_bytes)
{
    ll_sink_put(sink, "\"", 1);
    put_escaped(sink, text, n_bytes);
    ll_sink_put(sink, "\"", 1);
}

/* The last KEY or STRING of a reader, escaped anew: "\u00e9" and "\/" lose their escapes. */
static void put_string(struct ll_sink *sink, const struct ll_json *json)
{
    ll_sink_put(sink, "\"", 1);
    if (!json->has_escapes) {
        put_escaped(sink, json->span, json->n_span);
    } else {
        /* Resolve and escape run by run, so that no buffer must hold the whole string. A run ends
         * only before a backslash or at the end: runs are whole characters. */
        struct ll_json part = *json;
        const char *end = json->span + json->n_span;
        for (const char *p = json->span; p < end;) {
            char bytes[4];
            size_t length = 1;
            if (*p == '\\') {
                bool is_pair = p[1] == 'u' && end - p >= 12 && p[6] == '\\' && p[7] == 'u' &&
                               (p[2] == 'd' || p[2] == 'D') && strchr("89abAB", p[3]) != NULL;
                length = p[1] != 'u' ? 2 : is_pair ? 12 : 6;
                part.span = p;
                part.n_span = length;
                put_escaped(sink, bytes, ll_json_string(&part, bytes, sizeof(bytes)));
            } else {
                const char *stop = memchr(p, '\\', (size_t)(end - p));
                length = (size_t)((stop != NULL ? stop : end) - p);
                put_escaped(sink, p, length);
            }
            p += length;
        }
    }
    ll_sink_put(sink, "\"", 1);
}

static void put_newline(struct ll_sink *sink, uint32_t n_spaces)
{
    ll_sink_put(sink, "\n", 1);
    for (uint32_t i = 0; i < n_spaces; i++)
        ll_sink_put(sink, " ", 1);
}

int ll_json_print(struct ll_sink *sink, const char *text, size_t n_bytes, uint32_t indent,
                  const char *what)
{
    struct ll_json json;
    enum ll_json_token token, before = LL_JSON_END;

    ll_json_init(&json, text, n_bytes, 0);
    while ((token = ll_json_next(&json)) > LL_JSON_END) {
        bool is_end = token == LL_JSON_OBJECT_END || token == LL_JSON_ARRAY_END;
        bool follows_opening = before == LL_JSON_OBJECT || before == LL_JSON_ARRAY;

        /* What separates this token from the one before it. */
        if (is_end) {
            if (!follows_opening && indent > 0)
                put_newline(sink, json.depth * indent);
        } else if (before != LL_JSON_KEY && before != LL_JSON_END) {
            bool opens = token == LL_JSON_OBJECT || token == LL_JSON_ARRAY;
            if (!follows_opening)
                ll_sink_puts(sink, indent > 0 ? "," : ", ");
            if (indent > 0)
                put_newline(sink, (json.depth - opens) * indent);
        }
        if (token == LL_JSON_KEY || token == LL_JSON_STRING)
            put_string(sink, &json);
        else
            ll_sink_put(sink, json.span, json.n_span);
        if (token == LL_JSON_KEY)
            ll_sink_puts(sink, ": ");
        before = token;
    }
    return token == LL_JSON_ERROR ? ll_json_fail(&json, what, NULL) : 0;
}
