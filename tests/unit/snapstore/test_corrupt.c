/* SPDX-License-Identifier: MIT */
/* Damaged and hostile images: an error, never a wrong page, a crash or a hang.
 *
 * Damage (bits flipped, blocks lost, ends cut) must be found by the checksums. Hostile files have good
 * checksums: there the tests change a field, seal the record again, and expect the field to be checked. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "snap_test.h"
#include "snapstore/image_internal.h"

/* A small family: a base and its child in one file, with live and dead frames of all codecs, and stale
 * slots; and which bytes of it matter. */
struct victim {
        struct model m;
        int fd;
        uint8_t *bytes;
        size_t len;
        uint64_t salt;
        uint8_t *live;    /* per byte: part of something that the image uses */
        uint64_t ref[64]; /* its live records: first frames, then nodes */
        unsigned n_frames, n_refs;
        struct snap_image_info info;
};

static void mark(struct victim *v, uint64_t off, size_t len) {
        assert_true(off + len <= v->len);
        memset(v->live + off, 1, len);
}

static void note_record(struct victim *v, uint64_t ref) {
        assert_true(v->n_refs < ARRAY_LEN(v->ref));
        v->ref[v->n_refs++] = ref;
        mark(v, snap_ref_off(ref), snap_ref_len(ref));
}

static void find_records(struct victim *v) {
        struct snap_image *img;

        assert_ok(snap_image_open(v->fd, &img));
        v->info = *snap_image_info(img);
        v->salt = img->src.salt;
        for (uint64_t region = 0; snap_image_next_region(img, region, &region) == 0; region++) {
                struct snap_loc locs[SNAP_REGION_PAGES];
                unsigned n;

                assert_ok(snap_image_region_frames(img, region, locs, &n));
                for (unsigned i = 0; i < n; i++)
                        note_record(v, snap_ref(locs[i].frame_off, locs[i].frame_len));
        }
        v->n_frames = v->n_refs;
        for (unsigned level = 0; level < img->index.n_levels; level++)
                for (uint64_t i = 0; i < img->index.n[level]; i++)
                        if (img->index.ref[level][i])
                                note_record(v, img->index.ref[level][i]);
        mark(v, 0, sizeof(struct snap_disk_header));
        mark(v, v->len - sizeof(struct snap_disk_footer), sizeof(struct snap_disk_footer));
        snap_image_close(img);
}

static void victim_init(struct victim *v) {
        struct rng r = { .state = 3 };
        struct snap_writer_stats stats;
        struct snap_writer *w;
        int parent;

        *v = (struct victim){};
        model_init(&v->m, 2 * SNAP_REGION_PAGES + 5);
        for (uint64_t i = 0; i < 20; i++)
                page_fill_small(i, model_page(&v->m, i * 30));
        parent = image_of(&v->m, SNAP_CODEC_LZ4);
        v->fd = temp_fd();
        w = writer_start(v->fd, parent, &v->m, SNAP_CODEC_ZSTD);
        for (uint64_t i = 0; i < 7; i++) {
                page_fill_small(1000 + i, model_page(&v->m, i * 60));
                assert_ok(snap_writer_put(w, i * 60, model_page(&v->m, i * 60), 1));
        }
        /* one page that does not compress: stored as it is */
        for (unsigned i = 0; i < SNAP_PAGE_SIZE / 8; i++)
                ((uint64_t *) model_page(&v->m, v->m.n_pages - 1))[i] = rng_next(&r);
        assert_ok(snap_writer_put(w, v->m.n_pages - 1, model_page(&v->m, v->m.n_pages - 1), 1));
        assert_ok(snap_writer_put_zero(w, 30, 1));
        memset(model_page(&v->m, 30), 0, SNAP_PAGE_SIZE);
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        (void) close(parent);

        v->len = stats.file_bytes;
        v->bytes = malloc(v->len);
        v->live = calloc(v->len, 1);
        assert_ok(io_pread_full(v->fd, v->bytes, v->len, 0));
        check_image(v->fd, &v->m);
        find_records(v);
        assert_true(v->n_frames >= 3 && v->n_refs >= v->n_frames + 4);
}

