/* SPDX-License-Identifier: MIT */
#include "forkd/config.h"

#include <errno.h>
#include <grp.h>
#include <ini.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include "bpf/probes.h"
#include "common/ids.h"
#include "forkd/monitor/http_address.h"
#include "pager/limits.h"

#define FIRST_FREE_UID 1000u /* below are the system's, on every distribution */

void config_defaults(struct config *c) {
        *c = (struct config){
                .log_level = LOG_LVL_INFO,
                .max_vms = 1000,
                .requests_per_second = 100,
                .idle_client_seconds = 60,
                .boot_timeout_s = 60,
                .wake_timeout_s = 30,
                .stop_timeout_s = 10,
                .shells = 2,
                .shell_idle_seconds = 300,
                .idle_image_seconds = 300,
                .heartbeat_ms = 2000,
                .recover_ms = 3000,
                .workingset = true,
                .live_forks = true,
                .record_seconds = 10,
                .probes = CONFIG_PROBES_AUTO,
                .window_ms = 5000,
                .keep_ended_seconds = 300,
                .pool_check_seconds = 30,
                .pool_memory_reserve = 256u << 20,
                .jail = true,
                .memory_overcommit = 1,
                .disk_reserve = 64u << 20,
                .metrics_listen = HTTP_DEFAULT_ADDRESS,
                .metrics_max_vms = 1000,
        };
}

static const struct setting {
        const char *section, *name;
        size_t offset;
        unsigned min, max;
} settings[] = {
        { "forkd", "max_vms", offsetof(struct config, max_vms), 1, 100000 },
        { "forkd", "parallel_starts", offsetof(struct config, parallel_starts), 0, 1024 },
        { "forkd", "requests_per_second", offsetof(struct config, requests_per_second), 0, 100000 },
        { "forkd", "idle_client_seconds", offsetof(struct config, idle_client_seconds), 1, 86400 },
        { "forkd", "parallel_saves", offsetof(struct config, parallel_saves), 0, 1024 },
        { "limits", "vcpus", offsetof(struct config, limit_vcpus), 0, 1000000 },
        { "vm", "boot_timeout_s", offsetof(struct config, boot_timeout_s), 1, 3600 },
        { "vm", "wake_timeout_s", offsetof(struct config, wake_timeout_s), 1, 3600 },
        { "vm", "stop_timeout_s", offsetof(struct config, stop_timeout_s), 1, 3600 },
        { "vmm", "shells", offsetof(struct config, shells), 0, 64 },
        { "vmm", "shell_idle_seconds", offsetof(struct config, shell_idle_seconds), 1, 86400 },
        { "pager", "workers", offsetof(struct config, pager_workers), 0, PAGER_MAX_WORKERS },
        { "pager", "idle_image_seconds", offsetof(struct config, idle_image_seconds), 0, 86400 },
        { "pager", "heartbeat_ms", offsetof(struct config, heartbeat_ms), 200, 60000 },
        { "pager", "recover_ms", offsetof(struct config, recover_ms), 200, 60000 },
        { "pager", "record_seconds", offsetof(struct config, record_seconds), 0, 3600 },
        { "pool", "check_seconds", offsetof(struct config, pool_check_seconds), 0, 86400 },
        { "monitor", "window_ms", offsetof(struct config, window_ms), 500, 600000 },
        { "monitor", "keep_ended_seconds", offsetof(struct config, keep_ended_seconds), 0, 86400 },
        { "metrics", "max_vms", offsetof(struct config, metrics_max_vms), 1, 100000 },
        { "security", "uid_base", offsetof(struct config, uid_base), 0, UINT32_MAX - 131072u },
};

static const struct toggle {
        const char *section, *name;
        size_t offset;
} toggles[] = {
        { "pager", "workingset", offsetof(struct config, workingset) },
        { "pager", "live_forks", offsetof(struct config, live_forks) },
        { "security", "jail", offsetof(struct config, jail) },
};

struct load {
        struct config *c;
        FILE *f;
        int line, read_r; /* of the line at hand; -errno of a failed read */
        int problem_line;
        char problem[160];
};

static void set_problem(struct load *l, const char *fmt, ...) attr_printf(2, 3);
static void set_problem(struct load *l, const char *fmt, ...) {
        va_list ap;

        l->problem_line = l->line;
        va_start(ap, fmt);
        (void) vsnprintf(l->problem, sizeof(l->problem), fmt, ap);
        va_end(ap);
}

