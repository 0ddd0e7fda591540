/* SPDX-License-Identifier: Apache-2.0 */
#include "client/handle.h"

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ARENA_BYTES_MIN  65536u
#define REGION_BYTES_MAX (1ull << 32)
#define EVENTS_LOG2_MIN  6u
#define EVENTS_LOG2_MAX  22u

/* ---- options ----------------------------------------------------------------------------------*/

static int check_options(struct ll_client_options *out, const struct ll_client_options *options)
{
    *out = (struct ll_client_options){.struct_bytes = sizeof(*out)};
    if (options != NULL) {
        if (options->struct_bytes < offsetof(struct ll_client_options, n_slots) + sizeof(uint32_t))
            return LL_ERR(LL_E_INVAL, "struct_bytes: %u, must be sizeof(struct ll_client_options)",
                          options->struct_bytes);
        for (size_t i = sizeof(*out); i < options->struct_bytes; i++)
            if (((const uint8_t *)options)[i] != 0)
                return LL_ERR(LL_E_UNSUPPORTED, "the options have fields this library does not "
                                                "know: install a newer one");
        memcpy(out, options, ll_min_u64(options->struct_bytes, sizeof(*out)));
    }
    if (out->n_slots == 0)
        out->n_slots = 32;
    if (out->arena_bytes == 0)
        out->arena_bytes = 1u << 20;
    if (out->spin_us == 0)
        out->spin_us = 20;
    if (out->name == NULL)
        out->name = program_invocation_short_name;
    if (out->timeout_ns == 0)
        out->timeout_ns = LL_ATTACH_NS;
    if (out->n_slots < LL_SLOTS_MIN || out->n_slots > LL_SLOTS_MAX)
        return LL_ERR(LL_E_INVAL, "n_slots: %u, must be %u .. %u", out->n_slots, LL_SLOTS_MIN,
                      LL_SLOTS_MAX);
    if (out->arena_bytes < ARENA_BYTES_MIN || out->arena_bytes > LL_ARENA_BYTES_MAX)
        return LL_ERR(LL_E_INVAL, "arena_bytes: %u, must be %u .. %u", out->arena_bytes,
                      ARENA_BYTES_MIN, LL_ARENA_BYTES_MAX);
    if (options != NULL && options->name != NULL && strlen(options->name) > 63)
        return LL_ERR(LL_E_INVAL, "name: %zu bytes, at most 63", strlen(options->name));
    return 0;
}

/* ---- connect
 * ------------------------------------------------------------------------------------*/

/* The runtime's backlog may be full for a moment: tried again until the deadline. */
static int connect_to(const char *path, uint64_t deadline_ns)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path))
        return LL_ERR(-ENAMETOOLONG, "socket path %s: longer than %zu bytes", path,
                      sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return LL_ERRNO("socket");
    while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int error = errno;
        if ((error == EAGAIN || error == EINTR) && ll_now_ns() < deadline_ns) {
            poll(NULL, 0, 1);
            continue;
        }
        close(fd);
        if (error == EAGAIN)
            return LL_ERR(LL_E_TIMEOUT, "the runtime at %s is too busy to take a client", path);
        if (error == EACCES)
            return LL_ERR(-EACCES, "this user may not connect to %s: join the group that owns it",
                          path);
        return ll_err_set_errno(error, "connect to %s", path);
    }
    return fd;
}

static bool is_absent(int rc)
{
    return rc == -ENOENT || rc == -ECONNREFUSED;
}

