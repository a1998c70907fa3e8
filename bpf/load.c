/* SPDX-License-Identifier: MIT */
/* Theory of operation. Which way of seeing waits works is found out by trying: kernels have a function and cannot trace it,
 * accept a program and never call it, or may not be asked. So each method, best first, is loaded as it would be used, and then
 * has to see a fault of our own (trial.h) of known length. The first that does is kept; what was wrong with the better ones is
 * told. Where none does, the scheduler's part must at least see our thread sleep. */
#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bpf/internal.h"
#include "bpf/learn.h"
#include "bpf/trial.h"
#include "common/io.h"
#include "common/log.h"

#define DEFAULT_PROCESSES 1024
#define DEFAULT_THREADS 8192
#define MAX_PLACES (1u << 20)
#define TRIAL_NS 2000000 /* how long our fault waits */
#define TRIALS 3
#define TRIAL_MS 3000 /* until our thread has had a CPU again: on a busy host that may take long */

static const char *const method_names[] = {
        [PROBES_NONE] = "none",
        [PROBES_FENTRY] = "fentry",
        [PROBES_KPROBE] = "kprobe",
        [PROBES_SWITCH] = "sched_switch",
};

const char *probes_method_name(enum probes_method m) {
        return (unsigned) m < PROBES_N_METHODS ? method_names[m] : "?";
}

/* libbpf says more than anybody wants to read when a method is tried that this kernel does not have. */
static int print(enum libbpf_print_level level, const char *fmt, va_list ap) attr_printf(2, 0);
static int print(enum libbpf_print_level level, const char *fmt, va_list ap) {
        char line[400];
        int n;

        if (level == LIBBPF_DEBUG)
                return 0;
        n = vsnprintf(line, sizeof(line), fmt, ap);
        for (char *end = line + strlen(line); end > line && end[-1] == '\n';)
                *--end = '\0';
        log_debug("%s", line);
        return n;
}

static int failed(int r, const char *what, char *why, size_t size) {
        (void) snprintf(why, size, "%s: %s", what, strerror(-r));
        return r;
}

/** KVM may not be there, now or ever: no reason to do without the rest. */
static bool attach_kvm(struct probes_bpf *s) {
        s->links.on_kvm_exit = bpf_program__attach(s->progs.on_kvm_exit);
        s->links.on_kvm_halt = bpf_program__attach(s->progs.on_kvm_halt);
        return s->links.on_kvm_exit && s->links.on_kvm_halt;
}

/** System calls in which a thread sleeps without touching guest memory. */
static void tell_calls(uint8_t calls[PROBES_CALLS]) {
        static const int idle[] = {
#ifdef SYS_poll
                SYS_poll,      SYS_select,          SYS_epoll_wait,
#endif
                SYS_ppoll,     SYS_pselect6,        SYS_epoll_pwait,     SYS_epoll_pwait2,
                SYS_nanosleep, SYS_clock_nanosleep, SYS_rt_sigtimedwait,
        };
        static const int lock[] = { SYS_futex, SYS_futex_waitv };

        for (size_t i = 0; i < ARRAY_LEN(idle); i++)
                calls[idle[i]] = PROBES_CALL_IDLE;
        for (size_t i = 0; i < ARRAY_LEN(lock); i++)
                calls[lock[i]] = PROBES_CALL_LOCK;
}

/** Opens, loads and attaches the programs for @method, which are those of @p from then on. -errno, with the step in @why. */
static int load(struct probes *p, enum probes_method method, const struct learn_bounds *bounds, char *why, size_t size) {
        struct probes_bpf *s = probes_bpf__open();
        int r;

        if (!s)
                return failed(-errno, "opening the BPF programs", why, size);
        s->rodata->by_stack = method == PROBES_SWITCH;
        s->rodata->fault_start = bounds->start;
        s->rodata->fault_end = bounds->end;
        s->rodata->fault_frames = bounds->frames;
        tell_calls(s->rodata->calls);
        (void) bpf_map__set_max_entries(s->maps.processes, p->status.max_processes);
        (void) bpf_map__set_max_entries(s->maps.threads, p->status.max_threads);
        (void) bpf_program__set_autoload(s->progs.fault_fentry, method == PROBES_FENTRY);
        (void) bpf_program__set_autoload(s->progs.fault_fexit, method == PROBES_FENTRY);
        (void) bpf_program__set_autoload(s->progs.fault_kprobe, method == PROBES_KPROBE);
        (void) bpf_program__set_autoload(s->progs.fault_kretprobe, method == PROBES_KPROBE);
        (void) bpf_program__set_autoattach(s->progs.on_kvm_exit, false);
        (void) bpf_program__set_autoattach(s->progs.on_kvm_halt, false);
        r = probes_bpf__load(s);
        if (r < 0) {
                (void) failed(r, "loading", why, size);
        } else {
                r = probes_bpf__attach(s);
                if (r < 0)
                        (void) failed(r, "attaching", why, size);
        }
        if (r < 0) {
                probes_bpf__destroy(s);
                return r;
        }
        p->status.kvm = attach_kvm(s);
        p->status.method = method;
        p->skel = s;
        p->threads_fd = bpf_map__fd(s->maps.threads);
        p->processes_fd = bpf_map__fd(s->maps.processes);
        return 0;
}

