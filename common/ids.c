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

/* Of a character that is a hex digit. */
static uint8_t hex_digit(char c) {
        return (uint8_t) (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
}

int hex_decode(const char *hex, void *data, size_t len) {
        uint8_t *p = data;

        if (strlen(hex) != 2 * len || strspn(hex, "0123456789abcdefABCDEF") != 2 * len)
                return -EINVAL;
        for (size_t i = 0; i < len; i++)
                p[i] = (uint8_t) (hex_digit(hex[2 * i]) << 4 | hex_digit(hex[2 * i + 1]));
        return 0;
}

/* The unit at @s, which must be all there is: a power of two in *ret_shift. */
static int parse_unit(const char *s, unsigned *ret_shift) {
        static const char units[] = "kmgtp";
        const char *u = s[0] ? strchr(units, tolower((unsigned char) s[0])) : NULL;

        if (u && (!s[1] || strcasecmp(s + 1, "ib") == 0 || strcasecmp(s + 1, "b") == 0)) {
                *ret_shift = (unsigned) (u - units + 1) * 10;
                return 0;
        }
        if (s[0] && strcasecmp(s, "b") != 0)
                return -EINVAL;
        *ret_shift = 0;
        return 0;
}

#define MAX_FRACTION_DIGITS 9

/* By hand: strtod takes signs, spaces, exponents, hex and infinities, and rounds whole numbers. */
int size_parse(const char *s, uint64_t *ret) {
        uint64_t whole, fraction = 0, part;
        size_t digits = 0;
        unsigned shift;
        double one = 1;
        char *end;

        if (!s || s[0] < '0' || s[0] > '9')
                return -EINVAL;
        errno = 0;
        whole = strtoull(s, &end, 10);
        if (*end == '.') {
                end++;
                for (; end[digits] >= '0' && end[digits] <= '9'; digits++, one *= 10)
                        if (digits < MAX_FRACTION_DIGITS)
                                fraction = fraction * 10 + (uint64_t) (end[digits] - '0');
                if (digits == 0 || digits > MAX_FRACTION_DIGITS)
                        return -EINVAL;
                end += digits;
        }
        if (parse_unit(end, &shift) < 0 || (digits > 0 && shift == 0)) /* there is no part of a byte */
                return -EINVAL;
        part = (uint64_t) (ldexp((double) fraction, (int) shift) / one);
        if (errno == ERANGE || whole > (uint64_t) INT64_MAX >> shift || part > (uint64_t) INT64_MAX - (whole << shift))
                return -ERANGE;
        *ret = (whole << shift) + part;
        return 0;
}

char *size_format(uint64_t bytes, char *buf, size_t size) {
        static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
        double v = (double) bytes;
        unsigned u = 0;

        /* The bounds are where printing would round up to the next power. */
        while (v >= 1023.5 && u + 1 < ARRAY_LEN(units)) {
                v /= 1024;
                u++;
        }
        if (u == 0 || v >= 99.95 || v == (double) (uint64_t) v)
                (void) snprintf(buf, size, "%.0f %s", v, units[u]);
        else
                (void) snprintf(buf, size, "%.1f %s", v, units[u]);
        return buf;
}
