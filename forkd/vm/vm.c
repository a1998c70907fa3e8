/* SPDX-License-Identifier: MIT */
#include "forkd/vm/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/daemon.h"
#include "forkd/events.h"
#include "forkd/monitor/monitor.h"
#include "forkd/pool/pool.h"

#define CHORE_TIMEOUT_MS 15000

static const char *const state_names[] = {
        [VM_CREATING] = "creating", [VM_BOOTING] = "booting",   [VM_RUNNING] = "running", [VM_PAUSED] = "paused",
        [VM_STANDBY] = "standby",   [VM_STOPPING] = "stopping", [VM_STOPPED] = "stopped", [VM_FAILED] = "failed",
};

const char *vm_comes_back_from(const struct vm *vm) {
        return vm->has_origin && vm->state != VM_STANDBY ? vm->origin : vm->snapshot;
}

const char *vm_state_name(enum vm_state s) {
        return (size_t) s < ARRAY_LEN(state_names) ? state_names[s] : "unknown";
}

static struct vm *holder_vm(const struct identity_holder *h) {
        return (struct vm *) ((char *) h - offsetof(struct vm, identity));
}

static void describe(const struct identity_holder *h, char *buf, size_t size) {
        const struct vm *vm = holder_vm(h);

        if (vm->removing && vm_lingers(vm))
                (void) snprintf(buf, size, "the removed VM '%s', whose VMM (pid %d) has not ended yet", vm->name, (int) vm->pid);
        else
                (void) snprintf(buf, size, "VM '%s'", vm->name);
}

static struct vm *find(struct daemon *d, const char *s) {
        struct identity_holder *h;
        struct identity id;

        if (identity_name(s, &id) < 0)
                return NULL;
        h = identities_find(d->identities, &id);
        return h ? holder_vm(h) : NULL;
}

int vm_find(struct daemon *d, const char *name_or_id, struct vm **ret, struct err *e) {
        struct vm *vm = find(d, name_or_id);

        if (!vm) {
                if (!name_valid(name_or_id)) {
                        (void) err_set(e, ERR_INVALID, -EINVAL, "'%.80s' cannot be the name of a VM", name_or_id);
                        return err_hint(e, "names are letters, digits, '.', '_' and '-', at most %d", NAME_MAX_LEN);
                }
                (void) err_set(e, ERR_NOT_FOUND, -ENOENT, "there is no VM named '%s'", name_or_id);
                return err_hint(e, "'forkctl ps' lists the VMs");
        }
        *ret = vm;
        return 0;
}

struct vm *vm_by_id(struct daemon *d, const char *id) {
        struct vm *vm;

        TAILQ_FOREACH (vm, &d->vms, entry)
                if (strcmp(vm->id, id) == 0)
                        return vm;
        return NULL;
}

const char *vm_group(const struct vm *vm) {
        return vm->group[0] ? vm->group : vm->id;
}

struct vm *vm_by_group(struct daemon *d, const char *group) {
        struct vm *vm;

        TAILQ_FOREACH (vm, &d->vms, entry)
                if (strcmp(vm_group(vm), group) == 0)
                        return vm;
        return NULL;
}

bool vm_name_taken(struct daemon *d, const char *name) {
        return find(d, name) != NULL;
}

struct vm *vm_alloc(struct daemon *d) {
        struct vm *vm = calloc(1, sizeof(*vm));

        if (!vm)
                return NULL;
        vm->d = d;
        pager_hold_init(&vm->hold);
        vm->ending_fd = -1;
        identity_holder_init(&vm->identity, describe);
        TAILQ_INIT(&vm->calls);
        TAILQ_INIT(&vm->waiters);
        return vm;
}

void vm_free(struct vm *vm) {
        admission_release(vm->d->admission, &vm->claim);
        identity_holder_end(vm->d->identities, &vm->identity);
        free(vm);
}

