/* SPDX-License-Identifier: MIT */
#include "forkd/worker/worker.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "common/log.h"
#include "common/spawn.h"
#include "forkd/daemon.h"
#include "forkd/vmm/cgroup.h"

#define KILL_TIMEOUT_MS 5000

struct worker {
        TAILQ_ENTRY(worker) entry;
        struct worker_pool *pool;
        struct rpc_conn *conn;
        pid_t pid;
        int pidfd;
};

struct worker_pool {
        struct daemon *d;
        char self[FORKD_MAX_DIR + 16]; /* forkd's own binary */
        TAILQ_HEAD(worker_list, worker) idle, used;
        struct co_sem slots;
        int cgroup_fd; /* which they are born in; -1: none here */
};

static void on_message(struct rpc_msg *msg, void *arg) {
        /* Workers answer; they do not ask. */
        if (msg->is_request) {
                struct err e;

                (void) err_set(&e, ERR_PROTOCOL, -EPROTO, "forkd takes no calls from its workers");
                (void) rpc_reply_err(msg->conn, msg->msgid, &e);
        }
}

static const struct rpc_handlers worker_handlers = { .on_message = on_message };

int worker_pool_new(struct daemon *d, struct worker_pool **ret) {
        struct worker_pool *p = calloc(1, sizeof(*p));
        struct err e;

        if (!p)
                return -ENOMEM;
        p->d = d;
        p->cgroup_fd = -1;
        /* What is still in there are workers of a forkd that was killed, and dying already. */
        if (cgroup_create(d->instance, CGROUP_WORKERS, &p->cgroup_fd, &e) < 0)
                log_debug("workers run without a cgroup of their own: %s", e.message);
        (void) snprintf(p->self, sizeof(p->self), "%s/forkd", d->bin_dir);
        TAILQ_INIT(&p->idle);
        TAILQ_INIT(&p->used);
        co_sem_init(&p->slots, WORKER_MAX);
        *ret = p;
        return 0;
}

static int wait_end(struct worker *w) {
        /* Waiting by the loop first, so that other work goes on; reaping is then at once. */
        if (co_self() && co_wait_fd(w->pidfd, EV_READ, KILL_TIMEOUT_MS) < 0)
                return -ETIMEDOUT;
        return spawn_wait(w->pidfd, KILL_TIMEOUT_MS, NULL);
}

/* Closing the connection ends an idle worker at once; it is reaped by its pidfd. */
static void worker_free(struct worker *w, bool kill) {
        int r;

        if (kill)
                best_effort(spawn_kill(w->pidfd, SIGKILL));
        rpc_conn_unref(w->conn);
        r = wait_end(w);
        if (r < 0 && !kill) {
                best_effort(spawn_kill(w->pidfd, SIGKILL));
                r = wait_end(w);
        }
        if (r < 0)
                log_warning("worker %d does not end", (int) w->pid);
        (void) close_fd(w->pidfd);
        free(w);
}

bool worker_pool_is_busy(const struct worker_pool *p) {
        return !TAILQ_EMPTY(&p->used);
}

void worker_pool_cancel(struct worker_pool *p) {
        struct worker *w;

        TAILQ_FOREACH (w, &p->used, entry)
                best_effort(spawn_kill(w->pidfd, SIGKILL));
}

void worker_pool_free(struct worker_pool *p) {
        struct err e;

        if (!p)
                return;
        for (struct worker *w; (w = TAILQ_FIRST(&p->idle));) {
                TAILQ_REMOVE(&p->idle, w, entry);
                worker_free(w, true);
        }
        if (p->cgroup_fd >= 0 && cgroup_remove(p->d->instance, CGROUP_WORKERS, &e) < 0)
                log_debug("%s", e.message);
        (void) close_fd(p->cgroup_fd);
        free(p);
}

static int worker_start(struct worker_pool *p, struct worker **ret, struct err *e) {
        const char *const argv[] = { p->self, "--worker", "--log-level", log_level_name(), NULL };
        cleanup_fd int ours = -1, theirs = -1;
        struct worker *w = NULL;
        int sv[2], r;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
                return err_errno(e, -errno, "starting a worker");
        ours = sv[0];
        theirs = sv[1];
        struct spawn_fd fds[] = { { theirs, WORKER_FD }, { STDERR_FILENO, STDERR_FILENO } };
        struct spawn_params sp = {
                .argv = argv,
                .fds = fds,
                .n_fds = ARRAY_LEN(fds),
                .cgroup_fd = p->cgroup_fd,
                .death_signal = SIGKILL, /* a worker without forkd has nobody to tell */
                .no_new_privs = true,
                .new_session = true, /* Ctrl-C is for forkd, which lets what is under way end */
        };

        w = calloc(1, sizeof(*w));
        if (!w)
                return err_errno(e, -ENOMEM, "starting a worker");
        w->pool = p;
        r = spawn_process(&sp, &w->pid, &w->pidfd);
        if (r < 0) {
                free(w);
                return err_errno(e, r, "starting a worker (%s)", p->self);
        }
        r = rpc_conn_new(p->d->base, TAKE_FD(ours), &worker_handlers, w, &w->conn);
        if (r < 0) {
                worker_free(w, true);
                return err_errno(e, r, "starting a worker");
        }
        *ret = w;
        return 0;
}

static int get(struct worker_pool *p, struct worker **ret, struct err *e) {
        struct worker *w;

        while ((w = TAILQ_FIRST(&p->idle))) {
                TAILQ_REMOVE(&p->idle, w, entry);
                if (rpc_conn_is_open(w->conn)) {
                        *ret = w;
                        return 0;
                }
                worker_free(w, true);
        }
        return worker_start(p, ret, e);
}

int worker_get(struct worker_pool *p, struct worker **ret, struct err *e) {
        int r;

        r = co_sem_acquire(&p->slots, -1);
        if (r < 0)
                return err_errno(e, r, "waiting for a worker");
        r = get(p, ret, e);
        if (r < 0)
                co_sem_release(&p->slots);
        else
                TAILQ_INSERT_TAIL(&p->used, *ret, entry);
        return r;
}

void worker_put(struct worker *w, bool broken) {
        struct worker_pool *p;

        if (!w)
                return;
        p = w->pool;
        TAILQ_REMOVE(&p->used, w, entry);
        if (!broken && rpc_conn_is_open(w->conn) && TAILQ_EMPTY(&p->idle) && !p->d->stopping)
                TAILQ_INSERT_TAIL(&p->idle, w, entry);
        else
                worker_free(w, broken);
        co_sem_release(&p->slots);
}

struct rpc_conn *worker_conn(struct worker *w) {
        return w->conn;
}

int worker_do(struct worker_pool *p, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds,
              int timeout_ms, struct rpc_answer *ret, struct err *e) {
        struct worker *w;
        int r;

        r = worker_get(p, &w, e);
        if (r < 0)
                return r;
        r = rpc_call_co(worker_conn(w), method, params, fds, n_fds, timeout_ms, ret, e);
        /* An error that the worker itself reported leaves it whole; anything else does not. */
        worker_put(w, r < 0 && r != -EREMOTEIO);
        return r;
}
