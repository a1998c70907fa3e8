/* SPDX-License-Identifier: MIT */
/* Theory of operation. A live fork makes an image of what a VM has at one moment, and the VM stands still only for that moment:
 *
 *      prepare   a nascent image (nascent.h); the VMM's memory is registered for writes to protected pages. What it has
 *                written is found in its page table, noted and protected; it may write, and takes the protection off
 *      protect   (the VMM stands still) the same of what it has written since: so the pause is as long as that takes, and not
 *                as there is to be copied
 *      copying   clones may live on the image already; the fill thread copies from when somebody waits for it (live.wait), faults
 *                of either side hasten it
 *      settling  all is copied; but what the VMM had discarded before it was copied may be on its way to us, and breaks the fork
 *      copied    nothing is read from the VMM any more; forkd has the image written to the store
 *      publish   the image has a file from now on, and is as any other; the source is rebased on it (rebase.c)
 *
 * After that the source is known by what it has written since: its pages that are still protected are as in that image
 * (`since`). So the next fork notes, protects and copies only what is not, and its image has `since` for its base. When a fork fails
 * after it had protected everything is unprotected, and the next fork copies all that is anonymous in the VMM: more than needed,
 * and as right. `since` stays the base, for the rest the VMM may map from there (rebase.c). Another pager that takes over is told of
 * it where the VMM maps more than its own image.
 *
 * What the source has not written is its own image's, or that one's ancestors', as before: it goes on with the same session.
 *
 * A VM that booted joins when it is forked first. Its memory is private and anonymous; it is registered for writes only, and
 * its missing pages stay the kernel's. */
#include "pager/live.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "common/io.h"
#include "common/log.h"
#include "common/pagemap.h"
#include "pager/nascent.h"
#include "pager/pager_internal.h"
#include "pager/uffd.h"

/* Of anonymous memory runs with small gaps between them are protected by one call: what lies in the gap is only unprotected again
 * when it is written, and what is not there stays so. In a mapping of a file the kernel would leave a mark where no page is. */
#define MAX_GAP_PAGES 8u

enum live_state { WAITING, PREPARED, SYNCING, COPYING, SETTLING, COPIED, BROKEN };

struct pager_live {
        struct pager_live *next;
        struct pager *pager;
        id_str id;
        enum live_state state;
        struct pager_session *source; /* NULL: it has ended */
        struct pager_cached *cached;  /* the image, in use */
        int pagemap_fd;
        uint64_t copy_ns; /* since when it is copied, then how long it took */
        struct event *settle;
        unsigned settle_tries;
        struct pager_waiter prepare_waiter, protect_waiter, wait_waiter;
};

/* ---- protection ---- */

/** While the VMM changes its layout the kernel refuses, until the worker has read of it. */
static int protect(struct pager_session *s, uint64_t from, uint64_t len, bool on) {
        int r = uffd_protect(s->uffd, from, len, on);

        for (unsigned tries = 0; r == -EAGAIN && tries < PAGER_RETRY_ROUNDS; tries++) {
                (void) nanosleep(&(struct timespec){ .tv_nsec = PAGER_RETRY_MIN_US * 1000l }, NULL);
                r = uffd_protect(s->uffd, from, len, on);
        }
        return r;
}

/** Nothing is protected any more, and writes are none of ours; as far as the kernel does it at once. */
static void unprotect(struct pager_session *s) {
        if (!s->attached || !atomic_load_explicit(&s->protects, memory_order_relaxed))
                return;
        for (size_t i = 0; i < s->layout->n; i++) {
                const struct pager_region *g = &s->layout->region[i];

                best_effort(uffd_protect(s->uffd, g->base, g->size, false));
                best_effort(uffd_register_as(s->uffd, g->base, g->size, !s->joined, false));
        }
        /* `protects` stays: a fault may have been raised before. */
}

/** From now on writes to protected pages are told. */
static int watch_writes(struct pager_session *s) {
        int r = 0;

        atomic_store_explicit(&s->protects, true, memory_order_release);
        for (size_t i = 0; r == 0 && i < s->layout->n; i++)
                r = uffd_register_as(s->uffd, s->layout->region[i].base, s->layout->region[i].size, !s->joined, true);
        return r;
}

