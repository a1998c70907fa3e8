/* SPDX-License-Identifier: MIT */
/* Where guest RAM is in QEMU's address space, as the attach library wrote it down, and the userfaultfd that waits there for
 * memory that is nobody's image yet. The file is one that a QEMU could write to. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/vmm/qemu.h"

#define LAYOUT_MAX 65536u
#define PAGE 4096u
#define ADDR_LIMIT (1ull << 56) /* user addresses with five-level page tables */

static int get_u64(const json_t *o, const char *key, uint64_t *ret) {
        const json_t *v = json_object_get(o, key);

        if (!json_is_integer(v) || json_integer_value(v) < 0)
                return -EBADMSG;
        *ret = (uint64_t) json_integer_value(v);
        return 0;
}

static int parse_region(const char *line, size_t len, uint64_t mem_bytes, struct vmm_region *ret) {
        cleanup_json json_t *o = json_loadb(line, len, 0, NULL);
        struct vmm_region g;

        if (!json_is_object(o) || get_u64(o, "host_addr", &g.host_addr) < 0 || get_u64(o, "size", &g.size) < 0 ||
            get_u64(o, "offset", &g.offset) < 0)
                return -EBADMSG;
        if (g.size == 0 || (g.host_addr | g.size | g.offset) % PAGE != 0)
                return -EBADMSG;
        if (g.size > mem_bytes || g.offset > mem_bytes - g.size)
                return -EBADMSG;
        if (g.size > ADDR_LIMIT || g.host_addr > ADDR_LIMIT - g.size)
                return -EBADMSG;
        *ret = g;
        return 0;
}

static bool overlap(const struct vmm_region *a, const struct vmm_region *b) {
        return (a->offset < b->offset + b->size && b->offset < a->offset + a->size) ||
               (a->host_addr < b->host_addr + b->size && b->host_addr < a->host_addr + a->size);
}

int qemu_layout_parse(const char *text, size_t len, uint64_t mem_bytes, struct vmm_region *ret, size_t max, size_t *ret_n) {
        uint64_t total = 0;
        size_t n = 0;

        while (len > 0) {
                const char *nl = memchr(text, '\n', len);
                size_t line = nl ? (size_t) (nl - text) : len;
                int r;

                if (!nl)
                        return -EBADMSG; /* cut */
                if (n == max)
                        return -E2BIG;
                r = parse_region(text, line, mem_bytes, &ret[n]);
                if (r < 0)
                        return r;
                for (size_t i = 0; i < n; i++)
                        if (overlap(&ret[i], &ret[n]))
                                return -EBADMSG;
                total += ret[n++].size;
                text += line + 1;
                len -= line + 1;
        }
        /* A page that no region covers would be missing from a snapshot. */
        if (total != mem_bytes)
                return -EBADMSG;
        *ret_n = n;
        return 0;
}

int qemu_layout_uffd(const char *text, size_t len, int *ret) {
        const char *nl = memchr(text, '\n', len);
        cleanup_json json_t *o = nl ? json_loadb(text, (size_t) (nl - text), 0, NULL) : NULL;
        uint64_t n;

        if (!json_is_object(o))
                return -EBADMSG;
        if (!json_object_get(o, "uffd"))
                return -ENOENT;
        if (get_u64(o, "uffd", &n) < 0 || n > INT_MAX)
                return -EBADMSG;
        *ret = (int) n;
        return 0;
}

/* ---- of one that runs ---- */

static int read_layout(struct vmm *v, const char *what, char **ret_text, size_t *ret_len, struct err *e) {
        int r;

        if (v->exited)
                return qemu_step_failed(v, -EPIPE, what, e);
        r = io_read_file(AT_FDCWD, v->layout_path, LAYOUT_MAX, ret_text, ret_len);
        return r < 0 ? err_errno(e, r, "reading %s", v->layout_path) : 0;
}

int qemu_ram_regions(struct vmm *v, struct vmm_region *ret, size_t max, size_t *ret_n, struct err *e) {
        cleanup_free char *text = NULL;
        size_t len;
        int r = read_layout(v, "finding the guest's memory", &text, &len, e);

        if (r < 0)
                return r;
        r = qemu_layout_parse(text, len, v->machine.mem_bytes, ret, max, ret_n);
        return r < 0 ? err_set(e, ERR_VMM, r, "%s does not describe %llu bytes of guest memory", v->layout_path,
                               (unsigned long long) v->machine.mem_bytes)
                     : 0;
}

/* The number is QEMU's word: what comes of it may be any file of its own. */
static bool is_uffd(int fd) {
        char path[32], target[64];
        ssize_t n;

        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        n = readlink(path, target, sizeof(target) - 1);
        if (n < 0)
                return false;
        target[n] = '\0';
        return strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

int qemu_idle_uffd(struct vmm *v, int *ret_fd, struct err *e) {
        cleanup_free char *text = NULL;
        cleanup_fd int fd = -1;
        int r, number = -1;
        size_t len;

        r = read_layout(v, "finding its userfaultfd", &text, &len, e);
        if (r < 0)
                return r;
        r = qemu_layout_uffd(text, len, &number);
        if (r < 0)
                return err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "its VMM has no userfaultfd");
        fd = (int) syscall(SYS_pidfd_getfd, v->pidfd, number, 0); /* CLOEXEC from birth */
        if (fd < 0)
                return err_errno(e, -errno, "fetching its VMM's userfaultfd");
        if (!is_uffd(fd))
                return err_set(e, ERR_VMM, -EBADF, "what its VMM names as its userfaultfd is none");
        *ret_fd = TAKE_FD(fd);
        return 0;
}
