/* SPDX-License-Identifier: Apache-2.0 */
/* shm/wait.h - who sleeps says so first; who writes looks once a step.
 *
 * Both directions are the same protocol with one seq_cst fence on each side (Dekker): without
 * either fence the wake-up is lost on x86 too (measured: 1,803 of 20,000; with both 0 of 3 M).
 *
 *   sleeper: store flag 1 -> fence -> look again -> sleep in poll/epoll -> store flag 0
 *   writer:  store data   -> fence -> read flag  -> if set: wake it
 *
 *   S1  client asleep:  REQ.wait_word 1, sleeps on {wake descriptor, socket}; the runtime reads it
 *       after one fence for all clients of a step and CASes 1 -> 0 so that one wake is sent
 *   S2  runtime asleep: INFO.rt_sleeping 1, sleeps in epoll on all kick eventfds; a client reads it
 *       after its push and writes its own kick eventfd
 *   S3  no call here can be made to block. O_NONBLOCK belongs to the open file, which a descriptor
 *       sent over a socket shares: a client may clear it, fill or empty the counter, and a plain
 *       read() or write() of the runtime would hang. So the runtime wakes a client through its own
 *       end of a socket pair, and never reads kick eventfds: it watches them edge-triggered. (Both
 *       calls also walk all epoll watches that the client hung on its end: reading has no need to,
 *       and waking is timed by its caller, outlet.h O5) */
#ifndef SHM_WAIT_H
#define SHM_WAIT_H

#include "shm/wire.h"

#include <stdbool.h>

/* ---- client side */

/* After a push: wakes the runtime if it sleeps. One fence, one load, at most one write(). */
void ll_wait_kick(const struct ll_info_region *info, int kick_fd);

/* Declares the client asleep; the caller must then look for events once more, and call
 * ll_wait_disarm() whether it slept or not. */
void ll_wait_arm(struct ll_req_hot *hot);
void ll_wait_disarm(struct ll_req_hot *hot);

/* Empties a wake descriptor or an eventfd; never blocks. */
void ll_wait_drain(int fd);

/* ---- runtime side */

/* The one fence of a step, between the last event written and the first ll_wait_claim(). */
void ll_wait_fence(void);

/* Was the client asleep? Then it is ours to wake: ll_wait_wake(), later, off the hot path. */
bool ll_wait_claim(struct ll_req_hot *hot);

/* Makes the pair a client is woken through (S3). The caller sends client_end as LL_FD_WAKE, then
 * closes it; it keeps runtime_end. */
int ll_wait_make_wake(int *client_end, int *runtime_end);

/* Makes the other end readable: a client's through runtime_end, or whoever sleeps on an eventfd
 * that no client holds (or, in a client, the runtime's kick eventfd). Never blocks. */
void ll_wait_wake(int fd);

/* The runtime declares itself asleep, or awake; after _arm it looks at every ring once more. */
void ll_wait_runtime_arm(struct ll_info_region *info);
void ll_wait_runtime_disarm(struct ll_info_region *info);

#endif
