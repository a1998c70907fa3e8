/* SPDX-License-Identifier: MIT */
/* What concerns the host and forkd itself: setup, doctor, versions, health, the end. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/ids.h"
#include "common/io.h"
#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "common/json.h"
#include "forkctl/progress.h"
#include "forkctl/table.h"
#include "setup/doctor.h"
#include "setup/setup.h"

#define SHUTDOWN_MAX_S 600 /* a guest may take seconds to end, and there may be many */

#ifndef FORKD_VERSION
#error "the build tells the version"
#endif

/* ---- setup ---- */

/* Where the forkd at the socket keeps its things. Not reaching it is no error here: setup comes before the
 * first start. */
struct dirs {
        bool reachable;
        char state[STORE_MAX_PATH];
        char cache[STORE_MAX_PATH];
};

static int find_dirs(struct ctl *c, const char *state_dir, struct dirs *ret) {
        const char *env = getenv("FORKD_STATE_DIR");
        cleanup_json json_t *info = NULL;
        struct dirs d = { 0 };
        int r;

        (void) snprintf(d.state, sizeof(d.state), "%s", env && *env ? env : SETUP_STATE_DEFAULT);
        (void) snprintf(d.cache, sizeof(d.cache), "%s", assets_cache_dir());
        r = ctl_call(c, "info", NULL, &info);
        if (r == 0) {
                d.reachable = true;
                (void) snprintf(d.state, sizeof(d.state), "%s", json_str(info, "state_dir", d.state));
                (void) snprintf(d.cache, sizeof(d.cache), "%s", json_str(info, "cache_dir", d.cache));
        } else if (strcmp(c->e.code, ERR_UNREACHABLE) != 0) {
                return r;
        }
        c->e = (struct err){ 0 };
        if (state_dir) {
                /* Named by the user: another forkd's, unless it is the same. */
                d.reachable = d.reachable && strcmp(d.state, state_dir) == 0;
                if ((size_t) snprintf(d.state, sizeof(d.state), "%s", state_dir) >= sizeof(d.state))
                        return err_errno(&c->e, -ENAMETOOLONG, "state directory %.80s", state_dir);
        }
        *ret = d;
        return 0;
}

static void on_progress(const char *step, const char *text, int percent, void *arg) {
        progress_set(arg, percent, text);
}

int setup_for_forkd(struct ctl *c, const char *state_dir, uint64_t store_bytes, bool check, struct setup_result *ret) {
        cleanup_progress struct progress p = { 0 };
        struct setup_params params = { .store_bytes = store_bytes, .check_only = check };
        struct dirs d;
        int r = find_dirs(c, state_dir, &d);

        if (r < 0)
                return r;
        params.state_dir = d.state;
        params.cache_dir = d.cache;
        progress_start(&p, c, "setup");
        r = setup_run(&params, on_progress, &p, ret, &c->e);
        if (r < 0)
                return r;
        progress_end(&p);
        /* A forkd that started before there was a store mounts it now. */
        if (d.reachable && !check)
                return ctl_call(c, "store.attach", NULL, NULL);
        return 0;
}

static int setup_json(struct ctl *c, const struct setup_result *s, bool check) {
        bool has = s->assets.id[0] != '\0';
        cleanup_json json_t *missing = json_array(), *doc = NULL;

        for (size_t i = 0; i < s->n_missing; i++)
                (void) json_array_append_new(missing, json_text(s->missing[i], strlen(s->missing[i])));
        doc = json_pack("{s:o, s:{s:s, s:b, s:b, s:I, s:s}, s:b, s:b}", "assets",
                        has ? json_pack("{s:s, s:s, s:s}", "id", s->assets.id, "kernel", s->assets.kernel, "initrd",
                                        s->assets.initrd)
                            : json_null(),
                        "store", "path", s->store.path, "reflink", s->store.reflink, "created", s->store_created, "size_bytes",
                        (json_int_t) s->store.size_bytes, "kind", store_kind_name(s->store.kind), "kvm", s->kvm, "changed",
                        s->assets_changed || s->store_created);
        if (!doc)
                return err_errno(&c->e, -ENOMEM, "telling the result");
        if (check && json_object_set(doc, "missing", missing) < 0)
                return err_errno(&c->e, -ENOMEM, "telling the result");
        return ctl_print(c, doc);
}

