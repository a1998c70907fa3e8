/* SPDX-License-Identifier: MIT */
/* A command: its streams, its end, and its life as an orphan.
 *
 * Output is read only while the host has given credit and the channel is not congested; otherwise the pipe
 * fills and the command waits. Stdin is buffered up to the credit that the host was given.
 *
 * The end. The command is over when its main process has exited, which is not when its output ends: children
 * in the background may keep the pipe for ever. What the main process itself wrote is in the pipe by then, so
 * exactly that many bytes (FIONREAD at the exit) are still owed to the client, whatever its credit; after them
 * the streams are read until they end or have been idle for EXEC_IDLE_MS, but no longer than EXEC_LINGER_MS.
 * A terminal's bytes take a detour through a kernel worker, which the idle time covers too.
 *
 * An orphan (agent.h) is an exec without a call: its output is drained until it closes it. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "agent/agent.h"
#include "agent/child.h"

#define EXEC_IDLE_MS 50
#define EXEC_LINGER_MS 500
#define EXEC_TERM_MS 2000   /* between SIGTERM and SIGKILL of a timeout */
#define EXEC_CANCEL_MS 5000 /* between SIGHUP and SIGKILL of a cancel */
#define EXEC_CREDIT_STEP (32u << 10)

struct exec_out {
        struct exec *e;
        struct loop_io io;
        uint32_t credit;
        size_t owed; /* bytes that the main process left in it */
};

struct exec {
        struct call call; /* first: a call is an exec */
        struct agent *a;
        bool attached; /* a client is there; else this is an orphan */
        bool tty;
        pid_t pid;
        struct loop_io pid_io;
        int err_fd;
        struct exec_out out[2];

        struct loop_io in;
        uint8_t *in_buf; /* WIRE_CREDIT_INITIAL bytes, made when needed */
        size_t in_start, in_len;
        uint32_t in_taken; /* consumed, not yet given back as credit */
        bool in_eof;

        bool exited, signaled, timed_out;
        int code;
        uint64_t exit_ns;
        struct loop_timer limit, kill, idle;

        struct exec *prev, *next; /* orphans */
        char name[64];
};

static void exec_check_end(struct exec *e);

/* ---- life and orphanage ---- */

static bool exec_has_output(const struct exec *e) {
        return e->out[0].io.fd >= 0 || e->out[1].io.fd >= 0;
}

static void orphan_link(struct exec *e) {
        struct agent *a = e->a;

        e->next = NULL;
        e->prev = a->orphans_tail;
        if (e->prev)
                e->prev->next = e;
        else
                a->orphans = e;
        a->orphans_tail = e;
}

static void orphan_unlink(struct exec *e) {
        struct agent *a = e->a;

        if (e->prev)
                e->prev->next = e->next;
        else
                a->orphans = e->next;
        if (e->next)
                e->next->prev = e->prev;
        else
                a->orphans_tail = e->prev;
}

static void exec_free(struct exec *e) {
        struct loop *l = &e->a->loop;

        loop_timer_stop(l, &e->limit);
        loop_timer_stop(l, &e->kill);
        loop_timer_stop(l, &e->idle);
        loop_close(l, &e->in);
        loop_close(l, &e->out[0].io);
        loop_close(l, &e->out[1].io);
        loop_close(l, &e->pid_io);
        (void) close_fd(e->err_fd);
        free(e->in_buf);
        e->a->n_execs--;
        free(e);
}

/* An orphan ends when its process has been reaped and its output is closed. */
static void orphan_check_end(struct exec *e) {
        if (!e->exited || exec_has_output(e))
                return;
        orphan_unlink(e);
        exec_free(e);
}

static void orphan_close_output(struct exec *e) {
        if (exec_has_output(e))
                e->a->n_drained--;
        loop_close(&e->a->loop, &e->out[0].io);
        loop_close(&e->a->loop, &e->out[1].io);
        orphan_check_end(e);
}

static void out_watch(struct exec_out *o) {
        struct exec *e = o->e;
        bool wanted = !e->attached || (o->credit > 0 && !channel_congested(&e->a->ch));

        if (o->io.fd >= 0)
                (void) loop_watch(&e->a->loop, &o->io, wanted ? EPOLLIN : 0);
}

