/* SPDX-License-Identifier: MIT */
/* `forkctl demo`: what forkd does, shown on a real VM: boot, standby, eight clones that remember and go their own ways; a fork of one
 * that runs; and one out of a pool. It succeeds only if every clone had exactly the original's memory, none saw another's changes, and
 * nothing was left behind. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include "common/ids.h"
#include "common/io.h"
#include "common/json.h"
#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "forkctl/demo/guests.h"
#include "forkctl/demo/private.h"
#include "forkctl/vm_memory.h"

#define CLONES 8
#define MEMORY (256ull << 20)
#define POOL_SIZE 2
#define ROWS (CLONES + 2)
#define LOG_TAIL 4000

struct row {
        char name[NAME_MAX_LEN + 1];
        double ms, private;
        uint64_t stored; /* 0: not put on standby */
        char remark[64];
};

struct demo {
        struct ctl *c;
        struct keeper original;
        struct row rows[ROWS];
        size_t n_rows;
        unsigned identical, independent; /* of the eight */
        unsigned others_identical;       /* of the two */
        struct watch *watch;
};

static void say(const struct demo *d, const char *fmt, ...) attr_printf(2, 3);
static void say(const struct demo *d, const char *fmt, ...) {
        va_list ap;

        if (d->c->json)
                return;
        va_start(ap, fmt);
        (void) vprintf(fmt, ap);
        va_end(ap);
        (void) putchar('\n');
        (void) fflush(stdout);
}

static const char *mib(double bytes, char *buf, size_t size) {
        if (bytes < 0)
                (void) snprintf(buf, size, "-");
        else
                (void) snprintf(buf, size, "%.1f MiB", bytes / (1 << 20));
        return buf;
}

/* Steps that were asked to end end here. */
static int go_on(struct demo *d) {
        return d->watch->signal ? err_set(&d->c->e, ERR_CANCELED, -ECANCELED, "interrupted") : 0;
}

/* ---- the story ---- */

static int boot(struct demo *d) {
        cleanup_json json_t *vm = NULL;
        cleanup_req struct req q;
        int r;

        say(d, "1. A Linux VM boots …");
        req_init(&q);
        req_str(&q, "name", "original");
        req_u64(&q, "mem_bytes", MEMORY);
        r = ctl_call(d->c, "vm.run", &q, &vm);
        if (r < 0)
                return r;
        say(d, "   running after %.1f s (%s)", json_num(vm, "boot_ms", 0) / 1000, json_str(vm, "accel", "?"));
        say(d, "2. The VM makes 32 MiB of random data and starts a process that keeps a secret in its memory …");
        r = keeper_start(d->c, "original", &d->original);
        if (r == 0)
                say(d, "   sha256 %.16s…, secret %.16s…, asked %ld time", d->original.digest, d->original.secret,
                    d->original.asked);
        return r;
}

static int standby(struct demo *d, const char *name, const char *tag, json_t **ret) {
        cleanup_req struct req q;

        req_init(&q);
        req_str(&q, "name", name);
        req_str(&q, "tag", tag);
        return ctl_call(d->c, "vm.standby", &q, ret);
}

static int save_original(struct demo *d) {
        cleanup_json json_t *s = NULL;
        char stored[32], all[32];
        int r;

        say(d, "3. It goes on standby: its memory becomes a compressed snapshot, its process ends …");
        r = standby(d, "original", "original", &s);
        if (r == 0)
                say(d, "   %s of RAM in %s, guest paused %.0f ms, all done in %.0f ms", mib(MEMORY, all, sizeof(all)),
                    mib(json_num(s, "stored_bytes", -1), stored, sizeof(stored)), json_num(s, "pause_ms", 0),
                    json_num(s, "total_ms", 0));
        return r;
}

static struct row *add_row(struct demo *d, const char *name, double ms) {
        struct row *row = &d->rows[d->n_rows++];
        double vmm;

        (void) snprintf(row->name, sizeof(row->name), "%s", name);
        row->ms = ms;
        vm_memory(d->c, name, &row->private, &vmm);
        return row;
}