static void setup_text(const struct setup_result *s) {
        char size[32], safe[256];

        for (size_t i = 0; i < s->n_missing; i++)
                printf("missing: %s\n", text_safe(s->missing[i], safe, sizeof(safe)));
        if (s->assets.id[0])
                printf("guest assets  %s (Linux %s)%s\n", s->assets.dir, s->assets.release, s->assets_changed ? ", new" : "");
        if (s->store.kind == STORE_LOOP)
                printf("store         %s (%s image of XFS)%s\n", s->store.path,
                       size_format(s->store.size_bytes, size, sizeof(size)), s->store_created ? ", new" : "");
        else if (s->store.kind != STORE_NONE)
                printf("store         %s (%s)%s\n", s->store.path, s->store.reflink ? "reflinks" : "no reflink: copies",
                       s->store_created ? ", new" : "");
        if (s->kvm)
                printf("accelerator   kvm\n");
        else
                printf("accelerator   tcg%s%s\n", s->kvm_reason[0] ? ": " : "", text_safe(s->kvm_reason, safe, sizeof(safe)));
        if (!s->assets_changed && !s->store_created && s->n_missing == 0)
                printf("all there, nothing to do%s\n", s->waited ? ": another setup did it meanwhile" : "");
}

int cmd_setup(struct ctl *c, const struct args *a) {
        cleanup_free struct setup_result *s = calloc(1, sizeof(*s));
        bool check = arg_given(a, "check");
        uint64_t store_bytes = 0;
        int r;

        if (!s)
                return err_errno(&c->e, -ENOMEM, "setup");
        r = arg_size(c, a, "store-size", &store_bytes);
        if (r < 0)
                return r;
        if (arg_given(a, "store-size") && (store_bytes < STORE_MIN_BYTES || store_bytes > STORE_MAX_BYTES)) {
                (void) usage_error(c, a->cmd, "--store-size cannot be '%.80s'", arg_str(a, "store-size"));
                (void) err_hint(&c->e, "between 512M and 64T");
                return -EINVAL;
        }
        r = setup_for_forkd(c, arg_str(a, "state-dir"), store_bytes, check, s);
        if (r < 0)
                return r;
        if (c->json)
                r = setup_json(c, s, check);
        else
                setup_text(s);
        return r < 0 ? r : s->n_missing ? CTL_EXIT_FAILED : CTL_EXIT_OK;
}

/* ---- doctor ---- */

static int doctor_json(struct ctl *c, const struct doctor_report *d) {
        cleanup_json json_t *list = json_array(), *doc = NULL;

        for (size_t i = 0; list && i < d->n; i++) {
                const struct doctor_check *k = &d->checks[i];
                json_t *row =
                        json_pack("{s:s, s:s, s:o, s:o}", "name", k->name, "status", doctor_status_name(k->status), "detail",
                                  json_text(k->detail, strlen(k->detail)), "hint", json_text(k->hint, strlen(k->hint)));

                if (!row || json_array_append_new(list, row) < 0)
                        return err_errno(&c->e, -ENOMEM, "telling the result");
        }
        doc = json_pack("{s:b, s:O}", "ok", d->ok, "checks", list);
        return doc ? ctl_print(c, doc) : err_errno(&c->e, -ENOMEM, "telling the result");
}

static int doctor_text(const struct doctor_report *d) {
        static const char *const head[] = { "CHECK", "STATUS", "DETAIL" };
        cleanup_table struct table t = { 0 };
        char safe[256];
        int r;

        table_init(&t, head, ARRAY_LEN(head));
        for (size_t i = 0; i < d->n; i++) {
                table_cell(&t, "%s", d->checks[i].name);
                table_cell(&t, "%s", doctor_status_name(d->checks[i].status));
                table_cell(&t, "%s", d->checks[i].detail);
        }
        r = table_print(&t, stdout);
        for (size_t i = 0; i < d->n; i++)
                if (d->checks[i].status != DOCTOR_OK && d->checks[i].hint[0])
                        printf("%s: %s\n", d->checks[i].name, text_safe(d->checks[i].hint, safe, sizeof(safe)));
        puts(d->ok ? "this host can run forkd" : "this host cannot run forkd yet: see what failed");
        return r;
}

