/* SPDX-License-Identifier: MIT */
/* Recording what a clone needs first, and replaying it for the next one. */
#include "tests/unit/pager/harness.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "common/io.h"
#include "snapstore/workingset.h"

#define PAGES 8192ull
#define TOUCHED 2048ull /* the pages that a guest needs: the first of them, and every fifth behind */

static struct harness h;
static struct image img;

static int setup(void **state) {
        /* Decoded memory goes with its last clone: the next one begins as the first did. */
        struct pager_config cfg = { .idle_seconds = 0, .record_seconds = 1, .workers = 2 };

        harness_start(&h, &cfg);
        image_make(&img, PAGES, 42, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        harness_stop(&h);
        return 0;
}

static void read_some(struct vmm *v) {
        assert_string_equal(vmm_cmd(v, "range 42 1024 1024"), "ok");
        assert_string_equal(vmm_cmd(v, "range 42 5000 1024"), "ok");
}

static double demand(const struct vmm *v) {
        return harness_status(&h, "sessions", v->session, "faults.missing") +
               harness_status(&h, "sessions", v->session, "faults.zero") +
               harness_status(&h, "sessions", v->session, "faults.present");
}

/** session.workingset as a set of its own. */
static void fetch(const struct vmm *v, struct snap_workingset *ret, bool *ret_complete) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct snap_run *run;
        const msgpack_object *runs;
        uint64_t pages, sum = 0;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", v->session);
        struct answer a = harness_call(&h, "session.workingset", &b, NULL, 0);
        assert_int_equal(a.r, 0);
        runs = mp_get_array(&a.doc.root, "runs");
        assert_non_null(runs);
        assert_int_equal(mp_get_bool(&a.doc.root, "complete", ret_complete), 0);
        assert_int_equal(mp_get_u64(&a.doc.root, "pages", &pages), 0);
        run = calloc(runs->via.array.size + 1, sizeof(*run));
        assert_non_null(run);
        for (uint32_t i = 0; i < runs->via.array.size; i++) {
                const msgpack_object *o = &runs->via.array.ptr[i];

                assert_true(o->type == MSGPACK_OBJECT_ARRAY && o->via.array.size == 2);
                run[i] = (struct snap_run){ o->via.array.ptr[0].via.u64, o->via.array.ptr[1].via.u64 };
                sum += run[i].n;
        }
        assert_int_equal(sum, pages);
        assert_int_equal(snap_workingset_merge(NULL, run, runs->via.array.size, PAGES, snap_workingset_max_pages(PAGES), ret,
                                               NULL),
                         0);
        free(run);
        answer_clear(&a);
}

static int set_file(const struct snap_workingset *set) {
        struct snap_image *snap;
        void *data;
        size_t len;
        int fd = memfd_create("workingset", MFD_CLOEXEC);

        assert_true(fd >= 0);
        assert_int_equal(snap_image_open(img.fd, &snap), 0);
        assert_int_equal(snap_workingset_encode(set, snap_image_info(snap)->uuid, PAGES, &data, &len), 0);
        assert_int_equal(pwrite(fd, data, len, 0), len);
        snap_image_close(snap);
        free(data);
        return fd;
}

static void wait_for(const char *which, const char *key, double at_least) {
        uint64_t deadline = now_ns() + DEADLINE_MS * 1000000ull;

        while (harness_status(&h, "sessions", which, key) < at_least)
                assert_true(now_ns() < deadline);
}

static void record(struct snap_workingset *ret) {
        struct vmm v;
        bool complete;
        double recorded;

        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .record = true });
        assert_int_equal(v.workingset_pages, 0);
        vmm_run(&h, &v, &img);
        read_some(&v);
        (void) harness_note(&h, "session.recorded", v.session);
        fetch(&v, ret, &complete);
        assert_true(complete);
        /* what was read, and what came along in the same answers */
        assert_true(ret->n_pages >= TOUCHED && ret->n_pages <= TOUCHED + 4 * PAGER_ZERO_WINDOW);
        assert_true(harness_status(&h, "sessions", v.session, "recorded_pages") >= ret->n_pages);
        recorded = harness_status(&h, "sessions", v.session, "recorded_pages");
        /* what comes after the window is not in it */
        assert_string_equal(vmm_cmd(&v, "range 42 8000 100"), "ok");
        assert_int_equal(harness_status(&h, "sessions", v.session, "recorded_pages"), recorded);
        vmm_end(&h, &v);
}

