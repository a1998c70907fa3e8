/* SPDX-License-Identifier: MIT */
/* A bzImage is a real-mode stub, a decompressor, and the ELF kernel as compressed payload, whose place the
 * setup header tells (Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, "HdrS" at 0x202, protocol
 * version at 0x206, payload_offset at 0x248, payload_length at 0x24c; four bytes with the uncompressed
 * size stand behind the payload and count as part of it).
 *
 * Guests boot the ELF kernel directly (its PVH entry): that saves the guest the decompression, 0.2 s of
 * 1.7 s without KVM, and leaves neither the compressed kernel nor the decompressor's heap behind in the guest's
 * memory. A guest of 256 MiB that has just booted has 65 MiB of pages that are not zero instead of 91, and
 * 15 MiB of them when compressed instead of 35: that is its first snapshot. It is also the only form that
 * Firecracker takes. */
#include "setup/unpack.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <lz4.h>
#include <lz4hc.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <zstd.h>

#include "common/io.h"
#include "setup/run.h"

#define LZ4_LEGACY_MAGIC 0x184c2102u
#define LZ4_LEGACY_BLOCK (8u << 20)
#define UNPACK_TIMEOUT_MS 60000

static uint32_t get_le32(const char *p) {
        const unsigned char *u = (const unsigned char *) p;

        return (uint32_t) u[0] | (uint32_t) u[1] << 8 | (uint32_t) u[2] << 16 | (uint32_t) u[3] << 24;
}

static void put_le32(char *p, uint32_t v) {
        for (int i = 0; i < 4; i++)
                p[i] = (char) (v >> (8 * i));
}

/* The output grows block by block, so a lying size cannot make us allocate @max at once. */
static int unpack_lz4(const char *data, size_t len, size_t max, char **ret, size_t *ret_len) {
        cleanup_free char *out = NULL;
        size_t n = 0, pos = 4;

        while (len - pos >= 4) {
                size_t block = get_le32(data + pos);
                if (block == LZ4_LEGACY_MAGIC) { /* another stream follows */
                        pos += 4;
                        continue;
                }
                if (block == 0 || block > len - pos - 4)
                        break; /* the kernel's own: what stands behind the last block is its size field */
                size_t room = MIN_OF((size_t) LZ4_LEGACY_BLOCK, max - n);
                char *p = realloc(out, n + room + 1);
                if (!p)
                        return -ENOMEM;
                out = p;
                int got = LZ4_decompress_safe(data + pos + 4, out + n, (int) block, (int) room);
                if (got < 0)
                        return max - n < LZ4_LEGACY_BLOCK ? -EFBIG : -EBADMSG;
                n += (size_t) got;
                pos += 4 + block;
        }
        if (n == 0)
                return -EBADMSG;
        *ret = TAKE_PTR(out);
        *ret_len = n;
        return 0;
}

static int unpack_zstd(const void *data, size_t len, size_t max, char **ret, size_t *ret_len) {
        size_t frame = ZSTD_findFrameCompressedSize(data, len);
        if (ZSTD_isError(frame))
                return -EBADMSG;
        unsigned long long size = ZSTD_getFrameContentSize(data, frame);
        size_t cap = size == ZSTD_CONTENTSIZE_UNKNOWN ? max : (size_t) size;
        if (size == ZSTD_CONTENTSIZE_ERROR)
                return -EBADMSG;
        if (size != ZSTD_CONTENTSIZE_UNKNOWN && size > max)
                return -EFBIG;

        cleanup_free char *out = malloc(cap + 1);
        if (!out)
                return -ENOMEM;
        size_t n = ZSTD_decompress(out, cap, data, frame);
        if (ZSTD_isError(n))
                return -EBADMSG;
        *ret = TAKE_PTR(out);
        *ret_len = n;
        return 0;
}

/* xz and gzip are left to busybox, which setup needs anyway: the guest runs on it. Its exit status is no
 * use here, because it complains about the bytes behind a kernel's payload; the result is judged instead. */
