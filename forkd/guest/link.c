/* SPDX-License-Identifier: MIT */
/* The connection to one guest's agent.
 *
 * States: NEW → CONNECTED (frames of no conversation are ignored: the stream's beginning may be the rest of
 * something that a snapshot cut) → READY, from the acknowledgement on (now every frame must be right) → LOST.
 *
 * A HELLO in state READY comes from an agent that does not know our epoch: it was restarted, or saw a gap in
 * our frames. Either way the conversation is over.
 *
 * Callbacks only run from the loop: from on_readable for what arrived, from on_lost_due for a loss, which any
 * function may find while it writes. `busy` counts the ones under way, so that a callback may free the link. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "common/ids.h"
#include "common/io.h"
#include "forkd/guest/internal.h"

#define READ_CHUNK (32u << 10)
#define WRITE_PIECES 16
#define READS_PER_TURN 8 /* then the loop sees to the others */
#define CONNECT_RETRY_MIN_MS 2
#define CONNECT_RETRY_MAX_MS 50
#define WAKE_RESEND_MIN_MS 250
#define WAKE_RESEND_MAX_MS 2000

const char *link_lost_reason(int r) {
        switch (r) {
        case -EPIPE:
                return "the VMM closed the agent's channel";
        case -EPROTO:
                return "the guest broke the agent protocol";
        case -ECONNRESET:
                return "the agent in the guest started anew";
        default:
                return strerror(-r);
        }
}

/* ---- life ---- */

static void link_destroy(struct guest_link *l) {
        calls_clear(l);
        if (l->read_ev)
                event_free(l->read_ev);
        if (l->write_ev)
                event_free(l->write_ev);
        if (l->lost_ev)
                event_free(l->lost_ev);
        if (l->out)
                evbuffer_free(l->out);
        wire_parser_clear(&l->parser);
        (void) close_fd(l->fd);
        explicit_bzero(&l->wake, sizeof(l->wake));
        free(l->path);
        free(l);
}

void guest_link_free(struct guest_link *l) {
        if (!l)
                return;
        l->freed = true;
        l->state = LINK_LOST;
        l->on_lost = NULL;
        if (l->busy == 0)
                link_destroy(l);
}

static void link_enter(struct guest_link *l) {
        l->busy++;
}

/* The end of a callback; the link may be gone afterwards. */
static void link_leave(struct guest_link *l) {
        if (--l->busy == 0 && l->freed)
                link_destroy(l);
}

static void on_lost_due(evutil_socket_t fd, short what, void *arg);

int guest_link_new(struct event_base *base, const char *socket_path, struct guest_link **ret) {
        struct sockaddr_un addr;
        struct guest_link *l;

        if (strlen(socket_path) >= sizeof(addr.sun_path))
                return -ENAMETOOLONG;
        l = calloc(1, sizeof(*l));
        if (!l)
                return -ENOMEM;
        l->base = base;
        l->fd = -1;
        l->next_call = 1;
        l->path = strdup(socket_path);
        l->out = evbuffer_new();
        l->lost_ev = event_new(base, -1, 0, on_lost_due, l);
        if (!l->path || !l->out || !l->lost_ev) {
                guest_link_free(l);
                return -ENOMEM;
        }
        *ret = l;
        return 0;
}

void guest_link_set_on_lost(struct guest_link *l, void (*fn)(int r, void *arg), void *arg) {
        l->on_lost = fn;
        l->on_lost_arg = arg;
}

bool guest_link_ready(const struct guest_link *l) {
        return l->state == LINK_READY && l->lost_r == 0;
}

bool guest_link_is_open(const struct guest_link *l) {
        return l->state == LINK_CONNECTED && l->lost_r == 0;
}

void guest_link_rewind(struct guest_link *l) {
        if (!guest_link_ready(l) || l->n_calls > 0 || l->pings)
                return;
        l->state = LINK_CONNECTED;
        l->epoch = 0; /* none: all frames are leftovers until the next one */
        l->poke = 0;
}

/* ---- losing it ---- */

