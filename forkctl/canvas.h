/* SPDX-License-Identifier: MIT */
/* A screen in memory: cells of one character and one look, that are then shown by a terminal, printed as lines, or looked at by a
 * test. Text that comes in loses whatever a terminal might obey: control characters, marks that turn the direction of writing,
 * and anything else without a width of its own become '?'. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <wchar.h>

#include "common/cleanup.h"

#define CANVAS_MAX_ROWS 1000u
#define CANVAS_MAX_COLS 1000u

/* Looks; the first ones can be combined. None of them is the only thing that tells something. */
#define LOOK_PLAIN 0u
#define LOOK_BOLD 1u
#define LOOK_DIM 2u
#define LOOK_REVERSE 4u
#define LOOK_GOOD 8u
#define LOOK_WARN 16u
#define LOOK_BAD 32u

struct canvas_cell {
        wchar_t c; /* 0: the right half of a wide character */
        uint8_t look;
};

struct canvas {
        unsigned rows, cols;
        bool utf8; /* the terminal shows more than ASCII */
        struct canvas_cell *cells;
};

/** Makes @cv blank, with @rows × @cols cells (at least 1, at most the maxima; its utf8 stays). -ENOMEM: it is as it was. */
int canvas_resize(struct canvas *cv, unsigned rows, unsigned cols) attr_warn_unused;
void canvas_clear(struct canvas *cv);
#define cleanup_canvas attr_cleanup(canvas_clear)

/** Puts @s (UTF-8, or what was sent as such) at @row, @col, over at most @width columns, the rest of which stays as it is. What
 *  does not fit is cut, and the last column then is '…' ('~' in ASCII). Outside of the canvas nothing happens. Returns how many
 *  columns were used. */
unsigned canvas_text(struct canvas *cv, unsigned row, unsigned col, unsigned width, unsigned look, const char *s);
/** The same, ending at the last of the @width columns. */
void canvas_right(struct canvas *cv, unsigned row, unsigned col, unsigned width, unsigned look, const char *s);
void canvas_printf(struct canvas *cv, unsigned row, unsigned col, unsigned width, unsigned look, const char *fmt, ...)
        attr_printf(6, 7);
/** Adds @look to the cells of a whole row. */
void canvas_look(struct canvas *cv, unsigned row, unsigned look);

/** How many columns canvas_text would need, at most CANVAS_MAX_COLS. */
unsigned canvas_width(const struct canvas *cv, const char *s);
/** The row as UTF-8 without blanks at its end, in @buf. Returns @buf. */
char *canvas_row(const struct canvas *cv, unsigned row, char *buf, size_t size);
/** Prints the rows up to the last one that is not blank. Returns 0 or -errno. */
int canvas_print(const struct canvas *cv, FILE *f) attr_warn_unused;

/** Does the locale (LC_CTYPE) have UTF-8? */
bool canvas_locale_is_utf8(void);
