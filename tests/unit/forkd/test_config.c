/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "bpf/probes.h"
#include "forkd/config.h"

static char dir[64], path[128];

static int setup(void **state) {
        temp_dir(dir, sizeof(dir));
        (void) snprintf(path, sizeof(path), "%s/forkd.conf", dir);
        return 0;
}

static int teardown(void **state) {
        temp_dir_remove(dir);
        return 0;
}

static int load(const char *text, struct config *c, struct err *e) {
        FILE *f = fopen(path, "we");

        assert_non_null(f);
        assert_true(fputs(text, f) >= 0);
        assert_int_equal(fclose(f), 0);
        return config_load(c, path, true, e);
}

static void test_defaults(void **state) {
        struct config c;

        config_defaults(&c);
        assert_true(c.max_vms > 0 && c.boot_timeout_s > 0 && c.wake_timeout_s > 0 && c.stop_timeout_s > 0);
        assert_int_equal(c.log_level, LOG_LVL_INFO);
}

static void test_users_of_its_own(void **state) {
        struct config c;
        struct err e;

        config_defaults(&c);
        assert_true(c.jail);
        assert_int_equal(c.uid_base, 0);
        assert_ok(load("[security]\nuid_base = 0\n", &c, &e));
        assert_int_equal(load("[security]\nuid_base = 999\n", &c, &e), -EINVAL);
        assert_non_null(strstr(e.message, "uid_base"));
        assert_int_equal(load("[security]\nuid_base = 4294967295\n", &c, &e), -EINVAL);
        assert_int_equal(load("[security]\njail = yes\n", &c, &e), -EINVAL);
        assert_ok(load("[security]\nuid_base = 1000\n", &c, &e));
}

static void test_workers_as_many_as_the_pager_takes(void **state) {
        struct config c;
        struct err e;

        config_defaults(&c);
        assert_ok(load("[pager]\nworkers = 16\n", &c, &e));
        assert_int_equal(c.pager_workers, 16);
        assert_int_equal(load("[pager]\nworkers = 17\n", &c, &e), -EINVAL);
        assert_non_null(strstr(e.message, "from 0 to 16"));
}

