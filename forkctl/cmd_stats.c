/* SPDX-License-Identifier: MIT */
/* `stats`: the whole host on one page, or one VM with the histogram of its waits for memory. The document is forkd's (the method
 * `stats`, docs/protocol.md); what is missing in it is shown as "-". */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "common/ids.h"
#include "common/json.h"
#include "forkctl/canvas.h"
#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "forkctl/draw.h"
#include "forkctl/table.h"
#include "forkctl/top.h"
#include "forkctl/tty.h"

#define BAR_MIN 10u
#define BAR_MAX 60u
#define HIST_MAX_BUCKETS 64u
#define UNKNOWN_COLS 100u /* where nobody knows how wide the output is */

static const char *seconds(const json_t *map, const char *key, char *buf, size_t size) {
        return draw_seconds(buf, size, json_num(map, key, NAN), canvas_locale_is_utf8());
}

static const char *milliseconds(const json_t *map, const char *key, char *buf, size_t size) {
        return draw_seconds(buf, size, json_num(map, key, NAN) / 1e3, canvas_locale_is_utf8());
}

static const char *safe(const json_t *map, const char *key, const char *none, char *buf, size_t size) {
        return text_safe(json_str(map, key, none), buf, size);
}

/* ---- histograms: lines of what is below a bound, from the first that holds something to the last ---- */

struct line {
        double bound_s; /* infinite for the last one of all */
        uint64_t n;
};

/* Buckets come without the empty ones; bounds double. */
static size_t read_lines(const json_t *hist, struct line *lines) {
        size_t n = 0, i;
        json_t *b;

        json_array_foreach (json_list(hist, "buckets"), i, b) {
                const json_t *bound = json_array_get(b, 0), *count = json_array_get(b, 1);
                double s = json_is_number(bound) ? json_number_value(bound) : INFINITY;

                while (n > 0 && n < HIST_MAX_BUCKETS && isfinite(s) && lines[n - 1].bound_s * 1.5 < s / 1.5) {
                        lines[n] = (struct line){ .bound_s = lines[n - 1].bound_s * 2 };
                        n++;
                }
                if (n == HIST_MAX_BUCKETS)
                        break;
                lines[n].bound_s = s;
                lines[n++].n = json_is_integer(count) && json_integer_value(count) > 0 ? (uint64_t) json_integer_value(count) : 0;
        }
        return n;
}

static void print_histogram(const json_t *hist, unsigned cols) {
        struct line lines[HIST_MAX_BUCKETS];
        size_t n = read_lines(hist, lines);
        unsigned width = cols > 34 + BAR_MIN ? MIN_OF(cols - 34, BAR_MAX) : BAR_MIN;
        char bound[32], bar[BAR_MAX * 4 + 8];
        uint64_t most = 0, all = 0;
        bool utf8 = canvas_locale_is_utf8();

        for (size_t i = 0; i < n; i++) {
                most = MAX_OF(most, lines[i].n);
                all += lines[i].n;
        }
        if (all == 0)
                return;
        printf("\n%12s  %10s  %6s\n", "below", "waits", "share");
        for (size_t i = 0; i < n; i++) {
                char share[32];
                int pad;

                if (isfinite(lines[i].bound_s))
                        (void) draw_seconds(bound, sizeof(bound), lines[i].bound_s, utf8);
                else
                        (void) snprintf(bound, sizeof(bound), "and more");
                pad = 12 - (int) MIN_OF(canvas_width(&(struct canvas){ .utf8 = utf8 }, bound), 12u); /* printf counts bytes */
                (void) draw_bar(bar, sizeof(bar), (double) lines[i].n / (double) most, width, utf8);
                for (size_t k = strlen(bar); k > 0 && bar[k - 1] == ' '; k--)
                        bar[k - 1] = '\0';
                printf("%*s%s  %10llu  %6s%s%s\n", pad, "", bound, (unsigned long long) lines[i].n,
                       draw_percent(share, sizeof(share), (double) lines[i].n / (double) all), *bar ? "  " : "", bar);
        }
}

