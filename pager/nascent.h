/* SPDX-License-Identifier: MIT */
/* A nascent image: what a VMM had written at one moment, while that VMM runs on and before anything of it is on disk. Its
 * pages are copied out of the VMM, in the background or when a clone needs them; nascent.c has the theory. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "pager/image.h"
#include "pager/layout.h"

struct pager_nascent;
struct pager_view;

/** Arming: its pages are being found out. Copying: they are protected, and copied. Complete: all are here. Broken: some will
 *  never be. */
enum pager_nascent_state { PAGER_NASCENT_ARMING, PAGER_NASCENT_COPYING, PAGER_NASCENT_COMPLETE, PAGER_NASCENT_BROKEN };

/** An image of @ram_bytes whose pages are in the process of @mem_fd (/proc/<pid>/mem, taken in any case), where @l says (copied).
 *  One reference is the caller's. -ENOMEM, -EMFILE, -EOPNOTSUPP. */
int pager_nascent_new(uint64_t ram_bytes, const struct pager_layout *l, int mem_fd, struct pager_reclaim *reclaim,
                      struct pager_image **ret) attr_warn_unused;
void pager_nascent_free(struct pager_nascent *n); /* NULL is fine */

enum pager_nascent_state pager_nascent_state(const struct pager_image *img);

/* ---- control thread ---- */

/** That it is copied: for the filler. */
struct pager_fill_job *pager_nascent_job(struct pager_image *img);

/** While it is arming: @n pages from @first on are to be copied (may be told twice); have nothing, and read zero. These are
 *  told last. */
void pager_nascent_add(struct pager_image *img, uint64_t first, uint64_t n);
void pager_nascent_add_zero(struct pager_image *img, uint64_t first, uint64_t n);
/** All of them have been told and are protected. What was not told is as @base (a reference is taken) has it. -ENOMEM. */
int pager_nascent_begin(struct pager_image *img, struct pager_image *base) attr_warn_unused;
uint64_t pager_nascent_pages(const struct pager_image *img);
/** How many of them are here. */
uint64_t pager_nascent_copied(const struct pager_image *img);
/** It will never be complete: who needs one of its pages fails. Any thread. */
void pager_nascent_break(struct pager_image *img);
/** It has been written to @fd (stays the caller's): from now on it is as any other image. -EINVAL: it is not complete; -EUCLEAN: the
 *  file has other pages, as far as a few of them tell; the errors of snap_image_open. */
int pager_nascent_publish(struct pager_image *img, int fd) attr_warn_unused;
/** All that the VMM had discarded when the last page was copied has been told: what it discards from now on harms nothing. False: the image
 *  is broken. */
bool pager_nascent_settle(struct pager_image *img);
/** A bit a page: it was copied out of the VMM. Constant. */
const uint64_t *pager_nascent_noted(const struct pager_image *img);
/** Of a published one: gives back what is large and not in @keep (or NULL), for the VMM has it, too. Whoever needs it finds it in the file. */
void pager_nascent_shed(struct pager_image *img, const struct pager_view *keep);

/* ---- any thread ---- */

/** Copies a bounded number of pages from *page on. Returns 1 (go on from *page), or 0: it is complete; -EPIPE: broken. */
int pager_nascent_step(struct pager_image *img, struct pager_scratch *s, uint64_t *page) attr_warn_unused;
/** Copies @page, which is about to be written in the VMM. Of the @max pages from there on (at least 1) *ret_n may be: they are
 *  here, or were not to be copied. -EAGAIN: it is arming; -EPIPE: broken. */
int pager_nascent_secure(struct pager_image *img, struct pager_scratch *s, uint64_t page, uint64_t max,
                         uint64_t *ret_n) attr_warn_unused;
/** The VMM has discarded @n pages from @first on: what was to be copied of them is lost. */
void pager_nascent_discarded(struct pager_image *img, uint64_t first, uint64_t n);

/* ---- for frames.c ---- */
/** pager_image_fill of a page that is not present. -EAGAIN: it has been published meanwhile. */
int pager_nascent_fill(struct pager_image *img, struct pager_scratch *s, uint64_t page,
                       struct pager_fill_result *ret) attr_warn_unused;
uint64_t pager_nascent_zero_run(const struct pager_image *img, uint64_t page, uint64_t max);
