/* SPDX-License-Identifier: MIT */
/* The lines around the table of `forkctl top`, and its help. */
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "forkctl/draw.h"
#include "forkctl/top_draw.h"

/* ---- the lines above ---- */

static size_t add(char *buf, size_t size, size_t n, const char *fmt, ...) attr_printf(4, 5);

static size_t add(char *buf, size_t size, size_t n, const char *fmt, ...) {
        va_list ap;
        int k;

        if (n + 1 >= size)
                return n;
        va_start(ap, fmt);
        k = vsnprintf(buf + n, size - n, fmt, ap);
        va_end(ap);
        return k < 0 ? n : MIN_OF(n + (size_t) k, size - 1);
}

static void line_vms(const struct top *t, struct canvas *cv, unsigned row) {
        static const char *const states[] = { "running", "paused", "standby", "other" };
        char text[400] = "", age[32];
        unsigned vms = 0;
        size_t n = 0;
        bool bad = false;

        for (unsigned h = 0; h < TOP_OK; h++)
                if (t->by_health[h]) {
                        n = add(text, sizeof(text), n, "%s%u %s", n ? ", " : "", t->by_health[h], top_health_name(h));
                        bad = true;
                }
        for (unsigned i = 0; i < ARRAY_LEN(states); i++)
                vms += t->by_state[i];
        n = add(text, sizeof(text), n, "%s%u VM%s", n ? "; " : "", vms, vms == 1 ? "" : "s");
        for (unsigned i = 0, k = 0; i < ARRAY_LEN(states); i++)
                if (t->by_state[i])
                        n = add(text, sizeof(text), n, "%s%u %s", k++ ? ", " : ": ", t->by_state[i], states[i]);
        if (t->head.left_out)
                n = add(text, sizeof(text), n, ", %llu more not listed", (unsigned long long) t->head.left_out);
        if (t->head.pools)
                n = add(text, sizeof(text), n, "; %llu pool%s, %llu of %llu clones warm", (unsigned long long) t->head.pools,
                        t->head.pools == 1 ? "" : "s", (unsigned long long) t->head.pool_warm,
                        (unsigned long long) t->head.pool_wanted);
        if (t->filter[0])
                n = add(text, sizeof(text), n, "; %zu match '%s'", t->n_shown, t->filter);
        (void) add(text, sizeof(text), n, "; forkd %s, up %s", t->head.version,
                   draw_seconds(age, sizeof(age), t->head.uptime_s, cv->utf8));
        (void) canvas_text(cv, row, 0, cv->cols, bad ? LOOK_BAD | LOOK_BOLD : LOOK_PLAIN, text);
}

static void line_probes(const struct top *t, struct canvas *cv, unsigned row) {
        const struct top_head *h = &t->head;
        char text[500], window[32];
        size_t n;

        if (!h->probes_ok) {
                canvas_printf(cv, row, 0, cv->cols, LOOK_WARN, "probes  none: nothing is known of vCPUs%s%s",
                              h->probes_reason[0] ? ": " : "", h->probes_reason);
                return;
        }
        n = add(text, sizeof(text), 0, "probes  %s, shares of %s", h->method,
                draw_seconds(window, sizeof(window), h->window_s, cv->utf8));
        n = add(text, sizeof(text), n, ", VM exits %s", h->kvm ? "from KVM" : "unknown");
        if (h->unwatched)
                n = add(text, sizeof(text), n, ", %llu VMs found no place", (unsigned long long) h->unwatched);
        if (h->probes_reason[0])
                (void) add(text, sizeof(text), n, "; %s", h->probes_reason);
        (void) canvas_text(cv, row, 0, cv->cols, h->unwatched ? LOOK_WARN : LOOK_PLAIN, text);
}

static void line_host(const struct top *t, struct canvas *cv, unsigned row) {
        const struct top_head *h = &t->head;
        double used = h->mem_total ? 1 - (double) h->mem_available / (double) h->mem_total : 0;
        char bar[64], free_text[32], total[32], cpu[32];
        double sum = 0;

        for (size_t i = 0; i < t->n; i++)
                sum += isnan(t->vms[i].cpu) || !isnan(t->vms[i].ended_s) ? 0 : t->vms[i].cpu;
        canvas_printf(cv, row, 0, cv->cols, LOOK_PLAIN,
                      "host    memory [%s] %s of %s available, vCPUs take %s of %u CPUs, starts: %llu under way, %llu waiting",
                      draw_bar(bar, sizeof(bar), used, 10, cv->utf8), size_format(h->mem_available, free_text, sizeof(free_text)),
                      size_format(h->mem_total, total, sizeof(total)), draw_percent(cpu, sizeof(cpu), sum), h->cpus,
                      (unsigned long long) h->starts_running, (unsigned long long) h->starts_waiting);
}

