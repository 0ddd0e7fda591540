/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/control.h - the control thread: attach, detach, death, drain, signals.
 *
 * One epoll loop over the control socket, the peers' sockets and pidfds, a signalfd, the step
 * thread's notices and what others register with ll_control_watch() (admin.sock). It makes every
 * region and descriptor of an attachment and accepts none from anybody (rule R1).
 *
 *   C1  an attachment is the control thread's until LL_MAIL_ATTACH is sent and again after
 *       LL_MAIL_DETACHED came; in between only ids, name and descriptors are read here
 *   C2  each ATTACH is answered by exactly one DETACH (value 1: the client died or was fenced,
 *       value 0: it said BYE), each DETACH by exactly one DETACHED from the step thread
 *   C3  INFO.rt_state goes READY, DRAINING by this thread, DEAD by the step thread, never back.
 *       RSP.client_state is this thread's: on LL_MAIL_FENCED it publishes the reason, sends KICK,
 *       closes the socket and answers DETACH
 *   C4  a stage of the handshake that takes longer than LL_ATTACH_NS ends it; who has not attached
 *       holds one socket and nothing else until its HELLO was read
 *
 * After mail to the step thread the loop calls ll_wait_kick(info, step_fd): the engine has step_fd
 * in its epoll set. After mail to the control thread the engine writes ll_control_notify_fd(). */
#ifndef RUNTIME_CONTROL_H
#define RUNTIME_CONTROL_H

#include "runtime/attachment.h"
#include "runtime/mailbox.h"
#include "shm/region.h"
#include "shm/stat.h"
#include "shm/wire.h"

struct ll_control; /* opaque */

struct ll_control_options {
    const char *socket;           /* path, at most 100 bytes; its directory is made if missing */
    bool is_isolated;             /* --isolate client: each client is a domain of its own */
    int numa_node;                /* of the step thread; -1: anywhere */
    uint32_t n_attachments_max;   /* 1 .. LL_ATTACHMENTS_MAX; 0: all */
    uint32_t n_per_uid_max;       /* attachments of one uid; 0: n_attachments_max */
    uint32_t n_slots_max;         /* of one attachment, LL_SLOTS_MIN ..; 0: LL_SLOTS_MAX */
    uint32_t n_slots_uid_max;     /* of all attachments of one uid; 0: 16384 */
    uint32_t arena_bytes_max;     /* of one attachment; 0: LL_ARENA_BYTES_MAX */
    uint64_t arena_bytes_uid_max; /* of all attachments of one uid; 0: 1 GiB */
    uint64_t drain_ns;            /* grace of a drain; 0: 30 s */
    const struct ll_region *info, *stat; /* sealed by their maker (ll_region_seal_written) */
    const struct ll_region *tok;         /* tokenizer image; NULL: none */
    struct ll_mailbox *to_step, *to_control;
    int step_fd; /* eventfd the step thread sleeps on, beside the kick eventfds */
};

/* Blocks SIGTERM and SIGINT, and ignores SIGPIPE; call before the first thread is made, since
 * threads inherit the mask and the signals must reach the loop's signalfd only. */
void ll_control_block_signals(void);

/* Takes the lock file beside the socket and makes all memory; nobody can connect yet, so call it
 * before weights are loaded. -EADDRINUSE: another runtime serves this path (text names its pid).
 * Raises RLIMIT_NOFILE to its hard limit. */
int ll_control_create(struct ll_control **out, const struct ll_control_options *options);

/* The runtime is READY: sets INFO.rt_state and lets clients connect. A stale socket is replaced. */
int ll_control_listen(struct ll_control *control);

/* The loop. Returns when a drain is over (0), a second SIGINT or SIGTERM cut it short (-EINTR), or
 * the step thread reported LL_MAIL_FAILED (its code). LL_MAIL_STOP has been sent then: join the
 * step thread, then destroy. */
int ll_control_run(struct ll_control *control);

/* Unlinks the socket, closes and frees everything. NULL is accepted. The step thread has ended. */
void ll_control_destroy(struct ll_control *control);

/* eventfd the step thread writes (ll_wait_wake) after mail to the control thread. */
int ll_control_notify_fd(const struct ll_control *control);

/* Begins a drain, as SIGTERM does: DRAINING, no new attaches, DRAIN to all clients and to the step
 * thread, which answers LL_MAIL_IDLE. From callbacks of this loop, or before ll_control_run(). */
void ll_control_drain(struct ll_control *control);

/* Calls fn from the loop while fd is ready for the epoll events given (level-triggered). At most 64
 * descriptors; they stay the caller's. From callbacks, or before ll_control_run(). */
typedef void ll_control_fn(void *context, int fd, uint32_t events);
int ll_control_watch(struct ll_control *control, int fd, uint32_t events, ll_control_fn *fn,
                     void *context);
void ll_control_unwatch(struct ll_control *control, int fd);

/* Descriptors have run out (accept: EMFILE, ENFILE): gives up one kept for this, takes a peer off
 * listen_fd, which would stay readable for ever, so that it can be told; -1: none. Then, always,
 * ll_control_close_spare(). */
int ll_control_accept_spare(struct ll_control *control, int listen_fd);
void ll_control_close_spare(struct ll_control *control, int fd);

/* Hands a sealed set of weights to the step thread, which takes it over when it can (engine.h); fn
 * is called from the loop with its answer: 0, LL_E_TIMEOUT, LL_E_DRAINING. One at a time; *to must
 * last until then. From callbacks of this loop. */
struct ll_weights_switch;
typedef void ll_control_switched_fn(void *context, int result);
void ll_control_switch(struct ll_control *control, struct ll_weights_switch *to,
                       ll_control_switched_fn *fn, void *context);

/* Who is attached, for `llring status`. Returns how many there are; at most n_max are written. */
struct ll_control_client {
    uint32_t id, incarnation, n_slots, arena_bytes, domain;
    uid_t uid;
    pid_t pid;
    uint64_t attached_ns; /* CLOCK_MONOTONIC */
    char name[64];
};
uint32_t ll_control_clients(const struct ll_control *control, struct ll_control_client *out,
                            uint32_t n_max);

/* Ids, domains, quotas and connections agree; aborts on a fault. */
void ll_control_check(const struct ll_control *control);

#endif
