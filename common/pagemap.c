/* SPDX-License-Identifier: MIT */
#include "common/pagemap.h"

#include <errno.h>
#include <sys/ioctl.h>

#include "common/io.h"

#define SCAN_RUNS 512u
#define SMALL_GAP 32u /* pages */

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

/* One walk: from where to where, and of what. */
struct walk {
        int fd;
        bool written; /* only what is not write-protected */
        uint64_t start, end;
        pagemap_fn *fn;
        void *arg;
};

/* @a says what is looked for. */
static int scan(const struct walk *w, struct pm_scan_arg a) {
        struct page_region runs[SCAN_RUNS];
        uint64_t pos = w->start;

        while (pos < w->end) {
                int n;

                a.size = sizeof(a);
                a.start = pos;
                a.end = w->end;
                a.vec = (uintptr_t) runs;
                a.vec_len = SCAN_RUNS;
                n = ioctl(w->fd, PAGEMAP_SCAN, &a);
                if (n < 0)
                        return -errno;
                for (int i = 0; i < n; i++) {
                        int r = w->fn(runs[i].start, (runs[i].end - runs[i].start) / PAGEMAP_PAGE, w->arg);

                        if (r != 0)
                                return r;
                }
                if (a.walk_end <= pos)
                        break; /* no progress: would be a bug of the kernel, not a reason to spin */
                pos = a.walk_end;
        }
        return 0;
}

/* PAGE_IS_WRITTEN is what is not write-protected, whoever did it. */
static int by_scan(const struct walk *w) {
        return scan(w, (struct pm_scan_arg){
                               .category_inverted = PAGE_IS_FILE | PAGE_IS_PFNZERO,
                               .category_mask = PAGE_IS_FILE | PAGE_IS_PFNZERO | (w->written ? PAGE_IS_WRITTEN : 0),
                               .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                               .return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                       });
}

/* What is not protected, whatever it is, to be looked at next. */
struct unprotected {
        const struct walk *w;
        uint64_t from, to;
};

static int look_at_unprotected(struct unprotected *u) {
        const struct walk *w = u->w;
        uint64_t from = u->from, to = u->to;

        u->from = u->to = 0;
        return from < to ? by_scan(&(struct walk){ w->fd, true, from, to, w->fn, w->arg }) : 0;
}

/* A call for what lies between two runs costs less than one more call. */
static int on_unprotected(uint64_t addr, uint64_t n, void *arg) {
        struct unprotected *u = arg;
        int r = 0;

        if (u->to == 0 || addr - u->to > SMALL_GAP * PAGEMAP_PAGE) {
                r = look_at_unprotected(u);
                u->from = addr;
        }
        u->to = addr + n * PAGEMAP_PAGE;
        return r;
}

/* A word of /proc/<pid>/pagemap: bit 63 present, 62 swapped, 61 file-backed or shared, 57 write-protected. */
static bool word_counts(const struct walk *w, uint64_t word) {
        return (word >> 62) != 0 && !(word >> 61 & 1) && !(w->written && word >> 57 & 1);
}

static int by_words(const struct walk *w) {
        uint64_t words[SCAN_RUNS], n_pages = (w->end - w->start) / PAGEMAP_PAGE;

        for (uint64_t page = 0; page < n_pages;) {
                uint64_t n = MIN_OF(n_pages - page, (uint64_t) SCAN_RUNS);
                int r = io_pread_full(w->fd, words, n * 8, (w->start / PAGEMAP_PAGE + page) * 8);

                if (r < 0)
                        return r;
                for (uint64_t i = 0; i < n;) {
                        uint64_t run = 0;

                        while (i + run < n && word_counts(w, words[i + run]))
                                run++;
                        if (run > 0) {
                                r = w->fn(w->start + (page + i) * PAGEMAP_PAGE, run, w->arg);
                                if (r != 0)
                                        return r;
                        }
                        i += run + 1;
                }
                page += n;
        }
        return 0;
}

static int walk(const struct walk *w, enum pagemap_method method) {
        int r = -ENOTTY;

        if (w->start % PAGEMAP_PAGE || w->end % PAGEMAP_PAGE || w->start > w->end)
                return -EFAULT;
        if (method != PAGEMAP_BY_WORDS)
                r = by_scan(w);
        return r == -ENOTTY && method != PAGEMAP_BY_SCAN ? by_words(w) : r;
}

int pagemap_written(int fd, enum pagemap_method method, uint64_t start, uint64_t end, pagemap_fn *fn, void *arg) {
        return walk(&(struct walk){ fd, true, start, end, fn, arg }, method);
}

int pagemap_anonymous(int fd, enum pagemap_method method, uint64_t start, uint64_t end, pagemap_fn *fn, void *arg) {
        return walk(&(struct walk){ fd, false, start, end, fn, arg }, method);
}

int pagemap_written_of_few(int fd, uint64_t start, uint64_t end, pagemap_fn *fn, void *arg) {
        struct walk w = { fd, true, start, end, fn, arg };
        struct unprotected u = { .w = &w };
        int r;

        if (start % PAGEMAP_PAGE || end % PAGEMAP_PAGE || start > end)
                return -EFAULT;
        /* With these masks alone the kernel looks at the entries of the page table, and not at the pages (pagemap_scan_pmd_entry in
         * fs/proc/task_mmu.c). */
        r = scan(&(struct walk){ fd, true, start, end, on_unprotected, &u },
                 (struct pm_scan_arg){ .category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN });
        if (r == 0)
                r = look_at_unprotected(&u);
        return r == -ENOTTY ? by_words(&w) : r;
}
