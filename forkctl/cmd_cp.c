/* SPDX-License-Identifier: MIT */
/* Theory of operation: `cp`
 *
 * Into a guest: vm.put wants the size first, so standard input that is no regular file is spooled to an
 * unnamed temporary file. Out of a guest: the bytes go to a temporary file beside the target, which replaces
 * the target when all of them are there; a copy that breaks off leaves the old file as it was. A target that
 * is no regular file (a device, a pipe) is written directly. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/ids.h"
#include "common/io.h"
#include "forkctl/commands.h"
#include "common/json.h"
#include "forkctl/progress.h"
#include "forkctl/stream.h"
#include "forkctl/table.h"

#define GUEST_PATH_MAX 4096 /* Linux's PATH_MAX */

/* One side of the copy. */
struct side {
        bool remote;
        char vm[NAME_MAX_LEN + 1];
        const char *path; /* points into argv; "-" of a local side is a standard stream */
};

/* NAME:PATH is a name, a colon, and a path; ./a:b and /a:b are files. */
static struct side parse_side(const char *s) {
        struct side ret = { .path = s };
        size_t n = strcspn(s, ":/");

        if (s[n] != ':' || n == 0 || n > NAME_MAX_LEN)
                return ret;
        memcpy(ret.vm, s, n);
        ret.vm[n] = '\0';
        if (!name_valid(ret.vm))
                return ret;
        ret.remote = true;
        ret.path = s + n + 1;
        return ret;
}

static const char *base_name(const char *path) {
        const char *slash = strrchr(path, '/');

        return slash ? slash + 1 : path;
}

static bool is_std(const struct side *s) {
        return !s->remote && strcmp(s->path, "-") == 0;
}

/* ---- into a guest ---- */

static int spool_stdin(struct ctl *c, FILE **ret) {
        cleanup_fclose FILE *f = tmpfile();
        char buf[65536];
        ssize_t n;
        int r;

        if (!f)
                return err_errno(&c->e, -errno, "making a temporary file");
        for (;;) {
                n = io_read_full(STDIN_FILENO, buf, sizeof(buf));
                if (n < 0)
                        return err_errno(&c->e, (int) n, "reading the input");
                if (n == 0)
                        break;
                r = io_write_full(fileno(f), buf, (size_t) n);
                if (r < 0)
                        return err_errno(&c->e, r, "writing a temporary file");
        }
        if (lseek(fileno(f), 0, SEEK_SET) < 0)
                return err_errno(&c->e, -errno, "rewinding a temporary file");
        *ret = TAKE_PTR(f);
        return 0;
}

static int refuse_directory(struct ctl *c, const char *path) {
        (void) err_set(&c->e, ERR_UNSUPPORTED, -EISDIR, "%.200s is a directory, and cp copies files", path);
        return err_hint(&c->e, "pack it: tar -c DIR | forkctl exec -i NAME -- tar -x -C TARGET");
}

/* Opens the source; *ret_size is what is left to read, *ret_spool keeps a temporary file open. */
static int open_source(struct ctl *c, const struct side *src, int *ret_fd, struct stat *ret_st, uint64_t *ret_size,
                       FILE **ret_spool) {
        cleanup_fclose FILE *spool = NULL;
        cleanup_fd int fd = -1;
        struct stat st;
        off_t pos = 0;
        int r;

        fd = is_std(src) ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3) : open(src->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0 || fstat(fd, &st) < 0)
                return err_errno(&c->e, -errno, "opening %.200s", src->path);
        if (S_ISDIR(st.st_mode))
                return refuse_directory(c, src->path);
        if (!S_ISREG(st.st_mode) && !is_std(src)) {
                (void) err_set(&c->e, ERR_UNSUPPORTED, -EINVAL, "%.200s is no regular file", src->path);
                return err_hint(&c->e, "to copy what it holds: forkctl cp - NAME:PATH < FILE");
        }
        if (!S_ISREG(st.st_mode)) {
                r = spool_stdin(c, &spool);
                if (r < 0)
                        return r;
                fd = close_fd(fd);
                fd = fcntl(fileno(spool), F_DUPFD_CLOEXEC, 3);
                if (fd < 0 || fstat(fd, &st) < 0)
                        return err_errno(&c->e, -errno, "opening a temporary file");
                st.st_mode = 0644;
        } else if (is_std(src)) {
                pos = lseek(fd, 0, SEEK_CUR);
        }
        *ret_size = st.st_size > pos && pos >= 0 ? (uint64_t) (st.st_size - pos) : 0;
        *ret_st = st;
        *ret_fd = TAKE_FD(fd);
        *ret_spool = TAKE_PTR(spool);
        return 0;
}

