/* SPDX-License-Identifier: MIT */
/* libuffd-attach, in a process that behaves like QEMU, and then in ways in which QEMU should not. */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/io.h"
#include "pager/attach/wait.h"

#define PAGES 1024ull

static struct harness h;
static struct image img;

static int setup(void **state) {
        harness_start(&h, NULL);
        image_make(&img, PAGES, 11, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        harness_stop(&h);
        return 0;
}

/** It must end with code 97 and one line on stderr that tells of @why. */
static void assert_dies(struct vmm *v, const char *why) {
        char err[512];
        int status = vmm_wait(v, err, sizeof(err));

        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 97);
        if (strncmp(err, "uffd-attach: ", 13) != 0 || !strstr(err, why))
                fail_msg("\"%s\" does not tell of \"%s\"", err, why);
        assert_ptr_equal(strchr(err, '\n'), err + strlen(err) - 1);
}

static void assert_layout(struct vmm *v, uint64_t *ret_addr) {
        char line[256] = "";
        unsigned long long addr, size, offset;

        assert_true(pread(v->layout_fd, line, sizeof(line) - 1, 0) > 0);
        assert_int_equal(sscanf(line, "{\"host_addr\":%llu,\"size\":%llu,\"offset\":%llu}", &addr, &size, &offset), 3);
        assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
        assert_int_equal(size, v->ram_bytes);
        assert_int_equal(offset, 0);
        *ret_addr = addr;
}

