/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/status.c - `llring status`: what the runtime is and what it has done, read from
 * shared memory without asking it; of its reloads, which it tells to its owner only, what the admin
 * socket says, if it may be asked. */
#include "tools/llring/admin.h"
#include "tools/llring/commands.h"
#include "tools/llring/connection.h"
#include "tools/llring/terminal.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct status_options {
    struct connection_options connection;
    bool json;
};

static const struct option options[] = {
    {.name = "json",
     .kind = OPTION_FLAG,
     .offset = offsetof(struct status_options, json),
     .help = "one JSON object"},
    {.name = NULL},
};

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

/* A value in its unit: nanoseconds as ms, bytes as MiB, mW as W, the rest as they are. */
static const char *in_units(const char *name, uint64_t value, char *buffer, size_t n)
{
    if (ends_with(name, "_ns"))
        snprintf(buffer, n, "%.3f ms", (double)value / 1e6);
    else if (ends_with(name, "_bytes"))
        snprintf(buffer, n, "%.1f MiB", (double)value / 1048576);
    else if (ends_with(name, "_mw"))
        snprintf(buffer, n, "%.1f W", (double)value / 1e3);
    else
        snprintf(buffer, n, "%llu", (unsigned long long)value);
    return buffer;
}

/* NULL: it is not ours to ask, or there is no second set. */
static json_t *ask_reload(const struct status_options *o)
{
    const struct admin_options where = {.socket = o->connection.socket};
    int code;
    json_t *answer = admin_ask(&where, "reload\n", &code);
    json_t *reload = json_incref(json_object_get(answer, "reload"));

    json_decref(answer);
    if (reload != NULL && !json_is_true(json_object_get(reload, "reserved"))) {
        json_decref(reload);
        return NULL;
    }
    return reload;
}

static void print_reload(const json_t *reload)
{
    const char *state = json_string_value(json_object_get(reload, "state"));
    const char *model = json_string_value(json_object_get(reload, "model"));
    const char *message = json_string_value(json_object_get(reload, "message"));
    double done = json_number_value(json_object_get(reload, "bytes_done"));
    double total = json_number_value(json_object_get(reload, "bytes_total"));

    printf("weights    set %lld of 0 and 1", json_integer_value(json_object_get(reload, "set")));
    if (state != NULL && strcmp(state, "idle") != 0)
        printf("; reload of %s: %s, %.0f %%", model, state, total > 0 ? 100 * done / total : 0);
    else if (message != NULL && message[0] != 0)
        printf("; the last reload, of %s, failed: %s", model, message);
    else if (json_integer_value(json_object_get(reload, "id")) > 0)
        printf("; last reload: %s", model);
    putchar('\n');
}

static void print_table(const struct connection *connection, const json_t *reload,
                        const struct ll_stat *stats, int n)
{
    const struct ll_client_info *info = &connection->info;
    char text[4][32];

    printf("model      %s (%s, %s)\n", info->model, info->backend, info->dtype);
    printf("context    %u tokens, prompts up to %u\n", info->context_max, info->n_prompt_max);
    printf("chat       %s\n", info->chat_format[0] != '\0' ? info->chat_format : "none");
    printf("vocabulary %u\n", info->n_vocab);
    if (reload != NULL)
        print_reload(reload);
    putchar('\n');
    for (int i = 0; i < n; i++)
        if (!stats[i].is_histogram)
            printf("%-24s %16s\n", stats[i].name,
                   in_units(stats[i].name, stats[i].value, text[0], sizeof(text[0])));
    printf("\n%-24s %10s %14s %14s %14s %14s\n", "", "count", "p50", "p90", "p99", "max");
    for (int i = 0; i < n; i++)
        if (stats[i].is_histogram)
            printf("%-24s %10llu %14s %14s %14s %14s\n", stats[i].name,
                   (unsigned long long)stats[i].value,
                   in_units(stats[i].name, stats[i].p50, text[0], sizeof(text[0])),
                   in_units(stats[i].name, stats[i].p90, text[1], sizeof(text[1])),
                   in_units(stats[i].name, stats[i].p99, text[2], sizeof(text[2])),
                   in_units(stats[i].name, stats[i].max, text[3], sizeof(text[3])));
}

static void print_json(const struct connection *connection, json_t *reload,
                       const struct ll_stat *stats, int n)
{
    const struct ll_client_info *info = &connection->info;
    json_t *values = json_object();

    for (int i = 0; i < n; i++) {
        json_t *value =
            stats[i].is_histogram
                ? json_pack("{s:I, s:I, s:I, s:I, s:I}", "count", (json_int_t)stats[i].value, "p50",
                            (json_int_t)stats[i].p50, "p90", (json_int_t)stats[i].p90, "p99",
                            (json_int_t)stats[i].p99, "max", (json_int_t)stats[i].max)
                : json_integer((json_int_t)stats[i].value);
        json_object_set_new(values, stats[i].name, value);
    }
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:o}", "model", info->model, "backend",
                  info->backend, "dtype", info->dtype, "chat_format", info->chat_format,
                  "context_max", (json_int_t)info->context_max, "n_prompt_max",
                  (json_int_t)info->n_prompt_max, "n_vocab", (json_int_t)info->n_vocab,
                  "weights_epoch", (json_int_t)info->weights_epoch, "stats", values);
    if (reload != NULL)
        json_object_set(object, "reload", reload);
    json_dumpf(object, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(object);
}

static int run(const struct command *command, int argc, char **argv)
{
    struct status_options o = {0};
    struct connection connection;
    int n_operands;
    int rc = options_parse(command, argc, argv, &o, &n_operands);

    if (rc != OPTIONS_GO_ON)
        return rc;
    interrupts_catch();
    rc = connection_open(&connection, &o.connection, 0);
    if (rc != EXIT_OK)
        return rc;
    int n = ll_client_stats(connection.client, NULL, 0);
    struct ll_stat *stats = n > 0 ? calloc((size_t)n, sizeof(*stats)) : NULL;
    if (n > 0 && stats != NULL)
        n = ll_client_stats(connection.client, stats, n);
    if (n < 0 || (n > 0 && stats == NULL))
        rc = terminal_fail_code(n < 0 ? n : -ENOMEM, NULL);
    json_t *reload = rc == EXIT_OK ? ask_reload(&o) : NULL;
    if (rc == EXIT_OK && o.json)
        print_json(&connection, reload, stats, n);
    else if (rc == EXIT_OK)
        print_table(&connection, reload, stats, n);
    json_decref(reload);
    free(stats);
    connection_close(&connection);
    return rc;
}

const struct command command_status = {
    .name = "status",
    .summary = "show what the runtime is and has done",
    .operands = "",
    .groups = {{"Options", options, 0}, CONNECTION_GROUP(struct status_options, connection)},
    .n_operands_max = 0,
    .run = run,
};
