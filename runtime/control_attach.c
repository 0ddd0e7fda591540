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
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

void ll_control_refuse(int fd, uint16_t type, int code, const char *text)
{
    struct ll_msg_refuse message = {
        .head = {LL_MSG_MAGIC, type, sizeof(message)},
        .code = code,
        .abi_min = LL_ABI_MAJOR << 16,
        .abi_max = LL_ABI_MAJOR << 16 | LL_ABI_MINOR,
    };

    snprintf(message.text, sizeof(message.text), "%s", text);
    /* Best effort: a peer that is gone or does not read has its answer in the closed socket. */
    ll_msg_send(fd, &message, sizeof(message), NULL, 0);
}

static int send_offer(struct ll_control *control, struct ll_attachment *attachment,
                      const struct ll_layout *layout)
{
    const struct ll_control_options *options = &control->options;
    const struct ll_region *bell = &attachment->domain->region;
    struct ll_msg_offer offer = {
        .head = {LL_MSG_MAGIC, LL_MSG_OFFER, sizeof(offer)},
        .abi_major = LL_ABI_MAJOR,
        .abi_minor = LL_ABI_MINOR,
        .epoch = control->info->epoch,
        .client_id = attachment->id,
        .incarnation = attachment->incarnation,
        .info_bytes = options->info->size_bytes,
        .req_bytes = layout->req_bytes,
        .rsp_bytes = layout->rsp_bytes,
        .tok_bytes = options->tok != NULL ? options->tok->size_bytes : 0,
        .stat_bytes = options->stat->size_bytes,
        .bell_bytes = layout->off_bell != 0 ? 0 : bell->size_bytes,
        .req_off_hot = layout->off_hot,
        .req_off_slots = layout->off_slots,
        .req_off_bell = layout->off_bell,
        .req_off_arena = layout->off_arena,
        .arena_bytes = layout->arena_bytes,
        .n_slots = layout->n_slots,
        .req_slot_bytes = sizeof(struct ll_req),
        .bell_log2 = layout->bell_log2,
        .rsp_off_slots = layout->off_rst,
        .rsp_off_events = layout->off_events,
        .rsp_log2_events = layout->log2_events,
        .rsp_slot_bytes = sizeof(struct ll_rst),
    };
    int wake_client_fd;
    int rc = ll_wait_make_wake(&wake_client_fd, &attachment->wake_fd);
    if (rc < 0)
        return rc;

    /* In the order of enum ll_offer_fd; -1: none. */
    const int all[LL_FD_COUNT] = {
        [LL_FD_INFO] = options->info->fd,
        [LL_FD_REQ] = attachment->req.fd,
        [LL_FD_RSP] = attachment->rsp.fd,
        [LL_FD_KICK] = attachment->kick_fd,
        [LL_FD_WAKE] = wake_client_fd,
        [LL_FD_STAT] = options->stat->fd,
        [LL_FD_TOK] = options->tok != NULL ? options->tok->fd : -1,
        [LL_FD_BELL] = layout->off_bell != 0 ? -1 : bell->fd,
    };
    int fds[LL_FD_COUNT], n_fds = 0;

    for (int i = 0; i < LL_FD_COUNT; i++) {
        if (all[i] < 0)
            continue;
        offer.fd_mask |= 1u << i;
        fds[n_fds++] = all[i];
    }
    rc = ll_msg_send(attachment->socket_fd, &offer, sizeof(offer), fds, n_fds);
    close(wake_client_fd); /* the client's alone from here on */
    return rc;
}

/* ---- the stages ---------------------------------------------------------------------------*/

/* What a refused client reads; then the connection is over. */
static bool refuse(struct ll_control *control, struct ll_connection *connection, int code)
{
    ll_debug("refused pid %ld uid %u: %s", (long)connection->pid, connection->uid, ll_err_text());
    ll_control_refuse(connection->fd, LL_MSG_REFUSE, code, ll_err_text());
    ll_stat_add(&control->stats->attaches_refused, 1);
    return false;
}

