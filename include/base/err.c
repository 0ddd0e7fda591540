/* SPDX-License-Identifier: Apache-2.0 */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char text[LL_ERR_TEXT_BYTES];

int ll_err_set(int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return code;
}

int ll_err_set_errno(int error, const char *format, ...)
{
    char reason[128];
    va_list args;

    va_start(args, format);
    int used = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (used >= 0 && (size_t)used < sizeof(text))
        snprintf(text + used, sizeof(text) - (size_t)used, ": %s",
                 strerror_r(error, reason, sizeof(reason)));
    return -error;
}

int ll_err_prefix(int code, const char *format, ...)
{
    char tail[LL_ERR_TEXT_BYTES];
    va_list args;

    memcpy(tail, text, sizeof(tail));
    va_start(args, format);
    int used = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (used >= 0 && (size_t)used < sizeof(text))
        snprintf(text + used, sizeof(text) - (size_t)used, ": %.*s",
                 (int)(sizeof(text) - (size_t)used), tail); /* cut on purpose, which gcc now sees */
    return code;
}

const char *ll_err_text(void)
{
    return text;
}
