/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/http/server.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "tools/http/loop.h"
#include "tools/http/salt.h"
#include "tools/http/work.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 1024

/* ---- sockets ----------------------------------------------------------------------------------*/

static int listen_tcp(const struct addrinfo *address, uint16_t port, const char *host)
{
    struct sockaddr_storage name;
    int one = 1;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return LL_ERRNO("socket");
    memcpy(&name, address->ai_addr, address->ai_addrlen);
    if (address->ai_family == AF_INET6)
        ((struct sockaddr_in6 *)&name)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)&name)->sin_port = htons(port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
    if (bind(fd, (const struct sockaddr *)&name, address->ai_addrlen) < 0 ||
        listen(fd, BACKLOG) < 0) {
        int rc = LL_ERRNO("%s port %u cannot be listened on", host, port);
        close(fd);
        return rc;
    }
    return fd;
}

static uint16_t port_of(int fd)
{
    struct sockaddr_storage name;
    socklen_t n = sizeof(name);

    if (getsockname(fd, (struct sockaddr *)&name, &n) < 0)
        return 0;
    return ntohs(name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&name)->sin6_port
                                            : ((struct sockaddr_in *)&name)->sin_port);
}

/* SO_REUSEPORT lets a second server of this user listen beside us without a word, and clients would
 * reach now one and now the other: a probe without it tells. */
static int probe_port(const struct addrinfo *address, uint16_t port, const char *host)
{
    struct sockaddr_storage name;
    int one = 1, rc = 0;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (port == 0 || fd < 0) {
        if (fd >= 0)
            close(fd);
        return 0;
    }
    memcpy(&name, address->ai_addr, address->ai_addrlen);
    if (address->ai_family == AF_INET6)
        ((struct sockaddr_in6 *)&name)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)&name)->sin_port = htons(port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (const struct sockaddr *)&name, address->ai_addrlen) < 0)
        rc = LL_ERRNO("%s port %u cannot be listened on (choose another with --port)", host, port);
    close(fd);
    return rc;
}

static bool is_loopback(const struct addrinfo *address)
{
    if (address->ai_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((struct sockaddr_in6 *)(void *)address->ai_addr)->sin6_addr);
    struct in_addr ip = ((struct sockaddr_in *)(void *)address->ai_addr)->sin_addr;
    return ntohl(ip.s_addr) >> 24 == 127;
}

static int open_tcp(struct server *server)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    const struct server_options *options = &server->options;
    struct addrinfo *list;
    uint16_t port = (uint16_t)options->port;
    int failed = getaddrinfo(options->host, NULL, &hints, &list);

    if (failed != 0)
        return LL_ERR(LL_E_INVAL, "--host %s: %s", options->host, gai_strerror(failed));
    int rc = 0;
    server->is_loopback = is_loopback(list);
    if (!server->is_loopback && server->n_keys == 0)
        rc = LL_ERR(LL_E_DENIED,
                    "--host %s is open to other machines: give --api-key KEY (or LLRING_API_KEY), "
                    "or leave --host out",
                    options->host);
    if (rc == 0)
        rc = probe_port(list, port, options->host);
    for (uint32_t i = 0; i < options->n_threads && rc == 0; i++) {
        int fd = listen_tcp(list, port, options->host);
        server->tcp_fd[i] = fd;
        rc = fd < 0 ? fd : 0;
        if (i == 0 && fd >= 0)
            port = port_of(fd);
    }
    server->port = port;
    freeaddrinfo(list);
    return rc;
}

static int open_unix(struct server *server)
{
    const char *path = server->options.uds;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct stat st;

    if (strlen(path) >= sizeof(name.sun_path))
        return LL_ERR(LL_E_INVAL, "--uds %s: the path is longer than %zu bytes", path,
                      sizeof(name.sun_path) - 1);
    memcpy(name.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return LL_ERRNO("socket");
    /* What a server that is gone left behind may go; a live one's may not. */
    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
        if (connect(fd, (struct sockaddr *)&name, sizeof(name)) == 0) {
            close(fd);
            return LL_ERR(-EADDRINUSE, "--uds %s: another server listens there", path);
        }
        unlink(path);
    }
    mode_t before = umask(0117); /* 0660 */
    int rc = bind(fd, (struct sockaddr *)&name, sizeof(name)) < 0 || listen(fd, BACKLOG) < 0
                 ? LL_ERRNO("--uds %s cannot be listened on", path)
                 : 0;
    umask(before);
    if (rc < 0)
        close(fd);
    else
        server->unix_fd = fd;
    return rc;
}

/* ---- start and stop ---------------------------------------------------------------------------*/

