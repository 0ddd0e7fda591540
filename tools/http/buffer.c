/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/http/buffer.h"

#include "base/bits.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void buffer_free(struct buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct buffer){0};
}

bool buffer_reserve(struct buffer *buffer, size_t n)
{
    if (n <= buffer->capacity - buffer->n)
        return true;
    size_t wanted = ll_pow2_ceil(ll_max_u64(buffer->n + n, 256));
    char *larger = realloc(buffer->data, wanted);
    if (larger == NULL) {
        buffer->has_failed = true;
        return false;
    }
    buffer->data = larger;
    buffer->capacity = wanted;
    return true;
}

void buffer_put(struct buffer *buffer, const void *bytes, size_t n)
{
    if (n == 0 || !buffer_reserve(buffer, n))
        return;
    memcpy(buffer->data + buffer->n, bytes, n);
    buffer->n += n;
}

void buffer_printf(struct buffer *buffer, const char *format, ...)
{
    char text[512];
    va_list list;

    va_start(list, format);
    int n = vsnprintf(text, sizeof(text), format, list);
    va_end(list);
    if (n < 0)
        return;
    if ((size_t)n < sizeof(text)) {
        buffer_put(buffer, text, (size_t)n);
        return;
    }
    if (!buffer_reserve(buffer, (size_t)n + 1))
        return;
    va_start(list, format);
    vsnprintf(buffer->data + buffer->n, (size_t)n + 1, format, list);
    va_end(list);
    buffer->n += (size_t)n;
}

void buffer_u64(struct buffer *buffer, uint64_t value)
{
    char text[20];
    size_t at = sizeof(text);

    do
        text[--at] = (char)('0' + value % 10);
    while ((value /= 10) > 0);
    buffer_put(buffer, text + at, sizeof(text) - at);
}

/* Length of the UTF-8 character at text, 0 where there is none (cut, overlong, surrogate). */
static size_t character_bytes(const unsigned char *text, size_t n)
{
    unsigned char c = text[0], low = 0x80, high = 0xbf;
    size_t n_bytes;

    if (c < 0x80)
        return 1;
    if (c >= 0xc2 && c <= 0xdf)
        n_bytes = 2;
    else if (c >= 0xe0 && c <= 0xef)
        n_bytes = 3;
    else if (c >= 0xf0 && c <= 0xf4)
        n_bytes = 4;
    else
        return 0;
    if (c == 0xe0)
        low = 0xa0;
    else if (c == 0xed)
        high = 0x9f;
    else if (c == 0xf0)
        low = 0x90;
    else if (c == 0xf4)
        high = 0x8f;
    if (n < n_bytes || text[1] < low || text[1] > high)
        return 0;
    for (size_t i = 2; i < n_bytes; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    return n_bytes;
}

static void put_escaped(struct buffer *buffer, unsigned char c)
{
    switch (c) {
    case '"':
        buffer_put(buffer, "\\\"", 2);
        return;
    case '\\':
        buffer_put(buffer, "\\\\", 2);
        return;
    case '\n':
        buffer_put(buffer, "\\n", 2);
        return;
    case '\r':
        buffer_put(buffer, "\\r", 2);
        return;
    case '\t':
        buffer_put(buffer, "\\t", 2);
        return;
    default:
        buffer_printf(buffer, "\\u%04x", c);
    }
}

void buffer_json_string(struct buffer *buffer, const char *text, size_t n)
{
    const unsigned char *bytes = (const unsigned char *)text;
    size_t from = 0, i = 0; /* [from, i) is plain and not yet written */

    buffer_put(buffer, "\"", 1);
    while (i < n) {
        unsigned char c = bytes[i];
        if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
            i++;
            continue;
        }
        size_t n_character = character_bytes(bytes + i, n - i);
        if (n_character > 1) {
            i += n_character;
            continue;
        }
        buffer_put(buffer, text + from, i - from);
        if (n_character == 0)
            buffer_put(buffer, "\xef\xbf\xbd", 3);
        else
            put_escaped(buffer, c);
        from = ++i;
    }
    buffer_put(buffer, text + from, i - from);
    buffer_put(buffer, "\"", 1);
}

void buffer_json_logprob(struct buffer *buffer, float logprob)
{
    char text[40];

    if (!isfinite(logprob)) {
        buffer_text(buffer, "-9999.0");
        return;
    }
    for (int precision = 6; precision <= 9; precision++) { /* 9 digits always suffice for a float */
        snprintf(text, sizeof(text), "%.*g", precision, (double)logprob);
        if (strtof(text, NULL) == logprob)
            break;
    }
    buffer_text(buffer, text);
    if (strpbrk(text, ".e") == NULL)
        buffer_text(buffer, ".0"); /* a float stays a float for readers that tell them apart */
}
