/* SPDX-License-Identifier: MIT */
/* What the method `status` tells: docs/protocol.md, section 2. */
#include "common/io.h"
#include "pager/ahead.h"
#include "pager/pager_internal.h"
#include "pager/record.h"
#include "pager/thread.h"

struct sums {
        uint64_t reclaimed_pages, refaults;
        uint64_t faults[PAGER_N_FAULTS], pages_installed, zero_pages, pages_ahead, zero_ahead, decodes, pages[PAGER_N_CAUSES],
                present_bytes;
        struct hist_copy wait, service;
        unsigned failed;
        double oldest_ms;
};

static uint64_t get(const _Atomic uint64_t *v) {
        return atomic_load_explicit(v, memory_order_relaxed);
}

static void put_faults(struct mp_buf *b, const uint64_t faults[PAGER_N_FAULTS]) {
        mp_key(b, "faults");
        mp_map(b, PAGER_N_FAULTS);
        for (unsigned i = 0; i < PAGER_N_FAULTS; i++)
                mp_kv_u64(b, pager_fault_names[i], faults[i]);
}

static double us(uint64_t ns) {
        return (double) ns / 1e3;
}

static void put_hist(struct mp_buf *b, const char *key, const struct hist_copy *h, bool buckets) {
        unsigned n = 0;

        for (unsigned i = 0; i < HIST_BUCKETS; i++)
                n += h->bucket[i] > 0;
        mp_key(b, key);
        mp_map(b, buckets ? 7 : 6);
        mp_kv_u64(b, "count", h->count);
        mp_kv_double(b, "sum_us", us(h->sum_ns));
        mp_kv_double(b, "p50_us", us(hist_quantile_ns(h, 0.5)));
        mp_kv_double(b, "p90_us", us(hist_quantile_ns(h, 0.9)));
        mp_kv_double(b, "p99_us", us(hist_quantile_ns(h, 0.99)));
        mp_kv_double(b, "max_us", us(h->max_ns));
        if (!buckets)
                return;
        mp_key(b, "buckets");
        mp_array(b, n);
        for (unsigned i = 0; i < HIST_BUCKETS; i++) {
                if (h->bucket[i] == 0)
                        continue;
                mp_array(b, 2);
                /* The last bucket has no end of its own. */
                mp_double(b, us(i == HIST_BUCKETS - 1 ? MAX_OF(h->max_ns, hist_upper_ns(i - 1)) : hist_upper_ns(i)));
                mp_u64(b, h->bucket[i]);
        }
}

static void put_session_hist(struct mp_buf *b, const char *key, const struct hist *h, struct hist_copy *sum, bool buckets) {
        struct hist_copy copy = { 0 };

        hist_collect(h, &copy);
        hist_merge(sum, &copy);
        put_hist(b, key, &copy, buckets);
}

