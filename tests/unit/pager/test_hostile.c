/* SPDX-License-Identifier: MIT */
/* VMMs and images that are broken or mean it badly: each harms itself only. */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "common/io.h"

#define PAGES 1024ull
#define EXT "\"page_size\":4096,\"forkd\":{\"mode\":\"memfd\",\"version\":1}"

static struct harness h;
static struct image img;

static int setup(void **state) {
        struct pager_config cfg = { .workers = 1, .idle_seconds = 300, .handshake_seconds = 1 };

        harness_start(&h, &cfg);
        image_make(&img, PAGES, 7, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        harness_stop(&h);
        return 0;
}

/** Everything still works for everybody else. */
static void assert_service(void) {
        struct vmm v;

        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 7 2"), "ok");
        vmm_end(&h, &v);
}

/** A handshake that must be refused with @why in the answer and in session.failed. */
static void refused(const char *json, size_t len, int fd, const char *why) {
        struct vmm v;

        vmm_open(&h, &v, &img);
        raw_send(v.sock, json, len, fd);
        const char *line = raw_answer(v.sock);
        if (strncmp(line, "error: ", 7) != 0 || !strstr(line, why))
                fail_msg("the answer is \"%s\", without \"%s\"", line, why);
        const struct note *n = harness_note(&h, "session.failed", v.session);
        assert_non_null(strstr(n->text, why));
        assert_string_equal(raw_answer(v.sock), ""); /* hung up */
        assert_int_equal(harness_status(&h, "sessions", v.session, "failed"), 1);
        harness_close(&h, v.session);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
}

static void refused_str(const char *json, int fd, const char *why) {
        refused(json, strlen(json), fd, why);
}

static void test_bad_handshakes(void **state) {
        struct raw_vmm r;
        char json[512];
        cleanup_fd int memfd = memfd_create("test", MFD_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC), unready = -1;

        assert_int_equal(ftruncate(memfd, (off_t) (PAGES * TEST_PAGE)), 0);
        raw_map(&r, memfd, PAGES * TEST_PAGE);
        (void) snprintf(json, sizeof(json), "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":0," EXT "}]",
                        (unsigned long long) (uintptr_t) r.map, PAGES * TEST_PAGE);
        refused_str(json, -1, "no userfaultfd");
        refused_str(json, null, "no userfaultfd that is ready");
        refused_str(json, memfd, "no userfaultfd that is ready");
        unready = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        refused_str(json, unready, "no userfaultfd that is ready");
        refused_str("{", r.uffd, "JSON array");
        refused_str("nonsense", r.uffd, "JSON array");
        refused_str("[]", r.uffd, "0 regions");
        refused_str("[\xff]", r.uffd, "JSON");
        (void) strcat(json, "x");
        refused_str(json, r.uffd, "behind");
        (void) snprintf(json, sizeof(json), "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":4096," EXT "}]",
                        (unsigned long long) (uintptr_t) r.map, PAGES * TEST_PAGE);
        refused_str(json, r.uffd, "outside");
        (void) snprintf(json, sizeof(json), "[{\"base_host_virt_addr\":%llu,\"size\":4096,\"offset\":1," EXT "}]",
                        (unsigned long long) (uintptr_t) r.map);
        refused_str(json, r.uffd, "aligned");

        static const struct {
                const char *regions, *why; /* base, size, offset */
        } bad[] = {
                { "1048576,8192,0 1052672,4096,8192", "overlap" },              /* addresses */
                { "1048576,8192,0 2097152,4096,4096", "another region holds" }, /* guest memory */
                { "1048576,0,0", "empty" },
                { "1048576,4095,0", "aligned" },
                { "1048577,4096,0", "aligned" },
                { "1048576,9223372036854771712,0", "no address range" },
                { "1048576,4096,9223372036854771712", "outside" },
                { "9223372036854771712,4096,0", "no address range" },
                { "144115188075851776,8192,0", "no address range" },
        };
        for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
                unsigned long long base, size, offset;
                const char *at = bad[i].regions;
                size_t len = 0;
                int used;

                for (; sscanf(at, "%llu,%llu,%llu%n", &base, &size, &offset, &used) == 3; at += used)
                        len += (size_t) snprintf(json + len, sizeof(json) - len,
                                                 "%c{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu," EXT "}",
                                                 len ? ',' : '[', base, size, offset);
                (void) snprintf(json + len, sizeof(json) - len, "]");
                refused_str(json, r.uffd, bad[i].why);
        }
        raw_unmap(&r);
        assert_service();
}

