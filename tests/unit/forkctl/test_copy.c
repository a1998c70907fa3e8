/* SPDX-License-Identifier: MIT */
/* `cp`: files whole or not at all, in both directions. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "fake_forkd.h"
#include "common/json.h"
#include "forkctl/stream.h"

/* The guest's file, read or written. */
struct file {
        struct rpc_conn *conn;
        uint32_t call;
        const char *data; /* vm.get: what is in it */
        size_t size, sent, credit;
        const char *claim; /* vm.get: the answer; NULL: an honest one */
        bool die_half_way, answered;
        struct run *kill; /* vm.get: everything but the end is sent, then that one gets SIGTERM */

        char *got; /* vm.put: what came */
        size_t n_got;
        uint64_t promised;
        bool eof;
};

static void note(struct file *g, const char *method, const void *data, size_t len) {
        char json[64];

        (void) snprintf(json, sizeof(json), "{\"call\":%u,\"stream\":1}", g->call);
        fake_notify(g->conn, method, json, data, len);
}

static void send_some(struct file *g) {
        char json[96];

        while (g->sent < g->size && g->credit > 0) {
                size_t n = MIN_OF(MIN_OF(g->size - g->sent, g->credit), (size_t) STREAM_MAX_CHUNK);

                if (g->die_half_way && g->sent >= g->size / 2) {
                        rpc_conn_close(g->conn);
                        return;
                }
                note(g, "stream.data", g->data + g->sent, n);
                g->sent += n;
                g->credit -= n;
        }
        if (g->sent < g->size || g->kill || g->answered)
                return;
        g->answered = true; /* a credit may still come */
        note(g, "stream.eof", NULL, 0);
        (void) snprintf(json, sizeof(json), "{\"bytes\":%zu,\"mode\":%d}", g->size, 04755);
        fake_reply_on(g->conn, g->call, g->claim ? g->claim : json);
}

static void take_put(struct file *g, const struct rpc_msg *m) {
        const void *data;
        char json[96];
        size_t len;

        if (strcmp(m->method, "stream.data") == 0) {
                assert_int_equal(mp_get_bin(m->params, "data", &data, &len), 0);
                g->got = realloc(g->got, g->n_got + len + 1);
                memcpy(g->got + g->n_got, data, len);
                g->n_got += len;
                (void) snprintf(json, sizeof(json), "{\"call\":%u,\"stream\":0,\"bytes\":%zu}", g->call, len);
                fake_notify(g->conn, "stream.credit", json, NULL, 0);
        } else if (strcmp(m->method, "stream.eof") == 0) {
                g->eof = true;
                (void) snprintf(json, sizeof(json), "{\"bytes\":%zu}", g->n_got);
                fake_reply_on(g->conn, g->call, json);
        }
}

static void on_file(struct fake *f, struct rpc_msg *m) {
        struct file *g = f->arg;
        uint64_t bytes = 0;

        if (m->is_request) {
                g->conn = m->conn;
                g->call = m->msgid;
                g->credit = STREAM_WINDOW;
                if (strcmp(m->method, "vm.get") == 0)
                        send_some(g);
                else
                        assert_int_equal(mp_get_u64(m->params, "size", &g->promised), 0);
                if (g->kill)
                        assert_int_equal(kill(g->kill->pid, SIGTERM), 0);
        } else if (strcmp(m->method, "stream.credit") == 0) {
                assert_int_equal(mp_get_u64(m->params, "bytes", &bytes), 0);
                g->credit += bytes;
                send_some(g);
        } else {
                take_put(g, m);
        }
}

struct fixture {
        struct fake *f;
        struct file g;
        struct run r;
        char path[128];
        char *big;
        size_t n_big;
};

static int setup(void **state) {
        struct fixture *x = calloc(1, sizeof(*x));

        x->f = fake_new();
        x->f->handler = on_file;
        x->f->arg = &x->g;
        (void) snprintf(x->path, sizeof(x->path), "%s/file", x->f->dir);
        x->n_big = (1u << 20) + 77;
        x->big = malloc(x->n_big);
        for (size_t i = 0; i < x->n_big; i++)
                x->big[i] = (char) (i * 7 + (i >> 10));
        *state = x;
        return 0;
}

static int teardown(void **state) {
        struct fixture *x = *state;

        fake_free(x->f);
        free(x->g.got);
        free(x->big);
        run_clear(&x->r);
        free(x);
        return 0;
}

