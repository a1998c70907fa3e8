/* SPDX-License-Identifier: MIT */
/* Theory of operation: PAGEMAP_SCAN (Linux 6.7) walks the page table and returns runs of pages that are present
 * or swapped, not file-backed and not the shared zero page. Older kernels offer one 64-bit word per page in
 * /proc/<pid>/pagemap; there the zero page cannot be told from an anonymous one, so zero pages are copied too
 * and the writer finds that they are zero. The content comes by process_vm_readv, a megabyte at a time. */
#include "forkd/dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include "common/io.h"

#define PAGE SNAP_PAGE_SIZE
#define COPY_PAGES 256u
#define SCAN_RUNS 512u

/* Debian 12's headers are older than PAGEMAP_SCAN: from include/uapi/linux/fs.h of Linux 6.7. */
#ifndef PAGEMAP_SCAN
#define PAGE_IS_PRESENT (1u << 3)
#define PAGE_IS_SWAPPED (1u << 4)
#define PAGE_IS_FILE (1u << 2)
#define PAGE_IS_PFNZERO (1u << 5)
struct page_region {
        uint64_t start, end, categories;
};
struct pm_scan_arg {
        uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
        uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif

struct copier {
        pid_t pid;
        int pagemap;
        struct snap_writer *w;
        char *buf; /* COPY_PAGES pages */
        struct dirty_stats stats;
};

/* Copies @n pages at host address @addr as guest pages @first and following. */
static int copy_run(struct copier *c, uint64_t addr, uint64_t first, uint64_t n) {
        while (n > 0) {
                uint64_t now = MIN_OF(n, (uint64_t) COPY_PAGES);
                struct iovec local = { .iov_base = c->buf, .iov_len = now * PAGE };
                struct iovec remote = { .iov_base = (void *) (uintptr_t) addr, .iov_len = now * PAGE };
                ssize_t got = process_vm_readv(c->pid, &local, 1, &remote, 1, 0);
                int r;

                if (got < 0)
                        return -errno;
                if ((uint64_t) got != now * PAGE)
                        return -EFAULT;
                r = snap_writer_put(c->w, first, c->buf, now);
                if (r < 0)
                        return r;
                c->stats.pages += now;
                addr += now * PAGE;
                first += now;
                n -= now;
        }
        return 0;
}

static int copy_scanned(struct copier *c, const struct vmm_region *g) {
        struct page_region runs[SCAN_RUNS];
        uint64_t pos = g->host_addr, end = g->host_addr + g->size;

        while (pos < end) {
                struct pm_scan_arg arg = {
                        .size = sizeof(arg),
                        .start = pos,
                        .end = end,
                        .vec = (uintptr_t) runs,
                        .vec_len = SCAN_RUNS,
                        .category_inverted = PAGE_IS_FILE | PAGE_IS_PFNZERO,
                        .category_mask = PAGE_IS_FILE | PAGE_IS_PFNZERO,
                        .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                        .return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                };
                int n = ioctl(c->pagemap, PAGEMAP_SCAN, &arg);

                if (n < 0)
                        return -errno;
                for (int i = 0; i < n; i++) {
                        int r = copy_run(c, runs[i].start, (runs[i].start - g->host_addr + g->offset) / PAGE,
                                         (runs[i].end - runs[i].start) / PAGE);

                        if (r < 0)
                                return r;
                }
                if (arg.walk_end <= pos)
                        break; /* no progress: would be a bug of the kernel, not a reason to spin */
                pos = arg.walk_end;
        }
        return 0;
}

/* A word of /proc/<pid>/pagemap: bit 63 present, 62 swapped, 61 file-backed or shared. */
static bool word_is_dirty(uint64_t word) {
        return (word >> 62) != 0 && !(word >> 61 & 1);
}

static int copy_by_words(struct copier *c, const struct vmm_region *g) {
        uint64_t words[SCAN_RUNS], n_pages = g->size / PAGE;

        for (uint64_t page = 0; page < n_pages;) {
                uint64_t n = MIN_OF(n_pages - page, (uint64_t) SCAN_RUNS);
                int r = io_pread_full(c->pagemap, words, n * 8, (g->host_addr / PAGE + page) * 8);

                if (r < 0)
                        return r;
                for (uint64_t i = 0; i < n;) {
                        uint64_t run = 0;

                        while (i + run < n && word_is_dirty(words[i + run]))
                                run++;
                        if (run > 0) {
                                r = copy_run(c, g->host_addr + (page + i) * PAGE, g->offset / PAGE + page + i, run);
                                if (r < 0)
                                        return r;
                        }
                        i += run + 1;
                }
                page += n;
        }
        return 0;
}

int dirty_copy(pid_t pid, const struct vmm_region *regions, size_t n_regions, struct snap_writer *w,
               struct dirty_stats *ret) {
        struct copier c = { .pid = pid, .w = w };
        cleanup_fd int pagemap = -1;
        cleanup_free char *buf = NULL;
        char path[48];
        int r = 0;

        (void) snprintf(path, sizeof(path), "/proc/%d/pagemap", (int) pid);
        pagemap = open(path, O_RDONLY | O_CLOEXEC);
        if (pagemap < 0)
                return errno == ENOENT ? -ESRCH : -errno;
        buf = aligned_alloc(PAGE, COPY_PAGES * PAGE);
        if (!buf)
                return -ENOMEM;
        c.pagemap = pagemap;
        c.buf = buf;
        for (size_t i = 0; r == 0 && i < n_regions; i++) {
                if (regions[i].host_addr % PAGE || regions[i].size % PAGE || regions[i].offset % PAGE)
                        return -EFAULT;
                r = copy_scanned(&c, &regions[i]);
                if (r == -ENOTTY)
                        r = copy_by_words(&c, &regions[i]);
        }
        if (r == 0)
                *ret = c.stats;
        return r;
}
