/* SPDX-License-Identifier: MIT */
/* Conversations that are cut, begun anew, lied to; the wake-up; files. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "agent/msg.h"
#include "common/co.h"
#include "common/ids.h"
#include "common/io.h"
#include "harness.h"

static void expect_works(struct guest *g) {
        cleanup_run struct run r = { 0 };
        struct err e = { 0 };
        double ms;

        assert_int_equal(guest_link_ping(g->link, 5000, &ms, &e), 0);
        run_sh(g, &r, "echo works");
        assert_string_equal(run_text(&r, WIRE_STDOUT), "works\n");
}

static void read_file(struct guest *g, const char *name, char *buf, size_t size) {
        char path[160];
        FILE *f;

        (void) snprintf(path, sizeof(path), "%s/%s", g->dir, name);
        f = fopen(path, "re");
        assert_non_null(f);
        buf[fread(buf, 1, size - 1, f)] = '\0';
        (void) fclose(f);
}

static void write_hook(struct guest *g, const char *name, const char *text, mode_t mode) {
        char path[160];

        (void) snprintf(path, sizeof(path), "%s/root/etc/forkd/resume.d/%s", g->dir, name);
        assert_int_equal(io_write_file_atomic(AT_FDCWD, path, text, strlen(text), mode, false), 0);
}

/* ---- beginning ---- */

static void body_hello(struct guest *g) {
        struct guest_identity id;
        struct guest_ack ack;
        struct err e = { 0 };
        double ms;

        guest_new_link(g);
        assert_int_equal(guest_link_wait_hello(g->link, 10000, &e), 0);
        assert_false(guest_link_ready(g->link));
        assert_int_equal(guest_link_ping(g->link, 1000, &ms, &e), -ENOTCONN);
        guest_identity_fill(&id, WIRE_WAKE_BOOT);
        assert_int_equal(guest_link_queue_wake(g->link, &id), 0);
        assert_int_equal(guest_link_wait_ack(g->link, 10000, &ack, &e), 0);
        assert_string_equal(ack.agent_version, FORKD_VERSION);
        assert_int_equal(strlen(ack.boot_id), 36);
        assert_true(guest_link_ready(g->link));
        expect_works(g);
}

/* Asked, and nobody waits: what comes shows. */
static void body_poke(struct guest *g) {
        uint64_t before, start = now_ns();

        guest_new_link(g);
        guest_link_poke(g->link); /* nobody to ask yet */
        assert_int_equal(guest_link_heard_ns(g->link), 0);
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        before = guest_link_heard_ns(g->link); /* the acknowledgement */
        assert_true(before >= start);
        assert_int_equal(kill(g->agent, SIGSTOP), 0);
        for (unsigned i = 0; i < 1000; i++) /* one question is under way, however often it is put */
                guest_link_poke(g->link);
        co_sleep(20);
        assert_int_equal(guest_link_heard_ns(g->link), before);
        assert_int_equal(kill(g->agent, SIGCONT), 0);
        while (guest_link_heard_ns(g->link) == before)
                co_sleep(1);
        before = guest_link_heard_ns(g->link);
        guest_link_poke(g->link); /* and another, now that it is answered */
        while (guest_link_heard_ns(g->link) == before)
                co_sleep(1);
        expect_works(g);
}

static void test_poke(void **state) {
        with_guest(body_poke, 30);
}

static void test_hello(void **state) {
        with_guest(body_hello, 30);
}

/* The host comes after the first HELLO was lost: it is said again. */
static void body_late_host(struct guest *g) {
        struct err e = { 0 };

        co_sleep(100); /* the first HELLO goes to nobody */
        guest_new_link(g);
        assert_int_equal(guest_link_wait_hello(g->link, 10000, &e), 0);
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        expect_works(g);
}

static void test_late_host(void **state) {
        with_guest(body_late_host, 30);
}

