/* SPDX-License-Identifier: MIT */
/* Answers for VMMs in copy mode, whose memory is their own: see copy.c. Called by the session's worker only. */
#pragma once

#include "pager/image.h"
#include "pager/session.h"

/** Before a worker serves @s for the first time: makes ready in @scratch what its faults will need. -ENOMEM. */
int pager_copy_prepare(const struct pager_session *s, struct pager_scratch *scratch) attr_warn_unused;

/** Copies the stored page @page, which faulted at @addr in @g, and what came along with it according to @fill (of
 *  pager_image_fill with the same @scratch, just before). [*ret_lo, *ret_hi) is the part around @addr, whose waiters
 *  are woken. Errors as those of the userfaultfd calls; -EAGAIN also when the page was given back meanwhile. */
int pager_copy_pages(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch,
                     const struct pager_fill_result *fill, uint64_t page, uint64_t addr, uint64_t *ret_lo,
                     uint64_t *ret_hi) attr_warn_unused;

/** Answers a fault at @addr in @g where the VMM's pages are huge: one of them is put together and copied. The errors
 *  of pager_image_fill come with *ret_image_error set, all others are of the userfaultfd. */
int pager_copy_huge(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t addr,
                    enum pager_cause cause, uint64_t *ret_lo, uint64_t *ret_hi, enum pager_fault_kind *ret_kind,
                    bool *ret_image_error) attr_warn_unused;

/** Ahead of a fault: copies what is decoded of the pages [@page, @page + @n), which lie in @g. Returns how many of them
 *  need no more attention, or an error; -ENODATA: @page has to be decoded first. */
int64_t pager_copy_ahead(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t page,
                         uint64_t n) attr_warn_unused;
/** The same for huge pages, which are decoded as far as they are not yet. */
int64_t pager_copy_ahead_huge(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t page,
                              uint64_t n) attr_warn_unused;

/** The VMM has moved [@from, @from + @len) of its memory to @to. The errors of pager_layout_move. */
int pager_copy_moved(struct pager_session *s, uint64_t from, uint64_t to, uint64_t len) attr_warn_unused;