static void victim_clear(struct victim *v) {
        (void) close(v->fd);
        free(v->bytes);
        free(v->live);
        model_clear(&v->m);
}

static void restore_bytes(struct victim *v) {
        assert_int_equal(ftruncate(v->fd, (off_t) v->len), 0);
        assert_ok(io_pwrite_full(v->fd, v->bytes, v->len, 0));
}

/* Reads all there is. 0: everything could be read, and was right if @m is given; -errno: something could
 * not. A wrong page fails the test. */
static int read_all(int fd, const struct model *m) {
        cleanup_snap_decoder struct snap_decoder *d = NULL;
        cleanup_snap_image struct snap_image *img = NULL;
        uint8_t frame_buf[SNAP_FRAME_BYTES];
        int r, result = 0;

        r = snap_image_open(fd, &img);
        if (r < 0)
                return r;
        assert_ok(snap_decoder_new(&d));
        for (uint64_t i = 0; i < snap_image_info(img)->ram_bytes / SNAP_PAGE_SIZE && i < 2000; i++) {
                struct snap_frame f;
                struct snap_loc loc;
                uint64_t run;

                r = snap_image_zero_run(img, i, UINT64_MAX, &run);
                if (r == 0 && run > 0) {
                        for (uint64_t k = i; m && k < i + run; k++)
                                assert_true(snap_page_is_zero(model_page(m, k)));
                        i += run - 1;
                        continue;
                }
                r = snap_image_lookup(img, i, &loc);
                if (r == 0 && !loc.zero) {
                        r = snap_image_decode(img, d, &loc, frame_buf, &f);
                        if (r == 0) /* whatever the file says: it is the page that was asked for */
                                assert_true(f.page[loc.slot] == i && f.live_mask >> loc.slot & 1);
                }
                if (r < 0)
                        result = r;
                else if (m && !loc.zero &&
                         memcmp(frame_buf + (size_t) loc.slot * SNAP_PAGE_SIZE, model_page(m, i), SNAP_PAGE_SIZE) != 0)
                        fail_msg("page %lu was read wrong", (unsigned long) i);
                else if (m && loc.zero)
                        assert_true(snap_page_is_zero(model_page(m, i)));
        }
        r = snap_image_verify(img, NULL, NULL, NULL);
        if (result < 0)
                assert_int_equal(r, -EBADMSG); /* verify finds whatever a reader stumbles over */
        return r < 0 ? r : result;
}

#ifdef FORKD_TSAN /* slow, and not what TSan is for */
#define FLIP_STEP 7
#else
#define FLIP_STEP 1
#endif

static void test_flip_every_byte(void **state) {
        struct rng r = { .state = 11 };
        struct victim v;

        victim_init(&v);
        for (size_t i = 0; i < v.len; i += FLIP_STEP) {
                uint8_t flipped = v.bytes[i] ^ (uint8_t) (1 + rng_below(&r, 255));
                int result;

                assert_ok(io_pwrite_full(v.fd, &flipped, 1, i));
                result = read_all(v.fd, &v.m);
                if (v.live[i] && result == 0)
                        fail_msg("nobody noticed byte %zu of %zu", i, v.len);
                if (!v.live[i] && result < 0)
                        fail_msg("byte %zu is used by nobody, yet: %s", i, strerror(-result));
                assert_ok(io_pwrite_full(v.fd, &v.bytes[i], 1, i));
        }
        assert_ok(read_all(v.fd, &v.m));
        victim_clear(&v);
}

