/* SPDX-License-Identifier: MIT */
/* Files in and out: put writes beside its target and renames, get reads a regular file.
 *
 * File I/O blocks, so it is done in pieces of at most WIRE_DATA_MAX, one per message or round of the loop.
 * A put answers each piece with credit once it is written; what the disk has no room for is said at once,
 * and what the client still sends is ignored. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/agent.h"
#include "common/io.h"

#define PUT_CREDIT_STEP (32u << 10)

struct put {
        struct call call; /* first */
        int fd;
        char path[WIRE_PATH_MAX + 1]; /* the target, links resolved */
        char tmp[WIRE_PATH_MAX + 32]; /* "" when there is nothing to remove */
        uint32_t mode, taken;
        uint64_t size, written;
};

struct get {
        struct call call; /* first */
        int fd;
        uint32_t credit;
        uint64_t sent;
};

/* ---- put ---- */

static void put_free(struct put *p) {
        if (!p)
                return;
        (void) close_fd(p->fd);
        if (p->tmp[0])
                (void) unlink(p->tmp);
        free(p);
}

static void put_end(struct put *p, int error) {
        struct wire_done d = { .bytes = p->written };

        if (error)
                d = call_error(error, "cannot write %.160s", p->path);
        call_done(&p->call, &d);
        put_free(p);
}

static void put_data(struct call *c, const void *data, size_t len) {
        struct put *p = (struct put *) c;
        int r;

        if (!call_take_stdin(c, len) || len > p->size - p->written) {
                put_end(p, EPROTO);
                return;
        }
        r = io_write_full(p->fd, data, len);
        if (r < 0) {
                put_end(p, -r);
                return;
        }
        p->written += len;
        p->taken += (uint32_t) len;
        if (p->taken < PUT_CREDIT_STEP)
                return;
        call_send_credit(c, p->taken);
        p->taken = 0;
}

static void put_eof(struct call *c) {
        struct put *p = (struct put *) c;

        if (p->written != p->size)
                put_end(p, EPROTO);
        else if (fchmod(p->fd, p->mode) < 0 || rename(p->tmp, p->path) < 0)
                put_end(p, errno);
        else {
                p->tmp[0] = '\0';
                put_end(p, 0);
        }
}

static void put_give_up(struct call *c) {
        call_unlink(c);
        put_free((struct put *) c);
}

static const struct call_ops put_ops = {
        .data = put_data,
        .eof = put_eof,
        .cancel = put_give_up,
        .abandon = put_give_up,
};

/* Where the bytes go in the end: through symbolic links, and only onto a regular file or a new name. */
static int put_target(const char *path, char *ret) {
        char real[PATH_MAX];
        struct stat st;

        if (lstat(path, &st) < 0) {
                if (errno != ENOENT)
                        return -errno;
                if (path[strlen(path) - 1] == '/')
                        return -EISDIR;
                (void) snprintf(ret, WIRE_PATH_MAX + 1, "%s", path);
                return 0;
        }
        if (!realpath(path, real) || stat(real, &st) < 0)
                return -errno;
        if (S_ISDIR(st.st_mode))
                return -EISDIR;
        if (!S_ISREG(st.st_mode))
                return -EINVAL;
        (void) snprintf(ret, WIRE_PATH_MAX + 1, "%s", real);
        return 0;
}

static int put_open(struct put *p, const struct wire_file *f) {
        int r = put_target(f->path, p->path);

        if (r < 0) {
                (void) snprintf(p->path, sizeof(p->path), "%s", f->path);
                return r;
        }
        (void) snprintf(p->tmp, sizeof(p->tmp), "%.*s.forkd-put-XXXXXX", (int) (strrchr(p->path, '/') + 1 - p->path), p->path);
        p->fd = mkostemp(p->tmp, O_CLOEXEC);
        if (p->fd < 0) {
                p->tmp[0] = '\0';
                return -errno;
        }
        p->mode = f->mode;
        p->size = f->size;
        return 0;
}

void put_begin(struct agent *a, const struct wire_msg *m) {
        struct put *p = calloc(1, sizeof(*p));
        struct wire_done d;
        int r = -ENOMEM;

        if (p) {
                p->fd = -1;
                r = put_open(p, &m->file);
        }
        if (r < 0) {
                put_free(p);
                d = call_error(-r, "cannot write %.160s", m->file.path);
                agent_refuse(a, m->call, &d);
                return;
        }
        call_link(&p->call, a, m->call, &put_ops);
}

/* ---- get ---- */

static void get_free(struct get *g) {
        (void) close_fd(g->fd);
        free(g);
}

static void get_end(struct get *g, int error) {
        struct wire_done d = { .bytes = g->sent };

        if (error)
                d = call_error(error, "cannot read the file");
        call_done(&g->call, &d);
        get_free(g);
}

/* Sends what credit and channel allow; the channel's fill level bounds one round. */
static void get_pump(struct call *c) {
        struct get *g = (struct get *) c;
        struct agent *a = c->a;

        while (g->credit > 0 && !channel_congested(&a->ch)) {
                ssize_t n = read(g->fd, a->scratch, MIN_OF((size_t) g->credit, sizeof(a->scratch)));

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0 || g->sent + (uint64_t) n > WIRE_FILE_MAX) {
                        get_end(g, n < 0 ? errno : EFBIG);
                        return;
                }
                if (n == 0) {
                        call_send_eof(c, WIRE_STDOUT);
                        get_end(g, 0);
                        return;
                }
                g->credit -= (uint32_t) n;
                g->sent += (uint64_t) n;
                call_send_data(c, WIRE_STDOUT, a->scratch, (size_t) n);
        }
}

static void get_credit(struct call *c, unsigned stream, uint32_t bytes) {
        struct get *g = (struct get *) c;

        if (stream != WIRE_STDOUT)
                return;
        g->credit = MIN_OF(g->credit + bytes, WIRE_CREDIT_INITIAL);
        get_pump(c);
}

static void get_give_up(struct call *c) {
        call_unlink(c);
        get_free((struct get *) c);
}

static const struct call_ops get_ops = {
        .credit = get_credit,
        .relief = get_pump,
        .cancel = get_give_up,
        .abandon = get_give_up,
};

/* O_NONBLOCK: opening a FIFO must not wait for its writer. */
static int get_open(const char *path, struct stat *ret_st) {
        cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

        if (fd < 0 || fstat(fd, ret_st) < 0)
                return -errno;
        if (S_ISDIR(ret_st->st_mode))
                return -EISDIR;
        if (!S_ISREG(ret_st->st_mode))
                return -EINVAL;
        return TAKE_FD(fd);
}

void get_begin(struct agent *a, const struct wire_msg *m) {
        struct get *g = calloc(1, sizeof(*g));
        struct wire_msg file = { .type = WIRE_FILE, .call = m->call };
        struct stat st = { 0 };
        int fd = g ? get_open(m->file.path, &st) : -ENOMEM;

        if (fd < 0) {
                struct wire_done d = call_error(-fd, "cannot read %.160s", m->file.path);

                free(g);
                agent_refuse(a, m->call, &d);
                return;
        }
        g->fd = fd;
        g->credit = WIRE_CREDIT_INITIAL;
        call_link(&g->call, a, m->call, &get_ops);
        file.file.mode = st.st_mode & 07777;
        file.file.size = MIN_OF((uint64_t) st.st_size, (uint64_t) WIRE_FILE_MAX);
        channel_send(&a->ch, &file);
        get_pump(&g->call);
}
