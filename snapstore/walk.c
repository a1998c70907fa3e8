/* SPDX-License-Identifier: MIT */
/* Walks over a whole image: verify, dump to a raw file, compact. All go region by region, in the order of
 * guest pages, and decode each live frame once. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "snapstore/image_internal.h"
#include "snapstore/writer.h"

#define REGION_BYTES ((size_t) SNAP_REGION_PAGES * SNAP_PAGE_SIZE)

int snap_region_read(struct snap_image *img, struct snap_decoder *d, uint64_t region, void *buf,
                     uint64_t ret_bitmap[SNAP_REGION_PAGES / 64]) {
        uint64_t bitmap[SNAP_REGION_PAGES / 64] = {};
        struct snap_loc locs[SNAP_REGION_PAGES];
        const struct snap_leaf *leaf;
        unsigned n_locs, n_pages = 0;
        int r;

        r = snap_image_region_frames(img, region, locs, &n_locs);
        if (r < 0)
                return r;
        for (unsigned i = 0; i < n_locs; i++) {
                struct snap_frame frame;

                r = snap_image_decode(img, d, &locs[i], d->page_buf, &frame);
                if (r < 0)
                        return r;
                for (unsigned k = 0; k < frame.n_pages; k++) {
                        unsigned place = (unsigned) (frame.page[k] % SNAP_REGION_PAGES);

                        if (!(frame.live_mask >> k & 1))
                                continue;
                        memcpy((uint8_t *) buf + (size_t) place * SNAP_PAGE_SIZE, d->page_buf + (size_t) k * SNAP_PAGE_SIZE,
                               SNAP_PAGE_SIZE);
                        bitmap[place / 64] |= 1ull << (place % 64);
                        n_pages++;
                }
        }
        /* Every page that the leaf lists must have come out of its frame. */
        r = snap_image_leaf(img, region, &leaf);
        if (r < 0)
                return r;
        if (n_pages != (leaf ? leaf->n_pages : 0))
                return -EBADMSG;
        memcpy(ret_bitmap, bitmap, sizeof(bitmap));
        return 0;
}

/* The next run of set bits at or after *@pos: its length, 0 at the end. */
static unsigned next_run(const uint64_t *bitmap, unsigned *pos) {
        unsigned i = *pos, n = 0;

        while (i < SNAP_REGION_PAGES && !(bitmap[i / 64] >> (i % 64) & 1))
                i++;
        while (i + n < SNAP_REGION_PAGES && (bitmap[(i + n) / 64] >> ((i + n) % 64) & 1))
                n++;
        *pos = i;
        return n;
}

struct verify {
        struct snap_image *img;
        snap_verify_fn *fn;
        void *arg;
        bool failed, stop;
        uint64_t good_frames, frames, frame_bytes, pages;
};

static void complain(struct verify *v, const char *fmt, ...) attr_printf(2, 3);
static void complain(struct verify *v, const char *fmt, ...) {
        char text[200];
        va_list ap;

        va_start(ap, fmt);
        (void) vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        v->failed = true;
        if (v->fn && v->fn(text, v->arg) != 0)
                v->stop = true;
}

/* Each error is told and walked over; only what prevents looking (no memory) ends the walk. */
static int verify_region(struct verify *v, struct snap_decoder *d, void *buf, uint64_t region) {
        struct snap_loc locs[SNAP_REGION_PAGES];
        const struct snap_leaf *leaf;
        unsigned n, live = 0;
        bool bad = false;
        int r;

        r = snap_image_region_frames(v->img, region, locs, &n);
        if (r == -ENOMEM)
                return r;
        if (r < 0) {
                complain(v, "index node of region %" PRIu64 ": %s", region, strerror(-r));
                return 0;
        }
        for (unsigned i = 0; i < n && !v->stop; i++) {
                struct snap_frame frame;

                v->frames++;
                v->frame_bytes += locs[i].frame_len;
                r = snap_image_decode(v->img, d, &locs[i], buf, &frame);
                if (r == -ENOMEM)
                        return r;
                if (r < 0) {
                        complain(v, "frame at offset %" PRIu64 ", region %" PRIu64 ": %s", locs[i].frame_off, region,
                                 strerror(-r));
                        bad = true;
                        continue;
                }
                live += (unsigned) __builtin_popcount(frame.live_mask);
                v->good_frames++;
        }
        r = snap_image_leaf(v->img, region, &leaf);
        if (r < 0)
                return r;
        v->pages += leaf ? leaf->n_pages : 0;
        if (!bad && !v->stop && leaf && live != leaf->n_pages)
                complain(v, "index of region %" PRIu64 " names %u pages, its frames hold %u", region, leaf->n_pages, live);
        return 0;
}

