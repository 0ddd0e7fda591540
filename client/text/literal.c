/* SPDX-License-Identifier: Apache-2.0 */
#include "client/text/literal.h"

#include "base/assert.h"
#include "base/bits.h"
#include "client/text/utf8.h"

#include <stdio.h>
#include <string.h>

enum {
    ST_VALUE,       /* a value must come */
    ST_VALUE_FIRST, /* behind '[' or '(': a value or the end */
    ST_KEY,         /* behind ',' of an object: a key (Python: or the end) */
    ST_KEY_FIRST,   /* behind '{' */
    ST_COLON,
    ST_AFTER,      /* behind a value in a container */
    ST_NAME_FIRST, /* behind '(' of a call: a name or ')' */
    ST_NAME,       /* behind ',' of a call */
    ST_IN_NAME,
    ST_EQUALS, /* behind a name and white space */
    ST_STRING,
    ST_ESCAPE,
    ST_HEX,
    ST_LOW_BACKSLASH, /* behind a high surrogate: "\u" and the low one must follow */
    ST_LOW_U,
    ST_WORD,
    ST_NUMBER,
};

enum { NUM_MINUS, NUM_ZERO, NUM_INT, NUM_DOT, NUM_FRAC, NUM_E, NUM_SIGN, NUM_EXP };

void ll_literal_init(struct ll_literal *literal, bool is_python)
{
    memset(literal, 0, sizeof(*literal));
    literal->is_python = is_python;
    literal->state = ST_VALUE;
}

void ll_literal_init_call(struct ll_literal *literal)
{
    ll_literal_init(literal, true);
    literal->state = ST_NAME_FIRST;
    literal->frame[literal->depth++] = 'c';
}

/* ---- output -----------------------------------------------------------------------------------*/

static void put(struct ll_literal *literal, const char *text, size_t n_bytes)
{
    LL_ASSERT(literal->n_out + n_bytes <= sizeof(literal->out));
    memcpy(literal->out + literal->n_out, text, n_bytes);
    literal->n_out += (uint32_t)n_bytes;
}

static void put_byte(struct ll_literal *literal, char c)
{
    put(literal, &c, 1);
}

/* A character of a string's value. */
static void put_code(struct ll_literal *literal, uint32_t code)
{
    static const char from[] = "\b\f\n\r\t\"\\", to[] = "bfnrt\"\\";
    const char *simple = code != 0 && code < 0x80 ? strchr(from, (int)code) : NULL;
    char text[8];

    if (simple != NULL) {
        put_byte(literal, '\\');
        put_byte(literal, to[simple - from]);
    } else if (code < 0x20) {
        put(literal, text, (size_t)snprintf(text, sizeof(text), "\\u%04x", code));
    } else {
        put(literal, text, (size_t)ll_utf8_encode(code, text));
    }
}

/* Before an item: the comma that was read, printed only now because Python allows one too many. */
static void put_comma(struct ll_literal *literal)
{
    if (literal->is_python && literal->has_comma)
        put(literal, ", ", 2);
    literal->has_comma = false;
}

/* ---- values -----------------------------------------------------------------------------------*/

static enum ll_literal_result value_done(struct ll_literal *literal)
{
    literal->state = ST_AFTER;
    return literal->depth == 0 ? LL_LITERAL_DONE : LL_LITERAL_MORE;
}

static enum ll_literal_result begin_string(struct ll_literal *literal, char quote, bool is_key)
{
    put_comma(literal);
    put_byte(literal, '"');
    literal->quote = (uint8_t)quote;
    literal->is_key = is_key;
    literal->state = ST_STRING;
    return LL_LITERAL_MORE;
}

static enum ll_literal_result begin_word(struct ll_literal *literal, char c)
{
    static const struct {
        const char *python, *json;
    } words[] = {{"True", "true"}, {"False", "false"}, {"None", "null"}};

