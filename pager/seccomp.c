/* SPDX-License-Identifier: MIT */
/* The list is what the pager's tests were seen to make (strace -f), by what it is made for, and what libc makes in
 * their place on other kernels and versions. Not in it, among all others: execve and the ways to make processes and threads
 * (all threads run already), kill but for one's own abort, socket, connect and bind, ptrace and process_vm_*, mount and its
 * kin, any way to write to a file by its name.
 *
 * A call that is not listed kills: a pager that does something unforeseen has been taken over, or has a mistake that a test
 * should have shown. forkd then does with its guests what it does when a pager dies. */
#include "pager/seccomp.h"

#include <errno.h>

#if defined(FORKD_ASAN) || defined(FORKD_TSAN)

int pager_seccomp(void) {
        return 0;
}

#else

#include <fcntl.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <unistd.h>

static const int allowed[] = {
        /* memory; new mappings are below */
        SCMP_SYS(munmap),
        SCMP_SYS(mremap),
        SCMP_SYS(madvise),
        SCMP_SYS(brk),
        SCMP_SYS(memfd_create),
        SCMP_SYS(userfaultfd),
        /* descriptors that it has */
        SCMP_SYS(read),
        SCMP_SYS(readv),
        SCMP_SYS(pread64),
        SCMP_SYS(preadv),
        SCMP_SYS(preadv2),
        SCMP_SYS(write),
        SCMP_SYS(writev),
        SCMP_SYS(pwrite64),
        SCMP_SYS(lseek),
        SCMP_SYS(ftruncate),
        SCMP_SYS(fallocate),
        SCMP_SYS(fstat),
        SCMP_SYS(fstatfs),
        SCMP_SYS(newfstatat),
        SCMP_SYS(stat),
        SCMP_SYS(statx),
        SCMP_SYS(fchmod),
        SCMP_SYS(fadvise64),
        SCMP_SYS(fcntl),
        SCMP_SYS(dup),
        SCMP_SYS(dup3),
        SCMP_SYS(close),
        SCMP_SYS(close_range),
        SCMP_SYS(readlink),
        SCMP_SYS(readlinkat),
        SCMP_SYS(access),
        SCMP_SYS(faccessat),
        SCMP_SYS(faccessat2),
        SCMP_SYS(getdents64),
        SCMP_SYS(unlink), /* of its socket, which is not there any more */
        SCMP_SYS(unlinkat),
        /* waiting */
        SCMP_SYS(epoll_create1),
        SCMP_SYS(epoll_ctl),
        SCMP_SYS(epoll_wait),
        SCMP_SYS(epoll_pwait),
        SCMP_SYS(epoll_pwait2),
        SCMP_SYS(eventfd2),
        SCMP_SYS(timerfd_create),
        SCMP_SYS(timerfd_settime),
        SCMP_SYS(poll),
        SCMP_SYS(ppoll),
        SCMP_SYS(pipe2),
        SCMP_SYS(nanosleep),
        SCMP_SYS(clock_nanosleep),
        SCMP_SYS(restart_syscall),
        /* sockets that it has, or accepts */
        SCMP_SYS(accept4),
        SCMP_SYS(recvmsg),
        SCMP_SYS(recvfrom),
        SCMP_SYS(sendmsg),
        SCMP_SYS(sendto),
        SCMP_SYS(shutdown),
        SCMP_SYS(getsockopt),
        SCMP_SYS(setsockopt),
        SCMP_SYS(getsockname),
        SCMP_SYS(getpeername),
        /* processes, to look at */
        SCMP_SYS(pidfd_open),
        SCMP_SYS(getpid),
        SCMP_SYS(gettid),
        SCMP_SYS(getuid),
        SCMP_SYS(geteuid),
        SCMP_SYS(getgid),
        SCMP_SYS(getegid),
        SCMP_SYS(getppid),
        SCMP_SYS(getrusage),
        SCMP_SYS(getrlimit),
        SCMP_SYS(sysinfo),
        SCMP_SYS(uname),
        SCMP_SYS(sched_getaffinity),
        SCMP_SYS(getcpu),
        SCMP_SYS(clock_gettime),
        SCMP_SYS(clock_getres),
        SCMP_SYS(gettimeofday),
        SCMP_SYS(time),
        SCMP_SYS(getrandom),
        /* threads */
        SCMP_SYS(futex),
        SCMP_SYS(sched_yield),
        SCMP_SYS(set_robust_list),
        SCMP_SYS(rseq),
        SCMP_SYS(membarrier),
        SCMP_SYS(setpriority),
        SCMP_SYS(rt_sigaction),
        SCMP_SYS(rt_sigprocmask),
        SCMP_SYS(rt_sigreturn),
        SCMP_SYS(sigaltstack),
        SCMP_SYS(exit),
        SCMP_SYS(exit_group),
};

struct condition {
        int call;
        unsigned arg;
        scmp_datum_t mask, value; /* allowed where (argument & mask) == value */
};

static const struct condition conditions[] = {
        /* nothing new to execute */
        { SCMP_SYS(mmap), 2, PROT_EXEC, 0 },
        { SCMP_SYS(mprotect), 2, PROT_EXEC, 0 },
        /* what it has already, and to be read: the root directory holds nothing else */
        { SCMP_SYS(openat), 2, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY },
        { SCMP_SYS(open), 1, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY },
        /* of userfaultfds and their device, whose type is 0xaa */
        { SCMP_SYS(ioctl), 1, 0xff00, 0xaa00 },
        /* PAGEMAP_SCAN, of a process's pages that forkd has passed */
        { SCMP_SYS(ioctl), 1, 0xffff, 0x6610 },
        /* limits are read, not set */
        { SCMP_SYS(prlimit64), 2, ~0ull, 0 },
};

static int add_rules(scmp_filter_ctx ctx, int self) {
        int r = 0;

        for (size_t i = 0; i < ARRAY_LEN(allowed) && r == 0; i++)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
        for (size_t i = 0; i < ARRAY_LEN(conditions) && r == 0; i++) {
                const struct condition *c = &conditions[i];

                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, c->call, 1, SCMP_CMP(c->arg, SCMP_CMP_MASKED_EQ, c->mask, c->value));
        }
        /* abort() */
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t) self, 0));
        /* libc names memory and threads by it, and takes no for an answer */
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(prctl), 0);
        return r;
}

int pager_seccomp(void) {
        scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
        int r;

        if (!ctx)
                return -ENOMEM;
        r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
        if (r == 0)
                r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a tree: a fault costs half a dozen calls */
        if (r == 0)
                r = add_rules(ctx, getpid());
        if (r == 0)
                r = seccomp_load(ctx);
        seccomp_release(ctx);
        return r;
}

#endif
