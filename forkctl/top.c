/* SPDX-License-Identifier: MIT */
/* From documents to rows, and their order. */
#include "forkctl/top.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <string.h>
#include <strings.h>

#include "common/json.h"
#include "common/utf8.h"
#include "forkctl/draw.h"

static const char *const health_names[TOP_N_HEALTHS] = {
        [TOP_ORPHAN] = "ORPHAN", [TOP_STUCK] = "STUCK", [TOP_SPINNING] = "SPINNING",
        [TOP_LOST] = "FAILED",   [TOP_OK] = "ok",       [TOP_UNKNOWN] = "-",
};

const char *top_health_name(enum top_health h) {
        return health_names[h];
}

static const char *const key_names[TOP_N_KEYS] = {
        [TOP_BY_HEALTH] = "health",   [TOP_BY_CPU] = "cpu",       [TOP_BY_WAITS] = "waits",
        [TOP_BY_LONGEST] = "longest", [TOP_BY_MEMORY] = "memory", [TOP_BY_NAME] = "name",
};

const char *top_key_name(enum top_key k) {
        return key_names[k];
}

int top_key_parse(const char *s, enum top_key *ret) {
        for (unsigned i = 0; i < TOP_N_KEYS; i++)
                if (strcmp(s, key_names[i]) == 0) {
                        *ret = (enum top_key) i;
                        return 0;
                }
        return -EINVAL;
}

void top_init(struct top *t) {
        *t = (struct top){ .key = TOP_BY_HEALTH };
}

void top_clear(struct top *t) {
        free(t->vms);
        free(t->shown);
        t->vms = NULL;
        t->shown = NULL;
        t->n = t->cap = t->n_shown = 0;
}

/* ---- one VM ---- */

static void copy(char *to, size_t size, const char *from) {
        size_t n = utf8_whole(from, strnlen(from, size - 1));

        memcpy(to, from, n);
        to[n] = '\0';
}

static enum top_health health_of(const json_t *v) {
        static const char *const words[] = {
                [TOP_ORPHAN] = "orphan", [TOP_STUCK] = "stuck", [TOP_SPINNING] = "spinning",
                [TOP_LOST] = "",         [TOP_OK] = "ok",       [TOP_UNKNOWN] = "unknown",
        };
        const char *word = json_str(v, "health", "unknown");

        if (strcmp(json_str(v, "state", ""), "failed") == 0)
                return TOP_LOST;
        for (unsigned i = 0; i < TOP_N_HEALTHS; i++)
                if (strcmp(word, words[i]) == 0)
                        return (enum top_health) i;
        return TOP_LOST;
}

static void read_vcpus(struct top_vm *vm, const json_t *v) {
        const json_t *list = json_list(v, "vcpus"), *c;
        size_t i;

        vm->cpu = vm->runqueue = vm->memory = NAN;
        vm->n_vcpus = (unsigned) json_array_size(list);
        json_array_foreach ((json_t *) list, i, c) {
                double cpu = json_num(c, "oncpu", NAN), runq = json_num(c, "runqueue", NAN), memory = json_num(c, "memory", NAN);

                if (!isnan(cpu))
                        vm->cpu = (isnan(vm->cpu) ? 0 : vm->cpu) + cpu;
                if (!isnan(runq))
                        vm->runqueue = (isnan(vm->runqueue) ? 0 : vm->runqueue) + runq;
                if (!isnan(memory))
                        vm->memory = (isnan(vm->memory) ? 0 : vm->memory) + memory;
                if (i < TOP_MAX_VCPUS)
                        vm->vcpu[i] = (struct top_vcpu){ .share = (float) cpu,
                                                         .spinning = json_flag(c, "spinning"),
                                                         .stuck = json_flag(c, "stuck") };
        }
}

static void read_why(struct top_vm *vm, const json_t *v) {
        const json_t *c;
        size_t i;

        copy(vm->why, sizeof(vm->why), json_str(v, "why", ""));
        json_array_foreach (json_list(v, "vcpus"), i, c)
                if (!vm->why[0])
                        copy(vm->why, sizeof(vm->why), json_str(c, "why", ""));
        if (!vm->why[0])
                copy(vm->why, sizeof(vm->why), json_str(v, "reason", ""));
}

