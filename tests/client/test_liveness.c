/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_liveness.c - a runtime that dies, hangs, comes back; sleeping without missing a
 * wake-up; no system call while both are awake, few wake-ups while both sleep. The runtime is a
 * process of its own. */
#include "tests/client/support_echo.h"
#include "tests/runtime/count_alloc.h"

#include "base/clock.h"
#include "base/rng.h"
#include "client/handle.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECONDS ((int64_t)LL_NS_PER_S)

static int setup(void **state)
{
    struct echo *echo = malloc(sizeof(*echo));

    echo_init(echo);
    echo_start_process(echo);
    *state = echo;
    return 0;
}

static int teardown(void **state)
{
    struct echo *echo = *state;
    int rc = echo->pid != 0 ? echo_stop(echo) : 0;

    echo_free(echo);
    free(echo);
    return rc;
}

static struct ll_client *open_spinning(const struct echo *echo, uint32_t spin_us)
{
    struct ll_client_options options = {
        .struct_bytes = sizeof(options), .socket = echo->socket, .spin_us = spin_us};
    struct ll_client *client = NULL;

    assert_int_equal(ll_client_open(&client, &options), 0);
    return client;
}

/* ---- death ------------------------------------------------------------------------------------*/

enum how { BY_WAIT, BY_SPINNING, BY_POLL, BY_POLL_REQUEST, BY_EVENT_LOOP };

/* The next batch of outputs, by whatever way the application goes. */
static int next(struct ll_client *client, enum how how, uint64_t id, struct ll_output *out, int n)
{
    struct pollfd fd = {.fd = ll_client_fd(client), .events = POLLIN};
    int rc;

    switch (how) {
    case BY_WAIT:
    case BY_SPINNING:
        return ll_client_wait(client, out, n, -1);
    case BY_POLL:
        while ((rc = ll_client_poll(client, out, n)) == 0)
            ;
        return rc;
    case BY_POLL_REQUEST:
        while ((rc = ll_client_poll_request(client, id, out, n)) == 0)
            ;
        return rc;
    default:
        while ((rc = ll_client_poll(client, out, n)) == 0)
            if (ll_client_arm(client) == 0)
                assert_int_equal(poll(&fd, 1, 5000), 1);
        return rc;
    }
}

/* Requests open, the runtime killed, each ended once: how long after the kill the first was told.
 */
static uint64_t kill_and_read(struct echo *echo, enum how how)
{
    struct ll_client *client = open_spinning(echo, how == BY_SPINNING ? ~0u : 0);
    struct ll_output out[16];
    uint64_t id[10], *killed_ns, late_ns = 0;
    uint32_t seed = 5;
    struct ll_request request = echo_request(&seed, 1000);
    int n_requests = how == BY_POLL_REQUEST ? 1 : 10, n_errors = 0, rc;

    killed_ns =
        mmap(NULL, sizeof(*killed_ns), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(killed_ns, MAP_FAILED);
    for (int i = 0; i < n_requests; i++)
        assert_int_equal(ll_client_submit(client, &request, &id[i]), 0);
    pid_t killer = fork();
    if (killer == 0) {
        usleep(300000);
        *killed_ns = ll_now_ns();
        kill(echo->pid, SIGKILL);
        _exit(0);
    }
    while ((rc = next(client, how, id[0], out, 16)) > 0)
        for (int i = 0; i < rc; i++) {
            assert_int_equal(out[i].type, LL_OUTPUT_ERROR);
            assert_int_equal(out[i].u.error.code, LL_E_RUNTIME_LOST);
            assert_string_equal(out[i].u.error.text, ll_error_advice(LL_E_RUNTIME_LOST));
            if (n_errors++ == 0)
                late_ns = ll_now_ns() - *killed_ns;
        }
    assert_int_equal(rc, LL_E_RUNTIME_LOST);
    assert_non_null(strstr(ll_error_text(), "gone"));
    assert_int_equal(n_errors, n_requests);
    assert_int_equal(ll_client_n_open(client), 0);
    assert_int_equal(ll_client_submit(client, &request, NULL), LL_E_RUNTIME_LOST);
    ll_client_close(client);
    waitpid(killer, NULL, 0);
    waitpid(echo->pid, NULL, 0);
    munmap(killed_ns, sizeof(*killed_ns));
    echo_restart_process(echo);
    return late_ns;
}

/* Within 100 ms where the kernel wakes us; who only polls or spins looks for himself, and beside
 * other work of the machine may be late now and then: the best of some tries counts. */
static void a_killed_runtime_ends_each_request_once_and_soon(void **state)
{
    struct echo *echo = *state;

    atomic_store(&echo->knobs->holds, true);
    for (enum how how = BY_WAIT; how <= BY_EVENT_LOOP; how++) {
        bool is_woken = how == BY_WAIT || how == BY_EVENT_LOOP;
        uint64_t limit_ns = (is_woken ? 100 : 250) * LL_NS_PER_MS, late_ns = UINT64_MAX;
        for (int i = 0; i < 8 && late_ns >= limit_ns; i++)
            late_ns = kill_and_read(echo, how);
        if (late_ns >= limit_ns)
            fail_msg("way %d: told %.0f ms after the kill", (int)how, (double)late_ns / 1e6);
    }
}

static void what_a_dead_runtime_wrote_still_counts(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 0);
    uint32_t seed = 5;
    struct ll_request request = echo_request(&seed, 20);
    struct ll_output last;
    uint64_t id;

    assert_int_equal(ll_client_submit(client, &request, &id), 0);
    echo_await(&echo->knobs->n_finished, 1);
    echo_kill(echo);
    echo->pid = 0;
    assert_int_equal(echo_read(client, id, seed, &last), 20);
    assert_int_equal(last.type, LL_OUTPUT_FINISH);
    assert_int_equal(ll_client_wait(client, &last, 1, 2 * SECONDS), LL_E_RUNTIME_LOST);
    ll_client_close(client);
}

