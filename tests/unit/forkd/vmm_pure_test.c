/* SPDX-License-Identifier: MIT */
/* The parts of the driver that are plain functions: layout, log, version, command line. */
#include "vmm_test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forkd/vmm/qemu_args.h"

#define LINE(a, s, o) "{\"host_addr\":" #a ",\"size\":" #s ",\"offset\":" #o "}\n"

static int parse(const char *text, uint64_t mem, struct vmm_region *r, size_t max, size_t *n) {
        return qemu_layout_parse(text, strlen(text), mem, r, max, n);
}

static void layout_good(void **state) {
        struct vmm_region r[4];
        size_t n = 0;

        assert_int_equal(parse(LINE(4096, 65536, 0), 65536, r, 4, &n), 0);
        assert_int_equal(n, 1);
        assert_int_equal(r[0].host_addr, 4096);
        assert_int_equal(r[0].size, 65536);
        assert_int_equal(parse(LINE(1048576, 4096, 4096) LINE(4096, 4096, 0), 8192, r, 4, &n), 0);
        assert_int_equal(n, 2);
        assert_int_equal(r[0].offset, 4096);
}

static void layout_bad(void **state) {
        static const char *const bad[] = {
                "",
                "\n",
                "{}\n",
                "[]\n",
                "no\n",
                "{\"host_addr\":4096,\"size\":65536,\"offset\":0}", /* cut */
                LINE(4096, 65536, 0) "{\"host",
                LINE(4096, 65536, 0) LINE(4096, 65536, 0),     /* overlap */
                LINE(4096, 32768, 0) LINE(8192, 32768, 32768), /* overlap in the host's addresses only */
                LINE(4096, 32768, 0),                          /* not all of it */
                LINE(4096, 131072, 0),                         /* more than all of it */
                LINE(4096, 65536, 4096),                       /* beyond the end */
                LINE(4096, 0, 0),
                LINE(4097, 65536, 0),
                LINE(-4096, 65536, 0),
                LINE(9223372036854771712, 65536, 0),
                LINE(4096, 9223372036854771712, 0),
                LINE(4096, 65536, 9223372036854771712),
                "{\"host_addr\":4096.0,\"size\":65536,\"offset\":0}\n",
                "{\"host_addr\":\"4096\",\"size\":65536,\"offset\":0}\n",
        };
        struct vmm_region r[4];
        size_t n = 99;

        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                if (parse(bad[i], 65536, r, 4, &n) != -EBADMSG)
                        fail_msg("taken: %s", bad[i]);
        assert_int_equal(n, 99);
        assert_int_equal(parse(LINE(4096, 4096, 0) LINE(65536, 4096, 4096), 8192, r, 1, &n), -E2BIG);
}

static void layout_uffd(void **state) {
        static const struct {
                const char *text;
                int r, fd;
        } cases[] = {
                { "{\"host_addr\":4096,\"size\":65536,\"offset\":0,\"uffd\":7}\n", 0, 7 },
                { "{\"uffd\":0}\n{\"uffd\":3}\n", 0, 0 },
                { LINE(4096, 65536, 0), -ENOENT, 99 },
                { "{\"uffd\":-1}\n", -EBADMSG, 99 },
                { "{\"uffd\":4294967296}\n", -EBADMSG, 99 },
                { "{\"uffd\":\"7\"}\n", -EBADMSG, 99 },
                { "{\"uffd\":7}", -EBADMSG, 99 }, /* cut */
                { "[7]\n", -EBADMSG, 99 },
                { "", -EBADMSG, 99 },
        };
        struct vmm_region r[1];
        size_t n;

        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                int fd = 99;

                assert_int_equal(qemu_layout_uffd(cases[i].text, strlen(cases[i].text), &fd), cases[i].r);
                assert_int_equal(fd, cases[i].fd);
        }
        assert_int_equal(parse(cases[0].text, 65536, r, 1, &n), 0);
}

static const char *pick(const char *text, char *out, size_t size) {
        char buf[16384];
        size_t len = strlen(text);

        memcpy(buf, text, len + 1);
        return qemu_log_pick(buf, len, out, size);
}

static void log_reasons(void **state) {
        char out[64], tiny[8], raw[] = "a\0b\x01\n";

        assert_string_equal(pick("", out, sizeof(out)), "");
        assert_string_equal(pick("\n\n", out, sizeof(out)), "");
        assert_string_equal(pick("one\ntwo\n", out, sizeof(out)), "one; two");
        assert_string_equal(pick("1\n2\n3\n4\n5", out, sizeof(out)), "3; 4; 5");
        assert_string_equal(pick("2026-11-21T04:01:07.1Z qemu-system-x86_64: bad\r\n", out, sizeof(out)), "bad");
        /* the library's sentence wins over what QEMU says after it */
        assert_string_equal(pick("uffd-attach: pager refused: x\nqemu-system-x86_64: y\n", out, sizeof(out)),
                            "uffd-attach: pager refused: x");
        assert_string_equal(pick("a long line\nanother", tiny, sizeof(tiny)), "a long ");
        assert_string_equal(pick("aaaa\nbbbbbbb", tiny, sizeof(tiny)), "aaaa; b");
        assert_string_equal(qemu_log_pick(raw, 4, out, sizeof(out)), "a?b?");
}

