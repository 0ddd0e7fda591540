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
#include "client/text/json.h"
#include "client/text/literal.h"
#include "client/text/toolevents.h"
#include "client/text/toolnames.h"
#include "ll/text.h"

#include "base/bits.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

#define HELD_MAX 65536u
#define WORD_MAX (6 * LL_TOOL_NAME_MAX + 2) /* a name as JSON text: each byte may be \u00xx */

enum form { FORM_OBJECT, FORM_OBJECT_LIST, FORM_PYTHON, FORM_DOT_CALL, FORM_TAG };

enum state {
    ST_START,     /* white space so far */
    ST_CONTENT,   /* whatever comes */
    ST_CODE,      /* whatever comes is the code */
    ST_LIST_OPEN, /* behind '[' */
    ST_KEY_FIRST, /* behind '{' of a call */
    ST_KEY,       /* in a key */
    ST_COLON,     /* behind a key */
    ST_VALUE,     /* behind the colon */
    ST_IN_VALUE,  /* in a value */
    ST_VALUE_END, /* behind a value */
    ST_NEXT_KEY,  /* behind a comma */
    ST_NAME,      /* PYTHON, DOT_CALL: in the name */
    ST_ARGUMENTS, /* behind its '(' */
    ST_TAG_OPEN,  /* in "<function=" */
    ST_TAG_NAME,  /* up to '>' */
    ST_TAG_BODY,  /* behind it */
    ST_TAG_ARGUMENTS,
    ST_TAG_CLOSE,  /* in "</function>", white space in front */
    ST_AFTER_CALL, /* white space and at most one separator */
    ST_LIST_END,   /* behind ']' */
};

enum key { KEY_OTHER, KEY_NAME, KEY_ARGUMENTS };

struct ll_toolcalls {
    const struct ll_tokenizer *tokenizer;
    struct ll_decoder *decoder;
    uint32_t python_tag; /* UINT32_MAX: the vocabulary has none */

    struct ll_tool_names names;
    bool has_code_tool;

    enum state state;
    enum form form;
    bool is_tagged;               /* nothing but white space since the <|python_tag|> */
    bool is_committed;            /* C2 */
    bool has_separator;           /* ST_AFTER_CALL */
    bool has_name, has_arguments; /* of the OBJECT being read */
    bool is_null;                 /* its arguments are */
    enum key key;
    uint32_t n_calls, n_match;
    struct ll_literal literal;
    char word[WORD_MAX + 1]; /* key or name being read */
    uint32_t n_word;
    char name[LL_TOOL_NAME_MAX + 1]; /* of the candidate, once it is known to be a tool's */

    struct ll_bytes held;      /* C2, C4 */
    struct ll_bytes arguments; /* of a candidate whose name has not come yet */

    struct ll_tool_events events; /* of this feed */
    int error;                    /* -ENOMEM: sticky */
};

static void take(struct ll_toolcalls *calls, char c);

static void append(struct ll_toolcalls *calls, struct ll_bytes *to, const char *text,
                   size_t n_bytes)
{
    if (calls->error == 0)
        calls->error = ll_bytes_append(to, text, n_bytes);
}

static void emit(struct ll_toolcalls *calls, enum ll_tool_event_type type, const char *text,
                 size_t n_bytes)
{
    uint32_t call = type == LL_TOOL_CONTENT ? 0 : calls->n_calls - 1;

    if (calls->error == 0)
        calls->error = ll_tool_events_add(&calls->events, type, call, text, n_bytes);
}

/* The candidate's name is this one; false: no tool has it. */
static bool set_name(struct ll_toolcalls *calls, const char *name, size_t n_bytes)
{
    if (n_bytes > LL_TOOL_NAME_MAX || !ll_tool_names_has(&calls->names, name, n_bytes))
        return false;
    memcpy(calls->name, name, n_bytes);
    calls->name[n_bytes] = '\0';
    calls->has_name = true;
    return true;
}

