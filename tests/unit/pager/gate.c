/* SPDX-License-Identifier: MIT */
#include "tests/unit/pager/gate.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/fanotify.h>
#include <unistd.h>

struct gate gate;

static void respond(int fd, bool allow) {
        struct fanotify_response r = { .fd = fd, .response = allow ? FAN_ALLOW : FAN_DENY };

        (void) !write(gate.fan, &r, sizeof(r));
        (void) close(fd);
}

static void take_event(int fd) {
        if (gate.mode == HOLD && gate.n_held < ARRAY_LEN(gate.held)) {
                gate.held[gate.n_held++] = fd;
                gate.waiting++;
        } else {
                respond(fd, gate.mode != REFUSE);
        }
}

static void *gate_main(void *arg) {
        _Alignas(struct fanotify_event_metadata) char buf[4096];

        for (;;) {
                struct pollfd p[2] = { { .fd = gate.fan, .events = POLLIN }, { .fd = gate.end[0], .events = POLLIN } };
                ssize_t n;
                char c;

                (void) poll(p, 2, -1);
                if (p[1].revents & POLLIN && read(gate.end[0], &c, 1) == 1) { /* the mode has changed, or the end */
                        while (gate.mode != HOLD && gate.n_held > 0) {
                                respond(gate.held[--gate.n_held], gate.mode != REFUSE);
                                gate.waiting--;
                        }
                        if (c == 'e')
                                return NULL;
                }
                if (!(p[0].revents & POLLIN))
                        continue;
                n = read(gate.fan, buf, sizeof(buf));
                for (struct fanotify_event_metadata *m = (void *) buf; n > 0 && FAN_EVENT_OK(m, n); m = FAN_EVENT_NEXT(m, n))
                        take_event(m->fd);
        }
}

void gate_set(int mode) {
        gate.mode = mode;
        assert_int_equal(write(gate.end[1], "m", 1), 1);
}

/* The kernel asks only about files that were opened after somebody wanted to be asked. */
void gate_open(struct image *i) {
        char path[64];
        int again;

        gate = (struct gate){ .mode = PASS };
        gate.fan = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK, O_RDONLY | O_CLOEXEC);
        if (gate.fan < 0) {
                if (getenv("FORKD_TEST_NO_SKIP"))
                        fail_msg("no fanotify with permissions here");
                print_message("skipped: no fanotify with permissions here\n");
                skip();
        }
        assert_int_equal(pipe2(gate.end, O_CLOEXEC), 0);
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", i->fd);
        assert_int_equal(fanotify_mark(gate.fan, FAN_MARK_ADD, FAN_ACCESS_PERM, AT_FDCWD, path), 0);
        assert_int_equal(pthread_create(&gate.thread, NULL, gate_main, NULL), 0);
        again = open(path, O_RDWR | O_CLOEXEC);
        assert_true(again >= 0);
        (void) close(i->fd);
        i->fd = again;
}

void gate_close(void) {
        gate.mode = PASS;
        assert_int_equal(write(gate.end[1], "e", 1), 1);
        assert_int_equal(pthread_join(gate.thread, NULL), 0);
        (void) close(gate.fan);
        (void) close(gate.end[0]);
        (void) close(gate.end[1]);
}
