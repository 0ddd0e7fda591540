/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/control_impl.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "ll/client.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5; older headers lack it */
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

/* Connections taken in one turn of the loop: a flood must not keep it from its other work. */
#define ACCEPTS_A_TURN 16
#define SPARE_MS       10

static int make_directory(const char *path)
{
    char directory[sizeof(((struct ll_control *)0)->path)];

    snprintf(directory, sizeof(directory), "%s", path);
    char *slash = strrchr(directory, '/');
    if (slash == NULL || slash == directory)
        return 0;
    *slash = 0;
    if (mkdir(directory, 0755) < 0 && errno != EEXIST)
        return ll_err_set_errno(errno,
                                "make directory %s for the control socket (choose another "
                                "path with --socket)",
                                directory);
    return 0;
}

int ll_control_lock(struct ll_control *control)
{
    int rc = make_directory(control->path);

    if (rc < 0)
        return rc;
    /* The last runtime unlinks its lock file on the way out: what we locked must still be what the
     * name means, else another starter holds the new file. */
    for (int attempt = 0; attempt < 100; attempt++) {
        int fd = open(control->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
            return ll_err_set_errno(errno, "open lock file %s", control->lock_path);
        if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
            char text[32] = "";
            rc = errno;
            ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
            close(fd);
            if (rc != EWOULDBLOCK)
                return ll_err_set_errno(rc, "lock %s", control->lock_path);
            return LL_ERR(
                -EADDRINUSE,
                "another runtime (pid %ld) serves %s: stop it, or give this one a path of "
                "its own with --socket",
                n > 0 ? strtol(text, NULL, 10) : 0, control->path);
        }
        struct stat held, named;
        if (fstat(fd, &held) == 0 && stat(control->lock_path, &named) == 0 &&
            held.st_ino == named.st_ino && held.st_dev == named.st_dev) {
            if (ftruncate(fd, 0) < 0 || dprintf(fd, "%ld\n", (long)getpid()) < 0)
                ll_warn("cannot write the pid to %s", control->lock_path);
            control->lock_fd = fd;
            return 0;
        }
        close(fd);
    }
    return LL_ERR(-EADDRINUSE, "%s: lock file keeps changing", control->lock_path);
}

/* Does somebody answer at the path, a runtime that uses another lock file, say? */
static bool is_alive(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return false;
    int rc = connect(fd, (const struct sockaddr *)address, sizeof(*address));
    bool alive = rc == 0 || errno == EAGAIN;
    close(fd);
    return alive;
}

/* Bound under a name of its own, made 0660, listening, only then renamed: nobody ever meets a
 * socket that is not ready or not protected. */
int ll_control_bind(struct ll_control *control)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX}, temporary = {.sun_family = AF_UNIX};
    struct stat st;
    int rc;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", control->path);
    snprintf(temporary.sun_path, sizeof(temporary.sun_path), "%s.new", control->path);
    if (lstat(control->path, &st) == 0) {
        if (!S_ISSOCK(st.st_mode))
            return LL_ERR(-EEXIST, "%s exists and is no socket: remove it, or use --socket",
                          control->path);
        if (is_alive(&address))
            return LL_ERR(-EADDRINUSE, "another runtime listens at %s: stop it, or use --socket",
                          control->path);
    }
    if (unlink(temporary.sun_path) < 0 && errno != ENOENT)
        return LL_ERRNO("unlink %s", temporary.sun_path);

    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return LL_ERRNO("control socket");
    if (bind(fd, (struct sockaddr *)&temporary, sizeof(temporary)) < 0) {
        rc = LL_ERRNO("bind %s", temporary.sun_path);
        goto close_fd;
    }
    if (chmod(temporary.sun_path, 0660) < 0 || listen(fd, 256) < 0 ||
        rename(temporary.sun_path, control->path) < 0) {
        rc = LL_ERRNO("listen at %s", control->path);
        goto unlink_temporary;
    }
    control->listen_fd = fd;
    control->is_bound = true;
    return 0;

unlink_temporary:
    unlink(temporary.sun_path);
close_fd:
    close(fd);
    return rc;
}