static void test_cut_anywhere(void **state) {
        struct snap_image *img;
        struct victim v;
        uint64_t parent_len;

        victim_init(&v);
        parent_len = v.len - v.info.appended_bytes;
        for (size_t len = v.len; len-- > 0;) {
                int r;

                if (len > v.len - 300 || len < 300 || len % 512 < 2 || len % 4096 > 4090) {
                        assert_int_equal(ftruncate(v.fd, (off_t) len), 0);
                        r = snap_image_open(v.fd, &img);
                        if (len == parent_len) { /* exactly the parent's file: its image, not ours */
                                assert_ok(r);
                                assert_memory_not_equal(snap_image_info(img)->uuid, v.info.uuid, SNAP_UUID_LEN);
                                snap_image_close(img);
                        } else
                                assert_int_equal(r, -EBADMSG);
                }
        }
        restore_bytes(&v);
        for (size_t more = 1; more < 3 * SNAP_BLOCK; more += more % SNAP_BLOCK == 0 ? 1 : SNAP_BLOCK - 1) {
                assert_int_equal(ftruncate(v.fd, (off_t) (v.len + more)), 0);
                assert_int_equal(snap_image_open(v.fd, &img), -EBADMSG);
        }
        victim_clear(&v);
}

/* A block that never reached the disk reads as zeros, or as what was there before. */
static void test_lost_blocks(void **state) {
        uint8_t zeros[512] = {}, stale[512];
        struct victim v;

        victim_init(&v);
        memset(stale, 0xa5, sizeof(stale));
        for (size_t off = 0; off < v.len; off += sizeof(zeros)) {
                bool used = memchr(v.live + off, 1, sizeof(zeros)) != NULL;

                assert_ok(io_pwrite_full(v.fd, stale, sizeof(stale), off));
                assert_int_equal(read_all(v.fd, &v.m) < 0, used);
                assert_ok(io_pwrite_full(v.fd, zeros, sizeof(zeros), off));
                (void) read_all(v.fd, &v.m);
                restore_bytes(&v);
        }
        victim_clear(&v);
}

/* A good record in another place, or of another family, is a bad one. */
static void test_misplaced_records(void **state) {
        struct victim v, other;

        victim_init(&v);
        victim_init(&other); /* same content, another salt */
        for (unsigned i = 0; i < v.n_refs; i++) {
                uint64_t off = snap_ref_off(v.ref[i]);

                assert_int_equal(v.ref[i], other.ref[i]);
                assert_ok(io_pwrite_full(v.fd, other.bytes + off, snap_ref_len(v.ref[i]), off));
                assert_int_equal(read_all(v.fd, &v.m), -EBADMSG);
                restore_bytes(&v);
                for (unsigned k = 0; k < v.n_refs; k++) {
                        if (k == i || snap_ref_len(v.ref[k]) != snap_ref_len(v.ref[i]))
                                continue;
                        assert_ok(io_pwrite_full(v.fd, v.bytes + snap_ref_off(v.ref[k]), snap_ref_len(v.ref[k]), off));
                        assert_int_equal(read_all(v.fd, &v.m), -EBADMSG);
                        restore_bytes(&v);
                }
        }
        victim_clear(&v);
        victim_clear(&other);
}

/* An old version of the very same page, where the new one should be: a write that was lost. */
static void test_lost_write(void **state) {
        struct snap_writer_stats stats;
        struct snap_image *img;
        struct snap_writer *w;
        struct snap_loc old, new;
        struct model m;
        int fd, child = temp_fd();
        uint8_t rec[SNAP_FRAME_MAX];

        model_init(&m, 40);
        page_fill_small(1, model_page(&m, 7));
        fd = image_of(&m, SNAP_CODEC_NONE);
        assert_ok(snap_image_open(fd, &img));
        assert_ok(snap_image_lookup(img, 7, &old));
        snap_image_close(img);
        w = writer_start(child, fd, &m, SNAP_CODEC_NONE);
        page_fill_small(2, model_page(&m, 7));
        assert_ok(snap_writer_put(w, 7, model_page(&m, 7), 1));
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        check_image(child, &m);
        assert_ok(snap_image_open(child, &img));
        assert_ok(snap_image_lookup(img, 7, &new));
        snap_image_close(img);
        assert_int_equal(old.frame_len, new.frame_len);
        assert_ok(io_pread_full(child, rec, old.frame_len, old.frame_off));
        assert_ok(io_pwrite_full(child, rec, new.frame_len, new.frame_off));
        assert_int_equal(read_all(child, &m), -EBADMSG);
        (void) close(fd);
        (void) close(child);
        model_clear(&m);
}

