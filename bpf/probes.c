/* SPDX-License-Identifier: MIT */
/* Theory of operation. A watch has a number that is never used again, of which the low half is its place in a table. The
 * programs copy it into every thread's entry, and a read gives an entry only to the watch with that number: so what is left of
 * an earlier process with the same pid finds nobody.
 *
 * All entries are read at once, which is one system call and a copy of what is there; the processes likewise. */
#include "bpf/probes.h"

#include <bpf/bpf.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bpf/internal.h"
#include "common/io.h"

#define TASK_MAX 4096 /* of a file in /proc/…/task */
#define READ_TRIES 4

void probes_add(struct probes_sample *sum, const struct probes_sample *s) {
        for (unsigned i = 0; i < PROBES_N_STATES; i++)
                sum->ns[i] += s->ns[i];
        sum->preempted += s->preempted;
        sum->slept += s->slept;
        sum->exits += s->exits;
        sum->halts += s->halts;
        sum->waits += s->waits;
        sum->wait_ns += s->wait_ns;
        if (s->longest_ns > sum->longest_ns)
                sum->longest_ns = s->longest_ns;
        for (unsigned i = 0; i < PROBES_BUCKETS; i++)
                sum->wait[i] += s->wait[i];
}

uint64_t probes_bucket_end_ns(unsigned i) {
        return i + 1 < PROBES_BUCKETS ? 1ull << (PROBES_FIRST_LOG2 + i) : UINT64_MAX;
}

void probes_get_status(const struct probes *p, struct probes_status *ret) {
        *ret = p->status;
        ret->overflows = __atomic_load_n(&p->skel->bss->overflows, __ATOMIC_RELAXED);
        ret->recycled = __atomic_load_n(&p->skel->bss->recycled, __ATOMIC_RELAXED);
        ret->missed = __atomic_load_n(&p->skel->bss->missed, __ATOMIC_RELAXED);
}

/* ---- watches ---- */

static struct probes_watch *watch_of(const struct probes *p, uint64_t number) {
        uint32_t place = (uint32_t) number;
        struct probes_watch *w = place < p->status.max_processes ? p->watch[place] : NULL;

        return w && w->number == number ? w : NULL;
}

static int new_watch(struct probes *p, struct probes_watch **ret) {
        struct probes_watch *w;

        if (p->status.processes >= p->status.max_processes)
                return -ENOSPC;
        while (p->watch[p->last])
                p->last = (p->last + 1) % p->status.max_processes;
        w = calloc(1, sizeof(*w));
        if (!w)
                return -ENOMEM;
        w->p = p;
        w->number = (uint64_t) ++p->generation << 32 | p->last;
        p->watch[p->last] = w;
        p->status.processes++;
        *ret = w;
        return 0;
}

static bool has_ended(int pidfd) {
        struct pollfd pfd = { .fd = pidfd, .events = POLLIN };

        return poll(&pfd, 1, 0) != 0;
}

/** The beginning of /proc/…/task/@tid/@file. */
static ssize_t read_task(int task_fd, const char *tid, const char *file, char *data, size_t size) {
        cleanup_fd int fd = -1;
        char path[64];
        ssize_t n;

        (void) snprintf(path, sizeof(path), "%s/%s", tid, file);
        fd = openat(task_fd, path, O_RDONLY | O_CLOEXEC);
        n = fd < 0 ? -1 : read(fd, data, size - 1);
        data[n > 0 ? n : 0] = '\0';
        return n;
}

/** What a thread does that is there already, as far as /proc tells: it may not move for long. */
static enum probes_state state_of(int task_fd, const char *tid) {
        char data[TASK_MAX], *end;

