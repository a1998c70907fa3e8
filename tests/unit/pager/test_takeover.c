/* SPDX-License-Identifier: MIT */
/* A pager dies, by SIGKILL and below busy guests, and the next one takes its sessions: nobody sees a wrong byte, nobody
 * waits for ever, and whoever tampers with the image's memory in between is found. */
#include "tests/unit/pager/takeover.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"

#define PAGES 4096ull
#define SEED 31
#define GUESTS 4u
#define KILLS 12u

static struct image img;
static struct other pager;

static int setup(void **state) {
        image_make(&img, PAGES, SEED, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        return 0;
}

/** The pager is killed, and the next one has all sessions. */
static void replace(struct vmm *v, struct kept *k, unsigned n, const char *budget) {
        other_kill(&pager);
        other_start(&pager, budget);
        for (unsigned i = 0; i < n; i++)
                adopt_after_death(&pager.h, &v[i], &k[i], &img);
}

struct guest {
        struct vmm v;
        struct kept k;
        unsigned rounds;
};

static bool has_answer(struct vmm *v) {
        struct pollfd p = { .fd = fileno(v->out), .events = POLLIN };

        return poll(&p, 1, 0) > 0;
}

static void give_work(struct guest *g) {
        if (g->rounds++ % 2)
                vmm_send(&g->v, "storm %d %u", SEED, 60 + g->rounds % 40);
        else
                vmm_send(&g->v, "verify %d 3", SEED);
}

/** Until the present pager has answered @n faults: who is done has seen no wrong byte, and begins anew. */
static void keep_busy(struct guest *g, unsigned n_guests, unsigned n) {
        for (uint64_t t = now_ns(); harness_status(&pager.h, "totals", NULL, "wait.count") < n;) {
                if (ms_since(t) > DEADLINE_MS)
                        fail_msg("no %u faults within %d ms", n, DEADLINE_MS);
                for (unsigned i = 0; i < n_guests; i++)
                        if (has_answer(&g[i].v)) {
                                assert_string_equal(vmm_answer(&g[i].v), "ok");
                                give_work(&g[i]);
                        }
        }
}

/** Guests read all of their memory, some discard parts of it, and the budget makes the pager punch out what they have just
 *  read: so at each of its deaths something is half done. */
static void test_killed_below_busy_guests(void **state) {
        struct guest g[GUESTS] = { 0 };

        other_start(&pager, "4M");
        for (unsigned i = 0; i < GUESTS; i++) {
                vmm_start(&pager.h, &g[i].v, &img);
                kept_get(&pager.h, &g[i].v, &g[i].k);
                g[i].rounds = i;
                give_work(&g[i]);
        }
        srand(SEED);
        for (unsigned kill = 0; kill < KILLS; kill++) {
                keep_busy(g, GUESTS, (unsigned) rand() % 300);
                other_kill(&pager);
                other_start(&pager, "4M");
                for (unsigned i = 0; i < GUESTS; i++)
                        adopt_after_death(&pager.h, &g[i].v, &g[i].k, &img);
        }
        for (unsigned i = 0; i < GUESTS; i++) {
                assert_string_equal(vmm_answer(&g[i].v), "ok");
                assert_string_equal(vmm_cmd(&g[i].v, "verify %d 2", SEED), "ok");
        }
        /* Neither the audit nor the survey blames anybody, and reclaim has come back to its budget. */
        for (uint64_t t = now_ns(); harness_status(&pager.h, "totals", NULL, "present_bytes") > (4 << 20);)
                assert_true(ms_since(t) < DEADLINE_MS);
        for (unsigned i = 0; i < GUESTS; i++) {
                assert_int_equal(harness_status(&pager.h, "sessions", g[i].v.session, "failed"), 0);
                assert_int_equal(harness_status(&pager.h, "sessions", g[i].v.session, "attached"), 1);
                assert_int_equal(harness_status(&pager.h, "sessions", g[i].v.session, "vm_pid"), g[i].v.pid);
                vmm_end(&pager.h, &g[i].v);
                kept_clear(&g[i].k);
        }
        assert_int_equal(harness_status(&pager.h, "totals", NULL, "sessions"), 0);
        other_stop(&pager);
}

/** Faults that the dead pager has read are raised again, those that it has not are there. */
static void test_faults_read_and_unread(void **state) {
        uint64_t page = image_stored_page(&img, 0), other = image_stored_page(&img, 2000);
        struct vmm v;
        struct kept k;

        other_start(&pager, "64M");
        vmm_start(&pager.h, &v, &img);
        kept_get(&pager.h, &v, &k);
        other_freeze(&pager);
        assert_string_equal(vmm_cmd(&v, "touch %llu", (unsigned long long) page), "ok");
        for (struct pollfd p = { .fd = k.uffd, .events = POLLIN }; poll(&p, 1, DEADLINE_MS) <= 0;)
                fail_msg("no fault");
        struct uffd_msg m; /* as the pager would, if it died after this */
        assert_int_equal(uffd_read(k.uffd, &m, 1), 1);
        assert_string_equal(vmm_cmd(&v, "touch %llu", (unsigned long long) other), "ok");
        replace(&v, &k, 1, "64M");
        for (uint64_t t = now_ns(); strcmp(vmm_cmd(&v, "touched"), "ok 2") != 0;)
                assert_true(ms_since(t) < DEADLINE_MS);
        assert_string_equal(vmm_cmd(&v, "verify %d 2", SEED), "ok");
        vmm_end(&pager.h, &v);
        kept_clear(&k);
        other_stop(&pager);
}

/** What was discarded reads zero: when the dead pager had heard of it, and when it had not. */
static void test_discards(void **state) {
        uint64_t known = image_stored_page(&img, 100), unread = image_stored_page(&img, 3000);
        struct vmm v;
        struct kept k;

        other_start(&pager, "64M");
        vmm_start(&pager.h, &v, &img);
        kept_get(&pager.h, &v, &k);
        assert_string_equal(vmm_cmd(&v, "advise %llu 7 %d", (unsigned long long) known, MADV_DONTNEED), "ok");
        other_freeze(&pager);
        vmm_send(&v, "advise %llu 9 %d", (unsigned long long) unread, MADV_DONTNEED);
        for (uint64_t t = now_ns(); !uffd_changing(k.uffd);)
                assert_true(ms_since(t) < DEADLINE_MS);
        replace(&v, &k, 1, "64M");
        assert_string_equal(vmm_answer(&v), "ok");
        assert_string_equal(vmm_cmd(&v, "verify %d 2", SEED), "ok");
        assert_int_equal(harness_status(&pager.h, "sessions", v.session, "removed_pages"), 16);
        vmm_end(&pager.h, &v);
        kept_clear(&k);
        other_stop(&pager);
}

static void *discard_main(void *arg) {
        uint8_t *at = arg;

        assert_int_equal(madvise(at, 4ull * TEST_PAGE, MADV_DONTNEED), 0);
        return NULL;
}

/** A discard that leaves the mapping as it is (REMOVE), which nobody had read when the pager died. */
static void test_remove_unread(void **state) {
        uint64_t page = image_stored_page(&img, 512);
        uint8_t zero[TEST_PAGE] = { 0 };
        pthread_t thread;
        struct raw_vmm r;
        struct vmm v;
        struct kept k;

        other_start(&pager, "64M");
        vmm_open(&pager.h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        raw_attach(&r, v.sock);
        (void) harness_note(&pager.h, "session.attached", v.session);
        kept_get(&pager.h, &v, &k);
        other_freeze(&pager);
        assert_int_equal(pthread_create(&thread, NULL, discard_main, r.map + page * TEST_PAGE), 0);
        for (uint64_t t = now_ns(); !uffd_changing(k.uffd);)
                assert_true(ms_since(t) < DEADLINE_MS);
        v.pid = getpid();
        replace(&v, &k, 1, "64M");
        assert_int_equal(pthread_join(thread, NULL), 0);
        for (unsigned i = 0; i < 4; i++)
                assert_memory_equal(r.map + (page + i) * TEST_PAGE, zero, TEST_PAGE);
        harness_close(&pager.h, v.session);
        kept_clear(&k);
        raw_unmap(&r);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
        other_stop(&pager);
}

/* ---- strangers ---- */

/** A page of the wanted kind that is in nobody's memory yet. */
static int readonly(const struct kept *k) {
        char path[64];
        int fd;

        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", k->memfd);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        return fd;
}

static void trespass(const struct kept *k, uint64_t page) {
        int fd = readonly(k);

        harness_trespass(fd, page);
        (void) close_fd(fd);
}

/** @before: while the pager that is about to die is stopped, so that its audit does not see it. */
static void check_trespasser(bool before) {
        uint64_t page = image_stored_page(&img, 3500);
        struct vmm v;
        struct kept k;

        other_start(&pager, "64M");
        vmm_start(&pager.h, &v, &img);
        kept_get(&pager.h, &v, &k);
        assert_string_equal(vmm_cmd(&v, "range %d 0 64", SEED), "ok");
        other_freeze(&pager);
        if (before)
                trespass(&k, page);
        replace(&v, &k, 1, "64M");
        if (!before)
                trespass(&k, page);
        assert_non_null(strstr(harness_note(&pager.h, "session.failed", v.session)->text, "did not put there"));
        vmm_end(&pager.h, &v);
        kept_clear(&k);
        other_stop(&pager);
}

static void test_trespasser_before(void **state) {
        check_trespasser(true);
}

static void test_trespasser_after(void **state) {
        check_trespasser(false);
}

/** Where the image has zeros a stranger's zeros are right; and what the dead pager has put there is known after a while. */
static void test_nobody_blamed(void **state) {
        uint64_t zero = image_zero_page(&img, 3500);
        struct vmm v;
        struct kept k;

        other_start(&pager, "64M");
        vmm_start(&pager.h, &v, &img);
        kept_get(&pager.h, &v, &k);
        assert_string_equal(vmm_cmd(&v, "range %d 0 2000", SEED), "ok");
        other_freeze(&pager);
        trespass(&k, zero);
        replace(&v, &k, 1, "64M");
        replace(&v, &k, 1, "4M"); /* less than is there */
        for (uint64_t t = now_ns(); harness_status(&pager.h, "totals", NULL, "present_bytes") > (4 << 20);)
                assert_true(ms_since(t) < DEADLINE_MS);
        assert_string_equal(vmm_cmd(&v, "verify %d 2", SEED), "ok");
        assert_int_equal(harness_status(&pager.h, "sessions", v.session, "failed"), 0);
        assert_int_equal(harness_status(&pager.h, "images", NULL, "bad"), 0);
        vmm_end(&pager.h, &v);
        kept_clear(&k);
        other_stop(&pager);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_killed_below_busy_guests),
                cmocka_unit_test(test_faults_read_and_unread),
                cmocka_unit_test(test_discards),
                cmocka_unit_test(test_remove_unread),
                cmocka_unit_test(test_trespasser_before),
                cmocka_unit_test(test_trespasser_after),
                cmocka_unit_test(test_nobody_blamed),
        };

        return cmocka_run_group_tests(tests, setup, teardown);
}
