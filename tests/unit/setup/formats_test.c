/* SPDX-License-Identifier: MIT */
/* The small formats: cpio archives, ELF questions, compressed kernels. */
#include <errno.h>
#include <elf.h>
#include <fcntl.h>
#include <lz4.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <zstd.h>

#include <cmocka.h>

#include "common/io.h"
#include "elf_maker.h"
#include "setup/cpio.h"
#include "setup/elf_file.h"
#include "setup/run.h"
#include "setup/unpack.h"
#include "skip.h"

/* ---- cpio ---- */

static unsigned long field(const uint8_t *head, int i) {
        char hex[9] = { 0 };

        memcpy(hex, head + 6 + 8 * i, 8);
        return strtoul(hex, NULL, 16);
}

struct cpio_entry {
        const char *name;
        unsigned long mode, size, rmajor, rminor;
        const uint8_t *data;
};

/* Reads the entry at *@pos and moves on, as the kernel does. */
static struct cpio_entry next_entry(const struct cpio *c, size_t *pos) {
        const uint8_t *h = c->data + *pos;
        struct cpio_entry en;

        assert_true(*pos % 4 == 0 && *pos + 110 <= c->len);
        assert_memory_equal(h, "070701", 6);
        en.mode = field(h, 1);
        en.size = field(h, 6);
        en.rmajor = field(h, 9);
        en.rminor = field(h, 10);
        assert_int_equal(field(h, 2), 0); /* root's */
        assert_int_equal(field(h, 5), 0); /* no time */
        en.name = (const char *) h + 110;
        size_t at = (*pos + 110 + field(h, 11) + 3) & ~(size_t) 3;
        assert_int_equal(strlen(en.name) + 1, field(h, 11));
        en.data = c->data + at;
        *pos = (at + en.size + 3) & ~(size_t) 3;
        assert_true(*pos <= c->len);
        return en;
}

static void test_cpio(void **state) {
        cleanup_cpio struct cpio c = { 0 };
        size_t pos = 0;

        cpio_dir(&c, ".", 0755);
        cpio_file(&c, "a", 0640, "hello", 5);
        cpio_file(&c, "empty", 0600, NULL, 0);
        cpio_symlink(&c, "link", "../target");
        cpio_chardev(&c, "dev", 0600, 5, 1);
        assert_int_equal(cpio_finish(&c), 0);

        struct cpio_entry e = next_entry(&c, &pos);
        assert_string_equal(e.name, ".");
        assert_int_equal(e.mode, S_IFDIR | 0755);
        e = next_entry(&c, &pos);
        assert_string_equal(e.name, "a");
        assert_int_equal(e.mode, S_IFREG | 0640);
        assert_int_equal(e.size, 5);
        assert_memory_equal(e.data, "hello", 5);
        e = next_entry(&c, &pos);
        assert_int_equal(e.size, 0);
        e = next_entry(&c, &pos);
        assert_int_equal(e.mode, S_IFLNK | 0777);
        assert_memory_equal(e.data, "../target", e.size);
        assert_int_equal(e.size, 9);
        e = next_entry(&c, &pos);
        assert_int_equal(e.mode, S_IFCHR | 0600);
        assert_true(e.rmajor == 5 && e.rminor == 1);
        e = next_entry(&c, &pos);
        assert_string_equal(e.name, "TRAILER!!!");
        assert_int_equal(pos, c.len);
}

static void test_cpio_refuses(void **state) {
        static const char *const bad[] = { "", "/absolute" };
        char longname[CPIO_MAX_NAME + 2];

        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                cleanup_cpio struct cpio c = { 0 };
                cpio_file(&c, bad[i], 0644, "x", 1);
                cpio_file(&c, "good", 0644, "x", 1); /* the first failure sticks */
                assert_int_equal(cpio_finish(&c), -EINVAL);
        }
        memset(longname, 'x', sizeof(longname) - 1);
        longname[sizeof(longname) - 1] = '\0';
        cleanup_cpio struct cpio c = { 0 };
        cpio_dir(&c, longname, 0755);
        assert_int_equal(cpio_finish(&c), -EINVAL);

        cleanup_cpio struct cpio big = { 0 };
        cpio_file(&big, "big", 0644, "x", (size_t) CPIO_MAX_BYTES + 1);
        assert_true(cpio_finish(&big) < 0);
}

/* ---- ELF ---- */

