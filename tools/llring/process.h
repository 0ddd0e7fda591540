/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/process.h - llringd and llring-http as children: found beside this program,
 * ended with it. */
#ifndef TOOLS_LLRING_PROCESS_H
#define TOOLS_LLRING_PROCESS_H

#include <sys/types.h>

/* Starts program ("llringd", "llring-http") with arguments[0 .. n). It has its own process group,
 * so that Ctrl-C reaches it only through us and once, and gets SIGTERM should this program be
 * killed. Its standard output goes to standard error when to_stderr. The pid; a negative errno
 * after printing why not. */
pid_t process_start(const char *program, const char *const *arguments, int n, int to_stderr);

/* Exit code to hand on for a status of waitpid(): its own, or 128 + signal. */
int process_exit_code(const char *program, int status);

/* Waits for pid, passing every SIGINT and SIGTERM on to it. Exit status, or 128 + signal. */
int process_wait(pid_t pid);

/* SIGTERM, then process_wait(); SIGKILL after 10 s. */
int process_stop(pid_t pid);

#endif
