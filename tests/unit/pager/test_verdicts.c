/* SPDX-License-Identifier: MIT */
/* The image's file stops answering, or answers with errors: a fault gets its page or a verdict, and whoever does not
 * need that file goes on. The kernel asks this test before each read of the file (fanotify), so a read can be held for
 * as long as it takes, and refused. */
#include "tests/unit/pager/gate.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/fanotify.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <poll.h>

#include "common/io.h"

#define PAGES 1024ull

static struct harness h;
static struct image img, slow;

/* ---- tests ---- */

static int setup(void **state) {
        struct pager_config cfg = { .workers = 2, .idle_seconds = 300 };

        harness_start(&h, &cfg);
        image_make(&img, PAGES, 31, SNAP_CODEC_LZ4);
        image_make(&slow, PAGES, 32, SNAP_CODEC_LZ4);
        return 0;
}

static int setup_impatient(void **state) {
        struct pager_config cfg = { .workers = 1, .idle_seconds = 300, .fault_seconds = 1 };

        harness_start(&h, &cfg);
        image_make(&img, PAGES, 31, SNAP_CODEC_LZ4);
        image_make(&slow, PAGES, 32, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        image_clear(&slow);
        harness_stop(&h);
        return 0;
}

/** Until a read of the file is held, and has been for long enough to be noticed. */
static void wait_stuck(void) {
        uint64_t start = now_ns();

        while (gate.waiting == 0) {
                assert_true(ms_since(start) < DEADLINE_MS);
                (void) sched_yield();
        }
        while (harness_status(&h, "totals", NULL, "worker_busy_ms") <= PAGER_STUCK_MS)
                assert_true(ms_since(start) < DEADLINE_MS);
}

/** No fault of it waits: told soon after the last one was answered. */
static void wait_answered(const struct vmm *v) {
        for (uint64_t start = now_ns(); harness_status(&h, "sessions", v->session, "oldest_fault_ms") > 0;)
                assert_true(ms_since(start) < DEADLINE_MS);
}

/** A disk that does not answer: a worker is stuck in a read. That is told, the control thread answers, the other
 *  worker's guests are served, and when the disk is back nothing is lost. */
static void test_a_stuck_worker(void **state) {
        struct vmm v, w;

        gate_open(&slow);
        vmm_start(&h, &v, &slow);
        vmm_start(&h, &w, &img);
        assert_true(harness_status(&h, "sessions", v.session, "worker") != harness_status(&h, "sessions", w.session, "worker"));
        gate_set(HOLD);
        vmm_send(&v, "verify 32 2");
        wait_stuck();
        assert_string_equal(vmm_cmd(&w, "verify 31 2"), "ok");
        assert_true(harness_status(&h, "sessions", v.session, "oldest_fault_ms") > PAGER_STUCK_MS);
        wait_answered(&w);
        assert_false(harness_has_note(&h, "session.failed", NULL));
        gate_set(PASS);
        assert_string_equal(vmm_answer(&v), "ok");
        wait_answered(&v);
        gate_close();
        vmm_end(&h, &v);
        vmm_end(&h, &w);
}

/** It does not come back: a verdict for the guest that waits for it, and for the one that waits for the same worker; none
 *  for the one that waits for nothing. */
static void test_a_worker_that_hangs(void **state) {
        struct vmm v, w, u;
        uint64_t start;

        gate_open(&slow);
        vmm_start(&h, &v, &slow);
        vmm_start(&h, &w, &img);
        vmm_start(&h, &u, &img);
        assert_string_equal(vmm_cmd(&u, "verify 31 2"), "ok");
        gate_set(HOLD);
        vmm_send(&v, "verify 32 2");
        wait_stuck();
        start = now_ns();
        /* its image is all there, but a zero page needs an answer */
        assert_string_equal(vmm_cmd(&w, "touch %llu", (unsigned long long) image_zero_page(&img, 0)), "ok");
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "waited for 1 seconds"));
        assert_non_null(strstr(harness_note(&h, "session.failed", w.session)->text, "waited for 1 seconds"));
        assert_true(ms_since(start) > 500);
        assert_int_equal(harness_status(&h, "sessions", u.session, "failed"), 0);
        vmm_kill(&v);
        vmm_kill(&w);
        gate_set(PASS);
        (void) harness_note(&h, "session.gone", v.session);
        (void) harness_note(&h, "session.gone", w.session);
        assert_string_equal(vmm_cmd(&u, "verify 31 2"), "ok");
        vmm_start(&h, &v, &slow);
        assert_string_equal(vmm_cmd(&v, "verify 32 2"), "ok");
        gate_close();
        vmm_end(&h, &v);
        vmm_end(&h, &u);
}

