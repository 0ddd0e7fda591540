/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/llring/terminal.h"

#include "base/clock.h"
#include "ll/client.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t n_interrupts;
static volatile sig_atomic_t last_signal;

bool terminal_is(FILE *stream)
{
    return isatty(fileno(stream)) == 1;
}

bool terminal_has_colour(FILE *stream)
{
    const char *no_colour = getenv("NO_COLOR"), *term = getenv("TERM");

    if (no_colour != NULL && no_colour[0] != '\0')
        return false;
    return terminal_is(stream) && term != NULL && strcmp(term, "dumb") != 0;
}

const char *terminal_style(FILE *stream, enum terminal_style style)
{
    static const char *const sequences[] = {"\033[0m", "\033[1m", "\033[2m", "\033[31m"};

    return terminal_has_colour(stream) ? sequences[style] : "";
}

static void print_label(void)
{
    fflush(stdout); /* the sentence comes after what was printed before it */
    terminal_progress_done();
    fprintf(stderr, "%sllring:%s ", terminal_style(stderr, STYLE_RED),
            terminal_style(stderr, STYLE_PLAIN));
}

int terminal_fail(const char *format, ...)
{
    va_list list;

    print_label();
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    return EXIT_FAILED;
}

int terminal_fail_file(const char *option, const char *path, int line, const char *text,
                       const char *wanted)
{
    if (line <= 0)
        return terminal_fail("%s: %s: give %s", option, text, wanted);
    return terminal_fail("%s %s: line %d: %s: give %s", option, path, line, text, wanted);
}

int terminal_fail_code(int code, const char *text)
{
    if (text == NULL)
        text = ll_error_text();
    /* The library's texts say what to do; its table of advice is for a text that is missing. */
    if (text[0] == '\0')
        text = ll_error_advice(code);
    return terminal_fail("%s (%s)", text, ll_error_name(code));
}

static bool is_progress_shown;

void terminal_progress(const char *format, ...)
{
    static uint64_t last_ns;
    uint64_t now_ns = ll_now_ns();
    va_list list;

    if (now_ns - last_ns < 100 * LL_NS_PER_MS || !terminal_is(stderr))
        return;
    last_ns = now_ns;
    is_progress_shown = true;
    fputc('\r', stderr);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputs("\033[K", stderr);
    fflush(stderr);
}

void terminal_progress_done(void)
{
    if (!is_progress_shown)
        return;
    is_progress_shown = false;
    fputs("\r\033[K", stderr);
    fflush(stderr);
}

static void count_signal(int signal_number)
{
    n_interrupts++;
    last_signal = signal_number;
    if (n_interrupts > 1)
        _exit(128 + signal_number);
}

void interrupts_catch(void)
{
    /* No SA_RESTART: a read from the terminal has to come back. */
    struct sigaction action = {.sa_handler = count_signal}, inherited;

    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    /* A shell that starts us in the background of a script ignores SIGINT for us: Ctrl-C is then
     * meant for what runs in front. */
    if (sigaction(SIGINT, NULL, &inherited) != 0 || inherited.sa_handler != SIG_IGN)
        sigaction(SIGINT, &action, NULL);
}

bool interrupts_wait_input(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    sigset_t blocked, before;

    /* Blocked but during the sleep itself: a signal between a look at the count and a read would
     * be noticed only after the next line. */
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGINT);
    sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    while (n_interrupts == 0 && ppoll(&input, 1, NULL, &before) < 0 && errno == EINTR)
        continue;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return n_interrupts == 0;
}

int interrupts_count(void)
{
    return n_interrupts;
}

void interrupts_reset(void)
{
    n_interrupts = 0;
}

int interrupts_last(void)
{
    return last_signal;
}
