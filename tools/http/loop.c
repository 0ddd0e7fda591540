/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/loop.c - one event thread: sockets, the attachment to the runtime, and their turns.
 *
 * A turn: what workers finished, what the runtime wrote, what the sockets brought; then each
 * connection with news is sent to once, so that tokens which came together leave together. Before
 * it sleeps the thread arms the attachment, so that no token waits for a timer. */
#include "tools/http/work.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "tools/http/loop.h"
#include "tools/http/metrics.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define OUTPUTS_A_POLL 128
#define POLLS_A_TURN   8 /* then the sockets have their turn */
#define ACCEPTS_A_TURN 64
#define TICK_MS        200 /* deadlines; health; another try to attach */
#define LOG_NS         (10 * LL_NS_PER_S)
#define ARENA_BYTES    (16u << 20)
#define SOCKET_BYTES                                                                               \
    (128 << 10) /* else the kernel keeps megabytes for a reader that takes none                    \
                 */

/* ---- the attachment ---------------------------------------------------------------------------*/

struct link *link_open(const struct server *server, int *code)
{
    const struct ll_client_options options = {.struct_bytes = sizeof(options),
                                              .n_slots = server->options.n_slots,
                                              .arena_bytes = ARENA_BYTES,
                                              .socket = server->options.socket,
                                              .name = "llring-http"};
    struct link *link = calloc(1, sizeof(*link));
    int rc;

    if (link == NULL) {
        *code = LL_ERR(-ENOMEM, "no memory for an attachment");
        return NULL;
    }
    atomic_init(&link->n_refs, 1);
    link->info.struct_bytes = sizeof(link->info);
    rc = ll_client_open(&link->client, &options);
    if (rc == 0)
        rc = ll_client_info(link->client, &link->info);
    if (rc == 0 && link->info.tokenizer != NULL)
        rc = ll_tokenizer_from_image(&link->tokenizer, link->info.tokenizer,
                                     link->info.tokenizer_bytes);
    if (rc < 0) {
        *code = rc;
        ll_client_close(link->client);
        free(link);
        return NULL;
    }
    link->chat_format = ll_chat_format_find(link->info.chat_format);
    return link;
}

struct link *link_hold(struct link *link)
{
    /* Relaxed: whoever holds one reference may make another. */
    atomic_fetch_add_explicit(&link->n_refs, 1, memory_order_relaxed);
    return link;
}

void link_release(struct link *link)
{
    /* Acquire and release, pairs with itself in other threads: the last one to let go sees all that
     * the others did with the link. */
    if (atomic_fetch_sub_explicit(&link->n_refs, 1, memory_order_acq_rel) != 1)
        return;
    ll_tokenizer_free(link->tokenizer);
    ll_client_close(link->client);
    free(link);
}

static void say_down(struct loop *loop, int code, const char *text)
{
    loop->link_code = code;
    snprintf(loop->link_text, sizeof(loop->link_text), "%s", text);
}

static void on_runtime(evutil_socket_t fd, short what, void *context)
{
    (void)fd, (void)what, (void)context; /* the turn polls */
}

static void attach(struct loop *loop)
{
    struct server *server = loop->server;
    int code = 0;

    loop->link = link_open(server, &code);
    if (loop->link == NULL) {
        if (loop->link_code != code && loop->index == 0)
            ll_info("waiting for the runtime: %s", ll_error_text());
        say_down(loop, code, ll_error_text());
        return;
    }
    loop->link_code = 0;
    bool is_again = loop->was_attached;
    loop->was_attached = true;
    event_assign(&loop->runtime, loop->base, ll_client_fd(loop->link->client), EV_READ | EV_PERSIST,
                 on_runtime, loop);
    event_add(&loop->runtime, NULL);
    /* Relaxed: only decides who greets. */
    if (!atomic_exchange_explicit(&server->has_said_hello, true, memory_order_relaxed))
        server_say_hello(server, loop->link);
    else if (loop->index == 0 && is_again)
        ll_info("attached to the runtime again: model %s", loop->link->info.model);
}

