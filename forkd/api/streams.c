/* SPDX-License-Identifier: MIT */
#include "forkd/api/streams.h"

#include <errno.h>
#include <string.h>

#include "common/log.h"
#include "forkd/daemon.h"
#include "forkd/api/request.h"

#define MAX_ARGS 4096
#define MAX_CHUNK 65536
/* The agent sends SIGTERM when the time is over, and SIGKILL two seconds later. */
#define DEADLINE_GRACE_S 10
#define MAX_GUEST_PATH 4095

struct stream_call {
        TAILQ_ENTRY(stream_call) entry;
        struct vm *vm;
        struct rpc_conn *conn; /* a reference */
        struct account *account;
        uint32_t msgid;
        bool is_exec;
        struct guest_call *call;
        struct event *deadline; /* of a command with a timeout; NULL */
};

static void call_free(struct stream_call *c) {
        if (c->deadline)
                event_free(c->deadline);
        TAILQ_REMOVE(&c->vm->calls, c, entry);
        account_stream_end(c->account);
        rpc_conn_unref(c->conn);
        free(c);
}

/* ---- from the guest ---- */

static void begin_note(struct stream_call *c, struct mp_buf *b, unsigned n) {
        mp_buf_init(b);
        mp_map(b, 1 + n);
        mp_kv_u64(b, "call", c->msgid);
}

static void send_note(struct stream_call *c, const char *method, struct mp_buf *b) {
        (void) rpc_notify(c->conn, method, b, NULL, 0);
        mp_buf_clear(b);
}

static void on_data(unsigned stream, const void *data, size_t len, void *arg) {
        struct mp_buf b;

        begin_note(arg, &b, 2);
        mp_kv_u64(&b, "stream", stream);
        mp_kv_bin(&b, "data", data, len);
        send_note(arg, "stream.data", &b);
}

static void on_eof(unsigned stream, void *arg) {
        struct mp_buf b;

        begin_note(arg, &b, 1);
        mp_kv_u64(&b, "stream", stream);
        send_note(arg, "stream.eof", &b);
}

static void on_credit(unsigned stream, uint32_t bytes, void *arg) {
        struct mp_buf b;

        begin_note(arg, &b, 2);
        mp_kv_u64(&b, "stream", stream);
        mp_kv_u64(&b, "bytes", bytes);
        send_note(arg, "stream.credit", &b);
}

static void on_file(uint64_t size, uint32_t mode, void *arg) {
        struct mp_buf b;

        begin_note(arg, &b, 2);
        mp_kv_u64(&b, "size", size);
        mp_kv_u64(&b, "mode", mode);
        send_note(arg, "stream.file", &b);
}

static void on_done(const struct guest_result *res, void *arg) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct stream_call *c = arg;

        mp_buf_init(&b);
        if (res->r < 0) {
                (void) rpc_reply_err(c->conn, c->msgid, &res->e);
        } else {
                mp_map(&b, 2);
                if (c->is_exec) {
                        mp_kv_i64(&b, res->signaled ? "signal" : "exit_code", res->code);
                        mp_kv_bool(&b, "timed_out", res->timed_out);
                } else {
                        mp_kv_u64(&b, "bytes", res->bytes);
                        mp_kv_u64(&b, "mode", res->mode);
                }
                (void) rpc_reply(c->conn, c->msgid, &b, NULL, 0);
        }
        call_free(c);
}

static const struct guest_call_handlers handlers = {
        .on_data = on_data,
        .on_eof = on_eof,
        .on_credit = on_credit,
        .on_done = on_done,
        .on_file = on_file,
};

/* ---- from the client ---- */

static struct stream_call *find_call(struct daemon *d, struct rpc_conn *conn, const msgpack_object *params) {
        struct stream_call *c;
        uint64_t msgid;
        struct vm *vm;

        if (mp_get_u64(params, "call", &msgid) < 0)
                return NULL;
        TAILQ_FOREACH (vm, &d->vms, entry)
                TAILQ_FOREACH (c, &vm->calls, entry)
                        if (c->conn == conn && c->msgid == msgid)
                                return c;
        return NULL;
}

static void break_call(struct stream_call *c, const char *why) {
        struct err e;

        guest_call_cancel(c->call);
        (void) err_set(&e, ERR_PROTOCOL, -EPROTO, "%s", why);
        (void) rpc_reply_err(c->conn, c->msgid, &e);
        call_free(c);
}

