/* SPDX-License-Identifier: MIT */
/* Theory of operation. The pager decodes what came from guests, and talks to VMMs that a guest may have taken over. It has the
 * memory of all guests, but it need have nothing else: images, sockets and userfaultfds come as descriptors.
 *
 * What it opens by a name is opened first: /dev/userfaultfd, the cgroup's directories (memcg.c), the triggers of memory
 * pressure, its sockets. Then it changes its root and its user. That is done to a process that has its threads already,
 * since the fault workers' priority wants a capability; setresuid(2) and friends are made for all threads by glibc, the root
 * directory is common to them (the mount namespace is left before there are any), and so are the filters of system calls,
 * by TSYNC. Bounding set and no_new_privs are inherited by threads, so they come before, too.
 *
 * The /proc that is left shows no process of another user. It is there for /proc/self/fd: a descriptor of an image's memory
 * that can only be read is made by it. The user is the owner of that memory, which nobody else may open again.
 *
 * It stays in the host's pid namespace: it must know VMMs by their numbers. */
#include "pager/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/capability.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/jail.h"
#include "pager/seccomp.h"
#include "pager/uffd.h"

/* Without the device only this capability opens userfaultfds that also see the kernel's faults. */
static uint64_t needed_caps(void) {
        cleanup_free char *text = NULL;
        int r;

        if (uffd_has_device())
                return 0;
        r = io_read_file(AT_FDCWD, "/proc/sys/vm/unprivileged_userfaultfd", 16, &text, NULL);
        return (r < 0 && r != -ENOENT) || (r == 0 && text[0] == '0') ? 1ull << CAP_SYS_PTRACE : 0;
}

int pager_confine_prepare(struct err *e) {
        const struct rlimit no_core = { 0, 0 };
        int r;

        uffd_keep_device();
        tzset();             /* reads /etc/localtime */
        json_object_seed(0); /* reads /dev/urandom */
        if (setrlimit(RLIMIT_CORE, &no_core) < 0)
                return err_errno(e, -errno, "forbidding core dumps");
        if (unshare(CLONE_NEWNS) < 0)
                return err_errno(e, -errno, "leaving the host's mount namespace");
        r = privs_no_new();
        if (r < 0)
                return err_errno(e, r, "forbidding new privileges");
        r = privs_bound(needed_caps());
        return r < 0 ? err_errno(e, r, "dropping capabilities") : 0;
}

int pager_confine(uid_t uid, struct err *e) {
        static const struct newroot_entry root[] = { { .kind = NEWROOT_PROC, .path = "/proc" } };
        uint64_t caps = needed_caps();
        char step[JAIL_STEP_LEN] = "";
        int r;

        /* Any directory will do to build it in; this one is sure to be there. */
        r = newroot_enter("/proc", root, ARRAY_LEN(root), step);
        if (r < 0)
                return err_errno(e, r, "changing the root directory: %s", step);
        r = privs_become(uid, NULL, 0, caps);
        if (r < 0)
                return err_errno(e, r, "becoming user %u", (unsigned) uid);
        /* The change has made our own files in /proc root's. */
        if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
                return err_errno(e, -errno, "keeping /proc/self");
        r = pager_seccomp();
        return r < 0 ? err_errno(e, r, "filtering system calls") : 0;
}
