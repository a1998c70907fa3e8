/* SPDX-License-Identifier: MIT */
#include "forkd/events.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/co.h"
#include "forkd/vm/vm.h"

struct entry {
        uint64_t number;
        int64_t time_ns;
        char kind[EVENTS_KIND_LEN];
        id_str id; /* "" */
        char name[NAME_MAX_LEN + 1];
        char text[288];
};

/* Counted from the beginning, so that a first one is seen as an increase; others that come to be are counted, too. */
static const char *const known_kinds[] = { "vm.state",       "vm.recovered",  "pager.started", "pager.lost",   "pager.hangs",
                                           "pager.upgraded", "vcpu.spinning", "vcpu.stuck",    "vcpu.ok",      "vm.woken",
                                           "probes.ready",   "probes.absent", "probes.full",   "pool.created", "pool.changed",
                                           "pool.removed",   "pool.taken",    "pool.replaced", "pool.short",   "pool.shrunk" };

struct waiter {
        TAILQ_ENTRY(waiter) entry;
        const void *user;
        struct co_wait wait;
};

struct events {
        struct entry kept[EVENTS_KEPT]; /* number n is at n % EVENTS_KEPT */
        uint64_t newest;
        struct {
                char kind[EVENTS_KIND_LEN];
                uint64_t n;
        } count[EVENTS_MAX_KINDS];
        unsigned n_kinds;
        TAILQ_HEAD(, waiter) waiters;
        unsigned n_waiters;
        bool closed;
};

int events_new(struct events **ret) {
        struct events *ev = calloc(1, sizeof(*ev));

        if (!ev)
                return -ENOMEM;
        TAILQ_INIT(&ev->waiters);
        for (size_t i = 0; i < ARRAY_LEN(known_kinds); i++)
                (void) snprintf(ev->count[ev->n_kinds++].kind, sizeof(ev->count[0].kind), "%s", known_kinds[i]);
        *ret = ev;
        return 0;
}

void events_free(struct events *ev) {
        free(ev);
}

static void wake_all(struct events *ev) {
        struct waiter *w;

        TAILQ_FOREACH (w, &ev->waiters, entry)
                co_wake(&w->wait, 0);
}

static void count(struct events *ev, const char *kind) {
        unsigned i = 0;

        while (i < ev->n_kinds && strcmp(ev->count[i].kind, kind) != 0)
                i++;
        if (i == EVENTS_MAX_KINDS)
                return;
        if (i == ev->n_kinds)
                (void) snprintf(ev->count[ev->n_kinds++].kind, sizeof(ev->count[0].kind), "%s", kind);
        ev->count[i].n++;
}

const char *events_kind(const struct events *ev, unsigned i, uint64_t *ret_n) {
        if (i >= ev->n_kinds)
                return NULL;
        *ret_n = ev->count[i].n;
        return ev->count[i].kind;
}

void events_add(struct events *ev, const char *kind, const struct vm *vm, const char *fmt, ...) {
        struct entry *e;
        struct timespec now;
        va_list ap;

        if (!ev)
                return;
        (void) clock_gettime(CLOCK_REALTIME, &now);
        e = &ev->kept[++ev->newest % EVENTS_KEPT];
        *e = (struct entry){ .number = ev->newest, .time_ns = (int64_t) now.tv_sec * 1000000000 + now.tv_nsec };
        (void) snprintf(e->kind, sizeof(e->kind), "%s", kind);
        count(ev, kind);
        if (vm) {
                (void) snprintf(e->id, sizeof(e->id), "%s", vm->id);
                (void) snprintf(e->name, sizeof(e->name), "%s", vm->name);
        }
        va_start(ap, fmt);
        (void) vsnprintf(e->text, sizeof(e->text), fmt, ap);
        va_end(ap);
        wake_all(ev);
}

uint64_t events_newest(const struct events *ev) {
        return ev->newest;
}

static void put(struct mp_buf *b, const struct entry *e) {
        mp_map(b, 6);
        mp_kv_u64(b, "number", e->number);
        mp_kv_i64(b, "time_ns", e->time_ns);
        mp_kv_str(b, "kind", e->kind);
        mp_kv_str(b, "name", e->name);
        mp_kv_str(b, "id", e->id);
        mp_kv_str(b, "text", e->text);
}

static unsigned count_of(const struct events *ev, const void *user) {
        const struct waiter *w;
        unsigned n = 0;

        TAILQ_FOREACH (w, &ev->waiters, entry)
                n += w->user == user;
        return n;
}

static int wait_for_one(struct events *ev, uint64_t after, unsigned wait_ms, const void *user) {
        struct waiter w = { .user = user, .wait = CO_WAIT_INIT };

        if ((ev->newest > 0 && ev->newest != after) || wait_ms == 0 || ev->closed)
                return 0;
        if (ev->n_waiters >= EVENTS_MAX_WAITERS)
                return -EBUSY;
        if (user && count_of(ev, user) >= EVENTS_MAX_USER_WAITERS)
                return -EUSERS;
        TAILQ_INSERT_TAIL(&ev->waiters, &w, entry);
        ev->n_waiters++;
        (void) co_wait(&w.wait, (int) wait_ms);
        TAILQ_REMOVE(&ev->waiters, &w, entry);
        ev->n_waiters--;
        return 0;
}

int events_read(struct events *ev, uint64_t after, unsigned wait_ms, const void *user, struct mp_buf *out) {
        uint64_t first, oldest;
        int r = wait_for_one(ev, after, MIN_OF(wait_ms, (unsigned) EVENTS_MAX_WAIT_MS), user);

        if (r < 0)
                return r;
        /* A number from the future is one of an earlier forkd's: all is new to its owner. */
        first = after > ev->newest ? 1 : after + 1;
        oldest = ev->newest > EVENTS_KEPT ? ev->newest - EVENTS_KEPT + 1 : 1;
        mp_map(out, 3);
        mp_kv_u64(out, "next", ev->newest);
        mp_kv_u64(out, "missed", first < oldest ? oldest - first : 0);
        first = MAX_OF(first, oldest);
        mp_key(out, "events");
        mp_array(out, ev->newest + 1 - first);
        for (uint64_t n = first; n <= ev->newest; n++)
                put(out, &ev->kept[n % EVENTS_KEPT]);
        return out->failed ? -ENOMEM : 0;
}

void events_close(struct events *ev) {
        ev->closed = true;
        wake_all(ev);
}
