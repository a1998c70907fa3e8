/* SPDX-License-Identifier: MIT */
/* Theory of operation: the source is first turned into what clones come to life from. A snapshot, or a VM on standby, is that
 * already. A running or paused VM is saved while it goes on (op_live.c), unsynced (a fork does not wait for the disk), and its
 * clones start as soon as it runs again, beside the copying of its memory. Where it cannot be saved so, they start from
 * the snapshot when there is one. One coroutine per clone restores it under a name of its own; turns.h bounds how many
 * do so at once.
 *
 * Names are taken before anything starts, so a clash costs nothing. When one clone fails, or the snapshot, those that came up
 * are removed again, and the snapshot that was made for them: a caller who asked for eight has eight or an error,
 * never five. So it is when forkd dies in the middle, too: the journal names the clones and the snapshot until all are
 * up, and the next forkd removes what it names. The source is not concerned once the snapshot is published: it goes on as that
 * one's child, whatever becomes of the clones. */
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
        struct forking *f;
        struct vm_clone_result times;
        struct co_wait done;
        struct err e;
};

/* One fork, on its coroutine's stack. */
struct forking {
        struct daemon *d;
        const struct fork_params *p;
        struct journal_entry j;
        struct admission_claim group;
        struct clone *clones;
        struct vm *source; /* running or paused, and taken by us; NULL: there is a snapshot already, */
        id_str snapshot;   /* this one */
        bool made;         /* it was made for the clones */
        bool began;        /* something that counts as a fork */
        bool started;      /* the clones were */
        struct vm_origin origin;
};

/* ---- the source ---- */

/* -ENOENT: the source is no VM. */
static int source_vm(struct daemon *d, const struct fork_params *p, struct vm **ret) {
        struct err ignored;

        return p->snapshot_only ? -ENOENT : vm_find(d, p->source, ret, &ignored);
}

/* @base gets what clones without a name of their own are called after. */
static int find_source(struct forking *f, char *base, size_t size, struct err *e) {
        struct snap_entry *s;
        struct vm *vm;
        int r;

        if (source_vm(f->d, f->p, &vm) < 0) {
                r = catalog_find(f->d->catalog, f->p->source, &s, e);
                if (r < 0) {
                        (void) err_set(e, ERR_NOT_FOUND, -ENOENT, "there is neither a VM nor a snapshot named '%.80s'",
                                       f->p->source);
                        return err_hint(e, "'forkctl ps' and 'forkctl snapshot ls' list them");
                }
                memcpy(f->snapshot, s->m.id, sizeof(s->m.id));
                (void) snprintf(base, size, "%s", s->m.tag[0] ? s->m.tag : s->m.source);
                return 0;
        }
        (void) snprintf(base, size, "%s", vm->name);
        r = pool_check_free(vm, e);
        if (r < 0)
                return r;
        if (vm->state == VM_STANDBY) {
                memcpy(f->snapshot, vm->snapshot, sizeof(vm->snapshot));
                return 0;
        }
        r = vm_op_begin(vm, "fork", e);
        if (r == 0)
                f->source = vm;
        return r;
}

