/* SPDX-License-Identifier: MIT */
/* Theory of operation. One thread, the control thread, runs a libevent loop: the control socket, the VMMs'
 * sockets, timers, and a mailbox from the other threads. It never decodes and never answers a fault, so it
 * answers while the workers are busy, and a VMM that stalls in its handshake stalls nobody.
 *
 *   opening ──handshake──▶ attached ──▶ ending ──worker has let go──▶ freed
 *       └────────┬───────────┘            ▲
 *              failed ────────────────────┘   by session.close, or when the VMM hangs up
 *
 * A failed session is kept, its faults unanswered, until forkd has killed the guest: the pager's copy of the
 * userfaultfd must not be the last one to go while the guest could still run. */
#include "pager/pager.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "pager/pager_internal.h"
#include "pager/rlimit.h"

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
        struct pager_waiter close = s->close_waiter, sync = s->sync_waiter;
        cleanup_mp_buf struct mp_buf b = { 0 };
        bool hung_up = s->hung_up;

        while (*at != s)
                at = &(*at)->next;
        *at = s->next;
        p->n_sessions--;
        remember(p, s);
        log_info("session %s: ended%s", s->id, hung_up ? ", the VMM is gone" : "");
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", s->id);
        if (s->keeper)
                s->keeper->on_released(s, s->keeper_arg);
        pager_session_free(s);
        pager_cache_put(cached);
        /* Said last: who hears it finds the memory given back. */
        if (hung_up)
                pager_notify(p, "session.gone", &b, NULL, 0);
        pager_answer_ended(&close, &sync);
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

static void notify_attached(struct pager *p, const struct pager_session *s) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_str(&b, "session", s->id);
        mp_key(&b, "regions");
        mp_array(&b, s->layout->n);
        for (size_t i = 0; i < s->layout->n; i++) {
                mp_array(&b, 3);
                mp_u64(&b, s->layout->region[i].base);
                mp_u64(&b, s->layout->region[i].size);
                mp_u64(&b, s->layout->region[i].offset);
        }
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
        r = pager_session_attach(s, layout, uffd);
        if (r < 0) {
                (void) snprintf(why, why_size, "out of memory");
                return r;
        }
        s->depends = true;
        log_info("session %s: attached, %zu region(s), %s mode", s->id, layout->n, pager_mode_name(layout->mode));
        notify_attached(p, s); /* while the layout is ours: from here on it is the worker's */
        pager_worker_add(idlest_worker(p), s);
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

static const struct pager_peer_handlers peer_handlers = { on_attach, on_peer_failed, on_peer_gone };

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

        r = pager_peer_new(p->base, sock, o->ram_bytes, p->cfg.handshake_seconds, &peer_handlers, s, &s->peer);
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

/** Idle images give way to a session that needs their descriptors. */
static int admit(struct pager *p, struct err *e) {
        int r;

        do
                r = pager_rlimit_admit(p->other_fds, p->n_sessions, pager_cache_count(p->cache), e);
        while (r < 0 && pager_cache_drop_idle(p->cache));
        return r;
}

