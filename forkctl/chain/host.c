/* SPDX-License-Identifier: MIT */
/* What is looked at beside the steps: the host, the pager's counters, memory. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <time.h>

#include "common/io.h"
#include "common/json.h"
#include "forkctl/chain/run.h"
#include "forkctl/vm_memory.h"

/* ---- the host ---- */

/* The first line of @path that starts with @key, behind its colon. */
static void proc_field(const char *path, const char *key, char *buf, size_t size) {
        cleanup_fclose FILE *f = fopen(path, "re");
        char line[512];

        buf[0] = '\0';
        while (f && fgets(line, sizeof(line), f)) {
                const char *colon = strchr(line, ':');

                if (strncmp(line, key, strlen(key)) != 0 || !colon)
                        continue;
                line[strcspn(line, "\n")] = '\0';
                (void) snprintf(buf, size, "%s", colon + 1 + strspn(colon + 1, " \t"));
                return;
        }
}

static void now_text(char *buf, size_t size) {
        time_t t = time(NULL);
        struct tm tm;

        if (!gmtime_r(&t, &tm) || strftime(buf, size, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
                buf[0] = '\0';
}

json_t *run_host(struct run *x) {
        cleanup_json json_t *info = NULL, *snapshot = NULL;
        char cpu[256], when[40], os[160];
        double load[1] = { -1 };
        struct utsname u = { 0 };
        struct sysinfo si = { 0 };

        proc_field("/proc/cpuinfo", "model name", cpu, sizeof(cpu));
        now_text(when, sizeof(when));
        (void) uname(&u);
        (void) sysinfo(&si);
        (void) getloadavg(load, 1);
        (void) snprintf(os, sizeof(os), "%s %s", u.sysname, u.release);
        best_effort(ctl_call(x->c, "info", NULL, &info));
        if (x->base[0])
                best_effort(ctl_call_name(x->c, "snapshot.show", "snapshot", x->base, &snapshot));
        return json_pack("{s:s, s:s, s:s, s:o, s:I, s:I, s:f, s:s, s:o, s:o, s:o, s:o, s:b}", "when", when, "kernel", os,
                         "machine", u.machine, "cpu", json_text(cpu, strlen(cpu)), "cpus", (json_int_t) get_nprocs(),
                         "memory_bytes", (json_int_t) si.totalram * si.mem_unit, "load_1m", load[0], "forkctl", FORKD_VERSION,
                         "forkd", json_string(json_str(info, "version", "?")), "vmm", json_string(json_str(snapshot, "vmm", "?")),
                         "vmm_version", json_string(json_str(snapshot, "vmm_version", "?")), "accel",
                         json_string(json_str(snapshot, "accel", "?")), "reflink",
                         json_flag(json_object_get(info, "store"), "reflink"));
}

/* ---- faults ---- */

json_t *run_faults(struct run *x) {
        cleanup_json json_t *doc = NULL;

        if (ctl_call(x->c, "stats", NULL, &doc) < 0)
                return NULL;
        return json_incref(json_object_get(json_object_get(doc, "pager"), "faults"));
}

json_t *run_faults_between(const json_t *before, const json_t *after) {
        json_t *diff, *v;
        const char *kind;

        if (!json_is_object(after))
                return NULL;
        diff = json_object();
        json_object_foreach ((json_t *) after, kind, v) {
                json_int_t n = json_integer_value(v) - json_integer_value(json_object_get(before, kind));

                /* a pager that was started anew counts from 0 */
                if (diff && json_object_set_new(diff, kind, json_integer(n < 0 ? json_integer_value(v) : n)) < 0) {
                        json_decref(diff);
                        return NULL;
                }
        }
        return diff;
}

/* ---- memory ---- */

/* Decoded memory that a living guest has a use for. What belongs to clones that are gone is only a cache: the pager gives it back when
 * it has been idle for some minutes, or memory is short. */
static double decoded_in_use(const json_t *status) {
        json_t *images = json_list(status, "images"), *image;
        double sum = 0;
        size_t i;

        json_array_foreach (images, i, image)
                if (json_num(image, "idle_s", 0) == 0)
                        sum += json_num(image, "present_bytes", 0);
        return images ? sum : -1;
}

bool run_held(struct run *x, uint64_t *ret) {
        cleanup_json json_t *list = NULL, *status = NULL;
        double sum;
        json_t *vm;
        size_t i;

        if (run_over(x) || ctl_call(x->c, "vm.list", NULL, &list) < 0 || ctl_call(x->c, "pager.status", NULL, &status) < 0)
                return false;
        sum = decoded_in_use(status);
        json_array_foreach (json_list(list, "vms"), i, vm) {
                const char *name = json_str(vm, "name", "");
                double private, vmm;

                if (strncmp(name, x->prefix, strlen(x->prefix)) != 0 || !json_u64(vm, "pid", 0))
                        continue;
                vm_memory(x->c, name, &private, &vmm);
                if (private < 0)
                        return false;
                sum += private;
        }
        *ret = sum >= 0 ? (uint64_t) sum : 0;
        return sum >= 0;
}