void link_fail(struct guest_link *l, int r) {
        if (l->lost_r != 0)
                return;
        l->lost_r = r;
        if (l->read_ev)
                (void) event_del(l->read_ev);
        if (l->write_ev)
                (void) event_del(l->write_ev);
        event_active(l->lost_ev, EV_TIMEOUT, 0);
}

static void on_lost_due(evutil_socket_t fd, short what, void *arg) {
        struct guest_link *l = arg;
        bool was_ready = l->state == LINK_READY;

        link_enter(l);
        l->state = LINK_LOST;
        l->fd = close_fd(l->fd);
        if (l->hello_wait)
                co_wake(TAKE_PTR(l->hello_wait), l->lost_r);
        if (l->ack_wait)
                co_wake(TAKE_PTR(l->ack_wait), l->lost_r);
        while (l->pings) {
                struct guest_ping *p = l->pings;

                l->pings = p->next;
                co_wake(&p->wait, l->lost_r);
        }
        calls_fail(l, l->lost_r);
        if (was_ready && l->on_lost)
                l->on_lost(l->lost_r, l->on_lost_arg);
        link_leave(l);
}

/* ---- writing ---- */

/* Not evbuffer_write: a connection that the VMM closed must not raise SIGPIPE. */
static ssize_t send_some(struct guest_link *l) {
        struct evbuffer_iovec vec[WRITE_PIECES];
        struct iovec iov[WRITE_PIECES];
        int n = evbuffer_peek(l->out, -1, NULL, vec, WRITE_PIECES);
        struct msghdr msg = { .msg_iov = iov, .msg_iovlen = (size_t) MIN_OF(n, WRITE_PIECES) };

        for (size_t i = 0; i < msg.msg_iovlen; i++)
                iov[i] = (struct iovec){ .iov_base = vec[i].iov_base, .iov_len = vec[i].iov_len };
        return sendmsg(l->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void link_flush(struct guest_link *l) {
        while (l->lost_r == 0 && evbuffer_get_length(l->out) > 0) {
                ssize_t n = send_some(l);

                if (n > 0) {
                        (void) evbuffer_drain(l->out, (size_t) n);
                        continue;
                }
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0 && errno == EAGAIN)
                        (void) event_add(l->write_ev, NULL);
                else
                        link_fail(l, -EPIPE);
                return;
        }
}

static void on_writable(evutil_socket_t fd, short what, void *arg) {
        link_flush(arg);
}

/* Data, its end, credit and cancel are bounded by the open calls; what a client can ask for again and again
 * without end is not, and is refused while the guest does not read. */
static bool refused_when_full(enum wire_type t) {
        return t == WIRE_EXEC || t == WIRE_PUT || t == WIRE_GET || t == WIRE_RESIZE || t == WIRE_SIGNAL || t == WIRE_PING;
}

int link_send(struct guest_link *l, const struct wire_msg *m) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct wire_frame f = { .type = m->type, .epoch = l->epoch };
        struct evbuffer_iovec vec;

        if (l->fd < 0 || l->lost_r != 0)
                return -ENOTCONN;
        if (refused_when_full(m->type) && evbuffer_get_length(l->out) > GUEST_OUT_FULL)
                return -ENOBUFS;
        mp_buf_init(&b);
        wire_msg_encode(m, &b);
        if (b.failed)
                return -ENOMEM;
        if (b.sb.size > WIRE_PAYLOAD_MAX)
                return -E2BIG;
        if (evbuffer_reserve_space(l->out, (ev_ssize_t) WIRE_FRAME_LEN(b.sb.size), &vec, 1) != 1)
                return -ENOMEM;
        if (m->type != WIRE_WAKE)
                f.seq = l->tx_seq++;
        f.payload = (const uint8_t *) b.sb.data;
        f.len = b.sb.size;
        vec.iov_len = wire_encode(&f, vec.iov_base);
        (void) evbuffer_commit_space(l->out, &vec, 1); /* fails only for space that was not reserved */
        link_flush(l);
        return 0;
}

/* ---- reading ---- */