/* For all of them at once, before anything is begun. What they are copies of is looked at again when it is used. */
static int reserve(struct daemon *d, const struct fork_params *p, struct admission_claim *group, struct err *e) {
        struct admission_need need;
        struct snap_entry *s;
        struct err ignored;
        struct vm *vm;
        char who[80];

        if (source_vm(d, p, &vm) == 0)
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
        const struct fork_params *p = c->f->p;
        int r;

        r = vm_restore_from(c->vm, &c->f->origin, p->paused, p->force, &c->times, &c->e);
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

/* Named in the journal by whoever writes it: the snapshot's making does, too. */
static int name_clones(struct forking *f, struct err *e) {
        int r = 0;

        for (unsigned i = 0; r == 0 && i < f->p->count; i++)
                r = journal_add_vm(&f->j, f->clones[i].vm->id);
        return r < 0 ? err_errno(e, r, "noting the clones") : 0;
}

/* As it is asked for, as the source has it, or the default. */
static int set_policy(struct daemon *d, const struct fork_params *p, struct clone *clones, struct err *e) {
        const char *policy = p->on_pager_loss;
        struct vm *source;

        if (!policy[0])
                policy = source_vm(d, p, &source) == 0 ? source->on_pager_loss : "kill";
        for (unsigned i = 0; i < p->count; i++)
                (void) snprintf(clones[i].vm->on_pager_loss, sizeof(clones[i].vm->on_pager_loss), "%s", policy);
        return vm_check_policy(policy, e);
}

static void start_clones(struct forking *f) {
        char who[80];

        f->started = true;
        for (unsigned i = 0; i < f->p->count; i++) {
                struct clone *c = &f->clones[i];

                c->f = f;
                c->done = CO_WAIT_INIT;
                (void) snprintf(who, sizeof(who), "'%s'", c->vm->name);
                admission_share(f->d->admission, &f->group, &c->vm->claim, who);
        }
        for (unsigned i = 0; i < f->p->count; i++) {
                if (co_start(f->d->base, clone_run, &f->clones[i]) < 0) {
                        (void) err_errno(&f->clones[i].e, -ENOMEM, "starting a clone");
                        co_wake(&f->clones[i].done, -ENOMEM);
                }
        }
}

static int await_clones(struct forking *f, struct err *e) {
        int first = 0;

        for (unsigned i = 0; i < f->p->count; i++) {
                int r = co_wait(&f->clones[i].done, -1);

                if (r < 0 && first == 0) {
                        first = r;
                        *e = f->clones[i].e;
                        if (f->p->count > 1)
                                (void) err_prefix(e, "clone '%s' failed, so none was kept", f->clones[i].vm->name);
                }
        }
        return first < 0 ? first : all_live(f->clones, f->p->count, e);
}

/* From a snapshot that is there. Nobody removes it meanwhile. */
static int run_clones(struct forking *f, struct err *e) {
        struct snap_entry *s;
        int r = catalog_find(f->d->catalog, f->snapshot, &s, e);

        if (r < 0)
                return r;
        origin_published(s, &f->origin);
        s->users++;
        start_clones(f);
        r = await_clones(f, e);
        s->users--;
        return r;
}

/* ---- from a VM that goes on ---- */

static void on_nascent(const struct vm_origin *o, void *arg) {
        struct forking *f = arg;

        if (origin_copy(o, &f->origin) == 0) /* else they start when the snapshot is there */
                start_clones(f);
}

/* Those that live on it had no file for their memory until now. */
static int settle_clones(struct forking *f, struct err *e) {
        for (unsigned i = 0; i < f->p->count; i++) {
                struct vm *vm = f->clones[i].vm;
                int r;

                if (!vm->session || vm->has_base)
                        continue;
                r = origin_link_memory(vm, f->snapshot, VM_BASE_FILE);
                if (r == 0) {
                        vm->has_base = true;
                        r = pager_session_has_image(vm);
                }
                if (r < 0)
                        return err_errno(e, r, "keeping the memory of '%s'", vm->name);
                r = vm_record_save(vm, e);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int fork_source(struct forking *f, struct fork_result *res, struct err *e) {
        const struct vm_snap_params sp = { .codec = SNAP_CODEC_LZ4, .journal = &f->j, .on_nascent = on_nascent, .arg = f };
        struct vm_snap_result sr;
        struct err ignored;
        int r;

        res->source_paused = f->began = f->source->state == VM_RUNNING;
        r = vm_op_snapshot(f->source, &sp, true, &sr, e);
        f->made = r == 0;
        if (r == 0) {
                memcpy(f->snapshot, sr.snapshot, sizeof(sr.snapshot));
                res->source_pause_ms = sr.pause_ms;
                r = settle_clones(f, e);
        }
        vm_op_end(TAKE_PTR(f->source));
        if (r < 0) {
                /* Why it failed is told, not what that did to them. */
                if (f->started)
                        (void) await_clones(f, &ignored);
                return r;
        }
        return f->started ? await_clones(f, e) : run_clones(f, e);
}

/* ---- all of it ---- */

static int prepare(struct forking *f, struct err *e) {
        const struct fork_params *p = f->p;
        char base[NAME_MAX_LEN + 1];
        int r;

        /* Taken first: forking a running VM costs it a pause, which a bad name must not. */
        r = p->on_pager_loss[0] ? vm_check_policy(p->on_pager_loss, e) : 0;
        if (r == 0)
                r = reserve(f->d, p, &f->group, e);
        if (r == 0 && p->name[0])
                r = reserve_names(f->d, p, "", f->clones, e);
        if (r == 0)
                r = find_source(f, base, sizeof(base), e);
        if (r == 0 && !p->name[0])
                r = reserve_names(f->d, p, base, f->clones, e);
        if (r == 0)
                r = set_policy(f->d, p, f->clones, e);
        return r == 0 ? name_clones(f, e) : r;
}

static int run(struct forking *f, struct fork_result *res, struct err *e) {
        int r = prepare(f, e);

        if (r == 0 && f->source)
                r = fork_source(f, res, e);
        else if (r == 0) {
                f->began = true;
                r = journal_write(f->d, &f->j, e);
                if (r == 0)
                        r = run_clones(f, e);
        }
        if (f->source) /* it was only looked at */
                vm_op_end(f->source);
        return r;
}

int fork_run(struct daemon *d, const struct fork_params *p, struct fork_result *ret, struct err *e) {
        cleanup_free struct clone *clones = calloc(p->count, sizeof(*clones));
        struct forking f = { .d = d, .p = p, .clones = clones };
        uint64_t start = now_ns();
        int r;

        if (!clones)
                return err_errno(e, -ENOMEM, "forking '%s'", p->source);
        journal_init(&f.j, JOURNAL_FORK);
        origin_nascent(NULL, &f.origin);
        r = run(&f, ret, e);
        admission_release(d->admission, &f.group);
        origin_clear(&f.origin);
        if (r == 0)
                r = journal_end(d, &f.j, e); /* the commit: they are the caller's */
        if (r < 0) {
                if (f.began)
                        times_failed(d, OP_FORK, r);
                drop_clones(clones, p->count);
                if (f.made)
                        catalog_drop(d->catalog, f.snapshot);
                journal_undone(d, &f.j);
                journal_clear(&f.j);
                return r;
        }
        journal_clear(&f.j);
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
