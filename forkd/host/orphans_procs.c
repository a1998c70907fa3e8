/* SPDX-License-Identifier: MIT */
/* Processes and cgroups that nobody claims.
 *
 * A process is named by a pidfd that is opened first and judged after, so none is killed that has come to its number since.
 * Where there are cgroups a group is what ends, not a process: whatever a VMM has become, all of it goes. The marker in the
 * environment finds the rest: everything where there is no cgroup v2, and what forkd has started elsewhere. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/co.h"
#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/host/orphans.h"
#include "forkd/host/shells.h"
#include "forkd/pager/link.h"
#include "forkd/vmm/cgroup.h"

#define MAX_PROC_FILE (2u << 20)
#define MAX_ANCESTORS 64
#define MAX_GROUPS 100000 /* as there may be VMs */
#define DEATH_TIMEOUT_MS 5000

/* ---- whose is it? ---- */

bool orphans_claimed(const struct vm *vm) {
        cleanup_fd int pidfd = -1;

        if (vm->busy || vm->vmm || vm_lingers(vm))
                return true;
        if (vm->removing || (vm->state != VM_RUNNING && vm->state != VM_PAUSED) || vm->pid <= 0 || vm->start_time == 0)
                return false;
        return spawn_pidfd_open(vm->pid, vm->start_time, &pidfd) == 0 && spawn_wait(pidfd, 0, NULL) == -ETIMEDOUT;
}

bool orphans_any_claimed(struct daemon *d) {
        struct vm *vm;

        TAILQ_FOREACH (vm, &d->vms, entry)
                if (orphans_claimed(vm))
                        return true;
        return false;
}

static pid_t parent_of(pid_t pid) {
        cleanup_free char *text = NULL;
        char path[64], *p;
        int ppid = 0;

        (void) snprintf(path, sizeof(path), "/proc/%d/stat", (int) pid);
        if (io_read_file(AT_FDCWD, path, 8192, &text, NULL) < 0 || !(p = strrchr(text, ')')) ||
            sscanf(p + 1, " %*c %d", &ppid) != 1)
                return 0;
        return (pid_t) ppid;
}

static bool descends_from(pid_t pid, pid_t ancestor) {
        for (int i = 0; i < MAX_ANCESTORS && pid > 1; i++) {
                if (pid == ancestor)
                        return true;
                pid = parent_of(pid);
        }
        return false;
}

/* A line "0::/…/forkd-<instance>/…": the component as a whole. */
static bool in_group_of_ours(struct daemon *d, pid_t pid) {
        cleanup_free char *text = NULL;
        char path[64], want[32], *save = NULL;

        (void) snprintf(path, sizeof(path), "/proc/%d/cgroup", (int) pid);
        (void) snprintf(want, sizeof(want), "forkd-%s", d->instance);
        if (io_read_file(AT_FDCWD, path, MAX_PROC_FILE, &text, NULL) < 0)
                return false;
        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                char *s = NULL;

                if (strncmp(line, "0::", 3) != 0)
                        continue;
                for (char *c = strtok_r(line + 3, "/", &s); c; c = strtok_r(NULL, "/", &s))
                        if (strcmp(c, want) == 0)
                                return true;
        }
        return false;
}

static bool has_marker(struct daemon *d, pid_t pid) {
        cleanup_free char *text = NULL;
        char path[64], want[64];
        size_t len;

        (void) snprintf(path, sizeof(path), "/proc/%d/environ", (int) pid);
        (void) snprintf(want, sizeof(want), "FORKD_INSTANCE=%s", d->instance);
        if (io_read_file(AT_FDCWD, path, MAX_PROC_FILE, &text, &len) < 0)
                return false;
        for (const char *p = text; p < text + len; p += strlen(p) + 1)
                if (strcmp(p, want) == 0)
                        return true;
        return false;
}

/* "qemu-system-x86", for people. */
static const char *name_of(pid_t pid, char *buf, size_t size) {
        cleanup_free char *text = NULL;
        char path[64];

        (void) snprintf(path, sizeof(path), "/proc/%d/comm", (int) pid);
        (void) snprintf(buf, size, "?");
        if (io_read_file(AT_FDCWD, path, 4096, &text, NULL) == 0)
                (void) snprintf(buf, size, "%.*s", (int) strcspn(text, "\n"), text);
        for (char *p = buf; *p; p++)
                if (*p < 0x20 || *p > 0x7e)
                        *p = '?';
        return buf;
}

bool orphans_pager_is_needed(struct daemon *d) {
        return d->offline ? orphans_any_claimed(d) : pager_is_up(d->pager);
}

/* Without a forkd we cannot ask which of several pagers has the sessions: all stay while a guest lives. */
static bool pager_is_ours(struct daemon *d, pid_t pid) {
        if (d->offline)
                return orphans_any_claimed(d);
        return pager_owns(d->pager, pid) || descends_from(pid, getpid());
}

