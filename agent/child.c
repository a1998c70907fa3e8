/* SPDX-License-Identifier: MIT */
#include "agent/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41) /* asm-generic/ioctls.h, since 4.13 */
#endif
#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1u << 2) /* linux/close_range.h */
#endif

#define DEFAULT_ROWS 24
#define DEFAULT_COLS 80

static const char *const default_env[] = {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "USER=root",
        "LOGNAME=root",
        "SHELL=/bin/sh",
        "TERM=xterm", /* only with a terminal; kept last */
};

/* What a child writes to err_fd when it cannot run its command. */
enum stage { STAGE_SETUP, STAGE_CWD, STAGE_EXEC, N_STAGES };

struct failure {
        int stage;
        int error;
};

/* Descriptors of both sides; what is not taken is closed. */
struct stdio {
        int child[3];  /* 0, 1, 2 of the child */
        int parent[3]; /* our ends */
        int err[2];
};

static void stdio_close(struct stdio *s) {
        for (size_t i = 0; i < 3; i++) {
                s->child[i] = close_fd(s->child[i]);
                s->parent[i] = close_fd(s->parent[i]);
        }
        s->err[0] = close_fd(s->err[0]);
        s->err[1] = close_fd(s->err[1]);
}

static int set_nonblock(int fd) {
        int flags = fcntl(fd, F_GETFL);

        return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

/* One pipe: end @ours of it is the parent's and non-blocking, the other the child's number @i. */
static int stdio_pipe(struct stdio *s, size_t i, int ours) {
        int p[2];

        if (pipe2(p, O_CLOEXEC) < 0)
                return -errno;
        s->parent[i] = p[ours];
        s->child[i] = p[!ours];
        return set_nonblock(p[ours]);
}

static int stdio_pipes(struct stdio *s, bool has_stdin) {
        int r;

        if (has_stdin) {
                r = stdio_pipe(s, 0, 1);
                if (r < 0)
                        return r;
        } else {
                s->child[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
                if (s->child[0] < 0)
                        return -errno;
        }
        for (size_t i = 1; i <= 2; i++) {
                r = stdio_pipe(s, i, 0);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* The master is ours twice, to be watched for reading and for writing by itself. */
static int stdio_terminal(struct stdio *s, const struct wire_exec *x) {
        struct winsize ws = {
                .ws_row = x->rows ? x->rows : DEFAULT_ROWS,
                .ws_col = x->cols ? x->cols : DEFAULT_COLS,
        };
        int unlock = 0;

        s->parent[1] = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
        if (s->parent[1] < 0)
                return -errno;
        if (ioctl(s->parent[1], TIOCSPTLCK, &unlock) < 0 || ioctl(s->parent[1], TIOCSWINSZ, &ws) < 0)
                return -errno;
        s->child[0] = ioctl(s->parent[1], TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (s->child[0] < 0)
                return -errno;
        s->parent[0] = fcntl(s->parent[1], F_DUPFD_CLOEXEC, 3);
        return s->parent[0] < 0 ? -errno : 0;
}

/* Both lists are short; @given wins over the defaults. */
static bool env_has(const char *const *env, const char *entry) {
        size_t n = (size_t) (strchr(entry, '=') - entry) + 1;

        for (; *env; env++)
                if (strncmp(*env, entry, n) == 0)
                        return true;
        return false;
}

static const char **env_make(const char *const *given, bool tty) {
        size_t n = 0, n_default = ARRAY_LEN(default_env) - (tty ? 0 : 1);
        const char **env;

        while (given[n])
                n++;
        env = calloc(n + n_default + 1, sizeof(*env));
        if (!env)
                return NULL;
        n = 0;
        for (size_t i = 0; i < n_default; i++)
                if (!env_has(given, default_env[i]))
                        env[n++] = default_env[i];
        while (*given)
                env[n++] = *given++;
        return env;
}

void child_reset(void) {
        struct sigaction dfl = { .sa_handler = SIG_DFL };
        sigset_t none;
        int fd;

        for (int sig = 1; sig < NSIG; sig++)
                (void) sigaction(sig, &dfl, NULL);
        (void) sigemptyset(&none);
        (void) sigprocmask(SIG_SETMASK, &none, NULL);
        (void) setsid();
        /* the agent is spared by the OOM killer; what it starts is not */
        fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (fd >= 0) {
                if (write(fd, "0", 1) < 0) {
                        /* without the privilege it was not raised either */
                }
                (void) close(fd);
        }
        (void) syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_CLOEXEC);
}

static _Noreturn void child_fail(int err_fd, enum stage stage) {
        struct failure f = { .stage = stage, .error = errno };

        (void) !write(err_fd, &f, sizeof(f));
        _exit(127);
}

static _Noreturn void child_main(const struct wire_exec *x, const struct stdio *s, const char **env) {
        child_reset();
        if (x->tty && ioctl(s->child[0], TIOCSCTTY, 0) < 0)
                child_fail(s->err[1], STAGE_SETUP);
        for (int i = 0; i < 3; i++)
                if (dup2(s->child[x->tty ? 0 : i], i) < 0)
                        child_fail(s->err[1], STAGE_SETUP);
        if (chdir(x->cwd) < 0)
                child_fail(s->err[1], STAGE_CWD);
        environ = (char **) env; /* execvp looks for the command in the PATH that it will have */
        (void) execvp(x->argv[0], (char *const *) x->argv);
        child_fail(s->err[1], STAGE_EXEC);
}

static int child_fork(const struct wire_exec *x, struct stdio *s, struct child *ret) {
        cleanup_free const char **env = env_make(x->env, x->tty);
        pid_t pid;
        int pidfd;

        if (!env)
                return -ENOMEM;
        pid = fork();
        if (pid < 0)
                return -errno;
        if (pid == 0)
                child_main(x, s, env);
        pidfd = (int) syscall(SYS_pidfd_open, pid, 0u); /* CLOEXEC by itself */
        if (pidfd < 0) {
                int r = -errno;

                (void) kill(pid, SIGKILL);
                (void) waitpid(pid, NULL, 0);
                return r;
        }
        *ret = (struct child){
                .pid = pid,
                .pidfd = pidfd,
                .err_fd = TAKE_FD(s->err[0]),
                .in_fd = TAKE_FD(s->parent[0]),
                .out_fd = { TAKE_FD(s->parent[1]), TAKE_FD(s->parent[2]) },
        };
        return 0;
}

int child_start(const struct wire_exec *x, struct child *ret) {
        struct stdio s = { { -1, -1, -1 }, { -1, -1, -1 }, { -1, -1 } };
        int r;

        r = pipe2(s.err, O_CLOEXEC | O_NONBLOCK) < 0 ? -errno : 0;
        if (r == 0)
                r = x->tty ? stdio_terminal(&s, x) : stdio_pipes(&s, x->has_stdin);
        if (r == 0)
                r = child_fork(x, &s, ret);
        stdio_close(&s);
        return r;
}

int child_start_error(int err_fd, const char **ret_what) {
        static const char *const what[N_STAGES] = {
                [STAGE_SETUP] = "cannot set up",
                [STAGE_CWD] = "cannot change the directory for",
                [STAGE_EXEC] = "cannot run",
        };
        struct failure f;

        if (read(err_fd, &f, sizeof(f)) != sizeof(f) || f.stage < 0 || f.stage >= N_STAGES || f.error <= 0)
                return 0;
        *ret_what = what[f.stage];
        return f.error;
}

int child_reap(int pidfd, bool *ret_signaled, int *ret_code) {
        siginfo_t si = { 0 };

        if (waitid(P_PIDFD, (id_t) pidfd, &si, WEXITED | WNOHANG) < 0 || si.si_pid == 0)
                return 0;
        *ret_signaled = si.si_code != CLD_EXITED;
        *ret_code = si.si_status & 0xff;
        return 1;
}

struct later {
        struct loop *loop;
        struct loop_io io;
};

static void later_ready(uint32_t events, void *arg) {
        struct later *w = arg;
        bool signaled;
        int code;

        if (!child_reap(w->io.fd, &signaled, &code))
                return;
        loop_close(w->loop, &w->io);
        free(w);
}

void child_reap_later(struct loop *l, int pidfd) {
        struct later *w = calloc(1, sizeof(*w));

        if (w) {
                w->loop = l;
                w->io = (struct loop_io){ .fd = pidfd, .fn = later_ready, .arg = w };
                if (loop_watch(l, &w->io, EPOLLIN) == 0)
                        return;
        }
        /* A zombie stays until our own end: harmless, and rarer than rare. */
        free(w);
        (void) close(pidfd);
}
