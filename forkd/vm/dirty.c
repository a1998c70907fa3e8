/* SPDX-License-Identifier: MIT */
/* Theory of operation: the kernel tells which pages are the guest's own (common/pagemap.h); where it cannot tell the shared
 * zero page from them it is copied too, and the writer finds that it is zero. What is write-protected has not changed since
 * the VM was forked last, and is in the snapshot of that time. The content comes by process_vm_readv, many runs at a time.
 *
 * Reading is what the guest is paused for, compressing is not: pages are gathered in a buffer, which is written
 * when the guest runs again. Only a guest that dirtied more than the buffer holds waits for the rest. */
#include "forkd/vm/dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/io.h"
#include "common/pagemap.h"

#define PAGE SNAP_PAGE_SIZE
#define READ_RUNS 1024u         /* UIO_MAXIOV */
#define BUFFER_PAGES (64u << 8) /* 64 MiB */
#define MAX_MAPS (8u << 20)     /* /proc/<pid>/maps: a QEMU has some hundred lines */
#define KEEP_PAGES (8u << 8)    /* of it stay with an idle worker */

/* Debian 12's headers are older: from include/uapi/linux/fs.h of Linux 6.11. Which mapping covers an address. */
#ifndef PROCMAP_QUERY
#define PROCMAP_QUERY_VMA_SHARED 0x08
struct procmap_query {
        uint64_t size, query_flags, query_addr, vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
        uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
        uint64_t vma_name_addr, build_id_addr;
};
#define PROCMAP_QUERY _IOWR('f', 17, struct procmap_query)
#endif

struct run {
        uint64_t first, n; /* guest pages */
};

struct dirty_buf {
        char *data; /* BUFFER_PAGES pages, mapped; touched as far as needed */
        struct run *runs;
        size_t n_pages, n_runs;
};

