/* SPDX-License-Identifier: MIT */
/* A request's way. The library calls http_on_request when its head is there, again when it has no body left, and again each time
 * that we have let it go on:
 *
 *      fresh ── checked ──▶ answering ── http_reply ──▶ answered ── sent ──▶ completed
 *                               │                           ▲
 *                               └── http_stream_begin ──▶ streaming ── http_stream_end
 *
 * A handler that does not answer at once leaves the connection suspended until it does. A stream is pulled: the library asks for
 * bytes when the client takes some, and is suspended while there are none. A client that leaves meanwhile is noticed at the next
 * bytes for it. */
#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "forkd/monitor/http_internal.h"

#define PLAIN "text/plain; charset=utf-8"
#define POLICY "Content-Security-Policy"

/* ---- responses ---- */

/* "Name: value\r\n" … */
static bool add_headers(struct MHD_Response *r, const char *headers) {
        char name[64], value[512];
        bool ok = true;

        while (ok && headers && *headers) {
                size_t n = strcspn(headers, ":"), v;

                if (headers[n] != ':' || headers[n + 1] != ' ' || n >= sizeof(name))
                        return false;
                v = strcspn(headers + n + 2, "\r");
                if (v >= sizeof(value))
                        return false;
                (void) snprintf(name, sizeof(name), "%.*s", (int) n, headers);
                (void) snprintf(value, sizeof(value), "%.*s", (int) v, headers + n + 2);
                ok = MHD_add_response_header(r, name, value) == MHD_YES;
                headers += n + 2 + v;
                headers += strspn(headers, "\r\n");
        }
        return ok;
}

static bool dress(struct MHD_Response *r, int status, const char *type, const char *headers) {
        static const char *const always[][2] = {
                { "Cache-Control", "no-store" },
                { "X-Content-Type-Options", "nosniff" },
                { "Referrer-Policy", "no-referrer" },
                { "Cross-Origin-Resource-Policy", "same-origin" },
        };
        bool ok = MHD_add_response_header(r, "Content-Type", type) == MHD_YES;

        for (size_t i = 0; i < ARRAY_LEN(always); i++)
                ok = ok && MHD_add_response_header(r, always[i][0], always[i][1]) == MHD_YES;
        if (!headers || !strstr(headers, POLICY))
                ok = ok && MHD_add_response_header(r, POLICY, "default-src 'none'; frame-ancestors 'none'") == MHD_YES;
        if (status == 405)
                ok = ok && MHD_add_response_header(r, "Allow", "GET, HEAD") == MHD_YES;
        return ok && add_headers(r, headers);
}

static void go_on(struct http_request *rq) {
        if (!rq->suspended)
                return;
        rq->suspended = false;
        MHD_resume_connection(rq->mhd);
        /* Without a socket to listen at the library's own alarm is not in its epoll set. */
        event_active(rq->c->h->timer, EV_TIMEOUT, 0);
}

/* NULL: out of memory, and the connection is closed. */
static void set_response(struct http_request *rq, struct MHD_Response *r, int status, const char *type, const char *headers) {
        if (r && !dress(r, status, type, headers)) {
                MHD_destroy_response(r);
                r = NULL;
        }
        rq->response = r;
        rq->status = status;
        go_on(rq);
}

static void reply(struct http_request *rq, int status, const char *type, const char *headers, struct MHD_Response *r) {
        rq->gone = NULL;
        rq->state = HTTP_ANSWERED;
        set_response(rq, r, status, type, headers);
}

void http_reply_take(struct http_request *rq, int status, const char *type, const char *headers, char *body, size_t len) {
        struct http *h = rq->c->h;
        struct MHD_Response *r;

        /* One is answered, however much it is, when nobody else has anything to take. */
        if (h->held > 0 && (len > HTTP_MAX_HELD || h->held > HTTP_MAX_HELD - len)) {
                free(body);
                http_fail(rq, 503, "others have asked for much and do not take it; ask again");
                return;
        }
        r = MHD_create_response_from_buffer(len, body, MHD_RESPMEM_MUST_FREE);
        if (!r)
                free(body);
        rq->held = r ? len : 0;
        h->held += rq->held;
        reply(rq, status, type, headers, r);
}

void http_reply(struct http_request *rq, int status, const char *type, const char *headers, const void *body, size_t len) {
        reply(rq, status, type, headers, MHD_create_response_from_buffer(len, (void *) body, MHD_RESPMEM_MUST_COPY));
}

void http_fail(struct http_request *rq, int status, const char *sentence) {
        char text[400];
        int n = snprintf(text, sizeof(text), "%s\n", sentence);

        http_reply(rq, status, PLAIN, NULL, text, MIN_OF((size_t) n, sizeof(text) - 1));
}

/* ---- streams ---- */

static ssize_t pull(void *arg, uint64_t pos, char *buf, size_t max) {
        struct http_request *rq = arg;

        if (evbuffer_get_length(rq->out) > 0)
                return evbuffer_remove(rq->out, buf, max);
        if (rq->state != HTTP_STREAMING)
                return MHD_CONTENT_READER_END_OF_STREAM;
        rq->suspended = true;
        MHD_suspend_connection(rq->mhd);
        return 0;
}

int http_stream_begin(struct http_request *rq, const char *type, const char *headers) {
        struct http *h = rq->c->h;

        if (h->n_streams >= HTTP_MAX_STREAMS || h->closing || !(rq->out = evbuffer_new())) {
                http_fail(rq, 503, "too many streams are under way");
                return -EBUSY;
        }
        if (rq->head) {
                reply(rq, 200, type, headers, MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT));
                return -ECANCELED;
        }
        h->n_streams++;
        rq->state = HTTP_STREAMING;
        set_response(rq, MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, HTTP_MEMORY / 4, pull, rq, NULL), 200, type,
                     headers);
        return 0;
}

