/* SPDX-License-Identifier: Apache-2.0 */
/* tests/client/test_impostor.c - the library's end of the handshake, with a runtime that hangs up,
 * keeps silent, talks nonsense, or offers memory that is not what it says. */
#include "tests/client/support_echo.h"

#include "base/clock.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int setup(void **state)
{
    struct echo *echo = malloc(sizeof(*echo));

    echo_init(echo);
    *state = echo;
    return 0;
}

static int teardown(void **state)
{
    echo_free(*state);
    free(*state);
    return 0;
}

static struct sockaddr_un address_of(const struct echo *echo)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", echo->socket);
    return address;
}

struct impostor {
    int listen_fd;
    void (*act)(int fd);
    pthread_t thread;
};

static void *accept_one(void *context)
{
    struct impostor *impostor = context;
    int fd = accept4(impostor->listen_fd, NULL, NULL, SOCK_CLOEXEC);

    impostor->act(fd);
    close(fd);
    return NULL;
}

static void hear_hello(int fd)
{
    struct ll_msg_hello hello;

    assert_int_equal(recv(fd, &hello, sizeof(hello), 0), sizeof(hello));
}

static struct ll_msg_offer false_offer;
static int false_fds[LL_FD_COUNT], n_false_fds;

static ssize_t n_answered; /* bytes of MAPPED that the offer got; 0: the library hung up */

static void send_offer(int fd)
{
    uint8_t mapped[64];

    hear_hello(fd);
    ll_msg_send(fd, &false_offer, sizeof(false_offer), false_fds, n_false_fds);
    n_answered = recv(fd, mapped, sizeof(mapped), 0);
    struct ll_msg_ready ready = {.head = {LL_MSG_MAGIC, LL_MSG_READY, sizeof(ready)},
                                 .epoch = false_offer.epoch};
    ll_msg_send(fd, &ready, sizeof(ready), NULL, 0);
}

static void hang_up(int fd)
{
    (void)fd;
}
static void hang_up_after_hello(int fd)
{
    hear_hello(fd);
}
static void say_nothing(int fd)
{
    uint8_t byte[200];
    while (recv(fd, byte, sizeof(byte), 0) > 0)
        ;
}
static void refuse_politely(int fd)
{
    struct ll_msg_refuse refuse = {.head = {LL_MSG_MAGIC, LL_MSG_REFUSE, sizeof(refuse)},
                                   .code = LL_E_DENIED,
                                   .text = "not on a Sunday"};
    hear_hello(fd);
    ll_msg_send(fd, &refuse, sizeof(refuse), NULL, 0);
}
/* Without reading the HELLO: the kernel resets the connection, the words arrive all the same. */
static void refuse_rudely(int fd)
{
    struct ll_msg_refuse refuse = {
        .head = {LL_MSG_MAGIC, LL_MSG_REFUSE, sizeof(refuse)}, .code = LL_E_QUOTA, .text = "full"};
    usleep(20000);
    ll_msg_send(fd, &refuse, sizeof(refuse), NULL, 0);
}
static void refuse_brokenly(int fd)
{
    struct ll_msg_plain refuse = {{LL_MSG_MAGIC, LL_MSG_REFUSE, sizeof(refuse)}};
    hear_hello(fd);
    ll_msg_send(fd, &refuse, sizeof(refuse), NULL, 0);
}
static void send_ready_first(int fd)
{
    struct ll_msg_ready ready = {.head = {LL_MSG_MAGIC, LL_MSG_READY, sizeof(ready)}};
    hear_hello(fd);
    ll_msg_send(fd, &ready, sizeof(ready), NULL, 0);
}
static void send_garbage(int fd)
{
    hear_hello(fd);
    send(fd, "garbage, not a message", 22, MSG_NOSIGNAL);
}

/* What ll_client_open() answers to a runtime that acts like this; no descriptor stays open. */
static int open_with(struct echo *echo, void (*act)(int fd))
{
    const struct sockaddr_un address = address_of(echo);
    struct ll_client_options o = {
        .struct_bytes = sizeof(o), .socket = echo->socket, .timeout_ns = 300 * LL_NS_PER_MS};
    struct impostor impostor = {.act = act};
    struct ll_client *client = NULL;

    unlink(echo->socket);
    impostor.listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(impostor.listen_fd, (const struct sockaddr *)&address, sizeof(address)),
                     0);
    assert_int_equal(listen(impostor.listen_fd, 4), 0);
    uint32_t n_before = count_descriptors();
    pthread_create(&impostor.thread, NULL, accept_one, &impostor);
    int rc = ll_client_open(&client, &o);
    pthread_join(impostor.thread, NULL);
    assert_null(client);
    assert_true(rc < 0);
    assert_true(strlen(ll_error_text()) > 10);
    assert_int_equal(count_descriptors(), n_before);
    close(impostor.listen_fd);
    return rc;
}

