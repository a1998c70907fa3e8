/* SPDX-License-Identifier: MIT */
/* Theory of operation: `top`
 *
 * Every interval forkd is asked for its document (`stats`); a timer, the answer, keys and signals are events of one loop, so that a
 * forkd that does not answer never makes the screen deaf. What comes of an answer depends on the output: a screen, a list each
 * time (no terminal, or --once), or the document itself (--json).
 *
 * A forkd that goes away is waited for: the picture stays, with a line that says so; only the first document must come.
 * However it ends, the terminal is given back first: signals are events too, and are raised again after that. */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "common/io.h"
#include "common/json.h"
#include "forkctl/client.h"
#include "forkctl/commands.h"
#include "forkctl/draw.h"
#include "forkctl/screen.h"
#include "forkctl/table.h"
#include "forkctl/top.h"
#include "forkctl/tty.h"

#define INTERVAL_DEFAULT 1.0
#define INTERVAL_MIN 0.1
#define INTERVAL_MAX 86400.0
#define COUNT_MAX 1000000000ull
#define PATIENCE_S 3.0 /* an answer that takes longer is told about */
#define LIST_COLS 120u /* where nobody knows how wide the output is */

static const int caught[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH };

struct live {
        struct ctl *c;
        struct top top;
        struct canvas cv;
        struct screen *screen; /* NULL: lists, or JSON */
        double interval;
        uint64_t left; /* documents still wanted; 0: no end */
        uint64_t shown;
        bool pending, told;
        uint64_t asked_ns, lost_ns; /* lost_ns: since when forkd is not there; 0: it is */
        struct event *tick, *keys, *signals[ARRAY_LEN(caught)];
        int signal; /* that ends us */
        int r;
        bool done;
};

static void finish(struct live *l, int r) {
        l->done = true;
        l->r = r;
        (void) event_base_loopbreak(l->c->base);
}

/* ---- output ---- */

static void draw(struct live *l) {
        unsigned rows, cols;

        if (!l->screen)
                return;
        screen_size(l->screen, &rows, &cols);
        if (canvas_resize(&l->cv, rows, cols) < 0)
                return; /* the picture before stays */
        top_draw(&l->top, &l->cv);
        screen_show(l->screen, &l->cv);
}

static int print_list(struct live *l) {
        unsigned rows, cols = LIST_COLS;
        char now[32];
        struct tm tm;
        time_t t = time(NULL);

        best_effort(tty_size(&rows, &cols));
        if (canvas_resize(&l->cv, top_list_rows(&l->top), cols) < 0)
                return err_errno(&l->c->e, -ENOMEM, "drawing the list");
        if (l->left != 1 || l->shown > 0)
                printf("%s-- %s\n", l->shown ? "\n" : "",
                       localtime_r(&t, &tm) && strftime(now, sizeof(now), "%F %T", &tm) ? now : "?");
        top_draw_list(&l->top, &l->cv);
        return canvas_print(&l->cv, stdout);
}

static int show(struct live *l, const json_t *doc) {
        int r;

        if (l->c->json) {
                r = ctl_print(l->c, doc);
        } else {
                r = top_update(&l->top, doc);
                if (r == -EBADMSG)
                        return err_set(&l->c->e, ERR_PROTOCOL, r,
                                       "forkd's answer is no such document: is it of another version?");
                if (r < 0)
                        return err_errno(&l->c->e, r, "reading forkd's answer");
                if (!l->screen)
                        r = print_list(l);
        }
        if (r == 0 && !l->screen && fflush(stdout) != 0)
                r = -errno;
        return r < 0 && l->c->e.r == 0 ? err_errno(&l->c->e, r, "writing the output") : r;
}

/* ---- forkd, there or not ---- */

static void is_back(struct live *l) {
        if (l->told && !l->screen)
                (void) fputs("forkctl: forkd is back\n", stderr);
        l->told = false;
        l->lost_ns = 0;
        l->top.notice[0] = '\0';
}

/* The reason is in c->e. @there: it has answered, with a refusal, as one does that is about to exit. */
static void is_lost(struct live *l, bool there) {
        char ago[32], safe[sizeof(l->c->e.message)];

        if (l->lost_ns == 0)
                l->lost_ns = now_ns();
        (void) snprintf(l->top.notice, sizeof(l->top.notice), "forkd %s since %s; asking again. %s",
                        there ? "has refused" : "is not there",
                        draw_seconds(ago, sizeof(ago), ms_since(l->lost_ns) / 1e3, l->cv.utf8), l->c->e.message);
        if (!l->told && !l->screen)
                (void) fprintf(stderr, "forkctl: %s; waiting for it\n", text_safe(l->c->e.message, safe, sizeof(safe)));
        l->told = true;
        top_gap(&l->top);
        l->c->e = (struct err){ 0 };
}

