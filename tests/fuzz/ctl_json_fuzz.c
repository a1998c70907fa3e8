/* SPDX-License-Identifier: MIT */
/* What forkctl makes of an answer: any MessagePack becomes JSON that can be read again, text that holds no control
 * characters, and a screen of `top`, if it is a document of `stats`; any output of a guest becomes a line of JSON that holds all of it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "common/utf8.h"
#include "forkctl/table.h"
#include "forkctl/top.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* abort, not assert: a build with NDEBUG must find things too */
static void must(bool ok) {
        if (!ok)
                abort();
}

static void as_document(const json_t *j) {
        cleanup_canvas struct canvas cv = { .utf8 = true };
        cleanup_top struct top t;

        top_init(&t);
        /* twice: rows that are known, and times that stand still */
        if (top_update(&t, j) < 0 || top_update(&t, j) < 0)
                return;
        must(canvas_resize(&cv, 24, 120) == 0);
        top_draw(&t, &cv);
        for (size_t i = 0; i < (size_t) cv.rows * cv.cols; i++)
                must(cv.cells[i].c == 0 || (cv.cells[i].c >= 0x20 && (cv.cells[i].c < 0x7f || cv.cells[i].c > 0x9f)));
}

static void as_answer(const uint8_t *data, size_t size) {
        cleanup_mp_doc struct mp_doc doc = { 0 };
        cleanup_json json_t *j = NULL, *again = NULL;
        cleanup_free char *text = NULL, *people = NULL;
        size_t len;
        FILE *f;

        if (mp_parse(data, size, &doc) < 0)
                return;
        j = json_from_mp(&doc.root);
        must(j != NULL);
        text = json_dumps(j, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
        must(text != NULL);
        again = json_loads(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        must(again != NULL);
        as_document(j);
        f = open_memstream(&people, &len);
        must(f && print_fields(j, f) == 0 && fclose(f) == 0);
        for (size_t i = 0; i < len; i++)
                must(people[i] == '\n' || ((unsigned char) people[i] >= 0x20 && people[i] != 0x7f));
}

static void as_output(const char *data, size_t size) {
        cleanup_json json_t *line = json_object();
        cleanup_free char *text = NULL;
        size_t whole = utf8_whole(data, size);
        char safe[64];

        must(whole <= size && size - whole <= 3);
        must(!utf8_valid(data, size) || whole == size);
        must(json_set_bytes(line, "data", data, size) == 0 && json_object_size(line) == 1);
        if (json_object_get(line, "data"))
                must(json_string_length(json_object_get(line, "data")) == size);
        text = json_dumps(line, JSON_COMPACT);
        must(text && !strchr(text, '\n'));
        text[strlen(text) - 1] = '\0'; /* any string will do */
        must(strlen(text_safe(text, safe, sizeof(safe))) < sizeof(safe));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        as_answer(data, size);
        as_output((const char *) data, size);
        return 0;
}