        /* Which of the two tells it, and whom, is a matter of the kernel's making and of rights. */
        if (read_task(task_fd, tid, "stack", data, sizeof(data)) > 0) {
                if (strstr(data, "handle_userfault"))
                        return PROBES_MEMORY;
        } else {
                /* Since 6.12 a sleeper may stay on its run queue for a while (DELAY_DEQUEUE in kernel/sched/features.h), and has no
                 * wchan for so long. To tell its system call the kernel waits until it is off the queue, and takes it off. */
                (void) read_task(task_fd, tid, "syscall", data, sizeof(data));
                if (read_task(task_fd, tid, "wchan", data, sizeof(data)) > 0 && strstr(data, "userfault"))
                        return PROBES_MEMORY;
        }
        if (read_task(task_fd, tid, "stat", data, sizeof(data)) <= 0)
                return PROBES_UNKNOWN;
        end = strrchr(data, ')'); /* the name before it may be anything */
        if (!end || strlen(end) < 3)
                return PROBES_UNKNOWN;
        return end[2] == 'R' ? PROBES_ONCPU : end[2] == 'S' ? PROBES_IDLE : PROBES_UNKNOWN;
}

/** Calls @fn for each thread of process @pid that there is. */
static void each_task(struct probes_watch *w, void (*fn)(struct probes_watch *w, int task_fd, const char *name, uint32_t tid)) {
        char path[64];
        struct dirent *d;
        DIR *dir;

        (void) snprintf(path, sizeof(path), "/proc/%d/task", (int) w->pid);
        dir = opendir(path);
        if (!dir)
                return;
        while ((d = readdir(dir)))
                if (isdigit((unsigned char) d->d_name[0]))
                        fn(w, dirfd(dir), d->d_name, (uint32_t) strtoul(d->d_name, NULL, 10));
        (void) closedir(dir);
}

/* One that the programs have seen meanwhile is theirs. */
static void seed(struct probes_watch *w, int task_fd, const char *name, uint32_t tid) {
        struct probes_thread_entry t = { .watch = w->number, .tgid = (uint32_t) w->pid };

        t.state = (uint32_t) state_of(task_fd, name);
        if (t.state == PROBES_UNKNOWN)
                return;
        /* The programs tell it from when it runs: one that sleeps for ever would have none. */
        if (read_task(task_fd, name, "comm", t.comm, sizeof(t.comm)) > 0)
                t.comm[strcspn(t.comm, "\n")] = '\0';
        t.since = now_ns();
        if (t.state == PROBES_MEMORY)
                t.wait_since = t.since;
        best_effort(bpf_map_update_elem(w->p->threads_fd, &tid, &t, BPF_NOEXIST));
}

static void forget(struct probes_watch *w, int task_fd, const char *name, uint32_t tid) {
        best_effort(bpf_map_delete_elem(w->p->threads_fd, &tid));
}

int probes_watch(struct probes *p, int pidfd, pid_t pid, void *data, struct probes_watch **ret) {
        struct probes_process value = { 0 };
        uint32_t key = (uint32_t) pid;
        struct probes_watch *w;
        int r;

        r = new_watch(p, &w);
        if (r < 0)
                return r;
        w->pid = pid;
        w->data = data;
        value.watch = w->number;
        r = bpf_map_update_elem(p->processes_fd, &key, &value, BPF_ANY) < 0 ? -errno : 0;
        /* Alive after that: whoever the programs have met with this number is this process. */
        if (r == 0 && has_ended(pidfd))
                r = -ESRCH;
        if (r < 0) {
                probes_unwatch(w);
                return r == -E2BIG ? -ENOSPC : r;
        }
        each_task(w, seed);
        *ret = w;
        return 0;
}

void probes_unwatch(struct probes_watch *w) {
        struct probes_process value;
        struct probes *p;
        uint32_t key;

        if (!w)
                return;
        p = w->p;
        key = (uint32_t) w->pid;
        /* Another watch may have the number by now. */
        if (bpf_map_lookup_elem(p->processes_fd, &key, &value) == 0 && value.watch == w->number) {
                best_effort(bpf_map_delete_elem(p->processes_fd, &key));
                each_task(w, forget);
        }
        p->watch[(uint32_t) w->number] = NULL;
        p->status.processes--;
        free(w);
}

void *probes_watch_data(const struct probes_watch *w) {
        return w->data;
}