/* The attachment is over; its requests have had their errors. */
static void detach(struct loop *loop, int code)
{
    struct link *link = loop->link;
    char text[256];

    snprintf(text, sizeof(text), "%s", ll_error_text());
    if (loop->index == 0)
        ll_warn("the runtime is lost: %s", text);
    event_del(&loop->runtime);
    say_down(loop, code, text);
    loop->link = NULL;
    jobs_fail_waiting(loop, code, text);
    link_release(link);
}

/* Takes what the runtime wrote; true when there may be more. */
static bool take_outputs(struct loop *loop)
{
    struct ll_output output[OUTPUTS_A_POLL];

    for (int i = 0; i < POLLS_A_TURN; i++) {
        int n = ll_client_poll(loop->link->client, output, OUTPUTS_A_POLL);
        if (n < 0) {
            detach(loop, n);
            return false;
        }
        for (int k = 0; k < n; k++)
            job_output(&output[k]);
        if (n < OUTPUTS_A_POLL)
            return false;
    }
    return true;
}

/* ---- turns ------------------------------------------------------------------------------------*/

static struct work *take_inbox(struct loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    struct work *list = loop->inbox;
    loop->inbox = NULL;
    pthread_mutex_unlock(&loop->lock);
    return list;
}

static void take_done_work(struct loop *loop)
{
    struct work *list = take_inbox(loop);

    while (list != NULL) {
        struct work *work = list;
        struct conn *conn = loop->conns;
        list = work->next;
        while (conn != NULL && conn->serial != work->serial)
            conn = conn->next;
        route_work_done(conn, work);
    }
}

void loop_post(struct loop *loop, struct work *work)
{
    const uint64_t one = 1;

    pthread_mutex_lock(&loop->lock);
    work->next = loop->inbox;
    loop->inbox = work;
    pthread_mutex_unlock(&loop->lock);
    if (write(loop->wake_fd, &one, sizeof(one)) < 0)
        ll_debug("a wake-up was lost"); /* the next tick sees the work */
}

static void settle_conns(struct loop *loop)
{
    while (loop->dirty != NULL) {
        struct conn *list = loop->dirty;
        loop->dirty = NULL;
        while (list != NULL) {
            struct conn *conn = list;
            list = conn->next_dirty;
            conn_settle(conn);
        }
    }
}

static void on_wake(evutil_socket_t fd, short what, void *context)
{
    uint64_t count;

    (void)what, (void)context;
    if (read(fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
        ll_debug("the wake-up descriptor: %s", strerror(errno));
}

static void on_accept(evutil_socket_t listen_fd, short what, void *context)
{
    struct loop *loop = context;
    int one = 1, bytes = SOCKET_BYTES;

    (void)what;
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) {
            /* Else the same error would come at once again and again. The tick listens again. */
            event_del(&loop->listen[0]);
            event_del(&loop->listen[1]);
            loop->is_deaf = true;
            return;
        }
        if (fd < 0)
            return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* fails on a Unix socket */
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
        conn_open(loop, fd);
    }
}

static void listen_again(struct loop *loop)
{
    for (int i = 0; i < 2; i++)
        if (loop->listen_fd[i] >= 0 && !loop->is_draining)
            event_add(&loop->listen[i], NULL);
    loop->is_deaf = false;
}

static void on_tick(evutil_socket_t fd, short what, void *context)
{
    struct loop *loop = context;
    uint64_t now_ns = ll_now_ns();

    (void)fd, (void)what;
    if (loop->link == NULL)
        attach(loop);
    if (loop->is_deaf)
        listen_again(loop);
    for (struct conn *conn = loop->conns; conn != NULL; conn = conn->next)
        conn_tick(conn, now_ns);
    if (loop->index == 0 && now_ns - loop->log_ns > LOG_NS) {
        loop->log_ns = now_ns;
        metrics_log(loop->server);
    }
}

