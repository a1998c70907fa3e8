/* SPDX-License-Identifier: MIT */
/* The manifest: magic, version and length, a MessagePack map, and the XXH3-64 of all before it.
 *
 * One table names every field, its type and bounds; encoding, decoding and validation follow it. Keys that
 * a reader does not know are ignored, so that fields can be added without a new version; what an old reader
 * must not ignore needs a new version. */
#include "snapstore/manifest.h"

#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "common/mp.h"
#include "snapstore/codec.h"
#include "snapstore/index.h"

#define MANIFEST_MAGIC "FORKDMAN"

struct manifest_head {
        uint8_t magic[8];
        uint32_t version;
        uint32_t len; /* of the map that follows */
};
_Static_assert(sizeof(struct manifest_head) == 16, "layout");
#define MANIFEST_SUM_LEN sizeof(uint64_t)

enum kind { KIND_ID, KIND_OPT_ID, KIND_OPT_NAME, KIND_NAME, KIND_TEXT, KIND_TOKEN, KIND_U32, KIND_U64, KIND_I64 };

struct field {
        const char *key;
        enum kind kind;
        size_t offset, size;
        uint64_t min, max; /* of numbers */
};

#define FIELD(k, name_, ...)                                                               \
        {                                                                                  \
                .key = #name_, .kind = k, .offset = offsetof(struct snap_manifest, name_), \
                .size = sizeof(((struct snap_manifest *) NULL)->name_), ##__VA_ARGS__      \
        }

static const struct field fields[] = {
        FIELD(KIND_ID, id),
        FIELD(KIND_OPT_NAME, tag),
        FIELD(KIND_NAME, source),
        FIELD(KIND_OPT_ID, parent),
        FIELD(KIND_U32, depth, .max = SNAP_MAX_DEPTH),
        FIELD(KIND_I64, created_ns),
        FIELD(KIND_TOKEN, vmm),
        FIELD(KIND_TEXT, vmm_version),
        FIELD(KIND_TOKEN, accel),
        FIELD(KIND_TEXT, cpu),
        FIELD(KIND_TEXT, machine),
        FIELD(KIND_U32, vcpus, .min = 1, .max = SNAP_MAX_VCPUS),
        FIELD(KIND_U64, mem_bytes, .min = SNAP_PAGE_SIZE, .max = SNAP_MAX_RAM),
        FIELD(KIND_TEXT, kernel),
        FIELD(KIND_TEXT, initrd),
        FIELD(KIND_TEXT, net),
        FIELD(KIND_U64, dirty_bytes, .max = SNAP_MAX_RAM),
        FIELD(KIND_U64, pages_stored, .max = SNAP_MAX_RAM / SNAP_PAGE_SIZE),
        FIELD(KIND_U64, pages_zero, .max = SNAP_MAX_RAM / SNAP_PAGE_SIZE),
        FIELD(KIND_U64, image_bytes, .max = SNAP_MAX_IMAGE_BYTES),
        FIELD(KIND_U64, stored_bytes, .max = SNAP_MAX_IMAGE_BYTES + 2 * SNAP_MAX_VMSTATE),
        FIELD(KIND_U64, vmstate_raw_bytes, .max = SNAP_MAX_VMSTATE),
        FIELD(KIND_U64, vmstate_bytes, .max = SNAP_MAX_VMSTATE),
        FIELD(KIND_U64, vmstate_xxh3, .max = UINT64_MAX),
};
/* and by hand: chain, image_uuid, disk_bytes, vmstate_codec */
#define N_OTHER_FIELDS 4

static bool text_ok(const char *s, size_t size) {
        size_t n = strnlen(s, size);

        if (n == size)
                return false;
        for (size_t i = 0; i < n; i++)
                if (s[i] < 0x20 || s[i] > 0x7e)
                        return false;
        return true;
}

static uint64_t number_of(const struct field *f, const void *p) {
        return f->kind == KIND_U32 ? *(const uint32_t *) p : *(const uint64_t *) p;
}