static void body_timeouts(struct guest *g) {
        struct guest_identity id;
        struct err e = { 0 };
        double ms;

        assert_int_equal(guest_link_new(g->base, "/nonexistent/socket", &g->link), 0);
        assert_int_equal(guest_link_connect(g->link, 60, &e), -ETIMEDOUT);
        assert_string_equal(e.code, ERR_TIMEOUT);
        guest_link_free(TAKE_PTR(g->link));

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        assert_int_equal(kill(g->agent, SIGSTOP), 0);
        assert_int_equal(guest_link_ping(g->link, 60, &ms, &e), -ETIMEDOUT);
        guest_new_link(g);
        assert_int_equal(guest_link_wait_hello(g->link, 60, &e), -ETIMEDOUT);
        guest_identity_fill(&id, WIRE_WAKE_RESTORE);
        assert_int_equal(guest_link_queue_wake(g->link, &id), 0);
        assert_int_equal(guest_link_wait_ack(g->link, 600, NULL, &e), -ETIMEDOUT);
        assert_string_equal(e.code, ERR_TIMEOUT);
        /* several WAKEs have piled up by now; to the agent they are one */
        assert_int_equal(kill(g->agent, SIGCONT), 0);
        assert_int_equal(guest_link_wait_ack(g->link, 10000, NULL, &e), 0);
        expect_works(g);
}

static void test_timeouts(void **state) {
        with_guest(body_timeouts, 30);
}

static void body_bad_identity(struct guest *g) {
        struct guest_identity id;

        guest_identity_fill(&id, WIRE_WAKE_BOOT);
        assert_int_equal(guest_link_new(g->base, g->socket_path, &g->link), 0);
        assert_int_equal(guest_link_queue_wake(g->link, &id), -ENOTCONN);
        guest_new_link(g);
        strcpy(id.hostname, "no/name");
        assert_int_equal(guest_link_queue_wake(g->link, &id), -EINVAL);
        guest_identity_fill(&id, WIRE_WAKE_BOOT);
        id.machine_id[3] = 'X';
        assert_int_equal(guest_link_queue_wake(g->link, &id), -EINVAL);
        memset(id.machine_id, 'a', sizeof(id.machine_id));
        assert_int_equal(guest_link_queue_wake(g->link, &id), -EINVAL);
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
}

static void test_bad_identity(void **state) {
        with_guest(body_bad_identity, 30);
}

/* ---- the wake-up ---- */

static void body_identity(struct guest *g) {
        cleanup_run struct run r = { 0 };
        struct guest_identity id;
        struct guest_ack ack;
        char text[512], want[256];

        write_hook(g, "10-first", "#!/bin/sh\necho \"$0 $FORKD_KIND $FORKD_HOSTNAME ${#FORKD_EPOCH}\" >> ${0%/*}/../log\n", 0755);
        write_hook(g, "20-second", "#!/bin/sh\necho second >> ${0%/*}/../log\nexit 3\n", 0755);
        write_hook(g, "15-not-executable", "#!/bin/sh\necho never >> ${0%/*}/../log\n", 0644);
        write_hook(g, "30-backup~", "#!/bin/sh\necho never >> ${0%/*}/../log\n", 0755);
        assert_int_equal(guest_wake(g, WIRE_WAKE_RESTORE, &ack), 0);
        guest_identity_fill(&id, WIRE_WAKE_RESTORE);

        (void) snprintf(want, sizeof(want), "%s\n", id.hostname);
        read_file(g, "root/etc/hostname", text, sizeof(text));
        assert_string_equal(text, want);
        (void) snprintf(want, sizeof(want), "%s\n", id.machine_id);
        read_file(g, "root/etc/machine-id", text, sizeof(text));
        assert_string_equal(text, want);
        (void) snprintf(want, sizeof(want), "%s/root/etc/forkd/resume.d/10-first restore %s 16\nsecond\n", g->dir, id.hostname);
        read_file(g, "root/etc/forkd/log", text, sizeof(text));
        assert_string_equal(text, want);
        assert_true(ack.hooks_us > 0);
        if (geteuid() != 0)
                return; /* entropy and hostname need the privilege: warnings, no failure */
        assert_int_equal(ack.n_warnings, 1);
        assert_string_equal(ack.warnings[0], "hook 20-second: exit code 3");
        run_sh(g, &r, "uname -n");
        (void) snprintf(want, sizeof(want), "%s\n", id.hostname);
        assert_string_equal(run_text(&r, WIRE_STDOUT), want);
}

