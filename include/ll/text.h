/* SPDX-License-Identifier: Apache-2.0 */
/* ll/text.h - text to token ids and back: tokenizer, chat formats, stop strings, tool calls.
 *
 * All of it runs in the client's process: the runtime sees ids only. Needs no runtime: a tokenizer
 * can also be built from files. Objects marked const may be shared by threads; the others belong to
 * one thread at a time. Errors as in ll/client.h. Text is UTF-8 with explicit lengths. */
#ifndef LL_TEXT_H
#define LL_TEXT_H

#include "ll/client.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- tokenizer ------------------------------------------------------------------------------*/
struct ll_tokenizer; /* opaque, immutable once made */

/* A view of a tokenizer image, usually ll_client_info.tokenizer: flat, shared, not copied; it must
 * outlive *out. Offsets are checked once here. LL_E_PROTOCOL: not an image. */
LL_API int ll_tokenizer_from_image(struct ll_tokenizer **out, const void *image, size_t n_bytes);

/* A model directory's tokenizer.json (or tokenizer.model), or such a file itself.
 * -ENOENT, LL_E_INVAL (broken; file and field named), LL_E_UNSUPPORTED (not a Llama-style BPE). */
LL_API int ll_tokenizer_from_path(struct ll_tokenizer **out, const char *path);
LL_API void ll_tokenizer_free(struct ll_tokenizer *tokenizer);

LL_API uint32_t ll_tokenizer_n_vocab(const struct ll_tokenizer *tokenizer);
/* Id of a special token's text, "<|eot_id|>"; UINT32_MAX: none. */
LL_API uint32_t ll_tokenizer_special(const struct ll_tokenizer *tokenizer, const char *text,
                                     size_t n_bytes);
/* Bytes of one id (specials: their text); NULL for an id that has none. Not NUL-terminated. */
LL_API const char *ll_tokenizer_bytes(const struct ll_tokenizer *tokenizer, uint32_t id,
                                      size_t *n_bytes);
LL_API int ll_tokenizer_is_special(const struct ll_tokenizer *tokenizer, uint32_t id);

enum ll_encode_flags {
    LL_ENCODE_SPECIAL = 1, /* recognise special tokens in the text; without, they are plain text */
    LL_ENCODE_BOS = 2,     /* put begin-of-text first */
};

/* Encodes n_bytes of text into ids[0 .. n_max). Returns the number of ids the text has, which may
 * exceed n_max (only n_max are written): n_bytes + 1 is always enough. Invalid UTF-8 is encoded
 * byte by byte. Time is O(n log n). Never fails but for -ENOMEM. */
LL_API int64_t ll_encode(const struct ll_tokenizer *tokenizer, const char *text, size_t n_bytes,
                         uint32_t flags, uint32_t *ids, size_t n_max);

/* ---- streaming detokenizer --------------------------------------------------------------------*/
struct ll_decoder; /* opaque: turns ids into whole UTF-8 characters */

enum ll_decode_flags {
    LL_DECODE_SPECIAL = 1, /* special tokens appear as their text; without, they are left out */
};
LL_API int ll_decoder_new(struct ll_decoder **out, const struct ll_tokenizer *tokenizer,
                          uint32_t flags);
LL_API void ll_decoder_free(struct ll_decoder *decoder);
LL_API void ll_decoder_reset(struct ll_decoder *decoder);
/* Feeds one id. *text points to the characters that became whole (valid until the next call),
 * returns their byte count, 0 when none did. Bytes that can never become UTF-8 come out as U+FFFD.
 * LL_E_INVAL: id outside the vocabulary. */
LL_API int ll_decoder_feed(struct ll_decoder *decoder, uint32_t id, const char **text);
/* End of the stream: an incomplete tail comes out as one U+FFFD. */
LL_API int ll_decoder_finish(struct ll_decoder *decoder, const char **text);

/* ---- stop strings -------------------------------------------------------------------------------
 * Finds the first of several strings in a stream and holds back what may be the start of one. */
struct ll_stopper;
#define LL_STOP_STRINGS_MAX 16
#define LL_STOP_BYTES_MAX   1024
LL_API int ll_stopper_new(struct ll_stopper **out, const char *const *strings,
                          const size_t *n_bytes, uint32_t n);
