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
/* The first attachment is there: says so, with the address. */
void server_say_hello(const struct server *server, const struct link *link);

#endif
