/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/image_json.c - reads Hugging Face's tokenizer.json as hostile input.
 *
 * The whole text is checked once (syntax, UTF-8, repeated keys); then the values that matter are
 * found as spans and read one after the other, so the order of keys does not matter. What would
 * change how text is cut or merged and is not as in Llama 3 is refused by name; what does not
 * matter to us (truncation, padding, version) is passed over. Every complaint names file, field
 * and byte. */
#include "client/text/image_source.h"

#include "base/bits.h"
#include "base/err.h"
#include "client/text/image.h"
#include "client/text/json.h"
#include "client/text/split.h"
#include "client/text/utf8.h"
#include "ll/client.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct file {
    struct ll_source *source;
    const char *text;
};

/* One value of the text. n_bytes 0: not there. */
struct span {
    size_t at, n_bytes;
};

__attribute__((format(printf, 5, 6))) static int
complain(const struct file *file, int code, const char *field, size_t at, const char *format, ...)
{
    char words[256];
    va_list args;

    va_start(args, format);
    vsnprintf(words, sizeof(words), format, args);
    va_end(args);
    return LL_ERR(code, "%s: %s: byte %zu: %s", file->source->path, field, at, words);
}

/* A reader that starts at the span and counts bytes from the start of the file. */
static struct ll_json open_span(const struct file *file, struct span span)
{
    struct ll_json json;

    ll_json_init(&json, file->text, span.at + span.n_bytes, 0);
    json.at = span.at;
    return json;
}

static enum ll_json_token type_of(const struct file *file, struct span span)
{
    struct ll_json json = open_span(file, span);

    return span.n_bytes == 0 ? LL_JSON_NULL : ll_json_next(&json);
}

/* The next value as a span. False: the array is over. */
static bool next_span(const struct file *file, struct ll_json *json, struct span *out)
{
    const char *start;
    size_t n_bytes;
    enum ll_json_token token = ll_json_skip(json, &start, &n_bytes);

    if (token == LL_JSON_ARRAY_END || token == LL_JSON_ERROR)
        return false;
    *out = (struct span){(size_t)(start - file->text), n_bytes};
    return true;
}

/* Finds the members names[] of the object `in` in one pass; absent ones and null get n_bytes 0. */
static void find_members(const struct file *file, struct span in, const char *const *names,
                         struct span *out, size_t n)
{
    struct ll_json json = open_span(file, in);

    memset(out, 0, n * sizeof(*out));
    if (in.n_bytes == 0 || ll_json_next(&json) != LL_JSON_OBJECT)
        return;
    while (ll_json_next(&json) == LL_JSON_KEY) {
        size_t i = 0;
        while (i < n && !ll_json_is(&json, names[i]))
            i++;
        const char *start;
        size_t n_bytes;
        enum ll_json_token token = ll_json_skip(&json, &start, &n_bytes);
        if (i < n && token != LL_JSON_NULL)
            out[i] = (struct span){(size_t)(start - file->text), n_bytes};
    }
}

static struct span find_member(const struct file *file, struct span in, const char *name)
{
    struct span out;

    find_members(file, in, &name, &out, 1);
    return out;
}

static bool is_string(const struct file *file, struct span span, const char *text)
{
    struct ll_json json = open_span(file, span);

    return span.n_bytes > 0 && ll_json_next(&json) == LL_JSON_STRING && ll_json_is(&json, text);
}

static bool is_true(const struct file *file, struct span span)
{
    return type_of(file, span) == LL_JSON_TRUE;
}

/* The value in printable form for a message, cut short. */
static const char *show(const struct file *file, struct span span, char out[64])
{
    if (span.n_bytes == 0)
        return "absent";
    snprintf(out, 64, "%.*s", (int)ll_min_u64(span.n_bytes, 60), file->text + span.at);
    return out;
}

