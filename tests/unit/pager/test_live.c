/* SPDX-License-Identifier: MIT */
/* Live forks: VMMs that are copied while they write at full speed, and whose clones must show one single moment. */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/io.h"
#include "common/pagemap.h"
#include "common/spawn.h"
#include "pager/limits.h"

#define PAGES 4096ull
#define TRIES 100u /* of something that happens at the wrong moment */

static struct harness h;

static int setup(void **state) {
        harness_start(&h, NULL);
        return 0;
}

static int teardown(void **state) {
        harness_stop(&h);
        return 0;
}

/* ---- sources ---- */

static void empty_image(struct image *img, uint64_t n_pages) {
        struct snap_writer_params params = { .ram_bytes = n_pages * TEST_PAGE, .codec = SNAP_CODEC_LZ4 };
        cleanup_snap_writer struct snap_writer *w = NULL;

        *img = (struct image){ .n_pages = n_pages };
        img->fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        assert_true(img->fd >= 0);
        assert_int_equal(snap_writer_new(img->fd, -1, &params, &w), 0);
        assert_int_equal(snap_writer_finish(w, &img->stats), 0);
}

/** A number out of the probe's layout file. */
static uint64_t layout_number(const struct vmm *v, const char *key) {
        char text[512] = "";
        const char *at;

        assert_true(pread(v->layout_fd, text, sizeof(text) - 1, 0) > 0);
        at = strstr(text, key);
        assert_non_null(at);
        return strtoull(at + strlen(key), NULL, 10);
}

static struct answer try_join(const struct vmm *v, const struct image *img, int uffd) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 5);
        mp_kv_str(&b, "session", v->session);
        mp_kv_u64(&b, "ram_bytes", v->ram_bytes);
        mp_kv_i64(&b, "vm_pid", v->pid);
        mp_key(&b, "regions");
        mp_array(&b, 1);
        mp_array(&b, 3);
        mp_u64(&b, layout_number(v, "\"host_addr\":"));
        mp_u64(&b, v->ram_bytes);
        mp_u64(&b, 0);
        mp_kv_u64(&b, "fds", 3);
        return harness_call(&h, "session.join", &b, (int[]){ img->fd, uffd, v->pidfd }, 3);
}

/** A VMM that booted, and joins. */
static void booted(struct vmm *v, struct image *empty) {
        cleanup_fd int uffd = -1;
        struct answer a;

        empty_image(empty, PAGES);
        vmm_spawn_fresh(v, PAGES * TEST_PAGE);
        id_new(v->session);
        assert_string_equal(vmm_cmd(v, "map"), "ok 4096");
        uffd = (int) syscall(SYS_pidfd_getfd, v->pidfd, (int) layout_number(v, "\"uffd\":"), 0);
        assert_true(uffd >= 0);
        a = try_join(v, empty, uffd);
        if (a.r < 0)
                fail_msg("session.join: %s", a.e.message);
        answer_clear(&a);
}

/* ---- a live fork ---- */

struct live {
        id_str id;
        struct vmm *source;
        struct image img; /* once it is published */
        uint64_t dirty_pages;
        bool base;
};

static struct answer call_live(const struct live *l, const char *method) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "live", l->id);
        return harness_call(&h, method, &b, NULL, 0);
}

/** The parameters and descriptors of live.prepare. */
static void live_named(struct live *l, struct vmm *source, struct mp_buf *b, int *mem, int *pagemap) {
        char path[64];

        *l = (struct live){ .source = source, .img.fd = -1 };
        id_new(l->id);
        (void) snprintf(path, sizeof(path), "/proc/%d/mem", (int) source->pid);
        *mem = open(path, O_RDONLY | O_CLOEXEC);
        (void) snprintf(path, sizeof(path), "/proc/%d/pagemap", (int) source->pid);
        *pagemap = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(*mem >= 0 && *pagemap >= 0);
        mp_buf_init(b);
        mp_map(b, 3);
        mp_kv_str(b, "live", l->id);
        mp_kv_str(b, "session", source->session);
        mp_kv_u64(b, "fds", 2);
}

static struct answer try_prepare(struct live *l, struct vmm *source) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_fd int mem = -1, pagemap = -1;

        live_named(l, source, &b, &mem, &pagemap);
        return harness_call(&h, "live.prepare", &b, (int[]){ mem, pagemap }, 2);
}

