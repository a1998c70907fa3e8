/* SPDX-License-Identifier: MIT */
/* Theory of operation. libmicrohttpd speaks HTTP: it reads requests, and writes answers as fast as their clients take them. It has
 * no thread; its epoll descriptor is one of our loop's events, and on_ready lets it go on.
 *
 * Whoever can reach a port of this host may try to use up what forkd has, so connections are accepted and counted here, and
 * everything that a client may do or leave undone has a limit and a deadline (http_internal.h). When all places are taken the
 * client that has asked nothing for longest makes room: idle ones keep nobody away. Answers and streams are not cut off for that.
 * What ends a connection is a shutdown of its socket; the library sees the end and tidies up, as if the client had left. */
#include "forkd/monitor/http.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/rpc.h"
#include "forkd/daemon.h"
#include "forkd/monitor/http_internal.h"

/* ---- the library's turn ---- */

static void run(struct http *h) {
        MHD_UNSIGNED_LONG_LONG ms;
        struct timeval tv;

        (void) MHD_run(h->mhd);
        if (MHD_get_timeout(h->mhd, &ms) != MHD_YES) {
                (void) event_del(h->timer);
                return;
        }
        tv = (struct timeval){ .tv_sec = (time_t) (ms / 1000), .tv_usec = (suseconds_t) (ms % 1000 * 1000) };
        (void) event_add(h->timer, &tv);
}

static void on_ready(evutil_socket_t fd, short what, void *arg) {
        run(arg);
}

static void on_library_says(void *arg, const char *fmt, va_list ap) attr_printf(2, 0);
static void on_library_says(void *arg, const char *fmt, va_list ap) {
        char text[200];

        (void) vsnprintf(text, sizeof(text), fmt, ap);
        text[strcspn(text, "\n")] = '\0';
        log_debug("metrics: %s", text);
}

/* ---- connections ---- */

static void hang_up(struct http_conn *c) {
        if (!c->leaving)
                (void) shutdown(c->fd, SHUT_RDWR);
        c->leaving = true;
}

static bool is_late(const struct http_conn *c, uint64_t now) {
        uint64_t s = c->rq ? HTTP_ANSWER_S : c->asked ? HTTP_NEXT_S : HTTP_FIRST_S;

        if (c->rq && c->rq->state == HTTP_STREAMING)
                return false; /* the library looks whether it moves */
        return now > c->since_ns && now - c->since_ns > s * 1000000000u;
}

static void on_sweep(evutil_socket_t fd, short what, void *arg) {
        struct http *h = arg;
        struct http_conn *c;
        uint64_t now = now_ns();

        TAILQ_FOREACH (c, &h->conns, entry)
                if (is_late(c, now))
                        hang_up(c);
        if (h->n_conns == 0)
                (void) event_del(h->sweep);
}

static void on_notify_connection(void *cls, struct MHD_Connection *mhd, void **arg, enum MHD_ConnectionNotificationCode what) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        struct http_conn *c = *arg;
        struct http *h = cls;

        if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
                if (!c)
                        return;
                TAILQ_REMOVE(&h->conns, c, entry);
                h->n_conns--;
                free(c);
                *arg = NULL;
                return;
        }
        c = info ? calloc(1, sizeof(*c)) : NULL;
        if (!c) /* http_on_request refuses what has none */
                return;
        *c = (struct http_conn){ .h = h, .fd = info->connect_fd, .since_ns = now_ns() };
        TAILQ_INSERT_TAIL(&h->conns, c, entry);
        h->n_conns++;
        *arg = c;
}

static void *on_target(void *cls, const char *target, struct MHD_Connection *mhd) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        struct http_conn *c = info ? info->socket_context : NULL;

        if (c)
                (void) snprintf(c->target, sizeof(c->target), "%s", target);
        return NULL;
}

/* The one that has asked nothing for longest goes. */
static bool make_room(struct http *h) {
        struct http_conn *c, *oldest = NULL;

        TAILQ_FOREACH (c, &h->conns, entry)
                if (!c->rq && !c->leaving && (!oldest || c->since_ns < oldest->since_ns))
                        oldest = c;
        if (!oldest)
                return false;
        hang_up(oldest);
        run(h);
        return h->n_conns < HTTP_MAX_CONNS;
}

static void on_connection(int fd, void *arg) {
        static const struct timeval second = { .tv_sec = 1 };
        const struct sockaddr_un nobody = { .sun_family = AF_UNIX };
        struct http *h = arg;

        if (h->n_conns >= HTTP_MAX_CONNS && !make_room(h)) {
                (void) close_fd(fd);
                return;
        }
        if (MHD_add_connection(h->mhd, fd, (const struct sockaddr *) &nobody, sizeof(nobody)) != MHD_YES)
                return; /* it has closed it */
        if (!event_pending(h->sweep, EV_TIMEOUT, NULL))
                (void) event_add(h->sweep, &second);
        run(h);
}

/* ---- the address ---- */

static int begin(struct http *h, const struct http_address *a) {
        gid_t gid = h->d->cfg.has_group ? h->d->cfg.group : (gid_t) -1;
        cleanup_fd int fd = -1;
        char told[HTTP_ADDRESS_LEN];
        int r;

        r = http_address_listen(a, gid, &fd, told, sizeof(told));
        if (r == 0)
                r = rpc_listener_new(h->d->base, TAKE_FD(fd), on_connection, h, &h->listener);
        if (r < 0)
                return r;
        (void) strcpy(h->address, told);
        log_info("metrics are at %s%s%s", a->kind == HTTP_TCP ? "http://" : "", h->address,
                 a->kind == HTTP_TCP ? "/metrics" : "");
        return 0;
}