LL_API void ll_stopper_free(struct ll_stopper *stopper);
LL_API void ll_stopper_reset(struct ll_stopper *stopper);
/* Feeds text; *out is what may be shown now (valid until the next call), the return value its
 * length. *hit: index of the string found, -1 none; after a hit nothing more is shown. */
LL_API int ll_stopper_feed(struct ll_stopper *stopper, const char *text, size_t n_bytes,
                           const char **out, int *hit);
/* End of the stream without a hit: the rest. */
LL_API int ll_stopper_finish(struct ll_stopper *stopper, const char **out);

/* ---- chat -----------------------------------------------------------------------------------*/
enum ll_chat_format {
    LL_CHAT_NONE = 0,
    LL_CHAT_LLAMA3_1 = 1, /* also 3.3 */
    LL_CHAT_LLAMA3_2 = 2,
};
/* "llama3.1", "llama3.2", "llama3.3" (= 3.1); LL_CHAT_NONE for anything else. */
LL_API enum ll_chat_format ll_chat_format_find(const char *name);
LL_API const char *ll_chat_format_name(enum ll_chat_format format);

struct ll_chat_message {
    const char *role;    /* "system", "user", "assistant", "tool", "ipython", "developer" */
    const char *content; /* UTF-8; NULL: none */
    size_t n_content;
    const char *tool_name; /* assistant's one tool call; NULL: none */
    const char *tool_arguments; /* JSON object as text */
    size_t n_tool_arguments;
};

struct ll_chat {
    uint32_t struct_bytes; /* sizeof(struct ll_chat) */
    enum ll_chat_format format;
    const struct ll_chat_message *messages;
    uint32_t n_messages;
    uint32_t flags;         /* LL_CHAT_* below */
    const char *tools_json; /* JSON array of tools; NULL: none */
    size_t n_tools_json;
    const char *date; /* "26 Jul 2024"; NULL: the format's (3.1: that; 3.2: today) */
};
enum ll_chat_flags {
    LL_CHAT_NO_GENERATION = 1,  /* leave out the closing assistant header */
    LL_CHAT_TOOLS_IN_SYSTEM = 2 /* tools in the system turn instead of the first user turn */
};

/* Renders a conversation as the model's own template would. Returns the id count (may exceed n_max,
 * as ll_encode). Content is encoded with special tokens as plain text; only the format's own markers
 * are special. LL_E_INVAL: no message, unknown role, two tool calls, bad JSON, tools without a
 * first user message; LL_E_UNSUPPORTED: format NONE or the vocabulary lacks its markers. */
LL_API int64_t ll_chat_encode(const struct ll_tokenizer *tokenizer, const struct ll_chat *chat,
                              uint32_t *ids, size_t n_max);
/* The same as text, for people and tests: byte count (may exceed capacity). */
LL_API int64_t ll_chat_render(const struct ll_chat *chat, char *text, size_t capacity);

/* ---- tool calls ----------------------------------------------------------------------------------
 * One state machine fed token by token for every form Llama 3 emits: JSON {"name", "parameters"}
 * (several, separated by `;`, `,` or newline), after <|python_tag|>, <function=NAME>{...}</function>,
 * [f(a=1), g()]. The result is the same for every split. A call counts only if its name is among
 * the tools and the form opens the message (or follows the tag); anything else is content. */
struct ll_toolcalls;
struct ll_toolcalls_event {
    uint32_t type;  /* LL_TOOL_* */
    uint32_t index; /* of the call */
    const char *text; /* CONTENT: text; NAME: the name; ARGUMENTS: the next piece of JSON */
    size_t n_text;
};
enum ll_tool_event_type { LL_TOOL_CONTENT = 1, LL_TOOL_NAME = 2, LL_TOOL_ARGUMENTS = 3 };

/* tools_json: the JSON array of tools whose names count. */
LL_API int ll_toolcalls_new(struct ll_toolcalls **out, const struct ll_tokenizer *tokenizer,
                            const char *tools_json, size_t n_tools_json);
LL_API void ll_toolcalls_free(struct ll_toolcalls *calls);
/* Feeds one id. Events are read with _next until it answers 0; pointers live until the next feed. */
LL_API int ll_toolcalls_feed(struct ll_toolcalls *calls, uint32_t id);
LL_API int ll_toolcalls_finish(struct ll_toolcalls *calls);
LL_API int ll_toolcalls_next(struct ll_toolcalls *calls, struct ll_toolcalls_event *event);

#ifdef __cplusplus
}
#endif

#endif
