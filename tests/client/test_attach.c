/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_attach.c - the runtime's end of the handshake: each message cut, doubled, out
 * of turn, with descriptors nobody asked for; silence; floods; what stays open afterwards. */
#include "tests/client/attach_by_hand.h"

/* ---- the runtime and a bad client
 * ---------------------------------------------------------------*/

static void a_cut_message_is_refused(void **state)
{
    struct ll_msg_hello hello = a_hello();
    int fd;

    for (size_t n = 0; n < sizeof(hello); n += n < 12 ? 1 : 29) {
        fd = dial(*state);
        say(fd, &hello, n);
        assert_refused(fd, n == 0 ? 0 : LL_E_PROTOCOL);
        hello.head.size_bytes = (uint16_t)n; /* honest about it, still too short */
        fd = dial(*state);
        say(fd, &hello, n);
        assert_refused(fd, n == 0 ? 0 : LL_E_PROTOCOL);
        hello.head.size_bytes = sizeof(hello);
    }
    for (size_t n = 1; n < sizeof(struct ll_msg_mapped); n += 3) {
        fd = dial(*state);
        struct ll_msg_offer offer = greet(fd, NULL);
        struct ll_msg_mapped mapped = {.head = {LL_MSG_MAGIC, LL_MSG_MAPPED, (uint16_t)n},
                                       .epoch = offer.epoch};
        say(fd, &mapped, n);
        assert_refused(fd, LL_E_PROTOCOL);
    }
    uint8_t huge[1024];
    memset(huge, 0, sizeof(huge));
    memcpy(huge, &hello, sizeof(hello));
    fd = dial(*state);
    say(fd, huge, sizeof(huge));
    assert_refused(fd, LL_E_PROTOCOL);
    assert_nothing_left(*state);
}

static void a_message_out_of_turn_is_refused(void **state)
{
    struct ll_msg_hello hello = a_hello();

    for (uint16_t type = 0; type < 12; type++) {
        if (type != LL_MSG_HELLO) { /* instead of HELLO */
            int fd = dial(*state);
            hello.head.type = type;
            say(fd, &hello, sizeof(hello));
            assert_refused(fd, LL_E_PROTOCOL);
        }
        hello.head.type = LL_MSG_HELLO;
        int fd = dial(*state); /* instead of MAPPED */
        struct ll_msg_offer offer = greet(fd, NULL);
        struct ll_msg_mapped mapped = {.head = {LL_MSG_MAGIC, type, sizeof(mapped)},
                                       .epoch = offer.epoch + (type == LL_MSG_MAPPED)};
        say(fd, &mapped, sizeof(mapped));
        assert_refused(fd, type == LL_MSG_BYE ? 0 : LL_E_PROTOCOL);
    }
    int fd = dial(*state); /* HELLO twice */
    say(fd, &hello, sizeof(hello));
    say(fd, &hello, sizeof(hello));
    assert_refused(fd, LL_E_PROTOCOL);

    fd = dial(*state); /* MAPPED twice */
    union ll_heard message;
    struct ll_msg_offer offer = greet(fd, NULL);
    struct ll_msg_mapped mapped = {.head = {LL_MSG_MAGIC, LL_MSG_MAPPED, sizeof(mapped)},
                                   .epoch = offer.epoch};
    say(fd, &mapped, sizeof(mapped));
    assert_int_equal(hear(fd, &message, NULL, NULL), LL_MSG_READY);
    say(fd, &mapped, sizeof(mapped));
    assert_refused(fd, LL_E_PROTOCOL);
    echo_await(&((struct echo *)*state)->knobs->n_detached, 1);
    assert_nothing_left(*state);
}

static void descriptors_of_a_client_are_dropped(void **state)
{
    struct ll_msg_hello hello = a_hello();
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC), fds[LL_FD_COUNT];

    for (int n = 1; n <= (int)LL_FD_COUNT; n++) {
        int fd = dial(*state);
        for (int i = 0; i < n; i++)
            fds[i] = null;
        assert_int_equal(ll_msg_send(fd, &hello, sizeof(hello), fds, n), 0);
        assert_refused(fd, LL_E_PROTOCOL);
    }
    close(null);
    assert_nothing_left(*state);
}

