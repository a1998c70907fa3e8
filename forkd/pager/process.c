/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * The pager is a process of its own that outlives forkd: guests keep running while forkd is away. forkd makes
 * the listening socket <run>/pager.sock and hands it over, so a connection made at once is answered as soon as
 * the pager is up, without polling. A forkd that starts looks for a live one at that socket first.
 *
 * One that does not answer there is as good as dead, and worse: it is killed, by the pid that was noted when it was
 * started.
 *
 * The pidfd tells of the pager's death. Its guests' faults then wait (each VMM keeps its userfaultfd open), and
 * forkd kills them at once: they are never left spinning, and never read zeros. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common/co.h"
#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/pidfile.h"
#include "forkd/vmm/cgroup.h"

#define HELLO_TIMEOUT_MS 10000
#define PAGER_LISTEN_FD 3

/* Without its control connection a pager cannot tell of failures: it counts as lost. */
static void on_close(struct rpc_conn *c, int r, void *arg) {
        struct pager *p = arg;

        if (p->conn != c)
                return;
        if (p->pidfd >= 0 && !p->d->stopping) {
                log_error("the connection to the pager was lost (%s); ending it", r < 0 ? strerror(-r) : "closed");
                best_effort(spawn_kill(p->pidfd, SIGKILL));
        }
        rpc_conn_unref(TAKE_PTR(p->conn));
}

static const struct rpc_handlers pager_handlers = { .on_message = pager_on_message, .on_close = on_close };

static void pager_forget(struct pager *p) {
        struct rpc_conn *c = TAKE_PTR(p->conn);

        if (p->death)
                event_free(TAKE_PTR(p->death));
        p->pidfd = close_fd(p->pidfd);
        p->pid = 0;
        if (c) {
                rpc_conn_close(c);
                rpc_conn_unref(c);
        }
}

static void bury(struct pager *p) {
        struct vm *vm;
        int status = -1;

        best_effort(spawn_wait(p->pidfd, 0, &status));
        log_error("the pager (pid %d) has ended (wait status %d)", (int) p->pid, status);
        pager_forget(p);
        TAILQ_FOREACH (vm, &p->d->vms, entry)
                if (vm->session)
                        vm_kill_lost(vm, "pager-lost");
}

static void on_death(evutil_socket_t fd, short what, void *arg) {
        bury(arg);
}

/* ---- coming into being ---- */

int pager_new(struct daemon *d, struct pager **ret) {
        struct pager *p = calloc(1, sizeof(*p));

        if (!p)
                return -ENOMEM;
        p->d = d;
        p->pidfd = -1;
        (void) snprintf(p->socket_path, sizeof(p->socket_path), "%s/pager.sock", d->run_dir);
        (void) snprintf(p->pid_path, sizeof(p->pid_path), "%s/pager.pid", d->run_dir);
        *ret = p;
        return 0;
}

void pager_free(struct pager *p) {
        if (!p)
                return;
        pager_forget(p);
        free(p);
}

bool pager_is_up(const struct pager *p) {
        return p->conn && rpc_conn_is_open(p->conn);
}

pid_t pager_pid(const struct pager *p) {
        return p->pid;
}

/* Says hello on @fd (taken) and watches process @pid. */
static int pager_greet(struct pager *p, int fd, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        uint64_t pid = 0, protocol = 0;
        int r;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "version", FORKD_VERSION);
        r = rpc_conn_new(p->d->base, fd, &pager_handlers, p, &p->conn);
        if (r < 0)
                return err_errno(e, r, "connecting to the pager");
        r = rpc_call_co(p->conn, "hello", &b, NULL, 0, HELLO_TIMEOUT_MS, &a, e);
        if (r < 0)
                return err_prefix(e, "the pager does not answer");
        if (mp_get_u64(&a.doc.root, "pid", &pid) < 0 || mp_get_u64(&a.doc.root, "protocol", &protocol) < 0 || protocol != 1 ||
            pid == 0 || pid > INT32_MAX)
                return err_set(e, ERR_PAGER, -EPROTO, "what listens on %s is no pager of this version", p->socket_path);
        if (p->pidfd < 0) {
                r = spawn_pidfd_open((pid_t) pid, 0, &p->pidfd);
                if (r < 0)
                        return err_errno(e, r, "watching the pager (pid %d)", (int) pid);
        }
        p->pid = (pid_t) pid;
        p->death = event_new(p->d->base, p->pidfd, EV_READ, on_death, p);
        if (!p->death || event_add(p->death, NULL) < 0)
                return err_errno(e, -ENOMEM, "watching the pager");
        return 0;
}

