/* SPDX-License-Identifier: MIT */
/* Commands of one request: what is asked of forkd, what is printed, which exit code. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "fake_forkd.h"
#include "common/json.h"

struct call {
        const char *argv[14];
        const char *log;  /* what forkd was asked */
        const char *text; /* printed for people */
        bool list;        /* --json prints the result's first array, not the result itself */
        bool boxed;       /* --json prints a list of the result */
};

static const struct answer answers[] = {
        { "vm.run", "{\"name\":\"web\",\"id\":\"0123\",\"state\":\"running\",\"pid\":42,\"boot_ms\":1320.5,\"accel\":\"tcg\"}" },
        { "vm.list",
          "{\"vms\":[{\"name\":\"web\",\"id\":\"0123\",\"state\":\"running\",\"reason\":null,\"vmm\":\"qemu\",\"accel\":\"tcg\","
          "\"pid\":42,\"mem_bytes\":268435456,\"snapshot\":null,\"generation\":0},"
          "{\"name\":\"db\",\"id\":\"4567\",\"state\":\"failed\",\"reason\":\"the \\u001b[31mVMM died\",\"vmm\":\"qemu\","
          "\"accel\":\"kvm\",\"pid\":null,\"mem_bytes\":1073741824,\"snapshot\":\"89ab\",\"generation\":2}]}" },
        { "vm.inspect", "{\"name\":\"web\",\"mem_bytes\":268435456,\"agent\":true}" },
        { "vm.standby",
          "{\"snapshot\":\"89ab\",\"pause_ms\":12.4,\"total_ms\":30,\"dirty_bytes\":1048576,\"stored_bytes\":524288,"
          "\"durable\":true}" },
        { "snapshot.create", "{\"snapshot\":\"89ab\",\"pause_ms\":12.4,\"total_ms\":30,\"dirty_bytes\":1048576,"
                             "\"stored_bytes\":524288,\"durable\":false}" },
        { "vm.restore", "{\"name\":\"web\",\"id\":\"0123\",\"pid\":43,\"total_ms\":80.2,\"load_ms\":3.21,\"ack_ms\":20}" },
        { "vm.fork", "{\"clones\":[{\"name\":\"c-1\",\"id\":\"01\",\"pid\":50,\"total_ms\":70,\"load_ms\":3,\"ack_ms\":9.5},"
                     "{\"name\":\"c-2\",\"id\":\"02\",\"pid\":51,\"total_ms\":80,\"load_ms\":4,\"ack_ms\":10}],\"wall_ms\":90,"
                     "\"source_pause_ms\":5.5}" },
        { "vm.pause", "{\"name\":\"web\",\"state\":\"paused\"}" },
        { "vm.resume", "{\"name\":\"web\",\"state\":\"running\"}" },
        { "vm.stop", "{\"name\":\"web\",\"state\":\"stopped\"}" },
        { "vm.rm", "{\"removed\":[\"a\",\"b\"]}" },
        { "vm.ping", "{\"rtt_ms\":0.72}" },
        { "snapshot.list", "{\"snapshots\":[{\"id\":\"89ab\",\"tag\":\"warm\",\"source\":\"web\",\"parent\":null,\"depth\":1,"
                           "\"ram_bytes\":268435456,\"stored_bytes\":524288,\"durable\":true,\"created\":1700000000.5}]}" },
        { "snapshot.show", "{\"id\":\"89ab\",\"pages\":{\"zero\":3,\"stored\":4}}" },
        { "snapshot.rm", "{\"removed\":[\"89ab\"]}" },
        { "snapshot.verify", "{\"ok\":true,\"frames\":100,\"errors\":[]}" },
        { "pool.create",
          "{\"name\":\"p\",\"from\":\"89ab\",\"tag\":\"warm\",\"size\":4,\"wanted\":4,\"warm\":4,\"old\":0,\"problem\":null}" },
        { "pool.set", "{\"name\":\"p\",\"from\":\"89ab\",\"tag\":null,\"size\":4,\"wanted\":5,\"warm\":4,\"old\":2,\"problem\":"
                      "\"no \\u001b[31mroom\"}" },
        { "pool.take", "{\"name\":\"job\",\"id\":\"0123\",\"pid\":42,\"take_ms\":3.42,\"warm\":true}" },
        { "pool.list",
          "{\"pools\":[{\"name\":\"p\",\"from\":\"89ab\",\"tag\":null,\"warm\":3,\"wanted\":4,\"making\":1,\"old\":0,\"min\":0,"
          "\"size\":4,\"max\":8,\"taken_warm\":9,\"taken_cold\":1,\"removing\":false,\"problem\":\"no room\"}]}" },
        { "pool.rm", "{\"name\":\"p\",\"removed\":4}" },
        { "pager.status", "{\"up\":true,\"pid\":77,\"sessions\":[]}" },
        { "shutdown", "{\"stopped\":[\"web\"]}", .then_close = true },
        { 0 },
};

