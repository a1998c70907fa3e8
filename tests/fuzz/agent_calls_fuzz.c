/* SPDX-License-Identifier: MIT */
/* The agent itself, in this process, against a forkd that sends whatever the input describes. What would change
 * the host is left out: EXEC, PUT, GET and WAKE come from here, with fixed commands and files.
 * Input: records of {action u8, seq step u8, length u16, payload}; an action below WIRE_N_TYPES is that message. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/agent.h"
#include "common/io.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_EXECS 4 /* processes in one run */
enum action { ACT_WAKE = 100, ACT_EXEC, ACT_PUT, ACT_GET, ACT_RAW };

struct host {
        struct agent *agent;
        int fd;
        char dir[64];
        struct wire_frame next;
        unsigned execs, turn;
};

static void must(bool ok) {
        if (!ok)
                abort();
}

static void drain(struct host *h) {
        static uint8_t sink[65536];

        while (recv(h->fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
                ;
}

/* One turn of the agent: what loop_run does, without waiting. */
static bool stop_at_once(void *arg) {
        struct host *h = arg;
        struct loop *l = &h->agent->loop;

        (void) channel_work(&h->agent->ch);
        drain(h);
        if (++h->turn % 3 == 0)
                loop_stop(l, 0);
        return true;
}

static void turn_agent(struct host *h) {
        h->agent->loop.stop = false;
        best_effort(loop_run(&h->agent->loop, stop_at_once, h));
        /* the limits that the agent promises */
        must(h->agent->n_calls <= WIRE_MAX_CALLS && h->agent->n_execs <= AGENT_MAX_EXECS);
        must(h->agent->n_drained <= AGENT_MAX_DRAINED && h->agent->ch.out_len <= CHANNEL_OUT_MAX);
}

static void send_bytes(struct host *h, const uint8_t *p, size_t n) {
        while (n > 0) {
                ssize_t w = send(h->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);

                if (w > 0) {
                        p += w;
                        n -= (size_t) w;
                }
                turn_agent(h);
                if (h->agent->ch.io.fd < 0)
                        return;
        }
}

static void send_frame(struct host *h, enum wire_type type, unsigned step, const void *payload, size_t len) {
        static uint8_t out[WIRE_FRAME_MAX];

        h->next.type = type;
        h->next.payload = payload;
        h->next.len = len;
        send_bytes(h, out, wire_encode(&h->next, out));
        if (type != WIRE_WAKE)
                h->next.seq += step;
}

static void send_msg(struct host *h, const struct wire_msg *m) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        wire_msg_encode(m, &b);
        send_frame(h, m->type, 1, b.sb.data, b.sb.size);
}

static void act(struct host *h, uint8_t action, uint8_t call) {
        const char *argv[] = { "cat", NULL }, *env[] = { NULL };
        struct wire_msg m = { .call = call ? call : 1 };

        switch (action) {
        case ACT_WAKE:
                h->next.epoch += call % 3; /* at times the same again */
                h->next.seq = 0;
                m = (struct wire_msg){ .type = WIRE_WAKE, .wake.kind = WIRE_WAKE_RECONNECT };
                break;
        case ACT_EXEC:
                if (h->execs++ >= MAX_EXECS)
                        return;
                m.type = WIRE_EXEC;
                m.exec = (struct wire_exec){ .argv = argv, .env = env, .cwd = "/", .tty = call & 1, .has_stdin = call & 2 };
                break;
        case ACT_PUT:
        case ACT_GET:
                m.type = action == ACT_PUT ? WIRE_PUT : WIRE_GET;
                m.file.mode = 0600;
                m.file.size = call;
                (void) snprintf(m.file.path, sizeof(m.file.path), "%s/file", h->dir);
                break;
        default:
                return;
        }
        send_msg(h, &m);
}

static void play(struct host *h, const uint8_t *data, size_t size) {
        while (size >= 4) {
                size_t n = MIN_OF((size_t) data[2] << 8 | data[3], size - 4);
                uint8_t a = data[0];

                if (a == ACT_RAW)
                        send_bytes(h, data + 4, n);
                else if (a >= ACT_WAKE)
                        act(h, a, data[1]);
                else if (a < WIRE_N_TYPES && a != WIRE_WAKE && a != WIRE_EXEC && a != WIRE_PUT && a != WIRE_GET)
                        send_frame(h, (enum wire_type) a, data[1] < 250 ? 1 : data[1] - 250u, data + 4, n);
                data += 4 + n;
                size -= 4 + n;
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static struct agent agent;
        struct agent_options opt = { .hooks_timeout_ms = 1000 };
        struct host h = { .agent = &agent, .next = { .epoch = 1 } };
        struct transport tr;
        char spec[16];
        int sp[2];

        (void) signal(SIGPIPE, SIG_IGN);
        (void) snprintf(h.dir, sizeof(h.dir), "/tmp/forkd-fuzz-XXXXXX");
        must(mkdtemp(h.dir) != NULL);
        opt.root = h.dir;
        must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sp) == 0);
        h.fd = sp[0];
        (void) snprintf(spec, sizeof(spec), "fd:%d", sp[1]);
        must(transport_open(spec, 0, &tr) == 0);
        must(agent_init(&agent, &opt, &tr) == 0);
        act(&h, ACT_WAKE, 1);
        play(&h, data, size);
        /* whatever happened, a wake-up is understood, and files are served */
        h.next.epoch = UINT64_MAX;
        act(&h, ACT_WAKE, 0);
        must(agent.awake && agent.ch.epoch == UINT64_MAX && agent.n_calls == 0);
        (void) close(h.fd);
        agent_clear(&agent);
        while (waitpid(-1, NULL, WNOHANG) > 0)
                ;
        must(io_remove_tree(AT_FDCWD, h.dir) == 0);
        return 0;
}
