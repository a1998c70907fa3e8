/* SPDX-License-Identifier: MIT */
/* The screen of `forkctl top`, from above: what is wrong with the connection (only then), up to four lines on the whole host, a
 * row for each VM, what is known of the selected one, and the keys. A small screen has fewer lines and columns: first goes what
 * one can do without longest. A VM's name and health always stay. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "forkctl/draw.h"
#include "forkctl/top.h"

#define NAME_COLS 8u
#define NAME_COLS_MAX 40u
#define NAME_COLS_SOON 20u /* as many come before columns of this rank: */
#define NAME_RANK 6u
#define SPARK_COLS 8u
#define SPARK_COLS_MAX 40u
#define WHY_COLS 20u

enum column {
        COL_MARK,
        COL_NAME,
        COL_HEALTH,
        COL_CPU,
        COL_CPU_SPARK,
        COL_VCPUS,
        COL_WAITS,
        COL_WAITS_SPARK,
        COL_P50,
        COL_P99,
        COL_NOW,
        COL_MEMORY,
        COL_STATE,
        COL_WHY,
        N_COLUMNS,
};

static const struct {
        const char *head;
        unsigned width; /* at least */
        unsigned rank;  /* the higher, the sooner it goes */
        bool right;
} columns[N_COLUMNS] = {
        [COL_MARK] = { "", 1, 0, false },
        [COL_NAME] = { "NAME", NAME_COLS, 0, false },
        [COL_HEALTH] = { "HEALTH", 8, 0, false },
        [COL_CPU] = { "CPU", 5, 1, true },
        [COL_NOW] = { "NOW", 7, 2, true },
        [COL_WAITS] = { "WAITS/s", 7, 3, true },
        [COL_CPU_SPARK] = { "", SPARK_COLS, 4, false },
        [COL_VCPUS] = { "vCPUs", 5, 5, false },
        [COL_P99] = { "P99", 7, 6, true },
        [COL_WAITS_SPARK] = { "", SPARK_COLS, 7, false },
        [COL_STATE] = { "STATE", 9, 8, false },
        [COL_MEMORY] = { "MEMORY", 8, 9, true },
        [COL_P50] = { "P50", 7, 10, true },
        [COL_WHY] = { "WHY", WHY_COLS, 11, false },
};

struct layout {
        unsigned width[N_COLUMNS]; /* 0: not shown */
        double waits_max;          /* of all sparklines of waits: they can be compared */
};

/* ---- which columns ---- */

static unsigned longest_name(const struct top *t, const struct canvas *cv) {
        unsigned n = NAME_COLS;

        for (size_t i = 0; i < t->n_shown; i++)
                n = MAX_OF(n, canvas_width(cv, t->shown[i]->name));
        return MIN_OF(n, NAME_COLS_MAX);
}

static unsigned most_vcpus(const struct top *t) {
        unsigned n = 0;

        for (size_t i = 0; i < t->n_shown; i++)
                n = MAX_OF(n, t->shown[i]->n_vcpus);
        return n;
}

static bool any_why(const struct top *t) {
        for (size_t i = 0; i < t->n_shown; i++)
                if (t->shown[i]->why[0])
                        return true;
        return false;
}

static void widen(unsigned *width, unsigned to, unsigned *room) {
        unsigned more = *width && to > *width ? MIN_OF(to - *width, *room) : 0;

        *width += more;
        *room -= more;
}

