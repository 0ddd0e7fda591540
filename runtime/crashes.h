/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/crashes.h - the crash ledger: a request that was there in three crashes is not let in
 * again. Otherwise a client that sends it again and again would take the runtime, and everybody
 * else's requests with it, down for ever.
 *
 * A crash is a failed device, or a signal that the process gave itself (SIGSEGV, SIGBUS, SIGILL,
 * SIGFPE, SIGABRT; a watchdog's SIGABRT too). Then one block is written to a file beside the
 * control socket: the time, and the hash of each request accepted and not yet ended. SIGKILL is no
 * crash: whoever sends it has his own reasons. The next runtime at this socket reads the file.
 *
 *   C1  a request is refused when three crashes within 5 minutes had it, the last of them less than
 *       an hour ago; all follows from the blocks in the file, nothing else is kept. An innocent one
 *       that was sent again each time and open in the same three is refused with the guilty: which
 *       of them it was cannot be told from outside
 *   C2  while nothing crashes nothing is written: the only cost is one hash a request, of at most
 *       64 KiB, made from ids that were just copied
 *   C3  equal requests have equal hashes: ids and parameters, but not the seed, the tag or who
 *       asks; a client that tries again is recognised
 *   C4  the file is read as if a stranger had written it; without one, or where it cannot be
 *       written, the runtime serves all the same
 *   C5  a runtime that ends as asked removes a file that has nothing more to say */
#ifndef RUNTIME_CRASHES_H
#define RUNTIME_CRASHES_H

#include "runtime/sequence.h"

#include <stdatomic.h>

#define LL_CRASHES_WITHIN_S     300u  /* C1: so close together ... */
#define LL_CRASHES_TO_REFUSE    3u    /* ... so many */
#define LL_CRASHES_REMEMBERED_S 3600u /* how long a request is refused */
#define LL_CRASHES_BLOCKS_MAX   64u   /* the latest ones count */

struct ll_crashes {
    int fd; /* -1: no file */
    char path[128];
    uint32_t n_recent; /* crashes in the last 5 minutes, at open */
    uint32_t n_refused, n_blocks;
    struct ll_chain *refused; /* [n_refused], sorted */
    const struct ll_seq_pool *pool;
    void *block; /* what is to be written, made at start */
    _Atomic bool is_recorded;
};

/* Reads the file at path and makes it if there is none. now_s: seconds of the epoch. Only a lack of
 * memory is an error (C4). */
int ll_crashes_open(struct ll_crashes *crashes, const char *path, uint64_t now_s);
/* From here on a crash of this process writes down who is in the pool. One pool a process. */
int ll_crashes_watch(struct ll_crashes *crashes, const struct ll_seq_pool *pool);
/* Gives the calling thread a stack for the handler, so that an overflow of its own is a crash too.
 */
void ll_crashes_guard_thread(void);
/* The device has failed: writes the block, once. Any thread; also from a signal handler. */
void ll_crashes_record(struct ll_crashes *crashes);
/* C5. NULL or one that was never opened: nothing. */
void ll_crashes_close(struct ll_crashes *crashes);

/* C3, of a sequence whose prompt and biases are all there. Never {0, 0}. */
struct ll_chain ll_crashes_hash(const struct ll_seq *seq);
static inline bool ll_crashes_may_refuse(const struct ll_crashes *crashes)
{
    return crashes != NULL && crashes->n_refused > 0;
}
bool ll_crashes_refuses(const struct ll_crashes *crashes, struct ll_chain hash);

#endif
