/* SPDX-License-Identifier: MIT */
/* The stream is watched edge-triggered (a virtio-serial port without a host reports a hang-up for ever, see
 * transport.h), so `readable` and `writable` remember what the last edge said until a read or write says
 * otherwise. All reading and writing happens in channel_work, which the loop calls before each wait. */
#include "agent/channel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STREAM_EVENTS (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)

/* ---- the queue ---- */

static void out_drop(struct channel *ch) {
        ch->out_start = ch->out_len = 0;
}

static int out_reserve(struct channel *ch, size_t n) {
        size_t cap = MAX_OF(ch->out_cap, (size_t) 4096);
        uint8_t *out;

        if (ch->out_len + n > CHANNEL_OUT_MAX)
                return -ENOBUFS;
        if (ch->out_start + ch->out_len + n <= ch->out_cap)
                return 0;
        if (ch->out_start > 0) {
                memmove(ch->out, ch->out + ch->out_start, ch->out_len);
                ch->out_start = 0;
        }
        while (cap < ch->out_len + n)
                cap *= 2;
        if (cap == ch->out_cap)
                return 0;
        out = realloc(ch->out, cap);
        if (!out)
                return -ENOMEM;
        ch->out = out;
        ch->out_cap = cap;
        return 0;
}

void channel_trim(struct channel *ch) {
        if (ch->out_len == 0 && ch->out_cap > 8192) {
                free(ch->out);
                ch->out = NULL;
                ch->out_cap = ch->out_start = 0;
        }
        /* not in the middle of a frame, and not while its payload is being looked at */
        if (ch->parser.len == 0 && ch->parser.cap > 8192)
                wire_parser_clear(&ch->parser);
}

bool channel_congested(const struct channel *ch) {
        return ch->congested;
}

/* A frame that cannot be queued leaves a hole in the sequence; the host will see it and give up. Giving up
 * ourselves is sooner, and done where no caller is in the middle of something. */
static void conversation_lost(struct channel *ch) {
        ch->epoch = 0;
        ch->lost = true;
        out_drop(ch);
}

void channel_send(struct channel *ch, const struct wire_msg *m) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        bool hello = m->type == WIRE_HELLO;
        struct wire_frame f = { .type = m->type };

        if (!hello && ch->epoch == 0)
                return;
        mp_buf_init(&b);
        wire_msg_encode(m, &b);
        if (b.failed || out_reserve(ch, WIRE_FRAME_LEN(b.sb.size)) < 0) {
                conversation_lost(ch);
                return;
        }
        if (!hello) {
                f.epoch = ch->epoch;
                f.seq = ch->tx_seq++;
        }
        f.payload = (const uint8_t *) b.sb.data;
        f.len = b.sb.size;
        ch->out_len += wire_encode(&f, ch->out + ch->out_start + ch->out_len);
        if (ch->out_len > CHANNEL_CONGESTED)
                ch->congested = true;
}

void channel_begin(struct channel *ch, uint64_t epoch) {
        ch->epoch = epoch;
        ch->lost = false;
        ch->rx_seq = ch->tx_seq = 0;
        out_drop(ch); /* the frame that was cut by this is ended by the zero that begins the next */
}

/* ---- the stream ---- */

static void channel_on_stream(uint32_t events, void *arg) {
        struct channel *ch = arg;
        bool hup = events & (EPOLLHUP | EPOLLERR);

        if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                ch->readable = true; /* also to learn of an end */
        if (events & EPOLLOUT)
                ch->writable = true;
        if (!hup)
                ch->handlers->on_host(ch->arg);
}

static void stream_closed(struct channel *ch) {
        loop_close(ch->loop, &ch->io);
        ch->tr.fd = -1;
        ch->readable = ch->writable = false;
        if (ch->tr.kind == TRANSPORT_FD)
                loop_stop(ch->loop, 0); /* nobody can ever come back */
}

static int stream_use(struct channel *ch, int fd) {
        ch->tr.fd = fd;
        ch->io = (struct loop_io){ .fd = fd, .fn = channel_on_stream, .arg = ch };
        return loop_watch(ch->loop, &ch->io, STREAM_EVENTS);
}

