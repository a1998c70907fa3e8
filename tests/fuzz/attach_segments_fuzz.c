/* SPDX-License-Identifier: MIT */
/* What a VMM is told of its memory: whatever passes covers guest RAM exactly. The first byte of the input is the number of
 * descriptors that came with it; the rest is the message, with room behind it as in the library. */
#include <stdlib.h>
#include <string.h>

#include "pager/attach/segments.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int ok) {
        if (!ok)
                abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static struct segments_msg m;
        uint64_t sum = 0;
        size_t len;

        if (size < 1 + sizeof(m.head) || size - 1 > sizeof(m))
                return 0;
        memset(&m, 0, sizeof(m));
        memcpy(&m, data + 1, size - 1);
        len = segments_length(&m.head);
        check(len == 0 || (len > sizeof(m.head) && len <= sizeof(m)));
        if (len == 0 || segments_check(&m, m.head.ram_bytes, data[0]))
                return 0;
        check(data[0] == m.head.n_images && m.head.n_images <= SEGMENTS_MAX_IMAGES);
        check(segments_check(&m, m.head.ram_bytes + 4096, data[0]) != NULL);
        for (uint32_t i = 0; i < m.head.n; i++) {
                check(m.one[i].offset == sum && m.one[i].size > 0 && m.one[i].offset % 4096 == 0 && m.one[i].image < data[0]);
                check(sum + m.one[i].size > sum);
                sum += m.one[i].size;
        }
        check(sum == m.head.ram_bytes);
        return 0;
}
