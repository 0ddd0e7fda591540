/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_attach_limits.c - many clients and no more: quotas, descriptors, 512 of them;
 * dead ones; the socket's path; drain. */
#include "tests/client/attach_by_hand.h"

static void who_says_nothing_cannot_lock_out_others(void **state)
{
    int fd[60];

    for (int i = 0; i < 60; i++)
        fd[i] = dial(*state);
    /* 32 places for connections of one user that are not attached: the rest is told at once. */
    for (int i = 32; i < 60; i++)
        assert_refused(fd[i], LL_E_QUOTA);
    for (int i = 0; i < 32; i++)
        close(fd[i]);
    struct ll_client *client = echo_open(*state, 16);
    ll_client_close(client);
    echo_await(&((struct echo *)*state)->knobs->n_detached, 1);
    assert_nothing_left(*state);
}

static void quotas_are_named(void **state)
{
    struct echo *echo = *state;
    struct ll_client *a, *b, *c;
    struct ll_client_options o = {.struct_bytes = sizeof(o), .socket = echo->socket};

    echo->options.n_per_uid_max = 2;
    echo->options.n_slots_max = 64;
    echo->options.n_slots_uid_max = 96;
    echo->options.arena_bytes_max = 1u << 20;
    echo->options.arena_bytes_uid_max = 3u << 19;
    start(echo);
    o.n_slots = 200, o.arena_bytes = 65536;
    assert_int_equal(ll_client_open(&a, &o), 0);
    struct ll_client_info info = {.struct_bytes = sizeof(info)};
    ll_client_info(a, &info);
    assert_int_equal(info.n_slots, 64); /* wanted 200: the runtime offers what it has */
    assert_int_equal(ll_client_open(&b, &o), LL_E_QUOTA);
    assert_non_null(strstr(ll_error_text(), "64 of 96 slots"));
    o.n_slots = 32;
    assert_int_equal(ll_client_open(&b, &o), 0);
    assert_int_equal(ll_client_open(&c, &o), LL_E_QUOTA);
    assert_non_null(strstr(ll_error_text(), "2 of 2 attachments"));
    ll_client_close(b);
    echo_await(&echo->knobs->n_detached, 1);
    o.arena_bytes = 64u << 20; /* wanted 64 MiB: 1 MiB at most, and that fits beside 64 KiB */
    assert_int_equal(ll_client_open(&b, &o), 0);
    ll_client_info(b, &info);
    assert_int_equal(info.arena_bytes, 1 << 20);
    ll_client_close(a);
    echo_await(&echo->knobs->n_detached, 2);
    assert_int_equal(ll_client_open(&c, &o), LL_E_QUOTA);
    assert_non_null(strstr(ll_error_text(), "arena"));
    ll_client_close(b);
    echo_await(&echo->knobs->n_detached, 3);
    assert_nothing_left(echo);
}

static void without_descriptors_clients_are_told(void **state)
{
    struct echo *echo = *state;
    struct rlimit old, now;
    union ll_heard message;
    int fd = dial(echo), dup_fd, n = 0;

    getrlimit(RLIMIT_NOFILE, &old);
    now = old;
    now.rlim_cur = 1024;
    setrlimit(RLIMIT_NOFILE, &now);
    int all[1100];
    while ((dup_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)) >= 0)
        all[n++] = dup_fd;
    struct ll_msg_hello hello = a_hello();
    say(fd, &hello, sizeof(hello)); /* accepted before; now there is nothing left for its regions */
    assert_int_equal(hear(fd, &message, NULL, NULL), LL_MSG_REFUSE);
    assert_int_equal(message.refuse.code, LL_E_QUOTA);
    setrlimit(RLIMIT_NOFILE, &old);
    for (int i = 0; i < n; i++)
        close(all[i]);
    close(fd);
    assert_nothing_left(echo);
}

static void isolated_clients_have_bells_of_their_own(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client[8];
    struct ll_output last;

    echo->options.is_isolated = true;
    echo->options.n_slots_max = 64;
    echo->options.n_slots_uid_max = 280;
    start(echo);
    for (int i = 0; i < 8; i++)
        client[i] = echo_open(echo, 16u << i % 3);
    for (uint32_t seed = 0; seed < 400; seed++) {
        struct ll_request request = echo_request(&seed, 5);
        uint64_t id;
        assert_int_equal(ll_client_submit(client[seed % 8], &request, &id), 0);
        assert_int_equal(echo_read(client[seed % 8], id, seed, &last), 5);
    }
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < i; k++)
            assert_ptr_not_equal(echo->client[i]->domain, echo->client[k]->domain);
    /* The quota of a user is one: 3 x 16, 3 x 32, 2 x 64 slots are taken. */
    struct ll_client_options o = {
        .struct_bytes = sizeof(o), .socket = echo->socket, .n_slots = 16, .arena_bytes = 65536};
    struct ll_client *extra;
    assert_int_equal(ll_client_open(&extra, &o), LL_E_QUOTA);
    assert_non_null(strstr(ll_error_text(), "272 of 280 slots"));
    for (int i = 0; i < 8; i++)
        ll_client_close(client[i]);
    echo_await(&echo->knobs->n_detached, 8);
    assert_nothing_left(echo);
}