static void test_identity(void **state) {
        with_guest(body_identity, 30);
}

/* A hook that hangs holds the wake-up until the deadline, and no longer. */
static void body_hook_hangs(struct guest *g) {
        struct guest_ack ack;
        uint64_t start = now_ns();
        bool found = false;

        write_hook(g, "10-hang", "#!/bin/sh\nsleep 1000\n", 0755);
        write_hook(g, "20-never", "#!/bin/sh\ntrue\n", 0755);
        assert_int_equal(guest_wake(g, WIRE_WAKE_RESTORE, &ack), 0);
        assert_true(ms_since(start) >= 1400 && ms_since(start) < 8000);
        for (unsigned i = 0; i < ack.n_warnings; i++)
                found |= strcmp(ack.warnings[i], "hook 10-hang: killed at the deadline of 1500 ms") == 0;
        assert_true(found);
        assert_string_equal(ack.warnings[ack.n_warnings - 1], "deadline reached: 1 hooks were not run");
        expect_works(g);
}

static void test_hook_hangs(void **state) {
        with_guest(body_hook_hangs, 30);
}

/* A snapshot taken while the hooks ran, restored: they begin anew; forkd restarted: they go on. */
static void body_hook_interrupted(struct guest *g) {
        struct guest_identity id;
        struct guest_ack ack;
        char text[64];

        write_hook(g, "10-slow", "#!/bin/sh\necho $FORKD_KIND >> ${0%/*}/../log\nsleep 0.5\necho end >> ${0%/*}/../log\n", 0755);
        guest_new_link(g);
        guest_identity_fill(&id, WIRE_WAKE_BOOT);
        assert_int_equal(guest_link_queue_wake(g->link, &id), 0);
        co_sleep(200);
        assert_int_equal(guest_wake(g, WIRE_WAKE_RESTORE, &ack), 0);
        read_file(g, "root/etc/forkd/log", text, sizeof(text));
        assert_true(strcmp(text, "boot\nrestore\nend\n") == 0 || strcmp(text, "restore\nend\n") == 0);

        guest_new_link(g);
        guest_identity_fill(&id, WIRE_WAKE_RESTORE);
        assert_int_equal(guest_link_queue_wake(g->link, &id), 0);
        co_sleep(200);
        assert_int_equal(guest_wake(g, WIRE_WAKE_RECONNECT, &ack), 0);
        read_file(g, "root/etc/forkd/log", text, sizeof(text));
        assert_string_equal(text + strlen(text) - 12, "restore\nend\n");
        expect_works(g);
}

static void test_hook_interrupted(void **state) {
        with_guest(body_hook_interrupted, 30);
}

static void write_etc(struct guest *g, const char *name, const char *text) {
        char path[160];
        FILE *f;

        (void) snprintf(path, sizeof(path), "%s/root/etc/%s", g->dir, name);
        f = fopen(path, "we");
        assert_non_null(f);
        (void) fputs(text, f);
        assert_int_equal(fclose(f), 0);
}

