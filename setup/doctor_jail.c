/* SPDX-License-Identifier: MIT */
/* Can VMMs be confined here? The same is done that forkd does with them, to /bin/true. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"
#include "forkd/vmm/vmm_jail.h"
#include "setup/doctor_internal.h"

#define ANY_UID 2147221502u /* of those that are nobody's: forkd/host/jail.c */
#define TRY_TIMEOUT_MS 10000
#define TRY_PROGRAM "/usr/bin/true"

static int try_it(char step[SPAWN_STEP_LEN]) {
        static const char *const argv[] = { TRY_PROGRAM, NULL };
        cleanup_fd int pidfd = -1;
        struct vmm_jail *j = NULL;
        struct jail jail;
        int r, status = -1;
        struct err e;
        pid_t pid;

        /* Any directory that exists, and in which no device is, will do to build in. */
        r = vmm_jail_new("/usr", TRY_PROGRAM, "", ANY_UID, &j, &e);
        if (r < 0) {
                (void) snprintf(step, SPAWN_STEP_LEN, "%.79s", e.message);
                return r;
        }
        jail = (struct jail){
                .uid = ANY_UID, .mnt_ns = j->mnt_ns, .net_ns = j->net_ns, .root_fd = j->root_fd, .own = true, .filter = j->filter
        };
        r = spawn_process(&(struct spawn_params){ .argv = argv,
                                                  .cgroup_fd = -1,
                                                  .no_new_privs = true,
                                                  .jail = &jail,
                                                  .step = step },
                          &pid, &pidfd);
        if (r == 0)
                r = spawn_wait(pidfd, TRY_TIMEOUT_MS, &status);
        if (r == 0 && status != 0)
                r = -ENOEXEC;
        if (r == -ETIMEDOUT)
                best_effort(spawn_kill(pidfd, SIGKILL));
        vmm_jail_free(j);
        return r;
}

void doctor_jail(struct doctor_report *rep) {
        static const char *const purpose = "VMMs are users of their own that see almost nothing of the host";
        cleanup_free char *sysctl = NULL;
        char step[SPAWN_STEP_LEN] = "";
        int r;

        if (geteuid() != 0) {
                doctor_add(rep, "jail", DOCTOR_WARN, "run as root", "not tried; %s", purpose);
                return;
        }
        r = try_it(step);
        if (r < 0)
                doctor_add(rep, "jail", DOCTOR_WARN,
                           "forkd needs the namespaces of the kernel, and seccomp; without them '[security] jail = off', which "
                           "leaves every VMM with root's rights",
                           "%s: %s; %s", step, strerror(-r), purpose);
        else if (access("/dev/userfaultfd", F_OK) < 0 &&
                 io_read_file(AT_FDCWD, "/proc/sys/vm/unprivileged_userfaultfd", 16, &sysctl, NULL) == 0 && sysctl[0] == '0')
                doctor_add(rep, "jail", DOCTOR_WARN,
                           "a kernel 6.1 or newer has /dev/userfaultfd; or set vm.unprivileged_userfaultfd=1",
                           "%s, but they and the pager keep CAP_SYS_PTRACE, without which they cannot have a userfaultfd",
                           purpose);
        else
                doctor_add(rep, "jail", DOCTOR_OK, NULL, "%s", purpose);
}