static bool field_ok(const struct field *f, const struct snap_manifest *m) {
        const void *p = (const uint8_t *) m + f->offset;
        const char *s = p;

        switch (f->kind) {
        case KIND_ID:
        case KIND_OPT_ID:
                return text_ok(s, f->size) && (id_valid(s) || (f->kind == KIND_OPT_ID && !*s));
        case KIND_NAME:
        case KIND_OPT_NAME:
                return text_ok(s, f->size) && (name_valid(s) || (f->kind == KIND_OPT_NAME && !*s));
        case KIND_TOKEN:
                return text_ok(s, f->size) && name_valid(s);
        case KIND_TEXT:
                return text_ok(s, f->size);
        case KIND_U32:
        case KIND_U64:
                return number_of(f, p) >= f->min && number_of(f, p) <= f->max;
        case KIND_I64:
                return true;
        }
        return false;
}

/* Every field by itself, then what must hold between them. */
static bool manifest_ok(const struct snap_manifest *m) {
        for (size_t i = 0; i < ARRAY_LEN(fields); i++)
                if (!field_ok(&fields[i], m))
                        return false;
        if (m->n_chain > SNAP_MAX_CHAIN || m->n_chain > m->depth || (m->depth == 0) != (m->parent[0] == '\0') ||
            (m->depth > 0) != (m->n_chain > 0))
                return false;
        for (unsigned i = 0; i < m->n_chain; i++)
                if (!text_ok(m->chain[i], sizeof(m->chain[i])) || !id_valid(m->chain[i]))
                        return false;
        if (m->n_chain > 0 && strcmp(m->chain[0], m->parent) != 0)
                return false;
        if (!snap_ram_ok(m->mem_bytes) || m->pages_stored + m->pages_zero != m->mem_bytes / SNAP_PAGE_SIZE)
                return false;
        if (m->n_disks > SNAP_MAX_DISKS)
                return false;
        for (unsigned i = 0; i < m->n_disks; i++)
                if (m->disk_bytes[i] > SNAP_MAX_DISK_BYTES)
                        return false;
        return (m->vmstate_bytes == 0) == (m->vmstate_raw_bytes == 0) && snap_codec_name(m->vmstate_codec);
}

static void encode_map(struct mp_buf *b, const struct snap_manifest *m) {
        mp_map(b, ARRAY_LEN(fields) + N_OTHER_FIELDS);
        for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
                const struct field *f = &fields[i];
                const void *p = (const uint8_t *) m + f->offset;

                if (f->kind == KIND_I64)
                        mp_kv_i64(b, f->key, *(const int64_t *) p);
                else if (f->kind == KIND_U32 || f->kind == KIND_U64)
                        mp_kv_u64(b, f->key, number_of(f, p));
                else
                        mp_kv_str(b, f->key, p);
        }
        mp_key(b, "chain");
        mp_array(b, m->n_chain);
        for (unsigned i = 0; i < m->n_chain; i++)
                mp_str(b, m->chain[i]);
        mp_kv_bin(b, "image_uuid", m->image_uuid, SNAP_UUID_LEN);
        mp_key(b, "disk_bytes");
        mp_array(b, m->n_disks);
        for (unsigned i = 0; i < m->n_disks; i++)
                mp_u64(b, m->disk_bytes[i]);
        mp_kv_str(b, "vmstate_codec", snap_codec_name(m->vmstate_codec));
}

int snap_manifest_encode(const struct snap_manifest *m, void **ret_data, size_t *ret_len) {
        struct manifest_head head = { .magic = MANIFEST_MAGIC, .version = SNAP_MANIFEST_VERSION };
        cleanup_free uint8_t *data = NULL;
        cleanup_mp_buf struct mp_buf b = { 0 };
        uint64_t sum;
        size_t len;

        mp_buf_init(&b);
        if (!manifest_ok(m))
                return -EINVAL;
        encode_map(&b, m);
        if (b.failed)
                return -ENOMEM;
        len = sizeof(head) + b.sb.size + MANIFEST_SUM_LEN;
        if (len > SNAP_MANIFEST_MAX_BYTES)
                return -EINVAL;
        data = malloc(len);
        if (!data)
                return -ENOMEM;
        head.len = (uint32_t) b.sb.size;
        memcpy(data, &head, sizeof(head));
        memcpy(data + sizeof(head), b.sb.data, b.sb.size);
        sum = XXH3_64bits(data, len - MANIFEST_SUM_LEN);
        memcpy(data + len - MANIFEST_SUM_LEN, &sum, sizeof(sum));
        *ret_data = TAKE_PTR(data);
        *ret_len = len;
        return 0;
}

