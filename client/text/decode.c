/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/decode.c - ids back to text, a whole character at a time.
 *
 * The bytes of all ids form one stream; what comes out depends on that stream only, not on how it
 * was cut into ids:
 *   D1  Between calls tail[0 .. n_tail) is the beginning of a character that may still become
 *       whole, at most 3 bytes; everything before it has been given out.
 *   D2  Each maximal invalid part becomes one U+FFFD as soon as it is known to be invalid.
 * Ids that are left out (special tokens without LL_DECODE_SPECIAL, ids without text) do not touch
 * the tail: leaving them out of the list would give the same text. */
#include "client/text/tokenizer.h"
#include "client/text/utf8.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

struct ll_decoder {
    const struct ll_tokenizer *tokenizer;
    uint32_t flags;
    uint32_t n_tail;
    char tail[4];
    char text[]; /* room for the longest answer */
};

int ll_decoder_new(struct ll_decoder **out, const struct ll_tokenizer *tokenizer, uint32_t flags)
{
    /* One U+FFFD (3 bytes) a byte at worst: of the longest token and the tail before it. */
    size_t capacity = 3 * ((size_t)tokenizer->token_bytes_max + 4);
    struct ll_decoder *decoder = malloc(sizeof(*decoder) + capacity);

    if (decoder == NULL)
        return LL_ERRNO("decoder");
    decoder->tokenizer = tokenizer;
    decoder->flags = flags;
    decoder->n_tail = 0;
    *out = decoder;
    return 0;
}

void ll_decoder_free(struct ll_decoder *decoder)
{
    free(decoder);
}

void ll_decoder_reset(struct ll_decoder *decoder)
{
    decoder->n_tail = 0;
}

/* Length of the plain ASCII run at the start of bytes. */
static size_t ascii_run(const char *bytes, size_t n)
{
    size_t i = 0;
    uint64_t word;

    for (; i + 8 <= n; i += 8) {
        memcpy(&word, bytes + i, 8);
        if ((word & 0x8080808080808080ull) != 0)
            break;
    }
    while (i < n && (uint8_t)bytes[i] < 0x80)
        i++;
    return i;
}

/* Copies the whole characters of bytes to out; returns where out ends now and sets *n_left to the
 * length of the unfinished character at the end. */
static char *put_characters(char *out, const char *bytes, size_t n, size_t *n_left)
{
    size_t at = 0;

    while (at < n) {
        size_t run = ascii_run(bytes + at, n - at);
        memcpy(out, bytes + at, run);
        out += run;
        at += run;
        if (at == n)
            break;
        uint32_t code;
        int length = ll_utf8_decode(bytes + at, n - at, &code);
        if (length == 0)
            break;
        if (length > 0) {
            memcpy(out, bytes + at, (size_t)length);
            out += length;
            at += (size_t)length;
        } else {
            memcpy(out, LL_UTF8_REPLACEMENT, 3);
            out += 3;
            at += (size_t)-length;
        }
    }
    *n_left = n - at;
    return out;
}

int ll_decoder_feed(struct ll_decoder *decoder, uint32_t id, const char **text)
{
    const struct ll_tokenizer *tokenizer = decoder->tokenizer;
    uint32_t n;
    size_t n_left;
    char *out = decoder->text;

    *text = decoder->text;
    if (id >= tokenizer->n_vocab)
        return LL_ERR(LL_E_INVAL, "id %u is outside the vocabulary of %u", id, tokenizer->n_vocab);
    if ((decoder->flags & LL_DECODE_SPECIAL) == 0 && ll_tokenizer_is_special(tokenizer, id))
        return 0;
    const char *bytes = ll_tokenizer_text(tokenizer, id, &n);

    /* First the character that was begun: at most three more bytes settle it, but a part that
     * turns out invalid may leave some of its bytes to be read again, hence the small buffer. */
    size_t at = 0;
    while (decoder->n_tail > 0 && at < n) {
        decoder->tail[decoder->n_tail++] = bytes[at++];
        out = put_characters(out, decoder->tail, decoder->n_tail, &n_left);
        memmove(decoder->tail, decoder->tail + decoder->n_tail - n_left, n_left);
        decoder->n_tail = (uint32_t)n_left;
    }
    if (at < n) {
        out = put_characters(out, bytes + at, n - at, &n_left);
        memcpy(decoder->tail, bytes + n - n_left, n_left);
        decoder->n_tail = (uint32_t)n_left;
    }
    return (int)(out - decoder->text);
}

int ll_decoder_finish(struct ll_decoder *decoder, const char **text)
{
    *text = LL_UTF8_REPLACEMENT;
    if (decoder->n_tail == 0)
        return 0;
    decoder->n_tail = 0;
    return 3;
}
