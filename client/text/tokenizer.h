/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/tokenizer.h - the view of a checked image that encoder and decoder work on. */
#ifndef CLIENT_TEXT_TOKENIZER_H
#define CLIENT_TEXT_TOKENIZER_H

#include "client/text/image.h"
#include "ll/text.h"

#include <stdbool.h>

/* Immutable once made. Numbers are private copies: the image's header is never read again. */
struct ll_tokenizer {
    uint32_t n_vocab, n_ranks, n_specials, bos;
    uint32_t token_bytes_max, piece_bytes_max;
    uint32_t piece_mask, merge_mask;
    bool takes_whole_piece;
    const uint32_t *token;
    const char *text;
    const struct ll_image_piece *pieces;
    const uint64_t *merges;
    const uint32_t *merged;
    const struct ll_image_special *specials;
    void *owned; /* the image, when it was built here; else NULL */
    uint32_t byte_id[256];
    uint64_t special_first[256 / 64]; /* bytes that start a special token */
    uint64_t *special_ids;            /* bit an id: special, left out of plain output */
};

/* The bytes of an id < n_vocab; *n_bytes is 0 where it has none. */
static inline const char *ll_tokenizer_text(const struct ll_tokenizer *tokenizer, uint32_t id,
                                            uint32_t *n_bytes)
{
    *n_bytes = tokenizer->token[id + 1] - tokenizer->token[id];
    return tokenizer->text + tokenizer->token[id];
}

/* The id that the template puts before a text; LL_IMAGE_NO_ID: none. */
uint32_t ll_tokenizer_bos(const struct ll_tokenizer *tokenizer);

/* The longest special or added token that starts text[0 .. n_bytes); LL_IMAGE_NO_ID: none. */
uint32_t ll_tokenizer_match_special(const struct ll_tokenizer *tokenizer, const char *text,
                                    size_t n_bytes, size_t *n_matched);

/* Merges one piece; in encode.c, here for its test. Returns the number of ids, or -ENOMEM; writes
 * at most n_max. Uses *scratch (realloc'd, the caller frees it) for pieces past a few dozen bytes:
 * 32 bytes a byte of the piece. */
struct ll_merge_scratch {
    void *block;
    size_t n_bytes;
    uint64_t n_steps; /* heap operations and scanned pairs so far: what the tests of time count */
};
int64_t ll_merge_piece(const struct ll_tokenizer *tokenizer, const char *piece, size_t n_bytes,
                       struct ll_merge_scratch *scratch, uint32_t *ids, size_t n_max);

#endif
