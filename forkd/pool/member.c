/* SPDX-License-Identifier: MIT */
/* A member's own life.
 *
 * It is restored as any clone, woken up under a name of its own and asked for one echo: what a guest needs to come to life is
 * then in its memory, and QEMU has translated the code for it. Then it is paused. The connection to its agent stays, and begins a
 * new conversation when the member is taken; so a take makes no connection.
 *
 * While a member is made its VMM has a low priority: guests that are used, and takes, go first on a busy host. */
#include <dirent.h>
#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/catalog.h"
#include "forkd/events.h"
#include "forkd/pool/internal.h"

#define MAKING_NICE 10
#define ECHO_TIMEOUT_MS 10000
#define NAME_HEX 8 /* digits that tell members of a pool apart */

int pool_check_free(const struct vm *vm, struct err *e) {
        if (!vm->pool[0])
                return 0;
        (void) err_set(e, ERR_STATE, -EINVAL, "'%s' belongs to the pool '%s'", vm->name, vm->pool);
        return err_hint(e, "take one of its VMs: forkctl pool take %s", vm->pool);
}

bool pool_has_member(const struct pool *p, const struct vm *vm) {
        return vm->pool[0] && strcmp(vm->pool, p->name) == 0;
}

/* Also one that is checked at this moment: whoever wants it waits for that. */
bool pool_member_is_warm(const struct vm *vm) {
        return vm->pool[0] && vm->state == VM_PAUSED && vm->vmm && !vm->vmm_exited && !vm->lost[0] && !vm->removing &&
               (!vm->busy || vm->chore);
}

void pool_count(const struct pool *p, struct pool_counts *ret) {
        struct pool_counts c = { .making = p->making };
        const struct vm *vm;

        TAILQ_FOREACH (vm, &p->d->vms, entry) {
                if (!pool_has_member(p, vm) || !pool_member_is_warm(vm))
                        continue;
                if (strcmp(vm->snapshot, p->from) == 0)
                        c.fresh++;
                else
                        c.old++;
        }
        *ret = c;
}

/* ---- making one ---- */

void pool_member_name(const struct pool *p, char ret[NAME_MAX_LEN + 1]) {
        do
                (void) snprintf(ret, NAME_MAX_LEN + 1, "%.*s.%0*x", NAME_MAX_LEN - NAME_HEX - 1, p->name, NAME_HEX,
                                (unsigned) random_u64());
        while (vm_name_taken(p->d, ret));
}

/* A priority that is lowered could not be raised again without that. */
bool pool_may_raise_priority(void) {
        struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3] = { 0 };

        return syscall(SYS_capget, &h, caps) == 0 && (caps[CAP_TO_INDEX(CAP_SYS_NICE)].effective & CAP_TO_MASK(CAP_SYS_NICE));
}

void pool_member_spawned(const struct vm *vm, pid_t pid) {
        if (vm->pool[0] && vm->d->pools->may_raise_priority)
                (void) setpriority(PRIO_PROCESS, (id_t) pid, MAKING_NICE); /* its threads are yet to come, and inherit it */
}

static void normal_priority(const struct vm *vm) {
        char path[64];
        struct dirent *de;
        DIR *dir;

        (void) snprintf(path, sizeof(path), "/proc/%d/task", (int) vm->pid);
        dir = opendir(path);
        while (dir && (de = readdir(dir))) {
                long tid = strtol(de->d_name, NULL, 10);

                if (tid > 0)
                        (void) setpriority(PRIO_PROCESS, (id_t) tid, 0);
        }
        if (dir)
                (void) closedir(dir);
}

int pool_member_warm_up(struct vm *vm, struct err *e) {
        double ms;
        int r;

        r = vm_wake_queue(vm, WIRE_WAKE_RESTORE, e);
        if (r == 0)
                r = vm->ops->resume(vm->vmm, e);
        if (r == 0)
                r = vm_wake_wait(vm, e);
        if (r == 0)
                r = guest_link_ping(vm->link, ECHO_TIMEOUT_MS, &ms, e);
        if (r == 0)
                r = vm->ops->pause(vm->vmm, e);
        if (r < 0)
                return err_prefix(e, "warming '%s' up", vm->name);
        guest_link_rewind(vm->link);
        normal_priority(vm);
        vm->needs_wake = true;
        vm->checked_ns = now_ns();
        return vm_set_state(vm, VM_PAUSED, e);
}

int pool_member_make(struct pool *p, struct err *e) {
        char name[NAME_MAX_LEN + 1];
        struct vm_clone_result times;
        struct err ignored;
        id_str from;
        struct vm *vm;
        int r;

        pool_member_name(p, name);
        r = vm_new(p->d, name, &vm, e);
        if (r < 0)
                return r;
        memcpy(from, p->from, sizeof(from));
        (void) strcpy(vm->on_pager_loss, p->on_pager_loss);
        vm->busy = "warming up";
        r = vm_pool_mark(vm, p->name, e);
        if (r == 0)
                r = vm_op_restore(vm, from, false, false, &times, e);
        if (r < 0)
                (void) vm_remove(vm, &ignored);
        else
                vm_op_end(vm);
        return r;
}

/* ---- its end ---- */

static void drop(void *arg) {
        struct vm *vm = arg;
        struct err e;

        if (vm_op_rm(vm, &e) < 0)
                log_warning("%s", e.message);
}

void pool_member_drop(struct vm *vm) {
        vm->removing = true; /* from now on it does not count */
        vm_chore(vm, "removing", drop);
}

/* ---- is it well? ---- */

/* A guest that stands still cannot fall ill; what may go is its VMM, its memory's pager, its agent's connection. The second has
 * a watchdog. So the VMM is asked, which changes nothing in the guest: a guest that was resumed for a check would age, and dirty
 * pages, for as long as it waits. */
static int ask(struct vm *vm, struct err *e) {
        bool running;
        int r = vm->ops->is_running(vm->vmm, &running, e);

        if (r == 0 && running)
                return err_set(e, ERR_STATE, -EINVAL, "its guest runs");
        if (r == 0 && !(vm->link && guest_link_is_open(vm->link)))
                r = vm_link_open(vm, e);
        return r;
}

static void check(void *arg) {
        struct vm *vm = arg;
        struct err e;

        vm->checked_ns = now_ns();
        if (ask(vm, &e) < 0 && !vm->vmm_exited && !vm->lost[0])
                vm_fail(vm, "%s", e.message);
        vm_op_end(vm);
}

void pool_member_check(struct vm *vm) {
        vm_chore(vm, "checking", check);
}

int pool_member_adopt(struct vm *vm, struct err *e) {
        bool running = false;
        int r;

        if (!pool_by_name(vm->d, vm->pool))
                return err_set(e, ERR_STATE, -ENOENT, "there is no pool '%s' any more", vm->pool);
        r = vm->ops->is_running(vm->vmm, &running, e);
        if (r == 0 && running)
                return err_set(e, ERR_STATE, -EINVAL, "it was about to be taken from its pool");
        if (r == 0)
                r = vm_link_open(vm, e);
        vm->checked_ns = now_ns();
        return r;
}