int vm_enter(struct vm *vm, struct err *e) {
        struct identity name, id;
        int r;

        if (identity_name(vm->name, &name) < 0 || identity_name(vm->id, &id) < 0)
                return err_set(e, ERR_INVALID, -EINVAL, "'%s' (%s) is no VM", vm->name, vm->id);
        r = identities_take(vm->d->identities, &vm->identity, &name, e);
        if (r == 0)
                r = identities_take(vm->d->identities, &vm->identity, &id, e);
        if (r < 0)
                return r;
        TAILQ_INSERT_TAIL(&vm->d->vms, vm, entry);
        vm->d->n_vms++;
        return 0;
}

int vm_check_name(struct daemon *d, const char *name, struct err *e) {
        struct vm *vm;

        if (!name_valid(name)) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "'%.80s' cannot be the name of a VM", name);
                return err_hint(e,
                                "names are letters, digits, '.', '_' and '-', begin with a letter or digit, and have "
                                "at most %d characters",
                                NAME_MAX_LEN);
        }
        vm = find(d, name);
        if (vm && vm->removing && vm_lingers(vm)) {
                (void) err_set(e, ERR_EXISTS, -EEXIST,
                               "the name '%s' is held: the VMM (pid %d) of the removed VM has not ended yet", name,
                               (int) vm->pid);
                return err_hint(e,
                                "take another name, or find out what holds the process: a debugger, a disk that does not answer");
        }
        if (vm) {
                (void) err_set(e, ERR_EXISTS, -EEXIST, "a VM named '%s' exists already", name);
                return err_hint(e, "take another name, or remove it: forkctl rm %s", name);
        }
        return 0;
}

int vm_rename(struct vm *vm, const char *name, struct err *e) {
        struct identity from, to;
        int r;

        if (strcmp(vm->name, name) == 0)
                return 0;
        r = find(vm->d, name) == vm ? 0 : vm_check_name(vm->d, name, e); /* its id is one of its names */
        if (r < 0)
                return r;
        if (identity_name(vm->name, &from) < 0 || identity_name(name, &to) < 0)
                return err_set(e, ERR_INVALID, -EINVAL, "'%s' cannot become '%s'", vm->name, name);
        r = identities_take(vm->d->identities, &vm->identity, &to, e);
        if (r < 0)
                return r;
        if (strcmp(vm->name, vm->id) != 0)
                identities_drop(vm->d->identities, &vm->identity, &from);
        (void) snprintf(vm->name, sizeof(vm->name), "%s", name);
        (void) snprintf(vm->claim.who, sizeof(vm->claim.who), "'%s'", name);
        return 0;
}