void server_say_hello(const struct server *server, const struct link *link)
{
    const struct option_texts *names = &server->options.served_names;
    const char *model = names->n > 0 ? names->text[0] : link_model(link)->name;
    const char *host = server->options.host;
    char url[300];

    if (server->options.uds != NULL)
        ll_info("ready: model %s at Unix socket %s", model, server->options.uds);
    if (server->tcp_fd[0] < 0)
        return;
    bool is_any = strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
    bool is_v6 = strchr(host, ':') != NULL && !is_any;
    snprintf(url, sizeof(url), "http://%s%s%s:%u/v1", is_v6 ? "[" : "", is_any ? "127.0.0.1" : host,
             is_v6 ? "]" : "", server->port);
    ll_info("ready: model %s at %s", model, url);
    if (!server->options.print_examples)
        return;
    bool has_key = server->n_keys > 0; /* the key itself is not printed: logs are kept */
    bool has_chat = link->chat_format != LL_CHAT_NONE;
    printf("\nTry it:\n\n  curl %s/%s \\\n    -H 'Content-Type: application/json' \\\n%s"
           "    -d '{\"model\": \"%s\", %s, \"max_tokens\": 32}'\n\n"
           "or in Python (pip install openai):\n\n  from openai import OpenAI\n"
           "  client = OpenAI(base_url=\"%s\", api_key=\"%s\")\n",
           url, has_chat ? "chat/completions" : "completions",
           has_key ? "    -H \"Authorization: Bearer $API_KEY\" \\\n" : "", model,
           has_chat ? "\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]"
                    : "\"prompt\": \"Hello\"",
           url, has_key ? "YOUR KEY" : "dummy");
    if (has_chat)
        printf("  reply = client.chat.completions.create(model=\"%s\",\n"
               "      messages=[{\"role\": \"user\", \"content\": \"Hello\"}])\n"
               "  print(reply.choices[0].message.content)\n\n",
               model);
    else
        printf("  reply = client.completions.create(model=\"%s\", prompt=\"Hello\")\n"
               "  print(reply.choices[0].text)\n\n",
               model);
    fflush(stdout);
}

void server_name_runtimes(struct server *server)
{
    const struct server_options *options = &server->options;

    if (options->socket != NULL || options->runtimes.n == 0)
        server->runtime[server->n_runtimes++].socket = options->socket;
    for (uint32_t i = 0; i < options->runtimes.n && server->n_runtimes < SERVER_RUNTIMES_MAX; i++)
        server->runtime[server->n_runtimes++].socket = options->runtimes.text[i];
    for (uint32_t i = 0; i < server->n_runtimes; i++) {
        struct runtime *runtime = &server->runtime[i];
        runtime->name = runtime->socket != NULL ? runtime->socket : "the default socket";
        runtime->key = siphash(server->secret, runtime->name, strlen(runtime->name));
    }
}

int server_start(struct server *server)
{
    int rc = 0;

    server->start_time = (uint64_t)time(NULL);
    server->unix_fd = -1;
    for (uint32_t i = 0; i < SERVER_THREADS_MAX; i++)
        server->tcp_fd[i] = -1;
    if (getrandom(server->secret, sizeof(server->secret), 0) != (ssize_t)sizeof(server->secret))
        return LL_ERRNO("getrandom");
    json_object_seed(0);
    server_name_runtimes(server);
    server->loop = calloc(server->options.n_threads, sizeof(*server->loop));
    if (server->loop == NULL)
        return LL_ERR(-ENOMEM, "no memory for %u threads", server->options.n_threads);
    if (server->options.uds != NULL)
        rc = open_unix(server);
    if (rc == 0 && (server->options.uds == NULL || server->options.has_host_or_port))
        rc = open_tcp(server);
    if (rc == 0)
        rc = workers_start();
    for (uint32_t i = 0; i < server->options.n_threads && rc == 0; i++) {
        server->loop[i].server = server;
        server->loop[i].index = i;
        rc = loop_start(&server->loop[i], server->tcp_fd[i], server->unix_fd);
    }
    return rc;
}

uint32_t server_n_conns(const struct server *server)
{
    uint32_t n = 0;

    /* Relaxed: a look at what other threads write; a connection more or less. */
    for (uint32_t i = 0; i < server->options.n_threads; i++)
        n += atomic_load_explicit(&server->loop[i].n_conns, memory_order_relaxed);
    return n;
}

void server_stop(struct server *server, uint32_t drain_s)
{
    uint64_t deadline_ns = ll_now_ns() + drain_s * LL_NS_PER_S;

    /* Release, pairs with the acquire in loop_run(). */
    atomic_store_explicit(&server->is_draining, true, memory_order_release);
    for (uint32_t i = 0; i < server->options.n_threads; i++)
        loop_wake(&server->loop[i]);
    while (server_n_conns(server) > 0 && ll_now_ns() < deadline_ns && !server_is_hurried())
        usleep(10000);
    /* Relaxed: each loop looks again within a tick. */
    atomic_store_explicit(&server->must_stop, true, memory_order_relaxed);
    workers_stop();
    for (uint32_t i = 0; i < server->options.n_threads; i++) {
        loop_wake(&server->loop[i]);
        pthread_join(server->loop[i].thread, NULL);
        loop_free(&server->loop[i]);
        if (server->tcp_fd[i] >= 0)
            close(server->tcp_fd[i]);
    }
    if (server->unix_fd >= 0) {
        close(server->unix_fd);
        unlink(server->options.uds);
    }
    free(server->loop);
}