/* The call is over or its conversation is. What is still alive goes on alone. */
static void exec_detach(struct exec *e) {
        struct agent *a = e->a;

        e->attached = false;
        loop_timer_stop(&a->loop, &e->idle);
        if (!e->tty)
                loop_close(&a->loop, &e->in);
        else
                (void) loop_watch(&a->loop, &e->in, 0); /* closing a terminal would hang up on its session */
        free(TAKE_PTR(e->in_buf));
        e->in_len = 0;
        orphan_link(e);
        if (!exec_has_output(e)) {
                orphan_check_end(e);
                return;
        }
        out_watch(&e->out[0]);
        out_watch(&e->out[1]);
        a->n_drained++;
        for (struct exec *o = a->orphans; o && a->n_drained > AGENT_MAX_DRAINED; o = o->next)
                if (exec_has_output(o)) {
                        orphan_close_output(o);
                        break;
                }
}

void exec_clear_orphans(struct agent *a) {
        while (a->orphans) {
                struct exec *e = a->orphans;

                orphan_unlink(e);
                exec_free(e);
        }
}

/* ---- output ---- */

static void out_closed(struct exec_out *o) {
        struct exec *e = o->e;

        loop_close(&e->a->loop, &o->io);
        o->owed = 0;
        if (e->attached) {
                call_send_eof(&e->call, WIRE_STDOUT + (unsigned) (o - e->out));
                exec_check_end(e);
        } else if (!exec_has_output(e)) {
                e->a->n_drained--;
                orphan_check_end(e);
        }
}

static void out_ready(uint32_t events, void *arg) {
        struct exec_out *o = arg;
        struct exec *e = o->e;
        struct agent *a = e->a;
        size_t max = e->attached ? MIN_OF((size_t) o->credit, sizeof(a->scratch)) : sizeof(a->scratch);
        ssize_t n;

        n = read(o->io.fd, a->scratch, max);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return;
        if (n <= 0) { /* a terminal whose last user is gone says EIO */
                out_closed(o);
                return;
        }
        if (!e->attached)
                return;
        o->credit -= (uint32_t) n;
        o->owed -= MIN_OF(o->owed, (size_t) n);
        call_send_data(&e->call, WIRE_STDOUT + (unsigned) (o - e->out), a->scratch, (size_t) n);
        out_watch(o);
        if (e->exited)
                exec_check_end(e);
}

static void exec_credit(struct call *c, unsigned stream, uint32_t bytes) {
        struct exec *e = (struct exec *) c;
        struct exec_out *o = &e->out[stream - WIRE_STDOUT];

        o->credit = MIN_OF(o->credit + bytes, WIRE_CREDIT_INITIAL);
        out_watch(o);
}

static void exec_watch_output(struct call *c) {
        struct exec *e = (struct exec *) c;

        out_watch(&e->out[0]);
        out_watch(&e->out[1]);
}

/* ---- input ---- */

static void in_give_credit(struct exec *e, size_t n) {
        e->in_taken += (uint32_t) n;
        if (e->in_taken < EXEC_CREDIT_STEP || !e->attached)
                return;
        call_send_credit(&e->call, e->in_taken);
        e->in_taken = 0;
}

/* Nobody reads any more: what comes is thrown away, so that a client that sends much can finish. */
static void in_broken(struct exec *e) {
        loop_close(&e->a->loop, &e->in);
        in_give_credit(e, e->in_len);
        e->in_len = 0;
}

static void in_end(struct exec *e) {
        struct termios tio;
        uint8_t eof;

        if (!e->tty) {
                loop_close(&e->a->loop, &e->in);
                return;
        }
        /* a terminal has no end, but a key that says so */
        eof = tcgetattr(e->in.fd, &tio) == 0 ? tio.c_cc[VEOF] : 4;
        (void) !write(e->in.fd, &eof, 1);
        (void) loop_watch(&e->a->loop, &e->in, 0);
}

