/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/serve.c - `llring serve MODEL`: starts llringd, hands every option through, stops
 * it cleanly. llringd prints the progress of loading and its own log. */
#include "tools/llring/commands.h"
#include "tools/llring/process.h"
#include "tools/llring/terminal.h"

static int run(const struct command *command, int argc, char **argv)
{
    int n_operands;
    int rc = options_parse(command, argc, argv, NULL, &n_operands);

    if (rc == EXIT_OK) { /* --help: llringd knows its options best */
        const char *help = "--help";
        pid_t pid = process_start(&help, 1, 0);
        return pid < 0 ? EXIT_FAILED : process_wait(pid);
    }
    if (rc != OPTIONS_GO_ON)
        return rc;
    interrupts_catch();
    pid_t pid = process_start((const char *const *)argv + 1, n_operands, 0);
    return pid < 0 ? EXIT_FAILED : process_wait(pid);
}

const struct command command_serve = {
    .name = "serve",
    .summary = "load a model and serve it until Ctrl-C",
    .operands = "MODEL",
    .groups = {{0}},
    .details =
        "MODEL is a directory with config.json, tokenizer.json and safetensors. Every option\n"
        "goes to llringd:\n\n",
    .n_operands_min = 1,
    .n_operands_max = -1,
    .run = run,
    .passes_unknown = true,
};
