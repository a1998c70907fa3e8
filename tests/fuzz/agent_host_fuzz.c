/* SPDX-License-Identifier: MIT */
/* A hostile guest: forkd's side of an acknowledged link, with an exec, a put and a get open, gets messages that
 * the input describes. Input: records of {type u8, seq step u8, length u16, payload}. Checked: every call ends
 * at most once, no more data is handed on than credit was given, nothing is called after a cancel. */
#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/msg.h"
#include "common/co.h"
#include "common/io.h"
#include "forkd/guest/guest_link.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define N_CALLS 3

struct call_state {
        struct guest_call *call;
        size_t got[WIRE_N_STREAMS];
        bool eof[WIRE_N_STREAMS], over;
};

struct state {
        struct event_base *base;
        struct guest_link *link;
        int listen_fd, fd; /* the guest's end */
        struct call_state calls[N_CALLS];
        struct wire_frame next; /* epoch and seq of the guest's next frame */
        bool woken;
};

static void must(bool ok) {
        if (!ok)
                abort();
}

static void on_data(unsigned stream, const void *data, size_t len, void *arg) {
        struct call_state *c = arg;

        must(!c->over && !c->eof[stream] && stream != WIRE_STDIN && len > 0 && len <= WIRE_DATA_MAX);
        c->got[stream] += len;
        must(c->got[stream] <= WIRE_CREDIT_INITIAL); /* none was given back */
}

static void on_eof(unsigned stream, void *arg) {
        struct call_state *c = arg;

        must(!c->over && !c->eof[stream]);
        c->eof[stream] = true;
}

static void on_credit(unsigned stream, uint32_t bytes, void *arg) {
        abort(); /* nothing was sent */
}

static void on_done(const struct guest_result *res, void *arg) {
        struct call_state *c = arg;

        must(!c->over);
        must(memchr(res->e.message, 0, sizeof(res->e.message)) != NULL);
        c->over = true;
}

static const struct guest_call_handlers handlers = {
        .on_data = on_data,
        .on_eof = on_eof,
        .on_credit = on_credit,
        .on_done = on_done,
};

static void guest_send(struct state *s, enum wire_type type, unsigned step, const void *payload, size_t len) {
        static uint8_t out[WIRE_FRAME_MAX];
        size_t n, off = 0;

        s->next.type = type;
        s->next.payload = payload;
        s->next.len = len;
        n = wire_encode(&s->next, out);
        s->next.seq += step;
        while (off < n) {
                ssize_t w = send(s->fd, out + off, n - off, MSG_NOSIGNAL | MSG_DONTWAIT);

                if (w < 0)
                        return; /* the link was given up */
                off += (size_t) w;
                (void) event_base_loop(s->base, EVLOOP_NONBLOCK);
        }
}

/* What the guest does until the calls are open: reads the WAKE and acknowledges it. */
static void acknowledge(struct state *s) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct wire_parser p = { 0 };
        uint8_t buf[4096];
        struct wire_frame f;
        bool got = false;

        while (!got) {
                ssize_t n = read(s->fd, buf, sizeof(buf));
                const uint8_t *q = buf;
                size_t len = (size_t) n;

                must(n > 0);
                while (wire_parser_feed(&p, &q, &len, &f) == 1)
                        if (f.type == WIRE_WAKE) {
                                s->next.epoch = f.epoch;
                                got = true;
                        }
        }
        wire_parser_clear(&p);
        mp_buf_init(&b);
        wire_msg_encode(&(struct wire_msg){ .type = WIRE_ACK }, &b);
        guest_send(s, WIRE_ACK, 1, b.sb.data, b.sb.size);
}

static void wake(void *arg) {
        struct guest_identity id = { .kind = WIRE_WAKE_RECONNECT };
        struct state *s = arg;
        struct err e;

        must(guest_link_connect(s->link, 5000, &e) == 0);
        must(guest_link_queue_wake(s->link, &id) == 0);
        s->fd = accept(s->listen_fd, NULL, NULL);
        must(s->fd >= 0);
        acknowledge(s);
        must(guest_link_wait_ack(s->link, 5000, NULL, &e) == 0);
        s->woken = true;
}

static void open_calls(struct state *s) {
        const char *argv[] = { "x", NULL };
        struct call_state *c = s->calls;
        struct err e;

        must(guest_exec(s->link, &(struct guest_exec_params){ .argv = argv, .has_stdin = true }, &handlers, &c[0], &c[0].call,
                        &e) == 0);
        must(guest_put(s->link, "/x", 0600, 1, &handlers, &c[1], &c[1].call, &e) == 0);
        must(guest_get(s->link, "/x", &handlers, &c[2], &c[2].call, &e) == 0);
}

static void play(struct state *s, const uint8_t *data, size_t size) {
        while (size >= 4) {
                size_t len = (size_t) data[2] << 8 | data[3], n = MIN_OF(len, size - 4);

                guest_send(s, (enum wire_type)(data[0] % (WIRE_N_TYPES + 1)), data[1] < 250 ? 1 : data[1] - 250u, data + 4, n);
                data += 4 + n;
                size -= 4 + n;
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static char path[64];
        struct state s = { .fd = -1 };

        (void) snprintf(path, sizeof(path), "/tmp/forkd-fuzz-%d.sock", (int) getpid());
        must(io_listen_unix(path, 0600, &s.listen_fd) == 0);
        best_effort(io_set_nonblock(s.listen_fd, false));
        s.base = event_base_new();
        must(guest_link_new(s.base, path, &s.link) == 0);
        must(co_start(s.base, wake, &s) == 0);
        while (!s.woken)
                (void) event_base_loop(s.base, EVLOOP_ONCE);
        open_calls(&s);
        play(&s, data, size);
        if (size > 0 && data[size - 1] & 1 && !s.calls[0].over) {
                guest_call_cancel(s.calls[0].call);
                s.calls[0].over = true;
        }
        (void) event_base_loop(s.base, EVLOOP_NONBLOCK);
        (void) close(s.fd);
        for (int i = 0; i < 4; i++)
                (void) event_base_loop(s.base, EVLOOP_NONBLOCK);
        for (size_t i = 0; i < N_CALLS; i++)
                must(s.calls[i].over); /* the end of the link ended what was left */
        guest_link_free(s.link);
        event_base_free(s.base);
        (void) close(s.listen_fd);
        (void) unlink(path);
        return 0;
}