static const struct call calls[] = {
        { { "run", "web" }, "vm.run {\"name\": \"web\"}\n", "web is running: id 0123, pid 42, tcg, booted in 1.32 s\n" },
        { { "run", "web", "--mem", "512M", "--vcpus", "2", "--accel=kvm", "--disk", "/d.img" },
          "vm.run {\"accel\": \"kvm\", \"disks\": [\"/d.img\"], \"mem_bytes\": 536870912, \"name\": \"web\", \"vcpus\": 2}\n",
          "web is running: id 0123, pid 42, tcg, booted in 1.32 s\n" },
        { { "run", "web", "--publish", "127.0.0.1:8080:80", "-p", "53:53/udp", "--on-pager-loss", "recover" },
          "vm.run {\"name\": \"web\", \"net\": \"nat\", \"on_pager_loss\": \"recover\", "
          "\"publish\": [\"127.0.0.1:8080:80\", \"53:53/udp\"]}\n",
          "web is running: id 0123, pid 42, tcg, booted in 1.32 s\n" },
        { { "run", "web", "--net", "none", "--vmm", "qemu" },
          "vm.run {\"name\": \"web\", \"net\": \"none\", \"vmm\": \"qemu\"}\n",
          "web is running: id 0123, pid 42, tcg, booted in 1.32 s\n" },
        { { "ps" },
          "vm.list {}\n",
          "NAME  STATE    VMM        MEMORY  PID  SNAPSHOT  GEN  ID    REASON\n"
          "web   running  qemu/tcg  256 MiB   42  -           0  0123  \n"
          "db    failed   qemu/kvm    1 GiB    -  89ab        2  4567  the ?[31mVMM died\n",
          .list = true },
        { { "pool", "create", "p", "--from", "warm", "--size", "4", "--max", "8", "--idle-timeout", "60", "--no-wait" },
          "pool.create {\"from\": \"warm\", \"idle_timeout_s\": 60, \"max\": 8, \"name\": \"p\", \"size\": 4}\n",
          "pool p: 4 of 4 clones of warm are warm\n" },
        { { "pool", "create", "p", "-f", "warm", "-n", "4", "--min", "1", "--on-pager-loss", "recover" },
          "pool.create {\"from\": \"warm\", \"min\": 1, \"name\": \"p\", \"on_pager_loss\": \"recover\", \"size\": 4, \"wait\": "
          "true}\n",
          "pool p: 4 of 4 clones of warm are warm\n" },
        { { "pool", "set", "p", "--from", "89ab", "--wait" },
          "pool.set {\"from\": \"89ab\", \"name\": \"p\", \"wait\": true}\n",
          "pool p: 4 of 5 clones of 89ab are warm, and 2 of these of the snapshot before; no ?[31mroom\n" },
        { { "pool", "take", "p" }, "pool.take {\"name\": \"p\"}\n", "job runs, taken in 3.4 ms\n" },
        { { "pool", "take", "p", "job" }, "pool.take {\"name\": \"p\", \"vm\": \"job\"}\n", "job runs, taken in 3.4 ms\n" },
        { { "pool", "ls" },
          "pool.list {}\n",
          "POOL  FROM  WARM  WANTED  MAKING  OLD  MIN  SIZE  MAX  TAKEN  MADE  PROBLEM\n"
          "p     89ab     3       4       1    0    0     4    8      9     1  no room\n",
          .list = true },
        { { "pool", "ls", "-q" }, "pool.list {}\n", "p\n", .list = true },
        { { "pool", "rm", "p" }, "pool.rm {\"name\": \"p\"}\n", "removed the pool p and 4 clones\n" },
        { { "ps", "--all", "-q" }, "vm.list {\"all\": true}\n", "web\ndb\n", .list = true },
        { { "ps", "-q" }, "vm.list {}\n", "web\ndb\n", .list = true },
        { { "inspect", "web" },
          "vm.inspect {\"name\": \"web\"}\n",
          "name       web\nmem_bytes  256 MiB\nagent      yes\n",
          .boxed = true },
        { { "standby", "web" },
          "vm.standby {\"name\": \"web\"}\n",
          "web stands by in snapshot 89ab: 1 MiB changed, 512 KiB stored; paused 12 ms, 30 ms in all\n" },
        { { "standby", "web", "-t", "warm", "--compression", "zstd:9", "--no-sync" },
          "vm.standby {\"compression\": \"zstd\", \"level\": 9, \"name\": \"web\", \"sync\": false, \"tag\": \"warm\"}\n",
          "web stands by in snapshot 89ab: 1 MiB changed, 512 KiB stored; paused 12 ms, 30 ms in all\n" },
        { { "snapshot", "create", "web", "--compression", "none" },
          "snapshot.create {\"compression\": \"none\", \"name\": \"web\"}\n",
          "web runs on, saved in snapshot 89ab: 1 MiB changed, 512 KiB stored, not on disk yet; paused 12 ms, 30 ms in all\n" },
        { { "restore", "web", "--force" },
          "vm.restore {\"force\": true, \"name\": \"web\"}\n",
          "web runs again after 80 ms (state loaded in 3.2 ms, the guest answered in 20 ms)\n" },
        { { "fork", "web" },
          "vm.fork {\"source\": \"web\"}\n",
          "NAME  ID  PID  TOTAL    LOAD  ANSWER\n"
          "c-1   01   50  70 ms  3.0 ms  9.5 ms\n"
          "c-2   02   51  80 ms  4.0 ms   10 ms\n"
          "2 clones in 90 ms; the source paused 5.5 ms\n" },
        { { "fork", "web", "c", "--count", "2", "--paused" },
          "vm.fork {\"count\": 2, \"name\": \"c\", \"paused\": true, \"source\": \"web\"}\n",
          "NAME  ID  PID  TOTAL    LOAD  ANSWER\n"
          "c-1   01   50  70 ms  3.0 ms  9.5 ms\n"
          "c-2   02   51  80 ms  4.0 ms   10 ms\n"
          "2 clones in 90 ms; the source paused 5.5 ms\n" },
        { { "pause", "web" }, "vm.pause {\"name\": \"web\"}\n", "web is paused\n" },
        { { "resume", "web" }, "vm.resume {\"name\": \"web\"}\n", "web is running\n" },
        { { "stop", "web" }, "vm.stop {\"name\": \"web\"}\n", "web is stopped\n" },
        { { "rm", "a", "b" }, "vm.rm {\"names\": [\"a\", \"b\"]}\n", "removed a\nremoved b\n" },
        { { "rm", "--all" }, "vm.rm {\"all\": true}\n", "removed a\nremoved b\n" },
        { { "ping", "web" }, "vm.ping {\"name\": \"web\"}\n", "web answers in 0.7 ms\n" },
        { { "snapshot", "ls" },
          "snapshot.list {}\n",
          "SNAPSHOT  TAG   SOURCE  PARENT  DEPTH   MEMORY   STORED  DURABLE  CREATED\n"
          "89ab      warm  web     -           1  256 MiB  512 KiB  yes      2023-11-14 22:13:20\n",
          .list = true },
        { { "snapshot", "ls", "--quiet" }, "snapshot.list {}\n", "89ab\n", .list = true },
        { { "snapshot", "show", "warm" }, "snapshot.show {\"snapshot\": \"warm\"}\n", "id     89ab\npages  zero 3, stored 4\n" },
        { { "snapshot", "rm", "a", "b", "--force" },
          "snapshot.rm {\"force\": true, \"snapshots\": [\"a\", \"b\"]}\n",
          "removed 89ab\n" },
        { { "snapshot", "verify", "89ab" }, "snapshot.verify {\"snapshot\": \"89ab\"}\n", "89ab is sound, 100 frames\n" },
        { { "pager", "status" }, "pager.status {}\n", "up        yes\npid       77\nsessions  -\n" },
        { { "shutdown" }, "shutdown {}\n", "stopped web\nforkd has ended\n" },
        { { "shutdown", "--all" }, "shutdown {\"all\": true}\n", "stopped web\nforkd has ended\n" },
};

