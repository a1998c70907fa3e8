/* SPDX-License-Identifier: MIT */
/* Command lines: found, parsed, refused with the right hint. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "forkctl/command.h"

#define ARGV(...) ((char *[]){ __VA_ARGS__, NULL })
#define ARGC(...) ((int) (sizeof((char *[]){ __VA_ARGS__ }) / sizeof(char *)))
#define PARSE(c, a, ...) parse(c, a, ARGC(__VA_ARGS__), ARGV(__VA_ARGS__))

static int parse(struct ctl *c, struct args *a, int argc, char **argv) {
        const struct command *cmd;
        int words, r;

        *c = (struct ctl){ .socket = "default" };
        *a = (struct args){ 0 };
        r = command_find(c, argc, argv, &cmd, &words);
        return r < 0 ? r : args_parse(c, cmd, argc - words + 1, argv + words - 1, a);
}

static void refused(const char *message, const char *hint, int argc, char **argv) {
        struct ctl c;
        cleanup_args struct args a = { 0 };

        assert_int_equal(parse(&c, &a, argc, argv), -EINVAL);
        assert_string_equal(c.e.code, ERR_USAGE);
        if (!strstr(c.e.message, message))
                fail_msg("'%s' is not in '%s'", message, c.e.message);
        if (!strstr(c.e.hint, hint))
                fail_msg("'%s' is not in '%s'", hint, c.e.hint);
}
#define REFUSED(message, hint, ...) refused(message, hint, ARGC(__VA_ARGS__), ARGV(__VA_ARGS__))

static void test_options(void **state) {
        cleanup_args struct args a = { 0 };
        uint64_t mem = 7, vcpus = 7;
        struct ctl c;

        assert_int_equal(PARSE(&c, &a, "run", "--mem", "1.5G", "web", "-d", "/a", "--disk=/b", "--json"), 0);
        assert_int_equal(a.n_pos, 1);
        assert_string_equal(a.pos[0], "web");
        assert_true(c.json);
        assert_string_equal(c.socket, "default");
        assert_int_equal(arg_size(&c, &a, "mem", &mem), 0);
        assert_int_equal(mem, 3ull << 29);
        assert_int_equal(arg_uint(&c, &a, "vcpus", 1, 64, &vcpus), 0);
        assert_int_equal(vcpus, 7); /* not given: left alone */
        assert_string_equal(arg_nth(&a, "disk", 0), "/a");
        assert_string_equal(arg_nth(&a, "disk", 1), "/b");
        assert_null(arg_nth(&a, "disk", 2));
        assert_false(arg_given(&a, "setup"));
}

static void test_exec_line(void **state) {
        static char *const lines[][8] = {
                { "exec", "web", "-i", "--", "ls", "-l", "--json" },
                { "exec", "-i", "web", "ls", "-l", "--json" },
                { "exec", "-i", "--", "web", "ls", "-l", "--json" },
        };

        for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
                cleanup_args struct args a = { 0 };
                struct ctl c;
                int n = 0;

                while (lines[i][n])
                        n++;
                assert_int_equal(parse(&c, &a, n, (char **) lines[i]), 0);
                assert_true(arg_given(&a, "interactive"));
                assert_false(c.json); /* that one belongs to ls */
                assert_int_equal(a.n_pos, 1);
                assert_string_equal(a.pos[0], "web");
                assert_int_equal(a.n_rest, 3);
                assert_string_equal(a.rest[0], "ls");
                assert_string_equal(a.rest[2], "--json");
                assert_null(a.rest[3]);
        }
}

static void test_dashes(void **state) {
        cleanup_args struct args a = { 0 };
        struct ctl c;

        assert_int_equal(PARSE(&c, &a, "cp", "-", "web:/f"), 0);
        assert_string_equal(a.pos[0], "-");
        args_clear(&a);
        assert_int_equal(PARSE(&c, &a, "rm", "--", "--all", "b"), 0);
        assert_int_equal(a.n_pos, 2);
        assert_string_equal(a.pos[0], "--all");
        assert_false(arg_given(&a, "all"));
}

static void test_groups(void **state) {
        cleanup_args struct args a = { 0 };
        struct ctl c;

        assert_int_equal(PARSE(&c, &a, "snapshot", "rm", "a", "b", "--force"), 0);
        assert_string_equal(a.cmd->name, "snapshot rm");
        assert_int_equal(a.n_pos, 2);
        REFUSED("needs a subcommand", "forkctl help snapshot", "snapshot");
        REFUSED("unknown command 'snapshot sow'", "'forkctl snapshot show'", "snapshot", "sow");
        REFUSED("unknown command 'snapshot ls'", "", "snapshot ls"); /* one word with a space is no command */
}