/* inih's reader: one whole line at a call, so that we know which one its handler is called for. inih by itself
 * would take the rest of a line that is longer than its buffer for the next one. */
static char *read_line(char *buf, int size, void *arg) {
        struct load *l = arg;
        const char *text;
        size_t n;

        errno = 0;
        if (!fgets(buf, size, l->f)) {
                if (ferror(l->f))
                        l->read_r = errno ? -errno : -EIO;
                return NULL;
        }
        l->line++;
        n = strlen(buf);
        if (n + 1 < (size_t) size || buf[n - 1] == '\n')
                return buf;
        for (int c; (c = fgetc(l->f)) != EOF && c != '\n';)
                ;
        text = buf + strspn(buf, " \t");
        if (text[0] != '#' && text[0] != ';') {
                if (!l->problem[0])
                        set_problem(l, "a line has at most %d characters", size - 2);
                (void) strcpy(buf, "!"); /* no setting: inih stops caring, and counts it as wrong */
        }
        return buf;
}

static int set_number(struct load *l, const struct setting *s, const char *value) {
        char *end;
        unsigned long v;

        errno = 0;
        v = strtoul(value, &end, 10);
        if (errno || end == value || *end || value[0] == '-' || v < s->min || v > s->max) {
                set_problem(l, "[%s] %s must be a number from %u to %u", s->section, s->name, s->min, s->max);
                return 0;
        }
        if (strcmp(s->name, "uid_base") == 0 && v > 0 && v < FIRST_FREE_UID) {
                set_problem(l, "[security] uid_base is 0 or at least %u: what is below are users of this host", FIRST_FREE_UID);
                return 0;
        }
        *(unsigned *) ((char *) l->c + s->offset) = (unsigned) v;
        return 1;
}

static int set_toggle(struct load *l, const struct toggle *t, const char *value) {
        bool on = strcmp(value, "on") == 0;

        if (!on && strcmp(value, "off") != 0) {
                set_problem(l, "[%s] %s is on or off", t->section, t->name);
                return 0;
        }
        *(bool *) ((char *) l->c + t->offset) = on;
        return 1;
}

/** [pager] memory_budget: 0, or what uffd-pager takes. */
static int set_budget(struct load *l, const char *value) {
        uint64_t v;

        if (size_parse(value, &v) < 0 || (v > 0 && v < PAGER_MIN_BUDGET)) {
                set_problem(l, "[pager] memory_budget is a size of 4M or more, or 0");
                return 0;
        }
        l->c->memory_budget = v;
        return 1;
}

/** [forkd] group: nothing, or the name of a group of this host. */
static int set_group(struct load *l, const char *value) {
        char buf[16384];
        struct group g, *found = NULL;

        l->c->has_group = value[0] != '\0';
        if (!l->c->has_group)
                return 1;
        /* -ERANGE, for a group with very many members, counts as not found */
        if (getgrnam_r(value, &g, buf, sizeof(buf), &found) != 0 || !found) {
                set_problem(l, "[forkd] group: this host has no group '%.60s'; make it with: addgroup --system", value);
                return 0;
        }
        l->c->group = g.gr_gid;
        return 1;
}

/** [security] visible: looked at when the first VMM is started. */
static int set_visible(struct load *l, const char *value) {
        if (strlen(value) >= sizeof(l->c->visible)) {
                set_problem(l, "[security] visible has at most %zu characters", sizeof(l->c->visible) - 1);
                return 0;
        }
        (void) strcpy(l->c->visible, value);
        return 1;
}

/** [monitor] probes: whether there are any, or how waits for memory are seen by them. */
static int set_probes(struct load *l, const char *value) {
        if (strcmp(value, "auto") == 0 || strcmp(value, "off") == 0) {
                l->c->probes = value[0] == 'a' ? CONFIG_PROBES_AUTO : CONFIG_PROBES_OFF;
                return 1;
        }
        for (int i = PROBES_NONE + 1; i < PROBES_N_METHODS; i++)
                if (strcmp(value, probes_method_name((enum probes_method) i)) == 0) {
                        l->c->probes = i;
                        return 1;
                }
        set_problem(l, "[monitor] probes is auto, off, fentry, kprobe or sched_switch");
        return 0;
}

