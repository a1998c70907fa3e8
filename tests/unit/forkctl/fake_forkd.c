/* SPDX-License-Identifier: MIT */
#include "fake_forkd.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <setjmp.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "common/spawn.h"
#include "common/json.h"

/* ---- JSON as MessagePack ---- */

static void put_json(struct mp_buf *b, const json_t *j) {
        const char *key;
        json_t *v;
        size_t i;

        switch (json_typeof(j)) {
        case JSON_OBJECT:
                mp_map(b, json_object_size(j));
                json_object_foreach ((json_t *) j, key, v) {
                        mp_key(b, key);
                        put_json(b, v);
                }
                break;
        case JSON_ARRAY:
                mp_array(b, json_array_size(j));
                json_array_foreach ((json_t *) j, i, v)
                        put_json(b, v);
                break;
        case JSON_STRING:
                mp_strn(b, json_string_value(j), json_string_length(j));
                break;
        case JSON_INTEGER:
                mp_i64(b, json_integer_value(j));
                break;
        case JSON_REAL:
                mp_double(b, json_real_value(j));
                break;
        case JSON_TRUE:
        case JSON_FALSE:
                mp_bool(b, json_is_true(j));
                break;
        case JSON_NULL:
                mp_nil(b);
                break;
        }
}

void fake_reply_on(struct rpc_conn *conn, uint32_t msgid, const char *json) {
        cleanup_json json_t *j = json_loads(json, JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r;

        assert_non_null(j);
        mp_buf_init(&b);
        put_json(&b, j);
        r = rpc_reply(conn, msgid, &b, NULL, 0);
        assert_true(r == 0 || r == -ENOTCONN); /* a client that failed may be gone already */
}

void fake_reply(struct rpc_msg *m, const char *json) {
        fake_reply_on(m->conn, m->msgid, json);
}

void fake_notify(struct rpc_conn *conn, const char *method, const char *json, const void *data, size_t len) {
        cleanup_json json_t *j = json_loads(json, 0, NULL);
        cleanup_mp_buf struct mp_buf b = { 0 };
        const char *key;
        json_t *v;

        assert_non_null(j);
        mp_buf_init(&b);
        mp_map(&b, json_object_size(j) + (data ? 1 : 0));
        json_object_foreach (j, key, v) {
                mp_key(&b, key);
                put_json(&b, v);
        }
        if (data)
                mp_kv_bin(&b, "data", data, len);
        (void) rpc_notify(conn, method, &b, NULL, 0);
}

/* ---- the server ---- */

static void log_request(struct fake *f, const struct rpc_msg *m) {
        cleanup_json json_t *j = m->params ? json_from_mp(m->params) : json_object();
        cleanup_free char *text = json_dumps(j, JSON_SORT_KEYS);
        char *old = f->log;

        assert_true(asprintf(&f->log, "%s%s %s\n", old ? old : "", m->method, text) > 0);
        free(old);
}

static void on_message(struct rpc_msg *m, void *arg) {
        struct fake *f = arg;
        struct err e;

        if (m->is_request)
                log_request(f, m);
        for (const struct answer *a = f->answers; a && a->method && m->is_request; a++) {
                if (strcmp(a->method, m->method) != 0)
                        continue;
                if (a->result) {
                        fake_reply(m, a->result);
                        if (a->then_close)
                                rpc_conn_close(m->conn);
                        return;
                }
                (void) err_set(&e, a->code, -EINVAL, "%s", a->message);
                if (a->hint)
                        (void) err_hint(&e, "%s", a->hint);
                assert_int_equal(rpc_reply_err(m->conn, m->msgid, &e), 0);
                return;
        }
        if (f->handler) {
                f->handler(f, m);
        } else if (m->is_request) {
                (void) err_set(&e, ERR_INTERNAL, -EIO, "the test has no answer to %s", m->method);
                (void) rpc_reply_err(m->conn, m->msgid, &e);
        }
}

static void on_close(struct rpc_conn *conn, int r, void *arg) {
        struct fake *f = arg;

        f->closed = true;
        for (size_t i = 0; i < f->n_conns; i++)
                if (f->conns[i] == conn) {
                        f->conns[i] = f->conns[--f->n_conns];
                        rpc_conn_unref(conn);
                        return;
                }
}

static const struct rpc_handlers handlers = { .on_message = on_message, .on_close = on_close };

static void on_accept(int fd, void *arg) {
        struct fake *f = arg;

        assert_true(f->n_conns < ARRAY_LEN(f->conns));
        assert_int_equal(rpc_conn_new(f->base, fd, &handlers, f, &f->conns[f->n_conns]), 0);
        f->n_conns++;
}

struct fake *fake_new(void) {
        struct fake *f = calloc(1, sizeof(*f));
        int fd;

        assert_non_null(f);
        (void) signal(SIGPIPE, SIG_IGN);
        (void) strcpy(f->dir, "/tmp/forkctl-test.XXXXXX");
        assert_non_null(mkdtemp(f->dir));
        (void) snprintf(f->socket, sizeof(f->socket), "%s/sock", f->dir);
        f->base = event_base_new();
        assert_non_null(f->base);
        assert_int_equal(io_listen_unix(f->socket, 0600, &fd), 0);
        assert_int_equal(rpc_listener_new(f->base, fd, on_accept, f, &f->listener), 0);
        return f;
}

void fake_free(struct fake *f) {
        while (f->n_conns > 0)
                rpc_conn_unref(f->conns[--f->n_conns]);
        rpc_listener_free(f->listener);
        event_base_free(f->base);
        assert_int_equal(io_remove_tree(AT_FDCWD, f->dir), 0);
        free(f->log);
        free(f);
}

void fake_reset(struct fake *f) {
        free(f->log);
        f->log = NULL;
        f->closed = false;
}

/* ---- the client ---- */

static void collect(struct run *r, int fd, char **text, size_t *len, struct event **ev) {
        char buf[16384];
        ssize_t n = read(fd, buf, sizeof(buf));

        if (n < 0 && errno == EAGAIN)
                return;
        if (n <= 0) {
                event_free(*ev);
                *ev = NULL;
                return;
        }
        *text = realloc(*text, *len + (size_t) n + 1);
        assert_non_null(*text);
        memcpy(*text + *len, buf, (size_t) n);
        *len += (size_t) n;
        (*text)[*len] = '\0';
}

static void on_out(evutil_socket_t fd, short what, void *arg) {
        struct run *r = arg;

        collect(r, fd, &r->out, &r->out_len, &r->ev[1]);
        if (r->on_output)
                r->on_output(r, r->arg);
}

static void on_err(evutil_socket_t fd, short what, void *arg) {
        struct run *r = arg;

        collect(r, fd, &r->err, &r->err_len, &r->ev[2]);
}

static void on_feed(evutil_socket_t fd, short what, void *arg) {
        struct run *r = arg;
        ssize_t n = write(fd, r->input + r->fed, r->input_len - r->fed);

        if (n < 0 && errno == EAGAIN)
                return;
        r->fed += n > 0 ? (size_t) n : 0;
        if (n > 0 && r->fed < r->input_len)
                return;
        event_free(r->ev[0]);
        r->ev[0] = NULL;
        if (n < 0 || !r->keep_stdin_open)
                r->fds[0] = close_fd(r->fds[0]);
}

static void on_exit_event(evutil_socket_t fd, short what, void *arg) {
        struct run *r = arg;
        int status;

        assert_int_equal(spawn_wait(r->pidfd, 0, &status), 0);
        r->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        r->exited = true;
}

static void on_late(evutil_socket_t fd, short what, void *arg) {
        struct run *r = arg;

        r->late = true;
        (void) kill(r->pid, SIGKILL);
}

static void watch(struct run *r, unsigned i, int fd, short what, event_callback_fn fn) {
        r->fds[i] = fd;
        assert_int_equal(io_set_nonblock(fd, true), 0);
        r->ev[i] = event_new(r->f->base, fd, what | EV_PERSIST, fn, r);
        assert_non_null(r->ev[i]);
        assert_int_equal(event_add(r->ev[i], NULL), 0);
}

static void make_env(struct run *r, char *socket, const char **env) {
        size_t n = 0;

        for (const char *const *e = r->env; e && *e; e++) /* of two with a name the first counts */
                env[n++] = *e;
        env[n++] = socket;
        env[n++] = "PATH=" FORKCTL_DIR ":/usr/sbin:/usr/bin:/sbin:/bin";
        env[n++] = "LC_ALL=C.UTF-8";
        env[n++] = "TZ=UTC";
        /* what the sanitizers and gcov want to know */
        for (char **e = environ; *e && n < 30; e++)
                if (strstr(*e, "SAN_OPTIONS=") || strncmp(*e, "GCOV", 4) == 0)
                        env[n++] = *e;
        env[n] = NULL;
}

static void spawn(struct run *r, const char *const *argv, int in, int out, int err) {
        struct spawn_fd fds[3] = { { in, 0 }, { out, 1 }, { err, 2 } };
        const char *args[64] = { r->program ? r->program : FORKCTL_BIN }, *env[32];
        char socket[128];
        size_t n = 1;

        for (; *argv && n < ARRAY_LEN(args) - 1; argv++)
                args[n++] = *argv;
        (void) snprintf(socket, sizeof(socket), "FORKD_SOCKET=%s", r->f->socket);
        make_env(r, socket, env);
        assert_int_equal(spawn_process(&(struct spawn_params){ .argv = args,
                                                               .env = env,
                                                               .fds = fds,
                                                               .n_fds = 3,
                                                               .cgroup_fd = -1,
                                                               .death_signal = SIGKILL,
                                                               .new_session = r->tty > 0 },
                                       &r->pid, &r->pidfd),
                         0);
}

void run_start(struct fake *f, struct run *r, const char *const *argv) {
        static const struct timeval deadline = { .tv_sec = FAKE_DEADLINE_S };
        int in[2] = { -1, -1 }, out[2] = { -1, -1 }, err[2] = { -1, -1 }, null;

        r->f = f;
        r->fds[0] = r->fds[1] = r->fds[2] = -1;
        r->out = calloc(1, 1);
        r->err = calloc(1, 1);
        null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        assert_true(null >= 0 && pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0);
        if (r->tty)
                spawn(r, argv, r->tty, r->tty, r->tty);
        else
                spawn(r, argv, r->stdin_fd ? r->stdin_fd : r->input ? in[0] : null, r->stdout_fd ? r->stdout_fd : out[1], err[1]);
        (void) close(null);
        (void) close(in[0]);
        (void) close(out[1]);
        (void) close(err[1]);
        watch(r, 1, out[0], EV_READ, on_out);
        watch(r, 2, err[0], EV_READ, on_err);
        if (r->no_reading)
                (void) event_del(r->ev[1]);
        if (r->input)
                watch(r, 0, in[1], EV_WRITE, on_feed);
        else
                (void) close(in[1]);
        r->exit_ev = event_new(f->base, r->pidfd, EV_READ, on_exit_event, r);
        r->late_ev = evtimer_new(f->base, on_late, r);
        assert_true(r->exit_ev && r->late_ev && event_add(r->exit_ev, NULL) == 0 && event_add(r->late_ev, &deadline) == 0);
}

void run_read_on(struct run *r) {
        assert_int_equal(event_add(r->ev[1], NULL), 0);
}

void run_finish(struct run *r) {
        while (!(r->exited && !r->ev[1] && !r->ev[2]))
                assert_int_equal(event_base_loop(r->f->base, EVLOOP_ONCE), 0);
        if (r->ev[0])
                event_free(r->ev[0]);
        event_free(r->exit_ev);
        event_free(r->late_ev);
        for (size_t i = 0; i < 3; i++)
                r->fds[i] = close_fd(r->fds[i]);
        (void) close_fd(r->pidfd);
        /* The fake hears of the end too, so that the next run starts clean. */
        while (r->f->n_conns > 0)
                assert_int_equal(event_base_loop(r->f->base, EVLOOP_ONCE), 0);
        if (r->late)
                fail_msg("forkctl did not end within %d s", FAKE_DEADLINE_S);
}

void run_ctl(struct fake *f, struct run *r, const char *const *argv) {
        run_start(f, r, argv);
        run_finish(r);
}

void run_clear(struct run *r) {
        free(r->out);
        free(r->err);
        *r = (struct run){ 0 };
}

/* ---- looking at JSON ---- */

json_t *one_document(const char *text) {
        json_error_t error;
        json_t *j = json_loads(text, JSON_DECODE_ANY, &error); /* refuses what follows the document */

        if (!j)
                fail_msg("no JSON document: %s\n%s", error.text, text);
        return j;
}

json_t *json_line(const char *text, size_t n) {
        cleanup_free char *line = NULL;

        for (; n > 0 && *text; n--)
                text = strchrnul(text, '\n') + (*strchrnul(text, '\n') == '\n');
        if (!*text)
                return NULL;
        line = strndup(text, strcspn(text, "\n"));
        return one_document(line);
}
