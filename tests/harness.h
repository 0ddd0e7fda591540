/* SPDX-License-Identifier: Apache-2.0 */
/* tests/harness.h - what every test includes: CMocka, paths, a skip, a runtime to talk to. */
#ifndef TESTS_HARNESS_H
#define TESTS_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LL_SKIPPED 77

/* Absolute path of a file of the source tree; static buffer, next call overwrites. */
const char *ll_test_source(const char *relative);
/* The same for a file that may be absent (../shared/...): NULL then. */
const char *ll_test_shared(const char *relative);

/* Seconds a stress test should run: $LL_STRESS_SECONDS, else fallback. */
double ll_test_seconds(double fallback);

/* Seed of this run: $LL_TEST_SEED, else from the clock; printed once so that a failure can be
 * replayed. */
uint64_t ll_test_seed(void);

/* Runs fault(on) in a child, its standard error closed: whether it died of an assertion. */
bool ll_test_aborts(void (*fault)(void *on), void *on);

/* Starts build/llringd with the given arguments (NULL-ended) plus --socket in a fresh directory,
 * and waits until it is READY. */
struct ll_test_runtime {
    int pid;
    char directory[64];
    char socket[100];
};
int ll_test_runtime_start(struct ll_test_runtime *out, const char *const *arguments);
/* SIGTERM, waits; gives the exit status, or -1 after 10 s and a SIGKILL. Removes the directory. */
int ll_test_runtime_stop(struct ll_test_runtime *runtime);

#endif
