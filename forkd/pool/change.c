/* SPDX-License-Identifier: MIT */
/* What requests do with pools: they come, change, and go. Each changes what is wanted, and writes that down; the keeper does the rest. */
#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/catalog.h"
#include "forkd/events.h"
#include "forkd/pool/internal.h"

/* Would the host bear that many more? Nothing stays reserved: each member reserves for itself when it is made. May wait, for what
 * can be spared to go: what was looked up before means nothing afterwards. */
static int check_room(struct daemon *d, const char *name, const struct snap_entry *s, unsigned more, struct err *e) {
        struct admission_need need = admission_vm_need(s->m.mem_bytes, s->m.vcpus, false);
        struct admission_claim claim = { 0 };
        char who[80 + NAME_MAX_LEN];
        int r;

        if (more == 0)
                return 0;
        if (d->n_vms + more > d->cfg.max_vms) {
                (void) err_set(e, ERR_LIMIT, -EMFILE, "%u clones for the pool '%s' are too many: there are %u VMs, of at most %u",
                               more, name, d->n_vms, d->cfg.max_vms);
                return err_hint(e, "ask for a smaller --size, or raise max_vms in the configuration");
        }
        (void) snprintf(who, sizeof(who), "%u clones for the pool '%.40s'", more, name);
        r = admission_reserve(d->admission, &claim, who, &need, more, e);
        admission_release(d->admission, &claim);
        return r;
}

static bool is_filled(const struct pool *p) {
        struct pool_counts c;

        pool_count(p, &c);
        return c.old == 0 && c.making == 0 && c.fresh >= pool_wanted(&p->sizes, &p->demand, now_ns());
}

/* Until it is as it shall be, or says why it is not. */
static int wait_filled(struct daemon *d, const char *name, struct err *e) {
        struct pool *p;
        int r = 0;

        while (r == 0 && (p = pool_by_name(d, name)) && !p->removing && !is_filled(p) && !p->problem[0])
                r = pool_wait(p);
        if (r == -ECANCELED)
                return err_set(e, ERR_CANCELED, r, "forkd is about to exit; the pool '%s' is filled when it is back", name);
        return pool_find(d, name, &p, e);
}

/* A pool that nothing could be made for is none. */
static int check_first(struct pool *p, struct err *e) {
        char problem[sizeof(p->problem)], name[sizeof(p->name)];
        struct pool_counts c;
        struct err ignored;
        unsigned n;

        pool_count(p, &c);
        if (!p->problem[0] || c.fresh + c.making > 0)
                return 0;
        memcpy(problem, p->problem, sizeof(problem));
        memcpy(name, p->name, sizeof(name));
        if (pool_remove(p->d, name, &n, &ignored) < 0)
                log_warning("%s", ignored.message);
        return err_set(e, ERR_STATE, -EIO, "no clone can be made for the pool '%s': %s", name, problem);
}

static int check_new(struct daemon *d, const struct pool_params *pp, struct snap_entry **ret_from, struct err *e) {
        if (!name_valid(pp->name)) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "'%.80s' cannot be the name of a pool", pp->name);
                return err_hint(e, "names are letters, digits, '.', '_' and '-', at most %d", NAME_MAX_LEN);
        }
        if (pool_by_name(d, pp->name)) {
                (void) err_set(e, ERR_EXISTS, -EEXIST, "a pool named '%s' exists already", pp->name);
                return err_hint(e, "change it: forkctl pool set %s, or remove it: forkctl pool rm %s", pp->name, pp->name);
        }
        if (d->pools->n >= POOL_MAX_POOLS)
                return err_set(e, ERR_LIMIT, -EMFILE, "there are %u pools already, the most that forkd holds", d->pools->n);
        return catalog_find(d->catalog, pp->from, ret_from, e);
}

static int create(struct daemon *d, const struct pool_params *pp, struct pool **ret, struct err *e) {
        cleanup_free struct pool *p = NULL;
        struct snap_entry *s;
        int r;

        r = pool_sizes_check(&pp->sizes, e);
        if (r == 0)
                r = vm_check_policy(pp->on_pager_loss, e);
        if (r == 0)
                r = check_new(d, pp, &s, e);
        if (r == 0)
                r = check_room(d, pp->name, s, pp->sizes.size, e);
        if (r == 0)
                r = check_new(d, pp, &s, e);
        if (r < 0)
                return r;
        p = pool_new(d, pp->name);
        if (!p)
                return err_errno(e, -ENOMEM, "making the pool '%s'", pp->name);
        memcpy(p->from, s->m.id, sizeof(p->from));
        (void) strcpy(p->on_pager_loss, pp->on_pager_loss);
        p->sizes = pp->sizes;
        r = pool_record_save(p, e);
        if (r < 0)
                return r;
        *ret = p;
        pool_enter(TAKE_PTR(p));
        return 0;
}

