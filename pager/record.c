/* SPDX-License-Identifier: MIT */
#include "pager/record.h"

#include <stdlib.h>
#include <sys/mman.h>

struct pager_record *pager_record_new(uint64_t ram_pages) {
        struct pager_record *rec = mmap(NULL, sizeof(*rec), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (rec == MAP_FAILED)
                return NULL;
        rec->max_pages = snap_workingset_max_pages(ram_pages);
        return rec;
}

void pager_record_free(struct pager_record *rec) {
        if (rec)
                (void) munmap(rec, sizeof(*rec));
}

static uint64_t pack(uint64_t first, uint64_t n) {
        return first << 32 | n;
}

static struct snap_run get(const struct pager_record_list *l, uint64_t i) {
        uint64_t v = atomic_load_explicit(&l->run[i], memory_order_relaxed);

        return (struct snap_run){ v >> 32, v & UINT32_MAX };
}

static uint64_t count(const struct pager_record_list *l) {
        return atomic_load_explicit(&l->n, memory_order_acquire);
}

struct snap_run pager_record_get(const struct pager_record *rec, uint64_t i) {
        uint64_t needed = count(&rec->needed);

        return i < needed ? get(&rec->needed, i) : get(&rec->gifts, i - needed);
}

uint64_t pager_record_runs(const struct pager_record *rec) {
        return MIN_OF(count(&rec->needed) + count(&rec->gifts), SNAP_WORKINGSET_MAX_RUNS);
}

bool pager_record_is_full(const struct pager_record *rec) {
        return atomic_load_explicit(&rec->n_pages, memory_order_relaxed) >= rec->max_pages ||
               count(&rec->needed) == SNAP_WORKINGSET_MAX_RUNS;
}

/** Joins [@first, @first + @n) to the last run, or finds it there already. */
static bool join_last(struct pager_record *rec, struct pager_record_list *l, uint64_t first, uint64_t n) {
        uint64_t runs = count(l);
        struct snap_run last;

        if (runs == 0)
                return false;
        last = get(l, runs - 1);
        if (first < last.first || first > last.first + last.n)
                return false;
        if (first + n > last.first + last.n) {
                n = first + n - last.first;
                atomic_store_explicit(&l->run[runs - 1], pack(last.first, n), memory_order_relaxed);
                (void) atomic_fetch_add_explicit(&rec->n_pages, n - last.n, memory_order_relaxed);
        }
        return true;
}

static void add(struct pager_record *rec, struct pager_record_list *l, uint64_t first, uint64_t n) {
        uint64_t runs = count(l);

        if (atomic_load_explicit(&rec->closed, memory_order_relaxed) || pager_record_is_full(rec) ||
            join_last(rec, l, first, n) || runs == SNAP_WORKINGSET_MAX_RUNS)
                return;
        atomic_store_explicit(&l->run[runs], pack(first, n), memory_order_relaxed);
        atomic_store_explicit(&l->n, runs + 1, memory_order_release);
        (void) atomic_fetch_add_explicit(&rec->n_pages, n, memory_order_relaxed);
}

void pager_record_add(struct pager_record *rec, uint64_t first, uint64_t n) {
        add(rec, &rec->needed, first, n);
}

void pager_record_add_gift(struct pager_record *rec, uint64_t first, uint64_t n) {
        add(rec, &rec->gifts, first, n);
}
