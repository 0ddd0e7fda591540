/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/engine_impl.h - what engine*.c share; nobody else includes it.
 *
 *   engine.c       the loop: the seven calls, page copies, sleep
 *   engine_mail.c  mail with the control thread: clients come and go, drain
 *   engine_switch.c another set of weights takes over */
#ifndef RUNTIME_ENGINE_IMPL_H
#define RUNTIME_ENGINE_IMPL_H

#include "runtime/engine.h"

#include "base/clock.h"

static inline uint64_t ll_engine_clock_ns(const struct ll_engine *engine)
{
    const struct ll_engine_options *o = &engine->options;

    return o->clock != NULL ? o->clock(o->clock_context) : ll_now_ns();
}

static inline uint32_t ll_engine_in_flight(const struct ll_engine *engine)
{
    return (uint32_t)(engine->n_submitted - engine->n_polled);
}

/* A descriptor that wakes the sleeping engine. */
int ll_engine_add_to_epoll(struct ll_engine *engine, int fd);
/* Puts a client's kick eventfd among them, or takes it out; false: not now, its domain is in debt.
 */
bool ll_engine_watch(struct ll_engine *engine, struct ll_attachment *client, bool wanted);
/* All mail there is; how much. */
uint32_t ll_engine_read_mail(struct ll_engine *engine);
/* Wakes the control thread if anything was mailed since, by whichever module. */
void ll_engine_notify_control(struct ll_engine *engine);
/* Goes on with clients that leave; DETACHED once nothing of theirs is used any more. */
void ll_engine_go_on_detaching(struct ll_engine *engine);
/* Ends what is left at the drain's deadline; IDLE once all has ended. */
void ll_engine_go_on_draining(struct ll_engine *engine, uint64_t now_ns);
/* A switch is asked for; goes on with it, once a turn; gives it up if there is one. */
void ll_engine_begin_switch(struct ll_engine *engine, struct ll_weights_switch *to);
void ll_engine_go_on_switching(struct ll_engine *engine, uint64_t now_ns);
void ll_engine_give_up_switch(struct ll_engine *engine, int code);

#endif
