/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * The base comes first: a guest is booted, or forked from what --from names, gets its contents, and goes on standby. Everything else
 * begins with that snapshot: warm-up, the chain (links.c) and its reference. So the first link is one like all others, and whatever
 * was booted or named by the user is left alone.
 *
 * All that is made is removed at the end, also after a failure or a signal (undo.c). */
#include "forkctl/chain/run.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/json.h"
#include "forkctl/chain/guest.h"

/* ---- the base ---- */

static void rm_disk(struct run *x) {
        if (x->disk[0])
                (void) unlink(x->disk);
        x->disk[0] = '\0';
}

/* The guest's disk: zeros, as a file of our own, which forkd copies. It must be readable for forkd, and by nobody else. */
static int make_disk(struct run *x) {
        const char *dir = getenv("TMPDIR");
        cleanup_fd int fd = -1;

        if ((size_t) snprintf(x->disk, sizeof(x->disk), "%s/forkctl-chain-XXXXXX", dir && dir[0] == '/' ? dir : "/tmp") >=
            sizeof(x->disk))
                return err_errno(&x->c->e, -ENAMETOOLONG, "TMPDIR");
        fd = mkostemp(x->disk, O_CLOEXEC);
        if (fd < 0) {
                int r = err_errno(&x->c->e, -errno, "making a disk in %.200s", x->disk);

                x->disk[0] = '\0';
                return r;
        }
        if (ftruncate(fd, CHAIN_DISK_BYTES) < 0) {
                int r = err_errno(&x->c->e, -errno, "making a disk");

                rm_disk(x);
                return r;
        }
        return 0;
}

static int boot(struct run *x, const char *name) {
        cleanup_json json_t *vm = NULL;
        cleanup_req struct req q;
        uint64_t start;
        int r = make_disk(x);

        if (r < 0)
                return r;
        req_init(&q);
        req_str(&q, "name", name);
        req_u64(&q, "mem_bytes", x->plan->mem);
        req_str(&q, "accel", x->plan->accel);
        req_key(&q, "disks");
        mp_array(&q.body, 1);
        mp_str(&q.body, x->disk);
        start = now_ns();
        r = ctl_call(x->c, "vm.run", &q, &vm);
        rm_disk(x); /* forkd has its copy */
        if (r < 0)
                return r;
        x->res->boot_ms = ms_since(start);
        x->res->disk = true;
        x->res->mem_bytes = x->plan->mem;
        (void) snprintf(x->res->guest, sizeof(x->res->guest), "booted");
        return 0;
}

/* Is @id a snapshot that is there already? Then it is not ours to remove. */
static int is_known(struct run *x, const json_t *snapshots, const char *id) {
        json_t *s;
        size_t i;

        json_array_foreach (json_list(snapshots, "snapshots"), i, s)
                if (strcmp(json_str(s, "id", ""), id) == 0)
                        return true;
        return false;
}

static int take(struct run *x, const char *name) {
        cleanup_json json_t *snapshots = NULL, *vm = NULL;
        id_str id;
        int r;

        r = ctl_call(x->c, "snapshot.list", NULL, &snapshots);
        if (r == 0)
                r = run_fork(x, x->plan->from, name, x->res->base.ms);
        if (r == 0)
                r = run_snapshot_of(x, name, id);
        if (r == 0 && !is_known(x, snapshots, id))
                memcpy(x->own, id, sizeof(id));
        if (r == 0)
                r = ctl_call_name(x->c, "vm.inspect", "name", name, &vm);
        if (r < 0)
                return r;
        x->res->mem_bytes = json_u64(vm, "mem_bytes", 0);
        (void) snprintf(x->res->guest, sizeof(x->res->guest), "%.63s", x->plan->from);
        if (x->plan->dirty > x->res->mem_bytes / 4)
                return err_set(&x->c->e, ERR_INVALID, -EINVAL, "--dirty is more than a quarter of the memory of '%.80s'",
                               x->plan->from);
        return 0;
}

static int make_base(struct run *x) {
        char name[NAME_MAX_LEN + 1];
        int r;

        run_name(x, 0, name);
        run_progress(x, 0, x->plan->from ? "forking %.60s" : "booting", x->plan->from);
        r = x->plan->from ? take(x, name) : boot(x, name);
        if (r < 0)
                return r;
        content_init(&x->content, x->plan->seed, x->plan->dirty, x->res->mem_bytes, x->res->disk);
        run_progress(x, 0, "preparing the guest");
        r = guest_prepare(x->c, name, &x->content);
        if (r == 0)
                r = run_standby(x, name, x->res->base.ms, &x->res->base, x->base);
        if (r == 0)
                memcpy(x->last, x->base, sizeof(x->last));
        return r;
}

/* ---- all ---- */

bool run_over(const struct run *x) {
        return x->watch.signal || x->c->closed;
}

static int run_all(struct run *x) {
        int r = make_base(x);

        for (uint64_t i = 0; r == 0 && i < x->plan->warmup && !run_over(x); i++) {
                run_progress(x, 0, "warming up");
                r = run_warmup(x);
        }
        x->res->host = run_host(x);
        if (r < 0)
                return r;
        if (!run_over(x))
                run_links(x);
        return 0;
}

int chain_run(struct ctl *c, const struct chain_plan *plan, struct chain_result *res) {
        struct run x = { .c = c, .plan = plan, .res = res };
        uint64_t start = now_ns();
        int r = ctl_connect(c);

        if (r < 0)
                return r;
        (void) snprintf(x.prefix, sizeof(x.prefix), RUN_PREFIX "%08x", (unsigned) (random_u64() >> 32));
        (void) snprintf(x.left, sizeof(x.left), "VMs and snapshots of %s-*", x.prefix);
        r = watch_begin(&x.watch, c, x.left);
        if (r == 0) {
                x.all = (double) (plan->depth * plan->rounds * plan->fanout);
                progress_start(&x.progress, c, "chain");
                r = run_all(&x);
        }
        res->forkd_gone = c->closed && !x.watch.signal;
        /* What could not even begin is the command's own error, and no result. */
        if (r < 0 && res->n_links == 0 && !x.watch.signal) {
                struct err e = c->e;

                run_undo(&x);
                c->e = e;
        } else {
                r = 0;
                run_undo(&x);
        }
        progress_end(&x.progress);
        watch_end(&x.watch);
        res->signal = x.watch.signal;
        res->total_ms = ms_since(start);
        return r;
}