/* One more byte of a key or name; false: longer than any that counts. */
static bool put_word(struct ll_toolcalls *calls, const char *text, size_t n_bytes)
{
    if (n_bytes > WORD_MAX - calls->n_word)
        return false;
    memcpy(calls->word + calls->n_word, text, n_bytes);
    calls->n_word += (uint32_t)n_bytes;
    return true;
}

/* ---- how candidates end -----------------------------------------------------------------------*/

static void commit(struct ll_toolcalls *calls)
{
    calls->is_committed = true;
    calls->is_tagged = false;
    calls->held.n = 0;
    calls->n_calls++;
    emit(calls, LL_TOOL_NAME, calls->name, strlen(calls->name));
    emit(calls, LL_TOOL_ARGUMENTS, calls->arguments.at, calls->arguments.n);
    calls->arguments.n = 0;
}

static void put_arguments(struct ll_toolcalls *calls, const char *text, size_t n_bytes)
{
    if (calls->is_committed)
        emit(calls, LL_TOOL_ARGUMENTS, text, n_bytes);
    else
        append(calls, &calls->arguments, text, n_bytes);
}

static void put_code(struct ll_toolcalls *calls, const char *text, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++) {
        char quoted[10];
        struct ll_sink sink = {quoted, sizeof(quoted), 0};
        ll_json_quote(&sink, text + i, 1);
        emit(calls, LL_TOOL_ARGUMENTS, quoted + 1, sink.n - 2);
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
        emit(calls, LL_TOOL_CONTENT, held.at, held.n);
        return;
    }
    static const char open[] = "{\"code\": \"";
    strcpy(calls->name, LL_TOOL_CODE);
    commit(calls);
    emit(calls, LL_TOOL_ARGUMENTS, open, sizeof(open) - 1);
    put_code(calls, held.at, held.n);
    calls->state = ST_CODE;
}

/* c, already held unless the call is committed, does not fit. */
static void fault(struct ll_toolcalls *calls, char c)
{
    bool was_committed = calls->is_committed;

    give_up(calls);
    if (was_committed)
        emit(calls, LL_TOOL_CONTENT, &c, 1);
}

static void end_call(struct ll_toolcalls *calls, enum state next)
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

static void take_key_start(struct ll_toolcalls *calls, char c)
{
    if (ll_is_json_space(c))
        return;
    if (c != '"') {
        fault(calls, c);
        return;
    }
    calls->n_word = 0;
    ll_literal_init(&calls->literal, false);
    calls->state = ST_KEY;
    take(calls, c);
}

static void take_key(struct ll_toolcalls *calls, char c)
{
    enum ll_literal_result result = ll_literal_feed(&calls->literal, c);

    if (result < 0 || !put_word(calls, calls->literal.out, calls->literal.n_out)) {
        fault(calls, c);
    } else if (result == LL_LITERAL_DONE) {
        calls->key = find_key(calls);
        calls->state = ST_COLON;
    }
}

static void take_value_start(struct ll_toolcalls *calls, char c)
{
    bool fits = calls->key == KEY_OTHER || (calls->key == KEY_NAME && c == '"') ||
                (calls->key == KEY_ARGUMENTS && (c == '{' || c == 'n'));

    if (ll_is_json_space(c))
        return;
    if (!fits) {
        fault(calls, c);
        return;
    }
    calls->n_word = 0;
    ll_literal_init(&calls->literal, false);
    calls->state = ST_IN_VALUE;
    if (calls->key == KEY_ARGUMENTS) {
        calls->is_null = c == 'n';
        if (calls->has_name && !calls->is_null)
            commit(calls);
    }
    take(calls, c);
}

