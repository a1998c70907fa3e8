/* SPDX-License-Identifier: MIT */
/* Theory of operation. Whoever maps an image's memory without a userfaultfd, and touches a page that is not there,
 * makes the kernel put a zero page there, for all clones: they find it and read zeros, and no fault tells. It cannot be
 * prevented, since every VMM has to have the descriptor; but it does not stay unseen. Every page in the memfd is one that
 * we put there, so their number is known: the control thread compares it with what the kernel counts, every
 * PAGER_AUDIT_MS and before an idle image is used again. Where there are more, no session that maps the memory can be
 * trusted any more, whatever it has read: all of them fail, and who comes next gets the image anew.
 *
 * The two numbers agree while nobody inserts or removes pages, which is done under claims only. So the comparison is made
 * with the locks of all shards held and no claim in any of them; when there are claims it is tried again, and left to the
 * next time if that does not help. The locks are leaves: only here does a thread hold more than one, in their order. */
#include <errno.h>
#include <sched.h>
#include <sys/stat.h>

#include "pager/image_internal.h"
#include "pager/pager_internal.h"

#define TRIES 8u

/** Pages in the memfd that are not ours, or -EAGAIN. */
static int64_t count_foreign(struct pager_image *img) {
        uint64_t ours = 0, words = (img->n_pages + 63) / 64;
        bool claims = false;
        struct stat st;
        int64_t r = 0;

        for (unsigned i = 0; i < PAGER_CLAIM_SHARDS; i++) {
                (void) pthread_mutex_lock(&img->shard[i].lock);
                claims |= img->shard[i].n > 0;
        }
        if (claims || fstat(img->memfd, &st) < 0) {
                r = -EAGAIN;
        } else if (st.st_blocks > 0) {
                for (uint64_t i = 0; i < words; i++)
                        ours += (uint64_t) __builtin_popcountll(atomic_load_explicit(&img->present[i], memory_order_relaxed));
                r = (int64_t) ((uint64_t) st.st_blocks * 512 / PAGER_PAGE) - (int64_t) ours;
        }
        for (unsigned i = PAGER_CLAIM_SHARDS; i-- > 0;)
                (void) pthread_mutex_unlock(&img->shard[i].lock);
        return r;
}

int pager_image_audit(struct pager_image *img) {
        int64_t n = -EAGAIN;

        if (atomic_load_explicit(&img->tainted, memory_order_relaxed))
                return -EUCLEAN;
        for (unsigned i = 0; i < TRIES && n == -EAGAIN; i++) {
                if (i > 0)
                        (void) sched_yield();
                n = count_foreign(img);
        }
        if (n == -EAGAIN)
                return -EAGAIN;
        if (n <= 0) /* less: somebody took pages away, which only costs time */
                return 0;
        atomic_store_explicit(&img->tainted, true, memory_order_relaxed);
        atomic_store_explicit(&img->bad, true, memory_order_relaxed);
        return -EUCLEAN;
}

/* ---- the control thread ---- */

/** In copy mode pages come through us, and only those that we know. */
static bool maps_memory(const struct pager_session *s) {
        return !s->attached || s->mode != PAGER_MODE_COPY;
}

/** One session of @c that is still served though its memory is in doubt. */
static struct pager_session *find_doubtful(struct pager *p, const struct pager_cached *c) {
        for (struct pager_session *s = p->sessions; s; s = s->next)
                if (s->cached == c && maps_memory(s) && !s->failed && !s->ending)
                        return s;
        return NULL;
}

static void on_time(evutil_socket_t fd, short what, void *arg) {
        struct pager *p = arg;
        struct pager_session *s;

        for (struct pager_cached *c = pager_cache_first(p->cache), *next; c; c = next) {
                next = c->next;
                if (c->n_sessions == 0 || pager_image_audit(c->image) != -EUCLEAN)
                        continue;
                c->n_sessions++; /* it goes with its last session */
                while ((s = find_doubtful(p, c)))
                        pager_fail_session(p, s, pager_image_reason(-EUCLEAN));
                pager_cache_put(c);
        }
        if (p->n_sessions == 0)
                (void) event_del(p->audit_ev);
}

int pager_audit_init(struct pager *p) {
        p->audit_ev = event_new(p->base, -1, EV_PERSIST, on_time, p);
        return p->audit_ev ? 0 : -ENOMEM;
}

int pager_audit_start(struct pager *p) {
        static const struct timeval interval = { .tv_usec = PAGER_AUDIT_MS * 1000 };

        if (event_pending(p->audit_ev, EV_TIMEOUT, NULL))
                return 0;
        return event_add(p->audit_ev, &interval) < 0 ? -ENOMEM : 0;
}