static void on_hello(struct guest_link *l, const struct wire_msg *m) {
        if (l->state == LINK_READY) {
                link_fail(l, -ECONNRESET);
                return;
        }
        l->hello_seen = true;
        l->hello = m->hello;
        if (l->hello_wait)
                co_wake(TAKE_PTR(l->hello_wait), 0);
}

static void on_ack(struct guest_link *l, const struct wire_msg *m) {
        if (l->state == LINK_READY)
                return; /* to a WAKE that was sent twice */
        l->ack = m->ack;
        l->state = LINK_READY;
        if (l->ack_wait)
                co_wake(TAKE_PTR(l->ack_wait), 0);
}

static void on_pong(struct guest_link *l, const struct wire_msg *m) {
        if (m->ping == l->poke)
                l->poke = 0;
        for (struct guest_ping **pp = &l->pings; *pp; pp = &(*pp)->next)
                if ((*pp)->n == m->ping) {
                        struct guest_ping *p = *pp;

                        *pp = p->next;
                        co_wake(&p->wait, 0);
                        return;
                }
}

/* 0, or -EPROTO. */
static int on_message(struct guest_link *l, const struct wire_msg *m) {
        switch (m->type) {
        case WIRE_ACK:
                on_ack(l, m);
                return 0;
        case WIRE_PONG:
                on_pong(l, m);
                return 0;
        case WIRE_FILE:
        case WIRE_DATA:
        case WIRE_EOF:
        case WIRE_CREDIT:
        case WIRE_DONE:
                return l->state == LINK_READY ? call_on_message(l, m) : -EPROTO;
        default:
                return -EPROTO; /* ours to send */
        }
}

static void on_frame(struct guest_link *l, const struct wire_frame *f) {
        cleanup_wire_msg struct wire_msg m = { 0 };
        bool hello = f->type == WIRE_HELLO && f->epoch == 0;
        int r;

        if (!hello) {
                if (l->epoch == 0 || f->epoch != l->epoch)
                        return; /* a leftover */
                if (f->seq != l->rx_seq) {
                        link_fail(l, -EPROTO);
                        return;
                }
                l->rx_seq++;
        }
        r = wire_msg_decode(f, &m);
        if (r == 0 && hello)
                on_hello(l, &m);
        else if (r == 0)
                r = on_message(l, &m);
        if (r < 0 && !hello)
                link_fail(l, -EPROTO);
        else if (!hello)
                l->heard_ns = now_ns();
}

static void on_readable(evutil_socket_t fd, short what, void *arg) {
        struct guest_link *l = arg;
        uint8_t buf[READ_CHUNK];

        link_enter(l);
        for (int i = 0; i < READS_PER_TURN && l->lost_r == 0 && !l->freed; i++) {
                ssize_t n = read(l->fd, buf, sizeof(buf));
                const uint8_t *p = buf;
                struct wire_frame f;
                size_t len;

                if (n < 0 && (errno == EAGAIN || errno == EINTR))
                        break;
                if (n <= 0) {
                        link_fail(l, -EPIPE);
                        break;
                }
                len = (size_t) n;
                /* no memory for a frame drops it, and the gap in the sequence ends the conversation */
                while (l->lost_r == 0 && !l->freed && wire_parser_feed(&l->parser, &p, &len, &f) != 0)
                        if (l->parser.out)
                                on_frame(l, &f);
        }
        link_leave(l);
}

/* ---- getting in touch ---- */

static int try_connect(struct guest_link *l) {
        cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        struct sockaddr_un addr = { .sun_family = AF_UNIX };

        if (fd < 0)
                return -errno;
        memcpy(addr.sun_path, l->path, strlen(l->path) + 1);
        if (connect(fd, (struct sockaddr *) &addr, sizeof(addr)) < 0)
                return -errno;
        l->read_ev = event_new(l->base, fd, EV_READ | EV_PERSIST, on_readable, l);
        l->write_ev = event_new(l->base, fd, EV_WRITE, on_writable, l);
        if (!l->read_ev || !l->write_ev || event_add(l->read_ev, NULL) < 0)
                return -ENOMEM; /* what was made is freed with the link */
        l->fd = TAKE_FD(fd);
        l->state = LINK_CONNECTED;
        return 0;
}

