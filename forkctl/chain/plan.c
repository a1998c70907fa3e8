/* SPDX-License-Identifier: MIT */
/* The options of `chain`. Everything that can be wrong is said before anything is made. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/ids.h"
#include "forkctl/chain/chain.h"

static int bad_size(struct ctl *c, const struct args *a, const char *name, const char *hint) {
        (void) usage_error(c, a->cmd, "--%s cannot be '%.80s'", name, arg_str(a, name));
        return err_hint(&c->e, "%s", hint);
}

static int read_sizes(struct ctl *c, const struct args *a, struct chain_plan *p) {
        int r = arg_size(c, a, "mem", &p->mem);

        if (r == 0)
                r = arg_size(c, a, "dirty", &p->dirty);
        if (r < 0)
                return r;
        if (p->mem < CHAIN_MIN_MEM || p->mem > CHAIN_MAX_MEM)
                return bad_size(c, a, "mem", "64M to 1T");
        if (p->from && arg_given(a, "mem"))
                return usage_error(c, a->cmd, "--mem is of a guest that is booted, and --from takes one that has its own");
        if (p->from && arg_given(a, "accel"))
                return usage_error(c, a->cmd, "--accel is of a guest that is booted, and --from takes one that has its own");
        if (p->dirty < CHAIN_MIN_DIRTY || p->dirty > CHAIN_MAX_MEM || (!p->from && p->dirty > p->mem / 4)) {
                (void) usage_error(c, a->cmd, "--dirty cannot be '%.80s'", arg_str(a, "dirty") ? arg_str(a, "dirty") : "1M");
                return err_hint(&c->e, "64K to a quarter of the guest's memory");
        }
        return 0;
}

static int read_counts(struct ctl *c, const struct args *a, struct chain_plan *p) {
        int r = arg_uint(c, a, "depth", 1, CHAIN_MAX_DEPTH, &p->depth);

        if (r == 0)
                r = arg_uint(c, a, "fanout", 1, CHAIN_MAX_FANOUT, &p->fanout);
        if (r == 0)
                r = arg_uint(c, a, "rounds", 1, CHAIN_MAX_ROUNDS, &p->rounds);
        if (r == 0)
                r = arg_uint(c, a, "warmup", 0, CHAIN_MAX_WARMUP, &p->warmup);
        return r == 0 ? arg_uint(c, a, "seed", 0, UINT64_MAX, &p->seed) : r;
}

/* A run takes minutes: that its page cannot be written must be known before. */
static int check_html(struct ctl *c, const struct args *a, const char *path) {
        char dir[4096];
        const char *slash = strrchr(path, '/');
        struct stat st;

        if (!*path || strlen(path) >= sizeof(dir))
                return usage_error(c, a->cmd, "--html '%.80s' is no path", path);
        if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
                return err_set(&c->e, ERR_EXISTS, -EEXIST, "%.200s is there, and no file", path);
        (void) snprintf(dir, sizeof(dir), "%.*s", slash ? (int) MAX_OF(slash - path, 1) : 1, slash ? path : ".");
        if (access(dir, W_OK | X_OK) < 0)
                return err_errno(&c->e, -errno, "cannot write %.200s", path);
        return 0;
}

int chain_plan_read(struct ctl *c, const struct args *a, struct chain_plan *ret) {
        struct chain_plan p = {
                .depth = 8, .fanout = 4, .rounds = 1, .warmup = 1, .seed = 1, .dirty = 1ull << 20, .mem = 256ull << 20
        };
        const char *limits = arg_str(a, "fail-over");
        struct err e = { 0 };
        int r;

        p.from = arg_str(a, "from");
        p.accel = arg_str(a, "accel");
        p.html = arg_str(a, "html");
        p.live = arg_given(a, "live");
        p.keep = arg_given(a, "keep");
        p.no_sync = arg_given(a, "no-sync");
        r = read_counts(c, a, &p);
        if (r == 0)
                r = read_sizes(c, a, &p);
        if (r < 0)
                return r;
        if (p.from && !name_valid(p.from))
                return usage_error(c, a->cmd, "--from '%.80s' names no VM and no snapshot", p.from);
        if (p.live && p.no_sync)
                return usage_error(c, a->cmd, "--no-sync is of a standby, and --live has none");
        if (limits && failover_parse(limits, &p.limits, &e) < 0) {
                (void) usage_error(c, a->cmd, "--fail-over: %s", e.message);
                return err_hint(&c->e, "%s", e.hint);
        }
        if (p.html) {
                r = check_html(c, a, p.html);
                if (r < 0)
                        return r;
        }
        *ret = p;
        return 0;
}
