/* SPDX-License-Identifier: MIT */
/* Dispatch: which message goes where, the table of calls, and saying HELLO until somebody answers. */
#include "agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#ifndef FORKD_VERSION
#error "FORKD_VERSION is set by the build"
#endif

/* ---- calls ---- */

void call_link(struct call *c, struct agent *a, uint32_t id, const struct call_ops *ops) {
        c->a = a;
        c->id = id;
        c->ops = ops;
        c->stdin_room = WIRE_CREDIT_INITIAL;
        c->prev = NULL;
        c->next = a->calls;
        if (c->next)
                c->next->prev = c;
        a->calls = c;
        a->n_calls++;
}

void call_unlink(struct call *c) {
        struct agent *a = c->a;

        if (c->prev)
                c->prev->next = c->next;
        else
                a->calls = c->next;
        if (c->next)
                c->next->prev = c->prev;
        c->prev = c->next = NULL;
        a->n_calls--;
}

static struct call *call_find(struct agent *a, uint32_t id) {
        for (struct call *c = a->calls; c; c = c->next)
                if (c->id == id)
                        return c;
        return NULL;
}

bool call_take_stdin(struct call *c, size_t len) {
        if (len > c->stdin_room)
                return false;
        c->stdin_room -= (uint32_t) len;
        return true;
}

/* channel_send may find the queue congested by this very message: the producers must hear of it. */
static void agent_send(struct agent *a, const struct wire_msg *m) {
        bool before = channel_congested(&a->ch);

        channel_send(&a->ch, m);
        if (before || !channel_congested(&a->ch))
                return;
        for (struct call *c = a->calls; c; c = c->next)
                if (c->ops->congested)
                        c->ops->congested(c);
}

void call_send_data(struct call *c, unsigned stream, const void *data, size_t len) {
        agent_send(c->a, &(struct wire_msg){
                                 .type = WIRE_DATA, .call = c->id, .data = { .stream = stream, .data = data, .len = len } });
}

void call_send_eof(struct call *c, unsigned stream) {
        agent_send(c->a, &(struct wire_msg){ .type = WIRE_EOF, .call = c->id, .eof_stream = stream });
}

void call_send_credit(struct call *c, uint32_t bytes) {
        c->stdin_room += bytes;
        agent_send(c->a,
                   &(struct wire_msg){ .type = WIRE_CREDIT, .call = c->id, .credit = { .stream = WIRE_STDIN, .bytes = bytes } });
}

void agent_refuse(struct agent *a, uint32_t id, const struct wire_done *d) {
        agent_send(a, &(struct wire_msg){ .type = WIRE_DONE, .call = id, .done = *d });
}

void call_done(struct call *c, const struct wire_done *d) {
        struct agent *a = c->a;

        agent_refuse(a, c->id, d);
        call_unlink(c);
}

struct wire_done call_error(int error, const char *fmt, ...) {
        struct wire_done d = { .error = error };
        size_t n;
        va_list ap;

        va_start(ap, fmt);
        (void) vsnprintf(d.message, sizeof(d.message), fmt, ap);
        va_end(ap);
        n = strlen(d.message);
        (void) snprintf(d.message + n, sizeof(d.message) - n, ": %s", strerror(error));
        wire_printable(d.message);
        return d;
}

/* The conversation that the calls belong to is over. */
static void calls_abandon(struct agent *a) {
        while (a->calls)
                a->calls->ops->abandon(a->calls);
}

/* ---- HELLO ---- */

static void hello_send(void *arg) {
        struct agent *a = arg;
        struct wire_msg m = { .type = WIRE_HELLO };

        if (a->ch.epoch != 0)
                return;
        if (a->ch.out_len == 0) { /* else the last one has not even left */
                (void) snprintf(m.hello.version, sizeof(m.hello.version), "%s", FORKD_VERSION);
                memcpy(m.hello.boot_id, a->boot_id, sizeof(m.hello.boot_id));
                m.hello.pid = (uint32_t) getpid();
                channel_send(&a->ch, &m);
        }
        loop_timer_set(&a->loop, &a->hello_timer, a->hello_ms, hello_send, a);
        a->hello_ms = MIN_OF(a->hello_ms * 2, (unsigned) AGENT_HELLO_MAX_MS);
}

static void hello_begin(struct agent *a) {
        a->hello_ms = AGENT_HELLO_MIN_MS;
        hello_send(a);
}

/* ---- messages ---- */

static void on_wake(struct agent *a, uint64_t epoch, const struct wire_wake *w) {
        if (epoch == a->ch.epoch) {
                /* Sent again because our answer was slow, or lost. While the hooks run it is on its way. */
                if (a->awake)
                        agent_send(a, &(struct wire_msg){ .type = WIRE_ACK, .ack = a->ack });
                return;
        }
        loop_timer_stop(&a->loop, &a->hello_timer);
        calls_abandon(a);
        channel_begin(&a->ch, epoch);
        wake_begin(a, epoch, w);
}

