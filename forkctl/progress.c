/* SPDX-License-Identifier: MIT */
#include "forkctl/progress.h"

#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/io.h"
#include "forkctl/client.h"
#include "common/json.h"
#include "forkctl/table.h"

#define TICK_US 120000    /* a spinner that turns eight times a second */
#define SHOW_AFTER_MS 150 /* what is quicker needs no line: a fork of one takes less */
#define BAR_WIDTH 24

static unsigned columns(void) {
        struct winsize ws;

        return ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col >= 20 ? ws.ws_col : 80;
}

static void draw(struct progress *p) {
        static const char *const spin[] = { "|", "/", "-", "\\" };
        double ms = ms_since(p->start_ns);
        char bar[BAR_WIDTH + 1], line[256];

        if (ms < SHOW_AFTER_MS)
                return;
        p->drawn_ns = now_ns();
        p->shown = true;
        if (p->percent >= 0) {
                int full = p->percent * BAR_WIDTH / 100;

                memset(bar, '.', BAR_WIDTH);
                memset(bar, '#', (size_t) full);
                bar[BAR_WIDTH] = '\0';
                (void) snprintf(line, sizeof(line), "[%s] %3d%% %s", bar, p->percent, p->text);
        } else {
                (void) snprintf(line, sizeof(line), "%s %s (%.1f s)", spin[(unsigned) (ms / 150) % ARRAY_LEN(spin)], p->text,
                                ms / 1000);
        }
        (void) fprintf(stderr, "\r\x1b[K%.*s", (int) columns() - 1, line);
        (void) fflush(stderr);
}

/* Counts the clones that answer already. An error here is no matter: the fork's own answer tells. */
static void on_list(const struct rpc_result *res, void *arg) {
        struct progress *p = arg;
        cleanup_json json_t *result = res->r == 0 ? json_from_mp(res->result) : NULL;
        size_t n = strlen(p->prefix), i;
        unsigned there = 0;
        json_t *vm;

        p->asking = false;
        json_array_foreach (json_list(result, "vms"), i, vm) {
                const char *name = json_str(vm, "name", ""), *state = json_str(vm, "state", "");

                if (strncmp(name, p->prefix, n) == 0 && name[n] == '-' &&
                    (strcmp(state, "running") == 0 || strcmp(state, "paused") == 0))
                        there++;
        }
        if (p->total)
                p->percent = (int) (MIN_OF(there, p->total) * 100 / p->total);
}

static void on_tick(evutil_socket_t fd, short what, void *arg) {
        struct progress *p = arg;

        if (p->prefix && p->c->conn && !p->asking && ms_since(p->start_ns) > SHOW_AFTER_MS)
                p->asking = rpc_call(p->c->conn, "vm.list", NULL, NULL, 0, on_list, p, &p->ask_id) == 0;
        if (p->all && *p->all)
                p->percent = (int) (MIN_OF(*p->done, *p->all) * 100.0 / *p->all);
        draw(p);
}

void progress_start(struct progress *p, struct ctl *c, const char *fmt, ...) {
        static const struct timeval tick = { .tv_usec = TICK_US };
        va_list ap;

        *p = (struct progress){ .c = c, .percent = -1, .start_ns = now_ns() };
        if (!c->progress)
                return;
        va_start(ap, fmt);
        (void) vsnprintf(p->text, sizeof(p->text), fmt, ap);
        va_end(ap);
        /* Without a loop there will be no ticks: progress_set draws then. */
        if (ctl_loop(c) == 0)
                p->tick = event_new(c->base, -1, EV_PERSIST, on_tick, p);
        if (p->tick)
                (void) event_add(p->tick, &tick);
}

void progress_vms(struct progress *p, const char *prefix, unsigned total) {
        p->prefix = prefix;
        p->total = total;
}

void progress_bytes(struct progress *p, const uint64_t *done, const uint64_t *all) {
        p->done = done;
        p->all = all;
}

void progress_set(struct progress *p, int percent, const char *text) {
        if (!p->c || !p->c->progress)
                return;
        p->percent = percent < 0 ? -1 : MIN_OF(percent, 100);
        (void) text_safe(text, p->text, sizeof(p->text));
        if (ms_since(p->drawn_ns) >= 100)
                draw(p);
}

void progress_end(struct progress *p) {
        if (p->asking && p->c->conn)
                rpc_call_cancel(p->c->conn, p->ask_id);
        p->asking = false;
        if (p->tick)
                event_free(p->tick);
        p->tick = NULL;
        if (p->shown)
                (void) fputs("\r\x1b[K", stderr);
        p->shown = false;
}
