/* SPDX-License-Identifier: MIT */
/* Keeps the decoded pages of all images within the memory budget: a thread that punches the coldest out of the
 * memfds. reclaim.c tells how; pager/clock.h what cold is, pager/budget.h how much there may be. */
#pragma once

#include "pager/clock.h"
#include "pager/image.h"

struct pager_reclaim;
struct pager_thread;

struct pager_reclaim_config {
        uint64_t budget;  /* bytes; 0: a quarter of the memory there is */
        const char *root; /* in front of /proc and the cgroups' directories: "" but for tests */
        int pressure_fd;  /* > 0: POLLPRI on it is pressure, besides what the kernel tells; taken */
};

/** Starts the thread. */
int pager_reclaim_new(const struct pager_reclaim_config *cfg, struct pager_reclaim **ret) attr_warn_unused;
/** All images must have been removed, or buried. NULL is fine. */
void pager_reclaim_free(struct pager_reclaim *r);

/** Lives as long as @r. */
const struct pager_thread *pager_reclaim_thread(const struct pager_reclaim *r);

/** What an image has of it. @r may be NULL in an image that nobody watches. */
struct pager_resident {
        struct pager_reclaim *r;
        struct pager_image *img;
        struct pager_clock clock;
        _Atomic uint64_t pages;     /* in the memfd, as inserted and punched: what st_blocks says, without a system call */
        _Atomic uint64_t reclaimed; /* pages punched out */

        /* r's, under its lock */
        struct pager_resident *next, *prev; /* in a ring */
        uint64_t idle_since_ns;             /* 0: sessions use it */
        uint64_t trims;                     /* which trim of all it has had */
        unsigned pins;                      /* threads that are about to punch something out of it */
};

/** Starts to count @img's pages, of which there are @n_pages in all; with @r they count against its budget. -ENOMEM. */
int pager_resident_init(struct pager_resident *m, struct pager_reclaim *r, struct pager_image *img,
                        uint64_t n_pages) attr_warn_unused;
/** The image goes, and its pages with it. Waits while one of its chunks is being punched out. */
void pager_resident_clear(struct pager_resident *m);

/** @n pages from @first on were inserted; where @demanded is one of them, it was asked for. Under a claim. */
void pager_resident_inserted(struct pager_resident *m, uint64_t first, uint64_t n, uint64_t demanded);
#define PAGER_NOT_DEMANDED UINT64_MAX
/** @n pages of @chunk were punched out, or found missing; it counts as empty from then on. Under a claim. */
void pager_resident_removed(struct pager_resident *m, uint64_t chunk, uint64_t n);

/** @n pages turned out to have been taken away by somebody else, before they were inserted again. Under a claim. */
void pager_resident_lost(struct pager_resident *m, uint64_t n);

/** Since when no session uses the image (CLOCK_MONOTONIC); 0: one does. */
void pager_resident_set_idle(struct pager_resident *m, uint64_t since_ns);

/** To be called before pages are inserted, without a claim. Far beyond the budget it makes room itself, by a bounded
 *  amount of work; demand always goes on. For PAGER_AHEAD: -EDQUOT when the budget is used up and not by idle images. */
int pager_reclaim_room(struct pager_reclaim *r, enum pager_cause cause) attr_warn_unused;
/** The kernel has no memory for us: punches out what it can find quickly. True: something was found. Without a claim. */
bool pager_reclaim_emergency(struct pager_reclaim *r);

/** Frees an image that nobody refers to any more, later. */
void pager_reclaim_bury(struct pager_reclaim *r, struct pager_image *img);

struct pager_reclaim_stats {
        uint64_t budget_bytes;   /* as it is now: the cgroup's limit and pressure make it less */
        uint64_t resident_bytes; /* of all images, as counted */
        uint64_t pressure;       /* events */
};
void pager_reclaim_get_stats(const struct pager_reclaim *r, struct pager_reclaim_stats *ret);