static void print_quantiles(const char *what, const json_t *hist) {
        char p50[32], p90[32], p99[32], max[32], sum[32], n[32];

        printf("%s: %s", what, draw_count(n, sizeof(n), json_num(hist, "count", NAN)));
        if (json_u64(hist, "count", 0) > 0)
                printf(", %s in all; p50 %s, p90 %s, p99 %s, longest %s", seconds(hist, "sum_s", sum, sizeof(sum)),
                       seconds(hist, "p50_s", p50, sizeof(p50)), seconds(hist, "p90_s", p90, sizeof(p90)),
                       seconds(hist, "p99_s", p99, sizeof(p99)), seconds(hist, "max_s", max, sizeof(max)));
        puts("");
}

/* ---- one VM ---- */

static int print_vcpus(const json_t *vm) {
        static const char *const head[] = { "VCPU",   "STATE",  ">CPU",   ">RUNQUEUE",  ">MEMORY", ">PREEMPTED",
                                            ">SLEPT", ">EXITS", ">HALTS", ">WAITS NOW", "HEALTH",  "WHY" };
        cleanup_table struct table t = { 0 };
        char text[64];
        json_t *v;
        size_t i;

        table_init(&t, head, ARRAY_LEN(head));
        json_array_foreach (json_list(vm, "vcpus"), i, v) {
                double waiting = json_num(v, "waiting_ms", 0);

                table_cell(&t, "%.0f", json_num(v, "vcpu", -1));
                table_cell(&t, "%s", json_str(v, "state", "-"));
                table_cell(&t, "%s", draw_percent(text, sizeof(text), json_num(v, "oncpu", NAN)));
                table_cell(&t, "%s", draw_percent(text, sizeof(text), json_num(v, "runqueue", NAN)));
                table_cell(&t, "%s", draw_percent(text, sizeof(text), json_num(v, "memory", NAN)));
                table_cell(&t, "%s", draw_count(text, sizeof(text), json_num(v, "preempted", NAN)));
                table_cell(&t, "%s", draw_count(text, sizeof(text), json_num(v, "slept", NAN)));
                table_cell(&t, "%s", draw_count(text, sizeof(text), json_num(v, "exits", NAN)));
                table_cell(&t, "%s", draw_count(text, sizeof(text), json_num(v, "halts", NAN)));
                table_cell(&t, "%s", waiting > 0 ? milliseconds(v, "waiting_ms", text, sizeof(text)) : "-");
                table_cell(&t, "%s", json_flag(v, "stuck") ? "STUCK" : json_flag(v, "spinning") ? "SPINNING" : "ok");
                table_cell(&t, "%s", json_str(v, "why", ""));
        }
        if (i == 0)
                return 0;
        puts("");
        return table_print(&t, stdout);
}

/* What runs it, where, and what its memory came from; of one that was removed only its id is left. */
static void print_machine(const json_t *vm) {
        char mem[32], text[512];

        printf("%s", safe(vm, "id", "?", text, sizeof(text)));
        if (json_str(vm, "vmm", "")[0]) {
                printf(", %s", safe(vm, "vmm", "?", text, sizeof(text)));
                printf("/%s, %s of memory", safe(vm, "accel", "?", text, sizeof(text)),
                       text_size(vm, "mem_bytes", mem, sizeof(mem)));
        }
        if (json_u64(vm, "pid", 0))
                printf(", pid %llu", (unsigned long long) json_u64(vm, "pid", 0));
        if (json_str(vm, "snapshot", "")[0])
                printf(", from snapshot %s", safe(vm, "snapshot", "", text, sizeof(text)));
        printf("; pager session: %s\n", safe(vm, "session", "?", text, sizeof(text)));
}

