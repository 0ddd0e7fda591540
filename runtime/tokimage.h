/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/tokimage.h - the TOK region: the tokenizer image, built by somebody expendable.
 *
 * A tokenizer file is hostile input, and the process that owns the device and everybody's prompts
 * does not parse it: a forked child with little time and memory does, while the weights load. The
 * parent copies the bytes it wrote, checks them as any client would, and seals them.
 *
 *   I1  begin() is called while the process has one thread
 *   I2  the child's file is read, never mapped: it could shrink under a mapping */
#ifndef RUNTIME_TOKIMAGE_H
#define RUNTIME_TOKIMAGE_H

#include "shm/region.h"

#include <sys/types.h>

struct ll_tokimage {
    pid_t child;      /* 0: none */
    int file, errors; /* -1: none */
};

/* Starts the child on a model directory. */
int ll_tokimage_begin(struct ll_tokimage *out, const char *directory);

/* Waits for it and makes the region, sealed. What the child said against the tokenizer comes as
 * this call's error, its own death or overrun as LL_E_INVAL. Ends the job in any case. */
int ll_tokimage_finish(struct ll_tokimage *job, int numa_node, struct ll_region *out);

/* Gives up: kills and reaps. A job without a child is accepted. */
void ll_tokimage_cancel(struct ll_tokimage *job);

#endif
