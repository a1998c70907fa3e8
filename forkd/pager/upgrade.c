/* SPDX-License-Identifier: MIT */
/* A planned succession: the program on disk takes over from the one that runs, and no guest notices more than a pause of
 * its faults.
 *
 * Theory of operation. Old and new process live side by side, the new one at <run>/pager.sock.next. Sessions move image by
 * image, for two processes must not fill one memory: the old one lets all sessions of an image go (`session.release`), the
 * new one takes them (`session.adopt`), and only when every session has moved the old one is told to forget them. Until then it can
 * take them back (`session.resume`), which is what happens when anything fails.
 *
 * A forkd that is killed in the middle leaves two pagers. The next one finds both, asks each what it serves, and goes on. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/events.h"
#include "forkd/pidfile.h"
#include "forkd/vm/recording.h"

#define ATTACH_TIMEOUT_MS 30000
#define DRAIN_TIMEOUT_MS 10000

struct upgrade {
        struct pager *p;
        struct pager_process *from, *to;
        double *pause_ms;
        unsigned n, moved;
};

static bool is_dying(const struct vm *vm) {
        return vm->lost[0] || vm->vmm_exited || vm_lingers(vm) || vm->hold.pid <= 0;
}

/* Guests wait meanwhile. */
static int tell_session(struct pager_process *o, struct vm *vm, const char *method, struct err *e) {
        return pager_session_tell(o, vm, method, vm->d->cfg.recover_ms, e);
}

/* ---- before ---- */

/* A VMM that starts has no memory yet that could be moved; those under way are waited for, new ones wait for us. */
static int wait_attached(struct pager *p, const struct pager_process *from, struct err *e) {
        uint64_t start = now_ns();

        for (;;) {
                struct co_wait wait = CO_WAIT_INIT;
                int left = ATTACH_TIMEOUT_MS - (int) ms_since(start);
                struct vm *vm;

                /* Its guests wait for a successor, for which our turn is needed. */
                if (!pager_process_is_up(from))
                        return err_set(e, ERR_PAGER, -EPIPE, "the pager has died");
                /* One that an earlier forkd knew has attached, or never will. */
                TAILQ_FOREACH (vm, &p->d->vms, entry)
                        if (vm->session && !vm->lost[0] && !vm->vmm_exited && vm->hold.process == from &&
                            (vm->hold.remaps || (!vm->session_known && vm->hold.uffd < 0)))
                                break;
                if (!vm && p->lives == 0)
                        return 0;
                p->attached = &wait;
                if (left > 0 && co_wait(&wait, left) == 0)
                        continue;
                p->attached = NULL;
                if (!vm)
                        return err_set(e, ERR_BUSY, -EBUSY, "a VM is being forked while it runs, which does not come to an end");
                return err_set(e, ERR_BUSY, -EBUSY, "'%s' is being started and does not come to an end", vm->name);
        }
}

static int check_movable(struct pager *p, struct err *e) {
        struct vm *vm;

        TAILQ_FOREACH (vm, &p->d->vms, entry)
                if (vm->session && !is_dying(vm) && !pager_hold_complete(vm))
                        return err_set(e, ERR_STATE, -EOPNOTSUPP, "the session of '%s' cannot be moved to another pager",
                                       vm->name);
        return 0;
}

/* ---- moving ---- */

/* What moves at the moment: all sessions of one image. */
struct group {
        struct upgrade *u;
        uint64_t dev, ino;
};

static bool is_in(void *arg, const struct vm *vm) {
        const struct group *g = arg;

        return vm->session && vm->hold.process == g->u->from && !is_dying(vm) && vm->hold.image_dev == g->dev &&
               vm->hold.image_ino == g->ino;
}

static int let_go(void *arg, struct vm *vm, struct err *e) {
        const struct group *g = arg;
        int r;

        if (vm->hold.released_ns) /* an earlier forkd came so far */
                return 0;
        vm->hold.released_ns = now_ns();
        r = tell_session(g->u->from, vm, "session.release", e);
        return r < 0 && is_dying(vm) ? 0 : r;
}