int vm_new(struct daemon *d, const char *name, struct vm **ret, struct err *e) {
        struct timespec now;
        struct vm *vm;
        int r = vm_check_name(d, name, e);

        if (r < 0)
                return r;
        if (d->stopping) {
                (void) err_set(e, ERR_CANCELED, -ECANCELED, "forkd is about to exit");
                return err_hint(e, "try again when it is back");
        }
        if (!d->store)
                return err_set(e, ERR_BUSY, -EBUSY, "the store is not attached at this moment");
        if (d->n_vms >= d->cfg.max_vms) {
                (void) err_set(e, ERR_LIMIT, -EMFILE, "there are %u VMs already, the most that this forkd holds", d->n_vms);
                return err_hint(e, "remove some, or raise max_vms in the configuration");
        }
        vm = vm_alloc(d);
        if (!vm)
                return err_errno(e, -ENOMEM, "making VM '%s'", name);
        (void) clock_gettime(CLOCK_REALTIME, &now);
        vm->created_ns = (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
        id_new(vm->id);
        (void) strcpy(vm->name, name);
        r = vm_enter(vm, e);
        if (r < 0) {
                vm_free(vm);
                return r;
        }
        *ret = vm;
        return 0;
}

int vm_check_policy(const char *policy, struct err *e) {
        if (strcmp(policy, "kill") == 0 || strcmp(policy, "recover") == 0)
                return 0;
        (void) err_set(e, ERR_INVALID, -EINVAL, "there is no policy '%.40s' for a guest whose pager is lost", policy);
        return err_hint(e, "use kill or recover");
}

static int join(char *buf, size_t size, const char *base, const char *mid, const char *id, const char *file) {
        int n = snprintf(buf, size, "%s/%s%s%s%s", base, mid, id, file ? "/" : "", file ? file : "");

        return n < 0 || (size_t) n >= size ? -ENAMETOOLONG : 0;
}

int vm_state_path(const struct vm *vm, const char *file, char *buf, size_t size) {
        return join(buf, size, vm->d->state_dir, "vms/", vm->id, file);
}

int vm_run_path(const struct vm *vm, const char *file, char *buf, size_t size) {
        return join(buf, size, vm->d->run_dir, "vms/", vm->id, file);
}

int vm_store_path(const struct vm *vm, const char *file, char *buf, size_t size) {
        return join(buf, size, vm->d->state_dir, "store/vms/", vm->id, file);
}

/* Who waits for a chore to end is given the VM by whoever ends it: nobody can come between, and remove it. */
struct vm_waiter {
        TAILQ_ENTRY(vm_waiter) entry;
        struct co_wait wait;
        const char *what;
};

static void wake_waiters(struct vm *vm, int r) {
        for (struct vm_waiter *w; (w = TAILQ_FIRST(&vm->waiters));) {
                TAILQ_REMOVE(&vm->waiters, w, entry);
                co_wake(&w->wait, r);
        }
}

static void remove_path(const char *what, int r, const char *path) {
        if (r == 0)
                r = io_remove_tree(AT_FDCWD, path);
        if (r < 0)
                log_warning("cannot remove the %s %s: %s", what, path, strerror(-r));
}

void vm_delete(struct vm *vm, bool files) {
        char path[PATH_MAX];

        if (files) {
                /* The record goes last: what is left of a crash in between still has an owner. */
                remove_path("files", vm_store_path(vm, NULL, path, sizeof(path)), path);
                remove_path("files", vm_run_path(vm, NULL, path, sizeof(path)), path);
                remove_path("record", vm_state_path(vm, NULL, path, sizeof(path)), path);
        }
        if (vm->idle_waiter)
                co_wake(vm->idle_waiter, 0);
        wake_waiters(vm, -ENOENT);
        if (vm->pool[0])
                pools_kick(vm->d);
        monitor_vm_forget(vm->d->monitor, vm);
        TAILQ_REMOVE(&vm->d->vms, vm, entry);
        vm->d->n_vms--;
        vm_free(vm);
}

void vm_release_all(struct daemon *d) {
        for (struct vm *vm; (vm = TAILQ_FIRST(&d->vms));) {
                guest_link_free(vm->link);
                if (vm->vmm)
                        vm->ops->free(vm->vmm);
                pager_hold_clear(&vm->hold);
                vm_forget_end(vm);
                vm_delete(vm, false);
        }
}

static int exiting(struct err *e) {
        (void) err_set(e, ERR_CANCELED, -ECANCELED, "forkd is about to exit");
        return err_hint(e, "try again when it is back");
}

/* Not a word to @vm after -ENOENT. */
static int wait_for_chore(struct vm *vm, const char *what, struct err *e) {
        struct vm_waiter w = { .wait = CO_WAIT_INIT, .what = what };
        int r;

        TAILQ_INSERT_TAIL(&vm->waiters, &w, entry);
        r = co_wait(&w.wait, CHORE_TIMEOUT_MS);
        if (r == -ENOENT)
                return err_set(e, ERR_NOT_FOUND, r, "the VM was removed meanwhile");
        if (r == -ECANCELED)
                return exiting(e);
        if (!w.wait.done)
                TAILQ_REMOVE(&vm->waiters, &w, entry);
        return r == -ETIMEDOUT ? -EBUSY : r;
}

int vm_op_begin(struct vm *vm, const char *what, struct err *e) {
        int r = 0;

        if (vm->d->stopping)
                return exiting(e);
        if (vm->busy && vm->chore)
                r = wait_for_chore(vm, what, e);
        else if (vm->busy)
                r = -EBUSY;
        else
                vm->busy = what;
        if (r == -EBUSY) {
                (void) err_set(e, ERR_BUSY, r, "cannot %s '%s': %s is under way", what, vm->name, vm->busy);
                return err_hint(e, "try again when it is done");
        }
        return r;
}

void vm_chore(struct vm *vm, const char *what, void (*fn)(void *vm)) {
        vm->busy = what;
        vm->chore = true;
        if (co_start(vm->d->base, fn, vm) < 0) {
                vm->busy = NULL;
                vm->chore = false;
        }
}

static void pass_on(struct vm *vm) {
        struct vm_waiter *w;

        vm->busy = NULL;
        vm->chore = false;
        if (vm->d->stopping)
                wake_waiters(vm, -ECANCELED);
        w = TAILQ_FIRST(&vm->waiters);
        if (w) {
                TAILQ_REMOVE(&vm->waiters, w, entry);
                vm->busy = w->what;
                co_wake(&w->wait, 0);
                return;
        }
        if (vm->idle_waiter)
                co_wake(TAKE_PTR(vm->idle_waiter), 0);
        if (vm->pool[0])
                pools_kick(vm->d);
        vm_end_later(vm);
        vm_agent_regain_later(vm);
}

/* States in which a VMM is meant to live. The others end with an operation of their own. */
static bool is_live(enum vm_state s) {
        return s == VM_BOOTING || s == VM_RUNNING || s == VM_PAUSED;
}

static void clean_up_ended(struct vm *vm) {
        bool live = is_live(vm->state), by_itself = vm->guest_shutdown;
        struct err e;

        if (live && by_itself)
                (void) vm_set_state(vm, VM_STOPPING, &e);
        else if (live)
                vm_fail(vm, "the VMM ended unexpectedly");
        (void) vm_teardown(vm);
        if (live && by_itself && vm_set_state(vm, VM_STOPPED, &e) < 0)
                log_error("%s", e.message);
}

void vm_op_end(struct vm *vm) {
        if (vm->lost[0] && is_live(vm->state))
                vm_fail(vm, "%s", vm->lost);
        if (vm->vmm_exited && vm->vmm)
                clean_up_ended(vm);
        if (vm->io_error)
                vm_check_io_error(vm);
        pass_on(vm);
}

int vm_enter_state(struct vm *vm, enum vm_state state, struct err *e) {
        if (state == VM_RUNNING || state == VM_PAUSED) {
                if (vm->lost[0])
                        return err_set(e, ERR_PAGER, -EPIPE, "'%s' lost its memory: %s", vm->name, vm->lost);
                if (vm->vmm_exited)
                        return err_set(e, ERR_VMM, -EPIPE, "the VMM of '%s' has ended", vm->name);
        }
        if (state != vm->state) {
                log_info("%s (%s): %s -> %s", vm->name, vm->id, vm_state_name(vm->state), vm_state_name(state));
                events_add(vm->d->events, "vm.state", vm, "%s -> %s", vm_state_name(vm->state), vm_state_name(state));
        }
        vm->state = state;
        vm->reason[0] = '\0';
        return 0;
}

int vm_set_state(struct vm *vm, enum vm_state state, struct err *e) {
        int r = vm_enter_state(vm, state, e);

        return r < 0 ? r : vm_record_save(vm, e);
}

void vm_fail(struct vm *vm, const char *fmt, ...) {
        struct err e;
        va_list ap;

        va_start(ap, fmt);
        (void) vsnprintf(vm->reason, sizeof(vm->reason), fmt, ap);
        va_end(ap);
        log_warning("%s (%s): %s -> failed: %s", vm->name, vm->id, vm_state_name(vm->state), vm->reason);
        events_add(vm->d->events, "vm.state", vm, "%s -> failed: %s", vm_state_name(vm->state), vm->reason);
        vm->state = VM_FAILED;
        if (vm_record_save(vm, &e) < 0)
                log_error("%s", e.message);
}
