/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/reload.c - `llring reload DIR`: other weights into a runtime that serves, followed
 * to the end. What is done, and what may differ, is the runtime's affair (runtime/reload.h). */
#include "tools/llring/admin.h"
#include "tools/llring/commands.h"
#include "tools/llring/terminal.h"
#include "ll/client.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BAR_WIDTH 30
#define LOOK_US   50000
#define LOST_MAX  5 /* looks without an answer in a row */

struct reload_options {
    struct admin_options admin;
    uint32_t wait_s;
    bool has_wait, cuts, json, no_wait, waits;
};
#define AT(field) .offset = offsetof(struct reload_options, field)

static const struct option options[] = {
    {.name = "reload-wait",
     .kind = OPTION_U32,
     AT(wait_s),
     .argument = "SECONDS",
     .help = "how long new requests may wait for those that run; then the\n"
             "reload is given up (0 to 3600; default: the runtime's, 30)",
     .min = 0,
     .max = 3600,
     .given = offsetof(struct reload_options, has_wait)},
    {.name = "cut",
     .kind = OPTION_FLAG,
     AT(cuts),
     .help = "then end what still runs (LL_E_DRAINING) instead of giving up"},
    {.name = "wait", .kind = OPTION_FLAG, AT(waits), .help = "until it is over: the default"},
    {.name = "no-wait",
     .kind = OPTION_FLAG,
     AT(no_wait),
     .help = "only begin; \"llring status\" tells how it goes"},
    {.name = "json", .kind = OPTION_FLAG, AT(json), .help = "the end as one JSON object"},
    {.name = NULL},
};

static const struct option runtime_options[] = {
    {.name = "socket",
     .kind = OPTION_TEXT,
     AT(admin.socket),
     .argument = "PATH",
     .help = "the runtime's control socket, as everywhere; its admin.sock is\n"
             "beside it"},
    {.name = "admin-socket",
     .kind = OPTION_TEXT,
     AT(admin.admin_socket),
     .argument = "PATH",
     .help = "or that one"},
    {.name = NULL},
};

/* ---- what the runtime says --------------------------------------------------------------------*/

static const char *text_of(const json_t *reload, const char *name)
{
    const char *text = json_string_value(json_object_get(reload, name));

    return text != NULL ? text : "";
}

static double number_of(const json_t *reload, const char *name)
{
    return json_number_value(json_object_get(reload, name));
}

static bool is_idle(const json_t *reload)
{
    return strcmp(text_of(reload, "state"), "idle") == 0;
}

static void show(const json_t *reload)
{
    double done = number_of(reload, "bytes_done"), total = number_of(reload, "bytes_total");
    double speed = number_of(reload, "gb_per_s");
    char bar[BAR_WIDTH + 1];

    if (strcmp(text_of(reload, "state"), "waiting") == 0) {
        terminal_progress("waiting for requests that run on the old weights");
        return;
    }
    if (total <= 0) {
        terminal_progress("looking at %s", text_of(reload, "model"));
        return;
    }
    for (int i = 0; i < BAR_WIDTH; i++)
        bar[i] = i < (int)(done / total * BAR_WIDTH) ? '#' : '.';
    bar[BAR_WIDTH] = 0;
    terminal_progress("reading [%s] %3.0f %%  %.2f of %.2f GB  %.2f GB/s  %.0f s left", bar,
                      100 * done / total, done / 1e9, total / 1e9, speed,
                      speed > 0 ? (total - done) / 1e9 / speed : 0);
}

/* The answer's "reload", or NULL and what is wrong is said, *rc the exit code. */
static json_t *ask(const struct reload_options *o, const char *line, int *code, int *rc)
{
    const char *message = "";
    json_t *answer = admin_ask(&o->admin, line, code);

    *rc = EXIT_OK;
    if (answer == NULL)
        return NULL;
    *code = admin_refusal(answer, &message);
    json_t *reload = json_incref(json_object_get(answer, "reload"));
    if (*code != 0)
        *rc = terminal_fail_code(*code, message);
    else if (reload == NULL)
        *rc = terminal_fail(
            "the runtime's answer says nothing of a reload: is it of another version?");
    if (*rc != EXIT_OK) {
        json_decref(reload);
        reload = NULL;
    }
    json_decref(answer);
    return reload;
}

/* ---- the end ----------------------------------------------------------------------------------*/

