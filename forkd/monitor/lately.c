/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/lately.h"

#include <string.h>
#include <time.h>

#define S 1000000000ull

void lately_add(struct lately *l, uint64_t now_ns, const uint64_t wait[PROBES_BUCKETS]) {
        uint64_t second = now_ns / S, i = second % LATELY_SECONDS;

        for (unsigned b = 0; b < PROBES_BUCKETS; b++) {
                if (wait[b] == 0)
                        continue;
                if (l->of[i].second != second) {
                        memset(l->of[i].wait, 0, sizeof(l->of[i].wait));
                        l->of[i].second = second;
                }
                l->of[i].wait[b] += (uint32_t) MIN_OF(wait[b], (uint64_t) UINT32_MAX - l->of[i].wait[b]);
        }
}

static void put_second(struct mp_buf *out, uint64_t ago, const uint32_t wait[PROBES_BUCKETS]) {
        size_t n = 0;

        for (unsigned b = 0; b < PROBES_BUCKETS; b++)
                n += wait[b] > 0;
        mp_array(out, 2);
        mp_u64(out, ago);
        mp_array(out, n);
        for (unsigned b = 0; b < PROBES_BUCKETS; b++) {
                if (wait[b] == 0)
                        continue;
                mp_array(out, 2);
                if (b == PROBES_BUCKETS - 1)
                        mp_nil(out);
                else
                        mp_double(out, (double) probes_bucket_end_ns(b) / 1e9);
                mp_u64(out, wait[b]);
        }
}

/* Is something known of the second that is @ago before @now? */
static bool is_there(const struct lately *l, uint64_t now, uint64_t ago) {
        return now >= ago && l->of[(now - ago) % LATELY_SECONDS].second == now - ago && now > ago;
}

void lately_put(const struct lately *l, uint64_t now_ns, struct mp_buf *out) {
        uint64_t now = now_ns / S, known = l->since_ns && now_ns > l->since_ns ? (now_ns - l->since_ns) / S : 0;
        struct timespec wall;
        size_t n = 0;

        (void) clock_gettime(CLOCK_REALTIME, &wall);
        for (uint64_t ago = 0; ago < LATELY_SECONDS; ago++)
                n += is_there(l, now, ago);
        mp_map(out, 3);
        mp_kv_u64(out, "now_ms", (uint64_t) wall.tv_sec * 1000 + (uint64_t) wall.tv_nsec / 1000000);
        mp_kv_u64(out, "known_s", MIN_OF(known, (uint64_t) LATELY_SECONDS));
        mp_key(out, "seconds");
        mp_array(out, n);
        for (uint64_t ago = LATELY_SECONDS; ago-- > 0;)
                if (is_there(l, now, ago))
                        put_second(out, ago, l->of[(now - ago) % LATELY_SECONDS].wait);
}
