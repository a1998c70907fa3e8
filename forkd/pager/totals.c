/* SPDX-License-Identifier: MIT */
/* Theory of operation. Each process counts for itself, from its own start. `figures` of a process is what it has told last; when it
 * has ended they are added to `past`, so the sum never falls. One that ends on request is asked a last time; what a process that
 * dies has done since it was asked last nobody knows. Sessions that move start to count anew. */
#include "forkd/pager/totals.h"

#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/pager/internal.h"

const char *pager_total_fault_name(enum pager_total_fault f) {
        static const char *const names[PAGER_N_TOTAL_FAULTS] = {
                [PAGER_TOTAL_MISSING] = "missing", [PAGER_TOTAL_ZERO] = "zero",   [PAGER_TOTAL_PRESENT] = "present",
                [PAGER_TOTAL_REMOVED] = "removed", [PAGER_TOTAL_WRITE] = "write",
        };

        return names[f];
}

static void add(struct pager_figures *sum, const struct pager_figures *f) {
        for (unsigned i = 0; i < PAGER_N_TOTAL_FAULTS; i++)
                sum->faults[i] += f->faults[i];
        sum->decodes += f->decodes;
        sum->pages_installed += f->pages_installed;
        sum->refaults += f->refaults;
        hist_merge(&sum->wait, &f->wait);
        hist_merge(&sum->service, &f->service);
}

void pager_totals_fold(struct pager_process *o) {
        add(&o->p->past, &o->figures);
        o->figures = (struct pager_figures){ 0 };
        if (!o->p->serving || o->p->serving == o) {
                o->p->told.known = false;
                rpc_answer_clear(&o->p->answer);
        }
}

/* ---- what a pager tells ---- */

#define MAX_AGE_MS 1e12 /* of a fault: 30 years */

/* Microseconds as a double: of what may be any double at all. */
static uint64_t ns_of(double us) {
        return us > 0 && us < 1e15 ? (uint64_t) (us * 1e3 + 0.5) : 0;
}

static bool is_number(const msgpack_object *o, double *ret) {
        if (o->type == MSGPACK_OBJECT_POSITIVE_INTEGER)
                *ret = (double) o->via.u64;
        else if (o->type == MSGPACK_OBJECT_FLOAT64 || o->type == MSGPACK_OBJECT_FLOAT32)
                *ret = o->via.f64;
        else
                return false;
        return true;
}

void pager_totals_read_hist(const msgpack_object *map, const char *key, struct hist_copy *ret) {
        const msgpack_object *h = mp_get(map, key), *list = mp_get_array(h, "buckets");
        double v = 0;

        *ret = (struct hist_copy){ 0 };
        for (uint32_t i = 0; list && i < list->via.array.size; i++) {
                const msgpack_object *pair = &list->via.array.ptr[i];
                uint64_t end;

                if (pair->type != MSGPACK_OBJECT_ARRAY || pair->via.array.size != 2 || !is_number(&pair->via.array.ptr[0], &v) ||
                    pair->via.array.ptr[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                        continue;
                end = ns_of(v);
                ret->bucket[hist_bucket(end > 0 ? end - 1 : 0)] += pair->via.array.ptr[1].via.u64;
                ret->count += pair->via.array.ptr[1].via.u64;
        }
        if (mp_get_double(h, "sum_us", &v) == 0)
                ret->sum_ns = ns_of(v);
        if (mp_get_double(h, "max_us", &v) == 0)
                ret->max_ns = ns_of(v);
}

void pager_totals_read(const msgpack_object *totals, struct pager_figures *ret) {
        const msgpack_object *faults = mp_get(totals, "faults");

        for (unsigned i = 0; i < PAGER_N_TOTAL_FAULTS; i++)
                (void) mp_get_u64(faults, pager_total_fault_name((enum pager_total_fault) i), &ret->faults[i]);
        (void) mp_get_u64(totals, "decodes", &ret->decodes);
        (void) mp_get_u64(totals, "pages_installed", &ret->pages_installed);
        (void) mp_get_u64(totals, "refaults", &ret->refaults);
        pager_totals_read_hist(totals, "wait", &ret->wait);
        pager_totals_read_hist(totals, "service", &ret->service);
}

static void rise(uint64_t *v, uint64_t to) {
        *v = MAX_OF(*v, to);
}

static void rise_hist(struct hist_copy *h, const struct hist_copy *to) {
        h->count = 0;
        for (unsigned i = 0; i < HIST_BUCKETS; i++) {
                rise(&h->bucket[i], to->bucket[i]);
                h->count += h->bucket[i];
        }
        rise(&h->sum_ns, to->sum_ns);
        rise(&h->max_ns, to->max_ns);
}

/* Whatever a pager says, what it has said before stands. */
static void rise_figures(struct pager_figures *f, const struct pager_figures *to) {
        for (unsigned i = 0; i < PAGER_N_TOTAL_FAULTS; i++)
                rise(&f->faults[i], to->faults[i]);
        rise(&f->decodes, to->decodes);
        rise(&f->pages_installed, to->pages_installed);
        rise(&f->refaults, to->refaults);
        rise_hist(&f->wait, &to->wait);
        rise_hist(&f->service, &to->service);
}

static void note(struct pager_process *o, struct rpc_answer *a) {
        const msgpack_object *totals = mp_get(&a->doc.root, "totals");
        struct pager_totals *told = &o->p->told;
        struct pager_figures said = o->figures;
        double oldest;

        pager_totals_read(totals, &said);
        rise_figures(&o->figures, &said);
        if (o != o->p->serving)
                return;
        told->known = true;
        told->at_ns = now_ns();
        (void) mp_get_u64(totals, "sessions", &told->sessions);
        (void) mp_get_u64(totals, "images", &told->images);
        (void) mp_get_u64(totals, "present_bytes", &told->present_bytes);
        (void) mp_get_u64(totals, "budget_bytes", &told->budget_bytes);
        if (mp_get_double(totals, "oldest_fault_ms", &oldest) == 0)
                told->oldest_fault_ms = oldest > 0 ? MIN_OF(oldest, MAX_AGE_MS) : 0;
        rpc_answer_clear(&o->p->answer);
        o->p->answer = *a;
        *a = (struct rpc_answer){ 0 };
}

void pager_totals_ask(struct pager_process *o) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        struct err e;
        int r;

        o = pager_process_ref(o);
        r = pager_process_call_within(o, PAGER_TOTALS_MS, "status", NULL, NULL, 0, &a, &e);
        if (r < 0)
                log_debug("the pager's counters: %s", e.message);
        else if (o->pidfd >= 0) /* else they were folded meanwhile */
                note(o, &a);
        pager_process_unref(o);
}

/* ---- who asks ---- */

void pager_totals_refresh(struct pager *p) {
        uint64_t start = now_ns();

        if (co_sem_acquire(&p->asking, PAGER_TOTALS_MS) < 0)
                return;
        if (pager_is_up(p) && (!p->told.known || p->told.at_ns < start))
                pager_totals_ask(p->serving);
        co_sem_release(&p->asking);
}

const msgpack_object *pager_totals_answer(const struct pager *p) {
        return p->told.known ? &p->answer.doc.root : NULL;
}

void pager_totals_get(const struct pager *p, struct pager_totals *ret) {
        const struct pager_process *const living[] = { p->serving, p->next, p->leaving };

        *ret = p->told;
        ret->sum = p->past;
        for (size_t i = 0; i < ARRAY_LEN(living); i++)
                if (living[i] && (i == 0 || living[i] != living[0]))
                        add(&ret->sum, &living[i]->figures);
}
