/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/config_help.c - the table of options in words. */
#include "runtime/config.h"

#include <ctype.h>
#include <string.h>

/* What may stand behind the name. */
static void print_value(const struct ll_option *option, char *out, size_t n_bytes)
{
    out[0] = 0;
    if (option->kind == LL_OPTION_BOOL)
        return;
    if (option->choices != NULL)
        snprintf(out, n_bytes, " %s", option->choices);
    else if (option->unit != NULL)
        snprintf(out, n_bytes, " %s%s%s", option->kind == LL_OPTION_STRING ? "" : "N ",
                 option->unit, "");
    else
        snprintf(out, n_bytes, " N");
}

void ll_config_help(FILE *to)
{
    size_t n;
    const struct ll_option *list = ll_config_options(&n);
    const char *group = "";

    fputs(
        "llringd MODEL [options] - serves a model to the processes of this machine\n\n"
        "Each option can also stand in the environment (--max-model-len is LLRING_MAX_MODEL_LEN)\n"
        "or in the file of --config. A flag wins over the environment, that over the file.\n"
        "Exit status: 0 stopped as asked, 1 failure, 2 wrong usage.\n",
        to);
    for (size_t i = 0; i < n; i++) {
        char value[80], head[128];
        if (strcmp(group, list[i].group) != 0) {
            group = list[i].group;
            fprintf(to, "\n%s\n", group);
        }
        print_value(&list[i], value, sizeof(value));
        snprintf(head, sizeof(head), "--%s%s%s", list[i].kind == LL_OPTION_BOOL ? "[no-]" : "",
                 list[i].name, value);
        fprintf(to, "  %-38s %s", head, list[i].help);
        if (list[i].kind == LL_OPTION_U32 || list[i].kind == LL_OPTION_U64 ||
            list[i].kind == LL_OPTION_BYTES || list[i].kind == LL_OPTION_FLOAT)
            fprintf(to, " (%.10g to %.10g; %s)", list[i].low, list[i].high, list[i].initial);
        else if (list[i].kind == LL_OPTION_CHOICE ||
                 (list[i].kind == LL_OPTION_FAKE && list[i].initial != NULL))
            fprintf(to, " (%s)", list[i].initial);
        fputc('\n', to);
    }
}

static void print_choice(const char *choices, uint32_t index, FILE *to)
{
    for (; index > 0; index--)
        choices += strcspn(choices, "|") + 1;
    fprintf(to, "%.*s\n", (int)strcspn(choices, "|"), choices);
}

/* "key=value,..." of the fake backend, one option a line again. */
static void print_fake(const char *list, FILE *to)
{
    for (size_t n; *list != 0; list += n + (list[n] == ',')) {
        n = strcspn(list, ",");
        fputs("fake-", to);
        for (size_t i = 0; i < n; i++)
            fputs(list[i] == '_' ? "-" : list[i] == '=' ? " = " : (char[]){list[i], 0}, to);
        fputc('\n', to);
    }
}

void ll_config_print(const struct ll_config *config, FILE *to)
{
    size_t n;
    const struct ll_option *list = ll_config_options(&n);

    for (size_t i = 0; i < n; i++) {
        const void *field = (const char *)config + list[i].offset;
        static const char *const left_out[] = {"config", "print-config", "help", "version"};
        bool is_left_out = list[i].kind == LL_OPTION_FAKE;
        for (size_t k = 0; k < sizeof(left_out) / sizeof(left_out[0]); k++)
            is_left_out |= strcmp(list[i].name, left_out[k]) == 0;
        if (is_left_out)
            continue;
        fprintf(to, "%s = ", list[i].name);
        switch (list[i].kind) {
        case LL_OPTION_STRING:
            fprintf(to, "%s\n", (const char *)field);
            break;
        case LL_OPTION_BOOL:
            fprintf(to, "%s\n", *(const bool *)field ? "yes" : "no");
            break;
        case LL_OPTION_U32:
            fprintf(to, "%u\n", *(const uint32_t *)field);
            break;
        case LL_OPTION_U64:
        case LL_OPTION_BYTES:
            fprintf(to, "%llu\n", (unsigned long long)*(const uint64_t *)field);
            break;
        case LL_OPTION_FLOAT:
            fprintf(to, "%.9g\n", (double)*(const float *)field);
            break;
        case LL_OPTION_CHOICE:
            print_choice(list[i].choices, *(const uint32_t *)field, to);
            break;
        case LL_OPTION_FAKE:
            break;
        }
    }
    print_fake(config->fake, to);
}
