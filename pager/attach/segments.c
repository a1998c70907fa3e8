/* SPDX-License-Identifier: MIT */
#include "pager/attach/segments.h"

#include <string.h>

#define PAGE 4096u

static size_t length(const struct segments_head *head, const char *magic) {
        if (memcmp(head->magic, magic, sizeof(head->magic)) != 0 || head->n == 0 || head->n > SEGMENTS_MAX ||
            head->n_images == 0 || head->n_images > SEGMENTS_MAX_IMAGES)
                return 0;
        return sizeof(*head) + head->n * sizeof(struct segments_one);
}

size_t segments_length(const struct segments_head *head) {
        return length(head, SEGMENTS_MAGIC);
}

size_t segments_anew_length(const struct segments_head *head) {
        return length(head, SEGMENTS_ANEW_MAGIC);
}

const char *segments_anew_check(const struct segments_msg *m, uint64_t ram_bytes, size_t n_fds) {
        uint64_t at = 0;

        if (m->head.ram_bytes != ram_bytes)
                return "is of another size than the guest's memory";
        if (m->head.n_images != 1 || n_fds != 1)
                return "did not come with one image";
        for (uint32_t i = 0; i < m->head.n; i++) {
                const struct segments_one *s = &m->one[i];

                if (s->offset < at || s->offset % PAGE || s->size == 0 || s->size % PAGE || s->offset > ram_bytes ||
                    s->size > ram_bytes - s->offset)
                        return "has segments that are not in the guest's memory, or not ascending";
                if (s->image || s->zero)
                        return "has a segment of no image";
                at = s->offset + s->size;
        }
        return NULL;
}

const char *segments_check(const struct segments_msg *m, uint64_t ram_bytes, size_t n_fds) {
        uint64_t at = 0;

        if (m->head.ram_bytes != ram_bytes)
                return "is of another size than the guest's memory";
        if (m->head.n_images != n_fds)
                return "did not come with as many descriptors as it has images";
        for (uint32_t i = 0; i < m->head.n; i++) {
                const struct segments_one *s = &m->one[i];

                if (s->offset != at || s->size == 0 || s->size % PAGE || s->size > ram_bytes - at)
                        return "has segments that do not follow each other";
                if (s->image >= m->head.n_images || s->zero)
                        return "has a segment of no image";
                at += s->size;
        }
        return at == ram_bytes ? NULL : "does not cover all of the guest's memory";
}
