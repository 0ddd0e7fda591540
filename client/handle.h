/* SPDX-License-Identifier: Apache-2.0 */
/* client/handle.h - struct ll_client, shared by the files of libllclient; not installed.
 *
 *   attach.c   open and close: the handshake, every size and offset checked
 *   submit.c   a request is checked, copied into slot and arena, rung; cancel, stop
 *   arena.c    space for prompts, first in first out
 *   receive.c  the event ring, drained into one bounded queue a slot; outputs composed from it
 *   wait.c     spin, arm, sleep; is the runtime alive
 *   info.c     what the runtime publishes; statistics
 *
 * Invariants
 *   H1  All memory is made at open. Submit, poll and cancel enter the kernel only when the runtime
 *       sleeps, seems dead, or the bell is full.
 *   H2  The runtime may be broken or hostile: what it writes is copied, then checked, and can cost
 *       the client its attachment (LL_E_PROTOCOL), never its memory.
 *   H3  slot.is_ended says that the terminal event of the slot's request is queued; nothing is
 * queued behind it, and the slot is free once the application has taken it. So each request has
 *       exactly one terminal output, whoever made the event: the runtime or ll_client_fail().
 *   H4  A queue holds QUEUE_EVENTS - 1 events of the runtime; the last entry is for
 * ll_client_fail(). An honest runtime never has more than window + terminal and choice events
 * untaken. H5  Only the thread that owns the handle runs here, but for ll_client_cancel(): it
 * touches slot.id, slot.gen, the shared cancel_gen, n_submitted, the bell, the kick eventfd. */
#ifndef CLIENT_HANDLE_H
#define CLIENT_HANDLE_H

#include "ll/client.h"
#include "shm/bell.h"
#include "shm/events.h"
#include "shm/region.h"
#include "shm/stat.h"
#include "shm/wire.h"

#include <stdbool.h>

#define LL_CLIENT_QUEUE_EVENTS 512u /* power of two > window 256 + choices 128 + terminal + 1 */
#define LL_CLIENT_GUARD        0x6c6c7561u
#define LL_CLIENT_HANG_NS      5000000000ull /* heartbeat older than that: LL_E_TIMEOUT */

struct ll_client_slot {
    _Atomic uint64_t id;  /* of the request in it: serial << 10 | slot; 0: free */
    _Atomic uint32_t gen; /* 24 bits, counts submits, skips 0 */
    uint32_t n_choices;
    uint64_t tag;
    uint32_t head, tail; /* of the queue, counting up for ever */
    uint32_t n_taken;    /* events the application has consumed: ll_req.taken */
    uint32_t burst_at;   /* ids of the BURST at the queue's head that were given out */
    bool is_ended;       /* H3 */
    bool is_listed;      /* in the ready list */
    bool is_held;        /* ll_client_hold(): stays off the ready list */
    struct ll_event *queue;
};

/* A request's bytes in the arena, in the order of submission. */
struct ll_client_block {
    uint64_t end; /* position behind it */
    uint32_t slot, gen;
};

struct ll_client_arena {
    uint8_t *base; /* shared */
    uint32_t n_bytes;
    uint64_t head, tail;           /* positions counting up for ever; used: [head, tail) */
    struct ll_client_block *block; /* ring of n_blocks */
    uint32_t n_blocks;             /* power of two */
    uint32_t first, next;          /* counting up for ever */
};

struct ll_client {
    /* the attachment */
    struct ll_region info_region, req_region, rsp_region, bell_region, tok_region, stat_region;
    int socket_fd, kick_fd, wake_fd, epoll_fd;
    uint32_t client_id, incarnation, n_slots;
    const struct ll_info_region *info;
    struct ll_req_hot *hot;
    uint8_t *slots; /* struct ll_req, req_slot_bytes apart */
    uint32_t req_slot_bytes;
    const struct ll_rsp_head *rsp_head;
    const uint8_t *rst; /* struct ll_rst, rst_bytes apart */
    uint32_t rst_bytes;
    struct ll_bell bell;
    struct ll_event_reader events;
    const volatile uint32_t *guard; /* LL_CLIENT_GUARD; the kernel wipes it in a forked child */