static void on_answer(const struct rpc_result *res, void *arg) {
        cleanup_json json_t *doc = NULL;
        struct live *l = arg;
        int r;

        l->pending = false;
        if (res->r < 0) {
                r = ctl_call_error(l->c, "stats", res);
                if (l->shown == 0)
                        finish(l, r);
                else
                        is_lost(l, res->r == -EREMOTEIO);
        } else {
                is_back(l);
                doc = json_from_mp(res->result);
                r = doc ? show(l, doc) : err_errno(&l->c->e, -ENOMEM, "reading forkd's answer");
                l->shown++;
                if (r < 0 || (l->left > 0 && --l->left == 0))
                        finish(l, r);
        }
        draw(l);
}

static void ask(struct live *l) {
        int r;

        if (l->pending) {
                if (ms_since(l->asked_ns) >= PATIENCE_S * 1e3)
                        (void) snprintf(l->top.notice, sizeof(l->top.notice), "forkd has not answered for %.0f s",
                                        ms_since(l->asked_ns) / 1e3);
                return;
        }
        if (l->c->closed || (l->c->conn && !rpc_conn_is_open(l->c->conn)))
                ctl_hang_up(l->c);
        r = ctl_start(l->c, "stats", NULL, on_answer, l, NULL);
        if (r == 0) {
                l->pending = true;
                l->asked_ns = now_ns();
        } else if (l->shown == 0) {
                finish(l, r);
        } else {
                is_lost(l, false);
        }
}

static void on_tick(evutil_socket_t fd, short what, void *arg) {
        struct live *l = arg;

        ask(l);
        draw(l);
}

/* ---- keys ---- */

static void filter_key(struct top *t, int key) {
        size_t n = strlen(t->filter);

        if (key == '\r' || key == '\n')
                t->asking = false;
        else if (key == KEY_ESC) {
                t->asking = false;
                t->filter[0] = '\0';
        } else if (key == KEY_ERASE) {
                t->filter[n > 0 ? n - 1 : 0] = '\0';
        } else if (key >= ' ' && key < 0x7f && n < TOP_MAX_FILTER) {
                t->filter[n] = (char) key;
                t->filter[n + 1] = '\0';
        }
        top_arrange(t);
}

static void sort_key(struct top *t, int key) {
        static const struct {
                char letter;
                enum top_key key;
        } keys[] = {
                { 'h', TOP_BY_HEALTH },  { 'c', TOP_BY_CPU },    { 'w', TOP_BY_WAITS },
                { 'l', TOP_BY_LONGEST }, { 'm', TOP_BY_MEMORY }, { 'n', TOP_BY_NAME },
        };

        for (size_t i = 0; i < ARRAY_LEN(keys); i++)
                if (keys[i].letter == key) {
                        t->key = keys[i].key;
                        t->reversed = false;
                }
        if (key == 'r')
                t->reversed = !t->reversed;
        top_arrange(t);
}

static void move_key(struct live *l, int key) {
        int page = (int) MAX_OF(l->cv.rows, 12u) - 8;

        if (key == KEY_UP_ONE || key == 'k')
                top_move(&l->top, -1);
        else if (key == KEY_DOWN_ONE || key == 'j')
                top_move(&l->top, 1);
        else if (key == KEY_PAGE_UP)
                top_move(&l->top, -page);
        else if (key == KEY_PAGE_DOWN)
                top_move(&l->top, page);
        else if (key == KEY_FIRST || key == 'g')
                top_move(&l->top, INT_MIN);
        else if (key == KEY_LAST || key == 'G')
                top_move(&l->top, INT_MAX);
}

static void take_key(struct live *l, int key) {
        struct top *t = &l->top;

        if (t->asking) {
                filter_key(t, key);
        } else if (t->help) {
                t->help = false;
        } else if (key == 'q') {
                finish(l, 0);
        } else if (key == '/') {
                t->asking = true;
        } else if (key == '?') {
                t->help = true;
        } else if (key == KEY_ESC) {
                t->filter[0] = t->selected[0] = '\0';
                top_arrange(t);
        } else if (key == ' ') {
                ask(l);
        } else {
                sort_key(t, key);
                move_key(l, key);
        }
}

