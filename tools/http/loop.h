/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/loop.h - what server.c and loop.c know of each other. */
#ifndef TOOLS_HTTP_LOOP_H
#define TOOLS_HTTP_LOOP_H

#include "tools/http/server.h"

/* Starts the thread. The listening descriptors (-1: none) stay the server's. */
int loop_start(struct loop *loop, int tcp_fd, int unix_fd);
void loop_wake(struct loop *loop);
/* After the thread has been joined. */
void loop_free(struct loop *loop);

/* attachments.c: a loop's attachments, one a runtime. */
void attachments_init(struct loop *loop);
/* Tries those that are not there. */
void attachments_try(struct loop *loop, uint64_t now_ns);
/* Before a sleep; true: do not sleep, poll. */
bool attachments_arm(struct loop *loop);
/* Takes what the runtimes wrote; true when there may be more. */
bool attachments_poll(struct loop *loop);
void attachments_end(struct loop *loop);

/* The first attachment is there: says so, with the address. */
void server_say_hello(const struct server *server, const struct link *link);

#endif
