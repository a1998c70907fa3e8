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
#include "forkd/pager_link.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/co.h"
#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/daemon.h"
#include "forkd/pidfile.h"

#define CALL_TIMEOUT_MS 10000
#define HELLO_TIMEOUT_MS 10000
#define PAGER_LISTEN_FD 3

struct pager {
        struct daemon *d;
        char socket_path[FORKD_MAX_RUN_DIR + 16], pid_path[FORKD_MAX_RUN_DIR + 16];
        struct rpc_conn *conn;
        pid_t pid;
        int pidfd;
        struct event *death;
        bool connecting, suspected;
        struct co_wait *connect_waiter; /* others that need the pager while one coroutine brings it up */
};

static struct vm *vm_by_id(struct daemon *d, const char *id) {
        struct vm *vm;

        TAILQ_FOREACH (vm, &d->vms, entry)
                if (strcmp(vm->id, id) == 0)
                        return vm;
        return NULL;
}

static struct vm *session_of(struct pager *p, const msgpack_object *params) {
        struct vm *vm;
        id_str id;

        if (mp_get_str(params, "session", id, sizeof(id)) < 0)
                return NULL;
        vm = vm_by_id(p->d, id);
        return vm && vm->session ? vm : NULL;
}

/* ---- what the pager tells ---- */

static void on_message(struct rpc_msg *m, void *arg) {
        struct pager *p = arg;
        struct vm *vm = session_of(p, m->params);
        char reason[160] = "unknown";

        if (strcmp(m->method, "session.attached") == 0) {
                if (vm && m->n_fds == 1) {
                        (void) close_fd(vm->uffd);
                        vm->uffd = TAKE_FD(m->fds[0]);
                }
        } else if (strcmp(m->method, "session.failed") == 0) {
                (void) mp_get_str(m->params, "reason", reason, sizeof(reason));
                log_error("the pager cannot serve %s: %s", vm ? vm->name : "an unknown session", reason);
                if (vm) {
                        char full[200];

                        (void) snprintf(full, sizeof(full), "pager: %s", reason);
                        vm_kill_lost(vm, full);
                }
        } else if (m->is_request) {
                struct err e;

                (void) err_set(&e, ERR_PROTOCOL, -EPROTO, "forkd takes no calls from the pager");
                (void) rpc_reply_err(m->conn, m->msgid, &e);
        }
}

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

static const struct rpc_handlers pager_handlers = { .on_message = on_message, .on_close = on_close };

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
                r = co_wait_fd(pidfd, EV_READ, CALL_TIMEOUT_MS);
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
        char prog[PATH_MAX], log_path[FORKD_MAX_DIR + 16], workers[16], idle[16], level[16];
        const char *argv[12] = { prog, "--control",   p->socket_path, "--control-fd", "3", "--idle-image-seconds",
                                 idle, "--log-level", level };
        cleanup_fd int listen_fd = -1, log_fd = -1, conn_fd = -1;
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
                argv[9] = "--workers";
                argv[10] = workers;
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

        struct spawn_fd fds[] = {
                { listen_fd, PAGER_LISTEN_FD },
                { log_fd, STDOUT_FILENO },
                { log_fd, STDERR_FILENO },
        };
        struct spawn_params sp = {
                .argv = argv,
                .fds = fds,
                .n_fds = ARRAY_LEN(fds),
                .cgroup_fd = -1,
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
                if (co_wait_fd(p->pidfd, EV_READ, CALL_TIMEOUT_MS) < 0)
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

static int call(struct pager *p, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds,
                struct rpc_answer *ret, struct err *e) {
        int r;

        if (!pager_is_up(p))
                return err_set(e, ERR_PAGER, -EPIPE, "the pager is gone");
        r = rpc_call_co(p->conn, method, params, fds, n_fds, CALL_TIMEOUT_MS, ret, e);
        if (r == -ETIMEDOUT)
                suspect(p);
        return r;
}

/* ---- sessions ---- */

static void put_session(struct mp_buf *b, const struct vm *vm, size_t more) {
        mp_map(b, 1 + more);
        mp_kv_str(b, "session", vm->id);
}

static int open_once(struct pager *p, struct vm *vm, int image_fd, int *ret_memfd, int *ret_sock, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_fd int vmm_end = -1, pager_end = -1;
        cleanup_mp_buf struct mp_buf b = { 0 };
        int sv[2], r;

        mp_buf_init(&b);
        r = pager_ensure(p, e);
        if (r < 0)
                return r;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
                return err_errno(e, -errno, "opening a pager session");
        vmm_end = sv[0];
        pager_end = sv[1];
        put_session(&b, vm, 2);
        mp_kv_u64(&b, "ram_bytes", vm->machine.mem_bytes);
        mp_kv_u64(&b, "fds", 2);
        /* Armed before the pager can serve anything: if it dies from here on, this VM is killed. */
        vm->session = true;
        r = call(p, "session.open", &b, (int[]){ image_fd, pager_end }, 2, &a, e);
        if (r == 0 && a.n_fds != 1)
                r = err_set(e, ERR_PAGER, -EPROTO, "the pager sent no image memory");
        if (r < 0) {
                pager_session_close(p, vm);
                return r;
        }
        *ret_memfd = TAKE_FD(a.fds[0]);
        *ret_sock = TAKE_FD(vmm_end);
        return 0;
}

int pager_session_open(struct pager *p, struct vm *vm, int image_fd, int *ret_memfd, int *ret_sock, struct err *e) {
        int r = open_once(p, vm, image_fd, ret_memfd, ret_sock, e);

        /* The pager died while it was asked. Nothing of this VM lives yet, so a new one may as well serve it. */
        if (r < 0 && strcmp(e->code, ERR_UNREACHABLE) == 0) {
                vm->lost[0] = '\0'; /* what was lost with the old one was nothing */
                r = open_once(p, vm, image_fd, ret_memfd, ret_sock, e);
        }
        if (r < 0 && strcmp(e->code, ERR_UNREACHABLE) == 0) {
                (void) strcpy(e->code, ERR_PAGER); /* to a client "unreachable" means forkd */
                return err_prefix(e, "the pager died twice while it was opening the memory image of '%s'", vm->name);
        }
        return r < 0 ? err_prefix(e, "opening the memory image of '%s'", vm->name) : 0;
}

void pager_session_close(struct pager *p, struct vm *vm) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct err e;

        vm->uffd = close_fd(vm->uffd);
        if (!vm->session)
                return;
        vm->session = false;
        if (!pager_is_up(p))
                return;
        mp_buf_init(&b);
        put_session(&b, vm, 0);
        if (call(p, "session.close", &b, NULL, 0, NULL, &e) < 0)
                log_debug("closing the pager session of %s: %s", vm->name, e.message);
}

