/* SPDX-License-Identifier: Apache-2.0 */
/* base/log.h - one line an event on standard error: time, level, text.
 *
 * For start, stop, attach, errors: never on the step thread's path while a step runs, never with
 * prompt or output text. Any thread; a line is one write(). When standard error is the journal
 * (JOURNAL_STREAM is set) lines carry <N> priorities and no time. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

enum ll_log_level { LL_LOG_ERROR, LL_LOG_WARN, LL_LOG_INFO, LL_LOG_DEBUG };

/* Lines above level are dropped; LL_LOG_INFO at start. */
void ll_log_set_level(enum ll_log_level level);

/* "error", "warn", "info" or "debug"; -1 for anything else. */
int ll_log_level_from_name(const char *name);

void ll_log(enum ll_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define ll_error(...) ll_log(LL_LOG_ERROR, __VA_ARGS__)
#define ll_warn(...)  ll_log(LL_LOG_WARN, __VA_ARGS__)
#define ll_info(...)  ll_log(LL_LOG_INFO, __VA_ARGS__)
#define ll_debug(...) ll_log(LL_LOG_DEBUG, __VA_ARGS__)

#endif
