/* SPDX-License-Identifier: MIT */
/* VMMs that do one thing without end: others are served all the same, and what is told of them stays right. */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <sys/mman.h>

#include "common/io.h"
#include "pager/image.h"
#include "snapstore/image.h"

#define PAGES 4096ull

static struct harness h;
static struct image img;

static int setup(void **state) {
        struct pager_config cfg = { .workers = 1, .idle_seconds = 300 };

        harness_start(&h, &cfg);
        image_make(&img, PAGES, 31, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        harness_stop(&h);
        return 0;
}

/* ---- discards without end ---- */

#define STORM_THREADS 48u
#define LARGE_PAGES (8ull << 30 >> 12)

struct storm {
        struct raw_vmm vmm;
        _Atomic bool over;
        _Atomic uint64_t rounds;
};

static void *storm_main(void *arg) {
        struct storm *s = arg;

        while (!s->over) {
                if (madvise(s->vmm.map, s->vmm.len, MADV_DONTNEED) < 0)
                        break;
                s->rounds++;
        }
        return NULL;
}

/** An image of zeros only. */
static void make_zeros(struct image *zeros, uint64_t n_pages) {
        struct snap_writer_params params = { .ram_bytes = n_pages * TEST_PAGE, .codec = SNAP_CODEC_LZ4 };
        cleanup_snap_writer struct snap_writer *w = NULL;

        *zeros = (struct image){ .fd = memfd_create("zeros", MFD_CLOEXEC), .n_pages = n_pages };
        assert_true(zeros->fd >= 0);
        assert_int_equal(snap_writer_new(zeros->fd, -1, &params, &w), 0);
        assert_int_equal(snap_writer_finish(w, &zeros->stats), 0);
}

/** Many threads discard all of a large guest's memory, again and again: there is always an event to be read. The other
 *  guest of the only worker is served all the same. */
static void test_events_without_end(void **state) {
        pthread_t threads[STORM_THREADS];
        struct storm s = { 0 };
        struct image zeros;
        struct vmm v, w;

        make_zeros(&zeros, LARGE_PAGES);
        vmm_start(&h, &w, &img);
        vmm_open(&h, &v, &zeros);
        raw_map(&s.vmm, v.memfd, v.ram_bytes);
        raw_attach(&s.vmm, v.sock);
        for (unsigned i = 0; i < STORM_THREADS; i++)
                assert_int_equal(pthread_create(&threads[i], NULL, storm_main, &s), 0);
        for (uint64_t start = now_ns(); s.rounds < STORM_THREADS;)
                assert_true(ms_since(start) < DEADLINE_MS);
        assert_string_equal(vmm_cmd(&w, "verify 31 2"), "ok");
        s.over = true;
        for (unsigned i = 0; i < STORM_THREADS; i++)
                assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(harness_status(&h, "sessions", v.session, "removed_pages"), LARGE_PAGES);
        harness_close(&h, v.session);
        raw_unmap(&s.vmm);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
        vmm_end(&h, &w);
        image_clear(&zeros);
}

/* ---- more waiting threads than are kept in mind ---- */

#define WAITERS 4096u

struct waiter {
        pthread_t thread;
        volatile uint8_t *at;
        _Atomic unsigned *done;
};

static void *wait_main(void *arg) {
        struct waiter *w = arg;

        (void) *w->at;
        (*w->done)++;
        return NULL;
}

static void *discard_one_main(void *arg) {
        struct raw_vmm *r = arg;

        assert_int_equal(madvise(r->map, TEST_PAGE, MADV_DONTNEED), 0);
        return NULL;
}

/** How many faults of the userfaultfd nobody has read. */
static unsigned unread(int uffd) {
        char path[64], line[128];
        unsigned n = 0;
        FILE *f;

        (void) snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", uffd);
        f = fopen(path, "re");
        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                (void) sscanf(line, "pending: %u", &n);
        (void) fclose(f);
        return n;
}

/** Thousands of threads wait, and one changes the layout: its event comes behind all their faults. */
static void test_event_behind_many_faults(void **state) {
        struct waiter *w = calloc(WAITERS, sizeof(*w));
        _Atomic unsigned done = 0;
        pthread_t discarder;
        pthread_attr_t attr;
        struct raw_vmm r;
        struct vmm v;
        uint64_t start = now_ns();

        assert_non_null(w);
        vmm_open(&h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        assert_int_equal(pthread_attr_init(&attr), 0);
        assert_int_equal(pthread_attr_setstacksize(&attr, 64 << 10), 0);
        for (unsigned i = 0; i < WAITERS; i++) {
                w[i] = (struct waiter){ .at = r.map + (i % (PAGES - 1) + 1) * TEST_PAGE, .done = &done };
                assert_int_equal(pthread_create(&w[i].thread, &attr, wait_main, &w[i]), 0);
        }
        while (unread(r.uffd) < WAITERS)
                assert_true(ms_since(start) < DEADLINE_MS);
        assert_int_equal(pthread_create(&discarder, &attr, discard_one_main, &r), 0);
        while (!uffd_changing(r.uffd))
                assert_true(ms_since(start) < DEADLINE_MS);
        raw_attach(&r, v.sock);
        start = now_ns();
        while (done < WAITERS)
                if (ms_since(start) > DEADLINE_MS)
                        fail_msg("%u of %u threads have their page", done, WAITERS);
        for (unsigned i = 0; i < WAITERS; i++)
                assert_int_equal(pthread_join(w[i].thread, NULL), 0);
        assert_int_equal(pthread_join(discarder, NULL), 0);
        harness_close(&h, v.session);
        raw_unmap(&r);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
        (void) pthread_attr_destroy(&attr);
        free(w);
}

/* ---- session.removed while more is discarded ---- */

/** Every other page, from the end to the start: each is a range of its own in front of all that were there. */
static void *discard_main(void *arg) {
        struct storm *s = arg;

        for (uint64_t page = PAGES - 1; page > 1; page -= 2) {
                if (madvise(s->vmm.map + page * TEST_PAGE, TEST_PAGE, MADV_DONTNEED) < 0)
                        break;
                s->rounds++;
        }
        s->over = true;
        return NULL;
}

/** Is the last page, which was discarded first, in the answers from page 0 on? */
static bool last_page_is_told(const char *session) {
        uint64_t next = 0;
        bool found = false;

        do {
                cleanup_mp_buf struct mp_buf b = { 0 };
                const msgpack_object *ranges;

                mp_buf_init(&b);
                mp_map(&b, 2);
                mp_kv_str(&b, "session", session);
                mp_kv_u64(&b, "first_page", next);
                struct answer a = harness_call(&h, "session.removed", &b, NULL, 0);
                assert_int_equal(a.r, 0);
                ranges = mp_get_array(&a.doc.root, "ranges");
                assert_non_null(ranges);
                for (uint32_t i = 0; i < ranges->via.array.size; i++) {
                        const msgpack_object *r = ranges->via.array.ptr[i].via.array.ptr;

                        assert_true(r[1].via.u64 > 0);
                        found |= r[0].via.u64 + r[1].via.u64 == PAGES;
                }
                if (mp_get_u64(&a.doc.root, "next", &next) < 0)
                        next = 0;
                answer_clear(&a);
        } while (next > 0);
        return found;
}

static void test_removed_is_whole(void **state) {
        struct storm s = { 0 };
        pthread_t thread;
        struct vmm v;
        unsigned asked = 0;

        vmm_open(&h, &v, &img);
        raw_map(&s.vmm, v.memfd, v.ram_bytes);
        raw_attach(&s.vmm, v.sock);
        assert_int_equal(pthread_create(&thread, NULL, discard_main, &s), 0);
        for (uint64_t start = now_ns(); s.rounds == 0;)
                assert_true(ms_since(start) < DEADLINE_MS);
        for (; !s.over; asked++)
                if (!last_page_is_told(v.session))
                        fail_msg("answer %u does not have a page that was discarded before the question", asked);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_true(last_page_is_told(v.session));
        harness_close(&h, v.session);
        raw_unmap(&s.vmm);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
}

/* ---- pages that are not ours ---- */

/** A stored page of @chunk that is not in the memory though others of the chunk are; PAGES: none. */
static uint64_t absent_page(const struct pager_image *image, uint64_t chunk) {
        uint64_t absent = PAGES;
        bool any = false;

        for (uint64_t p = chunk; p < chunk + PAGER_CHUNK_PAGES; p++) {
                any |= pager_image_present(image, p);
                if (!pager_image_present(image, p) && !content_is_zero(img.seed, p))
                        absent = p;
        }
        return any ? absent : PAGES;
}

/** A foreign page is punched out together with ours before anybody has looked: others may have read it. */
static void test_reclaim_hides_nothing(void **state) {
        cleanup_pager_image struct pager_image *image = NULL;
        struct pager_scratch scratch = { 0 };
        struct pager_fill_result res;
        uint64_t chunk, page = PAGES;

        assert_int_equal(pager_scratch_init(&scratch), 0);
        assert_int_equal(pager_image_open(img.fd, NULL, &image), 0);
        for (chunk = 0; page == PAGES; chunk += PAGER_CHUNK_PAGES) {
                assert_true(chunk < PAGES);
                for (uint64_t p = chunk; p < chunk + PAGER_CHUNK_PAGES && page == PAGES; p++) {
                        assert_int_equal(pager_image_fill(image, &scratch, p, PAGER_DEMAND, &res), 0);
                        page = absent_page(image, chunk);
                }
        }
        chunk = page - page % PAGER_CHUNK_PAGES;
        assert_int_equal(pager_image_audit(image), 0);
        harness_trespass(pager_image_readonly_fd(image), page);
        assert_true(pager_image_evict(image, chunk, PAGER_CHUNK_PAGES) > 0);
        assert_int_equal(pager_image_audit(image), -EUCLEAN);
        assert_true(pager_image_is_bad(image));
        pager_scratch_clear(&scratch);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_events_without_end, setup, teardown),
                cmocka_unit_test_setup_teardown(test_event_behind_many_faults, setup, teardown),
                cmocka_unit_test_setup_teardown(test_removed_is_whole, setup, teardown),
                cmocka_unit_test_setup_teardown(test_reclaim_hides_nothing, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
