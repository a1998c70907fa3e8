/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * A link has a *source*, a running clone of the link before, which holds what all links before have written (content.h).
 *
 *     standby  the source writes, goes on standby, and its snapshot is forked `fanout` times, one after the other
 *     --live   the source writes and is forked while it runs, `fanout` times, each time after it has written again; it stays alive
 *
 * Every clone runs a first command and is then verified; all but the last overwrite a part of what they hold, which none that is
 * forked later may see. The last one is the next link's source.
 *
 * Beside it runs the *reference*: a clone of the base, with which the same is done as a link of depth 1. Whatever the depth costs
 * shows as the difference between the two, because both were measured in the same minutes, in turn, and each of them first every
 * other time. A host that becomes slower or busier on the way slows both. Depth 1 is its own reference.
 *
 * A step that fails is noted, and the chain goes on from the last snapshot that there is; after GIVE_UP links in which nothing
 * succeeded it ends. */
#include <string.h>

#include "common/json.h"
#include "forkctl/chain/guest.h"
#include "forkctl/chain/run.h"

#define GIVE_UP 3

/* One of the two, source or reference, and what of it is under way. */
struct side {
        struct chain_link *link;
        struct samples *ms;        /* where its times go */
        bool chain;                /* the source; else the reference */
        char vm[NAME_MAX_LEN + 1]; /* runs; empty: it failed, or is on standby */
        id_str snapshot;           /* of its standby */
        struct content content;
};

/* Fresh from @snapshot, not measured. */
static bool side_begin(struct run *x, struct side *s, const char *snapshot) {
        char name[NAME_MAX_LEN + 1];

        run_name(x, s->link->depth, name);
        if (run_fork(x, snapshot, name, NULL) < 0) {
                run_fail(x, s->link->depth, s->chain ? "source" : "reference");
                return false;
        }
        memcpy(s->vm, name, sizeof(name));
        return true;
}

static bool side_dirty(struct run *x, struct side *s) {
        if (!s->vm[0])
                return false;
        if (guest_dirty(x->c, s->vm, &s->content, (unsigned) (x->writer % UINT32_MAX), x->writer) == 0)
                return true;
        run_fail(x, s->link->depth, "dirty");
        run_rm_vm(x, s->link->depth, s->vm);
        s->vm[0] = '\0';
        return false;
}

static void side_standby(struct run *x, struct side *s) {
        if (!side_dirty(x, s))
                return;
        /* of several rounds the last one's sizes count: its snapshot is the one that stays */
        if (s->chain)
                s->link->dirty_bytes = s->link->stored_bytes = s->link->raw_bytes = 0;
        if (run_standby(x, s->vm, s->ms, s->chain ? s->link : NULL, s->snapshot) < 0) {
                run_fail(x, s->link->depth, "standby");
                run_rm_vm(x, s->link->depth, s->vm);
        }
        s->vm[0] = '\0';
}

/* A measured clone of @source (a snapshot, or the running side itself). False: it failed, and is gone. */
static bool side_fork(struct run *x, struct side *s, const char *source, char ret[NAME_MAX_LEN + 1]) {
        run_name(x, s->link->depth, ret);
        if (run_fork(x, source, ret, s->ms) < 0) {
                run_fail(x, s->link->depth, "fork");
                return false;
        }
        if (run_first_exec(x, ret, s->ms, s->chain ? s->link : NULL) < 0) {
                run_fail(x, s->link->depth, "first_exec");
                run_rm_vm(x, s->link->depth, ret);
                return false;
        }
        return true;
}

static bool verify(struct run *x, const struct side *s, const char *name, bool spoil) {
        if (guest_verify(x->c, name, &s->content, spoil) < 0) {
                run_fail(x, s->link->depth, "verify");
                return false;
        }
        s->link->verified++;
        return true;
}

/* ---- by standby ---- */

