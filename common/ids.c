/* SPDX-License-Identifier: MIT */
#include "common/ids.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

void random_bytes(void *buf, size_t len) {
        uint8_t *p = buf;

        while (len > 0) {
                /* Fails only with EINTR for requests of more than 256 bytes; blocks before the pool is ready. */
                ssize_t n = getrandom(p, len, 0);

                if (n <= 0)
                        continue;
                p += n;
                len -= (size_t) n;
        }
}

uint64_t random_u64(void) {
        uint64_t v;

        random_bytes(&v, sizeof(v));
        return v;
}

void id_new(id_str ret) {
        uint8_t raw[ID_LEN / 2];

        random_bytes(raw, sizeof(raw));
        hex_encode(raw, sizeof(raw), ret);
}

bool id_valid(const char *s) {
        return s && strlen(s) == ID_LEN && strspn(s, "0123456789abcdef") == ID_LEN;
}

/* Not isalnum(): names must mean the same in every locale. */
static bool ascii_alnum(char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool name_valid(const char *s) {
        size_t n = 0;

        if (!s || !ascii_alnum(s[0]))
                return false;
        for (; s[n]; n++)
                if (n >= NAME_MAX_LEN || !(ascii_alnum(s[n]) || strchr("._-", s[n])))
                        return false;
        return true;
}

void hex_encode(const void *data, size_t len, char *hex) {
        const uint8_t *p = data;

        for (size_t i = 0; i < len; i++) {
                hex[2 * i] = "0123456789abcdef"[p[i] >> 4];
                hex[2 * i + 1] = "0123456789abcdef"[p[i] & 15];
        }
        hex[2 * len] = '\0';
}

static int hex_digit(char c) {
        if (c >= '0' && c <= '9')
                return c - '0';
        if (c >= 'a' && c <= 'f')
                return c - 'a' + 10;
        if (c >= 'A' && c <= 'F')
                return c - 'A' + 10;
        return -1;
}

int hex_decode(const char *hex, void *data, size_t len) {
        uint8_t *p = data;

        if (strlen(hex) != 2 * len)
                return -EINVAL;
        for (size_t i = 0; i < len; i++) {
                int hi = hex_digit(hex[2 * i]), lo = hex_digit(hex[2 * i + 1]);

                if (hi < 0 || lo < 0)
                        return -EINVAL;
                p[i] = (uint8_t) (hi << 4 | lo);
        }
        return 0;
}

int size_parse(const char *s, uint64_t *ret) {
        static const char units[] = "kmgtp";
        unsigned shift = 0;
        double v;
        char *end;

        /* strtod takes signs, spaces, hex, infinities: a size is digits with at most one point */
        if (!s || s[0] < '0' || s[0] > '9' || s[1] == 'x' || s[1] == 'X')
                return -EINVAL;
        v = strtod(s, &end);
        if (*end) {
                const char *u = strchr(units, tolower((unsigned char) *end));

                if (u) {
                        shift = (unsigned) (u - units + 1) * 10;
                        end++;
                        if (strcasecmp(end, "ib") == 0 || strcasecmp(end, "b") == 0)
                                end += strlen(end);
                } else if (strcasecmp(end, "b") == 0) {
                        end++;
                }
                if (*end)
                        return -EINVAL;
        }
        v = ldexp(v, (int) shift);
        if (v >= 9.2e18)
                return -ERANGE;
        *ret = (uint64_t) v;
        return 0;
}

char *size_format(uint64_t bytes, char *buf, size_t size) {
        static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
        double v = (double) bytes;
        unsigned u = 0;

        while (v >= 1024 && u + 1 < ARRAY_LEN(units)) {
                v /= 1024;
                u++;
        }
        if (u == 0 || v >= 100 || v == (double) (uint64_t) v)
                (void) snprintf(buf, size, "%.0f %s", v, units[u]);
        else
                (void) snprintf(buf, size, "%.1f %s", v, units[u]);
        return buf;
}
