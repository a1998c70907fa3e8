/* SPDX-License-Identifier: MIT */
/* Theory of operation: the source is first turned into a snapshot id. A snapshot, or a VM on standby, has one
 * already. A running or paused VM gives one of the moment, unsynced (a fork does not wait for the disk), and goes
 * on. Then one coroutine per clone restores it under a name of its own; turns.h bounds how many do so at once.
 *
 * Names are taken before anything starts, so a clash costs nothing. When one clone fails, those that came up
 * are removed again, and the snapshot that was made for them: a caller who asked for eight has eight or an error,
 * never five. So it is when forkd dies in the middle, too: the journal names the clones and the snapshot until all are
 * up, and the next forkd removes what it names. */
#include "forkd/vm/fork.h"

#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/catalog.h"
#include "forkd/daemon.h"
#include "forkd/host/room.h"
#include "forkd/pool/pool.h"
#include "forkd/vm/journal.h"
#include "forkd/vm/origin.h"

struct clone {
        struct vm *vm;
        const struct vm_origin *origin;
        const struct fork_params *p;
        struct vm_clone_result times;
        struct co_wait done;
        struct err e;
};

/* ---- the source ---- */

static int source_snapshot(struct daemon *d, const struct fork_params *p, struct journal_entry *j, id_str ret, char *base,
                           size_t size, struct fork_result *res, bool *ret_made, struct err *e) {
        struct vm_snap_params sp = { .codec = SNAP_CODEC_LZ4, .journal = j };
        struct vm_snap_result sr;
        struct snap_entry *s;
        struct err ignored;
        struct vm *vm;
        int r;

        if (vm_find(d, p->source, &vm, &ignored) < 0) {
                r = catalog_find(d->catalog, p->source, &s, e);
                if (r < 0) {
                        (void) err_set(e, ERR_NOT_FOUND, -ENOENT, "there is neither a VM nor a snapshot named '%.80s'",
                                       p->source);
                        return err_hint(e, "'forkctl ps' and 'forkctl snapshot ls' list them");
                }
                memcpy(ret, s->m.id, sizeof(s->m.id));
                (void) snprintf(base, size, "%s", s->m.tag[0] ? s->m.tag : s->m.source);
                return 0;
        }
        (void) snprintf(base, size, "%s", vm->name);
        r = pool_check_free(vm, e);
        if (r < 0)
                return r;
        if (vm->state == VM_STANDBY) {
                memcpy(ret, vm->snapshot, sizeof(vm->snapshot));
                return 0;
        }
        r = vm_op_begin(vm, "fork", e);
        if (r < 0)
                return r;
        res->source_paused = vm->state == VM_RUNNING;
        r = vm_op_snapshot(vm, &sp, true, &sr, e);
        vm_op_end(vm);
        if (r < 0)
                return r;
        *ret_made = true;
        res->source_pause_ms = sr.pause_ms;
        memcpy(ret, sr.snapshot, sizeof(sr.snapshot));
        return 0;
}

/* For all of them at once, before anything is begun. What they are copies of is looked at again when it is used. */
static int reserve(struct daemon *d, const struct fork_params *p, struct admission_claim *group, struct err *e) {
        struct admission_need need;
        struct snap_entry *s;
        struct err ignored;
        struct vm *vm;
        char who[80];

        if (vm_find(d, p->source, &vm, &ignored) == 0)
                need = admission_vm_need(vm->machine.mem_bytes, vm->machine.vcpus, false);
        else if (catalog_find(d->catalog, p->source, &s, &ignored) == 0)
                need = admission_vm_need(s->m.mem_bytes, s->m.vcpus, false);
        else
                return 0; /* source_snapshot says so */
        if (p->count == 1)
                (void) snprintf(who, sizeof(who), "a clone of '%.40s'", p->source);
        else
                (void) snprintf(who, sizeof(who), "%u clones of '%.40s'", p->count, p->source);
        return admission_reserve(d->admission, group, who, &need, p->count, e);
}

/* ---- names ---- */

/* "base-n", with the base cut so that it fits. */
static void numbered(const char *base, unsigned n, char *buf, size_t size) {
        char suffix[16];
        int len = snprintf(suffix, sizeof(suffix), "-%u", n);

        (void) snprintf(buf, size, "%.*s%s", NAME_MAX_LEN - len, base, suffix);
}

static int reserve_names(struct daemon *d, const struct fork_params *p, const char *base, struct clone *clones, struct err *e) {
        unsigned n = 0;
        int r;

        if (p->name[0] && !name_valid(p->name)) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "'%.80s' cannot be the name of a VM", p->name);
                return err_hint(e, "names are letters, digits, '.', '_' and '-', at most %d", NAME_MAX_LEN);
        }
        if (p->name[0] && p->count > 1 && strlen(p->name) + 5 > NAME_MAX_LEN)
                return err_set(e, ERR_INVALID, -EINVAL, "the name '%.80s' is too long to be numbered", p->name);
        for (unsigned i = 0; i < p->count; i++) {
                char name[NAME_MAX_LEN + 1];

                if (p->name[0] && p->count == 1)
                        (void) strcpy(name, p->name);
                else if (p->name[0])
                        numbered(p->name, i + 1, name, sizeof(name));
                else
                        do
                                numbered(base, ++n, name, sizeof(name));
                        while (vm_name_taken(d, name));
                r = vm_new(d, name, &clones[i].vm, e);
                if (r < 0)
                        return r;
                clones[i].vm->busy = "fork";
        }
        return 0;
}

/* ---- the clones ---- */

