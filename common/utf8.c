/* SPDX-License-Identifier: MIT */
#include "common/utf8.h"

int utf8_sequence(const unsigned char *s, size_t len) {
        unsigned char lo = 0x80, hi = 0xbf;
        int n;

        if (s[0] < 0x80)
                return 1;
        if (s[0] >= 0xc2 && s[0] <= 0xdf)
                n = 2;
        else if (s[0] >= 0xe0 && s[0] <= 0xef)
                n = 3;
        else if (s[0] >= 0xf0 && s[0] <= 0xf4)
                n = 4;
        else
                return 0;
        if (s[0] == 0xe0)
                lo = 0xa0;
        else if (s[0] == 0xed)
                hi = 0x9f;
        else if (s[0] == 0xf0)
                lo = 0x90;
        else if (s[0] == 0xf4)
                hi = 0x8f;
        for (int i = 1; i < n; i++) {
                if ((size_t) i >= len)
                        return -1;
                if (s[i] < lo || s[i] > hi)
                        return 0;
                lo = 0x80;
                hi = 0xbf;
        }
        return n;
}

bool utf8_valid(const char *s, size_t len) {
        const unsigned char *p = (const unsigned char *) s;

        for (size_t i = 0; i < len;) {
                int n = utf8_sequence(p + i, len - i);

                if (n <= 0)
                        return false;
                i += (size_t) n;
        }
        return true;
}

size_t utf8_whole(const char *s, size_t len) {
        const unsigned char *p = (const unsigned char *) s;

        for (size_t back = 1; back <= 3 && back <= len; back++)
                if (p[len - back] >= 0xc0)
                        return utf8_sequence(p + len - back, back) < 0 ? len - back : len;
        return len;
}
