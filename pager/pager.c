/* SPDX-License-Identifier: MIT */
/* Theory of operation. One thread, the control thread, runs a libevent loop: the control socket, the VMMs'
 * sockets, timers, and a mailbox from the other threads. It never decodes and never answers a fault, so it
 * answers while the workers are busy, and a VMM that stalls in its handshake stalls nobody.
 *
 *   opening ──handshake──▶ attached ──▶ ending ──worker has let go──▶ freed
 *       └────────┬───────────┘            ▲
 *              failed ────────────────────┘   by session.close, or when the VMM hangs up
 *
 * An attached session may be released, and is then served by nobody here until it is resumed or closed; handover.c has that.
 *
 * A failed session is kept, its faults unanswered, until forkd has killed the guest: the pager's copy of the
 * userfaultfd must not be the last one to go while the guest could still run. */
#include "pager/pager.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "pager/nascent.h"
#include "pager/pager_internal.h"
#include "pager/rlimit.h"

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

static void on_surveyed(struct pager_image *img) {
        struct pager_fill_job *job = pager_image_survey_job(img);

        /* The audit has it done again. */
        if (job->result < 0 && job->result != -ECANCELED)
                log_debug("finding out what is in an image's memory stopped: %s", pager_image_reason(job->result));
        pager_fill_job_done(job);
}

static void on_copied(struct pager *p, struct pager_image *img) {
        pager_live_copied(p, img);
        pager_fill_job_done(pager_nascent_job(img));
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
                case PAGER_SURVEYED:
                        on_surveyed(l->object);
                        break;
                case PAGER_LIVE_SYNC:
                        pager_live_letter(s);
                        break;
                case PAGER_COPIED:
                        on_copied(p, l->object);
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

        r = pager_flight_new(p->cfg.workers, &p->flight);
        for (unsigned i = 0; i < p->cfg.workers && r == 0; i++) {
                r = pager_worker_new(i, &p->inbox, &p->load, pager_flight_slot(&p->flight, i), &p->workers[i]);
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
        /* After them, for threads inherit it: those that nobody waits for keep theirs. The control thread answers the
         * heartbeat, and whoever opens a session. */
        (void) setpriority(PRIO_PROCESS, (id_t) gettid(), PAGER_WORKER_NICE);
        r = pager_balance_init(p);
        if (r == 0)
                r = pager_audit_init(p);
        if (r == 0)
                r = pager_handover_init(p);
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
        pager_flight_clear(&p->flight);
        pager_filler_free(p->filler);
        p->filler = NULL;
        if (p->inbox_ev) {
                read_inbox(p); /* the workers' last letters: all sessions are released */
                event_free(p->inbox_ev);
        }
        pager_live_free_all(p);
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
        if (p->settle_ev)
                event_free(p->settle_ev);
        free(p->control_path);
        free(p);
}