static bool read_hello(struct ll_control *control, struct ll_connection *connection,
                       const struct ll_msg_hello *hello, size_t n_bytes)
{
    struct ll_layout layout;
    int rc;

    if (n_bytes < sizeof(*hello) || hello->head.type != LL_MSG_HELLO)
        return refuse(control, connection,
                      LL_ERR(LL_E_PROTOCOL, "the first message must be a HELLO of %zu bytes",
                             sizeof(*hello)));
    if (hello->abi_major != LL_ABI_MAJOR)
        return refuse(control, connection,
                      LL_ERR(LL_E_ABI,
                             "the runtime speaks wire version %u.%u, the library %u.%u: install "
                             "matching versions",
                             LL_ABI_MAJOR, LL_ABI_MINOR, hello->abi_major, hello->abi_minor));
    if (control->is_draining)
        return refuse(control, connection,
                      LL_ERR(LL_E_DRAINING, "the runtime is stopping and takes no new clients"));
    rc = ll_control_open_pidfd(connection->fd, connection->pid, &connection->pid_fd);
    if (rc < 0)
        return false; /* gone already */
    rc = ll_control_make_attachment(control, connection, hello, &layout);
    if (rc < 0)
        return refuse(control, connection, rc == -EMFILE || rc == -ENFILE ? LL_E_QUOTA : rc);
    struct ll_attachment *attachment = connection->attachment;
    attachment->pid_fd = connection->pid_fd;
    rc = send_offer(control, attachment, &layout);
    if (rc < 0) {
        ll_debug("offer to pid %ld: %s", (long)connection->pid, ll_err_text());
        return false;
    }
    connection->stage = LL_STAGE_OFFERED;
    connection->deadline_ns = ll_now_ns() + LL_ATTACH_NS;
    return true;
}

static bool read_mapped(struct ll_control *control, struct ll_connection *connection,
                        const struct ll_msg_mapped *mapped, size_t n_bytes)
{
    struct ll_attachment *attachment = connection->attachment;
    struct ll_place *place = &control->place[attachment->id];
    uint32_t index = (uint32_t)(connection - control->connection);

    if (n_bytes < sizeof(*mapped) || mapped->head.type != LL_MSG_MAPPED ||
        mapped->epoch != control->info->epoch)
        return refuse(control, connection,
                      LL_ERR(LL_E_PROTOCOL, "an OFFER is answered by MAPPED with its epoch"));
    int rc = ll_control_take_regions(control, attachment);
    if (rc < 0)
        return refuse(control, connection, rc);
    if (connection->pid_fd >= 0 && ll_control_epoll_add(control, connection->pid_fd, EPOLLIN,
                                                        LL_KIND_PID, connection->gen, index) < 0)
        return refuse(control, connection, LL_E_QUOTA);
    connection->stage = LL_STAGE_ATTACHED;
    place->state = LL_PLACE_ATTACHED;
    place->attached_ns = ll_now_ns();
    /* ATTACH before READY: the client's first word must not find a stranger's id. */
    ll_control_mail(control, LL_MAIL_ATTACH, attachment, 0);
    ll_stat_add(&control->stats->attaches, 1);
    ll_debug("attached %u.%u \"%s\" pid %ld uid %u", attachment->id, attachment->incarnation,
             attachment->name, (long)attachment->pid, attachment->uid);

    struct ll_msg_ready ready = {.head = {LL_MSG_MAGIC, LL_MSG_READY, sizeof(ready)},
                                 .epoch = control->info->epoch};
    return ll_msg_send(connection->fd, &ready, sizeof(ready), NULL, 0) == 0;
}

