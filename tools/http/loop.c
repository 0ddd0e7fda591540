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
#include "tools/http/balance.h"
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

#define ACCEPTS_A_TURN 64
#define TICK_MS        200 /* deadlines; health; another try to attach */
#define LOG_NS         (10 * LL_NS_PER_S)
#define SOCKET_BYTES                                                                               \
    (128 << 10) /* else the kernel keeps megabytes for a reader that takes none                    \
                 */

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
    attachments_try(loop, now_ns);
    if (loop->index == 0)
        balance_look(loop);
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
    attachments_end(loop);
}

static void *loop_run(void *context)
{
    struct loop *loop = context;
    struct server *server = loop->server;
    bool has_more = false;

    attachments_try(loop, ll_now_ns());
    for (;;) {
        /* Acquire, pairs with the release in server_stop(). */
        if (atomic_load_explicit(&server->is_draining, memory_order_acquire) && drain(loop))
            break;
        bool is_ready = has_more || attachments_arm(loop);
        /* EVLOOP_ONCE always: without it libevent goes round until nothing is ready, and what is
         * level-triggered and for the turn to take stays ready. */
        event_base_loop(loop->base, EVLOOP_ONCE | (is_ready ? EVLOOP_NONBLOCK : 0));
        take_done_work(loop);
        has_more = attachments_poll(loop);
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
    attachments_init(loop);
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
