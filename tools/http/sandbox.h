/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/sandbox.h - gives up, for all threads and for good, the system calls that a running
 * proxy has no use for: it opens no file, starts no program, makes no thread and no process, maps
 * no memory to run code from, and makes no socket but to the runtime.
 *
 * A refused call fails with EPERM, and the kernel's log says which it was (audit, type=1326). */
#ifndef TOOLS_HTTP_SANDBOX_H
#define TOOLS_HTTP_SANDBOX_H

#include <stdbool.h>

/* After all threads have been started. removes_socket: a Unix socket of ours is removed at the end,
 * so unlink stays. 0, or a negative code with its text: nothing is given up. */
int sandbox_enter(bool removes_socket);

#endif