/* ---- hanging --------------------------------------------------------------------------------*/

static void a_hung_runtime_is_told_apart_and_may_come_back(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 0), *spinning = open_spinning(echo, ~0u), *late;
    struct ll_client_options options = {
        .struct_bytes = sizeof(options), .socket = echo->socket, .timeout_ns = LL_NS_PER_S / 5};
    uint32_t seed = 5;
    struct ll_request request = echo_request(&seed, 50);
    struct ll_output last;
    uint64_t id, second;

    atomic_store(&echo->knobs->holds, true);
    assert_int_equal(ll_client_submit(client, &request, &id), 0);
    echo_await(&echo->knobs->n_accepted, 1);
    kill(echo->pid, SIGSTOP);
    uint64_t start_ns = ll_now_ns();
    assert_int_equal(ll_client_open(&late, &options), LL_E_TIMEOUT);
    assert_int_equal(ll_client_wait(client, &last, 1, -1), LL_E_TIMEOUT);
    uint64_t took_ns = ll_now_ns() - start_ns;
    assert_true(took_ns > 4800 * LL_NS_PER_MS && took_ns < 20 * LL_NS_PER_S);
    assert_non_null(strstr(ll_error_text(), "sign of life"));
    assert_int_equal(ll_client_wait(spinning, &last, 1, -1), LL_E_TIMEOUT);
    assert_int_equal(ll_client_submit(client, &request, &second), LL_E_TIMEOUT);
    assert_int_equal(ll_client_submit(spinning, &request, &second), LL_E_TIMEOUT);
    assert_int_equal(ll_client_arm(client), LL_E_TIMEOUT);
    assert_int_equal(ll_client_n_open(client), 1); /* still open */
    atomic_store(&echo->knobs->holds, false);
    kill(echo->pid, SIGCONT);
    assert_int_equal(ll_client_wait(client, &last, 1, -1), 1); /* no TIMEOUT left over */
    assert_int_equal(last.type, LL_OUTPUT_TOKEN);
    while (last.type == LL_OUTPUT_TOKEN)
        assert_int_equal(ll_client_wait(client, &last, 1, 5 * SECONDS), 1);
    assert_int_equal(last.type, LL_OUTPUT_FINISH);
    assert_int_equal(ll_client_submit(client, &request, &second), 0);
    assert_int_equal(echo_read(client, second, seed, &last), 50);
    ll_client_close(client);
    ll_client_close(spinning);
}

/* ---- sleeping -------------------------------------------------------------------------------*/

/* One request of one token; the runtime pauses between the token and the end. */
static void ask_once(struct echo *echo, struct ll_client *client, uint32_t pause_ns)
{
    uint32_t seed = 1;
    struct ll_request request = echo_request(&seed, 1);
    struct ll_output out[8];

    atomic_store(&echo->knobs->pause_ns, pause_ns);
    assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    while (ll_client_n_open(client) > 0)
        assert_true(ll_client_wait(client, out, 8, 5 * SECONDS) > 0);
}

/* Pauses around the time after which each falls asleep, so that event and arming meet again and
 * again: the client 20 us after the token, the runtime 200 us after its last turn with work. */
static void no_wake_up_is_lost(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = open_spinning(echo, 20);
    uint64_t rng = ll_test_seed(), end_ns = ll_now_ns() + 2 * LL_NS_PER_S;

    atomic_store(&echo->knobs->never_sleeps, true);
    while (ll_now_ns() < end_ns)
        ask_once(echo, client, 15000 + (uint32_t)ll_splitmix64(&rng) % 20000);
    atomic_store(&echo->knobs->never_sleeps, false);
    end_ns = ll_now_ns() + 20 * LL_NS_PER_S;
    while (echo->knobs->n_sleeps < 1500 && ll_now_ns() < end_ns) {
        ask_once(echo, client, 15000 + (uint32_t)ll_splitmix64(&rng) % 20000);
        usleep(100 + (useconds_t)ll_splitmix64(&rng) % 200);
    }
    assert_true(echo->knobs->n_sleeps > 20);
    /* Nobody was woken by his own timeout with something to do lying there. */
    assert_int_equal(echo->knobs->n_lost_wakes, 0);
    assert_int_equal(client->n_lost_wakes, 0);
    ll_client_close(client);
}

