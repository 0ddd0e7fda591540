/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/common/options.h"

#include "base/bits.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES_MAX 64
#define NAMES_MAX      96 /* options of one command; the largest has about 30 */

const char *options_program = "llring";

int options_usage_error(const char *command, const char *format, ...)
{
    va_list list;

    fprintf(stderr, "%s%s%s: ", options_program, command[0] != '\0' ? " " : "", command);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, "\nTry: %s %s%s--help\n", options_program, command,
            command[0] != '\0' ? " " : "");
    return 2;
}

/* Edits (insert, delete, replace, swap neighbours) that turn a into b; both < NAME_BYTES_MAX. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t n_a = strlen(a), n_b = strlen(b);
    size_t row[3][NAME_BYTES_MAX + 1];
    size_t *before = row[0], *last = row[1], *now = row[2];

    for (size_t j = 0; j <= n_b; j++)
        last[j] = j;
    for (size_t i = 1; i <= n_a; i++) {
        now[0] = i;
        for (size_t j = 1; j <= n_b; j++) {
            size_t best = last[j - 1] + (a[i - 1] != b[j - 1]);
            best = ll_min_u64(best, ll_min_u64(last[j], now[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = ll_min_u64(best, before[j - 2] + 1);
            now[j] = best;
        }
        size_t *free_row = before;
        before = last;
        last = now;
        now = free_row;
    }
    return last[n_b];
}

const char *options_nearest(const char *typed, const char *const *names, size_t n)
{
    const char *nearest = NULL;
    size_t best = 4; /* more edits than three is another word */

    if (strlen(typed) >= NAME_BYTES_MAX)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        size_t distance = edit_distance(typed, names[i]);
        if (strncmp(names[i], typed, strlen(typed)) == 0 && typed[0] != '\0')
            distance = ll_min_u64(distance, 1);
        if (distance < best && distance * 2 <= strlen(names[i])) {
            best = distance;
            nearest = names[i];
        }
    }
    return nearest;
}

struct found {
    const struct option *option;
    size_t base;
};

/* An exact name, else the one option that begins so. n_begin: how many begin so. */
static struct found find_long(const struct command *command, const char *name, size_t *n_begin)
{
    struct found found = {0};

    *n_begin = 0;
    for (size_t g = 0; g < OPTION_GROUPS_MAX && command->groups[g].options != NULL; g++) {
        const struct option_group *group = &command->groups[g];
        for (const struct option *option = group->options; option->name != NULL; option++) {
            if (strncmp(option->name, name, strlen(name)) != 0)
                continue;
            bool is_exact = strlen(option->name) == strlen(name);
            if (is_exact || *n_begin == 0)
                found = (struct found){option, group->base};
            if (is_exact) {
                *n_begin = 1;
                return found;
            }
            *n_begin += 1;
        }
    }
    if (*n_begin != 1)
        found.option = NULL;
    return found;
}

static struct found find_short(const struct command *command, char letter)
{
    for (size_t g = 0; g < OPTION_GROUPS_MAX && command->groups[g].options != NULL; g++) {
        const struct option_group *group = &command->groups[g];
        for (const struct option *option = group->options; option->name != NULL; option++)
            if (option->letter == letter)
                return (struct found){option, group->base};
    }
    return (struct found){0};
}

static int range_error(const struct command *command, const struct option *option,
                       const char *value)
{
    if (option->min == 0 && option->max == 0)
        return options_usage_error(command->name, "--%s takes a number, not \"%s\"", option->name,
                                   value);
    return options_usage_error(command->name, "--%s takes a number from %g to %g, not \"%s\"",
                               option->name, option->min, option->max, value);
}

static bool is_outside(const struct option *option, double number)
{
    return (option->min != 0 || option->max != 0) &&
           !(number >= option->min && number <= option->max);
}

