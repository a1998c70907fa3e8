/* SPDX-License-Identifier: MIT */
/* Pools of warm clones. */
#include <errno.h>
#include <stdint.h>

#include "common/json.h"
#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "forkctl/progress.h"
#include "forkctl/table.h"

/* What is said of a number is forkd's to judge; here it only has to be one. */
static int put_number(struct ctl *c, const struct args *a, const char *option, const char *key, struct req *q) {
        uint64_t v = 0;
        int r = arg_uint(c, a, option, 0, UINT32_MAX, &v);

        if (r == 0 && arg_given(a, option))
                req_u64(q, key, v);
        return r;
}

static int put_params(struct ctl *c, const struct args *a, struct req *q) {
        int r;

        req_str(q, "name", a->pos[0]);
        req_str(q, "from", arg_str(a, "from"));
        r = put_number(c, a, "size", "size", q);
        if (r == 0)
                r = put_number(c, a, "min", "min", q);
        if (r == 0)
                r = put_number(c, a, "max", "max", q);
        if (r == 0)
                r = put_number(c, a, "idle-timeout", "idle_timeout_s", q);
        return r;
}

static void print_pool(const char *what, const json_t *p) {
        char name[128], from[128], problem[400];

        printf("%s %s: %llu of %llu clones of %s are warm", what, text_safe(json_str(p, "name", "?"), name, sizeof(name)),
               (unsigned long long) json_u64(p, "warm", 0), (unsigned long long) json_u64(p, "wanted", 0),
               text_safe(*json_str(p, "tag", "") ? json_str(p, "tag", "") : json_str(p, "from", "?"), from, sizeof(from)));
        if (json_u64(p, "old", 0) > 0)
                printf(", and %llu of these of the snapshot before", (unsigned long long) json_u64(p, "old", 0));
        if (*json_str(p, "problem", ""))
                printf("; %s", text_safe(json_str(p, "problem", ""), problem, sizeof(problem)));
        (void) putchar('\n');
}

static int change(struct ctl *c, const char *method, const struct req *q, const char *doing, const char *what) {
        cleanup_progress struct progress p = { 0 };
        cleanup_json json_t *pool = NULL;
        int r;

        progress_start(&p, c, "%s", doing);
        r = ctl_call(c, method, q, &pool);
        progress_end(&p);
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, pool);
        print_pool(what, pool);
        return 0;
}

int cmd_pool_create(struct ctl *c, const struct args *a) {
        cleanup_req struct req q;
        int r;

        req_init(&q);
        if (!arg_given(a, "from") || !arg_given(a, "size"))
                return usage_error(c, a->cmd, "'%s' needs --from SNAPSHOT and --size N", a->cmd->name);
        r = put_params(c, a, &q);
        if (r < 0)
                return r;
        req_str(&q, "on_pager_loss", arg_str(a, "on-pager-loss"));
        if (!arg_given(a, "no-wait"))
                req_bool(&q, "wait", true);
        return change(c, "pool.create", &q, "warming clones up", "pool");
}

int cmd_pool_set(struct ctl *c, const struct args *a) {
        cleanup_req struct req q;
        int r;

        req_init(&q);
        r = put_params(c, a, &q);
        if (r < 0)
                return r;
        if (arg_given(a, "wait"))
                req_bool(&q, "wait", true);
        return change(c, "pool.set", &q, "changing the pool", "pool");
}

int cmd_pool_take(struct ctl *c, const struct args *a) {
        cleanup_progress struct progress p = { 0 };
        cleanup_json json_t *vm = NULL;
        cleanup_req struct req q;
        char name[128], ms[32];
        int r;

        req_init(&q);
        req_str(&q, "name", a->pos[0]);
        req_str(&q, "vm", a->n_pos > 1 ? a->pos[1] : NULL);
        progress_start(&p, c, "taking from %s", a->pos[0]);
        r = ctl_call(c, "pool.take", &q, &vm);
        progress_end(&p);
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, vm);
        printf("%s runs, %s in %s\n", text_safe(json_str(vm, "name", "?"), name, sizeof(name)),
               json_flag(vm, "warm") ? "taken" : "made (the pool was empty)",
               text_ms(json_num(vm, "take_ms", -1), ms, sizeof(ms)));
        return 0;
}

static void pool_row(struct table *t, const json_t *p) {
        static const char *const numbers[] = {
                "warm", "wanted", "making", "old", "min", "size", "max", "taken_warm", "taken_cold"
        };

        table_cell(t, "%s", json_str(p, "name", "?"));
        table_cell(t, "%s", *json_str(p, "tag", "") ? json_str(p, "tag", "") : json_str(p, "from", "?"));
        for (size_t i = 0; i < ARRAY_LEN(numbers); i++)
                table_cell(t, "%llu", (unsigned long long) json_u64(p, numbers[i], 0));
        table_cell(t, "%s", json_flag(p, "removing") ? "is being removed" : json_str(p, "problem", ""));
}

int cmd_pool_ls(struct ctl *c, const struct args *a) {
        static const char *const head[] = { "POOL", "FROM",  ">WARM", ">WANTED", ">MAKING", ">OLD",
                                            ">MIN", ">SIZE", ">MAX",  ">TAKEN",  ">MADE",   "PROBLEM" };
        cleanup_json json_t *result = NULL;
        cleanup_table struct table t = { 0 };
        char name[128];
        json_t *p, *list;
        size_t i;
        int r = ctl_call(c, "pool.list", NULL, &result);

        if (r < 0)
                return r;
        list = json_list(result, "pools");
        if (c->json)
                return ctl_print_list(c, list);
        table_init(&t, head, ARRAY_LEN(head));
        json_array_foreach (list, i, p) {
                if (arg_given(a, "quiet"))
                        printf("%s\n", text_safe(json_str(p, "name", "?"), name, sizeof(name)));
                else
                        pool_row(&t, p);
        }
        r = arg_given(a, "quiet") ? 0 : table_print(&t, stdout);
        return r < 0 ? err_errno(&c->e, r, "writing the output") : 0;
}

int cmd_pool_rm(struct ctl *c, const struct args *a) {
        cleanup_json json_t *result = NULL;
        int r = ctl_call_name(c, "pool.rm", "name", a->pos[0], &result);

        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, result);
        printf("removed the pool %s and %llu clones\n", a->pos[0], (unsigned long long) json_u64(result, "removed", 0));
        return 0;
}
