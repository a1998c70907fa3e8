/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * A node on disk holds a bitmap of which of its 512 places have an entry, and only those entries. A leaf
 * first lists the distinct frames of its region, then two bytes per page (frame number and slot): 1.1 KiB
 * for a full region in place of the 4 KiB that plain 8-byte entries would take, which matters because a
 * child rewrites the leaf of every region it touched.
 *
 * Nothing read here is believed before its checksum was verified, and then only within these bounds:
 * level and index of a node must be those of its place in the tree (so no node is reached twice, and the
 * tree has the depth that the RAM size gives it), counts must agree with the bitmap, references must lie
 * inside the file, every frame of a leaf must be used, and reserved fields and padding must be zero. What a
 * leaf cannot know, that a slot really holds the page, is checked against the frame when it is decoded. */
#include "snapstore/index.h"

#include <errno.h>
#include <string.h>

#include "common/io.h"

bool snap_ram_ok(uint64_t ram_bytes) {
        return ram_bytes >= SNAP_PAGE_SIZE && ram_bytes <= SNAP_MAX_RAM && ram_bytes % SNAP_PAGE_SIZE == 0;
}

int snap_index_init(struct snap_index *ix, uint64_t ram_bytes) {
        struct snap_index new = { .n_pages = ram_bytes / SNAP_PAGE_SIZE };
        uint64_t n;

        n = new.n_regions = (new.n_pages + SNAP_REGION_PAGES - 1) / SNAP_REGION_PAGES;
        for (;;) {
                uint64_t *refs = calloc(n, sizeof(uint64_t));
                if (!refs) {
                        snap_index_clear(&new);
                        return -ENOMEM;
                }
                new.n[new.n_levels] = n;
                new.ref[new.n_levels++] = refs;
                if (n == 1)
                        break;
                n = (n + SNAP_NODE_FANOUT - 1) / SNAP_NODE_FANOUT;
        }
        *ix = new;
        return 0;
}

void snap_index_clear(struct snap_index *ix) {
        for (unsigned i = 0; i < SNAP_MAX_LEVELS; i++)
                free(ix->ref[i]);
        *ix = (struct snap_index){};
}

static unsigned bitmap_count(const uint64_t *bitmap) {
        unsigned n = 0;

        for (unsigned i = 0; i < SNAP_NODE_FANOUT / 64; i++)
                n += (unsigned) __builtin_popcountll(bitmap[i]);
        return n;
}

static bool bitmap_get(const uint64_t *bitmap, unsigned i) {
        return bitmap[i / 64] >> (i % 64) & 1;
}

static bool all_zero(const void *data, size_t len) {
        const uint8_t *p = data;

        for (size_t i = 0; i < len; i++)
                if (p[i])
                        return false;
        return true;
}

/* Reads the node at @ref into @buf (SNAP_NODE_MAX) and verifies what leaves and upper nodes have in common.
 * @n_places: how many of its 512 places lie inside the RAM. */
static int node_read(const struct snap_source *src, uint64_t ref, unsigned level, uint64_t index, uint64_t n_places, void *buf) {
        struct snap_disk_node *node = buf;
        uint64_t off = snap_ref_off(ref);
        size_t len = snap_ref_len(ref), body;
        int r;

        if (!snap_ref_ok(ref, src->end, sizeof(*node), SNAP_NODE_MAX))
                return -EBADMSG;
        r = io_pread_full(src->fd, buf, len, off);
        if (r < 0)
                return r;
        if (node->checksum != snap_record_sum(buf, len, src->salt, off) || node->magic != SNAP_NODE_MAGIC ||
            node->level != level || node->index != index || node->reserved0 || !all_zero(node->reserved, sizeof(node->reserved)))
                return -EBADMSG;
        if (node->n_entries == 0 || bitmap_count(node->bitmap) != node->n_entries)
                return -EBADMSG;
        for (uint64_t i = n_places; i < SNAP_NODE_FANOUT; i++)
                if (bitmap_get(node->bitmap, (unsigned) i))
                        return -EBADMSG;
        if (level == 0 && (node->n_frames == 0 || node->n_frames > node->n_entries))
                return -EBADMSG;
        if (level > 0 && node->n_frames != 0)
                return -EBADMSG;
        body = level == 0 ? node->n_frames * sizeof(uint64_t) + node->n_entries * sizeof(uint16_t)
                          : node->n_entries * sizeof(uint64_t);
        if (snap_align8(sizeof(*node) + body) != len ||
            !all_zero((uint8_t *) buf + sizeof(*node) + body, len - sizeof(*node) - body))
                return -EBADMSG;
        return 0;
}

static void node_seal(struct snap_disk_node *node, size_t len, uint64_t salt, uint64_t off) {
        node->magic = SNAP_NODE_MAGIC;
        node->checksum = snap_record_sum(node, len, salt, off);
}

/* Fills the references of level - 1 that node @i of @level holds. */
static int load_node(struct snap_index *ix, const struct snap_source *src, unsigned level, uint64_t i) {
        _Alignas(8) uint8_t buf[SNAP_NODE_MAX];
        struct snap_disk_node *node = (struct snap_disk_node *) buf;
        const uint64_t *refs = (const uint64_t *) (buf + sizeof(*node));
        uint64_t first = i * SNAP_NODE_FANOUT, n = MIN_OF(ix->n[level - 1] - first, (uint64_t) SNAP_NODE_FANOUT);
        size_t max = SNAP_NODE_MAX;
        int r;

        r = node_read(src, ix->ref[level][i], level, i, n, buf);
        if (r < 0)
                return r;
        for (unsigned k = 0, e = 0; k < n; k++) {
                if (!bitmap_get(node->bitmap, k))
                        continue;
                if (!snap_ref_ok(refs[e], src->end, sizeof(*node), max))
                        return -EBADMSG;
                ix->ref[level - 1][first + k] = refs[e++];
        }
        return 0;
}