/* Nobody can tell any more what a pager does that does not answer; as long as it lives, its socket would be found
 * again and again. */
static int kill_mute(struct pager *p, struct err *e) {
        cleanup_fd int pidfd = -1;
        pid_t pid;
        int r = pidfile_open(p->pid_path, p->d->boot_id, &pid, &pidfd);

        if (r == 0) {
                log_error("killing the pager (pid %d): %s", (int) pid, e->message);
                best_effort(spawn_kill(pidfd, SIGKILL));
                r = co_wait_fd(pidfd, EV_READ, PAGER_CALL_TIMEOUT_MS);
                /* Ours to reap, if this forkd started it. */
                if (r == 0)
                        best_effort(spawn_wait(pidfd, 0, NULL));
        }
        if (r < 0 && r != -ESRCH)
                return err_prefix(e, "a pager that cannot be talked to, nor found to be ended");
        (void) unlink(p->socket_path);
        return 0;
}

int pager_find(struct pager *p, struct err *e) {
        int fd, r;

        if (pager_is_up(p))
                return 0;
        r = io_connect_unix(p->socket_path, &fd);
        if (r < 0)
                return 0; /* nobody there */
        r = pager_greet(p, fd, e);
        if (r < 0) {
                pager_forget(p);
                return kill_mute(p, e);
        }
        log_info("found the pager (pid %d)", (int) p->pid);
        return 0;
}

static int pager_spawn(struct pager *p, struct err *e) {
        char prog[PATH_MAX], log_path[FORKD_MAX_DIR + 16], workers[16], idle[16], budget[24], level[16], record[16];
        const char *argv[16] = { prog, "--control",   p->socket_path, "--control-fd", "3", "--idle-image-seconds",
                                 idle, "--log-level", level };
        unsigned n_args = 9;
        cleanup_fd int listen_fd = -1, log_fd = -1, conn_fd = -1, cgroup_fd = -1;
        struct err ignored;
        int r;

        r = daemon_helper(p->d, "uffd-pager", prog, sizeof(prog));
        if (r < 0) {
                (void) err_set(e, ERR_PAGER, r, "uffd-pager is neither beside forkd in %s nor in libexec", p->d->bin_dir);
                return err_hint(e, "build or install forkd completely");
        }
        (void) snprintf(log_path, sizeof(log_path), "%s/pager.log", p->d->state_dir);
        (void) snprintf(idle, sizeof(idle), "%u", p->d->cfg.idle_image_seconds);
        (void) snprintf(level, sizeof(level), "%s", log_level_name());
        if (p->d->cfg.pager_workers > 0) {
                (void) snprintf(workers, sizeof(workers), "%u", p->d->cfg.pager_workers);
                argv[n_args++] = "--workers";
                argv[n_args++] = workers;
        }
        if (p->d->cfg.memory_budget > 0) {
                (void) snprintf(budget, sizeof(budget), "%" PRIu64, p->d->cfg.memory_budget);
                argv[n_args++] = "--memory-budget";
                argv[n_args++] = budget;
        }
        if (p->d->cfg.record_seconds > 0) { /* else no session is asked to record */
                (void) snprintf(record, sizeof(record), "%u", p->d->cfg.record_seconds);
                argv[n_args++] = "--record-seconds";
                argv[n_args++] = record;
        }
        r = io_listen_unix(p->socket_path, 0600, &listen_fd);
        if (r < 0)
                return err_errno(e, r, "listening on %s", p->socket_path);
        log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (log_fd < 0)
                return err_errno(e, -errno, "opening %s", log_path);
        r = io_connect_unix(p->socket_path, &conn_fd);
        if (r < 0)
                return err_errno(e, r, "connecting to %s", p->socket_path);
        /* Joined, not emptied: one that is being replaced may still be in it. */
        if (cgroup_join(p->d->instance, CGROUP_PAGER, &cgroup_fd, &ignored) < 0)
                log_debug("the pager runs without a cgroup of its own: %s", ignored.message);

        struct spawn_fd fds[] = {
                { listen_fd, PAGER_LISTEN_FD },
                { log_fd, STDOUT_FILENO },
                { log_fd, STDERR_FILENO },
        };
        struct spawn_params sp = {
                .argv = argv,
                .fds = fds,
                .n_fds = ARRAY_LEN(fds),
                .cgroup_fd = cgroup_fd,
                .new_session = true,
        };
        r = spawn_process(&sp, &p->pid, &p->pidfd);
        if (r < 0)
                return err_errno(e, r, "starting the pager (%s)", prog);
        r = pager_greet(p, TAKE_FD(conn_fd), e);
        if (r < 0) {
                best_effort(spawn_kill(p->pidfd, SIGKILL));
                best_effort(spawn_wait(p->pidfd, 1000, NULL));
                (void) err_hint(e, "see %s", log_path);
                pager_forget(p);
                return r;
        }
        log_info("started the pager (pid %d)", (int) p->pid);
        r = pidfile_write(p->pid_path, p->d->boot_id, p->pid);
        if (r < 0)
                log_warning("noting the pager's pid in %s: %s", p->pid_path, strerror(-r));
        return 0;
}

