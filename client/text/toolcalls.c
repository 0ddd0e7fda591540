/* SPDX-License-Identifier: Apache-2.0 */
/* Tool calls in a model's output: one machine, one byte at a time.
 *
 *   OBJECT      {"name": "f", "parameters": {...}}   also "arguments", other keys are skipped;
 *               several, with `;` or `,` and white space between
 *   OBJECT_LIST [{"name": ...}, ...]
 *   PYTHON      [f(a='x', b=1), g()]
 *   DOT_CALL    f.call(query="x")                     behind <|python_tag|> only
 *   TAG         <function=f>{...}</function>
 *   code        anything else behind <|python_tag|>, where code_interpreter is among the tools
 *
 * What holds:
 *   C1  A form counts only where the message or a <|python_tag|> begins, or behind a call of the
 *       same form. Once something else has come, the rest is content.
 *   C2  A candidate's bytes are held until its name is known to be a tool's and its arguments have
 *       begun. Then it is a call for good (committed): NAME goes out whole, ARGUMENTS as they come.
 *       A candidate that fails before comes out as content, unchanged.
 *   C3  Every byte is part of a call's form, of its arguments, or of the content; the white space
 *       and separators around calls are form. A fault in a committed call ends it; the rest is
 *       content.
 *   C4  What is held never exceeds HELD_MAX: a candidate that needs more is content.
 *   C5  Only bytes and special tokens matter, never how they were cut into tokens or feeds. */
#include "client/text/toolcalls_impl.h"

#include "base/bits.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

#define HELD_MAX 65536u

void ll_toolcalls_append(struct ll_toolcalls *calls, struct ll_bytes *to, const char *text,
                         size_t n_bytes)
{
    if (calls->error == 0)
        calls->error = ll_bytes_append(to, text, n_bytes);
}

void ll_toolcalls_emit(struct ll_toolcalls *calls, enum ll_tool_event_type type, const char *text,
                       size_t n_bytes)
{
    uint32_t call = type == LL_TOOL_CONTENT ? 0 : calls->n_calls - 1;

    if (calls->error == 0)
        calls->error = ll_tool_events_add(&calls->events, type, call, text, n_bytes);
}

/* The candidate's name is this one; false: no tool has it. */
bool ll_toolcalls_set_name(struct ll_toolcalls *calls, const char *name, size_t n_bytes)
{
    if (n_bytes > LL_TOOL_NAME_MAX || !ll_tool_names_has(&calls->names, name, n_bytes))
        return false;
    memcpy(calls->name, name, n_bytes);
    calls->name[n_bytes] = '\0';
    calls->has_name = true;
    return true;
}

/* One more byte of a key or name; false: longer than any that counts. */
bool ll_toolcalls_put_word(struct ll_toolcalls *calls, const char *text, size_t n_bytes)
{
    if (n_bytes > LL_TOOLCALLS_WORD_MAX - calls->n_word)
        return false;
    memcpy(calls->word + calls->n_word, text, n_bytes);
    calls->n_word += (uint32_t)n_bytes;
    return true;
}

/* ---- how candidates end -----------------------------------------------------------------------*/

void ll_toolcalls_commit(struct ll_toolcalls *calls)
{
    calls->is_committed = true;
    calls->is_tagged = false;
    calls->held.n = 0;
    calls->n_calls++;
    ll_toolcalls_emit(calls, LL_TOOL_NAME, calls->name, strlen(calls->name));
    ll_toolcalls_emit(calls, LL_TOOL_ARGUMENTS, calls->arguments.at, calls->arguments.n);
    calls->arguments.n = 0;
}

void ll_toolcalls_put_arguments(struct ll_toolcalls *calls, const char *text, size_t n_bytes)
{
    if (calls->is_committed)
        ll_toolcalls_emit(calls, LL_TOOL_ARGUMENTS, text, n_bytes);
    else
        ll_toolcalls_append(calls, &calls->arguments, text, n_bytes);
}

static void put_code(struct ll_toolcalls *calls, const char *text, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++) {
        char quoted[10];
        struct ll_sink sink = {quoted, sizeof(quoted), 0};
        ll_json_quote(&sink, text + i, 1);
        ll_toolcalls_emit(calls, LL_TOOL_ARGUMENTS, quoted + 1, sink.n - 2);
    }
}

/* Whatever comes now is content; so is what was held of a candidate, or it is code. */
static void give_up(struct ll_toolcalls *calls)
{
    struct ll_bytes held = calls->held;

    calls->held.n = calls->arguments.n = 0;
    calls->is_committed = false;
    calls->state = ST_CONTENT;
    if (!calls->is_tagged || !calls->has_code_tool) {
        calls->is_tagged = false;
        ll_toolcalls_emit(calls, LL_TOOL_CONTENT, held.at, held.n);
        return;
    }
    static const char open[] = "{\"code\": \"";
    strcpy(calls->name, LL_TOOL_CODE);
    ll_toolcalls_commit(calls);
    ll_toolcalls_emit(calls, LL_TOOL_ARGUMENTS, open, sizeof(open) - 1);
    put_code(calls, held.at, held.n);
    calls->state = ST_CODE;
}

