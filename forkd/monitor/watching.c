/* SPDX-License-Identifier: MIT */
/* Processes are watched, and what is read of them is added up.
 *
 * What the probes tell is of a process and of its threads; what is told to people is of a VM and its vCPUs. So each sum here grows by
 * what its thread, or its process, has done since the look before, and by nothing else: a number that went back (a thread that was
 * lost and came again, one that ended between two reads of one look) adds nothing, and no sum ever shrinks.
 *
 * A VMM names its threads as it likes. A name that is a vCPU's gives its thread that vCPU's place if nobody has it; there are as many
 * places as the VM has vCPUs. All other threads are counted together. */
#include "forkd/monitor/internal.h"

#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/daemon.h"
#include "forkd/events.h"
#include "forkd/pager/internal.h"

/* ---- a thread ---- */

/* What @sum of a thread adds to what it did before, raw in *ret. */
static void grow(const struct probes_sample *sum, struct probes_sample *last, struct probes_sample *total,
                 struct probes_sample *ret) {
        monitor_sample_since(sum, last, ret);
        *last = *sum;
        probes_add(total, ret);
}

/* A vCPU without work waits in one of several ways, as its VMM goes about it: all of them are idleness. */
static enum probes_state vcpu_state(enum probes_state s) {
        return s == PROBES_LOCK || s == PROBES_DISK ? PROBES_IDLE : s;
}

static void fold_idle(struct probes_sample *s) {
        s->ns[PROBES_IDLE] += s->ns[PROBES_LOCK] + s->ns[PROBES_DISK];
        s->ns[PROBES_LOCK] = s->ns[PROBES_DISK] = 0;
}

static void leave(struct monitor_vcpu *c) {
        c->tid = 0;
        c->state = PROBES_UNKNOWN;
        c->since_ns = c->waiting_ns = 0;
        c->last = (struct probes_sample){ 0 };
        c->window.known = false;
        monitor_ring_clear(&c->ring);
}

static struct monitor_vcpu *place_of(const struct watched *w, const struct probes_thread *t) {
        const struct vm *vm = w->mv ? w->mv->vm : NULL;
        struct monitor_vcpu *c;
        int i;

        if (!vm || w->gone || !vm->ops || !vm->ops->thread_vcpu)
                return NULL;
        i = vm->ops->thread_vcpu(t->comm);
        if (i < 0 || (unsigned) i >= w->mv->n_vcpus)
                return NULL;
        c = &w->mv->vcpu[i];
        if (c->tid != 0)
                return c->tid == t->tid ? c : NULL;
        c->tid = t->tid;
        return c;
}

/* Since when it waits for memory. One that has got it, and has no CPU, waits for that: no pager is to blame, and nobody is stuck. */
static uint64_t waits_since(const struct probes_thread *t) {
        return t->state == PROBES_MEMORY ? t->wait_since_ns : 0;
}

static void add_vcpu(struct watched *w, struct monitor_vcpu *c, const struct probes_thread *t) {
        uint64_t since = waits_since(t);
        struct probes_sample more;

        grow(&t->sum, &c->last, &c->sum, &more);
        fold_idle(&c->sum);
        probes_add(&w->claimed, &more);
        c->seen = true;
        c->state = vcpu_state(t->state);
        c->since_ns = t->since_ns;
        c->waiting_ns = since && w->m->look_ns > since ? w->m->look_ns - since : 0;
}

/* ---- the pager's ---- */

static const struct {
        const char *prefix;
        enum monitor_role role;
} roles[] = { { "fault-", MONITOR_FAULT }, { "fill-", MONITOR_FILL }, { "uffd-pager", MONITOR_CONTROL } };

static struct monitor_thread *find_thread(struct monitor_pager *p, const struct watched *w, const struct probes_thread *t) {
        struct monitor_thread *new;

        for (unsigned i = 0; i < p->n_threads; i++)
                if (p->thread[i].tid == t->tid && p->thread[i].pid == w->pid)
                        return &p->thread[i];
        if (p->n_threads == MONITOR_MAX_PAGER_THREADS)
                return NULL;
        new = &p->thread[p->n_threads++];
        *new = (struct monitor_thread){ .pid = w->pid, .tid = t->tid, .role = MONITOR_OTHER };
        return new;
}