static void push(float *history, size_t n, double v) {
        if (n == TOP_HISTORY)
                memmove(history, history + 1, (TOP_HISTORY - 1) * sizeof(*history));
        history[MIN_OF(n, (size_t) TOP_HISTORY - 1)] = (float) v;
}

static void remember(struct top_vm *vm, double cpu, double waits) {
        push(vm->cpu_history, vm->n_history, cpu);
        push(vm->waits_history, vm->n_history, waits);
        vm->n_history = MIN_OF(vm->n_history + 1, (size_t) TOP_HISTORY);
}

/* @elapsed: seconds since the document before; NaN: there is none that this one goes on from. */
static void read_vm(struct top_vm *vm, const json_t *v, double elapsed, bool is_new) {
        const json_t *wait = json_object_get(v, "wait"), *ended = json_object_get(v, "ended_ms");
        uint64_t waits = json_u64(wait, "count", 0);
        bool going_on = !is_new && elapsed > 0 && waits >= vm->waits;

        copy(vm->name, sizeof(vm->name), json_str(v, "name", "?"));
        copy(vm->state, sizeof(vm->state), json_str(v, "state", "?"));
        copy(vm->snapshot, sizeof(vm->snapshot), json_str(v, "snapshot", ""));
        vm->health = health_of(v);
        vm->ended_s = json_is_number(ended) ? json_number_value(ended) / 1e3 : NAN;
        vm->waits_per_s = going_on ? (double) (waits - vm->waits) / elapsed : NAN;
        vm->waits = waits;
        vm->p50_s = waits ? json_num(wait, "p50_s", NAN) : NAN;
        vm->p99_s = waits ? json_num(wait, "p99_s", NAN) : NAN;
        vm->waiting_s = json_num(v, "waiting_ms", 0) / 1e3;
        vm->mem_bytes = json_u64(v, "mem_bytes", 0);
        read_vcpus(vm, v);
        read_why(vm, v);
        remember(vm, vm->cpu < DRAW_IDLE ? 0 : vm->cpu, vm->waits_per_s);
        vm->seen = true;
}

/* ---- the document ---- */

/* Documents come in the same order, but for what is new or gone: the search begins behind the one that was found last. */
static struct top_vm *find(struct top *t, const char *id, size_t *hint, size_t n) {
        for (size_t i = 0; i < n; i++) {
                size_t at = (*hint + i) % n;

                if (strcmp(t->vms[at].id, id) == 0) {
                        *hint = at + 1;
                        return &t->vms[at];
                }
        }
        return NULL;
}

static int reserve(struct top *t, size_t more) {
        size_t cap = t->n + more;
        void *p;

        if (cap <= t->cap)
                return 0;
        p = reallocarray(t->shown, cap, sizeof(struct top_vm *));
        if (!p)
                return -ENOMEM;
        t->shown = p;
        p = reallocarray(t->vms, cap, sizeof(*t->vms)); /* the last that can fail: @shown points into it */
        if (!p)
                return -ENOMEM;
        t->vms = p;
        t->cap = cap;
        return 0;
}

static void read_vms(struct top *t, const json_t *list, double elapsed) {
        size_t i, known = t->n, hint = 0, kept = 0;
        const json_t *v;

        for (i = 0; i < known; i++)
                t->vms[i].seen = false;
        json_array_foreach ((json_t *) list, i, v) {
                const char *id = json_str(v, "id", "");
                struct top_vm *vm = find(t, id, &hint, known);
                bool is_new = !vm;

                if (is_new) {
                        if (t->n == t->cap || i >= TOP_MAX_VMS)
                                break;
                        vm = &t->vms[t->n++];
                        memset(vm, 0, sizeof(*vm));
                        copy(vm->id, sizeof(vm->id), id);
                } else if (vm->seen) { /* told twice: the first one counts */
                        continue;
                }
                read_vm(vm, v, elapsed, is_new);
        }
        for (i = 0; i < t->n; i++)
                if (t->vms[i].seen) {
                        if (kept != i)
                                t->vms[kept] = t->vms[i];
                        kept++;
                }
        t->n = kept;
}

