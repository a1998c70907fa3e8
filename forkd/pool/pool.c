/* SPDX-License-Identifier: MIT */
/* The table of pools, its records at a start, and what is told of them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/catalog.h"
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
        ps->may_raise_priority = pool_may_raise_priority();
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