/* ---- what must be as in Llama 3 -----------------------------------------------------------*/
static int check_pre_tokenizer(const struct file *file, struct span pre)
{
    const char *field = "pre_tokenizer";
    struct span list = find_member(file, pre, "pretokenizers"), split, level, extra;
    struct ll_json json = open_span(file, list);
    char words[64];

    if (!is_string(file, find_member(file, pre, "type"), "Sequence") ||
        type_of(file, list) != LL_JSON_ARRAY)
        return complain(file, LL_E_UNSUPPORTED, field, pre.at,
                        "expected a Sequence of Split and ByteLevel as in Llama 3, found %s",
                        show(file, pre, words));
    ll_json_next(&json);
    if (!next_span(file, &json, &split) || !next_span(file, &json, &level) ||
        next_span(file, &json, &extra) ||
        !is_string(file, find_member(file, split, "type"), "Split") ||
        !is_string(file, find_member(file, level, "type"), "ByteLevel"))
        return complain(file, LL_E_UNSUPPORTED, field, list.at,
                        "expected exactly Split and ByteLevel as in Llama 3");

    struct span pattern = find_member(file, find_member(file, split, "pattern"), "Regex");
    if (!is_string(file, pattern, LL_SPLIT_REGEX))
        return complain(file, LL_E_UNSUPPORTED, "pre_tokenizer.pattern.Regex",
                        pattern.n_bytes > 0 ? pattern.at : split.at, "not Llama 3's expression: %s",
                        show(file, pattern, words));
    if (!is_string(file, find_member(file, split, "behavior"), "Isolated") ||
        is_true(file, find_member(file, split, "invert")))
        return complain(file, LL_E_UNSUPPORTED, field, split.at,
                        "Split must have behavior Isolated and invert false");
    if (is_true(file, find_member(file, level, "add_prefix_space")) ||
        type_of(file, find_member(file, level, "use_regex")) != LL_JSON_FALSE)
        return complain(file, LL_E_UNSUPPORTED, field, level.at,
                        "ByteLevel must have add_prefix_space false and use_regex false");
    return 0;
}

/* The members of model that change how pieces are merged. */
static int check_model(const struct file *file, struct span model)
{
    enum { TYPE, DROPOUT, UNK, PREFIX, SUFFIX, FALLBACK, N };
    static const char *const names[N] = {
        "type",          "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
        "byte_fallback",
    };
    struct span member[N];
    char words[64];

    if (type_of(file, model) != LL_JSON_OBJECT)
        return complain(file, LL_E_INVAL, "model", model.at, "expected an object, found %s",
                        show(file, model, words));
    find_members(file, model, names, member, N);
    if (!is_string(file, member[TYPE], "BPE"))
        return complain(file, LL_E_UNSUPPORTED, "model.type",
                        member[TYPE].n_bytes > 0 ? member[TYPE].at : model.at,
                        "only \"BPE\" is known, found %s", show(file, member[TYPE], words));
    for (size_t i = DROPOUT; i < N; i++) {
        bool is_off = member[i].n_bytes == 0 || is_string(file, member[i], "") ||
                      type_of(file, member[i]) == LL_JSON_FALSE;
        if (!is_off) {
            char field[64];
            snprintf(field, sizeof(field), "model.%s", names[i]);
            return complain(file, LL_E_UNSUPPORTED, field, member[i].at,
                            "must be off as in Llama 3, found %s", show(file, member[i], words));
        }
    }
    return 0;
}

/* ---- vocabulary ---------------------------------------------------------------------------*/
/* Code point -> byte of the byte-level alphabet; -1: not in it. Bytes 33-126, 161-172 and 174-255
 * stand for themselves, the 68 others for U+0100 and up, in order. */
struct alphabet {
    int16_t byte[0x144];
};

static void make_alphabet(struct alphabet *alphabet)
{
    int16_t next = 0x100;

    memset(alphabet, 0xff, sizeof(*alphabet));
    for (int16_t byte = 0; byte < 256; byte++) {
        bool is_itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        alphabet->byte[is_itself ? byte : next++] = byte;
    }
}

/* Byte-level text to bytes, in place. Returns the count; -1: a character outside the alphabet. */
static int64_t from_byte_level(const struct alphabet *alphabet, char *text, size_t n)
{
    size_t n_out = 0;

    for (size_t at = 0; at < n;) {
        uint32_t code = 0;
        int length = ll_utf8_decode(text + at, n - at, &code);
        if (length <= 0 || code >= LL_COUNT(alphabet->byte) || alphabet->byte[code] < 0)
            return -1;
        text[n_out++] = (char)alphabet->byte[code];
        at += (size_t)length;
    }
    return (int64_t)n_out;
}

/* The reader's last KEY or STRING, decoded into the source's room. */
static int64_t read_piece(const struct file *file, const struct ll_json *json,
                          const struct alphabet *alphabet, const char *field, char **bytes)
{
    char *room = ll_source_room(file->source, json->n_span);

    if (room == NULL)
        return -ENOMEM;
    *bytes = room;
    int64_t n = from_byte_level(alphabet, room, ll_json_string(json, room, json->n_span));
    if (n < 0)
        return complain(file, LL_E_INVAL, field, json->span_at,
                        "a character outside the byte-level alphabet");
    return n;
}

