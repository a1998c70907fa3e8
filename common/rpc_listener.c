/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <sys/socket.h>

#include "common/rpc.h"

struct rpc_listener {
        struct event_base *base;
        int fd;
        struct event *ev, *retry;
        void (*fn)(int fd, void *arg);
        void *arg;
};

static void on_retry(evutil_socket_t fd, short what, void *arg) {
        struct rpc_listener *l = arg;

        (void) event_add(l->ev, NULL);
}

static void on_acceptable(evutil_socket_t fd, short what, void *arg) {
        static const struct timeval second = { .tv_sec = 1 };
        struct rpc_listener *l = arg;
        int conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (conn >= 0) {
                l->fn(conn, l->arg);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
                (void) event_del(l->ev);
                (void) event_add(l->retry, &second);
        }
}

int rpc_listener_new(struct event_base *base, int listen_fd, void (*fn)(int fd, void *arg), void *arg,
                     struct rpc_listener **ret) {
        struct rpc_listener *l = calloc(1, sizeof(*l));

        if (!l) {
                (void) close_fd(listen_fd);
                return -ENOMEM;
        }
        *l = (struct rpc_listener){ .base = base, .fd = listen_fd, .fn = fn, .arg = arg };
        l->ev = event_new(base, listen_fd, EV_READ | EV_PERSIST, on_acceptable, l);
        l->retry = evtimer_new(base, on_retry, l);
        if (!l->ev || !l->retry || event_add(l->ev, NULL) < 0) {
                rpc_listener_free(l);
                return -ENOMEM;
        }
        *ret = l;
        return 0;
}

void rpc_listener_free(struct rpc_listener *l) {
        if (!l)
                return;
        if (l->ev)
                event_free(l->ev);
        if (l->retry)
                event_free(l->retry);
        (void) close_fd(l->fd);
        free(l);
}
