/* SPDX-License-Identifier: MIT */
/* Theory of operation. An entry is in use by its sessions and by those of its descendants, which map pages of its memory, and
 * idle when there are none. Idle entries go after a while, or when their descriptors are needed; but not before the open
 * images that refer to them, which have been idle for no less time.
 *
 * An image that is opened takes its pages from its nearest ancestor that is open, as far as they are the same: that has taken them from
 * its own ancestors where it could. Of the ids that the caller gives only the order counts; that one image's file is the beginning of
 * the other's is seen in the files. An ancestor whose memory is in doubt, or about to be another pager's, is passed over. */
#include "pager/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "pager/ahead.h"
#include "pager/lineage.h"

struct pager_cache {
        struct event_base *base;
        struct pager_reclaim *reclaim;
        unsigned idle_seconds, n;
        struct pager_cached *first;
        struct pager_image_stats past;
};

/** What it holds on to goes, too, if it was to: not before we are back in the loop. */
static void unlink_ancestors(struct pager_cached *entry) {
        while (entry->n_ancestors > 0) {
                struct pager_cached *a = entry->ancestor[--entry->n_ancestors];

                if (--a->n_descendants == 0 && a->expired)
                        event_active(a->expiry, EV_TIMEOUT, 0);
        }
}

static void drop(struct pager_cached *entry) {
        struct pager_cached **p = &entry->cache->first;
        struct pager_image_stats st;

        unlink_ancestors(entry);
        while (*p != entry)
                p = &(*p)->next;
        pager_image_get_stats(entry->image, &st);
        entry->cache->past.decodes += st.decodes;
        for (unsigned i = 0; i < PAGER_N_CAUSES; i++)
                entry->cache->past.pages[i] += st.pages[i];
        entry->cache->past.compressed_bytes += st.compressed_bytes;
        entry->cache->past.reclaimed_pages += st.reclaimed_pages;
        entry->cache->past.refaults += st.refaults;
        *p = entry->next;
        entry->cache->n--;
        pager_image_cancel_fill(entry->image);
        pager_ahead_unref(entry->ahead);
        pager_image_unref(entry->image);
        event_free(entry->expiry);
        free(entry);
}

/** It is not needed any more. */
static void expire(struct pager_cached *entry) {
        entry->expired = true;
        if (entry->n_descendants == 0)
                drop(entry);
}

static void on_expiry(evutil_socket_t fd, short what, void *arg) {
        struct pager_cached *entry = arg;

        if (entry->n_users == 0) /* nobody has come in between */
                expire(entry);
}

int pager_cache_new(struct event_base *base, struct pager_reclaim *reclaim, unsigned idle_seconds, struct pager_cache **ret) {
        struct pager_cache *c = calloc(1, sizeof(*c));

        if (!c)
                return -ENOMEM;
        c->base = base;
        c->reclaim = reclaim;
        c->idle_seconds = idle_seconds;
        *ret = c;
        return 0;
}

void pager_cache_free(struct pager_cache *c) {
        if (!c)
                return;
        for (struct pager_cached *i = c->first; i; i = i->next)
                i->n_ancestors = 0; /* all of them go */
        while (c->first)
                drop(c->first);
        free(c);
}

bool pager_cache_drop_idle(struct pager_cache *c) {
        struct pager_cached *oldest = NULL;

        for (struct pager_cached *i = c->first; i; i = i->next)
                if (i->n_users == 0 && i->n_descendants == 0 && (!oldest || i->idle_since_ns < oldest->idle_since_ns))
                        oldest = i;
        if (!oldest)
                return false;
        drop(oldest);
        return true;
}

static struct pager_cached *find(struct pager_cache *c, const struct pager_image_key *key) {
        for (struct pager_cached *i = c->first; i; i = i->next) {
                int r;

                if (i->stale || !pager_image_matches(i->image, key))
                        continue;
                r = pager_image_audit(i->image);
                if (!pager_image_is_bad(i->image) && r != -EUCLEAN && !(r == -EINPROGRESS && i->n_users == 0))
                        return i;
                /* What its memory holds is in doubt: whoever comes new reads the file anew. */
                i->stale = true;
                if (i->n_users == 0)
                        expire(i);
                return NULL;
        }
        return NULL;
}

static int open_error(int r, struct err *e) {
        if (r == -EBADMSG)
                return err_set(e, ERR_CORRUPT, r, "the memory image is torn or corrupt");
        if (r == -EPROTONOSUPPORT)
                return err_set(e, ERR_VERSION, r, "the memory image has a format version that this pager does not know");
        if (r == -EOPNOTSUPP)
                return err_set(e, ERR_UNSUPPORTED, r, "this kernel's userfaultfd cannot serve shared memory");
        if (r == -EBADF)
                return err_set(e, ERR_INVALID, r, "the third descriptor is no memfd of an image of this size, open for writing");
        if (r == -EUCLEAN)
                return err_set(e, ERR_INVALID, r, "the third descriptor is the memory of another image");
        return err_errno(e, r, "opening the memory image");
}

