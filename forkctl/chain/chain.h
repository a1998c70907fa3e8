/* SPDX-License-Identifier: MIT */
/* `forkctl chain`: what is asked for, and what was measured.
 *
 * The result of a run is one JSON document. The table, the page and the comparison are made of that document, whether it comes from
 * this run or out of a file. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "forkctl/chain/failover.h"
#include "forkctl/chain/samples.h"
#include "forkctl/command.h"

#define CHAIN_MAX_DEPTH 512u
#define CHAIN_MAX_FANOUT 64u
#define CHAIN_MAX_ROUNDS 100u
#define CHAIN_MAX_WARMUP 100u
#define CHAIN_MIN_DIRTY (64ull << 10)
#define CHAIN_MIN_MEM (64ull << 20)
#define CHAIN_MAX_MEM (1ull << 40)
#define CHAIN_DISK_BYTES (64ull << 20) /* of the disk that a booted guest gets */
#define CHAIN_MAX_FAILURES 200u        /* told one by one; all are counted */
#define CHAIN_FORMAT "forkd-chain"
#define CHAIN_VERSION 1

struct chain_plan {
        uint64_t depth, fanout, rounds, warmup, seed;
        uint64_t dirty, mem;
        bool live; /* every guest stays alive, and is forked while it runs */
        bool no_sync, keep;
        const char *from;  /* a VM or a snapshot; NULL: a guest is booted */
        const char *accel; /* NULL: forkd's choice */
        const char *html;  /* a file; NULL: none */
        struct failover limits;
};

/** What is timed. Names are those of the JSON fields, with _ms behind. */
enum chain_step {
        STEP_STANDBY,
        STEP_PAUSE,        /* of the guest that goes on standby */
        STEP_SOURCE_PAUSE, /* of the guest that is forked while it runs */
        STEP_FORK,
        STEP_LOAD,
        STEP_ACK,
        STEP_FIRST_EXEC,
        N_STEPS,
};

struct chain_step_info {
        const char *name;  /* in JSON, before _ms */
        const char *title; /* for people */
        const char *what;  /* one sentence */
};
extern const struct chain_step_info chain_steps[N_STEPS];

/** One link: everything measured at one depth. */
struct chain_link {
        unsigned depth;
        struct samples ms[N_STEPS];
        struct samples reference[N_STEPS]; /* the same at depth 1, made anew in the same minutes; depth 1 itself has none */
        struct samples private_bytes;      /* of guest memory, a clone */
        struct samples vmm_bytes;          /* beside it, a clone; where forkd tells */
        uint64_t dirty_bytes, stored_bytes, raw_bytes;
        uint64_t held_bytes; /* --live: private memory of all guests, and what the pager has decoded for them */
        bool saved, held;    /* the three; the fourth is known */
        unsigned verified;   /* clones whose memory and disk are what they should be */
        json_t *faults;      /* {kind: n} that the pager has served meanwhile; NULL: not known */
};

struct chain_failure {
        unsigned depth; /* 0: before the first */
        const char *step;
        char reason[480];
};

struct chain_result {
        const struct chain_plan *plan;
        json_t *host;   /* owned */
        char guest[64]; /* of what: "booted", or the name of the VM or snapshot */
        double boot_ms; /* negative: none was booted */
        uint64_t mem_bytes;
        bool disk;                /* the guests have a disk of ours */
        struct chain_link base;   /* the snapshot that all begins with, depth 0 */
        struct chain_link *links; /* plan->depth of them; n_links were begun */
        unsigned n_links;
        struct chain_failure failures[CHAIN_MAX_FAILURES];
        uint64_t n_failures; /* may be more than are told */
        double total_ms;
        int signal;      /* that ended the run early; 0: none */
        bool forkd_gone; /* it went away in the middle */
};

int chain_result_init(struct chain_result *r, const struct chain_plan *plan) attr_warn_unused;
void chain_result_clear(struct chain_result *r);

/** Notes a failure with the sentence in @e. */
void chain_fail(struct chain_result *r, unsigned depth, const char *step, const struct err *e);

/** The options as a plan. -EINVAL with a usage error. */
int chain_plan_read(struct ctl *c, const struct args *a, struct chain_plan *ret) attr_warn_unused;

/** Makes the chain. Failures of single steps are in *res; the return value is 0 then. What was made is removed again, unless
 *  --keep. -errno with c->e when nothing could be begun, or forkd went away. */
int chain_run(struct ctl *c, const struct chain_plan *plan, struct chain_result *res) attr_warn_unused;

/** The document. NULL when memory is short. */
json_t *chain_document(const struct chain_result *res);

/** Reads a document from a file: at most 64 MiB, not deep, and of our format. c->e tells why not. */
int chain_document_read(struct ctl *c, const char *path, json_t **ret) attr_warn_unused;
/** The same from memory; @e tells why not. @name is for that. */
int chain_document_parse(const char *data, size_t len, const char *name, json_t **ret, struct err *e) attr_warn_unused;

/** The document for people. 0 or -errno. */
int chain_table(const json_t *doc, FILE *f) attr_warn_unused;
/** The document as one HTML page that needs nothing else. -ENOMEM, -EIO. */
int chain_html(const json_t *doc, FILE *f) attr_warn_unused;

/** How @b differs from @a: a document {"a","b","rows":[{"name","unit","a","b","ratio","low","high","n","verdict"}],"notes":[]}.
 *  NULL when memory is short. */
json_t *chain_compare(const json_t *a, const json_t *b);
int chain_compare_table(const json_t *cmp, FILE *f) attr_warn_unused;