static void all_512_attach_and_no_more(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client[LL_ATTACHMENTS_MAX], *extra;
    struct ll_client_options o = {
        .struct_bytes = sizeof(o), .socket = echo->socket, .n_slots = 16, .arena_bytes = 65536};
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < 6000)
        skip(); /* both ends live in this process */
    for (uint32_t i = 0; i < LL_ATTACHMENTS_MAX; i++)
        if (ll_client_open(&client[i], &o) != 0)
            fail_msg("client %u: %s", i, ll_error_text());
    assert_int_equal(ll_client_open(&extra, &o), LL_E_QUOTA);
    assert_non_null(strstr(ll_error_text(), "512"));
    struct ll_control_client *list = calloc(LL_ATTACHMENTS_MAX, sizeof(*list));
    assert_int_equal(ll_control_clients(echo->control, list, 10), LL_ATTACHMENTS_MAX);
    assert_int_equal(list[9].uid, getuid());
    assert_string_equal(list[9].name, program_invocation_short_name);
    free(list);
    for (uint32_t i = 0; i < LL_ATTACHMENTS_MAX; i++)
        ll_client_close(client[i]);
    echo_await(&echo->knobs->n_detached, LL_ATTACHMENTS_MAX);
    assert_nothing_left(echo);
}

static void a_killed_client_is_reclaimed(void **state)
{
    struct echo *echo = *state;

    uint64_t fastest_ns = UINT64_MAX; /* a loaded machine may be late now and then */
    atomic_store(&echo->knobs->holds, true);
    for (int round = 1; round <= 20; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            struct ll_client *client = echo_open(echo, 16);
            uint32_t seed = 1;
            struct ll_request request = echo_request(&seed, 30);
            for (int i = 0; i < 10; i++)
                if (ll_client_submit(client, &request, NULL) != 0)
                    _exit(1);
            for (;;)
                pause();
        }
        echo_await(&echo->knobs->n_accepted, (uint64_t)round * 10);
        uint64_t start_ns = ll_now_ns();
        kill(pid, SIGKILL);
        echo_await(&echo->knobs->n_detached, (uint64_t)round);
        fastest_ns = ll_min_u64(fastest_ns, ll_now_ns() - start_ns);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        assert_int_equal(echo->knobs->n_lost, round * 10);
    }
    assert_true(fastest_ns < 100 * LL_NS_PER_MS);
    atomic_store(&echo->knobs->holds, false);
    assert_nothing_left(echo);
}

/* A child that holds a copy of the socket keeps it from hanging up: the pidfd tells. */
static void a_forked_child_does_not_keep_a_dead_client_alive(void **state)
{
    struct echo *echo = *state;
    int pipe_fd[2];
    pid_t grandchild;

    assert_int_equal(pipe(pipe_fd), 0);
    pid_t pid = fork();
    if (pid == 0) {
        echo_open(echo, 16);
        grandchild = fork();
        if (grandchild == 0)
            for (;;)
                pause();
        if (write(pipe_fd[1], &grandchild, sizeof(grandchild)) != sizeof(grandchild))
            _exit(1);
        for (;;)
            pause();
    }
    assert_int_equal(read(pipe_fd[0], &grandchild, sizeof(grandchild)), sizeof(grandchild));
    close(pipe_fd[0]);
    close(pipe_fd[1]);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    echo_await(&echo->knobs->n_detached, 1);
    kill(grandchild, SIGKILL);
    assert_nothing_left(echo);
}

/* ---- the path
 * -----------------------------------------------------------------------------------*/