static void test_all_settings(void **state) {
        struct config c;
        struct err e;

        config_defaults(&c);
        assert_ok(load("# forkd\n"
                       "[forkd]\n"
                       "max_vms = 7\n"
                       "parallel_starts=3\n"
                       "parallel_saves=4\n"
                       "log_level = debug\n"
                       "group = root\n"
                       "requests_per_second = 5\n"
                       "idle_client_seconds = 6\n"
                       "\n"
                       "[vm]\n"
                       "boot_timeout_s = 11   ; slow host\n"
                       "wake_timeout_s = 12\n"
                       "stop_timeout_s = 13\n"
                       "[limits]\n"
                       "memory = 3G\n"
                       "memory_overcommit = 1.5\n"
                       "vcpus = 9\n"
                       "disk_reserve = 0\n"
                       "[pager]\n"
                       "workers = 2\n"
                       "idle_image_seconds = 0\n"
                       "memory_budget = 1.5G\n"
                       "workingset = off\n"
                       "live_forks = off\n"
                       "record_seconds = 0\n"
                       "[pool]\n"
                       "check_seconds = 0\n"
                       "memory_reserve = 1G\n"
                       "[monitor]\n"
                       "probes = kprobe\n"
                       "window_ms = 600\n"
                       "keep_ended_seconds = 0\n"
                       "[security]\n"
                       "jail = off\n"
                       "uid_base = 1000000\n"
                       "visible = /opt/qemu:/srv/qemu\n",
                       &c, &e));
        assert_int_equal(c.probes, PROBES_KPROBE);
        assert_int_equal(c.window_ms, 600);
        assert_int_equal(c.pool_check_seconds, 0);
        assert_true(c.pool_memory_reserve == 1u << 30);
        assert_int_equal(c.keep_ended_seconds, 0);
        assert_ok(load("[monitor]\nprobes = off\n", &c, &e));
        assert_int_equal(c.probes, CONFIG_PROBES_OFF);
        assert_ok(load("[monitor]\nprobes = auto\n", &c, &e));
        assert_int_equal(c.probes, CONFIG_PROBES_AUTO);
        assert_false(c.jail);
        assert_int_equal(c.uid_base, 1000000);
        assert_string_equal(c.visible, "/opt/qemu:/srv/qemu");
        assert_int_equal(c.max_vms, 7);
        assert_int_equal(c.parallel_starts, 3);
        assert_int_equal(c.parallel_saves, 4);
        assert_int_equal(c.log_level, LOG_LVL_DEBUG);
        assert_true(c.has_group);
        assert_int_equal(c.group, 0);
        assert_int_equal(c.requests_per_second, 5);
        assert_int_equal(c.idle_client_seconds, 6);
        assert_int_equal(c.boot_timeout_s, 11);
        assert_int_equal(c.wake_timeout_s, 12);
        assert_int_equal(c.stop_timeout_s, 13);
        assert_int_equal(c.limit_memory, 3ull << 30);
        assert_true(c.memory_overcommit == 1.5);
        assert_int_equal(c.limit_vcpus, 9);
        assert_int_equal(c.disk_reserve, 0);
        assert_int_equal(c.pager_workers, 2);
        assert_int_equal(c.idle_image_seconds, 0);
        assert_int_equal(c.memory_budget, 3ull << 29);
        assert_ok(load("[forkd]\ngroup =\n", &c, &e));
        assert_false(c.has_group);
        assert_fails(load("[forkd]\ngroup = no-such-group-here\n", &c, &e), EINVAL);
        assert_non_null(strstr(e.message, "line 2"));
        assert_non_null(strstr(e.message, "no-such-group-here"));
        assert_ok(load("[pager]\nmemory_budget = 0\n", &c, &e));
        assert_int_equal(c.memory_budget, 0);
        assert_false(c.workingset || c.live_forks);
        assert_int_equal(c.record_seconds, 0);
        assert_ok(load("[pager]\nworkingset = on\nlive_forks = on\n", &c, &e));
        assert_true(c.workingset && c.live_forks);
        assert_ok(load("", &c, &e)); /* what is not named stays */
        assert_int_equal(c.max_vms, 7);
}

