/* SPDX-License-Identifier: MIT */
#include "forkd/catalog.h"
#include "forkd/events.h"
#include "forkd/monitor/metrics_internal.h"
#include "forkd/monitor/store_use.h"
#include "forkd/host/room.h"
#include "forkd/host/shells.h"
#include "forkd/pool/pool.h"
#include "forkd/vm/vm.h"

/* ---- operations ---- */

static void operations(struct scrape *s) {
        static const struct {
                enum operation op;
                const char *name, *help;
        } families[] = {
                { OP_BOOT, "forkd_boot_seconds", "A VM boots: until its agent has answered." },
                { OP_STANDBY, "forkd_standby_seconds",
                  "A VM is put on standby: until its snapshot is safe and its process gone." },
                { OP_RESTORE, "forkd_restore_seconds", "A VM comes back from standby: until its agent has answered." },
                { OP_FORK, "forkd_fork_seconds", "A clone comes to life: until its agent has answered." },
                { OP_POOL_TAKE, "forkd_pool_take_seconds", "A VM is taken out of a pool." },
        };

        for (size_t i = 0; i < ARRAY_LEN(families); i++) {
                struct hist_copy copy = { 0 };
                struct expo_hist h;

                hist_collect(&s->d->times.took[families[i].op], &copy);
                expo_hist_from(&h, &copy);
                expo_family(&s->x, families[i].name, "histogram", families[i].help);
                expo_hist(&s->x, NULL, &h);
        }
        expo_family(&s->x, "forkd_operations_failed_total", "counter", "Operations that had begun, and failed.");
        for (int i = 0; i < N_OPERATIONS; i++) {
                struct expo_labels l = { 0 };

                expo_label(&l, "operation", operation_name((enum operation) i));
                expo_u64(&s->x, &l, s->d->times.failed[i]);
        }
}

/* ---- pools: a family each ---- */

static uint64_t warm(const struct pool_figures *f) {
        return f->warm;
}

static uint64_t wanted(const struct pool_figures *f) {
        return f->wanted;
}

static uint64_t making(const struct pool_figures *f) {
        return f->making;
}

static void pools(struct scrape *s) {
        static const struct {
                const char *name, *help;
                uint64_t (*get)(const struct pool_figures *f);
        } gauges[] = {
                { "forkd_pool_warm", "VMs that are ready in a pool.", warm },
                { "forkd_pool_size", "VMs that a pool shall have at the moment.", wanted },
                { "forkd_pool_making", "VMs that are being made for a pool.", making },
        };
        struct pool_figures f;

        for (size_t i = 0; i < ARRAY_LEN(gauges); i++) {
                expo_family(&s->x, gauges[i].name, "gauge", gauges[i].help);
                for (const struct pool *p = pools_first(s->d); p; p = pools_next(p)) {
                        struct expo_labels l = { 0 };

                        pool_get_figures(p, &f);
                        expo_label(&l, "pool", f.name);
                        expo_u64(&s->x, &l, gauges[i].get(&f));
                }
        }
        expo_family(&s->x, "forkd_pool_takes_total", "counter",
                    "VMs that were taken out of a pool: warm ones, and those that had to be made.");
        for (const struct pool *p = pools_first(s->d); p; p = pools_next(p))
                for (int is_warm = 1; is_warm >= 0; is_warm--) {
                        struct expo_labels l = { 0 };

                        pool_get_figures(p, &f);
                        expo_label(&l, "pool", f.name);
                        expo_label(&l, "warm", is_warm ? "yes" : "no");
                        expo_u64(&s->x, &l, is_warm ? f.taken_warm : f.taken_cold);
                }
}

/* ---- VMM shells ---- */

static void shells(struct scrape *s) {
        struct shells_counts c;

        shells_count(s->d->shells, &c);
        expo_one(&s->x, "forkd_shells_ready", "gauge", "VMMs that are started and wait for a VM.", c.ready);
        expo_one(&s->x, "forkd_shells_used_total", "counter", "VMs that were restored into one that was ready.", c.used);
        expo_one(&s->x, "forkd_shells_missed_total", "counter", "VMs for which none was ready.", c.missed);
        expo_one(&s->x, "forkd_shells_failed_total", "counter", "Those that did not start, or ended by themselves.", c.failed);
}

