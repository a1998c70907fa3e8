/* SPDX-License-Identifier: MIT */
#include "forkd/config.h"

#include <errno.h>
#include <ini.h>
#include <stddef.h>
#include <string.h>

void config_defaults(struct config *c) {
        *c = (struct config){
                .log_level = LOG_LVL_INFO,
                .max_vms = 1000,
                .boot_timeout_s = 60,
                .wake_timeout_s = 30,
                .stop_timeout_s = 10,
                .idle_image_seconds = 300,
        };
}

static const struct setting {
        const char *section, *name;
        size_t offset;
        unsigned min, max;
} settings[] = {
        { "forkd", "max_vms", offsetof(struct config, max_vms), 1, 100000 },
        { "forkd", "parallel_starts", offsetof(struct config, parallel_starts), 0, 1024 },
        { "vm", "boot_timeout_s", offsetof(struct config, boot_timeout_s), 1, 3600 },
        { "vm", "wake_timeout_s", offsetof(struct config, wake_timeout_s), 1, 3600 },
        { "vm", "stop_timeout_s", offsetof(struct config, stop_timeout_s), 1, 3600 },
        { "pager", "workers", offsetof(struct config, pager_workers), 0, 64 },
        { "pager", "idle_image_seconds", offsetof(struct config, idle_image_seconds), 0, 86400 },
};

struct load {
        struct config *c;
        char problem[160];
};

static int set_number(struct load *l, const struct setting *s, const char *value) {
        char *end;
        unsigned long v;

        errno = 0;
        v = strtoul(value, &end, 10);
        if (errno || end == value || *end || value[0] == '-' || v < s->min || v > s->max) {
                (void) snprintf(l->problem, sizeof(l->problem), "[%s] %s must be a number from %u to %u", s->section,
                                s->name, s->min, s->max);
                return 0;
        }
        *(unsigned *) ((char *) l->c + s->offset) = (unsigned) v;
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
                (void) snprintf(l->problem, sizeof(l->problem), "log_level is error, warning, info or debug");
                return 0;
        }
        for (size_t i = 0; i < ARRAY_LEN(settings); i++)
                if (strcmp(section, settings[i].section) == 0 && strcmp(name, settings[i].name) == 0)
                        return set_number(l, &settings[i], value);
        (void) snprintf(l->problem, sizeof(l->problem), "[%.40s] %.60s is no setting of forkd", section, name);
        return 0;
}

int config_load(struct config *c, const char *path, bool must_exist, struct err *e) {
        cleanup_fclose FILE *f = fopen(path, "re");
        struct config fresh = *c;
        struct load l = { .c = &fresh };
        int line;

        if (!f && errno == ENOENT && !must_exist)
                return 0;
        if (!f)
                return err_errno(e, -errno, "reading the configuration %s", path);
        line = ini_parse_file(f, on_setting, &l);
        if (line != 0)
                return err_set(e, ERR_INVALID, -EINVAL, "%s, line %d: %s", path, line,
                               l.problem[0] ? l.problem : "not a setting");
        *c = fresh;
        return 0;
}