static char state_of(pid_t pid) {
        cleanup_free char *text = NULL;
        char path[64];
        const char *at;

        (void) snprintf(path, sizeof(path), "/proc/%d/stat", (int) pid);
        if (io_read_file(AT_FDCWD, path, 1024, &text, NULL) < 0)
                return 'X';
        at = strrchr(text, ')');
        return at && at[1] ? at[2] : '?';
}

/** The VMM stands still until vmm_go. */
static void vmm_stop(const struct vmm *v) {
        uint64_t start = now_ns();

        assert_int_equal(kill(v->pid, SIGSTOP), 0);
        while (state_of(v->pid) != 'T')
                assert_true(ms_since(start) < DEADLINE_MS);
}

static void vmm_go(const struct vmm *v) {
        assert_int_equal(kill(v->pid, SIGCONT), 0);
}

/** Up to the moment from which the source runs again. */
static void live_begin(struct live *l, struct vmm *source) {
        struct answer a = try_prepare(l, source);

        if (a.r < 0)
                fail_msg("live.prepare: %s", a.e.message);
        assert_int_equal(mp_get_bool(&a.doc.root, "base", &l->base), 0);
        answer_clear(&a);
        vmm_stop(source);
        a = call_live(l, "live.protect");
        vmm_go(source);
        if (a.r < 0)
                fail_msg("live.protect: %s", a.e.message);
        assert_int_equal(mp_get_u64(&a.doc.root, "dirty_pages", &l->dirty_pages), 0);
        answer_clear(&a);
}

/** Writes what is copied into a file, as forkd's worker does. @parent: -1, or its parent's image. */
static void live_write(struct live *l, int memfd, int parent) {
        struct snap_writer_params params = { .ram_bytes = l->source->ram_bytes, .codec = SNAP_CODEC_LZ4 };
        cleanup_snap_writer struct snap_writer *w = NULL;
        uint8_t page[TEST_PAGE];

        l->img = (struct image){ .n_pages = l->source->ram_bytes / TEST_PAGE };
        l->img.fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        assert_true(l->img.fd >= 0);
        assert_int_equal(snap_writer_new(l->img.fd, parent, &params, &w), 0);
        for (off_t at = 0; (at = lseek(memfd, at, SEEK_DATA)) >= 0; at += TEST_PAGE) {
                assert_int_equal(pread(memfd, page, sizeof(page), at), sizeof(page));
                assert_int_equal(snap_writer_put(w, (uint64_t) at / TEST_PAGE, page, 1), 0);
        }
        assert_int_equal(snap_writer_finish(w, &l->img.stats), 0);
}

static struct answer try_publish(const struct live *l, int fd) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 2);
        mp_kv_str(&b, "live", l->id);
        mp_kv_u64(&b, "fds", 1);
        return harness_call(&h, "live.publish", &b, &fd, 1);
}

static void live_publish(struct live *l, int parent) {
        struct answer a = call_live(l, "live.wait");

        if (a.r < 0)
                fail_msg("live.wait: %s", a.e.message);
        assert_int_equal(a.n_fds, 1);
        live_write(l, a.fds[0], parent);
        answer_clear(&a);
        a = try_publish(l, l->img.fd);
        if (a.r < 0)
                fail_msg("live.publish: %s", a.e.message);
        answer_clear(&a);
}

/** What process @v has of its own in guest memory, in pages. */
static int count_run(uint64_t addr, uint64_t n, void *arg) {
        *(uint64_t *) arg += n;
        return 0;
}