int pager_ensure(struct pager *p, struct err *e) {
        int r;

        /* One coroutine brings it up; the others queue behind each other on its result. */
        while (!pager_is_up(p) && p->connecting) {
                struct co_wait mine = CO_WAIT_INIT, *next = p->connect_waiter;

                p->connect_waiter = &mine;
                r = co_wait(&mine, -1);
                if (next)
                        co_wake(next, r);
        }
        if (pager_is_up(p))
                return 0;
        p->connecting = true;
        /* One that we have lost is dying: its successor starts when its guests have been told. */
        if (p->pidfd >= 0) {
                if (co_wait_fd(p->pidfd, EV_READ, PAGER_CALL_TIMEOUT_MS) < 0)
                        log_error("the pager (pid %d) does not die", (int) p->pid);
                if (p->pidfd >= 0)
                        bury(p);
        }
        r = pager_find(p, e);
        if (r == 0 && !pager_is_up(p))
                r = pager_spawn(p, e);
        p->connecting = false;
        if (p->connect_waiter)
                co_wake(TAKE_PTR(p->connect_waiter), 0);
        return r;
}

/* ---- calls ---- */

/* A call went without an answer. A slow one may take long, a hello never does: without that the pager hangs, and what
 * its guests wait for will not come. */
static void suspect(struct pager *p) {
        struct rpc_conn *c = p->conn;
        struct err e;

        if (p->suspected || !pager_is_up(p) || p->pidfd < 0)
                return;
        p->suspected = true;
        if (rpc_call_co(c, "hello", NULL, NULL, 0, HELLO_TIMEOUT_MS, NULL, &e) == -ETIMEDOUT && p->conn == c) {
                log_error("killing the pager (pid %d): it hangs", (int) p->pid);
                best_effort(spawn_kill(p->pidfd, SIGKILL)); /* on_death does the rest */
        }
        p->suspected = false;
}

int pager_call(struct pager *p, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds,
               struct rpc_answer *ret, struct err *e) {
        int r;

        if (!pager_is_up(p))
                return err_set(e, ERR_PAGER, -EPIPE, "the pager is gone");
        r = rpc_call_co(p->conn, method, params, fds, n_fds, PAGER_CALL_TIMEOUT_MS, ret, e);
        if (r == -ETIMEDOUT)
                suspect(p);
        return r;
}

/* ---- the end ---- */

static void remove_group(struct pager *p) {
        struct err e;

        if (cgroup_remove(p->d->instance, CGROUP_PAGER, &e) < 0)
                log_debug("%s", e.message);
}

void pager_shutdown(struct pager *p) {
        struct rpc_conn *c = p->conn;
        struct err e;
        int r;

        if (!pager_is_up(p)) {
                (void) unlink(p->socket_path); /* of one that died */
                (void) unlink(p->pid_path);
                remove_group(p);
                return;
        }
        if (p->death)
                event_free(TAKE_PTR(p->death));
        r = rpc_call_co(c, "shutdown", NULL, NULL, 0, PAGER_CALL_TIMEOUT_MS, NULL, &e);
        if (r < 0 && r != -ECANCELED && r != -EPIPE)
                log_warning("the pager refuses to end: %s", e.message);
        if (co_wait_fd(p->pidfd, EV_READ, PAGER_CALL_TIMEOUT_MS) < 0) {
                log_warning("killing the pager (pid %d): it does not end", (int) p->pid);
                best_effort(spawn_kill(p->pidfd, SIGKILL));
        }
        best_effort(spawn_wait(p->pidfd, PAGER_CALL_TIMEOUT_MS, NULL));
        pager_forget(p);
        (void) unlink(p->socket_path);
        (void) unlink(p->pid_path);
        remove_group(p);
}
