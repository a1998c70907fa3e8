/* SPDX-License-Identifier: MIT */
/* Theory of operation. A process of root's becomes another user's before it runs foreign code. The order matters:
 * namespaces are joined while there still are the capabilities for it, then the bounding set is emptied, so that no exec
 * ever gives one back, then the user changes, which takes the capabilities away, and no_new_privs makes all setuid
 * programs ordinary ones.
 *
 * A capability that is kept all the same goes through the ambient set: the only one that survives an exec by another user
 * than root.
 *
 * The mount namespace that is joined (newroot.c makes it) is shared by many and prepared once. Copying it costs some 20 µs,
 * building it anew a hundred times that. The copy is for /proc, which belongs to a pid namespace. */
#include "common/jail.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LAST_CAP 63 /* of the two words that the kernel has for them */

unsigned long jail_clone_flags(const struct jail *j) {
        return j && j->own ? CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS : 0;
}

/* Only processes; kernels before 5.8 know no such choice. */
static int mount_proc(void) {
        static const char name[] = "proc";
        unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY;

        if (mount(name, "/proc", name, flags, "subset=pid") == 0 || mount(name, "/proc", name, flags, NULL) == 0)
                return 0;
        return -errno;
}

int jail_enter(const struct jail *j, const char **ret_step) {
        *ret_step = "joining the network namespace";
        if (j->net_ns >= 0 && setns(j->net_ns, CLONE_NEWNET) < 0)
                return -errno;
        *ret_step = "joining the mount namespace";
        if (j->mnt_ns >= 0 && setns(j->mnt_ns, CLONE_NEWNS) < 0)
                return -errno;
        /* Joining leads to the namespace's own root. If its maker was in a chroot that is the whole host. */
        *ret_step = "entering the root directory";
        if (j->mnt_ns >= 0 && (fchdir(j->root_fd) < 0 || chroot(".") < 0))
                return -errno;
        if (!j->own)
                return 0;
        /* Where systemd's ProtectHostname= forbids it, it goes by the host's name. */
        (void) sethostname("vmm", 3);
        *ret_step = "copying the mount namespace";
        if (unshare(CLONE_NEWNS) < 0)
                return -errno;
        /* A copy of the caller's own may be one that tells the host what is mounted in it. */
        *ret_step = "making the mount namespace private";
        if (j->mnt_ns < 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
                return -errno;
        *ret_step = "mounting /proc";
        return mount_proc();
}

static int set_limits(const struct jail *j) {
        for (size_t i = 0; i < j->n_limits; i++) {
                struct rlimit have, want = { .rlim_cur = j->limits[i].max, .rlim_max = j->limits[i].max };

                /* What is less already stays so: raising it would want a capability that root may lack. */
                if (getrlimit((__rlimit_resource_t) j->limits[i].resource, &have) == 0 && have.rlim_max < want.rlim_max)
                        want.rlim_cur = want.rlim_max = have.rlim_max;
                if (setrlimit((__rlimit_resource_t) j->limits[i].resource, &want) < 0)
                        return -errno;
        }
        return 0;
}

int jail_drop(const struct jail *j, const char **ret_step) {
        int r;

        *ret_step = "setting its limits";
        r = set_limits(j);
        if (r < 0)
                return r;
        *ret_step = "forbidding new privileges";
        r = privs_no_new();
        if (r < 0)
                return r;
        *ret_step = "dropping capabilities";
        r = privs_bound(j->caps);
        if (r < 0)
                return r;
        *ret_step = "becoming another user";
        r = privs_become(j->uid, j->groups, j->n_groups, j->caps);
        if (r < 0)
                return r;
        *ret_step = "filtering its system calls";
        return j->filter && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, j->filter, 0, 0) < 0 ? -errno : 0;
}

/* ---- privileges ---- */

static int cap_set(uint64_t caps) {
        struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct data[2] = {
                { .effective = (uint32_t) caps, .permitted = (uint32_t) caps, .inheritable = (uint32_t) caps },
                { .effective = (uint32_t) (caps >> 32),
                  .permitted = (uint32_t) (caps >> 32),
                  .inheritable = (uint32_t) (caps >> 32) },
        };

        return syscall(SYS_capset, &head, data) < 0 ? -errno : 0;
}

/* The permitted and effective sets stay. */
static int clear_inheritable(void) {
        struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct data[2];

        if (syscall(SYS_capget, &head, data) < 0)
                return -errno;
        data[0].inheritable = data[1].inheritable = 0;
        return syscall(SYS_capset, &head, data) < 0 ? -errno : 0;
}

int privs_no_new(void) {
        return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

int privs_bound(uint64_t keep) {
        for (int cap = 0; cap <= LAST_CAP; cap++) {
                if (keep >> cap & 1)
                        continue;
                if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
                        if (errno == EINVAL) /* the kernel has no more of them */
                                break;
                        return -errno;
                }
        }
        return clear_inheritable();
}

int privs_become(uid_t uid, const gid_t *groups, size_t n_groups, uint64_t keep) {
        if (keep && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
                return -errno;
        if (setgroups(n_groups, groups) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
                return -errno;
        if (!keep)
                return 0;
        /* The ambient set takes only what is permitted and inheritable. */
        for (int r = cap_set(keep), cap = 0; r < 0 || cap <= LAST_CAP; cap++) {
                if (r < 0)
                        return r;
                if (keep >> cap & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
                        return -errno;
        }
        return 0;
}
