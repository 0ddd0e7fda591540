/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/random_text.h - text that looks for trouble: scripts, digits, white space of every
 * kind, contractions, line ends, emoji, and on demand bytes that are not UTF-8. */
#ifndef TESTS_CLIENT_RANDOM_TEXT_H
#define TESTS_CLIENT_RANDOM_TEXT_H

#include "base/rng.h"
#include "client/text/utf8.h"

#include <stdbool.h>
#include <string.h>

/* A code point from one of many small ranges, so that runs of one class are common. */
static inline uint32_t random_code(uint64_t *seed)
{
    static const uint32_t range[][2] = {
        {'a', 'z'},         {'A', 'Z'},         {'0', '9'},           {' ', ' '},
        {' ', '~'},         {'\n', '\n'},       {'\t', '\r'},         {0x00, 0x1f},
        {0x7f, 0xff},       {0x100, 0x17f},     {0x370, 0x3ff},       {0x400, 0x4ff},
        {0x5d0, 0x6ff},     {0x900, 0x97f},     {0xe00, 0xe7f},       {0x1680, 0x1680},
        {0x180b, 0x180f},   {0x2000, 0x206f},   {0x2150, 0x218b},     {0x2460, 0x24ff},
        {0x3000, 0x30ff},   {0x4e00, 0x9fff},   {0xac00, 0xd7a3},     {0xe000, 0xe0ff},
        {0xfe00, 0xffff},   {0x10100, 0x10140}, {0x1d400, 0x1d7ff},   {0x1f300, 0x1f6ff},
        {0x20000, 0x2a6d6}, {0xe0100, 0xe01ef}, {0x10fff0, 0x10ffff},
    };
    const uint32_t *r = range[ll_splitmix64(seed) % (sizeof(range) / sizeof(range[0]))];

    return r[0] + (uint32_t)(ll_splitmix64(seed) % (r[1] - r[0] + 1));
}

/* Fills text with at most capacity bytes; returns how many. invalid: one item in four is not
 * UTF-8. */
static inline size_t random_text(uint64_t *seed, char *text, size_t capacity, bool invalid)
{
    static const char *const words[] = {
        "'s",  "'S",   "'\xc5\xbf", "'RE",      "'ll",      "'Ve",          "'x",  "''",
        "'",   " the", "\r\n",      "\n\n",     "  ",       " \n ",         "   ", "hello",
        "123", "1234", "!",         " !\r\n\n", "\xc2\xa0", "\xe3\x80\x80",
    };
    size_t n = 0;

    while (n + 64 < capacity) {
        uint64_t kind = ll_splitmix64(seed) % 8;
        if (kind == 0) {
            const char *word = words[ll_splitmix64(seed) % (sizeof(words) / sizeof(words[0]))];
            memcpy(text + n, word, strlen(word));
            n += strlen(word);
        } else if (invalid && kind < 3) {
            char bytes[4];
            int length = ll_utf8_encode(random_code(seed), bytes);
            if (ll_splitmix64(seed) % 2 == 0)
                bytes[0] = (char)(0x80 | ll_splitmix64(seed) % 128);
            length = 1 + (int)(ll_splitmix64(seed) % (uint64_t)length);
            memcpy(text + n, bytes, (size_t)length);
            n += (size_t)length;
        } else {
            uint64_t repeat = ll_splitmix64(seed) % 4 == 0 ? 1 + ll_splitmix64(seed) % 8 : 1;
            uint32_t code = random_code(seed);
            for (; repeat > 0; repeat--)
                n += (size_t)ll_utf8_encode(code, text + n);
        }
    }
    return n;
}

#endif