static void count(struct top *t) {
        static const char *const states[] = { "running", "paused", "standby" };

        memset(t->by_state, 0, sizeof(t->by_state));
        memset(t->by_health, 0, sizeof(t->by_health));
        for (size_t i = 0; i < t->n; i++) {
                size_t s = 0;

                if (!isnan(t->vms[i].ended_s))
                        continue;
                while (s < ARRAY_LEN(states) && strcmp(states[s], t->vms[i].state) != 0)
                        s++;
                t->by_state[s]++;
                t->by_health[t->vms[i].health]++;
        }
}

static void read_pager(struct top_head *h, const json_t *p, double elapsed) {
        const json_t *service = json_object_get(p, "service"), *v;
        uint64_t before = h->faults;
        const char *key;

        h->pager_up = json_flag(p, "up");
        h->pager_pid = (int64_t) json_u64(p, "pid", 0);
        h->pager_sessions = json_u64(p, "sessions", 0);
        h->pager_images = json_u64(p, "images", 0);
        h->present_bytes = json_u64(p, "present_bytes", 0);
        h->budget_bytes = json_u64(p, "budget_bytes", 0);
        h->oldest_fault_s = json_num(p, "oldest_fault_ms", NAN) / 1e3;
        h->pager_p50_s = json_u64(service, "count", 0) ? json_num(service, "p50_s", NAN) : NAN;
        h->pager_p99_s = json_u64(service, "count", 0) ? json_num(service, "p99_s", NAN) : NAN;
        h->faults = 0;
        json_object_foreach (json_object_get(p, "faults"), key, v)
                h->faults += json_is_integer(v) && json_integer_value(v) > 0 ? (uint64_t) json_integer_value(v) : 0;
        h->faults_per_s = elapsed > 0 && h->faults >= before ? (double) (h->faults - before) / elapsed : NAN;
}

static void read_pools(struct top_head *h, const json_t *pools) {
        json_t *p;
        size_t i;

        h->pools = json_array_size(pools);
        h->pool_warm = h->pool_wanted = 0;
        json_array_foreach (pools, i, p) {
                h->pool_warm += json_u64(p, "warm", 0);
                h->pool_wanted += json_u64(p, "wanted", 0);
        }
}

static void read_head(struct top *t, const json_t *doc, double elapsed) {
        const json_t *probes = json_object_get(doc, "probes"), *host = json_object_get(doc, "host");
        const json_t *admission = json_object_get(host, "admission");
        struct top_head *h = &t->head;

        copy(h->version, sizeof(h->version), json_str(doc, "version", "?"));
        h->uptime_s = json_num(doc, "uptime_ms", 0) / 1e3;
        h->window_s = json_num(doc, "window_ms", 0) / 1e3;
        copy(h->method, sizeof(h->method), json_str(probes, "method", "none"));
        copy(h->probes_reason, sizeof(h->probes_reason), json_str(probes, "reason", ""));
        h->probes_ok = json_flag(probes, "ok");
        h->kvm = json_flag(probes, "kvm");
        h->unwatched = json_u64(probes, "unwatched_vms", 0);
        h->left_out = json_u64(doc, "vms_left_out", 0);
        h->cpus = (unsigned) MIN_OF(json_u64(host, "cpus", 0), (uint64_t) UINT_MAX);
        h->mem_total = json_u64(host, "mem_total_bytes", 0);
        h->mem_available = json_u64(host, "mem_available_bytes", 0);
        h->starts_running = json_u64(json_object_get(admission, "starts"), "running", 0);
        h->starts_waiting = json_u64(json_object_get(admission, "starts"), "waiting", 0);
        h->vcpus_held = json_u64(json_object_get(admission, "vcpus"), "held", 0);
        read_pager(h, json_object_get(doc, "pager"), elapsed);
        read_pools(h, json_list(doc, "pools"));
}