/** All of it is watched, and what is protected is as in `since`: where that is not known, nothing is. Unprotecting stops at memory
 *  that came since it was registered (a discard), and does nothing while events are unread; a page that stayed protected would be
 *  taken for unchanged. */
static int begin_watching(struct pager_session *s) {
        bool before = atomic_load_explicit(&s->protects, memory_order_relaxed);
        int r = watch_writes(s);

        if (!before || (s->since && s->since_protected))
                return r;
        for (size_t i = 0; r == 0 && i < s->layout->n; i++) {
                const struct pager_region *g = &s->layout->region[i];

                r = protect(s, g->base, g->size, false);
                for (unsigned tries = 0; r == -ENOENT && tries < PAGER_RETRY_ROUNDS; tries++) {
                        r = watch_writes(s);
                        if (r == 0)
                                r = protect(s, g->base, g->size, false);
                }
        }
        return r;
}

/** The source's pages are noted as they are found, and protected run by run. */
struct arming {
        struct pager_session *s;
        struct pager_image *img;
        const struct pager_region *g;
        uint64_t from, to; /* addresses to be protected next */
};

static int protect_run(struct arming *a) {
        int r = a->from < a->to ? protect(a->s, a->from, a->to - a->from, true) : 0;

        a->from = a->to = 0;
        return r;
}

static int on_written(uint64_t addr, uint64_t n, void *arg) {
        struct arming *a = arg;
        int r = 0;

        pager_nascent_add(a->img, (addr - a->g->base + a->g->offset) / PAGER_PAGE, n);
        if (a->to && addr - a->to <= (a->s->joined ? MAX_GAP_PAGES * PAGER_PAGE : 0)) {
                a->to = addr + n * PAGER_PAGE;
                return 0;
        }
        r = protect_run(a);
        a->from = addr;
        a->to = addr + n * PAGER_PAGE;
        return r;
}

/** Between runs of pages that have a content there is nothing. */
static int on_anonymous(uint64_t addr, uint64_t n, void *arg) {
        struct arming *a = arg;

        pager_nascent_add_zero(a->img, (a->from - a->g->base + a->g->offset) / PAGER_PAGE, (addr - a->from) / PAGER_PAGE);
        a->from = addr + n * PAGER_PAGE;
        return 0;
}

/** Guest pages [@first, + @n) were discarded some time. Those that were written since are either noted, or were when the VM was
 *  forked before, and have not changed; the others read zero. */
static int arm_discarded(struct arming *a, int pagemap_fd, uint64_t first, uint64_t n) {
        const struct pager_layout *l = a->s->layout;
        int r = 0;

        for (size_t i = 0; r == 0 && i < l->n; i++) {
                const struct pager_region *g = a->g = &l->region[i];
                uint64_t lo = MAX_OF(first * PAGER_PAGE, g->offset), hi = MIN_OF((first + n) * PAGER_PAGE, g->offset + g->size);

                if (g->offset == PAGER_READS_ZERO || lo >= hi)
                        continue;
                a->from = g->base + (lo - g->offset);
                a->to = g->base + (hi - g->offset);
                r = pagemap_anonymous(pagemap_fd, PAGEMAP_ANY, a->from, a->to, on_anonymous, a);
                if (r == 0)
                        r = on_anonymous(a->to, 0, a);
        }
        a->from = a->to = 0;
        return r;
}

static int arm_regions(struct pager_live *l, bool few) {
        struct pager_session *s = l->source;
        struct arming a = { .s = s, .img = l->cached->image };
        int r = 0;

        for (size_t i = 0; r == 0 && i < s->layout->n; i++) {
                a.g = &s->layout->region[i];
                if (a.g->offset == PAGER_READS_ZERO)
                        continue;
                r = few ? pagemap_written_of_few(l->pagemap_fd, a.g->base, a.g->base + a.g->size, on_written, &a)
                        : pagemap_written(l->pagemap_fd, PAGEMAP_ANY, a.g->base, a.g->base + a.g->size, on_written, &a);
                if (r == 0)
                        r = protect_run(&a);
        }
        return r;
}

