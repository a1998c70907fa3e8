/* SPDX-License-Identifier: MIT */
/* The document's pager: what it says of itself, what forkd has seen of it, and how its threads spend their time. */
#include <string.h>

#include "common/io.h"
#include "forkd/monitor/figures.h"
#include "forkd/monitor/stats_internal.h"
#include "forkd/pager/totals.h"

#define MAX_KINDS 16u /* of faults, of one session */
#define MAX_IMAGE 64  /* its id, as the pager writes it */

static uint64_t count_of(const msgpack_object *map, const char *key) {
        uint64_t v = 0;

        (void) mp_get_u64(map, key, &v);
        return v;
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
        struct hist_copy copy;
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
        pager_totals_read_hist(s, "wait", &copy);
        figures_of_hist(&copy, &wait);
        pager_totals_read_hist(s, "service", &copy);
        figures_of_hist(&copy, &service);
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

static void put_error(const struct pager_totals *t, bool up, uint64_t asked_ns, struct mp_buf *b) {
        char text[80];

        mp_key(b, "error");
        if (!up || (t->known && t->at_ns >= asked_ns)) {
                mp_nil(b);
                return;
        }
        if (t->known)
                (void) snprintf(text, sizeof(text), "no answer within %d ms: told is what it said %.0f ms ago", PAGER_TOTALS_MS,
                                ms_since(t->at_ns));
        mp_str(b, t->known ? text : "it has not answered yet");
}

static void put_served_list(const struct daemon *d, const char *only, struct mp_buf *b) {
        const msgpack_object *sessions = mp_get_array(pager_totals_answer(d->pager), "sessions");
        cleanup_stats_list struct stats_list l;

        stats_list_init(&l, STATS_MAX_SERVED_BYTES);
        for (uint32_t i = 0; sessions && i < sessions->via.array.size; i++)
                put_served(d, only, &sessions->via.array.ptr[i], &l);
        mp_kv_list(b, "served", &l.items, l.n);
        mp_kv_u64(b, "served_left_out", l.left_out);
}

void stats_put_pager(const struct daemon *d, const char *only, uint64_t asked_ns, struct mp_buf *b) {
        const struct pager_counts *c = pager_counts(d->pager);
        bool up = pager_is_up(d->pager);
        struct pager_totals t;
        struct figures f;

        pager_totals_get(d->pager, &t);
        mp_map(b, 19);
        mp_kv_bool(b, "up", up);
        put_error(&t, up, asked_ns, b);
        mp_kv_i64(b, "pid", pager_pid(d->pager));
        mp_kv_u64(b, "deaths", c->deaths);
        mp_kv_u64(b, "hangs", c->hangs);
        mp_kv_u64(b, "recovered", c->recovered);
        mp_kv_u64(b, "killed", c->killed);
        mp_kv_u64(b, "upgrades", c->upgrades);
        mp_key(b, "faults");
        mp_map(b, PAGER_N_TOTAL_FAULTS);
        for (int i = 0; i < PAGER_N_TOTAL_FAULTS; i++)
                mp_kv_u64(b, pager_total_fault_name((enum pager_total_fault) i), t.sum.faults[i]);
        mp_kv_u64(b, "present_bytes", t.known ? t.present_bytes : 0);
        mp_kv_u64(b, "budget_bytes", t.known ? t.budget_bytes : 0);
        mp_kv_u64(b, "sessions", t.known ? t.sessions : sessions_held(d));
        mp_kv_u64(b, "images", t.known ? t.images : 0);
        mp_kv_double(b, "oldest_fault_ms", t.known ? t.oldest_fault_ms : 0);
        figures_of_hist(&t.sum.wait, &f);
        figures_kv(b, "wait", &f);
        figures_of_hist(&t.sum.service, &f);
        figures_kv(b, "service", &f);
        put_threads(d, b);
        put_served_list(d, only, b);
}