/* ---- reading ---- */

static void tell(const struct probes *p, uint32_t tid, const struct probes_thread_entry *t, uint64_t now, probes_each_fn *each,
                 void *arg) {
        struct probes_watch *w = watch_of(p, t->watch);
        struct probes_thread thread = { .tid = (pid_t) tid };

        if (!w) {
                /* Of a watch that is no more, by which it was not forgotten (a thread that took its leader's place by execve had another
                 * number by then): the place is needed. One that had just gone reads as watch 0, and has none. */
                if (t->watch)
                        best_effort(bpf_map_delete_elem(p->threads_fd, &tid));
                return;
        }
        thread.state = t->state < PROBES_N_STATES ? (enum probes_state) t->state : PROBES_UNKNOWN;
        thread.since_ns = t->since;
        thread.wait_since_ns = t->wait_since;
        thread.sum = t->sum;
        memcpy(thread.comm, t->comm, sizeof(thread.comm));
        thread.comm[sizeof(thread.comm) - 1] = '\0';
        /* What it does is not counted before it ends; what was read is not known to go on after the reading began. */
        if (t->since && now > t->since)
                thread.sum.ns[thread.state] += now - t->since;
        each(arg, w, &thread, NULL);
}

/** All that is in a map, of which at most @max can be: so it comes in one batch. */
static int read_map(int fd, void *keys, void *values, uint32_t max, uint32_t *ret_n) {
        uint32_t batch, n = max;

        if (bpf_map_lookup_batch(fd, NULL, &batch, keys, values, &n, NULL) < 0 && errno != ENOENT)
                return -errno;
        *ret_n = n < max ? n : max;
        return 0;
}

/** Reads an entry again that was just being written. One that has gone is nobody's. */
static void settle(struct probes *p, uint32_t i) {
        struct probes_thread_entry *t = &p->entries[i];

        for (unsigned k = 0; k < READ_TRIES && t->begun != t->done; k++)
                if (bpf_map_lookup_elem(p->threads_fd, &p->tids[i], t) < 0)
                        *t = (struct probes_thread_entry){ 0 };
}

/** Threads, and what those that ended left to their processes, as of one moment: read again when one has ended in between. Where
 *  they do all the time the processes are from before, so that no thread counts twice. */
static int read_all(struct probes *p, uint32_t *ret_threads, uint32_t *ret_processes, uint64_t *ret_now) {
        uint32_t threads = 0, n[2] = { 0 };
        int r;

        for (unsigned i = 0; i < READ_TRIES; i++) {
                r = read_map(p->processes_fd, p->tgids[0], p->ended[0], p->status.max_processes, &n[0]);
                *ret_now = now_ns();
                if (r == 0)
                        r = read_map(p->threads_fd, p->tids, p->entries, p->status.max_threads, &threads);
                for (uint32_t k = 0; r == 0 && k < threads; k++)
                        settle(p, k);
                if (r == 0)
                        r = read_map(p->processes_fd, p->tgids[1], p->ended[1], p->status.max_processes, &n[1]);
                if (r < 0)
                        return r;
                if (n[0] == n[1] && memcmp(p->ended[0], p->ended[1], n[0] * sizeof(*p->ended[0])) == 0)
                        break;
        }
        *ret_threads = threads;
        *ret_processes = n[0];
        return 0;
}

int probes_read(struct probes *p, probes_each_fn *each, void *arg) {
        uint32_t threads = 0, processes = 0;
        uint64_t now;
        int r;

        r = read_all(p, &threads, &processes, &now);
        if (r < 0)
                return r;
        p->status.threads = threads;
        for (uint32_t i = 0; i < threads; i++)
                tell(p, p->tids[i], &p->entries[i], now, each, arg);
        for (uint32_t i = 0; i < processes; i++) {
                struct probes_watch *w = watch_of(p, p->ended[0][i].watch);

                if (w)
                        each(arg, w, NULL, &p->ended[0][i].ended);
        }
        return 0;
}