static int take_over(void *arg, struct vm *vm, struct err *e) {
        cleanup_mp_buf struct mp_buf removed = { 0 };
        struct upgrade *u = ((struct group *) arg)->u;
        uint64_t n = 0;
        int r;

        mp_buf_init(&removed);
        r = pager_removed_of(u->from, vm, &removed, &n, e);
        if (r == 0)
                r = pager_session_adopt(u->to, vm, &removed, n, e);
        if (r < 0)
                return is_dying(vm) ? 0 : err_prefix(e, "moving the session of '%s'", vm->name);
        pager_hold_set_process(vm, u->to);
        u->pause_ms[u->moved++] = ms_since(vm->hold.released_ns);
        return 0;
}

/* Before anybody waits: the other images that they need. */
static int give_memories(void *arg, struct vm *vm, struct err *e) {
        struct upgrade *u = ((struct group *) arg)->u;
        int r = pager_hold_give_memories(u->to, &vm->hold, e);

        return r < 0 && is_dying(vm) ? 0 : r;
}

static int move_image(struct group *g, struct err *e) {
        int r = pager_each(g->u->p->d, &(struct pager_each){ is_in, give_memories, g }, e);

        if (r == 0)
                r = pager_each(g->u->p->d, &(struct pager_each){ is_in, let_go, g }, e);
        return r < 0 ? r : pager_each(g->u->p->d, &(struct pager_each){ is_in, take_over, g }, e);
}

static int move_all(struct upgrade *u, struct err *e) {
        int r = 0;

        while (r == 0) {
                struct group g = { .u = u };
                struct vm *vm;

                TAILQ_FOREACH (vm, &u->p->d->vms, entry)
                        if (vm->session && vm->hold.process == u->from && !is_dying(vm))
                                break;
                if (!vm)
                        return 0;
                g.dev = vm->hold.image_dev;
                g.ino = vm->hold.image_ino;
                r = move_image(&g, e);
                if (r == 0 && !pager_process_is_up(u->to))
                        r = err_set(e, ERR_PAGER, -EPIPE, "the new pager has died");
        }
        return r;
}

/* ---- after ---- */

/* It is found at the usual place from now on. */
static void settle_next(struct pager *p) {
        char path[sizeof(p->socket_path) + 8];
        int r;

        (void) snprintf(path, sizeof(path), "%s" PAGER_NEXT, p->socket_path);
        if (rename(path, p->socket_path) < 0)
                log_error("renaming %s: %s", path, strerror(errno));
        r = pidfile_write(p->pid_path, p->d->boot_id, p->next->pid);
        if (r < 0)
                log_error("noting the pager's pid in %s: %s", p->pid_path, strerror(-r));
        (void) snprintf(path, sizeof(path), "%s" PAGER_NEXT, p->pid_path);
        (void) unlink(path);
}

void pager_remove_next(struct pager *p) {
        char path[sizeof(p->socket_path) + 8];

        (void) snprintf(path, sizeof(path), "%s" PAGER_NEXT, p->socket_path);
        (void) unlink(path);
        (void) snprintf(path, sizeof(path), "%s" PAGER_NEXT, p->pid_path);
        (void) unlink(path);
}

static void commit(struct upgrade *u) {
        struct pager *p = u->p;
        struct vm *vm;
        struct err e;

        settle_next(p);
        p->leaving = u->from;
        pager_process_unref(p->serving);
        p->serving = p->next;
        p->next = NULL;
        TAILQ_FOREACH (vm, &p->d->vms, entry)
                if (vm->session && vm->hold.process == u->to) {
                        vm->hold.released_ns = 0;
                        recording_end(vm);
                        if (tell_session(u->from, vm, "session.close", &e) < 0)
                                log_debug("%s", e.message);
                }
}

static void drop_next(struct pager *p) {
        pager_process_unref(TAKE_PTR(p->next));
        pager_remove_next(p);
}

/* The old one goes on with what it had let go; what was discarded meanwhile it is told. */
static int take_back(struct upgrade *u, struct vm *vm, struct err *e) {
        cleanup_mp_buf struct mp_buf removed = { 0 };
        uint64_t n = 0;
        int r;

        mp_buf_init(&removed);
        if (vm->hold.process == u->to) {
                r = tell_session(u->to, vm, "session.release", e);
                if (r == 0)
                        r = pager_removed_of(u->to, vm, &removed, &n, e);
                if (r < 0)
                        log_warning("%s", e->message);
        }
        r = pager_session_give_back(u->from, vm, &removed, n, e);
        if (r == 0)
                pager_hold_set_process(vm, u->from);
        return r;
}

