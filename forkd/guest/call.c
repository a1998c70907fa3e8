/* SPDX-License-Identifier: MIT */
/* Calls on a link: exec, put, get, their streams and credits.
 *
 * What the guest may send is known at every moment: recv_credit per stream, nothing on a stream after its end,
 * nothing for a call of another kind. Anything else is -EPROTO, and the link is given up. Messages for a call
 * that is not there any more are normal (they crossed a cancel) and are ignored.
 *
 * A callback may cancel its call or free the link, so nothing touches either after a callback. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forkd/guest/internal.h"

#define CREDIT_STEP (32u << 10) /* credit is told to the guest in lumps of at least this */

/* ---- the table ---- */

static struct guest_call *call_find(struct guest_link *l, uint32_t id) {
        for (struct guest_call *c = l->calls; c; c = c->next)
                if (c->id == id)
                        return c;
        return NULL;
}

static void call_unlink(struct guest_call *c) {
        struct guest_link *l = c->l;

        if (c->prev)
                c->prev->next = c->next;
        else
                l->calls = c->next;
        if (c->next)
                c->next->prev = c->prev;
        l->n_calls--;
}

void calls_clear(struct guest_link *l) {
        while (l->calls) {
                struct guest_call *c = l->calls;

                call_unlink(c);
                free(c);
        }
}

/* Ends @c: it is out of the table before its owner hears of it, and freed after. */
static void call_finish(struct guest_call *c, const struct guest_result *res) {
        call_unlink(c);
        c->gone = true;
        c->h.on_done(res, c->arg);
        free(c);
}

void calls_fail(struct guest_link *l, int r) {
        struct guest_result res = { .r = r };

        (void) err_set(&res.e, ERR_AGENT, r, "the connection to the guest's agent was lost: %s", link_lost_reason(r));
        while (l->calls && !l->freed)
                call_finish(l->calls, &res);
}

/* ---- what the guest says ---- */

static int on_file(struct guest_call *c, const struct wire_file *f) {
        if (c->type != WIRE_GET || c->got_file)
                return -EPROTO;
        c->got_file = true;
        c->mode = f->mode;
        if (c->h.on_file)
                c->h.on_file(f->size, f->mode, c->arg);
        return 0;
}

static bool stream_open(const struct guest_call *c, unsigned stream) {
        if (stream == WIRE_STDIN || c->type == WIRE_PUT || c->recv_closed[stream])
                return false;
        return c->type == WIRE_EXEC || (stream == WIRE_STDOUT && c->got_file);
}

static int on_data(struct guest_call *c, const struct wire_data *d) {
        if (!stream_open(c, d->stream) || d->len > c->recv_credit[d->stream])
                return -EPROTO;
        c->recv_credit[d->stream] -= (uint32_t) d->len;
        c->recv_owed[d->stream] += (uint32_t) d->len;
        c->received += d->len;
        c->h.on_data(d->stream, d->data, d->len, c->arg);
        return 0;
}

static int on_eof(struct guest_call *c, unsigned stream) {
        if (!stream_open(c, stream))
                return -EPROTO;
        c->recv_closed[stream] = true;
        c->h.on_eof(stream, c->arg);
        return 0;
}

static int on_credit(struct guest_call *c, const struct wire_credit *k) {
        if (k->stream != WIRE_STDIN || c->type == WIRE_GET || k->bytes > WIRE_CREDIT_INITIAL - c->send_credit)
                return -EPROTO;
        c->send_credit += k->bytes;
        if (c->h.on_credit)
                c->h.on_credit(k->stream, k->bytes, c->arg);
        return 0;
}

static const char *call_error_code(int error, bool not_run) {
        if (error == ENOENT)
                return ERR_NOT_FOUND;
        return not_run ? ERR_INVALID : err_code_of(-error);
}

static int on_done(struct guest_call *c, const struct wire_done *d) {
        struct guest_result res = {
                .could_not_run = d->not_run,
                .signaled = d->signaled,
                .timed_out = d->timed_out,
                .code = d->code,
                .bytes = d->bytes,
                .mode = c->mode,
        };

        if (d->not_run && (d->error == 0 || c->type != WIRE_EXEC))
                return -EPROTO;
        if (c->type == WIRE_GET && d->error == 0 && (!c->recv_closed[WIRE_STDOUT] || d->bytes != c->received))
                return -EPROTO;
        if (d->error != 0)
                res.r = err_set(&res.e, call_error_code(d->error, d->not_run), -d->error, "in the guest: %s", d->message);
        call_finish(c, &res);
        return 0;
}