/* ---- hostile: sealed again ---- */

static void write_sealed(struct victim *v, uint64_t ref, uint8_t *rec) {
        uint64_t off = snap_ref_off(ref), sum = snap_record_sum(rec, snap_ref_len(ref), v->salt, off);

        memcpy(rec, &sum, sizeof(sum));
        assert_ok(io_pwrite_full(v->fd, rec, snap_ref_len(ref), off));
}

static void write_footer(struct victim *v, struct snap_disk_footer *f) {
        uint64_t off = v->len - sizeof(*f);

        f->checksum = XXH3_64bits_withSeed(f, offsetof(struct snap_disk_footer, checksum), v->salt ^ off);
        assert_ok(io_pwrite_full(v->fd, f, sizeof(*f), off));
}

/* Every byte of every record, changed and sealed: the sanitizers watch, and pages that are read are the
 * pages that were asked for (decode says so, or fails). */
static void test_sealed_bytes(void **state) {
        struct rng r = { .state = 77 };
        struct victim v;

        victim_init(&v);
        for (unsigned i = 0; i < v.n_refs; i++) {
                uint32_t len = snap_ref_len(v.ref[i]);
                uint8_t rec[SNAP_FRAME_MAX];

                for (uint32_t k = 8; k < len; k += k < 300 ? 1 : 37) {
                        memcpy(rec, v.bytes + snap_ref_off(v.ref[i]), len);
                        rec[k] ^= (uint8_t) (1 + rng_below(&r, 255));
                        write_sealed(&v, v.ref[i], rec);
                        (void) read_all(v.fd, NULL);
                }
                restore_bytes(&v);
        }
        for (size_t k = 8; k < sizeof(struct snap_disk_footer) - 8; k++) {
                struct snap_disk_footer f;

                memcpy(&f, v.bytes + v.len - sizeof(f), sizeof(f));
                ((uint8_t *) &f)[k] ^= (uint8_t) (1 + rng_below(&r, 255));
                write_footer(&v, &f);
                (void) read_all(v.fd, NULL);
        }
        victim_clear(&v);
}

static void expect_bad_frame(struct victim *v, unsigned i, size_t field, const void *value, size_t len) {
        uint8_t rec[SNAP_FRAME_MAX];

        memcpy(rec, v->bytes + snap_ref_off(v->ref[i]), snap_ref_len(v->ref[i]));
        memcpy(rec + field, value, len);
        write_sealed(v, v->ref[i], rec);
        assert_int_equal(read_all(v->fd, NULL), -EBADMSG);
        restore_bytes(v);
}

#define BAD_FRAME(v, i, member, type, ...)                                                                 \
        do {                                                                                               \
                type _value = (__VA_ARGS__);                                                               \
                expect_bad_frame(v, i, offsetof(struct snap_disk_frame, member), &_value, sizeof(_value)); \
        } while (0)

