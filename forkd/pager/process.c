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
 * The pidfd tells of the pager's death. Its guests' faults then wait, for each VMM and forkd keep its userfaultfd open:
 * they never read zeros. succession.c says what becomes of them. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/events.h"
#include "forkd/host/jail.h"
#include "forkd/monitor/monitor.h"
#include "forkd/pidfile.h"
#include "forkd/vmm/cgroup.h"
#include "pager/flight.h"

#define HELLO_TIMEOUT_MS 10000
#define PAGER_LISTEN_FD 3

/* ---- a process ---- */

struct pager_process *pager_process_ref(struct pager_process *o) {
        o->refs++;
        return o;
}

static void drop_conn(struct pager_process *o) {
        struct rpc_conn *c = TAKE_PTR(o->conn);

        if (c) {
                rpc_conn_close(c);
                rpc_conn_unref(c);
        }
}

/* It has ended, or is not ours to watch any more. */
static void let_go(struct pager_process *o) {
        monitor_pager_gone(o->p->d->monitor, o);
        pager_totals_fold(o);
        if (o->death)
                event_free(TAKE_PTR(o->death));
        o->pidfd = close_fd(o->pidfd);
        drop_conn(o);
        if (o->pause) /* nobody's heart to watch */
                co_wake(o->pause, 0);
}

void pager_process_unref(struct pager_process *o) {
        if (!o || --o->refs > 0)
                return;
        let_go(o);
        if (o->flight)
                (void) munmap(o->flight, PAGER_FLIGHT_BYTES);
        free(o);
}

static int process_new(struct pager *p, struct pager_process **ret) {
        struct pager_process *o = calloc(1, sizeof(*o));

        if (!o)
                return -ENOMEM;
        *o = (struct pager_process){ .refs = 1, .p = p, .serial = ++p->n_processes, .pidfd = -1 };
        *ret = o;
        return 0;
}

bool pager_process_is_up(const struct pager_process *o) {
        return o && o->conn && rpc_conn_is_open(o->conn);
}

void pager_process_kill(struct pager_process *o, const char *why) {
        if (o->pidfd < 0)
                return;
        log_error("killing the pager (pid %d): %s", (int) o->pid, why);
        best_effort(spawn_kill(o->pidfd, SIGKILL)); /* on_death does the rest */
}

/* By a signal, or a debugger: as /proc/<pid>/stat has it. */
static bool is_stopped(pid_t pid) {
        cleanup_free char *text = NULL;
        char path[40];
        const char *p;

        (void) snprintf(path, sizeof(path), "/proc/%d/stat", (int) pid);
        if (io_read_file(AT_FDCWD, path, 4096, &text, NULL) < 0 || !(p = strrchr(text, ')')) || p[1] != ' ')
                return false;
        return p[2] == 'T' || p[2] == 't';
}

void pager_process_hangs(struct pager_process *o, const char *why) {
        if (o->pidfd < 0)
                return;
        o->hung = !is_stopped(o->pid); /* who is stopped from outside does not hang at the fault at hand */
        o->p->counts.hangs++;
        events_add(o->p->d->events, "pager.hangs", NULL, "pager %d: %s", (int) o->pid, why);
        pager_process_kill(o, why);
}

/* Without its control connection a pager cannot tell of failures: it counts as lost. */
static void on_close(struct rpc_conn *c, int r, void *arg) {
        struct pager_process *o = arg;
        char why[120];

        if (o->conn != c)
                return;
        if (o->pidfd >= 0 && !o->p->d->stopping && !o->leaving) {
                (void) snprintf(why, sizeof(why), "its connection was lost (%s)", r < 0 ? strerror(-r) : "closed");
                pager_process_kill(o, why);
        }
        rpc_conn_unref(TAKE_PTR(o->conn));
}

static const struct rpc_handlers pager_handlers = { .on_message = pager_on_message, .on_close = on_close };

