/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/kv.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/err.h"
#include "runtime/memory.h"

#include <stdlib.h>
#include <string.h>

int ll_kv_init(struct ll_kv *kv, uint32_t n_pages, uint32_t n_host_pages, uint64_t seed)
{
    *kv = (struct ll_kv){
        .n_pages = n_pages,
        .n_free = n_pages,
        .idle_first = LL_NONE,
        .idle_last = LL_NONE,
        .n_host_pages = n_host_pages,
        .n_host_free = n_host_pages,
        .host_free_first = n_host_pages > 0 ? 0 : LL_NONE,
    };
    if (n_pages == 0 || n_pages > 1u << 28)
        return LL_ERR(-EINVAL, "a KV pool of %u pages; 1 to %u are possible", n_pages, 1u << 28);
    kv->free_page = ll_memory_make(n_pages * sizeof(*kv->free_page));
    kv->page = ll_memory_make(n_pages * sizeof(*kv->page));
    kv->seen = malloc(n_pages * sizeof(*kv->seen));
    kv->host_next = malloc((n_host_pages + 1ull) * sizeof(*kv->host_next));
    kv->host_owner = malloc((n_host_pages + 1ull) * sizeof(*kv->host_owner));
    if (kv->free_page == NULL || kv->page == NULL || kv->seen == NULL || kv->host_next == NULL ||
        kv->host_owner == NULL) {
        ll_kv_free(kv);
        return LL_ERR(-ENOMEM, "out of memory for the owners of %u KV pages and %u of the host",
                      n_pages, n_host_pages);
    }
    for (uint32_t i = 0; i < n_host_pages; i++) {
        kv->host_next[i] = i + 1 < n_host_pages ? i + 1 : LL_NONE;
        kv->host_owner[i] = LL_NONE;
    }
    for (uint32_t i = 0; i < n_pages; i++) {
        kv->free_page[i] = n_pages - 1 - i; /* page 0 is on top */
        kv->page[i] = (struct ll_page){.owner = LL_NONE, .prev = LL_NONE, .next = LL_NONE};
    }
    int rc = ll_prefix_init(&kv->index, n_pages, seed);
    if (rc < 0)
        ll_kv_free(kv);
    return rc;
}

void ll_kv_free(struct ll_kv *kv)
{
    ll_prefix_free(&kv->index);
    ll_memory_free(kv->free_page, kv->n_pages * sizeof(*kv->free_page));
    ll_memory_free(kv->page, kv->n_pages * sizeof(*kv->page));
    free(kv->host_next);
    free(kv->host_owner);
    free(kv->seen);
    *kv = (struct ll_kv){0};
}

/* Pages lie anywhere: a list of them is gone through with what comes later already on its way,
 * which is five times as fast as waiting for each (2,048 pages of a 128K prompt: 40 -> 8 us). */
#define AHEAD 12u

static void fetch(const struct ll_kv *kv, uint32_t index)
{
    __builtin_prefetch(&kv->page[index], 1);
}

/* ---- idle pages -------------------------------------------------------------------------------*/

static void become_idle(struct ll_kv *kv, uint32_t index)
{
    struct ll_page *page = &kv->page[index];

    page->prev = kv->idle_last;
    page->next = LL_NONE;
    if (kv->idle_last != LL_NONE)
        kv->page[kv->idle_last].next = index;
    else
        kv->idle_first = index;
    kv->idle_last = index;
    kv->n_idle++;
}

static void leave_idle(struct ll_kv *kv, uint32_t index)
{
    struct ll_page *page = &kv->page[index];

    if (page->prev != LL_NONE)
        kv->page[page->prev].next = page->next;
    else
        kv->idle_first = page->next;
    if (page->next != LL_NONE)
        kv->page[page->next].prev = page->prev;
    else
        kv->idle_last = page->prev;
    kv->n_idle--;
}

static void evict_one(struct ll_kv *kv)
{
    uint32_t index = kv->idle_first;

    LL_ASSERT(index != LL_NONE && kv->page[index].refs == 0);
    leave_idle(kv, index);
    if (kv->idle_first != LL_NONE)
        ll_prefix_fetch(&kv->index, kv->idle_first);
    ll_prefix_remove(&kv->index, index);
    kv->free_page[kv->n_free++] = index;
}

uint32_t ll_kv_evict(struct ll_kv *kv, uint32_t n_wanted, uint32_t n_max)
{
    uint32_t n = 0;

    for (; n < n_max && kv->n_free < n_wanted && kv->n_idle > 0; n++)
        evict_one(kv);
    return n;
}

/* ---- take and give back -----------------------------------------------------------------------*/

