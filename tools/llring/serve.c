/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/serve.c - `llring serve MODEL`: llringd and llring-http together, kept running
 * (supervise.h). What is about HTTP goes to the proxy, everything else to llringd, which prints the
 * progress of loading. */
#include "tools/llring/commands.h"
#include "tools/llring/process.h"
#include "tools/llring/supervise.h"
#include "tools/llring/terminal.h"
#include "ll/client.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define ARGUMENTS_MAX 256

struct serve_options {
    const char *host, *port, *uds, *metrics_alias, *http_threads, *http_slots;
    struct option_texts api_keys, origins, served_names;
    const char *socket, *log_level;
    bool no_http, no_restart;
    const char *ignored;
    bool is_ignored;
};

#define AT(field) .offset = offsetof(struct serve_options, field)

static const struct option http_options[] = {
    {.name = "host",
     .kind = OPTION_TEXT,
     AT(host),
     .argument = "ADDRESS",
     .help = "listen there (default 127.0.0.1); others need --api-key"},
    {.name = "port",
     .kind = OPTION_TEXT,
     AT(port),
     .argument = "PORT",
     .help = "default 8000; 0 takes a free one and says which"},
    {.name = "uds",
     .kind = OPTION_TEXT,
     AT(uds),
     .argument = "PATH",
     .help = "listen on a Unix socket"},
    {.name = "api-key",
     .kind = OPTION_TEXTS,
     AT(api_keys),
     .argument = "KEY",
     .help = "clients must send it; several are possible"},
    {.name = "allowed-origins",
     .kind = OPTION_TEXTS,
     AT(origins),
     .argument = "ORIGIN",
     .help = "web pages from there may use the server"},
    {.name = "metrics-alias",
     .kind = OPTION_TEXT,
     AT(metrics_alias),
     .argument = "vllm",
     .help = "/metrics also under vLLM's names"},
    {.name = "http-threads",
     .kind = OPTION_TEXT,
     AT(http_threads),
     .argument = "N",
     .help = "event threads of the proxy (default 2)"},
    {.name = "http-slots",
     .kind = OPTION_TEXT,
     AT(http_slots),
     .argument = "N",
     .help = "requests under way, a thread (default 512)"},
    {.name = "no-http",
     .kind = OPTION_FLAG,
     AT(no_http),
     .help = "the runtime alone, for clients on its rings"},
    {.name = NULL},
};

static const struct option both_options[] = {
    {.name = "served-model-name",
     .kind = OPTION_TEXTS,
     AT(served_names),
     .argument = "NAME",
     .help = "the model's name towards clients; several are possible"},
    {.name = "socket",
     .kind = OPTION_TEXT,
     AT(socket),
     .argument = "PATH",
     .help = "the runtime's control socket"},
    {.name = "log-level",
     .kind = OPTION_TEXT,
     AT(log_level),
     .argument = "LEVEL",
     .help = "error, warn, info or debug"},
    {.name = "no-restart",
     .kind = OPTION_FLAG,
     AT(no_restart),
     .help = "end when one of the two dies, instead of starting it anew"},
    {.name = NULL},
};

/* What commands for vllm say and is so here in any case. */
static const struct option vllm_options[] = {
    {.name = "enable-auto-tool-choice", .kind = OPTION_FLAG, AT(is_ignored), .help = "always on"},
    {.name = "tool-call-parser",
     .kind = OPTION_TEXT,
     AT(ignored),
     .argument = "NAME",
     .help = "every form that Llama 3 writes is known"},
    {.name = "disable-log-stats", .kind = OPTION_FLAG, AT(is_ignored), .help = "see --log-level"},
    {.name = "uvicorn-log-level",
     .kind = OPTION_TEXT,
     AT(ignored),
     .argument = "LEVEL",
     .help = "see --log-level"},
    {.name = NULL},
};

struct arguments {
    const char *text[ARGUMENTS_MAX];
    int n;
};

static void add(struct arguments *arguments, const char *name, const char *value)
{
    if (value == NULL || arguments->n + 2 > ARGUMENTS_MAX)
        return;
    arguments->text[arguments->n++] = name;
    arguments->text[arguments->n++] = value;
}

static void add_all(struct arguments *arguments, const char *name, const struct option_texts *texts)
{
    for (uint32_t i = 0; i < texts->n; i++)
        add(arguments, name, texts->text[i]);
}