/** The guest is ended while its worker is stuck: the session goes when the read is over, and not before. */
static void test_an_end_while_stuck(void **state) {
        struct vmm v, w;

        gate_open(&slow);
        vmm_start(&h, &v, &slow);
        gate_set(HOLD);
        vmm_send(&v, "verify 32 1");
        wait_stuck();
        vmm_kill(&v);
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions"), 1);
        assert_false(harness_has_note(&h, "session.gone", v.session));
        /* who comes now does not queue behind it, though that worker has no guest any more */
        vmm_start(&h, &w, &img);
        assert_string_equal(vmm_cmd(&w, "verify 31 1"), "ok");
        gate_set(PASS);
        (void) harness_note(&h, "session.gone", v.session);
        gate_close();
        vmm_end(&h, &w);
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions_failed"), 0);
}

/** The file cannot be read: a verdict for who needs it, none for who does not. */
static void test_a_refused_read(void **state) {
        struct vmm v, w, u;
        uint64_t page;

        gate_open(&slow);
        vmm_start(&h, &v, &slow);
        vmm_start(&h, &w, &slow);
        vmm_start(&h, &u, &img);
        assert_string_equal(vmm_cmd(&w, "verify 32 2"), "ok");
        gate_set(REFUSE);
        /* what is in memory needs no file */
        assert_string_equal(vmm_cmd(&v, "verify 32 2"), "ok");
        vmm_end(&h, &v);
        gate_close();

        image_clear(&slow);
        image_make(&slow, PAGES, 33, SNAP_CODEC_LZ4);
        gate_open(&slow);
        vmm_start(&h, &v, &slow);
        page = image_stored_page(&slow, 400);
        gate_set(REFUSE);
        assert_string_equal(vmm_cmd(&v, "touch %llu", (unsigned long long) page), "ok");
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "could not be read"));
        assert_string_equal(vmm_cmd(&v, "touched"), "ok 0");
        assert_string_equal(vmm_cmd(&u, "verify 31 2"), "ok");
        gate_set(PASS);
        /* once failed it stays so: forkd has been told to kill it */
        assert_int_equal(harness_status(&h, "sessions", v.session, "failed"), 1);
        assert_string_equal(vmm_cmd(&v, "touched"), "ok 0");
        vmm_end(&h, &v);
        /* it was not the file's content: the next clone has it */
        vmm_start(&h, &v, &slow);
        assert_string_equal(vmm_cmd(&v, "verify 33 2"), "ok");
        gate_close();
        vmm_end(&h, &v);
        vmm_end(&h, &u);
        vmm_end(&h, &w);
}

/** The file is cut below a live session, to every kind of length. */
static void test_a_truncated_file(void **state) {
        static const unsigned kept[] = { 0, 1, 30, 60, 99 }; /* per cent */

        for (unsigned i = 0; i < ARRAY_LEN(kept); i++) {
                struct vmm v, w;
                struct image cut;
                struct stat st;

                image_make(&cut, PAGES, 40 + i, SNAP_CODEC_LZ4);
                vmm_start(&h, &v, &cut);
                vmm_start(&h, &w, &img);
                assert_int_equal(fstat(cut.fd, &st), 0);
                assert_int_equal(ftruncate(cut.fd, st.st_size * kept[i] / 100), 0);
                vmm_send(&v, "verify %u 3", 40 + i);
                assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "corrupt"));
                assert_string_equal(vmm_cmd(&w, "verify 31 2"), "ok");
                /* It got no wrong byte on its way there, or it would have said so. */
                struct pollfd p = { .fd = fileno(v.out), .events = POLLIN };
                assert_int_equal(poll(&p, 1, 0), 0);
                vmm_end(&h, &v);
                vmm_end(&h, &w);
                image_clear(&cut);
        }
}

/** Its name is gone, its file system is unmounted: the descriptor holds it. */
static void test_a_lost_file(void **state) {
        char dir[] = "/tmp/pager-test-XXXXXX", path[64];
        struct image lost = { .seed = 31, .n_pages = PAGES };
        struct vmm v;

        assert_non_null(mkdtemp(dir));
        assert_int_equal(mount("tmpfs", dir, "tmpfs", 0, "size=32m"), 0);
        (void) snprintf(path, sizeof(path), "%s/memory.img", dir);
        lost.fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(lost.fd >= 0);
        assert_int_equal(io_clone_file(img.fd, lost.fd, NULL), 0);
        vmm_start(&h, &v, &lost);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(umount2(dir, MNT_DETACH), 0);
        image_clear(&lost);
        assert_string_equal(vmm_cmd(&v, "verify 31 3"), "ok");
        vmm_end(&h, &v);
        assert_int_equal(rmdir(dir), 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_a_stuck_worker, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_worker_that_hangs, setup_impatient, teardown),
                cmocka_unit_test_setup_teardown(test_an_end_while_stuck, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_refused_read, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_truncated_file, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_lost_file, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