static int ms_left(uint64_t deadline_ns) {
        uint64_t now = now_ns();

        return now >= deadline_ns ? 0 : (int) ((deadline_ns - now + 999999) / 1000000);
}

int guest_link_connect(struct guest_link *l, int timeout_ms, struct err *e) {
        uint64_t deadline = now_ns() + (uint64_t) timeout_ms * 1000000u;
        int pause = CONNECT_RETRY_MIN_MS;

        if (l->state != LINK_NEW)
                return err_set(e, ERR_INTERNAL, -EISCONN, "the agent's link was connected before");
        for (;;) {
                int r = try_connect(l), left = ms_left(deadline);

                if (r == 0)
                        return 0;
                /* not made yet, not listening yet, and a backlog that is full */
                if (r != -ENOENT && r != -ECONNREFUSED && r != -EAGAIN)
                        return err_errno(e, r, "cannot connect to the agent's channel %s", l->path);
                if (left == 0)
                        return err_set(e, ERR_TIMEOUT, -ETIMEDOUT, "the agent's channel %s did not open within %d ms: %s",
                                       l->path, timeout_ms, strerror(-r));
                co_sleep(MIN_OF(pause, left));
                pause = MIN_OF(pause * 2, CONNECT_RETRY_MAX_MS);
        }
}

/* Waits with @slot pointing to the wait, which is withdrawn when the time is over. */
static int slot_wait(struct guest_link *l, struct co_wait **slot, int timeout_ms) {
        struct co_wait w = CO_WAIT_INIT;
        int r;

        if (l->lost_r != 0)
                return l->lost_r;
        *slot = &w;
        r = co_wait(&w, timeout_ms);
        if (r == -ETIMEDOUT)
                *slot = NULL;
        return r;
}

int guest_link_wait_hello(struct guest_link *l, int timeout_ms, struct err *e) {
        int r;

        if (l->hello_wait)
                return err_set(e, ERR_BUSY, -EBUSY, "somebody waits for this guest's agent already");
        r = l->hello_seen ? 0 : slot_wait(l, &l->hello_wait, timeout_ms);
        if (r == -ETIMEDOUT)
                return err_set(e, ERR_TIMEOUT, r, "the guest's agent did not say hello within %d ms", timeout_ms);
        if (r < 0)
                return err_set(e, ERR_AGENT, r, "waiting for the guest's agent: %s", link_lost_reason(r));
        return 0;
}

static uint64_t realtime_ns(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_REALTIME, &ts);
        return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

static int wake_send(struct guest_link *l) {
        struct wire_msg m = { .type = WIRE_WAKE, .wake = l->wake };

        m.wake.realtime_ns = realtime_ns();
        return link_send(l, &m);
}

int guest_link_queue_wake(struct guest_link *l, const struct guest_identity *id) {
        if (l->state != LINK_CONNECTED || l->lost_r != 0)
                return -ENOTCONN;
        if ((unsigned) id->kind > WIRE_WAKE_RECONNECT || memchr(id->hostname, 0, sizeof(id->hostname)) == NULL ||
            memchr(id->machine_id, 0, sizeof(id->machine_id)) == NULL)
                return -EINVAL;
        if ((id->hostname[0] && !wire_hostname_valid(id->hostname)) ||
            (id->machine_id[0] && !wire_machine_id_valid(id->machine_id)))
                return -EINVAL;
        l->wake = (struct wire_wake){ .kind = id->kind };
        memcpy(l->wake.hostname, id->hostname, sizeof(l->wake.hostname));
        memcpy(l->wake.machine_id, id->machine_id, sizeof(l->wake.machine_id));
        memcpy(l->wake.entropy, id->entropy, sizeof(l->wake.entropy));
        do
                l->epoch = random_u64();
        while (l->epoch == 0);
        l->rx_seq = l->tx_seq = 0;
        return wake_send(l);
}

