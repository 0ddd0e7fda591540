/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/safetensors.h"

#include "base/bits.h"
#include "base/err.h"
#include "ll/client.h"
#include "runtime/jsonfile.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LENGTH_BYTES 8 /* the u64 in front of the JSON */

/* Where the parser stands. Offsets in errors are of the file, so that `xxd -s` finds the place. */
struct cursor {
    const char *path;
    const char *text;
    size_t at, n;
    const char *tensor; /* the one being read; NULL between them */
};

static int fail(const struct cursor *cursor, size_t at, const char *what)
{
    char shown[LL_SHOWN_BYTES];

    if (cursor->tensor != NULL)
        return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\": byte %zu of the file: %s", cursor->path,
                      ll_shown(shown, cursor->tensor), at + LENGTH_BYTES, what);
    return LL_ERR(LL_E_INVAL, "%s: byte %zu of the file: %s", cursor->path, at + LENGTH_BYTES,
                  what);
}

/* The next character that is not white space, not consumed; 0 at the end. */
static char peek(struct cursor *cursor)
{
    while (cursor->at < cursor->n && strchr(" \t\r\n", cursor->text[cursor->at]) != NULL) {
        if (cursor->text[cursor->at] == '\0')
            break; /* strchr finds the final NUL of its string too */
        cursor->at++;
    }
    return cursor->at < cursor->n ? cursor->text[cursor->at] : '\0';
}

static int expect(struct cursor *cursor, char wanted)
{
    char what[] = "expected 'x'";

    if (peek(cursor) != wanted || cursor->at == cursor->n) {
        what[10] = wanted;
        return fail(cursor, cursor->at, what);
    }
    cursor->at++;
    return 0;
}

