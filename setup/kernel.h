/* SPDX-License-Identifier: MIT */
/* The guest's kernel: taken from the host if it has Debian's cloud kernel installed, else from the package.
 * What a guest needs of it (the ELF kernel and some modules, unpacked, in load order) is kept in
 *     <cache>/kernel/<key>/{vmlinux,modules/<name>.ko,info.json}
 * so that a new agent needs no download. <key> is the release and a hash of where it came from. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define KERNEL_MAX_MODULES 32
#define KERNEL_MAX_PATH 512

struct kernel {
        char release[64];
        char source[192]; /* "package linux-image-… 6.1.192-2", "host /boot/vmlinuz-…" */
        char dir[KERNEL_MAX_PATH];
        char hash[33]; /* of vmlinux and the modules */
        size_t n_modules;
        char modules[KERNEL_MAX_MODULES][56]; /* names in load order: dependencies before dependents */
};

/** Reads a kernel that is ready in the cache: the one that the host has installed, if it has any, else the
 *  newest from a package. -ENOENT when that one is not in the cache yet. */
int kernel_cached(const char *cache_dir, struct kernel *ret) attr_warn_unused;

typedef void kernel_progress_fn(const char *text, int percent, void *arg);

/** Gets one: imports the host's, or downloads the package. Works in @tmp_dir, a directory on the cache's file
 *  system that the caller removes; the result is published in the cache and older ones are removed.
 *  Needs KERNEL_WORK_BYTES free. */
int kernel_get(const char *cache_dir, const char *tmp_dir, kernel_progress_fn *progress, void *arg, struct kernel *ret,
               struct err *e) attr_warn_unused;

/** Room that kernel_get takes at its worst: package 26 MiB, unpacked 110 MiB, ELF kernel 51 MiB (6.1). */
#define KERNEL_WORK_BYTES (256ull << 20)
