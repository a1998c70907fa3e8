/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * The file is a head, the runs, and the XXH3-64 of both. The head names the image's uuid: a working set that was left
 * beside another image (a copied directory, a restored backup) is told from one of this image and not used.
 *
 * Reading must be cheap and bounded whatever the file says: its size follows from the number of runs, which is capped,
 * and that no page is named twice is seen by sorting the runs, so it costs by their number and not by the RAM's size.
 *
 * Merging asks for single pages, so it keeps a bitmap of the RAM (32 MiB for the largest; untouched parts of it cost
 * nothing). It looks at no more pages than the old set and the RAM have together. */
#include "snapstore/workingset.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "common/io.h"

#define WORKINGSET_MAGIC "FORKDWKS"

struct disk_head {
        uint8_t magic[8];
        uint32_t version;
        uint32_t restores;
        uint8_t uuid[SNAP_UUID_LEN];
        uint64_t ram_pages;
        uint32_t n_runs;
        uint32_t reserved;
};
_Static_assert(sizeof(struct disk_head) == 48, "layout");

struct disk_run {
        uint32_t first, n;
};
_Static_assert(sizeof(struct disk_run) == 8, "layout");
_Static_assert(SNAP_MAX_RAM / SNAP_PAGE_SIZE <= UINT32_MAX, "a page's number fits");

#define SUM_LEN sizeof(uint64_t)
#define MIN_FILE (sizeof(struct disk_head) + SUM_LEN)
#define MAX_FILE (MIN_FILE + SNAP_WORKINGSET_MAX_RUNS * sizeof(struct disk_run))

static size_t file_len(size_t n_runs) {
        return MIN_FILE + n_runs * sizeof(struct disk_run);
}

void snap_workingset_clear(struct snap_workingset *w) {
        free(w->run);
        *w = (struct snap_workingset){};
}

static bool run_ok(const struct snap_run *r, uint64_t ram_pages) {
        return r->n > 0 && r->first < ram_pages && r->n <= ram_pages - r->first;
}

static int compare_first(const void *a, const void *b) {
        const struct snap_run *x = a, *y = b;

        return x->first < y->first ? -1 : x->first > y->first;
}

/* 1: every run lies in the RAM, no page is in two of them, and they have w->n_pages pages; 0: not so; -ENOMEM. */
static int whole(const struct snap_workingset *w, uint64_t ram_pages) {
        cleanup_free struct snap_run *sorted = NULL;
        uint64_t total = 0;

        if (w->n_runs == 0)
                return w->n_pages == 0;
        sorted = malloc(w->n_runs * sizeof(*sorted));
        if (!sorted)
                return -ENOMEM;
        memcpy(sorted, w->run, w->n_runs * sizeof(*sorted));
        qsort(sorted, w->n_runs, sizeof(*sorted), compare_first);
        for (size_t i = 0; i < w->n_runs; i++) {
                if (!run_ok(&sorted[i], ram_pages) || (i > 0 && sorted[i].first - sorted[i - 1].first < sorted[i - 1].n))
                        return 0;
                total += sorted[i].n; /* disjoint, so at most ram_pages */
        }
        return total == w->n_pages;
}

static bool ram_pages_ok(uint64_t ram_pages) {
        return ram_pages > 0 && ram_pages <= SNAP_MAX_RAM / SNAP_PAGE_SIZE;
}

int snap_workingset_encode(const struct snap_workingset *w, const uint8_t uuid[SNAP_UUID_LEN], uint64_t ram_pages,
                           void **ret_data, size_t *ret_len) {
        struct disk_head head = { .magic = WORKINGSET_MAGIC, .version = SNAP_WORKINGSET_VERSION };
        cleanup_free uint8_t *data = NULL;
        uint64_t sum;
        uint8_t *p;
        size_t len;
        int r;

        if (!ram_pages_ok(ram_pages) || w->n_runs > SNAP_WORKINGSET_MAX_RUNS)
                return -EINVAL;
        r = whole(w, ram_pages);
        if (r <= 0)
                return r < 0 ? r : -EINVAL;
        len = file_len(w->n_runs);
        data = malloc(len);
        if (!data)
                return -ENOMEM;
        head.restores = w->restores;
        memcpy(head.uuid, uuid, SNAP_UUID_LEN);
        head.ram_pages = ram_pages;
        head.n_runs = (uint32_t) w->n_runs;
        memcpy(data, &head, sizeof(head));
        p = data + sizeof(head);
        for (size_t i = 0; i < w->n_runs; i++, p += sizeof(struct disk_run)) {
                struct disk_run d = { (uint32_t) w->run[i].first, (uint32_t) w->run[i].n };

                memcpy(p, &d, sizeof(d));
        }
        sum = XXH3_64bits(data, len - SUM_LEN);
        memcpy(p, &sum, SUM_LEN);
        *ret_data = TAKE_PTR(data);
        *ret_len = len;
        return 0;
}

static int decode_runs(const uint8_t *p, size_t n, uint64_t ram_pages, struct snap_workingset *w) {
        if (n == 0)
                return 0;
        w->run = malloc(n * sizeof(*w->run));
        if (!w->run)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++, p += sizeof(struct disk_run)) {
                struct disk_run d;

                memcpy(&d, p, sizeof(d));
                w->run[i] = (struct snap_run){ d.first, d.n };
                w->n_pages += d.n; /* 2^16 runs of less than 2^32 pages */
        }
        w->n_runs = n;
        int r = whole(w, ram_pages);
        return r < 0 ? r : r ? 0 : -EBADMSG;
}