void streams_on_message(struct daemon *d, struct rpc_msg *m) {
        struct stream_call *c = find_call(d, m->conn, m->params);
        uint64_t stream = 0, a = 0, b = 0;
        const void *data;
        size_t len;
        int r = 0;

        if (!c)
                return; /* it has ended meanwhile */
        (void) mp_get_u64(m->params, "stream", &stream);
        if (strcmp(m->method, "stream.data") == 0) {
                r = stream != 0 ? -EINVAL : mp_get_bin(m->params, "data", &data, &len);
                if (r == 0 && len > 0)
                        r = len > MAX_CHUNK ? -EMSGSIZE : guest_call_send(c->call, data, len);
        } else if (strcmp(m->method, "stream.eof") == 0) {
                (void) guest_call_eof(c->call);
        } else if (strcmp(m->method, "stream.credit") == 0) {
                r = mp_get_u64(m->params, "bytes", &a);
                if (r == 0)
                        r = stream > 2 || a > UINT32_MAX ? -EINVAL : guest_call_credit(c->call, (unsigned) stream, (uint32_t) a);
        } else if (strcmp(m->method, "stream.resize") == 0) {
                if (mp_get_u64(m->params, "rows", &a) == 0 && mp_get_u64(m->params, "cols", &b) == 0)
                        (void) guest_call_resize(c->call, (uint16_t) MIN_OF(a, 65535u), (uint16_t) MIN_OF(b, 65535u));
        } else if (strcmp(m->method, "stream.signal") == 0) {
                if (mp_get_u64(m->params, "signal", &a) == 0 && a >= 1 && a <= 64)
                        (void) guest_call_signal(c->call, (int) a);
        }
        /* A command may close its stdin while more is on its way to it: that data is nobody's mistake. */
        if (r < 0 && r != -EPIPE)
                break_call(c, "the client broke the rules of the stream (credit, size or form): the call was ended");
}

void streams_client_gone(struct daemon *d, struct rpc_conn *conn) {
        struct stream_call *c, *next;
        struct vm *vm;

        TAILQ_FOREACH (vm, &d->vms, entry)
                for (c = TAILQ_FIRST(&vm->calls); c; c = next) {
                        next = TAILQ_NEXT(c, entry);
                        if (c->conn != conn)
                                continue;
                        guest_call_cancel(c->call);
                        call_free(c);
                }
}

void streams_fail(struct vm *vm, const char *why) {
        for (struct stream_call *c; (c = TAILQ_FIRST(&vm->calls));) {
                struct err e;

                guest_call_cancel(c->call);
                (void) err_set(&e, ERR_AGENT, -EPIPE, "'%s': %s", vm->name, why);
                (void) rpc_reply_err(c->conn, c->msgid, &e);
                call_free(c);
        }
}

/* The agent keeps a command's timeout. A guest whose agent does not is not waited for. */
static void on_deadline(evutil_socket_t fd, short what, void *arg) {
        struct stream_call *c = arg;
        struct err e;

        guest_call_cancel(c->call);
        (void) err_set(&e, ERR_TIMEOUT, -ETIMEDOUT, "'%s': the agent has not ended the command in its time, and does not say why",
                       c->vm->name);
        (void) err_hint(&e, "a guest that is paused or too busy cannot; 'forkctl logs %s' may tell more", c->vm->name);
        (void) rpc_reply_err(c->conn, c->msgid, &e);
        call_free(c);
}

static int set_deadline(struct stream_call *c, double timeout_s) {
        double s = timeout_s + DEADLINE_GRACE_S;
        struct timeval tv = { .tv_sec = (time_t) s, .tv_usec = (suseconds_t) ((s - (double) (time_t) s) * 1e6) };

        c->deadline = event_new(c->vm->d->base, -1, 0, on_deadline, c);
        return c->deadline && event_add(c->deadline, &tv) == 0 ? 0 : -ENOMEM;
}

/* ---- the requests ---- */

static bool agent_ready(const struct vm *vm) {
        return vm->link && guest_link_ready(vm->link);
}

