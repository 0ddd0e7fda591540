/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/admin.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "client/text/utf8.h"
#include "ll/client.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct peer {
    int fd; /* -1: none */
    uint64_t since_ns;
    char line[LL_ADMIN_LINE_MAX];
    uint32_t n_line;
    char *answer; /* [LL_ADMIN_ANSWER] */
    uint32_t n_answer, n_sent;
};

struct ll_admin {
    struct ll_admin_options options;
    int listen_fd;
    struct peer peer[LL_ADMIN_PEERS];
    struct ll_control_client client[LL_ATTACHMENTS_MAX]; /* scratch */
    struct ll_reload_report report;                      /* likewise */
};

/* ---- JSON ------------------------------------------------------------------------------------*/

static void put(struct peer *peer, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Appends; what does not fit is left out, and the end says so (see finish()). */
static void put(struct peer *peer, const char *format, ...)
{
    uint32_t left = LL_ADMIN_ANSWER - peer->n_answer;
    va_list args;

    va_start(args, format);
    int n = vsnprintf(peer->answer + peer->n_answer, left, format, args);
    va_end(args);
    if (n > 0)
        peer->n_answer += (uint32_t)ll_min_u64((uint64_t)n, left - 1);
}

/* A JSON string; names come from clients, so bytes that are no UTF-8 become U+FFFD. */
static void put_string(struct peer *peer, const char *text)
{
    size_t n = strlen(text);

    put(peer, "\"");
    while (n > 0) {
        uint32_t code = 0;
        int length = ll_utf8_decode(text, n, &code);
        if (length <= 0) {
            length = length < 0 ? -length : (int)n;
            put(peer, "\\ufffd");
        } else if (code < 0x20 || code == 0x7f || code == '"' || code == '\\') {
            put(peer, "\\u%04x", code);
        } else {
            put(peer, "%.*s", length, text);
        }
        text += length;
        n -= (size_t)length;
    }
    put(peer, "\"");
}

static void put_member(struct peer *peer, const char *name, const char *text)
{
    put(peer, "\"%s\":", name);
    put_string(peer, text);
    put(peer, ",");
}

/* ---- answers ---------------------------------------------------------------------------------*/

static const char *state_name(uint32_t state)
{
    static const char *const names[] = {"unknown", "starting", "ready", "draining", "dead"};

    return names[state < LL_COUNT(names) ? state : 0];
}

/* The whole STAT region, by its own table. */
static void put_stats(struct peer *peer, const struct ll_stat_region *stat)
{
    put(peer, "\"stats\":{");
    for (uint32_t i = 0; i < stat->n_entries; i++) {
        const struct ll_stat_entry *entry = &stat->entry[i];
        const void *at = (const char *)stat + entry->offset;
        put(peer, "%s\"%s\":", i > 0 ? "," : "", entry->name);
        if (entry->kind == LL_STAT_HIST) {
            const struct ll_hist *hist = at;
            put(peer,
                "{\"count\":%llu,\"sum\":%llu,\"p50\":%llu,\"p90\":%llu,\"p99\":%llu,"
                "\"max\":%llu}",
                (unsigned long long)ll_stat_get(&hist->count),
                (unsigned long long)ll_stat_get(&hist->sum),
                (unsigned long long)ll_hist_quantile(hist, 0.5),
                (unsigned long long)ll_hist_quantile(hist, 0.9),
                (unsigned long long)ll_hist_quantile(hist, 0.99),
                (unsigned long long)ll_stat_get(&hist->max));
        } else {
            put(peer, "%llu", (unsigned long long)ll_stat_get(at));
        }
    }
    put(peer, "},");
}

static void put_clients(struct ll_admin *admin, struct peer *peer, uint64_t now_ns)
{
    uint32_t n = ll_control_clients(admin->options.control, admin->client, LL_COUNT(admin->client));

    put(peer, "\"clients\":[");
    for (uint32_t i = 0; i < n && i < LL_COUNT(admin->client); i++) {
        const struct ll_control_client *client = &admin->client[i];
        put(peer, "%s{\"id\":%u,\"pid\":%ld,\"uid\":%u,", i > 0 ? "," : "", client->id,
            (long)client->pid, (unsigned)client->uid);
        put_member(peer, "name", client->name);
        put(peer, "\"slots\":%u,\"arena_bytes\":%u,\"domain\":%u,\"attached_s\":%.3f}",
            client->n_slots, client->arena_bytes, client->domain,
            (double)(now_ns - client->attached_ns) / 1e9);
    }
    put(peer, "]");
}

static void put_reload(struct ll_admin *admin, struct peer *peer)
{
    struct ll_reload_report *now = &admin->report;

    ll_reload_report(admin->options.reload, now);
    double seconds = (double)now->read_ns / 1e9;
    if (now->state == LL_RELOAD_CHECKING || now->state == LL_RELOAD_READING)
        seconds = (double)now->elapsed_ns / 1e9;
    put(peer, "\"reload\":{");
    put_member(peer, "state", ll_reload_state_name(now->state));
    put(peer, "\"id\":%llu,\"reserved\":%s,\"set\":%u,", (unsigned long long)now->id,
        now->is_reserved ? "true" : "false", now->set);
    put_member(peer, "model", now->model);
    put(peer, "\"bytes_done\":%llu,\"bytes_total\":%llu,\"read_s\":%.3f,\"gb_per_s\":%.3f,",
        (unsigned long long)now->bytes_done, (unsigned long long)now->bytes_total, seconds,
        seconds > 0 ? (double)now->bytes_done / 1e9 / seconds : 0);
    put(peer, "\"waited_s\":%.3f,\"elapsed_s\":%.3f,\"n_left\":%u,\"error\":%d,",
        (double)now->waited_ns / 1e9, (double)now->elapsed_ns / 1e9, now->n_left, now->code);
    put(peer, "\"message\":");
    put_string(peer, now->error);
    put(peer, "}");
}

static void answer_status(struct ll_admin *admin, struct peer *peer)
{
    const struct ll_admin_options *o = &admin->options;
    const struct ll_info_region *info = o->info;
    uint64_t now_ns = ll_now_ns();
    /* Relaxed: a report. */
    uint32_t reason = atomic_load_explicit(&info->rt_reason, memory_order_relaxed);
    uint64_t beat_ns = atomic_load_explicit(&info->heartbeat_ns, memory_order_relaxed);

    put(peer, "{");
    put_member(peer, "state",
               state_name(atomic_load_explicit(&info->rt_state, memory_order_relaxed)));
    put(peer, "\"reason\":%d,\"version\":\"%d.%d.%d\",\"pid\":%u,\"epoch\":\"%016llx\",",
        -(int)reason, LL_VERSION_MAJOR, LL_VERSION_MINOR, LL_VERSION_PATCH, info->pid,
        (unsigned long long)info->epoch);
    put(peer, "\"uptime_s\":%.3f,\"heartbeat_age_ms\":%.1f,",
        (double)(now_ns - o->stat->start_ns) / 1e9,
        beat_ns != 0 && now_ns > beat_ns ? (double)(now_ns - beat_ns) / 1e6 : 0.0);
    put_member(peer, "model", info->name);
    put_member(peer, "path", o->model);
    put_member(peer, "chat_format", info->chat_format);
    put_member(peer, "backend", info->backend);
    put_member(peer, "device", o->device);
    put_member(peer, "dtype", info->dtype);
    put(peer, "\"vocab\":%u,\"context_max\":%u,\"prompt_max\":%u,\"weights_epoch\":%llu,",
        info->n_vocab, info->context_max, info->n_prompt_max,
        (unsigned long long)info->weights_epoch);
    put(peer, "\"start\":[");
    for (uint32_t i = 0; i < o->n_phases; i++)
        put(peer, "%s{\"phase\":\"%s\",\"ms\":%.3f}", i > 0 ? "," : "", o->phase[i].name,
            (double)o->phase[i].ns / 1e6);
    put(peer, "],");
    put_reload(admin, peer);
    put(peer, ",");
    put_stats(peer, o->stat);
    put_clients(admin, peer, now_ns);
    put(peer, "}\n");
}

static void answer_error(struct peer *peer, int code, const char *text)
{
    put(peer, "{\"error\":%d,", code);
    put_member(peer, "message", text);
    put(peer, "\"commands\":[\"status\",\"drain\",\"reload\",\"adapters\",\"help\"]}\n");
}

/* "reload ..." after the first word. */
static void answer_reload(struct ll_admin *admin, struct peer *peer, const char *rest)
{
    static const char wait[] = "--reload-wait=", cut[] = "--cut ";
    struct ll_reload_order order = {.wait_s = UINT32_MAX};
    int rc = 0;

    for (rest += strspn(rest, " "); rc == 0 && strncmp(rest, "--", 2) == 0;
         rest += strspn(rest, " ")) {
        char *end = NULL;
        if (strncmp(rest, cut, sizeof(cut) - 1) == 0) {
            order.cuts = true;
            rest += sizeof(cut) - 1;
        } else if (strncmp(rest, wait, sizeof(wait) - 1) == 0 && isdigit(rest[sizeof(wait) - 1])) {
            order.wait_s =
                (uint32_t)ll_min_u64(strtoull(rest + sizeof(wait) - 1, &end, 10), 100000);
            rc = *end == ' ' ? 0 : LL_E_INVAL;
            rest = end;
        } else {
            rc = LL_E_INVAL;
        }
    }
    order.model = rest;
    if (rc < 0)
        LL_ERR(rc, "reload takes --reload-wait=SECONDS, --cut and then a directory");
    else if (rest[0] != 0)
        rc = ll_reload_begin(admin->options.reload, &order);
    if (rc < 0) {
        answer_error(peer, rc, ll_err_text());
        return;
    }
    put(peer, "{");
    put_reload(admin, peer);
    put(peer, "}\n");
}

static void answer(struct ll_admin *admin, struct peer *peer)
{
    if (strcmp(peer->line, "status") == 0) {
        answer_status(admin, peer);
    } else if (strcmp(peer->line, "drain") == 0) {
        ll_info("drain: asked for on the admin socket");
        ll_control_drain(admin->options.control);
        put(peer, "{\"state\":\"draining\"}\n");
    } else if (strcmp(peer->line, "adapters") == 0) {
        put(peer, "{\"adapters\":[]}\n");
    } else if (strncmp(peer->line, "reload", 6) == 0 &&
               (peer->line[6] == 0 || peer->line[6] == ' ')) {
        answer_reload(admin, peer, peer->line + 6);
    } else if (strcmp(peer->line, "help") == 0) {
        answer_error(peer, 0, "send one of these commands and a newline");
    } else {
        answer_error(peer, LL_E_INVAL, "unknown command: send one of these and a newline");
    }
    if (peer->n_answer >= LL_ADMIN_ANSWER - 1) { /* never half a JSON text */
        peer->n_answer = 0;
        answer_error(peer, -EOVERFLOW, "the answer is longer than 256 KiB");
    }
}

/* ---- connections -----------------------------------------------------------------------------*/

static void drop(struct ll_admin *admin, struct peer *peer)
{
    ll_control_unwatch(admin->options.control, peer->fd);
    close(peer->fd);
    peer->fd = -1;
}

/* Sends what fits; true: all of it went out, or the peer is gone. */
static bool send_some(struct peer *peer)
{
    while (peer->n_sent < peer->n_answer) {
        ssize_t n = send(peer->fd, peer->answer + peer->n_sent, peer->n_answer - peer->n_sent,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno != EAGAIN;
        peer->n_sent += (uint32_t)n;
    }
    return true;
}

static void on_writable(void *context, int fd, uint32_t events)
{
    struct ll_admin *admin = context;

    (void)events;
    for (int i = 0; i < LL_ADMIN_PEERS; i++)
        if (admin->peer[i].fd == fd && send_some(&admin->peer[i]))
            drop(admin, &admin->peer[i]);
}

/* The line is whole: cut off its end and answer. */
static void finish(struct ll_admin *admin, struct peer *peer)
{
    peer->line[strcspn(peer->line, "\r\n")] = 0;
    answer(admin, peer);
    if (send_some(peer)) {
        drop(admin, peer);
        return;
    }
    ll_control_unwatch(admin->options.control, peer->fd);
    if (ll_control_watch(admin->options.control, peer->fd, EPOLLOUT, on_writable, admin) < 0) {
        close(peer->fd);
        peer->fd = -1;
    }
}

static void on_readable(void *context, int fd, uint32_t events)
{
    struct ll_admin *admin = context;
    struct peer *peer = NULL;

    (void)events;
    for (int i = 0; i < LL_ADMIN_PEERS; i++)
        if (admin->peer[i].fd == fd)
            peer = &admin->peer[i];
    if (peer == NULL)
        return;
    /* read, not recvmsg: descriptors a peer attaches are dropped by the kernel (rule R1). */
    ssize_t n = read(fd, peer->line + peer->n_line, sizeof(peer->line) - 1 - peer->n_line);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0 || (n == 0 && peer->n_line == 0)) {
        drop(admin, peer);
        return;
    }
    peer->n_line += (uint32_t)n;
    peer->line[peer->n_line] = 0;
    if (n == 0 || memchr(peer->line, '\n', peer->n_line) != NULL ||
        peer->n_line == sizeof(peer->line) - 1)
        finish(admin, peer);
}

static void refuse_one(struct ll_admin *admin, int listen_fd)
{
    char text[128];
    int n = snprintf(text, sizeof(text),
                     "{\"error\":%d,\"message\":\"the runtime has no descriptor left: raise its "
                     "LimitNOFILE\"}\n",
                     -EMFILE);
    int fd = ll_control_accept_spare(admin->options.control, listen_fd);

    if (fd >= 0 && send(fd, text, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        ll_debug("admin socket: a peer is gone before it was refused");
    ll_control_close_spare(admin->options.control, fd);
}

static void on_connect(void *context, int fd, uint32_t events)
{
    struct ll_admin *admin = context;
    struct peer *peer = &admin->peer[0];

    (void)events;
    int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0) {
        if (errno == EMFILE || errno == ENFILE)
            refuse_one(admin, fd);
        return;
    }
    for (int i = 1; i < LL_ADMIN_PEERS && peer->fd >= 0; i++)
        if (admin->peer[i].fd < 0 || admin->peer[i].since_ns < peer->since_ns)
            peer = &admin->peer[i];
    if (peer->fd >= 0)
        drop(admin, peer);
    int size_bytes = LL_ADMIN_ANSWER;
    setsockopt(client, SOL_SOCKET, SO_SNDBUF, &size_bytes, sizeof(size_bytes)); /* best effort */
    peer->fd = client;
    peer->since_ns = ll_now_ns();
    peer->n_line = peer->n_answer = peer->n_sent = 0;
    if (ll_control_watch(admin->options.control, client, EPOLLIN, on_readable, admin) < 0) {
        close(client);
        peer->fd = -1;
    }
}

/* ---- open and close --------------------------------------------------------------------------*/

static int bind_socket(struct ll_admin *admin)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(admin->options.socket) >= sizeof(address.sun_path))
        return LL_ERR(-ENAMETOOLONG, "%s: too long for a socket's path", admin->options.socket);
    memcpy(address.sun_path, admin->options.socket, strlen(admin->options.socket));
    admin->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (admin->listen_fd < 0)
        return LL_ERRNO("socket");
    if (unlink(admin->options.socket) < 0 && errno != ENOENT)
        return LL_ERRNO("unlink %s", admin->options.socket);
    /* Nobody else's for the moment between bind and chmod either. */
    mode_t mask = umask(0177);
    int rc = bind(admin->listen_fd, (const struct sockaddr *)&address, sizeof(address));
    int error = errno;
    umask(mask);
    if (rc < 0)
        return ll_err_set_errno(error, "bind %s", admin->options.socket);
    if (listen(admin->listen_fd, LL_ADMIN_PEERS) < 0)
        return LL_ERRNO("listen %s", admin->options.socket);
    return ll_control_watch(admin->options.control, admin->listen_fd, EPOLLIN, on_connect, admin);
}

