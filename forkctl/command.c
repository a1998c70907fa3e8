/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * getopt_long sees an option array made from the command's table rows. It runs in "return in order" mode,
 * so options may stand before and after positional arguments, and a command that takes a command line of
 * its own (exec) can stop at the first word that belongs to that line, with or without `--` before it.
 *
 * After an error the scan goes on to the end, but only to see whether --json is there: somebody who asked
 * for JSON gets the error as JSON. */
#include "forkctl/command.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <string.h>

#include "common/ids.h"

#define EDIT_MAX_WORD 63

const struct option_def global_options[] = {
        { .name = "socket",
          .arg = "PATH",
          .complete = COMPLETE_FILE,
          .help = "forkd's socket (FORKD_SOCKET, or " CTL_SOCKET_DEFAULT ")" },
        { .name = "json", .help = "one JSON document on stdout, errors too" },
        { .name = "help", .letter = 'h', .help = "what a command does" },
        { 0 },
};

int usage_error(struct ctl *c, const struct command *cmd, const char *fmt, ...) {
        char text[sizeof(c->e.message)];
        va_list ap;

        va_start(ap, fmt);
        (void) vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        (void) err_set(&c->e, ERR_USAGE, -EINVAL, "%s", text);
        if (cmd)
                (void) err_hint(&c->e, "forkctl %s%s%s; 'forkctl help %s' has the options", cmd->name, cmd->args[0] ? " " : "",
                                cmd->args, cmd->name);
        else
                (void) err_hint(&c->e, "'forkctl help' lists the commands");
        return -EINVAL;
}

/* ---- finding a command ---- */

/* Two neighbours that changed places count as one error: it is the commonest typing mistake. */
unsigned edit_distance(const char *a, const char *b, unsigned max) {
        size_t la = strlen(a), lb = strlen(b);
        unsigned d[3][EDIT_MAX_WORD + 1]; /* the last three rows of the matrix */

        if (la > EDIT_MAX_WORD || lb > EDIT_MAX_WORD)
                return max + 1;
        for (size_t j = 0; j <= lb; j++)
                d[0][j] = (unsigned) j;
        for (size_t i = 1; i <= la; i++) {
                unsigned *row = d[i % 3], *up = d[(i + 2) % 3], *up2 = d[(i + 1) % 3];

                row[0] = (unsigned) i;
                for (size_t j = 1; j <= lb; j++) {
                        row[j] = MIN_OF(MIN_OF(up[j], row[j - 1]) + 1, up[j - 1] + (a[i - 1] != b[j - 1]));
                        if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                                row[j] = MIN_OF(row[j], up2[j - 2] + 1);
                }
        }
        return MIN_OF(d[la % 3][lb], max + 1);
}

/* A third of the letters may be wrong, but at least one: "rn" still finds "run". */
static unsigned near_enough(const char *word) {
        return MAX_OF((unsigned) strlen(word) / 3, 1u);
}

/* The first @n bytes of @name against @word; a beginning of the name counts as one error. */
static unsigned name_distance(const char *word, const char *name, size_t n, unsigned max) {
        char part[EDIT_MAX_WORD + 1];
        size_t len = strlen(word);

        if (n > EDIT_MAX_WORD)
                return max + 1;
        (void) snprintf(part, sizeof(part), "%.*s", (int) n, name);
        return len >= 2 && len < n && strncmp(word, part, len) == 0 ? 1 : edit_distance(word, part, max);
}

const char *command_nearest(const char *word, char *buf, size_t size) {
        unsigned best = near_enough(word) + 1;
        const char *found = NULL;
        size_t found_len = 0;

        for (size_t i = 0; i < command_count; i++) {
                const char *name = command_table[i].name;
                size_t lens[] = { strcspn(name, " "), strlen(name) };

                for (size_t k = 0; k < ARRAY_LEN(lens); k++) {
                        unsigned d = name_distance(word, name, lens[k], best);

                        if (d < best) {
                                best = d;
                                found = name;
                                found_len = lens[k];
                        }
                }
        }
        if (!found)
                return NULL;
        (void) snprintf(buf, size, "%.*s", (int) found_len, found);
        return buf;
}

