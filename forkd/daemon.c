/* SPDX-License-Identifier: MIT */
/* Theory of operation: start in the order lock, store, records, pager, VMs, door; stop in the reverse order.
 *
 * The lock on <state>/lock keeps a second forkd out; it is held by the process, so it goes with it however that
 * ends. The door (the control socket) opens when every VM of an earlier forkd has been taken back or accounted
 * for, so no client sees a half-known world.
 *
 * SIGTERM leaves VMs, their pager and the store's mount in place for the next forkd. When nothing lives that
 * needs them, pager and mount are taken down: an idle forkd leaves nothing behind. */
#include "forkd/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/api/api.h"
#include "forkd/catalog.h"
#include "forkd/dirs.h"
#include "forkd/events.h"
#include "forkd/vm/identity.h"
#include "forkd/notify.h"
#include "forkd/vm/journal.h"
#include "forkd/monitor/http.h"
#include "forkd/monitor/metrics.h"
#include "forkd/monitor/page.h"
#include "forkd/monitor/monitor.h"
#include "forkd/pager/link.h"
#include "forkd/pool/pool.h"
#include "forkd/vmm/vmm_jail.h"
#include "forkd/host/room.h"
#include "forkd/host/shells.h"
#include "forkd/worker/worker.h"
#include "setup/assets.h"
#include "setup/store_mount.h"

#define CONFIG_DEFAULT "/etc/forkd/forkd.conf"
#define STORE_TIMEOUT_MS 120000
#define SWEEP_MS 2000 /* for the workers of a forkd that was killed to be gone */
#define SWEEP_AGAIN_MS 10
#define RECOVER_TIMEOUT_MS 3600000

/* ---- helpers ---- */

int daemon_helper(const struct daemon *d, const char *name, char *buf, size_t size) {
        static const char *const dirs[] = { "", "../libexec/forkd/", "../lib/forkd/" };

        for (size_t i = 0; i < ARRAY_LEN(dirs); i++)
                if ((size_t) snprintf(buf, size, "%s/%s%s", d->bin_dir, dirs[i], name) < size && access(buf, X_OK) == 0)
                        return 0;
        return -ENOENT;
}

/* Helpers are found beside our own binary, so a build tree works as it is, or where packages put them. */
static int find_helpers(struct daemon *d, struct err *e) {
        static const char *const libs[] = { "../lib/libuffd-attach.so", "../lib/forkd/libuffd-attach.so",
                                            "../" FORKD_LIBDIR "/forkd/libuffd-attach.so" };
        ssize_t n = readlink("/proc/self/exe", d->bin_dir, sizeof(d->bin_dir) - 1);
        char *slash;

        if (n < 0)
                return err_errno(e, -errno, "finding forkd's own binary");
        d->bin_dir[n] = '\0';
        slash = strrchr(d->bin_dir, '/');
        if (slash)
                *slash = '\0';
        for (size_t i = 0; i < ARRAY_LEN(libs); i++) {
                char path[PATH_MAX], real[PATH_MAX];

                (void) snprintf(path, sizeof(path), "%s/%s", d->bin_dir, libs[i]);
                if (realpath(path, real) && strlen(real) < sizeof(d->attach_lib)) {
                        (void) strcpy(d->attach_lib, real);
                        return 0;
                }
        }
        (void) err_set(e, ERR_IO, -ENOENT, "libuffd-attach.so is neither in %s/../lib nor where packages put it", d->bin_dir);
        return err_hint(e, "build or install forkd completely");
}

/* ---- the store ---- */

/** What is still locked belongs to workers of a forkd that was killed a moment ago: they have been killed with it, and
 *  hold their locks until the kernel is done with them. */
static int sweep_store(struct daemon *d) {
        uint64_t deadline = now_ns() + SWEEP_MS * 1000000ull;
        unsigned left = 0;
        int r;

        while ((r = snap_store_sweep(d->store, NULL, &left)) == 0 && left > 0 && now_ns() < deadline)
                (void) poll(NULL, 0, SWEEP_AGAIN_MS);
        if (r == 0 && left > 0)
                log_warning("%u unfinished snapshots in %s/tmp are locked by other processes and stay there", left, d->store_dir);
        return r;
}

int daemon_open_store(struct daemon *d, struct err *e) {
        int r;

        r = snap_store_open(d->store_dir, &d->store);
        if (r == 0)
                r = sweep_store(d);
        if (r < 0)
                return err_errno(e, r, "opening the store %s", d->store_dir);
        r = dirs_make_sub(d->store_dir, "vms", e);
        if (r < 0)
                return r;
        d->reflink = io_probe_reflink(d->store_dir) == 1;
        if (!d->reflink)
                log_warning("the store %s is on a file system without reflink: every standby copies its parent's image "
                            "('forkctl setup' makes a store that shares)",
                            d->store_dir);
        return catalog_load(d->catalog, e);
}

static int store_call(struct daemon *d, const char *method, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "state_dir", d->state_dir);
        return worker_do(d->workers, method, &b, NULL, 0, STORE_TIMEOUT_MS, NULL, e);
}

