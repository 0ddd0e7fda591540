/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_attach.c - the runtime's end of the handshake: each message cut, doubled, out
 * of turn, with descriptors nobody asked for; silence; floods; quotas; what stays open afterwards;
 * the socket's path; drain. */
#include "tests/client/support_echo.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"
#include "client/handle.h"
#include "shm/wait.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static uint32_t n_descriptors; /* with the runtime up and nobody attached */

static void start(struct echo *echo)
{
    echo_start(echo);
    n_descriptors = count_descriptors();
}

static int setup(void **state)
{
    struct echo *echo = malloc(sizeof(*echo));

    echo_init(echo);
    start(echo);
    *state = echo;
    return 0;
}

static int setup_stopped(void **state)
{
    struct echo *echo = malloc(sizeof(*echo));

    echo_init(echo);
    *state = echo;
    return 0;
}

static int teardown(void **state)
{
    struct echo *echo = *state;
    int rc = echo->control != NULL ? echo_stop(echo) : 0;

    echo_free(echo);
    free(echo);
    return rc;
}

/* The runtime has let go of everything. */
static void assert_nothing_left(struct echo *echo)
{
    uint64_t deadline_ns = ll_now_ns() + 20 * LL_NS_PER_S;

    while (count_descriptors() != n_descriptors && ll_now_ns() < deadline_ns)
        usleep(1000);
    assert_int_equal(count_descriptors(), n_descriptors);
    assert_int_equal(echo->knobs->n_attached, echo->knobs->n_detached);
}

/* ---- a peer that speaks by hand ---------------------------------------------------------------*/

static int dial(const struct echo *echo)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", echo->socket);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static struct ll_msg_hello a_hello(void)
{
    return (struct ll_msg_hello){.head = {LL_MSG_MAGIC, LL_MSG_HELLO, sizeof(struct ll_msg_hello)},
                                 .abi_major = LL_ABI_MAJOR,
                                 .n_slots = 16,
                                 .arena_bytes = 65536,
                                 .name = "by hand"};
}

union ll_heard {
    struct ll_msg_head head;
    struct ll_msg_offer offer;
    struct ll_msg_refuse refuse;
    uint8_t bytes[LL_MSG_BYTES_MAX];
};

/* The next message within 3 s; its type, 0 at the end of the connection, -1 for silence. */
static int hear(int fd, union ll_heard *message, int *fds, int *n_fds)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    int spare[LL_FD_COUNT], n_spare;

    for (int attempt = 0; attempt < 2; attempt++) {
        if (poll(&readable, 1, 3000) != 1)
            return -1;
        int n = ll_msg_recv_fds(fd, message, sizeof(*message), fds != NULL ? fds : spare,
                                LL_FD_COUNT, n_fds != NULL ? n_fds : &n_spare);
        if (n > 0 && fds == NULL)
            for (int i = 0; i < n_spare; i++)
                close(spare[i]);
        if (n > 0)
            return message->head.type;
        if (n == 0)
            return 0;
        assert_int_equal(n, -ECONNRESET); /* it left something unread; its last words come next */
    }
    return 0;
}

/* The connection ends, by a refusal with this code (0: silently is fine too). */
static void assert_refused(int fd, int code)
{
    union ll_heard message;
    int type;

    while ((type = hear(fd, &message, NULL, NULL)) != 0) {
        assert_true(type > 0);
        if (type == LL_MSG_REFUSE || type == LL_MSG_KICK) {
            if (code != 0)
                assert_int_equal(message.refuse.code, code);
            assert_true(strlen(message.refuse.text) > 0);
        }
    }
    close(fd);
}

static void say(int fd, const void *message, size_t n)
{
    assert_int_equal(send(fd, message, n, MSG_NOSIGNAL), n);
}

/* HELLO and OFFER, and all that came with it. */
static struct ll_msg_offer ask(int fd, int fds[LL_FD_COUNT])
{
    struct ll_msg_hello hello = a_hello();
    union ll_heard message;
    int n_fds;

    say(fd, &hello, sizeof(hello));
    assert_int_equal(hear(fd, &message, fds, &n_fds), LL_MSG_OFFER);
    assert_int_equal(__builtin_popcount(message.offer.fd_mask), n_fds);
    for (int i = n_fds; i < LL_FD_COUNT; i++)
        fds[i] = -1;
    return message.offer;
}

static void touch(int fd, size_t n_bytes, bool is_writable)
{
    int protection = is_writable ? PROT_READ | PROT_WRITE : PROT_READ;
    volatile uint8_t *at = mmap(NULL, n_bytes, protection, MAP_SHARED, fd, 0);

    assert_ptr_not_equal(at, MAP_FAILED);
    for (size_t i = 0; i < n_bytes; i += 4096) {
        uint8_t byte = at[i];
        if (is_writable)
            at[i] = byte;
    }
    assert_int_equal(munmap((void *)(uintptr_t)at, n_bytes), 0);
}

/* The same with the client's duties done; what came is closed but for REQ's descriptor. */
static struct ll_msg_offer greet(int fd, int *req_fd)
{
    int fds[LL_FD_COUNT];
    struct ll_msg_offer offer = ask(fd, fds);

    touch(fds[LL_FD_REQ], offer.req_bytes, true);
    touch(fds[LL_FD_RSP], offer.rsp_bytes, false);
    for (int i = 0; i < LL_FD_COUNT; i++)
        if (fds[i] >= 0 && (i != LL_FD_REQ || req_fd == NULL))
            close(fds[i]);
    if (req_fd != NULL)
        *req_fd = fds[LL_FD_REQ];
    return offer;
}

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
    return cmocka_run_group_tests_name("client/attach", tests, NULL, NULL);
}
