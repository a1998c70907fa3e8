/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/stats.h"

#include <errno.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <time.h>

#include "common/io.h"
#include "forkd/catalog.h"
#include "forkd/host/host.h"
#include "forkd/monitor/figures.h"
#include "forkd/monitor/http.h"
#include "forkd/monitor/stats_internal.h"
#include "forkd/monitor/store_use.h"
#include "forkd/pager/totals.h"
#include "forkd/pool/pool.h"
#include "forkd/host/room.h"
#include "forkd/host/shells.h"

/* ---- lists that end ---- */

void stats_list_init(struct stats_list *l, size_t max_bytes) {
        *l = (struct stats_list){ .max_bytes = max_bytes };
        mp_buf_init(&l->items);
}

void stats_list_clear(struct stats_list *l) {
        mp_buf_clear(&l->items);
}

void stats_list_add(struct stats_list *l, struct mp_buf *item) {
        if (l->items.sb.size + item->sb.size > l->max_bytes) {
                l->left_out++;
        } else {
                mp_raw(&l->items, item->sb.data, item->sb.size);
                l->items.failed |= item->failed;
                l->n++;
        }
        msgpack_sbuffer_clear(&item->sb);
}

/* ---- forkd itself, the host, the store ---- */

/* Two pairs: where metrics are to be had, or why not. */
static void put_metrics(const struct daemon *d, struct mp_buf *b) {
        const char *address = d->http ? http_address(d->http) : "", *problem = d->http ? http_problem(d->http) : "";

        mp_kv_str(b, "metrics_address", address[0] ? address : NULL);
        mp_kv_str(b, "metrics_error", problem[0] ? problem : NULL);
}

static void put_probes(const struct daemon *d, struct mp_buf *b) {
        struct monitor_probes p;

        monitor_get_probes(d->monitor, &p);
        mp_map(b, 14);
        mp_kv_bool(b, "ok", p.ok);
        mp_kv_str(b, "method", probes_method_name(p.status.method));
        mp_kv_bool(b, "kvm", p.status.kvm);
        mp_kv_str(b, "reason", p.reason[0] ? p.reason : NULL);
        mp_kv_str(b, "hint", p.hint[0] ? p.hint : NULL);
        mp_kv_u64(b, "processes", p.status.processes);
        mp_kv_u64(b, "max_processes", p.status.max_processes);
        mp_kv_u64(b, "threads", p.status.threads);
        mp_kv_u64(b, "max_threads", p.status.max_threads);
        mp_kv_u64(b, "overflows", p.status.overflows);
        mp_kv_u64(b, "recycled", p.status.recycled);
        mp_kv_u64(b, "missed", p.status.missed);
        mp_kv_u64(b, "watched_vms", p.watched_vms);
        mp_kv_u64(b, "unwatched_vms", p.unwatched_vms);
}

static void kv_known(struct mp_buf *b, const char *key, uint64_t v) {
        mp_key(b, key);
        if (v == UINT64_MAX)
                mp_nil(b);
        else
                mp_u64(b, v);
}

static void put_host(const struct daemon *d, struct mp_buf *b) {
        struct sysinfo si = { 0 };

        mp_map(b, 4);
        kv_known(b, "mem_total_bytes", sysinfo(&si) == 0 ? (uint64_t) si.totalram * si.mem_unit : UINT64_MAX);
        kv_known(b, "mem_available_bytes", host_memory(d->host));
        mp_kv_u64(b, "cpus", (uint64_t) MAX_OF(sysconf(_SC_NPROCESSORS_ONLN), 1L));
        mp_key(b, "admission");
        room_encode(d, b);
}

static void put_store(const struct daemon *d, struct mp_buf *b) {
        struct store_use use;

        store_use_get(d, &use);
        mp_map(b, 5);
        kv_known(b, "total", use.total);
        kv_known(b, "free", use.free);
        mp_kv_u64(b, "reserve", use.reserve);
        mp_kv_u64(b, "snapshots", use.snapshots);
        mp_kv_u64(b, "vms", use.vms);
}