/* @timeout_s: of what is to be done; 0: none. */
static int ready_vm(struct request *rq, double timeout_s, struct vm **ret, struct err *e) {
        int ms = timeout_s > 0 ? (int) MIN_OF(timeout_s * 1000 + 1, (double) VM_REGAIN_TIMEOUT_MS) : VM_REGAIN_TIMEOUT_MS;
        struct vm *vm;
        int r = rq_vm(rq, &vm, e);

        if (r < 0)
                return r;
        if (vm->state != VM_RUNNING) {
                (void) err_set(e, ERR_STATE, -EINVAL, "'%s' is %s, not running", vm->name, vm_state_name(vm->state));
                return err_hint(e,
                                vm->state == VM_STANDBY  ? "bring it back with: forkctl restore %s"
                                : vm->state == VM_PAUSED ? "let it go on with: forkctl resume %s"
                                                         : "see 'forkctl inspect %s'",
                                vm->name);
        }
        /* "try again" shall help: a connection that nobody brought back is made anew here. */
        if (!agent_ready(vm) && (!vm->busy || vm->chore)) {
                r = vm_op_begin(vm, "reconnect", e);
                if (r < 0)
                        return r;
                if (vm->state == VM_RUNNING && !agent_ready(vm))
                        r = vm_agent_regain(vm, ms, e);
                vm_op_end(vm);
                if (r < 0)
                        return r;
        }
        if (vm->state != VM_RUNNING || !agent_ready(vm)) {
                (void) err_set(e, ERR_AGENT, -ENOTCONN, "the agent in '%s' is not connected", vm->name);
                return err_hint(e, "try again; 'forkctl logs %s' may tell why", vm->name);
        }
        *ret = vm;
        return 0;
}

static int call_new(struct request *rq, struct vm *vm, bool is_exec, struct stream_call **ret, struct err *e) {
        struct stream_call *c;
        int r = account_stream_begin(rq->account, e);

        if (r < 0)
                return r;
        c = calloc(1, sizeof(*c));
        if (!c) {
                account_stream_end(rq->account);
                return err_errno(e, -ENOMEM, "beginning a call");
        }
        *c = (struct stream_call){
                .vm = vm,
                .conn = rpc_conn_ref(rq->conn),
                .account = rq->account,
                .msgid = rq->msgid,
                .is_exec = is_exec,
        };
        TAILQ_INSERT_TAIL(&vm->calls, c, entry);
        *ret = c;
        return 0;
}

static int call_begun(struct stream_call *c, int r) {
        if (r < 0) {
                call_free(c);
                return r;
        }
        return REQUEST_TAKEN;
}

/* A string that C can hold. */
static bool is_text(const msgpack_object *o) {
        return o->type == MSGPACK_OBJECT_STR && !(o->via.str.size && memchr(o->via.str.ptr, 0, o->via.str.size));
}

/* An array of strings as a NULL-terminated vector; all in one allocation that the caller frees. */
static int get_argv(const msgpack_object *a, const char ***ret, struct err *e) {
        size_t bytes = 0, n;
        const char **v;
        char *p;

        if (!a || a->via.array.size == 0)
                return err_set(e, ERR_INVALID, -EINVAL, "there is no command to run");
        n = a->via.array.size;
        if (n > MAX_ARGS)
                return err_set(e, ERR_LIMIT, -E2BIG, "a command cannot have more than %d arguments", MAX_ARGS);
        for (size_t i = 0; i < n; i++) {
                const msgpack_object *o = &a->via.array.ptr[i];

                if (!is_text(o))
                        return err_set(e, ERR_INVALID, -EINVAL, "argument %zu of the command is no string", i);
                bytes += o->via.str.size + 1;
        }
        v = malloc((n + 1) * sizeof(*v) + bytes);
        if (!v)
                return err_errno(e, -ENOMEM, "reading the command");
        p = (char *) (v + n + 1);
        for (size_t i = 0; i < n; i++) {
                const msgpack_object_str *s = &a->via.array.ptr[i].via.str;

                v[i] = p;
                if (s->size)
                        memcpy(p, s->ptr, s->size);
                p[s->size] = '\0';
                p += s->size + 1;
        }
        v[n] = NULL;
        *ret = v;
        return 0;
}

/* A map of strings as "KEY=value". */
static int get_env(const msgpack_object *m, const char ***ret, struct err *e) {
        size_t bytes = 0, n;
        const char **v;
        char *p;

        if (!m || m->type == MSGPACK_OBJECT_NIL)
                return 0;
        if (m->type != MSGPACK_OBJECT_MAP || m->via.map.size > MAX_ARGS)
                return err_set(e, ERR_INVALID, -EINVAL, "env is no map of at most %d strings", MAX_ARGS);
        n = m->via.map.size;
        for (size_t i = 0; i < n; i++) {
                const msgpack_object_kv *kv = &m->via.map.ptr[i];

                if (!is_text(&kv->key) || !is_text(&kv->val) || kv->key.via.str.size == 0)
                        return err_set(e, ERR_INVALID, -EINVAL, "env is no map of strings");
                bytes += kv->key.via.str.size + kv->val.via.str.size + 2;
        }
        v = malloc((n + 1) * sizeof(*v) + bytes);
        if (!v)
                return err_errno(e, -ENOMEM, "reading the environment");
        p = (char *) (v + n + 1);
        for (size_t i = 0; i < n; i++) {
                const msgpack_object_kv *kv = &m->via.map.ptr[i];

                v[i] = p;
                p += sprintf(p, "%.*s=%.*s", (int) kv->key.via.str.size, kv->key.via.str.ptr, (int) kv->val.via.str.size,
                             kv->val.via.str.ptr) +
                     1;
        }
        v[n] = NULL;
        *ret = v;
        return 0;
}

