/* SPDX-License-Identifier: MIT */
/* What VMs come to life from: a snapshot that is published, or a *nascent* one, whose pages are being copied out of a VM that
 * runs on (op_live.c). Of the latter there are no files under a name yet, but descriptors of its disks and its device state;
 * its memory is the pager's. */
#pragma once

#include "forkd/catalog.h"
#include "forkd/vm/vm.h"

struct vm_origin {
        const struct snap_manifest *m;
        struct snap_entry *entry;   /* NULL: it is nascent, and then: */
        int vmstate_fd;             /* its device state, as the VMM wrote it */
        int disk_fd[VMM_MAX_DISKS]; /* nobody writes to them */
        struct snap_manifest *own;  /* @m, of a copy */
};

void origin_published(struct snap_entry *s, struct vm_origin *ret);
/** Of a nascent one: without descriptors yet. */
void origin_nascent(const struct snap_manifest *m, struct vm_origin *ret);
/** With a manifest and descriptors of its own, to be cleared. -errno: *ret is as good as cleared. */
int origin_copy(const struct vm_origin *o, struct vm_origin *ret) attr_warn_unused;
/** Closes the descriptors and frees the copy. */
void origin_clear(struct vm_origin *o);

/** The VM's own files: reflinks of the disks, and of a published one a second name for the memory image (vm->has_base), so
 *  that the snapshot may be removed while the VM lives on it. */
int origin_make_files(struct vm *vm, const struct vm_origin *o, struct err *e) attr_warn_unused;
/** The device state, to be read from its beginning by somebody who shares no position with others. */
int origin_open_vmstate(struct vm *vm, const struct vm_origin *o, int *ret_fd, struct err *e) attr_warn_unused;

/** Brings @vm (in VM_STANDBY, or new in VM_CREATING) to life from @o, which stays as it is meanwhile. A coroutine call. */
int vm_restore_from(struct vm *vm, const struct vm_origin *o, bool paused, bool force, struct vm_clone_result *ret,
                    struct err *e) attr_warn_unused;

/** Gives @vm a second name @file for the memory image of snapshot @id, in place of one that it may have. */
int origin_link_memory(struct vm *vm, const char *id, const char *file) attr_warn_unused;
