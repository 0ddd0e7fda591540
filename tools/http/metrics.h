/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/metrics.h - figures in Prometheus' text form: the proxy's own, summed over its loops,
 * and the runtime's, from shared memory. Sums only: nothing names a client, a key or a prompt. */
#ifndef TOOLS_HTTP_METRICS_H
#define TOOLS_HTTP_METRICS_H

#include "tools/http/server.h"

void metrics_write(struct buffer *out, const struct loop *loop);
/* One line into the log when something has happened since the last one. Loop 0, every 10 s. */
void metrics_log(const struct server *server);

#endif
