/* SPDX-License-Identifier: MIT */
/* What is done with snapshots; the tree has its own file. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "common/json.h"
#include "forkctl/progress.h"
#include "forkctl/table.h"

/* ---- standby and snapshot create ---- */

/* "zstd:9" becomes compression "zstd" and level 9. */
static int put_compression(struct ctl *c, const struct args *a, struct req *q) {
        const char *s = arg_str(a, "compression"), *colon = s ? strchr(s, ':') : NULL;
        char codec[8] = "";
        char *end;
        long level;

        if (!s)
                return 0;
        (void) snprintf(codec, sizeof(codec), "%.*s", colon ? (int) MIN_OF(colon - s, 7) : 7, s);
        if ((strcmp(codec, "lz4") != 0 && strcmp(codec, "none") != 0 && strcmp(codec, "zstd") != 0) ||
            (!colon && strlen(s) != strlen(codec)) || (colon && strcmp(codec, "zstd") != 0))
                goto bad;
        req_str(q, "compression", codec);
        if (!colon)
                return 0;
        errno = 0;
        level = strtol(colon + 1, &end, 10);
        if (!colon[1] || *end || errno || level < INT_MIN || level > INT_MAX)
                goto bad;
        req_key(q, "level");
        mp_i64(&q->body, level);
        return 0;
bad:
        (void) usage_error(c, a->cmd, "--compression cannot be '%.80s'", s);
        (void) err_hint(&c->e, "one of: lz4, zstd, zstd:LEVEL, none");
        return -EINVAL;
}

int standby_params(struct ctl *c, const struct args *a, struct req *q) {
        req_str(q, "name", a->pos[0]);
        req_str(q, "tag", arg_str(a, "tag"));
        if (arg_given(a, "no-sync"))
                req_bool(q, "sync", false);
        return put_compression(c, a, q);
}

int standby_report(struct ctl *c, const struct args *a, const char *what, const char *method, const struct req *q) {
        cleanup_progress struct progress p = { 0 };
        cleanup_json json_t *s = NULL;
        char pause[32], total[32], dirty[32], stored[32], id[64];
        int r;

        progress_start(&p, c, "saving %s", a->pos[0]);
        r = ctl_call(c, method, q, &s);
        progress_end(&p);
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, s);
        printf("%s %s snapshot %s: %s changed, %s stored%s; paused %s, %s in all\n", a->pos[0], what,
               text_safe(json_str(s, "snapshot", "?"), id, sizeof(id)), text_size(s, "dirty_bytes", dirty, sizeof(dirty)),
               text_size(s, "stored_bytes", stored, sizeof(stored)), json_flag(s, "durable") ? "" : ", not on disk yet",
               text_ms(json_num(s, "pause_ms", -1), pause, sizeof(pause)),
               text_ms(json_num(s, "total_ms", -1), total, sizeof(total)));
        return 0;
}

/* ---- the snapshots themselves ---- */

static void snapshot_row(struct table *t, const json_t *s) {
        char text[64];

        table_cell(t, "%s", json_str(s, "id", "?"));
        table_cell(t, "%s", json_str(s, "tag", ""));
        table_cell(t, "%s", json_str(s, "source", ""));
        table_cell(t, "%s", *json_str(s, "parent", "") ? json_str(s, "parent", "") : "-");
        table_cell(t, "%llu", (unsigned long long) json_u64(s, "depth", 0));
        table_cell(t, "%s", text_size(s, "ram_bytes", text, sizeof(text)));
        table_cell(t, "%s", text_size(s, "stored_bytes", text, sizeof(text)));
        table_cell(t, "%s", json_flag(s, "durable") ? "yes" : "no");
        table_cell(t, "%s", text_time(json_object_get(s, "created"), text, sizeof(text)));
}

int cmd_snapshot_ls(struct ctl *c, const struct args *a) {
        static const char *const head[] = { "SNAPSHOT", "TAG",     "SOURCE",  "PARENT", ">DEPTH",
                                            ">MEMORY",  ">STORED", "DURABLE", "CREATED" };
        cleanup_json json_t *result = NULL;
        cleanup_table struct table t = { 0 };
        json_t *s, *list;
        char id[256];
        size_t i;
        int r = ctl_call(c, "snapshot.list", NULL, &result);

        if (r < 0)
                return r;
        list = json_list(result, "snapshots");
        if (c->json)
                return ctl_print_list(c, list);
        table_init(&t, head, ARRAY_LEN(head));
        json_array_foreach (list, i, s) {
                if (arg_given(a, "quiet"))
                        printf("%s\n", text_safe(json_str(s, "id", "?"), id, sizeof(id)));
                else
                        snapshot_row(&t, s);
        }
        r = arg_given(a, "quiet") ? 0 : table_print(&t, stdout);
        return r < 0 ? err_errno(&c->e, r, "writing the output") : 0;
}

