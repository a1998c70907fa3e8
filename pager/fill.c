/* SPDX-License-Identifier: MIT */
/* Theory of operation. One thread takes images from a queue and walks their regions; a page that is present or
 * zero costs a look, any other one a decode. It gives way to demand: while a fault worker is busy it lets a
 * little time pass before each frame, so it slows down but never stops for good. It runs at a lower priority
 * than the workers and the guests, but not idle: a worker that wants the very frame it decodes waits for it. */
#include "pager/fill.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "pager/session.h"

#define FILL_NICE 10
#define GIVE_WAY_NS 1000000

struct pager_filler {
        pthread_t thread;
        pthread_mutex_t lock; /* guards stop, first, last */
        pthread_cond_t changed;
        bool stop;
        struct pager_image *first, **last;
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
        if (!f->stop)
                (void) pthread_cond_timedwait(&f->changed, &f->lock, &until);
        (void) pthread_mutex_unlock(&f->lock);
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

        (void) setpriority(PRIO_PROCESS, (id_t) gettid(), FILL_NICE); /* in Linux: of this thread */
        (void) pthread_mutex_lock(&f->lock);
        while (!f->stop) {
                struct pager_image *img = f->first;

                if (!img) {
                        (void) pthread_cond_wait(&f->changed, &f->lock);
                        continue;
                }
                f->first = pager_image_job(img)->next;
                if (!f->first)
                        f->last = &f->first;
                (void) pthread_mutex_unlock(&f->lock);
                pager_image_job(img)->result = fill_image(f, img);
                pager_mailbox_post(f->to_control, &pager_image_job(img)->letter, PAGER_FILLED, img);
                (void) pthread_mutex_lock(&f->lock);
        }
        (void) pthread_mutex_unlock(&f->lock);
        return NULL;
}

static void filler_destroy(struct pager_filler *f) {
        for (struct pager_image *img = f->first, *next; img; img = next) {
                next = pager_image_job(img)->next;
                pager_image_unref(img);
        }
        pager_scratch_clear(&f->scratch);
        (void) pthread_cond_destroy(&f->changed);
        (void) pthread_mutex_destroy(&f->lock);
        free(f);
}

int pager_filler_new(struct pager_mailbox *to_control, struct pager_load *load, struct pager_filler **ret) {
        struct pager_filler *f = calloc(1, sizeof(*f));
        pthread_condattr_t attr;
        sigset_t all, old;
        int r;

        if (!f)
                return -ENOMEM;
        f->to_control = to_control;
        f->load = load;
        f->last = &f->first;
        (void) pthread_mutex_init(&f->lock, NULL);
        (void) pthread_condattr_init(&attr);
        (void) pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        (void) pthread_cond_init(&f->changed, &attr);
        (void) pthread_condattr_destroy(&attr);
        r = pager_scratch_init(&f->scratch);
        if (r == 0) {
                (void) sigfillset(&all);
                (void) pthread_sigmask(SIG_SETMASK, &all, &old);
                r = -pthread_create(&f->thread, NULL, filler_main, f);
                (void) pthread_sigmask(SIG_SETMASK, &old, NULL);
        }
        if (r < 0) {
                filler_destroy(f);
                return r;
        }
        (void) pthread_setname_np(f->thread, "fill-0");
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

void pager_filler_start(struct pager_filler *f, struct pager_image *img) {
        struct pager_image_fill_job *job = pager_image_job(img);

        if (job->running)
                return;
        job->running = true;
        job->next = NULL;
        (void) pager_image_ref(img);
        (void) pthread_mutex_lock(&f->lock);
        *f->last = img;
        f->last = &job->next;
        (void) pthread_cond_signal(&f->changed);
        (void) pthread_mutex_unlock(&f->lock);
}
