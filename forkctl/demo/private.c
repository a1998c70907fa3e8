/* SPDX-License-Identifier: MIT */
/* Ends in order, whatever happened before: VMs, forkd, then a look of forkd's own program at what belongs to nobody any more, and at
 * mounts. A forkd that died is started again, for only it can take its VMs back and end them. */
#include "forkctl/demo/private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/json.h"
#include "common/spawn.h"
#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "setup/doctor.h"
#include "setup/setup.h"

#define STORE_BYTES (2ull << 30)
#define READY_MS 60000
#define END_S 60
#define MAX_ENV 512

extern char **environ;

/* ---- beginning ---- */

static int make_dir(struct private *p) {
        struct ctl *c = p->c;

        (void) strcpy(p->dir, "/tmp/forkd-demo-XXXXXX");
        if (!mkdtemp(p->dir)) {
                p->dir[0] = '\0';
                return err_errno(&c->e, -errno, "making a directory in /tmp");
        }
        (void) snprintf(p->state, sizeof(p->state), "%s/state", p->dir);
        (void) snprintf(p->run, sizeof(p->run), "%s/run", p->dir);
        (void) snprintf(p->conf, sizeof(p->conf), "%s/forkd.conf", p->dir);
        (void) snprintf(p->log, sizeof(p->log), "%s/forkd.log", p->dir);
        (void) snprintf(p->socket, sizeof(p->socket), "%s/forkd.sock", p->run);
        c->socket = p->socket;
        return 0;
}

/* In a plain chroot the root is no mount, and VMMs cannot be confined. */
static bool confinable(const struct private *p) {
        struct doctor_report *report = calloc(1, sizeof(*report));
        bool ok = true;

        if (report)
                doctor_run(&(struct doctor_params){ .state_dir = p->state, .socket = p->socket }, report);
        for (size_t i = 0; report && i < report->n; i++)
                if (strcmp(report->checks[i].name, "jail") == 0)
                        ok = report->checks[i].status == DOCTOR_OK;
        free(report);
        return ok;
}

static int write_config(struct private *p) {
        bool jail = confinable(p);
        char text[160];
        int r;

        if (!jail)
                (void) fputs("VMMs cannot be confined here ('forkctl doctor' tells why): they run without a jail\n", stderr);
        (void) snprintf(text, sizeof(text), "[metrics]\nlisten = 127.0.0.1:0\n%s", jail ? "" : "[security]\njail = off\n");
        r = io_write_file_atomic(AT_FDCWD, p->conf, text, strlen(text), 0600, false);
        return r < 0 ? err_errno(&p->c->e, r, "writing %s", p->conf) : 0;
}

/* Setup blocks, for as long as a download takes: signals are looked at here. */
static void on_progress(const char *step, const char *text, int percent, void *arg) {
        struct progress *p = arg;

        (void) event_base_loop(p->c->base, EVLOOP_NONBLOCK);
        progress_set(p, percent, text);
}

static int prepare(struct private *p) {
        cleanup_progress struct progress progress = { 0 };
        struct setup_params params = { .state_dir = p->state, .store_bytes = STORE_BYTES };
        struct setup_result *result = calloc(1, sizeof(*result));
        int r;

        progress_start(&progress, p->c, "setup");
        r = result ? setup_run(&params, on_progress, &progress, result, &p->c->e) : err_errno(&p->c->e, -ENOMEM, "setup");
        free(result);
        return r;
}

/* ---- forkd ---- */

/* sd_notify's protocol: forkd says READY=1 on a datagram socket that the environment names. */
static int notify_socket(const struct private *p, char *path, size_t size, int *ret) {
        struct sockaddr_un sa = { .sun_family = AF_UNIX };
        cleanup_fd int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        (void) snprintf(path, size, "%s/notify", p->dir);
        (void) unlink(path);
        if (fd < 0 || strlen(path) >= sizeof(sa.sun_path))
                return fd < 0 ? -errno : -ENAMETOOLONG;
        (void) strcpy(sa.sun_path, path);
        if (bind(fd, (struct sockaddr *) &sa, sizeof(sa)) < 0)
                return -errno;
        *ret = TAKE_FD(fd);
        return 0;
}

