/* SPDX-License-Identifier: MIT */
/* Theory of operation. A worker waits in epoll for its mailbox and for the userfaultfds of its sessions. Those
 * that have something to do stand in a queue; the first gets a turn of a few answers, and goes to the end if
 * that was not enough. When all that stand there had their turn the worker looks who else has come, so a fault
 * waits for two turns of each session that is busy at the most, however many faults those have.
 *
 * When nobody waits it goes on with the working sets of its sessions, a step at a time (ahead.c).
 *
 * It is never in the kernel on behalf of one session for longer than an answer takes. A session that must be
 * asked again (its VMM changes its layout) goes to the retry list instead of being spun on: its process may be
 * frozen in the middle of that change, and the others must not wait for it.
 *
 * Letters are read when all events of one epoll_wait are queued, and whoever is handed back leaves the queue: no
 * event and no turn can name a session that is not ours any more. */
#include "pager/worker.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/io.h"
#include "pager/ahead.h"
#include "pager/copy.h"
#include "pager/thread.h"
#include "pager/uffd.h"

#define EPOLL_BATCH 32

struct pager_worker {
        struct pager_thread thread;
        unsigned index;
        int epoll_fd;
        struct pager_mailbox mailbox;
        struct pager_letter stop_letter;
        struct pager_mailbox *to_control;
        struct pager_load *load;
        struct pager_scratch scratch;
        _Atomic uint64_t busy_since_ns;
        struct pager_letter beat;
        _Atomic uint64_t beat_ns;    /* when it was posted; 0: it has been read */
        _Atomic unsigned n_sessions; /* as the control thread counts */

        /* The thread's. */
        struct pager_session *sessions;
        TAILQ_HEAD(, pager_session) run;  /* have something to do */
        TAILQ_HEAD(, pager_session) idle; /* have a working set to be mapped, when there is nothing to do */
        unsigned n_queued;
        uint64_t retry_at_ns; /* no session is to be asked again before this; UINT64_MAX: none at all */
};

#define LETTER_STOP (-1)

static void enqueue(struct pager_worker *w, struct pager_session *s) {
        if (s->queued)
                return;
        s->queued = true;
        w->n_queued++;
        TAILQ_INSERT_TAIL(&w->run, s, run);
}

static void unqueue(struct pager_worker *w, struct pager_session *s) {
        if (!s->queued)
                return;
        s->queued = false;
        w->n_queued--;
        TAILQ_REMOVE(&w->run, s, run);
}

static void retry_later(struct pager_worker *w, struct pager_session *s, uint32_t us) {
        s->retry_at_ns = now_ns() + us * 1000ull;
        w->retry_at_ns = MIN_OF(w->retry_at_ns, s->retry_at_ns);
}

static void begin_ahead(struct pager_worker *w, struct pager_session *s) {
        if (!s->ahead || s->ahead_done || s->has_ahead)
                return;
        s->has_ahead = true;
        TAILQ_INSERT_TAIL(&w->idle, s, idle);
}

static void end_ahead(struct pager_worker *w, struct pager_session *s) {
        if (s->has_ahead)
                TAILQ_REMOVE(&w->idle, s, idle);
        s->has_ahead = false;
}

static void unwatch(struct pager_worker *w, struct pager_session *s) {
        if (s->served)
                (void) epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, s->uffd, NULL);
        unqueue(w, s);
        end_ahead(w, s);
        s->served = false;
        s->retry_at_ns = 0;
}

/** The descriptor stays open and its faults unanswered until the control thread has its way. */
static void give_up(struct pager_worker *w, struct pager_session *s, int r) {
        unwatch(w, s);
        if (r == -ESRCH)
                pager_mailbox_post(w->to_control, &s->from_worker_gone, PAGER_VMM_GONE, s);
        else
                pager_mailbox_post(w->to_control, &s->from_worker_failed, PAGER_FAILED, s);
}

static void on_event(struct pager_worker *w, struct pager_session *s, uint32_t events) {
        if (events & EPOLLERR) {
                /* The kernel says so of a blocking userfaultfd; it would say so again and again. */
                (void) snprintf(s->fail_reason, sizeof(s->fail_reason), "the VMM made its userfaultfd blocking");
                give_up(w, s, -EPROTO);
        } else {
                enqueue(w, s);
        }
}

