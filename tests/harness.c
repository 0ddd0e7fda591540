/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/harness.h"
#include "base/clock.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char path[512];

const char *ll_test_source(const char *relative)
{
    snprintf(path, sizeof(path), "%s/%s", LL_SOURCE_DIR, relative);
    return path;
}

const char *ll_test_shared(const char *relative)
{
    snprintf(path, sizeof(path), "%s/../shared/%s", LL_SOURCE_DIR, relative);
    return access(path, R_OK) == 0 ? path : NULL;
}

double ll_test_seconds(double fallback)
{
    const char *text = getenv("LL_STRESS_SECONDS");

    return text != NULL && atof(text) > 0 ? atof(text) : fallback;
}

uint64_t ll_test_seed(void)
{
    static uint64_t seed;

    if (seed == 0) {
        const char *text = getenv("LL_TEST_SEED");
        seed = text != NULL ? strtoull(text, NULL, 0) : ll_now_ns() * 0x9e3779b97f4a7c15ull;
        printf("seed %#llx (LL_TEST_SEED replays it)\n", (unsigned long long)seed);
    }
    return seed;
}

bool ll_test_aborts(void (*fault)(void *on), void *on)
{
    int status = 0;

    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        close(STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        fault(on);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

/* The socket is bound only when the runtime is READY. */
static bool is_listening(const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path);
    int rc = connect(fd, (struct sockaddr *)&address, sizeof(address));
    close(fd);
    return rc == 0;
}

int ll_test_runtime_start(struct ll_test_runtime *out, const char *const *arguments)
{
    const char *argv[64] = {LL_BUILD_DIR "/llringd", "--socket", out->socket};
    int argc = 3;

    snprintf(out->directory, sizeof(out->directory), "/tmp/llring-test-XXXXXX");
    if (mkdtemp(out->directory) == NULL)
        return -errno;
    snprintf(out->socket, sizeof(out->socket), "%s/llring.sock", out->directory);
    for (; *arguments != NULL && argc < 63; arguments++)
        argv[argc++] = *arguments;
    argv[argc] = NULL;

    out->pid = fork();
    if (out->pid < 0) {
        out->pid = 0;
        return -EAGAIN;
    }
    if (out->pid == 0) {
        /* A test that fails leaves nothing behind that keeps ctest waiting for its output. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    uint64_t deadline_ns = ll_now_ns() + 30 * LL_NS_PER_S;
    while (!is_listening(out->socket)) {
        int status;
        bool has_ended = waitpid(out->pid, &status, WNOHANG) == out->pid;
        if (has_ended || ll_now_ns() > deadline_ns) {
            fprintf(stderr, "llringd did not come up\n");
            if (!has_ended) {
                kill(out->pid, SIGKILL);
                waitpid(out->pid, &status, 0);
            }
            out->pid = 0; /* the number may soon be somebody else's */
            return -EIO;
        }
        usleep(5000);
    }
    return 0;
}

int ll_test_runtime_stop(struct ll_test_runtime *runtime)
{
    char command[256];
    int status = -1;
    bool has_ended = false;

    /* Never started, for a teardown after a failed setup: kill(0) would be for all of us. */
    if (runtime->pid <= 0)
        return -1;
    kill(runtime->pid, SIGTERM);
    for (int i = 0; i < 1000 && !has_ended; i++) {
        has_ended = waitpid(runtime->pid, &status, WNOHANG) == runtime->pid;
        if (!has_ended)
            usleep(10000);
    }
    if (!has_ended) {
        kill(runtime->pid, SIGKILL);
        waitpid(runtime->pid, &status, 0);
        status = -1;
    }
    snprintf(command, sizeof(command), "rm -rf '%s'", runtime->directory);
    if (system(command) != 0)
        fprintf(stderr, "could not remove %s\n", runtime->directory);
    return status == -1 ? -1 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