static json_t *expected_json(const struct call *call, const char *log) {
        size_t n = strcspn(log, " ");
        json_t *result = NULL, *first;

        for (const struct answer *a = answers; a->method; a++)
                if (strlen(a->method) == n && strncmp(a->method, log, n) == 0)
                        result = one_document(a->result);
        assert_non_null(result);
        if (call->boxed)
                return json_pack("[o]", result);
        if (!call->list)
                return result;
        first = json_incref(json_object_iter_value(json_object_iter(result)));
        json_decref(result);
        return first;
}

static void test_each(void **state) {
        struct fake *f = fake_new();

        f->answers = answers;
        for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
                const char *json_argv[16] = { "--json" };
                cleanup_json json_t *got = NULL, *want = expected_json(&calls[i], calls[i].log);
                struct run r = { 0 };

                run_ctl(f, &r, calls[i].argv);
                assert_string_equal(f->log, calls[i].log);
                assert_string_equal(r.err, "");
                assert_string_equal(r.out, calls[i].text);
                assert_int_equal(r.status, 0);
                run_clear(&r);
                fake_reset(f);

                memcpy(json_argv + 1, calls[i].argv, sizeof(calls[i].argv));
                run_ctl(f, &r, json_argv);
                assert_string_equal(f->log, calls[i].log);
                got = one_document(r.out);
                if (!json_equal(got, want))
                        fail_msg("%s %s printed %s", calls[i].argv[0], calls[i].argv[1] ? calls[i].argv[1] : "", r.out);
                assert_string_equal(r.err, "");
                assert_int_equal(r.status, 0);
                run_clear(&r);
                fake_reset(f);
        }
        fake_free(f);
}

