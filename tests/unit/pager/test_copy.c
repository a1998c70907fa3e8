/* SPDX-License-Identifier: MIT */
/* Copy mode: VMMs with memory of their own, as Firecracker's. The same images, the same decoded pages. */
#include "tests/unit/pager/fc.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "common/io.h"
#include "snapstore/workingset.h"

#define PAGES 4096ull

static struct harness h;
static struct image img;

static int setup(void **state) {
        harness_start(&h, NULL);
        image_make(&img, PAGES, 42, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        fc_restore_huge_pages();
        image_clear(&img);
        harness_stop(&h);
        return 0;
}

static double of(const struct vmm *v, const char *key) {
        return harness_status(&h, "sessions", v->session, key);
}

/** A guest is woken before its answer is counted: the last one may be a moment late. */
static void comes_to(const struct vmm *v, const char *key, double value) {
        uint64_t start = now_ns();

        while (of(v, key) != value)
                if (ms_since(start) > DEADLINE_MS)
                        fail_msg("%s is %g, not %g", key, of(v, key), value);
}

static void test_every_page_right(void **state) {
        struct vmm v;

        fc_start(&h, &v, &img, 1, "", 0, FC_TODAY);
        assert_string_equal(vmm_cmd(&v, "verify 42 4"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 1"), "ok");
        assert_int_equal(harness_status(&h, "images", NULL, "present_bytes"), img.n_stored * TEST_PAGE);
        assert_int_equal(harness_status(&h, "images", NULL, "decodes"), img.stats.frames);
        /* each page once, whatever the number of threads; zeros cost the VMM nothing */
        comes_to(&v, "pages_installed", (double) img.n_stored);
        comes_to(&v, "zero_pages", (double) (PAGES - img.n_stored));
        assert_int_equal(of(&v, "faults.removed"), 0);
        assert_true(of(&v, "faults.missing") <= 4 * img.stats.frames);
        comes_to(&v, "oldest_fault_ms", 0);
        vmm_end(&h, &v);
}

/** Firecracker's handshakes of all times; a layout in many pieces; a sender that takes its time. */
static void test_handshakes(void **state) {
        static const struct {
                size_t regions;
                int how;
        } cases[] = { { 2, FC_1_6 },      { 2, FC_1_7 },    { 7, FC_TODAY },
                      { 1024, FC_TODAY }, { 1023, FC_1_6 }, { 16, FC_TODAY + FC_BYTEWISE } };

        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                struct vmm v;

                fc_start(&h, &v, &img, cases[i].regions, "", 0, cases[i].how);
                assert_string_equal(vmm_cmd(&v, "verify 42 4"), "ok");
                comes_to(&v, "pages_installed", (double) img.n_stored);
                vmm_end(&h, &v);
        }
        assert_int_equal(harness_status(&h, "images", NULL, "decodes"), img.stats.frames);
}

static void test_clones(void **state) {
        struct vmm v[3], m;

        for (unsigned i = 0; i < 3; i++)
                fc_start(&h, &v[i], &img, 1 + i, "", 0, FC_TODAY);
        vmm_start(&h, &m, &img); /* one that maps the image, at the same time */
        for (unsigned i = 0; i < 3; i++)
                vmm_send(&v[i], "verify 42 3");
        vmm_send(&m, "verify 42 3");
        for (unsigned i = 0; i < 3; i++)
                assert_string_equal(vmm_answer(&v[i]), "ok");
        assert_string_equal(vmm_answer(&m), "ok");
        assert_int_equal(harness_status(&h, "images", NULL, "decodes"), img.stats.frames);
        assert_int_equal(harness_status(&h, "images", NULL, "present_bytes"), img.n_stored * TEST_PAGE);

        /* the next one finds every page decoded */
        vmm_end(&h, &v[0]);
        fc_start(&h, &v[0], &img, 5, "", 0, FC_TODAY);
        assert_string_equal(vmm_cmd(&v[0], "verify 42 2"), "ok");
        assert_int_equal(of(&v[0], "faults.missing"), 0);
        assert_true(of(&v[0], "faults.present") > 0);

        /* what one writes is its own */
        for (unsigned i = 0; i < 64; i++)
                assert_string_equal(vmm_cmd(&v[0], "write %u %u", i * 61, i + 1), "ok");
        for (unsigned i = 0; i < 3; i++)
                assert_string_equal(vmm_cmd(&v[i], "verify 42 1"), "ok");
        assert_string_equal(vmm_cmd(&m, "verify 42 1"), "ok");
        for (unsigned i = 0; i < 3; i++)
                vmm_end(&h, &v[i]);
        vmm_end(&h, &m);
}

static void test_write_first(void **state) {
        struct vmm v;

        fc_start(&h, &v, &img, 3, "", 0, FC_TODAY);
        for (unsigned i = 0; i < PAGES; i += 7)
                assert_string_equal(vmm_cmd(&v, "write %u %u", i, 1 + i % 250), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_end(&h, &v);
}

/** A page that was discarded is zero, before and after it was ever touched. */
static void test_balloon(void **state) {
        struct vmm v;

        fc_start(&h, &v, &img, 1, "", 0, FC_TODAY);
        for (unsigned i = 0; i < 40; i++)
                assert_string_equal(vmm_cmd(&v, "discard %u %u", i * 37, 1 + i), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        for (unsigned i = 0; i < 40; i++)
                assert_string_equal(vmm_cmd(&v, "discard %u %u", i * 53 + 11, 1 + i % 9), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        assert_true(of(&v, "faults.removed") > 0);
        assert_true(of(&v, "removed_pages") > 200);
        assert_string_equal(vmm_cmd(&v, "write 0 9"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_end(&h, &v);
}

static void test_unmapped(void **state) {
        struct vmm v;

        fc_start(&h, &v, &img, 1, "", FC_MOVES, FC_TODAY);
        assert_string_equal(vmm_cmd(&v, "unmap 100 50"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        assert_string_equal(vmm_cmd(&v, "unmap 90 20"), "ok");
        assert_string_equal(vmm_cmd(&v, "unmap 2000 1"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        comes_to(&v, "removed_pages", 61);
        vmm_end(&h, &v);
}

static void test_moved(void **state) {
        struct vmm v;

        fc_start(&h, &v, &img, 1, "", FC_MOVES, FC_TODAY);
        assert_string_equal(vmm_cmd(&v, "move 100 50 0"), "ok");
        assert_string_equal(vmm_cmd(&v, "move 120 10 1"), "ok"); /* its old place stays, and reads zero */
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        assert_string_equal(vmm_cmd(&v, "move 300 10 2"), "ok"); /* onto that place */
        assert_string_equal(vmm_cmd(&v, "move 1000 1000 1"), "ok");
        assert_string_equal(vmm_cmd(&v, "move 1100 300 1"), "ok");
        assert_string_equal(vmm_cmd(&v, "discard 1200 100"), "ok"); /* at its new place */
        assert_string_equal(vmm_cmd(&v, "unmap 1150 10"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 3"), "ok");
        comes_to(&v, "removed_pages", 110);
        vmm_end(&h, &v);
}

/** Without EVENT_REMAP, as with Firecracker, memory that moves is not ours any more: nobody is harmed. */
static void test_moved_unheard(void **state) {
        struct vmm v;

        fc_start(&h, &v, &img, 1, "", 0, FC_TODAY);
        assert_string_equal(vmm_cmd(&v, "move 100 50 0"), "ok");
        assert_string_equal(vmm_cmd(&v, "touch 100"), "ok");
        assert_string_equal(vmm_cmd(&v, "touch 99"), "ok");
        vmm_end(&h, &v);
        assert_false(harness_has_note(&h, "session.failed", NULL));
}

static void test_churn(void **state) {
        struct vmm v, w;

        fc_start(&h, &v, &img, 1, "", FC_MOVES, FC_TODAY);
        fc_start(&h, &w, &img, 9, "", 0, FC_TODAY);
        vmm_send(&v, "churn 42 600");
        vmm_send(&w, "verify 42 3");
        assert_string_equal(vmm_answer(&w), "ok");
        assert_string_equal(vmm_answer(&v), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_end(&h, &v);
        vmm_end(&h, &w);
}

static void *move_main(void *arg) {
        struct raw_vmm *r = arg;

        return mremap(r->map, r->len, r->len, MREMAP_MAYMOVE | MREMAP_FIXED, r->map + 16 * r->len);
}

/** What tells a fault that comes too early from one that nobody has told of. */
static void test_changing(void **state) {
        struct raw_vmm r = { .len = 16 * TEST_PAGE };
        uint64_t start = now_ns();
        struct uffd_msg msg[4];
        pthread_t mover;
        void *to;
        int n;

        r.map = mmap(NULL, 32 * r.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        assert_ptr_not_equal(r.map, MAP_FAILED);
        assert_int_equal(uffd_open(UFFD_FEATURE_EVENT_REMAP, &r.uffd), 0);
        assert_int_equal(uffd_register(r.uffd, (uintptr_t) r.map, r.len), 0);
        assert_false(uffd_changing(r.uffd));
        assert_int_equal(pthread_create(&mover, NULL, move_main, &r), 0);
        while (!uffd_changing(r.uffd))
                assert_true(ms_since(start) < DEADLINE_MS);
        while ((n = uffd_read(r.uffd, msg, ARRAY_LEN(msg))) == -EAGAIN)
                assert_true(ms_since(start) < DEADLINE_MS);
        assert_int_equal(n, 1);
        assert_int_equal(msg[0].event, UFFD_EVENT_REMAP);
        assert_int_equal(pthread_join(mover, &to), 0);
        assert_ptr_equal(to, r.map + 16 * r.len);
        assert_false(uffd_changing(r.uffd));
        r.uffd = close_fd(r.uffd);
        assert_false(uffd_changing(r.uffd));
        assert_int_equal(munmap(r.map, 32 * r.len), 0);
}

/** Faults at an address that the pager cannot know yet, in the middle of the move that brings memory there. */
static void test_touched_while_it_moves(void **state) {
        struct vmm v;

        fc_start(&h, &v, &img, 1, "", FC_MOVES, FC_TODAY);
        vmm_send(&v, "chase 42 700");
        assert_string_equal(vmm_answer(&v), "ok");
        assert_false(harness_has_note(&h, "session.failed", NULL));
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_end(&h, &v);
}

/** More moves than are kept track of: a verdict. The VMM waits for its last event to be read, and is killed there. */
static void test_too_many_moves(void **state) {
        struct image large;
        struct vmm v;

        image_make(&large, 2 * PAGER_MAX_PIECES, 5, SNAP_CODEC_LZ4);
        fc_start(&h, &v, &large, 1, "", FC_MOVES, FC_TODAY);
        vmm_send(&v, "scatter");
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "pieces"));
        vmm_end(&h, &v);
        image_clear(&large);
}

static void test_huge_pages(void **state) {
        struct vmm v, w;

        if (!fc_huge_pages(2 * PAGES / 512))
                fc_skip("no huge pages can be had here (vm.nr_hugepages)");
        fc_start(&h, &v, &img, 1, "huge", FC_MOVES, FC_TODAY);
        fc_start(&h, &w, &img, 3, "huge", 0, FC_1_7);
        vmm_send(&v, "verify 42 4");
        vmm_send(&w, "verify 42 4");
        assert_string_equal(vmm_answer(&v), "ok");
        assert_string_equal(vmm_answer(&w), "ok");
        assert_int_equal(harness_status(&h, "images", NULL, "decodes"), img.stats.frames);
        comes_to(&v, "pages_installed", (double) img.n_stored);
        comes_to(&v, "zero_pages", (double) (PAGES - img.n_stored));
        assert_string_equal(vmm_cmd(&v, "write 5 7"), "ok");
        assert_string_equal(vmm_cmd(&v, "discard 1024 512"), "ok");
        assert_string_equal(vmm_cmd(&v, "move 512 512 0"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        assert_string_equal(vmm_cmd(&v, "unmap 2048 1024"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_end(&h, &v);
        vmm_end(&h, &w);
}

/** The VMM has mapped more huge pages than the host has: a verdict. */
static void test_no_huge_pages_left(void **state) {
        struct vmm v;

        if (!fc_one_huge_page())
                fc_skip("the number of huge pages cannot be chosen here (vm.nr_hugepages)");
        fc_start(&h, &v, &img, 1, "huge", 0, FC_TODAY);
        vmm_send(&v, "verify 42 1");
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "out of memory"));
        vmm_end(&h, &v);
}

/** Guest memory that other processes map, too: Firecracker's with vhost-user devices. */
static void test_shared_memory(void **state) {
        struct vmm v;

        fc_start(&h, &v, &img, 3, "memfd", 0, FC_TODAY);
        assert_string_equal(vmm_cmd(&v, "verify 42 3"), "ok");
        assert_string_equal(vmm_cmd(&v, "write 77 5"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 1"), "ok");
        vmm_end(&h, &v);
}

/** Decoded pages are given back all the time while VMMs of all kinds read them. */
static void test_little_memory(void **state) {
        struct pager_config cfg = { .workers = 2, .idle_seconds = 300, .memory_budget = PAGER_MIN_BUDGET };
        bool huge = fc_huge_pages(PAGES / 512);
        struct vmm v[4], m;

        harness_stop(&h);
        harness_start(&h, &cfg);
        assert_true(img.n_stored * TEST_PAGE > 2 * PAGER_MIN_BUDGET);
        for (unsigned i = 0; i < 4; i++)
                fc_start(&h, &v[i], &img, 1 + i, i == 3 && huge ? "huge" : "", 0, FC_TODAY);
        vmm_start(&h, &m, &img);
        for (unsigned i = 0; i < 4; i++)
                vmm_send(&v[i], "verify 42 2");
        assert_string_equal(vmm_cmd(&m, "verify 42 2"), "ok");
        for (unsigned i = 0; i < 4; i++)
                assert_string_equal(vmm_answer(&v[i]), "ok");
        assert_true(harness_status(&h, "images", NULL, "reclaimed_pages") > 0);
        assert_false(harness_has_note(&h, "session.failed", NULL));
        for (unsigned i = 0; i < 4; i++)
                vmm_end(&h, &v[i]);
        vmm_end(&h, &m);
}

/** A working set of these runs, as a file. */
static int set_file(struct snap_run *run, size_t n) {
        struct snap_workingset set = { .restores = 1, .n_runs = n, .run = run };
        int fd = memfd_create("workingset", MFD_CLOEXEC);
        cleanup_snap_image struct snap_image *snap = NULL;
        cleanup_free void *data = NULL;
        size_t len;

        assert_true(fd >= 0);
        for (size_t i = 0; i < n; i++)
                set.n_pages += run[i].n;
        assert_int_equal(snap_image_open(img.fd, &snap), 0);
        assert_int_equal(snap_workingset_encode(&set, snap_image_info(snap)->uuid, PAGES, &data, &len), 0);
        assert_int_equal(pwrite(fd, data, len, 0), len);
        return fd;
}

static double demand(const struct vmm *v) {
        return of(v, "faults.missing") + of(v, "faults.zero") + of(v, "faults.present");
}

static void wait_ahead(const struct vmm *v, double pages) {
        uint64_t start = now_ns();

        while (of(v, "pages_ahead") + of(v, "zero_ahead") < pages)
                if (ms_since(start) > DEADLINE_MS)
                        fail_msg("%g and %g pages were copied ahead, not %g", of(v, "pages_ahead"), of(v, "zero_ahead"), pages);
}

/** What is known to be needed is there before it is touched. */
static void test_ahead(void **state) {
        struct snap_run run[] = { { 1500, 700 }, { 0, 300 }, { 4000, 33 } };
        struct vmm_opening o = { .workingset_fd = set_file(run, ARRAY_LEN(run)) };
        struct vmm v, w;

        fc_start_with(&h, &v, &img, 3, "", &o);
        wait_ahead(&v, 1033);
        for (size_t i = 0; i < ARRAY_LEN(run); i++)
                assert_string_equal(vmm_cmd(&v, "range 42 %llu %llu", (unsigned long long) run[i].first,
                                            (unsigned long long) run[i].n),
                                    "ok");
        assert_int_equal(demand(&v), 0);
        assert_int_equal(of(&v, "pages_ahead") + of(&v, "zero_ahead"), 1033);
        /* the next one, while it already runs */
        fc_start_with(&h, &w, &img, 1, "", &o);
        assert_string_equal(vmm_cmd(&w, "verify 42 3"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 3"), "ok");
        assert_int_equal(harness_status(&h, "images", NULL, "decodes"), img.stats.frames);
        vmm_end(&h, &w);
        vmm_end(&h, &v);
        (void) close_fd(o.workingset_fd);
}

static void test_ahead_huge(void **state) {
        struct snap_run run[] = { { 1500, 700 }, { 100, 10 } };
        struct vmm_opening o = { .workingset_fd = -1 };
        struct vmm v;

        if (!fc_huge_pages(PAGES / 512))
                fc_skip("no huge pages can be had here (vm.nr_hugepages)");
        o.workingset_fd = set_file(run, ARRAY_LEN(run));
        fc_start_with(&h, &v, &img, 2, "huge", &o);
        wait_ahead(&v, 4 * 512); /* the huge pages that hold these */
        assert_string_equal(vmm_cmd(&v, "range 42 1024 1536"), "ok");
        assert_string_equal(vmm_cmd(&v, "range 42 0 512"), "ok");
        assert_int_equal(demand(&v), 0);
        assert_string_equal(vmm_cmd(&v, "verify 42 3"), "ok");
        vmm_end(&h, &v);
        (void) close_fd(o.workingset_fd);
}

/** What it needed first is known afterwards: of huge pages as a whole. */
static void test_records(void **state) {
        struct vmm v;

        fc_start_with(&h, &v, &img, 3, "", &(struct vmm_opening){ .record = true });
        assert_string_equal(vmm_cmd(&v, "range 42 1000 600"), "ok");
        assert_true(of(&v, "recorded_pages") >= 600 && of(&v, "recorded_pages") < 900);
        vmm_end(&h, &v);
        if (!fc_huge_pages(PAGES / 512))
                return;
        fc_start_with(&h, &v, &img, 1, "huge", &(struct vmm_opening){ .record = true });
        assert_string_equal(vmm_cmd(&v, "range 42 1000 600"), "ok");
        comes_to(&v, "recorded_pages", 3 * 512);
        vmm_end(&h, &v);
}

/** A VMM whose layout changes all the time, so that the kernel lets nobody copy into it: its worker has time for others. */
static void test_flood(void **state) {
        struct pager_config cfg = { .workers = 1, .idle_seconds = 300 };
        struct vmm v, w;

        harness_stop(&h);
        harness_start(&h, &cfg);
        fc_start(&h, &v, &img, 1, "", 0, FC_TODAY);
        fc_start(&h, &w, &img, 1, "", 0, FC_TODAY);
        assert_string_equal(vmm_cmd(&v, "flood 100"), "ok");
        assert_string_equal(vmm_cmd(&w, "verify 42 2"), "ok");
        comes_to(&v, "removed_pages", 100);
        vmm_end(&h, &w);
        vmm_end(&h, &v);
}

static void test_dies_in_the_middle(void **state) {
        struct vmm v, w;

        fc_start(&h, &v, &img, 1, "", 0, FC_TODAY);
        fc_start(&h, &w, &img, 1, "", 0, FC_TODAY);
        vmm_send(&v, "verify 42 4");
        vmm_end(&h, &v);
        assert_string_equal(vmm_cmd(&w, "verify 42 4"), "ok");
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions_failed"), 0);
        vmm_end(&h, &w);
}

static void test_hangs_up(void **state) {
        struct vmm v;

        fc_start(&h, &v, &img, 1, "", 0, FC_TODAY);
        assert_string_equal(vmm_cmd(&v, "hangup"), "ok");
        (void) harness_note(&h, "session.gone", v.session);
        vmm_kill(&v);
}

static void test_corrupt_frame(void **state) {
        struct image bad;
        struct vmm v, w;
        uint64_t page;

        image_make(&bad, PAGES, 9, SNAP_CODEC_LZ4);
        page = image_stored_page(&bad, 300);
        fc_start(&h, &v, &bad, 1, "", 0, FC_TODAY);
        fc_start(&h, &w, &img, 1, "", 0, FC_TODAY);
        image_corrupt(&bad, page);
        assert_string_equal(vmm_cmd(&v, "touch %llu", (unsigned long long) page), "ok");
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "corrupt"));
        assert_string_equal(vmm_cmd(&v, "touched"), "ok 0");
        assert_string_equal(vmm_cmd(&w, "verify 42 2"), "ok");
        assert_string_equal(vmm_cmd(&v, "touched"), "ok 0");
        vmm_end(&h, &v);
        vmm_end(&h, &w);
        image_clear(&bad);
}

static void test_fault_outside(void **state) {
        struct vmm v;

        fc_start(&h, &v, &img, 2, "", 0, FC_TODAY);
        assert_string_equal(vmm_cmd(&v, "outside"), "ok");
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "not told of"));
        assert_string_equal(vmm_cmd(&v, "touched"), "ok 0");
        vmm_end(&h, &v);
}

/** A VMM that asks for events of forks gets one that brings a descriptor into the pager. */
static void test_forks(void **state) {
        int fds = count_fds();
        struct vmm v;

        fc_start(&h, &v, &img, 1, "", UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_FORK, FC_TODAY);
        assert_string_equal(vmm_cmd(&v, "fork"), "ok");
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "forked"));
        vmm_end(&h, &v);
        /* the image stays open: that is all */
        fc_start(&h, &v, &img, 1, "", 0, FC_TODAY);
        vmm_end(&h, &v);
        assert_true(count_fds() <= fds + 5);
}

/** In this process: nothing is said to a VMM in copy mode, and a child image's stale pages never show. */
static void test_child_image(void **state) {
        struct snap_writer_params params = { .ram_bytes = PAGES * TEST_PAGE, .codec = SNAP_CODEC_ZSTD };
        cleanup_snap_writer struct snap_writer *w = NULL;
        struct image child = { .n_pages = PAGES };
        struct raw_vmm r = { .len = PAGES * TEST_PAGE };
        uint8_t page[TEST_PAGE];
        char json[256];
        struct vmm v;

        child.fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        assert_true(child.fd >= 0);
        assert_int_equal(snap_writer_new(child.fd, img.fd, &params, &w), 0);
        for (uint64_t p = 0; p < PAGES; p++)
                if (mix64(p) % 3 == 0) {
                        content_fill(43, p, page);
                        assert_int_equal(snap_writer_put(w, p, page, 1), 0);
                }
        assert_int_equal(snap_writer_finish(w, &child.stats), 0);

        vmm_open_with(&h, &v, &child, &(struct vmm_opening){ .silent = true });
        r.map = mmap(NULL, r.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        assert_ptr_not_equal(r.map, MAP_FAILED);
        assert_int_equal(uffd_open(0, &r.uffd), 0);
        assert_int_equal(uffd_register(r.uffd, (uintptr_t) r.map, r.len), 0);
        int n = snprintf(json, sizeof(json), "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0}]",
                         (unsigned long long) (uintptr_t) r.map, r.len);
        raw_send(v.sock, json, (size_t) n, r.uffd);
        for (uint64_t i = 0; i < PAGES; i++) {
                uint64_t p = i * 1031 % PAGES;

                content_fill(mix64(p) % 3 == 0 ? 43 : 42, p, page);
                assert_memory_equal(r.map + p * TEST_PAGE, page, TEST_PAGE);
        }
        assert_int_equal(recv(v.sock, json, sizeof(json), MSG_DONTWAIT), -1);
        assert_int_equal(errno, EAGAIN);
        (void) close_fd(v.sock);
        (void) harness_note(&h, "session.gone", v.session);
        raw_unmap(&r);
        (void) close_fd(v.memfd);
        image_clear(&child);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_every_page_right, setup, teardown),
                cmocka_unit_test_setup_teardown(test_handshakes, setup, teardown),
                cmocka_unit_test_setup_teardown(test_clones, setup, teardown),
                cmocka_unit_test_setup_teardown(test_write_first, setup, teardown),
                cmocka_unit_test_setup_teardown(test_balloon, setup, teardown),
                cmocka_unit_test_setup_teardown(test_unmapped, setup, teardown),
                cmocka_unit_test_setup_teardown(test_moved, setup, teardown),
                cmocka_unit_test_setup_teardown(test_moved_unheard, setup, teardown),
                cmocka_unit_test_setup_teardown(test_churn, setup, teardown),
                cmocka_unit_test(test_changing),
                cmocka_unit_test_setup_teardown(test_touched_while_it_moves, setup, teardown),
                cmocka_unit_test_setup_teardown(test_too_many_moves, setup, teardown),
                cmocka_unit_test_setup_teardown(test_huge_pages, setup, teardown),
                cmocka_unit_test_setup_teardown(test_no_huge_pages_left, setup, teardown),
                cmocka_unit_test_setup_teardown(test_shared_memory, setup, teardown),
                cmocka_unit_test_setup_teardown(test_little_memory, setup, teardown),
                cmocka_unit_test_setup_teardown(test_ahead, setup, teardown),
                cmocka_unit_test_setup_teardown(test_ahead_huge, setup, teardown),
                cmocka_unit_test_setup_teardown(test_records, setup, teardown),
                cmocka_unit_test_setup_teardown(test_flood, setup, teardown),
                cmocka_unit_test_setup_teardown(test_dies_in_the_middle, setup, teardown),
                cmocka_unit_test_setup_teardown(test_hangs_up, setup, teardown),
                cmocka_unit_test_setup_teardown(test_corrupt_frame, setup, teardown),
                cmocka_unit_test_setup_teardown(test_fault_outside, setup, teardown),
                cmocka_unit_test_setup_teardown(test_forks, setup, teardown),
                cmocka_unit_test_setup_teardown(test_child_image, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
