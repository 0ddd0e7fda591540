/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/buffer.h - bytes that grow, and the writer of every reply's JSON.
 *
 *   U1  A failed allocation sets has_failed and drops what would not fit; the owner looks at it
 * once when the whole is written, so that writers need no error path. */
#ifndef TOOLS_HTTP_BUFFER_H
#define TOOLS_HTTP_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct buffer {
    char *data;
    size_t n, capacity;
    bool has_failed; /* U1 */
};

void buffer_free(struct buffer *buffer);
/* Makes room for n more bytes. */
bool buffer_reserve(struct buffer *buffer, size_t n);
void buffer_put(struct buffer *buffer, const void *bytes, size_t n);
void buffer_printf(struct buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static inline void buffer_text(struct buffer *buffer, const char *text)
{
    buffer_put(buffer, text, strlen(text));
}

/* A number in decimal digits: for what is written a token, where buffer_printf() is too slow. */
void buffer_u64(struct buffer *buffer, uint64_t value);

/* A JSON string with its quotes. Bytes that are no UTF-8 become U+FFFD. */
void buffer_json_string(struct buffer *buffer, const char *text, size_t n);
static inline void buffer_json_text(struct buffer *buffer, const char *text)
{
    buffer_json_string(buffer, text, strlen(text));
}
/* The shortest decimal that reads back as the same float; -9999.0 for what JSON cannot say. Equal
 * floats give equal text: evaluation harnesses compare them. */
void buffer_json_logprob(struct buffer *buffer, float logprob);

#endif