/** Notes and protects what is written, as far as it is not protected already. */
static int arm_written(struct pager_live *l, bool few) {
        int r = arm_regions(l, few);

        if (r != -ENOENT)
                return r;
        /* What the VMM has discarded is other memory since, and not registered yet. */
        r = watch_writes(l->source);
        return r < 0 ? r : arm_regions(l, few);
}

/** The VMM stands still. */
static int arm(struct pager_live *l) {
        struct pager_session *s = l->source;
        struct arming a = { .s = s, .img = l->cached->image };
        struct pager_image *base = s->since ? s->since->image : s->image;
        uint64_t page = 0, first, n;
        int r = arm_written(l, true);

        while (r == 0 && pager_session_next_removed(s, page, &first, &n)) {
                r = arm_discarded(&a, l->pagemap_fd, first, n);
                page = first + n;
        }
        return r < 0 ? r : pager_nascent_begin(a.img, base);
}

/* ---- answers ---- */

static void refuse(struct pager_waiter *w, const struct pager_live *l) {
        struct err e = { 0 };

        if (!w->conn)
                return;
        (void) err_set(&e, ERR_STATE, -EPIPE, "live fork %s has failed: %s", l->id,
                       l->source ? "the VMM's memory could not be copied" : "the VMM has ended");
        (void) rpc_reply_err(w->conn, w->msgid, &e);
        rpc_conn_unref(TAKE_PTR(w->conn));
}

static void answer_wait(struct pager_live *l) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int fd = pager_image_readonly_fd(l->cached->image);

        if (!l->wait_waiter.conn)
                return;
        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_u64(&b, "pages", pager_nascent_pages(l->cached->image));
        mp_kv_double(&b, "ms", (double) l->copy_ns / 1e6);
        mp_kv_u64(&b, "fds", 1);
        (void) rpc_reply(l->wait_waiter.conn, l->wait_waiter.msgid, &b, &fd, 1);
        rpc_conn_unref(TAKE_PTR(l->wait_waiter.conn));
}

/** It will not be complete. Whoever waits is told. */
static void break_off(struct pager_live *l) {
        if (l->state == BROKEN)
                return;
        l->state = BROKEN;
        pager_nascent_break(l->cached->image);
        refuse(&l->prepare_waiter, l);
        refuse(&l->protect_waiter, l);
        refuse(&l->wait_waiter, l);
}

/** The source is not copied any more. */
static void let_go(struct pager_live *l) {
        if (!l->source)
                return;
        pager_session_set_nascent(l->source, NULL);
        l->source->live = NULL;
}

static void forget(struct pager_live *l) {
        struct pager_live **at = &l->pager->lives;

        while (*at != l)
                at = &(*at)->next;
        *at = l->next;
        let_go(l);
        if (l->prepare_waiter.conn)
                rpc_conn_unref(l->prepare_waiter.conn);
        (void) close_fd(l->pagemap_fd);
        if (l->cached)
                pager_cache_put(l->cached);
        if (l->settle)
                event_free(l->settle);
        free(l);
}

static void on_settle(evutil_socket_t fd, short what, void *arg);

/* ---- its steps ---- */

struct pager_live *pager_live_find(struct pager *p, const char *id) {
        struct pager_live *l = p->lives;

        while (l && strcmp(l->id, id) != 0)
                l = l->next;
        return l;
}

static int check_source(const struct pager_session *s, struct err *e) {
        if (!s->attached)
                return err_set(e, ERR_STATE, -ENOTCONN, "session %s has no VMM yet", s->id);
        if (s->failed)
                return err_set(e, ERR_STATE, -EIO, "session %s has failed: %s", s->id, s->reason);
        if (s->mode != PAGER_MODE_MEMFD)
                return err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "session %s is in copy mode, which cannot be forked live", s->id);
        if (s->releasing || s->released)
                return err_set(e, ERR_BUSY, -EBUSY, "session %s is being handed to another pager", s->id);
        if (s->live)
                return err_set(e, ERR_BUSY, -EBUSY, "session %s is being forked already", s->id);
        /* A pager had forked it that could not tell us the last of the images that it maps. */
        if (s->view && !s->since)
                return err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP,
                               "what session %s has not written is as in an image that is not known here", s->id);
        if (pager_image_is_nascent(s->image))
                return err_set(e, ERR_BUSY, -EBUSY, "the image of session %s is nascent", s->id);
        return 0;
}