static void test_sealed_frames(void **state) {
        struct victim v;

        victim_init(&v);
        for (unsigned i = 0; i < v.n_frames; i++) {
                const struct snap_disk_frame *f = (const void *) (v.bytes + snap_ref_off(v.ref[i]));
                const uint16_t *slot = (const uint16_t *) (f + 1);

                BAD_FRAME(&v, i, magic, uint32_t, SNAP_NODE_MAGIC);
                BAD_FRAME(&v, i, codec, uint8_t, 3);
                BAD_FRAME(&v, i, codec, uint8_t, (f->codec + 1) % 3);
                BAD_FRAME(&v, i, codec, uint8_t, (f->codec + 2) % 3);
                BAD_FRAME(&v, i, n_pages, uint8_t, 0);
                BAD_FRAME(&v, i, n_pages, uint8_t, SNAP_FRAME_PAGES + 1);
                BAD_FRAME(&v, i, n_pages, uint8_t, 255);
                BAD_FRAME(&v, i, n_pages, uint8_t, f->n_pages == 1 ? 2 : f->n_pages - 1);
                BAD_FRAME(&v, i, reserved, uint16_t, 1);
                BAD_FRAME(&v, i, region, uint32_t, UINT32_MAX);
                BAD_FRAME(&v, i, region, uint32_t, 3);
                BAD_FRAME(&v, i, region, uint32_t, (f->region + 1) % 3);
                BAD_FRAME(&v, i, comp_len, uint32_t, 0);
                BAD_FRAME(&v, i, comp_len, uint32_t, UINT32_MAX);
                BAD_FRAME(&v, i, comp_len, uint32_t, f->comp_len + 8);
                BAD_FRAME(&v, i, comp_len, uint32_t, f->comp_len - 8);
                if (f->n_pages < 2)
                        continue;
                /* a page beyond the region; slots out of order; the same page twice */
                expect_bad_frame(&v, i, sizeof(*f), &(uint16_t){ SNAP_REGION_PAGES }, 2);
                expect_bad_frame(&v, i, sizeof(*f), (uint16_t[]){ slot[1], slot[0] }, 4);
                expect_bad_frame(&v, i, sizeof(*f), (uint16_t[]){ slot[1], slot[1] }, 4);
        }
        victim_clear(&v);
}

/* Changes one 8, 16 or 64 bit value in node @i. */
static void expect_bad_node(struct victim *v, unsigned i, size_t off, const void *value, size_t len) {
        uint8_t rec[SNAP_NODE_MAX];

        memcpy(rec, v->bytes + snap_ref_off(v->ref[i]), snap_ref_len(v->ref[i]));
        assert_memory_not_equal(rec + off, value, len);
        memcpy(rec + off, value, len);
        write_sealed(v, v->ref[i], rec);
        assert_int_equal(read_all(v->fd, NULL), -EBADMSG);
        restore_bytes(v);
}

#define BAD_NODE(v, i, member, type, ...)                                                                \
        do {                                                                                             \
                type _value = (__VA_ARGS__);                                                             \
                expect_bad_node(v, i, offsetof(struct snap_disk_node, member), &_value, sizeof(_value)); \
        } while (0)

static void test_sealed_nodes(void **state) {
        struct victim v;

        victim_init(&v);
        for (unsigned i = v.n_frames; i < v.n_refs; i++) {
                const struct snap_disk_node *n = (const void *) (v.bytes + snap_ref_off(v.ref[i]));
                const uint64_t *refs = (const uint64_t *) (n + 1);
                const size_t first = sizeof(*n);

                BAD_NODE(&v, i, magic, uint32_t, SNAP_FRAME_MAGIC);
                BAD_NODE(&v, i, level, uint8_t, (uint8_t) (n->level + 1));
                BAD_NODE(&v, i, index, uint64_t, n->index + 1);
                BAD_NODE(&v, i, index, uint64_t, UINT64_MAX);
                BAD_NODE(&v, i, reserved0, uint8_t, 1);
                BAD_NODE(&v, i, n_frames, uint16_t, n->n_frames + 1);
                BAD_NODE(&v, i, n_frames, uint16_t, UINT16_MAX);
                BAD_NODE(&v, i, n_entries, uint16_t, n->n_entries + 1);
                BAD_NODE(&v, i, n_entries, uint16_t, UINT16_MAX);
                BAD_NODE(&v, i, bitmap, uint64_t, n->bitmap[0] ^ 1);
                BAD_NODE(&v, i, bitmap[7], uint64_t, ~n->bitmap[7]);
                /* the first reference: out of the file, into the header, too long, to another kind */
                expect_bad_node(&v, i, first, &(uint64_t){ 0 }, 8);
                expect_bad_node(&v, i, first, &(uint64_t){ UINT64_MAX }, 8);
                expect_bad_node(&v, i, first, &(uint64_t){ snap_ref(8, snap_ref_len(refs[0])) }, 8);
                expect_bad_node(&v, i, first, &(uint64_t){ snap_ref(v.len - 256, snap_ref_len(refs[0])) }, 8);
                expect_bad_node(&v, i, first, &(uint64_t){ refs[0] | 0xffff }, 8);
                expect_bad_node(&v, i, first, &(uint64_t){ v.ref[n->level == 0 ? v.n_refs - 1 : 0] }, 8);
                if (n->level == 0) {
                        size_t entries = first + n->n_frames * 8;
                        const uint16_t *e = (const uint16_t *) ((const uint8_t *) n + entries);

                        /* a frame number beyond, a slot beyond, two pages of one slot */
                        expect_bad_node(&v, i, entries, &(uint16_t){ n->n_frames << 4 }, 2);
                        expect_bad_node(&v, i, entries, &(uint16_t){ e[0] | 15 }, 2);
                        if (n->n_entries > 1) {
                                expect_bad_node(&v, i, entries, &(uint16_t){ e[1] }, 2);
                                /* exchanged: each slot holds a page, but the other */
                                expect_bad_node(&v, i, entries, (uint16_t[]){ e[1], e[0] }, 4);
                        }
                }
        }
        victim_clear(&v);
}