/* SWEEP or BYE. */
static bool read_attached(struct ll_control *control, struct ll_connection *connection,
                          const struct ll_msg_head *head)
{
    if (head->type == LL_MSG_BYE) {
        ll_control_close(control, connection, false);
        return true;
    }
    uint64_t now_ns = ll_now_ns();
    if (now_ns - connection->sweeps_ns > LL_NS_PER_S) {
        connection->sweeps_ns = now_ns;
        connection->n_sweeps = 0;
    }
    if (head->type != LL_MSG_SWEEP || ++connection->n_sweeps > LL_CONTROL_SWEEPS_MAX) {
        ll_control_refuse(connection->fd, LL_MSG_KICK, LL_E_PROTOCOL,
                          "only SWEEP (at most 10 a second) and BYE are sent after READY");
        return false;
    }
    ll_control_mail(control, LL_MAIL_SWEEP, connection->attachment, 0);
    return true;
}

bool ll_control_read(struct ll_control *control, struct ll_connection *connection)
{
    union {
        struct ll_msg_head head;
        struct ll_msg_hello hello;
        struct ll_msg_mapped mapped;
        uint8_t bytes[LL_MSG_BYTES_MAX];
    } message;
    int n = ll_msg_recv(connection->fd, &message, sizeof(message));

    if (n == -EAGAIN || n == -EINTR)
        return true;
    if (n == 0 || (n < 0 && n != LL_E_PROTOCOL))
        return false; /* hung up */
    if (n < 0) {
        if (connection->stage != LL_STAGE_ATTACHED)
            return refuse(control, connection, n);
        ll_control_refuse(connection->fd, LL_MSG_KICK, n, ll_err_text());
        return false;
    }
    switch (connection->stage) {
    case LL_STAGE_HELLO:
        return read_hello(control, connection, &message.hello, (size_t)n);
    case LL_STAGE_OFFERED:
        if (message.head.type == LL_MSG_BYE)
            return false;
        return read_mapped(control, connection, &message.mapped, (size_t)n);
    default:
        return read_attached(control, connection, &message.head);
    }
}

/* ---- the end ------------------------------------------------------------------------------*/

void ll_control_close(struct ll_control *control, struct ll_connection *connection, bool has_died)
{
    struct ll_attachment *attachment = connection->attachment;

    LL_ASSERT(connection->stage != LL_STAGE_FREE);
    /* By name: a closed descriptor stays in the set while a forked child holds a copy of it. */
    struct ll_debt none = {0},
                   *debt = attachment != NULL ? &attachment->domain->control_debt : &none;
    struct ll_debt_call call = ll_debt_begin(debt, &ll_control_clock);
    epoll_ctl(control->epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);
    close(connection->fd); /* wakes whoever watches the other end */
    ll_debt_end(debt, &ll_control_clock, &call);
    if (connection->pid_fd >= 0) {
        epoll_ctl(control->epoll_fd, EPOLL_CTL_DEL, connection->pid_fd, NULL);
        close(connection->pid_fd);
    }
    if (connection->stage == LL_STAGE_ATTACHED) {
        attachment->socket_fd = attachment->pid_fd = -1;
        control->place[attachment->id].state = LL_PLACE_LEAVING;
        ll_stat_add(&control->stats->detaches, 1);
        if (has_died)
            ll_stat_add(&control->stats->clients_died, 1);
        ll_debug("detaching %u.%u \"%s\"%s", attachment->id, attachment->incarnation,
                 attachment->name, has_died ? ", died" : "");
        ll_control_mail(control, LL_MAIL_DETACH, attachment, has_died);
    } else if (attachment != NULL) {
        ll_control_free_attachment(control, attachment);
    }
    *connection = (struct ll_connection){.gen = connection->gen + 1, .fd = -1, .pid_fd = -1};
}

void ll_control_release(struct ll_control *control, struct ll_attachment *attachment)
{
    LL_ASSERT(control->place[attachment->id].state == LL_PLACE_LEAVING);
    ll_control_free_attachment(control, attachment);
}