static void silence_ends_after_a_second_at_each_stage(void **state)
{
    uint64_t start_ns = ll_now_ns();
    int first = dial(*state), second = dial(*state);

    greet(second, NULL);
    assert_refused(first, LL_E_TIMEOUT);
    assert_refused(second, LL_E_TIMEOUT);
    uint64_t took_ns = ll_now_ns() - start_ns;
    assert_true(took_ns > 900 * LL_NS_PER_MS && took_ns < 20 * LL_NS_PER_S);
    assert_nothing_left(*state);
}

/* The runtime is held up for longer than a stage may take; the HELLO was there in time. */
static void who_answered_in_time_is_not_timed_out_by_a_busy_runtime(void **state)
{
    struct echo *echo = *state;

    echo_start_process(echo);
    int fd = dial(echo);
    usleep(200000); /* accepted */
    kill(echo->pid, SIGSTOP);
    struct ll_msg_hello hello = a_hello();
    union ll_heard message;
    say(fd, &hello, sizeof(hello));
    usleep(1200000);
    kill(echo->pid, SIGCONT);
    assert_int_equal(hear(fd, &message, NULL, NULL), LL_MSG_OFFER);
    close(fd);
    assert_int_equal(echo_stop(echo), 0);
}

/* A client of the domain takes the bell's pages away: that is seen, repaired, and no other of its
 * clients is harmed. */
static void a_bell_with_a_hole_is_repaired(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 16), *next;
    uint32_t seed = 7;
    struct ll_request request = echo_request(&seed, 3);
    struct ll_output last;
    uint64_t id;

    assert_int_equal(madvise(client->bell_region.base, client->bell_region.size_bytes, MADV_REMOVE),
                     0);
    for (int i = 0; i < 1000 && client->bell.head->ring_gen == 0; i++)
        usleep(1000);
    assert_int_equal(client->bell.head->ring_gen, 1);
    next = echo_open(echo, 16); /* finds a sound head */
    assert_int_equal(ll_client_submit(next, &request, &id), 0);
    assert_int_equal(echo_read(next, id, seed, &last), 3);
    assert_int_equal(ll_client_submit(client, &request, &id), 0);
    assert_int_equal(echo_read(client, id, seed, &last), 3);
    ll_client_close(next);
    ll_client_close(client);
    echo_await(&echo->knobs->n_detached, 2);
    assert_nothing_left(echo);
}

static void a_client_that_seals_first_is_dropped(void **state)
{
    int req_fd = -1, fd = dial(*state);
    struct ll_msg_offer offer = greet(fd, &req_fd);

    assert_int_equal(fcntl(req_fd, F_ADD_SEALS, F_SEAL_SEAL), 0);
    close(req_fd);
    struct ll_msg_mapped mapped = {.head = {LL_MSG_MAGIC, LL_MSG_MAPPED, sizeof(mapped)},
                                   .epoch = offer.epoch};
    say(fd, &mapped, sizeof(mapped));
    assert_refused(fd, LL_E_PROTOCOL);
    assert_nothing_left(*state);
}

