/* SPDX-License-Identifier: MIT */
#include "forkctl/table.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include "common/ids.h"
#include "common/json.h"
#include "common/utf8.h"

#define CELL_MAX 1024
#define SECTION_FROM 4 /* a nested map of more fields becomes a section */

/* Columns on the screen: characters, not bytes. Good enough for names and numbers. */
static size_t width(const char *s) {
        size_t n = 0;

        for (; *s; s++)
                n += ((unsigned char) *s & 0xc0) != 0x80;
        return n;
}

/* Length of a character at @s that is not shown but changes what is: the C1 controls (U+0080 … U+009F), marks of the direction of
 * writing and what has no width (U+200B … U+200F, U+2028 … U+202E, U+2066 … U+2069, U+FEFF); 0: it is none. */
static size_t unseen(const char *s) {
        const unsigned char *p = (const unsigned char *) s;

        if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f)
                return 2;
        if (p[0] == 0xe2 && p[1] == 0x80 && ((p[2] >= 0x8b && p[2] <= 0x8f) || (p[2] >= 0xa8 && p[2] <= 0xae)))
                return 3;
        if (p[0] == 0xe2 && p[1] == 0x81 && p[2] >= 0xa6 && p[2] <= 0xa9)
                return 3;
        return p[0] == 0xef && p[1] == 0xbb && p[2] == 0xbf ? 3 : 0;
}

/* ESC and its kin would let a guest write on the user's terminal. */
char *text_safe(const char *s, char *buf, size_t size) {
        size_t n = 0, whole;

        for (; *s && n + 1 < size; s++) {
                unsigned char c = (unsigned char) *s;
                size_t len = unseen(s);

                buf[n++] = (char) (len > 0 || c < 0x20 || c == 0x7f ? '?' : c);
                s += len > 0 ? len - 1 : 0;
        }
        whole = utf8_whole(buf, n);
        buf[*s ? whole : n] = '\0';
        return buf;
}

char *text_ms(double ms, char *buf, size_t size) {
        if (ms < 0)
                (void) snprintf(buf, size, "-");
        else if (ms < 10)
                (void) snprintf(buf, size, "%.1f ms", ms);
        else if (ms < 1000)
                (void) snprintf(buf, size, "%.0f ms", ms);
        else
                (void) snprintf(buf, size, "%.2f s", ms / 1000);
        return buf;
}

char *text_size(const json_t *map, const char *key, char *buf, size_t size) {
        const json_t *v = json_object_get(map, key);

        if (json_is_number(v) && json_number_value(v) >= 0 && json_number_value(v) < 1e19)
                return size_format((uint64_t) json_number_value(v), buf, size);
        (void) snprintf(buf, size, "-");
        return buf;
}

char *text_time(const json_t *v, char *buf, size_t size) {
        double n = json_number_value(v);
        struct tm tm;
        time_t t;

        if (json_is_string(v))
                return text_safe(json_string_value(v), buf, size);
        if (n > 1e17)
                n /= 1e9;
        else if (n > 1e11)
                n /= 1e3;
        t = n > 0 && n < 1e12 ? (time_t) n : 0; /* a number beyond time_t must not even be converted */
        if (t == 0 || !localtime_r(&t, &tm) || strftime(buf, size, "%Y-%m-%d %H:%M:%S", &tm) == 0)
                (void) snprintf(buf, size, "-");
        return buf;
}

/* ---- tables ---- */

void table_init(struct table *t, const char *const *head, size_t n_columns) {
        *t = (struct table){ .n_columns = n_columns };
        memcpy(t->head, head, n_columns * sizeof(*head));
}

void table_clear(struct table *t) {
        for (size_t i = 0; i < t->n_cells; i++)
                free(t->cells[i]);
        free(t->cells);
        *t = (struct table){ 0 };
}

void table_cell(struct table *t, const char *fmt, ...) {
        char raw[CELL_MAX], safe[CELL_MAX];
        va_list ap;
        char *s;

        va_start(ap, fmt);
        (void) vsnprintf(raw, sizeof(raw), fmt, ap);
        va_end(ap);
        if (t->n_cells == t->cap) {
                size_t cap = t->cap ? t->cap * 2 : 64;
                char **p = reallocarray(t->cells, cap, sizeof(*p));

                if (!p) {
                        t->failed = -ENOMEM;
                        return;
                }
                t->cells = p;
                t->cap = cap;
        }
        s = strdup(text_safe(raw, safe, sizeof(safe)));
        if (s)
                t->cells[t->n_cells++] = s;
        else
                t->failed = -ENOMEM;
}

static void print_padded(FILE *f, const char *s, size_t to, bool right, bool last) {
        size_t pad = to - width(s);

        if (right)
                (void) fprintf(f, "%*s%s", (int) pad, "", s);
        else if (last)
                (void) fputs(s, f);
        else
                (void) fprintf(f, "%s%*s", s, (int) pad, "");
        if (!last)
                (void) fputs("  ", f);
}

int table_print(const struct table *t, FILE *f) {
        size_t w[TABLE_MAX_COLUMNS] = { 0 }, last = 0, rows = t->n_cells / t->n_columns;

        if (t->failed)
                return t->failed;
        for (size_t i = 0; i < rows * t->n_columns; i++)
                w[i % t->n_columns] = MAX_OF(w[i % t->n_columns], width(t->cells[i]));
        for (size_t c = 0; c < t->n_columns; c++) {
                if (w[c] == 0 && rows > 0)
                        continue;
                w[c] = MAX_OF(w[c], strlen(t->head[c]) - (t->head[c][0] == '>'));
                last = c;
        }
        for (size_t row = 0; row <= rows; row++) {
                for (size_t c = 0; c <= last; c++) {
                        bool right = t->head[c][0] == '>';

                        if (w[c])
                                print_padded(f, row ? t->cells[(row - 1) * t->n_columns + c] : t->head[c] + right, w[c], right,
                                             c == last);
                }
                (void) fputc('\n', f);
        }
        return ferror(f) ? -EIO : 0;
}

