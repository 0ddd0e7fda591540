/* SPDX-License-Identifier: Apache-2.0 */
/* shm/region.c - memfds and their seals; messages with descriptors. Order of a hand-over and the
 * reason for each seal: region.h. */
#include "shm/region.h"

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"
#include "shm/wire.h"

#include <fcntl.h>
#include <linux/mempolicy.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE_BYTES 4096u
#define NODES_MAX  1024u

/* Newer than the C library's headers: Linux 6.3, 5.14. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define SEALS_SIZE       (F_SEAL_SHRINK | F_SEAL_GROW)
#define SEALS_SIZE_FINAL (SEALS_SIZE | F_SEAL_SEAL)
#define SEALS_WRITTEN    (SEALS_SIZE | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)
#define SEALS_CONST      (SEALS_SIZE | F_SEAL_WRITE | F_SEAL_SEAL)

/* The system call itself, so that libllclient need not link libnuma. The node is where pages come
 * from when there are any; a refusal (container, no such node) costs speed only. */
static void bind_node(void *base, size_t size_bytes, int numa_node)
{
    unsigned long mask[NODES_MAX / (8 * sizeof(unsigned long))] = {0};
    size_t bits = 8 * sizeof(mask[0]);

    if (numa_node < 0)
        return;
    if ((unsigned)numa_node >= NODES_MAX) {
        ll_warn("NUMA node %d does not exist: memory is placed anywhere", numa_node);
        return;
    }
    mask[(unsigned)numa_node / bits] = 1ul << (unsigned)numa_node % bits;
    /* The kernel takes one bit less than maxnode says. */
    if (syscall(SYS_mbind, base, size_bytes, MPOL_PREFERRED, mask, NODES_MAX + 1ul, 0u) != 0)
        ll_warn("mbind to NUMA node %d: %s: memory is placed anywhere", numa_node, strerror(errno));
}

/* Prompts live here: not into a core dump, and not into a child that outlives the attachment. */
static void *map_as(int fd, size_t size_bytes, int protection, int flags)
{
    void *base = mmap(NULL, size_bytes, protection, flags, fd, 0);

    if (base == MAP_FAILED)
        return NULL;
    if (madvise(base, size_bytes, MADV_DONTFORK) != 0 ||
        madvise(base, size_bytes, MADV_DONTDUMP) != 0) {
        int error = errno;
        munmap(base, size_bytes);
        errno = error;
        return NULL;
    }
    return base;
}

static void *map_shared(int fd, size_t size_bytes, bool is_writable)
{
    return map_as(fd, size_bytes, is_writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED);
}

/* Private and read-only: the same pages. Before Linux 6.7 a shared mapping of what is sealed with
 * WRITE is refused even for reading. */
static void *map_const(int fd, size_t size_bytes)
{
    return map_as(fd, size_bytes, PROT_READ, MAP_PRIVATE);
}

int ll_region_create(struct ll_region *out, const char *name, size_t size_bytes, int numa_node)
{
    if (size_bytes == 0 || size_bytes > SIZE_MAX / 4)
        return LL_ERR(-EINVAL, "region %s of %zu bytes", name, size_bytes);
    size_bytes = ll_align_up(size_bytes, PAGE_BYTES);

    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return LL_ERRNO("memfd_create %s", name);

    int rc;
    if (ftruncate(fd, (off_t)size_bytes) != 0) {
        rc = LL_ERRNO("ftruncate %s to %zu bytes", name, size_bytes);
        goto close_fd;
    }
    void *base = map_shared(fd, size_bytes, true);
    if (base == NULL) {
        rc = LL_ERRNO("mmap %s, %zu bytes", name, size_bytes);
        goto close_fd;
    }
    bind_node(base, size_bytes, numa_node);
    *out = (struct ll_region){.base = base, .size_bytes = size_bytes, .fd = fd};
    return 0;

close_fd:
    close(fd);
    return rc;
}