/* forkd's refusal reaches the user: code, sentence, hint, exit 1. */
static void test_refused(void **state) {
        static const struct answer refusal[] = { { "vm.inspect", NULL, "not-found", "no VM 'w\x1b[31meb'", "see 'forkctl ps'" },
                                                 { 0 } };
        cleanup_json json_t *got = NULL, *want = NULL;
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->answers = refusal;
        RUN(f, &r, "inspect", "web");
        assert_int_equal(r.status, 1);
        assert_string_equal(r.out, "");
        assert_string_equal(r.err, "forkctl: no VM 'w?[31meb'\nhint: see 'forkctl ps'\n");
        run_clear(&r);
        RUN(f, &r, "inspect", "web", "--json");
        assert_int_equal(r.status, 1);
        assert_string_equal(r.err, "");
        got = one_document(r.out);
        want = one_document(
                "{\"error\":{\"code\":\"not-found\",\"message\":\"no VM 'w\\u001b[31meb'\",\"hint\":\"see 'forkctl ps'\"}}");
        assert_true(json_equal(got, want));
        run_clear(&r);
        fake_free(f);
}

static void test_verify_damage(void **state) {
        static const struct answer damaged[] = {
                { "snapshot.verify", "{\"ok\":false,\"frames\":9,\"errors\":[\"frame 3: bad checksum\"]}" }, { 0 }
        };
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->answers = damaged;
        RUN(f, &r, "snapshot", "verify", "89ab");
        assert_int_equal(r.status, 1);
        assert_string_equal(r.out, "frame 3: bad checksum\n89ab is DAMAGED, 9 frames\n");
        run_clear(&r);
        RUN(f, &r, "--json", "snapshot", "verify", "89ab");
        assert_int_equal(r.status, 1);
        json_decref(one_document(r.out));
        run_clear(&r);
        fake_free(f);
}

/* What is only mentioned changes neither verdict nor exit code. */
static void test_verify_note(void **state) {
        static const struct answer sound[] = {
                { "snapshot.verify", "{\"ok\":true,\"frames\":9,\"errors\":[],\"notes\":[\"a hint is bad\"]}" }, { 0 }
        };
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->answers = sound;
        RUN(f, &r, "snapshot", "verify", "89ab");
        assert_int_equal(r.status, 0);
        assert_string_equal(r.out, "note: a hint is bad\n89ab is sound, 9 frames\n");
        run_clear(&r);
        fake_free(f);
}