int call_on_message(struct guest_link *l, const struct wire_msg *m) {
        struct guest_call *c = call_find(l, m->call);

        if (!c)
                return 0;
        switch (m->type) {
        case WIRE_FILE:
                return on_file(c, &m->file);
        case WIRE_DATA:
                return on_data(c, &m->data);
        case WIRE_EOF:
                return on_eof(c, m->eof_stream);
        case WIRE_CREDIT:
                return on_credit(c, &m->credit);
        case WIRE_DONE:
                return on_done(c, &m->done);
        default:
                return -EPROTO;
        }
}

/* ---- beginning ---- */

static int call_begin(struct guest_link *l, struct wire_msg *m, const struct guest_call_handlers *h, void *arg,
                      struct guest_call **ret, struct err *e) {
        struct guest_call *c;
        int r;

        if (!guest_link_ready(l))
                return err_set(e, ERR_AGENT, -ENOTCONN, "the guest's agent is not connected");
        if (l->n_calls >= WIRE_MAX_CALLS)
                return err_set(e, ERR_BUSY, -EBUSY, "%u calls to this guest are open already", WIRE_MAX_CALLS);
        c = calloc(1, sizeof(*c));
        if (!c)
                return err_errno(e, -ENOMEM, "cannot begin a call to the guest");
        *c = (struct guest_call){ .l = l, .type = m->type, .h = *h, .arg = arg };
        do
                c->id = l->next_call++;
        while (c->id == 0 || call_find(l, c->id));
        c->send_credit = m->type == WIRE_GET ? 0 : WIRE_CREDIT_INITIAL;
        c->send_closed = m->type == WIRE_GET || (m->type == WIRE_EXEC && !m->exec.has_stdin);
        for (unsigned i = 0; i < WIRE_N_STREAMS; i++)
                c->recv_credit[i] = WIRE_CREDIT_INITIAL;

        m->call = c->id;
        r = link_send(l, m);
        if (r < 0) {
                free(c);
                return err_errno(e, r, "cannot begin a call to the guest");
        }
        c->next = l->calls;
        if (c->next)
                c->next->prev = c;
        l->calls = c;
        l->n_calls++;
        *ret = c;
        return 0;
}

/* Counts as the agent does, which refuses what is beyond the limits without a useful word. */
static bool strv_fits(const char *const *v, size_t *bytes, bool is_env) {
        size_t n = 0;

        for (; v && v[n]; n++) {
                if (is_env && (v[n][0] == '\0' || v[n][0] == '=' || !strchr(v[n], '=')))
                        return false;
                *bytes += strlen(v[n]) + 1;
                if (n >= WIRE_ARGV_MAX || *bytes > WIRE_ARG_BYTES_MAX)
                        return false;
        }
        return is_env || n > 0;
}

/* Into the message's own array; false: no absolute path that fits. */
static bool path_copy(char *dst, const char *path) {
        if (!path || path[0] != '/' || strlen(path) > WIRE_PATH_MAX)
                return false;
        (void) snprintf(dst, WIRE_PATH_MAX + 1, "%s", path);
        return true;
}

int guest_exec(struct guest_link *l, const struct guest_exec_params *p, const struct guest_call_handlers *h, void *arg,
               struct guest_call **ret, struct err *e) {
        struct wire_msg m = { .type = WIRE_EXEC };
        size_t bytes = 0;

        if (!p->argv || !strv_fits(p->argv, &bytes, false) || !strv_fits(p->env, &bytes, true))
                return err_set(e, ERR_INVALID, -E2BIG,
                               "the command is empty, its environment not NAME=VALUE, or both together beyond %u KiB",
                               WIRE_ARG_BYTES_MAX >> 10);
        if (!path_copy(m.exec.cwd, p->cwd ? p->cwd : "/"))
                return err_set(e, ERR_INVALID, -EINVAL, "the working directory is no absolute path");
        if (!(p->timeout_s >= 0) || p->timeout_s * 1000 > (double) WIRE_TIMEOUT_MS_MAX)
                return err_set(e, ERR_INVALID, -EINVAL, "the timeout is not between 0 and %llu seconds",
                               WIRE_TIMEOUT_MS_MAX / 1000);
        m.exec.argv = p->argv;
        m.exec.env = p->env;
        m.exec.tty = p->tty;
        m.exec.has_stdin = p->has_stdin;
        m.exec.rows = p->rows;
        m.exec.cols = p->cols;
        m.exec.timeout_ms = (uint64_t) (p->timeout_s * 1000);
        if (p->timeout_s > 0 && m.exec.timeout_ms == 0)
                m.exec.timeout_ms = 1;
        return call_begin(l, &m, h, arg, ret, e);
}

