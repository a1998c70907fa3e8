/* SPDX-License-Identifier: MIT */
/* Theory of operation. The kernel tells with every piece of the handshake which process sent it (SO_PASSCRED), so it
 * does not matter whose hands the socket went through. All pieces must be of one process; when that is known, of the
 * VMM, whose pidfd still has to live at the moment of the comparison: while it does, no other process can have its pid.
 *
 *      reading ──whole layout──▶ (held, until the VMM is named) ──▶ checked ──▶ attached ──▶ gone, or failed
 *
 * Root may claim any pid to be the sender's; it may do anything else to the guest, too. */
#include "pager/peer.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "common/io.h"
#include "common/spawn.h"
#include "pager/uffd.h"

#define READ_CHUNK 16384u

static const char answer[] = "ok\n";

struct pager_peer {
        int fd, uffd;
        uint64_t ram_bytes;
        unsigned timeout_s;
        struct event *readable, *deadline;
        const struct pager_peer_handlers *handlers;
        void *arg;
        pid_t sender; /* of the handshake; 0: not known */
        int expected; /* pidfd of the VMM, -1: not named, or compared already */
        bool named;
        bool held; /* until it is named */
        bool attached;
        bool silent;    /* it expects no answer to its handshake */
        size_t awaited; /* bytes of its answer that are to come */

        char *buf;                 /* freed once attached */
        size_t len, cap, json_len; /* json_len: 0 until the whole layout is there */
        struct pager_handshake_scan scan;
};

void pager_peer_free(struct pager_peer *p) {
        if (!p)
                return;
        if (p->readable)
                event_free(p->readable);
        if (p->deadline)
                event_free(p->deadline);
        (void) close_fd(p->fd);
        (void) close_fd(p->uffd);
        (void) close_fd(p->expected);
        free(p->buf);
        free(p);
}

/** Ends the conversation. @p may be gone afterwards. */
static void finish(struct pager_peer *p, const char *reason) {
        (void) event_del(p->readable);
        (void) event_del(p->deadline);
        p->fd = close_fd(p->fd);
        if (reason)
                p->handlers->on_failed(reason, p->arg);
        else
                p->handlers->on_gone(p->arg);
}

