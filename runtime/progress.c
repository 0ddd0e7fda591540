/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/progress.h"

#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <unistd.h>

#define BAR_WIDTH   30
#define TERMINAL_NS (100 * LL_NS_PER_MS)
#define LOG_NS      (5 * LL_NS_PER_S)

void ll_progress_init(struct ll_progress *progress)
{
    *progress = (struct ll_progress){.is_terminal = isatty(STDERR_FILENO) == 1};
    if (!progress->is_terminal)
        progress->next_ns = LOG_NS; /* a short load needs no line */
}

void ll_progress_show(struct ll_progress *progress, const struct ll_load_progress *now)
{
    if (now->elapsed_ns < progress->next_ns || now->bytes_total == 0)
        return;
    progress->next_ns = now->elapsed_ns + (progress->is_terminal ? TERMINAL_NS : LOG_NS);

    double share = (double)now->bytes_done / (double)now->bytes_total;
    double seconds = (double)now->elapsed_ns / 1e9;
    double gb = (double)now->bytes_done / 1e9, speed = seconds > 0 ? gb / seconds : 0;
    if (!progress->is_terminal) {
        ll_info("weights: %.0f %%, %.2f of %.2f GB, %.2f GB/s", share * 100, gb,
                (double)now->bytes_total / 1e9, speed);
        return;
    }
    char bar[BAR_WIDTH + 1];
    for (int i = 0; i < BAR_WIDTH; i++)
        bar[i] = i < (int)(share * BAR_WIDTH) ? '#' : '.';
    bar[BAR_WIDTH] = 0;
    double left = speed > 0 ? ((double)now->bytes_total / 1e9 - gb) / speed : 0;
    int n = fprintf(stderr, "\rweights [%s] %3.0f %%  %.2f of %.2f GB  %.2f GB/s  %.0f s left ",
                    bar, share * 100, gb, (double)now->bytes_total / 1e9, speed, left);
    progress->n_shown = n > progress->n_shown ? n : progress->n_shown;
}

void ll_progress_end(struct ll_progress *progress)
{
    if (progress->n_shown > 0)
        fprintf(stderr, "\r%*s\r", progress->n_shown, "");
    progress->n_shown = 0;
}