static void undo(struct upgrade *u) {
        struct pager *p = u->p;
        bool quiet = true;
        struct vm *vm;
        struct err e;

        /* First nobody fills, then the old one looks at what there is. It stays `next` until the end: if it dies in between,
         * its guests are not lost. */
        u->to->leaving = true;
        TAILQ_FOREACH (vm, &p->d->vms, entry)
                if (vm->session && vm->hold.process == u->to && tell_session(u->to, vm, "session.release", &e) < 0) {
                        log_debug("%s", e.message);
                        quiet &= is_dying(vm);
                }
        if (!quiet) {
                pager_process_kill(u->to, "it does not let go of what it has taken over");
                pager_process_end(u->to);
        }
        TAILQ_FOREACH (vm, &p->d->vms, entry) {
                if (!vm->session || is_dying(vm) || (vm->hold.process == u->from && !vm->hold.released_ns))
                        continue;
                vm->hold.released_ns = 0;
                if (take_back(u, vm, &e) == 0)
                        continue;
                log_error("%s (%s) cannot go back to its pager: %s", vm->name, vm->id, e.message);
                vm_kill_lost(vm, "pager-lost: an upgrade failed, and could not be undone");
        }
        pager_process_kill(u->to, "it could not take over");
        pager_process_end(u->to);
        drop_next(p);
}

/* The old one has died in the middle: the new one has what it has, and may have the rest. */
static void inherit(struct upgrade *u) {
        struct pager *p = u->p;

        settle_next(p);
        p->serving = TAKE_PTR(p->next);
        p->lost_ns = now_ns();
        pager_succeed(p);
}

/* Both have died. Whose policy is `recover` may get a third; those whose new pager died last, nobody has decided about. */
static void lose_both(struct upgrade *u) {
        struct pager *p = u->p;
        struct vm *vm;

        TAILQ_FOREACH (vm, &p->d->vms, entry)
                if (vm->session && !vm->lost[0] && (!vm->hold.process || vm->hold.process == u->to) &&
                    strcmp(vm->on_pager_loss, "recover") != 0)
                        vm_kill_lost(vm, "pager-lost");
        pager_process_end(u->to); /* its guests are waited for by nobody else: */
        TAILQ_FOREACH (vm, &p->d->vms, entry)
                if (vm->session && vm->hold.process == u->to)
                        pager_hold_set_process(vm, NULL);
        drop_next(p);
        p->lost_ns = now_ns();
        pager_succeed(p);
}

/* Guests that were dying while the others moved are its last. */
static void drain(struct upgrade *u) {
        uint64_t start = now_ns();

        for (;;) {
                struct co_wait wait = CO_WAIT_INIT;
                int left = DRAIN_TIMEOUT_MS - (int) ms_since(start);

                if (left <= 0 || !pager_has_sessions(u->from))
                        break;
                u->p->attached = &wait;
                if (co_wait(&wait, left) < 0)
                        u->p->attached = NULL;
        }
        pager_process_end(u->from);
        u->p->leaving = NULL;
}

static int move(struct upgrade *u, struct err *e) {
        struct pager *p = u->p;
        int r;

        u->to = pager_process_ref(p->next);
        r = move_all(u, e);
        if (r == 0) {
                commit(u);
        } else if (pager_process_is_up(u->from)) {
                undo(u);
        } else if (pager_process_is_up(u->to)) {
                (void) err_prefix(e, "the old pager died while its sessions were moved, the new one serves");
                inherit(u);
        } else {
                (void) err_prefix(e, "both pagers died while sessions were moved");
                lose_both(u);
        }
        return r;
}

static int compare(const void *a, const void *b) {
        double x = *(const double *) a, y = *(const double *) b;

        return (x > y) - (x < y);
}

static void tell(const struct upgrade *u, struct pager_upgrade_result *ret) {
        ret->sessions = u->moved;
        qsort(u->pause_ms, u->moved, sizeof(*u->pause_ms), compare);
        ret->pause_p50_ms = u->moved ? u->pause_ms[u->moved / 2] : 0;
        ret->pause_max_ms = u->moved ? u->pause_ms[u->moved - 1] : 0;
}

