/* SPDX-License-Identifier: MIT */
/* Theory of operation. Every insertion adds to one sum. When that passes the budget the thread is woken, and
 * punches until a sixteenth below the budget is reached, so that it is not woken for each frame. It takes
 *
 *   first the images that no session uses, the longest idle one first, region by region;
 *   then what the hand of the clock finds: one hand for all images, a turn of one image after the other.
 *
 * Guests that fault faster than one thread can punch must not outrun it: beyond the budget plus a sixteenth, who
 * inserts also punches. Then the sum is off by no more than what the workers have in hand at that moment. Whoever
 * decodes ahead stops at the budget.
 *
 * Punching (pager_image_evict) claims the region, clears the pages' bits and then punches the hole, which also
 * unmaps the pages from all clones. It does not wait for a claim: a region in which somebody decodes is not cold.
 *
 * The pager's own mappings of the images lose their page tables when memory is short (and only then: it is work that the
 * punch of a chunk does anyway). They are not needed once a page is in the memfd, but they make the pager the largest
 * process by far, the first that an out-of-memory killer would look at.
 *
 * Large images that nobody refers to are freed here, too: that can take a second, and the control thread has to answer.
 *
 * Locks: `lock` guards the ring of images, the hands of their clocks, the pins and the dead. It is a leaf, and is not held
 * while punching: an image that is worked on is pinned meanwhile, and waits in pager_resident_clear. */
#include "pager/reclaim.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "pager/budget.h"
#include "pager/image_internal.h"
#include "pager/pressure.h"
#include "pager/thread.h"

#define CHUNK_BYTES (PAGER_CHUNK_PAGES * PAGER_PAGE)
#define REGION_CHUNKS (SNAP_REGION_PAGES / PAGER_CHUNK_PAGES)

#define LOCK_STEPS 4096u             /* chunks that the hand looks at before others may have the lock */
#define DIRECT_TRIES 8u              /* to punch as much as a frame brings, before it is inserted */
#define EMERGENCY_CHUNKS 64u         /* 4 MiB */
#define MAX_TURNS 80u                /* of the hand over everything: then even the strongest have no credit left */
#define LIMIT_EVERY_NS 1000000000ull /* the cgroup's limit is read again */
#define STUCK_MS 10                  /* nothing could be had, all is claimed: later */

struct pager_reclaim {
        struct pager_thread thread;
        bool started;
        int wake_fd;
        _Atomic bool woken, stop, limit_stale;
        _Atomic uint64_t pages, chunks; /* in, and of, all images */
        struct pager_budget budget;     /* the thread writes */

        pthread_mutex_t lock;
        pthread_cond_t unpinned;
        struct pager_resident *hand; /* into the ring; NULL: no image */
        uint64_t trims;
        struct pager_image *dead;

        /* the thread's */
        struct pager_memcg memcg;
        struct pager_pressure pressure;
        uint64_t limit_read_ns;
};

static uint64_t resident_bytes(const struct pager_reclaim *r) {
        return atomic_load(&r->pages) * PAGER_PAGE;
}

static void wake(struct pager_reclaim *r) {
        if (!atomic_exchange(&r->woken, true))
                (void) eventfd_write(r->wake_fd, 1);
}

/* ---- what has to go ---- */

struct victim {
        struct pager_resident *m; /* pinned */
        uint64_t first, n;        /* chunks, of one region */
};

static bool has_pages(const struct pager_resident *m) {
        return atomic_load_explicit(&m->pages, memory_order_relaxed) > 0;
}

static uint64_t next_resident(const struct pager_clock *c, uint64_t chunk) {
        while (chunk < c->n_chunks && !pager_clock_resident(c, chunk))
                chunk++;
        return chunk;
}

/** The next region of the image that was idle for longest. Under the lock. */
static bool find_idle(struct pager_reclaim *r, struct victim *ret) {
        struct pager_resident *m = r->hand, *oldest = NULL;
        uint64_t chunk;

        do
                if (m->idle_since_ns && has_pages(m) && (!oldest || m->idle_since_ns < oldest->idle_since_ns))
                        oldest = m;
        while ((m = m->next) != r->hand);
        if (!oldest)
                return false;
        chunk = next_resident(&oldest->clock, oldest->clock.hand);
        if (chunk == oldest->clock.n_chunks)
                chunk = next_resident(&oldest->clock, 0);
        if (chunk == oldest->clock.n_chunks)
                return false; /* its last ones go at this moment */
        chunk -= chunk % REGION_CHUNKS;
        *ret = (struct victim){ oldest, chunk, MIN_OF(REGION_CHUNKS, oldest->clock.n_chunks - chunk) };
        oldest->clock.hand = chunk + ret->n < oldest->clock.n_chunks ? chunk + ret->n : 0;
        return true;
}