/* The clones of one standby. True when the last one may go on: *ret_last is its name then. The others are in @names. */
static bool fork_both(struct run *x, struct side sides[2], bool last_round, char (*names)[NAME_MAX_LEN + 1], char *ret_last) {
        struct side *chain = &sides[0], *reference = &sides[1];
        bool goes_on = false;

        for (unsigned i = 0; i < x->plan->fanout && !run_over(x); i++) {
                bool last = last_round && i + 1 == x->plan->fanout;

                for (unsigned k = 0; k < 2; k++) {
                        struct side *s = (i + k + chain->link->depth) % 2 ? reference : chain;
                        char name[NAME_MAX_LEN + 1];

                        if (!s->snapshot[0] || run_over(x) || !side_fork(x, s, s->snapshot, name))
                                continue;
                        if (s == reference)
                                run_rm_vm(x, s->link->depth, name);
                        else
                                memcpy(names[i], name, sizeof(name));
                }
                if (names[i][0] && verify(x, chain, names[i], !last) && last) {
                        memcpy(ret_last, names[i], NAME_MAX_LEN + 1);
                        names[i][0] = '\0';
                        goes_on = true;
                }
                run_progress(x, 1, "depth %u of %u", chain->link->depth, (unsigned) x->plan->depth);
        }
        return goes_on;
}

/* One standby of source and reference, and their clones. True when the snapshot is there to go on from. */
static bool standby_round(struct run *x, struct chain_link *link, unsigned round, const struct content *before) {
        bool last = round + 1 == x->plan->rounds, first = (link->depth + round) % 2;
        struct side sides[2] = { { .link = link, .ms = link->ms, .chain = true, .content = *before },
                                 { .link = link, .ms = link->reference, .content = *before } };
        char names[CHAIN_MAX_FANOUT][NAME_MAX_LEN + 1] = { { 0 } };
        id_str old;

        x->writer++;
        memcpy(old, x->last, sizeof(old));
        if (x->cur[0])
                memcpy(sides[0].vm, x->cur, sizeof(x->cur));
        else
                (void) side_begin(x, &sides[0], x->last);
        x->cur[0] = '\0';
        if (link->depth > 1 && !run_over(x))
                (void) side_begin(x, &sides[1], x->base);
        for (unsigned k = 0; k < 2 && !run_over(x); k++)
                side_standby(x, &sides[first ? k : 1 - k]);
        (void) fork_both(x, sides, last, names, x->cur);
        for (unsigned i = 0; i < x->plan->fanout && !run_over(x); i++)
                run_rm_vm(x, link->depth, names[i]);
        if (!run_over(x))
                run_rm_snapshot(x, link->depth, sides[1].snapshot);
        if (!sides[0].snapshot[0])
                return false;
        if (last) {
                memcpy(x->last, sides[0].snapshot, sizeof(x->last));
                x->content = sides[0].content;
        } else if (!run_over(x)) {
                run_rm_snapshot(x, link->depth, sides[0].snapshot);
        }
        return true;
}

static bool standby_link(struct run *x, struct chain_link *link) {
        struct content before = x->content;
        bool any = false;

        for (unsigned round = 0; round < x->plan->rounds && !run_over(x); round++)
                any |= standby_round(x, link, round, &before);
        return any;
}

/* ---- live ---- */

/* One fork of a running side, after it has written. True when its clone is there. */
static bool live_fork(struct run *x, struct side *s, char ret[NAME_MAX_LEN + 1]) {
        id_str snapshot;

        if (!side_dirty(x, s) || !side_fork(x, s, s->vm, ret))
                return false;
        if (!s->chain)
                return true;
        if (run_snapshot_of(x, ret, snapshot) < 0) {
                run_fail(x, s->link->depth, "sizes");
                return true;
        }
        memcpy(x->last, snapshot, sizeof(x->last));
        x->content = s->content;
        if (run_sizes(x, snapshot, s->link) < 0)
                run_fail(x, s->link->depth, "sizes");
        return true;
}