static void test_endless_handshake(void **state) {
        size_t len = PAGER_MAX_HANDSHAKE + 4096;
        char *json = malloc(len);

        assert_non_null(json);
        memset(json, ' ', len);
        json[0] = '[';
        refused(json, len, -1, "too long");
        free(json);
        assert_service();
}

static void test_two_descriptors(void **state) {
        struct vmm v;
        int fds[2];

        vmm_open(&h, &v, &img);
        fds[0] = fds[1] = v.memfd;
        assert_int_equal(io_send_fds(v.sock, "[", 1, fds, 2), 1);
        assert_non_null(strstr(raw_answer(v.sock), "more than one descriptor"));
        (void) harness_note(&h, "session.failed", v.session);
        harness_close(&h, v.session);
        (void) close_fd(v.sock);

        /* one with each half */
        (void) close_fd(v.memfd);
        vmm_open(&h, &v, &img);
        assert_int_equal(io_send_fds(v.sock, "[", 1, &v.memfd, 1), 1);
        assert_int_equal(io_send_fds(v.sock, "{", 1, &v.memfd, 1), 1);
        assert_non_null(strstr(raw_answer(v.sock), "more than one descriptor"));
        (void) harness_note(&h, "session.failed", v.session);
        harness_close(&h, v.session);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
        assert_service();
}