    for (size_t i = 0; i < LL_COUNT(words); i++) {
        const char *word = NULL;
        if (c == words[i].json[0])
            word = words[i].json; /* Python too: models mix them */
        else if (literal->is_python && c == words[i].python[0])
            word = words[i].python;
        if (word == NULL)
            continue;
        put_comma(literal);
        literal->word = word;
        literal->word_out = words[i].json;
        literal->n_word = 1;
        literal->state = ST_WORD;
        return LL_LITERAL_MORE;
    }
    return LL_LITERAL_FAULT;
}

static enum ll_literal_result open_frame(struct ll_literal *literal, char c)
{
    if (literal->depth == LL_LITERAL_DEPTH)
        return LL_LITERAL_FAULT;
    put_comma(literal);
    put_byte(literal, c == '(' ? '[' : c);
    literal->frame[literal->depth++] = c;
    literal->state = c == '{' ? ST_KEY_FIRST : ST_VALUE_FIRST;
    return LL_LITERAL_MORE;
}

static enum ll_literal_result begin_value(struct ll_literal *literal, char c)
{
    if (c == '"' || (literal->is_python && c == '\''))
        return begin_string(literal, c, false);
    if (c == '{' || c == '[' || (literal->is_python && c == '('))
        return open_frame(literal, c);
    if (c == '-' || (c >= '0' && c <= '9')) {
        put_comma(literal);
        put_byte(literal, c);
        literal->number = c == '-' ? NUM_MINUS : c == '0' ? NUM_ZERO : NUM_INT;
        literal->state = ST_NUMBER;
        return LL_LITERAL_MORE;
    }
    return begin_word(literal, c);
}

/* Is c the closing bracket of the innermost container? Then closes it. */
static bool close_frame(struct ll_literal *literal, char c)
{
    char open = literal->frame[literal->depth - 1];
    char wanted = open == '{' ? '}' : open == '[' ? ']' : ')';

    if (c != wanted)
        return false;
    put_byte(literal, open == '{' || open == 'c' ? '}' : ']');
    literal->depth--;
    return true;
}

static enum ll_literal_result feed_word(struct ll_literal *literal, char c)
{
    if (c != literal->word[literal->n_word])
        return LL_LITERAL_FAULT;
    if (literal->word[++literal->n_word] != '\0')
        return LL_LITERAL_MORE;
    put(literal, literal->word_out, strlen(literal->word_out));
    return value_done(literal);
}

/* True when c continues the number. */
static bool feed_number(struct ll_literal *literal, char c)
{
    bool is_digit = c >= '0' && c <= '9', is_e = c == 'e' || c == 'E';
    int next = -1;

    switch (literal->number) {
    case NUM_MINUS:
        next = c == '0' ? NUM_ZERO : is_digit ? NUM_INT : -1;
        break;
    case NUM_INT:
        next = is_digit ? NUM_INT : c == '.' ? NUM_DOT : is_e ? NUM_E : -1;
        break;
    case NUM_ZERO:
        next = c == '.' ? NUM_DOT : is_e ? NUM_E : -1;
        break;
    case NUM_DOT:
        next = is_digit ? NUM_FRAC : -1;
        break;
    case NUM_FRAC:
        next = is_digit ? NUM_FRAC : is_e ? NUM_E : -1;
        break;
    case NUM_E:
        next = is_digit ? NUM_EXP : c == '+' || c == '-' ? NUM_SIGN : -1;
        break;
    case NUM_SIGN:
    case NUM_EXP:
        next = is_digit ? NUM_EXP : -1;
        break;
    }
    if (next < 0)
        return false;
    literal->number = (uint8_t)next;
    put_byte(literal, c);
    return true;
}

static bool is_whole_number(const struct ll_literal *literal)
{
    return literal->number == NUM_ZERO || literal->number == NUM_INT ||
           literal->number == NUM_FRAC || literal->number == NUM_EXP;
}

/* ---- strings ----------------------------------------------------------------------------------*/

