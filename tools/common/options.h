/* SPDX-License-Identifier: Apache-2.0 */
/* tools/common/options.h - one option table a command: it is parsed, checked, shown by --help and
 * searched for the nearest name when somebody mistypes.
 *
 *   O1  An option writes to base + offset of the command's own struct, never elsewhere.
 *   O2  Long options take "--name value" or "--name=value"; `_` counts as `-`; an unambiguous
 *       beginning is enough; "--" ends options. Short ones take "-n 5" or "-n5".
 *   O3  A usage error prints one sentence to standard error and gives 2; --help gives 0. */
#ifndef TOOLS_COMMON_OPTIONS_H
#define TOOLS_COMMON_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_kind {
    OPTION_FLAG,  /* bool */
    OPTION_TEXT,  /* const char * */
    OPTION_TEXTS, /* struct option_texts: may be given several times */
    OPTION_U32,
    OPTION_U64,
    OPTION_F32,
};

#define OPTION_TEXTS_MAX 16
struct option_texts {
    const char *text[OPTION_TEXTS_MAX];
    uint32_t n;
};

struct option {
    const char *name; /* without "--"; NULL ends a table */
    char letter;      /* 0: none */
    enum option_kind kind;
    size_t offset;
    const char *argument; /* what --help calls the value; NULL for flags */
    const char *help;
    double min, max; /* numbers; both 0: any */
    size_t given;    /* offset of a bool set when the option was used; 0: none (R: not first) */
};

struct option_group {
    const char *title; /* heading in --help */
    const struct option *options;
    size_t base; /* offset of the group's struct in the command's */
};

#define OPTION_GROUPS_MAX 4
struct command {
    const char *name;     /* "" for a program without commands */
    const char *summary;  /* one line */
    const char *operands; /* "[PROMPT]" */
    const char *details;  /* paragraphs below the options in --help; NULL: none */
    struct option_group groups[OPTION_GROUPS_MAX];
    int n_operands_min, n_operands_max;
    int (*run)(const struct command *command, int argc, char **argv);
    bool passes_unknown; /* unknown options stay among the operands (serve) */
};

#define OPTIONS_GO_ON -1

/* Name of the program in messages and in --help; "llring" at start. Set first thing in main(). */
extern const char *options_program;

/* Parses argv[1 ..] into values; operands are moved to the front of argv[1 ..] and counted in
 * *n_operands. OPTIONS_GO_ON, or the exit code of the program. */
int options_parse(const struct command *command, int argc, char **argv, void *values,
                  int *n_operands);

/* Prints "<program> NAME: <what>" and the way to --help on standard error; 2. */
int options_usage_error(const char *command, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

void options_help(const struct command *command);

/* Nearest of names[n] to what was typed, NULL when nothing is near. */
const char *options_nearest(const char *typed, const char *const *names, size_t n);

#endif
