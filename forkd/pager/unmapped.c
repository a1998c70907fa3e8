/* SPDX-License-Identifier: MIT */
/* What a VMM has discarded of its guest's memory, without asking the pager that died.
 *
 * Theory of operation. libuffd-attach discards by laying fresh anonymous memory over the range (pager/attach/discard.c), so
 * what of a region is no mapping any more of a memory that the VMM was given was discarded. A discard that the dead pager had not heard of
 * yet still waits for somebody to read its event, which the successor does; one whose event it had read is in the mappings.
 *
 * There is one exception: at the limit of mappings a process may have the library writes zeros instead, and only the pager
 * knew. A VMM with that many mappings cannot be handed over. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "common/io.h"
#include "snapstore/format.h"

#define MAPS_RESERVE 1024 /* below the kernel's limit: how close it was in between nobody knows */
#define MAX_MAPS_DEFAULT 65530

/* The part of region @g that ends where the next mapping begins. */
static void put_gap(const struct pager_hold_region *g, uint64_t from, uint64_t to, struct mp_buf *b, uint64_t *n) {
        if (from >= to)
                return;
        mp_array(b, 2);
        mp_u64(b, (from - g->base + g->offset) / SNAP_PAGE_SIZE);
        mp_u64(b, (to - from) / SNAP_PAGE_SIZE);
        (*n)++;
}

/* Where each region has been looked at up to: mappings come in ascending order. */
struct scan {
        const struct pager_hold *hold;
        uint64_t at[PAGER_HOLD_REGIONS];
        uint64_t dev, ino;
        struct mp_buf *out;
        uint64_t n;
};

/* Discarded memory is anonymous: a file that we do not know is memory of which we were not told. */
static bool is_in_memory(const struct scan *s, uint64_t start, uint64_t end) {
        for (unsigned i = 0; i < s->hold->n_regions; i++)
                if (start < s->hold->region[i].base + s->hold->region[i].size && end > s->hold->region[i].base)
                        return true;
        return false;
}

static void on_mapping(struct scan *s, uint64_t start, uint64_t end, uint64_t file_offset) {
        for (unsigned i = 0; i < s->hold->n_regions; i++) {
                const struct pager_hold_region *g = &s->hold->region[i];
                uint64_t from = MAX_OF(start, g->base), to = MIN_OF(end, g->base + g->size);

                /* Elsewhere in the file it is not this memory. */
                if (from >= to || from - g->base + g->offset != from - start + file_offset)
                        continue;
                put_gap(g, s->at[i], from, s->out, &s->n);
                s->at[i] = to;
        }
}

int pager_unmapped_parse(FILE *maps, const struct pager_hold *hold, uint64_t max_maps, struct mp_buf *ret, uint64_t *ret_n) {
        struct scan s = { .hold = hold, .out = ret };
        cleanup_free char *line = NULL;
        uint64_t count = 0;
        size_t size = 0;
        struct stat st;

        if (fstat(hold->memfd, &st) < 0)
                return -errno;
        s.dev = st.st_dev;
        s.ino = st.st_ino;
        for (unsigned i = 0; i < hold->n_regions; i++)
                s.at[i] = hold->region[i].base;
        while (getline(&line, &size, maps) > 0) {
                uint64_t start, end, offset, ino;
                unsigned major, minor;

                count++;
                if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*4s %" SCNx64 " %x:%x %" SCNu64, &start, &end, &offset, &major, &minor,
                           &ino) != 6)
                        return -EBADMSG;
                if ((ino == s.ino && makedev(major, minor) == s.dev) || pager_hold_maps(hold, makedev(major, minor), ino))
                        on_mapping(&s, start, end, offset);
                else if (ino != 0 && is_in_memory(&s, start, end))
                        return -ESTALE;
        }
        if (ferror(maps))
                return -EIO;
        if (count == 0) /* a process that has ended has none */
                return -ESRCH;
        if (count + MAPS_RESERVE >= max_maps)
                return -E2BIG;
        for (unsigned i = 0; i < hold->n_regions; i++)
                put_gap(&hold->region[i], s.at[i], hold->region[i].base + hold->region[i].size, ret, &s.n);
        *ret_n = s.n;
        return ret->failed ? -ENOMEM : 0;
}

static uint64_t max_map_count(void) {
        cleanup_free char *text = NULL;

        if (io_read_file(AT_FDCWD, "/proc/sys/vm/max_map_count", 64, &text, NULL) < 0)
                return MAX_MAPS_DEFAULT;
        return strtoull(text, NULL, 10);
}

int pager_unmapped(const struct vm *vm, struct mp_buf *ret, uint64_t *ret_n) {
        cleanup_fclose FILE *f = NULL;
        char path[40];

        if (vm->hold.joined) { /* its memory is anonymous, and what it discards is as it was before it was written */
                *ret_n = 0;
                return 0;
        }
        (void) snprintf(path, sizeof(path), "/proc/%d/maps", (int) vm->hold.pid);
        f = fopen(path, "re");
        return f ? pager_unmapped_parse(f, &vm->hold, max_map_count(), ret, ret_n) : -errno;
}
