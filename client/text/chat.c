/* SPDX-License-Identifier: Apache-2.0 */
/* Which chat formats there are, and how what a format writes becomes ids or text. */
#include "client/text/chat.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

static const char *const marker_text[LL_CHAT_MARKERS] = {
    [LL_MARK_BEGIN_OF_TEXT] = "<|begin_of_text|>",
    [LL_MARK_START_HEADER] = "<|start_header_id|>",
    [LL_MARK_END_HEADER] = "<|end_header_id|>",
    [LL_MARK_EOT] = "<|eot_id|>",
};

enum ll_chat_format ll_chat_format_find(const char *name)
{
    static const struct {
        const char *name;
        enum ll_chat_format format;
    } names[] = {
        {"llama3.1", LL_CHAT_LLAMA3_1},
        {"llama3.2", LL_CHAT_LLAMA3_2},
        {"llama3.3", LL_CHAT_LLAMA3_1},
    };

    for (size_t i = 0; i < LL_COUNT(names); i++)
        if (name != NULL && strcmp(name, names[i].name) == 0)
            return names[i].format;
    return LL_CHAT_NONE;
}

const char *ll_chat_format_name(enum ll_chat_format format)
{
    switch (format) {
    case LL_CHAT_LLAMA3_1:
        return "llama3.1";
    case LL_CHAT_LLAMA3_2:
        return "llama3.2";
    case LL_CHAT_NONE:
        break;
    }
    return "";
}

enum ll_chat_format ll_chat_format_by_template(const char *sha256_hex)
{
    /* Each text twice: as a file, and as a JSON string, where the last line feed is often gone. */
    static const struct {
        const char *sha256;
        enum ll_chat_format format;
    } known[] = {
        {"e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65", LL_CHAT_LLAMA3_1},
        {"93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7", LL_CHAT_LLAMA3_1},
        {"5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4", LL_CHAT_LLAMA3_2},
        {"d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f", LL_CHAT_LLAMA3_2},
    };

    for (size_t i = 0; i < LL_COUNT(known); i++)
        if (strcmp(sha256_hex, known[i].sha256) == 0)
            return known[i].format;
    return LL_CHAT_NONE;
}

void ll_chat_put_marker(struct ll_chat_writer *writer, enum ll_chat_marker marker)
{
    if (writer->has_marker_text) {
        ll_sink_puts(&writer->text, marker_text[marker]);
        return;
    }
    if (writer->n_marks < writer->n_marks_max)
        writer->marks[writer->n_marks] = (struct ll_chat_mark){writer->text.n, marker};
    writer->n_marks++;
}

/* ---- trimming ---------------------------------------------------------------------------------*/

/* Python's str.isspace(): 9-13, 28-32, 133 and the separators of classes Zs, Zl, Zp. Unicode's
 * White_Space lacks 28-31. */
static bool is_python_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

/* Length of the white-space character that s[0 .. n) starts with; 0: none. No such character needs
 * more than three bytes. */
static size_t leading_space(const char *s, size_t n)
{
    const uint8_t *b = (const uint8_t *)s;

    if (n >= 1 && b[0] < 0x80)
        return is_python_space(b[0]);
    if (n >= 2 && b[0] == 0xc2)
        return is_python_space(b[1]) && b[1] >= 0x80 ? 2 : 0;
    if (n >= 3 && (b[0] & 0xf0) == 0xe0 && (b[1] & 0xc0) == 0x80 && (b[2] & 0xc0) == 0x80)
        return is_python_space((b[0] & 15u) << 12 | (b[1] & 63u) << 6 | (b[2] & 63u)) ? 3 : 0;
    return 0;
}

void ll_chat_trim(const char **text, size_t *n_bytes)
{
    const char *begin = *text, *end = begin + *n_bytes;
    size_t n;

    while ((n = leading_space(begin, (size_t)(end - begin))) > 0)
        begin += n;
    while (end > begin) {
        size_t most = (size_t)(end - begin) < 3 ? (size_t)(end - begin) : 3;
        for (n = 1; n <= most && leading_space(end - n, n) != n;)
            n++;
        if (n > most)
            break;
        end -= n;
    }
    *text = begin;
    *n_bytes = (size_t)(end - begin);
}

/* ---- text and ids -----------------------------------------------------------------------------*/

/* A copy of chat that is fit to be written: the date settled, so that two runs print the same. */
struct settled {
    struct ll_chat chat;
    char date[LL_CHAT_DATE_BYTES];
};

