/* SPDX-License-Identifier: MIT */
/* Sessions in the control thread, from session.open to their end; pager.c draws their states. */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "pager/lineage.h"
#include "pager/mapping.h"
#include "pager/pager_internal.h"
#include "pager/rlimit.h"
#include "pager/segments.h"

struct pager_session *pager_find_session(struct pager *p, const char *id) {
        struct pager_session *s = p->sessions;

        while (s && strcmp(s->id, id) != 0)
                s = s->next;
        return s;
}

/* ---- the end of a session ---- */

static void remember(struct pager *p, const struct pager_session *s) {
        for (unsigned i = 0; i < PAGER_N_FAULTS; i++)
                p->past_faults[i] += atomic_load_explicit(&s->faults[i], memory_order_relaxed);
        p->past_pages_ahead += atomic_load_explicit(&s->pages_ahead, memory_order_relaxed);
        p->past_zero_ahead += atomic_load_explicit(&s->zero_ahead, memory_order_relaxed);
        p->past_pages_installed += atomic_load_explicit(&s->pages_installed, memory_order_relaxed);
        p->past_zero_pages += atomic_load_explicit(&s->zero_pages, memory_order_relaxed);
        hist_collect(&s->wait, &p->past_wait);
        hist_collect(&s->service, &p->past_service);
        p->past_sessions++;
        p->past_failed += s->failed;
}

void pager_release_session(struct pager *p, struct pager_session *s) {
        struct pager_session **at = &p->sessions;
        struct pager_cached *cached = s->cached;
        struct pager_waiter close = s->close_waiter, sync = s->sync_waiter, release = s->release_waiter;
        cleanup_mp_buf struct mp_buf b = { 0 };
        bool hung_up = s->hung_up;

        while (*at != s)
                at = &(*at)->next;
        *at = s->next;
        p->n_sessions--;
        remember(p, s);
        log_info("session %s: ended%s", s->id, hung_up ? ", the VMM is gone" : "");
        pager_rebase_forget(s);
        pager_live_source_gone(s);
        pager_handover_forget(s);
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", s->id);
        if (s->keeper)
                s->keeper->on_released(s, s->keeper_arg);
        pager_session_unpin_view(s);
        pager_session_free(s);
        pager_cache_put(cached);
        /* Said last: who hears it finds the memory given back. */
        if (hung_up)
                pager_notify(p, "session.gone", &b, NULL, 0);
        pager_answer_ended(&close, &sync, &release);
        if (p->draining && p->n_sessions == 0)
                pager_end(p);
}

void pager_end_session(struct pager *p, struct pager_session *s) {
        if (s->ending)
                return;
        s->ending = true;
        pager_workingset_end(s);
        pager_peer_free(TAKE_PTR(s->peer));
        if (s->moving)
                return; /* MOVED is on its way */
        if (s->worker)
                pager_worker_drop(s->worker, s);
        else
                pager_release_session(p, s);
}

void pager_fail_session(struct pager *p, struct pager_session *s, const char *reason) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        if (s->failed || s->ending)
                return;
        s->failed = true;
        atomic_store_explicit(&s->stopped, true, memory_order_relaxed);
        (void) snprintf(s->reason, sizeof(s->reason), "%s", reason);
        log_error("session %s: failed: %s", s->id, s->reason);
        mp_buf_init(&b);
        mp_map(&b, 2);
        mp_kv_str(&b, "session", s->id);
        mp_kv_str(&b, "reason", s->reason);
        pager_notify(p, "session.failed", &b, NULL, 0);
        if (s->keeper)
                s->keeper->on_failed(s, s->depends, s->keeper_arg); /* @s may be gone */
}

int pager_poison_session(struct pager *p, struct pager_session *s) {
        if (!s->worker || s->moving || s->ending)
                return -ESRCH;
        pager_worker_poison(s->worker, s);
        return 0;
}

/* ---- the VMM's socket ---- */

/** Of fewest sessions; but not one that seems to be stuck in a read of another session's image. */
static struct pager_worker *idlest_worker(struct pager *p) {
        struct pager_worker *best = p->workers[0];
        unsigned least = UINT_MAX;

