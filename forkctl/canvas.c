/* SPDX-License-Identifier: MIT */
#include "forkctl/canvas.h"

#include <errno.h>
#include <langinfo.h>
#include <stdarg.h>
#include <string.h>

#define TEXT_MAX 1024

bool canvas_locale_is_utf8(void) {
        return strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}

int canvas_resize(struct canvas *cv, unsigned rows, unsigned cols) {
        struct canvas_cell *cells;

        rows = MIN_OF(MAX_OF(rows, 1u), CANVAS_MAX_ROWS);
        cols = MIN_OF(MAX_OF(cols, 1u), CANVAS_MAX_COLS);
        cells = reallocarray(cv->cells, (size_t) rows * cols, sizeof(*cells));
        if (!cells)
                return -ENOMEM;
        cv->cells = cells;
        cv->rows = rows;
        cv->cols = cols;
        for (size_t i = 0; i < (size_t) rows * cols; i++)
                cells[i] = (struct canvas_cell){ .c = L' ' };
        return 0;
}

void canvas_clear(struct canvas *cv) {
        free(cv->cells);
        cv->cells = NULL;
        cv->rows = cv->cols = 0;
}

/* ---- characters ---- */

/* The character at *s, which moves on behind it; U+FFFD for bytes that are no UTF-8. Not mbrtowc: what forkd sends is UTF-8 in
 * every locale. Overlong forms and surrogates are not told apart from others: they have no width, or one that is shown. */
static uint32_t next_char(const char **s) {
        const unsigned char *p = (const unsigned char *) *s;
        unsigned n = p[0] < 0x80 ? 1 : p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : p[0] >= 0xe0 && p[0] < 0xf0 ? 3 : p[0] >= 0xc2 ? 2 : 0;
        uint32_t c = n == 1 ? p[0] : n ? p[0] & (0xffu >> (n + 1)) : 0xfffd;

        if (p[0] >= 0xf5)
                n = 0;
        for (unsigned i = 1; i < n; i++) {
                if ((p[i] & 0xc0) != 0x80) {
                        n = 0;
                        break;
                }
                c = c << 6 | (p[i] & 0x3fu);
        }
        *s += n ? n : 1;
        return n ? c : 0xfffd;
}

/* What is shown for @c, and over how many columns: 1 or 2. */
static unsigned shown(const struct canvas *cv, uint32_t *c) {
        int w;

        if (*c < 0x80) {
                if (*c < 0x20 || *c == 0x7f)
                        *c = '?';
                return 1;
        }
        w = cv->utf8 ? wcwidth((wchar_t) *c) : -1;
        if (w < 1 || w > 2) {
                *c = '?';
                return 1;
        }
        return (unsigned) w;
}

unsigned canvas_width(const struct canvas *cv, const char *s) {
        unsigned n = 0;

        while (*s && n < CANVAS_MAX_COLS) {
                uint32_t c = next_char(&s);

                n += shown(cv, &c);
        }
        return MIN_OF(n, CANVAS_MAX_COLS);
}

static void put(struct canvas *cv, unsigned row, unsigned col, unsigned look, uint32_t c, unsigned w) {
        struct canvas_cell *cell = &cv->cells[(size_t) row * cv->cols + col];

        cell[0] = (struct canvas_cell){ .c = (wchar_t) c, .look = (uint8_t) look };
        if (w == 2)
                cell[1] = (struct canvas_cell){ .c = 0, .look = (uint8_t) look };
}

unsigned canvas_text(struct canvas *cv, unsigned row, unsigned col, unsigned width, unsigned look, const char *s) {
        unsigned n = 0;
        bool cut;

        if (row >= cv->rows || col >= cv->cols || width == 0)
                return 0;
        width = MIN_OF(width, cv->cols - col);
        cut = canvas_width(cv, s) > width;
        while (*s) {
                uint32_t c = next_char(&s);
                unsigned w = shown(cv, &c);

                if (n + w > width - cut)
                        break;
                put(cv, row, col + n, look, c, w);
                n += w;
        }
        if (!cut)
                return n;
        while (n < width) /* more than one where half a wide character would be left */
                put(cv, row, col + n++, look, cv->utf8 ? 0x2026 : '~', 1);
        return n;
}

void canvas_right(struct canvas *cv, unsigned row, unsigned col, unsigned width, unsigned look, const char *s) {
        unsigned n = MIN_OF(canvas_width(cv, s), width);

        (void) canvas_text(cv, row, col + width - n, n, look, s);
}

void canvas_printf(struct canvas *cv, unsigned row, unsigned col, unsigned width, unsigned look, const char *fmt, ...) {
        char text[TEXT_MAX];
        va_list ap;

        va_start(ap, fmt);
        (void) vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        (void) canvas_text(cv, row, col, width, look, text);
}

void canvas_look(struct canvas *cv, unsigned row, unsigned look) {
        for (unsigned i = 0; row < cv->rows && i < cv->cols; i++)
                cv->cells[(size_t) row * cv->cols + i].look |= (uint8_t) look;
}

/* ---- out ---- */

static size_t encode(uint32_t c, char out[4]) {
        if (c < 0x80) {
                out[0] = (char) c;
                return 1;
        }
        if (c < 0x800) {
                out[0] = (char) (0xc0 | c >> 6);
                out[1] = (char) (0x80 | (c & 0x3f));
                return 2;
        }
        if (c < 0x10000) {
                out[0] = (char) (0xe0 | c >> 12);
                out[1] = (char) (0x80 | (c >> 6 & 0x3f));
                out[2] = (char) (0x80 | (c & 0x3f));
                return 3;
        }
        out[0] = (char) (0xf0 | c >> 18);
        out[1] = (char) (0x80 | (c >> 12 & 0x3f));
        out[2] = (char) (0x80 | (c >> 6 & 0x3f));
        out[3] = (char) (0x80 | (c & 0x3f));
        return 4;
}

char *canvas_row(const struct canvas *cv, unsigned row, char *buf, size_t size) {
        const struct canvas_cell *cells = &cv->cells[(size_t) row * cv->cols];
        unsigned cols = row < cv->rows ? cv->cols : 0;
        size_t n = 0;

        while (cols > 0 && cells[cols - 1].c == L' ')
                cols--;
        for (unsigned i = 0; i < cols && n + 5 < size; i++)
                if (cells[i].c)
                        n += encode((uint32_t) cells[i].c, buf + n);
        buf[n] = '\0';
        return buf;
}

int canvas_print(const struct canvas *cv, FILE *f) {
        char text[CANVAS_MAX_COLS * 4 + 8];
        unsigned rows = cv->rows;

        while (rows > 0 && !*canvas_row(cv, rows - 1, text, sizeof(text)))
                rows--;
        for (unsigned i = 0; i < rows; i++)
                (void) fprintf(f, "%s\n", canvas_row(cv, i, text, sizeof(text)));
        return ferror(f) ? -EIO : 0;
}
