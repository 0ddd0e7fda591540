/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/attachment.h - one attached client, and the domain whose bell it rings.
 *
 * The control thread makes an attachment (regions, handshake, seals), hands it to the step thread
 * by mailbox and touches only the control part until the step thread gives it back. The step thread
 * owns the step part. Ids, incarnations and domains: at most LL_ATTACHMENTS_MAX, made at start.
 *
 *   A1  between ATTACH and DETACHED the regions stay mapped and the descriptors open
 *   A2  no pointer into client memory leaves intake*.c, outlet*.c and this struct
 *   A3  a dead client's id is used again only after its quarantine: the bell has answered "empty"
 *       or moved N positions since the death notice; then incarnation + 1
 *   A4  client-written words are read once, atomically; client-written bytes are copied first */
#ifndef RUNTIME_ATTACHMENT_H
#define RUNTIME_ATTACHMENT_H

#include "runtime/debt.h"
#include "shm/bell.h"
#include "shm/events.h"
#include "shm/region.h"
#include "shm/wire.h"

#include <stdbool.h>
#include <sys/types.h>

/* Clients that share one bell: by default those of one uid. */
struct ll_domain {
    /* step thread: what a turn looks at lies in one cache line */
    struct ll_bell_reader bell;
    uint64_t n_empty;   /* times the bell answered "empty" */
    uint32_t n_polled;  /* its attachments that intake knows */
    bool is_swept_only; /* after three repairs the bell is not believed */
    struct ll_debt step_debt;
    uint64_t tokens_waiting; /* its part of ll_waiting.n_tokens */

    /* control thread */
    bool is_used;
    uint32_t id;
    uid_t uid;
    struct ll_debt control_debt;
    uint64_t cache_key; /* who shares cached prefixes: the uid, or this domain alone */
    uint32_t n_attached;
    uint32_t n_slots; /* over its attachments; bell words >= 2 x the most there can be */
    struct ll_region region;
};

/* What the step thread knows of a slot; the truth (shared words only trigger moves). */
enum ll_shadow_phase { LL_SHADOW_IDLE = 0, LL_SHADOW_COPYING, LL_SHADOW_ACCEPTED };
struct ll_shadow {
    uint32_t gen;      /* last generation seen */
    uint8_t phase;     /* enum ll_shadow_phase */
    uint32_t sequence; /* index of the sequence while not IDLE */
};

struct ll_attachment {
    /* control thread */
    uint32_t id, incarnation;
    uid_t uid;
    pid_t pid;
    char name[64];
    struct ll_domain *domain; /* own one with --isolate client */
    struct ll_region req, rsp;
    int socket_fd, pid_fd, kick_fd, wake_fd;

    /* views, made once by the control thread, used by the step thread */
    struct ll_req *slot; /* shared, [n_slots] */
    struct ll_req_hot *hot;
    const uint8_t *arena; /* shared */
    uint32_t arena_bytes, n_slots;
    struct ll_rsp_head *rsp_head;
    struct ll_rst *rst; /* shared, [n_slots] */

    /* step thread */
    struct ll_event_writer events;
    struct ll_shadow *shadow; /* [n_slots] */
    uint32_t n_open;          /* slots not IDLE: each has one event reserved */
    uint32_t n_seqs;          /* sequences not FREE: told ones may have rows in flight */
    uint64_t n_doorbells;     /* to compare with hot->n_submitted */
    uint32_t n_malformed;     /* in the second that began at malformed_ns */
    uint64_t malformed_ns;
    int64_t credits_reserved;  /* events promised: terminal ones and rows in flight */
    uint64_t quarantine_pos;   /* bell position at the death notice */
    uint64_t quarantine_empty; /* domain's n_empty then */
    bool wants_watch;          /* its kick eventfd waits to be watched (engine.c) */
    bool is_watched;
    bool needs_scan; /* a request could not be taken yet: look at the slots again */
    bool is_fenced;  /* nothing is read or written any more */
    bool is_leaving; /* DETACH came: cancel all, then give back */
    bool is_touched; /* events written this step: look at wait_word */
};

#endif