/* Whatever is not understood is an error that says where and what; nothing of the file is taken over then. */
static void test_refuses(void **state) {
        static const struct {
                const char *text, *line, *what;
        } bad[] = {
                { "[forkd]\nmax_vms = 5\nmax_vmss = 6\n", "line 3", "[forkd] max_vmss is no setting" },
                { "[forkd]\nmax_vms = 0\n", "line 2", "a number from 1 to 100000" },
                { "[pager]\nworkingset = yes\n", "line 2", "[pager] workingset is on or off" },
                { "[pager]\nworkingset =\n", "line 2", "[pager] workingset is on or off" },
                { "[forkd]\nworkingset = on\n", "line 2", "is no setting" },
                { "[pager]\nrecord_seconds = 3601\n", "line 2", "a number from 0 to 3600" },
                { "[monitor]\nprobes = none\n", "line 2", "auto, off, fentry, kprobe or sched_switch" },
                { "[monitor]\nprobes =\n", "line 2", "auto, off, fentry, kprobe or sched_switch" },
                { "[monitor]\nwindow_ms = 499\n", "line 2", "a number from 500 to 600000" },
                { "[pool]\ncheck_seconds = 86401\n", "line 2", "a number from 0 to 86400" },
                { "[pool]\nmemory_reserve = all\n", "line 2", "[pool] memory_reserve is a size" },
                { "[limits]\nmemory = much\n", "line 2", "[limits] memory is a size" },
                { "[limits]\nmemory_overcommit = 0\n", "line 2", "a factor from 0.1 to 1000" },
                { "[limits]\nmemory_overcommit = nan\n", "line 2", "a factor" },
                { "[limits]\nmemory_overcommit = 2x\n", "line 2", "a factor" },
                { "[limits]\ndisk_reserve =\n", "line 2", "[limits] disk_reserve is a size" },
                { "[forkd]\nmemory = 3G\n", "line 2", "is no setting" },
                { "[forkd]\nmax_vms = 100001\n", "line 2", "a number from 1 to 100000" },
                { "[forkd]\nmax_vms = -1\n", "line 2", "a number from" },
                { "[forkd]\nmax_vms = 18446744073709551617\n", "line 2", "a number from" },
                { "[forkd]\nmax_vms = 4294967297\n", "line 2", "a number from" },
                { "[forkd]\nmax_vms = 5x\n", "line 2", "a number from" },
                { "[forkd]\nmax_vms =\n", "line 2", "a number from" },
                { "[pager]\nmemory_budget = 4095K\n", "line 2", "[pager] memory_budget is a size of 4M or more" },
                { "[pager]\nmemory_budget = -5G\n", "line 2", "[pager] memory_budget is a size" },
                { "[pager]\nmemory_budget = half\n", "line 2", "[pager] memory_budget is a size" },
                { "[forkd]\nlog_level = loud\n", "line 2", "log_level is error" },
                { "[vm]\nmax_vms = 5\n", "line 2", "[vm] max_vms is no setting" },
                { "max_vms = 5\n", "line 1", "max_vms is no setting" },
                { "[forkd\nmax_vms = 5\n", "line 1", "not a setting" },
                { "[forkd]\n\nmax_vms\n", "line 3", "not a setting" },
                /* two mistakes: the message fits the line */
                { "[forkd]\nnonsense\nmax_vms = 0\n", "line 2", "not a setting" },
                { "[forkd]\nmax_vms = 0\nnonsense\n", "line 2", "a number from" },
        };

        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                struct config c;
                struct err e = { 0 };

                config_defaults(&c);
                assert_fails(load(bad[i].text, &c, &e), EINVAL);
                assert_string_equal(e.code, ERR_INVALID);
                if (!strstr(e.message, bad[i].line) || !strstr(e.message, bad[i].what) || !strstr(e.message, path))
                        fail_msg("for '%s': %s", bad[i].text, e.message);
                assert_int_equal(c.max_vms, 1000);
        }
}

static void test_long_lines(void **state) {
        char text[1000], *p = text;
        struct config c;
        struct err e = { 0 };

        config_defaults(&c);
        p += sprintf(p, "[forkd]\n# ");
        memset(p, 'x', 600);
        (void) strcpy(p + 600, "\nmax_vms = 9\n");
        assert_ok(load(text, &c, &e)); /* a comment may be long */
        assert_int_equal(c.max_vms, 9);
        (void) sprintf(text, "[forkd]\nmax_vms = %0400d\nmax_vms = 7\n", 8); /* a setting may not */
        assert_fails(load(text, &c, &e), EINVAL);
        assert_non_null(strstr(e.message, "line 2: a line has at most 198 characters"));
        assert_int_equal(c.max_vms, 9);
        (void) sprintf(text, "[forkd]\nmax_vms = %0188d\n", 8); /* the longest */
        assert_ok(load(text, &c, &e));
        assert_int_equal(c.max_vms, 8);
        assert_ok(load("[forkd]\nmax_vms = 6", &c, &e)); /* no newline at the end */
        assert_int_equal(c.max_vms, 6);
}

static void test_files(void **state) {
        struct config c;
        struct err e = { 0 };

        config_defaults(&c);
        assert_ok(config_load(&c, path, false, &e));
        assert_fails(config_load(&c, path, true, &e), ENOENT);
        assert_non_null(strstr(e.message, path));
        assert_fails(config_load(&c, dir, true, &e), EISDIR);
        assert_fails(config_load(&c, dir, false, &e), EISDIR);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                T(test_defaults),     T(test_users_of_its_own), T(test_workers_as_many_as_the_pager_takes),
                T(test_all_settings), T(test_refuses),          T(test_long_lines),
                T(test_files),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
