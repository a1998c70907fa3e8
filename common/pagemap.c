/* SPDX-License-Identifier: MIT */
#include "common/pagemap.h"

#include <errno.h>
#include <sys/ioctl.h>

#include "common/io.h"

#define SCAN_RUNS 512u

/* Debian 12's headers are older than PAGEMAP_SCAN: from include/uapi/linux/fs.h of Linux 6.7. */
#ifndef PAGEMAP_SCAN
#define PAGE_IS_WRITTEN (1u << 1)
#define PAGE_IS_FILE (1u << 2)
#define PAGE_IS_PRESENT (1u << 3)
#define PAGE_IS_SWAPPED (1u << 4)
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

/* PAGE_IS_WRITTEN is what is not write-protected, whoever did it. */
static int by_scan(int fd, uint64_t pos, uint64_t end, pagemap_fn *fn, void *arg) {
        struct page_region runs[SCAN_RUNS];

        while (pos < end) {
                struct pm_scan_arg a = {
                        .size = sizeof(a),
                        .start = pos,
                        .end = end,
                        .vec = (uintptr_t) runs,
                        .vec_len = SCAN_RUNS,
                        .category_inverted = PAGE_IS_FILE | PAGE_IS_PFNZERO,
                        .category_mask = PAGE_IS_FILE | PAGE_IS_PFNZERO | PAGE_IS_WRITTEN,
                        .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                        .return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                };
                int n = ioctl(fd, PAGEMAP_SCAN, &a);

                if (n < 0)
                        return -errno;
                for (int i = 0; i < n; i++) {
                        int r = fn(runs[i].start, (runs[i].end - runs[i].start) / PAGEMAP_PAGE, arg);

                        if (r != 0)
                                return r;
                }
                if (a.walk_end <= pos)
                        break; /* no progress: would be a bug of the kernel, not a reason to spin */
                pos = a.walk_end;
        }
        return 0;
}

/* A word of /proc/<pid>/pagemap: bit 63 present, 62 swapped, 61 file-backed or shared, 57 write-protected. */
static bool word_is_written(uint64_t word) {
        return (word >> 62) != 0 && !(word >> 61 & 1) && !(word >> 57 & 1);
}

static int by_words(int fd, uint64_t start, uint64_t end, pagemap_fn *fn, void *arg) {
        uint64_t words[SCAN_RUNS], n_pages = (end - start) / PAGEMAP_PAGE;

        for (uint64_t page = 0; page < n_pages;) {
                uint64_t n = MIN_OF(n_pages - page, (uint64_t) SCAN_RUNS);
                int r = io_pread_full(fd, words, n * 8, (start / PAGEMAP_PAGE + page) * 8);

                if (r < 0)
                        return r;
                for (uint64_t i = 0; i < n;) {
                        uint64_t run = 0;

                        while (i + run < n && word_is_written(words[i + run]))
                                run++;
                        if (run > 0) {
                                r = fn(start + (page + i) * PAGEMAP_PAGE, run, arg);
                                if (r != 0)
                                        return r;
                        }
                        i += run + 1;
                }
                page += n;
        }
        return 0;
}

int pagemap_written(int fd, enum pagemap_method method, uint64_t start, uint64_t end, pagemap_fn *fn, void *arg) {
        int r = -ENOTTY;

        if (start % PAGEMAP_PAGE || end % PAGEMAP_PAGE || start > end)
                return -EFAULT;
        if (method != PAGEMAP_BY_WORDS)
                r = by_scan(fd, start, end, fn, arg);
        return r == -ENOTTY && method != PAGEMAP_BY_SCAN ? by_words(fd, start, end, fn, arg) : r;
}
