/* SPDX-License-Identifier: MIT */
/* Theory of operation. One thread takes jobs from four queues. A working set comes first, also in the middle of
 * another job: a VMM is about to need it. Then what is copied out of a VMM that was forked: the less is left, the less
 * it waits where it writes. Then images whose memory another pager has filled are surveyed: until that is
 * done they are not reclaimed from. Filling a whole image is for later clones. The last three give way to demand, by
 * letting a little time pass before each step while a fault worker is busy, so they slow down but never stop for
 * good. The thread has the workers' priority: a worker that wants the very frame that it decodes waits for it.
 *
 * It sleeps in reads of an eventfd, not at a condition: whoever watches the pager from the scheduler takes sleep at a futex
 * for waiting at a lock (bpf/), and want of work is none. Nothing is lost so: what the thread does between its last
 * read and the next one begins, or ends, with a look at the queues. */
#include "pager/fill.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/io.h"
#include "pager/ahead.h"
#include "pager/lineage.h"
#include "pager/nascent.h"
#include "pager/session.h"
#include "pager/thread.h"
#include "pager/worker.h"

#define GIVE_WAY_NS 1000000

/** In their order of precedence. */
enum { REPLAYS, COPIES, SURVEYS, WHOLE, N_QUEUES };

struct pager_filler {
        struct pager_thread thread;
        int wake_fd;          /* an eventfd: a job has come, or the end */
        pthread_mutex_t lock; /* guards what follows */
        bool stop;
        TAILQ_HEAD(queue, pager_fill_job) queue[N_QUEUES];
        _Atomic unsigned n[N_QUEUES]; /* how many are in each; also read without the lock */

        struct pager_mailbox *to_control;
        struct pager_load *load;
        struct pager_scratch scratch;
};

static bool stopping(struct pager_filler *f) {
        bool stop;

        (void) pthread_mutex_lock(&f->lock);
        stop = f->stop;
        (void) pthread_mutex_unlock(&f->lock);
        return stop;
}

static void wake(struct pager_filler *f) {
        (void) eventfd_write(f->wake_fd, 1);
}

static void sleep_until_woken(struct pager_filler *f) {
        eventfd_t n;

        (void) eventfd_read(f->wake_fd, &n);
}

/** Lets demand faults go first. */
static void give_way(struct pager_filler *f) {
        static const struct timespec a_while = { .tv_nsec = GIVE_WAY_NS };
        struct pollfd woken = { .fd = f->wake_fd, .events = POLLIN };

        if (atomic_load_explicit(&f->load->busy, memory_order_relaxed) == 0)
                return;
        if (ppoll(&woken, 1, &a_while, NULL) > 0)
                sleep_until_woken(f); /* which it has been */
}

static void finish(struct pager_filler *f, struct pager_fill_job *job, int result) {
        job->result = result;
        if (job->ahead)
                pager_mailbox_post(f->to_control, &job->letter, PAGER_REPLAYED, job->ahead);
        else
                pager_mailbox_post(f->to_control, &job->letter,
                                   job->copy     ? PAGER_COPIED
                                   : job->survey ? PAGER_SURVEYED
                                                 : PAGER_FILLED,
                                   job->image);
}

static unsigned queue_of(const struct pager_fill_job *job) {
        return job->ahead ? REPLAYS : job->copy ? COPIES : job->survey ? SURVEYS : WHOLE;
}

/** The next job of the first @queues queues, or NULL. Under the lock. */
static struct pager_fill_job *take(struct pager_filler *f, unsigned queues) {
        for (unsigned q = 0; q < queues; q++) {
                struct pager_fill_job *job = TAILQ_FIRST(&f->queue[q]);

                if (!job)
                        continue;
                TAILQ_REMOVE(&f->queue[q], job, entry);
                (void) atomic_fetch_sub_explicit(&f->n[q], 1, memory_order_relaxed);
                return job;
        }
        return NULL;
}

static int replay(struct pager_filler *f, struct pager_fill_job *job) {
        int r = 1;

        while (r > 0 && !stopping(f) && !pager_image_fill_cancelled(job->image))
                r = pager_ahead_decode(job->ahead, job->image, &f->scratch);
        return r > 0 ? -ECANCELED : r;
}

static void run(struct pager_filler *f, struct pager_fill_job *job);

/** Runs what has come in the meantime for the first @queues queues. */
static void run_urgent(struct pager_filler *f, unsigned queues) {
        for (unsigned q = 0; q < queues; q++)
                while (atomic_load_explicit(&f->n[q], memory_order_relaxed) > 0) {
                        struct pager_fill_job *job;

                        (void) pthread_mutex_lock(&f->lock);
                        job = take(f, q + 1);
                        (void) pthread_mutex_unlock(&f->lock);
                        if (job)
                                run(f, job);
                }
}

static int copy(struct pager_filler *f, struct pager_image *img) {
        uint64_t page = 0;
        int r;

        while ((r = pager_nascent_step(img, &f->scratch, &page)) > 0) {
                if (stopping(f))
                        return -ECANCELED;
                run_urgent(f, COPIES);
                give_way(f);
        }
        return r;
}

