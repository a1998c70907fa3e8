/* SPDX-License-Identifier: MIT */
/* Filling images in the background, so that later clones find their pages there. */
#pragma once

#include "pager/image.h"
#include "pager/worker.h"

struct pager_filler;

/** Starts the thread. When a job ends, PAGER_FILLED with the image goes to @to_control. */
int pager_filler_new(struct pager_mailbox *to_control, struct pager_load *load, struct pager_filler **ret) attr_warn_unused;
/** Stops it; jobs that are queued are dropped without a letter. NULL is fine. */
void pager_filler_free(struct pager_filler *f);

/** Control thread: decodes all of @img that is not there yet. The job holds a reference, which goes to the
 *  receiver of the letter. Does nothing while the image has a job. */
void pager_filler_start(struct pager_filler *f, struct pager_image *img);