static int set_number(const struct command *command, const struct option *option, char *target,
                      const char *value)
{
    char *end = NULL;

    errno = 0;
    if (option->kind == OPTION_F32) {
        float number = strtof(value, &end);
        if (end == value || *end != '\0' || !isfinite(number) || is_outside(option, number))
            return range_error(command, option, value);
        memcpy(target, &number, sizeof(number));
        return OPTIONS_GO_ON;
    }
    unsigned long long number = strtoull(value, &end, 0);
    bool is_bad = end == value || *end != '\0' || errno != 0 || strchr(value, '-') != NULL ||
                  (option->kind == OPTION_U32 && number > UINT32_MAX) ||
                  is_outside(option, (double)number);
    if (is_bad)
        return range_error(command, option, value);
    if (option->kind == OPTION_U32) {
        uint32_t narrow = (uint32_t)number;
        memcpy(target, &narrow, sizeof(narrow));
    } else {
        uint64_t wide = number;
        memcpy(target, &wide, sizeof(wide));
    }
    return OPTIONS_GO_ON;
}

static int set_value(const struct command *command, struct found found, char *values,
                     const char *value)
{
    char *target = values + found.base + found.option->offset;

    if (found.option->given != 0)
        *(bool *)(values + found.base + found.option->given) = true;
    switch (found.option->kind) {
    case OPTION_FLAG:
        *(bool *)target = true;
        return OPTIONS_GO_ON;
    case OPTION_TEXT:
        memcpy(target, &value, sizeof(value));
        return OPTIONS_GO_ON;
    case OPTION_TEXTS: {
        struct option_texts *texts = (struct option_texts *)(void *)target;
        if (texts->n == OPTION_TEXTS_MAX)
            return options_usage_error(command->name, "--%s may be given %d times at most",
                                       found.option->name, OPTION_TEXTS_MAX);
        texts->text[texts->n++] = value;
        return OPTIONS_GO_ON;
    }
    case OPTION_U32:
    case OPTION_U64:
    case OPTION_F32:
        return set_number(command, found.option, target, value);
    }
    return OPTIONS_GO_ON;
}

static int unknown_option(const struct command *command, const char *name)
{
    const char *names[NAMES_MAX] = {"help"};
    size_t n = 1;

    for (size_t g = 0; g < OPTION_GROUPS_MAX && command->groups[g].options != NULL; g++)
        for (const struct option *option = command->groups[g].options; option->name != NULL;
             option++)
            if (n < NAMES_MAX)
                names[n++] = option->name;
    const char *nearest = options_nearest(name, names, n);
    if (nearest != NULL)
        return options_usage_error(command->name, "unknown option --%s; did you mean --%s?", name,
                                   nearest);
    return options_usage_error(command->name, "unknown option --%s", name);
}

/* One "--name[=value]" at argv[*i]; moves *i past a value of its own. */
static int parse_long(const struct command *command, int argc, char **argv, int *i, char *values,
                      bool *is_operand)
{
    char name[NAME_BYTES_MAX];
    const char *typed = argv[*i] + 2;
    const char *equals = strchr(typed, '=');
    size_t n_name = equals != NULL ? (size_t)(equals - typed) : strlen(typed), n_begin = 0;

    if (n_name >= sizeof(name)) {
        *is_operand = command->passes_unknown;
        return *is_operand ? OPTIONS_GO_ON : unknown_option(command, typed);
    }
    for (size_t k = 0; k < n_name; k++)
        name[k] = typed[k] == '_' ? '-' : typed[k];
    name[n_name] = '\0';
    if (strcmp(name, "help") == 0) {
        options_help(command);
        return 0;
    }
    struct found found = find_long(command, name, &n_begin);
    /* What is passed on may begin like one of ours: here only the whole name counts. */
    bool is_whole = found.option != NULL && strcmp(found.option->name, name) == 0;
    if (command->passes_unknown && !is_whole) {
        *is_operand = true;
        return OPTIONS_GO_ON;
    }
    if (n_begin > 1)
        return options_usage_error(command->name, "--%s could be several options; write it out",
                                   name);
    if (found.option == NULL)
        return unknown_option(command, name);

    const char *value = equals != NULL ? equals + 1 : NULL;
    if (found.option->kind == OPTION_FLAG && value != NULL)
        return options_usage_error(command->name, "--%s takes no value", found.option->name);
    if (found.option->kind != OPTION_FLAG && value == NULL) {
        if (*i + 1 >= argc)
            return options_usage_error(command->name, "--%s needs a value: --%s %s",
                                       found.option->name, found.option->name,
                                       found.option->argument);
        value = argv[++*i];
    }
    return set_value(command, found, values, value);
}

