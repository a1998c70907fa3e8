/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * A child starts as a reflink of its parent's file: all the parent's frames and nodes are then in the child
 * at the same offsets. From there on the writer only appends, at a block boundary, so no shared block is
 * ever written: frames as they fill, and in finish() the leaves that changed, the upper nodes above them,
 * and a footer. The parent's footer and replaced nodes stay behind as dead bytes.
 *
 * Pages are collected in `pending` until there are SNAP_FRAME_PAGES of one region, or the region changes;
 * sixteen neighbours that are all not zero are compressed straight from the caller's memory. One region is
 * "open" at a time: its entries are spread out, one per page. When another region is touched it is closed
 * into a compact leaf, kept in memory until finish() (1.3 KiB per 2 MiB of RAM that was written). Leaves are
 * written together at the end, not behind their frames, because whoever opens the image cold reads them
 * with one or two readaheads then.
 *
 * A frame is dead when no page names it any more. Frames never span regions, so closing a region knows all
 * about its frames: live counts are the difference between the frames it named when opened and when closed.
 *
 * Invariants:
 *   slots-ascend: pages in a frame are in ascending order, none twice (flush before a page that is not beyond
 *   the last pending one).
 *   sticky: after a failed write nothing is known about the file, so every later call fails alike.
 *
 * The parent's leaves are read through the parent's descriptor, not the child's: the reflink has an inode and
 * page cache of its own, and what is hot in the parent's would be read from disk in the child's. */
#include "snapstore/writer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/ids.h"
#include "common/io.h"
#include "snapstore/image_internal.h"

/* Frames are handed to the kernel in pieces of this size. Larger ones save nothing measurable, and memory
 * that is touched for the first time is dear. */
#define OUT_BYTES (128u << 10)

struct open_region {
        bool open, changed;
        uint64_t region;
        uint64_t ref[SNAP_REGION_PAGES]; /* frame of each page, 0: zero */
        uint8_t slot[SNAP_REGION_PAGES];
        uint32_t n_pages, n_frames; /* as they were when the region was opened */
        uint64_t frame_bytes;
};

struct pending {
        unsigned n;
        uint64_t page[SNAP_FRAME_PAGES];
        uint8_t *data; /* SNAP_FRAME_BYTES */
};

struct snap_writer {
        int fd; /* the caller's */
        struct snap_writer_params params;
        struct snap_compressor *comp;
        struct snap_source parent; /* fd -1: a base image. Owned */
        uint64_t salt;
        uint8_t parent_uuid[SNAP_UUID_LEN];
        uint32_t depth;

        struct snap_index index;   /* the parent's, then with what finish() writes */
        struct snap_leaf **leaves; /* per region: as changed here and not yet written; NULL: unchanged */
        struct open_region cur;
        struct pending pending;

        uint8_t *out; /* OUT_BYTES + room for one record, not yet written */
        size_t out_len;
        uint64_t pos;   /* file offset of out[0] */
        uint64_t start; /* file offset where this writer began */

        uint64_t n_stored, live_frames, live_bytes, all_frames, all_bytes, index_bytes;
        struct snap_writer_stats stats;
        int broken; /* -errno that every call returns, 0 while all is well */
        bool finished;
};

bool snap_page_is_zero(const void *page) {
        const uint64_t *p = page;

        /* Most pages that are not zero differ early: look at one word before going through blocks that the
         * compiler turns into vector instructions. */
        if (p[0])
                return false;
        for (unsigned i = 0; i < SNAP_PAGE_SIZE / sizeof(*p); i += 16) {
                uint64_t acc = 0;
                for (unsigned k = 0; k < 16; k++)
                        acc |= p[i + k];
                if (acc)
                        return false;
        }
        return true;
}

static int out_flush(struct snap_writer *w) {
        int r;

        if (w->out_len == 0)
                return 0;
        r = io_pwrite_full(w->fd, w->out, w->out_len, w->pos);
        if (r < 0)
                return r;
        w->pos += w->out_len;
        w->out_len = 0;
        return 0;
}

static uint64_t out_offset(const struct snap_writer *w) {
        return w->pos + w->out_len;
}

/* The record that was built at the end of `out`, @len bytes, is complete. */
static int out_commit(struct snap_writer *w, size_t len) {
        w->out_len += len;
        if (out_offset(w) > SNAP_MAX_IMAGE_BYTES - SNAP_BLOCK)
                return -EFBIG;
        return w->out_len >= OUT_BYTES ? out_flush(w) : 0;
}

/* ---- the open region ---- */

