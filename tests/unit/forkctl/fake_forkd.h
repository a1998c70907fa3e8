/* SPDX-License-Identifier: MIT */
/* A forkd that says what a test wants it to say, and the real forkctl run against it as a child process.
 * Both sides of every conversation are on one event loop of the test, with a deadline over all of it. */
#pragma once

#include <event2/event.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/rpc.h"

#define FAKE_DEADLINE_S 30

/* Rows of the tests' tables leave out what they have not. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

struct fake;

/** Handles a request or notification that was not answered from the table. */
typedef void fake_handler(struct fake *f, struct rpc_msg *m);

/** A canned answer: @result is JSON, or @error the three parts of a refusal. */
struct answer {
        const char *method;
        const char *result;
        const char *code, *message, *hint;
        bool then_close; /* the fake hangs up after it */
};

struct fake {
        struct event_base *base;
        struct rpc_listener *listener;
        struct rpc_conn *conns[8];
        size_t n_conns;
        char dir[64], socket[96];
        const struct answer *answers; /* ends with a NULL method; may be NULL */
        fake_handler *handler;        /* may be NULL */
        void *arg;                    /* the test's own */
        char *log;                    /* "method {params}\n" of all requests, keys sorted, descriptors as "fds" */
        bool closed;                  /* a client hung up */
};

/** A new fake that listens on its own socket in a private directory. */
struct fake *fake_new(void);
void fake_free(struct fake *f);
/** Forgets the log. */
void fake_reset(struct fake *f);

/** Answers with the JSON value @json. */
void fake_reply(struct rpc_msg *m, const char *json);
void fake_reply_on(struct rpc_conn *conn, uint32_t msgid, const char *json);
/** Sends a notification with params from the JSON @json, and data as "data" if not NULL. */
void fake_notify(struct rpc_conn *conn, const char *method, const char *json, const void *data, size_t len);

/** One run of forkctl. */
struct run {
        /* in */
        const char *program; /* NULL: forkctl */
        const char *input;   /* fed to stdin; NULL: stdin is /dev/null */
        size_t input_len;
        bool keep_stdin_open;                        /* no end of file after the input */
        int tty;                                     /* fd 0, 1, 2 are this descriptor (a pty's slave), 0: pipes */
        int stdin_fd;                                /* stdin is this one; 0: see input */
        int stdout_fd;                               /* stdout is this one, not captured; 0: captured */
        bool no_reading;                             /* stdout is not read until fake_read_on */
        const char *const *env;                      /* "KEY=value", NULL-terminated; may be NULL */
        void (*on_output)(struct run *r, void *arg); /* after each piece of stdout */
        void *arg;

        /* out */
        int status;      /* exit code, or 128 + signal */
        char *out, *err; /* with a NUL behind */
        size_t out_len, err_len;

        /* under way */
        struct fake *f;
        pid_t pid;
        int pidfd, fds[3];
        struct event *ev[3], *exit_ev, *late_ev;
        size_t fed;
        bool exited, late;
};

/** Runs `forkctl @argv…` (NULL-terminated, without the program) to its end. */
void run_ctl(struct fake *f, struct run *r, const char *const *argv);
#define RUN(f, r, ...) run_ctl(f, r, (const char *const[]){ __VA_ARGS__, NULL })
/** The two halves of run_ctl, for tests that do something meanwhile. */
void run_start(struct fake *f, struct run *r, const char *const *argv);
void run_finish(struct run *r);
/** Ends r->no_reading. */
void run_read_on(struct run *r);
void run_clear(struct run *r);

/** Fails the test unless @text is exactly one JSON document; the caller's. */
json_t *one_document(const char *text);
/** The @n-th line as JSON; fails the test if it is none. NULL beyond the last line. */
json_t *json_line(const char *text, size_t n);