/** Sends one byte with @n descriptors at once. */
static void send_many(int sock, int fd, unsigned n) {
        union {
                struct cmsghdr h;
                char space[CMSG_SPACE(sizeof(int) * 253)];
        } control = { .h = { .cmsg_len = CMSG_LEN(sizeof(int) * n), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
        struct msghdr msg = { .msg_iov = &(struct iovec){ .iov_base = (char[]){ '[' }, .iov_len = 1 },
                              .msg_iovlen = 1,
                              .msg_control = &control,
                              .msg_controllen = CMSG_SPACE(sizeof(int) * n) };

        for (unsigned i = 0; i < n; i++)
                memcpy(CMSG_DATA(&control.h) + i * sizeof(int), &fd, sizeof(int));
        assert_int_equal(sendmsg(sock, &msg, MSG_NOSIGNAL), 1);
}

/** As many as the kernel lets through at once, and a thousand one by one: none of them stays. */
static void test_a_thousand_descriptors(void **state) {
        struct vmm v;
        int fds;

        assert_service();
        fds = count_fds();
        vmm_open(&h, &v, &img);
        send_many(v.sock, v.memfd, 253);
        assert_non_null(strstr(raw_answer(v.sock), "more than one descriptor"));
        (void) harness_note(&h, "session.failed", v.session);
        harness_close(&h, v.session);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
        assert_int_equal(count_fds(), fds);

        vmm_open(&h, &v, &img);
        for (unsigned i = 0; i < 1000; i++) {
                ssize_t n = io_send_fds(v.sock, "[", 1, &v.memfd, 1);

                if (n == -EPIPE || n == -ECONNRESET) /* refused after the second */
                        break;
                assert_int_equal(n, 1);
        }
        (void) harness_note(&h, "session.failed", v.session);
        harness_close(&h, v.session);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
        assert_int_equal(count_fds(), fds);
        assert_service();
}

/** Memory that was never mapped, and memory that is not registered: nobody faults there, so nobody is harmed. */
static void test_memory_that_is_not_there(void **state) {
        struct raw_vmm r, told;
        struct vmm v;

        vmm_open(&h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        told = r;
        told.map = (uint8_t *) (uintptr_t) (1ull << 40);
        raw_attach(&told, v.sock);
        (void) harness_note(&h, "session.attached", v.session);
        assert_service();
        harness_close(&h, v.session);
        raw_unmap(&r);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
}

/** It does not wait for its answer: hang-ups at every point of the handshake. */
static void test_hang_up_in_the_answer(void **state) {
        char json[512];
        struct raw_vmm r;
        struct vmm v;

        for (unsigned i = 0; i < 64; i++) {
                vmm_open(&h, &v, &img);
                raw_map(&r, v.memfd, v.ram_bytes);
                int n = snprintf(json, sizeof(json), "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":0," EXT "}]",
                                 (unsigned long long) (uintptr_t) r.map, PAGES * TEST_PAGE);

                raw_send(v.sock, json, i % 4 == 3 ? (size_t) n - 1 : (size_t) n, r.uffd);
                if (i % 4 == 1) /* will not read: the answer finds nobody */
                        assert_int_equal(shutdown(v.sock, SHUT_RD), 0);
                if (i % 4 == 2) /* the process goes first, so to say */
                        raw_unmap(&r);
                (void) close_fd(v.sock);
                (void) harness_note(&h, "session.gone", v.session);
                if (i % 4 != 2)
                        raw_unmap(&r);
                (void) close_fd(v.memfd);
                h.n_notes = 0;
        }
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions"), 0);
        assert_service();
}

/** Nothing, half of it, and all but the last byte: each for the whole deadline, while others are served. */
static void test_silence(void **state) {
        static const char *const parts[] = { "", "[{\"base_host", "[{\"base_host_virt_addr\":4096}" };
        struct vmm v[3];

        for (unsigned i = 0; i < 3; i++) {
                vmm_open(&h, &v[i], &img);
                raw_send(v[i].sock, parts[i], strlen(parts[i]), -1);
        }
        assert_service();
        for (unsigned i = 0; i < 3; i++) {
                assert_non_null(strstr(harness_note(&h, "session.failed", v[i].session)->text, "within 1 seconds"));
                assert_non_null(strstr(raw_answer(v[i].sock), "within 1 seconds"));
                harness_close(&h, v[i].session);
                (void) close_fd(v[i].sock);
                (void) close_fd(v[i].memfd);
        }
}

static void test_hang_up_before_and_after(void **state) {
        struct raw_vmm r;
        struct vmm v;

        vmm_open(&h, &v, &img);
        v.sock = close_fd(v.sock);
        (void) close_fd(v.memfd);
        (void) harness_note(&h, "session.gone", v.session);

        /* The socket goes first: the session ends, whatever the process still does. */
        vmm_open(&h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        raw_attach(&r, v.sock);
        assert_true(harness_note(&h, "session.attached", v.session)->good_uffd);
        v.sock = close_fd(v.sock);
        (void) harness_note(&h, "session.gone", v.session);
        raw_unmap(&r);
        (void) close_fd(v.memfd);

        /* The memory goes first: the next thing tells the worker, or the socket does. */
        vmm_open(&h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        raw_attach(&r, v.sock);
        raw_unmap(&r);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
        (void) harness_note(&h, "session.gone", v.session);
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions_failed"), 0);
        assert_service();
}

static void test_talks_after_handshake(void **state) {
        struct raw_vmm r;
        struct vmm v;

        vmm_open(&h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        raw_attach(&r, v.sock);
        raw_send(v.sock, "more", 4, -1);
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "after its handshake"));
        harness_close(&h, v.session);
        raw_unmap(&r);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
        assert_service();
}

struct toucher {
        pthread_t thread;
        volatile uint8_t *at;
        uint8_t seen;
        _Atomic bool done;
};

static void *touch_main(void *arg) {
        struct toucher *t = arg;

        t->seen = *t->at;
        t->done = true;
        return NULL;
}

/** It registered more than it told of. */
static void test_fault_outside(void **state) {
        struct toucher t = { 0 };
        struct raw_vmm r, told;
        struct vmm v;

        vmm_open(&h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        told = r;
        told.len -= TEST_PAGE;
        raw_attach(&told, v.sock);
        t.at = r.map + told.len;
        assert_int_equal(pthread_create(&t.thread, NULL, touch_main, &t), 0);
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "not told of"));
        assert_false(t.done);
        assert_true(harness_status(&h, "sessions", v.session, "oldest_fault_ms") > 0);
        assert_service();
        assert_false(t.done);
        /* Only its own doing ends the wait: what the last descriptor's end does to a VMM. */
        harness_close(&h, v.session);
        r.uffd = close_fd(r.uffd);
        assert_int_equal(pthread_join(t.thread, NULL), 0);
        assert_int_equal(munmap(r.map, r.len), 0);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
}

static void *move_main(void *arg) {
        struct raw_vmm *r = arg;

        return mremap(r->map, r->len, r->len, MREMAP_MAYMOVE | MREMAP_FIXED, r->map + 64 * r->len);
}

static void test_moved_memory(void **state) {
        struct raw_vmm r;
        struct vmm v;
        pthread_t mover;
        void *to;

        vmm_open(&h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        raw_attach(&r, v.sock);
        /* A failed session's events stay unread, like its faults: the mover waits with them. */
        assert_int_equal(pthread_create(&mover, NULL, move_main, &r), 0);
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "moved"));
        harness_close(&h, v.session);
        r.uffd = close_fd(r.uffd);
        assert_int_equal(pthread_join(mover, &to), 0);
        assert_ptr_not_equal(to, MAP_FAILED);
        assert_int_equal(munmap(to, r.len), 0);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
        assert_service();
}

