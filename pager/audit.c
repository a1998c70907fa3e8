/* SPDX-License-Identifier: MIT */
/* What the control thread looks at every PAGER_AUDIT_MS, so that no guest reads what it should not, and none waits for
 * ever.
 *
 * Pages that are not ours. Whoever maps an image's memory without a userfaultfd, and touches a page that is not there,
 * makes the kernel put a zero page there, for all clones: they find it and read zeros, and no fault tells. It cannot be
 * prevented, since every VMM has to have the descriptor; but it does not stay unseen. Every page in the memfd is one that
 * we put there, so their number is known: it is compared with what the kernel counts, also before an idle image is used
 * again. Where there are more, no session that maps the memory can be
 * trusted any more, whatever it has read: all of them fail, and who comes next gets the image anew.
 *
 * The two numbers agree while nobody inserts or removes pages, which is done under claims only. So the comparison is made
 * with the locks of all shards held and no claim in any of them; when there are claims it is tried again, and left to the
 * next time if that does not help. The locks are leaves: only here does a thread hold more than one, in their order. A page
 * that is punched out before it was counted is seen by whoever does that (pager_image_evict). In an image that another pager
 * has filled, or fills, too, there may be more pages than we know of: those are compared with the image (survey.c).
 *
 * Faults that wait. A worker may hang in the kernel, in a read from a disk that does not answer. Its sessions cannot be
 * taken from it. Those of them whose faults have waited for too long get their verdict: a guest that is ended can be
 * restored elsewhere, one that hangs cannot. Other reasons to wait are none of ours: a VMM that is frozen while it changes
 * its layout may stay so for as long as it likes, and keeps no worker busy. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/stat.h>

#include "common/io.h"
#include "pager/image_internal.h"
#include "pager/mapping.h"
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

        if (pager_image_is_quiet(img))
                return -EAGAIN;
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
        if (pager_image_is_shared(img))
                return -EINPROGRESS;
        pager_image_taint(img);
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
                if (pager_session_maps(s, c->image) && maps_memory(s) && !s->failed && !s->ending)
                        return s;
        return NULL;
}

/** Since when the session's oldest fault waits, while its worker hangs; 0: none does. */
static uint64_t waits_since(struct pager_session *s, uint64_t now) {
        uint64_t oldest = atomic_load_explicit(&s->oldest_ns, memory_order_relaxed);
        struct pollfd unread = { .fd = s->uffd, .events = POLLIN };

        if (!s->worker || s->failed || s->ending || s->moving || pager_worker_busy_ns(s->worker) < PAGER_STUCK_MS * 1000000ull) {
                s->unread_since_ns = 0;
                return 0;
        }
        if (oldest)
                return oldest;
        /* The worker has not come to read it. */
        if (poll(&unread, 1, 0) <= 0)
                s->unread_since_ns = 0;
        else if (!s->unread_since_ns)
                s->unread_since_ns = now;
        return s->unread_since_ns;
}

static struct pager_session *find_hung(struct pager *p, uint64_t now) {
        for (struct pager_session *s = p->sessions; s; s = s->next) {
                uint64_t since = waits_since(s, now);

                if (since && since + p->cfg.fault_seconds * 1000000000ull < now)
                        return s;
        }
        return NULL;
}

static void fail_hung(struct pager *p) {
        char why[PAGER_MAX_REASON];
        struct pager_session *s;

        (void) snprintf(why, sizeof(why), "a fault has waited for %u seconds: a read of an image's file does not come back",
                        p->cfg.fault_seconds);
        while ((s = find_hung(p, now_ns())))
                pager_fail_session(p, s, why);
}

static void on_time(evutil_socket_t fd, short what, void *arg) {
        struct pager *p = arg;
        struct pager_session *s;
        int r;

        fail_hung(p);
        for (struct pager_cached *c = pager_cache_first(p->cache), *next; c; c = next) {
                next = c->next;
                if (c->n_users == 0)
                        continue;
                r = pager_image_audit(c->image);
                if (r == -EINPROGRESS)
                        pager_filler_start(p->filler, pager_image_survey_job(c->image));
                if (r != -EUCLEAN)
                        continue;
                pager_cache_use(c); /* it goes with its last session */
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
