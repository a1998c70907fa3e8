/* SPDX-License-Identifier: MIT */
/* Tells a VMM of which images' memories its guest's memory is made. */
#pragma once

#include "common/cleanup.h"

struct pager_image;
struct pager_view;

/** Sends the message of pager/attach/segments.h for @img on @sock, a stream socket whose buffer is empty. -ENOTSUP: a memory
 *  that it has pages from cannot be opened read-only, so no VMM can have it; -EMSGSIZE: it does not fit into the socket; the
 *  errors of sendmsg. */
int pager_segments_send(int sock, const struct pager_image *img) attr_warn_unused;
/** Tells a VMM that runs to map the runs of @v, all of @img, anew. */
int pager_segments_send_anew(int sock, const struct pager_image *img, const struct pager_view *v) attr_warn_unused;