static void the_library_survives_a_bad_runtime(void **state)
{
    assert_int_equal(open_with(*state, hang_up), LL_E_RUNTIME_LOST);
    assert_int_equal(open_with(*state, hang_up_after_hello), LL_E_RUNTIME_LOST);
    assert_int_equal(open_with(*state, say_nothing), LL_E_TIMEOUT);
    assert_int_equal(open_with(*state, refuse_politely), LL_E_DENIED);
    assert_non_null(strstr(ll_error_text(), "Sunday"));
    assert_int_equal(open_with(*state, refuse_rudely), LL_E_QUOTA);
    assert_int_equal(open_with(*state, refuse_brokenly), LL_E_PROTOCOL);
    assert_int_equal(open_with(*state, send_ready_first), LL_E_PROTOCOL);
    assert_int_equal(open_with(*state, send_garbage), LL_E_PROTOCOL);
}

/* A true offer, taken from the runtime by hand; then one thing at a time is made wrong. */
static void every_field_of_an_offer_is_checked(void **state)
{
    struct echo *echo = *state;

    echo_start(echo);
    const struct ll_msg_hello hello = {.head = {LL_MSG_MAGIC, LL_MSG_HELLO, sizeof(hello)},
                                       .abi_major = LL_ABI_MAJOR,
                                       .n_slots = 16,
                                       .arena_bytes = 65536};
    const struct sockaddr_un address = address_of(echo);
    struct ll_msg_offer good;
    int fds[LL_FD_COUNT], n_fds, fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(ll_msg_send(fd, &hello, sizeof(hello), NULL, 0), 0);
    assert_int_equal(ll_msg_recv_fds(fd, &good, sizeof(good), fds, LL_FD_COUNT, &n_fds),
                     sizeof(good));
    assert_int_equal(good.head.type, LL_MSG_OFFER);
    close(fd);
    assert_int_equal(echo_stop(echo), 0);
    assert_int_equal(n_fds, LL_FD_COUNT);
    /* The runtime has emptied the bell; this one is as good. */
    struct ll_region bell_region;
    struct ll_bell bell;
    assert_int_equal(
        ll_region_map(&bell_region, dup(fds[LL_FD_BELL]), (size_t)good.bell_bytes, true), 0);
    ll_bell_init(&bell, bell_region.base, good.bell_log2, 0);
    ll_region_free(&bell_region);

#define BAD(code, change)                                                                          \
    do {                                                                                           \
        false_offer = good;                                                                        \
        memcpy(false_fds, fds, sizeof(fds));                                                       \
        n_false_fds = n_fds;                                                                       \
        change;                                                                                    \
        assert_int_equal(open_with(echo, send_offer), code);                                       \
        assert_true(n_answered <= 0);                                                              \
    } while (0)
    struct ll_msg_offer *o = &false_offer;
    /* As it came it is accepted: what is refused below is refused for the change. */
    false_offer = good;
    memcpy(false_fds, fds, sizeof(fds));
    n_false_fds = n_fds;
    open_with(echo, send_offer);
    assert_int_equal(n_answered, sizeof(struct ll_msg_mapped));
    BAD(LL_E_ABI, o->abi_major++);
    BAD(LL_E_PROTOCOL, o->head.size_bytes--);
    BAD(LL_E_PROTOCOL, o->epoch++);
    BAD(LL_E_PROTOCOL, o->client_id = 512);
    BAD(LL_E_PROTOCOL, o->incarnation = 1024);
    BAD(LL_E_PROTOCOL, n_false_fds--);
    BAD(LL_E_PROTOCOL, n_false_fds = 0);
    BAD(LL_E_PROTOCOL, o->fd_mask = 0);
    BAD(LL_E_PROTOCOL, o->fd_mask |= 1u << 8);
    BAD(LL_E_PROTOCOL, o->fd_mask &= ~(1u << LL_FD_WAKE));
    BAD(LL_E_PROTOCOL, o->n_slots = 0);
    BAD(LL_E_PROTOCOL, o->n_slots = 1025);
    BAD(LL_E_PROTOCOL, o->n_slots = 1024);
    uint64_t *sizes[] = {&o->info_bytes, &o->req_bytes,  &o->rsp_bytes,
                         &o->tok_bytes,  &o->stat_bytes, &o->bell_bytes};
    for (int i = 0; i < 6; i++) {
        BAD(LL_E_PROTOCOL, *sizes[i] = 0);
        BAD(LL_E_PROTOCOL, *sizes[i] += 4096);
        BAD(LL_E_PROTOCOL, *sizes[i] = UINT64_MAX);
        BAD(LL_E_PROTOCOL, *sizes[i] = 1);
    }
    uint32_t *fields[] = {&o->req_off_hot,   &o->req_off_slots,  &o->req_off_arena,
                          &o->arena_bytes,   &o->req_slot_bytes, &o->bell_log2,
                          &o->rsp_off_slots, &o->rsp_off_events, &o->rsp_log2_events,
                          &o->rsp_slot_bytes};
    for (int i = 0; i < 10; i++) {
        BAD(LL_E_PROTOCOL, *fields[i] = UINT32_MAX);
        BAD(LL_E_PROTOCOL, *fields[i] = UINT32_MAX & ~63u);
        BAD(LL_E_PROTOCOL, *fields[i] += 1);
    }
    BAD(LL_E_PROTOCOL, o->req_slot_bytes = 192);
    BAD(LL_E_PROTOCOL, o->rsp_slot_bytes = 0);
    BAD(LL_E_PROTOCOL, o->arena_bytes = 0);
    BAD(LL_E_PROTOCOL, o->bell_log2 = 31);
    BAD(LL_E_PROTOCOL, o->rsp_log2_events = 30);
    BAD(LL_E_PROTOCOL, o->req_off_bell = 8192);
    /* Descriptors that are something else: a pipe, unsealed memory, an eventfd that blocks. */
    int blocking = eventfd(0, EFD_CLOEXEC), loose = memfd_create("loose", MFD_CLOEXEC);
    assert_int_equal(ftruncate(loose, (off_t)good.req_bytes), 0);
    for (int i = 0; i < n_fds; i++) {
        if (i == LL_FD_KICK || i == LL_FD_WAKE)
            BAD(LL_E_PROTOCOL, false_fds[i] = blocking);
        else
            BAD(LL_E_PROTOCOL, false_fds[i] = loose);
    }
    /* A tokenizer image that the runtime can still change after it was checked. */
    struct ll_region written;
    assert_int_equal(ll_region_create(&written, "written", good.tok_bytes, -1), 0);
    assert_int_equal(ll_region_seal_written(&written), 0);
    BAD(LL_E_PROTOCOL, false_fds[LL_FD_TOK] = written.fd);
    ll_region_free(&written);
    /* READY, and what then stands in REQ or RSP is for somebody else. */
    struct ll_region req, rsp;
    assert_int_equal(ll_region_create(&rsp, "rsp", good.rsp_bytes, -1), 0);
    assert_int_equal(ll_region_map(&req, fds[LL_FD_REQ], good.req_bytes, true), 0);
    struct ll_rsp_head *rsp_head = rsp.base;
    struct ll_req_head *req_head = req.base;
    *rsp_head = (struct ll_rsp_head){.magic = LL_RSP_MAGIC, .client_id = good.client_id};
    assert_int_equal(ll_region_seal_written(&rsp), 0);
    fds[LL_FD_RSP] = (close(fds[LL_FD_RSP]), rsp.fd);
    for (int i = 0; i < 3; i++) {
        *req_head = (struct ll_req_head){.magic = LL_REQ_MAGIC, .client_id = good.client_id};
        rsp_head->client_id = good.client_id + (i == 0);
        req_head->client_id += i == 1;
        req_head->magic += i == 2;
        false_offer = good;
        memcpy(false_fds, fds, sizeof(fds));
        assert_int_equal(open_with(echo, send_offer), LL_E_PROTOCOL);
        assert_int_equal(n_answered, sizeof(struct ll_msg_mapped));
        assert_non_null(strstr(ll_error_text(), i == 0 ? "rsp_head" : "req_head"));
    }
    munmap(rsp.base, rsp.size_bytes);
    munmap(req.base, req.size_bytes);
    close(blocking);
    close(loose);
    for (int i = 0; i < n_fds; i++)
        close(fds[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_library_survives_a_bad_runtime, setup, teardown),
        cmocka_unit_test_setup_teardown(every_field_of_an_offer_is_checked, setup, teardown),
    };
    ll_control_block_signals();
    return cmocka_run_group_tests_name("client/impostor", tests, NULL, NULL);
}
