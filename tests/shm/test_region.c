/* SPDX-License-Identifier: Apache-2.0 */
/* tests/shm/test_region.c - regions, seals and messages of shm/region.h. The peer is this process
 * with the descriptor it would have received: seals belong to the memory, not to who asks. */
#include "tests/harness.h"

#include "ll/client.h"
#include "shm/bell.h"
#include "shm/region.h"
#include "shm/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES (16u * 4096u)

static struct ll_region make(void)
{
    struct ll_region region;

    assert_int_equal(ll_region_create(&region, "test", BYTES, -1), 0);
    return region;
}

static int count_fds(void)
{
    int n = 0;

    for (int fd = 0; fd < 1024; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void a_region_is_zeroed_rounded_and_never_hugetlb(void **state)
{
    (void)state;
    struct ll_region region;
    struct statfs fs;

    assert_int_equal(ll_region_create(&region, "test", BYTES - 100, 0), 0);
    assert_int_equal(region.size_bytes, BYTES);
    for (size_t i = 0; i < BYTES; i++)
        assert_int_equal(((char *)region.base)[i], 0);
    assert_int_equal(fstatfs(region.fd, &fs), 0);
    assert_int_equal(fs.f_type, TMPFS_MAGIC);
    assert_int_equal(fs.f_bsize, 4096);
    assert_int_equal(fcntl(region.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    ll_region_free(&region);
    assert_null(region.base);
    assert_int_equal(region.fd, -1);
    ll_region_free(&region); /* an empty one is accepted */
    assert_int_equal(ll_region_create(&region, "test", 0, -1), -EINVAL);
}

static void a_missing_numa_node_is_no_error(void **state)
{
    (void)state;
    struct ll_region region;

    assert_int_equal(ll_region_create(&region, "test", BYTES, 1000), 0);
    ll_region_free(&region);
    assert_int_equal(ll_region_create(&region, "test", BYTES, 1 << 20), 0);
    ll_region_free(&region);
}

static void a_client_maps_what_was_promised_and_nothing_else(void **state)
{
    (void)state;
    struct ll_region region = make(), peer;

    assert_int_equal(ll_region_map(&peer, region.fd, BYTES, true), LL_E_PROTOCOL); /* unsealed */
    assert_int_equal(ll_region_seal_size(&region), 0);
    assert_int_equal(ll_region_map(&peer, region.fd, BYTES + 4096, true), LL_E_PROTOCOL);
    assert_int_equal(ll_region_map(&peer, region.fd, BYTES - 4096, true), LL_E_PROTOCOL);
    assert_int_equal(ll_region_map(&peer, region.fd, 0, true), LL_E_PROTOCOL);
    int not_memory = open("/dev/null", O_RDWR | O_CLOEXEC);
    assert_int_equal(ll_region_map(&peer, not_memory, BYTES, true), LL_E_PROTOCOL);
    close(not_memory);
    assert_int_equal(ll_region_map(&peer, -1, BYTES, true), LL_E_PROTOCOL);

    assert_int_equal(ll_region_map(&peer, dup(region.fd), BYTES, true), 0);
    ((char *)peer.base)[5] = 42;
    assert_int_equal(((char *)region.base)[5], 42);
    ll_region_free(&peer);
    ll_region_free(&region);
}

static void populate_works_for_both_sides(void **state)
{
    (void)state;
    struct ll_region region = make(), peer;
    unsigned char resident[BYTES / 4096];
    bool locked;

    assert_int_equal(ll_region_populate(&region, &locked), 0);
    assert_int_equal(mincore(region.base, BYTES, resident), 0);
    for (size_t i = 0; i < sizeof(resident); i++)
        assert_int_equal(resident[i] & 1, 1);
    assert_int_equal(ll_region_seal_written(&region), 0);
    assert_int_equal(ll_region_map(&peer, dup(region.fd), BYTES, false), 0);
    assert_int_equal(ll_region_populate(&peer, &locked), 0);
    ll_region_free(&peer);
    ll_region_free(&region);
}

static void a_child_does_not_inherit_a_mapping(void **state)
{
    (void)state;
    struct ll_region region = make();
    pid_t pid = fork();

    if (pid == 0) {
        unsigned char resident[BYTES / 4096];
        _exit(mincore(region.base, BYTES, resident) == -1 && errno == ENOMEM ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    ll_region_free(&region);
}

/* ---- T10: what a client may try with its descriptors (the tenth, passing a
 * descriptor of its own, is among the messages below) */

/* Each of the writing ways in, refused with EPERM or EACCES. */
static void assert_no_way_in(int fd, void *mapped)
{
    char path[64];

#define REFUSED(call)                                                                              \
    errno = 0;                                                                                     \
    assert_true((call) < 0);                                                                       \
    assert_true(errno == EPERM || errno == EACCES)
#define NO_MAP(call)                                                                               \
    errno = 0;                                                                                     \
    assert_ptr_equal((call), MAP_FAILED);                                                          \
    assert_true(errno == EPERM || errno == EACCES)
    REFUSED(ftruncate(fd, BYTES - 4096));
    REFUSED(ftruncate(fd, 0));
    REFUSED(ftruncate(fd, BYTES + 4096));
    REFUSED(fallocate(fd, 0, 0, BYTES + 4096));
    REFUSED(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    REFUSED(madvise(mapped, 4096, MADV_REMOVE));
    NO_MAP(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    REFUSED(pwrite(fd, "x", 1, 0));
    REFUSED(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    void *read_only = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(read_only, MAP_FAILED);
    REFUSED(mprotect(read_only, BYTES, PROT_READ | PROT_WRITE));
    munmap(read_only, BYTES);

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int reopened = open(path, O_RDWR | O_CLOEXEC);
    if (reopened >= 0) { /* itself allowed */
        NO_MAP(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, reopened, 0));
        REFUSED(pwrite(reopened, "x", 1, 0));
        REFUSED(ftruncate(reopened, 0));
        REFUSED(fallocate(reopened, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
        close(reopened);
    }
    errno = 0;
    reopened = open(path, O_RDWR | O_CLOEXEC | O_TRUNC);
    assert_true(reopened < 0 && (errno == EPERM || errno == EACCES));
}

/* REQ: the client writes through the mapping it has, and in no other way. */
static void a_written_region_takes_nothing_but_stores_after_the_seal(void **state)
{
    (void)state;
    struct ll_region region = make(), peer;
    bool locked;

    assert_int_equal(ll_region_seal_size(&region), 0);
    assert_int_equal(ll_region_map(&peer, dup(region.fd), BYTES, true), 0);
    /* Before the last seal a hole can be punched: that is why populate comes after it. */
    assert_int_equal(fallocate(peer.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, BYTES), 0);
    assert_int_equal(ll_region_seal_written(&region), 0);
    assert_int_equal(ll_region_populate(&region, &locked), 0);
    memset(region.base, 0x5a, BYTES);
    assert_no_way_in(peer.fd, peer.base);
    madvise(peer.base, BYTES, MADV_DONTNEED);
    madvise(peer.base, BYTES, MADV_PAGEOUT);
    for (size_t i = 0; i < BYTES; i++)
        assert_int_equal(((char *)region.base)[i], 0x5a);
    ((char *)peer.base)[100] = 1;
    assert_int_equal(((char *)region.base)[100], 1);
    ll_region_free(&peer);
    ll_region_free(&region);
}

/* RSP, INFO, STAT, TOK: sealed before they are sent. */
static void a_read_region_can_only_be_read(void **state)
{
    (void)state;
    struct ll_region region = make(), peer;

    assert_int_equal(ll_region_seal_written(&region), 0);
    assert_int_not_equal(ll_region_map(&peer, region.fd, BYTES, true), 0);
    assert_int_equal(ll_region_map(&peer, dup(region.fd), BYTES, false), 0);
    assert_no_way_in(peer.fd, peer.base);
    errno = 0;
    assert_int_equal(mprotect(peer.base, BYTES, PROT_READ | PROT_WRITE), -1);
    assert_int_equal(errno, EACCES);
    ((char *)region.base)[100] = 42; /* the runtime's mapping goes on */
    assert_int_equal(((const char *)peer.base)[100], 42);
    ll_region_free(&peer);
    ll_region_free(&region);
}

static void a_client_that_seals_first_is_noticed(void **state)
{
    (void)state;
    static const int first[] = {F_SEAL_SEAL, F_SEAL_SEAL | F_SEAL_FUTURE_WRITE};

    for (size_t i = 0; i < 2; i++) {
        struct ll_region region = make(), peer;
        assert_int_equal(ll_region_seal_size(&region), 0);
        assert_int_equal(ll_region_map(&peer, dup(region.fd), BYTES, true), 0);
        assert_int_equal(fcntl(peer.fd, F_ADD_SEALS, first[i]), 0);
        assert_int_equal(ll_region_seal_written(&region), -EPERM);
        ll_region_free(&peer);
        ll_region_free(&region);
    }
}

/* BELL: later clients must map it, so it takes no FUTURE_WRITE and a client can punch it. What that
 * does is a scribble like any other: pop says so or loses a doorbell, never faults. */
static void a_punched_bell_costs_doorbells_only(void **state)
{
    (void)state;
    struct ll_region region = make(), peer;
    struct ll_bell bell;
    struct ll_bell_reader reader;
    uint32_t payload;

    ll_bell_init(&bell, region.base, 10, 5);
    ll_bell_reader_init(&reader, &bell);
    assert_int_equal(ll_region_seal_size_final(&region), 0);
    assert_int_equal(ll_region_map(&peer, dup(region.fd), BYTES, true), 0);
    assert_int_equal(ftruncate(peer.fd, 0), -1);
    assert_int_equal(ftruncate(peer.fd, BYTES * 2), -1);
    assert_int_equal(fcntl(peer.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), -1);
    assert_true(ll_bell_push(&bell, 1));
    assert_int_equal(fallocate(peer.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, BYTES), 0);
    assert_int_equal(ll_bell_pop(&reader, &payload), LL_E_PROTOCOL);
    ll_bell_repair(&reader);
    assert_true(ll_bell_push(&bell, 2));
    assert_int_equal(ll_bell_pop(&reader, &payload), 1);
    assert_int_equal(payload, 2);
    ll_region_free(&peer);
    ll_region_free(&region);
}

/* ---- messages */

static void messages_arrive_whole_and_with_their_descriptors(void **state)
{
    (void)state;
    struct ll_region region = make();
    struct ll_msg_refuse out = {.head = {LL_MSG_MAGIC, LL_MSG_REFUSE, sizeof(out)}, .code = -5};
    struct ll_msg_refuse in;
    int pair[2], fds[LL_FD_COUNT], n_fds;

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair),
                     0);
    assert_int_equal(ll_msg_recv(pair[1], &in, sizeof(in)), -EAGAIN);
    assert_int_equal(ll_msg_send(pair[0], &out, sizeof(out), NULL, 0), 0);
    assert_int_equal(ll_msg_recv(pair[1], &in, sizeof(in)), sizeof(in));
    assert_memory_equal(&in, &out, sizeof(in));

    int sent[LL_FD_COUNT];
    for (int i = 0; i < LL_FD_COUNT; i++)
        sent[i] = region.fd;
    for (int n = 0; n <= LL_FD_COUNT; n++) {
        int before = count_fds();
        assert_int_equal(ll_msg_send(pair[0], &out, sizeof(out), sent, n), 0);
        assert_int_equal(ll_msg_recv_fds(pair[1], &in, sizeof(in), fds, LL_FD_COUNT, &n_fds),
                         sizeof(in));
        assert_int_equal(n_fds, n);
        assert_int_equal(count_fds(), before + n);
        for (int i = 0; i < n; i++) {
            assert_int_equal(fcntl(fds[i], F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
            close(fds[i]);
        }
    }
    close(pair[0]);
    assert_int_equal(ll_msg_recv(pair[1], &in, sizeof(in)), 0);
    assert_int_equal(ll_msg_recv_fds(pair[1], &in, sizeof(in), fds, LL_FD_COUNT, &n_fds), 0);
    assert_int_equal(ll_msg_send(pair[1], &out, sizeof(out), NULL, 0), -EPIPE); /* no SIGPIPE */
    close(pair[1]);
    ll_region_free(&region);
}

static void a_message_that_is_not_ours_is_refused(void **state)
{
    (void)state;
    struct {
        struct ll_msg_plain plain;
        char more[64];
    } bad = {.plain.head = {LL_MSG_MAGIC, LL_MSG_BYE, sizeof(struct ll_msg_plain)}};
    char in[64];
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), 0);
    ll_msg_send(pair[0], &bad, sizeof(bad.plain), NULL, 0);
    assert_int_equal(ll_msg_recv(pair[1], in, sizeof(in)), sizeof(bad.plain));
    ll_msg_send(pair[0], &bad, sizeof(bad.plain) - 1, NULL, 0); /* shorter than it says */
    assert_int_equal(ll_msg_recv(pair[1], in, sizeof(in)), LL_E_PROTOCOL);
    ll_msg_send(pair[0], &bad, sizeof(bad.plain) + 1, NULL, 0); /* longer */
    assert_int_equal(ll_msg_recv(pair[1], in, sizeof(in)), LL_E_PROTOCOL);
    ll_msg_send(pair[0], &bad, 3, NULL, 0); /* no head */
    assert_int_equal(ll_msg_recv(pair[1], in, sizeof(in)), LL_E_PROTOCOL);
    ll_msg_send(pair[0], &bad, sizeof(bad), NULL, 0); /* cut by our buffer */
    assert_int_equal(ll_msg_recv(pair[1], in, sizeof(in)), LL_E_PROTOCOL);
    bad.plain.head.magic++;
    ll_msg_send(pair[0], &bad, sizeof(bad.plain), NULL, 0);
    assert_int_equal(ll_msg_recv(pair[1], in, sizeof(in)), LL_E_PROTOCOL);
    close(pair[0]);
    close(pair[1]);
}

/* R1: 8 descriptors attached by a hostile peer, on a receiver of either form. */
static void descriptors_nobody_asked_for_do_not_stay(void **state)
{
    (void)state;
    struct ll_msg_plain out = {.head = {LL_MSG_MAGIC, LL_MSG_BYE, sizeof(out)}}, in;
    int pair[2], fds[LL_FD_COUNT], sent[LL_FD_COUNT] = {0}, n_fds;

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), 0);
    int before = count_fds();
    ll_msg_send(pair[0], &out, sizeof(out), sent, LL_FD_COUNT);
    assert_int_equal(ll_msg_recv(pair[1], &in, sizeof(in)), LL_E_PROTOCOL);
    ll_msg_send(pair[0], &out, sizeof(out), sent, LL_FD_COUNT);
    assert_int_equal(ll_msg_recv_fds(pair[1], &in, sizeof(in), fds, 3, &n_fds), LL_E_PROTOCOL);
    out.head.magic++; /* a bad message's are closed too */
    ll_msg_send(pair[0], &out, sizeof(out), sent, LL_FD_COUNT);
    assert_int_equal(ll_msg_recv_fds(pair[1], &in, sizeof(in), fds, 8, &n_fds), LL_E_PROTOCOL);
    assert_int_equal(n_fds, 0);
    assert_int_equal(count_fds(), before);
    close(pair[0]);
    close(pair[1]);
}

static void a_constant_region_can_be_written_by_nobody(void **state)
{
    (void)state;
    struct ll_region region, view, refused;

    assert_int_equal(ll_region_create(&region, "test", 8192, -1), 0);
    strcpy(region.base, "constant");
    assert_int_equal(ll_region_map_const(&refused, region.fd, 8192), LL_E_PROTOCOL);
    assert_int_equal(ll_region_seal_const(&region), 0);
    assert_string_equal(region.base, "constant");
    assert_int_equal(ll_region_map_const(&view, region.fd, 8192), 0);
    assert_string_equal(view.base, "constant");
    assert_ptr_not_equal(view.base, region.base);
    assert_int_equal(ftruncate(region.fd, 0), -1);
    assert_int_equal(pwrite(region.fd, "x", 1, 0), -1);
    assert_int_equal(fallocate(region.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, region.fd, 0),
                     MAP_FAILED);
    view.fd = -1; /* the same one */
    ll_region_free(&view);
    ll_region_free(&region);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_constant_region_can_be_written_by_nobody),
        cmocka_unit_test(a_region_is_zeroed_rounded_and_never_hugetlb),
        cmocka_unit_test(a_missing_numa_node_is_no_error),
        cmocka_unit_test(a_client_maps_what_was_promised_and_nothing_else),
        cmocka_unit_test(populate_works_for_both_sides),
        cmocka_unit_test(a_child_does_not_inherit_a_mapping),
        cmocka_unit_test(a_written_region_takes_nothing_but_stores_after_the_seal),
        cmocka_unit_test(a_read_region_can_only_be_read),
        cmocka_unit_test(a_client_that_seals_first_is_noticed),
        cmocka_unit_test(a_punched_bell_costs_doorbells_only),
        cmocka_unit_test(messages_arrive_whole_and_with_their_descriptors),
        cmocka_unit_test(a_message_that_is_not_ours_is_refused),
        cmocka_unit_test(descriptors_nobody_asked_for_do_not_stay),
    };
    return cmocka_run_group_tests_name("shm/region", tests, NULL, NULL);
}