/** Makes @l known, in the state WAITING. */
static int make_live(struct pager *p, const struct pager_live_params *lp, struct pager_live **ret, struct err *e) {
        cleanup_fd int mem = lp->mem_fd, pagemap = lp->pagemap_fd;
        cleanup_pager_image struct pager_image *img = NULL;
        cleanup_free struct pager_live *l = NULL;
        struct pager_session *s = lp->source;
        int r = check_source(s, e);

        if (r < 0)
                return r;
        if (pager_live_find(p, lp->id))
                return err_set(e, ERR_EXISTS, -EEXIST, "there is a live fork %s", lp->id);
        l = calloc(1, sizeof(*l));
        if (!l)
                return err_errno(e, -ENOMEM, "preparing a live fork");
        r = pager_nascent_new(pager_image_pages(s->image) * PAGER_PAGE, s->layout, TAKE_FD(mem), p->reclaim, &img);
        if (r < 0)
                return err_errno(e, r, "making an image");
        l->settle = evtimer_new(p->base, on_settle, l);
        if (!l->settle)
                return err_errno(e, -ENOMEM, "preparing a live fork");
        r = pager_cache_add(p->cache, img, &l->cached, e);
        if (r < 0) {
                event_free(l->settle);
                return r;
        }
        (void) snprintf(l->id, sizeof(l->id), "%s", lp->id);
        l->pager = p;
        l->source = s;
        l->pagemap_fd = TAKE_FD(pagemap);
        l->next = p->lives;
        p->lives = l;
        s->live = l;
        *ret = TAKE_PTR(l);
        return 0;
}

/** The source is not being rebased (any more): its writes are watched, and the answer is given. On failure @l is gone. */
static int start_live(struct pager_live *l, struct err *e) {
        struct pager_waiter w = l->prepare_waiter;
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pager_session *s = l->source;
        int r = begin_watching(s);

        if (r == 0) {
                r = arm_written(l, false);
                if (r == -EAGAIN || r == -ENOENT) /* it changes its layout as it runs: the rest when it stands still */
                        r = 0;
        }
        l->prepare_waiter = (struct pager_waiter){ 0 };
        if (r < 0) {
                (void) (r == -EOPNOTSUPP ? err_set(e, ERR_UNSUPPORTED, r,
                                                   "this kernel cannot protect private memory of files (needs 5.19)")
                                         : err_errno(e, r, "watching the writes of session %s", s->id));
                forget(l);
                pager_live_unprotect(s);
        } else {
                l->state = PREPARED;
                mp_buf_init(&b);
                mp_map(&b, 1);
                mp_kv_bool(&b, "base", s->since && s->since_protected);
                (void) rpc_reply(w.conn, w.msgid, &b, NULL, 0);
        }
        rpc_conn_unref(w.conn);
        return r;
}

int pager_live_prepare(struct pager *p, const struct pager_live_params *lp, struct rpc_conn *conn, uint32_t msgid,
                       struct err *e) {
        struct pager_live *l = NULL;
        int r = make_live(p, lp, &l, e);

        if (r < 0)
                return r;
        l->prepare_waiter = (struct pager_waiter){ rpc_conn_ref(conn), msgid };
        return l->source->rebase ? 0 : start_live(l, e);
}

void pager_live_go_on(struct pager_session *s) {
        struct pager_live *l = s->live;
        struct rpc_conn *conn;
        struct err e = { 0 };
        uint32_t msgid;

        if (!l || l->state != WAITING)
                return;
        conn = rpc_conn_ref(l->prepare_waiter.conn);
        msgid = l->prepare_waiter.msgid;
        if (start_live(l, &e) < 0)
                (void) rpc_reply_err(conn, msgid, &e);
        rpc_conn_unref(conn);
}

