/* SPDX-License-Identifier: MIT */
/* Theory of operation: `exec`
 *
 * stdin, stdout and stderr of the command in the guest are the streams 0, 1 and 2 of the call. The exit code
 * is only passed on when all output has been written. With -t the guest's side has a terminal; if ours is one
 * too it goes raw, so that ^C is a byte for the guest and not a signal for us. A signal that does reach us is
 * sent on; somebody who sends STUBBORN of them gets out even if nobody at the other end listens.
 *
 * With --json each piece of output is a line. A piece may end in the middle of a UTF-8 sequence: those bytes
 * wait for the next piece, so that text stays text. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "forkctl/commands.h"
#include "common/json.h"
#include "common/utf8.h"
#include "forkctl/stream.h"
#include "forkctl/tty.h"

#define STUBBORN 3
#define TIMEOUT_MAX_S (365.0 * 86400)

struct exec {
        struct ctl *c;
        struct streams s;
        struct tty tty;
        struct event *signals[8];
        size_t n_signals;
        unsigned impatience;         /* interrupting signals so far */
        int killed_by;               /* the signal that made us give up */
        char carry[STREAM_N_OUT][4]; /* --json: the beginning of a UTF-8 sequence */
        size_t n_carry[STREAM_N_OUT];
};

static void exec_clear(struct exec *x) {
        for (size_t i = 0; i < x->n_signals; i++)
                event_free(x->signals[i]);
        x->n_signals = 0;
        streams_clear(&x->s);
        tty_restore(&x->tty);
}
#define cleanup_exec attr_cleanup(exec_clear)

/* ---- signals and the terminal's size ---- */

static void send_size(struct exec *x) {
        cleanup_req struct req q;
        unsigned rows, cols;

        req_init(&q);
        if (tty_size(&rows, &cols) < 0)
                return;
        req_u64(&q, "rows", rows);
        req_u64(&q, "cols", cols);
        streams_notify(&x->s, "stream.resize", &q);
}

static void send_signal(struct exec *x, int sig) {
        cleanup_req struct req q;

        req_init(&q);
        req_u64(&q, "signal", (uint64_t) sig);
        streams_notify(&x->s, "stream.signal", &q);
}

static void on_window(evutil_socket_t sig, short what, void *arg) {
        send_size(arg);
}

static void on_continue(evutil_socket_t sig, short what, void *arg) {
        struct exec *x = arg;

        tty_again(&x->tty);
        if (x->tty.raw)
                send_size(x);
}

static void on_signal(evutil_socket_t sig, short what, void *arg) {
        struct exec *x = arg;

        send_signal(x, (int) sig);
        if ((sig != SIGINT && sig != SIGTERM && sig != SIGQUIT) || ++x->impatience < STUBBORN)
                return;
        x->killed_by = (int) sig;
        streams_fail(&x->s, err_set(&x->c->e, ERR_CANCELED, -ECANCELED, "the command does not end; gave up waiting for it"));
}

static int watch(struct exec *x, int sig, event_callback_fn fn) {
        struct event *ev = evsignal_new(x->c->base, sig, fn, x);

        if (!ev || event_add(ev, NULL) < 0) {
                if (ev)
                        event_free(ev);
                return err_errno(&x->c->e, -ENOMEM, "watching signals");
        }
        x->signals[x->n_signals++] = ev;
        return 0;
}

static int watch_signals(struct exec *x, bool tty) {
        static const int forwarded[] = { SIGINT, SIGTERM, SIGQUIT, SIGUSR1, SIGUSR2 };
        int r = 0;

        for (size_t i = 0; r == 0 && i < ARRAY_LEN(forwarded); i++)
                r = watch(x, forwarded[i], on_signal);
        if (r == 0 && tty)
                r = watch(x, SIGWINCH, on_window);
        if (r == 0 && tty)
                r = watch(x, SIGCONT, on_continue);
        return r;
}

/* ---- --json ---- */

static char *line_of(unsigned stream, const char *data, size_t len) {
        cleanup_json json_t *line = json_pack("{s:s}", "stream", stream == 1 ? "stdout" : "stderr");

        if (!line || json_set_bytes(line, "data", data, len) < 0)
                return NULL;
        return json_dumps(line, JSON_COMPACT);
}

static int encode_line(struct streams *s, unsigned stream, const void *data, size_t len, struct evbuffer *to) {
        struct exec *x = s->arg;
        size_t n = x->n_carry[stream], whole;
        cleanup_free char *all = malloc(n + len), *line = NULL;

        if (!all)
                return -ENOMEM;
        memcpy(all, x->carry[stream], n);
        memcpy(all + n, data, len);
        whole = utf8_whole(all, n + len);
        x->n_carry[stream] = n + len - whole;
        memcpy(x->carry[stream], all + whole, x->n_carry[stream]);
        if (whole == 0)
                return 0;
        line = line_of(stream, all, whole);
        return line && evbuffer_add_printf(to, "%s\n", line) >= 0 ? 0 : -ENOMEM;
}

/* What waited for the rest of a sequence that never came. All else is written by now. */
static int flush_carry(struct exec *x) {
        for (unsigned i = 1; i < STREAM_N_OUT; i++) {
                cleanup_free char *line = x->n_carry[i] ? line_of(i, x->carry[i], x->n_carry[i]) : NULL;

                if (x->n_carry[i] && (!line || printf("%s\n", line) < 0))
                        return err_errno(&x->c->e, -ENOMEM, "writing the output");
                x->n_carry[i] = 0;
        }
        return 0;
}

/* ---- the request ---- */