/** Makes an entry of @img, taken in any case. */
static int add_entry(struct pager_cache *c, struct pager_image *img, struct pager_cached **ret, struct err *e) {
        struct pager_cached *entry = calloc(1, sizeof(*entry));

        if (entry)
                entry->expiry = evtimer_new(c->base, on_expiry, entry);
        if (!entry || !entry->expiry) {
                free(entry);
                pager_image_unref(img);
                return err_errno(e, -ENOMEM, "opening an image");
        }
        entry->image = img;
        entry->cache = c;
        entry->next = c->first;
        c->first = entry;
        c->n++;
        *ret = entry;
        return 0;
}

static int make_room(struct pager_cache *c, struct err *e) {
        if (c->n >= PAGER_MAX_IMAGES && !pager_cache_drop_idle(c))
                return err_set(e, ERR_LIMIT, -EMFILE, "%u images are in use, which is the limit", PAGER_MAX_IMAGES);
        return 0;
}

/** @memfd: -1, or the memory that it has already. */
static int open_entry(struct pager_cache *c, int fd, int memfd, struct pager_cached **ret, struct err *e) {
        struct pager_image *img;
        int r = make_room(c, e);

        if (r < 0)
                return r;
        r = memfd < 0 ? pager_image_open(fd, c->reclaim, &img) : pager_image_adopt(fd, memfd, c->reclaim, &img);
        return r < 0 ? open_error(r, e) : add_entry(c, img, ret, e);
}

static int key_of(int fd, struct pager_image_key *ret, struct err *e) {
        int r, flags = fcntl(fd, F_GETFL);

        /* Also of an image that is open already: whoever cannot read the file is not shown its pages. */
        if (flags < 0 || flags & O_PATH || (flags & O_ACCMODE) == O_WRONLY)
                return err_set(e, ERR_INVALID, -EBADF, "the memory image is not open for reading");
        r = pager_image_key_of_fd(fd, ret);
        return r < 0 ? err_errno(e, r, "looking at the memory image") : 0;
}

static bool is_released(const struct pager_cache *c, const struct pager_image_key *key) {
        for (const struct pager_cached *i = c->first; i; i = i->next)
                if (i->n_released > 0 && pager_image_matches(i->image, key))
                        return true;
        return false;
}

static void add_user(struct pager_cached *entry) {
        if (entry->n_users++ > 0)
                return;
        entry->expired = false;
        pager_image_set_idle(entry->image, 0);
        (void) event_del(entry->expiry);
}

static void remove_user(struct pager_cached *entry) {
        struct timeval idle = { .tv_sec = entry->cache->idle_seconds };

        if (--entry->n_users > 0)
                return;
        entry->idle_since_ns = now_ns();
        pager_image_set_idle(entry->image, entry->idle_since_ns);
        if (entry->stale || pager_image_is_bad(entry->image) || idle.tv_sec == 0 || event_add(entry->expiry, &idle) < 0)
                expire(entry);
}

void pager_cache_use(struct pager_cached *entry) {
        entry->n_sessions++;
        add_user(entry);
        for (unsigned i = 0; i < entry->n_ancestors; i++)
                add_user(entry->ancestor[i]);
}

void pager_cache_put(struct pager_cached *entry) {
        struct pager_cached *ancestor[PAGER_MAX_OWNERS];
        unsigned n = entry->n_ancestors;

        memcpy(ancestor, entry->ancestor, n * sizeof(*ancestor));
        entry->n_sessions--;
        remove_user(entry); /* and with it perhaps their last descendant: they go later, in any case */
        for (unsigned i = 0; i < n; i++)
                remove_user(ancestor[i]);
}

void pager_cache_put_later(struct pager_cached *entry) {
        unsigned idle = entry->cache->idle_seconds;
        bool stale = entry->stale;

        entry->cache->idle_seconds = MAX_OF(idle, PAGER_HANDSHAKE_SECONDS);
        entry->stale = false;
        pager_cache_put(entry);
        entry->stale = stale;
        entry->cache->idle_seconds = idle;
}

/* ---- descent ---- */

struct pager_cached *pager_cache_of_image(const struct pager_cache *c, const struct pager_image *img) {
        struct pager_cached *i = c->first;

        while (i && i->image != img)
                i = i->next;
        return i;
}

struct pager_cached *pager_cache_of_memory(const struct pager_cache *c, uint64_t memory_id) {
        struct pager_cached *i = c->first;

        while (i && pager_image_memory_id(i->image) != memory_id)
                i = i->next;
        return i;
}

/** May new images take pages from it? */
static bool may_be_base(const struct pager_cached *base) {
        if (base->stale || pager_image_is_nascent(base->image) || pager_image_is_bad(base->image) ||
            pager_image_audit(base->image) == -EUCLEAN)
                return false;
        for (size_t i = 0; i < pager_image_n_owners(base->image); i++) {
                const struct pager_image *owner = pager_image_owner_at(base->image, i);
                const struct pager_cached *o = pager_cache_of_image(base->cache, owner);

                if (!o || o->stale || o->n_released > 0 || pager_image_readonly_fd(owner) < 0)
                        return false;
        }
        return true;
}

