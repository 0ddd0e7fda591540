/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/connection.h - an attachment with what every command asks of it: the runtime's
 * figures and its tokenizer. */
#ifndef TOOLS_LLRING_CONNECTION_H
#define TOOLS_LLRING_CONNECTION_H

#include "ll/client.h"
#include "ll/text.h"
#include "tools/common/options.h"

struct connection_options {
    const char *socket;
    uint32_t wait_s;
};
extern const struct option connection_options[];
#define CONNECTION_GROUP(type, member)                                                             \
    {                                                                                              \
        "Runtime", connection_options, offsetof(type, member)                                      \
    }

struct connection {
    struct ll_client *client;
    struct ll_client_info info;
    struct ll_tokenizer *tokenizer; /* NULL: the runtime has none */
};

/* Attaches with n_slots requests in flight (0: the library's default), trying again for
 * options->wait_s seconds while nobody listens. Prints what failed; EXIT_OK or EXIT_FAILED. */
int connection_open(struct connection *out, const struct connection_options *options,
                    uint32_t n_slots);
void connection_close(struct connection *connection);

/* Says that text needs a tokenizer and what to do; false when there is none. */
bool connection_has_text(const struct connection *connection);

/* Encodes text into a new array *ids of *n entries that the caller frees. 0, or a negative code. */
int connection_encode(const struct connection *connection, const char *text, size_t n_bytes,
                      uint32_t flags, uint32_t **ids, uint32_t *n);
/* The same for a conversation. */
int connection_encode_chat(const struct connection *connection, const struct ll_chat *chat,
                           uint32_t **ids, uint32_t *n);

#endif
