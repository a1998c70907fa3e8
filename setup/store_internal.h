/* SPDX-License-Identifier: MIT */
/* Shared by store.c and store_mount.c. */
#pragma once

#include <stddef.h>

#include "setup/setup.h"
#include "setup/store_mount.h"

#define STORE_LOCK ".store.lock"
#define STORE_SPACE_ADVICE "pass a smaller --store-size, or free space: old snapshots, `apt-get clean`, /var/log"

int store_path(const char *state_dir, const char *name, char *buf, size_t size, struct err *e) attr_warn_unused;
/** Waits for the lock of the state directory's store; closing the descriptor releases it. */
int store_lock(const char *state_dir, int *ret_fd, struct err *e) attr_warn_unused;
/** 1 if there is anything but (a few levels of) empty directories, 0 if not or if @path is missing. */
int store_dir_has_files(const char *path) attr_warn_unused;