#define BAD_FOOTER(v, member, ...)                                            \
        do {                                                                  \
                struct snap_disk_footer _f;                                   \
                memcpy(&_f, (v)->bytes + (v)->len - sizeof(_f), sizeof(_f));  \
                __typeof__(_f.member) _value = (__VA_ARGS__);                 \
                assert_memory_not_equal(&_value, &_f.member, sizeof(_value)); \
                _f.member = _value;                                           \
                write_footer(v, &_f);                                         \
                assert_int_equal(read_all((v)->fd, NULL), -EBADMSG);          \
                restore_bytes(v);                                             \
        } while (0)

static void test_sealed_footer(void **state) {
        struct snap_disk_footer f;
        struct snap_disk_header h;
        struct snap_image *img;
        struct victim v;

        victim_init(&v);
        memcpy(&f, v.bytes + v.len - sizeof(f), sizeof(f));
        BAD_FOOTER(&v, ram_bytes, 0);
        BAD_FOOTER(&v, ram_bytes, f.ram_bytes + 1);
        BAD_FOOTER(&v, ram_bytes, f.ram_bytes - SNAP_PAGE_SIZE);
        BAD_FOOTER(&v, ram_bytes, SNAP_MAX_RAM + SNAP_PAGE_SIZE);
        BAD_FOOTER(&v, ram_bytes, SNAP_MAX_RAM); /* the tree has another depth then */
        BAD_FOOTER(&v, salt, f.salt ^ 1);
        BAD_FOOTER(&v, root_ref, 0);
        BAD_FOOTER(&v, root_ref, UINT64_MAX);
        BAD_FOOTER(&v, root_ref, v.ref[0]);
        BAD_FOOTER(&v, root_ref, v.ref[v.n_frames]);
        BAD_FOOTER(&v, root_ref, snap_ref(v.len - 256, snap_ref_len(f.root_ref)));
        BAD_FOOTER(&v, file_bytes, f.file_bytes + SNAP_BLOCK);
        BAD_FOOTER(&v, appended_bytes, f.file_bytes + 1);
        BAD_FOOTER(&v, n_stored_pages, f.n_stored_pages + 1);
        BAD_FOOTER(&v, n_stored_pages, UINT64_MAX);
        BAD_FOOTER(&v, n_stored_pages, 0);
        BAD_FOOTER(&v, live_frames, f.live_frames + 1);
        BAD_FOOTER(&v, live_frames, UINT64_MAX);
        BAD_FOOTER(&v, live_bytes, f.live_bytes + 8);
        BAD_FOOTER(&v, live_bytes, UINT64_MAX);
        BAD_FOOTER(&v, dead_frames, UINT64_MAX);
        BAD_FOOTER(&v, dead_bytes, UINT64_MAX);
        BAD_FOOTER(&v, index_bytes, UINT64_MAX);
        BAD_FOOTER(&v, codec, 3);
        BAD_FOOTER(&v, reserved0, 1);
        BAD_FOOTER(&v, depth, UINT32_MAX);

        /* another version is named as such */
        f.version++;
        write_footer(&v, &f);
        assert_int_equal(snap_image_open(v.fd, &img), -EPROTONOSUPPORT);
        restore_bytes(&v);
        memcpy(&h, v.bytes, sizeof(h));
        h.version++;
        h.checksum = XXH3_64bits(&h, offsetof(struct snap_disk_header, checksum));
        assert_ok(io_pwrite_full(v.fd, &h, sizeof(h), 0));
        assert_int_equal(snap_image_open(v.fd, &img), -EPROTONOSUPPORT);
        victim_clear(&v);
}

