/* SPDX-License-Identifier: MIT */
/* What a guest boots from: a kernel and an initramfs, made once per host and shared by every forkd on it.
 *
 *     <cache>/assets/<id>/{vmlinuz,initrd,info.json}    never changes once it is there
 *     <cache>/current -> assets/<id>                    replaced by rename
 *     <cache>/kernel/<release>/…                        the kernel package's files that we need
 *     <cache>/tmp.<random>                              work under way; whoever holds the lock removes others'
 *     <cache>/.lock                                     flock: one builder at a time
 *
 * <id> is a hash of everything that went in, so the same inputs give the same directory everywhere. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define ASSETS_CACHE_DEFAULT "/var/cache/forkd"
#define ASSETS_ID_LEN 32 /* hex digits: XXH3-128 of the inputs */
#define ASSETS_MAX_PATH 512

struct assets {
        char id[ASSETS_ID_LEN + 1];
        char release[64];          /* the kernel's release, "6.1.0-56-cloud-amd64" */
        char dir[ASSETS_MAX_PATH]; /* all three absolute if the cache's path is */
        char kernel[ASSETS_MAX_PATH];
        char initrd[ASSETS_MAX_PATH];
};

/** FORKD_CACHE_DIR, or ASSETS_CACHE_DEFAULT. */
const char *assets_cache_dir(void);

/** Where the current assets are; blocking, a few system calls. The paths name the content-addressed
 *  directory, not the `current` link, so they stay good when setup replaces the assets meanwhile.
 *  -ENOENT with the sentence and the hint to show when setup has not run. */
int assets_locate(const char *cache_dir, struct assets *ret, struct err *e) attr_warn_unused;
