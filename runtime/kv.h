/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/kv.h - the page pool: who owns which KV page. Where a page lies is the backend's affair.
 *
 *   K1  each page is free or owned by one sequence; the owner table is checked at every take and
 *       free
 *   K2  free + owned = total, always */
#ifndef RUNTIME_KV_H
#define RUNTIME_KV_H

#include "runtime/sequence.h"

struct ll_kv {
    uint32_t n_pages, n_free;
    uint32_t *free_page; /* stack */
    uint32_t *owner;     /* [n_pages] sequence index, LL_NONE: free */
    uint8_t *seen;       /* [n_pages] for ll_kv_check */
};

int ll_kv_init(struct ll_kv *kv, uint32_t n_pages);
void ll_kv_free(struct ll_kv *kv);

/* Pages for n_tokens tokens. */
static inline uint32_t ll_kv_pages_for(uint64_t n_tokens)
{
    return (uint32_t)((n_tokens + LL_PAGE_TOKENS - 1) / LL_PAGE_TOKENS);
}

/* Grows seq->page so that it covers n_tokens; false and nothing taken: not enough free pages. */
bool ll_kv_grow(struct ll_kv *kv, struct ll_seq *seq, uint64_t n_tokens);
/* Gives all of a sequence's pages back. */
void ll_kv_release(struct ll_kv *kv, struct ll_seq *seq);

/* K1, K2 against all sequences; aborts on a fault. */
void ll_kv_check(const struct ll_kv *kv, const struct ll_seq_pool *pool);

#endif