static void lay_out(const struct top *t, const struct canvas *cv, struct layout *l) {
        unsigned used = 0, room;

        memset(l, 0, sizeof(*l));
        for (unsigned rank = 0; rank < N_COLUMNS; rank++) {
                if (rank == NAME_RANK) {
                        room = used < cv->cols ? cv->cols - used : 0;
                        used += room;
                        widen(&l->width[COL_NAME], MIN_OF(longest_name(t, cv), NAME_COLS_SOON), &room);
                        used -= room;
                }
                for (unsigned c = 0; c < N_COLUMNS; c++) {
                        if (columns[c].rank != rank || (c == COL_WHY && !any_why(t)))
                                continue;
                        if (used + columns[c].width + (used > 0) > cv->cols && rank > 0)
                                goto full; /* not a narrower one of less worth instead: columns shall not dance */
                        l->width[c] = columns[c].width;
                        used += columns[c].width + (used > 0);
                }
        }
full:
        room = used < cv->cols ? cv->cols - used : 0;
        widen(&l->width[COL_NAME], longest_name(t, cv), &room);
        widen(&l->width[COL_VCPUS], MIN_OF(most_vcpus(t), 16u), &room);
        widen(&l->width[COL_WHY], 60, &room);
        if (l->width[COL_WAITS_SPARK]) {
                unsigned half = room / 2;

                widen(&l->width[COL_WAITS_SPARK], SPARK_COLS_MAX, &half);
                room -= l->width[COL_WAITS_SPARK] - SPARK_COLS;
        }
        widen(&l->width[COL_CPU_SPARK], SPARK_COLS_MAX, &room);
        widen(&l->width[COL_WHY], UINT_MAX, &room);
        for (size_t i = 0; i < t->n_shown; i++)
                for (size_t k = 0; k < t->shown[i]->n_history; k++)
                        if (t->shown[i]->waits_history[k] > l->waits_max)
                                l->waits_max = t->shown[i]->waits_history[k];
}

/* ---- rows ---- */

static void draw_vcpus(struct canvas *cv, unsigned row, unsigned col, unsigned width, unsigned look, const struct top_vm *vm) {
        unsigned n = MIN_OF(vm->n_vcpus, TOP_MAX_VCPUS), fit = vm->n_vcpus > width ? width - 1 : MIN_OF(n, width);

        for (unsigned i = 0; i < fit; i++) {
                const struct top_vcpu *v = &vm->vcpu[i];

                (void) canvas_text(cv, row, col + i, 1, look | (v->stuck || v->spinning ? LOOK_BOLD : 0u),
                                   v->stuck      ? "!"
                                   : v->spinning ? "@"
                                                 : draw_share(v->share, cv->utf8));
        }
        if (fit < vm->n_vcpus)
                (void) canvas_text(cv, row, col + fit, 1, look, "+");
}

static const char *cell_text(const struct top_vm *vm, unsigned c, bool utf8, char *buf, size_t size) {
        char text[32];

        switch (c) {
        case COL_NAME:
                return vm->name;
        case COL_HEALTH:
                return isnan(vm->ended_s) ? top_health_name(vm->health) : "ended";
        case COL_CPU:
                return draw_percent(buf, size, vm->cpu);
        case COL_WAITS:
                return draw_count(buf, size, vm->waits_per_s);
        case COL_P50:
                return draw_seconds(buf, size, vm->p50_s, utf8);
        case COL_P99:
                return draw_seconds(buf, size, vm->p99_s, utf8);
        case COL_NOW:
                return vm->waiting_s > 0 ? draw_seconds(buf, size, vm->waiting_s, utf8) : "-";
        case COL_MEMORY:
                return size_format(vm->mem_bytes, buf, size);
        case COL_STATE:
                if (isnan(vm->ended_s))
                        return vm->state;
                (void) snprintf(buf, size, "%s ago", draw_seconds(text, sizeof(text), vm->ended_s, utf8));
                return buf;
        case COL_WHY:
                return vm->why;
        default:
                return "";
        }
}

static unsigned look_of(const struct top_vm *vm) {
        if (!isnan(vm->ended_s))
                return LOOK_DIM;
        switch (vm->health) {
        case TOP_ORPHAN:
        case TOP_STUCK:
        case TOP_SPINNING:
                return LOOK_BAD | LOOK_BOLD;
        case TOP_LOST:
                return LOOK_WARN;
        case TOP_OK:
                return LOOK_PLAIN;
        default:
                return strcmp(vm->state, "running") == 0 ? LOOK_PLAIN : LOOK_DIM;
        }
}

