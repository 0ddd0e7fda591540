/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/config_read.c - flags, environment and file into struct ll_config, by the table. */
#include "runtime/config.h"

#include "base/bits.h"
#include "base/err.h"
#include "ll/client.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static char normal(char c)
{
    return c == '_' ? '-' : c;
}

/* Is name[0 .. n) this option's, '_' and '-' being the same? */
static bool is_name(const char *option, const char *name, size_t n)
{
    if (strlen(option) != n)
        return false;
    for (size_t i = 0; i < n; i++)
        if (option[i] != normal(name[i]))
            return false;
    return true;
}

static const struct ll_option *find(const char *name, size_t n_name)
{
    size_t n;
    const struct ll_option *list = ll_config_options(&n);

    for (size_t i = 0; i < n; i++)
        if (is_name(list[i].name, name, n_name))
            return &list[i];
    return NULL;
}

/* ---- the nearest name ------------------------------------------------------------------------*/

#define NAME_MAX_BYTES 64

/* Edits (insert, delete, replace) between two names of at most NAME_MAX_BYTES. */
static uint32_t distance(const char *a, const char *b, size_t n_b)
{
    uint32_t row[NAME_MAX_BYTES + 1];
    size_t n_a = strlen(a);

    for (size_t j = 0; j <= n_b; j++)
        row[j] = (uint32_t)j;
    for (size_t i = 1; i <= n_a; i++) {
        uint32_t diagonal = row[0];
        row[0] = (uint32_t)i;
        for (size_t j = 1; j <= n_b; j++) {
            uint32_t replace = diagonal + (a[i - 1] != normal(b[j - 1]));
            diagonal = row[j];
            row[j] = (uint32_t)ll_min_u64(replace, ll_min_u64(row[j], row[j - 1]) + 1);
        }
    }
    return row[n_b];
}

static int refuse_unknown(const char *where, const char *name, size_t n_name)
{
    size_t n;
    const struct ll_option *list = ll_config_options(&n), *best = NULL;
    uint32_t least = (uint32_t)ll_max_u64(3, n_name / 3) + 1; /* further off is no help */

    for (size_t i = 0; i < n && n_name <= NAME_MAX_BYTES; i++) {
        uint32_t d = distance(list[i].name, name, n_name);
        if (d < least) {
            least = d;
            best = &list[i];
        }
    }
    n_name = ll_min_u64(n_name, 100);
    if (where == NULL && best != NULL)
        return LL_ERR(LL_E_INVAL, "unknown option --%.*s; did you mean --%s?", (int)n_name, name,
                      best->name);
    if (where == NULL)
        return LL_ERR(LL_E_INVAL, "unknown option --%.*s; see llringd --help", (int)n_name, name);
    if (best != NULL)
        return LL_ERR(LL_E_INVAL, "%s: unknown option \"%.*s\"; did you mean \"%s\"?", where,
                      (int)n_name, name, best->name);
    return LL_ERR(LL_E_INVAL, "%s: unknown option \"%.*s\"; see llringd --help", where, (int)n_name,
                  name);
}

/* ---- one value -------------------------------------------------------------------------------*/

static int refuse_number(const char *where, const struct ll_option *option, const char *value)
{
    return LL_ERR(LL_E_INVAL, "%s: \"%s\" is not allowed; %s takes %.15g to %.15g%s%s%s%s", where,
                  value, option->name, option->low, option->high, option->unit != NULL ? " " : "",
                  option->unit != NULL ? option->unit : "", option->low == option->high ? ": " : "",
                  option->low == option->high ? option->help : "");
}

static bool read_integer(const char *value, uint64_t *out)
{
    char *end;

    if (!isdigit((unsigned char)value[0]))
        return false;
    errno = 0;
    *out = strtoull(value, &end, 10);
    return errno == 0 && *end == 0;
}

