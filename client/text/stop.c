/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/stop.c - the first of several strings in a stream of text.
 *
 * Each string has its own Knuth-Morris-Pratt matcher, so every byte costs amortised constant time a
 * string and the result does not depend on how the text was cut:
 *   S1  matched[i] is the length of the longest beginning of string i that ends the stream so far.
 *   S2  held is the longest matched[i]: the end of the stream that may still become a hit. It is
 *       kept in text[shown .. shown + held); all before it has been given out.
 * The hit is the one that ends first; of those that end together, the longest. Strings are whole
 * UTF-8 characters, so what is held back never cuts a character of well-formed text. */
#include "ll/text.h"

#include "base/err.h"
#include "client/text/utf8.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct matcher {
    const char *string;
    uint32_t n;
    uint32_t matched;
    uint16_t *fallback; /* [n]: longest proper border of string[0 .. i] */
};

struct ll_stopper {
    uint32_t n;
    int hit;
    size_t held;
    size_t shown; /* bytes of text the last feed gave out; what is held follows them */
    char *text;
    size_t capacity;
    struct matcher matchers[LL_STOP_STRINGS_MAX];
    char bytes[]; /* the strings and their tables */
};

static bool is_utf8(const char *text, size_t n)
{
    for (size_t at = 0; at < n;) {
        uint32_t code;
        int length = ll_utf8_decode(text + at, n - at, &code);
        if (length <= 0)
            return false;
        at += (size_t)length;
    }
    return true;
}

static int check_strings(const char *const *strings, const size_t *n_bytes, uint32_t n)
{
    if (n > LL_STOP_STRINGS_MAX)
        return LL_ERR(LL_E_INVAL, "%u stop strings; at most %d are allowed", n,
                      LL_STOP_STRINGS_MAX);
    for (uint32_t i = 0; i < n; i++) {
        if (n_bytes[i] == 0 || n_bytes[i] > LL_STOP_BYTES_MAX)
            return LL_ERR(LL_E_INVAL, "stop string %u has %zu bytes; 1 to %d are allowed", i,
                          n_bytes[i], LL_STOP_BYTES_MAX);
        if (!is_utf8(strings[i], n_bytes[i]))
            return LL_ERR(LL_E_INVAL, "stop string %u is not valid UTF-8", i);
    }
    return 0;
}

static void make_fallback(struct matcher *matcher)
{
    uint32_t border = 0;

    matcher->fallback[0] = 0;
    for (uint32_t i = 1; i < matcher->n; i++) {
        while (border > 0 && matcher->string[border] != matcher->string[i])
            border = matcher->fallback[border - 1];
        border += matcher->string[border] == matcher->string[i];
        matcher->fallback[i] = (uint16_t)border;
    }
}

int ll_stopper_new(struct ll_stopper **out, const char *const *strings, const size_t *n_bytes,
                   uint32_t n)
{
    size_t total = 0;
    int rc = check_strings(strings, n_bytes, n);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < n; i++)
        total += n_bytes[i];
    struct ll_stopper *stopper = calloc(1, sizeof(*stopper) + total * (1 + sizeof(uint16_t)) + 1);
    if (stopper == NULL)
        return LL_ERRNO("stop strings");
    /* The tables first: bytes[] starts aligned for them. */
    uint16_t *fallback = (uint16_t *)(void *)stopper->bytes;
    char *string = stopper->bytes + total * sizeof(uint16_t);
    stopper->n = n;
    stopper->hit = -1;
    for (uint32_t i = 0; i < n; i++) {
        struct matcher *matcher = &stopper->matchers[i];
        memcpy(string, strings[i], n_bytes[i]);
        *matcher =
            (struct matcher){.string = string, .n = (uint32_t)n_bytes[i], .fallback = fallback};
        make_fallback(matcher);
        string += n_bytes[i];
        fallback += n_bytes[i];
    }
    *out = stopper;
    return 0;
}

void ll_stopper_free(struct ll_stopper *stopper)
{
    if (stopper == NULL)
        return;
    free(stopper->text);
    free(stopper);
}

void ll_stopper_reset(struct ll_stopper *stopper)
{
    stopper->hit = -1;
    stopper->held = 0;
    stopper->shown = 0;
    for (uint32_t i = 0; i < stopper->n; i++)
        stopper->matchers[i].matched = 0;
}

/* Takes one byte; true when the string ends with it. */
static bool advance(struct matcher *matcher, char byte)
{
    uint32_t matched = matcher->matched;

    while (matched > 0 && matcher->string[matched] != byte)
        matched = matcher->fallback[matched - 1];
    matched += matcher->string[matched] == byte;
    matcher->matched = matched;
    return matched == matcher->n;
}

/* Feeds all matchers up to and with the first hit; returns how many bytes were read. */
static size_t scan(struct ll_stopper *stopper, const char *text, size_t n)
{
    for (size_t at = 0; at < n; at++) {
        uint32_t longest = 0;
        for (uint32_t i = 0; i < stopper->n; i++) {
            struct matcher *matcher = &stopper->matchers[i];
            if (advance(matcher, text[at]) && matcher->n > longest) {
                longest = matcher->n;
                stopper->hit = (int)i;
            }
        }
        if (stopper->hit >= 0)
            return at + 1;
    }
    return n;
}

int ll_stopper_feed(struct ll_stopper *stopper, const char *text, size_t n_bytes, const char **out,
                    int *hit)
{
    size_t held = 0;

    *hit = stopper->hit;
    *out = "";
    if (stopper->hit >= 0 || n_bytes == 0)
        return 0;
    if (n_bytes > INT32_MAX - LL_STOP_BYTES_MAX)
        return LL_ERR(LL_E_INVAL, "%zu bytes in one piece of text", n_bytes);
    if (stopper->capacity < LL_STOP_BYTES_MAX + n_bytes) {
        size_t capacity = 2 * (LL_STOP_BYTES_MAX + n_bytes);
        char *grown = realloc(stopper->text, capacity);
        if (grown == NULL)
            return LL_ERRNO("%zu bytes of text", n_bytes);
        stopper->text = grown;
        stopper->capacity = capacity;
    }
    /* Only now: what was shown last time had to stay until this call. */
    memmove(stopper->text, stopper->text + stopper->shown, stopper->held);
    memcpy(stopper->text + stopper->held, text, n_bytes);

    size_t n = stopper->held + scan(stopper, text, n_bytes);
    if (stopper->hit >= 0)
        held = stopper->matchers[stopper->hit].n;
    else
        for (uint32_t i = 0; i < stopper->n; i++)
            if (stopper->matchers[i].matched > held)
                held = stopper->matchers[i].matched;
    stopper->shown = n - held;
    stopper->held = held;
    *out = stopper->text;
    *hit = stopper->hit;
    return (int)stopper->shown;
}

int ll_stopper_finish(struct ll_stopper *stopper, const char **out)
{
    int n = stopper->hit >= 0 ? 0 : (int)stopper->held;

    *out = n > 0 ? stopper->text + stopper->shown : "";
    int hit = stopper->hit;
    ll_stopper_reset(stopper);
    stopper->hit = hit; /* a stopped stream stays stopped until _reset */
    return n;
}