bool command_is_group(const char *name) {
        size_t n = strlen(name);

        for (size_t i = 0; i < command_count; i++)
                if (strncmp(command_table[i].name, name, n) == 0 && command_table[i].name[n] == ' ')
                        return true;
        return false;
}

static const struct command *lookup(const char *name) {
        for (size_t i = 0; i < command_count; i++)
                if (strcmp(command_table[i].name, name) == 0)
                        return &command_table[i];
        return NULL;
}

static int unknown_command(struct ctl *c, const char *name) {
        char buf[EDIT_MAX_WORD + 1];
        const char *near = command_nearest(name, buf, sizeof(buf));

        (void) usage_error(c, NULL, "unknown command '%.80s'", name);
        if (near)
                (void) err_hint(&c->e, "did you mean 'forkctl %s'?", near);
        return -EINVAL;
}

int command_find(struct ctl *c, int argc, char **argv, const struct command **ret, int *ret_words) {
        const struct command *cmd;
        char both[128];

        if (argc < 1)
                return usage_error(c, NULL, "no command given");
        if (!command_is_group(argv[0])) {
                cmd = strchr(argv[0], ' ') ? NULL : lookup(argv[0]);
                if (!cmd)
                        return unknown_command(c, argv[0]);
                *ret = cmd;
                *ret_words = 1;
                return 0;
        }
        if (argc < 2 || argv[1][0] == '-') {
                (void) usage_error(c, NULL, "'%s' needs a subcommand", argv[0]);
                (void) err_hint(&c->e, "'forkctl help %s' lists them", argv[0]);
                return -EINVAL;
        }
        (void) snprintf(both, sizeof(both), "%s %s", argv[0], argv[1]);
        cmd = lookup(both);
        if (!cmd)
                return unknown_command(c, both);
        *ret = cmd;
        *ret_words = 2;
        return 0;
}

/* ---- parsing ---- */

static const struct option_def *find_option(const struct command *cmd, const char *name) {
        for (const struct option_def *o = cmd->options; o && o->name; o++)
                if (strcmp(o->name, name) == 0)
                        return o;
        for (const struct option_def *o = global_options; o->name; o++)
                if (strcmp(o->name, name) == 0)
                        return o;
        return NULL;
}

/* getopt's forms of the table: the long options in the table's order, globals last; @ret_short must have
 * room for three bytes an option and three more. */
static void make_getopt(const struct command *cmd, struct option *ret_long, const struct option_def **ret_defs, char *ret_short) {
        const struct option_def *lists[] = { cmd->options, global_options };
        size_t n = 0, s = 0;

        ret_short[s++] = '-'; /* positional arguments come in order, as the value of option 1 */
        ret_short[s++] = ':'; /* a missing value is ':', not '?' */
        for (size_t l = 0; l < ARRAY_LEN(lists); l++)
                for (const struct option_def *o = lists[l]; o && o->name; o++) {
                        ret_defs[n] = o;
                        ret_long[n++] = (struct option){ o->name, o->arg ? required_argument : no_argument, NULL, 0 };
                        if (o->letter) {
                                ret_short[s++] = o->letter;
                                if (o->arg)
                                        ret_short[s++] = ':';
                        }
                        assert(n <= COMMAND_MAX_OPTIONS);
                }
        ret_long[n] = (struct option){ 0 };
        ret_short[s] = '\0';
}

static bool is_choice(const char *choices, const char *value) {
        size_t n = strlen(value);

        for (const char *p = choices;; p++) {
                size_t len = strcspn(p, "|");

                if (len == n && strncmp(p, value, n) == 0)
                        return true;
                p += len;
                if (!*p)
                        return false;
        }
}

