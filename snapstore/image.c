/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * Opening reads the header, the footer (the last bytes of the file) and the upper index: for guests up to
 * 1 GiB one node. A leaf is read when its region is first asked for, by whichever thread asks; two threads
 * may read the same leaf at once, then a compare-and-swap lets one of them install it and the other throws
 * its copy away. An installed leaf never changes or moves until the image is closed, so readers hold no lock.
 *
 * Reads go through pread and not through a mapping: a file that is truncated or an I/O error must be an
 * error code and not a SIGBUS.
 *
 * Invariants:
 *   verified-first: no byte of a record is used before its checksum matched.
 *   right-page: a decoded slot is only called live if the index maps the very page that the frame names to
 *   this frame and slot. Index and frame must agree, so neither alone can put a page in a wrong place. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "snapstore/image_internal.h"

static int read_header(int fd, struct snap_disk_header *ret) {
        struct snap_disk_header h;
        int r;

        r = io_pread_full(fd, &h, sizeof(h), 0);
        if (r < 0)
                return r;
        if (memcmp(h.magic, SNAP_HEADER_MAGIC, sizeof(h.magic)) != 0 ||
            h.checksum != XXH3_64bits(&h, offsetof(struct snap_disk_header, checksum)))
                return -EBADMSG;
        if (h.version != SNAP_IMAGE_VERSION || h.page_size != SNAP_PAGE_SIZE)
                return -EPROTONOSUPPORT;
        for (size_t i = 0; i < sizeof(h.reserved); i++)
                if (h.reserved[i])
                        return -EBADMSG;
        *ret = h;
        return 0;
}

static bool footer_counts_ok(const struct snap_disk_footer *f) {
        uint64_t pages = f->ram_bytes / SNAP_PAGE_SIZE;

        if (f->n_stored_pages > pages || f->live_frames > f->n_stored_pages ||
            f->n_stored_pages > f->live_frames * SNAP_FRAME_PAGES || (f->n_stored_pages == 0) != (f->root_ref == 0))
                return false;
        if (f->live_bytes > f->file_bytes || f->dead_bytes > f->file_bytes || f->index_bytes > f->file_bytes ||
            f->live_bytes + f->dead_bytes + f->index_bytes > f->file_bytes)
                return false;
        /* A frame has at least its header: bounds the counts, and so everything that is computed of them. */
        return f->live_frames <= f->live_bytes / sizeof(struct snap_disk_frame) &&
               f->dead_frames <= f->dead_bytes / sizeof(struct snap_disk_frame) && f->appended_bytes <= f->file_bytes &&
               f->depth <= SNAP_MAX_LINKS;
}

static int read_footer(int fd, const struct snap_disk_header *h, uint64_t size, struct snap_disk_footer *ret) {
        struct snap_disk_footer f;
        uint64_t off = size - sizeof(f);
        int r;

        r = io_pread_full(fd, &f, sizeof(f), off);
        if (r < 0)
                return r;
        if (memcmp(f.magic, SNAP_FOOTER_MAGIC, sizeof(f.magic)) != 0 ||
            f.checksum != XXH3_64bits_withSeed(&f, offsetof(struct snap_disk_footer, checksum), h->salt ^ off))
                return -EBADMSG;
        if (f.version != SNAP_IMAGE_VERSION)
                return -EPROTONOSUPPORT;
        if (f.salt != h->salt || f.file_bytes != size || !snap_ram_ok(f.ram_bytes) || !snap_codec_name(f.codec) || f.reserved0 ||
            !footer_counts_ok(&f))
                return -EBADMSG;
        *ret = f;
        return 0;
}