static const char *size_or(const json_t *map, const char *key, const char *none, char *buf, size_t size) {
        uint64_t v = json_u64(map, key, UINT64_MAX);

        return v == UINT64_MAX ? none : size_format(v, buf, size);
}

/* What forkd has to give, and who has it already: docs/operations.md, "Admission". Without a forkd there is nothing to tell. */
static void add_room(struct ctl *c, struct doctor_report *d) {
        struct doctor_check *k = &d->checks[d->n];
        cleanup_json json_t *info = NULL;
        const json_t *a, *memory, *vcpus, *starts;
        char there[32], promised[32], disk[32];
        uint64_t taken;

        if (d->n >= DOCTOR_MAX_CHECKS || ctl_call(c, "info", NULL, &info) < 0 || !(a = json_object_get(info, "admission"))) {
                c->e = (struct err){ 0 };
                return;
        }
        memory = json_object_get(a, "memory");
        vcpus = json_object_get(a, "vcpus");
        starts = json_object_get(a, "starts");
        taken = json_u64(vcpus, "held", 0) + json_u64(vcpus, "reserved", 0);
        (void) snprintf(k->name, sizeof(k->name), "room");
        (void) snprintf(k->detail, sizeof(k->detail),
                        "memory: %s available, %s promised to VMs; vCPUs: %llu of %llu; store: %s free; starts: %llu under way, "
                        "%llu waiting",
                        size_or(memory, "available", "?", there, sizeof(there)),
                        size_or(memory, "promised", "?", promised, sizeof(promised)), (unsigned long long) taken,
                        (unsigned long long) json_u64(vcpus, "limit", 0),
                        size_or(json_object_get(a, "disk"), "available", "?", disk, sizeof(disk)),
                        (unsigned long long) json_u64(starts, "running", 0), (unsigned long long) json_u64(starts, "waiting", 0));
        k->status = DOCTOR_OK;
        d->n++;
}

int cmd_doctor(struct ctl *c, const struct args *a) {
        cleanup_free struct doctor_report *d = calloc(1, sizeof(*d));
        cleanup_progress struct progress p = { 0 };
        struct dirs dirs;
        int r;

        if (arg_given(a, "orphans"))
                return cmd_orphans(c, a);
        if (arg_given(a, "fix"))
                return usage_error(c, a->cmd, "--fix belongs to --orphans");
        if (!d)
                return err_errno(&c->e, -ENOMEM, "doctor");
        r = find_dirs(c, arg_str(a, "state-dir"), &dirs);
        if (r < 0)
                return r;
        progress_start(&p, c, "trying what this host can do");
        progress_set(&p, -1, "trying what this host can do");
        doctor_run(&(struct doctor_params){ .cache_dir = dirs.cache, .state_dir = dirs.state, .socket = c->socket }, d);
        if (dirs.reachable)
                add_room(c, d);
        progress_end(&p);
        r = c->json ? doctor_json(c, d) : doctor_text(d);
        if (r < 0)
                return err_errno(&c->e, r, "telling the result");
        return d->ok ? CTL_EXIT_OK : CTL_EXIT_FAILED;
}

/* ---- forkd itself ---- */

