/* SPDX-License-Identifier: MIT */
/* The life of an image. frames.c has what happens in it. */
#include "pager/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/io.h"
#include "pager/image_internal.h"
#include "pager/nascent.h"
#include "pager/uffd.h"

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
        if (s->huge)
                (void) munmap(s->huge, PAGER_HUGE_PAGE);
        *s = (struct pager_scratch){ 0 };
}

/* ---- life ---- */

void pager_image_destroy(struct pager_image *img) {
        pager_resident_clear(&img->resident);
        pager_lineage_free(img->lineage);
        if (img->map)
                (void) munmap(img->map, img->n_pages * PAGER_PAGE);
        (void) close_fd(img->uffd);
        (void) close_fd(img->readonly_fd);
        (void) close_fd(img->memfd);
        free(img->present);
        snap_image_close(pager_image_snap(img));
        pager_nascent_free(img->nascent);
        for (unsigned i = 0; i < PAGER_CLAIM_SHARDS; i++) {
                (void) pthread_cond_destroy(&img->shard[i].released);
                (void) pthread_mutex_destroy(&img->shard[i].lock);
        }
        free(img);
}

struct pager_image *pager_image_ref(struct pager_image *img) {
        (void) atomic_fetch_add_explicit(&img->refs, 1, memory_order_relaxed);
        return img;
}

void pager_image_unref(struct pager_image *img) {
        if (!img || atomic_fetch_sub_explicit(&img->refs, 1, memory_order_acq_rel) > 1)
                return;
        /* To give back gigabytes takes longer than a thread that others wait for may be away. */
        if (img->resident.r && atomic_load_explicit(&img->resident.pages, memory_order_relaxed) > PAGER_SMALL_PAGES)
                pager_reclaim_bury(img->resident.r, img);
        else
                pager_image_destroy(img);
}