static void one_path_serves_one_runtime(void **state)
{
    struct echo *echo = *state;
    struct ll_control *second = NULL;
    char path[160];
    struct stat st;

    assert_int_equal(ll_control_create(&second, &echo->options), -EADDRINUSE);
    snprintf(path, sizeof(path), "pid %d", getpid());
    assert_non_null(strstr(ll_err_text(), path));
    assert_null(second);
    assert_int_equal(stat(echo->socket, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
    assert_int_equal(echo_stop(echo), 0);
    echo->control = NULL;
    assert_int_equal(stat(echo->socket, &st), -1); /* neither socket nor lock stay behind */
    snprintf(path, sizeof(path), "%s.lock", echo->socket);
    assert_int_equal(stat(path, &st), -1);
}

static void a_stale_socket_is_replaced_anything_else_is_not(void **state)
{
    struct echo *echo = *state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", echo->socket);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    close(fd); /* as a killed runtime leaves it */
    start(echo);
    struct ll_client *client = echo_open(echo, 16);
    ll_client_close(client);
    assert_int_equal(echo_stop(echo), 0);

    fd = open(echo->socket, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    close(fd);
    struct ll_region info, stat_region;
    ll_region_create(&info, "info", LL_INFO_BYTES, -1);
    ll_region_create(&stat_region, "stat", (sizeof(struct ll_stat_region) + 4095) / 4096 * 4096,
                     -1);
    echo->options.info = &info;
    echo->options.stat = &stat_region;
    assert_int_equal(ll_control_create(&echo->control, &echo->options), 0);
    assert_int_equal(ll_control_listen(echo->control), -EEXIST);
    assert_non_null(strstr(ll_err_text(), "no socket"));
    ll_control_destroy(echo->control);
    echo->control = NULL;
    ll_region_free(&info);
    ll_region_free(&stat_region);
}

static void a_drain_finishes_what_runs_and_takes_nobody_in(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 16), *late;
    struct ll_client_options o = {.struct_bytes = sizeof(o), .socket = echo->socket};
    uint32_t seed = 6;
    struct ll_request request = echo_request(&seed, 20);
    struct ll_output out;
    uint64_t id;

    atomic_store(&echo->knobs->holds, true);
    assert_int_equal(ll_client_submit(client, &request, &id), 0);
    echo_await(&echo->knobs->n_accepted, 1);
    echo_terminate(echo);
    uint64_t deadline_ns = ll_now_ns() + 20 * LL_NS_PER_S;
    while (ll_client_submit(client, &request, NULL) != LL_E_DRAINING)
        assert_true(ll_now_ns() < deadline_ns);
    assert_int_equal(ll_client_open(&late, &o), LL_E_DRAINING);
    assert_non_null(strstr(ll_error_text(), "stopping"));
    atomic_store(&echo->knobs->holds, false);
    uint32_t n = 0;
    do {
        assert_int_equal(ll_client_wait(client, &out, 1, (int64_t)(5 * LL_NS_PER_S)), 1);
        n += out.id == id && out.type == LL_OUTPUT_TOKEN;
        /* Others were submitted while the signal was on its way: taken in or refused. */
    } while (out.id != id || out.type == LL_OUTPUT_TOKEN);
    assert_int_equal(out.type, LL_OUTPUT_FINISH);
    assert_int_equal(n, 20);
    assert_int_equal(echo_stop(echo), 0);
    echo->control = NULL;
    while (ll_client_wait(client, &out, 1, (int64_t)LL_NS_PER_S) > 0)
        ;
    assert_int_equal(ll_client_poll(client, &out, 1), LL_E_RUNTIME_LOST);
    assert_non_null(strstr(ll_error_text(), "stopped"));
    ll_client_close(client);
}

static void a_second_signal_stops_at_once(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 16);
    uint32_t seed = 6;
    struct ll_request request = echo_request(&seed, 20);
    struct ll_info_region *info = echo->info.base;

    atomic_store(&echo->knobs->holds, true);
    assert_int_equal(ll_client_submit(client, &request, NULL), 0);
    echo_await(&echo->knobs->n_accepted, 1);
    echo_terminate(echo);
    while (atomic_load(&info->rt_state) != LL_RT_DRAINING)
        usleep(1000);
    kill(getpid(), SIGINT);
    assert_int_equal(echo_stop(echo), -EINTR);
    echo->control = NULL;
    ll_client_close(client);
}

int main(void)
{
#define WITH_ECHO(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
#define STOPPED(test)   cmocka_unit_test_setup_teardown(test, setup_stopped, teardown)
    const struct CMUnitTest tests[] = {
        WITH_ECHO(who_says_nothing_cannot_lock_out_others),
        STOPPED(quotas_are_named),
        WITH_ECHO(without_descriptors_clients_are_told),
        STOPPED(isolated_clients_have_bells_of_their_own),
        WITH_ECHO(all_512_attach_and_no_more),
        WITH_ECHO(a_killed_client_is_reclaimed),
        WITH_ECHO(a_forked_child_does_not_keep_a_dead_client_alive),
        WITH_ECHO(one_path_serves_one_runtime),
        STOPPED(a_stale_socket_is_replaced_anything_else_is_not),
        WITH_ECHO(a_drain_finishes_what_runs_and_takes_nobody_in),
        WITH_ECHO(a_second_signal_stops_at_once),
    };
    ll_control_block_signals();
    return cmocka_run_group_tests_name("client/attach limits", tests, NULL, NULL);
}