static void test_blocking_descriptor(void **state) {
        struct raw_vmm r;
        struct vmm v;

        vmm_open(&h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        raw_attach(&r, v.sock);
        assert_int_equal(io_set_nonblock(r.uffd, false), 0);
        struct toucher t = { .at = r.map };
        assert_int_equal(pthread_create(&t.thread, NULL, touch_main, &t), 0);
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "blocking"));
        assert_service();
        harness_close(&h, v.session);
        r.uffd = close_fd(r.uffd);
        assert_int_equal(pthread_join(t.thread, NULL), 0);
        assert_int_equal(munmap(r.map, r.len), 0);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
}

static void test_corrupt_frame(void **state) {
        struct image bad;
        struct vmm v, w;
        uint64_t page;

        image_make(&bad, PAGES, 9, SNAP_CODEC_LZ4);
        page = image_stored_page(&bad, 300);
        vmm_start(&h, &v, &bad);
        vmm_start(&h, &w, &img);
        image_corrupt(&bad, page);
        assert_string_equal(vmm_cmd(&v, "touch %llu", (unsigned long long) page), "ok");
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "corrupt"));
        assert_string_equal(vmm_cmd(&v, "touched"), "ok 0");
        assert_int_equal(harness_status(&h, "sessions", v.session, "failed"), 1);
        assert_int_equal(harness_status(&h, "sessions", v.session, "attached"), 1);
        /* the others go on, in the same worker */
        assert_string_equal(vmm_cmd(&w, "verify 7 2"), "ok");
        assert_string_equal(vmm_cmd(&v, "touched"), "ok 0");
        assert_true(harness_status(&h, "sessions", v.session, "oldest_fault_ms") > 0);
        vmm_end(&h, &v);
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions_failed"), 1);
        vmm_end(&h, &w);

        /* Repaired, the same file is read anew: nothing of the bad image's memory is kept. */
        image_corrupt(&bad, page); /* flips the bit back */
        vmm_start(&h, &v, &bad);
        assert_string_equal(vmm_cmd(&v, "verify 9 2"), "ok");
        vmm_end(&h, &v);
        image_clear(&bad);
}

/** A process without a userfaultfd touches a hole: the kernel puts a zero page into the memfd. Who needs the
 *  page from the pager then must not get it. */
static void test_poisoned_memory(void **state) {
        uint64_t page = image_stored_page(&img, 200), zero = image_zero_page(&img, 400);
        struct vmm v, w;
        uint8_t *map;

        vmm_start(&h, &v, &img);
        vmm_open(&h, &w, &img);
        map = mmap(NULL, w.ram_bytes, PROT_READ, MAP_PRIVATE, w.memfd, 0);
        assert_ptr_not_equal(map, MAP_FAILED);
        assert_int_equal(*(volatile uint8_t *) (map + zero * TEST_PAGE), 0);
        assert_int_equal(*(volatile uint8_t *) (map + page * TEST_PAGE), 0);
        assert_int_equal(munmap(map, w.ram_bytes), 0);
        /* a page of the same frame, so that the poisoned one is found on the way */
        uint64_t other = page + 1;
        while (content_is_zero(img.seed, other))
                other++;
        vmm_send(&v, "touch %llu", (unsigned long long) other);
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "did not put there"));
        assert_int_equal(harness_status(&h, "images", NULL, "bad"), 1);
        assert_service(); /* with memory of its own, while sessions of the bad image are still open */
        assert_int_equal(harness_status(&h, "totals", NULL, "images"), 2);
        vmm_end(&h, &v);
        (void) close_fd(w.sock);
        (void) close_fd(w.memfd);
        (void) harness_note(&h, "session.gone", w.session);
        assert_int_equal(harness_status(&h, "totals", NULL, "images"), 1);
        assert_service();
}

/** The same, and nobody needs that page from the pager: who reads it finds it there, with zeros in it. So all that may
 *  have read it are ended, without any fault of theirs. */