/** VMMs under another user cannot reopen it for writing by way of /proc. */
static int make_memfd(struct pager_image *img) {
        img->memfd = memfd_create("forkd-image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (img->memfd < 0 || ftruncate(img->memfd, (off_t) (img->n_pages * PAGER_PAGE)) < 0 || fchmod(img->memfd, 0400) < 0 ||
            fcntl(img->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
                return -errno;
        return 0;
}

/** Is @memfd one that another pager has made as above? Only a memfd has such seals, and of those on hugetlbfs the blocks
 *  are larger than our pages. */
static int take_memfd(struct pager_image *img, int memfd) {
        int seals = fcntl(memfd, F_GET_SEALS), flags = fcntl(memfd, F_GETFL), fixed = F_SEAL_SHRINK | F_SEAL_GROW;
        struct stat st;

        if (seals < 0 || (seals & fixed) != fixed || seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
                return -EBADF;
        if (flags < 0 || flags & O_PATH || (flags & O_ACCMODE) != O_RDWR)
                return -EBADF;
        if (fstat(memfd, &st) < 0 || st.st_size != (off_t) (img->n_pages * PAGER_PAGE) || st.st_blksize != (blksize_t) PAGER_PAGE)
                return -EBADF;
        img->memfd = fcntl(memfd, F_DUPFD_CLOEXEC, 3);
        return img->memfd < 0 ? -errno : 0;
}

/** Makes the ways into the image's memory. */
static int map_memory(struct pager_image *img, bool adopted) {
        uint64_t bytes = img->n_pages * PAGER_PAGE;
        struct stat st;
        char path[64];
        void *map;
        int r;

        if (fstat(img->memfd, &st) < 0)
                return -errno;
        img->memory_id = st.st_ino;
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", img->memfd);
        img->readonly_fd = open(path, O_RDONLY | O_CLOEXEC);
        if (img->readonly_fd < 0 && (!adopted || errno != EACCES)) /* EACCES: it is the memory of another user's pager */
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

static struct pager_image *image_new(void) {
        struct pager_image *img = aligned_alloc(_Alignof(struct pager_image), sizeof(*img));

        if (!img)
                return NULL;
        memset(img, 0, sizeof(*img));
        img->refs = 1;
        img->job.image = img->survey.image = img;
        img->survey.survey = true;
        img->memfd = img->readonly_fd = img->uffd = -1;
        for (unsigned i = 0; i < PAGER_CLAIM_SHARDS; i++) {
                (void) pthread_mutex_init(&img->shard[i].lock, NULL);
                (void) pthread_cond_init(&img->shard[i].released, NULL);
        }
        return img;
}

/** @memfd: the memory that it has already, -1: none. */
static int make_memory(struct pager_image *img, int memfd, struct pager_reclaim *reclaim) {
        int r;

        img->n_pages = img->info.ram_bytes / PAGER_PAGE;
        img->present = calloc((img->n_pages + 63) / 64, sizeof(*img->present));
        if (!img->present)
                return -ENOMEM;
        r = memfd < 0 ? make_memfd(img) : take_memfd(img, memfd);
        if (r == 0)
                r = map_memory(img, memfd >= 0);
        return r < 0 ? r : pager_resident_init(&img->resident, reclaim, img, img->n_pages);
}

static int open_image(int fd, int memfd, struct pager_reclaim *reclaim, struct pager_image **ret) {
        cleanup_pager_image struct pager_image *img = image_new();
        struct snap_image *snap;
        int r;

        if (!img)
                return -ENOMEM;
        r = snap_image_open(fd, &snap);
        if (r < 0)
                return r;
        atomic_store_explicit(&img->snap, snap, memory_order_release);
        img->info = *snap_image_info(snap);
        r = pager_image_key_of_fd(fd, &img->key);
        if (r == 0)
                r = make_memory(img, memfd, reclaim);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(img);
        return 0;
}

int pager_image_new_empty(uint64_t ram_bytes, struct pager_reclaim *reclaim, struct pager_image **ret) {
        cleanup_pager_image struct pager_image *img = image_new();
        int r;

        if (!img)
                return -ENOMEM;
        img->info.ram_bytes = ram_bytes;
        r = make_memory(img, -1, reclaim);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(img);
        return 0;
}

int pager_image_open(int fd, struct pager_reclaim *reclaim, struct pager_image **ret) {
        return open_image(fd, -1, reclaim, ret);
}

int pager_image_adopt(int fd, int memfd, struct pager_reclaim *reclaim, struct pager_image **ret) {
        cleanup_pager_image struct pager_image *img = NULL;
        int r = memfd < 0 ? -EBADF : open_image(fd, memfd, reclaim, &img);

        if (r < 0)
                return r;
        pager_image_share(img);
        r = pager_image_sample(img, pager_image_snap(img));
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

bool pager_image_key_equal(const struct pager_image_key *a, const struct pager_image_key *b) {
        return a->dev == b->dev && a->ino == b->ino && a->size == b->size && a->mtime.tv_sec == b->mtime.tv_sec &&
               a->mtime.tv_nsec == b->mtime.tv_nsec;
}

bool pager_image_matches(const struct pager_image *img, const struct pager_image_key *key) {
        return pager_image_snap(img) && pager_image_key_equal(&img->key, key);
}

const struct pager_image_key *pager_image_key(const struct pager_image *img) {
        static const struct pager_image_key none;

        return pager_image_snap(img) ? &img->key : &none;
}

bool pager_image_has_memory(const struct pager_image *img, int memfd) {
        struct stat ours, theirs;

        return fstat(img->memfd, &ours) == 0 && fstat(memfd, &theirs) == 0 && ours.st_dev == theirs.st_dev &&
               ours.st_ino == theirs.st_ino;
}

uint64_t pager_image_memory_id(const struct pager_image *img) {
        return img->memory_id;
}

int pager_image_file(const struct pager_image *img) {
        return pager_image_snap(img) ? snap_image_fd(pager_image_snap(img)) : -1;
}

const struct snap_image_info *pager_image_info(const struct pager_image *img) {
        return &img->info;
}

bool pager_image_is_nascent(const struct pager_image *img) {
        return !pager_image_snap(img);
}

uint64_t pager_image_pages(const struct pager_image *img) {
        return img->n_pages;
}

int pager_image_readonly_fd(const struct pager_image *img) {
        return img->readonly_fd;
}

int pager_image_memfd(const struct pager_image *img) {
        return img->memfd;
}

bool pager_image_is_bad(const struct pager_image *img) {
        for (size_t i = 0; i < pager_image_n_owners(img); i++)
                if (atomic_load_explicit(&pager_image_owner_at(img, i)->bad, memory_order_relaxed))
                        return true;
        return false;
}

void pager_image_trim(struct pager_image *img) {
        /* No event is raised: ours is registered without UFFD_FEATURE_EVENT_REMOVE. */
        (void) madvise(img->map, img->n_pages * PAGER_PAGE, MADV_DONTNEED);
}

void pager_image_set_idle(struct pager_image *img, uint64_t since_ns) {
        pager_resident_set_idle(&img->resident, since_ns);
}

struct pager_fill_job *pager_image_job(struct pager_image *img) {
        return &img->job;
}

struct pager_fill_job *pager_image_survey_job(struct pager_image *img) {
        return &img->survey;
}

void pager_image_cancel_fill(struct pager_image *img) {
        atomic_store_explicit(&img->cancel_fill, true, memory_order_relaxed);
}

bool pager_image_fill_cancelled(const struct pager_image *img) {
        return atomic_load_explicit(&img->cancel_fill, memory_order_relaxed);
}

const char *pager_image_reason(int r) {
        switch (r) {
        case -EBADMSG:
                return "a stored frame or index node is corrupt: its checksum or its structure is wrong";
        case -EUCLEAN:
                return "the image's memory holds a page that the pager did not put there";
        case -EPIPE:
                return "the VM that it is being forked from has ended, or the fork was given up";
        case -ENOMEM:
                return "out of memory for the image's pages";
        case -EDQUOT:
                return "the memory budget is used up";
        case -ESHUTDOWN:
                return "the image is being handed to another pager";
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
                .compressed_bytes = atomic_load_explicit(&img->compressed_bytes, memory_order_relaxed),
                .resident_pages = atomic_load_explicit(&img->resident.pages, memory_order_relaxed),
                .reclaimed_pages = atomic_load_explicit(&img->resident.reclaimed, memory_order_relaxed),
                .refaults = atomic_load_explicit(&img->resident.clock.refaults, memory_order_relaxed),
        };
        for (unsigned i = 0; i < PAGER_N_CAUSES; i++)
                ret->pages[i] = atomic_load_explicit(&img->pages[i], memory_order_relaxed);
}
