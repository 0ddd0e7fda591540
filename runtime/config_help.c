/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/config_help.c - the table of options in words. */
#include "runtime/config.h"

#include <string.h>

#define INDENT 30
#define WIDTH  100

/* What stands behind the name. */
static const char *placeholder(const struct ll_option *option)
{
    switch (option->kind) {
    case LL_OPTION_BOOL:
        return "";
    case LL_OPTION_CHOICE:
        return " NAME";
    case LL_OPTION_STRING:
        return option->unit;
    case LL_OPTION_BYTES:
        return " BYTES";
    default:
        return " N";
    }
}

/* 67108864 as 64M, where it is a whole number of something. */
static void format_number(const struct ll_option *option, double value, char *out, size_t n_bytes)
{
    static const char suffix[] = "TGMK";
    double size = 1024.0 * 1024 * 1024 * 1024;

    for (int i = 0; i < 4 && option->kind == LL_OPTION_BYTES; i++, size /= 1024)
        if (value >= size && value / size == (double)(uint64_t)(value / size)) {
            snprintf(out, n_bytes, "%.0f%c", value / size, suffix[i]);
            return;
        }
    snprintf(out, n_bytes, option->kind == LL_OPTION_FLOAT ? "%.10g" : "%.0f", value);
}

/* "0 to 1024 tokens; default 5", "a, b or c; default a", "" */
static void describe_values(const struct ll_option *option, char *out, size_t n_bytes)
{
    char low[32], high[32];
    size_t used = 0;

    out[0] = 0;
    if (option->kind == LL_OPTION_STRING || option->kind == LL_OPTION_BOOL)
        return;
    if (option->choices != NULL) {
        for (const char *c = option->choices; *c != 0 && used + 3 < n_bytes; c++) {
            out[used++] = *c == '|' ? ',' : *c;
            if (*c == '|')
                out[used++] = ' ';
        }
        out[used] = 0;
    } else {
        format_number(option, option->low, low, sizeof(low));
        format_number(option, option->high, high, sizeof(high));
        used = (size_t)snprintf(out, n_bytes, "%s to %s%s%s", low, high,
                                option->unit != NULL ? " " : "",
                                option->unit != NULL ? option->unit : "");
    }
    if (option->initial != NULL && used < n_bytes)
        snprintf(out + used, n_bytes - used, "; default %s", option->initial);
}

/* Words of text from column at on, broken before WIDTH; ends the line. */
static void print_wrapped(const char *text, int at, FILE *to)
{
    bool is_first = true;

    while (*text != 0) {
        int n = (int)strcspn(text, " ");
        if (!is_first && at + 1 + n > WIDTH) {
            fprintf(to, "\n%*s", INDENT, "");
            at = INDENT;
            is_first = true;
        }
        at += fprintf(to, "%s%.*s", is_first ? "" : " ", n, text);
        is_first = false;
        text += n + (text[n] == ' ');
    }
    fputc('\n', to);
}

void ll_config_help(FILE *to)
{
    size_t n;
    const struct ll_option *list = ll_config_options(&n);
    const char *group = "";

    fputs(
        "llringd MODEL [options] - serves a model to the processes of this machine\n\n"
        "Each option can also stand in the environment (--max-model-len is LLRING_MAX_MODEL_LEN)\n"
        "or in the file of --config (max-model-len = 4096). A flag wins over the environment,\n"
        "that over the file. Exit status: 0 stopped as asked, 1 failure, 2 wrong usage.\n",
        to);
    for (size_t i = 0; i < n; i++) {
        char values[256], text[512];
        if (strcmp(group, list[i].group) != 0) {
            group = list[i].group;
            fprintf(to, "\n%s\n", group);
        }
        const char *value = placeholder(&list[i]);
        int at = fprintf(to, "  --%s%s%s%s", list[i].kind == LL_OPTION_BOOL ? "[no-]" : "",
                         list[i].name, list[i].kind == LL_OPTION_STRING ? " " : "", value);
        if (at < INDENT)
            fprintf(to, "%*s", INDENT - at, "");
        else
            fprintf(to, "\n%*s", INDENT, "");
        describe_values(&list[i], values, sizeof(values));
        snprintf(text, sizeof(text), "%s%s%s%s", list[i].help, values[0] != 0 ? " (" : "", values,
                 values[0] != 0 ? ")" : "");
        print_wrapped(text, INDENT, to);
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