static void test_fresh(void **state) {
        struct vmm v;
        uint64_t addr;

        vmm_spawn_fresh(&v, PAGES * TEST_PAGE);
        assert_string_equal(vmm_cmd(&v, "map"), "ok 1024");
        assert_layout(&v, &addr);
        assert_string_equal(vmm_cmd(&v, "env"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 0 2"), "ok");
        assert_string_equal(vmm_cmd(&v, "write 3 77"), "ok");
        assert_string_equal(vmm_cmd(&v, "write 4 78"), "ok");
        assert_string_equal(vmm_cmd(&v, "advise 4 1 %d", MADV_DONTNEED), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 0 2"), "ok");
        /* the dummy itself got no memory */
        struct stat st;
        assert_int_equal(fstat(v.ram_fd, &st), 0);
        assert_int_equal(st.st_blocks, 0);
        vmm_kill(&v);
}

static void test_image(void **state) {
        const struct note *n;
        struct vmm v;
        uint64_t addr;

        vmm_open(&h, &v, &img);
        vmm_spawn(&v);
        assert_string_equal(vmm_cmd(&v, "map"), "ok 1024");
        n = harness_note(&h, "session.attached", v.session);
        assert_true(n->good_uffd);
        assert_int_equal(n->n_regions, 1);
        assert_layout(&v, &addr);
        assert_int_equal(n->regions[0][0], addr);
        assert_int_equal(n->regions[0][1], v.ram_bytes);
        assert_int_equal(n->regions[0][2], 0);
        assert_string_equal(vmm_cmd(&v, "env"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        assert_string_equal(vmm_cmd(&v, "fork %llu", (unsigned long long) image_stored_page(&img, 0)), "ok");
        assert_int_equal(harness_status(&h, "images", NULL, "bad"), 0);
        vmm_end(&h, &v);
}

/** The device, opened by who may, works for who has the descriptor only. */
static void test_inherited_device(void **state) {
        cleanup_fd int dev = open(UFFD_DEVICE, O_RDWR | O_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC);
        struct vmm v;

        if (dev < 0) {
                print_message("skipped: no access to %s\n", UFFD_DEVICE);
                skip();
        }
        vmm_open(&h, &v, &img);
        v.uffd_dev = dev;
        vmm_spawn(&v);
        assert_string_equal(vmm_cmd(&v, "map"), "ok 1024");
        assert_true(harness_note(&h, "session.attached", v.session)->good_uffd);
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        vmm_end(&h, &v);

        /* One that is no such device: the other ways are tried. */
        vmm_open(&h, &v, &img);
        v.uffd_dev = null;
        vmm_spawn(&v);
        assert_string_equal(vmm_cmd(&v, "map"), "ok 1024");
        vmm_end(&h, &v);
}

static void test_advice(void **state) {
        static const int ignored[] = { MADV_HUGEPAGE,           MADV_MERGEABLE,    22 /* POPULATE_READ */,
                                       23 /* POPULATE_WRITE */, 25 /* COLLAPSE */, MADV_DOFORK };
        static const int discards[] = { MADV_DONTNEED, MADV_FREE, MADV_REMOVE };
        struct vmm v;

        vmm_start(&h, &v, &img);
        for (unsigned i = 0; i < ARRAY_LEN(ignored); i++)
                assert_string_equal(vmm_cmd(&v, "advise 0 %llu %d", PAGES, ignored[i]), "ok");
        assert_int_equal(harness_status(&h, "images", NULL, "decodes"), 0); /* nothing was populated */
        assert_string_equal(vmm_cmd(&v, "fork 0"), "ok");                   /* nor handed to children */
        assert_string_equal(vmm_cmd(&v, "advise 0 %llu %d", PAGES, MADV_RANDOM), "ok");
        assert_string_equal(vmm_cmd(&v, "advise 0 1 12345"), "errno 22");
        for (unsigned i = 0; i < ARRAY_LEN(discards); i++) {
                assert_string_equal(vmm_cmd(&v, "advise %u 9 %d", 100 * i, discards[i]), "ok");
                assert_string_equal(vmm_cmd(&v, "advise %u 30 %d", 100 * i + 50, discards[i]), "ok");
        }
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        /* again, when the pages are there, on top of what was discarded before, and across it */
        assert_string_equal(vmm_cmd(&v, "advise 95 30 %d", MADV_DONTNEED), "ok");
        assert_string_equal(vmm_cmd(&v, "advise 100 2 %d", MADV_DONTNEED), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        /* beyond guest memory's end: a caller's mistake */
        assert_string_equal(vmm_cmd(&v, "advise %llu 2 %d", PAGES - 1, MADV_DONTNEED), "errno 22");
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        vmm_end(&h, &v);
}

static void test_discard_without_mappings(void **state) {
        uint64_t page = image_stored_page(&img, 512);
        struct vmm v;

        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        assert_string_equal(vmm_cmd(&v, "hog"), "ok");
        /* present in the image: without care it would come back by itself */
        assert_string_equal(vmm_cmd(&v, "advise %llu 3 %d", (unsigned long long) page, MADV_DONTNEED), "ok");
        assert_string_equal(vmm_cmd(&v, "advise 700 1 %d", MADV_DONTNEED), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 11 1"), "ok");
        assert_int_equal(harness_status(&h, "sessions", v.session, "removed_pages"), 4);
        vmm_end(&h, &v);
}

static void test_unmap_and_move(void **state) {
        struct vmm v;

        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "remap"), "refused");
        assert_string_equal(vmm_cmd(&v, "unmap 10 2"), "refused");
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        assert_string_equal(vmm_cmd(&v, "unmap 1000 24"), "ok");
        /* what is gone is not guest memory any more: the kernel's own answer for advice there */
        assert_string_equal(vmm_cmd(&v, "advise 1000 1 %d", MADV_DONTNEED), "errno 12");
        assert_string_equal(vmm_cmd(&v, "unmap 0 1000"), "ok");
        assert_string_equal(vmm_cmd(&v, "advise 0 1 %d", MADV_DONTNEED), "errno 12");
        vmm_end(&h, &v);
}

static void test_second_mapping(void **state) {
        struct vmm v;

        vmm_start(&h, &v, &img);
        vmm_send(&v, "again");
        assert_string_equal(vmm_answer(&v), "(ended)");
        assert_dies(&v, "second time");
        (void) harness_note(&h, "session.gone", v.session);
}

static void test_wrong_size(void **state) {
        struct vmm v;

        vmm_open(&h, &v, &img);
        v.ram_bytes -= TEST_PAGE;
        vmm_spawn(&v);
        vmm_send(&v, "map");
        assert_dies(&v, "of another size");
        (void) harness_note(&h, "session.gone", v.session);
}

static void test_no_pager(void **state) {
        struct vmm v;
        int pair[2];

        vmm_open(&h, &v, &img);
        (void) close_fd(v.sock);
        (void) harness_note(&h, "session.gone", v.session);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        v.sock = pair[1];
        (void) close_fd(pair[0]);
        vmm_spawn(&v);
        vmm_send(&v, "map");
        assert_dies(&v, "pager");
}

/* ---- shells ---- */

/** A shell that has mapped its memory; the socket that it waits on. */
static int shell_start(struct vmm *v) {
        int pair[2];

        vmm_open(&h, v, &img);
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        vmm_spawn_shell(v, pair[1]);
        (void) close_fd(pair[1]);
        assert_string_equal(vmm_cmd(v, "map"), "ok 1024");
        return pair[0];
}

/** What the probe has as descriptor @number. */
static void assert_fd(const struct vmm *v, int number, const char *what) {
        char link[64], target[256];
        ssize_t n;

        (void) snprintf(link, sizeof(link), "/proc/%d/fd/%d", (int) v->pid, number);
        n = readlink(link, target, sizeof(target) - 1);
        assert_true(n > 0);
        target[n] = '\0';
        if (!strstr(target, what))
                fail_msg("%s is %s, not %s", link, target, what);
}

/** Memory comes later, at the address that was told at once; files are replaced wherever they are. */
static void test_shell(void **state) {
        cleanup_fd int file = memfd_create("the-real-one", MFD_CLOEXEC);
        struct attach_wait_msg msg = { .magic = ATTACH_WAIT_MAGIC, .n = 2 };
        const struct note *n;
        uint64_t addr, again;
        struct stat st;
        struct vmm v;
        char done = 0;
        int sock;

        sock = shell_start(&v);
        assert_layout(&v, &addr);
        assert_fd(&v, PROBE_RAM_FD, "test-ram");
        assert_int_equal(fstat(v.ram_fd, &st), 0);
        msg.entries[0] = (struct attach_wait_entry){ .kind = ATTACH_WAIT_FILE, .dev = st.st_dev, .ino = st.st_ino };
        msg.entries[1] = (struct attach_wait_entry){ .kind = ATTACH_WAIT_SESSION };
        assert_int_equal(io_send_fds(sock, &msg, sizeof(msg), (const int[]){ file, v.sock }, 2), sizeof(msg));
        v.sock = close_fd(v.sock);
        n = harness_note(&h, "session.attached", v.session);
        assert_int_equal(n->regions[0][0], addr);
        assert_int_equal(recv(sock, &done, 1, 0), 1);
        assert_int_equal(done, ATTACH_WAIT_DONE);
        assert_int_equal(recv(sock, &done, 1, 0), 0); /* that was all */
        assert_layout(&v, &again);
        assert_int_equal(again, addr);
        assert_fd(&v, PROBE_RAM_FD, "the-real-one");
        assert_string_equal(vmm_cmd(&v, "verify 11 2"), "ok");
        (void) close_fd(sock);
        vmm_end(&h, &v);
}

/** forkd goes, and so does the shell: in silence. */
static void test_shell_alone(void **state) {
        char err[64];
        struct vmm v;
        int sock, status;

        sock = shell_start(&v);
        (void) close_fd(sock);
        status = vmm_wait(&v, err, sizeof(err));
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        assert_string_equal(err, "");
        v.sock = close_fd(v.sock);
        (void) harness_note(&h, "session.gone", v.session);
}

static void shell_is_told(const struct attach_wait_msg *msg, size_t len, bool with_session, const char *why) {
        struct vmm v;
        int sock = shell_start(&v);

        assert_int_equal(io_send_fds(sock, msg, len, &v.sock, with_session), len);
        assert_dies(&v, why);
        (void) close_fd(sock);
        v.sock = close_fd(v.sock);
        (void) harness_note(&h, "session.gone", v.session);
}

static void test_shell_is_told_nonsense(void **state) {
        struct attach_wait_msg msg = { .magic = ATTACH_WAIT_MAGIC, .n = 1, .entries[0].kind = ATTACH_WAIT_SESSION };

        shell_is_told(&msg, sizeof(msg) - 1, true, "does not understand");
        shell_is_told(&msg, sizeof(msg), false, "does not understand");
        msg.entries[0].kind = 99;
        shell_is_told(&msg, sizeof(msg), true, "of an unknown kind");
        msg.entries[0].kind = ATTACH_WAIT_FILE;
        shell_is_told(&msg, sizeof(msg), true, "was given no memory");
        msg.n = 0;
        shell_is_told(&msg, sizeof(msg), false, "was given no memory");
        msg.magic++;
        shell_is_told(&msg, sizeof(msg), false, "does not understand");
}

static void pager_says(const char *words, const char *why) {
        struct vmm v;
        int pair[2];

        vmm_open(&h, &v, &img);
        (void) close_fd(v.sock);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        v.sock = pair[1];
        vmm_spawn(&v);
        assert_int_equal(io_write_full(pair[0], words, strlen(words)), 0);
        assert_int_equal(shutdown(pair[0], SHUT_WR), 0);
        vmm_send(&v, "map");
        assert_dies(&v, why);
        (void) close_fd(pair[0]);
        (void) harness_note(&h, "session.gone", v.session);
}

static void test_pager_refuses(void **state) {
        char lots[400];

        pager_says("error: the moon is full\n", "error: the moon is full");
        pager_says("ok", "hung up during the handshake");
        pager_says("ok!\n", "pager refused");
        pager_says("", "hung up before it told of guest memory");
        memset(lots, 'x', sizeof(lots) - 1);
        lots[sizeof(lots) - 1] = '\0';
        pager_says(lots, "too long");
}

/** The pager and all its descriptors go away: the guest waits, and never sees a zero in place of its memory. */
static void test_pager_dies(void **state) {
        struct harness own;
        struct vmm v;

        harness_start(&own, NULL);
        vmm_start(&own, &v, &img);
        assert_string_equal(vmm_cmd(&v, "touch %llu", (unsigned long long) image_stored_page(&img, 0)), "ok");
        while (harness_status(&own, "sessions", v.session, "faults.missing") < 1) {
        }
        harness_stop(&own);
        vmm_send(&v, "verify 11 1");
        struct pollfd p = { .fd = fileno(v.out), .events = POLLIN };
        assert_int_equal(poll(&p, 1, 300), 0); /* neither "ok" nor "bad" */
        vmm_kill(&v);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_fresh, setup, teardown),
                cmocka_unit_test_setup_teardown(test_image, setup, teardown),
                cmocka_unit_test_setup_teardown(test_inherited_device, setup, teardown),
                cmocka_unit_test_setup_teardown(test_advice, setup, teardown),
                cmocka_unit_test_setup_teardown(test_discard_without_mappings, setup, teardown),
                cmocka_unit_test_setup_teardown(test_unmap_and_move, setup, teardown),
                cmocka_unit_test_setup_teardown(test_second_mapping, setup, teardown),
                cmocka_unit_test_setup_teardown(test_wrong_size, setup, teardown),
                cmocka_unit_test_setup_teardown(test_no_pager, setup, teardown),
                cmocka_unit_test_setup_teardown(test_pager_refuses, setup, teardown),
                cmocka_unit_test_setup_teardown(test_pager_dies, setup, teardown),
                cmocka_unit_test_setup_teardown(test_shell, setup, teardown),
                cmocka_unit_test_setup_teardown(test_shell_alone, setup, teardown),
                cmocka_unit_test_setup_teardown(test_shell_is_told_nonsense, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