/* "123", "64K", "1.5G", "16GiB", "2gb": powers of 1024. */
static bool read_bytes(const char *value, double *out)
{
    static const char suffix[] = "kmgt";
    char *end;

    if (!isdigit((unsigned char)value[0]))
        return false;
    *out = strtod(value, &end);
    const char *at = *end != 0 ? strchr(suffix, tolower((unsigned char)*end)) : NULL;
    if (at != NULL) {
        *out *= pow(1024, (double)(at - suffix + 1));
        end++;
        end += *end == 'i';
        end += *end == 'B' || *end == 'b';
    }
    return *end == 0 && isfinite(*out);
}

static bool read_choice(const char *choices, const char *value, uint32_t *out)
{
    size_t n_value = strlen(value);

    *out = 0;
    for (const char *at = choices;; (*out)++) {
        size_t n = strcspn(at, "|");
        if (n == n_value && strncasecmp(at, value, n) == 0)
            return true;
        if (at[n] == 0)
            return false;
        at += n + 1;
    }
}

static bool read_bool(const char *value, bool *out)
{
    static const char *const yes[] = {"yes", "true", "on", "1"};
    static const char *const no[] = {"no", "false", "off", "0"};

    for (size_t i = 0; i < LL_COUNT(yes); i++) {
        if (strcasecmp(value, yes[i]) == 0)
            return *out = true;
        if (strcasecmp(value, no[i]) == 0)
            return !(*out = false);
    }
    return false;
}

/* Sets key=value in the fake backend's list, which may have it already. */
static int set_fake(const char *where, const struct ll_option *option, const char *value,
                    char *list, size_t n_bytes)
{
    char key[64], kept[512] = "";
    size_t n_key = 0;

    for (const char *c = option->name + strlen("fake-"); *c != 0; c++)
        key[n_key++] = *c == '-' ? '_' : *c;
    key[n_key] = 0;
    for (const char *at = list; *at != 0;) {
        size_t n = strcspn(at, ","), used = strlen(kept);
        if (strncmp(at, key, n_key) != 0 || at[n_key] != '=')
            snprintf(kept + used, sizeof(kept) - used, "%s%.*s", used > 0 ? "," : "", (int)n, at);
        at += n + (at[n] == ',');
    }
    int n = snprintf(list, n_bytes, "%s%s%s=%s", kept, kept[0] != 0 ? "," : "", key, value);
    if (n < 0 || (size_t)n >= n_bytes)
        return LL_ERR(LL_E_INVAL, "%s: too many --fake- options", where);
    return 0;
}

/* Puts a value into the configuration. where: "--threads", "LLRING_THREADS", "FILE:3". */
static int set(struct ll_config *config, const struct ll_option *option, const char *value,
               const char *where)
{
    void *field = (char *)config + option->offset;
    uint64_t integer;
    double real;
    bool is_on;

    switch (option->kind) {
    case LL_OPTION_STRING:
        if (strlen(value) >= option->size_bytes)
            return LL_ERR(LL_E_INVAL, "%s: longer than %zu bytes", where, option->size_bytes - 1);
        memset(field, 0, option->size_bytes);
        memcpy(field, value, strlen(value));
        return 0;
    case LL_OPTION_BOOL:
        if (!read_bool(value, &is_on))
            return LL_ERR(LL_E_INVAL, "%s: \"%s\" is neither yes nor no", where, value);
        memcpy(field, &is_on, sizeof(is_on));
        return 0;
    case LL_OPTION_U32:
    case LL_OPTION_U64:
    case LL_OPTION_FAKE:
        if (!read_integer(value, &integer) || (double)integer < option->low ||
            (double)integer > option->high)
            return refuse_number(where, option, value);
        if (option->kind == LL_OPTION_FAKE)
            return set_fake(where, option, value, field, option->size_bytes);
        if (option->kind == LL_OPTION_U32)
            *(uint32_t *)field = (uint32_t)integer;
        else
            *(uint64_t *)field = integer;
        return 0;
    case LL_OPTION_BYTES:
        if (!read_bytes(value, &real) || real < option->low || real > option->high)
            return refuse_number(where, option, value);
        *(uint64_t *)field = (uint64_t)real;
        return 0;
    case LL_OPTION_FLOAT: {
        char *end;
        real = strtod(value, &end);
        if (end == value || *end != 0 || !(real >= option->low && real <= option->high))
            return refuse_number(where, option, value);
        *(float *)field = (float)real;
        return 0;
    }
    case LL_OPTION_CHOICE:
        if (!read_choice(option->choices, value, field))
            return LL_ERR(LL_E_INVAL, "%s: \"%s\" is none of %s", where, value, option->choices);
        return 0;
    }
    return LL_ERR(LL_E_INVAL, "%s: no such kind of option", where);
}

