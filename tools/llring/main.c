/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/main.c - finds the command and lets it run. */
#include "base/bits.h"
#include "ll/client.h"
#include "tools/llring/commands.h"
#include "tools/llring/terminal.h"
#include "tools/offline/offline.h"

#include <signal.h>
#include <string.h>

static const struct command *const commands[] = {
    &command_serve,  &command_chat,   &command_complete, &command_batch,   &command_bench,
    &command_status, &command_reload, &command_check,    &command_inspect, &command_quantize,
};

static int print_help(void)
{
    printf("llring - serves Llama models to processes on this machine\n\n"
           "usage: llring COMMAND [options]\n\nCommands:\n");
    for (size_t i = 0; i < LL_COUNT(commands); i++)
        printf("  %-10s %s\n", commands[i]->name, commands[i]->summary);
    printf("\nllring COMMAND --help tells a command's options; llring --version the version.\n"
           "Exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted.\n");
    return EXIT_OK;
}

static int print_version(void)
{
    printf("llring %d.%d.%d\n", LL_VERSION_MAJOR, LL_VERSION_MINOR, LL_VERSION_PATCH);
    return EXIT_OK;
}

static int unknown_command(const char *name)
{
    const char *names[LL_COUNT(commands)];

    for (size_t i = 0; i < LL_COUNT(commands); i++)
        names[i] = commands[i]->name;
    const char *nearest = options_nearest(name, names, LL_COUNT(commands));
    if (nearest != NULL)
        return options_usage_error("", "unknown command \"%s\"; did you mean \"%s\"?", name,
                                   nearest);
    return options_usage_error("", "unknown command \"%s\"", name);
}

/* A pipe that was closed by its reader (`llring ... | head`) ends the program without a word. */
static int close_output(int rc)
{
    if (fflush(stdout) != 0 && rc == EXIT_OK)
        return terminal_fail("standard output could not be written: is the disk full?");
    return rc;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return options_usage_error("", "a command is missing");
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        return close_output(print_help());
    if (strcmp(name, "--version") == 0)
        return close_output(print_version());
    if (strcmp(name, "help") == 0 && argc == 2)
        return close_output(print_help());
    for (size_t i = 0; i < LL_COUNT(commands); i++) {
        const struct command *command = commands[i];
        if (strcmp(name, command->name) == 0)
            return close_output(command->run(command, argc - 1, argv + 1));
        if (strcmp(name, "help") == 0 && strcmp(argv[2], command->name) == 0) {
            options_help(command);
            return close_output(EXIT_OK);
        }
    }
    if (name[0] == '-')
        return options_usage_error("", "unknown option %s; a command comes first", name);
    return unknown_command(strcmp(name, "help") == 0 ? argv[2] : name);
}
