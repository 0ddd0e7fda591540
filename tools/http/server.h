/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/server.h - who owns what in llring-http.
 *
 *   server ── loop (one event thread each) ── attachment, one a runtime ── link
 *                  └─ conn (a client's connection) ── job (the generation it waits for)
 *
 *   V1  A loop's thread owns its base, link, connections and jobs. Others reach it through post().
 *   V2  A link lives as long as somebody uses its tokenizer: the loop, jobs, workers. Its client
 *       handle is the loop's alone; the last one to let go closes it.
 *   V3  A connection has at most one job. A job outlives its connection until the runtime has ended
 *       each of its requests: a client that left costs a cancel, never a dangling pointer.
 *   V4  Where several runtimes are given they serve the same model; one that does not is not used.
 *       A request lives and dies with the one it was submitted to.
 *   V5  Every length has its limit here; what passes one is answered with 4xx and closed. */
#ifndef TOOLS_HTTP_SERVER_H
#define TOOLS_HTTP_SERVER_H

#include "base/hist.h"
#include "ll/client.h"
#include "ll/text.h"
#include "tools/common/options.h"
#include "tools/http/parse.h"

#include <event2/event.h>
#include <event2/event_struct.h>
#include <pthread.h>
#include <stdatomic.h>

#define SERVER_THREADS_MAX  16
#define SERVER_RUNTIMES_MAX 16
#define STATS_MAX           256 /* figures that a runtime tells */

/* Limits with no option of their own. */
#define HEAD_DEADLINE_NS     (10 * LL_NS_PER_S) /* first byte to last header, absolute */
#define BODY_DEADLINE_NS     (30 * LL_NS_PER_S) /* and 1 s more for each KiB that came */
#define IDLE_DEADLINE_NS     (60 * LL_NS_PER_S)
#define STALL_DEADLINE_NS    (30 * LL_NS_PER_S) /* a reader that takes nothing */
#define LINGER_DEADLINE_NS   (2 * LL_NS_PER_S)  /* after the last byte, for the peer to close */
#define OUT_BYTES_HOLD       (256u << 10)       /* unsent: the stream's requests are held */
#define OUT_BYTES_RELEASE    (64u << 10)
#define BODY_BYTES_AWAY      (64u << 10)  /* larger bodies are parsed off the event thread */
#define BODY_BYTES_TOTAL_MAX (256u << 20) /* of all connections together, bodies past 64 KiB */
#define PIPELINED_BYTES_MAX  (64u << 10)  /* kept while a request is being answered */

struct server_options {
    const char *host;
    uint32_t port;
    const char *uds;
    struct option_texts api_keys;
    struct option_texts served_names;
    const char *socket;
    struct option_texts runtimes;
    uint32_t n_threads, n_slots, connections_max;
    uint64_t body_bytes_max;
    struct option_texts origins;
    const char *metrics_alias;
    bool print_examples, no_sandbox, has_host_or_port, wants_version;
    const char *log_level;
};

struct server;
struct loop;
struct job;

/* ---- runtimes ---------------------------------------------------------------------------------*/
struct runtime {
    const char *socket;                /* NULL: the default one */
    const char *name;                  /* for people and metrics: the socket */
    uint64_t key;                      /* its place among others; balance.h */
    _Atomic uint32_t n_open, n_others; /* requests: of all our loops; of others, as last told */
};

/* What a runtime changes when it reloads (ll_client_info()). It is never written again: the next
 * one takes its place, and all live as long as the link. */
struct link_model {
    const struct link_model *older; /* NULL: the first */
    uint64_t weights_epoch;
    char name[128];
    float temperature, top_p, min_p, repetition_penalty; /* default sampling */
    uint32_t top_k;
};

struct link {
    _Atomic uint32_t n_refs;
    _Atomic(const struct link_model *) model; /* link_model() */
    struct runtime *runtime;
    uint64_t text_key; /* equal: the same tokenizer, chat format and end ids */
    struct ll_client *client;
    struct ll_client_info info;
    struct ll_tokenizer *tokenizer; /* NULL: the runtime has none */
    enum ll_chat_format chat_format;
};
/* Attaches; NULL with *code set. */
struct link *link_open(const struct server *server, struct runtime *runtime, int *code);
struct link *link_hold(struct link *link);
void link_release(struct link *link);
/* The latest; any thread. */
static inline const struct link_model *link_model(const struct link *link)
{
    /* Acquire, pairs with the release in take_model(): the model before the pointer. */
    return atomic_load_explicit(&link->model, memory_order_acquire);
}
/* Looks whether the runtime has reloaded, at no cost worth speaking of; the loop's thread. */
void link_refresh(struct link *link);

/* ---- connections ------------------------------------------------------------------------------*/
enum conn_state {
    CONN_READING, /* a request, or waiting for one */
    CONN_AWAY,    /* the body is with a worker */
    CONN_BUSY,    /* a job runs */
    CONN_LINGER,  /* all is sent and the peer has been told: its close is awaited */
};

struct conn {
    struct loop *loop;
    struct conn *next, *prev; /* of the loop's list */
    int fd;
    enum conn_state state;
    struct event event; /* of the descriptor */
    short wanted;       /* EV_READ, EV_WRITE as added */
    struct http_parser parser;
    struct buffer pipelined; /* came while a request was being answered */
    struct buffer out;       /* out.data[n_sent ..] is unsent */
    size_t n_sent;
    bool closes;     /* after out is sent */
    bool is_chunked; /* a streaming reply is under way, in HTTP chunks */
    bool is_dead;    /* freed at the end of the turn */
    bool is_dirty;   /* on the loop's list of connections with news */
    struct conn *next_dirty;
    uint64_t since_ns;     /* begin of what the reading deadline is about */
    uint64_t sent_ns;      /* the peer last took something, or there was nothing to take */
    uint64_t counted_body; /* bytes in server.body_bytes */
    int status;            /* of the reply under way; for the log */
    uint64_t request_ns;   /* when the request was complete */
    char request_id[65];   /* X-Request-Id */
    struct job *job;       /* CONN_BUSY; CONN_AWAY: none yet */
    uint64_t serial;       /* names this connection to a worker (V1) */
};

struct http_header_out {
    const char *name, *value;
};
/* A whole reply. extra: NULL-ended, or NULL. */
void conn_reply(struct conn *conn, int status, const char *type, const char *body, size_t n,
                const struct http_header_out *extra);
/* An error as the OpenAI API words it; param may be NULL. retry_ms > 0 adds Retry-After. */
void conn_reply_error(struct conn *conn, int status, const char *message, const char *param,
                      uint32_t retry_ms);
/* Writes the head of a streaming reply. */
void conn_stream_begin(struct conn *conn, const char *type);
/* One HTTP chunk of a stream that has begun. */
void conn_stream_put(struct conn *conn, const char *bytes, size_t n);
void conn_stream_end(struct conn *conn);
/* Looks at the connection again at the end of the turn: sends, goes on, frees. */
void conn_touch(struct conn *conn);
/* The reply is complete: the next request may be read. */
void conn_finish(struct conn *conn);
void conn_close(struct conn *conn);
static inline size_t conn_unsent(const struct conn *conn)
{
    return conn->out.n - conn->n_sent;
}
/* The JSON of an error. */
void error_json(struct buffer *out, int status, const char *message, const char *param);

/* ---- loops ------------------------------------------------------------------------------------*/
#define STATUS_CLASSES 6
struct loop_figures {                          /* one writer each: the loop's thread; relaxed */
    _Atomic uint64_t requests[STATUS_CLASSES]; /* by status / 100 */
    _Atomic uint64_t connections, connections_refused, gone, streams, prompt_tokens, output_tokens,
        cached_tokens, finished_stop, finished_length, finished_tools, finished_abort, running;
    struct ll_hist ttft_ns, gap_ns, total_ns, prompt_length, output_length, max_tokens, n_choices;
    /* of a request, by the runtime's clock: to the first token, from there on, each token of that
     */
    struct ll_hist prefill_ns, decode_ns, per_token_ns;
};

struct work; /* work.h */

/* Of one loop to one runtime. */
struct attachment {
    struct loop *loop;
    struct link *link; /* NULL: none */
    int code;          /* why the runtime cannot be used now; 0: it can */
    char text[256];
    bool was_attached;
    uint64_t next_try_ns;
    struct event event; /* of the link's descriptor */
};

struct loop {
    struct server *server;
    uint32_t index;
    pthread_t thread;
    struct event_base *base;
    struct event listen[2], wake, tick;
    int listen_fd[2], wake_fd;
    struct attachment at[SERVER_RUNTIMES_MAX]; /* as server.runtime */
    struct link *link; /* what is to be known of the model: that of the first one usable, or else of
                        * the first attached; NULL: none is */
    int link_code;     /* why no runtime can be used now; 0: one can */
    const char *link_text;
    uint32_t n_picks; /* balance.h */
    struct conn *conns, *dirty;
    struct job *jobs, *waiting; /* all; with requests that found no slot */
    _Atomic uint32_t n_conns;   /* one writer, the loop's thread; relaxed: others look at it */
    uint64_t serial;
    pthread_mutex_t lock;
    struct work *inbox;        /* under lock; done */
    bool is_draining, is_deaf; /* deaf: out of descriptors, not listening for a moment */
    bool has_greeted;          /* it has had an attachment */
    uint64_t log_ns;
    struct loop_figures figures;
};

struct server {
    struct server_options options;
    struct loop *loop; /* [options.n_threads] */
    uint16_t port;
    bool is_loopback;
    struct runtime runtime[SERVER_RUNTIMES_MAX];
    uint32_t n_runtimes;
    const char *key[OPTION_TEXTS_MAX];
    uint32_t n_keys;
    uint64_t secret[2]; /* random: salts */
    _Atomic uint64_t body_bytes;
    _Atomic bool is_draining, must_stop;
    _Atomic uint32_t n_greeted;              /* loops that have had an attachment */
    int tcp_fd[SERVER_THREADS_MAX], unix_fd; /* -1: none */
    uint64_t start_time;                     /* of the epoch, seconds */
};

/* Takes the runtimes from the options; server_start() does it. */
void server_name_runtimes(struct server *server);
/* Makes sockets and threads. 0, or a negative code with its text. */
int server_start(struct server *server);
/* Stops accepting, lets running requests end for drain_s seconds, joins the threads. */
void server_stop(struct server *server, uint32_t drain_s);
/* Connections of all threads. Any thread. */
uint32_t server_n_conns(const struct server *server);
/* main.c: asked to stop a second time. */
bool server_is_hurried(void);
/* From any thread: loop takes the work at its next turn. */
void loop_post(struct loop *loop, struct work *work);
/* Makes a connection of an accepted descriptor; refuses it where there are too many. */
void conn_open(struct loop *loop, int fd);
/* Reads what was kept, sends what is there, goes on to the next request, frees: end of a turn. */
void conn_settle(struct conn *conn);
/* Looks at the connection's deadlines. */
void conn_tick(struct conn *conn, uint64_t now_ns);

/* ---- routes -----------------------------------------------------------------------------------*/
/* The head of a request is there: false when it was refused. */
bool route_check_head(struct conn *conn);
/* The whole request is there. */
void route(struct conn *conn);

#endif
