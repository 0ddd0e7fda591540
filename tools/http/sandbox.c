/* SPDX-License-Identifier: Apache-2.0 */
/* What is allowed is the union over x86-64 and aarch64, whose C libraries reach for different calls
 * (epoll_wait or epoll_pwait, unlink or unlinkat); libseccomp leaves out what a machine lacks.
 *
 * One refusal is to be expected: malloc asks once, by a file, whether memory is overcommitted;
 * where it cannot know it gives memory back by madvise, which is allowed. */
#include "tools/http/sandbox.h"

#include "base/bits.h"
#include "base/err.h"

#include <seccomp.h>
#include <sys/mman.h>
#include <sys/socket.h>

static const int allowed[] = {
    /* sockets and descriptors */
    SCMP_SYS(accept4),
    SCMP_SYS(recvfrom),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendto),
    SCMP_SYS(sendmsg),
    SCMP_SYS(shutdown),
    SCMP_SYS(setsockopt),
    SCMP_SYS(getsockopt),
    SCMP_SYS(getsockname),
    SCMP_SYS(getpeername),
    SCMP_SYS(close),
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(readv),
    SCMP_SYS(writev),
    SCMP_SYS(preadv2), /* wake-ups, never waiting for them */
    SCMP_SYS(pwritev2),
    /* waiting */
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(epoll_pwait2),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(futex),
    SCMP_SYS(nanosleep),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_getres),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(time),
    SCMP_SYS(sched_yield),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(timerfd_settime),
    /* memory */
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(brk),
    SCMP_SYS(madvise),
    SCMP_SYS(mlock),
    SCMP_SYS(mlock2),
    SCMP_SYS(munlock),
    SCMP_SYS(getrandom),
    SCMP_SYS(sched_getaffinity), /* malloc, for a thread's first arena */
    SCMP_SYS(sysinfo),           /* qsort, before it takes memory */
    /* attaching anew: the runtime passes descriptors, we look at their sizes and seals */
    SCMP_SYS(connect),
    SCMP_SYS(fcntl),
    SCMP_SYS(fstat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(statx),
    SCMP_SYS(lseek),
    SCMP_SYS(epoll_create1),
    SCMP_SYS(mbind),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(getuid),
    SCMP_SYS(geteuid),
    /* signals, the end */
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigtimedwait),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(set_robust_list), /* threads that are still starting */
    SCMP_SYS(rseq),
    SCMP_SYS(tgkill),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
};

static int allow(scmp_filter_ctx filter, bool removes_socket)
{
    /* Never memory to run code from; never a socket but to the runtime. */
    const struct scmp_arg_cmp no_exec = SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
    const struct scmp_arg_cmp is_local = SCMP_A0(SCMP_CMP_EQ, AF_UNIX);
    int rc = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, &no_exec);

    if (rc == 0)
        rc = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, &no_exec);
    if (rc == 0)
        rc = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1, &is_local);
    for (size_t i = 0; i < LL_COUNT(allowed) && rc == 0; i++)
        rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    if (rc == 0 && removes_socket)
        rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(unlink), 0);
    if (rc == 0 && removes_socket)
        rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(unlinkat), 0);
    return rc;
}

int sandbox_enter(bool removes_socket)
{
    /* Not SCMP_ACT_TRAP with a handler that logs: a call refused where all signals are blocked, as
     * in the first moments of a thread, would end the process. */
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    int rc = filter == NULL ? -ENOMEM : 0;

    if (rc == 0)
        rc = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    if (rc == 0)
        (void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_LOG, 1); /* since Linux 4.14 */
    if (rc == 0)
        rc = allow(filter, removes_socket);
    if (rc == 0)
        rc = seccomp_load(filter);
    seccomp_release(filter);
    return rc < 0 ? ll_err_set_errno(-rc, "the sandbox could not be entered") : 0;
}
