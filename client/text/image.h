/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/image.h - the tokenizer image (region TOK): every table the encoder and the decoder
 * need, flat in one block that all clients map read-only.
 *
 * Little-endian, position independent: all references are byte offsets from the start or indexes.
 * Whoever maps an image checks it once (ll_tokenizer_from_image) and keeps the header's numbers in
 * private memory; the tables are then read without further checks:
 *   M1  token[id] <= token[id + 1] <= text_bytes: the text of every id lies inside the text table
 *   M2  every id in a table is < n_vocab, every rank < n_ranks
 *   M3  the two hash tables have a power of two of slots and at least one free one, so that every
 *       probe ends
 *   M4  specials are sorted by text, without two alike
 * A broken table can give wrong tokens, never a wild access. */
#ifndef CLIENT_TEXT_IMAGE_H
#define CLIENT_TEXT_IMAGE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define LL_IMAGE_MAGIC   0x314b4f54474e4952ull /* "RINGTOK1" */
#define LL_IMAGE_VERSION 1

/* What a merge slot's 20-bit ids and 24-bit ranks can hold; far more than any Llama needs. */
#define LL_IMAGE_VOCAB_MAX (1u << 20)
#define LL_IMAGE_RANKS_MAX ((1u << 24) - 1)
#define LL_IMAGE_TOKEN_MAX 4096 /* bytes of one id; Llama 3's longest is 128 */

#define LL_IMAGE_NO_ID UINT32_MAX

enum ll_image_flags {
    LL_IMAGE_WHOLE_PIECE = 1, /* a piece that is in the vocabulary is that token (ignore_merges) */
};

/* A slot of the piece table: open addressing, linear probing from tag & mask. */
struct ll_image_piece {
    uint32_t tag; /* ll_image_hash() of the bytes */
    uint32_t id;  /* LL_IMAGE_NO_ID: free */
};

/* A special token or another added one. */
struct ll_image_special {
    uint32_t id;
    uint32_t is_special; /* 1: left out of plain output; 0: merely recognised ("special": false) */
};

struct ll_image {
    uint64_t magic;
    uint32_t version;
    uint32_t header_bytes; /* sizeof(struct ll_image) */
    uint64_t bytes;        /* of the whole image */
    uint32_t flags;        /* enum ll_image_flags */
    uint32_t n_vocab;      /* ids are 0 .. n_vocab - 1; some may have no text */
    uint32_t n_ranks;
    uint32_t n_specials;
    uint32_t bos;             /* LL_IMAGE_NO_ID: none */
    uint32_t token_bytes_max; /* of the longest id, specials included */
    uint32_t piece_bytes_max; /* of the longest id in the piece table */
    uint32_t n_piece_slots;   /* power of two */
    uint32_t n_merge_slots;   /* power of two */
    uint32_t text_bytes;
    uint64_t token_at; /* uint32_t[n_vocab + 1]: where each id's text starts in the text table */
    uint64_t text_at;  /* char[text_bytes] */
    uint64_t piece_at; /* struct ll_image_piece[n_piece_slots]: bytes -> id, specials not in it */
    uint64_t merge_at; /* uint64_t[n_merge_slots]: left id 20 | right id 20 | rank + 1 24; 0 free */
    uint64_t merged_at;    /* uint32_t[n_ranks]: rank -> the id it makes */
    uint64_t special_at;   /* struct ll_image_special[n_specials] */
    uint32_t byte_id[256]; /* ids of the single bytes, where every merge starts */
};

static_assert(sizeof(struct ll_image_piece) == 8, "table layout");
static_assert(sizeof(struct ll_image_special) == 8, "table layout");
static_assert(offsetof(struct ll_image, token_at) == 64, "image layout");
static_assert(offsetof(struct ll_image, byte_id) == 112, "image layout");
static_assert(sizeof(struct ll_image) == 1136, "image layout");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "images are little-endian");

/* Builds an image from a tokenizer.json, a tokenizer.model in tiktoken's form, or a directory that
 * holds one of them. *image is malloc'd; written only on success. For the runtime in a forked,
 * limited child; ll_tokenizer_from_path() uses it too. Peak memory is about 4 times the file.
 *   -ENOENT, -EACCES, ...  the file cannot be read
 *   LL_E_INVAL             broken; file, field and byte are named
 *   LL_E_UNSUPPORTED       not a Llama 3 style byte-level BPE; what differs is named
 *   -ENOMEM */
int ll_tokenizer_image_build(const char *path, void **image, size_t *n_bytes);

/* Checks M1-M4. LL_E_PROTOCOL. image must be 8-byte aligned. */
int ll_tokenizer_image_check(const void *image, size_t n_bytes);

static inline uint32_t ll_image_hash(const char *bytes, size_t n)
{
    const uint64_t k = 0x9e3779b97f4a7c15ull;
    uint64_t hash = n * k, word;

    for (; n >= 8; bytes += 8, n -= 8) {
        __builtin_memcpy(&word, bytes, 8);
        hash = (hash ^ word) * k;
        hash ^= hash >> 32;
    }
    word = 0;
    for (size_t i = 0; i < n; i++)
        word |= (uint64_t)(uint8_t)bytes[i] << 8 * i;
    hash = (hash ^ word) * k;
    return (uint32_t)(hash >> 32);
}

/* The first 40 bits of a merge slot. */
static inline uint64_t ll_image_pair(uint32_t left, uint32_t right)
{
    return (uint64_t)left << 44 | (uint64_t)right << 24;
}

static inline uint32_t ll_image_pair_hash(uint64_t pair)
{
    return (uint32_t)((pair >> 24) * 0x9e3779b97f4a7c15ull >> 36); /* the best mixed bits */
}

#endif