/* c, already held unless the call is committed, does not fit. */
void ll_toolcalls_fault(struct ll_toolcalls *calls, char c)
{
    bool was_committed = calls->is_committed;

    give_up(calls);
    if (was_committed)
        ll_toolcalls_emit(calls, LL_TOOL_CONTENT, &c, 1);
}

void ll_toolcalls_end_call(struct ll_toolcalls *calls, enum state next)
{
    calls->is_committed = false;
    calls->has_separator = false;
    calls->n_match = 0;
    calls->held.n = 0;
    calls->state = next;
}

/* Forgets the last candidate: another begins. */
static void begin(struct ll_toolcalls *calls, enum form form, enum state state)
{
    calls->form = form;
    calls->state = state;
    calls->has_name = calls->has_arguments = calls->is_null = false;
    calls->n_word = calls->n_match = 0;
    calls->arguments.n = 0;
}

/* ---- between ----------------------------------------------------------------------------------*/

static void take_start(struct ll_toolcalls *calls, char c)
{
    if (ll_is_json_space(c))
        return;
    if (c == '{')
        begin(calls, FORM_OBJECT, ST_KEY_FIRST);
    else if (c == '[')
        begin(calls, FORM_PYTHON, ST_LIST_OPEN);
    else if (c == '<')
        begin(calls, FORM_TAG, ST_TAG_OPEN), calls->n_match = 1;
    else if (calls->is_tagged && ll_is_name_start(c))
        begin(calls, FORM_DOT_CALL, ST_NAME), ll_toolcalls_put_word(calls, &c, 1);
    else
        ll_toolcalls_fault(calls, c);
}

static void take_list_open(struct ll_toolcalls *calls, char c)
{
    if (ll_is_json_space(c))
        return;
    if (c == '{')
        begin(calls, FORM_OBJECT_LIST, ST_KEY_FIRST);
    else if (ll_is_name_start(c))
        begin(calls, FORM_PYTHON, ST_NAME), ll_toolcalls_put_word(calls, &c, 1);
    else
        ll_toolcalls_fault(calls, c);
}

static void take_after_call(struct ll_toolcalls *calls, char c)
{
    enum form form = calls->form;
    bool is_list = form == FORM_OBJECT_LIST || form == FORM_PYTHON;
    bool may_follow = !is_list || calls->has_separator;

    if (ll_is_json_space(c))
        return;
    if (!calls->has_separator && (c == ',' || (c == ';' && !is_list)))
        calls->has_separator = true;
    else if (c == ']' && is_list)
        ll_toolcalls_end_call(calls, ST_LIST_END);
    else if (c == '{' && may_follow && (form == FORM_OBJECT || form == FORM_OBJECT_LIST))
        begin(calls, form, ST_KEY_FIRST);
    else if (c == '<' && form == FORM_TAG)
        begin(calls, form, ST_TAG_OPEN), calls->n_match = 1;
    else if (ll_is_name_start(c) && may_follow && (form == FORM_PYTHON || form == FORM_DOT_CALL))
        begin(calls, form, ST_NAME), ll_toolcalls_put_word(calls, &c, 1);
    else
        ll_toolcalls_fault(calls, c);
}

static void take_list_end(struct ll_toolcalls *calls, char c)
{
    if (!ll_is_json_space(c))
        ll_toolcalls_fault(calls, c);
}

/* One byte, in the state that stands: c is held already where it has to be. */
void ll_toolcalls_take(struct ll_toolcalls *calls, char c)
{
    switch (calls->state) {
    case ST_START:
        take_start(calls, c);
        break;
    case ST_CONTENT:
        ll_toolcalls_emit(calls, LL_TOOL_CONTENT, &c, 1);
        break;
    case ST_CODE:
        put_code(calls, &c, 1);
        break;
    case ST_LIST_OPEN:
        take_list_open(calls, c);
        break;
    case ST_KEY_FIRST:
    case ST_NEXT_KEY:
        ll_toolcalls_take_key_start(calls, c);
        break;
    case ST_KEY:
        ll_toolcalls_take_key(calls, c);
        break;
    case ST_COLON:
        if (c == ':')
            calls->state = ST_VALUE;
        else if (!ll_is_json_space(c))
            ll_toolcalls_fault(calls, c);
        break;
    case ST_VALUE:
        ll_toolcalls_take_value_start(calls, c);
        break;
    case ST_IN_VALUE:
        ll_toolcalls_take_value(calls, c);
        break;
    case ST_VALUE_END:
        ll_toolcalls_take_value_end(calls, c);
        break;
    case ST_NAME:
        ll_toolcalls_take_name(calls, c);
        break;
    case ST_ARGUMENTS:
        ll_toolcalls_take_arguments(calls, c);
        break;
    case ST_TAG_OPEN:
        ll_toolcalls_take_tag_open(calls, c);
        break;
    case ST_TAG_NAME:
        ll_toolcalls_take_tag_name(calls, c);
        break;
    case ST_TAG_BODY:
        ll_toolcalls_take_tag_body(calls, c);
        break;
    case ST_TAG_ARGUMENTS:
        ll_toolcalls_take_tag_arguments(calls, c);
        break;
    case ST_TAG_CLOSE:
        ll_toolcalls_take_tag_close(calls, c);
        break;
    case ST_AFTER_CALL:
        take_after_call(calls, c);
        break;
    case ST_LIST_END:
        take_list_end(calls, c);
        break;
    }
}