static void serve_turn(struct pager_worker *w, struct pager_session *s) {
        int r;

        if (atomic_load_explicit(&s->dropping, memory_order_relaxed))
                return;
        if (atomic_load_explicit(&s->stopped, memory_order_relaxed) && !s->poison) {
                unwatch(w, s);
                return;
        }
        r = pager_session_serve(s, &w->scratch);
        if (r >= 0) {
                s->retry_at_ns = 0;
                s->retry_us = 0;
                if (r > 0)
                        enqueue(w, s);
                else
                        begin_ahead(w, s);
        } else if (r == -EAGAIN) {
                s->retry_us = s->retry_us ? MIN_OF(s->retry_us * 2, PAGER_RETRY_MAX_US) : PAGER_RETRY_MIN_US;
                retry_later(w, s, s->retry_us);
        } else if (r != -ECANCELED && s->poison) {
                unwatch(w, s); /* failed is what it was before */
        } else if (r != -ECANCELED) {
                give_up(w, s, r);
        }
}

static int watch(struct pager_worker *w, struct pager_session *s) {
        struct epoll_event ev = { .events = EPOLLIN, .data.ptr = s };

        if (epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, s->uffd, &ev) < 0)
                return -errno;
        s->served = true;
        if (s->n_pending > 0 || s->dropped) /* read before, by this worker or another one */
                enqueue(w, s);
        return 0;
}

static void add(struct pager_worker *w, struct pager_session *s) {
        int r;

        s->worker_next = w->sessions;
        w->sessions = s;
        r = pager_copy_prepare(s, &w->scratch);
        if (r == 0)
                r = watch(w, s);
        if (r == 0) {
                begin_ahead(w, s);
        } else {
                (void) snprintf(s->fail_reason, sizeof(s->fail_reason), "watching the userfaultfd: %s", strerrordesc_np(-r));
                pager_mailbox_post(w->to_control, &s->from_worker_failed, PAGER_FAILED, s);
        }
}

static void poison(struct pager_worker *w, struct pager_session *s) {
        s->poison = true;
        s->ahead_done = true;
        if (!s->served)
                best_effort(watch(w, s)); /* what fails now leaves the VMM waiting, as it was */
}

static void hand_back(struct pager_worker *w, struct pager_session *s, bool to_other) {
        struct pager_session **p = &w->sessions;

        unwatch(w, s);
        while (*p && *p != s)
                p = &(*p)->worker_next;
        if (*p)
                *p = s->worker_next;
        if (to_other)
                pager_mailbox_post(w->to_control, &s->from_worker_moved, PAGER_MOVED, s);
        else
                pager_mailbox_post(w->to_control, &s->from_worker_released, PAGER_RELEASED, s);
}

/** False: the end. */
static bool read_letters(struct pager_worker *w) {
        struct pager_letter *l = pager_mailbox_take(&w->mailbox), *next;
        bool go_on = true;

        for (; l; l = next) {
                next = l->next;
                if (l->kind == PAGER_SERVE)
                        add(w, l->object);
                else if (l->kind == PAGER_DROP)
                        hand_back(w, l->object, false);
                else if (l->kind == PAGER_MOVE)
                        hand_back(w, l->object, true);
                else if (l->kind == PAGER_POISON)
                        poison(w, l->object);
                else if (l->kind == PAGER_BEAT)
                        atomic_store_explicit(&w->beat_ns, 0, memory_order_release); /* the letter may be posted again */
                else if (l->kind == PAGER_LIVE_SYNC)
                        pager_mailbox_post(w->to_control, l, PAGER_LIVE_SYNC, l->object);
                else if (l->kind == PAGER_SYNC)
                        pager_mailbox_post(w->to_control, l, PAGER_SYNCED, l->object);
                else
                        go_on = false;
        }
        return go_on;
}

/** Queues the sessions that are to be asked again by now. Returns the wait until the next, in ms for epoll_wait. */
static int queue_retries(struct pager_worker *w) {
        uint64_t now, next = UINT64_MAX;

        if (w->retry_at_ns == UINT64_MAX)
                return -1;
        now = now_ns();
        if (w->retry_at_ns > now)
                return (int) ((w->retry_at_ns - now + 999999) / 1000000);
        for (struct pager_session *s = w->sessions; s; s = s->worker_next) {
                if (s->retry_at_ns > now) {
                        next = MIN_OF(next, s->retry_at_ns);
                } else if (s->retry_at_ns) {
                        s->retry_at_ns = 0;
                        enqueue(w, s);
                }
        }
        w->retry_at_ns = next;
        return 0;
}