int guest_put(struct guest_link *l, const char *path, uint32_t mode, uint64_t size, const struct guest_call_handlers *h,
              void *arg, struct guest_call **ret, struct err *e) {
        struct wire_msg m = { .type = WIRE_PUT, .file = { .mode = mode, .size = size } };

        if (!path_copy(m.file.path, path))
                return err_set(e, ERR_INVALID, -EINVAL, "the path in the guest is not absolute, or too long");
        if (mode & ~07777u || size > WIRE_FILE_MAX)
                return err_set(e, ERR_INVALID, -EINVAL, "the file's mode or size is out of range");
        return call_begin(l, &m, h, arg, ret, e);
}

int guest_get(struct guest_link *l, const char *path, const struct guest_call_handlers *h, void *arg, struct guest_call **ret,
              struct err *e) {
        struct wire_msg m = { .type = WIRE_GET };

        if (!path_copy(m.file.path, path))
                return err_set(e, ERR_INVALID, -EINVAL, "the path in the guest is not absolute, or too long");
        return call_begin(l, &m, h, arg, ret, e);
}

/* ---- during a call ---- */

int guest_call_send(struct guest_call *c, const void *data, size_t len) {
        const uint8_t *p = data;

        if (c->gone || c->send_closed)
                return -EPIPE;
        if (len > c->send_credit)
                return -EDQUOT;
        while (len > 0) {
                size_t n = MIN_OF(len, (size_t) WIRE_DATA_MAX);
                int r = link_send(c->l, &(struct wire_msg){ .type = WIRE_DATA,
                                                            .call = c->id,
                                                            .data = { .stream = WIRE_STDIN, .data = p, .len = n } });

                if (r < 0) {
                        link_fail(c->l, r); /* half of it may have gone: no way back */
                        return r;
                }
                c->send_credit -= (uint32_t) n;
                p += n;
                len -= n;
        }
        return 0;
}

int guest_call_eof(struct guest_call *c) {
        if (c->gone || c->send_closed)
                return 0;
        c->send_closed = true;
        return link_send(c->l, &(struct wire_msg){ .type = WIRE_EOF, .call = c->id, .eof_stream = WIRE_STDIN });
}

int guest_call_credit(struct guest_call *c, unsigned stream, uint32_t bytes) {
        int r;

        if (c->gone)
                return 0;
        if (stream == WIRE_STDIN || stream >= WIRE_N_STREAMS || bytes > c->recv_owed[stream])
                return -EINVAL;
        c->recv_owed[stream] -= bytes;
        c->recv_pending[stream] += bytes;
        if (c->recv_pending[stream] < CREDIT_STEP || c->recv_closed[stream])
                return 0;
        r = link_send(c->l, &(struct wire_msg){ .type = WIRE_CREDIT,
                                                .call = c->id,
                                                .credit = { .stream = stream, .bytes = c->recv_pending[stream] } });
        if (r < 0)
                return r;
        c->recv_credit[stream] += c->recv_pending[stream];
        c->recv_pending[stream] = 0;
        return 0;
}

int guest_call_resize(struct guest_call *c, uint16_t rows, uint16_t cols) {
        if (c->gone)
                return 0;
        return link_send(c->l,
                         &(struct wire_msg){ .type = WIRE_RESIZE, .call = c->id, .resize = { .rows = rows, .cols = cols } });
}

int guest_call_signal(struct guest_call *c, int signo) {
        if (signo < 1 || signo > 64)
                return -EINVAL;
        if (c->gone)
                return 0;
        return link_send(c->l, &(struct wire_msg){ .type = WIRE_SIGNAL, .call = c->id, .signal = signo });
}

void guest_call_cancel(struct guest_call *c) {
        if (!c || c->gone)
                return;
        /* a link that is lost or full beyond reason takes its calls with it anyway */
        if (link_send(c->l, &(struct wire_msg){ .type = WIRE_CANCEL, .call = c->id }) == -ENOMEM)
                link_fail(c->l, -ENOMEM);
        call_unlink(c);
        free(c);
}
