/* SPDX-License-Identifier: MIT */
/* The control socket: who may connect, and how much of forkd one client may hold.
 *
 * Two locks: the socket's owner and mode, and the credentials that the kernel knows of the peer. A client that is turned
 * away is told why, by the notification "error", before the connection closes.
 *
 * A connection costs memory and a descriptor, so one that is of no use goes: one that has said nothing since it was made,
 * or half a message, for idle_client_seconds, and has no call under way. What one user's connections hold in buffers is
 * looked at every second; above USER_MAX_MEMORY the one with the most goes. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/api/api_internal.h"
#include "forkd/api/streams.h"
#include "forkd/host/turns.h"

#define ROOT_CLIENTS 64 /* of FORKD_MAX_CLIENTS, kept free for root */
#define USER_MAX_CLIENTS 64
#define USER_MAX_STREAMS 256
#define USER_MAX_REQUESTS 1024
#define USER_MAX_PARAMS (8u << 20) /* of requests under way; parsed, a byte may take twenty */
#define USER_MAX_MEMORY (64u << 20)
#define LOOK_EVERY_S 1
#define TELL_EVERY_S 10

/* ---- refusals ---- */

/* Clients choose how often they are refused, so not each refusal is a line of the log. */
static void log_refusal(struct api *a, const struct caller *who, const struct err *e) {
        uint64_t now = now_ns();

        if (a->told_ns != 0 && now - a->told_ns < TELL_EVERY_S * 1000000000ull) {
                a->untold++;
                return;
        }
        if (a->untold > 0)
                log_warning("%u more clients were refused meanwhile", a->untold);
        log_warning("refused a client of user %u: %s", (unsigned) who->uid, e->message);
        a->told_ns = now;
        a->untold = 0;
}

static void tell(struct rpc_conn *conn, const struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_str(&b, "code", e->code);
        mp_kv_str(&b, "message", e->message);
        mp_kv_str(&b, "hint", e->hint);
        (void) rpc_notify(conn, "error", &b, NULL, 0);
}

/* The client itself goes when its connection has told that it is closed. */
static void hang_up(struct client *c, const struct err *e) {
        log_refusal(c->api, c->caller, e);
        tell(c->conn, e);
        rpc_conn_close(c->conn);
}

/* ---- a client ---- */

static void client_free(struct client *c) {
        TAILQ_REMOVE(&c->api->clients, c, entry);
        rpc_conn_unref(c->conn);
        caller_unref(c->caller);
        account_disconnect(c->account);
        free(c);
}

static void on_message(struct rpc_msg *m, void *arg) {
        struct client *c = arg;
        struct err e = { 0 };
        int r;

        c->spoke = true;
        c->since_ns = now_ns();
        if (!m->is_request) {
                streams_on_message(c->api->d, m);
                return;
        }
        r = account_request(c->account, c->since_ns, &e);
        if (r == 0)
                api_request(c, m);
        else if (r == -EDQUOT)
                hang_up(c, &e);
        else
                (void) rpc_reply_err(m->conn, m->msgid, &e);
}

static void on_close(struct rpc_conn *conn, int r, void *arg) {
        struct client *c = arg;

        if (r < 0)
                log_info("a client (pid %d) was disconnected: %s", (int) rpc_conn_peer(conn)->pid, strerror(-r));
        streams_client_gone(c->api->d, conn);
        turns_client_gone(c->api->d->turns, conn);
        client_free(c);
}

bool api_has_client(const struct api *a, const void *client) {
        const struct client *c;

        TAILQ_FOREACH (c, &a->clients, entry)
                if (c->conn == client && rpc_conn_is_open(c->conn))
                        return true;
        return false;
}

static const struct rpc_handlers client_handlers = { .on_message = on_message, .on_close = on_close };

/* ---- looking after them ---- */

