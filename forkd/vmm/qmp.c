/* SPDX-License-Identifier: MIT */
/* Theory of operation: one non-blocking socket with two libevent events, one buffer for the line that is
 * coming in, one queue of messages going out. A message that carries a descriptor is sent with sendmsg, so
 * that the descriptor travels with the message's first byte and not with an earlier one's rest.
 *
 * Lines are handled on the loop's stack; calls and watches are only woken there and go on in the loop's next
 * turn, when the connection may be gone already. So an answer is moved into the call before it is woken, and
 * a call that ended leaves the list at once.
 *
 * Handlers may free the connection from inside its own reading loop: `depth` counts the loops on the stack,
 * and the last one to leave frees what was given up meanwhile. */
#include "forkd/vmm/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "common/io.h"

#define READ_CHUNK 16384u

struct out_msg {
        STAILQ_ENTRY(out_msg) entry;
        size_t len, off;
        int fd;
        char data[];
};

struct qmp {
        struct event_base *base;
        struct event *ev_read, *ev_write;
        int fd;
        const struct qmp_handlers *handlers;
        void *arg;
        unsigned depth;
        bool freed;
        bool greeted;
        struct co_wait *greeting; /* who waits for it */
        struct err why;           /* why it is closed */

        char *buf;
        size_t buf_len, buf_cap, scanned;

        STAILQ_HEAD(, out_msg) out;
        size_t out_bytes;
        uint64_t next_id;
        TAILQ_HEAD(, qmp_call) calls;
        TAILQ_HEAD(, qmp_watch) watches;
};

bool qmp_is_open(const struct qmp *q) {
        return q->fd >= 0;
}

static void out_free(struct out_msg *m) {
        (void) close_fd(m->fd);
        free(m);
}

static void events_del(struct qmp *q) {
        if (q->ev_read)
                event_free(TAKE_PTR(q->ev_read));
        if (q->ev_write)
                event_free(TAKE_PTR(q->ev_write));
}

static void qmp_destroy(struct qmp *q) {
        struct out_msg *m;

        events_del(q);
        while ((m = STAILQ_FIRST(&q->out))) {
                STAILQ_REMOVE_HEAD(&q->out, entry);
                out_free(m);
        }
        (void) close_fd(q->fd);
        free(q->buf);
        free(q);
}

static void leave(struct qmp *q) {
        q->depth--;
        if (q->depth == 0 && q->freed)
                qmp_destroy(q);
}

void qmp_close(struct qmp *q, int r, const char *why) {
        struct qmp_watch *w;
        struct qmp_call *c;

        if (q->fd < 0)
                return;
        events_del(q);
        q->fd = close_fd(q->fd);
        (void) err_set(&q->why, ERR_VMM, r, "%s", why);
        if (q->greeting)
                co_wake(q->greeting, r);
        while ((c = TAILQ_FIRST(&q->calls))) {
                TAILQ_REMOVE(&q->calls, c, entry);
                c->e = q->why;
                co_wake(&c->wait, r);
        }
        while ((w = TAILQ_FIRST(&q->watches))) {
                TAILQ_REMOVE(&q->watches, w, entry);
                w->active = false;
                w->e = q->why;
                co_wake(&w->wait, r);
        }
}

/* Closes because of something the peer did. The caller holds `depth`. */
static void lost(struct qmp *q, int r, const char *why) {
        if (q->fd < 0)
                return;
        qmp_close(q, r, why);
        if (q->handlers->on_close && !q->freed)
                q->handlers->on_close(q->arg);
}

static void broken(struct qmp *q, const char *what) {
        char why[160];

        (void) snprintf(why, sizeof(why), "QEMU sent %s on its control channel", what);
        lost(q, -EBADMSG, why);
}

/* ---- going out ---- */

