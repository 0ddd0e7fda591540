/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/debt.h"

#include "base/bits.h"
#include "base/clock.h"

#include <time.h>

#define SLOW_NS  (25 * LL_NS_PER_US) /* ten times an honest call */
#define DUE_NS   (10 * LL_NS_PER_MS) /* an honest one may be interrupted now and then */
#define PAID_PER 200u                /* time pays off 0.5 % of itself */

static uint64_t now_ns(const struct ll_debt_clock *clock)
{
    return clock->now != NULL ? clock->now(clock->context) : ll_now_ns();
}

static uint64_t spent_ns(const struct ll_debt_clock *clock)
{
    struct timespec spent;

    if (clock->spent != NULL)
        return clock->spent(clock->context);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent);
    return (uint64_t)spent.tv_sec * LL_NS_PER_S + (uint64_t)spent.tv_nsec;
}

bool ll_debt_is_due(struct ll_debt *debt, const struct ll_debt_clock *clock)
{
    if (debt->ns == 0)
        return false;
    uint64_t now = now_ns(clock), paid_ns = (now - debt->at_ns) / PAID_PER;
    if (paid_ns > 0) {
        debt->ns -= ll_min_u64(debt->ns, paid_ns);
        debt->at_ns = now;
    }
    return debt->ns > DUE_NS;
}

struct ll_debt_call ll_debt_begin(const struct ll_debt *debt, const struct ll_debt_clock *clock)
{
    return (struct ll_debt_call){.spent_ns = debt->is_timed ? spent_ns(clock) : 0,
                                 .start_ns = now_ns(clock)};
}

void ll_debt_end(struct ll_debt *debt, const struct ll_debt_clock *clock,
                 const struct ll_debt_call *call)
{
    if (now_ns(clock) - call->start_ns < SLOW_NS)
        return;
    uint64_t took_ns = debt->is_timed ? spent_ns(clock) - call->spent_ns : 0;
    debt->is_timed = true;
    if (took_ns < SLOW_NS)
        return;
    if (debt->ns == 0)
        debt->at_ns = call->start_ns;
    debt->ns += took_ns;
}