/* The socket named, or the first default at which somebody listens. */
static int connect_default(const char *socket, uint64_t deadline_ns)
{
    const char *named = socket != NULL ? socket : getenv("LLRING_SOCKET");
    const char *user_directory = getenv("XDG_RUNTIME_DIR");
    char user_path[256] = "";
    int rc;

    if (named != NULL && named[0] != 0) {
        rc = connect_to(named, deadline_ns);
        if (is_absent(rc))
            LL_ERR(rc, "no runtime listens at %s: start one with `llring serve MODEL --socket %s`",
                   named, named);
        return rc;
    }
    if (user_directory != NULL && user_directory[0] != 0) {
        snprintf(user_path, sizeof(user_path), "%s/llring/llring.sock", user_directory);
        rc = connect_to(user_path, deadline_ns);
        if (!is_absent(rc))
            return rc;
    }
    rc = connect_to("/run/llring/llring.sock", deadline_ns);
    if (is_absent(rc))
        LL_ERR(rc,
               "no runtime listens at %s%s/run/llring/llring.sock: start one with `llring serve "
               "MODEL`, or name its socket in LLRING_SOCKET",
               user_path, user_path[0] != 0 ? " or " : "");
    return rc;
}

/* ---- messages
 * -----------------------------------------------------------------------------------*/

union message {
    struct ll_msg_head head;
    struct ll_msg_offer offer;
    struct ll_msg_ready ready;
    struct ll_msg_refuse refuse;
    uint8_t bytes[LL_MSG_BYTES_MAX];
};

