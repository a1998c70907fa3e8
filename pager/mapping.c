/* SPDX-License-Identifier: MIT */
/* Theory of operation. What a VMM maps cannot be found out again by another pager: which pages are whose follows from what was open
 * when it was started (lineage.c), and from its forks since. So it is told: the image and the extents that it has, and the runs
 * that the session maps from others (its view). Images are named by their memories, which all pagers have in common. */
#include "pager/mapping.h"

#include <errno.h>
#include <stdlib.h>

#include "pager/cache.h"
#include "pager/pager_internal.h"

/* ---- which images ---- */

bool pager_mapping_any(const struct pager_session *s, bool (*fn)(struct pager_image *img, void *arg), void *arg) {
        const struct pager_view *v = s->view; /* only this thread replaces it */

        for (size_t i = 0; i < pager_image_n_owners(s->image); i++)
                if (fn(pager_image_owner_at(s->image, i), arg))
                        return true;
        for (size_t i = 0; v && i < v->n; i++)
                if ((i == 0 || v->run[i].img != v->run[i - 1].img) && fn(v->run[i].img, arg))
                        return true;
        return v && s->since && fn(s->since->image, arg);
}

static bool is_image(struct pager_image *img, void *arg) {
        return img == arg;
}

bool pager_session_maps(const struct pager_session *s, const struct pager_image *img) {
        return pager_mapping_any(s, is_image, (void *) img);
}

void pager_session_unpin_view(struct pager_session *s) {
        for (size_t i = 0; i < s->n_pins; i++)
                pager_cache_put(s->pin[i]);
        free(s->pin);
        s->pin = NULL;
        s->n_pins = 0;
}

void pager_session_pin_view(struct pager *p, struct pager_session *s) {
        const struct pager_view *v = s->view;
        struct pager_session before = { .pin = s->pin, .n_pins = s->n_pins };

        s->n_pins = 0;
        s->pin = v ? calloc(v->n + 1, sizeof(struct pager_cached *)) : NULL;
        for (size_t i = 0; s->pin && i < v->n; i++) {
                struct pager_cached *c = pager_cache_of_image(p->cache, v->run[i].img);
                size_t k = 0;

                while (k < s->n_pins && s->pin[k] != c)
                        k++;
                if (!c || k < s->n_pins)
                        continue;
                pager_cache_use(c);
                s->pin[s->n_pins++] = c;
        }
        pager_session_unpin_view(&before);
}

/* ---- telling ---- */

struct listed {
        struct pager_image *image[PAGER_MAX_MAPPED];
        size_t n;
};

static size_t number_of(const struct listed *l, const struct pager_image *img) {
        size_t i = 0;

        while (i < l->n && l->image[i] != img)
                i++;
        return i;
}

/** True: there are too many. */
static bool list(struct pager_image *img, void *arg) {
        struct listed *l = arg;

        if (number_of(l, img) < l->n)
                return false;
        if (l->n == PAGER_MAX_MAPPED)
                return true;
        l->image[l->n++] = img;
        return false;
}

void pager_mapping_put(struct mp_buf *b, const struct pager_session *s) {
        struct listed l = { .n = 0 };
        bool many = pager_mapping_any(s, list, &l);

        mp_key(b, "images");
        mp_array(b, many ? 0 : l.n); /* nobody will take it over */
        for (size_t i = 0; !many && i < l.n; i++)
                mp_u64(b, pager_image_memory_id(l.image[i]));
        mp_key(b, "extents");
        mp_array(b, pager_image_n_extents(s->image));
        for (size_t i = 0; i < pager_image_n_extents(s->image); i++) {
                struct pager_extent x = pager_image_extent(s->image, i);

                mp_array(b, 2);
                mp_u64(b, x.first);
                mp_u64(b, x.owner);
        }
        mp_key(b, "view");
        mp_array(b, s->view && !many ? s->view->n : 0);
        for (size_t i = 0; s->view && !many && i < s->view->n; i++) {
                mp_array(b, 3);
                mp_u64(b, s->view->run[i].first);
                mp_u64(b, s->view->run[i].n);
                mp_u64(b, number_of(&l, s->view->run[i].img));
        }
        mp_key(b, "since");
        mp_array(b, s->view && s->since && !many);
        if (s->view && s->since && !many)
                mp_u64(b, number_of(&l, s->since->image));
}

/* ---- being told ---- */

static int get_images(const msgpack_object *a, struct pager_mapping *m) {
        if (a->via.array.size == 0 || a->via.array.size > PAGER_MAX_MAPPED)
                return -EINVAL;
        for (; m->n_images < a->via.array.size; m->n_images++) {
                const msgpack_object *o = &a->via.array.ptr[m->n_images];

                if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                        return -EINVAL;
                for (size_t i = 0; i < m->n_images; i++)
                        if (m->image[i] == o->via.u64)
                                return -EINVAL;
                m->image[m->n_images] = o->via.u64;
        }
        return 0;
}

static int get_extents(const msgpack_object *a, uint64_t n_pages, struct pager_mapping *m) {
        if (!a || a->via.array.size == 0 || a->via.array.size > PAGER_MAX_EXTENTS)
                return -EINVAL;
        for (; m->n_extents < a->via.array.size; m->n_extents++) {
                struct pager_extent *x = &m->extent[m->n_extents];
                uint64_t v[2];

                if (mp_as_u64s(&a->via.array.ptr[m->n_extents], v, 2) < 0 || v[0] >= n_pages || v[1] >= m->n_images ||
                    v[1] >= PAGER_MAX_OWNERS || (m->n_extents == 0 ? v[0] != 0 : v[0] <= x[-1].first))
                        return -EINVAL;
                *x = (struct pager_extent){ v[0], (uint32_t) v[1] };
                m->n_owners = MAX_OF(m->n_owners, (size_t) v[1] + 1);
        }
        return 0;
}