static void test_trespasser(void **state) {
        struct image other;
        struct vmm v, w, u, stranger;

        image_make(&other, PAGES, 8, SNAP_CODEC_LZ4);
        vmm_start(&h, &v, &img);
        vmm_start(&h, &w, &img);
        vmm_start(&h, &u, &other);
        vmm_open(&h, &stranger, &img);
        harness_trespass(stranger.memfd, image_stored_page(&img, 700));
        (void) close_fd(stranger.sock);
        (void) close_fd(stranger.memfd);
        assert_non_null(strstr(harness_note(&h, "session.failed", v.session)->text, "did not put there"));
        assert_non_null(strstr(harness_note(&h, "session.failed", w.session)->text, "did not put there"));
        assert_string_equal(vmm_cmd(&u, "verify 8 2"), "ok");
        assert_int_equal(harness_status(&h, "sessions", u.session, "failed"), 0);
        assert_service(); /* of the same file */
        vmm_end(&h, &v);
        vmm_end(&h, &w);
        vmm_end(&h, &u);
        image_clear(&other);
}

/** While no guest uses the image, and in a page that is zero in it: it is not used again all the same. */
static void test_trespasser_in_an_idle_image(void **state) {
        struct vmm v;
        int memfd;

        assert_service();
        vmm_open(&h, &v, &img);
        memfd = TAKE_FD(v.memfd);
        (void) close_fd(v.sock);
        (void) harness_note(&h, "session.gone", v.session);
        assert_int_equal(harness_status(&h, "totals", NULL, "images"), 1);
        assert_service();
        double decodes = harness_status(&h, "totals", NULL, "decodes");
        harness_trespass(memfd, image_zero_page(&img, 400));
        assert_service();
        assert_int_equal(harness_status(&h, "totals", NULL, "images"), 1);
        assert_true(harness_status(&h, "totals", NULL, "decodes") >= 2 * decodes); /* all of it anew */
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions_failed"), 0);
        (void) close_fd(memfd);
}

/** Once a session has failed none of its faults is answered, whoever noticed the failure. */
static void test_failed_is_not_served(void **state) {
        struct raw_vmm r;
        struct vmm v;

        vmm_open(&h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        raw_attach(&r, v.sock);
        assert_int_equal(((volatile uint8_t *) r.map)[image_zero_page(&img, 0) * TEST_PAGE], 0);
        raw_send(v.sock, "more", 4, -1);
        (void) harness_note(&h, "session.failed", v.session);
        struct toucher t = { .at = r.map + image_stored_page(&img, 500) * TEST_PAGE };
        assert_int_equal(pthread_create(&t.thread, NULL, touch_main, &t), 0);
        struct pollfd raised = { .fd = r.uffd, .events = POLLIN };
        assert_int_equal(poll(&raised, 1, DEADLINE_MS), 1);
        assert_service(); /* by the only worker, after it has seen that fault */
        assert_false(t.done);
        assert_int_equal(poll(&raised, 1, 0), 1);
        harness_close(&h, v.session);
        r.uffd = close_fd(r.uffd);
        assert_int_equal(pthread_join(t.thread, NULL), 0);
        assert_int_equal(munmap(r.map, r.len), 0);
        (void) close_fd(v.sock);
        (void) close_fd(v.memfd);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_bad_handshakes, setup, teardown),
                cmocka_unit_test_setup_teardown(test_endless_handshake, setup, teardown),
                cmocka_unit_test_setup_teardown(test_two_descriptors, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_thousand_descriptors, setup, teardown),
                cmocka_unit_test_setup_teardown(test_memory_that_is_not_there, setup, teardown),
                cmocka_unit_test_setup_teardown(test_hang_up_in_the_answer, setup, teardown),
                cmocka_unit_test_setup_teardown(test_silence, setup, teardown),
                cmocka_unit_test_setup_teardown(test_hang_up_before_and_after, setup, teardown),
                cmocka_unit_test_setup_teardown(test_talks_after_handshake, setup, teardown),
                cmocka_unit_test_setup_teardown(test_fault_outside, setup, teardown),
                cmocka_unit_test_setup_teardown(test_moved_memory, setup, teardown),
                cmocka_unit_test_setup_teardown(test_blocking_descriptor, setup, teardown),
                cmocka_unit_test_setup_teardown(test_corrupt_frame, setup, teardown),
                cmocka_unit_test_setup_teardown(test_poisoned_memory, setup, teardown),
                cmocka_unit_test_setup_teardown(test_trespasser, setup, teardown),
                cmocka_unit_test_setup_teardown(test_trespasser_in_an_idle_image, setup, teardown),
                cmocka_unit_test_setup_teardown(test_failed_is_not_served, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