static int put_env(struct ctl *c, const struct args *a, struct req *q, bool tty) {
        const char *e, *term = tty ? getenv("TERM") : NULL;
        size_t n = 0;

        for (; (e = arg_nth(a, "env", n)); n++) {
                char name[256];

                (void) snprintf(name, sizeof(name), "%.*s", (int) MIN_OF(strcspn(e, "="), sizeof(name) - 1), e);
                if (!*e || *e == '=')
                        return usage_error(c, a->cmd, "--env '%.80s' has no name", e);
                if (!strchr(e, '=') && !getenv(e))
                        return usage_error(c, a->cmd, "--env %.80s has no value, and is not set here", e);
                if (strcmp(name, "TERM") == 0)
                        term = NULL;
        }
        if (n == 0 && !term)
                return 0;
        req_key(q, "env");
        mp_map(&q->body, n + (term ? 1 : 0));
        for (size_t i = 0; i < n; i++) {
                e = arg_nth(a, "env", i);
                mp_strn(&q->body, e, strcspn(e, "="));
                mp_str(&q->body, strchr(e, '=') ? strchr(e, '=') + 1 : getenv(e));
        }
        if (term)
                mp_kv_str(&q->body, "TERM", term);
        return 0;
}

static int put_timeout(struct ctl *c, const struct args *a, struct req *q) {
        const char *s = arg_str(a, "timeout");
        char *end;
        double v;

        if (!s)
                return 0;
        v = strtod(s, &end);
        if (s[0] < '0' || s[0] > '9' || *end || !(v > 0) || v > TIMEOUT_MAX_S) {
                (void) usage_error(c, a->cmd, "--timeout cannot be '%.80s'", s);
                (void) err_hint(&c->e, "seconds, for example 30 or 0.5; at most a year");
                return -EINVAL;
        }
        if (v == (double) (uint64_t) v)
                req_u64(q, "timeout_s", (uint64_t) v);
        else
                req_double(q, "timeout_s", v);
        return 0;
}

static int put_request(struct ctl *c, const struct args *a, struct req *q) {
        bool tty = arg_given(a, "tty");
        unsigned rows, cols;
        int r;

        req_str(q, "name", a->pos[0]);
        req_strs(q, "argv", a->rest, (size_t) a->n_rest);
        if (tty)
                req_bool(q, "tty", true);
        if (arg_given(a, "interactive"))
                req_bool(q, "stdin", true);
        if (tty && tty_size(&rows, &cols) == 0) {
                req_u64(q, "rows", rows);
                req_u64(q, "cols", cols);
        }
        req_str(q, "cwd", arg_str(a, "cwd"));
        r = put_env(c, a, q, tty);
        return r < 0 ? r : put_timeout(c, a, q);
}

/* ---- the run ---- */

static int open_outputs(struct exec *x) {
        struct sink *out, *err;
        int r = streams_sink(&x->s, STDOUT_FILENO, &out);

        if (r < 0)
                return r;
        x->s.out[1].sink = x->s.out[2].sink = out;
        if (x->c->json) {
                x->s.encode = encode_line;
                x->s.arg = x;
                return 0;
        }
        r = streams_sink(&x->s, STDERR_FILENO, &err);
        if (r < 0)
                return r;
        err->may_break = true;
        x->s.out[2].sink = err;
        return 0;
}

/* The command's end as an exit code, and as the last line with --json. */
static int finish(struct exec *x) {
        const json_t *result = x->s.result;
        uint64_t sig = json_u64(result, "signal", 0);
        uint64_t code = sig ? CTL_EXIT_SIGNAL + sig : json_u64(result, "exit_code", UINT64_MAX);
        bool timed_out = json_flag(result, "timed_out");
        cleanup_json json_t *doc = NULL;
        int r;

        if (code > 255)
                return err_set(&x->c->e, ERR_PROTOCOL, -EPROTO, "forkd's answer has no exit code in it");
        if (!x->c->json) {
                if (timed_out)
                        (void) fputs("forkctl: the command took longer than --timeout allows\n", stderr);
                return (int) code;
        }
        doc = json_pack("{s:I}", "exit_code", (json_int_t) code);
        if (!doc || (sig && json_object_set_new(doc, "signal", json_integer((json_int_t) sig)) < 0) ||
            (timed_out && json_object_set_new(doc, "timed_out", json_true()) < 0))
                return err_errno(&x->c->e, -ENOMEM, "telling the result");
        r = flush_carry(x);
        if (r == 0)
                r = ctl_print(x->c, doc);
        return r < 0 ? r : (int) code;
}

int cmd_exec(struct ctl *c, const struct args *a) {
        cleanup_exec struct exec x = { .c = c };
        cleanup_req struct req q;
        bool tty = arg_given(a, "tty"), input = arg_given(a, "interactive");
        int r;

        req_init(&q);
        streams_init(&x.s, c);
        r = put_request(c, a, &q);
        if (r == 0)
                r = ctl_connect(c);
        if (r == 0)
                r = open_outputs(&x);
        if (r == 0)
                r = watch_signals(&x, tty);
        if (r < 0)
                return r;
        if (input)
                x.s.in_fd = STDIN_FILENO;
        if (tty && input && isatty(STDIN_FILENO)) {
                r = tty_raw(&x.tty, STDIN_FILENO);
                if (r < 0)
                        return err_errno(&c->e, r, "preparing the terminal");
        }
        r = streams_start(&x.s, "vm.exec", &q);
        if (r == 0)
                r = streams_run(&x.s);
        tty_restore(&x.tty);
        if (x.s.pipe_closed)
                return CTL_EXIT_SIGNAL + SIGPIPE;
        if (r < 0 && c->json)
                (void) flush_carry(&x);
        if (x.killed_by && r < 0) {
                ctl_tell_error(c);
                return CTL_EXIT_SIGNAL + x.killed_by;
        }
        return r < 0 ? r : finish(&x);
}
