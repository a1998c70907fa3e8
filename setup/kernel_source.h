/* SPDX-License-Identifier: MIT */
/* Where a guest kernel's files come from, before anything is taken out of them. */
#pragma once

#include <stdbool.h>

#include "setup/kernel.h"

struct kernel_source {
        char release[64];
        char image[KERNEL_MAX_PATH];       /* the bzImage */
        char modules_dir[KERNEL_MAX_PATH]; /* …/lib/modules/<release> */
        char name[192];                    /* for people; see struct kernel */
        char key[96];                      /* release and a hash of what tells this source from others */
};

/** The newest installed Debian cloud kernel below @root ("" for the host). -ENOENT. */
int kernel_source_installed(const char *root, struct kernel_source *ret) attr_warn_unused;

/** Downloads the package into @tmp_dir and unpacks it there. */
int kernel_source_package(const char *tmp_dir, kernel_progress_fn *progress, void *arg, struct kernel_source *ret,
                          struct err *e) attr_warn_unused;
