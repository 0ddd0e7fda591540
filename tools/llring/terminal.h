/* SPDX-License-Identifier: Apache-2.0 */
/* tools/llring/terminal.h - manners towards the person or the pipe at the other end: colour and
 * progress only on a terminal, one sentence for a failure, Ctrl-C as a count that loops look at. */
#ifndef TOOLS_LLRING_TERMINAL_H
#define TOOLS_LLRING_TERMINAL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Exit codes of llring; 128 + signal where a signal ended the work. */
enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

/* A terminal that may be coloured: not with NO_COLOR set or TERM=dumb. */
bool terminal_has_colour(FILE *stream);
bool terminal_is(FILE *stream);

enum terminal_style { STYLE_PLAIN, STYLE_BOLD, STYLE_DIM, STYLE_RED };
/* Escape sequence of a style, "" where the stream takes no colour. */
const char *terminal_style(FILE *stream, enum terminal_style style);

/* "llring: <text>" on standard error; EXIT_FAILED. */
int terminal_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same for a file that an option names: what is wrong in which line (0 or less: the file itself
 * cannot be read, and the text says its name) and what to give instead. */
int terminal_fail_file(const char *option, const char *path, int line, const char *text,
                       const char *wanted);

/* The same for a code of the library: what went wrong and what to do, with the code's name. text
 * NULL: ll_error_text(). */
int terminal_fail_code(int code, const char *text);

/* One status line on standard error, redrawn in place at most ten times a second; nothing when
 * that is no terminal. _done wipes it. */
void terminal_progress(const char *format, ...) __attribute__((format(printf, 1, 2)));
void terminal_progress_done(void);

/* From here on SIGINT (unless it came ignored) and SIGTERM are counted instead of fatal; a second
 * one without a reset in between ends the program at once. */
void interrupts_catch(void);
int interrupts_count(void);
/* Waits until standard input, a terminal, has a line; false when it was interrupted before. */
bool interrupts_wait_input(void);
void interrupts_reset(void);
/* SIGINT or SIGTERM, whichever came last; 0: none. */
int interrupts_last(void);

#endif