static int settle(struct settled *out, const struct ll_chat *chat)
{
    if (chat->struct_bytes != sizeof(*chat))
        return LL_ERR(LL_E_INVAL, "chat: struct_bytes is %u, must be sizeof(struct ll_chat) = %zu",
                      chat->struct_bytes, sizeof(*chat));
    if (chat->flags & ~(uint32_t)(LL_CHAT_NO_GENERATION | LL_CHAT_TOOLS_IN_SYSTEM))
        return LL_ERR(LL_E_INVAL, "chat: unknown bits in flags %#x", chat->flags);
    if (chat->format != LL_CHAT_LLAMA3_1 && chat->format != LL_CHAT_LLAMA3_2)
        return LL_ERR(LL_E_UNSUPPORTED,
                      "this model's chat format is not known; start the runtime with "
                      "--chat-template llama3.1 (or llama3.2), or send plain completions");
    out->chat = *chat;
    if (chat->date == NULL) {
        ll_chat_llama3_date(chat->format, out->date);
        out->chat.date = out->date;
    }
    return 0;
}

int64_t ll_chat_render(const struct ll_chat *chat, char *text, size_t capacity)
{
    struct ll_chat_writer writer = {.text = {text, capacity, 0}, .has_marker_text = true};
    struct settled settled;
    int rc = settle(&settled, chat);

    if (rc == 0)
        rc = ll_chat_llama3_write(&writer, &settled.chat);
    return rc < 0 ? rc : (int64_t)writer.text.n;
}

static int find_markers(const struct ll_tokenizer *tokenizer, uint32_t ids[LL_CHAT_MARKERS])
{
    for (size_t i = 0; i < LL_CHAT_MARKERS; i++) {
        ids[i] = ll_tokenizer_special(tokenizer, marker_text[i], strlen(marker_text[i]));
        if (ids[i] == UINT32_MAX)
            return LL_ERR(LL_E_UNSUPPORTED,
                          "the vocabulary has no special token %s, which the chat format needs",
                          marker_text[i]);
    }
    return 0;
}

/* Ids go to ids[0 .. n_max); those past it are counted only. */
struct id_sink {
    uint32_t *ids;
    size_t n_max;
    int64_t n;
};

static int encode_piece(struct id_sink *out, const struct ll_tokenizer *tokenizer, const char *text,
                        size_t n_bytes)
{
    size_t used = (uint64_t)out->n < out->n_max ? (size_t)out->n : out->n_max;

    if (n_bytes == 0)
        return 0;
    int64_t n = ll_encode(tokenizer, text, n_bytes, 0, used < out->n_max ? out->ids + used : NULL,
                          out->n_max - used);
    if (n < 0)
        return (int)n;
    out->n += n;
    return 0;
}

static int64_t encode_written(const struct ll_chat_writer *writer,
                              const struct ll_tokenizer *tokenizer,
                              const uint32_t markers[LL_CHAT_MARKERS], uint32_t *ids, size_t n_max)
{
    struct id_sink out = {ids, n_max, 0};
    size_t at = 0;

    for (size_t i = 0; i < writer->n_marks; i++) {
        const struct ll_chat_mark *mark = &writer->marks[i];
        int rc = encode_piece(&out, tokenizer, writer->text.bytes + at, mark->at - at);
        if (rc < 0)
            return rc;
        at = mark->at;
        if ((uint64_t)out.n < n_max)
            ids[out.n] = markers[mark->marker];
        out.n++;
    }
    int rc = encode_piece(&out, tokenizer, writer->text.bytes + at, writer->text.n - at);
    return rc < 0 ? rc : out.n;
}

int64_t ll_chat_encode(const struct ll_tokenizer *tokenizer, const struct ll_chat *chat,
                       uint32_t *ids, size_t n_max)
{
    uint32_t markers[LL_CHAT_MARKERS];
    struct ll_chat_writer writer = {0};
    struct settled settled;
    int64_t rc = settle(&settled, chat);

    if (rc == 0)
        rc = find_markers(tokenizer, markers);
    if (rc == 0)
        rc = ll_chat_llama3_write(&writer, &settled.chat); /* measures */
    if (rc < 0)
        return rc;
    writer.text.capacity = writer.text.n;
    writer.text.bytes = malloc(writer.text.n + 1);
    writer.n_marks_max = writer.n_marks;
    writer.marks = calloc(writer.n_marks + 1, sizeof(*writer.marks));
    writer.text.n = writer.n_marks = 0;
    if (writer.text.bytes == NULL || writer.marks == NULL)
        rc = LL_ERR(-ENOMEM, "no memory to render a chat of %zu bytes", writer.text.capacity);
    else
        rc = ll_chat_llama3_write(&writer, &settled.chat);
    LL_ASSERT(writer.text.n <= writer.text.capacity && writer.n_marks <= writer.n_marks_max);
    if (rc == 0)
        rc = encode_written(&writer, tokenizer, markers, ids, n_max);
    free(writer.text.bytes);
    free(writer.marks);
    return rc;
}