static void draw_row(struct canvas *cv, const struct layout *l, unsigned row, const struct top_vm *vm, bool selected) {
        unsigned look = look_of(vm), col = 0;
        char text[DRAW_MAX * 4 + 8];

        for (unsigned c = 0; c < N_COLUMNS; c++) {
                unsigned w = l->width[c];

                if (w == 0)
                        continue;
                if (c == COL_MARK)
                        (void) canvas_text(cv, row, col, w, look, selected ? ">" : " ");
                else if (c == COL_VCPUS)
                        draw_vcpus(cv, row, col, w, look, vm);
                else if (c == COL_CPU_SPARK)
                        (void) canvas_text(cv, row, col, w, look,
                                           draw_spark(text, sizeof(text), vm->cpu_history, vm->n_history, w,
                                                      MAX_OF(vm->n_vcpus, 1u), cv->utf8));
                else if (c == COL_WAITS_SPARK)
                        (void) canvas_text(cv, row, col, w, look,
                                           draw_spark(text, sizeof(text), vm->waits_history, vm->n_history, w, l->waits_max,
                                                      cv->utf8));
                else if (columns[c].right)
                        canvas_right(cv, row, col, w, look, cell_text(vm, c, cv->utf8, text, sizeof(text)));
                else
                        (void) canvas_text(cv, row, col, w, look, cell_text(vm, c, cv->utf8, text, sizeof(text)));
                col += w + 1;
        }
        if (selected)
                canvas_look(cv, row, LOOK_REVERSE);
}

static void draw_heads(struct canvas *cv, const struct layout *l, unsigned row, const struct top *t) {
        static const enum column sorted_by[TOP_N_KEYS] = {
                [TOP_BY_HEALTH] = COL_HEALTH, [TOP_BY_CPU] = COL_CPU,       [TOP_BY_WAITS] = COL_WAITS,
                [TOP_BY_LONGEST] = COL_NOW,   [TOP_BY_MEMORY] = COL_MEMORY, [TOP_BY_NAME] = COL_NAME,
        };
        unsigned col = 0;

        canvas_look(cv, row, LOOK_REVERSE);
        for (unsigned c = 0; c < N_COLUMNS; c++) {
                unsigned look = LOOK_REVERSE | (sorted_by[t->key] == c ? LOOK_BOLD : 0u);

                if (l->width[c] == 0)
                        continue;
                if (columns[c].right)
                        canvas_right(cv, row, col, l->width[c], look, columns[c].head);
                else
                        (void) canvas_text(cv, row, col, l->width[c], look, columns[c].head);
                col += l->width[c] + 1;
        }
}

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

static const struct top_vm *selected_vm(const struct top *t, size_t *ret_at) {
        for (size_t i = 0; i < t->n_shown; i++)
                if (strcmp(t->shown[i]->id, t->selected) == 0) {
                        *ret_at = i;
                        return t->shown[i];
                }
        return NULL;
}

/* Of whom the line below tells when nobody is selected. */
static const struct top_vm *worst_vm(const struct top *t) {
        const struct top_vm *worst = NULL;

        for (size_t i = 0; i < t->n_shown; i++)
                if (isnan(t->shown[i]->ended_s) && t->shown[i]->health < (worst ? worst->health : TOP_OK))
                        worst = t->shown[i];
        return worst;
}

static void line_selected(const struct top_vm *vm, struct canvas *cv, unsigned row) {
        char waits[32], cpu[32], runq[32], memory[32];

        if (!vm)
                return;
        if (vm->why[0])
                canvas_printf(cv, row, 0, cv->cols, look_of(vm), "%s: %s", vm->name, vm->why);
        else
                canvas_printf(cv, row, 0, cv->cols, LOOK_PLAIN,
                              "%s: on a CPU %s, waiting for one %s, for memory %s, %s waits since it began%s%s", vm->name,
                              draw_percent(cpu, sizeof(cpu), vm->cpu), draw_percent(runq, sizeof(runq), vm->runqueue),
                              draw_percent(memory, sizeof(memory), vm->memory),
                              draw_count(waits, sizeof(waits), (double) vm->waits), vm->snapshot[0] ? ", from " : "",
                              vm->snapshot);
}