/* One "-x", "-x value" or "-xvalue"; flags may be joined: "-ab". */
static int parse_short(const struct command *command, int argc, char **argv, int *i, char *values,
                       bool *is_operand)
{
    for (const char *at = argv[*i] + 1; *at != '\0'; at++) {
        struct found found = find_short(command, *at);
        if (*at == 'h' && found.option == NULL) {
            options_help(command);
            return 0;
        }
        if (found.option == NULL && command->passes_unknown) {
            *is_operand = true;
            return OPTIONS_GO_ON;
        }
        if (found.option == NULL)
            return options_usage_error(command->name, "unknown option -%c", *at);
        const char *value = NULL;
        bool takes_value = found.option->kind != OPTION_FLAG;
        if (takes_value && at[1] != '\0')
            value = at + 1;
        else if (takes_value && *i + 1 < argc)
            value = argv[++*i];
        else if (takes_value)
            return options_usage_error(command->name, "-%c needs a value: -%c %s", *at, *at,
                                       found.option->argument);
        int rc = set_value(command, found, values, value);
        if (rc != OPTIONS_GO_ON || takes_value)
            return rc;
    }
    return OPTIONS_GO_ON;
}

int options_parse(const struct command *command, int argc, char **argv, void *values,
                  int *n_operands)
{
    int n = 0;
    bool is_ended = false;

    for (int i = 1; i < argc; i++) {
        char *argument = argv[i];
        bool is_operand = is_ended || argument[0] != '-' || argument[1] == '\0';
        int rc = OPTIONS_GO_ON;

        if (!is_operand && strcmp(argument, "--") == 0) {
            is_ended = true;
            continue;
        }
        if (!is_operand && argument[1] == '-')
            rc = parse_long(command, argc, argv, &i, values, &is_operand);
        else if (!is_operand)
            rc = parse_short(command, argc, argv, &i, values, &is_operand);
        if (rc != OPTIONS_GO_ON)
            return rc;
        if (is_operand)
            argv[1 + n++] = argument;
    }
    *n_operands = n;
    if (n < command->n_operands_min)
        return options_usage_error(command->name, "%s is missing", command->operands);
    if (n > command->n_operands_max && command->n_operands_max >= 0)
        return options_usage_error(command->name, "unexpected argument \"%s\"",
                                   argv[1 + command->n_operands_max]);
    return OPTIONS_GO_ON;
}

static void help_line(const struct option *option)
{
    char left[64];
    int width = snprintf(
        left, sizeof(left), "  %s%c%s--%s%s%s", option->letter != 0 ? "-" : " ",
        option->letter != 0 ? option->letter : ' ', option->letter != 0 ? ", " : "  ", option->name,
        option->argument != NULL ? " " : "", option->argument != NULL ? option->argument : "");

    printf("%-32s", left);
    if (width > 31)
        printf("\n%32s", "");
    /* Lines of the help text are broken by hand; each begins under the first. */
    for (const char *text = option->help;;) {
        const char *end = strchr(text, '\n');
        printf("%.*s\n", end != NULL ? (int)(end - text) : (int)strlen(text), text);
        if (end == NULL)
            return;
        printf("%32s", "");
        text = end + 1;
    }
}

void options_help(const struct command *command)
{
    static const struct option help = {.name = "help", .letter = 'h', .help = "show this"};

    const char *space = command->name[0] != '\0' ? " " : "";
    printf("%s%s%s - %s\n\nusage: %s%s%s [options]%s%s\n", options_program, space, command->name,
           command->summary, options_program, space, command->name,
           command->operands[0] != '\0' ? " " : "", command->operands);
    for (size_t g = 0; g < OPTION_GROUPS_MAX && command->groups[g].options != NULL; g++) {
        printf("\n%s:\n", command->groups[g].title);
        for (const struct option *option = command->groups[g].options; option->name != NULL;
             option++)
            help_line(option);
        if (g == 0)
            help_line(&help);
    }
    if (command->groups[0].options == NULL) {
        printf("\nOptions:\n");
        help_line(&help);
    }
    if (command->details != NULL)
        printf("\n%s", command->details);
}