/** Tells the VMM why. The socket's buffer is empty, so a short line always fits. */
static void refuse(struct pager_peer *p, const char *reason) {
        char copy[PAGER_MAX_REASON], line[PAGER_MAX_REASON + 16];
        int n;

        (void) snprintf(copy, sizeof(copy), "%s", reason);
        n = snprintf(line, sizeof(line), "error: %s\n", copy);
        if (send(p->fd, line, (size_t) n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
                /* it has gone meanwhile */
        }
        finish(p, copy);
}

/** Is the handshake the VMM's? Returns 0, or -EPERM with @why filled. */
static int check_sender(const struct pager_peer *p, char *why, size_t why_size) {
        pid_t pid;
        int r;

        if (p->expected < 0)
                return 0;
        r = spawn_pidfd_pid(p->expected, &pid);
        if (r < 0)
                (void) snprintf(why, why_size, "the process that was expected to be the VMM %s",
                                r == -ESRCH ? "has ended, or is not visible from here" : "cannot be looked at");
        else if (p->sender == 0)
                (void) snprintf(why, why_size, "the layout came from a process that cannot be told, expected was process %d",
                                (int) pid);
        else if (p->sender != pid)
                (void) snprintf(why, why_size, "the layout came from process %d, expected was process %d", (int) p->sender,
                                (int) pid);
        else
                return 0;
        return -EPERM;
}

bool pager_peer_gave_uffd(const struct pager_peer *p) {
        char why[PAGER_MAX_REASON];

        return p->uffd >= 0 && uffd_is(p->uffd) && check_sender(p, why, sizeof(why)) == 0;
}

/** The whole handshake is in the buffer. Returns 0, or -errno with @why filled. */
static int attach(struct pager_peer *p, char *why, size_t why_size) {
        cleanup_free struct pager_layout *layout = NULL;
        int r = check_sender(p, why, why_size);

        if (r < 0)
                return r;
        for (size_t i = p->json_len; i < p->len; i++)
                if (!strchr(" \n\r\t", p->buf[i]) || !p->buf[i]) {
                        (void) snprintf(why, why_size, "something comes behind the layout");
                        return -EBADMSG;
                }
        if (p->uffd < 0) {
                (void) snprintf(why, why_size, "no userfaultfd came with the layout");
                return -EBADMSG;
        }
        r = pager_handshake_parse(p->buf, p->json_len, p->ram_bytes, &layout, why, why_size);
        if (r < 0)
                return r;
        r = uffd_check(p->uffd, layout->region[0].base);
        if (r == 0)
                r = io_set_nonblock(p->uffd, true);
        if (r < 0) {
                (void) snprintf(why, why_size, "the descriptor is no userfaultfd that is ready for use");
                return r;
        }
        p->silent = layout->mode == PAGER_MODE_COPY;
        r = p->handlers->on_attach(layout, p->uffd, why, why_size, p->arg);
        if (r < 0)
                return r;
        (void) TAKE_PTR(layout);
        (void) TAKE_FD(p->uffd);
        return 0;
}

static void try_attach(struct pager_peer *p) {
        char why[PAGER_MAX_REASON];

        if (attach(p, why, sizeof(why)) < 0) {
                refuse(p, why);
                return;
        }
        p->attached = true;
        p->expected = close_fd(p->expected);
        (void) event_del(p->deadline);
        free(TAKE_PTR(p->buf));
        if (!p->silent && send(p->fd, "ok\n", 3, MSG_NOSIGNAL | MSG_DONTWAIT) != 3)
                finish(p, NULL);
}

static void on_handshake_bytes(struct pager_peer *p) {
        int r = pager_handshake_scan(&p->scan, p->buf, p->len, &p->json_len);

        if (r < 0)
                refuse(p, "the layout does not begin as a JSON array of regions");
        else if (r > 0 && !p->held)
                try_attach(p);
        else if (p->len >= PAGER_MAX_HANDSHAKE)
                refuse(p, "the layout is too long");
}

static int reserve(struct pager_peer *p) {
        size_t cap = p->cap ? p->cap * 2 : READ_CHUNK;
        char *buf;

        if (p->cap - p->len >= READ_CHUNK / 2)
                return 0;
        buf = realloc(p->buf, cap);
        if (!buf)
                return -ENOMEM;
        p->buf = buf;
        p->cap = cap;
        return 0;
}

static void on_readable(evutil_socket_t fd, short what, void *arg) {
        struct pager_peer *p = arg;
        struct ucred from;
        char discard[64];
        int fds[1];
        size_t n_fds = 1;
        ssize_t n;

        if (!p->attached && reserve(p) < 0) {
                refuse(p, "out of memory");
                return;
        }
        if (p->attached)
                n = io_recv_fds(fd, discard, sizeof(discard), fds, &n_fds);
        else
                n = io_recv_fds_from(fd, p->buf + p->len, MIN_OF(p->cap, (size_t) PAGER_MAX_HANDSHAKE) - p->len, fds, &n_fds,
                                     &from);
        if (n == -EAGAIN || n == -EINTR)
                return;
        if (n == -EMSGSIZE) {
                refuse(p, "more than one descriptor came with the layout");
                return;
        }
        if (n == -EMFILE) {
                refuse(p, "the pager can hold no more descriptors");
                return;
        }
        if (n <= 0) {
                finish(p, NULL);
                return;
        }
        if (n_fds > 0 && (p->attached || p->uffd >= 0)) {
                (void) close_fd(fds[0]);
                refuse(p, "more than one descriptor came with the layout");
                return;
        }
        if (p->attached && p->awaited >= (size_t) n &&
            memcmp(discard, &answer[sizeof(answer) - 1 - p->awaited], (size_t) n) == 0) {
                p->awaited -= (size_t) n;
                if (p->awaited == 0)
                        p->handlers->on_answer(p->arg);
                return;
        }
        if (p->attached) {
                finish(p, "the VMM sent something after its handshake that it was not asked for");
                return;
        }
        if (n_fds > 0)
                p->uffd = fds[0];
        if (p->len > 0 && from.pid != p->sender) {
                refuse(p, "the layout came in pieces from more than one process");
                return;
        }
        p->sender = from.pid;
        p->len += (size_t) n;
        on_handshake_bytes(p);
}

static void on_deadline(evutil_socket_t fd, short what, void *arg) {
        struct pager_peer *p = arg;
        char why[PAGER_MAX_REASON];

        (void) snprintf(why, sizeof(why), "%s within %u seconds",
                        p->json_len > 0 ? "nobody said which process the VMM is" : "the VMM did not complete its handshake",
                        p->timeout_s);
        refuse(p, why);
}

/** Bytes on which the kernel notes their sender. */
static int prepare_socket(int fd) {
        int domain, type, listens, on = 1;
        socklen_t len = sizeof(int);

        if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ||
            getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0)
                return -ENOTSOCK;
        if (domain != AF_UNIX || type != SOCK_STREAM || listens)
                return -ENOTSOCK;
        if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0)
                return -errno;
        return io_set_nonblock(fd, true);
}

