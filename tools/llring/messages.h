/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/messages.h - conversations in OpenAI's JSON form as token ids. */
#ifndef TOOLS_LLRING_MESSAGES_H
#define TOOLS_LLRING_MESSAGES_H

#include "tools/llring/connection.h"

#include <jansson.h>

/* An array of messages and an optional one of tools (NULL: none) as the prompt of an answer;
 * system: NULL, or a system prompt where the conversation has none. The caller frees *ids.
 * LL_E_INVAL with the field named, or what ll_chat_encode() says. text_out, when not NULL, gets the
 * prompt as text, NUL-terminated, also the caller's. */
int messages_encode(struct connection *connection, const json_t *messages, const json_t *tools,
                    const char *system, uint32_t **ids, uint32_t *n, char **text_out);

#endif