/* ---- the four sources ------------------------------------------------------------------------*/

static int read_defaults(struct ll_config *config)
{
    size_t n;
    const struct ll_option *list = ll_config_options(&n);

    memset(config, 0, sizeof(*config));
    for (size_t i = 0; i < n; i++) {
        int rc = list[i].initial != NULL ? set(config, &list[i], list[i].initial, list[i].name) : 0;
        if (rc < 0)
            return rc;
    }
    return 0;
}

static char *trim(char *text)
{
    text += strspn(text, " \t\r\n");
    for (size_t n = strlen(text); n > 0 && isspace((unsigned char)text[n - 1]); n--)
        text[n - 1] = 0;
    return text;
}

static int read_line(struct ll_config *config, char *line, const char *where)
{
    char *key = trim(line), *equals = strchr(key, '=');

    if (key[0] == '#' || key[0] == 0)
        return 0;
    if (equals == NULL)
        return LL_ERR(LL_E_INVAL, "%s: \"%.60s\" is not of the form name = value", where, key);
    *equals = 0;
    key = trim(key);
    const struct ll_option *option = find(key, strlen(key));
    if (option == NULL)
        return refuse_unknown(where, key, strlen(key));
    if (strcmp(option->name, "config") == 0)
        return LL_ERR(LL_E_INVAL, "%s: a configuration file cannot name another", where);
    return set(config, option, trim(equals + 1), where);
}

static int read_file(struct ll_config *config, const char *path)
{
    char line[2048], where[1100];
    FILE *file = fopen(path, "re");
    int rc = 0;

    if (file == NULL)
        return LL_ERRNO("--config %s", path);
    for (uint32_t number = 1; rc == 0 && fgets(line, sizeof(line), file) != NULL; number++) {
        snprintf(where, sizeof(where), "%s:%u", path, number);
        if (strchr(line, '\n') == NULL && !feof(file))
            rc = LL_ERR(LL_E_INVAL, "%s: the line is longer than %zu bytes", where,
                        sizeof(line) - 2);
        else
            rc = read_line(config, line, where);
    }
    if (rc == 0 && ferror(file))
        rc = LL_ERRNO("--config %s", path);
    fclose(file);
    return rc;
}

