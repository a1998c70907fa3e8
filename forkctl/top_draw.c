/* SPDX-License-Identifier: MIT */
/* The screen of `forkctl top`, from above: what is wrong with the connection (only then), up to four lines on the whole host, a
 * row for each VM, what is known of the selected one, and the keys. A small screen has fewer lines and columns: first goes what
 * one can do without longest. A VM's name and health always stay. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "forkctl/draw.h"
#include "forkctl/top_draw.h"

#define NAME_COLS 8u
#define NAME_COLS_MAX 40u
#define NAME_COLS_SOON 20u /* as many come before columns of this rank: */
#define NAME_RANK 6u
#define CPU_SCALE 0.1 /* CPUs at least that a sparkline's height stands for */
#define SPARK_COLS 8u
#define SPARK_COLS_MAX 40u
#define WHY_COLS 20u

enum column {
        COL_MARK,
        COL_NAME,
        COL_HEALTH,
        COL_CPU,
        COL_CPU_SPARK,
        COL_RUNQUEUE,
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
        [COL_RUNQUEUE] = { "RUNQ", 5, 7, true },
        [COL_WAITS_SPARK] = { "", SPARK_COLS, 8, false },
        [COL_STATE] = { "STATE", 9, 9, false },
        [COL_MEMORY] = { "MEMORY", 8, 10, true },
        [COL_P50] = { "P50", 7, 11, true },
        [COL_WHY] = { "WHY", WHY_COLS, 12, false },
};

struct layout {
        unsigned width[N_COLUMNS]; /* 0: not shown */
        double cpu_max, waits_max; /* of all sparklines: they can be compared */
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

static double highest(const float *v, size_t n) {
        double max = 0;

        for (size_t i = 0; i < n; i++)
                if (v[i] > max)
                        max = v[i];
        return max;
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
        l->cpu_max = CPU_SCALE;
        for (size_t i = 0; i < t->n_shown; i++) {
                l->cpu_max = MAX_OF(l->cpu_max, highest(t->shown[i]->cpu_history, t->shown[i]->n_history));
                l->waits_max = MAX_OF(l->waits_max, highest(t->shown[i]->waits_history, t->shown[i]->n_history));
        }
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
        case COL_RUNQUEUE:
                return draw_percent(buf, size, vm->runqueue);
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

unsigned top_look_of(const struct top_vm *vm) {
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
        unsigned look = top_look_of(vm), col = 0;
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
                                           draw_spark(text, sizeof(text), vm->cpu_history, vm->n_history, w, l->cpu_max,
                                                      cv->utf8));
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

/* ---- all of it ---- */

static const struct top_vm *selected_vm(const struct top *t, size_t *ret_at) {
        for (size_t i = 0; i < t->n_shown; i++)
                if (strcmp(t->shown[i]->id, t->selected) == 0) {
                        *ret_at = i;
                        return t->shown[i];
                }
        return NULL;
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
                top_draw_help(cv);
                return;
        }
        row = top_draw_above(t, cv, cv->rows >= 14 ? 4 : cv->rows >= 10 ? 2 : 1);
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
                top_line_vm(t, selected, cv, cv->rows - 2);
        if (below > 0)
                top_line_keys(t, cv, cv->rows - 1);
}

unsigned top_list_rows(const struct top *t) {
        return (unsigned) MIN_OF(t->n_shown + 6, (size_t) CANVAS_MAX_ROWS);
}

void top_draw_list(struct top *t, struct canvas *cv) {
        struct layout l;
        unsigned row = top_draw_above(t, cv, 4);

        lay_out(t, cv, &l);
        draw_heads(cv, &l, row++, t);
        for (size_t i = 0; i < t->n_shown && row < cv->rows; i++) {
                if (row + 1 == cv->rows && i + 1 < t->n_shown)
                        canvas_printf(cv, row++, 2, cv->cols, LOOK_PLAIN, "%zu more: --sort has others above", t->n_shown - i);
                else
                        draw_row(cv, &l, row++, t->shown[i], false);
        }
}