/* A corrupt parent does not become a child. */
static void test_corrupt_parent(void **state) {
        struct snap_writer_params p = { .codec = SNAP_CODEC_LZ4 };
        struct snap_writer *w = NULL;
        struct victim v;
        int fd = temp_fd();

        victim_init(&v);
        p.ram_bytes = v.m.n_pages * SNAP_PAGE_SIZE;
        v.bytes[v.len - 100] ^= 1;
        restore_bytes(&v);
        assert_int_equal(snap_writer_new(fd, v.fd, &p, &w), -EBADMSG);
        v.bytes[v.len - 100] ^= 1;
        /* a leaf that is needed is corrupt: the put fails, and so does all that follows */
        v.bytes[snap_ref_off(v.ref[v.n_frames]) + 50] ^= 1;
        restore_bytes(&v);
        assert_ok(snap_writer_new(fd, v.fd, &p, &w));
        assert_int_equal(snap_writer_put(w, 0, model_page(&v.m, 0), 1), -EBADMSG);
        assert_int_equal(snap_writer_put(w, v.m.n_pages - 1, model_page(&v.m, 0), 1), -EBADMSG);
        assert_int_equal(snap_writer_put_zero(w, v.m.n_pages - 1, 1), -EBADMSG);
        assert_int_equal(snap_writer_finish(w, &(struct snap_writer_stats){}), -EBADMSG);
        snap_writer_free(w);
        (void) close(fd);
        victim_clear(&v);
}

static int count_errors(const char *what, void *arg) {
        assert_non_null(strchr(what, ' '));
        return ++*(int *) arg == 2;
}

/* verify goes on after an error, tells each, and stops when told to. */
static void test_verify_reports(void **state) {
        struct snap_image *img;
        struct victim v;
        uint64_t frames = 99;
        int n = 0;

        victim_init(&v);
        for (unsigned i = 0; i < 3; i++)
                v.bytes[snap_ref_off(v.ref[i]) + 30] ^= 1;
        restore_bytes(&v);
        assert_ok(snap_image_open(v.fd, &img));
        assert_int_equal(snap_image_verify(img, NULL, NULL, &frames), -EBADMSG);
        assert_int_equal(frames, v.info.live_frames - 3);
        assert_int_equal(snap_image_verify(img, count_errors, &n, NULL), -EBADMSG);
        assert_int_equal(n, 2);
        snap_image_close(img);
        victim_clear(&v);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_flip_every_byte), cmocka_unit_test(test_cut_anywhere),
                cmocka_unit_test(test_lost_blocks),     cmocka_unit_test(test_misplaced_records),
                cmocka_unit_test(test_lost_write),      cmocka_unit_test(test_sealed_bytes),
                cmocka_unit_test(test_sealed_frames),   cmocka_unit_test(test_sealed_nodes),
                cmocka_unit_test(test_sealed_footer),   cmocka_unit_test(test_corrupt_parent),
                cmocka_unit_test(test_verify_reports),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
