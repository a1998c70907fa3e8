/* SPDX-License-Identifier: MIT */
/* The order of work: lock the cache; remove what interrupted runs left; find out what is missing; check that
 * there is room for all of it; then kernel, initramfs, store, and last the trial of KVM, which needs the
 * assets. Everything before the kernel is quick, and a run that finds all in place ends there. */
#include "setup/setup.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "common/ids.h"
#include "common/io.h"
#include "setup/paths.h"
#include "setup/assets_build.h"
#include "setup/space.h"
#include "setup/store_internal.h"

#define CACHE_LOCK ".lock"
#define CACHE_ADVICE "free space (`apt-get clean`, /var/log, old snapshots), or point FORKD_CACHE_DIR at another disk"

struct setup_run {
        const char *cache_dir, *state_dir, *agent_path;
        uint64_t store_bytes;
        setup_progress_fn *progress;
        void *arg;
        struct kernel kernel;
        bool have_kernel;
        struct initramfs_inputs inputs;
        char tmp[PATH_MAX]; /* empty: not made */
};

static void progress(const struct setup_run *s, const char *step, const char *text, int percent) {
        if (s->progress)
                s->progress(step, text, percent, s->arg);
}

static void kernel_progress(const char *text, int percent, void *arg) {
        progress(arg, "kernel", text, percent);
}

static void setup_run_clear(struct setup_run *s) {
        if (s->tmp[0])
                remove_quietly(AT_FDCWD, s->tmp);
        initramfs_inputs_clear(&s->inputs);
}

static int lock_cache(const struct setup_run *s, int *ret_fd, bool *ret_waited, struct err *e) {
        char path[PATH_MAX];
        bool waited = false;

        int r = io_mkdir_p(s->cache_dir, 0755);
        if (r < 0) {
                err_errno(e, r, "cannot make the cache directory %s", s->cache_dir);
                return err_hint(e, "run as root, or point FORKD_CACHE_DIR at a directory of yours");
        }
        (void) snprintf(path, sizeof(path), "%s/" CACHE_LOCK, s->cache_dir);
        cleanup_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0) {
                err_errno(e, -errno, "cannot open %s", path);
                return err_hint(e, "run as root, or point FORKD_CACHE_DIR at a directory of yours");
        }
        if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
                if (errno != EWOULDBLOCK)
                        return err_errno(e, -errno, "cannot lock %s", path);
                progress(s, "wait", "another setup is at work: waiting for it", -1);
                waited = true;
                while (flock(fd, LOCK_EX) < 0)
                        if (errno != EINTR)
                                return err_errno(e, -errno, "cannot lock %s", path);
        }
        *ret_fd = TAKE_FD(fd);
        *ret_waited = waited;
        return 0;
}

static int check_space(const struct setup_run *s, bool assets_missing, struct err *e) {
        struct space_need needs[2] = {
                { s->cache_dir, 0, "the guest kernel and initramfs", CACHE_ADVICE },
                { s->state_dir, 0, "the store", STORE_SPACE_ADVICE },
        };

        if (assets_missing)
                needs[0].bytes = ASSETS_WORK_BYTES + (s->have_kernel ? 0 : KERNEL_WORK_BYTES);
        int r = store_needed_bytes(s->state_dir, s->store_bytes, &needs[1].bytes, e);
        return r < 0 ? r : space_check(needs, ARRAY_LEN(needs), e);
}

static int make_tmp(struct setup_run *s, struct err *e) {
        id_str random;

        id_new(random);
        (void) snprintf(s->tmp, sizeof(s->tmp), "%s/tmp.%s", s->cache_dir, random);
        if (mkdir(s->tmp, 0700) < 0) {
                int r = err_errno(e, -errno, "cannot make %s", s->tmp);
                s->tmp[0] = '\0';
                return r;
        }
        return 0;
}

/* Looks which assets there should be; 1 when they are there and current, 0 when not. */
static int find_assets(struct setup_run *s, struct assets *ret, struct err *e) {
        char id[ASSETS_ID_LEN + 1];
        struct assets current;

        int r = initramfs_inputs_read(s->agent_path, &s->inputs, e);
        if (r < 0)
                return r;
        s->have_kernel = kernel_cached(s->cache_dir, &s->kernel) == 0;
        if (!s->have_kernel)
                return 0;
        initramfs_id(&s->inputs, &s->kernel, id);
        if (assets_locate(s->cache_dir, &current, NULL) < 0 || strcmp(current.id, id) != 0)
                return 0;
        *ret = current;
        return 1;
}