static void in_write(struct exec *e) {
        while (e->in.fd >= 0 && e->in_len > 0) {
                ssize_t n = write(e->in.fd, e->in_buf + e->in_start, e->in_len);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0 && errno == EAGAIN) {
                        (void) loop_watch(&e->a->loop, &e->in, EPOLLOUT);
                        return;
                }
                if (n < 0) {
                        in_broken(e);
                        return;
                }
                e->in_start += (size_t) n;
                e->in_len -= (size_t) n;
                in_give_credit(e, (size_t) n);
        }
        e->in_start = 0;
        if (e->in.fd < 0)
                return;
        (void) loop_watch(&e->a->loop, &e->in, 0);
        if (e->in_eof)
                in_end(e);
}

static void in_ready(uint32_t events, void *arg) {
        in_write(arg);
}

/* Forkd broke the protocol, or there is no memory: the call cannot go on as if nothing were. */
static void exec_fail(struct exec *e, int error) {
        struct wire_done d = call_error(error, "'%s': input", e->name);

        session_signal(e->pid, SIGKILL);
        call_done(&e->call, &d);
        exec_detach(e);
}

static void exec_data(struct call *c, const void *data, size_t len) {
        struct exec *e = (struct exec *) c;

        if (!call_take_stdin(c, len) || e->in_eof) {
                exec_fail(e, EPROTO);
                return;
        }
        if (e->in.fd < 0) {
                in_give_credit(e, len);
                return;
        }
        if (!e->in_buf)
                e->in_buf = malloc(WIRE_CREDIT_INITIAL);
        if (!e->in_buf) {
                exec_fail(e, ENOMEM);
                return;
        }
        if (e->in_start + e->in_len + len > WIRE_CREDIT_INITIAL) {
                memmove(e->in_buf, e->in_buf + e->in_start, e->in_len);
                e->in_start = 0;
        }
        memcpy(e->in_buf + e->in_start + e->in_len, data, len); /* fits: see call_take_stdin */
        e->in_len += len;
        in_write(e);
}

static void exec_eof(struct call *c) {
        struct exec *e = (struct exec *) c;

        if (e->in_eof)
                return;
        e->in_eof = true;
        if (e->in.fd >= 0 && e->in_len == 0)
                in_end(e);
}

/* ---- the end ---- */

static void exec_finish(struct exec *e) {
        struct wire_done d = { 0 };
        const char *what = NULL;
        int error = child_start_error(e->err_fd, &what);

        for (unsigned i = 0; i < 2; i++)
                if (e->out[i].io.fd >= 0)
                        call_send_eof(&e->call, WIRE_STDOUT + i);
        if (error) {
                d = call_error(error, "%s '%s'", what, e->name);
                d.not_run = true;
        } else {
                d.signaled = e->signaled;
                d.code = e->code;
        }
        d.timed_out = e->timed_out;
        call_done(&e->call, &d);
        exec_detach(e);
}

static void exec_idle(void *arg) {
        exec_finish(arg);
}

/* Called whenever something changes after the exit; see the top of this file. */
static void exec_check_end(struct exec *e) {
        uint64_t since_ms;

        if (!e->exited || !e->attached)
                return;
        if (!exec_has_output(e)) {
                exec_finish(e);
                return;
        }
        if (e->out[0].owed > 0 || e->out[1].owed > 0) {
                loop_timer_stop(&e->a->loop, &e->idle);
                return;
        }
        since_ms = (loop_now_ns() - e->exit_ns) / 1000000;
        if (e->idle.at_ns && since_ms + EXEC_IDLE_MS >= EXEC_LINGER_MS)
                return; /* no more extensions: what is armed is the end */
        loop_timer_set(&e->a->loop, &e->idle, EXEC_IDLE_MS, exec_idle, e);
}

static void exec_exited(uint32_t events, void *arg) {
        struct exec *e = arg;

        if (!child_reap(e->pid_io.fd, &e->signaled, &e->code))
                return;
        e->exited = true;
        e->exit_ns = loop_now_ns();
        loop_close(&e->a->loop, &e->pid_io);
        loop_timer_stop(&e->a->loop, &e->limit);
        loop_timer_stop(&e->a->loop, &e->kill);
        if (!e->attached) {
                orphan_check_end(e);
                return;
        }
        for (size_t i = 0; i < 2; i++) {
                int n = 0;

                if (e->out[i].io.fd >= 0 && ioctl(e->out[i].io.fd, FIONREAD, &n) == 0 && n > 0)
                        e->out[i].owed = (size_t) n;
        }
        exec_check_end(e);
}

