/* SPDX-License-Identifier: MIT */
/* Who may attach: the handshake must come from the VMM and from nobody else, whoever has the socket. */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/spawn.h"

#define PAGES 256ull

static struct harness h;
static struct image img;

static int setup(void **state) {
        struct pager_config cfg = { .workers = 1, .idle_seconds = 300, .handshake_seconds = 60 };

        harness_start(&h, &cfg);
        image_make(&img, PAGES, 11, SNAP_CODEC_LZ4);
        return 0;
}

static int setup_impatient(void **state) {
        struct pager_config cfg = { .workers = 1, .idle_seconds = 300, .handshake_seconds = 1 };

        harness_start(&h, &cfg);
        image_make(&img, PAGES, 11, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        harness_stop(&h);
        return 0;
}

static struct answer call_expect(const char *session, const int *fds, size_t n_fds) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 2);
        mp_kv_str(&b, "session", session);
        mp_kv_u64(&b, "fds", n_fds);
        return harness_call(&h, "session.expect", &b, fds, n_fds);
}

static void expect_ok(const char *session, int pidfd) {
        struct answer a = call_expect(session, &pidfd, 1);

        if (a.r < 0)
                fail_msg("session.expect: %s", a.e.message);
        answer_clear(&a);
}

static void expect_error(struct answer a, const char *code, const char *words) {
        assert_true(a.r < 0);
        assert_string_equal(a.e.code, code);
        if (!strstr(a.e.message, words))
                fail_msg("\"%s\" does not tell of \"%s\"", a.e.message, words);
        answer_clear(&a);
}

static void close_session(struct vmm *v) {
        harness_close(&h, v->session);
        (void) close_fd(v->sock);
        (void) close_fd(v->memfd);
}

/** A process that does nothing until its pipe ends. */
static pid_t start_idle(int *ret_pidfd, int *ret_pipe) {
        int p[2];
        pid_t pid;

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        pid = fork();
        if (pid == 0) {
                char c;

                (void) close(p[1]);
                (void) !read(p[0], &c, 1);
                _exit(0);
        }
        assert_true(pid > 0);
        (void) close(p[0]);
        assert_int_equal(spawn_pidfd_open(pid, 0, ret_pidfd), 0);
        *ret_pipe = p[1];
        return pid;
}

static void end_idle(pid_t pid, int *pidfd, int *end) {
        *end = close_fd(*end);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        *pidfd = close_fd(*pidfd);
}

static int layout_json(const struct raw_vmm *r, char *buf, size_t size) {
        return snprintf(buf, size,
                        "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":4096,"
                        "\"forkd\":{\"mode\":\"memfd\",\"version\":1}}]",
                        (unsigned long long) (uintptr_t) r->map, r->len);
}

static void send_layout(const struct raw_vmm *r, int sock) {
        char json[256];
        int n = layout_json(r, json, sizeof(json));

        raw_send(sock, json, (size_t) n, r->uffd);
}

/** Until the pager has read all that was sent to it. */
static void wait_until_read(int sock) {
        uint64_t start = now_ns();
        int left = 1;

        while (left > 0) {
                assert_true(ms_since(start) < DEADLINE_MS);
                assert_int_equal(ioctl(sock, SIOCOUTQ, &left), 0);
                (void) sched_yield();
        }
}

static void assert_serves(const struct raw_vmm *r) {
        uint8_t want[TEST_PAGE];

        for (uint64_t page = 0; page < PAGES; page += 17) {
                content_fill(img.seed, page, want);
                assert_memory_equal(r->map + page * TEST_PAGE, want, TEST_PAGE);
        }
}

static void assert_refused(const struct vmm *v, const char *why) {
        const char *line = raw_answer(v->sock);

        if (strncmp(line, "error: ", 7) != 0 || !strstr(line, why))
                fail_msg("the answer is \"%s\", without \"%s\"", line, why);
        assert_non_null(strstr(harness_note(&h, "session.failed", v->session)->text, why));
        assert_string_equal(raw_answer(v->sock), ""); /* hung up */
        assert_int_equal(harness_status(&h, "sessions", v->session, "failed"), 1);
        assert_int_equal(harness_status(&h, "sessions", v->session, "attached"), 0);
        assert_false(harness_has_note(&h, "session.attached", v->session));
}

static void expected_words(char *buf, size_t size, pid_t came, pid_t expected) {
        (void) snprintf(buf, size, "came from process %d, expected was process %d", (int) came, (int) expected);
}