static uint64_t n_resident(int fd)
{
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* Whoever touches a page first pays for it until nobody has it any more. */
static void the_client_pays_for_its_memory(void **state)
{
    int fds[LL_FD_COUNT];
    union ll_heard message;

    for (int lacks = 0; lacks < 4; lacks++) {
        int fd = dial(*state);
        struct ll_msg_offer offer = ask(fd, fds);
        struct ll_msg_mapped mapped = {.head = {LL_MSG_MAGIC, LL_MSG_MAPPED, sizeof(mapped)},
                                       .epoch = offer.epoch};
        assert_int_equal(n_resident(fds[LL_FD_REQ]), 0);
        assert_int_equal(n_resident(fds[LL_FD_RSP]), 0);
        touch(fds[LL_FD_REQ], offer.req_bytes - (lacks == 1 ? 4096 : 0), true);
        touch(fds[LL_FD_RSP], offer.rsp_bytes - (lacks == 2 ? 4096 : 0), false);
        if (lacks == 3)
            assert_int_equal(
                fallocate(fds[LL_FD_REQ], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 4096),
                0);
        say(fd, &mapped, sizeof(mapped));
        if (lacks == 0)
            assert_int_equal(hear(fd, &message, NULL, NULL), LL_MSG_READY);
        else
            assert_refused(dup(fd), LL_E_PROTOCOL);
        for (int i = 0; i < LL_FD_COUNT; i++)
            close(fds[i]);
        close(fd);
    }
    echo_await(&((struct echo *)*state)->knobs->n_detached, 1);
    assert_nothing_left(*state);
}

/* The request ring of a user is the runtime's to pay, and may have holes: it is emptied. */
static void a_kept_bell_is_empty_when_its_clients_have_left(void **state)
{
    struct echo *echo = *state;
    int fds[LL_FD_COUNT], fd = dial(echo);

    ask(fd, fds);
    assert_true(n_resident(fds[LL_FD_BELL]) > 0);
    close(fd);
    for (int i = 0; i < 5000 && n_resident(fds[LL_FD_BELL]) > 0; i++)
        usleep(1000);
    assert_int_equal(n_resident(fds[LL_FD_BELL]), 0);
    for (int i = 0; i < LL_FD_COUNT; i++)
        close(fds[i]);
    assert_nothing_left(echo);
}

static void after_ready_memory_cannot_be_taken_away(void **state)
{
    int req_fd = -1, fd = dial(*state);
    struct ll_msg_offer offer = greet(fd, &req_fd);
    struct ll_msg_mapped mapped = {.head = {LL_MSG_MAGIC, LL_MSG_MAPPED, sizeof(mapped)},
                                   .epoch = offer.epoch};
    union ll_heard message;

    say(fd, &mapped, sizeof(mapped));
    assert_int_equal(hear(fd, &message, NULL, NULL), LL_MSG_READY);
    assert_int_equal(ftruncate(req_fd, 0), -1);
    assert_int_equal(ftruncate(req_fd, (off_t)offer.req_bytes * 2), -1);
    assert_int_equal(fallocate(req_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, req_fd, 0), MAP_FAILED);
    assert_int_equal(fcntl(req_fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
    close(req_fd);
    close(fd);
    echo_await(&((struct echo *)*state)->knobs->n_detached, 1);
    assert_nothing_left(*state);
}

/* Wakes by the control thread of a user whose wakes have cost too much: late, and not lost; and the
 * debt is there when it comes back. */
ECHO_PEEKS static void a_user_in_debt_is_woken_late(void **state)
{
    struct echo *echo = *state;
    struct ll_client *client = echo_open(echo, 16);
    struct pollfd woken = {.fd = client->wake_fd, .events = POLLIN};

    echo_await(&echo->knobs->n_attached, 1); /* READY comes before the step thread has it */
    for (int i = 0; i < 1000 && poll(&woken, 1, 0) == 1; i++)
        ll_wait_drain(client->wake_fd);
    struct ll_attachment *attachment = echo->client[client->client_id];
    struct ll_mail mail = {.type = LL_MAIL_WAKE, .attachment = attachment};
    struct ll_domain *domain = attachment->domain;
    struct ll_debt *debt = &domain->control_debt;
    *debt = (struct ll_debt){.ns = 60 * LL_NS_PER_S, .at_ns = ll_now_ns(), .is_timed = true};
    for (int i = 0; i < 3; i++)
        assert_true(ll_mailbox_send(&echo->to_control, &mail));
    ll_wait_wake(ll_control_notify_fd(echo->control));
    assert_int_equal(poll(&woken, 1, 200), 0);
    debt->at_ns -= 60 * 200 * LL_NS_PER_S; /* paid off */
    assert_int_equal(poll(&woken, 1, 10000), 1);

    *debt = (struct ll_debt){.ns = 60 * LL_NS_PER_S, .at_ns = ll_now_ns(), .is_timed = true};
    ll_client_close(client);
    echo_await(&echo->knobs->n_detached, 1);
    struct ll_client_options o = {.struct_bytes = sizeof(o), .socket = echo->socket};
    assert_int_equal(ll_client_open(&client, &o), LL_E_QUOTA);
    assert_non_null(strstr(ll_error_text(), "slow"));
    debt->ns = 0; /* may attach again; what the step thread is owed, it still is */
    domain->step_debt = (struct ll_debt){.ns = 60 * LL_NS_PER_S, .at_ns = ll_now_ns()};
    client = echo_open(echo, 16);
    echo_await(&echo->knobs->n_attached, 2);
    assert_ptr_equal(echo->client[client->client_id]->domain, domain);
    assert_true(domain->step_debt.ns > 50 * LL_NS_PER_S);
    ll_client_close(client);
    echo_await(&echo->knobs->n_detached, 2);
    assert_nothing_left(echo);
}

static void a_flood_of_sweeps_is_kicked(void **state)
{
    struct ll_msg_plain sweep = {{LL_MSG_MAGIC, LL_MSG_SWEEP, sizeof(sweep)}};
    union ll_heard message;
    int fd = dial(*state);
    struct ll_msg_offer offer = greet(fd, NULL);
    struct ll_msg_mapped mapped = {.head = {LL_MSG_MAGIC, LL_MSG_MAPPED, sizeof(mapped)},
                                   .epoch = offer.epoch};

    say(fd, &mapped, sizeof(mapped));
    assert_int_equal(hear(fd, &message, NULL, NULL), LL_MSG_READY);
    for (int i = 0; i < 300; i++)
        if (send(fd, &sweep, sizeof(sweep), MSG_NOSIGNAL) < 0)
            break;
    assert_refused(fd, LL_E_PROTOCOL);
    echo_await(&((struct echo *)*state)->knobs->n_detached, 1);
    assert_nothing_left(*state);
}

static void another_wire_version_is_refused_with_both(void **state)
{
    struct ll_msg_hello hello = a_hello();
    union ll_heard message;
    int fd = dial(*state);

    hello.abi_major = LL_ABI_MAJOR + 1;
    say(fd, &hello, sizeof(hello));
    assert_int_equal(hear(fd, &message, NULL, NULL), LL_MSG_REFUSE);
    assert_int_equal(message.refuse.code, LL_E_ABI);
    assert_int_equal(message.refuse.abi_max >> 16, LL_ABI_MAJOR);
    assert_non_null(strstr(message.refuse.text, "version"));
    close(fd);
    assert_nothing_left(*state);
}

static void thousands_of_connects_leave_nothing_behind(void **state)
{
    struct echo *echo = *state;
    struct ll_msg_hello hello = a_hello();

    for (int i = 0; i < 10000; i++) {
        int fd = dial(echo);
        if (i % 3 == 1)
            say(fd, &hello, (size_t)i % 7);
        else if (i % 3 == 2)
            send(fd, &hello, sizeof(hello), MSG_NOSIGNAL);
        close(fd);
    }
    for (int i = 0; i < 200; i++) {
        struct ll_client *client = echo_open(echo, 16);
        if (i % 2 == 0) {
            uint32_t seed = 1;
            struct ll_request request = echo_request(&seed, 3);
            assert_int_equal(ll_client_submit(client, &request, NULL), 0);
        }
        ll_client_close(client);
    }
    echo_await(&echo->knobs->n_detached, 200);
    assert_nothing_left(echo);
}

int main(void)
{
#define WITH_ECHO(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
#define STOPPED(test)   cmocka_unit_test_setup_teardown(test, setup_stopped, teardown)
    const struct CMUnitTest tests[] = {
        WITH_ECHO(a_cut_message_is_refused),
        WITH_ECHO(a_message_out_of_turn_is_refused),
        WITH_ECHO(descriptors_of_a_client_are_dropped),
        WITH_ECHO(silence_ends_after_a_second_at_each_stage),
        STOPPED(who_answered_in_time_is_not_timed_out_by_a_busy_runtime),
        WITH_ECHO(a_bell_with_a_hole_is_repaired),
        WITH_ECHO(a_client_that_seals_first_is_dropped),
        WITH_ECHO(the_client_pays_for_its_memory),
        WITH_ECHO(a_kept_bell_is_empty_when_its_clients_have_left),
        WITH_ECHO(after_ready_memory_cannot_be_taken_away),
        WITH_ECHO(a_user_in_debt_is_woken_late),
        WITH_ECHO(a_flood_of_sweeps_is_kicked),
        WITH_ECHO(another_wire_version_is_refused_with_both),
        WITH_ECHO(thousands_of_connects_leave_nothing_behind),
    };
    ll_control_block_signals();
    return cmocka_run_group_tests_name("client/attach", tests, NULL, NULL);
}
