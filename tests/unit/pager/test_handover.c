/* SPDX-License-Identifier: MIT */
/* By plan: a pager releases its sessions, the next one adopts them, and their guests fault all the time. What goes wrong on
 * the way leaves the sessions where they were. */
#include "tests/unit/pager/takeover.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"

#define PAGES 4096ull
#define SEED 41
#define GUESTS 32u

static struct image img, large;
static struct other old, next;

static int setup(void **state) {
        image_make(&img, PAGES, SEED, SNAP_CODEC_LZ4);
        image_make(&large, 32 * PAGES, SEED, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        image_clear(&large);
        return 0;
}

static void expect_error(struct answer a, const char *code, const char *what) {
        assert_true(a.r < 0);
        if (strcmp(a.e.code, code) != 0 || !strstr(a.e.message, what))
                fail_msg("expected %s: …%s…, got %s: %s", code, what, a.e.code, a.e.message);
        answer_clear(&a);
}

static void expect_ok(struct answer a) {
        if (a.r < 0)
                fail_msg("%s", a.e.message);
        answer_clear(&a);
}

static size_t take_ranges(struct answer *a, struct pages *ret, size_t max) {
        const msgpack_object *ranges;
        size_t n;

        assert_int_equal(a->r, 0);
        ranges = mp_get_array(&a->doc.root, "ranges");
        assert_non_null(ranges);
        n = ranges->via.array.size;
        assert_true(n <= max && !mp_get(&a->doc.root, "next"));
        for (size_t i = 0; i < n; i++)
                ret[i] = (struct pages){ ranges->via.array.ptr[i].via.array.ptr[0].via.u64,
                                         ranges->via.array.ptr[i].via.array.ptr[1].via.u64 };
        answer_clear(a);
        return n;
}

/** What the pager at @h knows to be discarded in the session. */
static size_t removed_of(struct harness *h, const char *session, struct pages *ret, size_t max) {
        struct answer a = call_session(h, "session.removed", session);

        return take_ranges(&a, ret, max);
}

static int by_size(const void *a, const void *b) {
        double x = *(const double *) a, y = *(const double *) b;

        return (x > y) - (x < y);
}

/** All sessions of the image, in the order of docs/protocol.md; of each kind of call all are under way at once. */
static void hand_over(struct harness *from, struct harness *to, struct vmm *v, struct kept *k, unsigned n) {
        static struct pages removed[PAGES];
        static struct call release[GUESTS], ask[GUESTS], adopt[GUESTS];
        uint64_t start = now_ns();
        double pause[GUESTS];

        for (unsigned i = 0; i < n; i++) {
                begin_session(from, &release[i], "session.release", v[i].session);
                begin_session(from, &ask[i], "session.removed", v[i].session);
        }
        for (unsigned i = 0; i < n; i++)
                expect_ok(harness_wait(from, &release[i]));
        for (unsigned i = 0; i < n; i++) {
                struct adopt_how how = { .removed = removed, .vm_pid = v[i].pid };
                struct answer a = harness_wait(from, &ask[i]);

                how.n_removed = take_ranges(&a, removed, ARRAY_LEN(removed));
                begin_adopt(to, &adopt[i], &k[i], &img, &how);
        }
        for (unsigned i = 0; i < n; i++) {
                expect_ok(harness_wait(to, &adopt[i]));
                pause[i] = ms_since(start);
        }
        for (unsigned i = 0; i < n; i++)
                harness_close(from, v[i].session);
        qsort(pause, n, sizeof(pause[0]), by_size);
        print_message("%u sessions: from release to adoption p50 %.2f ms, longest %.2f ms\n", n, pause[n / 2], pause[n - 1]);
        assert_true(pause[n - 1] < 5000); /* a host with other things to do */
}

/** There and back again, twice, below guests that read, and discard, all the time. */
static void test_hand_over(void **state) {
        static struct vmm v[GUESTS];
        static struct kept k[GUESTS];

        other_start(&old, "4M");
        other_start(&next, "4M");
        for (unsigned i = 0; i < GUESTS; i++) {
                vmm_start(&old.h, &v[i], &img);
                kept_get(&old.h, &v[i], &k[i]);
                vmm_send(&v[i], i % 4 ? "verify %d 1" : "storm %d 100", SEED);
        }
        for (unsigned round = 0; round < 2; round++) {
                hand_over(&old.h, &next.h, v, k, GUESTS);
                assert_int_equal(harness_status(&old.h, "totals", NULL, "sessions"), 0);
                assert_int_equal(harness_status(&old.h, "totals", NULL, "images"), 0);
                hand_over(&next.h, &old.h, v, k, GUESTS);
        }
        for (unsigned i = 0; i < GUESTS; i++)
                assert_string_equal(vmm_answer(&v[i]), "ok");
        for (unsigned i = 0; i < GUESTS; i++) {
                assert_string_equal(vmm_cmd(&v[i], "verify %d 1", SEED), "ok");
                assert_int_equal(harness_status(&old.h, "sessions", v[i].session, "failed"), 0);
                assert_int_equal(harness_status(&old.h, "sessions", v[i].session, "released"), 0);
                vmm_end(&old.h, &v[i]);
                kept_clear(&k[i]);
        }
        other_stop(&next);
        other_stop(&old);
}

/** The next pager is another user's, as after an upgrade to one that has less rights. */
static void test_another_user(void **state) {
        struct adopt_how how = { 0 };
        struct vmm v, w;
        struct kept k;

        other_start(&old, "64M");
        other_start_as_nobody(&next, "64M");
        vmm_start(&old.h, &v, &img);
        kept_get(&old.h, &v, &k);
        vmm_send(&v, "verify %d 2", SEED);
        call_ok(&old.h, "session.release", v.session);
        expect_ok(try_adopt(&next.h, &k, &img, &how));
        harness_close(&old.h, v.session);
        assert_string_equal(vmm_answer(&v), "ok");
        vmm_start(&next.h, &w, &img); /* has an image of its own */
        assert_int_equal(harness_status(&next.h, "totals", NULL, "images"), 2);
        assert_string_equal(vmm_cmd(&w, "verify %d 2", SEED), "ok");
        assert_string_equal(vmm_cmd(&v, "verify %d 2", SEED), "ok");
        vmm_end(&next.h, &w);
        vmm_end(&next.h, &v);
        kept_clear(&k);
        other_stop(&next);
        other_stop(&old);
}

/** Two pagers serve guests of one image from one memory, with little room: no wrong byte, nobody blamed. */
static void test_both_serve(void **state) {
        struct adopt_how how = { 0 };
        struct kept k;
        struct vmm v, w;

        other_start(&old, "4M");
        other_start(&next, "4M");
        vmm_start(&old.h, &v, &img);
        vmm_start(&old.h, &w, &img);
        kept_get(&old.h, &v, &k);
        call_ok(&old.h, "session.release", v.session);
        expect_ok(try_adopt(&next.h, &k, &img, &how));
        harness_close(&old.h, v.session);
        for (unsigned i = 0; i < 4; i++) {
                vmm_send(&v, "verify %d 2", SEED);
                vmm_send(&w, "verify %d 2", SEED);
                assert_string_equal(vmm_answer(&v), "ok");
                assert_string_equal(vmm_answer(&w), "ok");
        }
        for (uint64_t t = now_ns(); harness_status(&next.h, "totals", NULL, "present_bytes") > (8 << 20);)
                assert_true(ms_since(t) < DEADLINE_MS);
        assert_int_equal(harness_status(&old.h, "sessions", w.session, "failed"), 0);
        assert_int_equal(harness_status(&next.h, "sessions", v.session, "failed"), 0);
        vmm_end(&old.h, &w);
        vmm_end(&next.h, &v);
        kept_clear(&k);
        other_stop(&next);
        other_stop(&old);
}

/* ---- what is refused ---- */

struct bad {
        struct adopt_how how;
        const char *code, *what;
};

/** Every way in which an adoption can be wrong: refused, and the session goes on where it was. */
static void test_failed_adoptions(void **state) {
        uint64_t ram = PAGES * TEST_PAGE;
        struct pages beyond[] = { { PAGES - 1, 2 } }, far[] = { { UINT64_MAX, 1 } }, none[] = { { 5, 0 } };
        int plain = memfd_create("plain", MFD_CLOEXEC | MFD_ALLOW_SEALING),
            small = memfd_create("small", MFD_CLOEXEC | MFD_ALLOW_SEALING), null = open("/dev/null", O_RDWR | O_CLOEXEC),
            fresh_uffd = -1, ro, foreign;
        struct image wrong, other_size;
        struct vmm v, w;
        struct kept k;
        char path[64];

        other_start(&old, "64M");
        other_start(&next, "64M");
        vmm_start(&old.h, &v, &img);
        kept_get(&old.h, &v, &k);
        assert_string_equal(vmm_cmd(&v, "range %d 0 512", SEED), "ok");
        image_make(&wrong, PAGES, SEED + 1, SNAP_CODEC_LZ4);
        image_make(&other_size, PAGES / 2, SEED, SNAP_CODEC_LZ4);
        /* the memory of another session, of another image */
        vmm_open(&old.h, &w, &wrong);
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", k.memfd);
        ro = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(plain >= 0 && small >= 0 && null >= 0 && ro >= 0);
        foreign = w.memfd;
        assert_int_equal(ftruncate(plain, (off_t) ram), 0);
        assert_int_equal(ftruncate(small, (off_t) ram / 2) | fcntl(small, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
        uint64_t base = k.region[0][0];
        const uint64_t overlap[2][3] = { { base, ram / 2, 0 }, { base + ram / 2 - TEST_PAGE, ram / 2, ram / 2 } };
        const uint64_t twice[2][3] = { { base, ram / 2, 0 }, { base + ram / 2, ram / 2, 0 } };
        const uint64_t outside[1][3] = { { base, ram, TEST_PAGE } };
        const uint64_t odd[1][3] = { { base + 1, ram, 0 } };
        const uint64_t nothing[1][3] = { { base, 0, 0 } };
        const uint64_t kernel[1][3] = { { UINT64_MAX - ram + 1, ram, 0 } };
        assert_int_equal(uffd_open(0, &fresh_uffd), 0);
        struct bad bad[] = {
                { { .memfd = plain }, ERR_INVALID, "no memfd of an image" }, /* not sealed */
                { { .memfd = small }, ERR_INVALID, "no memfd of an image" }, /* too small */
                { { .memfd = null }, ERR_INVALID, "no memfd of an image" },
                { { .memfd = img.fd }, ERR_INVALID, "no memfd of an image" },
                { { .memfd = ro }, ERR_INVALID, "no memfd of an image" },
                { { .memfd = foreign }, ERR_INVALID, "no memfd of an image" }, /* a VMM's is read-only */
                { { .image_fd = wrong.fd }, ERR_INVALID, "memory of another image" },
                { { .image_fd = other_size.fd }, ERR_INVALID, "no memfd of an image" },
                { { .image_fd = null }, ERR_INVALID, "opening the memory image" },
                { { .sock = null }, ERR_INVALID, "stream socket" },
                { { .uffd = null }, ERR_INVALID, "no userfaultfd" },
                { { .ram_bytes = ram / 2, .region = overlap, .n_regions = 1 }, ERR_INVALID, "ram_bytes" },
                { { .region = overlap, .n_regions = 2 }, ERR_INVALID, "overlaps" },
                { { .region = twice, .n_regions = 2 }, ERR_INVALID, "guest memory that another region holds" },
                { { .region = outside, .n_regions = 1 }, ERR_INVALID, "outside of guest memory" },
                { { .region = odd, .n_regions = 1 }, ERR_INVALID, "aligned" },
                { { .region = nothing, .n_regions = 1 }, ERR_INVALID, "empty" },
                { { .region = kernel, .n_regions = 1 }, ERR_INVALID, "address range" },
                { { .region = kernel, .n_regions = 0 }, ERR_INVALID, "1 to" },
                { { .removed = beyond, .n_removed = 1 }, ERR_INVALID, "range 0 of removed" },
                { { .removed = far, .n_removed = 1 }, ERR_INVALID, "range 0 of removed" },
                { { .removed = none, .n_removed = 1 }, ERR_INVALID, "range 0 of removed" },
        };

        vmm_send(&v, "verify %d 2", SEED);
        call_ok(&old.h, "session.release", v.session);
        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                expect_error(try_adopt(&next.h, &k, &img, &bad[i].how), bad[i].code, bad[i].what);
        assert_int_equal(harness_status(&next.h, "totals", NULL, "sessions"), 0);
        assert_int_equal(harness_status(&next.h, "totals", NULL, "images"), 0);
        /* here it is open already */
        expect_error(try_adopt(&old.h, &k, &img, &(struct adopt_how){ 0 }), ERR_EXISTS, "open already");
        call_ok(&old.h, "session.resume", v.session);
        assert_string_equal(vmm_answer(&v), "ok");

        /* a second one of the same */
        call_ok(&old.h, "session.release", v.session);
        expect_ok(try_adopt(&next.h, &k, &img, &(struct adopt_how){ 0 }));
        expect_error(try_adopt(&next.h, &k, &img, &(struct adopt_how){ 0 }), ERR_EXISTS, "open already");
        harness_close(&old.h, v.session);
        assert_string_equal(vmm_cmd(&v, "verify %d 2", SEED), "ok");
        vmm_end(&next.h, &v);
        harness_close(&old.h, w.session);
        (void) close_fd(w.sock);
        (void) close_fd(w.memfd);
        for (unsigned i = 0; i < 5; i++)
                (void) close_fd((int[]){ plain, small, null, fresh_uffd, ro }[i]);
        image_clear(&wrong);
        image_clear(&other_size);
        kept_clear(&k);
        other_stop(&next);
        other_stop(&old);
}

/** What a session's state does not allow. */
static void test_states(void **state) {
        struct vmm v, w;
        struct kept k;
        cleanup_mp_buf struct mp_buf b = { 0 };

        other_start(&old, "64M");
        vmm_open(&old.h, &w, &img);
        kept_get(&old.h, &w, &k);
        assert_int_equal(k.uffd, -1);
        kept_clear(&k);
        expect_error(call_session(&old.h, "session.release", w.session), ERR_STATE, "no VMM yet");
        vmm_run(&old.h, &w, &img);
        vmm_start(&old.h, &v, &img);
        expect_error(call_session(&old.h, "session.resume", v.session), ERR_STATE, "not released");
        mp_buf_init(&b);
        mp_map(&b, 2);
        mp_kv_str(&b, "session", v.session);
        mp_key(&b, "ranges");
        mp_array(&b, 0);
        expect_error(harness_call(&old.h, "session.mark_removed", &b, NULL, 0), ERR_STATE, "is served");
        call_ok(&old.h, "session.release", v.session);
        expect_error(call_session(&old.h, "session.release", v.session), ERR_STATE, "released already");
        assert_int_equal(harness_status(&old.h, "sessions", v.session, "released"), 1);
        assert_int_equal(harness_status(&old.h, "sessions", w.session, "released"), 0);
        expect_ok(harness_call(&old.h, "session.mark_removed", &b, NULL, 0));

        /* nobody new while it is released */
        struct vmm u = { 0 };
        struct image same = img;
        cleanup_mp_buf struct mp_buf o = { 0 };
        int pair[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        mp_buf_init(&o);
        mp_map(&o, 3);
        mp_kv_str(&o, "session", "00000000000000aa");
        mp_kv_u64(&o, "ram_bytes", PAGES * TEST_PAGE);
        mp_kv_u64(&o, "fds", 2);
        expect_error(harness_call(&old.h, "session.open", &o, (int[]){ same.fd, pair[0] }, 2), ERR_BUSY,
                     "handed to another pager");
        (void) close_fd(pair[0]);
        (void) close_fd(pair[1]);
        call_ok(&old.h, "session.resume", v.session);
        vmm_start(&old.h, &u, &img);
        assert_string_equal(vmm_cmd(&u, "verify %d 2", SEED), "ok");
        assert_string_equal(vmm_cmd(&v, "verify %d 2", SEED), "ok");

        /* a released one whose VMM goes */
        call_ok(&old.h, "session.release", v.session);
        vmm_end(&old.h, &v);
        assert_string_equal(vmm_cmd(&u, "verify %d 2", SEED), "ok");
        vmm_end(&old.h, &u);
        vmm_end(&old.h, &w);
        other_stop(&old);
}

/** A VMM in copy mode is not handed over, nor is anybody who shares its image. */
static void test_copy_mode(void **state) {
        struct vmm v, w, u;
        char json[128];
        uint8_t *map;
        int uffd;

        other_start(&old, "64M");
        vmm_start(&old.h, &w, &img);
        vmm_open(&old.h, &v, &img);
        vmm_open(&old.h, &u, &img);
        map = mmap(NULL, v.ram_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        assert_ptr_not_equal(map, MAP_FAILED);
        assert_int_equal(uffd_open(0, &uffd), 0);
        assert_int_equal(uffd_register(uffd, (uintptr_t) map, v.ram_bytes), 0);
        (void) snprintf(json, sizeof(json), "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":0,\"page_size\":4096}]",
                        (unsigned long long) (uintptr_t) map, (unsigned long long) v.ram_bytes);
        raw_send(v.sock, json, strlen(json), uffd);
        (void) harness_note(&old.h, "session.attached", v.session);
        expect_error(call_session(&old.h, "session.release", v.session), ERR_UNSUPPORTED, "copy mode");
        expect_error(call_session(&old.h, "session.handles", v.session), ERR_UNSUPPORTED, "copy mode");
        expect_error(call_session(&old.h, "session.release", w.session), ERR_UNSUPPORTED, "copy mode");
        harness_close(&old.h, v.session);
        call_ok(&old.h, "session.release", w.session);
        /* and none may come to an image whose memory may be another's, too */
        raw_send(u.sock, json, strlen(json), uffd);
        assert_non_null(strstr(harness_note(&old.h, "session.failed", u.session)->text, "cannot be copied from"));
        harness_close(&old.h, u.session);
        call_ok(&old.h, "session.resume", w.session);
        assert_string_equal(vmm_cmd(&w, "verify %d 2", SEED), "ok");
        vmm_end(&old.h, &w);
        (void) close_fd(uffd);
        assert_int_equal(munmap(map, v.ram_bytes), 0);
        for (unsigned i = 0; i < 4; i++)
                (void) close_fd((int[]){ v.sock, v.memfd, u.sock, u.memfd }[i]);
        other_stop(&old);
}

/* ---- at rest ---- */

static uint64_t wait_filling(struct harness *h) {
        uint64_t start = now_ns();
        double present;

        while ((present = harness_status(h, "totals", NULL, "ahead_pages")) < 100)
                assert_true(ms_since(start) < DEADLINE_MS);
        return (uint64_t) present;
}

/** A whole image is being decoded, and punched out for want of room, when its only session is released: both stop before
 *  that is answered. */
static void test_released_is_at_rest(void **state) {
        double present;
        struct vmm v;

        other_start(&old, "512M");
        vmm_start(&old.h, &v, &large);
        call_ok(&old.h, "image.prefetch", v.session);
        assert_true(wait_filling(&old.h) < large.n_stored);
        call_ok(&old.h, "session.release", v.session);
        present = harness_status(&old.h, "totals", NULL, "present_bytes");
        assert_true(present < (double) large.n_stored * TEST_PAGE);
        assert_non_null(strstr(harness_note(&old.h, "image.filled", NULL)->text, "another pager"));
        assert_int_equal(harness_status(&old.h, "totals", NULL, "present_bytes"), (long long) present);
        call_ok(&old.h, "session.resume", v.session);
        assert_string_equal(vmm_cmd(&v, "range %d 0 4000", SEED), "ok");
        vmm_end(&old.h, &v);
        other_stop(&old);
}

/* ---- taken back ---- */

static struct answer mark(struct harness *h, const char *session, const struct pages *p, size_t n) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 2);
        mp_kv_str(&b, "session", session);
        mp_key(&b, "ranges");
        mp_array(&b, n);
        for (size_t i = 0; i < n; i++) {
                mp_array(&b, 2);
                mp_u64(&b, p[i].first);
                mp_u64(&b, p[i].n);
        }
        return harness_call(h, "session.mark_removed", &b, NULL, 0);
}

/** The other pager has held it, has served it, and has died: it goes on here, with what was discarded meanwhile. */
static void test_held_served_and_taken_back(void **state) {
        uint64_t first = image_stored_page(&img, 300), second = image_stored_page(&img, 900);
        struct pages removed[64];
        struct adopt_how how = { .hold = true };
        struct vmm v;
        struct kept k;

        other_start(&old, "4M");
        other_start(&next, "4M");
        vmm_start(&old.h, &v, &img);
        kept_get(&old.h, &v, &k);
        assert_string_equal(vmm_cmd(&v, "advise %llu 3 %d", (unsigned long long) first, MADV_DONTNEED), "ok");
        call_ok(&old.h, "session.release", v.session);
        vmm_send(&v, "verify %d 2", SEED);
        how.n_removed = 0;
        expect_ok(try_adopt(&next.h, &k, &img, &how));
        assert_int_equal(harness_status(&next.h, "sessions", v.session, "released"), 1);
        expect_error(mark(&next.h, v.session, (struct pages[]){ { 1, 1 }, { PAGES, 1 } }, 2), ERR_INVALID, "range 1 of ranges");
        assert_int_equal(harness_status(&next.h, "sessions", v.session, "removed_pages"), 0);
        expect_ok(mark(&next.h, v.session, removed, removed_of(&old.h, v.session, removed, ARRAY_LEN(removed))));
        assert_int_equal(harness_status(&next.h, "sessions", v.session, "removed_pages"), 3);
        assert_int_equal(harness_status(&next.h, "sessions", v.session, "faults.missing"), 0);
        call_ok(&next.h, "session.resume", v.session);
        assert_string_equal(vmm_answer(&v), "ok");
        assert_string_equal(vmm_cmd(&v, "advise %llu 5 %d", (unsigned long long) second, MADV_DONTNEED), "ok");
        vmm_send(&v, "verify %d 2", SEED);
        other_kill(&next);
        expect_ok(mark(&old.h, v.session, removed, discarded(v.pid, &k, removed, ARRAY_LEN(removed))));
        call_ok(&old.h, "session.resume", v.session);
        assert_string_equal(vmm_answer(&v), "ok");
        assert_int_equal(harness_status(&old.h, "sessions", v.session, "removed_pages"), 8);
        assert_string_equal(vmm_cmd(&v, "verify %d 2", SEED), "ok");
        for (uint64_t t = now_ns(); harness_status(&old.h, "totals", NULL, "present_bytes") > (4 << 20);)
                assert_true(ms_since(t) < DEADLINE_MS);
        assert_int_equal(harness_status(&old.h, "sessions", v.session, "failed"), 0);
        vmm_end(&old.h, &v);
        kept_clear(&k);
        other_stop(&old);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_hand_over),
                cmocka_unit_test(test_another_user),
                cmocka_unit_test(test_both_serve),
                cmocka_unit_test(test_failed_adoptions),
                cmocka_unit_test(test_states),
                cmocka_unit_test(test_copy_mode),
                cmocka_unit_test(test_released_is_at_rest),
                cmocka_unit_test(test_held_served_and_taken_back),
        };

        return cmocka_run_group_tests(tests, setup, teardown);
}