static uint64_t anonymous_pages(const struct vmm *v) {
        uint64_t base = layout_number(v, "\"host_addr\":"), n = 0;
        cleanup_fd int fd = -1;
        char path[64];

        (void) snprintf(path, sizeof(path), "/proc/%d/pagemap", (int) v->pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_int_equal(pagemap_anonymous(fd, PAGEMAP_ANY, base, base + v->ram_bytes, count_run, &n), 0);
        return n;
}

/** A clone on the nascent image; once it is published, on its file. */
static void clone_start(struct live *l, struct vmm *v, bool nascent) {
        struct image shape = { .fd = l->img.fd, .n_pages = l->source->ram_bytes / TEST_PAGE };

        vmm_open_with(&h, v, &shape, &(struct vmm_opening){ .live = nascent ? l->id : NULL });
        vmm_run(&h, v, &shape);
}

static void until_pass(struct vmm *v, unsigned pass) {
        uint64_t start = now_ns();
        unsigned now = 0;

        while (now < pass) {
                assert_true(ms_since(start) < DEADLINE_MS);
                assert_int_equal(sscanf(vmm_cmd(v, "pass"), "ok %u", &now), 1);
        }
}

static void assert_instant(struct vmm *v, uint64_t first, uint64_t n) {
        const char *answer;

        vmm_send(v, "instant %llu %llu", (unsigned long long) first, (unsigned long long) n);
        answer = vmm_answer(v);
        if (strncmp(answer, "ok ", 3) != 0)
                fail_msg("no single moment: %s", answer);
}

/* ---- tests ---- */

static void test_booted_at_full_speed(void **state) {
        struct vmm v, early, late;
        struct image empty;
        struct live l[3];

        booted(&v, &empty);
        assert_string_equal(vmm_cmd(&v, "churn 0 4096"), "ok");
        for (unsigned i = 0; i < ARRAY_LEN(l); i++) {
                until_pass(&v, 2 + 2 * i);
                live_begin(&l[i], &v);
                clone_start(&l[i], &early, true);
                assert_instant(&early, 0, PAGES);
                live_publish(&l[i], i > 0 ? l[i - 1].img.fd : -1);
                assert_instant(&early, 0, PAGES);
                clone_start(&l[i], &late, false);
                assert_instant(&late, 0, PAGES);
                vmm_end(&h, &early);
                vmm_end(&h, &late);
        }
        assert_true(harness_status(&h, "sessions", v.session, "faults.write") > 0);
        assert_true(strncmp(vmm_cmd(&v, "halt"), "ok ", 3) == 0);
        assert_instant(&v, 0, PAGES);
        vmm_end(&h, &v);
        for (unsigned i = 0; i < ARRAY_LEN(l); i++)
                image_clear(&l[i].img);
        image_clear(&empty);
}

/** What the source has not written is its own image's; what it has not written since the last fork is that one's. */
static void test_restored_and_again(void **state) {
        struct image img;
        struct vmm v, c, d;
        struct live l, m;

        image_make(&img, PAGES, 42, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        for (unsigned i = 0; i < 500; i++)
                assert_string_equal(vmm_cmd(&v, "write %u %u", i, 1 + i % 200), "ok");
        live_begin(&l, &v);
        assert_false(l.base);
        assert_int_equal(l.dirty_pages, 500);
        for (unsigned i = 400; i < 600; i++) /* the clone must not see it */
                assert_string_equal(vmm_cmd(&v, "write %u 250", i), "ok");
        clone_start(&l, &c, true);
        for (unsigned i = 0; i < 500; i++)
                assert_string_equal(vmm_cmd(&c, "filled %u %u", i, 1 + i % 200), "ok");
        assert_string_equal(vmm_cmd(&c, "verify 42 2"), "ok");
        live_publish(&l, img.fd);
        assert_string_equal(vmm_cmd(&c, "verify 42 2"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");

        /* Of the second fork it is what was written since, and the neighbours that were unprotected with it. */
        live_begin(&m, &v);
        assert_true(m.base);
        assert_in_range(m.dirty_pages, 200, 200 + PAGER_MAX_WRITE_SPAN);
        clone_start(&m, &d, true);
        for (unsigned i = 0; i < 600; i++)
                assert_string_equal(vmm_cmd(&d, "filled %u %u", i, i < 400 ? 1 + i % 200 : 250), "ok");
        assert_string_equal(vmm_cmd(&d, "verify 42 2"), "ok");
        live_publish(&m, l.img.fd);
        vmm_end(&h, &d);
        clone_start(&m, &d, false);
        for (unsigned i = 0; i < 600; i++)
                assert_string_equal(vmm_cmd(&d, "filled %u %u", i, i < 400 ? 1 + i % 200 : 250), "ok");
        assert_string_equal(vmm_cmd(&d, "verify 42 2"), "ok");
        vmm_end(&h, &d);
        vmm_end(&h, &c);
        vmm_end(&h, &v);
        image_clear(&m.img);
        image_clear(&l.img);
        image_clear(&img);
}

/** What was never touched is still found, also between what was written: zero pages, and stored ones. */
static void test_untouched_between(void **state) {
        uint64_t zero[3], stored[3];
        struct image img;
        struct live l;
        struct vmm v;

        image_make(&img, PAGES, 6, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        for (unsigned i = 0; i < ARRAY_LEN(zero); i++) {
                uint64_t behind = 0;

                /* Between two stored pages, so that no other zero page brings them along. */
                for (zero[i] = 1000 + 500 * i;; zero[i] = behind) {
                        zero[i] = image_zero_page(&img, image_stored_page(&img, zero[i]));
                        behind = image_stored_page(&img, zero[i]);
                        if (behind - zero[i] <= 8)
                                break;
                }
                stored[i] = image_stored_page(&img, behind + 32);
                assert_string_equal(vmm_cmd(&v, "write %llu 9", (unsigned long long) zero[i] - 1), "ok");
                assert_string_equal(vmm_cmd(&v, "write %llu 9", (unsigned long long) behind), "ok");
                assert_string_equal(vmm_cmd(&v, "write %llu 9", (unsigned long long) stored[i] + 2), "ok");
        }
        live_begin(&l, &v);
        for (unsigned i = 0; i < ARRAY_LEN(zero); i++) {
                assert_string_equal(vmm_cmd(&v, "range 6 %llu 1", (unsigned long long) zero[i]), "ok");
                assert_string_equal(vmm_cmd(&v, "range 6 %llu 1", (unsigned long long) stored[i]), "ok");
                assert_string_equal(vmm_cmd(&v, "write %llu 8", (unsigned long long) zero[i]), "ok");
        }
        live_publish(&l, img.fd);
        assert_string_equal(vmm_cmd(&v, "verify 6 2"), "ok");
        vmm_end(&h, &v);
        image_clear(&l.img);
        image_clear(&img);
}

/** Discarded, written, forked, forked again: neither discarded nor written since, and found in the first fork. */
static void test_written_after_discard(void **state) {
        struct image img;
        struct vmm v, c;
        struct live l, m;

        image_make(&img, PAGES, 5, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "advise 100 60 4"), "ok"); /* MADV_DONTNEED */
        for (unsigned i = 110; i < 120; i++)
                assert_string_equal(vmm_cmd(&v, "write %u 77", i), "ok");
        live_begin(&l, &v);
        live_publish(&l, img.fd);
        live_begin(&m, &v);
        assert_int_equal(m.dirty_pages, 0);
        clone_start(&m, &c, true);
        for (unsigned i = 110; i < 120; i++)
                assert_string_equal(vmm_cmd(&c, "filled %u 77", i), "ok");
        assert_string_equal(vmm_cmd(&c, "zeros 100 10"), "ok");
        assert_string_equal(vmm_cmd(&c, "zeros 120 40"), "ok");
        assert_string_equal(vmm_cmd(&c, "verify 5 2"), "ok");
        vmm_end(&h, &c);
        vmm_end(&h, &v);
        image_clear(&l.img);
        image_clear(&img);
}

/** The source maps the new image in place of what it has unchanged: each page is there once. */
static void test_held_once(void **state) {
        struct image img;
        struct vmm v, c, d;
        struct live l, m;

        image_make(&img, PAGES, 11, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        for (unsigned i = 1000; i < 2000; i++)
                assert_string_equal(vmm_cmd(&v, "write %u 5", i), "ok");
        assert_int_equal(anonymous_pages(&v), 1000);
        live_begin(&l, &v);
        assert_string_equal(vmm_cmd(&v, "write 1500 6"), "ok");
        clone_start(&l, &c, true);
        live_publish(&l, img.fd);
        (void) harness_note(&h, "session.rebased", v.session);
        assert_in_range(anonymous_pages(&v), 1, 1 + 2 * 16);
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        /* It is written again, discarded, and forked again, like any other memory. */
        for (unsigned i = 1100; i < 1200; i++)
                assert_string_equal(vmm_cmd(&v, "write %u 8", i), "ok");
        assert_string_equal(vmm_cmd(&v, "advise 1300 30 4"), "ok"); /* MADV_DONTNEED */
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        live_begin(&m, &v);
        assert_true(m.base);
        assert_in_range(m.dirty_pages, 101, 101 + 2 * 16);
        clone_start(&m, &d, true);
        assert_string_equal(vmm_cmd(&d, "zeros 1300 30"), "ok"); /* in the file that is the worker's business */
        vmm_end(&h, &d);
        live_publish(&m, l.img.fd);
        (void) harness_note(&h, "session.rebased", v.session);
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        assert_string_equal(vmm_cmd(&c, "filled 1150 5"), "ok");
        assert_string_equal(vmm_cmd(&c, "filled 1500 5"), "ok");
        vmm_end(&h, &c);
        clone_start(&m, &c, false);
        assert_string_equal(vmm_cmd(&c, "filled 1150 8"), "ok");
        assert_string_equal(vmm_cmd(&c, "filled 1500 6"), "ok");
        assert_string_equal(vmm_cmd(&c, "filled 1999 5"), "ok");
        vmm_end(&h, &c);
        vmm_end(&h, &v);
        image_clear(&m.img);
        image_clear(&l.img);
        image_clear(&img);
}

/** The same at full speed: the source's own memory stays right, and every clone is one moment. */
static void test_rebased_at_full_speed(void **state) {
        struct image img;
        struct live l[6];
        struct vmm v, c;

        image_make(&img, PAGES, 12, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "churn 0 4096"), "ok");
        for (unsigned i = 0; i < ARRAY_LEN(l); i++) {
                until_pass(&v, 2 + 2 * i);
                live_begin(&l[i], &v);
                live_publish(&l[i], -1);
                clone_start(&l[i], &c, false);
                assert_instant(&c, 0, PAGES);
                vmm_end(&h, &c);
        }
        assert_true(strncmp(vmm_cmd(&v, "halt"), "ok ", 3) == 0);
        assert_instant(&v, 0, PAGES);
        /* Now all of it can be the image's. */
        live_begin(&l[0], &v);
        live_publish(&l[0], -1);
        (void) harness_note(&h, "session.rebased", v.session);
        for (;;) {
                live_begin(&l[1], &v);
                live_publish(&l[1], -1);
                image_clear(&l[1].img);
                if (l[1].dirty_pages == 0)
                        break;
        }
        assert_instant(&v, 0, PAGES);
        vmm_end(&h, &v);
        image_clear(&img);
}

/** The clone itself is forked, and its clone: each sees what those before it have written. */
static void test_chain(void **state) {
        struct image img;
        struct vmm v[5];
        struct live l[4];
        int parent;

        image_make(&img, PAGES, 7, SNAP_CODEC_LZ4);
        vmm_start(&h, &v[0], &img);
        parent = img.fd;
        for (unsigned i = 0; i < ARRAY_LEN(l); i++) {
                for (unsigned k = 0; k < 100; k++)
                        assert_string_equal(vmm_cmd(&v[i], "write %u %u", i * 1000 + k, i + 1), "ok");
                live_begin(&l[i], &v[i]);
                clone_start(&l[i], &v[i + 1], true);
                for (unsigned k = 0; k <= i; k++)
                        for (unsigned p = 0; p < 100; p++)
                                assert_string_equal(vmm_cmd(&v[i + 1], "filled %u %u", k * 1000 + p, k + 1), "ok");
                live_publish(&l[i], parent);
                parent = l[i].img.fd;
        }
        for (unsigned i = 0; i < ARRAY_LEN(v); i++)
                assert_string_equal(vmm_cmd(&v[i], "verify 7 2"), "ok");
        for (unsigned i = 0; i < ARRAY_LEN(v); i++)
                vmm_end(&h, &v[i]);
        for (unsigned i = 0; i < ARRAY_LEN(l); i++)
                image_clear(&l[i].img);
        image_clear(&img);
}

static void test_source_dies(void **state) {
        struct vmm v, c;
        struct image empty;
        struct answer a;
        struct live l;

        booted(&v, &empty);
        assert_string_equal(vmm_cmd(&v, "churn 0 4096"), "ok");
        until_pass(&v, 2);
        a = try_prepare(&l, &v);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        vmm_stop(&v);
        a = call_live(&l, "live.protect");
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        vmm_kill(&v);
        (void) harness_note(&h, "session.gone", v.session);
        /* Either all had been copied by then, or it is said that it was not. */
        a = call_live(&l, "live.wait");
        if (a.r == 0) {
                clone_start(&l, &c, true);
                assert_instant(&c, 0, PAGES);
                vmm_end(&h, &c);
        } else {
                assert_string_equal(a.e.code, ERR_STATE);
        }
        answer_clear(&a);
        a = call_live(&l, "live.cancel");
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        a = call_live(&l, "live.cancel");
        assert_string_equal(a.e.code, ERR_NOT_FOUND);
        answer_clear(&a);
        image_clear(&empty);
}

static void unprotect(const struct vmm *v) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct answer a;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", v->session);
        a = harness_call(&h, "session.unprotect", &b, NULL, 0);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
}

static void test_cancel(void **state) {
        struct vmm v, c;
        struct image empty;
        struct answer a;
        struct live l, m;

        booted(&v, &empty);
        for (unsigned i = 0; i < 300; i++)
                assert_string_equal(vmm_cmd(&v, "write %u 9", i), "ok");
        live_begin(&l, &v);
        assert_int_equal(l.dirty_pages, 300);
        a = try_prepare(&m, &v);
        assert_string_equal(a.e.code, ERR_BUSY);
        answer_clear(&a);
        a = call_live(&l, "live.cancel");
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        /* As if it had never been: nothing is protected, and nothing taken for unchanged. */
        assert_string_equal(vmm_cmd(&v, "write 5 10"), "ok");
        live_begin(&m, &v);
        assert_false(m.base);
        assert_int_equal(m.dirty_pages, 300);
        clone_start(&m, &c, true);
        assert_string_equal(vmm_cmd(&c, "filled 5 10"), "ok");
        assert_string_equal(vmm_cmd(&c, "filled 299 9"), "ok");
        live_publish(&m, -1);
        vmm_end(&h, &c);

        /* session.unprotect forgets a published one, too. */
        unprotect(&v);
        live_begin(&l, &v);
        assert_false(l.base);
        assert_int_equal(l.dirty_pages, 300);
        vmm_end(&h, &v);
        image_clear(&m.img);
        image_clear(&empty);
}

/** What is discarded while it is copied is in no copy. */
static void test_discarded_meanwhile(void **state) {
        struct image img;
        struct answer a;
        struct live l;
        struct vmm v;

        image_make(&img, PAGES, 3, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "advise 100 50 4"), "ok"); /* MADV_DONTNEED, before: reads zero in the clone, too */
        assert_string_equal(vmm_cmd(&v, "churn 2000 2000"), "ok");
        until_pass(&v, 2);
        for (unsigned tries = 0;; tries++) {
                struct vmm c;

                live_begin(&l, &v);
                assert_string_equal(vmm_cmd(&v, "advise 3000 1 4"), "ok");
                a = call_live(&l, "live.wait");
                if (a.r < 0)
                        break;
                /* It was complete before. */
                clone_start(&l, &c, true);
                assert_string_equal(vmm_cmd(&c, "zeros 100 50"), "ok");
                vmm_end(&h, &c);
                answer_clear(&a);
                a = call_live(&l, "live.cancel");
                assert_int_equal(a.r, 0);
                answer_clear(&a);
                if (tries == 20)
                        skip(); /* a host on which the copy always comes first */
        }
        assert_string_equal(a.e.code, ERR_STATE);
        answer_clear(&a);
        a = call_live(&l, "live.cancel");
        answer_clear(&a);
        vmm_end(&h, &v);
        image_clear(&img);
}

/** What lies behind memory that was discarded is unprotected with the rest: else what is written there would be taken for
 *  unchanged. */
static void test_unprotected_behind_discard(void **state) {
        struct image img;
        struct vmm v, c;
        struct live l, m;

        image_make(&img, PAGES, 6, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        for (unsigned i = 2000; i < 2040; i += 2) /* too few in a row to be mapped from the new image */
                assert_string_equal(vmm_cmd(&v, "write %u 7", i), "ok");
        live_begin(&l, &v);
        live_publish(&l, img.fd);
        assert_string_equal(vmm_cmd(&v, "advise 100 1 4"), "ok"); /* MADV_DONTNEED */
        unprotect(&v);
        assert_string_equal(vmm_cmd(&v, "write 2010 9"), "ok");
        live_begin(&m, &v);
        assert_false(m.base);
        assert_int_equal(m.dirty_pages, 20);
        clone_start(&m, &c, true);
        assert_string_equal(vmm_cmd(&c, "filled 2008 7"), "ok");
        assert_string_equal(vmm_cmd(&c, "filled 2010 9"), "ok");
        assert_string_equal(vmm_cmd(&c, "zeros 100 1"), "ok");
        vmm_end(&h, &c);
        vmm_end(&h, &v);
        image_clear(&l.img);
        image_clear(&img);
}

/** Between live.prepare and live.protect the VMM runs: what was written may be discarded, and what was discarded be written. */
static void test_discarded_before(void **state) {
        struct image img;
        struct answer a;
        struct vmm v, c;
        struct live l;

        image_make(&img, PAGES, 7, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        for (unsigned i = 100; i < 200; i++)
                assert_string_equal(vmm_cmd(&v, "write %u 7", i), "ok");
        a = try_prepare(&l, &v);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        assert_string_equal(vmm_cmd(&v, "advise 120 40 4"), "ok"); /* MADV_DONTNEED */
        assert_string_equal(vmm_cmd(&v, "write 130 8"), "ok");
        vmm_stop(&v);
        a = call_live(&l, "live.protect");
        vmm_go(&v);
        if (a.r < 0)
                fail_msg("live.protect: %s", a.e.message);
        assert_int_equal(mp_get_u64(&a.doc.root, "dirty_pages", &l.dirty_pages), 0);
        answer_clear(&a);
        assert_int_equal(l.dirty_pages, 100 - 40 + 1);
        assert_string_equal(vmm_cmd(&v, "write 125 9"), "ok");
        assert_string_equal(vmm_cmd(&v, "write 130 9"), "ok");
        clone_start(&l, &c, true);
        assert_string_equal(vmm_cmd(&c, "filled 119 7"), "ok");
        assert_string_equal(vmm_cmd(&c, "zeros 120 10"), "ok");
        assert_string_equal(vmm_cmd(&c, "filled 130 8"), "ok");
        assert_string_equal(vmm_cmd(&c, "zeros 131 29"), "ok");
        assert_string_equal(vmm_cmd(&c, "filled 160 7"), "ok");
        vmm_end(&h, &c);
        vmm_end(&h, &v);
        image_clear(&img);
}

/** Discarded just as the last page is copied: a copy of what came in its place counts for nothing. */
static void test_discarded_at_the_end(void **state) {
        struct image img;
        struct vmm v;

        image_make(&img, 64, 9, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        for (unsigned tries = 0; tries < TRIES; tries++) {
                struct answer a;
                struct live l;
                struct vmm c;

                for (unsigned i = 8; i < 40; i++)
                        assert_string_equal(vmm_cmd(&v, "write %u 7", i), "ok");
                a = try_prepare(&l, &v);
                assert_int_equal(a.r, 0);
                answer_clear(&a);
                vmm_stop(&v);
                vmm_send(&v, "advise 8 32 4"); /* the first that it does */
                a = call_live(&l, "live.protect");
                vmm_go(&v);
                assert_int_equal(a.r, 0);
                answer_clear(&a);
                assert_string_equal(vmm_answer(&v), "ok");
                a = call_live(&l, "live.wait");
                if (a.r == 0) {
                        answer_clear(&a);
                        clone_start(&l, &c, true);
                        for (unsigned i = 8; i < 40; i++)
                                assert_string_equal(vmm_cmd(&c, "filled %u 7", i), "ok");
                        vmm_end(&h, &c);
                }
                answer_clear(&a);
                a = call_live(&l, "live.cancel");
                answer_clear(&a);
        }
        vmm_end(&h, &v);
        image_clear(&img);
}

static void begin_live(const struct live *l, struct call *c, const char *method) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "live", l->id);
        harness_begin(&h, c, method, &b, NULL, 0);
}

static void begin_prepare(struct live *l, struct vmm *source, struct call *c) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_fd int mem = -1, pagemap = -1;

        live_named(l, source, &b, &mem, &pagemap);
        harness_begin(&h, c, "live.prepare", &b, (int[]){ mem, pagemap }, 2);
}

/** A fork that is cancelled while the worker is asked to catch up, and the next one, which asks it, too. */
static void test_cancelled_at_once(void **state) {
        struct vmm v;
        struct image img;

        image_make(&img, PAGES, 8, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "churn 0 4096"), "ok");
        for (unsigned tries = 0; tries < 50; tries++) {
                struct call c[6];
                struct answer a;
                struct live l[2];

                begin_prepare(&l[0], &v, &c[0]);
                begin_live(&l[0], &c[1], "live.protect");
                begin_live(&l[0], &c[2], "live.cancel");
                begin_prepare(&l[1], &v, &c[3]);
                begin_live(&l[1], &c[4], "live.protect");
                begin_live(&l[1], &c[5], "live.wait");
                for (unsigned i = 0; i < 6; i++) {
                        a = harness_wait(&h, &c[i]);
                        if (a.r < 0 && i != 1) /* that may have been too late */
                                fail_msg("%u: %s", i, a.e.message);
                        answer_clear(&a);
                }
                a = call_live(&l[1], "live.cancel");
                assert_int_equal(a.r, 0);
                answer_clear(&a);
        }
        vmm_end(&h, &v);
        image_clear(&img);
}

/** The session ends as it is about to be protected: the worker is not asked behind that. */
static void test_closed_at_once(void **state) {
        struct image img;

        image_make(&img, PAGES, 8, SNAP_CODEC_LZ4);
        for (unsigned tries = 0; tries < 20; tries++) {
                cleanup_mp_buf struct mp_buf b = { 0 };
                struct call closed, protected;
                struct answer a;
                struct live l;
                struct vmm v;

                vmm_start(&h, &v, &img);
                a = try_prepare(&l, &v);
                assert_int_equal(a.r, 0);
                answer_clear(&a);
                mp_buf_init(&b);
                mp_map(&b, 1);
                mp_kv_str(&b, "session", v.session);
                harness_begin(&h, &closed, "session.close", &b, NULL, 0);
                begin_live(&l, &protected, "live.protect");
                a = harness_wait(&h, &protected);
                assert_string_equal(a.e.code, ERR_STATE);
                answer_clear(&a);
                a = harness_wait(&h, &closed);
                assert_int_equal(a.r, 0);
                answer_clear(&a);
                a = call_live(&l, "live.cancel");
                assert_int_equal(a.r, 0);
                answer_clear(&a);
                vmm_kill(&v);
        }
        image_clear(&img);
}

static void test_refused(void **state) {
        cleanup_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        struct image empty, other;
        struct answer a;
        struct live l;
        struct vmm v, w;

        booted(&v, &empty);
        a = try_join(&v, &empty, null); /* it has a session, and that is no userfaultfd */
        assert_true(a.r < 0);
        answer_clear(&a);
        w = v;
        id_new(w.session);
        a = try_join(&w, &empty, null);
        assert_string_equal(a.e.code, ERR_INVALID);
        answer_clear(&a);

        assert_string_equal(vmm_cmd(&v, "write 7 7"), "ok");
        a = try_prepare(&l, &v);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        a = try_publish(&l, empty.fd); /* not copied yet */
        assert_true(a.r < 0);
        answer_clear(&a);
        a = call_live(&l, "live.cancel");
        assert_int_equal(a.r, 0);
        answer_clear(&a);

        live_begin(&l, &v);
        a = call_live(&l, "live.protect");
        assert_true(a.r < 0);
        answer_clear(&a);
        a = call_live(&l, "live.wait");
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        image_make(&other, PAGES, 1, SNAP_CODEC_LZ4);
        a = try_publish(&l, other.fd); /* of other pages */
        assert_string_equal(a.e.code, ERR_CORRUPT);
        answer_clear(&a);
        a = try_publish(&l, null);
        assert_true(a.r < 0);
        answer_clear(&a);
        live_publish(&l, -1);
        vmm_end(&h, &v);
        image_clear(&l.img);
        image_clear(&other);
        image_clear(&empty);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_booted_at_full_speed),
                cmocka_unit_test(test_restored_and_again),
                cmocka_unit_test(test_written_after_discard),
                cmocka_unit_test(test_untouched_between),
                cmocka_unit_test(test_held_once),
                cmocka_unit_test(test_rebased_at_full_speed),
                cmocka_unit_test(test_chain),
                cmocka_unit_test(test_source_dies),
                cmocka_unit_test(test_cancel),
                cmocka_unit_test(test_discarded_meanwhile),
                cmocka_unit_test(test_unprotected_behind_discard),
                cmocka_unit_test(test_discarded_before),
                cmocka_unit_test(test_discarded_at_the_end),
                cmocka_unit_test(test_cancelled_at_once),
                cmocka_unit_test(test_closed_at_once),
                cmocka_unit_test(test_refused),
        };

        return cmocka_run_group_tests(tests, setup, teardown);
}
