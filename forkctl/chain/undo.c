/* SPDX-License-Identifier: MIT */
/* What is made carries the run's own prefix in its name, or in the name of the VM that it is a snapshot of. So everything is found,
 * also what a call made whose answer never came. A snapshot of a VM of the user's (--from) is known by its id. */
#include <string.h>
#include <time.h>

#include "common/io.h"
#include "common/json.h"
#include "forkctl/chain/run.h"

#define CUT_CALL_MS 2000 /* a clone is there, or not, by then */
#define UNDO_MS 60000

static bool is_ours(const struct run *x, const char *name) {
        size_t n = strlen(x->prefix);

        return strncmp(name, x->prefix, n) == 0 && name[n] == '-';
}

/* Those of @list whose @key is ours, by their @what, in one request each: one that cannot go keeps no other. */
static int rm_all(struct run *x, const char *list_method, const char *list_key, const char *key, const char *what,
                  const char *method, const char *param) {
        cleanup_json json_t *list = NULL;
        json_t *o;
        size_t i;
        int r = ctl_call(x->c, list_method, NULL, &list), first = 0;
        struct err e = { 0 };

        if (r < 0)
                return r;
        json_array_foreach (json_list(list, list_key), i, o) {
                char *name[] = { (char *) json_str(o, what, "") };
                cleanup_req struct req q;

                if (!is_ours(x, json_str(o, key, "")) && !(x->own[0] && strcmp(name[0], x->own) == 0))
                        continue;
                req_init(&q);
                req_strs(&q, param, name, 1);
                if (strcmp(method, "snapshot.rm") == 0)
                        req_bool(&q, "force", true);
                r = ctl_call(x->c, method, &q, NULL);
                if (r < 0 && first == 0) {
                        first = r;
                        e = x->c->e;
                }
        }
        if (first < 0)
                x->c->e = e;
        return first;
}

static int rm_ours(struct run *x) {
        int r = rm_all(x, "vm.list", "vms", "name", "name", "vm.rm", "names");

        return r < 0 ? r : rm_all(x, "snapshot.list", "snapshots", "source", "id", "snapshot.rm", "snapshots");
}

/* A call whose connection was cut may only be read by forkd now, and what it makes is busy until it is done. Nobody tells when
 * that is: so it is looked for a while longer. */
static int rm_ours_of_a_cut_call(struct run *x) {
        static const struct timespec pause = { .tv_nsec = 100000000 };
        uint64_t start = now_ns();
        double ms = 0;
        int r = 0;

        for (; ms < UNDO_MS; ms = ms_since(start)) {
                r = rm_ours(x);
                if (r == 0 && ms > CUT_CALL_MS)
                        break;
                if (r < 0 && strcmp(x->c->e.code, ERR_BUSY) != 0)
                        break;
                (void) nanosleep(&pause, NULL);
        }
        return r;
}

void run_undo(struct run *x) {
        struct err before = x->c->e;
        int r;

        if (x->plan->keep || !x->prefix[0])
                return;
        if (x->c->conn && (x->c->closed || !rpc_conn_is_open(x->c->conn))) {
                ctl_hang_up(x->c);
                r = rm_ours_of_a_cut_call(x);
        } else {
                r = rm_ours(x);
        }
        if (r < 0) {
                (void) err_prefix(&x->c->e, "VMs and snapshots of %s-* may be left behind", x->prefix);
                chain_fail(x->res, x->res->n_links, "clean_up", &x->c->e);
        }
        x->c->e = before;
}