int pager_peer_new(struct event_base *base, int fd, uint64_t ram_bytes, unsigned timeout_s,
                   const struct pager_peer_handlers *handlers, void *arg, struct pager_peer **ret) {
        struct timeval deadline = { .tv_sec = timeout_s };
        struct pager_peer *p = calloc(1, sizeof(*p));
        int r;

        if (!p) {
                (void) close_fd(fd);
                return -ENOMEM;
        }
        *p = (struct pager_peer){ .fd = fd,
                                  .uffd = -1,
                                  .expected = -1,
                                  .ram_bytes = ram_bytes,
                                  .timeout_s = timeout_s,
                                  .handlers = handlers,
                                  .arg = arg };
        r = prepare_socket(fd);
        if (r < 0) {
                pager_peer_free(p);
                return r;
        }
        p->readable = event_new(base, fd, EV_READ | EV_PERSIST, on_readable, p);
        p->deadline = evtimer_new(base, on_deadline, p);
        if (!p->readable || !p->deadline || event_add(p->readable, NULL) < 0 || event_add(p->deadline, &deadline) < 0) {
                pager_peer_free(p);
                return -ENOMEM;
        }
        *ret = p;
        return 0;
}

int pager_peer_adopt(struct event_base *base, int fd, const struct pager_peer_handlers *handlers, void *arg,
                     struct pager_peer **ret) {
        struct pager_peer *p;
        int r = pager_peer_new(base, fd, 0, 0, handlers, arg, &p);

        if (r < 0)
                return r;
        (void) event_del(p->deadline);
        p->attached = p->named = true;
        *ret = p;
        return 0;
}

bool pager_peer_is_process(int fd) {
        pid_t pid;

        return spawn_pidfd_pid(fd, &pid) != -EINVAL;
}

static void on_process_end(evutil_socket_t fd, short what, void *arg) {
        finish(arg, NULL);
}

int pager_peer_adopt_process(struct event_base *base, int fd, const struct pager_peer_handlers *handlers, void *arg,
                             struct pager_peer **ret) {
        struct pager_peer *p = calloc(1, sizeof(*p));

        if (!p) {
                (void) close_fd(fd);
                return -ENOMEM;
        }
        *p = (struct pager_peer){
                .fd = fd, .uffd = -1, .expected = -1, .handlers = handlers, .arg = arg, .attached = true, .named = true
        };
        p->readable = event_new(base, fd, EV_READ | EV_PERSIST, on_process_end, p);
        p->deadline = evtimer_new(base, on_deadline, p);
        if (!p->readable || !p->deadline || event_add(p->readable, NULL) < 0) {
                pager_peer_free(p);
                return -ENOMEM;
        }
        *ret = p;
        return 0;
}

void pager_peer_ask(struct pager_peer *p) {
        p->awaited = sizeof(answer) - 1;
}

int pager_peer_fd(const struct pager_peer *p) {
        return p->fd;
}

void pager_peer_hold(struct pager_peer *p) {
        p->held = true;
}

int pager_peer_expect(struct pager_peer *p, int pidfd, pid_t *ret_pid) {
        int r;

        if (p->named)
                return -EALREADY;
        r = spawn_pidfd_pid(pidfd, ret_pid);
        if (r < 0)
                return r;
        p->expected = pidfd;
        p->named = true;
        return 0;
}

void pager_peer_go_on(struct pager_peer *p) {
        char why[PAGER_MAX_REASON];

        p->held = false;
        if (!p->attached && p->json_len > 0) {
                try_attach(p);
        } else if (p->attached && check_sender(p, why, sizeof(why)) < 0) {
                refuse(p, why);
        } else if (p->attached) {
                p->expected = close_fd(p->expected);
        }
}