/* What was in the files is gone, however long it was, and what is no file is replaced. */
static void body_files_in_place(struct guest *g) {
        struct guest_identity id;
        char text[512], want[256], path[160];

        guest_identity_fill(&id, WIRE_WAKE_RESTORE);
        for (int i = 0; i < 3; i++) {
                write_etc(g, "hostname",
                          i == 0 ? "x" : "a-name-that-is-very-much-longer-than-any-that-the-guest-was-given\nand more\n");
                write_etc(g, "machine-id", i == 0 ? "" : "uninitialized\n");
                if (i == 2) {
                        (void) snprintf(path, sizeof(path), "%s/root/etc/hostname", g->dir);
                        assert_int_equal(unlink(path), 0);
                        assert_int_equal(symlink("nowhere", path), 0);
                }
                assert_int_equal(guest_wake(g, WIRE_WAKE_RESTORE, NULL), 0);
                (void) snprintf(want, sizeof(want), "%s\n", id.hostname);
                read_file(g, "root/etc/hostname", text, sizeof(text));
                assert_string_equal(text, want);
                (void) snprintf(want, sizeof(want), "%s\n", id.machine_id);
                read_file(g, "root/etc/machine-id", text, sizeof(text));
                assert_string_equal(text, want);
        }
}

static void test_files_in_place(void **state) {
        with_guest(body_files_in_place, 30);
}

/* One connection, many conversations: what is said in one is not heard in the next. */
static void body_rewind(struct guest *g) {
        struct guest_identity id;
        double ms;
        struct err e;

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        guest_identity_fill(&id, WIRE_WAKE_RESTORE);
        for (int i = 0; i < 50; i++) {
                guest_link_poke(g->link); /* answered, perhaps, after the end */
                guest_link_rewind(g->link);
                assert_false(guest_link_ready(g->link));
                assert_true(guest_link_is_open(g->link));
                guest_link_rewind(g->link);
                assert_int_equal(guest_link_ping(g->link, 1000, &ms, &e), -ENOTCONN);
                assert_int_equal(guest_link_queue_wake(g->link, &id), 0);
                assert_int_equal(guest_link_wait_ack(g->link, 10000, NULL, &e), 0);
                assert_false(guest_link_is_open(g->link));
                assert_int_equal(guest_link_ping(g->link, 10000, &ms, &e), 0);
        }
        expect_works(g);
}

static void test_rewind(void **state) {
        with_guest(body_rewind, 30);
}

static void body_reconnect(struct guest *g) {
        struct guest_ack ack;
        char path[160];

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        (void) snprintf(path, sizeof(path), "%s/root/etc/hostname", g->dir);
        assert_int_equal(unlink(path), 0);
        for (int i = 0; i < 20; i++)
                assert_int_equal(guest_wake(g, WIRE_WAKE_RECONNECT, &ack), 0);
        assert_int_equal(access(path, F_OK), -1); /* the identity was left alone */
        expect_works(g);
}

static void test_reconnect(void **state) {
        with_guest(body_reconnect, 30);
}

/* 200 wake-ups in a row, each with commands cut off in the middle of their output. */
static void body_200_restores(struct guest *g) {
        const char *argv[] = { "sh", "-c", "head -c 400000 /dev/urandom; echo err >&2", NULL };

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        for (int i = 0; i < 200; i++) {
                struct run r = { .discard = true };

                run_start(g, &r, &(struct guest_exec_params){ .argv = argv });
                for (int n = 0; n < i % 5; n++)
                        run_wait_event(&r);
                g->from_guest.cut_after = g->from_guest.passed + (uint64_t) i * 37u;
                guest_drop_client(g);
                g->from_guest.cut_after = NO_CUT;
                assert_int_equal(guest_wake(g, WIRE_WAKE_RESTORE, NULL), 0);
                assert_false(r.done && r.res.r == 0);
        }
        expect_works(g);
}

static void test_200_restores(void **state) {
        with_guest(body_200_restores, 60);
}

/* ---- cuts ---- */

/* The stream towards the agent ends after every possible byte of a frame; the next host is understood. */
static void body_cut_to_guest(struct guest *g) {
        char data[180];

        memset(data, 'x', sizeof(data));
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        for (uint64_t cut = 0; cut < 260; cut++) {
                const char *argv[] = { "cat", NULL };
                struct run r = { .discard = true };

                run_start(g, &r, &(struct guest_exec_params){ .argv = argv, .has_stdin = true });
                expect_works(g); /* so that the EXEC is through */
                g->to_guest.cut_after = g->to_guest.passed + cut;
                assert_int_equal(guest_call_send(r.call, data, sizeof(data)), 0);
                co_sleep(1);
                guest_drop_client(g);
                g->to_guest.cut_after = NO_CUT;
                assert_int_equal(guest_wake(g, cut % 2 ? WIRE_WAKE_RESTORE : WIRE_WAKE_RECONNECT, NULL), 0);
        }
        expect_works(g);
}