/* With `turn` held and no session open that has not attached. */
static int run(struct upgrade *u, struct err *e) {
        struct pager *p = u->p;
        int r = check_movable(p, e);

        if (r < 0)
                return r;
        p->replacing++;
        if (!p->next) {
                pager_remove_next(p);
                r = pager_process_spawn(p, PAGER_NEXT, &p->next, e);
        }
        if (r == 0)
                r = move(u, e);
        else
                pager_remove_next(p);
        p->replacing--;
        return r;
}

int pager_upgrade(struct pager *p, struct pager_upgrade_result *ret, struct err *e) {
        cleanup_free double *pause_ms = calloc(p->d->n_vms + 1u, sizeof(*pause_ms));
        struct upgrade u = { .p = p, .pause_ms = pause_ms };
        uint64_t start = now_ns();
        int r;

        if (!pause_ms)
                return err_errno(e, -ENOMEM, "upgrading the pager");
        *ret = (struct pager_upgrade_result){ 0 };
        r = co_sem_acquire(&p->turn, PAGER_CALL_TIMEOUT_MS);
        if (r < 0)
                return err_set(e, ERR_BUSY, -EBUSY, "the pager is being replaced already");
        if (!pager_is_up(p)) {
                co_sem_release(&p->turn);
                (void) err_set(e, ERR_STATE, -ESRCH, "no pager runs");
                return err_hint(e, "the next restore or fork starts one, from the program as it is then");
        }
        u.from = pager_process_ref(p->serving);
        p->closed = true;
        r = wait_attached(p, u.from, e);
        if (r == 0)
                r = run(&u, e);
        if (r == 0) {
                ret->old_pid = u.from->pid;
                ret->new_pid = u.to->pid; /* it may have died since */
                (void) strcpy(ret->old_version, u.from->version);
                (void) strcpy(ret->new_version, u.to->version);
                tell(&u, ret);
                ret->total_ms = ms_since(start);
                p->counts.upgrades++;
                pager_suspects_forget(p);
                events_add(p->d->events, "pager.upgraded", NULL, "pager %d took %u sessions over from pager %d",
                           (int) ret->new_pid, u.moved, (int) ret->old_pid);
                log_info("pager %d has taken over %u sessions from pager %d; the longest pause was %.1f ms", (int) ret->new_pid,
                         u.moved, (int) ret->old_pid, ret->pause_max_ms);
        }
        p->closed = false;
        co_sem_release(&p->turn);
        if (r == 0)
                drain(&u);
        pager_process_unref(u.from);
        pager_process_unref(u.to);
        return r < 0 ? err_prefix(e, "upgrading the pager") : 0;
}

/* The one that was to take over has died, too, and nobody was there to see it. */
static void take_all_back(struct pager *p) {
        struct upgrade u = { .p = p, .from = p->serving };
        struct vm *vm;
        struct err e;

        TAILQ_FOREACH (vm, &p->d->vms, entry) {
                if (!vm->session || !vm->hold.released_ns || is_dying(vm))
                        continue;
                vm->hold.released_ns = 0;
                log_info("%s (%s): its pager goes on with it, for the one that was to take over is gone", vm->name, vm->id);
                if (take_back(&u, vm, &e) < 0)
                        vm_kill_lost(vm, "pager-lost: an upgrade was cut off, and could not be undone");
        }
}

static void abandon(struct pager *p) {
        struct upgrade u = { .p = p, .from = p->serving, .to = pager_process_ref(p->next) };

        p->replacing++;
        undo(&u);
        p->replacing--;
        pager_process_unref(u.to);
}

void pager_finish_upgrade(struct pager *p) {
        struct pager_upgrade_result result;
        struct err e;

        if (!p->next) {
                if (pager_is_up(p))
                        take_all_back(p);
                return;
        }
        log_info("two pagers are there: an upgrade was under way when forkd was ended");
        if (pager_is_up(p)) {
                if (pager_upgrade(p, &result, &e) < 0)
                        log_error("%s", e.message);
                if (p->next) /* it did not come to moving anything; what had been let go is served again */
                        abandon(p);
                return;
        }
        settle_next(p);
        p->serving = TAKE_PTR(p->next);
}
