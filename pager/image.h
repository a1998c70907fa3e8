/* SPDX-License-Identifier: MIT */
/* An open image: its compressed file, and the memfd that its decoded pages are put into, once per host, for
 * all clones. See image.c for how a page gets there. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "pager/fill.h"
#include "pager/limits.h"
#include "snapstore/image.h"

/** One thread's tools: nothing is allocated while a fault waits. */
struct pager_scratch {
        struct snap_decoder *decoder;
        uint8_t *frame; /* SNAP_FRAME_BYTES */
        uint8_t *huge;  /* PAGER_HUGE_PAGE bytes; NULL until a VMM with such pages comes */
        /* What the last pager_image_fill decoded: a frame's pages need not be neighbours. */
        struct pager_run {
                uint64_t first, n;
                const uint8_t *data; /* in `frame`, until its next use */
        } run[SNAP_FRAME_PAGES];
        unsigned n_runs;
        _Atomic bool reading;             /* in a read of an image's file, or waiting for a thread that may be */
        struct pager_flight_slot *flight; /* where a fault in hand is noted, NULL: nowhere */
};
int pager_scratch_init(struct pager_scratch *s) attr_warn_unused;
void pager_scratch_clear(struct pager_scratch *s);

/** What names an image: the file itself. While we hold it open no other file can have its inode, and a
 *  published image never changes. Not its uuid: a crafted file could claim another's, and share its memory. */
struct pager_image_key {
        dev_t dev;
        ino_t ino;
        off_t size;
        struct timespec mtime;
};
bool pager_image_key_equal(const struct pager_image_key *a, const struct pager_image_key *b);
int pager_image_key_of_fd(int fd, struct pager_image_key *ret) attr_warn_unused;

struct pager_image;
struct pager_reclaim;
struct pager_flight_slot;

/** Opens @fd (stays the caller's). The errors of snap_image_open; -ENOMEM, -EMFILE; -EOPNOTSUPP: the kernel
 *  cannot do it. One reference belongs to the caller. With @reclaim (or NULL) its pages count against the budget. */
int pager_image_open(int fd, struct pager_reclaim *reclaim, struct pager_image **ret) attr_warn_unused;
/** The same with the memory in @memfd (stays the caller's), which another pager has made and filled: from here on the image
 *  is shared (below). -EBADF: it is no memfd as pager_image_open makes them, open for writing, of the image's size; -EUCLEAN:
 *  its pages are not those of @fd, as far as a few of them tell. What is in it is not looked for: pager_image_survey_step does
 *  that, until then a page is found to be there when it is to be inserted. */
int pager_image_adopt(int fd, int memfd, struct pager_reclaim *reclaim, struct pager_image **ret) attr_warn_unused;
struct pager_image *pager_image_ref(struct pager_image *img);
/** Any thread. The last reference frees all memory that no clone maps. NULL is fine. */
void pager_image_unref(struct pager_image *img);
DEFINE_CLEANUP(struct pager_image, pager_image_unref)
#define cleanup_pager_image attr_cleanup(pager_image_unref_p)

/** From now on (until the other) nothing is punched out of it, and nothing is being punched. Control thread. */
void pager_image_pin(struct pager_image *img);
void pager_image_unpin(struct pager_image *img);

/** Has it no file yet (nascent.h)? */
bool pager_image_is_nascent(const struct pager_image *img);

bool pager_image_matches(const struct pager_image *img, const struct pager_image_key *key);
const struct pager_image_key *pager_image_key(const struct pager_image *img);
/** Is @memfd the image's memory? */
bool pager_image_has_memory(const struct pager_image *img, int memfd);

/** Of guest RAM. */
uint64_t pager_image_pages(const struct pager_image *img);
/** Control thread: of its file; while it is nascent nothing but ram_bytes. */
/** Names its memory, the same in all pagers that have it: the number of the memfd's inode. */
uint64_t pager_image_memory_id(const struct pager_image *img);
/** Its file, which stays the image's. -1: it has none yet. */
int pager_image_file(const struct pager_image *img);

const struct snap_image_info *pager_image_info(const struct pager_image *img);

/** The memfd, open read-only: what a VMM gets. Stays the image's. -1: it was adopted from a pager of another user, so it cannot be
 *  opened again. */
int pager_image_readonly_fd(const struct pager_image *img);
/** The same, open for writing: what another pager needs. Stays the image's. */
int pager_image_memfd(const struct pager_image *img);

/** Why a page is put into the memfd: somebody waits for it, or will need it soon. */
enum pager_cause { PAGER_DEMAND, PAGER_AHEAD, PAGER_N_CAUSES };

enum pager_page {
        PAGER_PAGE_ZERO,    /* not stored: map the zero page */
        PAGER_PAGE_PRESENT, /* was in the memfd already */
        PAGER_PAGE_DECODED, /* this call put it there */
};

struct pager_fill_result {
        enum pager_page kind;
        uint64_t first, n; /* pages known to be present around the asked one; for a zero page {page, 1} */
};

/** Makes sure that @page can be mapped. Waits while another thread decodes the same frame.
 *  -EBADMSG: the stored bytes are corrupt; -EUCLEAN: somebody else has put another content into the memfd;
 *  -EIO, -ENOMEM, -ERANGE; -EDQUOT: @cause is PAGER_AHEAD and the memory budget is used up, -ESHUTDOWN: and the image is quiet.
 *  Afterwards the image is marked bad where its content is in doubt. */
int pager_image_fill(struct pager_image *img, struct pager_scratch *s, uint64_t page, enum pager_cause cause,
                     struct pager_fill_result *ret) attr_warn_unused;

