/* SPDX-License-Identifier: MIT */
/* Running, pausing, and the device state.
 *
 * Theory of operation. QEMU has two ways to give its devices' state without the RAM: a whole migration with the
 * capability x-ignore-shared, and the command that Xen's tools use, xen-save-devices-state. It is the second one
 * here. A migration leaves the VM in the run state "postmigrate", from which it can be resumed but never saved
 * again before it has run; it inactivates the disks, needs a thread and a moment to settle after it said
 * that it is complete, and writes the firmware's pages too: 46 KB instead of 13. The command is synchronous and
 * leaves a paused VM just paused, so that it can be saved as often as one likes.
 *
 * Both write the same format, and an ordinary incoming migration reads it, provided that both sides leave out
 * the stream's configuration section (migration.send-configuration=off on the command line).
 *
 * QEMU writes into a memfd of ours and never gets the caller's file: it might keep the descriptor, and a
 * published snapshot must not change. The memfd goes to QEMU as a descriptor set, which is removed by the
 * third of the commands that are sent at once. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/vmm/qemu.h"
#include "forkd/vmm/qemu_args.h"

#define FD_NAME "state"
#define STATE_MAX (64u << 20) /* 13 KB in truth */
#define COPY_CHUNK 65536u

static int step(struct vmm *v, const char *command, json_t *args, int timeout_ms, const char *what, json_t **ret, struct err *e) {
        int r = qmp_call(v->qmp, command, args, timeout_ms, ret, e);

        return r < 0 ? qemu_step_failed(v, r, what, e) : 0;
}

static const char *get_status(const json_t *o) {
        const char *s = json_string_value(json_object_get(o, "status"));

        return s ? s : "";
}

/* @buf (a few dozen bytes) gets the run state, "" if QEMU gives none. */
static int query_status(struct vmm *v, char *buf, size_t size, bool *ret_running, struct err *e) {
        cleanup_json json_t *o = NULL;
        int r = step(v, "query-status", NULL, QEMU_CALL_TIMEOUT_MS, "asking QEMU for its state", &o, e);
        const char *s;

        if (r < 0)
                return r;
        s = get_status(o);
        (void) qmp_printable(s, strlen(s), buf, size);
        *ret_running = json_is_true(json_object_get(o, "running"));
        return 0;
}

int qemu_is_running(struct vmm *v, bool *ret, struct err *e) {
        char status[32];

        return query_status(v, status, sizeof(status), ret, e);
}

int qemu_resume(struct vmm *v, struct err *e) {
        if (v->wants_state)
                return err_set(e, ERR_STATE, -EINVAL, "resuming: the VM has no device state yet");
        return step(v, "cont", NULL, QEMU_CALL_TIMEOUT_MS, "resuming", NULL, e);
}

int qemu_pause(struct vmm *v, struct err *e) {
        int r = step(v, "stop", NULL, QEMU_PAUSE_TIMEOUT_MS, "pausing", NULL, e);

        /* The STOP event comes before the answer, and after the disks were drained. */
        if (r == 0 && v->running)
                return err_set(e, ERR_VMM, -EPROTO, "pausing: QEMU says it is done but runs on");
        return r;
}

int qemu_state_setup(struct vmm *v, struct err *e) {
        /* only for the MIGRATION events of a load */
        return qmp_call(v->qmp, "migrate-set-capabilities",
                        json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "events", "state", 1), QEMU_START_TIMEOUT_MS,
                        NULL, e);
}

int qemu_state_recover(struct vmm *v, struct err *e) {
        char status[32];
        int r = query_status(v, status, sizeof(status), &v->running, e);

        if (r == 0)
                v->wants_state = strcmp(status, "inmigrate") == 0;
        return r;
}

/* ---- saving ---- */

/* Three commands at once: take the descriptor, save, let it go. The first error counts. */
static int save_into(struct vmm *v, int fd, struct err *e) {
        char path[32];
        struct {
                const char *command;
                json_t *args;
                int fd, timeout_ms;
        } steps[3];
        struct qmp_call calls[ARRAY_LEN(steps)];
        size_t n = 0;
        int r = 0;

        (void) snprintf(path, sizeof(path), "/dev/fdset/%d", QEMU_FDSET_STATE);
        steps[0].command = "add-fd";
        steps[0].args = json_pack("{s:i}", "fdset-id", QEMU_FDSET_STATE);
        steps[1].command = "xen-save-devices-state";
        /* live: false keeps it from handing the disks over to somebody else */
        steps[1].args = json_pack("{s:s, s:b}", "filename", path, "live", 0);
        steps[2].command = "remove-fd";
        steps[2].args = json_pack("{s:i}", "fdset-id", QEMU_FDSET_STATE);
        for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
                if (r < 0) {
                        json_decref(steps[i].args);
                        continue;
                }
                r = qmp_begin(v->qmp, &calls[i], steps[i].command, steps[i].args, i == 0 ? fd : -1, e);
                n += r == 0;
        }
        for (size_t i = 0; i < n; i++) {
                int one = qmp_finish(v->qmp, &calls[i], i == 1 ? QEMU_STATE_TIMEOUT_MS : QEMU_CALL_TIMEOUT_MS, NULL,
                                     r < 0 ? NULL : e);

                r = r < 0 ? r : one;
        }
        return r;
}