static bool end_value(struct ll_toolcalls *calls)
{
    char text[LL_TOOL_NAME_MAX + 1];

    calls->state = ST_VALUE_END;
    if (calls->key == KEY_ARGUMENTS) {
        calls->has_arguments = true;
        if (calls->is_null)
            append(calls, &calls->arguments, "{}", 2); /* no arguments, in another spelling */
    } else if (calls->key == KEY_NAME) {
        size_t n = read_word(calls, text);
        if (n > LL_TOOL_NAME_MAX || !set_name(calls, text, n))
            return false;
    }
    if (calls->has_name && calls->has_arguments && !calls->is_committed)
        commit(calls);
    return true;
}

static void take_value(struct ll_toolcalls *calls, char c)
{
    enum ll_literal_result result = ll_literal_feed(&calls->literal, c);
    const char *out = calls->literal.out;
    size_t n_out = calls->literal.n_out;
    bool is_good = result >= 0;

    if (is_good && calls->key == KEY_NAME)
        is_good = put_word(calls, out, n_out);
    else if (is_good && calls->key == KEY_ARGUMENTS && !calls->is_null)
        put_arguments(calls, out, n_out);
    if (is_good && result != LL_LITERAL_MORE)
        is_good = end_value(calls);
    if (!is_good)
        fault(calls, c);
    else if (result == LL_LITERAL_BEFORE)
        take(calls, c);
}

static void take_value_end(struct ll_toolcalls *calls, char c)
{
    if (ll_is_json_space(c))
        return;
    if (c == ',')
        calls->state = ST_NEXT_KEY;
    else if (c == '}' && calls->is_committed)
        end_call(calls, ST_AFTER_CALL);
    else
        fault(calls, c);
}

/* ---- PYTHON, DOT_CALL -------------------------------------------------------------------------*/

static bool set_called_name(struct ll_toolcalls *calls)
{
    static const char suffix[] = ".call";
    size_t n = calls->n_word, n_suffix = sizeof(suffix) - 1;

    if (set_name(calls, calls->word, n))
        return true;
    return calls->form == FORM_DOT_CALL && n > n_suffix &&
           memcmp(calls->word + n - n_suffix, suffix, n_suffix) == 0 &&
           set_name(calls, calls->word, n - n_suffix);
}

static void take_name(struct ll_toolcalls *calls, char c)
{
    if (c == '(' && set_called_name(calls)) {
        ll_literal_init_call(&calls->literal);
        calls->state = ST_ARGUMENTS;
    } else if (!(ll_is_name_char(c) || c == '.' || c == '-') || !put_word(calls, &c, 1)) {
        fault(calls, c);
    }
}

static void take_arguments(struct ll_toolcalls *calls, char c)
{
    enum ll_literal_result result = ll_literal_feed(&calls->literal, c);

    if (result < 0) {
        fault(calls, c);
        return;
    }
    put_arguments(calls, calls->literal.out, calls->literal.n_out);
    if (!calls->is_committed && (calls->literal.has_key || result == LL_LITERAL_DONE))
        commit(calls);
    if (result == LL_LITERAL_DONE)
        end_call(calls, ST_AFTER_CALL);
}

/* ---- TAG --------------------------------------------------------------------------------------*/

static void take_tag_open(struct ll_toolcalls *calls, char c)
{
    static const char open[] = "<function=";

    if (c != open[calls->n_match])
        fault(calls, c);
    else if (open[++calls->n_match] == '\0')
        calls->state = ST_TAG_NAME;
}

static void take_tag_name(struct ll_toolcalls *calls, char c)
{
    if (c == '>' && set_name(calls, calls->word, calls->n_word))
        calls->state = ST_TAG_BODY;
    else if (c == '>' || !put_word(calls, &c, 1))
        fault(calls, c);
}

static void take_tag_body(struct ll_toolcalls *calls, char c)
{
    if (ll_is_json_space(c))
        return;
    if (c != '{') {
        fault(calls, c);
        return;
    }
    commit(calls);
    ll_literal_init(&calls->literal, false);
    calls->state = ST_TAG_ARGUMENTS;
    take(calls, c);
}

