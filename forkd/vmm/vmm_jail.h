/* SPDX-License-Identifier: MIT */
/* What a VMM sees of the host: a root directory with the programs it is made of and a few devices, all of it read-only, and
 * a network namespace with nothing in it. Made once and shared by all VMMs of a forkd; each has a copy of the first, with
 * a /proc of its own. Everything else that a VMM needs is a descriptor that it inherits.
 *
 * Shared because making it takes 1 ms and a network namespace 0.6 ms more (and its end some milliseconds of a kernel
 * thread), a copy 0.1 ms. What VMMs share can neither be written by them nor carries anything from one to the other,
 * except for abstract sockets: two VMMs that were both taken over could talk to each other. */
#pragma once

#include "common/cleanup.h"
#include "common/err.h"
#include "common/jail.h"

struct vmm_jail {
        int mnt_ns, net_ns, root_fd;
        gid_t kvm_group;           /* whose members may open /dev/kvm in there */
        struct sock_fprog *filter; /* what no VMM calls is refused, beside its own filter (vmm_filter.c) */
};

/** Builds it. @where: a directory that exists, to build in; nothing is seen of it afterwards. @program: the VMM's, shown
 *  in there if it is not below /usr. @more: further paths to be shown, separated by colons; "" for none. */
int vmm_jail_new(const char *where, const char *program, const char *more, gid_t kvm_group, struct vmm_jail **ret,
                 struct err *e) attr_warn_unused;
void vmm_jail_free(struct vmm_jail *j);