static void print_vm_head(const json_t *doc, const json_t *vm) {
        const json_t *ended = json_object_get(vm, "ended_ms"), *probes = json_object_get(doc, "probes");
        char name[128], state[64], health[64], text[512], since[32];

        printf("%s is %s, health: %s", safe(vm, "name", "?", name, sizeof(name)), safe(vm, "state", "?", state, sizeof(state)),
               safe(vm, "health", "unknown", health, sizeof(health)));
        if (json_str(vm, "why", "")[0])
                printf(": %s", safe(vm, "why", "", text, sizeof(text)));
        if (json_is_number(ended))
                printf("; it ended %s ago", milliseconds(vm, "ended_ms", since, sizeof(since)));
        puts("");
        if (json_str(vm, "reason", "")[0])
                printf("reason: %s\n", safe(vm, "reason", "", text, sizeof(text)));
        print_machine(vm);
        if (!json_flag(vm, "watched") && json_u64(vm, "pid", 0)) {
                printf("its vCPUs are not watched");
                if (!json_flag(probes, "ok") && json_str(probes, "reason", "")[0])
                        printf(": %s", safe(probes, "reason", "", text, sizeof(text)));
                puts("");
        }
}

static int print_vm(const json_t *doc, const json_t *vm) {
        const json_t *others = json_object_get(vm, "others"), *s;
        unsigned rows, cols = UNKNOWN_COLS;
        char text[32], more[32], still[32];
        size_t i;
        int r;

        best_effort(tty_size(&rows, &cols));
        print_vm_head(doc, vm);
        puts("");
        print_quantiles("waits for memory", json_object_get(vm, "wait"));
        if (json_num(vm, "waiting_ms", 0) > 0)
                printf("waiting now, for %s\n", milliseconds(vm, "waiting_ms", text, sizeof(text)));
        print_histogram(json_object_get(vm, "wait"), cols);
        r = print_vcpus(vm);
        if (json_num(others, "threads", 0) > 0)
                printf("\nother threads: %.0f; on a CPU for %s, waiting for one %s, for memory %s\n",
                       json_num(others, "threads", 0), seconds(others, "oncpu_s", text, sizeof(text)),
                       seconds(others, "runqueue_s", more, sizeof(more)), seconds(others, "memory_s", still, sizeof(still)));
        json_array_foreach (json_list(json_object_get(doc, "pager"), "served"), i, s)
                if (strcmp(json_str(s, "vm", ""), json_str(vm, "name", "?")) == 0) {
                        printf("\nas its pager counts: %s faults, %s pages; ",
                               draw_count(text, sizeof(text), json_num(s, "faults", NAN)),
                               draw_count(more, sizeof(more), json_num(s, "pages_installed", NAN)));
                        print_quantiles("faults waited", json_object_get(s, "wait"));
                }
        return r;
}

/* ---- all ---- */

