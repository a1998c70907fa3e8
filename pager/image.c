/* SPDX-License-Identifier: MIT */
/* Theory of operation. An image owns a sparse memfd of the guest's RAM size, maps it shared, and has registered
 * its own userfaultfd on that mapping. A frame's pages are put into the memfd by UFFDIO_COPY on the mapping,
 * and by nothing else: it inserts a page into the page cache already complete, so a clone that maps the memfd
 * sees all of a page or none of it. The mapping is PROT_NONE, so that no stray store can go another way.
 *
 * A page that UFFDIO_COPY finds there already (EEXIST) must have come from us. The bitmap of pages that we
 * inserted tells: while a frame is claimed nobody else of us inserts its pages, so an EEXIST for a page whose
 * bit is clear means that a process touched a hole without a userfaultfd, and the kernel put a zero page there.
 * Its content is compared; where it differs the image is bad, and the session fails instead of seeing it.
 *
 * One decode of a frame at a time: whoever needs a frame claims it (`claimed`, under `lock`); others wait and
 * then find their page's bit set. The lock is held for the claim only, never while decoding.
 *
 * The bit of a page is set after the page is in the memfd (release) and read before it is relied upon
 * (acquire). Lock order: none, `lock` is a leaf. */
#include "pager/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/io.h"
#include "pager/uffd.h"

#define MAX_CLAIMS (PAGER_MAX_WORKERS + PAGER_MAX_FILLERS)

struct pager_image {
        _Atomic unsigned refs;
        struct pager_image_key key;
        struct snap_image *snap;
        uint64_t n_pages;

        int memfd, readonly_fd, uffd;
        uint8_t *map;              /* PROT_NONE: an address for UFFDIO_COPY, not for us */
        _Atomic uint64_t *present; /* a bit a page */

        pthread_mutex_t lock;
        pthread_cond_t unclaimed;
        uint64_t claimed[MAX_CLAIMS]; /* offsets of frames that are being decoded */
        unsigned n_claimed;

        _Atomic bool bad, cancel_fill;
        _Atomic uint64_t decodes, decoded_bytes, compressed_bytes;
        struct pager_image_fill_job job;
};

int pager_scratch_init(struct pager_scratch *s) {
        cleanup_free uint8_t *frame = malloc(SNAP_FRAME_BYTES);
        int r;

        if (!frame)
                return -ENOMEM;
        r = snap_decoder_new(&s->decoder);
        if (r < 0)
                return r;
        s->frame = TAKE_PTR(frame);
        return 0;
}

void pager_scratch_clear(struct pager_scratch *s) {
        snap_decoder_free(s->decoder);
        free(s->frame);
        *s = (struct pager_scratch){ 0 };
}

/* ---- life ---- */

static void image_destroy(struct pager_image *img) {
        if (img->map)
                (void) munmap(img->map, img->n_pages * PAGER_PAGE);
        (void) close_fd(img->uffd);
        (void) close_fd(img->readonly_fd);
        (void) close_fd(img->memfd);
        free(img->present);
        snap_image_close(img->snap);
        (void) pthread_cond_destroy(&img->unclaimed);
        (void) pthread_mutex_destroy(&img->lock);
        free(img);
}

struct pager_image *pager_image_ref(struct pager_image *img) {
        (void) atomic_fetch_add_explicit(&img->refs, 1, memory_order_relaxed);
        return img;
}

void pager_image_unref(struct pager_image *img) {
        if (img && atomic_fetch_sub_explicit(&img->refs, 1, memory_order_acq_rel) == 1)
                image_destroy(img);
}

