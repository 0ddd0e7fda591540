/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/route.c - who may ask for what. Every route but /health needs a key where keys are
 * set; a route that is not in the table does not exist. */
#include "tools/http/work.h"

#include "base/bits.h"
#include "base/clock.h"
#include "tools/http/metrics.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

static void get_health(struct conn *conn);
static void get_version(struct conn *conn);
static void get_models(struct conn *conn);
static void get_tokenizer_info(struct conn *conn);
static void get_metrics(struct conn *conn);

static const struct route {
    const char *path;
    void (*get)(struct conn *conn);
    void (*post)(struct work *work);
    bool is_open; /* needs no key */
} routes[] = {
    {"/health", get_health, NULL, true},
    {"/ping", get_health, NULL, true},
    {"/version", get_version, NULL, false},
    {"/metrics", get_metrics, NULL, false},
    {"/v1/models", get_models, NULL, false},
    {"/v1/chat/completions", NULL, work_chat, false},
    {"/v1/completions", NULL, work_completion, false},
    {"/v1/responses", NULL, work_responses, false},
    {"/tokenize", NULL, work_tokenize, false},
    {"/detokenize", NULL, work_detokenize, false},
    {"/tokenizer_info", get_tokenizer_info, NULL, false},
};
static const struct route one_model = {"/v1/models/", get_models, NULL, false};

static const struct route *find_route(const struct conn *conn)
{
    const struct http_parser *parser = &conn->parser;
    size_t n = strlen(one_model.path);

    for (size_t i = 0; i < LL_COUNT(routes); i++)
        if (http_parser_path_is(parser, routes[i].path))
            return &routes[i];
    if (parser->path.n > n &&
        memcmp(parser->head.data + parser->path.offset, one_model.path, n) == 0)
        return &one_model;
    return NULL;
}

/* ---- before the body --------------------------------------------------------------------------*/

/* Takes the same time wherever the two differ; only the length of what was sent shows. */
static bool is_equal(const char *sent, size_t n_sent, const char *key)
{
    size_t n_key = strlen(key);
    unsigned char difference = n_sent != n_key;

    for (size_t i = 0; i < n_sent; i++)
        difference |= (unsigned char)(sent[i] ^ key[n_key > 0 ? i % n_key : 0]);
    return difference == 0;
}

static bool has_key(const struct conn *conn, uint32_t *tenant)
{
    const struct server *server = conn->loop->server;
    size_t n = 0;
    const char *value = http_parser_header(&conn->parser, "authorization", &n);
    bool is_known = false;

    *tenant = 0;
    if (server->n_keys == 0)
        return true;
    if (value == NULL || n < 7 || strncasecmp(value, "bearer ", 7) != 0)
        return false;
    for (uint32_t i = 0; i < server->n_keys; i++)
        if (is_equal(value + 7, n - 7, server->key[i])) {
            is_known = true;
            *tenant = i + 1;
        }
    return is_known;
}

/* A page in somebody's browser must not reach a server that asks for no key. */
static bool is_origin_allowed(const struct conn *conn)
{
    const struct server *server = conn->loop->server;
    const char *origin = http_parser_header(&conn->parser, "origin", NULL);

    if (origin == NULL || server->n_keys > 0)
        return true;
    for (uint32_t i = 0; i < server->options.origins.n; i++) {
        const char *allowed = server->options.origins.text[i];
        if (strcmp(allowed, "*") == 0 || strcasecmp(allowed, origin) == 0)
            return true;
    }
    static const char *const local[] = {"http://localhost", "http://127.0.0.1", "http://[::1]"};
    for (size_t i = 0; i < LL_COUNT(local); i++) {
        size_t n = strlen(local[i]);
        if (strncasecmp(origin, local[i], n) == 0 && (origin[n] == '\0' || origin[n] == ':'))
            return true;
    }
    return false;
}

static bool is_json(const struct conn *conn)
{
    size_t n = 0;
    const char *type = http_parser_header(&conn->parser, "content-type", &n);

    return type != NULL && n >= 16 && strncasecmp(type, "application/json", 16) == 0 &&
           (type[16] == '\0' || type[16] == ';' || type[16] == ' ');
}

static bool refuse_head(struct conn *conn, int status, const char *message)
{
    /* The body was not read, so what follows on this connection cannot be told apart from it. */
    bool has_body = conn->parser.is_chunked || conn->parser.left > 0;

    conn->closes = conn->closes || has_body;
    conn_reply_error(conn, status, message, NULL, 0);
    return false;
}

static void take_request_id(struct conn *conn)
{
    size_t n = 0;
    const char *id = http_parser_header(&conn->parser, "x-request-id", &n);
    bool is_fit = id != NULL && n > 0 && n < sizeof(conn->request_id);

    for (size_t i = 0; is_fit && i < n; i++)
        is_fit = isalnum((unsigned char)id[i]) || strchr("-_.:", id[i]) != NULL;
    if (is_fit)
        memcpy(conn->request_id, id, n + 1);
    else
        make_id(conn->request_id, sizeof(conn->request_id), "req-");
}

