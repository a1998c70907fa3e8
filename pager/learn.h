/* SPDX-License-Identifier: MIT */
/* What `uffd-pager serve --record` learns of a VMM: with forkd this is forkd's work (snapstore/learn.c). */
#pragma once

#include "pager/image.h"
#include "pager/record.h"

/** Merges what @rec has recorded into the file `workingset` in @dir_fd, which is replaced as a whole, or left alone if
 *  little was learned: *ret_new is the number of pages that are new in it. What is in the way there and is no working
 *  set of @img is replaced, too. -ENOSPC, -EROFS … */
int pager_learn(int dir_fd, const struct pager_image *img, const struct pager_record *rec, uint64_t *ret_new) attr_warn_unused;
