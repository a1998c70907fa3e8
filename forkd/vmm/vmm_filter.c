/* SPDX-License-Identifier: MIT */
/* Theory of operation. QEMU filters its system calls itself (-sandbox on), from when it has read its command line. That filter
 * knows what QEMU needs; this one is about what lies between any program and root: namespaces, in which everybody has all
 * capabilities and all of the kernel behind them; other processes; file systems; the kernel's own interpreters. It holds from
 * before the exec, and is a list of what is refused, so that it fits QEMUs yet to come.
 *
 * Refused means EPERM, or "there is no such call" where libc then does without: clone3, whose flags no filter can see.
 * userfaultfd(2) is not in it: the attach library needs it where there is no device for it. */
#include "forkd/vmm/vmm_filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <sched.h>
#include <seccomp.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "common/io.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

static const int refused[] = {
        /* namespaces and mounts */
        SCMP_SYS(unshare),
        SCMP_SYS(setns),
        SCMP_SYS(mount),
        SCMP_SYS(umount2),
        SCMP_SYS(move_mount),
        SCMP_SYS(open_tree),
        SCMP_SYS(fsopen),
        SCMP_SYS(fsmount),
        SCMP_SYS(fsconfig),
        SCMP_SYS(fspick),
        SCMP_SYS(mount_setattr),
        SCMP_SYS(pivot_root),
        SCMP_SYS(chroot),
        SCMP_SYS(open_by_handle_at),
        /* other processes */
        SCMP_SYS(ptrace),
        SCMP_SYS(process_vm_readv),
        SCMP_SYS(process_vm_writev),
        SCMP_SYS(process_madvise),
        SCMP_SYS(pidfd_getfd),
        SCMP_SYS(kcmp),
        /* large parts of the kernel that a VMM does without */
        SCMP_SYS(bpf),
        SCMP_SYS(perf_event_open),
        SCMP_SYS(io_uring_setup),
        SCMP_SYS(io_uring_enter),
        SCMP_SYS(io_uring_register),
        SCMP_SYS(keyctl),
        SCMP_SYS(add_key),
        SCMP_SYS(request_key),
        SCMP_SYS(fanotify_init),
        /* the host itself */
        SCMP_SYS(init_module),
        SCMP_SYS(finit_module),
        SCMP_SYS(delete_module),
        SCMP_SYS(kexec_load),
        SCMP_SYS(kexec_file_load),
        SCMP_SYS(reboot),
        SCMP_SYS(swapon),
        SCMP_SYS(swapoff),
        SCMP_SYS(acct),
        SCMP_SYS(quotactl),
        SCMP_SYS(syslog),
        SCMP_SYS(personality),
};

static const unsigned namespaces[] = {
        CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWCGROUP, CLONE_NEWTIME,
};

static int add_rules(scmp_filter_ctx ctx) {
        int r = 0;

        for (size_t i = 0; i < ARRAY_LEN(refused) && r == 0; i++)
                r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), refused[i], 0);
        /* CLONE_NEWTIME's bit is part of the exit signal here, of which nobody uses it */
        for (size_t i = 0; i < ARRAY_LEN(namespaces) && r == 0; i++)
                r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1,
                                     SCMP_A0(SCMP_CMP_MASKED_EQ, namespaces[i], namespaces[i]));
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
        /* no network stack at all, not even one in an empty namespace */
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_NE, AF_UNIX, 0));
        return r;
}

static int export(scmp_filter_ctx ctx, struct sock_fprog **ret) {
        cleanup_fd int fd = memfd_create("forkd-filter", MFD_CLOEXEC);
        struct sock_fprog *f;
        struct stat st;
        int r;

        if (fd < 0)
                return -errno;
        r = seccomp_export_bpf(ctx, fd);
        if (r < 0)
                return r;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (st.st_size <= 0 || (size_t) st.st_size % sizeof(struct sock_filter) ||
            (size_t) st.st_size / sizeof(struct sock_filter) > BPF_MAXINSNS)
                return -EBADMSG;
        f = calloc(1, sizeof(*f) + (size_t) st.st_size);
        if (!f)
                return -ENOMEM;
        f->filter = (struct sock_filter *) (f + 1);
        f->len = (unsigned short) ((size_t) st.st_size / sizeof(struct sock_filter));
        r = io_pread_full(fd, f->filter, (size_t) st.st_size, 0);
        if (r < 0)
                vmm_filter_free(f);
        else
                *ret = f;
        return r;
}

int vmm_filter_new(struct sock_fprog **ret) {
        scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
        int r;

        if (!ctx)
                return -ENOMEM;
        r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
        if (r == 0)
                r = add_rules(ctx);
        if (r == 0)
                r = export(ctx, ret);
        seccomp_release(ctx);
        return r;
}

void vmm_filter_free(struct sock_fprog *f) {
        free(f);
}
