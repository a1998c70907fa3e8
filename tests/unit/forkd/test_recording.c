/* SPDX-License-Identifier: MIT */
/* Working sets between a pager that we play, forkd's code, its real workers and a store. */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/catalog.h"
#include "forkd/daemon.h"
#include "forkd/pager/internal.h"
#include "forkd/vm/recording.h"
#include "forkd/worker/worker.h"
#include "snapstore/writer.h"

#define PAGES 600u
#define DEADLINE_NS 60000000000ull

/* What our pager answers to session.workingset, and what it was asked. */
struct fake_pager {
        struct rpc_conn *c;
        const struct snap_run *run;
        size_t n_runs;
        bool refuses, no_array, remove_first, incomplete;
        unsigned asked;
        /* of the last session.open */
        bool record;
        size_t n_fds;
        uint64_t workingset_bytes; /* size of the third descriptor's file */
};

static struct daemon d;
static struct pager pager;
static struct pager_process process; /* of that pager; there is none */
static struct fake_pager fake;
static struct snap_entry *s;
static struct vm vms[2];

/* ---- the pager's part ---- */

static void answer_open(struct rpc_msg *m) {
        cleanup_fd int memfd = memfd_create("image", MFD_CLOEXEC);
        int fds[] = { memfd, memfd };
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct stat st;

        fake.n_fds = m->n_fds;
        fake.record = false;
        assert_ok(mp_get_bool(m->params, "record", &fake.record));
        fake.workingset_bytes = m->n_fds == 3 && fstat(m->fds[2], &st) == 0 ? (uint64_t) st.st_size : 0;
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "fds", ARRAY_LEN(fds));
        assert_ok(rpc_reply(m->conn, m->msgid, &b, fds, ARRAY_LEN(fds)));
}

static void answer_workingset(struct rpc_msg *m) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct err e;

        fake.asked++;
        if (fake.remove_first) /* while forkd waits for us */
                assert_ok(catalog_remove(d.catalog, TAKE_PTR(s), false, &e));
        if (fake.refuses) {
                (void) err_set(&e, ERR_NOT_FOUND, -ENOENT, "no such session");
                assert_ok(rpc_reply_err(m->conn, m->msgid, &e));
                return;
        }
        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_u64(&b, "pages", 1);
        mp_kv_bool(&b, "complete", !fake.incomplete);
        mp_key(&b, "runs");
        if (fake.no_array)
                mp_str(&b, "all of them");
        else
                mp_array(&b, fake.n_runs);
        for (size_t i = 0; i < fake.n_runs && !fake.no_array; i++) {
                mp_array(&b, 2);
                mp_u64(&b, fake.run[i].first);
                mp_u64(&b, fake.run[i].n);
        }
        assert_ok(rpc_reply(m->conn, m->msgid, &b, NULL, 0));
}

static void on_call(struct rpc_msg *m, void *arg) {
        if (strcmp(m->method, "session.open") == 0)
                answer_open(m);
        else if (strcmp(m->method, "session.workingset") == 0)
                answer_workingset(m);
        else if (strcmp(m->method, "session.close") == 0)
                assert_ok(rpc_reply(m->conn, m->msgid, NULL, NULL, 0));
        else
                fail_msg("forkd asks the pager for %s", m->method);
}

static void pager_says(const char *method, const char *session) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 2);
        mp_kv_str(&b, "session", session);
        mp_kv_u64(&b, "pages", 1);
        assert_ok(rpc_notify(fake.c, method, &b, NULL, 0));
}

/* ---- the world ---- */

static void add_snapshot(void) {
        cleanup_free struct snap_manifest *m = calloc(1, sizeof(*m));
        struct snap_writer_params wp = { .ram_bytes = PAGES * (uint64_t) SNAP_PAGE_SIZE };
        struct snap_writer_stats ws;
        cleanup_snap_writer struct snap_writer *w = NULL;
        cleanup_snap_txn struct snap_txn *t = NULL;
        cleanup_fd int fd = -1;
        id_str id;

        assert_non_null(m);
        id_new(id);
        assert_ok(snap_txn_begin(d.store, id, &t));
        assert_ok(snap_txn_create_image(t, &fd));
        assert_ok(snap_writer_new(fd, -1, &wp, &w));
        assert_ok(snap_writer_finish(w, &ws));
        (void) strcpy(m->source, "web");
        (void) strcpy(m->vmm, "qemu");
        (void) strcpy(m->accel, "tcg");
        m->vcpus = 1;
        m->mem_bytes = wp.ram_bytes;
        assert_ok(snap_txn_publish(t, m, false));
        assert_ok(catalog_add(d.catalog, m, false, &s));
}

