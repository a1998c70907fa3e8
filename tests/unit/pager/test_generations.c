/* SPDX-License-Identifier: MIT */
/* A family of images with VMs on all of its generations: each sees its own memory, and what they have in common is there once. */
#include "tests/unit/pager/fc.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "common/io.h"
#include "pager/image.h"
#include "snapstore/workingset.h"

#define PAGES 4096ull
#define DEPTH 6
#define SEED 100

static struct harness h;
static struct image img[DEPTH];
/* What each link has changed against the one before: seed SEED + its number. */
static struct image_change change[DEPTH][3];
#define N_CHANGES ARRAY_LEN(change[0])

static void make_family(void) {
        image_make(&img[0], PAGES, SEED, SNAP_CODEC_LZ4);
        for (uint64_t i = 1; i < DEPTH; i++) {
                change[i][0] = (struct image_change){ i * 500, 120, SEED + i };
                change[i][1] = (struct image_change){ 40, 30, SEED + i }; /* all of them */
                change[i][2] = (struct image_change){ 3600 + 7 * i, 3, SEED + i };
                image_make_child(&img[i], &img[i - 1], change[i], N_CHANGES);
        }
}

static int setup_with(const struct pager_config *cfg) {
        harness_start(&h, cfg);
        make_family();
        return 0;
}

static int setup(void **state) {
        return setup_with(NULL);
}

static int setup_little(void **state) {
        return setup_with(&(struct pager_config){ .workers = 2, .idle_seconds = 0, .memory_budget = PAGER_MIN_BUDGET });
}

static int teardown(void **state) {
        for (unsigned i = 0; i < DEPTH; i++)
                image_clear(&img[i]);
        harness_stop(&h);
        return 0;
}

static double total(const char *key) {
        return harness_status(&h, "totals", NULL, key);
}

static void open_link(struct vmm *v, unsigned i, struct vmm_opening o) {
        const struct image *chain[DEPTH];

        for (unsigned k = 0; k < i; k++)
                chain[k] = &img[i - 1 - k];
        o.chain = chain;
        o.n_chain = i;
        vmm_open_with(&h, v, &img[i], &o);
}

static void tell_seeds(struct vmm *v, unsigned i) {
        for (unsigned k = 1; k <= i; k++)
                for (unsigned c = 0; c < N_CHANGES; c++)
                        assert_string_equal(vmm_cmd(v, "seed %llu %llu %llu", (unsigned long long) change[k][c].first,
                                                    (unsigned long long) change[k][c].n, (unsigned long long) change[k][c].seed),
                                            "ok");
}

static void start_link_with(struct vmm *v, unsigned i, struct vmm_opening o) {
        open_link(v, i, o);
        vmm_run(&h, v, &img[i]);
        tell_seeds(v, i);
}

static void start_link(struct vmm *v, unsigned i) {
        start_link_with(v, i, (struct vmm_opening){ 0 });
}

static void verify(struct vmm *v) {
        assert_string_equal(vmm_cmd(v, "verify %d 2", SEED), "ok");
}

/** All alive, all different, and every page there once. */
static void test_chain(void **state) {
        struct vmm v[DEPTH];
        double changed = 0;

        for (unsigned i = 0; i < DEPTH; i++)
                start_link(&v[i], i);
        for (unsigned i = 0; i < DEPTH; i++)
                verify(&v[DEPTH - 1 - i]);
        for (unsigned i = 1; i < DEPTH; i++)
                for (unsigned c = 0; c < N_CHANGES; c++)
                        changed += (double) change[i][c].n;
        assert_int_equal(total("images"), DEPTH);
        print_message("%.0f pages are there, %.0f of the first image, at most %.0f were changed\n",
                      total("present_bytes") / TEST_PAGE, (double) img[0].n_stored, changed);
        assert_true(total("present_bytes") <= ((double) img[0].n_stored + 1.5 * changed) * TEST_PAGE);
        assert_true(total("present_bytes") >= ((double) img[0].n_stored) * TEST_PAGE);
        /* and again, when all is there */
        for (unsigned i = 0; i < DEPTH; i++) {
                assert_string_equal(vmm_cmd(&v[i], "write 600 %u", i + 1), "ok");
                verify(&v[i]);
        }
        for (unsigned i = 0; i < DEPTH; i++)
                vmm_end(&h, &v[i]);
}