static void test_elf_static(void **state) {
        cleanup_free char *with = NULL, *without = NULL;
        size_t n, m;

        with = make_program(true, &n);
        without = make_program(false, &m);
        assert_int_equal(elf_is_static(with, n), 0);
        assert_int_equal(elf_is_static(without, m), 1);
        assert_int_equal(elf_is_static("#!/bin/sh\n", 10), -EBADMSG);
        for (size_t cut = 0; cut < m; cut++) /* exact copies, so that a sanitizer sees a read behind the end */ {
                cleanup_free char *p = malloc(cut + 1);
                memcpy(p, without, cut);
                assert_int_equal(elf_is_static(p, cut), -EBADMSG);
        }
}

static void test_elf_modinfo(void **state) {
        static const char info[] = "license=GPL\0depends=virtio,virtio_ring\0dependsx=no";
        cleanup_free char *m = NULL;
        const char *v;
        size_t n;

        m = make_module(info, sizeof(info), &n);
        assert_int_equal(elf_modinfo(m, n, "depends", &v), 0);
        assert_string_equal(v, "virtio,virtio_ring");
        assert_int_equal(elf_modinfo(m, n, "license", &v), 0);
        assert_string_equal(v, "GPL");
        assert_int_equal(elf_modinfo(m, n, "depend", &v), -ENOENT);
        for (size_t cut = 0; cut < n; cut++) {
                cleanup_free char *p = malloc(cut + 1);
                memcpy(p, m, cut);
                assert_true(elf_modinfo(p, cut, "depends", &v) < 0);
        }

        free(m);
        m = make_module("depends=x", 9, &n); /* the string does not end in the section */
        assert_int_equal(elf_modinfo(m, n, "depends", &v), -EBADMSG);
}

/* Any single byte of the headers changed: an answer or a refusal, never a read outside. */
static void test_elf_damaged(void **state) {
        static const char info[] = "depends=a";
        cleanup_free char *m = NULL;
        const char *v;
        size_t n;

        m = make_module(info, sizeof(info), &n);
        for (size_t i = 0; i < n; i++)
                for (unsigned bit = 0; bit < 8; bit++) {
                        cleanup_free char *p = malloc(n);
                        memcpy(p, m, n);
                        p[i] = (char) (p[i] ^ (1 << bit));
                        int r = elf_modinfo(p, n, "depends", &v);
                        assert_true(r == 0 || r == -ENOENT || r == -EBADMSG);
                        if (r == 0)
                                assert_true(v >= p && v + strlen(v) < p + n);
                }
}

/* ---- compressed kernels ---- */

/* A little noise in one letter. */
static char *make_elf(size_t len) {
        char *p = malloc(len);
        uint32_t x = 1;

        assert_non_null(p);
        for (size_t i = 0; i < len; i++) {
                x = x * 1664525 + 1013904223;
                p[i] = i % 512 == 0 ? (char) (x >> 24) : 'z';
        }
        memcpy(p, ELFMAG, SELFMAG);
        return p;
}

static void test_lz4_round_trip(void **state) {
        static const size_t sizes[] = { 6, 4096, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, 17 << 20 };

        for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
                cleanup_free char *in = make_elf(sizes[i]), *packed = NULL, *out = NULL;
                size_t packed_len, out_len;
                struct err e;

                assert_int_equal(pack_lz4(in, sizes[i], &packed, &packed_len), 0);
                assert_int_equal(unpack_any(packed, packed_len, UNPACK_MAX_KERNEL, "x", &out, &out_len, &e), 0);
                assert_int_equal(out_len, sizes[i]);
                assert_memory_equal(in, out, out_len);
        }
}

static void test_limits(void **state) {
        cleanup_free char *in = make_elf(1 << 20), *packed = NULL, *out = NULL;
        size_t packed_len, out_len = 77;
        char zpacked[1 << 19];
        struct err e;

        assert_int_equal(pack_lz4(in, 1 << 20, &packed, &packed_len), 0);
        assert_int_equal(unpack_any(packed, packed_len, 4096, "x", &out, &out_len, &e), -EFBIG);
        memset(in + 4, 0, (1 << 20) - 4);
        size_t z = ZSTD_compress(zpacked, sizeof(zpacked), in, 1 << 20, 1);
        assert_int_equal(unpack_any(zpacked, z, (1 << 20) - 1, "x", &out, &out_len, &e), -EFBIG);
        assert_int_equal(unpack_any(in, 1 << 20, 4096, "x", &out, &out_len, &e), -EFBIG);
        assert_int_equal(unpack_any("not compressed", 14, 4096, "x", &out, &out_len, &e), -EBADMSG);
        assert_int_equal(unpack_any("", 0, 4096, "x", &out, &out_len, &e), -EBADMSG);
        assert_true(out == NULL && out_len == 77);

        assert_int_equal(unpack_any(zpacked, z, 1 << 20, "x", &out, &out_len, &e), 0);
        assert_int_equal(out_len, 1 << 20);
        assert_memory_equal(in, out, out_len);
}