/* A write of at most PIPE_BUF bytes to a pipe that polls writable does not block, whatever its flags. */
static int write_slowly(int fd, const char *data, size_t len) {
        while (len > 0) {
                size_t chunk = MIN_OF(len, (size_t) PIPE_BUF);
                ssize_t n;
                int r = co_wait_fd(fd, EV_WRITE, QEMU_STATE_TIMEOUT_MS);

                if (r < 0)
                        return r;
                n = write(fd, data, chunk);
                if (n < 0 && errno != EAGAIN && errno != EINTR)
                        return -errno;
                if (n > 0) {
                        data += n;
                        len -= (size_t) n;
                }
        }
        return 0;
}

static int copy_out(int from, int to) {
        cleanup_free char *buf = malloc(COPY_CHUNK);
        struct stat st, dst;
        uint64_t off = 0;

        if (!buf)
                return -ENOMEM;
        if (fstat(from, &st) < 0 || fstat(to, &dst) < 0)
                return -errno;
        if (st.st_size == 0)
                return -ENODATA;
        if (st.st_size > STATE_MAX)
                return -EFBIG;
        while (off < (uint64_t) st.st_size) {
                size_t n = MIN_OF((uint64_t) st.st_size - off, COPY_CHUNK);
                int r = io_pread_full(from, buf, n, off);

                if (r == 0)
                        r = S_ISFIFO(dst.st_mode) || S_ISSOCK(dst.st_mode) ? write_slowly(to, buf, n) : io_write_full(to, buf, n);
                if (r < 0)
                        return r;
                off += n;
        }
        return 0;
}

int qemu_save_state(struct vmm *v, int fd, struct err *e) {
        static const char what[] = "saving the device state";
        cleanup_fd int mem = -1, wr = -1;
        char path[32];
        int r;

        if (v->running || v->wants_state)
                return err_set(e, ERR_STATE, -EINVAL, "%s: the VM is not paused", what);
        mem = memfd_create("forkd-vmstate", MFD_CLOEXEC);
        if (mem < 0)
                return err_errno(e, -errno, "%s", what);
        /* QEMU finds a descriptor in a set by its access mode: it must be open for writing only */
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", mem);
        wr = open(path, O_WRONLY | O_CLOEXEC);
        if (wr < 0)
                return err_errno(e, -errno, "%s", what);
        r = save_into(v, wr, e);
        if (r < 0)
                return qemu_step_failed(v, r, what, e);
        r = copy_out(mem, fd);
        return r < 0 ? err_errno(e, r, "%s", what) : 0;
}

/* ---- loading ---- */

static bool is_final(const json_t *data) {
        const char *s = get_status(data);

        return strcmp(s, "completed") == 0 || strcmp(s, "failed") == 0 || strcmp(s, "cancelled") == 0;
}

/* Hands QEMU the descriptor and tells it to read. */
static int begin_load(struct vmm *v, int fd, struct err *e) {
        json_t *uri = json_pack("{s:s}", "uri", "fd:" FD_NAME);
        struct qmp_call get, go;
        int r, r2;

        r = qmp_begin(v->qmp, &get, "getfd", json_pack("{s:s}", "fdname", FD_NAME), fd, e);
        if (r < 0) {
                json_decref(uri);
                return r;
        }
        r2 = qmp_begin(v->qmp, &go, "migrate-incoming", uri, -1, e);
        r = qmp_finish(v->qmp, &get, QEMU_CALL_TIMEOUT_MS, NULL, r2 < 0 ? NULL : e);
        if (r2 < 0)
                return r2;
        r2 = qmp_finish(v->qmp, &go, QEMU_CALL_TIMEOUT_MS, NULL, r < 0 ? NULL : e);
        return r < 0 ? r : r2;
}

int qemu_load_state(struct vmm *v, int fd, struct err *e) {
        static const char what[] = "loading the device state";
        struct qmp_watch w cleanup_qmp_watch = { 0 };
        cleanup_json json_t *data = NULL;
        int r;

        if (!v->wants_state)
                return err_set(e, ERR_STATE, -EINVAL, "%s: the VM was not started for it, or has one", what);
        qmp_watch_begin(v->qmp, &w, "MIGRATION", is_final);
        r = begin_load(v, fd, e);
        if (r == 0)
                r = qmp_watch_wait(&w, QEMU_STATE_TIMEOUT_MS, &data, e);
        /* A QEMU that cannot load its state ends: its log has the reason, its last event has not. */
        if (r == 0 && strcmp(get_status(data), "completed") != 0)
                r = -EPIPE;
        if (r < 0)
                return qemu_step_failed(v, r, what, e);
        if (v->running)
                return err_set(e, ERR_VMM, -EPROTO, "%s: the VM runs, though it was to stay paused", what);
        v->wants_state = false;
        return 0;
}