/** Turns the hand. Under the lock. */
static bool find_cold(struct pager_reclaim *r, uint64_t *steps, struct victim *ret) {
        while (*steps > 0) {
                struct pager_resident *m = r->hand;
                bool found = false;
                uint64_t chunk;

                if (has_pages(m))
                        found = pager_clock_turn(&m->clock, steps, &chunk);
                else
                        (*steps)--;
                if (m->clock.hand == 0 || !has_pages(m))
                        r->hand = m->next;
                if (found) {
                        *ret = (struct victim){ m, chunk, 1 };
                        return true;
                }
        }
        return false;
}

static void unpin(struct pager_reclaim *r, struct pager_resident *m) {
        (void) pthread_mutex_lock(&r->lock);
        if (--m->pins == 0)
                (void) pthread_cond_broadcast(&r->unpinned);
        (void) pthread_mutex_unlock(&r->lock);
}

/** Punches out what is coldest, after @steps of the hand at most, from which it takes what it used. Returns the pages
 *  that are gone: 0, if none was found or the one that was found could not be had. */
static uint64_t evict(struct pager_reclaim *r, uint64_t *steps, bool idle_only) {
        uint64_t slice = MIN_OF(*steps, LOCK_STEPS), left = slice, pages;
        struct victim v;
        bool found = false;

        (void) pthread_mutex_lock(&r->lock);
        if (r->hand)
                found = find_idle(r, &v);
        if (r->hand && !found && !idle_only)
                found = find_cold(r, &left, &v);
        if (found)
                v.m->pins++;
        (void) pthread_mutex_unlock(&r->lock);
        *steps -= MAX_OF(slice - left, 1);
        if (!found)
                return 0;
        pages = pager_image_evict(v.m->img, v.first * PAGER_CHUNK_PAGES, v.n * PAGER_CHUNK_PAGES);
        unpin(r, v.m);
        return pages;
}

/* ---- the end of images ---- */

void pager_reclaim_bury(struct pager_reclaim *r, struct pager_image *img) {
        (void) pthread_mutex_lock(&r->lock);
        img->next_dead = r->dead;
        r->dead = img;
        (void) pthread_mutex_unlock(&r->lock);
        (void) eventfd_write(r->wake_fd, 1);
}

static void free_dead(struct pager_reclaim *r) {
        struct pager_image *img, *next;

        (void) pthread_mutex_lock(&r->lock);
        img = TAKE_PTR(r->dead);
        (void) pthread_mutex_unlock(&r->lock);
        for (; img; img = next) {
                next = img->next_dead;
                pager_image_destroy(img);
        }
}

/* ---- the thread ---- */

/** Back to the budget, if it is passed. False: that was not possible. */
static bool balance(struct pager_reclaim *r) {
        uint64_t budget = pager_budget_now(&r->budget);
        uint64_t steps = MAX_TURNS * (atomic_load_explicit(&r->chunks, memory_order_relaxed) + 1);

        if (resident_bytes(r) <= budget)
                return true;
        while (resident_bytes(r) > budget - budget / 16) {
                if (steps == 0 || atomic_load_explicit(&r->stop, memory_order_relaxed))
                        return false;
                (void) evict(r, &steps, false);
        }
        return true;
}

/** An image that was not trimmed since `trims` was counted up, pinned; NULL: none. */
static struct pager_resident *next_untrimmed(struct pager_reclaim *r) {
        struct pager_resident *m, *found = NULL;

        (void) pthread_mutex_lock(&r->lock);
        m = r->hand;
        if (m)
                do
                        if (m->trims != r->trims)
                                found = m;
                while (!found && (m = m->next) != r->hand);
        if (found) {
                found->trims = r->trims;
                found->pins++;
        }
        (void) pthread_mutex_unlock(&r->lock);
        return found;
}

static void trim(struct pager_reclaim *r) {
        r->trims++; /* the lock is for others: only this thread looks at it */
        for (struct pager_resident *m; (m = next_untrimmed(r));) {
                pager_image_trim(m->img);
                unpin(r, m);
        }
}