/* Whoever sends SIGKILL, the kernel that is out of memory too, does not mean the fault at hand. -1: nobody can tell, for
 * an earlier forkd was its parent. */
static bool died_of_itself(const struct pager_process *o, int status) {
        return o->hung || status == -1 || !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL;
}

/* pager_bring_up and the loop may both see its end: whoever is first. */
static void bury(struct pager_process *o) {
        struct pager *p = o->p;
        bool was_serving;
        int status = -1;

        best_effort(spawn_wait(o->pidfd, 0, &status));
        log_error("the pager (pid %d) has ended (wait status %d)", (int) o->pid, status);
        p->counts.deaths++;
        events_add(p->d->events, "pager.lost", NULL, "pager %d has ended (wait status %d)", (int) o->pid, status);
        if (died_of_itself(o, status))
                pager_suspects_note(p, o);
        let_go(o);
        was_serving = p->serving == o;
        if (was_serving)
                p->serving = NULL; /* a successor is looked for from here on */
        pager_lost(p, o);
        if (was_serving)
                pager_process_unref(o);
}

static void on_death(evutil_socket_t fd, short what, void *arg) {
        bury(arg);
}

/* ---- coming into being ---- */

static int fetch_flight(struct pager_process *o, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        struct stat st;
        int r, seals;
        void *map;

        r = rpc_call_co(o->conn, "flight", NULL, NULL, 0, HELLO_TIMEOUT_MS, &a, e);
        if (r < 0)
                return r;
        /* One that is smaller than its map would be SIGBUS for us. */
        seals = a.n_fds == 1 ? fcntl(a.fds[0], F_GET_SEALS) : -1; /* -1: no memfd at all */
        if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(a.fds[0], &st) < 0 || st.st_size < (off_t) PAGER_FLIGHT_BYTES)
                return err_set(e, ERR_PAGER, -EPROTO, "the pager's flight recorder is none");
        map = mmap(NULL, PAGER_FLIGHT_BYTES, PROT_READ, MAP_SHARED, a.fds[0], 0);
        if (map == MAP_FAILED)
                return err_errno(e, -errno, "mapping the pager's flight recorder");
        o->flight = map;
        return 0;
}

/* Says hello on @fd (taken) and watches process @pid. */
static int greet(struct pager_process *o, int fd, const char *path, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        uint64_t pid = 0, protocol = 0;
        int r;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "version", FORKD_VERSION);
        r = rpc_conn_new(o->p->d->base, fd, &pager_handlers, o, &o->conn);
        if (r < 0)
                return err_errno(e, r, "connecting to the pager");
        r = rpc_call_co(o->conn, "hello", &b, NULL, 0, HELLO_TIMEOUT_MS, &a, e);
        if (r < 0) {
                (void) strcpy(e->code, ERR_PAGER); /* to a client "unreachable" means forkd */
                return err_prefix(e, "the pager does not answer");
        }
        if (mp_get_u64(&a.doc.root, "pid", &pid) < 0 || mp_get_u64(&a.doc.root, "protocol", &protocol) < 0 || protocol != 1 ||
            pid == 0 || pid > INT32_MAX)
                return err_set(e, ERR_PAGER, -EPROTO, "what listens on %s is no pager of this version", path);
        (void) mp_get_str(&a.doc.root, "version", o->version, sizeof(o->version));
        if (o->pidfd < 0) {
                r = spawn_pidfd_open((pid_t) pid, 0, &o->pidfd);
                if (r < 0)
                        return err_errno(e, r, "watching the pager (pid %d)", (int) pid);
        }
        o->pid = (pid_t) pid;
        r = fetch_flight(o, e);
        if (r < 0)
                return r;
        o->death = event_new(o->p->d->base, o->pidfd, EV_READ, on_death, o);
        if (!o->death || event_add(o->death, NULL) < 0)
                return err_errno(e, -ENOMEM, "watching the pager");
        pager_watch(o);
        monitor_pager_born(o->p->d->monitor, o);
        return 0;
}

