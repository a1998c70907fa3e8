/* SPDX-License-Identifier: MIT */
/* What `forkctl chain` reads: results out of files (--compare), which become a table, a page that holds no markup of theirs, and a
 * comparison; and limits (--fail-over). A first byte of '!' means limits. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "forkctl/chain/chain.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* abort, not assert: a build with NDEBUG must find things too */
static void must(bool ok) {
        if (!ok)
                abort();
}

static void as_limits(const char *text) {
        cleanup_json json_t *doc = json_pack("{s:{s:f, s:{s:f}}}", "overall", "fork_slope", 1.0, "fork_ms", "p99", 80.0),
                            *list = NULL;
        struct failover f;
        struct err e = { 0 };
        bool ok;

        if (failover_parse(text, &f, &e) < 0) {
                must(e.message[0] && strcmp(e.code, ERR_USAGE) == 0);
                return;
        }
        must(f.n >= 1 && f.n <= FAILOVER_MAX);
        for (size_t i = 0; i < f.n; i++)
                must(isfinite(f.limit[i].most) && f.limit[i].most >= 0);
        list = failover_check(&f, doc, &ok);
        must(json_array_size(list) == f.n);
}

static char *printed(int (*fn)(const json_t *, FILE *), const json_t *doc) {
        char *text;
        size_t len;
        FILE *f = open_memstream(&text, &len);

        must(f && fn(doc, f) == 0 && fclose(f) == 0);
        return text;
}

static void as_result(const uint8_t *data, size_t size) {
        cleanup_json json_t *doc = NULL, *cmp = NULL;
        cleanup_free char *table = NULL, *page = NULL, *compared = NULL;
        struct err e;

        if (chain_document_parse((const char *) data, size, "it", &doc, &e) < 0)
                return;
        table = printed(chain_table, doc);
        page = printed(chain_html, doc);
        cmp = chain_compare(doc, doc);
        must(cmp != NULL);
        compared = printed(chain_compare_table, cmp);
        for (const char *s = table; *s; s++)
                must(*s == '\n' || ((unsigned char) *s >= 0x20 && *s != 0x7f));
        for (const char *s = compared; *s; s++)
                must(*s == '\n' || ((unsigned char) *s >= 0x20 && *s != 0x7f));
        must(!strstr(page, "<script") && !strstr(page, "<img"));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        if (size > 0 && data[0] == '!') {
                cleanup_free char *text = strndup((const char *) data + 1, size - 1);

                must(text != NULL);
                as_limits(text);
        } else {
                as_result(data, size);
        }
        return 0;
}