void pager_live_sync(struct pager_session *s) {
        s->live_deferred = s->moving;
        if (s->moving)
                return;
        if (!s->worker || s->ending) { /* what is posted behind PAGER_DROP would come back behind the end of the session */
                pager_live_synced(s);
        } else if (s->live_syncing) { /* for a fork that was cancelled meanwhile */
                s->live_sync_again = true;
        } else {
                s->live_syncing = true;
                pager_worker_live_sync(s->worker, s);
        }
}

void pager_live_letter(struct pager_session *s) {
        s->live_syncing = false;
        if (!s->live_sync_again) {
                pager_live_synced(s);
                return;
        }
        s->live_sync_again = false;
        pager_live_sync(s);
}

int pager_live_protect(struct pager_live *l, struct rpc_conn *conn, uint32_t msgid, struct err *e) {
        struct pager_session *s = l->source;

        if (l->state == BROKEN)
                return err_set(e, ERR_STATE, -EPIPE, "live fork %s has failed: the VMM has ended", l->id);
        if (l->state != PREPARED)
                return err_set(e, ERR_STATE, -EALREADY, "live fork %s is protected already", l->id);
        l->state = SYNCING;
        l->protect_waiter = (struct pager_waiter){ rpc_conn_ref(conn), msgid };
        pager_session_set_nascent(s, pager_image_ref(l->cached->image));
        /* Through the worker: what the VMM has discarded is known then. */
        pager_live_sync(s);
        return 0;
}

/** When somebody waits for it, not sooner: the VMM runs by then, and until then had better things to do with the CPUs. */
static void start_copying(struct pager_live *l) {
        if (l->copy_ns != 0)
                return;
        l->copy_ns = now_ns();
        pager_filler_start(l->pager->filler, pager_nascent_job(l->cached->image));
}

/** The worker has read all that the VMM discarded while it was copied. */
static void settled(struct pager_live *l) {
        if (!pager_nascent_settle(l->cached->image)) {
                break_off(l);
                return;
        }
        l->state = COPIED;
        l->copy_ns = now_ns() - l->copy_ns;
        answer_wait(l);
}

/** While the kernel has a discard under way of which nobody has read, later. When it has none, all that there were have been
 *  read, and the worker is done with them when it is asked. */
static void settle(struct pager_live *l) {
        static const struct timeval soon = { .tv_usec = PAGER_RETRY_MIN_US };

        if (!uffd_changing(l->source->uffd))
                pager_live_sync(l->source);
        else if (l->settle_tries++ == PAGER_SETTLE_TRIES || event_add(l->settle, &soon) < 0)
                break_off(l);
}

static void on_settle(evutil_socket_t fd, short what, void *arg) {
        struct pager_live *l = arg;

        if (l->state == SETTLING)
                settle(l);
}

void pager_live_synced(struct pager_session *s) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pager_live *l = s->live;
        uint64_t start = now_ns();
        int r;

        if (s->rebase) {
                pager_rebase_synced(s);
                return;
        }
        if (l && l->state == SETTLING)
                settled(l);
        if (!l || l->state != SYNCING) /* cancelled meanwhile */
                return;
        r = s->failed || s->ending ? -EPIPE : arm(l);
        if (r < 0) {
                log_warning("live fork %s: protecting the memory of session %s: %s", l->id, s->id, strerrordesc_np(-r));
                break_off(l);
                return;
        }
        pager_cache_link(l->cached);
        l->state = COPYING;
        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_u64(&b, "removed_pages", atomic_load_explicit(&s->removed_pages, memory_order_relaxed));
        mp_kv_u64(&b, "dirty_pages", pager_nascent_pages(l->cached->image));
        mp_kv_double(&b, "ms", ms_since(start));
        log_debug("live fork %s: %llu pages are protected, %.1f ms", l->id,
                  (unsigned long long) pager_nascent_pages(l->cached->image), ms_since(start));
        (void) rpc_reply(l->protect_waiter.conn, l->protect_waiter.msgid, &b, NULL, 0);
        rpc_conn_unref(TAKE_PTR(l->protect_waiter.conn));
        if (l->wait_waiter.conn)
                start_copying(l);
}