int dirty_buf_new(struct dirty_buf **ret) {
        struct dirty_buf *b = calloc(1, sizeof(*b));

        if (!b)
                return -ENOMEM;
        b->runs = calloc(BUFFER_PAGES, sizeof(*b->runs));
        b->data = mmap(NULL, (size_t) BUFFER_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
        if (b->data == MAP_FAILED)
                b->data = NULL;
        if (!b->runs || !b->data) {
                dirty_buf_free(b);
                return -ENOMEM;
        }
        *ret = b;
        return 0;
}

void dirty_buf_free(struct dirty_buf *b) {
        if (!b)
                return;
        if (b->data)
                (void) munmap(b->data, (size_t) BUFFER_PAGES * PAGE);
        free(b->runs);
        free(b);
}

void dirty_buf_clear(struct dirty_buf *b) {
        if (b->n_pages > KEEP_PAGES)
                (void) madvise(b->data + (size_t) KEEP_PAGES * PAGE, (b->n_pages - KEEP_PAGES) * PAGE, MADV_DONTNEED);
        b->n_pages = b->n_runs = 0;
}

int dirty_buf_write(struct dirty_buf *b, struct snap_writer *w) {
        const char *data = b->data;
        int r = 0;

        for (size_t i = 0; r == 0 && i < b->n_runs; i++) {
                r = snap_writer_put(w, b->runs[i].first, data, b->runs[i].n);
                data += b->runs[i].n * PAGE;
        }
        dirty_buf_clear(b);
        return r;
}

/* ---- reading ---- */

struct copier {
        pid_t pid;
        int pagemap;
        struct dirty_buf *buf;
        struct snap_writer *w;
        struct iovec remote[READ_RUNS]; /* to be read into the buffer next */
        size_t n_remote, pending;       /* pending: their pages */
        struct dirty_stats stats;
};

/* Reads what add_run has gathered. */
static int read_pending(struct copier *c) {
        struct iovec local = { .iov_base = c->buf->data + c->buf->n_pages * PAGE, .iov_len = c->pending * PAGE };
        ssize_t got;

        if (c->pending == 0)
                return 0;
        got = process_vm_readv(c->pid, &local, 1, c->remote, c->n_remote, 0);
        if (got < 0)
                return -errno;
        if ((size_t) got != local.iov_len)
                return -EFAULT;
        c->buf->n_pages += c->pending;
        c->stats.pages += c->pending;
        c->n_remote = c->pending = 0;
        return 0;
}

/* @n pages at host address @addr are guest pages @first and following. */
static int add_run(struct copier *c, uint64_t addr, uint64_t first, uint64_t n) {
        if (!c->buf) { /* they are only counted */
                c->stats.pages += n;
                return 0;
        }
        while (n > 0) {
                struct dirty_buf *b = c->buf;
                uint64_t now = MIN_OF(n, (uint64_t) (BUFFER_PAGES - b->n_pages - c->pending));
                int r = 0;

                if (now == 0 || c->n_remote == READ_RUNS) {
                        r = read_pending(c);
                        if (r == 0 && now == 0)
                                r = dirty_buf_write(b, c->w); /* more than fits: the rest of this has to be compressed now */
                        if (r < 0)
                                return r;
                        continue;
                }
                c->remote[c->n_remote++] = (struct iovec){ .iov_base = (void *) (uintptr_t) addr, .iov_len = now * PAGE };
                c->pending += now;
                b->runs[b->n_runs++] = (struct run){ .first = first, .n = now };
                addr += now * PAGE;
                first += now;
                n -= now;
        }
        return 0;
}

static const enum pagemap_method how[] = {
        [DIRTY_ANY] = PAGEMAP_ANY,
        [DIRTY_SCAN] = PAGEMAP_BY_SCAN,
        [DIRTY_WORDS] = PAGEMAP_BY_WORDS,
};

struct found {
        struct copier *c;
        const struct vmm_region *g;
};

static int on_run(uint64_t addr, uint64_t n, void *arg) {
        const struct found *f = arg;

        return add_run(f->c, addr, (addr - f->g->host_addr + f->g->offset) / PAGE, n);
}

static int copy_region(struct copier *c, enum dirty_method method, const struct vmm_region *g) {
        struct found f = { c, g };

        return pagemap_written(c->pagemap, how[method], g->host_addr, g->host_addr + g->size, on_run, &f);
}

/* ---- is it as described ---- */

/* A range that is not mapped, or is mapped shared, has no dirty pages: an image made of it would lack what the
 * guest wrote, and nobody would notice. So all of @regions must be private mappings. Done after the copy: what is
 * mapped then was mapped all the time, and the process lives. */
static int check_by_query(pid_t pid, const struct vmm_region *regions, size_t n_regions) {
        cleanup_fd int fd = -1;
        char path[48];

        (void) snprintf(path, sizeof(path), "/proc/%d/maps", (int) pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? -ESRCH : -errno;
        for (size_t i = 0; i < n_regions; i++) {
                uint64_t pos = regions[i].host_addr, end = pos + regions[i].size;

                while (pos < end) {
                        struct procmap_query q = { .size = sizeof(q), .query_addr = pos };

                        if (ioctl(fd, PROCMAP_QUERY, &q) < 0)
                                return errno == ENOENT ? -EFAULT : -errno;
                        if (q.vma_flags & PROCMAP_QUERY_VMA_SHARED || q.vma_end <= pos)
                                return -EFAULT;
                        pos = q.vma_end;
                }
        }
        return 0;
}

/* The same on older kernels: half a millisecond of the guest's pause, for the text of some hundred mappings. @todo,
 * one per region, is how far it is known to be private. */
static int check_by_text(pid_t pid, const struct vmm_region *regions, size_t n_regions) {
        cleanup_free uint64_t *todo = calloc(n_regions + 1, sizeof(*todo));
        cleanup_free char *text = NULL;
        char path[48];
        size_t len;
        int r;

        if (!todo)
                return -ENOMEM;
        (void) snprintf(path, sizeof(path), "/proc/%d/maps", (int) pid);
        r = io_read_file(AT_FDCWD, path, MAX_MAPS, &text, &len);
        if (r < 0 || len == 0) /* a zombie has no mappings */
                return r == -ENOENT || r == 0 ? -ESRCH : r;
        for (size_t i = 0; i < n_regions; i++)
                todo[i] = regions[i].host_addr;
        for (char *line = text, *next; line; line = next) {
                uint64_t start, end;
                char perms[5];

                next = strchr(line, '\n');
                if (next)
                        *next++ = '\0'; /* or sscanf would measure all of the rest, each time */
                if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, perms) != 3)
                        continue;
                for (size_t i = 0; i < n_regions; i++)
                        if (perms[3] == 'p' && start <= todo[i] && todo[i] < end)
                                todo[i] = end;
        }
        for (size_t i = 0; i < n_regions; i++)
                if (todo[i] < regions[i].host_addr + regions[i].size)
                        return -EFAULT;
        return 0;
}