/* Nobody can tell any more what a pager does that does not answer; as long as it lives, its socket would be found
 * again and again. */
static int kill_mute(struct pager *p, const char *suffix, struct err *e) {
        char path[sizeof(p->pid_path) + 8];
        cleanup_fd int pidfd = -1;
        pid_t pid;
        int r;

        (void) snprintf(path, sizeof(path), "%s%s", p->pid_path, suffix);
        r = pidfile_open(path, p->d->boot_id, &pid, &pidfd);
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
        (void) snprintf(path, sizeof(path), "%s%s", p->socket_path, suffix);
        (void) unlink(path);
        return -ENOENT;
}

int pager_process_find(struct pager *p, const char *suffix, struct pager_process **ret, struct err *e) {
        __attribute__((cleanup(pager_process_unref_p))) struct pager_process *o = NULL;
        char path[sizeof(p->socket_path) + 8];
        int fd, r;

        (void) snprintf(path, sizeof(path), "%s%s", p->socket_path, suffix);
        if (io_connect_unix(path, &fd) < 0)
                return -ENOENT;
        r = process_new(p, &o);
        if (r < 0) {
                (void) close_fd(fd);
                return err_errno(e, r, "connecting to the pager");
        }
        r = greet(o, fd, path, e);
        if (r < 0) {
                let_go(o);
                return kill_mute(p, suffix, e);
        }
        log_info("found the pager (pid %d)", (int) o->pid);
        *ret = TAKE_PTR(o);
        return 0;
}

int pager_process_spawn(struct pager *p, const char *suffix, struct pager_process **ret, struct err *e) {
        __attribute__((cleanup(pager_process_unref_p))) struct pager_process *o = NULL;
        char socket_path[sizeof(p->socket_path) + 8], pid_path[sizeof(p->pid_path) + 8];
        char prog[PATH_MAX], log_path[FORKD_MAX_DIR + 16], workers[16], idle[16], budget[24], level[16], record[16], user[16];
        const char *argv[20] = { prog, "--control",   socket_path, "--control-fd", "3", "--idle-image-seconds",
                                 idle, "--log-level", level };
        unsigned n_args = 9;
        cleanup_fd int listen_fd = -1, log_fd = -1, conn_fd = -1, cgroup_fd = -1;
        struct err ignored;
        int r;

        (void) snprintf(socket_path, sizeof(socket_path), "%s%s", p->socket_path, suffix);
        (void) snprintf(pid_path, sizeof(pid_path), "%s%s", p->pid_path, suffix);
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
        if (p->d->cfg.jail) {
                (void) snprintf(user, sizeof(user), "%u", (unsigned) forkd_uid_base(p->d));
                argv[n_args++] = "--user";
                argv[n_args++] = user;
        }
        r = io_listen_unix(socket_path, 0600, &listen_fd);
        if (r < 0)
                return err_errno(e, r, "listening on %s", socket_path);
        log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (log_fd < 0)
                return err_errno(e, -errno, "opening %s", log_path);
        r = io_connect_unix(socket_path, &conn_fd);
        if (r < 0)
                return err_errno(e, r, "connecting to %s", socket_path);
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
                .no_new_privs = true,
        };
        r = process_new(p, &o);
        if (r == 0)
                r = spawn_process(&sp, &o->pid, &o->pidfd);
        if (r < 0)
                return err_errno(e, r, "starting the pager (%s)", prog);
        listen_fd = close_fd(listen_fd); /* if it ends at once, so does our connection */
        r = greet(o, TAKE_FD(conn_fd), socket_path, e);
        if (r < 0) {
                best_effort(spawn_kill(o->pidfd, SIGKILL));
                best_effort(spawn_wait(o->pidfd, 1000, NULL));
                let_go(o);
                return err_hint(e, "see %s", log_path);
        }
        log_info("started the pager (pid %d)", (int) o->pid);
        events_add(p->d->events, "pager.started", NULL, "pager %d", (int) o->pid);
        r = pidfile_write(pid_path, p->d->boot_id, o->pid);
        if (r < 0)
                log_warning("noting the pager's pid in %s: %s", pid_path, strerror(-r));
        *ret = TAKE_PTR(o);
        return 0;
}

