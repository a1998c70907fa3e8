/* SPDX-License-Identifier: MIT */
/* One timer, and one coroutine at a time that makes the picture, for a picture may have to wait for the pager's word: a turn that
 * comes while the one before it is not through is left out. The picture is made once for all listeners.
 *
 * A listener has at most one picture and the events of its turn on their way: who has not taken them all when the next turn comes is
 * left out of it, and of LIVE_MAX_BEHIND turns in a row one time too many. Its events are not lost by that: it is told what came after
 * the last one it has, as far as events.h has kept it. */
#include "forkd/monitor/live.h"

#include <errno.h>
#include <event2/event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "common/co.h"
#include "common/json.h"
#include "common/log.h"
#include "forkd/daemon.h"
#include "forkd/events.h"
#include "forkd/monitor/http.h"

#define TYPE "text/event-stream"
#define PRECISION 12 /* digits: a bucket's bound, 2^36 ns in seconds, has 11 */

struct listener {
        TAILQ_ENTRY(listener) entry;
        struct live *l;
        struct http_request *rq;
        uint64_t event; /* the number of the last one that it has */
        bool greeted;   /* it has had its first events */
        unsigned behind;
};

struct live {
        struct daemon *d;
        const struct live_source *source;
        struct event *timer;
        TAILQ_HEAD(, listener) listeners;
        unsigned n;
        uint64_t dropped;
        bool busy;            /* the coroutine is under way */
        struct co_wait *idle; /* somebody waits until it is not */
        bool closing;         /* it is to free this */
};

static void listener_free(struct listener *li) {
        struct live *l = li->l;

        TAILQ_REMOVE(&l->listeners, li, entry);
        free(li);
        if (--l->n == 0)
                (void) event_del(l->timer);
}

static void on_gone(void *arg) {
        listener_free(arg);
}

static void drop(struct listener *li) {
        struct http_request *rq = li->rq;

        listener_free(li);
        http_stream_end(rq);
}

/* One event of the stream: JSON has no newline that is none of ours, so it is one line of data. */
static char *as_event(const char *name, const json_t *j, size_t *ret_len) {
        cleanup_free char *data = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(PRECISION)) : NULL;
        char *text = NULL;
        int n;

        if (!data)
                return NULL;
        n = asprintf(&text, "event: %s\ndata: %s\n\n", name, data);
        if (n < 0)
                return NULL;
        *ret_len = (size_t) n;
        return text;
}

static json_t *parsed(const struct mp_buf *b) {
        cleanup_mp_doc struct mp_doc doc = { 0 };

        if (b->failed || mp_parse(b->sb.data, b->sb.size, &doc) < 0)
                return NULL;
        return json_from_mp(&doc.root);
}

static int send_one(struct listener *li, const char *name, const json_t *j) {
        cleanup_free char *text = NULL;
        size_t len;

        text = as_event(name, j, &len);
        return text ? http_stream_send(li->rq, text, len) : -ENOMEM;
}

static int send_lately(struct listener *li) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_json json_t *j = NULL;

        mp_buf_init(&b);
        li->l->source->lately(li->l->d, &b);
        j = parsed(&b);
        return send_one(li, "lately", j);
}

/* What has happened since its last turn; to a new listener, what happened before. */
static int send_events(struct listener *li) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_json json_t *j = NULL;
        struct events *ev = li->l->d->events;
        uint64_t newest = events_newest(ev);
        int r;

        if (li->greeted && newest == li->event)
                return 0;
        if (!li->greeted)
                li->event = newest > LIVE_EVENTS_FIRST ? newest - LIVE_EVENTS_FIRST : 0;
        mp_buf_init(&b);
        r = events_read(ev, li->event, 0, NULL, &b);
        if (r < 0)
                return r;
        j = parsed(&b);
        if (!j || json_object_set_new(j, "anew", json_boolean(!li->greeted)) < 0)
                return -ENOMEM;
        r = send_one(li, "events", j);
        if (r == 0 && !li->greeted)
                r = send_lately(li);
        if (r < 0)
                return r;
        li->event = newest;
        li->greeted = true;
        return 0;
}

