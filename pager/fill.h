/* SPDX-License-Identifier: MIT */
/* Filling images in the background, so that clones find their pages there. */
#pragma once

#include <stdbool.h>
#include <sys/queue.h>

#include "pager/mailbox.h"

struct pager_ahead;
struct pager_filler;
struct pager_image;
struct pager_load;
struct pager_thread;

/** Part of the object that it is about: an image, to be filled as a whole, surveyed or copied, or a working set. */
struct pager_fill_job {
        TAILQ_ENTRY(pager_fill_job) entry;
        struct pager_letter letter;
        struct pager_image *image;
        struct pager_ahead *ahead; /* NULL: the whole image */
        bool survey;               /* of the image: which pages are there */
        bool copy;                 /* it is nascent: its pages, out of the VMM */
        bool running;              /* control thread: queued or running */
        int result;                /* valid when the letter has arrived */
};

/** Starts the thread. When a job ends, PAGER_FILLED, PAGER_SURVEYED or PAGER_COPIED with the image, or PAGER_REPLAYED with the working set,
 *  goes to @to_control. */
int pager_filler_new(struct pager_mailbox *to_control, struct pager_load *load, struct pager_filler **ret) attr_warn_unused;
/** Stops it; jobs that are queued are dropped without a letter. NULL is fine. */
void pager_filler_free(struct pager_filler *f);

/** Lives as long as the filler. */
const struct pager_thread *pager_filler_thread(const struct pager_filler *f);

/** Control thread: runs @job, at once if it is about a working set: somebody's VMM starts; then what is copied out of a VMM that
 *  waits for it where it writes, then a survey, before images are filled. It holds references to
 *  its objects, which go to the receiver of the letter. Does nothing while it is running. */
void pager_filler_start(struct pager_filler *f, struct pager_fill_job *job);
/** What the job held; by the receiver of its letter. */
void pager_fill_job_done(struct pager_fill_job *job);
