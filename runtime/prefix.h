/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/prefix.h - the index of the prefix cache: which page holds what the model made of a
 * prefix.
 *
 * A full page of 64 tokens is known by a chain of 128-bit hashes: root, then each page's ids after
 * the hash of all before it. So equal hashes mean equal prefixes under an equal root, and the root
 * says who may share: weights, adapter, domain of clients, salts. The hash is XXH3 with a secret
 * drawn at start, and the ids of a page are compared on a hit: two defences where one would do.
 *
 * The index knows pages by number only; who holds them and which of them may go is kv.h's affair.
 *
 *   H1  a page is in the index at most once, and one page at most per hash
 *   H2  memory is made at start for every page of the pool; nothing here allocates later */
#ifndef RUNTIME_PREFIX_H
#define RUNTIME_PREFIX_H

#include "kernels/backend.h"

struct ll_chain {
    uint64_t lo, hi;
};

/* Who may share pages: all of it must be equal. */
struct ll_prefix_root {
    uint64_t weights_epoch; /* counts reloads */
    uint64_t domain;        /* ll_domain.cache_key: the peer's uid as the kernel gives it */
    uint64_t salt[2];       /* the client's, the proxy's share for its tenants */
    uint32_t adapter, adapter_generation;
};

struct ll_prefix_node;

struct ll_prefix {
    uint32_t n_pages, mask, n_indexed;
    uint64_t generation;         /* +1 by ll_prefix_forget_all(): part of every root */
    uint32_t *bucket;            /* [mask + 1] first page, UINT32_MAX: none */
    struct ll_prefix_node *node; /* [n_pages] */
    uint32_t *ids;               /* [n_pages][LL_PAGE_TOKENS] */
    uint8_t secret[192];
};

/* -ENOMEM. Equal seeds give equal hashes, for simulations; a runtime draws it. */
int ll_prefix_init(struct ll_prefix *prefix, uint32_t n_pages, uint64_t seed);
void ll_prefix_free(struct ll_prefix *prefix);

/* Where chains begin. */
struct ll_chain ll_prefix_begin(const struct ll_prefix *prefix, const struct ll_prefix_root *root);
/* The chain one page further; ids [LL_PAGE_TOKENS]. */
struct ll_chain ll_prefix_step(const struct ll_prefix *prefix, struct ll_chain before,
                               const uint32_t *ids);

/* The page of a chain whose last page holds ids; UINT32_MAX: none. */
uint32_t ll_prefix_find(const struct ll_prefix *prefix, struct ll_chain chain, const uint32_t *ids);
/* Puts a page in; false: the chain has a page already (or its hash belongs to other ids). */
bool ll_prefix_add(struct ll_prefix *prefix, uint32_t page, struct ll_chain chain,
                   const uint32_t *ids);
/* Takes a page out that is in. */
void ll_prefix_remove(struct ll_prefix *prefix, uint32_t page);
bool ll_prefix_has(const struct ll_prefix *prefix, uint32_t page);

/* Hints that a page's entry will be looked at soon; that ids will be put in for it. */
void ll_prefix_fetch(const struct ll_prefix *prefix, uint32_t page);
void ll_prefix_fetch_ids(const struct ll_prefix *prefix, uint32_t page);
/* That a chain will be asked for or put in. */
void ll_prefix_fetch_chain(const struct ll_prefix *prefix, struct ll_chain chain);

/* No chain begun before finds anything after: what the pages hold is not to be trusted. They leave
 * as their memory is wanted. */
void ll_prefix_forget_all(struct ll_prefix *prefix);

/* H1 and the bucket chains; aborts on a fault. */
void ll_prefix_check(const struct ll_prefix *prefix);

#endif