static void close_all(int *fds, int n)
{
    for (int i = 0; i < n; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static int refused(const struct ll_msg_refuse *message, int n)
{
    if (n < (int)sizeof(*message) || message->code >= 0)
        return LL_ERR(LL_E_PROTOCOL, "the runtime refused this client with a broken message");
    return LL_ERR(message->code, "the runtime refused this client: %.*s",
                  (int)strnlen(message->text, sizeof(message->text)), message->text);
}

/* Waits for the message of a type, of at least size_bytes. REFUSE becomes its code and text.
 * Bytes, or a negative code with no descriptor kept. */
static int receive(int socket, uint64_t deadline_ns, enum ll_msg_type type, size_t size_bytes,
                   union message *message, int *fds, int *n_fds)
{
    bool was_reset = false;

    for (;;) {
        uint64_t now_ns = ll_now_ns();
        uint64_t left_ns = now_ns < deadline_ns ? deadline_ns - now_ns : 0;
        struct pollfd readable = {.fd = socket, .events = POLLIN};
        struct timespec span = {.tv_sec = (time_t)(left_ns / LL_NS_PER_S),
                                .tv_nsec = (long)(left_ns % LL_NS_PER_S)};
        int rc = ppoll(&readable, 1, &span, NULL);
        if (rc < 0 && errno != EINTR)
            return LL_ERRNO("poll");
        if (rc == 0)
            return LL_ERR(LL_E_TIMEOUT,
                          "the runtime did not answer in time: look at its log, restart "
                          "it if it hangs");
        *n_fds = 0;
        int n = ll_msg_recv_fds(socket, message, sizeof(*message), fds, LL_FD_COUNT, n_fds);
        if (n == -EAGAIN || n == -EINTR)
            continue;
        if (n == -ECONNRESET && !was_reset) {
            was_reset = true; /* it left something of ours unread; its own last words still come */
            continue;
        }
        if (n == 0 || n == -ECONNRESET)
            return LL_ERR(LL_E_RUNTIME_LOST, "the runtime closed the connection while attaching");
        if (n < 0)
            return n;
        if (message->head.type == type && n >= (int)size_bytes)
            return n;
        close_all(fds, *n_fds);
        *n_fds = 0;
        if (message->head.type == LL_MSG_REFUSE || message->head.type == LL_MSG_KICK)
            return refused(&message->refuse, n);
        if (message->head.type != LL_MSG_DRAIN)
            return LL_ERR(LL_E_PROTOCOL, "the runtime sent message %u of %d bytes, expected %d",
                          message->head.type, n, type);
    }
}

static int send_message(int socket, const void *message, size_t size_bytes)
{
    int rc = ll_msg_send(socket, message, size_bytes, NULL, 0);

    if (rc == -EPIPE || rc == -ECONNRESET)
        return 0; /* why it hung up stands in what we read next */
    return rc;
}

/* ---- the OFFER
 * ------------------------------------------------------------------------------------*/

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return LL_ERR(LL_E_PROTOCOL, "the runtime's offer is not sound: %s", #condition);      \
    } while (0)

/* count items of stride bytes from offset lie inside size, the offset aligned. */
static bool is_array(uint64_t offset, uint64_t count, uint64_t stride, uint64_t size,
                     uint64_t align)
{
    return offset % align == 0 && stride % align == 0 && ll_span_fits(offset, count * stride, size);
}

static int check_offer(const struct ll_msg_offer *o, int n_fds)
{
    const uint32_t required = 1u << LL_FD_INFO | 1u << LL_FD_REQ | 1u << LL_FD_RSP |
                              1u << LL_FD_KICK | 1u << LL_FD_WAKE | 1u << LL_FD_STAT;

    if (o->abi_major != LL_ABI_MAJOR)
        return LL_ERR(LL_E_ABI,
                      "the runtime speaks wire version %u.%u, this library %u.%u: install matching "
                      "versions",
                      o->abi_major, o->abi_minor, LL_ABI_MAJOR, LL_ABI_MINOR);
    REQUIRE((o->fd_mask & required) == required && o->fd_mask >> LL_FD_COUNT == 0);
    REQUIRE(__builtin_popcount(o->fd_mask) == n_fds);
    REQUIRE(((o->fd_mask & 1u << LL_FD_BELL) == 0) == (o->req_off_bell != 0));
    REQUIRE(((o->fd_mask & 1u << LL_FD_TOK) == 0) == (o->tok_bytes == 0));
    REQUIRE(o->client_id < LL_ATTACHMENTS_MAX && o->incarnation <= 0x3ff);
    REQUIRE(o->n_slots >= 1 && o->n_slots <= LL_SLOTS_MAX);
    REQUIRE(o->info_bytes >= sizeof(struct ll_info_region) && o->info_bytes <= REGION_BYTES_MAX);
    REQUIRE(o->req_bytes >= sizeof(struct ll_req_head) && o->req_bytes <= REGION_BYTES_MAX);
    REQUIRE(o->rsp_bytes >= sizeof(struct ll_rsp_head) && o->rsp_bytes <= REGION_BYTES_MAX);
    REQUIRE(o->stat_bytes <= REGION_BYTES_MAX && o->tok_bytes <= REGION_BYTES_MAX);
    REQUIRE(o->bell_bytes <= REGION_BYTES_MAX);
    REQUIRE(is_array(o->req_off_hot, 1, sizeof(struct ll_req_hot), o->req_bytes, 64));
    REQUIRE(o->req_slot_bytes >= sizeof(struct ll_req));
    REQUIRE(is_array(o->req_off_slots, o->n_slots, o->req_slot_bytes, o->req_bytes, 64));
    REQUIRE(o->arena_bytes >= 4096 && o->arena_bytes % 64 == 0);
    REQUIRE(is_array(o->req_off_arena, 1, o->arena_bytes, o->req_bytes, 64));
    REQUIRE(o->bell_log2 >= 5 && o->bell_log2 <= 20);
    REQUIRE(o->req_off_bell == 0 ||
            is_array(o->req_off_bell, 1, ll_bell_bytes(o->bell_log2), o->req_bytes, 8));
    REQUIRE(o->rsp_slot_bytes >= sizeof(struct ll_rst));
    REQUIRE(is_array(o->rsp_off_slots, o->n_slots, o->rsp_slot_bytes, o->rsp_bytes, 64));
    REQUIRE(o->rsp_log2_events >= EVENTS_LOG2_MIN && o->rsp_log2_events <= EVENTS_LOG2_MAX);
    REQUIRE(is_array(o->rsp_off_events, 1ull << o->rsp_log2_events, sizeof(struct ll_event),
                     o->rsp_bytes, 64));
    return 0;
}

enum access { READS, WRITES, CONSTANT };

/* Takes over descriptors one by one: what is still in fds[] on the way out is closed by the
 * caller. */
static int map_one(struct ll_region *region, int *fd, uint64_t size_bytes, enum access access)
{
    int rc = access == CONSTANT ? ll_region_map_const(region, *fd, size_bytes)
                                : ll_region_map(region, *fd, size_bytes, access == WRITES);

    if (rc < 0) {
        *region = (struct ll_region){.fd = -1};
        return rc;
    }
    region->fd = *fd;
    ll_region_close_fd(region); /* the mapping keeps the memory */
    *fd = -1;
    return 0;
}

/* A descriptor we will write to or drain must never block us. */
static int take_eventfd(int *out, int *fd)
{
    int flags = fcntl(*fd, F_GETFL);

    if (flags < 0 || (flags & O_NONBLOCK) == 0)
        return LL_ERR(LL_E_PROTOCOL, "the runtime's offer is not sound: an eventfd that blocks");
    *out = *fd;
    *fd = -1;
    return 0;
}

static int map_all(struct ll_client *client, const struct ll_msg_offer *o, int *received)
{
    int *fd[LL_FD_COUNT] = {NULL}, at = 0, rc;

    for (int i = 0; i < LL_FD_COUNT; i++)
        if ((o->fd_mask & 1u << i) != 0)
            fd[i] = &received[at++];
    rc = map_one(&client->info_region, fd[LL_FD_INFO], o->info_bytes, READS);
    if (rc == 0)
        rc = map_one(&client->req_region, fd[LL_FD_REQ], o->req_bytes, WRITES);
    if (rc == 0)
        rc = map_one(&client->rsp_region, fd[LL_FD_RSP], o->rsp_bytes, READS);
    if (rc == 0)
        rc = map_one(&client->stat_region, fd[LL_FD_STAT], o->stat_bytes, READS);
    if (rc == 0 && fd[LL_FD_TOK] != NULL)
        rc = map_one(&client->tok_region, fd[LL_FD_TOK], o->tok_bytes, CONSTANT);
    if (rc == 0 && fd[LL_FD_BELL] != NULL)
        rc = map_one(&client->bell_region, fd[LL_FD_BELL], o->bell_bytes, WRITES);
    if (rc == 0)
        rc = take_eventfd(&client->kick_fd, fd[LL_FD_KICK]);
    if (rc == 0)
        rc = take_eventfd(&client->wake_fd, fd[LL_FD_WAKE]);
    return rc;
}

/* The whole of REQ and RSP must be there before MAPPED: whoever touches a page first pays for it,
 * and for these the runtime does not (region.h). */
static int touch(const struct ll_region *region, int advice)
{
    if (madvise(region->base, region->size_bytes, advice) < 0)
        return LL_ERRNO("touching %zu bytes of shared memory", region->size_bytes);
    return 0;
}

/* Views into the regions; sizes and offsets from the offer, which is ours alone. Before READY
 * nothing stands in REQ and RSP. */
static int make_views(struct ll_client *client, const struct ll_msg_offer *o)
{
    uint8_t *req = client->req_region.base;
    const uint8_t *rsp = client->rsp_region.base;

    client->info = client->info_region.base;
    client->rsp_head = client->rsp_region.base;
    REQUIRE(client->info->magic == LL_INFO_MAGIC && client->info->epoch == o->epoch);
    client->client_id = o->client_id;
    client->incarnation = o->incarnation;
    client->n_slots = o->n_slots;
    client->hot = (struct ll_req_hot *)(req + o->req_off_hot);
    client->slots = req + o->req_off_slots;
    client->req_slot_bytes = o->req_slot_bytes;
    client->arena.base = req + o->req_off_arena;
    client->arena.n_bytes = o->arena_bytes;
    client->rst = rsp + o->rsp_off_slots;
    client->rst_bytes = o->rsp_slot_bytes;
    ll_event_reader_init(&client->events, (const struct ll_event *)(rsp + o->rsp_off_events),
                         o->rsp_log2_events, &client->hot->cons_pos, 0);
    if (o->req_off_bell != 0)
        return 0;
    return ll_bell_attach(&client->bell, client->bell_region.base, client->bell_region.size_bytes,
                          o->bell_log2);
}

/* After READY: what the runtime has written is meant for us. */
static int check_heads(struct ll_client *client, const struct ll_msg_offer *o)
{
    uint8_t *req = client->req_region.base;
    const struct ll_req_head *req_head = client->req_region.base;

    REQUIRE(req_head->magic == LL_REQ_MAGIC && req_head->client_id == o->client_id);
    REQUIRE(client->rsp_head->magic == LL_RSP_MAGIC && client->rsp_head->client_id == o->client_id);
    if (o->req_off_bell == 0)
        return 0;
    return ll_bell_attach(&client->bell, req + o->req_off_bell, ll_bell_bytes(o->bell_log2),
                          o->bell_log2);
}

/* ---- private memory
 * -----------------------------------------------------------------------------*/

/* A page that the kernel empties in a forked child: the pid check without a system call. */
static int make_guard(struct ll_client *client)
{
    uint32_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (page == MAP_FAILED)
        return LL_ERRNO("fork guard");
    if (madvise(page, 4096, MADV_WIPEONFORK) < 0) {
        int rc = LL_ERRNO("MADV_WIPEONFORK (Linux 4.14)");
        munmap(page, 4096);
        return rc;
    }
    *page = LL_CLIENT_GUARD;
    client->guard = page;
    return 0;
}

static size_t queue_bytes(const struct ll_client *client)
{
    return (size_t)client->n_slots * LL_CLIENT_QUEUE_EVENTS * sizeof(struct ll_event);
}

static int make_memory(struct ll_client *client)
{
    uint32_t n = client->n_slots;

    client->arena.n_blocks = (uint32_t)ll_pow2_ceil(4ull * n);
    client->n_ready_max = (uint32_t)ll_pow2_ceil(n);
    client->slot = calloc(n, sizeof(*client->slot));
    client->arena.block = calloc(client->arena.n_blocks, sizeof(*client->arena.block));
    client->ready = calloc(client->n_ready_max, sizeof(*client->ready));
    client->queues = mmap(NULL, queue_bytes(client), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (client->queues == MAP_FAILED)
        client->queues = NULL;
    if (client->slot == NULL || client->arena.block == NULL || client->ready == NULL ||
        client->queues == NULL)
        return LL_ERR(-ENOMEM, "no memory for %u slots", n);
    for (uint32_t i = 0; i < n; i++) {
        client->slot[i].queue = client->queues + (size_t)i * LL_CLIENT_QUEUE_EVENTS;
        client->free_map[i / 64] |= 1ull << (i % 64);
    }
    return 0;
}

/* One descriptor for event loops that also tells of the runtime's end. */
static int make_epoll(struct ll_client *client)
{
    struct epoll_event event = {.events = EPOLLIN};

    client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (client->epoll_fd < 0 ||
        epoll_ctl(client->epoll_fd, EPOLL_CTL_ADD, client->wake_fd, &event) < 0 ||
        epoll_ctl(client->epoll_fd, EPOLL_CTL_ADD, client->socket_fd, &event) < 0)
        return LL_ERRNO("epoll");
    return 0;
}

/* ---- open and close
 * -----------------------------------------------------------------------------*/

static int shake_hands(struct ll_client *client, const struct ll_client_options *options,
                       uint64_t deadline_ns)
{
    union message message;
    int fds[LL_FD_COUNT], n_fds = 0;
    struct ll_msg_hello hello = {.head = {LL_MSG_MAGIC, LL_MSG_HELLO, sizeof(hello)},
                                 .abi_major = LL_ABI_MAJOR,
                                 .abi_minor = LL_ABI_MINOR,
                                 .n_slots = options->n_slots,
                                 .arena_bytes = options->arena_bytes,
                                 .pid_hint = (uint32_t)getpid()};

    snprintf(hello.name, sizeof(hello.name), "%s", options->name);
    int rc = send_message(client->socket_fd, &hello, sizeof(hello));
    if (rc < 0)
        return rc;
    rc = receive(client->socket_fd, deadline_ns, LL_MSG_OFFER, sizeof(message.offer), &message, fds,
                 &n_fds);
    if (rc < 0)
        return rc;
    struct ll_msg_offer offer = message.offer;
    rc = check_offer(&offer, n_fds);
    if (rc == 0)
        rc = map_all(client, &offer, fds);
    close_all(fds, n_fds); /* those map_all() did not take over */
    if (rc == 0)
        rc = make_views(client, &offer);
    if (rc == 0)
        rc = ll_client_info_load(client, offer.tok_bytes);
    if (rc == 0)
        rc = make_memory(client);
    if (rc == 0)
        rc = make_epoll(client);
    if (rc == 0)
        rc = touch(&client->req_region, MADV_POPULATE_WRITE);
    if (rc == 0)
        rc = touch(&client->rsp_region, MADV_POPULATE_READ);
    if (rc < 0)
        return rc;

    struct ll_msg_mapped mapped = {.head = {LL_MSG_MAGIC, LL_MSG_MAPPED, sizeof(mapped)},
                                   .epoch = offer.epoch};
    rc = send_message(client->socket_fd, &mapped, sizeof(mapped));
    if (rc == 0)
        rc = receive(client->socket_fd, deadline_ns, LL_MSG_READY, sizeof(message.ready), &message,
                     fds, &n_fds);
    if (rc < 0)
        return rc;
    close_all(fds, n_fds);
    REQUIRE(message.ready.epoch == offer.epoch);
    return check_heads(client, &offer);
}

static void close_if(int fd)
{
    if (fd >= 0)
        close(fd);
}

/* In a forked child the shared regions are not mapped, and something else may be at their place:
 * only what is the child's own is freed. */
static void free_client(struct ll_client *client, bool is_forked)
{
    struct ll_region *regions[] = {&client->info_region, &client->req_region, &client->rsp_region,
                                   &client->bell_region, &client->tok_region, &client->stat_region};

    for (size_t i = 0; i < LL_COUNT(regions) && !is_forked; i++)
        ll_region_free(regions[i]);
    close_if(client->epoll_fd);
    close_if(client->socket_fd);
    close_if(client->kick_fd);
    close_if(client->wake_fd);
    if (client->queues != NULL)
        munmap(client->queues, queue_bytes(client));
    if (client->guard != NULL)
        munmap((void *)(uintptr_t)client->guard, 4096);
    free(client->slot);
    free(client->arena.block);
    free(client->ready);
    free(client->stat_entry);
    free(client);
}

int ll_client_open(struct ll_client **out, const struct ll_client_options *options)
{
    const struct ll_region none = {.fd = -1};
    struct ll_client_options checked;
    int rc = check_options(&checked, options);
    if (rc < 0)
        return rc;

    struct ll_client *client = calloc(1, sizeof(*client));
    if (client == NULL)
        return LL_ERR(-ENOMEM, "no memory for a client");
    client->info_region = client->req_region = client->rsp_region = none;
    client->bell_region = client->tok_region = client->stat_region = none;
    client->socket_fd = client->kick_fd = client->wake_fd = client->epoll_fd = -1;
    client->attached_ns = ll_now_ns();
    client->spin_ns = checked.spin_us == UINT32_MAX ? UINT64_MAX : checked.spin_us * LL_NS_PER_US;
    uint64_t deadline_ns = client->attached_ns + checked.timeout_ns;

    rc = make_guard(client);
    if (rc == 0)
        rc = client->socket_fd = connect_default(checked.socket, deadline_ns);
    if (rc >= 0)
        rc = shake_hands(client, &checked, deadline_ns);
    if (rc < 0) {
        free_client(client, false);
        return rc;
    }
    *out = client;
    return 0;
}

void ll_client_close(struct ll_client *client)
{
    const struct ll_msg_plain bye = {{LL_MSG_MAGIC, LL_MSG_BYE, sizeof(bye)}};

    if (client == NULL)
        return;
    bool is_forked = ll_client_is_forked(client);
    if (!is_forked) /* best effort: a runtime that is gone needs no good-bye */
        ll_msg_send(client->socket_fd, &bye, sizeof(bye), NULL, 0);
    free_client(client, is_forked);
}
