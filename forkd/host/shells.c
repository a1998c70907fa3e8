/* SPDX-License-Identifier: MIT */
/* Theory of operation. A *shape* is known from the first VM that was restored with it; a timer then sees to it that it has as
 * many shells as are wanted, one after the other, whenever nothing else is being started: shells use the time between
 * forks and take none from them. The shapes are in the order of their last use; the last one gives way when there are too many
 * or when it was not used for a while.
 *
 * A shell is like a VM without a name. It has an id, of which its cgroup and its directory <run>/vms/<id> are named, a user, and
 * a claim on memory. When a VM takes it, the directory is renamed to the VM's; the cgroup cannot be renamed, and moving a
 * process costs 6 ms: it keeps its name, and the VM notes it (vm->group). A forkd that is killed leaves nothing: shells end when
 * the socket hangs up that they wait at, and what is left of them is found as any VM's that has no record.
 *
 * A shell is in exactly one of: being started, ready (in its shape's list), being taken, or being ended. */
#include "forkd/host/shells.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/co.h"
#include "common/ids.h"
#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/daemon.h"
#include "forkd/host/admission.h"
#include "forkd/host/jail.h"
#include "forkd/host/turns.h"
#include "forkd/vm/identity.h"
#include "forkd/vm/vm.h"
#include "forkd/vmm/cgroup.h"

#define MAX_SHAPES 4u
#define QUIET_MS 20       /* between two looks whether nothing else is being started */
#define RETRY_MIN_MS 500u /* after one that failed; twice as long after each further one */
#define RETRY_MAX_MS 64000u
#define YIELD_MS 30000 /* after they had to make room */
#define END_TIMEOUT_MS 10000

struct shape {
        TAILQ_ENTRY(shape) entry;
        const struct vmm_ops *ops;
        struct vmm_machine machine;
        uint64_t disk_bytes[VMM_MAX_DISKS];
        uint64_t used_ns, not_before_ns;
        unsigned failures; /* since one was taken */
        TAILQ_HEAD(, shell) ready;
        unsigned n_ready;
};

struct shell {
        TAILQ_ENTRY(shell) entry, any;
        struct shells *s;
        struct shape *shape; /* whose list it is in; NULL: it is in none */
        const struct vmm_ops *ops;
        struct vmm *vmm;
        id_str id;
        uint32_t uid;
        struct identity_holder identity;
        struct admission_claim claim;
};

struct shells {
        struct daemon *d;
        TAILQ_HEAD(shape_list, shape) shapes; /* the one that was used last in front */
        unsigned n_shapes;
        TAILQ_HEAD(, shell) all; /* whatever they are at */
        struct event *timer;
        unsigned starting, ending;
        struct co_wait *settled; /* who waits until both are 0 */
        uint64_t not_before_ns;
        uint64_t used, missed, failed;
        bool stopped;
};

/* ---- one shell ---- */

static void describe(const struct identity_holder *h, char *buf, size_t size) {
        (void) h;
        (void) snprintf(buf, size, "a VMM shell");
}

static int run_path(const struct shells *s, const char *id, const char *file, char *buf, size_t size) {
        int n = snprintf(buf, size, "%s/vms/%s%s%s", s->d->run_dir, id, file ? "/" : "", file ? file : "");

        return n < 0 || (size_t) n >= size ? -ENAMETOOLONG : 0;
}

static void settle(struct shells *s) {
        if (s->starting + s->ending == 0 && s->settled)
                co_wake(TAKE_PTR(s->settled), 0);
}

static void unlist(struct shell *sh) {
        if (!sh->shape)
                return;
        TAILQ_REMOVE(&sh->shape->ready, sh, entry);
        sh->shape->n_ready--;
        sh->shape = NULL;
}

static void forget(struct shell *sh) {
        struct shells *s = sh->s;

        TAILQ_REMOVE(&s->all, sh, any);
        admission_release(s->d->admission, &sh->claim);
        identity_holder_end(s->d->identities, &sh->identity);
        free(sh);
}

bool shells_has(const struct shells *s, const char *id) {
        const struct shell *sh;

        TAILQ_FOREACH (sh, &s->all, any)
                if (strcmp(sh->id, id) == 0)
                        return true;
        return false;
}