static void test_held_until_named(void **state) {
        struct raw_vmm r;
        struct vmm v;
        int self;

        assert_int_equal(spawn_pidfd_open(getpid(), 0, &self), 0);
        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        raw_map(&r, v.memfd, v.ram_bytes);
        send_layout(&r, v.sock);
        wait_until_read(v.sock);
        assert_int_equal(harness_status(&h, "sessions", v.session, "attached"), 0);
        assert_false(harness_has_note(&h, "session.attached", v.session));
        expect_ok(v.session, self);
        assert_string_equal(raw_answer(v.sock), "ok");
        assert_true(harness_note(&h, "session.attached", v.session)->good_uffd);
        assert_int_equal(harness_status(&h, "sessions", v.session, "vm_pid"), getpid());
        assert_serves(&r);
        expect_error(call_expect(v.session, &self, 1), ERR_STATE, "known already");
        assert_serves(&r);
        close_session(&v);
        raw_unmap(&r);

        /* named before it comes; in pieces of one process */
        char json[256];
        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        raw_map(&r, v.memfd, v.ram_bytes);
        expect_ok(v.session, self);
        int n = layout_json(&r, json, sizeof(json));
        raw_send(v.sock, json, 1, r.uffd);
        wait_until_read(v.sock);
        raw_send(v.sock, json + 1, (size_t) n - 1, -1);
        assert_string_equal(raw_answer(v.sock), "ok");
        assert_serves(&r);
        close_session(&v);
        raw_unmap(&r);
        (void) close_fd(self);
}

/** The library in a process of its own, as forkd does it. */
static void test_a_real_process(void **state) {
        struct vmm v;

        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        vmm_spawn(&v);
        vmm_send(&v, "map");
        expect_ok(v.session, v.pidfd);
        assert_string_equal(vmm_answer(&v), "ok 256");
        assert_true(harness_note(&h, "session.attached", v.session)->good_uffd);
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        assert_int_equal(harness_status(&h, "sessions", v.session, "vm_pid"), v.pid);
        vmm_end(&h, &v);
}

static void test_another_process(void **state) {
        int pidfd, end;
        pid_t other = start_idle(&pidfd, &end);
        struct raw_vmm r;
        struct vmm v;
        char words[96];

        expected_words(words, sizeof(words), getpid(), other);
        for (unsigned how = 0; how < 3; how++) {
                vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = how == 0 ? other : 0, .expect = how == 1 });
                raw_map(&r, v.memfd, v.ram_bytes);
                if (how == 2) /* named, though nobody had announced it */
                        expect_ok(v.session, pidfd);
                send_layout(&r, v.sock);
                if (how == 1) {
                        wait_until_read(v.sock);
                        expect_ok(v.session, pidfd);
                }
                assert_refused(&v, words);
                expect_error(call_expect(v.session, &pidfd, 1), ERR_STATE, words);
                close_session(&v);
                raw_unmap(&r);
        }

        /* It has attached by the time that is said: its faults are not answered any more. */
        vmm_open(&h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        raw_attach(&r, v.sock);
        (void) harness_note(&h, "session.attached", v.session);
        expect_ok(v.session, pidfd);
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, words));
        assert_non_null(strstr(raw_answer(v.sock), words));
        close_session(&v);
        raw_unmap(&r);
        end_idle(other, &pidfd, &end);
}

/** The layout begins as the VMM's, its end and its descriptor are another's. */
static void test_pieces_of_two(void **state) {
        struct raw_vmm r;
        struct vmm v;
        char json[256];
        int status;
        pid_t pid;

        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = getpid(), .expect = false });
        raw_map(&r, v.memfd, v.ram_bytes);
        int n = layout_json(&r, json, sizeof(json));
        raw_send(v.sock, json, 10, -1);
        pid = fork();
        if (pid == 0)
                _exit(io_send_fds(v.sock, json + 10, (size_t) n - 10, &r.uffd, 1) == n - 10 ? 0 : 1);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_refused(&v, "more than one process");
        close_session(&v);
        raw_unmap(&r);
}

/** A handshake that was there before the session: nobody knows from whom. */
static void test_sent_too_early(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct vmm v = { .memfd = -1, .sock = -1 };
        int pair[2], fds[2];

        id_new(v.session);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        v.sock = pair[1];
        raw_send(v.sock, "[]", 2, -1);
        fds[0] = img.fd;
        fds[1] = pair[0];
        mp_buf_init(&b);
        mp_map(&b, 4);
        mp_kv_str(&b, "session", v.session);
        mp_kv_u64(&b, "ram_bytes", PAGES * TEST_PAGE);
        mp_kv_i64(&b, "vm_pid", getpid());
        mp_kv_u64(&b, "fds", 2);
        struct answer a = harness_call(&h, "session.open", &b, fds, 2);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        (void) close(pair[0]);
        assert_refused(&v, "cannot be told");
        close_session(&v);
}