static void fill_info(struct snap_image_info *i, const struct snap_disk_footer *f) {
        memcpy(i->uuid, f->uuid, SNAP_UUID_LEN);
        memcpy(i->parent_uuid, f->parent_uuid, SNAP_UUID_LEN);
        i->ram_bytes = f->ram_bytes;
        i->file_bytes = f->file_bytes;
        i->appended_bytes = f->appended_bytes;
        i->n_stored_pages = f->n_stored_pages;
        i->n_zero_pages = f->ram_bytes / SNAP_PAGE_SIZE - f->n_stored_pages;
        i->live_frames = f->live_frames;
        i->live_bytes = f->live_bytes;
        i->dead_frames = f->dead_frames;
        i->dead_bytes = f->dead_bytes;
        i->index_bytes = f->index_bytes;
        i->depth = f->depth;
        i->codec = (enum snap_codec) f->codec;
}

int snap_image_open(int fd, struct snap_image **ret) {
        cleanup_snap_image struct snap_image *img = NULL;
        struct snap_disk_header header = {};
        struct snap_disk_footer footer = {}; /* gcc 12 with -fsanitize=thread does not see that both are set */
        struct stat st;
        int r;

        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode))
                return -EINVAL;
        if (st.st_size < (off_t) SNAP_BLOCK || st.st_size % SNAP_BLOCK || (uint64_t) st.st_size > SNAP_MAX_IMAGE_BYTES)
                return -EBADMSG;
        r = read_header(fd, &header);
        if (r < 0)
                return r;
        r = read_footer(fd, &header, (uint64_t) st.st_size, &footer);
        if (r < 0)
                return r;

        img = calloc(1, sizeof(*img));
        if (!img)
                return -ENOMEM;
        img->src.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (img->src.fd < 0)
                return -errno;
        img->src.salt = header.salt;
        img->src.end = (uint64_t) st.st_size - sizeof(footer);
        fill_info(&img->info, &footer);
        r = snap_index_init(&img->index, footer.ram_bytes);
        if (r < 0)
                return r;
        img->leaves = calloc(img->index.n_regions, sizeof(*img->leaves));
        if (!img->leaves)
                return -ENOMEM;
        r = snap_index_load(&img->index, &img->src, footer.root_ref);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(img);
        return 0;
}

void snap_image_close(struct snap_image *img) {
        if (!img)
                return;
        /* Only regions with a reference can have a leaf: skips what calloc never touched. */
        for (uint64_t i = 0; img->leaves && i < img->index.n_regions; i++)
                if (img->index.ref[0][i])
                        free(atomic_load_explicit(&img->leaves[i], memory_order_relaxed));
        free(img->leaves);
        snap_index_clear(&img->index);
        if (img->src.fd > 0) /* 0: never opened, the duplicate is at least 3 */
                (void) close_fd(img->src.fd);
        free(img);
}

int snap_image_fd(const struct snap_image *img) {
        return img->src.fd;
}

const struct snap_image_info *snap_image_info(const struct snap_image *img) {
        return &img->info;
}

int snap_image_leaf(struct snap_image *img, uint64_t region, const struct snap_leaf **ret) {
        struct snap_leaf *leaf, *expected = NULL;
        int r;

        if (img->index.ref[0][region] == 0) {
                *ret = NULL;
                return 0;
        }
        leaf = atomic_load_explicit(&img->leaves[region], memory_order_acquire);
        if (!leaf) {
                r = snap_leaf_read(&img->src, img->index.ref[0][region], region, img->index.n_pages, &leaf);
                if (r < 0)
                        return r;
                if (!atomic_compare_exchange_strong_explicit(&img->leaves[region], &expected, leaf, memory_order_acq_rel,
                                                             memory_order_acquire)) {
                        free(leaf);
                        leaf = expected;
                }
        }
        *ret = leaf;
        return 0;
}

static struct snap_loc make_loc(const struct snap_leaf *leaf, uint64_t page, unsigned entry) {
        uint64_t ref = leaf->frame[entry >> 4];

        return (struct snap_loc){
                .page = page, .frame_off = snap_ref_off(ref), .frame_len = snap_ref_len(ref), .slot = (uint8_t) (entry & 15)
        };
}

