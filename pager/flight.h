/* SPDX-License-Identifier: MIT */
/* The flight recorder: one page of shared memory in which each fault worker notes which fault it has in hand, so that
 * whoever finds the pager dead knows what it died on. The pager writes (flight.c); forkd has the descriptor, from the
 * method `flight`, and reads what a dead process has left behind: nothing in it is trusted.
 *
 *   offset  0   u32 magic "FKFL", u16 version, u16 n_slots, then zeros up to PAGER_FLIGHT_SLOT bytes
 *   then        n_slots slots of PAGER_FLIGHT_SLOT bytes, one a worker
 *
 * A slot is one cache line. Its writer makes `seq` odd, writes the rest, and makes it even again. All words are little
 * endian, as the machines that this runs on are. */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PAGER_FLIGHT_MAGIC 0x4c464b46u
#define PAGER_FLIGHT_VERSION 1u
#define PAGER_FLIGHT_BYTES 4096u
#define PAGER_FLIGHT_SLOT 64u
#define PAGER_FLIGHT_MAX_SLOTS (PAGER_FLIGHT_BYTES / PAGER_FLIGHT_SLOT - 1)

struct pager_flight_header {
        uint32_t magic;
        uint16_t version, n_slots;
        uint8_t zero[PAGER_FLIGHT_SLOT - 8];
};

struct pager_flight_slot {
        uint64_t seq;
        char session[24]; /* the id and a NUL; all zero: nothing in hand */
        uint64_t image_dev, image_ino, page;
        uint64_t zero;
};
_Static_assert(sizeof(struct pager_flight_header) == PAGER_FLIGHT_SLOT, "the header is as long as a slot");
_Static_assert(sizeof(struct pager_flight_slot) == PAGER_FLIGHT_SLOT, "a slot is one cache line");

/** How many slots there are. @map: PAGER_FLIGHT_BYTES of it. -EBADMSG: it is no flight recorder of this version. */
static inline int pager_flight_slots(const void *map) {
        struct pager_flight_header h;

        memcpy(&h, map, sizeof(h));
        if (h.magic != PAGER_FLIGHT_MAGIC || h.version != PAGER_FLIGHT_VERSION || h.n_slots > PAGER_FLIGHT_MAX_SLOTS)
                return -EBADMSG;
        return h.n_slots;
}

/** Reads slot @i, which is below pager_flight_slots(). 1: *ret tells of a fault in hand, and its session is a
 *  NUL-terminated string (of anything); 0: there is none; -EAGAIN: it is just being written, or was when its writer
 *  died. */
static inline int pager_flight_read(const void *map, unsigned i, struct pager_flight_slot *ret) {
        const uint64_t *from = (const uint64_t *) map + (size_t) (i + 1) * (PAGER_FLIGHT_SLOT / sizeof(uint64_t));
        uint64_t word[PAGER_FLIGHT_SLOT / sizeof(uint64_t)], seq = __atomic_load_n(&from[0], __ATOMIC_ACQUIRE);
        struct pager_flight_slot slot;

        for (size_t k = 0; k < sizeof(word) / sizeof(word[0]); k++)
                word[k] = __atomic_load_n(&from[k], __ATOMIC_ACQUIRE); /* none after the second look at seq */
        if (seq % 2 || __atomic_load_n(&from[0], __ATOMIC_RELAXED) != seq)
                return -EAGAIN;
        memcpy(&slot, word, sizeof(slot));
        slot.session[sizeof(slot.session) - 1] = '\0';
        if (!slot.session[0])
                return 0;
        *ret = slot;
        return 1;
}
