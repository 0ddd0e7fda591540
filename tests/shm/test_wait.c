/* SPDX-License-Identifier: Apache-2.0 */
/* tests/shm/test_wait.c - one thread: the states of shm/wait.h. Races are in stress_wait.c. */
#include "tests/harness.h"

#include "shm/wait.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

static bool is_readable(int fd)
{
    struct pollfd item = {.fd = fd, .events = POLLIN};

    return poll(&item, 1, 0) == 1;
}

static void only_an_armed_client_is_claimed_and_only_once(void **state)
{
    (void)state;
    struct ll_req_hot hot = {0};

    assert_false(ll_wait_claim(&hot));
    ll_wait_arm(&hot);
    assert_true(ll_wait_claim(&hot));
    assert_false(ll_wait_claim(&hot));
    ll_wait_arm(&hot);
    ll_wait_disarm(&hot);
    assert_false(ll_wait_claim(&hot));
}

static void a_scribbled_wait_word_wakes_nobody(void **state)
{
    (void)state;
    struct ll_req_hot hot = {.wait_word = 2};

    assert_false(ll_wait_claim(&hot));
    assert_int_equal(hot.wait_word, 2);
}

static void a_kick_is_sent_only_to_a_sleeping_runtime(void **state)
{
    (void)state;
    static struct ll_info_region info;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    ll_wait_kick(&info, fd);
    assert_false(is_readable(fd));
    ll_wait_runtime_arm(&info);
    ll_wait_kick(&info, fd);
    assert_true(is_readable(fd));
    ll_wait_drain(fd);
    assert_false(is_readable(fd));
    ll_wait_runtime_disarm(&info);
    ll_wait_kick(&info, fd);
    assert_false(is_readable(fd));
    close(fd);
}

/* A hostile holder of the same open file clears O_NONBLOCK and fills or empties it: alarm() ends
 * the test if a call then blocks. */
static void no_peer_can_make_a_wake_or_a_drain_block(void **state)
{
    (void)state;
    uint64_t most = UINT64_MAX - 1;
    int kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), client_end, runtime_end;
    int kick_of_client = dup(kick);

    alarm(10);
    assert_int_equal(fcntl(kick_of_client, F_SETFL, 0), 0);
    ll_wait_drain(kick); /* empty */
    assert_int_equal(write(kick_of_client, &most, sizeof(most)), sizeof(most));
    ll_wait_drain(kick);
    assert_false(is_readable(kick));

    assert_int_equal(ll_wait_make_wake(&client_end, &runtime_end), 0);
    assert_int_equal(fcntl(client_end, F_SETFL, 0), 0);
    assert_true(fcntl(runtime_end, F_GETFL) & O_NONBLOCK); /* another open file */
    ll_wait_drain(client_end);
    assert_false(is_readable(client_end));
    for (int i = 0; i < 100000; i++) /* past what the socket holds */
        ll_wait_wake(runtime_end);
    assert_true(is_readable(client_end));
    for (int i = 0; i < 100000 && is_readable(client_end); i++)
        ll_wait_drain(client_end);
    assert_false(is_readable(client_end));
    ll_wait_wake(runtime_end);
    assert_true(is_readable(client_end));
    close(client_end);
    ll_wait_wake(runtime_end); /* nobody there: no SIGPIPE */
    close(runtime_end);
    close(kick);
    close(kick_of_client);
    alarm(0);
}

static void a_full_eventfd_of_our_own_blocks_nobody(void **state)
{
    (void)state;
    uint64_t most = UINT64_MAX - 1;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    alarm(10);
    assert_int_equal(write(fd, &most, sizeof(most)), sizeof(most));
    ll_wait_wake(fd);
    ll_wait_drain(fd);
    assert_false(is_readable(fd));
    close(fd);
    alarm(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_an_armed_client_is_claimed_and_only_once),
        cmocka_unit_test(a_scribbled_wait_word_wakes_nobody),
        cmocka_unit_test(a_kick_is_sent_only_to_a_sleeping_runtime),
        cmocka_unit_test(no_peer_can_make_a_wake_or_a_drain_block),
        cmocka_unit_test(a_full_eventfd_of_our_own_blocks_nobody),
    };
    return cmocka_run_group_tests_name("shm/wait", tests, NULL, NULL);
}
