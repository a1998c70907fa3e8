/* SPDX-License-Identifier: MIT */
/* Running, pausing, and the device state.
 *
 * Theory of operation: device state is QEMU's migration stream with the capability x-ignore-shared: guest RAM
 * is a shared mapping as far as QEMU knows, and stays out of it. The stream goes to a descriptor that travels
 * with the `getfd` command. All that is asked of QEMU is sent at once, and its MIGRATION event ends the wait.
 *
 * One thing has no event: after "completed" the migration thread still has to leave the run state
 * "finish-migrate", in which `cont` is refused. It needs QEMU's big lock for that, which is free as soon as the
 * event is out, so one question is nearly always enough; the loop behind it is bounded. */
#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "forkd/vmm/qemu.h"

#define FD_NAME "state"

static int step(struct vmm *v, const char *command, json_t *args, int timeout_ms, const char *what, json_t **ret,
                struct err *e) {
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
        json_t *caps = json_pack("{s:[{s:s, s:b}, {s:s, s:b}]}", "capabilities", "capability", "x-ignore-shared", "state", 1,
                                 "capability", "events", "state", 1);
        json_t *params = json_pack("{s:I}", "max-bandwidth", (json_int_t) 1 << 60);
        struct qmp_call a, b;
        int r, r2;

        r = qmp_begin(v->qmp, &a, "migrate-set-capabilities", caps, -1, e);
        if (r < 0) {
                json_decref(params);
                return r;
        }
        r2 = qmp_begin(v->qmp, &b, "migrate-set-parameters", params, -1, e);
        r = qmp_finish(v->qmp, &a, QEMU_START_TIMEOUT_MS, NULL, r2 < 0 ? NULL : e);
        if (r2 < 0)
                return r2;
        r2 = qmp_finish(v->qmp, &b, QEMU_START_TIMEOUT_MS, NULL, r < 0 ? NULL : e);
        return r < 0 ? r : r2;
}

/* ---- a transfer ---- */

static bool is_final(const json_t *data) {
        const char *s = get_status(data);

        return strcmp(s, "completed") == 0 || strcmp(s, "failed") == 0 || strcmp(s, "cancelled") == 0;
}

/* Hands QEMU the descriptor and starts @command with it. */
static int begin_transfer(struct vmm *v, const char *command, int fd, struct err *e) {
        json_t *uri = json_pack("{s:s}", "uri", "fd:" FD_NAME);
        struct qmp_call get, go, drop;
        int r, r2;

        r = qmp_begin(v->qmp, &get, "getfd", json_pack("{s:s}", "fdname", FD_NAME), fd, e);
        if (r < 0) {
                json_decref(uri);
                return r;
        }
        r2 = qmp_begin(v->qmp, &go, command, uri, -1, e);
        r = qmp_finish(v->qmp, &get, QEMU_CALL_TIMEOUT_MS, NULL, r2 < 0 ? NULL : e);
        if (r2 < 0)
                return r2;
        r2 = qmp_finish(v->qmp, &go, QEMU_CALL_TIMEOUT_MS, NULL, r < 0 ? NULL : e);
        if (r == 0 && r2 == -EREMOTEIO &&
            qmp_begin(v->qmp, &drop, "closefd", json_pack("{s:s}", "fdname", FD_NAME), -1, NULL) == 0)
                (void) !qmp_finish(v->qmp, &drop, QEMU_CALL_TIMEOUT_MS, NULL, NULL);
        return r < 0 ? r : r2;
}

/* 0 when completed; else @e has QEMU's reason. */
static int wait_transfer(struct vmm *v, struct qmp_watch *w, struct err *e) {
        cleanup_json json_t *data = NULL, *info = NULL;
        char text[240];
        const char *s;
        int r;

        r = qmp_watch_wait(w, QEMU_STATE_TIMEOUT_MS, &data, e);
        if (r < 0)
                return r;
        if (strcmp(get_status(data), "completed") == 0)
                return 0;
        r = qmp_call(v->qmp, "query-migrate", NULL, QEMU_CALL_TIMEOUT_MS, &info, e);
        if (r < 0)
                return r;
        s = json_string_value(json_object_get(info, "error-desc"));
        if (!s)
                s = "QEMU gives no reason";
        return err_set(e, ERR_VMM, -EIO, "%s", qmp_printable(s, strlen(s), text, sizeof(text)));
}