/* Two pairs. */
static void put_operations(const struct daemon *d, struct mp_buf *b) {
        mp_key(b, "operations");
        mp_map(b, N_OPERATIONS);
        for (int i = 0; i < N_OPERATIONS; i++) {
                struct hist_copy copy = { 0 };
                struct figures f;

                hist_collect(&d->times.took[i], &copy);
                figures_of_hist(&copy, &f);
                figures_kv(b, operation_name((enum operation) i), &f);
        }
        mp_key(b, "failed");
        mp_map(b, N_OPERATIONS);
        for (int i = 0; i < N_OPERATIONS; i++)
                mp_kv_u64(b, operation_name((enum operation) i), d->times.failed[i]);
}

/* ---- snapshots ---- */

static void put_snapshot(struct mp_buf *b, const struct snap_entry *s) {
        mp_map(b, 8);
        mp_kv_str(b, "id", s->m.id);
        mp_kv_str(b, "tag", s->m.tag[0] ? s->m.tag : NULL);
        mp_kv_str(b, "parent", s->m.parent[0] ? s->m.parent : NULL);
        mp_kv_str(b, "source", s->m.source);
        mp_kv_u64(b, "depth", s->m.depth);
        mp_kv_double(b, "created", (double) s->m.created_ns / 1e9);
        mp_kv_u64(b, "ram_bytes", s->m.mem_bytes);
        mp_kv_u64(b, "stored_bytes", s->m.stored_bytes);
}

#define SNAPSHOT_PAIRS 2u
static void put_snapshots(const struct daemon *d, struct mp_buf *b) {
        cleanup_mp_buf struct mp_buf item = { 0 };
        cleanup_stats_list struct stats_list l;

        stats_list_init(&l, STATS_MAX_SNAPSHOTS_BYTES);
        mp_buf_init(&item);
        for (const struct snap_entry *s = d->store ? catalog_first(d->catalog) : NULL; s; s = TAILQ_NEXT(s, entry)) {
                put_snapshot(&item, s);
                stats_list_add(&l, &item);
        }
        mp_kv_list(b, "snapshots", &l.items, l.n);
        mp_kv_u64(b, "snapshots_left_out", l.left_out);
}

/* ---- all of it ---- */

static double wall_ms(void) {
        struct timespec t;

        (void) clock_gettime(CLOCK_REALTIME, &t);
        return (double) t.tv_sec * 1e3 + (double) t.tv_nsec / 1e6;
}

#define OWN_PAIRS 15u
static void put_document(const struct daemon *d, const char *name, uint64_t asked_ns, struct mp_buf *b) {
        mp_map(b, OWN_PAIRS + STATS_VM_PAIRS + SNAPSHOT_PAIRS);
        mp_kv_double(b, "now_ms", wall_ms());
        mp_kv_double(b, "uptime_ms", ms_since(d->started_ns));
        mp_kv_str(b, "version", FORKD_VERSION);
        put_metrics(d, b);
        mp_kv_u64(b, "window_ms", d->monitor ? monitor_window_ms(d->monitor) : 0);
        mp_key(b, "probes");
        put_probes(d, b);
        stats_put_vms(d, name, b);
        mp_key(b, "pager");
        stats_put_pager(d, name, asked_ns, b);
        put_snapshots(d, b);
        mp_key(b, "pools");
        mp_array(b, pools_count(d));
        for (const struct pool *p = pools_first(d); p; p = pools_next(p))
                pool_encode(p, b);
        mp_key(b, "shells");
        shells_encode(d->shells, b);
        mp_key(b, "store");
        put_store(d, b);
        mp_key(b, "host");
        put_host(d, b);
        put_operations(d, b);
        mp_kv_u64(b, "pid", (uint64_t) getpid());
}

int stats_document(struct daemon *d, const char *name, struct mp_buf *out, struct err *e) {
        uint64_t asked_ns = now_ns();

        pager_totals_refresh(d->pager);
        /* From here on nothing waits: all that follows is of one moment. */
        if (name && !stats_has_vm(d, name)) {
                (void) err_set(e, ERR_NOT_FOUND, -ENOENT, "there is no VM '%.80s', and none of that name ended lately", name);
                (void) err_hint(e, "'forkctl stats' lists them");
                return -ENOENT;
        }
        monitor_look(d->monitor);
        put_document(d, name, asked_ns, out);
        if (!out->failed)
                return 0;
        (void) err_errno(e, -ENOMEM, "collecting the figures");
        return -ENOMEM;
}