static int check_mappings(enum dirty_method method, pid_t pid, const struct vmm_region *regions, size_t n_regions) {
        int r = method == DIRTY_WORDS ? -ENOTTY : check_by_query(pid, regions, n_regions);

        return r == -ENOTTY ? check_by_text(pid, regions, n_regions) : r;
}

static int open_pagemap(pid_t pid, int *ret_fd) {
        char path[48];
        int fd;

        (void) snprintf(path, sizeof(path), "/proc/%d/pagemap", (int) pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? -ESRCH : -errno;
        *ret_fd = fd;
        return 0;
}

static bool region_valid(const struct vmm_region *g) {
        return g->host_addr % PAGE == 0 && g->size % PAGE == 0 && g->offset % PAGE == 0 && g->size <= SNAP_MAX_RAM &&
               g->host_addr <= UINT64_MAX - g->size && g->offset <= SNAP_MAX_RAM - g->size;
}

int dirty_copy_by(enum dirty_method method, pid_t pid, const struct vmm_region *regions, size_t n_regions, struct dirty_buf *buf,
                  struct snap_writer *w, struct dirty_stats *ret) {
        cleanup_free struct copier *c = calloc(1, sizeof(*c));
        cleanup_fd int pagemap = -1;
        int r = 0;

        if (!c)
                return -ENOMEM;
        r = open_pagemap(pid, &pagemap);
        if (r < 0)
                return r;
        if (buf)
                dirty_buf_clear(buf);
        c->pid = pid;
        c->w = w;
        c->buf = buf;
        c->pagemap = pagemap;
        for (size_t i = 0; r == 0 && i < n_regions; i++) {
                if (!region_valid(&regions[i]))
                        return -EFAULT;
                r = copy_region(c, method, &regions[i]);
        }
        if (r == 0 && buf)
                r = read_pending(c);
        if (r == 0 && buf) /* a count is an estimate: a microsecond for each of some hundred mappings is better saved */
                r = check_mappings(method, pid, regions, n_regions);
        if (r == 0)
                *ret = c->stats;
        return r;
}

int dirty_copy(pid_t pid, const struct vmm_region *regions, size_t n_regions, struct dirty_buf *buf, struct snap_writer *w,
               struct dirty_stats *ret) {
        return dirty_copy_by(DIRTY_ANY, pid, regions, n_regions, buf, w, ret);
}

int dirty_count(pid_t pid, const struct vmm_region *regions, size_t n_regions, uint64_t *ret) {
        struct dirty_stats stats;
        int r = dirty_copy_by(DIRTY_ANY, pid, regions, n_regions, NULL, NULL, &stats);

        if (r == 0)
                *ret = stats.pages;
        return r;
}

/* ---- what was discarded ---- */

/* Of a region of the VMM: what is not anonymous is put, in the gaps between the runs that are. */
struct gaps {
        const struct vmm_region *g;
        struct snap_writer *w;
        uint64_t at; /* host address: looked at up to here */
};

static int put_gap(struct gaps *z, uint64_t to) {
        uint64_t n = (to - z->at) / PAGE;

        return n > 0 ? snap_writer_put_zero(z->w, (z->at - z->g->host_addr + z->g->offset) / PAGE, n) : 0;
}

static int on_anonymous(uint64_t addr, uint64_t n, void *arg) {
        struct gaps *z = arg;
        int r = put_gap(z, addr);

        z->at = addr + n * PAGE;
        return r;
}

static const struct vmm_region *region_of(const struct vmm_region *regions, size_t n, uint64_t offset) {
        for (size_t i = 0; i < n; i++)
                if (offset >= regions[i].offset && offset - regions[i].offset < regions[i].size)
                        return &regions[i];
        return NULL;
}

int dirty_put_discarded_by(enum dirty_method method, pid_t pid, const struct vmm_region *regions, size_t n_regions,
                           const struct dirty_range *gone, size_t n_gone, struct snap_writer *w) {
        cleanup_fd int pagemap = -1;
        int r = 0;

        if (n_gone == 0)
                return 0;
        for (size_t i = 0; i < n_regions; i++)
                if (!region_valid(&regions[i]))
                        return -EFAULT;
        r = open_pagemap(pid, &pagemap);
        for (size_t i = 0; r == 0 && i < n_gone; i++) {
                uint64_t at = gone[i].first * PAGE, end;

                if (gone[i].first > SNAP_MAX_RAM / PAGE || gone[i].n > SNAP_MAX_RAM / PAGE)
                        return -ERANGE;
                end = at + gone[i].n * PAGE;
                while (r == 0 && at < end) {
                        const struct vmm_region *g = region_of(regions, n_regions, at);
                        struct gaps z = { .g = g, .w = w };
                        uint64_t stop;

                        if (!g)
                                return -ERANGE;
                        stop = MIN_OF(end, g->offset + g->size);
                        z.at = g->host_addr + (at - g->offset);
                        r = pagemap_anonymous(pagemap, how[method], z.at, z.at + (stop - at), on_anonymous, &z);
                        if (r == 0)
                                r = put_gap(&z, g->host_addr + (stop - g->offset));
                        at = stop;
                }
        }
        return r;
}

int dirty_put_discarded(pid_t pid, const struct vmm_region *regions, size_t n_regions, const struct dirty_range *gone,
                        size_t n_gone, struct snap_writer *w) {
        return dirty_put_discarded_by(DIRTY_ANY, pid, regions, n_regions, gone, n_gone, w);
}

/* ---- out of a nascent image's memory ---- */

/* Read, never mapped: what touches a hole through a mapping fills it. */
int dirty_copy_memfd(int memfd, struct dirty_buf *buf, struct snap_writer *w, uint64_t *ret) {
        uint64_t total = 0;
        off_t at = 0;

        dirty_buf_clear(buf);
        for (;;) {
                off_t data = lseek(memfd, at, SEEK_DATA), hole;

                if (data < 0 && errno == ENXIO)
                        break;
                hole = data < 0 ? -1 : lseek(memfd, data, SEEK_HOLE);
                if (hole < 0)
                        return -errno;
                if (data % PAGE || hole % PAGE || hole <= data)
                        return -EFAULT;
                for (at = data; at < hole;) {
                        size_t n = MIN_OF((size_t) (hole - at), (size_t) KEEP_PAGES * PAGE);
                        int r = io_pread_full(memfd, buf->data, n, (uint64_t) at);

                        if (r == 0)
                                r = snap_writer_put(w, (uint64_t) at / PAGE, buf->data, n / PAGE);
                        if (r < 0)
                                return r;
                        total += n / PAGE;
                        at += (off_t) n;
                }
        }
        *ret = total;
        return 0;
}
