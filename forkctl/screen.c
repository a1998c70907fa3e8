/* SPDX-License-Identifier: MIT */
#define NCURSES_WIDECHAR 1

#include "forkctl/screen.h"

#include <errno.h>
#include <ncurses.h>
#include <string.h>

#include "forkctl/tty.h"

#define ESC_WAIT_MS 25 /* how long a lone ESC may be the beginning of a key */

enum { PAIR_GOOD = 1, PAIR_WARN, PAIR_BAD };

struct screen {
        SCREEN *s;
        bool colours;
};

bool screen_is_possible(void) {
        const char *term = getenv("TERM");

        return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && term && *term && strcmp(term, "dumb") != 0;
}

static bool start_colours(void) {
        const char *no = getenv("NO_COLOR");

        if ((no && *no) || !has_colors() || start_color() == ERR)
                return false;
        (void) use_default_colors();
        return init_pair(PAIR_GOOD, COLOR_GREEN, -1) != ERR && init_pair(PAIR_WARN, COLOR_YELLOW, -1) != ERR &&
               init_pair(PAIR_BAD, COLOR_RED, -1) != ERR;
}

int screen_open(struct screen **ret) {
        struct screen *s = calloc(1, sizeof(*s));

        if (!s)
                return -ENOMEM;
        s->s = newterm(NULL, stdout, stdin);
        if (!s->s) {
                free(s);
                return -ENOTTY;
        }
        (void) set_term(s->s);
        (void) cbreak();
        (void) noecho();
        (void) nonl();
        (void) keypad(stdscr, TRUE);
        (void) nodelay(stdscr, TRUE);
        (void) set_escdelay(ESC_WAIT_MS);
        (void) curs_set(0);
        s->colours = start_colours();
        *ret = s;
        return 0;
}

void screen_close(struct screen *s) {
        if (!s)
                return;
        (void) endwin();
        delscreen(s->s);
        free(s);
}

void screen_size(struct screen *s, unsigned *ret_rows, unsigned *ret_cols) {
        unsigned rows, cols;

        if (tty_size(&rows, &cols) == 0 && ((int) rows != LINES || (int) cols != COLS))
                (void) resizeterm((int) MIN_OF(rows, CANVAS_MAX_ROWS), (int) MIN_OF(cols, CANVAS_MAX_COLS));
        *ret_rows = (unsigned) LINES;
        *ret_cols = (unsigned) COLS;
}

static attr_t attributes(const struct screen *s, unsigned look, short *ret_pair) {
        *ret_pair = !s->colours        ? 0
                    : look & LOOK_BAD  ? PAIR_BAD
                    : look & LOOK_WARN ? PAIR_WARN
                    : look & LOOK_GOOD ? PAIR_GOOD
                                       : 0;
        return (look & LOOK_BOLD ? A_BOLD : A_NORMAL) | (look & LOOK_DIM ? A_DIM : A_NORMAL) |
               (look & LOOK_REVERSE ? A_REVERSE : A_NORMAL);
}

/* Cells of one look at a time. */
static void show_row(struct screen *s, const struct canvas *cv, unsigned row) {
        const struct canvas_cell *cells = &cv->cells[(size_t) row * cv->cols];
        wchar_t run[CANVAS_MAX_COLS + 1];

        for (unsigned i = 0; i < cv->cols;) {
                unsigned look = cells[i].look, from = i;
                size_t n = 0;
                short pair;
                attr_t a;

                for (; i < cv->cols && cells[i].look == look; i++)
                        if (cells[i].c)
                                run[n++] = cells[i].c;
                a = attributes(s, look, &pair);
                (void) attr_set(a, pair, NULL);
                (void) mvaddnwstr((int) row, (int) from, run, (int) n);
        }
}

void screen_show(struct screen *s, const struct canvas *cv) {
        (void) erase();
        for (unsigned i = 0; i < cv->rows; i++)
                show_row(s, cv, i);
        (void) attr_set(A_NORMAL, 0, NULL);
        (void) refresh();
}

int screen_key(struct screen *s) {
        int c = getch();

        switch (c) {
        case ERR:
                return KEY_NO_MORE;
        case KEY_UP:
                return KEY_UP_ONE;
        case KEY_DOWN:
                return KEY_DOWN_ONE;
        case KEY_PPAGE:
                return KEY_PAGE_UP;
        case KEY_NPAGE:
                return KEY_PAGE_DOWN;
        case KEY_HOME:
                return KEY_FIRST;
        case KEY_END:
                return KEY_LAST;
        case KEY_BACKSPACE:
        case 0x7f:
        case 0x08:
                return KEY_ERASE;
        case 0x1b:
                return KEY_ESC;
        default:
                return c > 0 && c < 0x7f ? c : KEY_OTHER;
        }
}