static int build_assets(struct setup_run *s, struct assets *ret, struct err *e) {
        char id[ASSETS_ID_LEN + 1];

        int r = make_tmp(s, e);
        if (r < 0)
                return r;
        if (!s->have_kernel) {
                progress(s, "kernel", "looking for a guest kernel", -1);
                r = kernel_get(s->cache_dir, s->tmp, kernel_progress, s, &s->kernel, e);
                if (r < 0)
                        return r;
        }
        progress(s, "initramfs", "building the guest's root file system", -1);
        initramfs_id(&s->inputs, &s->kernel, id);
        return assets_publish(s->cache_dir, s->tmp, id, &s->inputs, &s->kernel, ret, e);
}

static void missing(struct setup_result *res, const char *text) {
        if (res->n_missing < SETUP_MAX_MISSING)
                (void) snprintf(res->missing[res->n_missing++], sizeof(res->missing[0]), "%.159s", text);
}

static int check_only(struct setup_run *s, struct setup_result *res, struct err *e) {
        struct err why = { 0 };

        int r = find_assets(s, &res->assets, &why);
        if (r < 0)
                missing(res, why.message); /* busybox or the agent: nothing could be made without */
        else if (r == 0 && assets_locate(s->cache_dir, &res->assets, NULL) < 0)
                missing(res, s->have_kernel ? "guest initramfs" : "guest kernel and initramfs");
        else if (r == 0)
                missing(res, "guest assets made of the present kernel, busybox and agent (there are older ones)");

        r = store_inspect(s->state_dir, &res->store, e);
        if (r < 0)
                return r;
        if (res->store.kind == STORE_NONE)
                missing(res, res->store.reflink ? "store directory" : "store on a file system with reflink");
        return 0;
}

static void try_kvm(const struct setup_run *s, bool skip, struct setup_result *res) {
        struct err why = { 0 };

        int r = setup_kvm_verdict(s->cache_dir, 0, &why);
        if (r == -ENODATA && !skip) {
                progress(s, "kvm", "trying whether KVM runs a guest here", -1);
                r = setup_kvm_verdict(s->cache_dir, SETUP_KVM_TIMEOUT_MS, &why);
        }
        res->kvm = r > 0;
        if (!res->kvm)
                (void) snprintf(res->kvm_reason, sizeof(res->kvm_reason), "%.*s", (int) sizeof(res->kvm_reason) - 1, why.message);
}

static int run_locked(struct setup_run *s, struct setup_result *res, struct err *e) {
        assets_clean(s->cache_dir);
        int have = find_assets(s, &res->assets, e);
        if (have < 0)
                return have;
        int r = check_space(s, have == 0, e);
        if (r == 0 && have == 0) {
                r = build_assets(s, &res->assets, e);
                res->assets_changed = r == 0;
        }
        if (r < 0)
                return r;

        progress(s, "store", "preparing the store", -1);
        r = store_prepare(s->state_dir, s->store_bytes, &res->store_created, e);
        if (r == 0)
                r = store_inspect(s->state_dir, &res->store, e);
        return r;
}

int setup_run(const struct setup_params *params, setup_progress_fn *fn, void *arg, struct setup_result *ret, struct err *e) {
        attr_cleanup(setup_run_clear) struct setup_run s = {
                .cache_dir = params->cache_dir ? params->cache_dir : assets_cache_dir(),
                .state_dir = params->state_dir ? params->state_dir : SETUP_STATE_DEFAULT,
                .store_bytes = params->store_bytes ? params->store_bytes : STORE_DEFAULT_BYTES,
                .agent_path = params->agent_path,
                .progress = fn,
                .arg = arg,
        };
        struct setup_result res = { 0 };
        int r;

        if (strlen(s.cache_dir) > ASSETS_MAX_PATH - 128)
                return err_set(e, ERR_INVALID, -ENAMETOOLONG, "the path of the cache directory is too long");
        if (params->check_only) {
                r = check_only(&s, &res, e);
        } else {
                cleanup_fd int lock = -1;

                r = lock_cache(&s, &lock, &res.waited, e);
                if (r == 0)
                        r = run_locked(&s, &res, e);
                if (r == 0) /* still locked: the trial is work that is done once, too */
                        try_kvm(&s, params->skip_kvm, &res);
        }
        if (r < 0)
                return r;
        if (params->check_only)
                try_kvm(&s, true, &res);
        *ret = res;
        return 0;
}
