/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/control_impl.h - what control*.c share; nobody else includes it.
 *
 *   control.c         the loop: epoll, signals, mail, drain
 *   control_socket.c  the path: lock, bind, accept, who the peer is
 *   control_attach.c  the messages, HELLO to READY, and a connection's end
 *   control_regions.c what an attachment has: quotas, domains, regions, seals; and their end */
#ifndef RUNTIME_CONTROL_IMPL_H
#define RUNTIME_CONTROL_IMPL_H

#include "runtime/control.h"

#define LL_CONTROL_PENDING_MAX 128u /* connections that are not attached yet */
#define LL_CONTROL_PENDING_UID 32u  /* the same of one uid, so that one user cannot lock out all */
#define LL_CONTROL_WATCH_MAX   64u
#define LL_CONTROL_SWEEPS_MAX  100u /* SWEEP messages a second; honest clients send 10 */

enum ll_connection_stage { LL_STAGE_FREE, LL_STAGE_HELLO, LL_STAGE_OFFERED, LL_STAGE_ATTACHED };

/* One accepted socket, until it closes. */
struct ll_connection {
    enum ll_connection_stage stage;
    uint32_t gen; /* +1 at each close: tells stale epoll events from new ones */
    int fd, pid_fd;
    uid_t uid;
    pid_t pid;
    uint64_t deadline_ns;             /* of the stage; not while ATTACHED */
    struct ll_attachment *attachment; /* from OFFERED on */
    uint64_t sweeps_ns;               /* start of the second n_sweeps counts */
    uint32_t n_sweeps;
};

/* An attachment's place, by client id. */
enum ll_place_state { LL_PLACE_FREE, LL_PLACE_OFFERED, LL_PLACE_ATTACHED, LL_PLACE_LEAVING };
struct ll_place {
    enum ll_place_state state;
    uint32_t connection; /* index; meaningless while LEAVING */
    bool is_wake_due;    /* the domain's debt must be paid first */
    uint64_t attached_ns;
    struct ll_attachment attachment;
};

struct ll_watch {
    int fd; /* -1: unused */
    ll_control_fn *fn;
    void *context;
};

struct ll_control {
    struct ll_control_options options; /* defaults filled in */
    char path[104], lock_path[112];
    int lock_fd, listen_fd, epoll_fd, signal_fd, notify_fd;
    int spare_fd; /* given up for a moment to refuse a client when descriptors have run out */
    bool is_bound;
    struct ll_info_region *info;
    struct ll_stats *stats;

    uint32_t n_connections; /* capacity */
    struct ll_connection *connection;
    uint32_t n_places; /* capacity: options.n_attachments_max */
    struct ll_place *place;
    uint32_t n_wakes_due; /* places with is_wake_due */
    uint64_t n_domains_made;
    uint32_t next_id;         /* ids are taken round robin: the longest unused first */
    struct ll_domain *domain; /* [n_places] */
    uint32_t bell_log2;
    struct ll_shadow *shadow; /* [n_places][n_slots_max] */
    size_t shadow_bytes;
    struct ll_watch watch[LL_CONTROL_WATCH_MAX];
    ll_control_switched_fn *on_switched; /* NULL: no switch is under way */
    void *switch_context;

    bool is_draining, is_over, has_warned_lock;
    uint64_t drain_deadline_ns;
    int result; /* of ll_control_run(), once is_over */
};

/* epoll: kind, generation and index in one word. */
enum ll_control_kind {
    LL_KIND_LISTEN,
    LL_KIND_SIGNAL,
    LL_KIND_NOTIFY,
    LL_KIND_CONN,
    LL_KIND_PID,
    LL_KIND_WATCH
};
int ll_control_epoll_add(struct ll_control *control, int fd, uint32_t events,
                         enum ll_control_kind kind, uint32_t gen, uint32_t index);

/* The system's: what clients make this thread's calls cost is counted by it. */
static const struct ll_debt_clock ll_control_clock = {.now = NULL, .spent = NULL};

/* control_socket.c */
int ll_control_lock(struct ll_control *control);
int ll_control_bind(struct ll_control *control);
void ll_control_unbind(struct ll_control *control);
void ll_control_accept(struct ll_control *control);
/* Watches the peer's process; *pid_fd -1 where the kernel cannot. -ESRCH: it has gone already. */
int ll_control_open_pidfd(int fd, pid_t pid, int *pid_fd);

/* Where things lie in REQ and RSP of one client. */
struct ll_layout {
    uint32_t off_hot, off_slots, off_bell, off_arena, arena_bytes, bell_log2, n_slots;
    size_t req_bytes;
    uint32_t off_rst, off_events, log2_events;
    size_t rsp_bytes;
};

/* control_regions.c */
/* Regions, domain and descriptors for what a HELLO asks, within the quotas; nothing in REQ and RSP
 * is touched yet. */
int ll_control_make_attachment(struct ll_control *control, struct ll_connection *connection,
                               const struct ll_msg_hello *hello, struct ll_layout *layout);
/* After MAPPED: seals, checks that the client has touched every page, and writes what it reads
 * there first. */
int ll_control_take_regions(struct ll_control *control, struct ll_attachment *attachment);
void ll_control_free_attachment(struct ll_control *control, struct ll_attachment *attachment);

/* control_attach.c */
/* A REFUSE (or KICK) with a code and the words; best effort. */
void ll_control_refuse(int fd, uint16_t type, int code, const char *text);
/* Reads one message of a connection and takes the step it means; false: the connection is over. */
bool ll_control_read(struct ll_control *control, struct ll_connection *connection);
/* Ends a connection at any stage; an attachment goes to the step thread or is freed at once. */
void ll_control_close(struct ll_control *control, struct ll_connection *connection, bool has_died);
/* The step thread is done with it. */
void ll_control_release(struct ll_control *control, struct ll_attachment *attachment);
/* control.c: mail to the step thread, and a kick if it sleeps. */
void ll_control_mail(struct ll_control *control, enum ll_mail_type type, void *attachment,
                     uint64_t value);

#endif