/* ---- any map ---- */

static bool ends_with(const char *s, const char *end) {
        size_t n = strlen(s), m = strlen(end);

        return n >= m && strcmp(s + n - m, end) == 0;
}

static void value_text(const char *key, const json_t *v, char *buf, size_t size) {
        cleanup_free char *dump = NULL;
        char raw[CELL_MAX];

        if (json_is_null(v) || (json_is_string(v) && !*json_string_value(v)))
                (void) snprintf(buf, size, "-");
        else if (json_is_string(v))
                (void) text_safe(json_string_value(v), buf, size);
        else if (json_is_boolean(v))
                (void) snprintf(buf, size, "%s", json_is_true(v) ? "yes" : "no");
        else if (json_is_number(v) && json_number_value(v) >= 0 && json_number_value(v) < 1e19 && ends_with(key, "_bytes"))
                (void) size_format((uint64_t) json_number_value(v), buf, size);
        else if (json_is_number(v) && ends_with(key, "_ms"))
                (void) text_ms(json_number_value(v), buf, size);
        else if (json_is_number(v) && (strcmp(key, "created") == 0 || ends_with(key, "_at")))
                (void) text_time(v, buf, size);
        else {
                dump = json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
                (void) snprintf(raw, sizeof(raw), "%s", dump ? dump : "?");
                (void) text_safe(raw, buf, size);
        }
}

/* {"zero": 1, "stored": 2} as "zero 1, stored 2"; what nests deeper, as JSON. */
static void map_text(const json_t *map, char *buf, size_t size) {
        const char *key;
        json_t *v;
        size_t n = 0;

        buf[0] = '\0';
        json_object_foreach ((json_t *) map, key, v) {
                char text[256], name[64];

                value_text(key, v, text, sizeof(text));
                n += (size_t) snprintf(buf + n, size - n, "%s%s %s", n ? ", " : "", text_safe(key, name, sizeof(name)), text);
                if (n >= size)
                        break;
        }
        if (!buf[0])
                (void) snprintf(buf, size, "-");
}

static void any_text(const char *key, const json_t *v, char *buf, size_t size) {
        if (json_is_object(v))
                map_text(v, buf, size);
        else if (json_is_array(v) && json_array_size(v) == 0)
                (void) snprintf(buf, size, "-");
        else
                value_text(key, v, buf, size);
}

static bool is_list_of_maps(const json_t *v) {
        return json_is_array(v) && json_is_object(json_array_get(v, 0));
}

/* What does not fit into one line gets lines of its own, below the others. */
static bool is_section(const json_t *v) {
        return is_list_of_maps(v) || json_object_size(v) > SECTION_FROM;
}

/* The columns are the fields of the first row. */
static int print_rows(const json_t *list, FILE *f) {
        cleanup_table struct table t = { 0 };
        const char *keys[TABLE_MAX_COLUMNS], *head[TABLE_MAX_COLUMNS], *key;
        char names[TABLE_MAX_COLUMNS][64];
        char text[CELL_MAX];
        json_t *v, *row;
        size_t n = 0, i;

        json_object_foreach (json_array_get(list, 0), key, v)
                if (n < TABLE_MAX_COLUMNS) {
                        head[n] = text_safe(key, names[n], sizeof(names[n]));
                        keys[n++] = key;
                }
        if (n == 0)
                return 0;
        table_init(&t, head, n);
        json_array_foreach ((json_t *) list, i, row)
                for (size_t c = 0; c < n; c++) {
                        v = json_object_get(row, keys[c]);
                        any_text(keys[c], v, text, sizeof(text));
                        table_cell(&t, "%s", v ? text : "");
                }
        return table_print(&t, f);
}

/* The fields that are no sections. */
static void print_lines(const json_t *map, const char *indent, FILE *f) {
        char text[CELL_MAX], name[64];
        const char *key;
        size_t w = 0;
        json_t *v;

        json_object_foreach ((json_t *) map, key, v)
                w = is_list_of_maps(v) ? w : MAX_OF(w, MIN_OF(width(key), sizeof(name) - 1));
        json_object_foreach ((json_t *) map, key, v) {
                if (*indent ? is_list_of_maps(v) : is_section(v))
                        continue;
                any_text(key, v, text, sizeof(text));
                (void) text_safe(key, name, sizeof(name));
                (void) fprintf(f, "%s%s%*s  %s\n", indent, name, (int) (w - MIN_OF(w, width(name))), "", text);
        }
}

int print_fields(const json_t *map, FILE *f) {
        const char *key;
        char name[64];
        json_t *v;
        int r = 0;

        print_lines(map, "", f);
        json_object_foreach ((json_t *) map, key, v) {
                if (!is_section(v))
                        continue;
                (void) fprintf(f, "\n%s:\n", text_safe(key, name, sizeof(name)));
                if (json_is_object(v))
                        print_lines(v, "  ", f);
                else if ((r = print_rows(v, f)) < 0)
                        return r;
        }
        return ferror(f) ? -EIO : 0;
}
