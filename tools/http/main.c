/* SPDX-License-Identifier: Apache-2.0 */
/* tools/http/main.c - llring-http: options, signals, start and stop. */
#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "tools/http/sandbox.h"
#include "tools/http/server.h"

#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>

#define AT(field) .offset = offsetof(struct server_options, field)

static const struct option listen_options[] = {
    {.name = "host",
     .kind = OPTION_TEXT,
     AT(host),
     .given = offsetof(struct server_options, has_host_or_port),
     .argument = "ADDRESS",
     .help = "listen there (default 127.0.0.1); another than a loopback\n"
             "address needs --api-key"},
    {.name = "port",
     .kind = OPTION_U32,
     AT(port),
     .given = offsetof(struct server_options, has_host_or_port),
     .argument = "PORT",
     .min = 0,
     .max = 65535,
     .help = "default 8000; 0 takes a free one and says which"},
    {.name = "uds",
     .kind = OPTION_TEXT,
     AT(uds),
     .argument = "PATH",
     .help = "listen on this Unix socket (mode 0660); without --host\n"
             "and --port only there"},
    {.name = "api-key",
     .kind = OPTION_TEXTS,
     AT(api_keys),
     .argument = "KEY",
     .help = "clients must send it; may be given several times. Better:\n"
             "$LLRING_API_KEY, which other users cannot see"},
    {.name = "allowed-origins",
     .kind = OPTION_TEXTS,
     AT(origins),
     .argument = "ORIGIN",
     .help = "web pages from there may use the server (CORS); \"*\": all"},
    {.name = NULL},
};

static const struct option server_options[] = {
    {.name = "socket",
     .kind = OPTION_TEXT,
     AT(socket),
     .argument = "PATH",
     .help = "the runtime's control socket; else $LLRING_SOCKET, else\n"
             "$XDG_RUNTIME_DIR/llring/llring.sock or /run/llring/llring.sock"},
    {.name = "runtime",
     .kind = OPTION_TEXTS,
     AT(runtimes),
     .argument = "PATH",
     .help = "a runtime by its control socket; given several times, requests\n"
             "go to the least loaded one, equal beginnings to the same"},
    {.name = "served-model-name",
     .kind = OPTION_TEXTS,
     AT(served_names),
     .argument = "NAME",
     .help = "the model's name towards clients (default: the runtime's);\n"
             "several: all are accepted, the first is shown"},
    {.name = "threads",
     .kind = OPTION_U32,
     AT(n_threads),
     .argument = "N",
     .min = 1,
     .max = SERVER_THREADS_MAX,
     .help = "event threads, each with an attachment of its own (default 2)"},
    {.name = "slots",
     .kind = OPTION_U32,
     AT(n_slots),
     .argument = "N",
     .min = 16,
     .max = 1024,
     .help = "requests under way at once, a thread (default 512); more\n"
             "are answered with 429"},
    {.name = "max-connections",
     .kind = OPTION_U32,
     AT(connections_max),
     .argument = "N",
     .min = 16,
     .max = 65536,
     .help = "open at once (default 4096)"},
    {.name = "max-body-bytes",
     .kind = OPTION_U64,
     AT(body_bytes_max),
     .argument = "N",
     .min = 1024,
     .max = 1 << 30,
     .help = "a request's body (default 16 MiB)"},
    {.name = "metrics-alias",
     .kind = OPTION_TEXT,
     AT(metrics_alias),
     .argument = "vllm",
     .help = "/metrics also under the names that vLLM's dashboards read"},
    {.name = "print-examples",
     .kind = OPTION_FLAG,
     AT(print_examples),
     .help = "when ready, print a curl line and a Python snippet"},
    {.name = "no-sandbox",
     .kind = OPTION_FLAG,
     AT(no_sandbox),
     .help = "do not give up system calls after the start"},
    {.name = "log-level",
     .kind = OPTION_TEXT,
     AT(log_level),
     .argument = "LEVEL",
     .help = "error, warn, info (default) or debug; never prompts or answers"},
    {.name = "version", .kind = OPTION_FLAG, AT(wants_version), .help = "print the version"},
    {.name = NULL},
};

static const struct command command = {
    .name = "",
    .summary = "OpenAI-compatible API for a running llringd",
    .operands = "",
    .groups = {{"Listening", listen_options, 0}, {"Serving", server_options, 0}},
    .details = "Waits for the runtime, and for it to come back; /health says 503 meanwhile.\n"
               "SIGTERM lets running requests end (30 s); a second one stops at once.\n\n"
               "  llringd tools/demo-model & llring-http --port 8000\n",
    .n_operands_max = 0,
};

static sigset_t awaited_signals;

/* Blocked in every thread from the first line on and taken by the main one alone, when it waits:
 * none can be lost, however early it comes. One that the caller ignores stays ignored. */
