/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/kv.h - the page pool: who holds which KV page. Where a page lies is the backend's affair.
 *
 * A page is FREE, HELD by one sequence or more, or IDLE: held by nobody, but full of something that
 * the prefix cache can find. Idle pages are as good as free ones; the one idle longest goes first.
 *
 *   K1  (rule R9) owner is the one sequence that may write a page. A page that others may read as
 *       well has no owner: it is full and is never written again
 *   K2  free + idle + held = total, always; a page's refs are the sequences whose list names it
 *   K3  epoch counts up each time a page is taken; a sequence notes it with the page, and a page is
 *       given back only by who holds this very epoch
 *   K4  what is in the index (prefix.h) is held without an owner, or idle
 *   K5  a host page is free or one sequence's */
#ifndef RUNTIME_KV_H
#define RUNTIME_KV_H

#include "runtime/prefix.h"
#include "runtime/sequence.h"

struct ll_page {
    uint32_t refs;
    uint32_t owner;      /* sequence index; LL_NONE: nobody may write it */
    uint32_t epoch;      /* K3 */
    uint32_t prev, next; /* while IDLE: idle longer, idle shorter */
};

struct ll_kv {
    uint32_t n_pages;
    uint32_t n_free, n_idle;
    uint32_t *free_page; /* stack */
    struct ll_page *page;
    uint32_t idle_first, idle_last; /* first: goes next */
    struct ll_prefix index;
    /* Pages of host memory, for swap: chains through host_next, which sequences or nobody own. */
    uint32_t n_host_pages, n_host_free, host_free_first;
    uint32_t *host_next, *host_owner; /* [n_host_pages] */
    uint32_t *seen;                   /* [n_pages] for ll_kv_check */
};

int ll_kv_init(struct ll_kv *kv, uint32_t n_pages, uint32_t n_host_pages, uint64_t seed);
void ll_kv_free(struct ll_kv *kv);

/* Pages for n_tokens tokens. */
static inline uint32_t ll_kv_pages_for(uint64_t n_tokens)
{
    return (uint32_t)((n_tokens + LL_PAGE_TOKENS - 1) / LL_PAGE_TOKENS);
}

/* Pages that can be taken. */
static inline uint32_t ll_kv_available(const struct ll_kv *kv)
{
    return kv->n_free + kv->n_idle;
}

/* Grows seq->page so that it covers n_tokens; false and nothing taken: not enough available. */
bool ll_kv_grow(struct ll_kv *kv, struct ll_seq *seq, uint64_t n_tokens);

/* Gives back at most n_max of a sequence's pages, the last first; true: it has none left. What the
 * index knows becomes idle, with the end of a prefix before its beginning. */
bool ll_kv_release_some(struct ll_kv *kv, struct ll_seq *seq, uint32_t n_max);
void ll_kv_release(struct ll_kv *kv, struct ll_seq *seq);

/* Adds a page without an owner, held or idle, to the end of a sequence's list. */
void ll_kv_attach(struct ll_kv *kv, struct ll_seq *seq, uint32_t page);
/* Page i of a sequence is full and will not be written again: others may attach it. */
void ll_kv_share(struct ll_kv *kv, struct ll_seq *seq, uint32_t i);
/* The same, and the prefix cache may find it. Nothing where the chain has a page already. */
void ll_kv_publish(struct ll_kv *kv, struct ll_seq *seq, uint32_t i, struct ll_chain chain);
/* A hint that page i of a sequence will be published soon. */
void ll_kv_fetch(const struct ll_kv *kv, const struct ll_seq *seq, uint32_t i);
/* May seq write tokens [from, to)? For LL_ASSERT. */
bool ll_kv_may_write(const struct ll_kv *kv, const struct ll_seq *seq, uint32_t from, uint32_t to);

/* Makes idle pages free, at most n_max, until n_wanted are: done ahead of need, it spares a step
 * the look-ups. How many. */
uint32_t ll_kv_evict(struct ll_kv *kv, uint32_t n_wanted, uint32_t n_max);

/* Host pages for a sequence that has none; false and nothing taken: not enough are free. */
bool ll_kv_host_take(struct ll_kv *kv, struct ll_seq *seq, uint32_t n);
/* Gives back the first n of them. */
void ll_kv_host_drop(struct ll_kv *kv, struct ll_seq *seq, uint32_t n);

/* K1..K5 against all sequences; aborts on a fault. */
void ll_kv_check(const struct ll_kv *kv, const struct ll_seq_pool *pool);

#endif
