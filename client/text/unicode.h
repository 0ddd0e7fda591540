/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/unicode.h - what the splitter asks of a character: letter, number, space, other. */
#ifndef CLIENT_TEXT_UNICODE_H
#define CLIENT_TEXT_UNICODE_H

#include <stdint.h>

enum ll_unicode_class {
    LL_UNICODE_OTHER = 0,
    LL_UNICODE_LETTER = 1, /* general category L* */
    LL_UNICODE_NUMBER = 2, /* general category N* */
    LL_UNICODE_SPACE = 3,  /* property White_Space */
};

/* Two levels: a block of 256 code points each, 2 bits a code point. */
extern const uint8_t ll_unicode_index[0x110000 / 256];
extern const uint8_t ll_unicode_blocks[][256 / 4];

/* code: a scalar value, at most 0x10ffff. */
static inline uint32_t ll_unicode_class(uint32_t code)
{
    return ll_unicode_blocks[ll_unicode_index[code >> 8]][(code & 0xff) / 4] >> (code % 4 * 2) & 3;
}

#endif
