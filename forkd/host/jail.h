/* SPDX-License-Identifier: MIT */
/* Whose processes a forkd's are. All users are numbers of a block that no package and no tool gives to anybody:
 *
 *      base            the pager
 *      base + 1        the group that may open /dev/kvm in the VMMs' root directory
 *      base + 16 …     one for each living VMM; a number that was given back is the last to be used again
 */
#pragma once

#include "common/err.h"
#include "forkd/vm/vm.h"

struct daemon;

#define JAIL_BLOCK 131072u /* users of one forkd */

/** [security] uid_base, or a block by the instance's name. */
uid_t forkd_uid_base(const struct daemon *d);
/** What VMMs live in, made when it is first asked for; NULL with `[security] jail = off`. */
int forkd_jail(struct daemon *d, const struct vmm_jail **ret, struct err *e) attr_warn_unused;
/** Gives a VMM a user for as long as @h holds it; *ret stays as it is where there is no jail. */
int forkd_take_user(struct daemon *d, struct identity_holder *h, uint32_t *ret, struct err *e) attr_warn_unused;
/** Gives the VM a user for its VMM, until vm_drop_user. */
int vm_take_user(struct vm *vm, struct err *e) attr_warn_unused;
/** The VMM has been reaped. */
void vm_drop_user(struct vm *vm);
/** For a VM of an earlier forkd: keeps the user that its record names. */
void vm_keep_user(struct vm *vm);
