/* SPDX-License-Identifier: MIT */
/* The frame around every command: global options, which command, its exit code, and how an error is told. */
#include "forkctl/ctl.h"

#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "forkctl/client.h"
#include "forkctl/command.h"
#include "forkctl/commands.h"
#include "common/json.h"
#include "forkctl/table.h"

static int exit_code(const struct ctl *c, const struct command *cmd) {
        if (strcmp(c->e.code, ERR_USAGE) == 0)
                return CTL_EXIT_USAGE;
        if (strcmp(c->e.code, ERR_UNREACHABLE) == 0)
                return CTL_EXIT_UNREACHABLE;
        return cmd && cmd->fail_status ? cmd->fail_status : CTL_EXIT_FAILED;
}

/* An error that came from forkd may quote a guest: no control characters reach the terminal. */
void ctl_tell_error(const struct ctl *c) {
        char text[sizeof(c->e.message)];

        if (c->json) {
                cleanup_json json_t *j =
                        json_pack("{s:{s:o, s:o, s:o}}", "error", "code", json_text(c->e.code, strlen(c->e.code)), "message",
                                  json_text(c->e.message, strlen(c->e.message)), "hint", json_text(c->e.hint, strlen(c->e.hint)));

                if (j && json_print(stdout, j) == 0)
                        return;
        }
        (void) fprintf(stderr, "forkctl: %s\n", text_safe(c->e.message, text, sizeof(text)));
        if (c->e.hint[0])
                (void) fprintf(stderr, "hint: %s\n", text_safe(c->e.hint, text, sizeof(text)));
}

/* The options before the command. Returns how many words they are, or -errno. */
static int global_parse(struct ctl *c, int argc, char **argv, bool *ret_help, bool *ret_version) {
        int i = 1;

        for (; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
                if (strcmp(argv[i], "--json") == 0)
                        c->json = true;
                else if (strcmp(argv[i], "--socket") == 0 && i + 1 < argc)
                        c->socket = argv[++i];
                else if (strncmp(argv[i], "--socket=", 9) == 0)
                        c->socket = argv[i] + 9;
                else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
                        *ret_help = true;
                else if (strcmp(argv[i], "--version") == 0)
                        *ret_version = true;
                else if (strcmp(argv[i], "--socket") == 0)
                        return usage_error(c, NULL, "option '--socket' needs a value");
                else
                        return usage_error(c, NULL, "unknown option '%.80s'", argv[i]);
        }
        return i;
}

static const struct command *builtin(const char *name) {
        for (size_t i = 0; i < command_count; i++)
                if (strcmp(command_table[i].name, name) == 0)
                        return &command_table[i];
        return NULL;
}

/* `snapshot --help`: no command of its own, but a fair question. */
static bool asks_group_help(int argc, char **argv) {
        return argc == 2 && command_is_group(argv[0]) && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
}

static int run_command(struct ctl *c, int argc, char **argv, const struct command **ret_cmd) {
        cleanup_args struct args a = { 0 };
        const struct command *cmd;
        int words, r;

        if (asks_group_help(argc, argv)) {
                char *help[] = { (char *) "help", argv[0], NULL };

                return run_command(c, 2, help, ret_cmd);
        }
        r = command_find(c, argc, argv, &cmd, &words);
        if (r < 0)
                return r;
        *ret_cmd = cmd;
        r = args_parse(c, cmd, argc - words + 1, argv + words - 1, &a);
        if (r < 0)
                return r;
        if (a.help) {
                char *help[] = { (char *) "help", argv[0], words == 2 ? argv[1] : NULL, NULL };

                args_clear(&a);
                return run_command(c, words + 1, help, ret_cmd);
        }
        c->progress = !c->json && isatty(STDERR_FILENO);
        return cmd->run(c, &a);
}

/* What a filter's end looks like when nobody reads it any more; and nobody is there to be told. */
static bool reader_gone(const struct ctl *c, int code) {
        return code < 0 && c->e.r == -EPIPE && ferror(stdout);
}

/* Output that did not reach the disk or the pipe must not look like success. */
static int flush_output(void) {
        errno = 0;
        if (fflush(stdout) == 0 && !ferror(stdout))
                return CTL_EXIT_OK;
        if (errno == EPIPE)
                return CTL_EXIT_SIGNAL + SIGPIPE;
        (void) fprintf(stderr, "forkctl: cannot write the output: %s\n", strerror(errno ? errno : EIO));
        return CTL_EXIT_FAILED;
}

int ctl_main(int argc, char **argv) {
        const char *socket = getenv("FORKD_SOCKET");
        struct ctl c = { .socket = socket && *socket ? socket : CTL_SOCKET_DEFAULT };
        const struct command *cmd = NULL;
        bool help = false, version = false;
        int code, first;

        (void) setlocale(LC_CTYPE, "");
        (void) signal(SIGPIPE, SIG_IGN);
        first = global_parse(&c, argc, argv, &help, &version);
        if (first < 0)
                code = first;
        else if (version)
                code = builtin("version")->run(&c, &(struct args){ .cmd = builtin("version") });
        else if (help && first >= argc)
                code = builtin("help")->run(&c, &(struct args){ .cmd = builtin("help") });
        else if (help) {
                /* forkctl --help run: as forkctl help run */
                argv[first - 1] = (char *) "help";
                code = run_command(&c, argc - first + 1, argv + first - 1, &cmd);
        } else
                code = run_command(&c, argc - first, argv + first, &cmd);
        ctl_disconnect(&c);
        if (reader_gone(&c, code)) {
                code = CTL_EXIT_SIGNAL + SIGPIPE;
        } else if (code < 0) {
                code = exit_code(&c, cmd);
                ctl_tell_error(&c);
        }
        return code == CTL_EXIT_OK ? flush_output() : code;
}