/* Everything of it; a coroutine call. What cannot be ended keeps its cgroup and its user: the next forkd finds it. */
static void destroy(struct shell *sh) {
        struct daemon *d = sh->s->d;
        char path[PATH_MAX];
        struct err e;
        int r = 0;

        if (sh->vmm) {
                r = sh->ops->kill(sh->vmm, &e);
                if (r < 0)
                        log_error("a VMM shell stays: %s", e.message);
                sh->ops->free(sh->vmm);
        }
        if (r == 0) {
                if (cgroup_remove(d->instance, sh->id, &e) < 0)
                        log_warning("%s", e.message);
                if (run_path(sh->s, sh->id, NULL, path, sizeof(path)) == 0)
                        best_effort(io_remove_tree(AT_FDCWD, path));
        }
        forget(sh);
}

static void destroy_run(void *arg) {
        struct shell *sh = arg;
        struct shells *s = sh->s;

        destroy(sh);
        s->ending--;
        settle(s);
}

/* In the background. */
static void end(struct shell *sh) {
        unlist(sh);
        sh->s->ending++;
        if (co_start(sh->s->d->base, destroy_run, sh) < 0) {
                log_error("out of memory: a VMM shell (pid %d) is left to the next forkd", (int) sh->ops->pid(sh->vmm));
                sh->s->ending--;
        }
}

static void arm(struct shells *s, unsigned ms) {
        const struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = (suseconds_t) (ms % 1000) * 1000 };

        if (!s->stopped)
                best_effort(event_add(s->timer, &tv));
}

static void back_off(struct shape *shape) {
        unsigned ms = MIN_OF(RETRY_MIN_MS << MIN_OF(shape->failures, 10u), RETRY_MAX_MS);

        shape->failures++;
        shape->not_before_ns = now_ns() + ms * 1000000ull;
}

static void on_exit_event(int status, void *arg) {
        struct shell *sh = arg;
        struct shells *s = sh->s;

        log_warning("a VMM shell (pid %d) has ended by itself (wait status %d)", (int) sh->ops->pid(sh->vmm), status);
        s->failed++;
        if (sh->shape)
                back_off(sh->shape);
        end(sh);
        arm(s, QUIET_MS);
}

static const struct vmm_events events = { .on_exit = on_exit_event };

static int take_user(struct shell *sh, struct err *e) {
        return forkd_take_user(sh->s->d, &sh->identity, &sh->uid, e);
}

static int start(struct shell *sh, const struct shape *shape, struct err *e) {
        struct daemon *d = sh->s->d;
        cleanup_fd int console = -1, cgroup = -1;
        char run_dir[PATH_MAX], log_path[PATH_MAX];
        struct vmm_start s = {
                .machine = &shape->machine,
                .run_dir = run_dir,
                .log_path = log_path,
                .incoming = true,
                .shell = true,
                .pager_sock = -1,
                .attach_lib = d->attach_lib,
                .instance = d->instance,
        };
        struct err ignored;
        int r;

        memcpy(s.disk_bytes, shape->disk_bytes, sizeof(s.disk_bytes));
        r = run_path(sh->s, sh->id, NULL, run_dir, sizeof(run_dir));
        if (r == 0)
                r = run_path(sh->s, sh->id, "vmm.log", log_path, sizeof(log_path));
        if (r == 0 && mkdir(run_dir, 0700) < 0)
                r = -errno;
        if (r == 0 && (console = memfd_create("forkd-console", MFD_CLOEXEC)) < 0)
                r = -errno;
        if (r < 0)
                return err_errno(e, r, "making the files of a VMM shell");
        if (cgroup_create(d->instance, sh->id, &cgroup, &ignored) < 0)
                log_debug("a VMM shell runs without a cgroup of its own: %s", ignored.message);
        r = forkd_jail(d, &s.jail, e);
        if (r == 0)
                r = take_user(sh, e);
        if (r < 0)
                return r;
        s.uid = sh->uid;
        s.cgroup_fd = cgroup;
        s.console_fd = console;
        return shape->ops->start(d->base, &s, &events, sh, &sh->vmm, e);
}

/* ---- shapes ---- */

static struct shape *find_shape(struct shells *s, const struct vmm_ops *ops, const struct vmm_machine *m,
                                const uint64_t disk_bytes[VMM_MAX_DISKS]) {
        struct shape *shape;

        TAILQ_FOREACH (shape, &s->shapes, entry) {
                const struct vmm_machine *own = &shape->machine;

                if (shape->ops == ops && own->mem_bytes == m->mem_bytes && own->vcpus == m->vcpus && own->accel == m->accel &&
                    own->n_disks == m->n_disks && memcmp(shape->disk_bytes, disk_bytes, m->n_disks * sizeof(disk_bytes[0])) == 0)
                        return shape;
        }
        return NULL;
}

