/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/llring/connection.h"

#include "base/clock.h"
#include "base/err.h"
#include "tools/llring/terminal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WAIT_STEP_US 20000

const struct option connection_options[] = {
    {.name = "socket",
     .kind = OPTION_TEXT,
     .offset = offsetof(struct connection_options, socket),
     .argument = "PATH",
     .help = "the runtime's control socket; else $LLRING_SOCKET, else\n"
             "$XDG_RUNTIME_DIR/llring/llring.sock or /run/llring/llring.sock"},
    {.name = "wait",
     .kind = OPTION_U32,
     .offset = offsetof(struct connection_options, wait_s),
     .argument = "SECONDS",
     .help = "wait so long for a runtime that is still starting (default 0)"},
    {.name = NULL},
};

static bool is_absent(int code)
{
    return code == -ENOENT || code == -ECONNREFUSED;
}

int connection_open(struct connection *out, const struct connection_options *options,
                    uint32_t n_slots)
{
    struct ll_client_options attach = {.struct_bytes = sizeof(attach),
                                       .n_slots = n_slots,
                                       .socket = options->socket,
                                       .name = "llring"};
    uint64_t deadline_ns = ll_now_ns() + options->wait_s * LL_NS_PER_S;
    struct connection connection = {.info.struct_bytes = sizeof(connection.info)};
    int rc;

    while ((rc = ll_client_open(&connection.client, &attach)) < 0) {
        if (!is_absent(rc) || ll_now_ns() >= deadline_ns || interrupts_count() > 0)
            return is_absent(rc) ? terminal_fail("%s (--socket names another)", ll_error_text())
                                 : terminal_fail_code(rc, NULL);
        usleep(WAIT_STEP_US);
    }
    rc = ll_client_info(connection.client, &connection.info);
    if (rc == 0 && connection.info.tokenizer != NULL)
        rc = ll_tokenizer_from_image(&connection.tokenizer, connection.info.tokenizer,
                                     connection.info.tokenizer_bytes);
    if (rc < 0) {
        terminal_fail_code(rc, NULL);
        ll_client_close(connection.client);
        return EXIT_FAILED;
    }
    *out = connection;
    return EXIT_OK;
}

void connection_close(struct connection *connection)
{
    ll_tokenizer_free(connection->tokenizer);
    ll_client_close(connection->client);
    *connection = (struct connection){0};
}

bool connection_has_text(const struct connection *connection)
{
    if (connection->tokenizer != NULL)
        return true;
    terminal_fail("model %s has no tokenizer, so text cannot be read or written: give token ids "
                  "with \"llring complete --ids\"",
                  connection->info.model);
    return false;
}

int connection_encode(const struct connection *connection, const char *text, size_t n_bytes,
                      uint32_t flags, uint32_t **ids, uint32_t *n)
{
    size_t n_max = n_bytes + 1; /* always enough, says ll_encode */
    uint32_t *buffer = calloc(n_max, sizeof(*buffer));

    if (buffer == NULL)
        return LL_ERR(-ENOMEM, "no memory for a prompt of %zu bytes", n_bytes);
    int64_t count = ll_encode(connection->tokenizer, text, n_bytes, flags, buffer, n_max);
    if (count < 0 || (uint64_t)count > n_max) {
        free(buffer);
        return count < 0 ? (int)count : LL_ERR(LL_E_PROTOCOL, "more ids than bytes");
    }
    *ids = buffer;
    *n = (uint32_t)count;
    return 0;
}

int connection_encode_chat(const struct connection *connection, const struct ll_chat *chat,
                           uint32_t **ids, uint32_t *n)
{
    int64_t count = ll_chat_encode(connection->tokenizer, chat, NULL, 0);

    if (count < 0)
        return (int)count;
    uint32_t *buffer = calloc((size_t)count + 1, sizeof(*buffer));
    if (buffer == NULL)
        return LL_ERR(-ENOMEM, "no memory for a prompt of %lld ids", (long long)count);
    int64_t again = ll_chat_encode(connection->tokenizer, chat, buffer, (size_t)count);
    if (again != count) {
        free(buffer);
        return again < 0 ? (int)again : LL_ERR(LL_E_PROTOCOL, "the prompt changed its length");
    }
    *ids = buffer;
    *n = (uint32_t)count;
    return 0;
}