static void test_cut_to_guest(void **state) {
        with_guest(body_cut_to_guest, 60);
}

/* The other direction: what the agent says is swallowed from some byte on, within one connection. Then the
 * sequence has a gap; the host must notice, never hand on less than was said. */
static void body_cut_from_guest(struct guest *g) {
        for (uint64_t cut = 0; cut < 150; cut++) {
                struct run r = { 0 };
                struct err e = { 0 };
                double ms;
                const char *argv[] = { "sh", "-c", "echo 0123456789012345678901234567890123456789", NULL };

                assert_int_equal(guest_wake(g, WIRE_WAKE_RECONNECT, NULL), 0);
                g->from_guest.cut_after = g->from_guest.passed + cut;
                run_start(g, &r, &(struct guest_exec_params){ .argv = argv });
                assert_int_equal(guest_link_ping(g->link, 20, &ms, &e) == 0 && r.done, false);
                g->from_guest.cut_after = NO_CUT;
                /* a whole frame arrives now, out of sequence unless nothing at all was swallowed */
                if (guest_link_ping(g->link, 5000, &ms, &e) == 0)
                        run_wait(&r);
                else
                        assert_false(guest_link_ready(g->link));
                if (r.done && r.res.r == 0)
                        assert_int_equal(r.len[WIRE_STDOUT], 41);
                run_clear(&r);
        }
        assert_int_equal(guest_wake(g, WIRE_WAKE_RECONNECT, NULL), 0);
        expect_works(g);
}

static void test_cut_from_guest(void **state) {
        with_guest(body_cut_from_guest, 60);
}

static void body_garbage(struct guest *g) {
        static uint8_t junk[300000];
        struct guest_identity id;
        struct err e = { 0 };

        random_bytes(junk, sizeof(junk));
        guest_inject(g, true, junk, sizeof(junk));
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        expect_works(g);
        memset(junk, 0, sizeof(junk));
        guest_inject(g, true, junk, sizeof(junk));
        expect_works(g);
        memset(junk, 0x55, sizeof(junk));
        guest_inject(g, true, junk, 1000);
        guest_new_link(g);
        guest_inject(g, false, junk, sizeof(junk)); /* before the conversation: the rest of something */
        guest_identity_fill(&id, WIRE_WAKE_RESTORE);
        assert_int_equal(guest_link_queue_wake(g->link, &id), 0);
        assert_int_equal(guest_link_wait_ack(g->link, 5000, NULL, &e), 0);
        expect_works(g);
        if (!AGENT_SANITIZED)
                assert_true(guest_agent_kib(g, "VmHWM") < 3072);
}

static void test_garbage(void **state) {
        with_guest(body_garbage, 30);
}

/* Frames of another epoch: the agent does not even count them. */
static void body_wrong_epoch(struct guest *g) {
        const char *argv[] = { "sh", "-c", "echo > /tmp/forkd-agent-must-not-exist", NULL }, *env[] = { NULL };
        cleanup_mp_buf struct mp_buf b = { 0 };
        uint8_t frame[4096];
        struct wire_msg m = { .type = WIRE_EXEC, .call = 77, .exec = { .argv = argv, .env = env, .cwd = "/" } };
        struct wire_frame f = { .type = WIRE_EXEC, .epoch = 12345 };

        mp_buf_init(&b);
        wire_msg_encode(&m, &b);
        f.payload = (const uint8_t *) b.sb.data;
        f.len = b.sb.size;
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        for (f.seq = 0; f.seq < 5; f.seq++)
                guest_inject(g, true, frame, wire_encode(&f, frame));
        f.epoch = 0;
        guest_inject(g, true, frame, wire_encode(&f, frame));
        expect_works(g);
        assert_int_equal(access("/tmp/forkd-agent-must-not-exist", F_OK), -1);
}