/* TARGET/ means: into that directory, under the name that the file has here. */
static int guest_target(struct ctl *c, const struct args *a, const struct side *src, const struct side *dst, char *buf,
                        size_t size) {
        size_t n = strlen(dst->path);
        bool dir = n > 0 && dst->path[n - 1] == '/';

        if (n == 0)
                return usage_error(c, a->cmd, "the guest's side has no path");
        if (dir && is_std(src))
                return usage_error(c, a->cmd, "%.80s is a directory, and stdin has no name", dst->path);
        if ((size_t) snprintf(buf, size, "%s%s", dst->path, dir ? base_name(src->path) : "") >= size)
                return err_errno(&c->e, -ENAMETOOLONG, "guest path %.80s", dst->path);
        return 0;
}

static int copy_in(struct ctl *c, const struct args *a, const struct side *src, const struct side *dst) {
        cleanup_streams struct streams s = { 0 };
        cleanup_progress struct progress p = { 0 };
        cleanup_fclose FILE *spool = NULL;
        char path[GUEST_PATH_MAX], size[32];
        cleanup_req struct req q;
        cleanup_fd int fd = -1;
        struct stat st = { 0 };
        uint64_t len = 0;
        int r;

        req_init(&q);
        r = guest_target(c, a, src, dst, path, sizeof(path));
        if (r == 0)
                r = open_source(c, src, &fd, &st, &len, &spool);
        if (r < 0)
                return r;
        streams_init(&s, c);
        s.in_fd = fd;
        s.left = len;
        s.exact = true;
        req_str(&q, "name", dst->vm);
        req_str(&q, "path", path);
        req_u64(&q, "mode", st.st_mode & 0777);
        req_u64(&q, "size", len);
        progress_start(&p, c, "copying %s", base_name(src->path));
        progress_bytes(&p, &s.sent, &len);
        r = streams_start(&s, "vm.put", &q);
        if (r == 0)
                r = streams_run(&s);
        progress_end(&p);
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, s.result);
        if (!is_std(src))
                printf("%s to %s:%s\n", size_format(len, size, sizeof(size)), dst->vm, path);
        return 0;
}

/* ---- out of a guest ---- */

/* Where the bytes go: a descriptor, and for a regular file the names to rename at the end. */
struct target {
        int fd;
        char *tmp, *path;
};

static void target_clear(struct target *t) {
        t->fd = close_fd(t->fd);
        if (t->tmp)
                (void) unlink(t->tmp);
        free(t->tmp);
        free(t->path);
}
#define cleanup_target attr_cleanup(target_clear)

/* The file itself: with the guest's name in a directory, behind symbolic links. */
static int target_path(struct ctl *c, const struct side *src, const struct side *dst, char **ret) {
        cleanup_free char *path = NULL;
        struct stat st;
        bool dir = stat(dst->path, &st) == 0 && S_ISDIR(st.st_mode);
        char *real;

        if (asprintf(&path, "%s%s%s", dst->path, dir ? "/" : "", dir ? base_name(src->path) : "") < 0) {
                path = NULL;
                return err_errno(&c->e, -ENOMEM, "copying");
        }
        real = realpath(path, NULL);
        *ret = real ? real : TAKE_PTR(path);
        return 0;
}

