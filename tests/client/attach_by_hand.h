/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/attach_by_hand.h - a runtime, and a peer that speaks the handshake by hand. For
 * test_attach.c and test_attach_limits.c. */
#ifndef TESTS_CLIENT_ATTACH_BY_HAND_H
#define TESTS_CLIENT_ATTACH_BY_HAND_H

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

static inline void start(struct echo *echo)
{
    echo_start(echo);
    n_descriptors = count_descriptors();
}

static inline int setup(void **state)
{
    struct echo *echo = malloc(sizeof(*echo));

    echo_init(echo);
    start(echo);
    *state = echo;
    return 0;
}

static inline int setup_stopped(void **state)
{
    struct echo *echo = malloc(sizeof(*echo));

    echo_init(echo);
    *state = echo;
    return 0;
}

static inline int teardown(void **state)
{
    struct echo *echo = *state;
    int rc = echo->control != NULL ? echo_stop(echo) : 0;

    echo_free(echo);
    free(echo);
    return rc;
}

/* The runtime has let go of everything. */
static inline void assert_nothing_left(struct echo *echo)
{
    uint64_t deadline_ns = ll_now_ns() + 20 * LL_NS_PER_S;

    while (count_descriptors() != n_descriptors && ll_now_ns() < deadline_ns)
        usleep(1000);
    assert_int_equal(count_descriptors(), n_descriptors);
    assert_int_equal(echo->knobs->n_attached, echo->knobs->n_detached);
}

/* ---- a peer that speaks by hand ---------------------------------------------------------------*/

static inline int dial(const struct echo *echo)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", echo->socket);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static inline struct ll_msg_hello a_hello(void)
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
static inline int hear(int fd, union ll_heard *message, int *fds, int *n_fds)
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
static inline void assert_refused(int fd, int code)
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

static inline void say(int fd, const void *message, size_t n)
{
    assert_int_equal(send(fd, message, n, MSG_NOSIGNAL), n);
}

/* HELLO and OFFER, and all that came with it. */
static inline struct ll_msg_offer ask(int fd, int fds[LL_FD_COUNT])
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

static inline void touch(int fd, size_t n_bytes, bool is_writable)
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
static inline struct ll_msg_offer greet(int fd, int *req_fd)
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

#endif