static void check_idle(struct client *c, const struct rpc_conn_use *use, uint64_t now) {
        unsigned limit = c->api->d->cfg.idle_client_seconds;
        struct err e;

        if (use->open_requests > 0 || (c->spoke && use->unread == 0) || now - c->since_ns < limit * 1000000000ull)
                return;
        (void) err_set(&e, ERR_TIMEOUT, -ETIMEDOUT, "%s for %u s", c->spoke ? "half a message" : "nothing was said", limit);
        (void) err_hint(&e, "connect when there is something to ask for");
        hang_up(c, &e);
}

/* The largest of the account's connections goes if all together are too large. Quadratic, but only in one user's. */
static void check_memory(struct client *c) {
        struct client *o, *largest = c;
        uint64_t sum = 0;
        struct err e;

        if (c->account->root)
                return;
        TAILQ_FOREACH (o, &c->api->clients, entry) {
                if (o->account != c->account || !rpc_conn_is_open(o->conn))
                        continue;
                sum += o->memory;
                if (o->memory > largest->memory)
                        largest = o;
        }
        if (sum <= USER_MAX_MEMORY)
                return;
        (void) err_set(&e, ERR_LIMIT, -EUSERS, "the connections of user %u hold %llu MiB of questions and unread answers",
                       (unsigned) c->account->uid, (unsigned long long) (sum >> 20));
        (void) err_hint(&e, "read what was asked for");
        hang_up(largest, &e);
}

static void on_look(evutil_socket_t fd, short what, void *arg) {
        static const struct timeval every = { .tv_sec = LOOK_EVERY_S };
        struct api *a = arg;
        uint64_t now = now_ns();
        struct client *c;

        TAILQ_FOREACH (c, &a->clients, entry) {
                struct rpc_conn_use use;

                rpc_conn_use(c->conn, &use);
                c->memory = use.memory;
                if (rpc_conn_is_open(c->conn))
                        check_idle(c, &use, now);
        }
        TAILQ_FOREACH (c, &a->clients, entry)
                if (rpc_conn_is_open(c->conn) && c->memory > RPC_MAX_MESSAGE / 16)
                        check_memory(c);
        if (!TAILQ_EMPTY(&a->clients))
                (void) event_add(a->look, &every);
}

/* ---- the door ---- */

static int check_caller(struct api *a, const struct caller *who, struct err *e) {
        const struct config *cfg = &a->d->cfg;

        if (caller_is_root(who) || (cfg->has_group && caller_in_group(who, cfg->group)))
                return 0;
        (void) err_set(e, ERR_FORBIDDEN, -EACCES, "the user %u may not use this forkd", (unsigned) who->uid);
        return err_hint(e, cfg->has_group ? "root and members of its group may: see 'group' in forkd's configuration"
                                          : "only root may, as long as forkd's configuration has no 'group'");
}

/* One that gets no place: told why, and closed. */
static void turn_away(struct api *a, int fd, const struct caller *who, const struct err *e) {
        static const struct rpc_handlers none = { 0 };
        struct rpc_conn *conn;

        log_refusal(a, who, e);
        if (rpc_conn_new(a->d->base, fd, &none, NULL, &conn) < 0)
                return;
        tell(conn, e);
        rpc_conn_unref(conn);
}

static int client_new(struct api *a, int fd, struct caller *who, struct account *account) {
        static const struct timeval soon = { .tv_sec = LOOK_EVERY_S };
        struct client *c = calloc(1, sizeof(*c));
        int r;

        if (!c) {
                (void) close_fd(fd);
                return -ENOMEM;
        }
        *c = (struct client){ .api = a, .caller = who, .account = account, .since_ns = now_ns() };
        r = rpc_conn_new(a->d->base, fd, &client_handlers, c, &c->conn);
        if (r < 0) {
                free(c);
                return r;
        }
        if (TAILQ_EMPTY(&a->clients))
                (void) event_add(a->look, &soon);
        TAILQ_INSERT_TAIL(&a->clients, c, entry);
        return 0;
}

