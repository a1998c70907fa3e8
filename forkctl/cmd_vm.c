/* SPDX-License-Identifier: MIT */
/* The life of a VM: run, look, pause, standby, restore, fork, stop, remove. */
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "common/json.h"
#include "forkctl/progress.h"
#include "forkctl/table.h"
#include "setup/setup.h"

#define MAX_CLONES 4096 /* of one fork; forkd's own limits come first on any host of today */

/* ---- run ---- */

/* forkd has another working directory than we do. */
static int put_disks(struct ctl *c, const struct args *a, struct req *q) {
        char cwd[PATH_MAX], path[2 * PATH_MAX];
        const char *disk;
        size_t n = 0;

        while (arg_nth(a, "disk", n))
                n++;
        if (n == 0)
                return 0;
        if (!getcwd(cwd, sizeof(cwd)))
                return err_errno(&c->e, -errno, "finding the current directory");
        req_key(q, "disks");
        mp_array(&q->body, n);
        for (size_t i = 0; (disk = arg_nth(a, "disk", i)); i++) {
                if (strlen(disk) >= PATH_MAX || !*disk)
                        return usage_error(c, a->cmd, "--disk %.80s is no path", disk);
                (void) snprintf(path, sizeof(path), "%s%s%s", disk[0] == '/' ? "" : cwd, disk[0] == '/' ? "" : "/", disk);
                mp_str(&q->body, path);
        }
        return 0;
}

static bool is_port(const char *s, size_t len) {
        unsigned v = 0;

        for (size_t i = 0; i < len; i++) {
                if (s[i] < '0' || s[i] > '9' || i >= 5)
                        return false;
                v = v * 10 + (unsigned) (s[i] - '0');
        }
        return len > 0 && v >= 1 && v <= 65535;
}

/* [HOSTIP:]PORT:GUESTPORT[/udp|/tcp]: the two ports from the right, so that HOSTIP may hold colons. */
static bool publish_valid(const char *s) {
        size_t len = strlen(s);
        const char *last, *before;

        if (len > 4 && (strcmp(s + len - 4, "/udp") == 0 || strcmp(s + len - 4, "/tcp") == 0))
                len -= 4;
        last = memrchr(s, ':', len);
        if (!last || !is_port(last + 1, len - (size_t) (last + 1 - s)))
                return false;
        before = memrchr(s, ':', (size_t) (last - s));
        return before ? before > s && is_port(before + 1, (size_t) (last - before - 1)) : is_port(s, (size_t) (last - s));
}

static int put_net(struct ctl *c, const struct args *a, struct req *q) {
        const char *net = arg_str(a, "net"), *p;
        size_t n = 0;

        for (; (p = arg_nth(a, "publish", n)); n++)
                if (!publish_valid(p)) {
                        (void) usage_error(c, a->cmd, "--publish cannot be '%.80s'", p);
                        (void) err_hint(&c->e, "[HOSTIP:]PORT:GUESTPORT[/udp], for example 8080:80");
                        return -EINVAL;
                }
        if (n && net && strcmp(net, "none") == 0)
                return usage_error(c, a->cmd, "--publish needs a network, and --net none asks for none");
        req_str(q, "net", net ? net : n ? "nat" : NULL);
        if (n == 0)
                return 0;
        req_key(q, "publish");
        mp_array(&q->body, n);
        for (size_t i = 0; i < n; i++)
                mp_str(&q->body, arg_nth(a, "publish", i));
        return 0;
}

static int put_machine(struct ctl *c, const struct args *a, struct req *q) {
        uint64_t mem = 0, vcpus = 0;
        int r = arg_size(c, a, "mem", &mem);

        if (r == 0)
                r = arg_uint(c, a, "vcpus", 1, UINT32_MAX, &vcpus);
        if (r < 0)
                return r;
        req_str(q, "name", a->pos[0]);
        if (arg_given(a, "mem"))
                req_u64(q, "mem_bytes", mem);
        if (vcpus)
                req_u64(q, "vcpus", vcpus);
        req_str(q, "vmm", arg_str(a, "vmm"));
        req_str(q, "accel", arg_str(a, "accel"));
        req_str(q, "on_pager_loss", arg_str(a, "on-pager-loss"));
        return 0;
}

static int setup_first(struct ctl *c) {
        cleanup_free struct setup_result *s = calloc(1, sizeof(*s));
        int r = ctl_connect(c); /* without a forkd there is nothing to run on: say so before the work */

        if (r < 0)
                return r;
        return s ? setup_for_forkd(c, NULL, 0, false, s) : err_errno(&c->e, -ENOMEM, "setup");
}