static void test_wrong_epoch(void **state) {
        with_guest(body_wrong_epoch, 30);
}

/* ---- losses ---- */

struct loss {
        unsigned n;
        int r;
        struct co_wait wait;
};

static void on_lost(int r, void *arg) {
        struct loss *x = arg;

        x->n++;
        x->r = r;
        co_wake(&x->wait, 0);
}

static void expect_loss(struct guest *g, int reason, void (*cause)(struct guest *g)) {
        const char *argv[] = { "sleep", "1000", NULL };
        struct run r[3] = { 0 };
        struct loss x = { 0 };
        struct guest_call *call;
        struct err e = { 0 };
        double ms;

        assert_int_equal(guest_wake(g, WIRE_WAKE_RECONNECT, NULL), 0);
        guest_link_set_on_lost(g->link, on_lost, &x);
        for (size_t i = 0; i < 3; i++)
                run_start(g, &r[i], &(struct guest_exec_params){ .argv = argv, .has_stdin = true });
        cause(g);
        assert_int_equal(co_wait(&x.wait, 10000), 0);
        assert_int_equal(x.n, 1);
        assert_int_equal(x.r, reason);
        for (size_t i = 0; i < 3; i++) {
                assert_true(r[i].done); /* before on_lost */
                assert_int_equal(r[i].res.r, reason);
                assert_string_equal(r[i].res.e.code, ERR_AGENT);
        }
        assert_false(guest_link_ready(g->link));
        assert_int_equal(guest_link_ping(g->link, 1000, &ms, &e), -ENOTCONN);
        assert_int_equal(guest_exec(g->link, &(struct guest_exec_params){ .argv = argv }, &run_handlers, NULL, &call, &e),
                         -ENOTCONN);
}

static void body_losses(struct guest *g) {
        expect_loss(g, -EPIPE, guest_drop_client);
        expect_loss(g, -ECONNRESET, guest_restart_agent);
        assert_int_equal(guest_wake(g, WIRE_WAKE_RECONNECT, NULL), 0);
        expect_works(g);
}

static void test_losses(void **state) {
        with_guest(body_losses, 30);
}

/* A command that runs across the wake-up goes on: not hung up, its output drained, its stdin at its end. */
static void body_orphans(struct guest *g) {
        const char *argv[] = { "sh", "-c",
                               "trap 'echo hup > hup' HUP; echo $$ > pid; head -c 1000000 /dev/zero; cat; echo end > end", NULL };
        cleanup_run struct run r = { .hold = true, .discard = true }, check = { 0 };
        char script[200], path[96];

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        run_start(g, &r, &(struct guest_exec_params){ .argv = argv, .has_stdin = true, .cwd = g->dir });
        while (r.total[WIRE_STDOUT] < WIRE_CREDIT_INITIAL)
                run_wait_event(&r);
        assert_int_equal(guest_wake(g, WIRE_WAKE_RESTORE, NULL), 0);
        (void) snprintf(script, sizeof(script),
                        "cd %s; until [ -e end ]; do sleep 0.02; done; read p < pid;"
                        "while kill -0 $p; do sleep 0.02; done",
                        g->dir);
        run_sh(g, &check, script);
        assert_int_equal(check.res.code, 0);
        (void) snprintf(path, sizeof(path), "%s/hup", g->dir);
        assert_int_equal(access(path, F_OK), -1);
}

static void test_orphans(void **state) {
        with_guest(body_orphans, 30);
}

/* ---- files ---- */

static void put(struct guest *g, struct run *r, const char *path, uint32_t mode, uint64_t size, const void *data, size_t len) {
        struct err e = { 0 };

        r->send_credit = WIRE_CREDIT_INITIAL;
        assert_int_equal(guest_put(g->link, path, mode, size, &run_handlers, r, &r->call, &e), 0);
        run_send_all(r, data, len);
        run_wait(r);
}

