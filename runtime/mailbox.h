/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/mailbox.h - control thread and step thread talk by two private SPSC queues.
 *
 * Fixed size, no locks: 64-byte-aligned head and tail, release on the writer's store, acquire on
 * the reader's load. A full box is the sender's to retry (the control thread) or cannot be (the
 * step thread sends at most one message an attachment and kind, and the box holds them all). */
#ifndef RUNTIME_MAILBOX_H
#define RUNTIME_MAILBOX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum ll_mail_type {
    /* control -> step */
    LL_MAIL_ATTACH = 1, /* attachment */
    LL_MAIL_DETACH,     /* attachment; value 0: it said BYE, 1: it died or was fenced. Cancel, then
                           DETACHED */
    LL_MAIL_SWEEP,      /* attachment */
    LL_MAIL_DRAIN,      /* value: deadline_ns; refuse new requests, finish what runs, then IDLE */
    LL_MAIL_STOP,       /* end the loop now */
    LL_MAIL_SWITCH, /* attachment: a struct ll_weights_switch (engine.h), the step thread's until
                       SWITCHED. One at a time */
    /* step -> control */
    LL_MAIL_DETACHED, /* attachment: no longer used, quarantine over */
    LL_MAIL_FENCED,   /* attachment, value: LL_E_*: tell it and close */
    LL_MAIL_WAKE,     /* attachment: write its wake eventfd (beyond 8 a step) */
    LL_MAIL_IDLE,     /* drained */
    LL_MAIL_SWITCHED, /* attachment: as it came; value: 0, or LL_E_*: nothing has changed */
    LL_MAIL_FAILED,   /* value: LL_E_*: the backend failed, all told; exit (R11) */
};

struct ll_mail {
    enum ll_mail_type type;
    void *attachment;
    uint64_t value;
};

#define LL_MAILBOX_LENGTH 4096u

struct ll_mailbox {
    _Alignas(64) _Atomic uint64_t tail; /* written by the sender */
    _Alignas(64) _Atomic uint64_t head; /* written by the reader */
    _Alignas(64) struct ll_mail mail[LL_MAILBOX_LENGTH];
};

bool ll_mailbox_send(struct ll_mailbox *box, const struct ll_mail *mail); /* false: full */
/* Sender: messages that fit now. */
uint64_t ll_mailbox_room(const struct ll_mailbox *box);
bool ll_mailbox_take(struct ll_mailbox *box, struct ll_mail *out); /* false: empty */

#endif