int snap_image_verify(struct snap_image *img, snap_verify_fn *on_error, void *arg, uint64_t *ret_frames) {
        struct verify v = { .img = img, .fn = on_error, .arg = arg };
        cleanup_snap_decoder struct snap_decoder *d = NULL;
        cleanup_free void *buf = NULL;
        const struct snap_image_info *i = &img->info;
        int r;

        r = snap_decoder_new(&d);
        if (r < 0)
                return r;
        buf = malloc(SNAP_FRAME_BYTES);
        if (!buf)
                return -ENOMEM;
        for (uint64_t region = 0; !v.stop && snap_image_next_region(img, region, &region) == 0; region++) {
                r = verify_region(&v, d, buf, region);
                if (r < 0)
                        return r;
        }
        if (!v.failed && (v.frames != i->live_frames || v.frame_bytes != i->live_bytes || v.pages != i->n_stored_pages))
                complain(&v,
                         "footer counts %" PRIu64 " frames, %" PRIu64 " bytes, %" PRIu64 " pages; found %" PRIu64 ", %" PRIu64
                         ", %" PRIu64,
                         i->live_frames, i->live_bytes, i->n_stored_pages, v.frames, v.frame_bytes, v.pages);
        if (ret_frames)
                *ret_frames = v.good_frames;
        return v.failed ? -EBADMSG : 0;
}

/* Calls @fn for every run of stored pages, ascending. */
static int walk_runs(struct snap_image *img, int (*fn)(uint64_t first, const void *data, uint64_t n, void *arg), void *arg) {
        cleanup_snap_decoder struct snap_decoder *d = NULL;
        cleanup_free uint8_t *buf = NULL;
        int r;

        r = snap_decoder_new(&d);
        if (r < 0)
                return r;
        buf = malloc(REGION_BYTES);
        if (!buf)
                return -ENOMEM;
        for (uint64_t region = 0; snap_image_next_region(img, region, &region) == 0; region++) {
                uint64_t bitmap[SNAP_REGION_PAGES / 64];
                unsigned pos = 0, n;

                r = snap_region_read(img, d, region, buf, bitmap);
                if (r < 0)
                        return r;
                while ((n = next_run(bitmap, &pos)) > 0) {
                        r = fn(region * SNAP_REGION_PAGES + pos, buf + (size_t) pos * SNAP_PAGE_SIZE, n, arg);
                        if (r < 0)
                                return r;
                        pos += n;
                }
        }
        return 0;
}

static int dump_run(uint64_t first, const void *data, uint64_t n, void *arg) {
        return io_pwrite_full(*(int *) arg, data, n * SNAP_PAGE_SIZE, first * SNAP_PAGE_SIZE);
}

int snap_image_dump(struct snap_image *img, int out_fd) {
        struct stat st;

        if (fstat(out_fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode) || st.st_size != 0)
                return -EINVAL;
        if (ftruncate(out_fd, (off_t) img->info.ram_bytes) < 0)
                return -errno;
        return walk_runs(img, dump_run, &out_fd);
}

static int compact_run(uint64_t first, const void *data, uint64_t n, void *arg) {
        return snap_writer_put(arg, first, data, n);
}

int snap_image_compact(struct snap_image *img, int out_fd, enum snap_codec codec, int level, struct snap_writer_stats *ret) {
        struct snap_writer_params p = { .ram_bytes = img->info.ram_bytes, .codec = codec, .level = level };
        cleanup_snap_writer struct snap_writer *w = NULL;
        int r;

        r = snap_writer_new(out_fd, -1, &p, &w);
        if (r < 0)
                return r;
        r = walk_runs(img, compact_run, w);
        if (r < 0)
                return r;
        return snap_writer_finish(w, ret);
}
