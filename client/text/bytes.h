/* SPDX-License-Identifier: Apache-2.0 */
/* client/text/bytes.h - bytes in a block that grows; whoever appends bounds n. */
#ifndef CLIENT_TEXT_BYTES_H
#define CLIENT_TEXT_BYTES_H

#include "base/bits.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

struct ll_bytes {
    char *at; /* free() it */
    size_t n, capacity;
};

static inline int ll_bytes_append(struct ll_bytes *to, const char *text, size_t n_bytes)
{
    if (n_bytes == 0)
        return 0;
    if (to->capacity - to->n < n_bytes) {
        size_t wanted = ll_pow2_ceil(to->n + n_bytes + 64);
        char *grown = realloc(to->at, wanted);
        if (grown == NULL)
            return LL_ERR(-ENOMEM, "no memory for %zu bytes of text", wanted);
        to->at = grown;
        to->capacity = wanted;
    }
    memcpy(to->at + to->n, text, n_bytes);
    to->n += n_bytes;
    return 0;
}

#endif