/* Nobody listens, a file that is no socket, a path too long: exit 3, and the socket is named. */
static void test_unreachable(void **state) {
        struct fake *f = fake_new();
        char none[128], file[128], longer[200];
        const char *sockets[] = { none, file, longer };
        int fd;

        (void) snprintf(none, sizeof(none), "%s/none", f->dir);
        (void) snprintf(file, sizeof(file), "%s/file", f->dir);
        memset(longer, 'x', sizeof(longer) - 1);
        longer[sizeof(longer) - 1] = '\0';
        fd = open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        assert_true(fd >= 0 && close(fd) == 0);
        for (size_t i = 0; i < ARRAY_LEN(sockets); i++) {
                cleanup_json json_t *got = NULL;
                struct run r = { 0 };

                RUN(f, &r, "--socket", sockets[i], "ps");
                assert_int_equal(r.status, 3);
                assert_string_equal(r.out, "");
                assert_non_null(strstr(r.err, sockets[i]));
                run_clear(&r);
                RUN(f, &r, "--json", "ps", "--socket", sockets[i]);
                assert_int_equal(r.status, 3);
                got = one_document(r.out);
                assert_string_equal(json_str(json_object_get(got, "error"), "code", ""), "unreachable");
                run_clear(&r);
        }
        fake_free(f);
}

static void hang_up(struct fake *f, struct rpc_msg *m) {
        rpc_conn_close(m->conn);
}

static void speak_nonsense(struct fake *f, struct rpc_msg *m) {
        fake_notify(m->conn, "error", "{\"code\":\"protocol\",\"message\":\"no idea what you mean\"}", NULL, 0);
        rpc_conn_close(m->conn);
}

static void turn_away(struct fake *f, struct rpc_msg *m) {
        fake_notify(m->conn, "error",
                    "{\"code\":\"forbidden\",\"message\":\"the user 7 may not use this forkd\",\"hint\":\"join its group\"}",
                    NULL, 0);
        rpc_conn_close(m->conn);
}

static void ask_back(struct fake *f, struct rpc_msg *m) {
        /* a request to the client is refused, notifications that nobody waits for are ignored */
        if (!m->is_request)
                return;
        fake_notify(m->conn, "stream.data", "{\"call\":1,\"stream\":1}", "x", 1);
        fake_notify(m->conn, "news", "{}", NULL, 0);
        fake_reply(m, "{\"vms\":7}");
}

static void test_odd_peers(void **state) {
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->handler = hang_up;
        RUN(f, &r, "standby", "web");
        assert_int_equal(r.status, 3);
        assert_non_null(strstr(r.err, "went away before it answered vm.standby"));
        run_clear(&r);

        f->handler = speak_nonsense;
        RUN(f, &r, "ps");
        assert_int_equal(r.status, 1);
        assert_non_null(strstr(r.err, "no idea what you mean"));
        run_clear(&r);

        f->handler = turn_away; /* forkd is there, and says no: 1, not 3 */
        RUN(f, &r, "--json", "ps");
        assert_int_equal(r.status, 1);
        assert_non_null(strstr(r.out, "\"forbidden\""));
        assert_non_null(strstr(r.out, "forkd refused this client: the user 7 may not use this forkd"));
        assert_non_null(strstr(r.out, "join its group"));
        run_clear(&r);

        f->handler = ask_back;
        RUN(f, &r, "--json", "ps");
        assert_int_equal(r.status, 0);
        assert_string_equal(r.out, "[]\n"); /* an answer of the wrong shape is no list of VMs */
        run_clear(&r);
        fake_free(f);
}