static int setup(void **state) {
        static const struct rpc_handlers theirs = { .on_message = on_call }, ours = { .on_message = pager_on_message };
        int sv[2];

        d = (struct daemon){ .base = event_base_new(), .cfg = { .workingset = true, .record_seconds = 10 } };
        process = (struct pager_process){ .refs = 1, .p = &pager, .pidfd = -1 };
        pager = (struct pager){ .d = &d, .serving = &process };
        co_sem_init(&pager.turn, 1);
        fake = (struct fake_pager){ 0 };
        d.pager = &pager;
        TAILQ_INIT(&d.vms);
        temp_dir(d.store_dir, sizeof(d.store_dir));
        (void) snprintf(d.bin_dir, sizeof(d.bin_dir), "%s", FORKD_BIN_DIR);
        assert_ok(snap_store_open(d.store_dir, &d.store));
        assert_ok(catalog_new(&d, &d.catalog));
        assert_ok(worker_pool_new(&d, &d.workers));
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
        assert_ok(rpc_conn_new(d.base, sv[0], &ours, &process, &process.conn));
        assert_ok(rpc_conn_new(d.base, sv[1], &theirs, NULL, &fake.c));
        add_snapshot();
        for (size_t i = 0; i < ARRAY_LEN(vms); i++) {
                vms[i] = (struct vm){ .d = &d, .machine.mem_bytes = s->m.mem_bytes };
                pager_hold_init(&vms[i].hold);
                vms[i].hold.process = pager_process_ref(&process);
                id_new(vms[i].id);
                (void) snprintf(vms[i].name, sizeof(vms[i].name), "clone-%zu", i);
                memcpy(vms[i].snapshot, s->m.id, sizeof(vms[i].snapshot));
                TAILQ_INSERT_TAIL(&d.vms, &vms[i], entry);
        }
        return 0;
}

static int teardown(void **state) {
        for (size_t i = 0; i < ARRAY_LEN(vms); i++)
                pager_hold_clear(&vms[i].hold);
        assert_int_equal(process.refs, 1);
        rpc_conn_unref(process.conn);
        rpc_conn_unref(fake.c);
        worker_pool_free(d.workers);
        catalog_free(d.catalog);
        snap_store_close(d.store);
        event_base_free(d.base);
        temp_dir_remove(d.store_dir);
        return 0;
}

static void run_until(bool (*done)(void)) {
        uint64_t end = now_ns() + DEADLINE_NS;

        while (!done() && now_ns() < end)
                assert_true(event_base_loop(d.base, EVLOOP_ONCE) >= 0);
        assert_true(done());
}

static bool no_coroutines(void) {
        return co_alive() == 0;
}

static bool asked_and_done(void) {
        return fake.asked > 0 && co_alive() == 0;
}

static void in_coroutine(void (*fn)(void *arg), void *arg) {
        assert_ok(co_start(d.base, fn, arg));
        run_until(no_coroutines);
}

