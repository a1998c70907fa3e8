/* SPDX-License-Identifier: MIT */
/* The document's pager: what it says of itself, what forkd has seen of it, and how its threads spend their time. */
#include <string.h>

#include "forkd/monitor/figures.h"
#include "forkd/monitor/stats_internal.h"

#define MAX_KINDS 16u
#define MAX_IMAGE 64 /* its id, as the pager writes it */

static uint64_t count_of(const msgpack_object *map, const char *key) {
        uint64_t v = 0;

        (void) mp_get_u64(map, key, &v);
        return v;
}

/* "faults" of a session or of all: what of it is a number. */
static void put_faults(const msgpack_object *totals, struct mp_buf *b) {
        const msgpack_object *faults = mp_get(totals, "faults");
        uint32_t n = faults && faults->type == MSGPACK_OBJECT_MAP ? faults->via.map.size : 0, good = 0;

        for (uint32_t i = 0; i < n && i < MAX_KINDS; i++)
                good += faults->via.map.ptr[i].key.type == MSGPACK_OBJECT_STR &&
                        faults->via.map.ptr[i].val.type == MSGPACK_OBJECT_POSITIVE_INTEGER;
        mp_key(b, "faults");
        mp_map(b, good);
        for (uint32_t i = 0; i < n && i < MAX_KINDS; i++)
                if (faults->via.map.ptr[i].key.type == MSGPACK_OBJECT_STR &&
                    faults->via.map.ptr[i].val.type == MSGPACK_OBJECT_POSITIVE_INTEGER) {
                        mp_obj(b, &faults->via.map.ptr[i].key);
                        mp_obj(b, &faults->via.map.ptr[i].val);
                }
}

static uint64_t sum_of_faults(const msgpack_object *session) {
        const msgpack_object *faults = mp_get(session, "faults");
        uint64_t sum = 0;

        for (uint32_t i = 0; faults && faults->type == MSGPACK_OBJECT_MAP && i < faults->via.map.size && i < MAX_KINDS; i++)
                if (faults->via.map.ptr[i].val.type == MSGPACK_OBJECT_POSITIVE_INTEGER)
                        sum += faults->via.map.ptr[i].val.via.u64;
        return sum;
}

static void put_thread(struct mp_buf *b, const struct monitor_thread *t) {
        mp_map(b, 16);
        mp_kv_str(b, "name", t->name);
        mp_kv_str(b, "role", monitor_role_name(t->role));
        mp_kv_i64(b, "pid", t->pid);
        mp_kv_i64(b, "tid", t->tid);
        mp_kv_str(b, "state", stats_state_name(t->state));
        stats_kv_s(b, "oncpu_s", t->sum.ns[PROBES_ONCPU]);
        stats_kv_s(b, "runqueue_s", t->sum.ns[PROBES_RUNQUEUE]);
        stats_kv_s(b, "lock_s", t->sum.ns[PROBES_LOCK]);
        stats_kv_s(b, "disk_s", t->sum.ns[PROBES_DISK]);
        stats_kv_s(b, "memory_s", t->sum.ns[PROBES_MEMORY]);
        stats_kv_s(b, "idle_s", t->sum.ns[PROBES_IDLE]);
        stats_kv_share(b, "oncpu", &t->window, PROBES_ONCPU);
        stats_kv_share(b, "runqueue", &t->window, PROBES_RUNQUEUE);
        stats_kv_share(b, "lock", &t->window, PROBES_LOCK);
        stats_kv_share(b, "disk", &t->window, PROBES_DISK);
        stats_kv_share(b, "idle", &t->window, PROBES_IDLE);
}

static void put_threads(const struct daemon *d, struct mp_buf *b) {
        const struct monitor_pager *mp = d->monitor ? monitor_get_pager(d->monitor) : NULL;

        mp_key(b, "threads");
        mp_array(b, mp ? mp->n_threads : 0);
        for (unsigned i = 0; mp && i < mp->n_threads; i++)
                put_thread(b, &mp->thread[i]);
}