static int unknown_option(struct ctl *c, const struct command *cmd, const char *word) {
        char name[EDIT_MAX_WORD + 1];
        unsigned best;
        const struct option_def *lists[] = { cmd->options, global_options };
        const char *near = NULL;
        int r = usage_error(c, cmd, "unknown option '%.80s' for '%s'", word, cmd->name);

        if (strncmp(word, "--", 2) != 0)
                return r;
        (void) snprintf(name, sizeof(name), "%.*s", (int) MIN_OF(strcspn(word + 2, "="), sizeof(name) - 1), word + 2);
        best = near_enough(name) + 1;
        for (size_t l = 0; l < ARRAY_LEN(lists); l++)
                for (const struct option_def *o = lists[l]; o && o->name; o++) {
                        unsigned d = edit_distance(name, o->name, best);

                        if (d < best) {
                                best = d;
                                near = o->name;
                        }
                }
        if (near)
                (void) err_hint(&c->e, "did you mean '--%s'?", near);
        return r;
}

static int take_option(struct ctl *c, struct args *a, const struct option_def *def, const char *value) {
        if (def == &global_options[0]) {
                c->socket = value;
                return 0;
        }
        if (def == &global_options[1]) {
                c->json = true;
                return 0;
        }
        if (def == &global_options[2]) {
                a->help = true;
                return 0;
        }
        if (def->choices && !is_choice(def->choices, value)) {
                (void) usage_error(c, a->cmd, "--%s cannot be '%.80s'", def->name, value);
                (void) err_hint(&c->e, "one of: %s", def->choices);
                return -EINVAL;
        }
        if (!def->repeat && arg_given(a, def->name))
                return usage_error(c, a->cmd, "--%s is given twice", def->name);
        if (a->n_given == COMMAND_MAX_GIVEN)
                return usage_error(c, a->cmd, "more than %d options", COMMAND_MAX_GIVEN);
        a->given[a->n_given].def = def;
        a->given[a->n_given++].value = def->arg ? value : NULL;
        return 0;
}

static const struct option_def *by_letter(const struct option_def *const *defs, int letter) {
        for (; *defs; defs++)
                if ((*defs)->letter == letter)
                        return *defs;
        return NULL;
}

/* getopt takes abbreviations; a script that uses one breaks when a second option starts the same. */
static bool written_in_full(const struct option_def *def, char **argv) {
        const char *word = argv[optind - 1];
        size_t n = strlen(def->name);

        if (def->arg && optarg == word)
                word = argv[optind - 2];
        return strncmp(word + 2, def->name, n) == 0 && (word[2 + n] == '\0' || word[2 + n] == '=');
}

static int check_count(struct ctl *c, const struct args *a) {
        const struct command *cmd = a->cmd;

        if (cmd->takes_command && a->n_pos == 1 && a->n_rest == 0)
                return usage_error(c, cmd, "'%s' needs a command to run", cmd->name);
        if (a->n_pos < cmd->min_args)
                return usage_error(c, cmd, "'%s' needs %s%s", cmd->name, a->n_pos ? "also: " : "", cmd->args);
        if (cmd->max_args >= 0 && a->n_pos > cmd->max_args)
                return usage_error(c, cmd, "unexpected argument '%.80s'", a->pos[cmd->max_args]);
        return 0;
}

/* One turn of the parser: what getopt said in @o about the word before optind. */
static int take_word(struct ctl *c, struct args *a, const struct option_def *const *defs, int o, int index, char **argv) {
        char letter[3] = { '-', (char) optopt, '\0' };

        switch (o) {
        case 1:
                a->pos[a->n_pos++] = optarg;
                return 0;
        case 0:
                if (!written_in_full(defs[index], argv))
                        return unknown_option(c, a->cmd, argv[optind - (optarg == argv[optind - 1] ? 2 : 1)]);
                return take_option(c, a, defs[index], optarg);
        case ':':
                return usage_error(c, a->cmd, "option '%.80s' needs a value", optopt ? letter : argv[optind - 1]);
        case '?':
                return unknown_option(c, a->cmd, optopt ? letter : argv[optind - 1]);
        default:
                return take_option(c, a, by_letter(defs, o), optarg);
        }
}