/* Adds seals and verifies: the peer may have added F_SEAL_SEAL or its own first. */
static int seal(const struct ll_region *region, int seals)
{
    if (fcntl(region->fd, F_ADD_SEALS, seals) != 0)
        return LL_ERRNO("sealing a shared region");
    int present = fcntl(region->fd, F_GET_SEALS);
    if (present < 0)
        return LL_ERRNO("reading the seals of a shared region");
    if ((present & seals) != seals)
        return LL_ERR(-EPERM, "a shared region has seals %#x, needs %#x", (unsigned)present,
                      (unsigned)seals);
    return 0;
}

int ll_region_seal_size(const struct ll_region *region)
{
    return seal(region, SEALS_SIZE);
}
int ll_region_seal_size_final(const struct ll_region *region)
{
    return seal(region, SEALS_SIZE_FINAL);
}
int ll_region_seal_written(const struct ll_region *region)
{
    return seal(region, SEALS_WRITTEN);
}

int ll_region_seal_const(struct ll_region *region)
{
    if (munmap(region->base, region->size_bytes) != 0)
        return LL_ERRNO("unmapping a region that is to be constant");
    region->base = NULL;
    int rc = seal(region, SEALS_CONST);
    if (rc < 0)
        return rc;
    region->base = map_const(region->fd, region->size_bytes);
    return region->base != NULL ? 0 : LL_ERRNO("mmap of a constant region");
}

int ll_region_populate(const struct ll_region *region, bool *locked)
{
    int rc = madvise(region->base, region->size_bytes, MADV_POPULATE_WRITE);

    if (rc != 0 && errno == EINVAL) /* a client's read-only mapping */
        rc = madvise(region->base, region->size_bytes, MADV_POPULATE_READ);
    if (rc != 0)
        return LL_ERRNO("populating %zu bytes of shared memory", region->size_bytes);
    *locked = mlock(region->base, region->size_bytes) == 0;
    return 0;
}

bool ll_region_is_whole(const struct ll_region *region)
{
    struct stat st;

    /* In units of 512 bytes, pages in swap included. */
    return fstat(region->fd, &st) == 0 && (uint64_t)st.st_blocks * 512 >= region->size_bytes;
}

int ll_region_empty(const struct ll_region *region)
{
    if (fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                  (off_t)region->size_bytes) != 0)
        return LL_ERRNO("giving back %zu bytes of shared memory", region->size_bytes);
    return 0;
}

/* Is fd memory of this size with these seals? */
static int check_memory(int fd, size_t size_bytes, int wanted, const char *what)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || fstat(fd, &st) != 0)
        return LL_ERR(LL_E_PROTOCOL, "the runtime sent a descriptor that is no sealed memory");
    if ((seals & wanted) != wanted)
        return LL_ERR(LL_E_PROTOCOL, "the runtime sent memory that can %s (seals %#x)", what,
                      (unsigned)seals);
    if (size_bytes == 0 || size_bytes % PAGE_BYTES != 0 || (uint64_t)st.st_size != size_bytes)
        return LL_ERR(LL_E_PROTOCOL, "the runtime sent %lld bytes of memory, promised %zu",
                      (long long)st.st_size, size_bytes);
    return 0;
}

static int keep_mapping(struct ll_region *out, void *base, int fd, size_t size_bytes)
{
    if (base == NULL)
        return LL_ERRNO("mmap of %zu bytes from the runtime", size_bytes);
    *out = (struct ll_region){.base = base, .size_bytes = size_bytes, .fd = fd};
    return 0;
}

int ll_region_map(struct ll_region *out, int fd, size_t size_bytes, bool is_writable)
{
    int rc = check_memory(fd, size_bytes, SEALS_SIZE, "shrink");

    return rc < 0 ? rc : keep_mapping(out, map_shared(fd, size_bytes, is_writable), fd, size_bytes);
}

int ll_region_map_const(struct ll_region *out, int fd, size_t size_bytes)
{
    int rc = check_memory(fd, size_bytes, SEALS_SIZE | F_SEAL_WRITE, "change");

    return rc < 0 ? rc : keep_mapping(out, map_const(fd, size_bytes), fd, size_bytes);
}

void ll_region_close_fd(struct ll_region *region)
{
    if (region->fd >= 0)
        close(region->fd);
    region->fd = -1;
}