/* One session; those whose VM is not forkd's, or not anymore, are nobody's to ask about. */
static void put_served(const struct daemon *d, const char *only, const msgpack_object *s, struct stats_list *l) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct figures wait, service;
        char image[MAX_IMAGE] = "";
        const struct vm *vm;
        double oldest = 0;
        id_str id;

        if (mp_get_str(s, "session", id, sizeof(id)) < 0 || !(vm = vm_by_id((struct daemon *) d, id)))
                return;
        if (only && strcmp(only, vm->name) != 0 && strcmp(only, vm->id) != 0)
                return;
        (void) mp_get_str(s, "image", image, sizeof(image));
        (void) mp_get_double(s, "oldest_fault_ms", &oldest);
        figures_of_pager(mp_get(s, "wait"), &wait);
        figures_of_pager(mp_get(s, "service"), &service);
        mp_buf_init(&b);
        mp_map(&b, 8);
        mp_kv_str(&b, "vm", vm->name);
        mp_kv_str(&b, "id", vm->id);
        mp_kv_str(&b, "image", image);
        mp_kv_u64(&b, "faults", sum_of_faults(s));
        mp_kv_u64(&b, "pages_installed", count_of(s, "pages_installed"));
        mp_kv_double(&b, "oldest_fault_ms", oldest);
        figures_kv(&b, "wait", &wait);
        figures_kv(&b, "service", &service);
        stats_list_add(l, &b);
}

static unsigned sessions_held(const struct daemon *d) {
        const struct vm *vm;
        unsigned n = 0;

        TAILQ_FOREACH (vm, &d->vms, entry)
                n += vm->session;
        return n;
}

void stats_put_pager(const struct daemon *d, const char *only, const msgpack_object *answer, const char *why, struct mp_buf *b) {
        const msgpack_object *totals = mp_get(answer, "totals"), *sessions = mp_get_array(answer, "sessions");
        const struct pager_counts *c = pager_counts(d->pager);
        cleanup_stats_list struct stats_list l;
        struct figures wait, service;
        double oldest = 0;

        stats_list_init(&l, STATS_MAX_SERVED_BYTES);
        for (uint32_t i = 0; sessions && i < sessions->via.array.size; i++)
                put_served(d, only, &sessions->via.array.ptr[i], &l);
        (void) mp_get_double(totals, "oldest_fault_ms", &oldest);
        figures_of_pager(mp_get(totals, "wait"), &wait);
        figures_of_pager(mp_get(totals, "service"), &service);

        mp_map(b, 19);
        mp_kv_bool(b, "up", pager_is_up(d->pager));
        mp_kv_str(b, "error", why[0] ? why : NULL);
        mp_kv_i64(b, "pid", pager_pid(d->pager));
        mp_kv_u64(b, "deaths", c->deaths);
        mp_kv_u64(b, "hangs", c->hangs);
        mp_kv_u64(b, "recovered", c->recovered);
        mp_kv_u64(b, "killed", c->killed);
        mp_kv_u64(b, "upgrades", c->upgrades);
        put_faults(totals, b);
        mp_kv_u64(b, "present_bytes", count_of(totals, "present_bytes"));
        mp_kv_u64(b, "budget_bytes", count_of(totals, "budget_bytes"));
        mp_kv_u64(b, "sessions", answer ? count_of(totals, "sessions") : sessions_held(d));
        mp_kv_u64(b, "images", count_of(totals, "images"));
        mp_kv_double(b, "oldest_fault_ms", oldest);
        figures_kv(b, "wait", &wait);
        figures_kv(b, "service", &service);
        put_threads(d, b);
        mp_key(b, "served");
        stats_list_put(&l, b);
        mp_kv_u64(b, "served_left_out", l.left_out);
}