static int read_id(const struct file *file, struct ll_json *json, const char *field, uint32_t *id)
{
    int64_t value;

    if (ll_json_next(json) != LL_JSON_NUMBER || !ll_json_int(json, &value) || value < 0 ||
        value >= LL_IMAGE_VOCAB_MAX)
        return complain(file, LL_E_INVAL, field, json->span_at, "expected an id from 0 to %u",
                        LL_IMAGE_VOCAB_MAX - 1);
    *id = (uint32_t)value;
    return 0;
}

static int read_vocab(const struct file *file, struct span vocab, const struct alphabet *alphabet)
{
    const char *field = "model.vocab", *why;
    struct ll_json json = open_span(file, vocab);

    if (vocab.n_bytes == 0 || ll_json_next(&json) != LL_JSON_OBJECT)
        return complain(file, LL_E_INVAL, field, vocab.at, "expected an object");
    while (ll_json_next(&json) == LL_JSON_KEY) {
        size_t at = json.span_at;
        char *bytes;
        uint32_t id;
        int64_t n = read_piece(file, &json, alphabet, field, &bytes);
        if (n < 0)
            return (int)n;
        int rc = read_id(file, &json, field, &id);
        if (rc < 0)
            return rc;
        rc = ll_source_add(file->source, id, (size_t)n, LL_SOURCE_PIECE, &why);
        if (rc < 0)
            return rc == LL_E_INVAL ? complain(file, rc, field, at, "id %u: %s", id, why) : rc;
    }
    int rc = ll_source_index(file->source, &why);
    return rc == LL_E_INVAL ? complain(file, rc, field, vocab.at, "%s", why) : rc;
}

/* ---- merges -------------------------------------------------------------------------------*/
static int64_t read_half(const struct file *file, const struct ll_json *json, const char *field,
                         const char *bytes, size_t n)
{
    uint32_t id = ll_source_find(file->source, bytes, n);

    if (id == LL_IMAGE_NO_ID)
        return complain(file, LL_E_INVAL, field, json->span_at,
                        "half of this merge is not in model.vocab");
    return id;
}

/* One entry, ["a","b"] or "a b", at json's last token. Leaves both halves' bytes, one after the
 * other, in the source's room. */
static int read_merge(const struct file *file, struct ll_json *json, enum ll_json_token token,
                      const struct alphabet *alphabet, size_t halves[2])
{
    const char *field = "model.merges";
    struct ll_json half[2] = {*json, *json};
    char *room[2];

    if (token == LL_JSON_ARRAY) {
        for (int i = 0; i < 2; i++) {
            if (ll_json_next(json) != LL_JSON_STRING)
                goto broken;
            half[i] = *json;
        }
        if (ll_json_next(json) != LL_JSON_ARRAY_END)
            goto broken;
    } else if (token == LL_JSON_STRING) {
        const char *space = memchr(json->span, ' ', json->n_span);
        if (space == NULL)
            goto broken;
        half[0].n_span = (size_t)(space - json->span);
        half[1].span = space + 1;
        half[1].n_span = json->n_span - half[0].n_span - 1;
    } else {
        goto broken;
    }
    if (half[0].n_span == 0 || half[1].n_span == 0)
        goto broken;

    /* Both in one block: the concatenation is looked up too. */
    room[0] = ll_source_room(file->source, half[0].n_span + half[1].n_span);
    if (room[0] == NULL)
        return -ENOMEM;
    for (int i = 0; i < 2; i++) {
        size_t n = ll_json_string(&half[i], room[i], half[i].n_span);
        int64_t n_bytes = from_byte_level(alphabet, room[i], n);
        if (n_bytes <= 0)
            return complain(file, LL_E_INVAL, field, half[i].span_at,
                            "a character outside the byte-level alphabet");
        halves[i] = (size_t)n_bytes;
        room[1] = room[0] + n_bytes;
    }
    return 0;

broken:
    return complain(file, LL_E_INVAL, field, json->span_at,
                    "a merge is a pair [\"a\", \"b\"] or a string \"a b\"");
}

