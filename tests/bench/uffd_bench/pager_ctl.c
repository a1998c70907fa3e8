/* SPDX-License-Identifier: MIT */
#include "tests/bench/uffd_bench/pager_ctl.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "common/io.h"
#include "common/spawn.h"

#define PAGER_CONTROL_FD 3
#define STOP_MS 10000

/* ---- notifications ---- */

static void on_message(struct rpc_msg *msg, void *arg) {
        struct bench_pager *p = arg;
        struct bench_note *n;

        if (msg->is_request)
                return;
        if (p->n_notes == BENCH_MAX_NOTES) /* the oldest is one that nobody waits for */
                memmove(p->notes, p->notes + 1, --p->n_notes * sizeof(p->notes[0]));
        n = &p->notes[p->n_notes++];
        *n = (struct bench_note){ 0 };
        (void) snprintf(n->method, sizeof(n->method), "%s", msg->method);
        (void) mp_get_str(msg->params, "session", n->session, sizeof(n->session));
        if (mp_get_str(msg->params, "reason", n->text, sizeof(n->text)) == -ENOENT)
                (void) mp_get_str(msg->params, "error", n->text, sizeof(n->text));
}

static void on_close(struct rpc_conn *c, int r, void *arg) {
        ((struct bench_pager *) arg)->closed = true;
}

static const struct rpc_handlers handlers = { .on_message = on_message, .on_close = on_close };

static bool take_note(struct bench_pager *p, const char *method, const char *session, struct bench_note *ret) {
        for (unsigned i = 0; i < p->n_notes; i++) {
                if (strcmp(p->notes[i].method, method) != 0 || (session && strcmp(p->notes[i].session, session) != 0))
                        continue;
                *ret = p->notes[i];
                p->n_notes--;
                memmove(p->notes + i, p->notes + i + 1, (p->n_notes - i) * sizeof(p->notes[0]));
                return true;
        }
        return false;
}

int bench_pager_check(void *arg, struct err *e) {
        struct bench_pager *p = arg;
        struct bench_note n;

        (void) event_base_loop(p->base, EVLOOP_NONBLOCK);
        if (take_note(p, "session.failed", NULL, &n))
                return err_set(e, ERR_PAGER, -EIO, "the pager failed a session: %s", n.text);
        if (p->closed)
                return err_set(e, ERR_PAGER, -EPIPE, "the pager closed its connection");
        return 0;
}

/** Runs the loop for what comes next, within the deadline. */
static int turn(struct bench_pager *p, uint64_t start, const char *what, struct err *e) {
        const struct timeval tick = { .tv_usec = 100000 }; /* only so that the deadline is looked at */

        if (ms_since(start) > BENCH_DEADLINE_MS)
                return err_set(e, ERR_TIMEOUT, -ETIMEDOUT, "the pager: nothing came of %s within %d s", what,
                               BENCH_DEADLINE_MS / 1000);
        (void) event_base_loopexit(p->base, &tick);
        (void) event_base_loop(p->base, EVLOOP_ONCE);
        return 0;
}

