/* SPDX-License-Identifier: MIT */
/* Memory images from an enemy.
 *
 * Checksums would keep a fuzzer out of everything behind them, so there are two kinds of input, told apart by
 * the first byte:
 *
 *   0    the rest is the whole file, as it is
 *   1    the rest is a list of changes, 5 bytes each, to a good image (the same at each run): which
 *        record, where in it (2 bytes, little-endian), what to xor with (1 byte), spare. Changed records are
 *        sealed again, so that what is behind the checksum sees the changes.
 *
 * Whatever opens is then read as the pager and the tools read it, and used as a parent. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/io.h"
#include "snapstore/image_internal.h"
#include "snapstore/writer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_IMAGE_INPUT (256u << 10)
#define MAX_RECORDS 64u
#define RAM_PAGES (2 * SNAP_REGION_PAGES + 9)

/* The good image, made once. */
static struct {
        uint8_t *bytes;
        size_t len;
        uint64_t salt;
        uint64_t ref[MAX_RECORDS];
        unsigned n;
} good;

static void require(bool ok) {
        if (!ok)
                abort();
}

static int new_file(void) {
        int fd = memfd_create("snap-image-fuzz", MFD_CLOEXEC);

        require(fd >= 0);
        return fd;
}

/* Three generations, each with another codec, so that there are live, dead and partly stale frames of all. */
static void make_good(void) {
        struct snap_writer_params p = { .ram_bytes = (uint64_t) RAM_PAGES * SNAP_PAGE_SIZE };
        uint8_t page[SNAP_PAGE_SIZE] = {};
        struct snap_writer_stats stats;
        struct snap_image *img;
        int fd = -1;

        for (unsigned gen = 0; gen < 3; gen++) {
                struct snap_writer *w;
                int next = new_file();

                p.codec = (enum snap_codec) gen;
                require(snap_writer_new(next, fd, &p, &w) == 0);
                for (uint64_t i = gen; i < RAM_PAGES; i += 50 + gen * 100) {
                        page[i % SNAP_PAGE_SIZE] = (uint8_t) (i | 1);
                        require(snap_writer_put(w, i, page, 1) == 0);
                }
                require(snap_writer_finish(w, &stats) == 0);
                snap_writer_free(w);
                (void) close_fd(fd);
                fd = next;
        }
        good.len = stats.file_bytes;
        good.bytes = malloc(good.len);
        require(good.bytes && io_pread_full(fd, good.bytes, good.len, 0) == 0);
        require(snap_image_open(fd, &img) == 0);
        good.salt = img->src.salt;
        for (uint64_t region = 0; snap_image_next_region(img, region, &region) == 0; region++) {
                struct snap_loc locs[SNAP_REGION_PAGES];
                unsigned n;

                require(snap_image_region_frames(img, region, locs, &n) == 0);
                for (unsigned i = 0; i < n && good.n < MAX_RECORDS; i++)
                        good.ref[good.n++] = snap_ref(locs[i].frame_off, locs[i].frame_len);
        }
        for (unsigned level = 0; level < img->index.n_levels; level++)
                for (uint64_t i = 0; i < img->index.n[level]; i++)
                        if (img->index.ref[level][i] && good.n < MAX_RECORDS)
                                good.ref[good.n++] = img->index.ref[level][i];
        snap_image_close(img);
        (void) close_fd(fd);
}

/* Record number good.n is the footer. */
static void change(uint8_t *file, unsigned record, unsigned at, uint8_t value) {
        if (record < good.n) {
                uint64_t off = snap_ref_off(good.ref[record]);
                uint32_t len = snap_ref_len(good.ref[record]);
                uint64_t sum;

                file[off + 8 + at % (len - 8)] ^= value;
                sum = snap_record_sum(file + off, len, good.salt, off);
                memcpy(file + off, &sum, sizeof(sum));
        } else {
                uint64_t off = good.len - sizeof(struct snap_disk_footer), sum;
                size_t len = offsetof(struct snap_disk_footer, checksum);

                file[off + at % len] ^= value;
                sum = XXH3_64bits_withSeed(file + off, len, good.salt ^ off);
                memcpy(file + off + len, &sum, sizeof(sum));
        }
}

static void use_image(int fd) {
        struct snap_writer_params p = { .codec = SNAP_CODEC_LZ4 };
        struct snap_decoder *d;
        struct snap_image *img;
        uint8_t page[SNAP_PAGE_SIZE] = { 1 };
        uint64_t region, n;

        if (snap_image_open(fd, &img) < 0)
                return;
        require(snap_decoder_new(&d) == 0);
        p.ram_bytes = snap_image_info(img)->ram_bytes;
        (void) !snap_image_verify(img, NULL, NULL, &n);
        (void) !snap_image_zero_run(img, 0, 1u << 16, &n);
        if (snap_image_next_region(img, 0, &region) == 0)
                for (uint64_t i = 0; i < 2 * SNAP_REGION_PAGES; i += 3)
                        (void) !snap_image_read_page(img, d, region * SNAP_REGION_PAGES + i, page);
        snap_image_close(img);
        snap_decoder_free(d);
        if (p.ram_bytes <= 1u << 30) { /* of a child of a huge image only the size would be interesting */
                struct snap_writer_stats stats;
                struct snap_writer *w;
                int child = new_file();

                if (snap_writer_new(child, fd, &p, &w) == 0) {
                        if (snap_writer_put(w, 0, page, 1) == 0 && snap_writer_put_zero(w, 1, 0) == 0)
                                (void) !snap_writer_finish(w, &stats);
                        snap_writer_free(w);
                }
                (void) close_fd(child);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        int fd;

        if (size < 1 || size > MAX_IMAGE_INPUT)
                return 0;
        if (!good.bytes)
                make_good();
        fd = new_file();
        if (data[0] == 0) {
                require(io_write_full(fd, data + 1, size - 1) == 0);
        } else {
                uint8_t *file = malloc(good.len);

                require(file != NULL);
                memcpy(file, good.bytes, good.len);
                for (size_t i = 1; i + 5 <= size && i < 5 * 32; i += 5)
                        change(file, data[i] % (good.n + 1), data[i + 1] | (unsigned) data[i + 2] << 8, data[i + 3]);
                require(io_write_full(fd, file, good.len) == 0);
                free(file);
        }
        use_image(fd);
        (void) close_fd(fd);
        return 0;
}
