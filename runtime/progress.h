/* SPDX-License-Identifier: Apache-2.0 */
/* runtime/progress.h - how far a load is: a bar on a terminal, a line every few seconds in a log.
 */
#ifndef RUNTIME_PROGRESS_H
#define RUNTIME_PROGRESS_H

#include "runtime/loader.h"

#include <stdbool.h>

struct ll_progress {
    bool is_terminal;
    uint64_t next_ns; /* of the load's own time */
    int n_shown;      /* characters of the bar's line */
};

/* Looks at standard error. */
void ll_progress_init(struct ll_progress *progress);
/* Shows, at most 10 times a second on a terminal and every 5 s in a log. */
void ll_progress_show(struct ll_progress *progress, const struct ll_load_progress *now);
/* Wipes the bar. */
void ll_progress_end(struct ll_progress *progress);

#endif
