/* SPDX-License-Identifier: MIT */
#include "snapstore/vmstate.h"

#include <errno.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "common/io.h"
#include "snapstore/codec.h"

int snap_vmstate_write(int fd, const void *raw, size_t len, struct snap_vmstate *ret) {
        struct snap_vmstate v = { .raw_bytes = len, .codec = SNAP_CODEC_ZSTD };
        struct snap_compressor *c;
        cleanup_free void *buf = NULL;
        const void *stored;
        int r;

        if (len == 0)
                return -EINVAL;
        if (len > SNAP_MAX_VMSTATE)
                return -EFBIG;
        buf = malloc(len);
        if (!buf)
                return -ENOMEM;
        r = snap_compressor_new(v.codec, 0, &c);
        if (r < 0)
                return r;
        v.bytes = snap_compress(c, raw, len, buf, len - 1);
        snap_compressor_free(c);
        stored = buf;
        if (v.bytes == 0) {
                v.codec = SNAP_CODEC_NONE;
                v.bytes = len;
                stored = raw;
        }
        v.xxh3 = XXH3_64bits(stored, v.bytes);
        r = io_write_full(fd, stored, v.bytes);
        if (r < 0)
                return r;
        *ret = v;
        return 0;
}

int snap_vmstate_read(int fd, const struct snap_manifest *m, void **ret_data) {
        struct snap_decompressor *d;
        cleanup_free void *stored = NULL, *raw = NULL;
        struct stat st;
        int r;

        if (m->vmstate_bytes == 0 || m->vmstate_bytes > SNAP_MAX_VMSTATE || m->vmstate_raw_bytes > SNAP_MAX_VMSTATE)
                return -EBADMSG;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (st.st_size < 0 || (uint64_t) st.st_size != m->vmstate_bytes)
                return -EBADMSG;
        stored = malloc(m->vmstate_bytes);
        raw = malloc(m->vmstate_raw_bytes);
        if (!stored || !raw)
                return -ENOMEM;
        r = io_pread_full(fd, stored, m->vmstate_bytes, 0);
        if (r < 0)
                return r;
        if (XXH3_64bits(stored, m->vmstate_bytes) != m->vmstate_xxh3)
                return -EBADMSG;
        r = snap_decompressor_new(&d);
        if (r < 0)
                return r;
        r = snap_decompress(d, m->vmstate_codec, stored, m->vmstate_bytes, raw, m->vmstate_raw_bytes);
        snap_decompressor_free(d);
        if (r < 0)
                return r;
        *ret_data = TAKE_PTR(raw);
        return 0;
}