        for (unsigned i = 0; i < p->n_workers; i++) {
                bool stuck = pager_worker_busy_ns(p->workers[i]) > PAGER_STUCK_MS * 1000000ull;
                unsigned n = pager_worker_sessions(p->workers[i]) + (stuck ? PAGER_MAX_SESSIONS : 0);

                if (n < least) {
                        least = n;
                        best = p->workers[i];
                }
        }
        return best;
}

void pager_serve_session(struct pager *p, struct pager_session *s) {
        pager_worker_add(idlest_worker(p), s);
}

void pager_put_regions(struct mp_buf *b, const struct pager_layout *l) {
        mp_array(b, l->n);
        for (size_t i = 0; i < l->n; i++) {
                mp_array(b, 3);
                mp_u64(b, l->region[i].base);
                mp_u64(b, l->region[i].size);
                mp_u64(b, l->region[i].offset);
        }
}

static void notify_attached(struct pager *p, const struct pager_session *s) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_str(&b, "session", s->id);
        mp_key(&b, "regions");
        pager_put_regions(&b, s->layout);
        mp_kv_u64(&b, "fds", 1);
        pager_notify(p, "session.attached", &b, &s->uffd, 1);
}

static int on_attach(struct pager_layout *layout, int uffd, char *why, size_t why_size, void *arg) {
        struct pager_session *s = arg;
        struct pager *p = s->pager;
        int r;

        if (s->failed) { /* for the image's memory, before this VMM came */
                (void) snprintf(why, why_size, "the session has failed");
                return -EIO;
        }
        if (s->keeper && layout->mode != PAGER_MODE_COPY) {
                (void) snprintf(why, why_size,
                                "its regions have the \"forkd\" extension, but only forkd hands out the memory for it");
                return -EPROTO;
        }
        if (layout->mode == PAGER_MODE_MEMFD && !s->segments && pager_image_n_owners(s->image) > 1) {
                (void) snprintf(why, why_size, "its image has pages from others, of which it was not told");
                return -EPROTO;
        }
        if (layout->mode == PAGER_MODE_COPY && pager_image_is_shared(s->image)) {
                /* What is copied is read from the memory, and the other pager may punch it out meanwhile. */
                (void) snprintf(why, why_size, "the image's memory is another pager's, too, and cannot be copied from");
                return -EPROTO;
        }
        r = pager_session_attach(s, layout, uffd);
        if (r < 0) {
                (void) snprintf(why, why_size, "out of memory");
                return r;
        }
        s->depends = true;
        log_info("session %s: attached, %zu region(s), %s mode", s->id, layout->n, pager_mode_name(layout->mode));
        notify_attached(p, s); /* while the layout is ours: from here on it is the worker's */
        pager_serve_session(p, s);
        pager_workingset_attached(s);
        return 0;
}

static void on_peer_failed(const char *reason, void *arg) {
        struct pager_session *s = arg;

        if (pager_peer_gave_uffd(s->peer))
                s->depends = true;
        pager_peer_free(TAKE_PTR(s->peer));
        pager_fail_session(s->pager, s, reason);
}

static void on_peer_gone(void *arg) {
        struct pager_session *s = arg;

        if (s->keeper && s->keeper->on_hangup(s, s->keeper_arg)) {
                pager_peer_free(TAKE_PTR(s->peer));
                return;
        }
        s->hung_up = true;
        pager_end_session(s->pager, s);
}

static void on_peer_answer(void *arg) {
        pager_rebase_answered(arg);
}

const struct pager_peer_handlers pager_vmm_handlers = { on_attach, on_peer_failed, on_peer_gone, on_peer_answer };

int pager_expect_vmm(struct pager_session *s, int pidfd, struct err *e) {
        cleanup_fd int fd = pidfd;
        pid_t pid;
        int r;

        if (!s->peer)
                return err_set(e, ERR_STATE, -EPIPE, "session %s has no VMM: %s", s->id, s->reason);
        r = pager_peer_expect(s->peer, fd, &pid);
        if (r == -EALREADY)
                return err_set(e, ERR_STATE, r, "it is known already which process the VMM of session %s is", s->id);
        if (r == -ESRCH)
                return err_set(e, ERR_INVALID, r, "the process that is to be the VMM has ended, or is not visible from here");
        if (r == -EINVAL)
                return err_set(e, ERR_INVALID, r, "the descriptor is no pidfd");
        if (r < 0)
                return err_errno(e, r, "looking at the process that is to be the VMM");
        (void) TAKE_FD(fd);
        s->vm_pid = pid;
        return 0;
}

