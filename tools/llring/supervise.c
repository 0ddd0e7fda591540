/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/llring/supervise.h"

#include "base/bits.h"
#include "base/clock.h"
#include "tools/llring/process.h"
#include "tools/llring/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define QUICK_NS       (30 * LL_NS_PER_S)
#define YOUNG_NS       (2 * LL_NS_PER_S) /* SV3 */
#define WAIT_FIRST_NS  (LL_NS_PER_S / 10)
#define WAIT_MAX_NS    (10 * LL_NS_PER_S)
#define QUICK_ENDS_MAX 6
#define DEVICE_FAILED  3 /* runtime/server.h */

struct child {
    const struct supervise_program *program;
    pid_t pid;              /* 0: not running */
    uint64_t start_ns;      /* of the last start */
    uint64_t next_start_ns; /* 0: none is due */
    int n_starts, n_quick;
};

struct supervisor {
    struct child runtime, proxy;
    bool is_restarting;
    int n_stops;
    int code; /* to end with */
};

/* SV4. */
static void stop(struct supervisor *s, int signal_number)
{
    s->n_stops++;
    s->proxy.next_start_ns = s->runtime.next_start_ns = 0;
    if (s->proxy.pid > 0)
        kill(s->proxy.pid, signal_number);
    if (s->runtime.pid > 0 && (s->proxy.pid == 0 || s->n_stops > 1))
        kill(s->runtime.pid, signal_number);
}

static void end_all(struct supervisor *s, int code)
{
    s->code = code;
    if (s->n_stops == 0)
        stop(s, SIGTERM);
}

static void start(struct supervisor *s, struct child *child)
{
    const struct supervise_program *program = child->program;
    const char **arguments = calloc((size_t)program->n + 1, sizeof(*arguments));
    int n = program->n;

    child->next_start_ns = 0;
    child->start_ns = ll_now_ns();
    if (arguments == NULL) {
        end_all(s, terminal_fail("no memory to start %s", program->name));
        return;
    }
    if (n > 0)
        memcpy(arguments, program->arguments, (size_t)n * sizeof(*arguments));
    if (child->n_starts++ == 0 && program->first_only != NULL)
        arguments[n++] = program->first_only;
    pid_t pid = process_start(program->name, arguments, n, 0);
    child->pid = pid > 0 ? pid : 0;
    free(arguments);
    if (pid < 0) /* it has been said why */
        end_all(s, EXIT_FAILED);
}

/* SV1. */
static void start_anew(struct supervisor *s, struct child *child, int status)
{
    const char *name = child->program->name;
    uint64_t now_ns = ll_now_ns(), wait_ns = WAIT_FIRST_NS;
    bool has_signal = WIFSIGNALED(status);
    int number = has_signal ? WTERMSIG(status) : WEXITSTATUS(status);

    child->n_quick = now_ns - child->start_ns < QUICK_NS ? child->n_quick + 1 : 1;
    if (child->n_quick >= QUICK_ENDS_MAX) {
        terminal_fail("%s has ended %d times, each within %d s of its start, the last time with %s "
                      "%d: given up; what it said is above",
                      name, child->n_quick, (int)(QUICK_NS / LL_NS_PER_S),
                      has_signal ? "signal" : "status", number);
        end_all(s, process_exit_code(name, status));
        return;
    }
    for (int i = 1; i < child->n_quick && wait_ns < WAIT_MAX_NS; i++)
        wait_ns *= 2;
    wait_ns = ll_min_u64(wait_ns, WAIT_MAX_NS);
    child->next_start_ns = now_ns + wait_ns;
    fprintf(stderr, "llring: %s ended (%s %d); it is started anew in %.1f s\n", name,
            has_signal ? "signal" : "status", number, (double)wait_ns / 1e9);
}

/* SV2. */
static void runtime_ended(struct supervisor *s, int status)
{
    int code = process_exit_code("llringd", status);
    bool has_died = WIFSIGNALED(status) || code == DEVICE_FAILED ||
                    (code == EXIT_FAILED && s->runtime.n_starts > 1);

    s->runtime.pid = 0;
    if (s->n_stops == 0 && s->is_restarting && has_died)
        start_anew(s, &s->runtime, status);
    else
        end_all(s, s->code != EXIT_OK ? s->code : code);
}

/* SV3. */
static void proxy_ended(struct supervisor *s, int status)
{
    bool is_young = ll_now_ns() - s->proxy.start_ns < YOUNG_NS && s->proxy.n_starts == 1;

    s->proxy.pid = 0;
    if (s->n_stops > 0) {
        if (s->runtime.pid > 0)
            kill(s->runtime.pid, SIGTERM);
    } else if (!s->is_restarting || (WIFEXITED(status) && is_young)) {
        end_all(s, process_exit_code("llring-http", status));
    } else {
        start_anew(s, &s->proxy, status);
    }
}

static void reap(struct supervisor *s)
{
    pid_t ended;
    int status;

    while ((ended = waitpid(-1, &status, WNOHANG)) > 0) {
        if (ended == s->runtime.pid)
            runtime_ended(s, status);
        else if (ended == s->proxy.pid)
            proxy_ended(s, status);
    }
}

/* Starts it when it is due; lowers *wait_ns to when it will be. */
static void start_when_due(struct supervisor *s, struct child *child, uint64_t now_ns,
                           uint64_t *wait_ns)
{
    if (child->next_start_ns != 0 && child->next_start_ns <= now_ns)
        start(s, child);
    if (child->next_start_ns != 0)
        *wait_ns = ll_min_u64(*wait_ns, child->next_start_ns - now_ns);
}

static bool is_over(const struct child *child)
{
    return child->pid == 0 && child->next_start_ns == 0;
}

int supervise(const struct supervise_program *runtime, const struct supervise_program *proxy,
              bool is_restarting)
{
    struct supervisor s = {
        .runtime.program = runtime, .proxy.program = proxy, .is_restarting = is_restarting};
    sigset_t awaited;

    /* Blocked before there is a child, so that no end of one is missed. */
    sigemptyset(&awaited);
    sigaddset(&awaited, SIGINT);
    sigaddset(&awaited, SIGTERM);
    sigaddset(&awaited, SIGCHLD);
    sigprocmask(SIG_BLOCK, &awaited, NULL);
    start(&s, &s.runtime);
    if (proxy->name != NULL && s.n_stops == 0)
        start(&s, &s.proxy);
    if (interrupts_count() > 0)
        stop(&s, interrupts_last());
    for (;;) {
        uint64_t now_ns = ll_now_ns(), wait_ns = WAIT_MAX_NS;
        reap(&s);
        start_when_due(&s, &s.runtime, now_ns, &wait_ns);
        start_when_due(&s, &s.proxy, now_ns, &wait_ns);
        if (is_over(&s.runtime) && is_over(&s.proxy))
            return s.code;
        const struct timespec span = {.tv_sec = (time_t)(wait_ns / LL_NS_PER_S),
                                      .tv_nsec = (long)(wait_ns % LL_NS_PER_S)};
        int number = sigtimedwait(&awaited, NULL, &span);
        if (number == SIGINT || number == SIGTERM)
            stop(&s, number);
    }
}
