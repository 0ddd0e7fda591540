/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/json.h - strict JSON (RFC 8259) out of a memory buffer, token by token, and JSON
 * printed the way Python's json.dumps prints it.
 *
 * The reader pulls: each call gives the next token, nothing is allocated, nothing recurses. It
 * refuses what lax parsers let through: text after the value, NaN, leading zeros, control
 * characters, bad escapes, lone surrogates, invalid UTF-8, nesting past depth_max. Repeated keys
 * are legal to the reader; ll_json_check(.., LL_JSON_UNIQUE) refuses them.
 *
 *     struct ll_json json;
 *     ll_json_init(&json, text, n_bytes, 0);
 *     if (ll_json_next(&json) != LL_JSON_OBJECT)
 *         return ll_json_fail(&json, "tools", "expected an object");
 *     while ((token = ll_json_next(&json)) == LL_JSON_KEY) {
 *         if (ll_json_is(&json, "name"))
 *             ... ll_json_next(&json) ...
 *         else if (ll_json_skip(&json, NULL, NULL) < 0)
 *             break;
 *     }
 *     if (token != LL_JSON_OBJECT_END)
 *         return ll_json_fail(&json, "tools", NULL);
 */
#ifndef CLIENT_TEXT_JSON_H
#define CLIENT_TEXT_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LL_JSON_DEPTH     64  /* nesting allowed where nothing else is said */
#define LL_JSON_DEPTH_MAX 256 /* most that may be asked for */

enum ll_json_token {
    LL_JSON_ERROR = -1, /* error and error_at say what; every later call answers the same */
    LL_JSON_END = 0,    /* the value is over and only white space followed */
    LL_JSON_OBJECT,
    LL_JSON_OBJECT_END,
    LL_JSON_ARRAY,
    LL_JSON_ARRAY_END,
    LL_JSON_KEY, /* the colon is consumed too; a value follows */
    LL_JSON_STRING,
    LL_JSON_NUMBER,
    LL_JSON_TRUE,
    LL_JSON_FALSE,
    LL_JSON_NULL,
};

/* On the caller's stack. Read the first block freely; the rest is the reader's. */
struct ll_json {
    const char *span; /* the last token as it stands in the text; strings without their quotes */
    size_t n_span;
    size_t span_at;    /* its byte offset */
    bool has_escapes;  /* KEY, STRING: span is not yet the string's value */
    uint32_t depth;    /* open objects and arrays */
    const char *error; /* reason, static text; NULL: none */
    size_t error_at;   /* byte offset of what is wrong */

    const char *text;
    size_t n_bytes, at;
    uint32_t depth_max;
    uint8_t state;
    uint8_t is_object[LL_JSON_DEPTH_MAX / 8]; /* bit d: what is open at depth d is an object */
};

/* Reads text[0 .. n_bytes), which must outlive json. depth_max 0: LL_JSON_DEPTH. */
void ll_json_init(struct ll_json *json, const char *text, size_t n_bytes, uint32_t depth_max);

enum ll_json_token ll_json_next(struct ll_json *json);

/* Consumes the value that comes next (after a KEY, or an array's next element) whatever it is.
 * *span, *n_span (both may be NULL): its text. Returns its first token; LL_JSON_ARRAY_END when the
 * array is over; LL_JSON_ERROR. */
enum ll_json_token ll_json_skip(struct ll_json *json, const char **span, size_t *n_span);

/* Is the last KEY or STRING this text? */
bool ll_json_is(const struct ll_json *json, const char *text);

/* The last KEY's or STRING's value, escapes resolved, to out[0 .. capacity). Returns its length,
 * at most n_span; what does not fit is counted but not written. \u0000 gives a zero byte. */
size_t ll_json_string(const struct ll_json *json, char *out, size_t capacity);

/* The last NUMBER. False: not an integer (no point, no exponent) in int64's range. */
bool ll_json_int(const struct ll_json *json, int64_t *out);
/* False: past the largest double. Rounds correctly, in any locale. */
bool ll_json_double(const struct ll_json *json, double *out);

/* Records "<what>: byte <offset>: <reason>" and returns LL_E_INVAL. The reader's own error comes
 * first; without one the reason is `otherwise`, said of the last token. */
int ll_json_fail(const struct ll_json *json, const char *what, const char *otherwise);

/* Reads all of text and says whether it is one valid value. Time n log n at worst; LL_JSON_UNIQUE
 * needs 24 bytes a key. 0, -ENOMEM, or LL_E_INVAL as ll_json_fail(). */
enum ll_json_check_flags {
    LL_JSON_UNIQUE = 1, /* no object may have a key twice (compared with escapes resolved) */
};
int ll_json_check(const char *text, size_t n_bytes, uint32_t depth_max, uint32_t flags,
                  const char *what);

/* ---- printing -----------------------------------------------------------------------------*/
/* Where text goes: what passes capacity is counted in n and dropped. */
struct ll_sink {
    char *bytes; /* may be NULL when capacity is 0 */
    size_t capacity;
    size_t n;
};
void ll_sink_put(struct ll_sink *sink, const char *bytes, size_t n_bytes);
void ll_sink_puts(struct ll_sink *sink, const char *text);

/* "text" in quotes as json.dumps(text, ensure_ascii=False) writes it: \" \\ \b \f \n \r \t and
 * \u00xx for other control characters; everything else, invalid UTF-8 too, as it is. */
void ll_json_quote(struct ll_sink *sink, const char *text, size_t n_bytes);

/* Prints one JSON value as json.dumps(value, ensure_ascii=False) does: separators ", " and ": ".
 * indent > 0: as with indent=N, one item a line. Order of keys and text of numbers are kept,
 * strings are escaped anew. 0, or LL_E_INVAL (`what` names the text); nothing useful is in sink
 * then. */
int ll_json_print(struct ll_sink *sink, const char *text, size_t n_bytes, uint32_t indent,
                  const char *what);

#endif