static void rm_clone(struct run *x, const struct side *s, const char *name) {
        id_str snapshot = "";

        if (!s->chain && run_snapshot_of(x, name, snapshot) < 0)
                run_fail(x, s->link->depth, "remove");
        run_rm_vm(x, s->link->depth, name);
        run_rm_snapshot(x, s->link->depth, snapshot);
}

static bool live_link(struct run *x, struct chain_link *link) {
        struct side chain = { .link = link, .ms = link->ms, .chain = true, .content = x->content };
        struct side reference = { .link = link, .ms = link->reference, .content = x->content };
        uint64_t n = x->plan->fanout * x->plan->rounds;
        bool any = false;

        if (x->cur[0])
                memcpy(chain.vm, x->cur, sizeof(x->cur));
        else
                (void) side_begin(x, &chain, x->last);
        x->cur[0] = '\0';
        if (link->depth > 1 && !run_over(x))
                (void) side_begin(x, &reference, x->base);
        for (uint64_t i = 0; i < n && !run_over(x); i++) {
                x->writer++;
                for (unsigned k = 0; k < 2 && !run_over(x); k++) {
                        struct side *s = (i + k + link->depth) % 2 ? &reference : &chain;
                        char name[NAME_MAX_LEN + 1];
                        bool last = i + 1 == n && s->chain;

                        if (!s->vm[0] || !live_fork(x, s, name))
                                continue;
                        if (s->chain) {
                                any = true;
                                last &= verify(x, s, name, !last);
                        }
                        if (last) {
                                memcpy(x->cur, name, sizeof(x->cur));
                                x->content = s->content;
                        } else if (!run_over(x)) {
                                rm_clone(x, s, name);
                        }
                }
                run_progress(x, 1, "depth %u of %u, live", link->depth, (unsigned) x->plan->depth);
        }
        if (!run_over(x))
                run_rm_vm(x, link->depth, reference.vm);
        link->held = run_held(x, &link->held_bytes);
        return any;
}

/* ---- all of them ---- */

static void one_link(struct run *x, struct chain_link *link) {
        cleanup_json json_t *before = run_faults(x), *after = NULL;
        bool any = x->plan->live ? live_link(x, link) : standby_link(x, link);

        if (!run_over(x))
                after = run_faults(x);
        link->faults = run_faults_between(before, after);
        x->idle = any ? 0 : x->idle + 1;
}

void run_links(struct run *x) {
        for (unsigned d = 1; d <= x->plan->depth && !run_over(x) && x->idle < GIVE_UP; d++) {
                struct chain_link *link = &x->res->links[x->res->n_links++];

                link->depth = d;
                one_link(x, link);
        }
        if (x->idle == GIVE_UP) {
                (void) err_set(&x->c->e, ERR_CANCELED, -ECANCELED, "gave up after %d links in which nothing succeeded", GIVE_UP);
                run_fail(x, x->res->n_links, "chain");
        }
}

int run_warmup(struct run *x) {
        char source[NAME_MAX_LEN + 1], clone[NAME_MAX_LEN + 1];
        struct content content = x->content;
        id_str snapshot = "";
        int r;

        run_name(x, 0, source);
        run_name(x, 0, clone);
        r = run_fork(x, x->base, source, NULL);
        if (r == 0)
                r = guest_dirty(x->c, source, &content, 0, UINT32_MAX);
        if (r == 0 && !x->plan->live)
                r = run_standby(x, source, NULL, NULL, snapshot);
        if (r == 0)
                r = run_fork(x, x->plan->live ? source : snapshot, clone, NULL);
        if (r == 0)
                r = guest_verify(x->c, clone, &content, true);
        if (r == 0 && x->plan->live) {
                r = run_snapshot_of(x, clone, snapshot);
                run_rm_vm(x, 0, source);
        }
        if (r == 0) {
                run_rm_vm(x, 0, clone);
                run_rm_snapshot(x, 0, snapshot);
        }
        return r;
}
