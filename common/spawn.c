/* SPDX-License-Identifier: MIT */
/* Theory of operation: vfork-like speed is not worth its rules here; a plain fork of a small daemon costs
 * some hundred microseconds. The child first moves every descriptor it shall keep above the highest target
 * number, then down to its place, so that no move overwrites one still needed, then closes all others.
 * A CLOEXEC pipe tells the parent of a failed exec: end of file means it worked.
 *
 * A child that gets a jail enters its namespaces first, while it still has the descriptors that name them and root's
 * capabilities; it becomes who it shall be when nothing else is left to do.
 *
 * A child is born in its cgroup (clone3 with CLONE_INTO_CGROUP, Linux 5.7). Moving it there afterwards makes the
 * kernel wait for an RCU grace period, 6 to 15 ms of every start. */
#include "common/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/jail.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

_Static_assert(SPAWN_STEP_LEN == JAIL_STEP_LEN, "a step's name fits");

/** What the child says when it cannot go on. */
struct report {
        int r;
        char step[SPAWN_STEP_LEN];
};

/** What is fixed when the child is born. */
struct child {
        const struct spawn_params *p;
        pid_t parent;
        bool in_cgroup;
        int report_fd, null_fd;
        const char *step;
};

static int pidfd_open_raw(pid_t pid) {
        int fd = (int) syscall(SYS_pidfd_open, pid, 0u);

        return fd < 0 ? -errno : fd;
}

/* Puts the listed descriptors where they belong. Returns the first number above all of them; from there on only
 * the report pipe, which is moved there, may stay open. */
static int child_place_fds(struct child *c) {
        const struct spawn_params *p = c->p;
        int moved[SPAWN_MAX_FDS], top = 3, report;

        for (size_t i = 0; i < p->n_fds; i++)
                top = MAX_OF(top, p->fds[i].child_fd + 1);
        for (size_t i = 0; i < p->n_fds; i++) {
                moved[i] = fcntl(p->fds[i].parent_fd, F_DUPFD, top);
                if (moved[i] < 0)
                        return -errno;
        }
        report = fcntl(c->report_fd, F_DUPFD_CLOEXEC, top);
        if (report < 0)
                return -errno; /* told through the old one: an end of file would mean that all is well */
        c->report_fd = report;
        for (int i = 0; i < 3; i++)
                if (dup2(c->null_fd, i) < 0)
                        return -errno;
        for (size_t i = 0; i < p->n_fds; i++)
                if (dup2(moved[i], p->fds[i].child_fd) < 0)
                        return -errno;
        return top;
}

static void child_close_others(const struct spawn_params *p, int top, int report_fd) {
        for (int fd = 3; fd < top; fd++) {
                bool keep = false;

                for (size_t i = 0; i < p->n_fds; i++)
                        keep |= p->fds[i].child_fd == fd;
                if (!keep)
                        (void) close(fd);
        }
        if (report_fd > top)
                (void) syscall(SYS_close_range, (unsigned) top, (unsigned) report_fd - 1, 0u);
        (void) syscall(SYS_close_range, (unsigned) report_fd + 1, ~0u, 0u);
}

static void child_reset_signals(void) {
        struct sigaction dfl = { .sa_handler = SIG_DFL };
        sigset_t none;

        for (int s = 1; s < NSIG; s++)
                (void) sigaction(s, &dfl, NULL);
        (void) sigemptyset(&none);
        (void) sigprocmask(SIG_SETMASK, &none, NULL);
}

/* For a child that was not born in its cgroup. "0" means the writer itself. */
static int child_enter_cgroup(int cgroup_fd) {
        int procs = openat(cgroup_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);

        if (procs < 0 && errno == ENOTDIR)
                procs = cgroup_fd;
        return procs < 0 || write(procs, "0", 1) < 0 ? -errno : 0;
}

/* The parent's number says nothing in a pid namespace of our own, but only it reads what we report. */
static bool parent_is_gone(const struct child *c) {
        struct pollfd report = { .fd = c->report_fd };

        if (!c->p->jail || !c->p->jail->own)
                return getppid() != c->parent;
        return poll(&report, 1, 0) > 0 && report.revents & POLLERR;
}