int pool_create(struct daemon *d, const struct pool_params *pp, struct mp_buf *out, struct err *e) {
        struct pool *p;
        int r = create(d, pp, &p, e);

        if (r < 0)
                return r;
        log_info("pool '%s': %u clones of %s", p->name, p->sizes.size, p->from);
        events_add(d->events, "pool.created", NULL, "%s: %u clones of %s", p->name, p->sizes.size, p->from);
        pools_kick(d);
        if (pp->wait) {
                r = wait_filled(d, pp->name, e);
                if (r == 0)
                        r = pool_find(d, pp->name, &p, e);
                if (r == 0)
                        r = check_first(p, e);
        }
        if (r == 0)
                pool_encode(p, out);
        return r;
}

static void merge_sizes(const struct pool_params *pp, struct pool_sizes *s) {
        if (pp->has_size)
                s->size = pp->sizes.size;
        if (pp->sizes.has_min) {
                s->has_min = true;
                s->min = pp->sizes.min;
        }
        if (pp->sizes.has_max) {
                s->has_max = true;
                s->max = pp->sizes.max;
        }
        if (pp->has_idle_timeout)
                s->idle_timeout_seconds = pp->sizes.idle_timeout_seconds;
}

static int find_changeable(struct daemon *d, const char *name, struct pool **ret, struct err *e) {
        int r = pool_find(d, name, ret, e);

        return r == 0 && (*ret)->removing ? err_set(e, ERR_BUSY, -EBUSY, "the pool '%s' is being removed", name) : r;
}

/* Is there room for those that a larger size asks for? */
static int check_growth(struct pool *p, const struct pool_params *pp, const struct pool_sizes *sizes, struct err *e) {
        struct snap_entry *s = pool_snapshot(p);
        struct pool_counts c;
        int r = pp->from ? catalog_find(p->d->catalog, pp->from, &s, e) : 0;

        if (r < 0 || !s || sizes->size <= p->sizes.size)
                return r;
        pool_count(p, &c);
        return check_room(p->d, pp->name, s, sizes->size - MIN_OF(sizes->size, c.fresh + c.old + c.making), e);
}

static int change(struct pool *p, const struct pool_sizes *sizes, const struct snap_entry *from, struct err *e) {
        struct pool_sizes sizes_before = p->sizes;
        id_str from_before;
        int r;

        memcpy(from_before, p->from, sizeof(from_before));
        p->sizes = *sizes;
        if (from)
                memcpy(p->from, from->m.id, sizeof(p->from));
        r = pool_record_save(p, e);
        if (r < 0) {
                p->sizes = sizes_before;
                memcpy(p->from, from_before, sizeof(p->from));
                return r;
        }
        p->demand.since_ns = now_ns();
        p->problem[0] = '\0';
        p->pause_ms = 0;
        p->retry_ns = 0;
        return 0;
}

int pool_set(struct daemon *d, const struct pool_params *pp, struct mp_buf *out, struct err *e) {
        struct snap_entry *from = NULL;
        struct pool_sizes sizes;
        struct pool *p;
        int r = find_changeable(d, pp->name, &p, e);

        if (r < 0)
                return r;
        sizes = p->sizes;
        merge_sizes(pp, &sizes);
        r = pool_sizes_check(&sizes, e);
        if (r == 0)
                r = check_growth(p, pp, &sizes, e);
        if (r == 0)
                r = find_changeable(d, pp->name, &p, e);
        if (r == 0 && pp->from)
                r = catalog_find(d->catalog, pp->from, &from, e);
        if (r == 0)
                r = change(p, &sizes, from, e);
        if (r < 0)
                return r;
        events_add(d->events, "pool.changed", NULL, "%s: %u clones of %s", p->name, p->sizes.size, p->from);
        pools_kick(d);
        if (pp->wait)
                r = wait_filled(d, pp->name, e);
        if (r == 0)
                r = pool_find(d, pp->name, &p, e);
        if (r == 0)
                pool_encode(p, out);
        return r;
}

static struct pool *by_serial(struct daemon *d, uint64_t serial) {
        struct pool *p;

        TAILQ_FOREACH (p, &d->pools->list, entry)
                if (p->serial == serial)
                        return p;
        return NULL;
}

int pool_remove(struct daemon *d, const char *name, unsigned *ret_members, struct err *e) {
        struct pool_counts c;
        uint64_t serial;
        struct pool *p;
        int r = pool_find(d, name, &p, e);

        if (r < 0)
                return r;
        pool_count(p, &c);
        *ret_members = c.fresh + c.old + c.making;
        /* Noted first: a removal that was cut off is finished by the next forkd. A full disk must not keep anybody from it. */
        p->removing = true;
        if (pool_record_save(p, e) < 0)
                log_warning("%s", e->message);
        pools_kick(d);
        for (serial = p->serial; r == 0 && (p = by_serial(d, serial));)
                r = pool_wait(p);
        if (r == 0)
                return 0;
        return err_set(e, ERR_CANCELED, r, "forkd is about to exit; the pool '%s' goes when it is back", name);
}