bool ll_kv_grow(struct ll_kv *kv, struct ll_seq *seq, uint64_t n_tokens)
{
    uint32_t n_wanted = ll_kv_pages_for(n_tokens);

    if (n_wanted <= seq->n_pages)
        return true;
    if (n_wanted - seq->n_pages > ll_kv_available(kv))
        return false;
    while (seq->n_pages < n_wanted) {
        if (kv->n_free == 0)
            evict_one(kv);
        if (kv->n_free > AHEAD)
            fetch(kv, kv->free_page[kv->n_free - 1 - AHEAD]);
        uint32_t index = kv->free_page[--kv->n_free];
        struct ll_page *page = &kv->page[index];
        LL_ASSERT(page->refs == 0 && page->owner == LL_NONE); /* K1 */
        page->refs = 1;
        page->owner = seq->index;
        page->epoch++;
        seq->page_epoch[seq->n_pages] = page->epoch;
        seq->page[seq->n_pages++] = index;
    }
    return true;
}

bool ll_kv_release_some(struct ll_kv *kv, struct ll_seq *seq, uint32_t n_max)
{
    /* Backwards: the next one to grow gets them in the order in which they lay, and a prefix loses
     * its end before its beginning. */
    for (uint32_t n = 0; n < n_max && seq->n_pages > 0; n++) {
        uint32_t index = seq->page[--seq->n_pages];
        LL_ASSERT(index < kv->n_pages);
        if (seq->n_pages >= AHEAD) {
            uint32_t later = seq->page[seq->n_pages - AHEAD];
            fetch(kv, later);
            ll_prefix_fetch(&kv->index, later);
        }
        struct ll_page *page = &kv->page[index];
        LL_ASSERT(page->refs > 0 && page->epoch == seq->page_epoch[seq->n_pages]); /* K3 */
        LL_ASSERT(page->owner == LL_NONE || page->owner == seq->index);            /* K1 */
        if (--page->refs > 0)
            continue;
        page->owner = LL_NONE;
        if (ll_prefix_has(&kv->index, index))
            become_idle(kv, index);
        else
            kv->free_page[kv->n_free++] = index;
    }
    seq->n_pages_sent = (uint32_t)ll_min_u64(seq->n_pages_sent, seq->n_pages);
    return seq->n_pages == 0;
}

void ll_kv_release(struct ll_kv *kv, struct ll_seq *seq)
{
    ll_kv_release_some(kv, seq, UINT32_MAX);
}

/* ---- sharing ----------------------------------------------------------------------------------*/

void ll_kv_attach(struct ll_kv *kv, struct ll_seq *seq, uint32_t index)
{
    struct ll_page *page = &kv->page[index];
    bool is_idle = page->refs == 0;

    LL_ASSERT(index < kv->n_pages && page->owner == LL_NONE);
    LL_ASSERT(!is_idle || ll_prefix_has(&kv->index, index)); /* else it is free */
    if (is_idle)
        leave_idle(kv, index);
    page->refs++;
    if (is_idle)
        page->epoch++;
    seq->page_epoch[seq->n_pages] = page->epoch;
    seq->page[seq->n_pages++] = index;
}

void ll_kv_share(struct ll_kv *kv, struct ll_seq *seq, uint32_t i)
{
    struct ll_page *page = &kv->page[seq->page[i]];

    LL_ASSERT(i < seq->n_pages && page->refs > 0 && page->epoch == seq->page_epoch[i]);
    LL_ASSERT(page->owner == LL_NONE || page->owner == seq->index);
    page->owner = LL_NONE;
}

void ll_kv_publish(struct ll_kv *kv, struct ll_seq *seq, uint32_t i, struct ll_chain chain)
{
    uint32_t index = seq->page[i];

    if (ll_prefix_has(&kv->index, index))
        return; /* found there, or published before */
    if (ll_prefix_add(&kv->index, index, chain, seq->token + (size_t)i * LL_PAGE_TOKENS))
        ll_kv_share(kv, seq, i);
}

void ll_kv_fetch(const struct ll_kv *kv, const struct ll_seq *seq, uint32_t i)
{
    fetch(kv, seq->page[i]);
    ll_prefix_fetch(&kv->index, seq->page[i]);
    ll_prefix_fetch_ids(&kv->index, seq->page[i]);
}

bool ll_kv_may_write(const struct ll_kv *kv, const struct ll_seq *seq, uint32_t from, uint32_t to)
{
    for (uint32_t i = from / LL_PAGE_TOKENS; i < ll_kv_pages_for(to); i++)
        if (i >= seq->n_pages || kv->page[seq->page[i]].owner != seq->index)
            return false;
    return true;
}

/* ---- host pages -------------------------------------------------------------------------------*/

