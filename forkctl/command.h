/* SPDX-License-Identifier: MIT */
/* The table of commands, and what is derived from it: parsing, help and completion. A command or an option
 * that is not in the table does not exist; one that is there is parsed, documented and completed. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/cleanup.h"
#include "forkctl/ctl.h"

#define COMMAND_MAX_OPTIONS 24 /* of one command, the global ones counted */
#define COMMAND_MAX_GIVEN 512  /* options on one command line, repeated ones counted */

/** What stands in for a word, for completion. */
enum complete {
        COMPLETE_NONE,
        COMPLETE_VM,
        COMPLETE_SNAPSHOT,
        COMPLETE_SOURCE, /* a VM or a snapshot */
        COMPLETE_FILE,
        COMPLETE_DIR,
        COMPLETE_COPY,    /* NAME:PATH or a file */
        COMPLETE_COMMAND, /* a name of this table */
        COMPLETE_POOL,
        COMPLETE_SHELL,
};

struct option_def {
        const char *name;    /* without the dashes */
        const char *arg;     /* what the value is called; NULL: a flag */
        const char *choices; /* "a|b": nothing else is taken */
        const char *suggest; /* "a|b": completed, but other values are taken too */
        enum complete complete;
        char letter; /* 0: none */
        bool repeat; /* may be given more than once */
        const char *help;
};

struct args;

struct command {
        const char *name;                 /* one word, or two for a command of a group: "snapshot ls" */
        const char *args;                 /* the positional arguments, as the synopsis has them */
        const char *help;                 /* one line */
        const struct option_def *options; /* ends with a NULL name; may be NULL */
        int min_args, max_args;           /* positional arguments; max -1: any number */
        enum complete complete[2];        /* of the first positional, and of all further ones */
        bool takes_command;               /* after the first positional all is a command line of its own */
        int fail_status;                  /* exit code of a failure that is neither usage nor unreachable; 0: 1 */
        /** Returns an exit code, or -errno with c->e set. */
        int (*run)(struct ctl *c, const struct args *a);
};

extern const struct command command_table[];
extern const size_t command_count;

/** A parsed command line. Points into argv. */
struct args {
        const struct command *cmd;
        struct {
                const struct option_def *def;
                const char *value; /* NULL for a flag */
        } given[COMMAND_MAX_GIVEN];
        size_t n_given;
        char **pos; /* positional arguments; owned */
        int n_pos;
        char **rest; /* takes_command: the command line, NULL-terminated */
        int n_rest;
        bool help; /* --help was there: nothing else counts */
};

/** Finds the command that @argv (of @argc words) starts with; *ret_words is how many words name it (1 or 2).
 *  -EINVAL with a usage error that names the nearest one. */
int command_find(struct ctl *c, int argc, char **argv, const struct command **ret, int *ret_words) attr_warn_unused;

/** Parses what follows the command's name; @argv[0] is ignored. Sets c->json and c->socket when it meets
 *  --json and --socket, also in a line with errors, so that the error is told in the right form. */
int args_parse(struct ctl *c, const struct command *cmd, int argc, char **argv, struct args *ret) attr_warn_unused;
void args_clear(struct args *a);
#define cleanup_args attr_cleanup(args_clear)

/** Was the flag or option given? @name must be in the command's table. */
bool arg_given(const struct args *a, const char *name);
/** The value, the last one if repeated; NULL if not given. */
const char *arg_str(const struct args *a, const char *name);
/** The @i-th value of a repeated option, NULL beyond the last. */
const char *arg_nth(const struct args *a, const char *name, size_t i);
/** Typed values: 0 and *ret, which stays as it is when the option was not given. A bad value is a usage error. */
int arg_size(struct ctl *c, const struct args *a, const char *name, uint64_t *ret) attr_warn_unused;
int arg_uint(struct ctl *c, const struct args *a, const char *name, uint64_t min, uint64_t max, uint64_t *ret) attr_warn_unused;

/** A usage error: sets c->e, returns -EINVAL. The hint names the command's help. */
int usage_error(struct ctl *c, const struct command *cmd, const char *fmt, ...) attr_printf(3, 4);

/** Is @name the first word of a group of commands ("snapshot")? */
bool command_is_group(const char *name);
/** The command or group that is nearest to @word, in @buf, or NULL if none is near. */
const char *command_nearest(const char *word, char *buf, size_t size);
/** Edit distance, neighbours that changed places counted once, at most @max + 1 (then it is "too far"). Words longer than 63 bytes are too far. */
unsigned edit_distance(const char *a, const char *b, unsigned max);

/** Options that every command takes. */
extern const struct option_def global_options[];

void help_overview(FILE *f);
void help_group(FILE *f, const char *group);
void help_command(FILE *f, const struct command *cmd);
