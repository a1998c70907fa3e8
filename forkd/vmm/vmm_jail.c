/* SPDX-License-Identifier: MIT */
/* Theory of operation. Namespaces are kept by descriptors, not by processes: a child makes them, waits until forkd has
 * opened them under /proc, and ends. It is a plain fork of forkd, which has no threads. Should forkd die meanwhile it must not
 * outlive it with forkd's descriptors: the lock of the state directory, sockets, memory of guests. */
#include "forkd/vmm/vmm_jail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/vmm/vmm_filter.h"

#define MAX_ENTRIES 40u
#define MAX_MORE 16u

/* /usr is where the program, its libraries and modules, and its firmware are; the rest is how they are found. */
static const struct newroot_entry fixed[] = {
        { NEWROOT_BIND, "/usr", 0, 0 },
        { NEWROOT_BIND, "/bin", 0, 0 },
        { NEWROOT_BIND, "/lib", 0, 0 },
        { NEWROOT_BIND, "/lib32", 0, 0 },
        { NEWROOT_BIND, "/lib64", 0, 0 },
        { NEWROOT_BIND, "/etc/ld.so.cache", 0, 0 },
        { NEWROOT_BIND, "/etc/alternatives", 0, 0 },
        { NEWROOT_DEVICE, "/dev/null", 0, 0 },
        { NEWROOT_DEVICE, "/dev/zero", 0, 0 },
        { NEWROOT_DEVICE, "/dev/random", 0, 0 },
        { NEWROOT_DEVICE, "/dev/urandom", 0, 0 },
        { NEWROOT_DIR, "/proc", 0, 0 },
};

struct report {
        int r;
        char step[JAIL_STEP_LEN];
};

struct plan {
        struct newroot_entry entries[MAX_ENTRIES];
        size_t n;
        char program[PATH_MAX];
        char *more;
};

static void plan_clear(struct plan *p) {
        free(p->more);
}
#define cleanup_plan attr_cleanup(plan_clear)