/* One answer's worth of ranges, from page @first on, appended to @out. *ret_next: where to go on, 0 at the end. */
static int removed_part(struct pager *p, struct vm *vm, uint64_t first, struct mp_buf *out, uint64_t *ret_n, uint64_t *ret_next,
                        struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        const msgpack_object *ranges;
        int r;

        mp_buf_init(&b);
        put_session(&b, vm, 1);
        mp_kv_u64(&b, "first_page", first);
        r = call(p, "session.removed", &b, NULL, 0, &a, e);
        if (r < 0)
                return r;
        ranges = mp_get_array(&a.doc.root, "ranges");
        *ret_next = 0;
        (void) mp_get_u64(&a.doc.root, "next", ret_next);
        if (!ranges || (*ret_next != 0 && *ret_next <= first))
                return err_set(e, ERR_PAGER, -EPROTO, "the pager's answer to session.removed makes no sense");
        for (uint32_t i = 0; i < ranges->via.array.size; i++)
                mp_obj(out, &ranges->via.array.ptr[i]);
        *ret_n = ranges->via.array.size;
        return out->failed ? err_errno(e, -ENOMEM, "reading the discarded pages") : 0;
}

int pager_session_removed(struct pager *p, struct vm *vm, struct mp_buf *ret, uint64_t *ret_n, struct err *e) {
        uint64_t next = 0, total = 0, n = 0;

        do {
                int r;

                if (!pager_is_up(p))
                        return err_set(e, ERR_PAGER, -EPIPE, "the pager is gone");
                r = removed_part(p, vm, next, ret, &n, &next, e);
                if (r < 0)
                        return r;
                total += n;
        } while (next != 0);
        *ret_n = total;
        return 0;
}

int pager_status(struct pager *p, struct mp_buf *ret, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        const msgpack_object_map *m;
        int r;

        if (!pager_is_up(p)) {
                mp_map(ret, 1);
                mp_kv_bool(ret, "up", false);
                return 0;
        }
        r = call(p, "status", NULL, NULL, 0, &a, e);
        if (r < 0)
                return r;
        if (a.doc.root.type != MSGPACK_OBJECT_MAP)
                return err_set(e, ERR_PAGER, -EPROTO, "the pager's status is no map");
        m = &a.doc.root.via.map;
        mp_map(ret, m->size + 1u);
        mp_kv_bool(ret, "up", true);
        for (uint32_t i = 0; i < m->size; i++) {
                mp_obj(ret, &m->ptr[i].key);
                mp_obj(ret, &m->ptr[i].val);
        }
        return 0;
}

int pager_mark_sessions(struct pager *p, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        const msgpack_object *sessions;
        int r;

        r = call(p, "status", NULL, NULL, 0, &a, e);
        if (r < 0)
                return err_prefix(e, "asking the pager for its sessions");
        sessions = mp_get_array(&a.doc.root, "sessions");
        for (uint32_t i = 0; sessions && i < sessions->via.array.size; i++) {
                const msgpack_object *s = &sessions->via.array.ptr[i];
                bool attached = false, failed = false;
                struct vm *vm = session_of(p, s);

                (void) mp_get_bool(s, "attached", &attached);
                (void) mp_get_bool(s, "failed", &failed);
                if (vm)
                        vm->session_known = attached && !failed;
        }
        return 0;
}

void pager_shutdown(struct pager *p) {
        struct rpc_conn *c = p->conn;
        struct err e;
        int r;

        if (!pager_is_up(p)) {
                (void) unlink(p->socket_path); /* of one that died */
                (void) unlink(p->pid_path);
                return;
        }
        if (p->death)
                event_free(TAKE_PTR(p->death));
        r = rpc_call_co(c, "shutdown", NULL, NULL, 0, CALL_TIMEOUT_MS, NULL, &e);
        if (r < 0 && r != -ECANCELED && r != -EPIPE)
                log_warning("the pager refuses to end: %s", e.message);
        if (co_wait_fd(p->pidfd, EV_READ, CALL_TIMEOUT_MS) < 0) {
                log_warning("killing the pager (pid %d): it does not end", (int) p->pid);
                best_effort(spawn_kill(p->pidfd, SIGKILL));
        }
        best_effort(spawn_wait(p->pidfd, CALL_TIMEOUT_MS, NULL));
        pager_forget(p);
        (void) unlink(p->socket_path);
        (void) unlink(p->pid_path);
}
