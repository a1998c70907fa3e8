/* SPDX-License-Identifier: MIT */
/* `doctor --orphans`: what a forkd has left that belongs to nobody. A running forkd is asked; where there is none its own
 * binary looks, which takes the state directory's lock meanwhile, so that none starts under its hands. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "common/ids.h"
#include "common/io.h"
#include "common/spawn.h"
#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "common/json.h"
#include "forkctl/table.h"
#include "setup/setup.h"

#define HELPER_TIMEOUT_MS 120000 /* processes that do not want to end are given seconds each */
#define HELPER_MAX_BYTES (16u << 20)

int forkd_program(char *buf, size_t size) {
        static const char *const dirs[] = { "", "../sbin/" };
        char dir[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", dir, sizeof(dir) - 1);
        char *slash;

        if (n < 0)
                return -errno;
        dir[n] = '\0';
        slash = strrchr(dir, '/');
        if (!slash)
                return -ENOENT;
        *slash = '\0';
        for (size_t i = 0; i < ARRAY_LEN(dirs); i++)
                if ((size_t) snprintf(buf, size, "%s/%sforkd", dir, dirs[i]) < size && access(buf, X_OK) == 0)
                        return 0;
        return -ENOENT;
}

static int read_all(int fd, char **ret, size_t *ret_len) {
        cleanup_free char *buf = malloc(HELPER_MAX_BYTES);
        ssize_t n;

        if (!buf)
                return -ENOMEM;
        n = io_read_full(fd, buf, HELPER_MAX_BYTES);
        if (n < 0)
                return (int) n;
        *ret_len = (size_t) n;
        *ret = TAKE_PTR(buf);
        return 0;
}

static int run_helper(struct ctl *c, const char *const *argv, json_t **ret) {
        cleanup_fd int read_fd = -1, write_fd = -1, pidfd = -1;
        cleanup_free char *text = NULL;
        int fds[2], r;
        size_t len = 0;
        pid_t pid;

        if (pipe(fds) < 0)
                return err_errno(&c->e, -errno, "starting %s", argv[0]);
        read_fd = fds[0];
        write_fd = fds[1];
        struct spawn_fd keep[] = { { write_fd, STDOUT_FILENO }, { STDERR_FILENO, STDERR_FILENO } };

        r = spawn_process(&(struct spawn_params){ .argv = argv, .fds = keep, .n_fds = ARRAY_LEN(keep), .cgroup_fd = -1 }, &pid,
                          &pidfd);
        write_fd = close_fd(write_fd);
        if (r < 0)
                return err_errno(&c->e, r, "starting %s", argv[0]);
        r = read_all(read_fd, &text, &len);
        if (r == 0)
                r = spawn_wait(pidfd, HELPER_TIMEOUT_MS, NULL);
        if (r < 0)
                return err_errno(&c->e, r, "listening to %s", argv[0]);
        *ret = json_loadb(text, len, 0, NULL);
        return *ret ? 0 : err_set(&c->e, ERR_PROTOCOL, -EPROTO, "%s said nothing that makes sense", argv[0]);
}

int orphans_offline(struct ctl *c, const char *state_dir, const char *run_dir, bool fix, json_t **ret) {
        char forkd[PATH_MAX];
        const char *argv[] = { forkd, "--orphans", "--state-dir", state_dir, "--run-dir", run_dir, fix ? "--fix" : NULL, NULL };
        const json_t *error;
        int r;

        r = forkd_program(forkd, sizeof(forkd));
        if (r < 0)
                return err_errno(&c->e, r, "no forkd runs at %s, and its program is not beside forkctl", c->socket);
        r = run_helper(c, argv, ret);
        if (r < 0)
                return r;
        error = json_object_get(*ret, "error");
        if (!error)
                return 0;
        r = err_set(&c->e, json_str(error, "code", ERR_INTERNAL), -EREMOTEIO, "%s", json_str(error, "message", "?"));
        (void) err_hint(&c->e, "%s", json_str(error, "hint", ""));
        json_decref(TAKE_PTR(*ret));
        return r;
}

static int ask_helper(struct ctl *c, const struct args *a, json_t **ret) {
        const char *env = getenv("FORKD_STATE_DIR"), *state = arg_str(a, "state-dir");
        char run_dir[PATH_MAX], *slash;

        (void) snprintf(run_dir, sizeof(run_dir), "%s", c->socket);
        slash = strrchr(run_dir, '/');
        if (!slash)
                (void) strcpy(run_dir, ".");
        else
                *(slash == run_dir ? slash + 1 : slash) = '\0';
        return orphans_offline(c, state ? state : env && *env ? env : SETUP_STATE_DEFAULT, run_dir, arg_given(a, "fix"), ret);
}

static int print_json(struct ctl *c, json_t *found, bool ok) {
        cleanup_json json_t *doc = json_pack("{s:b, s:O, s:I}", "ok", ok, "orphans", json_list(found, "orphans"), "fixed",
                                             (json_int_t) json_num(found, "fixed", 0));

        return doc ? ctl_print(c, doc) : err_errno(&c->e, -ENOMEM, "telling the result");
}

static int print_text(struct ctl *c, const json_t *found, bool ok, bool fix) {
        static const char *const head[] = { "KIND", "WHAT", "DETAIL", "" };
        cleanup_table struct table t = { 0 };
        json_t *o;
        size_t i;
        int r = 0;

        table_init(&t, head, ARRAY_LEN(head));
        json_array_foreach (json_list(found, "orphans"), i, o) {
                table_cell(&t, "%s", json_str(o, "kind", "?"));
                table_cell(&t, "%s", json_str(o, "what", "?"));
                table_cell(&t, "%s", json_str(o, "detail", ""));
                table_cell(&t, "%s", json_is_true(json_object_get(o, "fixed")) ? "removed" : fix ? "still there" : "");
        }
        if (json_array_size(json_list(found, "orphans")) > 0)
                r = table_print(&t, stdout);
        if (r < 0)
                return err_errno(&c->e, r, "telling the result");
        if (json_num(found, "found", 0) == 0)
                puts("nothing lies about");
        else if (!ok && !fix)
                puts("nobody needs these: 'forkctl doctor --orphans --fix' removes them");
        else if (!ok)
                puts("not all could be removed: the log of forkd says why");
        return 0;
}

int cmd_orphans(struct ctl *c, const struct args *a) {
        cleanup_json json_t *found = NULL;
        bool fix = arg_given(a, "fix"), ok;
        cleanup_req struct req q;
        int r;

        req_init(&q);
        req_bool(&q, "fix", fix);
        r = ctl_call(c, "orphans", &q, &found);
        if (r < 0 && strcmp(c->e.code, ERR_UNREACHABLE) == 0)
                r = ask_helper(c, a, &found);
        if (r < 0)
                return r;
        ok = json_num(found, "found", 1) <= json_num(found, "fixed", 0);
        r = c->json ? print_json(c, found, ok) : print_text(c, found, ok, fix);
        return r < 0 ? r : ok ? CTL_EXIT_OK : CTL_EXIT_FAILED;
}
