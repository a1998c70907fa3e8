/* SPDX-License-Identifier: MIT */
/* Labels of Prometheus' text format: whatever a name is, a sample stays one line, quotes are balanced, and every byte is of a UTF-8
 * character. The input is two values, with a NUL between them. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "forkd/monitor/expo.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* abort, not assert: a build with NDEBUG must find things too */
static void must(int ok) {
        if (!ok)
                abort();
}

/* Decodes by the book: the code point of each character tells whether it was as short as it can be. */
static void check_utf8(const unsigned char *s, size_t len) {
        for (size_t i = 0; i < len;) {
                size_t n = s[i] < 0x80 ? 1 : s[i] >= 0xf0 ? 4 : s[i] >= 0xe0 ? 3 : 2;
                uint32_t v = n == 1 ? s[i] : s[i] & (0x7fu >> n);

                must(s[i] < 0x80 || (s[i] >= 0xc2 && s[i] <= 0xf4));
                must(i + n <= len);
                for (size_t k = 1; k < n; k++) {
                        must((s[i + k] & 0xc0) == 0x80);
                        v = v << 6 | (s[i + k] & 0x3fu);
                }
                must(n < 2 || v >= 0x80);
                must(n < 3 || v >= 0x800);
                must(n < 4 || v >= 0x10000);
                must(v <= 0x10ffff && (v < 0xd800 || v > 0xdfff));
                i += n;
        }
}

/* name="value",name="value" */
static void check_labels(const struct expo_labels *l) {
        bool quoted = false;

        must(l->len <= sizeof(l->text));
        for (size_t i = 0; i < l->len; i++) {
                must(l->text[i] != '\n' && l->text[i] != '\0');
                if (quoted && l->text[i] == '\\') {
                        i++;
                        must(i < l->len && strchr("\\\"n", l->text[i]));
                } else if (l->text[i] == '"') {
                        quoted = !quoted;
                } else if (!quoted) {
                        must(l->text[i] == '=' || l->text[i] == ',' || (l->text[i] >= 'a' && l->text[i] <= 'z'));
                }
        }
        must(!quoted);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        char *text = malloc(size + 2);
        struct expo_labels l = { 0 };
        struct expo x = { 0 };

        must(text != NULL);
        if (size > 0)
                memcpy(text, data, size);
        text[size] = text[size + 1] = '\0';
        expo_label(&l, "a", text);
        check_labels(&l);
        expo_label(&l, "b", text + strlen(text) + 1);
        check_labels(&l);
        check_utf8((const unsigned char *) l.text, l.len);
        expo_family(&x, "n", "gauge", "Any.");
        expo_u64(&x, &l, size);
        must(!x.failed && x.text[x.len - 1] == '\n');
        for (size_t i = 0, lines = 0; i < x.len; i++) {
                lines += x.text[i] == '\n';
                must(lines <= 3);
        }
        expo_clear(&x);
        free(text);
        return 0;
}