static unsigned entries_in_tmp(void) {
        cleanup_fd int fd = open(in_dir(d.store_dir, "tmp"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        unsigned n = 0;
        DIR *dir;

        assert_ok(io_opendir(fd, &dir));
        for (struct dirent *de; (de = readdir(dir));)
                n += de->d_name[0] != '.';
        (void) closedir(dir);
        return n;
}

static void answers(const struct snap_run *run, size_t n) {
        fake.run = run;
        fake.n_runs = n;
}

static void begin(struct vm *vm) {
        (void) close_fd(recording_begin(vm, s));
        vm->session = true;
}

/* ---- who records, and what the pager is handed ---- */

static void test_one_records(void **state) {
        begin(&vms[0]);
        begin(&vms[1]);
        assert_true(vms[0].recording && s->recording);
        assert_false(vms[1].recording);
        recording_end(&vms[1]); /* of one that does not record: changes nothing */
        assert_true(vms[0].recording && s->recording);
        recording_end(&vms[0]);
        assert_false(vms[0].recording || s->recording);
        begin(&vms[1]);
        assert_true(vms[1].recording && s->recording);
}

static void test_settings(void **state) {
        const struct snap_run known[] = { { 1, 2 } };
        int fd;

        assert_ok(snap_store_learn_workingset(d.store, s->m.id, known, 1, NULL));
        d.cfg.record_seconds = 0;
        fd = recording_begin(&vms[0], s);
        assert_true(fd >= 0);
        assert_false(vms[0].recording);
        (void) close_fd(fd);
        d.cfg = (struct config){ .workingset = false, .record_seconds = 10 };
        assert_int_equal(recording_begin(&vms[0], s), -1);
        assert_false(vms[0].recording);
}

static void open_session(void *arg) {
        cleanup_fd int image = memfd_create("memory.img", MFD_CLOEXEC), workingset, sock = -1;
        struct vm *vm = arg;
        struct err e;

        workingset = recording_begin(vm, s);
        assert_ok(pager_session_open(&pager, vm, &(struct pager_open){ .image_fd = image, .workingset_fd = workingset }, &sock,
                                     &e));
}

static void test_open(void **state) {
        const struct snap_run known[] = { { 1, 2 } };

        in_coroutine(open_session, &vms[0]);
        assert_true(fake.record);
        assert_int_equal(fake.n_fds, 2);
        assert_ok(snap_store_learn_workingset(d.store, s->m.id, known, 1, NULL));
        in_coroutine(open_session, &vms[1]);
        assert_false(fake.record); /* the first still does */
        assert_int_equal(fake.n_fds, 3);
        assert_int_equal(fake.workingset_bytes, 48 + 8 + 8);
}

/* ---- how a recording ends ---- */

static void test_window_over(void **state) {
        const struct snap_run run[] = { { 100, 16 }, { 7, 1 } };

        answers(run, 2);
        begin(&vms[0]);
        assert_int_equal(catalog_workingset_pages(d.catalog, s), 0);
        pager_says("session.recorded", vms[0].id);
        run_until(asked_and_done);
        assert_false(vms[0].recording || s->recording);
        assert_int_equal(catalog_workingset_pages(d.catalog, s), 17);

        /* The next clone records what the first did not need. */
        answers((const struct snap_run[]){ { 116, 4 }, { 7, 1 } }, 2);
        begin(&vms[1]);
        assert_true(vms[1].recording);
        fake.asked = 0;
        pager_says("session.recorded", vms[1].id);
        run_until(asked_and_done);
        assert_int_equal(catalog_workingset_pages(d.catalog, s), 21);
        assert_int_equal(entries_in_tmp(), 0);
}

/* A forkd that was restarted does not know that this session records. */
static void test_unknown_recorder(void **state) {
        answers((const struct snap_run[]){ { 7, 1 } }, 1);
        vms[0].session = true;
        pager_says("session.recorded", vms[0].id);
        run_until(asked_and_done);
        assert_int_equal(catalog_workingset_pages(d.catalog, s), 1);
}

static void adopt(void *arg) {
        recording_adopt(arg);
}

/* After a restart: a recording that goes on, one that never was, one that has ended. */
static void test_adopt(void **state) {
        answers((const struct snap_run[]){ { 7, 3 } }, 1);
        vms[0].session = vms[1].session = true;
        fake.incomplete = true;
        in_coroutine(adopt, &vms[0]);
        assert_true(vms[0].recording && s->recording);
        assert_int_equal(catalog_workingset_pages(d.catalog, s), 0);
        recording_end(&vms[0]);
        answers(NULL, 0);
        in_coroutine(adopt, &vms[1]);
        assert_false(vms[1].recording || s->recording);
        answers((const struct snap_run[]){ { 7, 3 } }, 1);
        fake.incomplete = false;
        in_coroutine(adopt, &vms[0]);
        assert_false(vms[0].recording || s->recording);
        assert_int_equal(catalog_workingset_pages(d.catalog, s), 3);
}

static void keep(void *arg) {
        recording_keep(arg);
}

static void test_keep(void **state) {
        answers((const struct snap_run[]){ { 7, 3 } }, 1);
        in_coroutine(keep, &vms[0]); /* does not record: the pager is not asked */
        assert_int_equal(fake.asked, 0);
        begin(&vms[0]);
        in_coroutine(keep, &vms[0]);
        assert_int_equal(fake.asked, 1);
        assert_false(vms[0].recording || s->recording);
        assert_int_equal(catalog_workingset_pages(d.catalog, s), 3);
        begin(&vms[0]);
        vms[0].vmm_exited = true; /* it has no session any more that could be asked */
        in_coroutine(keep, &vms[0]);
        assert_int_equal(fake.asked, 1);
        vms[0].vmm_exited = false;
        begin(&vms[0]);
        d.stopping = true;
        in_coroutine(keep, &vms[0]);
        assert_int_equal(fake.asked, 1);
}

static void fetch(void *arg) {
        cleanup_recorded struct recorded rec;

        recorded_init(&rec);
        recording_fetch(arg, &rec);
        assert_int_equal(rec.n, 2);
        recording_learn(arg, s->m.id, &rec);
        assert_int_equal(rec.n, 0);
}

/* Standby: fetched before the pause, learned behind it. */
static void test_fetch(void **state) {
        answers((const struct snap_run[]){ { 7, 3 }, { 0, 1 } }, 2);
        begin(&vms[0]);
        in_coroutine(fetch, &vms[0]);
        assert_true(vms[0].recording); /* until the session ends, or the window */
        assert_int_equal(catalog_workingset_pages(d.catalog, s), 4);
}

/* ---- what goes wrong ---- */

static void expect_nothing(void) {
        fake.asked = 0;
        begin(&vms[0]);
        pager_says("session.recorded", vms[0].id);
        run_until(asked_and_done);
        assert_false(vms[0].recording);
        if (s)
                assert_int_equal(catalog_workingset_pages(d.catalog, s), 0);
        assert_int_equal(entries_in_tmp(), 0);
}

static void test_bad_answers(void **state) {
        struct snap_run *many = calloc(SNAP_WORKINGSET_MAX_RUNS + 1, sizeof(*many));

        assert_non_null(many);
        for (size_t i = 0; i <= SNAP_WORKINGSET_MAX_RUNS; i++)
                many[i] = (struct snap_run){ i % PAGES, 1 };
        answers(NULL, 0);
        expect_nothing(); /* the guest needed no page */
        answers((const struct snap_run[]){ { PAGES, 1 } }, 1);
        expect_nothing();
        answers((const struct snap_run[]){ { 1, UINT64_MAX } }, 1);
        expect_nothing();
        answers((const struct snap_run[]){ { 1, 0 } }, 1);
        expect_nothing();
        answers(many, SNAP_WORKINGSET_MAX_RUNS + 1);
        expect_nothing();
        fake.no_array = true;
        expect_nothing();
        fake.refuses = true;
        expect_nothing();
        free(many);
}

static void test_removed_meanwhile(void **state) {
        answers((const struct snap_run[]){ { 1, 1 } }, 1);
        fake.remove_first = true;
        expect_nothing();
        assert_null(s);
        recording_end(&vms[0]);
}

static void test_store_gone(void **state) {
        char dir[sizeof(d.store_dir)];

        (void) strcpy(dir, d.store_dir);
        (void) strcpy(d.store_dir, "/dev/null/store");
        answers((const struct snap_run[]){ { 1, 1 } }, 1);
        fake.asked = 0;
        begin(&vms[0]);
        pager_says("session.recorded", vms[0].id);
        run_until(asked_and_done);
        (void) strcpy(d.store_dir, dir);
        assert_int_equal(catalog_workingset_pages(d.catalog, s), 0);
        begin(&vms[1]);
        assert_true(vms[1].recording); /* the next may try */
}

/* A session that nobody has: the pager is not even asked. */
static void test_stranger(void **state) {
        pager_says("session.recorded", "0123456789abcdef");
        pager_says("session.recorded", vms[0].id); /* has none */
        answers((const struct snap_run[]){ { 1, 1 } }, 1);
        begin(&vms[1]);
        pager_says("session.recorded", vms[1].id);
        run_until(asked_and_done);
        assert_int_equal(fake.asked, 1);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                T(test_one_records), T(test_settings), T(test_open),  T(test_window_over), T(test_unknown_recorder),
                T(test_keep),        T(test_adopt),    T(test_fetch), T(test_bad_answers), T(test_removed_meanwhile),
                T(test_store_gone),  T(test_stranger),
        };
        (void) signal(SIGPIPE, SIG_IGN);
        return cmocka_run_group_tests_name("forkd: working sets", tests, NULL, NULL);
}
