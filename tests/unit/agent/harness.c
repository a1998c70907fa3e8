/* SPDX-License-Identifier: MIT */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "common/co.h"
#include "common/ids.h"
#include "common/io.h"

#define RUN_WAIT_MS 20000
#define RUN_OUT_MAX (64u << 20)

/* ---- the relay ---- */

static void dir_disarm(struct relay_dir *d) {
        if (d->readable)
                event_free(d->readable);
        if (d->writable)
                event_free(d->writable);
        d->readable = d->writable = NULL;
}

static void relay_close_client(struct guest *g) {
        dir_disarm(&g->to_guest); /* an event must not outlive its descriptor */
        dir_disarm(&g->from_guest);
        g->to_guest.from = g->from_guest.to = -1;
        g->client_fd = close_fd(g->client_fd);
}

static void relay_arm(struct guest *g);

/* Like QEMU: what the guest says while nobody is connected is lost. */
static void relay_flush(struct guest *g, struct relay_dir *d) {
        size_t n = d->len;

        if (d->passed >= d->cut_after)
                d->len = n = 0;
        else if (n > d->cut_after - d->passed)
                n = (size_t) (d->cut_after - d->passed);
        while (n > 0 && d->to >= 0) {
                ssize_t w = send(d->to, d->buf, n, MSG_NOSIGNAL | MSG_DONTWAIT);

                if (w < 0)
                        break;
                memmove(d->buf, d->buf + w, d->len - (size_t) w);
                d->len -= (size_t) w;
                d->passed += (uint64_t) w;
                n -= (size_t) w;
        }
        if (d->to < 0 || d->passed >= d->cut_after)
                d->len = 0;
        relay_arm(g);
}

static void relay_read(struct guest *g, struct relay_dir *d) {
        ssize_t n = read(d->from, d->buf, sizeof(d->buf));

        if (n <= 0) {
                if (n < 0 && errno == EAGAIN)
                        return;
                if (d == &g->to_guest)
                        relay_close_client(g);
                else
                        d->from = -1; /* the agent has died; the harness reaps it */
                relay_arm(g);
                return;
        }
        d->len = (size_t) n;
        relay_flush(g, d);
}

static void on_to_guest(evutil_socket_t fd, short what, void *arg) {
        struct guest *g = arg;

        if (what & EV_READ)
                relay_read(g, &g->to_guest);
        else
                relay_flush(g, &g->to_guest);
}

static void on_from_guest(evutil_socket_t fd, short what, void *arg) {
        struct guest *g = arg;

        if (what & EV_READ)
                relay_read(g, &g->from_guest);
        else
                relay_flush(g, &g->from_guest);
}

static void dir_arm(struct guest *g, struct relay_dir *d, event_callback_fn fn) {
        dir_disarm(d);
        if (d->len > 0 && d->to >= 0) {
                d->writable = event_new(g->base, d->to, EV_WRITE, fn, g);
                assert_int_equal(event_add(d->writable, NULL), 0);
        } else if (d->from >= 0) {
                d->readable = event_new(g->base, d->from, EV_READ, fn, g);
                assert_int_equal(event_add(d->readable, NULL), 0);
        }
}

static void relay_arm(struct guest *g) {
        dir_arm(g, &g->to_guest, on_to_guest);
        dir_arm(g, &g->from_guest, on_from_guest);
}

static void on_accept(evutil_socket_t fd, short what, void *arg) {
        struct guest *g = arg;
        int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (client < 0)
                return;
        g->n_accepted++;
        relay_close_client(g);
        g->client_fd = g->to_guest.from = g->from_guest.to = client;
        relay_arm(g);
}

void guest_drop_client(struct guest *g) {
        g->to_guest.len = g->from_guest.len = 0;
        relay_close_client(g);
        relay_arm(g);
}

void guest_inject(struct guest *g, bool to_guest, const void *data, size_t len) {
        const char *p = data;

        while (len > 0) {
                ssize_t n = send(to_guest ? g->agent_fd : g->client_fd, p, len, MSG_NOSIGNAL);

                if (n < 0 && errno == EAGAIN) {
                        assert_int_equal(co_wait_fd(to_guest ? g->agent_fd : g->client_fd, EV_WRITE, 5000), 0);
                        continue;
                }
                assert_true(n > 0);
                p += n;
                len -= (size_t) n;
        }
}

/* ---- the agent ---- */

static void agent_exec(struct guest *g, int fd) {
        char transport[32], root[80];
        const char *argv[] = { AGENT_BINARY, "--transport",     transport, "--root", root,
                               "--no-clock", "--hooks-timeout", "1500",    NULL };

        /* its own host name, when we may */
        (void) unshare(CLONE_NEWUTS);
        (void) fcntl(fd, F_SETFD, 0);
        (void) snprintf(transport, sizeof(transport), "fd:%d", fd);
        (void) snprintf(root, sizeof(root), "%s/root", g->dir);
        if (!getenv("FORKD_TEST_VERBOSE")) {
                int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

                (void) dup2(null, 2);
        }
        (void) execv(argv[0], (char *const *) argv);
        _exit(126);
}