static void read_limit(struct pager_reclaim *r, uint64_t now) {
        if (!atomic_exchange(&r->limit_stale, false) && r->limit_read_ns && now - r->limit_read_ns < LIMIT_EVERY_NS)
                return;
        r->limit_read_ns = now;
        pager_budget_set_limit(&r->budget, pager_memcg_limit(&r->memcg));
}

static void on_pressure(struct pager_reclaim *r, uint64_t now) {
        uint64_t before = pager_budget_now(&r->budget);

        atomic_store(&r->limit_stale, true);
        read_limit(r, now);
        pager_budget_pressure(&r->budget, resident_bytes(r), now);
        log_debug("memory is short: the budget goes from %llu to %llu MiB", (unsigned long long) before >> 20,
                  (unsigned long long) pager_budget_now(&r->budget) >> 20);
}

static void *reclaim_main(void *arg) {
        struct pager_reclaim *r = arg;
        bool balanced = true;

        while (!atomic_load_explicit(&r->stop, memory_order_relaxed)) {
                int timeout = pager_budget_relax(&r->budget, now_ns());
                bool is_short;
                eventfd_t v;

                if (!balanced)
                        timeout = timeout < 0 ? STUCK_MS : MIN_OF(timeout, STUCK_MS);
                if (pager_pressure_wait(&r->pressure, r->wake_fd, timeout, &is_short) < 0)
                        is_short = false;
                (void) eventfd_read(r->wake_fd, &v);
                atomic_store(&r->woken, false); /* before the sum is read: who passes the budget from now on wakes again */
                if (is_short)
                        on_pressure(r, now_ns());
                read_limit(r, now_ns());
                balanced = balance(r);
                if (is_short)
                        trim(r);
                free_dead(r);
        }
        return NULL;
}

/* ---- life ---- */

static uint64_t ram_bytes(void) {
        return (uint64_t) sysconf(_SC_PHYS_PAGES) * (uint64_t) sysconf(_SC_PAGESIZE);
}

static void destroy(struct pager_reclaim *r) {
        pager_pressure_close(&r->pressure);
        pager_memcg_clear(&r->memcg);
        (void) close_fd(r->wake_fd);
        (void) pthread_cond_destroy(&r->unpinned);
        (void) pthread_mutex_destroy(&r->lock);
        free(r);
}

int pager_reclaim_new(const struct pager_reclaim_config *cfg, struct pager_reclaim **ret) {
        struct pager_reclaim *r = calloc(1, sizeof(*r));
        uint64_t limit;
        int e;

        if (!r)
                return -ENOMEM;
        (void) pthread_mutex_init(&r->lock, NULL);
        (void) pthread_cond_init(&r->unpinned, NULL);
        r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        e = r->wake_fd < 0 ? -errno : pager_memcg_find(cfg->root, &r->memcg);
        if (e == 0) {
                pager_pressure_open(&r->pressure, cfg->root, &r->memcg);
                if (cfg->pressure_fd > 0)
                        e = pager_pressure_add(&r->pressure, cfg->pressure_fd);
        }
        if (e == 0) {
                limit = pager_memcg_limit(&r->memcg);
                pager_budget_init(&r->budget, cfg->budget ? cfg->budget : pager_budget_default(ram_bytes(), limit));
                pager_budget_set_limit(&r->budget, limit);
                e = pager_thread_start(reclaim_main, r, "reclaim", &r->thread);
        }
        if (e < 0) {
                destroy(r);
                return e;
        }
        *ret = r;
        return 0;
}

void pager_reclaim_free(struct pager_reclaim *r) {
        if (!r)
                return;
        atomic_store(&r->stop, true);
        (void) eventfd_write(r->wake_fd, 1);
        pager_thread_join(&r->thread);
        free_dead(r);
        destroy(r);
}

const struct pager_thread *pager_reclaim_thread(const struct pager_reclaim *r) {
        return &r->thread;
}

void pager_reclaim_get_stats(const struct pager_reclaim *r, struct pager_reclaim_stats *ret) {
        *ret = (struct pager_reclaim_stats){
                .budget_bytes = pager_budget_now(&r->budget),
                .resident_bytes = resident_bytes(r),
                .pressure = atomic_load_explicit(&r->budget.events, memory_order_relaxed),
        };
}

/* ---- images ---- */