/* To everybody who has taken what came before. */
static void send_all(struct live *l, const char *text, size_t len) {
        struct listener *li, *next;

        for (li = TAILQ_FIRST(&l->listeners); li; li = next) {
                int r = -EAGAIN;

                next = TAILQ_NEXT(li, entry);
                if (http_stream_pending(li->rq) == 0) {
                        r = send_events(li);
                        if (r == 0)
                                r = http_stream_send(li->rq, text, len);
                }
                if (r == 0) {
                        li->behind = 0;
                } else if (++li->behind > LIVE_MAX_BEHIND) {
                        log_info("the page: a listener that reads too slowly is hung up on");
                        l->dropped++;
                        drop(li);
                }
        }
}

/* The picture as an event; without one, why there is none. NULL: out of memory. */
static char *take_picture(struct live *l, size_t *ret_len) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_json json_t *j = NULL;
        int r;

        mp_buf_init(&b);
        r = l->source->picture(l->d, &b);
        co_sleep(0); /* hundreds of VMs are megabytes: forkd does something else between these steps */
        if (r == 0) {
                j = parsed(&b);
                co_sleep(0);
                return as_event("picture", j, ret_len);
        }
        j = json_object();
        if (!j || json_object_set_new(j, "error", json_string(strerror(-r))) < 0)
                return NULL;
        return as_event("trouble", j, ret_len);
}

static void turn(void *arg) {
        struct live *l = arg;
        cleanup_free char *text = NULL;
        size_t len;

        text = take_picture(l, &len);
        l->busy = false;
        if (l->idle)
                co_wake(TAKE_PTR(l->idle), 0);
        if (l->closing)
                free(l);
        else if (text)
                send_all(l, text, len);
}

static void begin_turn(struct live *l) {
        if (l->busy || l->n == 0)
                return;
        l->busy = true;
        if (co_start(l->d->base, turn, l) < 0)
                l->busy = false;
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
        begin_turn(arg);
}

static int greet(struct live *l, struct http_request *rq) {
        static const char hello[] = "retry: 1000\n\n";
        struct timeval period;
        cleanup_free struct listener *li = calloc(1, sizeof(*li));
        int r;

        if (!li)
                return -ENOMEM;
        period = (struct timeval){ .tv_sec = l->source->period_ms / 1000, .tv_usec = l->source->period_ms % 1000 * 1000 };
        r = http_stream_begin(rq, TYPE, NULL);
        if (r < 0)
                return 0; /* answered */
        *li = (struct listener){ .l = l, .rq = rq };
        http_on_gone(rq, on_gone, li);
        if (http_stream_send(rq, hello, strlen(hello)) < 0) {
                http_stream_end(rq);
                return 0;
        }
        TAILQ_INSERT_TAIL(&l->listeners, li, entry);
        li = NULL;
        if (l->n++ == 0)
                (void) event_add(l->timer, &period);
        return 0;
}

static void on_request(struct http_request *rq, void *arg) {
        struct live *l = arg;

        if (l->n >= LIVE_MAX_LISTENERS) {
                http_fail(rq, 503, "Too many look at the page already; /metrics and forkctl top have the same figures.");
                return;
        }
        if (greet(l, rq) < 0) {
                http_fail(rq, 503, "Out of memory.");
                return;
        }
        begin_turn(l);
}

int live_new(struct daemon *d, struct http *h, const struct live_source *source, struct live **ret) {
        struct live *l = calloc(1, sizeof(*l));

        if (!l)
                return -ENOMEM;
        *l = (struct live){ .d = d, .source = source };
        TAILQ_INIT(&l->listeners);
        l->timer = event_new(d->base, -1, EV_PERSIST, on_timer, l);
        if (!l->timer || http_handle(h, "/live", on_request, l) < 0) {
                if (l->timer)
                        event_free(l->timer);
                free(l);
                return -ENOMEM;
        }
        *ret = l;
        return 0;
}

static void drop_all(struct live *l) {
        struct listener *li;

        while ((li = TAILQ_FIRST(&l->listeners)))
                drop(li);
}

void live_settle(struct live *l, int timeout_ms) {
        struct co_wait idle = CO_WAIT_INIT;

        drop_all(l);
        if (!l->busy)
                return;
        l->idle = &idle;
        (void) co_wait(&idle, timeout_ms);
        l->idle = NULL;
}

void live_free(struct live *l) {
        if (!l)
                return;
        drop_all(l);
        event_free(l->timer);
        l->closing = true;
        if (!l->busy)
                free(l);
}

unsigned live_n_listeners(const struct live *l) {
        return l->n;
}

uint64_t live_n_dropped(const struct live *l) {
        return l->dropped;
}