/** Whatever opens when: what is not open cannot be shared with. */
static void test_any_order(void **state) {
        static const unsigned order[] = { 3, 0, 5, 1, 4, 2, 5, 0 };
        struct vmm v[ARRAY_LEN(order)];

        for (unsigned i = 0; i < ARRAY_LEN(order); i++) {
                start_link(&v[i], order[i]);
                if (i % 2)
                        verify(&v[i]);
        }
        for (unsigned i = 0; i < ARRAY_LEN(order); i++) {
                verify(&v[i]);
                vmm_end(&h, &v[i]);
        }
        assert_int_equal(total("images"), DEPTH);
}

/** What a chain of one has is not there twice, and ids alone are no proof. */
static void test_lies(void **state) {
        const struct image *chain[] = { &img[0] };
        struct vmm v, w, old;
        struct image other;

        image_make(&other, PAGES, SEED, SNAP_CODEC_LZ4); /* the same content, another family */
        start_link(&old, 0);
        verify(&old);
        vmm_open_with(&h, &v, &other, &(struct vmm_opening){ .chain = chain, .n_chain = 1 });
        vmm_run(&h, &v, &other);
        verify(&v);
        assert_true(total("present_bytes") >= 2 * (double) img[0].n_stored * TEST_PAGE);
        /* a descendant, told of as an ancestor */
        chain[0] = &img[3];
        start_link(&w, 3);
        vmm_end(&h, &old);
        memcpy(img[1].id, other.id, sizeof(other.id));
        vmm_open_with(&h, &old, &img[1], &(struct vmm_opening){ .chain = chain, .n_chain = 1 });
        vmm_run(&h, &old, &img[1]);
        tell_seeds(&old, 1);
        verify(&old);
        tell_seeds(&w, 3);
        verify(&w);
        vmm_end(&h, &w);
        vmm_end(&h, &v);
        vmm_end(&h, &old);
        image_clear(&other);
}

/** Pages are given back all the time, and images as soon as nobody needs them: not before. */
static void test_little_memory(void **state) {
        struct vmm v[DEPTH];

        for (unsigned i = 0; i < DEPTH; i++)
                start_link(&v[i], i);
        for (unsigned round = 0; round < 2; round++) {
                for (unsigned i = 0; i < DEPTH; i++)
                        vmm_send(&v[i], "verify %d 2", SEED);
                for (unsigned i = 0; i < DEPTH; i++)
                        assert_string_equal(vmm_answer(&v[i]), "ok");
        }
        assert_true(total("reclaimed_pages") > 0);
        for (unsigned i = 0; i + 1 < DEPTH; i++)
                vmm_end(&h, &v[i]);
        assert_int_equal(total("images"), DEPTH); /* the last one needs them all */
        verify(&v[DEPTH - 1]);
        start_link(&v[0], 2);
        verify(&v[0]);
        vmm_end(&h, &v[DEPTH - 1]);
        while (total("images") > 3) { /* those that its end has left without use go when the pager comes to it */
        }
        verify(&v[0]);
        vmm_end(&h, &v[0]);
        while (total("images") > 0) {
        }
        assert_int_equal(total("present_bytes"), 0);
        assert_false(harness_has_note(&h, "session.failed", NULL));
}