static void file_is(const char *path, const void *want, size_t size) {
        cleanup_free char *data = NULL;
        size_t len;

        assert_int_equal(io_read_file(AT_FDCWD, path, 16u << 20, &data, &len), 0);
        assert_int_equal(len, size);
        assert_memory_equal(data, want, size);
}

static void make_file(const char *path, const void *data, size_t len, mode_t mode) {
        assert_int_equal(io_write_file_atomic(AT_FDCWD, path, data, len, mode, false), 0);
}

/* Only the socket and @expected files are in the directory: no temporary file stayed. */
static void dir_holds(struct fixture *x, size_t expected) {
        DIR *d = opendir(x->f->dir);
        size_t n = 0;

        assert_non_null(d);
        for (struct dirent *e; (e = readdir(d));)
                n += e->d_name[0] != '.';
        (void) closedir(d);
        assert_int_equal(n, 1 + expected);
}

static void test_out(void **state) {
        struct fixture *x = *state;
        struct stat st;
        mode_t old = umask(022);

        x->g.data = x->big;
        x->g.size = x->n_big;
        RUN(x->f, &x->r, "cp", "web:/etc/big", x->path);
        (void) umask(old);
        assert_int_equal(x->r.status, 0);
        assert_non_null(strstr(x->r.out, "1.0 MiB to "));
        assert_string_equal(x->f->log, "vm.get {\"name\": \"web\", \"path\": \"/etc/big\"}\n");
        file_is(x->path, x->big, x->n_big);
        assert_int_equal(stat(x->path, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0755); /* without set-uid */
        dir_holds(x, 1);
}

/* Into a directory, over an existing file, through a symbolic link. */
static void test_out_targets(void **state) {
        struct fixture *x = *state;
        char link[160], dir_file[160];

        x->g.data = "new";
        x->g.size = 3;
        RUN(x->f, &x->r, "cp", "web:/etc/name", x->f->dir);
        assert_int_equal(x->r.status, 0);
        (void) snprintf(dir_file, sizeof(dir_file), "%s/name", x->f->dir);
        file_is(dir_file, "new", 3);
        run_clear(&x->r);

        make_file(x->path, "old content", 11, 0600);
        (void) snprintf(link, sizeof(link), "%s/link", x->f->dir);
        assert_int_equal(symlink("file", link), 0);
        x->g.sent = 0;
        x->g.answered = false;
        RUN(x->f, &x->r, "cp", "web:/etc/name", link);
        assert_int_equal(x->r.status, 0);
        file_is(x->path, "new", 3);
        assert_int_equal(readlink(link, dir_file, sizeof(dir_file)), 4);
        dir_holds(x, 3);
}

static void test_out_stdout(void **state) {
        struct fixture *x = *state;

        x->g.data = x->big;
        x->g.size = x->n_big;
        RUN(x->f, &x->r, "cp", "web:/etc/big", "-");
        assert_int_equal(x->r.status, 0);
        assert_int_equal(x->r.out_len, x->n_big);
        assert_memory_equal(x->r.out, x->big, x->n_big);
        run_clear(&x->r);
        RUN(x->f, &x->r, "--json", "cp", "web:/etc/big", "-");
        assert_int_equal(x->r.status, 2); /* one stdout cannot be both */
}

/* What breaks off leaves the old file, and nothing else. */
static void test_out_broken(void **state) {
        struct fixture *x = *state;

        make_file(x->path, "old", 3, 0600);
        x->g.data = x->big;
        x->g.size = x->n_big;
        x->g.die_half_way = true;
        RUN(x->f, &x->r, "cp", "web:/etc/big", x->path);
        assert_int_equal(x->r.status, 3);
        file_is(x->path, "old", 3);
        dir_holds(x, 1);
        run_clear(&x->r);

        x->g = (struct file){ .data = "short", .size = 5, .claim = "{\"bytes\":50,\"mode\":420}" };
        RUN(x->f, &x->r, "cp", "web:/etc/big", x->path);
        assert_int_equal(x->r.status, 1);
        assert_non_null(strstr(x->r.err, "5 bytes came, but forkd sent 50"));
        file_is(x->path, "old", 3);
        dir_holds(x, 1);
        run_clear(&x->r);

        /* a signal in the middle */
        x->g = (struct file){ .data = "short", .size = 5, .kill = &x->r };
        RUN(x->f, &x->r, "cp", "web:/etc/big", x->path);
        assert_int_equal(x->r.status, 128 + SIGTERM);
        file_is(x->path, "old", 3);
        dir_holds(x, 1);
}

static void test_in(void **state) {
        struct fixture *x = *state;

        make_file(x->path, x->big, x->n_big, 0750);
        assert_int_equal(chmod(x->path, 0750), 0);
        RUN(x->f, &x->r, "cp", x->path, "web:/dir/");
        assert_int_equal(x->r.status, 0);
        assert_string_equal(x->f->log, "vm.put {\"mode\": 488, \"name\": \"web\", \"path\": \"/dir/file\", \"size\": 1048653}\n");
        assert_true(x->g.eof);
        assert_int_equal(x->g.n_got, x->n_big);
        assert_memory_equal(x->g.got, x->big, x->n_big);
}

static void test_in_empty(void **state) {
        struct fixture *x = *state;

        make_file(x->path, "", 0, 0644);
        RUN(x->f, &x->r, "--json", "cp", x->path, "web:/e");
        assert_int_equal(x->r.status, 0);
        assert_true(x->g.eof);
        assert_int_equal(x->g.n_got, 0);
        json_decref(one_document(x->r.out));
}

/* From a pipe, whose size nobody knows, and from the middle of a file. */
static void test_in_stdin(void **state) {
        struct fixture *x = *state;

        x->r.input = x->big;
        x->r.input_len = x->n_big;
        RUN(x->f, &x->r, "cp", "-", "web:/p");
        assert_int_equal(x->r.status, 0);
        assert_int_equal(x->g.promised, x->n_big);
        assert_int_equal(x->g.n_got, x->n_big);
        assert_memory_equal(x->g.got, x->big, x->n_big);
        run_clear(&x->r);

        x->g.n_got = 0;
        make_file(x->path, "0123456789", 10, 0600);
        x->r.stdin_fd = open(x->path, O_RDONLY | O_CLOEXEC);
        assert_int_equal(lseek(x->r.stdin_fd, 4, SEEK_SET), 4);
        RUN(x->f, &x->r, "cp", "-", "web:/p");
        (void) close(x->r.stdin_fd);
        assert_int_equal(x->r.status, 0);
        assert_int_equal(x->g.promised, 6);
        assert_memory_equal(x->g.got, "456789", 6);
}

static void shrink(struct fake *f, struct rpc_msg *m) {
        struct fixture *x = (struct fixture *) ((char *) f->arg - offsetof(struct fixture, g));

        if (m->is_request)
                assert_int_equal(truncate(x->path, 300000), 0);
        on_file(f, m);
}

/* The size was promised: a file that becomes shorter meanwhile is an error, not a shorter copy. */
static void test_in_shrinks(void **state) {
        struct fixture *x = *state;

        make_file(x->path, x->big, x->n_big, 0644);
        x->f->handler = shrink;
        RUN(x->f, &x->r, "cp", x->path, "web:/p");
        assert_int_equal(x->r.status, 1);
        assert_non_null(strstr(x->r.err, "became shorter"));
        assert_false(x->g.eof);
}

static void test_refusals(void **state) {
        struct fixture *x = *state;
        struct {
                const char *from, *to, *says;
                int status;
        } cases[] = {
                { x->f->dir, "web:/d", "is a directory", 1 },
                { x->f->socket, "web:/d", "No such device", 1 }, /* a socket cannot be opened: ENXIO */
                { "/dev/null", "web:/d", "no regular file", 1 },
                { "/nonexistent/file", "web:/d", "No such file", 1 },
                { "web:/etc/", "/tmp/x", "is a directory", 1 },
                { "web:/etc/f", "/nonexistent/dir/f", "No such file", 1 },
                { "./a:b", "./c:d", "neither side", 2 },
                { "-bad:/x", "/tmp/x", "unknown option", 2 },
        };

        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                RUN(x->f, &x->r, "cp", cases[i].from, cases[i].to);
                if (x->r.status != cases[i].status || !strstr(x->r.err, cases[i].says))
                        fail_msg("case %zu: exit %d, %s", i, x->r.status, x->r.err);
                run_clear(&x->r);
        }
        assert_null(x->f->log); /* forkd was never asked */
        dir_holds(x, 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_out, setup, teardown),
                cmocka_unit_test_setup_teardown(test_out_targets, setup, teardown),
                cmocka_unit_test_setup_teardown(test_out_stdout, setup, teardown),
                cmocka_unit_test_setup_teardown(test_out_broken, setup, teardown),
                cmocka_unit_test_setup_teardown(test_in, setup, teardown),
                cmocka_unit_test_setup_teardown(test_in_empty, setup, teardown),
                cmocka_unit_test_setup_teardown(test_in_stdin, setup, teardown),
                cmocka_unit_test_setup_teardown(test_in_shrinks, setup, teardown),
                cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