static int get_runs(const msgpack_object *a, uint64_t n_pages, struct pager_mapping *m) {
        uint64_t at = 0;

        if (!a || a->via.array.size > PAGER_MAX_REMAPPED)
                return -EINVAL;
        for (; m->n_runs < a->via.array.size; m->n_runs++) {
                uint64_t v[3];

                if (mp_as_u64s(&a->via.array.ptr[m->n_runs], v, 3) < 0 || v[0] < at || v[0] >= n_pages || v[1] == 0 ||
                    v[1] > n_pages - v[0] || v[2] >= m->n_images)
                        return -EINVAL;
                m->run[m->n_runs] = (struct pager_mapped_run){ v[0], v[1], v[2] };
                at = v[0] + v[1];
        }
        return 0;
}

static int get_since(const msgpack_object *a, struct pager_mapping *m) {
        uint64_t v;

        if (!a || a->via.array.size > 1)
                return -EINVAL;
        if (a->via.array.size == 0)
                return 0;
        if (mp_as_u64s(a, &v, 1) < 0 || v == 0 || v >= m->n_images)
                return -EINVAL;
        m->since = v;
        return 0;
}

int pager_mapping_get(const msgpack_object *params, uint64_t n_pages, struct pager_mapping **ret, struct err *e) {
        const msgpack_object *images = mp_get_array(params, "images");
        cleanup_free struct pager_mapping *m = calloc(1, sizeof(*m));
        int r = 0;

        if (!m)
                return err_errno(e, -ENOMEM, "adopting a session");
        if (images) {
                r = get_images(images, m);
                if (r == 0)
                        r = get_extents(mp_get_array(params, "extents"), n_pages, m);
                if (r == 0)
                        r = get_runs(mp_get_array(params, "view"), n_pages, m);
                if (r == 0)
                        r = get_since(mp_get_array(params, "since"), m);
        } else if (mp_get(params, "images")) {
                r = -EINVAL;
        }
        if (r < 0)
                return err_set(e, ERR_INVALID, r, "images, extents, view and since do not tell what a VMM maps");
        *ret = TAKE_PTR(m);
        return 0;
}

/** Nobody looks yet at what the image has from others: those who map it themselves do not. */
static bool is_first(const struct pager *p, const struct pager_cached *c) {
        for (const struct pager_session *s = p->sessions; s; s = s->next)
                if (s->cached == c)
                        return false;
        return pager_image_n_owners(c->image) == 1;
}

/** Of the image itself: which pages its ancestors own. */
static int apply_extents(struct pager *p, struct pager_cached *c, struct pager_image *const *image, const struct pager_mapping *m,
                         struct err *e) {
        struct pager_image *img = c->image;

        if (m->n_extents > 1 && is_first(p, c)) {
                int r = pager_image_set_extents(img, image, m->n_owners, m->extent, m->n_extents);

                if (r < 0)
                        return err_errno(e, r, "adopting an image with pages of others");
                pager_cache_link(c);
                return 0;
        }
        bool same = pager_image_n_extents(img) == m->n_extents;

        for (size_t i = 0; same && i < m->n_extents; i++) {
                struct pager_extent x = pager_image_extent(img, i);

                same = x.first == m->extent[i].first && pager_image_owner_at(img, x.owner) == image[m->extent[i].owner];
        }
        return same ? 0 : err_set(e, ERR_INVALID, -EINVAL, "the image is open already, with other pages of others");
}

static int apply_view(struct pager *p, struct pager_session *s, struct pager_image *const *image, const struct pager_mapping *m,
                      struct err *e) {
        struct pager_view *v;

        if (m->n_runs == 0)
                return 0;
        v = pager_view_new(m->n_runs);
        if (!v)
                return err_errno(e, -ENOMEM, "adopting a session");
        for (size_t i = 0; i < m->n_runs; i++)
                pager_view_add(v, m->run[i].first, m->run[i].n, image[m->run[i].image]);
        pager_session_set_view(s, v);
        pager_session_pin_view(p, s);
        if (m->since > 0) {
                s->since = pager_cache_of_image(p->cache, image[m->since]);
                pager_cache_use(s->since);
        }
        return 0;
}

int pager_mapping_apply(struct pager *p, struct pager_session *s, const struct pager_mapping *m, struct err *e) {
        struct pager_image *image[PAGER_MAX_MAPPED] = { s->image };
        int r;

        if (m->n_images == 0)
                return pager_image_n_owners(s->image) == 1
                               ? 0
                               : err_set(e, ERR_INVALID, -EINVAL,
                                         "the image has pages of others, of which the session was not told");
        for (size_t i = 1; i < m->n_images; i++) {
                const struct pager_cached *c = pager_cache_of_memory(p->cache, m->image[i]);

                if (!c || pager_image_pages(c->image) != pager_image_pages(s->image))
                        return err_set(e, ERR_NOT_FOUND, -ENOENT, "image %llu, whose pages the VMM maps, is not open here",
                                       (unsigned long long) m->image[i]);
                if (pager_image_is_bad(c->image))
                        return err_set(e, ERR_CORRUPT, -EUCLEAN, "the content of an image's memory is in doubt");
                image[i] = c->image;
        }
        r = apply_extents(p, s->cached, image, m, e);
        return r < 0 ? r : apply_view(p, s, image, m, e);
}