static void flush(struct qmp *q) {
        struct out_msg *m;

        while ((m = STAILQ_FIRST(&q->out))) {
                bool with_fd = m->off == 0 && m->fd >= 0;
                ssize_t n = io_send_fds(q->fd, m->data + m->off, m->len - m->off, &m->fd, with_fd ? 1 : 0);

                if (n == -EAGAIN) {
                        (void) event_add(q->ev_write, NULL);
                        return;
                }
                if (n == -EINTR)
                        continue;
                if (n < 0)
                        return; /* the reading side finds out, after it has read QEMU's last words */
                m->off += (size_t) n;
                q->out_bytes -= (size_t) n;
                if (m->off == m->len) {
                        STAILQ_REMOVE_HEAD(&q->out, entry);
                        out_free(m);
                }
        }
}

static void on_writable(evutil_socket_t fd, short what, void *arg) {
        flush(arg);
}

static int enqueue(struct qmp *q, const json_t *msg, int fd) {
        cleanup_free char *text = json_dumps(msg, JSON_COMPACT);
        cleanup_fd int copy = -1;
        struct out_msg *m;
        size_t len;

        if (!text)
                return -ENOMEM;
        len = strlen(text) + 1; /* the newline takes the NUL's place */
        if (len > QMP_MAX_QUEUED - MIN_OF(q->out_bytes, QMP_MAX_QUEUED))
                return -ENOBUFS;
        if (fd >= 0) {
                copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
                if (copy < 0)
                        return -errno;
        }
        m = malloc(sizeof(*m) + len);
        if (!m)
                return -ENOMEM;
        m->len = len;
        m->off = 0;
        m->fd = TAKE_FD(copy);
        memcpy(m->data, text, len);
        m->data[len - 1] = '\n';
        STAILQ_INSERT_TAIL(&q->out, m, entry);
        q->out_bytes += len;
        flush(q);
        return 0;
}

/* ---- coming in ---- */

static void handle_answer(struct qmp *q, const struct qmp_msg *m) {
        char text[240];
        struct qmp_call *c;

        /* QEMU answers without an id only when it could not read the request. */
        if (!m->has_id) {
                broken(q, "an answer without an id");
                return;
        }
        TAILQ_FOREACH (c, &q->calls, entry)
                if (c->id == m->id)
                        break;
        if (!c) {
                if (m->id >= q->next_id)
                        broken(q, "an answer to what was never asked");
                return; /* else: to a call that ran out of time */
        }
        TAILQ_REMOVE(&q->calls, c, entry);
        if (m->kind == QMP_ERROR) {
                (void) err_set(&c->e, ERR_VMM, -EREMOTEIO, "%s", qmp_printable(m->desc, strlen(m->desc), text, sizeof(text)));
                co_wake(&c->wait, -EREMOTEIO);
                return;
        }
        c->result = json_incref(m->value);
        co_wake(&c->wait, 0);
}

static void handle_event(struct qmp *q, const struct qmp_msg *m) {
        struct qmp_watch *w, *next;

        if (q->handlers->on_event)
                q->handlers->on_event(m->event, m->value, q->arg);
        if (q->freed || q->fd < 0)
                return;
        for (w = TAILQ_FIRST(&q->watches); w; w = next) {
                next = TAILQ_NEXT(w, entry);
                if (strcmp(w->event, m->event) != 0 || (w->match && !w->match(m->value)))
                        continue;
                TAILQ_REMOVE(&q->watches, w, entry);
                w->active = false;
                w->data = json_incref(m->value);
                co_wake(&w->wait, 0);
        }
}

static void handle_line(struct qmp *q, const char *line, size_t len) {
        struct qmp_msg m;
        const char *why;

        if (qmp_parse(line, len, &m, &why) < 0) {
                broken(q, why);
                return;
        }
        if (m.kind == QMP_GREETING) {
                if (q->greeted) {
                        broken(q, "a second greeting");
                } else {
                        q->greeted = true;
                        if (q->greeting)
                                co_wake(q->greeting, 0);
                }
        } else if (!q->greeted) {
                broken(q, "something else before its greeting");
        } else if (m.kind == QMP_EVENT) {
                handle_event(q, &m);
        } else {
                handle_answer(q, &m);
        }
        qmp_msg_clear(&m);
}