int snap_image_lookup(struct snap_image *img, uint64_t page, struct snap_loc *ret) {
        const struct snap_leaf *leaf;
        unsigned entry;
        int r;

        if (page >= img->index.n_pages)
                return -ERANGE;
        r = snap_image_leaf(img, page / SNAP_REGION_PAGES, &leaf);
        if (r < 0)
                return r;
        entry = leaf ? leaf->entry[page % SNAP_REGION_PAGES] : SNAP_ENTRY_ZERO;
        *ret = entry == SNAP_ENTRY_ZERO ? (struct snap_loc){ .page = page, .zero = true } : make_loc(leaf, page, entry);
        return 0;
}

int snap_image_zero_run(struct snap_image *img, uint64_t page, uint64_t max, uint64_t *ret_n) {
        uint64_t p = page, end;

        if (page >= img->index.n_pages)
                return -ERANGE;
        end = page + MIN_OF(max, img->index.n_pages - page);
        while (p < end) {
                uint64_t region = p / SNAP_REGION_PAGES;
                uint64_t stop = MIN_OF(end, (region + 1) * SNAP_REGION_PAGES);
                const struct snap_leaf *leaf;
                int r;

                r = snap_image_leaf(img, region, &leaf);
                if (r < 0 && p > page)
                        break; /* what is known so far is good; whoever asks for the rest gets the error */
                if (r < 0)
                        return r;
                if (!leaf) {
                        p = stop;
                        continue;
                }
                while (p < stop && leaf->entry[p % SNAP_REGION_PAGES] == SNAP_ENTRY_ZERO)
                        p++;
                if (p < stop)
                        break;
        }
        *ret_n = p - page;
        return 0;
}

int snap_image_next_region(struct snap_image *img, uint64_t region, uint64_t *ret) {
        for (; region < img->index.n_regions; region++)
                if (img->index.ref[0][region]) {
                        *ret = region;
                        return 0;
                }
        return -ENOENT;
}

int snap_image_region_frames(struct snap_image *img, uint64_t region, struct snap_loc ret[SNAP_REGION_PAGES], unsigned *ret_n) {
        uint64_t seen[SNAP_REGION_PAGES / 64] = {};
        const struct snap_leaf *leaf;
        unsigned n = 0;
        int r;

        if (region >= img->index.n_regions)
                return -ERANGE;
        r = snap_image_leaf(img, region, &leaf);
        if (r < 0)
                return r;
        for (unsigned i = 0; leaf && i < SNAP_REGION_PAGES; i++) {
                unsigned entry = leaf->entry[i], frame = entry >> 4;

                if (entry == SNAP_ENTRY_ZERO || (seen[frame / 64] >> (frame % 64) & 1))
                        continue;
                seen[frame / 64] |= 1ull << (frame % 64);
                ret[n++] = make_loc(leaf, region * SNAP_REGION_PAGES + i, entry);
        }
        *ret_n = n;
        return 0;
}

int snap_decoder_new(struct snap_decoder **ret) {
        struct snap_decoder *d;
        int r;

        d = malloc(sizeof(*d));
        if (!d)
                return -ENOMEM;
        r = snap_decompressor_new(&d->dec);
        if (r < 0) {
                free(d);
                return r;
        }
        *ret = d;
        return 0;
}

void snap_decoder_free(struct snap_decoder *d) {
        if (!d)
                return;
        snap_decompressor_free(d->dec);
        free(d);
}