static void on_accept(int fd, void *arg) {
        cleanup_caller struct caller *who = NULL;
        struct account *account = NULL;
        struct err e = { 0 };
        struct api *a = arg;
        int r = caller_of_socket(fd, &who);

        if (r < 0) {
                log_warning("a client that nothing is known of was refused: %s", strerror(-r));
                (void) close_fd(fd);
                return;
        }
        r = check_caller(a, who, &e);
        if (r == 0)
                r = account_connect(&a->accounts, who->uid, caller_is_root(who), now_ns(), &account, &e);
        if (r < 0) {
                turn_away(a, fd, who, &e);
                return;
        }
        r = client_new(a, fd, who, account);
        if (r < 0) {
                log_warning("a client was refused: %s", strerror(-r));
                account_disconnect(account);
                return;
        }
        (void) TAKE_PTR(who); /* the client's */
}

/* The group may pass through the run directory, not look into it, and speak at the socket. */
static int open_to_group(struct api *a, struct err *e) {
        gid_t gid = a->d->cfg.group;
        struct stat st;
        int r = 0;

        if (stat(a->d->run_dir, &st) < 0 || chown(a->d->run_dir, (uid_t) -1, gid) < 0 ||
            chmod(a->d->run_dir, (st.st_mode & 07777) | 0010) < 0 || chown(a->path, (uid_t) -1, gid) < 0 ||
            chmod(a->path, 0660) < 0)
                r = -errno;
        return r < 0 ? err_errno(e, r, "opening %s to the group %u", a->path, (unsigned) gid) : 0;
}

static int api_listen(struct api *a, struct err *e) {
        struct daemon *d = a->d;
        int fd, r;

        (void) snprintf(a->path, sizeof(a->path), "%s/forkd.sock", d->run_dir);
        r = io_listen_unix(a->path, 0600, &fd);
        if (r == 0)
                r = rpc_listener_new(d->base, fd, on_accept, a, &a->listener);
        if (r < 0) {
                (void) err_errno(e, r, "listening on %s", a->path);
                return r == -EADDRINUSE ? err_hint(e, "another forkd serves it: use another --run-dir") : r;
        }
        return d->cfg.has_group ? open_to_group(a, e) : 0;
}

int api_new(struct daemon *d, struct api **ret, struct err *e) {
        const struct account_limits limits = {
                .connections = FORKD_MAX_CLIENTS,
                .reserved_connections = ROOT_CLIENTS,
                .user_connections = USER_MAX_CLIENTS,
                .user_streams = USER_MAX_STREAMS,
                .user_requests = USER_MAX_REQUESTS,
                .user_bytes = USER_MAX_PARAMS,
                .user_rate = d->cfg.requests_per_second,
        };
        struct api *a = calloc(1, sizeof(*a));
        int r;

        if (!a)
                return err_errno(e, -ENOMEM, "opening the control socket");
        a->d = d;
        TAILQ_INIT(&a->clients);
        accounts_init(&a->accounts, &limits);
        a->look = evtimer_new(d->base, on_look, a);
        r = a->look ? api_listen(a, e) : err_errno(e, -ENOMEM, "opening the control socket");
        if (r < 0) {
                api_free(a);
                return r;
        }
        *ret = a;
        return 0;
}

void api_close_door(struct api *a) {
        if (!a->listener)
                return;
        rpc_listener_free(TAKE_PTR(a->listener));
        (void) unlink(a->path);
}

void api_free(struct api *a) {
        if (!a)
                return;
        api_close_door(a);
        for (struct client *c; (c = TAILQ_FIRST(&a->clients));) {
                streams_client_gone(a->d, c->conn);
                rpc_conn_close(c->conn); /* a request that got no answer may hold it still */
                client_free(c);
        }
        if (a->look)
                event_free(a->look);
        accounts_clear(&a->accounts);
        free(a);
}
