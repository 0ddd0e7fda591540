/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/engine_mail.c - the engine's talk with the control thread: who comes, who goes, drain. */
#include "runtime/engine_impl.h"

#include "base/assert.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "shm/wait.h"

#include <errno.h>
#include <sys/epoll.h>

/* Edge-triggered, and nobody ever reads the eventfds: each write is an edge, the counter has room
 * for 2^64 of them. Reading a kick eventfd would wake whoever waits for room in it, and its client
 * may make that 30,000 epoll watches (16 ms). */
int ll_engine_add_to_epoll(struct ll_engine *engine, int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = fd};

    if (epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        return LL_ERRNO("epoll_ctl, descriptor %d", fd);
    return 0;
}

void ll_engine_notify_control(struct ll_engine *engine)
{
    /* Relaxed: only this thread writes that tail. */
    uint64_t tail = atomic_load_explicit(&engine->options.to_control->tail, memory_order_relaxed);

    if (tail == engine->n_notified)
        return;
    engine->n_notified = tail;
    if (engine->options.notify_fd >= 0)
        ll_wait_wake(engine->options.notify_fd);
}

/* The kick eventfd's wait queue is its client's to make slow: the calls that put us in and take us
 * out are timed and wait like wakes (debt.h). A client that is not watched is served all the same,
 * by sweeps and other clients' kicks. false: not now. */
bool ll_engine_watch(struct ll_engine *engine, struct ll_attachment *client, bool wanted)
{
    struct ll_debt *debt = &client->domain->step_debt;

    if (client->is_watched == wanted)
        return true;
    if (ll_debt_is_due(debt, &engine->outlet.clock))
        return false;
    struct ll_debt_call call = ll_debt_begin(debt, &engine->outlet.clock);
    if (!wanted)
        epoll_ctl(engine->epoll_fd, EPOLL_CTL_DEL, client->kick_fd, NULL);
    else if (ll_engine_add_to_epoll(engine, client->kick_fd) < 0)
        ll_warn("client %u cannot wake the runtime: %s", client->id, ll_err_text());
    else
        client->is_watched = true;
    ll_debt_end(debt, &engine->outlet.clock, &call);
    client->is_watched &= wanted;
    return true;
}

static void attach(struct ll_engine *engine, struct ll_attachment *client)
{
    ll_intake_attach(&engine->intake, client);
    client->wants_watch = !ll_engine_watch(engine, client, true);
}

static void begin_detach(struct ll_engine *engine, struct ll_attachment *client, bool has_died)
{
    LL_ASSERT(engine->n_leaving < LL_ATTACHMENTS_MAX);
    client->wants_watch = false;
    engine->leaving[engine->n_leaving++] =
        (struct ll_engine_leaving){.client = client, .has_died = has_died};
}

void ll_engine_go_on_detaching(struct ll_engine *engine)
{
    for (uint32_t i = 0; i < engine->n_leaving;) {
        struct ll_engine_leaving *leaving = &engine->leaving[i];
        struct ll_mail mail = {.type = LL_MAIL_DETACHED, .attachment = leaving->client};

        if (!leaving->is_gone)
            leaving->is_gone =
                ll_intake_detach(&engine->intake, leaving->client, leaving->has_died);
        if (ll_engine_watch(engine, leaving->client, false) && leaving->is_gone &&
            ll_mailbox_send(engine->options.to_control, &mail))
            *leaving = engine->leaving[--engine->n_leaving];
        else
            i++;
    }
}

uint32_t ll_engine_read_mail(struct ll_engine *engine)
{
    struct ll_mail mail;
    uint32_t n = 0;

    for (; ll_mailbox_take(engine->options.from_control, &mail); n++) {
        switch (mail.type) {
        case LL_MAIL_ATTACH:
            attach(engine, mail.attachment);
            break;
        case LL_MAIL_DETACH:
            begin_detach(engine, mail.attachment, mail.value != 0);
            break;
        case LL_MAIL_SWEEP:
            ll_intake_sweep(&engine->intake, mail.attachment);
            break;
        case LL_MAIL_DRAIN:
            engine->is_draining = true;
            engine->intake.is_draining = true;
            engine->drain_deadline_ns = mail.value;
            ll_engine_give_up_switch(engine, LL_E_DRAINING);
            break;
        case LL_MAIL_SWITCH:
            ll_engine_begin_switch(engine, mail.attachment);
            break;
        case LL_MAIL_STOP:
            engine->is_stopping = true;
            break;
        case LL_MAIL_DETACHED:
        case LL_MAIL_FENCED:
        case LL_MAIL_WAKE:
        case LL_MAIL_IDLE:
        case LL_MAIL_SWITCHED:
        case LL_MAIL_FAILED:
            LL_ASSERT(!"mail that only the step thread sends");
        }
    }
    if (n > 0)
        engine->is_dirty = true;
    return n;
}

void ll_engine_go_on_draining(struct ll_engine *engine, uint64_t now_ns)
{
    if (engine->drain_deadline_ns != 0 && now_ns >= engine->drain_deadline_ns) {
        ll_scheduler_fail_all(&engine->scheduler, LL_E_DRAINING);
        engine->is_dirty = true;
    }
    struct ll_mail mail = {.type = LL_MAIL_IDLE};
    if (!engine->is_idle_told && ll_engine_is_idle(engine))
        engine->is_idle_told = ll_mailbox_send(engine->options.to_control, &mail);
}