static void test_discards(void **state) {
        struct vmm a, b;

        start_link(&a, 2);
        start_link(&b, 4);
        for (uint64_t p = 10; p + 200 < PAGES; p += 331) { /* over many borders */
                assert_string_equal(vmm_cmd(&b, "advise %llu 90 %d", (unsigned long long) p, MADV_DONTNEED), "ok");
                assert_string_equal(vmm_cmd(&b, "advise %llu 1 %d", (unsigned long long) p + 95, MADV_DONTNEED), "ok");
        }
        verify(&b);
        verify(&a);
        assert_string_equal(vmm_cmd(&b, "advise 0 %llu %d", PAGES, MADV_DONTNEED), "ok");
        verify(&b);
        verify(&a);
        vmm_end(&h, &a);
        vmm_end(&h, &b);
}

/** A stranger's page in the root's memory is one in everybody's. */
static void test_foreign_page(void **state) {
        uint64_t page = image_stored_page(&img[0], 100); /* that nobody has changed */
        struct vmm v[3], again;
        int memfd;

        open_link(&v[0], 0, (struct vmm_opening){ 0 });
        memfd = fcntl(v[0].memfd, F_DUPFD_CLOEXEC, 3);
        vmm_run(&h, &v[0], &img[0]);
        start_link(&v[1], 1);
        start_link(&v[2], 3);
        harness_trespass(memfd, page);
        for (unsigned i = 0; i < 3; i++)
                assert_non_null(strstr(harness_note(&h, "session.failed", v[i].session)->text, "did not put there"));
        /* Who comes next gets all of it anew. */
        start_link(&again, 3);
        verify(&again);
        for (unsigned i = 0; i < 3; i++)
                vmm_end(&h, &v[i]);
        verify(&again);
        vmm_end(&h, &again);
        (void) close_fd(memfd);
}

static void test_corrupt_ancestor(void **state) {
        uint64_t page = image_stored_page(&img[0], 1000 + 200);
        struct vmm v, w;

        start_link(&v, 0);
        start_link(&w, 2);
        image_corrupt(&img[0], page);
        assert_string_equal(vmm_cmd(&w, "touch %llu", (unsigned long long) page), "ok");
        assert_non_null(strstr(harness_note(&h, "session.failed", w.session)->text, "corrupt"));
        vmm_end(&h, &w);
        /* Its own file is whole, and it takes nothing from a bad one. */
        start_link(&w, 2);
        verify(&w);
        vmm_end(&h, &w);
        vmm_kill(&v);
}

static void test_working_set(void **state) {
        struct snap_run run[] = { { 1500, 700 }, { 0, 300 }, { 3590, 80 } };
        struct snap_workingset set = { .restores = 1, .n_pages = 1080, .n_runs = 3, .run = run };
        cleanup_fd int fd = memfd_create("workingset", MFD_CLOEXEC);
        cleanup_snap_image struct snap_image *snap = NULL;
        cleanup_free void *data = NULL;
        uint64_t start;
        struct vmm v, w;
        size_t len;

        assert_int_equal(snap_image_open(img[4].fd, &snap), 0);
        assert_int_equal(snap_workingset_encode(&set, snap_image_info(snap)->uuid, PAGES, &data, &len), 0);
        assert_int_equal(pwrite(fd, data, len, 0), len);
        start_link(&v, 2);
        start_link_with(&w, 4, (struct vmm_opening){ .workingset_fd = fd, .record = true });
        start = now_ns();
        while (harness_status(&h, "sessions", w.session, "pages_ahead") +
                       harness_status(&h, "sessions", w.session, "zero_ahead") <
               1080)
                if (ms_since(start) > DEADLINE_MS)
                        fail_msg("not all of it was mapped ahead");
        for (size_t i = 0; i < ARRAY_LEN(run); i++)
                assert_string_equal(vmm_cmd(&w, "range %d %llu %llu", SEED, (unsigned long long) run[i].first,
                                            (unsigned long long) run[i].n),
                                    "ok");
        assert_int_equal(harness_status(&h, "sessions", w.session, "faults.missing") +
                                 harness_status(&h, "sessions", w.session, "faults.present") +
                                 harness_status(&h, "sessions", w.session, "faults.zero"),
                         0);
        verify(&w);
        verify(&v);
        vmm_end(&h, &v);
        vmm_end(&h, &w);
}