/* Nothing here may keep forkd from its VMs: a default that is taken, by another forkd probably, gives way; else we go on
 * without, and try again. */
static void try_to_listen(struct http *h) {
        static const struct timeval later = { .tv_sec = HTTP_RETRY_S };
        const char *wanted = h->d->cfg.metrics_listen, *why;
        char problem[sizeof(h->problem)];
        struct http_address any;
        int r = begin(h, &h->where);

        if (r == 0) {
                h->problem[0] = '\0';
                return;
        }
        (void) snprintf(problem, sizeof(problem), "%s cannot be listened at: %s", wanted, strerror(-r));
        if (!h->d->cfg.metrics_chosen && http_address_parse("127.0.0.1:0", &any, &why) == 0 && begin(h, &any) == 0) {
                (void) snprintf(h->problem, sizeof(h->problem), "%.200s; a free port is used", problem);
                log_warning("metrics: %s", h->problem);
                return;
        }
        if (strcmp(h->problem, problem) != 0)
                log_warning("metrics: %s; it is tried again every %d s", problem, HTTP_RETRY_S);
        (void) strcpy(h->problem, problem);
        (void) event_add(h->retry, &later);
}

static void on_retry(evutil_socket_t fd, short what, void *arg) {
        struct http *h = arg;

        if (!h->closing)
                try_to_listen(h);
}

void http_open(struct http *h) {
        const char *why = NULL;

        if (http_address_parse(h->d->cfg.metrics_listen, &h->where, &why) < 0) /* the configuration's reader has looked */
                (void) snprintf(h->problem, sizeof(h->problem), "[metrics] listen %.180s", why);
        else if (h->where.kind != HTTP_OFF)
                try_to_listen(h);
}

static void stop_listening(struct http *h) {
        if (h->listener && h->where.kind == HTTP_UNIX)
                (void) unlink(h->where.path);
        rpc_listener_free(TAKE_PTR(h->listener));
        h->address[0] = '\0';
}

void http_close_door(struct http *h) {
        struct http_conn *c;

        h->closing = true;
        stop_listening(h);
        TAILQ_FOREACH (c, &h->conns, entry)
                if (!c->rq || c->rq->state == HTTP_STREAMING)
                        hang_up(c);
}

const char *http_address(const struct http *h) {
        return h->address;
}

const char *http_problem(const struct http *h) {
        return h->problem;
}

unsigned http_n_conns(const struct http *h) {
        return h->n_conns;
}

int http_handle(struct http *h, const char *path, http_handler *fn, void *arg) {
        if (h->n_routes == HTTP_MAX_ROUTES)
                return -ENOMEM;
        h->route[h->n_routes++] = (struct http_route){ path, fn, arg };
        return 0;
}

/* ---- the object ---- */

static int start_library(struct http *h) {
        const union MHD_DaemonInfo *info;

        h->mhd = MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG, 0,
                                  NULL, NULL, http_on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_library_says, NULL,
                                  MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t) HTTP_MEMORY, MHD_OPTION_CONNECTION_LIMIT,
                                  HTTP_MAX_CONNS + 1, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned) HTTP_STALL_S,
                                  MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_URI_LOG_CALLBACK, on_target, h,
                                  MHD_OPTION_NOTIFY_COMPLETED, http_on_completed, h, MHD_OPTION_NOTIFY_CONNECTION,
                                  on_notify_connection, h, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_END);
        info = h->mhd ? MHD_get_daemon_info(h->mhd, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
        if (!info || info->epoll_fd < 0)
                return -ENOMEM;
        h->ready = event_new(h->d->base, info->epoll_fd, EV_READ | EV_PERSIST, on_ready, h);
        return h->ready && event_add(h->ready, NULL) == 0 ? 0 : -ENOMEM;
}

int http_new(struct daemon *d, struct http **ret) {
        struct http *h = calloc(1, sizeof(*h));
        int r;

        if (!h)
                return -ENOMEM;
        h->d = d;
        TAILQ_INIT(&h->conns);
        h->timer = evtimer_new(d->base, on_ready, h);
        h->retry = evtimer_new(d->base, on_retry, h);
        h->sweep = event_new(d->base, -1, EV_PERSIST, on_sweep, h);
        r = h->timer && h->retry && h->sweep ? start_library(h) : -ENOMEM;
        if (r < 0)
                http_free(h);
        else
                *ret = h;
        return r;
}

void http_free(struct http *h) {
        struct http_conn *c;

        if (!h)
                return;
        h->closing = true;
        stop_listening(h);
        TAILQ_FOREACH (c, &h->conns, entry)
                if (c->rq)
                        http_request_abandon(c->rq);
        if (h->mhd)
                MHD_stop_daemon(h->mhd);
        if (h->ready)
                event_free(h->ready);
        if (h->timer)
                event_free(h->timer);
        if (h->retry)
                event_free(h->retry);
        if (h->sweep)
                event_free(h->sweep);
        free(h);
}
