/* SPDX-License-Identifier: MIT */
/* What the parts of snapstore that read images share. Private to snapstore. */
#pragma once

#include <stdatomic.h>

#include "snapstore/codec.h"
#include "snapstore/index.h"

struct snap_image {
        struct snap_source src; /* owns src.fd */
        struct snap_image_info info;
        struct snap_index index;             /* constant after open */
        _Atomic(struct snap_leaf *) *leaves; /* one per region, NULL until first needed, constant afterwards */
};

struct snap_decoder {
        struct snap_decompressor *dec;
        _Alignas(8) uint8_t rec[SNAP_FRAME_MAX]; /* the frame as read */
        uint8_t page_buf[SNAP_FRAME_BYTES];      /* of snap_image_read_page and snap_region_read */
};

/** The leaf of @region, which must be in range. *ret is NULL for a region of zero pages, else lives as
 *  long as the image. */
int snap_image_leaf(struct snap_image *img, uint64_t region, const struct snap_leaf **ret) attr_warn_unused;

/** Copies the stored pages of @region to their places in @buf (SNAP_REGION_PAGES pages) and marks them in
 *  @ret_bitmap; places of zero pages in @buf are left alone. */
int snap_region_read(struct snap_image *img, struct snap_decoder *d, uint64_t region, void *buf,
                     uint64_t ret_bitmap[SNAP_REGION_PAGES / 64]) attr_warn_unused;
