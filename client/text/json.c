/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/json.c - the reader: a state machine over one buffer. Printing is in json_print.c.
 *
 * J1  `at` never passes n_bytes; every byte before it has been checked.
 * J2  state says what may come next inside the innermost open container (bit depth - 1 of
 *     is_object), so no call stack mirrors the nesting.
 * J3  An error is final: state stays ST_ERROR. */
#include "client/text/json.h"

#include "base/assert.h"
#include "base/err.h"
#include "client/text/utf8.h"
#include "ll/client.h"

#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    ST_VALUE,       /* a value must come */
    ST_VALUE_FIRST, /* just after '[': a value or ']' */
    ST_KEY_FIRST,   /* just after '{': a key or '}' */
    ST_AFTER,       /* after a value in a container: ',' or its end */
    ST_DONE,        /* after the outermost value */
    ST_ERROR,
};

void ll_json_init(struct ll_json *json, const char *text, size_t n_bytes, uint32_t depth_max)
{
    LL_ASSERT(depth_max <= LL_JSON_DEPTH_MAX);
    *json = (struct ll_json){
        .text = text,
        .n_bytes = n_bytes,
        .depth_max = depth_max != 0 ? depth_max : LL_JSON_DEPTH,
        .state = ST_VALUE,
    };
}

static enum ll_json_token fail(struct ll_json *json, size_t at, const char *reason)
{
    json->error = reason;
    json->error_at = at;
    json->state = ST_ERROR;
    return LL_JSON_ERROR;
}