static void get(struct guest *g, struct run *r, const char *path) {
        struct err e = { 0 };

        assert_int_equal(guest_get(g->link, path, &run_handlers, r, &r->call, &e), 0);
        run_wait(r);
}

static void round_trip(struct guest *g, size_t size) {
        cleanup_run struct run w = { 0 }, r = { 0 };
        uint8_t *data = malloc(size + 1);
        char path[96];

        (void) snprintf(path, sizeof(path), "%s/file", g->dir);
        random_bytes(data, size);
        put(g, &w, path, 0751, size, data, size);
        assert_int_equal(w.res.r, 0);
        assert_int_equal(w.res.bytes, size);
        get(g, &r, path);
        assert_int_equal(r.res.r, 0);
        assert_int_equal(r.res.bytes, size);
        assert_int_equal(r.file_size, size);
        assert_int_equal(r.file_mode, 0751);
        assert_int_equal(r.res.mode, 0751);
        assert_int_equal(r.len[WIRE_STDOUT], size);
        if (size)
                assert_memory_equal(r.out[WIRE_STDOUT], data, size);
        assert_true(r.eof[WIRE_STDOUT]);
        free(data);
}

static unsigned count_files(struct guest *g, const char *pattern) {
        cleanup_run struct run r = { 0 };
        char script[160];

        (void) snprintf(script, sizeof(script), "ls -A %s | grep -c '%s'", g->dir, pattern);
        run_sh(g, &r, script);
        return (unsigned) atoi(run_text(&r, WIRE_STDOUT));
}

static void body_files(struct guest *g) {
        static const size_t sizes[] = { 0, 1, WIRE_DATA_MAX, WIRE_CREDIT_INITIAL + 1, 20u << 20 };

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
                round_trip(g, sizes[i]);
        assert_int_equal(count_files(g, "forkd-put"), 0);
}

static void test_files(void **state) {
        with_guest(body_files, 60);
}

static void expect_file_error(struct guest *g, bool is_put, const char *path, int error, const char *code) {
        cleanup_run struct run r = { 0 };

        if (is_put)
                put(g, &r, path, 0644, 3, "abc", 3);
        else
                get(g, &r, path);
        assert_int_equal(r.res.r, -error);
        assert_string_equal(r.res.e.code, code);
        assert_non_null(strstr(r.res.e.message, path));
        assert_non_null(strstr(r.res.e.message, strerror(error)));
}

static void body_file_errors(struct guest *g) {
        cleanup_run struct run small = { 0 }, big = { 0 }, full = { 0 }, mount = { 0 };
        struct guest_call *call;
        struct err e = { 0 };
        static uint8_t data[300000];
        char path[96], script[200];

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        expect_file_error(g, false, "/no/such/file", ENOENT, ERR_NOT_FOUND);
        expect_file_error(g, false, "/usr", EISDIR, err_code_of(-EISDIR));
        expect_file_error(g, false, "/dev/null", EINVAL, ERR_INVALID);
        expect_file_error(g, true, "/usr", EISDIR, err_code_of(-EISDIR));
        expect_file_error(g, true, "/no/such/file", ENOENT, ERR_NOT_FOUND);
        expect_file_error(g, true, "/dev/null", EINVAL, ERR_INVALID);
        assert_int_equal(guest_get(g->link, "relative", &run_handlers, NULL, &call, &e), -EINVAL);
        assert_int_equal(guest_put(g->link, "/x", 01000000, 1, &run_handlers, NULL, &call, &e), -EINVAL);

        /* fewer and more bytes than promised */
        (void) snprintf(path, sizeof(path), "%s/partial", g->dir);
        put(g, &small, path, 0600, 10, data, 9);
        assert_int_equal(small.res.r, -EPROTO);
        put(g, &big, path, 0600, 10, data, 11);
        assert_int_equal(big.res.r, -EPROTO);
        assert_int_equal(access(path, F_OK), -1);

        if (geteuid() == 0) {
                /* no space: a mount of the test's own, in the agent's view only if it has one */
                (void) snprintf(script, sizeof(script), "mkdir %s/tiny && mount -t tmpfs -o size=64k tmpfs %s/tiny", g->dir,
                                g->dir);
                run_sh(g, &mount, script);
                assert_int_equal(mount.res.code, 0);
                (void) snprintf(path, sizeof(path), "%s/tiny/file", g->dir);
                put(g, &full, path, 0600, sizeof(data), data, sizeof(data));
                assert_int_equal(full.res.r, -ENOSPC);
                assert_string_equal(full.res.e.code, ERR_NO_SPACE);
                run_clear(&mount);
                (void) snprintf(script, sizeof(script), "ls -A %s/tiny | wc -l; umount %s/tiny", g->dir, g->dir);
                run_sh(g, &mount, script);
                assert_string_equal(run_text(&mount, WIRE_STDOUT), "0\n");
        }
        expect_works(g);
}