int bench_pager_wait(struct bench_pager *p, const char *method, const char *session, struct err *e) {
        uint64_t start = now_ns();
        struct bench_note n;
        int r;

        while (!take_note(p, method, session, &n)) {
                r = bench_pager_check(p, e);
                if (r == 0)
                        r = turn(p, start, method, e);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* ---- calls ---- */

struct waiting {
        struct bench_answer *answer;
        struct err e;
        int r;
        bool done;
};

static void on_result(const struct rpc_result *res, void *arg) {
        struct waiting *w = arg;

        w->done = true;
        w->r = res->r;
        w->e = res->e;
        if (res->r < 0 || !w->answer)
                return;
        w->answer->raw = malloc(res->raw_len + 1);
        if (!w->answer->raw) {
                w->r = err_errno(&w->e, -ENOMEM, "keeping an answer");
                return;
        }
        memcpy(w->answer->raw, res->raw, res->raw_len);
        w->r = mp_parse(w->answer->raw, res->raw_len, &w->answer->doc);
        if (w->r < 0) {
                w->r = err_errno(&w->e, w->r, "reading an answer");
                free(TAKE_PTR(w->answer->raw));
                return;
        }
        if (res->n_fds > 0)
                w->answer->fd = TAKE_FD(res->fds[0]);
}

void bench_answer_clear(struct bench_answer *a) {
        if (a->raw)
                mp_doc_clear(&a->doc);
        free(TAKE_PTR(a->raw));
        a->fd = close_fd(a->fd);
}

int bench_pager_call(struct bench_pager *p, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds,
                     struct bench_answer *ret, struct err *e) {
        cleanup_bench_answer struct bench_answer answer = { .fd = -1 };
        struct waiting w = { .answer = &answer };
        uint64_t start = now_ns();
        uint32_t id;
        int r = rpc_call(p->conn, method, params, fds, n_fds, on_result, &w, &id);

        if (r < 0)
                return err_errno(e, r, "the pager: %s", method);
        while (!w.done) {
                r = turn(p, start, method, e);
                if (r < 0) {
                        rpc_call_cancel(p->conn, id);
                        return r;
                }
        }
        if (w.r < 0) {
                *e = w.e;
                return err_prefix(e, "the pager: %s", method);
        }
        if (ret) {
                *ret = answer;
                answer = (struct bench_answer){ .fd = -1 };
        }
        return 0;
}

/* ---- its life ---- */

static int spawn_pager(const struct bench_pager_options *o, const char *path, int listen_fd, struct bench_pager *p) {
        char workers[16], idle[16], record[16];
        const char *argv[24];
        size_t n = 0;

        (void) snprintf(workers, sizeof(workers), "%u", o->workers);
        (void) snprintf(idle, sizeof(idle), "%u", o->idle_seconds);
        (void) snprintf(record, sizeof(record), "%u", o->record_seconds);
        const char *const fixed[] = { o->program, "--control",   path,    "--control-fd",
                                      "3",        "--log-level", "error", "--idle-image-seconds",
                                      idle };
        for (; n < ARRAY_LEN(fixed); n++)
                argv[n] = fixed[n];
        if (o->workers > 0) {
                argv[n++] = "--workers";
                argv[n++] = workers;
        }
        if (o->record_seconds > 0) {
                argv[n++] = "--record-seconds";
                argv[n++] = record;
        }
        /* What is measured is how pages get there: no page is to be given back meanwhile. Whether all that fits into memory
         * was looked at before. */
        argv[n++] = "--memory-budget";
        argv[n++] = "1024G";
        argv[n] = NULL;

        const struct spawn_fd passed[] = { { STDERR_FILENO, STDERR_FILENO }, { listen_fd, PAGER_CONTROL_FD } };
        const struct spawn_params params = {
                .argv = argv,
                .fds = passed,
                .n_fds = ARRAY_LEN(passed),
                .cgroup_fd = -1,
                .death_signal = SIGKILL,
        };
        return spawn_process(&params, &p->pid, &p->pidfd);
}

static int read_hello(struct bench_pager *p, struct err *e) {
        cleanup_bench_answer struct bench_answer a = { .fd = -1 };
        uint64_t workers = 0;
        int r = bench_pager_call(p, "status", NULL, NULL, 0, &a, e);

        if (r < 0)
                return r;
        if (mp_get_u64(&a.doc.root, "workers", &workers) < 0)
                return err_set(e, ERR_PAGER, -EBADMSG, "the pager's status does not tell its workers");
        p->workers = (unsigned) workers;
        return 0;
}

static int start(const struct bench_pager_options *o, const char *path, struct bench_pager *p, struct err *e) {
        cleanup_fd int listen_fd = -1;
        int fd, r = io_listen_unix(path, 0600, &listen_fd);

        if (r == 0)
                r = spawn_pager(o, path, listen_fd, p);
        if (r < 0)
                return err_errno(e, r, "starting %s", o->program);
        r = io_connect_unix(path, &fd);
        if (r == 0)
                r = rpc_conn_new(p->base, fd, &handlers, p, &p->conn);
        if (r < 0)
                return err_errno(e, r, "connecting to the pager");
        listen_fd = close_fd(listen_fd); /* the pager's is the only one now: if it dies we hear of it */
        return read_hello(p, e);
}

int bench_pager_start(const struct bench_pager_options *o, struct bench_pager *ret, struct err *e) {
        char dir[PATH_MAX / 2], path[PATH_MAX / 2 + 16];
        int r;

        *ret = (struct bench_pager){ .pidfd = -1 };
        (void) snprintf(dir, sizeof(dir), "%s/uffd-bench-XXXXXX", o->run_dir);
        if (!mkdtemp(dir))
                return err_errno(e, -errno, "making a directory in %s", o->run_dir);
        (void) snprintf(path, sizeof(path), "%s/pager.sock", dir);
        ret->base = event_base_new();
        r = ret->base ? start(o, path, ret, e) : err_errno(e, -ENOMEM, "making an event loop");
        /* Connected once and for all: nothing is left behind however this ends. */
        (void) unlink(path);
        (void) rmdir(dir);
        if (r < 0)
                bench_pager_stop(ret);
        return r;
}

void bench_pager_stop(struct bench_pager *p) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct err e = { 0 };

        mp_buf_init(&b);
        if (p->conn && !p->closed) {
                mp_map(&b, 1);
                mp_kv_bool(&b, "force", true);
                best_effort(bench_pager_call(p, "shutdown", &b, NULL, 0, NULL, &e));
        }
        if (p->pid > 0 && spawn_wait(p->pidfd, p->closed ? 0 : STOP_MS, NULL) < 0) {
                best_effort(spawn_kill(p->pidfd, SIGKILL));
                best_effort(spawn_wait(p->pidfd, STOP_MS, NULL));
        }
        p->pid = 0;
        p->pidfd = close_fd(p->pidfd);
        if (p->conn)
                rpc_conn_close(p->conn);
        rpc_conn_unref(TAKE_PTR(p->conn));
        if (p->base)
                event_base_free(TAKE_PTR(p->base));
}

/* ---- sessions ---- */

int bench_session_open(struct bench_pager *p, const struct bench_image *img, int workingset_fd, bool record,
                       struct bench_session *ret, struct err *e) {
        cleanup_bench_answer struct bench_answer a = { .fd = -1 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct bench_session s = BENCH_SESSION_NONE;
        int sv[2], r;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
                return err_errno(e, -errno, "making a socket");
        const int fds[] = { img->fd, sv[0], workingset_fd };
        size_t n_fds = workingset_fd >= 0 ? 3 : 2;
        id_new(s.id);
        mp_buf_init(&b);
        mp_map(&b, record ? 4 : 3);
        mp_kv_str(&b, "session", s.id);
        mp_kv_u64(&b, "ram_bytes", img->n_pages * BENCH_PAGE);
        if (record)
                mp_kv_bool(&b, "record", true);
        mp_kv_u64(&b, "fds", n_fds);
        r = bench_pager_call(p, "session.open", &b, fds, n_fds, &a, e);
        (void) close(sv[0]);
        if (r < 0) {
                (void) close(sv[1]);
                return r;
        }
        s.sock = sv[1];
        s.memfd = TAKE_FD(a.fd);
        (void) mp_get_u64(&a.doc.root, "workingset_pages", &s.workingset_pages);
        *ret = s;
        return 0;
}

void bench_session_clear(struct bench_session *s) {
        s->memfd = close_fd(s->memfd);
        s->sock = close_fd(s->sock);
}

int bench_session_close(struct bench_pager *p, struct bench_session *s, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", s->id);
        r = bench_pager_call(p, "session.close", &b, NULL, 0, NULL, e);
        bench_session_clear(s); /* not before: a socket that hangs up ends the session, too */
        return r;
}

/* ---- status ---- */

static const msgpack_object *find_entry(const msgpack_object *root, const char *list, const char *which) {
        const msgpack_object *a = mp_get_array(root, list);
        char id[ID_LEN + 1];

        if (!a)
                return mp_get(root, list);
        for (uint32_t i = 0; i < a->via.array.size; i++) {
                const msgpack_object *o = &a->via.array.ptr[i];

                if (!which || (mp_get_str(o, "session", id, sizeof(id)) == 0 && !strcmp(id, which)))
                        return o;
        }
        return NULL;
}

int bench_pager_number(struct bench_pager *p, const char *list, const char *which, const char *key, double *ret, struct err *e) {
        cleanup_bench_answer struct bench_answer a = { .fd = -1 };
        const char *dot = strchr(key, '.'), *last = dot ? dot + 1 : key;
        const msgpack_object *o;
        char outer[32];
        int r = bench_pager_call(p, "status", NULL, NULL, 0, &a, e);

        if (r < 0)
                return r;
        o = find_entry(&a.doc.root, list, which);
        if (dot) {
                (void) snprintf(outer, sizeof(outer), "%.*s", (int) (dot - key), key);
                o = mp_get(o, outer);
        }
        if (mp_get_double(o, last, ret) < 0)
                return err_set(e, ERR_PAGER, -ENOENT, "the pager's status has no %s in %s", key, list);
        return 0;
}

int bench_pager_service(struct bench_pager *p, struct bench_times_us *ret, struct err *e) {
        cleanup_bench_answer struct bench_answer a = { .fd = -1 };
        const msgpack_object *service;
        int r = bench_pager_call(p, "status", NULL, NULL, 0, &a, e);

        if (r < 0)
                return r;
        service = mp_get(mp_get(&a.doc.root, "totals"), "service");
        if (mp_get_u64(service, "count", &ret->count) < 0 || mp_get_double(service, "p50_us", &ret->p50) < 0 ||
            mp_get_double(service, "p99_us", &ret->p99) < 0)
                return err_set(e, ERR_PAGER, -EBADMSG, "the pager's status has no service times");
        return 0;
}