int pager_bring_up(struct pager *p, struct err *e) {
        struct pager_process *dying = p->serving;
        int r;

        if (pager_process_is_up(dying))
                return 0;
        /* One that we have lost is dying: its successor starts when its guests have been told. */
        if (dying) {
                dying = pager_process_ref(dying);
                if (dying->pidfd >= 0 && co_wait_fd(dying->pidfd, EV_READ, PAGER_CALL_TIMEOUT_MS) < 0)
                        log_error("the pager (pid %d) does not die", (int) dying->pid);
                if (p->serving == dying)
                        bury(dying);
                pager_process_unref(dying);
        }
        r = pager_process_find(p, "", &p->serving, e);
        return r == -ENOENT ? pager_process_spawn(p, "", &p->serving, e) : r;
}

/* ---- calls ---- */

/* A call went without an answer. A slow one may take long, a hello never does: without that the pager hangs, and what
 * its guests wait for will not come. */
static void suspect(struct pager_process *o) {
        struct rpc_conn *c = o->conn;
        struct err e;

        if (o->suspected || !pager_process_is_up(o) || o->pidfd < 0)
                return;
        o->suspected = true;
        if (rpc_call_co(c, "hello", NULL, NULL, 0, HELLO_TIMEOUT_MS, NULL, &e) == -ETIMEDOUT && o->conn == c) {
                pager_process_hangs(o, "it answers nothing");
        }
        o->suspected = false;
}

int pager_process_call(struct pager_process *o, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds,
                       struct rpc_answer *ret, struct err *e) {
        return pager_process_call_within(o, PAGER_CALL_TIMEOUT_MS, method, params, fds, n_fds, ret, e);
}

int pager_process_call_within(struct pager_process *o, unsigned timeout_ms, const char *method, const struct mp_buf *params,
                              const int *fds, size_t n_fds, struct rpc_answer *ret, struct err *e) {
        int r;

        if (!pager_process_is_up(o))
                return err_set(e, ERR_PAGER, -EPIPE, "the pager is gone");
        o = pager_process_ref(o);
        r = rpc_call_co(o->conn, method, params, fds, n_fds, (int) timeout_ms, ret, e);
        if (r == -ETIMEDOUT && timeout_ms >= PAGER_CALL_TIMEOUT_MS)
                suspect(o);
        pager_process_unref(o);
        /* Unreachable: to a client that means forkd. Not connected: it has died since it was looked at. */
        if (r == -ENOTCONN || (r < 0 && strcmp(e->code, ERR_UNREACHABLE) == 0)) {
                (void) strcpy(e->code, ERR_PAGER);
                r = e->r = -EPIPE;
        }
        return r;
}

/* ---- the end ---- */

void pager_process_end(struct pager_process *o) {
        struct err e;
        int r;

        o->leaving = true;
        if (pager_process_is_up(o))
                pager_totals_ask(o);
        if (o->death)
                event_free(TAKE_PTR(o->death));
        r = pager_process_is_up(o) ? rpc_call_co(o->conn, "shutdown", NULL, NULL, 0, PAGER_CALL_TIMEOUT_MS, NULL, &e) : 0;
        if (r < 0 && r != -ECANCELED && r != -EPIPE)
                log_warning("the pager (pid %d) refuses to end: %s", (int) o->pid, e.message);
        if (o->pidfd < 0) {
                pager_unwatch(o);
                return;
        }
        if ((r < 0 && r != -ECANCELED && r != -EPIPE) || co_wait_fd(o->pidfd, EV_READ, PAGER_CALL_TIMEOUT_MS) < 0) {
                pager_process_kill(o, "it does not end");
                best_effort(co_wait_fd(o->pidfd, EV_READ, PAGER_CALL_TIMEOUT_MS));
        }
        best_effort(spawn_wait(o->pidfd, 0, NULL));
        let_go(o);
        pager_unwatch(o);
}

