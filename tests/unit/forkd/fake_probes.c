/* SPDX-License-Identifier: MIT */
#include "fake_probes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct fake fake;

struct probes_watch {
        pid_t pid;
        void *data;
        struct probes_watch *next;
};
static struct probes_watch *watches;

void fake_reset(void) {
        fake = (struct fake){ .max = 8, .method = PROBES_SWITCH };
        watches = NULL;
}

struct fake_thread *fake_thread(pid_t pid, pid_t tid, const char *comm) {
        struct fake_thread *t = fake.thread;

        while (t->pid != 0)
                t++;
        *t = (struct fake_thread){ .pid = pid, .t = { .tid = tid, .state = PROBES_IDLE } };
        strncpy(t->t.comm, comm, sizeof(t->t.comm) - 1);
        return t;
}

void fake_end(struct fake_thread *t) {
        struct fake_ended *e = fake.ended;

        while (e->pid != 0 && e->pid != t->pid)
                e++;
        e->pid = t->pid;
        probes_add(&e->sum, &t->t.sum);
        t->pid = 0;
}

const char *probes_method_name(enum probes_method m) {
        static const char *const names[] = { "none", "fentry", "kprobe", "sched_switch" };

        return (unsigned) m < PROBES_N_METHODS ? names[m] : "none";
}

int probes_open(const struct probes_options *opt, struct probes **ret, struct err *e) {
        fake.opens++;
        if (fake.open_r < 0)
                return err_set(e, ERR_UNSUPPORTED, fake.open_r, "the test has none");
        *ret = (struct probes *) &fake;
        return 0;
}

void probes_close(struct probes *p) {
}

void probes_get_status(const struct probes *p, struct probes_status *ret) {
        *ret = (struct probes_status){ .method = fake.method, .processes = fake.processes, .max_processes = fake.max };
}

int probes_watch(struct probes *p, int pidfd, pid_t pid, void *data, struct probes_watch **ret) {
        if (fake.processes >= fake.max)
                return -ENOSPC;
        fake.processes++;
        *ret = malloc(sizeof(**ret));
        **ret = (struct probes_watch){ .pid = pid, .data = data, .next = watches };
        watches = *ret;
        return 0;
}

void probes_unwatch(struct probes_watch *w) {
        struct probes_watch **at = &watches;

        while (*at != w)
                at = &(*at)->next;
        *at = w->next;
        fake.processes--;
        free(w);
}

void *probes_watch_data(const struct probes_watch *w) {
        return w->data;
}

int probes_read(struct probes *p, probes_each_fn *each, void *arg) {
        fake.reads++;
        if (fake.read_r < 0)
                return fake.read_r;
        for (struct probes_watch *w = watches; w; w = w->next) {
                struct probes_sample none = { 0 };
                const struct probes_sample *ended = &none;

                for (unsigned i = 0; i < FAKE_THREADS; i++)
                        if (fake.thread[i].pid == w->pid)
                                each(arg, w, &fake.thread[i].t, NULL);
                for (unsigned i = 0; i < 16; i++)
                        if (fake.ended[i].pid == w->pid)
                                ended = &fake.ended[i].sum;
                each(arg, w, NULL, ended);
        }
        return 0;
}

void probes_add(struct probes_sample *sum, const struct probes_sample *s) {
        uint64_t *to = (uint64_t *) sum, longest = sum->longest_ns > s->longest_ns ? sum->longest_ns : s->longest_ns;
        const uint64_t *from = (const uint64_t *) s;

        _Static_assert(sizeof(*s) % sizeof(uint64_t) == 0, "nothing but numbers");
        for (unsigned i = 0; i < sizeof(*s) / sizeof(uint64_t); i++)
                to[i] += from[i];
        sum->longest_ns = longest;
}

uint64_t probes_bucket_end_ns(unsigned i) {
        return i + 1 < PROBES_BUCKETS ? 1ull << (PROBES_FIRST_LOG2 + i) : UINT64_MAX;
}