/* `forkctl setup` has made an image while we ran on the plain directory below it: possible only while that is
 * empty, and nothing may be put there meanwhile. */
static int attach_store(struct daemon *d, struct err *e) {
        static const char *const subs[] = { "store/snapshots", "store/tmp", "store/vms", "store" };
        char path[PATH_MAX];
        struct err open_err;
        int r = store_is_attached(d->state_dir);

        if (r == 1)
                return 0;
        (void) snprintf(path, sizeof(path), "%s/%s", d->state_dir, STORE_IMAGE);
        if (r == 0 && access(path, F_OK) < 0 && d->store)
                return 0; /* the state directory's own file system is the store */
        if (catalog_first(d->catalog) || d->n_vms > 0) {
                (void) err_set(e, ERR_BUSY, -ENOTEMPTY, "the store has VMs or snapshots on a file system without reflink");
                return err_hint(e, "remove them (forkctl rm --all, forkctl snapshot rm …), then run setup again");
        }
        snap_store_close(TAKE_PTR(d->store));
        for (size_t i = 0; i < ARRAY_LEN(subs); i++) {
                (void) snprintf(path, sizeof(path), "%s/%s", d->state_dir, subs[i]);
                (void) rmdir(path);
        }
        r = store_call(d, "store.attach", e);
        /* With or without it: forkd needs a store. */
        if (daemon_open_store(d, &open_err) < 0 && r == 0) {
                *e = open_err;
                r = e->r;
        }
        return r;
}

int daemon_attach_store(struct daemon *d, struct err *e) {
        int r;

        if (d->attaching)
                return err_set(e, ERR_BUSY, -EBUSY, "the store is being attached already");
        d->attaching = true;
        r = attach_store(d, e);
        d->attaching = false;
        return r;
}

/* What holds the store open ends before it is detached. */
void daemon_close_store(struct daemon *d) {
        struct err e;

        snap_store_close(TAKE_PTR(d->store));
        if (store_is_attached(d->state_dir) == 1 && store_call(d, "store.detach", &e) < 0)
                log_warning("%s", e.message);
}

/* ---- start, and life as one coroutine ---- */

static int recover_store(struct daemon *d, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        uint64_t removed = 0, left = 0;
        int r;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "store", d->store_dir);
        r = worker_do(d->workers, "store.recover", &b, NULL, 0, RECOVER_TIMEOUT_MS, &a, e);
        if (r < 0)
                return r;
        (void) mp_get_u64(&a.doc.root, "removed", &removed);
        if (removed > 0)
                log_warning("%u snapshot(s) that had not reached the disk before a crash were torn and are gone",
                            (unsigned) removed);
        (void) mp_get_u64(&a.doc.root, "left", &left);
        if (left > 0)
                log_warning("%u thing(s) in %s/snapshots could not be checked or made durable and are left as they are",
                            (unsigned) left, d->store_dir);
        return 0;
}

static int start(struct daemon *d, struct err *e) {
        int r;

        r = store_call(d, "store.attach", e);
        if (r == 0)
                r = recover_store(d, e);
        if (r == 0)
                r = daemon_open_store(d, e);
        if (r == 0)
                r = vm_records_load(d, e);
        if (r == 0)
                r = pools_load(d, e);
        if (r == 0)
                r = journal_load(d, e);
        if (r < 0)
                return r;
        if (pager_find(d->pager, e) < 0)
                log_error("%s", e->message);
        vms_adopt(d);
        pools_start(d);
        return api_new(d, &d->api, e);
}

static void tell_status(struct daemon *d) {
        unsigned running = 0, standby = 0;
        struct vm *vm;

        TAILQ_FOREACH (vm, &d->vms, entry) {
                running += vm->state == VM_RUNNING;
                standby += vm->state == VM_STANDBY;
        }
        notify_status(d->notify, "%u VMs: %u running, %u on standby", d->n_vms, running, standby);
}

static void life(void *arg) {
        struct co_wait stopped = CO_WAIT_INIT;
        struct daemon *d = arg;
        struct err e = { 0 };
        int r;

        r = start(d, &e);
        if (r < 0) {
                log_error("%s%s%s", e.message, e.hint[0] ? "; " : "", e.hint);
                d->exit_code = 1;
                if (!daemon_has_live_vms(d))
                        daemon_close_store(d);
        } else {
                log_info("forkd %s is ready on %s/forkd.sock", FORKD_VERSION, d->run_dir);
                tell_status(d);
                notify_ready(d->notify);
                if (!d->stopping) {
                        d->stopped = &stopped;
                        (void) co_wait(&stopped, -1);
                        d->stopped = NULL;
                }
                notify_stopping(d->notify);
                daemon_end(d);
        }
        (void) event_base_loopexit(d->base, NULL);
}

static void on_signal(evutil_socket_t sig, short what, void *arg) {
        log_info("got signal %d, stopping", (int) sig);
        daemon_begin_stop(arg, false);
}