/* Waits until QEMU has left the state of a transfer that ended, or that was told to end. */
static int settle(struct vmm *v, struct err *e) {
        uint64_t start = now_ns();
        char status[32];
        bool running;
        int r;

        for (int pause_ms = 0;; pause_ms = MIN_OF(pause_ms + 1, 50)) {
                if (pause_ms > 0)
                        co_sleep(pause_ms);
                r = query_status(v, status, sizeof(status), &running, e);
                if (r < 0)
                        return r;
                if (strcmp(status, "finish-migrate") != 0)
                        return 0;
                if (ms_since(start) > QEMU_CANCEL_TIMEOUT_MS)
                        return err_set(e, ERR_TIMEOUT, -ETIMEDOUT, "QEMU does not finish its state transfer");
        }
}

/* After an error: stops what may still go on, so that the VM can be resumed. */
static void cancel_transfer(struct vmm *v) {
        struct qmp_watch w cleanup_qmp_watch = { 0 };
        cleanup_json json_t *info = NULL;
        const char *s;

        if (!qmp_is_open(v->qmp))
                return;
        qmp_watch_begin(v->qmp, &w, "MIGRATION", is_final);
        if (qmp_call(v->qmp, "migrate_cancel", NULL, QEMU_CALL_TIMEOUT_MS, NULL, NULL) < 0 ||
            qmp_call(v->qmp, "query-migrate", NULL, QEMU_CALL_TIMEOUT_MS, &info, NULL) < 0)
                return;
        s = get_status(info);
        if (strcmp(s, "setup") == 0 || strcmp(s, "active") == 0 || strcmp(s, "device") == 0 || strcmp(s, "cancelling") == 0)
                (void) !qmp_watch_wait(&w, QEMU_CANCEL_TIMEOUT_MS, NULL, NULL);
        (void) settle(v, NULL);
}

int qemu_state_recover(struct vmm *v, struct err *e) {
        cleanup_json json_t *info = NULL;
        char status[32];
        int r;

        r = query_status(v, status, sizeof(status), &v->running, e);
        if (r < 0)
                return r;
        v->wants_state = strcmp(status, "inmigrate") == 0;
        r = step(v, "query-migrate", NULL, QEMU_CALL_TIMEOUT_MS, "asking QEMU for its state", &info, e);
        if (r < 0)
                return r;
        if (!v->wants_state && get_status(info)[0] && !is_final(info))
                cancel_transfer(v);
        return v->wants_state ? 0 : settle(v, e);
}

int qemu_save_state(struct vmm *v, int fd, struct err *e) {
        static const char what[] = "saving the device state";
        struct qmp_watch w cleanup_qmp_watch = { 0 };
        int r;

        if (v->running || v->wants_state)
                return err_set(e, ERR_STATE, -EINVAL, "%s: the VM is not paused", what);
        qmp_watch_begin(v->qmp, &w, "MIGRATION", is_final);
        r = begin_transfer(v, "migrate", fd, e);
        if (r == 0)
                r = wait_transfer(v, &w, e);
        if (r < 0) {
                r = qemu_step_failed(v, r, what, e);
                cancel_transfer(v);
                return r;
        }
        r = settle(v, e);
        return r < 0 ? qemu_step_failed(v, r, what, e) : 0;
}

int qemu_load_state(struct vmm *v, int fd, struct err *e) {
        static const char what[] = "loading the device state";
        struct qmp_watch w cleanup_qmp_watch = { 0 };
        int r;

        if (!v->wants_state)
                return err_set(e, ERR_STATE, -EINVAL, "%s: the VM was not started for it, or has one", what);
        qmp_watch_begin(v->qmp, &w, "MIGRATION", is_final);
        r = begin_transfer(v, "migrate-incoming", fd, e);
        if (r == 0)
                r = wait_transfer(v, &w, e);
        /* A QEMU that cannot load its state ends; its log has the reason, its last event has not. */
        if (r == -EIO)
                r = -EPIPE;
        if (r < 0)
                return qemu_step_failed(v, r, what, e);
        if (v->running)
                return err_set(e, ERR_VMM, -EPROTO, "%s: the VM runs, though it was to stay paused", what);
        v->wants_state = false;
        return 0;
}