static void print_host(const json_t *doc) {
        const json_t *probes = json_object_get(doc, "probes"), *host = json_object_get(doc, "host"),
                     *shells = json_object_get(doc, "shells");
        char version[64], age[32], text[512], a[32], b[32];

        printf("forkd     %s, up %s; ", safe(doc, "version", "?", version, sizeof(version)),
               milliseconds(doc, "uptime_ms", age, sizeof(age)));
        if (json_str(doc, "metrics_address", "")[0])
                printf("metrics at %s%s\n", strncmp(json_str(doc, "metrics_address", ""), "unix:", 5) == 0 ? "" : "http://",
                       safe(doc, "metrics_address", "", text, sizeof(text)));
        else
                printf("no metrics%s\n", json_str(doc, "metrics_error", "")[0] ? "" : ": they are off");
        if (json_str(doc, "metrics_error", "")[0])
                printf("          %s\n", safe(doc, "metrics_error", "", text, sizeof(text)));
        if (json_flag(probes, "ok"))
                printf("probes    %s, VM exits %s; %.0f processes with %.0f threads of %.0f with %.0f\n",
                       safe(probes, "method", "?", text, sizeof(text)), json_flag(probes, "kvm") ? "from KVM" : "unknown",
                       json_num(probes, "processes", 0), json_num(probes, "threads", 0), json_num(probes, "max_processes", 0),
                       json_num(probes, "max_threads", 0));
        else
                printf("probes    none: nothing is known of vCPUs\n");
        if (json_str(probes, "reason", "")[0])
                printf("          %s\n", safe(probes, "reason", "", text, sizeof(text)));
        if (json_str(probes, "hint", "")[0])
                printf("          hint: %s\n", safe(probes, "hint", "", text, sizeof(text)));
        if (json_num(probes, "overflows", 0) + json_num(probes, "missed", 0) + json_num(probes, "unwatched_vms", 0) > 0)
                printf("          not seen: %.0f VMs, %.0f threads, %.0f events\n", json_num(probes, "unwatched_vms", 0),
                       json_num(probes, "overflows", 0), json_num(probes, "missed", 0));
        printf("host      %.0f CPUs; memory: %s of %s available; store: %s free\n", json_num(host, "cpus", 0),
               text_size(host, "mem_available_bytes", a, sizeof(a)), text_size(host, "mem_total_bytes", b, sizeof(b)),
               text_size(json_object_get(doc, "store"), "free", text, sizeof(text)));
        printf("shells    %.0f ready, %.0f starting; used by %.0f VMs, missed by %.0f, %.0f failed\n",
               json_num(shells, "ready", 0), json_num(shells, "starting", 0), json_num(shells, "used", 0),
               json_num(shells, "missed", 0), json_num(shells, "failed", 0));
}

static void print_pager(const json_t *pager) {
        char a[32], b[32], text[512];

        if (json_flag(pager, "up"))
                printf("pager     pid %.0f; sessions: %.0f; images: %.0f, %s of %s present; oldest fault %s\n",
                       json_num(pager, "pid", 0), json_num(pager, "sessions", 0), json_num(pager, "images", 0),
                       text_size(pager, "present_bytes", a, sizeof(a)), text_size(pager, "budget_bytes", b, sizeof(b)),
                       milliseconds(pager, "oldest_fault_ms", text, sizeof(text)));
        else
                puts("pager     not running");
        if (json_str(pager, "error", "")[0])
                printf("          it does not answer: %s\n", safe(pager, "error", "", text, sizeof(text)));
        printf("          ever: %.0f died, %.0f hung, %.0f upgrades; guests: %.0f recovered, %.0f killed\n",
               json_num(pager, "deaths", 0), json_num(pager, "hangs", 0), json_num(pager, "upgrades", 0),
               json_num(pager, "recovered", 0), json_num(pager, "killed", 0));
}

static int print_threads(const json_t *pager) {
        static const char *const head[] = { "PAGER'S THREAD", "ROLE", ">CPU", ">RUNQUEUE", ">LOCK", ">DISK" };
        static const char *const shares[] = { "oncpu", "runqueue", "lock", "disk" };
        cleanup_table struct table t = { 0 };
        char text[32];
        json_t *v;
        size_t i;

        table_init(&t, head, ARRAY_LEN(head));
        json_array_foreach (json_list(pager, "threads"), i, v) {
                table_cell(&t, "%s", json_str(v, "name", "")[0] ? json_str(v, "name", "") : "-");
                table_cell(&t, "%s", json_str(v, "role", "?"));
                for (size_t k = 0; k < ARRAY_LEN(shares); k++)
                        table_cell(&t, "%s", draw_percent(text, sizeof(text), json_num(v, shares[k], NAN)));
        }
        if (i == 0)
                return 0;
        puts("");
        return table_print(&t, stdout);
}