int cmd_run(struct ctl *c, const struct args *a) {
        cleanup_progress struct progress p = { 0 };
        cleanup_json json_t *vm = NULL;
        cleanup_req struct req q;
        char ms[32], accel[64], id[64], state[64];
        int r;

        req_init(&q);
        r = put_machine(c, a, &q);
        if (r == 0)
                r = put_disks(c, a, &q);
        if (r == 0)
                r = put_net(c, a, &q);
        if (r == 0 && arg_given(a, "setup"))
                r = setup_first(c);
        if (r < 0)
                return r;
        progress_start(&p, c, "booting %s", a->pos[0]);
        r = ctl_call(c, "vm.run", &q, &vm);
        progress_end(&p);
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, vm);
        printf("%s is %s: id %s, pid %llu, %s, booted in %s\n", a->pos[0],
               text_safe(json_str(vm, "state", "?"), state, sizeof(state)), text_safe(json_str(vm, "id", "?"), id, sizeof(id)),
               (unsigned long long) json_u64(vm, "pid", 0), text_safe(json_str(vm, "accel", "?"), accel, sizeof(accel)),
               text_ms(json_num(vm, "boot_ms", -1), ms, sizeof(ms)));
        return 0;
}

/* ---- looking ---- */

static void vm_row(struct table *t, const json_t *vm) {
        const char *accel = json_str(vm, "accel", "");
        uint64_t pid = json_u64(vm, "pid", 0);
        char size[32];

        table_cell(t, "%s", json_str(vm, "name", "?"));
        table_cell(t, "%s", json_str(vm, "state", "?"));
        table_cell(t, "%s%s%s", json_str(vm, "vmm", "?"), *accel ? "/" : "", accel);
        table_cell(t, "%s", text_size(vm, "mem_bytes", size, sizeof(size)));
        if (pid)
                table_cell(t, "%llu", (unsigned long long) pid);
        else
                table_cell(t, "-");
        table_cell(t, "%s", *json_str(vm, "snapshot", "") ? json_str(vm, "snapshot", "") : "-");
        table_cell(t, "%llu", (unsigned long long) json_u64(vm, "generation", 0));
        table_cell(t, "%s", json_str(vm, "guest_ip", ""));
        table_cell(t, "%s", json_str(vm, "id", ""));
        table_cell(t, "%s", json_str(vm, "reason", ""));
}

static int print_names(const json_t *list, const char *key) {
        char name[256];
        json_t *v;
        size_t i;

        json_array_foreach ((json_t *) list, i, v)
                printf("%s\n", text_safe(json_str(v, key, "?"), name, sizeof(name)));
        return 0;
}

int cmd_ps(struct ctl *c, const struct args *a) {
        static const char *const head[] = { "NAME", "STATE",   "VMM", ">MEMORY", ">PID", "SNAPSHOT",
                                            ">GEN", "ADDRESS", "ID",  "REASON",  "POOL" };
        cleanup_json json_t *result = NULL;
        cleanup_table struct table t = { 0 };
        cleanup_req struct req q;
        bool all = arg_given(a, "all");
        json_t *vm, *vms;
        size_t i;
        int r;

        req_init(&q);
        if (all)
                req_bool(&q, "all", true);
        r = ctl_call(c, "vm.list", &q, &result);
        if (r < 0)
                return r;
        vms = json_list(result, "vms");
        if (c->json)
                return ctl_print_list(c, vms);
        if (arg_given(a, "quiet"))
                return print_names(vms, "name");
        table_init(&t, head, ARRAY_LEN(head) - !all);
        json_array_foreach (vms, i, vm) {
                vm_row(&t, vm);
                if (all)
                        table_cell(&t, "%s", json_str(vm, "pool", ""));
        }
        r = table_print(&t, stdout);
        return r < 0 ? err_errno(&c->e, r, "writing the output") : 0;
}

/* The contract has one row for `ps` and `inspect`: both print a list, inspect's has one element. */
int cmd_inspect(struct ctl *c, const struct args *a) {
        cleanup_json json_t *vm = NULL, *list = NULL;
        int r = ctl_call_name(c, "vm.inspect", "name", a->pos[0], &vm);

        if (r < 0)
                return r;
        if (!c->json) {
                r = print_fields(vm, stdout);
                return r < 0 ? err_errno(&c->e, r, "writing the output") : 0;
        }
        list = json_pack("[O]", vm);
        return list ? ctl_print(c, list) : err_errno(&c->e, -ENOMEM, "writing the output");
}

/* ---- standby, restore and fork ---- */

int cmd_standby(struct ctl *c, const struct args *a) {
        cleanup_req struct req q;
        int r;

        req_init(&q);
        r = standby_params(c, a, &q);
        return r < 0 ? r : standby_report(c, a, "stands by in", "vm.standby", &q);
}