static void test_refusals(void **state) {
        REFUSED("unknown command 'rnu'", "'forkctl run'", "rnu");
        REFUSED("unknown command 'snap'", "'forkctl snapshot'", "snap");
        REFUSED("unknown command 'xyzzy'", "'forkctl help'", "xyzzy");
        REFUSED("needs a subcommand", "forkctl help pool", "pool");
        REFUSED("unknown option '--meme'", "'--mem'", "run", "web", "--meme", "3");
        REFUSED("unknown option '--me'", "'--mem'", "run", "web", "--me", "3"); /* no abbreviations */
        REFUSED("unknown option '--json=1'", "'--json'", "ps", "--json=1");
        REFUSED("unknown option '-z'", "forkctl run NAME", "run", "-z", "web");
        REFUSED("'--mem' needs a value", "", "run", "web", "--mem");
        REFUSED("'-m' needs a value", "", "run", "web", "-m");
        REFUSED("--accel cannot be 'fast'", "auto|kvm|tcg", "run", "web", "--accel", "fast");
        REFUSED("--accel cannot be ''", "auto|kvm|tcg", "run", "web", "--accel", "");
        REFUSED("--accel cannot be 'kv'", "auto|kvm|tcg", "run", "web", "--accel", "kv");
        REFUSED("--mem is given twice", "", "run", "web", "--mem", "1G", "-m", "2G");
        REFUSED("needs NAME", "forkctl run NAME", "run");
        REFUSED("unexpected argument 'b'", "", "run", "a", "b");
        REFUSED("needs a command to run", "", "exec", "web");
        REFUSED("needs a command to run", "", "exec", "web", "--");
        REFUSED("needs also: SOURCE TARGET", "", "cp", "a");
}

static void test_json_after_error(void **state) {
        cleanup_args struct args a = { 0 };
        struct ctl c;

        /* whoever asked for JSON gets the error as JSON, and the first error counts */
        assert_int_equal(PARSE(&c, &a, "run", "--bad", "--mem", "--json"), -EINVAL);
        assert_false(c.json); /* here --json is the value of --mem */
        args_clear(&a);
        assert_int_equal(PARSE(&c, &a, "run", "--bad", "--worse", "--json"), -EINVAL);
        assert_true(c.json);
        assert_non_null(strstr(c.e.message, "--bad"));
}

static void test_values(void **state) {
        static char *const bad_sizes[] = { "", "x", "-1", "1X", "99999999999999999999G" };
        static char *const bad_numbers[] = { "", "x", "-1", "+1", " 1", "1 ", "0", "65", "99999999999999999999", "1e1" };
        cleanup_args struct args a = { 0 };
        uint64_t v = 5;
        struct ctl c;

        for (size_t i = 0; i < ARRAY_LEN(bad_sizes); i++) {
                assert_int_equal(PARSE(&c, &a, "run", "web", "--mem", bad_sizes[i]), 0);
                assert_int_equal(arg_size(&c, &a, "mem", &v), -EINVAL);
                args_clear(&a);
        }
        for (size_t i = 0; i < ARRAY_LEN(bad_numbers); i++) {
                assert_int_equal(PARSE(&c, &a, "run", "web", "--vcpus", bad_numbers[i]), 0);
                assert_int_equal(arg_uint(&c, &a, "vcpus", 1, 64, &v), -EINVAL);
                args_clear(&a);
        }
        assert_int_equal(v, 5);
        assert_int_equal(PARSE(&c, &a, "run", "web", "--vcpus", "64"), 0);
        assert_int_equal(arg_uint(&c, &a, "vcpus", 1, 64, &v), 0);
        assert_int_equal(v, 64);
}

static void test_many_options(void **state) {
        enum { N = COMMAND_MAX_GIVEN };
        cleanup_args struct args a = { 0 };
        char *argv[2 * (N + 1) + 3];
        struct ctl c;
        int n = 0;

        argv[n++] = (char *) "run";
        argv[n++] = (char *) "web";
        for (int i = 0; i < N; i++) {
                argv[n++] = (char *) "--disk";
                argv[n++] = (char *) "/d";
        }
        argv[n] = NULL;
        assert_int_equal(parse(&c, &a, n, argv), 0);
        assert_int_equal(a.n_given, N);
        args_clear(&a);
        argv[n++] = (char *) "--disk";
        argv[n++] = (char *) "/d";
        argv[n] = NULL;
        assert_int_equal(parse(&c, &a, n, argv), -EINVAL);
}

static void test_distance(void **state) {
        char longer[80];

        memset(longer, 'a', sizeof(longer) - 1);
        longer[sizeof(longer) - 1] = '\0';
        assert_int_equal(edit_distance("run", "run", 3), 0);
        assert_int_equal(edit_distance("rnu", "run", 3), 1);
        assert_int_equal(edit_distance("", "run", 9), 3);
        assert_int_equal(edit_distance("kitten", "sitting", 9), 3);
        assert_int_equal(edit_distance("kitten", "sitting", 1), 2); /* too far: max + 1 */
        assert_int_equal(edit_distance(longer, longer, 3), 4);      /* too long to look at */
}

/* The table itself: what the code takes for granted. */
static void test_table(void **state) {
        for (size_t i = 0; i < command_count; i++) {
                const struct command *cmd = &command_table[i];
                size_t n = 3; /* the global options */

                assert_non_null(cmd->run);
                assert_true(cmd->help[0]);
                assert_true(cmd->max_args < 0 || cmd->max_args >= cmd->min_args);
                for (size_t k = 0; k < i; k++)
                        assert_string_not_equal(cmd->name, command_table[k].name);
                for (const struct option_def *o = cmd->options; o && o->name; o++, n++)
                        for (const struct option_def *p = cmd->options; p < o; p++) {
                                assert_string_not_equal(o->name, p->name);
                                assert_true(!o->letter || o->letter != p->letter);
                        }
                assert_true(n <= COMMAND_MAX_OPTIONS);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_options), cmocka_unit_test(test_exec_line),    cmocka_unit_test(test_dashes),
                cmocka_unit_test(test_groups),  cmocka_unit_test(test_refusals),     cmocka_unit_test(test_json_after_error),
                cmocka_unit_test(test_values),  cmocka_unit_test(test_many_options), cmocka_unit_test(test_distance),
                cmocka_unit_test(test_table),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