static int watch_vmm(struct pager_session *s, const struct pager_opening *o, int sock, struct err *e) {
        struct pager *p = s->pager;
        int r, pidfd;

        r = pager_peer_new(p->base, sock, o->ram_bytes, p->cfg.handshake_seconds, &pager_vmm_handlers, s, &s->peer);
        if (r == -ENOTSOCK)
                return err_set(e, ERR_INVALID, r, "the second descriptor is no connected unix stream socket");
        if (r < 0)
                return err_errno(e, r, "watching the VMM's socket");
        if (o->expect)
                pager_peer_hold(s->peer);
        if (o->vm_pid == 0)
                return 0;
        r = spawn_pidfd_open(o->vm_pid, 0, &pidfd);
        if (r < 0)
                return err_errno(e, r, "looking at process %d, which is to be the VMM", (int) o->vm_pid);
        return pager_expect_vmm(s, pidfd, e);
}

/** Tells the VMM of its memory; it reads that when it is about to map it. */
static int tell_segments(struct pager_session *s, struct err *e) {
        int r = pager_segments_send(pager_peer_fd(s->peer), s->image);

        if (r == -ENOTSUP)
                return err_set(e, ERR_UNSUPPORTED, r,
                               "the image's memory is that of another user's pager, and cannot be given away");
        if (r < 0)
                return err_errno(e, r, "telling the VMM of its memory");
        s->segments = true;
        return 0;
}

int pager_admit_session(struct pager *p, const char *id, struct err *e) {
        int r;

        if (p->draining)
                return err_set(e, ERR_STATE, -ESHUTDOWN, "the pager is about to end and takes no new session");
        if (pager_find_session(p, id))
                return err_set(e, ERR_EXISTS, -EEXIST, "session %s is open already", id);
        if (p->n_sessions >= PAGER_MAX_SESSIONS)
                return err_set(e, ERR_LIMIT, -EMFILE, "%u sessions are open, which is the limit", PAGER_MAX_SESSIONS);
        do /* Idle images give way to a session that needs their descriptors. */
                r = pager_rlimit_admit(p->other_fds, p->n_sessions, pager_cache_count(p->cache), e);
        while (r < 0 && pager_cache_drop_idle(p->cache));
        return r;
}

void pager_link_session(struct pager *p, struct pager_session *s) {
        s->next = p->sessions;
        p->sessions = s;
        p->n_sessions++;
        pager_balance_start(p);
}

int pager_open_session(struct pager *p, const struct pager_opening *o, struct pager_session **ret, struct err *e) {
        cleanup_fd int image = o->image_fd, sock = o->vmm_sock, set = o->workingset_fd;
        struct pager_session *s = NULL;
        struct pager_cached *cached;
        int r;

        r = pager_admit_session(p, o->id, e);
        if (r < 0)
                return r;
        r = o->live ? pager_live_open(p, o->live, &cached, e) : pager_cache_get(p->cache, image, &o->descent, &cached, e);
        if (r < 0)
                return r;
        if (pager_image_info(cached->image)->ram_bytes != o->ram_bytes) {
                r = err_set(e, ERR_INVALID, -EINVAL, "ram_bytes is %llu, but the image has %llu",
                            (unsigned long long) o->ram_bytes, (unsigned long long) pager_image_info(cached->image)->ram_bytes);
                goto put;
        }
        r = pager_session_new(o->id, cached->image, &s);
        if (r < 0) {
                r = err_errno(e, r, "opening a session");
                goto put;
        }
        s->pager = p;
        s->cached = cached;
        r = o->record ? pager_workingset_record(s) : 0;
        if (r < 0) {
                r = err_errno(e, r, "opening a session");
                goto put;
        }
        r = watch_vmm(s, o, TAKE_FD(sock), e);
        if (r == 0 && o->segments)
                r = tell_segments(s, e);
        if (r < 0)
                goto put;
        if (pager_audit_start(p) < 0) {
                r = err_errno(e, -ENOMEM, "opening a session");
                goto put;
        }
        if (set >= 0)
                pager_workingset_open(p, s, set);
        pager_link_session(p, s);
        *ret = s;
        return 0;
put:
        if (s) {
                pager_peer_free(s->peer);
                pager_workingset_end(s);
        }
        pager_session_free(s);
        pager_cache_put(cached);
        return r;
}