/* "\177ELF hello\n" by `xz --check=crc32` and by `gzip -n`; busybox unpacks both. */
static void test_busybox_formats(void **state) {
        static const unsigned char xz[] = {
                0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01,
                0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x0a, 0x7f, 0x45, 0x4c, 0x46, 0x20,
                0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x0a, 0x00, 0x00, 0x5b, 0x48, 0xdf, 0xe1, 0x00, 0x01, 0x1f, 0x0b,
                0x3d, 0x62, 0x0e, 0x7a, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
        };
        static const unsigned char gz[] = {
                0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xab, 0x77, 0xf5, 0x71, 0x53, 0xc8,
                0x48, 0xcd, 0xc9, 0xc9, 0xe7, 0x02, 0x00, 0x5b, 0x48, 0xdf, 0xe1, 0x0b, 0x00, 0x00, 0x00,
        };
        char path[256];
        char junk[] = "\xfd"
                      "7zXZ\0 and then nothing of the kind";
        cleanup_free char *out = NULL;
        size_t len;
        struct err e;

        if (run_find("busybox", path, sizeof(path)) < 0)
                skip_because("busybox is not installed");
        assert_int_equal(unpack_any(xz, sizeof(xz), 4096, "x", &out, &len, &e), 0);
        assert_int_equal(len, 11);
        assert_memory_equal(out, "\177ELF hello\n", 11);
        free(TAKE_PTR(out));
        assert_int_equal(unpack_any(gz, sizeof(gz), 4096, "x", &out, &len, &e), 0);
        assert_int_equal(len, 11);
        assert_memory_equal(out, "\177ELF hello\n", 11);
        free(TAKE_PTR(out));
        assert_true(unpack_any(junk, sizeof(junk), 4096, "x.ko.xz", &out, &len, &e) < 0);
        assert_non_null(strstr(e.message, "x.ko.xz"));
}

/* A bzImage around @payload, as the boot protocol has it. */
static char *make_bzimage(const char *payload, uint32_t len, size_t *ret_len) {
        size_t start = 5 * 512 + 64;
        char *p = calloc(1, start + len);
        uint32_t off = 64;

        assert_non_null(p);
        p[0x1f1] = 4;
        memcpy(p + 0x202, "HdrS", 4);
        p[0x206] = 0x0f;
        p[0x207] = 0x02;
        memcpy(p + 0x248, &off, 4);
        memcpy(p + 0x24c, &len, 4);
        memcpy(p + start, payload, len);
        *ret_len = start + len;
        return p;
}

static void test_vmlinux(void **state) {
        size_t elf_len = 9 << 20, packed_len, image_len, out_len;
        cleanup_free char *elf = make_elf(elf_len), *packed = NULL, *image = NULL, *out = NULL;
        uint32_t size = (uint32_t) elf_len;
        struct err e;

        assert_int_equal(pack_lz4(elf, elf_len, &packed, &packed_len), 0);
        packed = realloc(packed, packed_len + 4); /* the size that the kernel's build appends */
        memcpy(packed + packed_len, &size, 4);
        image = make_bzimage(packed, (uint32_t) packed_len + 4, &image_len);
        assert_int_equal(unpack_vmlinux(image, image_len, &out, &out_len, &e), 0);
        assert_int_equal(out_len, elf_len);
        assert_memory_equal(out, elf, elf_len);

        /* refused: cut anywhere, no magic, a payload that points outside */
        static const size_t cuts[] = { 0, 1, 0x1f1, 0x202, 0x24f, 0x250, 5 * 512, 5 * 512 + 64 };
        for (size_t i = 0; i < ARRAY_LEN(cuts); i++) {
                cleanup_free char *copy = malloc(cuts[i] + 1), *none = NULL;
                memcpy(copy, image, cuts[i]);
                assert_int_equal(unpack_vmlinux(copy, cuts[i], &none, &out_len, &e), -EBADMSG);
                assert_null(none);
        }
        cleanup_free char *none = NULL;
        memset(image + 0x248, 0xff, 8);
        assert_int_equal(unpack_vmlinux(image, image_len, &none, &out_len, &e), -EBADMSG);
        image[0x202] = 'X';
        assert_int_equal(unpack_vmlinux(image, image_len, &none, &out_len, &e), -EBADMSG);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_cpio),        cmocka_unit_test(test_cpio_refuses),    cmocka_unit_test(test_elf_static),
                cmocka_unit_test(test_elf_modinfo), cmocka_unit_test(test_elf_damaged),     cmocka_unit_test(test_lz4_round_trip),
                cmocka_unit_test(test_limits),      cmocka_unit_test(test_busybox_formats), cmocka_unit_test(test_vmlinux),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
