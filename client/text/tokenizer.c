/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/tokenizer.c - checks an image (M1-M4 of image.h), makes a view of it, answers what
 * an id is. */
#include "client/text/tokenizer.h"

#include "base/bits.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

static int refuse(const char *what)
{
    return LL_ERR(LL_E_PROTOCOL, "not a valid tokenizer image: %s", what);
}

static bool table_fits(const struct ll_image *image, uint64_t at, uint64_t n, uint64_t size,
                       size_t n_bytes)
{
    uint64_t length;

    return at >= image->header_bytes && at % 8 == 0 && ll_checked_mul(n, size, &length) &&
           ll_span_fits(at, length, n_bytes);
}

static int check_header(const struct ll_image *image, size_t n_bytes)
{
    if (image->magic != LL_IMAGE_MAGIC)
        return refuse("wrong magic number");
    if (image->version != LL_IMAGE_VERSION || image->header_bytes != sizeof(*image))
        return refuse("made by another version");
    if (image->bytes != n_bytes)
        return refuse("cut short");
    if (image->n_vocab == 0 || image->n_vocab > LL_IMAGE_VOCAB_MAX ||
        image->n_ranks > LL_IMAGE_RANKS_MAX || image->n_specials > image->n_vocab ||
        (image->bos >= image->n_vocab && image->bos != LL_IMAGE_NO_ID) ||
        image->token_bytes_max > LL_IMAGE_TOKEN_MAX ||
        image->piece_bytes_max > image->token_bytes_max ||
        (image->flags & ~(uint32_t)LL_IMAGE_WHOLE_PIECE) != 0)
        return refuse("a number in the header is out of range");
    if (!ll_is_pow2(image->n_piece_slots) || !ll_is_pow2(image->n_merge_slots) ||
        !table_fits(image, image->token_at, (uint64_t)image->n_vocab + 1, 4, n_bytes) ||
        !table_fits(image, image->text_at, image->text_bytes, 1, n_bytes) ||
        !table_fits(image, image->piece_at, image->n_piece_slots, 8, n_bytes) ||
        !table_fits(image, image->merge_at, image->n_merge_slots, 8, n_bytes) ||
        !table_fits(image, image->merged_at, image->n_ranks, 4, n_bytes) ||
        !table_fits(image, image->special_at, image->n_specials, 8, n_bytes))
        return refuse("a table lies outside");
    for (int i = 0; i < 256; i++)
        if (image->byte_id[i] >= image->n_vocab)
            return refuse("byte table");
    return 0;
}

/* M1, and that no id is longer than the header says. */
static int check_tokens(const struct ll_tokenizer *view, uint32_t text_bytes)
{
    const uint32_t *token = view->token;

    for (uint32_t id = 0; id < view->n_vocab; id++)
        if (token[id] > token[id + 1] || token[id + 1] - token[id] > view->token_bytes_max)
            return refuse("token table");
    return token[0] == 0 && token[view->n_vocab] <= text_bytes ? 0 : refuse("token table");
}

/* M2, M3. */
static int check_tables(const struct ll_tokenizer *view)
{
    uint32_t n_free = 0;

    for (uint32_t i = 0; i <= view->piece_mask; i++) {
        if (view->pieces[i].id == LL_IMAGE_NO_ID)
            n_free++;
        else if (view->pieces[i].id >= view->n_vocab)
            return refuse("piece table");
    }
    if (n_free == 0)
        return refuse("piece table without a free slot");

    n_free = 0;
    for (uint32_t i = 0; i <= view->merge_mask; i++) {
        uint64_t slot = view->merges[i];
        uint32_t rank = slot & 0xffffff;
        if (slot == 0)
            n_free++;
        else if (rank == 0 || rank > view->n_ranks)
            return refuse("merge table");
    }
    if (n_free == 0)
        return refuse("merge table without a free slot");
    for (uint32_t i = 0; i < view->n_ranks; i++)
        if (view->merged[i] >= view->n_vocab)
            return refuse("merged table");
    return 0;
}

/* M4. */
static int check_specials(const struct ll_tokenizer *view)
{
    const char *before = NULL;
    uint32_t n_before = 0;

    for (uint32_t i = 0; i < view->n_specials; i++) {
        const struct ll_image_special *special = &view->specials[i];
        if (special->id >= view->n_vocab || special->is_special > 1)
            return refuse("special tokens");
        uint32_t n;
        const char *text = ll_tokenizer_text(view, special->id, &n);
        int order = before == NULL ? -1 : memcmp(before, text, n < n_before ? n : n_before);
        if (n == 0 || order > 0 || (order == 0 && n_before >= n))
            return refuse("special tokens are not sorted");
        before = text;
        n_before = n;
    }
    return 0;
}