static void test_file_errors(void **state) {
        with_guest(body_file_errors, 30);
}

/* Given up half-way, by the client and by a wake-up: nothing stays behind. */
static void body_put_given_up(struct guest *g) {
        static uint8_t data[1000];
        struct err e = { 0 };
        struct run r = { 0 };
        char path[96];

        (void) snprintf(path, sizeof(path), "%s/file", g->dir);
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        for (int i = 0; i < 2; i++) {
                assert_int_equal(guest_put(g->link, path, 0600, 5000, &run_handlers, &r, &r.call, &e), 0);
                assert_int_equal(guest_call_send(r.call, data, sizeof(data)), 0);
                assert_int_equal(count_files(g, "forkd-put"), 1);
                if (i == 0)
                        guest_call_cancel(r.call);
                else
                        assert_int_equal(guest_wake(g, WIRE_WAKE_RESTORE, NULL), 0);
                assert_int_equal(count_files(g, "forkd-put"), 0);
        }
        assert_int_equal(access(path, F_OK), -1);
}

static void test_put_given_up(void **state) {
        with_guest(body_put_given_up, 30);
}

static void body_put_symlink(struct guest *g) {
        cleanup_run struct run r = { 0 };
        char target[96], link_path[96], text[16];
        struct stat st;

        (void) snprintf(target, sizeof(target), "%s/target", g->dir);
        (void) snprintf(link_path, sizeof(link_path), "%s/link", g->dir);
        assert_int_equal(io_write_file_atomic(AT_FDCWD, target, "old", 3, 0644, false), 0);
        assert_int_equal(symlink("target", link_path), 0);
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        put(g, &r, link_path, 0644, 3, "new", 3);
        assert_int_equal(r.res.r, 0);
        assert_int_equal(lstat(link_path, &st), 0);
        assert_true(S_ISLNK(st.st_mode));
        read_file(g, "target", text, sizeof(text));
        assert_string_equal(text, "new");
}

static void test_put_symlink(void **state) {
        with_guest(body_put_symlink, 30);
}

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_hello),          cmocka_unit_test(test_poke),
                cmocka_unit_test(test_late_host),      cmocka_unit_test(test_timeouts),
                cmocka_unit_test(test_bad_identity),   cmocka_unit_test(test_identity),
                cmocka_unit_test(test_hook_hangs),     cmocka_unit_test(test_hook_interrupted),
                cmocka_unit_test(test_reconnect),      cmocka_unit_test(test_rewind),
                cmocka_unit_test(test_files_in_place), cmocka_unit_test(test_200_restores),
                cmocka_unit_test(test_cut_to_guest),   cmocka_unit_test(test_cut_from_guest),
                cmocka_unit_test(test_garbage),        cmocka_unit_test(test_wrong_epoch),
                cmocka_unit_test(test_losses),         cmocka_unit_test(test_orphans),
                cmocka_unit_test(test_files),          cmocka_unit_test(test_file_errors),
                cmocka_unit_test(test_put_given_up),   cmocka_unit_test(test_put_symlink),
        };

        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