static void unload(struct probes *p) {
        probes_bpf__destroy(TAKE_PTR(p->skel));
        p->threads_fd = p->processes_fd = -1;
}

struct seen {
        pid_t tid;
        bool found;
        struct probes_sample sum;
};

static void see(void *arg, struct probes_watch *w, const struct probes_thread *thread, const struct probes_sample *ended) {
        struct seen *seen = arg;

        if (!thread || thread->tid != seen->tid)
                return;
        seen->found = true;
        seen->sum = thread->sum;
}

/** For as long as our fault shall wait, whatever signals come. */
static void hold_still(void) {
        struct timespec left = { .tv_nsec = TRIAL_NS };

        while (nanosleep(&left, &left) < 0 && errno == EINTR)
                ;
}

/** Do the programs see what our own thread does? */
static int try_out(struct probes *p, char *why, size_t size) {
        attr_cleanup(cleanup_trialp) struct trial *t = NULL;
        const struct timespec turn = { .tv_nsec = 200000 };
        cleanup_fd int pidfd = -1;
        struct probes_watch *w;
        struct seen seen;
        uint64_t begin;
        int r;

        pidfd = (int) syscall(SYS_pidfd_open, getpid(), 0);
        if (pidfd < 0)
                return failed(-errno, "pidfd_open", why, size);
        r = probes_watch(p, pidfd, getpid(), NULL, &w);
        if (r < 0)
                return failed(r, "watching a process", why, size);
        r = trial_new(&t);
        if (r == 0)
                r = trial_fault(t);
        if (r == 0) {
                hold_still();
                r = trial_answer(t);
        }
        if (r < 0) {
                probes_unwatch(w);
                return failed(r, "a fault of our own", why, size);
        }
        begin = now_ns();
        do {
                seen = (struct seen){ .tid = trial_tid(t) };
                r = probes_read(p, see, &seen);
                if (p->status.method == PROBES_NONE ? seen.sum.slept > 0 : seen.sum.waits > 0)
                        break;
                (void) nanosleep(&turn, NULL);
        } while (r == 0 && ms_since(begin) < TRIAL_MS);
        probes_unwatch(w);
        if (r < 0)
                return failed(r, "reading a map", why, size);
        if (!seen.found) {
                (void) snprintf(why, size, "the programs run, and see nothing of us (is this a pid namespace of its own?)");
                return -ENODATA;
        }
        if (p->status.method != PROBES_NONE && (seen.sum.waits == 0 || seen.sum.wait_ns < TRIAL_NS / 2)) {
                (void) snprintf(why, size, "it does not see a fault of our own");
                return -ENODATA;
        }
        return 0;
}

static int try_method(struct probes *p, enum probes_method m, const struct learn_bounds *bounds, char *why, size_t size) {
        int r;

        if (m == PROBES_SWITCH && bounds->frames == 0)
                return -ENOENT; /* why is said already */
        r = load(p, m, bounds, why, size);
        if (r < 0)
                return r;
        r = try_out(p, why, size);
        if (r < 0)
                unload(p);
        return r;
}

/** Adds "method: reason" to what is told. */
static void note(struct probes *p, enum probes_method m, const char *why) {
        size_t n = strlen(p->status.why);

        (void) snprintf(p->status.why + n, sizeof(p->status.why) - n, "%s%s: %s", n ? "; " : "", probes_method_name(m), why);
}