static int read_merges(const struct file *file, struct span merges, const struct alphabet *alphabet)
{
    const char *field = "model.merges";
    struct ll_source *source = file->source;
    struct ll_json json = open_span(file, merges);
    size_t capacity = 0;
    enum ll_json_token token;

    if (merges.n_bytes == 0 || ll_json_next(&json) != LL_JSON_ARRAY)
        return complain(file, LL_E_INVAL, field, merges.at, "expected an array");
    while ((token = ll_json_next(&json)) != LL_JSON_ARRAY_END) {
        size_t halves[2];
        struct ll_json start = json;
        int rc = read_merge(file, &json, token, alphabet, halves);
        if (rc < 0)
            return rc;
        const char *bytes = source->text + source->n_text;
        int64_t left = read_half(file, &start, field, bytes, halves[0]);
        int64_t right =
            left < 0 ? left : read_half(file, &start, field, bytes + halves[0], halves[1]);
        if (right < 0)
            return (int)right;
        uint32_t made = ll_source_find(source, bytes, halves[0] + halves[1]);
        if (made == LL_IMAGE_NO_ID)
            return complain(file, LL_E_INVAL, field, start.span_at,
                            "what this merge makes is not in model.vocab");
        if (source->n_ranks == LL_IMAGE_RANKS_MAX)
            return complain(file, LL_E_INVAL, field, start.span_at, "more than %u merges",
                            LL_IMAGE_RANKS_MAX);
        if (source->n_ranks == capacity) {
            capacity = capacity == 0 ? 4096 : 2 * capacity;
            uint32_t *grown = realloc(source->merged, capacity * sizeof(*grown));
            if (grown == NULL)
                return LL_ERRNO("%s: %zu merges", source->path, capacity);
            source->merged = grown;
        }
        source->merged[source->n_ranks] = made;
        rc = ll_source_merge(source, (uint32_t)left, (uint32_t)right, source->n_ranks++);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* ---- added tokens and BOS -----------------------------------------------------------------*/
static int read_added(const struct file *file, struct span added)
{
    enum { ID, CONTENT, SPECIAL, SINGLE, LEFT, RIGHT, N };
    static const char *const names[N] = {"id",          "content", "special",
                                         "single_word", "lstrip",  "rstrip"};
    const char *field = "added_tokens", *why;
    struct ll_json list = open_span(file, added);
    struct span one, member[N];

    if (added.n_bytes == 0)
        return 0;
    if (ll_json_next(&list) != LL_JSON_ARRAY)
        return complain(file, LL_E_INVAL, field, added.at, "expected an array");
    while (next_span(file, &list, &one)) {
        uint32_t id;
        find_members(file, one, names, member, N);
        if (type_of(file, member[CONTENT]) != LL_JSON_STRING || member[ID].n_bytes == 0)
            return complain(file, LL_E_INVAL, field, one.at,
                            "expected an object with a number id and a string content");
        struct ll_json json = open_span(file, member[ID]);
        int rc = read_id(file, &json, "added_tokens.id", &id);
        if (rc < 0)
            return rc;
        for (int i = SINGLE; i <= RIGHT; i++)
            if (is_true(file, member[i]))
                return complain(file, LL_E_UNSUPPORTED, field, member[i].at,
                                "id %u: %s must be false as in Llama 3", id, names[i]);
        json = open_span(file, member[CONTENT]);
        ll_json_next(&json);
        char *room = ll_source_room(file->source, json.n_span);
        if (room == NULL)
            return -ENOMEM;
        size_t n = ll_json_string(&json, room, json.n_span);
        rc = ll_source_add(file->source, id, n,
                           is_true(file, member[SPECIAL]) ? LL_SOURCE_SPECIAL : LL_SOURCE_ADDED,
                           &why);
        if (rc < 0)
            return rc == LL_E_INVAL ? complain(file, rc, field, one.at, "id %u: %s", id, why) : rc;
    }
    return 0;
}

/* The id of the added token whose text is the JSON string at span. */
static uint32_t find_added(const struct file *file, struct span span)
{
    const struct ll_source *source = file->source;
    char name[LL_IMAGE_TOKEN_MAX];
    struct ll_json json = open_span(file, span);

    if (span.n_bytes == 0 || ll_json_next(&json) != LL_JSON_STRING)
        return LL_IMAGE_NO_ID;
    size_t n = ll_json_string(&json, name, sizeof(name));
    for (uint32_t id = 0; id < source->n_vocab; id++)
        if (source->tokens[id].is_added && source->tokens[id].n_bytes == n &&
            memcmp(source->text + source->tokens[id].at, name, n) == 0)
            return id;
    return LL_IMAGE_NO_ID;
}

/* TemplateProcessing: "single" is [BOS, A] or [A]. */
static int read_template(const struct file *file, struct span processor)
{
    const char *field = "post_processor.single";
    struct span single = find_member(file, processor, "single"), item;
    struct ll_json list = open_span(file, single);
    bool has_text = false;

    if (type_of(file, single) != LL_JSON_ARRAY)
        return complain(file, LL_E_INVAL, field, processor.at, "expected an array");
    ll_json_next(&list);
    while (next_span(file, &list, &item)) {
        struct span special = find_member(file, item, "SpecialToken");
        struct span sequence = find_member(file, item, "Sequence");
        if (has_text || (special.n_bytes > 0 && file->source->bos != LL_IMAGE_NO_ID))
            return complain(file, LL_E_UNSUPPORTED, field, item.at,
                            "only a begin-of-text token before the text is known");
        if (special.n_bytes > 0) {
            file->source->bos = find_added(file, find_member(file, special, "id"));
            if (file->source->bos == LL_IMAGE_NO_ID)
                return complain(file, LL_E_INVAL, field, special.at,
                                "the token is not among added_tokens");
        } else if (sequence.n_bytes > 0) {
            has_text = true;
        } else {
            return complain(file, LL_E_INVAL, field, item.at, "expected SpecialToken or Sequence");
        }
    }
    return 0;
}

/* ByteLevel only trims offsets, which we have not; TemplateProcessing names the BOS. */
static int read_post_processor(const struct file *file, struct span post)
{
    struct span list = find_member(file, post, "processors"), one;
    struct ll_json json = open_span(file, list);
    char words[64];
    bool is_list = is_string(file, find_member(file, post, "type"), "Sequence");

    if (post.n_bytes == 0)
        return 0;
    if (is_list && type_of(file, list) != LL_JSON_ARRAY)
        return complain(file, LL_E_INVAL, "post_processor.processors", post.at,
                        "expected an array");
    if (is_list)
        ll_json_next(&json);
    one = post;
    while (is_list ? next_span(file, &json, &one) : one.n_bytes > 0) {
        struct span type = find_member(file, one, "type");
        if (is_string(file, type, "TemplateProcessing")) {
            int rc = read_template(file, one);
            if (rc < 0)
                return rc;
        } else if (!is_string(file, type, "ByteLevel")) {
            return complain(file, LL_E_UNSUPPORTED, "post_processor", one.at,
                            "only ByteLevel and TemplateProcessing are known, found %s",
                            show(file, type, words));
        }
        if (!is_list)
            break;
    }
    return 0;
}

int ll_source_read_json(struct ll_source *source, const char *text, size_t n_bytes)
{
    enum { MODEL, ADDED, NORMALIZER, PRE, POST, DECODER, N };
    static const char *const names[N] = {"model",         "added_tokens",   "normalizer",
                                         "pre_tokenizer", "post_processor", "decoder"};
    static const char *const model_names[3] = {"vocab", "merges", "ignore_merges"};
    struct file file = {.source = source, .text = text};
    struct span whole = {0, n_bytes}, member[N], model[3];
    struct alphabet alphabet;
    char words[64];

    int rc = ll_json_check(text, n_bytes, 0, LL_JSON_UNIQUE, source->path);
    if (rc < 0)
        return rc;
    find_members(&file, whole, names, member, N);
    if (member[NORMALIZER].n_bytes > 0)
        return complain(&file, LL_E_UNSUPPORTED, "normalizer", member[NORMALIZER].at,
                        "must be null as in Llama 3, found %s",
                        show(&file, member[NORMALIZER], words));
    if (!is_string(&file, find_member(&file, member[DECODER], "type"), "ByteLevel"))
        return complain(&file, LL_E_UNSUPPORTED, "decoder", member[DECODER].at,
                        "must be ByteLevel as in Llama 3, found %s",
                        show(&file, member[DECODER], words));
    if ((rc = check_model(&file, member[MODEL])) < 0 ||
        (rc = check_pre_tokenizer(&file, member[PRE])) < 0)
        return rc;

    make_alphabet(&alphabet);
    find_members(&file, member[MODEL], model_names, model, 3);
    source->takes_whole_piece = is_true(&file, model[2]);
    if ((rc = read_vocab(&file, model[0], &alphabet)) < 0 ||
        (rc = read_merges(&file, model[1], &alphabet)) < 0 ||
        (rc = read_added(&file, member[ADDED])) < 0)
        return rc;
    return read_post_processor(&file, member[POST]);
}