bool ll_kv_host_take(struct ll_kv *kv, struct ll_seq *seq, uint32_t n)
{
    uint32_t last = LL_NONE, at = kv->host_free_first;

    LL_ASSERT(seq->n_host == 0);
    if (n == 0 || n > kv->n_host_free)
        return false;
    seq->host_first = at;
    for (uint32_t i = 0; i < n; i++) {
        LL_ASSERT(kv->host_owner[at] == LL_NONE); /* K5 */
        kv->host_owner[at] = seq->index;
        last = at;
        at = kv->host_next[at];
    }
    kv->host_next[last] = LL_NONE;
    kv->host_free_first = at;
    kv->n_host_free -= n;
    seq->n_host = n;
    return true;
}

void ll_kv_host_drop(struct ll_kv *kv, struct ll_seq *seq, uint32_t n)
{
    LL_ASSERT(n <= seq->n_host);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t page = seq->host_first;
        LL_ASSERT(page < kv->n_host_pages && kv->host_owner[page] == seq->index); /* K5 */
        seq->host_first = kv->host_next[page];
        kv->host_owner[page] = LL_NONE;
        kv->host_next[page] = kv->host_free_first;
        kv->host_free_first = page;
    }
    kv->n_host_free += n;
    seq->n_host -= n;
}

/* ---- check ------------------------------------------------------------------------------------*/

static void check_host(const struct ll_kv *kv, const struct ll_seq_pool *pool)
{
    uint32_t n_free = 0, n_owned = 0;

    for (uint32_t i = kv->host_free_first; i != LL_NONE; i = kv->host_next[i]) {
        LL_ASSERT(i < kv->n_host_pages && kv->host_owner[i] == LL_NONE);
        LL_ASSERT(++n_free <= kv->n_host_free);
    }
    for (uint32_t i = 0; i < pool->n; i++) {
        uint32_t page = pool->seq[i].host_first;
        for (uint32_t k = 0; k < pool->seq[i].n_host; k++, page = kv->host_next[page])
            LL_ASSERT(page < kv->n_host_pages && kv->host_owner[page] == i); /* K5 */
        n_owned += pool->seq[i].n_host;
    }
    LL_ASSERT(n_free == kv->n_host_free && n_free + n_owned == kv->n_host_pages);
}

void ll_kv_check(const struct ll_kv *kv, const struct ll_seq_pool *pool)
{
    uint32_t n_idle = 0, n_held = 0, before = LL_NONE;
    uint32_t *refs = kv->seen;

    memset(refs, 0, kv->n_pages * sizeof(*refs));
    for (uint32_t i = 0; i < pool->n; i++) {
        const struct ll_seq *seq = &pool->seq[i];
        for (uint32_t k = 0; k < seq->n_pages; k++) {
            LL_ASSERT(seq->page[k] < kv->n_pages);
            const struct ll_page *page = &kv->page[seq->page[k]];
            LL_ASSERT(page->epoch == seq->page_epoch[k]);          /* K3 */
            LL_ASSERT(page->owner == LL_NONE || page->owner == i); /* K1 */
            LL_ASSERT(page->owner == LL_NONE || page->refs == 1);  /* K1 */
            n_held += refs[seq->page[k]]++ == 0;
        }
    }
    for (uint32_t i = 0; i < kv->n_pages; i++) {
        LL_ASSERT(kv->page[i].refs == refs[i]); /* K2 */
        if (ll_prefix_has(&kv->index, i))
            LL_ASSERT(kv->page[i].owner == LL_NONE); /* K4 */
    }
    for (uint32_t i = kv->idle_first; i != LL_NONE; before = i, i = kv->page[i].next) {
        LL_ASSERT(kv->page[i].prev == before && kv->page[i].refs == 0);
        LL_ASSERT(kv->page[i].owner == LL_NONE && ll_prefix_has(&kv->index, i)); /* K4 */
        refs[i] = LL_NONE;                                                       /* seen as idle */
        LL_ASSERT(++n_idle <= kv->n_idle);
    }
    LL_ASSERT(n_idle == kv->n_idle && kv->idle_last == before);
    for (uint32_t i = 0; i < kv->n_free; i++) {
        uint32_t page = kv->free_page[i];
        LL_ASSERT(page < kv->n_pages && refs[page] == 0); /* neither held nor idle nor twice free */
        LL_ASSERT(!ll_prefix_has(&kv->index, page) && kv->page[page].owner == LL_NONE);
        refs[page] = LL_NONE;
    }
    LL_ASSERT(kv->n_free + kv->n_idle + n_held == kv->n_pages); /* K2 */
    ll_prefix_check(&kv->index);
    check_host(kv, pool);
}
