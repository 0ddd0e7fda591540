/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/image_build.c - a tokenizer file becomes an image: find the file, read it, let a
 * reader gather its tokens (image_json.c, image_tiktoken.c), pack the tables. */
#include "client/text/image.h"

#include "base/bits.h"
#include "base/err.h"
#include "client/text/image_source.h"
#include "ll/client.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_BYTES_MAX (256u << 20) /* Llama 3's tokenizer.json is 9 MB */

/* ---- packing ------------------------------------------------------------------------------*/
/* Where the tables go; bytes is the image's size. */
static void lay_out(struct ll_image *header, size_t n_text)
{
    uint64_t at = ll_align_up(sizeof(*header), LL_LINE_BYTES);

    header->token_at = at;
    at = ll_align_up(at + 4 * ((uint64_t)header->n_vocab + 1), LL_LINE_BYTES);
    header->text_at = at;
    at = ll_align_up(at + n_text, LL_LINE_BYTES);
    header->piece_at = at;
    at = ll_align_up(at + sizeof(struct ll_image_piece) * header->n_piece_slots, LL_LINE_BYTES);
    header->merge_at = at;
    at = ll_align_up(at + 8ull * header->n_merge_slots, LL_LINE_BYTES);
    header->merged_at = at;
    at = ll_align_up(at + 4ull * header->n_ranks, LL_LINE_BYTES);
    header->special_at = at;
    header->bytes = at + sizeof(struct ll_image_special) * header->n_specials;
}

static void pack_tokens(const struct ll_source *source, struct ll_image *image)
{
    uint32_t *token = (uint32_t *)((char *)image + image->token_at);
    char *text = (char *)image + image->text_at;
    uint32_t at = 0;

    for (uint32_t id = 0; id < source->n_vocab; id++) {
        const struct ll_source_token *from = &source->tokens[id];
        token[id] = at;
        if (from->at == LL_IMAGE_NO_ID)
            continue;
        memcpy(text + at, source->text + from->at, from->n_bytes);
        at += from->n_bytes;
        image->token_bytes_max = (uint32_t)ll_max_u64(image->token_bytes_max, from->n_bytes);
        if (from->is_piece)
            image->piece_bytes_max = (uint32_t)ll_max_u64(image->piece_bytes_max, from->n_bytes);
    }
    token[source->n_vocab] = at;
    image->text_bytes = at;
}

static int pack_bytes(const struct ll_source *source, struct ll_image *image)
{
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        image->byte_id[byte] = ll_source_find(source, &c, 1);
        if (image->byte_id[byte] == LL_IMAGE_NO_ID)
            return LL_ERR(LL_E_UNSUPPORTED,
                          "%s: no token for the single byte 0x%02x; a byte-level vocabulary has "
                          "all 256",
                          source->path, byte);
    }
    return 0;
}

static int pack_merges(const struct ll_source *source, struct ll_image *image)
{
    uint64_t *slots = (uint64_t *)((char *)image + image->merge_at);
    uint32_t mask = image->n_merge_slots - 1;

    for (size_t i = 0; i < source->n_merges; i++) {
        const struct ll_source_merge *merge = &source->merges[i];
        uint64_t pair = ll_image_pair(merge->left, merge->right);
        uint32_t slot = ll_image_pair_hash(pair) & mask;
        for (; slots[slot] != 0; slot = (slot + 1) & mask)
            if (slots[slot] >> 24 == pair >> 24)
                return LL_ERR(LL_E_INVAL, "%s: model.merges[%u] repeats an earlier pair",
                              source->path, merge->rank);
        slots[slot] = pair | (merge->rank + 1);
    }
    if (source->n_ranks > 0)
        memcpy((char *)image + image->merged_at, source->merged, 4ull * source->n_ranks);
    return 0;
}

/* qsort has no context argument that is portable; one packer runs in a thread at a time. */
static _Thread_local const struct ll_source *sorting;

static int compare_specials(const void *left, const void *right)
{
    const struct ll_image_special *p = left, *q = right;
    const struct ll_source_token *a = &sorting->tokens[p->id], *b = &sorting->tokens[q->id];
    int order =
        memcmp(sorting->text + a->at, sorting->text + b->at, ll_min_u64(a->n_bytes, b->n_bytes));

    return order != 0 ? order : (a->n_bytes > b->n_bytes) - (a->n_bytes < b->n_bytes);
}

static int pack_specials(const struct ll_source *source, struct ll_image *image)
{
    struct ll_image_special *specials = (void *)((char *)image + image->special_at);
    uint32_t n = 0;

    for (uint32_t id = 0; id < source->n_vocab; id++)
        if (source->tokens[id].is_added)
            specials[n++] = (struct ll_image_special){id, source->tokens[id].is_special};
    sorting = source;
    if (n > 1)
        qsort(specials, n, sizeof(*specials), compare_specials);
    for (uint32_t i = 1; i < n; i++)
        if (compare_specials(&specials[i - 1], &specials[i]) == 0)
            return LL_ERR(LL_E_INVAL, "%s: added_tokens: ids %u and %u have the same text",
                          source->path, specials[i - 1].id, specials[i].id);
    return 0;
}

