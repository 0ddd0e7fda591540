/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/sandbox.h - gives up, for all threads and for good, the system calls that a running
 * proxy has no use for: it opens no file, starts no program, makes no process. */
#ifndef TOOLS_HTTP_SANDBOX_H
#define TOOLS_HTTP_SANDBOX_H

/* After all threads have been started. 0, or a negative code with its text: nothing is given up. */
int sandbox_enter(void);

#endif
