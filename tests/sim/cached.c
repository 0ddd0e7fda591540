/* SPDX-License-Identifier: Apache-2.0 */
/* tests/sim/cached.c - whose prefixes a request may find in the cache: those that another request
 * of the same domain with the same salt had before it. A set of keys remembers them; a hit on
 * anything else would show one user's prompts to another. */
#include "tests/sim/sim.h"

static uint64_t key_of(const struct sim_world *w, const struct sim_client *client,
                       const struct sim_request *r, uint32_t n_tokens)
{
    uint64_t key = ll_fake_context(r->prompt, n_tokens);

    key ^= (w->n.restarts * 64 + client->domain->d.id + 1) * 0x9e3779b97f4a7c15ull;
    key ^= (r->sent.salt[0] + 3 * r->sent.salt[1]) * 0xbf58476d1ce4e5b9ull + n_tokens;
    return key | 1;
}

/* The key's place, or where it would be. */
static uint32_t place_of(const struct sim_world *w, uint64_t key)
{
    uint32_t at = (uint32_t)(key >> 20) % SIM_SEEN_MAX;

    while (w->seen[at] != 0 && w->seen[at] != key)
        at = (at + 1) % SIM_SEEN_MAX;
    return at;
}

/* Once it is there, once more: a request notes itself too. */
static void note(struct sim_world *w, uint64_t key)
{
    uint64_t again = w->seen[place_of(w, key)] == key ? key ^ 2 : key;
    uint32_t place = place_of(w, again);

    w->n_seen += w->seen[place] == 0;
    w->seen[place] = again;
}

void sim_note_prompt(struct sim_world *w, const struct sim_client *client,
                     const struct sim_request *r)
{
    if ((r->sent.flags & LL_REQ_NO_CACHE) || r->refusal != 0)
        return;
    for (uint32_t n = LL_PAGE_TOKENS; n < r->sent.n_prompt; n += LL_PAGE_TOKENS)
        if (w->n_seen < SIM_SEEN_MAX / 2)
            note(w, key_of(w, client, r, n));
}

bool sim_may_be_cached(const struct sim_world *w, const struct sim_client *client,
                       const struct sim_request *r, uint32_t n_cached)
{
    if (n_cached == 0 || client->domain->has_hostile || w->n_seen >= SIM_SEEN_MAX / 2)
        return true;
    uint64_t twice = key_of(w, client, r, n_cached) ^ 2;
    return w->seen[place_of(w, twice)] == twice;
}