static bool answer_options(struct conn *conn)
{
    const struct option_texts *origins = &conn->loop->server->options.origins;
    const char *origin = http_parser_header(&conn->parser, "origin", NULL);
    struct http_header_out extra[] = {
        {"Allow", "GET, HEAD, POST, OPTIONS"},
        {NULL, NULL},
        {"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
        {"Access-Control-Allow-Headers", "authorization, content-type, x-request-id"},
        {NULL, NULL}};

    for (uint32_t i = 0; origin != NULL && i < origins->n; i++)
        if (strcmp(origins->text[i], "*") == 0 || strcasecmp(origins->text[i], origin) == 0)
            extra[1] = (struct http_header_out){"Access-Control-Allow-Origin", origin};
    conn_reply(conn, 204, NULL, "", 0, extra);
    return true;
}

bool route_check_head(struct conn *conn)
{
    const struct route *of = find_route(conn);
    enum http_method method = conn->parser.method;
    uint32_t tenant;

    take_request_id(conn);
    if (method == HTTP_OPTIONS)
        return true; /* answered when it is complete */
    if (!(of != NULL && of->is_open) && !has_key(conn, &tenant))
        return refuse_head(conn, 401,
                           "this server needs an API key: send it as \"Authorization: "
                           "Bearer KEY\"");
    if (!is_origin_allowed(conn))
        return refuse_head(conn, 403,
                           "pages of this origin may not use the server: start it with "
                           "--allowed-origins, or with --api-key");
    if (of == NULL)
        return refuse_head(conn, 404,
                           "there is no such path here; see /v1/models, "
                           "/v1/chat/completions, /v1/completions, /v1/responses");
    bool is_get = method == HTTP_GET || method == HTTP_HEAD;
    if (is_get ? of->get == NULL : (of->post == NULL || method != HTTP_POST))
        return refuse_head(
            conn, 405, of->post != NULL ? "this path takes POST only" : "this path takes GET only");
    if (of->post != NULL && !is_json(conn))
        return refuse_head(conn, 415,
                           "the body must be JSON: send \"Content-Type: "
                           "application/json\"");
    return true;
}

/* ---- the whole request ------------------------------------------------------------------------*/

static void finish_work(struct conn *conn, struct work *work)
{
    if (work->job != NULL)
        job_start(work->job, work->loop, conn);
    else if (work->error.status != 0)
        conn_reply_error(conn, work->error.status, work->error.message, work->error.param,
                         work->error.retry_ms);
    else if (work->reply.has_failed)
        conn_reply_error(conn, 503, "no memory for the answer", NULL, 1000);
    else
        conn_reply(conn, 200, "application/json", work->reply.data, work->reply.n, NULL);
}

void route_work_done(struct conn *conn, struct work *work)
{
    if (conn != NULL && conn->state == CONN_AWAY && !conn->is_dead)
        finish_work(conn, work);
    else if (work->job != NULL)
        job_free(work->job);
    work_free(work);
}

static void start_work(struct conn *conn, const struct route *of)
{
    struct loop *loop = conn->loop;
    struct work *work = calloc(1, sizeof(*work));

    if (work == NULL) {
        conn_reply_error(conn, 503, "no memory for the request", NULL, 1000);
        return;
    }
    *work = (struct work){.loop = loop,
                          .serial = conn->serial,
                          .link = link_hold(loop->link),
                          .run = of->post,
                          .body = conn->parser.body};
    conn->parser.body = (struct buffer){0};
    has_key(conn, &work->tenant);
    bool is_large = work->body.n > BODY_BYTES_AWAY;
    conn->state = CONN_AWAY;
    if (is_large && workers_take(work))
        return;
    if (is_large) {
        work_free(work);
        conn_reply_error(conn, 503, "too many large requests at once: try again in a second", NULL,
                         1000);
        return;
    }
    work->run(work);
    route_work_done(conn, work);
}

void route(struct conn *conn)
{
    const struct route *of = find_route(conn);
    struct loop *loop = conn->loop;

    if (loop->link != NULL)
        link_refresh(loop->link);
    if (conn->parser.method == HTTP_OPTIONS) {
        answer_options(conn);
        return;
    }
    if (of->get != NULL) {
        of->get(conn);
        return;
    }
    /* Relaxed: an advice. */
    if (atomic_load_explicit(&loop->server->is_draining, memory_order_relaxed))
        conn_reply_error(conn, 503, "the server is stopping", NULL, 1000);
    else if (loop->link == NULL)
        conn_reply_error(conn, 503, loop->link_text, NULL, 1000);
    else
        start_work(conn, of);
}

/* ---- small endpoints --------------------------------------------------------------------------*/

static void get_health(struct conn *conn)
{
    struct loop *loop = conn->loop;

    if (loop->link != NULL && loop->link_code == 0)
        conn_reply(conn, 200, "application/json", "", 0, NULL);
    else
        conn_reply_error(conn, 503, loop->link_text, NULL, 1000);
}

static void get_version(struct conn *conn)
{
    char text[48];
    int n = snprintf(text, sizeof(text), "{\"version\":\"%d.%d.%d\"}", LL_VERSION_MAJOR,
                     LL_VERSION_MINOR, LL_VERSION_PATCH);

    conn_reply(conn, 200, "application/json", text, (size_t)n, NULL);
}

static void write_model(struct buffer *out, const struct conn *conn, const char *name)
{
    const struct server *server = conn->loop->server;

    buffer_text(out, "{\"id\":");
    buffer_json_text(out, name);
    buffer_printf(out, ",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"llring\",\"root\":",
                  (unsigned long long)server->start_time);
    buffer_json_text(out, link_model(conn->loop->link)->name);
    buffer_printf(out, ",\"parent\":null,\"max_model_len\":%u,\"permission\":[]}",
                  conn->loop->link->info.context_max);
}

/* The path behind /v1/models/, with %xx undone: names have slashes. */
static void asked_name(const struct conn *conn, char *out, size_t n_max)
{
    const struct http_parser *parser = &conn->parser;
    const char *at = parser->head.data + parser->path.offset + strlen(one_model.path);
    const char *end = parser->head.data + parser->path.offset + parser->path.n;
    size_t n = 0;

    while (at < end && n + 1 < n_max) {
        char digits[3] = {0};
        if (*at == '%' && end - at >= 3 && isxdigit((unsigned char)at[1]) &&
            isxdigit((unsigned char)at[2])) {
            memcpy(digits, at + 1, 2);
            out[n++] = (char)strtoul(digits, NULL, 16);
            at += 3;
        } else {
            out[n++] = *at++;
        }
    }
    out[n] = '\0';
}

static void get_models(struct conn *conn)
{
    const struct option_texts *names = &conn->loop->server->options.served_names;
    bool wants_one = !http_parser_path_is(&conn->parser, "/v1/models");
    char asked[256] = "", text[400];
    struct buffer out = {0};
    uint32_t n_found = 0;

    if (conn->loop->link == NULL) {
        conn_reply_error(conn, 503, conn->loop->link_text, NULL, 1000);
        return;
    }
    if (wants_one)
        asked_name(conn, asked, sizeof(asked));
    else
        buffer_text(&out, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i < ll_max_u64(names->n, 1); i++) {
        const char *name = names->n > 0 ? names->text[i] : link_model(conn->loop->link)->name;
        if (wants_one && strcmp(name, asked) != 0)
            continue;
        if (n_found++ > 0)
            buffer_put(&out, ",", 1);
        write_model(&out, conn, name);
    }
    if (!wants_one)
        buffer_text(&out, "]}");
    if (n_found > 0) {
        conn_reply(conn, 200, "application/json", out.data, out.n, NULL);
    } else {
        snprintf(text, sizeof(text), "The model `%s` does not exist.", asked);
        conn_reply_error(conn, 404, text, "model", 0);
    }
    buffer_free(&out);
}

static void put_token_text(struct buffer *out, const struct link *link, uint32_t id)
{
    size_t n = 0;
    const char *text = id != UINT32_MAX ? ll_tokenizer_bytes(link->tokenizer, id, &n) : NULL;

    if (text != NULL)
        buffer_json_string(out, text, n);
    else
        buffer_text(out, "null");
}

static void get_tokenizer_info(struct conn *conn)
{
    const struct link *link = conn->loop->link;
    struct buffer out = {0};

    if (link == NULL || link->tokenizer == NULL) {
        conn_reply_error(conn, link == NULL ? 503 : 404,
                         link == NULL ? conn->loop->link_text : "this model has no tokenizer", NULL,
                         0);
        return;
    }
    buffer_text(&out, "{\"tokenizer_class\":\"PreTrainedTokenizerFast\",\"bos_token\":");
    put_token_text(&out, link, link->info.bos);
    buffer_text(&out, ",\"eos_token\":");
    put_token_text(&out, link,
                   link->info.n_eos > 0 ? link->info.eos[link->info.n_eos - 1] : UINT32_MAX);
    buffer_printf(&out, ",\"model_max_length\":%u,\"vocab_size\":%u}", link->info.context_max,
                  link->info.n_vocab);
    conn_reply(conn, 200, "application/json", out.data, out.n, NULL);
    buffer_free(&out);
}

static void get_metrics(struct conn *conn)
{
    struct buffer out = {0};

    metrics_write(&out, conn->loop);
    conn_reply(conn, 200, "text/plain; version=0.0.4; charset=utf-8", out.data, out.n, NULL);
    buffer_free(&out);
}
