/* SPDX-License-Identifier: MIT */
/* The completion script, from the table of commands.
 *
 * The script holds two generated functions, what a command takes and what an option's value is, and a fixed
 * part that finds out where the cursor is. Names of VMs and snapshots come from `forkctl ps -q` and
 * `forkctl snapshot ls -q` at that moment. Words are matched by the shell itself, never by `compgen -W`,
 * which would expand what forkd said. */
#include <errno.h>
#include <string.h>

#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "common/json.h"

static const char *kind_name(enum complete kind) {
        switch (kind) {
        case COMPLETE_VM:
                return "vm";
        case COMPLETE_SNAPSHOT:
                return "snapshot";
        case COMPLETE_SOURCE:
                return "source";
        case COMPLETE_FILE:
                return "file";
        case COMPLETE_DIR:
                return "dir";
        case COMPLETE_COPY:
                return "copy";
        case COMPLETE_COMMAND:
                return "command";
        case COMPLETE_POOL:
                return "pool";
        case COMPLETE_SHELL:
                return "shell";
        case COMPLETE_NONE:
                break;
        }
        return "none";
}

static void put_option_names(FILE *f, const struct option_def *o) {
        for (; o && o->name; o++) {
                (void) fprintf(f, "--%s ", o->name);
                if (o->letter)
                        (void) fprintf(f, "-%c ", o->letter);
        }
}

/* command → its options, and what its first and its further arguments are */
static void put_commands(FILE *f) {
        (void) fputs("__forkctl_command() {\n    case $1 in\n", f);
        for (size_t i = 0; i < command_count; i++) {
                const struct command *cmd = &command_table[i];
                enum complete rest = cmd->takes_command ? COMPLETE_NONE : cmd->complete[1];

                (void) fprintf(f, "    '%s') options='", cmd->name);
                put_option_names(f, cmd->options);
                put_option_names(f, global_options);
                (void) fprintf(f, "' first=%s rest=%s ;;\n", kind_name(cmd->complete[0]), kind_name(rest));
        }
        (void) fputs("    *) return 1 ;;\n    esac\n}\n\n", f);
}

static void put_value(FILE *f, const char *command, const struct option_def *o) {
        const char *words = o->choices ? o->choices : o->suggest;

        if (!o->arg)
                return;
        (void) fprintf(f, "    '%s --%s'", command, o->name);
        if (o->letter)
                (void) fprintf(f, "|'%s -%c'", command, o->letter);
        (void) fprintf(f, ") value=%s words='", words ? "words" : kind_name(o->complete));
        for (const char *p = words; p && *p; p++)
                (void) fputc(*p == '|' ? ' ' : *p, f);
        (void) fputs("' ;;\n", f);
}

/* command and option → what its value is; options without one are not listed */
static void put_values(FILE *f) {
        (void) fputs("__forkctl_value() {\n    case $1 in\n", f);
        for (size_t i = 0; i < command_count; i++) {
                for (const struct option_def *o = command_table[i].options; o && o->name; o++)
                        put_value(f, command_table[i].name, o);
                for (const struct option_def *o = global_options; o->name; o++)
                        put_value(f, command_table[i].name, o);
        }
        for (const struct option_def *o = global_options; o->name; o++)
                put_value(f, "", o);
        (void) fputs("    *) return 1 ;;\n    esac\n}\n\n", f);
}

/* First words, and the second words of groups. */
static void put_words(FILE *f) {
        const char *group = "";

        (void) fputs("__forkctl_words() {\n    case $1 in\n    '') words='", f);
        for (size_t i = 0; i < command_count; i++) {
                size_t n = strcspn(command_table[i].name, " ");

                if (i == 0 || strncmp(command_table[i - 1].name, command_table[i].name, n) != 0 ||
                    command_table[i - 1].name[n] != ' ')
                        (void) fprintf(f, "%.*s ", (int) n, command_table[i].name);
        }
        (void) fputs("' ;;\n", f);
        for (size_t i = 0; i < command_count; i++) {
                const char *space = strchr(command_table[i].name, ' ');
                size_t n = space ? (size_t) (space - command_table[i].name) : 0;

                if (*group && (!space || strncmp(group, command_table[i].name, n + 1) != 0))
                        (void) fputs("' ;;\n", f);
                if (space && (!*group || strncmp(group, command_table[i].name, n + 1) != 0))
                        (void) fprintf(f, "    '%.*s') words='", (int) n, command_table[i].name);
                group = space ? command_table[i].name : "";
                if (space)
                        (void) fprintf(f, "%s ", space + 1);
        }
        (void) fputs(*group ? "' ;;\n    *) return 1 ;;\n    esac\n}\n\n" : "    *) return 1 ;;\n    esac\n}\n\n", f);
}