static unsigned count_frames(const struct open_region *c, uint64_t frames[SNAP_REGION_PAGES], uint16_t number[SNAP_REGION_PAGES],
                             uint64_t *ret_bytes) {
        /* Distinct references by open addressing: at most 512 in 1024 places. */
        uint16_t table[2 * SNAP_REGION_PAGES] = {};
        uint64_t bytes = 0;
        unsigned n = 0;

        for (unsigned i = 0; i < SNAP_REGION_PAGES; i++) {
                uint64_t ref = c->ref[i];
                unsigned h;

                if (!ref)
                        continue;
                h = (unsigned) ((ref * 0x9e3779b97f4a7c15ull) >> 54);
                while (table[h] && frames[table[h] - 1] != ref)
                        h = (h + 1) % ARRAY_LEN(table);
                if (!table[h]) {
                        frames[n++] = ref;
                        bytes += snap_ref_len(ref);
                        table[h] = (uint16_t) n;
                }
                number[i] = (uint16_t) (table[h] - 1);
        }
        *ret_bytes = bytes;
        return n;
}

static int region_close(struct snap_writer *w) {
        struct open_region *c = &w->cur;
        uint64_t frames[SNAP_REGION_PAGES], bytes;
        uint16_t number[SNAP_REGION_PAGES];
        struct snap_leaf *leaf;
        unsigned n_frames, n_pages = 0;

        if (!c->open || !c->changed) {
                c->open = false;
                return 0;
        }
        n_frames = count_frames(c, frames, number, &bytes);
        leaf = snap_leaf_alloc(n_frames);
        if (!leaf)
                return -ENOMEM;
        memcpy(leaf->frame, frames, n_frames * sizeof(uint64_t));
        for (unsigned i = 0; i < SNAP_REGION_PAGES; i++) {
                leaf->entry[i] = c->ref[i] ? (uint16_t) (number[i] << 4 | c->slot[i]) : (uint16_t) SNAP_ENTRY_ZERO;
                n_pages += c->ref[i] != 0;
        }
        leaf->n_frames = (uint16_t) n_frames;
        leaf->n_pages = (uint16_t) n_pages;
        w->n_stored += n_pages - (uint64_t) c->n_pages;
        w->live_frames += n_frames - (uint64_t) c->n_frames;
        w->live_bytes += bytes - c->frame_bytes;
        free(w->leaves[c->region]);
        w->leaves[c->region] = leaf;
        c->open = false;
        return 0;
}

static int frame_flush(struct snap_writer *w);

static int region_open(struct snap_writer *w, uint64_t region) {
        cleanup_free struct snap_leaf *read = NULL;
        struct open_region *c = &w->cur;
        const struct snap_leaf *leaf = w->leaves[region];
        int r;

        if (c->open && c->region == region)
                return 0;
        r = frame_flush(w);
        if (r < 0)
                return r;
        r = region_close(w);
        if (r < 0)
                return r;
        if (!leaf && w->index.ref[0][region]) {
                r = snap_leaf_read(&w->parent, w->index.ref[0][region], region, w->index.n_pages, &read);
                if (r < 0)
                        return r;
                leaf = read;
        }
        *c = (struct open_region){ .open = true, .region = region };
        if (!leaf)
                return 0;
        for (unsigned i = 0; i < SNAP_REGION_PAGES; i++) {
                if (leaf->entry[i] == SNAP_ENTRY_ZERO)
                        continue;
                c->ref[i] = leaf->frame[leaf->entry[i] >> 4];
                c->slot[i] = leaf->entry[i] & 15;
        }
        c->n_pages = leaf->n_pages;
        c->n_frames = leaf->n_frames;
        for (unsigned i = 0; i < leaf->n_frames; i++)
                c->frame_bytes += snap_ref_len(leaf->frame[i]);
        return 0;
}

/* ---- frames ---- */