/** The best method that works, of those that may be taken. */
static int take_best(struct probes *p, int wanted, bool none_will_do) {
        static const enum probes_method order[] = { PROBES_FENTRY, PROBES_KPROBE, PROBES_SWITCH, PROBES_NONE };
        struct learn_bounds bounds;
        char learn_why[120] = "", why[120];
        int r = -EINVAL;

        p->status.why[0] = '\0';
        if (learn_fault(&bounds, learn_why, sizeof(learn_why)) < 0)
                log_debug("learning where threads wait for memory: %s", learn_why);
        for (size_t i = 0; i < ARRAY_LEN(order); i++) {
                if (wanted >= 0 ? order[i] != (enum probes_method) wanted : order[i] == PROBES_NONE && !none_will_do)
                        continue;
                (void) snprintf(why, sizeof(why), "%s", learn_why);
                r = try_method(p, order[i], &bounds, why, sizeof(why));
                if (r == 0)
                        return 0;
                note(p, order[i], why);
        }
        return r;
}

/** A trial on a host at its limits may fail where the method works: nobody is to go blind for that. */
static int choose(struct probes *p, int wanted, struct err *e) {
        int r = -EINVAL;

        for (unsigned i = 1; i <= TRIALS; i++) {
                r = take_best(p, wanted, i == TRIALS);
                if (r == 0)
                        return 0;
        }
        (void) err_set(e, wanted <= PROBES_NONE && (r == -EPERM || r == -EACCES) ? ERR_FORBIDDEN : ERR_UNSUPPORTED, r,
                       "threads cannot be watched with BPF (%s)", p->status.why);
        if (access("/sys/kernel/btf/vmlinux", R_OK) < 0)
                return err_hint(e,
                                "the kernel does not tell its types (/sys/kernel/btf/vmlinux): it needs CONFIG_DEBUG_INFO_BTF");
        if (wanted > PROBES_NONE)
                return err_hint(e, "leave the method to forkd, which takes the best that works");
        if (r == -EPERM || r == -EACCES)
                return err_hint(e, "forkd needs CAP_BPF and CAP_PERFMON, and a kernel that is not locked down");
        return err_hint(e, "Linux 5.15 or later, with BTF, is needed");
}

int probes_open(const struct probes_options *opt, struct probes **ret, struct err *e) {
        struct probes *p;
        int r;

        if (opt->max_processes > MAX_PLACES || opt->max_threads > MAX_PLACES || opt->method >= (int) PROBES_N_METHODS)
                return err_set(e, ERR_INVALID, -EINVAL, "no such method, or more than %u places", MAX_PLACES);
        p = calloc(1, sizeof(*p));
        if (!p)
                return err_errno(e, -ENOMEM, "watching threads");
        p->threads_fd = p->processes_fd = -1;
        p->status.max_processes = opt->max_processes ? opt->max_processes : DEFAULT_PROCESSES;
        p->status.max_threads = opt->max_threads ? opt->max_threads : DEFAULT_THREADS;
        p->watch = calloc(p->status.max_processes, sizeof(struct probes_watch *));
        p->entries = calloc(p->status.max_threads, sizeof(*p->entries));
        p->tids = calloc(p->status.max_threads, sizeof(*p->tids));
        for (unsigned i = 0; i < 2; i++) {
                p->ended[i] = calloc(p->status.max_processes, sizeof(*p->ended[i]));
                p->tgids[i] = calloc(p->status.max_processes, sizeof(*p->tgids[i]));
        }
        (void) libbpf_set_print(print);
        if (p->watch && p->entries && p->tids && p->ended[0] && p->ended[1] && p->tgids[0] && p->tgids[1])
                r = choose(p, opt->method, e);
        else
                r = err_errno(e, -ENOMEM, "watching threads");
        if (r < 0) {
                probes_close(p);
                return r;
        }
        *ret = p;
        return 0;
}

void probes_close(struct probes *p) {
        if (!p)
                return;
        for (unsigned i = 0; p->watch && i < p->status.max_processes; i++)
                free(p->watch[i]);
        unload(p);
        free(p->watch);
        free(p->entries);
        free(p->tids);
        for (unsigned i = 0; i < 2; i++) {
                free(p->ended[i]);
                free(p->tgids[i]);
        }
        free(p);
}