static int wait_ready(struct private *p, int notes) {
        uint64_t start = now_ns();
        char note[4096];

        for (;;) {
                struct pollfd fds[] = { { .fd = notes, .events = POLLIN }, { .fd = p->pidfd, .events = POLLIN } };
                int left = READY_MS - (int) ms_since(start), n = left > 0 ? poll(fds, ARRAY_LEN(fds), left) : 0;
                ssize_t len;

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return err_set(&p->c->e, ERR_TIMEOUT, -ETIMEDOUT, "forkd was not ready within %d s", READY_MS / 1000);
                if (!(fds[0].revents & POLLIN))
                        return err_set(&p->c->e, ERR_INTERNAL, -EIO, "forkd ended before it was ready");
                len = recv(notes, note, sizeof(note) - 1, MSG_DONTWAIT);
                note[MAX_OF(len, (ssize_t) 0)] = '\0';
                if (strstr(note, "READY=1"))
                        return 0;
        }
}

/* Ours, but what concerns a service manager above us. */
static void make_env(const char **env, const char *notify) {
        static const char *const not_ours[] = { "NOTIFY_SOCKET=", "WATCHDOG_", "LISTEN_" };
        size_t n = 0;

        env[n++] = notify;
        for (char **e = environ; *e && n < MAX_ENV; e++) {
                bool skip = false;

                for (size_t i = 0; i < ARRAY_LEN(not_ours); i++)
                        skip |= strncmp(*e, not_ours[i], strlen(not_ours[i])) == 0;
                if (!skip)
                        env[n++] = *e;
        }
        env[n] = NULL;
}