/* From here on only these calls are allowed; any other one kills the process. */
static void forbid_system_calls(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
        /* Where the vDSO cannot read the clock by itself. */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_gettime, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(LL_SKIPPED);
}

/* _exit() itself: sanitizers put calls of their own in front of it. */
static void leave(int code)
{
    syscall(SYS_exit_group, code);
}

static void no_system_call_and_no_allocation_while_both_are_awake(void **state)
{
    struct echo *echo = *state;
    int status;

    atomic_store(&echo->knobs->never_sleeps, true);
    pid_t pid = fork();
    if (pid == 0) {
        struct ll_client *client = open_spinning(echo, ~0u);
        uint32_t seed = 1, n_done = 0;
        struct ll_request request = echo_request(&seed, 20);
        struct ll_output out[4];
        uint64_t id;
        /* It may have fallen asleep before it was told not to: one answer, and it is awake. */
        if (ll_client_submit(client, &request, &id) != 0)
            leave(1);
        while (ll_client_n_open(client) > 0)
            if (ll_client_wait(client, out, 4, SECONDS) < 0)
                leave(2);
        uint64_t n_before = n_allocations;
        forbid_system_calls();
        uint64_t end_ns = ll_now_ns() + 1500 * LL_NS_PER_MS;
        while (ll_now_ns() < end_ns) {
            if (ll_client_submit(client, &request, &id) != 0)
                leave(1);
            if (n_done % 7 == 3)
                ll_client_cancel(client, id);
            while (ll_client_n_open(client) > 0) {
                int n = n_done % 2 == 0 ? ll_client_poll(client, out, 4)
                                        : ll_client_wait(client, out, 4, SECONDS);
                if (n < 0)
                    leave(2);
            }
            n_done++;
        }
        /* Nothing open, nothing coming: a second of empty polls. */
        for (end_ns = ll_now_ns() + LL_NS_PER_S; ll_now_ns() < end_ns;)
            if (ll_client_poll(client, out, 4) != 0)
                leave(3);
        leave(n_allocations != n_before ? 5 : n_done > 50 ? 0 : 4);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
        fail_msg("a system call was made");
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == LL_SKIPPED)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
    atomic_store(&echo->knobs->never_sleeps, false);
}

/* Voluntary context switches of a process, over all its threads: each sleep is one. */
static uint64_t count_sleeps(pid_t pid)
{
    char command[128], line[64];
    uint64_t n = 0;

    snprintf(command, sizeof(command), "cat /proc/%d/task/*/status | grep '^voluntary' | cut -f2",
             pid);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    while (fgets(line, sizeof(line), pipe) != NULL)
        n += strtoull(line, NULL, 10);
    pclose(pipe);
    return n;
}

static void few_wake_ups_while_both_sleep(void **state)
{
    struct echo *echo = *state;

#ifdef __SANITIZE_THREAD__
    skip(); /* it has a thread of its own that wakes up */
#endif
    pid_t pid = fork();
    if (pid == 0) {
        struct ll_client *client = echo_open(echo, 0);
        uint32_t seed = 1;
        struct ll_request request = echo_request(&seed, 1000);
        struct ll_output out;
        atomic_store(&echo->knobs->holds, true);
        _exit(ll_client_submit(client, &request, NULL) != 0 ||
              ll_client_wait(client, &out, 1, -1) != 1);
    }
    echo_await(&echo->knobs->n_accepted, 1);
    usleep(300000);
    uint64_t start_ns = ll_now_ns();
    uint64_t client_before = count_sleeps(pid), runtime_before = count_sleeps(echo->pid);
    sleep(3);
    uint64_t by_client = count_sleeps(pid) - client_before;
    uint64_t by_runtime = count_sleeps(echo->pid) - runtime_before;
    uint64_t n_max = 12 * (ll_now_ns() - start_ns) / LL_NS_PER_S; /* T18: 12 a second */
    assert_in_range(by_client, 1, n_max);
    assert_in_range(by_runtime, 1, n_max);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    atomic_store(&echo->knobs->holds, false);
}

int main(void)
{
#define WITH_ECHO(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_ECHO(a_killed_runtime_ends_each_request_once_and_soon),
        WITH_ECHO(what_a_dead_runtime_wrote_still_counts),
        WITH_ECHO(a_hung_runtime_is_told_apart_and_may_come_back),
        WITH_ECHO(no_wake_up_is_lost),
        WITH_ECHO(no_system_call_and_no_allocation_while_both_are_awake),
        WITH_ECHO(few_wake_ups_while_both_sleep),
    };
    return cmocka_run_group_tests_name("client/liveness", tests, NULL, NULL);
}