static void agent_start(struct guest *g) {
        int sp[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sp), 0);
        g->agent = fork();
        assert_true(g->agent >= 0);
        if (g->agent == 0)
                agent_exec(g, sp[1]);
        (void) close(sp[1]);
        assert_int_equal(io_set_nonblock(sp[0], true), 0);
        g->agent_fd = g->to_guest.to = g->from_guest.from = sp[0];
}

/* Its exit code must be @code; -1: killed by us. */
static void agent_end(struct guest *g, int code) {
        int status;

        g->agent_fd = close_fd(g->agent_fd);
        g->to_guest.to = g->from_guest.from = -1;
        if (code < 0)
                (void) kill(g->agent, SIGKILL);
        assert_int_equal(waitpid(g->agent, &status, 0), g->agent);
        if (code >= 0)
                assert_true(WIFEXITED(status) && WEXITSTATUS(status) == code);
}

void guest_restart_agent(struct guest *g) {
        dir_disarm(&g->to_guest);
        dir_disarm(&g->from_guest);
        agent_end(g, -1);
        agent_start(g);
        relay_arm(g);
}

long guest_agent_kib(struct guest *g, const char *field) {
        char path[64], line[256];
        long kib = -1;
        FILE *f;

        (void) snprintf(path, sizeof(path), "/proc/%d/status", (int) g->agent);
        f = fopen(path, "re");
        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                if (strncmp(line, field, strlen(field)) == 0)
                        kib = strtol(line + strlen(field) + 1, NULL, 10);
        (void) fclose(f);
        return kib;
}

/* ---- a guest ---- */

struct body {
        void (*fn)(struct guest *g);
        struct guest *g;
        bool done;
};

static void body_main(void *arg) {
        struct body *b = arg;

        b->fn(b->g);
        b->done = true;
        (void) event_base_loopbreak(b->g->base);
}

static void on_deadline(evutil_socket_t fd, short what, void *arg) {
        (void) fprintf(stderr, "the test did not end in time\n");
        abort();
}

static void guest_up(struct guest *g) {
        char path[96];

        *g = (struct guest){ .agent_fd = -1, .listen_fd = -1, .client_fd = -1 };
        g->to_guest = g->from_guest = (struct relay_dir){ .from = -1, .to = -1, .cut_after = NO_CUT };
        g->base = event_base_new();
        assert_non_null(g->base);
        (void) snprintf(g->dir, sizeof(g->dir), "/tmp/forkd-agent-XXXXXX");
        assert_non_null(mkdtemp(g->dir));
        (void) snprintf(path, sizeof(path), "%s/root/etc/forkd/resume.d", g->dir);
        assert_int_equal(io_mkdir_p(path, 0755), 0);
        (void) snprintf(g->socket_path, sizeof(g->socket_path), "%s/agent.sock", g->dir);
        assert_int_equal(io_listen_unix(g->socket_path, 0600, &g->listen_fd), 0);
        g->accept_ev = event_new(g->base, g->listen_fd, EV_READ | EV_PERSIST, on_accept, g);
        assert_int_equal(event_add(g->accept_ev, NULL), 0);
        agent_start(g);
        relay_arm(g);
}

static void guest_down(struct guest *g) {
        guest_link_free(g->link);
        dir_disarm(&g->to_guest);
        dir_disarm(&g->from_guest);
        agent_end(g, 0); /* it ends when its stream does: also a check that it is alive and well */
        (void) close_fd(g->client_fd);
        (void) close_fd(g->listen_fd);
        event_free(g->accept_ev);
        event_base_free(g->base);
        assert_int_equal(io_remove_tree(AT_FDCWD, g->dir), 0);
}

void with_guest(void (*fn)(struct guest *g), int timeout_s) {
        struct guest g;
        struct body b = { .fn = fn, .g = &g };
        struct timeval tv = { .tv_sec = timeout_s };
        struct event *deadline;
        unsigned alive = co_alive(); /* of tests that failed half-way */

        guest_up(&g);
        deadline = event_new(g.base, -1, 0, on_deadline, NULL);
        assert_int_equal(event_add(deadline, &tv), 0);
        assert_int_equal(co_start(g.base, body_main, &b), 0);
        if (!b.done)
                (void) event_base_dispatch(g.base);
        assert_true(b.done);
        /* what was deferred to the loop's next turn */
        (void) event_base_loop(g.base, EVLOOP_NONBLOCK);
        assert_int_equal(co_alive(), alive);
        event_free(deadline);
        guest_down(&g);
}

void guest_identity_fill(struct guest_identity *id, enum wire_wake_kind kind) {
        *id = (struct guest_identity){ .kind = kind };
        (void) snprintf(id->hostname, sizeof(id->hostname), "clone-%u", (unsigned) kind);
        (void) snprintf(id->machine_id, sizeof(id->machine_id), "%032x", 0xabc0u + (unsigned) kind);
        random_bytes(id->entropy, sizeof(id->entropy));
}