static int target_open(struct ctl *c, const struct side *src, const struct side *dst, struct target *t) {
        struct stat st;
        int r;

        if (is_std(dst)) {
                t->fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
                return t->fd < 0 ? err_errno(&c->e, -errno, "opening the output") : 0;
        }
        r = target_path(c, src, dst, &t->path);
        if (r < 0)
                return r;
        if (stat(t->path, &st) == 0 && S_ISDIR(st.st_mode))
                return refuse_directory(c, t->path);
        if (stat(t->path, &st) == 0 && !S_ISREG(st.st_mode)) {
                t->fd = open(t->path, O_WRONLY | O_CLOEXEC);
                return t->fd < 0 ? err_errno(&c->e, -errno, "opening %.200s", t->path) : 0;
        }
        if (asprintf(&t->tmp, "%s.XXXXXX", t->path) < 0) {
                t->tmp = NULL;
                return err_errno(&c->e, -ENOMEM, "copying");
        }
        t->fd = mkostemp(t->tmp, O_CLOEXEC);
        if (t->fd < 0) {
                r = -errno;
                free(TAKE_PTR(t->tmp)); /* nothing there to remove */
                return err_errno(&c->e, r, "creating %.200s", t->path);
        }
        return ctl_partial(c, t->tmp);
}

static int target_finish(struct ctl *c, struct target *t, uint64_t mode) {
        mode_t mask;

        if (!t->tmp)
                return 0;
        mask = umask(0);
        (void) umask(mask);
        /* set-uid and friends stay in the guest */
        if (fchmod(t->fd, (mode_t) (mode & 0777) & ~mask) < 0 || rename(t->tmp, t->path) < 0)
                return err_errno(&c->e, -errno, "writing %.200s", t->path);
        free(TAKE_PTR(t->tmp));
        return ctl_partial(c, NULL);
}

static int copy_out(struct ctl *c, const struct args *a, const struct side *src, const struct side *dst) {
        cleanup_target struct target t = { .fd = -1 };
        cleanup_streams struct streams s = { 0 };
        cleanup_progress struct progress p = { 0 };
        cleanup_req struct req q;
        struct sink *out;
        char size[32];
        int r;

        req_init(&q);
        if (c->json && is_std(dst))
                return usage_error(c, a->cmd, "with --json stdout cannot take the file too");
        if (!*base_name(src->path))
                return refuse_directory(c, src->path);
        r = ctl_connect(c); /* before a temporary file is made */
        if (r == 0)
                r = target_open(c, src, dst, &t);
        if (r < 0)
                return r;
        streams_init(&s, c);
        r = streams_sink(&s, t.fd, &out);
        if (r < 0)
                return r;
        s.out[1].sink = out;
        req_str(&q, "name", src->vm);
        req_str(&q, "path", src->path);
        progress_start(&p, c, "copying %s", base_name(src->path));
        progress_bytes(&p, &s.out[1].total, &s.file_size);
        r = streams_start(&s, "vm.get", &q);
        if (r == 0)
                r = streams_run(&s);
        progress_end(&p);
        if (r < 0)
                return s.pipe_closed && is_std(dst) ? CTL_EXIT_SIGNAL + SIGPIPE : r;
        if (s.out[1].total != json_u64(s.result, "bytes", 0))
                return err_set(&c->e, ERR_PROTOCOL, -EPROTO, "%llu bytes came, but forkd sent %llu",
                               (unsigned long long) s.out[1].total, (unsigned long long) json_u64(s.result, "bytes", 0));
        r = target_finish(c, &t, json_u64(s.result, "mode", 0644));
        if (r < 0)
                return r;
        if (c->json)
                return ctl_print(c, s.result);
        if (!is_std(dst))
                printf("%s to %s\n", size_format(s.out[1].total, size, sizeof(size)), t.path);
        return 0;
}

int cmd_cp(struct ctl *c, const struct args *a) {
        struct side src = parse_side(a->pos[0]), dst = parse_side(a->pos[1]);

        if (src.remote == dst.remote) {
                (void) usage_error(c, a->cmd,
                                   src.remote ? "cp copies between the host and a guest, not between two guests"
                                              : "neither side is a guest's NAME:PATH");
                if (src.remote)
                        (void) err_hint(&c->e, "in two steps: forkctl cp %.60s:… - | forkctl cp - %.60s:…", src.vm, dst.vm);
                return -EINVAL;
        }
        return src.remote ? copy_out(c, a, &src, &dst) : copy_in(c, a, &src, &dst);
}