int args_parse(struct ctl *c, const struct command *cmd, int argc, char **argv, struct args *ret) {
        struct option longs[COMMAND_MAX_OPTIONS + 1];
        const struct option_def *defs[COMMAND_MAX_OPTIONS + 1] = { NULL };
        char shorts[3 * COMMAND_MAX_OPTIONS + 3];
        struct err first = { 0 };
        int o, index = -1;

        ret->cmd = cmd;
        ret->n_given = 0;
        ret->n_pos = ret->n_rest = 0;
        ret->rest = NULL;
        ret->help = false;
        ret->pos = calloc((size_t) argc + 1, sizeof(char *));
        if (!ret->pos)
                return err_errno(&c->e, -ENOMEM, "reading the command line");
        make_getopt(cmd, longs, defs, shorts);
        optind = 0; /* glibc: start over, with a fresh look at the mode */
        opterr = 0;
        while ((o = getopt_long(argc, argv, shorts, longs, &index)) != -1) {
                if (o == 1 && cmd->takes_command && ret->n_pos == 1) {
                        optind--; /* the first word of the command: all from here on is its own */
                        break;
                }
                if (take_word(c, ret, defs, o, index, argv) < 0 && first.r == 0)
                        first = c->e;
        }
        for (; !cmd->takes_command && optind < argc; optind++)
                ret->pos[ret->n_pos++] = argv[optind];
        /* `exec -- NAME CMD` would be odd, but then NAME is the first word behind the dashes. */
        if (cmd->takes_command && ret->n_pos == 0 && optind < argc)
                ret->pos[ret->n_pos++] = argv[optind++];
        if (cmd->takes_command) {
                ret->rest = argv + optind;
                ret->n_rest = argc - optind;
        }
        if (ret->help)
                return 0;
        if (first.r < 0) {
                c->e = first;
                return -EINVAL;
        }
        return check_count(c, ret);
}

void args_clear(struct args *a) {
        free(a->pos);
        a->pos = NULL;
}

bool arg_given(const struct args *a, const char *name) {
        const struct option_def *def = find_option(a->cmd, name);

        assert(def);
        for (size_t i = 0; i < a->n_given; i++)
                if (a->given[i].def == def)
                        return true;
        return false;
}

const char *arg_nth(const struct args *a, const char *name, size_t nth) {
        const struct option_def *def = find_option(a->cmd, name);

        assert(def);
        for (size_t i = 0; i < a->n_given; i++)
                if (a->given[i].def == def && nth-- == 0)
                        return a->given[i].value;
        return NULL;
}

const char *arg_str(const struct args *a, const char *name) {
        return arg_nth(a, name, 0);
}

int arg_size(struct ctl *c, const struct args *a, const char *name, uint64_t *ret) {
        const char *s = arg_str(a, name);

        if (!s)
                return 0;
        if (size_parse(s, ret) < 0) {
                (void) usage_error(c, a->cmd, "--%s cannot be '%.80s'", name, s);
                (void) err_hint(&c->e, "a size, for example 512M or 8G");
                return -EINVAL;
        }
        return 0;
}

int arg_uint(struct ctl *c, const struct args *a, const char *name, uint64_t min, uint64_t max, uint64_t *ret) {
        const char *s = arg_str(a, name);
        unsigned long long v;
        char *end;

        if (!s)
                return 0;
        errno = 0;
        v = strtoull(s, &end, 10);
        if (s[0] < '0' || s[0] > '9' || *end || errno || v < min || v > max) {
                (void) usage_error(c, a->cmd, "--%s cannot be '%.80s'", name, s);
                (void) err_hint(&c->e, "a number from %llu to %llu", (unsigned long long) min, (unsigned long long) max);
                return -EINVAL;
        }
        *ret = v;
        return 0;
}
