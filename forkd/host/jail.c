/* SPDX-License-Identifier: MIT */
/* The default blocks lie in 1879048192 … 2147352575 (0x70000000 …), which systemd's table of users
 * (docs/UIDS-GIDS.md, "Special UID ranges that are unused") leaves to nobody: not to packages, people, containers or
 * DynamicUser. Two forkds of a host get different blocks unless their instances' hashes collide; then two of their VMMs may
 * be the same user, and are kept apart by their namespaces alone. */
#include "forkd/host/jail.h"

#include <errno.h>
#include <stdlib.h>

#include "forkd/daemon.h"
#include "forkd/vmm/qemu.h"
#include "forkd/vmm/vmm_jail.h"

#define UNUSED_FIRST 1879048192u
#define UNUSED_BLOCKS 2046u
#define FIRST_VMM 16u

_Static_assert(UNUSED_FIRST + UNUSED_BLOCKS * JAIL_BLOCK - 1 <= 2147352575u, "no further than the table goes");

uid_t forkd_uid_base(const struct daemon *d) {
        if (d->cfg.uid_base)
                return d->cfg.uid_base;
        return UNUSED_FIRST + (uid_t) (strtoull(d->instance, NULL, 16) % UNUSED_BLOCKS) * JAIL_BLOCK;
}

int forkd_jail(struct daemon *d, const struct vmm_jail **ret, struct err *e) {
        char program[PATH_MAX];
        int r;

        *ret = NULL;
        if (!d->cfg.jail)
                return 0;
        if (!d->vmm_jail) {
                r = qemu_find(program, sizeof(program), e);
                if (r == 0)
                        r = vmm_jail_new(d->run_dir, program, d->cfg.visible, forkd_uid_base(d) + 1, &d->vmm_jail, e);
                if (r < 0)
                        return e->hint[0] ? r
                                          : err_hint(e, "a host on which VMMs cannot be confined needs '[security] jail = off'");
        }
        *ret = d->vmm_jail;
        return 0;
}

int forkd_take_user(struct daemon *d, struct identity_holder *h, uint32_t *ret, struct err *e) {
        uint32_t first = forkd_uid_base(d) + FIRST_VMM, last = forkd_uid_base(d) + JAIL_BLOCK - 1;
        int r;

        if (!d->cfg.jail)
                return 0;
        r = identities_take_number(d->identities, h, IDENTITY_UID, first, last, d->next_uid, ret, e);
        if (r == 0)
                d->next_uid = *ret + 1;
        return r;
}

int vm_take_user(struct vm *vm, struct err *e) {
        return forkd_take_user(vm->d, &vm->identity, &vm->uid, e);
}

void vm_drop_user(struct vm *vm) {
        identities_drop_kind(vm->d->identities, &vm->identity, IDENTITY_UID);
        vm->uid = 0;
}

void vm_keep_user(struct vm *vm) {
        struct identity uid;
        struct err e;

        if (vm->uid == 0 || identity_number(IDENTITY_UID, vm->uid, &uid) < 0)
                return;
        best_effort(identities_take(vm->d->identities, &vm->identity, &uid, &e));
        vm->d->next_uid = MAX_OF(vm->d->next_uid, vm->uid + 1);
}
