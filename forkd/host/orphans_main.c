/* SPDX-License-Identifier: MIT */
/* Who asks for orphans: a client of a running forkd, or forkctl where there is none. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "forkd/dirs.h"
#include "forkd/vm/identity.h"
#include "forkd/vm/journal.h"
#include "forkd/host/orphans.h"
#include "forkd/api/request.h"

#define MAX_TOLD 10000 /* of an answer; more are counted */

/* ---- of a running forkd ---- */

struct answer {
        struct mp_buf list;
        unsigned n;
};

static void put_orphan(const struct orphan *o, void *arg) {
        struct answer *a = arg;

        if (a->n == MAX_TOLD)
                return;
        a->n++;
        mp_map(&a->list, 4);
        mp_kv_str(&a->list, "kind", o->kind);
        mp_kv_str(&a->list, "what", o->what);
        mp_kv_str(&a->list, "detail", o->detail);
        mp_kv_bool(&a->list, "fixed", o->fixed);
}

int api_orphans(struct request *rq, struct mp_buf *out, struct err *e) {
        struct answer a = { .n = 0 };
        struct orphans o = { .d = rq->d, .fn = put_orphan, .arg = &a };
        int r = rq_opt_bool(rq, "fix", false, &o.fix, e);

        if (r < 0)
                return r;
        mp_buf_init(&a.list);
        orphans_walk(&o);
        mp_map(out, 3);
        mp_kv_u64(out, "found", o.found);
        mp_kv_u64(out, "fixed", o.fixed);
        mp_kv_list(out, "orphans", &a.list, a.n);
        r = a.list.failed ? err_errno(e, -ENOMEM, "telling the orphans") : 0;
        mp_buf_clear(&a.list);
        return r;
}

/* ---- without one ---- */

static void append_orphan(const struct orphan *o, void *arg) {
        json_t *list = arg;

        if (json_array_size(list) < MAX_TOLD)
                (void) json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:b}", "kind", o->kind, "what", o->what, "detail",
                                                             o->detail, "fixed", o->fixed));
}

static int look(struct daemon *d, const struct daemon_options *opt, struct orphans *o, struct err *e) {
        struct err ignored;
        int r;

        r = identities_new(&d->identities);
        if (r < 0)
                return err_errno(e, r, "starting");
        r = dirs_open_existing(d, opt, e);
        if (r == -ENOENT)
                return 0; /* no forkd was ever here */
        if (r == 0)
                r = vm_records_load(d, e);
        if (r < 0)
                return r;
        /* What it names goes at the next start, and its processes are nobody's now. */
        if (journal_load(d, &ignored) < 0)
                log_debug("%s", ignored.message);
        orphans_walk(o);
        return 0;
}

static int print(json_t *doc) {
        int r = doc ? json_dumpf(doc, stdout, JSON_COMPACT) : -1;

        json_decref(doc);
        return r < 0 || puts("") < 0 || fflush(stdout) != 0 ? -EIO : 0;
}

int orphans_main(const struct daemon_options *opt, bool fix) {
        struct daemon d = { .lock_fd = -1, .run_lock_fd = -1, .offline = true };
        json_t *list = json_array();
        struct orphans o = { .d = &d, .fix = fix, .fn = append_orphan, .arg = list };
        struct err e = { 0 };
        int r;

        log_init("forkd", LOG_LVL_WARNING);
        TAILQ_INIT(&d.vms);
        config_defaults(&d.cfg);
        r = list ? look(&d, opt, &o, &e) : err_errno(&e, -ENOMEM, "starting");
        if (r == 0)
                r = print(json_pack("{s:i, s:i, s:O}", "found", (int) o.found, "fixed", (int) o.fixed, "orphans", list));
        else
                best_effort(
                        print(json_pack("{s:{s:s, s:s, s:s}}", "error", "code", e.code, "message", e.message, "hint", e.hint)));
        json_decref(list);
        journal_free(&d);
        vm_release_all(&d);
        identities_free(d.identities);
        (void) close_fd(d.lock_fd);
        (void) close_fd(d.run_lock_fd);
        return r < 0;
}
