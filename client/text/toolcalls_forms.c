/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/toolcalls_forms.c - one byte of a call, form by form (toolcalls.c). */
#include "client/text/toolcalls_impl.h"

#include "base/bits.h"

#include <string.h>

/* ---- OBJECT -----------------------------------------------------------------------------------*/

/* A whole key or name stands in word as JSON text; to text, at most LL_TOOL_NAME_MAX bytes of it.
 */
static size_t read_word(const struct ll_toolcalls *calls, char text[LL_TOOL_NAME_MAX + 1])
{
    struct ll_json json;

    ll_json_init(&json, calls->word, calls->n_word, 0);
    if (ll_json_next(&json) != LL_JSON_STRING)
        return SIZE_MAX;
    return ll_json_string(&json, text, LL_TOOL_NAME_MAX);
}

static enum key find_key(const struct ll_toolcalls *calls)
{
    char text[LL_TOOL_NAME_MAX + 1];
    size_t n = read_word(calls, text);

    if (!calls->has_name && n == 4 && memcmp(text, "name", 4) == 0)
        return KEY_NAME;
    if (!calls->has_arguments && n == 10 && memcmp(text, "parameters", 10) == 0)
        return KEY_ARGUMENTS;
    if (!calls->has_arguments && n == 9 && memcmp(text, "arguments", 9) == 0)
        return KEY_ARGUMENTS;
    return KEY_OTHER;
}

void ll_toolcalls_take_key_start(struct ll_toolcalls *calls, char c)
{
    if (ll_is_json_space(c))
        return;
    if (c != '"') {
        ll_toolcalls_fault(calls, c);
        return;
    }
    calls->n_word = 0;
    ll_literal_init(&calls->literal, false);
    calls->state = ST_KEY;
    ll_toolcalls_take(calls, c);
}

void ll_toolcalls_take_key(struct ll_toolcalls *calls, char c)
{
    enum ll_literal_result result = ll_literal_feed(&calls->literal, c);

    if (result < 0 || !ll_toolcalls_put_word(calls, calls->literal.out, calls->literal.n_out)) {
        ll_toolcalls_fault(calls, c);
    } else if (result == LL_LITERAL_DONE) {
        calls->key = find_key(calls);
        calls->state = ST_COLON;
    }
}

void ll_toolcalls_take_value_start(struct ll_toolcalls *calls, char c)
{
    bool fits = calls->key == KEY_OTHER || (calls->key == KEY_NAME && c == '"') ||
                (calls->key == KEY_ARGUMENTS && (c == '{' || c == 'n'));

    if (ll_is_json_space(c))
        return;
    if (!fits) {
        ll_toolcalls_fault(calls, c);
        return;
    }
    calls->n_word = 0;
    ll_literal_init(&calls->literal, false);
    calls->state = ST_IN_VALUE;
    if (calls->key == KEY_ARGUMENTS) {
        calls->is_null = c == 'n';
        if (calls->has_name && !calls->is_null)
            ll_toolcalls_commit(calls);
    }
    ll_toolcalls_take(calls, c);
}

static bool end_value(struct ll_toolcalls *calls)
{
    char text[LL_TOOL_NAME_MAX + 1];

    calls->state = ST_VALUE_END;
    if (calls->key == KEY_ARGUMENTS) {
        calls->has_arguments = true;
        if (calls->is_null)
            ll_toolcalls_append(calls, &calls->arguments, "{}",
                                2); /* no arguments, in another spelling */
    } else if (calls->key == KEY_NAME) {
        size_t n = read_word(calls, text);
        if (n > LL_TOOL_NAME_MAX || !ll_toolcalls_set_name(calls, text, n))
            return false;
    }
    if (calls->has_name && calls->has_arguments && !calls->is_committed)
        ll_toolcalls_commit(calls);
    return true;
}

void ll_toolcalls_take_value(struct ll_toolcalls *calls, char c)
{
    enum ll_literal_result result = ll_literal_feed(&calls->literal, c);
    const char *out = calls->literal.out;
    size_t n_out = calls->literal.n_out;
    bool is_good = result >= 0;

    if (is_good && calls->key == KEY_NAME)
        is_good = ll_toolcalls_put_word(calls, out, n_out);
    else if (is_good && calls->key == KEY_ARGUMENTS && !calls->is_null)
        ll_toolcalls_put_arguments(calls, out, n_out);
    if (is_good && result != LL_LITERAL_MORE)
        is_good = end_value(calls);
    if (!is_good)
        ll_toolcalls_fault(calls, c);
    else if (result == LL_LITERAL_BEFORE)
        ll_toolcalls_take(calls, c);
}

