/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/batch_line.h - one line of a batch: JSON in, token ids and sampling out. */
#ifndef TOOLS_LLRING_BATCH_LINE_H
#define TOOLS_LLRING_BATCH_LINE_H

#include "tools/llring/sampling.h"

struct batch_line {
    json_t *id;      /* what the result carries: the line's "id", else its number */
    json_t *object;  /* stop strings of sampling point into it */
    uint64_t number; /* from 1 */
    uint32_t *ids;
    uint32_t n_ids, n_top;
    bool has_logprobs;
    struct sampling sampling;
};

/* Reads a line over the command line's sampling; system: NULL or a prompt for conversations that
 * have none. On failure (LL_E_INVAL with the field named, LL_E_UNSUPPORTED) *out still has id and
 * number. Free it in either case. */
int batch_line_read(struct batch_line *out, struct connection *connection, const char *text,
                    size_t n_bytes, uint64_t number, const struct sampling *sampling,
                    const char *system);
void batch_line_free(struct batch_line *line);

#endif