static void clone_run(void *arg) {
        struct clone *c = arg;
        int r;

        r = vm_restore_from(c->vm, c->origin, c->p->paused, c->p->force, &c->times, &c->e);
        co_wake(&c->done, r);
}

static void drop_clones(struct clone *clones, unsigned n) {
        struct err ignored;

        for (unsigned i = 0; i < n; i++)
                if (clones[i].vm)
                        (void) vm_remove(clones[i].vm, &ignored);
}

/* The first to come up may have died while the last did. */
static int all_live(const struct clone *clones, unsigned n, struct err *e) {
        for (unsigned i = 0; i < n; i++) {
                const struct vm *vm = clones[i].vm;

                if (vm->vmm_exited || vm->lost[0])
                        return err_set(e, ERR_VMM, -EPIPE, "clone '%s' has ended meanwhile%s%s", vm->name,
                                       vm->lost[0] ? ": " : "", vm->lost);
        }
        return 0;
}

/* From here on a forkd that finds the entry removes them. */
static int announce(struct daemon *d, struct journal_entry *j, const struct clone *clones, unsigned n, struct err *e) {
        int r = 0;

        for (unsigned i = 0; r == 0 && i < n; i++)
                r = journal_add_vm(j, clones[i].vm->id);
        return r < 0 ? err_errno(e, r, "noting the clones") : journal_write(d, j, e);
}

/* As it is asked for, as the source has it, or the default. */
static int set_policy(struct daemon *d, const struct fork_params *p, struct clone *clones, struct err *e) {
        const char *policy = p->on_pager_loss;
        struct err ignored;
        struct vm *source;

        if (!policy[0])
                policy = vm_find(d, p->source, &source, &ignored) == 0 ? source->on_pager_loss : "kill";
        for (unsigned i = 0; i < p->count; i++)
                (void) snprintf(clones[i].vm->on_pager_loss, sizeof(clones[i].vm->on_pager_loss), "%s", policy);
        return vm_check_policy(policy, e);
}

static int run_clones(struct daemon *d, const struct fork_params *p, const struct vm_origin *origin,
                      struct admission_claim *group, struct clone *clones, struct err *e) {
        int first = 0;
        char who[80];

        for (unsigned i = 0; i < p->count; i++) {
                clones[i].p = p;
                clones[i].origin = origin;
                clones[i].done = CO_WAIT_INIT;
                (void) snprintf(who, sizeof(who), "'%s'", clones[i].vm->name);
                admission_share(d->admission, group, &clones[i].vm->claim, who);
        }
        for (unsigned i = 0; i < p->count; i++) {
                if (co_start(d->base, clone_run, &clones[i]) < 0) {
                        (void) err_errno(&clones[i].e, -ENOMEM, "starting a clone");
                        co_wake(&clones[i].done, -ENOMEM);
                }
        }
        for (unsigned i = 0; i < p->count; i++) {
                int r = co_wait(&clones[i].done, -1);

                if (r < 0 && first == 0) {
                        first = r;
                        *e = clones[i].e;
                        if (p->count > 1)
                                (void) err_prefix(e, "clone '%s' failed, so none was kept", clones[i].vm->name);
                }
        }
        return first < 0 ? first : all_live(clones, p->count, e);
}

int fork_run(struct daemon *d, const struct fork_params *p, struct fork_result *ret, struct err *e) {
        cleanup_free struct clone *clones = calloc(p->count, sizeof(*clones));
        cleanup_journal struct journal_entry j = { 0 };
        uint64_t start = now_ns();
        char base[NAME_MAX_LEN + 1];
        struct admission_claim group = { 0 };
        struct vm_origin origin;
        struct snap_entry *s;
        bool made = false, begun;
        id_str snapshot;
        int r;

        if (!clones)
                return err_errno(e, -ENOMEM, "forking '%s'", p->source);
        journal_init(&j, JOURNAL_FORK);
        /* Taken first: forking a running VM costs it a pause, which a bad name must not. */
        r = p->on_pager_loss[0] ? vm_check_policy(p->on_pager_loss, e) : 0;
        if (r == 0)
                r = reserve(d, p, &group, e);
        if (r == 0 && p->name[0])
                r = reserve_names(d, p, "", clones, e);
        if (r == 0)
                r = source_snapshot(d, p, &j, snapshot, base, sizeof(base), ret, &made, e);
        if (r == 0 && !p->name[0])
                r = reserve_names(d, p, base, clones, e);
        if (r == 0)
                r = set_policy(d, p, clones, e);
        begun = r == 0 || ret->source_paused;
        if (r == 0)
                r = announce(d, &j, clones, p->count, e);
        if (r == 0)
                r = catalog_find(d->catalog, snapshot, &s, e);
        if (r == 0) {
                origin_published(s, &origin);
                s->users++;
                r = run_clones(d, p, &origin, &group, clones, e);
                s->users--;
        }
        admission_release(d->admission, &group);
        if (r == 0)
                r = journal_end(d, &j, e); /* the commit: they are the caller's */
        if (r < 0) {
                if (begun)
                        times_failed(d, OP_FORK, r);
                drop_clones(clones, p->count);
                if (made)
                        catalog_drop(d->catalog, snapshot);
                journal_undone(d, &j);
                return r;
        }
        for (unsigned i = 0; i < p->count; i++) {
                struct vm *vm = clones[i].vm;

                (void) strcpy(ret->clones[i].name, vm->name);
                memcpy(ret->clones[i].id, vm->id, sizeof(vm->id));
                ret->clones[i].pid = vm->pid;
                ret->clones[i].times = clones[i].times;
                vm_op_end(vm);
        }
        ret->wall_ms = ms_since(start);
        return 0;
}