static int fork_original(struct demo *d) {
        cleanup_json json_t *result = NULL;
        const json_t *clone;
        cleanup_req struct req q;
        size_t i;
        int r;

        say(d, "4. The snapshot is forked into %d clones …", CLONES);
        req_init(&q);
        req_str(&q, "source", "original");
        req_str(&q, "name", "clone");
        req_u64(&q, "count", CLONES);
        r = ctl_call(d->c, "vm.fork", &q, &result);
        if (r < 0)
                return r;
        say(d, "   all answered after %.0f ms", json_num(result, "wall_ms", 0));
        if (json_array_size(json_list(result, "clones")) != CLONES)
                return err_set(&d->c->e, ERR_PROTOCOL, -EPROTO, "forkd told of %zu clones",
                               json_array_size(json_list(result, "clones")));
        json_array_foreach (json_list(result, "clones"), i, clone)
                (void) add_row(d, json_str(clone, "name", "?"), json_num(clone, "total_ms", -1));
        return 0;
}

static bool any_twice(const struct likeness *all, size_t offset) {
        for (unsigned i = 0; i < CLONES; i++)
                for (unsigned k = 0; k < i; k++)
                        if (strcmp((const char *) &all[i] + offset, (const char *) &all[k] + offset) == 0)
                                return true;
        return false;
}

/* Each clone remembers; then each is changed, and none sees another's change. */
static int check_clones(struct demo *d) {
        struct likeness all[CLONES];
        struct keeper now;
        int r = 0;

        for (unsigned i = 0; i < CLONES; i++) {
                r = keeper_ask(d->c, d->rows[i].name, &now);
                if (r == 0)
                        r = guest_part(d->c, d->rows[i].name, &all[i]);
                if (r == 0)
                        r = go_on(d);
                if (r < 0)
                        return r;
                d->identical += keeper_same(&now, &d->original);
        }
        for (unsigned i = 0; r == 0 && i < CLONES; i++) {
                bool own = false;

                r = guest_mark_is_own(d->c, d->rows[i].name, &own);
                d->independent += own && strcmp(all[i].hostname, d->rows[i].name) == 0;
        }
        if (any_twice(all, offsetof(struct likeness, digest)) || any_twice(all, offsetof(struct likeness, machine_id)) ||
            any_twice(all, offsetof(struct likeness, random)))
                d->independent = 0;
        return r;
}

static int take_from_pool(struct demo *d) {
        cleanup_json json_t *taken = NULL;
        cleanup_req struct req create, take;
        struct keeper now;
        struct row *row;
        int r;

        say(d, "5. A pool keeps clones ready, and one is taken …");
        req_init(&create);
        req_str(&create, "name", "ready");
        req_str(&create, "from", "original");
        req_u64(&create, "size", POOL_SIZE);
        req_bool(&create, "wait", true);
        r = ctl_call(d->c, "pool.create", &create, NULL);
        req_init(&take);
        req_str(&take, "name", "ready");
        req_str(&take, "vm", "pool-take");
        if (r == 0)
                r = ctl_call(d->c, "pool.take", &take, &taken);
        if (r == 0)
                r = keeper_ask(d->c, "pool-take", &now);
        if (r < 0)
                return r;
        d->others_identical += keeper_same(&now, &d->original);
        row = add_row(d, "pool-take", json_num(taken, "take_ms", -1));
        (void) snprintf(row->remark, sizeof(row->remark), "%s",
                        json_flag(taken, "warm") ? "it was warm" : "the pool was empty: it was forked");
        return ctl_call_name(d->c, "pool.rm", "name", "ready", NULL);
}

static int fork_live(struct demo *d) {
        cleanup_json json_t *result = NULL;
        struct keeper before, twin;
        cleanup_req struct req q;
        struct row *row;
        int r;

        say(d, "6. The one that was taken is forked while it runs, and does not notice …");
        r = keeper_ask(d->c, "pool-take", &before);
        req_init(&q);
        req_str(&q, "source", "pool-take");
        req_str(&q, "name", "live-fork");
        if (r == 0)
                r = ctl_call(d->c, "vm.fork", &q, &result);
        if (r == 0)
                r = keeper_ask(d->c, "live-fork", &twin);
        if (r < 0)
                return r;
        d->others_identical += keeper_same(&twin, &before);
        row = add_row(d, "live-fork", json_num(result, "wall_ms", -1));
        (void) snprintf(row->remark, sizeof(row->remark), "its source paused %.1f ms", json_num(result, "source_pause_ms", -1));
        return 0;
}

static int save_clones(struct demo *d) {
        int r = 0;

        say(d, "7. Each clone goes on standby in its turn, as a child of the first snapshot …");
        for (size_t i = 0; r == 0 && i < CLONES; i++) {
                cleanup_json json_t *s = NULL;

                r = standby(d, d->rows[i].name, NULL, &s);
                d->rows[i].stored = json_u64(s, "stored_bytes", 0);
                if (r == 0)
                        r = go_on(d);
        }
        return r;
}

