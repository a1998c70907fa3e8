/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/page.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "forkd/daemon.h"
#include "forkd/monitor/http.h"
#include "forkd/monitor/live.h"
#include "forkd/monitor/monitor.h"
#include "forkd/monitor/stats.h"

#define PERIOD_MS 1000u

struct page {
        struct live *live;
};

static int picture(struct daemon *d, struct mp_buf *out) {
        return stats_document(d, NULL, out, NULL);
}

static void lately(struct daemon *d, struct mp_buf *out) {
        monitor_put_lately(d->monitor, out);
}

static void on_request(struct http_request *rq, void *arg) {
        char headers[600];
        int n = snprintf(headers, sizeof(headers), "Content-Security-Policy: %s\r\n", page_policy);

        if (n < 0 || (size_t) n >= sizeof(headers)) /* without its policy there is no page */
                http_fail(rq, 500, "the page's policy is too long");
        else
                http_reply(rq, 200, "text/html; charset=utf-8", headers, page_html, page_html_size);
}

int page_new(struct daemon *d, struct page **ret) {
        static const struct live_source source = { .picture = picture, .lately = lately, .period_ms = PERIOD_MS };
        struct page *p = calloc(1, sizeof(*p));
        int r;

        if (!p)
                return -ENOMEM;
        r = http_handle(d->http, "/", on_request, NULL);
        if (r == 0)
                r = live_new(d, d->http, &source, &p->live);
        if (r < 0)
                free(p);
        else
                *ret = p;
        return r;
}

void page_settle(struct page *p, int timeout_ms) {
        if (p)
                live_settle(p->live, timeout_ms);
}

void page_free(struct page *p) {
        if (!p)
                return;
        live_free(p->live);
        free(p);
}