static int survey(struct pager_filler *f, struct pager_image *img) {
        uint64_t page = 0;
        int r;

        while ((r = pager_image_survey_step(img, &f->scratch, &page)) > 0) {
                if (pager_image_fill_cancelled(img) || stopping(f))
                        return -ECANCELED;
                run_urgent(f, SURVEYS);
                give_way(f);
        }
        return r;
}

static int fill_region(struct pager_filler *f, struct pager_image *img, uint64_t first, uint64_t n) {
        for (uint64_t page = first; page < first + n; page++) {
                struct pager_image *owner = pager_image_owner(img, page, NULL, NULL);
                struct pager_fill_result res;
                int r;

                if (pager_image_present(owner, page))
                        continue;
                r = pager_image_fill(owner, &f->scratch, page, PAGER_AHEAD, &res);
                if (r < 0)
                        return r;
                if (res.kind != PAGER_PAGE_DECODED)
                        continue;
                if (pager_image_fill_cancelled(img) || stopping(f))
                        return -ECANCELED;
                run_urgent(f, WHOLE);
                give_way(f);
        }
        return 0;
}

static int fill_image(struct pager_filler *f, struct pager_image *img) {
        uint64_t pages = pager_image_pages(img), region = 0;
        int r;

        while ((r = pager_image_next_region(img, region, &region)) == 0) {
                uint64_t first = region * SNAP_REGION_PAGES;

                r = fill_region(f, img, first, MIN_OF(pages - first, (uint64_t) SNAP_REGION_PAGES));
                if (r < 0)
                        return r;
                region++;
        }
        return r == -ENOENT ? 0 : r;
}

static void run(struct pager_filler *f, struct pager_fill_job *job) {
        if (job->ahead)
                finish(f, job, replay(f, job));
        else if (job->copy)
                finish(f, job, copy(f, job->image));
        else if (job->survey)
                finish(f, job, survey(f, job->image));
        else
                finish(f, job, fill_image(f, job->image));
}

static void *filler_main(void *arg) {
        struct pager_filler *f = arg;

        while (!stopping(f)) {
                struct pager_fill_job *job;

                (void) pthread_mutex_lock(&f->lock);
                job = take(f, N_QUEUES);
                (void) pthread_mutex_unlock(&f->lock);
                if (job)
                        run(f, job);
                else
                        sleep_until_woken(f);
        }
        return NULL;
}

static void filler_destroy(struct pager_filler *f) {
        struct pager_fill_job *job;

        while ((job = take(f, N_QUEUES)))
                pager_fill_job_done(job);
        pager_scratch_clear(&f->scratch);
        (void) close_fd(f->wake_fd);
        (void) pthread_mutex_destroy(&f->lock);
        free(f);
}

int pager_filler_new(struct pager_mailbox *to_control, struct pager_load *load, struct pager_filler **ret) {
        struct pager_filler *f = calloc(1, sizeof(*f));
        int r;

        if (!f)
                return -ENOMEM;
        f->to_control = to_control;
        f->load = load;
        for (unsigned q = 0; q < N_QUEUES; q++)
                TAILQ_INIT(&f->queue[q]);
        (void) pthread_mutex_init(&f->lock, NULL);
        f->wake_fd = eventfd(0, EFD_CLOEXEC);
        r = f->wake_fd < 0 ? -errno : pager_scratch_init(&f->scratch);
        if (r == 0)
                r = pager_thread_start(filler_main, f, "fill-0", &f->thread);
        if (r < 0) {
                filler_destroy(f);
                return r;
        }
        *ret = f;
        return 0;
}

void pager_filler_free(struct pager_filler *f) {
        if (!f)
                return;
        (void) pthread_mutex_lock(&f->lock);
        f->stop = true;
        (void) pthread_mutex_unlock(&f->lock);
        wake(f);
        pager_thread_join(&f->thread);
        filler_destroy(f);
}

void pager_filler_start(struct pager_filler *f, struct pager_fill_job *job) {
        if (job->running)
                return;
        job->running = true;
        (void) pager_image_ref(job->image);
        if (job->ahead)
                (void) pager_ahead_ref(job->ahead);
        (void) pthread_mutex_lock(&f->lock);
        TAILQ_INSERT_TAIL(&f->queue[queue_of(job)], job, entry);
        (void) atomic_fetch_add_explicit(&f->n[queue_of(job)], 1, memory_order_relaxed);
        (void) pthread_mutex_unlock(&f->lock);
        wake(f);
}

const struct pager_thread *pager_filler_thread(const struct pager_filler *f) {
        return &f->thread;
}

void pager_fill_job_done(struct pager_fill_job *job) {
        struct pager_image *img = job->image;

        job->running = false;
        pager_ahead_unref(job->ahead); /* may be the end of the job */
        pager_image_unref(img);
}
