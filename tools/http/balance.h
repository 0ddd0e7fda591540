/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/balance.h - which of several runtimes gets a request.
 *
 *   B1  Only one that is attached, shows signs of life and reads texts as the request was read.
 *   B2  Prompts that begin with the same page of ids prefer the same runtime, where that page's KV
 *       is then cached: each page ranks the runtimes in an order of its own, so that one that goes
 *       or comes moves no page but its own.
 *   B3  Unless the preferred one's load is more than a quarter and four requests above the least:
 *       then, and for prompts shorter than a page, it is the least loaded one, in turn among
 *       equals.
 *   B4  Load: requests open there, those of this proxy as it counts them, those of others as the
 *       runtime last told. */
#ifndef TOOLS_HTTP_BALANCE_H
#define TOOLS_HTTP_BALANCE_H

#include "tools/http/job.h"

#define BALANCE_PAGE_IDS 64u /* what the runtime caches is a multiple of that */
#define BALANCE_NONE     UINT32_MAX

struct balance_place {
    bool is_usable;
    uint64_t load;
    uint64_t key; /* of the runtime, for B2 */
};

/* B2, B3: an index into place[0 .. n); BALANCE_NONE: none is usable. page: hash of the prompt's
 * first page, 0: it has none. turn: counts up, for B3. */
uint32_t balance_choose(const struct balance_place *place, uint32_t n, uint64_t page,
                        uint32_t turn);

/* The link for a prompt of a job; NULL: none. Bit i of tried: not runtime i. */
struct link *balance_pick(struct loop *loop, const struct job *job, const struct prompt *prompt,
                          uint32_t tried);

/* A request was submitted over the link; the runtime has ended it. */
void balance_began(struct link *link);
void balance_ended(struct link *link);
/* Reads what others have open (B4). One loop, now and then. */
void balance_look(struct loop *loop);

#endif