static int start_forkd(struct private *p) {
        char forkd[512], path[PRIVATE_MAX_PATH + 16], notify[PRIVATE_MAX_PATH + 40];
        const char *env[MAX_ENV + 1];
        const char *argv[] = { forkd, "--state-dir", p->state, "--run-dir", p->run, "--config", p->conf, NULL };
        cleanup_fd int notes = -1, log = -1;
        int r = forkd_program(forkd, sizeof(forkd));

        if (r < 0)
                return err_errno(&p->c->e, r, "forkd's program is not beside forkctl");
        r = notify_socket(p, path, sizeof(path), &notes);
        if (r < 0)
                return err_errno(&p->c->e, r, "making a socket in %s", p->dir);
        log = open(p->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (log < 0)
                return err_errno(&p->c->e, -errno, "opening %s", p->log);
        (void) snprintf(notify, sizeof(notify), "NOTIFY_SOCKET=%s", path);
        make_env(env, notify);
        struct spawn_fd fds[] = { { log, STDOUT_FILENO }, { log, STDERR_FILENO } };

        /* a session of its own: ^C is for us, who then end it in order */
        r = spawn_process(&(struct spawn_params){ .argv = argv,
                                                  .env = env,
                                                  .fds = fds,
                                                  .n_fds = ARRAY_LEN(fds),
                                                  .cgroup_fd = -1,
                                                  .new_session = true },
                          &p->pid, &p->pidfd);
        if (r < 0) {
                p->pid = 0;
                return err_errno(&p->c->e, r, "starting %s", forkd);
        }
        return wait_ready(p, notes);
}

int private_begin(struct private *p, struct ctl *c) {
        int r;

        *p = (struct private){ .c = c, .pidfd = -1 };
        if (geteuid() != 0) {
                (void) err_set(&c->e, ERR_FORBIDDEN, -EPERM, "forkd needs root (userfaultfd, mounts, cgroups)");
                return err_hint(&c->e, "try it as root: 'sudo make demo', or 'sudo forkctl demo'");
        }
        r = make_dir(p);
        if (r == 0)
                r = prepare(p);
        if (r == 0)
                r = write_config(p);
        return r == 0 ? start_forkd(p) : r;
}

/* ---- the end ---- */

static bool runs(const struct private *p) {
        struct pollfd pfd = { .fd = p->pidfd, .events = POLLIN };

        return p->pid && poll(&pfd, 1, 0) == 0;
}

/* Clones that wait in a pool are not listed among the VMs. */
static int rm_pools(struct ctl *c) {
        cleanup_json json_t *list = NULL;
        json_t *pool;
        size_t i;
        int r = ctl_call(c, "pool.list", NULL, &list);

        json_array_foreach (json_list(list, "pools"), i, pool)
                if (r == 0)
                        r = ctl_call_name(c, "pool.rm", "name", json_str(pool, "name", ""), NULL);
        return r;
}

static int stop_forkd(struct private *p) {
        cleanup_req struct req all;
        int r;

        req_init(&all);
        req_bool(&all, "all", true);
        ctl_hang_up(p->c);
        r = rm_pools(p->c);
        if (r == 0)
                r = ctl_call(p->c, "vm.rm", &all, NULL);
        /* What is busy with a call that was cut cannot be removed. It is waited for, and stopped then; its files go with the directory. */
        if (!p->c->closed)
                r = ctl_call(p->c, "shutdown", &all, NULL);
        if (r == 0)
                r = ctl_wait_close(p->c, END_S);
        ctl_hang_up(p->c);
        if (r == 0 && spawn_wait(p->pidfd, END_S * 1000, NULL) < 0)
                r = err_set(&p->c->e, ERR_TIMEOUT, -ETIMEDOUT, "it did not end within %d s", END_S);
        return r;
}

static void note(json_t *left, const char *what, const char *detail) {
        char text[600];

        (void) snprintf(text, sizeof(text), "%s %s", what, detail);
        (void) json_array_append_new(left, json_text(text, strlen(text)));
}

static void look_for_orphans(struct private *p, json_t *left) {
        cleanup_json json_t *found = NULL;
        json_t *o;
        size_t i;

        if (orphans_offline(p->c, p->state, p->run, true, &found) < 0)
                note(left, "unknown:", p->c->e.message);
        json_array_foreach (json_list(found, "orphans"), i, o)
                note(left, json_str(o, "kind", "?"), json_str(o, "what", "?"));
}

static void look_for_mounts(const struct private *p, json_t *left) {
        cleanup_fclose FILE *f = fopen("/proc/self/mounts", "re");
        size_t n = strlen(p->dir);
        char line[4096];

        while (f && fgets(line, sizeof(line), f)) {
                char *at = strchr(line, ' '), *end = at ? strchr(at + 1, ' ') : NULL;

                if (!end)
                        continue;
                *end = '\0';
                if (strncmp(at + 1, p->dir, n) == 0 && at[1 + n] == '/') {
                        note(left, "mount", at + 1);
                        (void) umount2(at + 1, MNT_DETACH);
                }
        }
}

void private_end(struct private *p, json_t **ret_left) {
        struct err before;
        json_t *left = json_array();

        if (!p->c || !p->dir[0]) {
                *ret_left = left;
                return;
        }
        before = p->c->e;
        if (p->pid && !runs(p)) {
                p->pidfd = close_fd(p->pidfd);
                if (start_forkd(p) < 0)
                        p->pid = 0;
        }
        if (p->pid && stop_forkd(p) < 0)
                note(left, "forkd:", p->c->e.message);
        p->pidfd = close_fd(p->pidfd);
        if (p->pid)
                look_for_orphans(p, left);
        look_for_mounts(p, left);
        p->c->e = before;
        if (io_remove_tree(AT_FDCWD, p->dir) < 0)
                note(left, "directory", p->dir);
        *ret_left = left;
}
