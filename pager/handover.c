/* SPDX-License-Identifier: MIT */
/* Theory of operation. A session goes from one pager to another by its descriptors: the VMM's userfaultfd, on which its
 * faults wait for whoever reads them, its socket, and the memory of its image, in which the pages are. What else a pager
 * knows of it are its regions and what was discarded; the rest is found out anew.
 *
 *   attached ──session.release──▶ releasing ──MOVED, from its worker──▶ released ──session.close──▶ freed
 *       ▲                                                                  │
 *       └──────────────────────session.resume──────────────────────────────┘
 *   session.adopt ──▶ attached, or (with hold) released
 *
 * A fault that was read waits in the kernel like one that was not, but no reader hears of it again. So whoever takes a
 * session, or takes it back, wakes all of its ranges when he has read all there is to read: who still misses his page
 * raises his fault again. Events that were read by a pager that died are not raised again; but their effect is to be seen in
 * the VMM's mappings, which forkd has looked at.
 *
 * While sessions of an image are released the image is quiet (survey.c): a release is answered when nobody works on its
 * memory any more, if it was the last that was served. That wait is for a decode or a punch that has begun, so it is
 * looked for every PAGER_SETTLE_MS; a disk that does not answer makes it long, but holds nobody else up. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "pager/mapping.h"
#include "pager/pager_internal.h"
#include "pager/uffd.h"

/* ---- giving ---- */

/** Does a VMM in copy mode use the image? It is served from pages that another pager might punch out. */
static bool is_copied_from(struct pager_image *img, void *arg) {
        const struct pager *p = arg;

        for (const struct pager_session *s = p->sessions; s; s = s->next)
                if (s->attached && s->mode == PAGER_MODE_COPY && pager_session_maps(s, img))
                        return true;
        return false;
}

static bool share(struct pager_image *img, void *arg) {
        pager_image_share(img);
        return false;
}

static bool survey(struct pager_image *img, void *arg) {
        struct pager *p = arg;

        pager_filler_start(p->filler, pager_image_survey_job(img));
        return false;
}

int pager_handover_check(struct pager *p, const struct pager_session *s, struct err *e) {
        if (s->failed)
                return err_set(e, ERR_STATE, -EIO, "session %s has failed: %s", s->id, s->reason);
        if (!s->peer)
                return err_set(e, ERR_STATE, -EPIPE, "session %s has no VMM", s->id);
        if (s->rebase)
                return err_set(e, ERR_BUSY, -EBUSY, "the VMM of session %s is mapping its memory anew", s->id);
        if (s->live)
                return err_set(e, ERR_BUSY, -EBUSY, "session %s is being forked", s->id);
        if (pager_image_is_nascent(s->image))
                return err_set(e, ERR_BUSY, -EBUSY, "the image of session %s is not in any file yet", s->id);
        if (s->attached && s->mode == PAGER_MODE_COPY)
                return err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "session %s is in copy mode, which cannot be handed over", s->id);
        if (pager_mapping_any(s, is_copied_from, p))
                return err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP,
                               "the image of session %s also serves a VMM in copy mode, which cannot be handed over", s->id);
        return 0;
}

int pager_handover_release(struct pager *p, struct pager_session *s, struct rpc_conn *conn, uint32_t msgid, struct err *e) {
        int r = pager_handover_check(p, s, e);

        if (r < 0)
                return r;
        if (!s->attached)
                return err_set(e, ERR_STATE, -ENOTCONN, "session %s has no VMM yet", s->id);
        if (s->releasing || s->released)
                return err_set(e, ERR_STATE, -EALREADY, "session %s is released already", s->id);
        s->release_waiter = (struct pager_waiter){ rpc_conn_ref(conn), msgid };
        s->releasing = s->counted = true;
        s->cached->n_released++;
        (void) pager_mapping_any(s, share, NULL);
        pager_image_set_quiet(s->image, true);
        pager_workingset_finish(s);
        if (!s->moving) /* else MOVED is on its way */
                pager_worker_move(s->worker, s, NULL);
        s->moving = true;
        s->worker = NULL;
        return 0;
}

/** It is not among the released ones any more. */
static void uncount(struct pager_session *s) {
        if (!s->counted)
                return;
        s->counted = false;
        if (--s->cached->n_released == 0)
                pager_image_set_quiet(s->image, false);
}

static bool served(struct pager *p, const struct pager_cached *c) {
        for (const struct pager_session *s = p->sessions; s; s = s->next)
                if (s->cached == c && (s->worker || s->moving))
                        return true;
        return false;
}

/** Answers the releases that are complete. */
static void settle(struct pager *p) {
        static const struct timeval again = { .tv_usec = PAGER_SETTLE_MS * 1000 };
        bool waits = false;

        for (struct pager_session *s = p->sessions; s; s = s->next) {
                if (!s->release_waiter.conn || !s->released)
                        continue;
                if (!served(p, s->cached) && pager_image_claimed(s->image)) {
                        waits = true;
                        continue;
                }
                log_info("session %s: released", s->id);
                (void) rpc_reply(s->release_waiter.conn, s->release_waiter.msgid, NULL, NULL, 0);
                rpc_conn_unref(TAKE_PTR(s->release_waiter.conn));
        }
        if (waits)
                (void) event_add(p->settle_ev, &again);
}

static void on_settle(evutil_socket_t fd, short what, void *arg) {
        settle(arg);
}