int cmd_snapshot_show(struct ctl *c, const struct args *a) {
        cleanup_json json_t *s = NULL;
        int r = ctl_call_name(c, "snapshot.show", "snapshot", a->pos[0], &s);

        if (r < 0)
                return r;
        r = c->json ? json_print(stdout, s) : print_fields(s, stdout);
        return r < 0 ? err_errno(&c->e, r, "writing the output") : 0;
}

int cmd_snapshot_create(struct ctl *c, const struct args *a) {
        cleanup_req struct req q;
        int r;

        req_init(&q);
        r = standby_params(c, a, &q);
        return r < 0 ? r : standby_report(c, a, "runs on, saved in", "snapshot.create", &q);
}

int cmd_snapshot_rm(struct ctl *c, const struct args *a) {
        cleanup_json json_t *result = NULL;
        cleanup_req struct req q;
        char id[128];
        json_t *v;
        size_t i;
        int r;

        req_init(&q);
        req_strs(&q, "snapshots", a->pos, (size_t) a->n_pos);
        if (arg_given(a, "force"))
                req_bool(&q, "force", true);
        r = ctl_call(c, "snapshot.rm", &q, &result);
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, result);
        json_array_foreach (json_list(result, "removed"), i, v)
                if (json_is_string(v))
                        printf("removed %s\n", text_safe(json_string_value(v), id, sizeof(id)));
        return 0;
}

/* A snapshot that fails its check is a failure: exit 1, with the findings as the result. */
int cmd_snapshot_verify(struct ctl *c, const struct args *a) {
        cleanup_progress struct progress p = { 0 };
        cleanup_json json_t *result = NULL;
        char text[512];
        json_t *v;
        size_t i;
        int r;

        progress_start(&p, c, "verifying %s", a->pos[0]);
        r = ctl_call_name(c, "snapshot.verify", "snapshot", a->pos[0], &result);
        progress_end(&p);
        if (r < 0)
                return r;
        if (c->json) {
                r = ctl_print(c, result);
                return r < 0 ? r : json_flag(result, "ok") ? CTL_EXIT_OK : CTL_EXIT_FAILED;
        }
        json_array_foreach (json_list(result, "errors"), i, v)
                if (json_is_string(v))
                        printf("%s\n", text_safe(json_string_value(v), text, sizeof(text)));
        json_array_foreach (json_list(result, "notes"), i, v)
                if (json_is_string(v))
                        printf("note: %s\n", text_safe(json_string_value(v), text, sizeof(text)));
        printf("%s %s, %llu frames\n", a->pos[0], json_flag(result, "ok") ? "is sound" : "is DAMAGED",
               (unsigned long long) json_u64(result, "frames", 0));
        return json_flag(result, "ok") ? CTL_EXIT_OK : CTL_EXIT_FAILED;
}

/* We open the file, so that forkd, which may be another user, needs no right to write there. */
int cmd_snapshot_memory(struct ctl *c, const struct args *a) {
        cleanup_progress struct progress p = { 0 };
        const char *path = arg_str(a, "output");
        cleanup_json json_t *result = NULL;
        cleanup_fd int fd = -1;
        cleanup_req struct req q;
        char size[32];
        int r;

        req_init(&q);
        if (!path || !*path || strcmp(path, "-") == 0) /* a sparse file, so it cannot be a pipe */
                return usage_error(c, a->cmd, "'%s' needs -o FILE", a->cmd->name);
        r = ctl_connect(c);
        if (r < 0)
                return r;
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600); /* it will hold a guest's secrets */
        if (fd < 0) {
                (void) err_errno(&c->e, -errno, "creating %.200s", path);
                if (c->e.r == -EEXIST)
                        (void) err_hint(&c->e, "name a file that does not exist yet");
                return c->e.r;
        }
        req_str(&q, "snapshot", a->pos[0]);
        progress_start(&p, c, "writing %s", path);
        r = ctl_partial(c, path);
        if (r == 0)
                r = ctl_call_fd(c, "snapshot.memory", &q, fd, &result);
        progress_end(&p);
        if (r < 0) {
                (void) unlink(path); /* made by us a moment ago, and of no use */
                return r;
        }
        if (c->json)
                return ctl_print(c, result);
        printf("%s written to %s\n", text_size(result, "bytes", size, sizeof(size)), path);
        return 0;
}