/** VMMs that have their own memory, beside one that maps it. */
static void test_copy_mode(void **state) {
        const struct image *chain[] = { &img[2], &img[1], &img[0] };
        const struct vmm_opening o = { .chain = chain, .n_chain = 3 };
        bool huge = fc_huge_pages(PAGES / 512);
        struct vmm root, v, w, x;

        start_link(&root, 0);
        start_link(&x, 3);
        fc_start_with(&h, &v, &img[3], 3, "", &o);
        tell_seeds(&v, 3);
        verify(&v);
        if (huge) {
                fc_start_with(&h, &w, &img[3], 1, "huge", &o);
                tell_seeds(&w, 3);
                verify(&w);
                vmm_end(&h, &w);
        }
        verify(&x);
        verify(&root);
        assert_true(total("present_bytes") < 1.5 * (double) img[0].n_stored * TEST_PAGE);
        vmm_end(&h, &v);
        vmm_end(&h, &x);
        vmm_end(&h, &root);
}

/** Who maps one memory as a whole must not be given one that is made of several. */
static void test_untold(void **state) {
        struct raw_vmm r;
        struct vmm root, v;
        char json[256];
        int n;

        start_link(&root, 0);
        open_link(&v, 1, (struct vmm_opening){ .silent = true });
        raw_map(&r, v.memfd, v.ram_bytes);
        n = snprintf(json, sizeof(json),
                     "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":4096,"
                     "\"forkd\":{\"mode\":\"memfd\",\"version\":1}}]",
                     (unsigned long long) (uintptr_t) r.map, r.len);
        raw_send(v.sock, json, (size_t) n, r.uffd);
        assert_non_null(strstr(raw_answer(v.sock), "was not told"));
        raw_unmap(&r);
        (void) close_fd(v.memfd);
        harness_close(&h, v.session);
        (void) close_fd(v.sock);
        vmm_end(&h, &root);
}

static void expect_invalid(const char *id, const char *words) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int pair[2];
        id_str session;

        id_new(session);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        mp_buf_init(&b);
        mp_map(&b, 5);
        mp_kv_str(&b, "session", session);
        mp_kv_u64(&b, "ram_bytes", PAGES * TEST_PAGE);
        mp_kv_str(&b, "id", id);
        mp_key(&b, "chain");
        mp_array(&b, 300);
        for (unsigned i = 0; i < 300; i++)
                mp_str(&b, id);
        mp_kv_u64(&b, "fds", 2);
        struct answer a = harness_call(&h, "session.open", &b, (int[]){ img[0].fd, pair[0] }, 2);
        assert_true(a.r < 0);
        assert_non_null(strstr(a.e.message, words));
        answer_clear(&a);
        (void) close_fd(pair[0]);
        (void) close_fd(pair[1]);
}

static void test_bad_descent(void **state) {
        expect_invalid("../../etc/passwd", "id is not");
        expect_invalid("0123456789abcde", "id is not");
        expect_invalid(img[0].id, "more than");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_chain, setup, teardown),
                cmocka_unit_test_setup_teardown(test_any_order, setup, teardown),
                cmocka_unit_test_setup_teardown(test_lies, setup, teardown),
                cmocka_unit_test_setup_teardown(test_little_memory, setup_little, teardown),
                cmocka_unit_test_setup_teardown(test_discards, setup, teardown),
                cmocka_unit_test_setup_teardown(test_foreign_page, setup, teardown),
                cmocka_unit_test_setup_teardown(test_corrupt_ancestor, setup, teardown),
                cmocka_unit_test_setup_teardown(test_working_set, setup, teardown),
                cmocka_unit_test_setup_teardown(test_copy_mode, setup, teardown),
                cmocka_unit_test_setup_teardown(test_untold, setup, teardown),
                cmocka_unit_test_setup_teardown(test_bad_descent, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