void ll_toolcalls_take_value_end(struct ll_toolcalls *calls, char c)
{
    if (ll_is_json_space(c))
        return;
    if (c == ',')
        calls->state = ST_NEXT_KEY;
    else if (c == '}' && calls->is_committed)
        ll_toolcalls_end_call(calls, ST_AFTER_CALL);
    else
        ll_toolcalls_fault(calls, c);
}

/* ---- PYTHON, DOT_CALL -------------------------------------------------------------------------*/

static bool set_called_name(struct ll_toolcalls *calls)
{
    static const char suffix[] = ".call";
    size_t n = calls->n_word, n_suffix = sizeof(suffix) - 1;

    if (ll_toolcalls_set_name(calls, calls->word, n))
        return true;
    return calls->form == FORM_DOT_CALL && n > n_suffix &&
           memcmp(calls->word + n - n_suffix, suffix, n_suffix) == 0 &&
           ll_toolcalls_set_name(calls, calls->word, n - n_suffix);
}

void ll_toolcalls_take_name(struct ll_toolcalls *calls, char c)
{
    if (c == '(' && set_called_name(calls)) {
        ll_literal_init_call(&calls->literal);
        calls->state = ST_ARGUMENTS;
    } else if (!(ll_is_name_char(c) || c == '.' || c == '-') ||
               !ll_toolcalls_put_word(calls, &c, 1)) {
        ll_toolcalls_fault(calls, c);
    }
}

void ll_toolcalls_take_arguments(struct ll_toolcalls *calls, char c)
{
    enum ll_literal_result result = ll_literal_feed(&calls->literal, c);

    if (result < 0) {
        ll_toolcalls_fault(calls, c);
        return;
    }
    ll_toolcalls_put_arguments(calls, calls->literal.out, calls->literal.n_out);
    if (!calls->is_committed && (calls->literal.has_key || result == LL_LITERAL_DONE))
        ll_toolcalls_commit(calls);
    if (result == LL_LITERAL_DONE)
        ll_toolcalls_end_call(calls, ST_AFTER_CALL);
}

/* ---- TAG --------------------------------------------------------------------------------------*/

void ll_toolcalls_take_tag_open(struct ll_toolcalls *calls, char c)
{
    static const char open[] = "<function=";

    if (c != open[calls->n_match])
        ll_toolcalls_fault(calls, c);
    else if (open[++calls->n_match] == '\0')
        calls->state = ST_TAG_NAME;
}

void ll_toolcalls_take_tag_name(struct ll_toolcalls *calls, char c)
{
    if (c == '>' && ll_toolcalls_set_name(calls, calls->word, calls->n_word))
        calls->state = ST_TAG_BODY;
    else if (c == '>' || !ll_toolcalls_put_word(calls, &c, 1))
        ll_toolcalls_fault(calls, c);
}

void ll_toolcalls_take_tag_body(struct ll_toolcalls *calls, char c)
{
    if (ll_is_json_space(c))
        return;
    if (c != '{') {
        ll_toolcalls_fault(calls, c);
        return;
    }
    ll_toolcalls_commit(calls);
    ll_literal_init(&calls->literal, false);
    calls->state = ST_TAG_ARGUMENTS;
    ll_toolcalls_take(calls, c);
}

void ll_toolcalls_take_tag_arguments(struct ll_toolcalls *calls, char c)
{
    enum ll_literal_result result = ll_literal_feed(&calls->literal, c);

    if (result < 0) {
        ll_toolcalls_fault(calls, c);
        return;
    }
    ll_toolcalls_emit(calls, LL_TOOL_ARGUMENTS, calls->literal.out, calls->literal.n_out);
    if (result == LL_LITERAL_DONE)
        ll_toolcalls_end_call(calls, ST_TAG_CLOSE);
}

void ll_toolcalls_take_tag_close(struct ll_toolcalls *calls, char c)
{
    static const char close[] = "</function>";

    if (calls->n_match == 0 && ll_is_json_space(c))
        return;
    if (c != close[calls->n_match])
        ll_toolcalls_fault(calls, c);
    else if (close[++calls->n_match] == '\0')
        ll_toolcalls_end_call(calls, ST_AFTER_CALL);
}