/* LLRING_MAX_MODEL_LEN for max-model-len. An empty variable is none. */
static int read_environment(struct ll_config *config)
{
    size_t n;
    const struct ll_option *list = ll_config_options(&n);

    for (size_t i = 0; i < n; i++) {
        char name[96] = "LLRING_";
        size_t at = strlen(name);
        for (const char *c = list[i].name; *c != 0; c++)
            name[at++] = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
        const char *value = getenv(name);
        int rc = value != NULL && value[0] != 0 ? set(config, &list[i], value, name) : 0;
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int read_flag(struct ll_config *config, int argc, char *const *argv, int *at)
{
    const char *name = argv[*at] + 2, *value = strchr(name, '=');
    size_t n = value != NULL ? (size_t)(value - name) : strlen(name);
    const struct ll_option *option = find(name, n);
    char where[80];

    snprintf(where, sizeof(where), "--%.*s", (int)ll_min_u64(n, 70), name);
    if (value != NULL)
        value++;
    if (option == NULL && n > 3 && memcmp(name, "no", 2) == 0 && normal(name[2]) == '-') {
        option = find(name + 3, n - 3);
        if (option != NULL && option->kind != LL_OPTION_BOOL)
            return LL_ERR(LL_E_INVAL, "%s: %s is no switch", where, option->name);
        if (option != NULL && value != NULL)
            return LL_ERR(LL_E_INVAL, "%s takes no value", where);
        if (option != NULL)
            return set(config, option, "no", where);
    }
    if (option == NULL)
        return refuse_unknown(NULL, name, n);
    if (value == NULL && option->kind == LL_OPTION_BOOL)
        return set(config, option, "yes", where);
    if (value == NULL) {
        if (*at + 1 >= argc)
            return LL_ERR(LL_E_INVAL, "%s needs a value (%s)", where,
                          option->unit != NULL      ? option->unit
                          : option->choices != NULL ? option->choices
                                                    : "a number");
        value = argv[++*at];
    }
    return set(config, option, value, where);
}

static int read_flags(struct ll_config *config, int argc, char *const *argv)
{
    static const struct {
        const char *letter, *name;
    } short_names[] = {{"-h", "--help"}, {"-V", "--version"}, {"-tp", "--tensor-parallel-size"}};
    bool is_ended = false, has_model = false;

    for (int i = 1; i < argc; i++) {
        int rc;
        if (!is_ended && strcmp(argv[i], "--") == 0) {
            is_ended = true;
            continue;
        }
        if (is_ended || argv[i][0] != '-') {
            if (has_model)
                return LL_ERR(LL_E_INVAL, "one model at a time, not also \"%s\"", argv[i]);
            has_model = true;
            rc = set(config, find("model", 5), argv[i], "model");
        } else if (strncmp(argv[i], "--", 2) == 0) {
            rc = read_flag(config, argc, argv, &i);
        } else {
            rc = LL_ERR(LL_E_INVAL, "unknown option %s; see llringd --help", argv[i]);
            for (size_t k = 0; k < LL_COUNT(short_names); k++)
                if (strcmp(argv[i], short_names[k].letter) == 0) {
                    char *as_long[] = {argv[0], (char *)(uintptr_t)short_names[k].name,
                                       i + 1 < argc ? argv[i + 1] : NULL};
                    int at = 1;
                    rc = read_flag(config, i + 1 < argc ? 3 : 2, as_long, &at);
                    i += at - 1;
                    break;
                }
        }
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* ---- what follows from other values ----------------------------------------------------------*/

static int fill_sockets(struct ll_config *config)
{
    const char *run = getenv("XDG_RUNTIME_DIR");
    int n = 0;

    if (config->socket[0] == 0)
        n = run != NULL && run[0] != 0
                ? snprintf(config->socket, sizeof(config->socket), "%s/llring/llring.sock", run)
                : snprintf(config->socket, sizeof(config->socket), "/run/llring/llring.sock");
    if (n >= (int)sizeof(config->socket))
        return LL_ERR(LL_E_INVAL,
                      "$XDG_RUNTIME_DIR is too long for a socket's path: give --socket");
    if (config->admin_socket[0] == 0) {
        const char *slash = strrchr(config->socket, '/');
        int n_directory = slash != NULL ? (int)(slash - config->socket) + 1 : 0;
        n = snprintf(config->admin_socket, sizeof(config->admin_socket), "%.*sadmin.sock",
                     n_directory, config->socket);
        if (n >= (int)sizeof(config->admin_socket))
            return LL_ERR(LL_E_INVAL, "--socket: no room for admin.sock beside it: give a shorter "
                                      "path or --admin-socket");
    }
    if (strcmp(config->socket, config->admin_socket) == 0)
        return LL_ERR(LL_E_INVAL, "--admin-socket and --socket must differ");
    return 0;
}

int ll_config_read(struct ll_config *out, int argc, char *const *argv)
{
    /* Flags once for the file's name (and their errors first), then all in rising order. */
    int rc = read_defaults(out);
    char path[sizeof(out->file)];

    if (rc == 0)
        rc = read_environment(out);
    if (rc == 0)
        rc = read_flags(out, argc, argv);
    if (rc < 0 || out->wants_help || out->wants_version)
        return rc;
    if (out->file[0] != 0) {
        memcpy(path, out->file, sizeof(path));
        rc = read_defaults(out);
        if (rc == 0)
            rc = read_file(out, path);
        if (rc == 0)
            rc = read_environment(out);
        if (rc == 0)
            rc = read_flags(out, argc, argv);
    }
    return rc < 0 ? rc : fill_sockets(out);
}
