/* SPDX-License-Identifier: MIT */
/* The table of pools, and what requests do with them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/catalog.h"
#include "forkd/events.h"
#include "forkd/pool/internal.h"

#define RECORD_MAX_BYTES 4096

/* ---- the table ---- */

struct pool *pool_by_name(const struct daemon *d, const char *name) {
        struct pool *p;

        if (!d->pools)
                return NULL;
        TAILQ_FOREACH (p, &d->pools->list, entry)
                if (strcmp(p->name, name) == 0)
                        return p;
        return NULL;
}

int pool_find(struct daemon *d, const char *name, struct pool **ret, struct err *e) {
        struct pool *p = pool_by_name(d, name);

        if (!p) {
                (void) err_set(e, ERR_NOT_FOUND, -ENOENT, "there is no pool named '%.80s'", name);
                return err_hint(e, "'forkctl pool ls' lists the pools");
        }
        *ret = p;
        return 0;
}

struct pool *pool_new(struct daemon *d, const char *name) {
        struct pool *p = calloc(1, sizeof(*p));
        struct timespec now;

        if (!p)
                return NULL;
        (void) clock_gettime(CLOCK_REALTIME, &now);
        p->d = d;
        (void) snprintf(p->name, sizeof(p->name), "%s", name);
        p->created_ns = (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
        p->demand.since_ns = now_ns();
        TAILQ_INIT(&p->waiters);
        return p;
}

static void tick_on(struct pools *ps) {
        static const struct timeval second = { .tv_sec = 1 };

        if (ps->n > 0 && ps->open && event_add(ps->tick, &second) < 0)
                log_error("out of memory: pools are not looked after");
}

void pool_enter(struct pool *p) {
        struct pools *ps = p->d->pools;
        struct pool *after;

        TAILQ_FOREACH (after, &ps->list, entry)
                if (strcmp(after->name, p->name) > 0)
                        break;
        if (after)
                TAILQ_INSERT_BEFORE(after, p, entry);
        else
                TAILQ_INSERT_TAIL(&ps->list, p, entry);
        ps->n++;
        p->serial = ++ps->serials;
        tick_on(ps);
}

void pool_tell(struct pool *p, int r) {
        for (struct pool_waiter *w; (w = TAILQ_FIRST(&p->waiters));) {
                TAILQ_REMOVE(&p->waiters, w, entry);
                co_wake(&w->wait, r);
        }
}

int pool_wait(struct pool *p) {
        struct pool_waiter w = { .wait = CO_WAIT_INIT };

        if (p->d->stopping)
                return -ECANCELED;
        TAILQ_INSERT_TAIL(&p->waiters, &w, entry);
        return co_wait(&w.wait, -1);
}

void pool_free(struct pool *p) {
        struct pools *ps = p->d->pools;

        pool_tell(p, 0);
        TAILQ_REMOVE(&ps->list, p, entry);
        if (--ps->n == 0)
                (void) event_del(ps->tick);
        free(p);
}

/* ---- forkd's life ---- */

static void on_kick(evutil_socket_t fd, short what, void *arg) {
        pools_keep(arg);
}

static void on_tick(evutil_socket_t fd, short what, void *arg) {
        pools_tick(arg);
}

int pools_new(struct daemon *d, struct pools **ret) {
        struct pools *ps = calloc(1, sizeof(*ps));

        if (!ps)
                return -ENOMEM;
        ps->d = d;
        TAILQ_INIT(&ps->list);
        ps->cores = (unsigned) MAX_OF(sysconf(_SC_NPROCESSORS_ONLN), 1L);
        ps->kick = event_new(d->base, -1, 0, on_kick, ps);
        ps->later = event_new(d->base, -1, 0, on_kick, ps);
        ps->tick = event_new(d->base, -1, EV_PERSIST, on_tick, ps);
        *ret = ps;
        return ps->kick && ps->later && ps->tick ? 0 : -ENOMEM;
}

void pools_free(struct pools *ps) {
        if (!ps)
                return;
        for (struct pool *p; (p = TAILQ_FIRST(&ps->list));)
                pool_free(p);
        if (ps->kick)
                event_free(ps->kick);
        if (ps->later)
                event_free(ps->later);
        if (ps->tick)
                event_free(ps->tick);
        free(ps);
}

void pools_kick(struct daemon *d) {
        if (d->pools && d->pools->open)
                event_active(d->pools->kick, EV_TIMEOUT, 0);
}

void pools_start(struct daemon *d) {
        d->pools->open = true;
        tick_on(d->pools);
        pools_kick(d);
}

/* Nobody waits for a pool when forkd ends. */
void pools_stop(struct daemon *d) {
        struct pool *p;

        if (d->pools)
                TAILQ_FOREACH (p, &d->pools->list, entry)
                        pool_tell(p, -ECANCELED);
}

static int load_one(struct daemon *d, int dir_fd, const char *name) {
        cleanup_free char *data = NULL;
        cleanup_free struct pool *p = NULL;
        size_t len;
        int r;

        r = io_read_file(dir_fd, name, RECORD_MAX_BYTES, &data, &len);
        if (r < 0)
                return r;
        p = pool_new(d, name);
        if (!p)
                return -ENOMEM;
        r = pool_record_decode(data, len, p);
        if (r == 0 && strcmp(p->name, name) != 0)
                r = -EBADMSG;
        if (r == 0)
                pool_enter(TAKE_PTR(p));
        return r;
}

int pools_load(struct daemon *d, struct err *e) {
        char path[PATH_MAX];
        struct dirent *de;
        DIR *dir;

        (void) snprintf(path, sizeof(path), "%s/pools", d->state_dir);
        dir = opendir(path);
        if (!dir)
                return err_errno(e, -errno, "reading the pools' records in %s", path);
        while ((de = readdir(dir))) {
                int r;

                if (!name_valid(de->d_name))
                        continue;
                r = load_one(d, dirfd(dir), de->d_name);
                if (r < 0 && r != -ENOENT)
                        log_error("the record of pool '%s' in %s cannot be used and is left alone: %s", de->d_name, path,
                                  strerror(-r));
        }
        (void) closedir(dir);
        return 0;
}

/* ---- what is told ---- */

const struct pool *pools_first(const struct daemon *d) {
        return d->pools ? TAILQ_FIRST(&d->pools->list) : NULL;
}

const struct pool *pools_next(const struct pool *p) {
        return TAILQ_NEXT(p, entry);
}

unsigned pools_count(const struct daemon *d) {
        return d->pools ? d->pools->n : 0;
}

void pool_get_figures(const struct pool *p, struct pool_figures *ret) {
        struct pool_counts c;

        pool_count(p, &c);
        *ret = (struct pool_figures){
                .name = p->name,
                .size = p->sizes.size,
                .wanted = p->removing ? 0 : pool_wanted(&p->sizes, &p->demand, now_ns()),
                .warm = c.fresh + c.old,
                .making = c.making,
                .taken_warm = p->taken_warm,
                .taken_cold = p->taken_cold,
        };
}

void pool_encode(const struct pool *p, struct mp_buf *b) {
        const struct snap_entry *s = pool_snapshot(p);
        struct pool_counts c;

        pool_count(p, &c);
        mp_map(b, 17);
        mp_kv_str(b, "name", p->name);
        mp_kv_str(b, "from", p->from);
        mp_kv_str(b, "tag", s && s->m.tag[0] ? s->m.tag : NULL);
        mp_kv_u64(b, "size", p->sizes.size);
        mp_kv_u64(b, "min", pool_min(&p->sizes));
        mp_kv_u64(b, "max", pool_max(&p->sizes));
        mp_kv_u64(b, "wanted", p->removing ? 0 : pool_wanted(&p->sizes, &p->demand, now_ns()));
        mp_kv_u64(b, "warm", c.fresh + c.old);
        mp_kv_u64(b, "old", c.old);
        mp_kv_u64(b, "making", c.making);
        mp_kv_u64(b, "idle_timeout_s", p->sizes.idle_timeout_seconds);
        mp_kv_str(b, "on_pager_loss", p->on_pager_loss);
        mp_kv_u64(b, "taken_warm", p->taken_warm);
        mp_kv_u64(b, "taken_cold", p->taken_cold);
        mp_kv_bool(b, "removing", p->removing);
        mp_kv_str(b, "problem", p->problem[0] ? p->problem : NULL);
        mp_kv_double(b, "created", (double) p->created_ns / 1e9);
}

const char *pools_user_of(const struct daemon *d, const char *snapshot) {
        const struct pool *p;

        for (p = pools_first(d); p; p = pools_next(p))
                if (!p->removing && strcmp(p->from, snapshot) == 0)
                        return p->name;
        return NULL;
}

/* ---- requests ---- */

/* Would the host bear that many more? Nothing stays reserved: each member reserves for itself when it is made. */
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

static int create(struct daemon *d, const struct pool_params *pp, struct pool **ret, struct err *e) {
        cleanup_free struct pool *p = NULL;
        struct snap_entry *s;
        int r;

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
        r = pool_sizes_check(&pp->sizes, e);
        if (r == 0)
                r = vm_check_policy(pp->on_pager_loss, e);
        if (r == 0)
                r = catalog_find(d->catalog, pp->from, &s, e);
        if (r == 0)
                r = check_room(d, pp->name, s, pp->sizes.size, e);
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

static int change(struct pool *p, const struct pool_params *pp, struct err *e) {
        struct pool_sizes sizes = p->sizes, before = p->sizes;
        struct snap_entry *s = NULL;
        struct pool_counts c;
        id_str from;
        int r = 0;

        memcpy(from, p->from, sizeof(from));
        merge_sizes(pp, &sizes);
        r = pool_sizes_check(&sizes, e);
        if (r == 0 && pp->from)
                r = catalog_find(p->d->catalog, pp->from, &s, e);
        if (r < 0)
                return r;
        if (!s)
                s = pool_snapshot(p);
        pool_count(p, &c);
        if (s && sizes.size > before.size)
                r = check_room(p->d, p->name, s, sizes.size - MIN_OF(sizes.size, c.fresh + c.old + c.making), e);
        if (r < 0)
                return r;
        p->sizes = sizes;
        if (pp->from)
                memcpy(p->from, s->m.id, sizeof(p->from));
        r = pool_record_save(p, e);
        if (r < 0) {
                p->sizes = before;
                memcpy(p->from, from, sizeof(p->from));
                return r;
        }
        p->demand.since_ns = now_ns();
        p->problem[0] = '\0';
        p->pause_ms = 0;
        p->retry_ns = 0;
        return 0;
}

int pool_set(struct daemon *d, const struct pool_params *pp, struct mp_buf *out, struct err *e) {
        struct pool *p;
        int r = pool_find(d, pp->name, &p, e);

        if (r == 0 && p->removing)
                r = err_set(e, ERR_BUSY, -EBUSY, "the pool '%s' is being removed", p->name);
        if (r == 0)
                r = change(p, pp, e);
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