static void test_expected_has_ended(void **state) {
        struct raw_vmm r;
        struct vmm v;
        int pidfd, end;
        pid_t pid = start_idle(&pidfd, &end);

        /* between session.expect and the handshake */
        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        raw_map(&r, v.memfd, v.ram_bytes);
        expect_ok(v.session, pidfd);
        end = close_fd(end);
        struct pollfd ended = { .fd = pidfd, .events = POLLIN };
        assert_int_equal(poll(&ended, 1, DEADLINE_MS), 1);
        send_layout(&r, v.sock);
        assert_refused(&v, "has ended");
        close_session(&v);

        /* before it was named: the caller hears of it, and may name another */
        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        expect_error(call_expect(v.session, &pidfd, 1), ERR_INVALID, "has ended");
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        expect_error(call_expect(v.session, &pidfd, 1), ERR_INVALID, "has ended");
        (void) close_fd(pidfd);
        assert_int_equal(spawn_pidfd_open(getpid(), 0, &pidfd), 0);
        expect_ok(v.session, pidfd);
        close_session(&v);
        raw_unmap(&r);
        (void) close_fd(pidfd);
}

static void test_refused_calls(void **state) {
        cleanup_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC), self = -1;
        struct vmm v;
        int fds[2];

        assert_int_equal(spawn_pidfd_open(getpid(), 0, &self), 0);
        expect_error(call_expect("0123456789abcdef", &self, 1), ERR_NOT_FOUND, "no session");
        expect_error(call_expect("nonsense", &self, 1), ERR_INVALID, "hex");
        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        fds[0] = fds[1] = self;
        expect_error(call_expect(v.session, NULL, 0), ERR_INVALID, "0 descriptors");
        expect_error(call_expect(v.session, fds, 2), ERR_INVALID, "2 descriptors");
        expect_error(call_expect(v.session, &null, 1), ERR_INVALID, "no pidfd");
        expect_error(call_expect(v.session, &v.sock, 1), ERR_INVALID, "no pidfd");
        expect_ok(v.session, self); /* none of them has spoiled it */
        close_session(&v);
}

