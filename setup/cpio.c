/* SPDX-License-Identifier: MIT */
/* newc: for each entry a header of 13 fields of eight hex digits behind the magic "070701", the name with
 * its NUL, padding to four bytes, the content, padding to four bytes. The entry "TRAILER!!!" ends it.
 * Described in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. */
#include "setup/cpio.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

static int reserve(struct cpio *c, size_t more) {
        if (c->r < 0)
                return c->r;
        if (more > CPIO_MAX_BYTES - c->len)
                return c->r = -EFBIG;
        if (c->len + more <= c->cap)
                return 0;

        size_t cap = MAX_OF(c->cap * 2, (size_t) 64 << 10);
        cap = MAX_OF(cap, c->len + more);
        uint8_t *p = realloc(c->data, cap);
        if (!p)
                return c->r = -ENOMEM;
        c->data = p;
        c->cap = cap;
        return 0;
}

static void put(struct cpio *c, const void *data, size_t len) {
        if (len > 0 && reserve(c, len) == 0) {
                memcpy(c->data + c->len, data, len);
                c->len += len;
        }
}

static void pad(struct cpio *c) {
        static const char zero[4];

        put(c, zero, (4 - c->len % 4) % 4);
}

static void entry(struct cpio *c, const char *path, unsigned mode, unsigned major, unsigned minor, const void *data, size_t len) {
        size_t namelen = strlen(path) + 1;
        char head[6 + 13 * 8 + 1];

        if (c->r < 0)
                return;
        if (namelen == 1 || namelen > CPIO_MAX_NAME || path[0] == '/' || len > CPIO_MAX_BYTES) {
                c->r = -EINVAL;
                return;
        }
        /* ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize check */
        (void) snprintf(head, sizeof(head), "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", ++c->ino, mode, 0u, 0u,
                        S_ISDIR(mode) ? 2u : 1u, 0u, (unsigned) len, 0u, 0u, major, minor, (unsigned) namelen, 0u);
        put(c, head, sizeof(head) - 1);
        put(c, path, namelen);
        pad(c);
        put(c, data, len);
        pad(c);
}

void cpio_dir(struct cpio *c, const char *path, unsigned mode) {
        entry(c, path, S_IFDIR | mode, 0, 0, NULL, 0);
}

void cpio_file(struct cpio *c, const char *path, unsigned mode, const void *data, size_t len) {
        entry(c, path, S_IFREG | mode, 0, 0, data, len);
}

void cpio_symlink(struct cpio *c, const char *path, const char *target) {
        entry(c, path, S_IFLNK | 0777, 0, 0, target, strlen(target));
}

void cpio_chardev(struct cpio *c, const char *path, unsigned mode, unsigned major, unsigned minor) {
        entry(c, path, S_IFCHR | mode, major, minor, NULL, 0);
}

int cpio_finish(struct cpio *c) {
        c->ino = UINT32_MAX; /* the trailer's number is 0 */
        entry(c, "TRAILER!!!", 0, 0, 0, NULL, 0);
        return c->r;
}

void cpio_clear(struct cpio *c) {
        free(c->data);
        *c = (struct cpio){ 0 };
}
