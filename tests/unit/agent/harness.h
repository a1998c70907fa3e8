/* SPDX-License-Identifier: MIT */
/* A guest without a VM: the agent as a process in namespaces of its own, and between it and forkd's side a
 * relay that behaves like QEMU's virtio-serial port: the agent's end stays open for ever, forkd's end is a
 * listening socket with one client at a time, and either direction can be cut after any byte. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "forkd/guest/guest_link.h"

#define NO_CUT UINT64_MAX

struct relay_dir {
        struct event *readable, *writable;
        int from, to;
        uint8_t buf[16384];
        size_t len;
        uint64_t passed;    /* bytes handed on */
        uint64_t cut_after; /* swallow everything from this byte on; NO_CUT: nothing */
};

struct guest {
        struct event_base *base;
        char dir[64];         /* private; DIR/root is the agent's --root */
        char socket_path[96]; /* where forkd connects */
        pid_t agent;
        int agent_fd, listen_fd, client_fd;
        struct event *accept_ev;
        unsigned n_accepted;
        struct relay_dir to_guest, from_guest;
        struct guest_link *link;
};

/** Runs @fn as a coroutine on a new base with a fresh guest, whose agent has not been talked to yet. Everything
 *  is taken down afterwards. The test fails when it takes longer than @timeout_s. */
void with_guest(void (*fn)(struct guest *g), int timeout_s);

/** Starts the agent anew on the same port, after killing it: as init would. */
void guest_restart_agent(struct guest *g);
/** Drops forkd's connection at the relay, with what it holds. */
void guest_drop_client(struct guest *g);
/** Puts bytes into the stream towards the agent, or towards forkd. */
void guest_inject(struct guest *g, bool to_guest, const void *data, size_t len);

/** A new link in place of g->link: connected, woken with @kind and acknowledged. Returns wait_ack's result. */
int guest_wake(struct guest *g, enum wire_wake_kind kind, struct guest_ack *ret);
/** The same in two steps, the second without an assertion. */
void guest_new_link(struct guest *g);
void guest_identity_fill(struct guest_identity *id, enum wire_wake_kind kind);
/** VmHWM or VmRSS of the agent, KiB. */
long guest_agent_kib(struct guest *g, const char *field);

/** A command and everything it said. */
struct run {
        struct guest_call *call;
        struct guest_result res;
        uint8_t *out[WIRE_N_STREAMS];
        size_t len[WIRE_N_STREAMS], total[WIRE_N_STREAMS];
        uint64_t file_size;
        struct co_wait *wait; /* woken by anything that happens */
        uint32_t file_mode;
        uint32_t send_credit;
        bool eof[WIRE_N_STREAMS];
        bool done;
        bool hold;    /* do not give credit back */
        bool discard; /* count only */
};
extern const struct guest_call_handlers run_handlers;

void run_start(struct guest *g, struct run *r, const struct guest_exec_params *p);
/** Waits for whatever happens next to @r, at most 20 s. */
void run_wait_event(struct run *r);
void run_wait(struct run *r);
void run_clear(struct run *r);
#define cleanup_run attr_cleanup(run_clear)
/** sh -c @script to its end. */
void run_sh(struct guest *g, struct run *r, const char *script);
/** guest_call_send, with the credit counted. */
int run_send(struct run *r, const void *data, size_t len);
/** Sends @len bytes on stream 0 as credit allows, then eof. */
void run_send_all(struct run *r, const void *data, size_t len);

/** Output as a string. */
const char *run_text(struct run *r, unsigned stream);
