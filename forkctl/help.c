/* SPDX-License-Identifier: MIT */
/* Help, from the table of commands. */
#include <errno.h>
#include <string.h>

#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "common/json.h"
#include "forkctl/table.h"

#define HELP_INDENT 30

static void print_wrapped(FILE *f, const char *left, const char *right) {
        size_t n = 0;

        for (const char *s = left; *s; s++)
                n += ((unsigned char) *s & 0xc0) != 0x80;
        if (n + 2 > HELP_INDENT)
                (void) fprintf(f, "  %s\n  %*s%s\n", left, HELP_INDENT, "", right);
        else
                (void) fprintf(f, "  %s%*s%s\n", left, (int) (HELP_INDENT - n), "", right);
}

static void print_command(FILE *f, const struct command *cmd) {
        char left[96];

        (void) snprintf(left, sizeof(left), "%s%s%s", cmd->name, cmd->args[0] ? " " : "", cmd->args);
        print_wrapped(f, left, cmd->help);
}

static void print_options(FILE *f, const struct option_def *o) {
        for (; o && o->name; o++) {
                char left[96], letter[8] = "    ";

                if (o->letter)
                        (void) snprintf(letter, sizeof(letter), "-%c, ", o->letter);
                (void) snprintf(left, sizeof(left), "%s--%s%s%s", letter, o->name, o->arg ? " " : "", o->arg ? o->arg : "");
                print_wrapped(f, left, o->help);
        }
}

void help_overview(FILE *f) {
        (void) fputs("Usage: forkctl [--socket PATH] [--json] COMMAND [OPTION…] [ARGUMENT…]\n\n"
                     "Snapshots and forks virtual machines, by way of forkd.\n\nCommands:\n",
                     f);
        for (size_t i = 0; i < command_count; i++)
                print_command(f, &command_table[i]);
        (void) fputs("\nOptions of every command:\n", f);
        print_options(f, global_options);
        (void) fputs("\nExit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 forkd not reachable. exec passes the\n"
                     "command's own code, 125 if it could not be run, 128+n if signal n ended it.\n"
                     "'forkctl help COMMAND' tells more.\n",
                     f);
}

void help_group(FILE *f, const char *group) {
        size_t n = strlen(group);

        (void) fprintf(f, "Usage: forkctl %s COMMAND …\n\nCommands:\n", group);
        for (size_t i = 0; i < command_count; i++)
                if (strncmp(command_table[i].name, group, n) == 0 && command_table[i].name[n] == ' ')
                        print_command(f, &command_table[i]);
}

void help_command(FILE *f, const struct command *cmd) {
        (void) fprintf(f, "Usage: forkctl %s%s%s%s\n\n%s\n", cmd->name, cmd->options ? " [OPTION…]" : "", cmd->args[0] ? " " : "",
                       cmd->args, cmd->help);
        if (cmd->options) {
                (void) fputs("\nOptions:\n", f);
                print_options(f, cmd->options);
        }
        (void) fputs("\nOptions of every command:\n", f);
        print_options(f, global_options);
}

static json_t *options_json(const struct option_def *o) {
        json_t *list = json_array();

        for (; list && o && o->name; o++) {
                const char letter[2] = { o->letter, '\0' };

                if (json_array_append_new(list, json_pack("{s:s, s:s*, s:s*, s:b, s:s}", "name", o->name, "letter",
                                                          o->letter ? letter : NULL, "arg", o->arg, "repeat", o->repeat, "help",
                                                          o->help)) < 0) {
                        json_decref(list);
                        return NULL;
                }
        }
        return list;
}

/* The table itself, for programs that wrap forkctl. @only: one command or group, NULL: all. */
static int help_json(struct ctl *c, const char *only) {
        cleanup_json json_t *list = json_array(), *doc = NULL;
        size_t n = only ? strlen(only) : 0;

        for (size_t i = 0; list && i < command_count; i++) {
                const struct command *cmd = &command_table[i];

                if (only && (strncmp(cmd->name, only, n) != 0 || (cmd->name[n] && cmd->name[n] != ' ')))
                        continue;
                if (json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:o}", "name", cmd->name, "args", cmd->args, "help",
                                                          cmd->help, "options", options_json(cmd->options))) < 0)
                        return err_errno(&c->e, -ENOMEM, "listing the commands");
        }
        doc = json_pack("{s:O}", "commands", list);
        if (!doc)
                return err_errno(&c->e, -ENOMEM, "listing the commands");
        return ctl_print(c, doc);
}

int cmd_help(struct ctl *c, const struct args *a) {
        const struct command *cmd;
        bool group = a->n_pos == 1 && command_is_group(a->pos[0]);
        int words, r;

        if (a->n_pos == 0) {
                if (c->json)
                        return help_json(c, NULL);
                help_overview(stdout);
                return 0;
        }
        if (group) {
                if (c->json)
                        return help_json(c, a->pos[0]);
                help_group(stdout, a->pos[0]);
                return 0;
        }
        r = command_find(c, a->n_pos, a->pos, &cmd, &words);
        if (r < 0)
                return r;
        if (words < a->n_pos)
                return usage_error(c, a->cmd, "unexpected argument '%.80s'", a->pos[words]);
        if (c->json)
                return help_json(c, cmd->name);
        help_command(stdout, cmd);
        return 0;
}