static int pack(const struct ll_source *source, void **out, size_t *n_bytes)
{
    struct ll_image header = {
        .magic = LL_IMAGE_MAGIC,
        .version = LL_IMAGE_VERSION,
        .header_bytes = sizeof(header),
        .flags = source->takes_whole_piece ? LL_IMAGE_WHOLE_PIECE : 0,
        .n_vocab = source->n_vocab,
        .n_ranks = source->n_ranks,
        .bos = source->bos,
        .n_piece_slots = source->n_piece_slots,
        .n_merge_slots =
            (uint32_t)ll_pow2_ceil(source->n_merges * 3 / 2 + 1), /* 2/3 full at most */
    };
    size_t n_text = 0;
    int rc;

    for (uint32_t id = 0; id < source->n_vocab; id++) {
        n_text += source->tokens[id].n_bytes;
        header.n_specials += source->tokens[id].is_added;
    }
    lay_out(&header, n_text);
    struct ll_image *image = calloc(1, header.bytes);
    if (image == NULL)
        return LL_ERRNO("%s: an image of %llu bytes", source->path,
                        (unsigned long long)header.bytes);
    *image = header;
    pack_tokens(source, image);
    memcpy((char *)image + image->piece_at, source->pieces,
           sizeof(struct ll_image_piece) * image->n_piece_slots);
    if ((rc = pack_bytes(source, image)) < 0 || (rc = pack_merges(source, image)) < 0 ||
        (rc = pack_specials(source, image)) < 0) {
        free(image);
        return rc;
    }
    *out = image;
    *n_bytes = header.bytes;
    return 0;
}

/* ---- files --------------------------------------------------------------------------------*/
/* Opens path, or the tokenizer in the directory path; name gets the file's path. */
static int open_file(const char *path, char *name, size_t name_bytes)
{
    static const char *const files[] = {"tokenizer.json", "tokenizer.model",
                                        "original/tokenizer.model"};
    struct stat st;

    snprintf(name, name_bytes, "%s", path);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* no waiting on a fifo */
    if (fd < 0)
        return LL_ERRNO("%s", path);
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        int directory = fd;
        fd = -1;
        errno = ENOENT;
        for (size_t i = 0; i < LL_COUNT(files) && fd < 0 && errno == ENOENT; i++) {
            snprintf(name, name_bytes, "%s/%s", path, files[i]);
            fd = openat(directory, files[i], O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        }
        int error = errno;
        close(directory);
        errno = error;
        if (fd < 0 && errno == ENOENT)
            return LL_ERR(-ENOENT, "%s: holds neither tokenizer.json nor tokenizer.model", path);
        if (fd < 0)
            return LL_ERRNO("%s", name);
    }
    return fd;
}

/* The whole file in a malloc'd block. */
static int read_file(int fd, const char *name, char **text, size_t *n_bytes)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return LL_ERRNO("%s", name);
    if (!S_ISREG(st.st_mode))
        return LL_ERR(LL_E_INVAL, "%s: not a regular file", name);
    if (st.st_size == 0)
        return LL_ERR(LL_E_INVAL, "%s: empty file", name);
    if ((uint64_t)st.st_size > FILE_BYTES_MAX)
        return LL_ERR(LL_E_INVAL, "%s: %lld bytes; a tokenizer has at most 256 MiB", name,
                      (long long)st.st_size);
    size_t size = (size_t)st.st_size, done = 0;
    char *block = malloc(size);
    if (block == NULL)
        return LL_ERRNO("%s: %zu bytes", name, size);
    while (done < size) {
        ssize_t n = read(fd, block + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int rc = n < 0 ? LL_ERRNO("%s", name)
                           : LL_ERR(LL_E_INVAL, "%s: shrank while it was read", name);
            free(block);
            return rc;
        }
        done += (size_t)n;
    }
    *text = block;
    *n_bytes = size;
    return 0;
}

/* JSON starts with a brace, which base64 has not. */
static bool is_json(const char *text, size_t n_bytes)
{
    size_t at = 0;

    while (at < n_bytes && strchr(" \t\r\n", text[at]) != NULL && text[at] != '\0')
        at++;
    return at < n_bytes && text[at] == '{';
}

int ll_tokenizer_image_build(const char *path, void **image, size_t *n_bytes)
{
    char name[4096];
    char *text = NULL;
    size_t n_text = 0;
    struct ll_source source = {.path = name, .bos = LL_IMAGE_NO_ID};

    int fd = open_file(path, name, sizeof(name));
    if (fd < 0)
        return fd;
    int rc = read_file(fd, name, &text, &n_text);
    if (rc < 0)
        goto close_fd;
    rc = is_json(text, n_text) ? ll_source_read_json(&source, text, n_text)
                               : ll_source_read_tiktoken(&source, text, n_text);
    if (rc < 0)
        goto free_source;
    rc = pack(&source, image, n_bytes);

free_source:
    ll_source_free(&source);
    free(text);
close_fd:
    close(fd);
    return rc;
}