void pager_shutdown(struct pager *p) {
        struct pager_process *o = TAKE_PTR(p->serving);
        struct err e;

        if (o) {
                pager_process_end(o);
                pager_process_unref(o);
        }
        (void) unlink(p->socket_path); /* of one that died */
        (void) unlink(p->pid_path);
        if (cgroup_remove(p->d->instance, CGROUP_PAGER, &e) < 0)
                log_debug("%s", e.message);
}

int pager_stop(struct pager *p, struct err *e) {
        unsigned n = 0;
        struct vm *vm;
        int r = co_sem_acquire(&p->turn, PAGER_CALL_TIMEOUT_MS);

        if (r < 0)
                return err_set(e, ERR_BUSY, -EBUSY, "the pager is being replaced");
        TAILQ_FOREACH (vm, &p->d->vms, entry)
                n += vm->session;
        if (n > 0) {
                r = err_set(e, ERR_BUSY, -EBUSY, "%u VMs live on the pager's memory", n);
                (void) err_hint(e, "put them on standby or stop them first; 'forkctl pager upgrade' replaces it below them");
        } else {
                p->closed = true; /* who opens a session now waits, and starts another */
                pager_shutdown(p);
                p->closed = false;
        }
        co_sem_release(&p->turn);
        return r;
}

/* ---- the object ---- */

int pager_new(struct daemon *d, struct pager **ret) {
        struct pager *p = calloc(1, sizeof(*p));

        if (!p)
                return -ENOMEM;
        p->d = d;
        co_sem_init(&p->turn, 1);
        co_sem_init(&p->asking, 1);
        (void) snprintf(p->socket_path, sizeof(p->socket_path), "%s/pager.sock", d->run_dir);
        (void) snprintf(p->pid_path, sizeof(p->pid_path), "%s/pager.pid", d->run_dir);
        *ret = p;
        return 0;
}

void pager_free(struct pager *p) {
        if (!p)
                return;
        pager_process_unref(p->serving);
        pager_process_unref(p->next);
        rpc_answer_clear(&p->answer);
        free(p);
}

int pager_find(struct pager *p, struct err *e) {
        int r = pager_process_find(p, "", &p->serving, e);

        if (r == 0 || r == -ENOENT)
                r = pager_process_find(p, PAGER_NEXT, &p->next, e);
        if (r == -ENOENT)
                pager_remove_next(p);
        return r == -ENOENT ? 0 : r;
}

bool pager_is_up(const struct pager *p) {
        return pager_process_is_up(p->serving);
}

pid_t pager_pid(const struct pager *p) {
        return p->serving ? p->serving->pid : 0;
}

bool pager_owns(const struct pager *p, pid_t pid) {
        const struct pager_process *const all[] = { p->serving, p->next, p->leaving };

        for (size_t i = 0; i < ARRAY_LEN(all); i++)
                if (all[i] && all[i]->pidfd >= 0 && all[i]->pid == pid)
                        return true;
        return false;
}

const struct pager_counts *pager_counts(const struct pager *p) {
        return &p->counts;
}

void pager_settle(struct pager *p, int timeout_ms) {
        if (p->replacing && co_sem_acquire(&p->turn, timeout_ms) < 0)
                log_error("the pager is still being replaced: guests may be left without one");
        else if (p->replacing)
                co_sem_release(&p->turn);
}

void pager_leave(struct pager *p) {
        if (p->serving)
                pager_unwatch(p->serving);
        if (p->next)
                pager_unwatch(p->next);
}