static void ack_convert(const struct wire_ack *a, struct guest_ack *ret) {
        memset(ret, 0, sizeof(*ret));
        memcpy(ret->agent_version, a->version, sizeof(ret->agent_version));
        memcpy(ret->boot_id, a->boot_id, sizeof(ret->boot_id));
        ret->n_warnings = a->n_warnings;
        memcpy(ret->warnings, a->warnings, sizeof(ret->warnings));
        ret->entropy_us = a->us[WIRE_STEP_ENTROPY];
        ret->clock_us = a->us[WIRE_STEP_CLOCK];
        ret->hostname_us = a->us[WIRE_STEP_HOSTNAME];
        ret->machine_id_us = a->us[WIRE_STEP_MACHINE_ID];
        ret->hooks_us = a->us[WIRE_STEP_HOOKS];
}

/* Waits in slices; after each the WAKE goes out again, unless the last one has not even left. */
static int wait_ack_slices(struct guest_link *l, int timeout_ms) {
        uint64_t deadline = now_ns() + (uint64_t) timeout_ms * 1000000u;
        int slice = WAKE_RESEND_MIN_MS;

        while (l->state != LINK_READY) {
                int left = ms_left(deadline), r;

                if (left == 0)
                        return -ETIMEDOUT;
                r = slot_wait(l, &l->ack_wait, MIN_OF(slice, left));
                if (r < 0 && r != -ETIMEDOUT)
                        return r;
                if (r == -ETIMEDOUT && l->state != LINK_READY && evbuffer_get_length(l->out) == 0) {
                        r = wake_send(l);
                        if (r < 0)
                                return r;
                        slice = MIN_OF(slice * 2, WAKE_RESEND_MAX_MS);
                }
        }
        return l->lost_r;
}

int guest_link_wait_ack(struct guest_link *l, int timeout_ms, struct guest_ack *ret, struct err *e) {
        int r;

        if (l->epoch == 0)
                return err_set(e, ERR_INTERNAL, -EINVAL, "no wake-up was sent to the guest");
        if (l->ack_wait)
                return err_set(e, ERR_BUSY, -EBUSY, "somebody waits for this guest's agent already");
        r = wait_ack_slices(l, timeout_ms);
        if (r == -ETIMEDOUT)
                return err_set(e, ERR_TIMEOUT, r, "the guest's agent did not wake up within %d ms", timeout_ms);
        if (r < 0)
                return err_set(e, ERR_AGENT, r, "waking the guest's agent: %s", link_lost_reason(r));
        explicit_bzero(&l->wake, sizeof(l->wake));
        if (ret)
                ack_convert(&l->ack, ret);
        return 0;
}

void guest_link_poke(struct guest_link *l) {
        uint64_t n = l->next_ping + 1;

        if (l->poke != 0 || !guest_link_ready(l) || link_send(l, &(struct wire_msg){ .type = WIRE_PING, .ping = n }) < 0)
                return;
        l->next_ping = l->poke = n;
}

uint64_t guest_link_heard_ns(const struct guest_link *l) {
        return l->heard_ns;
}

int guest_link_ping(struct guest_link *l, int timeout_ms, double *ret_ms, struct err *e) {
        struct guest_ping p = { .n = ++l->next_ping, .next = l->pings };
        uint64_t start = now_ns();
        int r;

        if (!guest_link_ready(l))
                return err_set(e, ERR_AGENT, -ENOTCONN, "the guest's agent is not connected");
        r = link_send(l, &(struct wire_msg){ .type = WIRE_PING, .ping = p.n });
        if (r < 0)
                return err_errno(e, r, "cannot ask the guest's agent");
        l->pings = &p;
        r = co_wait(&p.wait, timeout_ms);
        if (r == -ETIMEDOUT) {
                for (struct guest_ping **pp = &l->pings; *pp; pp = &(*pp)->next)
                        if (*pp == &p) {
                                *pp = p.next;
                                break;
                        }
                return err_set(e, ERR_TIMEOUT, r, "the guest's agent did not answer within %d ms", timeout_ms);
        }
        if (r < 0)
                return err_set(e, ERR_AGENT, r, "asking the guest's agent: %s", link_lost_reason(r));
        *ret_ms = ms_since(start);
        return 0;
}