/* A thread gets its name a moment after its birth. */
static void name_thread(struct monitor_thread *to, const char *comm) {
        (void) snprintf(to->name, sizeof(to->name), "%.15s", comm);
        for (char *c = to->name; *c; c++)
                if (*c < 0x20 || *c > 0x7e)
                        *c = '?';
        for (size_t i = 0; i < ARRAY_LEN(roles); i++)
                if (strncmp(to->name, roles[i].prefix, strlen(roles[i].prefix)) == 0)
                        to->role = roles[i].role;
}

static void add_thread(struct watched *w, const struct probes_thread *t) {
        struct monitor_thread *to = w->gone ? NULL : find_thread(&w->m->pager, w, t);
        struct probes_sample more;

        if (!to)
                return;
        name_thread(to, t->comm);
        grow(&t->sum, &to->last, &to->sum, &more);
        probes_add(&w->m->pager.role[to->role], &more);
        probes_add(&w->claimed, &more);
        to->seen = true;
        to->state = t->state;
        to->since_ns = t->since_ns;
}

/* ---- a look ---- */

static void on_each(void *arg, struct probes_watch *pw, const struct probes_thread *t, const struct probes_sample *ended) {
        struct watched *w = probes_watch_data(pw);
        struct monitor_vcpu *c;
        uint64_t since;

        if (!t) {
                probes_add(&w->look, ended);
                return;
        }
        probes_add(&w->look, &t->sum);
        w->threads++;
        since = waits_since(t);
        if (since && (w->oldest_wait_ns == 0 || since < w->oldest_wait_ns))
                w->oldest_wait_ns = since;
        if (w->kind == WATCHED_PAGER)
                add_thread(w, t);
        else if ((c = place_of(w, t)))
                add_vcpu(w, c, t);
}

static void begin(struct monitor *m) {
        struct monitor_vm *mv;
        struct watched *w;

        TAILQ_FOREACH (w, &m->watches, entry) {
                w->look = (struct probes_sample){ 0 };
                w->threads = 0;
                w->oldest_wait_ns = 0;
        }
        TAILQ_FOREACH (mv, &m->vms, entry)
                for (unsigned i = 0; i < mv->n_vcpus; i++)
                        mv->vcpu[i].seen = false;
        for (unsigned i = 0; i < m->pager.n_threads; i++)
                m->pager.thread[i].seen = false;
}

static void end_vm(struct watched *w, const struct probes_sample *more, const struct probes_sample *rest) {
        struct monitor_vm *mv = w->mv;

        probes_add(&mv->sum, more);
        probes_add(&mv->others.sum, rest);
        if (mv->watch != w)
                return;
        mv->others.threads = w->threads;
        for (unsigned i = 0; i < mv->n_vcpus; i++) {
                if (mv->vcpu[i].seen)
                        mv->others.threads--;
                else if (mv->vcpu[i].tid != 0)
                        leave(&mv->vcpu[i]);
        }
        mv->waiting_since_ns = w->oldest_wait_ns;
        mv->waiting_ns = w->oldest_wait_ns && w->m->look_ns > w->oldest_wait_ns ? w->m->look_ns - w->oldest_wait_ns : 0;
}

/* The same, and the process's threads are all told of. */
static void end_watch(struct watched *w) {
        struct probes_sample more, rest, had = w->last;

        monitor_sample_since(&w->look, &had, &more);
        probes_add(&w->last, &more);
        monitor_sample_since(&more, &w->claimed, &rest);
        w->claimed = (struct probes_sample){ 0 };
        if (w->kind == WATCHED_PAGER)
                probes_add(&w->m->pager.role[MONITOR_OTHER], &rest);
        else
                lately_add(&w->m->lately, w->m->look_ns, more.wait);
        if (w->mv)
                end_vm(w, &more, &rest);
        if (w->gone)
                monitor_unwatch(w);
}