static void line_keys(const struct top *t, struct canvas *cv, unsigned row) {
        if (t->asking)
                canvas_printf(cv, row, 0, cv->cols, LOOK_BOLD, "/%s_  Enter: keep, Esc: all", t->filter);
        else
                canvas_printf(cv, row, 0, cv->cols, LOOK_DIM,
                              "q quit  / filter  sort: h c w l m n (%s%s)  r reverse  arrows select  ? help",
                              top_key_name(t->key), t->reversed ? ", reversed" : "");
}

static void draw_help(struct canvas *cv) {
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
                "  CPU      of all its vCPUs: 200% are two CPUs; the line beside it is its past, full height: all vCPUs busy",
                "  vCPUs    each one's share of a CPU; @ spins, ! is stuck",
                "  WAITS/s  waits for memory a second, and their past; all lines have one scale",
                "  P50 P99  of its waits for memory;  NOW: the longest that is under way",
        };

        for (unsigned i = 0; i < ARRAY_LEN(lines) && i < cv->rows; i++)
                (void) canvas_text(cv, i, 0, cv->cols, i == 0 ? LOOK_BOLD : LOOK_PLAIN, lines[i]);
}

/* ---- all of it ---- */

static unsigned draw_above(const struct top *t, struct canvas *cv, unsigned lines) {
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

static void keep_in_sight(struct top *t, size_t at, size_t rows) {
        if (at != SIZE_MAX && at < t->scroll)
                t->scroll = at;
        else if (at != SIZE_MAX && at >= t->scroll + rows)
                t->scroll = at - rows + 1;
        if (t->scroll + rows > t->n_shown)
                t->scroll = t->n_shown > rows ? t->n_shown - rows : 0;
}

void top_draw(struct top *t, struct canvas *cv) {
        unsigned below = cv->rows >= 10 ? 2 : cv->rows >= 4 ? 1 : 0, row, rows;
        const struct top_vm *selected;
        struct layout l;
        size_t at = SIZE_MAX;

        if (t->help) {
                draw_help(cv);
                return;
        }
        row = draw_above(t, cv, cv->rows >= 14 ? 4 : cv->rows >= 10 ? 2 : 1);
        lay_out(t, cv, &l);
        selected = selected_vm(t, &at);
        if (row + 1 < cv->rows)
                draw_heads(cv, &l, row++, t);
        rows = row + below < cv->rows ? cv->rows - row - below : 0;
        keep_in_sight(t, at, rows);
        for (size_t i = t->scroll; i < t->n_shown && i < t->scroll + rows; i++)
                draw_row(cv, &l, row + (unsigned) (i - t->scroll), t->shown[i], i == at);
        if (rows > 0 && t->filled && t->n_shown == 0)
                (void) canvas_text(cv, row, 2, cv->cols, LOOK_DIM, t->n ? "no VM matches the filter" : "no VM");
        if (below > 1)
                line_selected(selected ? selected : worst_vm(t), cv, cv->rows - 2);
        if (below > 0)
                line_keys(t, cv, cv->rows - 1);
}

unsigned top_list_rows(const struct top *t) {
        return (unsigned) MIN_OF(t->n_shown + 6, (size_t) CANVAS_MAX_ROWS);
}

void top_draw_list(struct top *t, struct canvas *cv) {
        struct layout l;
        unsigned row = draw_above(t, cv, 4);

        lay_out(t, cv, &l);
        draw_heads(cv, &l, row++, t);
        for (size_t i = 0; i < t->n_shown && row < cv->rows; i++)
                draw_row(cv, &l, row++, t->shown[i], false);
}