static bool below(const char *path, const char *dir) {
        size_t n = strlen(dir);

        return strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

static int add_more(struct plan *p, struct err *e) {
        char *save = NULL;
        size_t n = 0;

        for (char *path = strtok_r(p->more, ":", &save); path; path = strtok_r(NULL, ":", &save)) {
                if (path[0] != '/' || strstr(path, "/../") || path[1] == '\0')
                        return err_set(e, ERR_INVALID, -EINVAL, "[security] visible: '%.100s' is no path below /", path);
                if (access(path, F_OK) < 0)
                        return err_errno(e, -errno, "[security] visible: %s", path);
                if (n++ == MAX_MORE)
                        return err_set(e, ERR_INVALID, -E2BIG, "[security] visible has more than %u paths", MAX_MORE);
                p->entries[p->n++] = (struct newroot_entry){ .kind = NEWROOT_BIND, .path = path };
        }
        return 0;
}

static int make_plan(struct plan *p, const char *program, const char *more, gid_t kvm_group, struct err *e) {
        int r;

        memcpy(p->entries, fixed, sizeof(fixed));
        p->n = ARRAY_LEN(fixed);
        p->entries[p->n++] = (struct newroot_entry){ .kind = NEWROOT_NODE, .path = "/dev/kvm", .mode = 0660, .group = kvm_group };
        p->more = strdup(more);
        if (!p->more)
                return err_errno(e, -ENOMEM, "making the VMMs' root directory");
        r = add_more(p, e);
        if (r < 0)
                return r;
        if (!realpath(program, p->program))
                return err_errno(e, -errno, "%s", program);
        for (size_t i = 0; i < p->n; i++)
                if (p->entries[i].kind == NEWROOT_BIND && below(p->program, p->entries[i].path))
                        return 0;
        p->entries[p->n++] = (struct newroot_entry){ .kind = NEWROOT_BIND, .path = p->program };
        return 0;
}

static void close_all_but(int a, int b) {
        unsigned low = (unsigned) MIN_OF(a, b), high = (unsigned) MAX_OF(a, b);

        if (low > 3)
                (void) syscall(SYS_close_range, 3u, low - 1, 0u);
        if (high > low + 1)
                (void) syscall(SYS_close_range, low + 1, high - 1, 0u);
        (void) syscall(SYS_close_range, high + 1, ~0u, 0u);
}

static void __attribute__((noreturn)) child(const struct plan *p, const char *where, int report_fd, int wait_fd) {
        struct report report = { .step = "leaving the host's namespaces" };

        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
                _exit(1);
        close_all_but(report_fd, wait_fd); /* its end also tells of a parent that died before the signal was armed */
        report.r = unshare(CLONE_NEWNS | CLONE_NEWNET) < 0 ? -errno : newroot_enter(where, p->entries, p->n, report.step);
        if (io_write_full(report_fd, &report, sizeof(report)) == 0)
                (void) !read(wait_fd, &(char){ 0 }, 1); /* its end */
        _exit(0);
}

static int open_of(pid_t pid, const char *name, int flags) {
        char path[64];
        int fd;

        (void) snprintf(path, sizeof(path), "/proc/%d/%s", (int) pid, name);
        fd = open(path, flags | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
}

/* Both ends of two pipes: [0] tells us, [1] lets the child go. */
static int run_child(const struct plan *p, const char *where, struct vmm_jail *j, struct err *e) {
        cleanup_fd int report_rd = -1, report_wr = -1, wait_rd = -1, wait_wr = -1;
        struct report report = { 0 };
        int fds[2], r = 0;
        pid_t pid;

        if (pipe2(fds, O_CLOEXEC) < 0)
                return err_errno(e, -errno, "making a pipe");
        report_rd = fds[0];
        report_wr = fds[1];
        if (pipe2(fds, O_CLOEXEC) < 0)
                return err_errno(e, -errno, "making a pipe");
        wait_rd = fds[0];
        wait_wr = fds[1];
        pid = fork();
        if (pid < 0)
                return err_errno(e, -errno, "making a process");
        if (pid == 0) {
                (void) close(wait_wr);
                child(p, where, report_wr, wait_rd);
        }
        report_wr = close_fd(report_wr);
        if (io_read_full(report_rd, &report, sizeof(report)) != (ssize_t) sizeof(report))
                r = err_set(e, ERR_INTERNAL, -EIO, "making the VMMs' root directory: the process that does it ended");
        else if (report.r < 0)
                r = err_errno(e, report.r, "making the VMMs' root directory: %.*s", JAIL_STEP_LEN - 1, report.step);
        if (r == 0) {
                j->mnt_ns = open_of(pid, "ns/mnt", O_RDONLY);
                j->net_ns = open_of(pid, "ns/net", O_RDONLY);
                j->root_fd = open_of(pid, "root", O_PATH | O_DIRECTORY);
                if (j->mnt_ns < 0 || j->net_ns < 0 || j->root_fd < 0)
                        r = err_errno(e, MIN_OF(j->mnt_ns, MIN_OF(j->net_ns, j->root_fd)), "opening the VMMs' namespaces");
        }
        wait_wr = close_fd(wait_wr);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
                ;
        return r;
}

int vmm_jail_new(const char *where, const char *program, const char *more, gid_t kvm_group, struct vmm_jail **ret,
                 struct err *e) {
        struct plan plan cleanup_plan = { .n = 0 };
        struct vmm_jail *j;
        int r;

        r = make_plan(&plan, program, more, kvm_group, e);
        if (r < 0)
                return r;
        j = calloc(1, sizeof(*j));
        if (!j)
                return err_errno(e, -ENOMEM, "making the VMMs' root directory");
        *j = (struct vmm_jail){ .mnt_ns = -1, .net_ns = -1, .root_fd = -1, .kvm_group = kvm_group };
        r = vmm_filter_new(&j->filter);
        r = r < 0 ? err_errno(e, r, "making the VMMs' filter of system calls") : run_child(&plan, where, j, e);
        if (r < 0) {
                vmm_jail_free(j);
                return r;
        }
        *ret = j;
        return 0;
}

void vmm_jail_free(struct vmm_jail *j) {
        if (!j)
                return;
        (void) close_fd(j->mnt_ns);
        (void) close_fd(j->net_ns);
        (void) close_fd(j->root_fd);
        vmm_filter_free(j->filter);
        free(j);
}
