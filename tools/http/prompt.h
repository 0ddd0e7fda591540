/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/prompt.h - what a request asks to continue, as token ids: chat messages, texts, ids.
 */
#ifndef TOOLS_HTTP_PROMPT_H
#define TOOLS_HTTP_PROMPT_H

#include "tools/http/fields.h"

#define PROMPTS_MAX 2048 /* a request to /v1/completions */

struct prompt {
    uint32_t *ids; /* [n], owned */
    uint32_t n;
    const char *text; /* as sent, in the JSON document; NULL: sent as ids or messages */
    size_t n_text;
};

/* "messages", "tools", "chat_template_kwargs" of root as one prompt. 0, or -1 with *error. */
int prompt_from_chat(const json_t *root, const json_t *tools, const struct link *link,
                     struct prompt *out, struct api_error *error);
/* "prompt": a text, ids, or an array of either; *out is an array of *n, both the caller's. */
int prompts_from_field(const json_t *root, bool adds_special, const struct link *link,
                       struct prompt **out, uint32_t *n, struct api_error *error);
int prompt_from_text(const char *text, size_t n_text, bool adds_special, const struct link *link,
                     struct prompt *out, struct api_error *error);
void free_prompt(struct prompt *prompt);
void prompts_free(struct prompt *prompts, uint32_t n);

#endif
