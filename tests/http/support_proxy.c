/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/http/support_proxy.h"

#include "base/clock.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint16_t find_port(const char *path)
{
    char line[512];
    unsigned port = 0;
    FILE *file = fopen(path, "re");

    while (file != NULL && port == 0 && fgets(line, sizeof(line), file) != NULL) {
        const char *at = strstr(line, "listening on 127.0.0.1 port ");
        if (at != NULL)
            sscanf(at, "listening on 127.0.0.1 port %u", &port);
    }
    if (file != NULL)
        fclose(file);
    return (uint16_t)port;
}

int test_proxy_connect(const struct test_proxy *proxy)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(proxy->port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 &&
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) == 0)
        return fd;
    perror("a connection to llring-http");
    if (fd >= 0)
        close(fd);
    return -1;
}

static bool is_healthy_once(const struct test_proxy *proxy)
{
    static const char request[] = "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    char reply[16] = "";
    int fd = proxy->port != 0 ? test_proxy_connect(proxy) : -1;

    if (fd < 0)
        return false;
    bool is_good = send(fd, request, sizeof(request) - 1, MSG_NOSIGNAL) > 0 &&
                   recv(fd, reply, sizeof(reply) - 1, MSG_WAITALL) > 0 &&
                   strncmp(reply, "HTTP/1.1 200", 12) == 0;
    close(fd);
    return is_good;
}

/* Each connection comes to some thread: so many come to every one, and all are attached. */
static bool is_healthy(const struct test_proxy *proxy)
{
    for (int i = 0; i < 40; i++)
        if (!is_healthy_once(proxy))
            return false;
    return true;
}

static void run(const struct test_proxy *proxy, const struct ll_test_runtime *runtime,
                const char *const *arguments)
{
    const char *argv[64] = {LL_BUILD_DIR "/llring-http", "--port", "0", "--socket",
                            runtime->socket};
    int argc = 5, log = open(proxy->log, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    for (; *arguments != NULL && argc < 63; arguments++)
        argv[argc++] = *arguments;
    argv[argc] = NULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nothing behind */
    if (log >= 0)
        dup2(log, STDERR_FILENO);
    execv(argv[0], (char *const *)(uintptr_t)argv);
    _exit(127);
}

int test_proxy_start(struct test_proxy *out, const struct ll_test_runtime *runtime,
                     const char *const *arguments)
{
    *out = (struct test_proxy){.pid = 0};
    snprintf(out->log, sizeof(out->log), "%s/proxy.log", runtime->directory);
    out->pid = fork();
    if (out->pid == 0)
        run(out, runtime, arguments);
    uint64_t deadline_ns = ll_now_ns() + 30 * LL_NS_PER_S;
    while (out->pid > 0 && !is_healthy(out)) {
        int status;
        bool has_ended = waitpid(out->pid, &status, WNOHANG) == out->pid;
        if (has_ended || ll_now_ns() > deadline_ns) {
            fprintf(stderr, "llring-http did not come up\n");
            if (!has_ended)
                test_proxy_stop(out);
            out->pid = 0;
            return -1;
        }
        usleep(10000);
        out->port = find_port(out->log);
    }
    return out->pid > 0 ? 0 : -1;
}

int test_proxy_stop(struct test_proxy *proxy)
{
    int status = -1;
    bool has_ended = false;

    if (proxy->pid <= 0)
        return -1;
    kill(proxy->pid, SIGTERM);
    for (int i = 0; i < 1000 && !has_ended; i++) {
        has_ended = waitpid(proxy->pid, &status, WNOHANG) == proxy->pid;
        if (!has_ended)
            usleep(10000);
    }
    if (!has_ended) {
        kill(proxy->pid, SIGKILL);
        waitpid(proxy->pid, &status, 0);
        status = -1;
    }
    proxy->pid = 0;
    unlink(proxy->log);
    return status == -1 ? -1 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

double test_cpu_seconds(int pid)
{
    struct timespec used = {0, 0};
    clockid_t clock;

    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &used) != 0)
        return 0;
    return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

uint64_t test_memory_kib(int pid, const char *field)
{
    char path[64], line[256];
    unsigned long long kib = 0;

    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    FILE *file = fopen(path, "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (strncmp(line, field, strlen(field)) == 0)
            sscanf(line + strlen(field), ": %llu", &kib);
    if (file != NULL)
        fclose(file);
    return kib;
}