/* Appends the frame of @n pages of the open region, whose bytes are at @data. */
static int frame_emit(struct snap_writer *w, const uint64_t *page, unsigned n, const void *data) {
        size_t head = sizeof(struct snap_disk_frame) + n * sizeof(uint16_t), raw = n * (size_t) SNAP_PAGE_SIZE;
        uint8_t *rec = w->out + w->out_len;
        struct snap_disk_frame *f = (struct snap_disk_frame *) rec;
        uint16_t *slot = (uint16_t *) (rec + sizeof(*f));
        enum snap_codec codec = w->params.codec;
        uint64_t off = out_offset(w), ref;
        size_t comp, len;

        comp = snap_compress(w->comp, data, raw, rec + head, raw - 1);
        if (comp == 0) {
                codec = SNAP_CODEC_NONE;
                memcpy(rec + head, data, raw);
                comp = raw;
        }
        len = snap_align8(head + comp);
        memset(rec + head + comp, 0, len - head - comp);
        *f = (struct snap_disk_frame){ .magic = SNAP_FRAME_MAGIC,
                                       .codec = (uint8_t) codec,
                                       .n_pages = (uint8_t) n,
                                       .region = (uint32_t) w->cur.region,
                                       .comp_len = (uint32_t) comp };
        ref = snap_ref(off, (uint32_t) len);
        for (unsigned i = 0; i < n; i++) {
                unsigned place = (unsigned) (page[i] % SNAP_REGION_PAGES);
                slot[i] = (uint16_t) place;
                w->cur.ref[place] = ref;
                w->cur.slot[place] = (uint8_t) i;
        }
        w->cur.changed = true;
        f->checksum = snap_record_sum(rec, len, w->salt, off);
        w->all_frames++;
        w->all_bytes += len;
        w->stats.frames++;
        w->stats.frame_bytes += len;
        return out_commit(w, len);
}

static int frame_flush(struct snap_writer *w) {
        unsigned n = w->pending.n;

        w->pending.n = 0;
        return n ? frame_emit(w, w->pending.page, n, w->pending.data) : 0;
}

static int put_pending(struct snap_writer *w, uint64_t page, const uint8_t *data) {
        struct pending *p = &w->pending;

        memcpy(p->data + (size_t) p->n * SNAP_PAGE_SIZE, data, SNAP_PAGE_SIZE);
        p->page[p->n++] = page;
        return p->n == SNAP_FRAME_PAGES ? frame_flush(w) : 0;
}

static void set_zero(struct snap_writer *w, uint64_t page) {
        unsigned place = (unsigned) (page % SNAP_REGION_PAGES);

        if (!w->cur.ref[place])
                return;
        w->cur.ref[place] = 0;
        w->cur.changed = true;
}

/* Puts @n pages (≥ 1) of one region. */
static int put_in_region(struct snap_writer *w, uint64_t page, const uint8_t *data, uint64_t n) {
        struct pending *p = &w->pending;
        int r;

        r = region_open(w, page / SNAP_REGION_PAGES);
        if (r == 0 && p->n && page <= p->page[p->n - 1])
                r = frame_flush(w);
        while (r == 0 && n > 0) {
                uint64_t direct[SNAP_FRAME_PAGES];
                unsigned run = 0, max = (unsigned) MIN_OF(n, (uint64_t) SNAP_FRAME_PAGES - p->n);

                while (run < max && !snap_page_is_zero(data + (size_t) run * SNAP_PAGE_SIZE)) {
                        direct[run] = page + run;
                        run++;
                }
                if (run == SNAP_FRAME_PAGES)
                        r = frame_emit(w, direct, run, data);
                else if (run > 0)
                        for (unsigned i = 0; r == 0 && i < run; i++)
                                r = put_pending(w, direct[i], data + (size_t) i * SNAP_PAGE_SIZE);
                else {
                        set_zero(w, page);
                        w->stats.zero_pages++;
                        run = 1;
                }
                page += run;
                data += (size_t) run * SNAP_PAGE_SIZE;
                n -= run;
        }
        return r;
}

static int usable(const struct snap_writer *w, uint64_t first, uint64_t n) {
        if (w->broken)
                return w->broken;
        if (w->finished)
                return -EINVAL;
        return first > w->index.n_pages || n > w->index.n_pages - first ? -ERANGE : 0;
}

int snap_writer_put(struct snap_writer *w, uint64_t first, const void *data, uint64_t n) {
        const uint8_t *p = data;
        int r;

        r = usable(w, first, n);
        if (r < 0)
                return r;
        w->stats.put_pages += n;
        while (n > 0) {
                uint64_t k = MIN_OF(n, SNAP_REGION_PAGES - first % SNAP_REGION_PAGES);

                r = put_in_region(w, first, p, k);
                if (r < 0)
                        return w->broken = r;
                first += k;
                p += k * SNAP_PAGE_SIZE;
                n -= k;
        }
        return 0;
}

int snap_writer_put_zero(struct snap_writer *w, uint64_t first, uint64_t n) {
        int r;

        r = usable(w, first, n);
        if (r < 0)
                return r;
        w->stats.zero_pages += n;
        while (n > 0) {
                uint64_t region = first / SNAP_REGION_PAGES;
                uint64_t k = MIN_OF(n, SNAP_REGION_PAGES - first % SNAP_REGION_PAGES);
                bool is_open = w->cur.open && w->cur.region == region;

                if (is_open || w->leaves[region] || w->index.ref[0][region]) {
                        r = region_open(w, region);
                        if (r == 0)
                                r = frame_flush(w);
                        if (r < 0)
                                return w->broken = r;
                        for (uint64_t i = 0; i < k; i++)
                                set_zero(w, first + i);
                }
                first += k;
                n -= k;
        }
        return 0;
}

