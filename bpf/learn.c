/* SPDX-License-Identifier: MIT */
#include "bpf/learn.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bpf/probes_maps.h"
#include "bpf/trial.h"
#include "common/io.h"

#include "learn.skel.h"

#define SLEEP_TIMEOUT_MS 3000
/* A tracepoint that others attach to as well calls through one function more; and what is learned on one path must do for all. */
#define SPARE_FRAMES 3u
#define MAX_FUNCTION (1u << 20) /* bytes: none is as large */

static inline void cleanup_learnp(struct learn_bpf **s) {
        learn_bpf__destroy(*s);
}

int learn_parse(const char *text, uint64_t address, const char *prefix, uint64_t *ret_start, uint64_t *ret_end) {
        size_t n = strlen(prefix);
        uint64_t offset, size;
        const char *plus;
        char *end;

        if (strncmp(text, prefix, n) != 0)
                return -EINVAL;
        plus = strchr(text + n, '+');
        if (!plus || (plus != text + n && text[n] != '.' && text[n] != '_'))
                return -EINVAL;
        offset = strtoull(plus + 1, &end, 16);
        if (end == plus + 1 || *end != '/')
                return -EINVAL;
        size = strtoull(end + 1, &end, 16);
        if (offset > size || size > MAX_FUNCTION || address < offset)
                return -EINVAL;
        *ret_start = address - offset;
        *ret_end = *ret_start + size + 1; /* the address that a call at the very end returns to is the first behind it */
        return 0;
}

/** Looks for handle_userfault in the stack that was taken last. */
static int find(const struct learn_bpf *s, struct learn_bounds *ret) {
        uint32_t n = __atomic_load_n(&s->bss->frames, __ATOMIC_ACQUIRE), frames = n < PROBES_STACK ? n : PROBES_STACK;

        for (uint32_t i = 0; i < frames; i++) {
                char text[sizeof(s->bss->name[0])];

                memcpy(text, s->bss->name[i], sizeof(text));
                text[sizeof(text) - 1] = '\0';
                if (learn_parse(text, s->bss->address[i], "handle_userfault", &ret->start, &ret->end) == 0) {
                        ret->frames = MIN_OF(i + 1 + SPARE_FRAMES, PROBES_STACK);
                        return 0;
                }
        }
        return -ENOENT;
}

/** Waits until the thread sleeps there: it may sleep elsewhere on its way. The programs can tell nobody, so it is looked at. */
static int await(const struct learn_bpf *s, struct learn_bounds *ret) {
        const struct timespec turn = { .tv_nsec = 200000 };
        uint64_t begin = now_ns();
        int r;

        while ((r = find(s, ret)) < 0 && ms_since(begin) < SLEEP_TIMEOUT_MS)
                (void) nanosleep(&turn, NULL);
        return r;
}

static int failed(int r, const char *what, char *why, size_t size) {
        (void) snprintf(why, size, "%s: %s", what, strerror(-r));
        return r;
}

int learn_fault(struct learn_bounds *ret, char *why, size_t size) {
        attr_cleanup(cleanup_learnp) struct learn_bpf *s = NULL;
        attr_cleanup(cleanup_trialp) struct trial *t = NULL;
        int r;

        *ret = (struct learn_bounds){ 0 };
        r = trial_new(&t);
        if (r < 0)
                return failed(r, "a userfaultfd of our own", why, size);
        s = learn_bpf__open();
        if (!s)
                return failed(-errno, "opening the BPF programs", why, size);
        s->rodata->target = (uint32_t) trial_tid(t);
        r = learn_bpf__load(s);
        if (r == 0)
                r = learn_bpf__attach(s);
        if (r < 0)
                return failed(r, "loading a BPF program for the scheduler's switch", why, size);
        r = trial_fault(t);
        if (r == 0)
                r = await(s, ret);
        return r < 0 ? failed(r, "finding handle_userfault in the stack of a thread that waits there", why, size) : 0;
}