    /* requests */
    struct ll_client_slot *slot; /* [n_slots] */
    struct ll_event *queues;     /* [n_slots][LL_CLIENT_QUEUE_EVENTS] */
    uint64_t free_map[LL_SLOTS_MAX / 64];
    uint32_t n_open;
    uint64_t serial;
    uint16_t *ready; /* ring of slots with queued events, [n_ready_max]; each at most once */
    uint32_t n_ready_max, ready_head, ready_tail;
    struct ll_client_arena arena;

    /* state of the attachment */
    _Atomic int broken; /* code of its end; 0: alive */
    char broken_text[256];
    bool is_armed;             /* ll_client_arm() said "sleep" */
    bool is_hung;              /* LL_E_TIMEOUT was reported and the heartbeat has not moved since */
    uint64_t attached_ns;      /* a heartbeat older than that counts as this old */
    uint64_t probed_ns;        /* the socket was last looked at */
    uint32_t n_empty;          /* polls in a row that found nothing */
    _Atomic uint64_t sweep_ns; /* last SWEEP sent */
    uint64_t n_stale;          /* events of generations that are over */
    uint64_t n_lost_wakes;     /* sleeps that only their timeout ended, with an event there */

    /* configuration and copies of what does not change */
    uint64_t spin_ns; /* UINT64_MAX: for ever */
    struct ll_client_info facts;
    char name[128], chat_format[32], backend[16], dtype[16];
    struct ll_stat_entry *stat_entry; /* checked copy */
    uint32_t n_stats;
};

static inline struct ll_req *ll_client_req(const struct ll_client *client, uint32_t slot)
{
    return (struct ll_req *)(client->slots + (size_t)slot * client->req_slot_bytes);
}

static inline const struct ll_rst *ll_client_rst(const struct ll_client *client, uint32_t slot)
{
    return (const struct ll_rst *)(client->rst + (size_t)slot * client->rst_bytes);
}

/* Shared memory is not mapped in a forked child: look here before anything else. No system call. */
static inline bool ll_client_is_forked(const struct ll_client *client)
{
    return *client->guard != LL_CLIENT_GUARD;
}

/* 0, LL_E_FORKED, or the code of the attachment's end, with its text. */
int ll_client_check(const struct ll_client *client);

/* arena.c: n_bytes (> 0) as one piece; its offset, or -1: no room now. */
int64_t ll_client_arena_take(struct ll_client *client, uint64_t n_bytes, uint32_t slot,
                             uint32_t gen);

/* info.c: copies and checks INFO and the statistics' table, at attach. */
int ll_client_info_load(struct ll_client *client, uint64_t tok_bytes);

/* receive.c */
void ll_client_drain(struct ll_client *client); /* event ring -> queues */
int ll_client_take(struct ll_client *client, struct ll_output *out, int n_max);
bool ll_client_has_output(const struct ll_client *client);
/* The attachment is over: every open request gets one ERROR, later calls the code. */
void ll_client_fail(struct ll_client *client, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* wait.c */
/* Fenced? One look at shared memory. */
void ll_client_check_peer(struct ll_client *client);
/* Reads what lies in the socket: KICK, DRAIN, its end. A system call. */
void ll_client_probe(struct ll_client *client);
/* Nanoseconds since the runtime's last sign of life. */
uint64_t ll_client_silence_ns(const struct ll_client *client, uint64_t now_ns);
/* Has it been silent so long that the socket should be looked at? At most 20 times a second. */
bool ll_client_is_silent(struct ll_client *client, uint64_t now_ns);
/* Asks for a look at the slots, at most ten times a second. Any thread. */
void ll_client_sweep(struct ll_client *client);

#endif
