/* SPDX-License-Identifier: MIT */
/* The control thread's part of working sets: taking one over at session.open, ending a recording, telling it.
 * ahead.c replays them, record.c records. */
#include <errno.h>

#include "common/io.h"
#include "common/log.h"
#include "pager/ahead.h"
#include "pager/pager_internal.h"
#include "pager/record.h"

/** What is wrong with a working set that cannot be used; nothing is lost without it but time. */
static const char *unusable(int r) {
        switch (r) {
        case -EBADMSG:
                return "it is torn or corrupt";
        case -EPROTONOSUPPORT:
                return "its format version is not known";
        case -ESTALE:
                return "it is another image's";
        default:
                return strerrordesc_np(-r);
        }
}

static struct pager_ahead *load(struct pager_image *img, int fd) {
        cleanup_snap_workingset struct snap_workingset set = { 0 };
        const struct snap_image_info *info = pager_image_info(img);
        struct pager_ahead *a;
        int r;

        r = snap_workingset_read(fd, info->uuid, info->ram_bytes / PAGER_PAGE, &set);
        if (r == 0 && set.n_runs == 0)
                return NULL;
        a = r == 0 ? pager_ahead_new(img, &set) : NULL;
        if (!a)
                log_warning("a working set is not used: %s", unusable(r < 0 ? r : -ENOMEM));
        return a;
}

/** The image's working set becomes the one in @fd, if that is another file than the last one. */
static void take_over(struct pager_cached *c, int fd) {
        struct pager_image_key key;

        if (pager_image_key_of_fd(fd, &key) < 0 || (c->ahead && pager_image_key_equal(&key, &c->ahead_key)))
                return;
        pager_ahead_unref(c->ahead);
        c->ahead = load(c->image, fd);
        c->ahead_key = key;
}

void pager_workingset_open(struct pager *p, struct pager_session *s, int fd) {
        take_over(s->cached, fd);
        if (!s->cached->ahead)
                return;
        s->ahead = pager_ahead_ref(s->cached->ahead);
        /* Also if that was done before: memory may have been taken back since. What is there costs a look. */
        if (!s->ahead->job.running)
                atomic_store_explicit(&s->ahead->next, 0, memory_order_relaxed);
        pager_filler_start(p->filler, &s->ahead->job);
}

void pager_workingset_replayed(struct pager_ahead *a) {
        int r = a->job.result;

        if (r == -EDQUOT)
                log_debug("the memory budget has no room for all of a working set");
        else if (r < 0 && r != -ECANCELED)
                log_warning("decoding a working set ahead stopped: %s", pager_image_reason(r));
        pager_fill_job_done(&a->job);
}

/* ---- recording ---- */

void pager_workingset_finish(struct pager_session *s) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        if (s->record_end)
                event_free(TAKE_PTR(s->record_end));
        if (!s->record || s->recorded)
                return;
        s->recorded = true;
        atomic_store_explicit(&s->record->closed, true, memory_order_relaxed);
        mp_buf_init(&b);
        mp_map(&b, 2);
        mp_kv_str(&b, "session", s->id);
        mp_kv_u64(&b, "pages", atomic_load_explicit(&s->record->n_pages, memory_order_relaxed));
        pager_notify(s->pager, "session.recorded", &b, NULL, 0);
        if (s->keeper)
                s->keeper->on_recorded(s, s->keeper_arg);
}

static void on_record_end(evutil_socket_t fd, short what, void *arg) {
        pager_workingset_finish(arg);
}

int pager_workingset_record(struct pager_session *s) {
        s->record = pager_record_new(pager_image_info(s->image)->ram_bytes / PAGER_PAGE);
        s->record_end = evtimer_new(s->pager->base, on_record_end, s);
        return s->record && s->record_end ? 0 : -ENOMEM;
}

void pager_workingset_attached(struct pager_session *s) {
        struct timeval window = { .tv_sec = s->pager->cfg.record_seconds };

        if (s->record_end && event_add(s->record_end, &window) < 0)
                pager_workingset_finish(s);
}

void pager_workingset_end(struct pager_session *s) {
        if (s->record_end)
                event_free(TAKE_PTR(s->record_end));
}

void pager_workingset_tell(const struct pager_session *s, struct mp_buf *b) {
        uint64_t n = s->record ? pager_record_runs(s->record) : 0, pages = 0;

        /* The last run may grow meanwhile: the sum is of what is told. */
        mp_map(b, 3);
        mp_kv_bool(b, "complete", s->recorded);
        mp_key(b, "runs");
        mp_array(b, n);
        for (uint64_t i = 0; i < n; i++) {
                struct snap_run run = pager_record_get(s->record, i);

                mp_array(b, 2);
                mp_u64(b, run.first);
                mp_u64(b, run.n);
                pages += run.n;
        }
        mp_kv_u64(b, "pages", pages);
}