void pager_on_released(struct pager *p, struct pager_session *s) {
        struct err e = { 0 };

        s->worker = NULL;
        s->releasing = false;
        if (!s->failed) {
                s->released = true;
                atomic_store_explicit(&s->oldest_ns, 0, memory_order_relaxed);
                settle(p);
                return;
        }
        uncount(s);
        (void) err_set(&e, ERR_STATE, -EIO, "session %s has failed: %s", s->id, s->reason);
        (void) rpc_reply_err(s->release_waiter.conn, s->release_waiter.msgid, &e);
        rpc_conn_unref(TAKE_PTR(s->release_waiter.conn));
}

void pager_handover_forget(struct pager_session *s) {
        /* Another pager has its image: who comes next gets it anew, and what is in the memory is not ours to punch. */
        if (s->counted && s->released)
                s->cached->stale = true;
        uncount(s);
}

/* ---- taking ---- */

int pager_handover_resume(struct pager *p, struct pager_session *s, struct err *e) {
        if (s->release_waiter.conn)
                return err_set(e, ERR_BUSY, -EBUSY, "session %s is being released", s->id);
        if (s->failed)
                return err_set(e, ERR_STATE, -EIO, "session %s has failed: %s", s->id, s->reason);
        if (!s->released)
                return err_set(e, ERR_STATE, -EALREADY, "session %s is not released", s->id);
        uncount(s);
        s->released = false;
        s->dropped = true; /* its worker will read all there is, and then wake everybody */
        pager_serve_session(p, s);
        (void) pager_mapping_any(s, survey, p);
        log_info("session %s: served again", s->id);
        return 0;
}

/** Gives the session its descriptors: duplicates, so that a failure later leaves the caller's as they are. */
static int attach(struct pager *p, struct pager_session *s, const struct pager_adoption *a, struct err *e) {
        cleanup_free struct pager_layout *layout = pager_layout_copy(a->layout);
        cleanup_fd int uffd = fcntl(a->uffd, F_DUPFD_CLOEXEC, 3), sock = fcntl(a->vmm_sock, F_DUPFD_CLOEXEC, 3);
        int r;

        if (!layout || uffd < 0 || sock < 0)
                return err_errno(e, layout ? -EMFILE : -ENOMEM, "adopting a session");
        r = uffd_check(uffd, a->layout->region[0].base);
        if (r == 0)
                r = io_set_nonblock(uffd, true);
        if (r < 0)
                return err_set(e, ERR_INVALID, r, "the fourth descriptor is no userfaultfd that is ready for use");
        s->joined = pager_peer_is_process(sock);
        r = s->joined ? pager_peer_adopt_process(p->base, TAKE_FD(sock), &pager_vmm_handlers, s, &s->peer)
                      : pager_peer_adopt(p->base, TAKE_FD(sock), &pager_vmm_handlers, s, &s->peer);
        if (r == -ENOTSOCK)
                return err_set(e, ERR_INVALID, r, "the second descriptor is no connected unix stream socket, and no process's");
        if (r == 0)
                r = pager_session_attach(s, layout, uffd);
        if (r < 0)
                return err_errno(e, r, "adopting a session");
        (void) TAKE_PTR(layout);
        (void) TAKE_FD(uffd);
        s->depends = true;
        s->vm_pid = a->vm_pid;
        /* What another pager has protected is as an image has it that we do not know. */
        atomic_store_explicit(&s->protects, true, memory_order_release);
        pager_live_unprotect(s);
        return 0;
}

int pager_adopt_session(struct pager *p, const struct pager_adoption *a, struct pager_session **ret, struct err *e) {
        struct pager_session *s = NULL;
        struct pager_cached *cached;
        int r = pager_admit_session(p, a->id, e);

        if (r == 0)
                r = a->memfd < 0 ? pager_cache_get(p->cache, a->image_fd, &(struct pager_descent){ .id = "" }, &cached, e)
                                 : pager_cache_adopt(p->cache, a->image_fd, a->memfd, &cached, e);
        if (r < 0)
                return r;
        r = pager_session_new(a->id, cached->image, &s);
        if (r < 0) {
                (void) err_errno(e, r, "adopting a session");
                goto put;
        }
        s->pager = p;
        s->cached = cached;
        if (pager_image_info(cached->image)->ram_bytes != a->ram_bytes) {
                r = err_set(e, ERR_INVALID, -EINVAL, "ram_bytes is %llu, but the image has %llu",
                            (unsigned long long) a->ram_bytes, (unsigned long long) pager_image_info(cached->image)->ram_bytes);
                goto put;
        }
        r = a->mapping ? pager_mapping_apply(p, s, a->mapping, e) : 0;
        if (r < 0)
                goto put;
        if (pager_mapping_any(s, is_copied_from, p)) {
                r = err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "the image also serves a VMM in copy mode");
                goto put;
        }
        r = attach(p, s, a, e);
        if (r < 0)
                goto put;
        if (pager_audit_start(p) < 0) {
                r = err_errno(e, -ENOMEM, "adopting a session");
                goto put;
        }
        for (size_t i = 0; i < a->n_removed; i++)
                pager_session_mark_pages(s, a->removed[i].first, a->removed[i].first + a->removed[i].n);
        pager_link_session(p, s);
        s->released = a->hold;
        s->dropped = true;
        if (!a->hold)
                pager_serve_session(p, s);
        pager_filler_start(p->filler, pager_image_survey_job(s->image)); /* those of others were begun when they came */
        *ret = s;
        return 0;
put:
        if (s) {
                pager_peer_free(s->peer);
                pager_live_source_gone(s);
                pager_session_unpin_view(s);
        }
        pager_session_free(s);
        if (cached->n_sessions == 1) /* its memory stays another pager's */
                cached->stale = true;
        pager_cache_put(cached);
        return r;
}

int pager_handover_init(struct pager *p) {
        p->settle_ev = evtimer_new(p->base, on_settle, p);
        return p->settle_ev ? 0 : -ENOMEM;
}
