/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/metrics_internal.h"
#include "forkd/pager/link.h"

static void killed(struct scrape *s) {
        expo_family(&s->x, "forkd_guests_killed_total", "counter",
                    "Guests that were ended because nobody could serve their memory.");
        for (int i = 0; i < N_KILLED; i++) {
                struct expo_labels l = { 0 };

                expo_label(&l, "reason", killed_name((enum killed) i));
                expo_u64(&s->x, &l, s->d->times.killed[i]);
        }
}

/* Not told while it is down and nobody needs it: a zero is an alarm. */
static void is_up(struct scrape *s) {
        bool up = pager_is_up(s->d->pager);

        expo_family(&s->x, "forkd_pager_up", "gauge", "1: it serves; 0: it does not, and guests need it.");
        if (up || metrics_need_pager(s->d) > 0)
                expo_u64(&s->x, NULL, up);
}

static void put_hist(struct scrape *s, const char *name, const char *help, const struct hist_copy *h) {
        struct expo_hist out;

        expo_family(&s->x, name, "histogram", help);
        expo_hist_from(&out, h);
        expo_hist(&s->x, NULL, &out);
}

static void totals(struct scrape *s) {
        struct pager_totals t;

        pager_totals_get(s->d->pager, &t);
        expo_family(&s->x, "forkd_pager_faults_total", "counter", "Faults that were answered, by how.");
        for (int i = 0; i < PAGER_N_TOTAL_FAULTS; i++) {
                struct expo_labels l = { 0 };

                expo_label(&l, "kind", pager_total_fault_name((enum pager_total_fault) i));
                expo_u64(&s->x, &l, t.sum.faults[i]);
        }
        put_hist(s, "forkd_pager_wait_seconds", "From a fault's reading by the pager to its turn.", &t.sum.wait);
        put_hist(s, "forkd_pager_service_seconds", "The pager's work on one fault.", &t.sum.service);
        expo_one(&s->x, "forkd_pager_refaults_total", "counter",
                 "Decoded pages, 16 at a time, that were given back for want of room and needed again.", t.sum.refaults);
        if (!pager_is_up(s->d->pager) || !t.known)
                return;
        expo_one(&s->x, "forkd_pager_present_bytes", "gauge", "Decoded memory, which all clones of an image share.",
                 t.present_bytes);
        expo_one(&s->x, "forkd_pager_budget_bytes", "gauge", "How much of it there may be at this moment.", t.budget_bytes);
        expo_one(&s->x, "forkd_pager_sessions", "gauge", "Guests that it serves.", t.sessions);
        expo_one(&s->x, "forkd_pager_images", "gauge", "Memory images that it has open.", t.images);
        expo_one_seconds(&s->x, "forkd_pager_oldest_fault_seconds", "gauge", "For how long the oldest fault has had no answer.",
                         t.oldest_fault_ms > 0 ? (uint64_t) (t.oldest_fault_ms * 1e6) : 0);
        expo_one_seconds(&s->x, "forkd_pager_status_age_seconds", "gauge",
                         "How old the pager's own figures are: it answers each scrape, unless it hangs.",
                         s->now_ns > t.at_ns ? s->now_ns - t.at_ns : 0);
}

static void counts(struct scrape *s) {
        const struct pager_counts *c = pager_counts(s->d->pager);

        expo_one(&s->x, "forkd_pager_deaths_total", "counter", "Pagers that ended without being told to.", c->deaths);
        expo_one(&s->x, "forkd_pager_hangs_total", "counter", "Pagers that were killed because they hung.", c->hangs);
        expo_one(&s->x, "forkd_pager_recoveries_total", "counter", "Guests that were handed to another pager after that.",
                 c->recovered);
        expo_one(&s->x, "forkd_pager_upgrades_total", "counter", "Pagers that were replaced on request.", c->upgrades);
}

static void threads(struct scrape *s) {
        static const struct {
                enum probes_state state;
                const char *name;
        } states[] = {
                { PROBES_ONCPU, "oncpu" }, { PROBES_RUNQUEUE, "runqueue" }, { PROBES_LOCK, "lock" },
                { PROBES_DISK, "disk" },   { PROBES_IDLE, "idle" },
        };
        const struct monitor_pager *p = s->d->monitor ? monitor_get_pager(s->d->monitor) : NULL;

        expo_family(&s->x, "forkd_pager_thread_seconds_total", "counter", "What the pager's threads spend their time with.");
        if (!monitor_is_up(s->d->monitor) && p && p->role[MONITOR_FAULT].ns[PROBES_IDLE] == 0)
                return; /* nobody has looked */
        for (int role = 0; p && role < MONITOR_N_ROLES; role++)
                for (size_t i = 0; i < ARRAY_LEN(states); i++) {
                        struct expo_labels l = { 0 };

                        expo_label(&l, "role", monitor_role_name((enum monitor_role) role));
                        expo_label(&l, "state", states[i].name);
                        expo_seconds(&s->x, &l, p->role[role].ns[states[i].state]);
                }
}

void families_pager(struct scrape *s) {
        killed(s);
        is_up(s);
        totals(s);
        counts(s);
        threads(s);
}
