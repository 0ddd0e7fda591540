/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/responses.h - /v1/responses, as far as it needs no memory of earlier requests: its
 * body is made one of /v1/chat/completions, and its answer is written as a list of items.
 *
 *   Q1  Streaming and not streaming build the same items in the same order; streaming also tells of
 *       each step. So both answers end in the same response object.
 *   Q2  At most one item is open. A piece of another one closes it. */
#ifndef TOOLS_HTTP_RESPONSES_H
#define TOOLS_HTTP_RESPONSES_H

#include "tools/http/fields.h"

enum response_item { ITEM_NONE, ITEM_MESSAGE, ITEM_CALL };

struct response {
    struct buffer echo; /* ,"key":value of what the response repeats of the request */
    bool wants_logprobs;
    uint64_t sequence; /* number of the next event */
    uint32_t n_items;
    enum response_item open; /* Q2; its place is n_items - 1 */
    uint32_t call;           /* ITEM_CALL: index in choice.call */
    char item_id[48];
    struct buffer text, scores; /* ITEM_MESSAGE: all of it, and its logprobs */
    struct buffer items;        /* those that are closed, with commas */
};

/* Rewrites a body in place and keeps what the response repeats. 0, or -1 with *error. */
int responses_read(json_t *root, struct response *out, struct api_error *error);
void responses_free(struct response *response);

#endif