/* Fills view from a checked header; then checks what the tables hold. */
static int make_view(struct ll_tokenizer *view, const void *bytes, size_t n_bytes)
{
    const struct ll_image *image = bytes;
    const char *base = bytes;

    if (n_bytes < sizeof(*image) || (uintptr_t)bytes % 8 != 0)
        return refuse("too short or not aligned");
    int rc = check_header(image, n_bytes);
    if (rc < 0)
        return rc;
    *view = (struct ll_tokenizer){
        .n_vocab = image->n_vocab,
        .n_ranks = image->n_ranks,
        .n_specials = image->n_specials,
        .bos = image->bos,
        .token_bytes_max = image->token_bytes_max,
        .piece_bytes_max = image->piece_bytes_max,
        .piece_mask = image->n_piece_slots - 1,
        .merge_mask = image->n_merge_slots - 1,
        .takes_whole_piece = (image->flags & LL_IMAGE_WHOLE_PIECE) != 0,
        .token = (const uint32_t *)(base + image->token_at),
        .text = base + image->text_at,
        .pieces = (const struct ll_image_piece *)(base + image->piece_at),
        .merges = (const uint64_t *)(base + image->merge_at),
        .merged = (const uint32_t *)(base + image->merged_at),
        .specials = (const struct ll_image_special *)(base + image->special_at),
    };
    memcpy(view->byte_id, image->byte_id, sizeof(view->byte_id));
    if ((rc = check_tokens(view, image->text_bytes)) < 0 || (rc = check_tables(view)) < 0)
        return rc;
    return check_specials(view);
}

int ll_tokenizer_image_check(const void *image, size_t n_bytes)
{
    struct ll_tokenizer view;

    return make_view(&view, image, n_bytes);
}

int ll_tokenizer_from_image(struct ll_tokenizer **out, const void *image, size_t n_bytes)
{
    struct ll_tokenizer *tokenizer = malloc(sizeof(*tokenizer));

    if (tokenizer == NULL)
        return LL_ERRNO("tokenizer");
    int rc = make_view(tokenizer, image, n_bytes);
    if (rc < 0)
        goto free_tokenizer;
    tokenizer->special_ids = calloc(ll_div_ceil(tokenizer->n_vocab, 64), 8);
    if (tokenizer->special_ids == NULL) {
        rc = LL_ERRNO("tokenizer");
        goto free_tokenizer;
    }
    for (uint32_t i = 0; i < tokenizer->n_specials; i++) {
        uint32_t id = tokenizer->specials[i].id, n;
        uint8_t first = (uint8_t)*ll_tokenizer_text(tokenizer, id, &n);
        tokenizer->special_first[first / 64] |= 1ull << first % 64;
        if (tokenizer->specials[i].is_special)
            tokenizer->special_ids[id / 64] |= 1ull << id % 64;
    }
    *out = tokenizer;
    return 0;

free_tokenizer:
    free(tokenizer);
    return rc;
}

int ll_tokenizer_from_path(struct ll_tokenizer **out, const char *path)
{
    void *image;
    size_t n_bytes;
    int rc = ll_tokenizer_image_build(path, &image, &n_bytes);

    if (rc < 0)
        return rc;
    rc = ll_tokenizer_from_image(out, image, n_bytes);
    if (rc < 0)
        free(image);
    else
        (*out)->owned = image;
    return rc;
}

void ll_tokenizer_free(struct ll_tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    free(tokenizer->special_ids);
    free(tokenizer->owned);
    free(tokenizer);
}

uint32_t ll_tokenizer_n_vocab(const struct ll_tokenizer *tokenizer)
{
    return tokenizer->n_vocab;
}

uint32_t ll_tokenizer_bos(const struct ll_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

const char *ll_tokenizer_bytes(const struct ll_tokenizer *tokenizer, uint32_t id, size_t *n_bytes)
{
    uint32_t n = 0;
    const char *text = id < tokenizer->n_vocab ? ll_tokenizer_text(tokenizer, id, &n) : NULL;

    *n_bytes = n;
    return n > 0 ? text : NULL;
}

int ll_tokenizer_is_special(const struct ll_tokenizer *tokenizer, uint32_t id)
{
    return id < tokenizer->n_vocab && (tokenizer->special_ids[id / 64] >> id % 64 & 1) != 0;
}

/* First special in [low, high) whose byte `depth` is >= byte (> byte where above): all of them
 * share their first depth bytes; one that ends there sorts first. */
static uint32_t narrow(const struct ll_tokenizer *tokenizer, uint32_t low, uint32_t high,
                       size_t depth, uint32_t byte, bool above)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, n;
        const char *text = ll_tokenizer_text(tokenizer, tokenizer->specials[middle].id, &n);
        bool is_before =
            n <= depth || (above ? (uint8_t)text[depth] <= byte : (uint8_t)text[depth] < byte);
        if (is_before)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint32_t ll_tokenizer_match_special(const struct ll_tokenizer *tokenizer, const char *text,
                                    size_t n_bytes, size_t *n_matched)
{
    uint32_t low = 0, high = tokenizer->n_specials, best = LL_IMAGE_NO_ID;

    /* Byte by byte, two binary searches each, so that neither many specials nor a text full of
     * their beginnings is slow. */
    for (size_t depth = 0; depth < n_bytes && low < high; depth++) {
        uint8_t byte = (uint8_t)text[depth];
        low = narrow(tokenizer, low, high, depth, byte, false);
        high = narrow(tokenizer, low, high, depth, byte, true);
        if (low == high)
            break;
        uint32_t n;
        ll_tokenizer_text(tokenizer, tokenizer->specials[low].id, &n);
        if (n == depth + 1) {
            best = tokenizer->specials[low].id;
            *n_matched = n;
        }
    }
    return best;
}

uint32_t ll_tokenizer_special(const struct ll_tokenizer *tokenizer, const char *text,
                              size_t n_bytes)
{
    size_t n_matched = 0;
    uint32_t id = ll_tokenizer_match_special(tokenizer, text, n_bytes, &n_matched);

    return id != LL_IMAGE_NO_ID && n_matched == n_bytes ? id : UINT32_MAX;
}