static int decode_field(const struct field *f, const msgpack_object *map, struct snap_manifest *m) {
        void *p = (uint8_t *) m + f->offset;
        uint64_t v;
        int r;

        switch (f->kind) {
        case KIND_U64:
                return mp_get_u64(map, f->key, p);
        case KIND_I64:
                return mp_get_i64(map, f->key, p);
        case KIND_U32:
                r = mp_get_u64(map, f->key, &v);
                if (r < 0)
                        return r;
                if (v > f->max)
                        return -EBADMSG;
                *(uint32_t *) p = (uint32_t) v;
                return 0;
        default:
                return mp_get_str(map, f->key, p, f->size);
        }
}

static int decode_others(const msgpack_object *map, struct snap_manifest *m) {
        const msgpack_object *chain = mp_get_array(map, "chain"), *disks = mp_get_array(map, "disk_bytes");
        const void *uuid;
        size_t uuid_len;
        char codec[8];
        int level;

        if (!chain || !disks || chain->via.array.size > SNAP_MAX_CHAIN || disks->via.array.size > SNAP_MAX_DISKS)
                return -EBADMSG;
        m->n_chain = chain->via.array.size;
        for (unsigned i = 0; i < m->n_chain; i++) {
                const msgpack_object *o = &chain->via.array.ptr[i];
                if (o->type != MSGPACK_OBJECT_STR || o->via.str.size != ID_LEN)
                        return -EBADMSG;
                memcpy(m->chain[i], o->via.str.ptr, ID_LEN);
        }
        m->n_disks = disks->via.array.size;
        for (unsigned i = 0; i < m->n_disks; i++) {
                const msgpack_object *o = &disks->via.array.ptr[i];
                if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                        return -EBADMSG;
                m->disk_bytes[i] = o->via.u64;
        }
        if (mp_get_bin(map, "image_uuid", &uuid, &uuid_len) < 0 || uuid_len != SNAP_UUID_LEN)
                return -EBADMSG;
        memcpy(m->image_uuid, uuid, SNAP_UUID_LEN);
        if (mp_get_str(map, "vmstate_codec", codec, sizeof(codec)) < 0 ||
            snap_codec_parse(codec, &m->vmstate_codec, &level) < 0 || level != 0)
                return -EBADMSG;
        return 0;
}

int snap_manifest_decode(const void *data, size_t len, struct snap_manifest *ret) {
        cleanup_free struct snap_manifest *m = NULL;
        cleanup_mp_doc struct mp_doc doc = {};
        struct manifest_head head;
        uint64_t sum;

        if (len < sizeof(head) + MANIFEST_SUM_LEN || len > SNAP_MANIFEST_MAX_BYTES)
                return -EBADMSG;
        memcpy(&head, data, sizeof(head));
        memcpy(&sum, (const uint8_t *) data + len - MANIFEST_SUM_LEN, sizeof(sum));
        if (memcmp(head.magic, MANIFEST_MAGIC, sizeof(head.magic)) != 0 || head.len != len - sizeof(head) - MANIFEST_SUM_LEN ||
            sum != XXH3_64bits(data, len - MANIFEST_SUM_LEN))
                return -EBADMSG;
        if (head.version != SNAP_MANIFEST_VERSION)
                return -EPROTONOSUPPORT;
        if (mp_parse((const uint8_t *) data + sizeof(head), head.len, &doc) < 0 || doc.root.type != MSGPACK_OBJECT_MAP)
                return -EBADMSG;
        m = calloc(1, sizeof(*m));
        if (!m)
                return -ENOMEM;
        for (size_t i = 0; i < ARRAY_LEN(fields); i++)
                if (decode_field(&fields[i], &doc.root, m) < 0)
                        return -EBADMSG;
        if (decode_others(&doc.root, m) < 0 || !manifest_ok(m))
                return -EBADMSG;
        *ret = *m;
        return 0;
}

void snap_manifest_set_parent(struct snap_manifest *m, const struct snap_manifest *parent) {
        memcpy(m->parent, parent->id, sizeof(m->parent));
        m->depth = parent->depth + 1;
        m->n_chain = MIN_OF(parent->n_chain + 1, SNAP_MAX_CHAIN);
        memcpy(m->chain[0], parent->id, sizeof(m->chain[0]));
        memcpy(m->chain[1], parent->chain[0], (m->n_chain - 1) * sizeof(m->chain[0]));
}