static enum ll_literal_result feed_string(struct ll_literal *literal, char c)
{
    if (c == '\\') {
        literal->state = ST_ESCAPE;
        return LL_LITERAL_MORE;
    }
    if ((uint8_t)c == literal->quote) {
        put_byte(literal, '"');
        if (!literal->is_key)
            return value_done(literal);
        literal->state = ST_COLON;
        return LL_LITERAL_MORE;
    }
    if ((uint8_t)c < 0x80)
        put_code(literal, (uint8_t)c);
    else
        put_byte(literal, c);
    return LL_LITERAL_MORE;
}

static enum ll_literal_result begin_hex(struct ll_literal *literal, uint8_t n_hex)
{
    literal->n_hex = n_hex;
    literal->code = 0;
    literal->state = ST_HEX;
    return LL_LITERAL_MORE;
}

/* The byte behind a backslash. */
static enum ll_literal_result feed_escape(struct ll_literal *literal, char c)
{
    static const char from[] = "bfnrt\"\\", to[] = "\b\f\n\r\t\"\\";
    const char *simple = c != '\0' ? strchr(from, c) : NULL;

    literal->state = ST_STRING;
    if (simple != NULL)
        return put_code(literal, (uint8_t)to[simple - from]), LL_LITERAL_MORE;
    if (c == 'u')
        return begin_hex(literal, 4);
    if (!literal->is_python) {
        if (c != '/')
            return LL_LITERAL_FAULT;
        return put_byte(literal, '/'), LL_LITERAL_MORE;
    }
    switch (c) {
    case 'x':
        return begin_hex(literal, 2);
    case 'U':
        return begin_hex(literal, 8);
    case '\'':
        return put_byte(literal, c), LL_LITERAL_MORE;
    case 'a':
        return put_code(literal, 7), LL_LITERAL_MORE;
    case 'v':
        return put_code(literal, 11), LL_LITERAL_MORE;
    case '\n': /* the line goes on */
        return LL_LITERAL_MORE;
    }
    if ((c >= '0' && c <= '7') || c == 'N')
        return LL_LITERAL_FAULT; /* octal and \N{NAME}: no model needs them */
    put_code(literal, '\\');     /* Python keeps the backslash of what is no escape */
    return feed_string(literal, c);
}

static enum ll_literal_result feed_hex(struct ll_literal *literal, char c)
{
    char lower = c | 0x20;
    uint32_t digit = c >= '0' && c <= '9'           ? (uint32_t)(c - '0')
                     : lower >= 'a' && lower <= 'f' ? (uint32_t)(lower - 'a') + 10
                                                    : 16;

    if (digit == 16)
        return LL_LITERAL_FAULT;
    literal->code = literal->code << 4 | digit;
    if (--literal->n_hex > 0)
        return LL_LITERAL_MORE;

    uint32_t code = literal->code;
    bool is_high = code >= 0xd800 && code < 0xdc00, is_low = code >= 0xdc00 && code < 0xe000;
    if (is_low != (literal->high != 0) || code > 0x10ffff)
        return LL_LITERAL_FAULT;
    if (is_high) {
        literal->high = code;
        literal->state = ST_LOW_BACKSLASH;
        return LL_LITERAL_MORE;
    }
    if (is_low)
        code = 0x10000 + ((literal->high - 0xd800) << 10) + (code - 0xdc00);
    literal->high = 0;
    put_code(literal, code);
    literal->state = ST_STRING;
    return LL_LITERAL_MORE;
}

/* ---- the parts of containers ------------------------------------------------------------------*/

static enum ll_literal_result feed_after(struct ll_literal *literal, char c)
{
    if (close_frame(literal, c))
        return value_done(literal);
    if (c != ',')
        return LL_LITERAL_FAULT;
    char open = literal->frame[literal->depth - 1];
    if (!literal->is_python)
        put_byte(literal, c);
    literal->has_comma = true;
    /* Python's trailing comma: the same as at the start, where the end may come too. */
    literal->state = open == '{'   ? (literal->is_python ? ST_KEY_FIRST : ST_KEY)
                     : open == 'c' ? ST_NAME
                                   : (literal->is_python ? ST_VALUE_FIRST : ST_VALUE);
    return LL_LITERAL_MORE;
}