static void drop_ready(struct shape *shape) {
        for (struct shell *sh; (sh = TAILQ_FIRST(&shape->ready));)
                end(sh);
}

static void drop_shape(struct shells *s, struct shape *shape) {
        drop_ready(shape);
        TAILQ_REMOVE(&s->shapes, shape, entry);
        s->n_shapes--;
        free(shape);
}

static int disk_sizes(const struct vm *vm, uint64_t ret[VMM_MAX_DISKS]) {
        for (unsigned i = 0; i < vm->machine.n_disks; i++) {
                char file[32], path[PATH_MAX];
                struct stat st;
                int r;

                (void) snprintf(file, sizeof(file), "disk-%u.img", i);
                r = vm_store_path(vm, file, path, sizeof(path));
                if (r < 0 || stat(path, &st) < 0)
                        return r < 0 ? r : -errno;
                ret[i] = (uint64_t) st.st_size;
        }
        return 0;
}

void shells_want(struct shells *s, const struct vm *vm) {
        uint64_t disk_bytes[VMM_MAX_DISKS] = { 0 };
        struct shape *shape;

        if (s->stopped || s->d->cfg.shells == 0 || !vm->ops->take || disk_sizes(vm, disk_bytes) < 0)
                return;
        shape = find_shape(s, vm->ops, &vm->machine, disk_bytes);
        if (shape) {
                TAILQ_REMOVE(&s->shapes, shape, entry);
        } else {
                shape = calloc(1, sizeof(*shape));
                if (!shape)
                        return; /* then there is none */
                *shape = (struct shape){ .ops = vm->ops, .machine = vm->machine };
                memcpy(shape->disk_bytes, disk_bytes, sizeof(disk_bytes));
                TAILQ_INIT(&shape->ready);
                s->n_shapes++;
        }
        shape->used_ns = now_ns();
        TAILQ_INSERT_HEAD(&s->shapes, shape, entry);
        if (s->n_shapes > MAX_SHAPES)
                drop_shape(s, TAILQ_LAST(&s->shapes, shape_list));
        arm(s, QUIET_MS);
}

/* ---- the background ---- */

/* Of what was used last the most. */
static struct shape *find_wanting(struct shells *s, uint64_t *ret_wait_ns) {
        uint64_t now = now_ns(), soonest = UINT64_MAX;
        struct shape *shape;

        TAILQ_FOREACH (shape, &s->shapes, entry) {
                uint64_t from = MAX_OF(shape->not_before_ns, s->not_before_ns);

                if (shape->n_ready >= s->d->cfg.shells)
                        continue;
                if (from <= now)
                        return shape;
                soonest = MIN_OF(soonest, from - now);
        }
        *ret_wait_ns = soonest;
        return NULL;
}

/* Room for it, and for the VM that it is for: a shell must not be what keeps the next fork from starting. */
static int reserve(struct shell *sh, const struct shape *shape, struct err *e) {
        const struct vmm_machine *m = &shape->machine;
        struct admission_need need = admission_vm_need(m->mem_bytes, m->vcpus, false);

        need.promised = 0;
        return admission_reserve(sh->s->d->admission, &sh->claim, "a VMM shell", &need, 1, e);
}

static void hold(struct shell *sh, const struct shape *shape) {
        const struct admission_need need = admission_shell_need(shape->machine.vcpus);

        admission_release(sh->s->d->admission, &sh->claim);
        admission_hold(sh->s->d->admission, &sh->claim, "a VMM shell", &need);
}

struct making {
        struct shell *sh;
        struct shape shape; /* the table's may be gone when the shell is there */
};

static void finish(struct making *m, int r, const struct err *e) {
        struct shell *sh = m->sh;
        struct shells *s = sh->s;
        struct shape *shape = find_shape(s, m->shape.ops, &m->shape.machine, m->shape.disk_bytes);

        if (r < 0) {
                s->failed++;
                if (shape)
                        back_off(shape);
                log_warning("a VMM shell did not start: %s", e->message);
        }
        if (r < 0 || s->stopped || !shape || now_ns() < s->not_before_ns) {
                end(sh);
                return;
        }
        hold(sh, &m->shape);
        sh->shape = shape;
        shape->n_ready++;
        TAILQ_INSERT_TAIL(&shape->ready, sh, entry);
}

static void make_run(void *arg) {
        struct making *m = arg;
        struct shells *s = m->sh->s;
        struct err e = { 0 };
        int r;

        r = start(m->sh, &m->shape, &e);
        finish(m, r, &e);
        s->starting--;
        settle(s);
        arm(s, QUIET_MS);
        free(m);
}