static const char *const fixed_part =
        "__forkctl_match() {\n"
        "    local w\n"
        "    while IFS= read -r w; do\n"
        "        [[ -n $w && $w == \"$cur\"* ]] && COMPREPLY+=(\"$w\")\n"
        "    done\n"
        "}\n"
        "\n"
        "__forkctl_ask() {\n"
        "    if [[ -n $socket ]]; then\n"
        "        command forkctl --socket \"$socket\" \"$@\" -q 2>/dev/null\n"
        "    else\n"
        "        command forkctl \"$@\" -q 2>/dev/null\n"
        "    fi\n"
        "}\n"
        "\n"
        "__forkctl_complete() {\n"
        "    case $1 in\n"
        "    words) __forkctl_match < <(printf '%s\\n' ${words}) ;;\n"
        "    vm) __forkctl_match < <(__forkctl_ask ps) ;;\n"
        "    snapshot) __forkctl_match < <(__forkctl_ask snapshot ls) ;;\n"
        "    pool) __forkctl_match < <(__forkctl_ask pool ls) ;;\n"
        "    source) __forkctl_match < <(__forkctl_ask ps; __forkctl_ask snapshot ls) ;;\n"
        "    file) compopt -o filenames 2>/dev/null; __forkctl_match < <(compgen -f -- \"$cur\") ;;\n"
        "    dir) compopt -o filenames 2>/dev/null; __forkctl_match < <(compgen -d -- \"$cur\") ;;\n"
        "    copy)\n"
        "        compopt -o nospace 2>/dev/null\n"
        "        __forkctl_match < <(__forkctl_ask ps | while IFS= read -r vm; do printf '%s:\\n' \"$vm\"; done)\n"
        "        __forkctl_match < <(compgen -f -- \"$cur\")\n"
        "        ;;\n"
        "    command) __forkctl_words '' && __forkctl_match < <(printf '%s\\n' ${words}) ;;\n"
        "    shell) __forkctl_match < <(printf '%s\\n' bash zsh) ;;\n"
        "    esac\n"
        "}\n"
        "\n"
        "_forkctl() {\n"
        "    local cur=${COMP_WORDS[COMP_CWORD]} socket= name= group= options= first= rest= value= words= w i n=0\n"
        "    COMPREPLY=()\n"
        "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
        "        w=${COMP_WORDS[i]}\n"
        "        if [[ $w == -- ]]; then\n"
        "            return\n"
        "        elif [[ $w == -?* ]]; then\n"
        "            if __forkctl_value \"$name $w\"; then\n"
        "                ((i + 1 == COMP_CWORD)) && { __forkctl_complete \"$value\"; return; }\n"
        "                ((i++))\n"
        "                [[ $w == --socket ]] && socket=${COMP_WORDS[i]}\n"
        "            fi\n"
        "        elif [[ -n $name ]]; then\n"
        "            ((n++))\n"
        "        elif [[ -n $group ]]; then\n"
        "            name=\"$group $w\"\n"
        "            __forkctl_command \"$name\" || return\n"
        "        elif __forkctl_words \"$w\"; then\n"
        "            group=$w\n"
        "        else\n"
        "            name=$w\n"
        "            __forkctl_command \"$name\" || return\n"
        "        fi\n"
        "    done\n"
        "    if [[ -z $name ]]; then\n"
        "        __forkctl_words \"$group\"\n"
        "        [[ $cur == -* && -z $group ]] && words='--socket --json --help --version'\n"
        "        __forkctl_complete words\n"
        "    elif [[ $cur == -?* || ($cur == - && $name != cp) ]]; then\n"
        "        words=$options\n"
        "        __forkctl_complete words\n"
        "    elif ((n == 0)); then\n"
        "        __forkctl_complete \"$first\"\n"
        "    else\n"
        "        __forkctl_complete \"$rest\"\n"
        "    fi\n"
        "}\n"
        "\n"
        "complete -F _forkctl forkctl\n";

static int make_script(const char *shell, char **ret) {
        char *text = NULL;
        size_t size;
        FILE *f = open_memstream(&text, &size);

        if (!f)
                return -ENOMEM;
        (void) fprintf(f, "# completion of forkctl %s for %s; made by 'forkctl completion %s'\n\n", FORKD_VERSION, shell, shell);
        if (strcmp(shell, "zsh") == 0)
                (void) fputs("autoload -U +X bashcompinit && bashcompinit\n\n", f);
        put_words(f);
        put_commands(f);
        put_values(f);
        (void) fputs(fixed_part, f);
        if (ferror(f) | fclose(f)) {
                free(text);
                return -ENOMEM;
        }
        *ret = text;
        return 0;
}

int cmd_completion(struct ctl *c, const struct args *a) {
        const char *shell = a->pos[0];
        cleanup_json json_t *doc = NULL;
        cleanup_free char *script = NULL;
        int r;

        if (strcmp(shell, "bash") != 0 && strcmp(shell, "zsh") != 0) {
                (void) usage_error(c, a->cmd, "no completion for '%.80s'", shell);
                (void) err_hint(&c->e, "one of: bash, zsh");
                return -EINVAL;
        }
        r = make_script(shell, &script);
        if (r < 0)
                return err_errno(&c->e, r, "making the script");
        if (!c->json) {
                (void) fputs(script, stdout);
                return 0;
        }
        doc = json_pack("{s:s, s:s}", "shell", shell, "script", script);
        return doc ? ctl_print(c, doc) : err_errno(&c->e, -ENOMEM, "making the script");
}
