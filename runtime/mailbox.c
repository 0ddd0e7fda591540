/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/mailbox.h"

bool ll_mailbox_send(struct ll_mailbox *box, const struct ll_mail *mail)
{
    /* Relaxed: only this thread writes tail. */
    uint64_t tail = atomic_load_explicit(&box->tail, memory_order_relaxed);
    /* Acquire, pairs with the release of head in _take: the reader is done with the entry. */
    if (tail - atomic_load_explicit(&box->head, memory_order_acquire) == LL_MAILBOX_LENGTH)
        return false;
    box->mail[tail % LL_MAILBOX_LENGTH] = *mail;
    /* Release, pairs with the acquire of tail in _take: the entry before the count. */
    atomic_store_explicit(&box->tail, tail + 1, memory_order_release);
    return true;
}

uint64_t ll_mailbox_room(const struct ll_mailbox *box)
{
    /* Relaxed twice: the own tail, and a head that can only have moved on, to more room. */
    return LL_MAILBOX_LENGTH - (atomic_load_explicit(&box->tail, memory_order_relaxed) -
                                atomic_load_explicit(&box->head, memory_order_relaxed));
}

bool ll_mailbox_take(struct ll_mailbox *box, struct ll_mail *out)
{
    /* Relaxed: only this thread writes head. */
    uint64_t head = atomic_load_explicit(&box->head, memory_order_relaxed);
    /* Acquire, pairs with the release of tail in _send. */
    if (atomic_load_explicit(&box->tail, memory_order_acquire) == head)
        return false;
    *out = box->mail[head % LL_MAILBOX_LENGTH];
    /* Release, pairs with the acquire of head in _send: copied before the entry is free. */
    atomic_store_explicit(&box->head, head + 1, memory_order_release);
    return true;
}