/* Wrong usage is told without asking forkd. */
static void test_usage(void **state) {
        static const char *const lines[][8] = {
                { "run" },
                { "run", "web", "--mem", "lots" },
                { "run", "web", "--vcpus", "0" },
                { "run", "web", "--publish", "80" },
                { "run", "web", "--publish", "0:80" },
                { "run", "web", "--publish", "80:65536" },
                { "run", "web", "--publish", ":80:80" },
                { "run", "web", "--publish", "80:80/sctp" },
                { "run", "web", "--publish", "80:80", "--net", "none" },
                { "standby", "web", "--compression", "gzip" },
                { "standby", "web", "--compression", "zstd:" },
                { "standby", "web", "--compression", "zstd:x" },
                { "standby", "web", "--compression", "lz4:3" },
                { "standby", "web", "--compression", "zstdzstdzstd" },
                { "fork", "web", "--count", "0" },
                { "fork", "web", "--count", "-1" },
                { "rm" },
                { "rm", "web", "--all" },
                { "snapshot", "memory", "89ab" },
                { "snapshot", "memory", "89ab", "-o", "-" },
                { "exec", "web", "--timeout", "0", "--", "ls" },
                { "exec", "web", "--timeout", "inf", "--", "ls" },
                { "exec", "web", "--env", "=x", "--", "ls" },
                { "exec", "web", "--env", "NOT_SET_HERE", "--", "ls" },
                { "cp", "a", "b" },
                { "cp", "web:/a", "db:/b" },
                { "cp", "-", "web:" },
                { "cp", "-", "web:/dir/" },
                { "setup", "--store-size", "1M" },
                { "completion", "fish" },
                { "pool" },
                { "pool", "create", "web" },
                { "pool", "create", "web", "--from", "warm" },
                { "pool", "create", "web", "--from", "warm", "--size", "many" },
                { "pool", "take" },
                { "pool", "take", "web", "a", "b" },
                { "pool", "rm", "web", "db" },
                { "stats", "web", "db" },
                { "top", "web" },
                { "top", "--interval", "0" },
                { "top", "--interval", "1e9" },
                { "top", "--interval", "nan" },
                { "top", "--interval", "1s" },
                { "top", "--count", "0" },
                { "top", "--once", "--count", "2" },
                { "top", "--sort", "size" },
                { "events", "web", "db" },
                { "events", "--follow", "--no-follow" },
                { "snapshot" },
                { "--frobnicate", "ps" },
                { "--socket" },
                { NULL },
        };
        struct fake *f = fake_new();

        for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
                const char *json_argv[14] = { "--json" };
                cleanup_json json_t *got = NULL;
                struct run r = { 0 };

                run_ctl(f, &r, lines[i]);
                if (r.status != 2 || r.out[0] || strncmp(r.err, "forkctl: ", 9) != 0 || !strstr(r.err, "\nhint: "))
                        fail_msg("line %zu: exit %d\n%s%s", i, r.status, r.out, r.err);
                run_clear(&r);
                memcpy(json_argv + 1, lines[i], sizeof(lines[i]));
                run_ctl(f, &r, json_argv);
                assert_int_equal(r.status, 2);
                assert_string_equal(r.err, "");
                got = one_document(r.out);
                assert_string_equal(json_str(json_object_get(got, "error"), "code", ""), "usage");
                run_clear(&r);
        }
        assert_null(f->log);
        fake_free(f);
}

/* forkd has another working directory. */
static void test_relative_disk(void **state) {
        struct fake *f = fake_new();
        char cwd[512], want[1024];
        struct run r = { 0 };

        f->answers = answers;
        assert_non_null(getcwd(cwd, sizeof(cwd)));
        RUN(f, &r, "run", "web", "--disk", "d.img");
        (void) snprintf(want, sizeof(want), "vm.run {\"disks\": [\"%s/d.img\"], \"name\": \"web\"}\n", cwd);
        assert_string_equal(f->log, want);
        run_clear(&r);
        fake_free(f);
}

static void test_version(void **state) {
        static const struct answer version[] = { { "version", "{\"version\":\"9.9\",\"protocol\":1}" }, { 0 } };
        cleanup_json json_t *with = NULL, *without = NULL;
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->answers = version;
        RUN(f, &r, "version");
        assert_int_equal(r.status, 0);
        assert_non_null(strstr(r.out, "forkctl " FORKD_VERSION "\nforkd 9.9\n"));
        run_clear(&r);
        RUN(f, &r, "--json", "version");
        with = one_document(r.out);
        assert_string_equal(json_str(json_object_get(with, "forkd"), "version", ""), "9.9");
        run_clear(&r);
        RUN(f, &r, "--json", "--socket", "/nonexistent", "version");
        assert_int_equal(r.status, 0); /* that forkd is away is an answer */
        without = one_document(r.out);
        assert_true(json_is_null(json_object_get(without, "forkd")));
        run_clear(&r);
        RUN(f, &r, "ping");
        assert_int_equal(r.status, 0);
        assert_non_null(strstr(r.out, "forkd answers in "));
        run_clear(&r);
        fake_free(f);
}

