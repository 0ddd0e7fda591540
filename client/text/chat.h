/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/chat.h - what chat.c and the formats share: a conversation is written as text with
 * markers in between.
 *
 * A marker is one of the format's own special tokens. Everything else, message content above all,
 * is plain text: encoded with special tokens disallowed, so a user who types "<|eot_id|>" gets six
 * harmless ids. Text between two markers is encoded as one string, because ids depend on what
 * stands side by side. */
#ifndef CLIENT_TEXT_CHAT_H
#define CLIENT_TEXT_CHAT_H

#include "client/text/json.h"
#include "ll/text.h"

enum ll_chat_marker {
    LL_MARK_BEGIN_OF_TEXT = 0,
    LL_MARK_START_HEADER,
    LL_MARK_END_HEADER,
    LL_MARK_EOT,
    LL_CHAT_MARKERS,
};

struct ll_chat_mark {
    size_t at; /* in the text: the marker stands before this byte */
    enum ll_chat_marker marker;
};

/* Where a format writes to. Text past the sink's capacity and marks past n_marks_max are counted
 * and dropped, so a first run with neither measures. */
struct ll_chat_writer {
    struct ll_sink text;
    bool has_marker_text;       /* markers go to the text as their text, not to marks */
    struct ll_chat_mark *marks; /* [n_marks_max] */
    size_t n_marks, n_marks_max;
};

void ll_chat_put_marker(struct ll_chat_writer *writer, enum ll_chat_marker marker);

/* text without the white space around it, as Python's str.strip() sees it. */
void ll_chat_trim(const char **text, size_t *n_bytes);

/* The date that a format prints where the chat has none. */
#define LL_CHAT_DATE_BYTES 40
void ll_chat_llama3_date(enum ll_chat_format format, char out[LL_CHAT_DATE_BYTES]);

/* Writes a conversation, whose date is set, in Llama 3.1's or 3.2's format. LL_E_INVAL: the
 * conversation has no place in it; the text says which message and why. */
int ll_chat_llama3_write(struct ll_chat_writer *writer, const struct ll_chat *chat);

/* The format of a checkpoint's chat template by the SHA-256 of its text (64 lower-case hex digits);
 * LL_CHAT_NONE: not one that is known. */
enum ll_chat_format ll_chat_format_by_template(const char *sha256_hex);

#endif
