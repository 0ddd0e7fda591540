/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/utf8.h - one character of UTF-8 at a time, by Unicode's table 3-7.
 *
 * Overlong forms, surrogates and values past U+10FFFF are invalid. An invalid sequence counts as
 * its maximal subpart (what Python and WHATWG replace by one U+FFFD), so that every reader here
 * cuts broken text in the same places. */
#ifndef CLIENT_TEXT_UTF8_H
#define CLIENT_TEXT_UTF8_H

#include <stddef.h>
#include <stdint.h>

#define LL_UTF8_REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

/* Decodes the character at bytes[0 .. n), n >= 1.
 *   1 .. 4    its length; *code is set
 *   0         the bytes end inside a character that may still become valid
 *   -1 .. -3  so many bytes (negated) can never become one */
static inline int ll_utf8_decode(const char *bytes, size_t n, uint32_t *code)
{
    const uint8_t *b = (const uint8_t *)bytes;
    uint8_t lead = b[0], low = 0x80, high = 0xbf;
    int length;

    if (lead < 0x80) {
        *code = lead;
        return 1;
    }
    if (lead < 0xc2 || lead > 0xf4)
        return -1;
    length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (lead == 0xe0)
        low = 0xa0;
    else if (lead == 0xed)
        high = 0x9f;
    else if (lead == 0xf0)
        low = 0x90;
    else if (lead == 0xf4)
        high = 0x8f;

    uint32_t value = lead & (0x7fu >> length);
    for (int i = 1; i < length; i++) {
        if ((size_t)i == n)
            return 0;
        if (b[i] < low || b[i] > high)
            return -i;
        value = value << 6 | (b[i] & 0x3fu);
        low = 0x80, high = 0xbf;
    }
    *code = value;
    return length;
}

/* Writes code (a scalar value) as UTF-8 to out[0 .. 4); returns the length. */
static inline int ll_utf8_encode(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3f));
        out[2] = (char)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3f));
    out[2] = (char)(0x80 | (code >> 6 & 0x3f));
    out[3] = (char)(0x80 | (code & 0x3f));
    return 4;
}

#endif
