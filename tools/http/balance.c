/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/http/balance.h"

#include "base/bits.h"
#include "tools/http/salt.h"

#include <string.h>

/* splitmix64's finish: every bit of x moves every bit of the result. */
static uint64_t scatter(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

uint32_t balance_choose(const struct balance_place *place, uint32_t n, uint64_t page, uint32_t turn)
{
    uint32_t least = BALANCE_NONE, preferred = BALANCE_NONE;
    uint64_t best = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = (i + turn) % n;
        uint64_t rank = scatter(page ^ place[at].key);
        if (!place[at].is_usable)
            continue;
        if (least == BALANCE_NONE || place[at].load < place[least].load)
            least = at;
        if (preferred == BALANCE_NONE || rank > best) {
            preferred = at;
            best = rank;
        }
    }
    if (least == BALANCE_NONE || page == 0)
        return least;
    uint64_t load_max = place[least].load + place[least].load / 4 + 4;
    return place[preferred].load <= load_max ? preferred : least;
}

/* The salts belong to it: without them equal pages are not the same to the runtime's cache. */
static uint64_t hash_page(const struct loop *loop, const struct job *job,
                          const struct prompt *prompt)
{
    const char *salt = job->params.cache_salt;
    struct {
        uint64_t tenant, salt;
        uint32_t ids[BALANCE_PAGE_IDS];
    } head = {.tenant = job->tenant};

    if (prompt->n <= BALANCE_PAGE_IDS) /* the last id is never taken from the cache */
        return 0;
    if (salt != NULL)
        head.salt = siphash(loop->server->secret, salt, strlen(salt));
    memcpy(head.ids, prompt->ids, sizeof(head.ids));
    return siphash(loop->server->secret, &head, sizeof(head)) | 1;
}

struct link *balance_pick(struct loop *loop, const struct job *job, const struct prompt *prompt,
                          uint32_t tried)
{
    const struct server *server = loop->server;
    struct balance_place place[SERVER_RUNTIMES_MAX];

    for (uint32_t i = 0; i < server->n_runtimes; i++) {
        const struct attachment *at = &loop->at[i];
        const struct runtime *runtime = &server->runtime[i];
        /* Relaxed: loads are estimates. */
        place[i] = (struct balance_place){
            .is_usable = at->link != NULL && at->code == 0 && (tried >> i & 1u) == 0 &&
                         at->link->text_key == job->link->text_key,
            .load = atomic_load_explicit(&runtime->n_open, memory_order_relaxed) +
                    atomic_load_explicit(&runtime->n_others, memory_order_relaxed),
            .key = runtime->key};
    }
    uint64_t page = server->n_runtimes > 1 ? hash_page(loop, job, prompt) : 0;
    uint32_t i = balance_choose(place, server->n_runtimes, page, loop->n_picks++);
    return i != BALANCE_NONE ? loop->at[i].link : NULL;
}

void balance_began(struct link *link)
{
    /* Relaxed: an estimate, read by other threads. */
    atomic_fetch_add_explicit(&link->runtime->n_open, 1, memory_order_relaxed);
}

void balance_ended(struct link *link)
{
    atomic_fetch_sub_explicit(&link->runtime->n_open, 1, memory_order_relaxed); /* as above */
}

void balance_look(struct loop *loop)
{
    static const char *const names[] = {"requests_running", "requests_waiting"};
    struct server *server = loop->server;
    struct ll_stat stats[STATS_MAX];

    for (uint32_t i = 0; i < server->n_runtimes && server->n_runtimes > 1; i++) {
        struct link *link = loop->at[i].link;
        int n = link != NULL ? ll_client_stats(link->client, stats, STATS_MAX) : 0;
        uint64_t n_there = 0;
        for (int k = 0; k < n && k < STATS_MAX; k++)
            for (size_t j = 0; j < LL_COUNT(names); j++)
                if (strcmp(stats[k].name, names[j]) == 0)
                    n_there += stats[k].value;
        /* Relaxed: estimates, B4. */
        uint32_t n_open = atomic_load_explicit(&server->runtime[i].n_open, memory_order_relaxed);
        atomic_store_explicit(&server->runtime[i].n_others,
                              n_there > n_open ? (uint32_t)(n_there - n_open) : 0,
                              memory_order_relaxed);
    }
}