/* The end of forkd is waited for: who removes its directories next must not be too early. */
static void test_shutdown_waits(void **state) {
        static const struct answer shutdown[] = { { "shutdown", "{\"stopped\":[]}" }, { 0 } };
        static const char *const argv[] = { "shutdown", NULL };
        const struct timeval quiet = { .tv_usec = 200000 };
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->answers = shutdown;
        run_start(f, &r, argv);
        while (!f->log)
                assert_int_equal(event_base_loop(f->base, EVLOOP_ONCE), 0);
        assert_int_equal(event_base_loopexit(f->base, &quiet), 0);
        assert_int_equal(event_base_dispatch(f->base), 0);
        assert_false(r.exited);
        assert_string_equal(r.out, "");
        rpc_conn_close(f->conns[0]);
        run_finish(&r);
        assert_int_equal(r.status, 0);
        assert_string_equal(r.out, "forkd has ended\n");
        run_clear(&r);
        fake_free(f);
}

/* A full disk must not look like success. */
static void test_full_output(void **state) {
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->answers = answers;
        r.stdout_fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
        assert_true(r.stdout_fd >= 0);
        RUN(f, &r, "ps");
        (void) close(r.stdout_fd);
        assert_int_equal(r.status, 1);
        assert_non_null(strstr(r.err, "No space left on device"));
        run_clear(&r);
        fake_free(f);
}

/* ---- snapshot memory: the descriptor travels ---- */

static void write_memory(struct fake *f, struct rpc_msg *m) {
        if (strcmp(m->method, "snapshot.memory") != 0)
                return;
        assert_int_equal(m->n_fds, 1);
        assert_int_equal(io_write_full(m->fds[0], "RAM!", 4), 0);
        fake_reply(m, "{\"bytes\":4}");
}

static void refuse_memory(struct fake *f, struct rpc_msg *m) {
        struct err e;

        (void) err_set(&e, ERR_NOT_FOUND, -ENOENT, "no snapshot");
        (void) rpc_reply_err(m->conn, m->msgid, &e);
}

static void hang_memory(struct fake *f, struct rpc_msg *m) {
        struct run *r = f->arg;

        assert_int_equal(kill(r->pid, SIGINT), 0); /* and never an answer */
}

static void test_memory(void **state) {
        struct fake *f = fake_new();
        cleanup_free char *data = NULL;
        struct run r = { 0 };
        char path[128];
        struct stat st;
        size_t len;

        f->handler = write_memory;
        (void) snprintf(path, sizeof(path), "%s/ram", f->dir);
        RUN(f, &r, "snapshot", "memory", "89ab", "-o", path);
        assert_int_equal(r.status, 0);
        assert_string_equal(f->log, "snapshot.memory {\"fds\": 1, \"snapshot\": \"89ab\"}\n");
        assert_int_equal(io_read_file(AT_FDCWD, path, 100, &data, &len), 0);
        assert_string_equal(data, "RAM!");
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        run_clear(&r);

        /* an existing file is never touched */
        RUN(f, &r, "snapshot", "memory", "89ab", "-o", path);
        assert_int_equal(r.status, 1);
        assert_non_null(strstr(r.err, "does not exist yet"));
        run_clear(&r);

        /* nothing stays of a refused or interrupted one */
        assert_int_equal(unlink(path), 0);
        f->handler = refuse_memory;
        RUN(f, &r, "snapshot", "memory", "89ab", "-o", path);
        assert_int_equal(r.status, 1);
        assert_int_equal(access(path, F_OK), -1);
        run_clear(&r);
        f->handler = hang_memory;
        f->arg = &r;
        RUN(f, &r, "snapshot", "memory", "89ab", "-o", path);
        assert_int_equal(r.status, 128 + SIGINT);
        assert_int_equal(access(path, F_OK), -1);
        run_clear(&r);
        fake_free(f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_each),        cmocka_unit_test(test_refused),       cmocka_unit_test(test_verify_damage),
                cmocka_unit_test(test_verify_note), cmocka_unit_test(test_unreachable),   cmocka_unit_test(test_odd_peers),
                cmocka_unit_test(test_usage),       cmocka_unit_test(test_relative_disk), cmocka_unit_test(test_version),
                cmocka_unit_test(test_full_output), cmocka_unit_test(test_memory),        cmocka_unit_test(test_shutdown_waits),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