int pager_live_open(struct pager *p, const char *id, struct pager_cached **ret, struct err *e) {
        struct pager_live *l = pager_live_find(p, id);

        if (!l)
                return err_set(e, ERR_NOT_FOUND, -ENOENT, "there is no live fork %s", id);
        if (l->state == BROKEN)
                return err_set(e, ERR_STATE, -EPIPE, "live fork %s has failed", l->id);
        if (l->state != COPYING && l->state != SETTLING && l->state != COPIED)
                return err_set(e, ERR_STATE, -EAGAIN, "live fork %s is not protected yet", l->id);
        pager_cache_use(l->cached);
        *ret = l->cached;
        return 0;
}

static struct pager_live *live_of(struct pager *p, const struct pager_image *img) {
        struct pager_live *l = p->lives;

        while (l && l->cached->image != img)
                l = l->next;
        return l;
}

void pager_live_copied(struct pager *p, struct pager_image *img) {
        struct pager_live *l = live_of(p, img);

        if (l && l->state == COPYING && pager_nascent_state(img) == PAGER_NASCENT_COMPLETE) {
                l->state = SETTLING;
                settle(l);
        } else if (l) {
                break_off(l);
        }
}

int pager_live_wait(struct pager_live *l, struct rpc_conn *conn, uint32_t msgid, struct err *e) {
        if (l->state == BROKEN)
                return err_set(e, ERR_STATE, -EPIPE, "live fork %s has failed: %s", l->id,
                               l->source ? "the VMM's memory could not be copied" : "the VMM has ended");
        if (l->wait_waiter.conn)
                return err_set(e, ERR_BUSY, -EBUSY, "live fork %s is waited for already", l->id);
        l->wait_waiter = (struct pager_waiter){ rpc_conn_ref(conn), msgid };
        if (l->state == COPIED) {
                answer_wait(l);
        } else if (l->state == COPYING) {
                start_copying(l);
        }
        return 0;
}

int pager_live_publish(struct pager_live *l, int fd, struct err *e) {
        struct pager_image *img = l->cached->image;
        struct pager_session *s = l->source;
        cleanup_fd int pagemap = -1;
        int r;

        if (l->state != COPIED)
                return err_set(e, ERR_STATE, -EINVAL, "live fork %s is not complete", l->id);
        r = pager_nascent_publish(img, fd);
        if (r == -EUCLEAN)
                return err_set(e, ERR_CORRUPT, r, "the file is not the image of live fork %s", l->id);
        if (r < 0)
                return err_errno(e, r, "opening the image of live fork %s", l->id);
        (void) snprintf(l->cached->label, sizeof(l->cached->label), "%s", l->id);
        if (s && !s->ending) {
                if (s->since)
                        pager_cache_put(s->since);
                s->since = TAKE_PTR(l->cached);
                s->since_protected = true;
        }
        pagemap = TAKE_FD(l->pagemap_fd);
        forget(l);
        if (!s || s->ending || pager_rebase_begin(s, img, TAKE_FD(pagemap)) < 0)
                pager_nascent_shed(img, NULL);
        return 0;
}

void pager_live_cancel(struct pager_live *l) {
        struct pager_session *s = l->state == WAITING ? NULL : l->source; /* it has not touched that yet */

        break_off(l);
        forget(l);
        if (s)
                pager_live_unprotect(s);
}

void pager_live_unprotect(struct pager_session *s) {
        if (s->live) {
                pager_live_cancel(s->live);
                return;
        }
        /* `since` stays: what the VMM has not written it may map from there, and has as there. */
        unprotect(s);
        s->since_protected = false;
}

void pager_live_source_gone(struct pager_session *s) {
        struct pager_live *l = s->live;

        if (s->since)
                pager_cache_put(TAKE_PTR(s->since));
        if (!l)
                return;
        let_go(l);
        l->source = NULL;
        if (l->state != COPIED)
                break_off(l);
}

void pager_live_free_all(struct pager *p) {
        while (p->lives) {
                break_off(p->lives);
                forget(p->lives);
        }
}
