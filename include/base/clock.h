/* SPDX-License-Identifier: Apache-2.0 */
/* base/clock.h - the one clock: CLOCK_MONOTONIC in nanoseconds.
 *
 * Times in shared memory (deadlines, events, heartbeat) are on it, so every process of the
 * machine can compare them. Pure modules take now_ns as an argument and never call this. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define LL_NS_PER_US 1000ull
#define LL_NS_PER_MS 1000000ull
#define LL_NS_PER_S  1000000000ull

static inline uint64_t ll_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * LL_NS_PER_S + (uint64_t)now.tv_nsec;
}

#endif