int api_vm_exec(struct request *rq, struct mp_buf *out, struct err *e) {
        cleanup_free const char **argv = NULL, **env = NULL;
        struct guest_exec_params p = { 0 };
        char cwd[MAX_GUEST_PATH + 1];
        struct stream_call *c;
        uint64_t rows, cols;
        struct vm *vm;
        int r;

        r = mp_get_double(&rq->doc.root, "timeout_s", &p.timeout_s);
        if ((r < 0 && r != -ENOENT) || !(p.timeout_s >= 0 && p.timeout_s <= 1e9))
                return err_set(e, ERR_INVALID, -EINVAL, "the timeout must be a number of seconds");
        r = ready_vm(rq, p.timeout_s, &vm, e);
        if (r == 0)
                r = get_argv(mp_get_array(&rq->doc.root, "argv"), &argv, e);
        if (r == 0)
                r = get_env(mp_get(&rq->doc.root, "env"), &env, e);
        if (r == 0)
                r = rq_opt_bool(rq, "tty", false, &p.tty, e);
        if (r == 0)
                r = rq_opt_bool(rq, "stdin", false, &p.has_stdin, e);
        if (r == 0)
                r = rq_opt_u64(rq, "rows", 0, &rows, e);
        if (r == 0)
                r = rq_opt_u64(rq, "cols", 0, &cols, e);
        if (r == 0)
                r = rq_opt_str(rq, "cwd", "", cwd, sizeof(cwd), e);
        if (r < 0)
                return r;
        p.argv = argv;
        p.env = env;
        p.cwd = cwd[0] ? cwd : NULL;
        p.rows = (uint16_t) MIN_OF(rows, 65535u);
        p.cols = (uint16_t) MIN_OF(cols, 65535u);
        r = call_new(rq, vm, true, &c, e);
        if (r < 0)
                return r;
        r = p.timeout_s > 0 ? set_deadline(c, p.timeout_s) : 0;
        if (r < 0)
                (void) err_errno(e, r, "beginning a call");
        else
                r = guest_exec(vm->link, &p, &handlers, c, &c->call, e);
        return call_begun(c, r);
}

static int guest_path(struct request *rq, char *path, size_t size, struct err *e) {
        int r = rq_str(rq, "path", path, size, e);

        if (r == 0 && path[0] != '/') {
                (void) err_set(e, ERR_INVALID, -EINVAL, "'%.200s' is no absolute path", path);
                return err_hint(e, "name a file in the guest from its root: /dir/file");
        }
        return r;
}

int api_vm_put(struct request *rq, struct mp_buf *out, struct err *e) {
        char path[MAX_GUEST_PATH + 1];
        struct stream_call *c;
        uint64_t mode, size;
        struct vm *vm;
        int r;

        r = ready_vm(rq, 0, &vm, e);
        if (r == 0)
                r = guest_path(rq, path, sizeof(path), e);
        if (r == 0)
                r = rq_opt_u64(rq, "mode", 0644, &mode, e);
        if (r == 0)
                r = rq_opt_u64(rq, "size", UINT64_MAX, &size, e);
        if (r == 0 && mode > 07777)
                r = err_set(e, ERR_INVALID, -EINVAL, "the file's mode is more than permission bits");
        if (r == 0 && size == UINT64_MAX)
                r = err_set(e, ERR_INVALID, -EINVAL, "put needs the file's size");
        if (r == 0)
                r = call_new(rq, vm, false, &c, e);
        return r < 0 ? r : call_begun(c, guest_put(vm->link, path, (uint32_t) mode, size, &handlers, c, &c->call, e));
}

int api_vm_get(struct request *rq, struct mp_buf *out, struct err *e) {
        char path[MAX_GUEST_PATH + 1];
        struct stream_call *c;
        struct vm *vm = NULL;
        int r;

        r = ready_vm(rq, 0, &vm, e);
        if (r == 0)
                r = guest_path(rq, path, sizeof(path), e);
        if (r == 0)
                r = call_new(rq, vm, false, &c, e);
        return r < 0 ? r : call_begun(c, guest_get(vm->link, path, &handlers, c, &c->call, e));
}