static void on_housekeeping(evutil_socket_t fd, short what, void *arg) {
        struct daemon *d = arg;
        struct vm *vm;

        TAILQ_FOREACH (vm, &d->vms, entry)
                if (vm->vmm)
                        vm_trim_logs(vm);
        shells_housekeeping(d->shells);
        monitor_housekeeping(d->monitor);
        tell_status(d);
}

/* ---- the process ---- */

static int daemon_init(struct daemon *d, const struct daemon_options *opt, struct err *e) {
        static const struct timeval every = { .tv_sec = 5 };
        struct rlimit files;
        int r;

        config_defaults(&d->cfg);
        r = config_load(&d->cfg, opt->config ? opt->config : CONFIG_DEFAULT, opt->config != NULL, e);
        if (r < 0)
                return r;
        if (opt->log_level && log_level_parse(opt->log_level, &d->cfg.log_level) < 0)
                return err_set(e, ERR_USAGE, -EINVAL, "there is no log level '%s'", opt->log_level);
        log_init("forkd", d->cfg.log_level);
        /* Each VM costs a handful of descriptors. */
        if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
                files.rlim_cur = files.rlim_max;
                (void) setrlimit(RLIMIT_NOFILE, &files);
        }
        (void) umask(0077);
        (void) signal(SIGPIPE, SIG_IGN);
        r = find_helpers(d, e);
        if (r == 0)
                r = dirs_open(d, opt, e);
        if (r < 0)
                return r;
        d->base = event_base_new();
        if (!d->base)
                return err_errno(e, -ENOMEM, "starting the event loop");
        r = notify_new(d->base, &d->notify);
        if (r < 0)
                return err_errno(e, r, "reading NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID");
        d->sigterm = evsignal_new(d->base, SIGTERM, on_signal, d);
        d->sigint = evsignal_new(d->base, SIGINT, on_signal, d);
        d->housekeeping = event_new(d->base, -1, EV_PERSIST, on_housekeeping, d);
        if (!d->sigterm || !d->sigint || !d->housekeeping || event_add(d->sigterm, NULL) < 0 || event_add(d->sigint, NULL) < 0 ||
            event_add(d->housekeeping, &every) < 0)
                return err_errno(e, -ENOMEM, "catching signals");
        r = identities_new(&d->identities);
        if (r == 0)
                r = room_new(d);
        if (r == 0)
                r = shells_new(d, &d->shells);
        if (r == 0)
                r = catalog_new(d, &d->catalog);
        if (r == 0)
                r = worker_pool_new(d, &d->workers);
        if (r == 0)
                r = events_new(&d->events);
        if (r == 0)
                r = pools_new(d, &d->pools);
        if (r == 0)
                r = pager_new(d, &d->pager);
        if (r == 0)
                r = monitor_new(d, &d->monitor);
        if (r == 0)
                r = http_new(d, &d->http);
        if (r == 0)
                r = metrics_new(d, &d->metrics);
        if (r == 0)
                r = page_new(d, &d->page);
        if (r == 0)
                http_open(d->http);
        return r < 0 ? err_errno(e, r, "starting") : 0;
}

static void daemon_clear(struct daemon *d) {
        page_free(d->page);
        http_free(d->http);
        metrics_free(d->metrics);
        api_free(d->api);
        monitor_free(TAKE_PTR(d->monitor));
        pools_free(d->pools);
        d->pools = NULL; /* what becomes of members is nobody's business any more */
        vm_release_all(d);
        journal_free(d);
        pager_free(d->pager);
        events_free(d->events);
        worker_pool_free(d->workers);
        catalog_free(d->catalog);
        shells_free(d->shells);
        identities_free(d->identities);
        vmm_jail_free(d->vmm_jail);
        room_free(d);
        snap_store_close(d->store);
        if (d->sigterm)
                event_free(d->sigterm);
        if (d->sigint)
                event_free(d->sigint);
        if (d->housekeeping)
                event_free(d->housekeeping);
        notify_free(d->notify);
        if (d->base)
                event_base_free(d->base);
        (void) close_fd(d->lock_fd);
        (void) close_fd(d->run_lock_fd);
}

int daemon_run(const struct daemon_options *opt) {
        struct daemon d = { .lock_fd = -1, .run_lock_fd = -1, .started_ns = now_ns() };
        struct err e = { 0 };
        int r;

        log_init("forkd", LOG_LVL_INFO);
        TAILQ_INIT(&d.vms);
        TAILQ_INIT(&d.shutdowns);
        r = daemon_init(&d, opt, &e);
        if (r == 0)
                r = co_start(d.base, life, &d) < 0 ? err_errno(&e, -ENOMEM, "starting") : 0;
        if (r < 0) {
                log_error("%s%s%s", e.message, e.hint[0] ? "; " : "", e.hint);
                d.exit_code = 1;
        } else {
                (void) event_base_dispatch(d.base);
        }
        daemon_clear(&d);
        return d.exit_code;
}
