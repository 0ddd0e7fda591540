/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/debt.h - what a client may make a system call of the runtime cost, and no more.
 *
 * The kernel walks all epoll watches on a wait queue in the call that wakes it, and holds its lock
 * meanwhile; a client may hang 30,000 on its end of a descriptor (16 ms). So calls that wake a
 * client, or that touch the queue of its kick eventfd, are timed. The CPU time of slow ones is a
 * debt of its domain, one for each thread that makes such calls; time pays off 0.5 % of itself.
 * While a debt is above 10 ms, which an honest client may reach by being unlucky, the domain's
 * calls wait.
 *
 * What a thread waited for the CPU, which the woken client may have taken from it, is nobody's
 * debt: that needs a second clock of half a microsecond, read only after a first slow call. */
#ifndef RUNTIME_DEBT_H
#define RUNTIME_DEBT_H

#include <stdbool.h>
#include <stdint.h>

struct ll_debt {
    uint64_t ns, at_ns; /* what is owed, and when it was counted */
    bool is_timed;      /* there was a slow call */
};

/* NULL: the system's. */
struct ll_debt_clock {
    uint64_t (*now)(void *);
    uint64_t (*spent)(void *); /* CPU time of the thread */
    void *context;
};

/* Must the next call wait? */
bool ll_debt_is_due(struct ll_debt *debt, const struct ll_debt_clock *clock);

/* Around a call. */
struct ll_debt_call {
    uint64_t start_ns, spent_ns;
};
struct ll_debt_call ll_debt_begin(const struct ll_debt *debt, const struct ll_debt_clock *clock);
void ll_debt_end(struct ll_debt *debt, const struct ll_debt_clock *clock,
                 const struct ll_debt_call *call);

#endif
