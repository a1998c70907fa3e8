/* SPDX-License-Identifier: MIT */
/* QMP, QEMU's control protocol: JSON objects, one a line, on a unix stream socket.
 *
 * Calls belong to coroutines (common/co.h), carry ids and have deadlines; several may be under way, and
 * QEMU answers them in order. Events are dispatched to one handler and to whoever watches for them; a watch
 * is set before the command whose effect it waits for, so that no event is lost. Nothing is polled.
 *
 * QEMU is not trusted: a guest may have taken it over. A line has a maximum, nesting has a maximum, and
 * whatever is not QMP ends the connection with an error that says so; all calls then fail with it. */
#pragma once

#include <event2/event.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "common/co.h"
#include "common/err.h"

#define QMP_MAX_LINE (1u << 20)   /* bytes of one message; query-qmp-schema, which we never ask for, has 200 KiB */
#define QMP_MAX_DEPTH 32u         /* nesting of a message */
#define QMP_MAX_QUEUED (1u << 20) /* bytes that QEMU has not read yet */

/* ---- one line (qmp_parse.c) ---- */

enum qmp_kind { QMP_GREETING, QMP_RETURN, QMP_ERROR, QMP_EVENT };

/** A parsed line. All pointers are into @root. */
struct qmp_msg {
        json_t *root;
        enum qmp_kind kind;
        bool has_id; /* of a return or an error */
        uint64_t id;
        json_t *value;     /* what a return brings; an event's data, NULL if it has none */
        const char *event; /* its name */
        const char *desc;  /* of an error */
};

/** Parses one line without its newline. -EBADMSG with the reason in *ret_why, -ENOMEM. */
int qmp_parse(const char *line, size_t len, struct qmp_msg *ret, const char **ret_why) attr_warn_unused;
void qmp_msg_clear(struct qmp_msg *m);

/** Copies @s for a message to people: what does not print becomes '?'. Returns @buf. */
char *qmp_printable(const char *s, size_t len, char *buf, size_t size);

static inline void cleanup_jsonp(json_t **j) {
        json_decref(*j);
}
#define cleanup_json attr_cleanup(cleanup_jsonp)

/* ---- a connection (qmp.c) ---- */

struct qmp;

/** Both may be NULL, and may call qmp_free. */
struct qmp_handlers {
        /** Every event, before those who watch for it are woken. @data may be NULL. */
        void (*on_event)(const char *name, const json_t *data, void *arg);
        /** The connection is gone: QEMU hung up, or broke the protocol. Called once, after every call and
         *  watch has failed; not for qmp_close. */
        void (*on_close)(void *arg);
};

/** Takes @fd (made non-blocking), which is or will be connected to a QMP server. */
int qmp_new(struct event_base *base, int fd, const struct qmp_handlers *handlers, void *arg, struct qmp **ret) attr_warn_unused;
/** Waits for the greeting and leaves negotiation mode. */
int qmp_handshake(struct qmp *q, int timeout_ms, struct err *e) attr_warn_unused;
bool qmp_is_open(const struct qmp *q);
/** Handles everything that has arrived by now, the end included. */
void qmp_drain(struct qmp *q);
/** Ends the connection: what is under way fails with @r and the reason. */
void qmp_close(struct qmp *q, int r, const char *why);
/** Nobody may wait on it any more. NULL is fine. */
void qmp_free(struct qmp *q);

/** A command under way; lives on its coroutine's stack. */
struct qmp_call {
        TAILQ_ENTRY(qmp_call) entry;
        uint64_t id;
        struct co_wait wait;
        json_t *result;
        struct err e;
};

/** Sends @command with @args (taken, also on failure; NULL: none) and descriptor @fd (-1: none; stays the
 *  caller's). On success qmp_finish must follow, on failure it must not. */
int qmp_begin(struct qmp *q, struct qmp_call *c, const char *command, json_t *args, int fd, struct err *e) attr_warn_unused;
/** Waits for the answer. *ret_result (may be NULL) owns it. -ETIMEDOUT: an answer that comes later is
 *  dropped. -EREMOTEIO: QEMU refused, with its sentence in @e. -EPIPE: QEMU hung up. -EBADMSG: no QMP. */
int qmp_finish(struct qmp *q, struct qmp_call *c, int timeout_ms, json_t **ret_result, struct err *e) attr_warn_unused;
/** Both at once. */
int qmp_call(struct qmp *q, const char *command, json_t *args, int timeout_ms, json_t **ret_result,
             struct err *e) attr_warn_unused;

/** Waits for the first event @event whose data @match accepts (NULL: any); on its coroutine's stack. */
struct qmp_watch {
        TAILQ_ENTRY(qmp_watch) entry;
        struct qmp *q;
        const char *event;
        bool (*match)(const json_t *data);
        struct co_wait wait;
        json_t *data;
        struct err e;
        bool active;
};

void qmp_watch_begin(struct qmp *q, struct qmp_watch *w, const char *event, bool (*match)(const json_t *data));
/** 0 and the event's data (owned by the caller, may be NULL), or errors as qmp_finish. */
int qmp_watch_wait(struct qmp_watch *w, int timeout_ms, json_t **ret_data, struct err *e) attr_warn_unused;
/** To be called in any case, for a watch that was begun or is all zeros. */
void qmp_watch_end(struct qmp_watch *w);
#define cleanup_qmp_watch attr_cleanup(qmp_watch_end)
