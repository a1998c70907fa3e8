/* SPDX-License-Identifier: MIT */
/* Help, the manual page and the completion script say what the table of commands says: all of it, nothing else. */
#include <ctype.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "fake_forkd.h"
#include "forkctl/command.h"
#include "common/json.h"

/* ---- the manual page: one .SS a command, options written \-\-name ---- */

/* Turns "\-" into "-". */
static char *plain(char *s) {
        char *to = s;

        for (const char *from = s; *from; from++)
                if (from[0] != '\\' || from[1] != '-')
                        *to++ = *from;
        *to = '\0';
        return s;
}

static const struct command *command_named(const char *name) {
        for (size_t i = 0; i < command_count; i++)
                if (strcmp(command_table[i].name, name) == 0)
                        return &command_table[i];
        return NULL;
}

static bool has_word(const char *text, const char *word) {
        size_t n = strlen(word);

        for (const char *p = text; (p = strstr(p, word)); p += n)
                if (!isalnum((unsigned char) p[n]) && p[n] != '-')
                        return true;
        return false;
}

/* Every option in @section is one of the command's, or a global one. */
static void only_known_options(const struct command *cmd, const char *section) {
        for (const char *p = section; (p = strstr(p, "--")); p += 2) {
                char name[64];
                size_t n = strspn(p + 2, "abcdefghijklmnopqrstuvwxyz-");
                bool known = n == 0; /* the bare -- of exec */

                (void) snprintf(name, sizeof(name), "%.*s", (int) MIN_OF(n, sizeof(name) - 1), p + 2);
                for (const struct option_def *o = cmd->options; o && o->name; o++)
                        known |= strcmp(o->name, name) == 0;
                for (const struct option_def *o = global_options; o->name; o++)
                        known |= strcmp(o->name, name) == 0;
                if (!known)
                        fail_msg("forkctl.1 has --%s for '%s', the program has not", name, cmd->name);
                p += n;
        }
}

static void test_manual(void **state) {
        cleanup_free char *page = NULL;
        char *commands, *save = NULL;
        size_t len, seen = 0;

        assert_int_equal(io_read_file(AT_FDCWD, MAN_PAGE, 1 << 20, &page, &len), 0);
        commands = strstr(plain(page), "\n.SH COMMANDS\n");
        assert_non_null(commands);
        for (const struct option_def *o = global_options; o->name; o++)
                assert_true(has_word(page, o->name));
        *strstr(commands + 1, "\n.SH ") = '\0';
        commands = strstr(commands, "\n.SS ") + 1;
        /* sections: "\n.SS " becomes "\n\1 SS", so that strtok can split them */
        for (char *p = commands; (p = strstr(p, ".SS ")); p += 4)
                *p = '\1';
        for (char *s = strtok_r(commands, "\1", &save); s; s = strtok_r(NULL, "\1", &save)) {
                const struct command *cmd;
                char *end = strchr(s, '\n');

                *end = '\0';
                cmd = command_named(s + 3);
                if (!cmd)
                        fail_msg("forkctl.1 has a command '%s', the program has not", s + 3);
                seen++;
                for (const struct option_def *o = cmd->options; o && o->name; o++) {
                        char word[64];

                        (void) snprintf(word, sizeof(word), "--%s", o->name);
                        if (!has_word(end + 1, word))
                                fail_msg("forkctl.1 does not have --%s of '%s'", o->name, cmd->name);
                        (void) snprintf(word, sizeof(word), "-%c", o->letter);
                        if (o->letter && !has_word(end + 1, word))
                                fail_msg("forkctl.1 does not have -%c of '%s'", o->letter, cmd->name);
                }
                only_known_options(cmd, end + 1);
        }
        assert_int_equal(seen, command_count);
}

/* ---- help ---- */

static void test_help(void **state) {
        static const char *const ways[][4] = { { "help" }, { "--help" }, { "-h" } };
        cleanup_json json_t *doc = NULL;
        struct fake *f = fake_new();
        struct run r = { 0 };

        for (size_t w = 0; w < ARRAY_LEN(ways); w++) {
                run_ctl(f, &r, ways[w]);
                assert_int_equal(r.status, 0);
                for (size_t i = 0; i < command_count; i++)
                        assert_non_null(strstr(r.out, command_table[i].help));
                run_clear(&r);
        }
        for (size_t i = 0; i < command_count; i++) {
                RUN(f, &r, "help", command_table[i].name); /* one word with a space is no command … */
                assert_int_equal(r.status, strchr(command_table[i].name, ' ') ? 2 : 0);
                run_clear(&r);
        }
        RUN(f, &r, "snapshot", "rm", "--help");
        assert_int_equal(r.status, 0);
        assert_non_null(strstr(r.out, "Usage: forkctl snapshot rm [OPTION…] SNAPSHOT…"));
        run_clear(&r);
        RUN(f, &r, "snapshot", "--help");
        assert_int_equal(r.status, 0);
        assert_non_null(strstr(r.out, "snapshot tree"));
        assert_null(strstr(r.out, "pager status"));
        run_clear(&r);
        RUN(f, &r, "help", "snapshto");
        assert_int_equal(r.status, 2);
        run_clear(&r);
        RUN(f, &r, "--json", "help");
        doc = one_document(r.out);
        assert_int_equal(json_array_size(json_list(doc, "commands")), command_count);
        run_clear(&r);
        fake_free(f);
}