/* ---- finish ---- */

static void index_replace(struct snap_writer *w, unsigned level, uint64_t i, uint64_t ref) {
        w->index_bytes += snap_ref_len(ref) - (uint64_t) snap_ref_len(w->index.ref[level][i]);
        w->stats.index_bytes += snap_ref_len(ref);
        w->index.ref[level][i] = ref;
}

static int write_leaves(struct snap_writer *w) {
        for (uint64_t i = 0; i < w->index.n_regions; i++) {
                const struct snap_leaf *leaf = w->leaves[i];
                uint64_t off = out_offset(w), ref = 0;
                size_t len = 0;
                int r;

                if (!leaf)
                        continue;
                if (leaf->n_pages) {
                        len = snap_leaf_encode(leaf, i, w->salt, off, w->out + w->out_len);
                        ref = snap_ref(off, (uint32_t) len);
                }
                index_replace(w, 0, i, ref);
                r = out_commit(w, len);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Writes the nodes of @level that have a changed child (one byte per child in @changed_below, 0 or 1), and
 * notes them in @ret_changed. A node that has become empty is not written, its reference becomes 0. */
static int write_upper(struct snap_writer *w, unsigned level, const uint8_t *changed_below, uint8_t *ret_changed) {
        for (uint64_t i = 0; i < w->index.n[level]; i++) {
                uint64_t first = i * SNAP_NODE_FANOUT;
                uint64_t n = MIN_OF(w->index.n[level - 1] - first, (uint64_t) SNAP_NODE_FANOUT);
                uint64_t off = out_offset(w);
                size_t len;
                int r;

                if (!memchr(changed_below + first, 1, n))
                        continue;
                len = snap_index_encode(&w->index, level, i, w->salt, off, w->out + w->out_len);
                index_replace(w, level, i, len ? snap_ref(off, (uint32_t) len) : 0);
                ret_changed[i] = 1;
                r = out_commit(w, len);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int write_index(struct snap_writer *w) {
        cleanup_free uint8_t *changed = calloc(w->index.n_regions, 1);
        int r;

        if (!changed)
                return -ENOMEM;
        r = write_leaves(w);
        for (uint64_t i = 0; i < w->index.n_regions; i++)
                changed[i] = w->leaves[i] != NULL;
        for (unsigned level = 1; r == 0 && level < w->index.n_levels; level++) {
                uint8_t *above = calloc(w->index.n[level], 1);

                if (!above)
                        return -ENOMEM;
                r = write_upper(w, level, changed, above);
                free(changed);
                changed = above;
        }
        return r;
}

/* The footer goes to the end of the block that out ends in, or of the next. */
static int write_footer(struct snap_writer *w) {
        uint64_t end = out_offset(w) + sizeof(struct snap_disk_footer), off;
        struct snap_disk_footer f = { .magic = SNAP_FOOTER_MAGIC,
                                      .version = SNAP_IMAGE_VERSION,
                                      .depth = w->depth,
                                      .ram_bytes = w->params.ram_bytes,
                                      .salt = w->salt,
                                      .root_ref = snap_index_root(&w->index),
                                      .n_stored_pages = w->n_stored,
                                      .live_frames = w->live_frames,
                                      .live_bytes = w->live_bytes,
                                      .dead_frames = w->all_frames - w->live_frames,
                                      .dead_bytes = w->all_bytes - w->live_bytes,
                                      .index_bytes = w->index_bytes,
                                      .codec = w->params.codec };

        end = (end + SNAP_BLOCK - 1) / SNAP_BLOCK * SNAP_BLOCK;
        off = end - sizeof(f);
        memset(w->out + w->out_len, 0, off - out_offset(w));
        f.file_bytes = end;
        f.appended_bytes = end - w->start;
        random_bytes(f.uuid, sizeof(f.uuid));
        memcpy(f.parent_uuid, w->parent_uuid, sizeof(f.parent_uuid));
        f.checksum = XXH3_64bits_withSeed(&f, offsetof(struct snap_disk_footer, checksum), w->salt ^ off);
        w->out_len = (size_t) (off - w->pos);
        memcpy(w->out + w->out_len, &f, sizeof(f));
        w->out_len += sizeof(f);
        memcpy(w->stats.uuid, f.uuid, sizeof(f.uuid));
        w->stats.file_bytes = f.file_bytes;
        w->stats.appended_bytes = f.appended_bytes;
        return out_flush(w);
}

int snap_writer_finish(struct snap_writer *w, struct snap_writer_stats *ret) {
        int r;

        r = usable(w, 0, 0);
        if (r < 0)
                return r;
        r = frame_flush(w);
        if (r == 0)
                r = region_close(w);
        if (r == 0)
                r = write_index(w);
        if (r == 0)
                r = write_footer(w);
        if (r < 0)
                return w->broken = r;
        w->finished = true;
        *ret = w->stats;
        return 0;
}

/* ---- start and end ---- */

static void write_header(struct snap_writer *w) {
        struct snap_disk_header h = { .magic = SNAP_HEADER_MAGIC, .version = SNAP_IMAGE_VERSION, .page_size = SNAP_PAGE_SIZE };

        w->salt = h.salt = random_u64();
        h.checksum = XXH3_64bits(&h, offsetof(struct snap_disk_header, checksum));
        memcpy(w->out, &h, sizeof(h));
        w->out_len = sizeof(h);
}

/* Takes over the parent's state, and its blocks into the (empty) file. */
static int start_child(struct snap_writer *w, int parent_fd) {
        cleanup_snap_image struct snap_image *parent = NULL;
        const struct snap_image_info *i;
        struct stat st;
        int r;

        r = snap_image_open(parent_fd, &parent);
        if (r < 0)
                return r;
        i = snap_image_info(parent);
        if (i->ram_bytes != w->params.ram_bytes)
                return -EINVAL;
        if (i->depth >= SNAP_MAX_LINKS)
                return -EMLINK;
        r = io_clone_file(parent_fd, w->fd, &w->stats.reflinked);
        if (r < 0)
                return r;
        if (fstat(w->fd, &st) < 0)
                return -errno;
        if ((uint64_t) st.st_size != i->file_bytes)
                return -EIO;
        w->pos = w->start = i->file_bytes;
        w->depth = i->depth + 1;
        memcpy(w->parent_uuid, i->uuid, SNAP_UUID_LEN);
        w->n_stored = i->n_stored_pages;
        w->live_frames = i->live_frames;
        w->live_bytes = i->live_bytes;
        w->all_frames = i->live_frames + i->dead_frames;
        w->all_bytes = i->live_bytes + i->dead_bytes;
        w->index_bytes = i->index_bytes;
        w->salt = parent->src.salt;
        /* The parent's index and descriptor move into the writer. */
        w->index = parent->index;
        parent->index.n_regions = 0;
        for (unsigned k = 0; k < SNAP_MAX_LEVELS; k++)
                parent->index.ref[k] = NULL;
        w->parent = parent->src;
        parent->src.fd = -1;
        return 0;
}

int snap_writer_new(int out_fd, int parent_fd, const struct snap_writer_params *p, struct snap_writer **ret) {
        cleanup_snap_writer struct snap_writer *w = NULL;
        struct stat st;
        int r;

        if (!snap_ram_ok(p->ram_bytes) || snap_codec_check(p->codec, p->level) < 0)
                return -EINVAL;
        if (fstat(out_fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode) || st.st_size != 0)
                return -EINVAL;
        w = calloc(1, sizeof(*w));
        if (!w)
                return -ENOMEM;
        w->fd = out_fd;
        w->parent.fd = -1;
        w->params = *p;
        w->out = malloc(OUT_BYTES + MAX_OF(SNAP_FRAME_MAX, SNAP_NODE_MAX) + SNAP_BLOCK + sizeof(struct snap_disk_footer));
        w->pending.data = malloc(SNAP_FRAME_BYTES);
        if (!w->out || !w->pending.data)
                return -ENOMEM;
        r = snap_compressor_new(p->codec, p->level, &w->comp);
        if (r < 0)
                return r;
        if (parent_fd >= 0)
                r = start_child(w, parent_fd);
        else {
                w->stats.reflinked = true;
                write_header(w);
                r = snap_index_init(&w->index, p->ram_bytes);
        }
        if (r < 0)
                return r;
        w->leaves = calloc(w->index.n_regions, sizeof(*w->leaves));
        if (!w->leaves)
                return -ENOMEM;
        *ret = TAKE_PTR(w);
        return 0;
}

void snap_writer_free(struct snap_writer *w) {
        if (!w)
                return;
        for (uint64_t i = 0; w->leaves && i < w->index.n_regions; i++)
                free(w->leaves[i]);
        free(w->leaves);
        snap_index_clear(&w->index);
        snap_compressor_free(w->comp);
        (void) close_fd(w->parent.fd);
        free(w->pending.data);
        free(w->out);
        free(w);
}