static void channel_on_listen(uint32_t events, void *arg) {
        struct channel *ch = arg;
        int fd;

        if (transport_accept(&ch->tr, &fd) <= 0)
                return;
        /* The old host's end may be a snapshot ago: the newest one counts. */
        loop_close(ch->loop, &ch->io);
        ch->readable = ch->writable = false;
        if (stream_use(ch, fd) < 0)
                stream_closed(ch);
}

/* Reads once and remembers if there may be more. */
static size_t stream_read(struct channel *ch) {
        ssize_t n;

        if (!ch->readable || ch->io.fd < 0 || ch->out_len > CHANNEL_STOP_READING)
                return 0;
        n = read(ch->io.fd, ch->in, sizeof(ch->in));
        if (n > 0)
                return (size_t) n;
        if (n < 0 && errno == EINTR)
                return 0;
        ch->readable = false;
        if (ch->tr.kind == TRANSPORT_PORT)
                return 0; /* EAGAIN, or nobody on the other side: the next edge tells */
        if (n == 0 || errno != EAGAIN)
                stream_closed(ch);
        return 0;
}

static void stream_write(struct channel *ch) {
        while (ch->writable && ch->out_len > 0 && ch->io.fd >= 0) {
                ssize_t n = write(ch->io.fd, ch->out + ch->out_start, ch->out_len);

                if (n > 0) {
                        ch->out_start += (size_t) n;
                        ch->out_len -= (size_t) n;
                        continue;
                }
                if (n < 0 && errno == EINTR)
                        continue;
                ch->writable = false;
                if (n < 0 && errno != EAGAIN && ch->tr.kind != TRANSPORT_PORT)
                        ch->readable = true; /* the read finds the end */
        }
        if (ch->out_len == 0)
                ch->out_start = 0;
}

/* ---- frames ---- */

static void channel_frame(struct channel *ch, const struct wire_frame *f) {
        if (f->type == WIRE_WAKE) {
                if (f->epoch != 0)
                        ch->handlers->on_frame(f, ch->arg);
                return;
        }
        if (ch->epoch == 0 || f->epoch != ch->epoch)
                return; /* a leftover */
        if (f->seq != ch->rx_seq) {
                conversation_lost(ch);
                return;
        }
        ch->rx_seq++;
        ch->handlers->on_frame(f, ch->arg);
}

static void channel_receive(struct channel *ch, size_t n) {
        const uint8_t *p = ch->in;
        struct wire_frame f;

        /* -ENOMEM drops the frame; the gap in the sequence then tells */
        while (wire_parser_feed(&ch->parser, &p, &n, &f) != 0)
                if (ch->parser.out)
                        channel_frame(ch, &f);
}

bool channel_work(struct channel *ch) {
        for (int i = 0; i < CHANNEL_READS_PER_ROUND; i++) {
                size_t n = stream_read(ch);

                if (n == 0)
                        break;
                channel_receive(ch, n);
        }
        if (ch->lost) {
                ch->lost = false;
                ch->handlers->on_desync(ch->arg);
        }
        stream_write(ch);
        if (ch->congested && ch->out_len <= CHANNEL_RELIEVED) {
                ch->congested = false;
                ch->handlers->on_relief(ch->arg);
        }
        return ch->io.fd >= 0 && ((ch->readable && ch->out_len <= CHANNEL_STOP_READING) || (ch->writable && ch->out_len > 0));
}

int channel_init(struct channel *ch, struct loop *l, struct transport *tr, const struct channel_handlers *h, void *arg) {
        int r = 0;

        *ch = (struct channel){ .loop = l, .io = LOOP_IO_INIT, .listen_io = LOOP_IO_INIT, .handlers = h, .arg = arg };
        ch->tr = *tr;
        if (tr->listen_fd >= 0) {
                ch->listen_io = (struct loop_io){ .fd = tr->listen_fd, .fn = channel_on_listen, .arg = ch };
                r = loop_watch(l, &ch->listen_io, EPOLLIN);
        }
        if (r == 0 && tr->fd >= 0)
                r = stream_use(ch, tr->fd);
        if (r < 0)
                return r;
        tr->fd = tr->listen_fd = -1;
        return 0;
}

void channel_clear(struct channel *ch) {
        loop_close(ch->loop, &ch->io);
        loop_close(ch->loop, &ch->listen_io);
        wire_parser_clear(&ch->parser);
        free(ch->out);
        ch->out = NULL;
}
