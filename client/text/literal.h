/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/literal.h - one value as a model writes it, byte by byte, printed as JSON.
 *
 * JSON keeps its white space and the text of its numbers; strings are escaped anew, so that a raw
 * control character in one, which small models do write, does no harm. Python literals come out as
 * json.dumps would print them: 'a' as "a", True as true, tuples as arrays. Whatever the input, once
 * DONE the output is one strict JSON value. Nothing is kept but the nesting, nothing recurses. */
#ifndef CLIENT_TEXT_LITERAL_H
#define CLIENT_TEXT_LITERAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LL_LITERAL_DEPTH     64
#define LL_LITERAL_OUT_BYTES 12 /* most that one byte brings: ", " and \u00xx, or four bytes */

enum ll_literal_result {
    LL_LITERAL_FAULT = -1, /* not such a value; the byte is not part of it */
    LL_LITERAL_MORE = 0,   /* the byte is taken, the value goes on */
    LL_LITERAL_DONE = 1,   /* the byte is taken, the value is over */
    LL_LITERAL_BEFORE = 2, /* the value was over before the byte, which is not taken (numbers) */
};

struct ll_literal {
    bool is_python;
    bool has_key; /* of keyword arguments: the first name and its '=' are in */
    bool is_key;  /* the string being read is one */
    bool has_comma;
    uint8_t state, number, quote, n_hex;
    uint8_t n_word;
    const char *word, *word_out;
    uint32_t code, high; /* of an escape; the high surrogate that waits for its other half */
    uint32_t depth;
    char frame[LL_LITERAL_DEPTH];

    char out[LL_LITERAL_OUT_BYTES]; /* what the last byte brought */
    uint32_t n_out;
};

void ll_literal_init(struct ll_literal *literal, bool is_python);

/* Keyword arguments from behind the '(' up to the ')': a='x', b=1) comes out as {"a": "x", "b": 1}.
 * Nothing is printed before the first name or the ')'. */
void ll_literal_init_call(struct ll_literal *literal);

enum ll_literal_result ll_literal_feed(struct ll_literal *literal, char c);

/* What may stand in a Python name; digits not at its start. */
static inline bool ll_is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static inline bool ll_is_name_start(char c)
{
    return ll_is_name_char(c) && !(c >= '0' && c <= '9');
}

static inline bool ll_is_json_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

#endif