/* By its name, which it may choose: one that lies is ended all the same, but later. */
static bool is_pager(pid_t pid) {
        char name[64];

        return strcmp(name_of(pid, name, sizeof(name)), "uffd-pager") == 0;
}

static bool process_is_claimed(struct daemon *d, pid_t pid) {
        struct vm *vm;

        if (is_pager(pid))
                return pager_is_ours(d, pid);
        if (pid == getpid() || (!d->offline && descends_from(pid, getpid())))
                return true;
        TAILQ_FOREACH (vm, &d->vms, entry)
                if (vm->pid > 0 && orphans_claimed(vm) && descends_from(pid, vm->pid))
                        return true;
        return false;
}

/* ---- groups ---- */

static int base_path(struct daemon *d, char *buf, size_t size) {
        char mount[PATH_MAX / 2];
        int r = cgroup_mount(mount, sizeof(mount));

        if (r < 0)
                return r;
        return (size_t) snprintf(buf, size, "%s/forkd-%s", mount, d->instance) >= size ? -ENAMETOOLONG : 0;
}

/* Calls @fn for each process of the group; 0 is one that is beyond our pid namespace. */
static void each_process(struct daemon *d, const char *group, void (*fn)(pid_t pid, void *arg), void *arg) {
        cleanup_free char *text = NULL;
        char base[PATH_MAX], path[PATH_MAX + 300], *save = NULL;

        if (base_path(d, base, sizeof(base)) < 0)
                return;
        (void) snprintf(path, sizeof(path), "%s/%s/cgroup.procs", base, group);
        if (io_read_file(AT_FDCWD, path, MAX_PROC_FILE, &text, NULL) < 0)
                return;
        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
                fn((pid_t) strtol(line, NULL, 10), arg);
}

struct telling {
        struct orphans *o;
        const char *whose;
        bool fixed;
};

static void tell_process(pid_t pid, void *arg) {
        struct telling *t = arg;
        char what[32], name[64];

        (void) snprintf(what, sizeof(what), "%d", (int) pid);
        orphans_tell(t->o, "process", what, t->fixed, "%s, %s", name_of(pid, name, sizeof(name)), t->whose);
}

/* The list is made before anything ends: afterwards nobody could tell what it was. */
struct pids {
        size_t n;
        pid_t pid[256];
};

static void collect(pid_t pid, void *arg) {
        struct pids *l = arg;

        if (l->n < ARRAY_LEN(l->pid))
                l->pid[l->n++] = pid;
}

static void end_group(struct orphans *o, const char *group, const char *whose) {
        struct telling t = { .o = o, .whose = whose };
        char base[PATH_MAX], path[PATH_MAX + 300];
        struct pids l = { 0 };
        struct err e;
        int r = -EAGAIN;

        if (base_path(o->d, base, sizeof(base)) < 0)
                return;
        (void) snprintf(path, sizeof(path), "%s/%s", base, group);
        if (o->fix) {
                each_process(o->d, group, collect, &l);
                if (l.n > 0)
                        log_warning("%zu process(es) in the cgroup %s: %s; killing them", l.n, path, whose);
                r = cgroup_remove(o->d->instance, group, &e);
                if (r < 0)
                        log_warning("%s", e.message);
                t.fixed = r == 0;
                for (size_t i = 0; i < l.n; i++)
                        tell_process(l.pid[i], &t);
        } else {
                each_process(o->d, group, tell_process, &t);
        }
        orphans_tell(o, "cgroup", path, r == 0, "%s", whose);
}

/* The names are listed first: what is done with one may wait, and the directory changes. */
static size_t list_groups(struct daemon *d, id_str **ret) {
        char base[PATH_MAX];
        struct dirent *de;
        id_str *list = NULL;
        size_t n = 0;
        DIR *dir;

        *ret = NULL;
        if (base_path(d, base, sizeof(base)) < 0 || !(dir = opendir(base)))
                return 0;
        while (n < MAX_GROUPS && (de = readdir(dir))) {
                id_str *p;

                if (!id_valid(de->d_name))
                        continue;
                p = realloc(list, (n + 1) * sizeof(*p));
                if (!p)
                        break;
                list = p;
                memcpy(list[n++], de->d_name, sizeof(id_str));
        }
        (void) closedir(dir);
        *ret = list;
        return n;
}

/* ---- by the marker ---- */

static int end_process(struct daemon *d, int pidfd, pid_t pid) {
        int r;

        /* Still the one that was judged? The descriptor is, so its number is its own until it is reaped. */
        if (!has_marker(d, pid))
                return -ESRCH;
        r = spawn_kill(pidfd, SIGKILL);
        if (r < 0)
                return r == -ESRCH ? 0 : r;
        if (co_self())
                return co_wait_fd(pidfd, EV_READ, DEATH_TIMEOUT_MS);
        return spawn_wait(pidfd, DEATH_TIMEOUT_MS, NULL);
}