static void put_session(struct mp_buf *b, const struct pager_session *s, struct sums *sums) {
        bool buckets = s->pager->n_sessions <= PAGER_STATUS_SESSIONS;
        char uuid[2 * SNAP_UUID_LEN + 1];
        uint64_t faults[PAGER_N_FAULTS], oldest = get(&s->oldest_ns), now = now_ns();
        double oldest_ms = oldest && now > oldest ? (double) (now - oldest) / 1e6 : 0;

        hex_encode(pager_image_info(s->image)->uuid, SNAP_UUID_LEN, uuid);
        for (unsigned i = 0; i < PAGER_N_FAULTS; i++) {
                faults[i] = get(&s->faults[i]);
                sums->faults[i] += faults[i];
        }
        sums->pages_installed += get(&s->pages_installed);
        sums->zero_pages += get(&s->zero_pages);
        sums->pages_ahead += get(&s->pages_ahead);
        sums->zero_ahead += get(&s->zero_ahead);
        sums->failed += s->failed;
        sums->oldest_ms = MAX_OF(sums->oldest_ms, oldest_ms);

        mp_map(b, 20);
        mp_kv_str(b, "session", s->id);
        mp_kv_str(b, "mode", pager_mode_name(s->attached ? s->mode : PAGER_MODE_MEMFD));
        mp_kv_str(b, "image", uuid);
        mp_kv_i64(b, "vm_pid", s->vm_pid);
        mp_kv_bool(b, "attached", s->attached);
        mp_kv_bool(b, "released", s->released);
        mp_kv_bool(b, "failed", s->failed);
        mp_kv_str(b, "reason", s->failed ? s->reason : NULL);
        mp_kv_i64(b, "worker", s->worker ? (int64_t) pager_worker_index(s->worker) : -1);
        put_faults(b, faults);
        mp_kv_u64(b, "pages_installed", get(&s->pages_installed));
        mp_kv_u64(b, "zero_pages", get(&s->zero_pages));
        mp_kv_u64(b, "pages_ahead", get(&s->pages_ahead));
        mp_kv_u64(b, "zero_ahead", get(&s->zero_ahead));
        mp_kv_u64(b, "recorded_pages", s->record ? get(&s->record->n_pages) : 0);
        mp_kv_u64(b, "removed_pages", get(&s->removed_pages));
        mp_kv_double(b, "oldest_fault_ms", oldest_ms);
        mp_kv_u64(b, "moves", s->moves);
        put_session_hist(b, "wait", &s->wait, &sums->wait, buckets);
        put_session_hist(b, "service", &s->service, &sums->service, buckets);
}

/** Three entries of a map. */
static void put_decoded(struct mp_buf *b, const uint64_t pages[PAGER_N_CAUSES]) {
        mp_kv_u64(b, "demand_pages", pages[PAGER_DEMAND]);
        mp_kv_u64(b, "ahead_pages", pages[PAGER_AHEAD]);
        mp_kv_u64(b, "decoded_bytes", (pages[PAGER_DEMAND] + pages[PAGER_AHEAD]) * PAGER_PAGE);
}

static void put_image(struct mp_buf *b, const struct pager_cached *c, struct sums *sums) {
        char uuid[2 * SNAP_UUID_LEN + 1];
        struct pager_image_stats st;

        hex_encode(pager_image_info(c->image)->uuid, SNAP_UUID_LEN, uuid);
        pager_image_get_stats(c->image, &st);
        sums->decodes += st.decodes;
        for (unsigned i = 0; i < PAGER_N_CAUSES; i++)
                sums->pages[i] += st.pages[i];
        sums->present_bytes += st.present_bytes;
        sums->reclaimed_pages += st.reclaimed_pages;
        sums->refaults += st.refaults;

        mp_map(b, 15);
        mp_kv_str(b, "image", uuid);
        mp_kv_bool(b, "nascent", pager_image_is_nascent(c->image));
        mp_kv_u64(b, "ram_bytes", pager_image_info(c->image)->ram_bytes);
        mp_kv_u64(b, "present_bytes", st.present_bytes);
        mp_kv_u64(b, "sessions", c->n_sessions);
        mp_kv_u64(b, "decodes", st.decodes);
        put_decoded(b, st.pages);
        mp_kv_u64(b, "compressed_bytes", st.compressed_bytes);
        mp_kv_u64(b, "reclaimed_pages", st.reclaimed_pages);
        mp_kv_u64(b, "refaults", st.refaults);
        mp_kv_double(b, "idle_s", c->n_users ? 0 : ms_since(c->idle_since_ns) / 1000);
        mp_kv_bool(b, "filling", pager_image_job(c->image)->running || (c->ahead && c->ahead->job.running));
        mp_kv_bool(b, "bad", pager_image_is_bad(c->image));
}

