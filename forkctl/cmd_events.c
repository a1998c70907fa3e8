/* SPDX-License-Identifier: MIT */
/* `events`: forkd is asked for what came after the last one we know, and answers when there is something. What is wanted of it (a VM,
 * kinds) is picked here: forkd keeps few enough. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "common/json.h"
#include "forkctl/table.h"

#define WAIT_MS 30000 /* an answer at least so often, so that a forkd that went away is noticed */

static void print_time(double ns) {
        time_t s = (time_t) (ns / 1e9);
        struct tm tm;
        char text[32];

        if (!localtime_r(&s, &tm) || strftime(text, sizeof(text), "%F %T", &tm) == 0)
                (void) strcpy(text, "?");
        printf("%s.%03d ", text, (int) (ns / 1e6 - (double) s * 1e3));
}

/* "vcpu" and "vcpu.*" stand for all that begin with "vcpu."; else it is the whole kind. */
static bool is_kind(const char *kind, const char *wanted) {
        size_t n = strlen(wanted);

        if (n > 2 && strcmp(wanted + n - 2, ".*") == 0)
                n -= 2;
        return strncmp(kind, wanted, n) == 0 && (kind[n] == '.' || (kind[n] == '\0' && wanted[n] == '\0'));
}

static bool is_wanted(const struct args *a, const json_t *e) {
        const char *name = a->n_pos ? a->pos[0] : NULL, *wanted;

        if (name && strcmp(json_str(e, "name", ""), name) != 0 && strcmp(json_str(e, "id", ""), name) != 0)
                return false;
        if (!arg_given(a, "kind"))
                return true;
        for (size_t i = 0; (wanted = arg_nth(a, "kind", i)); i++)
                if (is_kind(json_str(e, "kind", ""), wanted))
                        return true;
        return false;
}

static int print_event(struct ctl *c, json_t *e) {
        char kind[32], name[80], text[320];

        if (c->json)
                return ctl_print(c, e);
        print_time(json_num(e, "time_ns", 0));
        printf("%-14s %s%s%s\n", text_safe(json_str(e, "kind", "?"), kind, sizeof(kind)),
               text_safe(json_str(e, "name", ""), name, sizeof(name)), json_str(e, "name", "")[0] ? ": " : "",
               text_safe(json_str(e, "text", ""), text, sizeof(text)));
        return 0;
}

/* One answer. *after: the number of the last event that we know; UINT64_MAX: of none, and only new ones are wanted. */
static int read_some(struct ctl *c, const struct args *a, uint64_t *after, bool follow) {
        cleanup_json json_t *result = NULL;
        cleanup_req struct req q;
        double missed;
        json_t *e;
        size_t i;
        int r;

        req_init(&q);
        if (*after != UINT64_MAX)
                req_u64(&q, "after", *after);
        req_u64(&q, "wait_ms", follow ? WAIT_MS : 0);
        r = ctl_call(c, "events", &q, &result);
        if (r < 0)
                return r;
        missed = json_num(result, "missed", 0);
        if (missed > 0)
                fprintf(stderr, "forkctl: %.0f events came too fast and are lost\n", missed);
        json_array_foreach (json_list(result, "events"), i, e) {
                r = is_wanted(a, e) ? print_event(c, e) : 0;
                if (r < 0)
                        return r;
        }
        *after = (uint64_t) json_num(result, "next", 0);
        return fflush(stdout) == 0 ? 0 : err_errno(&c->e, -errno, "writing the output");
}

int cmd_events(struct ctl *c, const struct args *a) {
        uint64_t after = arg_given(a, "all") ? 0 : UINT64_MAX;
        bool follow = !arg_given(a, "no-follow");
        int r;

        if (!follow && arg_given(a, "follow"))
                return usage_error(c, a->cmd, "--follow and --no-follow exclude each other");
        do
                r = read_some(c, a, &after, follow);
        while (r == 0 && follow);
        return r;
}