int ll_admin_open(struct ll_admin **out, const struct ll_admin_options *options)
{
    struct ll_admin *admin = calloc(1, sizeof(*admin));

    if (admin == NULL)
        return LL_ERR(-ENOMEM, "no memory for the admin socket");
    admin->options = *options;
    admin->listen_fd = -1;
    for (int i = 0; i < LL_ADMIN_PEERS; i++)
        admin->peer[i].fd = -1;
    int rc = 0;
    for (int i = 0; i < LL_ADMIN_PEERS && rc == 0; i++) {
        admin->peer[i].answer = malloc(LL_ADMIN_ANSWER);
        if (admin->peer[i].answer == NULL)
            rc = LL_ERR(-ENOMEM, "no memory for the admin socket");
    }
    if (rc == 0)
        rc = bind_socket(admin);
    if (rc < 0) {
        ll_admin_close(admin);
        return rc;
    }
    *out = admin;
    return 0;
}

void ll_admin_close(struct ll_admin *admin)
{
    if (admin == NULL)
        return;
    for (int i = 0; i < LL_ADMIN_PEERS; i++) {
        if (admin->peer[i].fd >= 0)
            drop(admin, &admin->peer[i]);
        free(admin->peer[i].answer);
    }
    if (admin->listen_fd >= 0) {
        ll_control_unwatch(admin->options.control, admin->listen_fd);
        close(admin->listen_fd);
        unlink(admin->options.socket);
    }
    free(admin);
}