/* After an element: 1 when a comma says that another follows, 0 at the closing bracket. */
static int next_element(struct cursor *cursor, char close)
{
    char c = peek(cursor);

    if (c == ',' || (c == close && cursor->at < cursor->n)) {
        cursor->at++;
        return c == ',';
    }
    return fail(cursor, cursor->at, close == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Four hex digits at the cursor; -1 when there are none. */
static int32_t read_hex4(struct cursor *cursor)
{
    int32_t value = 0;

    for (int i = 0; i < 4; i++, cursor->at++) {
        int digit = cursor->at < cursor->n ? hex_digit(cursor->text[cursor->at]) : -1;
        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* UTF-8 of a code point that is none of the surrogates. */
static size_t put_utf8(char out[4], uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00 >> n & 0xff) | c);
    return n;
}

/* The character after a backslash; its UTF-8 goes to out. */
static int read_escape(struct cursor *cursor, char out[4], size_t *n_out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    size_t start = cursor->at - 1;
    char c = cursor->at < cursor->n ? cursor->text[cursor->at] : '\0';
    const char *simple = c != '\0' ? strchr(from, c) : NULL;

    cursor->at++;
    if (simple != NULL) {
        out[0] = to[simple - from];
        *n_out = 1;
        return 0;
    }
    if (c != 'u')
        return fail(cursor, start, "unknown escape in a string");
    int32_t high = read_hex4(cursor), low;
    if (high <= 0)
        return fail(cursor, start, "\\u needs four hex digits, not all 0");
    if (high >= 0xd800 && high < 0xe000) {
        bool is_pair = high < 0xdc00 && ll_span_fits(cursor->at, 6, cursor->n) &&
                       memcmp(cursor->text + cursor->at, "\\u", 2) == 0;
        cursor->at += 2;
        low = is_pair ? read_hex4(cursor) : -1;
        if (low < 0xdc00 || low >= 0xe000)
            return fail(cursor, start, "\\u surrogate without its other half");
        high = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
    }
    *n_out = put_utf8(out, (uint32_t)high);
    return 0;
}

/* Bytes of the UTF-8 character at s[0 .. n); 0 when it is not one (Unicode table 3-7). */
static size_t utf8_length(const char *s, size_t n)
{
    const uint8_t *b = (const uint8_t *)s;
    uint8_t low = 0x80, high = 0xbf;

    if (b[0] < 0x80)
        return 1;
    size_t length = b[0] >= 0xc2 && b[0] < 0xe0   ? 2
                    : b[0] >= 0xe0 && b[0] < 0xf0 ? 3
                    : b[0] >= 0xf0 && b[0] < 0xf5 ? 4
                                                  : 0;
    if (length == 0 || length > n)
        return 0;
    if (b[0] == 0xe0)
        low = 0xa0;
    else if (b[0] == 0xed)
        high = 0x9f;
    else if (b[0] == 0xf0)
        low = 0x90;
    else if (b[0] == 0xf4)
        high = 0x8f;
    if (b[1] < low || b[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((b[i] & 0xc0) != 0x80)
            return 0;
    return length;
}

/* A string into out[0 .. capacity), NUL-terminated. out NULL: checked and dropped. */
static int read_string(struct cursor *cursor, char *out, size_t capacity, const char *too_long)
{
    size_t used = 0, start;
    int rc = expect(cursor, '"');

    if (rc < 0)
        return rc;
    for (start = cursor->at; cursor->at < cursor->n && cursor->text[cursor->at] != '"';) {
        char piece[4];
        size_t n_piece = 0;
        uint8_t c = (uint8_t)cursor->text[cursor->at];

        if (c < 0x20)
            return fail(cursor, cursor->at, "control character in a string");
        if (c == '\\') {
            cursor->at++;
            rc = read_escape(cursor, piece, &n_piece);
            if (rc < 0)
                return rc;
        } else {
            n_piece = utf8_length(cursor->text + cursor->at, cursor->n - cursor->at);
            if (n_piece == 0)
                return fail(cursor, cursor->at, "invalid UTF-8");
            memcpy(piece, cursor->text + cursor->at, n_piece);
            cursor->at += n_piece;
        }
        if (out != NULL && used + n_piece >= capacity)
            return fail(cursor, start, too_long);
        if (out != NULL)
            memcpy(out + used, piece, n_piece);
        used += n_piece;
    }
    if (cursor->at >= cursor->n)
        return fail(cursor, cursor->n, "the header ends inside a string");
    cursor->at++;
    if (out != NULL)
        out[used] = '\0';
    return 0;
}

static int read_u64(struct cursor *cursor, uint64_t *out)
{
    uint64_t value = 0;
    size_t start, digits = 0;

    peek(cursor);
    for (start = cursor->at; cursor->at < cursor->n; cursor->at++, digits++) {
        char c = cursor->text[cursor->at];
        if (c < '0' || c > '9')
            break;
        if (!ll_checked_mul(value, 10, &value) ||
            !ll_checked_add(value, (uint64_t)(c - '0'), &value))
            return fail(cursor, start, "number above 2^64");
    }
    if (digits == 0)
        return fail(cursor, start, "expected a whole number, 0 or more");
    if (digits > 1 && cursor->text[start] == '0')
        return fail(cursor, start, "number with a leading zero");
    if (cursor->at < cursor->n && strchr(".eE", cursor->text[cursor->at]) != NULL &&
        cursor->text[cursor->at] != '\0')
        return fail(cursor, start, "expected a whole number");
    *out = value;
    return 0;
}

/* [a, b, ...] of at most n_max numbers. */
static int read_u64_list(struct cursor *cursor, uint64_t *list, uint32_t n_max, uint32_t *n,
                         const char *too_many)
{
    int rc = expect(cursor, '[');
    size_t start = cursor->at;

    *n = 0;
    if (rc < 0)
        return rc;
    if (peek(cursor) == ']') {
        cursor->at++;
        return 0;
    }
    do {
        if (*n == n_max)
            return fail(cursor, start, too_many);
        rc = read_u64(cursor, &list[*n]);
        if (rc < 0)
            return rc;
        *n += 1;
        rc = next_element(cursor, ']');
    } while (rc == 1);
    return rc;
}

static uint32_t dtype_bits(const char *dtype)
{
    static const struct {
        char name[12];
        uint32_t bits;
    } table[] = {
        {"BOOL", 8},    {"U8", 8},          {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8},
        {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},
        {"F16", 16},    {"BF16", 16},       {"I32", 32},        {"U32", 32},    {"F32", 32},
        {"C64", 64},    {"F64", 64},        {"I64", 64},        {"U64", 64},    {"F4", 4},
        {"F6_E2M3", 6}, {"F6_E3M2", 6},
    };

    for (size_t i = 0; i < LL_COUNT(table); i++)
        if (strcmp(dtype, table[i].name) == 0)
            return table[i].bits;
    return 0;
}

/* S2. entry->offset and size_bytes hold begin and end here. */
static int check_size(const struct cursor *cursor, const struct ll_safetensors_entry *entry)
{
    char what[160];
    uint64_t begin = entry->offset, end = entry->size_bytes, bits = dtype_bits(entry->dtype);

    if (bits == 0)
        return fail(cursor, cursor->at, "dtype is none that the format knows");
    for (uint32_t i = 0; i < entry->n_dims; i++)
        if (!ll_checked_mul(bits, entry->dims[i], &bits))
            return fail(cursor, cursor->at, "shape is larger than 2^64 bits");
    if (begin > end)
        return fail(cursor, cursor->at, "data_offsets end before they begin");
    if (bits % 8 != 0 || bits / 8 != end - begin) {
        snprintf(what, sizeof(what),
                 "data_offsets [%llu, %llu) hold %llu bytes, dtype and shape need %llu bits",
                 (unsigned long long)begin, (unsigned long long)end,
                 (unsigned long long)(end - begin), (unsigned long long)bits);
        return fail(cursor, cursor->at, what);
    }
    return 0;
}

static int read_entry_field(struct cursor *cursor, struct ll_safetensors_entry *entry,
                            uint32_t *seen)
{
    static const char *const fields[] = {"dtype", "shape", "data_offsets"};
    char key[16];
    uint64_t span[2];
    uint32_t n = 0, which = 0;
    size_t start = cursor->at;
    int rc = read_string(cursor, key, sizeof(key), "unknown field");

    if (rc < 0)
        return rc;
    while (which < LL_COUNT(fields) && strcmp(key, fields[which]) != 0)
        which++;
    if (which == LL_COUNT(fields))
        return fail(cursor, start, "field is none of dtype, shape, data_offsets");
    if (*seen & 1u << which)
        return fail(cursor, start, "field is there twice");
    *seen |= 1u << which;
    rc = expect(cursor, ':');
    if (rc < 0)
        return rc;
    if (which == 0)
        return read_string(cursor, entry->dtype, sizeof(entry->dtype),
                           "dtype is none that the format knows");
    if (which == 1)
        return read_u64_list(cursor, entry->dims, LL_SAFETENSORS_RANK_MAX, &entry->n_dims,
                             "shape has more than 8 dimensions");
    rc = read_u64_list(cursor, span, 2, &n, "data_offsets has more than two numbers");
    if (rc == 0 && n != 2)
        return fail(cursor, start, "data_offsets needs two numbers");
    entry->offset = span[0];
    entry->size_bytes = span[1];
    return rc;
}

static int read_entry(struct cursor *cursor, struct ll_safetensors_entry *entry)
{
    uint32_t seen = 0;
    size_t start = cursor->at;
    int rc = expect(cursor, '{');

    if (rc < 0)
        return rc;
    if (peek(cursor) != '}') {
        do {
            rc = read_entry_field(cursor, entry, &seen);
            if (rc == 0)
                rc = next_element(cursor, '}');
        } while (rc == 1);
        if (rc < 0)
            return rc;
    }
    if (seen != 7)
        return fail(cursor, start, "dtype, shape or data_offsets is missing");
    return check_size(cursor, entry);
}

/* {"format": "pt", ...}: checked, not kept. */
static int skip_metadata(struct cursor *cursor)
{
    int rc = expect(cursor, '{');

    if (rc < 0)
        return rc;
    if (peek(cursor) == '}') {
        cursor->at++;
        return 0;
    }
    do {
        rc = read_string(cursor, NULL, 0, NULL);
        if (rc == 0)
            rc = expect(cursor, ':');
        if (rc == 0)
            rc = read_string(cursor, NULL, 0, NULL);
        if (rc == 0)
            rc = next_element(cursor, '}');
    } while (rc == 1);
    return rc;
}

static int add_entry(struct cursor *cursor, struct ll_safetensors *out, uint32_t *capacity,
                     const char *name, size_t name_at)
{
    if (out->n_entries == LL_SAFETENSORS_TENSORS_MAX)
        return fail(cursor, name_at, "more than 65536 tensors in one file");
    if (out->n_entries == *capacity) {
        uint32_t wanted = *capacity == 0 ? 64 : *capacity * 2;
        struct ll_safetensors_entry *grown = realloc(out->entry, wanted * sizeof(*grown));
        if (grown == NULL)
            return LL_ERR(-ENOMEM, "%s: no memory for %u tensors", cursor->path, wanted);
        out->entry = grown;
        *capacity = wanted;
    }
    struct ll_safetensors_entry *entry = &out->entry[out->n_entries++];
    memset(entry, 0, sizeof(*entry));
    strcpy(entry->name, name);
    entry->header_at = (uint32_t)(name_at + LENGTH_BYTES);
    cursor->tensor = entry->name;
    int rc = read_entry(cursor, entry);
    cursor->tensor = NULL;
    return rc;
}

static int read_members(struct cursor *cursor, struct ll_safetensors *out)
{
    char name[LL_SAFETENSORS_NAME_MAX + 1];
    uint32_t capacity = 0;
    bool has_metadata = false;
    int rc = expect(cursor, '{');

    if (rc < 0)
        return rc;
    if (peek(cursor) == '}') {
        cursor->at++;
        return 0;
    }
    do {
        peek(cursor);
        size_t name_at = cursor->at;
        rc = read_string(cursor, name, sizeof(name), "tensor name is longer than 127 bytes");
        if (rc == 0)
            rc = expect(cursor, ':');
        if (rc < 0)
            return rc;
        if (strcmp(name, "__metadata__") != 0)
            rc = add_entry(cursor, out, &capacity, name, name_at);
        else if (has_metadata)
            rc = fail(cursor, name_at, "__metadata__ is there twice");
        else
            rc = skip_metadata(cursor), has_metadata = true;
        if (rc == 0)
            rc = next_element(cursor, '}');
    } while (rc == 1);
    return rc;
}

static int compare_names(const void *a, const void *b)
{
    const struct ll_safetensors_entry *x = a, *y = b;
    int order = strcmp(x->name, y->name);

    return order != 0 ? order : x->header_at < y->header_at ? -1 : 1;
}

static int compare_spans(const void *a, const void *b)
{
    const struct ll_safetensors_entry *x = a, *y = b;

    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    if (x->size_bytes != y->size_bytes) /* ends: an empty tensor before the one that starts there */
        return x->size_bytes < y->size_bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* S1, S3, S4; turns [begin, end) of the data into offset and size in the file. */
static int check_layout(const struct cursor *cursor, struct ll_safetensors *out)
{
    char shown[LL_SHOWN_BYTES];
    uint64_t data = LENGTH_BYTES + cursor->n, covered = 0;

    qsort(out->entry, out->n_entries, sizeof(*out->entry), compare_names);
    for (uint32_t i = 1; i < out->n_entries; i++) {
        const struct ll_safetensors_entry *a = &out->entry[i - 1], *b = &out->entry[i];
        if (strcmp(a->name, b->name) == 0)
            return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\" is there twice, at bytes %u and %u",
                          cursor->path, ll_shown(shown, b->name), a->header_at, b->header_at);
    }

    qsort(out->entry, out->n_entries, sizeof(*out->entry), compare_spans);
    for (uint32_t i = 0; i < out->n_entries; i++) {
        struct ll_safetensors_entry *entry = &out->entry[i];
        uint64_t begin = entry->offset, end = entry->size_bytes;
        if (begin != covered)
            return LL_ERR(LL_E_INVAL,
                          "%s: tensor \"%s\": data_offsets begin at %llu, but the data before it "
                          "ends at %llu (%s; named at byte %u)",
                          cursor->path, ll_shown(shown, entry->name), (unsigned long long)begin,
                          (unsigned long long)covered, begin < covered ? "overlap" : "hole",
                          entry->header_at);
        covered = end;
        entry->size_bytes = end - begin;
        if (!ll_checked_add(data, begin, &entry->offset) || covered > UINT64_MAX - data)
            return LL_ERR(LL_E_INVAL, "%s: tensor \"%s\": data_offsets end above 2^64",
                          cursor->path, ll_shown(shown, entry->name));
    }
    if (data + covered != out->file_bytes)
        return LL_ERR(LL_E_INVAL, "%s: %llu bytes, but its header describes %llu: the file is %s",
                      cursor->path, (unsigned long long)out->file_bytes,
                      (unsigned long long)(data + covered),
                      data + covered > out->file_bytes ? "cut off; copy it again"
                                                       : "longer than it should be");
    return 0;
}

int ll_safetensors_parse(struct ll_safetensors *out, const char *path, const char *header,
                         size_t n_header, uint64_t file_bytes)
{
    struct cursor cursor = {.path = ll_path_tail(path), .text = header, .n = n_header};
    struct ll_safetensors read = {.file_bytes = file_bytes};
    int rc;

    if (n_header == 0 || header[0] != '{')
        rc = fail(&cursor, 0, "the header must start with '{'");
    else
        rc = read_members(&cursor, &read);
    if (rc == 0 && (peek(&cursor) != '\0' || cursor.at != cursor.n))
        rc = fail(&cursor, cursor.at, "something follows the header's closing '}'");
    if (rc == 0 && read.n_entries == 0)
        rc = fail(&cursor, 0, "the header names no tensor");
    if (rc == 0)
        rc = check_layout(&cursor, &read);
    if (rc < 0) {
        free(read.entry);
        return rc;
    }
    *out = read;
    return 0;
}

static int read_at(int fd, const char *path, void *bytes, size_t n_bytes, uint64_t offset)
{
    for (size_t done = 0; done < n_bytes;) {
        ssize_t n = pread(fd, (char *)bytes + done, n_bytes - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return LL_ERRNO("%s: read at byte %llu", path, (unsigned long long)(offset + done));
        if (n == 0)
            return LL_ERR(LL_E_INVAL, "%s: ends at byte %llu, inside its header", path,
                          (unsigned long long)(offset + done));
        done += (size_t)n;
    }
    return 0;
}

static int read_header(struct ll_safetensors *out, int fd, const char *full_path)
{
    const char *path = ll_path_tail(full_path);
    uint8_t length[LENGTH_BYTES];
    uint64_t n_header = 0;
    struct stat st;

    if (fstat(fd, &st) < 0)
        return LL_ERRNO("%s: fstat", path);
    if (!S_ISREG(st.st_mode))
        return LL_ERR(LL_E_INVAL, "%s: not a regular file", path);
    int rc = read_at(fd, path, length, sizeof(length), 0);
    if (rc < 0)
        return rc;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        n_header = n_header << 8 | length[i];
    if (n_header > LL_SAFETENSORS_HEADER_MAX)
        return LL_ERR(LL_E_INVAL, "%s: byte 0: header length %llu, at most %u are read", path,
                      (unsigned long long)n_header, LL_SAFETENSORS_HEADER_MAX);
    if (!ll_span_fits(LENGTH_BYTES, n_header, (uint64_t)st.st_size))
        return LL_ERR(LL_E_INVAL,
                      "%s: byte 0: header length %llu, but the file has only %lld bytes: cut off; "
                      "copy it again",
                      path, (unsigned long long)n_header, (long long)st.st_size);

    char *header = malloc(n_header + 1);
    if (header == NULL)
        return LL_ERR(-ENOMEM, "%s: no memory for a header of %llu bytes", path,
                      (unsigned long long)n_header);
    rc = read_at(fd, path, header, n_header, LENGTH_BYTES);
    if (rc == 0)
        rc = ll_safetensors_parse(out, full_path, header, n_header, (uint64_t)st.st_size);
    if (rc == 0)
        out->mtime_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000ull + (uint64_t)st.st_mtim.tv_nsec;
    free(header);
    return rc;
}

int ll_safetensors_read(struct ll_safetensors *out, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return LL_ERRNO("%s", ll_path_tail(path));
    int rc = read_header(out, fd, path);
    close(fd);
    return rc;
}

void ll_safetensors_free(struct ll_safetensors *safetensors)
{
    free(safetensors->entry);
    *safetensors = (struct ll_safetensors){0};
}