static void log_of_this_life_only(void **state) {
        char path[] = "/tmp/forkd-vmmlog-XXXXXX", out[100];
        int fd = mkstemp(path);

        assert_true(fd >= 0);
        assert_int_equal(write(fd, "old\n", 4), 4);
        assert_int_equal(qemu_log_size(path), 4);
        assert_string_equal(qemu_log_reason(path, 4, out, sizeof(out)), "");
        assert_string_equal(qemu_log_reason(path, 0, out, sizeof(out)), "old");
        for (int i = 0; i < 5000; i++)
                assert_int_equal(write(fd, "noise\n", 6), 6);
        assert_int_equal(write(fd, "new\n", 4), 4);
        assert_string_equal(qemu_log_reason(path, 4, out, sizeof(out)), "noise; noise; new");
        /* forkd has cut it */
        assert_string_equal(qemu_log_reason(path, 50000, out, sizeof(out)), "noise; noise; new");
        (void) close(fd);
        (void) unlink(path);
        assert_int_equal(qemu_log_size(path), 0);
        assert_string_equal(qemu_log_reason(path, 0, out, sizeof(out)), "");
}

static void versions(void **state) {
        char v[16], tiny[4];

        assert_int_equal(qemu_version_parse("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright", v, sizeof(v)), 0);
        assert_string_equal(v, "7.2.22");
        assert_int_equal(qemu_version_parse("QEMU emulator version 10.0.0", v, sizeof(v)), 0);
        assert_string_equal(v, "10.0.0");
        assert_int_equal(qemu_version_parse("QEMU emulator version 10.0.0", tiny, sizeof(tiny)), -EBADMSG);
        assert_int_equal(qemu_version_parse("", v, sizeof(v)), -EBADMSG);
        assert_int_equal(qemu_version_parse("version ", v, sizeof(v)), -EBADMSG);
        assert_int_equal(qemu_version_parse("version x", v, sizeof(v)), -EBADMSG);
        assert_int_equal(qemu_version_parse("version 1111111111111111111111", v, sizeof(v)), -EBADMSG);
        assert_string_equal(v, "10.0.0");
}

/* The argument behind @option, the @nth time. */
static const char *arg(const struct qemu_args *a, const char *option, int nth) {
        for (size_t i = 0; i + 1 < a->n; i++)
                if (strcmp(a->argv[i], option) == 0 && nth-- == 0)
                        return a->argv[i + 1];
        return "";
}

static bool has(const struct qemu_args *a, const char *option) {
        for (size_t i = 0; i < a->n; i++)
                if (strcmp(a->argv[i], option) == 0)
                        return true;
        return false;
}

static void command_lines(void **state) {
        struct vmm_machine m = { .mem_bytes = 256u << 20, .vcpus = 2, .accel = VMM_ACCEL_TCG, .n_disks = 1 };
        struct vmm_start s = {
                .machine = &m, .kernel = "/k", .initrd = "/i", .cmdline = "a=b", .pager_sock = -1, .disks = { "/d,1\"" }
        };
        struct qemu_args a;

        assert_int_equal(qemu_args_build("/q", true, &s, "tsc_early_khz=1", &a), 0);
        assert_string_equal(a.argv[0], "/q");
        assert_null(a.argv[a.n]);
        assert_string_equal(arg(&a, "-append", 0), "a=b tsc_early_khz=1");
        assert_string_equal(arg(&a, "-bios", 0), "/proc/self/fd/12");
        assert_string_equal(arg(&a, "-kernel", 0), "/proc/self/fd/13");
        assert_string_equal(arg(&a, "-initrd", 0), "/proc/self/fd/14");
        assert_string_equal(arg(&a, "-smp", 0), "cpus=2,maxcpus=2");
        assert_non_null(strstr(arg(&a, "-accel", 0), "tcg,"));
        /* descriptors, nothing but descriptors: in QEMU's root directory no path of ours means anything */
        assert_string_equal(arg(&a, "-add-fd", 1), "fd=16,set=8");
        assert_non_null(strstr(arg(&a, "-blockdev", 0), "\"/dev/fdset/8\""));
        assert_non_null(strstr(arg(&a, "-blockdev", 0), "\"driver\":\"raw\""));
        assert_non_null(strstr(arg(&a, "-M", 0), "ioapic2=off"));
        assert_string_equal(arg(&a, "-name", 0), "debug-threads=on");
        assert_true(has(&a, "-S") && has(&a, "-no-reboot") && has(&a, "-nodefaults") && has(&a, "-no-user-config"));
        assert_false(has(&a, "-incoming"));
        qemu_args_clear(&a);

        m = (struct vmm_machine){
                .mem_bytes = 256u << 20, .vcpus = VMM_MAX_VCPUS, .accel = VMM_ACCEL_KVM, .n_disks = VMM_MAX_DISKS
        };
        s = (struct vmm_start){ .machine = &m, .incoming = true, .pager_sock = -1 };
        for (unsigned i = 0; i < VMM_MAX_DISKS; i++)
                s.disks[i] = "/d";
        assert_int_equal(qemu_args_build("/q", false, &s, NULL, &a), 0);
        assert_string_equal(arg(&a, "-accel", 0), "kvm");
        assert_string_equal(arg(&a, "-cpu", 0), "host");
        assert_non_null(strstr(arg(&a, "-M", 0), "ioapic2=on")); /* more slots than one controller has */
        assert_string_equal(arg(&a, "-incoming", 0), "defer");
        assert_false(has(&a, "-bios") || has(&a, "-kernel") || has(&a, "-append"));
        qemu_args_clear(&a);
}

static void the_counter(void **state) {
#if defined(__x86_64__)
        unsigned khz = qemu_tsc_khz();

        assert_in_range(khz, 100000, 20000000); /* 0.1 to 20 GHz */
        assert_int_equal(qemu_tsc_khz(), khz);
#else
        assert_int_equal(qemu_tsc_khz(), 0);
#endif
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(layout_good),           cmocka_unit_test(layout_bad),
                cmocka_unit_test(layout_uffd),           cmocka_unit_test(log_reasons),
                cmocka_unit_test(log_of_this_life_only), cmocka_unit_test(versions),
                cmocka_unit_test(command_lines),         cmocka_unit_test(the_counter),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
