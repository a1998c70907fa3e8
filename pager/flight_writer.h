/* SPDX-License-Identifier: MIT */
/* The writing side of the flight recorder: pager/flight.h has the layout. */
#pragma once

#include "common/cleanup.h"
#include "pager/flight.h"

struct pager_session;

struct pager_flight {
        int fd, readonly_fd;
        uint8_t *map;
};

/** Makes a recorder of @n_slots slots, all empty. */
int pager_flight_new(unsigned n_slots, struct pager_flight *ret) attr_warn_unused;
void pager_flight_clear(struct pager_flight *f);
struct pager_flight_slot *pager_flight_slot(const struct pager_flight *f, unsigned i);

/** The slot's worker, and nobody else: it has a fault on guest page @page of @s in hand; nothing any more. @slot may be
 *  NULL. */
void pager_flight_begin(struct pager_flight_slot *slot, const struct pager_session *s, uint64_t page);
void pager_flight_end(struct pager_flight_slot *slot);
