/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/conn.c - one client's connection: reads requests, sends replies, keeps deadlines.
 *
 * A connection is always read, also while it waits for an answer: that is how its end is seen at
 * once. What comes meanwhile is kept for later, up to a bound. */
#include "tools/http/job.h"
#include "tools/http/server.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_BYTES  16384
#define KEEP_BYTES  65536 /* an empty buffer larger than that is given back */
#define COUNT_BYTES 65536 /* bodies count towards the server's total in such steps */

static void on_event(evutil_socket_t fd, short what, void *context);

/* ---- life -------------------------------------------------------------------------------------*/

static void want(struct conn *conn, short wanted)
{
    if (wanted == conn->wanted)
        return;
    if (conn->wanted != 0)
        event_del(&conn->event);
    conn->wanted = wanted;
    event_assign(&conn->event, conn->loop->base, conn->fd, (short)(wanted | EV_PERSIST), on_event,
                 conn);
    event_add(&conn->event, NULL);
}

static void refuse(struct loop *loop, int fd)
{
    static const char reply[] = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n"
                                "Retry-After: 1\r\nConnection: close\r\n\r\n";

    ll_hist_bump(&loop->figures.connections_refused, 1);
    if (send(fd, reply, sizeof(reply) - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        ll_debug("a connection too many left before it was told");
    close(fd);
}

/* Of all loops: the kernel divides connections among them by chance, not evenly. */
void conn_open(struct loop *loop, int fd)
{
    const struct server_options *options = &loop->server->options;
    struct conn *conn = NULL;
    uint32_t n_conns = atomic_load_explicit(&loop->n_conns, memory_order_relaxed);

    if (server_n_conns(loop->server) < options->connections_max)
        conn = calloc(1, sizeof(*conn));
    if (conn == NULL) {
        refuse(loop, fd);
        return;
    }
    conn->loop = loop;
    conn->fd = fd;
    conn->serial = ++loop->serial;
    conn->since_ns = conn->sent_ns = ll_now_ns();
    http_parser_init(&conn->parser, options->body_bytes_max);
    conn->next = loop->conns;
    if (loop->conns != NULL)
        loop->conns->prev = conn;
    loop->conns = conn;
    atomic_store_explicit(&loop->n_conns, n_conns + 1, memory_order_relaxed);
    ll_hist_bump(&loop->figures.connections, 1);
    want(conn, EV_READ);
}

static void count_body(struct conn *conn, uint64_t n)
{
    /* Relaxed: a sum for a limit, it publishes nothing. */
    atomic_fetch_add_explicit(&conn->loop->server->body_bytes, n - conn->counted_body,
                              memory_order_relaxed);
    conn->counted_body = n;
}

static void conn_free(struct conn *conn)
{
    struct loop *loop = conn->loop;

    if (conn->wanted != 0)
        event_del(&conn->event);
    close(conn->fd);
    if (conn->prev != NULL)
        conn->prev->next = conn->next;
    else
        loop->conns = conn->next;
    if (conn->next != NULL)
        conn->next->prev = conn->prev;
    atomic_store_explicit(&loop->n_conns,
                          atomic_load_explicit(&loop->n_conns, memory_order_relaxed) - 1,
                          memory_order_relaxed);
    count_body(conn, 0);
    http_parser_free(&conn->parser);
    buffer_free(&conn->pipelined);
    buffer_free(&conn->out);
    free(conn);
}

void conn_touch(struct conn *conn)
{
    if (conn->is_dirty)
        return;
    conn->is_dirty = true;
    conn->next_dirty = conn->loop->dirty;
    conn->loop->dirty = conn;
}

void conn_close(struct conn *conn)
{
    struct job *job = conn->job;

    if (conn->is_dead)
        return;
    conn->is_dead = true;
    conn->job = NULL;
    if (job != NULL)
        job_abandon(job);
    conn_touch(conn);
}

/* ---- replies ----------------------------------------------------------------------------------*/

static void put_header(struct buffer *out, const char *name, const char *value)
{
    buffer_printf(out, "%s: %s\r\n", name, value);
}

static void put_status(struct conn *conn, int status, const char *type)
{
    struct buffer *out = &conn->out;
    /* Relaxed: an advice; a request that slips by is answered as well. */
    if (atomic_load_explicit(&conn->loop->server->is_draining, memory_order_relaxed))
        conn->closes = true;
    if (!conn->parser.keeps_alive)
        conn->closes = true;
    if (conn_unsent(conn) == 0)
        conn->sent_ns = ll_now_ns();
    conn->status = status;
    ll_hist_bump(&conn->loop->figures.requests[status / 100 % STATUS_CLASSES], 1);
    buffer_printf(out, "HTTP/1.1 %d %s\r\n", status, http_reason(status));
    if (type != NULL)
        put_header(out, "Content-Type", type);
    if (conn->request_id[0] != '\0')
        put_header(out, "X-Request-Id", conn->request_id);
    if (conn->closes)
        put_header(out, "Connection", "close");
    else if (conn->parser.is_1_0)
        put_header(out, "Connection", "keep-alive");
}

void conn_finish(struct conn *conn)
{
    conn->state =
        CONN_BUSY; /* until conn_settle(): what is kept is not read in the middle of this */
    conn->job = NULL;
    conn->is_chunked = false;
    count_body(conn, 0);
    if (ll_now_ns() > conn->request_ns && conn->request_ns != 0)
        ll_debug("%s %.*s: %d, %.1f ms", conn->parser.method == HTTP_GET ? "GET" : "POST",
                 (int)ll_min_u64(conn->parser.path.n, 64),
                 conn->parser.head.data != NULL ? conn->parser.head.data + conn->parser.path.offset
                                                : "",
                 conn->status, (double)(ll_now_ns() - conn->request_ns) / 1e6);
    conn->request_ns = 0;
    http_parser_next(&conn->parser);
    conn->request_id[0] = '\0';
    conn->state = CONN_READING;
    conn->since_ns = ll_now_ns();
    conn_touch(conn);
}

void conn_reply(struct conn *conn, int status, const char *type, const char *body, size_t n,
                const struct http_header_out *extra)
{
    put_status(conn, status, type);
    for (; extra != NULL && extra->name != NULL; extra++)
        put_header(&conn->out, extra->name, extra->value);
    if (status != 204)
        buffer_printf(&conn->out, "Content-Length: %zu\r\n", n);
    buffer_text(&conn->out, "\r\n");
    if (conn->parser.method != HTTP_HEAD)
        buffer_put(&conn->out, body, n);
    conn_finish(conn);
}

void conn_reply_error(struct conn *conn, int status, const char *message, const char *param,
                      uint32_t retry_ms)
{
    struct http_header_out extra[4] = {{NULL, NULL}};
    struct buffer body = {0};
    char seconds[16], milliseconds[16];
    uint32_t n = 0;

    error_json(&body, status, message, param);
    if (retry_ms > 0) {
        snprintf(seconds, sizeof(seconds), "%u", (retry_ms + 999) / 1000);
        snprintf(milliseconds, sizeof(milliseconds), "%u", retry_ms);
        extra[n++] = (struct http_header_out){"Retry-After", seconds};
        extra[n++] = (struct http_header_out){"Retry-After-Ms", milliseconds};
    }
    if (status == 401)
        extra[n++] = (struct http_header_out){"WWW-Authenticate", "Bearer"};
    extra[n] = (struct http_header_out){NULL, NULL};
    conn_reply(conn, status, "application/json", body.data, body.n, extra);
    buffer_free(&body);
}

void conn_stream_begin(struct conn *conn, const char *type)
{
    conn->is_chunked = !conn->parser.is_1_0;
    if (!conn->is_chunked)
        conn->closes = true; /* HTTP/1.0: the end of the connection is the end of the stream */
    put_status(conn, 200, type);
    put_header(&conn->out, "Cache-Control", "no-cache");
    put_header(&conn->out, "X-Accel-Buffering", "no");
    if (conn->is_chunked)
        put_header(&conn->out, "Transfer-Encoding", "chunked");
    buffer_text(&conn->out, "\r\n");
}

/* The size line of an HTTP chunk. */
static void put_chunk_size(struct buffer *out, size_t n)
{
    char text[18];
    size_t at = sizeof(text);

    text[--at] = '\n';
    text[--at] = '\r';
    do
        text[--at] = "0123456789abcdef"[n % 16];
    while ((n /= 16) > 0);
    buffer_put(out, text + at, sizeof(text) - at);
}

void conn_stream_put(struct conn *conn, const char *bytes, size_t n)
{
    if (n == 0)
        return;
    if (conn_unsent(conn) == 0)
        conn->sent_ns = ll_now_ns();
    if (conn->is_chunked)
        put_chunk_size(&conn->out, n);
    buffer_put(&conn->out, bytes, n);
    if (conn->is_chunked)
        buffer_put(&conn->out, "\r\n", 2);
    conn_touch(conn);
}

void conn_stream_end(struct conn *conn)
{
    if (conn->is_chunked)
        buffer_text(&conn->out, "0\r\n\r\n");
    conn_finish(conn);
}

/* ---- reading ----------------------------------------------------------------------------------*/

static void keep(struct conn *conn, const char *bytes, size_t n)
{
    if (conn->pipelined.n + n > PIPELINED_BYTES_MAX) {
        conn_close(conn); /* nobody needs so much in advance */
        return;
    }
    buffer_put(&conn->pipelined, bytes, n);
    if (conn->pipelined.has_failed)
        conn_close(conn);
}

static void refuse_request(struct conn *conn)
{
    conn->closes = true;
    conn_reply_error(conn, conn->parser.status, conn->parser.reason, NULL,
                     conn->parser.status == 503 ? 1000 : 0);
}

/* Has the memory of all bodies together passed its limit? */
static bool is_body_too_much(struct conn *conn)
{
    uint64_t n = conn->parser.body.n;

    if (n < COUNT_BYTES || n < conn->counted_body + COUNT_BYTES)
        return false;
    count_body(conn, n);
    return atomic_load_explicit(&conn->loop->server->body_bytes, memory_order_relaxed) >
           BODY_BYTES_TOTAL_MAX;
}

static void feed(struct conn *conn, const char *bytes, size_t n)
{
    bool may_be_done = false; /* a head without a body: it is done without further bytes */

    while ((n > 0 || may_be_done) && !conn->is_dead && !conn->closes) {
        size_t n_used;
        if (conn->state != CONN_READING || conn_unsent(conn) > OUT_BYTES_HOLD) {
            keep(conn, bytes, n); /* who does not take replies gets no more of them */
            return;
        }
        if (!http_parser_has_begun(&conn->parser))
            conn->since_ns = ll_now_ns();
        enum http_progress progress = http_parser_feed(&conn->parser, bytes, n, &n_used);
        bytes += n_used;
        n -= n_used;
        may_be_done = false;
        if (progress == HTTP_BAD) {
            refuse_request(conn);
        } else if (progress == HTTP_HEAD_DONE) {
            conn->since_ns = ll_now_ns();
            if (!route_check_head(conn))
                continue;
            if (conn->parser.expects_continue)
                buffer_text(&conn->out, "HTTP/1.1 100 Continue\r\n\r\n");
            conn_touch(conn);
            may_be_done = true;
        } else if (progress == HTTP_DONE) {
            conn->request_ns = ll_now_ns();
            route(conn);
        } else if (is_body_too_much(conn)) {
            conn->closes = true;
            conn_reply_error(conn, 503, "too many large requests at once: try again in a second",
                             NULL, 1000);
        }
    }
}

static void receive(struct conn *conn)
{
    char bytes[READ_BYTES];

    for (int i = 0; i < 4 && !conn->is_dead; i++) {
        ssize_t n = recv(conn->fd, bytes, sizeof(bytes), 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            conn_close(conn);
            return;
        }
        if (conn->state != CONN_LINGER && !conn->closes)
            feed(conn, bytes, (size_t)n);
        else if (conn->state == CONN_BUSY || conn->state == CONN_AWAY)
            keep(conn, bytes, (size_t)n);
        if ((size_t)n < sizeof(bytes))
            return;
    }
}

/* ---- sending ----------------------------------------------------------------------------------*/

static void send_out(struct conn *conn)
{
    struct buffer *out = &conn->out;

    while (conn->n_sent < out->n) {
        ssize_t n = send(conn->fd, out->data + conn->n_sent, out->n - conn->n_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN) {
            conn_close(conn);
            return;
        }
        if (n < 0)
            break;
        conn->n_sent += (size_t)n;
        if (conn->n_sent < out->n)
            conn->sent_ns = ll_now_ns();
    }
    if (conn->n_sent == out->n) {
        conn->n_sent = 0;
        out->n = 0;
        if (out->capacity > KEEP_BYTES)
            buffer_free(out);
    } else if (conn->n_sent > KEEP_BYTES) {
        memmove(out->data, out->data + conn->n_sent, out->n - conn->n_sent);
        out->n -= conn->n_sent;
        conn->n_sent = 0;
    }
}

/* Requests that came while the last one was answered. */
static void take_kept(struct conn *conn)
{
    while (conn->state == CONN_READING && conn->pipelined.n > 0 && !conn->closes &&
           !conn->is_dead && conn_unsent(conn) <= OUT_BYTES_HOLD) {
        struct buffer kept = conn->pipelined;
        conn->pipelined = (struct buffer){0};
        feed(conn, kept.data, kept.n);
        buffer_free(&kept);
    }
}

void conn_settle(struct conn *conn)
{
    if (!conn->is_dead && conn->out.has_failed)
        conn_close(conn);
    if (!conn->is_dead && conn->job != NULL)
        job_flush(conn->job);
    take_kept(conn);
    if (!conn->is_dead)
        send_out(conn);
    if (!conn->is_dead && conn->job != NULL)
        job_flush(conn->job); /* what could be sent may release what is held */
    conn->is_dirty = false;
    if (conn->is_dead) {
        conn_free(conn);
        return;
    }
    bool is_done = conn->closes && conn->state == CONN_READING && conn_unsent(conn) == 0;
    if (is_done) {
        /* Closing at once would reset the connection where bytes of the client are unread, and the
         * reply might be lost with it. */
        shutdown(conn->fd, SHUT_WR);
        conn->state = CONN_LINGER;
        conn->since_ns = ll_now_ns();
    }
    want(conn, (short)(EV_READ | (conn_unsent(conn) > 0 ? EV_WRITE : 0)));
}

static void on_event(evutil_socket_t fd, short what, void *context)
{
    struct conn *conn = context;

    (void)fd;
    if (what & EV_READ)
        receive(conn);
    conn_touch(conn);
}

/* ---- deadlines --------------------------------------------------------------------------------*/

static void time_out(struct conn *conn, const char *what)
{
    conn->closes = true;
    conn_reply_error(conn, 408, what, NULL, 0);
}

void conn_tick(struct conn *conn, uint64_t now_ns)
{
    uint64_t waited_ns = now_ns > conn->since_ns ? now_ns - conn->since_ns : 0;
    uint64_t body_ns = BODY_DEADLINE_NS + conn->parser.body.n / 1024 * LL_NS_PER_S;

    if (conn->is_dead)
        return;
    if (conn_unsent(conn) > 0 && now_ns > conn->sent_ns &&
        now_ns - conn->sent_ns > STALL_DEADLINE_NS) {
        conn_close(conn);
        return;
    }
    if (conn->state == CONN_LINGER && waited_ns > LINGER_DEADLINE_NS) {
        conn_close(conn);
    } else if (conn->state == CONN_READING && !conn->closes) {
        if (!http_parser_has_begun(&conn->parser)) {
            if (waited_ns > IDLE_DEADLINE_NS && conn_unsent(conn) == 0)
                conn_close(conn);
        } else if (http_parser_in_head(&conn->parser)) {
            if (waited_ns > HEAD_DEADLINE_NS)
                time_out(conn, "the request's headers took more than 10 s to come");
        } else if (waited_ns > body_ns) {
            time_out(conn, "the request's body came too slowly");
        }
    }
}
