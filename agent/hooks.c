/* SPDX-License-Identifier: MIT */
/* The programs in <root>/etc/forkd/resume.d, one after the other in sorted order, with one deadline for all.
 * One that fails, or is killed by the deadline, is a warning in the acknowledgement: a guest with a broken
 * hook still wakes up. Their output goes where the agent's own messages go, the console. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/agent.h"
#include "agent/child.h"

#define HOOKS_DIR "/etc/forkd/resume.d"
#define HOOKS_MAX 64

struct hooks {
        struct agent *a;
        void (*done)(struct agent *a);
        struct dirent **names;
        int n, i; /* names[i] is running, or next */
        pid_t pid;
        struct loop_io pid_io;
        struct loop_timer deadline;
        bool late;
        uint64_t start_ns;
        char env_kind[32], env_hostname[32 + WIRE_HOSTNAME_MAX], env_epoch[40];
};

static const char *const kind_names[] = {
        [WIRE_WAKE_BOOT] = "boot",
        [WIRE_WAKE_RESTORE] = "restore",
        [WIRE_WAKE_RECONNECT] = "reconnect",
};

static void hooks_free(struct hooks *h) {
        loop_timer_stop(&h->a->loop, &h->deadline);
        for (int i = 0; i < h->n; i++)
                free(h->names[i]);
        free(h->names);
        free(h);
}

static void hooks_path(const struct hooks *h, int i, char *buf, size_t size) {
        (void) snprintf(buf, size, "%s" HOOKS_DIR "/%s", h->a->opt.root, h->names[i]->d_name);
}

/* As run-parts(8) has it: letters, digits, '-', '_', so that what editors and package managers leave behind
 * is not run; and '.' inside, which people use. */
static int hook_name_ok(const struct dirent *de) {
        const char *s = de->d_name;

        if (s[0] == '.' || s[strlen(s) - 1] == '~')
                return 0;
        return s[strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")] == '\0';
}

static bool hook_runnable(const char *path) {
        struct stat st;

        return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

static _Noreturn void hook_main(const struct hooks *h, const char *path) {
        const char *env[] = {
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                h->env_kind,
                h->env_hostname,
                h->env_epoch,
                NULL,
        };
        const char *argv[] = { path, NULL };
        int null;

        child_reset();
        null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (null >= 0)
                (void) dup2(null, 0);
        (void) dup2(2, 1);
        (void) execve(path, (char *const *) argv, (char *const *) env);
        _exit(127);
}

static void hook_exited(uint32_t events, void *arg);

static int hook_start(struct hooks *h, const char *path) {
        int pidfd, r;
        pid_t pid = fork();

        if (pid < 0)
                return -errno;
        if (pid == 0)
                hook_main(h, path);
        pidfd = (int) syscall(SYS_pidfd_open, pid, 0u);
        r = pidfd < 0 ? -errno : 0;
        if (r == 0) {
                h->pid = pid;
                h->pid_io = (struct loop_io){ .fd = pidfd, .fn = hook_exited, .arg = h };
                r = loop_watch(&h->a->loop, &h->pid_io, EPOLLIN);
                if (r == 0)
                        return 0;
                loop_close(&h->a->loop, &h->pid_io);
        }
        (void) kill(pid, SIGKILL);
        (void) waitpid(pid, NULL, 0);
        return r;
}

/* Starts the next one that can be, or ends. */
static void hooks_next(struct hooks *h) {
        struct agent *a = h->a;
        char path[WIRE_PATH_MAX + 1];

        for (; h->i < h->n && !h->late; h->i++) {
                int r;

                hooks_path(h, h->i, path, sizeof(path));
                if (!hook_runnable(path))
                        continue;
                r = hook_start(h, path);
                if (r == 0)
                        return;
                ack_warn(&a->ack, "hook %.64s: %s", h->names[h->i]->d_name, strerror(-r));
        }
        if (h->i < h->n)
                ack_warn(&a->ack, "deadline reached: %d hooks were not run", h->n - h->i);
        a->ack.us[WIRE_STEP_HOOKS] = (loop_now_ns() - h->start_ns) / 1000;
        h->done(a);
        hooks_free(h);
}

static void hook_exited(uint32_t events, void *arg) {
        struct hooks *h = arg;
        const char *name = h->names[h->i]->d_name;
        bool signaled;
        int code;

        if (!child_reap(h->pid_io.fd, &signaled, &code))
                return;
        loop_close(&h->a->loop, &h->pid_io);
        if (h->late)
                ack_warn(&h->a->ack, "hook %.64s: killed at the deadline of %u ms", name, h->a->opt.hooks_timeout_ms);
        else if (signaled)
                ack_warn(&h->a->ack, "hook %.64s: killed by signal %d", name, code);
        else if (code != 0)
                ack_warn(&h->a->ack, "hook %.64s: exit code %d", name, code);
        h->i++;
        hooks_next(h);
}

static void hooks_deadline(void *arg) {
        struct hooks *h = arg;

        h->late = true;
        session_signal(h->pid, SIGKILL);
}

int hooks_start(struct agent *a, const struct wire_wake *w, uint64_t epoch, void (*done)(struct agent *a), struct hooks **ret) {
        struct hooks *h = calloc(1, sizeof(*h));
        char path[WIRE_PATH_MAX + 1];

        if (!h)
                return -ENOMEM;
        *h = (struct hooks){ .a = a, .done = done, .pid_io = LOOP_IO_INIT, .start_ns = loop_now_ns() };
        (void) snprintf(path, sizeof(path), "%s" HOOKS_DIR, a->opt.root);
        h->n = scandir(path, &h->names, hook_name_ok, alphasort);
        if (h->n < 0) {
                int r = errno == ENOENT ? 0 : -errno;

                h->n = 0;
                if (r < 0)
                        ack_warn(&a->ack, HOOKS_DIR ": %s", strerror(-r));
        }
        if (h->n > HOOKS_MAX) {
                ack_warn(&a->ack, HOOKS_DIR ": only the first %d are run", HOOKS_MAX);
                while (h->n > HOOKS_MAX)
                        free(h->names[--h->n]);
        }
        (void) snprintf(h->env_kind, sizeof(h->env_kind), "FORKD_KIND=%s", kind_names[w->kind]);
        (void) snprintf(h->env_hostname, sizeof(h->env_hostname), "FORKD_HOSTNAME=%s", w->hostname);
        (void) snprintf(h->env_epoch, sizeof(h->env_epoch), "FORKD_EPOCH=%016" PRIx64, epoch);
        *ret = h; /* before hooks_next, which may end at once and have done() clear it */
        if (h->n > 0)
                loop_timer_set(&a->loop, &h->deadline, a->opt.hooks_timeout_ms, hooks_deadline, h);
        hooks_next(h);
        return 0;
}

void hooks_abort(struct hooks *h) {
        if (!h)
                return;
        session_signal(h->pid, SIGKILL);
        loop_watch(&h->a->loop, &h->pid_io, 0);
        child_reap_later(&h->a->loop, TAKE_FD(h->pid_io.fd));
        hooks_free(h);
}