/* Stops accepting; idle connections go, the others after their reply. True when all are gone. */
static bool drain(struct loop *loop)
{
    struct conn *next;

    if (!loop->is_draining) {
        loop->is_draining = true;
        for (int i = 0; i < 2; i++)
            if (loop->listen_fd[i] >= 0)
                event_del(&loop->listen[i]);
    }
    for (struct conn *conn = loop->conns; conn != NULL; conn = next) {
        next = conn->next;
        if (conn->state == CONN_READING && conn_unsent(conn) == 0 &&
            !http_parser_has_begun(&conn->parser))
            conn_close(conn);
    }
    settle_conns(loop);
    /* Relaxed: polled until it is set. */
    return loop->conns == NULL ||
           atomic_load_explicit(&loop->server->must_stop, memory_order_relaxed);
}

static void end(struct loop *loop)
{
    struct work *list;

    while (loop->conns != NULL) {
        conn_close(loop->conns);
        settle_conns(loop);
    }
    while ((list = take_inbox(loop)) != NULL)
        for (struct work *next; list != NULL; list = next) {
            next = list->next;
            route_work_done(NULL, list);
        }
    if (loop->link != NULL) {
        event_del(&loop->runtime);
        link_release(loop->link);
        loop->link = NULL;
    }
}

static void *loop_run(void *context)
{
    struct loop *loop = context;
    struct server *server = loop->server;
    bool has_more = false;

    attach(loop);
    for (;;) {
        /* Acquire, pairs with the release in server_stop(). */
        if (atomic_load_explicit(&server->is_draining, memory_order_acquire) && drain(loop))
            break;
        int armed = 0;
        if (loop->link != NULL && !has_more) {
            armed = ll_client_arm(loop->link->client);
            if (armed < 0)
                say_down(loop, armed, ll_error_text());
            else
                loop->link_code = 0;
        }
        /* EVLOOP_ONCE always: without it libevent goes round until nothing is ready, and what is
         * level-triggered and for the turn to take stays ready. */
        event_base_loop(loop->base, EVLOOP_ONCE | (has_more || armed > 0 ? EVLOOP_NONBLOCK : 0));
        take_done_work(loop);
        has_more = loop->link != NULL && take_outputs(loop);
        if (loop->waiting != NULL && loop->link != NULL)
            jobs_resume(loop);
        settle_conns(loop);
    }
    end(loop);
    return NULL;
}

/* ---- making -----------------------------------------------------------------------------------*/

int loop_start(struct loop *loop, int tcp_fd, int unix_fd)
{
    const struct timeval tick = {.tv_usec = TICK_MS * 1000};
    const int fds[2] = {tcp_fd, unix_fd};

    pthread_mutex_init(&loop->lock, NULL);
    say_down(loop, LL_E_RUNTIME_LOST, "the runtime is not attached yet");
    loop->log_ns = ll_now_ns();
    loop->base = event_base_new();
    loop->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (loop->base == NULL || loop->wake_fd < 0)
        return LL_ERR(-ENOMEM, "the event loop could not be made");
    event_assign(&loop->wake, loop->base, loop->wake_fd, EV_READ | EV_PERSIST, on_wake, loop);
    event_add(&loop->wake, NULL);
    event_assign(&loop->tick, loop->base, -1, EV_PERSIST, on_tick, loop);
    event_add(&loop->tick, &tick);
    for (int i = 0; i < 2; i++) {
        loop->listen_fd[i] = fds[i];
        event_assign(&loop->listen[i], loop->base, fds[i], EV_READ | EV_PERSIST, on_accept, loop);
        if (fds[i] >= 0)
            event_add(&loop->listen[i], NULL);
    }
    int rc = pthread_create(&loop->thread, NULL, loop_run, loop);
    return rc != 0 ? ll_err_set_errno(rc, "an event thread could not be started") : 0;
}

void loop_wake(struct loop *loop)
{
    const uint64_t one = 1;

    if (write(loop->wake_fd, &one, sizeof(one)) < 0)
        ll_debug("a wake-up was lost");
}

void loop_free(struct loop *loop)
{
    event_base_free(loop->base);
    close(loop->wake_fd);
    pthread_mutex_destroy(&loop->lock);
}
