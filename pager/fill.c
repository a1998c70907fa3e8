/* SPDX-License-Identifier: MIT */
/* Theory of operation. One thread takes jobs from three queues. A working set comes first, also in the middle of
 * another job: a VMM is about to need it. Then images whose memory another pager has filled are surveyed: until that is
 * done they are not reclaimed from. Filling a whole image is for later clones. These two give way to demand, by
 * letting a little time pass before each step while a fault worker is busy, so they slow down but never stop for
 * good. The thread has the workers' priority: a worker that wants the very frame that it decodes waits for it. */
#include "pager/fill.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "pager/ahead.h"
#include "pager/session.h"
#include "pager/thread.h"
#include "pager/worker.h"

#define GIVE_WAY_NS 1000000

/** In their order of precedence. */
enum { REPLAYS, SURVEYS, WHOLE, N_QUEUES };

struct pager_filler {
        pthread_t thread;
        pthread_mutex_t lock; /* guards what follows */
        pthread_cond_t changed;
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

/** Lets demand faults go first. */
static void give_way(struct pager_filler *f) {
        struct timespec until;

        if (atomic_load_explicit(&f->load->busy, memory_order_relaxed) == 0)
                return;
        (void) clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += GIVE_WAY_NS;
        if (until.tv_nsec >= 1000000000) {
                until.tv_nsec -= 1000000000;
                until.tv_sec++;
        }
        (void) pthread_mutex_lock(&f->lock);
        if (!f->stop && TAILQ_EMPTY(&f->queue[REPLAYS]))
                (void) pthread_cond_timedwait(&f->changed, &f->lock, &until);
        (void) pthread_mutex_unlock(&f->lock);
}

static void finish(struct pager_filler *f, struct pager_fill_job *job, int result) {
        job->result = result;
        if (job->ahead)
                pager_mailbox_post(f->to_control, &job->letter, PAGER_REPLAYED, job->ahead);
        else
                pager_mailbox_post(f->to_control, &job->letter, job->survey ? PAGER_SURVEYED : PAGER_FILLED, job->image);
}

static unsigned queue_of(const struct pager_fill_job *job) {
        return job->ahead ? REPLAYS : job->survey ? SURVEYS : WHOLE;
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
                struct pager_fill_result res;
                int r;

                if (pager_image_present(img, page))
                        continue;
                r = pager_image_fill(img, &f->scratch, page, PAGER_AHEAD, &res);
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
        uint64_t pages = pager_image_info(img)->ram_bytes / PAGER_PAGE, region = 0;
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
        else if (job->survey)
                finish(f, job, survey(f, job->image));
        else
                finish(f, job, fill_image(f, job->image));
}

static void *filler_main(void *arg) {
        struct pager_filler *f = arg;

        (void) pthread_mutex_lock(&f->lock);
        while (!f->stop) {
                struct pager_fill_job *job = take(f, N_QUEUES);

                if (!job) {
                        (void) pthread_cond_wait(&f->changed, &f->lock);
                        continue;
                }
                (void) pthread_mutex_unlock(&f->lock);
                run(f, job);
                (void) pthread_mutex_lock(&f->lock);
        }
        (void) pthread_mutex_unlock(&f->lock);
        return NULL;
}

static void filler_destroy(struct pager_filler *f) {
        struct pager_fill_job *job;

        while ((job = take(f, N_QUEUES)))
                pager_fill_job_done(job);
        pager_scratch_clear(&f->scratch);
        (void) pthread_cond_destroy(&f->changed);
        (void) pthread_mutex_destroy(&f->lock);
        free(f);
}

int pager_filler_new(struct pager_mailbox *to_control, struct pager_load *load, struct pager_filler **ret) {
        struct pager_filler *f = calloc(1, sizeof(*f));
        pthread_condattr_t attr;
        int r;

        if (!f)
                return -ENOMEM;
        f->to_control = to_control;
        f->load = load;
        for (unsigned q = 0; q < N_QUEUES; q++)
                TAILQ_INIT(&f->queue[q]);
        (void) pthread_mutex_init(&f->lock, NULL);
        (void) pthread_condattr_init(&attr);
        (void) pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        (void) pthread_cond_init(&f->changed, &attr);
        (void) pthread_condattr_destroy(&attr);
        r = pager_scratch_init(&f->scratch);
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
        (void) pthread_cond_broadcast(&f->changed);
        (void) pthread_mutex_unlock(&f->lock);
        (void) pthread_join(f->thread, NULL);
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
        (void) pthread_cond_broadcast(&f->changed);
        (void) pthread_mutex_unlock(&f->lock);
}

void pager_fill_job_done(struct pager_fill_job *job) {
        struct pager_image *img = job->image;

        job->running = false;
        pager_ahead_unref(job->ahead); /* may be the end of the job */
        pager_image_unref(img);
}