int cmd_restore(struct ctl *c, const struct args *a) {
        cleanup_progress struct progress p = { 0 };
        cleanup_json json_t *vm = NULL;
        cleanup_req struct req q;
        char total[32], load[32], ack[32];
        int r;

        req_init(&q);
        req_str(&q, "name", a->pos[0]);
        if (arg_given(a, "force"))
                req_bool(&q, "force", true);
        progress_start(&p, c, "restoring %s", a->pos[0]);
        r = ctl_call(c, "vm.restore", &q, &vm);
        progress_end(&p);
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, vm);
        printf("%s runs again after %s (state loaded in %s, the guest answered in %s)\n", a->pos[0],
               text_ms(json_num(vm, "total_ms", -1), total, sizeof(total)),
               text_ms(json_num(vm, "load_ms", -1), load, sizeof(load)), text_ms(json_num(vm, "ack_ms", -1), ack, sizeof(ack)));
        return 0;
}

static int fork_text(struct ctl *c, const json_t *result) {
        static const char *const head[] = { "NAME", "ID", ">PID", ">TOTAL", ">LOAD", ">ANSWER" };
        cleanup_table struct table t = { 0 };
        json_t *vm, *clones = json_list(result, "clones");
        char ms[32];
        size_t i;
        int r;

        table_init(&t, head, ARRAY_LEN(head));
        json_array_foreach (clones, i, vm) {
                table_cell(&t, "%s", json_str(vm, "name", "?"));
                table_cell(&t, "%s", json_str(vm, "id", "?"));
                table_cell(&t, "%llu", (unsigned long long) json_u64(vm, "pid", 0));
                table_cell(&t, "%s", text_ms(json_num(vm, "total_ms", -1), ms, sizeof(ms)));
                table_cell(&t, "%s", text_ms(json_num(vm, "load_ms", -1), ms, sizeof(ms)));
                table_cell(&t, "%s", text_ms(json_num(vm, "ack_ms", -1), ms, sizeof(ms)));
        }
        r = table_print(&t, stdout);
        if (r < 0)
                return err_errno(&c->e, r, "writing the output");
        printf("%zu clone%s in %s", json_array_size(clones), json_array_size(clones) == 1 ? "" : "s",
               text_ms(json_num(result, "wall_ms", -1), ms, sizeof(ms)));
        if (json_object_get(result, "source_pause_ms"))
                printf("; the source paused %s", text_ms(json_num(result, "source_pause_ms", -1), ms, sizeof(ms)));
        (void) putchar('\n');
        return 0;
}

int cmd_fork(struct ctl *c, const struct args *a) {
        cleanup_progress struct progress p = { 0 };
        cleanup_json json_t *result = NULL;
        const char *name = a->n_pos > 1 ? a->pos[1] : NULL;
        cleanup_req struct req q;
        uint64_t count = 1;
        int r;

        req_init(&q);
        r = arg_uint(c, a, "count", 1, MAX_CLONES, &count);
        if (r < 0)
                return r;
        req_str(&q, "source", a->pos[0]);
        req_str(&q, "name", name);
        if (arg_given(a, "count"))
                req_u64(&q, "count", count);
        if (arg_given(a, "paused"))
                req_bool(&q, "paused", true);
        if (arg_given(a, "force"))
                req_bool(&q, "force", true);
        req_str(&q, "on_pager_loss", arg_str(a, "on-pager-loss"));
        progress_start(&p, c, "forking %s", a->pos[0]);
        if (count > 1 && name)
                progress_vms(&p, name, (unsigned) count);
        r = ctl_call(c, "vm.fork", &q, &result);
        progress_end(&p);
        if (r < 0)
                return r;
        return c->json ? ctl_print(c, result) : fork_text(c, result);
}

/* ---- pause, resume, stop, rm ---- */

static int change_state(struct ctl *c, const struct args *a, const char *method) {
        cleanup_json json_t *vm = NULL;
        char state[64];
        int r = ctl_call_name(c, method, "name", a->pos[0], &vm);

        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, vm);
        printf("%s is %s\n", a->pos[0], text_safe(json_str(vm, "state", "?"), state, sizeof(state)));
        return 0;
}

int cmd_pause(struct ctl *c, const struct args *a) {
        return change_state(c, a, "vm.pause");
}

int cmd_resume(struct ctl *c, const struct args *a) {
        return change_state(c, a, "vm.resume");
}

int cmd_stop(struct ctl *c, const struct args *a) {
        return change_state(c, a, "vm.stop");
}

int cmd_rm(struct ctl *c, const struct args *a) {
        cleanup_json json_t *result = NULL;
        bool all = arg_given(a, "all");
        cleanup_req struct req q;
        char name[128];
        json_t *v;
        size_t i;
        int r;

        req_init(&q);
        if (all == (a->n_pos > 0))
                return usage_error(c, a->cmd, all ? "names and --all exclude each other" : "which VMs? name them, or pass --all");
        if (all)
                req_bool(&q, "all", true);
        else
                req_strs(&q, "names", a->pos, (size_t) a->n_pos);
        r = ctl_call(c, "vm.rm", &q, &result);
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, result);
        json_array_foreach (json_list(result, "removed"), i, v)
                if (json_is_string(v))
                        printf("removed %s\n", text_safe(json_string_value(v), name, sizeof(name)));
        return 0;
}