static int child_setup(struct child *c) {
        const struct spawn_params *p = c->p;
        int top, r;

        child_reset_signals();
        c->step = "beginning a session";
        if (p->new_session && setsid() < 0)
                return -errno;
        c->step = "tying it to its parent's life";
        if (p->death_signal && prctl(PR_SET_PDEATHSIG, p->death_signal) < 0)
                return -errno;
        /* a kernel without huge pages does not know it */
        if (p->no_huge_pages)
                (void) prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
        /* the whole process, and before exec: nothing has run outside */
        c->step = "entering the cgroup";
        r = p->cgroup_fd >= 0 && !c->in_cgroup ? child_enter_cgroup(p->cgroup_fd) : 0;
        if (r < 0)
                return r;
        c->step = "opening /dev/null";
        c->null_fd = open("/dev/null", O_RDWR);
        if (c->null_fd < 0)
                return -errno;
        r = p->jail ? jail_enter(p->jail, &c->step) : 0;
        if (r < 0)
                return r;
        c->step = "placing its descriptors";
        top = child_place_fds(c);
        if (top < 0)
                return top;
        child_close_others(p, top, c->report_fd);
        c->step = "forbidding new privileges";
        if (p->no_new_privs && (r = privs_no_new()) < 0)
                return r;
        r = p->jail ? jail_drop(p->jail, &c->step) : 0;
        if (r < 0)
                return r;
        /* Becoming another user takes the signal away. Its parent may have died before it was armed. */
        c->step = "tying it to its parent's life";
        if (p->death_signal && prctl(PR_SET_PDEATHSIG, p->death_signal) < 0)
                return -errno;
        return p->death_signal && parent_is_gone(c) ? -ESRCH : 0;
}

static void __attribute__((noreturn)) child_run(struct child *c) {
        struct report report = { .r = child_setup(c) };

        if (report.r == 0) {
                c->step = "executing it";
                (void) execve(c->p->argv[0], (char *const *) c->p->argv, c->p->env ? (char *const *) c->p->env : environ);
                report.r = -errno;
        }
        (void) snprintf(report.step, sizeof(report.step), "%s", c->step);
        (void) !write(c->report_fd, &report, sizeof(report));
        _exit(127);
}

/* As fork(), but into the namespaces that the jail wants, and into the cgroup if the kernel can do that;
 * *ret_in_cgroup tells. */
static pid_t fork_into(const struct spawn_params *p, bool *ret_in_cgroup) {
        unsigned long flags = jail_clone_flags(p->jail);

        *ret_in_cgroup = false;
#ifndef FORKD_TSAN /* its runtime must know of every fork */
        if (p->cgroup_fd >= 0) {
                struct clone_args args = {
                        .flags = CLONE_INTO_CGROUP | flags,
                        .exit_signal = SIGCHLD,
                        .cgroup = (uint64_t) p->cgroup_fd,
                };
                pid_t pid = (pid_t) syscall(SYS_clone3, &args, sizeof(args));

                /* Refused: an old kernel, a filter of system calls, no directory. What is really wrong with the
                 * cgroup shows when the child tries to enter it. */
                if (pid >= 0) {
                        *ret_in_cgroup = true;
                        return pid;
                }
        }
#endif
        /* … but it cannot be asked for namespaces. */
        return flags ? (pid_t) syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, 0ul) : fork();
}

/* Reads the end of the report pipe: nothing when exec has closed it. */
static int read_report(int fd, pid_t pid, int pidfd, char *step) {
        struct report report = { 0 };
        ssize_t n = io_read_full(fd, &report, sizeof(report));
        int r;

        if (n == 0 && pidfd >= 0)
                return 0;
        if (pidfd < 0) {
                r = pidfd;
                (void) kill(pid, SIGKILL); /* our unreaped child: the number cannot be another's */
        } else {
                r = n == (ssize_t) sizeof(report) && report.r < 0 ? report.r : -EIO;
        }
        report.step[sizeof(report.step) - 1] = '\0';
        if (step)
                memcpy(step, report.step, SPAWN_STEP_LEN);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
                ;
        return r;
}

