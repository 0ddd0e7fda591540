/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/allocations.h - the promise "no allocation after READY", counted.
 *
 * In llringd malloc and its kin go through this file: one relaxed load each until the watch begins,
 * then each call of any thread adds 1 to the counter (STAT's allocations_after_ready). Under a
 * sanitizer, which has a malloc of its own, and without glibc nothing is counted. */
#ifndef RUNTIME_ALLOCATIONS_H
#define RUNTIME_ALLOCATIONS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* From now on; NULL ends it. */
void ll_allocations_watch(_Atomic uint64_t *counter);

/* What this thread allocates counts no more: it has nothing to do with steps (reload.h). */
void ll_allocations_exempt_thread(void);

/* Does this build count? */
bool ll_allocations_are_counted(void);

#endif