int pager_open_session(struct pager *p, const struct pager_opening *o, struct pager_session **ret, struct err *e) {
        cleanup_fd int image = o->image_fd, sock = o->vmm_sock, set = o->workingset_fd;
        struct pager_session *s = NULL;
        struct pager_cached *cached;
        int r;

        if (p->draining)
                return err_set(e, ERR_STATE, -ESHUTDOWN, "the pager is about to end and takes no new session");
        if (pager_find_session(p, o->id))
                return err_set(e, ERR_EXISTS, -EEXIST, "session %s is open already", o->id);
        if (p->n_sessions >= PAGER_MAX_SESSIONS)
                return err_set(e, ERR_LIMIT, -EMFILE, "%u sessions are open, which is the limit", PAGER_MAX_SESSIONS);
        r = admit(p, e);
        if (r < 0)
                return r;
        r = pager_cache_get(p->cache, image, &cached, e);
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
        if (r < 0)
                goto put;
        if (pager_audit_start(p) < 0) {
                r = err_errno(e, -ENOMEM, "opening a session");
                goto put;
        }
        if (set >= 0)
                pager_workingset_open(p, s, set);
        s->next = p->sessions;
        p->sessions = s;
        p->n_sessions++;
        pager_balance_start(p);
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

/* ---- letters ---- */

static void on_filled(struct pager *p, struct pager_image *img) {
        struct pager_fill_job *job = pager_image_job(img);
        cleanup_mp_buf struct mp_buf b = { 0 };
        char uuid[2 * SNAP_UUID_LEN + 1];

        hex_encode(pager_image_info(img)->uuid, SNAP_UUID_LEN, uuid);
        if (job->result != -ECANCELED) {
                mp_buf_init(&b);
                mp_map(&b, 2);
                mp_kv_str(&b, "image", uuid);
                mp_kv_str(&b, "error", job->result < 0 ? pager_image_reason(job->result) : NULL);
                pager_notify(p, "image.filled", &b, NULL, 0);
                mp_buf_clear(&b);
        }
        if (job->result == -EDQUOT)
                log_info("image %s: as much of it is decoded as the memory budget has room for", uuid);
        else if (job->result < 0 && job->result != -ECANCELED)
                log_warning("image %s: filling it in the background stopped: %s", uuid, pager_image_reason(job->result));
        pager_fill_job_done(job);
}

static void read_inbox(struct pager *p) {
        struct pager_letter *l = pager_mailbox_take(&p->inbox), *next;

        for (; l; l = next) {
                struct pager_session *s = l->object;

                next = l->next;
                switch (l->kind) {
                case PAGER_FAILED:
                        pager_fail_session(p, s, s->fail_reason);
                        break;
                case PAGER_VMM_GONE:
                        s->hung_up = s->hung_up || !s->ending;
                        pager_end_session(p, s);
                        break;
                case PAGER_RELEASED:
                        pager_release_session(p, s);
                        break;
                case PAGER_MOVED:
                        pager_on_moved(p, s);
                        break;
                case PAGER_SYNCED:
                        pager_answer_removed(s);
                        break;
                case PAGER_FILLED:
                        on_filled(p, l->object);
                        break;
                case PAGER_REPLAYED:
                        pager_workingset_replayed(l->object);
                        break;
                }
        }
}

static void on_inbox(evutil_socket_t fd, short what, void *arg) {
        read_inbox(arg);
}

/* ---- the end of the pager ---- */

static bool answers_queued(const struct pager *p) {
        for (const struct pager_conn *c = p->conns; c; c = c->next)
                if (rpc_conn_is_open(c->rpc) && rpc_conn_queued(c->rpc) > 0)
                        return true;
        return false;
}

static void on_end(evutil_socket_t fd, short what, void *arg) {
        static const struct timeval again = { .tv_usec = 10000 };
        struct pager *p = arg;

        /* A client that does not read holds us up for a second at the most. */
        if (answers_queued(p) && p->end_polls++ < 100 && event_add(p->end_ev, &again) == 0)
                return;
        (void) event_base_loopbreak(p->base);
}

void pager_end(struct pager *p) {
        p->draining = true;
        event_active(p->end_ev, EV_TIMEOUT, 0);
}

void pager_drain(struct pager *p) {
        if (p->n_sessions > 0)
                log_warning("asked to end while %u sessions are open: will end with the last one, and opens none", p->n_sessions);
        p->draining = true;
        if (p->n_sessions == 0)
                pager_end(p);
}

static int start_reclaim(struct pager *p) {
        const struct pager_reclaim_config cfg = { .budget = p->cfg.memory_budget, .root = "", .pressure_fd = p->cfg.pressure_fd };

        return pager_reclaim_new(&cfg, &p->reclaim);
}

static int start_threads(struct pager *p, struct err *e) {
        int r = 0;

        for (unsigned i = 0; i < p->cfg.workers && r == 0; i++) {
                r = pager_worker_new(i, &p->inbox, &p->load, &p->workers[i]);
                if (r == 0)
                        p->n_workers++;
        }
        if (r == 0)
                r = pager_filler_new(&p->inbox, &p->load, &p->filler);
        return r < 0 ? err_errno(e, r, "starting the pager's threads") : 0;
}

static int start_listening(struct pager *p, struct err *e) {
        struct stat st;
        int fd, r;

        if (!p->control_path)
                return 0;
        if (p->cfg.control_fd > 0) {
                int listening = 0;
                socklen_t len = sizeof(listening);

                fd = p->cfg.control_fd;
                if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0 || !listening)
                        return err_set(e, ERR_INVALID, -EINVAL, "descriptor %d is no listening socket", fd);
                /* A connection that is gone again before it is accepted must not block the loop. */
                r = io_set_nonblock(fd, true);
                if (r < 0)
                        return err_errno(e, r, "listening at descriptor %d", fd);
        } else {
                r = io_listen_unix(p->control_path, 0600, &fd);
                if (r < 0)
                        return err_errno(e, r, "listening at %s", p->control_path);
        }
        r = rpc_listener_new(p->base, fd, pager_accept, p, &p->listener);
        if (r < 0)
                return err_errno(e, r, "listening at %s", p->control_path);
        if (stat(p->control_path, &st) == 0) {
                p->socket_dev = st.st_dev;
                p->socket_ino = st.st_ino;
        }
        return 0;
}