static void block_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM};
    struct sigaction inherited;

    sigemptyset(&awaited_signals);
    for (size_t i = 0; i < LL_COUNT(numbers); i++)
        if (sigaction(numbers[i], NULL, &inherited) == 0 && inherited.sa_handler != SIG_IGN)
            sigaddset(&awaited_signals, numbers[i]);
    pthread_sigmask(SIG_BLOCK, &awaited_signals, NULL);
    signal(SIGPIPE, SIG_IGN);
}

bool server_is_hurried(void)
{
    const struct timespec at_once = {0};

    return sigtimedwait(&awaited_signals, NULL, &at_once) > 0;
}

static int take_keys(struct server *server)
{
    static const char *const variables[] = {"LLRING_API_KEY", "VLLM_API_KEY"};
    const struct option_texts *given = &server->options.api_keys;

    for (uint32_t i = 0; i < given->n; i++)
        server->key[server->n_keys++] = given->text[i];
    for (size_t i = 0; i < LL_COUNT(variables) && server->n_keys < OPTION_TEXTS_MAX; i++)
        if (getenv(variables[i]) != NULL)
            server->key[server->n_keys++] = getenv(variables[i]);
    for (uint32_t i = 0; i < server->n_keys; i++)
        if (server->key[i][0] == '\0')
            return options_usage_error("", "an API key is empty");
    return OPTIONS_GO_ON;
}

static int check_options(struct server *server)
{
    const struct server_options *options = &server->options;

    if (options->log_level != NULL) {
        int level = ll_log_level_from_name(options->log_level);
        if (level < 0)
            return options_usage_error("",
                                       "--log-level takes error, warn, info or debug, not "
                                       "\"%s\"",
                                       options->log_level);
        ll_log_set_level((enum ll_log_level)level);
    }
    if (options->metrics_alias != NULL && strcmp(options->metrics_alias, "vllm") != 0)
        return options_usage_error("", "--metrics-alias knows \"vllm\" only");
    if (options->runtimes.n + (options->socket != NULL) > SERVER_RUNTIMES_MAX)
        return options_usage_error("", "there may be %d runtimes at most", SERVER_RUNTIMES_MAX);
    for (uint32_t i = 0; i < options->runtimes.n; i++) {
        const char *path = options->runtimes.text[i];
        bool is_twice = options->socket != NULL && strcmp(path, options->socket) == 0;
        for (uint32_t k = 0; k < i; k++)
            is_twice = is_twice || strcmp(path, options->runtimes.text[k]) == 0;
        if (is_twice)
            return options_usage_error("", "the runtime %s is given twice", path);
    }
    return take_keys(server);
}

/* Descriptors for all the connections; prompts belong into no core dump. */
static void set_limits(const struct server *server)
{
    const struct rlimit no_core = {0, 0};
    struct rlimit files;

    prctl(PR_SET_DUMPABLE, 0);
    setrlimit(RLIMIT_CORE, &no_core);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 &&
        files.rlim_cur < server->options.connections_max + 256) {
        files.rlim_cur = ll_min_u64(files.rlim_max, server->options.connections_max + 256);
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

static void give_up_calls(const struct server *server)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    bool is_possible = false; /* a sanitizer opens files of its own */
#else
    bool is_possible = true;
#endif
    if (is_possible && !server->options.no_sandbox &&
        sandbox_enter(server->options.uds != NULL) < 0)
        ll_warn("%s: going on without it", ll_err_text());
}

int main(int argc, char **argv)
{
    static struct server server = {.options = {.host = "127.0.0.1",
                                               .port = 8000,
                                               .n_threads = 2,
                                               .n_slots = 512,
                                               .connections_max = 4096,
                                               .body_bytes_max = HTTP_BODY_BYTES_MAX}};
    int n_operands;

    block_signals();
    options_program = "llring-http";
    int rc = options_parse(&command, argc, argv, &server.options, &n_operands);
    if (rc != OPTIONS_GO_ON)
        return rc;
    if (server.options.wants_version) {
        printf("llring-http %d.%d.%d\n", LL_VERSION_MAJOR, LL_VERSION_MINOR, LL_VERSION_PATCH);
        return 0;
    }
    rc = check_options(&server);
    if (rc != OPTIONS_GO_ON)
        return rc;
    set_limits(&server);
    /* Time zone and number of CPUs: else read from files later, when that has been given up. */
    tzset();
    mallopt(M_ARENA_MAX, (int)server.options.n_threads + 2);
    if (server_start(&server) < 0) {
        fprintf(stderr, "llring-http: %s\n", ll_err_text());
        return 1;
    }
    if (server.options.host != NULL && server.tcp_fd[0] >= 0)
        ll_info("listening on %s port %u", server.options.host, server.port);
    if (server.options.uds != NULL)
        ll_info("listening on %s", server.options.uds);
    give_up_calls(&server);
    while (sigwaitinfo(&awaited_signals, NULL) < 0)
        continue; /* EINTR: a debugger came or went */
    ll_info("stopping: running requests may end");
    server_stop(&server, 30);
    return 0;
}