/** [metrics] listen: looked at here, so that an address that others could reach is an error at once. */
static int set_listen(struct load *l, const char *value) {
        struct http_address ignored;
        const char *why;

        if (http_address_parse(value, &ignored, &why) < 0) {
                set_problem(l, "[metrics] listen %s", why);
                return 0;
        }
        (void) snprintf(l->c->metrics_listen, sizeof(l->c->metrics_listen), "%s", value);
        l->c->metrics_chosen = true;
        return 1;
}

/** [limits] memory, disk_reserve, [pool] memory_reserve: any size. */
static int set_size(struct load *l, const char *section, const char *name, const char *value, uint64_t *ret) {
        if (size_parse(value, ret) == 0)
                return 1;
        set_problem(l, "[%s] %s is a size, such as 512M, or 0", section, name);
        return 0;
}

/** [limits] memory_overcommit */
static int set_factor(struct load *l, const char *value) {
        char *end;
        double v = strtod(value, &end);

        if (end == value || *end || !(v >= 0.1 && v <= 1000)) {
                set_problem(l, "[limits] memory_overcommit is a factor from 0.1 to 1000");
                return 0;
        }
        l->c->memory_overcommit = v;
        return 1;
}

/* inih's handler: 0 is an error and stops at this line (INI_STOP_ON_FIRST_ERROR or not, the first counts). */
static int on_setting(void *arg, const char *section, const char *name, const char *value) {
        struct load *l = arg;

        if (l->problem[0])
                return 0;
        if (strcmp(section, "forkd") == 0 && strcmp(name, "log_level") == 0) {
                if (log_level_parse(value, &l->c->log_level) == 0)
                        return 1;
                set_problem(l, "log_level is error, warning, info or debug");
                return 0;
        }
        if (strcmp(section, "pager") == 0 && strcmp(name, "memory_budget") == 0)
                return set_budget(l, value);
        if (strcmp(section, "forkd") == 0 && strcmp(name, "group") == 0)
                return set_group(l, value);
        if (strcmp(section, "monitor") == 0 && strcmp(name, "probes") == 0)
                return set_probes(l, value);
        if (strcmp(section, "security") == 0 && strcmp(name, "visible") == 0)
                return set_visible(l, value);
        if (strcmp(section, "metrics") == 0 && strcmp(name, "listen") == 0)
                return set_listen(l, value);
        if (strcmp(section, "limits") == 0 && strcmp(name, "memory") == 0)
                return set_size(l, section, name, value, &l->c->limit_memory);
        if (strcmp(section, "limits") == 0 && strcmp(name, "disk_reserve") == 0)
                return set_size(l, section, name, value, &l->c->disk_reserve);
        if (strcmp(section, "pool") == 0 && strcmp(name, "memory_reserve") == 0)
                return set_size(l, section, name, value, &l->c->pool_memory_reserve);
        if (strcmp(section, "limits") == 0 && strcmp(name, "memory_overcommit") == 0)
                return set_factor(l, value);
        for (size_t i = 0; i < ARRAY_LEN(settings); i++)
                if (strcmp(section, settings[i].section) == 0 && strcmp(name, settings[i].name) == 0)
                        return set_number(l, &settings[i], value);
        for (size_t i = 0; i < ARRAY_LEN(toggles); i++)
                if (strcmp(section, toggles[i].section) == 0 && strcmp(name, toggles[i].name) == 0)
                        return set_toggle(l, &toggles[i], value);
        set_problem(l, "[%.40s] %.60s is no setting of forkd", section, name);
        return 0;
}

int config_load(struct config *c, const char *path, bool must_exist, struct err *e) {
        cleanup_fclose FILE *f = fopen(path, "re");
        struct config fresh = *c;
        struct load l = { .c = &fresh, .f = f };
        int line;

        if (!f && errno == ENOENT && !must_exist)
                return 0;
        if (!f)
                return err_errno(e, -errno, "reading the configuration %s", path);
        line = ini_parse_stream(read_line, &l, on_setting, &l);
        if (l.read_r < 0)
                return err_errno(e, l.read_r, "reading the configuration %s", path);
        if (line < 0)
                return err_errno(e, -ENOMEM, "reading the configuration %s", path);
        if (line > 0)
                return err_set(e, ERR_INVALID, -EINVAL, "%s, line %d: %s", path, line,
                               l.problem_line == line ? l.problem : "not a setting");
        *c = fresh;
        return 0;
}
