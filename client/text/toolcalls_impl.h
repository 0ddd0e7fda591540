/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/toolcalls_impl.h - the machine that toolcalls.c (candidates, what lies between calls,
 * the public functions) and toolcalls_forms.c (the forms of a call) share. What holds: toolcalls.c.
 */
#ifndef CLIENT_TEXT_TOOLCALLS_IMPL_H
#define CLIENT_TEXT_TOOLCALLS_IMPL_H

#include "client/text/json.h"
#include "client/text/literal.h"
#include "client/text/toolevents.h"
#include "client/text/toolnames.h"
#include "ll/text.h"

#define LL_TOOLCALLS_WORD_MAX                                                                      \
    (6 * LL_TOOL_NAME_MAX + 2) /* a name as JSON text: each byte may be \u00xx */

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
    char word[LL_TOOLCALLS_WORD_MAX + 1]; /* key or name being read */
    uint32_t n_word;
    char name[LL_TOOL_NAME_MAX + 1]; /* of the candidate, once it is known to be a tool's */

    struct ll_bytes held;      /* C2, C4 */
    struct ll_bytes arguments; /* of a candidate whose name has not come yet */

    struct ll_tool_events events; /* of this feed */
    int error;                    /* -ENOMEM: sticky */
};

/* toolcalls.c: each says there what it does. */
void ll_toolcalls_append(struct ll_toolcalls *calls, struct ll_bytes *to, const char *text,
                         size_t n_bytes);
void ll_toolcalls_emit(struct ll_toolcalls *calls, enum ll_tool_event_type type, const char *text,
                       size_t n_bytes);
bool ll_toolcalls_set_name(struct ll_toolcalls *calls, const char *name, size_t n_bytes);
bool ll_toolcalls_put_word(struct ll_toolcalls *calls, const char *text, size_t n_bytes);
void ll_toolcalls_commit(struct ll_toolcalls *calls);
void ll_toolcalls_put_arguments(struct ll_toolcalls *calls, const char *text, size_t n_bytes);
void ll_toolcalls_fault(struct ll_toolcalls *calls, char c);
void ll_toolcalls_end_call(struct ll_toolcalls *calls, enum state next);
void ll_toolcalls_take(struct ll_toolcalls *calls, char c);

/* toolcalls_forms.c: one byte in the state of that name. */
void ll_toolcalls_take_key_start(struct ll_toolcalls *calls, char c);
void ll_toolcalls_take_key(struct ll_toolcalls *calls, char c);
void ll_toolcalls_take_value_start(struct ll_toolcalls *calls, char c);
void ll_toolcalls_take_value(struct ll_toolcalls *calls, char c);
void ll_toolcalls_take_value_end(struct ll_toolcalls *calls, char c);
void ll_toolcalls_take_name(struct ll_toolcalls *calls, char c);
void ll_toolcalls_take_arguments(struct ll_toolcalls *calls, char c);
void ll_toolcalls_take_tag_open(struct ll_toolcalls *calls, char c);
void ll_toolcalls_take_tag_name(struct ll_toolcalls *calls, char c);
void ll_toolcalls_take_tag_body(struct ll_toolcalls *calls, char c);
void ll_toolcalls_take_tag_arguments(struct ll_toolcalls *calls, char c);
void ll_toolcalls_take_tag_close(struct ll_toolcalls *calls, char c);

#endif
