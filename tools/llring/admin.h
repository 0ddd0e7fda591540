/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/admin.h - the runtime's admin socket: one line to it, one JSON object back. It is
 * its owner's (0600), beside the control socket. */
#ifndef TOOLS_LLRING_ADMIN_H
#define TOOLS_LLRING_ADMIN_H

#include <jansson.h>
#include <stdbool.h>

struct admin_options {
    const char *admin_socket; /* NULL: admin.sock beside the control socket */
    const char *socket;       /* the control socket; NULL: as ll_client_open() finds it */
};

/* Asks; NULL, with the error's text set (ll_error_text()) and *code, where nobody answers. The
 * caller releases the object. An object with a number "error" and a "message" is a refusal. */
json_t *admin_ask(const struct admin_options *options, const char *line, int *code);

/* The refusal's code, 0: it is none. */
int admin_refusal(const json_t *answer, const char **message);

#endif
