/* SPDX-License-Identifier: MIT */
/* The steps of a link, each one call, timed from here: what a user waits for, on a connection that is there already. */
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "common/io.h"
#include "common/json.h"
#include "forkctl/chain/guest.h"
#include "forkctl/chain/run.h"
#include "forkctl/vm_memory.h"

void run_name(struct run *x, unsigned depth, char ret[NAME_MAX_LEN + 1]) {
        (void) snprintf(ret, NAME_MAX_LEN + 1, "%s-d%u-%u", x->prefix, depth, ++x->serial);
}

void run_fail(struct run *x, unsigned depth, const char *step) {
        if (!x->watch.signal)
                chain_fail(x->res, depth, step, &x->c->e);
}

void run_progress(struct run *x, double forks, const char *fmt, ...) {
        char text[128];
        va_list ap;

        va_start(ap, fmt);
        (void) vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        x->done += forks;
        progress_set(&x->progress, x->all > 0 ? (int) (x->done * 100 / x->all) : -1, text);
}

static void note(struct samples *ms, enum chain_step step, double v) {
        if (ms && v >= 0)
                samples_add(&ms[step], v);
}

int run_fork(struct run *x, const char *source, const char *name, struct samples *ms) {
        cleanup_json json_t *result = NULL;
        const json_t *clone;
        cleanup_req struct req q;
        uint64_t start;
        int r;

        req_init(&q);
        req_str(&q, "source", source);
        req_str(&q, "name", name);
        start = now_ns();
        r = ctl_call(x->c, "vm.fork", &q, &result);
        if (r < 0)
                return r;
        clone = json_array_get(json_list(result, "clones"), 0);
        note(ms, STEP_FORK, ms_since(start));
        note(ms, STEP_LOAD, json_num(clone, "load_ms", -1));
        note(ms, STEP_ACK, json_num(clone, "ack_ms", -1));
        note(ms, STEP_SOURCE_PAUSE, json_num(result, "source_pause_ms", -1));
        return 0;
}

int run_first_exec(struct run *x, const char *name, struct samples *ms, struct chain_link *link) {
        uint64_t start = now_ns();
        double private, vmm;
        int r = guest_sh(x->c, name, ":", NULL, 0, NULL);

        if (r < 0)
                return r;
        note(ms, STEP_FIRST_EXEC, ms_since(start));
        if (!link)
                return 0;
        vm_memory(x->c, name, &private, &vmm);
        if (private >= 0)
                samples_add(&link->private_bytes, private);
        if (vmm >= 0)
                samples_add(&link->vmm_bytes, vmm);
        return 0;
}

int run_sizes(struct run *x, const char *id, struct chain_link *link) {
        cleanup_json json_t *s = NULL;
        int r = ctl_call_name(x->c, "snapshot.show", "snapshot", id, &s);

        if (r < 0)
                return r;
        link->dirty_bytes += json_u64(s, "dirty_bytes", 0);
        link->stored_bytes += json_u64(s, "stored_bytes", 0);
        link->raw_bytes += json_u64(s, "ram_bytes", 0);
        link->saved = true;
        return 0;
}

static int take_id(struct run *x, const json_t *map, const char *key, const char *what, id_str ret) {
        const char *id = json_str(map, key, "");

        if (!id_valid(id))
                return err_set(&x->c->e, ERR_PROTOCOL, -EPROTO, "forkd did not tell %s", what);
        memcpy(ret, id, sizeof(id_str));
        return 0;
}

int run_standby(struct run *x, const char *name, struct samples *ms, struct chain_link *link, id_str ret) {
        cleanup_json json_t *s = NULL;
        cleanup_req struct req q;
        uint64_t start;
        int r;

        req_init(&q);
        req_str(&q, "name", name);
        if (x->plan->no_sync)
                req_bool(&q, "sync", false);
        start = now_ns();
        r = ctl_call(x->c, "vm.standby", &q, &s);
        if (r < 0)
                return r;
        note(ms, STEP_STANDBY, ms_since(start));
        note(ms, STEP_PAUSE, json_num(s, "pause_ms", -1));
        r = take_id(x, s, "snapshot", "which snapshot a standby made", ret);
        if (r == 0 && link)
                r = run_sizes(x, ret, link);
        run_rm_vm(x, link ? link->depth : 0, name);
        return r;
}

int run_snapshot_of(struct run *x, const char *name, id_str ret) {
        cleanup_json json_t *vm = NULL;
        int r = ctl_call_name(x->c, "vm.inspect", "name", name, &vm);

        return r < 0 ? r : take_id(x, vm, "snapshot", "what a clone was made from", ret);
}

void run_rm_vm(struct run *x, unsigned depth, const char *name) {
        char *names[] = { (char *) name };
        cleanup_req struct req q;

        req_init(&q);
        req_strs(&q, "names", names, 1);
        if (*name && ctl_call(x->c, "vm.rm", &q, NULL) < 0)
                run_fail(x, depth, "remove");
}

void run_rm_snapshot(struct run *x, unsigned depth, const char *id) {
        char *ids[] = { (char *) id };
        cleanup_req struct req q;

        req_init(&q);
        req_strs(&q, "snapshots", ids, 1);
        if (*id && ctl_call(x->c, "snapshot.rm", &q, NULL) < 0)
                run_fail(x, depth, "remove");
}