static int print_end(const struct reload_options *o, const json_t *reload)
{
    int code = (int)number_of(reload, "error");

    if (o->json) {
        json_dumpf(reload, stdout, JSON_INDENT(2));
        putchar('\n');
        return code == 0 ? EXIT_OK : EXIT_FAILED;
    }
    if (code != 0)
        return terminal_fail("%s (%s); the old weights go on serving", text_of(reload, "message"),
                             ll_error_name(code));
    printf("%s serves: read %.2f GB in %.2f s, then new requests waited for up to %.2f s",
           text_of(reload, "model"), number_of(reload, "bytes_total") / 1e9,
           number_of(reload, "read_s"), number_of(reload, "waited_s"));
    if (number_of(reload, "n_left") > 0)
        printf("; %.0f requests were cut off", number_of(reload, "n_left"));
    putchar('\n');
    return EXIT_OK;
}

/* Until reload number id is over. */
static int follow(const struct reload_options *o, json_t *reload)
{
    const double id = number_of(reload, "id");
    uint32_t n_lost = 0;
    int code, rc = EXIT_OK;

    while (!is_idle(reload)) {
        show(reload);
        if (interrupts_count() > 0) {
            terminal_progress_done();
            json_decref(reload);
            fprintf(stderr, "llring: the reload goes on by itself; \"llring status\" tells how\n");
            return EXIT_INTERRUPTED;
        }
        usleep(LOOK_US);
        json_t *next = ask(o, "reload\n", &code, &rc);
        if (next == NULL && rc == EXIT_OK && ++n_lost < LOST_MAX)
            continue;
        json_decref(reload);
        reload = next;
        n_lost = 0;
        if (next == NULL || number_of(next, "id") > id) {
            terminal_progress_done();
            json_decref(next);
            if (next == NULL && rc == EXIT_OK)
                return terminal_fail_code(code, NULL);
            return rc != EXIT_OK ? rc : terminal_fail("another reload has begun since");
        }
    }
    terminal_progress_done();
    rc = print_end(o, reload);
    json_decref(reload);
    return rc;
}

/* A directory is named by its whole path: the runtime has another working directory. Else it is a
 * name for the runtime's cache. */
static const char *whole_path(const char *model, char *buffer)
{
    struct stat st;

    if (stat(model, &st) == 0 && realpath(model, buffer) != NULL)
        return buffer;
    return model;
}

static int run(const struct command *command, int argc, char **argv)
{
    struct reload_options o = {0};
    char line[PATH_MAX + 64], path[PATH_MAX], wait[40] = "";
    int n_operands, code, rc = options_parse(command, argc, argv, &o, &n_operands);

    if (rc != OPTIONS_GO_ON)
        return rc;
    if (o.waits && o.no_wait)
        return options_usage_error(command->name, "--wait and --no-wait do not go together");
    if (o.has_wait)
        snprintf(wait, sizeof(wait), "--reload-wait=%u ", o.wait_s);
    const char *model = whole_path(argv[1], path);
    if (model[0] == 0 || strchr(model, '\n') != NULL || strchr(model, '\r') != NULL ||
        strncmp(model, "--", 2) == 0 || strlen(model) > 1023)
        return options_usage_error(command->name, "\"%s\" cannot be a model's path or name", model);
    snprintf(line, sizeof(line), "reload %s%s%s\n", wait, o.cuts ? "--cut " : "", model);
    interrupts_catch();
    json_t *reload = ask(&o, line, &code, &rc);
    if (reload == NULL)
        return rc != EXIT_OK ? rc : terminal_fail_code(code, NULL);
    if (!o.no_wait)
        return follow(&o, reload);
    if (o.json)
        json_dumpf(reload, stdout, JSON_INDENT(2));
    printf(o.json ? "\n" : "begun; \"llring status\" tells how it goes\n");
    json_decref(reload);
    return EXIT_OK;
}

const struct command command_reload = {
    .name = "reload",
    .summary = "let a runtime change to other weights while it serves",
    .operands = "DIR|NAME",
    .details =
        "For a runtime started with --reserve-weights. The new model's weights are read beside\n"
        "serving. Then requests that run end on the old weights, new ones wait for that, and the\n"
        "sets change places. Shape, tokenizer, chat format, begin and end ids must be the same;\n"
        "name and default sampling follow the new model. Whatever fails, the old one serves on.",
    .groups = {{"Options", options, 0}, {"Runtime", runtime_options, 0}},
    .n_operands_min = 1,
    .n_operands_max = 1,
    .run = run,
};