int pager_resident_init(struct pager_resident *m, struct pager_reclaim *r, struct pager_image *img, uint64_t n_pages) {
        int e;

        *m = (struct pager_resident){ .img = img };
        e = pager_clock_init(&m->clock, n_pages);
        if (e < 0 || !r)
                return e;
        (void) pthread_mutex_lock(&r->lock);
        m->r = r;
        if (r->hand) {
                m->next = r->hand;
                m->prev = r->hand->prev;
                m->next->prev = m->prev->next = m;
        } else {
                r->hand = m->next = m->prev = m;
        }
        (void) pthread_mutex_unlock(&r->lock);
        (void) atomic_fetch_add_explicit(&r->chunks, m->clock.n_chunks, memory_order_relaxed);
        return 0;
}

void pager_resident_clear(struct pager_resident *m) {
        struct pager_reclaim *r = m->r;

        if (r) {
                (void) pthread_mutex_lock(&r->lock);
                if (r->hand == m)
                        r->hand = m->next == m ? NULL : m->next;
                m->next->prev = m->prev;
                m->prev->next = m->next;
                while (m->pins > 0)
                        (void) pthread_cond_wait(&r->unpinned, &r->lock);
                (void) pthread_mutex_unlock(&r->lock);
                (void) atomic_fetch_sub_explicit(&r->pages, m->pages, memory_order_relaxed);
                (void) atomic_fetch_sub_explicit(&r->chunks, m->clock.n_chunks, memory_order_relaxed);
        }
        pager_clock_clear(&m->clock);
        m->r = NULL;
}

void pager_resident_inserted(struct pager_resident *m, uint64_t first, uint64_t n, uint64_t demanded) {
        for (uint64_t c = first / PAGER_CHUNK_PAGES; c <= (first + n - 1) / PAGER_CHUNK_PAGES; c++)
                pager_clock_inserted(&m->clock, c, c == demanded / PAGER_CHUNK_PAGES ? PAGER_CLOCK_DEMAND : PAGER_CLOCK_AHEAD);
        (void) atomic_fetch_add_explicit(&m->pages, n, memory_order_relaxed);
        if (!m->r)
                return;
        (void) atomic_fetch_add(&m->r->pages, n);
        if (resident_bytes(m->r) > pager_budget_now(&m->r->budget))
                wake(m->r);
}

void pager_resident_lost(struct pager_resident *m, uint64_t n) {
        (void) atomic_fetch_sub_explicit(&m->pages, n, memory_order_relaxed);
        (void) atomic_fetch_add_explicit(&m->reclaimed, n, memory_order_relaxed);
        if (m->r)
                (void) atomic_fetch_sub_explicit(&m->r->pages, n, memory_order_relaxed);
}

void pager_resident_removed(struct pager_resident *m, uint64_t chunk, uint64_t n) {
        pager_clock_evicted(&m->clock, chunk);
        pager_resident_lost(m, n);
}

void pager_resident_set_idle(struct pager_resident *m, uint64_t since_ns) {
        if (!m->r)
                return;
        (void) pthread_mutex_lock(&m->r->lock);
        m->idle_since_ns = since_ns;
        (void) pthread_mutex_unlock(&m->r->lock);
}

/* ---- for those who insert ---- */

int pager_reclaim_room(struct pager_reclaim *r, enum pager_cause cause) {
        uint64_t budget, steps = LOCK_STEPS, gone = 0;

        if (!r)
                return 0;
        budget = pager_budget_now(&r->budget);
        if (resident_bytes(r) + CHUNK_BYTES <= budget)
                return 0;
        if (cause == PAGER_AHEAD)
                return evict(r, &steps, true) > 0 ? 0 : -EDQUOT;
        if (resident_bytes(r) <= budget + budget / 16)
                return 0;
        for (unsigned i = 0; i < DIRECT_TRIES && steps > 0 && gone < SNAP_FRAME_PAGES; i++)
                gone += evict(r, &steps, false);
        return 0;
}

bool pager_reclaim_emergency(struct pager_reclaim *r) {
        uint64_t steps, pages = 0;

        if (!r)
                return false;
        steps = MAX_TURNS * (atomic_load_explicit(&r->chunks, memory_order_relaxed) + 1);
        while (steps > 0 && pages < EMERGENCY_CHUNKS * PAGER_CHUNK_PAGES)
                pages += evict(r, &steps, false);
        /* A limit that was lowered since it was read would bring us here again and again. */
        atomic_store(&r->limit_stale, true);
        wake(r);
        return pages > 0;
}