static int make_memory(struct pager_image *img) {
        uint64_t bytes = img->n_pages * PAGER_PAGE;
        char path[64];
        void *map;
        int r;

        img->memfd = memfd_create("forkd-image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (img->memfd < 0)
                return -errno;
        /* VMMs under another user cannot reopen it for writing by way of /proc. */
        if (ftruncate(img->memfd, (off_t) bytes) < 0 || fchmod(img->memfd, 0400) < 0 ||
            fcntl(img->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
                return -errno;
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", img->memfd);
        img->readonly_fd = open(path, O_RDONLY | O_CLOEXEC);
        if (img->readonly_fd < 0)
                return -errno;
        map = mmap(NULL, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, img->memfd, 0);
        if (map == MAP_FAILED)
                return -errno;
        img->map = map;
        if (madvise(map, bytes, MADV_DONTDUMP) < 0 || madvise(map, bytes, MADV_DONTFORK) < 0)
                return -errno;
        r = uffd_open(UFFD_FEATURE_MISSING_SHMEM, &img->uffd);
        if (r < 0)
                return r;
        return uffd_register(img->uffd, (uintptr_t) map, bytes);
}

int pager_image_open(int fd, struct pager_image **ret) {
        cleanup_pager_image struct pager_image *img = calloc(1, sizeof(*img));
        int r;

        if (!img)
                return -ENOMEM;
        img->refs = 1;
        img->memfd = img->readonly_fd = img->uffd = -1;
        (void) pthread_mutex_init(&img->lock, NULL);
        (void) pthread_cond_init(&img->unclaimed, NULL);
        r = snap_image_open(fd, &img->snap);
        if (r < 0)
                return r;
        r = pager_image_key_of_fd(fd, &img->key);
        if (r < 0)
                return r;
        img->n_pages = snap_image_info(img->snap)->ram_bytes / PAGER_PAGE;
        img->present = calloc((img->n_pages + 63) / 64, sizeof(*img->present));
        if (!img->present)
                return -ENOMEM;
        r = make_memory(img);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(img);
        return 0;
}

int pager_image_key_of_fd(int fd, struct pager_image_key *ret) {
        struct stat st;

        if (fstat(fd, &st) < 0)
                return -errno;
        *ret = (struct pager_image_key){ st.st_dev, st.st_ino, st.st_size, st.st_mtim };
        return 0;
}

bool pager_image_matches(const struct pager_image *img, const struct pager_image_key *key) {
        return img->key.dev == key->dev && img->key.ino == key->ino && img->key.size == key->size &&
               img->key.mtime.tv_sec == key->mtime.tv_sec && img->key.mtime.tv_nsec == key->mtime.tv_nsec;
}

const struct snap_image_info *pager_image_info(const struct pager_image *img) {
        return snap_image_info(img->snap);
}

int pager_image_readonly_fd(const struct pager_image *img) {
        return img->readonly_fd;
}

bool pager_image_is_bad(const struct pager_image *img) {
        return atomic_load_explicit(&img->bad, memory_order_relaxed);
}

struct pager_image_fill_job *pager_image_job(struct pager_image *img) {
        return &img->job;
}

void pager_image_cancel_fill(struct pager_image *img) {
        atomic_store_explicit(&img->cancel_fill, true, memory_order_relaxed);
}

bool pager_image_fill_cancelled(const struct pager_image *img) {
        return atomic_load_explicit(&img->cancel_fill, memory_order_relaxed);
}

/* ---- which pages are there ---- */

bool pager_image_present(const struct pager_image *img, uint64_t page) {
        return page < img->n_pages && atomic_load_explicit(&img->present[page / 64], memory_order_acquire) >> (page % 64) & 1;
}

static void mark_present(struct pager_image *img, uint64_t first, uint64_t n) {
        for (uint64_t p = first; p < first + n; p++)
                (void) atomic_fetch_or_explicit(&img->present[p / 64], 1ull << (p % 64), memory_order_release);
}

void pager_image_forget(struct pager_image *img, uint64_t page) {
        (void) atomic_fetch_and_explicit(&img->present[page / 64], ~(1ull << (page % 64)), memory_order_release);
}

uint64_t pager_image_zero_run(struct pager_image *img, uint64_t page, uint64_t max) {
        uint64_t n;

        return snap_image_zero_run(img->snap, page, max, &n) == 0 ? n : 0;
}

int pager_image_next_region(struct pager_image *img, uint64_t region, uint64_t *ret) {
        return snap_image_next_region(img->snap, region, ret);
}

/* ---- filling ---- */

/** Claims the frame at @off. False: @page is present, there is nothing to do. */
static bool claim_frame(struct pager_image *img, uint64_t off, uint64_t page) {
        bool claimed;

        (void) pthread_mutex_lock(&img->lock);
        for (unsigned i = 0; i < img->n_claimed;) {
                if (img->claimed[i] != off) {
                        i++;
                        continue;
                }
                (void) pthread_cond_wait(&img->unclaimed, &img->lock);
                i = 0;
        }
        claimed = !pager_image_present(img, page);
        if (claimed)
                img->claimed[img->n_claimed++] = off; /* each thread claims one at most: there is room */
        (void) pthread_mutex_unlock(&img->lock);
        return claimed;
}

static void release_frame(struct pager_image *img, uint64_t off) {
        (void) pthread_mutex_lock(&img->lock);
        for (unsigned i = 0; i < img->n_claimed; i++)
                if (img->claimed[i] == off) {
                        img->claimed[i] = img->claimed[--img->n_claimed];
                        break;
                }
        (void) pthread_cond_broadcast(&img->unclaimed);
        (void) pthread_mutex_unlock(&img->lock);
}

/** Somebody else has a page where we wanted to put ours. */
static int check_foreign(struct pager_image *img, uint64_t page, const uint8_t *data) {
        uint8_t there[SNAP_PAGE_SIZE];
        int r;

        if (pager_image_present(img, page)) /* ours, from an earlier decode of this frame */
                return 0;
        r = io_pread_full(img->memfd, there, sizeof(there), page * PAGER_PAGE);
        if (r < 0)
                return r;
        return memcmp(there, data, sizeof(there)) == 0 ? 0 : -EUCLEAN;
}

/** Puts @n consecutive pages into the memfd. */
static int insert_run(struct pager_image *img, uint64_t first, uint64_t n, const uint8_t *data) {
        uint64_t at = 0;

        while (at < n) {
                uint64_t done;
                int r = uffd_copy(img->uffd, (uintptr_t) img->map + (first + at) * PAGER_PAGE, data + at * PAGER_PAGE,
                                  (n - at) * PAGER_PAGE, &done);

                (void) atomic_fetch_add_explicit(&img->decoded_bytes, done, memory_order_relaxed);
                mark_present(img, first + at, done / PAGER_PAGE);
                at += done / PAGER_PAGE;
                if (r == 0)
                        break;
                if (r != -EEXIST)
                        return r;
                r = check_foreign(img, first + at, data + at * PAGER_PAGE);
                if (r < 0)
                        return r;
                mark_present(img, first + at, 1);
                at++;
        }
        return 0;
}

/** Decodes the claimed frame at @loc and inserts what is live of it. *ret gets the run that holds @page. */
static int fill_frame(struct pager_image *img, struct pager_scratch *s, const struct snap_loc *loc, uint64_t page,
                      struct pager_fill_result *ret) {
        struct snap_frame f;
        bool found = false;
        int r;

        r = snap_image_decode(img->snap, s->decoder, loc, s->frame, &f);
        if (r < 0)
                return r;
        (void) atomic_fetch_add_explicit(&img->decodes, 1, memory_order_relaxed);
        (void) atomic_fetch_add_explicit(&img->compressed_bytes, f.comp_len, memory_order_relaxed);
        for (unsigned i = 0, n; i < f.n_pages; i += n) {
                n = 1;
                if (!(f.live_mask >> i & 1))
                        continue;
                while (i + n < f.n_pages && f.live_mask >> (i + n) & 1 && f.page[i + n] == f.page[i] + n)
                        n++;
                if (f.page[i] >= img->n_pages || n > img->n_pages - f.page[i])
                        return -EBADMSG;
                r = insert_run(img, f.page[i], n, s->frame + (size_t) i * SNAP_PAGE_SIZE);
                if (r < 0)
                        return r;
                if (page >= f.page[i] && page < f.page[i] + n) {
                        *ret = (struct pager_fill_result){ PAGER_PAGE_DECODED, f.page[i], n };
                        found = true;
                }
        }
        return found ? 0 : -EBADMSG;
}

int pager_image_fill(struct pager_image *img, struct pager_scratch *s, uint64_t page, struct pager_fill_result *ret) {
        struct snap_loc loc;
        int r;

        if (pager_image_present(img, page)) {
                *ret = (struct pager_fill_result){ PAGER_PAGE_PRESENT, page, 1 };
                return 0;
        }
        r = snap_image_lookup(img->snap, page, &loc);
        if (r == 0 && loc.zero) {
                *ret = (struct pager_fill_result){ PAGER_PAGE_ZERO, page, 1 };
                return 0;
        }
        if (r == 0) {
                if (!claim_frame(img, loc.frame_off, page)) {
                        *ret = (struct pager_fill_result){ PAGER_PAGE_PRESENT, page, 1 };
                        return 0;
                }
                r = fill_frame(img, s, &loc, page, ret);
                release_frame(img, loc.frame_off);
        }
        if (r == -EBADMSG || r == -EUCLEAN)
                atomic_store_explicit(&img->bad, true, memory_order_relaxed);
        return r;
}

const char *pager_image_reason(int r) {
        switch (r) {
        case -EBADMSG:
                return "a stored frame or index node is corrupt: its checksum or its structure is wrong";
        case -EUCLEAN:
                return "the image's memory holds a page that the pager did not put there";
        case -ENOMEM:
                return "out of memory for the image's pages";
        case -EIO:
                return "the image's file could not be read";
        case -ERANGE:
                return "a page beyond the end of guest memory was touched";
        default:
                return "a page could not be read from the image";
        }
}

void pager_image_get_stats(const struct pager_image *img, struct pager_image_stats *ret) {
        struct stat st;

        *ret = (struct pager_image_stats){
                .present_bytes = fstat(img->memfd, &st) == 0 ? (uint64_t) st.st_blocks * 512 : 0,
                .decodes = atomic_load_explicit(&img->decodes, memory_order_relaxed),
                .decoded_bytes = atomic_load_explicit(&img->decoded_bytes, memory_order_relaxed),
                .compressed_bytes = atomic_load_explicit(&img->compressed_bytes, memory_order_relaxed),
        };
}
