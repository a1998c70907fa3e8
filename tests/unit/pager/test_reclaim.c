/* SPDX-License-Identifier: MIT */
/* The memory budget with real guests: it is kept, nobody ever sees a wrong byte because of it, idle images pay first,
 * and pressure is given way to. */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include "common/io.h"
#include "pager/image.h"
#include "pager/reclaim.h"
#include "tests/unit/setup/skip.h"

#define MIB (1ull << 20)
#define BUDGET (8 * MIB)
#define WORKERS 2
/* What may be there at any moment: beyond half of the margin who inserts also punches, if it can have what it finds. */
#define CEILING (BUDGET + BUDGET / 8)

static struct harness h;
static int pressure[2]; /* ours, the pager's (a duplicate of what it took) */

static int setup(void **state) {
        struct pager_config cfg = { .workers = WORKERS, .idle_seconds = 300, .memory_budget = BUDGET };
        int sv[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
        pressure[0] = sv[0];
        pressure[1] = fcntl(sv[1], F_DUPFD_CLOEXEC, 0);
        assert_true(pressure[1] >= 0);
        cfg.pressure_fd = sv[1];
        harness_start(&h, &cfg);
        return 0;
}

static int teardown(void **state) {
        harness_stop(&h);
        (void) close_fd(pressure[0]);
        (void) close_fd(pressure[1]);
        return 0;
}

static double total(const char *key) {
        return harness_status(&h, "totals", NULL, key);
}

/** Polls until the kernel has no more than @bytes in use for images. */
static void wait_present_at_most(double bytes) {
        uint64_t start = now_ns();

        while (total("present_bytes") > bytes)
                if (ms_since(start) > DEADLINE_MS)
                        fail_msg("%.0f bytes are still there, more than %.0f", total("present_bytes"), bytes);
}

/** Every page that was put into a memfd is there, or was punched out: by the kernel's count and by ours. */
static void assert_exact(void) {
        uint64_t start = now_ns();
        double there, counted;

        do { /* the thread may be at it */
                there = total("present_bytes") / TEST_PAGE;
                counted = total("demand_pages") + total("ahead_pages") - total("reclaimed_pages");
        } while (there != counted && ms_since(start) < DEADLINE_MS);
        assert_true(there == counted);
}

/** Waits for @v's answer, and sees meanwhile that the ceiling holds. Returns the most that there was. */
static double watch(struct vmm *v, double ceiling) {
        struct pollfd p = { .fd = fileno(v->out), .events = POLLIN };
        uint64_t start = now_ns();
        double most = 0;

        while (poll(&p, 1, 5) == 0) {
                double there = total("present_bytes");

                most = MAX_OF(most, there);
                if (harness_has_note(&h, "session.failed", NULL))
                        fail_msg("%s", harness_note(&h, "session.failed", NULL)->text);
                if (there > ceiling)
                        fail_msg("%.0f bytes are there, more than %.0f", there, ceiling);
                if (ms_since(start) > DEADLINE_MS)
                        fail_msg("the VMM does not come to an end");
        }
        return most;
}

static void test_kept(void **state) {
        struct image img;
        struct vmm v;

        image_make(&img, 24 * MIB / TEST_PAGE, 11, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        assert_int_equal(total("budget_bytes"), BUDGET);
        for (unsigned round = 0; round < 2; round++) {
                vmm_send(&v, "verify 11 3");
                assert_true(watch(&v, CEILING) > BUDGET / 2.0);
                assert_string_equal(vmm_answer(&v), "ok");
        }
        wait_present_at_most(BUDGET);
        assert_exact();
        assert_true(total("reclaimed_pages") > (double) img.n_stored);
        assert_true(total("refaults") > 0);
        assert_true(harness_status(&h, "images", NULL, "refaults") == total("refaults"));
        assert_true(total("decodes") > img.stats.frames);
        assert_int_equal(total("sessions_failed"), 0);
        /* and what the guest wrote itself is not ours to take */
        assert_string_equal(vmm_cmd(&v, "write 7 165"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        vmm_end(&h, &v);
        image_clear(&img);
}

/** Clones of two images, balloons, prefetches and pressure at once, in a quarter of what they want. */
static void test_never_a_wrong_byte(void **state) {
        enum { CLONES = 4, ROUNDS = 2 };
        struct image img[2];
        struct vmm v[CLONES];

        for (unsigned i = 0; i < 2; i++)
                image_make(&img[i], 16 * MIB / TEST_PAGE, 20 + i, i ? SNAP_CODEC_ZSTD : SNAP_CODEC_LZ4);
        for (unsigned i = 0; i < CLONES; i++)
                vmm_start(&h, &v[i], &img[i % 2]);
        for (unsigned round = 0; round < ROUNDS; round++) {
                cleanup_mp_buf struct mp_buf b = { 0 };
                char byte;

                for (unsigned i = 0; i < CLONES; i++)
                        if (i + round < CLONES)
                                vmm_send(&v[i], "verify %u 2", 20 + i % 2);
                        else
                                vmm_send(&v[i], "storm %u 100", 20 + i % 2);
                mp_buf_init(&b);
                mp_map(&b, 1);
                mp_kv_str(&b, "session", v[round % 2].session);
                struct answer a = harness_call(&h, "image.prefetch", &b, NULL, 0);
                assert_int_equal(a.r, 0);
                answer_clear(&a);
                assert_int_equal(send(pressure[0], "!", 1, MSG_OOB), 1);
                for (unsigned i = 0; i < CLONES; i++) {
                        (void) watch(&v[i], CEILING);
                        assert_string_equal(vmm_answer(&v[i]), "ok");
                }
                assert_int_equal(recv(pressure[1], &byte, 1, MSG_OOB), 1);
                (void) harness_note(&h, "image.filled", NULL);
        }
        assert_true(total("pressure") >= 1);
        assert_true(total("refaults") > 0);
        assert_int_equal(total("sessions_failed"), 0);
        assert_int_equal(total("oldest_fault_ms"), 0);
        assert_exact();
        for (unsigned i = 0; i < CLONES; i++)
                vmm_end(&h, &v[i]);
        for (unsigned i = 0; i < 2; i++)
                image_clear(&img[i]);
}

static void test_idle_first(void **state) {
        struct image a, b;
        struct vmm v;
        double had;

        image_make(&a, 8 * MIB / TEST_PAGE, 31, SNAP_CODEC_LZ4);
        image_make(&b, 8 * MIB / TEST_PAGE, 32, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &a);
        assert_string_equal(vmm_cmd(&v, "verify 31 2"), "ok");
        vmm_end(&h, &v);
        had = harness_status(&h, "images", NULL, "present_bytes");
        assert_int_equal(had, a.n_stored * TEST_PAGE);
        vmm_start(&h, &v, &b); /* now the first in the list */
        assert_string_equal(vmm_cmd(&v, "verify 32 2"), "ok");
        wait_present_at_most(BUDGET);
        assert_int_equal(harness_status(&h, "images", NULL, "sessions"), 1);
        assert_int_equal(harness_status(&h, "images", NULL, "reclaimed_pages"), 0);
        assert_int_equal(harness_status(&h, "images", NULL, "present_bytes"), b.n_stored * TEST_PAGE);
        assert_true(total("reclaimed_pages") * TEST_PAGE >= had + (double) b.n_stored * TEST_PAGE - BUDGET);
        vmm_end(&h, &v);
        /* it comes back, and what was there no more is decoded again */
        vmm_start(&h, &v, &a);
        assert_string_equal(vmm_cmd(&v, "verify 31 2"), "ok");
        assert_true(total("refaults") > 0);
        vmm_end(&h, &v);
        assert_exact();
        image_clear(&a);
        image_clear(&b);
}

static void prefetch(const struct vmm *v) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", v->session);
        struct answer a = harness_call(&h, "image.prefetch", &b, NULL, 0);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
}

/** Decoding ahead takes what is free and what nobody uses, and no more. */
static void test_ahead_stops(void **state) {
        struct image idle, img;
        const struct note *n;
        struct vmm v;

        image_make(&idle, 8 * MIB / TEST_PAGE, 41, SNAP_CODEC_LZ4);
        image_make(&img, 32 * MIB / TEST_PAGE, 42, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &idle);
        assert_string_equal(vmm_cmd(&v, "verify 41 2"), "ok");
        vmm_end(&h, &v);
        vmm_start(&h, &v, &img);
        prefetch(&v);
        n = harness_note(&h, "image.filled", NULL);
        assert_non_null(strstr(n->text, "budget"));
        assert_true(total("present_bytes") <= BUDGET);
        /* the idle image is gone, and nothing of what was fetched */
        assert_true(harness_status(&h, "images", NULL, "present_bytes") > BUDGET - 2.0 * SNAP_FRAME_BYTES);
        assert_int_equal(harness_status(&h, "images", NULL, "reclaimed_pages"), 0);
        assert_int_equal(total("reclaimed_pages"), idle.n_stored);
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_end(&h, &v);
        image_clear(&idle);
        image_clear(&img);
}

static unsigned long rss_shmem_kib(void) {
        cleanup_free char *text = NULL;
        const char *line;

        assert_int_equal(io_read_file(AT_FDCWD, "/proc/self/status", 65536, &text, NULL), 0);
        line = strstr(text, "RssShmem:");
        assert_non_null(line);
        return strtoul(line + 9, NULL, 10);
}

static void test_pressure(void **state) {
        uint64_t start = now_ns();
        struct image img;
        struct vmm v;
        char byte;

        image_make(&img, 8 * MIB / TEST_PAGE, 51, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 51 2"), "ok");
        assert_int_equal(total("reclaimed_pages"), 0);
        assert_int_equal(total("pressure"), 0);
        assert_true(rss_shmem_kib() * 1024 >= img.n_stored * TEST_PAGE);
        assert_int_equal(send(pressure[0], "!", 1, MSG_OOB), 1);
        while (total("pressure") < 1)
                assert_true(ms_since(start) < DEADLINE_MS);
        assert_int_equal(recv(pressure[1], &byte, 1, MSG_OOB), 1);
        assert_true(total("budget_bytes") < (double) img.n_stored * TEST_PAGE);
        assert_true(total("budget_bytes") >= BUDGET / 2);
        wait_present_at_most((double) img.n_stored * TEST_PAGE * 7 / 8);
        /* and our own mapping has let go of the rest */
        while (rss_shmem_kib() > 1024)
                assert_true(ms_since(start) < DEADLINE_MS);
        assert_string_equal(vmm_cmd(&v, "verify 51 2"), "ok");
        vmm_end(&h, &v);
        image_clear(&img);
}

/** Whoever else can write to the memfd takes pages away: they are decoded again, and the count is right again. */
static void test_punched_by_another(void **state) {
        cleanup_fd int fd = -1;
        struct image img;
        struct vmm first, v;
        char path[64];

        image_make(&img, 4 * MIB / TEST_PAGE, 61, SNAP_CODEC_LZ4);
        vmm_start(&h, &first, &img);
        assert_string_equal(vmm_cmd(&first, "verify 61 2"), "ok");
        vmm_open(&h, &v, &img);
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", v.memfd);
        fd = open(path, O_RDWR | O_CLOEXEC); /* we are root, no VMM is */
        if (fd < 0)
                skip_because("root may not open the memfd for writing here");
        vmm_spawn(&v);
        assert_int_equal(strncmp(vmm_cmd(&v, "map"), "ok", 2), 0);
        (void) harness_note(&h, "session.attached", v.session);
        assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t) (2 * MIB)), 0);
        assert_string_equal(vmm_cmd(&v, "verify 61 3"), "ok");
        assert_string_equal(vmm_cmd(&first, "verify 61 3"), "ok");
        assert_int_equal(total("present_bytes"), img.n_stored * TEST_PAGE);
        assert_exact();
        vmm_end(&h, &v);
        vmm_end(&h, &first);
        image_clear(&img);
}

/** What one guest uses all the time stays, while others go through much more memory than the budget holds. */
static void test_hot_stays(void **state) {
        double chunks, faults[3];
        struct image cold, hot;
        struct vmm sweeper, v;

        image_make(&cold, 24 * MIB / TEST_PAGE, 71, SNAP_CODEC_LZ4);
        image_make(&hot, 4 * MIB / TEST_PAGE, 72, SNAP_CODEC_LZ4);
        vmm_start(&h, &sweeper, &cold);
        vmm_start(&h, &v, &hot); /* the first in the list */
        chunks = (double) hot.n_pages / PAGER_CHUNK_PAGES;
        for (unsigned round = 0; round < ARRAY_LEN(faults); round++) {
                double before = harness_status(&h, "images", NULL, "refaults");
                struct pollfd p = { .fd = fileno(sweeper.out), .events = POLLIN };

                vmm_send(&sweeper, "range 71 0 %llu", (unsigned long long) cold.n_pages);
                do
                        assert_string_equal(vmm_cmd(&v, "verify 72 1"), "ok");
                while (poll(&p, 1, 0) == 0);
                assert_string_equal(vmm_answer(&sweeper), "ok");
                faults[round] = (harness_status(&h, "images", NULL, "refaults") - before) / chunks;
        }
        print_message("refaults of a hot set in three sweeps, each through twice the budget: %.2f, %.2f, %.2f of it\n", faults[0],
                      faults[1], faults[2]);
        /* first in, first out, it would be gone two to three times in each */
        assert_true(faults[1] + faults[2] < 3);
        vmm_end(&h, &sweeper);
        vmm_end(&h, &v);
        image_clear(&cold);
        image_clear(&hot);
}

/* ---- without guests: threads that fill and punch at random ---- */

#define FILLERS 3
#define FILLS 6000

struct filler {
        pthread_t thread;
        struct pager_image *img;
        const struct image *content;
        unsigned index;
        uint64_t bad;
};

/** Fills pages, and reads those that are there as copy mode does. */
static void *fill_and_read(void *arg) {
        struct filler *f = arg;
        struct pager_scratch s = { 0 };
        uint8_t want[TEST_PAGE];

        f->bad += pager_scratch_init(&s) < 0;
        for (uint64_t i = 0; i < FILLS; i++) {
                uint64_t page = mix64(i * FILLERS + f->index) % f->content->n_pages;
                struct pager_fill_result res;
                int r = pager_image_fill(f->img, &s, page, i % 4 ? PAGER_DEMAND : PAGER_AHEAD, &res);

                if (r < 0) {
                        f->bad++;
                        continue;
                }
                f->bad += (res.kind == PAGER_PAGE_ZERO) != content_is_zero(f->content->seed, page);
                if (res.kind == PAGER_PAGE_ZERO || pager_image_read(f->img, &s, page, &res) == -EAGAIN)
                        continue;
                content_fill(f->content->seed, page, want);
                f->bad += page < res.first || page >= res.first + res.n;
                f->bad += memcmp(s.frame + (page - res.first) * TEST_PAGE, want, TEST_PAGE) != 0;
        }
        pager_scratch_clear(&s);
        return NULL;
}

static uint64_t counted(struct pager_reclaim *r) {
        struct pager_reclaim_stats st;

        pager_reclaim_get_stats(r, &st);
        return st.resident_bytes;
}

static void test_counts(void **state) {
        const struct pager_reclaim_config cfg = { .budget = 1024 * MIB, .root = "/nonexistent" };
        struct filler f[FILLERS];
        struct pager_image_stats st;
        struct pager_reclaim *r;
        struct pager_image *img;
        struct image content;
        uint64_t gone = 0;

        image_make(&content, 2 * SNAP_REGION_PAGES + 77, 91, SNAP_CODEC_LZ4);
        assert_int_equal(pager_reclaim_new(&cfg, &r), 0);
        assert_int_equal(pager_image_open(content.fd, r, &img), 0);
        for (unsigned i = 0; i < FILLERS; i++) {
                f[i] = (struct filler){ .img = img, .content = &content, .index = i };
                assert_int_equal(pthread_create(&f[i].thread, NULL, fill_and_read, &f[i]), 0);
        }
        for (uint64_t i = 0; i < FILLS; i++) {
                uint64_t chunk = mix64(i) % (content.n_pages / PAGER_CHUNK_PAGES + 1);

                if (i % 500 == 0)
                        pager_image_trim(img);
                gone += pager_image_evict(img, chunk * PAGER_CHUNK_PAGES, PAGER_CHUNK_PAGES);
        }
        for (unsigned i = 0; i < FILLERS; i++) {
                assert_int_equal(pthread_join(f[i].thread, NULL), 0);
                assert_int_equal(f[i].bad, 0);
        }
        pager_image_get_stats(img, &st);
        assert_int_equal(st.present_bytes, st.resident_pages * TEST_PAGE);
        assert_int_equal(st.resident_pages + st.reclaimed_pages, st.pages[PAGER_DEMAND] + st.pages[PAGER_AHEAD]);
        assert_int_equal(st.reclaimed_pages, gone);
        assert_int_equal(counted(r), st.present_bytes);
        assert_true(gone > 0 && st.refaults > 0 && st.resident_pages > 0);
        /* a whole region at once, as idle images lose theirs */
        for (uint64_t page = 0; page < content.n_pages; page += SNAP_REGION_PAGES)
                gone += pager_image_evict(img, page, SNAP_REGION_PAGES);
        pager_image_get_stats(img, &st);
        assert_int_equal(st.present_bytes, 0);
        assert_int_equal(st.resident_pages, 0);
        assert_int_equal(st.reclaimed_pages, gone);
        assert_int_equal(counted(r), 0);

        /* what goes with its image is given back to the budget */
        f[0].bad = 0;
        (void) fill_and_read(&f[0]);
        assert_int_equal(f[0].bad, 0);
        assert_true(counted(r) > 0);
        pager_image_unref(img);
        assert_int_equal(counted(r), 0);
        pager_reclaim_free(r);
        image_clear(&content);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
        const struct CMUnitTest tests[] = {
                TEST(test_kept),     TEST(test_never_a_wrong_byte), TEST(test_idle_first), TEST(test_ahead_stops),
                TEST(test_pressure), TEST(test_punched_by_another), TEST(test_hot_stays),  cmocka_unit_test(test_counts),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
