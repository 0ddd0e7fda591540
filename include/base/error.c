/* SPDX-License-Identifier: Apache-2.0 */
/* base/error.c - the error table of ll/client.h in words. */
#include "ll/client.h"

#include "base/bits.h"
#include "base/err.h"

#include <string.h>

struct row {
    int code;
    int http_status;
    const char *name;
    const char *advice;
};

#define ROW(code, http, advice)                                                                    \
    {                                                                                              \
        code, http, #code, advice                                                                  \
    }
static const struct row table[] = {
    ROW(LL_E_AGAIN, 429, "All slots or the arena are in use: read outputs, then submit again."),
    ROW(LL_E_INVAL, 400, "A field is outside its range: correct the one named."),
    ROW(LL_E_TOO_LONG, 400, "Prompt plus output exceed the context: shorten one of them."),
    ROW(LL_E_NEVER_FITS, 400,
        "It needs more KV pages or choices than the runtime has: ask for less or give the runtime more "
        "memory or sequences."),
    ROW(LL_E_BUSY, 429, "The waiting queue is full: send again after retry_ms."),
    ROW(LL_E_QUOTA, 429, "This user's attachments or memory are used up: close some clients."),
    ROW(LL_E_ABI, 500, "Library and runtime have different wire versions: install matching ones."),
    ROW(LL_E_PROTOCOL, 500, "The shared-memory protocol was broken: close the client, open anew."),
    ROW(LL_E_STALLED, 408, "The application did not read its tokens for 30 s: read faster."),
    ROW(LL_E_DEADLINE, 408, "The request's deadline passed: allow more time or send less."),
    ROW(LL_E_RUNTIME_LOST, 503, "The runtime is gone: open the client anew and send again."),
    ROW(LL_E_TIMEOUT, 503, "The runtime shows no sign of life: look at its log, restart it."),
    ROW(LL_E_FORKED, 500, "The handle belongs to the parent process: open one in the child."),
    ROW(LL_E_DRAINING, 503, "The runtime is stopping: send to another one, or wait for a restart."),
    ROW(LL_E_BACKEND, 500, "The device failed and the runtime restarts: send again then."),
    ROW(LL_E_UNSUPPORTED, 400,
        "This runtime cannot do what the request asks: leave the field out."),
    ROW(LL_E_DENIED, 401, "This user may not do that: ask the operator."),
    ROW(LL_E_QUARANTINED, 400,
        "The runtime crashed three times with this request open: it is refused for an hour."),
};

static const struct row *find(int code)
{
    for (size_t i = 0; i < LL_COUNT(table); i++)
        if (table[i].code == code)
            return &table[i];
    return NULL;
}

const char *ll_error_name(int code)
{
    const struct row *row = find(code);

    if (row != NULL)
        return row->name;
    const char *name = code < 0 && code > -1000 ? strerrorname_np(-code) : NULL;
    return name != NULL ? name : "LL_E_?";
}

const char *ll_error_advice(int code)
{
    const struct row *row = find(code);

    if (row != NULL)
        return row->advice;
    const char *text = code < 0 && code > -1000 ? strerrordesc_np(-code) : NULL;
    return text != NULL ? text : "Unknown error.";
}

int ll_error_http_status(int code)
{
    const struct row *row = find(code);

    return row != NULL ? row->http_status : 500;
}

const char *ll_error_text(void)
{
    return ll_err_text();
}

uint32_t ll_version(void)
{
    return LL_VERSION_MAJOR << 16 | LL_VERSION_MINOR << 8 | LL_VERSION_PATCH;
}
