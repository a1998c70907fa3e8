/* SPDX-License-Identifier: MIT */
/* The agent's state, and what its parts know of each other.
 *
 *     main.c ── agent.c ──┬── channel.c  frames over a transport
 *      options  dispatch  ├── wake.c     identity.c (entropy … machine-id), then hooks.c (resume.d)
 *                         ├── exec.c     child.c starts, session.c signals
 *                         └── file.c     put and get
 *
 * A call (exec, put, get) belongs to the conversation that began it. When that ends, by a WAKE with a new
 * epoch or because the stream was torn, files in transfer are given up, and commands are *left running as
 * orphans*: a snapshot may be restored any number of times, and what ran in it goes on in each. An orphan's
 * output is read and thrown away (a closed pipe would kill it), its stdin is at its end. */
#pragma once

#include "agent/channel.h"
#include "agent/loop.h"
#include "agent/msg.h"

/* Together below the usual limit of 1024 descriptors: a call has 5, a drained orphan 3, any other one 1. */
#define AGENT_MAX_EXECS 384   /* commands known, orphans included */
#define AGENT_MAX_DRAINED 128 /* orphans whose output is still read; beyond, the oldest's is closed */
#define AGENT_HELLO_MIN_MS 250
#define AGENT_HELLO_MAX_MS 5000

struct agent;
struct call;

/** What the dispatcher asks of a call. A NULL member is a message that this kind of call does not have. */
struct call_ops {
        void (*data)(struct call *c, const void *data, size_t len); /* of stream 0 */
        void (*eof)(struct call *c);
        void (*credit)(struct call *c, unsigned stream, uint32_t bytes);
        void (*relief)(struct call *c); /* the channel has room again */
        void (*congested)(struct call *c);
        void (*resize)(struct call *c, uint16_t rows, uint16_t cols);
        void (*signal)(struct call *c, int signo);
        void (*cancel)(struct call *c);  /* the client went away */
        void (*abandon)(struct call *c); /* the conversation is over */
};

/** Embedded in each kind of call. cancel and abandon unlink and free or orphan it. */
struct call {
        struct agent *a;
        uint32_t id;
        const struct call_ops *ops;
        uint32_t stdin_room; /* bytes of stream 0 that the host may still send */
        struct call *prev, *next;
};

struct agent_options {
        const char *transport; /* NULL: find one */
        const char *root;      /* prefix of the identity's files: "" for the real ones */
        bool set_clock;
        unsigned hooks_timeout_ms; /* for all of resume.d together */
};

struct hooks;
struct exec;

struct agent {
        struct loop loop;
        struct channel ch;
        struct agent_options opt;
        char boot_id[WIRE_BOOT_ID_MAX + 1];

        struct loop_timer hello_timer;
        unsigned hello_ms;

        bool awake; /* the wake-up of ch.epoch is complete and `ack` is its answer */
        struct wire_ack ack;
        struct hooks *hooks; /* running, or NULL */

        struct call *calls;
        unsigned n_calls;
        struct exec *orphans, *orphans_tail; /* oldest first */
        unsigned n_drained;                  /* orphans with open output */
        unsigned n_execs;

        uint8_t scratch[WIRE_DATA_MAX];
};

/** Takes the transport on success. */
int agent_init(struct agent *a, const struct agent_options *opt, struct transport *tr) attr_warn_unused;
int agent_run(struct agent *a) attr_warn_unused;
/** Frees everything; children are left to their fate. */
void agent_clear(struct agent *a);

/* ---- calls (agent.c) ---- */
void call_link(struct call *c, struct agent *a, uint32_t id, const struct call_ops *ops);
void call_unlink(struct call *c);
/** Accounts for @len bytes of stream 0 that arrived; false: more than was allowed. */
bool call_take_stdin(struct call *c, size_t len);
/** Queues messages of a call. */
void call_send_data(struct call *c, unsigned stream, const void *data, size_t len);
void call_send_eof(struct call *c, unsigned stream);
void call_send_credit(struct call *c, uint32_t bytes);
/** Answers and unlinks; the owner frees. */
void call_done(struct call *c, const struct wire_done *d);
/** A DONE that says what failed: "@fmt: strerror(@error)". */
struct wire_done call_error(int error, const char *fmt, ...) attr_printf(2, 3);
/** Refuses a call that never began. */
void agent_refuse(struct agent *a, uint32_t id, const struct wire_done *d);

/* ---- begin a call; they answer by themselves, also when it fails ---- */
void exec_begin(struct agent *a, const struct wire_msg *m);
void put_begin(struct agent *a, const struct wire_msg *m);
void get_begin(struct agent *a, const struct wire_msg *m);
/** Frees the orphans, at the agent's end. */
void exec_clear_orphans(struct agent *a);

/* ---- waking up (wake.c) ---- */
void wake_begin(struct agent *a, uint64_t epoch, const struct wire_wake *w);
void wake_clear(struct agent *a);
/** Steps 1 to 4, in their order; what fails becomes a warning in @ack. */
void identity_apply(const struct wire_wake *w, const struct agent_options *opt, struct wire_ack *ack);
void ack_warn(struct wire_ack *ack, const char *fmt, ...) attr_printf(2, 3);

/** Runs <root>/etc/forkd/resume.d/ in sorted order, then calls @done (perhaps at once). On -errno nothing
 *  runs and @done is not called. */
int hooks_start(struct agent *a, const struct wire_wake *w, uint64_t epoch, void (*done)(struct agent *a),
                struct hooks **ret) attr_warn_unused;
/** Kills what runs and forgets it, without calling done. NULL is fine. */
void hooks_abort(struct hooks *h);

/* ---- signals (session.c) ---- */
/** Sends @signo to every process of the session that @pid leads. The leader must not have been reaped, so
 *  that its number cannot be somebody else's. */
void session_signal(pid_t pid, int signo);
