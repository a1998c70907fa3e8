/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/monitor/metrics_internal.h"

static void probes(struct scrape *s) {
        struct expo_labels l = { 0 };
        struct monitor_probes p = { 0 };

        if (s->d->monitor)
                monitor_get_probes(s->d->monitor, &p);
        expo_one(&s->x, "forkd_probes_up", "gauge", "1: guests are watched; 0: forkd goes on without, and its log says why.",
                 p.ok);
        expo_label(&l, "method", probes_method_name(p.status.method));
        expo_label(&l, "kvm", p.status.kvm ? "yes" : "no");
        expo_family(&s->x, "forkd_probes_info", "gauge",
                    "How waits for guest memory are seen, and whether KVM's tracepoints speak.");
        expo_u64(&s->x, &l, 1);
        expo_one(&s->x, "forkd_probes_threads", "gauge", "Threads that are watched.", p.status.threads);
        expo_one(&s->x, "forkd_probes_overflows_total", "counter",
                 "Threads for which there was no place: nothing is known of them.", p.status.overflows);
        expo_one(&s->x, "forkd_probes_recycled_total", "counter",
                 "Thread ids that came back as another's: noticed, and what they said thrown away.", p.status.recycled);
        expo_one(&s->x, "forkd_probes_missed_total", "counter", "Events that the kernel did not let the probes note.",
                 p.status.missed);
        expo_one(&s->x, "forkd_vms_unwatched", "gauge", "VMMs that live and are not watched.", p.unwatched_vms);
}

/* ---- forkd's process, as every exporter tells of itself ---- */

struct self {
        uint64_t virtual_bytes, resident_bytes, cpu_ns;
};

/* The fields of proc(5), counted from 3, behind the name in parentheses. */
static int read_self(struct self *ret) {
        cleanup_free char *text = NULL;
        uint64_t field[53] = { 0 };
        struct timespec cpu;
        char *p;
        int r;

        r = io_read_file(AT_FDCWD, "/proc/self/stat", 4096, &text, NULL);
        if (r < 0)
                return r;
        p = strrchr(text, ')');
        if (!p || clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu) < 0)
                return -EBADMSG;
        p += strcspn(p, " ");
        for (unsigned i = 3; i < ARRAY_LEN(field) && *p; i++) {
                p += strspn(p, " ");
                field[i] = strtoull(p, NULL, 10);
                p += strcspn(p, " ");
        }
        *ret = (struct self){
                .virtual_bytes = field[23],
                .resident_bytes = field[24] * (uint64_t) sysconf(_SC_PAGESIZE),
                .cpu_ns = (uint64_t) cpu.tv_sec * 1000000000u + (uint64_t) cpu.tv_nsec,
        };
        return 0;
}

static unsigned count_fds(void) {
        DIR *dir = opendir("/proc/self/fd");
        unsigned n = 0;

        if (!dir)
                return 0;
        while (readdir(dir))
                n++;
        (void) closedir(dir);
        return n > 3 ? n - 3 : 0; /* ".", "..", and the directory's own */
}

static void process(struct scrape *s) {
        struct rlimit files;
        struct self self;

        if (read_self(&self) < 0)
                return;
        expo_one_seconds(&s->x, "process_cpu_seconds_total", "counter", "CPU time of forkd itself.", self.cpu_ns);
        expo_one(&s->x, "process_resident_memory_bytes", "gauge", "Memory of forkd itself that is resident.",
                 self.resident_bytes);
        expo_one(&s->x, "process_virtual_memory_bytes", "gauge", "Addresses that forkd has mapped.", self.virtual_bytes);
        expo_family(&s->x, "process_start_time_seconds", "gauge", "When forkd started, since 1970.");
        expo_double(&s->x, NULL, s->started);
        expo_one(&s->x, "process_open_fds", "gauge", "Descriptors that forkd has open.", count_fds());
        if (getrlimit(RLIMIT_NOFILE, &files) == 0)
                expo_one(&s->x, "process_max_fds", "gauge", "Descriptors that it may have.", files.rlim_cur);
}

void families_self(struct scrape *s) {
        struct expo_labels l = { 0 };

        expo_label(&l, "version", FORKD_VERSION);
        expo_family(&s->x, "forkd_build_info", "gauge", "1, for the version that runs.");
        expo_u64(&s->x, &l, 1);
        probes(s);
        process(s);
}