int cmd_version(struct ctl *c, const struct args *a) {
        cleanup_json json_t *forkd = NULL, *doc = NULL;
        char safe[128];
        int r = ctl_call(c, "version", NULL, &forkd);

        /* A forkd that is not there is part of the answer, not an error. */
        if (r < 0 && strcmp(c->e.code, ERR_UNREACHABLE) != 0)
                return r;
        if (c->json) {
                doc = json_pack("{s:s, s:i, s:O?}", "version", FORKD_VERSION, "protocol", CTL_PROTOCOL, "forkd", forkd);
                return doc ? ctl_print(c, doc) : err_errno(&c->e, -ENOMEM, "telling the version");
        }
        printf("forkctl %s\n", FORKD_VERSION);
        if (r == 0)
                printf("forkd %s\n", text_safe(json_str(forkd, "version", "?"), safe, sizeof(safe)));
        else
                printf("forkd is not running at %s\n", c->socket);
        return 0;
}

int cmd_ping(struct ctl *c, const struct args *a) {
        cleanup_json json_t *result = NULL;
        uint64_t start;
        char ms[32];
        int r;

        if (a->n_pos == 1) {
                r = ctl_call_name(c, "vm.ping", "name", a->pos[0], &result);
        } else {
                r = ctl_connect(c);
                start = now_ns();
                if (r == 0)
                        r = ctl_call(c, "version", NULL, NULL);
                if (r == 0)
                        result = json_pack("{s:f}", "rtt_ms", ms_since(start));
        }
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, result);
        printf("%s answers in %s\n", a->n_pos == 1 ? a->pos[0] : "forkd",
               text_ms(json_num(result, "rtt_ms", -1), ms, sizeof(ms)));
        return 0;
}

int cmd_shutdown(struct ctl *c, const struct args *a) {
        cleanup_progress struct progress p = { 0 };
        cleanup_json json_t *result = NULL;
        cleanup_req struct req q;
        char name[128];
        json_t *v;
        size_t i;
        int r;

        req_init(&q);
        if (arg_given(a, "all"))
                req_bool(&q, "all", true);
        progress_start(&p, c, "stopping");
        r = ctl_call(c, "shutdown", &q, &result);
        /* When the answer comes the VMs are where they shall be, but forkd itself is not gone yet. Whoever starts it again,
         * or removes its directories, needs that. */
        if (r == 0)
                r = ctl_wait_close(c, SHUTDOWN_MAX_S);
        progress_end(&p);
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, result);
        json_array_foreach (json_list(result, "stopped"), i, v)
                if (json_is_string(v))
                        printf("stopped %s\n", text_safe(json_string_value(v), name, sizeof(name)));
        puts("forkd has ended");
        return 0;
}

int cmd_pager_status(struct ctl *c, const struct args *a) {
        cleanup_json json_t *result = NULL;
        int r = ctl_call(c, "pager.status", NULL, &result);

        if (r < 0)
                return r;
        r = c->json ? json_print(stdout, result) : print_fields(result, stdout);
        return r < 0 ? err_errno(&c->e, r, "writing the output") : 0;
}

int cmd_pager_upgrade(struct ctl *c, const struct args *a) {
        cleanup_progress struct progress p = { 0 };
        cleanup_json json_t *result = NULL;
        char old_version[40], new_version[40], ms[32];
        int r;

        progress_start(&p, c, "handing sessions over");
        r = ctl_call(c, "pager.upgrade", NULL, &result);
        progress_end(&p);
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, result);
        printf("pager %.0f (%s) has taken %.0f sessions over from pager %.0f (%s) in %s\n", json_num(result, "new_pid", 0),
               text_safe(json_str(result, "new_version", "?"), new_version, sizeof(new_version)), json_num(result, "sessions", 0),
               json_num(result, "old_pid", 0), text_safe(json_str(result, "old_version", "?"), old_version, sizeof(old_version)),
               text_ms(json_num(result, "total_ms", -1), ms, sizeof(ms)));
        if (json_num(result, "sessions", 0) > 0)
                printf("the longest pause of a guest's faults was %s\n",
                       text_ms(json_num(result, "pause_max_ms", -1), ms, sizeof(ms)));
        return 0;
}

int cmd_pager_stop(struct ctl *c, const struct args *a) {
        cleanup_json json_t *result = NULL;
        int r = ctl_call(c, "pager.stop", NULL, &result);

        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, result);
        puts("the pager has ended");
        return 0;
}