static void exec_kill(void *arg) {
        struct exec *e = arg;

        if (!e->exited)
                session_signal(e->pid, SIGKILL);
}

static void exec_timeout(void *arg) {
        struct exec *e = arg;

        if (e->exited)
                return;
        e->timed_out = true;
        session_signal(e->pid, SIGTERM);
        loop_timer_set(&e->a->loop, &e->kill, EXEC_TERM_MS, exec_kill, e);
}

/* ---- what else the host may say ---- */

static void exec_resize(struct call *c, uint16_t rows, uint16_t cols) {
        struct exec *e = (struct exec *) c;
        struct winsize ws = { .ws_row = rows, .ws_col = cols };

        if (e->tty && e->out[0].io.fd >= 0)
                (void) ioctl(e->out[0].io.fd, TIOCSWINSZ, &ws);
}

static void exec_signal(struct call *c, int signo) {
        struct exec *e = (struct exec *) c;
        int group = 0;

        if (e->exited)
                return;
        if (e->tty && ioctl(e->out[0].io.fd, TIOCGPGRP, &group) == 0 && group > 1)
                (void) kill(-group, signo);
        else if (kill(-e->pid, signo) < 0)
                (void) kill(e->pid, signo); /* it has not come to its setsid yet */
}

static void exec_cancel(struct call *c) {
        struct exec *e = (struct exec *) c;

        if (!e->exited) {
                session_signal(e->pid, SIGHUP);
                loop_timer_stop(&e->a->loop, &e->limit);
                loop_timer_set(&e->a->loop, &e->kill, EXEC_CANCEL_MS, exec_kill, e);
        }
        call_unlink(c);
        exec_detach(e);
}

/* No SIGHUP: in each copy of the guest the command goes on, and so does its time limit. */
static void exec_abandon(struct call *c) {
        call_unlink(c);
        exec_detach((struct exec *) c);
}

static const struct call_ops exec_ops = {
        .data = exec_data,
        .eof = exec_eof,
        .credit = exec_credit,
        .relief = exec_watch_output,
        .congested = exec_watch_output,
        .resize = exec_resize,
        .signal = exec_signal,
        .cancel = exec_cancel,
        .abandon = exec_abandon,
};

static void exec_setup(struct exec *e, struct agent *a, const struct wire_msg *m, const struct child *child) {
        e->a = a;
        e->attached = true;
        e->tty = m->exec.tty;
        e->pid = child->pid;
        e->err_fd = child->err_fd;
        e->pid_io = (struct loop_io){ .fd = child->pidfd, .fn = exec_exited, .arg = e };
        e->in = (struct loop_io){ .fd = child->in_fd, .fn = in_ready, .arg = e };
        for (size_t i = 0; i < 2; i++)
                e->out[i] = (struct exec_out){
                        .e = e,
                        .io = { .fd = child->out_fd[i], .fn = out_ready, .arg = &e->out[i] },
                        .credit = WIRE_CREDIT_INITIAL,
                };
        (void) snprintf(e->name, sizeof(e->name), "%s", m->exec.argv[0]);
        call_link(&e->call, a, m->call, &exec_ops);
        a->n_execs++;
        (void) loop_watch(&a->loop, &e->pid_io, EPOLLIN);
        exec_watch_output(&e->call);
        if (m->exec.timeout_ms)
                loop_timer_set(&a->loop, &e->limit, m->exec.timeout_ms, exec_timeout, e);
        if (!m->exec.has_stdin)
                exec_eof(&e->call);
}

void exec_begin(struct agent *a, const struct wire_msg *m) {
        struct exec *e = NULL;
        struct wire_done d;
        struct child child;
        int r = a->n_execs >= AGENT_MAX_EXECS ? -EAGAIN : 0;

        if (r == 0) {
                e = calloc(1, sizeof(*e));
                r = e ? child_start(&m->exec, &child) : -ENOMEM;
        }
        if (r < 0) {
                free(e);
                d = call_error(-r, "cannot start '%.64s'%s", m->exec.argv[0], m->exec.tty ? " on a terminal" : "");
                d.not_run = true;
                agent_refuse(a, m->call, &d);
                return;
        }
        exec_setup(e, a, m, &child);
}
