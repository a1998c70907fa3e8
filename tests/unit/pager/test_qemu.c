/* SPDX-License-Identifier: MIT */
/* The real QEMU, with guest memory from an image: what it sees of its memory is what the image holds. */
#include "tests/unit/pager/harness.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "common/io.h"

#define QEMU "/usr/bin/qemu-system-x86_64"
#define MIB (1ull << 20)
#define RAM (64 * MIB)
/* Of the first MiB QEMU's own reset may write some (tables for the firmware). */
#define FROM MIB

static struct harness h;
static struct image img;

static int setup(void **state) {
        harness_start(&h, NULL);
        image_make(&img, RAM / TEST_PAGE, 13, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        harness_stop(&h);
        return 0;
}

static void spawn_qemu(struct vmm *v) {
        static const char *const argv[] = {
                QEMU,
                "-M",
                "microvm,acpi=on,rtc=on,x-option-roms=off,memory-backend=ram",
                "-object",
                "memory-backend-file,id=ram,size=64M,share=on,mem-path=/proc/self/fd/10",
                "-m",
                "64M",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-accel",
                "tcg",
                "-sandbox",
                "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
                "-S",
                "-qmp",
                "stdio",
                NULL,
        };

        vmm_spawn_program(v, argv);
        assert_non_null(strstr(vmm_answer(v), "QMP"));
        assert_non_null(strstr(vmm_cmd(v, "{\"execute\":\"qmp_capabilities\"}"), "return"));
}

/** Has QEMU write guest memory to a file, as its CPU would read it, and compares every page. */
static void check_memory(struct vmm *v) {
        char path[96];
        uint8_t want[TEST_PAGE], got[TEST_PAGE];
        cleanup_fd int fd = -1;

        (void) snprintf(path, sizeof(path), "%s/memory", h.dir);
        assert_non_null(
                strstr(vmm_cmd(v, "{\"execute\":\"pmemsave\",\"arguments\":{\"val\":%llu,\"size\":%llu,\"filename\":\"%s\"}}",
                               FROM, RAM - FROM, path),
                       "return"));
        fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_int_equal(unlink(path), 0);
        for (uint64_t p = FROM / TEST_PAGE; p < RAM / TEST_PAGE; p++) {
                content_fill(img.seed, p, want);
                assert_int_equal(io_pread_full(fd, got, sizeof(got), p * TEST_PAGE - FROM), 0);
                assert_memory_equal(got, want, TEST_PAGE);
        }
}

static void test_clones(void **state) {
        struct vmm v[2];

        if (access(QEMU, X_OK) < 0) {
                print_message("skipped: %s is not installed\n", QEMU);
                skip();
        }
        for (unsigned i = 0; i < ARRAY_LEN(v); i++) {
                vmm_open(&h, &v[i], &img);
                spawn_qemu(&v[i]);
                assert_true(harness_note(&h, "session.attached", v[i].session)->good_uffd);
                check_memory(&v[i]);
                assert_int_equal(harness_status(&h, "sessions", v[i].session, "failed"), 0);
        }
        /* the second found everything there */
        assert_int_equal(harness_status(&h, "images", NULL, "decodes"), harness_status(&h, "totals", NULL, "faults.missing"));
        assert_true(harness_status(&h, "sessions", v[1].session, "faults.missing") == 0);
        vmm_end(&h, &v[0]);
        check_memory(&v[1]);
        /* an orderly end unmaps guest memory: nothing may hang on that */
        (void) vmm_cmd(&v[1], "{\"execute\":\"quit\"}");
        int status = vmm_wait(&v[1], NULL, 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        (void) harness_note(&h, "session.gone", v[1].session);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test_setup_teardown(test_clones, setup, teardown) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