/** Gives each session that is queued now one turn. When a letter comes those that are left keep their places, since somebody
 *  waits for the session that it is about; one turn there is between any two letters. */
static void serve_queue(struct pager_worker *w) {
        struct pager_session *s;

        (void) atomic_fetch_add_explicit(&w->load->busy, 1, memory_order_relaxed);
        for (unsigned turns = w->n_queued; turns > 0 && (s = TAILQ_FIRST(&w->run)); turns--) {
                unqueue(w, s);
                atomic_store_explicit(&w->busy_since_ns, now_ns(), memory_order_relaxed);
                serve_turn(w, s);
                if (pager_mailbox_has(&w->mailbox))
                        break;
        }
        (void) atomic_fetch_sub_explicit(&w->load->busy, 1, memory_order_relaxed);
}

/** Nobody waits: one step of one session's working set. */
static void look_ahead(struct pager_worker *w) {
        struct pager_session *s = TAILQ_FIRST(&w->idle);
        int r;

        TAILQ_REMOVE(&w->idle, s, idle);
        s->has_ahead = false;
        if (atomic_load_explicit(&s->dropping, memory_order_relaxed) || atomic_load_explicit(&s->stopped, memory_order_relaxed))
                return; /* perhaps another worker goes on */
        r = pager_ahead_step(s, &w->scratch);
        s->has_ahead = r > 0;
        if (r > 0)
                TAILQ_INSERT_TAIL(&w->idle, s, idle);
        else if (r == -EAGAIN) /* its events have to be read first: it goes on after its next turn */
                retry_later(w, s, PAGER_RETRY_MIN_US);
        else
                s->ahead_done = true;
}

static void *worker_main(void *arg) {
        struct pager_worker *w = arg;
        struct epoll_event ev[EPOLL_BATCH];

        for (bool go_on = true; go_on;) {
                int timeout = queue_retries(w), n;
                bool letters = false;

                if (w->n_queued > 0 || !TAILQ_EMPTY(&w->idle))
                        timeout = 0;
                n = epoll_wait(w->epoll_fd, ev, EPOLL_BATCH, timeout);
                atomic_store_explicit(&w->busy_since_ns, now_ns(), memory_order_relaxed);
                for (int i = 0; i < n; i++) {
                        if (ev[i].data.ptr)
                                on_event(w, ev[i].data.ptr, ev[i].events);
                        else
                                letters = true;
                }
                if (letters)
                        go_on = read_letters(w);
                if (w->n_queued > 0)
                        serve_queue(w);
                else if (!TAILQ_EMPTY(&w->idle))
                        look_ahead(w);
                atomic_store_explicit(&w->busy_since_ns, 0, memory_order_relaxed);
        }
        while (w->sessions)
                hand_back(w, w->sessions, false);
        return NULL;
}

/* A thread has the priority of the one that starts it. It does not raise its own: the pager may have given up its privileges
 * before the thread comes to run. */
static int start_thread(struct pager_worker *w, const char *name) {
        id_t self = (id_t) gettid();
        int before = getpriority(PRIO_PROCESS, self), r; /* in Linux: of this thread */

        (void) setpriority(PRIO_PROCESS, self, PAGER_WORKER_NICE);
        r = pager_thread_start(worker_main, w, name, &w->thread);
        (void) setpriority(PRIO_PROCESS, self, before);
        return r;
}

static void worker_destroy(struct pager_worker *w) {
        pager_mailbox_destroy(&w->mailbox);
        (void) close_fd(w->epoll_fd);
        pager_scratch_clear(&w->scratch);
        free(w);
}