static void skip_space(struct ll_json *json)
{
    while (json->at < json->n_bytes) {
        char c = json->text[json->at];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t')
            return;
        json->at++;
    }
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The four digits at text; -1 where they are not. */
static int32_t hex4(const char *text, size_t n)
{
    int32_t value = 0;

    if (n < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(text[i]);
        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* Checks the escape at `at` (a backslash). Returns its length, 0 after fail(). */
static size_t check_escape(struct ll_json *json, size_t at)
{
    const char *p = json->text + at;
    size_t left = json->n_bytes - at;

    if (left < 2) {
        fail(json, at, "the text ends inside a string");
        return 0;
    }
    if (p[1] != 'u') {
        if (p[1] != '\0' && strchr("\"\\/bfnrt", p[1]) != NULL)
            return 2;
        fail(json, at, "unknown escape in a string");
        return 0;
    }
    int32_t unit = hex4(p + 2, left - 2);
    if (unit < 0) {
        fail(json, at, "\\u needs four hexadecimal digits");
        return 0;
    }
    if (unit < 0xd800 || unit > 0xdfff)
        return 6;
    int32_t second = left >= 12 && p[6] == '\\' && p[7] == 'u' ? hex4(p + 8, 4) : -1;
    if (unit > 0xdbff || second < 0xdc00 || second > 0xdfff) {
        fail(json, at, "half of a surrogate pair in a string");
        return 0;
    }
    return 12;
}

/* At an opening quote. Sets span to what is between the quotes. */
static bool read_string(struct ll_json *json)
{
    const char *text = json->text;
    size_t opening = json->at, at = opening + 1, n = json->n_bytes;

    json->has_escapes = false;
    while (at < n) {
        uint8_t c = (uint8_t)text[at];
        if (c == '"') {
            json->span = text + opening + 1;
            json->span_at = opening + 1;
            json->n_span = at - opening - 1;
            json->at = at + 1;
            return true;
        }
        if (c == '\\') {
            size_t length = check_escape(json, at);
            if (length == 0)
                return false;
            json->has_escapes = true;
            at += length;
        } else if (c < 0x20) {
            fail(json, at, "control character in a string; it must be escaped");
            return false;
        } else if (c < 0x80) {
            at++;
        } else {
            uint32_t code;
            int length = ll_utf8_decode(text + at, n - at, &code);
            if (length <= 0) {
                fail(json, at, "invalid UTF-8 in a string");
                return false;
            }
            at += (size_t)length;
        }
    }
    fail(json, opening, "a string without its closing quote");
    return false;
}

static bool is_digit(const struct ll_json *json, size_t at)
{
    return at < json->n_bytes && json->text[at] >= '0' && json->text[at] <= '9';
}

/* -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)? */
static enum ll_json_token read_number(struct ll_json *json)
{
    const char *text = json->text;
    size_t at = json->at, n = json->n_bytes;

    at += text[at] == '-';
    if (!is_digit(json, at))
        return fail(json, json->at, "a minus sign without a number");
    if (text[at] == '0' && is_digit(json, at + 1))
        return fail(json, json->at, "a number with a leading zero");
    while (is_digit(json, at))
        at++;
    if (at < n && text[at] == '.') {
        at++;
        if (!is_digit(json, at))
            return fail(json, at, "no digit after the decimal point");
        while (is_digit(json, at))
            at++;
    }
    if (at < n && (text[at] == 'e' || text[at] == 'E')) {
        at++;
        at += at < n && (text[at] == '+' || text[at] == '-');
        if (!is_digit(json, at))
            return fail(json, at, "no digit in the exponent");
        while (is_digit(json, at))
            at++;
    }
    json->span = text + json->at;
    json->span_at = json->at;
    json->n_span = at - json->at;
    json->at = at;
    return LL_JSON_NUMBER;
}

static enum ll_json_token read_word(struct ll_json *json, const char *word,
                                    enum ll_json_token token)
{
    size_t n = strlen(word);

    if (json->n_bytes - json->at < n || memcmp(json->text + json->at, word, n) != 0)
        return fail(json, json->at, "expected a value");
    json->span = json->text + json->at;
    json->span_at = json->at;
    json->n_span = n;
    json->at += n;
    return token;
}

static bool is_in_object(const struct ll_json *json)
{
    uint32_t d = json->depth - 1;

    return json->is_object[d / 8] >> (d % 8) & 1;
}

static enum ll_json_token open_container(struct ll_json *json, bool is_object)
{
    if (json->depth == json->depth_max)
        return fail(json, json->at, "nested too deeply");
    uint32_t d = json->depth++;
    uint8_t bit = (uint8_t)(1u << (d % 8));
    json->is_object[d / 8] =
        (uint8_t)(is_object ? json->is_object[d / 8] | bit : json->is_object[d / 8] & ~bit);
    json->span = json->text + json->at;
    json->span_at = json->at;
    json->n_span = 1;
    json->at++;
    json->state = is_object ? ST_KEY_FIRST : ST_VALUE_FIRST;
    return is_object ? LL_JSON_OBJECT : LL_JSON_ARRAY;
}

static enum ll_json_token close_container(struct ll_json *json)
{
    bool was_object = is_in_object(json);

    json->span = json->text + json->at;
    json->span_at = json->at;
    json->n_span = 1;
    json->at++;
    json->depth--;
    json->state = json->depth == 0 ? ST_DONE : ST_AFTER;
    return was_object ? LL_JSON_OBJECT_END : LL_JSON_ARRAY_END;
}

static enum ll_json_token read_key(struct ll_json *json)
{
    if (json->at == json->n_bytes || json->text[json->at] != '"')
        return fail(json, json->at, "expected a key in quotes");
    if (!read_string(json))
        return LL_JSON_ERROR;
    skip_space(json);
    if (json->at == json->n_bytes || json->text[json->at] != ':')
        return fail(json, json->at, "expected ':' after a key");
    json->at++;
    json->state = ST_VALUE;
    return LL_JSON_KEY;
}

static enum ll_json_token read_value(struct ll_json *json)
{
    enum ll_json_token token;
    char c = json->text[json->at];

    if (c == '{' || c == '[')
        return open_container(json, c == '{');
    if (c == '"')
        token = read_string(json) ? LL_JSON_STRING : LL_JSON_ERROR;
    else if (c == '-' || (c >= '0' && c <= '9'))
        token = read_number(json);
    else if (c == 't')
        token = read_word(json, "true", LL_JSON_TRUE);
    else if (c == 'f')
        token = read_word(json, "false", LL_JSON_FALSE);
    else if (c == 'n')
        token = read_word(json, "null", LL_JSON_NULL);
    else
        token = fail(json, json->at, "expected a value");
    if (token != LL_JSON_ERROR)
        json->state = json->depth == 0 ? ST_DONE : ST_AFTER;
    return token;
}

enum ll_json_token ll_json_next(struct ll_json *json)
{
    if (json->state == ST_ERROR)
        return LL_JSON_ERROR;
    json->has_escapes = false;
    skip_space(json);
    if (json->state == ST_DONE)
        return json->at == json->n_bytes ? LL_JSON_END
                                         : fail(json, json->at, "text after the JSON value");
    if (json->at == json->n_bytes)
        return fail(json, json->at, "the JSON text ends too early");

    char c = json->text[json->at];
    switch (json->state) {
    case ST_KEY_FIRST:
        return c == '}' ? close_container(json) : read_key(json);
    case ST_VALUE_FIRST:
        return c == ']' ? close_container(json) : read_value(json);
    case ST_AFTER:
        if (c == (is_in_object(json) ? '}' : ']'))
            return close_container(json);
        if (c != ',')
            return fail(json, json->at,
                        is_in_object(json) ? "expected ',' or '}'" : "expected ',' or ']'");
        json->at++;
        skip_space(json);
        if (json->at == json->n_bytes)
            return fail(json, json->at, "the JSON text ends too early");
        return is_in_object(json) ? read_key(json) : read_value(json);
    default:
        return read_value(json);
    }
}

enum ll_json_token ll_json_skip(struct ll_json *json, const char **span, size_t *n_span)
{
    enum ll_json_token first = ll_json_next(json), token = first;
    uint32_t depth = json->depth; /* with the value's own container counted */
    size_t start = json->span_at - (first == LL_JSON_STRING);

    LL_ASSERT(first != LL_JSON_KEY && first != LL_JSON_OBJECT_END);
    if (first == LL_JSON_OBJECT || first == LL_JSON_ARRAY)
        while (json->depth >= depth && token != LL_JSON_ERROR)
            token = ll_json_next(json);
    if (token == LL_JSON_ERROR || first == LL_JSON_ARRAY_END || first == LL_JSON_END)
        return token;
    if (span != NULL) {
        *span = json->text + start;
        *n_span = json->at - start;
    }
    return first;
}

/* One character of a checked string's span to out; moves *at past it. */
static int resolve(const char *span, size_t *at, char out[4])
{
    static const char letters[] = "bfnrt", values[] = "\b\f\n\r\t";

    if (span[*at] != '\\') {
        out[0] = span[(*at)++];
        return 1;
    }
    char c = span[*at + 1];
    if (c != 'u') {
        const char *found = strchr(letters, c);
        out[0] = found != NULL ? values[found - letters] : c;
        *at += 2;
        return 1;
    }
    uint32_t code = (uint32_t)hex4(span + *at + 2, 4);
    *at += 6;
    if (code >= 0xd800 && code <= 0xdbff) {
        uint32_t low = (uint32_t)hex4(span + *at + 2, 4);
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        *at += 6;
    }
    return ll_utf8_encode(code, out);
}

size_t ll_json_string(const struct ll_json *json, char *out, size_t capacity)
{
    size_t n = 0;

    if (!json->has_escapes) {
        n = json->n_span;
        if (capacity > 0)
            memcpy(out, json->span, n < capacity ? n : capacity);
        return n;
    }
    for (size_t at = 0; at < json->n_span;) {
        char bytes[4];
        int length = resolve(json->span, &at, bytes);
        for (int i = 0; i < length; i++, n++)
            if (n < capacity)
                out[n] = bytes[i];
    }
    return n;
}

bool ll_json_is(const struct ll_json *json, const char *text)
{
    size_t n = strlen(text), done = 0;

    if (!json->has_escapes)
        return json->n_span == n && memcmp(json->span, text, n) == 0;
    for (size_t at = 0; at < json->n_span;) {
        char bytes[4];
        size_t length = (size_t)resolve(json->span, &at, bytes);
        if (n - done < length || memcmp(text + done, bytes, length) != 0)
            return false;
        done += length;
    }
    return done == n;
}

bool ll_json_int(const struct ll_json *json, int64_t *out)
{
    const char *p = json->span, *end = p + json->n_span;
    bool is_negative = p < end && *p == '-';
    int64_t value = 0;

    p += is_negative;
    if (p == end)
        return false;
    for (; p < end; p++) {
        if (*p < '0' || *p > '9')
            return false;
        int64_t digit = is_negative ? -(*p - '0') : *p - '0';
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, digit, &value))
            return false;
    }
    *out = value;
    return true;
}

bool ll_json_double(const struct ll_json *json, double *out)
{
    /* A double's value is settled by its first 768 significant digits; longer numbers are legal
     * JSON but nobody's honest input. */
    char copy[1024];

    if (json->n_span == 0 || json->n_span >= sizeof(copy))
        return false;
    memcpy(copy, json->span, json->n_span);
    copy[json->n_span] = '\0';
    /* glibc hands out its static C locale here; nothing is allocated. */
    locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    char *end;
    *out = strtod_l(copy, &end, c_locale);
    freelocale(c_locale);
    return *end == '\0' && isfinite(*out);
}

int ll_json_fail(const struct ll_json *json, const char *what, const char *otherwise)
{
    if (json->error != NULL)
        return LL_ERR(LL_E_INVAL, "%s: byte %zu: %s", what, json->error_at, json->error);
    return LL_ERR(LL_E_INVAL, "%s: byte %zu: %s", what, json->span_at,
                  otherwise != NULL ? otherwise : "unexpected JSON token");
}

/* ---- repeated keys ------------------------------------------------------------------------*/
struct key {
    const char *span;
    uint32_t n_span, object; /* object: serial number of the object it stands in */
    uint32_t has_escapes;
};

/* A string's value, byte by byte. */
struct cursor {
    const struct key *key;
    size_t at;
    int n_ready, i_ready;
    char ready[4];
};

/* The next byte, -1 after the last. */
static int next_byte(struct cursor *cursor)
{
    if (cursor->i_ready == cursor->n_ready) {
        if (cursor->at == cursor->key->n_span)
            return -1;
        cursor->n_ready = resolve(cursor->key->span, &cursor->at, cursor->ready);
        cursor->i_ready = 0;
    }
    return (uint8_t)cursor->ready[cursor->i_ready++];
}

/* By object, then by value. Sorting instead of hashing: no list of keys can make it quadratic. */
static int compare_keys(const void *left, const void *right)
{
    const struct key *a = left, *b = right;

    if (a->object != b->object)
        return a->object < b->object ? -1 : 1;
    if (!a->has_escapes && !b->has_escapes) {
        uint32_t n = a->n_span < b->n_span ? a->n_span : b->n_span;
        int order = memcmp(a->span, b->span, n);
        return order != 0 ? order : (a->n_span > b->n_span) - (a->n_span < b->n_span);
    }
    struct cursor x = {.key = a}, y = {.key = b};
    for (;;) {
        int p = next_byte(&x), q = next_byte(&y);
        if (p != q)
            return p < q ? -1 : 1;
        if (p < 0)
            return 0;
    }
}

/* Appends to a list that doubles. */
static int add_key(struct key **keys, size_t *n, size_t *capacity, struct key key)
{
    if (*n == *capacity) {
        size_t wanted = *capacity == 0 ? 64 : 2 * *capacity;
        struct key *grown = realloc(*keys, wanted * sizeof(*grown));
        if (grown == NULL)
            return LL_ERRNO("%zu JSON keys", wanted);
        *keys = grown;
        *capacity = wanted;
    }
    (*keys)[(*n)++] = key;
    return 0;
}

static int check_unique(struct key *keys, size_t n, const char *text, const char *what)
{
    if (n > 1)
        qsort(keys, n, sizeof(*keys), compare_keys);
    for (size_t i = 1; i < n; i++)
        if (compare_keys(&keys[i - 1], &keys[i]) == 0) {
            const struct key *later = keys[i - 1].span > keys[i].span ? &keys[i - 1] : &keys[i];
            return LL_ERR(LL_E_INVAL, "%s: byte %zu: the key \"%.*s\" stands twice in one object",
                          what, (size_t)(later->span - text),
                          (int)(later->n_span < 64 ? later->n_span : 64), later->span);
        }
    return 0;
}

int ll_json_check(const char *text, size_t n_bytes, uint32_t depth_max, uint32_t flags,
                  const char *what)
{
    struct ll_json json;
    struct key *keys = NULL;
    size_t n_keys = 0, capacity = 0;
    uint32_t object[LL_JSON_DEPTH_MAX], n_objects = 0; /* serial of the object open at a depth */
    int rc = 0;

    if (n_bytes > UINT32_MAX)
        return LL_ERR(LL_E_INVAL, "%s: larger than 4 GiB", what);
    ll_json_init(&json, text, n_bytes, depth_max);
    for (;;) {
        enum ll_json_token token = ll_json_next(&json);
        if (token == LL_JSON_END)
            break;
        if (token == LL_JSON_ERROR) {
            rc = ll_json_fail(&json, what, NULL);
            goto free_keys;
        }
        if ((flags & LL_JSON_UNIQUE) == 0)
            continue;
        if (token == LL_JSON_OBJECT)
            object[json.depth - 1] = n_objects++;
        if (token != LL_JSON_KEY)
            continue;
        struct key key = {json.span, (uint32_t)json.n_span, object[json.depth - 1],
                          json.has_escapes};
        rc = add_key(&keys, &n_keys, &capacity, key);
        if (rc < 0)
            goto free_keys;
    }
    rc = check_unique(keys, n_keys, text, what);
free_keys:
    free(keys);
    return rc;
}