void ll_region_free(struct ll_region *region)
{
    if (region->base != NULL)
        munmap(region->base, region->size_bytes);
    ll_region_close_fd(region);
    *region = (struct ll_region){.fd = -1};
}

/* ---- messages ------------------------------------------------------------------------------*/

union control_buffer {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(LL_FD_COUNT * sizeof(int))];
};

int ll_msg_send(int socket, const void *message, size_t size_bytes, const int *fds, int n_fds)
{
    union control_buffer control = {0};
    struct iovec part = {.iov_base = (void *)(uintptr_t)message, .iov_len = size_bytes};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};

    if (n_fds < 0 || n_fds > LL_FD_COUNT)
        return LL_ERR(-EINVAL, "a message with %d descriptors: at most %d", n_fds, LL_FD_COUNT);
    if (n_fds > 0) {
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE((size_t)n_fds * sizeof(int));
        struct cmsghdr *item = CMSG_FIRSTHDR(&header);
        item->cmsg_level = SOL_SOCKET;
        item->cmsg_type = SCM_RIGHTS;
        item->cmsg_len = CMSG_LEN((size_t)n_fds * sizeof(int));
        memcpy(CMSG_DATA(item), fds, (size_t)n_fds * sizeof(int));
    }
    ssize_t n;
    do
        n = sendmsg(socket, &header, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return LL_ERRNO("sending a message of %zu bytes", size_bytes);
    if ((size_t)n != size_bytes)
        return LL_ERR(LL_E_PROTOCOL, "sent %zd bytes of a message of %zu", n, size_bytes);
    return 0;
}

/* Is what came one whole message of ours? n > 0. */
static int check_message(const void *message, size_t n, int flags)
{
    struct ll_msg_head head;

    if ((flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
        return LL_ERR(LL_E_PROTOCOL, "a message of the peer was longer than any of ours");
    if (n < sizeof(head))
        return LL_ERR(LL_E_PROTOCOL, "a message of %zu bytes has no head", n);
    memcpy(&head, message, sizeof(head));
    if (head.magic != LL_MSG_MAGIC || head.size_bytes != n)
        return LL_ERR(LL_E_PROTOCOL, "a message of %zu bytes has magic %#x and size %u", n,
                      head.magic, head.size_bytes);
    return (int)n;
}

int ll_msg_recv(int socket, void *message, size_t capacity)
{
    struct iovec part = {.iov_base = message, .iov_len = capacity};
    /* No control buffer: the kernel then never installs the peer's descriptors (R1). It says so
     * with MSG_CTRUNC; a peer that sends any breaks the protocol. */
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t n;

    do
        n = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return LL_ERRNO("receiving a message");
    return n == 0 ? 0 : check_message(message, (size_t)n, header.msg_flags);
}

int ll_msg_recv_fds(int socket, void *message, size_t capacity, int *fds, int n_fds_max, int *n_fds)
{
    union control_buffer control = {0};
    struct iovec part = {.iov_base = message, .iov_len = capacity};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = sizeof(control.bytes)};
    int rc, n_got = 0;
    ssize_t n;

    *n_fds = 0;
    do
        n = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return LL_ERRNO("receiving a message with descriptors");

    /* Everything that was installed is taken into account before anything is judged. */
    int got[LL_FD_COUNT];
    for (struct cmsghdr *item = CMSG_FIRSTHDR(&header); item != NULL;
         item = CMSG_NXTHDR(&header, item)) {
        if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n_here = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n_here && n_got < LL_FD_COUNT; i++)
            memcpy(&got[n_got++], CMSG_DATA(item) + i * sizeof(int), sizeof(int));
    }
    rc = n == 0 ? 0 : check_message(message, (size_t)n, header.msg_flags);
    if (rc >= 0 && n_got > n_fds_max)
        rc = LL_ERR(LL_E_PROTOCOL, "%d descriptors came with a message, expected at most %d", n_got,
                    n_fds_max);
    if (rc <= 0) {
        for (int i = 0; i < n_got; i++)
            close(got[i]);
        return rc;
    }
    memcpy(fds, got, (size_t)n_got * sizeof(int));
    *n_fds = n_got;
    return rc;
}