/* Socket first, then the lock file, then the lock: see ll_control_lock(). */
void ll_control_unbind(struct ll_control *control)
{
    if (control->is_bound)
        unlink(control->path);
    control->is_bound = false;
    if (control->listen_fd >= 0)
        close(control->listen_fd);
    control->listen_fd = -1;
    if (control->lock_fd >= 0) {
        unlink(control->lock_path);
        close(control->lock_fd);
    }
    control->lock_fd = -1;
}

static struct ll_connection *find_place(struct ll_control *control, uid_t uid)
{
    struct ll_connection *free_one = NULL;
    uint32_t n_pending = 0, n_of_uid = 0;

    for (uint32_t i = 0; i < control->n_connections; i++) {
        struct ll_connection *connection = &control->connection[i];
        if (connection->stage == LL_STAGE_FREE) {
            if (free_one == NULL)
                free_one = connection;
        } else if (connection->stage != LL_STAGE_ATTACHED) {
            n_pending++;
            n_of_uid += connection->uid == uid;
        }
    }
    return n_pending < LL_CONTROL_PENDING_MAX && n_of_uid < LL_CONTROL_PENDING_UID ? free_one
                                                                                   : NULL;
}

int ll_control_accept_spare(struct ll_control *control, int listen_fd)
{
    if (control->spare_fd >= 0)
        close(control->spare_fd);
    control->spare_fd = -1;
    int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) /* somebody else was quicker; the loop comes back at once, and must not spin */
        poll(NULL, 0, SPARE_MS);
    return fd;
}

void ll_control_close_spare(struct ll_control *control, int fd)
{
    if (fd >= 0)
        close(fd);
    control->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void refuse_one(struct ll_control *control)
{
    int fd = ll_control_accept_spare(control, control->listen_fd);

    if (fd >= 0) {
        ll_control_refuse(fd, LL_MSG_REFUSE, LL_E_QUOTA,
                          "the runtime has no descriptor left: raise its LimitNOFILE");
        ll_stat_add(&control->stats->attaches_refused, 1);
    }
    ll_control_close_spare(control, fd);
}

void ll_control_accept(struct ll_control *control)
{
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE)
                refuse_one(control);
            return;
        }
        struct ucred peer;
        socklen_t n_peer = sizeof(peer);
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n_peer) < 0) {
            close(fd);
            continue;
        }
        struct ll_connection *connection = find_place(control, peer.uid);
        if (connection == NULL) {
            ll_control_refuse(fd, LL_MSG_REFUSE, LL_E_QUOTA,
                              "too many clients are attaching at once: try again in a second");
            close(fd);
            ll_stat_add(&control->stats->attaches_refused, 1);
            continue;
        }
        uint32_t gen = connection->gen;
        *connection = (struct ll_connection){.stage = LL_STAGE_HELLO,
                                             .gen = gen,
                                             .fd = fd,
                                             .pid_fd = -1,
                                             .uid = peer.uid,
                                             .pid = peer.pid,
                                             .deadline_ns = ll_now_ns() + LL_ATTACH_NS};
        if (ll_control_epoll_add(control, fd, EPOLLIN, LL_KIND_CONN, gen,
                                 (uint32_t)(connection - control->connection)) < 0) {
            close(fd);
            *connection = (struct ll_connection){.gen = gen, .fd = -1, .pid_fd = -1};
        }
    }
}

int ll_control_open_pidfd(int fd, pid_t pid, int *pid_fd)
{
    socklen_t n_bytes = sizeof(*pid_fd);

    /* From the socket: names the process that connected, whatever became of its number. */
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, pid_fd, &n_bytes) == 0)
        return 0;
    if (errno == ESRCH)
        return -ESRCH;
    *pid_fd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
    if (*pid_fd < 0)
        return 0; /* another pid namespace, an old kernel: HUP alone tells of its end */
    /* The number may have been used again since connect(): a peer that has gone hung up. */
    struct pollfd peer = {.fd = fd, .events = 0};
    if (poll(&peer, 1, 0) == 1 && (peer.revents & (POLLHUP | POLLERR)) != 0) {
        close(*pid_fd);
        *pid_fd = -1;
        return -ESRCH;
    }
    return 0;
}