static void make_one(struct shells *s, struct shape *shape) {
        cleanup_free struct making *m = calloc(1, sizeof(*m));
        cleanup_free struct shell *sh = calloc(1, sizeof(*sh));
        struct err e;

        if (!m || !sh)
                return;
        *sh = (struct shell){ .s = s, .ops = shape->ops };
        identity_holder_init(&sh->identity, describe);
        id_new(sh->id);
        if (reserve(sh, shape, &e) < 0) {
                log_debug("%s", e.message);
                back_off(shape);
                arm(s, QUIET_MS);
                return;
        }
        TAILQ_INSERT_TAIL(&s->all, sh, any);
        m->sh = TAKE_PTR(sh);
        m->shape = *shape;
        s->starting++;
        if (co_start(s->d->base, make_run, m) < 0) {
                s->starting--;
                forget(m->sh);
                return;
        }
        (void) TAKE_PTR(m);
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
        struct shells *s = arg;
        struct turns_count n = turns_count(s->d->turns, HEAVY_START);
        uint64_t wait_ns = UINT64_MAX;
        struct shape *shape;

        if (s->stopped || s->starting > 0)
                return; /* whoever starts arms it again */
        shape = find_wanting(s, &wait_ns);
        if (!shape && wait_ns == UINT64_MAX)
                return;
        if (!shape)
                arm(s, (unsigned) MIN_OF(wait_ns / 1000000 + 1, (uint64_t) RETRY_MAX_MS));
        else if (n.running + n.waiting > 0)
                arm(s, QUIET_MS);
        else
                make_one(s, shape);
}

/* ---- a VM that takes one ---- */

static int move_files(struct shell *sh, struct vm *vm, struct err *e) {
        char from[PATH_MAX], to[PATH_MAX];
        int r = run_path(sh->s, sh->id, NULL, from, sizeof(from));

        if (r == 0)
                r = vm_run_path(vm, NULL, to, sizeof(to));
        if (r == 0)
                r = io_remove_tree(AT_FDCWD, to); /* what an earlier life left */
        if (r == 0 && rename(from, to) < 0)
                r = -errno;
        return r < 0 ? err_errno(e, r, "giving '%s' a shell's directory", vm->name) : 0;
}

static int move_user(struct shell *sh, struct vm *vm, struct err *e) {
        struct identity uid;

        identity_holder_end(sh->s->d->identities, &sh->identity);
        if (sh->uid == 0)
                return 0;
        if (identity_number(IDENTITY_UID, sh->uid, &uid) < 0)
                return err_set(e, ERR_INTERNAL, -EINVAL, "a shell has no user");
        vm->uid = sh->uid;
        return identities_take(sh->s->d->identities, &vm->identity, &uid, e);
}

/* From here on it is the VM's, whatever comes of it: a pager that is lost meanwhile kills the VM's group. */
static int move_all(struct shell *sh, struct vm *vm, const struct vmm_start *start, struct err *e) {
        int r;

        memcpy(vm->group, sh->id, sizeof(vm->group));
        r = move_user(sh, vm, e);
        if (r == 0)
                r = move_files(sh, vm, e);
        if (r == 0)
                r = sh->ops->take(sh->vmm, start, &vm_vmm_events, vm, e);
        if (r == 0)
                vm->vmm = TAKE_PTR(sh->vmm);
        return r;
}

/* The first that is still good. */
static struct shell *find_good(struct shells *s, struct shape *shape) {
        struct shell *sh;

        while ((sh = TAILQ_FIRST(&shape->ready))) {
                if (sh->ops->is_current(sh->vmm, s->d->attach_lib))
                        return sh;
                log_info("VMM shells of an older program are ended");
                end(sh);
        }
        return NULL;
}

int shells_take(struct shells *s, struct vm *vm, const struct vmm_start *start, struct err *e) {
        uint64_t disk_bytes[VMM_MAX_DISKS] = { 0 };
        struct shape *shape;
        struct shell *sh;
        int r;

        if (s->stopped || s->d->cfg.shells == 0 || !vm->ops->take || disk_sizes(vm, disk_bytes) < 0)
                return 0;
        shape = find_shape(s, vm->ops, &vm->machine, disk_bytes);
        sh = shape ? find_good(s, shape) : NULL;
        if (!sh) {
                s->missed++;
                return 0;
        }
        unlist(sh);
        r = move_all(sh, vm, start, e);
        if (r < 0) {
                s->failed++;
                log_warning("%s: the VMM shell (pid %d) is of no use: %s", vm->name, (int) sh->ops->pid(sh->vmm), e->message);
        } else {
                s->used++;
                /* it may be another one by now, or none */
                if ((shape = find_shape(s, vm->ops, &vm->machine, disk_bytes)))
                        shape->failures = 0;
        }
        if (r < 0 && sh->vmm && sh->ops->kill(sh->vmm, NULL) == 0)
                sh->ops->free(TAKE_PTR(sh->vmm));
        if (sh->vmm)
                end(sh); /* it does not die: it is waited for no longer */
        else
                forget(sh);
        return r < 0 ? r : 1;
}