/** Reads the present pages around @page out of the memfd into @s->frame, for a VMM that cannot map it: ret->n pages from
 *  ret->first on. -EAGAIN: @page is not there (any more); else the errors of pager_image_fill. */
int pager_image_read(struct pager_image *img, struct pager_scratch *s, uint64_t page,
                     struct pager_fill_result *ret) attr_warn_unused;

/** The same ahead of demand; but -EBUSY where another thread decodes that frame, or punches near it. */
int pager_image_fill_nowait(struct pager_image *img, struct pager_scratch *s, uint64_t page,
                            struct pager_fill_result *ret) attr_warn_unused;

/** The same on demand, and @early is called as soon as the page itself can be mapped, before the others of its
 *  frame are there; not if it had been there all the time, or is zero. At most once. */
typedef void pager_early_fn(void *arg);
int pager_image_fill_early(struct pager_image *img, struct pager_scratch *s, uint64_t page, pager_early_fn *early, void *arg,
                           struct pager_fill_result *ret) attr_warn_unused;

/** A sentence for an error of pager_image_fill. */
const char *pager_image_reason(int r);

bool pager_image_present(const struct pager_image *img, uint64_t page);
/** The kernel says that one of these pages, of one region, is missing after all: looks which, so that they are
 *  decoded again. */
void pager_image_recheck(struct pager_image *img, struct pager_scratch *s, uint64_t first, uint64_t n);
/** Punches @n pages from @first on (whole chunks, of one region) out of the memfd, and so out of all clones; the next
 *  who needs them has them decoded again. Returns how many were there; 0 also when somebody has a claim there at the
 *  moment. */
uint64_t pager_image_evict(struct pager_image *img, uint64_t first, uint64_t n);

/** For whoever takes pages out of the memfd, or reads them from it: waits until nobody else has the claim, and
 *  takes it; one per thread. While it is held the pages of that frame (region) stay as they are. */
struct pager_claim;
void pager_image_claim(struct pager_image *img, const struct pager_claim *c);
void pager_image_release(struct pager_image *img, const struct pager_claim *c);
/** From @page, how many consecutive pages (at most @max) are zero; 0 on errors, which a fill will tell. */
uint64_t pager_image_zero_run(struct pager_image *img, struct pager_scratch *s, uint64_t page, uint64_t max);

/** The first region (SNAP_REGION_PAGES pages) at or after @region that stores any page. -ENOENT: none. */
int pager_image_next_region(struct pager_image *img, uint64_t region, uint64_t *ret) attr_warn_unused;

/** Gives back the page tables of our own mapping; the pages stay. */
void pager_image_trim(struct pager_image *img);

/** Since when no session uses it (now_ns()); 0: one does. Idle images are the first to lose their pages. */
void pager_image_set_idle(struct pager_image *img, uint64_t since_ns);

/** Bad: not to be shared with new sessions; also of an image that has pages from a bad one. */
bool pager_image_is_bad(const struct pager_image *img);
/** Has somebody else put pages into the image's memory? -EUCLEAN: yes, the image is bad. -EAGAIN: it is being worked on, or
 *  quiet, so that cannot be told now. -EINPROGRESS: there are some, but the image is shared: a survey will tell. Control thread; holds nobody up for longer than a look at a bitmap. */
int pager_image_audit(struct pager_image *img) attr_warn_unused;

/* ---- two pagers, one memory (survey.c) ---- */

/** Quiet: nothing is decoded into it ahead of demand, punched out or looked at. Control thread. */
void pager_image_set_quiet(struct pager_image *img, bool quiet);
/** Does any thread have a claim? In a quiet image without sessions that are served there will be no other. */
bool pager_image_claimed(struct pager_image *img);
/** Another pager may put pages into its memory, or take some away, from now on. */
void pager_image_share(struct pager_image *img);
bool pager_image_is_shared(const struct pager_image *img);
/** Looks which of the pages from *@page on are in the memory, as many as 64 of them, and at what is new to us: what differs
 *  from the image taints it. 1: *@page is where to go on; 0: that was all; -ECANCELED: the image is quiet; else the errors
 *  of snap_image_decode.
 *  A step takes as long as 64 pages take to be read, about 30 us, for which their region is claimed; what is not there is
 *  skipped by the kernel. All of 1 GiB that is there takes 0.12 s of CPU, see tests/unit/pager/test_survey.c. */
int pager_image_survey_step(struct pager_image *img, struct pager_scratch *s, uint64_t *page) attr_warn_unused;
/** The job that does it with all of the image. */
struct pager_fill_job *pager_image_survey_job(struct pager_image *img);

struct pager_image_stats {
        uint64_t present_bytes;         /* memory that the memfd really has, from the kernel */
        uint64_t decodes;               /* frames decoded */
        uint64_t compressed_bytes;      /* read for that */
        uint64_t pages[PAGER_N_CAUSES]; /* put into the memfd thereby */
        uint64_t resident_pages;        /* in the memfd, as we count */
        uint64_t reclaimed_pages;       /* punched out to keep the budget */
        uint64_t refaults;              /* chunks of PAGER_CHUNK_PAGES that were needed again after that */
};
void pager_image_get_stats(const struct pager_image *img, struct pager_image_stats *ret);

/** The job that fills all of it. */
struct pager_fill_job *pager_image_job(struct pager_image *img);
/** Tells a background fill of this image to stop early. */
void pager_image_cancel_fill(struct pager_image *img);
bool pager_image_fill_cancelled(const struct pager_image *img);
