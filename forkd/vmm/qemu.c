/* SPDX-License-Identifier: MIT */
/* The QEMU driver: processes, sockets, events, death.
 *
 * Theory of operation. Everything QEMU needs is a descriptor that it inherits, opened by qemu_launch.c: the listening
 * sockets of QMP and of the agent's port, the console's file, the dummy for guest RAM, its disks. Since QMP's socket
 * listens before QEMU exists, forkd connects first and starts QEMU then; QEMU's greeting ends the wait, and the
 * path in run_dir serves a later forkd (adopt). QEMU serves one QMP client at a time.
 *
 * A VMM's life has two witnesses, its pidfd and its control channel. Only the pidfd says that it is dead: a
 * hang-up makes calls fail, and the step that failed waits a moment for the death behind it, to say how it
 * died. When the pidfd speaks, what QEMU had still sent is handled first, so that a guest's shutdown is known
 * before the end it leads to. on_exit is the last thing done with the object: the callback may free it. */
#include "forkd/vmm/qemu.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"
#include "forkd/vmm/qemu_launch.h"

#define REASON_MAX 300u

/* ---- events ---- */

static void guest_event(struct vmm *v, const char *what) {
        if (v->events && v->events->on_guest_event && !v->quiet)
                v->events->on_guest_event(what, v->arg);
}

static bool has_str(const json_t *o, const char *key, const char *want) {
        const char *s = json_string_value(json_object_get(o, key));

        return s && strcmp(s, want) == 0;
}

static void on_qmp_event(const char *name, const json_t *data, void *arg) {
        struct vmm *v = arg;

        if (strcmp(name, "RESUME") == 0) {
                v->running = true;
        } else if (strcmp(name, "STOP") == 0) {
                v->running = false;
        } else if (strcmp(name, "SHUTDOWN") == 0 && json_is_true(json_object_get(data, "guest"))) {
                /* with -no-reboot a reset ends the VM too */
                guest_event(v, has_str(data, "reason", "guest-reset")   ? "reset"
                               : has_str(data, "reason", "guest-panic") ? "panic"
                                                                        : "shutdown");
        } else if (strcmp(name, "GUEST_PANICKED") == 0) {
                guest_event(v, "panic");
        } else if (strcmp(name, "BLOCK_IO_ERROR") == 0 && has_str(data, "action", "stop")) {
                guest_event(v, "io-error");
        }
}

static const struct qmp_handlers qmp_handlers = { .on_event = on_qmp_event };

static void on_pidfd(evutil_socket_t fd, short what, void *arg) {
        struct vmm *v = arg;
        struct qemu_exit_wait *w;
        int status = -1;

        if (spawn_wait(v->pidfd, 0, &status) < 0)
                return; /* not yet after all; the event stays */
        (void) event_del(v->ev_exit);
        v->exited = true;
        v->running = false;
        v->status = status;
        if (v->qmp) {
                qmp_drain(v->qmp);
                qmp_close(v->qmp, -EPIPE, "QEMU has ended");
        }
        while ((w = TAILQ_FIRST(&v->exit_waits))) {
                TAILQ_REMOVE(&v->exit_waits, w, entry);
                co_wake(&w->wait, 0);
        }
        if (!v->quiet && v->events && v->events->on_exit)
                v->events->on_exit(status, v->arg);
}

static int wait_exit(struct vmm *v, int timeout_ms) {
        struct qemu_exit_wait w = { .wait = CO_WAIT_INIT };

        if (v->exited)
                return 0;
        TAILQ_INSERT_TAIL(&v->exit_waits, &w, entry);
        (void) co_wait(&w.wait, timeout_ms);
        if (w.wait.done)
                return 0;
        TAILQ_REMOVE(&v->exit_waits, &w, entry);
        return -ETIMEDOUT;
}