int snap_workingset_decode(const void *data, size_t len, const uint8_t uuid[SNAP_UUID_LEN], uint64_t ram_pages,
                           struct snap_workingset *ret) {
        cleanup_snap_workingset struct snap_workingset w = {};
        const uint8_t *p = data;
        struct disk_head head;
        uint64_t sum;
        int r;

        if (len < MIN_FILE || len > MAX_FILE)
                return -EBADMSG;
        memcpy(&head, p, sizeof(head));
        memcpy(&sum, p + len - SUM_LEN, SUM_LEN);
        if (memcmp(head.magic, WORKINGSET_MAGIC, sizeof(head.magic)) != 0 || sum != XXH3_64bits(p, len - SUM_LEN))
                return -EBADMSG;
        if (head.version != SNAP_WORKINGSET_VERSION)
                return -EPROTONOSUPPORT;
        if (head.reserved != 0 || head.n_runs > SNAP_WORKINGSET_MAX_RUNS || len != file_len(head.n_runs))
                return -EBADMSG;
        if (memcmp(head.uuid, uuid, SNAP_UUID_LEN) != 0 || head.ram_pages != ram_pages)
                return -ESTALE;
        w.restores = head.restores;
        r = decode_runs(p + sizeof(head), head.n_runs, ram_pages, &w);
        if (r < 0)
                return r;
        *ret = w;
        w = (struct snap_workingset){};
        return 0;
}

int snap_workingset_read(int fd, const uint8_t uuid[SNAP_UUID_LEN], uint64_t ram_pages, struct snap_workingset *ret) {
        cleanup_free void *data = NULL;
        struct stat st;
        int r;

        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode) || st.st_size < (off_t) MIN_FILE || st.st_size > (off_t) MAX_FILE)
                return -EBADMSG;
        data = malloc((size_t) st.st_size);
        if (!data)
                return -ENOMEM;
        r = io_pread_full(fd, data, (size_t) st.st_size, 0);
        return r < 0 ? r : snap_workingset_decode(data, (size_t) st.st_size, uuid, ram_pages, ret);
}

uint64_t snap_workingset_max_pages(uint64_t ram_pages) {
        uint64_t part = MAX_OF(ram_pages / SNAP_WORKINGSET_RAM_PART, SNAP_WORKINGSET_MIN_BYTES / SNAP_PAGE_SIZE);

        return MIN_OF(part, ram_pages);
}

/* ---- merging ---- */

struct merge {
        struct snap_workingset w;
        size_t cap;
        uint64_t max_pages;
        uint64_t *seen; /* a bit per page of the RAM: it is in w */
        bool full;
};

static void merge_clear(struct merge *m) {
        snap_workingset_clear(&m->w);
        free(m->seen);
}

/* Whether @page was new; it is seen from now on. */
static bool see(struct merge *m, uint64_t page) {
        uint64_t bit = 1ull << (page % 64), *word = &m->seen[page / 64];

        if (*word & bit)
                return false;
        *word |= bit;
        return true;
}

static int new_run(struct merge *m, uint64_t page) {
        struct snap_workingset *w = &m->w;

        if (w->n_runs == SNAP_WORKINGSET_MAX_RUNS) {
                m->full = true;
                return 0;
        }
        if (w->n_runs == m->cap) {
                size_t cap = m->cap ? m->cap * 2 : 64;
                struct snap_run *p = realloc(w->run, cap * sizeof(*p));

                if (!p)
                        return -ENOMEM;
                w->run = p;
                m->cap = cap;
        }
        w->run[w->n_runs++] = (struct snap_run){ page, 1 };
        w->n_pages++;
        return 0;
}

/* Appends the pages of @r that are not there yet. */
static int append(struct merge *m, const struct snap_run *r) {
        struct snap_workingset *w = &m->w;

        for (uint64_t page = r->first; page < r->first + r->n && !m->full; page++) {
                struct snap_run *last = w->n_runs ? &w->run[w->n_runs - 1] : NULL;

                if (w->n_pages == m->max_pages)
                        m->full = true;
                else if (!see(m, page))
                        continue;
                else if (last && last->first + last->n == page) {
                        last->n++;
                        w->n_pages++;
                } else {
                        int res = new_run(m, page);

                        if (res < 0)
                                return res;
                }
        }
        return 0;
}

static bool recording_ok(const struct snap_run *run, size_t n_runs, uint64_t ram_pages) {
        uint64_t total = 0;

        for (size_t i = 0; i < n_runs; i++) {
                if (!run_ok(&run[i], ram_pages) || run[i].n > ram_pages - total)
                        return false;
                total += run[i].n;
        }
        return true;
}

int snap_workingset_merge(const struct snap_workingset *old, const struct snap_run *run, size_t n_runs, uint64_t ram_pages,
                          uint64_t max_pages, struct snap_workingset *ret, uint64_t *ret_new) {
        attr_cleanup(merge_clear) struct merge m = { .max_pages = max_pages };
        uint64_t n_old;
        int r = 0;

        if (!ram_pages_ok(ram_pages) || !recording_ok(run, n_runs, ram_pages) ||
            (old && !recording_ok(old->run, old->n_runs, ram_pages)))
                return -EINVAL;
        m.seen = calloc(ram_pages / 64 + 1, sizeof(*m.seen));
        if (!m.seen)
                return -ENOMEM;
        m.w.restores = 1;
        if (old) {
                m.w.restores = old->restores == UINT32_MAX ? UINT32_MAX : old->restores + 1;
                for (size_t i = 0; r == 0 && i < old->n_runs; i++)
                        r = append(&m, &old->run[i]);
        }
        n_old = m.w.n_pages;
        for (size_t i = 0; r == 0 && i < n_runs; i++)
                r = append(&m, &run[i]);
        if (r < 0)
                return r;
        if (ret_new)
                *ret_new = m.w.n_pages - n_old;
        *ret = m.w;
        m.w = (struct snap_workingset){};
        return 0;
}
