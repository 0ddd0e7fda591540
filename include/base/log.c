/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "base/assert.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const names[] = {"error", "warn", "info", "debug"};
static const int priorities[] = {3, 4, 6, 7};

/* Relaxed everywhere: the level is a filter, nothing is published through it. */
static _Atomic int level_max = LL_LOG_INFO;

void ll_log_set_level(enum ll_log_level level)
{
    atomic_store_explicit(&level_max, (int)level, memory_order_relaxed);
}

int ll_log_level_from_name(const char *name)
{
    for (int i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0)
            return i;
    return -1;
}

static int write_head(char *line, size_t size_bytes, enum ll_log_level level)
{
    if (getenv("JOURNAL_STREAM") != NULL)
        return snprintf(line, size_bytes, "<%d>", priorities[level]);

    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    return snprintf(line, size_bytes, "%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ %-5s ",
                    utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min,
                    utc.tm_sec, now.tv_nsec / 1000000, names[level]);
}

void ll_log(enum ll_log_level level, const char *format, ...)
{
    if ((int)level > atomic_load_explicit(&level_max, memory_order_relaxed))
        return;

    char line[1024];
    va_list args;
    int used = write_head(line, sizeof(line), level);
    va_start(args, format);
    int more = vsnprintf(line + used, sizeof(line) - (size_t)used - 1, format, args);
    va_end(args);
    if (more < 0)
        return;
    size_t length = (size_t)used + (size_t)more;
    if (length > sizeof(line) - 2)
        length = sizeof(line) - 2;
    line[length++] = '\n';
    if (write(STDERR_FILENO, line, length) < 0)
        return; /* nobody is left to be told */
}

_Noreturn void ll_assert_fail(const char *file, int line, const char *what)
{
    fprintf(stderr, "llring: assertion failed: %s at %s:%d\n", what, file, line);
    abort();
}