static void look_at_process(struct orphans *o, pid_t pid) {
        struct telling t = { .o = o, .whose = "started by a forkd of this directory, and nobody's" };
        cleanup_fd int pidfd = -1;

        if (spawn_pidfd_open(pid, 0, &pidfd) < 0 || !has_marker(o->d, pid) || in_group_of_ours(o->d, pid) ||
            process_is_claimed(o->d, pid) || spawn_wait(pidfd, 0, NULL) == 0)
                return;
        if (o->fix) {
                log_warning("process %d has the mark of this forkd and no VM: killing it", (int) pid);
                t.fixed = end_process(o->d, pidfd, pid) == 0;
        }
        tell_process(pid, &t);
}

/* Pagers, or all others: guests end first. */
static void marked(struct orphans *o, bool pagers) {
        cleanup_free pid_t *pids = NULL;
        DIR *dir = opendir("/proc");
        struct dirent *de;
        size_t n = 0;

        while (dir && (de = readdir(dir))) {
                char *end;
                long pid = strtol(de->d_name, &end, 10);
                pid_t *p;

                if (*end || pid <= 1 || pid > INT_MAX)
                        continue;
                p = realloc(pids, (n + 1) * sizeof(*p));
                if (!p)
                        break;
                pids = p;
                pids[n++] = (pid_t) pid;
        }
        if (dir)
                (void) closedir(dir);
        for (size_t i = 0; i < n; i++)
                if (is_pager(pids[i]) == pagers)
                        look_at_process(o, pids[i]);
}

/* ---- the two steps ---- */

struct strangers {
        struct daemon *d;
        bool any;
};

static void is_no_worker_of_ours(pid_t pid, void *arg) {
        struct strangers *s = arg;

        s->any |= s->d->offline || pid <= 0 || !descends_from(pid, getpid());
}

static void is_no_pager_of_ours(pid_t pid, void *arg) {
        struct strangers *s = arg;

        s->any |= !pager_is_ours(s->d, pid);
}

static bool group_exists(struct daemon *d, const char *group) {
        char base[PATH_MAX], path[PATH_MAX + 300];

        if (base_path(d, base, sizeof(base)) < 0)
                return false;
        (void) snprintf(path, sizeof(path), "%s/%s", base, group);
        return access(path, F_OK) == 0;
}

void orphans_guests(struct orphans *o) {
        struct strangers workers = { .d = o->d };
        cleanup_free id_str *ids = NULL;
        size_t n = list_groups(o->d, &ids);

        for (size_t i = 0; i < n; i++) {
                struct vm *vm = vm_by_group(o->d, ids[i]);
                char whose[120];

                if ((vm && orphans_claimed(vm)) || (o->d->shells && shells_has(o->d->shells, ids[i])))
                        continue;
                if (vm)
                        (void) snprintf(whose, sizeof(whose), "of VM %s, which is %s%s", vm->id, vm_state_name(vm->state),
                                        vm->removing ? " and being removed" : "");
                else
                        (void) snprintf(whose, sizeof(whose), "of VM %s, which is not there", ids[i]);
                end_group(o, ids[i], whose);
        }
        each_process(o->d, CGROUP_WORKERS, is_no_worker_of_ours, &workers);
        if (workers.any || (o->d->offline && group_exists(o->d, CGROUP_WORKERS)))
                end_group(o, CGROUP_WORKERS, "of workers whose forkd is gone");
        marked(o, false);
}

/* One pager of several in the group: by itself. */
static void end_strange_pager(pid_t pid, void *arg) {
        struct telling t = { .o = arg, .whose = "a pager that no guest uses" };
        cleanup_fd int pidfd = -1;

        if (pager_is_ours(t.o->d, pid) || spawn_pidfd_open(pid, 0, &pidfd) < 0)
                return;
        if (t.o->fix) {
                log_warning("process %d is a pager that no guest uses: killing it", (int) pid);
                t.fixed = end_process(t.o->d, pidfd, pid) == 0;
        }
        tell_process(pid, &t);
}

void orphans_pager(struct orphans *o) {
        struct strangers s = { .d = o->d };
        char base[PATH_MAX];

        each_process(o->d, CGROUP_PAGER, is_no_pager_of_ours, &s);
        if (s.any && orphans_pager_is_needed(o->d))
                each_process(o->d, CGROUP_PAGER, end_strange_pager, o);
        else if (s.any || (o->d->offline && group_exists(o->d, CGROUP_PAGER) && !orphans_pager_is_needed(o->d)))
                end_group(o, CGROUP_PAGER, "of a pager that no guest uses");
        marked(o, true);
        if (!o->d->offline || base_path(o->d, base, sizeof(base)) < 0 || access(base, F_OK) < 0 || orphans_any_claimed(o->d))
                return;
        if (o->fix)
                (void) rmdir(base);
        orphans_tell(o, "cgroup", base, access(base, F_OK) < 0, "of a forkd without VMs");
}