static void on_begin(struct agent *a, const struct wire_msg *m) {
        struct wire_done d;

        if (call_find(a, m->call))
                return; /* forkd's mistake; answering would end the other call */
        if (a->n_calls >= WIRE_MAX_CALLS) {
                d = call_error(EBUSY, "%u calls are open in the guest already", WIRE_MAX_CALLS);
                agent_refuse(a, m->call, &d);
                return;
        }
        if (m->type == WIRE_EXEC)
                exec_begin(a, m);
        else if (m->type == WIRE_PUT)
                put_begin(a, m);
        else
                get_begin(a, m);
}

/* A message of an open call. One for a call that is over crossed its DONE on the way. */
static void on_call(struct agent *a, const struct wire_msg *m) {
        struct call *c = call_find(a, m->call);

        if (!c)
                return;
        switch (m->type) {
        case WIRE_DATA:
                if (c->ops->data && m->data.stream == WIRE_STDIN)
                        c->ops->data(c, m->data.data, m->data.len);
                break;
        case WIRE_EOF:
                if (c->ops->eof && m->eof_stream == WIRE_STDIN)
                        c->ops->eof(c);
                break;
        case WIRE_CREDIT:
                if (c->ops->credit && m->credit.stream != WIRE_STDIN)
                        c->ops->credit(c, m->credit.stream, m->credit.bytes);
                break;
        case WIRE_RESIZE:
                if (c->ops->resize)
                        c->ops->resize(c, m->resize.rows, m->resize.cols);
                break;
        case WIRE_SIGNAL:
                if (c->ops->signal)
                        c->ops->signal(c, m->signal);
                break;
        case WIRE_CANCEL:
                c->ops->cancel(c);
                break;
        default:
                break;
        }
}

static void on_message(struct agent *a, uint64_t epoch, const struct wire_msg *m) {
        switch (m->type) {
        case WIRE_WAKE:
                on_wake(a, epoch, &m->wake);
                break;
        case WIRE_PING:
                agent_send(a, &(struct wire_msg){ .type = WIRE_PONG, .ping = m->ping });
                break;
        case WIRE_EXEC:
        case WIRE_PUT:
        case WIRE_GET:
                on_begin(a, m);
                break;
        default:
                on_call(a, m);
                break;
        }
}

static void on_frame(const struct wire_frame *f, void *arg) {
        cleanup_wire_msg struct wire_msg m = { 0 };
        struct agent *a = arg;

        if (wire_msg_decode(f, &m) == 0)
                on_message(a, f->epoch, &m);
}

static void on_desync(void *arg) {
        struct agent *a = arg;

        a->awake = false; /* hooks that run go on; the next WAKE decides about them */
        calls_abandon(a);
        hello_begin(a);
}

static void on_host(void *arg) {
        struct agent *a = arg;

        if (a->ch.epoch == 0)
                hello_begin(a);
}

static void on_relief(void *arg) {
        struct agent *a = arg;
        struct call *next;

        for (struct call *c = a->calls; c; c = next) {
                next = c->next; /* relief may end the call (a get that finishes) */
                if (c->ops->relief)
                        c->ops->relief(c);
        }
}

static const struct channel_handlers channel_handlers = {
        .on_frame = on_frame,
        .on_desync = on_desync,
        .on_host = on_host,
        .on_relief = on_relief,
};

/* ---- life ---- */

static void read_boot_id(char *buf, size_t size) {
        cleanup_fd int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);

        buf[n > 0 ? (size_t) n : 0] = '\0';
        buf[strcspn(buf, "\n")] = '\0';
        wire_printable(buf);
}

int agent_init(struct agent *a, const struct agent_options *opt, struct transport *tr) {
        int r;

        *a = (struct agent){ .opt = *opt };
        read_boot_id(a->boot_id, sizeof(a->boot_id));
        r = loop_init(&a->loop);
        if (r < 0)
                return r;
        r = channel_init(&a->ch, &a->loop, tr, &channel_handlers, a);
        if (r < 0)
                loop_clear(&a->loop);
        return r;
}

static bool agent_prepare(void *arg) {
        struct agent *a = arg;
        bool again = channel_work(&a->ch);

        if (!again && a->n_calls == 0)
                channel_trim(&a->ch);
        return again;
}

int agent_run(struct agent *a) {
        hello_begin(a);
        return loop_run(&a->loop, agent_prepare, a);
}

void agent_clear(struct agent *a) {
        loop_timer_stop(&a->loop, &a->hello_timer);
        wake_clear(a);
        calls_abandon(a);
        exec_clear_orphans(a);
        channel_clear(&a->ch);
        loop_clear(&a->loop);
}
