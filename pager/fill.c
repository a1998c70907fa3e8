/* SPDX-License-Identifier: MIT */
/* Theory of operation. One thread takes jobs from two queues. A working set comes first, also in the middle of
 * another job: a VMM is about to need it. Filling a whole image is for later clones: it gives way to demand, by
 * letting a little time pass before each frame while a fault worker is busy, so it slows down but never stops for
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

struct pager_filler {
        pthread_t thread;
        pthread_mutex_t lock; /* guards what follows */
        pthread_cond_t changed;
        bool stop;
        _Atomic unsigned n_urgent; /* also read without the lock */
        TAILQ_HEAD(, pager_fill_job) urgent, whole;

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
        if (!f->stop && TAILQ_EMPTY(&f->urgent))
                (void) pthread_cond_timedwait(&f->changed, &f->lock, &until);
        (void) pthread_mutex_unlock(&f->lock);
}

static void finish(struct pager_filler *f, struct pager_fill_job *job, int result) {
        job->result = result;
        if (job->ahead)
                pager_mailbox_post(f->to_control, &job->letter, PAGER_REPLAYED, job->ahead);
        else
                pager_mailbox_post(f->to_control, &job->letter, PAGER_FILLED, job->image);
}

static int replay(struct pager_filler *f, struct pager_fill_job *job) {
        int r = 1;

        while (r > 0 && !stopping(f) && !pager_image_fill_cancelled(job->image))
                r = pager_ahead_decode(job->ahead, job->image, &f->scratch);
        return r > 0 ? -ECANCELED : r;
}

/** Runs what has come in the meantime. */
static void run_urgent(struct pager_filler *f) {
        while (atomic_load_explicit(&f->n_urgent, memory_order_relaxed) > 0) {
                struct pager_fill_job *job;

                (void) pthread_mutex_lock(&f->lock);
                job = TAILQ_FIRST(&f->urgent);
                if (job) {
                        TAILQ_REMOVE(&f->urgent, job, entry);
                        (void) atomic_fetch_sub_explicit(&f->n_urgent, 1, memory_order_relaxed);
                }
                (void) pthread_mutex_unlock(&f->lock);
                if (job)
                        finish(f, job, replay(f, job));
        }
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
                run_urgent(f);
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

static void *filler_main(void *arg) {
        struct pager_filler *f = arg;

        (void) pthread_mutex_lock(&f->lock);
        while (!f->stop) {
                struct pager_fill_job *job = TAILQ_FIRST(&f->whole);
                bool urgent = !TAILQ_EMPTY(&f->urgent);

                if (!urgent && !job) {
                        (void) pthread_cond_wait(&f->changed, &f->lock);
                        continue;
                }
                if (!urgent)
                        TAILQ_REMOVE(&f->whole, job, entry);
                (void) pthread_mutex_unlock(&f->lock);
                if (urgent)
                        run_urgent(f);
                else
                        finish(f, job, fill_image(f, job->image));
                (void) pthread_mutex_lock(&f->lock);
        }
        (void) pthread_mutex_unlock(&f->lock);
        return NULL;
}

static void filler_destroy(struct pager_filler *f) {
        struct pager_fill_job *job;

        while ((job = TAILQ_FIRST(&f->urgent)) || (job = TAILQ_FIRST(&f->whole))) {
                if (job->ahead)
                        TAILQ_REMOVE(&f->urgent, job, entry);
                else
                        TAILQ_REMOVE(&f->whole, job, entry);
                pager_fill_job_done(job);
        }
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
        TAILQ_INIT(&f->urgent);
        TAILQ_INIT(&f->whole);
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
        if (job->ahead) {
                TAILQ_INSERT_TAIL(&f->urgent, job, entry);
                (void) atomic_fetch_add_explicit(&f->n_urgent, 1, memory_order_relaxed);
        } else {
                TAILQ_INSERT_TAIL(&f->whole, job, entry);
        }
        (void) pthread_cond_broadcast(&f->changed);
        (void) pthread_mutex_unlock(&f->lock);
}

void pager_fill_job_done(struct pager_fill_job *job) {
        struct pager_image *img = job->image;

        job->running = false;
        pager_ahead_unref(job->ahead); /* may be the end of the job */
        pager_image_unref(img);
}