static bool is_holding(const struct ll_toolcalls *calls)
{
    return !calls->is_committed && calls->state != ST_CONTENT && calls->state != ST_CODE;
}

static void take_text(struct ll_toolcalls *calls, const char *text, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes && calls->error == 0; i++) {
        if (calls->state == ST_CONTENT) { /* nothing ends it but a special token */
            ll_toolcalls_emit(calls, LL_TOOL_CONTENT, text + i, n_bytes - i);
            return;
        }
        if (is_holding(calls))
            ll_toolcalls_append(calls, &calls->held, text + i, 1);
        ll_toolcalls_take(calls, text[i]);
        if (is_holding(calls) && calls->held.n >= HELD_MAX)
            give_up(calls); /* C4 */
    }
}

/* The message or a part of it is over: what is still held is no call. */
static void take_end(struct ll_toolcalls *calls)
{
    bool is_form = calls->state == ST_AFTER_CALL || calls->state == ST_LIST_END ||
                   (calls->state == ST_TAG_CLOSE && calls->n_match == 0) ||
                   (calls->state == ST_START && calls->is_tagged);

    if (is_form)
        calls->held.n = 0;
    else if (is_holding(calls))
        give_up(calls);
    if (calls->state == ST_CODE)
        ll_toolcalls_emit(calls, LL_TOOL_ARGUMENTS, "\"}", 2);
    calls->is_committed = calls->is_tagged = false;
    calls->held.n = 0;
    calls->state = ST_CONTENT;
}

/* ---- the public functions ---------------------------------------------------------------------*/

int ll_toolcalls_new(struct ll_toolcalls **out, const struct ll_tokenizer *tokenizer,
                     const char *tools_json, size_t n_tools_json)
{
    static const char tag[] = "<|python_tag|>";
    struct ll_toolcalls *calls = calloc(1, sizeof(*calls));

    if (calls == NULL)
        return LL_ERR(-ENOMEM, "no memory to read tool calls");
    calls->tokenizer = tokenizer;
    calls->python_tag = ll_tokenizer_special(tokenizer, tag, sizeof(tag) - 1);
    calls->state = ST_START;
    int rc = tools_json != NULL ? ll_tool_names_read(&calls->names, tools_json, n_tools_json) : 0;
    calls->has_code_tool = ll_tool_names_has(&calls->names, LL_TOOL_CODE, sizeof(LL_TOOL_CODE) - 1);
    if (rc == 0)
        rc = ll_decoder_new(&calls->decoder, tokenizer, 0);
    if (rc < 0) {
        ll_toolcalls_free(calls);
        return rc;
    }
    *out = calls;
    return 0;
}

void ll_toolcalls_free(struct ll_toolcalls *calls)
{
    if (calls == NULL)
        return;
    ll_decoder_free(calls->decoder);
    ll_tool_names_free(&calls->names);
    ll_tool_events_free(&calls->events);
    free(calls->held.at);
    free(calls->arguments.at);
    free(calls);
}

static void take_special(struct ll_toolcalls *calls, uint32_t id)
{
    take_end(calls);
    if (id == calls->python_tag) {
        calls->state = ST_START;
        calls->is_tagged = true;
    }
}

int ll_toolcalls_feed(struct ll_toolcalls *calls, uint32_t id)
{
    const char *text;
    int n;

    ll_tool_events_clear(&calls->events);
    if (calls->error < 0)
        return calls->error;
    if (id >= ll_tokenizer_n_vocab(calls->tokenizer))
        return LL_ERR(LL_E_INVAL, "token id %u is outside the vocabulary of %u", id,
                      ll_tokenizer_n_vocab(calls->tokenizer));
    if (!ll_tokenizer_is_special(calls->tokenizer, id)) {
        n = ll_decoder_feed(calls->decoder, id, &text);
        if (n < 0)
            return n;
        take_text(calls, text, (size_t)n);
        return calls->error;
    }
    n = ll_decoder_finish(calls->decoder, &text);
    if (n < 0)
        return n;
    take_text(calls, text, (size_t)n);
    ll_decoder_reset(calls->decoder);
    take_special(calls, id);
    return calls->error;
}

int ll_toolcalls_finish(struct ll_toolcalls *calls)
{
    const char *text;

    ll_tool_events_clear(&calls->events);
    if (calls->error < 0)
        return calls->error;
    int n = ll_decoder_finish(calls->decoder, &text);
    if (n < 0)
        return n;
    take_text(calls, text, (size_t)n);
    ll_decoder_reset(calls->decoder);
    take_end(calls);
    return calls->error;
}

int ll_toolcalls_next(struct ll_toolcalls *calls, struct ll_toolcalls_event *event)
{
    if (calls->error < 0)
        return calls->error;
    return ll_tool_events_next(&calls->events, event);
}