static void put_totals(struct pager *p, struct mp_buf *b, struct sums *sums) {
        struct pager_reclaim_stats mem;
        uint64_t busy_ns = 0;

        pager_reclaim_get_stats(p->reclaim, &mem);
        for (unsigned i = 0; i < PAGER_N_FAULTS; i++)
                sums->faults[i] += p->past_faults[i];
        for (unsigned i = 0; i < PAGER_N_CAUSES; i++)
                sums->pages[i] += pager_cache_past(p->cache)->pages[i];
        hist_merge(&sums->wait, &p->past_wait);
        hist_merge(&sums->service, &p->past_service);
        for (unsigned w = 0; w < p->n_workers; w++)
                busy_ns = MAX_OF(busy_ns, pager_worker_busy_ns(p->workers[w]));

        mp_map(b, 22);
        mp_kv_u64(b, "sessions", p->n_sessions);
        mp_kv_u64(b, "sessions_ended", p->past_sessions);
        mp_kv_u64(b, "sessions_failed", p->past_failed + sums->failed);
        mp_kv_u64(b, "images", pager_cache_count(p->cache));
        put_faults(b, sums->faults);
        mp_kv_u64(b, "pages_installed", sums->pages_installed + p->past_pages_installed);
        mp_kv_u64(b, "zero_pages", sums->zero_pages + p->past_zero_pages);
        mp_kv_u64(b, "pages_ahead", sums->pages_ahead + p->past_pages_ahead);
        mp_kv_u64(b, "zero_ahead", sums->zero_ahead + p->past_zero_ahead);
        mp_kv_u64(b, "decodes", sums->decodes + pager_cache_past(p->cache)->decodes);
        put_decoded(b, sums->pages);
        mp_kv_u64(b, "present_bytes", sums->present_bytes);
        mp_kv_u64(b, "budget_bytes", mem.budget_bytes);
        mp_kv_u64(b, "reclaimed_pages", sums->reclaimed_pages + pager_cache_past(p->cache)->reclaimed_pages);
        mp_kv_u64(b, "refaults", sums->refaults + pager_cache_past(p->cache)->refaults);
        mp_kv_u64(b, "pressure", mem.pressure);
        mp_kv_double(b, "oldest_fault_ms", sums->oldest_ms);
        mp_kv_double(b, "worker_busy_ms", (double) busy_ns / 1e6);
        put_hist(b, "wait", &sums->wait, true);
        put_hist(b, "service", &sums->service, true);
}

static void put_thread(struct mp_buf *b, const char *role, const char *name, pid_t tid) {
        mp_map(b, 3);
        mp_kv_str(b, "name", name);
        mp_kv_str(b, "role", role);
        mp_kv_i64(b, "tid", tid);
}

static void put_threads(const struct pager *p, struct mp_buf *b) {
        const struct pager_thread *fill = pager_filler_thread(p->filler), *reclaim = pager_reclaim_thread(p->reclaim);

        mp_array(b, p->n_workers + 3);
        put_thread(b, "control", "control", gettid()); /* ours */
        for (unsigned i = 0; i < p->n_workers; i++) {
                const struct pager_thread *t = pager_worker_thread(p->workers[i]);

                put_thread(b, "fault", t->name, t->tid);
        }
        put_thread(b, "fill", fill->name, fill->tid);
        put_thread(b, "other", reclaim->name, reclaim->tid);
}

void pager_status(struct pager *p, struct mp_buf *b) {
        struct sums sums = { 0 };

        mp_map(b, 9);
        mp_kv_i64(b, "pid", getpid());
        mp_kv_str(b, "version", p->cfg.version);
        mp_kv_double(b, "uptime_ms", ms_since(p->started_ns));
        mp_kv_u64(b, "workers", p->n_workers);
        mp_kv_bool(b, "draining", p->draining);
        mp_key(b, "threads");
        put_threads(p, b);
        mp_key(b, "sessions");
        mp_array(b, p->n_sessions);
        for (const struct pager_session *s = p->sessions; s; s = s->next)
                put_session(b, s, &sums);
        mp_key(b, "images");
        mp_array(b, pager_cache_count(p->cache));
        for (const struct pager_cached *c = pager_cache_first(p->cache); c; c = c->next)
                put_image(b, c, &sums);
        mp_key(b, "totals");
        put_totals(p, b, &sums);
}