static void make_arguments(const struct serve_options *o, char **operands, int n_operands,
                           struct arguments *runtime, struct arguments *proxy)
{
    for (int i = 0; i < n_operands && runtime->n < ARGUMENTS_MAX; i++)
        runtime->text[runtime->n++] = operands[i];
    add(runtime, "--socket", o->socket);
    add(runtime, "--log-level", o->log_level);
    add(runtime, "--served-model-name", o->served_names.n > 0 ? o->served_names.text[0] : NULL);

    add(proxy, "--host", o->host);
    add(proxy, "--port", o->port);
    add(proxy, "--uds", o->uds);
    add_all(proxy, "--api-key", &o->api_keys);
    add_all(proxy, "--allowed-origins", &o->origins);
    add_all(proxy, "--served-model-name", &o->served_names);
    add(proxy, "--metrics-alias", o->metrics_alias);
    add(proxy, "--threads", o->http_threads);
    add(proxy, "--slots", o->http_slots);
    add(proxy, "--socket", o->socket);
    add(proxy, "--log-level", o->log_level);
}

/* --help: this command's options, then llringd's, which knows its own best. */
static int help(void)
{
    const char *argument = "--help";
    pid_t pid = process_start("llringd", &argument, 1, 0);

    return pid < 0 ? EXIT_FAILED : process_wait(pid);
}

/* The runtime's default socket, named to both: the proxy alone would also look in /run/llring and
 * might find somebody else's runtime there. A file of --config may name another. */
static void name_socket(struct serve_options *o, char **operands, int n_operands)
{
    static char path[256];
    const char *directory = getenv("XDG_RUNTIME_DIR"), *named = getenv("LLRING_SOCKET");

    for (int i = 0; i < n_operands; i++)
        if (strncmp(operands[i], "--config", 8) == 0)
            return;
    if (o->socket != NULL || (named != NULL && named[0] != 0))
        return;
    bool has_directory = directory != NULL && directory[0] != 0;
    int n =
        snprintf(path, sizeof(path), "%s/llring/llring.sock", has_directory ? directory : "/run");
    if (n < (int)sizeof(path))
        o->socket = path; /* else llringd says so */
}

/* Before anything is started: the proxy would serve the other's model while ours is refused. */
static int refuse_second(const struct serve_options *o)
{
    struct ll_client_options options = {.struct_bytes = sizeof(options), .socket = o->socket};
    struct ll_client_info info = {.struct_bytes = sizeof(info)};
    struct ll_client *client;

    if (ll_client_open(&client, &options) < 0)
        return EXIT_OK;
    ll_client_info(client, &info);
    int rc = terminal_fail(
        "a runtime that serves %s is there already%s%s: stop it, or give this one "
        "a path of its own with --socket",
        info.model, o->socket != NULL ? ", at " : "", o->socket != NULL ? o->socket : "");
    ll_client_close(client);
    return rc;
}

static int run(const struct command *command, int argc, char **argv)
{
    struct serve_options o = {0};
    struct arguments runtime = {.n = 0}, proxy = {.n = 0};
    int n_operands;
    int rc = options_parse(command, argc, argv, &o, &n_operands);

    if (rc == EXIT_OK)
        return help();
    if (rc != OPTIONS_GO_ON)
        return rc;
    if (n_operands + 16 > ARGUMENTS_MAX)
        return options_usage_error("serve", "too many arguments");
    name_socket(&o, argv + 1, n_operands);
    if (refuse_second(&o) != EXIT_OK)
        return EXIT_FAILED;
    make_arguments(&o, argv + 1, n_operands, &runtime, &proxy);
    const struct supervise_program llringd = {
        .name = "llringd", .arguments = runtime.text, .n = runtime.n};
    const struct supervise_program http = {.name = o.no_http ? NULL : "llring-http",
                                           .arguments = proxy.text,
                                           .n = proxy.n,
                                           .first_only = "--print-examples"};
    interrupts_catch();
    return supervise(&llringd, &http, !o.no_restart);
}

const struct command command_serve = {
    .name = "serve",
    .summary = "load a model and serve it, with the OpenAI API, until Ctrl-C",
    .operands = "MODEL",
    .groups = {{"HTTP (llring-http)", http_options, 0},
               {"Both", both_options, 0},
               {"Accepted from commands for vllm serve", vllm_options, 0}},
    .details =
        "MODEL is a directory with config.json, tokenizer.json and safetensors, or a hub name\n"
        "found in the local cache. Every other option goes to llringd:\n\n",
    .n_operands_min = 1,
    .n_operands_max = -1,
    .run = run,
    .passes_unknown = true,
};