static const char *describe_end(int status, char *buf, size_t size) {
        if (status >= 0 && WIFSIGNALED(status))
                (void) snprintf(buf, size, "was killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
        else if (status >= 0 && WIFEXITED(status))
                (void) snprintf(buf, size, "exited with status %d", WEXITSTATUS(status));
        else
                (void) snprintf(buf, size, "is gone"); /* not our child: nobody told us how it ended */
        return buf;
}

int qemu_step_failed(struct vmm *v, int r, const char *what, struct err *e) {
        char reason[REASON_MAX], end[80];

        if (r != -EPIPE && !v->exited) {
                (void) err_prefix(e, "%s", what);
                return r;
        }
        if (wait_exit(v, QEMU_DEATH_TIMEOUT_MS) < 0)
                return err_set(e, ERR_VMM, -EPIPE, "%s: QEMU (pid %d) closed its control channel but lives on", what,
                               (int) v->pid);
        (void) qemu_log_reason(v->log_path, v->log_start, reason, sizeof(reason));
        return err_set(e, ERR_VMM, -EPIPE, "%s: QEMU %s%s%s", what, describe_end(v->status, end, sizeof(end)),
                       reason[0] ? ": " : "", reason);
}

/* ---- the object ---- */

static void qemu_free(struct vmm *v) {
        if (!v)
                return;
        if (v->ev_exit)
                event_free(v->ev_exit);
        qmp_free(v->qmp);
        qemu_shell_free(v->shell);
        (void) close_fd(v->pidfd);
        free(v->agent_path);
        free(v->layout_path);
        free(v->log_path);
        free(v);
}
DEFINE_CLEANUP(struct vmm, qemu_free)

int qemu_join(const char *dir, const char *file, char **ret) {
        return asprintf(ret, "%s/%s", dir, file) < 0 ? (*ret = NULL, -ENOMEM) : 0;
}

int qemu_set_paths(struct vmm *v, const char *run_dir, const char *log_path) {
        cleanup_free char *agent = NULL, *layout = NULL, *log = strdup(log_path);

        if (!log || qemu_join(run_dir, QEMU_AGENT_SOCKET, &agent) < 0 || qemu_join(run_dir, QEMU_LAYOUT_FILE, &layout) < 0)
                return -ENOMEM;
        free(v->log_path);
        free(v->agent_path);
        free(v->layout_path);
        v->log_path = TAKE_PTR(log);
        v->agent_path = TAKE_PTR(agent);
        v->layout_path = TAKE_PTR(layout);
        return 0;
}

static struct vmm *object_new(struct event_base *base, const char *run_dir, const char *log_path,
                              const struct vmm_machine *machine, const struct vmm_events *ev, void *arg) {
        struct vmm *v = calloc(1, sizeof(*v));

        if (!v)
                return NULL;
        *v = (struct vmm){
                .ops = &vmm_qemu, .base = base, .machine = *machine, .events = ev, .arg = arg, .pidfd = -1, .quiet = true
        };
        TAILQ_INIT(&v->exit_waits);
        if (qemu_set_paths(v, run_dir, log_path) < 0) {
                qemu_free(v);
                return NULL;
        }
        return v;
}

/* Begins to watch the process and to talk to it over @conn (taken). */
static int object_connect(struct vmm *v, int conn, struct err *e) {
        int r = qmp_new(v->base, conn, &qmp_handlers, v, &v->qmp);

        if (r == 0) {
                v->ev_exit = event_new(v->base, v->pidfd, EV_READ | EV_PERSIST, on_pidfd, v);
                if (!v->ev_exit || event_add(v->ev_exit, NULL) < 0)
                        r = -ENOMEM;
        }
        if (r < 0)
                return err_errno(e, r, "watching QEMU");
        r = qmp_handshake(v->qmp, QEMU_START_TIMEOUT_MS, e);
        return r < 0 ? r : qemu_state_setup(v, e);
}

int qemu_connect_now(const char *path, int *ret_fd) {
        cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        struct sockaddr_un sa = { .sun_family = AF_UNIX };

        if (fd < 0)
                return -errno;
        if (strlen(path) >= sizeof(sa.sun_path))
                return -ENAMETOOLONG;
        memcpy(sa.sun_path, path, strlen(path) + 1);
        if (connect(fd, (struct sockaddr *) &sa, sizeof(sa)) < 0)
                return -errno;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

/* ---- start ---- */

static int check_start(const struct vmm_start *s, struct err *e) {
        const struct vmm_machine *m = s->machine;

        if (m->mem_bytes < VMM_MIN_MEM || m->mem_bytes > VMM_MAX_MEM || m->mem_bytes % 4096 != 0)
                return err_set(e, ERR_INVALID, -EINVAL, "%llu bytes of memory are out of range or not whole pages",
                               (unsigned long long) m->mem_bytes);
        if (m->vcpus < 1 || m->vcpus > VMM_MAX_VCPUS)
                return err_set(e, ERR_INVALID, -EINVAL, "%u vCPUs are out of range (1 to %d)", m->vcpus, VMM_MAX_VCPUS);
        if (m->n_disks > VMM_MAX_DISKS)
                return err_set(e, ERR_INVALID, -EINVAL, "%u disks are too many (at most %d)", m->n_disks, VMM_MAX_DISKS);
        for (unsigned i = 0; i < m->n_disks && !s->shell; i++)
                if (!s->disks[i] || s->disks[i][0] != '/')
                        return err_set(e, ERR_INVALID, -EINVAL, "disk %u has no absolute path", i);
        if (s->incoming && s->kernel)
                return err_set(e, ERR_INVALID, -EINVAL, "a VM boots a kernel or loads a state, not both");
        if (s->shell && (!s->incoming || s->pager_sock >= 0))
                return err_set(e, ERR_INVALID, -EINVAL, "a shell waits for its state and its memory");
        if ((s->pager_sock >= 0 || s->shell) && !s->attach_lib)
                return err_set(e, ERR_INVALID, -EINVAL, "memory from the pager needs the attach library");
        if (s->attach_lib && s->attach_lib[0] != '/')
                return err_set(e, ERR_INVALID, -EINVAL, "the attach library's path must be absolute: %s", s->attach_lib);
        return 0;
}

/* What start leaves in run_dir when it fails: nothing. */
static void remove_files(const char *run_dir) {
        static const char *const files[] = { QEMU_QMP_SOCKET, QEMU_AGENT_SOCKET, QEMU_LAYOUT_FILE };
        cleanup_fd int dir = open(run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        for (size_t i = 0; dir >= 0 && i < ARRAY_LEN(files); i++)
                (void) unlinkat(dir, files[i], 0);
}

static int start_in(struct vmm *v, const struct vmm_start *s, struct err *e) {
        struct qemu_launch l cleanup_qemu_launch = QEMU_LAUNCH_INIT;
        int r;

        r = qemu_launch(v, s, &l, e);
        if (r == 0 && s->on_spawn)
                r = s->on_spawn(v->pidfd, v->arg, e);
        if (r < 0)
                return r;
        v->wants_state = s->incoming;
        /* Ours must go before the wait: when QEMU dies with its copies, the connection ends. */
        l.qmp = close_fd(l.qmp);
        l.agent = close_fd(l.agent);
        r = object_connect(v, TAKE_FD(l.conn), e);
        if (r < 0)
                return qemu_step_failed(v, r, "starting QEMU", e);
        return qemu_launch_attached(&l, e);
}

static int qemu_kill(struct vmm *v, struct err *e);

static int qemu_start(struct event_base *base, const struct vmm_start *s, const struct vmm_events *ev, void *arg,
                      struct vmm **ret, struct err *e) {
        attr_cleanup(qemu_free_p) struct vmm *v = NULL;
        int r = check_start(s, e);

        if (r < 0)
                return r;
        v = object_new(base, s->run_dir, s->log_path, s->machine, ev, arg);
        if (!v)
                return err_errno(e, -ENOMEM, "starting QEMU");
        r = start_in(v, s, e);
        if (r < 0) {
                if (v->pidfd >= 0)
                        (void) qemu_kill(v, NULL);
                remove_files(s->run_dir);
                return r;
        }
        v->quiet = false;
        *ret = TAKE_PTR(v);
        return 0;
}

static int qemu_adopt(struct event_base *base, const char *run_dir, const char *log_path, pid_t pid, int pidfd,
                      const struct vmm_machine *machine, const struct vmm_events *ev, void *arg, struct vmm **ret,
                      struct err *e) {
        attr_cleanup(qemu_free_p) struct vmm *v = object_new(base, run_dir, log_path, machine, ev, arg);
        cleanup_free char *path = NULL;
        cleanup_fd int conn = -1;
        int r;

        if (!v || qemu_join(run_dir, QEMU_QMP_SOCKET, &path) < 0)
                return err_errno(e, -ENOMEM, "taking QEMU back");
        r = qemu_connect_now(path, &conn);
        if (r < 0)
                return err_errno(e, r, "taking QEMU (pid %d) back: connecting to %s", (int) pid, path);
        v->pid = pid;
        v->pidfd = pidfd;
        r = object_connect(v, TAKE_FD(conn), e);
        if (r == 0)
                r = qemu_state_recover(v, e);
        if (r < 0) {
                r = qemu_step_failed(v, r, "taking QEMU back", e);
                v->pidfd = -1; /* stays the caller's */
                return r;
        }
        v->quiet = false;
        *ret = TAKE_PTR(v);
        return 0;
}

/* ---- the rest of the table ---- */

static int qemu_kill(struct vmm *v, struct err *e) {
        int r;

        v->quiet = true;
        if (v->exited)
                return 0;
        r = spawn_kill(v->pidfd, SIGKILL);
        if (r < 0 && r != -ESRCH)
                return err_errno(e, r, "killing QEMU (pid %d)", (int) v->pid);
        if (!v->ev_exit) /* it was never watched: start failed early */
                r = spawn_wait(v->pidfd, QEMU_KILL_TIMEOUT_MS, NULL);
        else
                r = wait_exit(v, QEMU_KILL_TIMEOUT_MS);
        return r < 0 ? err_set(e, ERR_TIMEOUT, r, "QEMU (pid %d) does not die", (int) v->pid) : 0;
}

static const char *qemu_agent_socket(struct vmm *v) {
        return v->agent_path;
}

static pid_t qemu_pid(struct vmm *v) {
        return v->pid;
}

static int qemu_pidfd(struct vmm *v) {
        return v->pidfd;
}

const char *vmm_qemu_cmdline(void) {
        /* reboot=t: a triple fault is the only reset that needs no device; panic=-1: at once. The timer check
         * compares real time with the emulated timer, which tells nothing but how busy the host is. */
        return "console=ttyS0 reboot=t panic=-1 no_timer_check quiet";
}

const struct vmm_ops vmm_qemu = {
        .name = "qemu",
        .machine = "microvm-1",
        .version = qemu_version,
        .start = qemu_start,
        .take = qemu_take,
        .is_current = qemu_is_current,
        .adopt = qemu_adopt,
        .resume = qemu_resume,
        .pause = qemu_pause,
        .save_state = qemu_save_state,
        .load_state = qemu_load_state,
        .agent_socket = qemu_agent_socket,
        .is_running = qemu_is_running,
        .ram_regions = qemu_ram_regions,
        .idle_uffd = qemu_idle_uffd,
        .thread_vcpu = qemu_thread_vcpu,
        .pid = qemu_pid,
        .pidfd = qemu_pidfd,
        .kill = qemu_kill,
        .free = qemu_free,
};
