/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/split.c - LL_SPLIT_REGEX by hand: no backtracking, so no text is slow.
 *
 * The alternatives in their order, with what the expression's backtracking comes to:
 *   A1 (?i:'s|'t|'re|'ve|'m|'ll|'d)   s also as U+017F, which folds to it
 *   A2 [^\r\n\p{L}\p{N}]?\p{L}+       a letter run, with at most one character in front
 *   A3 \p{N}{1,3}
 *   A4  ?[^\s\p{L}\p{N}]+[\r\n]*
 *   A5 \s*[\r\n]+                     white space up to and with its last CR or LF
 *   A6 \s+(?!\S)                      white space, without its last character if text follows
 *   A7 \s+                            what is left of A6: one character
 * A white-space run is scanned at most three times: once for A5, once for what A5 left (A6), and
 * its last character once more as the front of A2 or A4. */
#include "client/text/split.h"

#include "client/text/unicode.h"
#include "client/text/utf8.h"

#include <stdbool.h>

enum {
    OTHER = LL_UNICODE_OTHER,
    LETTER = LL_UNICODE_LETTER,
    NUMBER = LL_UNICODE_NUMBER,
    SPACE = LL_UNICODE_SPACE,
    INVALID, /* not UTF-8 */
    NONE,    /* past the end */
};

struct character {
    uint32_t class;
    uint32_t length; /* bytes; 0 past the end */
};

static struct character character_at(const char *text, size_t n, size_t at)
{
    if (at >= n)
        return (struct character){NONE, 0};
    uint8_t byte = (uint8_t)text[at];
    if (byte < 0x80)
        return (struct character){ll_unicode_class(byte), 1};
    uint32_t code = 0;
    int length = ll_utf8_decode(text + at, n - at, &code);
    if (length <= 0)
        return (struct character){INVALID, 1};
    return (struct character){ll_unicode_class(code), (uint32_t)length};
}

static bool is_newline(char c)
{
    return c == '\n' || c == '\r';
}

/* The end of the run of one class that starts at `at`. */
static size_t run_end(const char *text, size_t n, size_t at, uint32_t class)
{
    for (;;) {
        struct character next = character_at(text, n, at);
        if (next.class != class)
            return at;
        at += next.length;
    }
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

/* A1 after its apostrophe: the length of the whole match, 0 for none. */
static size_t contraction(const char *text, size_t n)
{
    if (n < 2)
        return 0;
    char first = lower(text[1]), second = n > 2 ? lower(text[2]) : '\0';
    if (first == 's' || first == 't' || first == 'm' || first == 'd')
        return 2;
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
        (first == 'l' && second == 'l'))
        return 3;
    if (n > 2 && text[1] == '\xc5' && text[2] == '\xbf') /* U+017F */
        return 3;
    return 0;
}

/* A5, A6, A7. */
static size_t white_space(const char *text, size_t n)
{
    size_t end = 0, last = 0, after_newline = 0;

    for (;;) {
        struct character next = character_at(text, n, end);
        if (next.class != SPACE)
            break;
        last = end;
        end += next.length;
        if (is_newline(text[last]))
            after_newline = end;
    }
    if (after_newline > 0)
        return after_newline;
    return end < n && last > 0 ? last : end;
}

size_t ll_split_piece(const char *text, size_t n)
{
    struct character first = character_at(text, n, 0);
    size_t at = first.length;

    if (first.class == LETTER)
        return run_end(text, n, at, LETTER);
    if (first.class == INVALID)
        return 1;
    if (first.class == NUMBER) {
        for (int i = 0; i < 2; i++) {
            struct character next = character_at(text, n, at);
            if (next.class != NUMBER)
                break;
            at += next.length;
        }
        return at;
    }
    if (text[0] == '\'') {
        size_t length = contraction(text, n);
        if (length > 0)
            return length;
    }
    struct character second = character_at(text, n, at);
    if (second.class == LETTER && !is_newline(text[0]))
        return run_end(text, n, at + second.length, LETTER);
    if (first.class == OTHER || (text[0] == ' ' && second.class == OTHER)) {
        at = run_end(text, n, at, OTHER);
        while (at < n && is_newline(text[at]))
            at++;
        return at;
    }
    return white_space(text, n);
}
