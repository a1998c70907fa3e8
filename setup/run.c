/* SPDX-License-Identifier: MIT */
/* stdout and stderr go to memfds, not pipes: the child can never block on us, and nothing has to be read
 * while it runs. These programs are the distribution's own; what they print is bounded when it is read. */
#include "setup/run.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/spawn.h"

#define TICK_MS 250

int run_find(const char *name, char *buf, size_t size) {
        static const char *const dirs[] = { "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin" };

        if (strchr(name, '/')) {
                if (access(name, X_OK) < 0)
                        return -errno;
                return (size_t) snprintf(buf, size, "%s", name) < size ? 0 : -ENAMETOOLONG;
        }
        for (size_t i = 0; i < ARRAY_LEN(dirs); i++) {
                char path[PATH_MAX];

                (void) snprintf(path, sizeof(path), "%s/%s", dirs[i], name);
                if (access(path, X_OK) == 0)
                        return (size_t) snprintf(buf, size, "%s", path) < size ? 0 : -ENAMETOOLONG;
        }
        return -ENOENT;
}

static int read_back(int fd, size_t max, char **ret) {
        struct stat st;
        if (fstat(fd, &st) < 0)
                return -errno;

        size_t len = MIN_OF((size_t) st.st_size, max);
        size_t skip = (size_t) st.st_size - len; /* of too much, the end tells more */
        cleanup_free char *s = malloc(len + 1);
        if (!s)
                return -ENOMEM;
        int r = io_pread_full(fd, s, len, skip);
        if (r < 0)
                return r;
        s[len] = '\0';
        *ret = TAKE_PTR(s);
        return 0;
}

/* "exit 100: E: Unable to locate package x": the last line with anything in it. */
static int describe(struct err *e, const char *name, int status, int err_fd) {
        cleanup_free char *text = NULL;
        const char *line = "";

        if (read_back(err_fd, 4096, &text) == 0) {
                char *end = text + strlen(text);
                while (end > text && (end[-1] == '\n' || end[-1] == ' ' || end[-1] == '\r'))
                        *--end = '\0';
                char *nl = strrchr(text, '\n');
                line = nl ? nl + 1 : text;
        }
        if (WIFSIGNALED(status))
                return err_set(e, ERR_IO, -EIO, "%s was killed by signal %d", name, WTERMSIG(status));
        return err_set(e, ERR_IO, -EIO, "%s failed (exit %d)%s%.200s", name, WEXITSTATUS(status), *line ? ": " : "", line);
}

static int wait_ticking(const struct run_params *p, int pidfd, int *ret_status) {
        uint64_t start = now_ns();

        for (;;) {
                double left = p->timeout_ms - ms_since(start);
                if (left <= 0)
                        return -ETIMEDOUT;
                int r = spawn_wait(pidfd, (int) MIN_OF(left + 1, (double) TICK_MS), ret_status);
                if (r != -ETIMEDOUT)
                        return r;
                if (p->tick)
                        p->tick(p->tick_arg);
        }
}

int run_program(const struct run_params *params, char **ret_output, struct err *e) {
        const char *slash = strrchr(params->argv[0], '/');
        const char *name = slash ? slash + 1 : params->argv[0];
        char path[PATH_MAX];
        const char *argv[32] = { path };
        size_t n = 1;

        int r = run_find(params->argv[0], path, sizeof(path));
        if (r < 0)
                return err_set(e, ERR_UNSUPPORTED, r, "the program '%s' is not installed", name);
        for (; params->argv[n]; n++) {
                if (n + 1 >= ARRAY_LEN(argv))
                        return err_set(e, ERR_INTERNAL, -E2BIG, "too many arguments for %s", name);
                argv[n] = params->argv[n];
        }

        cleanup_fd int out = memfd_create("stdout", MFD_CLOEXEC), err = memfd_create("stderr", MFD_CLOEXEC);
        if (out < 0 || err < 0)
                return err_errno(e, -errno, "cannot run %s", name);

        const struct spawn_fd fds[] = { { params->stdout_fd > 0 ? params->stdout_fd : out, STDOUT_FILENO },
                                        { err, STDERR_FILENO } };
        const struct spawn_params sp = {
                .argv = argv,
                .fds = fds,
                .n_fds = ARRAY_LEN(fds),
                .cgroup_fd = -1,
                .death_signal = SIGKILL, /* a setup that is interrupted leaves no apt behind */
        };
        cleanup_fd int pidfd = -1;
        pid_t pid;
        int status = 0;

        r = spawn_process(&sp, &pid, &pidfd);
        if (r < 0)
                return err_errno(e, r, "cannot run %s", path);
        r = wait_ticking(params, pidfd, &status);
        if (r < 0) {
                int k = spawn_kill(pidfd, SIGKILL);
                if (k == 0)
                        k = spawn_wait(pidfd, -1, NULL);
                if (k < 0)
                        return err_errno(e, k, "cannot end %s", name);
                if (r == -ETIMEDOUT)
                        return err_set(e, ERR_TIMEOUT, r, "%s did not end within %d s", name, params->timeout_ms / 1000);
                return err_errno(e, r, "cannot wait for %s", name);
        }
        if (status != 0)
                return describe(e, name, status, err);
        if (!ret_output)
                return 0;
        r = read_back(out, RUN_MAX_OUTPUT, ret_output);
        return r < 0 ? err_errno(e, r, "cannot read the output of %s", name) : 0;
}