int pager_worker_new(unsigned index, struct pager_mailbox *to_control, struct pager_load *load, struct pager_flight_slot *flight,
                     struct pager_worker **ret) {
        struct pager_worker *w = calloc(1, sizeof(*w));
        struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL };
        char name[16];
        int r;

        if (!w)
                return -ENOMEM;
        w->index = index;
        (void) snprintf(name, sizeof(name), "fault-%u", index);
        w->to_control = to_control;
        w->load = load;
        w->retry_at_ns = UINT64_MAX;
        TAILQ_INIT(&w->run);
        TAILQ_INIT(&w->idle);
        w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        r = w->epoll_fd < 0 ? -errno : pager_mailbox_init(&w->mailbox);
        if (r == 0 && epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, w->mailbox.fd, &ev) < 0)
                r = -errno;
        if (r == 0)
                r = pager_scratch_init(&w->scratch);
        w->scratch.flight = flight;
        if (r == 0)
                r = start_thread(w, name);
        if (r < 0) {
                worker_destroy(w);
                return r;
        }
        *ret = w;
        return 0;
}

void pager_worker_free(struct pager_worker *w) {
        if (!w)
                return;
        pager_mailbox_post(&w->mailbox, &w->stop_letter, LETTER_STOP, NULL);
        pager_thread_join(&w->thread);
        worker_destroy(w);
}

void pager_worker_add(struct pager_worker *w, struct pager_session *s) {
        s->worker = w;
        atomic_store_explicit(&s->dropping, false, memory_order_relaxed);
        (void) atomic_fetch_add_explicit(&w->n_sessions, 1, memory_order_relaxed);
        pager_mailbox_post(&w->mailbox, &s->to_worker_serve, PAGER_SERVE, s);
}

void pager_worker_move(struct pager_worker *w, struct pager_session *s, struct pager_worker *to) {
        (void) atomic_fetch_sub_explicit(&w->n_sessions, 1, memory_order_relaxed);
        s->worker = to;
        atomic_store_explicit(&s->dropping, true, memory_order_relaxed);
        pager_mailbox_post(&w->mailbox, &s->to_worker_move, PAGER_MOVE, s);
}

void pager_worker_drop(struct pager_worker *w, struct pager_session *s) {
        (void) atomic_fetch_sub_explicit(&w->n_sessions, 1, memory_order_relaxed);
        atomic_store_explicit(&s->dropping, true, memory_order_relaxed);
        pager_mailbox_post(&w->mailbox, &s->to_worker_drop, PAGER_DROP, s);
}

void pager_worker_poison(struct pager_worker *w, struct pager_session *s) {
        pager_mailbox_post(&w->mailbox, &s->to_worker_poison, PAGER_POISON, s);
}

void pager_worker_live_sync(struct pager_worker *w, struct pager_session *s) {
        pager_mailbox_post(&w->mailbox, &s->live_sync, PAGER_LIVE_SYNC, s);
}

void pager_worker_sync(struct pager_worker *w, struct pager_session *s) {
        pager_mailbox_post(&w->mailbox, &s->sync, PAGER_SYNC, s);
}

void pager_worker_beat(struct pager_worker *w) {
        if (atomic_load_explicit(&w->beat_ns, memory_order_acquire))
                return;
        atomic_store_explicit(&w->beat_ns, now_ns(), memory_order_relaxed);
        pager_mailbox_post(&w->mailbox, &w->beat, PAGER_BEAT, NULL);
}

uint64_t pager_worker_silent_ns(const struct pager_worker *w) {
        uint64_t beat = atomic_load_explicit(&w->beat_ns, memory_order_relaxed);
        uint64_t since = MAX_OF(beat, atomic_load_explicit(&w->busy_since_ns, memory_order_relaxed)), now = now_ns();

        return beat && now > since ? now - since : 0;
}

bool pager_worker_reading(const struct pager_worker *w) {
        return atomic_load_explicit(&w->scratch.reading, memory_order_relaxed);
}

unsigned pager_worker_sessions(const struct pager_worker *w) {
        return atomic_load_explicit(&w->n_sessions, memory_order_relaxed);
}

const struct pager_thread *pager_worker_thread(const struct pager_worker *w) {
        return &w->thread;
}

unsigned pager_worker_index(const struct pager_worker *w) {
        return w->index;
}

uint64_t pager_worker_busy_ns(const struct pager_worker *w) {
        uint64_t since = atomic_load_explicit(&w->busy_since_ns, memory_order_relaxed), now = now_ns();

        return since && now > since ? now - since : 0;
}