static void on_keys(evutil_socket_t fd, short what, void *arg) {
        struct pollfd p = { .fd = (int) fd, .events = POLLIN };
        struct live *l = arg;
        int key;

        while (!l->done && (key = screen_key(l->screen)) != KEY_NO_MORE)
                take_key(l, key);
        /* A terminal that went away without a signal: it would be readable for ever. */
        if (poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR | POLLNVAL)))
                finish(l, err_errno(&l->c->e, -EIO, "reading the terminal"));
        draw(l);
}

static void on_signal(evutil_socket_t sig, short what, void *arg) {
        struct live *l = arg;

        if (sig == SIGWINCH) {
                draw(l);
                return;
        }
        l->signal = (int) sig;
        finish(l, 0);
}

/* ---- the command ---- */

static int open_screen(struct live *l) {
        struct event_base *base = l->c->base;

        /* Before the screen: ncurses keeps off signals that somebody has taken. */
        for (size_t i = 0; i < ARRAY_LEN(caught); i++) {
                l->signals[i] = evsignal_new(base, caught[i], on_signal, l);
                if (!l->signals[i] || event_add(l->signals[i], NULL) < 0)
                        return err_errno(&l->c->e, -ENOMEM, "watching signals");
        }
        l->keys = event_new(base, STDIN_FILENO, EV_READ | EV_PERSIST, on_keys, l);
        if (!l->keys || event_add(l->keys, NULL) < 0)
                return err_errno(&l->c->e, -ENOMEM, "watching the keyboard");
        return screen_open(&l->screen);
}

static void close_all(struct live *l) {
        screen_close(TAKE_PTR(l->screen));
        for (size_t i = 0; i < ARRAY_LEN(caught); i++)
                if (l->signals[i])
                        event_free(TAKE_PTR(l->signals[i]));
        if (l->keys)
                event_free(TAKE_PTR(l->keys));
        if (l->tick)
                event_free(TAKE_PTR(l->tick));
        top_clear(&l->top);
        canvas_clear(&l->cv);
}

static int run(struct live *l, bool want_screen) {
        const struct timeval every = { .tv_sec = (time_t) l->interval,
                                       .tv_usec = (suseconds_t) ((l->interval - (double) (time_t) l->interval) * 1e6) };
        int r = ctl_connect(l->c); /* a forkd that is not there at all is told on the screen as it was */

        if (r < 0)
                return r;
        if (want_screen) {
                r = open_screen(l);
                if (r < 0 && r != -ENOTTY) /* a terminal that nothing is known of gets lists */
                        return r;
        }
        l->tick = event_new(l->c->base, -1, EV_PERSIST, on_tick, l);
        if (!l->tick || event_add(l->tick, &every) < 0)
                return err_errno(&l->c->e, -ENOMEM, "making the clock");
        ask(l);
        draw(l);
        while (!l->done)
                if (event_base_loop(l->c->base, 0) < 0)
                        return err_set(&l->c->e, ERR_INTERNAL, -EIO, "the event loop failed");
        return l->r;
}

static int get_interval(struct ctl *c, const struct args *a, double *ret) {
        const char *s = arg_str(a, "interval");
        char *end;
        double v;

        if (!s)
                return 0;
        v = strtod(s, &end);
        if (s[0] < '.' || s[0] > '9' || *end || !(v >= INTERVAL_MIN && v <= INTERVAL_MAX)) {
                (void) usage_error(c, a->cmd, "--interval cannot be '%.80s'", s);
                (void) err_hint(&c->e, "seconds, from %.1f to %.0f", INTERVAL_MIN, INTERVAL_MAX);
                return -EINVAL;
        }
        *ret = v;
        return 0;
}

int cmd_top(struct ctl *c, const struct args *a) {
        struct live l = { .c = c, .interval = INTERVAL_DEFAULT, .cv = { .utf8 = canvas_locale_is_utf8() } };
        bool once = arg_given(a, "once");
        int r;

        top_init(&l.top);
        r = get_interval(c, a, &l.interval);
        if (r == 0)
                r = arg_uint(c, a, "count", 1, COUNT_MAX, &l.left);
        if (r < 0)
                return r;
        if (once && arg_given(a, "count"))
                return usage_error(c, a->cmd, "--once and --count exclude each other");
        if (arg_given(a, "sort") && top_key_parse(arg_str(a, "sort"), &l.top.key) < 0)
                return usage_error(c, a->cmd, "--sort cannot be '%.80s'", arg_str(a, "sort"));
        if (once)
                l.left = 1;
        r = run(&l, !c->json && !once && screen_is_possible());
        close_all(&l);
        if (l.signal) {
                (void) signal(l.signal, SIG_DFL);
                (void) raise(l.signal);
        }
        return r;
}