int snap_index_load(struct snap_index *ix, const struct snap_source *src, uint64_t root) {
        unsigned top = ix->n_levels - 1;

        if (root == 0)
                return 0;
        if (!snap_ref_ok(root, src->end, sizeof(struct snap_disk_node), SNAP_NODE_MAX))
                return -EBADMSG;
        ix->ref[top][0] = root;
        for (unsigned level = top; level > 0; level--)
                for (uint64_t i = 0; i < ix->n[level]; i++) {
                        int r = ix->ref[level][i] ? load_node(ix, src, level, i) : 0;
                        if (r < 0)
                                return r;
                }
        return 0;
}

size_t snap_index_encode(const struct snap_index *ix, unsigned level, uint64_t i, uint64_t salt, uint64_t off, void *buf) {
        struct snap_disk_node *node = buf;
        uint64_t *refs = (uint64_t *) ((uint8_t *) buf + sizeof(*node));
        uint64_t first = i * SNAP_NODE_FANOUT, n = MIN_OF(ix->n[level - 1] - first, (uint64_t) SNAP_NODE_FANOUT);
        size_t len;

        *node = (struct snap_disk_node){ .level = (uint8_t) level, .index = i };
        for (unsigned k = 0; k < n; k++) {
                uint64_t ref = ix->ref[level - 1][first + k];
                if (!ref)
                        continue;
                node->bitmap[k / 64] |= 1ull << (k % 64);
                refs[node->n_entries++] = ref;
        }
        if (node->n_entries == 0)
                return 0;
        len = sizeof(*node) + node->n_entries * sizeof(uint64_t);
        node_seal(node, len, salt, off);
        return len;
}

int snap_leaf_read(const struct snap_source *src, uint64_t ref, uint64_t region, uint64_t n_pages_total, struct snap_leaf **ret) {
        _Alignas(8) uint8_t buf[SNAP_NODE_MAX];
        struct snap_disk_node *node = (struct snap_disk_node *) buf;
        const uint64_t *frames = (const uint64_t *) (buf + sizeof(*node));
        uint64_t n_places = MIN_OF(n_pages_total - region * SNAP_REGION_PAGES, (uint64_t) SNAP_REGION_PAGES);
        uint64_t used[SNAP_NODE_FANOUT / 64] = {};
        cleanup_free struct snap_leaf *leaf = NULL;
        const uint16_t *entries;
        int r;

        r = node_read(src, ref, 0, region, n_places, buf);
        if (r < 0)
                return r;
        leaf = snap_leaf_alloc(node->n_frames);
        if (!leaf)
                return -ENOMEM;
        leaf->n_frames = node->n_frames;
        leaf->n_pages = node->n_entries;
        for (unsigned i = 0; i < node->n_frames; i++) {
                if (!snap_ref_ok(frames[i], src->end, sizeof(struct snap_disk_frame), SNAP_FRAME_MAX))
                        return -EBADMSG;
                leaf->frame[i] = frames[i];
        }
        entries = (const uint16_t *) (frames + node->n_frames);
        for (unsigned i = 0, e = 0; i < SNAP_REGION_PAGES; i++) {
                unsigned frame;

                leaf->entry[i] = SNAP_ENTRY_ZERO;
                if (!bitmap_get(node->bitmap, i))
                        continue;
                frame = entries[e] >> 4;
                if (frame >= node->n_frames)
                        return -EBADMSG;
                used[frame / 64] |= 1ull << (frame % 64);
                leaf->entry[i] = entries[e++];
        }
        if (bitmap_count(used) != node->n_frames)
                return -EBADMSG;
        *ret = TAKE_PTR(leaf);
        return 0;
}

size_t snap_leaf_encode(const struct snap_leaf *leaf, uint64_t region, uint64_t salt, uint64_t off, void *buf) {
        struct snap_disk_node *node = buf;
        uint64_t *frames = (uint64_t *) ((uint8_t *) buf + sizeof(*node));
        uint16_t *entries = (uint16_t *) (frames + leaf->n_frames);
        size_t body = leaf->n_frames * sizeof(uint64_t) + leaf->n_pages * sizeof(uint16_t);
        size_t len = snap_align8(sizeof(*node) + body);

        *node = (struct snap_disk_node){ .index = region, .n_frames = leaf->n_frames };
        memcpy(frames, leaf->frame, leaf->n_frames * sizeof(uint64_t));
        for (unsigned i = 0; i < SNAP_REGION_PAGES; i++) {
                if (leaf->entry[i] == SNAP_ENTRY_ZERO)
                        continue;
                node->bitmap[i / 64] |= 1ull << (i % 64);
                entries[node->n_entries++] = leaf->entry[i];
        }
        memset((uint8_t *) buf + sizeof(*node) + body, 0, len - sizeof(*node) - body);
        node_seal(node, len, salt, off);
        return len;
}