int top_update(struct top *t, const json_t *doc) {
        const json_t *vms = json_list(doc, "vms");
        double now_s = json_num(doc, "uptime_ms", -1) / 1e3;
        double elapsed = t->filled && now_s > t->last_s ? now_s - t->last_s : NAN; /* it went back: another forkd */
        int r;

        if (!vms || now_s < 0)
                return -EBADMSG;
        r = reserve(t, MIN_OF(json_array_size(vms), (size_t) TOP_MAX_VMS));
        if (r < 0)
                return r;
        t->n_shown = 0; /* rows move */
        read_vms(t, vms, elapsed);
        read_head(t, doc, elapsed);
        count(t);
        t->filled = true;
        t->last_s = now_s;
        top_arrange(t);
        return 0;
}

void top_gap(struct top *t) {
        for (size_t i = 0; i < t->n; i++)
                remember(&t->vms[i], NAN, NAN);
}

/* ---- order ---- */

/* What is not known comes last. */
static int descending(double a, double b) {
        if (isnan(a) || isnan(b))
                return isnan(a) - isnan(b);
        return (a < b) - (a > b);
}

static int by_key(const struct top_vm *a, const struct top_vm *b, enum top_key key) {
        switch (key) {
        case TOP_BY_CPU:
                return descending(a->cpu, b->cpu);
        case TOP_BY_WAITS:
                return descending(a->waits_per_s, b->waits_per_s);
        case TOP_BY_LONGEST:
                return descending(a->waiting_s, b->waiting_s);
        case TOP_BY_MEMORY:
                return descending((double) a->mem_bytes, (double) b->mem_bytes);
        case TOP_BY_HEALTH:
                return a->health != b->health ? (int) a->health - (int) b->health : descending(a->cpu, b->cpu);
        default:
                return 0;
        }
}

static int compare(const void *x, const void *y, void *arg) {
        const struct top_vm *a = *(struct top_vm *const *) x, *b = *(struct top_vm *const *) y;
        const struct top *t = arg;
        int r = isnan(b->ended_s) - isnan(a->ended_s); /* what has ended is below, whatever the key */

        if (r != 0)
                return r;
        r = by_key(a, b, t->key);
        if (r == 0)
                r = strcmp(a->name, b->name);
        if (r == 0)
                r = strcmp(a->id, b->id);
        return t->reversed ? -r : r;
}

static bool matches(const struct top_vm *vm, const char *filter) {
        return !*filter || strcasestr(vm->name, filter) || strcasestr(vm->state, filter) || strcasestr(vm->snapshot, filter) ||
               strcasestr(top_health_name(vm->health), filter);
}

void top_arrange(struct top *t) {
        t->n_shown = 0;
        for (size_t i = 0; i < t->n; i++)
                if (matches(&t->vms[i], t->filter))
                        t->shown[t->n_shown++] = &t->vms[i];
        if (t->n_shown > 0)
                qsort_r(t->shown, t->n_shown, sizeof(struct top_vm *), compare, t);
}

static size_t selected_row(const struct top *t) {
        for (size_t i = 0; i < t->n_shown; i++)
                if (strcmp(t->shown[i]->id, t->selected) == 0)
                        return i;
        return SIZE_MAX;
}

void top_move(struct top *t, int by) {
        size_t at = selected_row(t), last = t->n_shown - 1;

        if (t->n_shown == 0)
                return;
        if (by == INT_MIN)
                at = 0;
        else if (by == INT_MAX)
                at = last;
        else if (at == SIZE_MAX) /* none was selected: begin with what is to be seen */
                at = MIN_OF(t->scroll, last);
        else if (by < 0)
                at -= MIN_OF(at, (size_t) -by);
        else
                at = MIN_OF(at + (size_t) by, last);
        copy(t->selected, sizeof(t->selected), t->shown[at]->id);
}
