/* SPDX-License-Identifier: MIT */
/* Which fault a pager had in hand when it died: a successor that dies at the same one is not given a third chance, nor
 * another guest.
 *
 * The recorder was written by a process that has crashed: nothing in it is believed further than that an image is not
 * served any more, and that only of images that guests have at this moment. */
#include "forkd/pager/internal.h"

#include <inttypes.h>
#include <string.h>

#include "common/log.h"
#include "pager/flight.h"

static bool same(const struct pager_suspect *a, const struct pager_suspect *b) {
        return a->dev == b->dev && a->ino == b->ino && a->page == b->page;
}

static bool is_among(const struct pager_suspect *list, unsigned n, const struct pager_suspect *s) {
        for (unsigned i = 0; i < MIN_OF(n, (unsigned) PAGER_SUSPECTS); i++)
                if (same(&list[i], s))
                        return true;
        return false;
}

static void add(struct pager_suspect *list, unsigned *n, const struct pager_suspect *s) {
        list[(*n)++ % PAGER_SUSPECTS] = *s;
}

/* Is it a guest's image at all? */
static bool is_image(const struct pager *p, const struct pager_suspect *s) {
        const struct vm *vm;

        TAILQ_FOREACH (vm, &p->d->vms, entry)
                if (vm->session && vm->hold.image_dev == s->dev && vm->hold.image_ino == s->ino &&
                    s->page < vm->machine.mem_bytes / SNAP_PAGE_SIZE)
                        return true;
        return false;
}

static void note(struct pager *p, const struct pager_suspect *s) {
        if (!is_among(p->suspect, p->n_suspects, s)) {
                log_info("it had page %" PRIu64 " of the image with inode %" PRIu64 " in hand", s->page, s->ino);
                add(p->suspect, &p->n_suspects, s);
        } else if (!is_among(p->condemned, p->n_condemned, s)) {
                log_error("a second pager has died at page %" PRIu64 " of the image with inode %" PRIu64
                          ": no pager serves it any more",
                          s->page, s->ino);
                add(p->condemned, &p->n_condemned, s);
        }
}

void pager_suspects_note(struct pager *p, const struct pager_process *o) {
        struct pager_suspect fresh[PAGER_FLIGHT_MAX_SLOTS];
        struct pager_flight_slot slot;
        unsigned n = 0;

        if (!o->flight)
                return;
        for (int i = 0; i < pager_flight_slots(o->flight); i++)
                if (pager_flight_read(o->flight, (unsigned) i, &slot) == 1)
                        fresh[n++] = (struct pager_suspect){ slot.image_dev, slot.image_ino, slot.page };
        /* Two workers may have had the same page in hand: that is one death. */
        for (unsigned i = 0; i < n; i++)
                if (is_image(p, &fresh[i]) && !is_among(fresh, i, &fresh[i]))
                        note(p, &fresh[i]);
}

bool pager_condemned(const struct pager *p, uint64_t dev, uint64_t ino, uint64_t *ret_page) {
        for (unsigned i = 0; i < MIN_OF(p->n_condemned, (unsigned) PAGER_SUSPECTS); i++)
                if (ino != 0 && p->condemned[i].dev == dev && p->condemned[i].ino == ino) {
                        if (ret_page)
                                *ret_page = p->condemned[i].page;
                        return true;
                }
        return false;
}

void pager_suspects_forget(struct pager *p) {
        p->n_suspects = p->n_condemned = 0;
}