size_t http_stream_pending(const struct http_request *rq) {
        return evbuffer_get_length(rq->out);
}

int http_stream_send(struct http_request *rq, const void *data, size_t len) {
        size_t pending = evbuffer_get_length(rq->out);

        if (len > HTTP_MAX_PENDING || pending > HTTP_MAX_PENDING - len || evbuffer_add(rq->out, data, len) < 0)
                return -ENOBUFS;
        go_on(rq);
        return 0;
}

static void stop_streaming(struct http_request *rq) {
        if (rq->state != HTTP_STREAMING)
                return;
        rq->c->h->n_streams--;
        rq->state = HTTP_ANSWERED;
        rq->c->since_ns = now_ns();
}

void http_stream_end(struct http_request *rq) {
        rq->gone = NULL;
        stop_streaming(rq);
        go_on(rq);
}

/* ---- requests ---- */

const char *http_query(const struct http_request *rq) {
        return rq->query;
}

void http_on_gone(struct http_request *rq, void (*fn)(void *arg), void *arg) {
        rq->gone = fn;
        rq->gone_arg = arg;
}

static enum MHD_Result count_host(void *arg, enum MHD_ValueKind kind, const char *name, const char *value) {
        unsigned *n = arg;

        *n += strcasecmp(name, "Host") == 0;
        return MHD_YES;
}

static int check(struct http_conn *c, struct MHD_Connection *mhd, const char *method, const char **ret_why) {
        struct http_headers h = {
                .method = method,
                .target = c->target,
                .host = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Host"),
                .content_length = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Content-Length"),
                .transfer_encoding = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Transfer-Encoding"),
                .site = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Sec-Fetch-Site"),
                .mode = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Sec-Fetch-Mode"),
        };

        (void) MHD_get_connection_values(mhd, MHD_HEADER_KIND, count_host, &h.n_host);
        return http_check(&h, c->h->where.kind == HTTP_TCP, ret_why);
}

static struct http_request *request_new(struct http_conn *c, struct MHD_Connection *mhd, const char *method) {
        struct http_request *rq = calloc(1, sizeof(*rq));
        char *mark;

        if (!rq)
                return NULL;
        rq->c = c;
        rq->mhd = mhd;
        rq->head = strcmp(method, "HEAD") == 0;
        (void) snprintf(rq->path, sizeof(rq->path), "%.*s", (int) HTTP_MAX_TARGET, c->target);
        mark = strchr(rq->path, '?');
        rq->query = mark ? mark + 1 : "";
        if (mark)
                *mark = '\0';
        c->rq = rq;
        c->since_ns = now_ns();
        return rq;
}

static enum MHD_Result queue(struct http_request *rq) {
        return rq->response && !rq->c->leaving ? MHD_queue_response(rq->mhd, (unsigned) rq->status, rq->response) : MHD_NO;
}

static void call_handler(struct http_request *rq) {
        const struct http *h = rq->c->h;

        rq->state = HTTP_ANSWERING;
        for (unsigned i = 0; i < h->n_routes; i++)
                if (strcmp(h->route[i].path, rq->path) == 0) {
                        h->route[i].fn(rq, h->route[i].arg);
                        return;
                }
        http_fail(rq, 404, "there is nothing of that name; /metrics and /healthz are there");
}

enum MHD_Result http_on_request(void *cls, struct MHD_Connection *mhd, const char *url, const char *method, const char *version,
                                const char *body, size_t *body_size, void **con_cls) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        struct http_conn *c = info ? info->socket_context : NULL;
        struct http_request *rq = *con_cls;
        const char *why;
        int status;

        if (!c)
                return MHD_NO;
        if (!rq) { /* its head; what it asks is answered when all of it is here, a refusal at once */
                rq = *con_cls = request_new(c, mhd, method);
                if (!rq)
                        return MHD_NO;
                status = check(c, mhd, method, &why);
                if (status == 0)
                        return MHD_YES;
                http_fail(rq, status, why);
                return queue(rq);
        }
        if (*body_size > 0) /* there was none announced */
                return MHD_NO;
        if (rq->state == HTTP_FRESH)
                call_handler(rq);
        if (rq->response || rq->state != HTTP_ANSWERING)
                return queue(rq);
        rq->suspended = true;
        MHD_suspend_connection(mhd);
        return MHD_YES;
}

void http_request_abandon(struct http_request *rq) {
        void (*gone)(void *arg) = TAKE_PTR(rq->gone);

        stop_streaming(rq);
        rq->c->leaving = true;
        if (gone)
                gone(rq->gone_arg);
        go_on(rq);
}

void http_on_completed(void *cls, struct MHD_Connection *mhd, void **con_cls, enum MHD_RequestTerminationCode how) {
        struct http_request *rq = *con_cls;

        if (!rq)
                return;
        *con_cls = NULL;
        rq->suspended = false;
        http_request_abandon(rq);
        rq->c->leaving = how != MHD_REQUEST_TERMINATED_COMPLETED_OK;
        rq->c->rq = NULL;
        rq->c->asked = true;
        rq->c->since_ns = now_ns();
        rq->c->h->held -= rq->held;
        if (rq->response)
                MHD_destroy_response(rq->response);
        if (rq->out)
                evbuffer_free(rq->out);
        free(rq);
}
