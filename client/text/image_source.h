/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/image_source.h - what the two file readers gather and image_build.c packs.
 *
 * Ids come in any order; the packer sorts, checks for gaps and doubles, and lays out the tables. */
#ifndef CLIENT_TEXT_IMAGE_SOURCE_H
#define CLIENT_TEXT_IMAGE_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ll_source_token {
    uint32_t at; /* offset of its bytes in text; LL_IMAGE_NO_ID: the id has none */
    uint16_t n_bytes;
    uint8_t is_piece;   /* part of the BPE vocabulary */
    uint8_t is_added;   /* in added_tokens */
    uint8_t is_special; /* in added_tokens with special: true */
};

struct ll_source_merge {
    uint32_t left, right, rank;
};

struct ll_source {
    const char *path; /* for messages */
    char *text;
    size_t n_text, text_capacity;
    struct ll_source_token *tokens; /* [n_vocab] by id */
    uint32_t n_vocab, vocab_capacity;
    struct ll_source_merge *merges;
    size_t n_merges, merges_capacity;
    uint32_t *merged; /* [n_ranks] */
    uint32_t n_ranks;
    uint32_t bos;
    bool takes_whole_piece;

    /* Piece table, built once the vocabulary is complete: the merge readers look pieces up. */
    struct ll_image_piece *pieces;
    uint32_t n_piece_slots;
};

void ll_source_free(struct ll_source *source);

/* Takes over one token; bytes may be written to by the caller beforehand through _room. */
enum ll_source_kind { LL_SOURCE_PIECE, LL_SOURCE_ADDED, LL_SOURCE_SPECIAL };

/* Room for n_bytes more at the end of text; NULL after -ENOMEM was recorded. */
char *ll_source_room(struct ll_source *source, size_t n_bytes);

/* The n_bytes last written to the room become token id. 0, -ENOMEM, or LL_E_INVAL without words:
 * *why then says what is wrong. An added token may repeat a piece's id and bytes. */
int ll_source_add(struct ll_source *source, uint32_t id, size_t n_bytes, enum ll_source_kind kind,
                  const char **why);

/* Builds the piece table; no pieces may be added afterwards. 0, -ENOMEM, or LL_E_INVAL with *why:
 * two ids with the same bytes. */
int ll_source_index(struct ll_source *source, const char **why);

/* The piece with these bytes; LL_IMAGE_NO_ID: none. Needs _index. */
uint32_t ll_source_find(const struct ll_source *source, const char *bytes, size_t n_bytes);

/* Appends a merge. 0 or -ENOMEM. */
int ll_source_merge(struct ll_source *source, uint32_t left, uint32_t right, uint32_t rank);

/* The readers: fill source from a whole file's text. */
int ll_source_read_json(struct ll_source *source, const char *text, size_t n_bytes);
int ll_source_read_tiktoken(struct ll_source *source, const char *text, size_t n_bytes);

#endif
