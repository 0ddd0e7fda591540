/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/kv.h"

#include "base/assert.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

int ll_kv_init(struct ll_kv *kv, uint32_t n_pages)
{
    *kv = (struct ll_kv){.n_pages = n_pages, .n_free = n_pages};
    if (n_pages == 0 || n_pages == LL_NONE)
        return LL_ERR(-EINVAL, "a KV pool of %u pages; raise the KV memory", n_pages);
    kv->free_page = malloc(n_pages * sizeof(*kv->free_page));
    kv->owner = malloc(n_pages * sizeof(*kv->owner));
    kv->seen = malloc(n_pages);
    if (kv->free_page == NULL || kv->owner == NULL || kv->seen == NULL) {
        ll_kv_free(kv);
        return LL_ERR(-ENOMEM, "out of memory for the owners of %u KV pages", n_pages);
    }
    for (uint32_t i = 0; i < n_pages; i++) {
        kv->free_page[i] = n_pages - 1 - i; /* page 0 is on top */
        kv->owner[i] = LL_NONE;
    }
    return 0;
}

void ll_kv_free(struct ll_kv *kv)
{
    free(kv->free_page);
    free(kv->owner);
    free(kv->seen);
    *kv = (struct ll_kv){0};
}

bool ll_kv_grow(struct ll_kv *kv, struct ll_seq *seq, uint64_t n_tokens)
{
    uint32_t n_wanted = ll_kv_pages_for(n_tokens);

    if (n_wanted <= seq->n_pages)
        return true;
    if (n_wanted - seq->n_pages > kv->n_free)
        return false;
    while (seq->n_pages < n_wanted) {
        uint32_t page = kv->free_page[--kv->n_free];
        LL_ASSERT(kv->owner[page] == LL_NONE); /* K1 */
        kv->owner[page] = seq->index;
        seq->page[seq->n_pages++] = page;
    }
    return true;
}

void ll_kv_release(struct ll_kv *kv, struct ll_seq *seq)
{
    /* Backwards, so that the next one to grow gets them in the order in which they lay. */
    while (seq->n_pages > 0) {
        uint32_t page = seq->page[--seq->n_pages];
        LL_ASSERT(page < kv->n_pages && kv->owner[page] == seq->index); /* K1 */
        kv->owner[page] = LL_NONE;
        kv->free_page[kv->n_free++] = page;
    }
    seq->n_pages_sent = 0;
}

void ll_kv_check(const struct ll_kv *kv, const struct ll_seq_pool *pool)
{
    uint32_t n_owned = 0;

    memset(kv->seen, 0, kv->n_pages);
    for (uint32_t i = 0; i < kv->n_free; i++) {
        uint32_t page = kv->free_page[i];
        LL_ASSERT(page < kv->n_pages && kv->owner[page] == LL_NONE && !kv->seen[page]);
        kv->seen[page] = 1;
    }
    for (uint32_t i = 0; i < pool->n; i++) {
        const struct ll_seq *seq = &pool->seq[i];
        for (uint32_t k = 0; k < seq->n_pages; k++) {
            uint32_t page = seq->page[k];
            LL_ASSERT(page < kv->n_pages && kv->owner[page] == i && !kv->seen[page]);
            kv->seen[page] = 1;
        }
        n_owned += seq->n_pages;
    }
    LL_ASSERT(kv->n_free + n_owned == kv->n_pages); /* K2 */
}