static enum ll_literal_result feed_name_start(struct ll_literal *literal, char c)
{
    if (close_frame(literal, c)) {
        if (literal->state == ST_NAME_FIRST) { /* f(): the '{' was not printed yet */
            literal->n_out = 0;
            put(literal, "{}", 2);
        }
        return value_done(literal);
    }
    if (!ll_is_name_start(c))
        return LL_LITERAL_FAULT;
    if (literal->state == ST_NAME_FIRST)
        put_byte(literal, '{');
    put_comma(literal);
    put_byte(literal, '"');
    put_byte(literal, c);
    literal->state = ST_IN_NAME;
    return LL_LITERAL_MORE;
}

static enum ll_literal_result feed_name(struct ll_literal *literal, char c)
{
    if (literal->state == ST_IN_NAME && ll_is_name_char(c)) {
        put_byte(literal, c);
        return LL_LITERAL_MORE;
    }
    if (ll_is_json_space(c)) {
        literal->state = ST_EQUALS;
        return LL_LITERAL_MORE;
    }
    if (c != '=')
        return LL_LITERAL_FAULT;
    put(literal, "\": ", 3);
    literal->has_key = true;
    literal->state = ST_VALUE;
    return LL_LITERAL_MORE;
}

/* White space between tokens: JSON keeps it. */
static enum ll_literal_result feed_space(struct ll_literal *literal, char c)
{
    if (!literal->is_python)
        put_byte(literal, c);
    return LL_LITERAL_MORE;
}

static enum ll_literal_result feed_token(struct ll_literal *literal, char c)
{
    switch (literal->state) {
    case ST_VALUE_FIRST:
        if (close_frame(literal, c))
            return value_done(literal);
        return begin_value(literal, c);
    case ST_VALUE:
        return begin_value(literal, c);
    case ST_KEY_FIRST:
        if (close_frame(literal, c))
            return value_done(literal);
        /* fall through */
    case ST_KEY:
        if (c == '"' || (literal->is_python && c == '\''))
            return begin_string(literal, c, true);
        return LL_LITERAL_FAULT;
    case ST_COLON:
        if (c != ':')
            return LL_LITERAL_FAULT;
        put(literal, ": ", literal->is_python ? 2 : 1);
        literal->state = ST_VALUE;
        return LL_LITERAL_MORE;
    case ST_NAME_FIRST:
    case ST_NAME:
        return feed_name_start(literal, c);
    default:
        return feed_after(literal, c);
    }
}

enum ll_literal_result ll_literal_feed(struct ll_literal *literal, char c)
{
    literal->n_out = 0;
    switch (literal->state) {
    case ST_STRING:
        return feed_string(literal, c);
    case ST_ESCAPE:
        return feed_escape(literal, c);
    case ST_HEX:
        return feed_hex(literal, c);
    case ST_LOW_BACKSLASH:
        literal->state = ST_LOW_U;
        return c == '\\' ? LL_LITERAL_MORE : LL_LITERAL_FAULT;
    case ST_LOW_U:
        return c == 'u' ? begin_hex(literal, 4) : LL_LITERAL_FAULT;
    case ST_WORD:
        return feed_word(literal, c);
    case ST_IN_NAME:
    case ST_EQUALS:
        return feed_name(literal, c);
    case ST_NUMBER:
        if (feed_number(literal, c))
            return LL_LITERAL_MORE;
        if (!is_whole_number(literal))
            return LL_LITERAL_FAULT;
        literal->state = ST_AFTER;
        if (literal->depth == 0)
            return LL_LITERAL_BEFORE;
        break; /* c belongs to the container */
    default:
        break;
    }
    return ll_is_json_space(c) ? feed_space(literal, c) : feed_token(literal, c);
}