static void line_pager(const struct top *t, struct canvas *cv, unsigned row) {
        const struct top_head *h = &t->head;
        char present[32], budget[32], rate[32], p50[32], p99[32], oldest[32];

        if (!h->pager_up) {
                bool needed = h->pager_sessions > 0;

                (void) canvas_text(cv, row, 0, cv->cols, needed ? LOOK_BAD | LOOK_BOLD : LOOK_PLAIN,
                                   needed ? "pager   NOT THERE, and guests wait for it" : "pager   not running; none needs it");
                return;
        }
        canvas_printf(cv, row, 0, cv->cols, LOOK_PLAIN,
                      "pager   pid %lld, sessions: %llu, images: %llu, %s of %s present, %s faults/s, p50 %s, p99 %s, oldest %s",
                      (long long) h->pager_pid, (unsigned long long) h->pager_sessions, (unsigned long long) h->pager_images,
                      size_format(h->present_bytes, present, sizeof(present)),
                      h->budget_bytes ? size_format(h->budget_bytes, budget, sizeof(budget)) : "any",
                      draw_count(rate, sizeof(rate), h->faults_per_s), draw_seconds(p50, sizeof(p50), h->pager_p50_s, cv->utf8),
                      draw_seconds(p99, sizeof(p99), h->pager_p99_s, cv->utf8),
                      draw_seconds(oldest, sizeof(oldest), h->oldest_fault_s, cv->utf8));
}

/* ---- the lines below ---- */

/* Of whom the line below tells when nobody is selected. */
static const struct top_vm *worst_vm(const struct top *t) {
        const struct top_vm *worst = NULL;

        for (size_t i = 0; i < t->n_shown; i++)
                if (isnan(t->shown[i]->ended_s) && t->shown[i]->health < (worst ? worst->health : TOP_OK))
                        worst = t->shown[i];
        return worst;
}

void top_line_vm(const struct top *t, const struct top_vm *vm, struct canvas *cv, unsigned row) {
        char waits[32], cpu[32], runq[32], memory[32];

        if (!vm)
                vm = worst_vm(t);
        if (!vm)
                return;
        if (vm->why[0])
                canvas_printf(cv, row, 0, cv->cols, top_look_of(vm), "%s: %s", vm->name, vm->why);
        else
                canvas_printf(cv, row, 0, cv->cols, LOOK_PLAIN,
                              "%s: on a CPU %s, waiting for one %s, for memory %s, %s waits since it began%s%s", vm->name,
                              draw_percent(cpu, sizeof(cpu), vm->cpu), draw_percent(runq, sizeof(runq), vm->runqueue),
                              draw_percent(memory, sizeof(memory), vm->memory),
                              draw_count(waits, sizeof(waits), (double) vm->waits), vm->snapshot[0] ? ", from " : "",
                              vm->snapshot);
}

void top_line_keys(const struct top *t, struct canvas *cv, unsigned row) {
        if (t->asking)
                canvas_printf(cv, row, 0, cv->cols, LOOK_BOLD, "/%s_  Enter: keep, Esc: all", t->filter);
        else
                canvas_printf(cv, row, 0, cv->cols, LOOK_DIM,
                              "q quit  / filter  sort: h c w l m n (%s%s)  r reverse  arrows select  ? help",
                              top_key_name(t->key), t->reversed ? ", reversed" : "");
}

void top_draw_help(struct canvas *cv) {
        static const char *const lines[] = {
                "forkctl top: which guest waits for memory, how long, and which vCPU burns a core for nothing",
                "",
                "  h c w l m n   sort by health, CPU, waits a second, longest wait now, memory, name;  r reverses",
                "  arrows, j k, PgUp PgDn, Home End   select a VM; the line below the table tells more of it",
                "  /             filter by a part of name, state, health or snapshot;  Esc shows all again",
                "  space         ask forkd now;  q or ^C  quit;  any key closes this page",
                "",
                "  HEALTH   ORPHAN: its pager session is gone     STUCK: a vCPU waits for a page that does not come",
                "           SPINNING: on a CPU for nothing        FAILED: forkd has given it up     -: not looked at",
                "  CPU      of all its vCPUs: 200% are two CPUs; the line beside it is its past; all lines have one scale",
                "  RUNQ     ready to run, and no CPU is free: much of it, and the host has too few",
                "  vCPUs    each one's share of a CPU; @ spins, ! is stuck",
                "  WAITS/s  waits for memory a second, and their past, in one scale, too",
                "  P50 P99  of its waits for memory;  NOW: the longest that is under way",
        };

        for (unsigned i = 0; i < ARRAY_LEN(lines) && i < cv->rows; i++)
                (void) canvas_text(cv, i, 0, cv->cols, i == 0 ? LOOK_BOLD : LOOK_PLAIN, lines[i]);
}

/* ---- together ---- */

unsigned top_draw_above(const struct top *t, struct canvas *cv, unsigned lines) {
        static void (*const draw[])(const struct top *t, struct canvas *cv, unsigned row) = { line_vms, line_probes, line_pager,
                                                                                              line_host };
        unsigned row = 0;

        if (t->notice[0])
                (void) canvas_text(cv, row++, 0, cv->cols, LOOK_REVERSE | LOOK_BAD, t->notice);
        if (!t->filled)
                return row;
        for (unsigned i = 0; i < ARRAY_LEN(draw) && row < lines; i++)
                draw[i](t, cv, row++);
        return row;
}