/* Handles the whole lines of the buffer and keeps the rest. */
static void handle_buffer(struct qmp *q) {
        size_t start = 0;

        while (q->fd >= 0 && !q->freed) {
                char *nl = memchr(q->buf + q->scanned, '\n', q->buf_len - q->scanned);
                size_t end, len;

                if (!nl)
                        break;
                end = (size_t) (nl - q->buf);
                len = end - start;
                if (len > 0 && q->buf[end - 1] == '\r')
                        len--;
                q->scanned = end + 1;
                if (len > 0)
                        handle_line(q, q->buf + start, len);
                start = end + 1;
        }
        memmove(q->buf, q->buf + start, q->buf_len - start);
        q->buf_len -= start;
        q->scanned = q->buf_len; /* no newline in what is left */
}

static int reserve(struct qmp *q) {
        size_t cap;
        char *p;

        if (q->buf_cap - q->buf_len >= READ_CHUNK / 2)
                return 0;
        if (q->buf_len > QMP_MAX_LINE)
                return -EMSGSIZE;
        cap = MAX_OF(q->buf_cap * 2, (size_t) READ_CHUNK);
        p = realloc(q->buf, cap);
        if (!p)
                return -ENOMEM;
        q->buf = p;
        q->buf_cap = cap;
        return 0;
}