static void take_tag_arguments(struct ll_toolcalls *calls, char c)
{
    enum ll_literal_result result = ll_literal_feed(&calls->literal, c);

    if (result < 0) {
        fault(calls, c);
        return;
    }
    emit(calls, LL_TOOL_ARGUMENTS, calls->literal.out, calls->literal.n_out);
    if (result == LL_LITERAL_DONE)
        end_call(calls, ST_TAG_CLOSE);
}

static void take_tag_close(struct ll_toolcalls *calls, char c)
{
    static const char close[] = "</function>";

    if (calls->n_match == 0 && ll_is_json_space(c))
        return;
    if (c != close[calls->n_match])
        fault(calls, c);
    else if (close[++calls->n_match] == '\0')
        end_call(calls, ST_AFTER_CALL);
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
        begin(calls, FORM_DOT_CALL, ST_NAME), put_word(calls, &c, 1);
    else
        fault(calls, c);
}

static void take_list_open(struct ll_toolcalls *calls, char c)
{
    if (ll_is_json_space(c))
        return;
    if (c == '{')
        begin(calls, FORM_OBJECT_LIST, ST_KEY_FIRST);
    else if (ll_is_name_start(c))
        begin(calls, FORM_PYTHON, ST_NAME), put_word(calls, &c, 1);
    else
        fault(calls, c);
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
        end_call(calls, ST_LIST_END);
    else if (c == '{' && may_follow && (form == FORM_OBJECT || form == FORM_OBJECT_LIST))
        begin(calls, form, ST_KEY_FIRST);
    else if (c == '<' && form == FORM_TAG)
        begin(calls, form, ST_TAG_OPEN), calls->n_match = 1;
    else if (ll_is_name_start(c) && may_follow && (form == FORM_PYTHON || form == FORM_DOT_CALL))
        begin(calls, form, ST_NAME), put_word(calls, &c, 1);
    else
        fault(calls, c);
}

static void take_list_end(struct ll_toolcalls *calls, char c)
{
    if (!ll_is_json_space(c))
        fault(calls, c);
}

/* One byte, in the state that stands: c is held already where it has to be. */
static void take(struct ll_toolcalls *calls, char c)
{
    switch (calls->state) {
    case ST_START:
        take_start(calls, c);
        break;
    case ST_CONTENT:
        emit(calls, LL_TOOL_CONTENT, &c, 1);
        break;
    case ST_CODE:
        put_code(calls, &c, 1);
        break;
    case ST_LIST_OPEN:
        take_list_open(calls, c);
        break;
    case ST_KEY_FIRST:
    case ST_NEXT_KEY:
        take_key_start(calls, c);
        break;
    case ST_KEY:
        take_key(calls, c);
        break;
    case ST_COLON:
        if (c == ':')
            calls->state = ST_VALUE;
        else if (!ll_is_json_space(c))
            fault(calls, c);
        break;
    case ST_VALUE:
        take_value_start(calls, c);
        break;
    case ST_IN_VALUE:
        take_value(calls, c);
        break;
    case ST_VALUE_END:
        take_value_end(calls, c);
        break;
    case ST_NAME:
        take_name(calls, c);
        break;
    case ST_ARGUMENTS:
        take_arguments(calls, c);
        break;
    case ST_TAG_OPEN:
        take_tag_open(calls, c);
        break;
    case ST_TAG_NAME:
        take_tag_name(calls, c);
        break;
    case ST_TAG_BODY:
        take_tag_body(calls, c);
        break;
    case ST_TAG_ARGUMENTS:
        take_tag_arguments(calls, c);
        break;
    case ST_TAG_CLOSE:
        take_tag_close(calls, c);
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
            emit(calls, LL_TOOL_CONTENT, text + i, n_bytes - i);
            return;
        }
        if (is_holding(calls))
            append(calls, &calls->held, text + i, 1);
        take(calls, text[i]);
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
        emit(calls, LL_TOOL_ARGUMENTS, "\"}", 2);
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
