/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/image_source.c - growing lists of tokens and merges while a file is read. */
#include "client/text/image_source.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/err.h"
#include "client/text/image.h"
#include "ll/client.h"

#include <stdlib.h>
#include <string.h>

void ll_source_free(struct ll_source *source)
{
    free(source->text);
    free(source->tokens);
    free(source->merges);
    free(source->merged);
    free(source->pieces);
}

char *ll_source_room(struct ll_source *source, size_t n_bytes)
{
    size_t wanted = source->n_text + n_bytes;

    if (wanted > source->text_capacity) {
        size_t capacity = ll_max_u64(2 * source->text_capacity, ll_max_u64(wanted, 64 * 1024));
        char *grown = realloc(source->text, capacity);
        if (grown == NULL) {
            LL_ERRNO("%s: %zu bytes of token text", source->path, capacity);
            return NULL;
        }
        source->text = grown;
        source->text_capacity = capacity;
    }
    return source->text + source->n_text;
}

/* Makes id a valid index of tokens. */
static int grow_vocab(struct ll_source *source, uint32_t id)
{
    if (id >= source->vocab_capacity) {
        uint32_t capacity = (uint32_t)ll_max_u64(ll_pow2_ceil((uint64_t)id + 1), 1024);
        struct ll_source_token *grown = realloc(source->tokens, capacity * sizeof(*grown));
        if (grown == NULL)
            return LL_ERRNO("%s: %u tokens", source->path, capacity);
        source->tokens = grown;
        source->vocab_capacity = capacity;
    }
    for (; source->n_vocab <= id; source->n_vocab++)
        source->tokens[source->n_vocab] = (struct ll_source_token){.at = LL_IMAGE_NO_ID};
    return 0;
}

static const char *add_piece(struct ll_source_token *token, struct ll_source_token made)
{
    if (token->at != LL_IMAGE_NO_ID)
        return "another token has the same id";
    made.is_piece = 1;
    *token = made;
    return NULL;
}

static const char *add_added(struct ll_source_token *token, struct ll_source_token made,
                             const char *text, bool is_special)
{
    if (token->is_added)
        return "another added token has the same id";
    if (token->is_piece) {
        if (token->n_bytes != made.n_bytes ||
            memcmp(text + token->at, text + made.at, made.n_bytes) != 0)
            return "the id belongs to another text in model.vocab";
        made = *token;
    }
    made.is_added = 1;
    made.is_special = is_special;
    *token = made;
    return NULL;
}

int ll_source_add(struct ll_source *source, uint32_t id, size_t n_bytes, enum ll_source_kind kind,
                  const char **why)
{
    LL_ASSERT(source->n_text + n_bytes <= source->text_capacity);
    *why = n_bytes == 0                   ? "a token without bytes"
           : n_bytes > LL_IMAGE_TOKEN_MAX ? "a token longer than 4096 bytes"
           : id >= LL_IMAGE_VOCAB_MAX     ? "the id is 1048576 or more"
                                          : NULL;
    if (*why != NULL)
        return LL_E_INVAL;
    int rc = grow_vocab(source, id);
    if (rc < 0)
        return rc;

    struct ll_source_token *token = &source->tokens[id];
    struct ll_source_token made = {.at = (uint32_t)source->n_text, .n_bytes = (uint16_t)n_bytes};
    *why = kind == LL_SOURCE_PIECE
               ? add_piece(token, made)
               : add_added(token, made, source->text, kind == LL_SOURCE_SPECIAL);
    if (*why != NULL)
        return LL_E_INVAL;
    source->n_text += n_bytes;
    return 0;
}

/* The slot that holds these bytes, or the free one where they belong. */
static struct ll_image_piece *find_slot(const struct ll_source *source, const char *bytes,
                                        size_t n_bytes, uint32_t tag)
{
    uint32_t mask = source->n_piece_slots - 1;

    for (uint32_t i = tag & mask;; i = (i + 1) & mask) {
        struct ll_image_piece *slot = &source->pieces[i];
        if (slot->id == LL_IMAGE_NO_ID)
            return slot;
        const struct ll_source_token *token = &source->tokens[slot->id];
        if (slot->tag == tag && token->n_bytes == n_bytes &&
            memcmp(source->text + token->at, bytes, n_bytes) == 0)
            return slot;
    }
}

int ll_source_index(struct ll_source *source, const char **why)
{
    uint32_t n_pieces = 0;

    for (uint32_t id = 0; id < source->n_vocab; id++)
        n_pieces += source->tokens[id].is_piece;
    source->n_piece_slots =
        (uint32_t)ll_pow2_ceil(2 * (uint64_t)n_pieces + 1); /* at most half full */
    source->pieces = malloc(source->n_piece_slots * sizeof(*source->pieces));
    if (source->pieces == NULL)
        return LL_ERRNO("%s: table of %u pieces", source->path, n_pieces);
    for (uint32_t i = 0; i < source->n_piece_slots; i++)
        source->pieces[i] = (struct ll_image_piece){0, LL_IMAGE_NO_ID};
    for (uint32_t id = 0; id < source->n_vocab; id++) {
        const struct ll_source_token *token = &source->tokens[id];
        if (!token->is_piece)
            continue;
        const char *bytes = source->text + token->at;
        uint32_t tag = ll_image_hash(bytes, token->n_bytes);
        struct ll_image_piece *slot = find_slot(source, bytes, token->n_bytes, tag);
        if (slot->id != LL_IMAGE_NO_ID) {
            *why = "two ids have the same bytes";
            return LL_E_INVAL;
        }
        *slot = (struct ll_image_piece){tag, id};
    }
    return 0;
}

uint32_t ll_source_find(const struct ll_source *source, const char *bytes, size_t n_bytes)
{
    return find_slot(source, bytes, n_bytes, ll_image_hash(bytes, n_bytes))->id;
}

int ll_source_merge(struct ll_source *source, uint32_t left, uint32_t right, uint32_t rank)
{
    if (source->n_merges == source->merges_capacity) {
        size_t capacity = source->merges_capacity == 0 ? 4096 : 2 * source->merges_capacity;
        struct ll_source_merge *grown = realloc(source->merges, capacity * sizeof(*grown));
        if (grown == NULL)
            return LL_ERRNO("%s: %zu merges", source->path, capacity);
        source->merges = grown;
        source->merges_capacity = capacity;
    }
    source->merges[source->n_merges++] = (struct ll_source_merge){left, right, rank};
    return 0;
}
