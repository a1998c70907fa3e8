/* SPDX-License-Identifier: MIT */
/* The directories of a forkd: named, made, locked. See daemon.h for what is in them. */
#pragma once

#include "forkd/daemon.h"

/** Makes what is missing, locks both directories for this process, and fills in their paths, the instance's name and the
 *  boot's id. -EADDRINUSE: another forkd has one of them. */
int dirs_open(struct daemon *d, const struct daemon_options *opt, struct err *e) attr_warn_unused;

/** The same for somebody who only wants to look, and makes nothing but the lock files. -ENOENT, without a message: no
 *  forkd was ever here. d->run_dir is empty if that directory is not there. */
int dirs_open_existing(struct daemon *d, const struct daemon_options *opt, struct err *e) attr_warn_unused;

/** Makes the private directory @sub in @dir, or checks that the one that is there is. */
int dirs_make_sub(const char *dir, const char *sub, struct err *e) attr_warn_unused;
