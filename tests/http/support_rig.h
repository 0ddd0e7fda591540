/* SPDX-License-Identifier: Apache-2.0 */
/* tests/http/support_rig.h - the insides of llring-http in the test's own thread: a server with one
 * loop that has no thread, attached to a runtime on the fake device with the demo model's
 * tokenizer. The test decides when a turn happens. */
#ifndef TESTS_HTTP_SUPPORT_RIG_H
#define TESTS_HTTP_SUPPORT_RIG_H

#include "tests/harness.h"

#include "tools/http/job.h"

struct http_rig {
    struct ll_test_runtime runtime;
    struct server server;
    struct loop loop;
};

int http_rig_open(struct http_rig *rig);
void http_rig_close(struct http_rig *rig);
/* What the sockets brought, what the runtime wrote, then what is to be sent. */
void http_rig_turn(struct http_rig *rig);

#endif
