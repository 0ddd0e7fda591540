/* SPDX-License-Identifier: Apache-2.0 */
/* shm/wait.c - the protocol stands in wait.h. */
#include "shm/wait.h"

#include "base/err.h"

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__)
#define IS_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define IS_TSAN 1
#endif
#endif

/* Seq_cst, pairs with the same fence on the other side: of the sleeper's (flag, then data) and the
 * writer's (data, then flag) at least one sees what the other stored. Acquire and release do not
 * order a store before a later load, on x86 neither; tests/shm/stress_wait.c --no-fence shows the
 * lost wake-ups. */
void ll_wait_fence(void)
{
#ifdef IS_TSAN
    /* ThreadSanitizer knows no fences. A locked operation on one word is the same thing to it and
     * to an x86 or Arm processor. */
    static _Atomic uint32_t fence;
    atomic_fetch_add_explicit(&fence, 1, memory_order_seq_cst);
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

void ll_wait_kick(const struct ll_info_region *info, int kick_fd)
{
    ll_wait_fence();
    /* Relaxed: the fence orders it after our push; pairs with ll_wait_runtime_arm. */
    if (atomic_load_explicit(&info->rt_sleeping, memory_order_relaxed) != 0)
        ll_wait_wake(kick_fd);
}

void ll_wait_arm(struct ll_req_hot *hot)
{
    /* Relaxed: the fence orders it before the caller's next look at its events; pairs with
     * ll_wait_fence and ll_wait_claim of the runtime's step. */
    atomic_store_explicit(&hot->wait_word, 1, memory_order_relaxed);
    ll_wait_fence();
}

void ll_wait_disarm(struct ll_req_hot *hot)
{
    /* Relaxed: a claim that comes too late costs one needless wake, which stays in the eventfd. */
    atomic_store_explicit(&hot->wait_word, 0, memory_order_relaxed);
}

bool ll_wait_claim(struct ll_req_hot *hot)
{
    uint32_t armed = 1;

    /* Relaxed: ll_wait_fence stands before it; pairs with ll_wait_arm. A plain load first, so that
     * an awake client's line is only read. */
    if (atomic_load_explicit(&hot->wait_word, memory_order_relaxed) == 0)
        return false;
    /* Any other value is a client's scribble and wakes nobody. Acq_rel on success: the client's
     * last stores before arming are seen (cons_pos), and our events stay before the claim. */
    return atomic_compare_exchange_strong_explicit(&hot->wait_word, &armed, 0, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

void ll_wait_runtime_arm(struct ll_info_region *info)
{
    /* Relaxed: the fence orders it before the next look at the rings; pairs with ll_wait_kick. */
    atomic_store_explicit(&info->rt_sleeping, 1, memory_order_relaxed);
    ll_wait_fence();
}

void ll_wait_runtime_disarm(struct ll_info_region *info)
{
    /* Relaxed: a client that still reads 1 sends one needless kick. */
    atomic_store_explicit(&info->rt_sleeping, 0, memory_order_relaxed);
}

int ll_wait_make_wake(int *client_end, int *runtime_end)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return LL_ERRNO("socketpair for waking a client");
    *client_end = pair[0];
    *runtime_end = pair[1];
    return 0;
}

void ll_wait_wake(int fd)
{
    uint64_t one = 1;

    /* EAGAIN means that it is full: the sleeper has been told often enough. EPIPE: it is gone. */
    ssize_t rc = send(fd, &one, sizeof(one), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (rc < 0 && errno == ENOTSOCK)
        rc = write(fd, &one, sizeof(one));
    (void)rc;
}

void ll_wait_drain(int fd)
{
    uint64_t words[32]; /* of an eventfd one comes, of a socket all that piled up */
    struct iovec part = {.iov_base = words, .iov_len = sizeof(words)};

    /* RWF_NOWAIT, since O_NONBLOCK of a shared descriptor is the peer's to clear. EAGAIN means
     * that it is empty already. */
    ssize_t rc = preadv2(fd, &part, 1, -1, RWF_NOWAIT);
    if (rc < 0 && errno == EOPNOTSUPP) /* sockets of older kernels */
        rc = recv(fd, words, sizeof(words), MSG_DONTWAIT);
    (void)rc;
}
