/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/llring/process.h"

#include "tools/llring/terminal.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define STOP_WAIT_MS 10000

/* program in the directory of this one, else the one in PATH. */
static void find_program(const char *program, char path[PATH_MAX])
{
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 1);
    char *slash = NULL;

    if (n > 0) {
        path[n] = '\0';
        slash = strrchr(path, '/');
    }
    if (slash != NULL && (size_t)(slash - path) + strlen(program) + 2 <= PATH_MAX) {
        strcpy(slash + 1, program);
        if (access(path, X_OK) == 0)
            return;
    }
    strcpy(path, program);
}

/* In the child. Only what may be called after fork(). */
static _Noreturn void become_program(const char *path, char **argv, pid_t parent, int to_stderr)
{
    sigset_t none;

    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) /* it died before the line above */
        _exit(128 + SIGTERM);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (to_stderr)
        dup2(STDERR_FILENO, STDOUT_FILENO);
    execvp(path, argv);
    _exit(127);
}

pid_t process_start(const char *program, const char *const *arguments, int n, int to_stderr)
{
    char path[PATH_MAX];
    pid_t parent = getpid();
    sigset_t all, before;
    const char **argv = calloc((size_t)n + 2, sizeof(*argv));

    if (argv == NULL) {
        terminal_fail("no memory to start %s", program);
        return -ENOMEM;
    }
    find_program(program, path);
    argv[0] = path;
    memcpy(argv + 1, arguments, (size_t)n * sizeof(*argv));
    fflush(stdout);
    /* A signal before the child has given up our handlers would only be counted, by a copy of us.
     */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pid_t pid = fork();
    if (pid == 0)
        become_program(path, (char **)(uintptr_t)argv, parent, to_stderr);
    int error = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    free(argv);
    if (pid < 0) {
        terminal_fail("%s could not be started: %s", program, strerror(error));
        return -error;
    }
    setpgid(pid, pid); /* both sides: whoever is first */
    return pid;
}

int process_exit_code(const char *program, int status)
{
    if (WIFSIGNALED(status))
        return 128 + WTERMSIG(status);
    if (WEXITSTATUS(status) == 127)
        terminal_fail("%s was not found: it belongs beside llring, or into PATH", program);
    return WEXITSTATUS(status);
}

int process_wait(pid_t pid)
{
    sigset_t awaited;
    int status;

    /* Blocked from here on, so that none slips in between a look and a sleep. */
    sigemptyset(&awaited);
    sigaddset(&awaited, SIGINT);
    sigaddset(&awaited, SIGTERM);
    sigaddset(&awaited, SIGCHLD);
    sigprocmask(SIG_BLOCK, &awaited, NULL);
    if (interrupts_count() > 0)
        kill(pid, interrupts_last());
    for (;;) {
        pid_t ended = waitpid(pid, &status, WNOHANG);
        if (ended == pid)
            return process_exit_code("llringd", status);
        if (ended < 0)
            return EXIT_FAILED;
        int signal_number = sigwaitinfo(&awaited, NULL);
        if (signal_number == SIGINT || signal_number == SIGTERM)
            kill(pid, signal_number);
    }
}

int process_stop(pid_t pid)
{
    int status;

    kill(pid, SIGTERM);
    for (int i = 0; i < STOP_WAIT_MS / 10; i++) {
        pid_t ended = waitpid(pid, &status, WNOHANG);
        if (ended == pid)
            return process_exit_code("llringd", status);
        if (ended < 0 && errno != EINTR)
            return EXIT_FAILED;
        usleep(10000);
    }
    kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    return process_exit_code("llringd", status);
}