/* ---- completion, in a real shell ---- */

/* What bash offers for the last of @words, one a line, sorted; to be freed. */
static char *complete(struct fake *f, const char *words) {
        static const char *const script = "source <(forkctl completion bash) || exit 9\n"
                                          "eval \"COMP_WORDS=($1)\"\n"
                                          "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n"
                                          "_forkctl\n"
                                          "(( ${#COMPREPLY[@]} )) && printf '%s\\n' \"${COMPREPLY[@]}\" | LC_ALL=C sort\n"
                                          "exit 0\n";
        struct run r = { .program = "/bin/bash" };
        char *out;

        RUN(f, &r, "--norc", "-c", script, "bash", words);
        if (r.status != 0 || r.err[0])
                fail_msg("completing %s: exit %d\n%s", words, r.status, r.err);
        out = r.out;
        r.out = NULL;
        run_clear(&r);
        return out;
}

static void offers(struct fake *f, const char *words, const char *want) {
        cleanup_free char *got = complete(f, words);

        if (strcmp(got, want) != 0)
                fail_msg("for %s:\n%snot\n%s", words, got, want);
}

static void test_completion(void **state) {
        static const struct answer answers[] = {
                { "vm.list", "{\"vms\":[{\"name\":\"web\"},{\"name\":\"work\"},{\"name\":\"db$(touch /tmp/forkctl-hacked)\"}]}" },
                { "snapshot.list", "{\"snapshots\":[{\"id\":\"89ab\"},{\"id\":\"89cd\"}]}" },
                { 0 },
        };
        struct fake *f = fake_new();

        if (access("/bin/bash", X_OK) < 0) {
                print_message("no /bin/bash here\n");
                fake_free(f);
                skip();
        }
        f->answers = answers;
        offers(f, "forkctl sn", "snapshot\n");
        offers(f, "forkctl snapshot s", "show\n");
        offers(f, "forkctl snapshot ''", "create\nls\nmemory\nrm\nshow\ntree\nverify\n");
        offers(f, "forkctl pager ''", "status\nstop\nupgrade\n");
        offers(f, "forkctl --js", "--json\n");
        offers(f, "forkctl --json res", "restore\nresume\n");
        offers(f, "forkctl standby w", "web\nwork\n");
        offers(f, "forkctl standby --tag x w", "web\nwork\n");
        offers(f, "forkctl standby web ''", "");
        offers(f, "forkctl rm web wo", "work\n");
        offers(f, "forkctl snapshot rm 89ab 89c", "89cd\n");
        offers(f, "forkctl fork 8", "89ab\n89cd\n");
        offers(f, "forkctl run x --acc", "--accel\n");
        offers(f, "forkctl run x --accel ''", "auto\nkvm\ntcg\n");
        offers(f, "forkctl standby web --compression z", "zstd\nzstd:3\n");
        offers(f, "forkctl run x --mem ''", "");
        offers(f, "forkctl exec web -- l", "");
        offers(f, "forkctl exec web --int", "--interactive\n");
        offers(f, "forkctl cp we", "web:\n");
        offers(f, "forkctl run x --disk /etc/hostn", "/etc/hostname\n");
        offers(f, "forkctl help sh", "shutdown\n");
        offers(f, "forkctl completion ''", "bash\nzsh\n");
        offers(f, "forkctl nonsense ''", "");
        /* the socket on the line is the one that is asked */
        offers(f, "forkctl --socket /nonexistent standby w", "");
        /* and what forkd says is never run */
        offers(f, "forkctl standby d", "db$(touch /tmp/forkctl-hacked)\n");
        assert_int_equal(access("/tmp/forkctl-hacked", F_OK), -1);
        fake_free(f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_manual),
                cmocka_unit_test(test_help),
                cmocka_unit_test(test_completion),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