void guest_new_link(struct guest *g) {
        unsigned accepted = g->n_accepted;
        struct err e = { 0 };

        guest_link_free(TAKE_PTR(g->link));
        assert_int_equal(guest_link_new(g->base, g->socket_path, &g->link), 0);
        assert_int_equal(guest_link_connect(g->link, 5000, &e), 0);
        while (g->n_accepted == accepted) /* the kernel says connected before the relay has seen it */
                co_sleep(1);
}

int guest_wake(struct guest *g, enum wire_wake_kind kind, struct guest_ack *ret) {
        struct guest_identity id;
        struct err e = { 0 };
        int r;

        guest_new_link(g);
        guest_identity_fill(&id, kind);
        assert_int_equal(guest_link_queue_wake(g->link, &id), 0);
        r = guest_link_wait_ack(g->link, 10000, ret, &e);
        if (r < 0)
                print_message("wake: %s\n", e.message);
        return r;
}

/* ---- commands ---- */

static void run_notify(struct run *r) {
        if (r->wait)
                co_wake(TAKE_PTR(r->wait), 0);
}

static void run_data(unsigned stream, const void *data, size_t len, void *arg) {
        struct run *r = arg;

        assert_in_range(stream, WIRE_STDOUT, WIRE_STDERR);
        r->total[stream] += len;
        if (!r->discard) {
                assert_true(r->len[stream] + len < RUN_OUT_MAX);
                r->out[stream] = realloc(r->out[stream], r->len[stream] + len + 1);
                memcpy(r->out[stream] + r->len[stream], data, len);
                r->len[stream] += len;
                r->out[stream][r->len[stream]] = '\0';
        }
        if (!r->hold)
                assert_int_equal(guest_call_credit(r->call, stream, (uint32_t) len), 0);
        run_notify(r);
}

static void run_eof(unsigned stream, void *arg) {
        struct run *r = arg;

        assert_false(r->eof[stream]);
        r->eof[stream] = true;
        run_notify(r);
}

static void run_credit(unsigned stream, uint32_t bytes, void *arg) {
        struct run *r = arg;

        assert_int_equal(stream, WIRE_STDIN);
        r->send_credit += bytes;
        assert_true(r->send_credit <= WIRE_CREDIT_INITIAL);
        run_notify(r);
}

static void run_done(const struct guest_result *res, void *arg) {
        struct run *r = arg;

        assert_false(r->done);
        r->done = true;
        r->res = *res;
        run_notify(r);
}

static void run_file(uint64_t size, uint32_t mode, void *arg) {
        struct run *r = arg;

        r->file_size = size;
        r->file_mode = mode;
}

const struct guest_call_handlers run_handlers = {
        .on_data = run_data,
        .on_eof = run_eof,
        .on_credit = run_credit,
        .on_done = run_done,
        .on_file = run_file,
};

void run_start(struct guest *g, struct run *r, const struct guest_exec_params *p) {
        struct err e = { 0 };

        r->send_credit = WIRE_CREDIT_INITIAL;
        if (guest_exec(g->link, p, &run_handlers, r, &r->call, &e) < 0)
                fail_msg("%s", e.message);
}

void run_wait_event(struct run *r) {
        struct co_wait w = CO_WAIT_INIT;
        int ret;

        r->wait = &w;
        ret = co_wait(&w, RUN_WAIT_MS);
        r->wait = NULL;
        if (ret < 0)
                fail_msg("nothing happened in time; so far: '%s', '%s'", run_text(r, WIRE_STDOUT), run_text(r, WIRE_STDERR));
}

void run_wait(struct run *r) {
        while (!r->done)
                run_wait_event(r);
}

void run_clear(struct run *r) {
        for (size_t i = 0; i < WIRE_N_STREAMS; i++)
                free(r->out[i]);
        *r = (struct run){ 0 };
}

void run_sh(struct guest *g, struct run *r, const char *script) {
        const char *argv[] = { "sh", "-c", script, NULL };

        run_start(g, r, &(struct guest_exec_params){ .argv = argv });
        run_wait(r);
}

int run_send(struct run *r, const void *data, size_t len) {
        int ret = guest_call_send(r->call, data, len);

        if (ret == 0)
                r->send_credit -= (uint32_t) len;
        return ret;
}

void run_send_all(struct run *r, const void *data, size_t len) {
        const uint8_t *p = data;

        while (len > 0 && !r->done) {
                size_t n = MIN_OF(len, (size_t) r->send_credit);

                if (n == 0) {
                        run_wait_event(r);
                        continue;
                }
                assert_int_equal(run_send(r, p, n), 0);
                p += n;
                len -= n;
        }
        if (!r->done)
                assert_int_equal(guest_call_eof(r->call), 0);
}

const char *run_text(struct run *r, unsigned stream) {
        return r->out[stream] ? (const char *) r->out[stream] : "";
}