/* Verifies the frame of @len bytes that was read from @off into @rec; fills all of @ret but live_mask. */
static int parse_frame(const struct snap_image *img, const uint8_t *rec, size_t len, uint64_t off, struct snap_frame *ret,
                       uint64_t *ret_region, const uint8_t **ret_payload) {
        const struct snap_disk_frame *f = (const struct snap_disk_frame *) rec;
        const uint16_t *slot = (const uint16_t *) (rec + sizeof(*f));
        uint64_t first, end;
        size_t head;

        if (f->checksum != snap_record_sum(rec, len, img->src.salt, off) || f->magic != SNAP_FRAME_MAGIC || f->reserved ||
            !snap_codec_name(f->codec) || f->n_pages == 0 || f->n_pages > SNAP_FRAME_PAGES || f->region >= img->index.n_regions ||
            f->comp_len == 0 || f->comp_len > f->n_pages * SNAP_PAGE_SIZE)
                return -EBADMSG;
        head = sizeof(*f) + f->n_pages * sizeof(uint16_t);
        if (snap_align8(head + f->comp_len) != len)
                return -EBADMSG;
        for (size_t i = head + f->comp_len; i < len; i++)
                if (rec[i])
                        return -EBADMSG;
        first = (uint64_t) f->region * SNAP_REGION_PAGES;
        end = MIN_OF(first + SNAP_REGION_PAGES, img->index.n_pages);
        for (unsigned i = 0; i < f->n_pages; i++) {
                if (slot[i] >= end - first || (i > 0 && slot[i] <= slot[i - 1]))
                        return -EBADMSG;
                ret->page[i] = first + slot[i];
        }
        ret->n_pages = f->n_pages;
        ret->comp_len = f->comp_len;
        ret->codec = (enum snap_codec) f->codec;
        *ret_region = f->region;
        *ret_payload = rec + head;
        return 0;
}

int snap_image_decode(struct snap_image *img, struct snap_decoder *d, const struct snap_loc *loc, void *buf,
                      struct snap_frame *ret) {
        uint64_t ref = snap_ref(loc->frame_off, loc->frame_len), region;
        struct snap_frame frame = {};
        const struct snap_leaf *leaf;
        const uint8_t *payload;
        int r;

        if (loc->zero || loc->frame_off % 8 || loc->frame_len % 8 || loc->frame_off > SNAP_MAX_IMAGE_BYTES ||
            loc->frame_len > SNAP_FRAME_MAX || !snap_ref_ok(ref, img->src.end, sizeof(struct snap_disk_frame), SNAP_FRAME_MAX))
                return -EINVAL;
        r = io_pread_full(img->src.fd, d->rec, loc->frame_len, loc->frame_off);
        if (r < 0)
                return r;
        r = parse_frame(img, d->rec, loc->frame_len, loc->frame_off, &frame, &region, &payload);
        if (r < 0)
                return r;
        r = snap_image_leaf(img, region, &leaf);
        if (r < 0)
                return r;
        for (unsigned i = 0; leaf && i < frame.n_pages; i++) {
                unsigned entry = leaf->entry[frame.page[i] % SNAP_REGION_PAGES];
                if (entry != SNAP_ENTRY_ZERO && (entry & 15) == i && leaf->frame[entry >> 4] == ref)
                        frame.live_mask |= (uint16_t) (1u << i);
        }
        if (loc->slot >= frame.n_pages || frame.page[loc->slot] != loc->page || !(frame.live_mask >> loc->slot & 1))
                return -EBADMSG;
        r = snap_decompress(d->dec, frame.codec, payload, frame.comp_len, buf, frame.n_pages * SNAP_PAGE_SIZE);
        if (r < 0)
                return r;
        *ret = frame;
        return 0;
}

int snap_image_read_page(struct snap_image *img, struct snap_decoder *d, uint64_t page, void *buf) {
        struct snap_frame frame;
        struct snap_loc loc;
        int r;

        r = snap_image_lookup(img, page, &loc);
        if (r < 0)
                return r;
        if (loc.zero) {
                memset(buf, 0, SNAP_PAGE_SIZE);
                return 0;
        }
        r = snap_image_decode(img, d, &loc, d->page_buf, &frame);
        if (r < 0)
                return r;
        memcpy(buf, d->page_buf + (size_t) loc.slot * SNAP_PAGE_SIZE, SNAP_PAGE_SIZE);
        return 0;
}