static struct pager_cached *find_label(const struct pager_cache *c, const char *id) {
        struct pager_cached *i = c->first;

        while (i && (i->stale || strcmp(i->label, id) != 0))
                i = i->next;
        return i;
}

static int inherit(struct pager_cached *entry, struct pager_cached *base) {
        struct pager_image *img = entry->image;
        uint64_t regions = (pager_image_info(img)->ram_bytes / PAGER_PAGE + SNAP_REGION_PAGES - 1) / SNAP_REGION_PAGES;
        cleanup_free uint64_t *own = NULL;
        int r = pager_image_descends(img, base->image);

        if (r <= 0)
                return r;
        own = calloc(regions, SNAP_REGION_PAGES / 8);
        if (!own)
                return -ENOMEM;
        r = pager_image_diff(img, base->image, own);
        return r < 0 ? r : pager_image_set_base(img, base->image, own);
}

void pager_cache_link(struct pager_cached *entry) {
        for (size_t i = 1; i < pager_image_n_owners(entry->image); i++) {
                struct pager_cached *a = pager_cache_of_image(entry->cache, pager_image_owner_at(entry->image, i));

                if (!a)
                        continue;
                a->n_descendants++;
                entry->ancestor[entry->n_ancestors++] = a;
                for (unsigned k = 0; k < entry->n_sessions; k++)
                        add_user(a);
        }
}

/** Nothing is lost where it cannot be done but memory. */
static void find_base(struct pager_cached *entry, const struct pager_descent *d) {
        int r = 0;

        for (size_t i = 0; i < d->n_chain; i++) {
                struct pager_cached *base = find_label(entry->cache, d->chain[i]);

                if (!base || base == entry || !may_be_base(base))
                        continue;
                r = inherit(entry, base);
                break;
        }
        if (r < 0)
                log_debug("an image shares nothing with its ancestors: %s", strerrordesc_np(-r));
        pager_cache_link(entry);
}

/* ---- getting ---- */

int pager_cache_get(struct pager_cache *c, int fd, const struct pager_descent *d, struct pager_cached **ret, struct err *e) {
        struct pager_image_key key;
        struct pager_cached *entry;
        int r = key_of(fd, &key, e);

        if (r < 0)
                return r;
        if (is_released(c, &key))
                return err_set(e, ERR_BUSY, -EBUSY, "sessions of the image are being handed to another pager");
        entry = find(c, &key);
        if (!entry) {
                r = open_entry(c, fd, -1, &entry, e);
                if (r < 0)
                        return r;
                find_base(entry, d);
        }
        if (d->id[0])
                (void) snprintf(entry->label, sizeof(entry->label), "%s", d->id);
        pager_cache_use(entry);
        *ret = entry;
        return 0;
}

int pager_cache_add(struct pager_cache *c, struct pager_image *img, struct pager_cached **ret, struct err *e) {
        int r = make_room(c, e);

        if (r == 0)
                r = add_entry(c, pager_image_ref(img), ret, e);
        if (r == 0)
                pager_cache_use(*ret);
        return r;
}

/** The entry with the memory @memfd, or NULL. */
static int find_memory(struct pager_cache *c, const struct pager_image_key *key, int memfd, struct pager_cached **ret,
                       struct err *e) {
        struct pager_cached *i = c->first;

        while (i && !pager_image_has_memory(i->image, memfd))
                i = i->next;
        *ret = i;
        if (!i)
                return 0;
        if (!pager_image_matches(i->image, key))
                return err_set(e, ERR_INVALID, -EUCLEAN, "the third descriptor is the memory of another image");
        if (i->n_released > 0)
                return err_set(e, ERR_BUSY, -EBUSY, "sessions of the image are being handed to another pager");
        if (pager_image_is_bad(i->image) || pager_image_audit(i->image) == -EUCLEAN)
                return err_set(e, ERR_CORRUPT, -EUCLEAN, "the content of the image's memory is in doubt");
        return 0;
}

int pager_cache_adopt(struct pager_cache *c, int fd, int memfd, struct pager_cached **ret, struct err *e) {
        struct pager_image_key key;
        struct pager_cached *entry;
        int r = key_of(fd, &key, e);

        if (r == 0)
                r = find_memory(c, &key, memfd, &entry, e);
        if (r == 0 && !entry)
                r = open_entry(c, fd, memfd, &entry, e);
        if (r < 0)
                return r;
        pager_image_share(entry->image);
        if (pager_image_readonly_fd(entry->image) < 0) /* nothing to give to a new VMM */
                entry->stale = true;
        pager_cache_use(entry);
        *ret = entry;
        return 0;
}

struct pager_cached *pager_cache_first(const struct pager_cache *c) {
        return c->first;
}

const struct pager_image_stats *pager_cache_past(const struct pager_cache *c) {
        return &c->past;
}

unsigned pager_cache_count(const struct pager_cache *c) {
        return c->n;
}
