/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/image_tiktoken.c - reads Meta's tokenizer.model: lines of `base64(bytes) rank`.
 *
 * The file has no merges and no special tokens. Merging by lowest rank of the concatenation is the
 * same as a merge list with every split of every token, ranked by the token's id. The special
 * tokens are those Meta's code adds after the 128000 ranks of Llama 3; a file with another number
 * of ranks is some other model's and refused. */
#include "client/text/image_source.h"

#include "base/err.h"
#include "client/text/image.h"
#include "ll/client.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_RANKS    128000u
#define N_SPECIALS 256u

static int base64_digit(char c)
{
    return c >= 'A' && c <= 'Z'   ? c - 'A'
           : c >= 'a' && c <= 'z' ? c - 'a' + 26
           : c >= '0' && c <= '9' ? c - '0' + 52
           : c == '+'             ? 62
           : c == '/'             ? 63
                                  : -1;
}

/* Decodes text[0 .. n) to out, which has room for 3 bytes every 4. Returns the count, -1 when it is
 * not padded base64 in its one canonical form. */
static int64_t base64_decode(const char *text, size_t n, char *out)
{
    size_t n_out = 0;

    if (n == 0 || n % 4 != 0)
        return -1;
    for (size_t i = 0; i < n; i += 4) {
        bool is_last = i + 4 == n;
        int n_pad = is_last ? (text[i + 3] == '=') + (text[i + 3] == '=' && text[i + 2] == '=') : 0;
        uint32_t bits = 0;
        for (int k = 0; k < 4; k++) {
            int digit = k >= 4 - n_pad ? 0 : base64_digit(text[i + (size_t)k]);
            if (digit < 0)
                return -1;
            bits = bits << 6 | (uint32_t)digit;
        }
        if ((n_pad == 1 && (bits & 0xff) != 0) || (n_pad == 2 && (bits & 0xffff) != 0))
            return -1;
        for (int k = 0; k < 3 - n_pad; k++)
            out[n_out++] = (char)(bits >> (16 - 8 * k));
    }
    return (int64_t)n_out;
}

/* One line without its newline. */
static int read_line(struct ll_source *source, const char *line, size_t n, size_t n_line)
{
    const char *space = memchr(line, ' ', n);
    const char *why = "not of the form `base64 rank`";
    uint32_t rank = 0;

    if (space == NULL || space + 1 == line + n)
        goto broken;
    for (const char *p = space + 1; p < line + n; p++) {
        if (*p < '0' || *p > '9' || rank > LL_IMAGE_VOCAB_MAX)
            goto broken;
        rank = rank * 10 + (uint32_t)(*p - '0');
    }
    char *room = ll_source_room(source, n);
    if (room == NULL)
        return -ENOMEM;
    int64_t n_bytes = base64_decode(line, (size_t)(space - line), room);
    if (n_bytes < 0)
        goto broken;
    int rc = ll_source_add(source, rank, (size_t)n_bytes, LL_SOURCE_PIECE, &why);
    if (rc == LL_E_INVAL)
        goto broken;
    return rc;

broken:
    return LL_ERR(LL_E_INVAL, "%s: line %zu: %s", source->path, n_line, why);
}

/* The names of ids 128000 + i, as in Llama 3.1 and later. */
static void special_name(uint32_t i, char *out, size_t capacity)
{
    static const char *const names[] = {
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    };
    const uint32_t n_names = sizeof(names) / sizeof(names[0]);

    if (i < n_names)
        snprintf(out, capacity, "%s", names[i]);
    else /* 0 .. 2 are among the names */
        snprintf(out, capacity, "<|reserved_special_token_%u|>", i - n_names + 3);
}

static int add_specials(struct ll_source *source)
{
    for (uint32_t i = 0; i < N_SPECIALS; i++) {
        char name[64];
        const char *why;
        special_name(i, name, sizeof(name));
        char *room = ll_source_room(source, sizeof(name));
        if (room == NULL)
            return -ENOMEM;
        memcpy(room, name, strlen(name));
        int rc = ll_source_add(source, N_RANKS + i, strlen(name), LL_SOURCE_SPECIAL, &why);
        if (rc < 0)
            return rc == LL_E_INVAL ? LL_ERR(rc, "%s: %s: %s", source->path, name, why) : rc;
    }
    source->bos = N_RANKS;
    return 0;
}

/* Every way to cut a token into two tokens is a merge of its rank. */
static int add_merges(struct ll_source *source)
{
    source->merged = malloc(4 * N_RANKS);
    if (source->merged == NULL)
        return LL_ERRNO("%s: %u ranks", source->path, N_RANKS);
    source->n_ranks = N_RANKS;
    for (uint32_t id = 0; id < N_RANKS; id++) {
        const struct ll_source_token *token = &source->tokens[id];
        const char *bytes = source->text + token->at;
        source->merged[id] = id;
        for (uint32_t cut = 1; cut < token->n_bytes; cut++) {
            uint32_t left = ll_source_find(source, bytes, cut);
            if (left == LL_IMAGE_NO_ID)
                continue;
            uint32_t right = ll_source_find(source, bytes + cut, token->n_bytes - cut);
            if (right == LL_IMAGE_NO_ID)
                continue;
            int rc = ll_source_merge(source, left, right, id);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

int ll_source_read_tiktoken(struct ll_source *source, const char *text, size_t n_bytes)
{
    size_t n_line = 0, at = 0;
    const char *why;
    int rc;

    if (memchr(text, '\0', n_bytes < 256 ? n_bytes : 256) != NULL || text[0] == '\n')
        return LL_ERR(LL_E_UNSUPPORTED,
                      "%s: looks like a SentencePiece model, not Llama 3's tokenizer",
                      source->path);
    while (at < n_bytes) {
        const char *end = memchr(text + at, '\n', n_bytes - at);
        size_t n = end != NULL ? (size_t)(end - text) - at : n_bytes - at;
        if ((rc = read_line(source, text + at, n, ++n_line)) < 0)
            return rc;
        at += n + 1;
    }
    if (n_line != N_RANKS || source->n_vocab != N_RANKS) /* each line another id: none is missing */
        return LL_ERR(LL_E_UNSUPPORTED,
                      "%s: %zu ranks up to %" PRIu32 "; Llama 3 has 128000: use the model's "
                      "tokenizer.json",
                      source->path, n_line, source->n_vocab - 1);
    source->takes_whole_piece = true;
    if ((rc = ll_source_index(source, &why)) < 0)
        return rc == LL_E_INVAL ? LL_ERR(rc, "%s: %s", source->path, why) : rc;
    if ((rc = add_merges(source)) < 0)
        return rc;
    return add_specials(source);
}