static void set_defaults(struct pager_config *cfg) {
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);

        if (cfg->workers == 0)
                cfg->workers = cpus > 0 ? (unsigned) cpus : 1;
        cfg->workers = MIN_OF(cfg->workers, PAGER_MAX_WORKERS);
        if (cfg->record_seconds == 0)
                cfg->record_seconds = PAGER_RECORD_SECONDS;
        if (cfg->fault_seconds == 0)
                cfg->fault_seconds = PAGER_FAULT_SECONDS;
        if (cfg->handshake_seconds == 0)
                cfg->handshake_seconds = PAGER_HANDSHAKE_SECONDS;
}

int pager_new(struct event_base *base, const struct pager_config *cfg, struct pager **ret, struct err *e) {
        __attribute__((cleanup(pager_free_p))) struct pager *p = calloc(1, sizeof(*p));
        int r;

        if (!p)
                return err_errno(e, -ENOMEM, "starting the pager");
        p->base = base;
        p->cfg = *cfg;
        p->started_ns = now_ns();
        set_defaults(&p->cfg);
        pager_rlimit_raise();
        r = pager_mailbox_init(&p->inbox);
        if (r < 0)
                return err_errno(e, r, "starting the pager");
        p->control_path = cfg->control_path ? strdup(cfg->control_path) : NULL;
        p->inbox_ev = event_new(base, p->inbox.fd, EV_READ | EV_PERSIST, on_inbox, p);
        p->end_ev = evtimer_new(base, on_end, p);
        if ((cfg->control_path && !p->control_path) || !p->inbox_ev || !p->end_ev || event_add(p->inbox_ev, NULL) < 0)
                return err_errno(e, -ENOMEM, "starting the pager");
        r = start_reclaim(p);
        if (r == 0)
                r = pager_cache_new(base, p->reclaim, p->cfg.idle_seconds, &p->cache);
        if (r < 0)
                return err_errno(e, r, "starting the pager");
        r = start_threads(p, e);
        if (r < 0)
                return r;
        r = pager_balance_init(p);
        if (r == 0)
                r = pager_audit_init(p);
        if (r < 0)
                return err_errno(e, r, "starting the pager");
        r = start_listening(p, e);
        if (r < 0)
                return r;
        r = pager_rlimit_open_fds();
        if (r < 0)
                return err_errno(e, r, "counting the pager's descriptors");
        p->other_fds = (unsigned) r;
        *ret = TAKE_PTR(p);
        return 0;
}

static void remove_socket(const struct pager *p) {
        struct stat st;

        if (p->listener && stat(p->control_path, &st) == 0 && st.st_dev == p->socket_dev && st.st_ino == p->socket_ino)
                (void) unlink(p->control_path);
}

void pager_free(struct pager *p) {
        if (!p)
                return;
        remove_socket(p);
        rpc_listener_free(p->listener);
        for (struct pager_session *s = p->sessions, *next; s; s = next) {
                next = s->next;
                pager_end_session(p, s);
        }
        for (unsigned i = 0; i < p->n_workers; i++)
                pager_worker_free(p->workers[i]);
        pager_filler_free(p->filler);
        if (p->inbox_ev) {
                read_inbox(p); /* the workers' last letters: all sessions are released */
                event_free(p->inbox_ev);
        }
        pager_close_conns(p);
        pager_cache_free(p->cache);
        pager_reclaim_free(p->reclaim);
        pager_mailbox_destroy(&p->inbox);
        if (p->end_ev)
                event_free(p->end_ev);
        if (p->balance_ev)
                event_free(p->balance_ev);
        if (p->audit_ev)
                event_free(p->audit_ev);
        free(p->control_path);
        free(p);
}
