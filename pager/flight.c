/* SPDX-License-Identifier: MIT */
#include "pager/flight_writer.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pager/session.h"

_Static_assert(PAGER_MAX_WORKERS <= PAGER_FLIGHT_MAX_SLOTS, "each worker has a slot");
_Static_assert(sizeof(id_str) <= sizeof(((struct pager_flight_slot *) 0)->session), "an id fits");

int pager_flight_new(unsigned n_slots, struct pager_flight *ret) {
        const struct pager_flight_header header = { .magic = PAGER_FLIGHT_MAGIC,
                                                    .version = PAGER_FLIGHT_VERSION,
                                                    .n_slots = (uint16_t) n_slots };
        cleanup_fd int fd = memfd_create("forkd-flight", MFD_CLOEXEC | MFD_ALLOW_SEALING), readonly_fd = -1;
        char path[64];
        void *map;

        if (fd < 0 || ftruncate(fd, PAGER_FLIGHT_BYTES) < 0 ||
            fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
                return -errno;
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        readonly_fd = open(path, O_RDONLY | O_CLOEXEC);
        if (readonly_fd < 0)
                return -errno;
        map = mmap(NULL, PAGER_FLIGHT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
        if (map == MAP_FAILED)
                return -errno;
        memcpy(map, &header, sizeof(header));
        *ret = (struct pager_flight){ .fd = TAKE_FD(fd), .readonly_fd = TAKE_FD(readonly_fd), .map = map };
        return 0;
}

void pager_flight_clear(struct pager_flight *f) {
        if (!f->map)
                return;
        (void) munmap(f->map, PAGER_FLIGHT_BYTES);
        (void) close_fd(f->fd);
        (void) close_fd(f->readonly_fd);
        *f = (struct pager_flight){ .fd = -1, .readonly_fd = -1 };
}

struct pager_flight_slot *pager_flight_slot(const struct pager_flight *f, unsigned i) {
        return (struct pager_flight_slot *) (void *) (f->map + (size_t) (i + 1) * PAGER_FLIGHT_SLOT);
}

/** Replaces a slot, but for its seq. A reader that sees a part of it sees another seq, or an odd one. */
static void put(struct pager_flight_slot *slot, const struct pager_flight_slot *from) {
        uint64_t word[PAGER_FLIGHT_SLOT / sizeof(uint64_t)], *to = &slot->seq;
        uint64_t seq = __atomic_load_n(to, __ATOMIC_RELAXED);

        memcpy(word, from, sizeof(word));
        __atomic_store_n(to, seq + 1, __ATOMIC_RELAXED);
        for (size_t i = 1; i < sizeof(word) / sizeof(word[0]); i++)
                __atomic_store_n(to + i, word[i], __ATOMIC_RELEASE); /* none before the odd seq */
        __atomic_store_n(to, seq + 2, __ATOMIC_RELEASE);
}

void pager_flight_begin(struct pager_flight_slot *slot, const struct pager_session *s, uint64_t page) {
        const struct pager_image_key *key = pager_image_key(s->image);
        struct pager_flight_slot now = { .image_dev = key->dev, .image_ino = key->ino, .page = page };

        if (!slot)
                return;
        memcpy(now.session, s->id, sizeof(s->id));
        put(slot, &now);
}

void pager_flight_end(struct pager_flight_slot *slot) {
        static const struct pager_flight_slot nothing;

        if (slot)
                put(slot, &nothing);
}
