/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/control_impl.h"

#include "base/assert.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "shm/wait.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define N_SLOTS_UID        16384u
#define ARENA_BYTES_UID    (1ull << 30)
#define DRAIN_NS           (30 * LL_NS_PER_S)
#define DRAIN_SLACK_NS     (2 * LL_NS_PER_S) /* the step thread ends what is left at the deadline */
#define WAKES_NS           (10 * LL_NS_PER_MS) /* between two looks at those that wait */
#define DESCRIPTORS_WANTED 4096u               /* 4 a client, 512 clients, the rest */

static sigset_t stop_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    return set;
}

void ll_control_block_signals(void)
{
    sigset_t set = stop_signals();

    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

int ll_control_epoll_add(struct ll_control *control, int fd, uint32_t events,
                         enum ll_control_kind kind, uint32_t gen, uint32_t index)
{
    struct epoll_event event = {.events = events,
                                .data.u64 = (uint64_t)kind << 56 |
                                            (uint64_t)(gen & 0xffffffu) << 32 | index};

    if (epoll_ctl(control->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        return LL_ERRNO("epoll_ctl");
    return 0;
}

/* ---- make and free --------------------------------------------------------------------------*/

static int check_options(struct ll_control_options *o)
{
    if (o->n_attachments_max == 0)
        o->n_attachments_max = LL_ATTACHMENTS_MAX;
    if (o->n_per_uid_max == 0)
        o->n_per_uid_max = o->n_attachments_max;
    if (o->n_slots_max == 0)
        o->n_slots_max = LL_SLOTS_MAX;
    if (o->n_slots_uid_max == 0)
        o->n_slots_uid_max = N_SLOTS_UID;
    if (o->arena_bytes_max == 0)
        o->arena_bytes_max = LL_ARENA_BYTES_MAX;
    if (o->arena_bytes_uid_max == 0)
        o->arena_bytes_uid_max = ARENA_BYTES_UID;
    if (o->drain_ns == 0)
        o->drain_ns = DRAIN_NS;
    if (strlen(o->socket) > 100)
        return LL_ERR(-ENAMETOOLONG, "socket path %s: longer than 100 bytes", o->socket);
    if (o->n_attachments_max > LL_ATTACHMENTS_MAX)
        return LL_ERR(LL_E_INVAL, "attachments: %u, must be 1 .. %u", o->n_attachments_max,
                      LL_ATTACHMENTS_MAX);
    if (o->n_slots_max < LL_SLOTS_MIN || o->n_slots_max > LL_SLOTS_MAX)
        return LL_ERR(LL_E_INVAL, "slots of a client: %u, must be %u .. %u", o->n_slots_max,
                      LL_SLOTS_MIN, LL_SLOTS_MAX);
    if (o->n_slots_uid_max < o->n_slots_max || o->n_slots_uid_max > 1u << 19)
        return LL_ERR(LL_E_INVAL, "slots of a user: %u, must be %u .. %u", o->n_slots_uid_max,
                      o->n_slots_max, 1u << 19);
    if (o->arena_bytes_max < 65536 || o->arena_bytes_max > LL_ARENA_BYTES_MAX)
        return LL_ERR(LL_E_INVAL, "arena of a client: %u bytes, must be 65536 .. %u",
                      o->arena_bytes_max, LL_ARENA_BYTES_MAX);
    return 0;
}

static void raise_descriptors(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < DESCRIPTORS_WANTED)
        ll_warn("only %llu descriptors (hard RLIMIT_NOFILE): a client takes 4",
                (unsigned long long)limit.rlim_max);
}

static int make_memory(struct ll_control *control)
{
    const struct ll_control_options *options = &control->options;

    control->n_places = options->n_attachments_max;
    control->n_connections = control->n_places + LL_CONTROL_PENDING_MAX;
    control->bell_log2 = ll_log2_floor(ll_pow2_ceil(2ull * options->n_slots_uid_max));
    control->connection = calloc(control->n_connections, sizeof(*control->connection));
    control->place = calloc(control->n_places, sizeof(*control->place));
    control->domain = calloc(control->n_places, sizeof(*control->domain));
    control->shadow =
        calloc((size_t)control->n_places * options->n_slots_max, sizeof(*control->shadow));
    if (control->connection == NULL || control->place == NULL || control->domain == NULL ||
        control->shadow == NULL)
        return LL_ERR(-ENOMEM, "no memory for %u attachments", control->n_places);
    for (uint32_t i = 0; i < control->n_connections; i++)
        control->connection[i].fd = control->connection[i].pid_fd = -1;
    for (uint32_t i = 0; i < control->n_places; i++) {
        control->place[i].attachment.id = i;
        control->domain[i].region.fd = -1;
    }
    for (uint32_t i = 0; i < LL_CONTROL_WATCH_MAX; i++)
        control->watch[i].fd = -1;
    return 0;
}

static int make_descriptors(struct ll_control *control)
{
    sigset_t set = stop_signals();

    control->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    control->notify_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    control->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    control->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (control->epoll_fd < 0 || control->notify_fd < 0 || control->signal_fd < 0 ||
        control->spare_fd < 0)
        return LL_ERRNO("descriptors of the control thread");
    int rc = ll_control_epoll_add(control, control->notify_fd, EPOLLIN, LL_KIND_NOTIFY, 0, 0);
    if (rc == 0)
        rc = ll_control_epoll_add(control, control->signal_fd, EPOLLIN, LL_KIND_SIGNAL, 0, 0);
    return rc;
}

int ll_control_create(struct ll_control **out, const struct ll_control_options *options)
{
    struct ll_control_options checked = *options;
    int rc = check_options(&checked);
    if (rc < 0)
        return rc;

    struct ll_control *control = calloc(1, sizeof(*control));
    if (control == NULL)
        return LL_ERR(-ENOMEM, "no memory for the control thread");
    control->options = checked;
    control->info = options->info->base;
    control->stats = &((struct ll_stat_region *)options->stat->base)->v;
    control->lock_fd = control->listen_fd = control->epoll_fd = -1;
    control->signal_fd = control->notify_fd = control->spare_fd = -1;
    snprintf(control->path, sizeof(control->path), "%s", options->socket);
    snprintf(control->lock_path, sizeof(control->lock_path), "%s.lock", options->socket);
    control->options.socket = control->path;

    raise_descriptors();
    rc = make_memory(control);
    if (rc == 0)
        rc = make_descriptors(control);
    if (rc == 0)
        rc = ll_control_lock(control);
    if (rc < 0) {
        ll_control_destroy(control);
        return rc;
    }
    *out = control;
    return 0;
}

int ll_control_listen(struct ll_control *control)
{
    int rc = ll_control_bind(control);

    if (rc == 0)
        rc = ll_control_epoll_add(control, control->listen_fd, EPOLLIN, LL_KIND_LISTEN, 0, 0);
    if (rc < 0)
        return rc;
    /* Release, pairs with the acquire in the client's check: INFO is complete. */
    atomic_store_explicit(&control->info->rt_state, LL_RT_READY, memory_order_release);
    return 0;
}

static void close_if(int fd)
{
    if (fd >= 0)
        close(fd);
}

void ll_control_destroy(struct ll_control *control)
{
    if (control == NULL)
        return;
    ll_control_unbind(control);
    for (uint32_t i = 0; control->connection != NULL && i < control->n_connections; i++) {
        close_if(control->connection[i].fd);
        close_if(control->connection[i].pid_fd);
    }
    for (uint32_t i = 0; control->place != NULL && i < control->n_places; i++) {
        struct ll_attachment *attachment = &control->place[i].attachment;
        if (control->place[i].state == LL_PLACE_FREE)
            continue;
        ll_region_free(&attachment->req);
        ll_region_free(&attachment->rsp);
        close_if(attachment->kick_fd);
        close_if(attachment->wake_fd);
    }
    for (uint32_t i = 0; control->domain != NULL && i < control->n_places; i++)
        if (control->domain[i].is_used)
            ll_region_free(&control->domain[i].region);
    close_if(control->epoll_fd);
    close_if(control->signal_fd);
    close_if(control->notify_fd);
    close_if(control->spare_fd);
    free(control->connection);
    free(control->place);
    free(control->domain);
    free(control->shadow);
    free(control);
}

int ll_control_notify_fd(const struct ll_control *control)
{
    return control->notify_fd;
}

/* ---- what others register ---------------------------------------------------------------------*/

int ll_control_watch(struct ll_control *control, int fd, uint32_t events, ll_control_fn *fn,
                     void *context)
{
    for (uint32_t i = 0; i < LL_CONTROL_WATCH_MAX; i++) {
        if (control->watch[i].fd >= 0)
            continue;
        int rc = ll_control_epoll_add(control, fd, events, LL_KIND_WATCH, (uint32_t)fd, i);
        if (rc == 0)
            control->watch[i] = (struct ll_watch){.fd = fd, .fn = fn, .context = context};
        return rc;
    }
    return LL_ERR(-ENOSPC, "the control thread already watches %u descriptors",
                  LL_CONTROL_WATCH_MAX);
}

void ll_control_unwatch(struct ll_control *control, int fd)
{
    for (uint32_t i = 0; i < LL_CONTROL_WATCH_MAX; i++) {
        if (control->watch[i].fd != fd)
            continue;
        epoll_ctl(control->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
        control->watch[i].fd = -1;
        return;
    }
}

uint32_t ll_control_clients(const struct ll_control *control, struct ll_control_client *out,
                            uint32_t n_max)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < control->n_places; i++) {
        const struct ll_place *place = &control->place[i];
        const struct ll_attachment *attachment = &place->attachment;
        if (place->state != LL_PLACE_ATTACHED)
            continue;
        if (n++ >= n_max)
            continue;
        struct ll_control_client *client = &out[n - 1];
        *client = (struct ll_control_client){.id = attachment->id,
                                             .incarnation = attachment->incarnation,
                                             .n_slots = attachment->n_slots,
                                             .arena_bytes = attachment->arena_bytes,
                                             .domain = attachment->domain->id,
                                             .uid = attachment->uid,
                                             .pid = attachment->pid,
                                             .attached_ns = place->attached_ns};
        memcpy(client->name, attachment->name, sizeof(client->name));
    }
    return n;
}

/* ---- mail ---------------------------------------------------------------------------------*/

void ll_control_mail(struct ll_control *control, enum ll_mail_type type, void *attachment,
                     uint64_t value)
{
    struct ll_mailbox *box = control->options.to_step;
    const struct ll_mail mail = {.type = type, .attachment = attachment, .value = value};

    if (type == LL_MAIL_SWEEP) {
        /* Relaxed twice: a guess suffices. Sweeps may be lost (the runtime sweeps by itself every
         * 10 ms), so they never take the room that the others are sure of: at most one ATTACH and
         * one DETACH for each of 512 ids. */
        uint64_t tail = atomic_load_explicit(&box->tail, memory_order_relaxed);
        if (tail - atomic_load_explicit(&box->head, memory_order_relaxed) > LL_MAILBOX_LENGTH / 2)
            return;
    }
    bool sent = ll_mailbox_send(box, &mail);
    LL_ASSERT(sent);
    ll_wait_kick(control->info, control->options.step_fd);
}

void ll_control_switch(struct ll_control *control, struct ll_weights_switch *to,
                       ll_control_switched_fn *fn, void *context)
{
    LL_ASSERT(control->on_switched == NULL);
    control->on_switched = fn;
    control->switch_context = context;
    ll_control_mail(control, LL_MAIL_SWITCH, to, 0);
}

static void take_switched(struct ll_control *control, int result)
{
    ll_control_switched_fn *fn = control->on_switched;

    LL_ASSERT(fn != NULL);
    control->on_switched = NULL;
    fn(control->switch_context, result);
}

static void finish(struct ll_control *control, int result)
{
    if (control->is_over)
        return;
    control->is_over = true;
    control->result = result;
    ll_control_mail(control, LL_MAIL_STOP, NULL, 0);
}

/* What waking costs is the client's to choose, within bounds (debt.h): those of a domain in debt
 * are woken later, and the loop is there for the others. */
static void wake(struct ll_control *control, struct ll_attachment *attachment)
{
    struct ll_debt *debt = &attachment->domain->control_debt;
    struct ll_place *place = &control->place[attachment->id];

    if (ll_debt_is_due(debt, &ll_control_clock)) {
        control->n_wakes_due += !place->is_wake_due;
        place->is_wake_due = true;
        return;
    }
    control->n_wakes_due -= place->is_wake_due;
    place->is_wake_due = false;
    struct ll_debt_call call = ll_debt_begin(debt, &ll_control_clock);
    ll_wait_wake(attachment->wake_fd);
    ll_debt_end(debt, &ll_control_clock, &call);
}

static void wake_late(struct ll_control *control)
{
    for (uint32_t i = 0; control->n_wakes_due > 0 && i < control->n_places; i++)
        if (control->place[i].is_wake_due)
            wake(control, &control->place[i].attachment);
}

static void fence(struct ll_control *control, struct ll_attachment *attachment, int code)
{
    struct ll_place *place = &control->place[attachment->id];
    char text[128];

    if (place->state != LL_PLACE_ATTACHED)
        return; /* its end is already on the way */
    ll_warn("client %u \"%s\" pid %ld uid %u broke the shared-memory protocol and is detached",
            attachment->id, attachment->name, (long)attachment->pid, attachment->uid);
    atomic_store_explicit(&attachment->rsp_head->client_reason, code, memory_order_relaxed);
    /* Release, pairs with the acquire in ll_client_check_peer(): the reason before the state. */
    atomic_store_explicit(&attachment->rsp_head->client_state, LL_CLIENT_FENCED,
                          memory_order_release);
    snprintf(text, sizeof(text), "the runtime fenced this client: %s", ll_error_name(code));
    struct ll_connection *connection = &control->connection[place->connection];
    struct ll_debt *debt = &attachment->domain->control_debt;
    struct ll_debt_call call = ll_debt_begin(debt, &ll_control_clock);
    ll_control_refuse(connection->fd, LL_MSG_KICK, code, text);
    ll_wait_wake(attachment->wake_fd);
    ll_debt_end(debt, &ll_control_clock, &call);
    ll_control_close(control, connection, true);
}

static void take_mail(struct ll_control *control)
{
    struct ll_mail mail;

    while (ll_mailbox_take(control->options.to_control, &mail)) {
        switch (mail.type) {
        case LL_MAIL_DETACHED:
            ll_control_release(control, mail.attachment);
            break;
        case LL_MAIL_FENCED:
            fence(control, mail.attachment, (int)(int64_t)mail.value);
            break;
        case LL_MAIL_WAKE:
            wake(control, mail.attachment);
            break;
        case LL_MAIL_IDLE:
            if (control->is_draining)
                finish(control, 0);
            break;
        case LL_MAIL_SWITCHED:
            take_switched(control, (int)(int64_t)mail.value);
            break;
        case LL_MAIL_FAILED:
            finish(control, (int)(int64_t)mail.value);
            break;
        default:
            LL_ASSERT(!"a message only the step thread receives");
        }
    }
}

/* ---- drain and signals ----------------------------------------------------------------------*/

void ll_control_drain(struct ll_control *control)
{
    uint32_t ready = LL_RT_READY;

    if (control->is_draining)
        return;
    control->is_draining = true;
    control->drain_deadline_ns = ll_now_ns() + control->options.drain_ns;
    /* Release on success, pairs with the acquire of clients; a DEAD from the step thread stays. */
    atomic_compare_exchange_strong_explicit(&control->info->rt_state, &ready, LL_RT_DRAINING,
                                            memory_order_release, memory_order_relaxed);
    struct ll_msg_drain message = {.head = {LL_MSG_MAGIC, LL_MSG_DRAIN, sizeof(message)},
                                   .deadline_ns = control->drain_deadline_ns};
    for (uint32_t i = 0; i < control->n_connections; i++)
        if (control->connection[i].stage == LL_STAGE_ATTACHED)
            ll_msg_send(control->connection[i].fd, &message, sizeof(message), NULL, 0);
    ll_control_mail(control, LL_MAIL_DRAIN, NULL, control->drain_deadline_ns);
}

static void take_signals(struct ll_control *control)
{
    struct signalfd_siginfo signal;

    while (read(control->signal_fd, &signal, sizeof(signal)) == sizeof(signal)) {
        if (!control->is_draining) {
            ll_info("%s: finishing what runs (at most %llu s), then stopping; once more stops at "
                    "once",
                    strsignal((int)signal.ssi_signo),
                    (unsigned long long)(control->options.drain_ns / LL_NS_PER_S));
            ll_control_drain(control);
        } else {
            finish(control, LL_ERR(-EINTR, "stopped by a second signal"));
        }
    }
}

/* ---- the loop -----------------------------------------------------------------------------*/

/* Has the peer said something that nobody has read yet? */
static bool has_unread(const struct ll_connection *connection)
{
    struct pollfd readable = {.fd = connection->fd, .events = POLLIN};

    return poll(&readable, 1, 0) == 1 && (readable.revents & POLLIN) != 0;
}

/* Ends stages that took too long; milliseconds until the next could, -1: none. An answer that lies
 * unread came in time: that the loop was held up, by the attaches of others say, is not its fault.
 * It is read in this turn and ends the stage one way or the other. */
static int expire(struct ll_control *control)
{
    uint64_t now_ns = 0, next_ns = UINT64_MAX;

    for (uint32_t i = 0; i < control->n_connections; i++) {
        struct ll_connection *connection = &control->connection[i];
        if (connection->stage != LL_STAGE_HELLO && connection->stage != LL_STAGE_OFFERED)
            continue;
        if (now_ns == 0)
            now_ns = ll_now_ns();
        if (now_ns < connection->deadline_ns) {
            next_ns = ll_min_u64(next_ns, connection->deadline_ns);
            continue;
        }
        if (has_unread(connection)) {
            next_ns = now_ns;
            continue;
        }
        ll_control_refuse(connection->fd, LL_MSG_REFUSE, LL_E_TIMEOUT,
                          "the attach took longer than a second");
        ll_stat_add(&control->stats->attaches_refused, 1);
        ll_control_close(control, connection, true);
    }
    if (control->is_draining) {
        uint64_t deadline_ns = control->drain_deadline_ns + DRAIN_SLACK_NS;
        now_ns = ll_now_ns();
        if (now_ns >= deadline_ns)
            finish(control, LL_ERR(-ETIMEDOUT, "requests were still open at the drain's deadline"));
        next_ns = ll_min_u64(next_ns, deadline_ns);
    }
    if (control->n_wakes_due > 0) {
        now_ns = ll_now_ns();
        next_ns = ll_min_u64(next_ns, now_ns + WAKES_NS);
    }
    if (next_ns == UINT64_MAX)
        return -1;
    return next_ns <= now_ns ? 0 : (int)((next_ns - now_ns) / LL_NS_PER_MS) + 1;
}

static void take_event(struct ll_control *control, const struct epoll_event *event)
{
    enum ll_control_kind kind = (enum ll_control_kind)(event->data.u64 >> 56);
    uint32_t gen = (uint32_t)(event->data.u64 >> 32) & 0xffffffu;
    uint32_t index = (uint32_t)event->data.u64;
    struct ll_connection *connection;
    struct ll_watch *watch;

    switch (kind) {
    case LL_KIND_LISTEN:
        ll_control_accept(control);
        break;
    case LL_KIND_SIGNAL:
        take_signals(control);
        break;
    case LL_KIND_NOTIFY:
        break; /* the mail is looked at after every turn */
    case LL_KIND_WATCH:
        watch = &control->watch[index];
        if (watch->fd == (int)gen)
            watch->fn(watch->context, watch->fd, event->events);
        break;
    case LL_KIND_CONN:
    case LL_KIND_PID:
        connection = &control->connection[index];
        if ((connection->gen & 0xffffffu) != gen || connection->stage == LL_STAGE_FREE)
            break; /* closed earlier in this turn */
        if (kind == LL_KIND_PID || (event->events & (EPOLLIN | EPOLLHUP | EPOLLERR)) == 0 ||
            !ll_control_read(control, connection))
            ll_control_close(control, connection, true);
        break;
    }
}

int ll_control_run(struct ll_control *control)
{
    struct epoll_event events[64];

    while (!control->is_over) {
        int n = epoll_wait(control->epoll_fd, events, LL_COUNT(events), expire(control));
        if (n < 0 && errno != EINTR) {
            finish(control, LL_ERRNO("epoll_wait"));
            break;
        }
        for (int i = 0; i < n && !control->is_over; i++)
            take_event(control, &events[i]);
        /* Emptied before the mail is read: a notice that comes in between is seen next turn. */
        ll_wait_drain(control->notify_fd);
        take_mail(control);
        wake_late(control);
#ifdef LL_DEBUG
        ll_control_check(control);
#endif
    }
    return control->result;
}

void ll_control_check(const struct ll_control *control)
{
    uint32_t n_offered = 0, n_attached = 0, n_in_domains = 0, n_used = 0, n_slots = 0;
    uint32_t n_wakes_due = 0;

    for (uint32_t i = 0; i < control->n_connections; i++) {
        const struct ll_connection *connection = &control->connection[i];
        LL_ASSERT((connection->stage == LL_STAGE_FREE) == (connection->fd < 0));
        LL_ASSERT((connection->stage >= LL_STAGE_OFFERED) == (connection->attachment != NULL));
        n_offered += connection->stage == LL_STAGE_OFFERED;
        n_attached += connection->stage == LL_STAGE_ATTACHED;
    }
    for (uint32_t i = 0; i < control->n_places; i++) {
        const struct ll_place *place = &control->place[i];
        const struct ll_attachment *attachment = &place->attachment;
        LL_ASSERT(attachment->id == i);
        n_offered -= place->state == LL_PLACE_OFFERED;
        n_attached -= place->state == LL_PLACE_ATTACHED;
        if (place->state == LL_PLACE_FREE)
            continue;
        n_used++;
        n_wakes_due += place->is_wake_due;
        n_slots += attachment->n_slots;
        if (place->state == LL_PLACE_LEAVING)
            continue;
        const struct ll_connection *connection = &control->connection[place->connection];
        LL_ASSERT(connection->attachment == attachment && connection->uid == attachment->uid);
    }
    LL_ASSERT(n_offered == 0 && n_attached == 0);
    for (uint32_t i = 0; i < control->n_places; i++) {
        const struct ll_domain *domain = &control->domain[i];
        LL_ASSERT(domain->is_used == (domain->n_attached > 0));
        n_in_domains += domain->n_attached;
        n_slots -= domain->n_slots;
    }
    LL_ASSERT(n_in_domains == n_used && n_slots == 0 && n_wakes_due == control->n_wakes_due);
}