/* ---- the store ---- */

static void kind(struct scrape *s, const char *name, uint64_t value) {
        struct expo_labels l = { 0 };

        expo_label(&l, "kind", name);
        expo_u64(&s->x, &l, value);
}

static void store(struct scrape *s) {
        const struct snap_entry *e;
        struct store_use use;
        uint64_t n = 0;

        for (e = catalog_first(s->d->catalog); e; e = TAILQ_NEXT(e, entry))
                n++;
        store_use_get(s->d, &use);
        expo_family(&s->x, "forkd_store_bytes", "gauge", "The store: what there is, what is free, what is in it.");
        if (use.total != UINT64_MAX) {
                kind(s, "total", use.total);
                kind(s, "free", use.free);
        }
        kind(s, "reserve", use.reserve);
        kind(s, "snapshots", use.snapshots);
        kind(s, "vms", use.vms);
        expo_one(&s->x, "forkd_snapshots", "gauge", "Snapshots in the store.", n);
}

/* ---- admission ---- */

/* The entries of one map of `info`'s admission; what has no limit, or is not known, is nil there and not told here. */
static void resource(struct scrape *s, const msgpack_object *all, const char *key, const char *queue) {
        const msgpack_object *o = mp_get(all, key);

        for (uint32_t i = 0; o && o->type == MSGPACK_OBJECT_MAP && i < o->via.map.size; i++) {
                const msgpack_object_kv *kv = &o->via.map.ptr[i];
                struct expo_labels l = { 0 };
                char name[32];

                if (kv->key.type != MSGPACK_OBJECT_STR || kv->val.type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                        continue;
                (void) snprintf(name, sizeof(name), "%.*s", (int) kv->key.via.str.size, kv->key.via.str.ptr);
                if (queue)
                        expo_label(&l, "queue", queue);
                expo_label(&l, "kind", name);
                expo_u64(&s->x, &l, kv->val.via.u64);
        }
}

static void admission(struct scrape *s) {
        static const struct {
                const char *key, *name, *help;
        } families[] = {
                { "memory", "forkd_admission_memory_bytes", "Memory for VMs: what there is, and who has it." },
                { "disk", "forkd_admission_disk_bytes", "Room in the store for snapshots that are taken." },
                { "vcpus", "forkd_admission_vcpus", "vCPUs of the VMs that live, and how many there may be." },
                { "pids", "forkd_admission_pids", "Processes and threads of the VMs that live, and how many more there may be." },
                { "descriptors", "forkd_admission_descriptors", "Descriptors of forkd for VMs, and how many there may be." },
        };
        static const char *const queues[] = { "starts", "saves", "scans" };
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };

        mp_buf_init(&b);
        room_encode(s->d, &b);
        if (b.failed || mp_parse(b.sb.data, b.sb.size, &doc) < 0)
                return;
        for (size_t i = 0; i < ARRAY_LEN(families); i++) {
                expo_family(&s->x, families[i].name, "gauge", families[i].help);
                resource(s, &doc.root, families[i].key, NULL);
        }
        expo_family(&s->x, "forkd_admission_turns", "gauge",
                    "Heavy work that runs, that waits for its turn, and how much may run.");
        for (size_t i = 0; i < ARRAY_LEN(queues); i++)
                resource(s, &doc.root, queues[i], queues[i]);
}

static void events(struct scrape *s) {
        const char *name;
        uint64_t n;

        expo_family(&s->x, "forkd_events_total", "counter", "What forkctl events tells, by kind.");
        for (unsigned i = 0; (name = events_kind(s->d->events, i, &n)); i++)
                kind(s, name, n);
}

void families_ops(struct scrape *s) {
        operations(s);
        pools(s);
        shells(s);
        store(s);
        admission(s);
        events(s);
}
