/* SPDX-License-Identifier: MIT */
/* What `forkctl top` knows and how that is drawn; pure, but for the canvas. cmd_top.c asks forkd and has the terminal.
 *
 *      documents of forkd (the method `stats`) → top_update → struct top → top_draw → struct canvas
 *
 * A VM is known by its id, so that another one of the same name begins anew. What is counted only grows, within one forkd's life:
 * where it went back, or forkd itself began anew, nothing is known of that interval. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "common/ids.h"
#include "forkctl/canvas.h"

#define TOP_HISTORY 256u   /* values kept for sparklines */
#define TOP_MAX_VMS 20000u /* more are counted, not shown */
#define TOP_MAX_VCPUS 64u  /* of a VM, in its row */
#define TOP_MAX_FILTER 63u

/* How a VM does, the worst first. */
enum top_health {
        TOP_ORPHAN, /* its pager session is gone */
        TOP_STUCK,  /* a vCPU waits for memory that does not come */
        TOP_SPINNING,
        TOP_LOST, /* the VM has failed, or the health is a word that we do not know: looked at as bad */
        TOP_OK,
        TOP_UNKNOWN, /* nobody looks at it */
        TOP_N_HEALTHS,
};
const char *top_health_name(enum top_health h);

struct top_vcpu {
        float share; /* of the last window on a CPU; NaN: not known */
        bool spinning, stuck;
};

struct top_vm {
        char id[ID_LEN + 1], name[NAME_MAX_LEN + 1], state[16], why[256], snapshot[80];
        enum top_health health;
        double cpu, runqueue, memory; /* shares of the last window, over all vCPUs: 2.0 are two CPUs; NaN: not known */
        double waits_per_s;           /* NaN: not known yet */
        double p50_s, p99_s;          /* of all waits; NaN: there was none */
        double waiting_s;             /* the longest under way */
        double ended_s;               /* ago; NaN: it is there */
        uint64_t waits, mem_bytes;
        unsigned n_vcpus; /* those that it has; at most TOP_MAX_VCPUS are in @vcpu */
        struct top_vcpu vcpu[TOP_MAX_VCPUS];
        float cpu_history[TOP_HISTORY], waits_history[TOP_HISTORY];
        size_t n_history;
        bool seen; /* in the document that is read */
};

enum top_key { TOP_BY_HEALTH, TOP_BY_CPU, TOP_BY_WAITS, TOP_BY_LONGEST, TOP_BY_MEMORY, TOP_BY_NAME, TOP_N_KEYS };
const char *top_key_name(enum top_key k);
/** -EINVAL */
int top_key_parse(const char *s, enum top_key *ret) attr_warn_unused;

/** What the head of the screen tells. */
struct top_head {
        char version[40], method[24], probes_reason[256];
        bool probes_ok, kvm, pager_up;
        double uptime_s, window_s;
        unsigned cpus;
        uint64_t mem_total, mem_available;
        uint64_t starts_running, starts_waiting, vcpus_held;
        uint64_t pools, pool_warm, pool_wanted; /* how many; what waits in all of them, and shall */
        int64_t pager_pid;
        uint64_t pager_sessions, pager_images, present_bytes, budget_bytes, faults;
        double faults_per_s, pager_p50_s, pager_p99_s, oldest_fault_s; /* NaN: not known */
        uint64_t unwatched, left_out;
};

struct top {
        struct top_vm *vms;
        size_t n, cap;
        struct top_head head;
        bool filled;                                    /* a document was read */
        double last_s;                                  /* forkd's age then */
        unsigned by_state[4], by_health[TOP_N_HEALTHS]; /* running, paused, standby, all others */

        enum top_key key;
        bool reversed;
        char filter[TOP_MAX_FILTER + 1];
        char selected[ID_LEN + 1]; /* an id, or "" */
        struct top_vm **shown;     /* sorted, those that the filter lets through */
        size_t n_shown, scroll;    /* the first row on the screen */

        char notice[512]; /* forkd is not there, and why; or "" */
        bool asking;      /* a filter is being typed */
        bool help;
};

void top_init(struct top *t);
void top_clear(struct top *t);
#define cleanup_top attr_cleanup(top_clear)

/** Takes the next document. -EBADMSG: it is none; -ENOMEM. On failure the picture is still the one before. */
int top_update(struct top *t, const json_t *doc) attr_warn_unused;
/** An interval went by without a document: the sparklines have a gap there. */
void top_gap(struct top *t);
/** Sorts and filters anew. After any change of key, reversed or filter. */
void top_arrange(struct top *t);
/** Moves the selection by @by rows (INT_MIN, INT_MAX: to the first, the last). */
void top_move(struct top *t, int by);

/** Draws everything. At least @rows VMs get a row if they are there and the canvas has them: see top_rows. */
void top_draw(struct top *t, struct canvas *cv);
/** For a list instead of a screen: a row for each VM that is shown, no selection, no help line. */
unsigned top_list_rows(const struct top *t);
void top_draw_list(struct top *t, struct canvas *cv);