static int story(struct demo *d) {
        static int (*const steps[])(struct demo *) = { boot,           save_original, fork_original, check_clones,
                                                       take_from_pool, fork_live,     save_clones };
        int r = 0;

        for (size_t i = 0; r == 0 && i < ARRAY_LEN(steps); i++) {
                r = steps[i](d);
                if (r == 0)
                        r = go_on(d);
        }
        return r;
}

/* ---- the result ---- */

static bool all_well(const struct demo *d) {
        return d->identical == CLONES && d->independent == CLONES && d->others_identical == ROWS - CLONES;
}

static void tell_text(const struct demo *d) {
        char private[32], stored[32];

        say(d, "\nclone      first answer   private memory        disk");
        for (size_t i = 0; i < d->n_rows; i++)
                say(d, "%-10s %9.1f ms   %14s  %10s%s%s", d->rows[i].name, d->rows[i].ms,
                    mib(d->rows[i].private, private, sizeof(private)),
                    d->rows[i].stored ? mib((double) d->rows[i].stored, stored, sizeof(stored)) : "-",
                    d->rows[i].remark[0] ? "   " : "", d->rows[i].remark);
        say(d, "\nmemory identical: %u/%d, independent: %u/%d", d->identical, CLONES, d->independent, CLONES);
        say(d, "live fork and pool take identical: %u/%d", d->others_identical, ROWS - CLONES);
}

static int tell_json(const struct demo *d, json_t *left, double ms, bool ok) {
        cleanup_json json_t *rows = json_array(), *doc = NULL;

        for (size_t i = 0; i < d->n_rows; i++)
                (void) json_array_append_new(rows, json_pack("{s:s, s:f, s:o, s:o, s:s}", "name", d->rows[i].name,
                                                             "first_answer_ms", d->rows[i].ms, "private_bytes",
                                                             d->rows[i].private < 0 ? json_null() : json_real(d->rows[i].private),
                                                             "stored_bytes",
                                                             d->rows[i].stored ? json_integer((json_int_t) d->rows[i].stored)
                                                                               : json_null(),
                                                             "remark", d->rows[i].remark));
        doc = json_pack("{s:b, s:i, s:i, s:i, s:i, s:O, s:O, s:f}", "ok", ok, "clones", CLONES, "identical", (int) d->identical,
                        "independent", (int) d->independent, "others_identical", (int) d->others_identical, "rows", rows,
                        "left_behind", left, "total_ms", ms);
        return doc ? ctl_print(d->c, doc) : err_errno(&d->c->e, -ENOMEM, "telling the result");
}

/* What forkd said last; its log goes with its directory. */
static void show_log(const struct private *p) {
        cleanup_free char *text = NULL;
        size_t len;

        if (!p->log[0] || io_read_file(AT_FDCWD, p->log, 64u << 20, &text, &len) < 0)
                return;
        (void) fprintf(stderr, "---- end of %s\n%s\n", p->log, len > LOG_TAIL ? text + len - LOG_TAIL : text);
}

int cmd_demo(struct ctl *c, const struct args *a) {
        struct private p = { 0 };
        struct watch watch = { 0 };
        struct demo d = { .c = c, .watch = &watch };
        cleanup_json json_t *left = NULL;
        uint64_t start = now_ns();
        bool ok;
        size_t i;
        json_t *o;
        int r = watch_begin(&watch, c, "a forkd in /tmp/forkd-demo-*");

        if (r < 0)
                return r;
        say(&d, "0. Guest kernel, initramfs and store are prepared, and a private forkd is started …");
        r = private_begin(&p, c);
        if (r == 0)
                r = go_on(&d);
        if (r == 0)
                r = story(&d);
        if (r == 0 && !c->json)
                tell_text(&d);
        if (r < 0 && !watch.signal)
                show_log(&p);
        private_end(&p, &left);
        watch_end(&watch);
        watch_obey(watch.signal);
        json_array_foreach (left, i, o)
                say(&d, "left behind: %s", json_string_value(o));
        ok = r == 0 && all_well(&d) && json_array_size(left) == 0;
        say(&d, "%s in %.0f s", ok ? "done" : "FAILED", ms_since(start) / 1000);
        if (r < 0)
                return r;
        r = c->json ? tell_json(&d, left, ms_since(start), ok) : 0;
        return r < 0 ? r : ok ? CTL_EXIT_OK : CTL_EXIT_FAILED;
}