static void end(struct monitor *m) {
        struct monitor_pager *p = &m->pager;
        unsigned n = 0;

        for (struct watched *next, *w = TAILQ_FIRST(&m->watches); w; w = next) {
                next = TAILQ_NEXT(w, entry);
                end_watch(w);
        }
        for (unsigned i = 0; i < p->n_threads; i++) {
                if (!p->thread[i].seen)
                        continue;
                if (n != i)
                        p->thread[n] = p->thread[i];
                n++;
        }
        p->n_threads = n;
}

void monitor_read(struct monitor *m) {
        int r;

        if (!m->probes || TAILQ_EMPTY(&m->watches))
                return;
        m->look_ns = now_ns();
        begin(m);
        r = probes_read(m->probes, on_each, m);
        if (r < 0) { /* half of it is not added up: the next look has it */
                log_debug("reading the probes: %s", strerror(-r));
                return;
        }
        m->looks++;
        end(m);
}

/* ---- turns ---- */

void monitor_mark_all(struct monitor *m, uint64_t now) {
        struct monitor_vm *mv;

        TAILQ_FOREACH (mv, &m->vms, entry) {
                memmove(&mv->served[1], &mv->served[0], sizeof(mv->served) - sizeof(mv->served[0]));
                mv->served[0] = mv->sum.waits;
                for (unsigned i = 0; i < mv->n_vcpus; i++) {
                        struct monitor_vcpu *c = &mv->vcpu[i];

                        if (c->tid != 0)
                                monitor_ring_mark(&c->ring, now, &c->sum);
                        monitor_ring_shares(&c->ring, &c->window);
                }
        }
        for (unsigned i = 0; i < m->pager.n_threads; i++) {
                monitor_ring_mark(&m->pager.thread[i].ring, now, &m->pager.thread[i].sum);
                monitor_ring_shares(&m->pager.thread[i].ring, &m->pager.thread[i].window);
        }
}

void monitor_void(struct monitor *m) {
        struct monitor_vm *mv;

        m->voided++;
        TAILQ_FOREACH (mv, &m->vms, entry) {
                mv->asked_ns = 0;
                for (unsigned i = 0; i < mv->n_vcpus; i++)
                        monitor_ring_clear(&mv->vcpu[i].ring);
        }
        for (unsigned i = 0; i < m->pager.n_threads; i++)
                monitor_ring_clear(&m->pager.thread[i].ring);
}

/* ---- which processes ---- */

static bool any_gone(const struct monitor *m) {
        const struct watched *w;

        TAILQ_FOREACH (w, &m->watches, entry)
                if (w->gone)
                        return true;
        return false;
}

int monitor_watch(struct monitor *m, struct monitor_vm *mv, struct pager_process *o, int pidfd, pid_t pid) {
        struct watched *w;
        int r;

        if (!m->probes)
                return -EOPNOTSUPP;
        w = calloc(1, sizeof(*w));
        if (!w)
                return -ENOMEM;
        *w = (struct watched){ .kind = mv ? WATCHED_VM : WATCHED_PAGER, .m = m, .mv = mv, .o = o, .pid = pid };
        r = probes_watch(m->probes, pidfd, pid, w, &w->w);
        if (r == -ENOSPC && any_gone(m)) { /* those who have ended hold places until they are read a last time */
                monitor_read(m);
                r = probes_watch(m->probes, pidfd, pid, w, &w->w);
        }
        if (r < 0) {
                free(w);
                return r;
        }
        TAILQ_INSERT_TAIL(&m->watches, w, entry);
        if (mv)
                mv->watch = w;
        return 0;
}

void monitor_unwatch(struct watched *w) {
        if (w->mv && w->mv->watch == w) {
                w->mv->watch = NULL;
                for (unsigned i = 0; i < w->mv->n_vcpus; i++)
                        leave(&w->mv->vcpu[i]);
        }
        TAILQ_REMOVE(&w->m->watches, w, entry);
        probes_unwatch(w->w);
        free(w);
}

void monitor_leave(struct monitor_vm *mv) {
        if (mv->watch)
                mv->watch->gone = true;
        mv->watch = NULL;
        mv->watched = mv->refused = false;
        mv->waiting_ns = mv->waiting_since_ns = 0;
        mv->others.threads = 0;
        for (unsigned i = 0; i < mv->n_vcpus; i++)
                leave(&mv->vcpu[i]);
}
