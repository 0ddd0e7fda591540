/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_INLINE_ALL /* a page is 272 bytes: a call would cost as much as the hash */
#include <xxhash.h>

#include "runtime/prefix.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/err.h"
#include "base/rng.h"
#include "runtime/memory.h"

#include <stdlib.h>
#include <string.h>

#define NO_PAGE UINT32_MAX

struct ll_prefix_node {
    struct ll_chain chain;
    uint32_t next; /* in the bucket */
    bool is_indexed;
};

int ll_prefix_init(struct ll_prefix *prefix, uint32_t n_pages, uint64_t seed)
{
    /* Twice as many buckets as pages: a look-up meets half a foreign page on average. */
    uint64_t n_buckets = ll_pow2_ceil(2ull * n_pages);
    size_t ids_bytes = (size_t)n_pages * LL_PAGE_TOKENS * sizeof(uint32_t);

    *prefix = (struct ll_prefix){.n_pages = n_pages, .mask = (uint32_t)(n_buckets - 1)};
    prefix->bucket = ll_memory_make(n_buckets * sizeof(*prefix->bucket));
    prefix->node = ll_memory_make(n_pages * sizeof(*prefix->node));
    prefix->ids = ll_memory_make(ids_bytes);
    if (prefix->bucket == NULL || prefix->node == NULL || prefix->ids == NULL) {
        ll_prefix_free(prefix);
        return LL_ERR(-ENOMEM, "out of memory for the prefix cache of %u pages", n_pages);
    }
    memset(prefix->bucket, 0xff, n_buckets * sizeof(*prefix->bucket));
    for (size_t i = 0; i < sizeof(prefix->secret); i += sizeof(uint64_t)) {
        uint64_t word = ll_splitmix64(&seed);
        memcpy(prefix->secret + i, &word, sizeof(word));
    }
    return 0;
}

void ll_prefix_free(struct ll_prefix *prefix)
{
    ll_memory_free(prefix->bucket, (prefix->mask + (size_t)1) * sizeof(*prefix->bucket));
    ll_memory_free(prefix->node, prefix->n_pages * sizeof(*prefix->node));
    ll_memory_free(prefix->ids, prefix->n_pages * LL_PAGE_TOKENS * sizeof(*prefix->ids));
    *prefix = (struct ll_prefix){0};
}

static struct ll_chain hash(const struct ll_prefix *prefix, const void *data, size_t n_bytes)
{
    XXH128_hash_t h =
        XXH3_128bits_withSecret(data, n_bytes, prefix->secret, sizeof(prefix->secret));

    return (struct ll_chain){h.low64, h.high64};
}

struct ll_chain ll_prefix_begin(const struct ll_prefix *prefix, const struct ll_prefix_root *root)
{
    struct { /* no padding: all of it is hashed */
        uint64_t generation;
        struct ll_prefix_root root;
    } key = {prefix->generation, *root};

    static_assert(sizeof(key) == 8 + 8 + 8 + 16 + 8, "no padding");
    return hash(prefix, &key, sizeof(key));
}

struct ll_chain ll_prefix_step(const struct ll_prefix *prefix, struct ll_chain before,
                               const uint32_t *ids)
{
    struct {
        struct ll_chain before;
        uint32_t ids[LL_PAGE_TOKENS];
    } key = {.before = before};

    memcpy(key.ids, ids, sizeof(key.ids));
    return hash(prefix, &key, sizeof(key));
}

static uint32_t *ids_of(const struct ll_prefix *prefix, uint32_t page)
{
    return prefix->ids + (size_t)page * LL_PAGE_TOKENS;
}

/* The page with this hash, whatever its ids. */
static uint32_t page_of(const struct ll_prefix *prefix, struct ll_chain chain)
{
    uint32_t page = prefix->bucket[chain.lo & prefix->mask];

    while (page != NO_PAGE &&
           (prefix->node[page].chain.lo != chain.lo || prefix->node[page].chain.hi != chain.hi))
        page = prefix->node[page].next;
    return page;
}

uint32_t ll_prefix_find(const struct ll_prefix *prefix, struct ll_chain chain, const uint32_t *ids)
{
    uint32_t page = page_of(prefix, chain);

    if (page == NO_PAGE || memcmp(ids_of(prefix, page), ids, LL_PAGE_TOKENS * sizeof(*ids)) != 0)
        return NO_PAGE;
    return page;
}

bool ll_prefix_add(struct ll_prefix *prefix, uint32_t page, struct ll_chain chain,
                   const uint32_t *ids)
{
    struct ll_prefix_node *node = &prefix->node[page];
    uint32_t *bucket = &prefix->bucket[chain.lo & prefix->mask];

    LL_ASSERT(page < prefix->n_pages && !node->is_indexed); /* H1 */
    if (page_of(prefix, chain) != NO_PAGE)
        return false;
    *node = (struct ll_prefix_node){.chain = chain, .next = *bucket, .is_indexed = true};
    *bucket = page;
    memcpy(ids_of(prefix, page), ids, LL_PAGE_TOKENS * sizeof(*ids));
    prefix->n_indexed++;
    return true;
}

void ll_prefix_remove(struct ll_prefix *prefix, uint32_t page)
{
    struct ll_prefix_node *node = &prefix->node[page];
    uint32_t *at = &prefix->bucket[node->chain.lo & prefix->mask];

    LL_ASSERT(page < prefix->n_pages && node->is_indexed);
    while (*at != page) {
        LL_ASSERT(*at != NO_PAGE);
        at = &prefix->node[*at].next;
    }
    *at = node->next;
    node->is_indexed = false;
    prefix->n_indexed--;
}

bool ll_prefix_has(const struct ll_prefix *prefix, uint32_t page)
{
    return prefix->node[page].is_indexed;
}

void ll_prefix_fetch(const struct ll_prefix *prefix, uint32_t page)
{
    __builtin_prefetch(&prefix->node[page], 1);
}

void ll_prefix_fetch_ids(const struct ll_prefix *prefix, uint32_t page)
{
    const char *ids = (const char *)ids_of(prefix, page);

    for (uint32_t at = 0; at < LL_PAGE_TOKENS * sizeof(uint32_t); at += LL_LINE_BYTES)
        __builtin_prefetch(ids + at, 1);
}

void ll_prefix_fetch_chain(const struct ll_prefix *prefix, struct ll_chain chain)
{
    __builtin_prefetch(&prefix->bucket[chain.lo & prefix->mask], 1);
}

void ll_prefix_forget_all(struct ll_prefix *prefix)
{
    prefix->generation++;
}

void ll_prefix_check(const struct ll_prefix *prefix)
{
    uint32_t n = 0;

    for (uint32_t b = 0; b <= prefix->mask; b++) {
        for (uint32_t page = prefix->bucket[b]; page != NO_PAGE; page = prefix->node[page].next) {
            LL_ASSERT(page < prefix->n_pages && prefix->node[page].is_indexed);
            LL_ASSERT((prefix->node[page].chain.lo & prefix->mask) == b);
            LL_ASSERT(page_of(prefix, prefix->node[page].chain) == page); /* H1 */
            LL_ASSERT(++n <= prefix->n_indexed);
        }
    }
    LL_ASSERT(n == prefix->n_indexed);
}
