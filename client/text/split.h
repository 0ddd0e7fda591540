/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/split.h - cuts text into the pieces that are tokenized one by one. */
#ifndef CLIENT_TEXT_SPLIT_H
#define CLIENT_TEXT_SPLIT_H

#include <stddef.h>

/* The expression the splitter is written for; a tokenizer.json with another one is refused. */
#define LL_SPLIT_REGEX                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"                       \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* Length of the piece that starts text[0 .. n), n >= 1: what LL_SPLIT_REGEX matches there, always
 * at least one character. A byte that is not part of valid UTF-8 is a piece of its own; to its
 * neighbours it is a character that is neither letter, number nor white space. Looks at no byte
 * before text and is linear over a whole text: no byte is visited more than a few times. */
size_t ll_split_piece(const char *text, size_t n);

#endif
