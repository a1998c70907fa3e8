/* SPDX-License-Identifier: MIT */
#include "snapstore/codec.h"

#include <errno.h>
#include <limits.h>
#include <lz4.h>
#include <string.h>
#include <zstd.h>

#include "common/cleanup.h"

const char *snap_codec_name(unsigned codec) {
        switch (codec) {
        case SNAP_CODEC_NONE:
                return "none";
        case SNAP_CODEC_LZ4:
                return "lz4";
        case SNAP_CODEC_ZSTD:
                return "zstd";
        default:
                return NULL;
        }
}

int snap_codec_parse(const char *s, enum snap_codec *ret_codec, int *ret_level) {
        int level = 0;

        if (strcmp(s, "none") == 0)
                *ret_codec = SNAP_CODEC_NONE;
        else if (strcmp(s, "lz4") == 0)
                *ret_codec = SNAP_CODEC_LZ4;
        else if (strcmp(s, "zstd") == 0)
                *ret_codec = SNAP_CODEC_ZSTD;
        else if (strncmp(s, "zstd:", 5) == 0) {
                for (const char *p = s + 5; *p; p++) {
                        if (*p < '0' || *p > '9')
                                return -EINVAL;
                        level = level * 10 + (*p - '0');
                        if (level > SNAP_ZSTD_MAX_LEVEL)
                                return -EINVAL;
                }
                if (level == 0)
                        return -EINVAL;
                *ret_codec = SNAP_CODEC_ZSTD;
        } else
                return -EINVAL;
        *ret_level = level;
        return 0;
}

int snap_codec_check(unsigned codec, int level) {
        if (!snap_codec_name(codec) || level < 0)
                return -EINVAL;
        return level <= (codec == SNAP_CODEC_ZSTD ? SNAP_ZSTD_MAX_LEVEL : 0) ? 0 : -EINVAL;
}

struct snap_compressor {
        enum snap_codec codec;
        int level;
        void *lz4;
        ZSTD_CCtx *zstd;
};

int snap_compressor_new(enum snap_codec codec, int level, struct snap_compressor **ret) {
        struct snap_compressor *c;
        int r;

        r = snap_codec_check(codec, level);
        if (r < 0)
                return r;
        c = calloc(1, sizeof(*c));
        if (!c)
                return -ENOMEM;
        c->codec = codec;
        c->level = level ? level : SNAP_ZSTD_DEFAULT_LEVEL;
        if (codec == SNAP_CODEC_LZ4)
                c->lz4 = malloc((size_t) LZ4_sizeofState());
        else if (codec == SNAP_CODEC_ZSTD)
                c->zstd = ZSTD_createCCtx();
        if ((codec == SNAP_CODEC_LZ4 && !c->lz4) || (codec == SNAP_CODEC_ZSTD && !c->zstd)) {
                snap_compressor_free(c);
                return -ENOMEM;
        }
        *ret = c;
        return 0;
}

void snap_compressor_free(struct snap_compressor *c) {
        if (!c)
                return;
        free(c->lz4);
        ZSTD_freeCCtx(c->zstd);
        free(c);
}

size_t snap_compress(struct snap_compressor *c, const void *src, size_t len, void *dst, size_t cap) {
        if (c->codec == SNAP_CODEC_LZ4) {
                int n = LZ4_compress_fast_extState(c->lz4, src, dst, (int) len, (int) MIN_OF(cap, (size_t) INT_MAX), 1);
                return n > 0 ? (size_t) n : 0;
        }
        if (c->codec == SNAP_CODEC_ZSTD) {
                size_t n = ZSTD_compressCCtx(c->zstd, dst, cap, src, len, c->level);
                return ZSTD_isError(n) ? 0 : n;
        }
        return 0;
}

struct snap_decompressor {
        ZSTD_DCtx *zstd;
};

int snap_decompressor_new(struct snap_decompressor **ret) {
        struct snap_decompressor *d = calloc(1, sizeof(*d));

        if (!d)
                return -ENOMEM;
        d->zstd = ZSTD_createDCtx();
        if (!d->zstd) {
                free(d);
                return -ENOMEM;
        }
        *ret = d;
        return 0;
}

void snap_decompressor_free(struct snap_decompressor *d) {
        if (!d)
                return;
        ZSTD_freeDCtx(d->zstd);
        free(d);
}

int snap_decompress(struct snap_decompressor *d, unsigned codec, const void *src, size_t len, void *dst, size_t raw_len) {
        if (len > INT_MAX || raw_len > INT_MAX)
                return -EBADMSG;
        switch (codec) {
        case SNAP_CODEC_NONE:
                if (len != raw_len)
                        return -EBADMSG;
                memcpy(dst, src, len);
                return 0;
        case SNAP_CODEC_LZ4:
                return LZ4_decompress_safe(src, dst, (int) len, (int) raw_len) == (int) raw_len ? 0 : -EBADMSG;
        case SNAP_CODEC_ZSTD:
                return ZSTD_decompressDCtx(d->zstd, dst, raw_len, src, len) == raw_len ? 0 : -EBADMSG;
        default:
                return -EBADMSG;
        }
}
