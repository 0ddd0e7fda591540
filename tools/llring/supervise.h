/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/supervise.h - keeps llringd and llring-http running until it is told to stop.
 *
 *   SV1 What dies is started anew: after 0.1 s, then twice as long each time it lives for less than
 *       30 s, 10 s at most. At the sixth such end in a row it is given up, and all ends. The other
 *       one is left alone: runtime and proxy find each other again by themselves.
 *   SV2 llringd dies by a signal, or by a device that failed after it was ready (status 3). Any
 *       other end is its own decision and the end of all, its status handed on: 0, somebody stopped
 *       it; else it cannot start, and has said why. Only where it had been running, a start that
 *       fails is tried again (the device's memory may not be free yet).
 *   SV3 llring-http likewise: a status of its own within 2 s of its first start is the end of all.
 *   SV4 To stop, the proxy goes first, so that its clients get their answers; then the runtime. A
 *       second signal reaches both at once. */
#ifndef TOOLS_LLRING_SUPERVISE_H
#define TOOLS_LLRING_SUPERVISE_H

#include <stdbool.h>

struct supervise_program {
    const char *name; /* NULL: none */
    const char *const *arguments;
    int n;
    const char *first_only; /* one more argument, at the first start; NULL: none */
};

/* Starts both and returns when both have ended for good. interrupts_catch() was called before.
 * Exit status. */
int supervise(const struct supervise_program *runtime, const struct supervise_program *proxy,
              bool is_restarting);

#endif