static void the_next_clone_does_not_fault(void **state) {
        cleanup_snap_workingset struct snap_workingset set = { 0 };
        struct vmm v, w;
        int fd;

        record(&set);
        fd = set_file(&set);
        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .workingset_fd = fd });
        assert_int_equal(v.workingset_pages, set.n_pages);
        vmm_run(&h, &v, &img);
        wait_for(v.session, "pages_ahead", 1);
        /* nothing faults: so all of it is mapped ahead, sooner or later, zero pages too */
        uint64_t deadline = now_ns() + DEADLINE_MS * 1000000ull;
        while (harness_status(&h, "sessions", v.session, "pages_ahead") +
                       harness_status(&h, "sessions", v.session, "zero_ahead") <
               (double) set.n_pages)
                assert_true(now_ns() < deadline);
        read_some(&v);
        assert_int_equal(demand(&v), 0);
        assert_true(harness_status(&h, "images", NULL, "ahead_pages") > 0);
        assert_int_equal(harness_status(&h, "images", NULL, "demand_pages"), 0);

        /* the image is resident now */
        vmm_open_with(&h, &w, &img, &(struct vmm_opening){ .workingset_fd = fd });
        vmm_run(&h, &w, &img);
        read_some(&w);
        assert_string_equal(vmm_cmd(&w, "verify 42 4"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 4"), "ok");
        vmm_end(&h, &w);
        vmm_end(&h, &v);
        assert_int_equal(harness_status(&h, "totals", NULL, "images"), 0); /* jobs hold nothing back */
        (void) close_fd(fd);
}

/** A guest that is faster than the replay, discards what it is about to map, and dies in the middle of it. */
static void replay_under_load(void **state) {
        struct snap_workingset set = { .n_pages = PAGES, .n_runs = PAGES / 4, .restores = 1 };
        int fd;

        set.run = calloc(set.n_runs, sizeof(*set.run));
        assert_non_null(set.run);
        for (uint64_t i = 0; i < set.n_runs; i++) /* each run once, in an order that jumps */
                set.run[i] = (struct snap_run){ i * 1031 % set.n_runs * 4, 4 };
        fd = set_file(&set);
        for (unsigned i = 0; i < 6; i++) {
                struct vmm v, w;

                vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .workingset_fd = fd, .record = true });
                vmm_open_with(&h, &w, &img, &(struct vmm_opening){ .workingset_fd = fd });
                vmm_run(&h, &v, &img);
                vmm_send(&v, "storm 42 %u", 200 * i);
                vmm_run(&h, &w, &img);
                if (i % 2)
                        assert_string_equal(vmm_cmd(&w, "verify 42 4"), "ok");
                vmm_end(&h, &w);
                assert_string_equal(vmm_answer(&v), "ok");
                assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
                vmm_end(&h, &v);
        }
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions_failed"), 0);
        assert_int_equal(harness_status(&h, "totals", NULL, "images"), 0);
        (void) close_fd(fd);
        snap_workingset_clear(&set);
}

static void an_unusable_one_is_left_aside(void **state) {
        static const char garbage[] = "this is no working set";
        struct vmm v;
        int fd = memfd_create("workingset", MFD_CLOEXEC), null = open("/dev/zero", O_RDONLY | O_CLOEXEC);

        assert_true(fd >= 0 && null >= 0);
        assert_int_equal(write(fd, garbage, sizeof(garbage)), sizeof(garbage));
        for (unsigned i = 0; i < 2; i++) {
                vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .workingset_fd = i ? null : fd });
                assert_int_equal(v.workingset_pages, 0);
                vmm_run(&h, &v, &img);
                assert_string_equal(vmm_cmd(&v, "verify 42 1"), "ok");
                vmm_end(&h, &v);
        }
        (void) close_fd(fd);
        (void) close_fd(null);
}

/** A frame of the set is corrupt: nobody needs it yet, so nothing fails before it is touched. */
static void a_corrupt_frame_fails_when_it_is_needed(void **state) {
        struct snap_workingset set = { .n_pages = 512, .n_runs = 1, .restores = 1 };
        uint64_t bad = image_stored_page(&img, 256);
        struct vmm v;
        int fd;

        set.run = &(struct snap_run){ 0, 512 };
        fd = set_file(&set);
        image_corrupt(&img, bad);
        vmm_open_with(&h, &v, &img, &(struct vmm_opening){ .workingset_fd = fd });
        vmm_run(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "range 42 0 64"), "ok");
        assert_false(harness_has_note(&h, "session.failed", v.session));
        vmm_send(&v, "range 42 %llu 1", (unsigned long long) bad);
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "corrupt"));
        vmm_end(&h, &v);
        (void) close_fd(fd);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(the_next_clone_does_not_fault, setup, teardown),
                cmocka_unit_test_setup_teardown(replay_under_load, setup, teardown),
                cmocka_unit_test_setup_teardown(an_unusable_one_is_left_aside, setup, teardown),
                cmocka_unit_test_setup_teardown(a_corrupt_frame_fails_when_it_is_needed, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