static int unpack_busybox(const char *applet, const void *data, size_t len, size_t max, char **ret, size_t *ret_len,
                          struct err *e) {
        cleanup_fd int in = memfd_create("packed", MFD_CLOEXEC), out = memfd_create("unpacked", MFD_CLOEXEC);
        char path[64];
        struct stat st;

        if (in < 0 || out < 0)
                return -errno;
        int r = io_write_full(in, data, len);
        if (r < 0)
                return r;
        (void) snprintf(path, sizeof(path), "/proc/%d/fd/%d", getpid(), in);
        const struct run_params rp = {
                .argv = (const char *[]){ "busybox", applet, "-c", path, NULL },
                .timeout_ms = UNPACK_TIMEOUT_MS,
                .stdout_fd = out,
        };
        int run = run_program(&rp, NULL, e);
        if (fstat(out, &st) < 0)
                return -errno;
        if (st.st_size == 0)
                return run < 0 ? run : -EBADMSG;
        if ((uint64_t) st.st_size > max)
                return -EFBIG;

        cleanup_free char *buf = malloc((size_t) st.st_size + 1);
        if (!buf)
                return -ENOMEM;
        r = io_pread_full(out, buf, (size_t) st.st_size, 0);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(buf);
        *ret_len = (size_t) st.st_size;
        return 0;
}

static int unpack_plain(const void *data, size_t len, size_t max, char **ret, size_t *ret_len) {
        if (len > max)
                return -EFBIG;
        char *p = malloc(len + 1);
        if (!p)
                return -ENOMEM;
        memcpy(p, data, len);
        *ret = p;
        *ret_len = len;
        return 0;
}

int unpack_any(const void *data, size_t len, size_t max, const char *what, char **ret, size_t *ret_len, struct err *e) {
        int r = -EBADMSG;

        if (len >= 6) {
                if (get_le32(data) == LZ4_LEGACY_MAGIC)
                        r = unpack_lz4(data, len, max, ret, ret_len);
                else if (get_le32(data) == ZSTD_MAGICNUMBER)
                        r = unpack_zstd(data, len, max, ret, ret_len);
                else if (memcmp(data,
                                "\xfd"
                                "7zXZ",
                                6) == 0)
                        r = unpack_busybox("unxz", data, len, max, ret, ret_len, e);
                else if (memcmp(data, "\x1f\x8b", 2) == 0)
                        r = unpack_busybox("gunzip", data, len, max, ret, ret_len, e);
                else if (memcmp(data, ELFMAG, SELFMAG) == 0)
                        r = unpack_plain(data, len, max, ret, ret_len);
        }
        return r < 0 ? err_errno(e, r, "cannot unpack %s", what) : 0;
}

int unpack_vmlinux(const void *data, size_t len, char **ret, size_t *ret_len, struct err *e) {
        const char *p = data;

        if (len < 0x250 || memcmp(p + 0x202, "HdrS", 4) != 0 || (get_le32(p + 0x206) & 0xffff) < 0x0208)
                return err_set(e, ERR_CORRUPT, -EBADMSG, "the kernel image is no bzImage");
        size_t setup_sects = (unsigned char) p[0x1f1] ? (unsigned char) p[0x1f1] : 4;
        uint64_t start = (setup_sects + 1) * 512 + (uint64_t) get_le32(p + 0x248);
        uint64_t size = get_le32(p + 0x24c);
        if (start > len || size > len - start || size < 4)
                return err_set(e, ERR_CORRUPT, -EBADMSG, "the kernel image is cut short");

        cleanup_free char *elf = NULL;
        size_t elf_len;
        int r = unpack_any(p + start, (size_t) size, UNPACK_MAX_KERNEL, "the kernel image", &elf, &elf_len, e);
        if (r < 0)
                return r;
        if (elf_len < SELFMAG || memcmp(elf, ELFMAG, SELFMAG) != 0)
                return err_set(e, ERR_CORRUPT, -EBADMSG, "what the kernel image holds is no ELF file");
        *ret = TAKE_PTR(elf);
        *ret_len = elf_len;
        return 0;
}

int pack_lz4(const void *data, size_t len, char **ret, size_t *ret_len) {
        size_t blocks = len / LZ4_LEGACY_BLOCK + 1;
        cleanup_free char *out = malloc(4 + blocks * (4 + (size_t) LZ4_compressBound((int) LZ4_LEGACY_BLOCK)));
        size_t n = 4;

        if (!out)
                return -ENOMEM;
        put_le32(out, LZ4_LEGACY_MAGIC);
        for (size_t pos = 0; pos < len; pos += LZ4_LEGACY_BLOCK) {
                int size = (int) MIN_OF(len - pos, (size_t) LZ4_LEGACY_BLOCK);
                int got = LZ4_compress_HC((const char *) data + pos, out + n + 4, size, LZ4_compressBound(size),
                                          LZ4HC_CLEVEL_DEFAULT);
                if (got <= 0)
                        return -EIO;
                put_le32(out + n, (uint32_t) got);
                n += 4 + (size_t) got;
        }
        *ret = TAKE_PTR(out);
        *ret_len = n;
        return 0;
}