/* Reads once. Returns whether there may be more. */
static bool read_some(struct qmp *q) {
        ssize_t n;

        if (reserve(q) < 0) {
                broken(q, "a line that is too long");
                return false;
        }
        /* Descriptors that a hostile QEMU attaches are dropped by the kernel: there is no room for them. */
        n = recv(q->fd, q->buf + q->buf_len, q->buf_cap - q->buf_len, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return errno == EINTR;
        if (n <= 0) {
                lost(q, -EPIPE, "QEMU closed its control channel");
                return false;
        }
        q->buf_len += (size_t) n;
        handle_buffer(q);
        return q->fd >= 0 && !q->freed;
}

static void on_readable(evutil_socket_t fd, short what, void *arg) {
        struct qmp *q = arg;

        q->depth++;
        (void) read_some(q); /* once a turn: a QEMU that talks without end must not keep the loop to itself */
        leave(q);
}

void qmp_drain(struct qmp *q) {
        size_t rounds = 2 * QMP_MAX_LINE / READ_CHUNK;

        q->depth++;
        while (q->fd >= 0 && !q->freed && rounds-- > 0 && read_some(q))
                ;
        leave(q);
}

/* ---- life ---- */

int qmp_new(struct event_base *base, int fd, const struct qmp_handlers *handlers, void *arg, struct qmp **ret) {
        struct qmp *q = calloc(1, sizeof(*q));
        int r;

        if (!q) {
                (void) close_fd(fd);
                return -ENOMEM;
        }
        q->base = base;
        q->fd = fd;
        q->handlers = handlers;
        q->arg = arg;
        q->next_id = 1;
        STAILQ_INIT(&q->out);
        TAILQ_INIT(&q->calls);
        TAILQ_INIT(&q->watches);
        r = io_set_nonblock(fd, true);
        if (r == 0) {
                q->ev_read = event_new(base, fd, EV_READ | EV_PERSIST, on_readable, q);
                q->ev_write = event_new(base, fd, EV_WRITE, on_writable, q);
                if (!q->ev_read || !q->ev_write || event_add(q->ev_read, NULL) < 0)
                        r = -ENOMEM;
        }
        if (r < 0) {
                qmp_destroy(q);
                return r;
        }
        *ret = q;
        return 0;
}

void qmp_free(struct qmp *q) {
        if (!q)
                return;
        qmp_close(q, -ECANCELED, "the control channel was closed");
        q->freed = true;
        if (q->depth == 0)
                qmp_destroy(q);
}

/* ---- calls ---- */

/* Not inlined: gcc would see that a local variable's address is kept and warn, though qmp_finish always takes it
 * out of the list. */
__attribute__((noinline)) int qmp_begin(struct qmp *q, struct qmp_call *c, const char *command, json_t *args, int fd,
                                        struct err *e) {
        cleanup_json json_t *msg = NULL;
        uint64_t id = q->next_id;
        int r;

        if (q->fd < 0) {
                json_decref(args);
                if (e)
                        *e = q->why;
                return q->why.r;
        }
        msg = json_pack("{s:s, s:o*, s:I}", "execute", command, "arguments", args, "id", (json_int_t) id);
        r = msg ? enqueue(q, msg, fd) : -ENOMEM;
        if (r < 0)
                return err_errno(e, r, "sending %s to QEMU", command);
        q->next_id++;
        *c = (struct qmp_call){ .id = id, .wait = CO_WAIT_INIT };
        TAILQ_INSERT_TAIL(&q->calls, c, entry);
        return 0;
}

int qmp_finish(struct qmp *q, struct qmp_call *c, int timeout_ms, json_t **ret_result, struct err *e) {
        int r = co_wait(&c->wait, timeout_ms);

        if (!c->wait.done) {
                TAILQ_REMOVE(&q->calls, c, entry);
                return err_set(e, ERR_TIMEOUT, -ETIMEDOUT, "QEMU does not answer (waited %d ms)", timeout_ms);
        }
        if (r < 0) {
                if (e)
                        *e = c->e;
                return r;
        }
        if (ret_result)
                *ret_result = TAKE_PTR(c->result);
        json_decref(TAKE_PTR(c->result));
        return 0;
}

int qmp_call(struct qmp *q, const char *command, json_t *args, int timeout_ms, json_t **ret_result, struct err *e) {
        struct qmp_call c;
        int r;

        r = qmp_begin(q, &c, command, args, -1, e);
        if (r == 0)
                r = qmp_finish(q, &c, timeout_ms, ret_result, e);
        return r;
}

int qmp_handshake(struct qmp *q, int timeout_ms, struct err *e) {
        struct co_wait w = CO_WAIT_INIT;
        int r = 0;

        if (!q->greeted && q->fd >= 0) {
                q->greeting = &w;
                r = co_wait(&w, timeout_ms);
                q->greeting = NULL;
        }
        if (r == -ETIMEDOUT)
                return err_set(e, ERR_TIMEOUT, r, "QEMU does not greet (waited %d ms)", timeout_ms);
        if (r < 0 || q->fd < 0) {
                if (e)
                        *e = q->why;
                return q->why.r;
        }
        return qmp_call(q, "qmp_capabilities", NULL, timeout_ms, NULL, e);
}

/* ---- watches ---- */

void qmp_watch_begin(struct qmp *q, struct qmp_watch *w, const char *event, bool (*match)(const json_t *data)) {
        *w = (struct qmp_watch){ .q = q, .event = event, .match = match, .wait = CO_WAIT_INIT };
        if (q->fd < 0) {
                w->e = q->why;
                co_wake(&w->wait, q->why.r);
                return;
        }
        w->active = true;
        TAILQ_INSERT_TAIL(&q->watches, w, entry);
}

int qmp_watch_wait(struct qmp_watch *w, int timeout_ms, json_t **ret_data, struct err *e) {
        int r = co_wait(&w->wait, timeout_ms);

        if (!w->wait.done)
                return err_set(e, ERR_TIMEOUT, -ETIMEDOUT, "QEMU does not report %s (waited %d ms)", w->event, timeout_ms);
        if (r < 0) {
                if (e)
                        *e = w->e;
                return r;
        }
        if (ret_data)
                *ret_data = TAKE_PTR(w->data);
        return 0;
}

void qmp_watch_end(struct qmp_watch *w) {
        if (w->active) {
                TAILQ_REMOVE(&w->q->watches, w, entry);
                w->active = false;
        }
        json_decref(TAKE_PTR(w->data));
}