static int print_operations(const json_t *doc) {
        static const char *const head[] = { "OPERATION", ">DONE", ">FAILED", ">P50", ">P95", ">P99", ">LONGEST" };
        static const char *const shown[] = { "p50_s", "p95_s", "p99_s", "max_s" };
        const json_t *failed = json_object_get(doc, "failed");
        cleanup_table struct table t = { 0 };
        const char *key;
        char text[32];
        json_t *h;

        table_init(&t, head, ARRAY_LEN(head));
        if (json_object_size(json_object_get(doc, "operations")) == 0)
                return 0;
        json_object_foreach (json_object_get(doc, "operations"), key, h) {
                bool any = json_u64(h, "count", 0) > 0;

                table_cell(&t, "%s", key);
                table_cell(&t, "%s", draw_count(text, sizeof(text), json_num(h, "count", 0)));
                table_cell(&t, "%s", draw_count(text, sizeof(text), json_num(failed, key, 0)));
                for (size_t k = 0; k < ARRAY_LEN(shown); k++)
                        table_cell(&t, "%s", any ? seconds(h, shown[k], text, sizeof(text)) : "-");
        }
        puts("");
        return table_print(&t, stdout);
}

static int print_vms(struct ctl *c, const json_t *doc) {
        static const char *const head[] = { "NAME", "HEALTH", "STATE", ">CPU",    ">RUNQUEUE", ">WAITS",
                                            ">P50", ">P99",   ">NOW",  ">MEMORY", "WHY" };
        cleanup_table struct table t = { 0 };
        cleanup_top struct top top = { 0 };
        bool utf8 = canvas_locale_is_utf8();
        char text[64];
        int r;

        top_init(&top);
        r = top_update(&top, doc); /* worst first, as `top` has them */
        if (r < 0)
                return r == -EBADMSG ? err_set(&c->e, ERR_PROTOCOL, r, "forkd's answer is no such document") : r;
        table_init(&t, head, ARRAY_LEN(head));
        for (size_t i = 0; i < top.n_shown; i++) {
                const struct top_vm *vm = top.shown[i];

                table_cell(&t, "%s", vm->name);
                table_cell(&t, "%s", isnan(vm->ended_s) ? top_health_name(vm->health) : "ended");
                table_cell(&t, "%s", vm->state);
                table_cell(&t, "%s", draw_percent(text, sizeof(text), vm->cpu));
                table_cell(&t, "%s", draw_percent(text, sizeof(text), vm->runqueue));
                table_cell(&t, "%s", draw_count(text, sizeof(text), (double) vm->waits));
                table_cell(&t, "%s", draw_seconds(text, sizeof(text), vm->p50_s, utf8));
                table_cell(&t, "%s", draw_seconds(text, sizeof(text), vm->p99_s, utf8));
                table_cell(&t, "%s", vm->waiting_s > 0 ? draw_seconds(text, sizeof(text), vm->waiting_s, utf8) : "-");
                table_cell(&t, "%s", size_format(vm->mem_bytes, text, sizeof(text)));
                table_cell(&t, "%s", vm->why);
        }
        if (top.n_shown == 0) {
                puts("\nno VMs");
                return 0;
        }
        puts("");
        r = table_print(&t, stdout);
        if (top.head.left_out)
                printf("%llu more VMs did not fit into the document\n", (unsigned long long) top.head.left_out);
        return r;
}

int cmd_stats(struct ctl *c, const struct args *a) {
        cleanup_json json_t *doc = NULL;
        const json_t *vm;
        int r = a->n_pos ? ctl_call_name(c, "stats", "name", a->pos[0], &doc) : ctl_call(c, "stats", NULL, &doc);

        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, doc);
        if (a->n_pos) {
                vm = json_array_get(json_list(doc, "vms"), 0);
                if (!vm)
                        return err_set(&c->e, ERR_PROTOCOL, -EPROTO, "forkd's answer has no VM in it");
                r = print_vm(doc, vm);
        } else {
                print_host(doc);
                print_pager(json_object_get(doc, "pager"));
                r = print_threads(json_object_get(doc, "pager"));
                if (r == 0)
                        r = print_operations(doc);
                if (r == 0)
                        r = print_vms(c, doc);
        }
        return r < 0 && c->e.r == 0 ? err_errno(&c->e, r, "writing the output") : r;
}
