/* SPDX-License-Identifier: Apache-2.0 */
/* tests/http/support_proxy.h - the built llring-http in front of a runtime, for tests in C. */
#ifndef TESTS_HTTP_SUPPORT_PROXY_H
#define TESTS_HTTP_SUPPORT_PROXY_H

#include "tests/harness.h"

struct test_proxy {
    int pid;
    uint16_t port;
    char log[128]; /* a file; removed by test_proxy_stop() */
};

/* Starts it on a free port of the loopback, with the given arguments (NULL-ended), and waits until
 * /health says 200. */
int test_proxy_start(struct test_proxy *out, const struct ll_test_runtime *runtime,
                     const char *const *arguments);
/* SIGTERM, waits; gives the exit status, or -1 after 10 s and a SIGKILL. */
int test_proxy_stop(struct test_proxy *proxy);

/* A connection to it; blocking. -1 with a message. */
int test_proxy_connect(const struct test_proxy *proxy);

/* CPU seconds a process has used; its resident memory and the most of it ever, in KiB. */
double test_cpu_seconds(int pid);
uint64_t test_memory_kib(int pid, const char *field);

#endif