/* ---- all of them ---- */

void shells_housekeeping(struct shells *s) {
        uint64_t now = now_ns(), idle = s->d->cfg.shell_idle_seconds * 1000000000ull;
        struct shape *shape, *next;
        struct shell *sh, *after;

        for (shape = TAILQ_FIRST(&s->shapes); shape; shape = next) {
                next = TAILQ_NEXT(shape, entry);
                if (now - shape->used_ns > idle) {
                        drop_shape(s, shape);
                        continue;
                }
                for (sh = TAILQ_FIRST(&shape->ready); sh; sh = after) {
                        after = TAILQ_NEXT(sh, entry);
                        if (!sh->ops->is_current(sh->vmm, s->d->attach_lib)) {
                                log_info("VMM shells of an older program are ended");
                                end(sh);
                        }
                }
                if (shape->n_ready < s->d->cfg.shells)
                        arm(s, QUIET_MS);
        }
}

static void settled(struct shells *s) {
        struct co_wait w = CO_WAIT_INIT;

        if (s->starting + s->ending == 0)
                return;
        s->settled = &w;
        if (co_wait(&w, END_TIMEOUT_MS) == -ETIMEDOUT) {
                s->settled = NULL;
                log_warning("VMM shells do not end");
        }
}

bool shells_yield(struct shells *s) {
        struct shape *shape;
        bool any = s->starting + s->ending > 0;

        if (!co_self() || s->stopped || s->settled)
                return false;
        s->not_before_ns = now_ns() + YIELD_MS * 1000000ull;
        TAILQ_FOREACH (shape, &s->shapes, entry) {
                any |= shape->n_ready > 0;
                drop_ready(shape);
        }
        if (any)
                settled(s);
        return any;
}

void shells_end(struct shells *s) {
        s->stopped = true;
        best_effort(event_del(s->timer));
        while (!TAILQ_EMPTY(&s->shapes))
                drop_shape(s, TAILQ_FIRST(&s->shapes));
        settled(s);
}

void shells_count(const struct shells *s, struct shells_counts *ret) {
        const struct shape *shape;

        *ret = (struct shells_counts){ 0 };
        if (!s)
                return;
        *ret = (struct shells_counts){ .starting = s->starting, .used = s->used, .missed = s->missed, .failed = s->failed };
        TAILQ_FOREACH (shape, &s->shapes, entry)
                ret->ready += shape->n_ready;
}

void shells_encode(const struct shells *s, struct mp_buf *b) {
        struct shells_counts c;

        shells_count(s, &c);
        mp_map(b, 5);
        mp_kv_u64(b, "ready", c.ready);
        mp_kv_u64(b, "starting", c.starting);
        mp_kv_u64(b, "used", c.used);
        mp_kv_u64(b, "missed", c.missed);
        mp_kv_u64(b, "failed", c.failed);
}

int shells_new(struct daemon *d, struct shells **ret) {
        struct shells *s = calloc(1, sizeof(*s));

        if (!s)
                return -ENOMEM;
        s->d = d;
        TAILQ_INIT(&s->shapes);
        TAILQ_INIT(&s->all);
        s->timer = evtimer_new(d->base, on_timer, s);
        if (!s->timer) {
                free(s);
                return -ENOMEM;
        }
        *ret = s;
        return 0;
}

/* Of a forkd that did not come to its end: what is left hangs up with it. */
void shells_free(struct shells *s) {
        if (!s)
                return;
        for (struct shape *shape; (shape = TAILQ_FIRST(&s->shapes));) {
                for (struct shell *sh; (sh = TAILQ_FIRST(&shape->ready));) {
                        unlist(sh);
                        sh->ops->free(sh->vmm);
                        forget(sh);
                }
                TAILQ_REMOVE(&s->shapes, shape, entry);
                free(shape);
        }
        event_free(s->timer);
        free(s);
}