int spawn_process(const struct spawn_params *p, pid_t *ret_pid, int *ret_pidfd) {
        struct child c = { .p = p, .parent = getpid(), .null_fd = -1, .step = "" };
        cleanup_fd int read_fd = -1, write_fd = -1, pidfd = -1;
        int pipe_fds[2], r;
        sigset_t all, old;
        pid_t pid;

        if (p->step)
                p->step[0] = '\0';
        if (p->n_fds > SPAWN_MAX_FDS)
                return -EINVAL;
        if (pipe2(pipe_fds, O_CLOEXEC) < 0)
                return -errno;
        read_fd = pipe_fds[0];
        write_fd = pipe_fds[1];

        /* No handler of ours may run in the child. */
        (void) sigfillset(&all);
        (void) pthread_sigmask(SIG_SETMASK, &all, &old);
        pid = fork_into(p, &c.in_cgroup);
        if (pid == 0) {
                (void) close(read_fd); /* a pipe that still has a reader does not tell of its parent's end */
                c.report_fd = write_fd;
                child_run(&c);
        }
        r = pid < 0 ? -errno : 0;
        (void) pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (r < 0) {
                if (p->step)
                        (void) snprintf(p->step, SPAWN_STEP_LEN, "making the process%s",
                                        jail_clone_flags(p->jail) ? " and its namespaces" : "");
                return r;
        }
        (void) close_fd(TAKE_FD(write_fd));

        pidfd = pidfd_open_raw(pid);
        r = read_report(read_fd, pid, pidfd, p->step);
        if (r < 0)
                return r;
        *ret_pid = pid;
        *ret_pidfd = TAKE_FD(pidfd);
        return 0;
}

int spawn_start_time(pid_t pid, uint64_t *ret) {
        cleanup_free char *text = NULL;
        char path[64];
        const char *p;
        int r;

        (void) snprintf(path, sizeof(path), "/proc/%d/stat", (int) pid);
        r = io_read_file(AT_FDCWD, path, 8192, &text, NULL);
        if (r < 0)
                return r == -ENOENT ? -ESRCH : r;
        /* The command name may hold anything, also ")": fields count from the last one. */
        p = strrchr(text, ')');
        if (!p)
                return -EBADMSG;
        p++;
        for (int field = 3; field <= 22; field++) {
                p = strchr(p, ' ');
                if (!p)
                        return -EBADMSG;
                p++;
        }
        if (sscanf(p, "%" SCNu64, ret) != 1)
                return -EBADMSG;
        return 0;
}

int spawn_pidfd_open(pid_t pid, uint64_t start_time, int *ret_pidfd) {
        cleanup_fd int fd = -1;
        uint64_t started;
        int r;

        if (pid <= 0)
                return -ESRCH;
        fd = pidfd_open_raw(pid);
        if (fd < 0)
                return fd == -EINVAL ? -ESRCH : fd;
        /* Opened first, compared after: from here on the descriptor cannot come to mean another process. */
        if (start_time != 0) {
                r = spawn_start_time(pid, &started);
                if (r < 0)
                        return r;
                if (started != start_time)
                        return -ESRCH;
        }
        *ret_pidfd = TAKE_FD(fd);
        return 0;
}

int spawn_pidfd_pid(int pidfd, pid_t *ret) {
        struct pollfd ended = { .fd = pidfd, .events = POLLIN };
        cleanup_free char *info = NULL;
        char path[64], *at;
        size_t len;
        int r;

        (void) snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
        r = io_read_file(AT_FDCWD, path, 4096, &info, &len);
        if (r < 0)
                return r == -ENOENT ? -EBADF : r;
        at = strstr(info, "\nPid:\t");
        if (!at)
                return -EINVAL;
        /* 0: beyond our pid namespace. -1: reaped; before that, only the descriptor's readiness tells. */
        long pid = strtol(at + 6, NULL, 10);
        if (pid <= 0 || pid > INT32_MAX || poll(&ended, 1, 0) != 0)
                return -ESRCH;
        *ret = (pid_t) pid;
        return 0;
}

int spawn_kill(int pidfd, int sig) {
        return syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0u) < 0 ? -errno : 0;
}

int spawn_wait(int pidfd, int timeout_ms, int *ret_status) {
        struct pollfd pfd = { .fd = pidfd, .events = POLLIN };
        uint64_t end = timeout_ms < 0 ? 0 : now_ns() + (uint64_t) timeout_ms * 1000000u;
        siginfo_t si = { 0 };
        int status = -1;

        for (;;) {
                uint64_t now = now_ns();
                int left = timeout_ms < 0 ? -1 : now >= end ? 0 : (int) ((end - now + 999999u) / 1000000u);
                int n = poll(&pfd, 1, left);

                if (n > 0)
                        break;
                if (n == 0)
                        return -ETIMEDOUT;
                if (errno != EINTR)
                        return -errno;
        }
        if (pfd.revents & POLLNVAL)
                return -EBADF;
        if (waitid((idtype_t) P_PIDFD, (id_t) pidfd, &si, WEXITED | WNOHANG) == 0 && si.si_pid != 0)
                status = si.si_code == CLD_EXITED ? (si.si_status & 0xff) << 8 : si.si_status & 0x7f;
        if (ret_status)
                *ret_status = status;
        return 0;
}