/** The VMM never comes, and: it comes but nobody says that it is the VMM. */
static void test_deadline(void **state) {
        struct raw_vmm r;
        struct vmm v, w;
        int self;

        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        vmm_open_with(&h, &w, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        assert_int_equal(spawn_pidfd_open(getpid(), 0, &self), 0);
        raw_map(&r, v.memfd, v.ram_bytes);
        send_layout(&r, v.sock);
        expect_ok(w.session, self);
        assert_refused(&v, "nobody said which process the VMM is within 1 seconds");
        assert_refused(&w, "did not complete its handshake within 1 seconds");
        close_session(&v);
        close_session(&w);
        raw_unmap(&r);
        (void) close_fd(self);
}

/** While it is held: more bytes, a hang-up. */
static void test_held_and_then(void **state) {
        struct raw_vmm r;
        struct vmm v;
        int self;

        assert_int_equal(spawn_pidfd_open(getpid(), 0, &self), 0);
        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        raw_map(&r, v.memfd, v.ram_bytes);
        send_layout(&r, v.sock);
        wait_until_read(v.sock);
        raw_send(v.sock, "more", 4, -1);
        wait_until_read(v.sock);
        expect_ok(v.session, self);
        assert_refused(&v, "behind the layout");
        close_session(&v);
        raw_unmap(&r);

        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        raw_map(&r, v.memfd, v.ram_bytes);
        send_layout(&r, v.sock);
        wait_until_read(v.sock);
        char *flood = calloc(1, PAGER_MAX_HANDSHAKE);
        assert_non_null(flood);
        memset(flood, ' ', PAGER_MAX_HANDSHAKE);
        raw_send(v.sock, flood, PAGER_MAX_HANDSHAKE, -1);
        free(flood);
        assert_refused(&v, "too long");
        close_session(&v);
        raw_unmap(&r);

        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        raw_map(&r, v.memfd, v.ram_bytes);
        send_layout(&r, v.sock);
        wait_until_read(v.sock);
        (void) close_fd(v.sock);
        (void) harness_note(&h, "session.gone", v.session);
        (void) close_fd(v.memfd);
        raw_unmap(&r);
        (void) close_fd(self);
}

/* ---- a VMM in a pid namespace of its own ---- */

struct inner {
        pid_t outer; /* the process that made the namespace */
        pid_t vmm;   /* its child, pid 1 in there, as seen from here */
        int vmm_pidfd, go, result;
};

/** What the VMM does in there: its handshake, then one page. 'y': all well, 'r': refused, 'n': anything else. */
static char inner_vmm(const struct vmm *v) {
        uint8_t want[TEST_PAGE];
        struct raw_vmm r = { .len = v->ram_bytes };
        char answer[8];

        r.map = mmap(NULL, r.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, v->memfd, 0);
        if (getpid() != 1 || r.map == MAP_FAILED || uffd_open(UFFD_FEATURES_NEEDED, &r.uffd) < 0 ||
            uffd_register(r.uffd, (uintptr_t) r.map, r.len) < 0)
                return 'n';
        send_layout(&r, v->sock);
        if (io_read_full(v->sock, answer, 3) != 3)
                return 'n';
        if (memcmp(answer, "ok\n", 3) != 0)
                return 'r';
        content_fill(img.seed, 33, want);
        return memcmp(r.map + 33 * TEST_PAGE, want, TEST_PAGE) == 0 ? 'y' : 'n';
}

static bool start_inner(const struct vmm *v, struct inner *ret) {
        int pids[2], go[2], result[2];

        assert_int_equal(pipe2(pids, O_CLOEXEC) | pipe2(go, O_CLOEXEC) | pipe2(result, O_CLOEXEC), 0);
        ret->outer = fork();
        if (ret->outer == 0) {
                pid_t pid = unshare(CLONE_NEWPID) < 0 ? -1 : fork();
                char c;

                if (pid == 0) {
                        (void) !read(go[0], &c, 1);
                        c = inner_vmm(v);
                        (void) !write(result[1], &c, 1);
                        _exit(0);
                }
                (void) !write(pids[1], &pid, sizeof(pid));
                _exit(pid < 0 || waitpid(pid, NULL, 0) != pid);
        }
        (void) close(pids[1]);
        (void) close(go[0]);
        (void) close(result[1]);
        assert_int_equal(io_read_full(pids[0], &ret->vmm, sizeof(ret->vmm)), sizeof(ret->vmm));
        (void) close(pids[0]);
        ret->go = go[1];
        ret->result = result[0];
        if (ret->vmm > 0)
                assert_int_equal(spawn_pidfd_open(ret->vmm, 0, &ret->vmm_pidfd), 0);
        return ret->vmm > 0;
}

static char run_inner(struct inner *i) {
        char c = 0;

        assert_int_equal(write(i->go, "g", 1), 1);
        assert_int_equal(io_read_full(i->result, &c, 1), 1);
        return c;
}

static void end_inner(struct inner *i) {
        assert_int_equal(waitpid(i->outer, NULL, 0), i->outer);
        (void) close(i->go);
        (void) close(i->result);
        (void) close(i->vmm_pidfd);
}

/** Its pid is 1 to itself, and another one to the pager: that one counts. */
static void test_pid_namespace(void **state) {
        struct inner in;
        struct vmm v;
        char words[96];
        int pidfd;

        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .expect = true, .silent = true });
        if (!start_inner(&v, &in)) {
                (void) waitpid(in.outer, NULL, 0);
                if (getenv("FORKD_TEST_NO_SKIP"))
                        fail_msg("no pid namespaces here");
                print_message("skipped: no pid namespaces here\n");
                (void) close_fd(v.sock);
                (void) close_fd(v.memfd);
                skip();
        }
        assert_true(in.vmm != 1);
        expect_ok(v.session, in.vmm_pidfd);
        assert_int_equal(run_inner(&in), 'y');
        (void) harness_note(&h, "session.attached", v.session);
        end_inner(&in);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
        (void) harness_note(&h, "session.gone", v.session);

        /* the process that made the namespace is not the VMM */
        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .vm_pid = 0, .expect = true });
        assert_true(start_inner(&v, &in));
        assert_int_equal(spawn_pidfd_open(in.outer, 0, &pidfd), 0);
        expect_ok(v.session, pidfd);
        (void) close(pidfd);
        assert_int_equal(run_inner(&in), 'r');
        expected_words(words, sizeof(words), in.vmm, in.outer);
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, words));
        end_inner(&in);
        close_session(&v);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_held_until_named, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_real_process, setup, teardown),
                cmocka_unit_test_setup_teardown(test_another_process, setup, teardown),
                cmocka_unit_test_setup_teardown(test_pieces_of_two, setup, teardown),
                cmocka_unit_test_setup_teardown(test_sent_too_early, setup, teardown),
                cmocka_unit_test_setup_teardown(test_expected_has_ended, setup, teardown),
                cmocka_unit_test_setup_teardown(test_refused_calls, setup, teardown),
                cmocka_unit_test_setup_teardown(test_deadline, setup_impatient, teardown),
                cmocka_unit_test_setup_teardown(test_held_and_then, setup, teardown),
                cmocka_unit_test_setup_teardown(test_pid_namespace, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
