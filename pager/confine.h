/* SPDX-License-Identifier: MIT */
/* How the pager that forkd starts gives up what it was started with. */
#pragma once

#include <sys/types.h>

#include "common/err.h"

/** Before the pager exists and has threads: opens what will be needed and cannot be opened any more, leaves the host's mount
 *  namespace, and gives up all that no thread of it will need. */
int pager_confine_prepare(struct err *e) attr_warn_unused;
/** When all threads run and all sockets listen: from here on the whole process is user @uid, without capabilities, in a root
 *  directory that holds nothing but a /proc with itself, and may only make the system calls that it makes. */
int pager_confine(uid_t uid, struct err *e) attr_warn_unused;
